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


def find_folder(root: str | Path | None = None) -> Path:
    """The folder that holds ``train.zip``, ``val.zip`` and ``classes.csv``.

    Args:
        root: the folder itself or its parent; ``None`` means the environment variable ``SMOOTHSAL_DATA``.

    Raises:
        FileNotFoundError: when no such folder is there; the message names the place that was tried.
    """
    root = root if root is not None else os.environ.get("SMOOTHSAL_DATA")
    if root is None:
        raise FileNotFoundError(f"no data folder given: pass one, or set SMOOTHSAL_DATA to the parent of {FOLDER}")
    for folder in (Path(root), Path(root) / FOLDER):
        if (folder / "classes.csv").is_file():
            return folder
    raise FileNotFoundError(f"no {FOLDER} in {str(root)!r}: expected classes.csv, train.zip and val.zip there")


def load_classes(root: str | Path | None = None) -> list[dict[str, str]]:
    """One row a class, in label order, with the keys ``label``, ``wnid``, ``imagenet_index`` and ``name``."""
    with open(find_folder(root) / "classes.csv", newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: int(row["label"]))


def load_split(split: str, root: str | Path | None = None, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Decode one split into memory (the training split takes 0.6 GB).

    Args:
        split: ``"train"`` (500 images a class) or ``"val"`` (50 a class).
        root: see :func:`find_folder`.
        limit: take only that many images, evenly spread over the archive and so over the classes.

    Returns:
        Images, uint8 of shape (N, 3, 64, 64), and labels, int64 of shape (N,).

    Raises:
        ValueError: for a split that does not exist.
        FileNotFoundError: when the data is not there.
    """
    if split not in ("train", "val"):
        raise ValueError(f"unknown split {split!r}: choose 'train' or 'val'")
    folder = find_folder(root)
    label_of = {row["wnid"]: int(row["label"]) for row in load_classes(folder)}
    with zipfile.ZipFile(folder / f"{split}.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".JPEG"))
        if limit is not None:
            names = [names[i * len(names) // limit] for i in range(min(limit, len(names)))]
        images = np.empty((len(names), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for i, name in enumerate(tqdm(names, desc=f"decode {split}", unit="img", leave=False, mininterval=2)):
            images[i] = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
    labels = torch.tensor([label_of[name.split("/")[1]] for name in names])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels
