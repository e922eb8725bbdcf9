"""Re-estimated statistics: by hand, against one training-mode pass over everything, and without a trace left behind."""

from __future__ import annotations

import itertools

import pytest
import torch
from networks import NETWORKS, build
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.fixes import Fix, ForwardHook, Surrogate
from smoothsal_lib.fixes.recalibration import Recalibrated, recalibrate

NORMED = ("in_place_vgg", "residual", "dense")
ENDINGS = (None, ArithmeticError, KeyboardInterrupt)


def snapshot(model: nn.Module) -> list[object]:
    """Everything a re-estimation could touch: values, identities, versions, hooks and flags."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    state: list[object] = [(name, id(t), t._version, t.tolist(), t.requires_grad) for name, t in tensors]
    for name, module in model.named_modules():
        state.append((name, module.training, len(module._forward_pre_hooks), len(module._forward_hooks)))
    return [*state, torch.get_rng_state().tolist()]


def pictures(count: int = 12) -> Tensor:
    """Images whose statistics differ from batch to batch, (count, 3, 16, 16)."""
    noise = torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return noise * torch.linspace(0.2, 3, count).double().view(-1, 1, 1, 1) + torch.arange(count).view(-1, 1, 1, 1) / 5


def trained_once(model: nn.Module, fix: str | None, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What one pass in training mode over all images as a single batch normalises by.

    With momentum 1 PyTorch stores the mean of that batch, and its variance times n / (n - 1).
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    counts = {}
    for name, norm in norms.items():
        norm.train()
        norm.momentum = 1.0
        norm.register_forward_pre_hook(lambda _, args, name=name: counts.update({name: args[0][:, 0].numel()}))
    with torch.no_grad(), sal.smoothed(model, fix):
        model(images)
    return {
        name: (norm.running_mean, norm.running_var * (counts[name] - 1) / counts[name]) for name, norm in norms.items()
    }


def test_two_layers_by_hand() -> None:
    """1, 1, 5, 5: mean 3, variance 4, all of it between the images. Normalised, times 2, plus 1: mean 1, variance 4."""
    model = nn.Sequential(nn.BatchNorm2d(1, eps=0), nn.BatchNorm2d(1, eps=0), nn.Flatten(), nn.Linear(2, 2)).eval()
    nn.init.constant_(model[0].weight, 2.0)
    nn.init.constant_(model[0].bias, 1.0)
    x = torch.tensor([[1.0, 1.0], [5.0, 5.0]]).view(2, 1, 1, 2)
    for batch in (1, 2):
        found = recalibrate(model, None, x, batch=batch).statistics
        assert {name: (mean.item(), variance.item()) for name, (mean, variance) in found.items()} == {
            "0": (3.0, 4.0),
            "1": (1.0, 4.0),
        }


def test_under_the_forward_hook_by_hand() -> None:
    """A row 0, 4, 0, 4: the blur [1 2 1]/4 with a mirrored border turns it into 1, 2, 2, 3; a stride of 2 reads 1, 2.

    Unrepaired, the convolution reads 0, 0.
    """
    conv = nn.Conv2d(1, 1, 1, stride=(1, 2), bias=False)
    nn.init.ones_(conv.weight)
    model = nn.Sequential(conv, nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(2, 2)).eval()
    x = torch.tensor([0.0, 4.0, 0.0, 4.0]).expand(2, 1, 1, 4)
    assert [s.item() for s in recalibrate(model, None, x).statistics["1"]] == [0, 0]
    assert [s.item() for s in recalibrate(model, "forward", x).statistics["1"]] == [1.5, 0.25]


@pytest.mark.parametrize("batch", [1, 5, 11, 12, 100])
@pytest.mark.parametrize(
    ("name", "fix"),
    [(name, None) for name in NORMED]
    + [(name, fix) for name in ("residual", "dense") for fix in ("forward", "forward:paper")],
)
def test_equals_one_training_pass_over_all_images(name: str, fix: str | None, batch: int) -> None:
    found = recalibrate(build(name), fix, pictures(), batch=batch).statistics
    expected = trained_once(build(name), fix, pictures())
    assert found.keys() == expected.keys()
    for layer, pair in found.items():
        torch.testing.assert_close(pair, expected[layer])


@pytest.mark.parametrize("fix", [None, "forward", "surrogate"])
def test_the_repaired_network_normalises_the_same_images(fix: str | None) -> None:
    """What leaves every batch norm, its weight and bias undone, has mean 0 and variance 1 (but for its eps)."""
    model = build("residual")
    images = pictures()
    repair = Surrogate.of(model) if fix == "surrogate" else fix
    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            module.register_forward_hook(lambda _, args, out, name=name: seen.update({name: out.detach().clone()}))
    with sal.smoothed(model, recalibrate(model, repair, images, batch=5)):
        model(images)
    assert len(seen) == 9
    for output in seen.values():
        variance, mean = torch.var_mean(output, (0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean))
        torch.testing.assert_close(variance, torch.ones_like(variance))


def test_statistics_that_fit_already_stay() -> None:
    """Estimated on the images the network has its statistics from, without a fix, they are those it has."""
    model = build("residual")
    images = pictures()
    for name, (mean, variance) in trained_once(build("residual"), None, images).items():
        norm = model.get_submodule(name)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    plain = model(images)
    with sal.smoothed(model, recalibrate(model, None, images, batch=7)):
        torch.testing.assert_close(model(images), plain)


def test_a_fix_that_leaves_the_forward_pass_alone_changes_no_statistics() -> None:
    plain, fixed = (recalibrate(build("residual"), fix, pictures()).statistics for fix in (None, "backward"))
    for name, pair in plain.items():
        torch.testing.assert_close(fixed[name], pair, rtol=0, atol=0)


def test_features_without_positions() -> None:
    """BatchNorm1d, called by keyword: (N, C). Columns 1, 3 and 0, 4."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(input=x.mean((2, 3)))

    x = torch.tensor([[1.0, 0.0], [3.0, 4.0]]).view(2, 2, 1, 1)
    mean, variance = recalibrate(Net().eval(), None, x, batch=1).statistics["norm"]
    assert mean.tolist() == [2, 2]
    assert variance.tolist() == [1, 4]


