"""Is the forward hook's loss of accuracy repairable by re-estimating batch-norm statistics from unlabelled images?

python -m smoothsal_lib.experiments.recalibration --data FOLDER --out data/results
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.experiments.command import options, save
from smoothsal_lib.experiments.estimate import estimate
from smoothsal_lib.explain import explain
from smoothsal_lib.fixes import Fix
from smoothsal_lib.fixes.recalibration import recalibrate
from smoothsal_lib.metrics.fidelity import accuracy, agreement, prediction_difference
from smoothsal_lib.metrics.noise import checkerboard_energy, total_variation
from smoothsal_lib.models import load_model, normalize
from smoothsal_lib.training.fidelity import all_logits

FIXES = {"none": None, "forward": "forward", "forward:paper": "forward:paper"}
SEEDS = {100: 3, 500: 3, 2000: 1, 5000: 1}  # images to re-estimate from: how many random choices of them
SMOOTHNESS_FROM = 2000  # the re-estimation whose maps are measured
Values = dict[tuple[str, str], Tensor]  # (layer, measure) -> one number an image
Case = tuple[str, int, int]  # fix, images it was re-estimated from (0: not at all), seed


def cases(pool: Tensor, model: nn.Module) -> Iterator[tuple[Case, str | Fix | None]]:
    """Every fix before and after re-estimation from n of the images in ``pool`` (uint8, without labels)."""
    for name, fix in FIXES.items():
        yield (name, 0, 0), fix
        for count, seeds in SEEDS.items():
            for seed in range(seeds if count <= len(pool) else 0):
                chosen = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:count]
                images = normalize(pool[chosen].to(next(model.parameters()).device).float() / 255)
                # One batch, which needs a single pass; 5,000 images at 64 px take 4 GB.
                yield (name, count, seed), recalibrate(model, fix, images, batch=count)


def fidelity(original: Tensor, repaired: Tensor, labels: Tensor) -> Values:
    """What became of the predictions: logits (N, classes) of both networks, labels (N,)."""
    return {
        ("output", "top1"): accuracy(repaired, labels),
        ("output", "agreement"): agreement(original, repaired),
        ("output", "prediction_difference"): prediction_difference(original, repaired),
    }


def smoothness(model: nn.Module, images: Tensor, target: Tensor, fix: str | Fix | None, batch: int = 50) -> Values:
    """Noise of the gradient at every hidden layer, for uint8 ``images`` (N, 3, H, W) and the classes ``target``."""
    found: dict[tuple[str, str], list[Tensor]] = {}
    device = next(model.parameters()).device
    for part, classes in zip(images.split(batch), target.split(batch), strict=True):
        x = normalize(part.to(device).float() / 255)
        for layer, gradient in explain(model, x, classes.to(device), method="gradient", fix=fix).items():
            found.setdefault((layer, "total_variation"), []).append(total_variation(gradient).cpu())
            if min(gradient.shape[2:]) >= 4:  # room for two cells of the grid
                found.setdefault((layer, "checkerboard_energy"), []).append(checkerboard_energy(gradient).cpu())
    return {key: torch.cat(parts) for key, parts in found.items()}


def measure(model: nn.Module, pool: Tensor, images: Tensor, labels: Tensor, maps: int) -> Iterator[dict[str, object]]:
    """One row for every case, layer and measure; the changes are those from the same fix before re-estimation.

    Args:
        model: the network.
        pool: uint8 (N, 3, H, W), the images to re-estimate from.
        images: uint8 (N, 3, H, W), the images to measure on.
        labels: (N,) their classes.
        maps: measure the smoothness on the first so many images, evenly spread over the classes.
    """
    original = all_logits(model, images, None, title="original")
    spread = torch.tensor(tiny_imagenet.evenly(len(images), maps))
    before: dict[str, Values] = {}
    for (name, count, seed), fix in cases(pool, model):
        values = fidelity(original, all_logits(model, images, fix, title=f"{name} {count}"), labels)
        if count in (0, SMOOTHNESS_FROM):
            values |= smoothness(model, images[spread], original.argmax(1)[spread], fix)
        earlier = before.setdefault(name, values)
        for (layer, kind), numbers in values.items():
            row = {"fix": name, "reestimated_from": count, "seed": seed, "layer": layer, "measure": kind}
            yield row | {"n": len(numbers)} | estimate(numbers, earlier[layer, kind])


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    counts = {"limit": (None, "measure on so many images"), "maps": (500, "measure the maps of so many of these")}
    arguments = options("recalibration", __doc__, argv, **counts)
    model = load_model("tiny_resnet").to(arguments.device)
    pool, _ = tiny_imagenet.load_split("train", arguments.data, 2 * max(SEEDS))
    images, labels = tiny_imagenet.load_split("val", arguments.data, arguments.limit)
    rows = list(measure(model, pool, images, labels, arguments.maps))
    data = "tiny-imagenet-100: training split, without labels, to re-estimate; validation to measure"
    save(arguments, len(images), rows, data=data)
    for row in rows:
        if row["layer"] == "output":
            case = f"{row['fix']:14} {row['reestimated_from']:5} {row['measure']:22}"
            print(f"{case} {row['mean']:.4f} ± {row['error']:.4f}")


if __name__ == "__main__":
    main()
