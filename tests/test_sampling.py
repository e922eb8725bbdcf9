"""Sampling: the published definitions, one look at a time; captum; and what must not change the result."""

from __future__ import annotations

import statistics
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import captum.attr
import pytest
import torch
from networks import build
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.fixes import Surrogate
from smoothsal_lib.sampling import (
    SAMPLINGS,
    AdaptGrad,
    FusionGrad,
    NoiseGrad,
    Path,
    Sampling,
    SmoothGrad,
    SmoothGradSquared,
    VarGrad,
    as_sampling,
    sample,
)

LAYERS = ["input", "layer3.0", "layer4"]
METHODS = ["gradient", "deeplift", "guided_backprop", "grad_cam", "normgrad"]
FIXES = ["none", "backward", "forward", "surrogate"]
SMALL: dict[str, Any] = {
    "smoothgrad": SmoothGrad(5, 0.2),
    "smoothgrad_squared": SmoothGradSquared(5, 0.2),
    "vargrad": VarGrad(5, 0.2),
    "adaptgrad": AdaptGrad(5, confidence=0.8),
    "noisegrad": NoiseGrad(3),
    "fusiongrad": FusionGrad(2, m=3),
    "path": Path(4, 0.3),
}


def repair(name: str, model: nn.Module) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return {"none": None, "surrogate": Surrogate.of(model)}.get(name, name)


def noisy(x: Tensor, n: int, noise: float, seed: int = 0) -> list[Tensor]:
    """The looks of SmoothGrad, image by image."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(x.shape[1:], dtype=torch.float32, generator=generator).to(x) for _ in range(n)]
    spreads = [noise * (float(one.max()) - float(one.min())) for one in x]
    return [torch.stack([one + spread * draw for one, spread in zip(x, spreads, strict=True)]) for draw in draws]


def one_by_one(model: nn.Module, looks: list[Tensor], target: list[int], **options: Any) -> dict[str, Tensor]:
    """Attributions of one picture at a time, {layer: (looks, N, C, H, W)}."""
    found: dict[str, list[Tensor]] = {}
    for look in looks:
        parts = [sal.explain(model, look[i : i + 1], target[i], **options) for i in range(len(look))]
        for name in parts[0]:
            found.setdefault(name, []).append(torch.cat([part[name] for part in parts]))
    return {name: torch.stack(maps) for name, maps in found.items()}


def assert_maps_close(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert list(found) == list(expected)
    assert max(float(attribution.abs().max()) for attribution in expected.values()) > 0
    for name, attribution in found.items():
        torch.testing.assert_close(attribution, expected[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


# --------------------------------------------------------------------------------------------------- definitions


@pytest.mark.parametrize("fix", FIXES)
@pytest.mark.parametrize("method", METHODS)
def test_noise_on_the_picture_by_definition(method: str, fix: str, x: Tensor) -> None:
    """Mean, mean square and variance (in two passes) over noisy copies."""
    model, x = build("residual"), x[:2]
    target = [1, 4]
    options = {"layers": LAYERS, "method": method, "fix": repair(fix, model), "baseline": 0.1}
    looks = one_by_one(model, noisy(x, 5, 0.3, seed=2), target, **options)

    def run(kind: type[SmoothGrad]) -> dict[str, Tensor]:
        return sal.explain(model, x, target, sampling=kind(5, 0.3, seed=2), **options)

    means = {name: sum(maps) / 5 for name, maps in looks.items()}
    assert_maps_close(run(SmoothGrad), means)
    assert_maps_close(run(SmoothGradSquared), {name: sum(a * a for a in maps) / 5 for name, maps in looks.items()})
    variances = {name: sum((a - means[name]) ** 2 for a in maps) / 5 for name, maps in looks.items()}
    assert_maps_close(run(VarGrad), variances)


@pytest.mark.parametrize("fix", FIXES)
@pytest.mark.parametrize("method", METHODS)
def test_noise_on_the_weights_by_definition(method: str, fix: str, x: Tensor) -> None:
    """The networks are taken out as copies, and each is explained on its own."""
    model, x = build("residual"), x[:2]
    target = [1, 4]
    options = {"layers": LAYERS, "method": method, "fix": repair(fix, model), "baseline": 0.1}
    for sampling in (NoiseGrad(3, 0.3, seed=5), FusionGrad(2, 0.2, 5, m=3, weight_noise=0.3)):
        every = []
        for number, copy in enumerate(copies(sampling, model)):
            looks = [image for _, image in sampling.images(x, number)]
            every.append(one_by_one(copy, looks, target, **options))
        expected = {name: torch.cat([maps[name] for maps in every]).mean(0) for name in LAYERS}
        assert_maps_close(sal.explain(model, x, target, sampling=sampling, **options), expected)


def copies(sampling: Sampling, model: nn.Module) -> list[nn.Module]:
    found = []
    for network in sampling.networks(model):
        with network:
            found.append(deepcopy(model))
    return found


@pytest.mark.parametrize("sampling", [NoiseGrad(40, 0.2), FusionGrad(2, m=40, weight_noise=0.2)])
def test_every_weight_is_multiplied_by_noise_of_its_own(sampling: Sampling) -> None:
    model = build("residual")
    originals = dict(model.named_parameters())
    factors = []
    for copy in copies(sampling, model):
        assert [name for name, _ in copy.named_parameters()] == list(originals)
        assert all(torch.equal(a, b) for a, b in zip(copy.buffers(), model.buffers(), strict=True))
        factors.append(torch.cat([(p / originals[name]).flatten() for name, p in copy.named_parameters()]).detach())
    found = torch.stack(factors)
    assert found.shape[0] == 40
    count = found.numel()
    assert abs(found.mean() - 1) < 5 * 0.2 / count**0.5
    assert abs(found.std() - 0.2) < 5 * 0.2 / (2 * count) ** 0.5
    # Weights do not share their noise, nor do networks; batch norm and biases have some too.
    assert len(found.unique()) > 0.999 * count
    assert (found.std(0) > 0.1).all()
    assert (found.std(1) > 0.15).all()


def test_pictures_and_weights_do_not_share_their_noise(x: Tensor) -> None:
    """A parameter of the picture's shape: its noise and the picture's must have nothing to do with each other."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(3, 16, 16, dtype=torch.float64))
    sampling = FusionGrad(2, m=3)
    of_weights = [copy.weight.detach() - 1 for copy in copies(sampling, model)]
    of_pictures = [image[0] - x[0] for number in range(3) for _, image in sampling.images(x, number)]
    draws = torch.stack([draw.flatten() for draw in [*of_weights, *of_pictures]])
    correlation = torch.corrcoef(draws) - torch.eye(len(draws), dtype=torch.float64)
    assert correlation.abs().max() < 5 / 768**0.5


