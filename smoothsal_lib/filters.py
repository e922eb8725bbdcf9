"""Filter a finished map, instead of repairing the network that made it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

KINDS = ("gaussian", "ideal")


def low_pass(maps: Tensor, cutoff: float | None, kind: str = "gaussian") -> Tensor:
    """Keep a map's slow changes and remove its fast ones.

    Every map is written as a sum of waves cos(pi k (2i + 1) / 2H) cos(pi l (2j + 1) / 2W), its discrete cosine
    transform; each wave is multiplied by a weight between 0 and 1 that depends on its frequency only; and the waves are
    summed again. FORGrad (Muzellec et al. 2024, arXiv 2307.09591) does the same with Fourier waves and the weights 1
    and 0, at a cut-off that was tuned for each network and method. A Fourier transform continues a map periodically, so
    that a filter would smear the left border into the right one. The cosines continue it by its mirror image.

    The filter is linear and symmetric, and keeps constants and each map's mean. It acts on every channel on its own:
    filtering before :func:`smoothsal_lib.saliency_map` takes the mean over channels, or after, is the same.

    Args:
        maps: (..., H, W): maps (N, H, W), or attributions (N, C, H, W).
        cutoff: the frequency at which to cut, in cycles per pixel of these maps (of their layer, that is, not of the
            picture). Wave (k, l) has frequency sqrt((k / 2H)^2 + (l / 2W)^2). Along an axis 0.5 is the fastest there
            is, one pixel up and one down; along the diagonal it is 0.71. FORGrad's sigma is ``cutoff * W``. ``None``
            keeps everything.
        kind: ``"gaussian"`` has the weight 2^-(frequency / cutoff)^2, which is 1/2 at the cut-off: a blur by a Gaussian
            with a standard deviation of 0.187 / cutoff pixels. ``"ideal"`` keeps what is not above the cut-off and
            removes the rest, and rings beside sharp edges.

    Returns:
        The same shape, dtype and device.

    Raises:
        TypeError: for maps that are no floating-point tensor.
        ValueError: for maps of fewer than two dimensions, an unknown kind, or a cut-off that is not positive.
    """
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        got = maps.dtype if isinstance(maps, Tensor) else type(maps).__name__
        raise TypeError(f"expected maps as a floating-point tensor, got {got}")
    if maps.ndim < 2 or 0 in maps.shape[-2:]:
        raise ValueError(f"expected maps of shape (..., H, W) with H, W of at least 1, got {tuple(maps.shape)}")
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose {' or '.join(map(repr, KINDS))}")
    if cutoff is None:
        return maps
    if not cutoff > 0:
        raise ValueError(f"expected a cut-off above 0 cycles per pixel, or None to keep everything, got {cutoff}")
    precise = maps.to(torch.promote_types(maps.dtype, torch.float32))
    height, width = maps.shape[-2:]
    down, right = _cosines(height).to(precise), _cosines(width).to(precise)
    rows, columns = (torch.arange(size, dtype=torch.float64) / (2 * size) for size in (height, width))
    ratio = torch.hypot(rows[:, None], columns) / cutoff
    # A wave at the cut-off itself, a multiple of 1 / 2H, must not depend on how 0.1 is rounded.
    weights = torch.exp2(-ratio.square()) if kind == "gaussian" else (ratio <= 1 + 1e-9).double()
    waves = down @ precise @ right.T
    return (down.T @ (weights.to(precise) * waves) @ right).to(maps.dtype)


def _cosines(size: int) -> Tensor:
    """The waves of a discrete cosine transform (DCT-II), one a row, each of length 1: an orthogonal matrix."""
    wave, place = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi * wave * (2 * place + 1) / (2 * size)) * math.sqrt(2 / size)
    waves[0] = 1 / math.sqrt(size)
    return waves
