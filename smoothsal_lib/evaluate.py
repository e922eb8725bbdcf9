"""Measure explanations on a whole data set: every fix x method x layer x measure, the same images for all.

python -m smoothsal_lib evaluate --images 1000 --fix none backward --method gradient --measure insertion --out FILE

Begun with ``torchrun --nproc-per-node 4 -m smoothsal_lib evaluate`` and the same options, four processes share the
batches; with ``--nnodes`` as well, those of several machines that have the folder of FILE in common. Batches are the
same for any number of processes, so the numbers are, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from smoothsal_lib.capture import logits_of
from smoothsal_lib.datasets.benchmark import BENCHMARKS, Benchmark, open_benchmark
from smoothsal_lib.explain import METHODS, as_method, explain
from smoothsal_lib.extract import on_picture, saliency_map
from smoothsal_lib.fixes import NAMES, Fix, Surrogate, smoothed
from smoothsal_lib.layers import INPUT, HiddenLayer, hidden_layers
from smoothsal_lib.ledger import Ledger
from smoothsal_lib.loading import moved
from smoothsal_lib.metrics import checkerboard_energy, deletion, insertion, road, total_variation
from smoothsal_lib.metrics.fidelity import accuracy, agreement, prediction_difference
from smoothsal_lib.metrics.localisation import TOLERANCE, box_share, energy_in_box, pointing_game
from smoothsal_lib.metrics.sanity import cascade, class_sensitivity, random_maps, randomised
from smoothsal_lib.metrics.similarity import rank_correlation, ssim
from smoothsal_lib.models import EMBEDDED, load_model, load_surrogate
from smoothsal_lib.parallel import joined
from smoothsal_lib.record import provenance
from smoothsal_lib.rise import rise
from smoothsal_lib.sampling import SAMPLINGS, Sampling

Values = dict[str, dict[str, list[float]]]  # measure -> layer -> one number an image

TRAINED = "trained"  # the state of a network whose weights were not re-initialised
OUTPUT = "output"  # stands for the layer where the whole network is measured
FIDELITY = ("top1", "agreement", "prediction_difference", "prediction_difference_label")
NOISE = ("total_variation", "checkerboard_energy")
FAITHFULNESS = ("insertion", "deletion", "road_most", "road_least")
LOCALISATION = ("pointing_game", "energy_in_box", "box_share")
SIMILARITY = ("rank_correlation", "rank_correlation_magnitude", "ssim")  # to the trained, unrepaired network's map
SENSITIVITY = ("class_sensitivity",)
MAPS_OF_OTHERS = ("rise", "random")  # methods that explain does not know
MEASURES = (*FIDELITY, *NOISE, *FAITHFULNESS, *LOCALISATION, *SIMILARITY, *SENSITIVITY)


@dataclass(frozen=True)
class Plan:
    """All that the results of a run depend on.

    Attributes:
        model: a name for :func:`smoothsal_lib.load_model`; what you like for a network of your own.
        data: a name for :func:`smoothsal_lib.datasets.benchmark.open_benchmark`; what you like for images of your own.
        images: how many, spread evenly over the classes; ``None`` for all.
        fixes: ``"none"``, names of fixes, ``"surrogate"``.
        methods: names for :func:`smoothsal_lib.explain`, cells of extract & aggregate such as ``"conv3x3+l2"``,
            ``"rise"``, and ``"random"`` for maps of random numbers.
        layers: names; ``"all"`` stands for all hidden layers, ``"input"`` for the picture.
        measures: out of :data:`MEASURES`.
        score_on: the network that insertion and deletion ask: the ``"original"`` one, or the one ``"repaired"`` by the
            fix under which the maps were made.
        randomise: make the maps also on networks whose weights are re-initialised, cumulatively from the classifier
            down, and score them on the trained one.
        precision: ``"float32"``, or ``"bfloat16"`` for the passes that only score (maps are always made in float32).
        steps: of insertion and deletion.
        masks: of RISE.
        sampling: ``"none"``, or a name for :func:`smoothsal_lib.explain`; RISE and random maps have none.
        looks: how many looks sampling takes.
        noise: of sampling, on pictures or on weights; ``None`` for what the sampling has of its own.
        batch: images that are explained at once, and the piece of work that a kill may cost.
        seed: of random maps, RISE's masks and re-initialised weights.
    """

    model: str = EMBEDDED[0]
    data: str = "tiny-imagenet-100"
    images: int | None = 1000
    fixes: tuple[str, ...] = ("none", "backward")
    methods: tuple[str, ...] = ("gradient",)
    layers: tuple[str, ...] = (INPUT, "all")
    measures: tuple[str, ...] = (*NOISE, "insertion", "deletion")
    score_on: str = "original"
    randomise: bool = False
    precision: str = "float32"
    steps: int = 28
    masks: int = 1000
    sampling: str = "none"
    looks: int = 50
    noise: float | None = None
    batch: int = 50
    seed: int = 0


def evaluate(
    plan: Plan,
    model: nn.Module,
    benchmark: Benchmark,
    ledger: Ledger,
    surrogate: Surrogate | None = None,
    progress: bool = False,
) -> list[dict[str, object]]:
    """Carry out a plan, beginning with what is not in the ledger yet.

    All images are explained for the class that the *original* network predicts, whatever the fix. The processes of the
    ledger's team share what is left, batch by batch.

    Args:
        plan: what to do.
        model: the network, in whatever precision and on whatever device it is to run.
        benchmark: the images.
        ledger: where partial results go.
        surrogate: the fix called ``"surrogate"`` in the plan.
        progress: show a bar, in the process that leads: over its own share.

    Returns:
        One row for every state x fix x method x layer x measure, the same in every process; see :func:`summary`.

    Raises:
        ValueError: for a plan that names something unknown, or asks for a surrogate where there is none.
        ConnectionError: when another process of the team has ended.
    """
    check_plan(plan)
    team = ledger.team
    fixes: dict[str, str | Fix | None] = {}
    if benchmark.boxes is None and any(measure in LOCALISATION for measure in plan.measures):
        raise ValueError(f"{plan.data} has no boxes, which {', '.join(LOCALISATION)} need")
    for name in plan.fixes:
        if name == "surrogate" and surrogate is None:
            raise ValueError(f"the plan asks for a surrogate of {plan.model}, and none was given")
        fixes[name] = None if name == "none" else surrogate if name == "surrogate" else name
    device = next(model.parameters()).device
    indices = benchmark.spread(plan.images)
    batches = [indices[i : i + plan.batch] for i in range(0, len(indices), plan.batch)]
    stages: dict[str, list[str]] = {TRAINED: []} | (cascade(model) if plan.randomise else {})
    pieces = {
        "/".join((str(number), stage, fix, method)): (number, stage, fix, method)
        for number in range(len(batches))
        for stage in stages
        for fix in fixes
        for method in _passes(plan, stage)
    }
    left = list(dict.fromkeys(number for key, (number, *_) in pieces.items() if key not in ledger))
    own = set(team.share(left))
    to_do = [(key, piece) for key, piece in pieces.items() if piece[0] in own and key not in ledger]
    listed = hidden_layers(model, benchmark.images([0]).to(device))
    layers = _layers(plan, listed)
    loaded: tuple[int, Tensor, Tensor] | None = None
    references: dict[str, dict[str, Tensor]] = {}  # of the batch that is loaded
    hidden = not (progress and team.leads)
    for key, (number, stage, fix, method) in tqdm(to_do, unit="piece", disable=hidden, mininterval=2):
        if loaded is None or loaded[0] != number:
            x = moved(benchmark.images(batches[number]), device)
            loaded = number, x, logits_of(model, x)
            references = {}
        _, x, original = loaded
        if method == OUTPUT:
            labels = benchmark.labels[batches[number]].to(device)
            values = _fidelity(plan, model, x, original, labels, fixes[fix])
        else:
            target = original.argmax(1)
            with randomised(model, stages[stage], plan.seed) if stages[stage] else nullcontext():
                attributions = _attributions(plan, model, x, target, layers, method, fixes[fix])
            values = _measured(plan, model, x, target, attributions, fixes[fix])
            if benchmark.boxes is not None:
                values |= _localised(plan, attributions, benchmark.boxes[batches[number]].to(device), x, listed)
            if any(measure in SIMILARITY for measure in plan.measures):
                if method not in references:
                    here = stage == TRAINED and fixes[fix] is None
                    plain = attributions if here else _attributions(plan, model, x, target, layers, method, None)
                    references[method] = plain
                values |= _compared(plan, attributions, references[method], x, listed)
            if stage == TRAINED and method not in MAPS_OF_OTHERS and "class_sensitivity" in plan.measures:
                sampling = sampling_of(plan)
                sensitivity = class_sensitivity(model, x, layers, method, fixes[fix], sampling=sampling)
                values["class_sensitivity"] = {name: _numbers(one) for name, one in sensitivity.items()}
        ledger.add(key, values)
    ledger.gather(pieces)
    groups = ["/".join(group) for number, *group in pieces.values() if number == 0]
    return team.tell(summary(ledger, groups) if team.leads else [])


def check_plan(plan: Plan) -> None:
    """Refuse a plan that names something unknown, in one line, before anything is computed.

    Raises:
        ValueError: with the offending value and what would be right.
    """
    known = {
        "fixes": ("none", *NAMES, "surrogate"),
        "sampling": ("none", *SAMPLINGS),
        "measures": MEASURES,
        "score_on": ("original", "repaired"),
        "precision": ("float32", "bfloat16"),
    }
    for field, choices in known.items():
        given = getattr(plan, field)
        for value in (given,) if isinstance(given, str) else given:
            if value not in choices:
                raise ValueError(f"unknown {field} {value!r}: choose out of {', '.join(choices)}")
    for method in plan.methods:
        if method not in MAPS_OF_OTHERS:
            as_method(method)
    sampling_of(plan)
    for field, what in {"images": "images", "steps": "steps", "masks": "masks", "batch": "images"}.items():
        count = getattr(plan, field)
        if count is not None and count < 1:
            raise ValueError(f"{field} = {count} is not a number of {what}: give 1 or more")


def sampling_of(plan: Plan) -> Sampling | None:
    """The sampling that a plan asks for.

    Raises:
        ValueError: for looks or noise that it cannot have.
    """
    if plan.sampling == "none":
        return None
    kind = SAMPLINGS[plan.sampling]
    has = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    settings: dict[str, Any] = {"seed": plan.seed} if "seed" in has else {}
    settings["n" if "n" in has else "steps"] = plan.looks
    if plan.noise is not None:
        level = next((name for name in ("noise", "weight_noise") if name in has), None)
        if level is None:
            raise ValueError(f"noise = {plan.noise}: the sampling {plan.sampling!r} has none to set")
        settings[level] = plan.noise
    return kind(**settings)


def _passes(plan: Plan, stage: str) -> list[str]:
    """What is done under one fix: every method, and the network's own outputs where they are asked for."""
    fidelity = stage == TRAINED and any(measure in FIDELITY for measure in plan.measures)
    methods = list(plan.methods) if any(measure not in FIDELITY for measure in plan.measures) else []
    return [OUTPUT] * fidelity + methods


