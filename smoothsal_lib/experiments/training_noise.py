"""Noise on the training pictures, noise at test time (SmoothGrad), and both: do their effects on maps add up?

python -m smoothsal_lib.experiments.training_noise --data FOLDER --out data/results

Source: SmoothGrad (Smilkov et al. 2017, arXiv 1706.03825), which finds on MNIST that they do. Copies of the embedded
network are trained on for a few epochs, all on the same crops in the same order, and differ in the noise alone. Their
batch-norm statistics are then those of noisy pictures, while the pictures to be explained are clean. So every copy is
measured again with the statistics of clean pictures, which shows what the weights have learnt.

The copies and partial results lie in ``--weights FOLDER``, by default in the system's folder for temporary files; the
same command goes on where a killed one stopped. Started by torchrun, all processes train the copies together, and the
first one measures.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from tqdm.auto import tqdm

from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.experiments.command import options, save
from smoothsal_lib.experiments.estimate import estimate
from smoothsal_lib.explain import explain
from smoothsal_lib.extract import on_picture, saliency_map
from smoothsal_lib.fixes.recalibration import recalibrate
from smoothsal_lib.layers import INPUT, hidden_layers
from smoothsal_lib.ledger import Ledger
from smoothsal_lib.metrics import checkerboard_energy, deletion, insertion, total_variation
from smoothsal_lib.metrics.fidelity import accuracy, probabilities
from smoothsal_lib.metrics.localisation import TOLERANCE, energy_in_box, pointing_game
from smoothsal_lib.metrics.sanity import random_maps
from smoothsal_lib.models import load_model, normalize
from smoothsal_lib.parallel import ALONE, Team, joined
from smoothsal_lib.precision import fast_autocast, precision
from smoothsal_lib.sampling import SmoothGrad
from smoothsal_lib.training.classifier import Recipe, add_noise, fit

NOISES = (0.0, 0.1)  # on the training pictures; the first is the control
TEST_NOISES = (0.0, 0.1, 0.2)  # on the pictures of which the accuracy is measured
LEVEL = 0.15  # of SmoothGrad's noise at test time
TRAINING, CLEAN = "training", "clean"  # the pictures that the batch-norm statistics are those of
CLEAN_PICTURES = 2000  # of the training split, to estimate the statistics from
LAYERS = (INPUT, "layer1.1", "layer2.1", "layer3.1")
OUTPUT = "output"  # stands for the layer where the whole network is measured
NONE, SMOOTHGRAD, RANDOM = "none", "smoothgrad", "random"  # what is done at test time; random numbers for a map
Values = dict[str, Tensor]  # measure -> one number an image
Network = tuple[float, str]  # noise on the training pictures; TRAINING or CLEAN
Place = tuple[float, str, str, str]  # of a network, then what is done at test time, and the layer


def recipe(noise: float, epochs: int) -> Recipe:
    """A polish without a cycle before it: nearly whole pictures of 64 px, a low rate that falls to zero."""
    return Recipe(epochs=0, polish=((epochs, {64: 1.0}),), noise=noise)


def fine_tuned(
    noise: float,
    epochs: int,
    train_set: tuple[Tensor, Tensor],
    val_set: tuple[Tensor, Tensor],
    folder: Path,
    device: torch.device,
    team: Team = ALONE,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """A copy of the embedded network, trained on; and the curve of :func:`smoothsal_lib.training.classifier.fit`.

    Args:
        noise: on the training pictures, as a share of each one's range.
        epochs: how many.
        train_set: uint8 images (N, 3, H, W) and labels (N,) to learn from.
        val_set: the same to measure the accuracy on.
        folder: where the checkpoint lies that the training goes on from.
        device: where to compute.
        team: the processes that train it together.
    """
    model = load_model("tiny_resnet").to(device).to(memory_format=torch.channels_last)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"noise_{noise}.checkpoint.pt"
    return model, fit(model, recipe(noise, epochs), train_set, val_set, checkpoint, device, team)


def with_clean_statistics(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of the network with the batch-norm statistics of uint8 ``images`` (N, 3, H, W), all in one batch."""
    x = normalize(images.to(next(model.parameters()).device).float() / 255)
    copy = deepcopy(model)
    modules = dict(copy.named_modules())
    for name, statistics in recalibrate(model, None, x, batch=len(x)).statistics.items():
        modules[name].running_mean, modules[name].running_var = statistics
    return copy


