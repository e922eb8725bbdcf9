"""Checks for the exercises of chapter 6."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smoothsal_lib.exercises.marking import as_numbers, attempt, hint, picture_for, told, untouched, verdict
from smoothsal_lib.fixes import smoothed
from smoothsal_lib.fixes.blur import centred_blur, cyclic_mean
from smoothsal_lib.layers import strided_layers
from smoothsal_lib.state import preserved


def check_6_1(answer: object) -> None:
    """Chapter 6: what the two forms of the forward hook cost, in milliseconds."""
    if untouched(answer):
        return None
    times = as_numbers(answer, 2)
    if times is None:
        return hint("give two numbers, the published form first")
    if times == [9, 32]:
        return hint("the other way round: the published form first")
    verdict(
        abs(times[0] - 32) <= 1 and abs(times[1] - 9) <= 1,
        "four convolutions against one and a blur",
        "count the convolutions in each form",
    )


def check_6_2(answer: object) -> None:
    """Chapter 6: a function that measures how far two maps are from being adjoint."""
    if untouched(answer):
        return None
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 1, 7, 7, generator=generator), torch.randn(1, 1, 3, 3, generator=generator)
    y, small = torch.randn(1, 1, 7, 7, generator=generator), torch.randn(1, 1, 4, 4, generator=generator)

    def blur(g: Tensor) -> Tensor:
        return centred_blur(g, (2, 2))

    def shift(g: Tensor) -> Tensor:
        return cyclic_mean(g, (2, 2))

    def strided(g: Tensor) -> Tensor:
        return F.conv2d(g, weight, stride=2, padding=1)

    def spread(g: Tensor) -> Tensor:
        return F.conv_transpose2d(g, weight, stride=2, padding=1)

    gap = abs(float((shift(x) * y).sum() - (x * shift(y)).sum()))
    cases = (
        ("the centred blur, which is its own adjoint", blur, blur, y, 0.0),
        ("a strided convolution and its transpose", strided, spread, small, 0.0),
        ("the cyclic mean, taken for its own adjoint", shift, shift, y, gap),
    )
    for title, A, A_star, other, wanted in cases:
        if (found := attempt(answer, A, A_star, x, other)) is None:
            return None
        measured = as_numbers(found, 1)
        if measured is None:
            return hint("the function should return one number")
        if not abs(abs(measured[0]) - wanted) < 1e-4:
            return hint(f"for {title}, the two inner products differ by {wanted:.2f}, not by {abs(measured[0]):.2f}")
    verdict(True, f"zero for the centred blur, {gap:.2f} here for the cyclic mean", "")


def check_6_3(answer: object) -> None:
    """Chapter 6: which maps change when the stem is blurred as well."""
    if untouched(answer):
        return None
    words = set(re.findall("[a-z]+", str(answer).lower())) - {"and"}
    verdict(
        words in ({"both"}, {"hidden", "input"}),
        "the stem's grid shows at the input alone, but its output feeds every layer above",
        "follow the activations up as well as the gradient down",
    )


def check_6_4(answer: object) -> None:
    """Chapter 6: the networks at whose input the two hooks give the same gradient."""
    if untouched(answer):
        return None
    letters = {letter for letter in str(answer).lower() if letter.isalpha()}
    if letters & {"c", "e"}:
        return hint("a ReLU behind a strided convolution sees other activations under the forward hook")
    if letters == {"a"}:
        return hint("there are more: where does no ReLU come to decide otherwise?")
    verdict(
        letters == {"a", "b", "d"},
        "the blurs stand in the same places; only a ReLU that reads blurred activations can tell the two apart",
        "write the gradient at the input as a product of matrices, once for each hook",
    )


def check_6_5(answer: object) -> None:
    """Chapter 6: the reader's own network, and a copy that blurs before every strided convolution but the first."""
    if untouched(answer):
        return None
    if not isinstance(answer, Sequence) or len(answer) != 2:
        return hint("give two things, the network and its anti-aliased copy")
    network, copy = answer
    if (x := picture_for(network)) is None:
        return None
    if not isinstance(copy, nn.Module):
        return hint(f"the copy should be a torch.nn.Module, not {type(copy).__name__}")
    if copy is network:
        return hint("both are the same network: work on a copy, and leave the original as it was")
    if len(strided_layers(network)) < 2:
        return hint("this network has fewer than two strided convolutions, and the first is left alone: take another")
    try:
        with preserved(network), preserved(copy), torch.no_grad():
            plain, found = network(x), copy(x)
            with smoothed(network, "forward"):
                wanted = network(x)
            with smoothed(network, "forward:paper"):
                published = network(x)
    except Exception as error:  # whatever a reader's network may raise
        return hint(f"on a photograph one of them raises {told(error)}")
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        return hint(f"the copy should return logits of the shape {tuple(wanted.shape)}, as the network does")
    apart = float((wanted - plain).norm())
    if float((found - plain).norm()) < 1e-3 * apart:
        return hint("network and copy compute the same: has nothing changed, or has the original changed as well?")
    if float((found - published).norm()) < 1e-2 * apart:
        return hint("that is the published form, with its four shifts; blur with the centred kernel instead")
    verdict(
        float((found - wanted).norm()) < 1e-2 * apart,
        "a copy without hooks that computes what the forward hook computes",
        "the copy does not compute what the forward hook computes: is the first strided convolution left alone, and is "
        "the blur centred and made for the layer's own stride?",
    )
