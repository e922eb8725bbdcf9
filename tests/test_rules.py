"""The backward rules: complete, equal to slow derivations by hand, equal to captum where captum works."""

from __future__ import annotations

from collections.abc import Callable

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib import rules
from smoothsal_lib.rules import Deconvnet, DeepLift, GuidedBackprop

Function = Callable[[Tensor], Tensor]


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def multiplier(f: Function, x: Tensor, reference: Tensor, upstream: Tensor | None = None) -> Tensor:
    """DeepLift's multiplier of ``upstream * f`` (its sum without) at ``x``."""
    rule = DeepLift()
    start = reference.clone().requires_grad_()
    with rule.reference():
        f(start.clone())
    image = x.clone().requires_grad_()
    with rule:
        output = f(image.clone())
    torch.testing.assert_close(output, f(x.clone()))
    return torch.autograd.grad(output, image, torch.ones_like(output) if upstream is None else upstream)[0]


def assert_complete(f: Function, x: Tensor, reference: Tensor) -> None:
    """A random mixture of the outputs changes by what the multipliers say."""
    upstream = seeded(*f(x.clone()).shape, seed=5).to(x)
    change = (upstream * (f(x.clone()) - f(reference.clone()))).sum()
    attributed = ((x - reference) * multiplier(f, x, reference, upstream)).sum()
    torch.testing.assert_close(attributed, change, rtol=1e-9, atol=0)


# ---------------------------------------------------------------------------------------------- whole networks


