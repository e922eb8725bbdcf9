"""Checks for the exercises of chapter 4."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothsal_lib.exercises.marking import as_numbers, hint, untouched, verdict
from smoothsal_lib.fixes.stage import Geometry, Stage


def check_4_1(answer: object) -> None:
    """Chapter 4: parameters of a stage."""
    if untouched(answer):
        return None
    count = as_numbers(answer, 1)
    if count == [322_560.0]:
        return hint("the weights are right; each output channel also has a bias, in both convolutions")
    verdict(count == [322_880.0], "92,320 in front of the mean and 230,560 behind it", "count both convolutions")


def check_4_2(answer: object) -> None:
    """Chapter 4: which strided convolutions a stage can reproduce exactly."""
    if untouched(answer):
        return None
    letters = "".join(sorted(letter for letter in str(answer).lower() if letter in "abc"))
    verdict(
        letters == "a",
        "it is a mean over blocks; the others pick pixels, and what alternates never passes the mean",
        "feed each a map that alternates between +1 and -1, and compare the outputs",
    )


def check_4_3(answer: object) -> None:
    """Chapter 4: a function that computes a stage's output."""
    if untouched(answer):
        return None
    if not callable(answer):
        return hint("hand over the function itself, without calling it")
    generator = torch.Generator().manual_seed(0)
    stage = Stage(Geometry((2, 3), 1, (3, 3), (2, 2), (1, 1), (1, 1)))
    x = torch.randn(2, 2, 8, 8, generator=generator)
    with torch.no_grad():
        given, wanted = answer(stage.before, stage.after, x), stage(x)
    if not isinstance(given, Tensor) or given.shape != wanted.shape:
        return hint(f"for an input of {tuple(x.shape)} the output has the shape {tuple(wanted.shape)}")
    verdict(
        torch.allclose(given, wanted, atol=1e-5), "convolution, mean, convolution", "what is bilinear by exactly 2?"
    )
