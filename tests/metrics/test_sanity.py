from __future__ import annotations

import pytest
import torch
from networks import NETWORKS, Block, build
from test_nothing_leaks import state, used
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.metrics.sanity import cascade, class_sensitivity, random_maps, randomised
from smoothsal_lib.metrics.similarity import rank_correlation


class Tied(nn.Module):
    """One weight in two layers, and a parameter and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.arange(4.0))
        self.register_buffer("positions", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) * self.scale + self.positions


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_named_modules_forget_and_others_do_not():
    model = build("residual")
    before = values(model)
    with randomised(model, ["head", "layer4"]) as same:
        assert same is model
        inside = changed(model, before)
        # Biases of batch norms start at 0, weights at 1; all statistics at 0 and 1.
        assert model.layer4.bn1.running_mean.eq(0).all() and model.layer4.bn1.running_var.eq(1).all()
        assert model.layer4.bn1.weight.eq(1).all() and model.layer4.bn1.bias.eq(0).all()
    assert {name.split(".")[0] for name in inside} == {"head", "layer4"}
    assert inside == {n for n in before if n.startswith(("head", "layer4")) and not n.endswith("num_batches_tracked")}
    assert not changed(model, before)


def test_the_weights_are_what_reset_parameters_draws():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    with randomised(model, "2", seed=7):
        found = model[2].weight.detach().clone()
    torch.manual_seed(7)
    assert torch.equal(found, nn.Linear(5, 2).weight)


@pytest.mark.parametrize("failure", [None, ArithmeticError, KeyboardInterrupt])
def test_afterwards_the_network_is_what_it_was(failure: type[BaseException] | None, x: Tensor):
    """Also after training inside the block, which writes gradients, statistics and weights."""
    model = used()
    model.to(memory_format=torch.channels_last)
    before = state(model, x)
    with pytest.raises(failure) if failure else torch.enable_grad(), randomised(model, [""]):
        with torch.random.fork_rng(devices=[]):
            model(x).sum().backward()
        assert model.block.conv1.weight.grad is not None and model.stem.weight.grad is None
        torch.optim.SGD(model.parameters(), 1.0).step()
        model.norm.running_mean.add_(1)
        model.head.weight = nn.Parameter(torch.zeros_like(model.head.weight))
        if failure:
            raise failure
    assert state(model, x) == before


def test_a_reset_that_fails_undoes_those_before_it(x: Tensor, monkeypatch: pytest.MonkeyPatch):
    model = used()

    def refuse() -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(model.head, "reset_parameters", refuse, raising=False)
        before = state(model, x)
        with pytest.raises(MemoryError), randomised(model, [""]):
            pass
        assert state(model, x) == before


def test_tied_weights_stay_tied():
    model = Tied()
    weight, before = model.first.weight, model(torch.ones(1, 4))
    for named in ("first", "second", ["first", "second"], ""):
        with randomised(model, named):
            assert model.first.weight is model.second.weight is not weight
            assert not torch.equal(model.first.weight, weight)
        assert model.first.weight is model.second.weight is weight
    assert torch.equal(model(torch.ones(1, 4)), before)


def test_a_parameter_without_reset_is_shuffled_and_a_buffer_without_reset_is_kept():
    model = Tied()
    with randomised(model, ""):
        assert not torch.equal(model.scale, torch.arange(4.0))
        assert model.scale.sort().values.tolist() == [0, 1, 2, 3]
        assert torch.equal(model.positions, torch.arange(4.0))


def test_parametrised_weights_are_shuffled():
    """Here ``reset_parameters`` writes to what is computed from the parameters, in vain."""
    model = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6, bias=False))
    before = model.weight.detach().clone()
    with randomised(model, ""):
        assert not torch.allclose(model.weight, before)
    assert torch.equal(model.weight, before)


def test_the_seed_alone_decides():
    model = build("residual")
    random = torch.get_rng_state()
    found = []
    for seed in (0, 0, 1):
        with randomised(model, "layer4", seed):
            found.append(model.layer4.conv1.weight.detach().clone())
            assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_explains_inside_and_from_inference_mode(x: Tensor):
    model = build("residual")
    plain = sal.explain(model, x, 1, "layer3", "gradient")["layer3"]
    with torch.inference_mode(), randomised(model, ["head", "layer4"]):
        found = sal.explain(model, x, 1, "layer3", "gradient")["layer3"]
    assert not torch.allclose(found, plain)
    assert torch.equal(sal.explain(model, x, 1, "layer3", "gradient")["layer3"], plain)


def test_the_cascade_of_a_resnet_is_the_papers():
    found = cascade(sal.load_model("tiny_resnet"))
    assert list(found) == ["fc", "layer4", "layer3", "layer2", "layer1", "all"]
    assert found["fc"] == ["fc"] and found["layer3"] == ["fc", "layer4", "layer3"]
    assert found["all"] == ["fc", "layer4", "layer3", "layer2", "layer1", "conv1", "bn1"]


def test_the_cascade_by_hand():
    vgg = {"11": ["11"], "8": ["11", "8"], "3": ["11", "8", "3", "4"], "all": ["11", "8", "3", "4", "0"]}
    assert cascade(build("in_place_vgg")) == vgg  # "4" normalises what "3" returns
    assert cascade(Tied()) == {"second": ["second"], "all": ["second", "first", ""]}
    assert cascade(nn.Linear(2, 2)) == {"all": [""]}
    assert cascade(nn.Sequential(build("residual"))) == {"all": ["0"]}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_cascade_ends_with_every_parameter_random(name: str):
    model = build(name)
    stages = cascade(model)
    before, shares = values(model), []
    for modules in stages.values():
        with randomised(model, modules):
            shares.append(changed(model, before))
    assert all(small < large for small, large in zip(shares, shares[1:], strict=False))
    assert shares[-1] == {n for n in before if not n.endswith("num_batches_tracked")}
    assert not changed(model, before)


def test_stages_share_what_they_both_randomise():
    model = build("residual")
    heads = []
    for modules in cascade(model).values():
        with randomised(model, modules):
            heads.append(model.head.weight.detach().clone())
    assert all(torch.equal(head, heads[0]) for head in heads)


def test_random_maps():
    maps = torch.zeros(3, 2, 64, 64, dtype=torch.float64)
    random = torch.get_rng_state()
    found = random_maps(maps)
    assert found.shape == maps.shape and found.dtype == maps.dtype
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(found, random_maps(maps)) and not torch.equal(found, random_maps(maps, seed=1))
    assert found.mean().item() == pytest.approx(0, abs=0.03) and found.std().item() == pytest.approx(1, abs=0.02)
    assert rank_correlation(found[:, 0], found[:, 1]).abs().max() < 5 / 64


class TwoHalves(nn.Module):
    """Class 0 looks at the left half, class 1 at both halves alike, class 2 at the right half and against the left."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.body.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        left, right = hidden[..., :4].sum((1, 2, 3)), hidden[..., 4:].sum((1, 2, 3))
        return torch.stack([left, (left + right) / 2, right - left], 1)


