"""More pictures than fit into memory: read from class folders or from tar shards, in batches, by several processes.

    loader = stream_pictures("imagenet/train")                              # as torchvision's ImageFolder reads it
    loader = stream_pictures("imagenet/train-{000000..000146}.tar")         # as the library webdataset writes it

Shards are indexed once, by their headers, and pictures are then read at their places. webdataset itself reads shards
from end to end: their number must divide by that of the processes and loader workers, or pictures are lost or doubled
or a process runs dry before the others. With an index, batches are lists of numbers: every process takes its part of
each, the workers' number changes nothing, and a run goes on in the middle of an epoch without reading what came before.
"""

from __future__ import annotations

import io
import re
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from smoothsal_lib.datasets.benchmark import CROP_SIZE, preparation
from smoothsal_lib.datasets.tiny_imagenet import evenly
from smoothsal_lib.loading import epoch_seed
from smoothsal_lib.models import normalize
from smoothsal_lib.parallel import ALONE, Team

NO_LABEL = -1


class DamagedPictureError(ValueError):
    """A picture that cannot be decoded; one line says which.

    A loader's worker hands an error on by its class and its printed traceback. The traceback's last line says it all.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rpartition("\n")[2].rpartition(f"{type(self).__name__}: ")[2])


class Folder(Dataset[tuple[Tensor, int]]):
    """The pictures of class folders, read by torchvision's ``ImageFolder``: labels count the folders, sorted.

    Args:
        root: the folder of the class folders.
        size: height and width in pixels, see :func:`stream_pictures`.

    Raises:
        FileNotFoundError: when there are no class folders, or one of them is empty.
    """

    def __init__(self, root: str | Path, size: int = CROP_SIZE) -> None:
        self.samples = ImageFolder(str(root)).samples
        self.prepare = preparation(size)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A picture, uint8 of shape (3, size, size), and its label."""
        path, label = self.samples[index]
        return _decoded(Path(path).read_bytes(), self.prepare, lambda: path), label

    def order(self, generator: torch.Generator) -> list[int]:
        """All numbers, shuffled."""
        return torch.randperm(len(self), generator=generator).tolist()


class Shards(Dataset[tuple[Tensor, int]]):
    """The pictures of tar files: members ``KEY.jpg`` (or another format), and beside each ``KEY.cls``, its label.

    Args:
        paths: of tar files, which must not be compressed.
        size: height and width in pixels, see :func:`stream_pictures`.
        team: the processes that share the pictures.

    Raises:
        ValueError: for a file that is no such tar file, a label that is no number, or no pictures at all.
    """

    def __init__(self, paths: Sequence[str | Path], size: int = CROP_SIZE, team: Team = ALONE) -> None:
        self.paths, self.prepare = [Path(path) for path in paths], preparation(size)
        # The leader reads the headers for all. One array: Python objects would be copied into every worker.
        indices = [np.array(_index(path), np.int64).reshape(-1, 3) for path in self.paths] if team.leads else []
        indices = team.tell(indices)
        self.places, self.ends = np.concatenate(indices), [0, *np.cumsum([len(one) for one in indices]).tolist()]
        if not len(self.places):
            raise ValueError(f"no pictures in {len(self.paths)} tar files, {str(self.paths[0])!r} first")

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A picture, uint8 of shape (3, size, size), and its label, -1 where the shard has none."""
        path = self.paths[bisect_right(self.ends, index) - 1]
        offset, length, label = self.places[index].tolist()
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        return _decoded(data, self.prepare, lambda: f"{self.name(index)} in {str(path)}"), label

    def name(self, index: int) -> str:
        """What a picture is called in its shard; the index keeps no names, since errors alone need them."""
        path, offset = self.paths[bisect_right(self.ends, index) - 1], self.places[index, 0]
        with tarfile.open(path, "r:") as archive:
            return next(member.name for member in archive if member.offset_data == offset)

    def order(self, generator: torch.Generator) -> list[int]:
        """All numbers, shuffled within shards that are shuffled themselves: one shard is read at a time."""
        order: list[int] = []
        for shard in torch.randperm(len(self.paths), generator=generator).tolist():
            first, last = self.ends[shard : shard + 2]
            order += (first + torch.randperm(last - first, generator=generator)).tolist()
        return order


class Batches(Sampler[list[int]]):
    """This process's part of every batch of an epoch; which epoch, and from which batch on, says :meth:`begin`."""

    def __init__(self, source: Folder | Shards, chosen: Sequence[int], batch_size: int, seed: int, team: Team) -> None:
        self.source, self.batch_size, self.seed, self.team = source, batch_size, seed, team
        self.chosen = set(chosen) if len(chosen) < len(source) else None
        self.count, self.epoch, self.first = len(chosen), 0, 0

    def begin(self, epoch: int, step: int = 0) -> None:
        """The next pass is epoch number ``epoch``, from its batch number ``step`` on."""
        self.epoch, self.first = epoch, step

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.source.order(torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch)))
        if self.chosen is not None:
            order = [number for number in order if number in self.chosen]
        for start in range(self.first * self.batch_size, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            yield batch[self.team.part(len(batch))]


class PictureLoader(DataLoader[tuple[Tensor, int]]):
    """A DataLoader whose every pass is an epoch of its own; made by :func:`stream_pictures`."""

    batch_sampler: Batches
    settings: dict[str, Any]  # what the batches depend on, for whoever goes on in the middle of an epoch
    dataset: Folder | Shards

    def begin(self, epoch: int, step: int = 0) -> None:
        """The next pass is epoch number ``epoch``, from its batch number ``step`` on, and so until told otherwise."""
        self.batch_sampler.begin(epoch, step)


def stream_pictures(
    source: str | Path,
    *,
    batch_size: int = 64,
    size: int = CROP_SIZE,
    images: int | None = None,
    seed: int = 0,
    workers: int = 0,
    team: Team = ALONE,
) -> PictureLoader:
    """A DataLoader of pictures as a network takes them: (n, 3, size, size) float32, normalised, and labels (n,).

    The shorter side is resized to 8/7 of ``size`` and the middle is cut out, as torchvision's published accuracies were
    measured. The order is drawn from (seed, epoch); ``loader.begin(epoch, step)`` says where the next pass begins, and
    :func:`smoothsal_lib.fit_surrogate` calls it. Memory is pinned where there is a GPU.

    Args:
        source: a folder of class folders, as torchvision's ``ImageFolder`` reads it; a tar file; or the name of several
            with a range in braces, ``train-{000000..000146}.tar``, as the library webdataset writes it. Shards hold
            ``KEY.jpg`` (or .png, .webp, ...) and, if there are labels, ``KEY.cls`` with a number.
        batch_size: pictures a batch, of all processes together. Each gets its part of every batch; the last one may
            leave some with none, and then n is 0.
        size: height and width in pixels.
        images: take only that many, evenly spread over the source; ``None`` for all.
        seed: of the order.
        workers: processes that decode pictures, for each process of the team. Their number changes no batch.
        team: the processes that share the pictures.

    Returns:
        The loader; ``loader.dataset`` gives pictures, uint8, by their number. Labels are -1 where a shard has none.
        Iterating raises :class:`DamagedPictureError`, a ``ValueError`` of one line, for a picture that cannot be
        decoded: it names the file, and the member of a shard.

    Raises:
        FileNotFoundError: when the source is not there; the message names what is missing.
        ValueError: for a number below 1, or a source that is neither of these.
    """
    for name, value in {"batch_size": batch_size, "size": size}.items():
        if value < 1:
            raise ValueError(f"{name} = {value} is not possible: give 1 or more")
    dataset = _open(source, size, team)
    batches = Batches(dataset, evenly(len(dataset), images), batch_size, seed, team)
    loader = PictureLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=partial(_batch, size=size),
        pin_memory=torch.cuda.is_available(),
    )
    loader.settings = {"source": Path(source).name, "size": size, "pictures": batches.count, "order": seed}
    return loader


