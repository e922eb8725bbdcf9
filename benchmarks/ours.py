"""What this library does in each run, the floor that it is measured by, and the definition that it must agree with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import smoothsal_lib as sal
from benchmarks import paper
from benchmarks.case import Case, Contender, Maps, incomplete, off
from smoothsal_lib.fixes.surrogate import Surrogate

WHO = "ours"


def explain(case: Case, method: str, **options: Any) -> Maps:
    """Attributions of all layers of the case, without a fix."""
    return sal.explain(case.model, case.x, case.target, case.layers, method, fix=None, **options)


def plain(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """One forward pass, and one backward pass to the picture, as users write it: parameters are not frozen."""
    image = x.clone().requires_grad_()
    return torch.autograd.grad(model(image).gather(1, target[:, None]).sum(), image)[0]


def answers(model: nn.Module, x: Tensor, batch: int | None = None) -> Tensor:
    """Forward passes without a graph, ``batch`` pictures at a time."""
    with torch.no_grad():
        return torch.cat([model(part) for part in x.split(batch or len(x))])


@dataclass(frozen=True)
class Floor:
    """The passes that a run cannot do without.

    Attributes:
        name: what they are, in a word.
        prepare: makes the pictures, which is not timed, and returns the passes, which are.
    """

    name: str
    prepare: Callable[[Case], Callable[[], object]]


def _plain(times: Callable[[Case], int], batch: Callable[[Case], int]) -> Callable[[Case], Callable[[], object]]:
    """Forward and backward passes for ``times`` pictures, ``batch`` at once."""

    def prepare(case: Case) -> Callable[[], object]:
        pictures = case.x.repeat(times(case), 1, 1, 1).split(batch(case) * len(case.x))
        targets = case.target.repeat(times(case)).split(batch(case) * len(case.x))
        return lambda: [plain(case.model, *some) for some in zip(pictures, targets, strict=True)]

    return prepare


def _exchanges(case: Case) -> Callable[[], object]:
    # Both curves begin or end with the picture itself, so that it and the two baselines are seen once each.
    pictures = case.x.repeat(2 * (case.points - 1) + 3, 1, 1, 1)
    return lambda: answers(case.model, pictures, (case.points - 1) * len(case.x))


def _fitting(case: Case) -> Callable[[], object]:
    shown = 10 * len(case.pictures)
    pictures = case.pictures.repeat(-(-shown // len(case.pictures)), 1, 1, 1)[:shown]
    target = torch.zeros(len(case.pictures), dtype=torch.long, device=case.x.device)
    return lambda: [plain(case.model, some, target) for some in pictures.split(len(case.pictures))]


_ONE_PASS = Floor("a pass forward and back", _plain(lambda case: 1, lambda case: 1))
_FORWARD = Floor("a pass forward", lambda case: lambda: answers(case.model, case.x))
FLOORS = {
    "gradient": _ONE_PASS,
    "gradient, layers='all'": _ONE_PASS,
    "NormGrad": _ONE_PASS,
    "NormGrad after a step, order 1": _ONE_PASS,
    "NormGrad after a step, order 2": _ONE_PASS,
    "Grad-CAM": _ONE_PASS,
    "DeepLift": Floor("a pass of twice the batch", _plain(lambda case: 2, lambda case: 2)),
    "integrated gradients": Floor("33 passes", _plain(lambda case: case.steps + 1, lambda case: 1)),
    "SmoothGrad": Floor("50 passes, 10 at once", _plain(lambda case: case.looks, lambda case: case.smoothgrad.batch)),
    "insertion and deletion": Floor("57 passes forward", _exchanges),
    "forward hook": _FORWARD,
    "surrogate": _FORWARD,
    "surrogate, fitting": Floor("10 passes for every picture", _fitting),
}


def curves(case: Case) -> Maps:
    """Insertion and deletion with the defaults of the paper: a blurred picture, and the mean colour."""
    inserted = sal.insertion(case.model, case.x, case.map, case.target, case.points)
    deleted = sal.deletion(case.model, case.x, case.map, case.target, case.points)
    return {"insertion": inserted.scores, "deletion": deleted.scores}


def hooked(case: Case, form: str = "forward") -> Tensor:
    """Logits under the forward hook."""
    with torch.no_grad(), sal.smoothed(case.model, form):
        return case.model(case.x)


def through_surrogate(case: Case) -> Tensor:
    """Logits of the network with its surrogate."""
    with torch.no_grad(), sal.smoothed(case.model, case.surrogate):
        return case.model(case.x)


def fitted(case: Case) -> Surrogate:
    """A surrogate by least squares and 8 epochs, as :func:`smoothsal_lib.fit_surrogate` does it unasked."""
    return sal.fit_surrogate(case.model, case.pictures, layers=case.fitted, progress=False)


def _nine_taps(case: Case) -> Tensor:
    """The centred forward hook by its definition: the mean, weighted 1 2 1 both ways, of nine convolutions."""

    def hook(module: nn.Conv2d, args: tuple[Tensor], output: Tensor) -> Tensor:
        height, width = args[0].shape[2:]
        padded = F.pad(args[0], (1, 1, 1, 1), mode="replicate")
        total = torch.zeros_like(output)
        for i, rows in enumerate((1, 2, 1)):
            for j, columns in enumerate((1, 2, 1)):
                shifted = padded[:, :, i : i + height, j : j + width]
                total += rows * columns / 16 * module._conv_forward(shifted, module.weight, module.bias)
        return total

    strided = list(sal.strided_layers(case.model).values())[1:]
    handles = [module.register_forward_hook(hook) for module in strided]
    try:
        return answers(case.model, case.x)
    finally:
        for handle in handles:
            handle.remove()


def _gradient_and_activation(case: Case) -> dict[str, tuple[Tensor, Tensor]]:
    found = {name: paper.activation_and_gradient(case.model, case.x, case.target, name) for name in case.layers}
    return {name: (gradient, activation) for name, (activation, gradient) in found.items()}


def _normgrad_error(case: Case) -> float:
    """Against the outer product of gradient and activation at every position, made in full."""
    expected = {
        name: torch.einsum("nchw,ndhw->nhwcd", g.double(), x.double()).flatten(3).norm(dim=3)[:, None]
        for name, (g, x) in _gradient_and_activation(case).items()
    }
    return off(explain(case, "normgrad"), expected)


def _grad_cam_error(case: Case) -> float:
    expected = {
        name: (g.mean((2, 3), keepdim=True) * x).sum(1, keepdim=True).relu()
        for name, (g, x) in _gradient_and_activation(case).items()
    }
    return off(explain(case, "grad_cam"), expected)


def _smoothgrad_error(case: Case) -> float:
    """Against a pass for each of the noisy pictures and each layer; three looks will do."""
    few = replace(case, looks=3)
    looks = [paper.gradients(replace(case, x=picture)) for _, picture in few.smoothgrad.images(case.x)]
    expected = {name: torch.stack([look[name] for look in looks]).mean(0) for name in case.layers}
    return off(explain(few, "gradient", sampling=few.smoothgrad), expected)


def conductance(case: Case, steps: int, left: bool = False) -> Maps:
    """Integrated gradients at hidden layers by their definition, from passes of each layer's own.

    Args:
        case: the network and so on.
        steps: pieces of the path.
        left: take each piece's gradient at its beginning, as captum does, rather than the mean of both ends.
    """
    points = [_gradient_and_activation(replace(case, x=case.x * (step / steps))) for step in range(steps + 1)]
    found = {name: torch.zeros_like(gradient) for name, (gradient, _) in points[0].items()}
    for before, after in zip(points, points[1:], strict=False):
        for name in case.layers:
            gradient = before[name][0] if left else (before[name][0] + after[name][0]) / 2
            found[name] += gradient * (after[name][1] - before[name][1])
    return found


def _everywhere_error(case: Case) -> float:
    found = sal.explain(case.model, case.x, case.target, "all", "gradient", fix=None)
    return off({name: found[name] for name in case.layers}, paper.gradients(case))


def _stepped(order: int) -> Contender:
    """NormGrad after an inner step. Its time does not depend on the rate, and after a tiny step it is what it was."""

    def call(case: Case, rate: float = 1e-3) -> Maps:
        return explain(case, "normgrad", meta=sal.MetaStep(rate, order))

    return Contender(
        f"NormGrad after a step, order {order}",
        WHO,
        call,
        lambda case: off(call(case, 1e-6), explain(case, "normgrad")),
        "without a step, at rate 1e-6",
        1e-3,
    )


def _fit_error(case: Case) -> float:
    """The worst stage's distance from its convolution, on pictures kept out; a constant has 1."""
    return max(error["l2"] for error in fitted(case).errors.values())


