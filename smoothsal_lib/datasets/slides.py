"""Whole slides: read from disk or over HTTP, cut into tiles where there is tissue, with the pathologists' outlines.

    with open_slide("https://.../tumor_001.tif") as slide:
        grid = tile_grid(slide, 512, overlap=128, mpp=0.62, mask=tissue_mask(slide), stride=16)
        pictures = (slide.read(tile.x, tile.y, grid.size, mpp=grid.mpp) for tile in grid.tiles)

Made for Camelyon16 (Ehteshami Bejnordi et al. 2017, doi 10.1001/jama.2017.14585): pyramidal TIFFs of some 100,000
pixels a side, with outlines of the metastases as ASAP writes them. Needs the extra ``slides``. Whatever is read is
small, however large the slide.

Coordinates: x runs to the right and y down, both in pixels of level 0, the finest; the first pixel reaches from 0 to 1.
"""

from __future__ import annotations

import http.client
import math
import shutil
import time
import urllib.error
import urllib.request
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.filters import threshold_otsu
from skimage.morphology import closing, disk
from torch import Tensor

from smoothsal_lib.datasets.patches import Patches
from smoothsal_lib.nuclei import without_specks

MPP = 0.62  # micrometres a pixel, what the detectors of this library were trained at
WHITE = 255  # what lies outside of a slide
FINEST = 0.99  # how much finer than level 0 a resolution may be asked for
UNEQUAL = 0.02  # how much a pixel's width and height may differ
TUMOUR_GROUPS = ("Tumor", "_0", "_1", "metastases")  # Camelyon16 names the first three, Camelyon17 the last
HOLE_GROUPS = ("_2", "Exclusion", "normal")
LEAST_CHROMA, SURE_CHROMA = (
    0.04,
    0.12,
)  # below the first there is no tissue, from the second on there is, whatever Otsu says
SPECK = 16  # pixels of a tissue mask: smaller parts are dust, smaller holes are closed
BLOCK = 2048  # pixels a side that are decoded at once
SMALLEST_BLOCK = 128  # of pixels around damage that are given up at once
OUTLINED = ("Polygon", "Spline", "Rectangle")
JPEG = 7  # TIFF's number of that compression
REMOTE_BLOCK, REMOTE_BLOCKS = 2**18, 64  # bytes of one request, and how many such blocks are kept
TRIES, PAUSE = 3, 0.5  # of a request that fails, and seconds before the next

Picture = NDArray[np.uint8]
Polygons = Mapping[str, Sequence[NDArray[np.float64]]]


class DamagedTileError(ValueError):
    """A part of a slide cannot be decoded: the file is truncated or corrupt there. The rest can still be read."""


