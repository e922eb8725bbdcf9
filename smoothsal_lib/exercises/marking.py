"""What all checks share: reading an answer, and saying in one line what is the matter with it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def hint(text: str) -> None:
    """Print what is missing from an answer."""
    print(f"Not yet: {text}.")


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
        print("Your answer goes in place of the dots.")
    return dots


def as_numbers(answer: object, count: int | None = None) -> list[float] | None:
    """The answer as a list of numbers, from a number, a list or a tensor; ``None`` when it is none of these."""
    try:
        values = answer.flatten().tolist() if isinstance(answer, Tensor) else answer
        numbers = (
            [float(v) for v in values]
            if isinstance(values, Iterable) and not isinstance(values, str)
            else [float(values)]  # type: ignore[arg-type]
        )
    except (TypeError, ValueError):
        return None
    return numbers if count is None or len(numbers) == count else None
