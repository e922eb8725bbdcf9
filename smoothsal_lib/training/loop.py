"""What every training here shares: SGD, one cycle of the learning rate, and epochs that survive a kill."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm


@dataclass(frozen=True)
class Descent:
    """How the weights move; every recipe is one of these, and adds what its pictures go through."""

    epochs: int
    batch: int = 128
    peak_lr: float = 0.2
    warmup: float = 0.15
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0


def one_cycle(epoch: float, descent: Descent) -> float:
    """Linear up during the warm-up, then half a cosine down to zero.

    Args:
        epoch: how many passes over the data are done, a fraction within a pass; more than 0.
        descent: the rate at the top, and the lengths.
    """
    progress = epoch / descent.epochs
    if progress < descent.warmup:
        return descent.peak_lr * max(progress / descent.warmup, 0.02)
    falling = (progress - descent.warmup) / (1 - descent.warmup)
    return descent.peak_lr * 0.5 * (1 + float(torch.cos(torch.tensor(falling * torch.pi))))


def make_optimizer(model: nn.Module, descent: Descent) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay on matrices only, not on biases and batch-norm scales."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": descent.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=descent.peak_lr, momentum=descent.momentum, nesterov=True)


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's random numbers: the same whether the run was killed before it or not."""
    return seed * 100_003 + epoch


def resumable(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    settings: dict[str, Any],
    checkpoint: Path,
    one_epoch: Callable[[int], dict[str, float]],
) -> list[dict[str, float]]:
    """Run the epochs, going on from the checkpoint where there is one, and write it after each.

    Args:
        model: the network, trained in place; it is left in evaluation mode.
        optimizer: what ``one_epoch`` takes its steps with.
        epochs: how many there are.
        settings: everything that decides the outcome. A checkpoint made with others is refused.
        checkpoint: the file.
        one_epoch: called with 0, 1, ...: one pass over the data. It returns what to note in the curve.

    Returns:
        The curve, one row an epoch: ``epoch`` (from 1), what ``one_epoch`` returned, ``seconds``.

    Raises:
        ValueError: when the checkpoint was made with other settings.
    """
    curve: list[dict[str, float]] = []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=next(model.parameters()).device)
        if state["settings"] != settings:
            raise ValueError(f"{checkpoint} was made with {state['settings']}: use those settings, or remove the file")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        curve = state["curve"]
    for epoch in range(len(curve), epochs):
        started = time.perf_counter()
        noted = one_epoch(epoch)
        seconds = time.perf_counter() - started
        curve.append({"epoch": epoch + 1, **noted, "seconds": seconds})
        figures = "  ".join(f"{name} {value:.4f}" for name, value in noted.items())
        tqdm.write(f"epoch {epoch + 1:2d}/{epochs}  {figures}  {seconds:.0f} s")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "curve": curve}
        partial = checkpoint.with_suffix(".partial")
        torch.save({**state, "settings": settings}, partial)
        os.replace(partial, checkpoint)  # a kill while writing must not cost the previous epoch
    model.eval()
    return curve
