"""What a repair costs on images that lie in memory: logits of all of them, and the measures of fidelity."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from smoothsal_lib.fixes import Fix, smoothed
from smoothsal_lib.metrics.fidelity import accuracy, agreement, prediction_difference
from smoothsal_lib.models import normalize


@torch.no_grad()
def all_logits(model: nn.Module, images: Tensor, fix: str | Fix | None, batch: int = 250, title: str = "") -> Tensor:
    """Logits (N, classes) in float32 of uint8 ``images`` (N, 3, H, W), the network repaired by ``fix``."""
    device = next(model.parameters()).device
    found = []
    with smoothed(model, fix):
        for part in tqdm(images.split(batch), desc=title, unit="batch", leave=False, mininterval=2):
            found.append(model(normalize(part.to(device).float() / 255)).cpu())
    return torch.cat(found)


def measure(
    model: nn.Module, images: Tensor, labels: Tensor, fixes: dict[str, str | Fix | None]
) -> dict[str, dict[str, float]]:
    """Top-1 accuracy, agreement with the original (shares) and prediction difference (0 to 2), one row a fix."""
    original = all_logits(model, images, None, title="original")
    rows = {}
    for name, fix in fixes.items():
        repaired = all_logits(model, images, fix, title=name)
        rows[name] = {
            "top1": accuracy(repaired, labels).double().mean().item(),
            "agreement": agreement(original, repaired).double().mean().item(),
            "prediction_difference": prediction_difference(original, repaired).double().mean().item(),
        }
    return rows
