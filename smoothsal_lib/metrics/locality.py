"""How far from its place in the picture a hidden unit looks, and how far one map lies from another."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from smoothsal_lib.layers import HiddenLayer, as_leaf, check_images
from smoothsal_lib.state import preserved

ZOOM = 8  # finer grid of each search for the peak
ROUNDS = 4  # of search: the last grid has a spacing of 8^-4 pixels


@dataclass(frozen=True)
class Field:
    """How strongly a unit depends on each place of the picture.

    Attributes:
        values: (N, P, Q), never negative, one field an image.
        rows: (P,), how many input pixels below the unit's centre each row of ``values`` lies.
        columns: (Q,), how many input pixels to the right of it.
    """

    values: Tensor
    rows: Tensor
    columns: Tensor

    def centroid(self) -> Tensor:
        """(N, 2) centre of mass in pixels (down, right) from the unit's centre; NaN where all values are 0."""
        rows = (self._share() * self.rows[:, None]).sum((1, 2))
        columns = (self._share() * self.columns).sum((1, 2))
        return torch.stack([rows, columns], 1)

    def spread(self) -> Tensor:
        """(N,) root of the mean squared distance from the unit's centre, in pixels; NaN where all values are 0."""
        squares = self.rows[:, None].square() + self.columns.square()
        return (self._share() * squares).sum((1, 2)).sqrt()

    def within(self, radius: float) -> Tensor:
        """(N,) share of the values at most ``radius`` pixels away along both axes; NaN where all values are 0."""
        inside = (self.rows.abs()[:, None] <= radius) & (self.columns.abs() <= radius)
        return (self._share() * inside).sum((1, 2))

    def _share(self) -> Tensor:
        return self.values / self.values.sum((1, 2), keepdim=True)


