"""Attributions of hidden layers, all of them from one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial

import torch
from torch import Tensor, nn

from smoothsal_lib.capture import (
    Capture,
    Layers,
    Target,
    as_labels,
    capture,
    check_target,
    logits_of,
    record_activations,
)
from smoothsal_lib.contributions import NAMED, ExtractAggregate, extract_aggregate, fed, weight_contributions
from smoothsal_lib.fixes import Fix, smoothed
from smoothsal_lib.layers import as_baseline, check_images, resolve
from smoothsal_lib.lrp import relevance_network
from smoothsal_lib.memory import Portions, check_size, no_room
from smoothsal_lib.meta import MetaStep, as_step, capture_stepped, stepped
from smoothsal_lib.regions import Region, as_region, over_region
from smoothsal_lib.rules import Deconvnet, DeepLift, GuidedBackprop
from smoothsal_lib.sampling import Sampling, SmoothGrad, as_sampling, sample

Attributions = dict[str, Tensor]


def explain(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    layers: Layers = "all",
    method: str | ExtractAggregate = "deeplift",
    fix: str | Fix | Sequence[str | Fix] | None = "backward",
    baseline: Tensor | float | None = None,
    steps: int = 32,
    sampling: str | Sampling | None = None,
    meta: float | MetaStep | None = None,
    region: Region | None = None,
    batch: int | None = None,
) -> dict[str, Tensor]:
    """Attribute the score of a class to the units of every chosen layer.

    ==========================  ===================================================================================
    method                      attribution at layer l (activation x, gradient g, baseline x̄)
    ==========================  ===================================================================================
    ``gradient``                g (Simonyan et al. 2014, arXiv 1312.6034)
    ``gradient_x_activation``   g · x
    ``deeplift``                m · (x - x̄), m the multiplier of :class:`smoothsal_lib.rules.DeepLift`
                                (Shrikumar et al. 2017, arXiv 1704.02685)
    ``integrated_gradients``    ∫ g dx along the straight path from baseline to image (Sundararajan et al. 2017, arXiv
                                1703.01365; at hidden layers layer conductance, Dhamdhere et al. 2018, arXiv 1805.12233)
    ``guided_backprop``         g under :class:`smoothsal_lib.rules.GuidedBackprop` (arXiv 1412.6806)
    ``deconvnet``               g under :class:`smoothsal_lib.rules.Deconvnet` (arXiv 1311.2901)
    ``lrp``                     relevance (Bach et al. 2015), see :func:`smoothsal_lib.lrp.relevance_network`; needs the
                                extra ``lrp``
    ==========================  ===================================================================================

    These give every layer as many channels as it has. The following give one, (N, 1, H, W):

    ==========================  ===================================================================================
    ``cam``                     Σ_c w_c x_c, w the classifier's weights (Zhou et al. 2016, arXiv 1512.04150): only at a
                                layer that feeds average pooling and a linear classifier, which ``"all"`` stands for
    ``grad_cam``                ReLU(Σ_c ḡ_c x_c), ḡ the mean over positions (Selvaraju et al. 2017, arXiv 1610.02391)
    ``grad_cam++``              ReLU(Σ_c w_c x_c), w_c = Σ_u α g⁺, α = g² / (2 g² + g³ Σ_u x) (Chattopadhyay et al.
                                2018, arXiv 1710.11063)
    ``smooth_grad_cam++``       the same with the means of g, g² and g³ over noisy pictures (Omeiza et al. 2019, arXiv
                                1908.01224); ``sampling`` says which, by default SmoothGrad
    ``layer_cam``               ReLU(Σ_c g_c⁺ x_c) (Jiang et al. 2021, doi 10.1109/TIP.2021.3089943)
    ``linear_approximation``    Σ_c g_c x_c
    ``normgrad``                ‖g_u‖ · ‖x_u‖ (Rebuffi et al. 2020, arXiv 2004.02866)
    ``normgrad_selective``      ‖(g_u ⊙ x_u)⁺‖ (the same)
    ``"conv3x3+l2"``, ...       any other cell of extract & aggregate, with a rule in front where it is not the gradient
                                (``"deeplift+scaling+l2"``): see :mod:`smoothsal_lib.contributions`
    ==========================  ===================================================================================

    Args:
        model: a network from images (N, C, H, W) to logits (N, classes), or to logits (N, classes, h, w) for every
            position, which need a ``region``. It is run in evaluation mode and left as it was.
        x: images (N, C, H, W), normalised as the model expects them; at any precision the model has.
        target: the class to explain, one for all images or one an image; ``None`` takes the class that the network,
            repaired as ``fix`` says, predicts; for a region that with the highest mean logit there.
        layers: ``"all"`` for what :func:`smoothsal_lib.hidden_layers` lists, names, modules, or several of them;
            ``"input"`` is the picture itself. For ``extract="weights"`` all are all 2-d convolutions.
        method: one of the tables, or an :class:`smoothsal_lib.ExtractAggregate`.
        fix: how to repair the network: ``None``, ``"backward"``, ``"forward"``, either with ``":paper"`` for the
            published form, a :class:`Fix` such as a surrogate, or several of these.
        baseline: what DeepLift and integrated gradients compare with: a tensor that broadcasts to ``x``, or a number;
            ``None`` means zeros, which is the mean colour of a normalised picture.
        steps: pieces of the path of integrated gradients (trapezoid rule); the passes are steps + 1.
        sampling: average over many looks at the picture: ``"smoothgrad"``, ``"smoothgrad_squared"``, ``"vargrad"``,
            ``"adaptgrad"``, ``"noisegrad"``, ``"fusiongrad"``, ``"path"``, or one of :mod:`smoothsal_lib.sampling` with
            settings of your own; ``None`` looks once. The class is that of the picture as it is.
        meta: let the network take one step towards the class first: a learning rate, for second order, or a
            :class:`smoothsal_lib.MetaStep`.
        region: for a dense network, the part of the picture whose mean logit of the class is the score: booleans or
            weights, (H, W) for all pictures or (N, H, W), see :func:`smoothsal_lib.over_region`.
        batch: pictures at a time, which bounds the memory of a pass; the result is the same. ``None`` takes all at
            once. Either is halved where the device has no memory for it, down to one picture.

    Returns:
        ``{layer name: attribution (N, C, H, W)}`` in forward order for ``"all"``, else in the order given. Detached.

    Raises:
        TypeError, ValueError: for bad images, layers, targets, fixes, methods, baselines or regions, in one line; for a
            method that the layer or network does not allow, a dense network without a region, or any other with one.
        NotImplementedError: for ``deeplift`` on a network that calls a function without a rule.
        ModuleNotFoundError: for ``lrp`` without zennit.
        MemoryError: where the device has no memory for one picture.
    """
    run = as_method(method)
    sampling = as_sampling(sampling)
    step = as_step(meta)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"expected a whole number of steps, at least 1, got {steps!r}")
    if method == "smooth_grad_cam++":
        sampling = sampling or SmoothGrad()
    check_images(x, model)
    alone = f"{no_room(x)}: name fewer layers, or take a smaller picture"
    portions = Portions(check_size("batch", batch), alone)
    with torch.inference_mode(False), smoothed(model, fix):
        x = x.clone() if x.is_inference() else x.detach()
        regions = None if region is None else as_region(region, len(x))
        names = "all" if isinstance(layers, str) and layers == "all" else resolve(model, layers)
        look = _Look(model, x, as_labels(target, len(x)), names, as_baseline(baseline, x), steps, regions)

        def explained(some: slice) -> Attributions:
            nonlocal look
            noise = None if sampling is None else sampling.of(some, len(x))
            found = _explained(look.part(some), method, run, noise, step)
            look = replace(look, layers=list(found))  # what "all" means is found out only once
            return found

        parts = [found for _, found in portions.each(explained, len(x))]
    return _joined(parts)


def _explained(
    look: _Look, method: str | ExtractAggregate, run: Run, sampling: Sampling | None, step: MetaStep | None
) -> Attributions:
    """The attributions of one look, or of as many as ``sampling`` takes, after the inner step if there is one."""
    if sampling is None and step is None:
        with look.scored():
            return run(look)
    # The class is that of the picture as it is, whatever noise or learning does to it.
    with look.scored():
        logits = logits_of(look.model, look.x)
    look = replace(look, target=check_target(look.target, logits))
    if sampling is None:
        return _learnt(look, run, step)
    if method == "smooth_grad_cam++":
        return _smooth_grad_cam_plus_plus(look, sampling, step)
    return _sampled(look, run, sampling, step)


def _joined(parts: list[Attributions]) -> Attributions:
    """The attributions of all pictures, from those of some each, which are used up: only one layer is held twice."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part.pop(name) for part in parts]) for name in list(parts[0])}