def predictions(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 250) -> Values:
    """Whether the network is right, on pictures with and without noise, and how sure it is of the clean ones.

    Args:
        model: the network, in evaluation mode.
        images: uint8 (N, 3, H, W).
        labels: (N,) their classes.
        batch: images that go through the network at once.

    Returns:
        ``top1`` (1 or 0), ``top1_noise_0.1`` and so on for :data:`TEST_NOISES`, and ``confidence``, the
        probability of the predicted class of the clean picture; each (N,). Every call draws the same noise.
    """
    device = next(model.parameters()).device
    found: Values = {}
    for noise in TEST_NOISES:
        generator = torch.Generator().manual_seed(0)
        parts = []
        with torch.no_grad():
            for some in images.split(batch):
                parts.append(model(add_noise(normalize(some.to(device).float() / 255), noise, generator)).cpu())
        logits = torch.cat(parts)
        found[f"top1_noise_{noise}" if noise else "top1"] = accuracy(logits, labels).double()
        if not noise:
            found["confidence"] = probabilities(logits).amax(1).double()
    return found


def map_values(
    model: nn.Module, scorer: nn.Module, images: Tensor, boxes: Tensor, samples: int, steps: int
) -> dict[tuple[str, str], Values]:
    """Every measure of the gradient's maps for the class that the network predicts, with and without SmoothGrad.

    What is on the picture, for the boxes and for the order of pixels in insertion and deletion, is the mean magnitude
    over channels, brought to the picture's size as the layer is aligned; roughness and grid are of the attribution.

    Args:
        model: the network that is explained.
        scorer: the same for insertion and deletion, possibly faster.
        images: uint8 (N, 3, H, W), few enough for one batch.
        boxes: (N, 4) where the objects are.
        samples: of SmoothGrad.
        steps: of insertion and deletion.

    Returns:
        ``{(what is done at test time, layer): {measure: (N,)}}``.
    """
    x = normalize(images.to(next(model.parameters()).device).float() / 255)
    places = hidden_layers(model, x)
    with torch.no_grad():
        target = model(x).argmax(1)
    samplings = {NONE: None, SMOOTHGRAD: SmoothGrad(samples, LEVEL)}
    attributions = {
        (name, layer): attribution
        for name, sampling in samplings.items()
        for layer, attribution in explain(model, x, target, LAYERS, "gradient", None, sampling=sampling).items()
    }
    attributions[RANDOM, INPUT] = random_maps(x)
    overlays = {
        f"{name}/{layer}": on_picture(
            saliency_map(attribution, "abs_mean"), (x.shape[2], x.shape[3]), places.get(layer)
        )
        for (name, layer), attribution in attributions.items()
    }
    with fast_autocast(x.device):
        inserted = insertion(scorer, x, overlays, target, steps)
        deleted = deletion(scorer, x, overlays, target, steps)
    return {
        (name, layer): {
            "total_variation": total_variation(attribution).cpu(),
            "checkerboard_energy": checkerboard_energy(attribution).cpu(),
            "energy_in_box": energy_in_box(overlays[f"{name}/{layer}"], boxes).cpu(),
            "pointing_game": pointing_game(overlays[f"{name}/{layer}"], boxes, TOLERANCE * x.shape[2]).cpu(),
            "insertion": inserted[f"{name}/{layer}"].auc.cpu(),
            "deletion": deleted[f"{name}/{layer}"].auc.cpu(),
        }
        for (name, layer), attribution in attributions.items()
    }


def rows(measured: Mapping[Place, Values]) -> Iterator[dict[str, object]]:
    """The rows of the record: every mean, and the paired changes that the two noises make, each with its error.

    ``from_training`` is the change from the control with the same done at test time, ``from_test`` the change from the
    same network's plain map, ``from_both`` the change from the control's plain map. ``interaction`` is the change by
    both minus the sum of the changes by either alone: 0 where the effects add up. All of them compare networks with
    statistics of the same kind.
    """
    for (noise, statistics, sampling, layer), values in measured.items():
        head: dict[str, object] = {
            "training_noise": noise,
            "statistics": statistics,
            "sampling": sampling,
            "layer": layer,
        }
        trained = noise != NOISES[0]
        for name, numbers in values.items():
            row = head | {"measure": name, "n": len(numbers)} | estimate(numbers)
            control = measured[NOISES[0], statistics, sampling, layer][name]
            changes = {"from_training": (numbers, control)} if trained else {}
            if sampling == SMOOTHGRAD:
                plain = measured[noise, statistics, NONE, layer][name]
                control_plain = measured[NOISES[0], statistics, NONE, layer][name]
                changes["from_test"] = (numbers, plain)
                if trained:
                    changes["from_both"] = (numbers, control_plain)
                    changes["interaction"] = (numbers - plain, control - control_plain)
            for title, (after, before) in changes.items():
                difference = estimate(after, before)
                row |= {title: difference["change"], f"{title}_error": difference["change_error"]}
            yield row


