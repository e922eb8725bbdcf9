"""Maps and photographs as an explorer stores them: small enough for a page, with the colours of the book's figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Normalize
from numpy.typing import NDArray
from PIL import Image

from smoothsal_lib import plot
from smoothsal_lib.widgets.explorer import Explorer, packed

COLOURS = 256
SMALLEST_SIDE = 32  # pixels of a map's shorter side below which it is not made smaller
LARGEST_PHOTO = 256  # pixels a side
PHOTO_QUALITY = 80  # of a JPEG
COVER = 0.9  # how much of the photograph the strongest colour covers

COLOUR_MAPS = {
    "signed": plot.SIGNED,
    "magnitude": plot.UNSIGNED,
    "over, signed": plot.SIGNED,
    "over, magnitude": plot.OVERLAID,
    "spectrum": plot.SPECTRAL,
}


@dataclass(frozen=True)
class Detail:
    """How exactly maps are stored.

    Attributes:
        colours: how many a map may have.
        factor: a stored pixel is the mean of ``factor`` x ``factor`` of them.
    """

    colours: int = COLOURS
    factor: int = 1

    def __str__(self) -> str:
        """What to say of it below the maps; nothing where they are all there."""
        pixels = f"a pixel is the mean of up to {self.factor} × {self.factor}" if self.factor > 1 else ""
        colours = f"drawn in {self.colours} colours" if self.colours < COLOURS else ""
        parts = [part for part in (colours, pixels) if part]
        return f"to be stored with the page: {', '.join(parts)}" if parts else ""


@dataclass(frozen=True)
class Shades:
    """A map before it has its colours.

    Attributes:
        values: (H, W).
        limit: the magnitude of the strongest colour.
        colours: a name of :data:`COLOUR_MAPS`; what has "signed" in it is centred at 0.
    """

    values: NDArray[Any]
    limit: float
    colours: str

    def levels(self, detail: Detail) -> NDArray[np.uint8]:
        """(h, w) the number of each pixel's colour, from 0 to 255."""
        image = Image.fromarray(self.values.astype(np.float32))
        factor = min(detail.factor, largest_factor(self.values.shape))
        values = np.asarray(image if factor == 1 else image.reduce(factor), dtype=np.float64)
        low = -self.limit if "signed" in self.colours else 0.0
        shares = np.asarray(Normalize(low, self.limit)(values))
        step = COLOURS // detail.colours
        numbers = np.floor(shares * COLOURS) if step == 1 else step * np.round(shares * detail.colours)  # 0 stays 0
        return np.clip(numbers, 0, COLOURS - 1).astype(np.uint8)


def largest_factor(shape: tuple[int, ...]) -> int:
    """By how much a picture of (H, W, ...) may be made smaller."""
    return max(1, min(shape[:2]) // SMALLEST_SIDE)


def lut(name: str) -> NDArray[np.uint8]:
    """(256, 4) the colours of a name of :data:`COLOUR_MAPS`; over a photograph, what is weak lets it shine through."""
    shares = np.linspace(0, 1, COLOURS)
    colours = mpl.colormaps[COLOUR_MAPS[name]](shares, bytes=True)
    if name.startswith("over"):
        strength = np.abs(2 * shares - 1) if "signed" in name else shares
        colours[:, 3] = np.round(255 * COVER * strength)
    return np.asarray(colours)


@dataclass
class Store:
    """The bytes of many maps, one after the other, equal ones once; and the colours that they need."""

    detail: Detail = Detail()
    luts: dict[str, str] = field(default_factory=dict)
    _parts: list[NDArray[np.uint8]] = field(default_factory=list)
    _starts: dict[tuple[tuple[int, ...], bytes], int] = field(default_factory=dict)

    def put(self, shades: Shades, small: bool = True) -> list[Any]:
        """Keep a map: [width, height, where its bytes begin, name of its colours], as ``choices.js`` reads it.

        Args:
            shades: the map.
            small: whether it may be stored with fewer pixels.
        """
        levels = shades.levels(self.detail if small else Detail(self.detail.colours))
        key = (levels.shape, levels.tobytes())
        if key not in self._starts:
            self._starts[key] = sum(part.size for part in self._parts)
            self._parts.append(levels.ravel())
        if shades.colours not in self.luts:
            self.luts[shades.colours] = packed(lut(shades.colours))
        return [levels.shape[1], levels.shape[0], self._starts[key], shades.colours]

    @property
    def bytes(self) -> str | None:
        """All maps, packed."""
        return packed(np.concatenate(self._parts)) if self._parts else None


def details(most: int) -> list[Detail]:
    """From everything to little. Colours go before pixels: the mean of 2 x 2 pixels has no checkerboard.

    Args:
        most: the largest factor, :func:`largest_factor` of the largest map.
    """
    fewest = 32
    return [Detail(), Detail(64), Detail(fewest), *(Detail(fewest, factor) for factor in range(2, most + 1))]


def fitting(build: Callable[[Detail], Explorer], most: int) -> Explorer | None:
    """The first explorer that has at most ``SIZE_LIMIT`` bytes, of those made with less and less detail; or none."""
    return next((one for one in map(build, details(most)) if one.fits), None)


def pale_photograph(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A photograph (H, W, 3) as large as an explorer shows it, and as :func:`smoothsal_lib.plot.overlay` pales it.

    Raises:
        ValueError: for anything else than (H, W, 3) uint8.
    """
    if getattr(photo, "dtype", None) != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        what = getattr(photo, "shape", type(photo).__name__)
        raise ValueError(f"expected the photograph as (H, W, 3) uint8, got {what}")
    image = Image.fromarray(photo)
    image.thumbnail((LARGEST_PHOTO, LARGEST_PHOTO))
    return np.asarray(np.round(255 * plot._pale(np.asarray(image))[..., 0]), dtype=np.uint8)
