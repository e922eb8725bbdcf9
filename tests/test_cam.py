"""CAM, Grad-CAM++, Smooth Grad-CAM++ and LayerCAM by the definitions of their papers, unit by unit.

Grad-CAM itself is tested in test_explain.py and, against captum, in test_rules.py.
"""

from __future__ import annotations

import pytest
import torch
from networks import SqueezeExcite, build
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.sampling import FusionGrad, Path, Sampling, SmoothGrad

NAMES = ["residual", "overlapping_max_pool", "asymmetric"]


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


def layers(model: nn.Module, x: Tensor) -> list[str]:
    return list(sal.hidden_layers(model, x))


# ----------------------------------------------------------------------------------------------------------- CAM


@pytest.mark.parametrize("fix", [None, "backward", "forward"])
@pytest.mark.parametrize(("name", "layer"), [("residual", "layer4"), ("asymmetric", "layer3")])
def test_cam_is_the_sum_weighted_by_the_classifier(name: str, layer: str, fix: str | None, x: Tensor) -> None:
    """And the mean of its map, with the bias, is the score."""
    model = build(name)
    head = model.head
    with sal.smoothed(model, fix):
        logits = model(x)
        activation = sal.capture(model, x, layer, 0).activations[layer]
    for target in (0, 3):
        found = sal.explain(model, x, target, layer, "cam", fix)[layer]
        assert found.shape == (3, 1, *activation.shape[2:])
        for n in range(3):
            expected = sum(head.weight[target, c] * activation[n, c] for c in range(activation.shape[1]))
            torch.testing.assert_close(found[n, 0], expected.detach())
        torch.testing.assert_close(found.mean((1, 2, 3)) + head.bias[target], logits[:, target])
        grad_cam = sal.explain(model, x, target, layer, "grad_cam", fix)[layer]
        torch.testing.assert_close(found.clamp(min=0) / found[0].numel(), grad_cam)
    assert (sal.explain(model, x, 0, layer, "cam", fix)[layer] < 0).any()


def test_cam_at_all_layers_is_at_those_that_allow_it(x: Tensor) -> None:
    model = build("residual")
    assert list(sal.explain(model, x, 1, "all", "cam")) == ["layer4"]
    many = sal.explain(model, x, None, "all", "cam", sampling=SmoothGrad(3))
    assert list(many) == ["layer4"]
    assert not torch.allclose(many["layer4"], sal.explain(model, x, None, "all", "cam")["layer4"])


@pytest.mark.parametrize(
    "head",
    {
        "a rectifier in front": lambda: [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)],
        "the maximum": lambda: [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 5)],
        "a weight for every position": lambda: [nn.Flatten(), nn.Linear(6 * 64, 5)],
        "weights of the picture's own": lambda: [
            SqueezeExcite(6),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
        ],
        "two linear layers": lambda: [
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 40),
            nn.ReLU(),
            nn.Linear(40, 5),
        ],
    }.items(),
    ids=lambda item: item[0],
)
def test_cam_refuses_other_heads(head, x: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), *head[1]()).double()
    with pytest.raises(ValueError, match="^cam needs average pooling and a linear classifier behind the layer: '0'"):
        sal.explain(model, x, 1, "0", "cam", None)


def test_cam_behind_linear_layers_in_a_row(x: Tensor) -> None:
    """What is linear in the pooled channels is one linear classifier: a 1 x 1 convolution, dropout, two matrices."""
    layers = [nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 7), nn.Linear(7, 5)]
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), *layers).double()
    matrix = model[7].weight @ model[6].weight @ model[2].weight[:, :, 0, 0]
    activation = sal.capture(model, x, "1", 0).activations["1"]
    expected = torch.einsum("c,nchw->nhw", matrix[2], activation)[:, None]
    torch.testing.assert_close(sal.explain(model, x, 2, "1", "cam", None)["1"], expected.detach())


# ---------------------------------------------------------------------------------------------------- Grad-CAM++


def test_grad_cam_plus_plus_from_derivatives_of_the_exponential_score(x: Tensor) -> None:
    """Equations 10, 11 and 19 of the paper with Y = exp(f_c), its three derivatives taken one unit at a time.

    The network is piecewise linear, so that the second and third derivative of Y are what the paper says. Weights are
    proportional to Y, which is no matter of position: the library leaves that factor out.
    """
    x = x[:, :, :8, :8]
    model = build("functional")
    for n in range(2):
        image, target = x[n : n + 1], 1 + n
        found = sal.explain(model, image, target, "first", "grad_cam++", None)["first"][0, 0]
        a = model.first(image).detach().requires_grad_()
        score = model.head(torch.relu(model.second(torch.relu(a))).mean((2, 3)))[0, target]
        y = score.exp()
        (first,) = torch.autograd.grad(y, a, create_graph=True)
        weights = torch.zeros(a.shape[1], dtype=torch.float64)
        for c in range(a.shape[1]):
            total = float(a[0, c].detach().sum())
            for i in range(a.shape[2]):
                for j in range(a.shape[3]):
                    (second,) = torch.autograd.grad(first[0, c, i, j], a, create_graph=True)
                    (third,) = torch.autograd.grad(second[0, c, i, j], a, retain_graph=True)
                    d1, d2, d3 = (d.detach()[0, c, i, j].item() for d in (first, second, third))
                    if d2 != 0:
                        weights[c] += d2 / (2 * d2 + total * d3) * max(d1, 0)
        expected = torch.relu(sum(weights[c] * a[0, c] for c in range(a.shape[1]))).detach()
        assert expected.max() > 0
        torch.testing.assert_close(found * y.item(), expected)


