"""Every cell of extract & aggregate at every depth, with and without the repairs, and layers combined.

python -m smoothsal_lib.experiments.extract_aggregate --data FOLDER --out data/results
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from smoothsal_lib.capture import Capture, capture, logits_of
from smoothsal_lib.combine import combine, localisation_weights, spread_weights
from smoothsal_lib.contributions import AGGREGATIONS, EXTRACTIONS, extract_aggregate
from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.experiments.command import options, save
from smoothsal_lib.experiments.estimate import estimate
from smoothsal_lib.extract import resize_map
from smoothsal_lib.fixes import Fix, smoothed
from smoothsal_lib.layers import HiddenLayer, hidden_layers
from smoothsal_lib.metrics import checkerboard_energy, total_variation
from smoothsal_lib.metrics.localisation import TOLERANCE, box_share, energy_in_box, pointing_game
from smoothsal_lib.metrics.similarity import rank_correlation
from smoothsal_lib.models import load_model, load_surrogate, normalize

LAYERS = ("relu", "layer1.1", "layer2.1", "layer3.1", "layer4.1")  # the ends of the stem and of the four stages
CELLS = tuple(product([name for name in EXTRACTIONS if name != "weights"], AGGREGATIONS))
GRAD_CAM = ("grad_cam", "grad_cam")  # no cell, but the kin of scaling + sum that everyone knows
NONE = "none"
COMBINED = ("product", "geometric", "geometric_by_spread", "geometric_by_localisation")

Cell = tuple[str, str]
Key = tuple[str, Cell, str]  # fix, cell, layer or combination
Values = dict[str, Tensor]  # measure -> one number an image


def maps_of(found: Capture, cells: Sequence[Cell] = (*CELLS, GRAD_CAM)) -> dict[tuple[Cell, str], Tensor]:
    """The map (N, h, w) of every cell at every layer that was captured."""
    maps: dict[tuple[Cell, str], Tensor] = {}
    for layer, gradient in found.gradients.items():
        activation = found.activations[layer]
        for cell in cells:
            if cell == GRAD_CAM:
                averaged = gradient.mean((2, 3), keepdim=True).expand_as(gradient)
                maps[cell, layer] = extract_aggregate(activation, averaged, "scaling", "sum").clamp(min=0)
            else:
                maps[cell, layer] = extract_aggregate(activation, gradient, *cell)
    return maps


def measure(
    model: nn.Module, images: Tensor, boxes: Tensor, repairs: Mapping[str, str | Fix | None], batch: int = 50
) -> dict[Key, Values]:
    """Every measure of every cell, and of every cell's layers combined.

    Maps are those of the class that the repaired network finds most likely; class sensitivity compares them with those
    of the least likely.

    Args:
        model: the network.
        images: uint8 (N, 3, H, W).
        boxes: (N, 4) where the objects are.
        repairs: what the names of fixes stand for.
        batch: images at once.
    """
    device = next(model.parameters()).device
    size = (images.shape[2], images.shape[3])
    parts: dict[Key, list[Values]] = {}
    overlays: dict[tuple[str, Cell, str], list[Tensor]] = {}  # for the combinations, whose weights need all images
    listed: dict[str, HiddenLayer] = {}
    for some, objects in zip(tqdm(images.split(batch), unit="batch", mininterval=2), boxes.split(batch), strict=True):
        x = normalize(some.to(device).float() / 255)
        listed = listed or {name: layer for name, layer in hidden_layers(model, x).items() if name in LAYERS}
        for fix, repair in repairs.items():
            with smoothed(model, repair):
                logits = logits_of(model, x)
                most, least = (maps_of(capture(model, x, LAYERS, t)) for t in (logits.argmax(1), logits.argmin(1)))
            for (cell, layer), maps in most.items():
                values = {"class_sensitivity": rank_correlation(maps, least[cell, layer]).cpu()}
                values["total_variation"] = total_variation(maps[:, None]).cpu()
                if min(maps.shape[1:]) >= 4:
                    values["checkerboard_energy"] = checkerboard_energy(maps[:, None]).cpu()
                values |= _localised(resize_map(maps, size, listed[layer]), objects)
                parts.setdefault((fix, cell, layer), []).append(values)
                overlays.setdefault((fix, cell, layer), []).append(maps.cpu())
    found = {
        key: {name: torch.cat([values[name] for values in group]) for name in group[0]} for key, group in parts.items()
    }
    for fix, cell in dict.fromkeys((fix, cell) for fix, cell, _ in found):
        whole = {layer: torch.cat(overlays[fix, cell, layer]) for layer in LAYERS}
        for how, combined in _combined(
            whole, {layer: found[fix, cell, layer] for layer in LAYERS}, size, listed, boxes
        ):
            found[fix, cell, how] = _localised(combined, boxes)
    return found


def _localised(overlay: Tensor, boxes: Tensor) -> Values:
    tolerance = TOLERANCE * overlay.shape[2]
    return {
        "pointing_game": pointing_game(overlay, boxes, tolerance).cpu(),
        "energy_in_box": energy_in_box(overlay, boxes).cpu(),
    }


def _combined(
    maps: Mapping[str, Tensor],
    measured: Mapping[str, Values],
    size: tuple[int, int],
    listed: Mapping[str, HiddenLayer],
    boxes: Tensor,
) -> Iterator[tuple[str, Tensor]]:
    """Every combination of the layers' maps (N, h, w); weights for even images come from the odd ones, and back."""
    yield "product", combine(maps, size, listed, "product")
    yield "geometric", combine(maps, size, listed, "geometric")
    even = torch.arange(len(boxes)) % 2 == 0
    chance = box_share(boxes, size)
    for how in ("geometric_by_spread", "geometric_by_localisation"):
        whole = torch.empty(len(boxes), *size)
        for half in (even, ~even):
            other = ~half
            if how == "geometric_by_spread":
                weights = spread_weights({name: one[other] for name, one in maps.items()})
            else:
                scores = {name: values["energy_in_box"][other] for name, values in measured.items()}
                weights = localisation_weights(scores, chance[other])
            whole[half] = combine({name: one[half] for name, one in maps.items()}, size, listed, "geometric", weights)
        yield how, whole


