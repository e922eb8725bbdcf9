"""Average a map over many looks at the picture: SmoothGrad and its family.

    sal.explain(model, x, method="gradient", sampling="smoothgrad")
    sal.explain(model, x, method="deeplift", fix="backward", sampling=sal.sampling.SmoothGrad(n=100, noise=0.2))

All of them are one sum, Σ_k w_k a(x_k, θ_k), and differ in which pictures x_k and which weights θ_k they look at and in
what they take of the attributions a: their mean, their mean square, their variance. Every method, every layer and every
fix can stand in the place of a. No member needs more memory than a single batch: sums are kept, draws are not.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from smoothsal_lib.layers import as_baseline
from smoothsal_lib.loading import moved
from smoothsal_lib.memory import Portions
from smoothsal_lib.state import replaced

Key = TypeVar("Key", bound=Hashable)
# Images (k N, C, H, W), k looks at N of them, first all N of the first look; to {key: (k N, ...)}.
Attribute = Callable[[Tensor], Mapping[Key, Tensor]]


class Sampling(abc.ABC):
    """What is looked at, and what is taken of it.

    Attributes:
        batch: images that go through the network at once.
        statistic: ``"mean"``, ``"square"`` (mean of the squares) or ``"variance"``.
    """

    batch: int
    statistic: ClassVar[str] = "mean"

    @abc.abstractmethod
    def images(self, x: Tensor, network: int = 0) -> Iterator[tuple[float, Tensor]]:
        """The pictures to look at, each (N, C, H, W) like ``x``, with their shares; shares sum to 1.

        Args:
            x: images (N, C, H, W).
            network: which of :meth:`networks` looks.
        """

    def networks(self, model: nn.Module) -> Iterator[AbstractContextManager[None]]:
        """The networks that look, as contexts in which ``model`` is one of them; all count alike."""
        yield nullcontext()

    def of(self, some: slice, n: int) -> Sampling:
        """The same for some of ``n`` images: what is set image by image goes with them."""
        return self


@dataclass(frozen=True)
class SmoothGrad(Sampling):
    """The mean over noisy copies of the picture: 1/n Σ_k a(x + ε_k), ε_k ~ N(0, σ²).

    The noise of look k is the same for every image of a batch, so that the map of a picture does not depend on what
    else is in the batch; and n looks are the first n of any larger number. Neither needs the global random state.

    Source: Smilkov et al. 2017, arXiv 1706.03825, section 3.

    Args:
        n: how many copies.
        noise: σ as a share of the picture's range, max - min over all its values; 0.1 to 0.2 in the paper.
        seed: of the noise, which is the same on every device.
        batch: images that go through the network at once.

    Raises:
        ValueError: for counts below 1, or noise that is negative or not finite.
    """

    n: int = 50
    noise: float = 0.15
    seed: int = 0
    batch: int = 32

    def __post_init__(self) -> None:
        _check_counts(n=self.n, batch=self.batch)
        _check_level("noise", self.noise)

    def images(self, x: Tensor, network: int = 0) -> Iterator[tuple[float, Tensor]]:
        """``n`` noisy copies of every picture, with equal shares."""
        spread = self.spread(x)
        generator = torch.Generator().manual_seed(self.seed + _APART * network)
        for _ in range(self.n):
            yield 1 / self.n, x + spread * _normal(x.shape[1:], x, generator)

    def spread(self, x: Tensor) -> Tensor:
        """σ, the standard deviation of the noise: (N, 1, 1, 1), or (N, C, H, W) where it differs from pixel to pixel.

        Args:
            x: images (N, C, H, W).
        """
        return self.noise * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))


@dataclass(frozen=True)
class SmoothGradSquared(SmoothGrad):
    """The mean of the squares over noisy copies, 1/n Σ_k a(x + ε_k)².

    Never negative: the sign is gone, and strong values count more. Source: Hooker et al. 2019, arXiv 1806.10758,
    section 4.1. The arguments are those of :class:`SmoothGrad`.
    """

    statistic: ClassVar[str] = "square"


@dataclass(frozen=True)
class VarGrad(SmoothGrad):
    """The variance over noisy copies, 1/n Σ_k (a(x + ε_k) - mean)²: where the map is unsure rather than strong.

    Source: Adebayo et al. 2018, arXiv 1810.03307, section 3. The arguments are those of :class:`SmoothGrad`.
    """

    statistic: ClassVar[str] = "variance"


@dataclass(frozen=True)
class AdaptGrad(SmoothGrad):
    """SmoothGrad with noise that stays in the range of possible pictures: σ differs from value to value.

    A white pixel with noise on it is whiter than white half of the time, and the network has never seen that. Here
    σ_i = min(x_i - low, high - x_i) / (√2 erf⁻¹(c)), so that value i leaves the range with probability at most 1 - c.

    Source: Zhou et al. 2024, arXiv 2410.07711.

    Args:
        n: how many copies.
        noise: an upper bound of σ, as a share of the picture's range; infinite, which is the default and the paper's
            form, for none.
        seed: of the noise.
        batch: images that go through the network at once.
        confidence: c, between 0 and 1.
        low: the least possible values, as a tensor that broadcasts to (N, C, H, W), or a number; ``None`` takes the
            least value of each channel of the picture itself.
        high: the largest possible values, likewise.

    Raises:
        ValueError: as :class:`SmoothGrad`, for a confidence out of (0, 1), and for a picture beyond its range.
    """

    noise: float = math.inf
    confidence: float = 0.95
    low: Tensor | float | None = None
    high: Tensor | float | None = None

    def __post_init__(self) -> None:
        _check_counts(n=self.n, batch=self.batch)
        if not self.noise >= 0:
            raise ValueError(f"noise = {self.noise} is not a share of the picture's range: give 0 or more")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence = {self.confidence} is not a probability between 0 and 1")

    def spread(self, x: Tensor) -> Tensor:
        """σ (N, C, H, W)."""
        low = x.amin((2, 3), keepdim=True) if self.low is None else as_baseline(self.low, x, "low")
        high = x.amax((2, 3), keepdim=True) if self.high is None else as_baseline(self.high, x, "high")
        room = torch.minimum(x - low, high - x)
        if bool((room < 0).any()):
            raise ValueError(
                f"expected images between low and high, got values from {x.min():g} to {x.max():g} for "
                f"{low.min():g} to {high.max():g}"
            )
        confidence = torch.tensor(self.confidence, dtype=torch.float64, device="cpu")
        sigma = room / (math.sqrt(2) * torch.erfinv(confidence).item())
        return sigma if math.isinf(self.noise) else torch.minimum(sigma, super().spread(x))

    def of(self, some: slice, n: int) -> AdaptGrad:
        """The same, with the bounds of these images."""
        return replace(self, low=_of(self.low, some, n), high=_of(self.high, some, n))


@dataclass(frozen=True)
class NoiseGrad(Sampling):
    """The mean over noisy networks: 1/n Σ_k a(x; θ η_k), η_k ~ N(1, σ²) for every single weight.

    All parameters get noise, those of batch norm too; buffers and a surrogate's own layers do not. The network's
    parameters are set aside and never written to, so they return bit for bit, whatever happens.

    Source: Bykov et al. 2022, arXiv 2106.10185, section 3.

    Args:
        n: how many networks.
        weight_noise: σ, as a share of each weight.
        seed: of the noise, which is the same on every device.
        batch: images that go through the network at once.

    Raises:
        ValueError: for counts below 1, or noise that is negative or not finite.
    """

    n: int = 25
    weight_noise: float = 0.2
    seed: int = 0
    batch: int = 32

    def __post_init__(self) -> None:
        _check_counts(n=self.n, batch=self.batch)
        _check_level("weight_noise", self.weight_noise)

    def images(self, x: Tensor, network: int = 0) -> Iterator[tuple[float, Tensor]]:
        """The pictures as they are."""
        yield 1.0, x

    def networks(self, model: nn.Module) -> Iterator[AbstractContextManager[None]]:
        """``n`` networks with noisy weights."""
        return noisy_networks(model, self.n, self.weight_noise, self.seed)


@dataclass(frozen=True)
class FusionGrad(SmoothGrad):
    """NoiseGrad and SmoothGrad together: the mean over m noisy networks that look at n noisy copies each.

    Source: Bykov et al. 2022, arXiv 2106.10185, section 3.2.

    Args:
        n: how many copies of the picture each network sees; n · m passes in all.
        noise: of the pictures, as for :class:`SmoothGrad`.
        seed: of all noise.
        batch: images that go through the network at once.
        m: how many networks.
        weight_noise: of the networks, as for :class:`NoiseGrad`.

    Raises:
        ValueError: for counts below 1, or noise that is negative or not finite.
    """

    n: int = 10
    noise: float = 0.1
    m: int = 10
    weight_noise: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_counts(m=self.m)
        _check_level("weight_noise", self.weight_noise)

    def networks(self, model: nn.Module) -> Iterator[AbstractContextManager[None]]:
        """``m`` networks with noisy weights."""
        return noisy_networks(model, self.m, self.weight_noise, self.seed)


@dataclass(frozen=True)
class Path(Sampling):
    """The mean along the straight line from a baseline to the picture: ∫₀¹ a(x̄ + t (x - x̄)) dt, by the trapezoid rule.

    Integrated gradients is a member of the family: its looks lie on a line where SmoothGrad's lie in a cloud. The mean
    gradient at the input, times (x - x̄), is ``method="integrated_gradients"`` there. At a hidden layer that method is
    conductance, ∫ g dx^l, in which the layer's activation takes the place of t; this is ∫ g dt.

    Source: Sundararajan et al. 2017, arXiv 1703.01365, equation 3.

    Args:
        steps: pieces of the path; the looks are steps + 1.
        baseline: x̄, a tensor that broadcasts to (N, C, H, W), or a number; ``None`` means zeros, the mean colour.
        batch: images that go through the network at once.

    Raises:
        ValueError: for counts below 1.
    """

    steps: int = 32
    baseline: Tensor | float | None = None
    batch: int = 32

    def __post_init__(self) -> None:
        _check_counts(steps=self.steps, batch=self.batch)

    def images(self, x: Tensor, network: int = 0) -> Iterator[tuple[float, Tensor]]:
        """``steps + 1`` pictures from the baseline to ``x``; the two ends count half."""
        baseline = as_baseline(self.baseline, x)
        for step in range(self.steps + 1):
            share = (0.5 if step in (0, self.steps) else 1.0) / self.steps
            yield share, baseline + (x - baseline) * (step / self.steps)

    def of(self, some: slice, n: int) -> Path:
        """The same, from the baselines of these images."""
        return replace(self, baseline=_of(self.baseline, some, n))


SAMPLINGS: dict[str, type[Sampling]] = {
    "smoothgrad": SmoothGrad,
    "smoothgrad_squared": SmoothGradSquared,
    "vargrad": VarGrad,
    "adaptgrad": AdaptGrad,
    "noisegrad": NoiseGrad,
    "fusiongrad": FusionGrad,
    "path": Path,
}
_APART = 1_000_003  # between the seeds of two networks' noise: more than anyone counts seeds


def as_sampling(sampling: str | Sampling | None) -> Sampling | None:
    """A name of :data:`SAMPLINGS` as the member of the family with its defaults; others as they are.

    Raises:
        ValueError: for an unknown name.
        TypeError: for anything that is neither a name nor a sampling.
    """
    if sampling is None or isinstance(sampling, Sampling):
        return sampling
    if not isinstance(sampling, str):
        raise TypeError(f"expected the sampling as a name or a Sampling, got {type(sampling).__name__}")
    if sampling not in SAMPLINGS:
        raise ValueError(f"unknown sampling {sampling!r}: choose None, {', '.join(map(repr, SAMPLINGS))}")
    return SAMPLINGS[sampling]()


def noisy_networks(model: nn.Module, n: int, weight_noise: float, seed: int) -> Iterator[AbstractContextManager[None]]:
    """``n`` contexts, each of which sets another noisy network in the place of ``model``.

    Args:
        model: the network.
        n: how many.
        weight_noise: standard deviation of the factor, around 1, that every weight is multiplied by.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed - _APART)  # not the stream of any pictures' noise
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    for _ in range(n):
        with torch.inference_mode(False), torch.no_grad():
            noisy = [p * (1 + weight_noise * _normal(p.shape, p, generator)) for p in parameters]
            versions = [nn.Parameter(value, p.requires_grad) for value, p in zip(noisy, parameters, strict=True)]
        yield replaced(model, zip(parameters, versions, strict=True))


