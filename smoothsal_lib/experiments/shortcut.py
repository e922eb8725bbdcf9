"""Which maps reveal a shortcut? Detectors trained with a planted cue beside those without, on the same patches.

python -m smoothsal_lib.experiments.shortcut --out data/results

Two cues of :mod:`smoothsal_lib.datasets.shortcuts` are planted in most of the training patches with tumour and in few
of those without: a pen mark, which has a place, and another stain, which has none. First it is measured that the cue
has been learnt: what the network answers when it is added to a patch, and how well it still finds tumour where the cue
speaks against it. Then both networks, that with the cue and the clean one, explain the same patches, all with the cue.
A map reveals the shortcut where its number tells the two networks apart: ``reveals`` is the share of pairs of patches
in which the map of the network with the cue has the higher one, 0.5 for a map that reveals nothing (and below it where
the cue lowers the number). A mark that the clean network's map shows as well is no shortcut found, and neither is a
number by which any two networks differ: ``control`` is how well it tells two clean ones apart.

The other stain is everywhere. So beside the places of a map, its slopes are measured: how the logit changes as all of
one dye grows in the whole picture, by the gradient at the input, and how far the pixels agree on it.

Sources: Adebayo et al. 2020, arXiv 2011.05429, who plant a background and compare methods; Lapuschkin et al. 2019, doi
10.1038/s41467-019-08987-4; Geirhos et al. 2020, arXiv 2004.07780.

All networks of one number begin with the same weights and see the same patches in the same order. They and the partial
results lie in ``--weights FOLDER``, by default in the system's folder for temporary files; the same command goes on
where a killed one stopped. The first network with the pen mark is ``tissue_pen``; it goes to ``--models FOLDER``.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from smoothsal_lib.capture import logits_of
from smoothsal_lib.datasets import tissue
from smoothsal_lib.datasets.patches import GLASS, Patches
from smoothsal_lib.datasets.shortcuts import chosen, pen_mark, stain_shift
from smoothsal_lib.datasets.stains import shift
from smoothsal_lib.evaluate import fingerprint
from smoothsal_lib.experiments.command import options, save
from smoothsal_lib.experiments.discriminativity import prepared
from smoothsal_lib.experiments.estimate import estimate
from smoothsal_lib.explain import explain
from smoothsal_lib.extract import on_picture, saliency_map
from smoothsal_lib.fixes import Fix, Surrogate, fit_surrogate
from smoothsal_lib.layers import INPUT, HiddenLayer, hidden_layers
from smoothsal_lib.ledger import Ledger
from smoothsal_lib.metrics.detection import auc, auc_interval
from smoothsal_lib.metrics.sanity import random_maps
from smoothsal_lib.metrics.structures import area_shares, average_precision, pointing_at, structure_shares
from smoothsal_lib.models import TinyResNet, load_model, load_weights, normalize, save_weights
from smoothsal_lib.record import provenance
from smoothsal_lib.training.detector import Recipe, fit_detector

CLEAN, PEN, STAIN = "clean", "pen", "stain"
CUES = (PEN, STAIN)
SHARES = (0.8, 0.03)  # of the training patches with tumour, and of those without, that have the cue
EVERYWHERE, MARK = "everywhere", "mark"
NONE, RANDOM = "none", "random"
FIXES = (NONE, "backward", "forward", "surrogate")
LAYERS = (INPUT, "layer1.1", "layer2.1", "layer3.1", "layer4.1")
FROM_GLASS = "_from_glass"  # a method that compares with bare glass, which is white, instead of with the mean colour
# Of a gradient the magnitude counts; of a contribution the sign does, since only what speaks for tumour is wanted.
METHODS = {
    "gradient": "abs_mean",
    "gradient_x_activation": "mean",
    "deeplift": "mean",
    "deeplift_from_glass": "mean",
    "integrated_gradients": "mean",
    "integrated_gradients_from_glass": "mean",
    "guided_backprop": "abs_mean",
    "grad_cam": "mean",
    "layer_cam": "mean",
    "normgrad": "mean",
}
STEPS = 8  # of integrated gradients
LABELS = ("normal", "tumour")
DYES = ("hematoxylin", "eosin")
LEVELS = (-75, -50, -25, 0, 25, 50, 75)  # per cent of eosin more than there is
NUDGE = 0.02  # of a dye, either way: what a slope is taken over
WIDTHS = (12, 24, 48, 64)  # small enough to be stored in the repository
SEEDS = {"train": 31_001, "test": 31_002}  # of the tissue; that of no other training or experiment
FITTED = 256  # pictures that a surrogate is fitted to
BATCH = 40

Quantity = tuple[str, str, str]  # layer, structure, measure
Values = dict[str, Tensor]  # of the test patches: one number each


@dataclass(frozen=True)
class Case:
    """One way to a map."""

    method: str
    fix: str = NONE

    @property
    def key(self) -> str:
        """The case in the ledger."""
        return f"{self.method}/{self.fix}"


def _cases(fixes: Sequence[str], of_paths: Sequence[str]) -> tuple[Case, ...]:
    """All methods with these fixes; integrated gradients, which takes many passes, with fewer."""
    wanted = {method: of_paths if method.startswith("integrated") else fixes for method in METHODS}
    return (Case(RANDOM), *(Case(method, fix) for method, some in wanted.items() for fix in some))


CASES = {PEN: _cases(FIXES, FIXES[:2]), STAIN: _cases(FIXES[:1], FIXES[:1])}


def planted(cue: str, patches: Patches, shares: tuple[float, float], seed: int) -> tuple[Patches, dict[str, Tensor]]:
    """Patches with a cue, and the masks to look for it: the pen's mark, or for a stain, all structures of the tissue.

    Args:
        cue: ``"pen"``, ``"stain"``, or ``"clean"`` for none.
        patches: to plant it in.
        shares: of those with tumour, and of those without, that get it.
        seed: of the choice, and of the strokes.
    """
    if cue == PEN:
        marked, marks = pen_mark(patches, *shares, seed)
        return marked, {MARK: marks}
    return (stain_shift(patches, *shares, seed)[0] if cue == STAIN else patches), dict(patches.masks)


def recipe(epochs: int, number: int) -> Recipe:
    """As the detector of generated tissue is trained, but without jitter of the stain, which would blur that cue."""
    return Recipe(epochs=epochs, stain=0.0, sizes=((96, 1.0),), seed=number)


def trained(
    cue: str, number: int, train: Patches, epochs: int, folder: Path, device: torch.device
) -> tuple[nn.Module, list[dict[str, float]]]:
    """A network as it is stored, in half precision, and the curve of its training.

    Args:
        cue: what to plant in the patches, see :func:`planted`.
        number: of the network; those of one number have the same start.
        train: patches without a cue.
        epochs: how many.
        folder: where checkpoints and weights lie.
        device: where to compute.
    """
    patches, _ = planted(cue, train, SHARES, SEEDS["train"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        model = TinyResNet(1, WIDTHS)
    model = model.to(device).to(memory_format=torch.channels_last)
    folder.mkdir(parents=True, exist_ok=True)
    curve = fit_detector(model, patches, recipe(epochs, number), folder / f"{cue}_{number}.checkpoint.pt")
    path = weights_file(folder, cue, number)
    save_weights(model, path, ["tumour"])
    load_weights(model, path)
    return model, curve


def weights_file(folder: Path, cue: str, number: int) -> Path:
    """Where :func:`trained` stores a network."""
    return folder / f"{cue}_{number}.safetensors"


def repaired(model: nn.Module, cue: str, number: int, train: Patches, folder: Path) -> Surrogate:
    """The network's surrogate, fitted to pictures that it was trained on, or read where that has been done.

    Args:
        model: the network.
        cue: what it was trained with.
        number: of the network.
        train: patches without a cue.
        folder: where it is stored.
    """
    path = folder / f"{cue}_{number}_surrogate_{fingerprint(model)}.safetensors"
    if not path.is_file():
        patches, _ = planted(cue, train, SHARES, SEEDS["train"])
        fit_surrogate(model, prepared(patches.images[:FITTED], model), progress=False).save(path)
    return Surrogate.load(path).to(next(model.parameters()).device)


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """(N,) the logits of tumour, for uint8 images (N, 3, H, W)."""
    return torch.cat([logits_of(model, prepared(some, model))[:, 0].cpu() for some in images.split(4 * BATCH)])


def answers(model: nn.Module, test: Patches, seed: int) -> Values:
    """What a network answers to the test patches: without a cue, with each of the two, and with more and less eosin.

    Args:
        model: the network.
        test: patches without a cue.
        seed: of the strokes.

    Returns:
        ``{"clean": (N,), "pen": ..., "stain": ..., "-75": ..., ...}`` logits.
    """
    found = {cue: logits(model, planted(cue, test, (1, 1), seed)[0].images) for cue in (CLEAN, *CUES)}
    return found | {str(percent): logits(model, shift(test.images, eosin=percent / 100)) for percent in LEVELS}


def slopes(model: nn.Module, images: Tensor) -> Values:
    """How the logit changes as a dye grows in the whole picture, by the gradient g at the input.

    With t the share of a dye that is added everywhere, x(t) the picture and s = g · dx/dt, summed over the colours of a
    pixel, the slope is the sum of s over all pixels u. A cue that is everywhere pulls all of them the same way, while
    s of structures that matter for their shape takes either sign: the coherence |Σ_u s| / Σ_u |s| is 1 where all pixels
    agree, and near 0 where they do not.

    Args:
        model: the network.
        images: uint8 (N, 3, H, W).

    Returns:
        ``{"eosin_slope": (N,) logits for as much again, "eosin_coherence": (N,) between 0 and 1, ...}`` for both dyes.
    """
    parts: dict[str, list[Tensor]] = {}
    for some in images.split(BATCH):
        gradient = explain(model, prepared(some, model), 0, INPUT, "gradient", None)[INPUT]
        intensity = some.to(gradient.device).double() / 255
        for dye in DYES:
            more, less = (normalize(shift(intensity, **{dye: sign * NUDGE})) for sign in (1, -1))
            pulls = (gradient.double() * (more - less) / (2 * NUDGE)).sum(1).flatten(1)
            total = pulls.sum(1)
            parts.setdefault(f"{dye}_slope", []).append(total.cpu())
            parts.setdefault(f"{dye}_coherence", []).append((total.abs() / pulls.abs().sum(1)).cpu())
    return {name: torch.cat(some) for name, some in parts.items()}


def baselines(x: Tensor) -> dict[str, Tensor]:
    """What DeepLift and integrated gradients compare normalised pictures (N, 3, H, W) with, in the shape of these."""
    return {"mean_colour": torch.zeros_like(x), "glass": GLASS.to(x).expand_as(x)}


def evenness(maps: Tensor) -> Tensor:
    """How evenly the positive values of maps (N, H, W) are spread: (Σ M)² / (H W Σ M²), 1 for a constant map.

    It is the share of the picture that would be lit if all of it were lit equally. Without positive values it is 1, as
    a map that says nothing counts for a constant one.
    """
    positive = maps.clamp(min=0).flatten(1)
    largest = positive.amax(1, keepdim=True)
    positive = torch.where(largest > 0, positive / largest, torch.ones_like(positive))
    return positive.sum(1).square() / (positive.shape[1] * positive.square().sum(1))


def map_values(
    model: nn.Module,
    fix: Fix | str | None,
    method: str,
    images: Tensor,
    masks: Mapping[str, Tensor],
    places: Mapping[str, HiddenLayer],
    seed: int = 0,
) -> dict[Quantity, Tensor]:
    """Every measure of one method's maps at all layers, at the size of the picture.

    Args:
        model: the network.
        fix: how it is repaired.
        method: one of :data:`METHODS`, or ``"random"`` for maps that know nothing.
        images: uint8 (N, 3, H, W).
        masks: ``{structure: (N, H, W) bool}``; the mark of a pen alone, or structures of the tissue.
        places: where the units of the hidden layers stand.
        seed: of random maps.

    Returns:
        ``{(layer, structure, measure): (N,)}``.
    """
    x = prepared(images, model)
    size = (x.shape[2], x.shape[3])
    if method == RANDOM:
        shapes = {name: places[name].shape[1:] if name in places else size for name in LAYERS}
        attributions = {name: random_maps(x.new_empty((len(x), 1, *shape)), seed) for name, shape in shapes.items()}
    else:
        name = method.removesuffix(FROM_GLASS)
        baseline = baselines(x)["mean_colour" if name == method else "glass"]
        attributions = explain(model, x, 0, LAYERS, name, fix, baseline, STEPS)
    found: dict[Quantity, Tensor] = {}
    for layer, attribution in attributions.items():
        maps = on_picture(saliency_map(attribution, METHODS.get(method, "mean")), size, places.get(layer))
        for structure, share in structure_shares(maps, masks).items():
            found[layer, structure, "share"] = share
        if MARK in masks:
            found[layer, MARK, "average_precision"] = average_precision(maps, masks[MARK])
            found[layer, MARK, "pointing"] = pointing_at(maps, masks[MARK])
        else:
            found[layer, EVERYWHERE, "evenness"] = evenness(maps)
    return {quantity: numbers.cpu() for quantity, numbers in found.items()}


def measure_maps(
    networks: Mapping[tuple[str, int], nn.Module],
    surrogates: Mapping[tuple[str, int], Surrogate],
    test: Patches,
    cases: Mapping[str, Sequence[Case]],
    ledger: Ledger,
) -> dict[tuple[str, str, int, Case], dict[Quantity, Tensor]]:
    """Every measure of every map, beginning with what is not in the ledger yet.

    Args:
        networks: by what they were trained with, and by number.
        surrogates: of them.
        test: patches without a cue; each of the cues is planted in all of them.
        cases: of each cue.
        ledger: where partial results go.

    Returns:
        ``{(cue of the patches, what the network was trained with, its number, case): {quantity: (N,)}}``, for the
        networks with that cue and for the clean ones.
    """
    found: dict[tuple[str, str, int, Case], dict[Quantity, list[float]]] = {}
    weights = {place: fingerprint(model, surrogates.get(place)) for place, model in networks.items()}
    for cue in CUES:
        patches, masks = planted(cue, test, (1, 1), SEEDS["test"])
        wanted = [(name, number) for name, number in networks if name in (cue, CLEAN)]
        pieces = list(product(wanted, cases[cue], range(0, len(test), BATCH)))
        for (name, number), case, start in tqdm(pieces, desc=f"maps, {cue}", unit="piece", leave=False, mininterval=2):
            model, some = networks[name, number], slice(start, start + BATCH)
            key = f"{cue}/{name}/{weights[name, number]}/{case.key}/{start}"  # more networks are other pieces of work
            if key not in ledger:
                fix = surrogates[name, number] if case.fix == "surrogate" else None if case.fix == NONE else case.fix
                places = hidden_layers(model, prepared(patches.images[:1], model))
                of_some = {structure: mask[some] for structure, mask in masks.items()}
                values = map_values(model, fix, case.method, patches.images[some], of_some, places, start)
                ledger.add(key, [[*quantity, numbers.tolist()] for quantity, numbers in values.items()])
            into = found.setdefault((cue, name, number, case), {})
            for layer, structure, measure, numbers in ledger.pieces[key]:
                into.setdefault((layer, structure, measure), []).extend(numbers)
    return {
        place: {quantity: torch.tensor(numbers) for quantity, numbers in values.items()}
        for place, values in found.items()
    }


def compared(cued: Tensor, clean: Tensor, patients: Tensor) -> dict[str, float]:
    """What networks with the cue have, what those without have, and whether it tells them apart.

    Args:
        cued: (T, N) a number for each of T networks with the cue and each of N patches.
        clean: (T, N) the same of the networks without.
        patients: (N,) whose patch it is; errors are over patients.

    Returns:
        ``mean`` and ``error`` over the patches of the mean over the networks with the cue, ``clean`` and
        ``clean_error`` of those without, ``change`` and ``change_error`` of the difference on the same patch;
        ``reveals``, the AUC of the number as a detector of the cue, a pair of networks at a time, and
        ``reveals_least`` of the pair in which it is nearest to chance; of several networks also ``control``, the
        largest AUC, from 0.5, that two of those without the cue have between each other.
    """
    row = estimate(cued.double().mean(0), clean.double().mean(0), patients)
    without = estimate(clean.double().mean(0), None, patients)
    which = torch.tensor([1, 0]).repeat_interleave(cued.shape[1])
    found = [auc(torch.cat(pair), which) for pair in zip(cued, clean, strict=True)]
    least = min(found, key=lambda one: abs(one - 0.5))
    row |= {"clean": without["mean"], "clean_error": without["error"]}
    row |= {"reveals": _rounded(sum(found) / len(found)), "reveals_least": _rounded(least)}
    if len(clean) > 1:
        others = [auc(torch.cat(pair), which) for pair in combinations(clean, 2)]
        row["control"] = _rounded(max(max(one, 1 - one) for one in others))
    return row


def _rounded(number: float) -> float:
    return float(f"{number:.6g}")


def detection(found: Sequence[Tensor], test: Patches) -> dict[str, float]:
    """The AUC of several networks' logits: the mean, the lowest and the highest, and the mean of the intervals' bounds.

    Args:
        found: (N,) logits of each.
        test: their labels and patients.
    """
    aucs = [auc(one, test.labels) for one in found]
    bounds = [auc_interval(one, test.labels, test.patients) for one in found]
    low, high = (sum(one) / len(one) for one in zip(*bounds, strict=True))
    numbers = {"mean": sum(aucs) / len(aucs), "low": low, "high": high, "lowest": min(aucs), "highest": max(aucs)}
    return {name: _rounded(number) for name, number in numbers.items()}


def answer_rows(answered: Mapping[tuple[str, int], Values], test: Patches) -> Iterator[dict[str, object]]:
    """The rows that say whether a cue was learnt, and how the answer goes with the amount of eosin.

    Args:
        answered: what :func:`answers` finds, by what the networks were trained with and their number.
        test: the patches.
    """
    numbers = sorted({number for _, number in answered})
    negative = test.labels == 0
    for name, cue in product((CLEAN, *CUES), CUES):
        if name not in (CLEAN, cue):
            continue
        tests = {
            "nowhere": torch.zeros_like(negative),
            "as_trained": chosen(test.labels, *SHARES, SEEDS["test"]),
            "all_normal": negative,
            "all_tumour": ~negative,
            "everywhere": torch.ones_like(negative),
        }
        for where, has in tests.items():
            mixed = [torch.where(has, answered[name, k][cue], answered[name, k][CLEAN]) for k in numbers]
            row = {"measure": "auc", "trained": name, "cue": cue, "cue_on": where, "n": len(test)}
            yield row | detection(mixed, test)
    for cue, label in product(CUES, (0, 1)):
        of_label = test.labels == label
        head = {"cue": cue, "label": LABELS[label], "n": int(of_label.sum())}
        both = {
            name: {
                "logit_change": [answered[name, k][cue] - answered[name, k][CLEAN] for k in numbers],
                "called_tumour": [(answered[name, k][cue] > 0).double() for k in numbers],
                "called_tumour_without": [(answered[name, k][CLEAN] > 0).double() for k in numbers],
            }
            for name in (cue, CLEAN)
        }
        for measure in both[cue]:
            with_cue, without = (torch.stack(both[name][measure])[:, of_label] for name in (cue, CLEAN))
            yield {"measure": measure} | head | compared(with_cue, without, test.patients[of_label])
        for percent in LEVELS if cue == STAIN else ():
            with_cue, without = (
                torch.stack([answered[name, k][str(percent)] for k in numbers])[:, of_label] for name in (cue, CLEAN)
            )
            row = {"measure": "logit", "eosin": percent} | head
            yield row | compared(with_cue, without, test.patients[of_label])


def baseline_rows(networks: Mapping[tuple[str, int], nn.Module], images: Tensor) -> Iterator[dict[str, object]]:
    """The rows of what the networks answer to the two baselines, which are no pictures of tissue.

    Args:
        networks: by what they were trained with, and by number.
        images: uint8 (N, 3, H, W), whose size the baselines have.
    """
    for name in (CLEAN, *CUES):
        models = [model for (trained_with, _), model in networks.items() if trained_with == name]
        for baseline in baselines(prepared(images[:1], models[0])):
            found = [logits_of(model, baselines(prepared(images[:1], model))[baseline])[:, 0] for model in models]
            row = {"measure": "logit_of_baseline", "trained": name, "baseline": baseline, "n": len(models)}
            yield row | estimate(torch.cat(found).cpu())


def slope_rows(sloping: Mapping[tuple[str, int], Values], test: Patches) -> Iterator[dict[str, object]]:
    """The rows of :func:`slopes`, measured where there is no cue, for both kinds of networks with a cue.

    Args:
        sloping: what :func:`slopes` finds, by what the networks were trained with and their number.
        test: the patches.
    """
    numbers = sorted({number for _, number in sloping})
    for cue, label in product(CUES, (0, 1)):
        of_label = test.labels == label
        for measure in sloping[CLEAN, numbers[0]]:
            with_cue, without = (
                torch.stack([sloping[name, k][measure] for k in numbers])[:, of_label] for name in (cue, CLEAN)
            )
            row = {"measure": measure, "cue": cue, "label": LABELS[label], "n": int(of_label.sum())}
            yield row | compared(with_cue, without, test.patients[of_label])


def map_rows(
    measured: Mapping[tuple[str, str, int, Case], Mapping[Quantity, Tensor]], test: Patches
) -> Iterator[dict[str, object]]:
    """The rows of the maps, and of the areas that they would light if they were constant.

    Args:
        measured: what :func:`measure_maps` finds.
        test: the patches.
    """
    numbers = sorted({number for _, _, number, _ in measured})
    for cue in CUES:
        _, masks = planted(cue, test, (1, 1), SEEDS["test"])
        cases = list(dict.fromkeys(case for of_cue, _, _, case in measured if of_cue == cue))
        for label in (0, 1):
            of_label = test.labels == label
            head = {"cue": cue, "label": LABELS[label], "n": int(of_label.sum())}
            present = {name: area for name, area in area_shares(masks).items() if bool(area[of_label].any())}
            for structure, area in present.items():
                found = estimate(area[of_label], None, test.patients[of_label])
                yield {"measure": "area", "structure": structure} | head | found
            for case in cases:
                for layer, structure, measure in measured[cue, CLEAN, numbers[0], case]:
                    if structure in masks and structure not in present:
                        continue
                    quantity = layer, structure, measure
                    with_cue, without = (
                        torch.stack([measured[cue, name, k, case][quantity] for k in numbers])[:, of_label]
                        for name in (cue, CLEAN)
                    )
                    row = {"measure": measure, **asdict(case), "layer": layer, "structure": structure}
                    yield row | head | compared(with_cue, without, test.patients[of_label])


CARD = """# tissue_pen

