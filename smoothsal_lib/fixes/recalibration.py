"""Re-estimate the batch-norm statistics of a repaired network: no labels, no training, no changed parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from smoothsal_lib.fixes import Fix, as_fixes, smoothed
from smoothsal_lib.layers import check_images
from smoothsal_lib.state import preserved


class Recalibrated(Fix):
    """A fix, and batch-norm statistics that suit the network it makes; :func:`recalibrate` estimates them.

    Args:
        fix: what :func:`smoothsal_lib.smoothed` takes: a name, a :class:`Fix`, several of them, or ``None``.
        statistics: ``{name of a batch-norm layer: (mean, variance)}``, each (C,).

    Attributes:
        fixes: the wrapped fixes, a list.
        statistics: as given.
    """

    def __init__(
        self, fix: str | Fix | Sequence[str | Fix] | None, statistics: Mapping[str, tuple[Tensor, Tensor]]
    ) -> None:
        self.fixes = as_fixes(fix)
        self.statistics = dict(statistics)

    @contextmanager
    def repair(self, model: nn.Module) -> Iterator[None]:
        """Within the context, ``model`` is repaired by the wrapped fix and normalises by ``statistics``.

        The layers get tensors of their own and get their old ones back, so that not even a forward pass in training
        mode inside the block reaches the network's statistics, or those of this fix.

        Raises:
            ValueError: when a layer is missing in ``model`` or differs from the one the statistics were made for.
        """
        modules = dict(model.named_modules())
        for name, (mean, _) in self.statistics.items():
            _check_match(name, mean, modules.get(name))
        with smoothed(model, self.fixes), ExitStack() as undo:
            for name, statistics in self.statistics.items():
                undo.enter_context(_normalised_by(modules[name], *statistics))
            yield

    def __repr__(self) -> str:
        return f"Recalibrated({self.fixes}, {len(self.statistics)} layers)"


def _check_match(name: str, mean: Tensor, norm: nn.Module | None) -> None:
    """Raise a one-line ValueError unless ``mean`` can stand for the running mean of the module ``norm``."""
    if norm is None:
        raise ValueError(f"the network has no layer {name!r}: these statistics were estimated on another one")
    if not _has_statistics(norm):
        raise ValueError(f"layer {name!r} is a {type(norm).__name__}, not a batch norm with running statistics")
    theirs = norm.running_mean
    assert isinstance(theirs, Tensor)
    if theirs.shape != mean.shape:
        raise ValueError(f"layer {name!r} has {len(theirs)} channels, but the statistics were made for {len(mean)}")
    if (theirs.dtype, theirs.device) != (mean.dtype, mean.device):
        raise ValueError(
            f"the statistics of {name!r} are {mean.dtype} on {mean.device} but the layer is {theirs.dtype} on "
            f"{theirs.device}: recalibrate the network as it is now"
        )


def _has_statistics(module: nn.Module) -> bool:
    """Whether ``module`` normalises by stored statistics; without them a batch norm always uses those of its batch."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


@contextmanager
def _normalised_by(norm: nn.Module, mean: Tensor, variance: Tensor) -> Iterator[None]:
    """Within the context ``norm`` has copies of these statistics; afterwards, the very tensors that it had."""
    ours = {"running_mean": mean, "running_var": variance, "num_batches_tracked": norm.num_batches_tracked}
    theirs = {name: getattr(norm, name) for name in ours}
    with ExitStack() as undo:
        for name, value in ours.items():
            undo.callback(setattr, norm, name, theirs[name])
            setattr(norm, name, value.clone() if isinstance(value, Tensor) else value)
        yield


