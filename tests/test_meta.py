"""Meta-saliency against steps that are taken by hand, and against finite differences of the network after the step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, build
from torch import Tensor, nn
from torch.func import functional_call

import smoothsal_lib as sal
from smoothsal_lib.explain import METHODS
from smoothsal_lib.fixes import Fix, Surrogate
from smoothsal_lib.layers import INPUT
from smoothsal_lib.meta import MetaStep, capture_stepped, stepped
from smoothsal_lib.rules import Deconvnet, GuidedBackprop
from smoothsal_lib.sampling import SmoothGrad

RATE = 0.05
FIXES = (None, "forward", "forward:paper", "surrogate")  # those that change what the network computes, if anything
SECOND_ORDER = (
    "gradient",
    "gradient_x_activation",
    "guided_backprop",
    "deconvnet",
    "grad_cam",
    "grad_cam++",
    "layer_cam",
    "linear_approximation",
    "normgrad",
    "normgrad_selective",
    "conv3x3+l2",
    "guided_backprop+bias+sum",
)
TARGET = torch.tensor([4, 0, 2])

# What a layer's last call returned, to what goes on in its place.
Change = Callable[[Tensor], Tensor]


def scores(model: nn.Module, x: Tensor, layer: str, change: Change, parameters: Any = None) -> Tensor:
    """Logits of ``model``, with the output of ``layer`` changed; ``parameters`` stand in for its own."""
    run = model if parameters is None else lambda images: functional_call(model, parameters, (images,))
    if layer == INPUT:
        return run(change(x.clone()))
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: change(output))
    try:
        return run(x.clone())
    finally:
        handle.remove()


def after_a_step(model: nn.Module, x: Tensor, target: Tensor, rate: float, layer: str, change: Change) -> float:
    """f_c(x; θ'(x)) by steps that anyone would take: the parameters are overwritten, and put back."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(
        F.cross_entropy(scores(model, x, layer, change), target), parameters, allow_unused=True
    )
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter -= rate * gradient
        score = float(scores(model, x, layer, change)[0, target])
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
    return score


def slowly(model: nn.Module, x: Tensor, target: Tensor, rate: float, layer: str) -> Tensor:
    """The total derivative by one zero that is added in both passes, through a step written out."""
    like = sal.capture(model, x, layer, target).gradients[layer]
    zero = torch.zeros_like(like).requires_grad_()
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    loss = F.cross_entropy(scores(model, x, layer, lambda value: value + zero, parameters), target)
    gradients = torch.autograd.grad(loss, parameters.values(), create_graph=True, allow_unused=True)
    new = {
        name: p if gradient is None else p - rate * gradient
        for (name, p), gradient in zip(parameters.items(), gradients, strict=True)
    }
    score = scores(model, x, layer, lambda value: value + zero, new)[0, target].sum()
    return torch.autograd.grad(score, zero)[0]


def repaired(model: nn.Module, fix: str | None) -> AbstractContextManager[Any]:
    if fix == "surrogate":
        return sal.smoothed(model, Surrogate.of(model))
    return sal.smoothed(model, fix)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


# ----------------------------------------------------------------------------------------------- second order


