"""Does the surrogate explain the original, as its maps are taken to do, and if not always, when?

python -m smoothsal_lib.experiments.surrogate_explains --data FOLDER --out data/results

The surrogate is a network of its own, fitted to the original. Its maps are scored on both networks, and so are the
original's: if they explain the original, they score there as the original's own maps do, and lose nothing by the move.
Then the maps themselves are compared. "none" and "backward" stand for the maps of the original, the latter repaired
without touching its predictions, so that the grid does not count as a difference. How similar is similar say the maps
of the original for its second class, and for another image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from smoothsal_lib.capture import logits_of, record_activations
from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.evaluate import OUTPUT
from smoothsal_lib.experiments.command import options, save
from smoothsal_lib.experiments.estimate import estimate
from smoothsal_lib.explain import explain
from smoothsal_lib.extract import saliency_map
from smoothsal_lib.fixes import Fix, smoothed
from smoothsal_lib.metrics.faithfulness import deletion, insertion
from smoothsal_lib.metrics.fidelity import agreement, prediction_difference, probabilities
from smoothsal_lib.metrics.sanity import random_maps
from smoothsal_lib.metrics.similarity import rank_correlation
from smoothsal_lib.models import load_model, load_surrogate, normalize
from smoothsal_lib.precision import fast_autocast, precision

METHODS = ("gradient", "deeplift")
LAYERS = ("layer1.1", "layer2.1", "layer3.1", "layer4.0")  # what the strided convolutions are fed; and no stride above
STEPS = 14  # of insertion and deletion
NONE, BACKWARD, SURROGATE, RANDOM = "none", "backward", "surrogate", "random"  # whose maps
ORIGINAL = "original"  # where they are scored: there, or on the network that the surrogate makes of it
SECOND_CLASS, ANOTHER_IMAGE = ", second class", ", another image"  # behind the name of the maps they are compared with
SIMILARITY = {
    "rank_correlation": "mean",
    "rank_correlation_magnitude": "abs_mean",
}  # measure -> how channels are reduced
ALL = "all"


@dataclass(frozen=True)
class Quantity:
    """What is measured of every image.

    Attributes:
        measure: its name.
        layer: where, or ``"output"``.
        method: how the maps were made; ``None`` where there are none.
        maps: whose.
        against: the maps that they are compared with.
        scored_on: the network that insertion and deletion ask.
    """

    measure: str
    layer: str
    method: str | None = None
    maps: str | None = None
    against: str | None = None
    scored_on: str | None = None


Values = dict[Quantity, Tensor]  # one number an image
AGREEMENT = Quantity("agreement", OUTPUT)
DIFFERENCE = Quantity("prediction_difference", OUTPUT)
CONFIDENCE = Quantity("confidence", OUTPUT)


def dealt(labels: Tensor) -> Tensor:
    """An order in which every class gives its first image, then every class its second and so on, like cards.

    The first so many images then come from all classes alike, and neighbours are of different classes.
    """
    turn = torch.empty_like(labels)
    for label in labels.unique():
        mine = labels == label
        turn[mine] = torch.arange(int(mine.sum()))
    return turn.argsort(stable=True)


def predictions(original: Tensor, other: Tensor) -> Values:
    """What became of the predictions: logits (N, classes) of both networks."""
    return {
        AGREEMENT: agreement(original, other).float(),
        DIFFERENCE: prediction_difference(original, other),
        CONFIDENCE: probabilities(original).amax(1),
    }


def activations(model: nn.Module, x: Tensor, fix: str | Fix | None) -> Values:
    """Distance of the repaired network's activation from the original's, by the length of the latter."""
    before = record_activations(model, x, LAYERS)
    with smoothed(model, fix):
        after = record_activations(model, x, LAYERS)
    return {
        Quantity("activation_error", layer): (after[layer] - a).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1)
        for layer, a in before.items()
    }


def similarities(method: str, found: dict[str, dict[str, Tensor]], second: dict[str, dict[str, Tensor]]) -> Values:
    """How alike the maps of one batch are.

    Args:
        method: how they were made.
        found: ``{whose: {layer: attribution (N, C, h, w)}}`` for the predicted class.
        second: the same for the second class, of the original's maps.
    """
    values: Values = {}
    for layer in LAYERS:
        for measure, reduce in SIMILARITY.items():
            maps = {name: saliency_map(some[layer], reduce) for name, some in found.items()}
            pairs = {
                (SURROGATE, NONE): maps[NONE],
                (SURROGATE, BACKWARD): maps[BACKWARD],
                (BACKWARD, NONE): maps[NONE],
            }
            for name, some in second.items():
                pairs[name, name + SECOND_CLASS] = saliency_map(some[layer], reduce)
                pairs[name, name + ANOTHER_IMAGE] = maps[name].roll(1, 0)
            for (name, against), others in pairs.items():
                values[Quantity(measure, layer, method, name, against)] = rank_correlation(maps[name], others)
    return values


def scores(
    model: nn.Module, x: Tensor, target: Tensor, method: str, found: dict[str, dict[str, Tensor]], fix: str | Fix | None
) -> Values:
    """Insertion and deletion of the maps of one batch (``found`` as in :func:`similarities`) on both networks."""
    named = {f"{name}/{layer}": a[: len(x)] for name, some in found.items() for layer, a in some.items()}
    pictures = x.contiguous(memory_format=torch.channels_last)
    values: Values = {}
    for network, repair in ((ORIGINAL, None), (SURROGATE, fix)):
        with smoothed(model, repair), fast_autocast(x.device):  # forward passes only
            curves = {
                "insertion": insertion(model, pictures, named, target, STEPS),
                "deletion": deletion(model, pictures, named, target, STEPS),
            }
        for measure, areas in curves.items():
            for key, curve in areas.items():
                name, layer = key.split("/")
                values[Quantity(measure, layer, method, name, scored_on=network)] = curve.auc
    return values


def measure(model: nn.Module, fix: str | Fix | None, images: Tensor, scored: int, batch: int = 50) -> Values:
    """Everything about uint8 ``images`` (N, 3, H, W), at least two; all maps explain what the original predicts.

    Args:
        model: the original network.
        fix: what makes the other network of it, whose maps are in question: the surrogate.
        images: neighbours are each other's "another image", and should be of different classes (:func:`dealt`).
        scored: insertion and deletion for the first so many.
        batch: images that are explained at once.
    """
    device = next(model.parameters()).device
    parts: dict[Quantity, list[Tensor]] = {}
    begun = 0
    # Parts of almost equal size: the last must not be one image, which would be its own "another image".
    for some in tqdm(images.tensor_split(-(-len(images) // batch)), unit="batch", leave=False, mininterval=2):
        x = normalize(some.to(device).float() / 255)
        original = logits_of(model, x)
        with smoothed(model, fix):
            values = predictions(original, logits_of(model, x))
        values |= activations(model, x, fix)
        first, second = original.topk(2).indices.unbind(1)
        few = max(0, min(scored - begun, len(x)))
        for method in METHODS:
            repairs = {NONE: None, BACKWARD: "backward", SURROGATE: fix}
            found = {name: explain(model, x, first, LAYERS, method, repair) for name, repair in repairs.items()}
            runner_up = {name: explain(model, x, second, LAYERS, method, repairs[name]) for name in (NONE, BACKWARD)}
            values |= similarities(method, found, runner_up)
            if few:
                values |= scores(model, x[:few], first[:few], method, found, fix)
        if few:
            noise = {layer: random_maps(saliency_map(a), begun) for layer, a in found[NONE].items()}
            values |= scores(model, x[:few], first[:few], RANDOM, {RANDOM: noise}, fix)
        for quantity, numbers in values.items():
            parts.setdefault(quantity, []).append(numbers.cpu())
        begun += len(x)
    return {quantity: torch.cat(numbers) for quantity, numbers in parts.items()}


def groups(agrees: Tensor, difference: Tensor) -> dict[str, Tensor]:
    """Which images belong to each group, as masks (N,); the thirds are of equal size, whatever is equal in them.

    Args:
        agrees: (N,) whether the surrogate predicts what the original predicts.
        difference: (N,) by how much their probabilities differ.
    """
    found = {ALL: torch.ones_like(agrees, dtype=torch.bool), "agree": agrees.bool(), "disagree": ~agrees.bool()}
    thirds = difference.argsort(stable=True).tensor_split(3)
    for name, third in zip(("low", "middle", "high"), thirds, strict=True):
        found[f"difference {name}"] = torch.zeros_like(agrees, dtype=torch.bool).index_fill(0, third, True)
    return found


def rivals(one: Quantity) -> dict[str, Quantity]:
    """What a quantity is compared with, image by image: ``{title: quantity}``."""
    if one.scored_on is not None and one.maps != RANDOM:
        return {
            "own": replace(one, maps=BACKWARD),
            "unrepaired": replace(one, maps=NONE),
            "random": replace(one, maps=RANDOM, method=RANDOM),
            "other_network": replace(one, scored_on=ORIGINAL if one.scored_on == SURROGATE else SURROGATE),
        }
    if one.maps == SURROGATE and one.against is not None:
        yardsticks = {"second_class": one.against + SECOND_CLASS, "another_image": one.against + ANOTHER_IMAGE}
        return {title: replace(one, maps=one.against, against=name) for title, name in yardsticks.items()}
    return {}


def rows(measured: Values) -> Iterator[dict[str, object]]:
    """The rows of the record: every quantity in every group, then what goes with what over the images."""
    for group, members in groups(measured[AGREEMENT], measured[DIFFERENCE]).items():
        for one, everything in measured.items():
            inside = members[: len(everything)]  # scored are the first images only
            numbers = everything[inside]
            if len(numbers) == 0:
                continue
            row: dict[str, object] = {"group": group} | {k: v for k, v in asdict(one).items() if v is not None}
            row |= {"n": len(numbers), **estimate(numbers)}
            for title, rival in rivals(one).items():
                difference = estimate(numbers, measured[rival][inside])
                row |= {f"from_{title}": difference["change"], f"from_{title}_error": difference["change_error"]}
            if one.maps == one.scored_on == SURROGATE:
                # A network flatters its own maps: by how much more they beat the original's here than there.
                own, there = rivals(one)["own"], rivals(one)["other_network"]
                ahead = [numbers - measured[own][inside], (measured[there] - measured[rivals(there)["own"]])[inside]]
                advantage = estimate(*ahead)
                row |= {"home_advantage": advantage["change"], "home_advantage_error": advantage["change_error"]}
            yield row
    yield from relations(measured)


def relations(measured: Values) -> Iterator[dict[str, object]]:
    """Which images' maps agree: rank correlations over images with what is known of the two networks.

    With n images, rank correlations of unrelated numbers have a standard deviation of exactly 1/√(n - 1).
    """
    pairs = [(CONFIDENCE, DIFFERENCE)]
    for one in measured:
        if one.maps == SURROGATE and one.against is not None:
            error = Quantity("activation_error", one.layer)
            pairs += [(one, known) for known in (DIFFERENCE, CONFIDENCE, error)]
    for one, known in pairs:
        a, b = measured[one], measured[known]
        if (a == a[0]).all() or (b == b[0]).all():  # as the error is 0 where no stage lies below
            continue
        row: dict[str, object] = {"group": ALL} | {k: v for k, v in asdict(one).items() if v is not None}
        correlation = rank_correlation(a.view(1, 1, -1).double(), b.view(1, 1, -1).double()).item()
        yield row | {
            "with": known.measure,
            "n": len(a),
            "correlation": float(f"{correlation:.6g}"),
            "error_if_unrelated": float(f"{(len(a) - 1) ** -0.5:.6g}"),
        }


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    counts = {"limit": (1000, "measure on so many images"), "score": (200, "insertion and deletion on so many")}
    arguments = options("surrogate_explains", __doc__, argv, **counts)
    model = load_model("tiny_resnet").to(arguments.device).to(memory_format=torch.channels_last)
    surrogate = load_surrogate("tiny_resnet").to(arguments.device).to(memory_format=torch.channels_last)
    images, labels = tiny_imagenet.load_split("val", arguments.data, arguments.limit)
    measured = measure(model, surrogate, images[dealt(labels)], arguments.score)
    found = list(rows(measured))
    facts = {
        "scored": min(arguments.score, len(images)),
        "steps": STEPS,
        "scored_in": precision(arguments.device),
        "explained": "the class that the original network predicts",
    }
    save(arguments, len(images), found, **facts)
    for row in found:
        case = f"{row['group']:17} {row.get('method', ''):8} {row['layer']:8} {row['measure']:26}"
        if "with" in row:
            print(f"{case} {row.get('against', ''):8} with {row['with']:21} {row['correlation']:+.3f}")
        elif row.get("maps") == SURROGATE and row["group"] == ALL:
            versus = "from_own" if "scored_on" in row else "from_second_class"
            other = row.get("scored_on", row.get("against"))
            change = f"{versus} {row[versus]:+.4f} ± {row[f'{versus}_error']:.4f}"
            print(f"{case} {other:9} {row['mean']:.4f} ± {row['error']:.4f}  {change}")


if __name__ == "__main__":
    main()
