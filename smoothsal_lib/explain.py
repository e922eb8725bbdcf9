"""Attributions of hidden layers, all of them from one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from smoothsal_lib.capture import Capture, capture, record_activations
from smoothsal_lib.fixes import Fix, smoothed
from smoothsal_lib.layers import check_images
from smoothsal_lib.rules import Deconvnet, DeepLift, GuidedBackprop

Layers = str | nn.Module | Iterable[str | nn.Module]
Target = int | Sequence[int] | Tensor | None

METHODS = (
    "gradient",
    "gradient_x_activation",
    "deeplift",
    "integrated_gradients",
    "grad_cam",
    "guided_backprop",
    "deconvnet",
)


def explain(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    layers: Layers = "all",
    method: str = "deeplift",
    fix: str | Fix | Sequence[str | Fix] | None = "backward",
    baseline: Tensor | float | None = None,
    steps: int = 32,
) -> dict[str, Tensor]:
    """Attribute the score of a class to the units of every chosen layer.

    ========================  =====================================================================================
    method                    attribution at layer l (activation x, gradient g, baseline x̄)
    ========================  =====================================================================================
    ``gradient``              g (Simonyan et al. 2014, arXiv 1312.6034)
    ``gradient_x_activation``  g · x
    ``deeplift``              m · (x - x̄), m the multiplier of :class:`smoothsal_lib.rules.DeepLift`
                              (Shrikumar et al. 2017, arXiv 1704.02685)
    ``integrated_gradients``  ∫ g dx along the straight path from baseline to image (Sundararajan et al. 2017, arXiv
                              1703.01365; at hidden layers layer conductance, Dhamdhere et al. 2018, arXiv 1805.12233)
    ``grad_cam``              ReLU(Σ_c ḡ_c x_c), one channel (Selvaraju et al. 2017, arXiv 1610.02391)
    ``guided_backprop``       g under :class:`smoothsal_lib.rules.GuidedBackprop` (arXiv 1412.6806)
    ``deconvnet``             g under :class:`smoothsal_lib.rules.Deconvnet` (arXiv 1311.2901)
    ========================  =====================================================================================

    Args:
        model: a network from images (N, C, H, W) to logits (N, classes). It is run in evaluation mode and left as it
            was.
        x: images (N, C, H, W), normalised as the model expects them; at any precision the model has.
        target: the class to explain, one for all images or one an image; ``None`` takes the class that the network,
            repaired as ``fix`` says, predicts.
        layers: ``"all"`` for what :func:`smoothsal_lib.hidden_layers` lists, names, modules, or several of them;
            ``"input"`` is the picture itself.
        method: one of the table.
        fix: how to repair the network: ``None``, ``"backward"``, ``"forward"``, either with ``":paper"`` for the
            published form, a :class:`Fix` such as a surrogate, or several of these.
        baseline: what DeepLift and integrated gradients compare with: a tensor that broadcasts to ``x``, or a number;
            ``None`` means zeros, which is the mean colour of a normalised picture.
        steps: pieces of the path of integrated gradients (trapezoid rule); the passes are steps + 1.

    Returns:
        ``{layer name: attribution (N, C, H, W)}`` in forward order for ``"all"``, else in the order given. Detached.

    Raises:
        TypeError, ValueError: for bad images, layers, targets, fixes, methods or baselines, in one line.
        NotImplementedError: for ``deeplift`` on a network that calls a function without a rule.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose {', '.join(METHODS)}")
    check_images(x, model)
    x = x.detach()
    with smoothed(model, fix):
        if method == "deeplift":
            return _deeplift(model, x, target, layers, _as_baseline(baseline, x))
        if method == "integrated_gradients":
            return _integrated_gradients(model, x, target, layers, _as_baseline(baseline, x), steps)
        if method in ("guided_backprop", "deconvnet"):
            rule = GuidedBackprop() if method == "guided_backprop" else Deconvnet()
            found = capture(model, x, layers, target, rule, activations=False)
            if not rule.met:
                raise ValueError(f"{method} changes the gradient of ReLU, and this {type(model).__name__} calls none")
            return found.gradients
        if method == "gradient":
            return capture(model, x, layers, target, activations=False).gradients
        found = capture(model, x, layers, target)
        return _grad_cam(found) if method == "grad_cam" else _times(found.gradients, found.activations)


def _times(gradients: dict[str, Tensor], activations: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: gradient * activations[name] for name, gradient in gradients.items()}


def _grad_cam(found: Capture) -> dict[str, Tensor]:
    weights = {name: gradient.mean((2, 3), keepdim=True) for name, gradient in found.gradients.items()}
    weighted = _times(weights, found.activations)
    return {name: per_channel.sum(1, keepdim=True).clamp(min=0) for name, per_channel in weighted.items()}


def _deeplift(model: nn.Module, x: Tensor, target: Target, layers: Layers, baseline: Tensor) -> dict[str, Tensor]:
    rule = DeepLift()
    reference = record_activations(model, baseline, layers, rule.reference())
    found = capture(model, x, list(reference), target, rule)
    differences = {name: found.activations[name] - reference[name] for name in reference}
    return _times(found.gradients, differences)


def _integrated_gradients(
    model: nn.Module, x: Tensor, target: Target, layers: Layers, baseline: Tensor, steps: int
) -> dict[str, Tensor]:
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"expected a whole number of steps, at least 1, got {steps!r}")
    # The class is that of the image, known before the path begins; the last point's capture serves twice.
    end = capture(model, x, layers, target)
    names = list(end.gradients)
    total = {name: torch.zeros_like(gradient) for name, gradient in end.gradients.items()}
    before: Capture | None = None
    for step in range(steps + 1):
        here = end if step == steps else capture(model, baseline + (x - baseline) * (step / steps), names, end.target)
        if before is not None:
            for name in names:
                rise = here.activations[name] - before.activations[name]
                total[name] += (here.gradients[name] + before.gradients[name]) / 2 * rise
        before = here
    return total


def _as_baseline(baseline: Tensor | float | None, x: Tensor) -> Tensor:
    """The baseline as a tensor of the shape of ``x``.

    Raises:
        ValueError: when it does not broadcast to that shape, or is not finite.
    """
    given = torch.as_tensor(0.0 if baseline is None else baseline, dtype=x.dtype, device=x.device).detach()
    try:
        given = given.expand(x.shape)
    except RuntimeError:
        raise ValueError(f"baseline of shape {tuple(given.shape)} does not broadcast to {tuple(x.shape)}") from None
    if not bool(torch.isfinite(given).all()):
        raise ValueError("expected a finite baseline, got NaN or infinite values")
    return given.clone()