def _layers(plan: Plan, listed: Mapping[str, HiddenLayer]) -> list[str]:
    """The plan's layers with ``"all"`` spelled out, in the order given, none of them twice."""
    names = [name for given in plan.layers for name in (listed if given == "all" else [given])]
    return list(dict.fromkeys(names))


def _fidelity(
    plan: Plan, model: nn.Module, x: Tensor, original: Tensor, labels: Tensor, fix: str | Fix | None
) -> Values:
    with smoothed(model, fix):
        repaired = logits_of(model, x)
    measures: dict[str, Callable[[], Tensor]] = {
        "top1": lambda: accuracy(repaired, labels),
        "agreement": lambda: agreement(original, repaired),
        "prediction_difference": lambda: prediction_difference(original, repaired),
        "prediction_difference_label": lambda: prediction_difference(original, repaired, labels),
    }
    return {name: {OUTPUT: _numbers(measures[name]())} for name in FIDELITY if name in plan.measures}


def _attributions(
    plan: Plan,
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    layers: Sequence[str],
    method: str,
    fix: str | Fix | None,
) -> dict[str, Tensor]:
    """What one method says of a batch: {layer: (N, C, H, W)}."""
    if method == "rise":
        with smoothed(model, fix), _scoring(plan, x):
            return {INPUT: rise(model, x, target, plan.masks, seed=plan.seed)}
    if method == "random":  # one number a position, as the map that insertion would rank pixels by
        shapes = explain(model, x, target, layers, "gradient", fix)
        return {name: random_maps(saliency_map(a), plan.seed)[:, None] for name, a in shapes.items()}
    return explain(model, x, target, layers, method, fix, sampling=sampling_of(plan))


