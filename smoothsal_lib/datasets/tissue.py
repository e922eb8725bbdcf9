"""Generated tissue: pictures like hematoxylin-eosin slides, of any size, from a seed, with exact masks.

Real slides may rarely be passed on, and nobody outlines every nucleus of them. Here every pixel knows what it belongs
to. The picture is mixed as light is absorbed in a stained section: each structure holds some hematoxylin and some
eosin, their densities add up, and what gets through is 10 to the power of minus the sum (Ruifrok and Johnston,
"Quantification of histochemical staining by color deconvolution", 2001, the law of Beer and Lambert). The scale is that
of the GlaS pictures (20x), whose colours and sizes of nuclei the numbers below are set to;
:mod:`smoothsal_lib.experiments.tissue_statistics` compares the two.

It is a drawing, not a simulation: it is good for asking whether a map points at a structure, since the structure is
known, and says nothing about how a network does on a patient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
WHITE = 248.0  # grey levels where nothing absorbs
BALANCING = 6  # steps that bring a patch to given colours
TAKEN = 250  # places, at most, that are too near to three patches for a fourth: 9 x 9 around each
TRIES = 400  # to draw a tumour that leaves room for patches without it
SMALLEST = 14  # pixels: what is left of a nucleus behind another or at the rim is no nucleus

_CUT = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Random = np.random.Generator


@dataclass(frozen=True)
class Stain:
    """How a section was stained and scanned.

    Attributes:
        hematoxylin: optical density in red, green and blue of one unit of hematoxylin.
        eosin: the same of eosin.
        strength: factors on the densities of both.
        blur: standard deviation of the lens's blur in pixels.
        noise: standard deviation of the sensor's noise in grey levels of 255.
    """

    hematoxylin: tuple[float, float, float] = (0.52, 0.78, 0.31)
    eosin: tuple[float, float, float] = (0.11, 0.97, 0.21)
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
        lumen: (H, W) bool, where glands and tumour are hollow. Neither the slits of the stroma are lumina nor the pale
            vacuoles of goblet cells.
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
        """What is neither gland nor tumour, without its nuclei, (H, W) bool."""
        return self.structures()["stroma"]

    def structures(self) -> dict[str, Tensor]:
        """``{structure: (H, W) bool}`` for all :data:`smoothsal_lib.datasets.patches.STRUCTURES`.

        A gland is normal, or it is tumour, never both; in GlaS, a gland that is tumour counts as either.
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
    """A stain like those of different laboratories and days: other strengths, other hues; ``rng`` chooses."""
    strength = np.exp(rng.normal(0, (0.16, 0.16)))
    hematoxylin = np.array(Stain.hematoxylin) * np.exp(rng.normal(0, (0.05, 0.03, 0.08)))
    eosin = np.array(Stain.eosin) * np.exp(rng.normal(0, (0.14, 0.03, 0.16)))
    blur, noise = rng.uniform(0.45, 0.8), rng.uniform(2, 4)
    red, green, blue = (float(one) for one in hematoxylin)
    red_eosin, green_eosin, blue_eosin = (float(one) for one in eosin)
    both = (float(strength[0]), float(strength[1]))
    return Stain((red, green, blue), (red_eosin, green_eosin, blue_eosin), both, float(blur), float(noise))


# --- drawing ----------------------------------------------------------------------------------------------------------


def _taps(n: int, scale: float, start: float) -> tuple[Ints, Floats]:
    """Cubic B-splines at distances ``scale``: the first knot of each of n pixels, and the weights (4, n)."""
    place = np.arange(n) / scale + start
    knot = place.astype(np.int64)
    t = place - knot
    return knot, np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6


def _noise(rng: Random, shape: tuple[int, int], scale: float) -> Floats:
    """Smooth noise with mean 0 and variance about 1, whose hills are some two ``scale`` pixels wide."""
    start = rng.uniform(0, 1, 2)
    (row, high), (column, wide) = (_taps(n, scale, float(first)) for n, first in zip(shape, start, strict=True))
    coarse = rng.standard_normal((int(row[-1]) + 4, int(column[-1]) + 4))
    rows = sum(high[k][:, None] * coarse[row + k] for k in range(4))
    noise: Floats = sum(wide[k] * rows[:, column + k] for k in range(4)) / 0.479  # the mean sum of squared weights
    return noise


