"""Checks for the exercises of chapter 11."""

from __future__ import annotations

import torch
from torch import nn

from smoothsal_lib.capture import logits_of
from smoothsal_lib.contributions import extract_aggregate
from smoothsal_lib.exercises.marking import as_numbers, as_tensor, attempt, hint, picture_for, told, untouched, verdict
from smoothsal_lib.explain import explain
from smoothsal_lib.meta import stepped


def check_11_1(answer: object) -> None:
    """Chapter 11: entries of an outer product, and the numbers that its norm needs."""
    if untouched(answer):
        return None
    numbers = as_numbers(answer, 2)
    if numbers is not None and numbers[0] == 256 * 9:
        return hint("that is one factor; its product with the other has an entry for each pair")
    if numbers is not None and numbers[0] == 256 * 256 * 9 and numbers[1] == 2:
        return hint("two norms, yes, but of what is that of the patch made, when each position has its norm already?")
    verdict(
        numbers == [256 * 256 * 9, 10],
        "256 x 2304 entries, and ten norms: that of the gradient, and those of x at nine positions",
        "there is an entry for every entry of the gradient and every one of the patch; and what does its norm need?",
    )


def check_11_2(answer: object) -> None:
    """Chapter 11: what doubling one layer's map does to a geometric mean, without and with scaling."""
    if untouched(answer):
        return None
    numbers = as_numbers(answer, 2)
    if numbers is not None and abs(numbers[0] - 2) < 1e-6:
        return hint("that would be the product; the mean takes the fourth root of it")
    verdict(
        numbers is not None and abs(numbers[0] - 2**0.25) < 5e-3 and abs(numbers[1] - 1) < 1e-6,
        "the fourth root of 2; and scaling to [0, 1] undoes any factor",
        "raise the factor to the layer's weight; and what does scaling to [0, 1] make of a factor?",
    )


def check_11_3(answer: object) -> None:
    """Chapter 11: the norm of the positive part of an outer product."""
    if untouched(answer):
        return None
    g, x = torch.randn(2, 2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    if (returned := attempt(answer, g.clone(), x.clone())) is None:
        return None
    found = as_tensor(returned)
    if found is None or found.shape != (2, 3, 4):
        return hint("return one number a position, shape (N, H, W)")
    wanted = extract_aggregate(x, g, "conv1x1", "positive_norm").double()
    if torch.allclose(found, wanted.square(), atol=1e-4):
        return hint("that is its square; the norm is the root")
    if torch.allclose(found, (g.clamp(min=0) * x.clamp(min=0)).square().sum(1).sqrt().double(), atol=1e-4):
        return hint("that is the scaling's contribution; here every channel of g meets every channel of x")
    if torch.allclose(found, (g.clamp(min=0).norm(dim=1) * x.clamp(min=0).norm(dim=1)).double(), atol=1e-4):
        return hint("a product is positive in one more case")
    verdict(
        torch.allclose(found, wanted, atol=1e-4),
        "both factors positive, or both negative",
        "when is a product positive? Add the squares of those cases, and factorise each",
    )


def check_11_4(answer: object) -> None:
    """Chapter 11: (network, layer), the layer being one at which NormGrad's map is the same for every class."""
    if untouched(answer):
        return None
    if not isinstance(answer, list | tuple) or len(answer) != 2:
        return hint("hand over a pair, your network and the name of the layer")
    network, layer = answer
    if (x := picture_for(network)) is None:
        return None
    if not isinstance(layer, str | nn.Module):
        return hint(f"the second is the layer, its name or the module, not {type(layer).__name__}")
    try:
        logits = logits_of(network, x)
        if logits.shape[1] < 2:
            return hint("this network has one output only: take one with several classes")
        maps = [
            next(iter(explain(network, x, c, [layer], "normgrad", fix=None).values()))[0, 0].double()
            for c in (logits.argmax(1), logits.argmin(1))
        ]
    except Exception as error:  # whatever the reader's network may raise
        return hint(f"the layer could not be explained: {told(error)}")
    # Each on the scale of its largest value, as a small network may have tiny gradients.
    likely, unlikely = (one / one.max().clamp(min=torch.finfo(one.dtype).tiny) for one in maps)
    if likely.numel() < 2 or float(likely.max() - likely.min()) < 1e-3:
        return hint("this map has the same value everywhere, so it ranks no positions: look for a layer that does")
    differ = float((likely - unlikely).abs().max())
    verdict(
        differ < 1e-4,
        "the two maps are multiples of one another, since what is behind this layer treats all positions alike",
        f"scaled to the same maximum, the maps of two classes still differ by up to {differ:.2g}; "
        "between which layer and the classifier is there nothing but a mean over positions?",
    )


def check_11_5(answer: object) -> None:
    """Chapter 11: (network, picture, rate), the rate of one step that just makes the least likely class the first."""
    if untouched(answer):
        return None
    if not isinstance(answer, list | tuple) or len(answer) != 3:
        return hint("hand over three things, your network, the picture and the rate")
    network, x, given = answer
    number = as_numbers(given, 1)
    if number is None or not 0 < number[0] < float("inf"):
        return hint("the rate is one number above 0")
    rate = number[0]
    try:
        least = logits_of(network, x).argmin(1)
        if len(least) != 1:
            return hint(f"one picture learns at a time, and this is a batch of {len(least)}")
        after = {}
        for step in (rate, rate / 2):
            with stepped(network, x, least, step):
                after[step] = logits_of(network, x)
    except Exception as error:  # whatever the reader's network may raise
        return hint(f"the network could not take the step: {told(error)}")
    if not all(bool(logits.isfinite().all()) for logits in after.values()):
        return hint("after this step the network returns no finite scores: the rate is far too large")
    first, half = (bool(logits.argmax(1) == least) for logits in after.values())
    if not first:
        return hint("after this step another class is still the first: a larger rate, please")
    verdict(
        not half,
        "this step turns the least likely class into the likeliest, and half of it does not",
        "the class is the first already after half of this step: a smaller rate, please",
    )
