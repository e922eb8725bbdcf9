"""GlaS: H&E-stained tissue of the colon with a mask of its glands and a grade for each picture, of 12 patients.

Sirinukunwattana et al. 2017, "Gland segmentation in colon histology images: the GlaS challenge contest", Medical Image
Analysis 35, arXiv 1603.00275. Read from ``glas.zip`` (``images/<name>.jpg`` and ``masks/<name>.png``, not 0 in a gland)
and ``grades.csv`` (image, patient, malignant, grade). For research only, not for commercial use.

Only the glands were drawn by pathologists. That a gland is tumour follows from the grade of its picture. Nuclei, lumina
and stroma are estimates from the colours alone: nobody checked them, and they err where stains do.
"""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from smoothsal_lib.datasets.patches import Patches, together
from smoothsal_lib.datasets.stains import optical_density
from smoothsal_lib.datasets.tiny_imagenet import data_root
from smoothsal_lib.nuclei import nuclear_mask, without_specks

FOLDER = "glas"
MPP = 0.62005  # micrometres a pixel: the scanner's 0.465, brought to a 20x objective by the organisers
# Patients of four folds. Each has benign and malignant pictures; most patients have one kind only.
FOLDS = ((1, 13, 8), (3, 2), (10, 6, 12, 14), (11, 5, 16))
SPLITS = {"train": FOLDS[1] + FOLDS[2] + FOLDS[3], "test": FOLDS[0]}
GLAND_SHARE = 0.2  # of a patch: stroma alone does not tell the grade
LUMEN_DENSITY = 0.07  # mean optical density up to which a pixel holds no tissue
LUMEN_AREA = 30.0  # square micrometres: smaller gaps are cracks between fibres
_COLUMNS = ("image", "patient", "malignant", "grade")


@dataclass(frozen=True)
class Grade:
    """One row of ``grades.csv``.

    Attributes:
        image: the picture's name, such as ``"testB_12"``.
        patient: whose tissue it is.
        malignant: whether it is tumour.
        grade: in a pathologist's words, such as ``"poorly differentiated"``.
    """

    image: str
    patient: int
    malignant: bool
    grade: str


def find_folder(root: str | Path | None = None) -> Path:
    """The folder that holds ``glas.zip`` and ``grades.csv``.

    Args:
        root: the folder itself or its parent; ``None`` means the environment variable ``SMOOTHSAL_DATA``.

    Raises:
        FileNotFoundError: when no such folder is there; the message names the place that was tried.
    """
    root = data_root(root, FOLDER)
    for folder in (root, root / FOLDER):
        if (folder / "grades.csv").is_file() and (folder / "glas.zip").is_file():
            return folder
    raise FileNotFoundError(f"no {FOLDER} in {str(root)!r}: expected glas.zip and grades.csv there")


