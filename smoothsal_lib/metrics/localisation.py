"""Localisation: does a map point at the object? By its maximum, or by where its energy lies.

An object is a box of four inclusive pixel coordinates, x_min, y_min, x_max, y_max: 0, 0, 63, 63 is a whole picture of
64 pixels. Boxes are (N, 4), one for each map, or (N, K, 4), up to K for each: the object is then their union, and four
NaN fill a place that a map has no box for (:func:`torch.nn.utils.rnn.pad_sequence` puts them there).

Maps have the resolution of the picture that the boxes were drawn in; :func:`smoothsal_lib.extract.resize_map` brings
them there. A map that says nothing (a constant one) scores what chance does, which is :func:`box_share`.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 15 / 224  # of the pointing game, as a share of the picture's side: 15 pixels in the literature's 224


def pointing_game(maps: Tensor, boxes: Tensor, tolerance: float = 0.0) -> Tensor:
    """Whether a map's maximum lies on the object.

    Source: Zhang et al. 2016, arXiv 1608.00507. Like Rebuffi et al. 2020, arXiv 2004.02866, they allow 15 pixels around
    the object. In pictures of 224 pixels that is a share of 15/224, hence ``15 / 224 * 64``, or 4.3, in those of 64.
    TorchRay, the code of Fong et al. 2019, arXiv 1910.08485, counts them after bringing the map to the picture's
    original size, which is stricter where that is larger, and takes a distance of exactly 15 for a miss.

    Args:
        maps: (N, H, W).
        boxes: (N, 4) or (N, K, 4) x_min, y_min, x_max, y_max in pixels, inclusive.
        tolerance: how far from the nearest box, by Euclidean distance in pixels, still is a hit.

    Returns:
        (N,) floats, 1 for a hit and 0 for a miss. Where several pixels share the maximum, as they do in a map enlarged
        by repeating values, the share of them that hit: what a pixel drawn among them would score on average. To take
        the first in reading order, as ``argmax`` does, would shift every such map to the upper left.

    Raises:
        ValueError: when the shapes do not fit, for maps with values that are not finite, for a box that does not lie in
            the picture, or a negative tolerance.
    """
    maps, boxes = checked(maps, boxes)
    if not tolerance >= 0:
        raise ValueError(f"tolerance = {tolerance} is not a distance in pixels: give 0 or more")
    return maximum_inside(maps, within(boxes, (maps.shape[1], maps.shape[2]), tolerance))


def energy_in_box(maps: Tensor, boxes: Tensor) -> Tensor:
    """The share of a map's positive values that lies on the object: the energy-based pointing game.

    Source: Score-CAM, Wang et al. 2020, arXiv 1910.01279. Unlike the maximum alone it notices whatever else a map
    highlights; it favours maps that stay inside the box over maps that cover it.

    Args:
        maps: (N, H, W); negative values count as 0.
        boxes: (N, 4) or (N, K, 4) x_min, y_min, x_max, y_max in pixels, inclusive. What lies in several counts once.

    Returns:
        (N,) between 0 and 1. A map without positive values is as good as a constant one: :func:`box_share`.

    Raises:
        ValueError: when the shapes do not fit, for maps with values that are not finite, or a box that does not lie in
            the picture.
    """
    maps, boxes = checked(maps, boxes)
    return energy_inside(maps, within(boxes, (maps.shape[1], maps.shape[2])))


def box_share(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The share of the picture's pixels that lie in a box: what chance scores in both games without tolerance.

    A pointing game or an energy means something only beside it, since objects fill much of many pictures.

    Args:
        boxes: (N, 4) or (N, K, 4) x_min, y_min, x_max, y_max in pixels, inclusive. What lies in several counts once.
        size: height and width of the picture in pixels.

    Returns:
        (N,) between 0 and 1.

    Raises:
        ValueError: for boxes of another shape, or one that does not lie in the picture.
    """
    boxes = _checked_boxes(boxes, size)
    return within(boxes, size).sum((1, 2)).to(boxes) / (size[0] * size[1])


