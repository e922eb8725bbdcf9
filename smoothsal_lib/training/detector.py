"""Train the networks for tissue: two tumour detectors, and a segmenter.

    python -m smoothsal_lib.training.detector --model tissue_resnet --out data       train, write weights, card, figures
    python -m smoothsal_lib.training.detector --model glas_resnet --cross-validate   a network for each fold of patients
    python -m smoothsal_lib.training.detector --model glas_resnet --evaluate         measure the embedded weights again

A run can be killed at any moment and started again with the same command: it goes on from the last finished epoch. With
``torchrun --nproc-per-node 4 -m`` in the place of ``python -m``, four processes share every batch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smoothsal_lib.datasets import glas, tissue
from smoothsal_lib.datasets.patches import Patches, pictures, together
from smoothsal_lib.datasets.stains import jitter
from smoothsal_lib.fixes import Fix
from smoothsal_lib.loading import moved
from smoothsal_lib.metrics.detection import auc, auc_interval
from smoothsal_lib.metrics.structures import average_precision
from smoothsal_lib.models import DenseResNet, TinyResNet, load_model, normalize, save_weights
from smoothsal_lib.parallel import ALONE, Team, joined
from smoothsal_lib.precision import fast_autocast
from smoothsal_lib.record import provenance
from smoothsal_lib.training.colours import colour_scores
from smoothsal_lib.training.fidelity import all_logits
from smoothsal_lib.training.loop import Batch, Descent, make_optimizer, one_cycle, one_pass, resumable

MODULE = "smoothsal_lib.training.detector"
GENERATED = 6000  # patches to train on
WIDTHS = (16, 32, 64, 96)
CLASSES = ("stroma", "gland", "tumour", "lumen")  # of a pixel, in the order of the segmenter's outputs
CATEGORIES = {"tissue_resnet": ("tumour",), "glas_resnet": ("tumour",), "tissue_segmenter": CLASSES}
TRAIN_SEED, VAL_SEED, TEST_SEED = 0, 1, 2  # of generated tissue: other seeds are other patients


@dataclass(frozen=True)
class Recipe(Descent):
    """Everything that decides the outcome; stored in the checkpoint, so that a resumed run cannot change it."""

    epochs: int = 8
    batch: int = 64
    peak_lr: float = 0.1
    # Things are shown up to so many times larger or smaller than they are.
    zoom: float = 1.2
    # Strength of the stain's jitter: see smoothsal_lib.datasets.stains.jitter.
    stain: float = 0.1
    # Side of the pictures in pixels, and share of the batches. Larger ones, at the same scale, get the network used to
    # a picture that is not all rim.
    sizes: tuple[tuple[int, float], ...] = ((96, 0.9), (128, 0.1))


def random_views(
    images: Tensor,
    size: int,
    zoom: float,
    generator: torch.Generator,
    classes: Tensor | None = None,
    *,
    part: slice = slice(None),
    whole: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Turn each picture by a multiple of 90 degrees, mirror half of them, show them larger or smaller, and shifted.

    A view has ``size`` pixels a side, at the picture's own scale times a factor between 1 / zoom and zoom. One that
    shows less than the picture lies within it; one that shows more holds all of it, and what lies beyond the rim is the
    picture's reflection.

    Args:
        images: (N, 3, H, H) floats.
        size: side of the result in pixels.
        zoom: from 1, which keeps the scale.
        generator: where the random numbers come from (on the CPU).
        classes: (N, H, H) integers, a class for every pixel, to be shown in the same way.
        part: which pictures of a larger batch these are, for all of which the random numbers are drawn.
        whole: how many pictures that batch has; ``None``: these are all.

    Returns:
        (N, 3, size, size) in channels-last memory order, bilinear; and (N, size, size), the classes of the nearest
        pixels, or ``None``.
    """
    n, height = whole or len(images), images.shape[2]
    factor = zoom ** (2 * torch.rand(n, generator=generator) - 1)
    side = size / height / factor  # of the view, 1 for that of the picture
    shift = (2 * torch.rand(n, 2, generator=generator) - 1) * (1 - side).abs()[:, None]
    quarters = torch.randint(0, 4, (n,), generator=generator)
    mirror = torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1
    cosine, sine = torch.tensor([1.0, 0, -1, 0])[quarters], torch.tensor([0.0, 1, 0, -1])[quarters]
    theta = torch.stack([cosine * mirror, -sine, sine * mirror, cosine], 1).view(n, 2, 2) * side[:, None, None]
    theta = moved(torch.cat([theta, shift[:, :, None]], 2)[part], images.device)
    grid = F.affine_grid(theta, [len(theta), 3, size, size], align_corners=False)
    views = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    views = views.contiguous(memory_format=torch.channels_last)
    if classes is None:
        return views, None
    maps = classes[:, None].to(images)
    maps = F.grid_sample(maps, grid, mode="nearest", padding_mode="reflection", align_corners=False)
    return views, maps[:, 0].to(classes.dtype)


