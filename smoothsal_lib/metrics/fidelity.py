"""Fidelity: how much of the original network a repair has kept."""

from __future__ import annotations

from torch import Tensor


def _check(*logits: Tensor) -> None:
    if any(one.ndim != 2 or one.shape != logits[0].shape for one in logits):
        shapes = " and ".join(str(tuple(one.shape)) for one in logits)
        raise ValueError(f"expected logits of one shape (N, classes), got {shapes}")


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"expected {len(logits)} labels of shape (N,), got {tuple(labels.shape)}")


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
    _check_labels(labels, logits)
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


def prediction_difference(
    original: Tensor, repaired: Tensor, labels: Tensor | None = None, activation: str = "softmax"
) -> Tensor:
    """L1 distance between the two networks' probabilities.

    Source: Smooth Deep Saliency, arXiv 2404.02282, section 4.

    Args:
        original: (N, classes) logits of the original network.
        repaired: (N, classes) logits of the repaired one.
        labels: (N,) integers: compare the probability of each image's label alone; ``None`` sums over all classes.
        activation: ``"softmax"``, or ``"sigmoid"`` for independent outputs, such as a tumour detector's single one.

    Returns:
        (N,) floats; over all classes between 0 and 2 with softmax, for the label alone between 0 and 1.

    Raises:
        ValueError: when the shapes differ, or for an unknown activation.
    """
    _check(original, repaired)
    difference = (probabilities(original, activation) - probabilities(repaired, activation)).abs()
    if labels is None:
        return difference.sum(1)
    _check_labels(labels, original)
    return difference.gather(1, labels[:, None])[:, 0]


def probabilities(logits: Tensor, activation: str = "softmax") -> Tensor:
    """Logits (N, classes) as probabilities, by ``"softmax"`` or ``"sigmoid"``.

    Raises:
        ValueError: for another activation.
    """
    if activation not in ("softmax", "sigmoid"):
        raise ValueError(f"unknown activation {activation!r}: choose 'softmax' or 'sigmoid'")
    return logits.softmax(1) if activation == "softmax" else logits.sigmoid()
