"""PASCAL VOC 2007, test: pictures with the boxes of 20 classes of objects, for the pointing game.

Everingham et al. 2010, doi 10.1007/s11263-009-0275-4. The files are found, read and, if asked for, downloaded by
:class:`torchvision.datasets.VOCDetection`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import VOCDetection
from torchvision.transforms.functional import to_tensor

from smoothsal_lib.datasets.tiny_imagenet import data_root, evenly

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
DESCRIPTION = "PASCAL VOC 2007, test"
SIZE = 224  # the shorter side of a picture in the pointing game
SMALL = 0.25  # objects with less than this share of the picture are small
ARCHIVE = "VOCtest_06-Nov-2007.tar"
_FOLDER = Path("VOCdevkit", "VOC2007")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, eq=False)
class Objects:
    """All objects of one class in one picture.

    Attributes:
        label: the class, an index of :data:`CLASSES`.
        boxes: (K, 4) float32, x_min, y_min, x_max, y_max in pixels of the resized picture: whole numbers, counted from
            0 and inclusive. What reaches beyond the picture is cut off.
        difficult: (K,) bool, which objects the annotators marked as hard to recognise.
        share: the areas of the boxes together, as a share of the picture before it was resized. Where boxes overlap it
            counts twice.
    """

    label: int
    boxes: Tensor
    difficult: Tensor
    share: float

    @property
    def counts(self) -> bool:
        """Whether the class is asked for in the pointing game, since not all of its objects are hard to recognise.

        The boxes of those that are belong to the target all the same, both as in TorchRay, the code of Fong et al.
        2019, arXiv 1910.08485.
        """
        return not bool(self.difficult.all())


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture and what is in it.

    Attributes:
        name: such as ``"000001"``.
        image: (3, H, W) float32 between 0 and 1, resized; :func:`smoothsal_lib.models.normalize` prepares it.
        size: (H, W) in pixels before it was resized.
        objects: one entry a class, in the order of :data:`CLASSES`.
    """

    name: str
    image: Tensor
    size: tuple[int, int]
    objects: tuple[Objects, ...]

    def is_difficult(self, objects: Objects) -> bool:
        """Whether the picture belongs to the *difficult* subset of the pointing game for one of its classes.

        It does when the boxes of the class cover less than a quarter of the picture, and another class is there to
        distract (Zhang et al. 2016, arXiv 1608.00507). Not to be confused with objects that are marked as difficult.
        """
        return objects.share < SMALL and len(self.objects) > 1


class Voc:
    """The 4,952 pictures of the test set, in the order of ``ImageSets/Main/test.txt``; each is read when asked for.

    The shorter side is brought to ``size`` pixels, the longer one rounded down, bilinearly and without antialiasing: so
    does TorchRay (Fong et al. 2019, arXiv 1910.08485), after Caffe. A pixel of the resized picture lies in a box when
    its centre does.

    Args:
        root: the folder that holds ``VOCdevkit/VOC2007``; ``None`` means the environment variable ``SMOOTHSAL_DATA``.
        limit: take only that many, at equal distances.
        size: the shorter side in pixels.
        download: have torchvision fetch the test set (430 MB) to ``root`` where it is not there yet.

    Raises:
        FileNotFoundError: when the data, or a part of it, is not there; the message says what is expected where.
        RuntimeError: when it cannot be downloaded.
        ValueError: for a size or a limit below 1; and, when a picture is read, for an annotation that makes no sense.
    """

    def __init__(
        self, root: str | Path | None = None, limit: int | None = None, size: int = SIZE, download: bool = False
    ) -> None:
        if size < 1:
            raise ValueError(f"size = {size} is not a number of pixels: give 1 or more")
        self.size = size
        self._files = _open(data_root(root, str(_FOLDER.parent)), download)
        self._chosen = evenly(len(self._files), limit)

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[Picture]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Picture:
        chosen = self._chosen[index]
        path = Path(self._files.annotations[chosen])
        image, target = self._files[chosen]
        pixels = to_tensor(image)
        before = (pixels.shape[1], pixels.shape[2])
        after = resized(before, self.size)
        found: dict[int, list[tuple[list[int], bool]]] = {}
        for one in target["annotation"]["object"]:
            label, corners, difficult = _parsed(one, before, path)
            found.setdefault(label, []).append((corners, difficult))
        return Picture(
            path.stem,
            F.interpolate(pixels[None], after, mode="bilinear", align_corners=False)[0],
            before,
            tuple(_objects(label, found[label], before, after) for label in sorted(found)),
        )


