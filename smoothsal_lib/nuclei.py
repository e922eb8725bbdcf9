"""Nuclei: found in a picture of H&E-stained tissue, and ranked by the saliency that they hold.

They are found by colour and shape alone, without training: hematoxylin binds to the nucleus. Colour deconvolution
(Ruifrok & Johnston 2001), a threshold of the whole picture (Otsu 1979) and one of the neighbourhood, and a watershed
from one seed a nucleus: a blob, of a size that its distance to the rim bounds (Al-Kofahi et al. 2010, doi
10.1109/TBME.2009.2035102). What comes out are candidates: pale nuclei are missed, crowded ones merged or cut, and dark
debris counts. All lengths are in micrometres, so that the magnification does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import regionprops_table
from skimage.morphology import reconstruction
from skimage.segmentation import watershed
from torch import Tensor

from smoothsal_lib.datasets.stains import separate

# Micrometres: standard deviations of Gaussians.
SMOOTHING = 0.5  # of the hematoxylin and of the distances to the rim, against noise
SURROUNDINGS = 12.0  # whose mean a nucleus is darker than
BLOBS = (1.0, 1.4, 2.0, 2.8)  # whose Laplacians answer to nuclei of radii up to 4
# Square micrometres.
SMALLEST = 10.0  # nucleus
HOLE = 12.0  # that is filled: pale chromatin, not a gap between nuclei
# Of hematoxylin.
SHARE_OF_OTSU = 0.85  # stroma and lumen pull Otsu's threshold above that of the paler nuclei
PALEST = 0.1  # optical density, so that nothing is found where there is nothing
# Of distances to the rim: blobs in a nucleus that stands free are no larger than it is.
LARGEST_BLOB = 0.85
# Of the standard deviation of the landscape that is flooded: a lower hill is not a nucleus of its own.
PROMINENCE = 0.3

By = Literal["mean", "sum"]


@dataclass(frozen=True)
class Nucleus:
    """One nucleus and its part of a saliency map. Made by :func:`rank_nuclei`.

    Attributes:
        rank: 1 for the most salient.
        label: its number in the labels.
        centre: (row, column) of its centre of mass, in pixels.
        area: in pixels.
        area_um2: in square micrometres; ``None`` where the size of a pixel was not given.
        eccentricity: of the ellipse with the same second moments, from 0 for a circle to 1 for a line.
        mean: saliency a pixel.
        total: sum of its saliency.
        share: of all positive saliency of the map, that which lies in this nucleus; 0 where a map has none.
    """

    rank: int
    label: int
    centre: tuple[float, float]
    area: int
    area_um2: float | None
    eccentricity: float
    mean: float
    total: float
    share: float


def segment_nuclei(image: Tensor, mpp: float) -> Tensor:
    """Find the nuclei, one by one.

    The mask of :func:`nuclear_mask` is cut by a watershed on the sum of two measures, each divided by its standard
    deviation: the distance to the mask's rim, large in the middle of a nucleus that stands free, and minus the
    Laplacian of Gaussian of the hematoxylin, times its variance and at the scale where it is largest, which is large in
    the middle of a dark blob, be it amid others. Every hill that rises by :data:`PROMINENCE` is one nucleus.

    Args:
        image: (3, H, W), RGB, uint8 or floating point between 0 and 1.
        mpp: micrometres a pixel.

    Returns:
        (H, W) int32: 0 for no nucleus, and 1, 2, ... for the nuclei. Every number is taken.

    Raises:
        ValueError: for an image of another shape or range, or a size of pixels that is none.
    """
    hematoxylin = _hematoxylin(image, mpp)
    mask = _mask(hematoxylin, mpp)
    if not mask.any():
        return torch.zeros(mask.shape, dtype=torch.int32)
    distance = ndimage.distance_transform_edt(mask) * mpp
    landscape = _unit(ndimage.gaussian_filter(distance, SMOOTHING / mpp), mask)
    landscape += _unit(_blobs(hematoxylin, distance, mpp), mask)
    landscape[~mask] = landscape[mask].min() - PROMINENCE
    flooded = reconstruction(landscape - PROMINENCE, landscape)
    seeds, _ = ndimage.label(landscape - flooded > 0.999 * PROMINENCE, np.ones((3, 3)))
    return torch.from_numpy(watershed(-landscape, seeds, mask=mask).astype(np.int32))


def nuclear_mask(image: Tensor, mpp: float) -> Tensor:
    """Which pixels belong to nuclei, without telling one from another: much of the work is saved.

    Args:
        image: as in :func:`segment_nuclei`.
        mpp: micrometres a pixel.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: as :func:`segment_nuclei`.
    """
    return torch.from_numpy(_mask(_hematoxylin(image, mpp), mpp))


def without_specks(mask: NDArray[np.bool_], pixels: float) -> NDArray[np.bool_]:
    """A mask (H, W) without its parts, and then without its holes, of fewer than so many pixels."""
    return ~_larger(~_larger(mask, pixels), pixels)


def overlap(labels: Tensor, mask: Tensor) -> dict[int, float]:
    """How much of each nucleus lies inside a mask: of tumour, to tell tumour nuclei from others.

    Args:
        labels: (H, W) integers as :func:`segment_nuclei` gives them.
        mask: (H, W) bool.

    Returns:
        ``{label: share of its pixels}``, from 0 to 1.

    Raises:
        ValueError: for labels or a mask of another shape or dtype.
    """
    _check_labels(labels)
    if mask.shape != labels.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"expected a mask {tuple(labels.shape)} of bool, as the labels, got {tuple(mask.shape)} of {mask.dtype}"
        )
    numbers = labels.cpu().flatten().long()
    area = numbers.bincount()
    inside = numbers[mask.cpu().flatten()].bincount(minlength=len(area))
    present = [label for label in area.nonzero().flatten().tolist() if label]
    return {label: int(inside[label]) / int(area[label]) for label in present}


def rank_nuclei(saliency: Tensor, labels: Tensor, by: By = "mean", mpp: float | None = None) -> list[Nucleus]:
    """The nuclei in the order of their saliency.

    Args:
        saliency: (H, W) of the size of the picture; :func:`smoothsal_lib.extract.resize_map` brings a map there.
        labels: (H, W) integers as :func:`segment_nuclei` gives them.
        by: ``"mean"`` saliency a pixel, or ``"sum"``, which large nuclei win.
        mpp: micrometres a pixel, for the area in square micrometres.

    Returns:
        One entry a nucleus, the most salient first; of equals, the lower label first.

    Raises:
        ValueError: for shapes or dtypes that do not fit, saliency that is not finite, another ``by``, or a size of
            pixels that is none.
    """
    _check_labels(labels)
    if saliency.shape != labels.shape:
        raise ValueError(
            f"expected a map {tuple(labels.shape)}, as the labels, got {tuple(saliency.shape)}: resize_map resizes it"
        )
    if by not in ("mean", "sum"):
        raise ValueError(f"by = {by!r} is unknown: choose 'mean' or 'sum'")
    if mpp is not None:
        _check_mpp(mpp)
    values = saliency.detach().cpu().double()
    if not values.isfinite().all():
        raise ValueError("the map has values that are not finite: expected numbers only")
    numbers = labels.cpu()
    found = regionprops_table(numbers.numpy(), properties=("label", "centroid", "area", "eccentricity"))
    flat = numbers.flatten().long()
    total = flat.bincount(values.flatten(), minlength=1)
    positive = flat.bincount(values.clamp(min=0).flatten(), minlength=1)
    area = flat.bincount(minlength=1)
    score = total / area.clamp(min=1) if by == "mean" else total
    whole = float(positive.sum())
    order = sorted(range(len(found["label"])), key=lambda i: (-float(score[found["label"][i]]), found["label"][i]))
    return [
        Nucleus(
            rank=rank,
            label=(label := int(found["label"][i])),
            centre=(float(found["centroid-0"][i]), float(found["centroid-1"][i])),
            area=(pixels := int(area[label])),
            area_um2=None if mpp is None else pixels * mpp**2,
            eccentricity=float(found["eccentricity"][i]),
            mean=float(total[label]) / pixels,
            total=float(total[label]),
            share=float(positive[label]) / whole if whole else 0.0,
        )
        for rank, i in enumerate(order, 1)
    ]


def _hematoxylin(image: Tensor, mpp: float) -> NDArray[np.float32]:
    if image.ndim != 3:
        raise ValueError(f"expected an image (3, H, W), got shape {tuple(image.shape)}")
    _check_mpp(mpp)
    density = separate(image.cpu())[0].float().numpy()
    return ndimage.gaussian_filter(density, SMOOTHING / mpp)


def _blobs(hematoxylin: NDArray[np.float32], distance: NDArray[np.float64], mpp: float) -> NDArray[np.float32]:
    found = np.full(hematoxylin.shape, -np.inf, np.float32)
    for scale in BLOBS:
        answer = -ndimage.gaussian_laplace(hematoxylin, scale / mpp) * (scale / mpp) ** 2
        fits = (scale <= LARGEST_BLOB * distance) | (scale == BLOBS[0])
        found = np.where(fits, np.maximum(found, answer), found)
    return found


def _unit(values: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[Any]:
    return values / max(float(values[mask].std()), float(np.finfo(np.float32).tiny))


def _mask(hematoxylin: NDArray[np.float32], mpp: float) -> NDArray[np.bool_]:
    least = max(SHARE_OF_OTSU * float(threshold_otsu(hematoxylin)), PALEST)
    dark = (hematoxylin > least) & (hematoxylin > ndimage.gaussian_filter(hematoxylin, SURROUNDINGS / mpp))
    return _larger(~_larger(~dark, HOLE / mpp**2), SMALLEST / mpp**2)


def _larger(mask: NDArray[np.bool_], pixels: float) -> NDArray[np.bool_]:
    parts, _ = ndimage.label(mask)
    large = np.bincount(parts.ravel()) >= pixels
    large[0] = False
    return large[parts]


def _check_labels(labels: Tensor) -> None:
    whole = labels.ndim == 2 and not labels.is_floating_point() and labels.dtype != torch.bool
    if not whole or (labels < 0).any():
        raise ValueError(
            f"expected labels (H, W) of whole numbers from 0, as segment_nuclei gives, got {tuple(labels.shape)} of "
            f"{labels.dtype}"
        )


def _check_mpp(mpp: float) -> None:
    if not 0 < mpp < float("inf"):
        raise ValueError(f"mpp = {mpp:g} is not a size: give micrometres a pixel, such as 0.5")
