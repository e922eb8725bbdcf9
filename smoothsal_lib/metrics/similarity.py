"""How alike two maps are: what sanity checks compare before and after (Adebayo et al. 2018, arXiv 1810.03292)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA, RADIUS = 1.5, 5  # of the Gaussian window: 11 taps, cut off at 3.5 sigma
C1, C2 = 0.01**2, 0.03**2


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of the positions of two maps: whether they put the same places first.

    The Pearson correlation of the ranks, where equal values share the mean of their ranks. Any increasing function of
    a map has the same ranks, so neither scale nor offset matters. The sign of a signed map does: compare magnitudes
    (``reduce="abs_mean"``) where the sign means nothing. Source: Adebayo et al. 2018, arXiv 1810.03292, section 3.

    Args:
        a: maps (N, H, W), of any size.
        b: maps of the same shape.

    Returns:
        (N,) between -1 and 1, never NaN. A constant map ranks nothing, so its correlation with any map, itself
        included, is 0: what two unrelated maps have on average.

    Raises:
        ValueError: for shapes that differ or are not (N, H, W), or values that are not finite.
    """
    a, b = _check(a, b)
    ranks_a, ranks_b = _centred_ranks(a), _centred_ranks(b)
    spread = (ranks_a.square().sum(1) * ranks_b.square().sum(1)).sqrt()
    # A constant map has a spread of exactly 0, any other of much more than the least positive number.
    return ((ranks_a * ranks_b).sum(1) / spread.clamp(min=torch.finfo(spread.dtype).tiny)).clamp(-1, 1)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of two maps: whether they look alike in every small window.

    Each map becomes a picture as a figure shows it: 0 is mid-grey (0.5), its largest magnitude white (1) or black (0).
    Then, in every window of 11 x 11 positions that fits, weighted by a Gaussian of sigma 1.5,

        (2 μ_a μ_b + C1) (2 σ_ab + C2) / ((μ_a² + μ_b² + C1) (σ_a² + σ_b² + C2)),    C1 = 0.01², C2 = 0.03²

    averaged over the windows (Wang et al. 2004, "Image quality assessment: from error visibility to structural
    similarity"; for maps, Adebayo et al. 2018, arXiv 1810.03292). The grey values matter: of signed maps around 0 both
    factors would change their sign with the map, and a map would count as similar to its own negative. On these
    pictures scikit-image computes the same with ``gaussian_weights=True, use_sample_covariance=False, data_range=1``.

    Args:
        a: maps (N, H, W) of at least 11 x 11 positions. Enlarge those of deep layers to the picture's size first.
        b: maps of the same shape.

    Returns:
        (N,) between -1 and 1, 1 for equal maps, never NaN: C1 and C2 keep the quotient finite for constant maps too. A
        constant map is white, mid-grey or black all over, so two constant maps of one sign are equal.

    Raises:
        ValueError: for shapes that differ, are not (N, H, W) or too small, or values that are not finite.
    """
    a, b = _check(a, b)
    if min(a.shape[1:]) < 2 * RADIUS + 1:
        raise ValueError(f"maps of {a.shape[1]} x {a.shape[2]} are smaller than SSIM's window of 11 x 11: enlarge them")
    a, b = _grey(a), _grey(b)
    mean_a, mean_b, square_a, square_b, product = map(_window_means, (a, b, a.square(), b.square(), a * b))
    variances = square_a + square_b - mean_a.square() - mean_b.square()
    covariance = product - mean_a * mean_b
    alike = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
    return (alike / ((mean_a.square() + mean_b.square() + C1) * (variances + C2))).mean((1, 2)).clamp(-1, 1)


def _check(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps in at least 32 bits; errors as :func:`rank_correlation` says."""
    if a.ndim != 3 or a.shape != b.shape or 0 in a.shape:
        raise ValueError(f"expected two tensors of maps of one shape (N, H, W), got {tuple(a.shape)}, {tuple(b.shape)}")
    for maps in (a, b):
        if not bool(torch.isfinite(maps).all()):
            raise ValueError(f"expected finite maps, got {int((~torch.isfinite(maps)).sum())} NaN or infinite values")
    precision = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(precision), b.to(precision)


def _centred_ranks(maps: Tensor) -> Tensor:
    """(N, H W) in (-1, 1): the rank of every position, minus the mean rank, by half the number of positions."""
    values = maps.flatten(1).contiguous()
    ascending = values.sort(dim=1).values
    below = torch.searchsorted(ascending, values)
    up_to = torch.searchsorted(ascending, values, right=True)
    positions = values.shape[1]
    return (below + up_to - positions).to(maps.dtype) / positions


def _grey(maps: Tensor) -> Tensor:
    largest = maps.abs().amax((1, 2), keepdim=True)
    return (maps / largest.where(largest > 0, 1) + 1) / 2


def _window_means(maps: Tensor) -> Tensor:
    """Mean under the Gaussian window, wherever it fits: (N, H - 10, W - 10)."""
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=maps.dtype, device=maps.device)
    weights = (-offsets.square() / (2 * SIGMA**2)).exp()
    weights = weights / weights.sum()
    rows = F.conv2d(maps[:, None], weights.view(1, 1, -1, 1))
    return F.conv2d(rows, weights.view(1, 1, 1, -1))[:, 0]
