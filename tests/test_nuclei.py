from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from skimage.draw import ellipse
from torch import Tensor

from smoothsal_lib.datasets.stains import mix
from smoothsal_lib.nuclei import nuclear_mask, overlap, rank_nuclei, segment_nuclei, without_specks

MPP = 0.5


def tissue(*nuclei: tuple[float, float, float, float], size: int = 100, dye: float = 0.6, mpp: float = MPP) -> Tensor:
    """Ellipses of hematoxylin on eosin, (3, H, W) uint8. Row, column and both radii are in pixels of MPP."""
    densities = torch.zeros(3, round(size * MPP / mpp), round(size * MPP / mpp))
    densities[0], densities[1] = 0.05, 0.2
    for shape in nuclei:
        rows, columns = ellipse(*(part * MPP / mpp for part in shape), shape=densities.shape[1:])
        densities[0, rows, columns] = dye
    return (255 * mix(densities)).round().to(torch.uint8)


def centres(labels: Tensor) -> list[tuple[float, float]]:
    """Of the nuclei in the order of their labels, computed by hand."""
    return [tuple((labels == label).nonzero().double().mean(0).tolist()) for label in range(1, int(labels.max()) + 1)]


def test_every_nucleus_that_stands_free_is_found_where_it_is():
    drawn = [(20, 20, 8, 8), (25, 70, 7, 10), (75, 30, 9, 6), (70, 75, 8, 8)]
    labels = segment_nuclei(tissue(*drawn), MPP)
    assert labels.shape == (100, 100) and labels.dtype == torch.int32
    found = centres(labels)
    assert len(found) == 4
    for row, column, height, width in drawn:
        i = min(range(4), key=lambda i: math.dist(found[i], (row, column)))
        assert math.dist(found[i], (row, column)) < 0.5
        assert (labels == i + 1).sum() == pytest.approx(math.pi * height * width, rel=0.15)


@pytest.mark.parametrize("gap", [12, 14, 16])
def test_nuclei_that_touch_are_cut_apart(gap: int):
    labels = segment_nuclei(tissue((50, 40, 9, 8), (50, 40 + gap, 9, 8)), MPP)
    assert labels.max() == 2
    left, right = sorted(column for _, column in centres(labels))
    assert left < 40 + gap / 2 < right
    assert (labels == 1).sum() == pytest.approx(int((labels == 2).sum()), rel=0.1)
    mask = labels > 0
    assert torch.equal(mask, nuclear_mask(tissue((50, 40, 9, 8), (50, 40 + gap, 9, 8)), MPP))


def test_nuclei_without_a_gap_are_told_apart_by_their_colour():
    """Twenty-five in a square that is all nuclei: those inside have no rim, but their middles are darker."""
    densities = torch.zeros(3, 140, 140)
    densities[0], densities[1] = 0.05, 0.2
    wave = torch.cos(2 * math.pi * torch.arange(-8.0, 72.0) / 16)  # middles at 30 + 8, 30 + 24, ...
    densities[0, 30:110, 30:110] = 0.4 + 0.05 * (wave[:, None] + wave)
    image = (255 * mix(densities)).round().to(torch.uint8)
    assert nuclear_mask(image, MPP)[34:106, 34:106].all()
    found = sorted(
        (round((row - 38) / 16), round((column - 38) / 16)) for row, column in centres(segment_nuclei(image, MPP))
    )
    assert found == [(row, column) for row in range(5) for column in range(5)]


def test_where_a_section_is_thick_a_nucleus_is_darker_than_what_surrounds_it():
    """The right side is as dark as the nucleus on the left side."""
    densities = torch.zeros(3, 100, 160)
    densities[0] = torch.linspace(0, 0.9, 160).clamp(max=0.5)
    for column in (25, 130):
        rows, columns = ellipse(50, column, 8, 8)
        densities[0, rows, columns] += 0.5
    mask = nuclear_mask((255 * mix(densities)).round().to(torch.uint8), MPP)
    for left, right in ((15, 35), (120, 140)):
        assert mask[30:70, left:right].sum() == pytest.approx(math.pi * 64, rel=0.5)
    assert not mask[:, 35:50].any() and not mask[:, 145:].any()


