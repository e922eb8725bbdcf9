"""How local are hidden units, where does locality break, and how should a map be brought to the size of the picture?

python -m smoothsal_lib.experiments.locality --data FOLDER --out data/results

Three questions, the three values of ``question`` in the record:

- ``field``: which part of the picture moves the unit in its middle, by gradient and by occlusion? Every number stands
  beside that of a unit that reads a single pixel, and of one that reads all pixels alike.
- ``square``: when a small square of the picture is covered, a map of the activation's change should show the square.
  How far from it does the map's centre of mass lie, once brought to the picture's size?
- ``overlay``: what does that do to maps that explain a class, and to their scores by the objects' boxes?

Fields and squares are measured with trained and with random weights, which know nothing of places: with random weights
a unit sits where ``HiddenLayer.offset`` says, by symmetry, so that whatever differs with trained ones was learnt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from smoothsal_lib.capture import record_activations
from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.evaluate import OUTPUT, TRAINED
from smoothsal_lib.experiments.command import options, save
from smoothsal_lib.experiments.estimate import estimate
from smoothsal_lib.explain import explain
from smoothsal_lib.extract import RESIZINGS, resize_map, saliency_map
from smoothsal_lib.fixes import smoothed
from smoothsal_lib.fixes.recalibration import recalibrate
from smoothsal_lib.layers import HiddenLayer, hidden_layers
from smoothsal_lib.metrics.localisation import TOLERANCE, box_share, energy_in_box, pointing_game
from smoothsal_lib.metrics.locality import Field, effective_receptive_field, occlusion_response, shift
from smoothsal_lib.metrics.sanity import randomised
from smoothsal_lib.models import load_model, normalize

RANDOM, NORMALISED = "random", "random, normalised"
WEIGHTS = (TRAINED, RANDOM, NORMALISED)
POINT, UNIFORM = "point", "uniform"  # what the fields stand beside
MEASURED = "measured"
MODES = (*RESIZINGS, MEASURED)
COMPARED = {"aligned": ("nearest", "bilinear"), MEASURED: RESIZINGS}  # what each mode should beat, by:
SCORES = ("distance", "pointing_game", "pointing_game_tolerant", "energy_in_box")
CHANNELS = 24  # of a layer, whose gradients are measured
PATCH, PATCH_STRIDE = 9, 4  # of occlusion; odd, so that places of the patch lie symmetrically around a unit
SQUARE = 8  # side of the square that is covered; of its centre, how far from the picture's it may lie:
ROAM = 16
PLACES = 2  # of the square in every batch, each with its three mirror images
BATCH = 10  # images that share random weights, and places of the square
SIDES = (64, 128)  # of the pictures in which squares are covered
OVERLAYS = {  # name: method and reduction of channels
    "gradient": ("gradient", "mean"),
    "gradient magnitude": ("gradient", "abs_mean"),
    "grad_cam": ("grad_cam", "mean"),
}
FIX = "backward"


@dataclass(frozen=True)
class Case:
    """What a number was measured on: the axes of the record."""

    question: str
    weights: str
    method: str
    layer: str
    measure: str
    mode: str | None = None  # how a map was brought to the picture's size


Values = dict[Case, list[Tensor]]  # one number an image, batch by batch; with random weights one number a draw of them
Offsets = Mapping[str, tuple[float, float]]  # layer -> how far below and to the right of its place a unit looks


def add(values: Values, case: Case, numbers: Tensor) -> None:
    """Add the numbers of one batch, one an image; those that share random weights count once, by their mean."""
    values.setdefault(case, []).append(numbers if case.weights == TRAINED else numbers.nanmean()[None])


@contextmanager
def weighted(model: nn.Module, weights: str, x: Tensor, seed: int) -> Iterator[None]:
    """Inside the block, the network has its own weights or random ones.

    Random weights alone leave every residual branch weak, and a unit little more than a copy of what is below it.
    ``"random, normalised"`` has batch-norm statistics estimated from ``x``, as a network has when its training begins.
    """
    with ExitStack() as stack:
        if weights != TRAINED:
            stack.enter_context(randomised(model, "", seed))
        if weights == NORMALISED:
            stack.enter_context(smoothed(model, recalibrate(model, None, x)))
        yield


def summary(field: Field, stride: int) -> dict[str, Tensor]:
    """What is recorded of a field, each (N,), in input pixels or as a share; NaN where the unit depends on nothing."""
    centroid = field.centroid()
    return {
        "spread": field.spread(),
        "off_down": centroid[:, 0],
        "off_right": centroid[:, 1],
        "within_stride": field.within(stride),
        "within_8": field.within(8),
    }


def reach(field: Field) -> Tensor:
    """(N,) how far along either axis the farthest pixel lies on which the unit depends at all; NaN where on none."""
    distance = torch.maximum(field.rows.abs()[:, None], field.columns.abs())
    seen = field.values > 0
    return (distance * seen).amax((1, 2)).masked_fill(~seen.any(2).any(1), torch.nan)


def references(field: Field, patch: int) -> dict[str, Field]:
    """The fields, at the same places, of a unit that reads the pixel at its centre alone, and of one that reads all.

    Args:
        field: whose places are taken.
        patch: side of what covers the picture at each place; 1 for single pixels.
    """
    touched = (field.rows.abs() < patch / 2)[:, None] & (field.columns.abs() < patch / 2)
    alike = {POINT: touched[None].to(field.values), UNIFORM: torch.ones_like(field.values[:1])}
    return {name: Field(one, field.rows, field.columns) for name, one in alike.items()}


def fields(values: Values, model: nn.Module, x: Tensor, layers: Mapping[str, HiddenLayer], weights: str) -> None:
    """Add the fields of one batch, by gradient and by occlusion."""
    at = (x.shape[2] // 2, x.shape[3] // 2)  # where layers of every stride have a unit, if the stride divides it
    patches = {"gradient": 1, "occlusion": PATCH}
    found = {
        "gradient": effective_receptive_field(model, x, layers, at, CHANNELS),
        "occlusion": occlusion_response(model, x, layers, PATCH, PATCH_STRIDE, at),
    }
    for method, by_layer in found.items():
        for name, field in by_layer.items():
            for kind, one in {weights: field, **references(field, patches[method])}.items():
                measured = summary(one, layers[name].stride[0])
                if method == "gradient":
                    measured["reach"] = reach(one)
                for measure, numbers in measured.items():
                    add(values, Case("field", kind, method, name, measure), numbers)


def offsets(values: Values, layers: Mapping[str, HiddenLayer]) -> dict[str, Offsets]:
    """``{weights: {layer: (down, right)}}``, how far from its place a unit looks: its gradient's centre of mass."""
    found: dict[str, Offsets] = {}
    for weights in WEIGHTS:
        means = {
            name: [
                torch.cat(values[Case("field", weights, "gradient", name, measure)]).nanmean().item()
                for measure in ("off_down", "off_right")
            ]
            for name in layers
        }
        found[weights] = {name: (down, right) for name, (down, right) in means.items()}
    return found


