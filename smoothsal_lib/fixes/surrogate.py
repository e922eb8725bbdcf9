"""The bilinear surrogate: a network whose downsampling sees every position with every weight."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from smoothsal_lib.fixes.base import Fix
from smoothsal_lib.fixes.least_squares import fit_stage, rows_needed
from smoothsal_lib.fixes.stage import Geometry, Stage
from smoothsal_lib.layers import check_images, require_strided, strided_layers
from smoothsal_lib.state import preserved

FORMAT = "smoothsal-surrogate-1"
HELD_OUT = 8  # every 8th image is kept out of the fit, to measure the errors on


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
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Surrogate:
    """Fit a surrogate to a network from unlabelled images; the network is left as it was.

    ``"least_squares"`` fits every stage on its own by alternating least squares (:func:`fit_stage`), on the images and
    their mirror images. Then all stages learn together for a few epochs, so that the repaired network does what the
    original does (:func:`_imitation_loss`). A few hundred images are enough.

    ``"paper"`` is the published recipe (Smooth Deep Saliency, arXiv 2404.02282): random start, Adam at its default
    rate, and as loss the sum over the layers of the mean absolute difference between a stage's output and the strided
    convolution's, both fed the original network's activation. The paper ran it for 10 epochs of ImageNet.

    Args:
        model: the network; it runs in evaluation mode.
        images: (N, 3, H, W), normalised as the model expects them; or an iterable of such batches, or of tuples that
            begin with one (a DataLoader). They are gathered in memory, and so are, for ``"least_squares"``, the
            activations around the strided layers. Every 8th image is kept out of the fit, to measure ``errors``.
        layers: names of the strided convolutions to replace; ``None`` for all but the first (see :meth:`Surrogate.of`).
        recipe: ``"least_squares"`` or ``"paper"``.
        epochs: passes of gradient descent over the images; ``None`` for the recipe's own number.
        batch_size: images a step.
        seed: of the random start, the order of the images and their mirroring.
        checkpoint: a file that is written after every epoch; a run that was killed goes on from it and ends as an
            uninterrupted one would have.
        progress: whether to show a progress bar.

    Returns:
        The surrogate, with ``errors`` and ``record`` filled in and its weights frozen.

    Raises:
        TypeError: for images that are no tensors, or a model that is no module.
        ValueError: for an unknown recipe or layer, fewer than 8 images, bad images (:func:`check_images`), a layer
            that the network does not run, or a checkpoint made with other settings.
    """
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}: choose {' or '.join(map(repr, RECIPES))}")
    epochs = RECIPES[recipe].epochs if epochs is None else epochs
    pictures = _gather(images)
    if len(pictures) < HELD_OUT:
        raise ValueError(f"expected at least {HELD_OUT} images, got {len(pictures)}")
    seen = torch.arange(len(pictures)) % HELD_OUT != HELD_OUT - 1
    train, held_out = pictures[seen], pictures[~seen]
    with preserved(model), torch.inference_mode(False), torch.enable_grad():
        check_images(pictures, model)
        torch.manual_seed(seed)
        surrogate = Surrogate.of(model, layers)
        settings = {
            "recipe": recipe, "epochs": epochs, "batch_size": batch_size, "seed": seed,
            "images": len(pictures), "layers": list(surrogate.layers),
        }  # fmt: skip
        run = _Run(surrogate, settings, None if checkpoint is None else Path(checkpoint))
        if recipe == "least_squares":
            if run.epoch == 0:
                _solve(model, surrogate, torch.cat([train, train.flip(-1)]), batch_size, seed, progress)
            loss = partial(_imitation_loss, model, surrogate)
        else:
            loss = partial(_paper_loss, model, surrogate)
        run.descend(train, loss, progress)
        surrogate.requires_grad_(False)
        surrogate.errors = stage_errors(model, surrogate, held_out, batch_size)
    shown = epochs * len(train) + (2 * len(train) if recipe == "least_squares" else 0)
    surrogate.record = {**settings, "presentations": shown}
    return surrogate


def _gather(images: Tensor | Iterable[Any]) -> Tensor:
    """One tensor (N, C, H, W) from a tensor, or from batches that are tensors or begin with one."""
    if isinstance(images, Tensor):
        return images.detach()
    batches = [batch[0] if isinstance(batch, (tuple, list)) else batch for batch in images]
    for batch in batches:
        if not isinstance(batch, Tensor):
            raise TypeError(f"expected batches that are tensors or begin with one, got {type(batch).__name__}")
    if not batches:
        raise ValueError("expected images, got an iterable without any")
    if len({batch.shape[1:] for batch in batches}) > 1:
        raise ValueError(f"expected images of one size, got {sorted({tuple(b.shape[1:]) for b in batches})}")
    return torch.cat(batches).detach()


def _observe(model: nn.Module, x: Tensor, names: Sequence[str]) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """Run ``model``: ({name: (what the module was fed, what it returned)}, what the model returned).

    Both are copies, since a later layer may overwrite them in place. Of several calls the last one counts.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = (args[0].clone(), output.clone())

    modules = dict(model.named_modules())
    with ExitStack() as hooks:
        for name in names:
            hooks.callback(modules[name].register_forward_hook(partial(note, name)).remove)
        output = model(x)
    for name in names:
        if name not in seen:
            raise ValueError(f"the network does not run {name!r}: leave it out of layers={list(names)}")
    return seen, output


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Squared distance of (N, C, ...) from a target, relative to the target's from its mean by channel."""
    spread = theirs - theirs.mean([axis for axis in range(theirs.ndim) if axis != 1], keepdim=True)
    return (ours - theirs).square().sum() / spread.square().sum().clamp(min=torch.finfo(theirs.dtype).tiny)