def pixel_classes(masks: Mapping[str, Tensor]) -> Tensor:
    """One of :data:`CLASSES` for every pixel: lumen before tumour before gland, and the rest is stroma.

    Args:
        masks: (N, H, W) booleans named ``"lumen"``, ``"tumour"`` and ``"gland"``.

    Returns:
        (N, H, W) uint8.

    Raises:
        ValueError: when a mask lacks.
    """
    lacking = [name for name in CLASSES[1:] if name not in masks]
    if lacking:
        raise ValueError(f"no mask {lacking[0]!r}: a segmenter learns from {', '.join(CLASSES[1:])}")
    classes = torch.zeros(masks["gland"].shape, dtype=torch.uint8)
    for name in ("gland", "tumour", "lumen"):
        classes[masks[name]] = CLASSES.index(name)
    return classes


def fit_detector(
    model: nn.Module,
    patches: Patches,
    recipe: Recipe,
    checkpoint: Path,
    *,
    validation: Patches | None = None,
    team: Team = ALONE,
) -> list[dict[str, float]]:
    """Train a network in place, going on from the checkpoint where there is one.

    A detector (:class:`TinyResNet` with one output) learns the patches' labels by binary cross-entropy; a segmenter
    (:class:`DenseResNet` with the outputs :data:`CLASSES`) their masks, by cross-entropy over all pixels. The same
    start, patches and recipe give the same network, whether the run was killed or not.

    Args:
        model: the network, where it shall be trained; it is left in evaluation mode.
        patches: what to learn from.
        recipe: how.
        checkpoint: the file that is written after every epoch.
        validation: patches of other patients, to note after every epoch how good the network is.
        team: the processes that train it together, each with its part of every batch; the same network in all of them.

    Returns:
        The curve, one row an epoch: ``epoch`` (from 1), ``loss`` (nats), ``seconds``, and with validation ``val_auc``,
        or ``val_accuracy`` of the pixels.

    Raises:
        ValueError: when the checkpoint was made by another recipe or with other patches, or a segmenter lacks masks.
    """
    targets = pixel_classes(patches.masks) if isinstance(model, DenseResNet) else None
    optimizer = make_optimizer(model, recipe)
    pixels = int(patches.images.sum(dtype=torch.int64))  # altered patches are other patches
    settings = asdict(recipe) | {"patches": len(patches), "pixels": pixels, "positives": int(patches.labels.sum())}

    def one_epoch(epoch: int) -> dict[str, float]:
        noted = {"loss": train_epoch(model, optimizer, patches, targets, epoch, recipe, team)}
        return noted if validation is None else noted | _watched(model, validation, targets is None, team)

    return resumable(model, optimizer, recipe.epochs, settings, checkpoint, one_epoch, team)


def _watched(model: nn.Module, patches: Patches, detects: bool, team: Team) -> dict[str, float]:
    """How good the network is on patches that the processes share."""
    model.eval()
    part = team.part(len(patches))
    own = patches[part]
    logits = all_logits(model, own.images, None)
    if detects:
        scores = torch.zeros(len(patches))
        scores[part] = logits[:, 0]
        team.add_up([scores])
        return {"val_auc": auc(scores, patches.labels)}
    right = (logits.argmax(1) == pixel_classes(own.masks)).sum()
    team.add_up([right])
    return {"val_accuracy": right.item() / patches.images[:, 0].numel()}


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    patches: Patches,
    targets: Tensor | None,
    epoch: int,
    recipe: Recipe,
    team: Team = ALONE,
) -> float:
    """One pass over the patches; returns the mean loss (nats). ``targets``: classes (N, H, W), or ``None``: labels."""
    device = next(model.parameters()).device

    def loss(stepping: nn.Module, batch: Batch) -> Tensor:
        picked, generator, part, whole = batch.picked, batch.generator, batch.part, batch.whole
        stained = jitter(patches.images[picked], recipe.stain, generator, part=part, whole=whole)
        x = normalize(moved(stained, device).float() / 255)
        classes = None if targets is None else moved(targets[picked], device)
        x, classes = random_views(x, batch.size, recipe.zoom, generator, classes, part=part, whole=whole)
        with fast_autocast(device):
            logits = stepping(x)
        if classes is not None:
            return F.cross_entropy(logits.float(), classes.long())
        wanted = moved(patches.labels[picked].float(), device)
        return F.binary_cross_entropy_with_logits(logits.float()[:, 0], wanted)

    def rate(done: float) -> float:
        return one_cycle(done, recipe)

    return one_pass(model, optimizer, len(patches), epoch, recipe, dict(recipe.sizes), rate, loss, team)


