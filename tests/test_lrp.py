"""Relevance: equal to zennit used directly, and to the rules written out with matrices; and what stays untouched."""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy
from typing import Any

import pytest
import torch
from matrices import matrix_of
from networks import build
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus
from zennit.torchvision import ResNetCanonizer

import smoothsal_lib as sal
from smoothsal_lib.fixes import BackwardHook, Surrogate
from smoothsal_lib.lrp import relevance_network

LAYERS = ["stem", "norm", "block1", "block2.conv1", "block2", "block3"]


def resnet() -> nn.Module:
    """What zennit knows: torchvision's residual blocks, of both kinds, each with a shortcut that strides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        basic = nn.Sequential(nn.Conv2d(4, 6, 1, 2, bias=False), nn.BatchNorm2d(6))
        bottleneck = nn.Sequential(nn.Conv2d(6, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
        model = nn.Sequential(
            OrderedDict(
                stem=nn.Conv2d(3, 4, 3, 1, 1, bias=False),
                norm=nn.BatchNorm2d(4),
                relu=nn.ReLU(inplace=True),
                block1=BasicBlock(4, 4),
                block2=BasicBlock(4, 6, 2, basic),
                block3=Bottleneck(6, 2, 2, bottleneck),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                head=nn.Linear(8, 5),
            )
        )
        model = model.double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.data.uniform_(0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    tensor.data.uniform_(-0.3, 0.3)
    return model


def surrogate(model: nn.Module) -> Surrogate:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Surrogate.of(model)


def with_zennit(model: nn.Module, x: Tensor, target: Tensor, layers: list[str]) -> dict[str, Tensor]:
    """zennit as its documentation has it: the score of the class is handed down; layers by retained gradients."""
    composite = EpsilonPlus(canonizers=[ResNetCanonizer()])
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            kept[name] = output.clone()  # in-place layers follow
            kept[name].retain_grad()
            return kept[name].clone()

        return hook

    scores = model(x).gather(1, target[:, None]).detach()
    with Gradient(model, composite) as attributor:
        handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
        _, found = attributor(x, torch.zeros(len(x), 5, dtype=torch.float64).scatter(1, target[:, None], scores))
        for handle in handles:
            handle.remove()
    return {"input": found, **{name: kept[name].grad for name in layers}}


# zennit turns a merged batch norm into a division by √(1 + 1e-5): its network's scores are not quite the network's.
CLOSE = {"rtol": 1e-4, "atol": 1e-9}


def test_equal_to_zennit(x: Tensor) -> None:
    model = resnet()
    target = torch.tensor([1, 4, 0])
    expected = with_zennit(deepcopy(model), x, target, LAYERS)
    found = sal.explain(model, x, target, ["input", *LAYERS], "lrp", None)
    assert list(found) == list(expected)
    for name, relevance in found.items():
        assert relevance.shape == expected[name].shape
        torch.testing.assert_close(relevance, expected[name], msg=lambda m, n=name: f"{n}: {m}", **CLOSE)


def test_with_a_surrogate_the_stages_take_the_places(x: Tensor) -> None:
    model = resnet()
    fix = surrogate(model)
    target = torch.tensor([1, 4, 0])
    by_hand = deepcopy(model)
    for name, stage in fix.items():
        parent, _, child = name.rpartition(".")
        setattr(by_hand.get_submodule(parent), child, deepcopy(stage))
    expected = with_zennit(by_hand, x, target, LAYERS)
    for name, relevance in sal.explain(model, x, target, ["input", *LAYERS], "lrp", fix).items():
        torch.testing.assert_close(relevance, expected[name], msg=lambda m, n=name: f"{n}: {m}", **CLOSE)


def test_hooks_of_a_replaced_convolution_still_run(x: Tensor) -> None:
    """A surrogate, and another fix on top of it."""
    model = resnet()
    fix = surrogate(model)
    alone = sal.explain(model, x, 1, "block1", "lrp", fix)["block1"]
    both = sal.explain(model, x, 1, "block1", "lrp", [fix, "backward"])["block1"]
    assert not torch.allclose(both, alone)
    assert torch.equal(sal.explain(model, x, 1, "block1", "lrp", ["backward", fix])["block1"], both)
    for fixes in ([fix, "forward"], [fix, "forward:paper"], ["forward"], ["forward:paper"]):
        with sal.smoothed(model, fixes):
            expected = model(x)
            with relevance_network(model) as network:
                torch.testing.assert_close(network(x), expected, **CLOSE)


def test_the_backward_hook_blurs_what_leaves_a_strided_convolution(x: Tensor) -> None:
    """On one that nothing runs around, so that what enters and what leaves can be seen."""
    model = build("functional")
    found = sal.explain(model, x, 1, "first", "lrp", "backward")["first"]
    active = (
        sal.capture(model, x, "first", 1).activations["first"] > 0
    )  # F.relu is no module, so its gradient is a mask
    torch.testing.assert_close(found, BackwardHook().blur(entering(model, x), model.second.stride) * active)


def entering(model: nn.Module, x: Tensor) -> Tensor:
    """The relevance of what `second` is fed."""
    seen = []

    def pre(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(args[0].clone())
        return (seen[-1],)

    with relevance_network(model) as network:
        network.second.register_forward_pre_hook(pre, prepend=True)
        scores = network(x.clone().requires_grad_())[:, 1]
        (gradient,) = torch.autograd.grad(scores.sum(), seen[-1])
    return gradient * scores[:, None, None, None].detach()


# ----------------------------------------------------------------------------------------------------- by hand


def bias_free() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (
            nn.Sequential(
                OrderedDict(
                    first=nn.Conv2d(3, 4, 3, 2, 1, bias=False),
                    relu1=nn.ReLU(),
                    second=nn.Conv2d(4, 6, 3, 2, 1, bias=False),
                    relu2=nn.ReLU(),
                    pool=nn.AdaptiveAvgPool2d(1),
                    flatten=nn.Flatten(),
                    head=nn.Linear(6, 5, bias=False),
                )
            )
            .double()
            .eval()
        )


def shared_out(contributions: Tensor, relevance: Tensor) -> Tensor:
    """R_j = Σ_k z_jk / (Σ_i z_ik ± 1e-6) R_k for contributions (k, j) and the relevance (k,) from above."""
    sums = contributions.sum(1)
    shares = contributions / (sums + torch.where(sums >= 0, 1e-6, -1e-6))[:, None]
    return (shares * relevance[:, None]).sum(0)


def by_hand(model: nn.Module, x: Tensor, target: int) -> dict[str, Tensor]:
    """The relevance of one picture (3, 16, 16), with every layer as a matrix."""
    a1 = model.relu1(model.first(x[None]))
    a2 = model.relu2(model.second(a1))
    pooled = model.pool(a2)
    logits = model.head(pooled.flatten(1))[0]
    top = torch.zeros(5, dtype=torch.float64).index_fill(0, torch.tensor(target), float(logits[target]))
    r = shared_out(model.head.weight * pooled.flatten(), top)
    mean = torch.block_diag(*[torch.full((1, a2[0, 0].numel()), 1 / a2[0, 0].numel(), dtype=torch.float64)] * 6)
    r2 = shared_out(mean * a2.flatten(), r)
    r1 = shared_out((matrix_of(model.second, a1.shape[1:]) * a1.flatten()).clamp(min=0), r2)
    r0 = shared_out((matrix_of(model.first, x.shape) * x.flatten()).clamp(min=0), r1)
    return {"input": r0.view_as(x), "relu1": r1.view_as(a1[0]), "relu2": r2.view_as(a2[0])}


@torch.no_grad()
def test_the_rules_by_hand_and_conservation(x: Tensor) -> None:
    model = bias_free()
    for target in (0, 2):
        found = sal.explain(model, x, target, ["input", "first", "relu1", "second", "relu2"], "lrp", None)
        scores = model(x)[:, target]
        for n in range(3):
            for name, expected in by_hand(model, x[n], target).items():
                torch.testing.assert_close(found[name][n], expected, msg=lambda m, n=name: f"{n}: {m}")
        assert torch.equal(found["first"], found["relu1"]) and torch.equal(found["second"], found["relu2"])
        for name, relevance in found.items():
            torch.testing.assert_close(relevance.sum((1, 2, 3)), scores, rtol=1e-3, atol=0, msg=name)


def test_silent_units_are_irrelevant(x: Tensor) -> None:
    model = resnet()
    for name, relevance in sal.explain(model, x, 1, ["block1", "block2", "block3"], "lrp", None).items():
        silent = sal.capture(model, x, name, 1).activations[name] == 0
        assert silent.any() and (relevance[silent] == 0).all() and (relevance[~silent] != 0).any()


# ----------------------------------------------------------------------------------------------------- frame


def test_all_layers_by_name_or_module_and_the_predicted_class(x: Tensor) -> None:
    model = resnet()
    found = sal.explain(model, x, None, "all", "lrp")
    assert list(found) == list(sal.hidden_layers(model, x))
    again = sal.explain(model, x, model(x).argmax(1), [model.block2, "norm"], "lrp")
    assert list(again) == ["block2", "norm"]
    assert torch.equal(again["block2"], found["block2"])
    alone = sal.explain(model, x[1:2], None, "block2", "lrp")["block2"]
    torch.testing.assert_close(alone, found["block2"][1:2])


@pytest.mark.parametrize("fix", [None, "backward", "surrogate"])
def test_the_network_itself_is_not_touched_while_zennit_works(fix: str | None, x: Tensor) -> None:
    """Not even inside the block, and whoever fails there."""
    model = resnet()
    repair = surrogate(model) if fix == "surrogate" else fix
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with sal.smoothed(model, repair):
        plain = model(x)
        with pytest.raises(ArithmeticError), relevance_network(model) as network:
            assert network is not model
            assert not {id(m) for m in network.modules()} & {id(m) for m in model.modules()}
            assert torch.equal(model(x), plain)
            raise ArithmeticError
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
    assert type(model.block2.conv1) is nn.Conv2d and not hasattr(model.block2.conv1, "stage")
    if isinstance(repair, Surrogate):
        assert not any(stage._forward_hooks or stage.before._forward_hooks for _, stage in repair.items())


def test_a_network_whose_forward_is_its_own_attribute(x: Tensor) -> None:
    """Bound to the same object, as some libraries patch it: no stage of another network."""
    model = resnet()
    expected = sal.explain(model, x, 1, "block2", "lrp", None)["block2"]
    model.forward = type(model).forward.__get__(model)
    model.block2.forward = BasicBlock.forward.__get__(model.block2)
    model.block2.conv1.forward = nn.Conv2d.forward.__get__(model.block2.conv1)
    torch.testing.assert_close(sal.explain(model, x, 1, "block2", "lrp", None)["block2"], expected)
