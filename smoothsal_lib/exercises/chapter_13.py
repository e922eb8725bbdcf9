"""Checks for the exercises of chapter 13."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothsal_lib.exercises.marking import as_numbers, hint, untouched, verdict


def check_13_1(answer: object) -> None:
    """Chapter 13: how much light passes half the thickness."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    if number is not None and number[0] in (2, 0.02):
        return hint("not twice as much light: the density halves, and the density is a logarithm")
    verdict(
        number is not None and (abs(number[0] - 0.1) < 1e-6 or abs(number[0] - 10) < 1e-6),
        "the density falls from 2 to 1, and 10 to the power of minus 1 is a tenth",
        "which optical density lets a hundredth through? Halve it, and go back to intensities",
    )


def check_13_2(answer: object) -> None:
    """Chapter 13: tiles along one side of a slide."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    if number == [98]:
        return hint("that would be enough without any overlap; how far apart do neighbours begin?")
    if number == [111]:
        return hint("111 steps are needed, and one tile more than there are steps")
    verdict(
        number == [112],
        "tiles begin 896 pixels apart; 111 steps bring the last one to the edge, and there is one more tile than steps",
        "how far apart do two neighbours begin, and where must the last one begin at the latest?",
    )


def check_13_3(answer: object) -> None:
    """Chapter 13: two maps of one overlap, blended."""
    if untouched(answer):
        return None
    if not callable(answer):
        return hint("hand over the function itself, without calling it")
    left, right = torch.rand(2, 3, 9, generator=torch.Generator().manual_seed(0))
    found = answer(left, right)
    if not isinstance(found, Tensor) or found.shape != left.shape:
        return hint("return one map of the overlap, of the shape of both")
    weight = torch.linspace(0, 1, 9)
    wanted = (1 - weight) * left + weight * right
    if torch.allclose(found, weight * left + (1 - weight) * right, atol=1e-4):
        return hint("at its left end the overlap lies deep inside the left tile: there the left map is the good one")
    if torch.allclose(found, (left + right) / 2, atol=1e-4):
        return hint("half and half leaves a step at both ends of the overlap")
    verdict(
        torch.allclose(found, wanted, atol=1e-4),
        "the weights add up to 1 everywhere, so two maps that agree stay as they are",
        "from all left in the first column to all right in the last, in equal steps",
    )
