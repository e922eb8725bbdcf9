from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from smoothsal_lib.metrics.localisation import accuracy_by_class, box_share, energy_in_box, pointing_game

BOX = torch.tensor([[1.0, 2, 3, 2]])  # columns 1 to 3 of row 2: three pixels


def _peak(row: int, column: int, height: int = 5, width: int = 6) -> Tensor:
    maps = torch.zeros(1, height, width)
    maps[0, row, column] = 1
    return maps


NONE = [math.nan] * 4


def _random(n: int = 20, height: int = 13, width: int = 17) -> tuple[Tensor, Tensor]:
    """Maps without ties, (n, height, width), and boxes with whole coordinates."""
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(n, height, width, generator=generator)
    columns = torch.randint(width, (n, 2), generator=generator).sort(1).values
    rows = torch.randint(height, (n, 2), generator=generator).sort(1).values
    return maps, torch.stack([columns[:, 0], rows[:, 0], columns[:, 1], rows[:, 1]], 1)


@pytest.mark.parametrize(("row", "column", "hit"), [(2, 1, 1), (2, 3, 1), (2, 0, 0), (2, 4, 0), (1, 2, 0), (3, 2, 0)])
def test_a_hit_is_a_maximum_inside_the_box_all_of_whose_edges_count(row: int, column: int, hit: int):
    assert pointing_game(_peak(row, column), BOX).tolist() == [hit]


def test_x_is_the_column():
    assert pointing_game(_peak(4, 0), torch.tensor([[0.0, 4, 0, 4]])).tolist() == [1]
    with pytest.raises(ValueError, match="^box 0, "):
        pointing_game(_peak(4, 0), torch.tensor([[0.0, 0, 0, 5]]))  # there are 6 columns, but 5 rows


def test_the_tolerance_is_a_euclidean_distance_to_the_box():
    corner = torch.tensor([[0.0, 0, 0, 0]])
    peak = _peak(3, 4)  # 3 rows and 4 columns away: 5 pixels
    assert pointing_game(peak, corner, tolerance=5).tolist() == [1]
    assert pointing_game(peak, corner, tolerance=4.99).tolist() == [0]
    assert pointing_game(_peak(2, 5), BOX, tolerance=2).tolist() == [1]  # beside it only the column counts
    assert pointing_game(_peak(2, 5), BOX, tolerance=1.9).tolist() == [0]


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.5, 6.0])
def test_the_pointing_game_is_that_of_a_distance_transform(tolerance: float):
    maps, boxes = _random()
    expected = []
    for one, (x_min, y_min, x_max, y_max) in zip(maps.numpy(), boxes.tolist(), strict=True):
        outside = np.ones(one.shape)
        outside[y_min : y_max + 1, x_min : x_max + 1] = 0
        distance = distance_transform_edt(outside)
        expected.append(float(distance[np.unravel_index(one.argmax(), one.shape)] <= tolerance))
    assert pointing_game(maps, boxes, tolerance).tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_a_shared_maximum_hits_by_its_share():
    maps = torch.zeros(1, 5, 6)
    maps[0, 2, 2:6] = 7  # columns 2 and 3 of 2 to 5 lie in the box
    assert pointing_game(maps, BOX).tolist() == [0.5]
    assert pointing_game(maps, BOX, tolerance=1).tolist() == [0.75]


def test_a_map_that_says_nothing_scores_chance():
    _, boxes = _random()
    share = box_share(boxes, (13, 17))
    for value in (0.0, 2.0, -3.0):
        constant = torch.full((20, 13, 17), value)
        torch.testing.assert_close(pointing_game(constant, boxes), share)
        torch.testing.assert_close(energy_in_box(constant, boxes), share)


def test_energy_by_hand():
    maps = torch.tensor([[[1.0, -5.0], [2.0, 5.0]], [[0.0, 4.0], [-1.0, 0.0]], [[-1.0, -2.0], [-3.0, -4.0]]])
    left, right, lower = [0, 0, 0, 1], [1, 0, 1, 1], [0, 1, 1, 1]
    assert energy_in_box(maps, torch.tensor([left, left, left])).tolist() == [0.375, 0, 0.5]
    assert energy_in_box(maps, torch.tensor([right, right, right])).tolist() == [0.625, 1, 0.5]
    assert energy_in_box(maps, torch.tensor([lower, lower, [0, 0, 0, 0]])).tolist() == [0.875, 0, 0.25]


