"""Checks for the exercises of chapter 9."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from smoothsal_lib.exercises.marking import as_numbers, attempt, hint, picture_for, told, untouched, verdict
from smoothsal_lib.layers import hidden_layers
from smoothsal_lib.metrics.localisation import within
from smoothsal_lib.metrics.locality import effective_receptive_field

CHANNELS = 64  # of the reader's layer: each is a backward pass


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
        "look at unit 0: find where it stands, and where the middle of the first eight pixels is",
    )


def check_9_2(answer: object) -> None:
    """Chapter 9: a hit rate between chance and perfection."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    if number is not None and abs(number[0] - 0.3) < 1e-6:
        return hint("0.3 above chance is right; how much could it be above chance at the most?")
    if number is not None and abs(number[0] - 60) < 1e-6:
        return hint("right as a percentage; give it on the scale on which perfection is 1")
    verdict(
        number is not None and abs(number[0] - 0.6) < 1e-6,
        "(0.8 - 0.5) / (1 - 0.5)",
        "chance is the share of the picture that the box covers; it should come out as 0, and perfection as 1",
    )


def check_9_3(answer: object) -> None:
    """Chapter 9: the centre of mass of a layer's map, in pixels of the picture."""
    if untouched(answer):
        return None
    for shape, stride, offset in (((8, 8), 8, 0.0), ((4, 6), 16, 7.5), ((5, 5), 1, 0.0)):
        m = torch.rand(shape, generator=torch.Generator().manual_seed(stride))
        centre = [
            offset + stride * float((m.sum(1 - axis) * torch.arange(shape[axis])).sum() / m.sum()) for axis in (0, 1)
        ]
        if (returned := attempt(answer, m.clone(), stride, offset)) is None:
            return None
        found = as_numbers(returned, 2)
        if found is None:
            return hint("return two numbers, the row and the column")
        if not all(abs(a - b) < 1e-2 for a, b in zip(found, centre, strict=True)):
            return hint(
                f"for a map {shape} of stride {stride} and offset {offset:g} the centre is "
                f"({centre[0]:.2f}, {centre[1]:.2f}), yours is ({found[0]:.2f}, {found[1]:.2f})"
            )
    verdict(True, "offset + stride x index, weighted by the map", "")


def check_9_4(answer: object) -> None:
    """Chapter 9: what chance scores in the pointing game with a tolerance."""
    if untouched(answer):
        return None
    cases = (
        ("without a tolerance", (20, 10, 43, 29), (64, 64), 0.0),
        ("with a tolerance", (20, 20, 43, 39), (64, 64), 4.3),
        ("at the lower border of a wide picture", (20, 20, 59, 47), (48, 80), 4.3),
    )
    for title, box, size, tolerance in cases:
        wanted = float(within(torch.tensor([[box]], dtype=torch.float64), size, tolerance).double().mean())
        if (returned := attempt(answer, box, size, tolerance)) is None:
            return None
        found = as_numbers(returned, 1)
        if found is None:
            return hint("return one number")
        if not abs(found[0] - wanted) < 1e-4:
            return hint(
                f"{title}, for the box {box} in a picture of {size[0]} x {size[1]}, chance is {wanted:.4f}, yours is "
                f"{found[0]:.4f}"
            )
    verdict(True, "the tolerance makes the box wider by a rim with round corners, as far as the picture goes", "")


def check_9_5(answer: object) -> None:
    """Chapter 9: where a unit looks, on networks with known answers and on the reader's, as (function, network)."""
    if untouched(answer):
        return None
    if not isinstance(answer, list | tuple) or len(answer) != 2:
        return hint("hand over a pair: your function and your network")
    middle, network = answer
    x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    cases = {
        "one tap, to the lower right": ([(2, 2, 1.0)], (9.0, 7.0)),
        "one tap, above": ([(0, 1, -1.0)], (7.0, 6.0)),
        "a tap of 3 and one of -1, two pixels to its right": ([(1, 0, 3.0), (1, 2, -1.0)], (8.0, 5.5)),
    }
    for title, (taps, centre) in cases.items():
        convolution = nn.Conv2d(1, 2, 3, stride=2, padding=1)
        with torch.no_grad():
            convolution.weight.zero_()
            for row, column, value in taps:
                convolution.weight[:, :, row, column] = value
        toy = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        if (returned := attempt(middle, toy, x.clone(), "0", (4, 3))) is None:
            return None
        found = as_numbers(returned, 2)
        if found is None:
            return hint("return two numbers, the row and the column")
        if not all(abs(a - b) < 1e-3 for a, b in zip(found, centre, strict=True)):
            return hint(
                f"unit (4, 3) of a convolution with stride 2 and {title}: its field has its middle at pixel "
                f"({centre[0]:g}, {centre[1]:g}), yours is ({found[0]:.1f}, {found[1]:.1f})"
            )
    picture = picture_for(network)
    if picture is None:
        return None
    try:
        own = deepcopy(network).eval()  # a reader's function may do anything to it
        layers = hidden_layers(own, picture)
        few = {name: layer for name, layer in layers.items() if layer.shape[0] <= CHANNELS and layer.stride[0] > 1}
        if not few:
            return hint(f"the network has no layer below a stride with at most {CHANNELS} channels: take a smaller one")
        name, layer = list(few.items())[-1]
        unit = (layer.shape[1] // 2, layer.shape[2] // 2)
        place = [layer.offset[axis] + layer.stride[axis] * unit[axis] for axis in (0, 1)]
        field = effective_receptive_field(own, picture, {name: layer}, (place[0], place[1]))[name]
    except Exception as error:  # whatever a reader's network may raise
        return hint(f"the network's fields cannot be measured: {told(error)}")
    if (returned := attempt(middle, own, picture.clone(), name, unit)) is None:
        return None
    found = as_numbers(returned, 2)
    off = field.centroid()[0].tolist()
    if found is None or not all(abs(found[i] - place[i] - off[i]) < 0.05 for i in (0, 1)):
        return hint(
            f"unit {unit} of {name!r} looks at ({place[0] + off[0]:.2f}, {place[1] + off[1]:.2f}), "
            f"yours is {found if found is None else tuple(round(n, 2) for n in found)}"
        )
    verdict(
        True,
        f"unit {unit} of {name!r} in your {type(network).__name__} stands at ({place[0]:g}, {place[1]:g}), looks "
        f"{off[0]:+.1f} pixels down and {off[1]:+.1f} to the right of it",
        "",
    )
