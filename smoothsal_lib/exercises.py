"""Checks for the book's exercises: each says whether an answer is right, and why, or hands out a hint.

A check never raises for a wrong answer, and prints one line. The dots that stand in an exercise before it is solved are
no answer, and are met with a friendly word.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from smoothsal_lib.fixes.blur import centred_blur, cyclic_mean


def _hint(text: str) -> None:
    print(f"Not yet: {text}.")


def _verdict(right: bool, why: str, hint: str) -> None:
    """Print that the answer is right and why, or the hint."""
    if right:
        print(f"Correct: {why}.")
    else:
        _hint(hint)


def _open(answer: object) -> bool:
    """Whether the exercise has not been tried; says so."""
    untouched = answer is ... or (isinstance(answer, (list, tuple)) and ... in answer)
    if untouched:
        print("Your answer goes in place of the dots.")
    return untouched


def _numbers(answer: object, count: int | None = None) -> list[float] | None:
    """The answer as a list of numbers, from a number, a list or a tensor; ``None`` when it is none of these."""
    try:
        values = answer.flatten().tolist() if isinstance(answer, Tensor) else answer
        numbers = (
            [float(v) for v in values]
            if isinstance(values, Iterable) and not isinstance(values, str)
            else [float(values)]
        )  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return numbers if count is None or len(numbers) == count else None


def check_3_1(answer: object) -> None:
    """Chapter 3: taps met by each parity class, kernel 5, stride 3, no padding."""
    if _open(answer):
        return None
    counts = _numbers(answer, 3)
    if counts is None:
        return _hint("give three numbers, one for each remainder")
    if sorted(counts) == [1, 2, 2] and counts != [2, 2, 1]:
        return _hint("the right counts in another order: which taps leave remainder 2 when divided by 3?")
    if sum(counts) != 5:
        return _hint("every one of the five taps meets exactly one class, so the counts must sum to 5")
    _verdict(counts == [2, 2, 1], "taps 0 and 3, taps 1 and 4, and tap 2 alone", "list the taps by their remainder")


def check_3_2(answer: object) -> None:
    """Chapter 3: three weights without a checkerboard at stride 2."""
    if _open(answer):
        return None
    weights = _numbers(answer, 3)
    if weights is None:
        return _hint("give three numbers")
    if any(weight == 0 for weight in weights):
        return _hint("none of the weights may be zero")
    response = weights[0] - weights[1] + weights[2]
    _verdict(
        abs(response) <= 1e-6 * max(map(abs, weights)),
        "both classes receive the same sum, and the response at f = 1/2 is zero",
        f"one class receives {weights[1]:g}, the other {weights[0] + weights[2]:g}",
    )


def check_3_3(answer: object) -> None:
    """Chapter 3: share of positions that a dilated, strided convolution reads."""
    if _open(answer):
        return None
    share = _numbers(answer, 1)
    _verdict(
        share is not None and abs(share[0] - 0.25) < 0.01,
        "all taps fall on one class in four",
        "where do the taps stand, relative to each other, and which parity has each?",
    )


def check_5_1(answer: object) -> None:
    """Chapter 5: shift of the published hook after four strided layers, in input pixels."""
    if _open(answer):
        return None
    shift = _numbers(answer, 1)
    if shift is not None and abs(shift[0]) == 2:
        return _hint("half a pixel four times, but of which map? Each layer's pixel spans more of the input")
    _verdict(shift is not None and abs(shift[0]) == 7.5, "(1 + 2 + 4 + 8) / 2", "add up half of each layer's pixel")


def check_5_2(answer: object) -> None:
    """Chapter 5: the centred kernel for stride 6."""
    if _open(answer):
        return None
    kernel = _numbers(answer)
    if kernel is None or len(kernel) != 7:
        return _hint("the kernel has an odd number of taps, one more than the stride")
    if abs(sum(kernel) - 1) > 0.01:
        return _hint(f"a constant must stay a constant: the weights sum to {sum(kernel):g}, not to 1")
    wanted = [1 / 12, *[1 / 6] * 5, 1 / 12]
    _verdict(
        all(abs(a - b) < 0.005 for a, b in zip(kernel, wanted, strict=True)),
        "a box of six and a box of two",
        "convolve a box of six with a box of two",
    )


def check_5_3(answer: object) -> None:
    """Chapter 5: a function that measures by how many rows a blur moves a map."""
    if _open(answer):
        return None
    if not callable(answer):
        return _hint("hand over the function itself, without calling it")
    cases = {
        0.5: lambda g: cyclic_mean(g, (2, 2)),
        0.0: lambda g: centred_blur(g, (2, 2)),
        -2.0: lambda g: g.roll(-2, 2),
    }
    for shift, blur in cases.items():
        measured = float(answer(blur))
        if abs(measured - shift) > 1e-4:
            return _hint(f"a blur that moves maps by {shift:g} rows is measured at {measured:g}")
    _verdict(True, "half a pixel for the published hook, nothing for the centred one", "")


def check_6_1(answer: object) -> None:
    """Chapter 6: what the two forms of the forward hook cost, in milliseconds."""
    if _open(answer):
        return None
    times = _numbers(answer, 2)
    _verdict(
        times is not None and abs(times[0] - 32) <= 1 and abs(times[1] - 9) <= 1,
        "four convolutions against one and a blur",
        "count the convolutions in each form",
    )


def check_6_2(answer: object) -> None:
    """Chapter 6: a function that measures how far two maps are from being adjoint."""
    if _open(answer):
        return None
    if not callable(answer):
        return _hint("hand over the function itself, without calling it")
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1, 1, 6, 6, generator=generator)

    def blur(g: Tensor) -> Tensor:
        return centred_blur(g, (2, 2))

    def shift(g: Tensor) -> Tensor:
        return cyclic_mean(g, (2, 2))

    true_gap = abs(float((shift(x) * y).sum() - (x * shift(y)).sum()))
    if abs(float(answer(blur, blur, x, y))) > 1e-4:
        return _hint("the centred blur is its own adjoint, so its gap should be zero")
    measured = abs(float(answer(shift, shift, x, y)))
    _verdict(
        abs(measured - true_gap) < 1e-4,
        f"zero for the centred blur, {true_gap:.2f} here for the cyclic mean",
        f"for the cyclic mean the two inner products differ by {true_gap:.2f}, not by {measured:.2f}",
    )


def check_6_3(answer: object) -> None:
    """Chapter 6: which maps change when the stem is blurred as well."""
    if _open(answer):
        return None
    _verdict(
        str(answer).strip().lower() == "both",
        "the stem's grid shows at the input alone, but its output feeds every layer above",
        "follow the activations up as well as the gradient down",
    )