def _scatter(rng: Random, shape: tuple[int, int], spacing: float, jitter: float) -> Floats:
    """(n, 2) y and x of points ``spacing`` pixels apart, on a shaken hexagonal grid."""
    rows, columns = int(shape[0] / (0.866 * spacing)) + 2, int(shape[1] / spacing) + 2
    y, x = np.mgrid[:rows, :columns]
    points = np.stack([y * 0.866, x + 0.5 * (y % 2)], -1).reshape(-1, 2) * spacing
    points += rng.uniform(-jitter, jitter, points.shape) * spacing
    inside: Floats = points[(points >= 0).all(1) & (points[:, 0] < shape[0]) & (points[:, 1] < shape[1])]
    return inside


def _at(values: NDArray[Any], points: Floats) -> Floats:
    """What stands in a picture at points (n, 2)."""
    y, x = points.astype(np.int64).T
    return values[y, x].astype(np.float64)


def _depth(mask: Bools) -> Floats:
    """How far it is from each pixel of the mask out of it, in pixels."""
    if mask.all():
        return np.full(mask.shape, float(sum(mask.shape)))
    return np.asarray(ndimage.distance_transform_edt(mask), np.float64)


def _apart(points: Floats, spacing: Floats) -> Bools:
    """Which of the points, one after the other, keep their distance from all chosen before."""
    cells: dict[tuple[int, int], list[tuple[float, float]]] = {}
    size = float(spacing.max(initial=1))
    chosen = np.zeros(len(points), bool)
    for i, ((y, x), limit) in enumerate(zip(points.tolist(), spacing.tolist(), strict=True)):
        row, column = int(y / size), int(x / size)
        around = [cells.get((r, c), ()) for r in (row - 1, row, row + 1) for c in (column - 1, column, column + 1)]
        if all((a - y) ** 2 + (b - x) ** 2 >= limit * limit for near in around for a, b in near):
            cells.setdefault((row, column), []).append((y, x))
            chosen[i] = True
    return chosen


@dataclass
class _Blobs:
    """Ellipses with uneven outlines: nuclei, vacuoles, whole glands."""

    points: Floats  # (n, 2) y, x
    axes: Floats  # (n, 2) half the length, half the width
    angle: Floats  # (n,) of the long axis to the x axis
    wobble: NDArray[np.complex128]  # (n, 4): amplitude and phase of the outline's waves, 2 to 5 round the blob

    def __len__(self) -> int:
        return len(self.points)

    def stamp(self, shape: tuple[int, int]) -> tuple[Ints, Ints, Floats]:
        """Which blob covers which pixel: blobs (p,), pixels (p,), and how far out it lies, 0 to 1, (p,).

        In order of the blobs. A pixel under several comes several times.
        """
        largest = 1 + np.abs(self.wobble).sum(1)
        reach = int(np.ceil((self.axes[:, 0] * largest).max(initial=0)))
        offset = np.arange(-reach, reach + 1)
        centre = np.rint(self.points).astype(np.int64)
        rest = centre - self.points
        dy = (offset + rest[:, :1])[:, :, None]
        dx = (offset + rest[:, 1:])[:, None, :]
        cos, sin = np.cos(self.angle)[:, None, None], np.sin(self.angle)[:, None, None]
        u = (cos * dx + sin * dy) / self.axes[:, 0, None, None]
        v = (cos * dy - sin * dx) / self.axes[:, 1, None, None]
        squared = u * u + v * v
        blob, i, j = np.nonzero(squared < largest[:, None, None] ** 2)
        y, x = centre[blob, 0] + i - reach, centre[blob, 1] + j - reach
        radius = np.sqrt(squared[blob, i, j]) + 1e-9
        turn = power = (u[blob, i, j] + 1j * v[blob, i, j]) / radius
        outline = np.ones(len(blob))
        for k in range(self.wobble.shape[1]):
            power = power * turn
            outline += (self.wobble[blob, k] * power).real
        radius /= np.maximum(outline, 0.3)
        keep = (radius < 1) & (y >= 0) & (x >= 0) & (y < shape[0]) & (x < shape[1])
        return blob[keep], (y * shape[1] + x)[keep], radius[keep]


