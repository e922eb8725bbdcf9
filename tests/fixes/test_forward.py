"""The forward hook against its matrix, its published form, and the backward hook, whose transpose it is."""

from __future__ import annotations

import pytest
import torch
from matrices import CONVOLUTIONS, FORMS, SIZE, blur_matrix, convolution, gradient, matrix_of
from networks import build
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.fixes import BackwardHook, ForwardHook
from smoothsal_lib.fixes.blur import centred_kernel


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_equals_its_matrix(kind: str, form: str) -> None:
    """y = ABx + b: one convolution of a blurred image, in the published form too."""
    conv = convolution(kind)
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    matrix = matrix_of(conv) @ blur_matrix(form, conv.stride)
    bias = conv(torch.zeros_like(x))
    with ForwardHook(form).repair(conv):
        found = conv(x)
    torch.testing.assert_close(found, (x.flatten(1) @ matrix.T).view_as(bias) + bias)


def test_paper_form_is_the_mean_of_four_outputs() -> None:
    conv = convolution("3x3 stride 2")
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    outputs = [conv(torch.roll(x, (down, right), (2, 3))) for down in (0, 1) for right in (0, 1)]
    with ForwardHook("paper").repair(conv):
        torch.testing.assert_close(conv(x), sum(outputs) / 4)


def test_centred_form_is_a_weighted_mean_of_shifted_outputs() -> None:
    """Nine shifts, weighted [1 2 1]/4 along each axis, wherever the border is out of reach."""
    conv = convolution("3x3 stride 2")
    x = torch.randn(1, 2, 16, 16, dtype=torch.float64)
    kernel = centred_kernel(2)
    mean = sum(
        kernel[down + 1] * kernel[right + 1] * conv(torch.roll(x, (down, right), (2, 3)))
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    )
    with ForwardHook().repair(conv):
        found = conv(x)
    interior = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(found[interior], mean[interior])


@pytest.mark.parametrize(("form", "convolutions"), [("centred", 1), ("paper", 4)])
def test_the_centred_form_costs_a_quarter(form: str, convolutions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    conv, calls = convolution("3x3 stride 2"), []
    convolve = conv._conv_forward
    monkeypatch.setattr(conv, "_conv_forward", lambda *given: calls.append(1) or convolve(*given))
    with ForwardHook(form).repair(conv):
        conv(torch.zeros(1, *SIZE, dtype=torch.float64))
    assert len(calls) == convolutions


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_its_gradient_is_that_of_the_backward_hook(kind: str) -> None:
    """(AB)ᵀ = BAᵀ, B being symmetric: through the forward fix flows the gradient that the backward fix makes."""
    conv = convolution(kind)
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    upstream = torch.randn_like(conv(x))
    through_forward = gradient(conv, x, upstream, ForwardHook().repair(conv))
    torch.testing.assert_close(through_forward, gradient(conv, x, upstream, BackwardHook().repair(conv)))


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_the_published_hooks_are_transposes_up_to_one_pixel(kind: str) -> None:
    """Both shift by 0 and +1, one the image, one the gradient; the transpose of a shift by +1 is one by -1."""
    conv = convolution(kind)
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    upstream = torch.randn_like(conv(x))
    through_forward = gradient(conv, x, upstream, ForwardHook("paper").repair(conv))
    backward = gradient(conv, x, upstream, BackwardHook("paper").repair(conv))
    torch.testing.assert_close(through_forward, torch.roll(backward, (-1, -1), (2, 3)))


@pytest.mark.parametrize("form", FORMS)
def test_adjoint(form: str) -> None:
    """<ABx, y> = <x, BAᵀy>, by the definition of an adjoint."""
    conv = nn.Conv2d(2, 3, 3, 2, 1, bias=False).double()
    x = torch.randn(1, *SIZE, dtype=torch.float64)
    y = torch.randn_like(conv(x))
    with ForwardHook(form).repair(conv):
        forward = (conv(x) * y).sum()
    backward = gradient(conv, x, y, BackwardHook(form).repair(conv))
    if form == "paper":
        backward = torch.roll(backward, (-1, -1), (2, 3))
    torch.testing.assert_close(forward, (x * backward).sum())


@pytest.mark.parametrize("form", FORMS)
def test_a_grid_in_the_image_does_not_reach_the_layer(form: str) -> None:
    """Anti-aliasing: what a stride of 2 would fold onto the coarse map is gone before it is sampled."""
    conv = nn.Conv2d(1, 2, 3, 2, bias=False).double()
    rows = torch.arange(16, dtype=torch.float64).view(16, 1)
    grid = ((-1.0) ** rows).expand(1, 1, 16, 16)
    assert conv(grid).abs().max() > 0.1
    with ForwardHook(form).repair(conv):
        assert conv(grid)[..., 1:-1, 1:-1].abs().max() < 1e-14


@pytest.mark.parametrize("form", FORMS)
def test_the_first_strided_convolution_is_left_alone(form: str, x: Tensor) -> None:
    model = build("residual")
    returned = {}
    for name, module in sal.strided_layers(model).items():
        module.register_forward_hook(lambda m, args, output, name=name: returned.update({name: (args[0], output)}))
    with sal.smoothed(model, ForwardHook(form)):
        predictions = model(x)
    assert not torch.allclose(predictions, model(x))
    first, *others = sal.strided_layers(model)
    with sal.smoothed(model, ForwardHook(form)):
        model(x)
        seen = dict(returned)
    torch.testing.assert_close(seen[first][1], model.get_submodule(first)._conv_forward(x, *weights(model, first)))
    for name in others:
        plain = model.get_submodule(name)._conv_forward(seen[name][0], *weights(model, name))
        if form == "paper":  # its hook runs on the way out, after ours has looked
            continue
        torch.testing.assert_close(seen[name][1], plain)


def weights(model: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    module = model.get_submodule(name)
    return module.weight, module.bias


@pytest.mark.parametrize("form", FORMS)
def test_the_only_strided_convolution_is_repaired(form: str, x: Tensor) -> None:
    model = build("depthwise")
    with sal.smoothed(model, ForwardHook(form)):
        repaired = model(x)
    assert not torch.allclose(repaired, model(x))


@pytest.mark.parametrize("form", FORMS)
def test_a_convolution_with_a_forward_of_its_own(form: str) -> None:
    """Weight standardisation overrides ``forward``; the mean must be of *its* outputs."""

    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return self._conv_forward(x, weight, self.bias)

    conv = Standardised(2, 3, 3, 2, 1).double()
    x = torch.randn(1, *SIZE, dtype=torch.float64)
    bias = conv(torch.zeros_like(x))
    matrix = matrix_of(conv) @ blur_matrix(form, (2, 2))
    with ForwardHook(form).repair(conv):
        torch.testing.assert_close(conv(x), (x.flatten(1) @ matrix.T).view_as(bias) + bias)


def test_forward_and_backward_together() -> None:
    """The published pair, both ways round: the output of ForwardHook, and twice the blur on the way back."""
    conv = convolution("3x3 stride 2")
    x = torch.randn(1, *SIZE, dtype=torch.float64)
    upstream = torch.randn_like(conv(x))
    blur, matrix = blur_matrix("centred", (2, 2)), matrix_of(conv)
    for fixes in (("backward", "forward"), ("forward", "backward")):
        found = gradient(conv, x, upstream, sal.smoothed(conv, *fixes))
        torch.testing.assert_close(found.flatten(1), upstream.flatten(1) @ matrix @ blur @ blur)
