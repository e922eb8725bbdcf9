"""Fit a surrogate to a network and measure it, or compare the two recipes.

python -m smoothsal_lib.training.surrogate --data FOLDER --out data
python -m smoothsal_lib.training.surrogate --model tissue_resnet --out data
python -m smoothsal_lib.training.surrogate --data FOLDER --out data --compare
torchrun -m smoothsal_lib.training.surrogate --model resnet34 --images-from TRAIN --held-out-from VAL --out FOLDER

The first two write the weights, a model card and ``results/NAME_surrogate.json``; they can be killed and started again.
The third fits by both recipes, writes ``results/surrogate_recipes.json`` and leaves the weights alone. The last fits to
pictures of your own, read from class folders or tar shards (:mod:`smoothsal_lib.datasets.streams`), for any network
that ``load_model`` knows; it writes weights and record. ``torchrun`` shares the work of each among processes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.datasets.benchmark import CROP_SIZE
from smoothsal_lib.datasets.streams import stream_pictures
from smoothsal_lib.fixes.surrogate import RECIPES, Surrogate, fit_surrogate
from smoothsal_lib.metrics.detection import auc
from smoothsal_lib.metrics.fidelity import agreement, prediction_difference
from smoothsal_lib.models import load_model, normalize
from smoothsal_lib.parallel import ALONE, Team, joined
from smoothsal_lib.record import provenance
from smoothsal_lib.training import detector
from smoothsal_lib.training.fidelity import all_logits, measure

MODULE = "smoothsal_lib.training.surrogate"
HELD_OUT = 256  # pictures of --held-out-from that errors and fidelity are measured on
DATA = {
    "tiny_resnet": "tiny-imagenet-100: training split to fit, validation to measure",
    "tissue_resnet": "generated tissue: patches it was trained on to fit, other patients to measure",
    "tissue_segmenter": "generated tissue: patches it was trained on to fit, other patients to measure",
    "glas_resnet": "GlaS: patients it was trained on to fit, the others to measure",
}


def training_images(name: str, images: int, data: Path | None) -> Tensor:
    """That many pictures of those the network was trained on, without their labels: (N, 3, H, W), normalised."""
    if name == "tiny_resnet":
        pictures = tiny_imagenet.load_split("train", data, images)[0]
    else:
        pictures = detector.load_patches(name, "train", data, images).images
        pictures = pictures[tiny_imagenet.evenly(len(pictures), images)]
    return normalize(pictures.float() / 255)


def fidelity(name: str, model: nn.Module, surrogate: Surrogate, data: Path | None) -> dict[str, Any]:
    """How good the repaired network is and how far from the original, on pictures that neither has learnt from.

    Returns:
        ``agreement``, the share of the pictures (for a segmenter, of the pixels) of which both say the same;
        ``prediction_difference``; and how good either is, ``..._original`` being the network without the surrogate:
        ``top1`` of a classifier; ``auc`` of a detector, whose decision is at logit 0; ``accuracy`` of the pixels,
        ``iou`` and ``tumour_average_precision`` of a segmenter.
    """
    if name == "tiny_resnet":
        rows = measure(model, *tiny_imagenet.load_split("val", data), {"original": None, "surrogate": surrogate})
        return {**rows["surrogate"], "top1_original": rows["original"]["top1"]}
    patches = detector.load_patches(name, "test", data)
    original, repaired = (all_logits(model, patches.images, fix) for fix in (None, surrogate))
    if name == "tissue_segmenter":
        original, repaired = (logits.movedim(1, -1).flatten(0, -2) for logits in (original, repaired))
        found: dict[str, Any] = {}
        for suffix, fix in (("_original", None), ("", surrogate)):
            figures = detector.segmentation_figures(model, patches, fix)
            found |= {f"{key}{suffix}": figures[key] for key in ("accuracy", "iou", "tumour_average_precision")}
        difference = prediction_difference(original, repaired)
    else:
        found = {"auc_original": auc(original[:, 0], patches.labels), "auc": auc(repaired[:, 0], patches.labels)}
        difference = prediction_difference(original, repaired, activation="sigmoid")
        # With a logit of 0 for "no tumour", the highest one is the decision at 0.
        original, repaired = (torch.cat([torch.zeros_like(logits), logits], 1) for logits in (original, repaired))
    return {
        "agreement": agreement(original, repaired).double().mean().item(),
        "prediction_difference": difference.double().mean().item(),
        **found,
    }


def fit_and_measure(
    name: str, model: nn.Module, images: Tensor, data: Path | None, **options: Any
) -> tuple[Surrogate, dict]:
    """Fit with the given options of :func:`fit_surrogate`; what the fit took, and how far the result is from ``model``.

    The weights are rounded to half precision first, as they are stored. Seconds are those of the fit alone.
    """
    started = time.perf_counter()
    surrogate = fit_surrogate(model, images, **options)
    seconds = time.perf_counter() - started
    surrogate.half().float()
    return surrogate, {
        **surrogate.record,
        "seconds": seconds,
        **fidelity(name, model, surrogate, data),
        "errors": surrogate.errors,
    }


CARD = """# {name}_surrogate