def contenders() -> list[Contender]:
    """The library's part in the runs."""
    by_layer = "autograd, a pass for each layer"
    return [
        Contender(
            "gradient",
            WHO,
            lambda case: explain(case, "gradient"),
            lambda case: off(explain(case, "gradient"), paper.gradients(case)),
            by_layer,
            1e-4,
            target=1.15,
        ),
        Contender(
            "gradient, layers='all'",
            WHO,
            lambda case: sal.explain(case.model, case.x, case.target, "all", "gradient", fix=None),
            _everywhere_error,
            by_layer,
            1e-4,
            target=1.15,
        ),
        Contender(
            "DeepLift",
            WHO,
            lambda case: explain(case, "deeplift"),
            lambda case: incomplete(explain(case, "deeplift"), case),
            "the change of the score",
            1e-3,
            target=1.3,
        ),
        Contender(
            "integrated gradients",
            WHO,
            lambda case: explain(case, "integrated_gradients", steps=case.steps),
            # A few steps will do; what they leave out, both leave out.
            lambda case: off(explain(case, "integrated_gradients", steps=4), conductance(case, 4)),
            by_layer,
            1e-3,
        ),
        Contender(
            "SmoothGrad",
            WHO,
            lambda case: explain(case, "gradient", sampling=case.smoothgrad),
            _smoothgrad_error,
            by_layer,
            1e-3,
            target=1.1,
        ),
        Contender(
            "NormGrad", WHO, lambda case: explain(case, "normgrad"), _normgrad_error, "outer products in full", 1e-3
        ),
        _stepped(1),
        _stepped(2),
        Contender(
            "Grad-CAM", WHO, lambda case: explain(case, "grad_cam"), _grad_cam_error, "its formula, by layer", 1e-3
        ),
        Contender(
            "insertion and deletion",
            WHO,
            curves,
            lambda case: off(curves(case), paper.curves(case)),
            "one picture after the other",
            1e-4,
            target=1.1,
        ),
        Contender(
            "forward hook",
            WHO,
            hooked,
            lambda case: off(hooked(case), _nine_taps(case)),
            "nine shifted convolutions",
            1e-4,
            target=1.1,
        ),
        Contender(
            "forward hook",
            "ours, published form",
            lambda case: hooked(case, "forward:paper"),
            lambda case: off(hooked(case, "forward:paper"), paper.hooked(case)),
            paper.WHO,
            1e-4,
            note="four convolutions",
        ),
        Contender(
            "surrogate",
            WHO,
            through_surrogate,
            lambda case: off(through_surrogate(case), paper.through_surrogate(case)),
            paper.WHO,
            1e-4,
        ),
        Contender(
            "surrogate, fitting", WHO, fitted, _fit_error, "its convolutions", 1.0, note="least squares, 8 epochs"
        ),
    ]
