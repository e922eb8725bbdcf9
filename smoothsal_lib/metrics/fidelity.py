"""Fidelity: how much of the original network a repair has kept."""

from __future__ import annotations

from torch import Tensor


def _check(*logits: Tensor) -> None:
    if any(one.ndim != 2 or one.shape != logits[0].shape for one in logits):
        shapes = " and ".join(str(tuple(one.shape)) for one in logits)
        raise ValueError(f"expected logits of one shape (N, classes), got {shapes}")


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each image's highest logit is that of its label.

    Args:
        logits: (N, classes).
        labels: (N,) integers.

    Returns:
        (N,) booleans; their mean is the top-1 accuracy.

    Raises:
        ValueError: when the shapes do not fit.
    """
    _check(logits)
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"expected {len(logits)} labels of shape (N,), got {tuple(labels.shape)}")
    return logits.argmax(1) == labels


def agreement(original: Tensor, repaired: Tensor) -> Tensor:
    """Whether the repaired network names the class that the original names.

    Args:
        original: (N, classes) logits of the original network.
        repaired: (N, classes) logits of the repaired one.

    Returns:
        (N,) booleans.

    Raises:
        ValueError: when the shapes differ.
    """
    _check(original, repaired)
    return original.argmax(1) == repaired.argmax(1)


def prediction_difference(original: Tensor, repaired: Tensor) -> Tensor:
    """L1 distance between the two networks' probabilities, summed over all classes: between 0 and 2.

    Source: Smooth Deep Saliency, arXiv 2404.02282, section 4.

    Args:
        original: (N, classes) logits of the original network.
        repaired: (N, classes) logits of the repaired one.

    Returns:
        (N,) floats.

    Raises:
        ValueError: when the shapes differ.
    """
    _check(original, repaired)
    return (original.softmax(1) - repaired.softmax(1)).abs().sum(1)
