"""Checks for the exercises of chapter 2."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from smoothsal_lib.datasets.photos import load_photo
from smoothsal_lib.exercises.marking import as_numbers, as_tensor, attempt, hint, picture_for, untouched, verdict
from smoothsal_lib.explain import explain
from smoothsal_lib.models import load_model
from smoothsal_lib.state import preserved


def check_2_1(answer: object) -> None:
    """Chapter 2: the gradient at the last block, where only a mean and a linear layer follow."""
    if untouched(answer):
        return None
    given = as_numbers(answer)
    model = load_model()
    x, _ = load_photo("chelsea")
    wanted = explain(model, x, layers="layer4.1", method="gradient", fix=None)["layer4.1"][0, :, 0, 0]
    if given is None or len(given) != len(wanted):
        return hint(f"give {len(wanted)} numbers, one for each channel of layer4.1")
    off = wanted / torch.tensor(given)
    if not torch.allclose(off, torch.ones_like(off), rtol=1e-3) and float(off.std()) < 1e-3 * abs(float(off.mean())):
        return hint(
            f"all of them are off by the same factor, {float(off.mean()):.4g}: how many positions share the mean?"
        )
    verdict(
        torch.allclose(off, torch.ones_like(off), rtol=1e-3),
        "the mean hands every position an equal share of the weight",
        "which row of fc.weight belongs to the class, and what does the mean over positions do to it?",
    )


def check_2_2(answer: object) -> None:
    """Chapter 2: a function that gives the rescale rule's multipliers for any function of single elements."""
    if untouched(answer):
        return None
    z = torch.tensor([2.0, 1.0, -1.0, -3.0, 0.5, -1.5])
    z_ref = torch.tensor([1.0, -1.0, 3.0, -1.0, 0.5, -1.5])
    same = z == z_ref
    tangents = {torch.relu: (z > 0).float(), torch.tanh: 1 - z.tanh() ** 2}
    for function, tangent in tangents.items():
        name, returned = function.__name__, attempt(answer, function, z.clone(), z_ref.clone())
        if returned is None:
            return None
        found = as_tensor(returned)
        wanted = torch.where(same, tangent, (function(z) - function(z_ref)) / (z - z_ref)).double()
        if found is None or found.shape != z.shape:
            return hint(f"give one multiplier for each element, {len(z)} here")
        if not torch.allclose(found[~same], wanted[~same], atol=1e-4):
            return hint(f"for {name}: divide the change of the output by the change of the input")
        if not torch.allclose(found[same], wanted[same], atol=1e-4):
            return hint(f"where the two ends meet you divide nought by nought; the limit is the derivative of {name}")
    verdict(True, "a secant where the ends differ, and its limit, the tangent, where they meet", "")


def check_2_3(answer: object) -> None:
    """Chapter 2: the methods for which the map of a difference is the difference of the maps."""
    if untouched(answer):
        return None
    given = answer.replace(",", " ").split() if isinstance(answer, str) else answer
    right = {"gradient", "gradient_x_activation", "deeplift", "integrated_gradients"}
    seven = [*sorted(right), "grad_cam", "guided_backprop", "deconvnet"]
    names = [str(name) for name in given] if isinstance(given, Iterable) and not isinstance(given, Tensor) else []
    if not names or not set(names) <= set(seven):
        return hint(f"give a set of names out of {', '.join(seven)}")
    if missing := right - set(names):
        return hint(f"there are more, {len(missing)} of them: where does the score enter by its derivative alone?")
    verdict(
        set(names) == right,
        "derivatives and multipliers of a difference subtract; the other three cut off what is negative, and then it "
        "matters whether you subtract before or after",
        "not all of these: some methods apply a ReLU to what comes back",
    )