def sample(model: nn.Module, x: Tensor, sampling: Sampling, attribute: Attribute[Key]) -> dict[Key, Tensor]:
    """What ``sampling`` takes of the attributions of all its looks.

    Args:
        model: the network.
        x: images (N, C, H, W).
        sampling: a member of the family.
        attribute: from images (k N, C, H, W), k looks at N of them, to ``{key: (k N, ...)}``. A batch that does not fit
            the device's memory is halved, down to a single look.

    Returns:
        ``{key: (N, ...)}``, of the attributions' dtype.

    Raises:
        MemoryError: where a single look does not fit.
    """
    found: dict[Key, _Running] = {}
    at_once = max(1, sampling.batch // len(x))
    portions = Portions(at_once, f"not enough memory for one look at {len(x)} images of {tuple(x.shape[1:])}")
    for number, network in enumerate(sampling.networks(model)):
        with network:
            looks = iter(sampling.images(x, number))
            while chunk := list(islice(looks, at_once)):
                run = partial(_attributed, attribute, chunk)
                for some, attributions in portions.each(run, len(chunk)):
                    shares = [share for share, _ in chunk[some]]
                    for key, values in attributions.items():
                        running = found.setdefault(key, _Running(sampling.statistic))
                        running.add(shares, values.unflatten(0, (len(shares), len(x))))
    return {key: running.result() for key, running in found.items()}


def _attributed(attribute: Attribute[Key], chunk: list[tuple[float, Tensor]], some: slice) -> Mapping[Key, Tensor]:
    return attribute(torch.cat([images for _, images in chunk[some]]))


def _of(given: Tensor | float | None, some: slice, n: int) -> Tensor | float | None:
    """What belongs to some of ``n`` images, of a number or a tensor that broadcasts to (N, C, H, W)."""
    return given[some] if isinstance(given, Tensor) and given.ndim == 4 and len(given) == n else given


class _Running:
    """A statistic of weighted looks that forgets each look once it has counted it."""

    def __init__(self, statistic: str) -> None:
        self.statistic = statistic
        self.weight = 0.0
        self.mean: Tensor | None = None
        self.squares: Tensor | None = None  # Σ w (a - mean)², for the variance

    def add(self, shares: list[float], values: Tensor) -> None:
        """Count values (k, N, ...), each with its share."""
        self.dtype = values.dtype
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        if self.statistic == "square":
            values = values.square()
        weights = values.new_tensor(shares)
        weight = sum(shares)
        mean = torch.tensordot(weights, values, 1) / weight
        if self.mean is None:
            self.mean = torch.zeros_like(mean)
            self.squares = torch.zeros_like(mean) if self.statistic == "variance" else None
        shift = mean - self.mean
        before, self.weight = self.weight, self.weight + weight
        self.mean += shift * (weight / self.weight)
        if self.squares is not None:  # two groups joined: Chan, Golub and LeVeque 1979
            within = torch.tensordot(weights, (values - mean).square_(), 1)
            self.squares += within + shift.square() * (before * weight / self.weight)

    def result(self) -> Tensor:
        """The statistic of all that was counted."""
        assert self.mean is not None
        found = self.mean if self.squares is None else self.squares / self.weight
        return found.to(self.dtype)


def _normal(shape: torch.Size, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal values, drawn in 32 bits on the CPU so that they are the same for every type and device."""
    drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    return moved(drawn, like.device).to(like.dtype)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} = {count!r} is no count: give a whole number, 1 or more")


def _check_level(name: str, level: float) -> None:
    if not isinstance(level, (int, float)) or not 0 <= level < math.inf:
        raise ValueError(f"{name} = {level!r} is not a standard deviation: give 0 or more, as a share")
