"""The low-pass filter by hand, against SciPy, and against the Fourier transform of the mirrored map."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from smoothsal_lib.filters import KINDS, low_pass
from smoothsal_lib.metrics import total_variation

CUTOFFS = (0.02, 0.1, 0.25, 0.5, 0.8)


def some_maps(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 3, 9, 12)), dtype=torch.float64)


def wave(k: int, size: int) -> Tensor:
    """cos(pi k (2i + 1) / 2 size): k / (2 size) cycles per pixel, and what a mirror at the border continues."""
    return torch.cos(math.pi * k * (2 * torch.arange(size, dtype=torch.float64) + 1) / (2 * size))


def test_two_pixels_by_hand() -> None:
    """1, 0 is the mean 1/2 and the wave 1/2, -1/2, of 1/4 cycles per pixel."""
    pair = torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(low_pass(pair, 0.25), torch.tensor([[0.75, 0.25]]))  # halved at the cut-off
    torch.testing.assert_close(low_pass(pair, 0.125), torch.tensor([[0.5 + 1 / 32, 0.5 - 1 / 32]]))  # 2^-4 an octave on
    torch.testing.assert_close(low_pass(pair, 0.25, "ideal"), pair)
    torch.testing.assert_close(low_pass(pair, 0.24, "ideal"), torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(low_pass(pair.T, 0.25), torch.tensor([[0.75], [0.25]]))


@pytest.mark.parametrize(("k", "l"), [(0, 1), (3, 0), (2, 2), (4, 9), (7, 11)])
def test_a_wave_is_kept_weighted_or_removed(k: int, l: int) -> None:  # noqa: E741
    maps = wave(k, 8)[:, None] * wave(l, 12)
    frequency = math.hypot(k / 16, l / 24)
    torch.testing.assert_close(low_pass(maps, frequency * 1.01, "ideal"), maps)
    torch.testing.assert_close(low_pass(maps, frequency, "ideal"), maps)
    torch.testing.assert_close(low_pass(maps, frequency * 0.99, "ideal"), torch.zeros_like(maps))
    for octaves in (-1, 0, 1):
        torch.testing.assert_close(low_pass(maps, frequency * 2**octaves), maps * 2 ** -(4.0**-octaves))


@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("kind", KINDS)
def test_symmetric_and_keeps_means(kind: str, cutoff: float) -> None:
    a, b = some_maps(), some_maps()
    torch.testing.assert_close((low_pass(a, cutoff, kind) * b).sum(), (a * low_pass(b, cutoff, kind)).sum())
    torch.testing.assert_close(low_pass(a, cutoff, kind).mean((2, 3)), a.mean((2, 3)))
    torch.testing.assert_close(low_pass(torch.full_like(a, 3), cutoff, kind), torch.full_like(a, 3))
    torch.testing.assert_close(
        low_pass(2 * a - b, cutoff, kind), 2 * low_pass(a, cutoff, kind) - low_pass(b, cutoff, kind)
    )


def test_repeated() -> None:
    """The ideal filter has done its work the first time; Gaussians add up: 1/c^2 = 1/a^2 + 1/b^2."""
    maps = some_maps()
    once = low_pass(maps, 0.2, "ideal")
    torch.testing.assert_close(low_pass(once, 0.2, "ideal"), once)
    torch.testing.assert_close(low_pass(low_pass(maps, 0.15), 0.2), low_pass(maps, 0.12))


def test_everything_is_kept() -> None:
    maps = some_maps()
    assert low_pass(maps, None).equal(maps)
    torch.testing.assert_close(low_pass(maps, 0.71, "ideal"), maps)
    torch.testing.assert_close(low_pass(maps, 1e6), maps)
    torch.testing.assert_close(low_pass(maps, 1e-3), maps.mean((2, 3), keepdim=True).expand_as(maps))


def test_every_map_on_its_own() -> None:
    maps = some_maps()
    filtered = low_pass(maps, 0.2)
    for n in range(2):
        for c in range(3):
            torch.testing.assert_close(filtered[n, c], low_pass(maps[n, c], 0.2))
    torch.testing.assert_close(filtered.mean(1), low_pass(maps.mean(1), 0.2))


@pytest.mark.parametrize("kind", KINDS)
def test_the_border_is_mirrored(kind: str) -> None:
    """As the Fourier transform filters a map twice as wide and high, made of the map and its mirror images."""
    maps = some_maps(4, 7, 10)
    mirrored = torch.cat([maps, maps.flip(1)], 1)
    mirrored = torch.cat([mirrored, mirrored.flip(2)], 2)
    frequency = torch.hypot(torch.fft.fftfreq(14).double()[:, None], torch.fft.fftfreq(20).double())
    weights = 2 ** -((frequency / 0.17) ** 2) if kind == "gaussian" else frequency <= 0.17
    expected = torch.fft.ifft2(torch.fft.fft2(mirrored) * weights).real[:, :7, :10]
    torch.testing.assert_close(low_pass(maps, 0.17, kind), expected, atol=1e-6, rtol=0)  # fftfreq has 32 bits


def test_like_scipy() -> None:
    fft = pytest.importorskip("scipy.fft")
    ndimage = pytest.importorskip("scipy.ndimage")
    maps = some_maps(9, 12)
    waves = fft.dctn(maps.numpy(), norm="ortho")
    frequency = torch.hypot(torch.arange(9)[:, None] / 18, torch.arange(12) / 24).numpy()
    expected = fft.idctn(waves * (frequency <= 0.2), norm="ortho")
    torch.testing.assert_close(low_pass(maps, 0.2, "ideal"), torch.from_numpy(expected))
    blurred = ndimage.gaussian_filter(maps.numpy(), 0.18739 / 0.12, mode="reflect", truncate=8)  # sampled, ours is not
    torch.testing.assert_close(low_pass(maps, 0.12), torch.from_numpy(blurred), atol=1e-4, rtol=0)


def test_a_checkerboard_goes_and_a_ramp_stays() -> None:
    ramp = torch.linspace(0, 1, 32, dtype=torch.float64).expand(1, 1, 32, 32)
    grid = (1 - 2.0 * (torch.arange(32) % 2)).double()
    gridded = ramp + grid * grid[:, None]
    assert total_variation(gridded) > 10 * total_variation(ramp)
    assert (low_pass(gridded, 0.1) - ramp).abs()[..., 4:-4, 4:-4].max() < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_precisions(dtype: torch.dtype) -> None:
    maps = some_maps()
    found = low_pass(maps.to(dtype), 0.2)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), low_pass(maps, 0.2), atol=4 * torch.finfo(dtype).eps, rtol=0)


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="floating-point tensor, got torch.int64"):
        low_pass(torch.ones(2, 2).long(), 0.2)
    with pytest.raises(TypeError, match="got list"):
        low_pass([[1.0]], 0.2)
    for shape in ((3,), (2, 0, 3)):
        with pytest.raises(ValueError, match="shape"):
            low_pass(torch.zeros(shape), 0.2)
    with pytest.raises(ValueError, match="unknown kind 'box'"):
        low_pass(torch.zeros(2, 2), 0.2, "box")
    for cutoff in (0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="above 0 cycles per pixel"):
            low_pass(torch.zeros(2, 2), cutoff)
