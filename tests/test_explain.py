"""Every method is the formula that :func:`smoothsal_lib.explain` documents, on the captured activation and gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from networks import build
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.fixes import Fix
from smoothsal_lib.rules import Deconvnet, DeepLift, GuidedBackprop

NAMES = ["residual", "in_place_vgg", "squeeze_excite", "asymmetric"]


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


def layers(model: nn.Module, x: Tensor) -> list[str]:
    return ["input", *sal.hidden_layers(model, x)]


def assert_maps_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, attribution in found.items():
        torch.testing.assert_close(attribution, expected[name], msg=lambda m, n=name: f"{n}: {m}")


def test_gradient_and_its_product_with_the_activation(model: nn.Module, x: Tensor) -> None:
    names = layers(model, x)
    captured = sal.capture(model, x, names, 1)
    assert_maps_equal(sal.explain(model, x, 1, names, "gradient", None), captured.gradients)
    product = {name: captured.gradients[name] * captured.activations[name] for name in names}
    assert_maps_equal(sal.explain(model, x, 1, names, "gradient_x_activation", None), product)


def test_grad_cam(model: nn.Module, x: Tensor) -> None:
    """In explicit loops over images and channels."""
    names = layers(model, x)
    captured = sal.capture(model, x, names, 1)
    for name, found in sal.explain(model, x, 1, names, "grad_cam", None).items():
        g, a = captured.gradients[name], captured.activations[name]
        assert found.shape == (3, 1, *a.shape[2:])
        for n in range(3):
            weighted = sum(g[n, c].mean() * a[n, c] for c in range(a.shape[1]))
            torch.testing.assert_close(found[n, 0], torch.relu(weighted))
    assert any((sal.explain(model, x, c, names, "grad_cam", None)[names[-1]] == 0).any() for c in range(5))


@pytest.mark.parametrize(("method", "rule"), [("guided_backprop", GuidedBackprop), ("deconvnet", Deconvnet)])
def test_rectifier_methods(method: str, rule: type[Any], model: nn.Module, x: Tensor) -> None:
    names = layers(model, x)
    expected = sal.capture(model, x, names, 1, rule()).gradients
    assert_maps_equal(sal.explain(model, x, 1, names, method, None), expected)
    plain = sal.capture(model, x, names, 1).gradients
    assert not torch.allclose(expected["input"], plain["input"])


def test_deeplift_is_multiplier_times_difference(model: nn.Module, x: Tensor, reference: Tensor) -> None:
    names = layers(model, x)
    rule = DeepLift()
    at_baseline = sal.capture(model, reference, names, 1, rule.reference()).activations
    captured = sal.capture(model, x, names, 1, rule)
    expected = {name: captured.gradients[name] * (captured.activations[name] - at_baseline[name]) for name in names}
    assert_maps_equal(sal.explain(model, x, 1, names, "deeplift", None, reference), expected)


def test_integrated_gradients_are_the_trapezoid_sum_along_the_path(
    model: nn.Module, x: Tensor, reference: Tensor
) -> None:
    names = layers(model, x)
    points = [sal.capture(model, reference + (x - reference) * i / 5, names, 1) for i in range(6)]
    expected = {
        name: sum(
            (a.gradients[name] + b.gradients[name]) / 2 * (b.activations[name] - a.activations[name])
            for a, b in zip(points, points[1:], strict=False)
        )
        for name in names
    }
    assert_maps_equal(sal.explain(model, x, 1, names, "integrated_gradients", None, reference, steps=5), expected)


@pytest.mark.parametrize("name", ["layer_norm", "patchify"])
def test_integrated_gradients_are_complete_in_the_limit(name: str, x: Tensor, reference: Tensor) -> None:
    """On smooth networks the trapezoid rule converges with the square of the steps, at every layer."""
    model = build(name).eval()
    with torch.no_grad():
        change = (model(x) - model(reference))[:, 1]
    errors = {}
    for steps in (8, 32, 128):
        maps = sal.explain(model, x, 1, layers(model, x), "integrated_gradients", None, reference, steps)
        errors[steps] = max(float((a.sum((1, 2, 3)) - change).abs().max()) for a in maps.values())
    assert errors[128] < 1e-2 * change.abs().max()
    if name == "patchify":  # GELU throughout; the other has a ReLU, whose kinks slow the convergence
        assert errors[32] < errors[8] / 8
        assert errors[128] < errors[32] / 8


def test_integrated_gradients_keep_to_the_class_of_the_image(x: Tensor, reference: Tensor) -> None:
    model = build("residual")
    predicted = model(x).argmax(1)
    found = sal.explain(model, x, None, "all", "integrated_gradients", None, reference, steps=3)
    assert_maps_equal(found, sal.explain(model, x, predicted, "all", "integrated_gradients", None, reference, steps=3))


@pytest.mark.parametrize("method", ["deeplift", "integrated_gradients"])
def test_without_a_difference_there_is_nothing_to_attribute(method: str, model: nn.Module, x: Tensor) -> None:
    for attribution in sal.explain(model, x, 1, layers(model, x), method, None, baseline=x).values():
        assert torch.equal(attribution, torch.zeros_like(attribution))


class Opposite(Fix):
    """A repair after which the network predicts what was least likely before."""

    @contextmanager
    def repair(self, model: nn.Module) -> Iterator[None]:
        handle = model.head.register_forward_hook(lambda module, args, output: -output)
        yield
        handle.remove()


def test_no_target_explains_what_the_repaired_network_predicts(x: Tensor) -> None:
    model = build("residual")
    found = sal.explain(model, x, None, method="gradient", fix=Opposite())
    expected = sal.explain(model, x, model(x).argmin(1), method="gradient", fix=None)
    assert_maps_equal(found, {name: -gradient for name, gradient in expected.items()})


def test_the_defaults_are_deeplift_from_zero_under_the_backward_fix(x: Tensor) -> None:
    model = build("residual")
    expected = sal.explain(model, x, model(x).argmax(1), "all", "deeplift", "backward", torch.zeros_like(x))
    assert_maps_equal(sal.explain(model, x), expected)


PER_CHANNEL = "gradient gradient_x_activation deeplift integrated_gradients guided_backprop deconvnet lrp".split()


@pytest.mark.parametrize("method", sal.METHODS)
def test_shapes_order_and_detachment(method: str, x: Tensor) -> None:
    model = build("residual")
    listed = sal.hidden_layers(model, x)
    found = sal.explain(model, x, 1, method=method, steps=2)
    # CAM exists only where average pooling and the classifier follow.
    assert list(found) == (list(listed)[-1:] if method == "cam" else list(listed))
    for name, attribution in found.items():
        channels = listed[name].shape[0] if method in PER_CHANNEL else 1
        assert attribution.shape == (3, channels, *listed[name].shape[1:])
        assert not attribution.requires_grad


def test_the_images_are_explained_as_they_are_not_as_they_become(x: Tensor) -> None:
    """What is returned does not share memory with what was given."""
    model, images = build("residual"), x.clone()
    captured = sal.capture(model, images, ["input", "layer2"], 1)
    images.zero_()
    assert torch.equal(captured.activations["input"], x)
