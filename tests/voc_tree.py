"""A small PASCAL VOC 2007 of our own making, laid out as torchvision expects it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image

# name: (width, height), objects (class, xmin, ymin, xmax, ymax, difficult), counted from 1 as VOC does
PICTURES = {
    "000007": ((300, 240), [("person", 1, 1, 300, 120, 0), ("dog", 11, 21, 110, 120, 0), ("dog", 5, 5, 9, 9, 1)]),
    "000002": ((240, 300), [("cat", 201, 251, 240, 300, 0)]),
    "000019": ((448, 250), [("tvmonitor", 1, 1, 2, 2, 1), ("aeroplane", 2, 3, 2, 3, 0)]),
}


def annotation(name: str, size: tuple[int, int], objects: Iterable[tuple[str, int, int, int, int, int]]) -> str:
    described = "".join(
        f"<object><name>{kind}</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}</difficult>"
        f"<bndbox><xmin>{x_min}</xmin><ymin>{y_min}</ymin><xmax>{x_max}</xmax><ymax>{y_max}</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></part>"
        "</object>"
        for kind, x_min, y_min, x_max, y_max, difficult in objects
    )
    shape = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><folder>VOC2007</folder><filename>{name}.jpg</filename>{shape}{described}</annotation>"


def plant(root: Path) -> Path:
    """The tree, at ``root``."""
    folder = root / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("".join(f"{name}\n" for name in PICTURES))
    for i, (name, (size, objects)) in enumerate(PICTURES.items()):
        noise = torch.randint(256, (size[1] // 8, size[0] // 8, 3), generator=torch.Generator().manual_seed(i))
        picture = Image.fromarray(noise.to(torch.uint8).numpy()).resize(size)
        (picture.convert("L") if i == 1 else picture).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
        (folder / "Annotations" / f"{name}.xml").write_text(annotation(name, size, objects))
    return root