def load_grades(root: str | Path | None = None) -> list[Grade]:
    """What is known of each picture, in the order of ``grades.csv``.

    Args:
        root: see :func:`find_folder`.

    Raises:
        FileNotFoundError: when the data is not there.
        ValueError: for a column that lacks, a patient that is no number, or a grade that is neither 0 nor 1.
    """
    path = find_folder(root) / "grades.csv"
    with open(path, newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        lacking = [column for column in _COLUMNS if column not in (table.fieldnames or ())]
        if lacking:
            raise ValueError(f"no column {lacking[0]!r} in {str(path)!r}: expected {','.join(_COLUMNS)}")
        return [_grade(row, path) for row in table]


def patches(
    root: str | Path | None = None,
    split: str = "train",
    size: int = 96,
    stride: int = 64,
    *,
    patients: Sequence[int] | None = None,
    nuclei: bool = True,
) -> Patches:
    """Square cuts of the pictures, those of which at least a fifth (:data:`GLAND_SHARE`) is gland.

    A patch has the label of its picture. Cuts begin at rows and columns 0, stride, 2 stride and so on; what is left at
    the right and at the bottom, less than a stride, is not used.

    Args:
        root: see :func:`find_folder`.
        split: ``"train"`` or ``"test"``, which share no patient (:data:`SPLITS`).
        size: pixels a side.
        stride: pixels from one patch to the next.
        patients: take these instead of those of the split, for cross-validation over :data:`FOLDS`.
        nuclei: whether to look for nuclei, which takes most of the time. Without, the masks are gland, tumour and
            lumen.

    Returns:
        The patches with the masks that :func:`load_image` describes, named ``"<image>/<row>-<column>"`` after the first
        pixel of each.

    Raises:
        FileNotFoundError: when the data is not there.
        ValueError: for a split or a patient that does not exist, a size or a stride that does not fit, or data that
            makes no sense.
    """
    if stride < 1 or size < 1:
        raise ValueError(f"size = {size} and stride = {stride} are not numbers of pixels: give 1 or more")
    cuts: list[Patches] = []
    for whole in images(root, split, patients=patients, nuclei=nuclei):
        height, width = whole.images.shape[-2:]
        if size > min(height, width):
            raise ValueError(f"size = {size} does not fit {whole.names[0]!r} of {height} x {width} pixels")
        cuts.append(_cut(whole, size, stride))
    return together(cuts)


def images(
    root: str | Path | None = None,
    split: str = "train",
    *,
    patients: Sequence[int] | None = None,
    nuclei: bool = True,
) -> Iterator[Patches]:
    """The whole pictures, one after the other, each as :func:`load_image` gives it.

    Args:
        root: see :func:`find_folder`.
        split: as in :func:`patches`.
        patients: as in :func:`patches`.
        nuclei: as in :func:`patches`.

    Raises:
        FileNotFoundError: when the data is not there.
        ValueError: for a split or a patient that does not exist, or data that makes no sense.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose 'train' or 'test'")
    folder, grades = find_folder(root), load_grades(root)
    wanted = SPLITS[split] if patients is None else tuple(patients)
    known = sorted({grade.patient for grade in grades})
    unknown = [patient for patient in wanted if patient not in known]
    if unknown or not wanted:
        named = f"unknown patient {unknown[0]}" if unknown else "no patients"
        raise ValueError(f"{named}: grades.csv has {', '.join(map(str, known))}")
    chosen = [grade for grade in grades if grade.patient in wanted]
    for grade in tqdm(chosen, desc="read GlaS", unit="img", leave=False, mininterval=2):
        yield _load(folder / "glas.zip", grade, nuclei)


def load_image(name: str, root: str | Path | None = None, *, nuclei: bool = True) -> Patches:
    """One whole picture with its masks.

    - gland: drawn by pathologists, healthy glands as well as diseased ones.
    - tumour: the glands of malignant pictures.
    - lumen: larger areas without stain, in glands or between them; an estimate.
    - tumour_nuclei, normal_nuclei: the nuclei (:func:`smoothsal_lib.nuclei.nuclear_mask`) within tumour, and all
      others; an estimate.
    - stroma: outside glands, what is neither nucleus nor lumen; an estimate.

    Args:
        name: such as ``"testB_12"``.
        root: see :func:`find_folder`.
        nuclei: as in :func:`patches`.

    Returns:
        :class:`Patches` with this one, (1, 3, H, W).

    Raises:
        FileNotFoundError: when the data is not there.
        ValueError: for a picture without a row in ``grades.csv``, or one that cannot be read.
    """
    for grade in load_grades(root):
        if grade.image == name:
            return _load(find_folder(root) / "glas.zip", grade, nuclei)
    raise ValueError(f"no image {name!r} in grades.csv: expected a name such as 'testB_12'")


def _grade(row: dict[str, str], path: Path) -> Grade:
    if row["malignant"] not in ("0", "1"):
        raise ValueError(f"malignant is {row['malignant']!r} for {row['image']!r} in {str(path)!r}: expected 0 or 1")
    try:
        patient = int(row["patient"])
    except (TypeError, ValueError):
        raise ValueError(
            f"patient is {row['patient']!r} for {row['image']!r} in {str(path)!r}: expected a number"
        ) from None
    return Grade(row["image"], patient, row["malignant"] == "1", row["grade"])


def _load(path: Path, grade: Grade, nuclei: bool) -> Patches:
    try:
        with zipfile.ZipFile(path) as archive:
            pixels = _decoded(archive, f"images/{grade.image}.jpg", "RGB")
            drawn = _decoded(archive, f"masks/{grade.image}.png", "L")
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{str(path)!r} is not a readable zip file ({error})") from error
    if drawn.shape != pixels.shape[:2]:
        raise ValueError(
            f"masks/{grade.image}.png has {drawn.shape[0]} x {drawn.shape[1]} pixels, "
            f"its image {pixels.shape[0]} x {pixels.shape[1]}: expected the same"
        )
    image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    masks = _masks(image, torch.from_numpy(drawn > 0), grade.malignant, nuclei)
    return Patches(
        image[None],
        torch.tensor([int(grade.malignant)]),
        torch.tensor([grade.patient]),
        {name: mask[None] for name, mask in masks.items()},
        [grade.image],
        MPP,
    )


def _decoded(archive: zipfile.ZipFile, member: str, mode: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(archive.read(member))) as picture:
            return np.array(picture.convert(mode))
    except KeyError:
        raise ValueError(f"no {member} in {str(archive.filename)!r}") from None
    except (OSError, EOFError, SyntaxError, RuntimeError, zlib.error) as error:  # raised for files that are damaged
        reason = " ".join(str(error).split()) or "it ends too early"
        raise ValueError(f"{member} in {str(archive.filename)!r} cannot be read ({reason})") from error


def _masks(image: Tensor, gland: Tensor, malignant: bool, nuclei: bool) -> dict[str, Tensor]:
    tumour = gland & malignant
    lumen = _lumen(image)
    masks = {"gland": gland, "tumour": tumour, "lumen": lumen}
    if nuclei:
        nuclear = nuclear_mask(image, MPP) & ~lumen
        masks["tumour_nuclei"] = nuclear & tumour
        masks["normal_nuclei"] = nuclear & ~tumour
        masks["stroma"] = ~(gland | nuclear | lumen)
    return masks


def _lumen(image: Tensor) -> Tensor:
    bright = optical_density(image).mean(0) <= LUMEN_DENSITY
    return torch.from_numpy(without_specks(bright.numpy(), LUMEN_AREA / MPP**2))


def _cut(whole: Patches, size: int, stride: int) -> Patches:
    def cut(values: Tensor) -> Tensor:
        """(1, ..., H, W) to (rows columns, ..., size, size)."""
        windows = values[0].unfold(-2, size, stride).unfold(-2, size, stride)
        return windows.flatten(-4, -3).movedim(-3, 0)

    gland = cut(whole.masks["gland"])
    chosen = gland.double().mean((1, 2)) >= GLAND_SHARE
    height, width = whole.images.shape[-2:]
    places = [
        (row, column) for row in range(0, height - size + 1, stride) for column in range(0, width - size + 1, stride)
    ]
    kept = [
        f"{whole.names[0]}/{row}-{column}" for (row, column), keep in zip(places, chosen.tolist(), strict=True) if keep
    ]
    return Patches(
        cut(whole.images)[chosen],
        whole.labels.expand(len(kept)),
        whole.patients.expand(len(kept)),
        {name: cut(mask)[chosen] for name, mask in whole.masks.items()},
        kept,
        whole.mpp,
    )
