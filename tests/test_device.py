"""Maps are the same on every device, in every memory format and precision, and a GPU is not waited for in between.

Without a GPU the devices are the CPU; where there is one, its cases come on top.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from networks import CLASSES, Block, build
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import smoothsal_lib as sal
from smoothsal_lib.fixes import Surrogate
from smoothsal_lib.rise import rise
from smoothsal_lib.sampling import (
    AdaptGrad,
    FusionGrad,
    NoiseGrad,
    Path,
    Sampling,
    SmoothGrad,
    SmoothGradSquared,
    VarGrad,
)

Maps = dict[str, Tensor]
TARGETS = [1, 4, 0]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@dataclass(frozen=True)
class Way:
    """A way to run a network.

    Attributes:
        error: how far off maps may be, as a share of their norm.
        dtype: of the network and its pictures.
        memory_format: of the network's weights and its pictures.
        within: the context of the run.
    """

    error: float
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    within: Callable[[str], AbstractContextManager[Any]] = lambda device: nullcontext()


WAYS = {
    "float32": Way(1e-4),
    "float64": Way(1e-9, torch.float64),
    "channels last": Way(1e-4, memory_format=torch.channels_last),
    "inference mode": Way(1e-4, within=lambda device: torch.inference_mode()),
    "autocast": Way(0.35, within=lambda device: torch.autocast(device, torch.bfloat16)),
    "bfloat16": Way(0.35, torch.bfloat16),
}
EXPLAINED: dict[str, dict[str, Any]] = {
    **{method: {"method": method} for method in sal.METHODS},
    "smooth_grad_cam++": {"method": "smooth_grad_cam++", "sampling": SmoothGrad(3)},
    "conv3x3+l2": {"method": "conv3x3+l2"},
    "weights+l2": {"method": "weights+l2"},
    "first order": {"method": "gradient", "meta": sal.MetaStep(0.01, 1)},
    "second order": {"method": "gradient", "meta": sal.MetaStep(0.01, 2)},
}
SAMPLINGS: dict[str, Sampling] = {
    "smoothgrad": SmoothGrad(3),
    "smoothgrad_squared": SmoothGradSquared(3),
    "vargrad": VarGrad(3),
    "adaptgrad": AdaptGrad(3),
    "noisegrad": NoiseGrad(2),
    "fusiongrad": FusionGrad(2, m=2),
    "path": Path(3),
}
EXPLAINED |= {name: {"method": "deeplift", "sampling": sampling} for name, sampling in SAMPLINGS.items()}
FIXES = ["backward", "backward:paper", "forward", "forward:paper", "surrogate", "surrogate and backward"]


def repair(model: nn.Module, fix: str) -> Any:
    if "surrogate" not in fix:
        return fix
    # Its parameters must not be tensors of inference mode, in which it was not trained either.
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        surrogate = Surrogate.of(model)
    return [surrogate, "backward"] if "backward" in fix else surrogate


def run(way: Way, device: str, call: Callable[[nn.Module, Tensor], Maps], x: Tensor) -> Maps:
    """What a call makes of the network and the pictures when they are run that way, on the CPU in float64 again."""
    model = build("residual").to(device, way.dtype).to(memory_format=way.memory_format)
    pictures = x.to(device, way.dtype).to(memory_format=way.memory_format)
    with way.within(device):
        found = call(model, pictures)
    assert all(attribution.device.type == device for attribution in found.values())
    return {name: attribution.to("cpu", torch.float64) for name, attribution in found.items()}


def assert_near(found: Maps, expected: Maps, error: float) -> None:
    assert list(found) == list(expected)
    for name, attribution in found.items():
        off = float((attribution - expected[name]).norm() / expected[name].norm())
        assert off <= error, f"{name}: off by {off:.2g} of its norm"


def explained(options: dict[str, Any], fix: str | None, model: nn.Module, x: Tensor) -> Maps:
    return sal.explain(model, x, TARGETS, fix=None if fix is None else repair(model, fix), steps=2, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", EXPLAINED)
def test_every_method_and_sampling(what: str, way: str, device: str, x: Tensor) -> None:
    call = partial(explained, EXPLAINED[what], None)
    assert_near(run(WAYS[way], device, call, x), run(WAYS["float64"], "cpu", call, x), WAYS[way].error)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fix", FIXES)
def test_every_fix(fix: str, way: str, device: str, x: Tensor) -> None:
    call = partial(explained, {"method": "deeplift"}, fix)
    assert_near(run(WAYS[way], device, call, x), run(WAYS["float64"], "cpu", call, x), WAYS[way].error)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
def test_rise(way: str, device: str, x: Tensor) -> None:
    def call(model: nn.Module, x: Tensor) -> Maps:
        return {"rise": rise(model, x, TARGETS, masks=20)}

    assert_near(run(WAYS[way], device, call, x), run(WAYS["float64"], "cpu", call, x), WAYS[way].error)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", ["float32", "autocast", "bfloat16"])
def test_what_deeplift_gives_adds_up_to_the_change_of_the_score(way: str, device: str, x: Tensor) -> None:
    """In 32 bits to 1e-4 of it; in 16 to some percent, since activations are kept in 16 bits."""
    model = build("residual")
    change = (model(x) - model(torch.zeros_like(x))).gather(1, torch.tensor(TARGETS)[:, None])[:, 0]
    found = run(WAYS[way], device, partial(explained, {"method": "deeplift"}, None), x)
    for name, attribution in found.items():
        off = (attribution.sum((1, 2, 3)) - change).abs().max() / change.abs().max()
        assert off <= (1e-4 if way == "float32" else 0.1), f"{name}: off by {off:.2g}"


# ------------------------------------------------------------------------------------------------ waiting for a GPU


class Waits(TorchDispatchMode):
    """Counts where the CPU asks for a value, for which it would have to wait if a GPU were to compute it."""

    ASKING = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name in self.ASKING:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


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
