"""How rough an attribution is, how much of it is a grid, and its power spectrum, in which a grid is a peak."""

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


def checkerboard_energy(attribution: Tensor, stride: int = 2) -> Tensor:
    """Share of an attribution's variance that is a grid of period ``stride``: 1 for a pure grid, 0 without any.

    What a stride leaves is locked in phase: the same pattern in every cell of stride x stride positions. Texture and
    noise, however fine, have another pattern in every cell. With p_j the values of cell j minus their mean, the grid's
    energy is the mean of <p_j, p_k> over all pairs of *different* cells, which is the energy of the pattern they share
    and, because no cell is paired with itself, is zero on average for noise on a map of any size. It is divided by
    the attribution's variance. Both are summed over channels.

    A stride marks the values of a class or their strength, so this is computed for the attribution and for its
    magnitude, each with its own variance, and the larger share counts. A slope, too, has one pattern in every cell:
    the plane that fits the cells' means is subtracted first. Positions that fill no whole cell, at the right and lower
    border, are left out.

    The idea of comparing parity classes by their mean magnitude follows Smooth Deep Saliency (arXiv 2404.02282,
    section 3); the estimate is the between-classes component of a randomised-block analysis of variance.

    Args:
        attribution: (N, C, H, W), with room for at least two cells along both axes.
        stride: the period looked for, in positions of the map: that of the strided layer the map feeds.

    Returns:
        (N,): one share an image, from 0 to 1.

    Raises:
        ValueError: for an attribution of another shape, one too small, or a stride below 2.
    """
    if attribution.ndim != 4:
        raise ValueError(f"expected an attribution of shape (N, C, H, W), got {tuple(attribution.shape)}")
    if stride < 2:
        raise ValueError(f"stride = {stride} leaves no grid: give 2 or more")
    if min(attribution.shape[2:]) < 2 * stride:
        size = " x ".join(map(str, attribution.shape[2:]))
        raise ValueError(f"a map of {size} has no two cells of {stride} x {stride} along each axis")
    signed, magnitude = (_locked_share(values, stride) for values in (attribution, attribution.abs()))
    return torch.maximum(signed, magnitude).clamp(0, 1)


def _locked_share(values: Tensor, stride: int) -> Tensor:
    """The share of variance that is the same in every cell, unbiased and so at times a little below 0: (N,)."""
    rows, columns = (size // stride for size in values.shape[2:])
    cells = values[:, :, : rows * stride, : columns * stride]
    cells = cells - cells.mean((2, 3), keepdim=True)
    cells = cells.unflatten(3, (columns, stride)).unflatten(2, (rows, stride))  # (N, C, rows, s, columns, s)
    # Sums over whole cells do not see a grid, so the plane is fitted to their means and takes nothing from it.
    means = cells.mean((3, 5), keepdim=True)
    for axis, count in ((2, rows), (4, columns)):
        place = torch.arange(count * stride).to(cells).sub((count * stride - 1) / 2).view(count, stride)
        shape = [1] * 6
        shape[axis : axis + 2] = [count, stride]
        centre = place.mean(1).view([count if i == axis else 1 for i in range(6)])
        slope = (means * centre).mean((2, 4), keepdim=True) / centre.square().mean()
        cells = cells - slope * place.view(shape)
    pattern = cells - cells.mean((3, 5), keepdim=True)
    count = rows * columns
    own = pattern.square().sum((1, 2, 3, 4, 5))
    shared = pattern.sum((2, 4)).square().sum((1, 2, 3))
    locked = (shared - own) / (count * (count - 1))
    variance = cells.square().sum((1, 2, 3, 4, 5)) / count
    return torch.where(variance > 0, locked / variance.clamp(min=torch.finfo(variance.dtype).tiny), 0)


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
