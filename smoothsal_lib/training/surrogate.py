"""Fit a surrogate to an embedded network and measure it, or compare the two recipes.

python -m smoothsal_lib.training.surrogate --data FOLDER --out data
python -m smoothsal_lib.training.surrogate --data FOLDER --out data --compare

The first writes the weights, a model card and ``results/NAME_surrogate.json``; it can be killed and started again. The
second fits by both recipes, writes ``results/surrogate_recipes.json`` and leaves the weights alone.
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
from smoothsal_lib.fixes.surrogate import Surrogate, fit_surrogate
from smoothsal_lib.models import load_model, normalize
from smoothsal_lib.record import provenance
from smoothsal_lib.training.fidelity import measure

MODULE = "smoothsal_lib.training.surrogate"


def training_images(images: int, data: Path | None) -> Tensor:
    """That many pictures of the training split, without their labels: (N, 3, 64, 64), normalised."""
    return normalize(tiny_imagenet.load_split("train", data, images)[0].float() / 255)


def fit_and_measure(model: nn.Module, images: Tensor, data: Path | None, **options: Any) -> tuple[Surrogate, dict]:
    """Fit with the given options of :func:`fit_surrogate`; what the fit took, and how far the result is from ``model``.

    The weights are rounded to half precision first, as they are stored. Seconds are those of the fit alone.
    """
    started = time.perf_counter()
    surrogate = fit_surrogate(model, images, **options)
    seconds = time.perf_counter() - started
    surrogate.half().float()
    val_images, labels = tiny_imagenet.load_split("val", data)
    rows = measure(model, val_images, labels, {"original": None, "surrogate": surrogate})
    return surrogate, {
        **surrogate.record,
        "seconds": seconds,
        **rows["surrogate"],
        "top1_original": rows["original"]["top1"],
        "errors": surrogate.errors,
    }


CARD = """# {name}_surrogate

A bilinear surrogate (Smooth Deep Saliency, arXiv 2404.02282) for `{name}`: it stands in for {count} strided
convolutions, all but the stem, and leaves the rest of the network as it is. {parameters:,} parameters, stored in half
precision.

- **Fitted** by `{command}` to {images} pictures of tiny-imagenet-100's training split, without labels:
  {presentations:,} presentations, {seconds:.0f} s on {device}.
- **Top-1** on the 5,000 validation images at 64 px: {top1:.2%}; the original has {top1_original:.2%}. Both name the
  same class for {agreement:.1%} of the images; the mean prediction difference is {prediction_difference:.3f} (of 2).
- **Terms**: the weights are the project's own (MIT). The data is under ImageNet's terms (non-commercial research); no
  picture of it is stored here.
- **Limits**: it belongs to these weights of `{name}` and to no others. Its maps are exact for the repaired network,
  which is not the original.

Error of each stage, relative to the spread of the output it imitates, on the pictures kept out of the fit (every 8th;
0 is perfect, 1 as bad as a constant):

| layer | L1 | L2 |
|---|---|---|
{rows}
"""


def write_card(name: str, surrogate: Surrogate, record: dict[str, Any], out: Path) -> None:
    """Write ``NAME_surrogate.md`` beside the weights: what they are, what they were made from, how good they are."""
    rows = [f"| {layer} | {error['l1']:.3f} | {error['l2']:.3f} |" for layer, error in surrogate.errors.items()]
    card = CARD.format(
        **record,
        name=name,
        count=len(surrogate.layers),
        parameters=sum(p.numel() for p in surrogate.parameters()),
        rows="\n".join(rows),
    )
    (out / f"{name}_surrogate.md").write_text(card)


def compare(model: nn.Module, arguments: argparse.Namespace) -> dict[str, dict]:
    """One row a recipe: ours with and without its gradient descent, and the paper's."""
    few = training_images(arguments.images, arguments.data)
    paper = training_images(arguments.paper_images, arguments.data)
    fits: dict[str, tuple[Tensor, dict[str, Any]]] = {
        "least squares": (few, {}),
        "least squares, no descent": (few, {"epochs": 0}),
        f"paper, {len(paper):,} images": (paper, {"recipe": "paper"}),
    }
    rows: dict[str, dict] = {}
    for title, (images, options) in fits.items():
        checkpoint = arguments.out / f"surrogate_{len(rows)}.checkpoint.pt"
        _, rows[title] = fit_and_measure(
            model, images, arguments.data, seed=arguments.seed, checkpoint=checkpoint, **options
        )
        checkpoint.unlink(missing_ok=True)
        print(title, {key: value for key, value in rows[title].items() if isinstance(value, (int, float))})
    return rows


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny_resnet")
    parser.add_argument("--images", type=int, default=512, help="how many pictures of the training split to fit to")
    parser.add_argument("--data", type=Path, help="folder with tiny-imagenet-100 (default: $SMOOTHSAL_DATA)")
    parser.add_argument("--out", type=Path, default=Path("data"), help="where weights, card and record go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action="store_true", help="compare the recipes instead")
    parser.add_argument("--paper-images", type=int, default=512, help="pictures for the paper's recipe in --compare")
    arguments = parser.parse_args(argv)
    model = load_model(arguments.model).to(arguments.device)
    (arguments.out / "results").mkdir(parents=True, exist_ok=True)
    common = {"model": arguments.model, "data": "tiny-imagenet-100: training split to fit, validation to measure"}
    if arguments.compare:
        command = f"{MODULE} --compare --images {arguments.images} --paper-images {arguments.paper_images}"
        record = {**provenance(command, arguments.device), **common, "recipes": compare(model, arguments)}
        path = arguments.out / "results" / "surrogate_recipes.json"
    else:
        command = f"{MODULE} --model {arguments.model} --images {arguments.images} --seed {arguments.seed}"
        checkpoint = arguments.out / f"{arguments.model}_surrogate.checkpoint.pt"
        surrogate, measured = fit_and_measure(
            model,
            training_images(arguments.images, arguments.data).to(arguments.device),
            arguments.data,
            seed=arguments.seed,
            checkpoint=checkpoint,
        )
        record = {**provenance(command, arguments.device), **common, **measured}
        surrogate.save(arguments.out / f"{arguments.model}_surrogate.safetensors", torch.float16)
        write_card(arguments.model, surrogate, record, arguments.out)
        checkpoint.unlink(missing_ok=True)
        path = arguments.out / "results" / f"{arguments.model}_surrogate.json"
        print({key: value for key, value in measured.items() if isinstance(value, (int, float))})
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
