"""The backward hook against its matrix, and the checkerboard it removes.

Theory. A strided convolution without bias is a matrix A, and the plain gradient at its input is Aᵀg for the gradient
g at its output. The hook hands down BAᵀg, with B the blur of :mod:`smoothsal_lib.fixes.blur`. Then:

- paper form, even size, stride 2: B is a circular convolution whose spectrum is zero at Nyquist, so the circular
  Fourier transform of BAᵀg is exactly zero on the row and on the column of that frequency, whatever g is.
- centred form: let g be constant. Away from the border every position of a parity class (i mod s, j mod s) meets the
  same taps, so Aᵀg repeats every s pixels: the checkerboard and nothing else. B turns such a pattern into its mean,
  so BAᵀg is exactly constant in the interior: all parity-class means are equal. The plain gradient's differ, for a 1
  x 1 stride-2 convolution as w, 0, 0, 0.
- for arbitrary g the centred form multiplies the spectrum by one that vanishes at the grid's frequencies; an
  alternating grid added to Aᵀg is gone in the interior.
"""

from __future__ import annotations

import pytest
import torch
from matrices import CONVOLUTIONS, FORMS, SIZE, blur_matrix, convolution, gradient, matrix_of
from networks import build
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.fixes import BackwardHook


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_equals_its_matrix(kind: str, form: str) -> None:
    conv = convolution(kind)
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    upstream = torch.randn_like(conv(x))
    found = gradient(conv, x, upstream, BackwardHook(form).repair(conv))
    matrix = blur_matrix(form, conv.stride) @ matrix_of(conv).T
    torch.testing.assert_close(found.flatten(1), upstream.flatten(1) @ matrix.T)


def test_paper_form_is_the_mean_of_four_shifts() -> None:
    conv = convolution("3x3 stride 2")
    x = torch.randn(2, *SIZE, dtype=torch.float64)
    upstream = torch.randn_like(conv(x))
    plain = gradient(conv, x, upstream, torch.enable_grad())
    shifted = [torch.roll(plain, (down, right), (2, 3)) for down in (0, 1) for right in (0, 1)]
    found = gradient(conv, x, upstream, BackwardHook("paper").repair(conv))
    torch.testing.assert_close(found, sum(shifted) / 4)


@pytest.mark.parametrize("form", FORMS)
def test_every_strided_convolution_and_no_other_is_hooked(form: str, x: Tensor) -> None:
    """A residual block with a strided shortcut: BA₁ᵀ on one path, BA₂ᵀ on the other, by hand through the block."""
    model = build("residual")
    block = model.get_submodule("layer4")
    size = (6, 4, 4)
    inside = torch.randn(1, *size, dtype=torch.float64)
    upstream = torch.randn(1, 8, 2, 2, dtype=torch.float64)
    found = gradient(block, inside, upstream, BackwardHook(form).repair(block))
    with torch.no_grad():
        before = block.bn1(block.conv1(inside))
        out = block.bn2(block.conv2(before.relu())) + block.shortcut(inside)
    scale1, scale2, scale3 = (
        bn.weight / (bn.running_var + bn.eps).sqrt() for bn in (block.bn1, block.bn2, block.shortcut[1])
    )
    g = (upstream * (out > 0)).detach()
    main = (g * scale2.view(-1, 1, 1)).flatten(1) @ matrix_of(block.conv2, (8, 2, 2))
    main = main.view(1, 8, 2, 2) * (before > 0) * scale1.view(-1, 1, 1)
    blur = blur_matrix(form, (2, 2), size)
    expected = main.flatten(1) @ matrix_of(block.conv1, size) @ blur.T
    expected = expected + (g * scale3.view(-1, 1, 1)).flatten(1) @ matrix_of(block.shortcut[0], size) @ blur.T
    torch.testing.assert_close(found.flatten(1), expected.detach())


@pytest.mark.parametrize("form", FORMS)
def test_predictions_are_the_same_bit_for_bit(form: str, network: nn.Module, x: Tensor) -> None:
    if not sal.strided_layers(network):
        pytest.skip("nothing to hook")
    plain = network(x)
    with sal.smoothed(network, BackwardHook(form)):
        assert torch.equal(network(x), plain)


# ------------------------------------------------------------------------------------------ the checkerboard is gone


@pytest.mark.parametrize("kind", ["3x3 stride 2", "1x1 stride 2", "7x7 stride 2", "grouped", "depthwise", "dilated"])
def test_paper_form_has_no_energy_at_nyquist(kind: str) -> None:
    conv = convolution(kind)
    x = torch.randn(1, 2, 12, 10, dtype=torch.float64)
    upstream = torch.randn_like(conv(x))
    plain = torch.fft.fft2(gradient(conv, x, upstream, torch.enable_grad())).abs()
    fixed = torch.fft.fft2(gradient(conv, x, upstream, BackwardHook("paper").repair(conv))).abs()
    for at in ((..., 6, slice(None)), (..., slice(None), 5)):
        assert plain[at].max() > 0.1
        assert fixed[at].max() < 1e-12