def test_a_surrogate_and_the_buffers_have_no_noise(x: Tensor) -> None:
    model = build("residual")
    fix = repair("surrogate", model)
    before = {name: tensor.clone() for name, tensor in [*fix.named_parameters(), *model.named_buffers()]}
    seen = []
    fix.stages[0].before.register_forward_hook(lambda module, args, output: seen.append(module.weight.clone()))
    sal.explain(model, x, 1, method="gradient", fix=fix, sampling=NoiseGrad(2))
    assert len(seen) >= 2
    assert all(torch.equal(weight, seen[0]) for weight in seen)
    after = dict([*fix.named_parameters(), *model.named_buffers()])
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fix", FIXES)
def test_the_path_by_definition(method: str, fix: str, x: Tensor, reference: Tensor) -> None:
    model, x, reference = build("residual"), x[:2], reference[:2]
    target = [1, 4]
    options = {"layers": LAYERS, "method": method, "fix": repair(fix, model), "baseline": 0.1}
    looks = one_by_one(model, [reference + t / 4 * (x - reference) for t in range(5)], target, **options)
    expected = {name: (a[0] / 2 + a[1] + a[2] + a[3] + a[4] / 2) / 4 for name, a in looks.items()}
    assert_maps_close(sal.explain(model, x, target, sampling=Path(4, reference), **options), expected)