def test_half_precision_is_summed_in_full() -> None:
    """4096 values of 100 overflow float16, and its spacing there would swallow the variance."""
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(2048, 2)).eval().half()
    x = torch.full((2, 1, 32, 64), 100.0)
    x[1] += 0.5
    mean, variance = recalibrate(model, None, x.half()).statistics["0"]
    assert mean.dtype == torch.float16
    assert (mean.item(), variance.item()) == (100.25, 0.0625)


def test_batch_norm_without_statistics_is_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3), nn.Flatten()).eval()
    assert list(recalibrate(model, None, torch.randn(4, 3, 2, 2)).statistics) == ["1"]


def test_inference_mode_of_the_caller_does_not_stay_in_the_statistics() -> None:
    model = build("residual")
    with torch.inference_mode():
        fix = recalibrate(model, "forward", pictures())
    assert not any(tensor.is_inference() for pair in fix.statistics.values() for tensor in pair)
    sal.explain(model, pictures(2), method="gradient", fix=fix)


@pytest.mark.parametrize("failure", ENDINGS)
def test_estimating_leaves_nothing(failure: type[BaseException] | None) -> None:
    """Whether it succeeds or the network's head fails, at the first image or under way."""
    for calls in (0, 1, 3):
        model = build("residual").train()
        model.layer1.eval()
        count = itertools.count()

        def fail(*_: object, calls: int = calls, count: itertools.count = count) -> None:
            if failure is not None and next(count) == calls:
                raise failure

        model.layer4.register_forward_pre_hook(fail)
        before = snapshot(model)
        with pytest.raises(failure) if failure else torch.enable_grad():
            recalibrate(model, "forward", pictures(), batch=5)
        assert snapshot(model) == before


@pytest.mark.parametrize("failure", ENDINGS)
def test_repairing_leaves_nothing(failure: type[BaseException] | None) -> None:
    """Not even a training step inside the block reaches the network's statistics, or those of the fix."""
    model = build("residual")
    fix = recalibrate(model, "forward", pictures())
    kept = {name: (mean.clone(), variance.clone()) for name, (mean, variance) in fix.statistics.items()}
    before = snapshot(model)
    with pytest.raises(failure) if failure else torch.enable_grad():
        with sal.smoothed(model, fix):
            model.train()
            model(pictures(4))
            model.eval()
            if failure:
                raise failure
    assert snapshot(model) == before
    for name, pair in fix.statistics.items():
        torch.testing.assert_close(pair, kept[name], rtol=0, atol=0)


