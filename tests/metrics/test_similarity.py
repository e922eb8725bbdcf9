from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from smoothsal_lib.metrics.similarity import rank_correlation, ssim


def test_rank_correlation_by_hand():
    # Ranks 1 2 3 4 against 1 2 4 3: 1 - 6 * (0 + 0 + 1 + 1) / (4 * 15) = 0.8; the values themselves do not matter.
    a = torch.tensor([[[1.0, 2.0], [3.0, 400.0]]])
    b = torch.tensor([[[-5.0, 0.0], [7.0, 0.1]]])
    torch.testing.assert_close(rank_correlation(a, b), torch.tensor([0.8]))


def test_ties_share_their_mean_rank():
    # Ranks 1.5 1.5 3 4 against 1 2 3 4: covariance 4.5, variances 4.5 and 5.
    a, b = torch.tensor([[[0.0, 0.0], [1.0, 2.0]]]), torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    torch.testing.assert_close(rank_correlation(a, b), torch.tensor([4.5 / (4.5 * 5) ** 0.5]))


@pytest.mark.parametrize("levels", [2, 5, 1_000_000])
def test_rank_correlation_is_that_of_scipy(levels: int):
    stats = pytest.importorskip("scipy.stats")
    a = torch.randint(levels, (6, 9, 12)).double()
    b = torch.randint(levels, (6, 9, 12)) + 0.7 * a
    expected = [stats.spearmanr(one.flatten(), other.flatten()).statistic for one, other in zip(a, b, strict=True)]
    torch.testing.assert_close(rank_correlation(a, b), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(rank_correlation(a.float(), b.float()), torch.tensor(expected).float())


def test_rank_correlation_sees_order_only():
    a, b = torch.randn(3, 8, 8, dtype=torch.float64), torch.randn(3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(rank_correlation(a, a.exp()), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(rank_correlation(a, -5 * a + 3), -torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(rank_correlation(a, b), rank_correlation(b, a**3))


def test_large_maps_in_single_precision():
    a = torch.rand(1, 224, 224)
    assert rank_correlation(a, a).item() == pytest.approx(1)
    assert abs(rank_correlation(a, torch.rand(1, 224, 224)).item()) < 5 / 224


def test_constant_maps_correlate_with_nothing():
    a, flat = torch.randn(2, 5, 5), torch.full((2, 5, 5), 3.0)
    for one, other in [(a, flat), (flat, a), (flat, flat), (flat, torch.zeros(2, 5, 5)), (a[:, :1, :1], a[:, :1, :1])]:
        assert rank_correlation(one, other).tolist() == [0, 0]


def test_ssim_by_hand():
    """Maps of one window: two columns of ones at the left of a, at the right of b."""
    a = torch.zeros(1, 11, 11, dtype=torch.float64)
    a[..., :2] = 7.0
    b = -a.flip(2) / 3  # mid-grey and white, against mid-grey and black
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    share = taps[:2].sum() / taps.sum()
    mean_a, mean_b = 0.5 + 0.5 * share, 0.5 - 0.5 * share
    variance, covariance = 0.25 * share * (1 - share), 0.25 * share**2
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    expected /= (mean_a**2 + mean_b**2 + c1) * (2 * variance + c2)
    assert ssim(a, b).item() == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(11, 11), (16, 23), (64, 64)])
def test_ssim_is_that_of_scikit_image(shape: tuple[int, int]):
    metrics = pytest.importorskip("skimage.metrics")
    a = torch.randn(4, *shape, dtype=torch.float64)
    b = 0.5 * a + 0.3 * torch.rand(4, *shape, dtype=torch.float64)
    grey = [[(0.5 + 0.5 * one / one.abs().max()).numpy() for one in pair] for pair in zip(a, b, strict=True)]
    settings = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 1}
    expected = [metrics.structural_similarity(*pair, **settings) for pair in grey]
    torch.testing.assert_close(ssim(a, b), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(ssim(a.float(), b.float()), torch.tensor(expected).float(), rtol=1e-4, atol=1e-5)


def test_ssim_of_equal_scaled_opposite_and_unrelated_maps():
    a = torch.randn(3, 96, 96, dtype=torch.float64)
    torch.testing.assert_close(ssim(a, 5 * a), torch.ones(3, dtype=torch.float64))
    assert (ssim(a, -a) < -0.8).all()
    assert ssim(a, torch.randn_like(a)).abs().max() < 0.1


def test_ssim_of_constant_maps():
    a, zero, flat = torch.randn(2, 16, 16), torch.zeros(2, 16, 16), torch.full((2, 16, 16), 3.0)
    for one in (zero, flat):
        torch.testing.assert_close(ssim(one, one), torch.ones(2))
        assert ssim(a, one).abs().max() < 0.1
    torch.testing.assert_close(ssim(zero, flat), torch.tensor((2 * 0.5 + 1e-4) / (0.5**2 + 1 + 1e-4)).expand(2))
    torch.testing.assert_close(ssim(flat, -flat), torch.tensor(1e-4 / (1 + 1e-4)).expand(2))


@pytest.mark.parametrize("measure", [rank_correlation, ssim])
def test_images_do_not_mix(measure):
    a, b = torch.randn(4, 12, 13, dtype=torch.float64), torch.randn(4, 12, 13, dtype=torch.float64)
    alone = torch.cat([measure(one[None], other[None]) for one, other in zip(a, b, strict=True)])
    torch.testing.assert_close(measure(a, b), alone)


@pytest.mark.parametrize("measure", [rank_correlation, ssim])
def test_half_precision_is_computed_in_single(measure):
    a, b = torch.randn(2, 16, 16).bfloat16(), torch.randn(2, 16, 16).bfloat16()
    assert torch.equal(measure(a, b), measure(a.float(), b.float()))


MAPS = torch.zeros(2, 16, 16)


@pytest.mark.parametrize("measure", [rank_correlation, ssim])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (MAPS, MAPS[:1], r"got \(2, 16, 16\), \(1, 16, 16\)"),
        (MAPS[0], MAPS[0], r"of one shape \(N, H, W\), got \(16, 16\)"),
        (MAPS[:0], MAPS[:0], r"got \(0, 16, 16\)"),
        (MAPS, MAPS / 0, "got 512 NaN or infinite values"),
    ],
)
def test_bad_input_is_one_line(measure, a: Tensor, b: Tensor, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        measure(a, b)
    assert "\n" not in str(caught.value)


def test_maps_too_small_for_a_window():
    with pytest.raises(ValueError, match=r"^maps of 4 x 16 are smaller than SSIM's window of 11 x 11: enlarge them$"):
        ssim(MAPS[:, :4], MAPS[:, :4])
