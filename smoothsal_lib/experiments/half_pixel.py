"""Does the published backward hook move maps, does ours not, and is it the centring or the wider kernel that counts?

python -m smoothsal_lib.experiments.half_pixel --data FOLDER --out data/results

Two kernels, each centred and half a pixel off, all four with cyclic borders: the box [1 1]/2 and the tent [1 2 1]/4 of
two boxes. Between a kernel centred and off centre nothing differs but the phase of its spectrum: equal blur. Half a
pixel off, the box is the published hook ("backward:paper"); centred, the tent is ours ("backward") but for the border,
which ours mirrors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.experiments.command import options, save
from smoothsal_lib.experiments.estimate import estimate
from smoothsal_lib.explain import explain
from smoothsal_lib.extract import resize_map, saliency_map
from smoothsal_lib.fixes import Fix
from smoothsal_lib.fixes.backward import GradientBlur
from smoothsal_lib.layers import INPUT, HiddenLayer, hidden_layers
from smoothsal_lib.metrics.faithfulness import insertion
from smoothsal_lib.metrics.localisation import TOLERANCE, energy_in_box, pointing_game
from smoothsal_lib.metrics.locality import shift
from smoothsal_lib.models import load_model, normalize
from smoothsal_lib.precision import fast_autocast

METHODS = ("gradient", "deeplift")
TRAINED, LINEAR = "trained", "linear"
STEPS = 14  # of insertion
LINEAR_CLASSES, LINEAR_SIZE = 4, 256
# What each comparison holds fixed but for one thing: (fix, compared with).
EFFECTS = {
    "centring, box": ("box", "backward:paper"),
    "centring, tent": ("tent", "tent half a pixel off"),
    "width, centred": ("tent", "box"),
    "width, off centre": ("tent half a pixel off", "backward:paper"),
    "border": ("backward", "tent"),
    "all three": ("backward", "backward:paper"),
    "published fix": ("backward:paper", "none"),
    "our fix": ("backward", "none"),
}
Key = tuple[str, str, str, str]  # network, method, layer, measure
Values = dict[tuple[Key, str], list[Tensor]]  # and fix -> one number an image, batch by batch


class CyclicBlur(GradientBlur):
    """The box [1 1]/2, once or several times over, at any fraction of a pixel.

    Shifted by d, the n-fold box has the spectrum cos(pi f)^n exp(-2 pi i f d): zero at the Nyquist frequency, the only
    one for which a fraction of a pixel would have no meaning. Once over and half a pixel off, it is the published hook.

    Args:
        boxes: 1 for the box, 2 for the tent [1 2 1]/4.
        off: how far it moves maps, in pixels down and to the right.
    """

    def __init__(self, boxes: int, off: float) -> None:
        self.boxes, self.off = boxes, off

    def blur(self, gradient: Tensor, strides: Sequence[int]) -> Tensor:
        """The gradient, blurred along every axis with a stride."""
        for axis, stride in enumerate(strides, start=2):
            if stride > 1:
                size = gradient.shape[axis]
                f = torch.fft.rfftfreq(size, dtype=gradient.dtype, device=gradient.device)
                spectrum = torch.cos(torch.pi * f) ** self.boxes * torch.exp(-2j * torch.pi * f * self.off)
                waves = torch.fft.rfft(gradient.movedim(axis, -1)) * spectrum
                gradient = torch.fft.irfft(waves, size).movedim(-1, axis)
        return gradient


FIXES: dict[str, str | Fix | None] = {
    "none": None,
    "backward:paper": "backward:paper",
    "backward": "backward",
    "box": CyclicBlur(1, 0.0),
    "tent": CyclicBlur(2, 0.0),
    "tent half a pixel off": CyclicBlur(2, 0.5),
}
OFF_CENTRE = ("backward:paper", "tent half a pixel off")
# Whose shift is measured, against what: against no fix, and against the same blur where that exists centred.
SHIFTS = [
    *((name, "none") for name in FIXES if name != "none"),
    ("backward:paper", "box"),
    ("tent half a pixel off", "tent"),
]


class Middle(nn.Module):
    """The middle of a map, where a network takes its mean."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 1, 1)."""
        row, column = x.shape[2] // 2, x.shape[3] // 2
        return x[:, :, row : row + 1, column : column + 1]


