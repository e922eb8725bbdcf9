"""How rough an attribution is: its total variation, and its power spectrum, in which checkerboard noise is a peak."""

from __future__ import annotations

import torch
from torch import Tensor


def total_variation(attribution: Tensor, floor: float = 1e-6) -> Tensor:
    """Sum of absolute differences between neighbours, per value, after each channel was brought to a common scale.

    Of every channel its spatial mean is subtracted, and what is left is divided by its mean absolute value. The sum of
    the absolute differences between vertical and between horizontal neighbours is divided by C H W (Herdt et al. 2024,
    arXiv 2404.02282). Scale and offset of the attribution therefore do not matter; independent Gaussian values have a
    total variation of 2.83, minus the border's share.

    Args:
        attribution: (N, C, H, W).
        floor: least mean absolute value to divide by; a constant channel adds nothing.

    Returns:
        (N,): one number an image, 0 for constant channels.

    Raises:
        ValueError: for an attribution of another shape.
    """
    if attribution.ndim != 4:
        raise ValueError(f"expected an attribution of shape (N, C, H, W), got {tuple(attribution.shape)}")
    centred = attribution - attribution.mean((2, 3), keepdim=True)
    scaled = centred / centred.abs().mean((2, 3), keepdim=True).clamp(min=floor)
    vertical = scaled.diff(dim=2).abs().sum((1, 2, 3))
    horizontal = scaled.diff(dim=3).abs().sum((1, 2, 3))
    return (vertical + horizontal) / attribution[0].numel()


def frequencies(size: int) -> Tensor:
    """Where the rows or columns of :func:`power_spectrum` stand: (size,) cycles per pixel, ascending, 0 in the middle.

    For an even ``size`` the first is -1/2, the Nyquist frequency, at which a checkerboard of period 2 lies.
    """
    return torch.fft.fftshift(torch.fft.fftfreq(size))


def power_spectrum(maps: Tensor, window: bool = True) -> Tensor:
    """How much of a map's variance lies at each frequency.

    With w the window and m the map minus its mean (weighted by w, so that the power at frequency 0 is exactly 0), the
    result is ``|FFT(w m)|^2 / (H W sum w^2)``. By Parseval's theorem it sums to the mean of m^2 weighted by w^2:
    without a window, the map's variance.

    Args:
        maps: (..., H, W): maps, or attributions with their channels.
        window: multiply by a Hann window first. The Fourier transform continues a map periodically; without a window
            the jump from one border to the opposite one leaks into all frequencies of its row and column.

    Returns:
        (..., H, W), never negative, frequency 0 in the middle (see :func:`frequencies` for the axes).

    Raises:
        ValueError: for fewer than two dimensions, or for sides of less than two pixels.
    """
    if maps.ndim < 2 or min(maps.shape[-2:]) < 2:
        raise ValueError(f"expected maps of shape (..., H, W) with H, W of at least 2, got {tuple(maps.shape)}")
    height, width = maps.shape[-2:]
    w = maps.new_ones(height, width)
    if window:
        # A periodic window of H + 1 points without its leading zero: symmetric, and no pixel is lost.
        rows, columns = (maps.new_tensor(range(1, n + 1)) / (n + 1) for n in (height, width))
        w = torch.sin(torch.pi * rows)[:, None].square() * torch.sin(torch.pi * columns).square()
    mean = (w * maps).sum((-2, -1), keepdim=True) / w.sum()
    spectrum = torch.fft.fft2(w * (maps - mean)).abs().square() / (height * width * w.square().sum())
    return torch.fft.fftshift(spectrum, dim=(-2, -1))