def test_complete_on_whole_networks(network: nn.Module, x: Tensor, reference: Tensor) -> None:
    layers = ["input", *sal.hidden_layers(network, x)]
    target = torch.tensor([0, 3, 4])
    for baseline in (torch.zeros_like(x), reference, reference[:1]):
        scores = [network(images.expand_as(x)).gather(1, target[:, None])[:, 0] for images in (x, baseline)]
        for name, attribution in sal.explain(network, x, target, layers, fix=None, baseline=baseline).items():
            torch.testing.assert_close(
                attribution.sum((1, 2, 3)), scores[0] - scores[1], rtol=1e-8, atol=0, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_the_rules_do_not_change_what_the_network_computes(network: nn.Module, x: Tensor, reference: Tensor) -> None:
    plain = network(x)
    rule = DeepLift()
    sal.capture(network, reference, "input", rule=rule.reference())
    for backward_rule in (rule, GuidedBackprop(), Deconvnet()):
        torch.testing.assert_close(sal.capture(network, x, "input", rule=backward_rule).logits, plain)


# -------------------------------------------------------------------------------------- functions of one element

ONE_ELEMENT: dict[str, list[Function]] = {
    "relu": [F.relu, torch.relu, torch.relu_, nn.ReLU(inplace=True), Tensor.relu, lambda x: torch.relu(input=x)],
    "relu6": [F.relu6, nn.ReLU6(inplace=True)],
    "leaky_relu": [nn.LeakyReLU(0.2), nn.LeakyReLU(0.2, inplace=True)],
    "prelu": [nn.PReLU(init=0.3).double(), lambda x: F.prelu(x, torch.tensor([0.3], dtype=x.dtype))],
    "rrelu": [nn.RReLU().eval()],
    "hardtanh": [nn.Hardtanh(-0.5, 0.7), nn.Hardtanh(inplace=True)],
    "hardsigmoid": [nn.Hardsigmoid(), nn.Hardsigmoid(inplace=True)],
    "hardswish": [nn.Hardswish(), nn.Hardswish(inplace=True)],
    "hardshrink": [nn.Hardshrink()],
    "softshrink": [nn.Softshrink()],
    "tanhshrink": [nn.Tanhshrink()],
    "_threshold": [nn.Threshold(0.1, -2.0), nn.Threshold(0.1, -2.0, inplace=True)],
    "threshold": [lambda x: torch.threshold(x, 0.1, -2.0)],
    "abs": [torch.abs, abs, torch.abs_],
    "absolute": [torch.absolute],
    "clamp": [lambda x: x.clamp(-0.5, 0.5), lambda x: torch.clamp(input=x, min=0), lambda x: x.clamp_(max=0.3)],
    "clamp_min": [lambda x: x.clamp_min(0.1)],
    "clamp_max": [lambda x: x.clamp_max(0.1)],
    "clip": [lambda x: torch.clip(x, -1, 0)],
    "sigmoid": [torch.sigmoid, F.sigmoid, Tensor.sigmoid_],
    "tanh": [torch.tanh, F.tanh],
    "exp": [torch.exp, Tensor.exp_],
    "expm1": [torch.expm1],
    "exp2": [torch.exp2],
    "log": [lambda x: torch.log(x.abs() + 0.1)],
    "log1p": [lambda x: torch.log1p(x.abs())],
    "log2": [lambda x: torch.log2(x.abs() + 0.1)],
    "log10": [lambda x: torch.log10(x.abs() + 0.1)],
    "sqrt": [lambda x: torch.sqrt(x.abs() + 1e-6)],
    "rsqrt": [lambda x: torch.rsqrt(x.abs() + 1e-2)],
    "square": [torch.square],
    "reciprocal": [lambda x: torch.reciprocal(x.abs() + 0.01)],
    "pow": [lambda x: torch.pow(x, 3), lambda x: x**2, lambda x: torch.pow(2.0, x), lambda x: x.pow_(2)],
    "__pow__": [lambda x: Tensor.__pow__(x, 2)],
    "__rpow__": [lambda x: 2**x],
    "__rtruediv__": [lambda x: 1 / (x.abs() + 0.1)],
    "__rdiv__": [lambda x: 3 / (x.abs() + 0.1)],
    "sin": [torch.sin],
    "cos": [torch.cos],
    "atan": [torch.atan],
    "erf": [torch.erf],
    "erfc": [torch.erfc],
    "softplus": [nn.Softplus()],
    "silu": [nn.SiLU(), nn.SiLU(inplace=True)],
    "gelu": [nn.GELU(), nn.GELU("tanh")],
    "mish": [nn.Mish()],
    "elu": [nn.ELU(0.5), nn.ELU(inplace=True)],
    "selu": [nn.SELU()],
    "celu": [nn.CELU(0.7)],
    "log_sigmoid": [nn.LogSigmoid()],
    "softsign": [nn.Softsign()],
}


def test_every_elementwise_function_is_tested() -> None:
    assert set(ONE_ELEMENT) == rules.ELEMENTWISE


@pytest.mark.parametrize("name", ONE_ELEMENT)
def test_elementwise_multiplier_is_the_slope_of_the_secant(name: str) -> None:
    x, reference = seeded(2, 3, 4, seed=1) * 3, seeded(2, 3, 4, seed=2) * 3
    for f in ONE_ELEMENT[name]:
        found = multiplier(f, x, reference)
        by_hand = torch.empty_like(x)
        for i in range(x.numel()):
            a, b = x.flatten()[i : i + 1], reference.flatten()[i : i + 1]
            by_hand.view(-1)[i : i + 1] = (f(a.clone()) - f(b.clone())).detach() / (a - b)
        torch.testing.assert_close(found, by_hand, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ONE_ELEMENT)
def test_elementwise_multiplier_without_change_is_the_gradient(name: str) -> None:
    x = seeded(2, 3, 4, seed=1)
    for f in ONE_ELEMENT[name]:
        image = x.clone().requires_grad_()
        gradient = torch.autograd.grad(f(image.clone()).sum(), image)[0]
        torch.testing.assert_close(multiplier(f, x, x), gradient)


@pytest.mark.parametrize("distance", [1e-1, 1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize(
    "name", sorted(set(ONE_ELEMENT) - {"threshold", "_threshold", "hardshrink"})
)  # those two have jumps
def test_single_precision_multipliers_are_not_noisy(name: str, distance: float) -> None:
    """Every multiplier lies within the slopes that the function has between the two points (mean value theorem)."""
    x = seeded(4000, seed=1) * 2
    reference = x + distance * seeded(4000, seed=2)
    x, reference = x.float(), reference.float()
    for f in ONE_ELEMENT[name]:
        if isinstance(f, nn.PReLU):
            continue  # its weight is float64; the functional form is tested
        exact = multiplier(f, x.double(), reference.double())
        found = multiplier(f, x, reference)
        steepest = exact.abs().clamp(min=1e-2)
        worst = ((found - exact).abs() / steepest).max()
        assert worst < 2e-2, f"{name}: off by {float(worst):.1%}"
        change = f(x.double().clone()) - f(reference.double().clone())
        rounding = 16 * torch.finfo(torch.float32).eps * (f(x.clone()).abs() + x.abs() + 1)
        assert ((found.double() * (x.double() - reference.double()) - change).abs() <= rounding).all()


# --------------------------------------------------------------------------------------------------- products

A_MATRIX = seeded(4, 4, seed=7)

PRODUCTS: dict[str, Function] = {
    "mul": lambda x: torch.mul(x, torch.tanh(x)),
    "multiply": lambda x: torch.multiply(x, other=x.sigmoid()),
    "__mul__": lambda x: Tensor.__mul__(x, x),
    "__rmul__": lambda x: Tensor.__rmul__(x, x.exp()),
    "matmul": lambda x: torch.matmul(x, x.transpose(-1, -2)),
    "__matmul__": lambda x: x.tanh() @ x,
    "__rmatmul__": lambda x: Tensor.__rmatmul__(x, x.tanh()),
    "mm": lambda x: torch.mm(x[0], mat2=x[1].tanh()),
    "bmm": lambda x: torch.bmm(x, x),
    "einsum": lambda x: torch.einsum("bij,bkj->bik", x, x.tanh()) + torch.einsum("bij,bjk->bik", [x, x]),
}


def test_every_product_is_tested() -> None:
    assert set(PRODUCTS) == rules.PRODUCTS


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_complete(name: str) -> None:
    assert_complete(PRODUCTS[name], seeded(2, 4, 4, seed=1), seeded(2, 4, 4, seed=2))


def test_a_product_splits_by_the_midpoint_rule() -> None:
    """Δ(ab) = Δa (b + b̄)/2 + Δb (a + ā)/2, checked entry by entry on matrices."""
    x, reference, upstream = seeded(2, 3, 3, seed=1), seeded(2, 3, 3, seed=2), seeded(3, 3, seed=3)
    found = multiplier(lambda x: x[0] @ x[1], x, reference, upstream)
    by_hand = torch.zeros_like(x)
    for i in range(3):
        for j in range(3):
            for k in range(3):  # (AB)_ij = Σ_k A_ik B_kj
                by_hand[0, i, k] += upstream[i, j] * (x[1, k, j] + reference[1, k, j]) / 2
                by_hand[1, k, j] += upstream[i, j] * (x[0, i, k] + reference[0, i, k]) / 2
    torch.testing.assert_close(found, by_hand)


def test_in_place_products() -> None:
    def f(x: Tensor) -> Tensor:
        gate = x.sigmoid()
        x = x + 1
        x *= gate
        x.mul_(gate)
        x /= gate + 2
        return x

    assert_complete(f, seeded(2, 4, 4, seed=1), seeded(2, 4, 4, seed=2))


def test_weights_computed_from_the_image() -> None:
    """A dynamic convolution is a product of map and weight; one with weight norm is linear."""
    base = seeded(4, 3, 3, 3, seed=3).requires_grad_()
    x, reference = seeded(1, 3, 6, 6, seed=1), seeded(1, 3, 6, 6, seed=2)
    assert_complete(lambda x: F.conv2d(x, base.detach() * x.mean().sigmoid(), stride=2), x, reference)
    assert_complete(lambda x: F.linear(x.flatten(1), (base * x.mean()).flatten(1).repeat(1, 4)), x, reference)
    assert_complete(lambda x: F.conv2d(x, base / base.norm(), base.sum((1, 2, 3)) * 2), x, reference)
    found = multiplier(lambda x: F.conv2d(x, base / base.norm()), x, reference)
    torch.testing.assert_close(
        found, F.conv_transpose2d(torch.ones(1, 4, 4, 4).double(), (base / base.norm()).detach())
    )


# ------------------------------------------------------------------------------- normalisation, softmax, attention

WEIGHT, BIAS = seeded(4, seed=8), seeded(4, seed=9)

COMPOSED: dict[str, list[Function]] = {
    "div": [lambda x: x / (x.exp() + 1), lambda x: x / 3, lambda x: torch.div(x, other=x.square() + 1)],
    "divide": [lambda x: torch.divide(x, x.square() + 1)],
    "true_divide": [lambda x: torch.true_divide(x, x.square() + 1)],
    "__truediv__": [lambda x: Tensor.__truediv__(x, x.square() + 1)],
    "layer_norm": [lambda x: F.layer_norm(x, (4,), WEIGHT, BIAS), lambda x: F.layer_norm(x, (4, 4), eps=0.1)],
    "group_norm": [lambda x: F.group_norm(x, 2, WEIGHT, BIAS), lambda x: F.group_norm(x, 1, eps=0.1)],
    "instance_norm": [
        lambda x: F.instance_norm(x, weight=WEIGHT, bias=BIAS),
        lambda x: F.instance_norm(x, BIAS, WEIGHT.abs(), use_input_stats=False),
    ],
    "rms_norm": [lambda x: F.rms_norm(x, (4,), WEIGHT), lambda x: F.rms_norm(x, (4,), eps=0.1)],
    "local_response_norm": [lambda x: F.local_response_norm(x, 3, alpha=0.5, beta=0.6, k=1.2), nn.LocalResponseNorm(2)],
    "normalize": [lambda x: F.normalize(x, dim=1), lambda x: F.normalize(x, dim=-1)],
    "scaled_dot_product_attention": [
        lambda x: F.scaled_dot_product_attention(x, x.tanh(), x * 2),
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3),
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=A_MATRIX),
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=A_MATRIX > -0.5),
    ],
    "multi_head_attention_forward": [lambda x: HEADS(x, x.tanh(), x * 2)[0], lambda x: HEADS_NO_BIAS(x, x, x)[0]],
}
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(3)
    HEADS, HEADS_NO_BIAS = (nn.MultiheadAttention(4, 2, bias=bias, batch_first=bias).double() for bias in (True, False))
    HEADS.in_proj_bias.data.uniform_(-0.5, 0.5)


