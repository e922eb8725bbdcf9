"""Checks for the exercises of chapter 10."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from smoothsal_lib.exercises.marking import (
    as_numbers,
    as_tensor,
    attempt,
    hint,
    picture_for,
    told,
    untouched,
    verdict,
)
from smoothsal_lib.explain import explain
from smoothsal_lib.sampling import SmoothGrad


def check_10_1(answer: object) -> None:
    """Chapter 10: how many looks two seeds need to agree by 0.9, when ten give 0.5."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    if number == [18]:
        return hint("the correlation does not grow in proportion to n: it can never pass 1")
    verdict(
        number is not None and abs(number[0] - 90) < 1e-6,
        "from 0.5 at ten looks, one look with another correlates by 1/11, and n / (n + 10) is 0.9 at n = 90",
        "find the correlation of single looks first, from n = 10; then solve for n",
    )


def check_10_2(answer: object) -> None:
    """Chapter 10: the share of a grid in one look and in the mean of many."""
    if untouched(answer):
        return None
    numbers = as_numbers(answer, 2)
    if numbers is not None and abs(numbers[0] - 0.1) < 1e-6 and abs(numbers[1] - 0.1) < 1e-6:
        return hint("the rest is drawn anew in every look, so a mean of 81 has less of it")
    if numbers is not None and abs(numbers[0] - 1 / 9) < 1e-6:
        return hint("the share is of the whole variance, grid and rest together")
    verdict(
        numbers is not None and abs(numbers[0] - 0.1) < 1e-6 and abs(numbers[1] - 0.9) < 1e-6,
        "1 / (1 + 9), and 1 / (1 + 9/81): averaging uncovers what does not change",
        "the variance of the mean of 81 independent values is an 81st of theirs; the grid's stays",
    )


def check_10_3(answer: object) -> None:
    """Chapter 10: the slope of a ReLU one standard deviation below its kink, averaged over noise."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    if number == [0]:
        return hint("that is the gradient without noise; some of the looks fall beyond the kink")
    if number is not None and abs(number[0] - 0.841) < 0.003:
        return hint("that is how many looks stay below the kink, and there the gradient is 0")
    if number is not None and abs(number[0] - 0.317) < 0.003:
        return hint("a normal value is as often more than sigma below its mean as above it, and one of the two counts")
    verdict(
        number is not None and abs(number[0] - 0.1587) < 0.003,
        "the gradient is 1 beyond the kink, and 15.9 % of normal values lie more than sigma above their mean",
        "the gradient of a look is either 0 or 1, so the mean is the share of the looks in which it is 1",
    )


def check_10_4(answer: object) -> None:
    """Chapter 10: the mean gradient over noisy copies."""
    if untouched(answer):
        return None
    generator = torch.Generator().manual_seed(1)
    x, weights = torch.randn(2, 3, 4, generator=generator)
    cases = {
        "a linear function": (lambda z: (weights * z).sum(), weights, 1e-4),
        "the sum of squares": (lambda z: z.square().sum(), 2 * x, 0.15),
        # E 3 (x + e)^2 = 3 (x^2 + sigma^2): the gradient of the smoothed function, not that of the function.
        "the sum of cubes": (lambda z: z.pow(3).sum(), 3 * (x.square() + 0.25), 0.6),
    }
    before = x.clone()
    for title, (f, wanted, tolerance) in cases.items():
        if (found := attempt(answer, f, x, 0.5, 2000, 0)) is None:
            return None
        gradient = as_tensor(found)
        if gradient is None or gradient.shape != x.shape:
            return hint("return one gradient of the shape of x")
        if torch.equal(x, before) and not float((gradient - wanted).abs().max()) < tolerance:
            return hint(f"for {title} the mean gradient is off; look at the number of looks and the size of the noise")
    if not torch.equal(x, before):
        return hint("it changes x itself: make a new picture for every look")
    drawn = [as_tensor(attempt(answer, cases["the sum of squares"][0], x, 0.5, 3, seed)) for seed in (0, 0, 1)]
    first, again, other = (torch.zeros(()) if one is None else one for one in drawn)
    if not torch.equal(first, again) or torch.equal(first, other):
        return hint("one seed should give the same noise twice, and another seed other noise")
    verdict(True, "the gradient of the function smoothed with a Gaussian", "")


class _Quadratic(nn.Module):
    """A network of two classes whose first score is half the sum of squares, so that its gradient is the picture."""

    def forward(self, x: Tensor) -> Tensor:
        score = x.square().sum((1, 2, 3)) / 2
        return torch.stack([score, torch.zeros_like(score)], 1)


def check_10_5(answer: object) -> None:
    """Chapter 10: how many looks a network needs until two seeds agree, as (function, network)."""
    if untouched(answer):
        return None
    if not isinstance(answer, list | tuple) or len(answer) != 2:
        return hint("hand over a pair: your function and your network")
    looks, network = answer
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for noise, agreement in ((0.4, 0.9), (0.8, 0.8)):
        sigma = noise * float(x.max() - x.min())
        single = float(x.var() / (x.var() + sigma**2))  # a look's gradient is x plus its own noise
        wanted = _spearman_brown(single, agreement)
        if (returned := attempt(looks, _Quadratic(), x.clone(), noise, agreement)) is None:
            return None
        found = as_numbers(returned, 1)
        if found is None:
            return hint("return one number of looks")
        if not wanted / 1.3 - 1 <= found[0] <= wanted * 1.3 + 1:
            return hint(
                f"if the gradient is the picture itself, then at a noise level of {noise:g} two seeds agree by "
                f"{agreement:g} after about {wanted:.0f} looks, yours are {found[0]:.1f}"
            )
    picture = picture_for(network)
    if picture is None:
        return None
    noise, agreement = 0.15, 0.9
    try:
        own = deepcopy(network).eval()  # a reader's function may do anything to it
        means = [
            explain(own, picture, None, "input", "gradient", None, sampling=SmoothGrad(10, noise, seed))["input"]
            for seed in (1, 2)
        ]
    except Exception as error:  # whatever a reader's network may raise
        return hint(f"the network cannot be explained: {told(error)}")
    ten = float(torch.corrcoef(torch.stack(means).flatten(1))[0, 1])
    single = ten / (10 - 9 * ten)
    if not 0 < single < 1:
        return hint(f"two means of ten looks of this network correlate by {ten:.2f}: take one that has been trained")
    wanted = _spearman_brown(single, agreement)
    if (returned := attempt(looks, own, picture.clone(), noise, agreement)) is None:
        return None
    found = as_numbers(returned, 1)
    name = type(network).__name__
    verdict(
        found is not None and wanted / 1.5 - 1 <= found[0] <= wanted * 1.5 + 1,
        f"at the input your {name} needs about {found[0] if found else 0:.0f} looks to agree by {agreement:g}",
        f"at the input of your {name} two seeds agree by {agreement:g} after about {wanted:.0f} looks, not {found}",
    )


def _spearman_brown(single: float, agreement: float) -> float:
    """How many looks make two means agree, when two single looks correlate by ``single``."""
    return agreement * (1 - single) / (single * (1 - agreement))
