"""Extract & aggregate, against contributions that are really made, by autograd and by hand, and then reduced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, build
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.contributions import (
    AGGREGATIONS,
    EXTRACTIONS,
    NAMED,
    RULES,
    ExtractAggregate,
    extract_aggregate,
    weight_contributions,
)
from smoothsal_lib.fixes import Surrogate
from smoothsal_lib.sampling import AdaptGrad, FusionGrad, NoiseGrad, Path, SmoothGrad, SmoothGradSquared, VarGrad

REPAIRED = ("residual", "squeeze_excite", "grouped", "asymmetric", "stride_4")
IMAGINED = tuple(name for name in EXTRACTIONS if name != "weights")
TARGET = torch.tensor([4, 0, 2])
CELLS = [
    ExtractAggregate(extract, aggregate, rule)
    for extract in EXTRACTIONS
    for aggregate in AGGREGATIONS
    for rule in RULES
    if (extract, rule) != ("weights", "deeplift")
]


def patches(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """(N, H', W', C, rows, columns) of a map (N, C, H, W) that is padded already, tap by tap."""
    height, width = (
        (size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    )
    found = x.new_empty(len(x), height, width, x.shape[1], *kernel)
    for i in range(height):
        for j in range(width):
            for a in range(kernel[0]):
                for b in range(kernel[1]):
                    found[:, i, j, :, a, b] = x[:, :, i * stride[0] + a * dilation[0], j * stride[1] + b * dilation[1]]
    return found


def contributions(g: Tensor, p: Tensor, groups: int = 1) -> Tensor:
    """(N, H', W', C_out, C_in / groups, rows, columns): every product of g (N, C_out, H', W') and its patch."""
    g = g.permute(0, 2, 3, 1).unflatten(3, (groups, -1))
    p = p.unflatten(3, (groups, -1))
    return torch.einsum("nhwgo,nhwgiab->nhwgoiab", g, p).flatten(3, 4)


def imagined(x: Tensor, g: Tensor, extract: str) -> Tensor:
    """The contributions (N, H, W, ...) of every position to the gradient of an imagined layer's weights."""
    own = x.permute(0, 2, 3, 1)
    by_position = g.permute(0, 2, 3, 1)
    if extract == "bias":
        return by_position
    if extract == "scaling":
        return by_position * own
    if extract == "conv1x1":
        return by_position[..., :, None] * own[..., None, :]
    p = patches(F.pad(x, (1, 1, 1, 1)), (3, 3), (1, 1), (1, 1))
    return contributions(g, p, 1 if extract == "conv3x3" else x.shape[1])


def reduced(contribution: Tensor, aggregate: str) -> Tensor:
    """(N, H, W) from (N, H, W, ...)."""
    flat = contribution.reshape(*contribution.shape[:3], -1)
    if aggregate == "sum":
        return flat.sum(3)
    if aggregate == "max_abs":
        return flat.abs().amax(3)
    return (flat.clamp(min=0) if aggregate == "positive_norm" else flat).norm(dim=3)


# ----------------------------------------------------------------------------- no outer product, the same number


@pytest.mark.parametrize("aggregate", AGGREGATIONS)
@pytest.mark.parametrize("extract", IMAGINED)
def test_the_factors_give_what_the_products_give(extract: str, aggregate: str) -> None:
    x, g = torch.randn(2, 2, 5, 6, 7, dtype=torch.float64)
    found = extract_aggregate(x, g, extract, aggregate)
    torch.testing.assert_close(found, reduced(imagined(x, g, extract), aggregate))
    assert found.shape == (2, 6, 7) and found.dtype == torch.float64


@pytest.mark.parametrize("aggregate", AGGREGATIONS)
@pytest.mark.parametrize("extract", IMAGINED)
def test_one_sign_and_one_channel(extract: str, aggregate: str) -> None:
    """What ReLU leaves, g of one sign, and maps of a single unit: none of the signs may be taken for granted."""
    x, g = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64).abs()
    for activation, gradient in [(x, g), (x, -g), (-x, -g), (x[:, :1], g[:, :1]), (x[:, :, :1, :1], g[:, :, :1, :1])]:
        found = extract_aggregate(activation, gradient, extract, aggregate)
        torch.testing.assert_close(found, reduced(imagined(activation, gradient, extract), aggregate))


