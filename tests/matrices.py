"""Strided convolutions and blurs as explicit matrices, float64."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from smoothsal_lib.fixes.blur import centred_kernel

FORMS = ["centred", "paper"]
CONVOLUTIONS = {
    "3x3 stride 2": lambda: nn.Conv2d(2, 3, 3, 2, 1),
    "1x1 stride 2": lambda: nn.Conv2d(2, 3, 1, 2, bias=False),
    "7x7 stride 2": lambda: nn.Conv2d(2, 2, 7, 2, 3),
    "grouped": lambda: nn.Conv2d(2, 4, 3, 2, 1, groups=2),
    "depthwise": lambda: nn.Conv2d(2, 2, 3, 2, 1, groups=2),
    "dilated": lambda: nn.Conv2d(2, 2, 3, 2, 2, dilation=2),
    "circular padding": lambda: nn.Conv2d(2, 2, 3, 2, 1, padding_mode="circular"),
    "asymmetric": lambda: nn.Conv2d(2, 2, (1, 3), (1, 2), (0, 1)),
    "rows by 2, columns by 3": lambda: nn.Conv2d(2, 2, 3, (2, 3), 1),
    "stride 3": lambda: nn.Conv2d(2, 2, 3, 3),
    "patchify": lambda: nn.Conv2d(2, 3, 4, 4),
}
SIZE = (2, 8, 9)  # channels, rows, columns: odd and even


def convolution(kind: str) -> nn.Conv2d:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CONVOLUTIONS[kind]().double()


def matrix_of(conv: nn.Module, size: tuple[int, int, int] = SIZE) -> Tensor:
    """A, (output units, input units), by unit vectors; the bias left out."""
    with torch.no_grad():
        units = torch.eye(size[0] * size[1] * size[2], dtype=torch.float64).view(-1, *size)
        return (conv(units) - conv(torch.zeros_like(units))).flatten(1).T


def blur_matrix(form: str, strides: tuple[int, int], size: tuple[int, int, int] = SIZE) -> Tensor:
    """B, (input units, input units): the same blur in every channel."""
    if form == "paper":
        rows, columns = cyclic_matrix(size[1]), cyclic_matrix(size[2])
    else:
        rows, columns = centred_matrix(size[1], strides[0]), centred_matrix(size[2], strides[1])
    return torch.kron(torch.eye(size[0], dtype=torch.float64), torch.kron(rows, columns))


def gradient(model: nn.Module, x: Tensor, upstream: Tensor, fix: AbstractContextManager[object]) -> Tensor:
    image = x.clone().requires_grad_()
    with fix:
        return torch.autograd.grad(model(image), image, upstream)[0]


def centred_matrix(length: int, stride: int) -> Tensor:
    """The blur of one axis by its definition: tap t of output i falls on i + t, reflected at -1/2 and length - 1/2."""
    kernel = centred_kernel(stride)
    reach = len(kernel) // 2
    matrix = torch.zeros(length, length, dtype=torch.float64)
    for i in range(length):
        for t in range(-reach, reach + 1):
            j = (i + t) % (2 * length)  # mirrored borders make the axis periodic with twice its length
            matrix[i, j if j < length else 2 * length - 1 - j] += kernel[t + reach]
    return matrix


def cyclic_matrix(length: int) -> Tensor:
    """The mean of the identity and the cyclic shift by one: row i has 1/2 at i and at i - 1."""
    matrix = torch.eye(length, dtype=torch.float64) / 2
    for i in range(length):
        matrix[i, (i - 1) % length] += 0.5
    return matrix
