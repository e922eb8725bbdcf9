"""Leave a network exactly as it was found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


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


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of the module itself, by name; a tensor with two names comes twice."""
    return chain(
        module.named_parameters(recurse=False, remove_duplicate=False),
        module.named_buffers(recurse=False, remove_duplicate=False),
    )


@contextmanager
def replaced(model: nn.Module, versions: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Inside the block, other tensors stand in the places of some parameters and buffers.

    The original tensors are set aside, never written to: on every exit they return, the same objects with the same
    values, version counters and ``.grad``. A tied tensor is replaced wherever the network uses it.

    Args:
        model: the network.
        versions: pairs (original, replacement); a parameter needs a parameter.
    """
    pairs = list(versions)
    replacement = {id(original): other for original, other in pairs}
    places = [(module, name, tensor) for module in model.modules() for name, tensor in own_tensors(module)]
    places = [place for place in places if id(place[2]) in replacement]
    try:
        for module, name, original in places:
            setattr(module, name, replacement[id(original)])
        yield
    finally:
        for module, name, original in places:
            setattr(module, name, original)