def detection_figures(scores: Tensor, colours: Tensor, labels: Tensor, patients: Tensor) -> dict[str, Any]:
    """How good a detector is, beside what colour alone says; every interval holds 95 % of draws of patients.

    Args:
        scores: (N,) logits of the network.
        colours: (N,) logits of :func:`smoothsal_lib.training.colours.colour_scores`.
        labels: (N,) 0 and 1.
        patients: (N,) whose they are.

    Returns:
        ``cases``, ``patients``, ``base_rate`` (share of positives), ``accuracy`` (share, at logit 0), ``auc``,
        ``auc_colour`` and ``auc_gain``, the difference, each with its ``..._interval`` (lower and upper bound), and
        ``beats_colour``: whether the interval of the gain lies above 0.
    """
    gain = auc_interval(scores, labels, patients, before=colours)
    return {
        "cases": len(labels),
        "patients": len(patients.unique()),
        "base_rate": labels.double().mean().item(),
        "accuracy": ((scores > 0) == (labels == 1)).double().mean().item(),
        "auc": auc(scores, labels),
        "auc_interval": list(auc_interval(scores, labels, patients)),
        "auc_colour": auc(colours, labels),
        "auc_colour_interval": list(auc_interval(colours, labels, patients)),
        "auc_gain": auc(scores, labels) - auc(colours, labels),
        "auc_gain_interval": list(gain),
        "beats_colour": gain[0] > 0,
    }


def per_picture(values: Tensor, patches: Patches) -> Tensor:
    """The mean over the patches of each of the pictures they were cut from: (N,) to (P,) float64."""
    owner = pictures(patches)
    return torch.bincount(owner, values.double()) / torch.bincount(owner)


def by_patch_and_picture(scores: Tensor, colours: Tensor, patches: Patches) -> dict[str, dict[str, Any]]:
    """:func:`detection_figures` of the patches, and of the pictures by the mean logit of each one's patches."""
    labels, patients = (per_picture(values, patches).long() for values in (patches.labels, patches.patients))
    means = per_picture(scores, patches), per_picture(colours, patches)
    return {
        "patches": detection_figures(scores, colours, patches.labels, patches.patients),
        "pictures": detection_figures(*means, labels, patients),
    }


@torch.no_grad()
def segmentation_figures(model: nn.Module, patches: Patches, fix: str | Fix | None = None) -> dict[str, Any]:
    """How good a segmenter, repaired by ``fix``, is over all pixels of the patches together.

    Returns:
        ``cases``, ``patients``, ``accuracy`` (share of the pixels whose class is right), ``share`` (of the pixels, by
        class), ``iou`` (by class: pixels that are and are called the class, divided by those that are or are called
        it, ``None`` where there are none), and ``tumour_average_precision`` of the probability of tumour.
    """
    wanted = pixel_classes(patches.masks)
    logits = all_logits(model, patches.images, fix)
    n = len(CLASSES)
    table = torch.bincount((wanted.long() * n + logits.argmax(1)).flatten(), minlength=n * n).view(n, n).double()
    both, either = table.diag(), table.sum(0) + table.sum(1) - table.diag()
    tumour = CLASSES.index("tumour")
    probability = logits.softmax(1)[:, tumour].flatten(0, 1)[None]
    return {
        "cases": len(patches),
        "patients": len(patches.patients.unique()),
        "accuracy": (both.sum() / table.sum()).item(),
        "share": dict(zip(CLASSES, (table.sum(1) / table.sum()).tolist(), strict=True)),
        "iou": {name: (both[i] / either[i]).item() if either[i] else None for i, name in enumerate(CLASSES)},
        "tumour_average_precision": average_precision(probability, (wanted == tumour).flatten(0, 1)[None]).item(),
    }