def test_by_hand() -> None:
    """One position, x = (1, -2) and g = (3, 4): products 3, -6, 4, -8 in full, 3 and -8 channel by channel."""
    x, g = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1), torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    expected = {
        "bias": [7, 4, 5, 5],
        "scaling": [-5, 8, 3, 73**0.5],
        "conv1x1": [-7, 8, 5, 125**0.5],
        "conv3x3": [-7, 8, 5, 125**0.5],
        "depthwise3x3": [-5, 8, 3, 73**0.5],
    }
    for extract, values in expected.items():
        assert [float(extract_aggregate(x, g, extract, how)) for how in AGGREGATIONS] == pytest.approx(values), extract


# --------------------------------------------------------------------------------------- layers that are imagined

Virtual = tuple[Callable[[Tensor, Tensor], Tensor], Callable[[int], Tensor]]


def identity(channels: int, size: int) -> Tensor:
    weight = torch.zeros(channels, channels, size, size, dtype=torch.float64)
    weight[range(channels), range(channels), size // 2, size // 2] = 1
    return weight


def depthwise_identity(channels: int) -> Tensor:
    weight = torch.zeros(channels, 1, 3, 3, dtype=torch.float64)
    weight[:, :, 1, 1] = 1
    return weight


# How the layer runs, and its weights for so many channels.
VIRTUAL: dict[str, Virtual] = {
    "bias": (lambda x, w: x + w[:, None, None], lambda c: torch.zeros(c, dtype=torch.float64)),
    "scaling": (lambda x, w: x * w[:, None, None], lambda c: torch.ones(c, dtype=torch.float64)),
    "conv1x1": (lambda x, w: F.conv2d(x, w[..., None, None]), lambda c: identity(c, 1)[..., 0, 0]),
    "conv3x3": (lambda x, w: F.conv2d(x, w, padding=1), lambda c: identity(c, 3)),
    "depthwise3x3": (lambda x, w: F.conv2d(x, w, padding=1, groups=len(w)), depthwise_identity),
}


@pytest.mark.parametrize("extract", IMAGINED)
@pytest.mark.parametrize("network", ["functional", "in_place_vgg", "residual", "dense"], indirect=True)
def test_contributions_sum_to_the_gradient_of_a_layer_that_is_really_there(
    extract: str, network: nn.Module, x: Tensor
) -> None:
    run, start = VIRTUAL[extract]
    plain = network(x.clone()).detach()
    captured = sal.capture(network, x, "all", TARGET)
    for name, g in captured.gradients.items():
        weights = start(g.shape[1]).requires_grad_()
        handle = network.get_submodule(name).register_forward_hook(lambda m, a, output, w=weights: run(output, w))
        logits = network(x.clone())
        handle.remove()
        torch.testing.assert_close(logits.detach(), plain, rtol=1e-12, atol=1e-12)
        expected = torch.autograd.grad(logits.gather(1, TARGET[:, None]).sum(), weights)[0]
        found = imagined(captured.activations[name], g, extract).sum((0, 1, 2))
        torch.testing.assert_close(found, expected, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("extract", IMAGINED)
def test_one_position_alone_has_the_gradient_of_weights_that_it_alone_uses(extract: str, x: Tensor) -> None:
    """Every position gets weights of its own: their gradient is its contribution, and explain reduces that."""
    run, start = VIRTUAL[extract]
    model, name = build("residual"), "layer3.0"
    height, width = sal.hidden_layers(model, x)[name].shape[1:]
    channels = sal.hidden_layers(model, x)[name].shape[0]
    weights = [[start(channels).requires_grad_() for _ in range(width)] for _ in range(height)]

    def untied(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        rows = [torch.stack([run(output, weights[i][j])[:, :, i, j] for j in range(width)], 2) for i in range(height)]
        return torch.stack(rows, 2)

    one = x[:1]
    handle = model.get_submodule(name).register_forward_hook(untied)
    score = model(one.clone())[0, 4]
    handle.remove()
    leaves = [leaf for row in weights for leaf in row]
    gradients = torch.stack([g.flatten() for g in torch.autograd.grad(score, leaves)]).view(1, height, width, -1)
    for aggregate in AGGREGATIONS:
        found = sal.explain(model, one, 4, name, f"{extract}+{aggregate}", fix=None)[name]
        torch.testing.assert_close(found[:, 0], reduced(gradients, aggregate))


# --------------------------------------------------------------------------------------- convolutions that are there

# A convolution from 4 to 6 channels, and what it pads: left, right, top, bottom.
CONVOLUTIONS: dict[str, tuple[dict[str, Any], tuple[int, int, int, int]]] = {
    "1x1": ({"kernel_size": 1}, (0, 0, 0, 0)),
    "3x3": ({"kernel_size": 3, "padding": 1}, (1, 1, 1, 1)),
    "stride 2": ({"kernel_size": 3, "stride": 2, "padding": 1}, (1, 1, 1, 1)),
    "1x1 stride 2": ({"kernel_size": 1, "stride": 2}, (0, 0, 0, 0)),
    "dilated": ({"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2}, (2, 2, 2, 2)),
    "asymmetric": (
        {"kernel_size": (2, 5), "stride": (1, 2), "padding": (0, 2), "dilation": (3, 1)},
        (2, 2, 0, 0),
    ),
    "groups": ({"kernel_size": 3, "stride": 2, "groups": 2}, (0, 0, 0, 0)),
    "same": ({"kernel_size": (4, 3), "padding": "same"}, (1, 1, 1, 2)),
    "same dilated": ({"kernel_size": 2, "padding": "same", "dilation": (1, 3)}, (1, 2, 0, 1)),
    "valid": ({"kernel_size": 3, "padding": "valid"}, (0, 0, 0, 0)),
    "reflect": ({"kernel_size": 3, "padding": 2, "padding_mode": "reflect"}, (2, 2, 2, 2)),
    "replicate": ({"kernel_size": 5, "stride": 3, "padding": (2, 1), "padding_mode": "replicate"}, (1, 1, 2, 2)),
    "circular": ({"kernel_size": (4, 3), "padding": "same", "padding_mode": "circular"}, (1, 1, 1, 2)),
}


def made(kind: str) -> tuple[nn.Conv2d, tuple[int, int, int, int]]:
    if kind == "depthwise":
        return nn.Conv2d(4, 8, 3, 2, 1, groups=4).double(), (1, 1, 1, 1)
    options, padding = CONVOLUTIONS[kind]
    return nn.Conv2d(4, 6, **options).double(), padding


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("kind", [*CONVOLUTIONS, "depthwise"])
def test_a_convolution_of_any_kind(kind: str) -> None:
    convolution, padding = made(kind)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    output = convolution(x)
    g = torch.randn_like(output)
    output.backward(g)
    mode = "constant" if convolution.padding_mode == "zeros" else convolution.padding_mode
    p = patches(F.pad(x, padding, mode), convolution.kernel_size, convolution.stride, convolution.dilation)
    made_up = contributions(g, p, convolution.groups)
    assert made_up.shape[1:3] == output.shape[2:]
    torch.testing.assert_close(made_up.sum((0, 1, 2)), convolution.weight.grad)
    for aggregate in AGGREGATIONS:
        found = weight_contributions(x, g, convolution, aggregate)
        torch.testing.assert_close(found, reduced(made_up, aggregate), msg=lambda m, a=aggregate: f"{a}: {m}")


def fed_and_gradient(model: nn.Module, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """What a convolution is fed and the derivative by its output, by a zero that is added to the output."""
    kept: list[Tensor] = []

    def add_zero(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        kept.extend([args[0].detach().clone(), torch.zeros_like(output).requires_grad_()])
        return output + kept[1]

    handle = model.get_submodule(name).register_forward_hook(add_zero)
    score = model(x.clone()).gather(1, TARGET[:, None]).sum()
    handle.remove()
    return kept[0], torch.autograd.grad(score, kept[1])[0]


@pytest.mark.parametrize(
    ("name", "fix"),
    [*((name, None) for name in NETWORKS), *product(REPAIRED, ["backward", "backward:paper", "forward"])],
)
def test_at_the_convolutions_of_networks(name: str, fix: str | None, x: Tensor) -> None:
    """An in-place ReLU overwrites what the convolution returned, and the blur of ``forward`` what it is fed."""
    model = build(name)
    names = [layer for layer, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    found = sal.explain(model, x, TARGET, method="weights+l2", fix=fix)
    assert list(found) == names
    with sal.smoothed(model, fix):
        model(x.clone()).gather(1, TARGET[:, None]).sum().backward()
        for layer in names:
            convolution = model.get_submodule(layer)
            assert isinstance(convolution, nn.Conv2d) and isinstance(convolution.padding, tuple)
            own, g = fed_and_gradient(model, x, layer)
            down, right = convolution.padding
            own = F.pad(own, (right, right, down, down))
            p = patches(own, convolution.kernel_size, convolution.stride, convolution.dilation)
            made_up = contributions(g, p, convolution.groups)
            torch.testing.assert_close(made_up.sum((0, 1, 2)), convolution.weight.grad)
            assert found[layer].shape == (3, 1, *g.shape[2:])
            torch.testing.assert_close(found[layer][:, 0], reduced(made_up, "l2"), msg=lambda m, n=layer: f"{n}: {m}")


class Overwrites(nn.Module):
    """Its convolution is fed a map that ReLU changes afterwards, which autograd allows since it is padded to a copy."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return (self.second(x) + F.relu(x, self.in_place)).square().mean((2, 3))


def test_what_a_convolution_was_fed_may_be_overwritten(x: Tensor) -> None:
    model = Overwrites(in_place=True).double()
    same = Overwrites(in_place=False).double()
    same.load_state_dict(model.state_dict())
    found = sal.explain(model, x, 1, method="weights+sum", fix=None)
    for name, expected in sal.explain(same, x, 1, method="weights+sum", fix=None).items():
        torch.testing.assert_close(found[name], expected)


def test_weights_that_do_not_run_are_refused(x: Tensor) -> None:
    """...at the convolutions that are replaced; the others may be explained all the same."""
    model = build("residual")
    for fix in (Surrogate.of(model), "forward:paper"):
        for layers in ("all", "layer4.conv1"):
            with pytest.raises(ValueError, match="^something else runs in the place of 'layer.*conv1', so its weights"):
                sal.explain(model, x, 1, layers, "weights+l2", fix)
        found = sal.explain(model, x, 1, "layer4.conv2", "weights+l2", fix)["layer4.conv2"]
        assert found.shape == (3, 1, 2, 2) and bool((found > 0).any())


# ------------------------------------------------------------------------------------------- methods with a name


def both(model: nn.Module, x: Tensor, method: str, **options: Any) -> dict[str, Tensor]:
    return sal.explain(model, x, TARGET, ["input", *sal.hidden_layers(model, x)], method, fix="backward", **options)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, maps in expected.items():
        torch.testing.assert_close(found[name][:, 0], maps, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("network", ["functional", "residual", "squeeze_excite"], indirect=True)
def test_methods_are_cells(network: nn.Module, x: Tensor) -> None:
    gradient, weighted = (both(network, x, method) for method in ("gradient", "gradient_x_activation"))
    for reduce in AGGREGATIONS:  # bias + max_abs is the gradient map of Simonyan et al.
        expected = {name: sal.saliency_map(g, reduce) for name, g in gradient.items()}
        assert_same(both(network, x, f"bias+{reduce}"), expected)
        expected = {name: sal.saliency_map(own, reduce) for name, own in weighted.items()}
        assert_same(both(network, x, f"scaling+{reduce}"), expected)
    assert_same(both(network, x, "linear_approximation"), {name: own.sum(1) for name, own in weighted.items()})
    selective = {name: own.clamp(min=0).square().sum(1).sqrt() for name, own in weighted.items()}
    assert_same(both(network, x, "normgrad_selective"), selective)
    with sal.smoothed(network, "backward"):
        plain = sal.capture(network, x, list(gradient), TARGET)
    norms = {name: g.norm(dim=1) * plain.activations[name].norm(dim=1) for name, g in plain.gradients.items()}
    assert_same(both(network, x, "normgrad"), norms)
    averaged = {
        name: extract_aggregate(
            plain.activations[name], g.mean((2, 3), keepdim=True).expand_as(g), "scaling", "sum"
        ).clamp(min=0)
        for name, g in plain.gradients.items()
    }
    assert_same(both(network, x, "grad_cam"), averaged)


@pytest.mark.parametrize("network", ["functional", "residual", "squeeze_excite"], indirect=True)
def test_deeplift_is_a_cell(network: nn.Module, x: Tensor, reference: Tensor) -> None:
    deeplift = both(network, x, "deeplift", baseline=reference)
    for reduce in AGGREGATIONS:
        expected = {name: sal.saliency_map(own, reduce) for name, own in deeplift.items()}
        assert_same(both(network, x, f"deeplift+scaling+{reduce}", baseline=reference), expected)


@pytest.mark.parametrize("rule", ["guided_backprop", "deconvnet"])
def test_rectifier_rules_take_the_gradients_place(rule: str, x: Tensor) -> None:
    model = build("residual")
    g = both(model, x, rule)
    activations = sal.capture(model, x, list(g), TARGET).activations
    for extract in IMAGINED:
        for aggregate in AGGREGATIONS:
            expected = {n: extract_aggregate(activations[n], own, extract, aggregate) for n, own in g.items()}
            assert_same(both(model, x, f"{rule}+{extract}+{aggregate}"), expected)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_cell_has_a_name(cell: ExtractAggregate) -> None:
    assert ExtractAggregate.named(str(cell)) == cell
    assert str(ExtractAggregate.named(str(cell))) == str(cell)


def test_every_cell_is_a_method(x: Tensor) -> None:
    model = build("functional")
    assert len({str(cell) for cell in CELLS}) == len(CELLS) == 6 * 4 * 4 - 4
    for cell in CELLS:
        by_name = sal.explain(model, x, TARGET, "second", str(cell))["second"]
        assert by_name.shape == (3, 1, 4, 4)
        assert torch.equal(by_name, sal.explain(model, x, TARGET, "second", cell)["second"])
    for name, cell in NAMED.items():
        by_name = sal.explain(model, x, TARGET, "first", name)["first"]
        assert torch.equal(by_name, sal.explain(model, x, TARGET, "first", cell)["first"])


# ------------------------------------------------------------------------------------------- fixes and sampling


@pytest.mark.parametrize("fix", [None, "backward", "backward:paper", "forward", "forward:paper", "surrogate"])
def test_every_fix(fix: str | None, x: Tensor) -> None:
    model = build("residual")
    repair = Surrogate.of(model) if fix == "surrogate" else fix
    with sal.smoothed(model, repair):
        captured = sal.capture(model, x, "all", TARGET)
    for extract in IMAGINED:
        expected = {
            name: reduced(imagined(captured.activations[name], g, extract), "positive_norm")
            for name, g in captured.gradients.items()
        }
        assert_same(sal.explain(model, x, TARGET, method=f"{extract}+positive_norm", fix=repair), expected)


SAMPLINGS = [
    SmoothGrad(n=3),
    SmoothGradSquared(n=3),
    VarGrad(n=3),
    AdaptGrad(n=3),
    NoiseGrad(n=3),
    FusionGrad(n=2, m=2),
    Path(steps=3),
]


@pytest.mark.parametrize("method", ["conv3x3+l2", "scaling+sum", "weights+max_abs"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda s: type(s).__name__)
def test_every_sampling(sampling: Any, method: str, x: Tensor) -> None:
    """Maps are made look by look, and then averaged."""
    model, layers = build("residual"), ["layer0", "layer4.conv2"]
    looks: list[tuple[float, dict[str, Tensor]]] = []
    networks = list(sampling.networks(model))
    for number, network in enumerate(networks):
        with network:
            for share, images in sampling.images(x, number):
                looks.append((share / len(networks), sal.explain(model, images, TARGET, layers, method)))
    found = sal.explain(model, x, TARGET, layers, method, sampling=replace(sampling, batch=5))
    for name in layers:
        values = torch.stack([attributions[name] for _, attributions in looks])
        shares = torch.tensor([share for share, _ in looks], dtype=torch.float64).view(-1, 1, 1, 1, 1)
        mean = (shares * values).sum(0)
        expected = {
            "mean": mean,
            "square": (shares * values.square()).sum(0),
            "variance": (shares * (values - mean).square()).sum(0),
        }[sampling.statistic]
        torch.testing.assert_close(found[name], expected, msg=lambda m, n=name: f"{n}: {m}")


# ----------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ExtractAggregate("conv"), "^unknown extract 'conv': choose one of bias, scaling, conv1x1, conv3x3"),
        (lambda: ExtractAggregate("bias", "max"), "^unknown aggregate 'max': choose one of sum, max_abs, positive"),
        (lambda: ExtractAggregate(rule="lrp"), "^unknown rule 'lrp': choose one of gradient, guided_backprop, deconv"),
        (lambda: ExtractAggregate("weights", rule="deeplift"), "^rule 'deeplift' has no gradient of weights"),
        (lambda: ExtractAggregate.named("conv3x3"), "^expected a cell such as 'conv3x3.l2', got 'conv3x3'$"),
        (lambda: ExtractAggregate.named("a+b+c+d"), "^expected a cell such as 'conv3x3.l2', got 'a.b.c.d'$"),
        (lambda: ExtractAggregate.named("+l2"), "^unknown extract ''"),
        (
            lambda: extract_aggregate(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3), "weights", "l2"),
            "^extract 'weights' needs a convolution: use weight_contributions$",
        ),
        (
            lambda: extract_aggregate(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 4), "bias", "l2"),
            r"^expected activation and gradient of one shape \(N, C, H, W\), got \(1, 2, 3, 3\) and \(1, 2, 3, 4\)$",
        ),
        (
            lambda: weight_contributions(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3), nn.Conv2d(2, 2, 1), "max"),
            "^unknown aggregate 'max'",
        ),
        (
            lambda: sal.explain(build("residual"), torch.ones(1, 3, 16, 16).double(), 1, "layer2", "weights+l2"),
            "^extract 'weights' needs 2-d convolutions, and 'layer2' is none$",
        ),
        (
            lambda: sal.explain(build("residual"), torch.ones(1, 3, 16, 16).double(), 1, "input", "weights+l2"),
            "^extract 'weights' needs 2-d convolutions, and 'input' is none$",
        ),
    ],
)
def test_bad_input_is_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
