"""Checks for the exercises of chapter 13."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smoothsal_lib.capture import logits_of
from smoothsal_lib.exercises.marking import as_numbers, as_tensor, attempt, hint, told, untouched, verdict
from smoothsal_lib.explain import explain
from smoothsal_lib.extract import saliency_map
from smoothsal_lib.layers import hidden_layers, strided_layers
from smoothsal_lib.nuclei import rank_nuclei

EXACT = 1e-4  # of a map's mean magnitude: what a cut leaves below it counts as nothing


def check_13_1(answer: object) -> None:
    """Chapter 13: how much light passes half the thickness."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    if number is not None and number[0] in (2, 0.02):
        return hint("not twice as much light: the density halves, and the density is a logarithm")
    verdict(
        number is not None and (abs(number[0] - 0.1) < 1e-6 or abs(number[0] - 10) < 1e-6),
        "the density falls from 2 to 1, and 10 to the power of minus 1 is a tenth",
        "which optical density lets a hundredth through? Halve it, and go back to intensities",
    )


def check_13_2(answer: object) -> None:
    """Chapter 13: tiles along one side of a slide."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    if number == [98]:
        return hint("that would be enough without any overlap; how far apart do neighbours begin?")
    if number == [111]:
        return hint("111 steps are needed, and one tile more than there are steps")
    verdict(
        number == [112],
        "tiles begin 896 pixels apart; 111 steps bring the last one to the edge, and there is one more tile than steps",
        "how far apart do two neighbours begin, and where must the last one begin at the latest?",
    )


def check_13_3(answer: object) -> None:
    """Chapter 13: two maps of one overlap, blended."""
    if untouched(answer):
        return None
    left, right = torch.rand(2, 3, 9, generator=torch.Generator().manual_seed(0))
    if (returned := attempt(answer, left.clone(), right.clone())) is None:
        return None
    found = as_tensor(returned)
    if found is None or found.shape != left.shape:
        return hint("return one map of the overlap, of the shape of both")
    weight = torch.linspace(0, 1, 9)
    wanted = (1 - weight) * left + weight * right
    if torch.allclose(found, (weight * left + (1 - weight) * right).double(), atol=1e-4):
        return hint("at its left end the overlap lies deep inside the left tile: there the left map is the good one")
    if torch.allclose(found, ((left + right) / 2).double(), atol=1e-4):
        return hint("half and half leaves a step at both ends of the overlap")
    verdict(
        torch.allclose(found, wanted.double(), atol=1e-4),
        "the weights add up to 1 everywhere, so two maps that agree stay as they are",
        "from all left in the first column to all right in the last, in equal steps",
    )


def check_13_4(answer: object) -> None:
    """Chapter 13: the labels of nuclei, the most salient per pixel first."""
    if untouched(answer):
        return None
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(12, 12, dtype=torch.int32)
    labels[0:6, 0:6], labels[8:10, 1:4], labels[1:3, 8:11], labels[7:12, 7:12] = 2, 3, 7, 9
    saliency = 0.01 * torch.randn(12, 12, generator=generator)
    for label, level in ((0, 0.5), (2, 0.3), (3, 0.7), (7, -0.9), (9, 0.1)):  # the background has saliency, too
        saliency[labels == label] += level
    saliency[9, 9] += 3  # one pixel is not the nucleus
    if (returned := attempt(answer, saliency.clone(), labels.clone())) is None:
        return None
    found = as_numbers(returned)
    wanted, by_sum = ([one.label for one in rank_nuclei(saliency, labels, by)] for by in ("mean", "sum"))
    if found is None:
        return hint("return the labels as a list, the most salient first")
    if 0 in found:
        return hint("0 is the label of what is no nucleus")
    if sorted(found) != sorted(wanted):
        return hint(f"the nuclei of the test have the labels {sorted(wanted)}, and your list has {len(found)} entries")
    if found == wanted[::-1]:
        return hint("the most salient comes first")
    if found == by_sum:
        return hint("by the sum large nuclei win; divide by the area")
    if found[0] == wanted[-1]:
        return hint("a nucleus that speaks against the class is not salient for it: keep the sign")
    verdict(
        found == wanted,
        "the background left out, the sign kept, and labels with gaps between them are met",
        "take each label that occurs, and the mean of the saliency over its pixels",
    )


def check_13_5(answer: object) -> None:
    """Chapter 13: (network, picture, layer, rim), the rim being what a cut spoils of the layer's map, in pixels."""
    if untouched(answer):
        return None
    if not isinstance(answer, list | tuple) or len(answer) != 4:
        return hint("hand over four things, your network, a wide picture, the name of a layer and the rim in pixels")
    network, x, layer, given = answer
    number = as_numbers(given, 1)
    if number is None or not 0 < number[0] < float("inf"):
        return hint("the rim is one number of pixels above 0")
    rim = number[0]
    try:
        distance, off = _spoilt(network, x, layer)
    except Exception as error:  # whatever the reader's network may raise
        return hint(f"the picture or its left half could not be explained: {told(error)}")
    beyond = off[distance >= rim]
    if len(beyond) < 2:
        return hint(
            f"the left half is {float(distance.max()):.0f} pixels wide, and all of it is rim: take a wider picture"
        )
    if not bool((beyond < EXACT).all()):
        return hint(
            f"{rim:.0f} pixels from the cut and further away the error is still up to {float(beyond.max()):.0e}: "
            "a wider rim, or a network that does not look at the whole picture at once"
        )
    within = off[(distance >= rim / 2) & (distance < rim)]
    verdict(
        bool((within >= EXACT).any()),
        f"beyond {rim:.0f} pixels the map of the half is that of the whole, within half of that it is not",
        f"already {rim / 2:.0f} pixels from the cut the map is exact, so tiles could overlap less: a narrower rim",
    )


def _spoilt(network: nn.Module, x: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """For the left half's columns at the layer: their distances from the cut in pixels, and their relative errors."""
    half = x.shape[3] // 64 * 32  # at strides up to 32 the cut lies between two units
    if half == 0:
        raise ValueError(f"a width of {x.shape[3]} pixels cannot be halved at a multiple of 32")
    pictures = {"whole": x[..., : 2 * half], "left": x[..., :half]}
    target = logits_of(network, pictures["whole"]).argmax(1)
    fix = "backward" if strided_layers(network) else None
    maps = {}
    for name, picture in pictures.items():
        places = hidden_layers(network, picture)
        if layer not in places:
            raise ValueError(f"no hidden layer {layer!r}: there are {', '.join([*list(places)[:4], '...'])}")
        _, height, width = list(places.values())[-1].shape
        found = explain(network, picture, target, layer, "deeplift", fix)[layer]
        maps[name] = height * width * saliency_map(found).double()  # explains the sum over positions, not the mean
    place, count = places[layer], maps["left"].shape[2]
    distance = half - 0.5 - place.offset[1] - place.stride[1] * torch.arange(count)
    difference = (maps["left"] - maps["whole"][..., :count]).abs().mean((0, 1))
    return distance, difference / maps["whole"].abs().mean()
