"""Sanity checks: does a map depend on what the network has learnt, and on the class that it is asked about?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from smoothsal_lib.capture import Layers, logits_of
from smoothsal_lib.contributions import ExtractAggregate
from smoothsal_lib.explain import explain
from smoothsal_lib.extract import saliency_map
from smoothsal_lib.fixes import Fix, smoothed
from smoothsal_lib.layers import check_images
from smoothsal_lib.meta import MetaStep
from smoothsal_lib.metrics.similarity import rank_correlation
from smoothsal_lib.sampling import Sampling
from smoothsal_lib.state import check_model, own_tensors, replaced


@contextmanager
def randomised(model: nn.Module, modules: str | Iterable[str], seed: int = 0) -> Iterator[nn.Module]:
    """Inside the block, the named modules have forgotten what they learnt.

    A map that looks the same afterwards did not show what the network has learnt (Adebayo et al. 2018, arXiv
    1810.03292). With :func:`cascade` the network is randomised from the classifier down:

        for stage, modules in cascade(model).items():
            with randomised(model, modules):
                maps[stage] = sal.explain(model, x, target)

    Every named module, and every module inside it, is initialised anew by its own ``reset_parameters``; batch-norm
    layers thereby forget their running statistics too. A parameter that no ``reset_parameters`` changes (one that a
    module of your own holds, or one behind ``torch.nn.utils.parametrize``) gets its own values in random order, which
    keeps their distribution. A tied parameter is replaced wherever it is used.

    The original tensors are set aside, never written to. On every exit they return: the same objects with the same
    values, version counters and ``.grad``. A gradient accumulated inside the block is that of the random weights, and
    goes with them.

    Args:
        model: the network.
        modules: names, as ``model.named_modules()`` gives them; ``""`` is the network as a whole.
        seed: of the random weights, which are the same on every device. They are drawn in the order of ``modules``, so
            that stages of a cascade share the weights that they both randomise. The global random state is not touched.

    Raises:
        TypeError: when ``model`` is not a ``torch.nn.Module``, or a name no string.
        ValueError: for a name that the network does not have (the closest one is suggested), or modules without any
            parameter.
    """
    chosen = _with_descendants(model, modules)
    originals = list({id(tensor): tensor for module in chosen for _, tensor in own_tensors(module)}.values())
    if not any(isinstance(tensor, nn.Parameter) for tensor in originals):
        raise ValueError(f"{modules!r} of this {type(model).__name__} hold no parameters to randomise")
    with replaced(model, _random_versions(model, chosen, originals, seed)):
        yield model


def _with_descendants(model: nn.Module, modules: str | Iterable[str]) -> list[nn.Module]:
    """The named modules and all inside them, each once, in the order of the names."""
    known = dict(check_model(model).named_modules())
    found: dict[nn.Module, None] = {}
    for name in [modules] if isinstance(modules, str) else modules:
        if not isinstance(name, str):
            raise TypeError(f"expected the names of modules, got {type(name).__name__}")
        if name not in known:
            close = get_close_matches(name, known, 1, cutoff=0)[0]
            raise ValueError(f"no module {name!r} in this {type(model).__name__}: did you mean {close!r}?")
        found.update(dict.fromkeys(known[name].modules()))
    return list(found)


def _random_versions(
    model: nn.Module, chosen: list[nn.Module], originals: list[Tensor], seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Every tensor with a random version on its device; meanwhile copies on the CPU stand in their places."""
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        copies = [_like(tensor, tensor.detach().cpu().clone()) for tensor in originals]
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also set the generators of all GPUs
        with replaced(model, zip(originals, copies, strict=True)):
            for module in chosen:
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
        for copy, original in zip(copies, originals, strict=True):
            if isinstance(copy, nn.Parameter) and torch.equal(copy, original.cpu()):
                copy.copy_(copy.flatten()[torch.randperm(copy.numel())].view_as(copy))
        return [
            (original, _like(original, copy.detach().to(original.device)))
            for original, copy in zip(originals, copies, strict=True)
        ]


def _like(original: Tensor, values: Tensor) -> Tensor:
    """The values as a parameter where the original is one."""
    return nn.Parameter(values, original.requires_grad) if isinstance(original, nn.Parameter) else values


