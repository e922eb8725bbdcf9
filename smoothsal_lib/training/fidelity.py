"""Measure what every fix costs on the validation set of tiny-imagenet-100, and store it for the book.

python -m smoothsal_lib.training.fidelity --data FOLDER --out data/results
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.fixes import Fix, smoothed
from smoothsal_lib.metrics.fidelity import accuracy, agreement, prediction_difference
from smoothsal_lib.models import load_model, load_surrogate, normalize
from smoothsal_lib.record import provenance


@torch.no_grad()
def all_logits(model: nn.Module, images: Tensor, fix: str | Fix | None, batch: int = 250, title: str = "") -> Tensor:
    """Logits (N, classes) in float32 of uint8 ``images`` (N, 3, H, W), the network repaired by ``fix``."""
    device = next(model.parameters()).device
    found = []
    with smoothed(model, fix):
        for part in tqdm(images.split(batch), desc=title, unit="batch", leave=False, mininterval=2):
            found.append(model(normalize(part.to(device).float() / 255)).cpu())
    return torch.cat(found)


def measure(
    model: nn.Module, images: Tensor, labels: Tensor, fixes: dict[str, str | Fix | None]
) -> dict[str, dict[str, float]]:
    """Top-1 accuracy, agreement with the original (shares) and prediction difference (0 to 2), one row a fix."""
    original = all_logits(model, images, None, title="original")
    rows = {}
    for name, fix in fixes.items():
        repaired = all_logits(model, images, fix, title=name)
        rows[name] = {
            "top1": accuracy(repaired, labels).double().mean().item(),
            "agreement": agreement(original, repaired).double().mean().item(),
            "prediction_difference": prediction_difference(original, repaired).double().mean().item(),
        }
    return rows


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with tiny-imagenet-100 (default: $SMOOTHSAL_DATA)")
    parser.add_argument("--out", type=Path, default=Path("data/results"), help="where fidelity.json goes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, help="measure on so many images only")
    arguments = parser.parse_args(argv)
    model = load_model("tiny_resnet").to(arguments.device)
    surrogate = load_surrogate("tiny_resnet").to(arguments.device)
    images, labels = tiny_imagenet.load_split("val", arguments.data, arguments.limit)
    fixes: dict[str, str | Fix | None] = {
        "none": None,
        "backward": "backward",
        "backward:paper": "backward:paper",
        "forward": "forward",
        "forward:paper": "forward:paper",
        "surrogate": surrogate,
    }
    rows = measure(model, images, labels, fixes)
    record = {
        **provenance("smoothsal_lib.training.fidelity", arguments.device),
        "model": "tiny_resnet",
        "data": "tiny-imagenet-100, validation",
        "images": len(images),
        "fixes": rows,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "fidelity.json").write_text(json.dumps(record, indent=1) + "\n")
    for name, row in rows.items():
        print(f"{name:16} " + "  ".join(f"{key} {value:.4f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