@pytest.mark.parametrize("kind", [kind for kind in CONVOLUTIONS if kind != "circular padding"])
def test_centred_form_equalises_the_parity_classes(kind: str) -> None:
    conv = convolution(kind)
    x = torch.zeros(1, 2, 48, 48, dtype=torch.float64)
    upstream = torch.ones_like(conv(x)) * torch.randn(conv.out_channels, 1, 1, dtype=torch.float64)
    interior = (..., slice(16, 40), slice(16, 40))
    plain = gradient(conv, x, upstream, torch.enable_grad())[interior]
    fixed = gradient(conv, x, upstream, BackwardHook().repair(conv))[interior]
    for s, channel in ((max(conv.stride), c) for c in range(2)):
        classes = [plain[0, channel, i::s, j::s].mean() for i in range(s) for j in range(s)]
        assert max(classes) - min(classes) > 1e-2  # the checkerboard
        torch.testing.assert_close(fixed[0, channel], torch.stack(classes).mean().expand_as(fixed[0, channel]))


def test_a_strided_shortcut_reaches_one_position_in_four() -> None:
    conv = convolution("1x1 stride 2")
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    upstream = torch.randn_like(conv(x))
    plain = gradient(conv, x, upstream, torch.enable_grad())
    assert [int((plain[..., i::2, j::2] != 0).sum()) for i in (0, 1) for j in (0, 1)] == [32, 0, 0, 0]
    assert (gradient(conv, x, upstream, BackwardHook().repair(conv)) != 0).all()


def test_the_map_stays_in_place() -> None:
    """The gradient of one output unit is symmetric about its receptive field's centre, as the plain one is."""
    conv = nn.Conv2d(1, 1, 3, 2, 1, bias=False).double()
    conv.weight.data.fill_(1.0)
    x = torch.zeros(1, 1, 15, 15, dtype=torch.float64)
    upstream = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    upstream[..., 3, 4] = 1  # which looks at row 6, column 8
    rows, columns = torch.arange(15.0).view(15, 1).double(), torch.arange(15.0).double()
    for form, expected in (("centred", (6.0, 8.0)), ("paper", (6.5, 8.5))):
        found = gradient(conv, x, upstream, BackwardHook(form).repair(conv))[0, 0]
        centre = ((found * rows).sum() / found.sum(), (found * columns).sum() / found.sum())
        assert [float(c) for c in centre] == pytest.approx(expected)


# --------------------------------------------------------------------------------------------- as a context


@pytest.mark.parametrize("method", sal.METHODS)
@pytest.mark.parametrize("fix", ["backward", "backward:paper", "forward", "forward:paper"])
def test_explain_with_a_fix_is_explain_inside_it(method: str, fix: str, x: Tensor) -> None:
    model = build("residual")
    found = sal.explain(model, x, 1, method=method, fix=fix)
    with sal.smoothed(model, fix):
        expected = sal.explain(model, x, 1, method=method, fix=None)
    for layer, attribution in found.items():
        assert torch.equal(attribution, expected[layer])
    plain = sal.explain(model, x, 1, method=method, fix=None)
    # CAM is a map of the last layer, which no gradient reaches through a strided convolution.
    out_of_reach = method == "cam" and fix.startswith("backward")
    assert any(not torch.allclose(found[layer], plain[layer]) for layer in plain) != out_of_reach


def test_nested_and_listed_fixes_compose() -> None:
    """Blurring twice is blurring with B², in whatever way the two are put together."""
    conv = convolution("3x3 stride 2")
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(3 * 4 * 5, 5)).double()
    x = torch.randn(1, *SIZE, dtype=torch.float64)
    once = sal.explain(model, x, 1, "input", "gradient", "backward")["input"]
    blur = blur_matrix("centred", (2, 2))
    twice = (once.flatten(1) @ blur.T).view_as(once)
    with sal.smoothed(model, "backward"):
        nested = sal.explain(model, x, 1, "input", "gradient", "backward")["input"]
    listed = sal.explain(model, x, 1, "input", "gradient", ["backward", BackwardHook()])["input"]
    with sal.smoothed(model, "backward", "backward"):
        smoothed = sal.explain(model, x, 1, "input", "gradient", None)["input"]
    for found in (nested, listed, smoothed):
        torch.testing.assert_close(found, twice)
    torch.testing.assert_close(sal.explain(model, x, 1, "input", "gradient", "backward")["input"], once)


def test_a_fix_object_can_be_entered_again_and_twice_at_once() -> None:
    conv, fix = convolution("3x3 stride 2"), BackwardHook()
    x = torch.randn(1, *SIZE, dtype=torch.float64)
    upstream = torch.randn_like(conv(x))
    first = gradient(conv, x, upstream, fix.repair(conv))
    assert torch.equal(gradient(conv, x, upstream, fix.repair(conv)), first)
    with fix.repair(conv):
        twice = gradient(conv, x, upstream, fix.repair(conv))
    assert not torch.allclose(twice, first)
    assert not conv._forward_pre_hooks


def test_deeplift_stays_complete_under_the_forward_fix_and_not_under_the_backward_one(x: Tensor) -> None:
    """The forward fix is another network, explained completely; the backward fix bends the multipliers of this one."""
    model = build("residual")
    for fix in ("forward", "forward:paper"):
        with sal.smoothed(model, fix):
            change = (model(x) - model(torch.zeros_like(x)))[:, 1]
        for attribution in sal.explain(model, x, 1, fix=fix).values():
            torch.testing.assert_close(attribution.sum((1, 2, 3)), change, rtol=1e-8, atol=0)
    change = (model(x) - model(torch.zeros_like(x)))[:, 1]
    bent = sal.explain(model, x, 1, fix="backward")["layer2"].sum((1, 2, 3))
    assert not torch.allclose(bent, change, rtol=1e-3)