def nothing_holds(model: nn.Module) -> nn.Module:
    """A copy of a ResNet in which nothing keeps a gradient in its place: all shifts should add up.

    ReLUs let everything pass, for the pattern of the units that are on enters the gradient at every layer, unshifted.
    The score reads one place of the last layer, as the mean over all places would leave nothing but borders to see.
    """
    linear = copy.deepcopy(model)
    for module in list(linear.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Identity())
    linear.avgpool = Middle()
    return linear


def described(model: nn.Module, x: Tensor) -> dict[str, HiddenLayer]:
    """The picture and the hidden layers."""
    picture = HiddenLayer(INPUT, (x.shape[1], x.shape[2], x.shape[3]), (1, 1), (0.0, 0.0))
    return {INPUT: picture, **hidden_layers(model, x)}


def accumulated(layers: dict[str, HiddenLayer]) -> dict[str, float]:
    """Half a pixel for every strided stage above a layer, in pixels of the layer, if nothing held the map in place."""
    strides = sorted({layer.stride[0] for layer in layers.values()})
    return {
        name: sum(0.5 * above for above in strides[:-1] if above >= layer.stride[0]) / layer.stride[0]
        for name, layer in layers.items()
    }


def shifts(
    values: Values, network: str, method: str, found: dict[str, dict[str, Tensor]], layers: dict[str, HiddenLayer]
) -> None:
    """Add how far each fix has moved the attributions ``{fix: {layer: (N, C, h, w)}}`` of one batch.

    The mean of the shift down and the shift to the right, in pixels of the layer: of the attribution, channel by
    channel, and of the map of its magnitude.
    """
    for name in layers:
        for fix, against in SHIFTS:
            a, b = found[against][name], found[fix][name]
            measured = {
                "shift": shift(a, b),
                "shift of magnitude": shift(saliency_map(a, "abs_mean"), saliency_map(b, "abs_mean")),
            }
            for measure, moved in measured.items():
                values.setdefault(((network, method, name, measure), f"{fix}|{against}"), []).append(moved.mean(1))


def scores(
    values: Values, method: str, found: dict[str, dict[str, Tensor]], layers: dict[str, HiddenLayer], boxes: Tensor
) -> None:
    """Add whether the maps of one batch point at the object (boxes (N, 4)), aligned with the picture."""
    size = (layers[INPUT].shape[1], layers[INPUT].shape[2])
    for fix, attributions in found.items():
        for name, layer in layers.items():
            for reduce, of in (("mean", ""), ("abs_mean", " of magnitude")):
                maps = resize_map(saliency_map(attributions[name], reduce), size, layer)
                measured = {
                    "pointing game": pointing_game(maps, boxes, TOLERANCE * size[0]),
                    "energy in box": energy_in_box(maps, boxes),
                }
                for measure, one in measured.items():
                    values.setdefault(((TRAINED, method, name, measure + of), fix), []).append(one)


def insertions(
    values: Values, model: nn.Module, x: Tensor, target: Tensor, method: str, found: dict[str, dict[str, Tensor]],
    layers: dict[str, HiddenLayer],
) -> None:  # fmt: skip
    """Add the insertion AUC of one batch, for the last layer of every stride that has a strided stage above it."""
    last = {layer.stride[0]: name for name, layer in layers.items()}
    for name in list(last.values())[:-1]:
        maps = {
            fix: resize_map(saliency_map(attributions[name]), (x.shape[2], x.shape[3]), layers[name])
            for fix, attributions in found.items()
        }
        with fast_autocast(x.device):  # forward passes only
            curves = insertion(model, x.contiguous(memory_format=torch.channels_last), maps, target, STEPS)
        for fix, curve in curves.items():
            values.setdefault(((TRAINED, method, name, "insertion"), fix), []).append(curve.auc)


