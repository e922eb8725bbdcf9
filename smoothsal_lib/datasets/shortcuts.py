"""Plant a shortcut: a cue that has nothing to do with tumour, but goes along with it in the training set.

A network that is trained on such patches may learn the cue instead of the tissue, be right for the wrong reason, and
fail where the two part (Geirhos et al. 2020, arXiv 2004.07780; Lapuschkin et al. 2019, doi 10.1038/s41467-019-08987-4,
found photographs of horses told by their watermark). Since the cue is planted, it is known what an explanation should
have shown (Adebayo et al. 2020, arXiv 2011.05429).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from smoothsal_lib.datasets.patches import Patches
from smoothsal_lib.datasets.stains import shift

# The share of the light (red, green, blue) that a full stroke of a felt pen lets through.
INKS = {"blue": (0.22, 0.35, 0.78), "green": (0.20, 0.62, 0.38), "black": (0.22, 0.22, 0.25)}
HALF_WIDTH = (0.03, 0.06)  # of a stroke, least and most, as a share of the shorter side
STRENGTH = (0.6, 1.0)  # of the ink, as a share of a full stroke's optical density
SOFT_EDGE = 2.0  # pixels over which the ink fades


def chosen(labels: Tensor, share_of_positives: float, share_of_negatives: float, seed: int = 0) -> Tensor:
    """Which patches get the cue: a share of each class, rounded to a whole number of patches.

    Args:
        labels: (N,) 1 for tumour, 0 for none.
        share_of_positives: of the patches with tumour, 0 to 1.
        share_of_negatives: of those without.
        seed: of the choice. With the same seed, those of a smaller share are among those of a larger one.

    Returns:
        (N,) booleans.

    Raises:
        ValueError: for a share outside 0 to 1, or a label that is neither 0 nor 1.
    """
    shares = {1: share_of_positives, 0: share_of_negatives}
    for share in shares.values():
        if not 0 <= share <= 1:
            raise ValueError(f"{share} is no share of the patches: expected 0 to 1")
    others = labels[(labels != 0) & (labels != 1)].tolist()
    if others:
        raise ValueError(f"label {others[0]} is neither 1, for tumour, nor 0")
    generator = torch.Generator().manual_seed(seed)
    picked = torch.zeros(len(labels), dtype=torch.bool)
    for label, share in shares.items():
        places = (labels == label).nonzero().flatten()
        order = torch.randperm(len(places), generator=generator)
        picked[places[order[: round(share * len(places))]]] = True
    return picked


def pen_mark(
    patches: Patches, share_of_positives: float = 0.6, share_of_negatives: float = 0.03, seed: int = 0
) -> tuple[Patches, Tensor]:
    """Draw a stroke of a felt pen, as pathologists leave on the glass around a tumour, on some of the patches.

    A stroke enters from a border and runs along a curve, with soft edges. Its ink, one of :data:`INKS`, is translucent:
    it takes a share of the light, so its optical density adds to that of the tissue, which shows through. Length,
    curvature, width, ink and density vary from patch to patch. The stroke of a patch depends on the seed and on the
    patch's place among the others, not on which others are marked: ``pen_mark(patches, 1, 1, seed)`` draws the same
    strokes on all.

    Args:
        patches: are left as they are.
        share_of_positives: of the patches with tumour, 0 to 1, that get a mark; see :func:`chosen`.
        share_of_negatives: of those without.
        seed: of the choice and of the strokes. The global random state is not touched.

    Returns:
        The patches, with the same labels and masks, and (N, H, W) booleans: where there is ink. Everywhere else the
        pictures are what they were.

    Raises:
        ValueError: for a share outside 0 to 1, or a label that is neither 0 nor 1.
    """
    picked = chosen(patches.labels, share_of_positives, share_of_negatives, seed)
    images = patches.images.clone()
    size = (images.shape[2], images.shape[3])
    marks = torch.zeros(len(images), *size, dtype=torch.bool)
    for i in picked.nonzero().flatten().tolist():
        rng = np.random.default_rng([seed, i])
        coverage = torch.from_numpy(_stroke(size, rng))
        ink = torch.tensor(INKS[rng.choice(list(INKS))]).view(3, 1, 1)
        density = coverage * rng.uniform(*STRENGTH)
        images[i] = (images[i] * ink**density).round().to(torch.uint8)
        marks[i] = coverage > 0
    return replace(patches, images=images), marks


def stain_shift(
    patches: Patches,
    share_of_positives: float = 0.6,
    share_of_negatives: float = 0.03,
    seed: int = 0,
    hematoxylin: float = 0.0,
    eosin: float = -0.5,
) -> tuple[Patches, Tensor]:
    """Stain some of the patches otherwise, as where the slides with tumour come from a laboratory of their own.

    Unlike a pen mark this cue has no place: it is everywhere in the picture.

    Args:
        patches: are left as they are.
        share_of_positives: of the patches with tumour, 0 to 1, that are stained otherwise; see :func:`chosen`.
        share_of_negatives: of those without.
        seed: of the choice. The global random state is not touched.
        hematoxylin: the share of it to add, see :func:`smoothsal_lib.datasets.stains.shift`.
        eosin: the same of eosin.

    Returns:
        The patches, with the same labels and masks, and (N,) booleans: which of them are stained otherwise.

    Raises:
        ValueError: for a share outside 0 to 1, a label that is neither 0 nor 1, or less than no stain at all.
    """
    picked = chosen(patches.labels, share_of_positives, share_of_negatives, seed)
    images = patches.images.clone()
    images[picked] = shift(images[picked], hematoxylin, eosin)
    return replace(patches, images=images), picked


def _stroke(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """How much of the ink each pixel (H, W) has, 0 to 1, of a stroke along a quadratic Bézier curve."""
    height, width = size
    shorter = min(size)
    half_width = rng.uniform(*HALF_WIDTH) * shorter
    # The stroke begins on the upper border, which is then turned to any of the four.
    turned = bool(rng.integers(2))
    along, across = (height, width) if turned else (width, height)
    start = np.array([rng.uniform(0.1, 0.9) * along, -half_width])
    end = np.array([rng.uniform(0.0, 1.0) * along, rng.uniform(0.5, 1.1) * across])
    middle = (start + end) / 2 + rng.uniform(-0.35, 0.35, 2) * shorter
    t = np.linspace(0, 1, 49)[:, None]
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
    y, x = np.mgrid[:across, :along]
    distance = np.sqrt(((x[..., None] - curve[:, 0]) ** 2 + (y[..., None] - curve[:, 1]) ** 2).min(-1))
    coverage = np.clip((half_width - distance) / SOFT_EDGE + 0.5, 0, 1)
    if rng.integers(2):
        coverage = coverage[::-1]
    return np.ascontiguousarray(coverage.T if turned else coverage, dtype=np.float32)
