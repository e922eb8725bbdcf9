"""How many noisy looks does SmoothGrad need? Two seeds compared, at several levels of noise.

python -m smoothsal_lib.experiments.stability --data FOLDER --out data/results
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from smoothsal_lib.capture import logits_of
from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.evaluate import fingerprint
from smoothsal_lib.experiments.command import options, save
from smoothsal_lib.experiments.estimate import estimate
from smoothsal_lib.explain import explain
from smoothsal_lib.extract import on_picture, saliency_map
from smoothsal_lib.layers import INPUT, hidden_layers
from smoothsal_lib.ledger import Ledger
from smoothsal_lib.metrics.localisation import energy_in_box
from smoothsal_lib.metrics.similarity import rank_correlation
from smoothsal_lib.models import load_model, normalize
from smoothsal_lib.sampling import SmoothGrad

LAYERS = (INPUT, "layer1.1", "layer3.1")
NOISES = (0.05, 0.1, 0.2, 0.3, 0.5)
BLOCKS = (1, 1, 3, 5, 10, 30, 50, 100)  # looks, together 1, 2, 5, 10, 20, 50, 100 and 200 of them
SEEDS = 2

Values = dict[str, dict[str, list[float]]]  # measure -> layer -> one number an image


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation (N,) of all values of two attributions (N, C, H, W)."""
    a, b = (one.flatten(1).double() - one.flatten(1).double().mean(1, keepdim=True) for one in (a, b))
    spread = (a.square().sum(1) * b.square().sum(1)).sqrt()
    return torch.where(spread > 0, (a * b).sum(1) / spread, 0)


def stability(model: nn.Module, x: Tensor, boxes: Tensor, noise: float) -> Iterator[tuple[int, Values]]:
    """How alike the maps of two seeds are after 1, 2, 5, ... looks, and how much of them lies on the object.

    Args:
        model: the network, unrepaired.
        x: images (N, C, H, W), explained for the class predicted.
        boxes: (N, 4) where the objects are.
        noise: of SmoothGrad.

    Yields:
        How many looks, and ``{measure: {layer: [N numbers]}}``: ``agreement``, the correlation of the attributions;
        ``agreement_magnitude``, the rank correlation of the maps of their magnitude; ``energy_in_box`` of that map;
        ``likeness``, its rank correlation with the map without noise.
    """
    target = logits_of(model, x).argmax(1)
    places = hidden_layers(model, x)
    plain = {
        name: saliency_map(a, "abs_mean") for name, a in explain(model, x, target, LAYERS, "gradient", None).items()
    }
    means: list[dict[str, Tensor]] = [{} for _ in range(SEEDS)]
    looks = 0
    for number, size in enumerate(BLOCKS):
        looks += size
        for seed, mean in enumerate(means):
            sampling = SmoothGrad(size, noise, seed=seed * len(BLOCKS) + number)
            block = explain(model, x, target, LAYERS, "gradient", None, sampling=sampling)
            for name, a in block.items():
                mean[name] = mean[name] + (a - mean[name]) * (size / looks) if name in mean else a
        found: dict[str, dict[str, Tensor]] = {}
        for name in LAYERS:
            one, other = (mean[name] for mean in means)
            first, second = (saliency_map(a, "abs_mean") for a in (one, other))
            overlay = on_picture(first, (x.shape[2], x.shape[3]), places.get(name))
            found.setdefault("agreement", {})[name] = correlation(one, other)
            found.setdefault("agreement_magnitude", {})[name] = rank_correlation(first, second)
            found.setdefault("energy_in_box", {})[name] = energy_in_box(overlay, boxes)
            found.setdefault("likeness", {})[name] = rank_correlation(first, plain[name])
        yield (
            looks,
            {measure: {name: one.tolist() for name, one in layers.items()} for measure, layers in found.items()},
        )


def rows(ledger: Ledger) -> Iterator[dict[str, object]]:
    """One row for every noise x number of looks x layer x measure."""
    together: dict[tuple[float, int, str, str], list[float]] = {}
    for key, measures in ledger.pieces.items():
        noise, looks, _ = key.split("/")
        for measure, layers in measures.items():
            for layer, numbers in layers.items():
                together.setdefault((float(noise), int(looks), layer, measure), []).extend(numbers)
    for (level, count, layer, measure), numbers in together.items():
        row: dict[str, object] = {
            "noise_percent": round(100 * level),
            "looks": count,
            "layer": layer,
            "measure": measure,
        }
        yield row | estimate(torch.tensor(numbers))


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    arguments = options("stability", __doc__, argv, limit=(40, "measure on so many images"))
    model = load_model("tiny_resnet").to(arguments.device)
    images, _ = tiny_imagenet.load_split("val", arguments.data, arguments.limit)
    boxes = tiny_imagenet.load_boxes("val", arguments.data, arguments.limit)
    settings = {"limit": arguments.limit, "noises": NOISES, "blocks": BLOCKS, "weights": fingerprint(model)}
    ledger = Ledger(arguments.out / "stability.partial.jsonl", settings)
    pairs = [(noise, number) for noise in NOISES for number in range(-(-len(images) // 20))]
    for noise, number in tqdm(pairs, unit="batch", mininterval=10):
        if f"{noise}/{sum(BLOCKS)}/{number}" in ledger:
            continue
        some = slice(20 * number, 20 * (number + 1))
        x = normalize(images[some].to(arguments.device).float() / 255)
        for looks, values in stability(model, x, boxes[some], noise):
            if (key := f"{noise}/{looks}/{number}") not in ledger:
                ledger.add(key, values)
    save(arguments, len(images), list(rows(ledger)), method="gradient, without a fix")
    ledger.remove()


if __name__ == "__main__":
    main()
