"""Patches that look like no tissue, and detectors that have learnt nothing: small, and the same in every run."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn

import smoothsal_lib as sal
from smoothsal_lib.datasets.patches import STRUCTURES, Patches
from smoothsal_lib.fixes import Surrogate
from smoothsal_lib.models import DenseResNet, TinyResNet, normalize
from smoothsal_lib.regions import over_region

SIZE = 32


def tissue(count: int = 12) -> Patches:
    """Noise with masks of every structure; tumour in every second patch; four patches of each patient and picture."""
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    masks = {name: torch.rand(count, SIZE, SIZE, generator=generator) < 0.3 for name in STRUCTURES}
    labels = torch.arange(count) % 2
    for name in ("tumour", "tumour_nuclei"):
        masks[name] &= labels.bool()[:, None, None]
    patients = torch.arange(count) // 4
    return Patches(images, labels, patients, masks, [f"picture {one}/{i}" for i, one in enumerate(patients.tolist())])


def detector() -> nn.Module:
    """Random weights, with the bias at which half of the patches are called tumour."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        found = TinyResNet(1, (4, 6, 6, 8)).eval()
    with torch.no_grad():
        found.fc.bias -= found(normalize(tissue().images.float() / 255)).median()
    return found


def segmenter() -> nn.Module:
    """The same with four logits a pixel."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return DenseResNet(4, (4, 6, 6, 8)).eval()


def surrogate_of(model: nn.Module) -> Surrogate:
    """A surrogate that nobody took pains with."""
    dense = isinstance(model, DenseResNet)
    with over_region(model, torch.ones(SIZE, SIZE)) if dense else nullcontext():
        return sal.fit_surrogate(model, normalize(tissue().images.float() / 255), epochs=1, progress=False)