def _blobs(rng: Random, points: Floats, axes: Sequence[Floats], angle: Floats, uneven: Floats | float) -> _Blobs:
    """Blobs with random outlines; ``uneven`` is the size of their waves."""
    n = len(points)
    size = np.broadcast_to(uneven, n)[:, None] * rng.rayleigh(1, (n, 4)) / np.array([2, 2, 3, 4])
    return _Blobs(points, np.stack(axes, 1), angle, size * np.exp(2j * math.pi * rng.uniform(0, 1, (n, 4))))


# --- architecture -----------------------------------------------------------------------------------------------------


@dataclass
class _Plan:
    """Where what is, before any nucleus: all (H, W)."""

    glands: NDArray[np.int32]
    tumour: Bools
    lumen: Bools
    vacuole: Bools
    depth: Floats  # from the rim of gland or tumour
    apical: Floats  # to the next lumen


def _nests(rng: Random, shape: tuple[int, int], share: float) -> Bools:
    """A tumour that grows in from one side, in nests and glands, and covers about ``share`` of the picture."""
    if share == 0:
        return np.zeros(shape, bool)
    direction = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[: shape[0], : shape[1]]
    ahead = np.sin(direction) * (y / shape[0] - 0.5) + np.cos(direction) * (x / shape[1] - 0.5)
    level = 1.6 * np.tanh(5 * ahead) + _noise(rng, shape, rng.uniform(26, 46)) + 0.1 * _noise(rng, shape, 7)
    labels, n = ndimage.label(level >= np.quantile(level, 1 - share))
    large = np.bincount(labels.ravel(), minlength=n + 1) >= 300
    large[0] = False
    return np.asarray(large[labels], bool)


def _normal_glands(rng: Random, shape: tuple[int, int], tumour: Bools) -> _Blobs:
    """The outlines of the normal glands, each as large as its neighbours and the tumour leave room."""
    spacing = rng.uniform(84, 132)
    points = _scatter(rng, shape, spacing, 0.2)
    points = points[rng.uniform(0, 1, len(points)) < rng.uniform(0.6, 1)]
    coarse = _depth(~tumour[::4, ::4]) * 4
    between = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)) + 1e3 * np.eye(len(points))
    room = np.minimum(_at(coarse, points / 4) - 9, np.minimum(between.min(1, initial=1e3) * 0.5, spacing * 0.55))
    points, room = points[room > 18], room[room > 18]
    n = len(points)
    length = room * rng.uniform(0.78, 0.97, n)
    axes = (length, length * rng.uniform(0.66, 0.98, n))
    return _blobs(rng, points, axes, rng.uniform(0, math.pi, n), 0.05)


def _plan(rng: Random, shape: tuple[int, int], tumour: Bools) -> _Plan:
    """Lay out the glands, the tumour and their lumina."""
    outlines = _normal_glands(rng, shape, tumour)
    n = len(outlines)
    blob, pixel, radius = outlines.stamp(shape)
    glands = np.zeros(shape, np.int32)
    glands.flat[pixel] = blob + 1
    glands[tumour] = 0
    depth = _depth((glands > 0) | tumour)
    hollow = rng.uniform(0.1, 0.5, n)
    lumen = np.zeros(shape, bool)
    lumen.flat[pixel[radius < hollow[blob]]] = True
    lumen &= glands > 0
    # Goblet cells: pale vacuoles between the nuclei and the lumen.
    vacuole = np.zeros(shape, bool)
    spots = _scatter(rng, shape, 11.2, 0.14)
    spots = spots[(_at(glands, spots) > 0) & (_at(depth, spots) > 14.5)]
    own = _at(glands, spots).astype(np.int64) - 1
    mucin = rng.uniform(0, 1, n) * rng.uniform(0.2, 1.6)
    goblet = rng.uniform(0, 1, len(spots)) < mucin[own]
    spots, own = spots[goblet], own[goblet]
    away = spots - outlines.points[own]
    m = len(spots)
    axes = (rng.uniform(5, 7.4, m), rng.uniform(3.8, 5.4, m))
    vacuole.flat[_blobs(rng, spots, axes, np.arctan2(*away.T), 0.05).stamp(shape)[1]] = True
    vacuole &= (glands > 0) & ~lumen & (depth > 9)
    # The tumour's lumina follow its outline, more or less; and small holes through its sheets.
    ragged = 0.25 * _noise(rng, shape, 6)
    hollow_out = _noise(rng, shape, rng.uniform(14, 22)) + ragged > rng.uniform(0.5, 1.6)
    lumen |= tumour & hollow_out & (depth > 14 + 4 * ragged)
    holes = _scatter(rng, shape, rng.uniform(24, 40), 0.3)
    holes = holes[(_at(tumour, holes) > 0) & (_at(depth, holes) > 11) & (rng.uniform(0, 1, len(holes)) < 0.3)]
    m = len(holes)
    width = rng.uniform(1.8, 5, m)
    pixel = _blobs(rng, holes, (width * rng.uniform(1, 1.6, m), width), rng.uniform(0, 3, m), 0.14).stamp(shape)[1]
    lumen.flat[pixel] |= tumour.flat[pixel]
    return _Plan(glands, tumour, lumen, vacuole, depth, _depth(~lumen))