@pytest.mark.parametrize("name", ["residual", "squeeze_excite", "attention"])
@pytest.mark.parametrize("baseline", [None, 0.5])
def test_the_path_is_integrated_gradients_at_the_input(name: str, baseline: float | None, x: Tensor) -> None:
    model = build(name)
    mean = sal.explain(model, x, 2, "input", "gradient", None, sampling=Path(8, baseline))["input"]
    expected = sal.explain(model, x, 2, "input", "integrated_gradients", None, baseline, 8)["input"]
    torch.testing.assert_close(mean * (x - (baseline or 0)), expected, rtol=1e-9, atol=1e-12)


# ----------------------------------------------------------------------------------------------------- AdaptGrad


@pytest.mark.parametrize("confidence", [0.5, 0.95, 1 - 1e-9])
def test_adaptgrad_spreads_by_definition(confidence: float, x: Tensor) -> None:
    """σ by the quantile of the normal distribution: the range is left on either side with (1 - c) / 2 at most."""
    quantile = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    low, high = torch.tensor([-5.0, -4.0, -6.0]).view(3, 1, 1), 7.0
    given = AdaptGrad(confidence=confidence, low=low, high=high).spread(x)
    own = AdaptGrad(confidence=confidence).spread(x)
    bounded = AdaptGrad(confidence=confidence, low=low, high=high, noise=0.1).spread(x)
    assert given.shape == own.shape == bounded.shape == x.shape
    for i, c, row, column in [(0, 0, 0, 0), (1, 1, 5, 7), (2, 2, 15, 3), (0, 2, 8, 8)]:
        here, channel = float(x[i, c, row, column]), x[i, c]
        sigma = min(here - float(low[c]), high - here) / quantile
        assert float(given[i, c, row, column]) == pytest.approx(sigma, rel=1e-6)
        room = min(here - float(channel.min()), float(channel.max()) - here)
        assert float(own[i, c, row, column]) == pytest.approx(room / quantile, rel=1e-6, abs=1e-12)
        most = 0.1 * float(x[i].max() - x[i].min())
        assert float(bounded[i, c, row, column]) == pytest.approx(min(sigma, most), rel=1e-6)
    assert (own.flatten(2).amin(2) == 0).all()


@pytest.mark.parametrize("confidence", [0.6, 0.9])
def test_adaptgrad_leaves_the_range_as_rarely_as_it_says(confidence: float) -> None:
    picture = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    picture[1] = 0.5  # the middle, where both ends are equally far and the bound is reached
    sampling = AdaptGrad(400, confidence=confidence, low=0, high=1)
    looks = torch.stack([image for _, image in sampling.images(picture)])
    outside = ((looks < 0) | (looks > 1)).double().mean((0, 2, 3, 4))
    deviation = (confidence * (1 - confidence) / (400 * 192)) ** 0.5
    assert outside[0] < 1 - confidence + 4 * deviation
    assert abs(outside[1] - (1 - confidence)) < 4 * deviation


@pytest.mark.parametrize("method", ["gradient", "deeplift", "grad_cam"])
def test_adaptgrad_by_definition(method: str, x: Tensor) -> None:
    model = build("residual")
    sampling = AdaptGrad(4, seed=1, confidence=0.8)
    generator = torch.Generator().manual_seed(1)
    looks = [x + sampling.spread(x) * torch.randn(x.shape[1:], generator=generator).to(x) for _ in range(4)]
    options = {"layers": LAYERS, "method": method, "fix": "backward"}
    expected = {name: a.mean(0) for name, a in one_by_one(model, looks, [1, 1, 1], **options).items()}
    assert_maps_close(sal.explain(model, x, 1, sampling=sampling, **options), expected)


# -------------------------------------------------------------------------------------------------------- captum


