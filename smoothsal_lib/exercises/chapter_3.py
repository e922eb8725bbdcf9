"""Checks for the exercises of chapter 3."""

from __future__ import annotations

import math

from smoothsal_lib.exercises.marking import as_numbers, hint, picture_for, told, untouched, verdict
from smoothsal_lib.layers import strided_layers, total_stride


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
    if share is not None and abs(share[0] - 0.75) < 0.01:
        return hint("that is the share which receives nothing")
    verdict(
        share is not None and abs(share[0] - 0.25) < 0.01,
        "all taps fall on one class in four",
        "where do the taps stand, relative to each other, and which parity has each?",
    )


def check_3_4(answer: object) -> None:
    """Chapter 3: brightest over dimmest class below max-pooling of noise, windows of 3 x 3 and of 2 x 2, stride 2."""
    if untouched(answer):
        return None
    factors = as_numbers(answer, 2)
    if factors is None:
        return hint("give two numbers, one for windows of 3 x 3 and one for windows of 2 x 2")
    if min(factors) < 0.9:
        return hint("brightest over dimmest cannot lie below 1")
    if abs(factors[0] - 2) < 0.2:
        return hint("two windows against one along the rows, and along the columns?")
    if not abs(factors[0] - 4) <= 0.4:
        return hint("in how many windows of 3 x 3 does each position lie? Each is a chance to win one time in nine")
    verdict(
        abs(factors[1] - 1) <= 0.1,
        "a position with odd row and column lies in four overlapping windows, one with even ones in one; windows of "
        "2 x 2 do not overlap",
        "every position lies in exactly one window of 2 x 2, so all have the same chance",
    )


def check_3_5(answer: object) -> None:
    """Chapter 3: the reader's own network, and the period in pixels of the whole pattern at its input."""
    if untouched(answer):
        return None
    if not isinstance(answer, dict) or set(answer) != {"network", "period"}:
        return hint("give a dictionary with the keys 'network' and 'period'")
    network, given = answer["network"], as_numbers(answer["period"])
    x = picture_for(network)
    if x is None:
        return None
    if given is None or not given or any(value != given[0] for value in given):
        return hint("give the period as one number of pixels")
    try:
        period = total_stride(network, x)
    except Exception as error:  # a network that cannot be followed
        return hint(told(error))
    strides = [max(layer.stride) for layer in strided_layers(network).values()]  # type: ignore[arg-type]
    if given[0] != period and given[0] == math.prod(strides):
        return hint("of layers that stand side by side, as a shortcut does, count one; and count pooling layers, too")
    if given[0] != period and given[0] in strides:
        return hint("that is the period of one layer's stamp, seen in its own input; how many pixels apart are those?")
    verdict(
        given[0] == period,
        f"every {period} pixels the strides are in step again, and no earlier",
        "multiply the strides of all layers that one path from the picture to the score crosses, pooling included",
    )
