"""Meta-saliency: explain the network that has just taken one step towards the class it is asked about.

    sal.explain(model, x, target, method="normgrad", meta=1e-3)

θ' = θ - ε ∇_θ ℓ(x, c; θ) is the network after one step of gradient descent on the cross-entropy of class c for this one
picture (of a detector with a single logit, on that of what it detects). What helps to tell c is strengthened, so the
maps of two classes come from two networks and differ more than they did (class sensitivity). The map is that of
f_c(x; θ'), of which there are two readings:

- **first order**: θ' is taken as given, and any method of :func:`smoothsal_lib.explain` is applied to the network that
  has it;
- **second order**: θ' depends on the picture too. The derivative of f_c(x; θ'(x)) by a layer's activation then has two
  parts, through the second pass directly and through the step: what would change here if the network learnt
  something else from here. Everything that is made of activation and gradient can be made of this one.

Source: There and Back Again, Rebuffi et al. 2020, arXiv 2004.02866, section 5. They explain the loss after the step;
here it is the score f_c, as everywhere in this library, so that ε = 0 is the map without a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from smoothsal_lib.capture import Capture, Layers, forward
from smoothsal_lib.state import own_tensors, preserved, replaced


@dataclass(frozen=True)
class MetaStep:
    """One inner step of gradient descent before the map is made.

    Each picture learns on its own, so a batch costs as much as its pictures one after the other. First order costs one
    more forward and backward pass an image, second order a pass through the graph of that backward pass as well;
    chapter 11 of the book shows what that comes to.

    All parameters learn, frozen ones too. Under a repair it is the repaired network that does: with a backward hook the
    step follows the blurred gradient, and a surrogate's own layers stay as they are.

    Args:
        rate: ε, the learning rate.
        order: 1 or 2.

    Raises:
        ValueError: for another order, or a rate that is negative or not finite.
    """

    rate: float
    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order = {self.order!r} of the inner step: choose 1 or 2")
        if not 0 <= self.rate < float("inf"):
            raise ValueError(f"rate = {self.rate} is not a learning rate: give 0 or more")


def as_step(meta: float | MetaStep | None) -> MetaStep | None:
    """A learning rate as a step of second order; others as they are.

    Raises:
        TypeError: for anything that is neither.
    """
    if meta is None or isinstance(meta, MetaStep):
        return meta
    if isinstance(meta, bool) or not isinstance(meta, (int, float)):
        raise TypeError(f"expected meta as a learning rate or a MetaStep, got {meta!r:.80}")
    return MetaStep(meta)


@contextmanager
def stepped(model: nn.Module, x: Tensor, target: Tensor, rate: float) -> Iterator[None]:
    """Inside the block, ``model`` has taken one step towards the target, in all its parameters; then it has not.

    Args:
        model: the network; its parameters are set aside and never written to.
        x: (1, C, H, W), the picture it learns from.
        target: (1,) int64, its class.
        rate: of the step.
    """
    with preserved(model), torch.inference_mode(False), torch.enable_grad():
        old, live = _live(model)
        loss = _loss(_with(model, live)(x.clone()), target)
        new = _after(live, torch.autograd.grad(loss, list(live.values()), allow_unused=True), rate)
    versions = [nn.Parameter(new[name].detach(), parameter.requires_grad) for name, parameter in old.items()]
    with replaced(model, zip(old.values(), versions, strict=True)):
        yield


def capture_stepped(
    model: nn.Module,
    x: Tensor,
    layers: Layers,
    target: Tensor,
    rate: float,
    rule: AbstractContextManager[Any] | None = None,
) -> Capture:
    """Activations of the network that has learnt, and the total derivative of its score: second-order meta-saliency.

    Args:
        model: the network.
        x: (1, C, H, W).
        layers: as for :func:`smoothsal_lib.capture.capture`.
        target: (1,) int64.
        rate: of the inner step.
        rule: a backward rule for the pass that is explained; the step itself follows the gradient.

    Returns:
        ``logits`` and ``activations`` x^l of the network after the step, which is the one that is explained, as at
        first order; ``gradients``: the derivative of f_c(x; θ'(x)) by something added to x^l in both passes.
    """
    # Of attention's kernels only the plain one can be differentiated twice.
    with preserved(model), torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        _, live = _live(model)
        before, inner = forward(model, x, layers, nullcontext(), activations=False, run=_with(model, live))
        loss = _loss(before, target)
        gradients = torch.autograd.grad(loss, list(live.values()), create_graph=True, allow_unused=True)
        learnt = _with(model, _after(live, gradients, rate))
        logits, outer = forward(model, x, list(inner), rule, activations=True, run=learnt)
        edges = [record.edge for record in (*inner.values(), *outer.values())]
        parts = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), edges, allow_unused=True)
        n = len(inner)
        total = {}
        for name, through_step, direct in zip(inner, parts[:n], parts[n:], strict=True):
            if direct is None:
                raise ValueError(f"layer {name!r} has no influence on the score of the class")
            total[name] = direct if through_step is None else direct + through_step
    return Capture(logits.detach(), target, {name: record.value for name, record in outer.items()}, total)


def _loss(logits: Tensor, target: Tensor) -> Tensor:
    """ℓ: of one logit, -log sigmoid(f), since the softmax over a single class leaves nothing to learn."""
    return F.cross_entropy(logits, target) if logits.shape[1] > 1 else -F.logsigmoid(logits).sum()


def _live(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """The network's floating-point parameters, and leaves of an autograd graph with their values."""
    old = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    return old, {name: p.detach().clone().requires_grad_() for name, p in old.items()}


def _with(model: nn.Module, values: dict[str, Tensor]) -> Callable[[Tensor], Any]:
    """``model`` with other values for the named parameters; one that is tied has them in all its places."""
    value_of = {id(p): values[name] for name, p in model.named_parameters() if name in values}
    # Every place is named once: of a module with two names, functional_call would give back one set of parameters only.
    places = {
        f"{prefix}.{name}" if prefix else name: value_of[id(own)]
        for prefix, module in model.named_modules()
        for name, own in own_tensors(module)
        if id(own) in value_of
    }
    return partial(functional_call, model, places, tie_weights=False)


def _after(old: dict[str, Tensor], gradients: tuple[Tensor | None, ...], rate: float) -> dict[str, Tensor]:
    steps = zip(old.items(), gradients, strict=True)
    return {name: value if gradient is None else value - rate * gradient for (name, value), gradient in steps}
