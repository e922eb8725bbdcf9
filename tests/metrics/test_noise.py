from __future__ import annotations

import math

import pytest
import torch

from smoothsal_lib.datasets.photos import load_photo
from smoothsal_lib.explain import explain
from smoothsal_lib.metrics.noise import checkerboard_energy, frequencies, power_spectrum, total_variation
from smoothsal_lib.models import load_model


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


def grid(size: int, stride: int) -> torch.Tensor:
    """1 at one position of every cell, 0 elsewhere: (1, 1, size, size)."""
    pattern = torch.zeros(1, 1, size, size, dtype=torch.float64)
    pattern[..., ::stride, ::stride] = 1
    return pattern


def energy_by_pairs(attribution: torch.Tensor, stride: int) -> float:
    """The definition, pair of cells by pair of cells; for one image whose cells' means lie on no slope."""
    shares = []
    for values in (attribution[0], attribution[0].abs()):
        locked = variance = 0.0
        for channel in values.double():
            channel = channel - channel.mean()
            cells = [
                channel[i : i + stride, j : j + stride].flatten()
                for i in range(0, channel.shape[0], stride)
                for j in range(0, channel.shape[1], stride)
            ]
            pairs = [float((a - a.mean()) @ (b - b.mean())) for a in cells for b in cells if a is not b]
            locked += sum(pairs) / len(pairs)
            variance += sum(float(cell @ cell) for cell in cells) / len(cells)
        shares.append(locked / variance)
    return max(*shares, 0.0)


@pytest.mark.parametrize("size", [4, 6, 16])
@pytest.mark.parametrize(
    "pattern",
    [checkerboard(48, 48), checkerboard(48, 48).clamp(min=0), checkerboard(1, 48).expand(48, 48), grid(48, 2)[0, 0]],
    ids=["plus-minus", "one-zero", "stripes", "one-of-four"],
)
def test_a_pure_grid_has_all_its_energy_in_the_checkerboard(pattern: torch.Tensor, size: int):
    attribution = 3 * pattern[:size, :size].expand(2, 5, size, size)
    torch.testing.assert_close(checkerboard_energy(attribution), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_every_stride_has_its_own_period(stride: int):
    found = {other: checkerboard_energy(grid(48, stride), other).item() for other in (2, 3, 4)}
    assert found[stride] == pytest.approx(1)
    unrelated = [other for other in found if other % stride and stride % other]
    assert all(found[other] < 0.01 for other in unrelated)


@pytest.mark.parametrize("stride", [2, 3])
def test_the_energy_is_what_pairs_of_cells_share(stride: int):
    values = torch.randn(1, 2, 2 * stride, 2 * stride, dtype=torch.float64)
    values = values + grid(2 * stride, stride)
    blocks = torch.nn.functional.avg_pool2d(values, stride)
    for axis in (2, 3):  # two cells a side: the plane through their means is their difference; take it away by hand
        slope = (blocks.narrow(axis, 1, 1) - blocks.narrow(axis, 0, 1)).mean((2, 3), keepdim=True) / stride
        place = torch.arange(2.0 * stride, dtype=torch.float64) - stride + 0.5
        values = values - slope * place.view([-1 if i == axis else 1 for i in range(4)])
    values = values + 100  # so that the magnitude is the attribution itself, and has the same plane
    wanted = energy_by_pairs(values, stride)
    assert 0.02 < wanted < 1
    assert checkerboard_energy(values, stride).item() == pytest.approx(wanted)


@pytest.mark.parametrize(("size", "stride"), [(4, 2), (5, 2), (32, 2), (6, 3), (8, 3), (32, 3), (8, 4), (32, 4)])
def test_a_slope_is_no_grid(size: int, stride: int):
    slope = torch.arange(float(size)) + 3 * torch.arange(float(size))[:, None]
    assert checkerboard_energy(slope.expand(1, 2, size, size), stride).item() == pytest.approx(0, abs=1e-6)


def test_noise_is_at_the_floor_whatever_the_size():
    for size in (4, 8, 16, 32):  # the fewer cells the wider the scatter, but no drift
        noise = torch.randn(100, 32, size, size)
        assert checkerboard_energy(noise).mean() < 0.3 / size
    one_channel = checkerboard_energy(torch.randn(400, 1, 8, 8))
    assert one_channel.mean() < 0.05


def test_fine_texture_is_at_the_floor():
    random = torch.randn(1, 16, 64, 64)
    texture = random - torch.nn.functional.avg_pool2d(random, 3, 1, 1)  # high frequencies, locked to nothing
    high = frequencies(64).abs() > 0.25
    power = power_spectrum(texture).mean((0, 1))
    assert power[high | high[:, None]].sum() / power.sum() > 0.6
    assert checkerboard_energy(texture) < 0.002


@pytest.mark.parametrize("kind", ["values", "strength"])
def test_a_planted_grid_is_found_in_order_of_its_amplitude(kind: str):
    noise = torch.randn(1, 32, 32, 32)
    found = []
    for amplitude in (0.0, 0.2, 0.5, 1.0, 2.0):
        planted = (
            noise + amplitude * checkerboard(32, 32) if kind == "values" else noise * (1 + amplitude * grid(32, 2))
        )
        found.append(checkerboard_energy(planted).item())
    assert found == sorted(found)
    assert found[0] < 0.002 and found[1] > 0.008 and found[-1] > 0.25
    if kind == "values":  # a^2 of a variance of 1 + a^2
        assert found[1:] == pytest.approx([a * a / (1 + a * a) for a in (0.2, 0.5, 1.0, 2.0)], abs=0.02)


def test_scale_and_offset_leave_a_signed_grid_alone():
    values = torch.randn(1, 8, 16, 16, dtype=torch.float64) + checkerboard(16, 16)
    torch.testing.assert_close(checkerboard_energy(7 * values), checkerboard_energy(values))


def test_images_do_not_mix_and_constants_have_none():
    batch = torch.stack([torch.randn(3, 8, 8), torch.zeros(3, 8, 8), torch.full((3, 8, 8), 2.0)])
    found = checkerboard_energy(batch)
    assert found[1:].tolist() == [0, 0]
    torch.testing.assert_close(found[:1], checkerboard_energy(batch[:1]))


def test_the_backward_fix_sends_it_to_the_floor():
    model = load_model()
    x, _ = load_photo("chelsea", 64)
    plain, fixed = (
        explain(model, x, layers="layer1.1", method="gradient", fix=fix)["layer1.1"] for fix in (None, "backward")
    )
    assert checkerboard_energy(plain) > 0.1
    assert checkerboard_energy(fixed) < 0.01


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match=r"^expected an attribution of shape \(N, C, H, W\), got \(8, 8\)$"):
        checkerboard_energy(torch.zeros(8, 8))
    with pytest.raises(ValueError, match=r"^stride = 1 leaves no grid: give 2 or more$"):
        checkerboard_energy(torch.zeros(1, 1, 8, 8), 1)
    with pytest.raises(ValueError, match=r"^a map of 3 x 8 has no two cells of 2 x 2 along each axis$"):
        checkerboard_energy(torch.zeros(1, 1, 3, 8))
    with pytest.raises(ValueError, match=r"^expected an attribution of shape \(N, C, H, W\), got \(4, 4\)$"):
        total_variation(torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"H, W of at least 2, got \(3, 1, 8\)$"):
        power_spectrum(torch.zeros(3, 1, 8))
