"""Whatever is done to a network, and however it ends, afterwards it is what it was: bit for bit, hook for hook."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from networks import Block, build
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

import smoothsal_lib as sal
from smoothsal_lib import MetaStep
from smoothsal_lib.fixes import BackwardHook, Fix, ForwardHook, Surrogate
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


class Mine(nn.Module):
    """A residual network in a state of its own, with a layer that fails on demand."""

    def __init__(self, failure: type[BaseException] | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.block = Block(4, 6, 2)
        self.last = Failing(failure)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.drop(self.relu(self.norm(self.stem(x)))))
        return self.head(self.last(x).mean((2, 3)))


class Failing(nn.Module):
    def __init__(self, failure: type[BaseException] | None) -> None:
        super().__init__()
        self.failure = failure

    def forward(self, x: Tensor) -> Tensor:
        if self.failure is not None:
            raise self.failure("on purpose")
        return torch.tanh(x).relu()


def used(failure: type[BaseException] | None = None) -> nn.Module:
    """Frozen batch norm in a network in training, a frozen weight, a gradient half accumulated, hooks of its user."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mine(failure).double().train()
        model.norm.eval()
        model.stem.weight.requires_grad_(False)
        model.head.weight.grad = torch.randn_like(model.head.weight)
        model.norm.running_mean.normal_()
    model.stem.register_forward_hook(lambda *_: None)
    model.block.conv1.register_forward_pre_hook(lambda *_: None)
    model.head.register_full_backward_hook(lambda *_: None)
    return model


def state(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Everything that a library could leave behind, as values that compare."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():  # hooks, flags, patched methods, cached tensors
            if isinstance(value, dict):
                found[f"{name}.{key}"] = [(k, id(v)) for k, v in value.items()]
            else:
                found[f"{name}.{key}"] = repr(value)
        found[f"{name} is"] = (id(module), type(module), module.forward.__func__)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        grad = None if tensor.grad is None else (id(tensor.grad), tensor.grad.tolist())
        found[name] = (tensor.tolist(), tensor.dtype, tensor.requires_grad, tensor._version, tensor.data_ptr(), grad)
        found[f"{name} hooks"] = repr(tensor._backward_hooks)
    found["images"] = (x.tolist(), x.requires_grad, x._version, x.grad, x.is_leaf)
    found["random"] = torch.get_rng_state().tolist()
    if torch.cuda.is_available():
        found["random on cuda"] = torch.cuda.get_rng_state().tolist()
    found["function modes"] = torch._C._len_torch_function_stack()
    found["grad, inference"] = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    found["default dtype"] = torch.get_default_dtype()
    for key, value in vars(torch_module).items():
        if key.startswith("_global") and isinstance(value, dict):
            found[key] = list(value)
    return found


def surrogate(model: nn.Module) -> Fix:
    with torch.random.fork_rng(devices=[]):
        return Surrogate.of(model)


FIXES: dict[str, Callable[[nn.Module], Any]] = {
    "none": lambda model: None,
    "backward": lambda model: "backward",
    "backward:paper": lambda model: "backward:paper",
    "forward": lambda model: "forward",
    "forward:paper": lambda model: "forward:paper",
    "surrogate": surrogate,
    "several": lambda model: [surrogate(model), BackwardHook(), "forward:paper"],
}
ENDINGS: dict[str, tuple[type[BaseException] | None, Any]] = {
    "success": (None, 1),
    "bad target": (None, 99),
    "a layer raises": (ArithmeticError, 1),
    "interrupted": (KeyboardInterrupt, 1),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("fix", FIXES)
@pytest.mark.parametrize("method", [*sal.METHODS, "weights+l2"])
def test_explain_leaves_nothing(method: str, fix: str, ending: str, x: Tensor) -> None:
    failure, target = ENDINGS[ending]
    model = used(failure)
    repair = FIXES[fix](model)
    images = x[:1].clone().requires_grad_()
    before = state(model, images)
    layers: list[str] = {"cam": ["last"], "weights+l2": ["block.conv1"]}.get(method, ["input", "relu", "block"])
    refused = ending == "bad target" or (method == "weights+l2" and fix in ("forward:paper", "surrogate", "several"))
    expected = failure or (ValueError if refused else None)  # the layer fails before all that could be refused is known
    with pytest.raises(expected) if expected else torch.enable_grad():
        sal.explain(model, images, target, layers, method, repair, steps=2, sampling=SAMPLINGS.get(method))
    assert state(model, images) == before


SAMPLINGS: dict[str, Sampling] = {
    "smoothgrad": SmoothGrad(3, batch=2),
    "smoothgrad_squared": SmoothGradSquared(3, batch=2),
    "vargrad": VarGrad(3, batch=2),
    "adaptgrad": AdaptGrad(3, batch=2),
    "noisegrad": NoiseGrad(3),
    "fusiongrad": FusionGrad(2, m=2, batch=2),
    "path": Path(3, batch=2),
    "smooth_grad_cam++": SmoothGrad(2),  # keeps its own number of looks down in the tests of methods
}
LATER: dict[str, tuple[type[BaseException] | None, int]] = {
    "success": (None, 0),
    "a layer raises": (ArithmeticError, 1),
    "a layer raises later": (ArithmeticError, 2),
    "interrupted": (KeyboardInterrupt, 1),
    "interrupted later": (KeyboardInterrupt, 2),
}


def used_for(passes: int, failure: type[BaseException] | None) -> nn.Module:
    """A network that fails after so many forward passes: the first is that of the clean picture."""
    model = used()
    left = [passes]

    def fail(*_: Any) -> None:
        left[0] -= 1
        if failure is not None and left[0] < 0:
            raise failure("on purpose")

    model.last.register_forward_hook(fail)
    return model


@pytest.mark.parametrize("ending", LATER)
@pytest.mark.parametrize("fix", ["none", "surrogate"])
@pytest.mark.parametrize("method", ["gradient", "deeplift", "lrp"])
@pytest.mark.parametrize("sampling", sal.sampling.SAMPLINGS)
def test_sampling_leaves_nothing(sampling: str, method: str, fix: str, ending: str, x: Tensor) -> None:
    failure, passes = LATER[ending]
    model = used_for(passes, failure)
    repair = FIXES[fix](model)
    images = x[:2].clone().requires_grad_()
    weights = [parameter.clone() for parameter in model.parameters()]
    before = state(model, images)
    with pytest.raises(failure, match="on purpose") if failure else torch.enable_grad():
        sal.explain(model, images, None, ["input", "block"], method, repair, sampling=SAMPLINGS[sampling])
    assert state(model, images) == before
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))


