"""ROAD: removes pixels so that neither an edge nor a hole tells the network where they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smoothsal_lib.capture import check_target
from smoothsal_lib.layers import check_images, check_output
from smoothsal_lib.metrics.faithfulness import Curves, answers, class_scores, ranking
from smoothsal_lib.state import preserved

PERCENTAGES = (10, 20, 30, 40, 50, 60, 70, 80, 90)
ORDERS = ("most", "least")


@overload
def road(model: nn.Module, x: Tensor, maps: Tensor, target: int | Sequence[int] | Tensor | None = ...,
         percentages: Sequence[float] = ..., order: str = ..., noise: float = ..., seed: int = ...,
         activation: str = ..., batch: int = ...) -> Curves: ...  # fmt: skip


@overload
def road(model: nn.Module, x: Tensor, maps: Mapping[str, Tensor], target: int | Sequence[int] | Tensor | None = ...,
         percentages: Sequence[float] = ..., order: str = ..., noise: float = ..., seed: int = ...,
         activation: str = ..., batch: int = ...) -> dict[str, Curves]: ...  # fmt: skip


@torch.no_grad()
def road(
    model: nn.Module,
    x: Tensor,
    maps: Tensor | Mapping[str, Tensor],
    target: int | Sequence[int] | Tensor | None = None,
    percentages: Sequence[float] = PERCENTAGES,
    order: str = "most",
    noise: float = 0.01,
    seed: int = 0,
    activation: str = "softmax",
    batch: int = 256,
) -> Curves | dict[str, Curves]:
    """Remove the most (or least) relevant pixels and fill the gaps from what surrounds them.

    Deletion paints removed pixels in one colour. Their outline stays visible, and a network can read the class off it:
    then the score speaks of the shape of the mask and not of the pixels. Here a removed pixel becomes the weighted mean
    of its neighbours (:func:`linear_imputation`) plus a little noise, without which it would be too smooth to be true.
    Source: ROAD, remove and debias (Rong et al. 2022, arXiv 2202.00449).

    With ``order="most"`` a good map's score falls early (low AUC); with ``"least"`` it stays (high AUC). To score on a
    repaired network, call this inside ``with sal.smoothed(model, fix)``.

    Args:
        model: the network that is asked.
        x: images (N, C, H, W), normalised as the model expects them.
        maps: what ranks the pixels, as in :func:`smoothsal_lib.insertion`: maps (N, h, w), attributions (N, C, h, w),
            or several of them by name.
        target: the class whose probability is the score; ``None`` means the class the model predicts for ``x``.
        percentages: how many pixels to remove, ascending, between 0 and 100.
        order: remove the ``"most"`` or the ``"least"`` relevant first.
        noise: standard deviation of the noise on filled pixels, in the units of ``x``.
        seed: of the noise, which is the same for all maps and on every device. The global random state is not touched.
        activation: ``"softmax"``, or ``"sigmoid"`` for independent outputs.
        batch: how many pictures go through the network at once.

    Returns:
        :class:`Curves`, or a dictionary of them when ``maps`` is one. The first fraction is 0, the picture as it is;
        the last is that of the last percentage, so that the AUC is the area up to there.

    Raises:
        TypeError, ValueError: for bad images, maps, targets, percentages or orders, in one line.
    """
    check_images(x, model)
    shares = [float(percentage) / 100 for percentage in percentages]
    if not shares or any(not a < b for a, b in zip([0.0, *shares], [*shares, 1.0], strict=True)):
        raise ValueError(f"expected ascending percentages between 0 and 100, got {list(percentages)}")
    if order not in ORDERS:
        raise ValueError(f"unknown order {order!r}: choose {' or '.join(map(repr, ORDERS))}")
    if not noise >= 0:
        raise ValueError(f"expected noise of 0 or more, got {noise!r}")
    pixels = x.shape[2] * x.shape[3]
    counts = (torch.tensor(shares, dtype=torch.float64) * pixels).round().long()
    if int(counts[-1]) == pixels:
        raise ValueError(f"{percentages[-1]} % of {pixels} pixels leave none to fill the others from")
    named = maps if isinstance(maps, Mapping) else {"": maps}
    rankings = {name: ranking(one, x) for name, one in named.items()}
    fractions = torch.cat([counts.new_zeros(1), counts]).double() / pixels
    chunk = max(1, batch // len(fractions))
    found = {}
    with preserved(model):
        logits = torch.cat([check_output(found) for found in answers(model, iter([x]), chunk)])
        classes = check_target(target, logits)
        for name, first in rankings.items():
            pictures = _pictures(x, first if order == "most" else first.flip(1), counts, noise, seed, chunk)
            scores = class_scores(model, pictures, classes, len(fractions), activation, batch)
            found[name] = Curves(fractions.to(scores), scores)
    return found if isinstance(maps, Mapping) else found[""]


def _pictures(x: Tensor, order: Tensor, counts: Tensor, noise: float, seed: int, chunk: int) -> Iterator[Tensor]:
    """The pictures of ``chunk`` images at a time, (k (S + 1), C, H, W): each image as it is, then with gaps filled."""
    generator = torch.Generator().manual_seed(seed)
    ranks = order.argsort(dim=1).view(len(x), *x.shape[2:])  # the inverse of a permutation: when each pixel's turn is
    for images, rank in zip(x.split(chunk), ranks.split(chunk), strict=True):
        # Drawn image by image, so that the size of the chunks does not change which numbers an image gets.
        drawn = [torch.randn(len(counts), *x.shape[1:], generator=generator) for _ in images]
        added = noise * torch.stack(drawn, 1).to(x)
        made = [images]
        for count, grain in zip(counts.tolist(), added, strict=True):
            removed = rank < count
            made.append(linear_imputation(images, removed) + grain * removed[:, None])
        yield torch.stack(made, 1).flatten(0, 1)


@torch.no_grad()
def linear_imputation(x: Tensor, removed: Tensor, tolerance: float = 1e-3) -> Tensor:
    """Fill removed pixels so that each is the weighted mean of its eight neighbours, filled ones among them.

    A direct neighbour weighs 1/6, a diagonal one 1/12; at the border the weights that are left count (Rong et al. 2022,
    arXiv 2202.00449, section 4). For the removed pixels v this is the linear system (D - W) v = W_known x, with W the
    weights between pixels and D their sums. It is symmetric and positive definite, so conjugate gradients solve it,
    here preconditioned by D, for all images together and without ever writing the matrix down.

    Args:
        x: images (N, C, H, W).
        removed: (N, H, W) booleans: the pixels to fill. Their values in ``x`` do not matter, but must be finite.
        tolerance: when to stop: at a residual, in the norm of D's inverse, of ``tolerance`` times the spread of the
            image's known values. Filled pixels then differ from the exact solution by a few thousandths of the spread,
            less than the noise of :func:`road`.

    Returns:
        (N, C, H, W): known pixels as they were, removed ones filled. An image's result does not depend on the others.

    Raises:
        ValueError: for shapes that do not fit, or an image without a known pixel.
        TypeError: for a mask that is not boolean.
    """
    if removed.dtype != torch.bool:
        raise TypeError(f"expected the removed pixels as booleans, got {removed.dtype}")
    if x.ndim != 4 or removed.shape != (len(x), *x.shape[2:]):
        shapes = f"{tuple(x.shape)} and {tuple(removed.shape)}"
        raise ValueError(f"expected images (N, C, H, W) and removed pixels (N, H, W), got {shapes}")
    if bool(removed.flatten(1).all(1).any()):
        raise ValueError("expected at least one known pixel in every image to fill the others from")
    # Under autocast the convolution would round to 16 bits, and the iteration would not arrive.
    with torch.autocast(x.device.type, enabled=False):
        filled = _conjugate_gradients(x.to(torch.promote_types(x.dtype, torch.float32)), removed, tolerance)
    return torch.where(removed[:, None], filled.to(x.dtype), x)


def _conjugate_gradients(x: Tensor, removed: Tensor, tolerance: float) -> Tensor:
    """What :func:`linear_imputation` fills in: (N, C, H, W), 0 where a pixel is known."""
    # Channels last is several times as fast here, where each channel is convolved on its own.
    x = x.contiguous(memory_format=torch.channels_last)
    gap = removed[:, None].to(x).expand_as(x).contiguous(memory_format=torch.channels_last)
    taps = (x.new_tensor([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12).repeat(x.shape[1], 1, 1, 1)

    def neighbours(v: Tensor) -> Tensor:
        return F.conv2d(v, taps, padding=1, groups=x.shape[1])

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((1, 2, 3), keepdim=True)

    weights = neighbours(torch.ones_like(x[:1]))
    known = x * (1 - gap)
    count = (1 - gap).sum((2, 3), keepdim=True)
    mean = known.sum((2, 3), keepdim=True) / count
    spread = known - mean * (1 - gap)
    # The second term is for an image of one colour, which has no spread and is solved at once but for rounding.
    rounding = torch.finfo(x.dtype).eps ** 2 * dot(known, known)
    limit = tolerance**2 * dot(spread, spread) / count.sum(1, keepdim=True) + rounding
    tiny = torch.finfo(x.dtype).tiny
    filled = gap * mean
    residual = gap * (neighbours(known + filled) - weights * filled)
    direction = residual / weights
    size = dot(residual, direction)
    for _ in range(
        x.shape[2] * x.shape[3]
    ):  # as many as unknowns are enough in exact arithmetic, far fewer in practice
        unfinished = size > limit
        if not bool(unfinished.any()):
            break
        image = gap * (weights * direction - neighbours(direction))
        # A finished image stands still, so that its result does not depend on those beside it.
        step = torch.where(unfinished, size / dot(direction, image).clamp(min=tiny), 0)
        filled = filled + step * direction
        residual = residual - step * image
        scaled = residual / weights
        before, size = size, dot(residual, scaled)
        direction = scaled + size / before.clamp(min=tiny) * direction
    return filled
