"""Pictures that sliders change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from smoothsal_lib import plot
from smoothsal_lib.widgets import explorer
from smoothsal_lib.widgets.explorer import Explorer, address
from smoothsal_lib.widgets.pictures import SMALLEST_SIDE, Detail, Shades, Store, fitting, largest_factor

Picture = Tensor | NDArray[Any]
Key = tuple[str, ...]
SCALES = {"signed": ["strongest below 0", "above 0"], "magnitude": ["0", "strongest"]}


def frames(
    pictures: Mapping[str, Picture] | Mapping[Key, Picture],
    names: Sequence[str],
    *,
    alt: str,
    signed: plot.Signed = "auto",
    percentile: float = 99.5,
    shared_scale: bool = True,
) -> Explorer:
    """One picture of many, chosen by one slider or several.

    An explorer may take ``SIZE_LIMIT`` bytes. Where the pictures take more, maps are drawn in fewer colours, and if
    that is not enough all with fewer pixels, each the mean of those it stands for. A line below the picture says so.

    Args:
        pictures: ``{label: picture}`` for one slider, ``{(label, label): picture}`` for two and so on, with every
            combination. A picture is a map, (H, W) or (1, H, W), which gets the colours that it has in
            :func:`smoothsal_lib.plot.maps`, or in colours already: (H, W, 3) uint8. A slider has its labels in the
            order in which they come first.
        names: of the sliders, one to three, in the order of the labels.
        alt: what is seen, for those who cannot see it; each picture adds what the sliders stand at.
        signed: as in :func:`smoothsal_lib.plot.maps`, and so the next two.
        percentile: larger magnitudes than this percentile all get the strongest colour.
        shared_scale: one scale for all maps of one size. ``False``: every map has its own.

    Returns:
        The explorer, for the last line of a cell.

    Raises:
        ValueError: for labels that do not fit the names, a combination without a picture, a slider with a single
            label, a picture of another shape, a missing ``alt``, or pictures too many for ``SIZE_LIMIT``.
    """
    if len(alt.strip()) < 20:
        raise ValueError(f"alt = {alt!r}: describe what is seen in 20 characters or more")
    keyed = {(key,) if isinstance(key, str) else tuple(key): picture for key, picture in pictures.items()}
    axes = _axes(list(keyed), tuple(names))
    drawn, limits = _drawn(keyed, signed, percentile, shared_scale)
    colours = (plot._clipping(percentile), plot._scales(limits, shared_scale)) if limits else ()

    def build(detail: Detail) -> Explorer:
        store = Store(detail)
        stored = [
            store.put(one) if isinstance(one, Shades) else address(_mean(one, detail.factor))
            for one in (drawn[key] for key in product(*axes.values()))
        ]
        panel = {"title": "", "alt": alt.strip(), "axes": list(range(len(axes))), "pictures": stored, "rings": []}
        data = {
            "axes": [{"name": name, "labels": labels, "start": 0, "slider": True} for name, labels in axes.items()],
            "bytes": store.bytes,
            "luts": store.luts,
            "scales": SCALES,
            "panels": [panel],
            "note": "; ".join(part for part in (*colours, str(detail)) if part),
        }
        return Explorer("choices", f"{alt.strip()} Sliders: {', '.join(axes)}.", data)

    most = max(largest_factor(one.values.shape if isinstance(one, Shades) else one.shape) for one in drawn.values())
    found = fitting(build, most)
    if found is None:
        raise ValueError(
            f"{len(drawn)} pictures take more than {explorer.SIZE_LIMIT:,} bytes "
            f"even with sides of about {SMALLEST_SIDE} pixels: leave out some labels"
        )
    return found


def _axes(keys: Sequence[Key], names: Key) -> dict[str, list[str]]:
    """The labels of every slider, with the name of the slider."""
    if len(names) not in (1, 2, 3) or len(set(names)) != len(names):
        raise ValueError(f"names = {names}: expected one to three different names of sliders")
    for key in keys:
        if len(key) != len(names) or not all(isinstance(label, str) and label for label in key):
            raise ValueError(f"the picture {key} does not have one label, a text, for each of {names}")
    axes = {name: list(dict.fromkeys(key[i] for key in keys)) for i, name in enumerate(names)}
    for name, labels in axes.items():
        if len(labels) < 2:
            raise ValueError(f"slider {name!r} has the labels {labels}: expected two or more")
    missing = [key for key in product(*axes.values()) if key not in set(keys)]
    if missing:
        raise ValueError(f"no picture for {', '.join(map(str, missing))}: give every combination of the labels")
    return axes


def _drawn(
    pictures: Mapping[Key, Picture], signed: plot.Signed, percentile: float, shared: bool
) -> tuple[dict[Key, Shades | NDArray[np.uint8]], dict[tuple[object, ...] | None, float]]:
    """The pictures, and the scales of the maps among them."""
    panels: dict[Key, plot._Panel] = {}
    drawn: dict[Key, Shades | NDArray[np.uint8]] = {}
    for key, picture in pictures.items():
        title = ", ".join(key)
        values = np.asarray(torch.as_tensor(picture).detach().cpu())
        if values.dtype == np.uint8 and values.ndim == 3 and values.shape[-1] == 3:
            drawn[key] = values
            continue
        stack = plot._stack(title, values)
        if len(stack) != 1:
            raise ValueError(
                f"picture {title!r} has the shape {values.shape} and the type {values.dtype}: "
                "expected a map, (H, W) or (1, H, W), or colours, (H, W, 3) uint8"
            )
        panels[key] = plot._Panel(stack[0], stack.shape[1:] if shared else (key,))
    row = {str(key): panel for key, panel in panels.items()}
    limits = plot._limits([row], percentile)
    colours = "signed" if plot._is_signed([row], signed) else "magnitude"
    for key, panel in panels.items():
        drawn[key] = Shades(panel.values, limits[panel.group], colours)
    return drawn, limits


def _mean(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """The mean of ``factor`` x ``factor`` pixels in the place of each, but not below ``SMALLEST_SIDE``."""
    factor = min(factor, largest_factor(image.shape))
    return image if factor == 1 else np.asarray(Image.fromarray(image).reduce(factor))
