"""A small GlaS of our own making, laid out as :mod:`smoothsal_lib.datasets.glas` expects it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

PINK, PURPLE, WHITE = (225, 150, 190), (80, 45, 135), (250, 250, 250)

# name: patient, malignant, (width, height), gland: the columns up to this one. In the order of grades.csv.
PICTURES = {
    "testB_12": (1, 1, (88, 70), 24),
    "train_32": (1, 0, (88, 70), 23),
    "train_41": (8, 1, (60, 60), 60),
    "testA_44": (13, 0, (60, 60), 60),
    "testB_11": (2, 1, (88, 70), 50),
    "train_4": (3, 0, (88, 70), 50),
    "testB_17": (5, 0, (60, 60), 40),
    "train_18": (6, 1, (60, 60), 40),
    "testA_10": (10, 0, (60, 60), 40),
    "testA_12": (11, 1, (60, 60), 40),
    "testA_45": (12, 1, (60, 60), 40),
    "train_7": (14, 1, (60, 60), 40),
    "train_36": (16, 1, (60, 60), 40),
}
NUCLEI = [(12, 12), (12, 40), (44, 60)]  # row and column of the middles, six pixels in radius
LUMEN, DEBRIS = (slice(30, 50), slice(8, 28)), (slice(37, 43), slice(15, 21))


def draw(size: tuple[int, int], gland: int) -> tuple[np.ndarray, np.ndarray]:
    """Nuclei, and a lumen with something dark in it, on pink, (H, W, 3) uint8; the mask of the gland, (H, W) bool."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    pixels = np.full((size[1], size[0], 3), PINK, np.uint8)
    for row, column in NUCLEI:
        pixels[(rows - row) ** 2 + (columns - column) ** 2 <= 36] = PURPLE
    pixels[LUMEN] = WHITE
    pixels[DEBRIS] = PURPLE
    return pixels, columns < gland


def encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def members() -> dict[str, bytes]:
    """What ``glas.zip`` holds."""
    found = {}
    for name, (_, _, size, gland) in PICTURES.items():
        pixels, mask = draw(size, gland)
        found[f"images/{name}.jpg"] = encoded(Image.fromarray(pixels), "JPEG")
        found[f"masks/{name}.png"] = encoded(Image.fromarray(mask), "PNG")
    return found


def grades() -> str:
    rows = [f"{name},{patient},{malignant},in words" for name, (patient, malignant, _, _) in PICTURES.items()]
    return "\n".join(["image,patient,malignant,grade", *rows, ""])


def plant(root: Path, changes: Mapping[str, bytes | None] | None = None) -> Path:
    """The tree, in the folder ``glas`` of ``root``; ``changes`` replaces members of the archive, or leaves them out."""
    folder = root / "glas"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grades.csv").write_text(grades())
    with zipfile.ZipFile(folder / "glas.zip", "w") as archive:
        for name, content in {**members(), **(changes or {})}.items():
            if content is not None:
                archive.writestr(name, content)
    return root
