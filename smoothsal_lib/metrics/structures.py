"""Structures: does a map show what it is said to show? Scored against masks of the structures of a picture.

A mask is (N, H, W) booleans, one for each map, and a map has the resolution of the picture that the mask was drawn in;
:func:`smoothsal_lib.extract.on_picture` brings it there. Masks may overlap (a tumour holds its nuclei) and need not
cover the picture. A number means something only beside what a map scores that says nothing: the area of the mask.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from smoothsal_lib.metrics.localisation import checked_maps, energy_inside, maximum_inside


def structure_shares(maps: Tensor, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The share of a map's positive values that lies on each structure.

    The energy-based pointing game (Score-CAM, Wang et al. 2020, arXiv 1910.01279) with masks instead of boxes.

    Args:
        maps: (N, H, W); negative values count as 0.
        masks: ``{structure: (N, H, W) bool}``.

    Returns:
        ``{structure: (N,)}`` between 0 and 1, which add up to 1 only where the masks part the picture. A map without
        positive values is as good as a constant one: its shares are the areas.

    Raises:
        ValueError: when the shapes do not fit, for masks that are not booleans or maps that are not finite.
    """
    maps = checked_maps(maps)
    return {name: energy_inside(maps, _checked(mask, maps, name)) for name, mask in masks.items()}


def area_shares(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The share of the picture's pixels that each structure has: what a constant map puts there.

    Args:
        masks: ``{structure: (N, H, W) bool}``.

    Returns:
        ``{structure: (N,)}`` between 0 and 1, float32.

    Raises:
        ValueError: for masks of another shape, or not of booleans.
    """
    shares = {}
    for name, mask in masks.items():
        if mask.ndim != 3 or 0 in mask.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"expected the mask {name!r} as (N, H, W) of bool, none of them 0, "
                f"got {tuple(mask.shape)} of {mask.dtype}"
            )
        shares[name] = mask.float().mean((1, 2))
    return shares


def enrichment(maps: Tensor, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How many times more of a map's positive values lies on each structure than its area would get.

    Args:
        maps: (N, H, W); negative values count as 0.
        masks: ``{structure: (N, H, W) bool}``.

    Returns:
        ``{structure: (N,)}``: 1 for a map that does not care, 0 for one that avoids the structure, at most 1 / area.
        NaN where a picture has nothing of the structure. Small areas make it vary: to sum up many pictures, divide the
        mean share by the mean area.

    Raises:
        ValueError: as for :func:`structure_shares`.
    """
    shares, areas = structure_shares(maps, masks), area_shares(masks)
    return {name: share / areas[name].to(share) for name, share in shares.items()}  # 0 / 0 where there is nothing


def pointing_at(maps: Tensor, mask: Tensor) -> Tensor:
    """Whether a map's maximum lies on the structure: the pointing game without tolerance, with a mask for the boxes.

    Source: Zhang et al. 2016, arXiv 1608.00507.

    Args:
        maps: (N, H, W).
        mask: (N, H, W) bool.

    Returns:
        (N,) floats, 1 for a hit and 0 for a miss, also where a picture has nothing of the structure. Where several
        pixels share the maximum, the share of them that hit, as in
        :func:`smoothsal_lib.metrics.localisation.pointing_game`; chance is the area.

    Raises:
        ValueError: when the shapes do not fit, for a mask that is not of booleans or maps that are not finite.
    """
    maps = checked_maps(maps)
    return maximum_inside(maps, _checked(mask, maps))


def average_precision(maps: Tensor, mask: Tensor) -> Tensor:
    """The map as a detector of the structure's pixels: the area under its curve of precision over recall.

    Every value of the map is a threshold in turn, from the highest down: precision is the share of the pixels at or
    above it that lie on the structure, recall the share of the structure at or above it. The area is that under steps,
    sum of (recall - recall before) precision, without interpolation between thresholds, which would flatter (Davis &
    Goadrich 2006, doi 10.1145/1143844.1143874); scikit-learn's ``average_precision_score`` is the same. Pixels of equal
    value come together, so their order does not matter, and only the order of a map's values does: any increasing
    function of it scores the same.

    Args:
        maps: (N, H, W), signed or not.
        mask: (N, H, W) bool.

    Returns:
        (N,) above 0 and up to 1. A constant map scores the structure's area, and so does a random one on average, but
        for a little. NaN where a picture has nothing of the structure, for then there is nothing to detect.

    Raises:
        ValueError: when the shapes do not fit, for a mask that is not of booleans or maps that are not finite.
    """
    maps = checked_maps(maps)
    values, order = maps.flatten(1).sort(dim=1, descending=True)
    wanted = _checked(mask, maps).flatten(1).gather(1, order)
    found = wanted.cumsum(1)
    places = torch.arange(values.shape[1], device=maps.device).expand_as(values)
    # The last place of those that share a value: where the next value is another, and before it the same place.
    last = torch.ones_like(wanted)
    last[:, :-1] = values[:, :-1] != values[:, 1:]
    ends = torch.where(last, places, values.shape[1]).flip(1).cummin(1).values.flip(1)
    precision = found.gather(1, ends).to(maps) / (ends + 1)
    return (precision * wanted).sum(1) / found[:, -1]  # 0 / 0 where there is nothing


def _checked(mask: Tensor, maps: Tensor, name: str = "") -> Tensor:
    """The mask, on the maps' device."""
    if mask.shape != maps.shape or mask.dtype != torch.bool:
        what = f"the mask {name!r}" if name else "a mask"
        raise ValueError(
            f"expected {what} as {tuple(maps.shape)} of bool, like the maps, got {tuple(mask.shape)} of {mask.dtype}"
        )
    return mask.to(maps.device)
