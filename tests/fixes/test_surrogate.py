"""The surrogate against its three steps written out, and its fit against cases with a known answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import build
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.fixes import least_squares
from smoothsal_lib.fixes import surrogate as surrogate_module
from smoothsal_lib.fixes.least_squares import fit_stage
from smoothsal_lib.fixes.stage import Geometry, Stage
from smoothsal_lib.fixes.surrogate import Surrogate, fit_surrogate

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3x3 stride 2": {"kernel_size": 3, "stride": 2, "padding": 1},
    "1x1 stride 2": {"kernel_size": 1, "stride": 2},
    "grouped": {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 4},
    "dilated": {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2},
    "asymmetric": {"kernel_size": (3, 5), "stride": (1, 2), "padding": (0, 2)},
    "stride 3": {"kernel_size": 3, "stride": 3},
    "stride 4": {"kernel_size": 7, "stride": 4, "padding": "valid"},
}


def images(count: int = 16, size: int = 16) -> Tensor:
    """Smooth noise: like photographs, neighbours resemble each other. (count, 3, size, size), float64."""
    noise = torch.randn(count, 3, size + 4, size + 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return 3 * F.avg_pool2d(noise, 5, stride=1)


def activation(channels: int = 4) -> Tensor:
    return torch.randn(2, channels, 17, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def convolution(kind: str) -> nn.Conv2d:
    return nn.Conv2d(4, 8, **CONVOLUTIONS[kind]).double()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().norm() / (theirs - theirs.mean((0, 2, 3), keepdim=True)).norm())


def quick(model: nn.Module, x: Tensor, **options: Any) -> Surrogate:
    return fit_surrogate(model, x, progress=False, batch_size=8, **options)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_repaired_network_runs_the_three_steps(kind: str) -> None:
    conv, x = convolution(kind), activation()
    model = nn.Sequential(nn.Identity(), conv)
    surrogate = Surrogate.of(model)
    (stage,) = surrogate.stages
    mixed = F.conv2d(x, stage.before.weight, stage.before.bias, padding=1, groups=conv.groups)
    far = max(conv.stride) > 2
    small = F.interpolate(mixed, conv(x).shape[2:], mode="bilinear", align_corners=False, antialias=far)
    expected = F.conv2d(small, stage.after.weight, stage.after.bias, padding=1, groups=conv.groups)
    with surrogate.repair(model):
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    assert model(x).equal(conv(x))


def test_halving_is_average_pooling() -> None:
    stage = Stage(Geometry.of(convolution("3x3 stride 2")))
    z = torch.randn(2, 8, 16, 16)
    torch.testing.assert_close(stage.resize(z), F.avg_pool2d(z, 2))


def test_beyond_a_factor_of_two_every_position_still_counts() -> None:
    stage = Stage(Geometry.of(convolution("stride 4")))
    z = torch.ones(1, 8, 24, 24, requires_grad=True)
    (seen,) = torch.autograd.grad(stage.resize(z).sum(), z)
    assert (seen > 0).all()


def test_gradient_has_no_checkerboard() -> None:
    """The transpose of the 2 x 2 mean repeats every value four times, so that p(y, x) (-1)^y sums to 0 within a block.

    Convolving with the transposed `before` keeps frequencies apart, hence the component at the Nyquist frequency stays
    0 wherever zero padding is out of reach. The strided convolution has that component.
    """
    conv = convolution("3x3 stride 2")
    stage = Stage(Geometry.of(conv)).double()
    upstream = torch.ones(1, 8, 16, 16, dtype=torch.float64)
    alternating = 1 - 2.0 * (torch.arange(32) % 2)
    for layer, bound in ((stage, (0, 1e-12)), (conv, (1e-3, torch.inf))):
        x = torch.zeros(1, 4, 32, 32, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(layer(x), x, upstream)
        for signs in (alternating, alternating[:, None], alternating * alternating[:, None]):
            component = (gradient * signs)[..., 8:-8, 8:-8].mean((2, 3)).abs().max()
            assert bound[0] <= component <= bound[1]


def test_explanations_flow_through_it() -> None:
    model, x = build("residual"), images(2)
    surrogate = Surrogate.of(model)
    found = sal.explain(model, x, target=1, layers="input", method="gradient", fix=surrogate)["input"]
    leaf = x.clone().requires_grad_()
    with surrogate.repair(model):
        (expected,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(found, expected)
    assert expected.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_dtype(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 6, 5, 3)).to(dtype)
    with Surrogate.of(model).repair(model):
        assert model(images(2).to(dtype)).dtype == dtype


def test_first_strided_convolution_stays_unless_it_is_the_only_one() -> None:
    first, second = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, 2)
    assert Surrogate.of(nn.Sequential(first, second)).layers == ("1",)
    assert Surrogate.of(nn.Sequential(first)).layers == ("0",)
    assert Surrogate.of(nn.Sequential(first, second), layers=["0"]).layers == ("0",)


@pytest.mark.parametrize("groups", [1, 6])
def test_least_squares_finds_what_a_stage_can_do(groups: int) -> None:
    """A mean over 2 x 2 blocks is a strided convolution, and a stage whose convolutions do nothing computes it."""
    conv = nn.Conv2d(6, 6, 2, stride=2, bias=False, groups=groups).double()
    conv.weight.data = torch.eye(6).double()[:, :, None, None].expand(6, 6, 2, 2) / 4
    if groups == 6:
        conv.weight.data = torch.full((6, 1, 2, 2), 0.25).double()
    stage = Stage(Geometry.of(conv)).double()
    x = torch.randn(24, 6, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    y = conv(x).detach()
    errors = []
    for rounds in (0, 3, 15):
        fit_stage(stage, x, y, rounds)
        errors.append(relative_error(stage(x), y))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 5e-3


def test_each_round_lowers_the_error() -> None:
    conv, x = convolution("3x3 stride 2"), activation()
    stage, y = Stage(Geometry.of(conv)).double(), conv(x).detach()
    errors = []
    for rounds in range(4):
        fit_stage(stage, x, y, rounds)
        errors.append(relative_error(stage(x), y))
    assert errors == sorted(errors, reverse=True)


def test_before_that_least_squares_finds_cannot_be_improved_for_its_after() -> None:
    """Conjugate gradients, run to the end, reach the regression's solution: the gradient by `before` vanishes."""
    conv, x = convolution("3x3 stride 2"), activation()
    problem = least_squares._Problem(Stage(Geometry.of(conv)).double(), x, conv(x).detach())
    before = problem.first_before()
    after = problem.best_after(before)
    start = problem._transpose(problem.y - problem._run(before, after), after).norm()
    for _ in range(40):
        before = problem.better_before(before, after)
    assert problem._transpose(problem.y - problem._run(before, after), after).norm() < 1e-3 * start


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_fit_beats_a_constant_for_every_geometry(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), convolution(kind)).double()
    surrogate = quick(model, images(), epochs=0)
    assert 0 < surrogate.errors["2"]["l2"] < 0.9