def test_what_is_too_small_is_no_nucleus():
    """10 square micrometres are 40 pixels: radius 3 covers 29 of them, and radius 5 covers 81."""
    assert len(centres(segment_nuclei(tissue((30, 30, 3, 3), (70, 70, 5, 5)), MPP))) == 1


def test_pale_chromatin_is_filled_and_a_gap_is_not():
    ring = tissue((50, 50, 12, 12))
    for radius, filled in ((3.2, True), (7.0, False)):
        rows, columns = ellipse(50, 50, radius, radius)
        holed = ring.clone()
        holed[:, rows, columns] = tissue()[:, :1, :1].flatten(1)
        assert bool(nuclear_mask(holed, MPP)[50, 50]) is filled


def test_lengths_are_micrometres():
    """The same tissue at half the size of pixels has the same nuclei, with four times as many pixels."""
    drawn = [(30, 30, 8, 8), (30, 44, 8, 8), (70, 60, 10, 7), (75, 20, 3, 3)]
    coarse, fine = (segment_nuclei(tissue(*drawn, mpp=mpp), mpp) for mpp in (0.5, 0.25))
    assert coarse.max() == fine.max() == 3
    assert (fine > 0).sum() == pytest.approx(4 * int((coarse > 0).sum()), rel=0.1)


@pytest.mark.parametrize("dye", [0.35, 0.6, 1.0])
def test_paler_and_darker_staining_finds_the_same(dye: float):
    assert segment_nuclei(tissue((30, 30, 8, 8), (60, 70, 8, 8), dye=dye), MPP).max() == 2


def test_where_there_are_none_none_are_found():
    white = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    noise = torch.randint(-4, 5, (3, 100, 100), generator=torch.Generator().manual_seed(0))
    for image in (white, tissue(), (tissue() + noise).clamp(0, 255).to(torch.uint8)):
        labels = segment_nuclei(image, MPP)
        assert labels.dtype == torch.int32 and labels.shape == image.shape[1:] and not labels.any()


def test_intensities_are_as_good_as_whole_numbers():
    image = tissue((30, 30, 8, 8), (60, 70, 8, 8))
    assert torch.equal(segment_nuclei(image, MPP), segment_nuclei(image.float() / 255, MPP))


def test_specks_and_holes_go_and_the_rest_stays():
    mask = np.zeros((8, 8), bool)
    mask[1:6, 1:6] = True
    kept = mask.copy()
    mask[3, 3] = False  # a hole
    mask[7, 6:8] = True  # a speck of two pixels
    np.testing.assert_array_equal(without_specks(mask, 3), kept)
    np.testing.assert_array_equal(without_specks(mask, 1), mask)
    kept[7, 6:8] = True
    np.testing.assert_array_equal(without_specks(mask, 2), kept)


# Three nuclei by hand: 1 is the upper row without its last pixel, 2 the pixel at (2, 3), 5 the lower left square.
LABELS = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [5, 5, 0, 2], [5, 5, 0, 0]])
SALIENCY = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 6], [2, 2, 0, 3], [2, -2, -9, 0]])
# Sums 6, 3 and 4, means 2, 3 and 1. Positive saliency: 10 + 6 + 7 + 2 = 25, of which 6, 3 and 6 in nuclei.


def test_ranks_are_those_of_the_mean_or_of_the_sum():
    assert [nucleus.label for nucleus in rank_nuclei(SALIENCY, LABELS)] == [2, 1, 5]
    assert [nucleus.label for nucleus in rank_nuclei(SALIENCY, LABELS, by="sum")] == [1, 5, 2]


def test_every_number_of_a_nucleus_is_that_counted_by_hand():
    second, first, third = sorted(rank_nuclei(SALIENCY, LABELS, mpp=0.5), key=lambda nucleus: nucleus.label)
    assert (first.rank, second.rank, third.rank) == (1, 2, 3)
    assert (first.label, second.label, third.label) == (2, 1, 5)
    assert (first.area, second.area, third.area) == (1, 3, 4)
    assert (first.area_um2, second.area_um2, third.area_um2) == (0.25, 0.75, 1.0)
    assert (first.centre, second.centre, third.centre) == ((2, 3), (0, 1), (2.5, 0.5))
    assert (first.mean, second.mean, third.mean) == (3, 2, 1)
    assert (first.total, second.total, third.total) == (3, 6, 4)
    assert (first.share, second.share, third.share) == (3 / 25, 6 / 25, 6 / 25)
    assert (first.eccentricity, third.eccentricity) == (0, 0) and second.eccentricity > 0.9
    assert rank_nuclei(SALIENCY, LABELS)[0].area_um2 is None