def _measured(
    plan: Plan,
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    attributions: dict[str, Tensor],
    fix: str | Fix | None,
) -> Values:
    """Every measure of maps that the plan asks for."""
    found: Values = {}
    if "total_variation" in plan.measures:
        found["total_variation"] = {name: _numbers(total_variation(a)) for name, a in attributions.items()}
    if "checkerboard_energy" in plan.measures:  # not defined for maps of fewer than two cells a side
        large = {name: a for name, a in attributions.items() if min(a.shape[2:]) >= 4}
        found["checkerboard_energy"] = {name: _numbers(checkerboard_energy(a)) for name, a in large.items()}
    curves: dict[str, Callable[..., Any]] = {
        "insertion": partial(insertion, steps=plan.steps),
        "deletion": partial(deletion, steps=plan.steps),
        "road_most": partial(road, order="most"),
        "road_least": partial(road, order="least"),
    }
    with smoothed(model, fix if plan.score_on == "repaired" else None), _scoring(plan, x):
        for measure, curve in curves.items():
            if measure in plan.measures:
                areas = curve(model, x, attributions, target)
                found[measure] = {name: _numbers(one.auc) for name, one in areas.items()}
    return found


def _localised(
    plan: Plan, attributions: Mapping[str, Tensor], boxes: Tensor, x: Tensor, listed: Mapping[str, HiddenLayer]
) -> Values:
    """The measures that need the objects' boxes."""
    size = (x.shape[2], x.shape[3])
    tolerance = TOLERANCE * min(size)
    measures: dict[str, Callable[[Tensor], Tensor]] = {
        "pointing_game": lambda one: pointing_game(one, boxes, tolerance),
        "energy_in_box": lambda one: energy_in_box(one, boxes),
    }
    found: Values = {name: {} for name in measures if name in plan.measures}
    for name, attribution in attributions.items() if found else ():
        overlay = on_picture(saliency_map(attribution), size, listed.get(name))
        for measure in found:
            found[measure][name] = _numbers(measures[measure](overlay))
    if "box_share" in plan.measures:  # what a map would score that says nothing
        found["box_share"] = {OUTPUT: _numbers(box_share(boxes, size))}
    return found