def accuracy_by_class(hits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How often maps hit the objects of each class; ``.nanmean()`` of it is the accuracy that the literature reports.

    A mean over the classes instead of the maps keeps a class with many objects (persons, in PASCAL VOC) from deciding.

    Source: Zhang et al. 2016, arXiv 1608.00507.

    Args:
        hits: (N,) between 0 and 1, as from :func:`pointing_game`.
        labels: (N,) integers, the class that each map explains.
        classes: how many there are.

    Returns:
        (classes,) between 0 and 1; NaN for a class that no map explains.

    Raises:
        ValueError: when the shapes do not fit, or for a label that is no class.
    """
    if hits.ndim != 1 or hits.shape != labels.shape:
        raise ValueError(f"expected hits (N,) and as many labels, got {tuple(hits.shape)} and {tuple(labels.shape)}")
    unknown = labels[(labels < 0) | (labels >= classes)].tolist()
    if unknown:
        raise ValueError(f"label {unknown[0]} is no class: expected 0 to {classes - 1}")
    hits = hits.to(torch.promote_types(hits.dtype, torch.float32))
    total = hits.new_zeros(classes).index_add(0, labels, hits)
    return total / hits.new_zeros(classes).index_add(0, labels, torch.ones_like(hits))


def maximum_inside(maps: Tensor, inside: Tensor) -> Tensor:
    """(N,) the share of the pixels with a map's maximum that lie inside; see :func:`pointing_game` for ties.

    Args:
        maps: (N, H, W), as :func:`checked_maps` returns them.
        inside: (N, H, W) booleans.
    """
    highest = maps == maps.amax((1, 2), keepdim=True)
    return (highest & inside).sum((1, 2)).to(maps) / highest.sum((1, 2))


def energy_inside(maps: Tensor, inside: Tensor) -> Tensor:
    """(N,) the share of a map's positive values that lies inside; without any, the share of the pixels that do.

    Args:
        maps: (N, H, W), as :func:`checked_maps` returns them.
        inside: (N, H, W) booleans.
    """
    positive = maps.clamp(min=0)
    # Only shares are wanted, so the largest value may become 1: sums then neither overflow nor vanish.
    largest = positive.amax((1, 2), keepdim=True)
    positive = torch.where(largest > 0, positive / largest, torch.ones_like(positive))
    return (positive * inside).sum((1, 2)) / positive.sum((1, 2))


def checked_maps(maps: Tensor) -> Tensor:
    """Maps (N, H, W) in at least 32 bits.

    Raises:
        ValueError: for another shape, or values that are not finite.
    """
    if maps.ndim != 3 or 0 in maps.shape:
        raise ValueError(f"expected maps of shape (N, H, W), none of them 0, got {tuple(maps.shape)}")
    if not bool(torch.isfinite(maps).all()):
        raise ValueError(f"expected finite maps, got {int((~torch.isfinite(maps)).sum())} NaN or infinite values")
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


def checked(maps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Both in at least 32 bits and on the maps' device."""
    maps = checked_maps(maps)
    if len(boxes) != len(maps):
        raise ValueError(f"expected a box for each map, got {len(boxes)} boxes for {len(maps)} maps")
    return maps, _checked_boxes(boxes, (maps.shape[1], maps.shape[2])).to(maps)


def _checked_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, K, 4) in at least 32 bits, NaN where there is none."""
    if boxes.ndim not in (2, 3) or boxes.shape[-1] != 4:
        raise ValueError(
            f"expected boxes (N, 4) of x_min, y_min, x_max, y_max, got shape {tuple(boxes.shape)}: "
            "give (N, K, 4) where maps have up to K"
        )
    height, width = size
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    several = boxes if boxes.ndim == 3 else boxes[:, None]
    low, high = several[..., :2], several[..., 2:]
    fits = (low >= 0) & (low <= high) & (high <= boxes.new_tensor([width - 1, height - 1]))
    unused = several.isnan().all(2) & (boxes.ndim == 3)
    wrong = (~(fits.all(2) | unused)).nonzero().tolist()  # NaN fits nowhere
    if wrong:
        i, k = wrong[0]
        corners = ", ".join(f"{side:g}" for side in several[i, k].tolist())
        raise ValueError(
            f"box {i if boxes.ndim == 2 else (i, k)}, ({corners}), does not lie in a picture of {height} x {width} "
            f"pixels: expected 0 <= x_min <= x_max <= {width - 1} and 0 <= y_min <= y_max <= {height - 1}"
        )
    without = unused.all(1).nonzero().flatten().tolist()
    if without:
        raise ValueError(f"map {without[0]} has no box: expected at least one that is not NaN")
    return several


def within(boxes: Tensor, size: tuple[int, int], tolerance: float = 0.0) -> Tensor:
    """Which pixels (N, H, W) lie in one of the boxes (N, K, 4) or at most ``tolerance`` pixels beside it."""
    near = torch.zeros(len(boxes), *size, dtype=torch.bool, device=boxes.device)
    for one in boxes.unbind(1):  # one after the other, for memory's sake
        beyond_x, beyond_y = _beyond(one, size)
        near |= beyond_x.square()[:, None, :] + beyond_y.square()[:, :, None] <= tolerance**2  # never true for NaN
    return near


def _beyond(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """How far each column (N, W) and each row (N, H) lies beyond the box, in pixels; 0 inside."""
    distances = []
    for side, axis in ((size[1], 0), (size[0], 1)):
        places = torch.arange(side, device=boxes.device, dtype=boxes.dtype)
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        distances.append(torch.maximum(low - places, places - high).clamp(min=0))
    return distances[0], distances[1]
