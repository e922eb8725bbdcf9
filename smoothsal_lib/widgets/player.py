"""Insertion and deletion, played."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smoothsal_lib.capture import check_target
from smoothsal_lib.layers import check_images
from smoothsal_lib.metrics.faithfulness import Curves, baseline_images, deletion, insertion, ranking
from smoothsal_lib.models import category, class_probabilities
from smoothsal_lib.plot import in_colours
from smoothsal_lib.widgets import explorer
from smoothsal_lib.widgets.explorer import Explorer, address, packed

GAMES = {"insertion": "blur", "deletion": "zero"}  # with their baselines
QUALITY = 90  # of the JPEGs


def insertion_player(
    model: nn.Module,
    x: Tensor,
    maps: Mapping[str, Tensor],
    *,
    target: int | None = None,
    steps: int = 28,
    activation: str = "softmax",
) -> Explorer:
    """Insert a picture's pixels one step at a time, or delete them, in the order of a map, and see the score follow.

    Sliders and options choose insertion or deletion, the map that ranks the pixels, and the step. The picture that the
    network is asked about, the curves of all maps, the score and the areas under the curves change together. Curves and
    pictures are those of :func:`smoothsal_lib.insertion` and :func:`smoothsal_lib.deletion`, with their baselines.

    Args:
        model: the network that is asked, left as it was.
        x: one picture (1, 3, H, W), normalised as :func:`smoothsal_lib.load_photo` returns it.
        maps: by name, (1, h, w) or (1, C, h, w), as the two functions take them.
        target: the class; ``None`` takes the one that the network predicts.
        steps: from 1 to 254.
        activation: ``"softmax"`` or ``"sigmoid"``.

    Returns:
        The explorer, for the last line of a cell.

    Raises:
        ValueError: for more than one picture, no maps, too many steps, more than ``SIZE_LIMIT`` bytes, or what the two
            functions refuse.
    """
    check_images(x, model)
    if len(x) != 1 or x.shape[1] != 3:
        raise ValueError(f"expected one picture (1, 3, H, W), got {tuple(x.shape)}")
    if not maps:
        raise ValueError("expected maps by name, got none")
    if not 1 <= steps <= 254:
        raise ValueError(f"steps = {steps} is not between 1 and 254")
    target = int(check_target(target, class_probabilities(model, x)))
    curves = {
        "insertion": insertion(model, x, maps, target, steps, GAMES["insertion"], activation),
        "deletion": deletion(model, x, maps, target, steps, GAMES["deletion"], activation),
    }
    orders = [_steps(ranking(one, x)[0], steps, (x.shape[2], x.shape[3])) for one in maps.values()]
    data = {
        "games": {
            game: {
                "baseline": address(in_colours(baseline_images(x, baseline))[0], QUALITY),
                "scores": [_rounded(curves[game][name]) for name in maps],
                "areas": [f"{float(curves[game][name].auc[0]):.3f}" for name in maps],
            }
            for game, baseline in GAMES.items()
        },
        "maps": list(maps),
        "steps": steps,
        "size": [x.shape[3], x.shape[2]],
        "photo": address(in_colours(x)[0], QUALITY),
        "orders": packed(np.concatenate([order.ravel() for order in orders])),
        "class": category(model, target),
    }
    made = Explorer("player", f"Insertion and deletion for {data['class']}: choose a map and a step.", data)
    if not made.fits:
        raise ValueError(f"{len(maps)} maps take more than {explorer.SIZE_LIMIT:,} bytes: leave out some")
    return made


def _steps(order: Tensor, steps: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W): at which step, from 1, each pixel is exchanged."""
    counts = torch.linspace(0, order.numel(), steps + 1, dtype=torch.float64).round().long()
    ranks = order.cpu().argsort()
    return np.asarray(torch.bucketize(ranks, counts[1:], right=True).add(1).reshape(size), dtype=np.uint8)


def _rounded(curves: Curves) -> list[Any]:
    return [round(score, 4) for score in curves.scores[0].tolist()]
