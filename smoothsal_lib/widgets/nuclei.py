"""Nuclei in the order of their saliency, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import approximate_polygon, find_contours
from torch import Tensor

from smoothsal_lib import plot
from smoothsal_lib.nuclei import Nucleus
from smoothsal_lib.widgets import explorer
from smoothsal_lib.widgets.explorer import Explorer, address

QUALITY = 88  # of the JPEG
TOLERANCE = 0.4  # pixels by which an outline may be simplified


def nuclei_ranking(
    photo: NDArray[np.uint8],
    labels: Tensor,
    rankings: Mapping[str, Sequence[Nucleus]],
    *,
    marked: Mapping[int, float] | Sequence[float] | None = None,
    mark: str = "tumour",
    start: int = 10,
) -> Explorer:
    """Go down a list of nuclei, ranked by the saliency that they hold, and see where each lies.

    A slider says how many of the first nuclei are outlined, options which ranking is used; the nucleus at which the
    slider stands is filled, and its numbers are given. Where it is known which nuclei should come first, so is their
    share among those outlined.

    Args:
        photo: (H, W, 3) uint8.
        labels: (H, W) as :func:`smoothsal_lib.nuclei.segment_nuclei` gives them.
        rankings: by name, as :func:`smoothsal_lib.nuclei.rank_nuclei` gives them.
        marked: by label, which share of a nucleus is of the kind that should come first, 0 to 1; from
            :func:`smoothsal_lib.nuclei.overlap`. More than half counts.
        mark: what that kind is called.
        start: how many nuclei are outlined at first.

    Returns:
        The explorer, for the last line of a cell.

    Raises:
        ValueError: for labels of another shape than the photograph, no rankings, rankings of different nuclei, nuclei
            that the labels lack, or more than ``SIZE_LIMIT`` bytes.
    """
    if not rankings or not all(rankings.values()):
        raise ValueError("expected rankings by name, each with its nuclei, got none")
    ranked = [sorted(one.label for one in some) for some in rankings.values()]
    if any(some != ranked[0] for some in ranked):
        raise ValueError(f"the rankings {', '.join(rankings)} are not of the same nuclei")
    place = {label: i for i, label in enumerate(ranked[0])}
    first = next(iter(rankings.values()))
    numbers = plot._numbered(photo, labels, first)
    areas = {one.label: one.area_um2 or float(one.area) for one in first}
    data = {
        "photo": address(photo, QUALITY),
        "size": [photo.shape[1], photo.shape[0]],
        "outlines": [_outline(numbers == label) for label in ranked[0]],
        "areas": [round(areas[label], 1) for label in ranked[0]],
        "unit": "pixels" if first[0].area_um2 is None else "µm²",
        "marked": None if marked is None else [int(float(marked[label]) > 0.5) for label in ranked[0]],
        "mark": mark,
        "rankings": {
            name: {"order": [place[one.label] for one in some], "shares": [round(100 * one.share, 2) for one in some]}
            for name, some in rankings.items()
        },
        "start": max(1, min(start, len(first))),
    }
    made = Explorer("nuclei", "Nuclei ranked by saliency: choose a ranking and how many of the first to outline.", data)
    if not made.fits:
        raise ValueError(f"{len(first)} nuclei take more than {explorer.SIZE_LIMIT:,} bytes: give a smaller picture")
    return made


def _outline(mask: NDArray[Any]) -> str:
    """The rim of a nucleus as the path of an SVG, in pixels; pixel (0, 0) reaches from 0 to 1."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    own = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # of a large picture, a small part
    paths = []
    for rim in find_contours(np.pad(own.astype(float), 1), 0.5):
        points = approximate_polygon(rim + (rows[0], columns[0]), TOLERANCE)[:-1] - 0.5
        paths.append("M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in points) + "Z")
    return "".join(paths)