def _compared(
    plan: Plan,
    attributions: Mapping[str, Tensor],
    references: Mapping[str, Tensor],
    x: Tensor,
    listed: Mapping[str, HiddenLayer],
) -> Values:
    """How alike the maps are to those of the trained, unrepaired network by the same method."""
    size = (x.shape[2], x.shape[3])
    found: Values = {name: {} for name in SIMILARITY if name in plan.measures}
    for name, attribution in attributions.items():
        here, there = saliency_map(attribution), saliency_map(references[name])
        measures: dict[str, Callable[[], Tensor]] = {
            "rank_correlation": partial(rank_correlation, here, there),
            "rank_correlation_magnitude": partial(
                rank_correlation, saliency_map(attribution, "abs_mean"), saliency_map(references[name], "abs_mean")
            ),
            "ssim": partial(ssim, *(on_picture(one, size, listed.get(name)) for one in (here, there))),
        }
        for measure in found:
            found[measure][name] = _numbers(measures[measure]())
    return found


def _scoring(plan: Plan, x: Tensor) -> AbstractContextManager[object]:
    """Passes that only score may run in 16 bits."""
    return torch.autocast(x.device.type, torch.bfloat16) if plan.precision == "bfloat16" else nullcontext()


def _numbers(values: Tensor) -> list[float]:
    """(N,) as a list with six digits, which is more than any measure here is exact to."""
    return [float(f"{value:.6g}") for value in values.double().tolist()]