@pytest.mark.parametrize(
    ("kind", "theirs"), [(SmoothGrad, "smoothgrad"), (SmoothGradSquared, "smoothgrad_sq"), (VarGrad, "vargrad")]
)
def test_equal_to_captum(kind: type[SmoothGrad], theirs: str, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """captum's NoiseTunnel, given our noise: it draws for all looks of the first image, then of the second, ..."""
    model = build("reused_relu")
    target = torch.tensor([1, 4, 0])
    noise = torch.stack(noisy(x, 6, 0.2), 1) - x[:, None]
    monkeypatch.setattr(torch, "normal", lambda mean, spread: noise.flatten(0, 1))
    runs = {
        ("input", "gradient"): (captum.attr.Saliency(model), {"abs": False}),
        ("second", "gradient_x_activation"): (captum.attr.LayerGradientXActivation(model, model.second), {}),
        ("first", "grad_cam"): (captum.attr.LayerGradCam(model, model.first), {"relu_attributions": True}),
    }
    for (layer, method), (attribution, options) in runs.items():
        tunnel = captum.attr.NoiseTunnel(attribution)
        expected = tunnel.attribute(x, theirs, 6, stdevs=1.0, target=target, **options)
        found = sal.explain(model, x, target, layer, method, None, sampling=kind(6, 0.2))[layer]
        torch.testing.assert_close(found, expected.detach(), msg=lambda m, n=method: f"{n}: {m}")


# ---------------------------------------------------------------------------------------------------- properties


def test_the_names_are_the_defaults(x: Tensor) -> None:
    assert list(SAMPLINGS) == list(SMALL)
    for name, kind in SAMPLINGS.items():
        assert as_sampling(name) == kind()
    assert as_sampling(None) is None
    model = build("functional")
    found = sal.explain(model, x, 1, method="gradient", sampling="smoothgrad")
    expected = {n: a.mean(0) for n, a in one_by_one(model, noisy(x, 50, 0.15), [1] * 3, method="gradient").items()}
    assert_maps_close(found, expected)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *[(name, method) for name in SMALL for method in ("gradient", "deeplift", "integrated_gradients")],
        *[(name, "smooth_grad_cam++") for name in SMALL if SMALL[name].statistic == "mean"],
    ],
)
def test_the_batch_does_not_matter(name: str, method: str, x: Tensor) -> None:
    """Neither how many looks go through the network at once, nor what else is in the batch."""
    model = build("residual")
    baseline = torch.rand(3, 3, 16, 16, dtype=torch.float64)  # another one for every image
    target = [1, 4, 0]

    def run(chosen: slice, batch: int) -> dict[str, Tensor]:
        sampling = replace(SMALL[name], batch=batch)
        classes, start = target[chosen], baseline[chosen]
        return sal.explain(model, x[chosen], classes, LAYERS, method, "backward", start, 2, sampling)

    everything = run(slice(None), 32)
    for batch in (1, 7):
        assert_maps_close(run(slice(None), batch), everything, rtol=1e-9, atol=1e-14)
    for i in range(3):
        alone = run(slice(i, i + 1), 32)
        assert_maps_close(alone, {n: a[i : i + 1] for n, a in everything.items()}, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ["smoothgrad", "smoothgrad_squared", "vargrad", "adaptgrad", "fusiongrad"])
def test_few_looks_are_the_first_of_many_and_seeds_differ(name: str, x: Tensor) -> None:
    def looks(network: int = 0, **options: Any) -> Tensor:
        shares, images = zip(*replace(SMALL[name], **options).images(x, network), strict=True)
        assert sum(shares) == pytest.approx(1) and len(set(shares)) == 1
        return torch.stack(images)

    many = looks(n=7)
    assert torch.equal(looks(n=3), many[:3])
    assert torch.equal(looks(n=3, seed=0), many[:3])
    assert not torch.isclose(looks(n=3, seed=1) - x, many[:3] - x).all((0, 2, 3, 4)).any()
    assert not torch.equal(looks(network=1, n=3), many[:3])


@pytest.mark.parametrize("name", ["noisegrad", "fusiongrad"])
def test_few_networks_are_the_first_of_many_and_seeds_differ(name: str) -> None:
    model = build("functional")
    count = "n" if name == "noisegrad" else "m"

    def weights(**options: int) -> list[Tensor]:
        found = copies(replace(SMALL[name], **options), model)
        return [torch.cat([p.flatten() for p in copy.parameters()]).detach() for copy in found]

    many = weights(**{count: 4})
    assert len(many) == 4
    assert all(torch.equal(a, b) for a, b in zip(weights(**{count: 2}), many[:2], strict=True))
    assert not torch.equal(weights(seed=1)[0], many[0])