A bilinear surrogate (Smooth Deep Saliency, arXiv 2404.02282) for `{name}`: it stands in for {count} strided
convolutions, all but the stem, and leaves the rest of the network as it is. {parameters:,} parameters, stored in half
precision.

- **Fitted** by `{command}`
  to {images} {pictures}, without labels:
  {presentations:,} presentations, {seconds:.0f} s on {device}.
{quality}
- **Terms**: {terms}
- **Limits**: it belongs to these weights of `{name}` and to no others. Its maps are exact for the repaired network,
  which is not the original.{limits}

Error of each stage, relative to the spread of the output it imitates, on the pictures kept out of the fit (every 8th;
0 is perfect, 1 as bad as a constant):

| layer | L1 | L2 |
|---|---|---|
{rows}
"""

CLASSIFIED = """\
- **Top-1** on the 5,000 validation images at 64 px: {top1:.2%}; the original has {top1_original:.2%}. Both name the
  same class for {agreement:.1%} of the images; the mean prediction difference is {prediction_difference:.3f} (of 2)."""
DETECTED = """\
- **AUC** on patches of patients that neither has seen: {auc:.3f}; the original has {auc_original:.3f}. Both decide
  alike, at logit 0, for {agreement:.1%} of the patches; the mean prediction difference is
  {prediction_difference:.3f} (of 1)."""
SEGMENTED = """\
- **Accuracy** on patches of other patients: {accuracy:.1%} of the pixels; the original has {accuracy_original:.1%}.
  Both name the same class for {agreement:.1%} of the pixels; the mean prediction difference is
  {prediction_difference:.3f} (of 2)."""
IMAGENET_TERMS = """\
the weights are the project's own (MIT). The data is under ImageNet's terms (non-commercial research); no
  picture of it is stored here."""


def write_card(name: str, surrogate: Surrogate, record: dict[str, Any], out: Path) -> None:
    """Write ``NAME_surrogate.md`` beside the weights: what they are, what they were made from, how good they are."""
    rows = [f"| {layer} | {error['l1']:.3f} | {error['l2']:.3f} |" for layer, error in surrogate.errors.items()]
    quality, pictures, terms, limits = {
        "tiny_resnet": (CLASSIFIED, "pictures of tiny-imagenet-100's training split", IMAGENET_TERMS, ""),
        "tissue_resnet": (DETECTED, "patches of generated tissue", detector.TISSUE_TERMS, ""),
        "tissue_segmenter": (SEGMENTED, "patches of generated tissue", detector.TISSUE_TERMS, ""),
        "glas_resnet": (DETECTED, "patches of GlaS's training patients", detector.GLAS_TERMS, " Not for the clinic."),
    }[name]
    card = CARD.format(
        **record,
        name=name,
        count=len(surrogate.layers),
        parameters=sum(p.numel() for p in surrogate.parameters()),
        quality=quality.format(**record),
        pictures=pictures,
        terms=terms,
        limits=limits,
        rows="\n".join(rows),
    )
    (out / f"{name}_surrogate.md").write_text(card)


def fit_to_stream(name: str, model: nn.Module, arguments: argparse.Namespace, team: Team) -> Surrogate:
    """Fit to pictures of the user's own, as the options of the command line have it; write weights and record."""
    others = stream_pictures(arguments.held_out_from, size=arguments.size).dataset
    pictures = torch.stack([others[number][0] for number in tiny_imagenet.evenly(len(others), HELD_OUT)])
    loader = stream_pictures(
        arguments.images_from,
        batch_size=arguments.batch_size,
        size=arguments.size,
        images=arguments.images,
        seed=arguments.seed,
        workers=arguments.workers,
        team=team,
    )
    checkpoint = arguments.out / f"{name}_surrogate.checkpoint.pt"
    started = time.perf_counter()
    surrogate = fit_surrogate(
        model,
        loader,
        recipe=arguments.recipe,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        held_out=normalize(pictures.float() / 255).to(next(model.parameters()).device),
        checkpoint=checkpoint,
        every=arguments.every,
        team=team,
    )
    seconds = time.perf_counter() - started
    if team.leads:
        surrogate.half().float()  # as it is stored
        original, repaired = (all_logits(model, pictures, fix, arguments.batch_size) for fix in (None, surrogate))
        record = {
            **provenance(f"{MODULE} {_options(arguments)}", next(model.parameters()).device, team.size),
            "model": arguments.model,
            **surrogate.record,
            "images": loader.batch_sampler.count,
            "size": arguments.size,
            "seconds": seconds,
            "agreement": agreement(original, repaired).double().mean().item(),
            "prediction_difference": prediction_difference(original, repaired).double().mean().item(),
            "errors": surrogate.errors,
        }
        surrogate.save(arguments.out / f"{name}_surrogate.safetensors", torch.float16)
        (arguments.out / "results" / f"{name}_surrogate.json").write_text(json.dumps(record, indent=1) + "\n")
        checkpoint.unlink(missing_ok=True)
        print({key: value for key, value in record.items() if isinstance(value, (int, float))})
    return surrogate


