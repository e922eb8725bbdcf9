"""Generated tissue: pictures like haematoxylin-eosin slides, of any size, from a seed, with exact masks.

Real slides may rarely be passed on, and nobody outlines every nucleus of them. Here every pixel knows what it belongs
to. The picture is mixed as light is absorbed in a stained section: each structure holds some haematoxylin and some
eosin, their densities add up, and what gets through is 10 to the power of minus the sum (Ruifrok and Johnston,
"Quantification of histochemical staining by color deconvolution", 2001, the law of Beer and Lambert). The scale is that
of the GlaS pictures (20x), whose colours and sizes of nuclei the numbers below are set to;
:mod:`smoothsal_lib.experiments.tissue_statistics` compares the two.

It is a drawing, not a simulation: it is good for asking whether a map points at a structure, since the structure is
known, and says nothing about how a network does on a patient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from smoothsal_lib.datasets.patches import STRUCTURES, Patches

MPP = 0.62  # micrometres a pixel, as GlaS
KINDS = ("epithelial", "tumour", "lymphocyte", "fibroblast")
EPITHELIAL, TUMOUR, LYMPHOCYTE, FIBROBLAST = range(len(KINDS))
PER_PATIENT = 8  # patches, half of them with tumour
SHARE = 0.25  # of a patch, from which on it has tumour
MARGIN = 28  # pixels drawn around the field and cut away, so that its rim looks like its middle
SMALLEST = 14  # pixels: what is left of a nucleus behind another or at the rim is no nucleus

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Random = np.random.Generator


@dataclass(frozen=True)
class Stain:
    """How a section was stained and scanned.

    Attributes:
        haematoxylin: optical density in red, green and blue of one unit of haematoxylin.
        eosin: the same of eosin.
        strength: factors on the densities of both.
        blur: standard deviation of the lens's blur in pixels.
        noise: standard deviation of the sensor's noise in grey levels of 255.
    """

    haematoxylin: tuple[float, float, float] = (0.57, 0.75, 0.32)
    eosin: tuple[float, float, float] = (0.13, 0.96, 0.25)
    strength: tuple[float, float] = (1.0, 1.0)
    blur: float = 0.6
    noise: float = 3.0


@dataclass(frozen=True, eq=False)
class Field:
    """A generated picture with all that is known of it. Made by :func:`field`.

    Attributes:
        image: (3, H, W) uint8, RGB.
        nuclei: (H, W) int32, 0 for none and 1 to n for the nuclei.
        kinds: (n,) int64, which of :data:`KINDS` nucleus 1, 2, ... is.
        glands: (H, W) int32, 0 for none and 1 to m for the normal glands, each with its lumen.
        tumour: (H, W) bool, the tumour tissue with the lumina in it.
        lumen: (H, W) bool, where glands and tumour are hollow. The slits of the stroma are no lumina.
        stain: how it was stained.
    """

    image: Tensor
    nuclei: Tensor
    kinds: Tensor
    glands: Tensor
    tumour: Tensor
    lumen: Tensor
    stain: Stain

    @property
    def stroma(self) -> Tensor:
        """(H, W) bool: what is neither gland nor tumour, without its nuclei."""
        return self.structures()["stroma"]

    def structures(self) -> dict[str, Tensor]:
        """``{structure: (H, W) bool}`` for all :data:`smoothsal_lib.datasets.patches.STRUCTURES`.

        The nuclei of the tumour, the other nuclei, the stroma and the lumina never share a pixel. What remains is the
        cytoplasm of glands and tumour.
        """
        return _structures(self.nuclei, self.kinds, self.glands, self.tumour, self.lumen)


def _structures(nuclei: Tensor, kinds: Tensor, glands: Tensor, tumour: Tensor, lumen: Tensor) -> dict[str, Tensor]:
    """See :meth:`Field.structures`."""
    kind = torch.cat([kinds.new_tensor([-1]), kinds])[nuclei.long()]
    return {
        "tumour": tumour,
        "gland": glands > 0,
        "tumour_nuclei": kind == TUMOUR,
        "normal_nuclei": (kind >= 0) & (kind != TUMOUR),
        "stroma": (glands == 0) & ~tumour & (nuclei == 0),
        "lumen": lumen,
    }


def draw_stain(rng: Random) -> Stain:
    """A stain like those of different laboratories and days: other strengths, other hues."""
    strength = np.exp(rng.normal(0, (0.16, 0.16)))
    haematoxylin = np.array(Stain.haematoxylin) * np.exp(rng.normal(0, (0.07, 0.03, 0.12)))
    eosin = np.array(Stain.eosin) * np.exp(rng.normal(0, (0.16, 0.03, 0.22)))
    blur, noise = rng.uniform(0.45, 0.8), rng.uniform(2, 4)
    red, green, blue = (float(one) for one in haematoxylin)
    red_eosin, green_eosin, blue_eosin = (float(one) for one in eosin)
    both = (float(strength[0]), float(strength[1]))
    return Stain((red, green, blue), (red_eosin, green_eosin, blue_eosin), both, float(blur), float(noise))


# --- drawing ----------------------------------------------------------------------------------------------------------


def _spline(n: int, scale: float, start: float) -> Floats:
    """(n, knots): cubic B-splines at distances ``scale``, evaluated at n pixels."""
    place = np.arange(n) / scale + start
    knot = np.floor(place).astype(np.int64)
    t = place - knot
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    basis = np.zeros((n, int(knot[-1]) + 4))
    for k in range(4):
        basis[np.arange(n), knot + k] = weights[:, k]
    return basis


def _noise(rng: Random, shape: tuple[int, int], scale: float) -> Floats:
    """Smooth noise with mean 0 and variance about 1, whose hills are some two ``scale`` pixels wide."""
    rows, columns = (_spline(n, scale, start) for n, start in zip(shape, rng.uniform(0, 1, 2), strict=True))
    coarse = rng.standard_normal((rows.shape[1], columns.shape[1]))
    noise: Floats = rows @ coarse @ columns.T / 0.479  # the mean sum of the squared weights
    return noise


def _scatter(rng: Random, shape: tuple[int, int], spacing: float, jitter: float) -> Floats:
    """(n, 2) y and x of points ``spacing`` pixels apart, on a shaken hexagonal grid."""
    y, x = np.mgrid[0 : shape[0] / (spacing * 0.866) + 1, 0 : shape[1] / spacing + 1]
    points = np.stack([y * spacing * 0.866, (x + 0.5 * (y % 2)) * spacing], -1).reshape(-1, 2)
    points += rng.uniform(-jitter, jitter, points.shape) * spacing
    inside = (points >= 0).all(1) & (points[:, 0] < shape[0] - 0.5) & (points[:, 1] < shape[1] - 0.5)
    kept: Floats = points[inside]
    return kept


def _at(values: NDArray[np.generic], points: Floats) -> NDArray[np.generic]:
    """What stands in a picture at points (n, 2)."""
    y, x = points.astype(np.int64).T
    return values[y, x]


@dataclass
class _Blobs:
    """Ellipses with uneven outlines: nuclei, lumina, vacuoles, whole glands."""

    points: Floats  # (n, 2) y, x
    axes: Floats  # (n, 2) half the length, half the width
    angle: Floats  # (n,) of the long axis to the x axis
    wobble: NDArray[np.complex128]  # (n, 4): amplitude and phase of the outline's waves, 2 to 5 round the blob

    def __len__(self) -> int:
        return len(self.points)

    def some(self, chosen: Bools) -> _Blobs:
        return _Blobs(self.points[chosen], self.axes[chosen], self.angle[chosen], self.wobble[chosen])

    def stamp(self, shape: tuple[int, int]) -> tuple[Ints, Ints, Floats]:
        """Which blob covers which pixel: blobs (p,), pixels (p,), and how far out it lies, 0 to 1, (p,).

        In order of the blobs. A pixel under several comes several times.
        """
        if not len(self):
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        reach = int(np.ceil(self.axes.max() * (1 + np.abs(self.wobble).sum(1).max())))
        offset = np.arange(-reach, reach + 1)
        centre = np.rint(self.points).astype(np.int64)
        rest = centre - self.points
        dy = (offset[None, :] + rest[:, :1])[:, :, None]
        dx = (offset[None, :] + rest[:, 1:])[:, None, :]
        cos, sin = (part[:, None, None] for part in (np.cos(self.angle), np.sin(self.angle)))
        length, width = (self.axes[:, k, None, None] for k in (0, 1))
        u, v = (cos * dx + sin * dy) / length, (cos * dy - sin * dx) / width
        squared = u * u + v * v
        most = (1 + np.abs(self.wobble).sum(1)) ** 2
        blob, i, j = np.nonzero(squared < most[:, None, None])
        y, x = centre[blob, 0] + i - reach, centre[blob, 1] + j - reach
        radius = np.sqrt(squared[blob, i, j]) + 1e-9
        turn = (u[blob, i, j] + 1j * v[blob, i, j]) / radius
        outline = np.ones(len(blob))
        power = turn
        for k in range(self.wobble.shape[1]):
            power = power * turn
            outline += (self.wobble[blob, k] * power).real
        radius /= np.maximum(outline, 0.3)
        keep = (radius < 1) & (y >= 0) & (x >= 0) & (y < shape[0]) & (x < shape[1])
        return blob[keep], (y * shape[1] + x)[keep], radius[keep]


def _blobs(rng: Random, points: Floats, axes: Floats, angle: Floats, uneven: Floats | float) -> _Blobs:
    """Blobs with random outlines; ``uneven`` is the size of their waves."""
    n = len(points)
    size = np.broadcast_to(np.asarray(uneven), (n,))[:, None] * rng.rayleigh(1, (n, 4)) / np.array([2, 2, 3, 4])
    return _Blobs(points, axes, angle, size * np.exp(2j * math.pi * rng.uniform(0, 1, (n, 4))))


# --- architecture -----------------------------------------------------------------------------------------------------


@dataclass
class _Plan:
    """Where what is, before any nucleus: all (H, W)."""

    glands: NDArray[np.int32]
    tumour: Bools
    lumen: Bools
    vacuole: Bools
    atypia: Floats  # (m + 1,) of the glands, 0 to 1; the first is no gland
    shapes: _Blobs  # the glands
    order: Ints  # (m,) which of the shapes is gland 1, 2, ...


def _tumour_mask(rng: Random, shape: tuple[int, int], share: float) -> Bools:
    """Nests and irregular glands of a tumour that cover about ``share`` of the picture."""
    if share <= 0:
        return np.zeros(shape, bool)
    level = 0.8 * _noise(rng, shape, 90) + _noise(rng, shape, 26) + 0.12 * _noise(rng, shape, 7)
    mask: Bools = level > np.quantile(level, 1 - share)
    labels, n = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=n + 1)
    large = sizes >= 250
    large[0] = False
    return np.asarray(large[labels], bool)


def _plan(rng: Random, shape: tuple[int, int], tumour: Bools) -> _Plan:
    """Lay out the glands, the tumour and their lumina."""
    beside = ndimage.distance_transform_edt(~tumour) if tumour.any() else np.full(shape, 1e3)
    # Normal glands: on a wide grid, as large as the room between their neighbours and the tumour allows.
    spacing = rng.uniform(84, 112)
    points = _scatter(rng, shape, spacing, 0.16)
    reach = np.minimum(np.asarray(_at(beside, points)) - 8, spacing * 0.5)
    keep = (reach > 18) & (rng.uniform(0, 1, len(points)) < rng.uniform(0.55, 0.95))
    points, reach = points[keep], reach[keep]
    n = len(points)
    length = reach * rng.uniform(0.74, 0.92, n)
    axes = np.stack([length, length * rng.uniform(0.66, 0.95, n)], 1)
    shapes = _blobs(rng, points, axes, rng.uniform(0, math.pi, n), 0.05)
    blob, pixel, radius = shapes.stamp(shape)
    glands = np.zeros(shape, np.int32)
    glands.flat[pixel] = blob + 1
    glands[beside < 5] = 0
    lumen = np.zeros(shape, bool)
    hollow = rng.uniform(0.12, 0.5, n)
    lumen.flat[pixel[(radius < hollow[blob])]] = True
    # Goblet cells: pale vacuoles between the nuclei and the lumen.
    vacuole = np.zeros(shape, bool)
    if n:
        mucin = rng.uniform(0, 1, n) * rng.uniform(0.3, 1.3)
        spots = _scatter(rng, shape, 10.5, 0.2)
        own = np.asarray(_at(glands, spots)).astype(np.int64) - 1
        inside = own >= 0
        spots, own = spots[inside], own[inside]
        away = spots - points[own]
        ahead = np.hypot(*away.T)
        depth = np.asarray(_at(np.asarray(ndimage.distance_transform_edt(glands > 0)), spots))
        keep = (depth > 14) & (rng.uniform(0, 1, len(spots)) < mucin[own]) & (ahead > 3)
        size = np.stack([rng.uniform(4.2, 6.6, keep.sum()), rng.uniform(3.2, 4.9, keep.sum())], 1)
        bubbles = _blobs(rng, spots[keep], size, np.arctan2(away[keep, 0], away[keep, 1]), 0.06)
        vacuole.flat[bubbles.stamp(shape)[1]] = True
        vacuole &= (glands > 0) & ~lumen
    # The tumour's own lumina: holes of all sizes, several to a nest.
    if tumour.any():
        depth = np.asarray(ndimage.distance_transform_edt(tumour))
        holes = _scatter(rng, shape, rng.uniform(30, 48), 0.3)
        room = np.asarray(_at(depth, holes))
        keep = (room > 15) & (rng.uniform(0, 1, len(holes)) < rng.uniform(0.25, 0.9))
        holes, room = holes[keep], room[keep]
        width = room * rng.uniform(0.12, 0.6, len(holes))
        size = np.stack([width * rng.uniform(1, 1.9, len(holes)), width], 1)
        hollow_ = _blobs(rng, holes, size, rng.uniform(0, math.pi, len(holes)), 0.16).stamp(shape)[1]
        lumen.flat[hollow_] |= tumour.flat[hollow_]
    return _Plan(glands, tumour, lumen, vacuole, np.zeros(n + 1), shapes, np.arange(n))


# --- nuclei -----------------------------------------------------------------------------------------------------------


@dataclass
class _Nuclei:
    """Nuclei of one kind, and how they look."""

    kind: int
    blobs: _Blobs
    dark: Floats  # (n,) density of haematoxylin
    pale: Floats  # (n,) how much paler the middle is than the rim, 0 to 1
    coarse: float  # how clumped the chromatin is
    allowed: Bools  # (H, W) where they may lie


def _ring(rng: Random, shape: tuple[int, int], plan: _Plan, atypia: Floats) -> _Nuclei:
    """The nuclei of the normal glands: at the base of the cells, side by side, pointing at the lumen."""
    inside = plan.glands > 0
    depth = np.asarray(ndimage.distance_transform_edt(inside))
    spots = _scatter(rng, shape, 5.2, 0.35)
    own = np.asarray(_at(plan.glands, spots)).astype(np.int64)
    at = np.asarray(_at(depth, spots))
    strange = atypia[own]
    keep = (own > 0) & (at > 4.2) & (at < 8.4 + 9 * strange)
    spots, strange = _apart(spots[keep], 6.9 + 0 * strange[keep]), strange
    own = np.asarray(_at(plan.glands, spots)).astype(np.int64)
    strange = atypia[own]
    slope = np.stack(np.gradient(ndimage.gaussian_filter(depth, 2.0)), -1)
    at_slope = np.asarray(_at(slope[..., 0], spots)), np.asarray(_at(slope[..., 1], spots))
    angle = np.arctan2(*at_slope) + rng.normal(0, 0.18, len(spots))
    n = len(spots)
    length = rng.normal(5.3, 0.5, n) * (1 + 0.28 * strange)
    width = rng.normal(3.8, 0.35, n) * (1 + 0.15 * strange)
    blobs = _blobs(rng, spots, np.stack([length, np.maximum(width, 2.6)], 1), angle, 0.03 + 0.02 * strange)
    dark = rng.normal(0.46, 0.06, n)
    return _Nuclei(EPITHELIAL, blobs, dark, rng.uniform(0.1, 0.6, n), 0.18, inside & ~plan.lumen)


def _apart(points: Floats, spacing: Floats | float) -> Floats:
    """Those of the points, in order, that keep the distance from all kept before."""
    limit = np.broadcast_to(np.asarray(spacing, float), (len(points),))
    size = float(limit.max()) if len(points) else 1.0
    cells: dict[tuple[int, int], list[int]] = {}
    kept: list[int] = []
    for i, (y, x) in enumerate(points.tolist()):
        row, column = int(y / size), int(x / size)
        near = (
            j for r in (row - 1, row, row + 1) for c in (column - 1, column, column + 1) for j in cells.get((r, c), ())
        )
        if all((points[j, 0] - y) ** 2 + (points[j, 1] - x) ** 2 >= limit[i] ** 2 for j in near):
            cells.setdefault((row, column), []).append(i)
            kept.append(i)
    return points[kept]


def _malignant(rng: Random, shape: tuple[int, int], plan: _Plan, grade: float) -> _Nuclei:
    """The nuclei of the tumour: crowded, large, uneven in size and outline, in several rows."""
    solid = plan.tumour & ~plan.lumen
    depth = np.asarray(ndimage.distance_transform_edt(solid))
    apical = np.asarray(ndimage.distance_transform_edt(~plan.lumen)) if plan.lumen.any() else np.full(shape, 1e3)
    spots = _scatter(rng, shape, rng.uniform(10, 12) + 0.6 * grade, 0.3)
    room = (np.asarray(_at(depth, spots)) > 3) & (np.asarray(_at(apical, spots)) > rng.uniform(4, 11))
    spots = spots[room]
    n = len(spots)
    smooth = ndimage.gaussian_filter(depth, 2.0)
    slope = [np.asarray(_at(part, spots)) for part in np.gradient(smooth)]
    angle = np.arctan2(*slope) + rng.normal(0, 0.3 + 0.5 * grade, n)
    size = np.exp(rng.normal(0, 0.1 + 0.16 * grade, n))
    length = (6.4 + 0.9 * grade) * size * np.exp(rng.normal(0, 0.08, n))
    width = (4.4 + 0.9 * grade) * size * np.exp(rng.normal(0, 0.1, n))
    axes = np.clip(np.stack([length, width], 1), 2.8, 11.5)
    blobs = _blobs(rng, spots, axes, angle, 0.05 + 0.06 * grade)
    dark = rng.normal(0.5, 0.07 + 0.04 * grade, n)
    return _Nuclei(TUMOUR, blobs, dark, rng.uniform(0.1, 0.75, n), 0.3, solid)


def _lymphocytes(rng: Random, shape: tuple[int, int], stroma: Bools, crowd: float) -> _Nuclei:
    """Small, round, dark: strewn over the stroma, and in crowds."""
    density = 0.06 + crowd * np.clip(_noise(rng, shape, 30) - 0.1, 0, 1)
    spots = _scatter(rng, shape, 8.4, 0.26)
    keep = np.asarray(_at(stroma, spots)) & (rng.uniform(0, 1, len(spots)) < np.asarray(_at(density, spots)))
    spots = spots[keep]
    n = len(spots)
    radius = np.clip(rng.normal(3.5, 0.35, n), 2.6, 4.6)
    axes = np.stack([radius * rng.uniform(1, 1.2, n), radius], 1)
    blobs = _blobs(rng, spots, axes, rng.uniform(0, math.pi, n), 0.03)
    return _Nuclei(LYMPHOCYTE, blobs, rng.normal(0.6, 0.07, n), rng.uniform(0, 0.2, n), 0.22, stroma)


def _fibroblasts(rng: Random, shape: tuple[int, int], stroma: Bools, along: Floats) -> _Nuclei:
    """Thin, along the fibres."""
    spots = _scatter(rng, shape, 19, 0.4)
    spots = spots[np.asarray(_at(stroma, spots)) & (rng.uniform(0, 1, len(spots)) < rng.uniform(0.35, 0.8))]
    n = len(spots)
    angle = np.asarray(_at(along, spots)) + rng.normal(0, 0.15, n)
    axes = np.stack([rng.uniform(4.8, 9, n), rng.uniform(1.6, 2.7, n)], 1)
    blobs = _blobs(rng, spots, axes, angle, 0.03)
    return _Nuclei(FIBROBLAST, blobs, rng.normal(0.42, 0.07, n), rng.uniform(0, 0.3, n), 0.15, stroma)


# --- the whole --------------------------------------------------------------------------------------------------------


@dataclass
class _Tissue:
    """A field before it is stained: densities and masks, all (H, W)."""

    haematoxylin: Floats
    eosin: Floats
    nuclei: NDArray[np.int32]
    kinds: Ints
    glands: NDArray[np.int32]
    tumour: Bools
    lumen: Bools

    def structures(self) -> dict[str, Tensor]:
        parts = (self.nuclei, self.kinds, self.glands, self.tumour, self.lumen)
        return _structures(*(torch.from_numpy(part) for part in parts))


def _grow(rng: Random, size: tuple[int, int], tumour: float | Bools) -> _Tissue:
    shape = (size[0] + 2 * MARGIN, size[1] + 2 * MARGIN)
    mask = _tumour_mask(rng, shape, tumour) if isinstance(tumour, float) else np.pad(tumour, MARGIN, mode="edge")
    plan = _plan(rng, shape, mask)
    inside = plan.glands > 0
    stroma = ~inside & ~plan.tumour
    # Fibres follow the level lines of a smooth function.
    lay = _noise(rng, shape, 75) + 0.12 * _noise(rng, shape, 16)
    tilt = rng.uniform(0, math.pi)
    y, x = np.mgrid[: shape[0], : shape[1]]
    lay = lay * 40 + np.cos(tilt) * y + np.sin(tilt) * x
    slope_y, slope_x = np.gradient(lay)
    along = np.arctan2(slope_y, slope_x) + math.pi / 2
    bundle = np.interp(lay, *_profile(rng, lay, 7.0))
    thread = np.interp(lay, *_profile(rng, lay, 2.6))
    fine, grain = _noise(rng, shape, 3.2), _noise(rng, shape, 1.7)
    patchy = _noise(rng, shape, 22)
    fibre = 0.9 * bundle + 0.5 * thread + 0.45 * fine + 0.6 * patchy
    loose = rng.uniform(0.5, 1.6)  # how much clear space there is between the fibres
    gap = 1 / (1 + np.exp(-(fibre + 2.6 - loose) * 4))
    eosin = (0.26 + 0.055 * fibre + 0.02 * grain) * gap
    haematoxylin = (0.05 + 0.012 * fibre + 0.025 * patchy + 0.012 * grain) * gap
    # Epithelium.
    tone = 0.03 * patchy
    eosin = np.where(inside, 0.235 + tone + 0.03 * fine + 0.012 * grain, eosin)
    haematoxylin = np.where(inside, 0.13 + 0.5 * tone + 0.018 * fine + 0.01 * grain, haematoxylin)
    eosin = np.where(plan.tumour, 0.24 + tone + 0.035 * fine + 0.012 * grain, eosin)
    haematoxylin = np.where(plan.tumour, 0.15 + 0.6 * tone + 0.022 * fine + 0.01 * grain, haematoxylin)
    clear = ndimage.gaussian_filter(plan.vacuole.astype(float), 0.7)
    eosin = eosin * (1 - clear) + (0.05 + 0.012 * fine) * clear
    haematoxylin = haematoxylin * (1 - clear) + (0.055 + 0.012 * fine) * clear
    clear = ndimage.gaussian_filter(plan.lumen.astype(float), 0.6)
    debris = np.clip(_noise(rng, shape, 6) - 1.2, 0, 1)
    eosin = eosin * (1 - clear) + (0.01 + 0.15 * debris) * clear
    haematoxylin = haematoxylin * (1 - clear) + (0.012 + 0.08 * debris) * clear
    # Nuclei.
    grade = float(rng.uniform(0, 1))
    atypia = np.where(rng.uniform(0, 1, len(plan.atypia)) < 0.25, rng.uniform(0.3, 1, len(plan.atypia)), 0.0)
    groups = [
        _fibroblasts(rng, shape, stroma, along),
        _lymphocytes(rng, shape, stroma, rng.uniform(0.1, 1.3)),
        _ring(rng, shape, plan, atypia),
        _malignant(rng, shape, plan, grade),
    ]
    nuclei = np.zeros(shape, np.int32)
    density = np.zeros(shape[0] * shape[1])
    kinds: list[Ints] = []
    last = 0
    for group in groups:
        blob, pixel, radius = group.blobs.stamp(shape)
        keep = group.allowed.flat[pixel]
        blob, pixel, radius = blob[keep], pixel[keep], radius[keep]
        nuclei.flat[pixel] = blob + last + 1
        edge = np.clip((1 - radius) * group.blobs.axes[blob, 1] / 1.2 + 0.35, 0, 1)
        middle = np.clip((0.9 - radius) * 2.5, 0, 1)
        depth = group.dark[blob] * (1 - 0.75 * group.pale[blob] * middle) * edge
        depth *= 1 + group.coarse * grain.flat[pixel] * 0.8
        np.maximum.at(density, pixel, depth)
        last += len(group.blobs)
        kinds.append(np.full(len(group.blobs), group.kind))
    spots = _nucleoli(rng, groups[-1], shape)
    if spots is not None:
        blob, pixel, radius = spots
        keep = nuclei.flat[pixel] > 0
        np.add.at(density, pixel[keep], 0.28 * np.clip(1.3 * (1 - radius[keep]), 0, 1))
    density = density.reshape(shape)
    covered = nuclei > 0
    haematoxylin = np.maximum(haematoxylin, density) + 0.15 * density
    eosin = np.where(covered, 0.6 * eosin + 0.05, eosin)
    cut = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    labels, kind = _numbered(nuclei[cut], np.concatenate(kinds))
    glands, _ = _numbered(plan.glands[cut], np.zeros(len(plan.shapes), np.int64), 1)
    return _Tissue(
        np.clip(haematoxylin[cut], 0, None),
        np.clip(eosin[cut], 0, None),
        labels,
        kind,
        glands,
        plan.tumour[cut],
        plan.lumen[cut],
    )


def _nucleoli(rng: Random, group: _Nuclei, shape: tuple[int, int]) -> tuple[Ints, Ints, Floats] | None:
    """One or two dark dots in the paler ones of the nuclei."""
    many = len(group.blobs)
    if not many:
        return None
    count = np.where(group.pale > 0.3, rng.integers(1, 3, many), 0)
    own = np.repeat(np.arange(many), count)
    shift = rng.normal(0, 0.28, (len(own), 2)) * group.blobs.axes[own, 1:]
    radius = rng.uniform(1.2, 2.0, len(own))
    dots = _blobs(rng, group.blobs.points[own] + shift, np.stack([radius, radius], 1), np.zeros(len(own)), 0.0)
    return dots.stamp(shape)


def _profile(rng: Random, lay: Floats, scale: float) -> tuple[Floats, Floats]:
    """Random values along a line, for :func:`numpy.interp`."""
    low, high = float(lay.min()), float(lay.max())
    n = int((high - low) / (scale / 2)) + 8
    values = ndimage.gaussian_filter1d(rng.standard_normal(n), 1.0, mode="wrap")
    return np.linspace(low, high, n), values / 0.53


def _numbered(labels: NDArray[np.int32], kinds: Ints, least: int = SMALLEST) -> tuple[NDArray[np.int32], Ints]:
    """Labels 1 to n without gaps, of those with ``least`` pixels or more, and the kinds of these."""
    count = np.bincount(labels.ravel(), minlength=len(kinds) + 1)
    keep = count >= least
    keep[0] = False
    new = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return new[labels], kinds[keep[1:]]


def _developed(rng: Random, haematoxylin: Floats, eosin: Floats, stain: Stain) -> Tensor:
    """The picture (3, H, W) uint8 of densities (H, W)."""
    density = np.array(stain.haematoxylin)[:, None, None] * (haematoxylin * stain.strength[0]) + np.array(stain.eosin)[
        :, None, None
    ] * (eosin * stain.strength[1])
    light = 10.0**-density * 250
    light = ndimage.gaussian_filter(light, (0, stain.blur, stain.blur), mode="nearest")
    light += rng.normal(0, stain.noise, light.shape)
    return torch.from_numpy(np.clip(np.rint(light), 0, 255).astype(np.uint8))


def _matched(density: Floats, mean: float, spread: float) -> Floats:
    """The density with another mean and, as far as a power of 0.6 to 1.7 brings it there, another relative spread."""
    power = 1.0
    for _ in range(3):
        raised = density**power
        power = float(np.clip(power * spread / (raised.std() / raised.mean()), 0.6, 1.7))
    raised = density**power
    matched: Floats = raised * (mean / raised.mean())
    return matched


def patches(count: int, size: int = 96, seed: int = 0) -> Patches:
    """Generate patches, half of them with tumour.

    Label 1 says that at least :data:`SHARE` of the patch is tumour, label 0 that none of it is; nothing between is
    drawn. Eight of them are cut from a field of their own, four with tumour and four without, and share its stain:
    these are a patient. The colour does not tell the label: mean and spread of both dyes are drawn for every patch
    alike, and its densities brought there.

    Args:
        count: how many. The first ones are the same whatever the count.
        size: of their sides in pixels.
        seed: same seed, same pixels. The global random state is not touched.

    Raises:
        ValueError: for a count below 1, or a size below 48.
    """
    if count < 1:
        raise ValueError(f"count = {count} is not a number of patches: give 1 or more")
    if size < 48:
        raise ValueError(f"size = {size} is too small for a gland: give 48 or more")
    images: list[Tensor] = []
    labels: list[int] = []
    masks: dict[str, list[Tensor]] = {name: [] for name in STRUCTURES}
    people = -(-count // PER_PATIENT)
    for patient in range(people):
        rng = np.random.default_rng([seed, patient])
        stain = draw_stain(rng)
        tissue, places = _cut(rng, size)
        structures = tissue.structures()
        for (y, x), label in places:
            window = (slice(y, y + size), slice(x, x + size))
            mean = np.exp(rng.normal(np.log([0.17, 0.185]), 0.16))
            spread = np.exp(rng.normal(np.log([0.85, 0.5]), 0.08))
            both = [
                _matched(density[window] + 1e-3, float(mean[k]), float(spread[k]))
                for k, density in enumerate((tissue.haematoxylin, tissue.eosin))
            ]
            images.append(_developed(rng, both[0], both[1], stain))
            labels.append(label)
            for name, mask in structures.items():
                masks[name].append(mask[window])
    return Patches(
        torch.stack(images[:count]),
        torch.tensor(labels[:count]),
        torch.arange(people).repeat_interleave(PER_PATIENT)[:count],
        {name: torch.stack(mask[:count]) for name, mask in masks.items()},
        [f"tissue-{seed}-{i}" for i in range(count)],
        MPP,
    )


def _cut(rng: Random, size: int) -> tuple[_Tissue, list[tuple[tuple[int, int], int]]]:
    """A field, and where to cut patches from it: y, x and label of each, with and without tumour in turn."""
    while True:
        side = 4 * size
        tissue = _grow(rng, (side, side), float(rng.uniform(0.25, 0.45)))
        total = np.pad(tissue.tumour.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        starts = np.arange(0, side - size + 1, max(1, size // 12))
        share = (
            total[np.ix_(starts + size, starts + size)]
            - total[np.ix_(starts, starts + size)]
            - total[np.ix_(starts + size, starts)]
            + total[np.ix_(starts, starts)]
        ) / size**2
        found: list[list[tuple[int, int]]] = []
        taken: list[tuple[int, int]] = []
        for fits in (share == 0, share >= SHARE):
            places = np.argwhere(fits)
            chosen: list[tuple[int, int]] = []
            for i, j in places[rng.permutation(len(places))].tolist():
                y, x = int(starts[i]), int(starts[j])
                if len(chosen) < PER_PATIENT // 2 and all(abs(y - a) + abs(x - b) >= size // 2 for a, b in taken):
                    chosen.append((y, x))
                    taken.append((y, x))
            found.append(chosen)
        if all(len(chosen) == PER_PATIENT // 2 for chosen in found):
            return tissue, [(place, label) for pair in zip(*found, strict=True) for label, place in enumerate(pair)]


def field(
    size: int | tuple[int, int] = 512,
    seed: int = 0,
    tumour: float | Tensor | None = None,
    stain: Stain | None = None,
) -> Field:
    """Generate a picture of tissue.

    Args:
        size: pixels, (H, W) or one number for both.
        seed: same seed, same pixels. The global random state is not touched.
        tumour: the share of the picture that is tumour, 0 to 1, about; or a mask (H, W) bool that says where it is; or
            ``None`` for about a third.
        stain: ``None`` for one that the seed draws.

    Raises:
        ValueError: for a size below 1, a share outside 0 to 1, or a mask of another shape or type.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size = {size} has no pixels: give 1 or more in both directions")
    region: float | Bools
    if isinstance(tumour, Tensor):
        if tumour.shape != (height, width) or tumour.dtype != torch.bool:
            raise ValueError(f"expected a mask {(height, width)} of bool, got {tuple(tumour.shape)} of {tumour.dtype}")
        region = tumour.numpy()
    else:
        region = 0.35 if tumour is None else float(tumour)
        if not 0 <= region <= 1:
            raise ValueError(f"tumour = {tumour} is not a share: give 0 to 1, or a mask")
    rng = np.random.default_rng(seed)
    own = draw_stain(rng)
    stain = stain or own
    tissue = _grow(rng, (height, width), region)
    image = _developed(rng, tissue.haematoxylin, tissue.eosin, stain)
    return Field(
        image,
        torch.from_numpy(tissue.nuclei),
        torch.from_numpy(tissue.kinds),
        torch.from_numpy(tissue.glands),
        torch.from_numpy(tissue.tumour),
        torch.from_numpy(tissue.lumen),
        stain,
    )