@dataclass(frozen=True)
class _Look:
    """One look of a network, repaired already, at some pictures.

    Attributes:
        model: the network.
        x: images (N, C, H, W).
        target: (N,) int64, the classes to explain; ``None`` for those predicted.
        layers: where.
        baseline: (N, C, H, W), what DeepLift and integrated gradients compare with.
        steps: of integrated gradients.
        regions: (N, H, W), where a dense network's score is taken; ``None`` for a network with one score a class.
        rate: of an inner step that the derivative goes through as well; ``None`` for none.
    """

    model: nn.Module
    x: Tensor
    target: Tensor | None
    layers: str | list[str]
    baseline: Tensor
    steps: int
    regions: Tensor | None = None
    rate: float | None = None

    def scored(self) -> AbstractContextManager[None]:
        """The context in which the network has one score a class for each of these pictures."""
        return nullcontext() if self.regions is None else over_region(self.model, self.regions)

    def part(self, some: slice) -> _Look:
        """The same look at some of the pictures."""
        target = self.target[some] if isinstance(self.target, Tensor) else None
        regions = None if self.regions is None else self.regions[some]
        return replace(self, x=self.x[some], target=target, baseline=self.baseline[some], regions=regions)

    def at(self, x: Tensor, which: Tensor) -> _Look:
        """The same look at other pictures: ``x[i]`` takes the place of picture ``which[i]``, its target and all."""
        assert isinstance(self.target, Tensor)
        regions = None if self.regions is None else self.regions[which.cpu()]
        return replace(self, x=x, target=self.target[which], baseline=self.baseline[which], regions=regions)

    def capture(self, rule: str = "gradient", activations: bool = True) -> Capture:
        """Activation and gradient of every layer; for ``"deeplift"``, differences of activations and multipliers."""
        if rule == "deeplift":
            self.refuse_second_order("deeplift")
            deeplift = DeepLift()
            reference = record_activations(self.model, self.baseline, self.layers, deeplift.reference())
            found = capture(self.model, self.x, list(reference), self.target, deeplift)
            return replace(found, activations={name: found.activations[name] - reference[name] for name in reference})
        rectifier = None if rule == "gradient" else _RECTIFIERS[rule]()
        if self.rate is None:
            found = capture(self.model, self.x, self.layers, self.target, rectifier, activations)
        else:
            assert isinstance(self.target, Tensor)
            found = capture_stepped(self.model, self.x, self.layers, self.target, self.rate, rectifier)
        if rectifier is not None and not rectifier.met:
            raise ValueError(f"{rule} changes the gradient of ReLU, and this {type(self.model).__name__} calls none")
        return found

    def refuse_second_order(self, method: str) -> None:
        """Raise a one-line ``ValueError`` where a method is asked for what it cannot do."""
        if self.rate is not None:
            raise ValueError(
                f"{method} is not made of activation and gradient, so it has no second-order form: "
                f"use meta=sal.MetaStep({self.rate:g}, order=1)"
            )


