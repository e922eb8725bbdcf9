"""Train ``tiny_resnet`` on tiny-imagenet-100.

    python -m smoothsal_lib.training.classifier --data FOLDER --out data      train, write weights, card and curve
    python -m smoothsal_lib.training.classifier --data FOLDER --evaluate      measure the embedded weights again

``--noise`` trains another network, on noisy pictures. It replaces no weights, so ``--out`` must be another folder.

The run can be killed at any moment and started again with the same command: it goes on from the last finished epoch.
Every epoch draws its order, crops and flips from a generator seeded by (seed, epoch), so a resumed run sees the
pictures an uninterrupted one would have seen. With ``torchrun --nproc-per-node 4 -m`` in the place of ``python -m``,
four processes share every batch, each with a GPU of its own where there are GPUs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.datasets.photos import load_photo
from smoothsal_lib.loading import epoch_seed, moved
from smoothsal_lib.models import TinyResNet, load_model, normalize, save_weights, top_classes
from smoothsal_lib.parallel import ALONE, Team, joined
from smoothsal_lib.precision import fast_autocast
from smoothsal_lib.record import provenance
from smoothsal_lib.sampling import SmoothGrad
from smoothsal_lib.training.loop import (
    Batch,
    Descent,
    make_optimizer,
    one_cycle,
    one_pass,
    resumable,
)

# (share of the epochs, {image size in pixels: share of the batches}). Small pictures first: they cost half and teach
# the same coarse shapes. Large ones last: without them the network is right but unsure above 64 px.
SIZE_SCHEDULE = ((0.35, {48: 1.0}), (0.47, {64: 1.0}), (0.18, {64: 0.6, 96: 0.25, 128: 0.15}))
Polish = tuple[int, dict[int, float]]  # epochs, and sizes as above
# The second polish shows things smaller than they were in training as well.
POLISH: tuple[Polish, ...] = ((4, {64: 0.85, 128: 0.15}), (3, {48: 0.2, 64: 0.6, 128: 0.2}))


@dataclass(frozen=True)
class Recipe(Descent):
    """Everything that decides the outcome; stored in the checkpoint, so that a resumed run cannot change it."""

    epochs: int = 34
    label_smoothing: float = 0.1
    smallest_crop: float = 0.4
    # Crops enlarge what is in them, so the network has rarely seen objects at the size they have in a whole picture.
    # The last epochs show nearly whole ones, at a low rate (Touvron et al. 2019, arXiv 1906.06423).
    polish_lr: float = 0.02
    polish_crop: float = 0.8
    polish: tuple[Polish, ...] = POLISH
    # Standard deviation of the Gaussian noise on every picture, as a share of its range: see add_noise.
    noise: float = 0.0

    @property
    def all_epochs(self) -> int:
        """Epochs of the cycle and of all polishes together."""
        return self.epochs + sum(length for length, _ in self.polish)


def sizes_of_epoch(epoch: int, recipe: Recipe) -> dict[int, float]:
    """The sizes (pixels) that epoch's batches are drawn from, each with its share; epochs count from 0.

    Raises:
        ValueError: for an epoch that the recipe does not have.
    """
    done = 0.0
    for share, sizes in SIZE_SCHEDULE:
        done += share
        if epoch < round(done * recipe.epochs):
            return sizes
    end = recipe.epochs
    for length, sizes in recipe.polish:
        end += length
        if epoch < end:
            return sizes
    raise ValueError(f"epoch {epoch} is not one of the recipe's {recipe.all_epochs}, which count from 0")


def random_crops(
    images: Tensor,
    size: int,
    smallest: float,
    generator: torch.Generator,
    *,
    part: slice = slice(None),
    whole: int | None = None,
) -> Tensor:
    """Crop ``smallest`` to all of each picture's area (aspect 3:4 to 4:3), flip half of them, resize to ``size``.

    Args:
        images: (N, 3, H, W) floats.
        size: side of the result in pixels.
        smallest: least share of the area that is kept.
        generator: where the random numbers come from (on the CPU).
        part: which pictures of a larger batch these are, for all of which the random numbers are drawn.
        whole: how many pictures that batch has; ``None``: these are all.

    Returns:
        (N, 3, size, size), in channels-last memory order.
    """
    n = whole or len(images)
    area = smallest + (1 - smallest) * torch.rand(n, generator=generator)
    log_aspect = (2 * torch.rand(n, generator=generator) - 1) * torch.log(torch.tensor(4 / 3))
    width = (area * log_aspect.exp()).sqrt().clamp(max=1)
    height = (area / log_aspect.exp()).sqrt().clamp(max=1)
    centre_x, centre_y = (2 * torch.rand(2, n, generator=generator) - 1) * (1 - torch.stack([width, height]))
    mirror = torch.randint(0, 2, (n,), generator=generator) * 2 - 1
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width * mirror, centre_x
    theta[:, 1, 1], theta[:, 1, 2] = height, centre_y
    theta = moved(theta[part], images.device)
    grid = F.affine_grid(theta, [len(theta), 3, size, size], align_corners=False)
    crops = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return crops.contiguous(memory_format=torch.channels_last)


def add_noise(
    images: Tensor,
    noise: float,
    generator: torch.Generator,
    *,
    part: slice = slice(None),
    whole: int | None = None,
) -> Tensor:
    """Add independent Gaussian noise to every value of every picture.

    Source: SmoothGrad (Smilkov et al. 2017, arXiv 1706.03825), which tries it on the training pictures too. Unlike
    :class:`smoothsal_lib.sampling.SmoothGrad` it draws other noise for every picture of the batch.

    Args:
        images: (N, C, H, W) floats, in any units.
        noise: the standard deviation, as a share of each picture's range, max - min over all its values.
        generator: where the random numbers come from (on the CPU).
        part: which pictures of a larger batch these are, for all of which the random numbers are drawn.
        whole: how many pictures that batch has; ``None``: these are all.

    Returns:
        (N, C, H, W), not clipped to the old range.

    Raises:
        ValueError: for noise that is negative or not finite.
    """
    drawn = torch.randn(whole or len(images), *images.shape[1:], generator=generator)[part]
    return images + SmoothGrad(noise=noise).spread(images) * moved(drawn, images.device).to(images)


def learning_rate(epoch: float, recipe: Recipe) -> float:
    """Linear up during the warm-up, then half a cosine down to zero; in each polish, linear down from its own rate.

    Args:
        epoch: how many passes over the data are done, a fraction within a pass; more than 0.
        recipe: the rates and lengths.
    """
    end = float(recipe.epochs)
    for length, _ in recipe.polish:
        if end < epoch <= end + length:
            return recipe.polish_lr * (end + length - epoch) / length
        end += length
    return one_cycle(epoch, recipe)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    device: torch.device | str,
    batch: int = 250,
    team: Team = ALONE,
) -> float:
    """Top-1 accuracy in float32, a share from 0 to 1.

    Args:
        model: the classifier; it stays on the device.
        images: (N, 3, H, W) uint8.
        labels: (N,), the right classes.
        device: where to compute.
        batch: pictures at a time.
        team: the processes that share the pictures; all of them learn the accuracy.
    """
    model.eval()
    part = team.part(len(images))
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for some, right in zip(images[part].split(batch), labels[part].split(batch), strict=True):
        x = normalize(moved(some, device).float() / 255)
        correct += (model(x).argmax(1) == moved(right, device)).sum()
    team.add_up([correct])
    return correct.item() / len(images)


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    epoch: int,
    recipe: Recipe,
    device: torch.device,
    team: Team = ALONE,
) -> float:
    """One pass over the data; returns the mean loss (nats)."""
    # A generator of its own, so that training with and without noise sees the same order, sizes and crops.
    noise_generator = torch.Generator().manual_seed(-1 - epoch_seed(recipe.seed, epoch))
    smallest_crop = recipe.smallest_crop if epoch < recipe.epochs else recipe.polish_crop

    def loss(stepping: nn.Module, batch: Batch) -> Tensor:
        x = normalize(moved(images[batch.picked], device).float() / 255)
        x = random_crops(x, batch.size, smallest_crop, batch.generator, part=batch.part, whole=batch.whole)
        if recipe.noise:
            x = add_noise(x, recipe.noise, noise_generator, part=batch.part, whole=batch.whole)
        with fast_autocast(device):
            logits = stepping(x)
        wanted = moved(labels[batch.picked], device)
        return F.cross_entropy(logits.float(), wanted, label_smoothing=recipe.label_smoothing)

    def rate(done: float) -> float:
        return learning_rate(done, recipe)

    sizes = sizes_of_epoch(epoch, recipe)
    return one_pass(model, optimizer, len(images), epoch, recipe, sizes, rate, loss, team)


def fit(
    model: nn.Module,
    recipe: Recipe,
    train_set: tuple[Tensor, Tensor],
    val_set: tuple[Tensor, Tensor],
    checkpoint: Path,
    device: torch.device,
    team: Team = ALONE,
) -> list[dict[str, float]]:
    """Train a network in place, going on from the checkpoint where there is one.

    Args:
        model: the network, on ``device``; it is left in evaluation mode.
        recipe: how.
        train_set: uint8 images (N, 3, H, W) and labels (N,) to learn from.
        val_set: the same to measure the accuracy on after every epoch.
        checkpoint: the file that is written after every epoch.
        device: where to compute.
        team: the processes that train it together, each with its part of every batch; the same network in all of them.

    Returns:
        The curve, one row an epoch: ``epoch`` (from 1), ``loss`` (nats), ``val_top1`` (a share), ``seconds``.

    Raises:
        ValueError: when the checkpoint was made by another recipe or with another number of pictures.
    """
    optimizer = make_optimizer(model, recipe)
    settings = asdict(recipe) | {"pictures": len(train_set[0])}

    def one_epoch(epoch: int) -> dict[str, float]:
        loss = train_epoch(model, optimizer, *train_set, epoch, recipe, device, team)
        return {"loss": loss, "val_top1": evaluate(model, *val_set, device, team=team)}

    return resumable(model, optimizer, recipe.all_epochs, settings, checkpoint, one_epoch, team)


def train(recipe: Recipe, data: Path | None, out: Path, device: torch.device, team: Team = ALONE) -> dict:
    """Train, checkpointing after every epoch in ``out/tiny_resnet.checkpoint.pt``; returns the training record.

    Raises:
        ValueError: when the checkpoint in ``out`` was made by another recipe, or, for a recipe with noise, when weights
            lie in ``out`` that no checkpoint there belongs to.
    """
    checkpoint, weights = out / "tiny_resnet.checkpoint.pt", out / "tiny_resnet.safetensors"
    if recipe.noise and weights.exists() and not checkpoint.exists():
        raise ValueError(f"training with noise would replace {str(weights)!r}: give another folder as --out")
    torch.manual_seed(recipe.seed)
    model = TinyResNet().to(device).to(memory_format=torch.channels_last)
    train_set, val_set = tiny_imagenet.load_split("train", data), tiny_imagenet.load_split("val", data)
    curve = fit(model, recipe, train_set, val_set, checkpoint, device, team)
    if team.leads:
        save_weights(model, weights, [row["name"] for row in tiny_imagenet.load_classes(data)])
    team.wait()
    options = f"--epochs {recipe.epochs} --seed {recipe.seed}" + (f" --noise {recipe.noise}" if recipe.noise else "")
    return {
        **provenance(f"smoothsal_lib.training.classifier {options}", device, team.size),
        "data": "tiny-imagenet-100",
        "recipe": asdict(recipe),
        "size_schedule": [[share, {str(size): part for size, part in sizes.items()}] for share, sizes in SIZE_SCHEDULE],
        "curve": curve,
    }


CARD = """# tiny_resnet

