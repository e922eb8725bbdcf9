"""One forward and one backward pass, and every layer has the activation and gradient it would have had on its own."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, build
from torch import Tensor, nn

import smoothsal_lib as sal


def one_layer(model: nn.Module, x: Tensor, name: str, target: Tensor) -> tuple[Tensor, Tensor]:
    """Activation and gradient of one layer, slowly: the score differentiated by a zero added to its output."""
    values: list[Tensor] = []
    zeros: list[Tensor] = []

    def add_zero(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        values.append(output.detach().clone())
        zeros.append(torch.zeros_like(output).requires_grad_())
        return output + zeros[-1]

    handle = model.get_submodule(name).register_forward_hook(add_zero)
    score = model(x.clone()).gather(1, target[:, None]).sum()
    handle.remove()
    return values[-1], torch.autograd.grad(score, zeros[-1])[0]


def test_every_layer_equals_a_pass_of_its_own(network: nn.Module, x: Tensor) -> None:
    target = torch.tensor([4, 0, 2])
    captured = sal.capture(network, x, "all", target)
    assert list(captured.gradients) == list(captured.activations) == list(sal.hidden_layers(network, x))
    torch.testing.assert_close(captured.logits, network(x))
    assert not captured.logits.requires_grad
    for name in captured.gradients:
        activation, gradient = one_layer(network, x, name, target)
        torch.testing.assert_close(captured.activations[name], activation, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(captured.gradients[name], gradient, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_inside_branches_and_in_place_modules_by_name(name: str, x: Tensor) -> None:
    model = build(name)
    target = torch.tensor([4, 0, 2])
    inside = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU))]
    captured = sal.capture(model, x, inside, target)
    assert list(captured.gradients) == inside
    for layer in inside:
        activation, gradient = one_layer(model, x, layer, target)
        torch.testing.assert_close(captured.activations[layer], activation)
        torch.testing.assert_close(captured.gradients[layer], gradient)


def test_gradient_at_the_input(network: nn.Module, x: Tensor) -> None:
    image = x.clone().requires_grad_()
    expected = torch.autograd.grad(network(image)[:, 2].sum(), image)[0]
    captured = sal.capture(network, x, "input", 2)
    torch.testing.assert_close(captured.gradients["input"], expected)
    torch.testing.assert_close(captured.activations["input"], x)


def test_modules_functionals_and_in_place_agree(x: Tensor) -> None:
    """The same network, written in three ways."""

    class Three(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.how = how
            self.first, self.second, self.head = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, 2), nn.Linear(4, 5)
            self.one, self.two = nn.ReLU(), nn.ReLU()

        def activate(self, x: Tensor, module: nn.Module) -> Tensor:
            return {"module": module, "functional": F.relu, "in place": torch.relu_}[self.how](x)

        def forward(self, x: Tensor) -> Tensor:
            x = self.activate(self.first(x), self.one)
            return self.head(self.activate(self.second(x), self.two).mean((2, 3)))

    with torch.random.fork_rng(devices=[]):
        models = [Three(how).double() for how in ("module", "functional", "in place")]
    # CAM asks for another head, and LRP is zennit's, which sees modules only.
    for method in [method for method in sal.METHODS if method not in ("cam", "lrp")]:
        maps = [sal.explain(model, x, 1, ["input", "first"], method) for model in models]
        for other in maps[1:]:
            for layer in ("input", "first"):
                torch.testing.assert_close(other[layer], maps[0][layer], msg=lambda m, n=(method, layer): f"{n}: {m}")


@pytest.mark.parametrize(
    ("name", "method"),
    # CAM needs average pooling and a linear classifier, which VGG does not have.
    [
        (name, method)
        for name in ("residual", "in_place_vgg")
        for method in sal.METHODS
        if (name, method) != ("in_place_vgg", "cam")
    ],
)
def test_images_of_a_batch_do_not_meet(method: str, name: str, x: Tensor) -> None:
    model = build(name)
    layers = ["input", *sal.hidden_layers(model, x)]
    if method == "cam":
        layers = layers[-1:]
    together = sal.explain(model, x, [0, 1, 2], layers, method, fix=None)
    for i in range(3):
        alone = sal.explain(model, x[i : i + 1], i, layers, method, fix=None)
        for layer, attribution in alone.items():
            torch.testing.assert_close(together[layer][i : i + 1], attribution)


@pytest.mark.parametrize("method", sal.METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_of_the_model_is_kept(method: str, dtype: torch.dtype, x: Tensor) -> None:
    model = build("residual")
    exact = sal.explain(model, x, 1, method=method)
    for layer, attribution in sal.explain(build("residual").to(dtype), x.to(dtype), 1, method=method).items():
        assert attribution.dtype == dtype
        assert torch.isfinite(attribution).all()
        off = (attribution.double() - exact[layer]).norm() / exact[layer].norm()
        assert off < (1e-4 if dtype == torch.float32 else 0.35), f"{layer} is off by {off:.1%}"


def test_model_in_training_mode_is_explained_in_evaluation_mode(network: nn.Module, x: Tensor) -> None:
    expected = sal.capture(network, x, "all", 1)
    network.train()
    found = sal.capture(network, x, "all", 1)
    assert network.training
    torch.testing.assert_close(found.gradients, expected.gradients)
    torch.testing.assert_close(found.activations, expected.activations)


@pytest.mark.parametrize("method", sal.METHODS)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_inside_no_grad_and_inference_mode(method: str, context: Any, x: Tensor) -> None:
    model = build("residual")
    expected = sal.explain(model, x, 1, method=method, baseline=0.1)
    with context():
        inside = x.clone()
        for images in (x, inside):
            found = sal.explain(model, images, 1, method=method, baseline=0.1)
            torch.testing.assert_close(found, expected)
    torch.testing.assert_close(sal.explain(model, inside, 1, method=method, baseline=0.1), expected)


def test_images_that_ask_for_a_gradient_get_none(x: Tensor) -> None:
    model = build("in_place_vgg")
    expected = sal.capture(model, x, "all", 1)
    leaf = x.clone().requires_grad_()
    for images in (leaf, leaf * 1.0):
        found = sal.capture(model, images, "all", 1)
        torch.testing.assert_close(found.gradients, expected.gradients)
        assert not any(t.requires_grad for t in (*found.gradients.values(), *found.activations.values()))
    assert leaf.grad is None


def test_a_network_that_begins_in_place_does_not_touch_the_images(x: Tensor) -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 5)).double()
    before = x.clone()
    captured = sal.capture(model, x, ["input", "0"], 1)
    assert torch.equal(x, before)
    image = x.clone().requires_grad_()
    expected = torch.autograd.grad(model(image.clone())[:, 1].sum(), image)[0]
    torch.testing.assert_close(captured.gradients["input"], expected)
    assert list(sal.hidden_layers(model, x)) == ["0", "1"]
    torch.testing.assert_close(captured.activations["0"], before.relu())
    torch.testing.assert_close(captured.activations["input"], before)


def test_channels_last_and_sliced_images(x: Tensor) -> None:
    model = build("residual")
    wide = torch.cat([x, x], 3)
    expected = sal.explain(model, x, 1)
    torch.testing.assert_close(sal.explain(model, x.contiguous(memory_format=torch.channels_last), 1), expected)
    torch.testing.assert_close(sal.explain(model, wide[..., :16], 1), expected)


def overwriting() -> nn.Module:
    """Its max-pool's output is a layer to explain, and overwritten at once."""
    layers = [nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(196, 5)]
    return nn.Sequential(*layers).double()


