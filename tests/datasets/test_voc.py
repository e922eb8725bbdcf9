"""PASCAL VOC from a small tree of our own making, laid out as torchvision expects it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.transform import resize
from torchvision.datasets import voc as torchvision_voc
from voc_tree import PICTURES, annotation, plant

from smoothsal_lib.datasets.voc import CLASSES, Voc, resized, scaled


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return plant(tmp_path / "data")


def test_the_classes_are_vocs_twenty_in_alphabetical_order():
    assert len(CLASSES) == 20 and list(CLASSES) == sorted(CLASSES)
    assert CLASSES[0] == "aeroplane" and CLASSES[14] == "person" and CLASSES[19] == "tvmonitor"


def test_pictures_come_in_the_order_of_the_list(root: Path):
    assert [picture.name for picture in Voc(root)] == list(PICTURES)
    assert [picture.name for picture in Voc(root, limit=2)] == ["000007", "000002"]
    assert len(Voc(root)) == 3 and len(Voc(root, limit=2)) == 2
    with pytest.raises(IndexError):
        Voc(root, limit=2)[2]


def test_the_shorter_side_becomes_224(root: Path):
    sizes = {picture.name: (picture.size, tuple(picture.image.shape)) for picture in Voc(root)}
    assert sizes == {
        "000007": ((240, 300), (3, 224, 280)),
        "000002": ((300, 240), (3, 280, 224)),
        "000019": ((250, 448), (3, 224, 401)),  # 401.4
    }
    assert resized((100, 100), 224) == (224, 224)
    assert Voc(root, size=48)[0].image.shape == (3, 48, 60)


def test_the_picture_is_resized_as_in_caffe(root: Path):
    """skimage's bilinear interpolation without antialiasing is what pycaffe resizes by."""
    for picture in Voc(root):
        path = root / "VOCdevkit" / "VOC2007" / "JPEGImages" / f"{picture.name}.jpg"
        with Image.open(path) as file:
            pixels = np.asarray(file.convert("RGB")) / 255
        expected = resize(pixels, picture.image.shape[1:], order=1, mode="edge", anti_aliasing=False)
        torch.testing.assert_close(picture.image.double().permute(1, 2, 0), torch.tensor(expected), atol=1e-5, rtol=0)
        assert picture.image.dtype == torch.float32 and picture.image.max() <= 1


def test_boxes_are_grouped_by_class_and_scaled_along(root: Path):
    first = Voc(root)[0]  # 300 x 240 to 280 x 224: a factor of 14/15
    assert [CLASSES[one.label] for one in first.objects] == ["dog", "person"]
    dog, person = first.objects
    assert person.boxes.tolist() == [[0, 0, 279, 111]]  # the upper half stays the upper half
    # Columns 10 to 109 reach from 10 to 110, resized from 9.33 to 102.67: the centres 9.5 to 102.5.
    # Rows 20 to 119 reach from 20 to 120, resized from 18.67 to 112: the centres 19.5 to 111.5.
    # 4 to 8 reaches from 4 to 9, resized from 3.73 to 8.4: the centres 4.5 to 7.5.
    assert dog.boxes.tolist() == [[9, 19, 102, 111], [4, 4, 7, 7]]
    assert dog.boxes.dtype == torch.float32
    assert dog.difficult.tolist() == [False, True] and person.difficult.tolist() == [False]
    last = Voc(root)[1].objects[0].boxes  # 240 x 300 to 224 x 280
    assert last.tolist() == [[187, 233, 223, 279]]  # from 186.67 and 233.33 to the picture's end


@pytest.mark.parametrize("new", [20, 31, 40, 57, 120])
def test_a_scaled_box_is_that_of_a_search_through_all_pixels(new: int):
    old = 40
    for low in range(old):
        for high in range(low, old):
            centres = [Fraction(2 * j + 1, 2) * old / new for j in range(new)]
            inside = [j for j, centre in enumerate(centres) if low <= centre < high + 1]
            columns, rows = scaled([low, 3, high, 5], (9, old), (9, new)), scaled([3, low, 5, high], (old, 9), (new, 9))
            assert columns[1::2] == rows[0::2] == [3, 5]
            assert columns[0::2] == rows[1::2]
            if inside:
                assert columns[0::2] == [inside[0], inside[-1]]


def test_a_box_too_thin_for_any_pixel_keeps_one():
    assert scaled([3, 0, 3, 9], (10, 10), (10, 4)) == [1, 0, 1, 9]  # from 1.2 to 1.6 of 4: pixel 1, whose centre is 1.5
    assert scaled([4, 0, 4, 9], (10, 10), (10, 4)) == [1, 0, 1, 9]  # from 1.6 to 2: no centre, its middle is 1.8
    assert scaled([5, 0, 5, 9], (10, 10), (10, 4)) == [2, 0, 2, 9]


