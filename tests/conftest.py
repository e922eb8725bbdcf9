"""Fixtures for all tests."""

from __future__ import annotations

import pytest
import torch
from networks import NETWORKS, build
from torch import Tensor, nn


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> nn.Module:
    """Every network of :data:`NETWORKS` in turn; ``parametrize("network", [...], indirect=True)`` chooses some."""
    return build(request.param)


@pytest.fixture
def x() -> Tensor:
    """Three images, (3, 3, 16, 16)."""
    return torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def reference() -> Tensor:
    """Three other images to compare with."""
    return torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run, whichever tests ran before."""
    torch.manual_seed(0)