def test_every_composed_function_is_tested() -> None:
    assert set(COMPOSED) == set(rules._COMPOSED)


@pytest.mark.parametrize("name", COMPOSED)
def test_composed_functions_are_complete(name: str) -> None:
    for f in COMPOSED[name]:
        assert_complete(f, seeded(2, 4, 4, seed=1), seeded(2, 4, 4, seed=2))
        assert_complete(f, seeded(2, 4, 4, seed=1), torch.zeros(2, 4, 4, dtype=torch.float64) + 1e-3)


@pytest.mark.parametrize("name", [*COMPOSED, "softmax"])
def test_composed_functions_without_change_have_their_gradient(name: str) -> None:
    x = seeded(2, 4, 4, seed=1)
    for f in COMPOSED.get(name, [lambda x: x.softmax(-1)]):
        upstream = seeded(*f(x).shape, seed=5)
        image = x.clone().requires_grad_()
        gradient = torch.autograd.grad(f(image), image, upstream)[0]
        torch.testing.assert_close(multiplier(f, x, x, upstream), gradient)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_softmax_is_complete_and_equals_its_three_steps(scale: float) -> None:
    """top = max x by the max-pool rule, e = exp(x - top) and r = 1/Σe by the secant, e·r by the midpoint."""
    x, reference, upstream = seeded(2, 5, seed=1) * scale, seeded(2, 5, seed=2) * scale, seeded(2, 5, seed=3)
    for f in (lambda x: x.softmax(-1), lambda x: F.softmax(x, 1), nn.Softmax(1), lambda x: torch.softmax(x, dim=0)):
        assert_complete(f, x, reference)
    by_hand = torch.zeros_like(x)
    for n in range(2):
        u, u_ref = x[n] - x[n].max(), reference[n] - reference[n].max()
        e, e_ref = u.exp(), u_ref.exp()
        r, r_ref = 1 / e.sum(), 1 / e_ref.sum()
        for i in range(5):
            slope_e = (e[i] - e_ref[i]) / (u[i] - u_ref[i]) if u[i] != u_ref[i] else e[i]
            slope_r = -r * r_ref  # (1/a - 1/b) / (a - b) = -1/(ab), also where a and b are equal
            through_sum = (upstream[n] * (e + e_ref) / 2).sum() * slope_r
            by_hand[n, i] = (upstream[n, i] * (r + r_ref) / 2 + through_sum) * slope_e
        change, p, q = -by_hand[n].sum(), x[n].argmax(), reference[n].argmax()  # of the score, per unit of the maximum
        highest = max(x[n, p], reference[n, q])
        by_hand[n, p] += change * (highest - reference[n, q]) / (x[n, p] - reference[n, p])
        by_hand[n, q] += change * (x[n, p] - highest) / (x[n, q] - reference[n, q])
    torch.testing.assert_close(multiplier(lambda x: x.softmax(1), x, reference, upstream), by_hand)


