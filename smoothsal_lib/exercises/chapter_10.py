"""Checks for the exercises of chapter 10."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothsal_lib.exercises.marking import as_numbers, hint, untouched, verdict


def check_10_1(answer: object) -> None:
    """Chapter 10: how many looks two seeds need to agree by 0.9, when ten give 0.5."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    if number == [18]:
        return hint("the correlation does not grow in proportion to n: it can never pass 1")
    verdict(
        number is not None and abs(number[0] - 90) < 1e-6,
        "from 0.5 at ten looks, one look with another correlates by 1/11, and n / (n + 10) is 0.9 at n = 90",
        "find the correlation of single looks first, from n = 10; then solve for n",
    )


def check_10_2(answer: object) -> None:
    """Chapter 10: the mean gradient over noisy copies."""
    if untouched(answer):
        return None
    if not callable(answer):
        return hint("hand over the function itself, without calling it")
    generator = torch.Generator().manual_seed(1)
    x, weights = torch.randn(2, 3, 4, generator=generator)
    cases = {
        "a linear function": (lambda z: (weights * z).sum(), weights, 1e-4),
        "the sum of squares": (lambda z: z.square().sum(), 2 * x, 0.15),
        # E 3 (x + e)^2 = 3 (x^2 + sigma^2): the gradient of the smoothed function, not that of the function.
        "the sum of cubes": (lambda z: z.pow(3).sum(), 3 * (x.square() + 0.25), 0.9),
    }
    before = x.clone()
    for title, (f, wanted, tolerance) in cases.items():
        found = answer(f, x, 0.5, 2000, 0)
        if not isinstance(found, Tensor) or found.shape != x.shape:
            return hint("return one gradient of the shape of x")
        if not bool(torch.isfinite(found).all()) or float((found - wanted).abs().max()) > tolerance:
            return hint(f"for {title} the mean gradient is off")
    if torch.equal(answer(cases["the sum of squares"][0], x, 0.5, 3, 0), 2 * x):
        return hint("without any noise it is the plain gradient")
    if not torch.equal(x, before):
        return hint("it changes x itself: make a new picture for every look")
    verdict(True, "the gradient of the function smoothed with a Gaussian", "")


def check_10_3(answer: object) -> None:
    """Chapter 10: the share of a grid in one look and in the mean of many."""
    if untouched(answer):
        return None
    numbers = as_numbers(answer, 2)
    if numbers is not None and abs(numbers[0] - 0.1) < 1e-6 and abs(numbers[1] - 0.1) < 1e-6:
        return hint("the rest is drawn anew in every look, so a mean of 81 has less of it")
    if numbers is not None and abs(numbers[0] - 1 / 9) < 1e-6:
        return hint("the share is of the whole variance, grid and rest together")
    verdict(
        numbers is not None and abs(numbers[0] - 0.1) < 1e-6 and abs(numbers[1] - 0.9) < 1e-6,
        "1 / (1 + 9), and 1 / (1 + 9/81): averaging uncovers what does not change",
        "the variance of the mean of 81 independent values is an 81st of theirs; the grid's stays",
    )
