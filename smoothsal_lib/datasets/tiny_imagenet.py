"""tiny-imagenet-100: 100 classes of Tiny ImageNet, 64 x 64 px, read straight from its two zip files."""

from __future__ import annotations

import csv
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

FOLDER = "tiny-imagenet-100"
IMAGE_SIZE = 64


def data_root(root: str | Path | None, name: str) -> Path:
    """Where data sets lie: ``root``, or the environment variable ``SMOOTHSAL_DATA`` for ``None``.

    Raises:
        FileNotFoundError: when neither is given; the message says that the folder ``name`` was looked for.
    """
    root = root if root is not None else os.environ.get("SMOOTHSAL_DATA")
    if root is None:
        raise FileNotFoundError(f"no data folder given: pass one, or set SMOOTHSAL_DATA to the parent of {name}")
    return Path(root)


def find_folder(root: str | Path | None = None) -> Path:
    """The folder that holds ``train.zip``, ``val.zip`` and ``classes.csv``.

    Args:
        root: the folder itself or its parent; ``None`` means the environment variable ``SMOOTHSAL_DATA``.

    Raises:
        FileNotFoundError: when no such folder is there; the message names the place that was tried.
    """
    root = data_root(root, FOLDER)
    for folder in (root, root / FOLDER):
        if (folder / "classes.csv").is_file():
            return folder
    raise FileNotFoundError(f"no {FOLDER} in {str(root)!r}: expected classes.csv, train.zip and val.zip there")


def load_classes(root: str | Path | None = None) -> list[dict[str, str]]:
    """The classes in ``root``, in label order: ``label``, ``wnid``, ``imagenet_index`` and ``name`` of each."""
    with open(find_folder(root) / "classes.csv", newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: int(row["label"]))


def evenly(count: int, limit: int | None) -> list[int]:
    """``limit`` of the indices 0 to ``count`` - 1 at equal distances, beginning with 0; all of them for ``None``.

    What is sorted by class is thereby taken from every class alike: 500 of 50,000 is every 100th.

    Raises:
        ValueError: for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit = {limit} is not a number of images: give 1 or more, or None for all")
    chosen = count if limit is None else min(limit, count)
    return [i * count // chosen for i in range(chosen)]


def image_names(split: str, root: str | Path | None = None, limit: int | None = None) -> list[str]:
    """The images of one split by their names in the archive, such as ``val/n02123045/val_17.JPEG``, sorted.

    Sorted means by class: the second part is the class's WordNet id. :func:`load_split` and :func:`load_boxes`
    keep this order.

    Args:
        split: ``"train"`` (500 images a class) or ``"val"`` (50 a class).
        root: see :func:`find_folder`.
        limit: take only that many, evenly spread over the classes (:func:`evenly`).

    Raises:
        ValueError: for a split that does not exist, or a limit below 1.
        FileNotFoundError: when the data is not there.
    """
    if split not in ("train", "val"):
        raise ValueError(f"unknown split {split!r}: choose 'train' or 'val'")
    with zipfile.ZipFile(find_folder(root) / f"{split}.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".JPEG"))
    return [names[i] for i in evenly(len(names), limit)]


def load_split(split: str, root: str | Path | None = None, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Decode one split into memory (the training split takes 0.6 GB).

    Args:
        split: ``"train"`` or ``"val"``.
        root: see :func:`find_folder`.
        limit: take only that many, as :func:`image_names` does.

    Returns:
        Images, uint8 of shape (N, 3, 64, 64), and labels, int64 of shape (N,).

    Raises:
        ValueError: for a split that does not exist, or a limit below 1.
        FileNotFoundError: when the data is not there.
    """
    names = image_names(split, root, limit)
    folder = find_folder(root)
    label_of = {row["wnid"]: int(row["label"]) for row in load_classes(folder)}
    images = np.empty((len(names), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    with zipfile.ZipFile(folder / f"{split}.zip") as archive:
        for i, name in enumerate(tqdm(names, desc=f"decode {split}", unit="img", leave=False, mininterval=2)):
            images[i] = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
    labels = torch.tensor([label_of[name.split("/")[1]] for name in names])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels


def load_boxes(split: str, root: str | Path | None = None, limit: int | None = None) -> Tensor:
    """Where the object is in each image of :func:`load_split`, in the same order.

    Args:
        split: ``"train"`` or ``"val"``.
        root: see :func:`find_folder`.
        limit: take only that many, as :func:`image_names` does.

    Returns:
        (N, 4) float32: x_min, y_min, x_max, y_max in pixels, all four inclusive, so that 0, 0, 63, 63 is the whole
        picture.

    Raises:
        ValueError: for a split that does not exist, a limit below 1, or an image without a box.
        FileNotFoundError: when the data, or its ``boxes.csv``, is not there.
    """
    names = image_names(split, root, limit)
    path = find_folder(root) / "boxes.csv"
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {str(path.parent)!r}: expected file,x_min,y_min,x_max,y_max there")
    with open(path, newline="") as file:
        box_of = {
            row["file"]: [float(row[side]) for side in ("x_min", "y_min", "x_max", "y_max")]
            for row in csv.DictReader(file)
        }
    lacking = [name for name in names if name not in box_of]
    if lacking:
        raise ValueError(f"{len(lacking)} of {len(names)} images have no box in {str(path)!r}, {lacking[0]!r} first")
    return torch.tensor([box_of[name] for name in names])
