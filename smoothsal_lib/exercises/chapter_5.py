"""Checks for the exercises of chapter 5."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from smoothsal_lib.exercises.marking import as_numbers, attempt, hint, picture_for, told, untouched, verdict
from smoothsal_lib.explain import explain
from smoothsal_lib.fixes import smoothed
from smoothsal_lib.fixes.blur import centred_blur, cyclic_mean


def check_5_1(answer: object) -> None:
    """Chapter 5: shift of the published hook after four strided layers, in input pixels."""
    if untouched(answer):
        return None
    shift = as_numbers(answer, 1)
    if shift is not None and abs(shift[0]) == 2:
        return hint("half a pixel four times, but of which map? Each layer's pixel spans more of the input")
    if shift is not None and abs(shift[0]) == 15:
        return hint("a whole pixel of each; where is the centre of mass of the four copies?")
    verdict(shift is not None and abs(shift[0]) == 7.5, "(1 + 2 + 4 + 8) / 2", "add up half of each layer's pixel")


def check_5_2(answer: object) -> None:
    """Chapter 5: the centred kernel for stride 6."""
    if untouched(answer):
        return None
    kernel = as_numbers(answer)
    if kernel is None or len(kernel) != 7:
        return hint("the kernel has an odd number of taps, one more than the stride")
    if not abs(sum(kernel) - 1) < 0.01:
        return hint(f"a constant must stay a constant: the weights sum to {sum(kernel):g}, not to 1")
    wanted = [1 / 12, *[1 / 6] * 5, 1 / 12]
    verdict(
        all(abs(a - b) < 0.005 for a, b in zip(kernel, wanted, strict=True)),
        "a box of six and a box of two",
        "convolve a box of six with a box of two",
    )


def check_5_3(answer: object) -> None:
    """Chapter 5: a function that measures by how many rows a blur moves a map."""
    if untouched(answer):
        return None
    cases = {
        0.5: lambda g: cyclic_mean(g, (2, 2)),
        0.0: lambda g: centred_blur(g, (2, 2)),
        -2.0: lambda g: g.roll(-2, 2),
    }
    for shift, blur in cases.items():
        if (found := attempt(answer, blur)) is None:
            return None
        measured = as_numbers(found, 1)
        if measured is None:
            return hint("the function should return one number")
        if shift and abs(measured[0] + shift) < 1e-4:
            return hint("that is the way back: take the centre afterwards minus the centre before")
        if not abs(measured[0] - shift) < 1e-4:
            return hint(f"a blur that moves maps by {shift:g} rows is measured at {measured[0]:g}")
    verdict(True, "half a pixel for the published hook, nothing for the centred one", "")


def check_5_4(answer: object) -> None:
    """Chapter 5: a context manager that hangs the hook and takes it off, whatever happens inside."""
    if untouched(answer):
        return None
    if not callable(answer):
        return hint("hand over the context manager itself, without calling it")
    network, x = _network(), torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    logits, plain = _gradient(network, x)
    wanted = []
    for fix in ("backward:paper", "backward"):
        with smoothed(network, fix):
            wanted.append(_gradient(network, x)[1])
    try:
        with answer(network):
            inside, repaired = _gradient(network, x)
        _, after = _gradient(network, x)
    except Exception as error:  # whatever a reader's code may raise
        return hint(f"a with block around convolutions and in-place ReLUs raises {told(error)}")
    if not torch.equal(inside, logits):
        return hint("inside the block the network predicts something else: is it the gradient alone that you change?")
    if torch.equal(repaired, plain):
        return hint("inside the block the gradient is what it was outside")
    if not any(torch.allclose(repaired, one, atol=1e-6) for one in wanted):
        return hint("inside the block the gradient is not that of the hook: is it blurred once a strided convolution?")
    if not torch.equal(after, plain):
        return hint("after the block the gradient is still blurred: take the hooks off")
    swallowed = True
    try:
        with answer(network):
            raise _Interruption
    except _Interruption:
        swallowed = False
    except Exception as error:
        return hint(f"an error inside the block should come out as it is, and became {told(error)}")
    if swallowed:
        return hint("an error inside the block should come out, and was swallowed")
    verdict(
        torch.equal(_gradient(network, x)[1], plain),
        "blurred inside, untouched outside, even after an error",
        "after an error inside the block the hooks are still there: what runs whatever happens?",
    )


class _Interruption(Exception):  # noqa: N818 (stands for anything that may go wrong inside a block)
    """Raised inside a reader's context manager."""


def _network() -> nn.Module:
    """A small network with the two things that break careless hooks: ReLUs in place, and a strided shortcut."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True))
            self.main = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True))
            self.shortcut = nn.Conv2d(6, 8, 1, stride=2)
            self.head = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(inplace=True))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(self.main(x) + self.shortcut(x)).mean((2, 3))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small()


def _gradient(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logits for ``x``, and the gradient of the first one at the picture."""
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        logits = network(x)
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    return logits.detach(), gradient


def check_5_5(answer: object) -> None:
    """Chapter 5: the reader's own network, and its layers whose gradient the hook leaves as it is."""
    if untouched(answer):
        return None
    if not isinstance(answer, Sequence) or len(answer) != 2:
        return hint("give two things, the network and the names of its layers")
    network, given = answer
    names = given.replace(",", " ").split() if isinstance(given, str) else given
    if not isinstance(names, Iterable):
        return hint("the second should be a list of names")
    names = {str(name) for name in names}
    if "..." in names or "Ellipsis" in names:
        return hint("the names go in place of the dots")
    if (x := picture_for(network)) is None:
        return None
    try:
        plain, repaired = (explain(network, x, method="gradient", fix=fix) for fix in (None, "backward"))
    except Exception as error:  # a network without strided convolutions, or of an unusual kind
        return hint(f"this network cannot be explained, {told(error)}")
    if unknown := names - set(plain):
        return hint(f"{min(unknown)!r} is no hidden layer of this network: sal.hidden_layers lists them")
    # Not bit for bit, since a GPU does not repeat itself.
    change = {name: float((repaired[name] - g).norm() / g.norm().clamp(min=1e-30)) for name, g in plain.items()}
    same = {name for name in plain if change[name] < 1e-4}
    if changed := names - same:
        name = min(changed, key=lambda name: change[name])
        return hint(f"at {name} the gradient changes by {change[name]:.0%} of its length: what has it come through?")
    verdict(
        names == same,
        "up there the gradient has not yet met a strided convolution",
        f"there are more, {len(same - names)} of them: which layers come after the last strided convolution?",
    )
