"""Work in portions as large as the memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Portions:
    """How many items are worked on at once: as many as asked for, and half of them where those do not fit.

    Attributes:
        size: items at a time; ``None`` for all. Once halved it stays so, because what did not fit will not fit again.
        alone: what to say where a single item does not fit, in one line.
    """

    def __init__(self, size: int | None, alone: str) -> None:
        self.size, self.alone = size, alone

    def each(self, run: Callable[[slice], T], count: int) -> Iterator[tuple[slice, T]]:
        """What ``run`` makes of ``count`` items, portion by portion, with the items that each is made of.

        Args:
            run: from the items of a portion, as a slice, to a result. It is called again for fewer of them where it
                raises for lack of memory, so it must leave nothing behind then.
            count: how many items there are.

        Raises:
            MemoryError: where a single item does not fit.
        """
        start = 0
        while start < count:
            part = slice(start, count if self.size is None else min(count, start + self.size))
            try:
                found = run(part)
            except (RuntimeError, MemoryError) as error:
                if not lack_of_memory(error):
                    raise
            else:
                yield part, found
                del found  # the next portion needs the memory
                start = part.stop
                continue
            # Outside the handler, which keeps all alive that the failed run had made.
            torch.cuda.empty_cache()
            if part.stop - start == 1:
                raise MemoryError(self.alone)
            self.size = (part.stop - start + 1) // 2


def check_size(name: str, size: int | None) -> int | None:
    """Return a number of items at a time, ``None`` for all; raise a one-line ``ValueError`` when it is none.

    Args:
        name: what to call it in the error.
        size: the number.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"expected {name} as a whole number, at least 1, or None for all at once, got {size!r}")
    return size


def no_room(x: Tensor) -> str:
    """What to say where a single picture out of (N, C, H, W) does not fit."""
    return f"{x.device} has no memory for one picture of {' x '.join(map(str, x.shape[2:]))} pixels"


def lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the computer, has no memory left.

    CUDA has a type for it; the CPU's allocator, cuBLAS and cuDNN have their words only.
    """
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return any(
        words in str(error) for words in ("DefaultCPUAllocator", "STATUS_ALLOC_FAILED", "CUDA error: out of memory")
    )
