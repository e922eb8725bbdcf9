"""Checks for the exercises of chapter 8."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from smoothsal_lib.exercises.marking import as_numbers, attempt, hint, picture_for, told, untouched, verdict
from smoothsal_lib.explain import explain
from smoothsal_lib.extract import saliency_map
from smoothsal_lib.metrics.faithfulness import deletion
from smoothsal_lib.metrics.sanity import random_maps
from smoothsal_lib.metrics.similarity import rank_correlation

STEPS = 7  # of deletion, in the last exercise


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
    letters = set(re.sub("and|[^a-z]", "", " ".join(map(str, given)).lower()))
    if "c" in letters or "e" in letters:
        return hint("put the values -2, 1, 3 in order, then their negatives, or their magnitudes, in the same order")
    verdict(
        letters == {"a", "b", "d"},
        "an increasing function changes the values and not their order, and the curve sees the order alone",
        "the curve depends only on which pixel comes first, second, third; there is more than one",
    )


def check_8_3(answer: object) -> None:
    """Chapter 8: what ROAD fills into two missing pixels that are neighbours."""
    if untouched(answer):
        return None
    numbers = as_numbers(answer, 2)
    if numbers is None:
        return hint("give two numbers, the first pixel and the second")
    first, second = numbers
    if abs(first - 4) < 1e-6 or abs(second - 11) < 1e-6:
        return hint("one of the two takes nothing from the other, though each is a neighbour of the other")
    if abs(first - 12) < 1e-6 and abs(second - 6) < 1e-6:
        return hint("these are the values, the other way round")
    verdict(
        abs(first - 6) < 1e-3 and abs(second - 12) < 1e-3,
        "6 = 4 + 12/6 and 12 = 11 + 6/6, both at once",
        "the first should be 4 plus a sixth of the second, and the second 11 plus a sixth of the first",
    )


def check_8_4(answer: object) -> None:
    """Chapter 8: Spearman's rank correlation of two maps."""
    if untouched(answer):
        return None
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 7, 9, generator=generator)
    for title, one, other in (("two maps", a, a + b), ("a map and its cube", a, a**3), ("opposites", a, -a)):
        wanted = float(rank_correlation(one[None], other[None]))
        if (returned := attempt(answer, one.clone(), other.clone())) is None:
            return None
        found = as_numbers(returned, 1)
        if found is None:
            return hint("return one number")
        if not abs(found[0] - wanted) < 1e-3:
            return hint(f"for {title} the rank correlation is {wanted:.3f}, yours is {found[0]:.3f}")
    verdict(True, "the correlation of the ranks, which an increasing function leaves alone", "")


class _TwoClasses(nn.Module):
    """A network of two classes whose first score is a function of the picture, between -4 and 4 for ones and zeros."""

    def __init__(self, seen: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        score = 8 * self.seen(x).mean((1, 2, 3)) - 4
        return torch.stack([score, torch.zeros_like(score)], 1)


def check_8_5(answer: object) -> None:
    """Chapter 8: how far a map leads random maps of its coarseness by deletion, as (function, network)."""
    if untouched(answer):
        return None
    if not isinstance(answer, list | tuple) or len(answer) != 2:
        return hint("hand over a pair: your function and your network")
    lead, network = answer
    corner = torch.zeros(32, 32)
    corner[4:16, 4:16] = 1
    coarse = torch.tensor([[9.0, 8, 1, 2], [7, 6, 3, 0], [4, 5, -1, -2], [-3, -4, -5, -6]])
    cases = {
        "a network that looks at one square, and a map of that square": (lambda x: x[..., 4:16, 4:16], corner, 0),
        "the same map, for the other class": (lambda x: x[..., 4:16, 4:16], corner, 1),
        # The smallest value of each window: scattered holes are far worse than one large hole.
        "a network that a hole anywhere disturbs, and a map of 4 x 4": (
            lambda x: -torch.nn.functional.max_pool2d(-x, 5, 1),
            coarse,
            0,
        ),
    }
    picture = torch.ones(1, 1, 32, 32)
    for title, (seen, saliency, target) in cases.items():
        toy = _TwoClasses(seen)
        floor = [_area(toy, picture, random_maps(saliency, seed), target) for seed in range(40)]
        wanted = sum(floor) / len(floor) - _area(toy, picture, saliency, target)
        if (returned := attempt(lead, toy, picture.clone(), saliency.clone(), target)) is None:
            return None
        found = as_numbers(returned, 1)
        if found is None:
            return hint("return one number")
        if target == 0 and abs(found[0] + wanted) < 0.04:
            return hint("turn the sign round: by deletion a small area is good, and a lead should be positive")
        if not abs(found[0] - wanted) < 0.04:
            return hint(f"for {title} the lead is about {wanted:.2f}, yours is {found[0]:.2f}")
    x = picture_for(network)
    if x is None:
        return None
    try:
        own = deepcopy(network)  # a reader's function may do anything to it
        target = int(own.eval()(x).argmax())
        gradient = explain(own, x, target, "input", "gradient", fix=None)["input"]
    except Exception as error:  # whatever a reader's network may raise
        return hint(f"the network cannot be explained: {told(error)}")
    if (returned := attempt(lead, own, x.clone(), saliency_map(gradient, "abs_mean")[0], target)) is None:
        return None
    found = as_numbers(returned, 1)
    verdict(
        found is not None and abs(found[0]) <= 1,
        f"on your {type(network).__name__} the input gradient leads the floor by {found[0] if found else 0:+.3f}",
        f"on your {type(network).__name__} the lead should be a number between -1 and 1",
    )


def _area(model: nn.Module, x: Tensor, saliency: Tensor, target: int) -> float:
    return float(deletion(model, x, saliency[None], target, steps=STEPS).auc)
