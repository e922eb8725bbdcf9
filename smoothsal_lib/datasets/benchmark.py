"""Labelled image sets for whole-set runs: tiny-imagenet-100, ImageNet's validation set, and Imagenette."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision import transforms
from torchvision.datasets import ImageFolder, Imagenette

from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.datasets.tiny_imagenet import data_root, evenly
from smoothsal_lib.models import normalize

BENCHMARKS = ("tiny-imagenet-100", "imagenet-val", "imagenette")

CROP_SIZE = 224
RESIZED = 256  # the shorter side before the crop, as torchvision's published accuracies were measured

EDITIONS = ("imagenette2-320", "imagenette2")  # not that of 160 px, which is smaller than what is cut out of it
IMAGENETTE_INDEX = {  # where Imagenette's ten classes stand among ImageNet's 1,000
    "n01440764": 0,  # tench
    "n02102040": 217,  # English springer
    "n02979186": 482,  # cassette player
    "n03000684": 491,  # chain saw
    "n03028079": 497,  # church
    "n03394916": 566,  # French horn
    "n03417042": 569,  # garbage truck
    "n03425413": 571,  # gas pump
    "n03445777": 574,  # golf ball
    "n03888257": 701,  # parachute
}


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Images with labels, in a fixed order: what a whole-set run reads. Made by :func:`open_benchmark`.

    Attributes:
        name: what :func:`open_benchmark` was asked for.
        description: the same for a record, such as ``"tiny-imagenet-100, validation"``.
        classes: how many classes the labels count, 100 or 1,000: the outputs a network must have.
        labels: (N,) int64.
        names: N file names, which stay the same wherever the data lies.
        boxes: (N, 4) float, x_min, y_min, x_max, y_max in pixels, all inclusive; ``None`` where none are known.
        size: height and width of the images in pixels.
        decode: reads one image by its index, as a person sees it: (3, size, size) uint8.
    """

    name: str
    description: str
    classes: int
    labels: Tensor
    names: list[str]
    boxes: Tensor | None
    size: int
    decode: Callable[[int], Tensor]

    def __len__(self) -> int:
        return len(self.names)

    def images(self, indices: Sequence[int]) -> Tensor:
        """Some images as a network takes them: (n, 3, H, W) float32, normalised.

        Args:
            indices: n numbers from 0 to N - 1. Folders are read here and not before.

        Raises:
            IndexError: for a number that is none of these.
        """
        pixels = torch.empty(len(indices), 3, self.size, self.size, dtype=torch.uint8)
        for i, index in enumerate(indices):
            if not 0 <= index < len(self):
                raise IndexError(f"no image {index} in {self.name}: it has images 0 to {len(self) - 1}")
            pixels[i] = self.decode(index)
        return normalize(pixels.float() / 255)

    def spread(self, limit: int | None) -> list[int]:
        """The indices of ``limit`` images at equal distances; of all for ``None``, or when there are no more.

        Images are sorted by class, so every class is represented as long as the distance is shorter than its share:
        200 of tiny-imagenet-100 are two a class. 500 of ImageNet's 50,000 are every 100th, as in arXiv 2404.02282.

        Raises:
            ValueError: for a limit below 1.
        """
        return evenly(len(self), limit)


