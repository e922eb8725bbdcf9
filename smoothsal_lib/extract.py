"""From an attribution, one value a channel, to a saliency map, one value a position."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda a: a.mean(1),
    "sum": lambda a: a.sum(1),
    "abs_mean": lambda a: a.abs().mean(1),
    "l2": lambda a: a.square().sum(1).sqrt(),
    "max_abs": lambda a: a.abs().amax(1),
}


def saliency_map(attribution: Tensor, reduce: str = "mean") -> Tensor:
    """Reduce the channels of an attribution.

    Args:
        attribution: (N, C, H, W).
        reduce: ``"mean"`` and ``"sum"`` keep the sign, and positive and negative channels cancel; ``"abs_mean"``,
            ``"l2"`` (the Euclidean norm) and ``"max_abs"`` (the largest magnitude, the gradient map of Simonyan et al.
            2014, arXiv 1312.6034) are never negative.

    Returns:
        The map M, shape (N, H, W).

    Raises:
        ValueError: for an unknown reduction or an attribution of another shape.
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"unknown reduction {reduce!r}: choose one of {', '.join(REDUCTIONS)}")
    if attribution.ndim != 4:
        raise ValueError(f"expected an attribution of shape (N, C, H, W), got {tuple(attribution.shape)}")
    return REDUCTIONS[reduce](attribution)
