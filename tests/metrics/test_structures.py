"""Maps against masks: by hand, by brute force, and by what must not matter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from smoothsal_lib.metrics.localisation import energy_in_box, pointing_game
from smoothsal_lib.metrics.structures import (
    area_shares,
    average_precision,
    enrichment,
    pointing_at,
    structure_shares,
)


def _random(n: int = 12, height: int = 7, width: int = 9, levels: int | None = None) -> tuple[Tensor, Tensor]:
    """Maps (n, height, width) in float64, of so many different values or without ties, and masks."""
    generator = torch.Generator().manual_seed(5)
    maps = torch.randn(n, height, width, dtype=torch.float64, generator=generator)
    if levels is not None:
        maps = torch.randint(-1, levels - 1, maps.shape, generator=generator).double()
    return maps, torch.rand(n, height, width, generator=generator) < 0.3


MAPS = torch.tensor([[[4.0, -3.0, 1.0], [0.0, 2.0, 1.0]]], dtype=torch.float64)
MASK = torch.tensor([[[True, True, False], [False, False, True]]])


def test_shares_areas_and_enrichment_by_hand():
    """Of 4 + 1 + 2 + 1 = 8 the mask holds 4 + 1; it has 3 of 6 pixels."""
    masks = {"nuclei": MASK, "rest": ~MASK, "corner": torch.zeros_like(MASK)}
    masks["corner"][0, 1, 1] = True
    assert {name: share.tolist() for name, share in structure_shares(MAPS, masks).items()} == {
        "nuclei": [0.625],
        "rest": [0.375],
        "corner": [0.25],
    }
    assert area_shares(masks)["nuclei"].tolist() == [0.5]
    assert area_shares(masks)["corner"].item() == pytest.approx(1 / 6)
    assert enrichment(MAPS, masks)["nuclei"].tolist() == [1.25]
    assert enrichment(MAPS, masks)["corner"].item() == pytest.approx(1.5)


def test_a_structure_that_is_not_there_has_no_share_and_no_enrichment():
    nothing = {"lumen": torch.zeros_like(MASK)}
    assert structure_shares(MAPS, nothing)["lumen"].tolist() == [0]
    assert area_shares(nothing)["lumen"].tolist() == [0]
    assert enrichment(MAPS, nothing)["lumen"].isnan().all()
    assert pointing_at(MAPS, nothing["lumen"]).tolist() == [0]
    assert average_precision(MAPS, nothing["lumen"]).isnan().all()


def test_a_box_is_a_mask():
    maps, _ = _random()
    box, mask = torch.tensor([[2, 1, 6, 3]]).expand(len(maps), 4), torch.zeros(maps.shape, dtype=torch.bool)
    mask[:, 1:4, 2:7] = True
    torch.testing.assert_close(structure_shares(maps, {"box": mask})["box"], energy_in_box(maps, box))
    torch.testing.assert_close(pointing_at(maps, mask), pointing_game(maps, box))
    assert 0 < pointing_at(maps, mask).sum() < len(maps)


def test_maps_that_say_nothing_score_the_area():
    _, mask = _random()
    area = area_shares({"": mask})[""].double()
    for value in (0.0, 3.0, -2.0):
        maps = torch.full(mask.shape, value, dtype=torch.float64)
        torch.testing.assert_close(structure_shares(maps, {"": mask})[""], area, check_dtype=False, rtol=1e-6, atol=0)
        torch.testing.assert_close(pointing_at(maps, mask), area, rtol=1e-6, atol=0)
        torch.testing.assert_close(average_precision(maps, mask), area, rtol=1e-6, atol=0)


def test_a_shared_maximum_points_by_its_share():
    maps = torch.tensor([[[7.0, 7.0, 1.0], [7.0, 0.0, 7.0]]])
    assert pointing_at(maps, MASK).tolist() == [0.75]


def test_average_precision_by_hand():
    """In order 4, 2, 1 and 1 together, 0, -3 the mask has 1 of 1, 1 of 2, 2 of 4, 2 of 5 and 3 of 6."""
    assert average_precision(MAPS, MASK).item() == pytest.approx((1 + 2 / 4 + 3 / 6) / 3)
    perfect = torch.where(MASK, 5.0, 2.0)
    assert average_precision(perfect, MASK).tolist() == [1]
    # The worst: 3 others first, then precision 1/4, 2/5, 3/6 at a third of the recall each.
    worst = torch.tensor([[[3.0, 2.0, 6.0], [5.0, 4.0, 1.0]]])
    assert average_precision(worst, MASK).item() == pytest.approx((1 / 4 + 2 / 5 + 3 / 6) / 3)
    tied_worst = torch.where(MASK, -1.0, 0.0)
    assert average_precision(tied_worst, MASK).tolist() == [0.5]


@pytest.mark.parametrize("levels", [None, 2, 4])
def test_average_precision_is_the_sum_over_thresholds(levels: int | None):
    maps, mask = _random(levels=levels)
    for one, inside, found in zip(maps, mask, average_precision(maps, mask), strict=True):
        expected, before = 0.0, 0.0
        for threshold in sorted(one.unique().tolist(), reverse=True):
            above = one >= threshold
            hits = (above & inside).sum().item()
            recall = hits / inside.sum().item()
            expected += (recall - before) * hits / above.sum().item()
            before = recall
        assert found.item() == pytest.approx(expected, abs=1e-12)


def test_the_order_of_pixels_does_not_matter_with_ties_either():
    maps, mask = _random(levels=3)
    shuffled = torch.randperm(maps[0].numel(), generator=torch.Generator().manual_seed(2))
    moved = [one.flatten(1)[:, shuffled].view(one.shape) for one in (maps, mask)]
    torch.testing.assert_close(average_precision(*moved), average_precision(maps, mask), rtol=1e-12, atol=0)
    torch.testing.assert_close(pointing_at(*moved), pointing_at(maps, mask))


@pytest.mark.parametrize("levels", [None, 3])
def test_only_the_order_of_values_matters_for_precision_and_only_scale_is_free_for_shares(levels: int | None):
    maps, mask = _random(levels=levels)
    expected = average_precision(maps, mask)
    for changed in (maps.exp(), 3 * maps - 7, maps.pow(3)):
        torch.testing.assert_close(average_precision(changed, mask), expected, rtol=0, atol=0)
    assert not torch.allclose(average_precision(-maps, mask), expected)
    shares = structure_shares(maps, {"": mask})[""]
    torch.testing.assert_close(structure_shares(1e-30 * maps, {"": mask})[""], shares)
    assert not torch.allclose(structure_shares(maps + 1, {"": mask})[""], shares)


def test_a_random_map_scores_the_area_on_average():
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(900) % 5 == 0).view(1, 30, 30).expand(400, 30, 30)
    maps = torch.rand(mask.shape, dtype=torch.float64, generator=generator)
    # A little above the area of 0.2, since the few pixels that come first may be lucky but not below 0.
    assert average_precision(maps, mask).mean().item() == pytest.approx(0.2, abs=0.01)


def test_a_batch_of_one_is_its_row_of_a_larger_one():
    maps, mask = _random(levels=4)
    measures = (
        average_precision,
        pointing_at,
        lambda m, s: structure_shares(m, {"": s})[""],
        lambda m, s: enrichment(m, {"": s})[""],
    )
    for measure in measures:
        together = measure(maps, mask)
        assert together.shape == (len(maps),)
        apart = [measure(maps[i : i + 1], mask[i : i + 1]) for i in range(len(maps))]
        torch.testing.assert_close(torch.cat(apart), together)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_at_least_single_precision_comes_back(dtype: torch.dtype):
    maps, mask = _random()
    maps = maps.to(dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert average_precision(maps, mask).dtype == pointing_at(maps, mask).dtype == expected
    assert structure_shares(maps, {"": mask})[""].dtype == enrichment(maps, {"": mask})[""].dtype == expected


def test_bad_input_is_one_line():
    maps, mask = _random(2)
    measures = (
        average_precision,
        pointing_at,
        lambda m, s: structure_shares(m, {"stroma": s}),
        lambda m, s: enrichment(m, {"stroma": s}),
    )
    for measure in measures:
        with pytest.raises(ValueError, match=r"^expected maps of shape \(N, H, W\), none of them 0, got \(7, 9\)$"):
            measure(maps[0], mask)
        with pytest.raises(ValueError, match="^expected finite maps, got 63 NaN or infinite values$"):
            measure(torch.stack([maps[0], maps[1] + math.inf]), mask)
        with pytest.raises(ValueError, match=r"^expected (a mask|the mask 'stroma') as \(2, 7, 9\) of bool, like the "):
            measure(maps, mask[:1])
        with pytest.raises(ValueError, match=r"got \(2, 7, 9\) of torch.float32$"):
            measure(maps, mask.float())
    with pytest.raises(ValueError, match=r"^expected the mask 'lumen' as \(N, H, W\) of bool, none of them 0, got "):
        area_shares({"stroma": mask, "lumen": mask[0]})