def _open(source: str | Path, size: int, team: Team) -> Folder | Shards:
    """The pictures of a folder or of shards."""
    path = Path(source)
    if path.is_dir():
        return Folder(path, size)
    if path.suffix != ".tar":
        missing = FileNotFoundError if not path.exists() else ValueError
        raise missing(f"{str(source)!r} is no folder of class folders and no name of tar files (....tar)")
    paths = _expanded(str(source))
    for shard in paths:
        if not Path(shard).is_file():
            raise FileNotFoundError(f"no shard {shard!r}, which is one of the {len(paths)} of {str(source)!r}")
    return Shards(paths, size, team)


def _expanded(name: str) -> list[str]:
    """``a-{08..11}.tar`` to its four names; a name without a range to itself."""
    found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", name)
    if found is None:
        return [name]
    before, first, last, after = found.groups()
    if int(first) > int(last):
        raise ValueError(
            f"the range {{{first}..{last}}} of {name!r} is empty: the first number must not exceed the last"
        )
    return [f"{before}{number:0{len(first)}d}{after}" for number in range(int(first), int(last) + 1)]


def _index(path: Path) -> list[tuple[int, int, int]]:
    """Where the pictures of a tar file stand: (offset, length, label) of each, in the file's order."""
    pictures: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                # webdataset's key ends at the first dot of the file's name.
                folder, slash, name = member.name.rpartition("/")
                key, _, ending = name.partition(".")
                key = folder + slash + key
                if f".{ending.lower()}" in IMG_EXTENSIONS:
                    pictures[key] = (member.offset_data, member.size)
                elif ending == "cls":
                    file = archive.extractfile(member)
                    text = b"" if file is None else file.read()
                    if not text.strip().isdigit():
                        raise ValueError(f"the label {member.name!r} in {str(path)!r} is {text!r}, which is no number")
                    labels[key] = int(text)
    except tarfile.TarError as error:
        raise ValueError(f"{str(path)!r} is no uncompressed tar file ({error})") from None
    return [(*place, labels.get(key, NO_LABEL)) for key, place in pictures.items()]


def _decoded(data: bytes, prepare: Callable[[Image.Image], Tensor], where: Callable[[], str]) -> Tensor:
    """The picture that ``data`` encodes, (3, size, size) uint8; ``where`` says whence it comes, for an error."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return prepare(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's formats raise
        reason = " ".join(str(error).split())
        raise DamagedPictureError(f"{where()} cannot be decoded ({reason})") from None


def _batch(pictures: list[tuple[Tensor, int]], size: int) -> tuple[Tensor, Tensor]:
    """Pictures and labels, stacked and normalised; of none, a batch of none."""
    if not pictures:
        return torch.empty(0, 3, size, size), torch.empty(0, dtype=torch.int64)
    stacked = torch.stack([picture for picture, _ in pictures])
    return normalize(stacked.float() / 255), torch.tensor([label for _, label in pictures])
