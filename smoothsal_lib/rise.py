"""RISE: a saliency map from nothing but the scores of randomly masked copies of the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smoothsal_lib.capture import check_target
from smoothsal_lib.layers import check_images, check_output
from smoothsal_lib.memory import Portions, no_room
from smoothsal_lib.metrics.fidelity import probabilities
from smoothsal_lib.regions import check_one_region
from smoothsal_lib.state import preserved


@torch.no_grad()
def rise(
    model: nn.Module,
    x: Tensor,
    target: int | Sequence[int] | Tensor | None = None,
    masks: int = 1000,
    cells: int = 7,
    keep: float = 0.5,
    seed: int = 0,
    batch: int = 256,
) -> Tensor:
    """How probable the class is, on average, when a pixel is seen (Petsiuk et al. 2018, arXiv 1806.07421).

    With random masks m_k, values between 0 and 1, and p_c the softmax probability of class c (of a network with a
    single output the sigmoid),

        M(u) = 1 / (K · keep) · Σ_k p_c(x ⊙ m_k) m_k(u)                                         (their equation 6)

    which estimates the expected probability, given that position u is seen. A mask is a grid of ``cells`` x ``cells``
    coin flips, stretched bilinearly to a little more than the picture and cut out at a random place. What a mask hides
    becomes 0, the mean colour of a normalised picture. No gradient is needed, and nothing is known about hidden layers:
    the map is one of the input.

    Args:
        model: a network from images (N, C, H, W) to logits (N, classes). It is run in evaluation mode and left as it
            was.
        x: images (N, C, H, W), normalised as the model expects them.
        target: the class to explain, one for all images or one an image; ``None`` takes the predicted class.
        masks: how many masks, K; the noise of the map falls with their square root. All images get the same masks.
        cells: cells along each side of the grid.
        keep: probability that a cell is seen.
        seed: of the masks. They do not touch the global random state, and are the same on every device.
        batch: masked images a forward pass, halved where the device has no memory for them; the result does not depend
            on it (beyond rounding).

    Returns:
        (N, 1, H, W): an attribution with a single channel, so that ``{"rise": rise(...)}`` goes wherever the result of
        :func:`smoothsal_lib.explain` does. Detached.

    Raises:
        TypeError, ValueError: for bad images or targets; for counts that are no whole numbers or below 1, more cells
            than pixels along a side, or a ``keep`` that does not lie between 0 and 1.
        MemoryError: where the device has no memory for one picture.
    """
    check_images(x, model)
    check_one_region(model)
    for name, count in {"masks": masks, "cells": cells, "batch": batch}.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"expected {name} as a whole number, at least 1, got {count!r}")
    if cells > min(x.shape[2:]):
        raise ValueError(f"{cells} cells do not fit pictures of {x.shape[2]} x {x.shape[3]} pixels")
    if not 0 < keep < 1:
        raise ValueError(f"expected keep between 0 and 1, got {keep!r}")
    # In half precision, or under autocast, a thousand terms are still added in 32 bits.
    precision = torch.promote_types(x.dtype, torch.float32)
    total = torch.zeros(len(x), *x.shape[2:], dtype=precision, device=x.device)
    portions = Portions(batch, no_room(x))
    with preserved(model):
        # Copies, because a network may begin with an in-place operation.
        parts = portions.each(lambda some: check_output(model(x[some].clone())), len(x))
        logits = torch.cat([found for _, found in parts])
        classes = check_target(target, logits)
        activation = "softmax" if logits.shape[1] > 1 else "sigmoid"
        for seen in _masks(masks, max(1, batch // len(x)), cells, keep, x, seed):
            pairs = torch.arange(len(x) * len(seen), device=x.device)

            def score(some: slice, seen: Tensor = seen, pairs: Tensor = pairs) -> Tensor:
                picture, mask = pairs[some] // len(seen), pairs[some] % len(seen)
                logits = model(x[picture] * seen[mask].to(x.dtype))
                return probabilities(logits.to(precision), activation).gather(1, classes[picture, None])[:, 0]

            scores = torch.cat([found for _, found in portions.each(score, len(pairs))])
            total += torch.einsum("nk,khw->nhw", scores.view(len(x), -1), seen[:, 0])
    return (total / (masks * keep)).to(x.dtype)[:, None]


def _masks(count: int, chunk: int, cells: int, keep: float, x: Tensor, seed: int) -> Iterator[Tensor]:
    """``count`` masks for the pictures ``x``, ``chunk`` at a time: (k, 1, H, W), between 0 and 1, at least 32 bits.

    The grid is enlarged to one cell more than the picture needs, and the picture's window lies anywhere in it: without
    the random shift every mask would have its steps at the same places, and so would the map.
    """
    height, width = x.shape[2:]
    cell = torch.tensor([-(-height // cells), -(-width // cells)], dtype=torch.float64, device="cpu")
    size = [int(side) * (cells + 1) for side in cell]
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, chunk):
        # One row of numbers a mask, so that the chunks' size does not change which numbers a mask gets.
        shape = (min(chunk, count - start), 2 + cells * cells)
        numbers = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
        grid = (numbers[:, 2:] < keep).to(x.device, torch.promote_types(x.dtype, torch.float32))
        large = F.interpolate(grid.view(-1, 1, cells, cells), size, mode="bilinear", align_corners=False)
        top, left = (numbers[:, :2] * cell).long().to(x.device).T
        rows = top[:, None, None] + torch.arange(height, device=x.device)[:, None]
        columns = left[:, None, None] + torch.arange(width, device=x.device)
        yield large[torch.arange(len(large), device=x.device)[:, None, None], 0, rows, columns][:, None]