def test_class_sensitivity_by_hand():
    x = torch.zeros(2, 1, 8, 8)
    x[0, ..., :4] = 1  # most likely 0 (map: left 1, right 0), least likely 2 (left -1, right 1): opposite order
    x[1] = -1  # most likely 2 (0), least likely 0 or 1
    x[1, ..., 4:] = -3  # -16, -32, -32: most likely 0; then least likely 1 (constant map) or 2
    x[1, 0, 0, 4] = -2.9  # (left, right) = (-16, -47.9): logits -16, -31.95, -31.9
    found = class_sensitivity(TwoHalves(), x, "body", fix=None)
    assert list(found) == ["body"]
    assert found["body"].tolist() == [-1, 0]


def test_class_sensitivity_is_that_of_the_two_maps(x: Tensor):
    model = build("residual")
    before = state(model, x)
    found = class_sensitivity(model, x, ["input", "layer3"], "deeplift", "forward", "l2")
    assert state(model, x) == before
    with sal.smoothed(model, "forward"):
        logits = model(x)
    for layer, correlations in found.items():
        most, least = (
            sal.saliency_map(sal.explain(model, x, target, layer, "deeplift", "forward")[layer], "l2")
            for target in (logits.argmax(1), logits.argmin(1))
        )
        torch.testing.assert_close(correlations, rank_correlation(most, least))


def test_a_method_that_ignores_the_class_is_not_sensitive():
    """All rows of the classifier are equal: every class has the same map."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), Block(4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(*model, nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model[-1].weight.copy_(model[-1].weight[:1].expand(3, -1))
    found = class_sensitivity(model, torch.randn(2, 3, 16, 16), "1", reduce="sum")
    torch.testing.assert_close(found["1"], torch.ones(2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: randomised(m, "layer5").__enter__(), ValueError, "no module 'layer5' in this Sequential: did you"),
        (lambda m: randomised(m, "pool").__enter__(), ValueError, "'pool' of this Sequential hold no parameters"),
        (lambda m: randomised(m, []).__enter__(), ValueError, "hold no parameters"),
        (lambda m: randomised(m, [m.head]).__enter__(), TypeError, "names of modules, got Linear"),
        (lambda m: randomised(3, "head").__enter__(), TypeError, "got int"),
        (lambda m: cascade(nn.ReLU()), ValueError, "this ReLU has no parameters"),
        (lambda m: cascade("fc"), TypeError, "got str"),
        (lambda m: random_maps([1]), TypeError, "floating-point tensor, got list"),
        (lambda m: random_maps(torch.zeros(2, dtype=torch.long)), TypeError, "got torch.int64"),
        (lambda m: class_sensitivity(m, torch.zeros(3, 3)), ValueError, "shape"),
        (lambda m: class_sensitivity(m, torch.zeros(1, 3, 16, 16).double(), reduce="max"), ValueError, "'max'"),
    ],
)
def test_bad_input_is_one_line(call, error: type[Exception], message: str):
    with pytest.raises(error, match=message) as caught:
        call(build("residual"))
    assert "\n" not in str(caught.value)