def test_energy_is_that_of_a_mask():
    maps, boxes = _random()
    for one, (x_min, y_min, x_max, y_max), found in zip(maps, boxes.tolist(), energy_in_box(maps, boxes), strict=True):
        positive = one.double().clamp(min=0)
        expected = positive[y_min : y_max + 1, x_min : x_max + 1].sum() / positive.sum()
        assert found.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("scale", [1e-42, 1e-20, 6e37])
def test_energy_does_not_depend_on_the_scale(scale: float):
    maps = torch.tensor([[[1.0, 1.0], [1.0, 5.0]]]) * scale
    torch.testing.assert_close(
        energy_in_box(maps, torch.tensor([[1, 1, 1, 1]])), torch.tensor([0.625]), atol=1e-2, rtol=0
    )


def test_box_share_by_hand():
    assert box_share(torch.tensor([[0, 0, 9, 4], [3, 2, 3, 2], [0, 0, 4, 4]]), (5, 10)).tolist() == pytest.approx(
        [1, 0.02, 0.5]
    )
    assert box_share(torch.tensor([[0.5, 0.0, 2.5, 0.0]]), (2, 4)).item() == 0.25  # columns 1 and 2, row 0


def test_a_batch_of_one_is_its_row_of_a_larger_one():
    maps, boxes = _random()
    for game in (lambda m, b: pointing_game(m, b, 1.5), energy_in_box, lambda m, b: box_share(b, (13, 17))):
        together = game(maps, boxes)
        assert together.shape == (20,)
        torch.testing.assert_close(torch.cat([game(maps[i : i + 1], boxes[i : i + 1]) for i in range(20)]), together)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_at_least_single_precision_comes_back(dtype: torch.dtype):
    maps, boxes = _random()
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert pointing_game(maps.to(dtype), boxes).dtype == energy_in_box(maps.to(dtype), boxes).dtype == expected


def test_bad_input_is_one_line():
    maps = torch.zeros(2, 5, 6)
    boxes = BOX.expand(2, 4)
    for game in (pointing_game, energy_in_box):
        with pytest.raises(
            ValueError, match=r"^expected maps of shape \(N, H, W\), none of them 0, got \(2, 1, 5, 6\)$"
        ):
            game(maps[:, None], boxes)
        with pytest.raises(ValueError, match=r"^expected maps of shape \(N, H, W\), none of them 0, got \(0, 5, 6\)$"):
            game(maps[:0], boxes[:0])
        with pytest.raises(ValueError, match="^expected a box for each map, got 1 boxes for 2 maps$"):
            game(maps, BOX)
        with pytest.raises(
            ValueError, match=r"^expected boxes \(N, 4\) of x_min, y_min, x_max, y_max, got shape \(2, 3"
        ):
            game(maps, boxes[:, :3])
        with pytest.raises(ValueError, match="^expected finite maps, got 30 NaN or infinite values$"):
            game(torch.stack([maps[0], maps[0] + math.nan]), boxes)
        with pytest.raises(
            ValueError, match=r"^box 1, \(1, 2, 64, 2\), does not lie in a picture of 5 x 6 pixels: exp"
        ):
            game(maps, torch.tensor([[1, 2, 3, 2], [1, 2, 64, 2]]))
    for tolerance in (-1, math.nan):
        with pytest.raises(ValueError, match=f"^tolerance = {tolerance} is not a distance in pixels: give 0 or more$"):
            pointing_game(maps, boxes, tolerance)
    for corners in ([-1, 0, 3, 3], [0, 0, 3, 5], [0, 0, 6, 3], [3, 0, 2, 3], [0, 3, 2, 1], [math.nan, 0, 2, 1]):
        with pytest.raises(
            ValueError, match=r"^box 0, \(.+\), does not lie in .+ x_max <= 5 and 0 <= y_min <= y_max <= 4$"
        ):
            box_share(torch.tensor([corners]), (5, 6))


