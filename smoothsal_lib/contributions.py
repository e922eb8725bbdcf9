"""Extract & aggregate: what each position adds to the gradient of a layer's weights.

The gradient of a weight is a sum over positions, since a convolution uses it at all of them. Saliency is what a single
position contributes to that sum (phase 1, *extract*), reduced to one number (phase 2, *aggregate*). To explain an
activation x with gradient g, imagine a layer behind it that changes nothing, and ask what position u contributes to the
gradient of *its* weights:

    ================  ================================================  =====================
    ``extract``       the layer that is imagined                        contribution of u
    ================  ================================================  =====================
    ``bias``          adds 0 to every channel                           g_u
    ``scaling``       multiplies every channel by 1                     g_u ⊙ x_u
    ``conv1x1``       1 x 1 convolution by the identity matrix          g_u x_uᵀ
    ``conv3x3``       3 x 3 convolution, identity in the middle tap     g_u p_uᵀ, p_u the 3 x 3 patch of x around u
    ``depthwise3x3``  the same, channel by channel                      g_uc p_uc, for every channel c
    ``weights``       none: the convolution that is there               g_u p_uᵀ, p_u the patch that it sees at u
    ================  ================================================  =====================

No outer product is ever made. All contributions are products of one factor from g and one from the patch, within groups
of channels (one group for a full convolution, one a channel for the others), and then

    sum = Σg · Σp,    max_abs = max|g| · max|p|,    l2 = ‖g‖ · ‖p‖,    positive_norm² = ‖g₊‖² ‖p₊‖² + ‖g₋‖² ‖p₋‖²

The sum, maximum or norm over a patch is a sliding window over a map that is already reduced over channels.

Source: There and Back Again, Rebuffi, Fong, Ji and Vedaldi 2020, arXiv 2004.02866, sections 3.1 to 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXTRACTIONS = ("bias", "scaling", "conv1x1", "conv3x3", "depthwise3x3", "weights")
AGGREGATIONS = ("sum", "max_abs", "positive_norm", "l2")
RULES = ("gradient", "guided_backprop", "deconvnet", "deeplift")


@dataclass(frozen=True)
class ExtractAggregate:
    """One cell of the table: a method for :func:`smoothsal_lib.explain`, which gives it one channel, (N, 1, H, W).

    Args:
        extract: phase 1, one of :data:`EXTRACTIONS`; ``"weights"`` is for convolutions only, and its map has the size
            of their output.
        aggregate: phase 2, one of :data:`AGGREGATIONS`; the names are those of :func:`smoothsal_lib.saliency_map`.
        rule: what goes back through the network in place of the gradient, one of :data:`RULES`. With ``"deeplift"`` g
            is the multiplier and x the difference from the baseline's activation: scaling + sum is then DeepLift.

    Raises:
        ValueError: for an unknown name.
    """

    extract: str = "conv1x1"
    aggregate: str = "l2"
    rule: str = "gradient"

    def __post_init__(self) -> None:
        for what, choices in {"extract": EXTRACTIONS, "aggregate": AGGREGATIONS, "rule": RULES}.items():
            if getattr(self, what) not in choices:
                raise ValueError(f"unknown {what} {getattr(self, what)!r}: choose one of {', '.join(choices)}")
        if (self.extract, self.rule) == ("weights", "deeplift"):
            raise ValueError("rule 'deeplift' has no gradient of weights: choose another extract, or another rule")

    def __str__(self) -> str:
        cell = f"{self.extract}+{self.aggregate}"
        return cell if self.rule == "gradient" else f"{self.rule}+{cell}"

    @classmethod
    def named(cls, text: str) -> ExtractAggregate:
        """``"conv3x3+l2"`` or ``"guided_backprop+conv3x3+l2"`` as the cell of that name; the inverse of ``str``.

        Raises:
            ValueError: for anything else.
        """
        if text.count("+") not in (1, 2):
            raise ValueError(f"expected a cell such as 'conv3x3+l2', got {text!r}")
        *rule, extract, aggregate = text.split("+")
        return cls(extract, aggregate, *rule)


NAMED = {
    "linear_approximation": ExtractAggregate("scaling", "sum"),
    "normgrad": ExtractAggregate("conv1x1", "l2"),
    "normgrad_selective": ExtractAggregate("scaling", "positive_norm"),
}


def extract_aggregate(activation: Tensor, gradient: Tensor, extract: str, aggregate: str) -> Tensor:
    """The map of one cell of the table, at a layer that is imagined.

    Args:
        activation: x (N, C, H, W).
        gradient: g (N, C, H, W).
        extract: phase 1, any of :data:`EXTRACTIONS` but ``"weights"``.
        aggregate: phase 2, one of :data:`AGGREGATIONS`.

    Returns:
        M (N, H, W).

    Raises:
        ValueError: for an unknown name, or shapes that differ or are not (N, C, H, W).
    """
    ExtractAggregate(extract, aggregate)
    if extract == "weights":
        raise ValueError("extract 'weights' needs a convolution: use weight_contributions")
    if activation.shape != gradient.shape or gradient.ndim != 4:
        shapes = f"{tuple(activation.shape)} and {tuple(gradient.shape)}"
        raise ValueError(f"expected activation and gradient of one shape (N, C, H, W), got {shapes}")
    factor = torch.ones_like(activation) if extract == "bias" else activation
    groups = 1 if extract in ("conv1x1", "conv3x3") else gradient.shape[1]
    window = _Window(3, padding=1) if extract.endswith("3x3") else _Window()
    return _aggregate(gradient, factor, groups, window, aggregate)


def weight_contributions(x: Tensor, gradient: Tensor, convolution: nn.Conv2d, aggregate: str) -> Tensor:
    """The map of a real convolution: what every position of its output contributes to the gradient of its weights.

    Args:
        x: (N, C_in, H, W), what the convolution was fed.
        gradient: (N, C_out, H', W'), the derivative of the score by its output.
        convolution: of any kernel, stride, padding, dilation and groups.
        aggregate: phase 2, one of :data:`AGGREGATIONS`.

    Returns:
        M (N, H', W').

    Raises:
        ValueError: for an unknown name.
    """
    ExtractAggregate("weights", aggregate)
    mode = "constant" if convolution.padding_mode == "zeros" else convolution.padding_mode
    # The one place where torch keeps what padding="same" means for this kernel; last axis first, as F.pad wants it.
    x = F.pad(x, convolution._reversed_padding_repeated_twice, mode)
    window = _Window(convolution.kernel_size, convolution.stride, dilation=convolution.dilation)
    return _aggregate(gradient, x, convolution.groups, window, aggregate)


@dataclass(frozen=True)
class _Window:
    """The patches of a convolution, slid over maps (N, G, H, W)."""

    kernel: int | tuple[int, ...] = 1
    stride: int | tuple[int, ...] = 1
    padding: int = 0
    dilation: int | tuple[int, ...] = 1

    def sum(self, maps: Tensor) -> Tensor:
        """The sum over each patch, the same shape but for the last two sizes."""
        if self == _Window():
            return maps
        rows, columns = self.kernel if isinstance(self.kernel, tuple) else (self.kernel, self.kernel)
        flat = maps.flatten(0, 1)[:, None]
        ones = flat.new_ones(1, 1, rows, columns)
        sums = F.conv2d(flat, ones, None, self.stride, self.padding, self.dilation)
        return sums[:, 0].unflatten(0, maps.shape[:2])

    def max(self, maps: Tensor) -> Tensor:
        """The largest value of each patch; ``maps`` are not negative, so that padding does not matter."""
        if self == _Window():
            return maps
        return F.max_pool2d(maps, self.kernel, self.stride, self.padding, self.dilation)


def _aggregate(gradient: Tensor, x: Tensor, groups: int, window: _Window, aggregate: str) -> Tensor:
    """Phase 2 of all products of a value of ``gradient`` with one of the patch of ``x`` in the same group of channels.

    Args:
        gradient: (N, C_out, H', W').
        x: (N, C_in, H, W), whose patches make H' x W'.
        groups: how many groups both kinds of channels fall into.
        window: the patches.
        aggregate: phase 2.

    Returns:
        (N, H', W').
    """
    g = gradient.unflatten(1, (groups, -1))  # (N, groups, channels, H', W')
    p = x.unflatten(1, (groups, -1))
    if aggregate == "sum":
        return (g.sum(2) * window.sum(p.sum(2))).sum(1)
    if aggregate == "max_abs":
        return (g.abs().amax(2) * window.max(p.abs().amax(2))).amax(1)
    if aggregate == "l2":
        return (_energy(g) * window.sum(_energy(p))).sum(1).sqrt()
    alike = _energy(g.clamp(min=0)) * window.sum(_energy(p.clamp(min=0)))
    alike += _energy(g.clamp(max=0)) * window.sum(_energy(p.clamp(max=0)))
    return alike.sum(1).sqrt()


def _energy(values: Tensor) -> Tensor:
    return values.square().sum(2)


@contextmanager
def fed(layers: Mapping[str, nn.Module | None]) -> Iterator[dict[str, Tensor]]:
    """Inside the block, whatever goes into the named convolutions is kept, as a copy: ``{name: (N, C, H, W)}``.

    Raises:
        ValueError: for a module that is no 2-d convolution; and on leaving, when one ran that does something else than
            its weights say, as under a surrogate, which takes its place, or the published forward hook, which averages
            over shifts.
    """
    found: dict[str, Tensor] = {}
    different: dict[str, Tensor] = {}  # asked at the end, once: a GPU has to be waited for to hear the answer

    def keep(name: str, module: nn.Conv2d, args: tuple[Any, ...], output: Tensor) -> None:
        output = output.detach()
        with torch.no_grad():
            own = module._conv_forward(args[0], module.weight, module.bias)
        if own.shape != output.shape:
            raise ValueError(_replaced(name))
        different[name] = (own - output).abs().amax() > 1e-3 * own.abs().amax()
        found[name] = args[0].detach().clone()

    with ExitStack() as hooks:
        for name, module in layers.items():
            if not isinstance(module, nn.Conv2d):
                raise ValueError(f"extract 'weights' needs 2-d convolutions, and {name!r} is none")
            hooks.callback(module.register_forward_hook(partial(keep, name)).remove)
        yield found
    if different and bool(torch.stack(list(different.values())).any()):
        raise ValueError(_replaced(next(name for name, other in different.items() if other)))


def _replaced(name: str) -> str:
    return f"something else runs in the place of {name!r}, so its weights cannot be explained"
