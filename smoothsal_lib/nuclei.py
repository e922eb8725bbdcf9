"""Nuclei: where they are in a picture of H&E-stained tissue."""

from __future__ import annotations

import numpy as np
import torch
from skimage.filters import gaussian, threshold_local, threshold_otsu
from skimage.measure import label
from torch import Tensor

from smoothsal_lib.datasets.stains import separate

SMOOTHING = 0.6  # micrometres, of the Gaussian
SMALLEST = 12.0  # square micrometres
NEIGHBOURHOOD = 40.0  # micrometres


def nuclear_mask(image: Tensor, mpp: float) -> Tensor:
    """Which pixels are nuclei."""
    hematoxylin = gaussian(separate(image)[0].numpy(), SMOOTHING / mpp)
    block = 2 * round(NEIGHBOURHOOD / mpp / 2) + 1
    dark = (hematoxylin > threshold_otsu(hematoxylin) * 0.9) & (hematoxylin > threshold_local(hematoxylin, block))
    return torch.from_numpy(without_specks(dark, SMALLEST / mpp**2))


def without_specks(mask: np.ndarray, pixels: float) -> np.ndarray:
    """The mask without its parts, and without its holes, of fewer than so many pixels."""
    return ~_larger(~_larger(mask, pixels), pixels)


def _larger(mask: np.ndarray, pixels: float) -> np.ndarray:
    parts = label(mask, connectivity=1)
    large = np.bincount(parts.ravel()) >= pixels
    large[0] = False
    return large[parts]