def effective_receptive_field(
    model: nn.Module,
    x: Tensor,
    layers: Mapping[str, HiddenLayer],
    at: tuple[float, float] | None = None,
    channels: int | None = None,
) -> dict[str, Field]:
    """What a hidden unit depends on by its gradient: the mean over channels of the magnitude of d x_u / d input.

    The receptive field says what a unit *could* see; of that, most units use a small part in the middle (Luo et al.
    2016, arXiv 1701.04128).

    Args:
        model: the network.
        x: images (N, C, H, W) as the model expects them.
        layers: which, as :func:`smoothsal_lib.hidden_layers` describes them for pictures of this size.
        at: the pixel (row, column) whose nearest unit u is looked at; ``None`` for the middle of the picture.
        channels: how many of the layer's channels to differentiate, evenly spread, each a backward pass; ``None`` for
            all.

    Returns:
        ``{layer: Field}``, each with values (N, H, W): one position a pixel, mean over the picture's channels.

    Raises:
        TypeError, ValueError: for a model or images that make no sense, no layers, a layer that the model does not
            have or run, a pixel outside the picture, or no channels.
    """
    if channels is not None and channels < 1:
        raise ValueError(f"expected at least one channel, got channels={channels}")
    units = _units_at(x, model, layers, at)
    found = {}
    with preserved(model), torch.inference_mode(False), torch.enable_grad():
        image = as_leaf(x)
        activations = _activations(model, image.clone(), units)  # a network may begin in place, which no leaf allows
        for name, activation in activations.items():
            count = activation.shape[1]
            chosen = [i * count // channels for i in range(channels)] if channels and channels < count else range(count)
            total = torch.zeros_like(x[:, 0])
            for channel in chosen:
                (gradient,) = torch.autograd.grad(activation[:, channel].sum(), image, retain_graph=True)
                total += gradient.abs().mean(1)
            rows, columns = (torch.arange(n, dtype=x.dtype, device=x.device) for n in x.shape[2:])
            centre = _centre(layers[name], units[name])
            found[name] = Field(total / len(chosen), rows - centre[0], columns - centre[1])
    return found


@torch.no_grad()
def occlusion_response(
    model: nn.Module,
    x: Tensor,
    layers: Mapping[str, HiddenLayer],
    patch: int = 8,
    stride: int = 4,
    at: tuple[float, float] | None = None,
    baseline: float = 0.0,
    batch: int = 256,
) -> dict[str, Field]:
    """What a hidden unit depends on by experiment: the mean ``|change of x_u|`` over channels when a patch is covered.

    Unlike a gradient, this is a change that can be seen, and it does not vanish where the unit saturates; but its
    sharpness is that of the patch (occlusion: Zeiler & Fergus 2014, arXiv 1311.2901).

    Args:
        model: the network.
        x: images (N, C, H, W) as the model expects them.
        layers: which, as :func:`smoothsal_lib.hidden_layers` describes them for pictures of this size.
        patch: side of the square patch in pixels.
        stride: pixels from one place of the patch to the next; all places lie wholly inside the picture.
        at: the pixel (row, column) whose nearest unit u is looked at; ``None`` for the middle of the picture.
        baseline: what covers the patch; 0 is the mean colour of a normalised picture.
        batch: how many covered pictures go through the network at once.

    Returns:
        ``{layer: Field}``, each with values (N, P, Q): one position a patch, at the centre of the patch.

    Raises:
        TypeError, ValueError: as :func:`effective_receptive_field`, for a patch that does not fit into the picture, or
            a stride or batch below 1.
    """
    units = _units_at(x, model, layers, at)
    if not 1 <= patch <= min(x.shape[2:]) or min(stride, batch) < 1:
        raise ValueError(
            f"expected a patch of 1 to {min(x.shape[2:])} pixels, stride and batch of at least 1, got patch={patch}, "
            f"stride={stride}, batch={batch}"
        )
    tops, lefts = (range(0, n - patch + 1, stride) for n in x.shape[2:])
    places = [(top, left) for top in tops for left in lefts]
    changes: dict[str, list[Tensor]] = {name: [] for name in units}
    with preserved(model):
        original = _activations(model, x, units)
        at_once = max(1, batch // len(x))
        for start in range(0, len(places), at_once):
            some = places[start : start + at_once]
            covered = x.repeat(len(some), 1, 1, 1)
            for image, (top, left) in zip(covered.split(len(x)), some, strict=True):
                image[:, :, top : top + patch, left : left + patch] = baseline
            for name, activation in _activations(model, covered, units).items():
                change = activation.view(len(some), *original[name].shape) - original[name]
                changes[name].append(change.abs().mean(2))
    middle = (patch - 1) / 2
    rows, columns = (torch.tensor([start + middle for start in starts]).to(x) for starts in (tops, lefts))
    found = {}
    for name, parts in changes.items():
        centre = _centre(layers[name], units[name])
        values = torch.cat(parts).T.reshape(len(x), len(rows), len(columns))
        found[name] = Field(values, rows - centre[0], columns - centre[1])
    return found


def shift(a: Tensor, b: Tensor) -> Tensor:
    """How far the content of ``b`` lies from the same content in ``a``, to a fraction of a pixel.

    It is the displacement d at which b, moved back by d, agrees best with a: the maximum of their cyclic
    cross-correlation, mean removed, interpolated between whole pixels by its Fourier series (Guizar-Sicairos et al.
    2008, Optics Letters 33:156). Blurring b by a symmetric kernel does not move the maximum. The Nyquist frequency is
    left out: a checkerboard looks the same moved up as down.

    Args:
        a: (N, H, W) maps, or (N, C, H, W) attributions, whose channels all move together.
        b: the same shape.

    Returns:
        (N, 2): rows down, columns to the right; NaN where either is constant.

    Raises:
        ValueError: for shapes that differ or are others, or for NaN or infinite values.
    """
    if a.shape != b.shape or a.ndim not in (3, 4) or 0 in a.shape:
        raise ValueError(
            f"expected two of one shape (N, H, W) or (N, C, H, W), got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError("expected finite maps, got NaN or infinite values")
    height, width = a.shape[-2:]
    full = torch.promote_types(a.dtype, torch.float32)  # 16 bits have no Fourier transform on every device
    spectrum = torch.fft.fft2(b.to(full)) * torch.fft.fft2(a.to(full)).conj()
    spectrum = spectrum.reshape(len(a), -1, height, width).sum(1).to(torch.complex128)
    frequency = [torch.fft.fftfreq(n, dtype=torch.float64, device=a.device) for n in (height, width)]
    spectrum = spectrum * (frequency[0] != -0.5)[:, None] * (frequency[1] != -0.5)
    spectrum[:, 0, 0] = 0
    coarse = torch.fft.ifft2(spectrum).real.flatten(1)
    peak = coarse.argmax(1)
    found = torch.stack([peak // width, peak % width], 1).double()
    found -= (found > found.new_tensor([height // 2, width // 2])) * found.new_tensor([height, width])
    spacing = 1.0
    for _ in range(ROUNDS):
        fine = torch.arange(-ZOOM, ZOOM + 1, dtype=torch.float64, device=a.device) * spacing / ZOOM
        waves = [
            torch.exp(2j * torch.pi * (found[:, axis, None] + fine)[..., None] * frequency[axis]) for axis in (0, 1)
        ]
        correlation = (waves[0] @ spectrum @ waves[1].mT).real.flatten(1)
        peak = correlation.argmax(1)
        found = found + torch.stack([fine[peak // len(fine)], fine[peak % len(fine)]], 1)
        spacing /= ZOOM
    # What rounding leaves of a constant map is no content.
    energy = [m.double().flatten(1).norm(dim=1) for m in (a, b)]
    empty = spectrum.abs().amax((1, 2)) <= torch.finfo(full).eps * (energy[0] * energy[1]) * height * width
    found[empty] = torch.nan
    return found.to(a.dtype)


def _units_at(
    x: Tensor, model: nn.Module, layers: Mapping[str, HiddenLayer], at: tuple[float, float] | None
) -> dict[str, tuple[int, int]]:
    """The unit of every layer whose centre is nearest to a pixel."""
    check_images(x, model)
    if not layers:
        raise ValueError("no layers given: pass some of hidden_layers(model, x)")
    unknown = [name for name in layers if name not in dict(model.named_modules())]
    if unknown:
        raise ValueError(
            f"no layer {unknown[0]!r} in this {type(model).__name__}: pass some of hidden_layers(model, x)"
        )
    height, width = x.shape[2:]
    row, column = at if at is not None else ((height - 1) / 2, (width - 1) / 2)
    if not (isfinite(row) and isfinite(column) and 0 <= row <= height - 1 and 0 <= column <= width - 1):
        raise ValueError(f"pixel {(row, column)} is outside the picture of {height} x {width}")
    units = {}
    for name, layer in layers.items():
        nearest = [
            min(range(count), key=lambda i: abs(offset + i * stride - pixel))
            for count, stride, offset, pixel in zip(
                layer.shape[1:], layer.stride, layer.offset, (row, column), strict=True
            )
        ]
        units[name] = (nearest[0], nearest[1])
    return units


def _centre(layer: HiddenLayer, unit: tuple[int, int]) -> tuple[float, float]:
    return layer.offset[0] + layer.stride[0] * unit[0], layer.offset[1] + layer.stride[1] * unit[1]


def _activations(model: nn.Module, x: Tensor, units: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """One forward pass: ``{layer: (N, C)}``, the activation of one position, in the graph where one is built."""
    found: dict[str, Tensor] = {}

    def keep(name: str, module: Any, args: Any, output: Tensor) -> None:
        row, column = units[name]
        found[name] = output[:, :, row, column].clone()  # what comes next may work in place

    modules = dict(model.named_modules())
    with ExitStack() as hooks:
        for name in units:
            hooks.callback(modules[name].register_forward_hook(partial(keep, name)).remove)
        model(x)
    for name in units:
        if name not in found:
            raise ValueError(f"layer {name!r} was not run by this {type(model).__name__}")
    return found