def _open(root: Path, download: bool) -> VOCDetection:
    listing = root / _FOLDER / "ImageSets" / "Main" / "test.txt"
    if download and not listing.is_file():
        try:
            VOCDetection(root, year="2007", image_set="test", download=True)
        except (OSError, RuntimeError) as error:  # no network, no room on the disk, or a hash that does not match
            raise RuntimeError(f"VOC 2007 could not be downloaded ({' '.join(str(error).split())})") from None
    if not listing.is_file():
        raise FileNotFoundError(
            f"no {listing.relative_to(root).as_posix()} in {str(root)!r}: torchvision expects it there, and JPEGImages "
            f"and Annotations beside ImageSets; unpack {ARCHIVE} of host.robots.ox.ac.uk/pascal/VOC/voc2007, or let "
            "download=True do it"
        )
    files = VOCDetection(root, year="2007", image_set="test")
    lacking = [path for path in (*files.images, *files.annotations) if not Path(path).is_file()]
    if lacking:
        first = Path(lacking[0]).relative_to(root).as_posix()
        raise FileNotFoundError(
            f"{len(lacking)} of {2 * len(files)} files that {listing.name} lists are not in {str(root)!r}, {first} "
            f"first: unpack {ARCHIVE} there"
        )
    return files


def _parsed(one: dict[str, Any], size: tuple[int, int], path: Path) -> tuple[int, list[int], bool]:
    """Class, corners counted from 0 and whether it is difficult, of one object of an annotation."""
    if one.get("name") not in CLASSES:
        raise ValueError(f"{path.name} has an object of class {one.get('name')!r}: expected {', '.join(CLASSES)}")
    try:
        x_min, y_min, x_max, y_max = (int(one["bndbox"][corner]) for corner in _CORNERS)
        difficult = bool(int(one.get("difficult", 0)))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} has a {one['name']} without a box of four whole numbers ({error!r})") from None
    height, width = size
    left, top, right, bottom = max(x_min, 1), max(y_min, 1), min(x_max, width), min(y_max, height)
    if left > right or top > bottom:
        raise ValueError(
            f"{path.name} has a {one['name']} in ({x_min}, {y_min}, {x_max}, {y_max}), which does not lie in a picture "
            f"of {height} x {width} pixels counted from 1"
        )
    return CLASSES.index(one["name"]), [left - 1, top - 1, right - 1, bottom - 1], difficult


def _objects(
    label: int, found: list[tuple[list[int], bool]], before: tuple[int, int], after: tuple[int, int]
) -> Objects:
    boxes = [scaled(corners, before, after) for corners, _ in found]
    area = sum((x_max - x_min + 1) * (y_max - y_min + 1) for (x_min, y_min, x_max, y_max), _ in found)
    return Objects(
        label,
        torch.tensor(boxes, dtype=torch.float32),
        torch.tensor([difficult for _, difficult in found]),
        area / (before[0] * before[1]),
    )


def resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """The (H, W) of a picture of ``size`` (H, W) whose shorter side becomes ``shorter``; the longer is rounded down."""
    height, width = size
    return (shorter * height // width, shorter) if width < height else (shorter, shorter * width // height)


def scaled(box: Sequence[int], before: tuple[int, int], after: tuple[int, int]) -> list[int]:
    """Where a box is in a picture that was resized: the pixels whose centres lie in it.

    Args:
        box: x_min, y_min, x_max, y_max, counted from 0 and inclusive, in a picture of the size ``before``.
        before: (H, W).
        after: (H, W).

    Returns:
        The same for the size ``after``, in whole numbers. A box too thin for any centre keeps the pixel that its middle
        lies in.
    """
    low, high = [0, 0], [0, 0]
    for axis, (old, new) in enumerate([(before[1], after[1]), (before[0], after[0])]):
        start, end = box[axis], box[axis + 2] + 1
        # Pixel j has its centre at (j + 1/2) old/new in the old picture. In whole numbers, so that nothing is rounded.
        low[axis] = -((old - 2 * start * new) // (2 * old))
        high[axis] = -((old - 2 * end * new) // (2 * old)) - 1
        if high[axis] < low[axis]:
            low[axis] = high[axis] = (start + end) * new // (2 * old)
    return [*low, *high]
