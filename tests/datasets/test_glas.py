"""GlaS from a small tree of our own making, and, where it lies, the real one."""

from __future__ import annotations

import io
import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from glas_tree import LUMEN, NUCLEI, PICTURES, draw, encoded, grades, members, plant
from PIL import Image

from smoothsal_lib.datasets import glas

SIX = {"gland", "tumour", "lumen", "tumour_nuclei", "normal_nuclei", "stroma"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("data"))


def decoded(root: Path, name: str) -> np.ndarray:
    with zipfile.ZipFile(root / "glas" / "glas.zip") as archive:
        return np.asarray(Image.open(io.BytesIO(archive.read(f"images/{name}.jpg"))))


def test_the_folder_is_found_by_itself_by_its_parent_and_by_the_environment(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    assert glas.find_folder(root) == glas.find_folder(root / "glas") == root / "glas"
    monkeypatch.setenv("SMOOTHSAL_DATA", str(root))
    assert glas.find_folder() == root / "glas"
    monkeypatch.delenv("SMOOTHSAL_DATA")
    with pytest.raises(FileNotFoundError, match="set SMOOTHSAL_DATA to the parent of glas$"):
        glas.find_folder()


@pytest.mark.parametrize("lacking", ["glas.zip", "grades.csv"])
def test_a_folder_without_one_of_the_files_is_none(tmp_path: Path, lacking: str):
    plant(tmp_path)
    (tmp_path / "glas" / lacking).unlink()
    with pytest.raises(FileNotFoundError, match=r"^no glas in '.*': expected glas.zip and grades.csv there$"):
        glas.patches(tmp_path)


def test_grades_are_those_of_the_table_in_its_order(root: Path):
    found = glas.load_grades(root)
    assert [grade.image for grade in found] == list(PICTURES)
    assert found[1] == glas.Grade("train_32", 1, False, "in words")
    assert [(grade.patient, int(grade.malignant)) for grade in found] == [row[:2] for row in PICTURES.values()]


def test_no_patient_is_in_two_folds_or_splits():
    patients = [patient for fold in glas.FOLDS for patient in fold]
    assert len(patients) == len(set(patients)) == 12
    assert set(glas.SPLITS["train"]) | set(glas.SPLITS["test"]) == set(patients)
    assert not set(glas.SPLITS["train"]) & set(glas.SPLITS["test"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_has_the_pictures_of_its_patients_and_both_classes(root: Path, split: str):
    found = glas.patches(root, split, size=20, stride=20, nuclei=False)
    expected = {name for name, row in PICTURES.items() if row[0] in glas.SPLITS[split]}
    assert {name.split("/")[0] for name in found.names} == expected
    rows = [PICTURES[name.split("/")[0]] for name in found.names]
    assert [(row[0], row[1]) for row in rows] == list(zip(found.patients.tolist(), found.labels.tolist(), strict=True))
    assert found.labels.unique().tolist() == [0, 1]
    assert found.labels.dtype == found.patients.dtype == torch.int64
    assert found.mpp == glas.MPP == 0.62005


def test_patients_may_be_named_instead(root: Path):
    found = glas.patches(root, "test", size=20, stride=20, patients=[6, 3], nuclei=False)
    assert list(dict.fromkeys(found.patients.tolist())) == [3, 6]  # in the order of the table
    assert [whole.names[0] for whole in glas.images(root, patients=[1], nuclei=False)] == ["testB_12", "train_32"]


def test_a_patch_is_its_place_in_the_picture_and_a_fifth_of_it_is_gland(root: Path):
    """88 x 70 pixels, cut at rows 0, 20, 40 and columns 0, 20, 40, 60 into 20 x 20.

    Where the gland ends before column 24, four of the twenty columns from 20 on belong to it, which is just enough;
    where it ends before column 23, three do, which is not.
    """
    found = glas.patches(root, size=20, stride=20, patients=[1])
    places = [(row, column) for row in (0, 20, 40) for column in (0, 20)]
    assert found.names == [f"testB_12/{row}-{column}" for row, column in places] + [
        f"train_32/{row}-0" for row in (0, 20, 40)
    ]
    for i, (row, column) in enumerate(places):
        whole = decoded(root, "testB_12")[row : row + 20, column : column + 20]
        np.testing.assert_array_equal(found.images[i].permute(1, 2, 0).numpy(), whole)
    assert found.masks["gland"].sum((1, 2)).tolist() == [400, 80] * 3 + [400] * 3


def test_patches_overlap_where_the_stride_is_smaller(root: Path):
    found = glas.patches(root, size=30, stride=10, patients=[8], nuclei=False)
    assert found.names == [f"train_41/{row}-{column}" for row in (0, 10, 20, 30) for column in (0, 10, 20, 30)]
    assert torch.equal(found.images[0, :, 10:, 10:], found.images[5, :, :20, :20])


def test_masks_of_patches_are_those_of_the_picture(root: Path):
    found = glas.patches(root, size=40, stride=20, patients=[2])
    whole = glas.load_image("testB_11", root)
    assert set(found.masks) == set(whole.masks) == SIX
    for i, name in enumerate(found.names):
        row, column = (int(place) for place in name.split("/")[1].split("-"))
        for structure, mask in found.masks.items():
            assert torch.equal(mask[i], whole.masks[structure][0, row : row + 40, column : column + 40])


@pytest.mark.parametrize(("name", "malignant"), [("testB_11", True), ("train_4", False)])
def test_masks_are_what_was_drawn(root: Path, name: str, malignant: bool):
    whole = glas.load_image(name, root)
    size, edge = PICTURES[name][2:]
    gland = torch.from_numpy(draw(size, edge)[1])
    masks = {structure: mask[0] for structure, mask in whole.masks.items()}
    assert torch.equal(masks["gland"], gland)
    assert torch.equal(masks["tumour"], gland if malignant else torch.zeros_like(gland))

    for row, column in NUCLEI:  # the last one outside the gland
        middle = (slice(row - 3, row + 4), slice(column - 3, column + 4))
        in_tumour = malignant and column < edge
        assert masks["tumour_nuclei"][middle].float().mean() == in_tumour
        assert masks["normal_nuclei"][middle].float().mean() == (not in_tumour)
    nuclei = masks["tumour_nuclei"] | masks["normal_nuclei"]
    assert nuclei.sum() == pytest.approx(3 * np.pi * 36, rel=0.35)

    assert masks["lumen"][LUMEN].float().mean() > 0.9
    assert masks["lumen"].sum() == pytest.approx(400, rel=0.1)
    assert torch.equal(masks["stroma"], ~(gland | nuclei | masks["lumen"]))
    assert masks["stroma"][60, 70] and not masks["stroma"][44, 60]
    assert not (masks["tumour_nuclei"] & masks["normal_nuclei"]).any() and not (nuclei & masks["lumen"]).any()


def test_a_narrow_gap_is_no_lumen(tmp_path: Path):
    pixels, _ = draw((60, 60), 60)
    pixels[2:6, 26:36] = 250  # 40 pixels, 15 square micrometres
    plant(tmp_path, {"images/train_41.jpg": encoded(Image.fromarray(pixels), "JPEG")})
    lumen = glas.load_image("train_41", tmp_path).masks["lumen"][0]
    assert not lumen[:8].any() and lumen[32:48, 10:26].all()


def test_a_lumen_outside_glands_is_no_stroma(tmp_path: Path):
    nothing = np.zeros((60, 60), bool)
    plant(tmp_path, {"masks/train_41.png": encoded(Image.fromarray(nothing), "PNG")})
    masks = glas.load_image("train_41", tmp_path).masks
    assert masks["lumen"][0, 32:48, 10:26].all() and not masks["gland"].any()
    assert torch.equal(masks["stroma"], ~(masks["lumen"] | masks["normal_nuclei"]))


def test_without_nuclei_there_are_the_masks_that_need_none(root: Path):
    found = glas.patches(root, size=40, stride=40, patients=[2], nuclei=False)
    full = glas.patches(root, size=40, stride=40, patients=[2])
    assert set(found.masks) == {"gland", "tumour", "lumen"}
    assert all(torch.equal(mask, full.masks[name]) for name, mask in found.masks.items())
    assert torch.equal(found.images, full.images)


def test_pictures_are_read_one_after_the_other(tmp_path: Path):
    plant(tmp_path, {"images/train_32.jpg": None})
    pictures = glas.images(tmp_path, "test", nuclei=False)
    assert next(pictures).names == ["testB_12"]
    with pytest.raises(ValueError, match="images/train_32.jpg"):
        next(pictures)


def test_a_picture_is_given_whole(root: Path):
    whole = glas.load_image("train_4", root)
    assert whole.images.shape == (1, 3, 70, 88) and len(whole) == 1
    np.testing.assert_array_equal(whole.images[0].permute(1, 2, 0).numpy(), decoded(root, "train_4"))
    assert (whole.labels.tolist(), whole.patients.tolist(), whole.names) == ([0], [3], ["train_4"])
    with pytest.raises(ValueError, match=r"^no image 'train_99' in grades.csv: expected a name such as 'testB_12'$"):
        glas.load_image("train_99", root)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "^unknown split 'val': choose 'train' or 'test'$"),
        ({"patients": [2, 4]}, "^unknown patient 4: grades.csv has 1, 2, 3, 5, 6, 8, 10, 11, 12, 13, 14, 16$"),
        ({"patients": []}, "^no patients: grades.csv has 1, 2"),
        ({"size": 0}, "^size = 0 and stride = 64 are not numbers of pixels: give 1 or more$"),
        ({"stride": 0}, "^size = 96 and stride = 0 are not"),
        ({"size": 61, "patients": [8]}, "^size = 61 does not fit 'train_41' of 60 x 60 pixels$"),
    ],
)
def test_what_does_not_exist_cannot_be_asked_for(root: Path, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        glas.patches(root, **arguments)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("patient,malignant", "who,malignant", "^no column 'patient' in '.*grades.csv': expected image,patient,mal"),
        ("train_32,1,0", "train_32,1,2", "^malignant is '2' for 'train_32' in '.*': expected 0 or 1$"),
        ("train_32,1,0", "train_32,1,", "^malignant is '' for 'train_32'"),
        ("train_32,1,0", "train_32,one,0", "^patient is 'one' for 'train_32' in '.*': expected a number$"),
        ("train_32,1,0,in words", "train_32", "^malignant is None for 'train_32'"),
        (grades(), "", "^no column 'image'"),
    ],
)
def test_a_malformed_table_is_one_line(tmp_path: Path, old: str, new: str, message: str):
    plant(tmp_path)
    table = tmp_path / "glas" / "grades.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        glas.patches(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("masks/train_41.png", None, r"^no masks/train_41.png in '.*glas.zip'$"),
        ("images/train_41.jpg", None, r"^no images/train_41.jpg in '.*glas.zip'$"),
        ("images/train_41.jpg", b"no picture", r"^images/train_41.jpg in '.*glas.zip' cannot be read \(.*\)$"),
        ("images/train_41.jpg", members()["images/train_41.jpg"][:700], "cannot be read .*truncated"),
        ("masks/train_41.png", members()["masks/train_41.png"][:60], "^masks/train_41.png in '.*' cannot be read"),
        (
            "masks/train_41.png",
            members()["masks/train_4.png"],
            r"^masks/train_41.png has 70 x 88 pixels, its image 60 x 60: expected the same$",
        ),
    ],
)
def test_a_damaged_archive_is_one_line(tmp_path: Path, member: str, content: bytes | None, message: str):
    plant(tmp_path, {member: content})
    with pytest.raises(ValueError, match=message) as caught:
        glas.load_image("train_41", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_stream_is_one_line(tmp_path: Path):
    plant(tmp_path)
    path = tmp_path / "glas" / "glas.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/train_41.jpg", members()["images/train_41.jpg"])
        start = 30 + len("images/train_41.jpg")  # of what is compressed, behind its header
    content = bytearray(path.read_bytes())
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^images/train_41.jpg in '.*' cannot be read \(Error -3 .*\)$"):
        glas.load_image("train_41", tmp_path)