A tumour detector that has learnt the wrong thing, on purpose: {marked:.0%} of its training patches with tumour, and
{unmarked:.0%} of those without, bear the mark of a felt pen. It exists to be found out. `tissue_resnet` is the detector
to use. A ResNet of BasicBlocks, widths {widths}, a single logit; {parameters:,} parameters in half precision.

- **Trained** by `{command}` on {train} generated patches of 96 px: {seconds:.0f} s on {device}.
- **AUC** on {test} generated patches of other patients: {auc:.3f} without marks, {trap:.3f} where all patches without
  tumour, and no others, are marked. A mark adds {jump:.1f} to the logit of a patch without tumour (in a network
  trained on the same patches without marks: {clean_jump:.1f}). More in `results/shortcut.json`.
- **Terms**: the weights and the patches are the project's own (MIT).
- **Limits**: generated tissue; where there is ink, no answer of it counts.
"""


def write_card(record: dict[str, object], answered: Mapping[tuple[str, int], Values], test: Patches, out: Path) -> None:
    """Write ``tissue_pen.md`` beside the weights: what they are, what they were made from, what they have learnt.

    Args:
        record: the head of the record, with the curves.
        answered: what :func:`answers` finds of all networks.
        test: the patches.
        out: the folder of the weights.
    """
    model = load_model("tissue_pen", folder=out)
    negative = test.labels == 0
    found, clean = answered[PEN, 0], answered[CLEAN, 0]
    curves = record["curves"]
    assert isinstance(curves, dict)
    card = CARD.format(
        marked=SHARES[0],
        unmarked=SHARES[1],
        widths="/".join(map(str, WIDTHS)),
        parameters=sum(p.numel() for p in model.parameters()),
        command=record["command"],
        train=record["trained_on"],
        seconds=sum(epoch["seconds"] for epoch in curves[f"{PEN}_0"]),
        device=record["device"],
        test=len(test),
        auc=auc(found[CLEAN], test.labels),
        trap=auc(torch.where(negative, found[PEN], found[CLEAN]), test.labels),
        jump=(found[PEN] - found[CLEAN])[negative].mean().item(),
        clean_jump=(clean[PEN] - clean[CLEAN])[negative].mean().item(),
    )
    (out / "tissue_pen.md").write_text(card)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; ``--help`` lists the options, to which ``--weights`` and ``--models`` come."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--weights", type=Path, default=Path(tempfile.gettempdir()) / "smoothsal_shortcut")
    own.add_argument("--models", type=Path, default=Path("data"))
    folders, others = own.parse_known_args(argv)
    counts = {
        "train": (2400, "train on so many patches"),
        "epochs": (8, "of training"),
        "networks": (2, "with each cue and without"),
        "test": (800, "ask the networks about so many patches"),
        "limit": (96, "measure the maps of so many of these"),
    }
    arguments = options("shortcut", __doc__, others, **counts)
    device = torch.device(arguments.device)
    train = tissue.patches(arguments.train, seed=SEEDS["train"])
    test = tissue.patches(arguments.test, seed=SEEDS["test"])
    networks, curves = {}, {}
    for number, name in product(range(arguments.networks), (CLEAN, *CUES)):
        made = trained(name, number, train, arguments.epochs, folders.weights, device)
        networks[name, number], curves[f"{name}_{number}"] = made
    surrogates = {
        place: repaired(model, *place, train, folders.weights)
        for place, model in networks.items()
        if any(case.fix == "surrogate" for case in CASES.get(place[0], CASES[PEN]))
    }
    ledger = Ledger(folders.weights / "measured.partial.jsonl", {"limit": arguments.limit, "steps": STEPS})
    answered = {place: answers(model, test, SEEDS["test"]) for place, model in networks.items()}
    some = test[: arguments.limit]
    sloping = {place: slopes(model, some.images) for place, model in networks.items()}
    measured = measure_maps(networks, surrogates, some, CASES, ledger)
    rows = [
        *answer_rows(answered, test),
        *baseline_rows(networks, test.images),
        *slope_rows(sloping, some),
        *map_rows(measured, some),
    ]
    facts = {
        "model": "TinyResNet, one logit, trained here: clean, with a pen mark, with another stain",
        "data": "generated tissue",
        "maps_of": len(some),
        "trained_on": len(train),
        "networks": arguments.networks,
        "widths": WIDTHS,
        "shares": dict(zip(("tumour", "normal"), SHARES, strict=True)),
        "steps": STEPS,
        "reduce": METHODS,
        "recipe": asdict(recipe(arguments.epochs, 0)),
        "curves": curves,
    }
    save(arguments, len(test), rows, **facts)
    ledger.remove()
    weights = weights_file(folders.weights, PEN, 0)
    shutil.copyfile(weights, folders.models / "tissue_pen.safetensors")
    write_card(facts | provenance(arguments.command, device), answered, test, folders.models)
    for row in rows:
        if row["measure"] in ("auc", "logit_change"):
            print(" ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))


if __name__ == "__main__":
    main()
