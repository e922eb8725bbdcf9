"""What all checks share: reading an answer, and saying in one line what is the matter with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smoothsal_lib.datasets.photos import load_photo
from smoothsal_lib.state import preserved

UNANSWERED = "Your answer goes in place of the dots."


def hint(text: str) -> None:
    """Print what is missing from an answer."""
    print(f"Not yet: {text}" + "." * (not text.endswith("?")))


def verdict(right: bool, why: str, otherwise: str) -> None:
    """Print that the answer is right and why, or what is missing."""
    if right:
        print(f"Correct: {why}.")
    else:
        hint(otherwise)


def untouched(answer: object) -> bool:
    """Whether the exercise has not been tried; says so."""
    parts = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, (list, tuple, set)) else ()
    dots = answer is ... or any(part is ... for part in parts)
    if dots:
        print(UNANSWERED)
    return dots


def as_numbers(answer: object, count: int | None = None) -> list[float] | None:
    """The answer as a list of numbers, from a number, list, array or tensor; ``None`` when it is none of these."""
    try:
        values = answer.flatten().tolist() if isinstance(answer, Tensor | np.ndarray) else answer
        numbers = (
            [float(v) for v in values]
            if isinstance(values, Iterable) and not isinstance(values, str)
            else [float(values)]  # type: ignore[arg-type]
        )
    except (TypeError, ValueError, RuntimeError):  # the last by a tensor of several numbers inside a list
        return None
    return numbers if count is None or len(numbers) == count else None


def as_tensor(answer: object) -> Tensor | None:
    """The answer as a detached float64 tensor on the CPU, from what ``torch.as_tensor`` takes; ``None`` for others."""
    try:
        return torch.as_tensor(answer).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError):
        return None


def attempt(function: object, *inputs: object) -> Any:
    """What the reader's function makes of the inputs; ``None``, and a hint, where it raises or returns nothing."""
    if not callable(function):
        return hint("hand over the function itself, without calling it")
    try:
        found = function(*inputs)
    except Exception as error:  # whatever a reader's function may raise, a check does not
        return hint(f"the function raises {told(error)}")
    return hint("the function returns nothing") if found is None else found


def told(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": .")


def picture_for(network: object) -> Tensor | None:
    """A photograph (1, C, H, W) that the reader's network takes; ``None``, and a hint, where there is none.

    It has the channels that the first convolution wants, and the first of some usual sizes at which the network returns
    finite logits (1, classes). The network is left as it was.
    """
    if not isinstance(network, nn.Module):
        hint(f"hand over the network itself, a torch.nn.Module and not {type(network).__name__}")
        return None
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        hint(f"{type(network).__name__} has no convolution: take a CNN")
        return None
    why = ""
    for size in (224, 128, 64, 32, 28):
        photo, _ = load_photo("chelsea", size)
        if first.in_channels != 3:
            photo = photo.mean(1, keepdim=True).expand(-1, first.in_channels, -1, -1)
        x = photo.to(first.weight)
        try:
            with preserved(network), torch.no_grad():
                logits = network(x)
        except Exception as error:  # whatever a reader's network may raise, a check does not
            why = f"it raises {told(error)}"
            continue
        if isinstance(logits, Tensor) and logits.ndim == 2 and bool(torch.isfinite(logits).all()):
            return x
        why = "it should return finite logits (N, classes)"
    hint(f"the network takes no photograph of 224, 128, 64, 32 or 28 pixels: {why}")
    return None
