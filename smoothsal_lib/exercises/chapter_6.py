"""Checks for the exercises of chapter 6."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothsal_lib.exercises.marking import as_numbers, hint, untouched, verdict
from smoothsal_lib.fixes.blur import centred_blur, cyclic_mean


def check_6_1(answer: object) -> None:
    """Chapter 6: what the two forms of the forward hook cost, in milliseconds."""
    if untouched(answer):
        return None
    times = as_numbers(answer, 2)
    verdict(
        times is not None and abs(times[0] - 32) <= 1 and abs(times[1] - 9) <= 1,
        "four convolutions against one and a blur",
        "count the convolutions in each form",
    )


def check_6_2(answer: object) -> None:
    """Chapter 6: a function that measures how far two maps are from being adjoint."""
    if untouched(answer):
        return None
    if not callable(answer):
        return hint("hand over the function itself, without calling it")
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1, 1, 6, 6, generator=generator)

    def blur(g: Tensor) -> Tensor:
        return centred_blur(g, (2, 2))

    def shift(g: Tensor) -> Tensor:
        return cyclic_mean(g, (2, 2))

    true_gap = abs(float((shift(x) * y).sum() - (x * shift(y)).sum()))
    if abs(float(answer(blur, blur, x, y))) > 1e-4:
        return hint("the centred blur is its own adjoint, so its gap should be zero")
    measured = abs(float(answer(shift, shift, x, y)))
    verdict(
        abs(measured - true_gap) < 1e-4,
        f"zero for the centred blur, {true_gap:.2f} here for the cyclic mean",
        f"for the cyclic mean the two inner products differ by {true_gap:.2f}, not by {measured:.2f}",
    )


def check_6_3(answer: object) -> None:
    """Chapter 6: which maps change when the stem is blurred as well."""
    if untouched(answer):
        return None
    verdict(
        str(answer).strip().lower() == "both",
        "the stem's grid shows at the input alone, but its output feeds every layer above",
        "follow the activations up as well as the gradient down",
    )
