"""Checks for the exercises of chapter 14."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from smoothsal_lib.capture import capture
from smoothsal_lib.exercises.marking import (
    as_numbers,
    as_tensor,
    attempt,
    hint,
    picture_for,
    told,
    untouched,
    verdict,
)
from smoothsal_lib.fixes import smoothed
from smoothsal_lib.layers import INPUT
from smoothsal_lib.models import normalize


def check_14_1(answer: object) -> None:
    """Chapter 14: total stride, and how many strided convolutions."""
    if untouched(answer):
        return None
    numbers = as_numbers(answer, 2)
    if numbers is None:
        return hint("give two numbers, the total stride and how many layers are listed")
    if numbers == [3, 16]:
        return hint("the other way round: first the stride, then how many layers")
    if numbers[0] in (32, 8):
        return hint(
            "dilation spreads taps and not outputs"
            if numbers[0] == 32
            else "the pooling moves by 2 as well, although no grid comes from it"
        )
    if numbers[1] == 4:
        return hint("strided_layers lists convolutions only")
    verdict(
        numbers == [16, 3],
        "four of the five move by 2, and three of those are convolutions",
        "which of the five put their outputs further apart than their inputs, and which of those are convolutions?",
    )


def check_14_2(answer: object) -> None:
    """Chapter 14: from the pixels of a file to a network's input."""
    if untouched(answer):
        return None
    pixels = torch.randint(0, 256, (6, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = attempt(answer, pixels.numpy())
    if found is None:
        return None
    given = as_tensor(found)
    if given is None:
        return hint("return the picture as a tensor of numbers")
    first = pixels.double().permute(2, 0, 1)[None]
    wanted = normalize(first / 255)
    if given.shape == wanted.shape[1:]:
        return hint("nearly: a batch of one picture has an axis for it, (1, 3, H, W)")
    if given.shape != wanted.shape:
        return hint(f"a picture of (6, 8, 3) should become (1, 3, 6, 8), yours is {tuple(given.shape)}")
    mistakes = {
        "the values are those of the file: divide by 255": first,
        "divide by 255 before mean and spread": normalize(first),
        "subtract the mean colour and divide by the spread": first / 255,
        "the channels are in another order: red comes first": normalize(first.flip(1) / 255),
        "the values stand in other places: move axes by permute, which reshape and view do not": normalize(
            pixels.double().reshape(1, 3, 6, 8) / 255
        ),
    }
    for what, wrong in mistakes.items():
        if torch.allclose(given, wrong, atol=1e-3):
            return hint(what)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        return hint("the values are right; return them as a floating-point tensor, which the network takes")
    verdict(
        torch.allclose(given, wanted, atol=1e-3),
        "between 0 and 1, channels first, mean and spread of each channel, and an axis for the batch",
        "to between 0 and 1, then minus the mean and divided by the spread, channel by channel",
    )


def _networks() -> list[tuple[nn.Module, Tensor, list[str]]]:
    """Networks, pictures for them, and the layers at which the stride grows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
        begins_large = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, 2, 1), *ends)
        begins_small = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), *ends)
        enlarges = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ConvTranspose2d(4, 4, 2, 2), nn.AvgPool2d(4), *ends)
        # Strides 2, 1 and 4: to compare with the picture, or with the largest so far, would give the same here.
        again = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ConvTranspose2d(4, 4, 4, 4), nn.AvgPool2d(2), *ends)
        one_axis = nn.Sequential(nn.Conv2d(3, 4, 3, (1, 2), 1), nn.Conv2d(4, 4, 3, padding=1), *ends)
        x = torch.randn(1, 3, 16, 16)
    return [
        (begins_large.eval(), x, ["1", "2"]),
        (begins_small.eval(), x, ["1"]),
        (enlarges.eval(), x, ["0", "2"]),
        (again.eval(), x, ["0", "2"]),
        (one_axis.eval(), x, ["0"]),
    ]


def check_14_3(answer: object) -> None:
    """Chapter 14: the layers at which the stride grows."""
    if untouched(answer):
        return None
    for network, x, wanted in _networks():
        found = attempt(answer, network, x)
        if found is None:
            return None
        if isinstance(found, str) or not isinstance(found, Iterable):
            return hint("return the names, as a list")
        names = list(found)
        if sorted(map(str, names)) != wanted or not all(isinstance(name, str) for name in names):
            layers = ", ".join(type(module).__name__ for module in network[:-3])  # type: ignore[index]
            return hint(f"in a chain of {layers} the stride grows at {wanted}, yours are {names!r:.60}")
    verdict(True, "each layer is compared with the one before, and the first with the picture", "")


class _Answering(nn.Module):
    """A network that returns probabilities in a dictionary, and is as sure as one likes."""

    def __init__(self, sureness: float) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Linear(6, 4)
        self.head.weight.data *= sureness

    def logits(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x))
        return scores

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.logits(x).softmax(1)}


def check_14_4(answer: object) -> None:
    """Chapter 14: a network with a dictionary of probabilities, made fit to explain."""
    if untouched(answer):
        return None
    if isinstance(answer, nn.Module):
        return hint("hand over the function or class that makes the network, without calling it")
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    strengths = []  # of the gradient, beside that of the logit, for a network that is unsure and one that is sure
    for sureness in (1.0, 40.0):
        model = _Answering(sureness).eval()
        fit = attempt(answer, model)
        if fit is None:
            return None
        if not isinstance(fit, nn.Module):
            return hint(f"return a torch.nn.Module, not {type(fit).__name__}")
        with torch.no_grad():
            probabilities = model(x)["out"]
        target = probabilities.argmax(1)
        try:
            found = capture(fit, x, INPUT, target)
        except Exception as error:  # whatever a reader's network may raise, a check does not
            return hint(f"explaining it raises {told(error)}")
        if found.logits.shape != probabilities.shape or not torch.equal(found.logits.argmax(1), target):
            return hint("it should return one score for each class, and the highest for the same class as before")
        image = x.clone().requires_grad_()
        (own,) = torch.autograd.grad(model.logits(image).gather(1, target[:, None]).sum(), image)
        strengths.append(float(found.gradients[INPUT].norm() / own.norm()))
    verdict(
        strengths[1] > 0.2 * strengths[0] > 0,
        "a score that keeps its slope, however sure the network is",
        "where the network is sure, the gradient of your score has faded beside that of the logit: what does the slope "
        "of your function do as the probability comes near 1?",
    )


def check_14_5(answer: object) -> None:
    """Chapter 14: where the backward hook acts in the reader's own network, and where not."""
    if untouched(answer):
        return None
    roles = ("changed", "unchanged")
    if not isinstance(answer, dict) or set(answer) != {"network", *roles}:
        return hint("give a dictionary with the keys 'network', 'changed' and 'unchanged'")
    network = answer["network"]
    x = picture_for(network)
    if x is None:
        return None
    names = [answer[role] for role in roles]
    try:
        plain = capture(network, x, names, activations=False)
        with smoothed(network, "backward"):
            repaired = capture(network, x, names, plain.target, activations=False)
    except Exception as error:  # a wrong name, no stride, and whatever a reader's network may raise
        return hint(told(error))
    alike = {name: bool(torch.equal(plain.gradients[name], repaired.gradients[name])) for name in plain.gradients}
    changed, unchanged = (
        name if isinstance(name, str) else next(n for n, m in network.named_modules() if m is name) for name in names
    )
    if not bool(plain.gradients[changed].any()):
        return hint(f"at {changed} the gradient is zero everywhere, and a blur leaves zero as it is")
    if alike[changed]:
        return hint(f"at {changed} the hook changes nothing: no strided convolution lies between it and the score")
    verdict(
        alike[unchanged],
        f"between {changed} and the score lies a strided convolution, between {unchanged} and the score none",
        f"at {unchanged} the hook changes the gradient: it has met a strided convolution on its way there",
    )
