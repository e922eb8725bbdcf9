"""Whether a target is met; every benchmark that has one says it in these words."""

from __future__ import annotations


def verdict(ratio: float, target: float | None, at_least: bool = False) -> str:
    """``"met"`` or ``"missed"``; nothing without a target."""
    if target is None:
        return ""
    return "met" if (ratio >= target if at_least else ratio <= target) else "missed"