def open_benchmark(
    name: str, root: str | Path | None = None, size: int | None = None, download: bool = False
) -> Benchmark:
    """A labelled image set by its name.

    Args:
        name: ``"tiny-imagenet-100"``, its validation images (5,000 of 100 classes, with boxes);
            ``"imagenet-val"``, a folder with the validation images of ImageNet-1k in sub-folders named by WordNet id,
            as ``torchvision.datasets.ImageNet`` leaves it in ``val``;
            ``"imagenette"``, ten easy classes of ImageNet, about 3,900 images, as ``torchvision.datasets.Imagenette``
            leaves them; labelled by their place among ImageNet's 1,000 classes, for networks trained on those.
        root: the folder itself or its parent; ``None`` means the environment variable ``SMOOTHSAL_DATA``.
        size: height and width of the images in pixels. ``None`` means 64 for tiny-imagenet-100, which has no other,
            and 224 for the rest: the shorter side is resized to 8/7 of it, and the middle is cut out.
        download: fetch Imagenette (330 MB) into ``root`` when it is not there. The others cannot be fetched.

    Raises:
        ValueError: for an unknown name, a size or a download that the set does not have, or class folders that are
            not those of the set.
        FileNotFoundError: when the images are not there; the message says what was expected and where to get it.
        RuntimeError: when the download fails.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}")
    if download and name != "imagenette":
        raise ValueError(f"{name} cannot be downloaded here: only imagenette can")
    if name == "tiny-imagenet-100":
        return _tiny_imagenet(root, size)
    if size is not None and size < 1:
        raise ValueError(f"size = {size} is not a number of pixels: give 1 or more")
    if name == "imagenette":
        return _imagenette(data_root(root, "imagenette2-320"), size or CROP_SIZE, download)
    return _imagenet_val(data_root(root, "imagenet-val"), size or CROP_SIZE)


def _tiny_imagenet(root: str | Path | None, size: int | None) -> Benchmark:
    if size not in (None, tiny_imagenet.IMAGE_SIZE):
        raise ValueError(f"size = {size}: the images of tiny-imagenet-100 have 64 pixels and are not resized")
    images, labels = tiny_imagenet.load_split("val", root)
    has_boxes = (tiny_imagenet.find_folder(root) / "boxes.csv").is_file()
    return Benchmark(
        name="tiny-imagenet-100",
        description="tiny-imagenet-100, validation",
        classes=len(tiny_imagenet.load_classes(root)),
        labels=labels,
        names=tiny_imagenet.image_names("val", root),
        boxes=tiny_imagenet.load_boxes("val", root) if has_boxes else None,
        size=tiny_imagenet.IMAGE_SIZE,
        decode=images.__getitem__,
    )


def _imagenet_val(root: Path, size: int) -> Benchmark:
    for folder in (root / "imagenet-val" / "val", root / "imagenet-val", root / "val", root):
        wnids = _class_folders(folder)
        if wnids:
            break
    else:
        raise FileNotFoundError(
            f"no ImageNet validation images in {str(root)!r}: expected val/<wnid>/*.JPEG, as torchvision.datasets."
            "ImageNet leaves it after unpacking ILSVRC2012_img_val.tar of image-net.org (free for research, on request)"
        )
    # A class's index is its place in the sorted WordNet ids, which only a complete set of folders tells.
    if len(wnids) != 1000:
        raise ValueError(f"{str(folder)!r} has {len(wnids)} class folders: ImageNet-1k's labels need all 1,000")
    index_of = {wnid: i for i, wnid in enumerate(wnids)}
    return _from_folder("imagenet-val", f"ImageNet-1k, validation, {size} px", folder, index_of, size)


def _imagenette(root: Path, size: int, download: bool) -> Benchmark:
    places = [root, *(root / edition for edition in EDITIONS)]
    found = [place for place in places if place.name in EDITIONS and (place / "val").is_dir()]
    if not found and download:
        try:
            Imagenette(root, split="val", size="320px", download=True)
        except (OSError, RuntimeError) as error:  # no network, no room on the disk, or a hash that does not match
            reason = " ".join(str(error).split())
            raise RuntimeError(f"imagenette could not be downloaded to {str(root)!r} ({reason})") from None
        found = [root / EDITIONS[0]]
    if not found:
        raise FileNotFoundError(
            f"no imagenette2-320 or imagenette2 in {str(root)!r}: pass download=True, or unpack imagenette2-320.tgz of "
            "github.com/fastai/imagenette there"
        )
    description = f"Imagenette ({found[0].name}), validation, {size} px"
    return _from_folder("imagenette", description, found[0] / "val", IMAGENETTE_INDEX, size)


def preparation(size: int) -> Callable[[Image], Tensor]:
    """What turns a photograph into what ImageNet's networks take: the middle, (3, size, size) uint8.

    Args:
        size: height and width in pixels; the shorter side is resized to 8/7 of it before.
    """
    return transforms.Compose(
        [transforms.Resize(round(size * RESIZED / CROP_SIZE)), transforms.CenterCrop(size), transforms.PILToTensor()]
    )


def _class_folders(folder: Path) -> list[str]:
    """The sub-folders named by a WordNet id, sorted."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if re.fullmatch(r"n\d{8}", path.name) and path.is_dir())


def _from_folder(name: str, description: str, folder: Path, index_of: dict[str, int], size: int) -> Benchmark:
    dataset = ImageFolder(str(folder))
    unknown = [wnid for wnid in dataset.classes if wnid not in index_of]
    if unknown:
        raise ValueError(f"{str(folder)!r} has a folder {unknown[0]!r}, which is no class of {name}")
    prepare = preparation(size)

    def decode(index: int) -> Tensor:
        return prepare(dataset.loader(dataset.samples[index][0]))

    paths = [Path(path) for path, _ in dataset.samples]
    return Benchmark(
        name=name,
        description=description,
        classes=1000,
        labels=torch.tensor([index_of[path.parent.name] for path in paths]),
        names=[path.relative_to(folder).as_posix() for path in paths],
        boxes=None,
        size=size,
        decode=decode,
    )