# --- nuclei -----------------------------------------------------------------------------------------------------------


@dataclass
class _Nuclei:
    """Nuclei of one kind, and how they look."""

    kind: int
    blobs: _Blobs
    dark: Floats  # (n,) density of hematoxylin
    pale: Floats  # (n,) how much paler the middle is than the rim, 0 to 1
    clumped: float  # how uneven the chromatin is
    allowed: Bools  # (H, W) where they may lie


def _inwards(depth: Floats, points: Floats) -> Floats:
    """(n,) the direction in which it gets deeper, at points."""
    slope = np.gradient(ndimage.gaussian_filter(depth, 2.0))
    return np.arctan2(_at(slope[0], points), _at(slope[1], points))


def _basal(rng: Random, plan: _Plan, atypia: Floats) -> _Nuclei:
    """The nuclei of the normal glands: at the base of the cells, side by side, pointing at the lumen.

    Args:
        rng: of the numbers.
        plan: of the field.
        atypia: (m + 1,) 0 to 1, how much a gland's nuclei are like those of a tumour without being of one, as in
            inflammation; the first is for no gland.
    """
    spots = _scatter(rng, plan.glands.shape, 4.6, 0.4)
    spots = spots[_at(plan.glands, spots) > 0]
    strange = atypia[_at(plan.glands, spots).astype(np.int64)]
    at = _at(plan.depth, spots)
    keep = (at > 4) & (at < 7.6 + 9 * strange) & (_at(plan.apical, spots) > 5)
    spots, strange = spots[keep], strange[keep]
    keep = _apart(spots, 7.2 + 1.2 * strange)
    spots, strange = spots[keep], strange[keep]
    n = len(spots)
    angle = _inwards(plan.depth, spots) + rng.normal(0, 0.2, n)
    length = rng.normal(6.0, 0.5, n) * (1 + 0.25 * strange)
    width = np.clip(rng.normal(4.0, 0.4, n), 2.6, None) * (1 + 0.2 * strange)
    blobs = _blobs(rng, spots, (length, width), angle, 0.03 + 0.03 * strange)
    pale = np.clip(rng.uniform(0.1, 0.6, n) + 0.2 * strange, 0, 0.8)
    return _Nuclei(EPITHELIAL, blobs, rng.normal(0.46, 0.07, n), pale, 0.2, (plan.glands > 0) & ~plan.lumen)


def _malignant(rng: Random, plan: _Plan, grade: float) -> _Nuclei:
    """The nuclei of the tumour: crowded, large, uneven in size and outline, in several rows.

    Args:
        rng: of the numbers.
        plan: of the field.
        grade: 0 to 1, how far they are from normal ones.
    """
    spots = _scatter(rng, plan.tumour.shape, rng.uniform(10.4, 12.4) + 1.2 * grade, 0.3)
    room = (_at(plan.tumour, spots) > 0) & (_at(plan.depth, spots) > 3.5)
    spots = spots[room & (_at(plan.apical, spots) > rng.uniform(4.5, 8))]
    n = len(spots)
    swirl = 4 * _noise(rng, plan.tumour.shape, 18)  # where a sheet is too wide to have an inwards
    angle = _inwards(plan.depth + swirl, spots) + rng.normal(0, 0.2 + 0.5 * grade, n)
    size = np.exp(rng.normal(0, 0.1 + 0.15 * grade, n))
    length = np.clip((7.6 + 0.4 * grade) * size * np.exp(rng.normal(0, 0.1, n)), 3.5, 12)
    width = np.clip((4.4 + 1.2 * grade) * size * np.exp(rng.normal(0, 0.1, n)), 2.8, 9)
    blobs = _blobs(rng, spots, (length, width), angle, 0.05 + 0.06 * grade)
    dark = np.clip(rng.normal(0.42, 0.08 + 0.04 * grade, n), 0.25, 0.8)
    return _Nuclei(TUMOUR, blobs, dark, rng.uniform(0.1, 0.65 + 0.3 * grade, n), 0.3, plan.tumour & ~plan.lumen)


