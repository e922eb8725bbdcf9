"""A network's maps at every depth, under every repair, to walk through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from smoothsal_lib import plot
from smoothsal_lib.capture import check_target
from smoothsal_lib.explain import explain
from smoothsal_lib.extract import saliency_map
from smoothsal_lib.fixes import Fix, smoothed
from smoothsal_lib.layers import HiddenLayer, check_images, hidden_layers, strided_layers
from smoothsal_lib.metrics.noise import checkerboard_energy, power_spectrum, total_variation
from smoothsal_lib.models import category, class_probabilities
from smoothsal_lib.widgets import explorer
from smoothsal_lib.widgets.explorer import Explorer, address
from smoothsal_lib.widgets.pictures import (
    PHOTO_QUALITY,
    Detail,
    Shades,
    Store,
    details,
    fitting,
    largest_factor,
    pale_photograph,
)

METHODS = ("gradient", "deeplift", "normgrad")
FIXES = (None, "backward", "forward")
DISPLAYS = {"signed": "mean", "magnitude": "abs_mean"}
PERCENTILE = 99.5
STRIDE = 2  # of the grid that is looked for
WHITE = 100.0  # times white noise: the brightest colour of a spectrum; the darkest is its inverse
SCALES = {
    "signed": ["against the class", "for it"],
    "magnitude": ["0", "strongest"],
    "over, signed": ["against the class", "for it"],
    "over, magnitude": ["0", "strongest"],
    "spectrum": ["1/100 of white noise", "100 times"],
}
HEAD = ("total variation", "checkerboard energy")
Name = str | None


def layer_explorer(
    model: nn.Module,
    x: Tensor,
    photo: NDArray[np.uint8],
    *,
    methods: Sequence[str] = METHODS,
    fixes: Sequence[Name] | Mapping[str, str | Fix | None] | None = None,
    target: int | None = None,
    layers: str | Sequence[str] = "all",
) -> Explorer:
    """Walk through a network's layers, and see what a repair does at each.

    A slider goes down the layers; options choose the repair, the method, and whether the map shows signed values (the
    mean over channels) or magnitudes (the mean of absolute values). The map, the same over the photograph, its power
    spectrum, the total variation and the checkerboard energy change together. Every repair and method takes one pass of
    the network for all layers, here and now; nothing is computed when something is moved.

    The maps of one layer and method have one scale under all repairs, clipped at the 99.5th percentile of magnitude.
    An explorer has at most 600 KB: if the maps take more, they are drawn in fewer colours, then with fewer pixels; if
    that is not enough, layers are left out. A line below the maps says so.

    Args:
        model: a network from pictures to logits (N, classes), left as it was.
        x: one picture (1, C, H, W), normalised as the model expects it.
        photo: the same picture as (h, w, 3) uint8.
        methods: names that :func:`smoothsal_lib.explain` knows.
        fixes: names of repairs, ``None`` for the network as it is; or ``{label: fix}``, for a surrogate. Without this
            argument: none, backward and forward, or none alone where no convolution has a stride to repair.
        target: the class; ``None`` takes the one that the unrepaired network predicts, for all repairs.
        layers: ``"all"``, or names.

    Returns:
        The explorer, for the last line of a cell.

    Raises:
        ValueError: for more than one picture, no methods or fixes, a photograph of another shape or aspect, layers
            without a map of 2 x 2 units, or what :func:`smoothsal_lib.explain` refuses.
    """
    check_images(x, model)
    if len(x) != 1:
        raise ValueError(f"expected one picture (1, C, H, W), got {tuple(x.shape)}")
    if fixes is None:
        fixes = FIXES if strided_layers(model) else (None,)
    if isinstance(methods, str) or isinstance(fixes, str):
        raise ValueError(f"expected methods and fixes as lists, got {methods!r} and {fixes!r}")
    named = dict(fixes) if isinstance(fixes, Mapping) else {fix or "none": fix for fix in fixes}
    if not named or not methods:
        raise ValueError(f"expected at least one method and one fix, got methods {list(methods)}, fixes {list(named)}")
    pale = address(pale_photograph(photo), PHOTO_QUALITY)
    if abs(photo.shape[0] * x.shape[3] - photo.shape[1] * x.shape[2]) > max(photo.shape[:2]) * max(x.shape[2:]) / 50:
        sides = f"{photo.shape[0]} x {photo.shape[1]}", f"{x.shape[2]} x {x.shape[3]}"
        raise ValueError(f"the photograph has {sides[0]} pixels and the picture {sides[1]}: give the same part of it")
    target = int(check_target(target, class_probabilities(model, x)))
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    chances = {}
    for label, fix in named.items():
        for method in methods:
            found[label, method] = explain(model, x, target, layers, method, fix)
        with smoothed(model, fix):
            chances[label] = float(class_probabilities(model, x)[0, target])
    names = [name for name, a in found[next(iter(found))].items() if min(a.shape[2:]) >= 2]
    if not names:
        raise ValueError(f"layers {layers!r}: none has a map of at least 2 x 2 units to show")
    geometry = hidden_layers(model, x)
    views = {
        name: _LayerView(geometry.get(name), (x.shape[2], x.shape[3]), {key: maps[name] for key, maps in found.items()})
        for name in names
    }
    shown = category(model, target)

    def build(some: Sequence[str], detail: Detail) -> Explorer:
        left_out = "" if len(some) == len(names) else f"{len(some)} of {len(names)} layers, to be stored with the page"
        note = [f"clipped at the {PERCENTILE}th percentile of magnitude", "one scale for all fixes of a layer"]
        note += ["circles: where stride 2 leaves its copies", str(detail), left_out]
        return _explorer({name: views[name] for name in some}, named, methods, shown, chances, pale, detail, note)

    most = max(largest_factor(a.shape[2:]) for a in found[next(iter(found))].values())
    for kept in range(len(names), 0, -1):
        some = names if kept == len(names) else [names[round(i)] for i in np.linspace(0, len(names) - 1, kept)]
        if kept < len(names) and not build(some, details(most)[-1]).fits:
            continue  # not even with the least detail, so not with more
        small = fitting(lambda detail, some=some: build(some, detail), most)  # type: ignore[misc]
        if small is not None:
            return small
    raise ValueError(f"even one layer takes more than {explorer.SIZE_LIMIT:,} bytes: leave out methods or fixes")


class _LayerView:
    """All that is shown of one layer: maps and spectra by (fix, method), on common scales, and their numbers."""

    def __init__(
        self, layer: HiddenLayer | None, size: tuple[int, int], attributions: Mapping[tuple[str, str], Tensor]
    ) -> None:
        self.shape = next(iter(attributions.values())).shape[2:]
        self.maps: dict[tuple[str, str, str], NDArray[Any]] = {}
        self.spectra: dict[tuple[str, str], NDArray[Any]] = {}
        self.numbers: dict[tuple[str, str], list[str]] = {}
        for (fix, method), attribution in attributions.items():
            attribution = attribution.detach().float().cpu()
            for display, reduction in DISPLAYS.items():
                self.maps[fix, method, display] = saliency_map(attribution, reduction)[0].numpy()
            spectrum = power_spectrum(attribution[0])
            relative = plot._relative(spectrum if bool(spectrum.sum() > 0) else spectrum + 1)
            self.spectra[fix, method] = relative[: (len(relative) + 1) // 2]  # -f holds the same as f
            self.numbers[fix, method] = [f"{float(total_variation(attribution)):.2f}", _energy(attribution)]
        self.limits = {
            (method, display): max(
                float(np.percentile(np.abs(values), PERCENTILE)) or float(np.abs(values).max())
                for (_, m, d), values in self.maps.items()
                if (m, d) == (method, display)
            )
            or 1.0
            for method, display in {key[1:] for key in self.maps}
        }
        self.rectangle = _rectangle(layer, self.shape, size)


def _energy(attribution: Tensor) -> str:
    if min(attribution.shape[2:]) < 2 * STRIDE:
        return "–"
    return f"{float(checkerboard_energy(attribution, STRIDE)):.3f}"


def _rectangle(layer: HiddenLayer | None, shape: Sequence[int], size: tuple[int, int]) -> list[float]:
    """Where a map lies on the photograph: left, top, width and height in per cent, every unit where it stands."""
    if layer is None:  # the picture itself
        return [0, 0, 100, 100]
    place = []
    for axis in (1, 0):
        begin = layer.offset[axis] + 0.5 - layer.stride[axis] / 2
        place.append((100 * begin / size[axis], 100 * layer.stride[axis] * shape[axis] / size[axis]))
    (left, width), (top, height) = place
    return [round(value, 3) for value in (left, top, width, height)]


def _rings() -> list[list[float]]:
    """Where the multiples of 1/stride lie on a spectrum, in per cent of its sides; not the middle."""
    return [[x, y] for x, y in product((0.0, 50.0, 100.0), repeat=2) if (x, y) != (50.0, 50.0)]


def _explorer(
    views: Mapping[str, _LayerView],
    fixes: Mapping[str, object],
    methods: Sequence[str],
    name: str,
    chances: Mapping[str, float],
    pale: str,
    detail: Detail,
    note: Sequence[str],
) -> Explorer:
    store = Store(detail)
    maps, overlays, spectra, cells = [], [], [], []
    for view in views.values():
        for fix, method in product(fixes, methods):
            for display in DISPLAYS:
                values, limit = view.maps[fix, method, display], view.limits[method, display]
                maps.append(store.put(Shades(values, limit, display)))
                overlays.append([*store.put(Shades(values, limit, f"over, {display}")), view.rectangle])
            decades = np.log10(np.clip(view.spectra[fix, method], 1 / WHITE, WHITE)) + np.log10(WHITE)
            spectra.append(store.put(Shades(decades, 2 * np.log10(WHITE), "spectrum"), small=False))
            cells.append([*view.numbers[fix, method], f"{chances[fix]:.2f}"])
    most = max(range(len(views)), key=lambda i: _grid(list(views.values())[i]))
    axes = [
        {
            "name": "layer",
            "labels": [f"{name} · {view.shape[0]} × {view.shape[1]}" for name, view in views.items()],
            "start": most,
            "slider": True,
        },
        {"name": "fix", "labels": list(fixes), "start": 0},
        {"name": "method", "labels": [method.replace("_", " ") for method in methods], "start": 0},
        {"name": "display", "labels": list(DISPLAYS), "start": 1},
    ]
    panels = [
        {"title": "map", "alt": f"Saliency map for {name}.", "axes": [0, 1, 2, 3], "pictures": maps, "rings": []},
        {
            "title": "over the photograph",
            "alt": f"The photograph under its saliency map for {name}.",
            "axes": [0, 1, 2, 3],
            "pictures": overlays,
            "rings": [],
            "under": pale,
            "smooth": True,
        },
        {
            "title": "power spectrum",
            "alt": "Power spectrum of the attribution, frequency 0 in the middle.",
            "axes": [0, 1, 2],
            "pictures": spectra,
            "rings": _rings(),
            "half": True,
        },
    ]
    data = {
        "axes": axes,
        "bytes": store.bytes,
        "luts": store.luts,
        "scales": SCALES,
        "panels": panels,
        "table": {"head": ["fix", *HEAD, f"p({name})"], "rows": 1, "axes": [0, 1, 2], "cells": cells},
        "note": "; ".join(part for part in note if part),
    }
    label = f"Layer explorer: choose layer, fix, method and display of the saliency map for {name}."
    return Explorer("choices", label, data)


def _grid(view: _LayerView) -> float:
    """How strong the grid is in what the explorer shows first, to begin where there is something to see."""
    _, energy = next(iter(view.numbers.values()))
    return 0.0 if energy == "–" else float(energy)