def check_2_4(answer: object) -> None:
    """Chapter 2: a function that computes integrated gradients at the input, for any function and any baseline."""
    if untouched(answer):
        return None
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 6, 5)
    x, baseline, weight = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(3))

    def f(pictures: Tensor) -> Tensor:
        return (weight[:1].to(pictures) * (pictures**3 - pictures)).sum((1, 2, 3))

    def slope(pictures: Tensor) -> Tensor:
        return weight[:1] * (3 * pictures**2 - 1)

    steps = 200
    progress = x - baseline
    wanted = weight[:1] * ((x**3 - x) - (baseline**3 - baseline))
    returned = attempt(answer, f, x.clone(), baseline.clone(), steps)
    if returned is None:
        return None
    found = as_tensor(returned)
    if found is None or found.shape != shape:
        return hint(f"return an attribution of the shape of x, {shape} here")
    if not bool(found.isfinite().all()):
        return hint("the attribution holds values that are not finite")

    def near(value: Tensor) -> bool:
        return float((found - value).abs().max()) <= 0.03 * float(wanted.abs().max())

    if near(slope(x) * progress):
        return hint("that is the gradient at the picture alone, times the progress: take it all along the way")
    if near(wanted / progress):
        return hint("that is the mean gradient along the way: multiply it with the progress, x - baseline")
    if near(wanted / progress * x):
        return hint("the progress is x - baseline, and not x: the way does not begin at zero")
    if near(wanted * steps):
        return hint("each of the steps makes one part in `steps` of the progress: divide")
    off = (found - wanted).sum((1, 2, 3)).abs().max() / wanted.sum((1, 2, 3)).abs().max()
    verdict(
        near(wanted),
        "the attributions add up to the difference of the scores, up to the error of the sum",
        f"the sum of the attributions misses the difference of the scores by {float(off):.0%}, or its parts do",
    )


def check_2_5(answer: object) -> None:
    """Chapter 2: the reader's own network, a layer that everything passes through, and one that something bypasses."""
    if untouched(answer):
        return None
    roles = ("everything", "bypassed")
    if not isinstance(answer, dict) or set(answer) != {"network", *roles}:
        return hint("give a dictionary with the keys 'network', 'everything' and 'bypassed'")
    network = answer["network"]
    x = picture_for(network)
    if x is None:
        return None
    modules = dict(network.named_modules())
    for name in (answer[role] for role in roles):
        if not isinstance(name, str) or not name or name not in modules:
            return hint(f"the network has no layer {name!r}; network.named_modules() knows the names")
    with preserved(network), torch.no_grad():
        own, negative = network(x), network(-x)
        gap = (own - negative).abs().max()
        if not gap > 1e-5 * own.abs().max():
            return hint("this network gives a photograph and its negative the same scores: take another")
        left = {}
        for role in roles:
            outputs, swapped = _swapped(network, modules[answer[role]], x, -x)
            if not outputs or not all(isinstance(output, Tensor) for output in outputs):
                return hint(f"{answer[role]} puts out no tensor for a picture, so that nothing can be swapped")
            if role == "everything" and (outputs[0].ndim != 4 or outputs[0].shape[2:].numel() == 1):
                return hint(f"{answer[role]} puts out no map: take a layer with more than one position")
            left[role] = float((swapped - negative).abs().max() / gap)  # 0 if nothing else has reached the score
    if left["everything"] > 1e-3:
        return hint(
            f"with the activation of another picture at {answer['everything']} the scores are not that picture's: "
            "something runs around this layer"
        )
    verdict(
        left["bypassed"] > 1e-3,
        f"{answer['everything']} decides all, and around {answer['bypassed']} something of the picture gets through",
        f"with the activation of another picture at {answer['bypassed']} the scores are that picture's: nothing runs "
        "around it; look inside a residual block, or take a network that has some",
    )


def _swapped(network: nn.Module, layer: nn.Module, x: Tensor, other: Tensor) -> tuple[list[Tensor], Tensor]:
    """What a layer puts out for the other picture, and the scores of ``x`` with that in its place."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        # A copy, since what follows may work in place.
        outputs.append(output.clone() if isinstance(output, Tensor) else output)

    with layer.register_forward_hook(keep):
        network(other)
    calls = iter(outputs)
    with layer.register_forward_hook(lambda module, inputs, output: next(calls)):
        return outputs, network(x)
