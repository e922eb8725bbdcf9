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


def test_groups_by_hand() -> None:
    """1, 3 | 5 | 7: mean 4, sums of residuals -4, 1, 3, so the variance is 3/2 * 26 / 16; alone it is as without."""
    values, groups = torch.tensor([1.0, 3, 5, 7]), torch.tensor([9, 9, 4, 0])
    assert estimate(values, values - 1, groups) == {
        "mean": 4,
        "error": pytest.approx((1.5 * 26 / 16) ** 0.5, rel=1e-5),
        "change": 1,
        "change_error": 0,
    }
    changes = estimate(values, torch.tensor([1.0, 3, 5, 3]), groups)  # 0, 0 | 0 | 4, so residuals -2, -1, 3
    assert changes["change_error"] == pytest.approx((1.5 * 14 / 16) ** 0.5, rel=1e-5)
    assert estimate(values, groups=torch.arange(4)) == estimate(values)
    assert estimate(values, groups=torch.zeros(4, dtype=torch.int64)) == {"mean": 4, "error": 0}


def test_copies_in_a_group_add_nothing() -> None:
    values = torch.tensor([1.0, 3, 5, 7])
    copied = estimate(values.repeat_interleave(5), groups=torch.arange(4).repeat_interleave(5))
    assert copied == estimate(values)
    assert estimate(values.repeat_interleave(5))["error"] < copied["error"] / 2


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="at least one"):
        estimate(torch.zeros(0))
    with pytest.raises(ValueError, match="as many values before"):
        estimate(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"^expected the group of each of 3 values, got shape \(2,\)$"):
        estimate(torch.zeros(3), groups=torch.zeros(2))