def test_a_value_that_is_overwritten_is_still_captured(x: Tensor) -> None:
    model = overwriting()
    captured = sal.capture(model, x, target=1)
    assert list(captured.activations) == ["0", "1", "2"]
    for name, value in captured.activations.items():
        torch.testing.assert_close(value, one_layer(model, x, name, torch.tensor([1, 1, 1]))[0])
    assert captured.activations["1"].min() < 0


@pytest.mark.parametrize(("name", "forwards"), [("functional", 1), ("residual", 1), ("overwriting", 2)])
def test_one_backward_and_one_forward_pass(name: str, forwards: int, x: Tensor) -> None:
    """A network that overwrites the values we want is run twice; all are differentiated once."""
    model = overwriting() if name == "overwriting" else build(name)
    calls: list[str] = []
    classifier = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    classifier.register_forward_pre_hook(lambda *_: calls.append("forward"))
    classifier.register_full_backward_hook(lambda *_: calls.append("backward"))
    sal.capture(model, x)
    assert calls.count("forward") == forwards
    assert calls.count("backward") == 1
    calls.clear()
    sal.capture(model, x, activations=False)
    assert calls == ["forward", "backward"]


@pytest.mark.parametrize(
    "target", [2, np.int64(2), torch.tensor(2), [2, 2, 2], (2, 2, 2), np.array([2] * 3), torch.tensor([2, 2, 2]).int()]
)
def test_targets_may_be_given_in_many_ways(target: Any, x: Tensor) -> None:
    model = build("functional")
    found = sal.capture(model, x, target=target)
    assert found.target.tolist() == [2, 2, 2]
    assert found.target.dtype == torch.int64
    torch.testing.assert_close(found.gradients["second"], one_layer(model, x, "second", torch.tensor([2, 2, 2]))[1])


def test_no_target_takes_the_predicted_class(x: Tensor) -> None:
    model = build("functional")
    assert sal.capture(model, x).target.tolist() == model(x).argmax(1).tolist()


def test_activations_can_be_left_out(x: Tensor) -> None:
    captured = sal.capture(build("residual"), x, activations=False)
    assert captured.activations == {}
    assert captured.gradients


def test_a_reused_module_counts_with_its_last_call(x: Tensor) -> None:
    model = build("reused_relu")
    captured = sal.capture(model, x, "relu", 1)
    assert captured.activations["relu"].shape == (3, 6, 4, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", sal.METHODS)
def test_cuda_agrees_with_the_cpu(method: str, x: Tensor) -> None:
    model = build("residual")
    expected = sal.explain(model, x, 1, method=method)
    torch.cuda.manual_seed(0)
    state = torch.cuda.get_rng_state()
    found = sal.explain(build("residual").cuda(), x.cuda(), 1, method=method)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    for layer, attribution in found.items():
        assert attribution.is_cuda
        torch.testing.assert_close(attribution.cpu(), expected[layer], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("autocast", [False, True])
def test_two_explanations_are_the_same_bit_for_bit(autocast: bool, x: Tensor) -> None:
    model = build("residual").float()
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        first, second = (sal.explain(model, x.float(), 1) for _ in range(2))
    for layer in first:
        assert torch.equal(first[layer], second[layer])
        assert torch.isfinite(first[layer]).all()