def test_softmax_in_single_precision_close_to_the_baseline() -> None:
    x = seeded(50, 8, seed=1) * 3
    reference, upstream = x + 1e-5 * seeded(50, 8, seed=2), seeded(50, 8, seed=3)
    exact = multiplier(lambda x: x.softmax(1), x, reference, upstream)
    found = multiplier(lambda x: x.softmax(1), x.float(), reference.float(), upstream.float())
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-5)


def test_softmax_keeps_the_dtype_that_is_asked_for() -> None:
    found = multiplier(
        lambda x: F.softmax(x, 1, dtype=torch.float64), seeded(2, 5).float(), seeded(2, 5, seed=1).float()
    )
    assert found.dtype == torch.float32


# ------------------------------------------------------------------------------------------------- linear functions

LINEAR: dict[str, Function] = {
    **{
        f"{kind}{d}d": lambda x, name=f"{kind}{d}d", d=d: getattr(F, name)(
            x.view(1, 2, *[16, 4][d - 1 : d] * d)[..., :4], K[d]
        )
        for kind in ("conv", "conv_transpose")
        for d in (1, 2)
    },
    "conv3d": lambda x: F.conv3d(x.view(1, 2, 2, 2, 4), seeded(2, 2, 1, 1, 1)),
    "conv_transpose3d": lambda x: F.conv_transpose3d(x.view(1, 2, 2, 2, 4), seeded(2, 2, 1, 1, 1)),
    "linear": lambda x: F.linear(x, A_MATRIX, WEIGHT),
    "addmm": lambda x: torch.addmm(WEIGHT, x[0], A_MATRIX),
    "batch_norm": lambda x: F.batch_norm(x, BIAS, WEIGHT.abs(), WEIGHT, BIAS),
    "avg_pool1d": lambda x: F.avg_pool1d(x, 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool3d": lambda x: F.avg_pool3d(x.view(1, 1, 2, 4, 4), 2),
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x, 3),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 3),
    "adaptive_avg_pool3d": lambda x: F.adaptive_avg_pool3d(x.view(1, 1, 2, 4, 4), 1),
    "add": lambda x: torch.add(x, x, alpha=2),
    "sub": lambda x: torch.sub(2, x),
    "subtract": lambda x: torch.subtract(x, 1),
    "neg": torch.neg,
    "negative": torch.negative,
    "positive": torch.positive,
    "rsub": lambda x: torch.rsub(x, 1),
    "__add__": lambda x: Tensor.__add__(x, x),
    "__radd__": lambda x: 1 + x,
    "__sub__": lambda x: Tensor.__sub__(x, 1),
    "__rsub__": lambda x: 1 - x,
    "__neg__": lambda x: -x,
    "__pos__": lambda x: +x,
    "cat": lambda x: torch.cat([x, 2 * x], 1),
    "concat": lambda x: torch.concat([x, x]),
    "concatenate": lambda x: torch.concatenate([x, x]),
    "stack": lambda x: torch.stack([x, x]),
    "hstack": lambda x: torch.hstack([x, x]),
    "vstack": lambda x: torch.vstack([x, x]),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "ravel": torch.ravel,
    "view": lambda x: x.view(4, 8),
    "view_as": lambda x: x.view_as(torch.empty(8, 4)),
    "reshape": lambda x: x.reshape(4, -1),
    "reshape_as": lambda x: x.reshape_as(torch.empty(8, 4)),
    "permute": lambda x: x.permute(2, 0, 1),
    "transpose": lambda x: x.transpose(0, 1),
    "t": lambda x: x[0].t(),
    "swapaxes": lambda x: x.swapaxes(0, 1),
    "swapdims": lambda x: x.swapdims(0, 1),
    "movedim": lambda x: x.movedim(0, 1),
    "moveaxis": lambda x: x.moveaxis(0, 1),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "expand": lambda x: x.expand(3, 2, 4, 4),
    "expand_as": lambda x: x.expand_as(torch.empty(3, 2, 4, 4)),
    "broadcast_to": lambda x: x.broadcast_to(3, 2, 4, 4),
    "repeat": lambda x: x.repeat(1, 2, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "tile": lambda x: x.tile(2),
    "contiguous": lambda x: x.transpose(0, 1).contiguous(),
    "clone": torch.clone,
    "to": lambda x: x.to("cpu"),
    "type": lambda x: x.type(torch.float64),
    "type_as": lambda x: x.type_as(WEIGHT),
    "float": lambda x: x + 0 * x.float(),
    "double": Tensor.double,
    "half": lambda x: x + 0 * x.half(),
    "bfloat16": lambda x: x + 0 * x.bfloat16(),
    "cuda": lambda x: x.cuda() if torch.cuda.is_available() else x,
    "cpu": Tensor.cpu,
    "roll": lambda x: x.roll(1, 2),
    "flip": lambda x: x.flip(1),
    "rot90": lambda x: torch.rot90(x, 1, (1, 2)),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), mode="constant", value=2.0) + F.pad(x, (1, 2, 0, 1), mode="reflect"),
    "mean": lambda x: x.mean(1),
    "sum": lambda x: x.sum((1, 2)),
    "cumsum": lambda x: x.cumsum(1),
    "diff": lambda x: x.diff(),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "select": lambda x: x.select(1, 2),
    "index_select": lambda x: x.index_select(1, torch.tensor([2, 0])),
    "gather": lambda x: x.gather(1, torch.tensor([[[2, 0, 1, 3]], [[0, 0, 1, 2]]])),
    "take_along_dim": lambda x: torch.take_along_dim(x, torch.tensor([[[2, 0, 1, 3]]]), 1),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: x.split(3, 1)[1],
    "tensor_split": lambda x: x.tensor_split(3, 1)[0],
    "unbind": lambda x: x.unbind(1)[2],
    "__getitem__": lambda x: x[:, [0, 2], ::2] + x[:, torch.tensor([1, 3]), 1::2],
    "__setitem__": lambda x: set_item(x),
    "copy_": lambda x: torch.zeros(2, 4, 4, dtype=x.dtype).copy_(x),
    "masked_fill": lambda x: x.masked_fill(A_MATRIX > 0, 3.0),
    "where": lambda x: torch.where(A_MATRIX > 0, x, 2 * x),
    "interpolate": lambda x: F.interpolate(x[None], scale_factor=2, mode="bilinear"),
    "upsample": lambda x: F.upsample(x[None], scale_factor=2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.view(8, 2, 2), 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x.transpose(0, 1)[None], 2),
    "unfold": lambda x: F.unfold(x[None], 2) + x.unfold(2, 2, 1).mean(),
    "fold": lambda x: F.fold(x.view(1, 8, 4), (3, 3), 2),
    **{
        name: lambda x, name=name: getattr(F, name)(x[None], training=False)
        for name in "dropout dropout2d dropout3d alpha_dropout feature_alpha_dropout".split()
    },
    "dropout1d": lambda x: F.dropout1d(x, training=False),
    "feature_dropout": lambda x: torch.feature_dropout(x, 0.5, False),
    "grid_sample": lambda x: F.grid_sample(x[None], A_MATRIX.view(1, 2, 4, 2).tanh(), align_corners=False),
    "diagonal": lambda x: x.diagonal(dim1=1, dim2=2),
    "tril": torch.tril,
    "triu": torch.triu,
    "__get__": lambda x: x.mT,
    "as_strided": lambda x: x.contiguous().as_strided((2, 2), (1, 2)),
}
K = {1: seeded(2, 2, 3), 2: seeded(2, 2, 3, 3)}


