"""Does the map of each of two classes show its own object? Two objects in a picture, the maps of both compared.

python -m smoothsal_lib.experiments.discriminativity --data FOLDER --out data/results

Two validation images stand side by side in a picture that the network has never seen the like of, and both their
classes are explained. Where the network does not see both objects, no map could show them: only those pairs are kept
whose classes are its first choices, and the record says how many that are. Everything is measured with signs and
without (``reduce``). Methods that take many passes are measured on fewer pairs, the first ones, and compared on these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from smoothsal_lib.capture import logits_of
from smoothsal_lib.datasets.pairs import Pairs, load_pairs, ranks
from smoothsal_lib.evaluate import fingerprint
from smoothsal_lib.experiments.command import options, save
from smoothsal_lib.experiments.estimate import estimate
from smoothsal_lib.explain import explain
from smoothsal_lib.extract import on_picture, saliency_map
from smoothsal_lib.layers import INPUT, HiddenLayer, hidden_layers
from smoothsal_lib.ledger import Ledger
from smoothsal_lib.metrics.discriminativity import discriminativity, own_object
from smoothsal_lib.metrics.sanity import random_maps
from smoothsal_lib.models import load_model, normalize
from smoothsal_lib.sampling import SmoothGrad

NONE, RANDOM = "none", "random"
INTEGRATED = "integrated_gradients"
METHODS = (
    "gradient",
    "gradient_x_activation",
    "guided_backprop",
    "deeplift",
    INTEGRATED,
    "grad_cam",
    "layer_cam",
    "linear_approximation",
    "normgrad",
)
SAMPLED = ("gradient", "guided_backprop", "deeplift")  # also averaged over noisy copies of the picture
LAYERS = (INPUT, "layer1.1", "layer2.1", "layer3.1", "layer4.1")
FIXES = {NONE: None, "backward": "backward"}
REDUCTIONS = ("mean", "abs_mean")
MEASURES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "discriminativity": discriminativity,
    "own_object": own_object,
}
BATCH = 25  # pairs, explained at once for both classes
STEPS = 16  # of integrated gradients
SMOOTHGRAD = SmoothGrad(n=50, noise=0.15, batch=2 * BATCH)
SAMPLINGS = {NONE: None, "smoothgrad": SMOOTHGRAD}
REPORTED = (1, 2, 3, 5, 10, 20)  # on how many pictures both classes are among so many first choices


@dataclass(frozen=True)
class Case:
    """One way to a map."""

    method: str
    sampling: str = NONE
    fix: str = NONE

    @property
    def key(self) -> str:
        """The case in the ledger."""
        return "/".join((self.method, self.sampling, self.fix))


CASES = (
    Case(RANDOM),
    *(Case(method, NONE, fix) for method, fix in product(METHODS, FIXES)),
    *(Case(method, "smoothgrad", fix) for method, fix in product(SAMPLED, FIXES)),
)
Quantity = tuple[str, str, str]  # layer, reduce, measure
Values = dict[Quantity, Tensor]  # one number a pair


def prepared(images: Tensor, model: nn.Module) -> Tensor:
    """Pictures uint8 (N, 3, H, W) as the network takes them, on its device."""
    device = next(model.parameters()).device
    return normalize(images.to(device).float() / 255).contiguous(memory_format=torch.channels_last)


def seen(model: nn.Module, pairs: Pairs, batch: int = 100) -> Tensor:
    """(P, 2): the place of both classes among the network's choices; see :func:`smoothsal_lib.datasets.pairs.ranks`."""
    parts = tqdm(pairs.images.split(batch), desc="what is seen", unit="batch", leave=False, mininterval=2)
    logits = torch.cat([logits_of(model, prepared(some, model)).cpu() for some in parts])
    return ranks(logits, pairs.classes)


def attributed(
    model: nn.Module, x: Tensor, classes: Tensor, case: Case, places: Mapping[str, HiddenLayer], seed: int
) -> dict[str, Tensor]:
    """``{layer: (2 N, C, h, w)}``: what the left object's class says of N pictures, then the right one's."""
    if case.method == RANDOM:
        sizes = {name: places[name].shape[1:] if name in places else (x.shape[2], x.shape[3]) for name in LAYERS}
        return {name: random_maps(x.new_empty((2 * len(x), 1, *size)), seed) for name, size in sizes.items()}
    both, target = torch.cat([x, x]), classes.T.flatten().to(x.device)
    fix, sampling = FIXES[case.fix], SAMPLINGS[case.sampling]
    return explain(model, both, target, LAYERS, case.method, fix, steps=STEPS, sampling=sampling)


