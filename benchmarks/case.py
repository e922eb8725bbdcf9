"""What the benchmarks compare: one network, pictures, layers, and who does what with them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.capture import logits_of
from smoothsal_lib.fixes.surrogate import Surrogate

Maps = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Case:
    """What every contender is given.

    Attributes:
        model: a network in evaluation mode. Its parameters are as a user has them: not frozen.
        x: pictures (N, 3, H, W).
        target: (N,) the classes that the network predicts.
        layers: names of the layers to explain.
        surrogate: with random weights, which take as long as fitted ones.
        map: (N, H, W), what ranks the pixels for insertion and deletion; no two pixels are equal.
        pictures: (M, 3, h, w), what surrogates are fitted to.
        fitted: the strided convolutions that they are fitted for, those of the second stage; a surrogate of the whole
            network takes minutes whoever fits it.
        looks: of SmoothGrad.
        steps: of integrated gradients.
        points: steps of insertion and deletion.
    """

    model: nn.Module
    x: Tensor
    target: Tensor
    layers: tuple[str, ...]
    surrogate: Surrogate
    map: Tensor
    pictures: Tensor
    fitted: tuple[str, ...]
    looks: int = 50
    steps: int = 32
    points: int = 28

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, pictures: int = 16, size: int = 64) -> Case:
        """The case of a network, with the blocks of its first three stages: 13 of a ResNet34, as in the paper.

        Args:
            model: a ResNet.
            x: pictures (N, 3, H, W).
            pictures: how many a surrogate is fitted to.
            size: of those, in pixels.
        """
        surrogate = Surrogate.of(model).requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        ranks = [torch.randperm(x[0, 0].numel(), generator=generator) for _ in x]
        return cls(
            model,
            x,
            logits_of(model, x).argmax(1),
            tuple(name for name in sal.hidden_layers(model, x) if re.match(r"layer[123]\.", name)),
            surrogate,
            torch.stack(ranks).view(len(x), *x.shape[2:]).to(x),
            torch.randn(pictures, 3, size, size, generator=generator).to(x),
            tuple(name for name in surrogate.layers if name.startswith("layer2.")),
        )

    @property
    def smoothgrad(self) -> sal.sampling.SmoothGrad:
        """The noise, and how many looks the network takes at once."""
        return sal.sampling.SmoothGrad(n=self.looks, noise=0.15, batch=10)


@dataclass(frozen=True)
class Contender:
    """Somebody's way of doing a run.

    Attributes:
        run: what is done; the name of a row.
        who: ``"ours"``, a peer, or ``"the paper"``.
        call: what is timed.
        error: how far the result is from ``against``, relative to its norm.
        against: what it is compared with, in a word.
        tolerance: the largest error that counts as agreement.
        target: the largest ratio to the floor that is aimed at; ``None`` for none.
        note: what the table says about it; a function where that depends on the peer's version.
        share: the part of the work that ``call`` does, for what takes too long to be done in full; it then runs once.
    """

    run: str
    who: str
    call: Callable[[Case], object]
    error: Callable[[Case], float]
    against: str
    tolerance: float
    target: float | None = None
    note: str | Callable[[Case], str] = ""
    share: float | None = None


def off(found: Maps | Tensor, expected: Maps | Tensor) -> float:
    """The largest relative error, over the layers where there are several; infinite where names or shapes differ."""
    if isinstance(found, Tensor) and isinstance(expected, Tensor):
        if found.shape != expected.shape:
            return float("inf")
        error = float((found.double() - expected.double()).norm() / expected.double().norm())
        return error if error == error else float("inf")
    assert not isinstance(found, Tensor) and not isinstance(expected, Tensor)
    if found.keys() != expected.keys():
        return float("inf")
    return max(off(found[name], expected[name]) for name in expected)


def incomplete(attributions: Maps, case: Case) -> float:
    """How far the sums of attributions are from f_c(x) - f_c(0), relative to it, at the worst layer."""
    with torch.no_grad():
        change = (case.model(case.x) - case.model(torch.zeros_like(case.x))).gather(1, case.target[:, None]).sum()
    return max(float(((each.sum() - change) / change).abs()) for each in attributions.values())