def test_difficult_for_the_game_is_small_beside_another_class(root: Path):
    first, alone, tiny = Voc(root)
    dog, person = first.objects
    assert dog.share == pytest.approx((100 * 100 + 5 * 5) / (300 * 240)) and person.share == 0.5
    assert first.is_difficult(dog) and not first.is_difficult(person)
    assert alone.objects[0].share < 0.25 and not alone.is_difficult(alone.objects[0])
    assert all(tiny.is_difficult(one) for one in tiny.objects)


def test_exactly_a_quarter_is_not_small(root: Path):
    path = root / "VOCdevkit" / "VOC2007" / "Annotations" / "000007.xml"
    for height, small in ((120, False), (119, True)):
        objects = [("person", 1, 1, 150, height, 0), ("dog", 1, 1, 2, 2, 0)]
        path.write_text(annotation("000007", (300, 240), objects))
        first = Voc(root)[0]
        assert [first.is_difficult(one) for one in first.objects] == [True, small]


def test_a_class_counts_unless_all_its_objects_are_hard_to_recognise(root: Path):
    first, _, last = Voc(root)
    assert [one.counts for one in first.objects] == [True, True]  # one of the two dogs is hard
    assert [(CLASSES[one.label], one.counts) for one in last.objects] == [("aeroplane", True), ("tvmonitor", False)]


def test_a_picture_may_be_empty(root: Path):
    (root / "VOCdevkit" / "VOC2007" / "Annotations" / "000002.xml").write_text(annotation("000002", (240, 300), []))
    assert Voc(root)[1].objects == ()


def test_what_reaches_beyond_the_picture_is_cut_off(root: Path):
    path = root / "VOCdevkit" / "VOC2007" / "Annotations" / "000007.xml"
    path.write_text(annotation("000007", (300, 240), [("cow", 0, 0, 301, 240, 0)]))
    cow = Voc(root)[0].objects[0]
    assert cow.boxes.tolist() == [[0, 0, 279, 223]] and cow.share == 1


def test_a_missing_tree_is_one_line_that_says_what_is_expected(root: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        FileNotFoundError,
        match=r"^no VOCdevkit/VOC2007/ImageSets/Main/test.txt in '.*empty': torchvision expects it .*VOCtest_06.*=True",
    ):
        Voc(root / "empty")
    monkeypatch.delenv("SMOOTHSAL_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="set SMOOTHSAL_DATA to the parent of VOCdevkit$"):
        Voc()
    monkeypatch.setenv("SMOOTHSAL_DATA", str(root))
    assert len(Voc()) == 3


@pytest.mark.parametrize("lacking", ["JPEGImages/000002.jpg", "Annotations/000002.xml"])
def test_a_tree_with_a_hole_is_one_line(root: Path, lacking: str):
    (root / "VOCdevkit" / "VOC2007" / lacking).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"^1 of 6 files that test.txt lists are not in '.*', VOCdevkit/VOC2007/{lacking} first"
    ):
        Voc(root)


def test_download_is_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def fetch(url: str, folder: Path, filename: str, md5: str) -> None:
        asked.append((filename, md5))
        plant(Path(folder))

    monkeypatch.setattr(torchvision_voc, "download_and_extract_archive", fetch)
    for _ in range(2):  # what is there is not fetched again
        assert len(Voc(tmp_path / "new", download=True)) == 3
        assert asked == [("VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f")]


@pytest.mark.parametrize("error", [OSError("no route\nto host"), RuntimeError("File not found or corrupted.")])
def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(torchvision_voc, "download_and_extract_archive", fail)
    with pytest.raises(RuntimeError, match=r"^VOC 2007 could not be downloaded \((no route to host|File not .*)\)$"):
        Voc(tmp_path, download=True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<name>cat", "<name>lion", r"^000002.xml has an object of class 'lion': expected aeroplane, bicycle"),
        ("<xmin>201", "<xmin>left", "^000002.xml has a cat without a box of four whole numbers"),
        ("xmin>", "x>", r"^000002.xml has a cat without a box of four whole numbers \(KeyError\('xmin'\)\)$"),
        (
            "<xmin>201",
            "<xmin>241",
            r"^000002.xml has a cat in \(241, 251, 240, 300\), which does not lie .* from 1$",
        ),
    ],
)
def test_a_bad_annotation_is_one_line(root: Path, old: str, new: str, message: str):
    path = root / "VOCdevkit" / "VOC2007" / "Annotations" / "000002.xml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        Voc(root)[1]


def test_bad_numbers_are_one_line(root: Path):
    with pytest.raises(ValueError, match="^size = 0 is not a number of pixels: give 1 or more$"):
        Voc(root, size=0)
    with pytest.raises(ValueError, match="^limit = 0 is not a number of images"):
        Voc(root, limit=0)
