from __future__ import annotations

import io
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageNet, Imagenette
from torchvision.models import ResNet34_Weights

from smoothsal_lib.datasets import benchmark
from smoothsal_lib.datasets.benchmark import IMAGENETTE_INDEX, open_benchmark
from smoothsal_lib.datasets.tiny_imagenet import load_split
from smoothsal_lib.models import normalize

IMAGENET_WNIDS = [f"n{20000000 - 7 * i:08}" for i in range(1000)]  # descending: the loader has to sort


def _jpeg(size: tuple[int, int], seed: int = 0, mode: str = "RGB") -> bytes:
    """Smooth random colours, (width, height)."""
    rough = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8))
    data = io.BytesIO()
    rough.resize(size, Image.Resampling.BICUBIC).convert(mode).save(data, "JPEG")
    return data.getvalue()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``val/<wnid>/*.JPEG`` as torchvision's ImageNet leaves it: one picture a class, a second one in the first."""
    root = tmp_path_factory.mktemp("imagenet")
    picture = _jpeg((300, 260))
    for i, wnid in enumerate(IMAGENET_WNIDS):
        folder = root / "val" / wnid
        folder.mkdir(parents=True)
        (folder / f"ILSVRC2012_val_{i:08}.JPEG").write_bytes(picture)
    (folder / "ILSVRC2012_val_99999999.JPEG").write_bytes(_jpeg((230, 500), 1, "L"))
    return root


@pytest.fixture
def imagenette(tmp_path: Path) -> Path:
    """Two pictures a class of 320 px on the shorter side, in the tree that torchvision's Imagenette unpacks."""
    for i, wnid in enumerate(IMAGENETTE_INDEX):
        for split in ("train", "val"):
            folder = tmp_path / "imagenette2-320" / split / wnid
            folder.mkdir(parents=True)
            for j in range(2):
                (folder / f"ILSVRC2012_{split}_{j}.JPEG").write_bytes(_jpeg((320, 400), 10 * i + j))
    return tmp_path


def _published(picture: Path) -> Tensor:
    """What torchvision's accuracies were measured on."""
    return ResNet34_Weights.IMAGENET1K_V1.transforms()(Image.open(picture).convert("RGB"))


def test_tiny_imagenet_is_its_loader_normalised(fake_data: Path):
    images, labels = load_split("val", fake_data)
    found = open_benchmark("tiny-imagenet-100", fake_data)
    assert (found.name, found.description) == ("tiny-imagenet-100", "tiny-imagenet-100, validation")
    assert len(found) == 100 and found.classes == 100 and found.size == 64
    assert torch.equal(found.labels, labels) and found.labels.dtype == torch.int64
    assert found.names[3] == "val/n00000003/n00000003_0.JPEG"
    x = found.images([7, 0])
    assert x.dtype == torch.float32
    assert torch.equal(x, normalize(images[[7, 0]].float() / 255))
    assert torch.equal(found.decode(7), images[7])
    assert found.boxes is not None and torch.equal(found.boxes, torch.tensor([[16.0, 16, 47, 47]]).expand(100, 4))


def test_a_set_without_boxes_says_so(fake_data: Path, tmp_path: Path):
    shutil.copytree(fake_data, tmp_path, dirs_exist_ok=True)
    next(tmp_path.rglob("boxes.csv")).unlink()
    assert open_benchmark("tiny-imagenet-100", tmp_path).boxes is None


def test_a_spread_covers_the_classes_evenly(fake_data: Path):
    found = open_benchmark("tiny-imagenet-100", fake_data)
    assert found.spread(4) == [0, 25, 50, 75]
    assert found.spread(None) == found.spread(100) == found.spread(1000) == list(range(100))
    assert found.spread(1) == [0]
    for limit in (0, -3):
        with pytest.raises(ValueError, match=f"^limit = {limit} is not a number of images: give 1 or more"):
            found.spread(limit)


def test_imagenet_labels_are_the_places_of_the_sorted_wordnet_ids(imagenet: Path):
    found = open_benchmark("imagenet-val", imagenet)
    assert len(found) == 1001 and found.classes == 1000 and found.boxes is None
    assert found.description == "ImageNet-1k, validation, 224 px"
    assert found.labels.tolist() == [0, *range(1000)]  # the class whose id sorts first has two pictures
    assert found.names[0] == f"{IMAGENET_WNIDS[-1]}/ILSVRC2012_val_00000999.JPEG"
    assert found.names[-1] == f"{IMAGENET_WNIDS[0]}/ILSVRC2012_val_00000000.JPEG"


def test_imagenet_labels_are_those_of_torchvision(imagenet: Path):
    # ImageNet wants its development kit's table of class names; this is what it saves of it.
    torch.save(({wnid: (f"thing {wnid}",) for wnid in IMAGENET_WNIDS}, []), imagenet / "meta.bin")
    reference = ImageNet(str(imagenet), split="val")
    found = open_benchmark("imagenet-val", imagenet)
    assert found.labels.tolist() == reference.targets
    assert found.names == [Path(path).relative_to(imagenet / "val").as_posix() for path, _ in reference.samples]


def test_imagenet_pictures_are_cut_as_torchvision_cuts_them(imagenet: Path):
    found = open_benchmark("imagenet-val", imagenet)
    x = found.images([0, 1, 5])
    assert x.shape == (3, 3, 224, 224) and x.dtype == torch.float32
    for i, index in enumerate([0, 1, 5]):  # the second is a greyscale upright
        torch.testing.assert_close(x[i], _published(imagenet / "val" / found.names[index]))
    assert found.images([]).shape == (0, 3, 224, 224)


def test_another_size_keeps_the_share_that_is_cut_away(imagenet: Path):
    found = open_benchmark("imagenet-val", imagenet, size=112)
    assert found.description == "ImageNet-1k, validation, 112 px" and found.size == 112
    reduced = Image.open(imagenet / "val" / found.names[5]).resize((147, 128), Image.Resampling.BILINEAR)
    box = np.array(reduced.crop((18, 8, 130, 120)))  # of 300 x 260 px: 128 px high, the middle 112 x 112
    assert torch.equal(found.decode(5).permute(1, 2, 0), torch.from_numpy(box))


def test_pictures_are_read_when_asked_for_and_not_before(imagenette: Path):
    found = open_benchmark("imagenette", imagenette)
    (imagenette / "imagenette2-320" / "val" / found.names[3]).write_bytes(b"no picture")
    assert found.images([2]).shape == (1, 3, 224, 224)
    with pytest.raises(OSError):
        found.images([3])


def test_imagenette_is_what_torchvision_reads_under_imagenets_labels(imagenette: Path):
    found = open_benchmark("imagenette", imagenette)
    assert found.description == "Imagenette (imagenette2-320), validation, 224 px"
    reference = Imagenette(imagenette, split="val", size="320px")
    assert len(found) == len(reference) == 20 and found.classes == 1000
    categories = ResNet34_Weights.IMAGENET1K_V1.meta["categories"]
    for i, (_, label) in enumerate(reference):
        assert categories[found.labels[i]] in reference.classes[label]
        assert found.names[i].startswith(f"{reference.wnids[label]}/")
    torch.testing.assert_close(found.images([6])[0], _published(imagenette / "imagenette2-320/val" / found.names[6]))


def test_a_place_is_found_itself_below_its_parent_and_by_the_environment(
    imagenet: Path, imagenette: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names = open_benchmark("imagenet-val", imagenet).names
    assert open_benchmark("imagenet-val", imagenet / "val").names == names
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for target in (imagenet, imagenet / "val"):  # with and without the folder "val" in between
        (mirror / "imagenet-val").symlink_to(target)
        assert open_benchmark("imagenet-val", mirror).names == names
        (mirror / "imagenet-val").unlink()
    monkeypatch.setenv("SMOOTHSAL_DATA", str(imagenette))
    assert len(open_benchmark("imagenette")) == len(open_benchmark("imagenette", imagenette / "imagenette2-320")) == 20
    (imagenette / "imagenette2-320").rename(imagenette / "imagenette2")
    assert "(imagenette2)" in open_benchmark("imagenette").description


def test_imagenette_is_downloaded_only_on_request_and_only_once(
    imagenette: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    target = tmp_path / "fresh"

    def unpack(root: Path, split: str, size: str, download: bool) -> None:
        asked.append((root, split, size, download))
        shutil.copytree(imagenette / "imagenette2-320", root / "imagenette2-320")

    monkeypatch.setattr(benchmark, "Imagenette", unpack)
    with pytest.raises(FileNotFoundError):
        open_benchmark("imagenette", target)
    assert not asked
    for _ in range(2):
        assert len(open_benchmark("imagenette", target, download=True)) == 20
    assert asked == [(target, "val", "320px", True)]


def test_a_failed_download_says_why_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise URLError("no route\nto host")

    monkeypatch.setattr(benchmark, "Imagenette", fail)
    with pytest.raises(RuntimeError, match=r"^imagenette could not be downloaded to '.+' \(.*no route to host.*\)$"):
        open_benchmark("imagenette", tmp_path, download=True)


def test_bad_input_is_one_line(
    imagenet: Path, imagenette: Path, fake_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ValueError, match="^unknown benchmark 'cifar': choose one of tiny-imagenet-100, imagenet-val, "):
        open_benchmark("cifar", tmp_path)
    with pytest.raises(ValueError, match="^imagenet-val cannot be downloaded here: only imagenette can$"):
        open_benchmark("imagenet-val", tmp_path, download=True)
    with pytest.raises(ValueError, match="^size = 224: the images of tiny-imagenet-100 have 64 pixels and are not"):
        open_benchmark("tiny-imagenet-100", fake_data, size=224)
    with pytest.raises(ValueError, match="^size = 0 is not a number of pixels: give 1 or more$"):
        open_benchmark("imagenet-val", imagenet, size=0)
    found = open_benchmark("imagenette", imagenette)
    for index in (20, -1):
        with pytest.raises(IndexError, match=f"^no image {index} in imagenette: it has images 0 to 19$"):
            found.images([0, index])


def test_missing_folders_say_what_was_expected_and_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError, match="^no tiny-imagenet-100 in '.+': expected classes.csv, train.zip"):
        open_benchmark("tiny-imagenet-100", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="^no ImageNet validation images in '.+': expected val/<wnid>/.+ of im"):
        open_benchmark("imagenet-val", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="^no imagenette2-320 or imagenette2 in '.+': pass download=True, or "):
        open_benchmark("imagenette", tmp_path / "nowhere")
    monkeypatch.delenv("SMOOTHSAL_DATA", raising=False)
    for name in ("imagenet-val", "imagenette2-320"):
        with pytest.raises(FileNotFoundError, match=f"^no data folder .+ SMOOTHSAL_DATA to the parent of {name}$"):
            open_benchmark(name.removesuffix("2-320"))


def test_class_folders_must_be_those_of_the_set(imagenette: Path):
    val = imagenette / "imagenette2-320" / "val"
    with pytest.raises(ValueError, match=r"has 10 class folders: ImageNet-1k's labels need all 1,000$"):
        open_benchmark("imagenet-val", val)
    shutil.copytree(val / "n01440764", val / "n01443537")
    with pytest.raises(ValueError, match="^'.+val' has a folder 'n01443537', which is no class of imagenette$"):
        open_benchmark("imagenette", imagenette)
