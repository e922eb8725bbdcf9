"""PatchCamelyon: patches of lymph nodes of the breast, with and without metastases, cut from Camelyon16's slides.

Veeling et al. 2018, arXiv 1806.03962; the slides are those of Ehteshami Bejnordi et al. 2017, doi
10.1001/jama.2017.14585. The files are where :class:`torchvision.datasets.PCAM` expects them, and are downloaded by it.
Reading them takes h5py, the extra ``pathology``.
"""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import PCAM
from tqdm.auto import tqdm

from smoothsal_lib.datasets.patches import Patches
from smoothsal_lib.datasets.tiny_imagenet import data_root, evenly

FOLDER = "pcam"
SIZE = 96
CENTRE = 32  # pixels a side of the square in the middle that the label is about
MPP = 0.972  # micrometres a pixel: four times the 0.243 of the 40x scans
SPLITS = {"train": "train", "val": "valid", "test": "test"}  # torchvision's names, and those in the names of the files


def patches(
    root: str | Path | None = None, split: str = "test", limit: int | None = None, download: bool = False
) -> Patches:
    """Patches of 96 x 96 pixels at a 10x objective, half of them with tumour.

    The label says whether there is a pixel of tumour in the middle 32 x 32 (:data:`CENTRE`). Around that square there
    may be tumour in patches of label 0, and where it is, is not known: there are no masks.

    Which slide a patch is of stands in ``camelyonpatch_level_2_split_<split>_meta.csv``, a file which torchvision does
    not fetch. Where it lies beside the others, patches of one slide share a number in ``patients``. Where it does not,
    every patch has a number of its own, and no split by patients protects from patches that look alike; the three
    splits themselves share no slide in any case.

    Args:
        root: the folder that holds ``pcam/``; ``None`` means the environment variable ``SMOOTHSAL_DATA``.
        split: ``"train"`` (262,144 patches, 7 GB in memory), ``"val"`` or ``"test"`` (32,768 each, 0.9 GB).
        limit: take only that many, at equal distances.
        download: have torchvision fetch the split (6.1 GB for ``"train"``, 0.8 GB for each other) to ``root`` where it
            is not there yet. That takes gdown besides.

    Returns:
        The patches, named ``"<split>/<place in the file>"``.

    Raises:
        ModuleNotFoundError: without h5py.
        FileNotFoundError: when the data is not there; the message says what is expected where.
        RuntimeError: when it cannot be downloaded.
        ValueError: for a split that does not exist, a limit below 1, or files that make no sense.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose {', '.join(map(repr, SPLITS))}")
    root = data_root(root, FOLDER)
    stem = root / FOLDER / f"camelyonpatch_level_2_split_{SPLITS[split]}"
    pictures, targets = (Path(f"{stem}_{key}.h5") for key in "xy")
    if download and not (pictures.is_file() and targets.is_file()):
        _download(root, split)
    for path in (pictures, targets):
        if not path.is_file():
            raise FileNotFoundError(
                f"no {path.relative_to(root).as_posix()} in {str(root)!r}: torchvision expects it there; unpack "
                f"{path.name}.gz of PatchCamelyon, or let download=True do it"
            )
    labels = _labels(targets)
    images, chosen = _images(pictures, len(labels), limit)
    meta = Path(f"{stem}_meta.csv")
    patients = _slides(meta, len(labels)) if meta.is_file() else torch.arange(len(labels))
    return Patches(images, labels[chosen], patients[chosen], names=[f"{split}/{i}" for i in chosen], mpp=MPP)


def _download(root: Path, split: str) -> None:
    try:
        PCAM(root, split, download=True)
    except Exception as error:  # gdown is missing or has errors of its own, no network, no room, another hash
        raise RuntimeError(f"PatchCamelyon could not be downloaded ({' '.join(str(error).split())})") from None


def _opened(path: Path) -> Any:
    try:
        h5py = importlib.import_module("h5py")
    except ModuleNotFoundError:
        raise ModuleNotFoundError("PatchCamelyon needs h5py: pip install 'smoothsal-lib[pathology]'") from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{str(path)!r} is not a readable HDF5 file ({' '.join(str(error).split())})") from None


def _dataset(file: Any, key: str) -> Any:
    try:
        found = file[key] if key in file else None
    except (KeyError, OSError, RuntimeError) as error:
        raise _unreadable(file.filename, error) from None
    if not hasattr(found, "ndim"):  # groups and named types have none
        raise ValueError(f"no data set {key!r} in {str(file.filename)!r}: it has {', '.join(file) or 'none'}")
    return found


def _unreadable(path: str | Path, error: Exception) -> ValueError:
    """What becomes of the errors that h5py has for a damaged file."""
    return ValueError(f"{str(path)!r} cannot be read ({' '.join(str(error).split())})")


def _labels(path: Path) -> Tensor:
    with _opened(path) as file:
        found = _dataset(file, "y")
        if found.ndim < 1 or found.size != len(found):
            raise ValueError(f"y of {str(path)!r} has the shape {found.shape}: expected (N, 1, 1, 1)")
        try:
            values = np.asarray(found).ravel()
        except (OSError, TypeError) as error:  # a damaged chunk, a type that NumPy does not have
            raise _unreadable(path, error) from None
    if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise ValueError(f"y of {str(path)!r} has labels {np.unique(values)[:5].tolist()}: expected 0 and 1 alone")
    return torch.from_numpy(values.astype(np.int64))


def _images(path: Path, count: int, limit: int | None) -> tuple[Tensor, list[int]]:
    with _opened(path) as file:
        found = _dataset(file, "x")
        if found.ndim != 4 or found.shape[1:] != (SIZE, SIZE, 3) or found.dtype != np.uint8:
            raise ValueError(
                f"x of {str(path)!r} has the shape {found.shape} and type {found.dtype}: expected (N, {SIZE}, {SIZE}, "
                "3) of uint8"
            )
        if len(found) != count:
            raise ValueError(f"{str(path)!r} has {len(found)} patches for {count} labels: expected as many")
        chosen = evenly(count, limit)
        images = np.empty((len(chosen), SIZE, SIZE, 3), np.uint8)
        try:
            for i, place in enumerate(tqdm(chosen, desc="read PCam", unit="img", leave=False, mininterval=2)):
                images[i] = found[place]
        except OSError as error:
            raise _unreadable(path, error) from None
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), chosen


def _slides(path: Path, count: int) -> Tensor:
    with open(path, newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        if "wsi" not in (table.fieldnames or ()):
            raise ValueError(f"no column 'wsi' in {str(path)!r}: expected the name of the slide of each patch there")
        slides = [row["wsi"] for row in table]
    if len(slides) != count:
        raise ValueError(f"{str(path)!r} has {len(slides)} rows for {count} labels: expected as many")
    number = {slide: i for i, slide in enumerate(sorted(set(slides)))}
    return torch.tensor([number[slide] for slide in slides])
