"""Low-pass filtering the finished map, as FORGrad does, against repairing the network that makes it.

python -m smoothsal_lib.experiments.low_pass --data FOLDER --out data/results
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from tqdm.auto import tqdm

from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.experiments.command import options, save
from smoothsal_lib.experiments.estimate import estimate
from smoothsal_lib.explain import explain
from smoothsal_lib.extract import resize_map, saliency_map
from smoothsal_lib.filters import low_pass
from smoothsal_lib.fixes import Fix
from smoothsal_lib.layers import HiddenLayer, hidden_layers
from smoothsal_lib.metrics import checkerboard_energy, deletion, insertion, total_variation
from smoothsal_lib.metrics.localisation import TOLERANCE, energy_in_box, pointing_game
from smoothsal_lib.models import load_model, load_surrogate, normalize
from smoothsal_lib.precision import fast_autocast, precision

METHODS = ("gradient", "deeplift")
LAYERS = ("layer1.1", "layer2.1", "layer3.1")  # what the strided convolutions are fed
CUTOFFS = {"gaussian": (0.35, 0.22, 0.14, 0.09), "ideal": (0.22, 0.14)}  # cycles per pixel of the layer
NONE = "none"
TUNED_BY = "insertion_minus_deletion"


@dataclass(frozen=True)
class Candidate:
    """One way to a map: how the network is repaired, and how the map is filtered (kind and cut-off, or neither)."""

    repair: str
    kind: str = NONE
    cutoff: float | None = None


@dataclass(frozen=True)
class Contender:
    """A repair with a kind of filter whose cut-off is tuned, or without a filter."""

    repair: str
    kind: str = NONE

    def choices(self) -> list[Candidate]:
        """What tuning chooses from; not to filter is always among it."""
        return [Candidate(self.repair), *(Candidate(self.repair, self.kind, c) for c in CUTOFFS.get(self.kind, ()))]


CONTENDERS = (
    Contender(NONE),
    Contender(NONE, "gaussian"),
    Contender(NONE, "ideal"),
    Contender("backward"),
    Contender("backward", "gaussian"),
    Contender("backward:paper"),
    Contender("surrogate"),
    Contender("surrogate", "gaussian"),
)
CANDIDATES = tuple(dict.fromkeys(choice for contender in CONTENDERS for choice in contender.choices()))
Values = dict[str, Tensor]  # measure -> one number an image


def measure(
    model: nn.Module,
    images: Tensor,
    boxes: Tensor,
    repairs: Mapping[str, str | Fix | None],
    steps: int,
    batch: int = 50,
) -> dict[tuple[str, str, Candidate], Values]:
    """Every measure of every candidate, ``{(method, layer, candidate): {measure: (N,)}}``.

    All maps explain the class that the original network predicts, and are scored on the original network.

    Args:
        model: the network.
        images: uint8 (N, 3, H, W).
        boxes: (N, 4) where the objects are.
        repairs: what the candidates' names stand for.
        steps: of insertion and deletion.
        batch: images that are explained at once.
    """
    device = next(model.parameters()).device
    scorer = fuse(deepcopy(model)).to(memory_format=torch.channels_last)
    parts: dict[tuple[str, str, Candidate], list[Values]] = {}
    for some, objects in zip(tqdm(images.split(batch), unit="batch", mininterval=2), boxes.split(batch), strict=True):
        x = normalize(some.to(device).float() / 255)
        places = hidden_layers(model, x)
        with torch.no_grad():
            target = model(x).argmax(1)
        for method in METHODS:
            for repair, fix in repairs.items():
                for layer, attribution in explain(model, x, target, LAYERS, method, fix).items():
                    candidates = [candidate for candidate in CANDIDATES if candidate.repair == repair]
                    maps = {
                        one: low_pass(attribution, one.cutoff, one.kind) if one.cutoff else attribution
                        for one in candidates
                    }
                    scores = _faithfulness(scorer, x, target, list(maps.values()), steps)
                    for (candidate, one), values in zip(maps.items(), scores, strict=True):
                        values |= _appearance(one, places[layer], x, objects)
                        parts.setdefault((method, layer, candidate), []).append(values)
    return {
        key: {name: torch.cat([values[name] for values in group]) for name in group[0]} for key, group in parts.items()
    }


def _faithfulness(scorer: nn.Module, x: Tensor, target: Tensor, maps: Sequence[Tensor], steps: int) -> list[Values]:
    named = {str(i): one for i, one in enumerate(maps)}
    with fast_autocast(x.device):
        inserted = insertion(scorer, x, named, target, steps)
        deleted = deletion(scorer, x, named, target, steps)
    areas = [(inserted[name].auc.cpu(), deleted[name].auc.cpu()) for name in named]
    return [{"insertion": up, "deletion": down, TUNED_BY: up - down} for up, down in areas]


def _appearance(attribution: Tensor, layer: HiddenLayer, x: Tensor, boxes: Tensor) -> Values:
    overlay = resize_map(saliency_map(attribution), (x.shape[2], x.shape[3]), layer)
    return {
        "total_variation": total_variation(attribution).cpu(),
        "checkerboard_energy": checkerboard_energy(attribution).cpu(),
        "pointing_game": pointing_game(overlay, boxes, TOLERANCE * x.shape[2]).cpu(),
        "energy_in_box": energy_in_box(overlay, boxes).cpu(),
    }


def tuned(contender: Contender, found: Mapping[Candidate, Values]) -> tuple[Values, list[float | None]]:
    """What a contender scores when the even images are filtered as suits the odd ones best, and the other way round.

    Args:
        contender: who.
        found: every measure of its choices.

    Returns:
        The measures, image by image, none of which had a say in its own cut-off; and the two cut-offs, that of the even
        images first.
    """
    choices = contender.choices()
    even = torch.arange(len(found[choices[0]][TUNED_BY])) % 2 == 0
    best = []
    for half in (~even, even):
        averages = [found[one][TUNED_BY][half].mean().item() for one in choices]
        best.append(choices[averages.index(max(averages))])
    values = {name: torch.where(even, found[best[0]][name], found[best[1]][name]) for name in found[choices[0]]}
    return values, [one.cutoff for one in best]


def rows(measured: Mapping[tuple[str, str, Candidate], Values]) -> Iterator[dict[str, object]]:
    """The rows of the record: all candidates, then the contenders, each against those it should beat."""
    for (method, layer, candidate), values in measured.items():
        head: dict[str, object] = {
            "method": method,
            "layer": layer,
            "repair": candidate.repair,
            "filter": candidate.kind,
        }
        plain = measured[method, layer, Candidate(NONE)]
        for name, numbers in values.items():
            yield head | {"cutoff": candidate.cutoff, "measure": name} | estimate(numbers, plain[name])
    for method, layer in dict.fromkeys((method, layer) for method, layer, _ in measured):
        found = {one: values for (*place, one), values in measured.items() if place == [method, layer]}
        results = {contender: tuned(contender, found) for contender in CONTENDERS}
        for contender, (values, cutoffs) in results.items():
            rivals = {
                "unrepaired": Contender(NONE),
                "low_pass": Contender(NONE, "gaussian"),
                "repair_alone": Contender(contender.repair),
            }
            head = {"method": method, "layer": layer, "repair": contender.repair, "filter": contender.kind}
            for name, numbers in values.items():
                row = head | {"cutoff": "tuned", "cutoffs": cutoffs, "measure": name} | estimate(numbers)
                for title, rival in rivals.items():
                    difference = estimate(numbers, results[rival][0][name])
                    row |= {f"from_{title}": difference["change"], f"from_{title}_error": difference["change_error"]}
                yield row


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    counts = {"limit": (200, "measure on so many images"), "steps": (10, "of insertion and deletion")}
    arguments = options("low_pass", __doc__, argv, **counts)
    model = load_model("tiny_resnet").to(arguments.device)
    repairs = {
        NONE: None,
        "backward": "backward",
        "backward:paper": "backward:paper",
        "surrogate": load_surrogate("tiny_resnet").to(arguments.device),
    }
    images, _ = tiny_imagenet.load_split("val", arguments.data, arguments.limit)
    boxes = tiny_imagenet.load_boxes("val", arguments.data, arguments.limit)
    measured = measure(model, images, boxes, repairs, arguments.steps)
    facts = {
        "scored_on": f"the original network, in {precision(arguments.device)}",
        "tuning": f"cut-off of the best {TUNED_BY} on the other half of the images",
    }
    save(arguments, len(images), list(rows(measured)), steps=arguments.steps, **facts)


if __name__ == "__main__":
    main()