def scores(attributions: Mapping[str, Tensor], boxes: Tensor, places: Mapping[str, HiddenLayer]) -> Values:
    """All measures of the maps at the size of the picture.

    Args:
        attributions: of :func:`attributed`.
        boxes: (N, 2, 4) where the left and the right object are.
        places: where the units of the hidden layers stand.
    """
    size = (attributions[INPUT].shape[2], attributions[INPUT].shape[3])
    left, right = boxes.to(attributions[INPUT].device).unbind(1)
    found: Values = {}
    for (layer, attribution), reduce in product(attributions.items(), REDUCTIONS):
        maps = on_picture(saliency_map(attribution, reduce), size, places.get(layer))
        of_left, of_right = maps.chunk(2)
        for name, score in MEASURES.items():
            found[layer, reduce, name] = score(of_left, of_right, left, right)
    return found


def measure(model: nn.Module, pairs: Pairs, counts: Mapping[Case, int], ledger: Ledger) -> dict[Case, Values]:
    """All measures of all cases, beginning with what is not in the ledger yet.

    Args:
        model: the network.
        pairs: pictures with two objects.
        counts: on how many of the pictures a case is measured.
        ledger: where partial results go.
    """
    places = hidden_layers(model, prepared(pairs.images[:1], model))
    starts = range(0, len(pairs), BATCH)
    pieces = [(start, case) for start in starts for case, count in counts.items() if start < count]
    found: dict[Case, dict[Quantity, list[float]]] = {case: {} for case in counts}
    for start, case in tqdm(pieces, desc="maps", unit="piece", leave=False, mininterval=2):
        stop = min(start + BATCH, counts[case])
        key = f"{start}-{stop}/{case.key}"  # a run with other counts finds again what it has in common with this one
        if key not in ledger:
            some = pairs[start:stop]
            attributions = attributed(model, prepared(some.images, model), some.classes, case, places, start)
            values = scores(attributions, some.boxes, places)
            ledger.add(key, [[*quantity, numbers.tolist()] for quantity, numbers in values.items()])
        for layer, reduce, name, numbers in ledger.pieces[key]:
            found[case].setdefault((layer, reduce, name), []).extend(numbers)
    return {case: {key: torch.tensor(numbers) for key, numbers in values.items()} for case, values in found.items()}


def rows(measured: Mapping[Case, Values]) -> Iterator[dict[str, object]]:
    """The rows of the record: with a fix, compared to none; sampled, to the single pass on the same pairs."""
    for case, values in measured.items():
        for (layer, reduce, name), numbers in values.items():
            plain = measured[replace(case, fix=NONE)][layer, reduce, name] if case.fix != NONE else None
            row = asdict(case) | {"layer": layer, "reduce": reduce, "measure": name, "n": len(numbers)}
            row |= estimate(numbers, plain)
            if case.sampling != NONE:
                once = measured[replace(case, sampling=NONE)][layer, reduce, name][: len(numbers)]
                difference = estimate(numbers, once)
                row |= {"from_one_pass": difference["change"], "from_one_pass_error": difference["change_error"]}
            yield row


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    numbers = {
        "limit": (1000, "measure on so many pairs"),
        "integrated": (100, "integrated gradients on so many of these"),
        "sampled": (50, "SmoothGrad on so many of these"),
        "top": (2, "both classes must be among so many first choices of the network"),
    }
    arguments = options("discriminativity", __doc__, argv, **numbers)
    model = load_model("tiny_resnet").to(arguments.device).to(memory_format=torch.channels_last)
    candidates = load_pairs(arguments.data)
    choices = seen(model, candidates)
    qualified = (choices <= arguments.top).all(1)
    if not bool(qualified.any()):
        raise ValueError(f"no picture has both classes among the first {arguments.top}: give a larger --top")
    pairs = candidates[qualified][: arguments.limit]
    fewer = {case: arguments.sampled for case in CASES if case.sampling != NONE}
    fewer |= {Case(INTEGRATED, NONE, fix): arguments.integrated for fix in FIXES}
    counts = {case: min(len(pairs), fewer.get(case, len(pairs))) for case in CASES}
    settings = {
        "steps": STEPS,
        "smoothgrad": {"n": SMOOTHGRAD.n, "noise": SMOOTHGRAD.noise, "seed": SMOOTHGRAD.seed},
        "top": arguments.top,
        "batch": BATCH,
        "weights": fingerprint(model),
    }
    ledger = Ledger(arguments.out / f"{arguments.name}.partial.jsonl", settings)
    found = list(rows(measure(model, pairs, counts, ledger)))
    facts = {
        "data": "tiny-imagenet-100, validation, two images side by side",
        "candidates": len(candidates),
        "both_among_first": {k: int((choices <= k).all(1).sum()) for k in REPORTED},
        "top": arguments.top,
        "steps": STEPS,
        "smoothgrad": settings["smoothgrad"],
    }
    save(arguments, len(pairs), found, **facts)
    ledger.remove()
    for row in found:
        if row["measure"] == "discriminativity":
            case = f"{row['method']:22} {row['sampling']:11} {row['fix']:9} {row['layer']:9} {row['reduce']:9}"
            print(f"{case} {row['mean']:.3f} ± {row['error']:.3f}")


if __name__ == "__main__":
    main()