A ResNet of BasicBlocks for 100 classes of Tiny ImageNet: widths {widths}, two blocks a stage, 3 x 3 stride-2
stem, no max-pool; {parameters:,} parameters, stored in half precision. It exists to be explained: every downsampling is
a strided convolution. It is no competitive classifier.

- **Trained** by `{command}` on the 50,000 training images of tiny-imagenet-100 (64 x 64
  px): {seconds:.0f} s on {device}. The recipe and the curve are in `results/tiny_resnet_training.json`.
- **Top-1** on the 5,000 validation images at 64 px: {top1:.2%}, measured on the stored weights by
  `python -m smoothsal_lib.training.classifier --evaluate`.
- **Terms**: the weights are the project's own (MIT). The data is under ImageNet's terms (non-commercial research); no
  picture of it is stored here.
- **Limits**: objects that fill a small picture; 64 to 160 px. Probabilities are not calibrated.

What it sees in scikit-image's photographs, whole and cropped to the square in the middle:

| photograph | {sizes} |
|---|{rules}|
{photographs}
"""
PHOTOGRAPHS = ("chelsea", "coffee", "rocket")
PHOTOGRAPH_SIZES = (64, 128, 160)


def write_card(record: dict, top1: float, out: Path) -> None:
    """Write ``tiny_resnet.md`` beside the weights: what they are, what they were made from, how good they are."""
    model = load_model("tiny_resnet", folder=out)
    shapes = [(size, square) for size in PHOTOGRAPH_SIZES for square in (False, True)]
    rows = []
    for name in PHOTOGRAPHS:
        answers = [top_classes(model, load_photo(name, size, square)[0], k=1)[0][0] for size, square in shapes]
        rows.append(f"| {name} | " + " | ".join(f"{label} {p:.2f}" for label, p in answers) + " |")
    card = CARD.format(
        widths="/".join(str(getattr(model, f"layer{i}")[0].conv1.out_channels) for i in (1, 2, 3, 4)),
        parameters=sum(p.numel() for p in model.parameters()),
        command=record["command"],
        seconds=sum(epoch["seconds"] for epoch in record["curve"]),
        device=record["device"],
        top1=top1,
        sizes=" | ".join(f"{size} px, {'square' if square else 'whole'}" for size, square in shapes),
        rules="---|" * (len(shapes) - 1) + "---",
        photographs="\n".join(rows),
    )
    (out / "tiny_resnet.md").write_text(card)


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with tiny-imagenet-100 (default: $SMOOTHSAL_DATA)")
    parser.add_argument("--out", type=Path, default=Path("data"), help="where weights, card and curve go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    noise = "standard deviation of Gaussian noise on the training pictures, as a share of each one's range"
    parser.add_argument("--noise", type=float, default=Recipe.noise, help=noise)
    parser.add_argument("--evaluate", action="store_true", help="train nothing: print the embedded weights' top-1")
    arguments = parser.parse_args(argv)
    with joined(arguments.device) as (team, device):
        images, labels = tiny_imagenet.load_split("val", arguments.data)
        if arguments.evaluate:
            model = load_model("tiny_resnet")
        else:
            recipe = Recipe(epochs=arguments.epochs, noise=arguments.noise, seed=arguments.seed)
            (arguments.out / "results").mkdir(parents=True, exist_ok=True)
            record = train(recipe, arguments.data, arguments.out, device, team)
            model = load_model("tiny_resnet", folder=arguments.out)
        top1 = evaluate(model.to(device), images, labels, device, team=team)
        if not team.leads:
            return
        if not arguments.evaluate:
            (arguments.out / "results" / "tiny_resnet_training.json").write_text(json.dumps(record, indent=1) + "\n")
            write_card(record, top1, arguments.out)
        print(f"top-1 on {len(images)} validation images: {top1:.4f}")


if __name__ == "__main__":
    main()
