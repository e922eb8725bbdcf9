"""Checks for the exercises of chapter 8."""

from __future__ import annotations

import torch

from smoothsal_lib.exercises.marking import as_numbers, hint, untouched, verdict
from smoothsal_lib.metrics.similarity import rank_correlation


def check_8_1(answer: object) -> None:
    """Chapter 8: the area under an insertion curve of four steps."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    if number is not None and abs(number[0] - 0.52) < 1e-6:
        return hint("that is the mean of the five scores; the first and the last stand at an end and count half")
    verdict(
        number is not None and abs(number[0] - 0.525) < 1e-6,
        "a quarter of 0/2 + 0.2 + 0.6 + 0.8 + 1/2",
        "the trapezoid rule: each step is as wide as it is, and as high as the mean of its two ends",
    )


def check_8_2(answer: object) -> None:
    """Chapter 8: which maps have the insertion curve of M."""
    if untouched(answer):
        return None
    given = answer if isinstance(answer, list | tuple | set) else [answer]
    letters = {letter for letter in "".join(map(str, given)).lower() if letter.isalpha()}
    if "c" in letters or "e" in letters:
        return hint("put the values -2, 1, 3 in order, then their negatives, or their magnitudes, in the same order")
    verdict(
        letters == {"a", "b", "d"},
        "an increasing function changes the values and not their order, and the curve sees the order alone",
        "the curve depends only on which pixel comes first, second, third; there is more than one",
    )


def check_8_3(answer: object) -> None:
    """Chapter 8: Spearman's rank correlation of two maps."""
    if untouched(answer):
        return None
    if not callable(answer):
        return hint("hand over the function itself, without calling it")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 7, 9, generator=generator)
    for title, one, other in (("two maps", a, a + b), ("a map and its cube", a, a**3), ("opposites", a, -a)):
        wanted = float(rank_correlation(one[None], other[None]))
        found = as_numbers(answer(one, other), 1)
        if found is None:
            return hint("return one number")
        if abs(found[0] - wanted) > 1e-3:
            return hint(f"for {title} the rank correlation is {wanted:.3f}, yours is {found[0]:.3f}")
    verdict(True, "the correlation of the ranks, which an increasing function leaves alone", "")