def load_patches(name: str, part: str, data: Path | None = None, count: int = GENERATED) -> Patches:
    """What a network is trained (``part`` "train"), watched ("val") or judged by ("test").

    Args:
        name: the network's. ``"glas_resnet"`` has GlaS, of which no patients can be spared for "val"; the others
            generated tissue, by different seeds.
        part: which.
        data: the folder with GlaS; ``None`` means the environment variable ``SMOOTHSAL_DATA``.
        count: generated patches to train on; a sixth as many to judge by, and half of that to watch.
    """
    if name == "glas_resnet":
        return glas.patches(data, part, nuclei=False)
    seed, share = {"train": (TRAIN_SEED, 1), "val": (VAL_SEED, 12), "test": (TEST_SEED, 6)}[part]
    return tissue.patches(count // share, seed=seed)


def new_model(name: str, seed: int) -> nn.Module:
    """The network before training; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "tissue_segmenter":
            return DenseResNet(len(CLASSES), WIDTHS)
        return TinyResNet(1, WIDTHS)


def figures(name: str, model: nn.Module, train: Patches, test: Patches) -> dict[str, Any]:
    """What the record says of a trained network on patches of other patients."""
    if name == "tissue_segmenter":
        return {"pixels": segmentation_figures(model, test)}
    scores = all_logits(model, test.images, None)[:, 0].double()
    colours = colour_scores(train, test)
    if name == "glas_resnet":
        return by_patch_and_picture(scores, colours, test)
    return {"patches": detection_figures(scores, colours, test.labels, test.patients)}


def train(
    name: str, recipe: Recipe, arguments: argparse.Namespace, device: torch.device, team: Team = ALONE
) -> dict[str, Any]:
    """Train, checkpointing in ``out/NAME.checkpoint.pt``, store the weights, and return the training record.

    The figures are those of the stored weights, which are rounded to half precision.
    """
    out = arguments.out
    model = new_model(name, recipe.seed).to(device).to(memory_format=torch.channels_last)
    train_set = load_patches(name, "train", arguments.data, arguments.patches)
    test_set = load_patches(name, "test", arguments.data, arguments.patches)
    val_set = None if name == "glas_resnet" else load_patches(name, "val", arguments.data, arguments.patches)
    curve = fit_detector(model, train_set, recipe, out / f"{name}.checkpoint.pt", validation=val_set, team=team)
    if team.leads:
        save_weights(model, out / f"{name}.safetensors", CATEGORIES[name])
    team.wait()
    stored = load_model(name, folder=out).to(device)
    return {
        **provenance(_command(name, recipe, arguments), device, team.size),
        "data": "GlaS" if name == "glas_resnet" else "generated tissue",
        "train": _counts(train_set),
        "test": _counts(test_set),
        "recipe": asdict(recipe),
        "curve": curve,
        "figures": figures(name, stored, train_set, test_set),
    }


def cross_validate(
    name: str, recipe: Recipe, arguments: argparse.Namespace, device: torch.device, team: Team = ALONE
) -> dict[str, Any]:
    """A network for each fold of GlaS' patients, judged by the patients it has not seen; the weights are not kept.

    The first fold is the split of the embedded network, and goes on from its checkpoint. The scores of all folds are
    judged together, so that every patient counts once, though four networks need not agree on where 0 is.
    """
    folds, parts, scores, colours = [], [], [], []
    for number, held_out in enumerate(glas.FOLDS):
        others = [patient for fold in glas.FOLDS if fold != held_out for patient in fold]
        train_set, test_set = (
            glas.patches(arguments.data, patients=patients, nuclei=False) for patients in (others, held_out)
        )
        suffix = f"_fold{number}" if number else ""
        model = new_model(name, recipe.seed).to(device).to(memory_format=torch.channels_last)
        fit_detector(model, train_set, recipe, arguments.out / f"{name}{suffix}.checkpoint.pt", team=team)
        scores.append(all_logits(model, test_set.images, None)[:, 0].double())
        colours.append(colour_scores(train_set, test_set))
        parts.append(test_set)
        alone = {"auc": auc(scores[-1], test_set.labels), "auc_colour": auc(colours[-1], test_set.labels)}
        folds.append({**_counts(test_set), **alone})
    return {
        **provenance(_command(name, recipe, arguments) + " --cross-validate", device, team.size),
        "data": "GlaS, four folds of patients",
        "recipe": asdict(recipe),
        "folds": folds,
        "figures": by_patch_and_picture(torch.cat(scores), torch.cat(colours), together(parts)),
    }


def _command(name: str, recipe: Recipe, arguments: argparse.Namespace) -> str:
    size = "" if name == "glas_resnet" else f" --patches {arguments.patches}"
    return f"{MODULE} --model {name} --epochs {recipe.epochs} --seed {recipe.seed}{size}"


def _counts(patches: Patches) -> dict[str, Any]:
    patients = sorted(patches.patients.unique().tolist())
    named = {"of_patients": patients} if len(patients) < 20 else {}
    share = patches.labels.double().mean().item()
    return {"patches": len(patches), "patients": len(patients), **named, "base_rate": share}


CARD = """# {name}

{what}
{parameters:,} parameters, stored in half precision; every downsampling is a strided convolution. It exists to be
explained, and is no medical device.

- **Trained** by `{command}`
  on {train}:
  {seconds:.0f} s on {device}. Recipe and curve are in `results/{name}_training.json`.
- **Pictures**: hematoxylin and eosin at about 0.62 micrometres a pixel (20x), shown to it in cuts of 96 and 128
  pixels; larger ones work.
{quality}
- **Terms**: {terms}
- **Limits**: {limits}

{tables}"""

WHAT = {
    "detector": "A tumour detector: a ResNet of BasicBlocks, widths {widths}, with a single logit, above 0 for tumour.",
    "segmenter": "A segmenter of tissue: a ResNet of BasicBlocks, widths {widths}, with a total stride of 8, whose "
    "logits are\nenlarged to the picture's size; one of {classes} for every pixel.",
}
GLAS_TERMS = """**research use only.** GlaS may be used for research, not commercially, and these weights were made from
  it. Cite Sirinukunwattana et al. 2017, "Gland segmentation in colon histology images: the GlaS challenge contest",
  Medical Image Analysis 35. No pixel of it is stored here."""
GLAS_LIMITS = """twelve patients of one hospital, one organ, one scanner; patches with gland. The label is the grade of
  the whole picture. Patients are stained differently and most carry one class only, so that colour tells much: the
  tables say how much. Three patients to judge by make no interval worth the name; the cross-validation has twelve."""
TISSUE_TERMS = "the project's own (MIT), data and weights."
TISSUE_LIMITS = """it has seen drawings of tissue and nothing else. What it says of a real slide means nothing."""


def write_card(name: str, out: Path) -> None:
    """Write ``NAME.md`` beside the weights, from the records in ``out/results``: what they are, and how good."""
    results = out / "results"
    record = json.loads((results / f"{name}_training.json").read_text())
    model = load_model(name, folder=out)
    found, real = record["figures"], name == "glas_resnet"
    train_set = f"{record['train']['patches']:,} patches of {record['train']['patients']} patients"
    source = "GlaS" if real else "generated tissue (`smoothsal_lib.datasets.tissue`)"
    if name == "tissue_segmenter":
        quality, tables = _segmenter_quality(found["pixels"]), _segmenter_table(found["pixels"])
    else:
        quality, tables = _detector_quality(found["patches"]), _detector_table("Held-out patients", found)
        path = results / f"{name}_cross_validation.json"
        if path.is_file():
            tables += "\n" + _folds_table(json.loads(path.read_text()))
    what = WHAT["segmenter" if name == "tissue_segmenter" else "detector"]
    card = CARD.format(
        name=name,
        what=what.format(widths="/".join(map(str, WIDTHS)), classes=", ".join(CLASSES)),
        parameters=sum(p.numel() for p in model.parameters()),
        command=record["command"],
        train=f"{train_set} of {source}",
        seconds=sum(epoch["seconds"] for epoch in record["curve"]),
        device=record["device"],
        quality=quality,
        terms=GLAS_TERMS if real else TISSUE_TERMS,
        limits=GLAS_LIMITS if real else TISSUE_LIMITS,
        tables=tables,
    )
    (out / f"{name}.md").write_text(card)


def _detector_quality(found: dict[str, Any]) -> str:
    verdict = "beats" if found["beats_colour"] else "does not clearly beat"
    return (
        f"- **AUC** on {found['cases']:,} patches of {found['patients']} other patients: {_bounds(found, 'auc')}.\n"
        f"  Right at logit 0 for {found['accuracy']:.1%} of them; {found['base_rate']:.1%} are tumour. It {verdict} "
        "colour statistics alone."
    )


def _detector_table(title: str, found: dict[str, dict[str, Any]]) -> str:
    rows = [
        f"| {what} | {one['cases']:,} | {one['patients']} | {one['base_rate']:.1%} | {one['accuracy']:.1%} | "
        + " | ".join(_bounds(one, key) for key in ("auc", "auc_colour", "auc_gain"))
        + " |"
        for what, one in found.items()
    ]
    return (
        f"{title}; in brackets the 95 % interval of a bootstrap over patients.\n"
        "A picture's score is the mean logit of its patches.\n\n"
        "| | cases | patients | tumour | accuracy | AUC | AUC of colour statistics | gain |\n"
        "|---|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _folds_table(record: dict[str, Any]) -> str:
    rows = [
        f"| {', '.join(map(str, fold['of_patients']))} | {fold['patches']:,} | {fold['base_rate']:.1%} | "
        f"{fold['auc']:.3f} | {fold['auc_colour']:.3f} |"
        for fold in record["folds"]
    ]
    return (
        _detector_table("Cross-validation over all patients", record["figures"])
        + "\nEach fold by itself. Four networks, and four regressions on colour, need not agree on where 0 is, which\n"
        "costs the table above more than this one.\n\n"
        "| held-out patients | patches | tumour | AUC | AUC of colour statistics |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


def _bounds(found: dict[str, Any], key: str) -> str:
    low, high = found[f"{key}_interval"]
    return f"{found[key]:.3f} ({low:.3f} to {high:.3f})"


def _segmenter_quality(found: dict[str, Any]) -> str:
    return (
        f"- **Accuracy** on {found['cases']:,} patches of {found['patients']} other patients: {found['accuracy']:.1%} "
        f"of the pixels;\n  average precision of tumour {found['tumour_average_precision']:.3f}."
    )


def _segmenter_table(found: dict[str, Any]) -> str:
    rows = []
    for name, overlap in found["iou"].items():
        shown = "none" if overlap is None else f"{overlap:.3f}"
        rows.append(f"| {name} | {found['share'][name]:.1%} | {shown} |")
    return "| class | share of the pixels | IoU |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=tuple(CATEGORIES), required=True)
    parser.add_argument("--data", type=Path, help="folder with GlaS (default: $SMOOTHSAL_DATA)")
    parser.add_argument("--out", type=Path, default=Path("data"), help="where weights, card and figures go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument(
        "--patches", type=int, default=GENERATED, help="how many to generate for training; not for GlaS"
    )
    parser.add_argument("--cross-validate", action="store_true", help="GlaS: a network for each fold of patients")
    parser.add_argument("--evaluate", action="store_true", help="train nothing: measure the embedded weights")
    arguments = parser.parse_args(argv)
    name, out = arguments.model, arguments.out
    if arguments.cross_validate and name != "glas_resnet":
        parser.error(f"--cross-validate is for glas_resnet: {name} has as many patients as one likes")
    if arguments.evaluate:
        sets = (load_patches(name, part, arguments.data, arguments.patches) for part in ("train", "test"))
        print(json.dumps(figures(name, load_model(name).to(arguments.device), *sets), indent=1))
        return
    recipe = Recipe(epochs=arguments.epochs, seed=arguments.seed)
    (out / "results").mkdir(parents=True, exist_ok=True)
    measure, kind = (cross_validate, "cross_validation") if arguments.cross_validate else (train, "training")
    with joined(arguments.device) as (team, device):
        record = measure(name, recipe, arguments, device, team)
        if team.leads:
            _store(name, kind, record, out)


def _store(name: str, kind: str, record: dict[str, Any], out: Path) -> None:
    (out / "results" / f"{name}_{kind}.json").write_text(json.dumps(record, indent=1) + "\n")
    if (out / f"{name}.safetensors").is_file():
        write_card(name, out)
    print(json.dumps(record["figures"], indent=1))


if __name__ == "__main__":
    main()
