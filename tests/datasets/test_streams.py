"""Streams give every picture once, whoever reads them, and what they give is what the benchmark's pictures are."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from smoothsal_lib.datasets.streams import DamagedPictureError, stream_pictures
from smoothsal_lib.models import normalize
from smoothsal_lib.parallel import Team

COUNT = 23


def encoded(number: int) -> bytes:
    """A picture of its own for every number, larger than what is cut out of it, and not square."""
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (40, 50, 3), generator=generator, dtype=torch.uint8).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def write_shards(folder: Path, damaged: int | None = None, labels: bool = True) -> str:
    """Three shards of unequal length; returns their common name."""
    for shard, numbers in enumerate((range(0, 5), range(5, 20), range(20, COUNT))):
        with tarfile.open(folder / f"s-{shard:02d}.tar", "w") as archive:
            for number in numbers:
                data = encoded(number)
                if labels:
                    add(archive, f"part/{number:04d}.cls", str(number).encode())
                add(archive, f"part/{number:04d}.png", data[:-200] if number == damaged else data)
                add(archive, f"part/{number:04d}.json", b"{}")
    return str(folder / "s-{00..02}.tar")


def write_folder(folder: Path) -> str:
    for number in range(COUNT):
        place = folder / "train" / f"class{number:02d}"  # one picture each, so that labels are numbers
        place.mkdir(parents=True)
        (place / "a.png").write_bytes(encoded(number))
    return str(folder / "train")


@pytest.fixture(params=["folder", "shards"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return write_folder(tmp_path) if request.param == "folder" else write_shards(tmp_path)


def read(source: str, epoch: int = 0, step: int = 0, **options) -> list[list[int]]:
    """The labels of an epoch's batches."""
    loader = stream_pictures(source, **{"batch_size": 5, "size": 16, **options})
    loader.begin(epoch, step)
    return [labels.tolist() for _, labels in loader]


def test_pictures_are_prepared_as_for_published_accuracies(source: str) -> None:
    prepare = transforms.Compose([transforms.Resize(18), transforms.CenterCrop(16), transforms.PILToTensor()])
    for images, labels in stream_pictures(source, batch_size=5, size=16):
        assert images.dtype == torch.float32 and images.shape == (len(labels), 3, 16, 16)
        for image, label in zip(images, labels.tolist(), strict=True):
            picture = Image.open(io.BytesIO(encoded(label)))
            torch.testing.assert_close(image, normalize(prepare(picture).float() / 255))


def test_an_epoch_holds_every_picture_once_in_an_order_of_its_own(source: str) -> None:
    first, second, other_seed = read(source), read(source, epoch=1), read(source, seed=1)
    for batches in (first, second, other_seed):
        assert sorted(sum(batches, [])) == list(range(COUNT))
        assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert first == read(source) and first != second != other_seed != first
    assert len(stream_pictures(source, batch_size=5, size=16)) == 5


def test_shards_are_read_one_after_the_other(tmp_path: Path) -> None:
    order = sum(read(write_shards(tmp_path)), [])
    shard = [0 if number < 5 else 1 if number < 20 else 2 for number in order]
    assert sum(a != b for a, b in zip(shard, shard[1:], strict=False)) == 2
    assert order != sorted(order)


class Apart(Team):
    """A process of a team without the others, which reads for itself what the leader would tell."""

    leads = True

    def tell(self, value: Any) -> Any:
        return value


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_parts_of_a_team_are_the_batches_of_one_process(source: str, size: int) -> None:
    whole = read(source)
    parts = [read(source, team=Apart(rank, size)) for rank in range(size)]
    assert [sum(pieces, []) for pieces in zip(*parts, strict=True)] == whole
    if size == 4:  # three are left for the last batch
        assert [] in [part[-1] for part in parts]


def test_the_number_of_workers_changes_nothing(source: str) -> None:
    assert read(source, workers=2, team=Apart(1, 4)) == read(source, team=Apart(1, 4))


def test_a_pass_begins_in_the_middle(source: str) -> None:
    assert read(source, epoch=1, step=3) == read(source, epoch=1)[3:]


def test_a_part_of_the_pictures_is_spread_evenly(source: str) -> None:
    assert sorted(sum(read(source, images=4), [])) == [0, 5, 11, 17]


def test_shards_without_labels(tmp_path: Path) -> None:
    assert set(sum(read(write_shards(tmp_path, labels=False)), [])) == {-1}


def test_one_shard_by_its_name(tmp_path: Path) -> None:
    write_shards(tmp_path)
    assert sorted(sum(read(str(tmp_path / "s-02.tar")), [])) == [20, 21, 22]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_named_in_one_line(tmp_path: Path, workers: int) -> None:
    source = write_shards(tmp_path, damaged=7)
    with pytest.raises(DamagedPictureError, match=r"^part/0007.png in .*s-01.tar cannot be decoded \(.*\)$") as caught:
        read(source, workers=workers)
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    source = write_folder(tmp_path)
    (tmp_path / "train" / "class03" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DamagedPictureError, match=r"^\S*class03.a.png cannot be decoded"):
        read(source)


def test_grey_pictures_get_three_channels(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    Image.new("L", (20, 20), 100).save(tmp_path / "one" / "grey.png")
    images: Tensor = next(iter(stream_pictures(tmp_path, size=16)))[0]
    assert images.shape == (1, 3, 16, 16)


def compressed(folder: Path) -> Path:
    with tarfile.open(folder / "a.tar", "w:gz") as archive:
        add(archive, "a.png", encoded(0))
    return folder / "a.tar"


def mislabelled(folder: Path) -> Path:
    with tarfile.open(folder / "a.tar", "w") as archive:
        add(archive, "a.cls", b"cat")
    return folder / "a.tar"


def empty(folder: Path) -> Path:
    with tarfile.open(folder / "a.tar", "w") as archive:
        add(archive, "a.txt", b"")
    return folder / "a.tar"


def text(folder: Path) -> Path:
    (folder / "a.txt").write_text("")
    return folder / "a.txt"


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (compressed, {}, ValueError, r"a.tar' is no uncompressed tar file"),
        (mislabelled, {}, ValueError, r"the label 'a.cls' in .*a.tar' is b'cat', which is no number"),
        (empty, {}, ValueError, r"no pictures in 1 tar files, .*a.tar' first"),
        (text, {}, ValueError, r"a.txt' is no folder of class folders and no name of tar files"),
        (lambda folder: folder / "none", {}, FileNotFoundError, r"none' is no folder"),
        (lambda folder: folder / "s-{00..03}.tar", {}, FileNotFoundError, r"no shard .*s-03.tar', .* one of the 4 of"),
        (lambda folder: folder / "s-{03..00}.tar", {}, ValueError, r"range \{03..00\} .* is empty"),
        (lambda folder: folder / "s-00.tar", {"batch_size": 0}, ValueError, "batch_size = 0 is not possible"),
        (lambda folder: folder / "s-00.tar", {"size": 0}, ValueError, "size = 0 is not possible"),
        (lambda folder: folder / "s-00.tar", {"images": 0}, ValueError, "limit = 0 is not a number of images"),
    ],
)
def test_bad_input(tmp_path: Path, make, options, error, message) -> None:
    write_shards(tmp_path)
    with pytest.raises(error, match=message) as caught:
        stream_pictures(make(tmp_path), **options)
    assert "\n" not in str(caught.value)