def _lymphocytes(rng: Random, stroma: Bools, crowd: float) -> _Nuclei:
    """Small, round, dark: strewn over the stroma, and in crowds."""
    density = 0.04 + crowd * np.clip(_noise(rng, stroma.shape, 30) - 0.2, 0, 1)
    spots = _scatter(rng, stroma.shape, 9, 0.3)
    spots = spots[(_at(stroma, spots) > 0) & (rng.uniform(0, 1, len(spots)) < _at(density, spots))]
    n = len(spots)
    radius = np.clip(rng.normal(3.7, 0.4, n), 2.7, 5)
    blobs = _blobs(rng, spots, (radius * rng.uniform(1, 1.4, n), radius), rng.uniform(0, math.pi, n), 0.05)
    return _Nuclei(LYMPHOCYTE, blobs, rng.normal(0.57, 0.09, n), rng.uniform(0, 0.3, n), 0.25, stroma)


def _fibroblasts(rng: Random, stroma: Bools, along: Floats) -> _Nuclei:
    """Thin, along the fibres."""
    spots = _scatter(rng, stroma.shape, 19, 0.4)
    spots = spots[(_at(stroma, spots) > 0) & (rng.uniform(0, 1, len(spots)) < rng.uniform(0.3, 0.75))]
    n = len(spots)
    axes = (rng.uniform(5, 9.5, n), rng.uniform(1.8, 3, n))
    blobs = _blobs(rng, spots, axes, _at(along, spots) + rng.normal(0, 0.15, n), 0.05)
    return _Nuclei(FIBROBLAST, blobs, rng.normal(0.4, 0.07, n), rng.uniform(0, 0.3, n), 0.15, stroma)


def _nucleoli(rng: Random, nuclei: _Nuclei) -> _Blobs:
    """One or two dark dots in the paler ones of the nuclei."""
    n = len(nuclei.blobs)
    own = np.repeat(np.arange(n), np.where(nuclei.pale > 0.3, rng.integers(1, 3, n), 0))
    radius = rng.uniform(1.2, 2, len(own))
    points = nuclei.blobs.points[own] + rng.normal(0, 0.28, (len(own), 2)) * nuclei.blobs.axes[own, 1:]
    return _blobs(rng, points, (radius, radius), np.zeros(len(own)), 0.0)


# --- the whole --------------------------------------------------------------------------------------------------------


@dataclass
class _Tissue:
    """A field before it is stained: densities and masks, all (H, W)."""

    hematoxylin: Floats
    eosin: Floats
    nuclei: NDArray[np.int32]
    kinds: Ints
    glands: NDArray[np.int32]
    tumour: Bools
    lumen: Bools

    def structures(self) -> dict[str, Tensor]:
        """As those of the :class:`Field`."""
        parts = (self.nuclei, self.kinds, self.glands, self.tumour, self.lumen)
        return _structures(*(torch.from_numpy(part) for part in parts))


