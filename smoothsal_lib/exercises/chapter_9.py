"""Checks for the exercises of chapter 9."""

from __future__ import annotations

import torch

from smoothsal_lib.exercises.marking import as_numbers, hint, untouched, verdict


def check_9_1(answer: object) -> None:
    """Chapter 9: how far nearest enlargement moves the units of a layer of stride 8."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    if number is not None and abs(number[0]) == 4:
        return hint("nearly: the cell of unit 0 has the pixels 0 to 7; which number lies in their middle?")
    verdict(
        number is not None and abs(abs(number[0]) - 3.5) < 1e-6,
        "the unit stands at pixel 8 i, and the middle of its cell of eight pixels is 8 i + 3.5",
        "where does unit 0 stand, and where is the middle of the first eight pixels?",
    )


def check_9_2(answer: object) -> None:
    """Chapter 9: a hit rate between chance and perfection."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    if number is not None and abs(number[0] - 0.3) < 1e-6:
        return hint("0.3 above chance is right; how much could it be above chance at the most?")
    verdict(
        number is not None and abs(number[0] - 0.6) < 1e-6,
        "(0.8 - 0.5) / (1 - 0.5)",
        "chance is the share of the picture that the box covers; it should come out as 0, and perfection as 1",
    )


def check_9_3(answer: object) -> None:
    """Chapter 9: the centre of mass of a layer's map, in pixels of the picture."""
    if untouched(answer):
        return None
    if not callable(answer):
        return hint("hand over the function itself, without calling it")
    for shape, stride, offset in (((8, 8), 8, 0.0), ((4, 6), 16, 7.5), ((5, 5), 1, 0.0)):
        m = torch.rand(shape, generator=torch.Generator().manual_seed(stride))
        centre = [
            offset + stride * float((m.sum(1 - axis) * torch.arange(shape[axis])).sum() / m.sum()) for axis in (0, 1)
        ]
        found = as_numbers(answer(m, stride, offset), 2)
        if found is None:
            return hint("return two numbers, the row and the column")
        if max(abs(a - b) for a, b in zip(found, centre, strict=True)) > 1e-2:
            return hint(
                f"for a map {shape} of stride {stride} and offset {offset:g} the centre is "
                f"({centre[0]:.2f}, {centre[1]:.2f}), yours is ({found[0]:.2f}, {found[1]:.2f})"
            )
    verdict(True, "offset + stride x index, weighted by the map", "")