def set_item(x: Tensor) -> Tensor:
    y = torch.zeros(2, 5, 4, dtype=x.dtype)
    y[:, 1:] = x
    return y


@pytest.mark.parametrize("name", sorted(set(LINEAR) | rules.LINEAR))
@pytest.mark.filterwarnings("ignore:`nn.functional.upsample` is deprecated")
def test_linear_functions_are_linear(name: str) -> None:
    assert_complete(LINEAR[name], seeded(2, 4, 4, seed=1), seeded(2, 4, 4, seed=2))


# ------------------------------------------------------------------------------------------------------ max-pooling


def max_pool_by_hand(x: Tensor, reference: Tensor, size: int, stride: int, upstream: Tensor) -> Tensor:
    """DeepLift's max-pool rule for one channel (H, W), window by window."""
    given = torch.zeros_like(x)
    for i in range(upstream.shape[0]):
        for j in range(upstream.shape[1]):
            window = [(i * stride + a, j * stride + b) for a in range(size) for b in range(size)]
            p = max(window, key=lambda at: float(x[at]))
            q = max(window, key=lambda at: float(reference[at]))
            highest = max(x[p], reference[q])
            given[p] += upstream[i, j] * (highest - reference[q])
            given[q] += upstream[i, j] * (x[p] - highest)
    return given / (x - reference)


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2), (3, 1)])
def test_max_pool_equals_the_rule_window_by_window(size: int, stride: int) -> None:
    x, reference = seeded(1, 1, 7, 7, seed=1), seeded(1, 1, 7, 7, seed=2)
    pooled = F.max_pool2d(x, size, stride)
    upstream = seeded(*pooled.shape, seed=3)
    by_hand = max_pool_by_hand(x[0, 0], reference[0, 0], size, stride, upstream[0, 0])
    for f in (nn.MaxPool2d(size, stride), lambda x: torch.max_pool2d(x, size, stride)):
        torch.testing.assert_close(multiplier(f, x, reference, upstream)[0, 0], by_hand)