@pytest.mark.parametrize("ending", LATER)
@pytest.mark.parametrize("meta", [1e-3, MetaStep(1e-3, 1)], ids=["second order", "first order"])
@pytest.mark.parametrize("sampling", [None, "smoothgrad", "fusiongrad"])
@pytest.mark.parametrize("method", ["gradient", "guided_backprop", "normgrad"])
def test_meta_saliency_leaves_nothing(
    method: str, sampling: str | None, meta: float | MetaStep, ending: str, x: Tensor
) -> None:
    failure, passes = LATER[ending]
    model = used_for(passes, failure)
    images = x[:2].clone().requires_grad_()
    before = state(model, images)
    chosen = None if sampling is None else SAMPLINGS[sampling]
    with pytest.raises(failure, match="on purpose") if failure else torch.enable_grad():
        sal.explain(model, images, 1, ["input", "block"], method, "backward", sampling=chosen, meta=meta)
    assert state(model, images) == before


def test_a_set_aside_weight_that_is_tied_returns_to_all_its_places(x: Tensor) -> None:
    model = used()
    model.again = nn.Conv2d(3, 4, 3).double()
    model.again.weight = model.stem.weight
    before = state(model, x)
    weight = model.stem.weight
    for network in SAMPLINGS["noisegrad"].networks(model):
        with pytest.raises(KeyboardInterrupt), network:
            assert model.again.weight is model.stem.weight is not weight
            assert not model.stem.weight.requires_grad and model.head.weight.grad is None
            raise KeyboardInterrupt
    assert model.again.weight is model.stem.weight is weight
    assert state(model, x) == before


@pytest.mark.parametrize("layers", ["all", "no such layer", "head"])
def test_whatever_the_layers(layers: str, x: Tensor) -> None:
    model = used()
    before = state(model, x)
    if layers == "no such layer":
        with pytest.raises(ValueError, match="no layer"):
            sal.explain(model, x, 1, layers)
    else:
        sal.explain(model, x, 1, layers, "gradient")
    assert state(model, x) == before


@pytest.mark.parametrize("ending", ENDINGS)
def test_hidden_layers_leaves_nothing(ending: str, x: Tensor) -> None:
    failure, _ = ENDINGS[ending]
    model = used(failure)
    before = state(model, x)
    with pytest.raises(failure) if failure else torch.enable_grad():
        sal.hidden_layers(model, x)
    assert state(model, x) == before