def _options(arguments: argparse.Namespace) -> str:
    """What decides the outcome of :func:`fit_to_stream`; folders stand without what lies above them."""
    epochs = "" if arguments.epochs is None else f" --epochs {arguments.epochs}"
    return (
        f"--model {arguments.model} --images-from {Path(arguments.images_from).name} "
        f"--held-out-from {Path(arguments.held_out_from).name} --recipe {arguments.recipe}{epochs} "
        f"--images {'all' if arguments.images is None else arguments.images} --size {arguments.size} "
        f"--batch-size {arguments.batch_size} --seed {arguments.seed}"
    )


def compare(model: nn.Module, arguments: argparse.Namespace, team: Team = ALONE) -> dict[str, dict]:
    """One row a recipe: ours with and without its gradient descent, and the paper's."""
    name = arguments.model
    few, paper = (
        training_images(name, count, arguments.data).to(arguments.device)
        for count in (arguments.images, arguments.paper_images)
    )
    fits: dict[str, tuple[Tensor, dict[str, Any]]] = {
        "least squares": (few, {}),
        "least squares, no descent": (few, {"epochs": 0}),
        f"paper, {len(paper):,} images": (paper, {"recipe": "paper"}),
    }
    rows: dict[str, dict] = {}
    for title, (images, options) in fits.items():
        checkpoint = arguments.out / f"surrogate_{len(rows)}.checkpoint.pt"
        _, rows[title] = fit_and_measure(
            name, model, images, arguments.data, seed=arguments.seed, checkpoint=checkpoint, team=team, **options
        )
        team.wait()  # nobody needs the checkpoint any more
        if team.leads:
            checkpoint.unlink(missing_ok=True)
            print(title, {key: value for key, value in rows[title].items() if isinstance(value, (int, float))})
    return rows


