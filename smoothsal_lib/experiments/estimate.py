"""A mean over images is worth what its standard error says."""

from __future__ import annotations

import torch
from torch import Tensor


def estimate(values: Tensor, before: Tensor | None = None, groups: Tensor | None = None) -> dict[str, float]:
    """Mean and standard error, and those of the change from other values of the same images.

    Args:
        values: (N,) one number an image.
        before: (N,) what to compare with, image by image.
        groups: (N,) integers, equal for images that are not independent, such as patches of one patient. The error is
            then the cluster-robust one: with the G groups' sums of v - mean(v) as r, sqrt(G / (G - 1) sum r^2) / N
            (Liang & Zeger 1986, doi 10.1093/biomet/73.1.13, for a mean). ``None`` takes every image for one of its own.

    Returns:
        ``mean`` and ``error``; with ``before`` also ``change`` and ``change_error``, of the N differences: they vary
        less than the values do, since a hard image is hard both times. Six digits. A single image, or group, has an
        error of 0.

    Raises:
        ValueError: for no values, or when there are not as many before, or not as many groups.
    """
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"expected values of shape (N,), at least one, got {tuple(values.shape)}")
    if before is not None and before.shape != values.shape:
        raise ValueError(f"expected as many values before as after, {len(values)}, got shape {tuple(before.shape)}")
    if groups is not None and groups.shape != values.shape:
        raise ValueError(f"expected the group of each of {len(values)} values, got shape {tuple(groups.shape)}")
    places = torch.arange(len(values)) if groups is None else groups.unique(return_inverse=True)[1]
    mean, error = _mean_and_error(values.double(), places)
    found = {"mean": mean, "error": error}
    if before is not None:
        found["change"], found["change_error"] = _mean_and_error(values.double() - before.double(), places)
    return found


def _mean_and_error(values: Tensor, places: Tensor) -> tuple[float, float]:
    """The mean of N values, and its error where ``places`` are the numbers, from 0, of their groups."""
    mean, count = values.mean(), int(places.max()) + 1
    residuals = values.new_zeros(count).index_add(0, places.to(values.device), values - mean)
    error = (residuals.square().sum() * count / (count - 1)).sqrt().item() / len(values) if count > 1 else 0.0
    return float(f"{mean.item():.6g}"), float(f"{error:.6g}")