@pytest.mark.parametrize("method", sal.METHODS)
def test_inside_explain(method: str) -> None:
    """As if the network were another one, with these statistics for good."""
    model, images = build("residual"), pictures(2)
    fix = recalibrate(model, "forward", pictures())
    other = build("residual")
    for name, (mean, variance) in fix.statistics.items():
        norm = other.get_submodule(name)
        norm.running_mean, norm.running_var = mean, variance
    found = sal.explain(model, images, method=method, fix=fix)
    expected = sal.explain(other, images, method=method, fix="forward")
    assert found.keys() == expected.keys()
    for name, attribution in found.items():
        torch.testing.assert_close(attribution, expected[name])


def test_in_a_sequence() -> None:
    """Several fixes re-estimated together are the same as a sequence; a second re-estimation hides the first."""
    model, images = build("residual"), pictures()
    first = recalibrate(model, None, images[:6])
    second = recalibrate(model, ["backward", "forward"], images)
    before = snapshot(model)
    with sal.smoothed(model, first, second):
        both = model(images)
    assert snapshot(model) == before
    with sal.smoothed(model, "backward", ForwardHook(), Recalibrated(None, second.statistics)):
        assert model(images).equal(both)
    again = recalibrate(model, second, images)
    for name, pair in again.statistics.items():
        torch.testing.assert_close(pair, second.statistics[name])


def test_a_wrapped_fix_that_fails_takes_the_statistics_with_it() -> None:
    model = build("in_place_vgg")
    fix = Recalibrated("forward", recalibrate(model, None, pictures()).statistics)
    before = snapshot(model)
    with pytest.raises(ValueError, match="no strided convolution"), fix.repair(model):
        pass
    assert snapshot(model) == before
    assert isinstance(fix, Fix)
    assert repr(fix) == "Recalibrated([ForwardHook(form='centred')], 1 layers)"


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - set(NORMED)))
def test_networks_without_batch_norm(name: str) -> None:
    with pytest.raises(ValueError, match="runs no batch norm with running statistics"):
        recalibrate(build(name), None, pictures())


class Reusing(nn.Module):
    """Runs its one batch norm twice, or on bright images only."""

    def __init__(self, bright_only: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.bright_only = bright_only

    def forward(self, x: Tensor) -> Tensor:
        if not self.bright_only:
            return self.norm(self.norm(x))
        return self.norm(x) if x.mean() > 0 else x


def test_bad_input() -> None:
    model, images = build("residual"), pictures()
    for given, message in (
        (images[:1], "at least 2 images"),
        (images.float(), "images are torch.float32"),
        (images[0], "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            recalibrate(model, None, given)
    with pytest.raises(ValueError, match="batch of at least 1 image, got 0"):
        recalibrate(model, None, images, batch=0)
    with pytest.raises(ValueError, match="unknown fix"):
        recalibrate(model, "sideways", images)
    with pytest.raises(TypeError, match="torch.nn.Module"):
        recalibrate("model", None, images)
    with pytest.raises(ValueError, match="'norm' runs 2 times"):
        recalibrate(Reusing(False).double().eval(), None, images)
    images = torch.cat([images[-1:].abs(), -images.abs()])
    with pytest.raises(ValueError, match="does not run layer 'norm' for every image"):
        recalibrate(Reusing(True).double().eval(), None, images, batch=1)


def test_another_network() -> None:
    """Statistics are refused by a network they were not made for, and the network is left alone."""
    fix = recalibrate(build("residual"), "forward", pictures())
    narrow = build("residual")
    narrow.layer1 = nn.BatchNorm2d(3)
    without = build("residual")
    without.layer1 = nn.Identity()
    for model, message in (
        (build("functional"), "no layer 'layer1'"),
        (build("residual").float(), "move|recalibrate the network as it is now"),
        (narrow, "3 channels, but the statistics were made for 4"),
        (without, "Identity, not a batch norm"),
    ):
        before = snapshot(model)
        with pytest.raises(ValueError, match=message), sal.smoothed(model, fix):
            pass
        assert snapshot(model) == before
