"""Checks for the exercises of chapter 2."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from smoothsal_lib.datasets.photos import load_photo
from smoothsal_lib.exercises.marking import as_numbers, hint, untouched, verdict
from smoothsal_lib.explain import explain
from smoothsal_lib.models import load_model


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
    if not callable(answer):
        return hint("hand over the function itself, without calling it")
    z = torch.tensor([2.0, 1.0, -1.0, -3.0, 0.5, -1.5])
    z_ref = torch.tensor([1.0, -1.0, 3.0, -1.0, 0.5, -1.5])
    same = z == z_ref
    tangents = {torch.relu: (z > 0).float(), torch.tanh: 1 - z.tanh() ** 2}
    for function, tangent in tangents.items():
        name, found = function.__name__, torch.as_tensor(answer(function, z.clone(), z_ref.clone())).detach()
        wanted = torch.where(same, tangent, (function(z) - function(z_ref)) / (z - z_ref))
        if found.shape != z.shape:
            return hint(f"give one multiplier for each element, {len(z)} here and not {tuple(found.shape)}")
        if not torch.allclose(found[~same], wanted[~same], atol=1e-4):
            return hint(f"for {name}: divide the change of the output by the change of the input")
        if not torch.allclose(found[same], wanted[same], atol=1e-4):
            return hint(f"where the two ends meet you divide nought by nought; the limit is the derivative of {name}")
    verdict(True, "a secant where the ends differ, and its limit, the tangent, where they meet", "")


def check_2_3(answer: object) -> None:
    """Chapter 2: the methods for which the map of a difference is the difference of the maps."""
    if untouched(answer):
        return None
    names = answer.replace(",", " ").split() if isinstance(answer, str) else answer
    right = {"gradient", "gradient_x_activation", "deeplift", "integrated_gradients"}
    seven = [*sorted(right), "grad_cam", "guided_backprop", "deconvnet"]
    if not isinstance(names, Iterable) or not set(names := list(names)) <= set(seven):
        return hint(f"give a set of names out of {', '.join(seven)}")
    if missing := right - set(names):
        return hint(f"there are more, {len(missing)} of them: where does the score enter by its derivative alone?")
    verdict(
        set(names) == right,
        "derivatives and multipliers of a difference subtract; the other three cut off what is negative, and then it "
        "matters whether you subtract before or after",
        "not all of these: some methods apply a ReLU to what comes back",
    )