def cascade(model: nn.Module) -> dict[str, list[str]]:
    """The stages of cumulative randomisation, from the classifier down to the first layer.

    For a ResNet: ``fc``, ``layer4``, ``layer3``, ``layer2``, ``layer1`` and ``all``, the stages of Smooth Deep Saliency
    (arXiv 2404.02282). For any network: the modules that its class registers directly (``model.named_children()``) and
    that hold parameters, the last registered first; registration nearly always follows the forward pass. A child whose
    parameters are all vectors, such as a batch norm, belongs to the stage of the child before it. The last stage is
    always called ``all``. A network that is wrapped as a single child has this stage only: pass what is inside.

    Returns:
        ``{stage: names}``, each with the names of the stages before it, as :func:`randomised` takes them.

    Raises:
        TypeError: when ``model`` is not a ``torch.nn.Module``.
        ValueError: for a network without parameters.
    """
    stages: list[list[str]] = []
    for name, child in check_model(model).named_children():
        dimensions = [parameter.ndim for parameter in child.parameters()]
        if dimensions and max(dimensions) < 2 and stages:
            stages[-1].append(name)
        elif dimensions:
            stages.append([name])
    if next(model.parameters(recurse=False), None) is not None:  # the network holds some itself
        stages = [[*stages[0], ""], *stages[1:]] if stages else [[""]]
    if not stages:
        raise ValueError(f"this {type(model).__name__} has no parameters to randomise")
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for stage in reversed(stages):
        names = [*names, *stage]
        found["all" if stage is stages[0] else stage[0]] = names
    return found


def random_maps(maps: Tensor, seed: int = 0) -> Tensor:
    """Independent standard normal values in the shape of ``maps``: what knows nothing, the floor of every measure.

    Args:
        maps: maps (N, H, W) or attributions (N, C, H, W), of a floating-point type; only shape, type and device count.
        seed: of the values, which are the same on every device. The global random state is not touched.

    Raises:
        TypeError: for anything but a floating-point tensor.
    """
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        raise TypeError(f"expected a floating-point tensor, got {getattr(maps, 'dtype', type(maps).__name__)}")
    return torch.randn(maps.shape, dtype=maps.dtype, generator=torch.Generator().manual_seed(seed)).to(maps.device)


def class_sensitivity(
    model: nn.Module,
    x: Tensor,
    layers: Layers = "all",
    method: str | ExtractAggregate = "gradient",
    fix: str | Fix | Sequence[str | Fix] | None = "backward",
    reduce: str = "mean",
    sampling: str | Sampling | None = None,
    meta: float | MetaStep | None = None,
) -> dict[str, Tensor]:
    """Rank correlation between the maps of the most and of the least likely class: does the map depend on the class?

    Lower is better. Near 1 the map shows the same for a class that the network sees and for one that it does not, as an
    edge detector would. Source: There and Back Again (Rebuffi et al. 2020, arXiv 2004.02866), section 4.

    Args:
        model: a network from images (N, C, H, W) to logits (N, classes).
        x: images (N, C, H, W), normalised as the model expects them.
        layers: as in :func:`smoothsal_lib.explain`.
        method: as in :func:`smoothsal_lib.explain`.
        fix: as in :func:`smoothsal_lib.explain`; the repaired network says which classes are likely.
        reduce: how channels are reduced, as in :func:`smoothsal_lib.saliency_map`.
        sampling: as in :func:`smoothsal_lib.explain`.
        meta: as in :func:`smoothsal_lib.explain`; each class takes a step of its own.

    Returns:
        ``{layer: (N,)}`` between -1 and 1; 0 where a map is constant, as :func:`rank_correlation` has it.

    Raises:
        TypeError, ValueError, NotImplementedError: what :func:`smoothsal_lib.explain` raises.
    """
    check_images(x, model)
    with smoothed(model, fix):
        logits = logits_of(model, x)
    most, least = (
        explain(model, x, target, layers, method, fix, sampling=sampling, meta=meta)
        for target in (logits.argmax(1), logits.argmin(1))
    )
    return {
        name: rank_correlation(saliency_map(most[name], reduce), saliency_map(least[name], reduce)) for name in most
    }
