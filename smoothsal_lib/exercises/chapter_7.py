"""Checks for the exercises of chapter 7."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from smoothsal_lib.datasets.photos import load_photo
from smoothsal_lib.exercises.marking import as_numbers, as_tensor, attempt, hint, picture_for, told, untouched, verdict
from smoothsal_lib.explain import explain
from smoothsal_lib.metrics.noise import checkerboard_energy
from smoothsal_lib.models import load_model


def check_7_1(answer: object) -> None:
    """Chapter 7: the total variation of a large checkerboard."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    if number == [2]:
        return hint("two is what one direction adds; there are two directions")
    verdict(
        number == [4],
        "every step is one of 2, in two directions, and the mean size to divide by is 1",
        "what is the mean absolute value, and how large is the step from one position to the next?",
    )


def check_7_2(answer: object) -> None:
    """Chapter 7: the least agreement of two networks that are both right on 60 % of the images."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    if number is not None and abs(number[0] - 20) < 1e-6:
        return hint("as a share, please: a number between 0 and 1")
    if number is not None and abs(number[0]) < 1e-9:
        return hint("60 % and 60 % are more than all images, so on some of them both are right")
    verdict(
        number is not None and abs(number[0] - 0.2) < 1e-6,
        "2 x 0.6 - 1: where both are right, they agree",
        "let one be right where the other is wrong, as often as possible; what is left?",
    )


def check_7_3(answer: object) -> None:
    """Chapter 7: a function that plants a checkerboard of a given energy into an attribution."""
    if untouched(answer):
        return None
    for scale, share in ((1.0, 0.5), (1.0, 0.2), (30.0, 0.8)):
        noise = scale * torch.randn(3, 16, 32, 32, generator=torch.Generator().manual_seed(0))
        if (found := attempt(answer, noise.clone(), share)) is None:
            return None
        planted = as_tensor(found)
        if planted is None or planted.shape != noise.shape:
            return hint(f"return an attribution of the shape you were given, {tuple(noise.shape)}")
        energy = float(checkerboard_energy(planted).mean())
        if not abs(energy - share) <= 0.05:
            return hint(f"asked for {share:g} in noise of standard deviation {scale:g}, the energy is {energy:.2f}")
    verdict(True, "of the variance v + h^2 of map and grid together, h^2 is the grid's, whatever the map's scale", "")


def check_7_4(answer: object) -> None:
    """Chapter 7: how far agreement and prediction difference can part, with 100 classes."""
    if untouched(answer):
        return None
    numbers = as_numbers(answer, 2)
    if numbers is None:
        return hint("give two numbers, the largest difference in agreement and the smallest in disagreement")
    largest, smallest = numbers
    if abs(largest - 2) < 1e-6:
        return hint("2 would need two networks that share no class at all; how little may the one they agree on have?")
    if not abs(largest - 1.98) < 1e-3:
        return hint("let one network be certain, and the other as unsure as it can be while it names the same class")
    verdict(
        abs(smallest) < 1e-3,
        "certain against nearly uniform is 2 (1 - 1/100), and two classes that are all but level can swap for nothing",
        "the first is right; for the second, let two classes be all but level",
    )


def check_7_5(answer: object) -> None:
    """Chapter 7: a function that finds the most gridded layer of any network, and the reader's own network."""
    if untouched(answer):
        return None
    if not isinstance(answer, Sequence) or len(answer) != 2:
        return hint("give two things, the function and your network")
    function, network = answer
    if (own := picture_for(network)) is None:
        return None
    ours = load_model("tiny_resnet")
    cases = {"your network": (network, own)}
    cases |= {f"tiny_resnet at {size} pixels": (ours, load_photo("coffee", size)[0]) for size in (128, 32)}
    for title, (model, x) in cases.items():
        try:
            before, after = (_grids(model, x, fix) for fix in (None, "backward"))
            spare = deepcopy(model).eval()  # a reader's function may do anything to it
        except Exception as error:  # a network without strided convolutions, or of an unusual kind
            return hint(f"{title} cannot be explained, {told(error)}")
        if not before or not max(before.values()) > 0:
            return hint(f"{title} has no grid at any layer: take another")
        if (found := attempt(function, spare, x.clone())) is None:
            return None
        name = found[0] if isinstance(found, Sequence) and len(found) == 2 else None
        fall = as_numbers(found[1], 1) if isinstance(name, str) else None
        if fall is None:
            return hint("the function should return two things, the name of a layer and a number")
        if name not in before:
            return hint(f"for {title} it returns {name!r}, which is no hidden layer with room for two cells")
        best = max(before, key=lambda layer: before[layer])
        if before[name] < before[best] - 1e-3:
            return hint(f"for {title}, the energy at {name} is {before[name]:.3f}, and at {best} {before[best]:.3f}")
        wanted = 1 - after[name] / before[name]
        if not abs(fall[0] - wanted) < 0.01:
            return hint(f"for {title}, the energy at {name} falls by the share {wanted:.3f}, not by {fall[0]:.3f}")
        if title == "your network":
            yours = f"the grid of your network is strongest at {name}, and the hook takes {wanted:.0%} of it away"
    verdict(True, yours, "")


def _grids(model: nn.Module, x: Tensor, fix: str | None) -> dict[str, float]:
    """The checkerboard energy of the gradient at every hidden layer that has room for two cells."""
    maps = explain(model, x, method="gradient", fix=fix)
    return {name: float(checkerboard_energy(g).mean()) for name, g in maps.items() if min(g.shape[2:]) >= 4}
