"""Checks for the exercises of chapter 11."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothsal_lib.contributions import extract_aggregate
from smoothsal_lib.exercises.marking import as_numbers, hint, untouched, verdict


def check_11_1(answer: object) -> None:
    """Chapter 11: entries of an outer product, and the numbers that its norm needs."""
    if untouched(answer):
        return None
    numbers = as_numbers(answer, 2)
    if numbers is not None and numbers[0] == 256 * 9:
        return hint("that is one factor; its product with the other has an entry for each pair")
    if numbers is not None and numbers[0] == 256 * 256 * 9 and numbers[1] == 2:
        return hint("two norms, yes, but of what is that of the patch made, when each position has its norm already?")
    verdict(
        numbers == [256 * 256 * 9, 10],
        "256 x 2304 entries, and ten norms: that of the gradient, and those of x at nine positions",
        "there is an entry for every entry of the gradient and every one of the patch; and what does its norm need?",
    )


def check_11_2(answer: object) -> None:
    """Chapter 11: the norm of the positive part of an outer product."""
    if untouched(answer):
        return None
    if not callable(answer):
        return hint("hand over the function itself, without calling it")
    generator = torch.Generator().manual_seed(0)
    g, x = torch.randn(2, 2, 5, 3, 4, generator=generator)
    found = answer(g, x)
    if not isinstance(found, Tensor) or found.shape != (2, 3, 4):
        return hint("return one number a position, shape (N, H, W)")
    wanted = extract_aggregate(x, g, "conv1x1", "positive_norm")
    if torch.allclose(found, (g.clamp(min=0) * x.clamp(min=0)).square().sum(1).sqrt(), atol=1e-4):
        return hint("that is the scaling's contribution; here every channel of g meets every channel of x")
    if torch.allclose(found, g.clamp(min=0).norm(dim=1) * x.clamp(min=0).norm(dim=1), atol=1e-4):
        return hint("a product is positive in one more case")
    verdict(
        torch.allclose(found, wanted, atol=1e-4),
        "both factors positive, or both negative",
        "when is a product positive? Add the squares of those cases, and factorise each",
    )


def check_11_3(answer: object) -> None:
    """Chapter 11: what doubling one layer's map does to a geometric mean, without and with scaling."""
    if untouched(answer):
        return None
    numbers = as_numbers(answer, 2)
    if numbers is not None and abs(numbers[0] - 2) < 1e-6:
        return hint("that would be the product; the mean takes the fourth root of it")
    verdict(
        numbers is not None and abs(numbers[0] - 2**0.25) < 5e-3 and abs(numbers[1] - 1) < 1e-6,
        "the fourth root of 2; and scaling to [0, 1] undoes any factor",
        "raise the factor to the layer's weight; and what does scaling to [0, 1] make of a factor?",
    )
