from __future__ import annotations

import pytest
import torch

from smoothsal_lib.extract import REDUCTIONS, saliency_map

# One image, three channels, two positions: the channels are 3, -4, 0 at the first and 1, 1, 1 at the second.
ATTRIBUTION = torch.tensor([[3.0, 1.0], [-4.0, 1.0], [0.0, 1.0]]).view(1, 3, 1, 2)
BY_HAND = {
    "mean": [-1 / 3, 1.0],
    "sum": [-1.0, 3.0],
    "abs_mean": [7 / 3, 1.0],
    "l2": [5.0, 3**0.5],
    "max_abs": [4.0, 1.0],
}


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_reductions_by_hand(reduce: str):
    torch.testing.assert_close(saliency_map(ATTRIBUTION, reduce), torch.tensor(BY_HAND[reduce]).view(1, 1, 2))


def test_the_default_is_the_mean():
    assert torch.equal(saliency_map(ATTRIBUTION), saliency_map(ATTRIBUTION, "mean"))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_images_do_not_mix(reduce: str):
    batch = torch.randn(4, 5, 6, 7, dtype=torch.float64)
    alone = torch.cat([saliency_map(one[None], reduce) for one in batch])
    found = saliency_map(batch, reduce)
    assert found.shape == (4, 6, 7) and found.dtype == torch.float64
    torch.testing.assert_close(found, alone)


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match=r"^unknown reduction 'max': choose one of mean, sum, abs_mean, l2, max_abs$"):
        saliency_map(ATTRIBUTION, "max")
    with pytest.raises(ValueError, match=r"^expected an attribution of shape \(N, C, H, W\), got \(3, 1, 2\)$"):
        saliency_map(ATTRIBUTION[0])
