"""Checks for the exercises of chapter 3."""

from __future__ import annotations

from smoothsal_lib.exercises.marking import as_numbers, hint, untouched, verdict


def check_3_1(answer: object) -> None:
    """Chapter 3: taps met by each parity class, kernel 5, stride 3, no padding."""
    if untouched(answer):
        return None
    counts = as_numbers(answer, 3)
    if counts is None:
        return hint("give three numbers, one for each remainder")
    if sorted(counts) == [1, 2, 2] and counts != [2, 2, 1]:
        return hint("the right counts in another order: which taps leave remainder 2 when divided by 3?")
    if sum(counts) != 5:
        return hint("every one of the five taps meets exactly one class, so the counts must sum to 5")
    verdict(counts == [2, 2, 1], "taps 0 and 3, taps 1 and 4, and tap 2 alone", "list the taps by their remainder")


def check_3_2(answer: object) -> None:
    """Chapter 3: three weights without a checkerboard at stride 2."""
    if untouched(answer):
        return None
    weights = as_numbers(answer, 3)
    if weights is None:
        return hint("give three numbers")
    if any(weight == 0 for weight in weights):
        return hint("none of the weights may be zero")
    response = weights[0] - weights[1] + weights[2]
    verdict(
        abs(response) <= 1e-6 * max(map(abs, weights)),
        "both classes receive the same sum, and the response at f = 1/2 is zero",
        f"one class receives {weights[1]:g}, the other {weights[0] + weights[2]:g}",
    )


def check_3_3(answer: object) -> None:
    """Chapter 3: share of positions that a dilated, strided convolution reads."""
    if untouched(answer):
        return None
    share = as_numbers(answer, 1)
    verdict(
        share is not None and abs(share[0] - 0.25) < 0.01,
        "all taps fall on one class in four",
        "where do the taps stand, relative to each other, and which parity has each?",
    )