def summary(ledger: Ledger, groups: Iterable[str]) -> list[dict[str, object]]:
    """Mean, standard deviation and count of every measure.

    Args:
        ledger: the pieces of :func:`evaluate`.
        groups: ``"state/fix/method"``, in the order of the rows.

    Returns:
        Rows with ``state``, ``fix``, ``method``, ``layer``, ``measure``, ``mean``, ``std`` and ``n``; where the same
        state and method was also run without a fix, ``change`` is the mean over images of the difference to that, and
        ``change_error`` its standard error.
    """
    values: dict[str, Values] = {}
    for key in sorted(ledger.pieces, key=lambda key: int(key.split("/")[0])):
        group = values.setdefault(key.split("/", 1)[1], {})
        for measure, layers in ledger.pieces[key].items():
            for layer, numbers in layers.items():
                group.setdefault(measure, {}).setdefault(layer, []).extend(numbers)
    rows: list[dict[str, object]] = []
    for name in groups:
        state, fix, method = name.split("/")
        plain = values.get(f"{state}/none/{method}", {}) if fix != "none" else {}
        for measure, layers in values[name].items():
            for layer, numbers in layers.items():
                mean, std, n = statistics_of(numbers)
                row: dict[str, object] = {"state": state, "fix": fix, "method": method, "layer": layer}
                row |= {"measure": measure, "mean": mean, "std": std, "n": n}
                before = plain.get(measure, {}).get(layer, [])
                if len(before) == n:
                    change, spread, _ = statistics_of([b - a for a, b in zip(before, numbers, strict=True)])
                    row |= {"change": change, "change_error": float(f"{spread / math.sqrt(n):.4g}")}
                rows.append(row)
    return rows


def statistics_of(numbers: Sequence[float]) -> tuple[float, float, int]:
    """Mean, standard deviation (of a sample, n - 1) and count."""
    values = torch.tensor(numbers, dtype=torch.float64)
    std = values.std().item() if len(numbers) > 1 else 0.0
    return float(f"{values.mean().item():.6g}"), float(f"{std:.4g}"), len(numbers)


