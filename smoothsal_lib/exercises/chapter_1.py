"""Checks for the exercises of chapter 1."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothsal_lib.exercises.marking import as_numbers, attempt, hint, picture_for, told, untouched, verdict
from smoothsal_lib.explain import explain
from smoothsal_lib.layers import strided_layers
from smoothsal_lib.metrics.noise import checkerboard_energy


def _contrast(gradient: Tensor, stride: int) -> float:
    size = gradient.abs().mean((0, 1))
    means = [float(size[row::stride, column::stride].mean()) for row in range(stride) for column in range(stride)]
    return max(means) / max(min(means), 1e-30)  # a class that meets no weight has a mean of exactly 0


def check_1_1(answer: object) -> None:
    """Chapter 1: how many parity classes there are below a convolution with stride 3."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    if number == [4]:
        return hint("four is right for stride 2; how many remainders are there when you divide by 3?")
    if number == [3]:
        return hint("three for the rows, and for the columns?")
    verdict(
        number == [9],
        "three remainders for the row times three for the column, so the grid repeats every third position",
        "count the remainders of the row number modulo 3, and those of the column number",
    )


def check_1_2(answer: object) -> None:
    """Chapter 1: a function of gradient and stride that returns the brightest over the dimmest parity mean."""
    if untouched(answer):
        return None
    for stride, shape in ((2, (1, 3, 8, 8)), (3, (2, 4, 9, 12)), (2, (2, 2, 7, 5))):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(stride))
        gradient[..., 1::stride, ::stride] *= 5
        wanted = _contrast(gradient, stride)
        returned = attempt(answer, gradient.clone(), stride)
        if returned is None:
            return None
        found = as_numbers(returned, 1)
        if found is None:
            return hint("the function should return one number")
        if abs(found[0] * wanted - 1) < 1e-3:
            return hint("that is the dimmest over the brightest: turn it round")
        if not abs(found[0] - wanted) <= 1e-3:  # so that NaN is wrong, too
            return hint(
                f"for a gradient of shape {shape} and stride {stride} the contrast is {wanted:.3f}, yours is "
                f"{found[0]:.3f}; do you take the absolute value first, and look at stride times stride classes?"
            )
    verdict(True, "close to 1 without a grid, whatever the scale of the gradient", "")


def check_1_3(answer: object) -> None:
    """Chapter 1: the contrast of one network with strides, with max-pooling and with average pooling."""
    if untouched(answer):
        return None
    names = ("stride", "max", "average")
    if not isinstance(answer, dict) or set(answer) != set(names):
        return hint("give a dictionary with the keys 'stride', 'max' and 'average'")
    stride, largest, average = (as_numbers(answer[name], 1) for name in names)
    if stride is None or largest is None or average is None:
        return hint("each of the three should be one number")
    if min(*stride, *largest, *average) < 1:
        return hint("a contrast is the brightest over the dimmest, so it cannot lie below 1")
    if not stride[0] >= 1.5:
        return hint("the network with its strides should show a contrast well above 1")
    verdict(
        largest[0] < 1.2 and average[0] < 1.2,
        "no grid with pooling: the average spreads its gradient evenly, the maximum sends it to a winner that the "
        "picture chooses, now here, now there",
        "with pooling the contrast is close to 1; are all convolutions at stride 1, those on the shortcuts as well?",
    )


def check_1_4(answer: object) -> None:
    """Chapter 1: the reader's own network, a hidden layer of it with a grid, and one without."""
    if untouched(answer):
        return None
    if not isinstance(answer, dict) or set(answer) != {"network", "gridded", "clean"}:
        return hint("give a dictionary with the keys 'network', 'gridded' and 'clean'")
    network, names = answer["network"], (answer["gridded"], answer["clean"])
    x = picture_for(network)
    if x is None:
        return None
    if not all(isinstance(name, str) for name in names):
        return hint("give the two layers by name, as sal.hidden_layers lists them")
    if not strided_layers(network):
        return hint(f"no convolution of this {type(network).__name__} has a stride above 1: take another network")
    # Turned over, a picture of even size exchanges its parity classes: what is left in the mean is the network's.
    pictures = torch.cat([x, x.flip(2), x.flip(3), x.flip((2, 3))])
    try:
        found = explain(network, pictures, layers=list(dict.fromkeys(names)), method="gradient", fix=None)
    except Exception as error:  # a layer that is not there, or a network that cannot be explained
        return hint(told(error))
    if unfit := [name for name, g in found.items() if g.ndim != 4 or min(g.shape[2:]) < 4]:
        return hint(f"{unfit[0]} has no maps of at least 4 x 4 positions, and fewer cannot tell: take another layer")
    grids = {name: (_contrast(g, 2), float(checkerboard_energy(g).mean())) for name, g in found.items()}
    (high, strong), (low, weak) = (grids[name] for name in names)
    if high < 1.3 and strong < 0.1:
        return hint(f"at {names[0]} the contrast is {high:.2f}: look right before a strided convolution")
    if low < 1.25 and weak >= 0.1:
        return hint(
            f"at {names[1]} the contrast is {low:.2f} and yet there is a grid, in the signs of the gradient, which the "
            "contrast does not see: look behind the last stride"
        )
    verdict(
        low < 1.25,
        f"the contrast is {high:.2f} at {names[0]} and {low:.2f} at {names[1]}",
        f"at {names[1]} the contrast is {low:.2f}: look where no stride lies between the layer and the score",
    )
