"""Many processes that share one run, on one machine or on many: torchrun starts them, gloo or NCCL connects them.

torchrun --nproc-per-node 4 -m smoothsal_lib evaluate --images 50000 --out FILE

Without torchrun a process is a team of its own, and every command is the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
# A fast process waits for a slow one as long as it takes: torchrun, not the clock, notices one that died.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Team:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that prints, and that writes what is written once."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of the work: every ``size``-th item, so that parts differ by one item at most."""
        return items[self.rank :: self.size]

    def part(self, count: int) -> slice:
        """This process's part of a batch of ``count``: contiguous, in the order of ranks, as equal as can be."""
        first, last = (count * edge // self.size for edge in (self.rank, self.rank + 1))
        return slice(first, last)

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors, in place, by their sums over all processes; all in one message.

        Args:
            tensors: of one dtype and on one device; the same shapes in every process.
        """
        self._together(list(tensors), dist.all_reduce)

    def take_over(self, tensors: Iterable[Tensor], rank: int = 0) -> None:
        """Replace tensors, in place, by those of one process; all in one message.

        Args:
            tensors: of one dtype and on one device; the same shapes in every process.
            rank: whose.
        """
        self._together(list(tensors), lambda flat: dist.broadcast(flat, rank))

    def _together(self, tensors: list[Tensor], exchange: Callable[[Tensor], object]) -> None:
        if self.size == 1 or not tensors:
            return
        with torch.no_grad():
            message = torch.cat([tensor.flatten() for tensor in tensors])
            exchange(message)
            parts = message.split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


ALONE = Team()


@contextmanager
def joined(device: torch.device | str) -> Iterator[tuple[Team, torch.device]]:
    """The team that torchrun has put this process into, and the device that it is to use.

    Args:
        device: ``"cpu"``, or ``"cuda"`` for the GPU of the process's own; NCCL connects GPUs, and gloo all else.

    Yields:
        ``ALONE`` and the device itself in a process that torchrun has not started.

    Raises:
        ValueError: for more processes on a machine than it has GPUs.
    """
    device = torch.device(device)
    if not dist.is_torchelastic_launched():
        yield ALONE, device
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}, "
                "which --nproc-per-node must not exceed"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Team(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
