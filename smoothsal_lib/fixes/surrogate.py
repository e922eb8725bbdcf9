"""The bilinear surrogate: a network whose downsampling sees every position with every weight."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from smoothsal_lib.checkpoint import read, write
from smoothsal_lib.fixes.base import Fix
from smoothsal_lib.fixes.least_squares import fit_stage, rows_needed
from smoothsal_lib.fixes.sources import InMemory, Source, Streamed
from smoothsal_lib.fixes.stage import Geometry, Stage
from smoothsal_lib.layers import check_images, require_strided, strided_layers
from smoothsal_lib.parallel import ALONE, Team
from smoothsal_lib.precision import fast_autocast
from smoothsal_lib.state import preserved

FORMAT = "smoothsal-surrogate-1"


@dataclass(frozen=True)
class Descent:
    """How a recipe runs Adam: passes over the images, learning rate, and whether that falls to 0 (linearly)."""

    epochs: int
    rate: float
    fading: bool


RECIPES = {"least_squares": Descent(8, 1e-4, True), "paper": Descent(10, 1e-3, False)}


class Surrogate(nn.Module, Fix):
    """Replaces strided convolutions by :class:`Stage` objects (Smooth Deep Saliency, arXiv 2404.02282).

    Seen from the input, a strided convolution meets neighbouring positions with different weights, and the gradient
    carries that pattern. A stage meets all of them with the same weights before it averages. Predictions change a
    little: the network is another one, fitted to the original by :func:`fit_surrogate`.

    Args:
        stages: ``{name of a strided convolution: its stage}``, in forward order.

    Attributes:
        errors: ``{name: {"l1": ..., "l2": ...}}``, the distance between a stage's output and the convolution's, both
            fed the original network's activation, relative to the distance of that output from its mean by channel;
            measured on images the fit did not see. 0 is perfect, 1 as bad as a constant. Empty before a fit.
        record: how the fit was made: recipe, number of images, presentations, seed, seconds. Empty before a fit.
    """

    def __init__(self, stages: Mapping[str, Stage]) -> None:
        super().__init__()
        self.layers = tuple(stages)
        self.stages = nn.ModuleList(stages.values())  # a ModuleDict would refuse the dots in the names
        self.errors: dict[str, dict[str, float]] = {}
        self.record: dict[str, Any] = {}

    @classmethod
    def of(cls, model: nn.Module, layers: Sequence[str] | None = None) -> Surrogate:
        """An untrained surrogate for ``model``, with random weights in the model's dtype and on its device.

        Args:
            model: the network.
            layers: names of strided convolutions; ``None`` for all but the first, which matters only for maps at the
                input (or for that one, when it is the only one).

        Raises:
            ValueError: for a name that is no strided 2-d convolution of ``model``, or when there is none.
        """
        found = strided_layers(model)
        chosen = {}
        for name in require_strided(model, skip_first=True) if layers is None else layers:
            if name not in found:
                raise ValueError(f"{name!r} is no strided convolution of this network: choose from {', '.join(found)}")
            conv = found[name]
            if not isinstance(conv, nn.Conv2d):
                raise ValueError(f"{name!r} is a {type(conv).__name__}: a surrogate replaces Conv2d only")
            chosen[name] = Stage(Geometry.of(conv)).to(conv.weight.device, conv.weight.dtype)
        if not chosen:
            raise ValueError("expected at least one layer to replace, got none")
        return cls(chosen)

    def items(self) -> Iterator[tuple[str, Stage]]:
        """Pairs (name of the strided convolution, its stage)."""
        return zip(self.layers, self.stages, strict=True)  # type: ignore[arg-type]

    @contextmanager
    def repair(self, model: nn.Module) -> Iterator[None]:
        """Within the context, ``model`` runs the stages instead of its strided convolutions.

        Each convolution gets an attribute ``forward`` of its own, which hides the method of its class: hooks on it
        stay alive, and its weights are not touched.

        Raises:
            ValueError: when a layer is missing in ``model`` or differs from the one the surrogate was made for.
        """
        modules = dict(model.named_modules())
        for name, stage in self.items():
            _check_match(name, stage, modules.get(name))
        with ExitStack() as undo:
            for name, stage in self.items():
                own = modules[name].__dict__  # the instance's attributes, which hide those of its class
                if "forward" in own:
                    undo.callback(own.update, forward=own["forward"])
                else:
                    undo.callback(own.pop, "forward", None)
                own["forward"] = stage.forward
            yield

    def save(self, path: str | Path, stored: torch.dtype | None = None) -> None:
        """Write weights, geometry, errors and record to one safetensors file.

        Args:
            path: the file.
            stored: precision on disk, ``torch.float16`` to halve the file; :meth:`load` gives back the present one.
        """
        dtype = next(self.parameters()).dtype
        metadata = {
            "format": FORMAT,
            "dtype": str(dtype).removeprefix("torch."),
            "layers": json.dumps({name: asdict(stage.geometry) for name, stage in self.items()}),
            "errors": json.dumps(self.errors),
            "record": json.dumps(self.record),
        }
        tensors = {f"{name}.{key}": value for name, stage in self.items() for key, value in stage.state_dict().items()}
        save_file({key: value.to(stored or dtype).contiguous() for key, value in tensors.items()}, path, metadata)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Surrogate:
        """Read what :meth:`save` wrote, bit for bit unless it was stored at a lower precision.

        Raises:
            ValueError: when the file holds something else than a surrogate.
        """
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path} is no surrogate: its format is {metadata.get('format')!r}, not {FORMAT!r}")
            stages = {}
            for name, geometry in json.loads(metadata["layers"]).items():
                stages[name] = Stage(Geometry.from_dict(geometry))
                state = {key: file.get_tensor(f"{name}.{key}") for key in stages[name].state_dict()}
                stages[name].load_state_dict(state, assign=True)
        surrogate = cls(stages).requires_grad_(False).to(getattr(torch, metadata["dtype"]))
        surrogate.errors = json.loads(metadata["errors"])
        surrogate.record = json.loads(metadata["record"])
        return surrogate


def _check_match(name: str, stage: Stage, conv: nn.Module | None) -> None:
    """Raise a one-line ValueError unless ``stage`` can stand for the module ``conv`` called ``name``."""
    if conv is None:
        raise ValueError(f"the network has no layer {name!r}: this surrogate was fitted to another one")
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"layer {name!r} is a {type(conv).__name__}, not the convolution that the surrogate replaces")
    if Geometry.of(conv) != stage.geometry:
        raise ValueError(f"layer {name!r} is {Geometry.of(conv)}, but the surrogate was fitted to {stage.geometry}")
    ours, theirs = stage.before.weight, conv.weight
    if (ours.dtype, ours.device) != (theirs.dtype, theirs.device):
        raise ValueError(
            f"the surrogate is {ours.dtype} on {ours.device} but layer {name!r} is {theirs.dtype} on {theirs.device}: "
            "move one with .to(...)"
        )


def fit_surrogate(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    *,
    layers: Sequence[str] | None = None,
    recipe: str = "least_squares",
    epochs: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    held_out: Tensor | None = None,
    checkpoint: str | Path | None = None,
    every: int | None = None,
    team: Team = ALONE,
    progress: bool = True,
) -> Surrogate:
    """Fit a surrogate to a network from unlabelled images; the network is left as it was.

    ``"least_squares"`` fits every stage on its own by alternating least squares (:func:`fit_stage`), on the images and
    their mirror images. Then all stages learn together for a few epochs, so that the repaired network does what the
    original does (:func:`_imitation_loss`). A few hundred images are enough. Of a network in float32, gradient
    descent computes in bfloat16 where the device is fast at it (:func:`smoothsal_lib.precision.precision`).

    ``"paper"`` is the published recipe (Smooth Deep Saliency, arXiv 2404.02282): random start, Adam at its default
    rate, and as loss the sum over the layers of the mean absolute difference between a stage's output and the strided
    convolution's, both fed the original network's activation. The paper ran it for 10 epochs of ImageNet.

    Images that do not fit into memory are streamed, from a DataLoader such as
    :func:`smoothsal_lib.datasets.streams.stream_pictures` makes: it is read anew in every epoch, and no more than a
    batch of it is held at a time. Beside that, ``"least_squares"`` keeps the activations around each strided layer at
    as many positions as its regression can use (:func:`rows_needed`), however many images there are; it stops reading
    when it has them.

    In a team (``torchrun``; see :mod:`smoothsal_lib.parallel`) every process takes its part of each batch, the
    gradients of the parts are added up, and the regressions are shared out. The result is that of one process.

    Args:
        model: the network; it runs in evaluation mode.
        images: (N, 3, H, W), normalised as the model expects them, or a list of such batches, or of tuples that begin
            with one: these lie in memory. Or a stream of such batches: anything with a length that can be iterated
            again and again; in a team, each process's stream gives its own part of every batch.
        layers: names of the strided convolutions to replace; ``None`` for all but the first (see :meth:`Surrogate.of`).
        recipe: ``"least_squares"`` or ``"paper"``.
        epochs: passes of gradient descent over the images; ``None`` for the recipe's own number.
        batch_size: images a step, of all processes together; a stream's batches are as large as they come.
        seed: of the random start, the order of the images and their mirroring.
        held_out: (M, 3, H, W), images to measure ``errors`` on, which the fit must not see. ``None`` sets every 8th
            image aside, if they lie in memory; a stream needs them.
        checkpoint: a file that is written after every epoch; a run that was killed goes on from it and ends as an
            uninterrupted one would have. In a team the leader writes it, and reads it for all.
        every: write it also after so many steps of an epoch, for epochs of hours; ``None`` for epochs only.
        team: the processes that share the work.
        progress: whether to show a progress bar; in a team the leader shows it.

    Returns:
        The surrogate, with ``errors`` and ``record`` filled in and its weights frozen; the same one in every process.

    Raises:
        TypeError: for images that are no tensors, or a model that is no module.
        ValueError: for an unknown recipe or layer, fewer than 8 images, bad images (:func:`check_images`; of a stream,
            the first batch of an epoch is looked at), a stream without ``held_out``, that can be read only once, or
            whose length is unknown or wrong, a layer that the network does not run, weights that are no longer finite,
            or a checkpoint made with other settings.
    """
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}: choose {' or '.join(map(repr, RECIPES))}")
    if every is not None and every < 1:
        raise ValueError(f"every = {every} is not a number of steps: give 1 or more, or None for whole epochs")
    epochs = RECIPES[recipe].epochs if epochs is None else epochs
    progress = progress and team.leads
    with preserved(model), _frozen(model), torch.inference_mode(False), torch.enable_grad():
        source: Source
        if isinstance(images, (Tensor, list, tuple)):
            source = InMemory(images, held_out, batch_size, seed, team)
            check_images(source.images, model)
        else:
            source = Streamed(images, held_out, model, seed, team)
        check_images(source.held_out, model)
        torch.manual_seed(seed)
        surrogate = Surrogate.of(model, layers)
        settings = {
            "recipe": recipe, "epochs": epochs, "batch_size": batch_size, "seed": seed,
            **source.settings, "layers": list(surrogate.layers),
        }  # fmt: skip
        if team.tell(shape := [settings, source.steps, every]) != shape:
            raise ValueError(f"the leader of these processes fits otherwise than process {team.rank}, with {shape}")
        run = _Run(surrogate, settings, None if checkpoint is None else Path(checkpoint), team)
        if recipe == "least_squares" and not run.resumed:
            run.shown = _solve(model, surrogate, source, batch_size, team, progress)
            run.save()
        loss = _imitation_loss if recipe == "least_squares" else _paper_loss
        run.descend(source, partial(loss, model, surrogate, team), every, progress)
        surrogate.requires_grad_(False)
        surrogate.errors = stage_errors(model, surrogate, source.held_out, batch_size)
    surrogate.record = {**settings, "presentations": run.shown}
    return surrogate


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Within the context, no gradient reaches the weights: what a backward pass to them would need is not kept."""
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        for weight in learning:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in learning:
            weight.requires_grad_(True)