@pytest.mark.parametrize("name", SMALL)
def test_the_random_state_is_neither_read_nor_changed(name: str, x: Tensor) -> None:
    model = build("functional")
    maps = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        maps.append(sal.explain(model, x, 1, method="gradient", sampling=SMALL[name]))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, maps[1][layer]) for layer, a in maps[0].items())


@contextmanager
def defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    old = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(old)


@pytest.mark.parametrize("name", SMALL)
def test_the_noise_is_the_same_for_every_type_and_default(name: str, x: Tensor) -> None:
    """In an environment with other defaults, ``meta`` standing for a GPU; and for pictures of another precision."""
    model, sampling = build("functional"), SMALL[name]
    looks, networks = [image for _, image in sampling.images(x)], copies(sampling, model)
    with defaults(torch.float64, "meta"):
        again, others = [image for _, image in sampling.images(x)], copies(sampling, model)
    assert all(torch.equal(a, b) for a, b in zip(looks, again, strict=True))
    for a, b in zip(networks, others, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    for (_, image), look in zip(sampling.images(x.float()), looks, strict=True):
        torch.testing.assert_close(image, look.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["gradient", "deeplift", "grad_cam"])
def test_without_noise_it_is_one_look(method: str, x: Tensor) -> None:
    model = build("residual")
    plain = sal.explain(model, x, 1, method=method)
    for sampling in (SmoothGrad(3, 0), AdaptGrad(3, 0), NoiseGrad(3, 0), FusionGrad(2, 0, m=2, weight_noise=0)):
        assert_maps_close(sal.explain(model, x, 1, method=method, sampling=sampling), plain)
    squares = {name: a.square() for name, a in plain.items()}
    assert_maps_close(sal.explain(model, x, 1, method=method, sampling=SmoothGradSquared(3, 0)), squares)
    for name, variance in sal.explain(model, x, 1, method=method, sampling=VarGrad(3, 0)).items():
        assert variance.abs().max() < 1e-20 * squares[name].max()


def test_the_class_is_that_of_the_clean_picture_in_the_clean_network(x: Tensor) -> None:
    model = build("residual")
    predicted = model(x).argmax(1)
    looks = noisy(x, 6, 1.0)
    assert any((model(look).argmax(1) != predicted).any() for look in looks)
    for sampling in (SmoothGrad(6, 1.0), NoiseGrad(6, 1.0), Path(6)):
        found = sal.explain(model, x, None, method="gradient", sampling=sampling)
        assert_maps_close(found, sal.explain(model, x, predicted, method="gradient", sampling=sampling))


def test_all_layers_and_the_order_of_names(x: Tensor) -> None:
    model = build("residual")
    every = sal.explain(model, x, 1, "all", "gradient", sampling=SmoothGrad(3))
    assert list(every) == list(sal.hidden_layers(model, x))
    some = sal.explain(model, x, 1, (layer for layer in ["layer4", model.layer2]), "gradient", sampling=SmoothGrad(3))
    assert list(some) == ["layer4", "layer2"]
    assert torch.equal(some["layer4"], every["layer4"])
    cells = sal.explain(model, x, 1, "all", "weights+l2", None, sampling=NoiseGrad(2))
    assert list(cells) == list(sal.explain(model, x, 1, "all", "weights+l2", None))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("name", SMALL)
def test_in_inference_mode(mode: Callable[[], Any], name: str, x: Tensor) -> None:
    model = build("functional")
    expected = sal.explain(model, x, 1, method="gradient", sampling=SMALL[name])
    with mode():
        found = sal.explain(model, x.clone(), 1, method="gradient", sampling=SMALL[name])
    assert_maps_close({n: a.clone() for n, a in found.items()}, expected)


# ------------------------------------------------------------------------------------------- precision and memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", [SmoothGrad, SmoothGradSquared, VarGrad])
def test_sums_are_more_precise_than_what_is_summed(kind: type[SmoothGrad], dtype: torch.dtype) -> None:
    """600 looks: a sum in bfloat16 would stand still after the 256th, and a sum of squares lose the variance."""
    picture = (3 + torch.rand(1, 1, 4, 4)).to(dtype)
    sampling = kind(600, 0.1, batch=7)
    looks = torch.stack([image for _, image in sampling.images(picture)]).double()
    means = looks.mean(0)
    expected = {SmoothGrad: means, SmoothGradSquared: (looks**2).mean(0), VarGrad: ((looks - means) ** 2).mean(0)}[kind]
    found = sample(nn.Identity(), picture, sampling, lambda images: {"map": images})["map"]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=max(2 * torch.finfo(dtype).eps, 3e-6), atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SMALL)
