"""Photographs to explain: those that ship inside scikit-image's wheel, or a picture file of your own."""

from __future__ import annotations

import io
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from smoothsal_lib.models import normalize

# Read from the wheel by file name. skimage.data's functions would ask pooch, which downloads what it does not find.
# All are free of copyright (CC0 or public domain) but "motorcycle", from the Middlebury stereo benchmark of 2014.
PHOTOS = {
    "astronaut": "astronaut.png",
    "camera": "camera.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
}


def photo_names() -> list[str]:
    """The names that :func:`load_photo` knows, in alphabetical order."""
    return list(PHOTOS)


def load_photo(
    name: str | Path | bytes = "chelsea", size: int = 128, square: bool = True
) -> tuple[Tensor, NDArray[np.uint8]]:
    """A photograph as a network takes it and as a person looks at it.

    Args:
        name: one of :func:`photo_names` (they need no download), or a picture file of your own, its path or
            its bytes. Greyscale is spread over three channels, transparent parts are laid on white, and a camera's
            rotation mark is obeyed.
        size: the shorter side of the result in pixels.
        square: cut a square out of the middle; otherwise keep the whole picture.

    Returns:
        x, (1, 3, H, W) float32 and normalised, and the same picture as an array (H, W, 3) uint8.

    Raises:
        ValueError: for an unknown name, a size below 1 or a file that is no picture.
    """
    if size < 1:
        raise ValueError(f"size = {size} is not a number of pixels: give 1 or more")
    picture = _on_white(_open(name))
    if square:
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    else:
        scale = size / min(picture.size)
        width, height = (round(side * scale) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)  # PIL antialiases when it shrinks
    photo = np.asarray(picture).copy()
    x = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    return normalize(x), photo


def _open(name: str | Path | bytes) -> Image.Image:
    if isinstance(name, bytes):
        return _read(io.BytesIO(name), f"{len(name):,} bytes are")
    if isinstance(name, str) and name in PHOTOS:
        with (files("skimage.data") / PHOTOS[name]).open("rb") as file:
            return ImageOps.exif_transpose(Image.open(file))
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"no photograph {str(name)!r}: choose one of {', '.join(PHOTOS)}, or give a picture file's path"
        )
    return _read(path, f"{str(path)!r} is")


def _read(file: Path | io.BytesIO, what: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(Image.open(file))
    except (OSError, Image.DecompressionBombError):  # PIL's words for "cannot identify", "truncated" and "too large"
        raise ValueError(f"{what} no picture that PIL can read") from None


def _on_white(picture: Image.Image) -> Image.Image:
    """The picture as RGB, with white behind whatever is transparent."""
    if picture.mode.startswith(("I", "F")):  # 16 bits a pixel: converting would cut off instead of scaling
        values = np.asarray(picture, dtype=np.float64)
        low, high = values.min(), values.max()
        picture = Image.fromarray(((values - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8))
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    layers = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
