"""How much of the checkerboard does SmoothGrad remove, beside the repairs and on top of them?

python -m smoothsal_lib.experiments.smoothgrad --data FOLDER --out data/results
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.evaluate import fingerprint
from smoothsal_lib.experiments.command import options, save
from smoothsal_lib.experiments.estimate import estimate
from smoothsal_lib.explain import explain
from smoothsal_lib.extract import on_picture, saliency_map
from smoothsal_lib.fixes import Fix
from smoothsal_lib.layers import INPUT, HiddenLayer, hidden_layers
from smoothsal_lib.ledger import Ledger
from smoothsal_lib.metrics import checkerboard_energy, insertion, total_variation
from smoothsal_lib.metrics.localisation import energy_in_box
from smoothsal_lib.models import load_model, load_surrogate, normalize
from smoothsal_lib.precision import fast_autocast, precision
from smoothsal_lib.sampling import SmoothGrad

LAYERS = (INPUT, "layer1.1", "layer2.1", "layer3.1")  # the picture, and what the strided convolutions are fed
NOISE = 0.15
BLOCKS = (1, 4, 5, 15, 25)  # looks, each with noise of its own: together 1, 5, 10, 25 and 50 of them
SCORED = (0, sum(BLOCKS))  # looks after which insertion is measured, which costs more than the maps
STEPS = 14  # of insertion
NONE = "none"


def running_means(
    model: nn.Module, x: Tensor, target: Tensor, method: str, fix: str | Fix | None, noise: float, seed: int = 0
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The map without noise, as 0 looks, then SmoothGrad's after the first block, the second, and so on.

    Args:
        model: the network.
        x: images (N, C, H, W).
        target: (N,) their classes.
        method: for :func:`smoothsal_lib.explain`.
        fix: likewise.
        noise: of SmoothGrad.
        seed: of the first block; the next ones follow.

    Yields:
        How many looks, and their mean ``{layer: (N, C, H, W)}``.
    """
    yield 0, explain(model, x, target, LAYERS, method, fix)
    looks = 0
    mean: dict[str, Tensor] = {}
    for number, size in enumerate(BLOCKS):
        block = explain(model, x, target, LAYERS, method, fix, sampling=SmoothGrad(size, noise, seed + number))
        looks += size
        mean = {name: mean[name] + (a - mean[name]) * (size / looks) if mean else a for name, a in block.items()}
        yield looks, mean


def measured(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    boxes: Tensor,
    attributions: Mapping[str, Tensor],
    places: Mapping[str, HiddenLayer],
    score: bool,
) -> dict[str, dict[str, list[float]]]:
    """``{measure: {layer: one number an image}}``."""
    found: dict[str, dict[str, list[float]]] = {}

    def note(measure: str, layer: str, values: Tensor) -> None:
        found.setdefault(measure, {})[layer] = [float(f"{value:.6g}") for value in values.double().tolist()]

    for layer, attribution in attributions.items():
        note("total_variation", layer, total_variation(attribution))
        note("checkerboard_energy", layer, checkerboard_energy(attribution))
        magnitude = saliency_map(attribution, "abs_mean")
        overlay = on_picture(magnitude, (x.shape[2], x.shape[3]), places.get(layer))
        note("energy_in_box", layer, energy_in_box(overlay, boxes))
    if score:
        with fast_autocast(x.device):
            for name, maps in {
                "insertion": attributions,
                "insertion_magnitude": {k: a.abs() for k, a in attributions.items()},
            }.items():
                for layer, curve in insertion(model, x, maps, target, STEPS).items():
                    note(name, layer, curve.auc)
    return found