def test_half_precision_networks(name: str, dtype: torch.dtype, x: Tensor) -> None:
    expected = sal.explain(build("functional"), x, 1, method="gradient", sampling=SMALL[name])
    found = sal.explain(build("functional").to(dtype), x.to(dtype), 1, method="gradient", sampling=SMALL[name])
    for layer, attribution in found.items():
        assert attribution.dtype == dtype
        difference = (attribution.double() - expected[layer]).norm() / expected[layer].norm()
        assert difference < (0.5 if dtype == torch.bfloat16 else 0.1), layer


class Small(nn.Module):
    """A layer on a device that holds no more than so many images."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.sizes = room, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return x


@pytest.mark.parametrize("sampling", [SmoothGrad(7, batch=12), VarGrad(7, batch=12), FusionGrad(5, m=2, batch=12)])
def test_a_batch_that_does_not_fit_is_halved(sampling: Sampling, x: Tensor) -> None:
    model = build("functional")
    expected = sal.explain(model, x, 1, method="deeplift", sampling=sampling)
    small = Small(6)
    tight = nn.Sequential(small, model)
    layers = [f"1.{name}" for name in expected]
    found = sal.explain(tight, x, 1, layers, "deeplift", sampling=sampling)
    assert {12, 6} <= set(small.sizes)
    assert_maps_close({name.removeprefix("1."): a for name, a in found.items()}, expected, rtol=1e-9, atol=1e-14)
    small.room, small.sizes = 3, []
    found = sal.explain(tight, x, 1, layers, "deeplift", sampling=sampling)
    assert {12, 6, 3} <= set(small.sizes)
    assert_maps_close({name.removeprefix("1."): a for name, a in found.items()}, expected, rtol=1e-9, atol=1e-14)


def test_a_look_that_does_not_fit_is_an_error(x: Tensor) -> None:
    sizes = []

    def attribute(images: Tensor) -> dict[str, Tensor]:
        sizes.append(len(images))
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(MemoryError, match=r"one look at 3 images of \(3, 16, 16\)"):
        sample(build("functional"), x, SmoothGrad(8, batch=24), attribute)
    assert sizes == [24, 12, 6, 3]


def test_other_errors_are_not_taken_for_a_lack_of_memory(x: Tensor) -> None:
    calls = []

    def attribute(images: Tensor) -> dict[str, Tensor]:
        calls.append(len(images))
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        sample(build("functional"), x, SmoothGrad(8, batch=24), attribute)
    assert calls == [24]


@pytest.mark.parametrize("kind", ["smoothgrad", "vargrad", "noisegrad", "path"])
def test_memory_does_not_grow_with_the_looks(kind: str, x: Tensor) -> None:
    """When a batch begins, nothing is left of earlier ones but the one just done."""
    made: list[list[weakref.ref[Tensor]]] = []
    alive = []

    def attribute(images: Tensor) -> dict[str, Tensor]:
        alive.append(sum(any(ref() is not None for ref in batch) for batch in made))
        found = {"a": images * 2, "b": images + 1}
        made.append([weakref.ref(tensor) for tensor in (images, *found.values())])
        return found

    many = {"path": {"steps": 19}}.get(kind, {"n": 20})
    sample(build("functional"), x, replace(SMALL[kind], batch=6, **many), attribute)
    assert len(alive) >= 10
    assert max(alive) <= 1
    assert not any(ref() is not None for batch in made for ref in batch)


def test_networks_do_not_pile_up() -> None:
    model = build("functional")
    made: list[weakref.ref[Tensor]] = []
    for network in NoiseGrad(10).networks(model):
        with network:
            assert sum(ref() is not None for ref in made) <= 1
            made.append(weakref.ref(model.first.weight))
    assert len(made) == 10