MAX_POOLS: dict[str, Function] = {
    "overlapping, padded": nn.MaxPool2d(3, 2, 1),
    "dilated": nn.MaxPool2d(2, dilation=2),
    "ceil mode": nn.MaxPool2d(2, ceil_mode=True),
    "adaptive": nn.AdaptiveMaxPool2d((2, 3)),
    "1d": lambda x: F.max_pool1d(x.flatten(2), 3, 2),
    "3d": lambda x: F.max_pool3d(x, 2, 1),
    "after a ReLU": nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)),
}


@pytest.mark.parametrize("name", MAX_POOLS)
def test_max_pool_is_complete_with_multipliers_between_0_and_1(name: str) -> None:
    f = MAX_POOLS[name]
    x, reference = seeded(2, 3, 7, 7, seed=1), seeded(2, 3, 7, 7, seed=2)
    reference[..., ::2, :] = x[..., ::2, :]  # half of the positions do not change
    assert_complete(f, x, reference)
    for i in range(f(x).numel()):
        one = torch.zeros_like(f(x))
        one.view(-1)[i] = 1
        found = multiplier(f, x, reference, one)
        assert found.min() >= 0
        assert found.max() <= 1


def test_max_pool_without_change_has_its_gradient() -> None:
    x, f = seeded(2, 3, 7, 7), nn.MaxPool2d(3, 2, 1)
    image = x.clone().requires_grad_()
    torch.testing.assert_close(multiplier(f, x, x), torch.autograd.grad(f(image).sum(), image)[0])


# ------------------------------------------------------------------------------------------- a whole net by hand


def test_a_tiny_network_by_hand() -> None:
    """One channel: convolution, ReLU, overlapping max-pool, sum. Every multiplier in explicit loops."""
    kernel = seeded(3, 3, seed=4)
    x, reference = seeded(6, 6, seed=1), seeded(6, 6, seed=2)

    def convolve(image: Tensor) -> Tensor:
        return torch.stack(
            [torch.stack([(kernel * image[i : i + 3, j : j + 3]).sum() for j in range(4)]) for i in range(4)]
        )

    before, before_reference = convolve(x), convolve(reference)
    after, after_reference = before.clamp(min=0), before_reference.clamp(min=0)
    weights = seeded(3, 3, seed=6)
    multipliers = max_pool_by_hand(after, after_reference, 2, 1, weights)
    multipliers = torch.where(after == after_reference, 0.0, multipliers)  # closed in both: nothing changes
    multipliers = multipliers * (after - after_reference) / (before - before_reference)
    at_input = torch.zeros_like(x)
    for i in range(4):
        for j in range(4):
            at_input[i : i + 3, j : j + 3] += multipliers[i, j] * kernel

    def network(image: Tensor) -> Tensor:
        maps = F.max_pool2d(F.relu(F.conv2d(image, kernel[None, None])), 2, 1)
        return (maps * weights).sum()

    found = multiplier(network, x[None, None], reference[None, None])
    torch.testing.assert_close(found[0, 0], at_input)


# ----------------------------------------------------------------------------------- refused rather than incomplete


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