@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "attention"], indirect=True)
def test_the_total_derivative_written_out(network: nn.Module, x: Tensor) -> None:
    one, target = x[:1], TARGET[:1]
    found = capture_stepped(network, one, "all", target, RATE)
    assert list(found.gradients) == list(found.activations) == list(sal.hidden_layers(network, one))
    with stepped(network, one, target, RATE):  # the network that is explained has learnt
        assert_same(found.activations, sal.capture(network, one, "all", target).activations)
    plain = sal.capture(network, one, "all", target)
    for name, gradient in found.gradients.items():
        if name == "relu":  # called twice: the last call counts, which a hook does not know
            continue
        expected = slowly(network, one, target, RATE, name)
        torch.testing.assert_close(gradient, expected, msg=lambda m, n=name: f"{n}: {m}")
        assert float((gradient - plain.gradients[name]).norm()) > 1e-4 * float(gradient.norm())
    at_input = capture_stepped(network, one, INPUT, target, RATE).gradients[INPUT]
    torch.testing.assert_close(at_input, slowly(network, one, target, RATE, INPUT))


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        *[("average_pool", fix) for fix in FIXES],
        *[("residual", fix) for fix in FIXES],
        ("in_place_vgg", None),
        ("functional", None),
        ("squeeze_excite", "surrogate"),
        ("attention", None),
        ("layer_norm", "forward"),
        ("patchify", None),
    ],
)
def test_finite_differences(name: str, fix: str | None, x: Tensor) -> None:
    """A little is added to a unit in both passes, and the network learns something else and answers something else."""
    model, one, target, delta = build(name), x[1:2], TARGET[1:2], 1e-5
    layers = [INPUT, *sal.hidden_layers(model, one)]
    with repaired(model, fix):
        found = capture_stepped(model, one, layers, target, RATE)
        before = sal.capture(model, one, layers, target).activations
        for layer, gradient in found.gradients.items():
            # A unit at 0 may be one of several that a max pooling takes for the largest: a kink.
            alive = (found.activations[layer] != 0) & (before[layer] != 0)
            ascending = gradient.abs().where(alive, -1).flatten().argsort()
            for unit in ascending[[-1, -(int(alive.sum()) // 4)]].tolist():
                push = torch.zeros(gradient.shape, dtype=torch.float64)
                push.view(-1)[unit] = delta
                up, down = (
                    after_a_step(model, one, target, RATE, layer, lambda value, p=sign * push: value + p)
                    for sign in (1, -1)
                )
                measured = (up - down) / (2 * delta)
                assert float(gradient.flatten()[unit]) == pytest.approx(measured, rel=1e-5, abs=1e-8), (layer, unit)


def blur_matrix(size: int, form: str) -> Tensor:
    """What a backward hook does to a gradient along one axis, at stride 2, as a matrix (size, size)."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        taps = {i - 1: 0.25, i: 0.5, i + 1: 0.25} if form == "centred" else {i: 0.5, i - 1: 0.5}
        for j, weight in taps.items():
            matrix[i, min(max(j, 0), size - 1) if form == "centred" else j % size] += weight
    return matrix


class Straight(nn.Module):
    """The network "functional" with backward hooks of its own: x + (B x - B x), one B of which is differentiated."""

    def __init__(self, form: str) -> None:
        super().__init__()
        plain = build("functional")
        self.first, self.second, self.head, self.form = plain.first, plain.second, plain.head, form

    def hand_down(self, x: Tensor) -> Tensor:
        rows, columns = (blur_matrix(size, self.form).mT for size in x.shape[2:])
        blurred = rows @ x @ columns.mT
        return x.detach() + blurred - blurred.detach()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(self.hand_down(x)))
        return self.head(F.relu(self.second(self.hand_down(x))).mean((2, 3)))


@pytest.mark.parametrize("form", ["centred", "paper"])
def test_under_the_backward_hook(form: str, x: Tensor) -> None:
    """Its derivative is deliberately another than that of what is computed, in both passes and through the step."""
    model, one, target = build("functional"), x[:1], TARGET[:1]
    straight = Straight(form)
    torch.testing.assert_close(straight(one), model(one))
    with sal.smoothed(model, "backward" if form == "centred" else "backward:paper"):
        found = capture_stepped(model, one, [INPUT, "first", "second"], target, RATE).gradients
    for layer, gradient in found.items():
        torch.testing.assert_close(gradient, slowly(straight, one, target, RATE, layer))
    unrepaired = capture_stepped(model, one, [INPUT, "first", "second"], target, RATE).gradients
    assert not torch.allclose(found[INPUT], unrepaired[INPUT])


def coefficient(model: nn.Module, x: Tensor, target: Tensor, through_the_score: bool) -> Tensor:
    """-∂/∂x <∇_θ ℓ(x), ∇_θ f_c(x')> at x' = x: by the first x alone, or by both."""
    image = x.clone().requires_grad_()
    logits = model(image)
    parameters = list(model.parameters())
    of_loss = torch.autograd.grad(F.cross_entropy(logits, target), parameters, create_graph=True)
    again = model(image if through_the_score else x)
    of_score = torch.autograd.grad(again[0, target].sum(), parameters, create_graph=True)
    product = sum((a * b).sum() for a, b in zip(of_loss, of_score, strict=True))
    assert isinstance(product, Tensor)
    return -torch.autograd.grad(product, image)[0]


@pytest.mark.parametrize("network", ["average_pool", "patchify", "functional"], indirect=True)
def test_small_rates(network: nn.Module, x: Tensor) -> None:
    """The map moves by rate times a mixed derivative: all of it against no step, by the step's part against order 1."""
    one, target = x[:1], TARGET[:1]
    plain = sal.capture(network, one, INPUT, target).gradients[INPUT]
    errors: dict[str, list[float]] = {"no step": [], "first order": []}
    for rate in (1e-3, 1e-4):
        second = capture_stepped(network, one, INPUT, target, rate).gradients[INPUT]
        with stepped(network, one, target, rate):
            first = sal.capture(network, one, INPUT, target).gradients[INPUT]
        for kind, other in (("no step", plain), ("first order", first)):
            expected = coefficient(network, one, target, through_the_score=kind == "no step")
            errors[kind].append(float(((second - other) / rate - expected).norm() / expected.norm()))
    for large, small in errors.values():
        assert large < 0.1 and small < 0.2 * large  # the rest is proportional to the rate


# ------------------------------------------------------------------------------------------------- first order


def one_sgd_step(model: nn.Module, x: Tensor, target: Tensor, rate: float, fix: str | Fix | None = None) -> nn.Module:
    copy = deepcopy(model)
    copy.requires_grad_(True)
    optimiser = torch.optim.SGD(copy.parameters(), lr=rate)
    with sal.smoothed(copy, fix):
        F.cross_entropy(copy(x.clone()), target).backward()
    optimiser.step()
    return copy


@pytest.mark.parametrize("method", ["gradient", "deeplift", "integrated_gradients", "normgrad", "weights+l2"])
@pytest.mark.parametrize("network", ["in_place_vgg", "residual", "attention", "dense"], indirect=True)
def test_first_order_explains_the_network_after_one_step_of_sgd(method: str, network: nn.Module, x: Tensor) -> None:
    options: dict[str, Any] = {"method": method, "fix": None, "steps": 2}
    found = sal.explain(network, x, TARGET, meta=MetaStep(RATE, order=1), **options)
    plain = sal.explain(network, x, TARGET, **options)
    for i in range(3):
        one, target = x[i : i + 1], TARGET[i : i + 1]
        other = one_sgd_step(network, one, target, RATE)
        assert_same({n: own[i : i + 1] for n, own in found.items()}, sal.explain(other, one, target, **options))
    assert all(not torch.allclose(found[name], plain[name], rtol=1e-4) for name in found)


@pytest.mark.parametrize("fix", ["backward", "backward:paper", "forward", "forward:paper"])
def test_the_repaired_network_learns(fix: str, x: Tensor) -> None:
    """The step is made by what comes back through the repair."""
    model, one, target = build("residual"), x[:1], TARGET[:1]
    found = sal.explain(model, one, target, method="gradient", fix=fix, meta=MetaStep(RATE, order=1))
    other = one_sgd_step(model, one, target, RATE, fix)
    assert_same(found, sal.explain(other, one, target, method="gradient", fix=fix))


def test_a_step_raises_the_score(x: Tensor) -> None:
    model = build("residual")
    before = model(x[:1])[0].softmax(0)
    for target in range(5):
        with stepped(model, x[:1], torch.tensor([target]), RATE):
            after = model(x[:1])[0].softmax(0)
        assert after[target] > before[target]
    assert torch.equal(model(x[:1])[0].softmax(0), before)


# ------------------------------------------------------------------------------------------------- both orders


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("method", [*METHODS, "conv3x3+l2", "guided_backprop+bias+sum"])
def test_a_step_of_nothing_changes_nothing(method: str, order: int, x: Tensor) -> None:
    model = build("residual")
    if method == "lrp":
        pytest.importorskip("zennit")
    options: dict[str, Any] = {"method": method, "steps": 2}
    if method == "smooth_grad_cam++":
        options["sampling"] = SmoothGrad(n=2)
    step = MetaStep(0, order)
    if order == 2 and method not in (*SECOND_ORDER, "smooth_grad_cam++"):
        with pytest.raises(ValueError, match=r"has no second-order form: use meta=sal.MetaStep\(0, order=1\)$"):
            sal.explain(model, x, TARGET, meta=step, **options)
        return
    assert_same(sal.explain(model, x, TARGET, meta=step, **options), sal.explain(model, x, TARGET, **options))


@pytest.mark.parametrize("order", [1, 2])
def test_pictures_learn_alone(order: int, x: Tensor) -> None:
    model, step = build("residual"), MetaStep(RATE, order)
    together = sal.explain(model, x, TARGET, method="gradient", meta=step)
    for i in range(3):
        alone = sal.explain(model, x[i : i + 1], int(TARGET[i]), method="gradient", meta=step)
        assert_same({name: own[i : i + 1] for name, own in together.items()}, alone)


@pytest.mark.parametrize("method", SECOND_ORDER)
def test_second_order_methods_are_made_of_the_total_derivative(method: str, x: Tensor) -> None:
    """A rate as a number is order 2; whatever is made of x and g is made of these."""
    model, one, target = build("residual"), x[:1], TARGET[:1]
    rules = {"guided_backprop": GuidedBackprop, "deconvnet": Deconvnet}
    rule = next((kind() for name, kind in rules.items() if method.startswith(name)), nullcontext())
    captured = capture_stepped(model, one, "all", target, RATE, rule)
    found = sal.explain(model, one, target, method=method, fix=None, meta=RATE)
    assert list(found) == list(captured.gradients)
    for name, g in captured.gradients.items():
        product = g * captured.activations[name]
        mean = g.mean((2, 3), keepdim=True)
        expected = {
            "gradient": g,
            "gradient_x_activation": product,
            "guided_backprop": g,
            "deconvnet": g,
            "grad_cam": (mean * captured.activations[name]).sum(1, keepdim=True).clamp(min=0),
            "layer_cam": (g.clamp(min=0) * captured.activations[name]).sum(1, keepdim=True),
            "linear_approximation": product.sum(1, keepdim=True),
            "normgrad": (g.norm(dim=1) * captured.activations[name].norm(dim=1))[:, None],
            "normgrad_selective": product.clamp(min=0).norm(dim=1, keepdim=True),
            "guided_backprop+bias+sum": g.sum(1, keepdim=True),
        }.get(method)
        if expected is not None:
            torch.testing.assert_close(found[name], expected)
    first = sal.explain(model, one, target, method=method, fix=None, meta=MetaStep(RATE, order=1))
    assert not torch.allclose(found["layer3.0"], first["layer3.0"], rtol=1e-4)


@pytest.mark.parametrize("rule", [GuidedBackprop, Deconvnet])
def test_a_rule_holds_in_the_pass_that_is_explained_not_in_the_step(rule: type, x: Tensor) -> None:
    """At the last layer nothing is above but a mean and a linear one, so the rule only acts through the step."""
    model, one, target = build("functional"), x[:1], TARGET[:1]
    found = capture_stepped(model, one, ["first", "second"], target, RATE, rule()).gradients
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    zeros = {"first": torch.zeros(1, 4, 8, 8), "second": torch.zeros(1, 6, 4, 4)}
    zeros = {name: zero.double().requires_grad_() for name, zero in zeros.items()}

    def run(weights: dict[str, Tensor], relu: Callable[[Tensor], Tensor]) -> Tensor:
        first = F.conv2d(one, weights["first.weight"], weights["first.bias"], 2, 1) + zeros["first"]
        second = F.conv2d(relu(first), weights["second.weight"], weights["second.bias"], 2, 1) + zeros["second"]
        return F.linear(relu(second).mean((2, 3)), weights["head.weight"], weights["head.bias"])

    class Rectified(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient.clamp(min=0) * (ctx.saved_tensors[0] > 0 if rule is GuidedBackprop else 1)

    loss = F.cross_entropy(run(parameters, F.relu), target)
    gradients = torch.autograd.grad(loss, parameters.values(), create_graph=True)
    new = {name: p - RATE * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
    score = run(new, Rectified.apply)[0, target].sum()
    expected = dict(zip(zeros, torch.autograd.grad(score, zeros.values()), strict=True))
    assert_same(found, expected)


def test_with_sampling(x: Tensor) -> None:
    """Every look learns on its own."""
    model, sampling = build("residual"), SmoothGrad(n=3, batch=4)
    for order in (1, 2):
        step = MetaStep(RATE, order)
        found = sal.explain(model, x, TARGET, "layer3.0", "normgrad", sampling=sampling, meta=step)
        looks = [
            sal.explain(model, images, TARGET, "layer3.0", "normgrad", meta=step)["layer3.0"]
            for _, images in sampling.images(x)
        ]
        torch.testing.assert_close(found["layer3.0"], torch.stack(looks).mean(0))


def test_the_class_is_that_of_the_network_before_the_step(x: Tensor) -> None:
    model = build("residual")
    predicted = model(x.clone()).argmax(1)
    for order in (1, 2):
        step = MetaStep(RATE, order)
        expected = sal.explain(model, x, predicted, method="gradient", fix=None, meta=step)
        assert_same(sal.explain(model, x, method="gradient", fix=None, meta=step), expected)


# ------------------------------------------------------------------------------------------ awkward networks


class Tied(nn.Module):
    """One convolution under two names and one weight in two layers, a frozen layer, and ReLU in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2, 1)
        self.middle = nn.Conv2d(4, 4, 3, padding=1)
        self.again = self.middle
        self.other = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.other.weight = self.middle.weight
        self.relu, self.last = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = F.silu(self.again(F.silu(self.middle(x))), inplace=True)
        return self.head(self.last(self.other(x)).mean((2, 3)))


def test_tied_frozen_and_in_place(x: Tensor) -> None:
    """Frozen parameters learn as well: whether somebody trains them is not the map's business."""
    model, one, target = Tied().double(), x[:1], TARGET[:1]
    layers = [INPUT, "relu", "other", "last"]
    other = one_sgd_step(model, one, target, RATE)
    assert other.middle.weight is other.other.weight
    assert not torch.equal(other.head.weight, model.head.weight)
    options: dict[str, Any] = {"method": "gradient", "fix": None}
    found = sal.explain(model, one, target, layers, meta=MetaStep(RATE, order=1), **options)
    assert_same(found, sal.explain(other, one, target, layers, **options))
    second = sal.explain(model, one, target, layers, meta=RATE, **options)
    thawed = deepcopy(model).requires_grad_(True)
    for layer in layers:
        push = torch.zeros(second[layer].shape, dtype=torch.float64)
        unit = int(second[layer].abs().argmax())
        push.view(-1)[unit] = 1e-5
        up, down = (
            after_a_step(thawed, one, target, RATE, layer, lambda value, p=sign * push: value + p) for sign in (1, -1)
        )
        assert float(second[layer].flatten()[unit]) == pytest.approx((up - down) / 2e-5, rel=1e-5)
    frozen = deepcopy(model).requires_grad_(False)
    assert_same(sal.explain(frozen, one, target, layers, meta=RATE, **options), second)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize("order", [1, 2])
def test_the_network_is_what_it_was(order: int, x: Tensor) -> None:
    model = Tied().double().train()
    model.first.weight.grad = torch.ones_like(model.first.weight)
    objects = dict(model.named_parameters(remove_duplicate=False))
    before = {name: (p.detach().clone(), p._version, p.requires_grad, p.grad) for name, p in objects.items()}

    def assert_untouched() -> None:
        assert model.training and not model.first._forward_hooks and not model.first._forward_pre_hooks
        for name, parameter in model.named_parameters(remove_duplicate=False):
            value, version, requires_grad, grad = before[name]
            assert parameter is objects[name] and torch.equal(parameter, value) and parameter.grad is grad
            assert (parameter._version, parameter.requires_grad) == (version, requires_grad)

    sal.explain(model, x, TARGET, method="normgrad", meta=MetaStep(RATE, order))
    assert_untouched()
    with pytest.raises(ValueError, match="^cam needs average pooling|has no second-order form"):
        sal.explain(model, x, TARGET, "relu", "cam", meta=MetaStep(RATE, order))
    assert_untouched()
    with torch.inference_mode():
        sal.explain(model, x, TARGET, method="normgrad", meta=MetaStep(RATE, order))
        with stepped(model, x[:1], TARGET[:1], RATE):
            assert not model.first.weight.is_inference() and model.first.weight.requires_grad
        assert not capture_stepped(model, x[:1], "last", TARGET[:1], RATE).gradients["last"].is_inference()
    assert_untouched()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MetaStep(0.1, order=3), "^order = 3 of the inner step: choose 1 or 2$"),
        (lambda: MetaStep(-0.1), "^rate = -0.1 is not a learning rate: give 0 or more$"),
        (lambda: MetaStep(float("nan")), "^rate = nan is not a learning rate: give 0 or more$"),
        (lambda: MetaStep(float("inf")), "^rate = inf is not a learning rate: give 0 or more$"),
        (
            lambda: sal.explain(build("residual"), torch.ones(1, 3, 16, 16).double(), 1, method="weights+l2", meta=0.1),
            "^extract 'weights' is not made of activation and gradient, so it has no second-order form: use meta=sal.M",
        ),
        (
            lambda: capture_stepped(Branch(), torch.ones(1, 3, 8, 8).double(), "unused", torch.tensor([1]), 0.1),
            "^layer 'unused' has no influence on the score of the class$",
        ),
    ],
)
def test_bad_input_is_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


class Branch(nn.Module):
    """Runs a convolution whose output it throws away."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.first = nn.Conv2d(3, 4, 3).double(), nn.Conv2d(3, 4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.first(x).square().mean((2, 3))


def test_a_detector_learns_what_it_detects(x: Tensor) -> None:
    """One logit is as good as two of which the other is 0: cross-entropy over the one alone would teach nothing."""
    detector = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    detector = detector.double().eval()

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector = detector

        def forward(self, x: Tensor) -> Tensor:
            score = self.detector(x)
            return torch.cat([torch.zeros_like(score), score], 1)

    for meta in (MetaStep(0.5, order=1), MetaStep(0.5, order=2)):
        found = sal.explain(detector, x, 0, "0", "gradient", None, meta=meta)["0"]
        torch.testing.assert_close(
            found, sal.explain(Two(), x, 1, "detector.0", "gradient", None, meta=meta)["detector.0"]
        )
        assert not torch.allclose(found, sal.explain(detector, x, 0, "0", "gradient", None)["0"])