def _several(n: int = 20, most: int = 4, height: int = 13, width: int = 17) -> tuple[Tensor, Tensor, np.ndarray]:
    """Maps without ties, 1 to ``most`` boxes for each at random places of (n, most, 4), and where they are as masks."""
    maps, _ = _random(n, height, width)
    boxes, masks = torch.full((n, most, 4), math.nan), np.zeros((n, height, width), bool)
    for k in range(most):
        columns, rows = torch.randint(width, (n, 2)).sort(1).values, torch.randint(height, (n, 2)).sort(1).values
        for i in range(n):
            if k == i % most or torch.rand(()) < 0.4:
                (x_min, x_max), (y_min, y_max) = columns[i].tolist(), rows[i].tolist()
                boxes[i, k] = torch.tensor([x_min, y_min, x_max, y_max])
                masks[i, y_min : y_max + 1, x_min : x_max + 1] = True
    assert 0 < boxes.isnan().sum() < boxes.numel() / 1.5
    return maps, boxes, masks


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.5])
def test_near_any_of_several_boxes_is_a_hit(tolerance: float):
    maps, boxes, masks = _several()
    boxes[:, :, 2:] = torch.minimum(boxes[:, :, 2:], boxes[:, :, :2] + 2)  # small, or nothing is a miss
    expected = []
    for one, some in zip(maps.numpy(), boxes, strict=True):
        outside = np.ones(one.shape)
        for x_min, y_min, x_max, y_max in some[~some.isnan().any(1)].long().tolist():
            outside[y_min : y_max + 1, x_min : x_max + 1] = 0
        expected.append(float(distance_transform_edt(outside)[np.unravel_index(one.argmax(), one.shape)] <= tolerance))
    assert pointing_game(maps, boxes, tolerance).tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_the_energy_and_the_share_of_several_boxes_are_those_of_their_union():
    maps, boxes, masks = _several()
    positive = maps.double().clamp(min=0).numpy()
    expected = (positive * masks).sum((1, 2)) / positive.sum((1, 2))
    torch.testing.assert_close(energy_in_box(maps, boxes).double(), torch.tensor(expected), atol=1e-6, rtol=0)
    share = torch.tensor(masks.mean((1, 2)))
    torch.testing.assert_close(box_share(boxes, (13, 17)).double(), share, atol=1e-6, rtol=0)


def test_one_box_of_many_places_is_that_box():
    maps, boxes = _random()
    filled = torch.full((20, 3, 4), math.nan)
    filled[torch.arange(20), torch.arange(20) % 3] = boxes.float()
    for game in (lambda m, b: pointing_game(m, b, 1.5), energy_in_box, lambda m, b: box_share(b, (13, 17))):
        assert torch.equal(game(maps, filled), game(maps, boxes))


def test_bad_sets_of_boxes_are_one_line():
    maps, good = torch.zeros(2, 5, 6), [1.0, 2, 3, 2]
    for game in (pointing_game, energy_in_box, lambda m, b: box_share(b, (5, 6))):
        with pytest.raises(ValueError, match="^map 1 has no box: expected at least one that is not NaN$"):
            game(maps, torch.tensor([[good, NONE], [NONE, NONE]]))
        with pytest.raises(
            ValueError, match=r"^box \(1, 0\), \(1, 2, 6, 2\), does not lie in a picture of 5 x 6 pixels"
        ):
            game(maps, torch.tensor([[good, NONE], [[1, 2, 6, 2], NONE]]))
        with pytest.raises(ValueError, match=r"^box \(0, 1\), \(1, nan, 3, 2\), does not lie in"):
            game(maps, torch.tensor([[good, [1, math.nan, 3, 2]], [good, NONE]]))
        with pytest.raises(ValueError, match=r"^box 0, \(nan, nan, nan, nan\), does not lie in"):
            game(maps, torch.tensor([NONE, good]))
        with pytest.raises(ValueError, match=r"^map 0 has no box"):
            game(maps, torch.zeros(2, 0, 4))
        with pytest.raises(ValueError, match=r"got shape \(2, 1, 1, 4\): give \(N, K, 4\) where maps have up to K$"):
            game(maps, torch.zeros(2, 1, 1, 4))


def test_accuracy_by_class_by_hand():
    hits, labels = torch.tensor([1.0, 0, 1, 0.5, 1]), torch.tensor([2, 0, 2, 2, 0])
    found = accuracy_by_class(hits, labels, 4)
    torch.testing.assert_close(found, torch.tensor([0.5, math.nan, 2.5 / 3, math.nan]), equal_nan=True)
    assert found.nanmean().item() == pytest.approx((0.5 + 2.5 / 3) / 2)  # not 3.5 / 5
    assert accuracy_by_class(hits.double(), labels, 4).dtype == torch.float64
    assert accuracy_by_class(hits > 0.9, labels, 4)[2].item() == pytest.approx(2 / 3)


def test_accuracy_by_class_refuses_what_makes_no_sense():
    for label in (-1, 4):
        with pytest.raises(ValueError, match=f"^label {label} is no class: expected 0 to 3$"):
            accuracy_by_class(torch.ones(2), torch.tensor([0, label]), 4)
    with pytest.raises(ValueError, match=r"^expected hits \(N,\) and as many labels, got \(2,\) and \(3,\)$"):
        accuracy_by_class(torch.ones(2), torch.zeros(3, dtype=torch.long), 4)