@pytest.mark.parametrize("fix", FIXES)
@pytest.mark.parametrize("failure", [None, ArithmeticError, KeyboardInterrupt])
def test_smoothed_leaves_nothing(fix: str, failure: type[BaseException] | None, x: Tensor) -> None:
    model = used()
    repair = FIXES[fix](model)
    before = state(model, x)
    with pytest.raises(failure) if failure else torch.enable_grad():
        with sal.smoothed(model, repair):
            model.eval()(x)
            model.train()
            model.norm.eval()
            if failure:
                raise failure
    assert state(model, x) == before


class HalfEntered(Fix):
    """Fails on entering, as a fix that does not suit the network does."""

    @contextmanager
    def repair(self, model: nn.Module) -> Iterator[None]:
        raise ValueError("does not suit")
        yield


def test_a_fix_that_fails_on_entering_takes_the_others_with_it(x: Tensor) -> None:
    model = used()
    before = state(model, x)
    with pytest.raises(ValueError, match="does not suit"), sal.smoothed(model, BackwardHook(), HalfEntered()):
        pass
    with pytest.raises(ValueError, match="unknown fix"), sal.smoothed(model, "backward", "sideways"):
        pass
    assert state(model, x) == before


@pytest.mark.parametrize("fix", [BackwardHook(), ForwardHook(), BackwardHook("paper"), ForwardHook("paper")])
def test_a_registration_that_fails_undoes_those_before_it(fix: Fix, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last strided convolution refuses its hook: the others must lose theirs."""
    model = used()
    last = list(sal.strided_layers(model).values())[-1]

    def refuse(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(last, "register_forward_hook", refuse)
        patch.setattr(last, "register_forward_pre_hook", refuse)
        before = state(model, x)
        with pytest.raises(MemoryError), fix.repair(model):
            pass
        assert state(model, x) == before


@pytest.mark.parametrize("ending", ["success", "a layer raises"])
def test_the_fixed_network_is_fixed_until_the_end_and_no_longer(ending: str, x: Tensor) -> None:
    model = build("residual")
    plain = model(x)
    with pytest.raises(ZeroDivisionError) if ending == "a layer raises" else torch.enable_grad():
        with sal.smoothed(model, "forward") as same:
            assert same is model
            assert not torch.allclose(model(x), plain)
            if ending == "a layer raises":
                _ = 1 / 0
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *[(method, {}) for method in sal.METHODS],
        *[("gradient", {"sampling": SAMPLINGS[name]}) for name in sal.sampling.SAMPLINGS],
        *[("gradient", {"meta": meta}) for meta in (1e-3, MetaStep(1e-3, 1))],
    ],
)
def test_no_memory_is_held(method: str, options: dict[str, Any], x: Tensor) -> None:
    """Once result and network are let go, both are gone: no cache and no cycle keeps a graph alive."""
    gc.collect()
    gc.disable()  # what only the collector would find is a leak on a GPU
    try:
        model = build("residual")
        maps = sal.explain(model, x, 1, method=method, steps=2, **{"sampling": SAMPLINGS.get(method), **options})
        held = [weakref.ref(model), *(weakref.ref(a) for a in maps.values())]
        assert not any(a.requires_grad or a.grad_fn is not None for a in maps.values())
        del model, maps
        gc.collect(0)
        assert [ref() for ref in held] == [None] * len(held)
    finally:
        gc.enable()


def test_the_test_sees_what_others_leave_behind(x: Tensor) -> None:
    """Each kind of trace, made by hand, shows in :func:`state`."""
    model = used()
    traces: list[Callable[[], Any]] = [
        lambda: model.relu.register_forward_hook(lambda *_: None),
        lambda: model.relu.register_full_backward_hook(lambda *_: None),
        lambda: model.drop.eval(),
        lambda: model.stem.weight.requires_grad_(),
        lambda: setattr(model.head.weight, "grad", None),
        lambda: model.norm.running_mean.add_(0),
        lambda: model.head.bias.data.add_(1e-12),
        lambda: setattr(model.relu, "forward", model.relu.forward),
        lambda: setattr(model.block, "relu", nn.ReLU()),
        lambda: torch.rand(1),
        lambda: x.add_(0),
        lambda: x.requires_grad_(),
    ]
    random = torch.get_rng_state()
    for leave in traces:
        before = state(model, x)
        leave()
        assert state(model, x) != before
    torch.set_rng_state(random)
