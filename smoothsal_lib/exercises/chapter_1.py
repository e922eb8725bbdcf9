"""Checks for the exercises of chapter 1."""

from __future__ import annotations

import torch

from smoothsal_lib.exercises.marking import as_numbers, hint, untouched, verdict


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
    if not callable(answer):
        return hint("hand over the function itself, without calling it")
    for stride, shape in ((2, (1, 3, 8, 8)), (3, (2, 4, 9, 12)), (2, (2, 2, 7, 5))):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(stride))
        gradient[..., 1::stride, ::stride] *= 5
        size = gradient.abs().mean((0, 1))
        means = [float(size[row::stride, column::stride].mean()) for row in range(stride) for column in range(stride)]
        wanted = max(means) / min(means)
        found = as_numbers(answer(gradient, stride), 1)
        if found is None:
            return hint("the function should return one number")
        if abs(found[0] * wanted - 1) < 1e-3:
            return hint("that is the dimmest over the brightest: turn it round")
        if abs(found[0] - wanted) > 1e-3:
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
    if stride[0] < 1.5:
        return hint("the network with its strides should show a contrast well above 1")
    verdict(
        largest[0] < 1.2 and average[0] < 1.2,
        "no grid with pooling: the average spreads its gradient evenly, the maximum sends it to a winner that the "
        "picture chooses, now here, now there",
        "with pooling the contrast is close to 1; are all convolutions at stride 1, those on the shortcuts as well?",
    )
