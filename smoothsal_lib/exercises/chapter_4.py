"""Checks for the exercises of chapter 4."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from smoothsal_lib.exercises.marking import as_numbers, as_tensor, attempt, hint, picture_for, told, untouched, verdict
from smoothsal_lib.fixes import Surrogate, smoothed
from smoothsal_lib.fixes.stage import Geometry, Stage
from smoothsal_lib.fixes.surrogate import stage_errors
from smoothsal_lib.state import preserved


def check_4_1(answer: object) -> None:
    """Chapter 4: parameters of a stage."""
    if untouched(answer):
        return None
    count = as_numbers(answer, 1)
    if count == [322_560]:
        return hint("the weights are right; each output channel also has a bias, in both convolutions")
    if count == [92_320]:
        return hint("that is the first convolution; there is another behind the mean")
    if count == [184_640]:
        return hint("the second convolution reads what the first has made, 160 channels and not 64")
    verdict(count == [322_880], "92,320 in front of the mean and 230,560 behind it", "count both convolutions")


def check_4_2(answer: object) -> None:
    """Chapter 4: which strided convolutions a stage can reproduce exactly."""
    if untouched(answer):
        return None
    letters = {letter for letter in str(answer).lower() if letter.isalpha()}
    verdict(
        letters == {"a"},
        "it is a mean over blocks; the others pick pixels, and what alternates never passes the mean",
        "feed each a map that alternates between +1 and -1, and compare the outputs",
    )


def check_4_3(answer: object) -> None:
    """Chapter 4: a function that computes a stage's output."""
    if untouched(answer):
        return None
    generator = torch.Generator().manual_seed(0)
    stage = Stage(Geometry((2, 3), 1, (3, 3), (2, 2), (1, 1), (1, 1)))
    for shape in ((2, 2, 8, 8), (1, 2, 6, 10)):
        x = torch.randn(shape, generator=generator)
        with torch.no_grad():
            found, wanted = attempt(answer, stage.before, stage.after, x), stage(x).double()
        if found is None:
            return None
        given = as_tensor(found)
        if given is None or given.shape != wanted.shape:
            return hint(f"for an input of {shape} the output is a tensor of the shape {tuple(wanted.shape)}")
        if not torch.allclose(given, wanted, atol=1e-5):
            return hint("the shape is right, the values are not; what is bilinear by exactly 2?")
    verdict(True, "convolution, mean, convolution", "")


def check_4_4(answer: object) -> None:
    """Chapter 4: the error of a pixel that is predicted from the mean of its block, at a correlation of 0.9."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    wanted = (0.75 * (1 - 0.9)) ** 0.5
    if number is not None and abs(number[0] - wanted**2) < 1e-3:
        return hint("that is the share of the variance; the relative error is a quotient of norms, so take the root")
    if number is not None and abs(number[0] - (1 - wanted**2)) < 1e-3:
        return hint("that share of the variance the mean explains; which is left, and what is its root?")
    verdict(
        number is not None and abs(number[0] - wanted) < 0.005,
        "the mean explains (1 + 3 x 0.9) / 4 of the variance, and the root of the rest is 0.27",
        "what is the variance of the mean of the four, and what is its covariance with one of them?",
    )


def check_4_5(answer: object) -> None:
    """Chapter 4: the reader's own network, and a surrogate that is fitted to it."""
    if untouched(answer):
        return None
    if not isinstance(answer, Sequence) or len(answer) != 2:
        return hint("give two things, the network and its surrogate")
    network, surrogate = answer
    if (x := picture_for(network)) is None:
        return None
    if not isinstance(surrogate, Surrogate):
        return hint(f"the second should be what sal.fit_surrogate returns, not {type(surrogate).__name__}")
    if not surrogate.errors:
        return hint("this surrogate has its random weights still: fit it to some pictures")
    worst = max(surrogate.errors, key=lambda name: surrogate.errors[name]["l2"])
    if not surrogate.errors[worst]["l2"] < 1:
        return hint(f"the stage for {worst} is no better than a constant: leave it out, or give it more pictures")
    first = surrogate.layers[0]
    try:
        with preserved(network), torch.no_grad(), smoothed(network, surrogate):
            network(x)
        with preserved(network):
            distance = stage_errors(network, surrogate, x)[first]["l2"]
    except Exception as error:  # the surrogate of another network
        return hint(f"the surrogate does not fit the network, {told(error)}")
    verdict(
        distance < 1,
        f"at {first} the relative error is {distance:.2f} on a photograph of ours; hardest to imitate is {worst}",
        f"on a photograph of ours the stage for {first} is no better than a constant: was it fitted to this network?",
    )
