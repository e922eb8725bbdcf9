"""Colour statistics by hand, and logistic regression against its own definition."""

import math

import pytest
import torch

from smoothsal_lib.datasets.patches import Patches
from smoothsal_lib.metrics.detection import auc
from smoothsal_lib.training.colours import STATISTICS, colour_scores, colour_statistics, logistic_regression


def made(colours, labels, noise=0, size=8, seed=0):
    """Patches of one colour each, with noise in grey levels."""
    generator = torch.Generator().manual_seed(seed)
    images = colours[:, :, None, None] + noise * torch.randn(len(colours), 3, size, size, generator=generator)
    return Patches(images.clamp(0, 255).to(torch.uint8), labels, torch.arange(len(labels)))


def test_statistics_by_hand():
    picture = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    picture[0, 0] = torch.tensor([[0, 255], [0, 255]])
    picture[0, 1] = 51
    found = dict(zip(STATISTICS, colour_statistics(picture).view(2, -1).T.tolist(), strict=True))
    assert found["red"] == pytest.approx([0.5, 0.5])
    assert found["green"] == pytest.approx([0.2, 0])
    assert found["blue"] == [0, 0]


def test_statistics_of_dyes():
    """Light weakened tenfold by hematoxylin alone, and by eosin alone."""
    dyes = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    pictures = (255 * 10**-dyes)[:, :, None, None].expand(2, 3, 4, 4).round().to(torch.uint8)
    found = colour_statistics(pictures)
    assert found[:, 3:5].flatten().tolist() == pytest.approx([1, 0, 0, 1], abs=0.03)
    assert found[:, 8:].abs().max() < 1e-6


def test_batches_change_nothing():
    images = torch.randint(0, 256, (7, 3, 6, 6), dtype=torch.uint8)
    torch.testing.assert_close(colour_statistics(images, batch=2), colour_statistics(images))


def test_regression_finds_the_minimum():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 3, generator=generator, dtype=torch.float64)
    y = (torch.rand(80, generator=generator) < (x[:, 0] - 2 * x[:, 1] + 1).sigmoid()).long()
    weights = logistic_regression(x, y, ridge=0.5).requires_grad_()
    logits = x @ weights[:-1] + weights[-1]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y.double(), reduction="sum")
    (gradient,) = torch.autograd.grad(loss + 0.25 * weights[:-1].square().sum(), weights)
    assert gradient.abs().max() < 1e-6
    assert weights[0] > 0.3 and weights[1] < -1


def test_without_a_ridge_a_yes_or_no_has_the_log_odds():
    x = torch.tensor([0.0] * 4 + [1.0] * 5, dtype=torch.float64)[:, None]
    y = torch.tensor([1, 0, 0, 0] + [1, 1, 1, 1, 0])
    slope, constant = logistic_regression(x, y, ridge=0).tolist()
    assert constant == pytest.approx(math.log(1 / 3))
    assert slope + constant == pytest.approx(math.log(4))


def test_separable_classes_have_finite_weights():
    weights = logistic_regression(torch.tensor([[-1.0], [-2], [1], [2]]).double(), torch.tensor([0, 0, 1, 1]))
    assert weights.isfinite().all() and weights[0] > 0


def test_a_stain_that_gives_the_label_away_is_found_and_none_is_not():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(80) % 2
    grey = 120 + 40 * torch.rand(80, 3, generator=generator)
    redder = grey + 30 * labels[:, None] * torch.tensor([1.0, 0, 0])
    for colours, expected in ((redder, 0.98), (grey, 0.5)):
        patches = made(colours, labels, noise=5)
        scores = colour_scores(patches[:40], patches[40:])
        assert auc(scores, patches.labels[40:]) == pytest.approx(expected, abs=0.15 if expected == 0.5 else 0.05)


def test_spread_alone_is_seen():
    labels = torch.arange(60) % 2
    calm, rough = (made(torch.full((60, 3), 128.0), labels, noise, seed=noise) for noise in (5, 20))
    images = torch.where((labels == 1)[:, None, None, None], rough.images, calm.images)
    patches = Patches(images, labels, torch.arange(60))
    scores = colour_scores(patches[:30], patches[30:])
    assert torch.equal(scores > 0, labels[30:] == 1)


def test_other_patches_are_standardised_as_those_that_were_learnt_from():
    patches = made(128 + 40 * torch.randn(30, 3), torch.arange(30) % 2, noise=8)
    train, test = patches[:20], patches[20:24]
    known, new = colour_statistics(train.images), colour_statistics(test.images)
    standard = [(values - known.mean(0)) / known.std(0, correction=0) for values in (known, new)]
    weights = logistic_regression(standard[0], train.labels)
    torch.testing.assert_close(colour_scores(train, test), standard[1] @ weights[:-1] + weights[-1])
