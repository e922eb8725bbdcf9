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


def predicted(logits: Tensor) -> Tensor:
    """The class that a network names: of logits (N, classes) the highest, of a detector's single one whether it is > 0.

    Returns:
        (N,) int64; for a detector, logits (N, 1), 1 stands for "found", a probability above one half, and 0 for not.
    """
    return logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each image's highest logit is that of its label.

    Args:
        logits: (N, classes).
        labels: (N,) integers; for a detector's single logit (N, 1) 0 or 1, see :func:`predicted`.

    Returns:
        (N,) booleans; their mean is the top-1 accuracy.

    Raises:
        ValueError: when the shapes do not fit.
    """
    _check(logits)
    _check_labels(labels, logits)
    return predicted(logits) == labels


def agreement(original: Tensor, repaired: Tensor) -> Tensor:
    """Whether the repaired network names the class that the original names (:func:`predicted`).

    Args:
        original: (N, classes) logits of the original network.
        repaired: (N, classes) logits of the repaired one.

    Returns:
        (N,) booleans.

    Raises:
        ValueError: when the shapes differ.
    """
    _check(original, repaired)
    return predicted(original) == predicted(repaired)


def prediction_difference(
    original: Tensor, repaired: Tensor, labels: Tensor | None = None, activation: str = "softmax"
) -> Tensor:
    """L1 distance between the two networks' probabilities.

    Source: Smooth Deep Saliency, arXiv 2404.02282, section 4.

    Args:
        original: (N, classes) logits of the original network.
        repaired: (N, classes) logits of the repaired one.
        labels: (N,) integers: compare the probability of each image's label alone; ``None`` sums over all classes. Of
            one output, label 0 or 1, the distance is the same for both: one probability is 1 minus the other.
        activation: ``"softmax"``, or ``"sigmoid"`` for independent outputs, such as a tumour detector's single one.

    Returns:
        (N,) floats; over all classes between 0 and 2 with softmax, for the label alone between 0 and 1.

    Raises:
        ValueError: when the shapes differ, for an unknown activation, or for the softmax of a single output.
    """
    _check(original, repaired)
    difference = (probabilities(original, activation) - probabilities(repaired, activation)).abs()
    if labels is not None:
        _check_labels(labels, original)
    if labels is None or difference.shape[1] == 1:
        return difference.sum(1)
    return difference.gather(1, labels[:, None])[:, 0]


def probabilities(logits: Tensor, activation: str = "softmax") -> Tensor:
    """The ``logits`` (N, classes) as probabilities, by ``"softmax"`` or ``"sigmoid"``.

    Raises:
        ValueError: for another activation, or the softmax of a single output, which is always 1.
    """
    if activation not in ("softmax", "sigmoid"):
        raise ValueError(f"unknown activation {activation!r}: choose 'softmax' or 'sigmoid'")
    if activation == "softmax" and logits.shape[1] == 1:
        raise ValueError("the softmax of a single output is always 1: use activation='sigmoid'")
    return logits.softmax(1) if activation == "softmax" else logits.sigmoid()