def fingerprint(*networks: nn.Module | None) -> str:
    """The first digits of a hash over all weights: a run must not go on with other ones."""
    digest = hashlib.sha256()
    for network in networks:
        for name, value in network.state_dict().items() if network is not None else ():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def write(path: Path, record: dict[str, object], rows: Sequence[dict[str, object]]) -> None:
    """One JSON file, one line a row so that changes can be read; in place only when it is complete."""
    head = json.dumps(record, indent=1)[:-2]
    body = ",\n".join("  " + json.dumps(row) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    complete = path.with_suffix(".writing")
    complete.write_text(f'{head},\n "rows": [\n{body}\n ]\n}}\n')
    complete.replace(path)


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m smoothsal_lib evaluate``."""
    default = Plan()
    made = argparse.ArgumentParser(
        prog="python -m smoothsal_lib evaluate",
        description="Measure explanations on a whole data set. Partial results lie beside --out until the run is done; "
        "the same command goes on where a killed one stopped, with any number of processes under torchrun.",
    )
    made.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    made.add_argument("--model", default=default.model, help="a name for load_model (default: %(default)s)")
    made.add_argument("--data", default=default.data, help=f"one of {', '.join(BENCHMARKS)} (default: %(default)s)")
    made.add_argument("--folder", type=Path, help="where the data lies (default: $SMOOTHSAL_DATA)")
    made.add_argument("--images", type=int, default=default.images, help="how many (default: %(default)s; 0: all)")
    made.add_argument("--fix", nargs="+", default=default.fixes, help=f"out of none, {', '.join(NAMES)}, surrogate")
    made.add_argument("--surrogate", type=Path, help="file of a fitted surrogate (default: the embedded one)")
    made.add_argument("--method", nargs="*", default=default.methods, help=f"out of {', '.join(METHODS)}, rise, random")
    made.add_argument("--layers", nargs="+", default=default.layers, help="names, all, input (default: input all)")
    made.add_argument("--measure", nargs="+", default=default.measures, help=f"out of {', '.join(MEASURES)}")
    made.add_argument("--score-on", default=default.score_on, help="original or repaired (default: %(default)s)")
    made.add_argument("--randomise", action="store_true", help="also with weights re-initialised from the top down")
    made.add_argument("--precision", default=default.precision, help="float32, or bfloat16 for scoring passes")
    made.add_argument("--steps", type=int, default=default.steps, help="of insertion, deletion (default: %(default)s)")
    made.add_argument("--masks", type=int, default=default.masks, help="of RISE (default: %(default)s)")
    made.add_argument("--sampling", default=default.sampling, help=f"none, or one of {', '.join(SAMPLINGS)}")
    made.add_argument("--looks", type=int, default=default.looks, help="of sampling (default: %(default)s)")
    made.add_argument("--noise", type=float, default=default.noise, help="of sampling (default: the sampling's own)")
    made.add_argument("--batch", type=int, default=default.batch, help="images at once (default: %(default)s)")
    made.add_argument("--seed", type=int, default=default.seed)
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m smoothsal_lib evaluate``; ``--help`` lists the options."""
    given = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(given)
    plan = Plan(
        model=options.model,
        data=options.data,
        images=options.images or None,
        fixes=tuple(options.fix),
        methods=tuple(options.method),
        layers=tuple(options.layers),
        measures=tuple(options.measure),
        score_on=options.score_on,
        randomise=options.randomise,
        precision=options.precision,
        steps=options.steps,
        masks=options.masks,
        sampling=options.sampling,
        looks=options.looks,
        noise=options.noise,
        batch=options.batch,
        seed=options.seed,
    )
    with joined(options.device) as (team, device):
        check_plan(plan)
        benchmark = open_benchmark(plan.data, options.folder)
        # Channels last is how convolutions in 16 bits run fastest, on CPUs as on GPUs; the numbers are the same.
        model = load_model(plan.model).to(device).to(memory_format=torch.channels_last)
        surrogate = None
        if "surrogate" in plan.fixes:
            surrogate = Surrogate.load(options.surrogate) if options.surrogate else load_surrogate(plan.model)
            surrogate = surrogate.to(device)
        settings = {**asdict(plan), "weights": fingerprint(model, surrogate)}
        ledger = Ledger(options.out.with_suffix(".partial.jsonl"), settings, team)
        rows = evaluate(plan, model, benchmark, ledger, surrogate, progress=True)
        if team.leads:
            record = {
                **provenance("smoothsal_lib evaluate " + " ".join(_portable(given)), device),
                "settings": settings,
                "data": benchmark.description,
                "images": len(benchmark.spread(plan.images)),
            }
            write(options.out, record, rows)
            ledger.remove()


def _portable(argv: Sequence[str]) -> Iterator[str]:
    """The command line without what is true on one machine only: where the data lies, and folders of files."""
    skip = False
    for word in argv:
        if skip or word == "--folder":
            skip = not skip
        else:
            yield Path(word).name if "/" in word else word
