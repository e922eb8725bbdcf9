"""What every training here shares: SGD, one cycle of the learning rate, and epochs that survive a kill.

torchrun --nproc-per-node 4 -m smoothsal_lib.training.classifier --data FOLDER --out FOLDER

trains in four processes, each with its part of every batch. Order, sizes, crops and noise are drawn for the whole
batch, and batch norm takes its statistics over it: the network is that of one process, but for rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from smoothsal_lib.checkpoint import read, write
from smoothsal_lib.loading import epoch_seed
from smoothsal_lib.parallel import ALONE, Team
from smoothsal_lib.training.batchnorm import WholeBatchNorm

GLANCE = 50  # steps between two looks at the loss: each waits for the GPU


@dataclass(frozen=True)
class Descent:
    """How the weights move; every recipe is one of these, and adds what its pictures go through.

    The batch is that of all processes together.
    """

    epochs: int
    batch: int = 128
    peak_lr: float = 0.2
    warmup: float = 0.15
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0

    @property
    def all_epochs(self) -> int:
        """Epochs of the whole training."""
        return self.epochs


@dataclass(frozen=True)
class Batch:
    """The pictures of a step, as one process sees them.

    Attributes:
        picked: (n,) the numbers of those that are its own.
        size: the side that they shall get, in pixels.
        generator: where the random numbers come from. They are drawn for the whole batch, so that what happens to a
            picture does not depend on how many processes there are.
        whole: how many pictures all processes have together.
        part: which of these are its own.
    """

    picked: Tensor
    size: int
    generator: torch.Generator
    whole: int
    part: slice


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


@contextmanager
def in_step(model: nn.Module, team: Team) -> Iterator[nn.Module]:
    """The network as a process trains it: together with the same network of all others, or as it is when alone.

    Gradients are averaged over the processes, batch norms take their statistics over all parts of the batch. The
    network is the same one, and no part of it is another afterwards.
    """
    if team.size == 1:
        yield model
        return
    with WholeBatchNorm():
        yield DistributedDataParallel(model)


def one_pass(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    pictures: int,
    epoch: int,
    descent: Descent,
    sizes: Mapping[int, float],
    rate: Callable[[float], float],
    loss: Callable[[nn.Module, Batch], Tensor],
    team: Team = ALONE,
) -> float:
    """Show the network every picture once, in batches; what does not fill the last batch is left out.

    Args:
        model: the network, trained in place.
        optimizer: of its parameters.
        pictures: how many there are.
        epoch: its number, from 0, which seeds the random numbers.
        descent: the recipe.
        sizes: sides in pixels that batches are drawn to have, with the share of each.
        rate: the learning rate after so many passes, a fraction within a pass.
        loss: called with the network in step and a batch: the mean loss of the process's own pictures, a scalar.
        team: the processes that share every batch.

    Returns:
        The mean loss.

    Raises:
        ValueError: for more processes than a batch has pictures.
    """
    model.train()
    whole = min(descent.batch, pictures)
    if whole < team.size:
        raise ValueError(f"{team.size} processes cannot share a batch of {whole}: start {whole} at most")
    part = team.part(whole)
    share = (part.stop - part.start) / whole
    generator = torch.Generator().manual_seed(epoch_seed(descent.seed, epoch))
    order = torch.randperm(pictures, generator=generator)
    steps = max(1, pictures // descent.batch)
    drawn = torch.multinomial(torch.tensor(list(sizes.values())), steps, replacement=True, generator=generator)
    total = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
    title = f"epoch {epoch + 1}/{descent.all_epochs}"
    bar = tqdm(range(steps), desc=title, unit="batch", leave=False, mininterval=5, disable=not team.leads)
    # A new wrapper every epoch: it learns in its first step in which order to add up gradients, and a run that is
    # resumed must learn it where the other did.
    with in_step(model, team) as stepping:
        for step in bar:
            own = order[step * descent.batch :][:whole][part]
            for group in optimizer.param_groups:
                group["lr"] = rate(epoch + (step + 0.5) / steps)
            mean = loss(stepping, Batch(own, list(sizes)[int(drawn[step])], generator, whole, part))
            optimizer.zero_grad()
            (mean * (share * team.size)).backward()  # a mean over processes is what becomes of the gradients
            optimizer.step()
            total += mean.detach() * share
            if team.leads and step % GLANCE == 0:
                bar.set_postfix(loss=f"{mean.item():.3f}", refresh=False)
    team.add_up([total])
    return total.item() / steps


def resumable(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    settings: dict[str, Any],
    checkpoint: Path,
    one_epoch: Callable[[int], dict[str, float]],
    team: Team = ALONE,
) -> list[dict[str, float]]:
    """Run the epochs, going on from the checkpoint where there is one, and write it after each.

    The leader alone reads and writes the checkpoint. The same number of processes goes on as if there had been no
    interruption, bit for bit; another number up to rounding.

    Args:
        model: the network, trained in place; it is left in evaluation mode.
        optimizer: what ``one_epoch`` takes its steps with.
        epochs: how many there are.
        settings: everything that decides the outcome. A checkpoint made with others is refused.
        checkpoint: the file.
        one_epoch: called with 0, 1, ...: one pass over the data. It returns what to note in the curve.
        team: the processes that train the network together.

    Returns:
        The curve, one row an epoch: ``epoch`` (from 1), what ``one_epoch`` returned, ``seconds``.

    Raises:
        ValueError: when the checkpoint was made with other settings.
    """
    curve: list[dict[str, float]] = []
    state = read(checkpoint, settings, team)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        curve = state["curve"]
    for epoch in range(len(curve), epochs):
        started = time.perf_counter()
        noted = one_epoch(epoch)
        seconds = time.perf_counter() - started
        curve.append({"epoch": epoch + 1, **noted, "seconds": seconds})
        if not team.leads:
            continue
        figures = "  ".join(f"{name} {value:.4f}" for name, value in noted.items())
        tqdm.write(f"epoch {epoch + 1:2d}/{epochs}  {figures}  {seconds:.0f} s")
        write(checkpoint, settings, model=model.state_dict(), optimizer=optimizer.state_dict(), curve=curve)
    team.wait()
    model.eval()
    return curve
