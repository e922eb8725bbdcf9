"""Every mistake is answered in one line that repeats the offending value and says what would be right."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from networks import build
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.fixes import BackwardHook, ForwardHook, Surrogate
from smoothsal_lib.sampling import AdaptGrad, FusionGrad, NoiseGrad, Path, SmoothGrad, SmoothGradSquared, VarGrad

NAN = float("nan")
X = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Returns(nn.Module):
    """A network that returns what it is told to."""

    def __init__(self, how: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(3, 5, 3, 2).double(), how

    def forward(self, x: Tensor) -> Any:
        return self.how(self.conv(x))


def with_nan() -> Tensor:
    x = X.clone()
    x[0, 0, 0, :2] = NAN
    return x


def explain(model: nn.Module | str = "residual", x: Any = X, **options: Any) -> Callable[[], Any]:
    return lambda: sal.explain(build(model) if isinstance(model, str) else model, x, **options)


def without_zennit() -> None:
    with mock.patch.dict(sys.modules, {"zennit.composites": None}):
        sal.explain(build("residual"), X, 1, method="lrp")


TOKENS = nn.Sequential(nn.Flatten(2), nn.Linear(256, 4), nn.Flatten(), nn.Linear(12, 5)).double()
CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # layers
    "unknown layer": (explain(layers="layer9"), ValueError, "no layer 'layer9'.* did you mean 'layer"),
    "misspelt input": (explain(layers="inptu"), ValueError, "no layer 'inptu'.* did you mean 'input'"),
    "unknown among several": (explain(layers=["layer4", "bn"]), ValueError, "no layer 'bn'"),
    "the whole network": (explain(layers=""), ValueError, "no layer ''"),
    "foreign module": (explain(layers=nn.ReLU()), ValueError, "this ReLU is no layer of the Sequential"),
    "no layers": (explain(layers=[]), ValueError, "no layers given"),
    "a number for a layer": (explain(layers=3), TypeError, "layers as names or modules, got 3"),
    "numbers for layers": (explain(layers=[3]), TypeError, "a layer as a name or a module, got 3"),
    "None for layers": (explain(layers=None), TypeError, "got None"),
    "a layer that is not run": (
        lambda: sal.explain(unused(), X, layers="spare", fix=None),
        ValueError,
        "layer 'spare' returned no tensor that depends on the image",
    ),
    "a layer without influence": (
        lambda: sal.explain(unused(), X, layers="aside", method="gradient"),
        ValueError,
        "layer 'aside' has no influence on the score",
    ),
    # classes
    "unknown class": (explain(target=5), ValueError, "no class 5: this network has classes 0 to 4"),
    "negative class": (explain(target=-1), ValueError, "no class -1"),
    "unknown class among good ones": (explain(target=[0, 7, 1]), ValueError, "no class 7"),
    "class as float": (explain(target=1.0), TypeError, r"integer class labels as target, got \[1.0\]"),
    "many classes as floats": (explain(target=torch.rand(3)), TypeError, "float32"),
    "class as bool": (explain(target=True), TypeError, "torch.bool"),
    "class by name": (explain(target="cat"), TypeError, "got 'cat'"),
    "one class too few": (
        explain(target=[0, 1]),
        ValueError,
        r"one target or 3 of them, one an image, got shape \(2,\)",
    ),
    "classes as one-hot": (explain(target=torch.eye(5).long()[:3]), ValueError, r"\(3, 5\)"),
    # methods and fixes
    "unknown method": (explain(method="gradcam"), ValueError, "unknown method 'gradcam': did you mean 'grad_cam'"),
    "unknown fix": (explain(fix="sideways"), ValueError, "unknown fix 'sideways': choose"),
    "surrogate by name": (explain(fix="surrogate"), ValueError, "pass fix="),
    "a number for a fix": (explain(fix=2), TypeError, "a fix as a name or a Fix, got int"),
    "unknown form, backward": (
        lambda: BackwardHook("centered"),
        ValueError,
        "unknown form 'centered': choose 'centred'",
    ),
    "unknown form, forward": (lambda: ForwardHook("original"), ValueError, "unknown form 'original'"),
    "unknown fix for smoothed": (
        lambda: sal.smoothed(build("residual"), "sideways").__enter__(),
        ValueError,
        "unknown fix 'sideways'",
    ),
    "no strided convolution": (explain("in_place_vgg"), ValueError, "has no strided convolution.* use fix=None"),
    "no strided convolution, forward": (explain("in_place_vgg", fix="forward"), ValueError, "no strided convolution"),
    "guided backprop without ReLU": (explain("patchify", method="guided_backprop"), ValueError, "ReLU.* calls none"),
    "no steps": (explain(method="integrated_gradients", steps=0), ValueError, "at least 1, got 0"),
    "half a step": (explain(method="integrated_gradients", steps=1.5), ValueError, "at least 1, got 1.5"),
    # cells of extract & aggregate
    "unknown phase 1": (explain(method="conv5x5+l2"), ValueError, "unknown extract 'conv5x5': choose one of bias, .*"),
    "unknown phase 2": (explain(method="conv3x3+l1"), ValueError, "unknown aggregate 'l1': choose one of sum, max_abs"),
    "unknown rule": (explain(method="lrp+conv3x3+l2"), ValueError, "unknown rule 'lrp': choose one of gradient"),
    "a number for a method": (explain(method=3), TypeError, "a name or an ExtractAggregate, got int"),
    "weights of a whole block": (
        explain(method="weights+l2", layers="layer4"),
        ValueError,
        "needs 2-d convolutions, and 'layer4' is none",
    ),
    "weights of the picture": (explain(method="weights+sum", layers="input"), ValueError, "and 'input' is none"),
    "weights under a surrogate": (
        lambda: sal.explain(build("residual"), X, 1, "layer4.conv1", "weights+l2", Surrogate.of(build("residual"))),
        ValueError,
        "something else runs in the place of 'layer4.conv1'",
    ),
    "weights under the published forward hook": (
        explain(method="weights+l2", layers="layer4.conv1", fix="forward:paper"),
        ValueError,
        "something else runs in the place of 'layer4.conv1'",
    ),
    "weights by multipliers": (explain(method="deeplift+weights+l2"), ValueError, "'deeplift' has no gradient of weig"),
    "guided backprop in a cell without ReLU": (
        explain("patchify", method="guided_backprop+conv1x1+l2"),
        ValueError,
        "ReLU.* calls none",
    ),
    # class activation maps and relevance
    "cam in front of a rectifier": (
        explain(method="cam", layers="layer2"),
        ValueError,
        "cam needs average pooling and a linear classifier behind the layer: 'layer2'",
    ),
    "cam without average pooling": (
        explain("in_place_vgg", method="cam", fix=None),
        ValueError,
        "cam needs average pooling and a linear classifier: Sequential",
    ),
    "smooth_grad_cam++ of squares": (
        explain(method="smooth_grad_cam++", sampling="smoothgrad_squared"),
        ValueError,
        "smooth_grad_cam.. needs means over looks, and SmoothGradSquared",
    ),
    "smooth_grad_cam++ of variances": (
        explain(method="smooth_grad_cam++", sampling="vargrad"),
        ValueError,
        "needs means over looks, and VarGrad",
    ),
    "lrp without zennit": (
        without_zennit,
        ModuleNotFoundError,
        r"'lrp' needs zennit: pip install 'smoothsal-lib\[lrp\]'",
    ),
    # sampling
    "unknown sampling": (
        explain(sampling="smooth"),
        ValueError,
        "unknown sampling 'smooth': choose None, 'smoothgrad'",
    ),
    "a number for a sampling": (explain(sampling=50), TypeError, "as a name or a Sampling, got int"),
    "a class for a sampling": (explain(sampling=SmoothGrad), TypeError, "as a name or a Sampling, got ABCMeta"),
    "no looks": (lambda: SmoothGrad(n=0), ValueError, "n = 0 is no count: give a whole number, 1 or more"),
    "half a look": (lambda: VarGrad(n=2.5), ValueError, "n = 2.5 is no count"),
    "True looks": (lambda: AdaptGrad(n=True), ValueError, "n = True is no count"),
    "no batch": (lambda: SmoothGradSquared(batch=0), ValueError, "batch = 0 is no count"),
    "no batch along a path": (lambda: Path(batch=0), ValueError, "batch = 0 is no count"),
    "no batch with AdaptGrad": (lambda: AdaptGrad(batch=0), ValueError, "batch = 0 is no count"),
    "no pieces of the path": (lambda: Path(0), ValueError, "steps = 0 is no count"),
    "no networks": (lambda: FusionGrad(m=0), ValueError, "m = 0 is no count"),
    "no noisy networks": (lambda: NoiseGrad(n=-1), ValueError, "n = -1 is no count"),
    "negative noise": (
        lambda: SmoothGrad(noise=-0.1),
        ValueError,
        "noise = -0.1 is not a standard deviation: give 0 or",
    ),
    "NaN noise": (lambda: SmoothGrad(noise=NAN), ValueError, "noise = nan is not a standard deviation"),
    "infinite noise": (lambda: SmoothGrad(noise=float("inf")), ValueError, "noise = inf is not a standard deviation"),
    "noise in words": (lambda: SmoothGrad(noise="15%"), ValueError, "noise = '15%' is not a standard deviation"),
    "negative noise of weights": (
        lambda: NoiseGrad(weight_noise=-1),
        ValueError,
        "weight_noise = -1 is not a standard",
    ),
    "NaN noise of weights": (lambda: FusionGrad(weight_noise=NAN), ValueError, "weight_noise = nan is not a standard"),
    "negative noise of fusion": (lambda: FusionGrad(noise=-1), ValueError, "noise = -1 is not a standard deviation"),
    "negative bound of noise": (
        lambda: AdaptGrad(noise=-0.1),
        ValueError,
        "noise = -0.1 is not a share of the picture",
    ),
    "NaN bound of noise": (lambda: AdaptGrad(noise=NAN), ValueError, "noise = nan is not a share"),
    "confidence above 1": (
        lambda: AdaptGrad(confidence=1.5),
        ValueError,
        "confidence = 1.5 is not a probability between",
    ),
    "confidence of 1": (lambda: AdaptGrad(confidence=1), ValueError, "confidence = 1 is not a probability"),
    "confidence of 0": (lambda: AdaptGrad(confidence=0.0), ValueError, "confidence = 0.0 is not a probability"),
    "NaN confidence": (lambda: AdaptGrad(confidence=NAN), ValueError, "confidence = nan is not a probability"),
    "least value above the picture's": (
        explain(sampling=AdaptGrad(low=0)),
        ValueError,
        "images between low and high, got values from -[0-9.]+ to [0-9.]+ for 0 to",
    ),
    "largest value below the picture's": (explain(sampling=AdaptGrad(high=1)), ValueError, "for -[0-9.]+ to 1$"),
    "least value above the largest": (explain(sampling=AdaptGrad(low=9, high=-9)), ValueError, "for 9 to -9$"),
    "least value of a bad shape": (
        explain(sampling=AdaptGrad(low=X[..., :8])),
        ValueError,
        r"low of shape \(3, 3, 16, 8\) does not broadcast",
    ),
    "NaN for the largest value": (explain(sampling=AdaptGrad(high=NAN)), ValueError, "a finite high"),
    "path from a bad shape": (explain(sampling=Path(2, X[..., :8])), ValueError, r"\(3, 3, 16, 8\) does not broadcast"),
    "path from NaN": (explain(sampling=Path(2, NAN)), ValueError, "finite baseline"),
    "unknown class and sampling": (explain(sampling="path", target=7), ValueError, "no class 7"),
    "unknown layer and sampling": (explain(sampling="path", layers="layer9"), ValueError, "no layer 'layer9'"),
    # meta-saliency
    "second order for DeepLift": (
        explain(method="deeplift", meta=1e-3),
        ValueError,
        r"deeplift .* no second-order form: use meta=sal.MetaStep\(0.001, order=1\)",
    ),
    "second order for integrated gradients": (
        explain(method="integrated_gradients", meta=1e-3),
        ValueError,
        "no second-order form",
    ),
    "second order for relevance": (explain(method="lrp", meta=1e-3), ValueError, "no second-order form"),
    "second order for cam": (explain(method="cam", meta=1e-3), ValueError, "no second-order form"),
    "second order for weights": (explain(method="weights+l2", meta=1e-3), ValueError, "no second-order form"),
    "second order for a cell of DeepLift": (
        explain(method="deeplift+scaling+l2", meta=1e-3),
        ValueError,
        "no second-order form",
    ),
    "negative rate": (explain(meta=-1e-3), ValueError, "rate = -0.001 is not a learning rate: give 0 or more"),
    "NaN rate": (explain(meta=NAN), ValueError, "rate = nan is not a learning rate"),
    "third order": (lambda: sal.MetaStep(1e-3, 3), ValueError, "order = 3 of the inner step: choose 1 or 2"),
    "a word for a meta step": (explain(method="gradient", meta="fast"), TypeError, "got 'fast'"),
    # maps
    "no percentile": (lambda: sal.capped(X[0], 0), ValueError, "percentile = 0 is not above 0 and at most 100"),
    "percentile beyond 100": (lambda: sal.capped(X[0], 101), ValueError, "percentile = 101 is not"),
    "maps of another size": (
        lambda: sal.times_image(X[:, 0, :8], X),
        ValueError,
        r"maps of \(3, 8, 16\) are not at the size of pictures of \(3, 3, 16, 16\): resize them",
    ),
    # images
    "one image without batch": (explain(x=X[0]), ValueError, r"\(N, C, H, W\).* got \(3, 16, 16\)"),
    "a video": (explain(x=X[None]), ValueError, r"got \(1, 3, 3, 16, 16\)"),
    "no images": (explain(x=X[:0]), ValueError, r"got \(0, 3, 16, 16\)"),
    "bytes": (explain(x=(X * 10).byte()), TypeError, "floating-point images, got torch.uint8"),
    "integers": (explain(x=X.long()), TypeError, "got torch.int64"),
    "an array": (explain(x=X.numpy()), TypeError, "images as a tensor .* got ndarray"),
    "NaN": (explain(x=with_nan()), ValueError, "finite images, got 2 NaN"),
    "infinity": (explain(x=X / 0), ValueError, "infinite"),
    "other precision": (explain(x=X.float()), ValueError, "images are torch.float32 .* the model is torch.float64"),
    "other device": (explain(x=X.to("meta")), ValueError, "images are torch.float64 on meta but the model"),
    # baselines
    "baseline of a bad shape": (explain(baseline=X[..., :8]), ValueError, r"\(3, 3, 16, 8\) does not broadcast"),
    "baseline of a higher rank": (explain(baseline=X[None]), ValueError, "does not broadcast"),
    "NaN in the baseline": (explain(baseline=NAN), ValueError, "finite baseline"),
    "infinite baseline": (explain(method="integrated_gradients", baseline=float("inf")), ValueError, "finite baseline"),
    # networks
    "no module": (lambda: sal.explain(lambda x: x, X), TypeError, "a torch.nn.Module, got function"),
    "no module, hidden layers": (lambda: sal.hidden_layers("resnet18", X), TypeError, "got str"),
    "no module, strided layers": (lambda: sal.strided_layers("resnet18"), TypeError, "got str"),
    "no module, smoothed": (lambda: sal.smoothed(3, "backward").__enter__(), TypeError, "got int"),
    "returns a tuple": (
        explain(Returns(lambda y: (y.mean((2, 3)), y)), fix=None),
        ValueError,
        r"logits of shape \(N, classes\), got tuple",
    ),
    "returns a dictionary": (explain(Returns(lambda y: {"out": y}), fix=None), ValueError, "got dict"),
    "dense output": (explain(Returns(lambda y: y), fix=None), ValueError, r"got \(3, 5, 7, 7\)"),
    "single logit without axis": (explain(Returns(lambda y: y.mean((1, 2, 3))), fix=None), ValueError, r"got \(3,\)"),
    "detached output": (
        explain(Returns(lambda y: y.mean((2, 3)).detach()), fix=None),
        ValueError,
        "do not depend on the image",
    ),
    "no maps": (explain(TOKENS, fix=None), ValueError, r"no hidden layer \(C, H, W\)"),
    "no maps and a fix": (explain(TOKENS), ValueError, "no strided convolution"),
}


def unused() -> nn.Module:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.aside, self.spare = nn.Conv2d(3, 5, 3, 2), nn.Conv2d(3, 5, 3, 2), nn.Conv2d(3, 5, 3, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.aside(x)
            return self.conv(x).mean((2, 3))

    return Unused().double()


@pytest.mark.parametrize("case", CASES)
def test_one_line_with_the_offending_value(case: str) -> None:
    mistake, kind, message = CASES[case]
    with pytest.raises(kind, match=message) as error:
        mistake()
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_long_values_are_shortened() -> None:
    model, x = build("functional"), X[:1].repeat(60, 1, 1, 1)
    for target in (torch.rand(60), np.full(60, 7), torch.full((60,), 7), ["cat"] * 60, torch.zeros(60, 5).long()):
        with pytest.raises((TypeError, ValueError)) as error:
            sal.explain(model, x, target)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 200


def test_documented_answers_to_what_is_unusual_but_right() -> None:
    model = build("residual")
    assert sal.hidden_layers(TOKENS, X) == {}
    assert sal.explain(TOKENS, X, 1, "input", fix=None)["input"].shape == X.shape
    assert list(sal.explain(model, X, 1, ["layer4", "input", "layer4"])) == ["layer4", "input"]
    assert list(sal.explain(model, X, 1, (name for name in ["layer4", "input"]))) == ["layer4", "input"]
    assert list(sal.explain(model, X, 1, [model.layer4, "input"])) == ["layer4", "input"]
    assert sal.explain(model, X, 1, baseline=0.5)["layer2"].equal(
        sal.explain(model, X, 1, baseline=X * 0 + 0.5)["layer2"]
    )
    one_channel = torch.full((3, 1, 1), 0.5)
    assert sal.explain(model, X, 1, baseline=one_channel)["layer2"].equal(
        sal.explain(model, X, 1, baseline=0.5)["layer2"]
    )
    single = Returns(lambda y: y.mean((1, 2, 3)).unsqueeze(1))
    assert sal.explain(single, X, fix=None)["conv"].shape == (3, 5, 7, 7)