REFUSED: dict[str, tuple[Function, str]] = {
    "no rule": (lambda x: torch.special.erfinv(x.tanh()), "no rule for 'special_erfinv'"),
    "no rule, in place": (lambda x: (x + 0).erfinv_(), "no rule for 'erfinv'"),
    "two tensors": (lambda x: (x.abs() + 1) ** x, "'pow' of two tensors"),
    "clamp by a tensor": (lambda x: torch.clamp(x, min=x.mean()), "'clamp' of two tensors"),
    "three factors": (lambda x: torch.einsum("bij,bij,bij->b", x, x, x), "'einsum' has 3"),
    "a mask": (lambda x: torch.where(x > 0, x, 0.1 * x), "'where' by a mask"),
    "boolean indexing": (lambda x: (x + 0).masked_fill_(x < 0, 0.0), "'masked_fill' by a mask"),
    "a factor without gradient": (lambda x: x * (x > 0).double(), "cannot split 'mul'"),
    "a detached gate": (lambda x: x * x.detach().sigmoid(), "cannot split 'mul'"),
    "an autograd.Function": (Custom.apply, "autograd.Function"),
    "batch statistics": (lambda x: F.batch_norm(x, None, None, training=True), "running statistics"),
    "conditional normalisation": (
        lambda x: F.batch_norm(x, BIAS, WEIGHT.abs(), x.mean((0, 2)), BIAS),
        "'batch_norm' with arguments",
    ),
    "a grid": (lambda x: F.grid_sample(x[None], x[:1, :, :2].tanh()[None], align_corners=False), "'grid_sample'"),
    "max-pool with indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], "'max_pool2d_with_indices'"),
    "adaptive max-pool with indices": (lambda x: torch.adaptive_max_pool1d(x, 2)[0], "returns indices"),
    "several outputs": (lambda x: x.max(1).values, "no rule for 'max'"),
    "integer division": (lambda x: torch.div(x, 2, rounding_mode="floor"), "rounding_mode='floor'"),
    "1-norm": (lambda x: F.normalize(x, p=1), "2-norm"),
    "softmax without dim": (lambda x: F.softmax(x), "dim"),
    "attention with a mask": (lambda x: HEADS(x, x, x, attn_mask=A_MATRIX > 0)[0], "attn_mask"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_what_would_be_incomplete_is_refused(case: str) -> None:
    f, message = REFUSED[case]
    with pytest.raises(NotImplementedError, match=message) as error:
        multiplier(f, seeded(2, 4, 4, seed=1), seeded(2, 4, 4, seed=2))
    assert "\n" not in str(error.value)


class OtherPath(nn.Module):
    """Its control flow depends on the image."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.bright, self.dark = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        is_bright = bool(x.mean() > 0)
        if self.kind == "weights":
            return (self.bright if is_bright else self.dark)(x).relu().mean((2, 3))
        x = self.bright(x).relu()
        if is_bright == (self.kind == "longer"):
            x = x.tanh()
        return (x.tanh() if self.kind == "other" and is_bright else x.sigmoid()).mean((2, 3))


@pytest.mark.parametrize("kind", ["weights", "longer", "shorter", "other"])
def test_data_dependent_control_flow_is_refused(kind: str, x: Tensor) -> None:
    with pytest.raises(RuntimeError, match="another path on the image than on the baseline") as error:
        sal.explain(OtherPath(kind).double(), x.abs(), 1, "input", fix=None, baseline=-x.abs())
    assert "\n" not in str(error.value)


def test_a_rule_without_reference_says_so() -> None:
    with pytest.raises(RuntimeError, match="on the baseline first"), DeepLift():
        torch.relu(seeded(3).requires_grad_())


def test_a_rule_can_be_used_again(network: nn.Module, x: Tensor, reference: Tensor) -> None:
    rule = DeepLift()
    for baseline in (reference, torch.zeros_like(x)):
        sal.capture(network, baseline, "input", 1, rule.reference())
        found = sal.capture(network, x, "input", 1, rule).gradients["input"] * (x - baseline)
        again = sal.capture(network, x, "input", 1, rule).gradients["input"] * (x - baseline)
        expected = sal.explain(network, x, 1, "input", fix=None, baseline=baseline)["input"]
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(again, expected)


class Stochastic(nn.Module):
    """Monte-Carlo dropout, active in evaluation mode too, after an in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.relu(self.conv(x)).mean((2, 3)), 0.5, training=True))


def test_a_network_that_draws_random_numbers_is_explained_at_one_draw(x: Tensor) -> None:
    model = Stochastic().double()
    torch.manual_seed(4)
    found = sal.explain(model, x, 1, fix=None)
    scores = []
    for images in (x, torch.zeros_like(x)):
        torch.manual_seed(4)
        scores.append(model(images)[:, 1])
    for attribution in found.values():
        torch.testing.assert_close(attribution.sum((1, 2, 3)), scores[0] - scores[1])


# -------------------------------------------------------------------------------------- guided backprop, deconvnet


def rectifier_by_hand(gradient: Tensor, x: Tensor, name: str) -> Tensor:
    gate = ((x > 0) if name == "guided_backprop" else torch.ones_like(x)).to(x)
    return gradient * gate * (gradient > 0)


@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet"])
@pytest.mark.parametrize(
    "relu", [F.relu, torch.relu, nn.ReLU(inplace=True), torch.relu_, lambda x: torch.relu(input=x), Tensor.relu]
)
def test_rectifier_rules(name: str, relu: Function) -> None:
    x, upstream = seeded(4, 5, seed=1), seeded(4, 5, seed=2)
    image = x.clone().requires_grad_()
    with GuidedBackprop() if name == "guided_backprop" else Deconvnet() as rule:
        output = relu(image * 2)
    assert rule.met == 1
    found = torch.autograd.grad(output, image, upstream)[0]
    torch.testing.assert_close(found, 2 * rectifier_by_hand(upstream, x, name))


