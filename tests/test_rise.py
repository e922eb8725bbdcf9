from __future__ import annotations

import pytest
import torch
from networks import build
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.rise import _masks, rise


class OneCell(nn.Module):
    """Class 1 is as probable as the pixels of rows 8 to 15, columns 16 to 23 are bright on average: p = mean."""

    def forward(self, x: Tensor) -> Tensor:
        p = x[:, 0, 8:16, 16:24].mean((1, 2)).clamp(1e-6, 1 - 1e-6)
        return torch.stack([1 - p, p], 1).log()


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_tensor([0.25, 0.75]).log().expand(len(x), 2)


WHITE = torch.ones(1, 3, 32, 32, dtype=torch.float64)


def test_two_masks_by_hand():
    """With one cell a mask is all or nothing: p is 0.75 whatever is seen, and keep = 0.5, so M = 0.75 k / (2 * 0.5)."""
    seen = torch.cat(list(_masks(2, 2, 1, 0.5, WHITE, seed=1)))
    assert seen.flatten(1).amin(1).tolist() == seen.flatten(1).amax(1).tolist()
    expected = 0.75 * seen.sum(0) / (2 * 0.5)
    torch.testing.assert_close(rise(Constant(), WHITE, 1, masks=2, cells=1, seed=1)[0], expected)


def test_the_map_is_brightest_where_the_score_looks():
    found = rise(OneCell(), WHITE, target=1, masks=3000, cells=8)[0, 0]
    row, column = divmod(int(found.argmax()), 32)
    assert 8 <= row < 16 and 16 <= column < 24
    # p is the mean of the cell's mask. Far from it p and the mask are independent, and M estimates E[p] = 0.5; at the
    # cell it estimates E[p m] / 0.5 = 0.5 + Var(p) / 0.5, more.
    seen = torch.cat(list(_masks(3000, 100, 8, 0.5, WHITE, seed=7)))[:, 0, 8:16, 16:24].mean((1, 2))
    assert found[8:16, 16:24].mean().item() == pytest.approx(0.5 + seen.var().item() / 0.5, abs=0.02)
    assert seen.var() > 0.03
    assert found[24:, :8].mean().item() == pytest.approx(0.5, abs=0.02)


def test_the_other_class_is_dark_there():
    found = rise(OneCell(), WHITE, target=0, masks=1000, cells=8)[0, 0]
    assert found[10:14, 18:22].mean() < found.mean() - 0.1


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
def test_masks_are_seen_as_often_as_asked_everywhere(keep: float):
    """The mean mask is ``keep`` at every position, border included: a constant score gives a flat map."""
    found = rise(Constant(), WHITE, target=1, masks=20_000, keep=keep, batch=2_000) / 0.75
    assert (found - 1).abs().max() < 6 * (1 / keep - 1) ** 0.5 / 20_000**0.5
    assert found.mean().item() == pytest.approx(1, abs=0.02)


def test_masks_have_the_shape_of_the_picture_and_are_shifted():
    x = torch.zeros(1, 3, 30, 47)
    seen = torch.cat(list(_masks(50, 8, 7, 0.5, x, seed=0)))
    assert seen.shape == (50, 1, 30, 47) and seen.dtype == torch.float32
    assert seen.min() >= 0 and seen.max() <= 1
    # Bilinear: between cell centres a mask is linear, so its second difference along a row is 0 but at the centres,
    # one in seven columns. Without shifts these would be the same columns in all masks.
    bends = seen.diff(n=2, dim=3).abs().amax(2) > 1e-6
    assert (bends.sum((0, 1)) > 0).all() and not bends.all(0).any()


@pytest.mark.parametrize("batch", [1, 2, 7, 64, 10_000])
def test_the_batch_does_not_change_the_map(batch: int, x: Tensor):
    model = build("residual")
    torch.testing.assert_close(rise(model, x, masks=20, batch=batch), rise(model, x, masks=20))


def test_images_do_not_mix_and_have_targets_of_their_own(x: Tensor):
    model = build("residual")
    alone = torch.cat([rise(model, one[None], t, masks=20) for one, t in zip(x, [0, 4, 2], strict=True)])
    together = rise(model, x, [0, 4, 2], masks=20)
    assert together.shape == (3, 1, 16, 16)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(rise(model, x, masks=20), rise(model, x, model(x).argmax(1), masks=20))


def test_the_seed_alone_decides(x: Tensor):
    model = build("residual")
    first = rise(model, x, masks=20)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(rise(model, x, masks=20), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.allclose(rise(model, x, masks=20, seed=1), first)


def test_goes_where_an_attribution_goes():
    found = rise(build("residual").float(), torch.randn(2, 3, 16, 16, requires_grad=True), masks=8)
    assert found.dtype == torch.float32 and not found.requires_grad
    assert sal.saliency_map(found).shape == (2, 16, 16)


def test_works_under_autocast(x: Tensor):
    model = build("residual").float()
    plain = rise(model, x.float(), 1, masks=50)
    with torch.autocast("cpu", torch.bfloat16):
        fast = rise(model, x.float(), 1, masks=50)
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast, plain, rtol=0.02, atol=0.01)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"masks": 0}, "masks as a whole number, at least 1, got 0"),
        ({"cells": 2.5}, "cells as a whole number, at least 1, got 2.5"),
        ({"batch": -1}, "batch as a whole number"),
        ({"cells": 17}, "17 cells do not fit pictures of 16 x 16 pixels"),
        ({"keep": 1.0}, "keep between 0 and 1, got 1.0"),
        ({"target": 9}, "no class 9"),
    ],
)
def test_bad_input_is_one_line(wrong: dict[str, object], message: str, x: Tensor):
    with pytest.raises(ValueError, match=message) as caught:
        rise(build("residual"), x, **{"masks": 4, **wrong})
    assert "\n" not in str(caught.value)


def test_a_network_that_begins_in_place_leaves_the_images_alone(x: Tensor):
    before = x.clone()
    rise(nn.Sequential(nn.ReLU(inplace=True), *build("residual")), x, masks=4)
    assert torch.equal(x, before)


def test_a_single_output_counts_by_its_sigmoid():
    class Detector(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_tensor([[3.0]]).log().expand(len(x), 1)  # a probability of 3/4

    torch.testing.assert_close(rise(Detector(), WHITE, masks=4), rise(Constant(), WHITE, 1, masks=4))