def rows(ledger: Ledger) -> Iterator[dict[str, object]]:
    """One row for every method x fix x number of looks x layer x measure.

    ``change`` is that from the map without noise under the same fix. Where there was also no fix, ``from_plain`` is the
    change from the map that has neither, and ``interaction`` what is left of it when the change by the fix alone and
    that by the noise alone are taken away: 0 where the two add up. All are of the same images, image by image.
    """
    found: dict[tuple[str, str, int, str, str], dict[str, Tensor]] = {}  # the last key is the batch
    for key, measures in ledger.pieces.items():
        method, fix, looks, batch = key.split("/")
        for measure, layers in measures.items():
            for layer, numbers in layers.items():
                found.setdefault((method, fix, int(looks), layer, measure), {})[batch] = torch.tensor(numbers)

    def of(batches: Iterable[str], *key: str | int) -> Tensor:
        return torch.cat([found[key][batch] for batch in batches])  # type: ignore[index]

    for (method, fix, count, layer, measure), parts in found.items():
        numbers = of(parts, method, fix, count, layer, measure)
        without_noise = of(parts, method, fix, 0, layer, measure)
        row: dict[str, object] = {"method": method, "fix": fix, "looks": count, "layer": layer, "measure": measure}
        row["n"] = len(numbers)
        row |= estimate(numbers, without_noise)
        if fix != NONE:
            plain = of(parts, method, NONE, 0, layer, measure)
            whole = estimate(numbers, plain)
            left = estimate(numbers - without_noise - of(parts, method, NONE, count, layer, measure) + plain)
            row |= {"from_plain": whole["change"], "from_plain_error": whole["change_error"]}
            row |= {"interaction": left["mean"], "interaction_error": left["error"]}
        yield row


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    arguments = options(
        "smoothgrad",
        __doc__,
        argv,
        limit=(1000, "measure the gradient on so many images"),
        deeplift=(40, "measure DeepLift on so many images"),
        scored=(200, "measure insertion, and the gradient under the forward hook and the surrogate, on so many images"),
    )
    model = load_model("tiny_resnet").to(arguments.device)
    surrogate = load_surrogate("tiny_resnet").to(arguments.device)
    repairs = {NONE: None, "backward": "backward", "forward": "forward", "surrogate": surrogate}
    settings = {"limit": arguments.limit, "deeplift": arguments.deeplift, "scored": arguments.scored}
    settings |= {"noise": NOISE, "blocks": BLOCKS, "weights": fingerprint(model, surrogate)}
    ledger = Ledger(arguments.out / "smoothgrad.partial.jsonl", settings)
    for method, limit in {"gradient": arguments.limit, "deeplift": arguments.deeplift}.items():
        images, _ = tiny_imagenet.load_split("val", arguments.data, limit)
        boxes = tiny_imagenet.load_boxes("val", arguments.data, limit)
        # What costs most is done for whole batches, every k-th, so that all classes have their turn.
        batches = list(zip(images.split(20), boxes.split(20), strict=True))
        every = max(1, round(len(images) / max(arguments.scored, 1)))
        for number, (some, objects) in enumerate(tqdm(batches, desc=method, unit="batch", mininterval=10)):
            x = normalize(some.to(arguments.device).float() / 255)
            places = hidden_layers(model, x)
            with torch.no_grad():
                target = model(x).argmax(1)
            chosen = number % every == 0 and arguments.scored > 0
            for fix, repair in repairs.items():
                if not chosen and fix not in (NONE, "backward"):
                    continue
                # The last number of looks is the last to be written, so what it needs is there if it is.
                if f"{method}/{fix}/{sum(BLOCKS)}/{number}" in ledger:
                    continue
                for looks, mean in running_means(model, x, target, method, repair, NOISE, seed=number * len(BLOCKS)):
                    key = f"{method}/{fix}/{looks}/{number}"
                    if key not in ledger:
                        scored = chosen and looks in SCORED
                        ledger.add(key, measured(model, x, target, objects, mean, places, scored))
    facts = {"noise": NOISE, "insertion": f"{STEPS} steps, on the original network, in {precision(arguments.device)}"}
    save(arguments, arguments.limit, list(rows(ledger)), **facts)
    ledger.remove()


if __name__ == "__main__":
    main()
