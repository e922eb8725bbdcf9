"""A mean over images is worth what its standard error says."""

from __future__ import annotations

from torch import Tensor


def estimate(values: Tensor, before: Tensor | None = None) -> dict[str, float]:
    """Mean and standard error, and those of the change from other values of the same images.

    Args:
        values: (N,) one number an image.
        before: (N,) what to compare with, image by image.

    Returns:
        ``mean`` and ``error``; with ``before`` also ``change`` and ``change_error``, of the N differences: they vary
        less than the values do, since a hard image is hard both times. Six digits. A single image has an error of 0.

    Raises:
        ValueError: for no values, or when there are not as many before.
    """
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"expected values of shape (N,), at least one, got {tuple(values.shape)}")
    if before is not None and before.shape != values.shape:
        raise ValueError(f"expected as many values before as after, {len(values)}, got shape {tuple(before.shape)}")
    mean, error = _mean_and_error(values.double())
    found = {"mean": mean, "error": error}
    if before is not None:
        found["change"], found["change_error"] = _mean_and_error(values.double() - before.double())
    return found


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else 0.0
    return float(f"{values.mean().item():.6g}"), float(f"{error:.6g}")
