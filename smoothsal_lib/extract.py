"""From an attribution, one value a channel, to a saliency map, one value a position, on the picture."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from smoothsal_lib.layers import HiddenLayer

RESIZINGS = ("nearest", "bilinear", "aligned")
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda a: a.mean(1),
    "sum": lambda a: a.sum(1),
    "abs_mean": lambda a: a.abs().mean(1),
    "l2": lambda a: a.square().sum(1).sqrt(),
    "max_abs": lambda a: a.abs().amax(1),
    "positive_norm": lambda a: a.clamp(min=0).square().sum(1).sqrt(),
}


def saliency_map(attribution: Tensor, reduce: str = "mean") -> Tensor:
    """Reduce the channels of an attribution.

    Args:
        attribution: (N, C, H, W).
        reduce: ``"mean"`` and ``"sum"`` keep the sign, and positive and negative channels cancel; ``"abs_mean"``,
            ``"l2"`` (the Euclidean norm), ``"positive_norm"`` (that of the positive part alone) and ``"max_abs"`` (the
            largest magnitude, the gradient map of Simonyan et al. 2014, arXiv 1312.6034) are never negative.

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


def capped(maps: Tensor, percentile: float = 99.0) -> Tensor:
    """Cut off what few outliers stand out by: every magnitude above the percentile of its map becomes that percentile.

    A figure scaled to the largest value shows that value and little else. Source: SmoothGrad, Smilkov et al. 2017,
    arXiv 1706.03825, section 3.1, at 99.

    Args:
        maps: (N, H, W), signed or not; signs stay.
        percentile: of the magnitudes of each map, above 0 and up to 100, which caps nothing.

    Returns:
        (N, H, W).

    Raises:
        ValueError: for maps of another shape, or a percentile out of range.
    """
    if maps.ndim != 3:
        raise ValueError(f"expected maps of shape (N, H, W), got {tuple(maps.shape)}")
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile = {percentile} is not above 0 and at most 100")
    magnitudes = maps.detach().abs().flatten(1).to(torch.promote_types(maps.dtype, torch.float32))
    limit = torch.quantile(magnitudes, percentile / 100, dim=1).to(maps)[:, None, None]
    return torch.minimum(torch.maximum(maps, -limit), limit)


def times_image(maps: Tensor, x: Tensor) -> Tensor:
    """Multiply maps at the input with the picture: what is 0 there counts for nothing, whatever the network says.

    A choice of display: it sharpens a map with edges that are the picture's, not the network's (SmoothGrad, Smilkov et
    al. 2017, arXiv 1706.03825, section 3.1). As an attribution g · x has a reading of its own, the first term of a
    linear approximation; that is the method ``gradient_x_activation``.

    Args:
        maps: M (N, H, W), or an attribution (N, C, H, W), at the size of the picture.
        x: the pictures (N, C, H, W); maps are multiplied with the mean over channels.

    Returns:
        The shape of ``maps``.

    Raises:
        ValueError: for sizes that differ.
    """
    if maps.ndim == 4 and maps.shape == x.shape:
        return maps * x
    if maps.shape != (x.shape[0], *x.shape[2:]):
        raise ValueError(
            f"maps of {tuple(maps.shape)} are not at the size of pictures of {tuple(x.shape)}: resize them"
        )
    return maps * x.mean(1)


def resize_map(maps: Tensor, size: tuple[int, int], layer: HiddenLayer | None = None, mode: str = "aligned") -> Tensor:
    """Bring maps to the size of the picture they explain.

    ``"nearest"`` (Smooth Deep Saliency, arXiv 2404.02282) and ``"bilinear"`` divide the picture into h x w cells and
    put unit (i, j) in the middle of its cell, at pixel (s i + (s - 1) / 2, ...). That is where the unit sits behind
    poolings and patches. Behind odd kernels padded by half, as in a ResNet, it sits at (s i, s j), so both move the map
    down and right by (s - 1) / 2 pixels: 7.5 at stride 16. ``"aligned"`` puts every unit where ``layer.offset`` and
    ``layer.stride`` say and interpolates linearly between; outside the outermost units their values are repeated. Where
    the offset is (s - 1) / 2, it equals ``"bilinear"``.

    This is the geometry of kernels, strides and paddings, and exact for random weights. A trained unit may have learnt
    to look elsewhere; chapter 9 of the book measures by how much, with
    :func:`smoothsal_lib.metrics.locality.effective_receptive_field`. Put what it finds into ``layer.offset``.

    Args:
        maps: (N, h, w), the maps M of one layer.
        size: (H, W) of the picture that the network was given.
        layer: where the units of the maps stand, as :func:`smoothsal_lib.hidden_layers` tells for that picture; only
            ``"aligned"`` reads it.
        mode: ``"aligned"``, ``"bilinear"`` or ``"nearest"``.

    Returns:
        (N, H, W).

    Raises:
        ValueError: for maps of another shape, an unknown mode, a size without pixels, or, with ``"aligned"``, for no
            layer, one whose maps have another size, or one whose units lie outside a picture of that size.
    """
    if mode not in RESIZINGS:
        raise ValueError(f"unknown mode {mode!r}: choose one of {', '.join(RESIZINGS)}")
    if maps.ndim != 3 or 0 in maps.shape:
        raise ValueError(f"expected maps of shape (N, h, w), none of them 0, got {tuple(maps.shape)}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"expected the picture's size as (H, W), at least 1 each, got {tuple(size)}")
    if mode == "nearest":
        return F.interpolate(maps[:, None], size, mode="nearest")[:, 0]
    if mode == "bilinear":
        return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    if layer is None:
        raise ValueError("mode 'aligned' needs the layer: pass one of hidden_layers(model, x), or mode='bilinear'")
    if layer.shape[1:] != maps.shape[1:]:
        raise ValueError(
            f"maps of {tuple(maps.shape[1:])} are not of layer {layer.name!r}, which has {layer.shape[1:]}"
        )
    rows, columns = (_interpolation(layer, axis, size[axis], maps) for axis in (0, 1))
    return rows @ maps @ columns.mT


def on_picture(maps: Tensor, size: tuple[int, int], layer: HiddenLayer | None) -> Tensor:
    """Maps (N, h, w) at the picture's size: as they are where they have it, else aligned, or bilinear without a layer.

    Args:
        maps: of the picture itself, or of a layer.
        size: (H, W) of the picture.
        layer: where the maps' units stand; ``None`` for the picture, and where that is not known.
    """
    if maps.shape[1:] == size:
        return maps
    return resize_map(maps, size, layer, "bilinear" if layer is None else "aligned")


def _interpolation(layer: HiddenLayer, axis: int, pixels: int, like: Tensor) -> Tensor:
    """(pixels, units): how much of each unit each pixel gets, along one axis; every row sums to 1."""
    units, stride, offset = layer.shape[1 + axis], layer.stride[axis], layer.offset[axis]
    if not (stride >= 1 and offset + stride * (units - 1) < pixels + stride):
        raise ValueError(
            f"{units} units of layer {layer.name!r}, {stride} pixels apart from pixel {offset:g}, do not fit into "
            f"{pixels} pixels: give the size of the picture that the network saw"
        )
    position = (torch.arange(pixels, dtype=like.dtype, device=like.device) - offset) / stride
    position = position.clamp(0, units - 1)
    unit = torch.arange(units, dtype=like.dtype, device=like.device)
    return (1 - (position[:, None] - unit).abs()).clamp(min=0)
