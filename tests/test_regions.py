"""Regions: the score of a dense network over part of the picture, against sums written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import Saliency
from networks import build
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib import MetaStep, over_region
from smoothsal_lib.capture import record_activations
from smoothsal_lib.fixes.recalibration import recalibrate
from smoothsal_lib.metrics.fidelity import agreement, prediction_difference
from smoothsal_lib.metrics.road import road
from smoothsal_lib.models import DenseResNet
from smoothsal_lib.regions import as_region
from smoothsal_lib.rise import rise

LAYERS = ["relu", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)), "head"]


@pytest.fixture
def dense() -> nn.Module:
    model = DenseResNet(4, (3, 4, 5, 6)).double().eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.bias.data.normal_(0, 0.1)
    return model


@pytest.fixture
def x() -> Tensor:
    """Two pictures whose height is no multiple of the stride."""
    return torch.randn(2, 3, 20, 24, dtype=torch.float64)


@pytest.fixture
def masks() -> Tensor:
    """A region for each: a rectangle, and soft weights elsewhere."""
    found = torch.zeros(2, 20, 24, dtype=torch.float64)
    found[0, 2:9, 3:17] = 1
    found[1, 10:, 12:] = torch.rand(10, 12, dtype=torch.float64)
    return found


def by_hand(model: nn.Module, x: Tensor, masks: Tensor) -> Tensor:
    """Mean logits (N, classes), one picture and class at a time."""
    logits = model(x)
    scores = [[(logits[n, k] * masks[n]).sum() / masks[n].sum() for k in range(logits.shape[1])] for n in range(len(x))]
    return torch.stack([torch.stack(row) for row in scores])


def test_the_score_is_the_mean_over_the_region(dense: nn.Module, x: Tensor, masks: Tensor):
    with over_region(dense, masks):
        found = dense(x)
    torch.testing.assert_close(found, by_hand(dense, x, masks))
    assert dense(x).shape == (2, 4, 20, 24)


def test_one_region_counts_for_every_picture(dense: nn.Module, x: Tensor, masks: Tensor):
    expected = by_hand(dense, x, masks[:1].expand(2, -1, -1))
    for region in (masks[0], masks[:1], masks[0].bool(), masks[0].int(), 7 * masks[0].float(), masks[0].numpy() > 0):
        with over_region(dense, region):
            torch.testing.assert_close(dense(x), expected)
            torch.testing.assert_close(dense(x[1:]), expected[1:])


def test_gradients_are_those_of_the_sum_written_out(dense: nn.Module, x: Tensor, masks: Tensor):
    image = x.clone().requires_grad_()
    by_hand(dense, image, masks)[:, 2].sum().backward()
    found = sal.explain(dense, x, 2, "input", "gradient", fix=None, region=masks)["input"]
    torch.testing.assert_close(found, image.grad)
    captured = sal.capture(dense, x, "input", 2, region=masks)
    torch.testing.assert_close(captured.gradients["input"], image.grad)
    torch.testing.assert_close(captured.logits, by_hand(dense, x, masks).detach())


def test_gradients_are_captums(dense: nn.Module, x: Tensor, masks: Tensor):
    class Wrapper(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (dense(x) * masks[:, None]).sum((2, 3)) / masks.sum((1, 2))[:, None]

    expected = Saliency(Wrapper()).attribute(x.clone().requires_grad_(), target=1, abs=False)
    found = sal.explain(dense, x, 1, "input", "gradient", fix=None, region=masks)["input"]
    torch.testing.assert_close(found, expected)
    with over_region(dense, masks):  # captum sees a network like any other
        torch.testing.assert_close(Saliency(dense).attribute(x.requires_grad_(), target=1, abs=False), expected)


@pytest.mark.parametrize("fix", [None, "forward", "backward"])
def test_deeplift_adds_up_to_the_difference_of_the_mean_logits(
    dense: nn.Module, x: Tensor, masks: Tensor, fix: str | None
):
    layers = ["head", "layer4.1"] if fix == "backward" else ["input", *LAYERS]  # its blur lets what is below leak out
    found = sal.explain(dense, x, 3, layers, "deeplift", fix, region=masks)
    with torch.no_grad(), sal.smoothed(dense, fix):
        difference = (by_hand(dense, x, masks) - by_hand(dense, torch.zeros_like(x), masks))[:, 3]
    for name in layers:
        torch.testing.assert_close(found[name].sum((1, 2, 3)), difference, msg=lambda m, name=name: f"{name}: {m}")


def test_without_a_target_it_is_the_class_with_the_highest_mean_there(dense: nn.Module, x: Tensor):
    with torch.no_grad():
        dense.head.bias -= dense(x[:1]).mean((0, 2, 3))
        top = dense(x).argmax(1)
    assert len(top[0].unique()) > 1, "the picture must have several classes"
    for c in top[0].unique().tolist():
        region = top[0] == c
        expected = int(by_hand(dense, x[:1], region[None].double())[0].argmax())
        assert sal.capture(dense, x[:1], "head", region=region).target.tolist() == [expected]
        found = sal.explain(dense, x[:1], None, "head", "gradient", region=region)["head"]
        assert torch.equal(found, sal.explain(dense, x[:1], expected, "head", "gradient", region=region)["head"])


VARIANTS: dict[str, dict[str, Any]] = {
    "once": {},
    "sampled": {"sampling": sal.sampling.SmoothGrad(3, batch=4)},
    "stepped": {"meta": MetaStep(1e-2, order=1)},
    "second order": {"meta": MetaStep(1e-2, order=2)},
}
EVERY = [method for method in (*sal.METHODS, "weights+l2", "deeplift+conv3x3+l2") if method != "cam"]
SOME = ["gradient", "deeplift", "lrp", "smooth_grad_cam++", "weights+l2"]
FIRST_ORDER_ONLY = ("deeplift", "lrp", "weights+l2")


@pytest.mark.parametrize(
    ("method", "variant"),
    [(method, "once") for method in EVERY] + [(method, other) for method in SOME for other in [*VARIANTS][1:]],
)
def test_each_picture_keeps_to_its_own_region(dense: nn.Module, x: Tensor, masks: Tensor, method: str, variant: str):
    if variant == "second order" and method in FIRST_ORDER_ONLY:
        with pytest.raises(ValueError, match="no second-order form"):
            sal.explain(dense, x, method=method, region=masks, **VARIANTS[variant])
        return
    layers = "all" if "weights" in method else ["layer2.1", "head"]
    options = {"layers": layers, "method": method, "steps": 2, **VARIANTS[variant]}
    if method == "smooth_grad_cam++":
        options["sampling"] = sal.sampling.SmoothGrad(2)
    together = sal.explain(dense, x, [2, 0], region=masks, **options)
    for i, target in enumerate([2, 0]):
        alone = sal.explain(dense, x[i : i + 1], target, region=masks[i], **options)
        for name, found in together.items():
            torch.testing.assert_close(found[i : i + 1], alone[name])
    swapped = sal.explain(dense, x, [2, 0], region=masks.flip(0), **options)
    assert not all(torch.allclose(swapped[name], found) for name, found in together.items())


@pytest.mark.parametrize("method", ["gradient", "lrp", "deeplift", "smooth_grad_cam++"])
def test_all_layers_are_those_of_hidden_layers(dense: nn.Module, x: Tensor, masks: Tensor, method: str):
    assert list(sal.hidden_layers(dense, x)) == LAYERS
    with over_region(dense, masks[0]):
        assert sal.hidden_layers(dense, x)["layer4.1"].stride == (8, 8)
    sampling = sal.sampling.SmoothGrad(2)
    assert list(sal.explain(dense, x, 1, method=method, region=masks, sampling=sampling)) == LAYERS


def test_cam_is_possible_over_the_whole_picture_alone(dense: nn.Module, x: Tensor, masks: Tensor):
    x = x[:, :, :16]  # so that every unit of the last layer is enlarged alike
    found = sal.explain(dense, x, 2, "layer4.1", "cam", region=torch.ones(16, 24))["layer4.1"]
    with over_region(dense, torch.ones(16, 24)):
        last = record_activations(dense, x, "layer4.1")["layer4.1"]
    torch.testing.assert_close(found[:, 0], torch.einsum("c,nchw->nhw", dense.head.weight[2, :, 0, 0], last).detach())
    with pytest.raises(ValueError, match="^cam needs average pooling and a linear classifier"):
        sal.explain(dense, x, 2, method="cam", region=masks[:, :16] + torch.eye(16, 24))


class Coarse(nn.Module):
    """Logits (N, 2, 2, 3) of pictures of 5 x 6 pixels: the same for all of them."""

    LOGITS = torch.arange(12.0, dtype=torch.float64).view(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.LOGITS.expand(len(x), -1, -1, -1) + 0 * x.sum()


def test_a_region_comes_to_smaller_logits_by_area():
    x, region = torch.zeros(1, 3, 5, 6), torch.zeros(5, 6)
    region[2, 1:3] = 1  # row 2 lies half in the upper cells and half in the lower; columns 0, 1 | 2, 3 | 4, 5
    model = Coarse()
    with over_region(model, region):
        found = model(x)
    torch.testing.assert_close(found, torch.tensor([[(0 + 1 + 3 + 4) / 4, (6 + 7 + 9 + 10) / 4]], dtype=torch.float64))
    with over_region(model, torch.tensor([[0.0, 0, 0], [3, 0, 1]])):  # at the logits' own size
        torch.testing.assert_close(model(x)[0, 0], torch.tensor((3 * 3 + 5) / 4, dtype=torch.float64))


def test_half_precision_keeps_a_large_regions_weights():
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model, x = Half(), torch.full((1, 2, 512, 512), 3.0, dtype=torch.float16)
    region = torch.zeros(512, 512)
    region[:500, :500] = 1  # a weight of 1 / 250,000, which 16 bits do not have
    with over_region(model, region):
        assert model(x).dtype == torch.float16
        assert model(x).tolist() == [[3.0, 3.0]]


def test_scores_of_other_functions_are_those_over_the_region(dense: nn.Module, x: Tensor, masks: Tensor):
    maps = torch.rand(2, 20, 24, dtype=torch.float64)
    with over_region(dense, masks[0]):
        curves = sal.insertion(dense, x, maps, 1, steps=3)
        assert road(dense, x, maps, 1, percentages=[20]).scores.shape == (2, 2)
        assert rise(dense, x, 1, masks=4).shape == (2, 1, 20, 24)
        logits = dense(x).detach()
        with sal.smoothed(dense, "forward"):
            repaired = dense(x).detach()
        [(name, p), _], _ = sal.top_classes(dense, x, k=2)
    with torch.no_grad():
        probabilities = by_hand(dense, x, masks[:1].expand(2, -1, -1)).softmax(1)
    torch.testing.assert_close(curves.scores[:, -1], probabilities[:, 1])
    assert name == f"class {int(probabilities[0].argmax())}" and p == pytest.approx(float(probabilities[0].max()))
    assert agreement(logits, repaired).shape == prediction_difference(logits, repaired).shape == (2,)


def test_a_region_for_each_picture_is_refused_where_pictures_are_multiplied(dense: nn.Module, x: Tensor, masks: Tensor):
    maps = torch.rand(2, 20, 24)
    with over_region(dense, masks):
        for ask in (
            lambda: sal.insertion(dense, x, maps, steps=3, batch=2),
            lambda: rise(dense, x, masks=2, batch=2),
        ):
            with pytest.raises(ValueError, match="^the network .* has 2 regions by picture in over_region: take one"):
                ask()
        with pytest.raises(ValueError, match="^expected 2 pictures, one for each region, got a batch of 4$"):
            dense(torch.cat([x, x]))


def test_surrogate_and_recalibration_of_a_dense_network(dense: nn.Module, x: Tensor, masks: Tensor):
    pictures = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    surrogate = sal.fit_surrogate(dense, pictures, epochs=1, progress=False)
    assert list(surrogate.layers) == [name for name in sal.strided_layers(dense) if name != "conv1"]
    for fix in (surrogate, recalibrate(dense, "forward", pictures)):
        found = sal.explain(dense, x, 2, "input", fix=fix, region=masks)["input"]
        with sal.smoothed(dense, fix), torch.no_grad():
            difference = (by_hand(dense, x, masks) - by_hand(dense, torch.zeros_like(x), masks))[:, 2]
        torch.testing.assert_close(found.sum((1, 2, 3)), difference)


@pytest.mark.parametrize("failure", [None, KeyboardInterrupt, ArithmeticError, ValueError])
def test_no_hook_is_left(dense: nn.Module, x: Tensor, masks: Tensor, failure: type[BaseException] | None):
    def inside() -> None:
        with over_region(dense, masks):
            if failure is ValueError:
                dense(x[:1])  # refused by the hook itself
            if failure is not None:
                raise failure
            dense(x)

    before = {key: dict(value) for key, value in vars(dense).items() if isinstance(value, dict)}
    with pytest.raises(failure) if failure else torch.enable_grad():
        inside()
    if failure is not None:

        def fail(*_: Any) -> None:
            raise failure

        handle = dense.layer3.register_forward_hook(fail)
        for call in (sal.explain, sal.capture):
            with pytest.raises(failure):
                call(dense, x, region=masks)
        handle.remove()
    assert {key: dict(value) for key, value in vars(dense).items() if isinstance(value, dict)} == before
    assert dense(x).ndim == 4


NAN = torch.ones(20, 24)
NAN[0, 0] = torch.nan
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no array": ("tumour", TypeError, "^expected the region as an array of booleans or weights, got 'tumour'$"),
    "array of words": (np.array([["a"] * 24] * 20), TypeError, r"got array\(\[\['a', "),
    "complex": (torch.ones(20, 24, dtype=torch.complex64), TypeError, "real weights, got torch.complex64$"),
    "one axis": (torch.ones(20), ValueError, r"^expected a region of shape \(H, W\) or \(N, H, W\), got \(20,\)$"),
    "four axes": (torch.ones(2, 1, 20, 24), ValueError, r"got \(2, 1, 20, 24\)$"),
    "no pixels": (torch.ones(0, 24), ValueError, r"got \(0, 24\)$"),
    "NaN": (NAN, ValueError, "^expected a finite region, got 1 NaN or infinite values$"),
    "negative": (NAN.nan_to_num(-0.5), ValueError, "^expected a region with weights of 0 and more, got -0.5$"),
    "empty": (torch.zeros(20, 24, dtype=torch.bool), ValueError, "^the region of picture 0 is empty: "),
    "one empty": (torch.eye(20, 24) * torch.tensor([1, 0]).view(2, 1, 1), ValueError, "^the region of picture 1 is "),
    "another size": (
        torch.ones(10, 24),
        ValueError,
        r"^expected a region of the picture's size \(20, 24\) or the logits' \(20, 24\), got \(10, 24\)$",
    ),
    "another number": (torch.ones(3, 20, 24), ValueError, "^expected one region or 2 of them, one a picture, got 3$"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_regions_are_one_line(dense: nn.Module, x: Tensor, bad: str):
    region, error, message = BAD[bad]
    for call in (sal.explain, sal.capture):
        with pytest.raises(error, match=message) as caught:
            call(dense, x, target=1, region=region)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("output", [{}, []])
def test_what_returns_no_tensor_is_not_helped_by_a_region(dense: nn.Module, x: Tensor, output: object):
    with dense.register_forward_hook(lambda *_: output):
        with pytest.raises(ValueError, match=f"classes\\), got {type(output).__name__}$"):
            sal.explain(dense, x, target=1, fix=None)


def test_a_dense_network_needs_a_region_and_a_classifier_none(dense: nn.Module, x: Tensor):
    for call in (sal.explain, sal.capture, sal.top_classes):
        with pytest.raises(
            ValueError, match=r"logits of shape \(N, classes\), got \(2, 4, 20, 24\): give a region, or"
        ):
            call(dense, x)
    classifier = build("functional")
    with pytest.raises(
        ValueError, match=r"^a region needs a network with dense logits .*, this one returned \(2, 5\)$"
    ):
        sal.explain(classifier, x, 1, region=torch.ones(20, 24))
    with pytest.raises(TypeError, match="torch.nn.Module"), over_region("network", torch.ones(2, 2)):
        pass


def test_as_region_repeats_one_for_all_pictures():
    assert as_region(np.eye(3)).shape == (1, 3, 3)
    assert as_region(np.eye(3), 4).shape == (4, 3, 3)
    assert torch.equal(as_region(np.eye(3)[::-1]), torch.eye(3, dtype=torch.float64).flip(0)[None])