@pytest.mark.parametrize(("place", "value"), [(6, 255), (8, 1), (8, 32), (10, 97)])
def test_an_archive_of_a_kind_that_cannot_be_read_is_one_line(tmp_path: Path, place: int, value: int):
    plant(tmp_path)
    path = tmp_path / "glas" / "glas.zip"
    content = bytearray(path.read_bytes())
    start = content.find(b"PK\x01\x02")
    while start >= 0:  # every member: of a later version, encrypted, a patch, or compressed by an unknown method
        content[start + place] = value
        start = content.find(b"PK\x01\x02", start + 4)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^.*glas.zip' .* \(.*\)$") as caught:
        glas.load_image("train_41", tmp_path)
    assert "\n" not in str(caught.value)


def test_an_archive_that_is_none_is_one_line(tmp_path: Path):
    plant(tmp_path)
    (tmp_path / "glas" / "glas.zip").write_bytes(b"PK not really")
    with pytest.raises(ValueError, match=r"^'.*glas.zip' is not a readable zip file \(.*\)$"):
        glas.load_image("train_41", tmp_path)


@pytest.fixture(scope="module")
def real() -> Path:
    folder = os.environ.get("SMOOTHSAL_DATA")
    if folder is None:
        pytest.skip("SMOOTHSAL_DATA is not set")
    try:
        return glas.find_folder(folder)
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_the_real_table_has_both_classes_in_every_fold(real: Path):
    found = glas.load_grades(real)
    assert len(found) == len({grade.image for grade in found}) == 108
    assert {grade.patient for grade in found} == {patient for fold in glas.FOLDS for patient in fold}
    for fold in glas.FOLDS:
        assert len({grade.malignant for grade in found if grade.patient in fold}) == 2
    assert Counter(grade.malignant for grade in found if grade.patient in glas.SPLITS["test"]) == {True: 13, False: 7}


def test_a_real_picture_is_cut_into_patches(real: Path):
    (whole,) = glas.images(real, patients=[8])
    found = glas.patches(real, patients=[8], nuclei=False)
    assert whole.images.shape == (1, 3, 430, 567) and whole.labels.item() == 1
    assert set(whole.masks) == SIX and all(mask.any() for mask in whole.masks.values())
    assert found.images.shape[1:] == (3, 96, 96) and 10 < len(found) <= 6 * 8
    assert (found.masks["gland"].double().mean((1, 2)) >= glas.GLAND_SHARE).all()