class Slide:
    """A whole slide, opened by :func:`open_slide`. Close it, or use it in a ``with`` block.

    Attributes:
        name: the last part of its path or address.
        dimensions: (width, height) of level 0 in pixels.
        levels: (width, height) of every level, the finest first.
        downsamples: pixels of level 0 along one pixel of each level.
        mpp: micrometres along a pixel of level 0; ``None`` where the file does not say.
    """

    def __init__(self, raw: Any, name: str, mpp: float | None, remote: bool) -> None:
        self._raw, self._remote = raw, remote
        self.name = name
        self.dimensions: tuple[int, int] = raw.dimensions
        self.levels: tuple[tuple[int, int], ...] = raw.level_dimensions
        self.downsamples = tuple(
            _whole(float(given), size, self.dimensions)
            for given, size in zip(raw.level_downsamples, self.levels, strict=True)
        )
        self.mpp = mpp

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._raw.close()

    def scale(self, mpp: float | None) -> float:
        """Pixels of level 0 along one pixel at this resolution; ``None`` means level 0 itself.

        Raises:
            ValueError: for a resolution that is no positive number, or finer than the slide's; for a slide that does
                not say its own.
        """
        level, factor = self._at(mpp)
        return self.downsamples[level] * factor

    def read(
        self, x: float, y: float, size: int | tuple[int, int], level: int | None = None, mpp: float | None = None
    ) -> Tensor:
        """A rectangle of the slide.

        At a resolution between two levels the finer one is read and reduced (bilinearly, with antialiasing). Every
        pixel then depends on its place on the slide alone, so that neighbouring rectangles fit together.

        Args:
            x: the left edge, in pixels of level 0.
            y: the upper edge, likewise.
            size: of the result in pixels: of a side, or (H, W).
            level: read this level; the corner is rounded to its pixels.
            mpp: or read at this resolution, in micrometres a pixel. Without either, level 0.

        Returns:
            (3, H, W) uint8, RGB; white outside of the slide.

        Raises:
            DamagedTileError: when the file is truncated or corrupt there.
            ConnectionError: when a server fails, after some tries.
            ValueError: for a size below 1, a corner that is no number, a level that the slide does not have, a level
                and a resolution, or as :meth:`scale`.
        """
        height, width = size if isinstance(size, tuple) else (size, size)
        if min(height, width) < 1:
            raise ValueError(f"expected a size of at least 1 pixel a side, got {size}")
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"expected a corner (x, y) in pixels of level 0, got ({x}, {y})")
        if level is not None and mpp is not None:
            raise ValueError(f"give a level or a resolution, not both: level = {level}, mpp = {mpp}")
        chosen, factor = self._at(mpp) if level is None else (level, 1.0)
        if not 0 <= chosen < len(self.levels):
            raise ValueError(f"no level {level} in {self.name!r}: it has levels 0 to {len(self.levels) - 1}")
        return torch.from_numpy(self._resized(chosen, factor, x, y, height, width)).permute(2, 0, 1).contiguous()

    def _at(self, mpp: float | None) -> tuple[int, float]:
        """The level to read for a resolution, and by how much to reduce it."""
        if mpp is None:
            return 0, 1.0
        if not (math.isfinite(mpp) and mpp > 0):
            raise ValueError(f"mpp = {mpp} is not a positive number of micrometres a pixel")
        if self.mpp is None:
            raise ValueError(f"{self.name!r} does not say its micrometres a pixel: give them to open_slide(..., mpp=)")
        if mpp < FINEST * self.mpp:
            raise ValueError(f"{self.name!r} has {self.mpp:.4g} micrometres a pixel at best: {mpp:.4g} is finer")
        return self._reduction(mpp / self.mpp)

    def _reduction(self, scale: float) -> tuple[int, float]:
        """The coarsest level not coarser than so many pixels of level 0, and by how much to reduce it."""
        chosen, factor = 0, scale
        for level, (downsample, size) in enumerate(zip(self.downsamples, self.levels, strict=True)):
            if abs(scale / downsample - 1) * max(size) < 0.5:  # half a pixel over the whole slide: the level as it is
                return level, 1.0
            if downsample <= scale:
                chosen, factor = level, scale / downsample
        return chosen, factor

    def _resized(self, level: int, factor: float, x: float, y: float, height: int, width: int) -> Picture:
        left, top = x / self.downsamples[level], y / self.downsamples[level]
        if factor == 1:
            return self._region(level, round(left), round(top), height, width)
        rows, row_weights = _taps(top, factor, height)
        columns, column_weights = _taps(left, factor, width)
        y_0, x_0 = int(rows.min()), int(columns.min())
        region = self._region(level, x_0, y_0, int(rows.max()) - y_0 + 1, int(columns.max()) - x_0 + 1)
        tall = np.zeros((height, region.shape[1], 3))
        for k in range(rows.shape[1]):
            tall += row_weights[:, k, None, None] * region[rows[:, k] - y_0]
        reduced = np.zeros((height, width, 3))
        for k in range(columns.shape[1]):
            reduced += column_weights[:, k, None] * tall[:, columns[:, k] - x_0]
        # Halves are frequent; without the nudge, rounding errors would decide which way they go.
        return np.floor(reduced + (0.5 + 1e-6)).astype(np.uint8)

    def _region(self, level: int, x: int, y: int, height: int, width: int) -> Picture:
        """Pixels (H, W, 3) of a level, from its pixel (x, y) on."""
        canvas = np.full((height, width, 3), WHITE, np.uint8)
        x_0, y_0 = max(x, 0), max(y, 0)
        x_1, y_1 = min(x + width, self.levels[level][0]), min(y + height, self.levels[level][1])
        if x_0 < x_1 and y_0 < y_1:
            canvas[y_0 - y : y_1 - y, x_0 - x : x_1 - x] = self._retried(
                partial(self._decoded, level, x_0, y_0, x_1, y_1)
            )
        return canvas

    def _retried(self, read: Callable[[], Picture]) -> Picture:
        """What ``read`` gives; a server gets several tries."""
        for attempt in range(TRIES):
            try:
                return read()
            except (DamagedTileError, MemoryError):
                raise
            except Exception as error:  # whatever the decoder or the connection raises
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                if not (self._remote and _of_connection(error)):
                    raise DamagedTileError(f"cannot decode {self.name!r}: {reason}") from None
            time.sleep(PAUSE * 2**attempt)
        raise ConnectionError(f"the server of {self.name!r} failed {TRIES} times: {reason}")

    def _decoded(self, level: int, x_0: int, y_0: int, x_1: int, y_1: int) -> Picture:
        self._check_segments(level, x_0, y_0, x_1, y_1)
        # tiffslide takes the corner at level 0 and rounds it down to the level's pixels.
        given = self._raw.level_downsamples[level]
        corner = (math.ceil(x_0 * given), math.ceil(y_0 * given))
        found = self._raw.read_region(corner, level, (x_1 - x_0, y_1 - y_0), as_array=True, padding=False)
        return np.asarray(found[..., :3])

    def _check_segments(self, level: int, x_0: int, y_0: int, x_1: int, y_1: int) -> None:
        """Refuse tiles of the file that end too early. A JPEG decoder fills up what is missing, and does not say so."""
        if "tiffslide.series-composition" in self._raw.properties:
            return
        tiff = self._raw.ts_tifffile
        series = tiff.series[self._raw.properties["tiffslide.series-index"]]
        page = series.levels[level].pages[0]
        if not page.is_tiled or page.planarconfig != 1:
            return
        across = -(-page.imagewidth // page.tilewidth)
        for row in range(y_0 // page.tilelength, (y_1 - 1) // page.tilelength + 1):
            for column in range(x_0 // page.tilewidth, (x_1 - 1) // page.tilewidth + 1):
                index = row * across + column
                offset, count = page.dataoffsets[index], page.databytecounts[index]
                place = f"tile {index} of level {level} in {self.name!r}"
                if offset + count > tiff.filehandle.size:
                    raise DamagedTileError(f"{place} ends at byte {offset + count}, the file at {tiff.filehandle.size}")
                if page.compression == JPEG and count:
                    tiff.filehandle.seek(offset)
                    if not _whole_jpeg(tiff.filehandle.read(count)):
                        raise DamagedTileError(f"{place} is no complete JPEG picture")


def open_slide(path: str | Path, mpp: float | None = None) -> Slide:
    """Open a whole slide: a pyramidal TIFF or SVS, or what else tiffslide reads.

    From an ``http://`` or ``https://`` address, only those parts are fetched that are asked for.

    Args:
        path: of the file, or its address.
        mpp: micrometres a pixel of level 0, where the file says nothing, or wrong things.

    Raises:
        ModuleNotFoundError: without the extra ``slides``.
        FileNotFoundError: when there is no such file.
        ConnectionError: when the server cannot be reached, or fails.
        ValueError: for a file that is no slide, a server without range requests, pictures that are not 8-bit RGB, or
            pixels that are not square.
    """
    try:
        import fsspec
        import tiffslide
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{error.name} is missing: pip install "smoothsal-lib[slides]"', name=error.name
        ) from None
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise ValueError(f"mpp = {mpp} is not a positive number of micrometres a pixel")
    address = str(path)
    remote = address.startswith(("http://", "https://"))
    if remote:
        _check_server(address)
        files = fsspec.filesystem(address.split(":")[0])
        cache = {"block_size": REMOTE_BLOCK, "cache_type": "blockcache", "cache_options": {"maxblocks": REMOTE_BLOCKS}}
    elif not Path(path).is_file():
        raise FileNotFoundError(f"no slide {address!r}: give a TIFF or SVS file, or an http address")
    try:
        raw = tiffslide.TiffSlide(files.open(address, **cache) if remote else address)
        properties = raw.properties
        series = raw.ts_tifffile.series[properties["tiffslide.series-index"]]
        kind, axes = series.dtype, properties["tiffslide.series-axes"]
    except Exception as error:  # tifffile raises whatever a broken header leads it to
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        if remote and _of_connection(error):
            raise ConnectionError(f"the server of {address!r} failed: {reason}") from None
        raise ValueError(f"{address!r} is no slide: {' '.join(str(error).split())}") from None
    channels = series.shape[axes.index("S") if "S" in axes else axes.index("C")] if set(axes) - set("YX") else 1
    if kind != np.uint8 or channels not in (3, 4):
        raw.close()
        raise ValueError(f"{address!r} holds {channels} channels of {kind}: expected 8-bit RGB")
    if mpp is None:
        try:
            mpp = _square(properties["tiffslide.mpp-x"], properties["tiffslide.mpp-y"], address)
        except ValueError:
            raw.close()
            raise
    # What follows a question mark may be a key, and another one when a run goes on.
    return Slide(raw, Path(urlsplit(address).path if remote else path).name, mpp, remote)


def _of_connection(error: Exception) -> bool:
    """Whether what reading over HTTP raised is the connection's fault, not the file's."""
    return isinstance(error, OSError) or type(error).__module__.startswith("aiohttp")


def _check_server(address: str) -> None:
    """Ask for one byte. Without range requests a server would send the whole slide for every tile."""
    try:
        request = urllib.request.Request(address, headers={"Range": "bytes=0-0"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (404, 410):
            raise FileNotFoundError(f"no slide {address!r}: the server answers {error.code} {error.reason}") from None
        raise ConnectionError(f"{address!r}: the server answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise ConnectionError(f"{address!r} cannot be reached: {reason}") from None
    if status != 206:
        raise ValueError(f"the server of {address!r} knows no range requests: download the slide and give its path")


def _square(across: Any, down: Any, address: str) -> float | None:
    """Micrometres a pixel; ``None`` where there are none, or none that make sense."""
    try:
        x, y = float(across), float(down)
    except (TypeError, ValueError):
        return None
    if not (math.isfinite(x) and math.isfinite(y) and x > 0 and y > 0):
        return None
    if abs(x / y - 1) > UNEQUAL:
        raise ValueError(f"{address!r} has pixels of {x:g} x {y:g} micrometres: expected square ones, or give mpp")
    return (x + y) / 2


def _taps(first: float, factor: float, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which pixels of a level go into each pixel of a reduced picture, and with what weights: (count, taps) each.

    A triangle twice as wide as the reduced pixel, which is bilinear interpolation with antialiasing. An image library
    would do the same, but with places in 32 bits, in which neighbouring tiles differ.

    Args:
        first: the edge of the first reduced pixel, in pixels of the level.
        factor: pixels of the level along a reduced one.
        count: of reduced pixels.
    """
    centre = first + (np.arange(count)[:, None] + 0.5) * factor - 0.5
    reach = max(factor, 1.0)
    pixels = np.ceil(centre - reach).astype(np.int64) + np.arange(math.floor(2 * reach) + 1)
    weights = np.clip(1 - np.abs(pixels - centre) / reach, 0, None)
    return pixels, weights / weights.sum(1, keepdims=True)


def _whole(given: float, size: tuple[int, int], dimensions: tuple[int, int]) -> float:
    """A downsampling as the integer that it is meant to be: the sizes of levels are rounded."""
    whole = round(given)
    fits = all(abs(whole * small - large) < whole for small, large in zip(size, dimensions, strict=True))
    return float(whole) if fits else given


def _whole_jpeg(data: bytes) -> bool:
    """Whether a JPEG stream begins and ends as it must, and has no marker where none may be.

    Damage that leaves bytes other than markers behind decodes to a wrong picture, and cannot be told from a right one.
    """
    bytes_ = np.frombuffer(data, np.uint8)
    scan = data.find(b"\xff\xda")
    if not (data.startswith(b"\xff\xd8") and data.rstrip(b"\0").endswith(b"\xff\xd9") and scan >= 0):
        return False
    behind = bytes_[scan + 2 :]
    following = behind[1:][behind[:-1] == 0xFF]
    # In the coded picture a 255 is followed by 0; markers are those of restarts, of another scan or table, and the end.
    known = (following == 0) | (following == 0xFF) | ((following >= 0xD0) & (following <= 0xD7))
    known |= np.isin(following, (0xD9, 0xDA, 0xC4, 0xDB, 0xDD))
    return bool(known.all())


@dataclass(frozen=True, eq=False)
class Overview:
    """A slide at a glance. Made by :func:`overview`.

    Attributes:
        image: (3, h, w) uint8; white where the file is damaged.
        scale: pixels of level 0 along one of its pixels.
        damaged: (h, w) bool, what could not be read.
    """

    image: Tensor
    scale: float
    damaged: Tensor


def overview(slide: Slide, longest: int = 1024) -> Overview:
    """The whole slide, reduced; read block by block, so that one without a pyramid needs no more memory.

    Args:
        slide: the slide.
        longest: pixels of the longer side.

    Raises:
        ValueError: for a side below 1.
        ConnectionError: as :meth:`Slide.read`.
    """
    if longest < 1:
        raise ValueError(f"longest = {longest} is not a number of pixels, 1 or more")
    scale = max(1.0, max(slide.dimensions) / longest)
    level, factor = slide._reduction(scale)
    scale = slide.downsamples[level] * factor
    width, height = (max(1, round(side / scale)) for side in slide.dimensions)
    image = np.full((height, width, 3), WHITE, np.uint8)
    damaged = np.zeros((height, width), bool)

    def fill(top: int, left: int, bottom: int, right: int) -> None:
        try:
            part = slide._resized(level, factor, left * scale, top * scale, bottom - top, right - left)
        except DamagedTileError:
            if max(bottom - top, right - left) * factor <= SMALLEST_BLOCK or (bottom - top, right - left) == (1, 1):
                damaged[top:bottom, left:right] = True
            else:
                for rows in _halves(top, bottom):
                    for columns in _halves(left, right):
                        fill(rows[0], columns[0], rows[1], columns[1])
        else:
            image[top:bottom, left:right] = part

    block = max(1, int(BLOCK / factor))
    for top in range(0, height, block):
        for left in range(0, width, block):
            fill(top, left, min(top + block, height), min(left + block, width))
    return Overview(torch.from_numpy(image).permute(2, 0, 1).contiguous(), scale, torch.from_numpy(damaged))


def _halves(low: int, high: int) -> list[tuple[int, int]]:
    middle = (low + high) // 2
    return [(a, b) for a, b in ((low, middle), (middle, high)) if a < b]


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Where a slide has tissue. Made by :func:`tissue_mask`, or by hand.

    Attributes:
        values: (h, w) bool.
        scale: pixels of level 0 along one of its pixels.
    """

    values: NDArray[np.bool_]
    scale: float

    def share(self, x_0: float, y_0: float, x_1: float, y_1: float) -> float:
        """The share of tissue among the mask's pixels that a rectangle touches, in pixels of level 0."""
        columns = slice(max(0, math.floor(x_0 / self.scale)), max(0, math.ceil(x_1 / self.scale)))
        rows = slice(max(0, math.floor(y_0 / self.scale)), max(0, math.ceil(y_1 / self.scale)))
        part = self.values[rows, columns]
        return float(part.mean()) if part.size else 0.0


def tissue_mask(slide: Slide, longest: int = 1024) -> TissueMask:
    """Find tissue by its colour: the glass is grey, whatever its brightness, and so is a black margin.

    The chroma of a pixel, the largest of red, green and blue minus the smallest, is compared with Otsu's threshold
    (1979, doi 10.1109/TSMC.1979.4310076). Otsu cuts any picture in two, even one of nothing but glass or nothing but
    tissue, so the threshold is kept between two limits. Small holes and cracks are closed and specks of dust removed.
    What could not be read counts as tissue, for the finer levels may be whole there.

    Args:
        slide: the slide.
        longest: pixels of the mask's longer side.

    Raises:
        ConnectionError, ValueError: as :func:`overview`.
    """
    found = overview(slide, longest)
    pixels = found.image.numpy().astype(np.int16)
    chroma = (pixels.max(0) - pixels.min(0)) / 255
    known = chroma[~found.damaged.numpy()]
    otsu = threshold_otsu(known) if known.size and known.min() < known.max() else LEAST_CHROMA
    mask = chroma > min(max(otsu, LEAST_CHROMA), SURE_CHROMA)
    padded = np.pad(mask, 2, mode="edge")
    mask = without_specks(np.asarray(closing(padded, disk(2)), bool)[2:-2, 2:-2], SPECK)
    return TissueMask(mask | found.damaged.numpy(), found.scale)


@dataclass(frozen=True)
class Tile:
    """A place on a slide.

    Attributes:
        index: its number in the grid.
        row: its upper edge in the grid's picture, in pixels at the grid's resolution, a multiple of the stride.
        column: its left edge, likewise.
        x: its left edge in pixels of level 0, for :meth:`Slide.read`.
        y: its upper edge.
    """

    index: int
    row: int
    column: int
    x: float
    y: float


@dataclass(frozen=True)
class Grid:
    """Tiles of one size that cover the tissue of a slide. Made by :func:`tile_grid`.

    Attributes:
        size: (H, W) of every tile in pixels.
        shape: (H, W) of the whole picture: the slide at this resolution, filled up to multiples of the stride.
        overlap: pixels that neighbours share, at least.
        mpp: micrometres a pixel; ``None`` for level 0.
        scale: pixels of level 0 along a pixel.
        rows: the upper edges of all rows of tiles, those without tissue among them.
        columns: the left edges of all columns.
        tiles: those with tissue, row by row.
    """

    size: tuple[int, int]
    shape: tuple[int, int]
    overlap: int
    mpp: float | None
    scale: float
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    tiles: tuple[Tile, ...]


def tile_grid(
    slide: Slide,
    size: int = 512,
    overlap: int = 0,
    mpp: float | None = None,
    mask: TissueMask | None = None,
    stride: int = 1,
    share: float = 0.0,
) -> Grid:
    """Cut a slide into tiles.

    All tiles have the same size and begin at multiples of the stride, so that a network's maps of two tiles have their
    units at the same places. None reaches over the slide's edge: the last ones are moved back. There the zeros with
    which a network pads are those that it would see on the whole slide, too.

    Args:
        slide: the slide.
        size: pixels a side at the chosen resolution; the slide's own where that is smaller.
        overlap: pixels that neighbouring tiles share.
        mpp: the resolution in micrometres a pixel; ``None`` takes level 0.
        mask: where there is tissue; ``None`` takes all tiles.
        stride: of the network; size and overlap must be multiples of it.
        share: a tile is taken when more than this share of its core is tissue. The cores reach to the middle of the
            overlaps: together they cover the slide, without sharing a pixel.

    Raises:
        ValueError: for sizes, overlaps or shares that make no sense, or as :meth:`Slide.scale`.
    """
    if stride < 1 or size < stride or size % stride:
        raise ValueError(f"size = {size} is not a multiple of the network's stride of {stride} pixels")
    if overlap < 0 or overlap % stride or 2 * overlap > size:
        raise ValueError(
            f"overlap = {overlap} is not a multiple of the network's stride of {stride} pixels up to half of {size}"
        )
    if not 0 <= share < 1:
        raise ValueError(f"share = {share} is not at least 0 and below 1")
    scale = slide.scale(mpp)
    width, height = (stride * math.ceil(math.ceil(side / scale - 1e-6) / stride) for side in slide.dimensions)
    rows, columns = _starts(height, size, size - overlap), _starts(width, size, size - overlap)
    high, wide = min(size, height), min(size, width)
    places = (
        (row, column)
        for row, core_rows in zip(rows, _cores(rows, high), strict=True)
        for column, core_columns in zip(columns, _cores(columns, wide), strict=True)
        if mask is None
        or mask.share(*(edge * scale for edges in zip(core_columns, core_rows, strict=True) for edge in edges)) > share
    )
    tiles = tuple(Tile(i, row, column, column * scale, row * scale) for i, (row, column) in enumerate(places))
    return Grid((high, wide), (height, width), overlap, mpp, scale, rows, columns, tiles)


def _starts(length: int, size: int, step: int) -> tuple[int, ...]:
    if length <= size:
        return (0,)
    return (*range(0, length - size, step), length - size)


def _cores(starts: Sequence[int], size: int) -> list[tuple[float, float]]:
    """From where to where each tile is nearer to its middle than any neighbour to theirs."""
    between = [(start + size + following) / 2 for start, following in zip(starts, starts[1:], strict=False)]
    edges = [float(starts[0]), *between, float(starts[-1] + size)]
    return list(zip(edges, edges[1:], strict=False))


def load_annotations(path: str | Path) -> dict[str, list[NDArray[np.float64]]]:
    """The outlines in a file of ASAP, the viewer with which Camelyon was annotated.

    Args:
        path: the XML file: ``Annotation`` elements with ``Type`` and ``PartOfGroup``, and their ``Coordinate``
            elements, with ``Order``, ``X`` and ``Y``. Dots and other marks without an area are left out.

    Returns:
        ``{group: [polygon, ...]}``, each polygon (n, 2) float64: x and y in pixels of level 0, in the order of
        ``Order``, closed by a side from the last to the first.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a file that is not ASAP's, a missing attribute, a coordinate that is no finite number, or an
            outline of fewer than 3 points.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no annotations {str(path)!r}: give an XML file of ASAP")
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, UnicodeDecodeError, LookupError) as error:
        raise ValueError(f"{str(path)!r} is no XML file: {error}") from None
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"{str(path)!r} is no file of ASAP: it begins with <{root.tag}>, not <ASAP_Annotations>")
    found: dict[str, list[NDArray[np.float64]]] = {}
    for number, element in enumerate(root.iter("Annotation")):
        name = f"annotation {number} ({element.get('Name', 'no name')}) of {str(path)!r}"
        if _attribute(element, "Type", name) in OUTLINED:
            found.setdefault(_attribute(element, "PartOfGroup", name), []).append(_polygon(element, name))
    return found


def _attribute(element: ElementTree.Element, key: str, name: str) -> str:
    value = element.get(key)
    if value is None:
        raise ValueError(f"{name}: <{element.tag}> has no attribute {key}")
    return value


def _polygon(element: ElementTree.Element, name: str) -> NDArray[np.float64]:
    points = []
    for coordinate in element.iter("Coordinate"):
        words = [_attribute(coordinate, key, name) for key in ("Order", "X", "Y")]
        try:
            order, x, y = map(float, words)
        except ValueError:
            order = x = y = math.nan
        if not (math.isfinite(order) and math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"{name}: expected numbers as Order, X and Y, got {', '.join(map(repr, words))}")
        points.append((order, x, y))
    if len(points) < 3:
        raise ValueError(f"{name}: an outline needs 3 points or more, got {len(points)}")
    return np.array(sorted(points))[:, 1:]


def annotation_mask(
    polygons: Polygons,
    x: float,
    y: float,
    size: int | tuple[int, int],
    scale: float = 1.0,
    tumour: Collection[str] = TUMOUR_GROUPS,
    holes: Collection[str] = HOLE_GROUPS,
) -> Tensor:
    """Which pixels of a rectangle are tumour.

    A pixel is when its centre lies in an outline of the tumour and in none of a hole. Inside is where a ray to the
    left crosses the outline an odd number of times.

    Args:
        polygons: ``{group: [(n, 2), ...]}`` from :func:`load_annotations`.
        x: the rectangle's left edge in pixels of level 0, as for :meth:`Slide.read`.
        y: its upper edge.
        size: of the mask in pixels: of a side, or (H, W).
        scale: pixels of level 0 along a pixel of the mask, see :meth:`Slide.scale`.
        tumour: groups of outlines of tumour.
        holes: groups of outlines of what is none, inside of tumour.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: for outlines of which none belongs to a named group, a size below 1, or a scale that is not
            positive.
    """
    height, width = size if isinstance(size, tuple) else (size, size)
    if min(height, width) < 1 or not scale > 0:
        raise ValueError(f"expected a size of at least 1 pixel and a scale above 0, got {size} and {scale}")
    if polygons and not any(group in tumour or group in holes for group in polygons):
        raise ValueError(
            f"no outline of a group that is known: {', '.join(map(repr, polygons))} are there, and "
            f"{', '.join(map(repr, (*tumour, *holes)))} were looked for"
        )
    masks = []
    for groups in (tumour, holes):
        mask = np.zeros((height, width), bool)
        for polygon in (one for group in groups for one in polygons.get(group, ())):
            # In pixels of the mask, the centre of the first one at 0.
            mask |= _inside((polygon[:, 0] - x) / scale - 0.5, (polygon[:, 1] - y) / scale - 0.5, height, width)
        masks.append(mask)
    return torch.from_numpy(masks[0] & ~masks[1])


def _inside(x: NDArray[np.float64], y: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """The pixels (i, j) that lie in a polygon, by the columns in which its sides cross the rows."""
    x_1, y_1 = np.roll(x, -1), np.roll(y, -1)
    # A side crosses the rows from the upper end, included, to the lower one, excluded: every corner counts once.
    first = np.clip(np.ceil(np.minimum(y, y_1)), 0, height).astype(np.int64)
    count = np.clip(np.ceil(np.maximum(y, y_1)), 0, height).astype(np.int64) - first
    side = np.repeat(np.arange(len(x)), count)
    row = np.arange(len(side)) - np.repeat(np.cumsum(count) - count, count) + first[side]
    crossing = x[side] + (row - y[side]) * (x_1[side] - x[side]) / (y_1[side] - y[side])
    toggles = np.zeros((height, width + 1), np.int32)
    np.add.at(toggles, (row, np.clip(np.ceil(crossing), 0, width).astype(np.int64)), 1)
    return np.cumsum(toggles[:, :width], 1) % 2 == 1


def patches(
    slide: Slide,
    polygons: Polygons,
    size: int = 96,
    mpp: float = MPP,
    mask: TissueMask | None = None,
    limit: int | None = None,
    seed: int = 0,
    patient: int = 0,
) -> Patches:
    """Patches of the tissue of one slide, with labels: whole slides as a source like the others.

    A patch has the label 1 when its middle, a third of it along both sides, has a pixel of tumour (the rule of PCam,
    Veeling et al. 2018, arXiv 1806.03962, where the middle is 32 of 96 pixels). They lie side by side, more than half
    of each is tissue. Those that cannot be decoded are left out, with a warning.

    Args:
        slide: the slide.
        polygons: from :func:`load_annotations`; ``{}`` for a slide without tumour.
        size: pixels a side.
        mpp: micrometres a pixel.
        mask: where there is tissue; ``None`` finds it with :func:`tissue_mask`.
        limit: draw so many, half of them with tumour as far as there are enough of both; ``None`` takes all.
        seed: of the drawing. The global random state is not touched.
        patient: the number of whom the slide is of.

    Returns:
        The patches with the mask ``tumour``, in the order of their places; ``names`` are slide, x and y.

    Raises:
        ValueError: for a limit below 1, no tissue, no patch that can be decoded, or as :func:`tile_grid` and
            :func:`annotation_mask`.
        ConnectionError: as :meth:`Slide.read`.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit = {limit} is not a number of patches: give 1 or more, or None for all")
    grid = tile_grid(slide, size, mpp=mpp, mask=tissue_mask(slide) if mask is None else mask, share=0.5)
    tiles = [tile for tile in grid.tiles if grid.size == (size, size)]
    if not tiles:
        raise ValueError(f"no patch of {size} pixels at {mpp} micrometres in {slide.name!r} lies on tissue")
    margin = size // 3

    def label(tumour: Tensor) -> int:
        return int(tumour[margin : size - margin, margin : size - margin].any())

    def outlined(tile: Tile) -> Tensor:
        return annotation_mask(polygons, tile.x, tile.y, size, grid.scale)

    if limit is not None:
        tiles = _drawn(tiles, [label(outlined(tile)) for tile in tiles], limit, seed)
    images, masks, names, skipped = [], [], [], []
    for tile in tiles:
        try:
            images.append(slide.read(tile.x, tile.y, size, mpp=mpp))
        except DamagedTileError as error:
            skipped.append(str(error))
            continue
        masks.append(outlined(tile))
        names.append(f"{slide.name}/{round(tile.x)}/{round(tile.y)}")
    if not images:
        raise ValueError(f"none of {len(tiles)} patches can be read: {skipped[0]}")
    if skipped:
        warnings.warn(f"left out {len(skipped)} of {len(tiles)} patches: {skipped[0]}", RuntimeWarning, stacklevel=2)
    return Patches(
        images=torch.stack(images),
        labels=torch.tensor([label(one) for one in masks]),
        patients=torch.full((len(images),), patient),
        masks={"tumour": torch.stack(masks)},
        names=names,
        mpp=mpp,
    )


def _drawn(tiles: Sequence[Tile], labels: Sequence[int], limit: int, seed: int) -> list[Tile]:
    """Some of the tiles, half of each label as far as there are."""
    order = np.random.default_rng(seed).permutation(len(tiles))
    of = [[i for i in order if labels[i] == label] for label in (0, 1)]
    ones = min(len(of[1]), max(limit // 2, limit - len(of[0])))
    return [tiles[i] for i in sorted([*of[1][:ones], *of[0][: limit - ones]])]


Block = Callable[[int, int, int, int], NDArray[Any]]


def write_pyramid(
    path: str | Path,
    block: Block,
    shape: tuple[int, int, int],
    mpp: float | None = None,
    channels: Sequence[str] | None = None,
    offset: tuple[float, float] = (0.0, 0.0),
    dtype: str = "uint8",
    compression: str = "zlib",
    tile: int = 256,
) -> None:
    """Write a pyramidal TIFF of any size, tile by tile: a slide in colour, or maps as OME-TIFF.

    Every level is the mean over 2 x 2 pixels of the one before, down to one tile. The levels lie in a hidden
    folder beside the file until it is complete; memory does not grow with the picture.

    Args:
        path: the file; ``.ome.tif`` is the custom for maps.
        block: a function of (top, left, height, width) that gives this part of the picture as (C, height, width). It is
            called once for each part.
        shape: (C, H, W) of the whole.
        mpp: micrometres a pixel; ``None`` says nothing.
        channels: the names of the channels of an OME-TIFF; ``None`` writes a slide, in RGB.
        offset: of the first pixel's corner in micrometres, (down, right), for an OME-TIFF.
        dtype: of the pixels.
        compression: ``"zlib"``, or ``"jpeg"`` for RGB, as most slides are.
        tile: pixels a side.

    Raises:
        ValueError: for RGB of other than 3 channels, names of another number than channels, or a tile that is no
            multiple of 16.
    """
    import tifffile  # with scikit-image, and slow to load

    count, height, width = shape
    if (channels is None and count != 3) or (channels is not None and len(channels) != count):
        named = "RGB" if channels is None else f"the names {list(channels)}"
        raise ValueError(f"{count} channels do not fit {named}")
    if tile < 16 or tile % 16:
        raise ValueError(f"tile = {tile} is not a multiple of 16 pixels, as TIFF asks for")
    path = Path(path)
    written = path.with_name(path.name + ".writing")
    with _empty_folder(path.with_name(f".{path.name}.levels")) as folder:
        levels = [_Canvas(folder / "0", shape, dtype)]
        for top, left, rows, columns in _blocks(height, width, 2 * tile):
            levels[0].write(top, left, block(top, left, rows, columns))
        while max(levels[-1].shape[1:]) > tile:
            levels.append(_halved(levels[-1], folder / str(len(levels)), 2 * tile))
        common: dict[str, Any] = {"tile": (tile, tile), "compression": compression, "dtype": dtype, "maxworkers": 1}
        common |= {"photometric": "rgb" if channels is None else "minisblack"}
        with tifffile.TiffWriter(written, bigtiff=True, ome=channels is not None) as file:
            for i, level in enumerate(levels):
                options = dict(common)
                if mpp is not None:
                    options |= {"resolution": (1e4 / (mpp * 2**i),) * 2, "resolutionunit": "CENTIMETER"}
                if channels is not None:
                    options["metadata"] = None if i else _ome(channels, mpp, offset)
                    options["subifds"] = None if i else len(levels) - 1
                else:
                    options["metadata"] = None
                if i:
                    options["subfiletype"] = 1
                if channels is None:
                    rgb = (np.moveaxis(level.read(*place), 0, -1) for place in _blocks(*level.shape[1:], tile))
                    file.write(rgb, shape=(*level.shape[1:], 3), **options)
                else:
                    planes = (
                        level.read(*place, slice(c, c + 1))[0]
                        for c in range(count)
                        for place in _blocks(*level.shape[1:], tile)
                    )
                    file.write(planes, shape=level.shape, **options)
    written.replace(path)


@contextmanager
def _empty_folder(folder: Path) -> Iterator[Path]:
    """A folder for the time of the block. Its name is fixed, so that the next run removes what a kill left behind."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _ome(channels: Sequence[str], mpp: float | None, offset: tuple[float, float]) -> dict[str, Any]:
    """What tifffile writes as OME-XML."""
    # The schema wants an identifier; one that never changes makes equal pictures equal files.
    metadata: dict[str, Any] = {"axes": "CYX", "UUID": "urn:uuid:00000000-0000-4000-8000-000000000000"}
    metadata["Channel"] = {"Name": list(channels)}
    if mpp is not None:
        for axis, place in zip("YX", offset, strict=True):
            metadata |= {f"PhysicalSize{axis}": mpp, f"PhysicalSize{axis}Unit": "µm"}
            plane = {f"Position{axis}": [place] * len(channels), f"Position{axis}Unit": ["µm"] * len(channels)}
            metadata.setdefault("Plane", {}).update(plane)
    return metadata


@dataclass(frozen=True)
class _Canvas:
    """A picture (C, H, W) on the disk. It is mapped for each access anew, so that no page of it stays in memory."""

    path: Path
    shape: tuple[int, int, int]
    dtype: str

    def _mapped(self) -> NDArray[Any]:
        return np.memmap(self.path, self.dtype, "r+" if self.path.exists() else "w+", shape=self.shape)

    def write(self, top: int, left: int, values: NDArray[Any]) -> None:
        mapped = self._mapped()
        if values.any():  # what is never written takes no room on the disk
            mapped[:, top : top + values.shape[1], left : left + values.shape[2]] = values

    def read(self, top: int, left: int, height: int, width: int, channels: slice = slice(None)) -> NDArray[Any]:
        return np.array(self._mapped()[channels, top : top + height, left : left + width])


def _halved(level: _Canvas, path: Path, side: int) -> _Canvas:
    count, height, width = level.shape
    half = _Canvas(path, (count, -(-height // 2), -(-width // 2)), level.dtype)
    for top, left, rows, columns in _blocks(*half.shape[1:], side // 2):
        part = level.read(2 * top, 2 * left, 2 * rows, 2 * columns)
        odd = [(0, 0), *((0, 2 * new - old) for new, old in zip((rows, columns), part.shape[1:], strict=True))]
        quads = np.pad(part, odd, mode="edge").reshape(count, rows, 2, columns, 2)
        mean = quads.mean((2, 4), dtype=np.float64)
        half.write(top, left, (np.rint(mean) if level.dtype.startswith("uint") else mean).astype(level.dtype))
    return half


def _blocks(height: int, width: int, side: int) -> Iterator[tuple[int, int, int, int]]:
    """(top, left, height, width) of all blocks of a picture, row by row."""
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield top, left, min(side, height - top), min(side, width - left)
