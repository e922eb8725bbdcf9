"""Means and their errors, by hand."""

from __future__ import annotations

import pytest
import torch

from smoothsal_lib.experiments.estimate import estimate


def test_by_hand() -> None:
    """1, 3, 5, 7: mean 4, sample variance 20/3, error sqrt(20/3/4). All 1 lower before: a change without spread."""
    values = torch.tensor([1.0, 3, 5, 7])
    found = estimate(values, values - 1)
    assert found == {"mean": 4, "error": pytest.approx((20 / 12) ** 0.5, rel=1e-5), "change": 1, "change_error": 0}
    assert estimate(values, torch.tensor([1.0, 3, 5, 3]))["change_error"] == pytest.approx(1)  # 0, 0, 0, 4


def test_shares_and_single_images() -> None:
    assert estimate(torch.tensor([True, False, False, True]))["mean"] == 0.5
    assert estimate(torch.tensor([2.0])) == {"mean": 2, "error": 0}


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="at least one"):
        estimate(torch.zeros(0))
    with pytest.raises(ValueError, match="as many values before"):
        estimate(torch.zeros(3), torch.zeros(2))
