"""The blurs behind the two hooks, against their matrices.

Theory. Let the stride be s. What a strided convolution imprints on a gradient repeats every s pixels, so it lives at
the frequencies m/s, m = 1 .. s-1 (in cycles a pixel; 1/2 is Nyquist).

- The centred kernel k has ŷ(m/s) = 0 there. Equivalently, its taps sum to 1/s over every parity class t mod s, so any
  pattern that repeats every s pixels comes out as its mean, exactly, wherever the kernel does not reach the border.
  It is symmetric, so its spectrum is real: nothing moves.
- The paper's mean of shifts by 0 and 1 is the circular convolution with [1 1]/2 along each axis. Its spectrum (1 +
  exp(-2πif))/2 vanishes at f = 1/2 alone: it removes the grid of a stride of 2 and weakens that of others. Its phase
  is -πf: everything moves by half a pixel.
- Mirrored at the border (edge pixel included) a symmetric kernel is a symmetric matrix. Its rows sum to one, so
  constants stay; being symmetric, so do its columns, and the sum stays.
"""

from __future__ import annotations

import cmath

import pytest
import torch
from matrices import centred_matrix, cyclic_matrix

from smoothsal_lib.fixes.blur import centred_blur, centred_kernel, check_form, cyclic_mean, cyclic_shifts

STRIDES = [2, 3, 4, 5, 6, 7, 8]


def spectrum(kernel: list[float], frequency: float) -> complex:
    """Of a kernel whose middle tap sits at 0."""
    reach = len(kernel) // 2
    return sum(k * cmath.exp(-2j * cmath.pi * frequency * (i - reach)) for i, k in enumerate(kernel))


@pytest.mark.parametrize("stride", STRIDES)
def test_kernel_annihilates_the_frequencies_of_its_stride(stride: int) -> None:
    kernel = centred_kernel(stride)
    for m in range(1, stride):
        assert abs(spectrum(kernel, m / stride)) < 1e-15
    assert sum(kernel) == pytest.approx(1, abs=1e-15)
    assert abs(spectrum(kernel, 0.5 / stride)) > 0.3  # what is twice as coarse as the grid mostly passes


@pytest.mark.parametrize("stride", STRIDES)
def test_kernel_is_symmetric_and_as_short_as_can_be(stride: int) -> None:
    kernel = centred_kernel(stride)
    assert kernel == kernel[::-1]
    # s - 1 zeros need s taps; of those, an even number has no middle.
    assert len(kernel) == stride + (stride % 2 == 0)


def test_kernels_known_by_heart() -> None:
    assert centred_kernel(1) == [1]
    assert centred_kernel(2) == [1 / 4, 2 / 4, 1 / 4]
    assert centred_kernel(3) == [1 / 3, 1 / 3, 1 / 3]
    assert centred_kernel(4) == [1 / 8, 2 / 8, 2 / 8, 2 / 8, 1 / 8]


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("length", [1, 2, 3, 5, 12])
def test_centred_blur_is_its_matrix(stride: int, length: int) -> None:
    """Narrow maps included, in which the kernel is mirrored more than once."""
    blurred = centred_blur(torch.eye(length, dtype=torch.float64)[None, None], (1, stride))[0, 0].T
    matrix = centred_matrix(length, stride)
    torch.testing.assert_close(blurred, matrix)
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix.sum(1), torch.ones(length, dtype=torch.float64))


def test_both_axes_with_strides_of_their_own() -> None:
    x = torch.randn(2, 3, 7, 10, dtype=torch.float64)
    expected = torch.einsum("ij,ncjk,lk->ncil", centred_matrix(7, 2), x, centred_matrix(10, 3))
    torch.testing.assert_close(centred_blur(x, (2, 3)), expected)
    assert torch.equal(centred_blur(x, (1, 1)), x)


def test_one_and_three_dimensions() -> None:
    x = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    expected = torch.einsum("ij,ncjab->nciab", centred_matrix(4, 2), x)
    torch.testing.assert_close(centred_blur(x, (2, 1, 1)), expected)
    line = x[0, 0]
    torch.testing.assert_close(centred_blur(line, (2,)), torch.einsum("ij,ncj->nci", centred_matrix(6, 2), line))


def test_cyclic_mean_is_its_matrix() -> None:
    x = torch.randn(2, 3, 7, 10, dtype=torch.float64)
    expected = torch.einsum("ij,ncjk,lk->ncil", cyclic_matrix(7), x, cyclic_matrix(10))
    torch.testing.assert_close(cyclic_mean(x, (2, 2)), expected)
    torch.testing.assert_close(cyclic_mean(x, (4, 4)), expected)  # the published shifts know no other stride


def test_the_four_shifts() -> None:
    assert sorted(cyclic_shifts((2, 2))) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert cyclic_shifts((2, 2))[0] == (0, 0)


@pytest.mark.parametrize("stride", STRIDES)
def test_self_adjoint_and_keeps_constants_and_the_sum(stride: int) -> None:
    x, y = torch.randn(2, 1, 2, 9, 11, dtype=torch.float64)
    torch.testing.assert_close((centred_blur(x, (stride,) * 2) * y).sum(), (x * centred_blur(y, (stride,) * 2)).sum())
    torch.testing.assert_close(centred_blur(x, (stride,) * 2).sum(), x.sum())
    torch.testing.assert_close(centred_blur(torch.ones_like(x), (stride,) * 2), torch.ones_like(x))


def test_the_papers_mean_is_adjoint_up_to_one_pixel() -> None:
    """Transposed it shifts by 0 and -1, which is the same mean, moved by one pixel along each axis."""
    x, y = torch.randn(2, 1, 2, 9, 11, dtype=torch.float64)
    transposed = torch.roll(cyclic_mean(y, (2, 2)), (-1, -1), (2, 3))
    torch.testing.assert_close((cyclic_mean(x, (2, 2)) * y).sum(), (x * transposed).sum())


@pytest.mark.parametrize("stride", STRIDES)
def test_periodic_patterns_come_out_as_their_mean(stride: int) -> None:
    pattern = torch.randn(1, 1, stride, stride, dtype=torch.float64)
    reach = len(centred_kernel(stride)) // 2
    blurred = centred_blur(pattern.repeat(1, 1, 5, 5), (stride, stride))[..., reach:-reach, reach:-reach]
    torch.testing.assert_close(blurred, pattern.mean().expand_as(blurred))


@pytest.mark.parametrize("stride", STRIDES)
def test_an_impulse_stays_where_it_is(stride: int) -> None:
    impulse = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    impulse[..., 15, 15] = 1
    response = centred_blur(impulse, (stride, stride))
    torch.testing.assert_close(response, response.flip(2, 3))


def test_the_papers_mean_moves_an_impulse_by_half_a_pixel_and_wraps() -> None:
    impulse = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    impulse[..., 3, 7] = 1
    response = cyclic_mean(impulse, (2, 2))[0, 0]
    assert response.nonzero().tolist() == [[3, 0], [3, 7], [4, 0], [4, 7]]
    assert (response.sum(1) * torch.arange(8)).sum() == 3.5


def test_bad_form() -> None:
    with pytest.raises(ValueError, match="unknown form 'centered'"):
        check_form("centered")
