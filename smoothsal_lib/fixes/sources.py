"""Where the pictures of a fit come from: from memory, or from a stream that is read anew in every epoch.

Either gives batches, and in a team each process its own part of them. What an epoch gives follows from (seed, epoch)
alone, so that a run that was killed finds the same batches again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from smoothsal_lib.layers import check_images
from smoothsal_lib.loading import epoch_seed
from smoothsal_lib.parallel import Team

HELD_OUT = 8  # every 8th image in memory is kept out of the fit, to measure the errors on


class Source(Protocol):
    """What a fit asks of its pictures.

    Attributes:
        steps: batches an epoch.
        held_out: (N, C, H, W), pictures that no batch holds.
        settings: what to tell the record, and a checkpoint, about them.
    """

    steps: int
    held_out: Tensor
    settings: dict[str, Any]

    def to_observe(self, batch_size: int) -> Iterator[Tensor]:
        """Pictures and their mirror images in whole batches, the same ones in every process."""

    def epoch(self, epoch: int, start: int, mirror: bool) -> Iterator[Tensor]:
        """This process's part of every batch of an epoch, from number ``start`` on; half of them mirrored if asked."""


class InMemory:
    """One tensor of pictures (N, C, H, W), or batches of it, with an order of its own in every epoch."""

    def __init__(
        self, images: Tensor | Sequence[Any], held_out: Tensor | None, batch_size: int, seed: int, team: Team
    ) -> None:
        pictures = _together(images)
        if len(pictures) < HELD_OUT:
            raise ValueError(f"expected at least {HELD_OUT} images, got {len(pictures)}")
        self.images, self.batch_size, self.seed, self.team = pictures, batch_size, seed, team
        self.settings: dict[str, Any] = {"images": len(pictures)}
        if held_out is None:
            seen = torch.arange(len(pictures)) % HELD_OUT != HELD_OUT - 1
            self.images, held_out = pictures[seen], pictures[~seen]
        self.held_out = held_out
        self.steps = -(-len(self.images) // batch_size)

    def to_observe(self, batch_size: int) -> Iterator[Tensor]:
        """See :class:`Source`."""
        count = len(self.images)
        order = torch.randperm(2 * count, generator=torch.Generator().manual_seed(self.seed))
        for indices in order.split(batch_size):
            batch, mirrored = self.images[indices % count], indices >= count
            batch[mirrored] = batch[mirrored].flip(-1)
            yield batch

    def epoch(self, epoch: int, start: int, mirror: bool) -> Iterator[Tensor]:
        """See :class:`Source`."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        order = torch.randperm(len(self.images), generator=generator)
        for step, indices in enumerate(order.split(self.batch_size)):
            mirrored = torch.rand(len(indices), generator=generator) < 0.5 if mirror else None
            if step < start:
                continue
            part = self.team.part(len(indices))
            batch = self.images[indices[part]]
            if mirrored is not None:
                batch[mirrored[part]] = batch[mirrored[part]].flip(-1)
            yield batch


class Streamed:
    """Batches from an iterable that is read anew in every epoch; no more than one batch of it is held.

    Its order is drawn from torch's global random numbers, or from the loader's ``generator``: both are seeded here. Of
    what it shows, the loader, its samplers and its data set are told the epoch if they have a method ``set_epoch``, as
    torch's DistributedSampler does. A method ``begin(epoch, step)`` of the iterable replaces all that; without it, the
    batches before the first one wanted are read and dropped. An attribute ``settings`` of it, a dictionary, is told to
    the record, and a checkpoint made with others is refused.
    """

    def __init__(self, stream: Iterable[Any], held_out: Tensor | None, model: nn.Module, seed: int, team: Team) -> None:
        if isinstance(stream, Iterator):
            raise ValueError(
                f"a {type(stream).__name__} can be read only once: pass what it comes from, such as a DataLoader, "
                "or list(...) of it to hold all in memory"
            )
        if not isinstance(stream, Iterable):
            raise TypeError(f"expected a tensor or batches of images, got {type(stream).__name__}")
        try:
            self.steps = len(stream)  # type: ignore[arg-type]
        except TypeError:
            raise ValueError(
                f"expected a stream with a length, its number of batches, but len({type(stream).__name__}) fails"
            ) from None
        if held_out is None:
            raise ValueError(
                "a stream needs held_out=, pictures that it does not hold, to measure the errors on: a few hundred of "
                "the validation set; or pass list(...) of the stream to hold it in memory and set every 8th aside"
            )
        self.stream, self.held_out, self.model, self.seed, self.team = stream, held_out, model, seed, team
        self.device = next(model.parameters()).device
        self.settings: dict[str, Any] = {"batches": self.steps, "held_out": len(held_out)}
        self.settings |= getattr(stream, "settings", {})

    def to_observe(self, batch_size: int) -> Iterator[Tensor]:
        """See :class:`Source`. The stream's batches are as large as they come."""
        for part in self._read(0, 0):
            counts = torch.zeros(self.team.size)
            counts[self.team.rank] = len(part)
            self.team.add_up([counts])
            last = [int(edge) for edge in counts.cumsum(0)]
            whole = part.new_zeros(last[-1], *part.shape[1:])
            whole[last[self.team.rank] - len(part) : last[self.team.rank]] = part
            self.team.add_up([whole])
            yield whole
            yield whole.flip(-1)

    def epoch(self, epoch: int, start: int, mirror: bool) -> Iterator[Tensor]:
        """See :class:`Source`. Whole batches are mirrored: which pictures others hold, a process does not know."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        mirrored = (torch.rand(self.steps, generator=generator) < 0.5).tolist()
        number = start
        for number, batch in enumerate(self._read(epoch, start), start + 1):
            if number > self.steps:
                break
            yield batch.flip(-1) if mirror and mirrored[number - 1] else batch
        if number != self.steps:
            found = f"at least {number}" if number > self.steps else number
            raise ValueError(f"the stream's length is {self.steps} batches, but it gave {found} in epoch {epoch + 1}")

    def _read(self, epoch: int, start: int) -> Iterator[Tensor]:
        """Batches on the model's device; the first one is looked at closely, since that takes time on a GPU."""
        with self._seeded(epoch, start) as skipped:
            for number, batch in enumerate(islice(self.stream, skipped, None)):
                x = _pictures(batch).detach().to(self.device, non_blocking=self.device.type == "cuda")
                if number == 0 and len(x):
                    check_images(x, self.model)
                yield x

    @contextmanager
    def _seeded(self, epoch: int, start: int) -> Iterator[int]:
        """Make the stream ready for an epoch; yields how many batches are still to be dropped."""
        begin = getattr(self.stream, "begin", None)
        if begin is not None:
            begin(epoch, start)
            yield 0
            return
        parts: list[Any] = [
            self.stream,
            *(getattr(self.stream, name, None) for name in ("batch_sampler", "sampler", "dataset")),
        ]
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        torch.manual_seed(epoch_seed(self.seed, epoch))
        own = {
            id(found): found for part in parts if isinstance(found := getattr(part, "generator", None), torch.Generator)
        }
        states = [(generator, generator.get_state()) for generator in own.values()]
        try:
            for generator in own.values():
                generator.manual_seed(epoch_seed(self.seed, epoch))
            yield start
        finally:
            for generator, state in states:
                generator.set_state(state)


def _pictures(batch: Any) -> Tensor:
    """The images of a batch, which is a tensor or begins with one."""
    found = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(found, Tensor):
        raise TypeError(f"expected batches that are tensors or begin with one, got {type(found).__name__}")
    return found


def _together(images: Tensor | Sequence[Any]) -> Tensor:
    """One tensor (N, C, H, W) from a tensor, or from batches that are tensors or begin with one."""
    if isinstance(images, Tensor):
        return images.detach()
    batches = [_pictures(batch) for batch in images]
    if not batches:
        raise ValueError("expected images, got a sequence without any")
    if len({batch.shape[1:] for batch in batches}) > 1:
        raise ValueError(f"expected images of one size, got {sorted({tuple(b.shape[1:]) for b in batches})}")
    return torch.cat(batches).detach()
