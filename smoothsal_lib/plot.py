"""The book's figures. In a notebook, end the call with a semicolon: the figure then appears once.

Every function returns the matplotlib figure, drawn in the style of ``book.mplstyle`` and 7.2 inches wide, so that text
has the same size in all of them. Put ``with plt.style.context(sal.plot.STYLE):`` around drawings of your own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, log10
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray
from skimage.segmentation import find_boundaries
from torch import Tensor

from smoothsal_lib.extract import resize_map
from smoothsal_lib.layers import HiddenLayer
from smoothsal_lib.metrics.faithfulness import Curves
from smoothsal_lib.metrics.noise import power_spectrum
from smoothsal_lib.models import IMAGENET_MEAN, IMAGENET_STD
from smoothsal_lib.nuclei import By, Nucleus

STYLE = Path(__file__).with_name("book.mplstyle")
SIGNED, UNSIGNED, OVERLAID, SPECTRAL, COUNTS = "RdBu_r", "viridis", "YlOrRd", "magma", "Blues"
MARKERS = "os^DvPX"

Row = Mapping[str, Tensor]
Zoom = tuple[float, float, float, float]
Signed = bool | Literal["auto"]

# Lengths in inches.
WIDTH = 7.2
WIDEST_PANEL = 2.6
GAP = 0.09
LINE = 0.2
BAR = 0.75
LETTER, HANDLE = 0.075, 0.6  # of a legend


@dataclass(frozen=True)
class _Panel:
    """One picture of a sheet, and which others share its colours: None for what has its colours already."""

    values: NDArray[Any]
    group: tuple[object, ...] | None = None


Rows = Sequence[Mapping[str, _Panel]]


def maps(
    maps: Row | Mapping[str, Row] | Sequence[Row],
    photo: NDArray[np.uint8] | Sequence[NDArray[np.uint8]] | None = None,
    *,
    signed: Signed = "auto",
    percentile: float = 99.5,
    shared_scale: bool = True,
    colorbar: bool = True,
    label: str = "",
    zoom: Zoom | None = None,
) -> Figure:
    """Saliency maps side by side, pixel for pixel.

    Args:
        maps: ``{title: map}`` for one row; ``{row label: {title: map}}``, or a list of rows, for a grid. A map has the
            shape (H, W), or (N, H, W): one row an image.
        photo: (H, W, 3) uint8, shown in a first column; one an image where the maps are of several.
        signed: whether colours are centred at 0; ``"auto"``: when any map has a negative value.
        percentile: larger magnitudes than this percentile all get the strongest colour; 100 clips nothing.
        shared_scale: one scale for all maps of one size, that is of one layer under several fixes. Maps of different
            sizes and of different images always have their own. ``False``: every map has its own.
        colorbar: draw one. Where scales differ, each map, or column, has the value of its strongest colour below it.
        label: what the values are, written at the colour bar.
        zoom: (left, top, right, bottom) as shares of the picture, 0 to 1: magnify this part in every panel.

    Raises:
        ValueError: for maps or photographs of another shape, for no maps, or for a zoom that is no part of the picture.
    """
    labels, rows = _grid(maps, shared_scale)
    limits, signed = _limits(rows, percentile), _is_signed(rows, signed)
    if photo is not None:
        photos = _photos(photo, len(rows))
        rows = [{"photograph": _Panel(one), **row} for one, row in zip(photos, rows, strict=True)]
    with _style():
        figure = _draw(rows, labels, limits, signed, zoom, label if colorbar else None)
        _note(figure, _clipping(percentile), _scales(limits, shared_scale))
    return figure


def pictures(images: Row) -> Figure:
    """What the network is given, side by side and in colour.

    Args:
        images: ``{title: image}``, each (3, H, W) or (1, 3, H, W), normalised as :func:`smoothsal_lib.load_photo`
            returns them. Colours that no photograph has are clipped.

    Raises:
        ValueError: for images of another shape, or for none.
    """
    panels = {}
    for title, image in _not_empty(images).items():
        if image.shape[-3:-2] != (3,) or image.ndim not in (3, 4) or image.shape[:-3].numel() != 1:
            raise ValueError(f"image {title!r} has the shape {tuple(image.shape)}: expected (3, H, W) or (1, 3, H, W)")
        panels[title] = _Panel(in_colours(image.reshape(1, 3, *image.shape[-2:]))[0])
    with _style():
        return _draw([panels], None, {}, False, None, None)


def in_colours(images: Tensor) -> NDArray[np.uint8]:
    """The ``images`` as people see them: (N, 3, H, W), normalised as for ImageNet, to (N, H, W, 3) uint8, clipped."""
    std, mean = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_STD, IMAGENET_MEAN))
    colours = images.detach().cpu().float() * std + mean
    return np.asarray((255 * colours.clamp(0, 1)).round().byte().permute(0, 2, 3, 1))


def overlay(
    photo: NDArray[np.uint8],
    maps: Tensor | Row,
    *,
    signed: Signed = "auto",
    percentile: float = 99.5,
    alpha: float = 0.9,
    interpolation: Literal["aligned", "bilinear", "nearest"] | None = None,
    colorbar: bool = True,
    zoom: Zoom | None = None,
    layers: HiddenLayer | Mapping[str, HiddenLayer] | None = None,
) -> Figure:
    """Maps laid over the photograph they explain; where a map is 0, the photograph shows through in grey.

    Args:
        photo: (H, W, 3) uint8.
        maps: (h, w), (1, h, w), or ``{title: map}``, of any size: they are stretched to the photograph.
        signed: as in :func:`maps`.
        percentile: as in :func:`maps`; maps of one size share one scale.
        alpha: how much the strongest colour covers, 0 to 1.
        interpolation: how a map is stretched, named below the figure; see :func:`smoothsal_lib.extract.resize_map`.
            ``None`` takes ``"aligned"`` where the layers are given, and ``"bilinear"`` where not.
        colorbar: draw one.
        zoom: as in :func:`maps`.
        layers: of which layer the maps are, or ``{title: layer}`` as :func:`smoothsal_lib.hidden_layers` gives it for
            this picture: every unit is then drawn where it stands. Without, each is drawn in the middle of a cell of
            the picture, in a ResNet half a stride too far down and to the right.

    Raises:
        ValueError: as :func:`maps`; for ``"aligned"`` without layers, or for a map whose title is not among them.
    """
    _, rows = _grid(maps if isinstance(maps, Mapping) else {"": maps}, True)
    if len(rows) != 1:
        raise ValueError(f"expected the maps of one photograph, (h, w) or (1, h, w), got {len(rows)} images")
    limits, signed = _limits(rows, percentile), _is_signed(rows, signed)
    (photo,) = _photos(photo, 1)
    grey = _pale(photo)
    interpolation = interpolation or ("bilinear" if layers is None else "aligned")
    blended = {}
    for title, panel in rows[0].items():
        if isinstance(layers, Mapping) and title not in layers:
            raise ValueError(f"no layer for the map {title!r}: the titles with one are {', '.join(map(repr, layers))}")
        layer = layers[title] if isinstance(layers, Mapping) else layers
        large = resize_map(torch.from_numpy(panel.values)[None], photo.shape[:2], layer, interpolation)[0].numpy()
        limit = limits[panel.group]
        colours = mpl.colormaps[SIGNED if signed else OVERLAID](_norm(limit, signed)(large))[..., :3]
        cover = alpha * np.clip(np.abs(large) / limit, 0, 1)[..., None]
        blended[title] = _Panel((cover * colours + (1 - cover) * grey).clip(0, 1), panel.group)
    with _style():
        figure = _draw([blended], None, limits, signed, zoom, "" if colorbar else None, OVERLAID)
        stretched = (
            "every unit where it stands on the photograph"
            if interpolation == "aligned"
            else f"stretched to the photograph ({interpolation})"
        )
        _note(figure, stretched, _clipping(percentile), _scales(limits, True))
    return figure


def _pale(photo: NDArray[np.uint8]) -> NDArray[Any]:
    """(H, W, 1) from 0 to 1: a photograph in grey, and pale, so that colours laid on it read on dark parts, too."""
    return 0.35 + 0.55 * photo.mean(-1, keepdims=True) / 255


def structures(photo: NDArray[np.uint8], masks: Mapping[str, Tensor], *, alpha: float = 0.6) -> Figure:
    """A picture beside the same picture, pale, with its structures in colour.

    Args:
        photo: (H, W, 3) uint8.
        masks: ``{name: (H, W) bool}``, at most seven; where they overlap, the later one lies on top.
        alpha: how much the colours cover, 0 to 1.

    Raises:
        ValueError: for masks of another shape or type, for none or for more than seven.
    """
    (photo,) = _photos(photo, 1)
    colours = mpl.rc_params_from_file(STYLE, use_default_template=False)["axes.prop_cycle"].by_key()["color"]
    if len(_not_empty(masks)) > len(colours):
        raise ValueError(f"got {len(masks)} masks: there are colours for {len(colours)}")
    paper = np.repeat(0.4 + 0.6 * photo.mean(-1, keepdims=True) / 255, 3, 2)
    painted = paper.copy()
    handles = []
    for (name, mask), colour in zip(masks.items(), colours, strict=False):
        if tuple(mask.shape) != photo.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"expected the mask {name!r} as {photo.shape[:2]} of bool, got {tuple(mask.shape)} of {mask.dtype}"
            )
        inside = mask.cpu().numpy()
        painted[inside] = alpha * np.array(to_rgb(colour)) + (1 - alpha) * paper[inside]
        handles.append(Patch(fc=colour, alpha=alpha, label=name.replace("_", " ")))
    with _style():
        panels = {"photograph": _Panel(photo), "structures": _Panel(painted)}
        figure = _draw([panels], None, {}, False, None, None)
        style: dict[str, Any] = {"ncols": len(handles), "handlelength": 1.0, "columnspacing": 1.2, "borderaxespad": 0.0}
        figure.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.0), **style)
    return figure


def nuclei(
    photo: NDArray[np.uint8],
    labels: Tensor,
    ranked: Sequence[Nucleus],
    *,
    by: By = "mean",
    top: int = 10,
    signed: Signed = "auto",
    percentile: float = 99.5,
    colorbar: bool = True,
    zoom: Zoom | None = None,
) -> Figure:
    """The photograph, and beside it its nuclei, outlined and tinted by their saliency, on grey.

    Args:
        photo: (H, W, 3) uint8.
        labels: (H, W) as :func:`smoothsal_lib.nuclei.segment_nuclei` gives them.
        ranked: as :func:`smoothsal_lib.nuclei.rank_nuclei` gives them; nuclei that are not among them stay grey.
        by: the colour is that of the ``"mean"`` saliency or of the ``"sum"``; best that by which they are ranked.
        top: how many bear the number of their rank; 0 for none.
        signed: as in :func:`maps`.
        percentile: as in :func:`maps`, of nuclei instead of pixels.
        colorbar: draw one.
        zoom: as in :func:`maps`.

    Raises:
        ValueError: for labels of another shape than the photograph, for no nuclei, or for one that the labels lack.
    """
    (photo,) = _photos(photo, 1)
    numbers = _numbered(photo, labels, ranked)
    saliency = np.full(numbers.max() + 1, np.nan)
    for one in ranked:
        saliency[one.label] = one.mean if by == "mean" else one.total
    group = ("nuclei",)
    scored = [{"nuclei": _Panel(saliency[~np.isnan(saliency)], group)}]
    limits, signed = _limits(scored, percentile), _is_signed(scored, signed)
    grey = _pale(photo)
    tints = mpl.colormaps[SIGNED if signed else OVERLAID](_norm(limits[group], signed)(np.nan_to_num(saliency)))
    cover = np.where(find_boundaries(numbers, mode="inner"), 1.0, 0.4) * ~np.isnan(saliency)[numbers]
    tinted = cover[..., None] * tints[numbers][..., :3] + (1 - cover[..., None]) * grey
    panels = {"photograph": _Panel(photo), "nuclei": _Panel(tinted, group)}
    label = "mean saliency" if by == "mean" else "total saliency"
    with _style():
        figure = _draw([panels], None, limits, signed, zoom, label if colorbar else None, OVERLAID)
        for one in ranked[:top]:
            across, down = (one.centre[1] + 0.5) / photo.shape[1], (one.centre[0] + 0.5) / photo.shape[0]
            place: dict[str, Any] = {"ha": "center", "va": "center", "clip_on": True}
            number = figure.axes[1].text(across, down, str(one.rank), size=7.5, weight="bold", **place)
            number.set_path_effects([Stroke(linewidth=1.6, foreground="white"), Normal()])
        _note(figure, f"numbers: ranks of the first {min(top, len(ranked))}" if top else "", _clipping(percentile))
    return figure


def _numbered(photo: NDArray[np.uint8], labels: Tensor, ranked: Sequence[Nucleus]) -> NDArray[Any]:
    """The labels (H, W) of a photograph's nuclei, as an array.

    Raises:
        ValueError: for labels of another shape than the photograph, for no nuclei, or for one that the labels lack.
    """
    numbers = np.asarray(labels.cpu())
    if numbers.shape != photo.shape[:2]:
        raise ValueError(f"expected labels {photo.shape[:2]}, as the photograph, got {numbers.shape}")
    if not ranked:
        raise ValueError("nothing to draw: got no nuclei")
    lacking = sorted({one.label for one in ranked} - set(np.unique(numbers).tolist()))
    if lacking:
        raise ValueError(f"the labels have no nucleus {lacking[0]}: expected those that the nuclei were ranked with")
    return numbers


def spectrum(spectra: Row, stride: int = 2) -> Figure:
    """Power spectra side by side, frequency 0 in the middle and the Nyquist frequency 1/2 at the edges.

    Brightness is logarithmic, and relative to white noise of the same variance: at 1, a frequency has the power that it
    would have if all had the same. Circles mark the multiples of 1/stride, at which a layer of that stride leaves its
    checkerboard noise.

    Args:
        spectra: ``{title: spectrum}`` as :func:`smoothsal_lib.power_spectrum` gives them, (..., H, W); leading
            dimensions (images, channels) are averaged.
        stride: of the layer whose noise is looked for.

    Raises:
        ValueError: for spectra of another shape, or for none.
    """
    shares = {title: _relative(spectrum) for title, spectrum in _not_empty(spectra).items()}
    seen = np.concatenate([share[share > 0].ravel() for share in shares.values()])
    low, high = np.percentile(seen, (2, 99.9))
    norm = LogNorm(vmin=max(low, 1e-3), vmax=high, clip=True)
    marks = [i / stride for i in range(-(stride // 2), stride // 2 + 1)]
    points = [(x, y) for x in marks for y in marks if x or y]
    with _style():
        figure, axes = _sheet(list(shares), None, 1, aspect=1, left=0.32, below=LINE, bar=True)
        for ax, share in zip(axes[0], shares.values(), strict=True):
            edges = [0.5 + 0.5 / (side - 1) for side in share.shape]  # 1/2 is the centre of the outermost pixels
            ax.imshow(share, SPECTRAL, norm=norm, extent=(-edges[1], edges[1], edges[0], -edges[0]), aspect="auto")
            ring = ax.scatter(*zip(*points, strict=True), s=40, fc="none", ec="white", lw=0.9, clip_on=False, zorder=3)
            ring.set_path_effects([Stroke(linewidth=2.0, foreground="0.15"), Normal()])
            ax.set(xticks=[-0.5, 0, 0.5], yticks=[])
            for text, side in zip(ax.set_xticklabels(["−½", "0", "½"]), ("left", "center", "right"), strict=True):
                text.set_ha(side)
        axes[0, 0].set(yticks=[-0.5, 0, 0.5], yticklabels=["−½", "0", "½"])
        _place_bar(figure, axes, ScalarMappable(norm, SPECTRAL), "× white noise")
        _note(figure, f"cycles per pixel of the layer; the mean, frequency 0, is removed; ○ multiples of 1/{stride}")
    return figure


def profile(maps: Row, mark: float | Sequence[float] = 0.5) -> Figure:
    """Power against horizontal frequency, summed over the vertical ones, on a logarithmic scale.

    As in :func:`spectrum`, 1 is white noise of the same variance. A layer of stride s leaves peaks at multiples of 1/s.

    Args:
        maps: ``{name: map or attribution}``, each (..., H, W); leading dimensions are averaged.
        mark: the frequencies to mark, in cycles per pixel, such as 1/stride.

    Raises:
        ValueError: for maps of another shape, or for none.
    """
    marks = [mark] if isinstance(mark, int | float) else list(mark)
    with _style():
        figure, ax = plt.subplots()
        for position in marks:
            ax.axvline(position, color="0.75", lw=0.9, ls=(0, (4, 3)), zorder=0)
        for name, values in _not_empty(maps).items():
            width = values.shape[-1]
            power = power_spectrum(values.detach().cpu().double()).sum(-2).reshape(-1, width).mean(0)
            upward = torch.fft.ifftshift(power)[: width // 2 + 1]  # -f holds the same as f
            ax.plot(torch.arange(len(upward)) / width, upward / power.mean(), label=name, solid_capstyle="round")
        ticks = sorted({0.0, 0.5, *marks})
        ax.set_xticks(ticks, [str(Fraction(tick).limit_denominator(64)) for tick in ticks])
        ax.set(yscale="log", xlim=(0, 0.505), xlabel="horizontal frequency (cycles per pixel)")
        ax.set_ylabel("power / white noise")
        _legend(ax)
        figure.tight_layout()
    return _full_width(figure)


def taps(cases: Sequence[tuple[int, int]], size: int = 6) -> Figure:
    """How many taps of the kernel each input position meets, for convolutions away from their border.

    A frame holds one position of every parity class (i mod s, j mod s). Kernels are centred (padding (k - 1) // 2).

    Args:
        cases: (kernel size, stride) of each panel.
        size: positions a side.

    Raises:
        ValueError: for no cases, or a kernel size or stride below 1.
    """
    if not cases or min(min(case) for case in cases) < 1:
        raise ValueError(f"expected pairs (kernel size, stride) of positive numbers, got {list(cases)}")
    counts = [_tap_counts(kernel, stride, size) for kernel, stride in cases]
    most = max(4, *(int(count.max()) for count in counts))
    norm = PowerNorm(0.5, 0, most)
    titles = [f"kernel {kernel}, stride {stride}" for kernel, stride in cases]
    with _style():
        figure, axes = _sheet(titles, None, 1, aspect=1)
        for ax, count, (_, stride) in zip(axes[0], counts, cases, strict=True):
            ax.imshow(count, COUNTS, norm=norm)
            for (i, j), number in np.ndenumerate(count):
                ax.text(j, i, number, ha="center", va="center", size=8, color="white" if number > most / 2 else "black")
            frame = Rectangle((-0.5, -0.5), stride, stride, fc="none", ec="#D55E00", lw=2.2, clip_on=False, zorder=3)
            ax.add_patch(frame)
            ax.set(xticks=[], yticks=[])
        _note(figure, "orange frame: one position of each parity class")
    return figure


def by_layer(
    values: Mapping[str, Mapping[str, float | Tensor]],
    ylabel: str,
    errors: Mapping[str, Mapping[str, float]] | None = None,
    xlabel: str = "",
    joined: bool = True,
) -> Figure:
    """One line a fix, one point a layer; or what else the columns and rows of a table are.

    Args:
        values: ``{fix: {layer: value}}``, layers in forward order. A value is a number, or a tensor (N,) with one
            number an image, drawn as mean and standard deviation.
        ylabel: what the values are.
        errors: standard errors of numbers, a table of the same form; what is missing gets no bar.
        xlabel: what the rows are, where they are not layers.
        joined: whether the points of a fix are joined by a line, which says that the rows have an order.

    Raises:
        ValueError: for no values.
    """
    layers = list(dict.fromkeys(layer for found in _not_empty(values).values() for layer in found))
    many = any(isinstance(value, Tensor) and value.numel() > 1 for found in values.values() for value in found.values())
    with _style():
        figure, ax = plt.subplots()
        for k, (fix, found) in enumerate(values.items()):
            numbers = [torch.as_tensor(value, dtype=torch.float64).cpu().flatten() for value in found.values()]
            dodge = 0.07 * (k - (len(values) - 1) / 2) if many or errors else 0.0  # bars side by side
            x = np.array([layers.index(layer) for layer in found]) + dodge
            spread = [float(n.std()) if len(n) > 1 else 0.0 for n in numbers] if many else None
            if errors is not None:
                spread = [errors.get(fix, {}).get(layer, 0.0) for layer in found]
            style: dict[str, Any] = {"marker": MARKERS[k % len(MARKERS)], "elinewidth": 1.0, "capsize": 2}
            style |= {} if joined else {"linestyle": "none"}
            ax.errorbar(x, [float(n.mean()) for n in numbers], spread, label=fix, **style)
        rotation = 30 if sum(map(len, layers)) > 80 else 0
        ax.set_xticks(range(len(layers)), layers, rotation=rotation, ha="right" if rotation else "center")
        bars = ", mean ± s.e." if errors is not None else ", mean ± std" if many else ""
        ax.set(xlabel=xlabel, ylabel=ylabel + bars)
        if ax.get_ylim()[0] < 0:
            ax.axhline(0, color="0.6", lw=0.7, zorder=0)
        else:
            ax.set_ylim(bottom=0)
        ax.grid(axis="y", color="0.9", lw=0.7)
        ax.set_axisbelow(True)
        _legend(ax)
        figure.tight_layout()
    return _full_width(figure)


def curves(found: Mapping[str, Curves], xlabel: str = "share of pixels exchanged") -> Figure:
    """Insertion, deletion or ROAD: the mean over images of the class's probability, and the mean area in the legend.

    Args:
        found: ``{name: curves}``, as :func:`smoothsal_lib.insertion` gives them.
        xlabel: what the fractions are.

    Raises:
        ValueError: for no curves.
    """
    with _style():
        figure, ax = plt.subplots()
        for k, (name, one) in enumerate(_not_empty(found).items()):
            mean = one.scores.detach().cpu().double().mean(0)
            marker: dict[str, Any] = {"marker": MARKERS[k % len(MARKERS)], "markevery": max(1, len(mean) // 7)}
            ax.plot(one.fractions.cpu(), mean, label=f"{name}: {float(one.auc.double().mean()):.3f}", **marker)
        ax.set(xlabel=xlabel, ylabel="probability of the class", xlim=(0, float(one.fractions.max())))
        ax.set_ylim(bottom=0)
        ax.legend(title="area under the curve", loc="center left", bbox_to_anchor=(1, 0.5), alignment="left")
        figure.tight_layout()
    return _full_width(figure)


# ---- what to draw


@contextmanager
def _style() -> Iterator[None]:
    """The book's style. A notebook turns interactive drawing on when its first figure is made; that must outlive it."""
    with plt.style.context(STYLE):
        yield
        interactive = mpl.is_interactive()
    mpl.interactive(interactive)


def _not_empty(given: Any) -> Any:
    if not given:
        raise ValueError("nothing to draw: got an empty mapping")
    return given


def _grid(
    given: Row | Mapping[str, Row] | Sequence[Row], shared: bool
) -> tuple[list[str] | None, list[dict[str, _Panel]]]:
    """Row labels, and per row a panel for every title."""
    _not_empty(given)
    labels: list[str] | None = None
    listed: Any = given
    if isinstance(given, Mapping):
        one_row = isinstance(next(iter(given.values())), Tensor | np.ndarray)
        labels, listed = (None, [given]) if one_row else (list(given), list(given.values()))
    rows: list[dict[str, _Panel]] = []
    for number, row in enumerate(listed):
        stacks = {title: _stack(title, map_) for title, map_ in _not_empty(row).items()}
        counts = {title: len(stack) for title, stack in stacks.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"maps of different numbers of images in one row: {counts}")
        for image in range(next(iter(counts.values()))):
            own = () if shared else (number,)
            panels = {}
            for title, stack in stacks.items():
                group = (image, *stack.shape[1:], *own, *(() if shared else (title,)))
                panels[title] = _Panel(stack[image], group)
            rows.append(panels)
    if labels is not None and len(rows) != len(labels):
        raise ValueError(
            f"a grid with row labels takes one image: maps are (H, W) or (1, H, W), but rows are {len(rows)}"
        )
    return labels, rows


def _stack(title: str, map_: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    """The map as an array (N, H, W)."""
    values = np.asarray(torch.as_tensor(map_).detach().cpu().double())
    if values.ndim not in (2, 3) or not values.size:
        hint = "; reduce its channels with saliency_map first" if values.ndim == 4 else ""
        raise ValueError(f"map {title!r} has the shape {values.shape}: expected (H, W) or (N, H, W){hint}")
    if not np.isfinite(values).all():
        raise ValueError(f"map {title!r} holds NaN or infinite values")
    return values.reshape(-1, *values.shape[-2:])


def _photos(photo: Any, rows: int) -> list[NDArray[np.uint8]]:
    """One photograph a row; a single one is repeated."""
    photos = [photo] * rows if isinstance(photo, np.ndarray) and photo.ndim == 3 else list(photo)
    for one in photos:
        if np.ndim(one) != 3 or np.shape(one)[-1] != 3:
            raise ValueError(f"expected a photograph of shape (H, W, 3), got {np.shape(one)}")
    if len(photos) != rows:
        raise ValueError(f"{len(photos)} photographs for {rows} rows of maps: give one, or one a row")
    return photos


def _is_signed(rows: Rows, signed: Signed) -> bool:
    return any((panel.values < 0).any() for row in rows for panel in row.values()) if signed == "auto" else signed


def _limits(rows: Rows, percentile: float) -> dict[tuple[object, ...] | None, float]:
    """Magnitude of the strongest colour in every group of panels; 1 where all is 0."""
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile = {percentile} is not above 0 and at most 100")
    groups: dict[tuple[object, ...] | None, list[NDArray[Any]]] = {}
    for row in rows:
        for panel in row.values():
            groups.setdefault(panel.group, []).append(np.abs(panel.values).ravel())
    found = {}
    for group, values in groups.items():
        together = np.concatenate(values)
        found[group] = float(np.percentile(together, percentile) or together.max() or 1.0)
    return found


def _relative(spectrum: Tensor) -> NDArray[np.float64]:
    """Mean over leading dimensions, relative to white noise; the row at -1/2 is repeated at +1/2, where it also is."""
    if spectrum.ndim < 2:
        raise ValueError(f"expected a spectrum of shape (..., H, W), got {tuple(spectrum.shape)}")
    power = (
        spectrum.detach().cpu().double().flatten(0, -3).mean(0)
        if spectrum.ndim > 2
        else spectrum.detach().cpu().double()
    )
    power = power / power.mean()
    for dim, size in enumerate(power.shape):
        if size % 2 == 0:
            power = torch.cat([power, power.narrow(dim, 0, 1)], dim)
    return np.asarray(power)


def _tap_counts(kernel: int, stride: int, size: int) -> NDArray[np.int64]:
    """(size, size): how many (output, tap) pairs read each position. Tap t of output o reads s o + t - padding."""
    padding = (kernel - 1) // 2
    met = [sum((i + padding - tap) % stride == 0 for tap in range(kernel)) for i in range(size)]
    return np.outer(met, met)


# ---- how to draw it


def _draw(
    rows: Rows,
    labels: list[str] | None,
    limits: Mapping[tuple[object, ...] | None, float],
    signed: bool,
    zoom: Zoom | None,
    bar_label: str | None,
    unsigned_colours: str = UNSIGNED,
) -> Figure:
    """A sheet of panels with one colour bar (none where ``bar_label`` is None)."""
    titles = list(dict.fromkeys(title for row in rows for title in row))
    left, top, right, bottom = _checked(zoom)
    height, width = next(iter(rows[0].values())).values.shape[:2]
    aspect = height * (bottom - top) / (width * (right - left))
    notes = {} if len(limits) == 1 else _limit_notes(rows, limits, signed)
    noted = {i for i, _ in notes}
    between, below = LINE * bool(noted - {len(rows) - 1}), LINE * bool(noted)
    figure, axes = _sheet(titles, labels, len(rows), aspect, between=between, below=below, bar=bar_label is not None)
    colours = SIGNED if signed else unsigned_colours
    for (i, j), ax in np.ndenumerate(axes):
        panel = rows[i].get(titles[j])
        if panel is None:
            ax.set_visible(False)
            continue
        norm = _norm(limits[panel.group], signed) if panel.group in limits else None
        ax.imshow(panel.values, colours, norm=norm, extent=(0, 1, 1, 0), aspect="auto")
        ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
        ax.set_xlabel(notes.get((i, titles[j]), ""), size=8, labelpad=2)
    if bar_label is not None:
        limit = next(iter(limits.values())) if len(limits) == 1 else 1.0
        name = _number(limit) if len(limits) == 1 else "limit"
        bar = _place_bar(figure, axes, ScalarMappable(_norm(limit, signed), colours), bar_label)
        ticks = ({-limit: f"−{name}"} if signed else {}) | {0.0: "0", limit: name}
        bar.set_ticks(list(ticks), labels=list(ticks.values()))
    return figure


def _limit_notes(
    rows: Rows, limits: Mapping[tuple[object, ...] | None, float], signed: bool
) -> dict[tuple[int, str], str]:
    """The strongest colour's value, by row and title; once for a column of panels that share it."""
    notes = {}
    for i, row in enumerate(rows):
        for title, panel in row.items():
            below = rows[i + 1].get(title) if i + 1 < len(rows) else None
            if panel.group in limits and (below is None or below.group != panel.group):
                notes[i, title] = ("limit ±" if signed else "limit ") + _number(limits[panel.group])
    return notes


def _sheet(
    titles: Sequence[str],
    labels: Sequence[str] | None,
    rows: int,
    aspect: float,
    *,
    between: float = 0.0,
    below: float = 0.0,
    left: float = 0.0,
    bar: bool = False,
) -> tuple[Figure, NDArray[Any]]:
    """A figure with ``rows`` x ``len(titles)`` axes of height ``aspect`` times width; all other lengths in inches."""
    left += LINE + 0.06 if labels is not None else 0.0
    columns, room = len(titles), WIDTH - left - (BAR if bar else 0.0)
    width = min((room - GAP * (columns - 1)) / columns, WIDEST_PANEL)
    height = width * aspect
    above = LINE + 0.06 if any(titles) else 0.02
    total = above + rows * height + (rows - 1) * (GAP + between) + below + LINE + 0.04  # a line for the note
    figure = plt.figure(figsize=(WIDTH, total))
    start = left + (room - columns * width - (columns - 1) * GAP) / 2
    axes = np.empty((rows, columns), dtype=object)
    for i, j in np.ndindex(rows, columns):
        x, y = start + j * (width + GAP), total - above - i * (height + GAP + between) - height
        ax = axes[i, j] = figure.add_axes((x / WIDTH, y / total, width / WIDTH, height / total))
        ax.spines[:].set(visible=True, color="0.55", lw=0.6)
        ax.set_title(titles[j] if i == 0 else "")
    for i, label in enumerate(labels or []):
        axes[i, 0].annotate(
            label, (0, 0.5), (-0.07 * 72, 0), "axes fraction", "offset points", rotation=90, ha="right", va="center"
        )
    return _full_width(figure), axes


def _place_bar(figure: Figure, axes: NDArray[Any], colours: ScalarMappable, label: str) -> Any:
    """A colour bar right of the top right panel's column, as high as one panel or 1.5 inches."""
    box, height = axes[0, -1].get_position(), figure.get_figheight()
    tall = min(box.height, 1.5 / height)
    place = (box.x1 + 0.12 / WIDTH, box.y0 + (box.height - tall) / 2, 0.09 / WIDTH, tall)
    bar = figure.colorbar(colours, cax=figure.add_axes(place), label=label)
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(labelsize=8, size=2, pad=2)
    return bar


def _note(figure: Figure, *parts: str) -> None:
    """A line of small print at the lower edge of the figure."""
    start, text = figure.axes[0].get_position().x0, "; ".join(part for part in parts if part)
    note = figure.text(start, 0.02 / figure.get_figheight(), text, size=7.5, color="0.35", va="bottom")
    note.set_x(min(start, 1 - note.get_window_extent().width / figure.bbox.width))  # as far left as it must


def _full_width(figure: Figure) -> Figure:
    """Draw an invisible line across: notebooks crop figures to what is drawn, and text would scale with the crop."""
    figure.add_artist(Line2D([0, 1], [0, 0], alpha=0))
    return figure


def _legend(ax: Axes) -> None:
    """Above the axes, in as few lines as fit; none for a single entry."""
    labels = ax.get_legend_handles_labels()[1]
    columns = next(n for n in (4, 3, 2, 1) if n == 1 or n * (max(map(len, labels)) * LETTER + HANDLE) < WIDTH - 0.8)
    if len(labels) > 1:
        lines = ceil(len(labels) / columns)
        style: dict[str, Any] = {"borderaxespad": 0.2, "handlelength": 1.6}
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=ceil(len(labels) / lines), **style)


def _norm(limit: float, signed: bool) -> Normalize:
    return Normalize(-limit if signed else 0, limit)


def _checked(zoom: Zoom | None) -> Zoom:
    left, top, right, bottom = zoom or (0.0, 0.0, 1.0, 1.0)
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(f"zoom = {zoom} is not (left, top, right, bottom) with 0 <= left < right <= 1, top < bottom")
    return left, top, right, bottom


def _clipping(percentile: float) -> str:
    return "" if percentile == 100 else f"clipped at the {percentile:g}th percentile of magnitude"


def _scales(limits: Mapping[Any, float], shared: bool) -> str:
    if len(limits) == 1:
        return ""
    return "one scale for maps of one size" if shared else "every map on its own scale"


def _number(value: float) -> str:
    """Two digits, with a power of ten where that is shorter: 0.034, 12, 3.1×10⁻⁵."""
    if 0.01 <= value < 1000:
        return f"{value:.2g}" if value < 100 else f"{value:.0f}"
    exponent = floor(log10(value))
    return rf"${value / 10**exponent:.1f}\times10^{{{exponent}}}$"
