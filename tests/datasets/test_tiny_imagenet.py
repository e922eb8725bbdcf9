from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from smoothsal_lib.datasets.tiny_imagenet import FOLDER, find_folder, load_classes, load_split

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


def test_the_folder_is_found_itself_below_its_parent_and_by_the_environment(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    assert find_folder(root) == find_folder(root / FOLDER) == root / FOLDER
    monkeypatch.setenv("SMOOTHSAL_DATA", str(root))
    assert find_folder() == root / FOLDER


def test_bad_input_is_one_line(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="^unknown split 'test': choose 'train' or 'val'$"):
        load_split("test", root)
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
