"""Does an inner step of learning make maps more specific to the class, and at what rate?

python -m smoothsal_lib.experiments.meta_saliency --data FOLDER --out data/results
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from smoothsal_lib.capture import Capture, capture, logits_of
from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.evaluate import fingerprint
from smoothsal_lib.experiments.command import options, save
from smoothsal_lib.experiments.estimate import estimate
from smoothsal_lib.experiments.extract_aggregate import GRAD_CAM, Cell, maps_of
from smoothsal_lib.extract import resize_map
from smoothsal_lib.layers import HiddenLayer, hidden_layers
from smoothsal_lib.ledger import Ledger
from smoothsal_lib.meta import capture_stepped, stepped
from smoothsal_lib.metrics.localisation import TOLERANCE, energy_in_box, pointing_game
from smoothsal_lib.metrics.similarity import rank_correlation
from smoothsal_lib.models import load_model, normalize

LAYERS = ("layer2.1", "layer3.1", "layer4.1")
METHODS: dict[str, Cell] = {
    "gradient": ("bias", "max_abs"),
    "linear_approximation": ("scaling", "sum"),
    "normgrad": ("conv1x1", "l2"),
    "normgrad_selective": ("scaling", "positive_norm"),
    "grad_cam": GRAD_CAM,
}
RATES = (1e-4, 1e-3, 1e-2)
# The name of a step -> its order and rate; "none" is the map as it always was.
STEPS = {"none": (0, 0.0)} | {f"order {order}, rate {rate:g}": (order, rate) for order in (1, 2) for rate in RATES}

Values = dict[str, dict[str, dict[str, float]]]  # method -> layer -> measure -> number


def one_image(model: nn.Module, x: Tensor, box: Tensor, listed: dict[str, HiddenLayer], step: str) -> Values:
    """Every measure of one image, (1, C, H, W), under one kind of step."""
    order, rate = STEPS[step]
    logits = logits_of(model, x)
    size = (x.shape[2], x.shape[3])
    maps = []
    for target in (logits.argmax(1), logits.argmin(1)):
        maps.append(maps_of(_captured(model, x, target, order, rate), tuple(METHODS.values())))
    values: Values = {}
    for method, cell in METHODS.items():
        for layer in LAYERS:
            most, least = (found[cell, layer] for found in maps)
            overlay = resize_map(most, size, listed[layer])
            numbers = {
                "class_sensitivity": rank_correlation(most, least),
                "pointing_game": pointing_game(overlay, box, TOLERANCE * size[1]),
                "energy_in_box": energy_in_box(overlay, box),
            }
            values.setdefault(method, {})[layer] = {name: float(f"{one.item():.6g}") for name, one in numbers.items()}
    return values


def _captured(model: nn.Module, x: Tensor, target: Tensor, order: int, rate: float) -> Capture:
    if order == 2:
        return capture_stepped(model, x, LAYERS, target, rate)
    if order == 1:
        with stepped(model, x, target, rate):
            return capture(model, x, LAYERS, target)
    return capture(model, x, LAYERS, target)


def rows(ledger: Ledger) -> Iterator[dict[str, object]]:
    """One row for every step x method x layer x measure; changes are those from no step, image by image."""
    together: dict[tuple[str, str, str, str], list[float]] = {}
    for batch in ledger.pieces.values():
        for image in batch:
            for step, methods in image.items():
                for method, layers in methods.items():
                    for layer, measures in layers.items():
                        for measure, number in measures.items():
                            together.setdefault((step, method, layer, measure), []).append(number)
    for (step, method, layer, measure), numbers in together.items():
        before = None if step == "none" else torch.tensor(together["none", method, layer, measure])
        row: dict[str, object] = {"step": step, "method": method, "layer": layer, "measure": measure}
        yield row | estimate(torch.tensor(numbers), before)


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    arguments = options("meta_saliency", __doc__, argv, limit=(300, "measure on so many images"))
    model = load_model("tiny_resnet").to(arguments.device)
    images, _ = tiny_imagenet.load_split("val", arguments.data, arguments.limit)
    boxes = tiny_imagenet.load_boxes("val", arguments.data, arguments.limit)
    settings = {"limit": arguments.limit, "rates": RATES, "layers": LAYERS, "weights": fingerprint(model)}
    ledger = Ledger(arguments.out / "meta_saliency.partial.jsonl", settings)
    batches = list(zip(images.split(20), boxes.split(20), strict=True))
    for number, (some, objects) in enumerate(tqdm(batches, unit="batch", mininterval=10)):
        if str(number) in ledger:
            continue
        x = normalize(some.to(arguments.device).float() / 255)
        listed = hidden_layers(model, x)
        each = zip(x.split(1), objects.split(1), strict=True)
        ledger.add(
            str(number), [{step: one_image(model, one, box, listed, step) for step in STEPS} for one, box in each]
        )
    save(arguments, len(images), list(rows(ledger)), fix="none", tolerance=f"{TOLERANCE:.4f} of the picture's side")
    ledger.remove()


if __name__ == "__main__":
    main()
