"""What colour alone says about a patch: the baseline that a tumour detector has to beat.

Patients are stained differently, and many carry one class only, so that a detector may score well by the stain and know
nothing of tissue. Logistic regression on a patch's colour statistics tells how far one gets that way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from smoothsal_lib.datasets.patches import Patches
from smoothsal_lib.datasets.stains import separate

STATISTICS = ("red", "green", "blue", "hematoxylin", "eosin")  # mean and standard deviation of each
RIDGE = 1.0  # on standardised statistics: weights stay finite where the classes can be separated
STEPS = 50  # Newton's; a dozen suffice


def colour_statistics(images: Tensor, batch: int = 256) -> Tensor:
    """Mean and standard deviation over a patch of red, green and blue and of the amounts of both dyes.

    Args:
        images: (N, 3, H, W) uint8.
        batch: how many are looked at in one go.

    Returns:
        (N, 10) float64: the five means in the order of :data:`STATISTICS`, colours between 0 and 1 and dyes in units of
        optical density, then the five standard deviations.
    """
    found = []
    for part in images.split(batch):
        values = torch.cat([part.float() / 255, separate(part)[:, :2].float()], 1).flatten(2).double()
        found.append(torch.cat([values.mean(2), values.std(2, correction=0)], 1))
    return torch.cat(found)


def colour_scores(train: Patches, test: Patches, statistics: Callable[[Tensor], Tensor] = colour_statistics) -> Tensor:
    """Logits of tumour from colour statistics alone: logistic regression, fitted to ``train``.

    The weights minimise the summed cross-entropy and half the sum of their squares (:data:`RIDGE`), on statistics with
    mean 0 and standard deviation 1 in ``train``.

    Args:
        train: patches to learn from.
        test: patches of other patients.
        statistics: from images (N, 3, H, W) uint8 to what is known of them, (N, F) float64.

    Returns:
        (N,) float64, for the patches of ``test``.
    """
    features = statistics(train.images)
    mean, spread = features.mean(0), features.std(0, correction=0).clamp(min=1e-12)
    weights = logistic_regression((features - mean) / spread, train.labels)
    return _with_constant((statistics(test.images) - mean) / spread) @ weights


def logistic_regression(features: Tensor, labels: Tensor, ridge: float = RIDGE) -> Tensor:
    """Weights by Newton's method (iteratively reweighted least squares), the last one the constant.

    Args:
        features: (N, F) float64.
        labels: (N,) 0 and 1.
        ridge: half of it times the sum of the squared weights, without the constant, is added to the cross-entropy.

    Returns:
        (F + 1,) float64.
    """
    x, y = _with_constant(features), labels.double()
    penalty = torch.full((x.shape[1],), ridge, dtype=torch.float64)
    penalty[-1] = 1e-9  # none, but no singular matrix for labels of one class
    weights = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(STEPS):
        p = (x @ weights).sigmoid()
        gradient = x.T @ (p - y) + penalty * weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x + penalty.diag()
        step = torch.linalg.solve(curvature, gradient)
        weights = weights - step
        if step.abs().max() < 1e-10:
            break
    return weights


def _with_constant(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], 1)
