"""Checks for the exercises of chapter 5."""

from __future__ import annotations

from smoothsal_lib.exercises.marking import as_numbers, hint, untouched, verdict
from smoothsal_lib.fixes.blur import centred_blur, cyclic_mean


def check_5_1(answer: object) -> None:
    """Chapter 5: shift of the published hook after four strided layers, in input pixels."""
    if untouched(answer):
        return None
    shift = as_numbers(answer, 1)
    if shift is not None and abs(shift[0]) == 2:
        return hint("half a pixel four times, but of which map? Each layer's pixel spans more of the input")
    verdict(shift is not None and abs(shift[0]) == 7.5, "(1 + 2 + 4 + 8) / 2", "add up half of each layer's pixel")


def check_5_2(answer: object) -> None:
    """Chapter 5: the centred kernel for stride 6."""
    if untouched(answer):
        return None
    kernel = as_numbers(answer)
    if kernel is None or len(kernel) != 7:
        return hint("the kernel has an odd number of taps, one more than the stride")
    if abs(sum(kernel) - 1) > 0.01:
        return hint(f"a constant must stay a constant: the weights sum to {sum(kernel):g}, not to 1")
    wanted = [1 / 12, *[1 / 6] * 5, 1 / 12]
    verdict(
        all(abs(a - b) < 0.005 for a, b in zip(kernel, wanted, strict=True)),
        "a box of six and a box of two",
        "convolve a box of six with a box of two",
    )


def check_5_3(answer: object) -> None:
    """Chapter 5: a function that measures by how many rows a blur moves a map."""
    if untouched(answer):
        return None
    if not callable(answer):
        return hint("hand over the function itself, without calling it")
    cases = {
        0.5: lambda g: cyclic_mean(g, (2, 2)),
        0.0: lambda g: centred_blur(g, (2, 2)),
        -2.0: lambda g: g.roll(-2, 2),
    }
    for shift, blur in cases.items():
        measured = float(answer(blur))
        if abs(measured - shift) > 1e-4:
            return hint(f"a blur that moves maps by {shift:g} rows is measured at {measured:g}")
    verdict(True, "half a pixel for the published hook, nothing for the centred one", "")