def measure(
    models: Mapping[Network, nn.Module],
    val_set: tuple[Tensor, Tensor],
    boxes: Tensor,
    arguments: argparse.Namespace,
    ledger: Ledger,
    batch: int = 50,
) -> dict[Place, Values]:
    """Every measure of every network, beginning with what is not in the ledger yet.

    Args:
        models: the fine-tuned networks.
        val_set: uint8 images (N, 3, H, W) and labels (N,) for the accuracy; the maps are those of ``arguments.limit``
            of these, evenly spread over the classes.
        boxes: (N, 4) where the objects are.
        arguments: ``limit``, ``samples`` and ``steps``.
        ledger: where partial results go.
        batch: images that are explained at once.
    """
    spread = torch.tensor(tiny_imagenet.evenly(len(boxes), arguments.limit)).split(batch)
    for (noise, statistics), model in models.items():
        head = f"{noise}/{statistics}"
        if f"{head}/{OUTPUT}" not in ledger:
            ledger.add(f"{head}/{OUTPUT}", [[NONE, OUTPUT, _lists(predictions(model, *val_set))]])
        explained = deepcopy(model).to(memory_format=torch.contiguous_format)
        scorer = fuse(deepcopy(model)).to(memory_format=torch.channels_last)
        for number, some in enumerate(tqdm(spread, desc=head, unit="batch", mininterval=2)):
            if f"{head}/{number}" not in ledger:
                part = val_set[0][some], boxes[some]
                found = map_values(explained, scorer, *part, arguments.samples, arguments.steps)
                ledger.add(f"{head}/{number}", [[*place, _lists(values)] for place, values in found.items()])
    measured: dict[Place, dict[str, list[float]]] = {}
    for noise, statistics in models:
        for piece in (OUTPUT, *range(len(spread))):
            for sampling, layer, values in ledger.pieces[f"{noise}/{statistics}/{piece}"]:
                for name, numbers in values.items():
                    of_place = measured.setdefault((noise, statistics, sampling, layer), {})
                    of_place.setdefault(name, []).extend(numbers)
    return {
        place: {name: torch.tensor(numbers) for name, numbers in values.items()} for place, values in measured.items()
    }


def _lists(values: Values) -> dict[str, list[float]]:
    return {name: numbers.tolist() for name, numbers in values.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; ``--help`` lists the options, to which ``--weights FOLDER`` comes."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--weights", type=Path, default=Path(tempfile.gettempdir()) / "smoothsal_training_noise")
    folder, others = own.parse_known_args(argv)
    counts = {
        "limit": (300, "measure the maps of so many images"),
        "pictures": (25_000, "train on so many"),
        "epochs": (3, "of training"),
        "samples": (50, "of SmoothGrad"),
        "steps": (14, "of insertion and deletion"),
    }
    arguments = options("training_noise", __doc__, others, **counts)
    train_set = tiny_imagenet.load_split("train", arguments.data, arguments.pictures)
    val_set = tiny_imagenet.load_split("val", arguments.data)
    with joined(arguments.device) as (team, device):
        trained = {
            noise: fine_tuned(noise, arguments.epochs, train_set, val_set, folder.weights, device, team)
            for noise in NOISES
        }
    if not team.leads:
        return
    chosen = tiny_imagenet.evenly(len(train_set[0]), CLEAN_PICTURES)
    models, curves = {}, {}
    for noise, (model, curves[noise]) in trained.items():
        models[noise, TRAINING] = model
        models[noise, CLEAN] = with_clean_statistics(model, train_set[0][chosen])
    settings = {name: getattr(arguments, name) for name in counts}
    ledger = Ledger(folder.weights / "measured.partial.jsonl", settings | {"level": LEVEL})
    boxes = tiny_imagenet.load_boxes("val", arguments.data)
    measured = measure(models, val_set, boxes, arguments, ledger)
    facts = {
        **settings,
        "smoothgrad_noise": LEVEL,
        "clean_statistics_from": CLEAN_PICTURES,
        "trained_on": "tiny-imagenet-100's training split, evenly spread over the classes; the same crops for all",
        "recipe": {**asdict(recipe(NOISES[0], arguments.epochs)), "noise": NOISES},
        "curves": curves,
        "explained": "the class that each network predicts for the clean picture, by the gradient, without a fix",
        "scored_on": f"the network that is explained, in {precision(arguments.device)}",
    }
    save(arguments, len(val_set[0]), list(rows(measured)), **facts)
    ledger.remove()


if __name__ == "__main__":
    main()
