"""Checks for the exercises of chapter 12."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothsal_lib.capture import check_target, logits_of
from smoothsal_lib.exercises.marking import as_numbers, attempt, hint, told, untouched, verdict
from smoothsal_lib.filters import low_pass
from smoothsal_lib.metrics.noise import total_variation

SIGMA_TIMES_CUTOFF = 0.187  # of the Gaussian low-pass filter, in pixels times cycles per pixel
PICTURES = 6  # at least, on which a mark is tried
LARGEST_MARK = 0.1  # of the pixels


def check_12_1(answer: object) -> None:
    """Chapter 12: enrichment from a share of saliency and a share of area."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    if number is not None and abs(number[0] - 0.4) < 1e-6:
        return hint("turn it round: more saliency on less area is more than 1")
    if number is not None and abs(number[0] - 0.3) < 1e-6:
        return hint("a difference depends on how large the structure is; divide instead")
    verdict(
        number is not None and abs(number[0] - 2.5) < 1e-6,
        "0.5 / 0.2: two and a half times what a map without any preference puts there",
        "divide the share of the saliency by what a map that is the same everywhere would put there",
    )


def check_12_2(answer: object) -> None:
    """Chapter 12: the average precision of four pixels."""
    if untouched(answer):
        return None
    number = as_numbers(answer, 1)
    if number is not None and abs(number[0] - 0.5) < 1e-6:
        return hint("that is the share of nucleus pixels, which a random map scores")
    verdict(
        number is not None and abs(number[0] - 5 / 6) < 5e-3,
        "precision is 1 at the first nucleus pixel and 2/3 at the second, and each brings half of the recall",
        "sort the pixels by value; at each nucleus pixel, which share of those up to it are nucleus pixels?",
    )


def check_12_3(answer: object) -> None:
    """Chapter 12: by how much a mark moves the logit."""
    if untouched(answer):
        return None
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3 * 4 * 4, 1, generator=generator)
    images, marked = torch.randn(2, 5, 3, 4, 4, generator=generator)

    def model(x: Tensor) -> Tensor:
        return x.flatten(1) @ weights

    if (returned := attempt(answer, model, images.clone(), marked.clone())) is None:
        return None
    found = as_numbers(returned, 1)
    wanted = float((model(marked) - model(images)).mean())
    if found is None:
        return hint("return one number, the mean over the pictures")
    if abs(found[0] + wanted) < 1e-4:
        return hint("positive should mean that the mark speaks for tumour")
    if abs(found[0] - float((model(marked).sigmoid() - model(images).sigmoid()).mean())) < 1e-4:
        return hint("probabilities saturate: a picture that is at 0.99 already cannot show the jump; take the logits")
    verdict(
        abs(found[0] - wanted) < 1e-4,
        "in logits, with sign, picture by picture",
        "the logit with the mark minus that of the same picture without it, averaged over the pictures",
    )


def check_12_4(answer: object) -> None:
    """Chapter 12: how wide a blur makes a rough map as smooth as another."""
    if untouched(answer):
        return None
    rough, other = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0))
    for sigma in (1.0, 2.5):
        blurred = low_pass(rough, SIGMA_TIMES_CUTOFF / sigma)
        cases = {
            "the rough map itself, blurred": blurred,
            "the same, a hundred times as large": 100 * blurred,
            "another map": low_pass(other, SIGMA_TIMES_CUTOFF / sigma),
        }
        for title, smooth in cases.items():
            if (returned := attempt(answer, rough.clone(), smooth.clone())) is None:
                return None
            found = as_numbers(returned, 1)
            if found is None:
                return hint("return one number, the standard deviation in pixels")
            wanted = _as_smooth(rough, smooth)
            if abs(found[0] - SIGMA_TIMES_CUTOFF / wanted) < 0.01:
                return hint("that looks like the cut-off; the standard deviation is 0.187 divided by it")
            if not abs(found[0] - wanted) < 0.1:
                return hint(f"where the smooth map is {title}, it takes {wanted:.2f} pixels, and not {found[0]:.2f}")
    verdict(True, "as smooth, whatever the scale of the map; now only where the values lie can tell the two apart", "")


def _as_smooth(rough: Tensor, smooth: Tensor) -> float:
    wanted, low, high = total_variation(smooth[None, None]), 0.0, 8.0
    while high - low > 0.001:
        sigma = (low + high) / 2
        blurred = low_pass(rough, SIGMA_TIMES_CUTOFF / sigma)
        low, high = (sigma, high) if total_variation(blurred[None, None]) > wanted else (low, sigma)
    return high


def check_12_5(answer: object) -> None:
    """Chapter 12: (network, images, marked, target), the target being a class that a small mark always raises."""
    if untouched(answer):
        return None
    if not isinstance(answer, list | tuple) or len(answer) != 4:
        return hint("hand over four things, your network, the pictures, the marked pictures and the class")
    network, images, marked, target = answer
    if not isinstance(images, Tensor) or not isinstance(marked, Tensor) or images.shape != marked.shape:
        return hint("the pictures without and with the mark are two tensors (N, C, H, W) of the same shape")
    if images.ndim != 4 or len(images) < PICTURES:
        return hint(f"take {PICTURES} pictures or more, as a tensor (N, C, H, W): one is an anecdote")
    changed = (images != marked).any(1).double().mean((1, 2))
    if not bool((changed > 0).all()):
        return hint("one of the pictures has no mark")
    if float(changed.max()) > LARGEST_MARK:
        return hint(
            f"the mark changes {float(changed.max()):.0%} of a picture; keep to {LARGEST_MARK:.0%} of the pixels"
        )
    try:
        before, after = logits_of(network, images), logits_of(network, marked)
        c = check_target(target, before[:1])
    except Exception as error:  # whatever the reader's network may raise
        return hint(f"the network could not be asked: {told(error)}")
    jumps = (after - before)[:, c[0]]
    verdict(
        bool((jumps > 0).all()),
        f"it rises in all {len(jumps)} pictures, by {float(jumps.mean()):.2g} on average; "
        "now read the solution before you call this a shortcut",
        f"the logit of class {int(c)} rises in {int((jumps > 0).sum())} of {len(jumps)} pictures: "
        "another class, or another mark",
    )