def by_powers(x: Tensor, g: Tensor, squared: Tensor, cubed: Tensor) -> Tensor:
    """(C, H, W) each to (H, W), in loops over channels and positions."""
    expected = torch.zeros(x.shape[1:], dtype=torch.float64)
    for c in range(len(x)):
        weight, total = 0.0, float(x[c].sum())
        values = zip(*(t[c].flatten().tolist() for t in (g, squared, cubed)), strict=True)
        for one, two, three in values:
            denominator = 2 * two + total * three
            weight += two / denominator * max(one, 0) if denominator != 0 else 0
        expected += weight * x[c]
    return expected.clamp(min=0)


@pytest.mark.parametrize("fix", [None, "backward", "forward"])
def test_grad_cam_plus_plus_in_loops(fix: str | None, model: nn.Module, x: Tensor) -> None:
    names = layers(model, x)
    positive = 0
    for target in (1, 4):
        with sal.smoothed(model, fix):
            captured = sal.capture(model, x, names, target)
        for name, found in sal.explain(model, x, target, names, "grad_cam++", fix).items():
            a, g = captured.activations[name], captured.gradients[name]
            assert found.shape == (3, 1, *a.shape[2:])
            for n in range(3):
                torch.testing.assert_close(found[n, 0], by_powers(a[n], g[n], g[n] ** 2, g[n] ** 3))
            positive += int((found > 0).any())
    assert positive > 2


@pytest.mark.parametrize("fix", [None, "backward"])
@pytest.mark.parametrize("sampling", [SmoothGrad(4, 0.3), Path(3), FusionGrad(2, 0.2, m=2)])
def test_smooth_grad_cam_plus_plus_in_loops(sampling: Sampling, fix: str | None, model: nn.Module, x: Tensor) -> None:
    """Means of the powers of the gradient over the looks; the activations are those of the picture as it is."""
    names = layers(model, x)
    with sal.smoothed(model, fix):
        activations = sal.capture(model, x, names, 1).activations
        looks: dict[str, list[tuple[float, Tensor]]] = {name: [] for name in names}
        for number, network in enumerate(sampling.networks(model)):
            with network:
                for share, image in sampling.images(x, number):
                    for name, g in sal.capture(model, image, names, 1).gradients.items():
                        looks[name].append((share, g))
    found = sal.explain(model, x, 1, names, "smooth_grad_cam++", fix, sampling=sampling)
    for name, seen in looks.items():
        weight = sum(share for share, _ in seen)
        powers = [sum(share * g**k for share, g in seen) / weight for k in (1, 2, 3)]
        for n in range(3):
            torch.testing.assert_close(found[name][n, 0], by_powers(activations[name][n], *(p[n] for p in powers)))


def test_smooth_grad_cam_plus_plus_is_smooth_by_default(x: Tensor) -> None:
    model = build("functional")
    found = sal.explain(model, x, None, method="smooth_grad_cam++")
    for name, expected in sal.explain(model, x, None, method="smooth_grad_cam++", sampling="smoothgrad").items():
        assert torch.equal(found[name], expected)
    quiet = sal.explain(model, x, None, method="smooth_grad_cam++", sampling=SmoothGrad(2, 0))
    for name, expected in sal.explain(model, x, None, method="grad_cam++").items():
        torch.testing.assert_close(quiet[name], expected)
    assert not all(torch.allclose(found[name], quiet[name]) for name in found)


def test_smooth_grad_cam_plus_plus_keeps_to_the_class_of_the_clean_picture(x: Tensor) -> None:
    model = build("residual")
    predicted = model(x).argmax(1)
    sampling = SmoothGrad(6, 1.0)
    assert any((model(image).argmax(1) != predicted).any() for _, image in sampling.images(x))
    found = sal.explain(model, x, None, method="smooth_grad_cam++", sampling=sampling)
    for name, expected in sal.explain(model, x, predicted, method="smooth_grad_cam++", sampling=sampling).items():
        assert torch.equal(found[name], expected)


@pytest.mark.parametrize("method", ["grad_cam", "grad_cam++", "smooth_grad_cam++", "layer_cam"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_gradients_in_half_precision(method: str, dtype: torch.dtype, x: Tensor) -> None:
    """Gradients near 1e-5, as in a large layer: their squares and cubes are 0 in 16 bits, and the map must not be."""
    model = build("overlapping_max_pool")
    with torch.no_grad():
        model.head.weight.mul_(1e-2)
    expected = sal.explain(model, x, 1, method=method, fix=None)
    found = sal.explain(model.to(dtype), x.to(dtype), 1, method=method, fix=None)
    for name, attribution in found.items():
        assert attribution.dtype == dtype
        assert (attribution.double() - expected[name]).norm() < 0.15 * expected[name].norm(), name


# ------------------------------------------------------------------------------------------------------ LayerCAM


@pytest.mark.parametrize("fix", [None, "backward"])
def test_layer_cam_in_loops(fix: str | None, model: nn.Module, x: Tensor) -> None:
    """Equation 5 of the paper: every unit is weighted by its own gradient, where that is positive."""
    names = layers(model, x)
    with sal.smoothed(model, fix):
        captured = sal.capture(model, x, names, 1)
    for name, found in sal.explain(model, x, 1, names, "layer_cam", fix).items():
        a, g = captured.activations[name], captured.gradients[name]
        for n in range(3):
            expected = torch.zeros(a.shape[2:], dtype=torch.float64)
            for c in range(a.shape[1]):
                expected += torch.where(g[n, c] > 0, g[n, c], 0) * a[n, c]
            torch.testing.assert_close(found[n, 0], torch.where(expected > 0, expected, 0))
    signed = sal.explain(build("in_place_vgg"), x, 1, "0", "layer_cam", None)["0"]  # activations below 0 too
    assert (signed >= 0).all() and (signed == 0).any() and (signed > 0).any()
