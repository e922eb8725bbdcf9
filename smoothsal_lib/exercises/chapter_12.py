"""Checks for the exercises of chapter 12."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothsal_lib.exercises.marking import as_numbers, hint, untouched, verdict


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
    if not callable(answer):
        return hint("hand over the function itself, without calling it")
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3 * 4 * 4, 1, generator=generator)
    images, marked = torch.randn(2, 5, 3, 4, 4, generator=generator)

    def model(x: Tensor) -> Tensor:
        return x.flatten(1) @ weights

    found = as_numbers(answer(model, images, marked), 1)
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
