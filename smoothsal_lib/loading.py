"""What whoever reads pictures epoch by epoch needs: seeds that follow from the epoch, and copies that overlap."""

from __future__ import annotations

import torch
from torch import Tensor


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's random numbers: the same whether the run was killed before it or not."""
    return seed * 100_003 + epoch


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on another device; to a GPU it is copied while Python goes on."""
    if torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