def _fibres(rng: Random, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """The fibres of the stroma, values about 0, and the direction (H, W) in which they run.

    They follow the level lines of a smooth function, as contour lines do a slope.
    """
    tilt = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[: shape[0], : shape[1]]
    lay = 38 * _noise(rng, shape, 70) + 5 * _noise(rng, shape, 16) + np.cos(tilt) * y + np.sin(tilt) * x
    slope = np.gradient(lay)
    strands = np.zeros(shape)
    for width, weight in ((7.0, 0.9), (2.6, 0.5)):
        line = np.arange(lay.min() - width, lay.max() + width, width / 2)
        values = ndimage.gaussian_filter1d(rng.standard_normal(len(line)), 1.0) / 0.53
        strands += weight * np.interp(lay, line, values)
    return strands, np.arctan2(slope[0], slope[1]) + math.pi / 2


def _grow(rng: Random, tumour: Bools) -> _Tissue:
    """The field without its margin, and all that grows in it.

    Args:
        rng: of the numbers.
        tumour: (H, W) with the margin.
    """
    shape = (tumour.shape[0], tumour.shape[1])
    plan = _plan(rng, shape, tumour)
    epithelium = (plan.glands > 0) | plan.tumour
    stroma = ~epithelium
    strands, along = _fibres(rng, shape)
    fine, grain, patchy = _noise(rng, shape, 3.2), _noise(rng, shape, 1.5), _noise(rng, shape, 22)
    fibre = strands + 0.45 * fine + 0.6 * patchy
    # Slits between the fibres, and where the epithelium has shrunk from the stroma.
    around = ndimage.gaussian_filter(epithelium.astype(np.float64), 2.5)
    shrunk = np.clip(6 * np.minimum(around - 0.05, 0.5 - around), 0, 1) * np.clip(_noise(rng, shape, 18) - 0.6, 0, 1)
    tight = fibre + 2.6 - rng.uniform(0.4, 1.6) - 4.5 * shrunk
    filled = 1 / (1 + np.exp(-4 * tight))
    membrane = np.clip(6 * np.minimum(around - 0.25, 0.5 - around), 0, 1)
    eosin = (0.195 + 0.062 * fibre + 0.025 * grain + 0.04 * membrane) * filled
    hematoxylin = (0.035 + 0.01 * fibre + 0.025 * patchy + 0.015 * grain) * filled
    # Cytoplasm: bluer at the base of the cells, pinker towards the lumen.
    base = np.exp(-plan.depth / 9)
    eosin = np.where(epithelium, 0.2 - 0.03 * base + 0.045 * patchy + 0.04 * fine + 0.02 * grain, eosin)
    hematoxylin = np.where(epithelium, 0.088 + 0.05 * base + 0.025 * patchy + 0.02 * fine + 0.014 * grain, hematoxylin)
    debris = np.clip(_noise(rng, shape, 5) + 0.7 * patchy - 1.3, 0, 1)
    for clear, pink, blue in (
        (plan.vacuole, 0.05 + 0.015 * fine, 0.045 + 0.012 * fine),
        (plan.lumen, 0.012 + 0.2 * debris, 0.012 + 0.1 * debris),
    ):
        share = ndimage.gaussian_filter(clear.astype(np.float64), 0.6)
        eosin += (pink - eosin) * share
        hematoxylin += (blue - hematoxylin) * share
    # Nuclei, the later over the earlier.
    atypia = rng.uniform(0, 1, int(plan.glands.max()) + 1) ** 3
    groups = (
        _fibroblasts(rng, stroma, along),
        _lymphocytes(rng, stroma, rng.uniform(0.05, 1.1)),
        _basal(rng, plan, atypia),
        _malignant(rng, plan, float(rng.uniform(0, 1))),
    )
    nuclei = np.zeros(shape, np.int32)
    density = np.zeros(shape)
    last = 0
    for group in groups:
        blob, pixel, radius = group.blobs.stamp(shape)
        keep = group.allowed.flat[pixel]
        blob, pixel, radius = blob[keep], pixel[keep], radius[keep]
        nuclei.flat[pixel] = blob + last + 1
        last += len(group.blobs)
        rim = np.clip((1 - radius) * group.blobs.axes[blob, 1] / 1.2 + 0.35, 0, 1)
        middle = np.clip(2.5 * (0.9 - radius), 0, 1)
        chromatin = 1 + group.clumped * (0.7 * grain.flat[pixel] + 0.4 * fine.flat[pixel])
        dark = group.dark[blob] * (1 - 0.75 * group.pale[blob] * middle) * rim * chromatin
        np.maximum.at(density.reshape(-1), pixel, dark)
    for group in groups[2:]:
        _, pixel, radius = _nucleoli(rng, group).stamp(shape)
        inside = nuclei.flat[pixel] > 0
        density.flat[pixel[inside]] += 0.28 * np.clip(1.3 * (1 - radius[inside]), 0, 1)
    hematoxylin = np.maximum(hematoxylin, density) + 0.15 * density
    eosin = np.where(nuclei > 0, 0.9 * eosin + 0.05, eosin)
    kinds = np.repeat([group.kind for group in groups], [len(group.blobs) for group in groups])
    labels, kinds = _numbered(nuclei[_CUT], kinds, SMALLEST)
    glands, _ = _numbered(plan.glands[_CUT], np.zeros(int(plan.glands.max()), np.int64), 1)
    return _Tissue(
        np.clip(hematoxylin[_CUT], 0, None),
        np.clip(eosin[_CUT], 0, None),
        labels,
        kinds,
        glands,
        plan.tumour[_CUT].copy(),
        plan.lumen[_CUT].copy(),
    )


def _numbered(labels: NDArray[np.int32], kinds: Ints, least: int) -> tuple[NDArray[np.int32], Ints]:
    """Labels 1 to n without gaps, of those with ``least`` pixels or more, and the kinds of these."""
    keep = np.bincount(labels.ravel(), minlength=len(kinds) + 1) >= least
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(np.int32)[labels], kinds[keep[1:]]


def _light(hematoxylin: Floats, eosin: Floats, stain: Stain) -> Floats:
    """(3, H, W): the share of red, green and blue light that gets through densities (H, W)."""
    blue, pink = (np.array(dye)[:, None, None] for dye in (stain.hematoxylin, stain.eosin))
    light: Floats = 10.0 ** -(blue * (stain.strength[0] * hematoxylin) + pink * (stain.strength[1] * eosin))
    return light


def _scanned(rng: Random, light: Floats, stain: Stain) -> Tensor:
    """The picture (3, H, W) uint8 of the light that gets through."""
    levels = ndimage.gaussian_filter(WHITE * light, (0, stain.blur, stain.blur), mode="nearest")
    levels += rng.normal(0, stain.noise, levels.shape)
    return torch.from_numpy(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def _colour(light: Floats) -> Floats:
    """(2, C): mean and standard deviation of C colours (C, H, W)."""
    return np.stack([light.mean((1, 2)), light.std((1, 2))])


def _balanced(hematoxylin: Floats, eosin: Floats, stain: Stain, mean: Floats, spread: Floats) -> Floats:
    """The light (3, H, W), the densities having been changed until red and green are as told.

    Each dye is multiplied with a number, which sets the mean of one colour, and raised to a power, which sets the
    spread; red answers for hematoxylin, green for eosin.

    Args:
        hematoxylin: (H, W).
        eosin: (H, W).
        stain: of the patch.
        mean: (2,) of red and green, 0 to 1.
        spread: (2,) their standard deviations.
    """
    gain, power = np.ones(2), np.ones(2)
    densities = np.stack([hematoxylin, eosin]) + 1e-4
    scale = densities.mean((1, 2), keepdims=True)
    for _ in range(BALANCING):
        now = scale * gain[:, None, None] * (densities / scale) ** power[:, None, None]
        light = _light(now[0], now[1], stain)
        gain *= np.log(mean) / np.log(light[:2].mean((1, 2)))
        power = np.clip(power * np.sqrt(spread / light[:2].std((1, 2))), 0.75, 1.33)
    return light


def patches(count: int, size: int = 96, seed: int = 0) -> Patches:
    """Generate patches, half of them with tumour.

    Label 1 says that at least :data:`SHARE` of the patch is tumour, label 0 that none of it is; nothing between is
    drawn. Eight of them, four with tumour and four without, are cut from a field of their own and share its stain:
    these are a patient. Colour does not tell the label: one with and one without, of much the same colours as they are,
    make a pair, and the dyes of both are brought to where mean and spread of red and green are halfway between them.
    What tells the label is the shape and order of nuclei and glands. Patches 0 and 1 are the first pair, and so on.

    Args:
        count: how many. The first ones are the same whatever the count.
        size: of their sides in pixels.
        seed: same seed, same pixels. The global random state is not touched.

    Raises:
        ValueError: for a count below 1, a size below 48, or one so large, from some 300 pixels on, that a tumour hardly
            ever leaves room for patches without it.
    """
    if count < 1:
        raise ValueError(f"count = {count} is not a number of patches: give 1 or more")
    if size < 48:
        raise ValueError(f"size = {size} has no room for a gland: give 48 pixels or more")
    images: list[Tensor] = []
    masks: dict[str, list[Tensor]] = {name: [] for name in STRUCTURES}
    patients = -(-count // PER_PATIENT)
    for patient in range(patients):
        rng = np.random.default_rng([seed, patient])
        stain = draw_stain(rng)
        tissue = _grow(rng, _bordered(rng, size))
        structures = tissue.structures()
        light = _light(tissue.hematoxylin, tissue.eosin, stain)
        for pair in _pairs(rng, light[:2], tissue.tumour, size):
            windows = [(slice(y, y + size), slice(x, x + size)) for y, x in pair]
            colours = np.mean([_colour(light[:2, *window]) for window in windows], 0)
            for window in windows:
                balanced = _balanced(tissue.hematoxylin[window], tissue.eosin[window], stain, colours[0], colours[1])
                images.append(_scanned(rng, balanced, stain))
                for name, mask in structures.items():
                    masks[name].append(mask[window].clone())  # the field itself need not stay
    return Patches(
        torch.stack(images[:count]),
        torch.arange(count) % 2,
        torch.arange(patients).repeat_interleave(PER_PATIENT)[:count],
        {name: torch.stack(mask[:count]) for name, mask in masks.items()},
        [f"tissue-{seed}-{i}" for i in range(count)],
        MPP,
    )


def _shares(mask: Bools, size: int) -> tuple[Ints, Floats]:
    """Where windows may start, in both directions, and how much of each window is in the mask."""
    starts = np.arange(0, mask.shape[0] - size + 1, max(1, size // 12))
    return starts, _window_means(mask.astype(np.float64), starts, size)


def _window_means(values: Floats, starts: Ints, size: int) -> Floats:
    """(n, n) the means of the values (H, W) in square windows that start at ``starts``."""
    total = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows = total[starts + size] - total[starts]
    means: Floats = (rows[:, starts + size] - rows[:, starts]) / size**2
    return means


def _bordered(rng: Random, size: int) -> Bools:
    """Where the tumour of a patient grows, with the margin: room for patches with and without."""
    side = 4 * size + 2 * MARGIN
    for _ in range(TRIES):
        tumour = _nests(rng, (side, side), float(rng.uniform(0.3, 0.45)))
        _, share = _shares(tumour[_CUT], size)
        if min((share == 0).sum(), (share >= SHARE).sum()) > TAKEN:
            return tumour
    raise ValueError(f"size = {size}: {TRIES} tumours left no room for patches without any; give less, or use field()")


def _pairs(rng: Random, light: Floats, tumour: Bools, size: int) -> list[list[tuple[int, int]]]:
    """Where to cut a patient's patches, y and x: one without tumour, and one with tumour of much the same colours."""
    starts, share = _shares(tumour, size)
    means = [_window_means(one, starts, size) for one in light]
    spreads = [np.sqrt(_window_means(one**2, starts, size) - mean**2) for one, mean in zip(light, means, strict=True)]
    colours = np.stack([*means, *spreads], -1).reshape(-1, 4)
    places = np.stack(np.meshgrid(starts, starts, indexing="ij"), -1).reshape(-1, 2)
    free = np.stack([share.ravel() == 0, share.ravel() >= SHARE])
    pairs = []
    for _ in range(PER_PATIENT // 2):
        with_tumour = rng.permutation(np.flatnonzero(free[1]))[:8]
        without = np.flatnonzero(free[0])
        apart = np.abs(colours[with_tumour, None] - colours[None, without]).sum(-1)
        one, other = np.unravel_index(apart.argmin(), apart.shape)
        chosen = places[without[other]], places[with_tumour[one]]
        pairs.append([(int(y), int(x)) for y, x in chosen])
        for label in (0, 1):
            free[label] &= np.abs(places - chosen[label]).max(1) >= size // 3
    return pairs


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
        region = tumour.cpu().numpy()
    else:
        region = 0.35 if tumour is None else float(tumour)
        if not 0 <= region <= 1:
            raise ValueError(f"tumour = {tumour} is not a share: give 0 to 1, or a mask")
    rng = np.random.default_rng(seed)
    own = draw_stain(rng)
    stain = stain or own
    shape = (height + 2 * MARGIN, width + 2 * MARGIN)
    grown = np.pad(region, MARGIN, mode="edge") if isinstance(region, np.ndarray) else _nests(rng, shape, region)
    tissue = _grow(rng, grown)
    image = _scanned(rng, _light(tissue.hematoxylin, tissue.eosin, stain), stain)
    return Field(
        image,
        torch.from_numpy(tissue.nuclei),
        torch.from_numpy(tissue.kinds),
        torch.from_numpy(tissue.glands),
        torch.from_numpy(tissue.tumour),
        torch.from_numpy(tissue.lumen),
        stain,
    )
