"""The forward hook: let every strided convolution see every input position with every weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from smoothsal_lib.fixes.base import Fix
from smoothsal_lib.fixes.blur import centred_blur, check_form, cyclic_shifts
from smoothsal_lib.layers import require_strided


class ForwardHook(Fix):
    """Average a strided convolution over shifts of its input. All strided convolutions but the first are changed.

    A convolution is linear, so the mean of its outputs over shifted inputs is its output for the mean of the shifted
    inputs: one convolution of a blurred input. That is anti-aliasing (Zhang 2019, arXiv 1904.11486) without retraining.
    Predictions change.

    Args:
        form: ``"paper"`` runs the published hook as it stands: the mean of four outputs, for the cyclic shifts of the
            input by 0 or 1 pixel (Smooth Deep Saliency, arXiv 2404.02282). ``"centred"`` blurs the input once with the
            symmetric kernel of :func:`smoothsal_lib.fixes.blur.centred_blur` and convolves once, a quarter of that
            cost; its gradient is blurred just as by ``BackwardHook("centred")``, the blur being its own adjoint.

    Raises:
        ValueError: for another form; and, on entering, for a network without strided convolutions.
    """

    def __init__(self, form: str = "centred") -> None:
        self.form = check_form(form)

    @contextmanager
    def repair(self, model: nn.Module) -> Iterator[None]:
        """Within the context, the strided convolutions of ``model`` but the first average over shifts."""
        with ExitStack() as hooks:
            for module in require_strided(model, skip_first=True).values():
                if self.form == "centred":
                    hooks.callback(module.register_forward_pre_hook(_blur_input).remove)
                else:
                    hooks.callback(module.register_forward_hook(_mean_over_shifts).remove)
            yield

    def __repr__(self) -> str:
        return f"ForwardHook(form={self.form!r})"


def _blur_input(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (centred_blur(args[0], module.stride), *args[1:])


def _mean_over_shifts(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    x = args[0]
    axes = tuple(range(2, x.ndim))
    shifts = cyclic_shifts(module.stride)
    for shift in shifts[1:]:  # the first shift is by nothing: `output` itself
        output = output + module.forward(torch.roll(x, shift, axes))  # not module(...), which would run hooks again
    return output / len(shifts)
