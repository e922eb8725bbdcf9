"""The backward hook: smooth the gradient where it leaves a strided convolution."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from smoothsal_lib.fixes.base import Fix
from smoothsal_lib.fixes.blur import centred_blur, check_form, cyclic_mean
from smoothsal_lib.layers import require_strided


class GradientBlur(Fix):
    """Whatever replaces the gradient that leaves each strided convolution towards its input, and nothing else."""

    @abc.abstractmethod
    def blur(self, gradient: Tensor, strides: Sequence[int]) -> Tensor:
        """What becomes of a gradient (N, C, *spatial), one stride for each spatial axis; the same shape."""

    @contextmanager
    def repair(self, model: nn.Module) -> Iterator[None]:
        """Within the context, every strided convolution of ``model`` hands down a blurred gradient."""
        with ExitStack() as hooks:
            for module in require_strided(model).values():

                def blur_gradient(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                    return (_BlurredGradient.apply(args[0], module.stride, self.blur), *args[1:])

                hooks.callback(module.register_forward_pre_hook(blur_gradient).remove)
            yield


class BackwardHook(GradientBlur):
    """Replace the gradient that leaves each strided convolution towards its input by a blurred one.

    The forward pass is untouched, so predictions are identical, and nothing is trained.

    Args:
        form: ``"paper"`` is the published hook: the mean of the gradient's four cyclic shifts by 0 or 1 pixel (Smooth
            Deep Saliency, arXiv 2404.02282), which removes the checkerboard, moves the map by half a pixel a layer and
            wraps values around the border. ``"centred"`` blurs with a symmetric kernel that has the same zero, at the
            layer's own stride, and does neither (see :func:`smoothsal_lib.fixes.blur.centred_blur`).

    Raises:
        ValueError: for another form; and, on entering, for a network without strided convolutions.
    """

    def __init__(self, form: str = "centred") -> None:
        self.form = check_form(form)

    def blur(self, gradient: Tensor, strides: Sequence[int]) -> Tensor:
        """The gradient blurred as ``form`` says."""
        return centred_blur(gradient, strides) if self.form == "centred" else cyclic_mean(gradient, strides)

    def __repr__(self) -> str:
        return f"BackwardHook(form={self.form!r})"


class _BlurredGradient(torch.autograd.Function):
    """The identity, with a blur for a derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strides: tuple[int, ...], blur: Any) -> Tensor:
        ctx.strides, ctx.blur = strides, blur
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.blur(gradient, ctx.strides), None, None
