"""Maps are the same on every device, in every memory format and precision, and a GPU is not waited for in between.

Without a GPU the devices are the CPU; where there is one, its cases come on top.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from networks import CLASSES, Block, build
from torch import Tensor, nn

import smoothsal_lib as sal
from benchmarks.device import EXPLAINED, FIXES, WAYS, Maps, Waits, deviation, repair
from smoothsal_lib.rise import rise

TARGETS = [1, 4, 0]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def explained(options: dict[str, Any], fix: str | None, model: nn.Module, x: Tensor) -> Maps:
    return sal.explain(model, x, TARGETS, fix=None if fix is None else repair(model, fix), steps=2, **options)


def assert_near(way: str, device: str, call: Callable[[nn.Module, Tensor], Maps], x: Tensor) -> None:
    """What a call makes of a network is what it makes of it on the CPU in float64."""
    found = WAYS[way].run(device, call, build("residual"), x)
    for name, off in deviation(found, WAYS["float64"].run("cpu", call, build("residual"), x)).items():
        assert off <= WAYS[way].error, f"{name}: off by {off:.2g} of its norm"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", EXPLAINED)
def test_every_method_and_sampling(what: str, way: str, device: str, x: Tensor) -> None:
    assert_near(way, device, partial(explained, EXPLAINED[what], None), x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fix", FIXES)
def test_every_fix(fix: str, way: str, device: str, x: Tensor) -> None:
    assert_near(way, device, partial(explained, {"method": "deeplift"}, fix), x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
def test_rise(way: str, device: str, x: Tensor) -> None:
    def call(model: nn.Module, x: Tensor) -> Maps:
        return {"rise": rise(model, x, TARGETS, masks=20)}

    assert_near(way, device, call, x)


@pytest.mark.parametrize("what", [*EXPLAINED, *FIXES[:4], "rise"])  # the others begin by making a network
def test_another_default_device_changes_nothing(what: str, x: Tensor) -> None:
    """As a GPU may be; ``meta`` stands for it, on which a tensor that came there by mistake has no values."""
    model = build("residual")
    options = EXPLAINED.get(what, {"method": "deeplift"})
    call = partial(explained, options, what if what in FIXES else None)
    if what == "rise":
        call = partial(lambda model, x: {"rise": rise(model, x, TARGETS, masks=20)})
    expected = call(model, x)
    with torch.device("meta"):
        found = call(model, x)
    assert all(torch.equal(attribution, expected[name]) for name, attribution in found.items())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", ["float32", "autocast", "bfloat16"])
def test_what_deeplift_gives_adds_up_to_the_change_of_the_score(way: str, device: str, x: Tensor) -> None:
    """In 32 bits to 1e-4 of it; in 16 to some percent, since activations are kept in 16 bits."""
    model = build("residual")
    change = (model(x) - model(torch.zeros_like(x))).gather(1, torch.tensor(TARGETS)[:, None])[:, 0]
    found = WAYS[way].run(device, partial(explained, {"method": "deeplift"}, None), build("residual"), x)
    for name, attribution in found.items():
        off = (attribution.sum((1, 2, 3)) - change).abs().max() / change.abs().max()
        assert off <= (1e-4 if way == "float32" else 0.1), f"{name}: off by {off:.2g}"


# ------------------------------------------------------------------------------------------------ waiting for a GPU


def waits(depth: int, x: Tensor, **options: Any) -> int:
    """How often one call of explain waits, for a residual network of so many blocks."""
    torch.manual_seed(0)
    stem, blocks = nn.Conv2d(3, 6, 3, 2, 1), [Block(6, 6) for _ in range(depth)]
    model = nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)).double().eval()
    with Waits() as asked:
        sal.explain(model, x, **options)
    return asked.counts.total()


# Images and baseline are checked once; then every pass looks at its pictures, and DeepLift has two.
EXPECTED = {
    "deeplift": 4,
    "integrated_gradients": 5,
    "lrp": 4,
    "cam": 5,
    "weights+l2": 4,
    "first order": 5,
    "second order": 8,  # a pass and a step, for each of three pictures
    "smooth_grad_cam++": 4,
    **dict.fromkeys(["smoothgrad", "smoothgrad_squared", "vargrad"], 4),
    **dict.fromkeys(["adaptgrad", "noisegrad", "fusiongrad"], 6),
    "path": 5,
}


@pytest.mark.parametrize("what", EXPLAINED)
def test_a_gpu_is_waited_for_as_often_whatever_the_number_of_layers(what: str, x: Tensor) -> None:
    """Counted without a GPU: where the CPU asks for a value that was computed."""
    options = {"target": 1, "steps": 2, "fix": "backward"} | EXPLAINED[what]
    few, many = (waits(depth, x, **options) for depth in (1, 3))
    assert few == many <= EXPECTED.get(what, 3)


def test_the_predicted_class_is_taken_without_waiting(x: Tensor) -> None:
    assert waits(2, x, method="gradient") == waits(2, x, method="gradient", target=1)


def test_waiting_is_counted(x: Tensor) -> None:
    with Waits() as asked:
        for value in x.flatten()[:5]:
            float(value)
        bool((x > 0).any())
        torch.equal(x, x)
    assert asked.counts == {"_local_scalar_dense": 6, "equal": 1}
