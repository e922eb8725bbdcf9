"""PatchCamelyon from small files of our own making, laid out as torchvision expects them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import PCAM
from torchvision.datasets import pcam as torchvision_pcam

from smoothsal_lib.datasets import pcam

h5py = pytest.importorskip("h5py", reason="the extra 'pathology' is not installed")

LABELS = [0, 1, 1, 0, 1, 0, 0, 1]
SLIDES = ["tumor_009", "tumor_009", "normal_010", "normal_010", "tumor_009", "normal_002", "normal_010", "tumor_009"]


def pixels(n: int = len(LABELS)) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, 96, 96, 3), dtype=np.uint8)


def write(root: Path, what: str, **datasets: np.ndarray) -> Path:
    path = root / "pcam" / f"camelyonpatch_level_2_split_{what}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, values in datasets.items():
            file[key] = values
    return path


def write_slides(root: Path, slides: list[str], column: str = "wsi", split: str = "test") -> None:
    rows = [f"{i},{64 * i},{32 * i},False,{bool(i % 2)},camelyon16_{slide}" for i, slide in enumerate(slides)]
    table = "\n".join([f",coord_y,coord_x,tumor_patch,center_tumor_patch,{column}", *rows, ""])
    (root / "pcam" / f"camelyonpatch_level_2_split_{split}_meta.csv").write_text(table)


def plant(root: Path, split: str = "test") -> Path:
    write(root, f"{split}_x", x=pixels())
    write(root, f"{split}_y", y=np.array(LABELS, np.uint8).reshape(-1, 1, 1, 1))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return plant(tmp_path)


def test_patches_are_those_of_torchvision(root: Path):
    found, expected = pcam.patches(root), PCAM(root, "test")
    assert len(found) == len(expected) == 8
    for i, (picture, label) in enumerate(expected):
        np.testing.assert_array_equal(found.images[i].permute(1, 2, 0).numpy(), np.asarray(picture))
        assert found.labels[i] == label
    assert found.labels.tolist() == LABELS and found.labels.dtype == torch.int64
    assert found.names == [f"test/{i}" for i in range(8)]
    assert (found.mpp, dict(found.masks)) == (0.972, {})


def test_the_validation_set_has_another_name_on_disk(tmp_path: Path):
    plant(tmp_path, "valid")
    assert pcam.patches(tmp_path, "val").names[0] == "val/0"
    assert len(PCAM(tmp_path, "val")) == 8


def test_a_limit_takes_some_from_everywhere(root: Path):
    write_slides(root, SLIDES)
    found = pcam.patches(root, limit=3)  # 0, 8 / 3, 16 / 3
    assert found.names == ["test/0", "test/2", "test/5"]
    np.testing.assert_array_equal(found.images.permute(0, 2, 3, 1).numpy(), pixels()[[0, 2, 5]])
    assert found.labels.tolist() == [0, 1, 0]
    assert found.patients.tolist() == [2, 1, 0]


def test_patches_of_one_slide_are_of_one_patient_where_the_slides_are_known(root: Path):
    assert pcam.patches(root).patients.tolist() == list(range(8))
    write_slides(root, SLIDES)
    assert pcam.patches(root).patients.tolist() == [2, 2, 1, 1, 2, 0, 1, 2]  # in the order of the names


def test_the_folder_is_taken_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SMOOTHSAL_DATA", str(root))
    assert len(pcam.patches(limit=2)) == 2
    monkeypatch.delenv("SMOOTHSAL_DATA")
    with pytest.raises(FileNotFoundError, match="set SMOOTHSAL_DATA to the parent of pcam$"):
        pcam.patches()


@pytest.mark.parametrize("key", "xy")
def test_a_missing_file_is_one_line_that_says_what_is_expected(root: Path, key: str):
    (root / "pcam" / f"camelyonpatch_level_2_split_test_{key}.h5").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"^no pcam/camelyonpatch_level_2_split_test_{key}.h5 in '.*': .*download=True do it$"
    ):
        pcam.patches(root)


def test_what_does_not_exist_cannot_be_asked_for(root: Path):
    with pytest.raises(ValueError, match="^unknown split 'valid': choose 'train', 'val', 'test'$"):
        pcam.patches(root, "valid")
    with pytest.raises(ValueError, match="^limit = 0 is not a number of images"):
        pcam.patches(root, limit=0)


@pytest.mark.parametrize(
    ("what", "datasets", "message"),
    [
        ("test_x", {"x": pixels()[:, :95]}, r"^x of '.*_x.h5' has the shape \(8, 95, 96, 3\) and type uint8: expected"),
        ("test_x", {"x": pixels() / 255}, r"type float64: expected \(N, 96, 96, 3\) of uint8$"),
        ("test_x", {"x": pixels()[0]}, r"has the shape \(96, 96, 3\)"),
        ("test_x", {"x": pixels(5)}, r"^'.*_x.h5' has 5 patches for 8 labels: expected as many$"),
        ("test_x", {"images": pixels()}, r"^no data set 'x' in '.*_x.h5': it has images$"),
        ("test_y", {}, r"^no data set 'y' in '.*_y.h5': it has none$"),
        ("test_y", {"y": np.zeros((8, 2))}, r"^y of '.*_y.h5' has the shape \(8, 2\): expected \(N, 1, 1, 1\)$"),
        ("test_y", {"y": np.array(1)}, r"has the shape \(\): expected"),
        ("test_y", {"y": np.array([0, 1, 3, 0, 0, 0, 0, 0])}, r"has labels \[0, 1, 3\]: expected 0 and 1 alone$"),
        ("test_y", {"y": np.array([b"a"] * 8)}, r"has labels \[b'a'\]: expected 0 and 1 alone$"),
    ],
)
def test_a_malformed_file_is_one_line(root: Path, what: str, datasets: dict[str, np.ndarray], message: str):
    write(root, what, **datasets)
    with pytest.raises(ValueError, match=message) as caught:
        pcam.patches(root)
    assert "\n" not in str(caught.value)


def test_what_is_no_hdf5_file_is_one_line(root: Path):
    path = root / "pcam" / "camelyonpatch_level_2_split_test_x.h5"
    content = path.read_bytes()
    for damaged in (b"no such thing", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"^'.*test_x.h5' is not a readable HDF5 file \(.*\)$"):
            pcam.patches(root)


def test_a_damaged_chunk_is_one_line(root: Path):
    path = root / "pcam" / "camelyonpatch_level_2_split_test_x.h5"
    with h5py.File(path, "w") as file:
        x = file.create_dataset("x", data=pixels(), chunks=(1, 96, 96, 3), compression="gzip")
        start = x.id.get_chunk_info(3).byte_offset
    content = bytearray(path.read_bytes())
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^'.*test_x.h5' cannot be read \(.*\)$"):
        pcam.patches(root)
    assert len(pcam.patches(root, limit=2)) == 2  # of which it is none


@pytest.mark.parametrize("what", ["x", "y"])
def test_a_group_or_a_damaged_entry_is_no_data_set(root: Path, what: str):
    path = root / "pcam" / f"camelyonpatch_level_2_split_test_{what}.h5"
    content = path.read_bytes()
    with h5py.File(path, "w") as file:
        file.create_group(what)
    with pytest.raises(ValueError, match=f"^no data set '{what}' in '.*_{what}.h5': it has {what}$"):
        pcam.patches(root)
    for signature in (b"HEAP", b"SNOD"):  # of the tables that HDF5 finds its data sets by
        path.write_bytes(content.replace(signature, b"none", 1))
        with pytest.raises(ValueError, match=rf"^'.*test_{what}.h5' cannot be read \(.*\)$"):
            pcam.patches(root)


def test_damaged_labels_are_one_line(root: Path):
    path = root / "pcam" / "camelyonpatch_level_2_split_test_y.h5"
    with h5py.File(path, "w") as file:
        y = file.create_dataset("y", data=np.zeros((8, 1, 1, 1), np.uint8), chunks=True, compression="gzip")
        start = y.id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[start : start + 4] = b"\xff" * 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^'.*test_y.h5' cannot be read \(.*\)$"):
        pcam.patches(root)


@pytest.mark.parametrize(
    ("slides", "column", "message"),
    [
        (SLIDES, "slide", r"^no column 'wsi' in '.*test_meta.csv': expected the name of the slide"),
        (SLIDES[:6], "wsi", r"^'.*test_meta.csv' has 6 rows for 8 labels: expected as many$"),
    ],
)
def test_a_malformed_table_of_slides_is_one_line(root: Path, slides: list[str], column: str, message: str):
    write_slides(root, slides, column)
    with pytest.raises(ValueError, match=message):
        pcam.patches(root)


def test_without_h5py_it_is_said_what_to_install(root: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(name: str, *_: object) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ModuleNotFoundError, match=r"^PatchCamelyon needs h5py: pip install 'smoothsal-lib\[path"):
        pcam.patches(root)


def test_download_is_torchvisions_and_only_for_what_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def fetch(file_id: str, folder: str, filename: str, md5: str) -> None:
        asked.append((filename, md5))

    def unpack(archive: str) -> None:
        plant(tmp_path)

    monkeypatch.setattr(torchvision_pcam, "download_file_from_google_drive", fetch)
    monkeypatch.setattr(torchvision_pcam, "_decompress", unpack)
    for _ in range(2):
        assert len(pcam.patches(tmp_path, download=True)) == 8
    assert asked == [(name + ".gz", md5) for name, _, md5 in PCAM._FILES["test"].values()]


@pytest.mark.parametrize("error", [OSError("no route\nto host"), RuntimeError("gdown is missing"), Exception("quota")])
def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(torchvision_pcam, "download_file_from_google_drive", fail)
    with pytest.raises(RuntimeError, match=r"^PatchCamelyon could not be downloaded \((no route to host|gdown|quota)"):
        pcam.patches(tmp_path, download=True)
