"""Stains of H&E sections: the colour of a pixel as amounts of dye, and pictures that are stained otherwise.

Light that passes through dye is weakened by a factor, so that the optical densities of the dyes add up where colours
do not (Beer and Lambert): OD = -log10(I) for the intensity I, 0 for black and 1 for white. Ruifrok & Johnston 2001,
"Quantification of histochemical staining by color deconvolution", measured the densities in red, green and blue of
hematoxylin, eosin and DAB, and solved for the three amounts.
"""

from __future__ import annotations

import torch
from torch import Tensor

STAINS = ("hematoxylin", "eosin", "dab")
# Rows: the three stains; columns: their optical densities in red, green and blue. As in skimage.color.rgb_from_hed.
RGB_FROM_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
DARKEST = 1e-6  # of full intensity: black would be infinitely dense


def optical_density(images: Tensor) -> Tensor:
    """-log10 of the intensity, per colour: 0 is white, 1 lets a tenth of the light through, 6 is black.

    Args:
        images: (..., 3, H, W), uint8, or floating point between 0 and 1.

    Returns:
        The same shape: float32 for uint8, the same dtype otherwise.

    Raises:
        ValueError: for another shape or dtype, or for values that are no intensities.
    """
    _check(images, "images")
    if images.dtype == torch.uint8:
        return (images / 255).clamp_(min=DARKEST).log10_().neg_()
    low, high = (float(bound) for bound in images.aminmax()) if images.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"expected images of uint8, or with values from 0 to 1, got values from {low:g} to {high:g}")
    return -images.clamp(min=DARKEST).log10()


def separate(images: Tensor) -> Tensor:
    """How much of each stain a pixel holds: colour deconvolution.

    One unit is what weakens light as much as one unit of optical density in the stain's own colour.
    :func:`skimage.color.rgb2hed` has units six times as large, and turns the negative amounts, which colours that no
    mixture of the three stains has get, into 0. Here they are kept, so that :func:`mix` gives the picture back.

    Args:
        images: (..., 3, H, W), RGB, uint8 or floating point between 0 and 1.

    Returns:
        (..., 3, H, W) in units of optical density: hematoxylin, eosin and DAB.

    Raises:
        ValueError: as :func:`optical_density`.
    """
    return _transformed(optical_density(images), torch.linalg.inv(_matrix(images.device)))


def mix(densities: Tensor) -> Tensor:
    """The picture that so much of each stain gives, the inverse of :func:`separate`.

    Args:
        densities: (..., 3, H, W), floating point, in units of optical density: hematoxylin, eosin and DAB.

    Returns:
        (..., 3, H, W), RGB between 0 and 1, of the same dtype. What would be brighter than white is white.

    Raises:
        ValueError: for another shape or dtype.
    """
    _check(densities, "densities")
    if not densities.is_floating_point():
        raise ValueError(f"expected densities of floating point, got {densities.dtype}")
    return _intensity(_transformed(densities, _matrix(densities.device)))


def jitter(
    images: Tensor,
    strength: float,
    generator: torch.Generator | None = None,
    *,
    part: slice = slice(None),
    whole: int | None = None,
) -> Tensor:
    """Each picture as another laboratory might have stained it: d' = a d + b for the amount d of each stain.

    a is drawn uniformly from [1 - strength, 1 + strength] and b from [-strength, strength], for each picture and stain
    anew; b is in units of optical density. Tellez et al. 2018, arXiv 1808.05896, section on stain augmentation: there
    the strength is 0.05, and Tellez et al. 2019, arXiv 1902.06543, call 0.05 light and 0.2 strong.

    Args:
        images: (N, 3, H, W), RGB, uint8 or floating point between 0 and 1.
        strength: from 0, which leaves the pictures as they are, to 1.
        generator: of the random numbers, on the CPU. ``None`` draws a seed of its own from the operating system, so
            that the global random state is not touched.
        part: which pictures of a larger batch these are; each then changes as it does when the batch comes as a whole.
        whole: how many pictures that batch has; ``None``: these are all.

    Returns:
        (N, 3, H, W) of the same dtype.

    Raises:
        ValueError: as :func:`optical_density`, and for a strength out of range.
    """
    if images.ndim != 4:
        raise ValueError(f"expected images (N, 3, H, W), got shape {tuple(images.shape)}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength = {strength:g} is out of range: give one from 0 (no jitter) to 1")
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    drawn = torch.rand(2, whole or len(images), 3, generator=generator, dtype=torch.float64)[:, part]
    scale, offset = (2 * drawn - 1) * strength
    return _restained(images, 1 + scale, offset)


def shift(images: Tensor, hematoxylin: float = 0.0, eosin: float = 0.0) -> Tensor:
    """The same pictures with more or less dye: all amounts of a stain times 1 + its number. Bare glass stays white.

    Args:
        images: (..., 3, H, W), RGB, uint8 or floating point between 0 and 1.
        hematoxylin: 0.3 for 30 % more, -0.3 for 30 % less; not below -1, which is none at all.
        eosin: the same of eosin.

    Returns:
        (..., 3, H, W) of the same dtype.

    Raises:
        ValueError: as :func:`optical_density`, and for a number below -1.
    """
    for name, more in (("hematoxylin", hematoxylin), ("eosin", eosin)):
        if not -1 <= more < float("inf"):
            raise ValueError(f"{name} = {more:g} is out of range: give the share to add, -1 (no {name} left) or more")
    _check(images, "images")
    scale = torch.tensor([1 + hematoxylin, 1 + eosin, 1], dtype=torch.float64)
    return _restained(images, scale, torch.zeros(3, dtype=torch.float64))


def _restained(images: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Amounts scale d + offset, (3,) for all pictures or (N, 3), in a single matrix from densities to densities."""
    matrix = _matrix(torch.device("cpu"))
    combined = torch.linalg.inv(matrix) @ (scale[..., None] * matrix)
    densities = _transformed(optical_density(images), combined.to(images.device))
    densities += (offset @ matrix).to(densities)[..., None, None]
    restained = _intensity(densities)
    return restained.mul_(255).round_().to(torch.uint8) if images.dtype == torch.uint8 else restained


def _intensity(densities: Tensor) -> Tensor:
    return torch.pow(10.0, -densities).clamp_(max=1)


def _transformed(values: Tensor, matrix: Tensor) -> Tensor:
    """Every pixel's three values, a row vector, times the matrix, (3, 3) or one a picture."""
    mapped = matrix.mT.to(values) @ values.flatten(-2)
    return mapped.view(values.shape)


def _matrix(device: torch.device) -> Tensor:
    return torch.tensor(RGB_FROM_STAINS, dtype=torch.float64, device=device)


def _check(values: Tensor, what: str) -> None:
    if values.ndim < 3 or values.shape[-3] != 3:
        raise ValueError(f"expected {what} (..., 3, H, W), got shape {tuple(values.shape)}")
    if values.dtype != torch.uint8 and not values.is_floating_point():
        raise ValueError(f"expected {what} of uint8 or floating point, got {values.dtype}")
