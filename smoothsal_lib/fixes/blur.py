"""The two blurs behind the backward and the forward hook."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FORMS = ("centred", "paper")


def check_form(form: str) -> str:
    """Return ``form``; raise a one-line ``ValueError`` when there is no such form."""
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}: choose 'centred' (no shift, no wrapping) or 'paper' (cyclic shifts)")
    return form


def centred_kernel(stride: int) -> list[float]:
    """The shortest symmetric kernel of odd length whose spectrum is zero at every multiple of 1/stride.

    A box of ``stride`` taps has those zeros. For an odd stride it is centred already; for an even one it sits half a
    pixel off, and a box of two taps brings it back: [1 2 1]/4 for stride 2, [1 1 1]/3 for 3, [1 2 2 2 1]/8 for 4.
    """
    box = [1 / stride] * stride
    return box if stride % 2 else [(a + b) / 2 for a, b in zip([0.0, *box], [*box, 0.0], strict=True)]


def centred_blur(x: Tensor, strides: Sequence[int]) -> Tensor:
    """Blur each spatial axis with :func:`centred_kernel` of that axis's stride; a stride of 1 leaves it alone.

    The border is mirrored, edge pixel included, which for strides 2 and 3 means that it is replicated. With a symmetric
    kernel this makes the blur a symmetric matrix whose rows and columns sum to one: it is its own adjoint, keeps
    constants, and keeps the sum.

    Args:
        x: ``(N, C, *spatial)``.
        strides: one stride for each spatial axis.

    Returns:
        The same shape.
    """
    for axis, stride in enumerate(strides, start=2):
        if stride > 1:
            kernel = centred_kernel(stride)
            length = x.shape[axis]
            padded = _mirror(x, axis, len(kernel) // 2)
            x = kernel[0] * padded.narrow(axis, 0, length)
            for i, weight in enumerate(kernel[1:], start=1):
                x = x.add_(padded.narrow(axis, i, length), alpha=weight)  # in place, on what was made a line above
    return x


def _mirror(x: Tensor, axis: int, width: int) -> Tensor:
    """Pad one axis on both sides by reflection about the border of the outermost pixel."""
    while width > 0:  # more than once only where the map is narrower than the kernel's arm
        step = min(width, x.shape[axis])
        head = x.narrow(axis, 0, step).flip(axis)
        tail = x.narrow(axis, x.shape[axis] - step, step).flip(axis)
        x, width = torch.cat([head, x, tail], axis), width - step
    return x


def cyclic_shifts(strides: Sequence[int]) -> list[tuple[int, ...]]:
    """The shifts of the published hooks: 0 or 1 pixel along every axis of ``strides``, four in two dimensions."""
    shifts: list[tuple[int, ...]] = [()]
    for _ in strides:
        shifts = [(*shift, d) for shift in shifts for d in (0, 1)]
    return shifts


def cyclic_mean(x: Tensor, strides: Sequence[int]) -> Tensor:
    """The mean of the cyclic shifts T_d x of x by :func:`cyclic_shifts` (Smooth Deep Saliency, backward hook).

    Args:
        x: ``(N, C, *spatial)``.
        strides: one stride for each spatial axis.
    """
    axes = tuple(range(2, 2 + len(strides)))
    return torch.stack([torch.roll(x, shift, axes) for shift in cyclic_shifts(strides)]).mean(0)