def recalibrate(
    model: nn.Module,
    fix: str | Fix | Sequence[str | Fix] | None,
    images: Tensor,
    *,
    batch: int = 256,
) -> Recalibrated:
    """Estimate anew, under a fix, the mean and variance that every batch norm subtracts and divides by.

    A fix that changes the forward pass changes what arrives at every later batch norm: a blur, for one, lowers the
    variance. The stored statistics no longer fit, the error grows from layer to layer, and accuracy is lost that a
    second look at some images brings back (AdaBN, Li et al. 2016, arXiv 1603.04779, does this for another data set).
    Labels are not needed, and parameters do not change. The network is left as it was.

    The statistics are those of the population, not an average over batches: layer after layer in the order of their
    calls, each is given the exact mean and variance, over all images and positions, of what it is fed once all layers
    before it have theirs. Were the images one batch, a single pass in training mode would normalise by the same
    values. Averages of smaller batches (training mode with ``momentum=None``) differ in two ways: they lose the
    variance between the means of the batches, and each later layer sees activations that were normalised by the
    statistics of their batch, which is not what it will see afterwards.

    Args:
        model: the network; it runs in evaluation mode.
        fix: what to repair it with meanwhile; ``None`` for the network as it is.
        images: (N, C, H, W), at least 2, normalised as the model expects them.
        batch: images at a time. The result does not depend on it. When all images fit into one batch, one pass is
            enough; otherwise there is one for every batch-norm layer, up to that layer.

    Returns:
        The fix together with the new statistics; a fix like any other.

    Raises:
        TypeError, ValueError: for bad images (:func:`check_images`) or an unknown fix; for less than two images or a
            batch below 1; for a network that runs no batch norm with running statistics, or runs one more than once,
            which then has no single place in the order.
    """
    check_images(images, model)
    if len(images) < 2:
        raise ValueError("expected at least 2 images to estimate a variance from, got 1")
    if batch < 1:
        raise ValueError(f"expected a batch of at least 1 image, got {batch}")
    wrapped = as_fixes(fix)
    # No tensors of inference mode: who takes statistics out of the fix may want to use them in a graph.
    with preserved(model), torch.inference_mode(False), torch.no_grad(), smoothed(model, wrapped):
        return Recalibrated(wrapped, _estimate(model, images.split(batch), _order(model, images[:1])))


class _Stop(Exception):  # noqa: N818 (no error: it ends a forward pass that has nothing left to tell)
    """Raised at the first layer that still waits for other images."""


class _Moments:
    """Mean and variance (C,) of values that come in parts, by the pairwise update of Chan et al. (1983)."""

    def __init__(self) -> None:
        self.parts, self.count = 0, 0
        self.mean = self.squares = torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Take in (N, C, ...)."""
        axes = [axis for axis in range(x.ndim) if axis != 1]
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        # On the CPU, since not every device has double precision.
        variance, mean = (moment.double().cpu() for moment in torch.var_mean(x, axes, correction=0))
        new = x.numel() // x.shape[1]
        both = self.count + new
        step = mean - self.mean
        self.squares = self.squares + new * variance + step.square() * (self.count * new / both)
        self.mean = self.mean + step * (new / both)
        self.count, self.parts = both, self.parts + 1


def _order(model: nn.Module, image: Tensor) -> list[str]:
    """The batch-norm layers with running statistics, in the order in which the network runs them."""
    calls: list[str] = []
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if _has_statistics(module):
                hooks.callback(module.register_forward_pre_hook(lambda *_, name=name: calls.append(name)).remove)
        model(image)
    if not calls:
        raise ValueError(f"{type(model).__name__} runs no batch norm with running statistics: nothing to re-estimate")
    for name in calls:
        if calls.count(name) > 1:
            raise ValueError(f"layer {name!r} runs {calls.count(name)} times: its statistics have no place in an order")
    return calls


def _estimate(model: nn.Module, parts: Sequence[Tensor], order: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """``{layer: (mean, variance)}`` over all parts; see :func:`recalibrate`."""
    modules = dict(model.named_modules())
    moments = {name: _Moments() for name in order}
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def arrive(name: str, norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in found:
            return
        seen = moments[name]
        seen.add(args[0] if args else kwargs["input"])
        if seen.parts < len(parts):
            raise _Stop
        old = norm.running_mean
        found[name] = seen.mean.to(old.device, old.dtype), (seen.squares / seen.count).to(old.device, old.dtype)
        undo.enter_context(_normalised_by(norm, *found[name]))

    with ExitStack() as undo:
        for name in order:
            hook = modules[name].register_forward_pre_hook(partial(arrive, name), with_kwargs=True)
            undo.callback(hook.remove)
        for name in order:
            if name not in found:
                for part in parts:  # the one that completes a layer's statistics goes on, and counts for the next layer
                    with suppress(_Stop):
                        model(part)
            if name not in found:
                raise ValueError(
                    f"the network does not run layer {name!r} for every image: pass images for which it does"
                )
    return found
