"""Regions: the score of a part of the picture, for networks that answer for every pixel.

    model = sal.load_model("tissue_segmenter")             # logits (N, 4, H, W)
    maps = sal.explain(model, x, target=2, region=gland)   # why is there tumour in this gland?
    with sal.over_region(model, gland):                    # the same score for everything else, code of yours included
        sal.insertion(model, x, maps)

A dense network has no single score of class c but one at every position u. Over a region with weights r ≥ 0, a mask or
anything softer, it has one again, their mean

    f_c = Σ_u r_u f_c(u) / Σ_u r_u

which is linear in the logits, so that what adds up to a score (DeepLift, integrated gradients) still does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smoothsal_lib.state import check_model

Region = Tensor | NDArray[Any]


@contextmanager
def over_region(model: nn.Module, region: Region) -> Iterator[None]:
    """Inside the block, a dense network returns the mean logits over a region in place of its map of logits.

    Logits (N, classes, h, w) become (N, classes), which is what every other function of this library expects of a
    network, and captum and others too. It is a hook on the network; on every exit it is gone.

    Args:
        model: a network from images (N, C, H, W) to logits (N, classes, h, w).
        region: where: booleans or weights of 0 and more, either (H, W), for every picture of any batch, or (N, H, W)
            for the N pictures of a batch. It has the size of the picture, or that of the logits. A picture's region
            comes to smaller logits by area: a logit weighs as much as the region has in its cell.

    Raises:
        TypeError: when the region is no array of numbers.
        ValueError: on entering, for a region of another shape, with negative weights, NaN or infinite ones, or without
            any weight above 0. Inside, from the network, when it returns no such logits, is given another number of
            pictures than there are regions, or pictures of a size that the region does not have.
    """
    handle = check_model(model).register_forward_hook(_MeanOver(as_region(region)), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def as_region(region: Region, pictures: int | None = None) -> Tensor:
    """The weights as (N, H, W) or, for one region of all pictures, (1, H, W), in float64 on the CPU.

    Args:
        region: see :func:`over_region`.
        pictures: N, where it is known: one region is then repeated for each.

    Raises:
        TypeError, ValueError: as :func:`over_region`.
    """
    try:
        # A copy of what is turned or mirrored, which torch does not take from NumPy.
        weights = torch.as_tensor(np.ascontiguousarray(region) if isinstance(region, np.ndarray) else region)
    except (TypeError, ValueError, RuntimeError):
        shown = " ".join(f"{region!r:.80}".split())
        raise TypeError(f"expected the region as an array of booleans or weights, got {shown}") from None
    if weights.is_complex():
        raise TypeError(f"expected a region of booleans or real weights, got {weights.dtype}")
    weights = weights.detach().to("cpu", torch.float64)
    if weights.ndim not in (2, 3) or 0 in weights.shape:
        raise ValueError(f"expected a region of shape (H, W) or (N, H, W), got {tuple(weights.shape)}")
    if not bool(torch.isfinite(weights).all()):
        raise ValueError(
            f"expected a finite region, got {int((~torch.isfinite(weights)).sum())} NaN or infinite values"
        )
    if bool((weights < 0).any()):
        raise ValueError(f"expected a region with weights of 0 and more, got {float(weights.min()):g}")
    weights = weights if weights.ndim == 3 else weights[None]
    empty = (weights.sum((1, 2)) == 0).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(f"the region of picture {empty[0]} is empty: it needs a pixel with a weight above 0")
    if pictures is None:
        return weights
    if len(weights) not in (1, pictures):
        raise ValueError(f"expected one region or {pictures} of them, one a picture, got {len(weights)}")
    return weights.expand(pictures, -1, -1)


def check_one_region(model: nn.Module) -> None:
    """Refuse a network inside :func:`over_region` with a region for each picture: for who shows it other batches.

    Raises:
        ValueError: in one line that says how else.
    """
    for hook in model._forward_hooks.values():
        if isinstance(hook, _MeanOver) and len(hook.region) > 1:
            raise ValueError(
                f"the network is asked about many versions of a picture, and has {len(hook.region)} regions by picture "
                "in over_region: take one region at a time"
            )


class _MeanOver:
    """The forward hook: from dense logits to their mean over ``region`` (N, H, W)."""

    def __init__(self, region: Tensor) -> None:
        self.region = region
        # Kept, because a path of 33 pictures need not resize the region as often.
        self.weights = lru_cache(maxsize=4)(self._weights)

    def _weights(self, height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(N, 1, h, w), which add up to 1. Made by NumPy, since a backward rule looks at all that torch computes."""
        given = self.region.numpy()
        weights = _overlap(given.shape[1], height) @ given @ _overlap(given.shape[2], width).T
        weights /= weights.sum((1, 2), keepdims=True)
        return torch.as_tensor(weights[:, None], dtype=dtype, device=device)

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], logits: Any) -> Tensor:
        if not isinstance(logits, Tensor) or logits.ndim != 4:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"a region needs a network with dense logits (N, classes, h, w), this one returned {shape}"
            )
        own = tuple(logits.shape[2:])
        picture = next((tuple(t.shape[2:]) for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), own)
        size = tuple(self.region.shape[1:])
        if size not in (picture, own):
            raise ValueError(f"expected a region of the picture's size {picture} or the logits' {own}, got {size}")
        if len(self.region) not in (1, len(logits)):
            raise ValueError(f"expected {len(self.region)} pictures, one for each region, got a batch of {len(logits)}")
        # In 16 bits the weights of many pixels would be next to 0.
        precision = torch.promote_types(logits.dtype, torch.float32)
        weights = self.weights(*own, logits.device, precision)
        return (logits.to(precision) * weights).sum((2, 3)).to(logits.dtype)


def _overlap(pixels: int, cells: int) -> NDArray[np.float64]:
    """(cells, pixels): how much of each pixel along an axis lies in each of the cells that share the axis out."""
    edges, pixel = np.arange(cells + 1) * pixels / cells, np.arange(pixels)
    return np.clip(np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel), 0, None)
