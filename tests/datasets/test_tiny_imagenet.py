from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from smoothsal_lib.datasets.tiny_imagenet import (
    FOLDER,
    evenly,
    find_folder,
    image_names,
    load_boxes,
    load_classes,
    load_split,
)

COLOURS = {"n02": (200, 30, 30), "n01": (30, 30, 200)}  # red pictures of class 0, blue ones of class 1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes in both splits: 4 and 2 pictures each, one of them greyscale, rows of classes.csv out of order."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "classes.csv").write_text(
        'label,wnid,imagenet_index,name\n1,n01,7,"cock, rooster"\n0,n02,281,"tabby, tabby cat"\n'
    )
    for split, count in {"train": 4, "val": 2}.items():
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            for wnid, colour in COLOURS.items():
                for i in range(count):
                    picture = Image.new("RGB", (64, 64), colour)
                    data = io.BytesIO()
                    (picture.convert("L") if i == 1 else picture).save(data, "JPEG", quality=95)
                    archive.writestr(f"{split}/{wnid}/{wnid}_{i}.JPEG", data.getvalue())
            archive.writestr(f"{split}/readme.txt", "not a picture")
    # Backwards, so that the order of the rows is not that of the pictures; the numbers tell which picture it is.
    rows = [f"val/{wnid}/{wnid}_{i}.JPEG,{i},{wnid[-1]},40,50" for wnid in COLOURS for i in (1, 0)]
    (folder / "boxes.csv").write_text("\r\n".join(["file,x_min,y_min,x_max,y_max", *rows, ""]))
    return tmp_path


def test_pictures_and_labels_belong_together(root: Path):
    images, labels = load_split("train", root)
    assert images.shape == (8, 3, 64, 64) and images.dtype == torch.uint8
    assert labels.dtype == torch.int64 and sorted(labels.tolist()) == [0] * 4 + [1] * 4
    red, blue = images[:, 0].float().mean((1, 2)), images[:, 2].float().mean((1, 2))
    grey = (red - blue).abs() < 3
    assert grey.sum() == 2
    assert torch.equal((blue > red)[~grey].long(), labels[~grey])


def test_classes_are_in_label_order(root: Path):
    rows = load_classes(root)
    assert [row["label"] for row in rows] == ["0", "1"]
    assert rows[0] == {"label": "0", "wnid": "n02", "imagenet_index": "281", "name": "tabby, tabby cat"}


def test_a_limit_spreads_over_the_classes(root: Path):
    images, labels = load_split("train", root, limit=4)
    assert len(images) == 4 and sorted(labels.tolist()) == [0, 0, 1, 1]
    assert len(load_split("val", root, limit=100)[0]) == 4


def test_evenly_by_hand():
    assert evenly(10, 4) == [0, 2, 5, 7]
    assert evenly(50_000, 500) == list(range(0, 50_000, 100))
    assert evenly(3, 10) == evenly(3, None) == [0, 1, 2]
    with pytest.raises(ValueError, match="^limit = 0 is not a number of images: give 1 or more, or None for all$"):
        evenly(10, 0)


def test_a_limit_beyond_the_set_takes_every_picture_once(root: Path):
    assert image_names("val", root, limit=7) == [
        f"val/{wnid}/{wnid}_{i}.JPEG" for wnid in ("n01", "n02") for i in (0, 1)
    ]


def test_boxes_come_in_the_order_of_the_pictures(root: Path):
    boxes = load_boxes("val", root)
    assert boxes.dtype == torch.float32
    assert boxes.tolist() == [[0, 1, 40, 50], [1, 1, 40, 50], [0, 2, 40, 50], [1, 2, 40, 50]]
    assert load_boxes("val", root, limit=2).tolist() == [[0, 1, 40, 50], [0, 2, 40, 50]]


def test_lacking_boxes_are_named(root: Path):
    with pytest.raises(ValueError, match=r"^8 of 8 images have no box in '.+', 'train/n01/n01_0.JPEG' first$"):
        load_boxes("train", root)
    (root / FOLDER / "boxes.csv").unlink()
    with pytest.raises(FileNotFoundError, match="^no boxes.csv in '.+': expected file,x_min,y_min,x_max,y_max there$"):
        load_boxes("val", root)


def test_the_folder_is_found_itself_below_its_parent_and_by_the_environment(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    assert find_folder(root) == find_folder(root / FOLDER) == root / FOLDER
    monkeypatch.setenv("SMOOTHSAL_DATA", str(root))
    assert find_folder() == root / FOLDER


def test_bad_input_is_one_line(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for load in (load_split, load_boxes, image_names):
        with pytest.raises(ValueError, match="^unknown split 'test': choose 'train' or 'val'$"):
            load("test", root)
    monkeypatch.delenv("SMOOTHSAL_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="^no data folder given: pass one, or set SMOOTHSAL_DATA"):
        find_folder()
    with pytest.raises(FileNotFoundError, match="expected classes.csv, train.zip and val.zip there$"):
        find_folder(tmp_path / "elsewhere")


@pytest.mark.skipif("SMOOTHSAL_DATA" not in os.environ, reason="SMOOTHSAL_DATA is not set: no real tiny-imagenet-100")
def test_the_real_validation_set():
    rows = load_classes()
    assert len(rows) == 100 and rows[22]["name"] == "tabby, tabby cat"
    images, labels = load_split("val", limit=500)
    assert images.shape == (500, 3, 64, 64)
    assert torch.equal(labels.bincount(minlength=100), torch.full((100,), 5))
    assert 100 < images.float().mean() < 140
    boxes = load_boxes("val")
    assert boxes.shape == (5000, 4) and boxes.min() >= 0 and boxes.max() <= 63
    assert (boxes[:, 2:] >= boxes[:, :2]).all()