def test_descent_brings_the_networks_closer() -> None:
    model, x = build("residual"), images(64)

    def distance(surrogate: Surrogate) -> float:
        with torch.no_grad(), surrogate.repair(model):
            ours = model(x)
        return relative_error(ours[..., None, None], model(x).detach()[..., None, None])

    assert distance(quick(model, x, epochs=12)) < distance(quick(model, x, epochs=0))


def test_paper_recipe_learns() -> None:
    model, x = build("functional"), images(32)
    untrained, trained = (quick(model, x, recipe="paper", epochs=n).errors["second"]["l1"] for n in (0, 40))
    assert trained < 0.7 * untrained


def test_record_counts_presentations() -> None:
    model, x = build("functional"), images(16)
    # The regression of 6 channels takes 1,080 positions, of which a picture has 16: it wants more than there are.
    assert quick(model, x, epochs=3).record["presentations"] == 14 * 3 + 14 * 2
    assert quick(model, x, epochs=3, recipe="paper").record["presentations"] == 14 * 3


def test_images_in_batches() -> None:
    model, x = build("functional"), images(16)
    expected = quick(model, x, epochs=1)
    for batches in (list(x.split(5)), x.split(5), [(part, torch.zeros(len(part))) for part in x.split(5)]):
        found = quick(model, batches, epochs=1)
        assert all(a.equal(b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("recipe", ["least_squares", "paper"])
def test_killed_run_ends_like_an_uninterrupted_one(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, path = build("functional"), images(16), tmp_path / "fit.checkpoint.pt"
    expected = quick(model, x, recipe=recipe, epochs=3)
    save = surrogate_module._Run.save

    def save_and_die(run: Any) -> None:
        save(run)
        if run.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(surrogate_module._Run, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        quick(model, x, recipe=recipe, epochs=3, checkpoint=path)
    monkeypatch.undo()
    found = quick(model, x, recipe=recipe, epochs=3, checkpoint=path)
    assert all(a.equal(b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"was made with .*'seed': 0.*remove the file$"):
        quick(model, x, recipe=recipe, epochs=3, seed=1, checkpoint=path)


def test_save_and_load(tmp_path: Path) -> None:
    model, x = build("grouped"), images(16)
    surrogate = quick(model, x, epochs=1)
    surrogate.save(tmp_path / "s.safetensors")
    loaded = Surrogate.load(tmp_path / "s.safetensors")
    assert (loaded.layers, loaded.errors, loaded.record) == (surrogate.layers, surrogate.errors, surrogate.record)
    assert all(a.equal(b) for a, b in zip(loaded.parameters(), surrogate.parameters(), strict=True))
    with torch.no_grad():
        with surrogate.repair(model):
            expected = model(x)
        with loaded.repair(model):
            assert model(x).equal(expected)


def test_half_precision_on_disk_comes_back_as_it_was(tmp_path: Path) -> None:
    surrogate = Surrogate.of(build("functional"))
    surrogate.save(tmp_path / "s.safetensors", torch.float16)
    for ours, theirs in zip(
        Surrogate.load(tmp_path / "s.safetensors").parameters(), surrogate.parameters(), strict=True
    ):
        assert ours.equal(theirs.half().double())


def test_load_refuses_other_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is no surrogate: its format is None"):
        Surrogate.load(tmp_path / "other.safetensors")


def test_a_patched_forward_comes_back() -> None:
    model = build("functional")
    model.second.forward = patched = lambda x: x
    with Surrogate.of(model).repair(model):
        assert model.second.forward is not patched
    assert model.second.forward is patched
    del model.second.forward
    with pytest.raises(ArithmeticError), Surrogate.of(model).repair(model):
        raise ArithmeticError
    assert "forward" not in vars(model.second)


def snapshot(model: nn.Module) -> list[Any]:
    """Everything about a network, and the random state, that a fit could leave changed."""
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [t.tolist() for t in tensors],
        [(t.requires_grad, None if t.grad is None else t.grad.tolist(), t._version) for t in tensors],
        [module.training for module in model.modules()],
        [(list(module._forward_hooks), "forward" in vars(module)) for module in model.modules()],
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    ]


@pytest.mark.parametrize("recipe", ["least_squares", "paper"])
@pytest.mark.parametrize("failure", [None, ArithmeticError, KeyboardInterrupt])
def test_network_is_left_untouched(failure: type[BaseException] | None, recipe: str) -> None:
    model, x = build("residual"), images(16)
    model.train()
    model.layer1.eval()
    next(model.parameters()).requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    calls = 0

    def fail_late(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal calls
        calls += 1
        if failure is not None and calls > 3:
            raise failure

    model.head.register_forward_hook(fail_late)
    before = snapshot(model)
    with pytest.raises(failure) if failure else torch.enable_grad():
        quick(model, x, recipe=recipe, epochs=2)
    assert snapshot(model) == before
    assert calls > 3


def rename(model: nn.Module) -> nn.Module:
    return nn.Sequential(model)


def widen(model: nn.Module) -> nn.Module:
    model.second = nn.Conv2d(4, 7, 3, stride=2, padding=1).double()
    return model


def flatten(model: nn.Module) -> nn.Module:
    model.second = nn.Identity()
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "the network has no layer 'second'"),
        (widen, r"layer 'second' is .*\(4, 7\).*, but the surrogate was fitted to .*\(4, 6\)"),
        (flatten, "layer 'second' is a Identity, not the convolution"),
        (nn.Module.float, "the surrogate is torch.float64 on cpu but layer 'second' is torch.float32"),
    ],
)
def test_surrogate_of_another_network(change: Callable[[nn.Module], nn.Module], message: str) -> None:
    surrogate = Surrogate.of(build("functional"))
    with pytest.raises(ValueError, match=message), surrogate.repair(change(build("functional"))):
        pass


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recipe": "magic"}, ValueError, "unknown recipe 'magic': choose 'least_squares' or 'paper'"),
        ({"layers": ["third"]}, ValueError, "'third' is no strided convolution .* choose from first, second"),
        ({"layers": []}, ValueError, "expected at least one layer"),
        ({"images": torch.zeros(7, 3, 16, 16).double()}, ValueError, "expected at least 8 images, got 7"),
        ({"images": torch.full((8, 3, 16, 16), torch.nan).double()}, ValueError, "finite"),
        ({"images": torch.zeros(8, 3, 16, 16)}, ValueError, "float32 on cpu but the model is torch.float64"),
        ({"images": []}, ValueError, "a sequence without any"),
        ({"images": ["a.jpg"]}, TypeError, "got str"),
        ({"images": [torch.zeros(4, 3, 16, 16), torch.zeros(4, 3, 8, 8)]}, ValueError, "of one size"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given = options.pop("images", images(8))
    with pytest.raises(error, match=message):
        quick(build("functional"), given, **options)


def test_network_without_strided_convolutions() -> None:
    with pytest.raises(ValueError, match="no strided convolution"):
        quick(nn.Sequential(nn.Conv2d(3, 4, 3)).double(), images(8))


def test_layer_that_does_not_run() -> None:
    model = build("functional")
    model.unused = nn.Conv2d(3, 4, 3, 2).double()
    with pytest.raises(ValueError, match="does not run 'unused'"):
        quick(model, images(8), layers=["unused"])