def measure(model: nn.Module, images: Tensor, boxes: Tensor, inserted: int, batch: int = 50) -> Values:
    """All measures of uint8 ``images`` (N, 3, H, W) with their boxes, insertion for ``inserted`` of them.

    Every image is explained for the class that the unrepaired network predicts.
    """
    device = next(model.parameters()).device
    values: Values = {}
    parts = list(zip(images.split(batch), boxes.split(batch), strict=True))
    share = -(-inserted // len(parts))
    for part, box in tqdm(parts, desc="half a pixel", unit="batch", leave=False, mininterval=2):
        x = normalize(part.to(device).float() / 255)
        layers = described(model, x)
        with torch.no_grad():
            target = model(x).argmax(1)
        for method in METHODS:
            found = {name: explain(model, x, target, list(layers), method, fix) for name, fix in FIXES.items()}
            shifts(values, TRAINED, method, found, layers)
            scores(values, method, found, layers, box.to(device))
            few = tiny_imagenet.evenly(len(x), share)  # images are sorted by class: the first ones would be of few
            chosen = {fix: {name: a[few] for name, a in maps.items()} for fix, maps in found.items()}
            insertions(values, model, x[few], target[few], method, chosen, layers)
    # The linear copy's gradient depends on the class alone; the picture is large so that borders lie far away.
    x = torch.zeros(LINEAR_CLASSES, 3, LINEAR_SIZE, LINEAR_SIZE, device=device)
    layers, linear = described(model, x), nothing_holds(model)
    target = torch.arange(LINEAR_CLASSES, device=device)
    found = {name: explain(linear, x, target, list(layers), "gradient", fix) for name, fix in FIXES.items()}
    shifts(values, LINEAR, "gradient", found, layers)
    return values


def rows(values: Values, expected: dict[str, float], strides: dict[str, int]) -> Iterator[dict[str, object]]:
    """One row a measure and comparison; images whose attribution is constant have no shift and are left out."""
    numbers = {key: torch.cat(parts).cpu() for key, parts in values.items()}
    for (key, pair), found in numbers.items():
        network, method, layer, kind = key
        row: dict[str, object] = {"network": network, "method": method, "layer": layer, "measure": kind}
        if kind.startswith("shift"):
            fix, against = pair.split("|")
            found = found[~found.isnan()]
            if len(found):
                once = estimate(found)
                yield row | {"fix": fix, "against": against, "n": len(found)} | once | {
                    "median": round(found.median().item(), 4),
                    "in_input_pixels": round(once["mean"] * strides[layer], 4),
                    "if_nothing_held_it": expected[layer] if fix in OFF_CENTRE else 0.0,
                }  # fmt: skip
            continue
        yield row | {"fix": pair, "n": len(found)} | estimate(found)
        for effect, (fix, against) in EFFECTS.items():
            if fix == pair:
                compared = estimate(found, numbers[key, against])
                yield row | {"effect": effect, "fix": fix, "against": against, "n": len(found)} | compared


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    counts = {"limit": (500, "measure on so many images"), "insert": (100, "insertion on so many of these")}
    arguments = options("half_pixel", __doc__, argv, **counts)
    model = load_model("tiny_resnet").to(arguments.device).to(memory_format=torch.channels_last)
    images, _ = tiny_imagenet.load_split("val", arguments.data, arguments.limit)
    boxes = tiny_imagenet.load_boxes("val", arguments.data, arguments.limit)
    values = measure(model, images, boxes, arguments.insert)
    layers = described(model, normalize(images[:1].to(arguments.device).float() / 255))
    strides = {name: layer.stride[0] for name, layer in layers.items()}
    found = list(rows(values, accumulated(layers), strides))
    tolerance = TOLERANCE * images.shape[2]
    save(arguments, len(images), found, insertion_steps=STEPS, pointing_game_tolerance=tolerance)
    for row in found:
        case = f"{row['network']:13} {row['method']:8} {row['layer']:8}"
        if row["measure"] == "shift" and row["against"] == "none":
            print(f"{case} shift {row['fix']:22} {row['mean']:+.3f} ± {row['error']:.3f} pixels of the layer")
        elif "effect" in row:
            print(f"{case} {row['measure']:27} {row['effect']:18} {row['change']:+.4f} ± {row['change_error']:.4f}")


if __name__ == "__main__":
    main()