@pytest.mark.parametrize("relu6", [F.relu6, nn.ReLU6(), nn.ReLU6(inplace=True), nn.Hardtanh(0.0, 6.0)])
def test_relu6_is_closed_above_six(relu6: Function) -> None:
    image = torch.tensor([-1.0, 3.0, 7.0, 3.0], requires_grad=True)
    upstream = torch.tensor([1.0, 1.0, 1.0, -1.0])
    with GuidedBackprop() as rule:
        output = relu6(image.clone())
    assert rule.met == 1
    assert torch.autograd.grad(output, image, upstream)[0].tolist() == [0.0, 1.0, 0.0, 0.0]


def test_other_functions_keep_their_gradient() -> None:
    image = seeded(5).requires_grad_()
    for f in (torch.tanh, nn.Hardtanh(), nn.LeakyReLU(), nn.GELU()):
        with GuidedBackprop() as rule:
            output = f(image)
        assert rule.met == 0
        upstream = seeded(5, seed=2)
        plain = torch.autograd.grad(f(image), image, upstream)[0]
        assert torch.equal(torch.autograd.grad(output, image, upstream)[0], plain)


# ------------------------------------------------------------------------------------------------------- captum


class Friendly(nn.Module):
    """A network as captum wants it: a ReLU module for each use, max-pooling between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)
        self.conv2, self.relu2 = nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU()
        self.conv3, self.act3 = nn.Conv2d(6, 6, 3, 1, 1), nn.Sigmoid()
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.conv2(self.pool(self.conv1(x))))
        return self.head((x + self.act3(self.conv3(x))).mean((2, 3)))


@pytest.fixture
def friendly() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Friendly().double().eval()


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks", "ignore:Input Tensor 0 did not already")
@pytest.mark.parametrize("random_baseline", [False, True])
def test_deeplift_equals_captum(friendly: nn.Module, x: Tensor, reference: Tensor, random_baseline: bool) -> None:
    baseline = reference if random_baseline else torch.zeros_like(x)
    ours = sal.explain(friendly, x, 2, ["input", "conv1", "pool", "conv2"], fix=None, baseline=baseline)
    at_input = captum.attr.DeepLift(friendly).attribute(x, baseline, 2)
    torch.testing.assert_close(ours["input"], at_input)
    for name in ("conv1", "pool", "conv2"):
        layer = friendly.get_submodule(name)
        theirs = captum.attr.LayerDeepLift(friendly, layer).attribute(x, baseline, 2)
        torch.testing.assert_close(ours[name], theirs, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.filterwarnings("ignore:Setting backward hooks", "ignore:Input Tensor 0 did not already")
@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet"])
def test_rectifier_rules_equal_captum(name: str, friendly: nn.Module, x: Tensor) -> None:
    theirs = {"guided_backprop": captum.attr.GuidedBackprop, "deconvnet": captum.attr.Deconvolution}[name]
    ours = sal.explain(friendly, x, 2, "input", name, fix=None)["input"]
    torch.testing.assert_close(ours, theirs(friendly).attribute(x, 2))


def test_integrated_gradients_equal_captum(friendly: nn.Module, x: Tensor, reference: Tensor) -> None:
    ours = sal.explain(friendly, x, 2, "input", "integrated_gradients", fix=None, baseline=reference, steps=40)["input"]
    theirs = captum.attr.IntegratedGradients(friendly).attribute(
        x, reference, 2, n_steps=41, method="riemann_trapezoid"
    )
    # captum counts the points, of which there is one more than pieces, and divides by them: its weights sum to 40/41.
    torch.testing.assert_close(ours, theirs * 41 / 40)


def test_hidden_integrated_gradients_approach_captums_conductance(
    friendly: nn.Module, x: Tensor, reference: Tensor
) -> None:
    ours = sal.explain(friendly, x, 2, "conv2", "integrated_gradients", fix=None, baseline=reference, steps=100)[
        "conv2"
    ]
    theirs = captum.attr.LayerConductance(friendly, friendly.conv2).attribute(x, reference, target=2, n_steps=100)
    assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()


@pytest.mark.parametrize("layer", ["conv1", "relu2"])
def test_grad_cam_equals_captum(layer: str, friendly: nn.Module, x: Tensor) -> None:
    ours = sal.explain(friendly, x, 2, layer, "grad_cam", fix=None)[layer]
    theirs = captum.attr.LayerGradCam(friendly, friendly.get_submodule(layer)).attribute(x, 2, relu_attributions=True)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks", "ignore:Input Tensor 0 did not already")
def test_captum_is_incomplete_where_ours_is_not(x: Tensor, reference: Tensor) -> None:
    """The reason this library has a DeepLift of its own; when captum is repaired, the book must say so."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(144, 5)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        change = (model(x) - model(reference))[:, 1]
    ours = sal.explain(model, x, 1, "input", fix=None, baseline=reference)["input"]
    torch.testing.assert_close(ours.sum((1, 2, 3)), change, rtol=1e-8, atol=0)
    theirs = captum.attr.DeepLift(model).attribute(x, reference, 1).detach()
    assert not torch.allclose(theirs.sum((1, 2, 3)), change, rtol=0.01)
