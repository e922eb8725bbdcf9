"""What every repair of a network has in common."""

from __future__ import annotations

import abc
from contextlib import AbstractContextManager

from torch import nn


class Fix(abc.ABC):
    """A change to how a network's strided convolutions run, for the length of a context."""

    @abc.abstractmethod
    def repair(self, model: nn.Module) -> AbstractContextManager[None]:
        """Change ``model`` on entering; on leaving, by whatever way, it is exactly what it was.

        Raises:
            ValueError: on entering, for a network that this fix cannot repair.
        """
