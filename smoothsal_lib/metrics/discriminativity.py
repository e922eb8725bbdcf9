"""Discriminativity: in a picture with two objects, does the map of each class show its own object?

SmoothGrad (Smilkov et al. 2017, arXiv 1706.03825, section 3.2) takes pictures with objects of two classes A and B,
scales both maps alike and looks at their difference M_A - M_B: it should be positive on object A and negative on object
B. Here that glance becomes a number. Objects are boxes, and maps have the resolution of the picture, as in
:mod:`smoothsal_lib.metrics.localisation`. The objects must not share pixels.

Means over the pixels of a box are compared, not sums, so that a large object counts no more than a small one. That
makes 0.5 the score of chance for whatever boxes: of maps that are constant, equal, or random. Exchanging the two maps
turns a score s into 1 - s, and so does exchanging the boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smoothsal_lib.metrics.localisation import checked, within

ROUNDING = 16  # a difference of so many units in the last place of a map's largest value is none


def discriminativity(a: Tensor, b: Tensor, boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """The share of the difference of two classes' maps that lies right: for A on object A, for B on object B.

    Each map is divided by the mean of its magnitudes over the whole picture, so that two maps of different scale, which
    a difference of the two scores would make, still are compared by where they are high. With D = M_A - M_B of these,
    D⁺ = max(D, 0), D⁻ = max(-D, 0) and means over the pixels of a box,

        s = (mean_A D⁺ + mean_B D⁻) / (mean_A |D| + mean_B |D|).

    For signed maps D is positive where the evidence for A exceeds that for B, be it that nothing speaks for B there or
    that something speaks against it. For maps without sign D is positive where A's is the higher of the two; as both
    have the same mean, what one has more of on its object it has less of elsewhere. Only the difference is judged: two
    maps that are nearly the same can score 1 by the little in which they differ. :func:`own_object` judges the maps.

    Args:
        a: (N, H, W) maps of class A, with or without sign.
        b: (N, H, W) maps of class B by the same method.
        boxes_a: (N, 4) or (N, K, 4) objects A: x_min, y_min, x_max, y_max in pixels, inclusive.
        boxes_b: (N, 4) or (N, K, 4) objects B.

    Returns:
        (N,) between 0 and 1: 1 when the difference is right on both objects, 0.5 for chance, 0 when it is inverted. 0.5
        also where the maps do not differ on the objects, as two maps of a network that is blind to the class, whose
        rounding is not taken for a difference, and two constant ones.

    Raises:
        ValueError: when the shapes do not fit, for maps with values that are not finite, for a box that does not lie in
            the picture, an object without a pixel, or two that share one.
    """
    a, b, in_a, in_b = _prepared(a, b, boxes_a, boxes_b)
    scaled_a, scaled_b = (one / _divisor(one.abs().mean((1, 2), keepdim=True)) for one in (a, b))
    difference = scaled_a - scaled_b
    largest = torch.maximum(scaled_a.abs(), scaled_b.abs()).amax((1, 2), keepdim=True)
    difference = difference * (difference.abs() > ROUNDING * torch.finfo(a.dtype).eps * largest)
    for_a, for_b = difference.clamp(min=0), (-difference).clamp(min=0)
    right = _mean(for_a, in_a) + _mean(for_b, in_b)
    return _share(right, _mean(for_b, in_a) + _mean(for_a, in_b))


def own_object(a: Tensor, b: Tensor, boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """How much higher each class's map is on its own object than on the other: the mean of two shares.

        s = ½ mean_A M_A⁺ / (mean_A M_A⁺ + mean_B M_A⁺) + ½ mean_B M_B⁺ / (mean_A M_B⁺ + mean_B M_B⁺)

    Unlike :func:`discriminativity` it is near 0.5 for two maps that are nearly the same, since what one map has on its
    own object the other has on the wrong one. Both maps count alike, whatever their scale.

    Args:
        a: (N, H, W) maps of class A; negative values count as 0, as in
            :func:`smoothsal_lib.metrics.localisation.energy_in_box`.
        b: (N, H, W) maps of class B by the same method.
        boxes_a: (N, 4) or (N, K, 4) objects A: x_min, y_min, x_max, y_max in pixels, inclusive.
        boxes_b: (N, 4) or (N, K, 4) objects B.

    Returns:
        (N,) between 0 and 1: 1 when each map has positive values on its own object alone, 0.5 for chance and for equal
        maps, 0 when each has them on the other's. The share of a map without any on both objects is 0.5.

    Raises:
        ValueError: as :func:`discriminativity` does.
    """
    a, b, in_a, in_b = _prepared(a, b, boxes_a, boxes_b)
    for_a, for_b = a.clamp(min=0), b.clamp(min=0)
    share_a = _share(_mean(for_a, in_a), _mean(for_a, in_b))
    share_b = _share(_mean(for_b, in_b), _mean(for_b, in_a))
    return (share_a + share_b) / 2


def _prepared(a: Tensor, b: Tensor, boxes_a: Tensor, boxes_b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both maps, each divided by its largest magnitude, and (N, H, W) where the objects are."""
    if a.shape != b.shape:
        raise ValueError(f"expected two tensors of maps of one shape (N, H, W), got {tuple(a.shape)}, {tuple(b.shape)}")
    maps, inside = [], []
    for one, boxes in ((a, boxes_a), (b, boxes_b)):
        one, boxes = checked(one, boxes)
        # Only shares are wanted, so the largest magnitude may become 1: sums then neither overflow nor vanish.
        maps.append(one / _divisor(one.abs().amax((1, 2), keepdim=True)))
        inside.append(within(boxes, (one.shape[1], one.shape[2])))
    for wrong, what in (
        (~inside[0].any(2).any(1), "has an object A whose box holds no pixel"),
        (~inside[1].any(2).any(1), "has an object B whose box holds no pixel"),
        ((inside[0] & inside[1]).any(2).any(1), "has two objects whose boxes share pixels: expected disjoint ones"),
    ):
        if bool(wrong.any()):
            raise ValueError(f"picture {int(wrong.nonzero()[0])} {what}")
    return maps[0], maps[1], inside[0], inside[1]


def _divisor(values: Tensor) -> Tensor:
    """The values, with 1 for 0: a map of zeros stays one."""
    return values.where(values > 0, 1)


def _mean(maps: Tensor, inside: Tensor) -> Tensor:
    return (maps * inside).sum((1, 2)) / inside.sum((1, 2))


def _share(right: Tensor, wrong: Tensor) -> Tensor:
    """(N,) how much of both is right; 0.5 of nothing."""
    both = right + wrong
    return torch.where(both > 0, right / _divisor(both), 0.5)