def _observe(
    model: nn.Module, x: Tensor, names: Sequence[str], inputs: bool = True
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """Run ``model``: ({name: (what the module was fed, what it returned)}, what the model returned).

    Both are copies, since a later layer may overwrite them in place; without ``inputs``, what the module was fed is not
    copied and must not be used. Of several calls the last one counts.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = (args[0].clone() if inputs else args[0], output.clone())

    modules = dict(model.named_modules())
    with ExitStack() as hooks:
        for name in names:
            hooks.callback(modules[name].register_forward_hook(partial(note, name)).remove)
        output = model(x)
    for name in names:
        if name not in seen:
            raise ValueError(f"the network does not run {name!r}: leave it out of layers={list(names)}")
    return seen, output


def _taking_part(x: Tensor) -> tuple[Tensor, int]:
    """A process's part of a batch, and 1; where that is empty, one picture of zeros to compute with, and 0."""
    return (x, 1) if len(x) else (x.new_zeros(1, *x.shape[1:]), 0)


def _distances(pairs: Sequence[tuple[Tensor, Tensor]], weight: int, team: Team) -> Tensor:
    """The sum over pairs (N, C, ...) of their squared distance, relative to the second's from its mean by channel.

    N counts the batch's pictures in all processes. The numerator is that of this process, times ``weight``, so that
    adding up over the team gives the whole; the denominator is the whole already.
    """
    axes = [[axis for axis in range(theirs.ndim) if axis != 1] for _, theirs in pairs]
    totals = [weight * theirs.sum(over, keepdim=True) for (_, theirs), over in zip(pairs, axes, strict=True)]
    counts = [theirs.new_full((1,), weight * theirs.numel() // theirs.shape[1]) for _, theirs in pairs]
    team.add_up([*totals, *counts])
    means = [total / count for total, count in zip(totals, counts, strict=True)]
    spreads = [weight * (theirs - mean).square().sum() for (_, theirs), mean in zip(pairs, means, strict=True)]
    team.add_up(spreads)
    return torch.stack(
        [
            weight * (ours - theirs).square().sum() / spread.clamp(min=torch.finfo(theirs.dtype).tiny)
            for (ours, theirs), spread in zip(pairs, spreads, strict=True)
        ]
    ).sum()


def _paper_loss(model: nn.Module, surrogate: Surrogate, team: Team, x: Tensor) -> Tensor:
    """Sum over the layers of the mean absolute difference; stage and convolution are fed the same activation.

    Of a team's batch, this process's part of that mean.
    """
    x, weight = _taking_part(x)
    count = x.new_full((1,), weight * len(x))
    team.add_up([count])
    with _fast(x):
        with torch.no_grad():
            seen, _ = _observe(model, x, surrogate.layers)
        pairs = [(stage(seen[name][0]), seen[name][1]) for name, stage in surrogate.items()]
    means = [(a.to(x.dtype) - b.to(x.dtype)).abs().sum() / (count[0] * b[0].numel()) for a, b in pairs]
    return weight * torch.stack(means).sum()


def _imitation_loss(model: nn.Module, surrogate: Surrogate, team: Team, x: Tensor) -> Tensor:
    """Sum over the replaced layers, and the network's output, of the relative squared distance to the original.

    Here every stage is fed what the *repaired* network computes, so that a later stage learns to make up for the errors
    of an earlier one. Of a team's batch, this process's part of that distance.
    """
    x, weight = _taking_part(x)
    with _fast(x):
        with torch.no_grad():
            theirs, their_output = _observe(model, x, surrogate.layers, inputs=False)
        with surrogate.repair(model):
            ours, our_output = _observe(model, x, surrogate.layers, inputs=False)
    pairs = [(ours[name][1], theirs[name][1]) for name in surrogate.layers] + [(our_output, their_output)]
    return _distances([(a.to(x.dtype), b.to(x.dtype)) for a, b in pairs], weight, team)


def _fast(x: Tensor) -> AbstractContextManager[object]:
    """The context in which a fit computes: what is given in another precision than float32 keeps it."""
    return fast_autocast(x.device) if x.dtype == torch.float32 else nullcontext()


@torch.no_grad()
def _solve(model: nn.Module, surrogate: Surrogate, source: Source, batch_size: int, team: Team, progress: bool) -> int:
    """Fit every stage on its own, by :func:`fit_stage`, to the activations of the original network.

    In a team all processes see the same pictures, but each keeps and fits only its share of the stages.

    Returns:
        How many pictures were shown.
    """
    numbered = list(enumerate(surrogate.items()))
    mine = {name for _, (name, _) in team.share(numbered)}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in mine}
    missing = {name: rows_needed(stage) for name, stage in surrogate.items()}
    shown = 0
    observed = source.to_observe(batch_size)
    for batch in tqdm(observed, desc="observe", unit="batch", disable=not progress, leave=False):
        shown += len(batch)
        for name, (x, y) in _observe(model, batch, surrogate.layers)[0].items():
            if missing[name] > 0 and name in mine:
                seen[name].append((x, y))
            missing[name] -= y.numel() // y.shape[1]
        if max(missing.values()) <= 0:
            break
    for name, stage in tqdm(
        [stage for _, stage in team.share(numbered)], "least squares", unit="layer", disable=not progress, leave=False
    ):
        x, y = (torch.cat(part) for part in zip(*seen.pop(name), strict=True))
        fit_stage(stage, x, y)
    for number, (_, stage) in numbered:
        team.take_over(stage.parameters(), number % team.size)
    return shown


@torch.no_grad()
def stage_errors(
    model: nn.Module, surrogate: Surrogate, images: Tensor, batch_size: int = 64
) -> dict[str, dict[str, float]]:
    """How far each stage is from its strided convolution on images (N, C, H, W): what :attr:`Surrogate.errors` holds.

    Both are fed the original network's activation; ``model`` runs in the mode it is in.
    """
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in surrogate.layers}
    for batch in images.split(batch_size):
        seen, _ = _observe(model, batch, surrogate.layers)
        for name, stage in surrogate.items():
            parts[name].append((stage(seen[name][0]), seen[name][1]))
    errors = {}
    for name, pairs in parts.items():
        ours, theirs = (torch.cat(part) for part in zip(*pairs, strict=True))
        spread = theirs - theirs.mean((0, 2, 3), keepdim=True)
        errors[name] = {
            "l1": float((ours - theirs).abs().sum() / spread.abs().sum()),
            "l2": float((ours - theirs).norm() / spread.norm()),
        }
    return errors


class _Run:
    """Gradient descent on a surrogate that can be killed after any checkpoint and go on."""

    def __init__(self, surrogate: Surrogate, settings: dict[str, Any], path: Path | None, team: Team) -> None:
        self.surrogate, self.settings, self.path, self.team = surrogate, settings, path, team
        self.epoch = self.step = self.shown = 0  # the last: presentations, of this process since the last checkpoint
        self.plan = RECIPES[settings["recipe"]]
        self.optimizer = torch.optim.Adam(surrogate.parameters(), lr=self.plan.rate)
        state = read(path, settings, team)
        self.resumed = state is not None
        if state is not None:
            self.epoch, self.step, self.shown = state["epoch"], state["step"], state["shown"]
            surrogate.load_state_dict(state["surrogate"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.unsaved = 0

    def save(self) -> None:
        """Write the checkpoint.

        Raises:
            ValueError: for weights that are not finite, of which no checkpoint is written.
        """
        weights = list(self.surrogate.parameters())
        if not all(bool(weight.isfinite().all()) for weight in weights):
            raise ValueError(
                f"the surrogate's weights are no longer finite in epoch {self.epoch + 1}, step {self.step}: look for "
                "images that are not finite, or not normalised as the model expects them"
            )
        tally = torch.tensor([self.unsaved])
        self.team.add_up([tally])
        self.shown, self.unsaved = self.shown + int(tally), 0
        if self.path is None or not self.team.leads:
            return
        place = {"epoch": self.epoch, "step": self.step, "shown": self.shown}
        state = {"surrogate": self.surrogate.state_dict(), "optimizer": self.optimizer.state_dict()}
        write(self.path, self.settings, **place, **state)

    def descend(self, source: Source, loss: Callable[[Tensor], Tensor], every: int | None, progress: bool) -> None:
        """The remaining epochs, with a checkpoint after each and, in between, after ``every`` so many steps.

        Args:
            source: what gives the batches.
            loss: of a part of a batch, such that those of all processes add up to the batch's.
            every: see :func:`fit_surrogate`.
            progress: whether to show a bar. The loss is read, for which a GPU has to be waited for, when it is redrawn.
        """
        weights = list(self.surrogate.parameters())
        epochs, steps = self.settings["epochs"], source.steps
        bar = tqdm(total=epochs * steps, initial=self.epoch * steps + self.step, desc="descend", unit="step",
                   mininterval=1, disable=not progress)  # fmt: skip
        with bar:
            while self.epoch < epochs:
                for batch in source.epoch(self.epoch, self.step, mirror=self.plan.fading):
                    left = 1 - (self.epoch * steps + self.step) / (epochs * steps)
                    self.optimizer.param_groups[0]["lr"] = self.plan.rate * (left if self.plan.fading else 1)
                    self.unsaved += len(batch)
                    if batch.device.type == "cuda":  # tensor cores read the channels of a position in one go
                        batch = batch.contiguous(memory_format=torch.channels_last)
                    value = loss(batch)
                    gradients = torch.autograd.grad(value, weights)
                    value = value.detach()
                    self.team.add_up([*gradients, value])
                    for weight, gradient in zip(weights, gradients, strict=True):
                        weight.grad = gradient
                    self.optimizer.step()
                    self.step += 1
                    if bar.update():
                        bar.set_postfix(loss=f"{value.item():.4f}", refresh=False)
                    if every is not None and self.step % every == 0 and self.step < steps:
                        self.save()
                self.epoch, self.step = self.epoch + 1, 0
                self.save()
        self.optimizer.zero_grad()