def _paper_loss(model: nn.Module, surrogate: Surrogate, x: Tensor) -> Tensor:
    """Sum over the layers of the mean absolute difference; stage and convolution are fed the same activation."""
    with torch.no_grad():
        seen, _ = _observe(model, x, surrogate.layers)
    return torch.stack([F.l1_loss(stage(seen[name][0]), seen[name][1]) for name, stage in surrogate.items()]).sum()


def _imitation_loss(model: nn.Module, surrogate: Surrogate, x: Tensor) -> Tensor:
    """Sum over the replaced layers, and the network's output, of the relative squared distance to the original.

    Here every stage is fed what the *repaired* network computes, so that a later stage learns to make up for the errors
    of an earlier one. bfloat16 where the processor is fast at it.
    """
    exact = x.dtype != torch.float32 or not _has_fast_bfloat16(x.device)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=not exact):
        with torch.no_grad():
            theirs, their_output = _observe(model, x, surrogate.layers)
        with surrogate.repair(model):
            ours, our_output = _observe(model, x, surrogate.layers)
    pairs = [(ours[name][1], theirs[name][1]) for name in surrogate.layers] + [(our_output, their_output)]
    return torch.stack([_distance(a.to(x.dtype), b.to(x.dtype)) for a, b in pairs]).sum()


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


@torch.no_grad()
def _solve(model: nn.Module, surrogate: Surrogate, images: Tensor, batch_size: int, seed: int, progress: bool) -> None:
    """Fit every stage on its own, by :func:`fit_stage`, to the activations of the original network."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in surrogate.layers}
    missing = {name: rows_needed(stage) for name, stage in surrogate.items()}
    for indices in tqdm(order.split(batch_size), desc="observe", unit="batch", disable=not progress, leave=False):
        for name, (x, y) in _observe(model, images[indices], surrogate.layers)[0].items():
            if missing[name] > 0:
                seen[name].append((x, y))
                missing[name] -= y.numel() // y.shape[1]
    stages = tqdm(list(surrogate.items()), desc="least squares", unit="layer", disable=not progress, leave=False)
    for name, stage in stages:
        x, y = (torch.cat(part) for part in zip(*seen.pop(name), strict=True))
        fit_stage(stage, x, y)


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
    """Gradient descent on a surrogate that can be killed after any epoch and go on."""

    def __init__(self, surrogate: Surrogate, settings: dict[str, Any], path: Path | None) -> None:
        self.surrogate, self.settings, self.path, self.epoch = surrogate, settings, path, 0
        self.plan = RECIPES[settings["recipe"]]
        self.optimizer = torch.optim.Adam(surrogate.parameters(), lr=self.plan.rate)
        if path is not None and path.exists():
            state = torch.load(path, weights_only=True)
            if state["settings"] != settings:
                raise ValueError(f"{path} was made with {state['settings']}: use those settings, or remove the file")
            self.epoch = state["epoch"]
            surrogate.load_state_dict(state["surrogate"])
            self.optimizer.load_state_dict(state["optimizer"])

    def save(self) -> None:
        """Write the checkpoint, in two steps: a kill while writing must not cost the one before."""
        if self.path is None:
            return
        state = {"surrogate": self.surrogate.state_dict(), "optimizer": self.optimizer.state_dict()}
        partial_file = self.path.with_suffix(".partial")
        torch.save({**state, "settings": self.settings, "epoch": self.epoch}, partial_file)
        os.replace(partial_file, self.path)

    def descend(self, images: Tensor, loss: Callable[[Tensor], Tensor], progress: bool) -> None:
        """The remaining epochs. Every one draws its order and its mirrored images from (seed, epoch) alone."""
        weights = list(self.surrogate.parameters())
        epochs, batch_size = self.settings["epochs"], self.settings["batch_size"]
        steps = -(-len(images) // batch_size)
        with tqdm(total=(epochs - self.epoch) * steps, desc="descend", unit="step", disable=not progress) as bar:
            while self.epoch < epochs:
                generator = torch.Generator().manual_seed(self.settings["seed"] * 100_003 + self.epoch)
                order = torch.randperm(len(images), generator=generator)
                for step, indices in enumerate(order.split(batch_size)):
                    left = 1 - (self.epoch * steps + step) / (epochs * steps)
                    self.optimizer.param_groups[0]["lr"] = self.plan.rate * (left if self.plan.fading else 1)
                    batch = images[indices]
                    if self.plan.fading:
                        mirrored = torch.rand(len(batch), generator=generator) < 0.5
                        batch[mirrored] = batch[mirrored].flip(-1)
                    value = loss(batch)
                    for weight, gradient in zip(weights, torch.autograd.grad(value, weights), strict=True):
                        weight.grad = gradient
                    self.optimizer.step()
                    bar.update()
                    bar.set_postfix(loss=f"{value.item():.4f}", refresh=False)
                self.epoch += 1
                self.save()
        self.optimizer.zero_grad()
