"""The heart of the library: one forward and one backward pass give every layer's activation and gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from smoothsal_lib.layers import INPUT, Record, as_leaf, check_images, check_output, explainable, resolve, trace
from smoothsal_lib.memory import Portions, no_room
from smoothsal_lib.regions import Region, as_region, over_region
from smoothsal_lib.state import preserved

Layers = str | nn.Module | Iterable[str | nn.Module]
Target = int | Sequence[int] | Tensor | None


@dataclass(frozen=True)
class Capture:
    """What one forward and one backward pass tell about the chosen layers.

    Attributes:
        logits: (N, classes), the network's output.
        target: (N,) int64, the class c whose score f_c was differentiated.
        activations: ``{layer: x^l}``, each (N, C, H, W); empty when not asked for.
        gradients: ``{layer: g^l}``, each (N, C, H, W): the derivative of f_c by x^l under the rule in force.
    """

    logits: Tensor
    target: Tensor
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]


def capture(
    model: nn.Module,
    x: Tensor,
    layers: Layers = "all",
    target: Target = None,
    rule: AbstractContextManager[Any] | None = None,
    activations: bool = True,
    region: Region | None = None,
) -> Capture:
    """Activation and gradient of many layers from one forward and one backward pass.

    Args:
        model: a network that maps (N, C, H, W) to logits (N, classes), or to (N, classes, h, w) with a region. It runs
            in evaluation mode and is left as it was.
        x: images (N, C, H, W), normalised as the model expects them.
        layers: ``"all"`` for every layer that :func:`hidden_layers` lists, or names, modules, or several of them;
            ``"input"`` is the picture itself. A module that is called several times counts with its last call.
        target: the class to explain: one for all images, or one an image; ``None`` takes the predicted class.
        rule: a backward rule of :mod:`smoothsal_lib.rules`; ``None`` leaves the gradient as it is.
        activations: whether to keep the layers' activations; without them less memory is needed.
        region: the part of the picture whose mean logits are the score, see :func:`smoothsal_lib.over_region`.

    Raises:
        TypeError, ValueError: for bad images, layers, targets or regions, each with the offending value.
    """
    if region is not None:
        check_images(x, model)
        with over_region(model, as_region(region, len(x))):
            return capture(model, x, layers, target, rule, activations)
    with preserved(model), torch.inference_mode(False), torch.enable_grad():
        logits, records = forward(model, x, layers, rule, activations)
        target = check_target(target, logits)
        score = logits.gather(1, target[:, None]).sum()
        gradients = torch.autograd.grad(score, [record.edge for record in records.values()], allow_unused=True)
    for name, gradient in zip(records, gradients, strict=True):
        if gradient is None:
            raise ValueError(f"layer {name!r} has no influence on the score of the class")
    values = {name: record.value for name, record in records.items()} if activations else {}
    return Capture(logits.detach(), target, values, dict(zip(records, gradients, strict=True)))


def record_activations(
    model: nn.Module,
    x: Tensor,
    layers: Layers = "all",
    rule: AbstractContextManager[Any] | None = None,
) -> dict[str, Tensor]:
    """``{layer: x^l}``, each (N, C, H, W), from one forward pass; the arguments are those of :func:`capture`."""
    with preserved(model), torch.inference_mode(False), torch.enable_grad():
        _, records = forward(model, x, layers, rule, activations=True)
    return {name: record.value for name, record in records.items()}


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, classes) of images (N, C, H, W) in evaluation mode, without a graph.

    What the device has no memory for is split.

    Raises:
        MemoryError: where it has none for one picture.
    """
    portions = Portions(None, no_room(x))
    with preserved(model), torch.no_grad():
        # Copied, since a network may begin with a layer that works in place.
        parts = [check_output(logits) for _, logits in portions.each(lambda some: model(x[some].clone()), len(x))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def forward(
    model: nn.Module,
    x: Tensor,
    layers: Layers,
    rule: AbstractContextManager[Any] | None,
    activations: bool,
    run: Callable[[Tensor], Any] | None = None,
) -> tuple[Tensor, dict[str, Record]]:
    """One forward pass: the logits, still in the graph, and the record of each layer.

    Args:
        model: the network.
        x: images (N, C, H, W).
        layers: as for :func:`capture`.
        rule: as for :func:`capture`.
        activations: whether the records' values are needed.
        run: how to call the network where that is not ``model(x)``: with other weights, say.
    """
    check_images(x, model)
    everything = isinstance(layers, str) and layers == "all"
    chosen = None if everything else resolve(model, layers)
    # A network may begin with an in-place operation, which a leaf does not allow and x must not suffer.
    image = as_leaf(x).clone()
    picture = Record(INPUT, nn.Identity(), get_gradient_edge(image), image.detach().clone(), 0, None)
    # A network that draws random numbers draws the same ones in every run, so that runs can be compared.
    with preserved(model), rule if rule is not None else nullcontext():
        output, records = trace(model, image, chosen, copy=activations and not everything, run=run)
    logits = check_output(output)
    if not logits.requires_grad:
        raise ValueError(f"the scores of this {type(model).__name__} do not depend on the image by any gradient")
    if chosen is None:
        records = explainable(records, output, picture.edge.node)
        if not records:
            raise ValueError(f"{type(model).__name__} has no hidden layer (C, H, W) that all paths cross: name some")
        if activations and any(record.overwritten for record in records):
            # An in-place operation has reached a value we want: run again, and this time copy at once.
            return forward(model, x, [record.name for record in records], rule, activations, run)
        return logits, {record.name: record for record in records}
    last_call = {record.name: record for record in (picture, *records)}
    for name in chosen:
        if name not in last_call:
            raise ValueError(f"layer {name!r} returned no tensor that depends on the image: was it run?")
    return logits, {name: last_call[name] for name in chosen}


def check_target(target: Target, logits: Tensor) -> Tensor:
    """The class of every image as (N,) int64 on the device of ``logits`` (N, classes).

    Raises:
        TypeError: for anything but integers.
        ValueError: for a class that the network does not have, or a count other than 1 or N.
    """
    n, classes = logits.shape
    given = as_labels(target, n)
    if given is None:
        return logits.detach().argmax(1)
    unknown = given[(given < 0) | (given >= classes)].tolist()
    if unknown:
        raise ValueError(f"no class {unknown[0]}: this network has classes 0 to {classes - 1}")
    # Towards a GPU only: in the other direction the values could be read before they have arrived.
    return given.to(logits.device, non_blocking=logits.is_cuda)


def as_labels(target: Target, n: int) -> Tensor | None:
    """The classes that a caller gives for ``n`` images as (N,) int64; ``None`` stays, for those that are predicted.

    They stay where they are, so that looking at those that the caller has at hand does not wait for a GPU.

    Raises:
        TypeError: for anything but integers.
        ValueError: for a count other than 1 or N.
    """
    if target is None:
        return None
    try:
        given = target if isinstance(target, Tensor) else torch.as_tensor(target, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"expected the target as an integer or one an image, got {target!r:.80}") from None
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"expected integer class labels as target, got {given.flatten().tolist()[:3]} ({given.dtype})")
    if given.ndim > 1 or (given.ndim == 1 and len(given) != n):
        raise ValueError(f"expected one target or {n} of them, one an image, got shape {tuple(given.shape)}")
    return given.long().expand(n).contiguous()