def resized(maps: Tensor, size: tuple[int, int], layer: HiddenLayer, mode: str, off: tuple[float, float]) -> Tensor:
    """Maps (N, h, w) at the picture's size; ``"measured"`` puts every unit where it looks, ``off`` from its place."""
    if mode == MEASURED:
        moved = replace(layer, offset=(layer.offset[0] + off[0], layer.offset[1] + off[1]))
        return resize_map(maps, size, moved, "aligned")
    return resize_map(maps, size, layer, mode)


def places(size: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """Top left corners of squares in the middle of a picture: ``PLACES`` random ones with their three mirror images.

    A map that is not local has its centre of mass near the middle of the picture. Mirror images pull it there from both
    sides, so that in their mean the pull cancels and a displacement stays.
    """
    last = size - SQUARE  # of the corners inside the picture
    lowest = last / 2 - ROAM
    corners = []
    for _ in range(PLACES):
        top, left = (int(lowest + n) for n in torch.randint(2 * ROAM + 1, (2,), generator=generator).tolist())
        corners += [(row, column) for row in (top, last - top) for column in (left, last - left)]
    return corners


def follows(off: Tensor, squares: Tensor) -> Tensor:
    """(N,) how many pixels the centre of mass moves when the square moves by one: 1 for a local map, 0 for a blind one.

    Args:
        off: (P, N, 2), from the square to the centre of mass, at P places.
        squares: (P, 2), where the square was.
    """
    squares = squares[:, None] - squares.mean(0)
    moved = squares + off - off.mean(0)
    return (squares * moved).sum((0, 2)) / squares.square().sum()


def squares(
    values: Values,
    model: nn.Module,
    x: Tensor,
    layers: Mapping[str, HiddenLayer],
    weights: str,
    off: Offsets,
    generator: torch.Generator,
) -> None:
    """Add, for one batch, how far from a covered square the map of the change lies: mean over channels of |change|."""
    size = (x.shape[2], x.shape[3])
    corners = places(size[0], generator)
    middles = torch.tensor(corners, dtype=x.dtype) + (SQUARE - 1) / 2
    pixels = torch.arange(size[0], dtype=x.dtype, device=x.device)
    before = record_activations(model, x, list(layers))
    found: dict[tuple[str, str], list[Tensor]] = {}
    for (top, left), (row, column) in zip(corners, middles.tolist(), strict=True):
        covered = x.clone()
        covered[:, :, top : top + SQUARE, left : left + SQUARE] = 0
        for name, activation in record_activations(model, covered, list(layers)).items():
            change = saliency_map(activation - before[name], "abs_mean")
            for mode in MODES:
                overlay = Field(resized(change, size, layers[name], mode, off[name]), pixels - row, pixels - column)
                found.setdefault((name, mode), []).append(overlay.centroid())
    for (name, mode), parts in found.items():
        away = torch.stack(parts)
        measured = {
            "off_down": away[:, :, 0].mean(0),
            "off_right": away[:, :, 1].mean(0),
            "distance": away.norm(dim=2).mean(0),
            "follows": follows(away, middles.to(away)),
        }
        for measure, numbers in measured.items():
            add(values, Case("square", weights, f"square in {size[0]} px", name, measure, mode), numbers)


def overlays(
    values: Values, model: nn.Module, x: Tensor, boxes: Tensor, layers: Mapping[str, HiddenLayer], off: Offsets
) -> None:
    """Add the scores of one batch's maps by boxes (N, 4), and how far the modes lie from each other."""
    size = (x.shape[2], x.shape[3])
    with torch.no_grad():
        target = model(x).argmax(1)
    add(values, Case("overlay", TRAINED, "chance", OUTPUT, "box_share"), box_share(boxes, size))
    attributions = {
        method: explain(model, x, target, list(layers), method, FIX)
        for method in dict.fromkeys(method for method, _ in OVERLAYS.values())
    }
    for title, (method, reduce) in OVERLAYS.items():
        for name, layer in layers.items():
            found = saliency_map(attributions[method][name], reduce)
            maps = {mode: resized(found, size, layer, mode, off[name]) for mode in MODES}
            for mode, one in maps.items():
                measured = {
                    "pointing_game": pointing_game(one, boxes),
                    "pointing_game_tolerant": pointing_game(one, boxes, TOLERANCE * size[0]),
                    "energy_in_box": energy_in_box(one, boxes),
                }
                if mode == "aligned":
                    for against in COMPARED[mode]:
                        moved = shift(maps[against], one)
                        measured |= {f"down_from_{against}": moved[:, 0], f"right_from_{against}": moved[:, 1]}
                for measure, numbers in measured.items():
                    add(values, Case("overlay", TRAINED, title, name, measure, mode), numbers)


def enlarged(x: Tensor, side: int) -> Tensor:
    """Square pictures with mirrored borders around them, up to ``side`` pixels: the same content, the edge far away."""
    before = (side - x.shape[2]) // 2
    after = side - x.shape[2] - before
    return F.pad(x, (before, after, before, after), "reflect") if side > x.shape[2] else x


def measure(model: nn.Module, images: Tensor, boxes: Tensor, some: int) -> Values:
    """All measures.

    Args:
        model: the network.
        images: uint8 (N, 3, H, W), square.
        boxes: (N, 4) where the objects are.
        some: fields of units in so many of the images, and squares in so many others.
    """
    device = next(model.parameters()).device

    def normalised(chosen: Tensor) -> Tensor:
        return normalize(chosen.to(device).float() / 255).contiguous(memory_format=torch.channels_last)

    values: Values = {}
    layers = hidden_layers(model, normalised(images[:1]))
    spread = torch.tensor(tiny_imagenet.evenly(len(images), some))
    parts = images[spread].split(BATCH)
    for seed, part in enumerate(tqdm(parts, desc="fields", unit="batch", leave=False, mininterval=2)):
        x = normalised(part)
        for weights in WEIGHTS:
            with weighted(model, weights, x, seed):
                fields(values, model, x, layers, weights)
    off = offsets(values, layers)

    parts = images[(spread + 1) % len(images)].split(BATCH)  # others than those that said where units look
    for seed, part in enumerate(tqdm(parts, desc="squares", unit="batch", leave=False, mininterval=2)):
        for side in SIDES:
            x = enlarged(normalised(part), side)
            here = hidden_layers(model, x)
            for weights in WEIGHTS:
                generator = torch.Generator().manual_seed(seed)  # the same places for all
                with weighted(model, weights, x, seed):
                    squares(values, model, x, here, weights, off[weights], generator)

    batches = list(zip(images.split(50), boxes.split(50), strict=True))
    for part, objects in tqdm(batches, desc="overlays", unit="batch", leave=False, mininterval=2):
        overlays(values, model, normalised(part), objects.to(device), layers, off[TRAINED])
    return values


def rows(values: Mapping[Case, Sequence[Tensor]]) -> Iterator[dict[str, object]]:
    """One row a case; ``n`` counts images, or draws of random weights.

    Images without a value are left out: where a unit depends on nothing, or a map is constant.

    Fields stand beside ``if_point`` and ``if_uniform``, what a unit would have that reads one pixel or all alike; the
    modes beside those they should beat, with the paired difference and its error.
    """
    numbers = {case: torch.cat(list(parts)).cpu() for case, parts in values.items()}
    for case, found in numbers.items():
        if case.weights in (POINT, UNIFORM):
            continue
        known = ~found.isnan()
        if not known.any():
            continue
        row: dict[str, object] = {
            "question": case.question,
            "weights": case.weights,
            "method": case.method,
            "layer": case.layer,
            "measure": case.measure,
        }
        if case.mode is not None:
            row["mode"] = case.mode
        row |= {"n": int(known.sum()), **estimate(found[known])}
        if case.question == "field":
            for name in (POINT, UNIFORM):
                row[f"if_{name}"] = estimate(numbers[replace(case, weights=name)])["mean"]
        for against in COMPARED.get(case.mode or "", ()) if case.measure in SCORES else ():
            difference = estimate(found, numbers[replace(case, mode=against)])
            row |= {f"from_{against}": difference["change"], f"from_{against}_error": difference["change_error"]}
        yield row


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    counts = {"limit": (500, "overlays of so many images"), "some": (100, "fields, and squares, of so many of these")}
    arguments = options("locality", __doc__, argv, **counts)
    model = load_model("tiny_resnet").to(arguments.device).to(memory_format=torch.channels_last)
    images, _ = tiny_imagenet.load_split("val", arguments.data, arguments.limit)
    boxes = tiny_imagenet.load_boxes("val", arguments.data, arguments.limit)
    found = list(rows(measure(model, images, boxes, arguments.some)))
    layers = hidden_layers(model, normalize(images[:1].to(arguments.device).float() / 255))
    facts = {
        "some": min(arguments.some, len(images)),
        "channels": CHANNELS,
        "occlusion": {"patch": PATCH, "stride": PATCH_STRIDE},
        "square": SQUARE,
        "fix": FIX,
        "pointing_game_tolerance": TOLERANCE * images.shape[2],
        "strides": {name: layer.stride[0] for name, layer in layers.items()},
    }
    save(arguments, len(images), found, **facts)
    for row in found:
        if row["measure"] in ("spread", "distance", "energy_in_box"):
            case = (
                f"{row['weights']:18} {row['method']:18} {row['layer']:8} {row['measure']:13} {row.get('mode', ''):8}"
            )
            print(f"{case} {row['mean']:.3f} ± {row['error']:.3f}")


if __name__ == "__main__":
    main()
