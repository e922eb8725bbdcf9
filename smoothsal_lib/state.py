"""Leave a network exactly as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def check_model(model: nn.Module) -> nn.Module:
    """Return ``model``; raise a one-line ``TypeError`` when it is not a ``torch.nn.Module``."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected the network as a torch.nn.Module, got {type(model).__name__}")
    return model


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; on every exit the network and the random state are what they were.

    Training flags are remembered per module, because a network whose batch-norm layers are frozen has mixed flags that
    ``model.train()`` would overwrite. Parameters, buffers and ``.grad`` need no restoring: nothing in this library
    writes to them. The random state is restored because a network may draw numbers even in evaluation mode.

    Raises:
        TypeError: when ``model`` is not a ``torch.nn.Module``.
    """
    check_model(model)
    flags = [(module, module.training) for module in model.modules()]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, training in flags:
                module.training = training
