"""The published procedure of Smooth Deep Saliency (arXiv 2404.02282), stated again: layer by layer, one by one.

For every layer the class is predicted, and the network runs anew, with one hook on that layer; layers share nothing.
Insertion and deletion (RISE, arXiv 1806.07421) ask the network about one picture at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

import smoothsal_lib as sal
from benchmarks.case import Case, Contender, Maps, incomplete, off
from smoothsal_lib.fixes.surrogate import Surrogate, fit_surrogate

WHO = "the paper"


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    """The class of every picture."""
    with torch.no_grad():
        return model(x).argmax(1)


def activation_and_gradient(model: nn.Module, x: Tensor, target: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """What one layer returns, and the gradient of the score there, from a pass of its own."""
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output))
    try:
        score = model(x).gather(1, target[:, None]).sum()
    finally:
        handle.remove()
    return kept[0].detach(), torch.autograd.grad(score, kept[0])[0]


def gradients(case: Case) -> Maps:
    """The gradient at every layer."""
    found = {}
    for layer in case.layers:
        target = predicted(case.model, case.x)
        found[layer] = activation_and_gradient(case.model, case.x, target, layer)[1]
    return found


def layer_integrated_gradients(case: Case, steps: int | None = None) -> Maps:
    """Integrated gradients along the straight line between a layer's activations for baseline and picture.

    The rest of the network sees all points of the line (Gauss-Legendre) in one batch.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps or case.steps)
    found = {}
    for layer in case.layers:
        target = predicted(case.model, case.x)
        module = case.model.get_submodule(layer)
        ends: list[Tensor] = []
        handle = module.register_forward_hook(lambda module, args, output, ends=ends: ends.append(output.detach()))
        with torch.no_grad():
            case.model(torch.zeros_like(case.x))
            case.model(case.x)
        handle.remove()
        change = ends[1] - ends[0]
        line = torch.cat([ends[0] + (node + 1) / 2 * change for node in nodes]).requires_grad_()
        handle = module.register_forward_hook(lambda module, args, output, line=line: line.clone())
        logits = case.model(case.x.repeat(len(nodes), 1, 1, 1))
        handle.remove()
        gradient = torch.autograd.grad(logits.gather(1, target.repeat(len(nodes))[:, None]).sum(), line)[0]
        shares = torch.as_tensor(weights / 2).to(change)
        found[layer] = change * torch.tensordot(shares, gradient.unflatten(0, (len(nodes), -1)), 1)
    return found


def curves(case: Case) -> Maps:
    """Scores (N, points + 1) of insertion into a blurred picture and of deletion to the mean colour, one by one."""
    blurred = gaussian_blur(case.x, [11, 11], [5.0, 5.0])
    found = {}
    for name, before, after in (
        ("insertion", blurred, case.x),
        ("deletion", case.x, torch.zeros_like(case.x)),
    ):
        rows = []
        for i in range(len(case.x)):
            target = predicted(case.model, case.x[i : i + 1])
            order = case.map[i].flatten().argsort(descending=True)
            picture = before[i].clone()
            scores = []
            for some in (order[:0], *order.chunk(case.points)):
                picture.flatten(1)[:, some] = after[i].flatten(1)[:, some]
                with torch.no_grad():
                    scores.append(case.model(picture[None].clone()).softmax(1)[0, target[0]])
            rows.append(torch.stack(scores))
        found[name] = torch.stack(rows)
    return found


@contextmanager
def four_shifts(model: nn.Module) -> Iterator[None]:
    """The published forward hook: four more convolutions, of cyclic shifts, at all strided convolutions but the first.

    What the convolution itself has computed by then is thrown away. (The published code leaves ``groups`` out, which
    changes nothing for a ResNet.)
    """

    def hook(module: nn.Conv2d, args: tuple[Tensor], output: Tensor) -> Tensor:
        total: Any = 0
        for rows in (0, 1):
            for columns in (0, 1):
                rolled = torch.roll(args[0], (rows, columns), (2, 3))
                total = total + F.conv2d(rolled, module.weight, module.bias, module.stride, module.padding)
        return total / 4

    strided = [module for module in model.modules() if isinstance(module, nn.Conv2d) and max(module.stride) > 1]
    with ExitStack() as hooks:
        for module in strided[1:]:
            hooks.callback(module.register_forward_hook(hook).remove)
        yield


def hooked(case: Case) -> Tensor:
    """Logits under the published forward hook."""
    with torch.no_grad(), four_shifts(case.model):
        return case.model(case.x)