def rows(measured: Mapping[Key, Values]) -> Iterator[dict[str, object]]:
    """The rows of the record; changes are those from the same cell and place without a repair.

    A combination has also its difference from the cell's best single layer by the same measure.
    """
    for (fix, cell, place), values in measured.items():
        for name, numbers in values.items():
            plain = measured[NONE, cell, place][name] if fix != NONE else None
            row: dict[str, object] = {
                "fix": fix,
                "extract": cell[0],
                "aggregate": cell[1],
                "layer": place,
                "measure": name,
            }
            row |= estimate(numbers, plain)
            if place in COMBINED:
                singles = {layer: measured[fix, cell, layer][name] for layer in LAYERS}
                best = max(singles, key=lambda layer: float(singles[layer].mean()))
                gain = estimate(numbers, singles[best])
                row |= {"gain": gain["change"], "gain_error": gain["change_error"]}
            yield row


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    arguments = options("extract_aggregate", __doc__, argv, limit=(1000, "measure on so many images"))
    model = load_model("tiny_resnet").to(arguments.device)
    repairs = {
        NONE: None,
        "backward": "backward",
        "forward": "forward",
        "surrogate": load_surrogate("tiny_resnet").to(arguments.device),
    }
    images, _ = tiny_imagenet.load_split("val", arguments.data, arguments.limit)
    boxes = tiny_imagenet.load_boxes("val", arguments.data, arguments.limit)
    measured = measure(model, images, boxes, repairs)
    facts = {
        "tolerance": f"{TOLERANCE:.4f} of the picture's side",
        "chance": estimate(box_share(boxes, (images.shape[2], images.shape[3]))),
        "weights": "of combinations, from the other half of the images",
    }
    save(arguments, len(images), list(rows(measured)), **facts)


if __name__ == "__main__":
    main()
