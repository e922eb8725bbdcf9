"""Explain a whole slide: detector and saliency over all of its tissue, as a heatmap that QuPath opens.

python -m smoothsal_lib slide SLIDE --model tissue_resnet --layer layer2.1 --fix backward --mpp 0.62 --out FOLDER

A slide does not fit into memory, so it is explained tile by tile, and the tiles' maps must fit together. A classifier
with global average pooling makes that harder than it looks: its logit is the *mean* of local logits over the positions
of the last map, so a tile's gradient is that of their sum divided by their number, and would change with the tile's
size. The score of a slide is therefore defined as the *sum* of the local logits over all positions (the network read as
a fully convolutional one), and the maps of a tile are multiplied by its number of positions. What is left is the rim:
units near a tile's edge lack what lies beyond, so their neighbour's are taken wherever a neighbour was explained.

Exact, then, up to rounding: a unit's value is that of the map made of the whole slide in one go, when the tile reaches
around it as far as the score of the slide depends on it, which is twice the radius of the last map's receptive field
(what a unit changes, and what decides how it changes it); the backward hook's blur adds a few pixels. Where the overlap
is smaller, the outermost part of that reach is missing, in which trained networks have little weight. Not exact with
any overlap: networks that look at the whole tile before their last layer (squeeze-and-excitation, attention, instance
and group normalisation), and the published form of the hooks at the edge of the slide, where it wraps around. Methods
that weigh by means over the picture (Grad-CAM) or divide by its score (LRP) have no local values and are refused.

Begun with ``torchrun --nproc-per-node 4 -m smoothsal_lib slide`` and the same options, four processes share the tiles;
with ``--nnodes`` as well, those of several machines that have FOLDER in common. The heatmap is the same to the byte.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from smoothsal_lib.camelyon import load_camelyon_model
from smoothsal_lib.capture import capture, check_target, logits_of, record_activations
from smoothsal_lib.datasets.patches import GLASS
from smoothsal_lib.datasets.slides import (
    MPP,
    DamagedTileError,
    Grid,
    Polygons,
    Slide,
    Tile,
    load_annotations,
    open_slide,
    overview,
    tile_grid,
    tissue_mask,
    write_pyramid,
)
from smoothsal_lib.evaluate import fingerprint
from smoothsal_lib.explain import METHODS, as_method, explain
from smoothsal_lib.extract import REDUCTIONS, saliency_map
from smoothsal_lib.fixes import NAMES, Surrogate
from smoothsal_lib.layers import INPUT, HiddenLayer, check_images, hidden_layers, total_stride
from smoothsal_lib.ledger import Ledger, own_path, own_paths
from smoothsal_lib.models import WINDOW, load_model, load_surrogate, normalize
from smoothsal_lib.parallel import ALONE, Team, joined
from smoothsal_lib.record import provenance
from smoothsal_lib.state import preserved

HEATMAP, PICTURE, SUMMARY = "heatmap.ome.tif", "overview.png", "summary.json"
CHANNELS = ("saliency", "probability", "coverage")
BASELINES = {"glass": GLASS, "mean": None}
NOT_LOCAL = ("grad_cam", "grad_cam++", "smooth_grad_cam++", "lrp")
PERCENTILE = 99.5  # of the magnitudes in the overview; larger ones get the strongest colour
LONGEST = 1024  # pixels of the overview's longer side
CLASSES_AT_ONCE = 50  # when the weights of a classifier are found out
FAINT = 1e-50  # the weight of a rim, which is nothing beside any other, and enough where there is no other
CLOSE = 1e-3  # share by which local logits may miss the logit that they are to add up to

Values = NDArray[Any]


@dataclass(frozen=True)
class SlidePlan:
    """All that a heatmap depends on, besides slide and network.

    Attributes:
        layer: of :func:`smoothsal_lib.hidden_layers`, or ``"input"``.
        method: a name for :func:`smoothsal_lib.explain`.
        baseline: what DeepLift and integrated gradients compare with: ``"glass"``, a slide without tissue, or
            ``"mean"``, the mean colour of photographs.
        fix: ``"none"``, the name of a fix, or ``"surrogate"``.
        target: the class to explain; ``None`` for a network with a single one.
        reduce: see :func:`smoothsal_lib.saliency_map`.
        mpp: micrometres a pixel at which the network looks; ``None`` takes the slide's finest level as it is.
        tile: pixels a side of a tile.
        overlap: pixels that neighbouring tiles share.
        rim: pixels of the overlap, on either side, that count only where there is no neighbour; between the rims of two
            neighbours their maps are blended linearly. ``None`` takes three eighths of the overlap; a half cuts.
        batch: tiles at once.
        mask: pixels of the longer side of the tissue mask; 0 takes all tiles.
    """

    layer: str
    method: str = "deeplift"
    baseline: str = "glass"
    fix: str = "backward"
    target: int | None = None
    reduce: str = "mean"
    mpp: float | None = MPP
    tile: int = 1024
    overlap: int = 256
    rim: int | None = None
    batch: int = 1
    mask: int = 1024

    def __post_init__(self) -> None:
        as_method(self.method)
        if self.method in NOT_LOCAL:
            raise ValueError(
                f"{self.method} has no local values, so its tiles do not fit together: use cam or gradient, say"
            )
        if self.baseline not in BASELINES:
            raise ValueError(f"unknown baseline {self.baseline!r}: choose {' or '.join(BASELINES)}")
        if self.fix not in ("none", "surrogate", *NAMES):
            raise ValueError(f"unknown fix {self.fix!r}: choose none, {', '.join(NAMES)} or surrogate")
        if self.reduce not in REDUCTIONS:
            raise ValueError(f"unknown reduction {self.reduce!r}: choose one of {', '.join(REDUCTIONS)}")
        if self.rim is not None and not 0 <= 2 * self.rim <= self.overlap:
            raise ValueError(f"rim = {self.rim} is not between 0 and half of the overlap of {self.overlap} pixels")
        if self.batch < 1 or self.mask < 0:
            raise ValueError(f"batch = {self.batch} and mask = {self.mask}: expected at least 1 tile and 0 pixels")

    @property
    def rim_pixels(self) -> int:
        """The rim in pixels."""
        return 3 * self.overlap // 8 if self.rim is None else self.rim


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Maps of tiles, put together.

    Attributes:
        grid: where the tiles are.
        units: (rows, columns) of a tile's map.
        stride: pixels between two units, (rows, columns); tiles begin at multiples of it.
        offset: the pixel at which a tile's first unit is centred, (row, column).
        rim: pixels at an edge inside of the slide that count only where no other tile does.
    """

    grid: Grid
    units: tuple[int, int]
    stride: tuple[int, int]
    offset: tuple[float, float]
    rim: int

    @cached_property
    def starts(self) -> tuple[list[int], list[int]]:
        """The first unit of each row and of each column of tiles."""
        axes = (self.grid.rows, self.grid.columns)
        return tuple([edge // step for edge in edges] for edges, step in zip(axes, self.stride, strict=True))  # type: ignore[return-value]

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the map of the whole slide, in units."""
        return self.starts[0][-1] + self.units[0], self.starts[1][-1] + self.units[1]

    @cached_property
    def _index(self) -> dict[tuple[int, int], int]:
        return {(tile.row // self.stride[0], tile.column // self.stride[1]): tile.index for tile in self.grid.tiles}

    def weights(self, axis: int, start: int) -> NDArray[np.float64]:
        """How much each unit of a tile that begins there counts along an axis: nothing in the rim, 1 in the middle."""
        units, starts, step = self.units[axis], self.starts[axis], self.stride[axis]
        shared = max(0, units - (self.grid.size[axis] - self.grid.overlap) // step)
        rim = min(math.ceil(self.rim / step), shared // 2)
        ramp = shared - 2 * rim
        from_edge = np.arange(units) + 0.5 - rim
        rising: NDArray[np.float64] = np.clip(from_edge / ramp if ramp else from_edge > 0, FAINT, 1)
        weights = np.ones(units)
        if start > starts[0]:
            weights = weights * rising
        if start < starts[-1]:
            weights = weights * rising[::-1]
        return weights

    def block(
        self, tiles: Callable[[int], Values | None], top: int, left: int, height: int, width: int
    ) -> tuple[Values, NDArray[np.bool_]]:
        """A part of the whole map.

        Args:
            tiles: the map (rows, columns) of the tile of that index; ``None`` where it could not be made.
            top: the part's first row of units.
            left: its first column.
            height: its rows.
            width: its columns.

        Returns:
            The values (height, width), 0 where no tile is; and where one is.
        """
        total, weight = np.zeros((height, width)), np.zeros((height, width))
        for row in self._touching(0, top, height):
            for column in self._touching(1, left, width):
                index = self._index.get((row, column))
                values = None if index is None else tiles(index)
                if values is None:
                    continue
                (own_rows, rows), (own_columns, columns) = (
                    _shared(start, units, first, count)
                    for start, units, first, count in zip(
                        (row, column), self.units, (top, left), (height, width), strict=True
                    )
                )
                weights = np.outer(self.weights(0, row)[own_rows], self.weights(1, column)[own_columns])
                total[rows, columns] += weights * values[own_rows, own_columns]
                weight[rows, columns] += weights
        covered = weight > 0
        return np.divide(total, weight, out=np.zeros_like(total), where=covered), covered

    def _touching(self, axis: int, first: int, count: int) -> list[int]:
        """The tiles' first units along an axis whose units are among these."""
        starts = self.starts[axis]
        return starts[bisect_right(starts, first - self.units[axis]) : bisect_left(starts, first + count)]

    def nearest(self, axis: int, pixels: Values, rounded: Callable[[Values], Values] = np.rint) -> NDArray[np.int64]:
        """The units that are centred nearest to some pixels of the grid's picture, along an axis.

        Args:
            axis: 0 for rows, 1 for columns.
            pixels: where.
            rounded: ``np.floor`` for the unit in whose cell a pixel lies.
        """
        place = rounded((pixels - self.offset[axis]) / self.stride[axis]).astype(np.int64)
        return np.clip(place, 0, self.shape[axis] - 1)


def _shared(start: int, units: int, first: int, count: int) -> tuple[slice, slice]:
    """What a tile shares with a block, along an axis: which of the tile's units, and where in the block."""
    low, high = max(start, first), min(start + units, first + count)
    return slice(low - start, high - start), slice(low - first, high - first)


@dataclass(frozen=True, eq=False)
class Detector:
    """How a network's answer is spread over a tile. Made by :func:`probe`.

    Attributes:
        dense: whether the network has logits for every position by itself.
        layer: the last map of a classifier that pools and weighs it linearly; ``None`` for any other network, which has
            one probability a tile.
        weight: (classes, C) of that classifier.
        bias: (classes,).
    """

    dense: bool = False
    layer: str | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None

    def probability(self, model: nn.Module, x: Tensor, target: int) -> Tensor:
        """The probability of a class at every position, (N, h, w), of pictures (N, C, H, W).

        Of a dense network, the softmax of its logits over the classes, or the sigmoid of a single one. Of a classifier
        behind average pooling the same of its local logits, W x + b at every position of the last map x, whose mean
        over positions is the logit of the tile. Of any other network (N, 1, 1), that of the tile.
        """
        if self.dense:
            with preserved(model), torch.no_grad():
                logits = model(x.clone())
        elif self.layer is not None and self.weight is not None and self.bias is not None:
            last = record_activations(model, x, self.layer)[self.layer]
            logits = torch.einsum("kc,nchw->nkhw", self.weight, last) + self.bias[:, None, None]
        else:
            logits = logits_of(model, x)[..., None, None]
        return (logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1))[:, target]


@dataclass(frozen=True, eq=False)
class View:
    """What a network makes of the tiles of one size. Made by :func:`probe`.

    Attributes:
        target: the class to explain.
        layer: the layer of the maps, in a tile.
        positions: over which the score of a tile is a mean: of the last map, or of dense logits.
        stride: see :func:`smoothsal_lib.layers.total_stride`.
        detector: for the probability.
        answer: the tile's map of probabilities, as a layer.
    """

    target: int
    layer: HiddenLayer
    positions: int
    stride: int
    detector: Detector
    answer: HiddenLayer

    def maps(
        self, model: nn.Module, x: Tensor, plan: SlidePlan, surrogate: Surrogate | None = None
    ) -> tuple[Tensor, Tensor]:
        """Saliency (N, h, w) of the sum of local logits, and probability (N, h', w'), of tiles (N, C, H, W)."""
        fix = surrogate if plan.fix == "surrogate" else None if plan.fix == "none" else plan.fix
        # A dense network's score is the mean logit of a region, here the whole tile, as a classifier's is by itself.
        region = torch.ones(self.answer.shape[1:]) if self.detector.dense else None
        baseline = BASELINES[plan.baseline]
        found = explain(model, x, self.target, self.layer.name, plan.method, fix, baseline, region=region)
        # CAM is a map of local logits already.
        saliency = saliency_map(found[self.layer.name], plan.reduce) * (1 if plan.method == "cam" else self.positions)
        probability = self.detector.probability(model, x, self.target)
        return saliency, probability.expand(-1, *self.answer.shape[1:])


def probe(model: nn.Module, plan: SlidePlan, size: tuple[int, int] | None = None) -> View:
    """Find out what a network makes of a tile, from a picture of noise.

    Args:
        model: a classifier (N, classes), or a network with logits for every position (N, classes, H, W).
        plan: what is wanted.
        size: (H, W) of the tiles; ``None`` takes the plan's.

    Raises:
        ValueError: for a class that the network does not have, or none where it has several; for a layer that is none
            of the hidden ones.
        TypeError: as :func:`smoothsal_lib.explain`.
    """
    height, width = size or (plan.tile, plan.tile)
    parameter = next(model.parameters())
    noise = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(parameter)
    check_images(noise, model)
    with preserved(model), torch.no_grad():
        output = model(noise.clone())
    if not isinstance(output, Tensor) or output.ndim not in (2, 4):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"expected logits (N, classes) or (N, classes, H, W) of the network, got {shape}")
    dense, classes = output.ndim == 4, output.shape[1]
    if plan.target is None and classes > 1:
        raise ValueError(f"this {type(model).__name__} has {classes} classes: say which one to explain")
    target = int(check_target(plan.target or 0, output.new_zeros(1, classes)))
    layers, stride = hidden_layers(model, noise), total_stride(model, noise)
    picture = HiddenLayer(INPUT, (3, height, width), (1, 1), (0.0, 0.0))
    if plan.layer not in (INPUT, *layers):
        raise ValueError(f"no hidden layer {plan.layer!r} to map: choose one of {', '.join((INPUT, *layers))}")
    last = list(layers.values())[-1] if layers else None
    detector, positions = Detector(dense), 1
    answer = HiddenLayer("", (1, height // stride, width // stride), (stride, stride), ((stride - 1) / 2,) * 2)
    if dense:
        answer = _dense_answer(model, noise, output, stride)
        positions = answer.shape[1] * answer.shape[2]
    elif last is not None:
        positions = last.shape[1] * last.shape[2]
        found = _linear(model, last.name, noise, classes, (4 * stride, WINDOW))
        if found is not None:
            detector, answer = Detector(False, last.name, *found), last
    return View(target, layers.get(plan.layer, picture), positions, stride, detector, answer)


def _dense_answer(model: nn.Module, noise: Tensor, output: Tensor, stride: int) -> HiddenLayer:
    """Where dense logits stand: how many more of them a picture has that is larger by the network's stride tells it."""
    larger = nn.functional.pad(noise, (0, stride, 0, stride))
    with preserved(model), torch.no_grad():
        more = model(larger).shape
    steps = [stride // max(1, more[axis] - output.shape[axis]) for axis in (2, 3)]
    sizes = [noise.shape[axis] for axis in (2, 3)]
    rows, columns = (
        (size - 1 - step * (count - 1)) / 2 for size, step, count in zip(sizes, steps, output.shape[2:], strict=True)
    )
    return HiddenLayer("", (1, *output.shape[2:]), (steps[0], steps[1]), (rows, columns))


def _linear(
    model: nn.Module, layer: str, noise: Tensor, classes: int, sides: Sequence[int]
) -> tuple[Tensor, Tensor] | None:
    """Weights (classes, C) and bias (classes,) of a linear classifier behind average pooling; None for any other.

    It is asked about the first of these sizes of a picture that it does not refuse. The gradient of a logit is then its
    weights divided by the number of positions. That the local logits have the mean that they should is checked on
    another picture.
    """
    side, *larger = sides
    picture = noise[..., :side, :side]
    try:
        parts = []
        for first in range(0, classes, CLASSES_AT_ONCE):
            targets = list(range(first, min(first + CLASSES_AT_ONCE, classes)))
            pictures = picture.expand(len(targets), -1, -1, -1)
            parts.append(capture(model, pictures, layer, targets, activations=False).gradients[layer].sum((2, 3)))
        weight = torch.cat(parts)
        here, there = (
            (logits_of(model, x)[0], weight @ record_activations(model, x, layer)[layer].mean((0, 2, 3)))
            for x in (picture, picture.flip(3) * 2 + 1)
        )
    except (RuntimeError, ValueError):  # another size than the network was made for
        return _linear(model, layer, noise, classes, larger) if larger else None
    bias = here[0] - here[1]
    close = CLOSE * float(there[0].abs().max().clamp(min=float(there[1].abs().max())))
    return (weight, bias) if float((there[1] + bias - there[0]).abs().max()) <= close else None


@dataclass(frozen=True)
class _Store:
    """The maps of all tiles on the disk, mapped for each access anew, so that no page of them stays in memory.

    Every process writes a file of its own, since files are mapped page by page, and the maps of two tiles may share a
    page. It has room for all tiles, but holds, and takes from the disk, those of that process only.
    """

    path: Path
    shape: tuple[int, int, int]

    def write(self, rank: int, indices: Sequence[int], maps: Tensor) -> None:
        path = own_path(self.path, rank)
        mapped = np.memmap(path, np.float32, "r+" if path.exists() else "w+", shape=self.shape)
        mapped[list(indices)] = maps.detach().float().cpu().numpy()
        mapped.flush()

    def read(self, rank: int, index: int) -> Values:
        return np.array(np.memmap(own_path(self.path, rank), np.float32, "r", shape=self.shape)[index])

    def remove(self) -> None:
        for path in own_paths(self.path):
            path.unlink()


def explain_slide(
    slide: Slide,
    model: nn.Module,
    plan: SlidePlan,
    out: str | Path,
    polygons: Polygons | None = None,
    surrogate: Surrogate | None = None,
    command: str = "smoothsal_lib slide",
    progress: bool = False,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Run detector and explanation over the tissue of a slide.

    Writes into ``out``:

    - ``heatmap.ome.tif``, a pyramid with the channels ``saliency`` (raw values, one pixel a unit of the layer, nothing
      rescaled), ``probability`` (see :meth:`Detector.probability`, the nearest position's) and ``coverage`` (1 where a
      tile was explained, 0 elsewhere). Its pixel size and its upper left corner lay it on the slide; units sit at
      their cells' corners in a ResNet, and the position in the OME-XML says by how much that moves the map.
    - ``overview.png``, the saliency over the slide, with the tumour's outlines where there are any.
    - ``summary.json``, what was done, what was skipped and why, with settings and versions.

    Finished tiles lie in ``out`` until all are; the same call goes on where a killed one stopped, and ends with the
    same files. Memory does not grow with the slide, but for some hundred bytes a tile.

    Args:
        slide: from :func:`smoothsal_lib.datasets.slides.open_slide`.
        model: a network on pictures that went through :func:`smoothsal_lib.models.normalize`; fully convolutional, or
            with global pooling. It is left as it was.
        plan: what is wanted.
        out: the folder; it is made.
        polygons: outlines from :func:`smoothsal_lib.datasets.slides.load_annotations`, for the overview.
        surrogate: for the fix of that name.
        command: what goes into the summary.
        progress: draw a bar on stderr, in the process that leads: over its own share of the tiles.
        team: the processes that share the tiles; the leader puts them together. See
            :func:`smoothsal_lib.parallel.joined`.

    Returns:
        The summary, in every process.

    Raises:
        ValueError: for a slide without tissue, a folder with tiles of other settings, a missing surrogate, a layer with
            other strides down than right, or as :func:`probe`, :func:`smoothsal_lib.datasets.slides.tile_grid` and
            :func:`smoothsal_lib.explain`.
        ConnectionError: when a server fails, or another process of the team has ended; the same call goes on from
            there.
    """
    if (plan.fix == "surrogate") != (surrogate is not None):
        raise ValueError(f"fix {plan.fix!r} and {'no' if surrogate is None else 'a'} surrogate do not go together")
    out = Path(out)
    sample = probe(model, plan)
    down, right = sample.layer.stride
    if down != right:
        raise ValueError(f"the layer has different strides down and right, {down} and {right}: no square pixels")
    mask = tissue_mask(slide, plan.mask) if plan.mask else None
    grid = tile_grid(slide, plan.tile, plan.overlap, plan.mpp, mask, sample.stride)
    if not grid.tiles:
        raise ValueError(f"no tissue on {slide.name!r}: a mask of 0 pixels takes all tiles")
    view = probe(model, plan, grid.size)
    reach = view.answer.shape[2] * view.answer.stride[1]
    if len(grid.tiles) > 1 and plan.tile - plan.overlap > reach and view.answer.shape[2] > 1:
        raise ValueError(
            f"overlap = {plan.overlap} leaves gaps between the answers of this {type(model).__name__}, which looks "
            f"through windows: give at least {plan.tile - reach} pixels"
        )
    settings = {"slide": slide.name, "dimensions": slide.dimensions, "slide_mpp": slide.mpp, **asdict(plan)}
    settings |= {"model": type(model).__name__, "weights": fingerprint(model, surrogate), "tiles": len(grid.tiles)}
    ledger = Ledger(out / "tiles.partial.jsonl", settings, team)
    mosaics = [
        Mosaic(grid, layer.shape[1:], layer.stride, layer.offset, plan.rim_pixels)
        for layer in (view.layer, view.answer)
    ]
    stores = [
        _Store(out / f"{name}.partial", (len(grid.tiles), *mosaic.units))
        for name, mosaic in zip(CHANNELS, mosaics, strict=False)
    ]
    like = next(model.parameters())
    batches = [grid.tiles[i : i + plan.batch] for i in range(0, len(grid.tiles), plan.batch)]
    own = team.share([number for number in range(len(batches)) if str(number) not in ledger])
    hidden = not (progress and team.leads)
    for number in tqdm(own, "tiles", unit="batch", file=sys.stderr, disable=hidden):
        read, damaged = _read(slide, batches[number], grid)
        if read:
            x = normalize(torch.stack(list(read.values())).to(like) / 255)
            for store, maps in zip(stores, view.maps(model, x, plan, surrogate), strict=True):
                store.write(team.rank, list(read), maps)
        ledger.add(str(number), {"by": team.rank, "damaged": damaged})
    ledger.gather(str(number) for number in range(len(batches)))
    if not team.leads:
        return team.tell({})
    pieces = ledger.pieces
    skipped = {int(index): reason for piece in pieces.values() for index, reason in piece["damaged"].items()}
    makers = {
        tile.index: int(pieces[str(number)]["by"])
        for number, batch in enumerate(batches)
        for tile in batch
        if tile.index not in skipped
    }
    if len(skipped) == len(grid.tiles):
        raise ValueError(f"none of {len(skipped)} tiles of {slide.name!r} can be read: {next(iter(skipped.values()))}")
    summary = {
        **_provenance(command, like.device),
        "settings": settings,
        "tiles": len(grid.tiles),
        "explained": len(grid.tiles) - len(skipped),
        "skipped": [
            {"tile": i, "x": grid.tiles[i].x, "y": grid.tiles[i].y, "reason": skipped[i]} for i in sorted(skipped)
        ],
        **_write_heatmap(out / HEATMAP, slide, mosaics, stores, makers),
        "positions": view.positions,
        "local_probability": view.detector.dense or view.detector.layer is not None,
        "percentile_of_overview": PERCENTILE,
    }
    _write_overview(out / PICTURE, slide, out / HEATMAP, mosaics[0], polygons or {})
    (out / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    ledger.remove()  # first: maps without a ledger are made anew, but a ledger without its maps could not go on
    for store in stores:
        store.remove()
    return team.tell(summary)


def _read(slide: Slide, batch: Sequence[Tile], grid: Grid) -> tuple[dict[int, Tensor], dict[str, str]]:
    """The pictures of some tiles, and why there are none of the others."""
    read, skipped = {}, {}
    for tile in batch:
        try:
            read[tile.index] = slide.read(tile.x, tile.y, grid.size, mpp=grid.mpp)
        except DamagedTileError as error:
            skipped[str(tile.index)] = str(error)
    return read, skipped


def _provenance(command: str, device: torch.device) -> dict[str, Any]:
    found = provenance(command, device)
    libraries = {name: version(name) for name in ("tiffslide", "tifffile")}
    return found | {"versions": {**found["versions"], **libraries}}  # type: ignore[dict-item]


def _write_heatmap(
    path: Path, slide: Slide, mosaics: Sequence[Mosaic], stores: Sequence[_Store], makers: Mapping[int, int]
) -> dict[str, Any]:
    """Write the OME-TIFF of the tiles that these processes made; returns what the summary says of it."""
    saliency, probability = mosaics

    def stored(store: _Store, index: int) -> Values | None:
        return store.read(makers[index], index) if index in makers else None

    def block(top: int, left: int, height: int, width: int) -> Values:
        values, covered = saliency.block(partial(stored, stores[0]), top, left, height, width)
        pixels = [
            saliency.offset[axis] + saliency.stride[axis] * np.arange(first, first + count)
            for axis, first, count in ((0, top, height), (1, left, width))
        ]
        near, own = (
            [probability.nearest(axis, pixels[axis], rounded) for axis in (0, 1)] for rounded in (np.rint, np.floor)
        )
        first = [int(min(a[0], b[0])) for a, b in zip(near, own, strict=True)]
        count = [int(max(a[-1], b[-1])) + 1 - low for a, b, low in zip(near, own, first, strict=True)]
        part, seen = probability.block(partial(stored, stores[1]), *first, *count)
        at, instead = (np.ix_(units[0] - first[0], units[1] - first[1]) for units in (near, own))
        # Behind the last tile with tissue the nearest unit may be that of a tile that is not there.
        return np.stack([values, np.where(seen[at], part[at], part[instead]) * covered, covered])

    down = saliency.stride[0]
    mpp = None if slide.mpp is None else slide.mpp * saliency.grid.scale
    # A cell of the map reaches from -1/2 to stride - 1/2; its unit is centred at the offset.
    shift = [(offset - (down - 1) / 2) * (mpp or 0) for offset in saliency.offset]
    size = (len(CHANNELS), *saliency.shape)
    write_pyramid(path, block, size, mpp and mpp * down, CHANNELS, offset=(shift[0], shift[1]), dtype="float32")
    return {
        "channels": CHANNELS,
        "heatmap": size,
        "heatmap_mpp": mpp and mpp * down,
        "pixels_of_level_0": saliency.grid.scale * down,
        "offset_micrometres": None if mpp is None else shift,
    }


def _write_overview(path: Path, slide: Slide, heatmap: Path, mosaic: Mosaic, polygons: Polygons) -> None:
    """Draw the saliency over the slide."""
    import matplotlib.pyplot as plt
    import tifffile

    from smoothsal_lib import plot

    seen = overview(slide, LONGEST)
    with tifffile.TiffFile(heatmap) as file:
        levels = file.series[0].levels
        number = next((i for i, level in enumerate(levels) if max(level.shape[1:]) <= LONGEST), len(levels) - 1)
        values = levels[number].pages[0].asarray()
    places = []
    for axis, length in enumerate(seen.image.shape[1:]):
        pixels = (np.arange(length) + 0.5) * seen.scale / mosaic.grid.scale - 0.5
        places.append(np.minimum(mosaic.nearest(axis, pixels) >> number, values.shape[axis] - 1))
    photo = seen.image.permute(1, 2, 0).numpy()
    shown = torch.from_numpy(values[np.ix_(*places)])
    figure = plot.overlay(photo, {"saliency": shown}, percentile=PERCENTILE, interpolation="nearest")
    height, width = (side * seen.scale for side in photo.shape[:2])
    for polygon in (one for group in polygons.values() for one in group):
        closed = np.vstack([polygon, polygon[:1]])
        figure.axes[0].plot(closed[:, 0] / width, closed[:, 1] / height, color="0.1", lw=1.2)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m smoothsal_lib slide``."""
    default = SlidePlan(INPUT)
    made = argparse.ArgumentParser(
        prog="python -m smoothsal_lib slide",
        description="Run detector and explanation over a whole slide. Finished tiles lie in --out until all are done; "
        "the same command goes on where a killed one stopped, with any number of processes under torchrun.",
    )
    made.add_argument("slide", help="a TIFF or SVS file, or its http address")
    made.add_argument("--out", type=Path, required=True, help=f"the folder for {HEATMAP}, {PICTURE} and {SUMMARY}")
    made.add_argument("--model", default="tissue_resnet", help="a name for load_model (default: %(default)s)")
    made.add_argument("--weights", type=Path, help="file of the Camelyon16 detector that MONAI publishes, for --model")
    made.add_argument("--layer", required=True, help="of the network, or input")
    made.add_argument("--method", default=default.method, help=f"out of {', '.join(METHODS)} (default: %(default)s)")
    made.add_argument("--baseline", default=default.baseline, help="of DeepLift: glass, or mean for photographs' grey")
    made.add_argument("--fix", default=default.fix, help=f"out of none, {', '.join(NAMES)}, surrogate")
    made.add_argument("--surrogate", type=Path, help="file of a fitted surrogate (default: the embedded one)")
    made.add_argument("--class", dest="target", type=int, help="to explain, where the network has several")
    made.add_argument("--reduce", default=default.reduce, help=f"out of {', '.join(REDUCTIONS)} (default: %(default)s)")
    made.add_argument("--mpp", type=float, default=default.mpp, help="micrometres a pixel (default: %(default)s)")
    made.add_argument("--slide-mpp", type=float, help="those of the slide's finest level, where it does not say")
    made.add_argument("--tile", type=int, default=default.tile, help="pixels a side (default: %(default)s)")
    made.add_argument("--overlap", type=int, default=default.overlap, help="in pixels (default: %(default)s)")
    made.add_argument("--rim", type=int, help="pixels of it that are left to the neighbour (default: 3/8)")
    made.add_argument("--batch", type=int, default=default.batch, help="tiles at once (default: %(default)s)")
    made.add_argument("--mask", type=int, default=default.mask, help="longer side of the tissue mask; 0: all tiles")
    made.add_argument("--annotations", type=Path, help="XML file of ASAP, drawn in the overview")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m smoothsal_lib slide``; ``--help`` lists the options."""
    options = parser().parse_args(argv)
    chosen = {name: getattr(options, name) for name in asdict(SlidePlan(INPUT))}
    with joined(options.device) as (team, device):
        plan = SlidePlan(**chosen)
        polygons = load_annotations(options.annotations) if options.annotations else {}
        model = load_camelyon_model(options.weights) if options.weights else load_model(options.model)
        model = model.to(device)
        surrogate = None
        if plan.fix == "surrogate":
            if options.weights and not options.surrogate:
                raise ValueError("no surrogate of other weights ships with the library: give --surrogate")
            surrogate = Surrogate.load(options.surrogate) if options.surrogate else load_surrogate(options.model)
            surrogate = surrogate.to(device)
        words = [
            f"--{'class' if name == 'target' else name} {value}" for name, value in chosen.items() if value is not None
        ]
        words += ["--surrogate", options.surrogate.name] if options.surrogate else []
        words += [f"--slide-mpp {options.slide_mpp}"] if options.slide_mpp else []
        words += ["--annotations", options.annotations.name] if options.annotations else []
        network = f"--weights {options.weights.name}" if options.weights else f"--model {options.model}"
        with open_slide(options.slide, options.slide_mpp) as slide:
            command = " ".join(["smoothsal_lib slide", slide.name, network, *words])
            summary = explain_slide(slide, model, plan, options.out, polygons, surrogate, command, True, team)
    if not team.leads:
        return
    print(f"{summary['explained']} of {summary['tiles']} tiles explained: {options.out / HEATMAP}")
    for one in summary["skipped"]:
        print(f"skipped tile {one['tile']} at ({one['x']:.0f}, {one['y']:.0f}): {one['reason']}")
