"""Pictures that sliders change, in a notebook and on the book's page, where no Python runs.

    maps = {("0 %", "1 look"): one_map, ("0 %", "10 looks"): another, ...}
    sal.widgets.frames(maps, ("noise", "looks"), alt="The gradient of the score for tabby.")

All pictures are made beforehand and stored with the widget, and the browser alone shows one of them: nothing is
computed when a slider moves.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from smoothsal_lib import plot

try:
    import ipywidgets
except ModuleNotFoundError:
    raise ModuleNotFoundError("sal.widgets needs ipywidgets 7 or newer: pip install ipywidgets") from None

Picture = Tensor | NDArray[Any]
Key = tuple[str, ...]

SIZE_LIMIT = 600_000  # bytes of one widget's pictures in base64; a notebook of the book has 1 MB in all
SMALLEST_SIDE = 32  # pixels of a picture's shorter side below which it is not made smaller
WIDTH = 320  # pixels on the page, whatever the picture has
COLOURS = 256


def frames(
    pictures: Mapping[str, Picture] | Mapping[Key, Picture],
    names: Sequence[str],
    *,
    alt: str,
    signed: plot.Signed = "auto",
    percentile: float = 99.5,
    shared_scale: bool = True,
) -> ipywidgets.VBox:
    """One picture of many, chosen by one or two sliders.

    The sliders act in the browser, so that they work on a page without Python, too. On ipywidgets 7, which has no stack
    of pictures to choose from, they need a running kernel.

    Pictures in base64 may take ``SIZE_LIMIT`` bytes together. Where they take more, all are drawn with fewer pixels,
    each the mean of those it stands for, and a line below the picture says so.

    Args:
        pictures: ``{label: picture}`` for one slider, ``{(label, label): picture}`` for two, with every combination.
            A picture is a map, (H, W) or (1, H, W), which gets the colours that it has in
            :func:`smoothsal_lib.plot.maps`, or in colours already: (H, W, 3) uint8. A slider has its labels in the
            order in which they come first.
        names: of the sliders, one or two, in the order of the labels.
        alt: what is seen, for those who cannot see it; each picture adds what the sliders stand at.
        signed: as in :func:`smoothsal_lib.plot.maps`, and so the next two.
        percentile: larger magnitudes than this percentile all get the strongest colour.
        shared_scale: one scale for all maps of one size. ``False``: every map has its own.

    Returns:
        The widget, for the last line of a cell.

    Raises:
        ValueError: for labels that do not fit the names, a combination without a picture, a slider with a single
            label, a picture of another shape, a missing ``alt``, or pictures too many for ``SIZE_LIMIT``.
    """
    if len(alt.strip()) < 20:
        raise ValueError(f"alt = {alt!r}: describe what is seen in 20 characters or more")
    keyed = {(key,) if isinstance(key, str) else tuple(key): picture for key, picture in pictures.items()}
    axes = _axes(list(keyed), tuple(names))
    canvases, limits, signed = _canvases(keyed, signed, percentile, shared_scale)
    stored, shrinkage = _stored(canvases, plot.SIGNED if signed else plot.UNSIGNED)
    layout = ipywidgets.Layout(width=f"{WIDTH}px", max_width="100%")
    sliders = [
        ipywidgets.SelectionSlider(options=labels, description=name, layout=layout) for name, labels in axes.items()
    ]
    texts = {}
    for key in product(*axes.values()):
        position = ", ".join(f"{name} {label}" for name, label in zip(axes, key, strict=True))
        texts[key] = _figure(stored[key], f"{alt.strip()} {position}", position)
    colours = (plot._clipping(percentile), plot._scales(limits, shared_scale)) if limits else ()
    note = "; ".join(part for part in (*colours, shrinkage) if part)
    chosen = _stacked(sliders, texts, layout) if hasattr(ipywidgets, "Stack") else _observed(sliders, texts, layout)
    return ipywidgets.VBox([*sliders, chosen, *([_html(_line(note), layout)] if note else [])])


# ---- what to show


@dataclass(frozen=True)
class _Canvas:
    """A picture before it has its colours: a map with the magnitude of its strongest colour, or RGB with None."""

    image: Image.Image
    limit: float | None

    def shrunk(self, factor: int) -> Image.Image:
        """The mean of ``factor`` x ``factor`` pixels in the place of each, but not below ``SMALLEST_SIDE``."""
        factor = min(factor, self.largest_factor)
        return self.image if factor == 1 else self.image.reduce(factor)

    @property
    def largest_factor(self) -> int:
        return max(1, min(self.image.size) // SMALLEST_SIDE)


def _axes(keys: Sequence[Key], names: Key) -> dict[str, list[str]]:
    """The labels of every slider, with the name of the slider."""
    if len(names) not in (1, 2) or len(set(names)) != len(names):
        raise ValueError(f"names = {names}: expected one or two different names of sliders")
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


def _canvases(
    pictures: Mapping[Key, Picture], signed: plot.Signed, percentile: float, shared: bool
) -> tuple[dict[Key, _Canvas], dict[tuple[object, ...] | None, float], bool]:
    """The pictures, the scales of the maps among them, and whether these are signed."""
    panels: dict[Key, plot._Panel] = {}
    in_colours: dict[Key, NDArray[np.uint8]] = {}
    for key, picture in pictures.items():
        title = ", ".join(key)
        values = np.asarray(torch.as_tensor(picture).detach().cpu())
        if values.dtype == np.uint8 and values.ndim == 3 and values.shape[-1] == 3:
            in_colours[key] = values
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
    canvases = {key: _Canvas(Image.fromarray(values), None) for key, values in in_colours.items()}
    for key, panel in panels.items():
        canvases[key] = _Canvas(Image.fromarray(panel.values.astype(np.float32)), limits[panel.group])
    return canvases, limits, plot._is_signed([row], signed)


def _stored(canvases: Mapping[Key, _Canvas], colour_map: str) -> tuple[dict[Key, str], str]:
    """PNGs in base64 that fit into ``SIZE_LIMIT`` together, and a remark if they had to be made smaller."""
    most = max(canvas.largest_factor for canvas in canvases.values())
    for factor in range(1, most + 1):
        stored = {key: _png(canvas.shrunk(factor), canvas.limit, colour_map) for key, canvas in canvases.items()}
        size = sum(map(len, stored.values()))
        if size <= SIZE_LIMIT:
            mean = f"drawn small, to be stored with the page: a pixel is the mean of up to {factor} × {factor}"
            return stored, mean if factor > 1 else ""
    raise ValueError(
        f"{len(canvases)} pictures take {size:,} bytes, more than {SIZE_LIMIT:,}, "
        f"even with sides of about {SMALLEST_SIDE} pixels: leave out some labels"
    )


def _png(image: Image.Image, limit: float | None, colour_map: str) -> str:
    """The picture as PNG in base64; a map with its colours as a palette, a third of the size."""
    if limit is not None:
        shares = plot._norm(limit, colour_map == plot.SIGNED)(np.asarray(image, dtype=np.float64))
        levels = np.clip(np.floor(np.asarray(shares) * COLOURS), 0, COLOURS - 1)
        image = Image.fromarray(levels.astype(np.uint8))
        image.putpalette(mpl.colormaps[colour_map](np.linspace(0, 1, COLOURS), bytes=True)[:, :3].tobytes())
    file = io.BytesIO()
    image.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


# ---- how to show it


def _figure(png: str, alt: str, position: str) -> str:
    """HTML of a picture, with what the sliders stand at; its pixels stay squares."""
    style = "display: block; width: 100%; height: auto; image-rendering: pixelated"
    picture = f'<img src="data:image/png;base64,{png}" alt="{escape(alt)}" style="{style}">'
    return picture + _line(position)


def _line(text: str) -> str:
    return f'<div style="font-size: 13px; line-height: 1.4">{escape(text)}</div>'


def _html(text: str, layout: Any, **shared: Any) -> Any:
    return ipywidgets.HTML(text, layout=layout, **shared)


def _stacked(sliders: Sequence[Any], texts: Mapping[Key, str], layout: Any) -> Any:
    """A stack of pictures that the first slider moves, or of stacks that the second one moves, in the browser."""
    shared: dict[str, Any] = {}  # one model of the style for all pictures: a hundred would make the notebook large

    def stack(start: Key, rest: Sequence[Any]) -> Any:
        if not rest:
            picture = _html(texts[start], layout, **shared)
            shared["style"] = picture.style
            return picture
        children = [stack((*start, label), rest[1:]) for label in rest[0].options]
        made = ipywidgets.Stack(children, selected_index=0, layout=layout)
        ipywidgets.jsdlink((rest[0], "index"), (made, "selected_index"))
        return made

    return stack((), sliders)


def _observed(sliders: Sequence[Any], texts: Mapping[Key, str], layout: Any) -> Any:
    """A single picture, which Python replaces when a slider is moved."""
    picture = _html("", layout)

    def show(_: object = None) -> None:
        picture.value = texts[tuple(slider.value for slider in sliders)]

    for slider in sliders:
        slider.observe(show, "value")
    show()
    return picture