def _number(text: str) -> int | None:
    return None if text == "all" else int(text)


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", default="tiny_resnet", help=f"{', '.join(DATA)}; with --images-from any that load_model knows"
    )
    parser.add_argument(
        "--images", type=_number, default=512, help="how many pictures to fit to, evenly spread; all with --images-from"
    )
    parser.add_argument(
        "--data", type=Path, help="folder with tiny-imagenet-100, or with GlaS (default: $SMOOTHSAL_DATA)"
    )
    parser.add_argument("--out", type=Path, default=Path("data"), help="where weights, card and record go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action="store_true", help="compare the recipes instead")
    parser.add_argument("--paper-images", type=int, default=512, help="pictures for the paper's recipe in --compare")
    own = parser.add_argument_group("pictures of your own")
    own.add_argument("--images-from", metavar="SOURCE", help="class folders, or tar shards: train-{000000..000146}.tar")
    own.add_argument("--held-out-from", metavar="SOURCE", help=f"others, of which {HELD_OUT} measure the result")
    own.add_argument("--recipe", choices=tuple(RECIPES), default="least_squares")
    own.add_argument("--epochs", type=int, help="passes of gradient descent (default: the recipe's)")
    own.add_argument("--size", type=int, default=CROP_SIZE, help="height and width in pixels")
    own.add_argument("--batch-size", type=int, default=64, help="pictures a step, of all processes together")
    own.add_argument("--workers", type=int, default=2, help="that decode pictures, for each process")
    own.add_argument("--every", type=int, default=1000, help="steps between two checkpoints within an epoch")
    arguments = parser.parse_args(argv)
    if (arguments.images_from is None) != (arguments.held_out_from is None):
        parser.error("--images-from and --held-out-from belong together: the errors are measured on unseen pictures")
    if arguments.images_from is None and arguments.model not in DATA:
        parser.error(f"no pictures for {arguments.model!r}: give --images-from, or choose {', '.join(DATA)}")
    if arguments.images_from is None and arguments.images is None:
        parser.error("--images all is for --images-from: give a number")
    (arguments.out / "results").mkdir(parents=True, exist_ok=True)
    with joined(arguments.device) as (team, device):
        model = load_model(arguments.model).to(device)
        if arguments.images_from is not None:
            fit_to_stream(arguments.model.replace("/", "-"), model, arguments, team)
        elif arguments.compare:
            write_comparison(model, arguments, team)
        else:
            fit_embedded(model, arguments, team)


def write_comparison(model: nn.Module, arguments: argparse.Namespace, team: Team) -> None:
    """Compare the recipes for an embedded network and store the table."""
    command = f"{MODULE} --compare --images {arguments.images} --paper-images {arguments.paper_images}"
    common = {"model": arguments.model, "data": DATA[arguments.model]}
    record = {**provenance(command, arguments.device, team.size), **common, "recipes": compare(model, arguments, team)}
    if team.leads:
        (arguments.out / "results" / "surrogate_recipes.json").write_text(json.dumps(record, indent=1) + "\n")


def fit_embedded(model: nn.Module, arguments: argparse.Namespace, team: Team) -> None:
    """Fit to an embedded network, and write weights, card and record."""
    device = next(model.parameters()).device
    checkpoint = arguments.out / f"{arguments.model}_surrogate.checkpoint.pt"
    images = training_images(arguments.model, arguments.images, arguments.data).to(device)
    surrogate, measured = fit_and_measure(
        arguments.model, model, images, arguments.data, seed=arguments.seed, checkpoint=checkpoint, team=team
    )
    if not team.leads:
        return
    command = f"{MODULE} --model {arguments.model} --images {arguments.images} --seed {arguments.seed}"
    common = {"model": arguments.model, "data": DATA[arguments.model]}
    record = {**provenance(command, device, team.size), **common, **measured}
    surrogate.save(arguments.out / f"{arguments.model}_surrogate.safetensors", torch.float16)
    write_card(arguments.model, surrogate, record, arguments.out)
    path = arguments.out / "results" / f"{arguments.model}_surrogate.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    checkpoint.unlink(missing_ok=True)
    print({key: value for key, value in measured.items() if isinstance(value, (int, float))})


if __name__ == "__main__":
    main()
