from __future__ import annotations

import math

import pytest
import torch

from smoothsal_lib.metrics.noise import frequencies, power_spectrum, total_variation


def checkerboard(height: int, width: int) -> torch.Tensor:
    """+1 and -1 in turn, (height, width)."""
    return (1 - 2 * ((torch.arange(height)[:, None] + torch.arange(width)) % 2)).double()


def test_total_variation_by_hand():
    # Centred -3, -1 / 1, 3; mean magnitude 2; scaled -1.5, -0.5 / 0.5, 1.5: vertical 2 + 2, horizontal 1 + 1; 4 values.
    attribution = torch.tensor([[0.0, 2.0], [4.0, 6.0]]).view(1, 1, 2, 2)
    torch.testing.assert_close(total_variation(attribution), torch.tensor([6 / 4]))


def test_total_variation_of_a_checkerboard():
    # 4 x 4: 12 vertical and 12 horizontal pairs, each 2 apart after scaling by a mean magnitude of 1; over 16 values.
    attribution = 7 + 3 * checkerboard(4, 4).view(1, 1, 4, 4)
    torch.testing.assert_close(total_variation(attribution), torch.tensor([24 * 2 / 16], dtype=torch.float64))


def test_total_variation_is_the_mean_over_channels_and_keeps_images_apart():
    smooth, rough = torch.arange(16.0).view(4, 4).double(), checkerboard(4, 4)
    alone = [total_variation(one.view(1, 1, 4, 4)) for one in (smooth, rough)]
    both = total_variation(torch.stack([smooth, rough])[None])
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)
    torch.testing.assert_close(total_variation(torch.stack([smooth, rough])[:, None]), torch.cat(alone))


def test_total_variation_ignores_scale_and_offset_of_each_channel():
    torch.manual_seed(0)
    attribution = torch.randn(2, 3, 8, 9, dtype=torch.float64)
    scale = torch.tensor([1e-3, 5.0, -2.0], dtype=torch.float64).view(3, 1, 1)
    torch.testing.assert_close(total_variation(attribution * scale + 11), total_variation(attribution))


def test_total_variation_of_independent_values_is_two_root_two():
    torch.manual_seed(0)
    found = total_variation(torch.randn(1, 4, 256, 256, dtype=torch.float64)).item()
    assert found == pytest.approx(2 * math.sqrt(2) * 255 / 256, rel=0.01)


def test_total_variation_of_constant_and_of_tiny_channels():
    assert total_variation(torch.full((1, 2, 5, 5), 3.0)).item() == 0
    tiny = 1e-9 * checkerboard(4, 4).view(1, 1, 4, 4)  # below the floor: not blown up to full size
    assert total_variation(tiny).item() == pytest.approx(3e-3)


@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (3, 8, 9), (2, 3, 8, 7)])
def test_the_power_without_window_sums_to_the_variance(shape: tuple[int, ...]):
    torch.manual_seed(0)
    maps = 5 + torch.randn(shape, dtype=torch.float64)
    power = power_spectrum(maps, window=False)
    assert power.shape == maps.shape
    torch.testing.assert_close(power.sum((-2, -1)), maps.var((-2, -1), correction=0))


def test_the_power_with_window_sums_to_the_weighted_mean_square():
    torch.manual_seed(0)
    maps = 5 + torch.randn(7, 10, dtype=torch.float64)
    rows, columns = (torch.hann_window(n + 2, periodic=False, dtype=torch.float64)[1:-1] for n in maps.shape)
    w = rows[:, None] * columns
    centred = maps - (w * maps).sum() / w.sum()
    torch.testing.assert_close(power_spectrum(maps).sum(), (w**2 * centred**2).sum() / (w**2).sum())


@pytest.mark.parametrize("window", [True, False])
def test_a_constant_has_no_power_and_the_mean_is_removed(window: bool):
    torch.manual_seed(0)
    assert power_spectrum(torch.full((8, 8), 3.0, dtype=torch.float64), window).max() < 1e-25
    assert power_spectrum(torch.randn(8, 10, dtype=torch.float64) + 100, window)[4, 5] < 1e-20


@pytest.mark.parametrize(
    ("pattern", "place"),
    [
        (checkerboard(8, 8), (-0.5, -0.5)),
        (checkerboard(1, 8).expand(8, 8), (0.0, -0.5)),
        (checkerboard(8, 1).expand(8, 8), (-0.5, 0.0)),
    ],
)
def test_period_two_lies_at_the_nyquist_frequency(pattern: torch.Tensor, place: tuple[float, float]):
    power = power_spectrum(pattern, window=False)
    row, column = divmod(int(power.argmax()), 8)
    assert (frequencies(8)[row].item(), frequencies(8)[column].item()) == place
    assert power[row, column].item() == pytest.approx(1.0)  # all of the variance, which is 1


def test_a_window_keeps_a_slope_out_of_the_high_frequencies():
    slope = torch.arange(32.0).expand(32, 32).double()
    high = frequencies(32).abs() > 0.25
    leaked = [
        power_spectrum(slope, window)[:, high].sum() / power_spectrum(slope, window).sum() for window in (True, False)
    ]
    assert leaked[0] < 1e-3 * leaked[1]


def test_frequencies_ascend_from_minus_one_half():
    assert frequencies(4).tolist() == [-0.5, -0.25, 0.0, 0.25]
    assert frequencies(5).tolist() == pytest.approx([-0.4, -0.2, 0.0, 0.2, 0.4])


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match=r"^expected an attribution of shape \(N, C, H, W\), got \(4, 4\)$"):
        total_variation(torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"H, W of at least 2, got \(3, 1, 8\)$"):
        power_spectrum(torch.zeros(3, 1, 8))
