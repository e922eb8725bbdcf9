"""Many processes that share one run, on one machine or on many: torchrun starts them, gloo or NCCL connects them.

torchrun --nproc-per-node 4 -m smoothsal_lib evaluate --images 50000 --out FILE

Without torchrun a process is a team of its own, and every command is the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from smoothsal_lib.memory import lack_of_memory

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")
# A fast process waits for a slow one as long as it takes: torchrun, not the clock, notices one that died.
PATIENCE = timedelta(days=7)
PAUSE = 0.05  # seconds between two looks at who has come

_meeting: Store | None = None  # what this process and its team have in common, once they have met


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
        """Go on when all processes have come here.

        Raises:
            ConnectionError: when one of them has ended instead; so do the methods below.
        """
        # Through the CPU, which notices at once when a process is gone; NCCL may wait for it until patience ends.
        self._exchange(lambda: dist.all_reduce(torch.zeros(1)))

    def tell(self, value: T) -> T:
        """The leader's value, in every process.

        Args:
            value: what pickle can carry; that of other processes is ignored.
        """
        box = [value]
        self._exchange(lambda: dist.broadcast_object_list(box, 0, device=torch.device("cpu")))
        return box[0]

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
            self._exchange(lambda: exchange(message))
            parts = message.split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def _exchange(self, talk: Callable[[], object]) -> None:
        if self.size == 1:
            return
        try:
            talk()
        except RuntimeError as error:
            if lack_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
            raise ConnectionError(f"another process of this run has ended, or cannot be reached: {reason}") from error


ALONE = Team()


@contextmanager
def joined(device: torch.device | str) -> Iterator[tuple[Team, torch.device]]:
    """The team that torchrun has put this process into, and the device that it is to use.

    Args:
        device: ``"cpu"``, or ``"cuda"`` for the GPU of the process's own; NCCL connects GPUs, and gloo all else.

    Yields:
        ``ALONE`` and the device itself in a process that torchrun has not started. All leave the block together, so
        that torchrun starts all of them again where it may, should the leader fail in what it does last.

    Raises:
        ValueError: for more processes on a machine than it has GPUs.
    """
    global _meeting
    device = torch.device(device)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE, device
        return
    _meeting, team = _meet()
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}, "
                "which --nproc-per-node must not exceed"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_meeting, rank=team.rank, world_size=team.size, timeout=PATIENCE)
    # After an error the group is left to the end of the process, which others notice: it has said why by then.
    yield team, device
    team.wait()
    dist.destroy_process_group()
    _meeting = None


def first_to_fail() -> bool:
    """Whether no process of the team has failed before: what the others have to say is the same again, or an echo."""
    try:
        return _meeting is None or int(_meeting.add("failed", 1)) == 1
    except RuntimeError:  # torchrun is gone, and its store
        return True


def _meet() -> tuple[Store, Team]:
    """Find the other processes of this attempt: a store that they alone share, and this one's place among them.

    The store that torchrun lends outlives a restart, and with it the addresses of processes that have died; torchrun's
    count of restarts is another one on every machine. So the leader thinks of a name for this attempt, and tells it to
    who asks until all have answered. A question may be a dead process's, but then nobody reads what it is told.
    """
    # Not every torch can do this, and those that cannot are never launched by torchrun.
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    name, absent = uuid4().hex, set(range(1, size))
    if rank > 0:
        store.set(f"question {rank}", name)
        name = store.get(f"answer {name}").decode()
        store.set(f"{name} {rank}", "here")
    while rank == 0 and absent:
        for other in absent:
            if store.check([f"question {other}"]):
                store.set("answer " + store.get(f"question {other}").decode(), name)
        time.sleep(PAUSE)
        absent = {other for other in absent if not store.check([f"{name} {other}"])}
    return PrefixStore(name, store), Team(rank, size)