@contextmanager
def replaced(model: nn.Module, surrogate: Surrogate) -> Iterator[None]:
    """Strided convolutions replaced by convolution, bilinear downsampling, convolution, by a hook on each."""

    def replace(stage: Any) -> Any:
        def hook(module: nn.Conv2d, args: tuple[Tensor], output: Tensor) -> Tensor:
            before = F.conv2d(args[0], stage.before.weight, stage.before.bias, padding=1)
            smaller = F.interpolate(before, output.shape[2:], mode="bilinear")
            return F.conv2d(smaller, stage.after.weight, stage.after.bias, padding=1)

        return hook

    with ExitStack() as hooks:
        for name, stage in surrogate.items():
            hooks.callback(model.get_submodule(name).register_forward_hook(replace(stage)).remove)
        yield


def through_surrogate(case: Case) -> Tensor:
    """Logits of the network with its surrogate."""
    with torch.no_grad(), replaced(case.model, case.surrogate):
        return case.model(case.x)


def fitted(case: Case, pictures: Tensor | None = None, epochs: int = 10) -> Maps:
    """The weights of a surrogate after Adam at its default rate, batches of 64, on the sum of L1 distances."""
    pictures = case.pictures if pictures is None else pictures
    torch.manual_seed(0)
    surrogate = Surrogate.of(case.model, case.fitted)
    optimiser = torch.optim.Adam(surrogate.parameters())
    for _ in range(epochs):
        for batch in pictures.split(64):
            losses: list[Tensor] = []

            def compare(stage: nn.Module, x: Tensor, output: Tensor, losses: list[Tensor] = losses) -> None:
                with torch.enable_grad():
                    losses.append(F.l1_loss(stage(x), output))

            with torch.no_grad(), ExitStack() as hooks:
                for name, stage in surrogate.items():
                    hooks.callback(
                        case.model.get_submodule(name)
                        .register_forward_hook(
                            lambda module, args, output, stage=stage, compare=compare: compare(stage, args[0], output)
                        )
                        .remove
                    )
                case.model(batch)
            optimiser.zero_grad()
            torch.stack(losses).sum().backward()
            optimiser.step()
    return {name: value.detach() for name, value in surrogate.named_parameters()}


def _fitting_error(case: Case) -> float:
    """How far one step is from that of the library's ``recipe="paper"``, on pictures that are their own mirror images.

    The library keeps every 8th picture out of the fit, and shuffles and mirrors the others.
    """
    pictures = case.pictures[:8] + case.pictures[:8].flip(-1)
    library = fit_surrogate(case.model, pictures, layers=case.fitted, recipe="paper", epochs=1, progress=False)
    torch.manual_seed(0)
    start = dict(Surrogate.of(case.model, case.fitted).named_parameters())
    published = fitted(case, pictures[:7], epochs=1)
    steps = [
        torch.cat([(value - start[name]).detach().flatten() for name, value in weights.items()])
        for weights in (published, dict(library.named_parameters()))
    ]
    return off(*steps)


def _curves_error(case: Case) -> float:
    library = {
        "insertion": sal.insertion(case.model, case.x, case.map, case.target, case.points),
        "deletion": sal.deletion(case.model, case.x, case.map, case.target, case.points),
    }
    return off(curves(case), {name: each.scores for name, each in library.items()})


def _hook_error(case: Case) -> float:
    with torch.no_grad(), sal.smoothed(case.model, "forward:paper"):
        return off(hooked(case), case.model(case.x))


def _surrogate_error(case: Case) -> float:
    with torch.no_grad(), sal.smoothed(case.model, case.surrogate):
        return off(through_surrogate(case), case.model(case.x))


def _gradient_error(case: Case) -> float:
    library = sal.explain(case.model, case.x, case.target, case.layers, "gradient", fix=None)
    return off(gradients(case), library)


def contenders() -> list[Contender]:
    """The published procedure's part in the runs."""
    return [
        Contender("gradient", WHO, gradients, _gradient_error, "ours", 1e-4, note="layer by layer"),
        Contender(
            "integrated gradients",
            WHO,
            lambda case: layer_integrated_gradients(case, case.steps // 4),
            lambda case: incomplete(layer_integrated_gradients(case, case.steps // 4), case),
            "the change of the score",
            0.05,
            note="another path, the layer's own; a quarter of the steps, times 4",
            share=0.25,
        ),
        Contender("insertion and deletion", WHO, curves, _curves_error, "ours", 1e-4, note="picture by picture"),
        Contender("forward hook", WHO, hooked, _hook_error, "ours, published form", 1e-4, note="five convolutions"),
        Contender("surrogate", WHO, through_surrogate, _surrogate_error, "ours", 1e-4),
        Contender(
            "surrogate, fitting",
            WHO,
            fitted,
            _fitting_error,
            "ours with recipe='paper', one step",
            0.05,
            note="another recipe, not as close: Adam, 10 epochs",
        ),
    ]
