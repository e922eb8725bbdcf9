"""The tumour detectors as Smooth Deep Saliency measures its own on Camelyon16: noise, cost of a repair, faithfulness.

python -m smoothsal_lib.experiments.detectors --data FOLDER --out data/results

Two detectors on tissue that neither has seen: the generated one, and that of GlaS's test patients. All maps explain the
one logit, tumour; those of the segmenter, of which noise alone is measured, its mean logit of tumour where there is
tumour. Insertion and deletion are scored on the unrepaired network, by its sigmoid, on patches that are tumour and that
it calls so: what a map of a repaired network says of the original.

Errors are those over patients for generated tissue. GlaS's test set has too few patients with tumour for an error over
them: there they are over pictures, and speak for other pictures of the same patients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from smoothsal_lib.capture import Layers
from smoothsal_lib.datasets import glas, tissue
from smoothsal_lib.datasets.patches import GLASS, Patches, pictures
from smoothsal_lib.datasets.stains import separate
from smoothsal_lib.evaluate import OUTPUT, fingerprint
from smoothsal_lib.experiments.command import options, save
from smoothsal_lib.experiments.discriminativity import prepared
from smoothsal_lib.experiments.estimate import estimate
from smoothsal_lib.explain import explain
from smoothsal_lib.fixes import Fix, Surrogate
from smoothsal_lib.layers import INPUT, hidden_layers
from smoothsal_lib.ledger import Ledger
from smoothsal_lib.metrics import checkerboard_energy, deletion, insertion, total_variation
from smoothsal_lib.metrics.detection import auc, auc_interval
from smoothsal_lib.metrics.fidelity import prediction_difference
from smoothsal_lib.metrics.sanity import random_maps
from smoothsal_lib.models import DenseResNet, load_model, load_surrogate
from smoothsal_lib.precision import fast_autocast, precision
from smoothsal_lib.training.detector import CLASSES, TEST_SEED
from smoothsal_lib.training.fidelity import all_logits

NONE, RANDOM, HEMATOXYLIN, INTEGRATED = "none", "random", "hematoxylin", "integrated_gradients_from_glass"
TARGET = 0  # the only logit
FROM_GLASS = "_from_glass"  # a method that compares with bare glass instead of with the mean colour of photographs
METHODS = ("gradient", "deeplift_from_glass")
SCORED = (INPUT, "layer1.1", "layer2.1", "layer3.1", "layer4.1")  # by insertion and deletion
SEGMENTER = "tissue_segmenter"
LAST = "layer4.1"  # where Grad-CAM is usually taken
STEPS, PATH = 14, 16  # of insertion and deletion, and of integrated gradients
BATCH = 25
GROUPS = ("true_positive", "false_positive", "false_negative", "true_negative")


@dataclass(frozen=True)
class Source:
    """A detector by name, and the tissue that it is measured on.

    Attributes:
        network: its name for ``load_model`` and ``load_surrogate``.
        data: the tissue, in words.
        patches: so many of them, from the data folder where they lie there.
        clusters: (N,) integers, equal for patches that are no independent cases.
        clustered_by: what these have in common.
    """

    network: str
    data: str
    patches: Callable[[Path | None, int], Patches]
    clusters: Callable[[Patches], Tensor]
    clustered_by: str


def evenly(places: Tensor, count: int) -> Tensor:
    """So many of the places (N,), evenly spread; all of them where there are no more."""
    if count >= len(places):
        return places
    return places[torch.linspace(0, len(places) - 1, count, dtype=torch.float64).round().long()]


def _of_glas(folder: Path | None, count: int) -> Patches:
    patches = glas.patches(folder, split="test")
    return patches[evenly(torch.arange(len(patches)), count)]


SOURCES = (
    Source(
        "tissue_resnet",
        f"generated tissue, seed {TEST_SEED}",
        lambda _, count: tissue.patches(count, seed=TEST_SEED),
        lambda patches: patches.patients,
        "patient",
    ),
    Source("glas_resnet", "GlaS, test patients", _of_glas, pictures, "picture"),
)


@dataclass(frozen=True, eq=False)
class Detector:
    """A detector, its repairs and its tissue. Made by :func:`detectors`.

    Attributes:
        source: where both come from.
        model: the network.
        fixes: its repairs by name, ``"none"`` first.
        patches: N of them.
        clusters: (N,) which patches belong together.
        groups: ``{one of GROUPS: (N,) bool}``.
    """

    source: Source
    model: nn.Module
    fixes: Mapping[str, str | Fix | None]
    patches: Patches
    clusters: Tensor
    groups: Mapping[str, Tensor]

    @property
    def weights(self) -> str:
        """See :func:`weights_of`."""
        return weights_of(self.model, self.fixes)

    @property
    def facts(self) -> dict[str, str | int]:
        """What the head of a record says of it."""
        sizes = {name: int(members.sum()) for name, members in self.groups.items()}
        people = {
            f"patients_{name}": len(self.patches.patients[members].unique()) for name, members in self.groups.items()
        }
        return {
            "data": self.source.data,
            "patches": len(self.patches),
            "patients": len(self.patches.patients.unique()),
            "errors_over": self.source.clustered_by,
            "clusters": len(self.clusters.unique()),
            **sizes,
            **people,
        }


def detectors(folder: Path | None, count: int, device: torch.device | str) -> Iterator[Detector]:
    """The detectors of :data:`SOURCES`, each with so many patches.

    Args:
        folder: where data lies; ``None`` means the environment variable ``SMOOTHSAL_DATA``.
        count: how many patches of each source, all of them where it has no more.
        device: where the networks go.
    """
    # All networks first: that one of them is missing should be known before the others are measured.
    networks = [repairable(one.network, device) for one in SOURCES]
    for source, (model, fixes) in zip(SOURCES, networks, strict=True):
        patches = source.patches(folder, count)
        groups = grouped(patches.labels, all_logits(model, patches.images, None))
        yield Detector(source, model, fixes, patches, source.clusters(patches), groups)


def weights_of(model: nn.Module, fixes: Mapping[str, str | Fix | None]) -> str:
    """The first digits of a hash over a network's weights and its surrogate's."""
    return fingerprint(model, *(fix for fix in fixes.values() if isinstance(fix, Surrogate)))


def repairable(name: str, device: torch.device | str) -> tuple[nn.Module, dict[str, str | Fix | None]]:
    """An embedded network and its repairs by name, ``"none"`` first."""
    model, surrogate = load_model(name), load_surrogate(name)
    for network in (model, surrogate):
        network.to(device).to(memory_format=torch.channels_last)
    return model, {NONE: None, "backward": "backward", "forward": "forward", "surrogate": surrogate}


def grouped(labels: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """``{one of GROUPS: (N,) bool}``, from labels (N,) and logits (N, 1), tumour being called above 0."""
    actual, called = labels > 0, logits[:, 0] > 0
    parts = (actual & called, ~actual & called, actual & ~called, ~actual & ~called)
    return dict(zip(GROUPS, parts, strict=True))


def hematoxylin(images: Tensor) -> Tensor:
    """(N, H, W) how much there is of the dye that colours nuclei: a map that no network has a part in."""
    return separate(images)[:, 0]


@dataclass(frozen=True)
class Quantity:
    """What is measured of every patch.

    Attributes:
        measure: its name.
        layer: where, or ``"output"``.
        fix: how the network is repaired.
        method: how the maps were made; ``None`` where there are none.
    """

    measure: str
    layer: str
    fix: str
    method: str | None = None


Values = dict[Quantity, Tensor]  # one number a patch
Kind = TypeVar("Kind")


def in_pieces(
    patches: Patches,
    ledger: Ledger,
    key: str,
    kind: Callable[..., Kind],
    measure: Callable[[Patches, int], Mapping[Kind, Tensor]],
) -> dict[Kind, Tensor]:
    """Measure patches batch by batch, except what the ledger has already.

    Args:
        patches: all N.
        ledger: where the numbers of each batch go.
        key: what begins the name of each of these pieces.
        kind: the dataclass of what is measured.
        measure: from some patches and the number of the first of them, to one number a patch.

    Returns:
        ``{what: (N,) float64}``.
    """
    parts: dict[Kind, list[float]] = {}
    for start in tqdm(range(0, len(patches), BATCH), desc=key, unit="batch", leave=False, mininterval=2):
        some = patches[start : start + BATCH]
        piece = f"{key}/{start}-{start + len(some)}"
        if piece not in ledger:
            numbers = measure(some, start)
            ledger.add(piece, [[asdict(one), _digits(values)] for one, values in numbers.items()])  # type: ignore[call-overload]
        for axes, values in ledger.pieces[piece]:
            parts.setdefault(kind(**axes), []).extend(values)
    # A measure that some batches lack would be that of other patches than its neighbours in the table.
    assert all(len(values) == len(patches) for values in parts.values())
    return {one: torch.tensor(values, dtype=torch.float64) for one, values in parts.items()}


def _digits(values: Tensor) -> list[float]:
    """Six of them; NaN stays."""
    return [float(f"{value:.6g}") for value in values.double().tolist()]


def attributed(
    model: nn.Module,
    x: Tensor,
    target: int,
    layers: Layers,
    method: str,
    fix: Fix | str | None,
    region: Tensor | None = None,
) -> dict[str, Tensor]:
    """:func:`smoothsal_lib.explain`, for which a method that ends in :data:`FROM_GLASS` compares with glass."""
    baseline = GLASS if method.endswith(FROM_GLASS) else None
    name = method.removesuffix(FROM_GLASS)
    return explain(model, x, target, layers, name, fix, baseline, steps=PATH, region=region)


def noise(
    model: nn.Module, fixes: Mapping[str, str | Fix | None], methods: Sequence[str], some: Patches, start: int = 0
) -> Values:
    """Total variation and checkerboard energy of the attributions at every layer.

    A segmenter explains why it sees tumour where there is tumour.
    """
    x, found = prepared(some.images, model), Values()
    layers = (INPUT, *hidden_layers(model, x))
    target, region = TARGET, None
    if isinstance(model, DenseResNet):
        target, region = CLASSES.index("tumour"), some.masks["tumour"]
    for fix, repair in fixes.items():
        for method in methods:
            maps = attributed(model, x, target, layers, method, repair, region)
            for layer, one in maps.items():
                found[Quantity("total_variation", layer, fix, method)] = total_variation(one).cpu()
                if min(one.shape[2:]) >= 4:  # it is not defined for maps of fewer than two cells a side
                    found[Quantity("checkerboard_energy", layer, fix, method)] = checkerboard_energy(one).cpu()
    return found


def faithfulness(model: nn.Module, fixes: Mapping[str, str | Fix | None], some: Patches, start: int) -> Values:
    """Insertion and deletion on the unrepaired network, of the maps of all networks and of the baselines."""
    x = prepared(some.images, model)
    maps = {
        Quantity("", INPUT, NONE, RANDOM): random_maps(x[:, 0], start),
        Quantity("", INPUT, NONE, HEMATOXYLIN): hematoxylin(some.images).to(x),
        Quantity("", INPUT, NONE, INTEGRATED): attributed(model, x, TARGET, INPUT, INTEGRATED, None)[INPUT],
    }
    for fix, repair in fixes.items():
        for method in METHODS:
            for layer, one in attributed(model, x, TARGET, SCORED, method, repair).items():
                maps[Quantity("", layer, fix, method)] = one
        maps[Quantity("", LAST, fix, "grad_cam")] = explain(model, x, TARGET, LAST, "grad_cam", repair)[LAST]
    found = Values()
    named = {str(i): one for i, one in enumerate(maps.values())}
    with fast_autocast(x.device):
        inserted = insertion(model, x, named, TARGET, STEPS, activation="sigmoid")
        deleted = deletion(model, x, named, TARGET, STEPS, activation="sigmoid")
    for key, up, down in zip(maps, inserted.values(), deleted.values(), strict=True):
        areas = {"insertion": up.auc, "deletion": down.auc, "insertion_minus_deletion": up.auc - down.auc}
        found |= {replace(key, measure=name): area.cpu() for name, area in areas.items()}
    return found


def rows(values: Mapping[Quantity, Tensor], clusters: Tensor) -> Iterator[dict[str, object]]:
    """The rows of the record of what has one number a patch: with a fix, compared to none.

    Args:
        values: (N,) each.
        clusters: (N,) which patches belong together.
    """
    for one, numbers in values.items():
        plain = values[replace(one, fix=NONE)] if one.fix != NONE else None
        row: dict[str, object] = {name: axis for name, axis in asdict(one).items() if axis is not None}
        yield row | {"n": len(numbers)} | estimate(numbers, plain, clusters)


def kept(
    labels: Tensor, logits: Mapping[str, Tensor], clusters: Tensor, resamples: int = 2000
) -> Iterator[dict[str, object]]:
    """The rows of what a repair keeps of the detector: AUC, accuracy, and the change of its probabilities.

    Args:
        labels: (N,) 1 where there is tumour.
        logits: ``{fix: (N, 1)}``.
        clusters: (N,) which patches belong together.
        resamples: of the bootstrap over clusters, between whose bounds ``low`` and ``high`` 95 % of the AUCs lie.
    """
    plain, actual, values = logits[NONE][:, 0], labels > 0, Values()
    bounds = partial(auc_interval, labels=actual, patients=clusters, resamples=resamples)
    for fix, one in logits.items():
        scores = one[:, 0]
        areas = {"mean": auc(scores, actual)} | dict(zip(("low", "high"), bounds(scores), strict=True))
        if fix != NONE:
            areas["change"] = areas["mean"] - auc(plain, actual)
            areas |= zip(("change_low", "change_high"), bounds(scores, before=plain), strict=True)
        rounded = {name: float(f"{value:.6g}") for name, value in areas.items()}
        yield {"measure": "auc", "layer": OUTPUT, "fix": fix, "n": len(labels)} | rounded
        measured: dict[str, Any] = {
            "accuracy": (scores > 0) == actual,
            "agreement": (scores > 0) == (plain > 0),
            "prediction_difference": prediction_difference(logits[NONE], one, activation="sigmoid"),
        }
        values |= {Quantity(name, OUTPUT, fix): numbers.double() for name, numbers in measured.items()}
    yield from rows(values, clusters)


def measure(detector: Detector, ledger: Ledger, counts: Mapping[str, int]) -> Iterator[dict[str, object]]:
    """All rows of one detector.

    Args:
        detector: whose.
        ledger: where partial results go.
        counts: on how many patches ``noise``, ``integrated`` and ``score`` are measured.
    """
    model, fixes, patches = detector.model, detector.fixes, detector.patches
    logits = {fix: all_logits(model, patches.images, repair) for fix, repair in fixes.items()}
    yield from kept(patches.labels, logits, detector.clusters)
    everywhere, called = torch.arange(len(patches)), detector.groups["true_positive"].nonzero()[:, 0]
    parts: dict[str, tuple[Tensor, Callable[[Patches, int], Values]]] = {
        "noise": (everywhere, partial(noise, model, fixes, METHODS)),
        "integrated": (everywhere, partial(noise, model, fixes, (INTEGRATED,))),
        "score": (called, partial(faithfulness, model, fixes)),
    }
    for name, (places, run) in parts.items():
        chosen = evenly(places, counts[name])
        key = f"{detector.source.network}/{name}"
        yield from rows(in_pieces(patches[chosen], ledger, key, Quantity, run), detector.clusters[chosen])


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    counts = {
        "patches": (800, "take so many of each source"),
        "noise": (200, "total variation and checkerboard energy on so many of these"),
        "integrated": (50, "and of integrated gradients on so many"),
        "score": (75, "insertion and deletion on so many tumour patches that are called so"),
    }
    arguments = options("detectors", __doc__, argv, **counts)
    given = {name: getattr(arguments, name) for name in counts}
    found: list[dict[str, object]] = []
    facts, ledgers = {}, []
    segmenter, repairs = repairable(SEGMENTER, arguments.device)
    for detector in detectors(arguments.data, arguments.patches, arguments.device):
        name = detector.source.network
        settings = given | {
            "steps": STEPS,
            "path": PATH,
            "batch": BATCH,
            "seed": TEST_SEED,
            "weights": detector.weights,
        }
        ledgers.append(Ledger(arguments.out / f"{arguments.name}.{name}.partial.jsonl", settings))
        found += [{"network": name} | row for row in measure(detector, ledgers[-1], given)]
        facts[name] = detector.facts
        if name == SOURCES[0].network:
            chosen = evenly((detector.patches.labels > 0).nonzero()[:, 0], arguments.noise)
            run = partial(noise, segmenter, repairs, METHODS)
            values = in_pieces(detector.patches[chosen], ledgers[-1], f"{SEGMENTER}/noise", Quantity, run)
            found += [{"network": SEGMENTER} | row for row in rows(values, detector.clusters[chosen])]
    save(
        arguments,
        sum(int(one["patches"]) for one in facts.values()),
        found,
        model=", ".join([*facts, SEGMENTER]),
        data="; ".join(source.data for source in SOURCES),
        detectors=facts,
        steps=STEPS,
        path=PATH,
        scored_on=f"the unrepaired network, by its sigmoid, in {precision(arguments.device)}",
    )
    for ledger in ledgers:
        ledger.remove()
    for row in found:
        if row["measure"] in ("auc", "total_variation", "insertion_minus_deletion"):
            case = f"{row['network']:14} {row.get('method', ''):21} {row['fix']:10} {row['layer']:9}"
            print(f"{case} {row['measure']:25} {row['mean']:.3f}")


if __name__ == "__main__":
    main()
