"""Checks for the exercises of chapter 7."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothsal_lib.exercises.marking import as_numbers, hint, untouched, verdict
from smoothsal_lib.metrics.noise import checkerboard_energy


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
    if not callable(answer):
        return hint("hand over the function itself, without calling it")
    for scale, share in ((1.0, 0.5), (1.0, 0.2), (30.0, 0.8)):
        noise = scale * torch.randn(3, 16, 32, 32, generator=torch.Generator().manual_seed(0))
        planted = answer(noise.clone(), share)
        if not isinstance(planted, Tensor) or planted.shape != noise.shape:
            return hint(f"return an attribution of the shape you were given, {tuple(noise.shape)}")
        found = float(checkerboard_energy(planted).mean())
        if abs(found - share) > 0.05:
            return hint(f"asked for {share:g} in noise of standard deviation {scale:g}, the energy is {found:.2f}")
    verdict(True, "of the variance v + h^2 of map and grid together, h^2 is the grid's, whatever the map's scale", "")