Run = Callable[[_Look], Attributions]


def _sampled(look: _Look, run: Run, sampling: Sampling, step: MetaStep | None) -> Attributions:
    """What ``sampling`` takes of many looks."""

    def many(images: Tensor) -> Attributions:
        nonlocal look
        every = torch.arange(len(look.x), device=images.device).repeat(len(images) // len(look.x))
        found = _learnt(look.at(images, every), run, step)
        look = replace(look, layers=list(found))  # what "all" means is found out only once
        return found

    return sample(look.model, look.x, sampling, many)


def _learnt(look: _Look, run: Run, step: MetaStep | None) -> Attributions:
    """The attribution after an inner step, which every picture takes on its own; or without one."""
    if step is None:
        with look.scored():
            return run(look)
    parts = []
    for one in torch.arange(len(look.x), device=look.x.device).split(1):
        single = look.at(look.x[one], one)
        assert isinstance(single.target, Tensor)
        with single.scored():
            if step.order == 2:
                parts.append(run(replace(single, rate=step.rate)))
            else:
                with stepped(look.model, single.x, single.target, step.rate):
                    parts.append(run(single))
    return _joined(parts)


def _times(found: Capture) -> Attributions:
    return {name: gradient * found.activations[name] for name, gradient in found.gradients.items()}


def _one_channel(maps: dict[str, Tensor]) -> Attributions:
    """Maps (N, H, W) as attributions (N, 1, H, W)."""
    return {name: one[:, None] for name, one in maps.items()}


def _grad_cam(look: _Look) -> Attributions:
    found = look.capture()
    weights = {name: gradient.mean((2, 3), keepdim=True) for name, gradient in found.gradients.items()}
    weighted = _times(replace(found, gradients=weights))
    return _one_channel({name: each.sum(1).clamp(min=0) for name, each in weighted.items()})


def _layer_cam(look: _Look) -> Attributions:
    found = look.capture()
    positive = {name: gradient.clamp(min=0) for name, gradient in found.gradients.items()}
    weighted = _times(replace(found, gradients=positive))
    return _one_channel({name: each.sum(1).clamp(min=0) for name, each in weighted.items()})


def _grad_cam_plus_plus(look: _Look) -> Attributions:
    found = look.capture()
    return _one_channel(
        {
            name: _weighted_by_curvature(found.activations[name], *_powers(g).chunk(3, 1))
            for name, g in found.gradients.items()
        }
    )


def _smooth_grad_cam_plus_plus(look: _Look, sampling: Sampling, step: MetaStep | None) -> Attributions:
    if sampling.statistic != "mean":
        raise ValueError(f"smooth_grad_cam++ needs means over looks, and {type(sampling).__name__} takes others")

    def powers(here: _Look) -> Attributions:
        gradients = here.capture(activations=False).gradients
        return {name: _powers(g) for name, g in gradients.items()}

    means = _sampled(look, powers, sampling, step)
    with look.scored():
        activations = record_activations(look.model, look.x, list(means))
    return _one_channel(
        {name: _weighted_by_curvature(activations[name], *mean.chunk(3, 1)) for name, mean in means.items()}
    )


def _powers(g: Tensor) -> Tensor:
    """g, g² and g³, (N, 3 C, H, W); in 32 bits at least, since in 16 the powers of a small gradient are 0."""
    g = g.to(torch.promote_types(g.dtype, torch.float32))
    return torch.cat([g, g.square(), g.pow(3)], 1)


def _weighted_by_curvature(x: Tensor, g: Tensor, squared: Tensor, cubed: Tensor) -> Tensor:
    """The map (N, H, W) of Grad-CAM++, from (N, C, H, W) each: g and its second and third power, or means of them."""
    denominator = 2 * squared + x.sum((2, 3), keepdim=True) * cubed
    alpha = torch.where(denominator == 0, 0, squared / denominator)  # 0 / 0 where a gradient is 0
    weights = (alpha * g.clamp(min=0)).sum((2, 3), keepdim=True)
    return (weights * x).sum(1).clamp(min=0).to(x.dtype)


def _cam(look: _Look) -> Attributions:
    look.refuse_second_order("cam")
    found = capture(look.model, look.x, look.layers, look.target)
    elsewhere = capture(look.model, torch.zeros_like(look.x), list(found.gradients), found.target, activations=False)
    # Asked for all layers at once, because a GPU has to be waited for to hear the answer.
    even = torch.stack([_is_even(g, elsewhere.gradients[name]) for name, g in found.gradients.items()]).tolist()
    maps = {}
    for (name, g), possible in zip(found.gradients.items(), even, strict=True):
        if possible:
            maps[name] = (g.mean((2, 3), keepdim=True) * found.activations[name]).sum(1) * g[0, 0].numel()
        elif look.layers != "all":
            raise ValueError(f"cam needs average pooling and a linear classifier behind the layer: {name!r} has others")
    if not maps:
        raise ValueError(f"cam needs average pooling and a linear classifier: {type(look.model).__name__} has others")
    return _one_channel(maps)


def _is_even(gradient: Tensor, elsewhere: Tensor) -> Tensor:
    """Whether average pooling and a linear layer follow: all positions have one gradient, and all pictures the same."""
    weights = gradient.mean((2, 3), keepdim=True)
    close = 1e-3 * weights.abs().amax()
    return ((gradient - weights).abs().amax() <= close) & ((elsewhere - gradient).abs().amax() <= close)


def _lrp(look: _Look) -> Attributions:
    look.refuse_second_order("lrp")
    every = isinstance(look.layers, str) and look.layers == "all"
    names = list(record_activations(look.model, look.x)) if every else resolve(look.model, look.layers)
    with relevance_network(look.model) as network:
        found = capture(network, look.x, names, look.target, activations=False)
    scores = found.logits.gather(1, found.target[:, None])[..., None, None]
    return {name: gradient * scores for name, gradient in found.gradients.items()}


def _integrated_gradients(look: _Look) -> Attributions:
    look.refuse_second_order("integrated_gradients")
    # The class is that of the image, known before the path begins; the last point's capture serves twice.
    end = capture(look.model, look.x, look.layers, look.target)
    names = list(end.gradients)
    total = {name: torch.zeros_like(gradient) for name, gradient in end.gradients.items()}
    before: Capture | None = None
    for step in range(look.steps + 1):
        point = look.baseline + (look.x - look.baseline) * (step / look.steps)
        here = end if step == look.steps else capture(look.model, point, names, end.target)
        if before is not None:
            for name in names:
                rise = here.activations[name] - before.activations[name]
                total[name] += (here.gradients[name] + before.gradients[name]) / 2 * rise
        before = here
    return total


def _cell(cell: ExtractAggregate, look: _Look) -> Attributions:
    """Extract & aggregate."""
    if cell.extract == "weights":
        return _at_weights(cell, look)
    found = look.capture(cell.rule, activations=cell.extract != "bias")
    return _one_channel(
        {
            name: extract_aggregate(found.activations.get(name, g), g, cell.extract, cell.aggregate)
            for name, g in found.gradients.items()
        }
    )


def _at_weights(cell: ExtractAggregate, look: _Look) -> Attributions:
    """Extract & aggregate at the weights of real convolutions."""
    look.refuse_second_order("extract 'weights'")
    modules = dict(look.model.named_modules())
    if isinstance(look.layers, str) and look.layers == "all":
        names = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    else:
        names = resolve(look.model, look.layers)
    convolutions = {name: modules.get(name) for name in names}
    with fed(convolutions) as inputs:
        found = replace(look, layers=names).capture(cell.rule, activations=False)
    return _one_channel(
        {
            name: weight_contributions(inputs[name], g, modules[name], cell.aggregate)
            for name, g in found.gradients.items()
        }
    )


_RECTIFIERS = {"guided_backprop": GuidedBackprop, "deconvnet": Deconvnet}
_RUNS: dict[str, Run] = {
    "gradient": lambda look: look.capture(activations=False).gradients,
    "gradient_x_activation": lambda look: _times(look.capture()),
    "deeplift": lambda look: _times(look.capture("deeplift")),
    "integrated_gradients": _integrated_gradients,
    "guided_backprop": lambda look: look.capture("guided_backprop", activations=False).gradients,
    "deconvnet": lambda look: look.capture("deconvnet", activations=False).gradients,
    "lrp": _lrp,
    "cam": _cam,
    "grad_cam": _grad_cam,
    "grad_cam++": _grad_cam_plus_plus,
    "smooth_grad_cam++": _grad_cam_plus_plus,  # of one look; many are taken by _smooth_grad_cam_plus_plus
    "layer_cam": _layer_cam,
    **{name: partial(_cell, cell) for name, cell in NAMED.items()},
}
# What ``explain`` takes as its method, besides any other cell of extract & aggregate.
METHODS = tuple(_RUNS)


def as_method(method: str | ExtractAggregate) -> Run:
    """What turns a look into attributions.

    Raises:
        ValueError: for an unknown method.
        TypeError: for anything that is neither a name nor an :class:`ExtractAggregate`.
    """
    if isinstance(method, ExtractAggregate):
        return partial(_cell, method)
    if not isinstance(method, str):
        raise TypeError(f"expected the method as a name or an ExtractAggregate, got {type(method).__name__}")
    if method in _RUNS:
        return _RUNS[method]
    if "+" in method:
        return partial(_cell, ExtractAggregate.named(method))
    close = get_close_matches(method, METHODS, 1, cutoff=0)[0]
    raise ValueError(
        f"unknown method {method!r}: did you mean {close!r}? sal.METHODS has all, and cells read like 'conv3x3+l2'"
    )