def test_of_equals_the_lower_label_comes_first():
    assert [nucleus.label for nucleus in rank_nuclei(torch.ones(4, 4), LABELS)] == [1, 2, 5]


def test_a_map_without_positive_saliency_has_no_shares():
    ranked = rank_nuclei(-SALIENCY.abs(), LABELS)
    assert [nucleus.share for nucleus in ranked] == [0, 0, 0]
    assert [nucleus.label for nucleus in ranked] == [1, 5, 2]


def test_no_nuclei_are_no_entries():
    assert rank_nuclei(SALIENCY, torch.zeros(4, 4, dtype=torch.int32)) == []
    assert overlap(torch.zeros(4, 4, dtype=torch.int32), torch.ones(4, 4, dtype=torch.bool)) == {}


def test_what_is_ranked_keeps_no_graph():
    saliency = SALIENCY.clone().requires_grad_()
    assert rank_nuclei(saliency, LABELS) == rank_nuclei(SALIENCY, LABELS)


def test_overlap_is_the_share_of_a_nucleus_inside():
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:, 1:3] = True
    assert overlap(LABELS, mask) == {1: 2 / 3, 2: 0.0, 5: 0.5}
    assert overlap(LABELS, ~mask) == {1: 1 / 3, 2: 1.0, 5: 0.5}


def test_segmented_nuclei_are_ranked_by_what_lies_on_them():
    labels = segment_nuclei(tissue((30, 30, 8, 8), (60, 70, 8, 8)), MPP)
    saliency = torch.zeros(100, 100)
    saliency[60, 70] = 1
    first, second = rank_nuclei(saliency, labels, mpp=MPP)
    assert math.dist(first.centre, (60, 70)) < 1 and (first.share, second.share) == (1, 0)
    assert first.area_um2 == pytest.approx(math.pi * 16, rel=0.15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: segment_nuclei(tissue()[None], MPP), r"^expected an image \(3, H, W\), got shape \(1, 3, 100, 100\)$"),
        (lambda: segment_nuclei(tissue().movedim(0, 2), MPP), r"got shape \(100, 100, 3\)$"),
        (lambda: nuclear_mask(tissue().float(), MPP), "values from 0 to 1"),
        (lambda: segment_nuclei(tissue(), 0), "^mpp = 0 is not a size: give micrometres a pixel, such as 0.5$"),
        (lambda: nuclear_mask(tissue(), float("nan")), "^mpp = nan is not a size"),
        (lambda: rank_nuclei(SALIENCY, LABELS, mpp=-1), "^mpp = -1 is not a size"),
        (lambda: rank_nuclei(SALIENCY[None], LABELS), r"^expected a map \(4, 4\), as the labels, got \(1, 4, 4\): re"),
        (lambda: rank_nuclei(SALIENCY, LABELS, by="max"), "^by = 'max' is unknown: choose 'mean' or 'sum'$"),  # type: ignore[arg-type]
        (lambda: rank_nuclei(SALIENCY / 0, LABELS), "^the map has values that are not finite"),
        (
            lambda: rank_nuclei(SALIENCY, LABELS > 0),
            r"^expected labels \(H, W\) of whole .*got \(4, 4\) of torch.bool$",
        ),
        (lambda: rank_nuclei(SALIENCY, LABELS.float()), "of torch.float32$"),
        (lambda: rank_nuclei(SALIENCY, LABELS - 1), "^expected labels .* of whole numbers from 0"),
        (lambda: overlap(LABELS[None], LABELS[None] > 0), r"got \(1, 4, 4\) of torch.int64$"),
        (
            lambda: overlap(LABELS, LABELS),
            r"^expected a mask \(4, 4\) of bool, as the labels, got \(4, 4\) of torch.in",
        ),
        (lambda: overlap(LABELS, LABELS[1:] > 0), r"got \(3, 4\) of torch.bool$"),
    ],
)
def test_bad_input_is_one_line(call: Any, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
