"""Faithfulness: does the score follow when the pixels that a map calls important come or go?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import overload

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from smoothsal_lib.capture import check_target
from smoothsal_lib.extract import resize_map, saliency_map
from smoothsal_lib.layers import check_images, check_output
from smoothsal_lib.memory import Portions
from smoothsal_lib.metrics.fidelity import probabilities
from smoothsal_lib.regions import check_one_region
from smoothsal_lib.state import preserved

BASELINES = ("zero", "blur", "mean")


@dataclass(frozen=True)
class Curves:
    """How the score changes as more and more pixels are exchanged.

    Attributes:
        fractions: (S + 1,) shares of the pixels exchanged, from 0 to 1.
        scores: (N, S + 1) the probability of the explained class, one row an image.
    """

    fractions: Tensor
    scores: Tensor

    @property
    def auc(self) -> Tensor:
        """(N,) area under each curve by the trapezoid rule over the true fractions, between 0 and 1."""
        return torch.trapezoid(self.scores, self.fractions, dim=1)


@overload
def insertion(model: nn.Module, x: Tensor, maps: Tensor, target: Tensor | int | None = ..., steps: int = ...,
              baseline: str | Tensor = ..., activation: str = ..., batch: int = ...) -> Curves: ...  # fmt: skip


@overload
def insertion(model: nn.Module, x: Tensor, maps: Mapping[str, Tensor], target: Tensor | int | None = ...,
              steps: int = ..., baseline: str | Tensor = ..., activation: str = ...,
              batch: int = ...) -> dict[str, Curves]: ...  # fmt: skip


def insertion(
    model: nn.Module,
    x: Tensor,
    maps: Tensor | Mapping[str, Tensor],
    target: Tensor | int | None = None,
    steps: int = 28,
    baseline: str | Tensor = "blur",
    activation: str = "softmax",
    batch: int = 256,
) -> Curves | dict[str, Curves]:
    """Begin with the baseline and insert the picture's pixels, the most relevant first. A good map has a high AUC.

    Source: RISE (Petsiuk et al. 2018, arXiv 1806.07421); the defaults are those of Smooth Deep Saliency (arXiv
    2404.02282): 28 steps, which at 224 px are 1,792 pixels each, into a picture blurred by 11 Gaussian taps of
    sigma 5. To score on a repaired network, call this inside ``with sal.smoothed(model, fix)``; a dense network on
    part of the picture, inside ``with sal.over_region(model, region)``.

    Args:
        model: the network that is asked.
        x: images (N, C, H, W), normalised as the model expects them.
        maps: what ranks the pixels: maps (N, h, w); or attributions (N, C, h, w), whose mean over channels is taken;
            or several of them by name, as :func:`smoothsal_lib.explain` returns them. Smaller ones are enlarged to
            (H, W) by repeating values; pixels of equal value follow in reading order.
        target: the class whose probability is the score; ``None`` means the class the model predicts for ``x``.
        steps: in how many steps, as equal as whole pixels allow.
        baseline: ``"zero"`` (the mean colour of a normalised picture), ``"blur"``, ``"mean"`` (each picture's own
            mean colour), or a tensor that broadcasts to ``x``.
        activation: ``"softmax"``, or ``"sigmoid"`` for independent outputs, such as a detector's single one.
        batch: how many pictures go through the network at once; halved where the device has no memory for them.

    Returns:
        :class:`Curves`, or a dictionary of them when ``maps`` is one.

    Raises:
        TypeError, ValueError: for bad images, maps, targets, steps or baselines, in one line.
    """
    return _curves(model, x, maps, target, steps, baseline, activation, batch, insert=True)


@overload
def deletion(model: nn.Module, x: Tensor, maps: Tensor, target: Tensor | int | None = ..., steps: int = ...,
             baseline: str | Tensor = ..., activation: str = ..., batch: int = ...) -> Curves: ...  # fmt: skip


@overload
def deletion(model: nn.Module, x: Tensor, maps: Mapping[str, Tensor], target: Tensor | int | None = ...,
             steps: int = ..., baseline: str | Tensor = ..., activation: str = ...,
             batch: int = ...) -> dict[str, Curves]: ...  # fmt: skip


def deletion(
    model: nn.Module,
    x: Tensor,
    maps: Tensor | Mapping[str, Tensor],
    target: Tensor | int | None = None,
    steps: int = 28,
    baseline: str | Tensor = "zero",
    activation: str = "softmax",
    batch: int = 256,
) -> Curves | dict[str, Curves]:
    """Begin with the picture and replace its pixels by the baseline, the most relevant first. A good map has a low AUC.

    Arguments, result and errors are those of :func:`insertion`; unless another baseline is given it is the mean colour.
    """
    return _curves(model, x, maps, target, steps, baseline, activation, batch, insert=False)


def _curves(
    model: nn.Module,
    x: Tensor,
    maps: Tensor | Mapping[str, Tensor],
    target: Tensor | int | None,
    steps: int,
    baseline: str | Tensor,
    activation: str,
    batch: int,
    insert: bool,
) -> Curves | dict[str, Curves]:
    check_images(x, model)
    named = maps if isinstance(maps, Mapping) else {"": maps}
    rankings = {name: ranking(one, x) for name, one in named.items()}
    pixels = x.shape[2] * x.shape[3]
    if not 1 <= steps <= pixels:
        raise ValueError(f"steps = {steps} is not between 1 and the number of pixels, {pixels}")
    counts = torch.linspace(0, pixels, steps + 1, dtype=torch.float64).round().long()
    other = baseline_images(x, baseline)
    before, after = (other, x) if insert else (x, other)
    with preserved(model), torch.no_grad():
        logits = torch.cat([check_output(found) for found in answers(model, iter([x]), batch)])
        classes = check_target(target, logits)
        # All curves begin and end alike, whatever ranks the pixels: with x, which the network has seen, and the other.
        both = class_scores(model, iter([other]), classes, 1, activation, batch), _scores(logits, classes, activation)
        first, last = both if insert else both[::-1]
        found = {}
        for name, order in rankings.items():
            between = _exchanged(before, after, order, counts[1:-1], batch)
            middle = [class_scores(model, between, classes, steps - 1, activation, batch)] if steps > 1 else []
            scores = torch.cat([first, *middle, last], 1)
            found[name] = Curves((counts.double() / pixels).to(scores), scores)
    return found if isinstance(maps, Mapping) else found[""]


def ranking(maps: Tensor, x: Tensor) -> Tensor:
    """The pixels of ``x`` from the most to the least relevant.

    Args:
        maps: (N, h, w), or attributions (N, C, h, w), of which the mean over channels is taken.
        x: images (N, C, H, W).

    Returns:
        (N, H W) indices into each picture's pixels in reading order.

    Raises:
        TypeError, ValueError: for maps of another type, number or shape, or with values that are not finite.
    """
    if not isinstance(maps, Tensor):
        raise TypeError(f"expected maps as a tensor or a mapping of tensors, got {type(maps).__name__}")
    if not maps.is_floating_point():
        raise TypeError(f"expected floating-point maps, got {maps.dtype}")
    if maps.ndim == 4:
        maps = saliency_map(maps)
    if maps.ndim != 3 or len(maps) != len(x) or 0 in maps.shape:
        raise ValueError(f"expected {len(x)} maps (N, h, w) or attributions (N, C, h, w), got {tuple(maps.shape)}")
    if not bool(torch.isfinite(maps).all()):
        raise ValueError(f"expected finite maps, got {int((~torch.isfinite(maps)).sum())} NaN or infinite values")
    enlarged = resize_map(maps.to(x.device), (x.shape[2], x.shape[3]), mode="nearest")
    return enlarged.flatten(1).argsort(dim=1, descending=True, stable=True)


def baseline_images(x: Tensor, baseline: str | Tensor) -> Tensor:
    """What takes the place of removed pixels: see ``baseline`` of :func:`insertion`.

    Raises:
        ValueError: for an unknown name, or a tensor that does not broadcast to ``x``.
    """
    if isinstance(baseline, Tensor):
        try:
            return baseline.to(x).expand(x.shape)
        except RuntimeError:
            raise ValueError(f"baseline {tuple(baseline.shape)} does not broadcast to {tuple(x.shape)}") from None
    if baseline not in BASELINES:
        raise ValueError(f"unknown baseline {baseline!r}: choose {', '.join(BASELINES)}, or give a tensor")
    if baseline == "blur":
        if min(x.shape[2:]) <= 5:  # the mirrored border must not be wider than the picture
            raise ValueError(f"pictures of {x.shape[2]} x {x.shape[3]} are too small for 11 blurring taps: need 6 px")
        return gaussian_blur(x, [11, 11], [5.0, 5.0])
    return torch.zeros_like(x) if baseline == "zero" else x.mean((2, 3), keepdim=True).expand(x.shape)


def _exchanged(before: Tensor, after: Tensor, order: Tensor, counts: Tensor, most: int) -> Iterator[Tensor]:
    """For each image in turn the pictures in which the first ``counts`` pixels are ``after``'s.

    They come as (n, C, H, W), never more than ``most`` at a time: there may be one for every pixel.
    """
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    ranks = torch.empty_like(order).scatter_(1, order, places)  # the inverse: at which place each pixel comes
    for old, new, rank in zip(before, after, ranks, strict=True):
        for some in counts.to(rank.device).split(most):
            taken = rank.view(1, 1, *old.shape[1:]) < some.view(-1, 1, 1, 1)
            yield torch.where(taken, new, old)


def class_scores(
    model: nn.Module, pictures: Iterator[Tensor], classes: Tensor, each: int, activation: str, batch: int
) -> Tensor:
    """The probability of its class for every one of the pictures that belong to an image.

    Args:
        model: the network, already in evaluation mode.
        pictures: those of the first of N images, then those of the second and so on, as tensors (n, C, H, W) of any n,
            made when they are needed so that memory is bounded.
        classes: (N,) the class of each image.
        each: how many pictures an image has.
        activation: ``"softmax"`` or ``"sigmoid"``.
        batch: how many pictures go through the network at once.

    Returns:
        (N, each) in float32, or float64 when the network computes in it.

    Raises:
        ValueError: for the softmax of a single output, which is always 1; for a dense network that has a region for
            each picture.
    """
    check_one_region(model)
    scores: list[Tensor] = []
    wanted = classes.repeat_interleave(each)
    done = 0
    for logits in answers(model, pictures, batch):
        scores.append(_scores(logits, wanted[done : done + len(logits)], activation))
        done += len(logits)
    return torch.cat(scores).view(-1, each)


def answers(model: nn.Module, pictures: Iterator[Tensor], batch: int) -> Iterator[Tensor]:
    """The logits of pictures, ``batch`` at a time, and half of that where the device has no memory for them.

    Args:
        model: the network, already in evaluation mode.
        pictures: tensors (n, C, H, W) of any n, made when they are needed.
        batch: how many go through the network at once.

    Yields:
        (n, classes), in the order of the pictures.

    Raises:
        MemoryError: where the device has no memory for one picture.
    """
    portions = Portions(batch, "the device has no memory for one picture: take a smaller one")
    for part in _rebatched(pictures, batch):
        for _, logits in portions.each(partial(_answer, model, part), len(part)):
            yield logits


def _answer(model: nn.Module, pictures: Tensor, some: slice) -> Tensor:
    """Copied: a network may begin with an in-place operation, and may be asked again."""
    return model(pictures[some].clone())


def _scores(logits: Tensor, classes: Tensor, activation: str) -> Tensor:
    """(N, 1) the probabilities of ``classes`` (N,), from logits (N, classes)."""
    if logits.shape[1] == 1 and activation == "softmax":
        raise ValueError("the softmax of a single output is always 1: use activation='sigmoid'")
    # Under autocast the logits come in 16 bits, in which an area under a curve has two digits.
    found = probabilities(logits if logits.dtype == torch.float64 else logits.float(), activation)
    return found.gather(1, classes[:, None])


def _rebatched(pictures: Iterator[Tensor], batch: int) -> Iterator[Tensor]:
    """The same pictures, ``batch`` at a time."""
    if batch < 1:
        raise ValueError(f"batch = {batch} is not a number of pictures: give 1 or more")
    waiting: list[Tensor] = []
    for some in pictures:
        waiting.append(some)
        if sum(map(len, waiting)) >= batch:
            *full, rest = torch.cat(waiting).split(batch)
            yield from full
            waiting = [rest]
    if waiting:
        yield from torch.cat(waiting).split(batch)
