from __future__ import annotations

import math

import pytest
import torch

from smoothsal_lib.datasets.patches import Patches
from smoothsal_lib.datasets.shortcuts import INKS, chosen, pen_mark, stain_shift
from smoothsal_lib.datasets.stains import separate


def white(count: int = 40, height: int = 48, width: int = 64) -> Patches:
    labels = torch.arange(count) % 4 // 3  # a quarter has tumour
    half = torch.zeros(count, height, width, dtype=torch.bool)
    half[:, :, : width // 2] = True
    names = [f"patch {i}" for i in range(count)]
    images = torch.full((count, 3, height, width), 250, dtype=torch.uint8)
    return Patches(images, labels, torch.arange(count) // 4, {"stroma": half}, names, 0.5)


def pink(count: int = 12) -> Patches:
    images = torch.tensor([200, 120, 180], dtype=torch.uint8).view(1, 3, 1, 1).repeat(count, 1, 8, 8)
    images[:, :, :2] = 255  # bare glass
    return Patches(images, torch.arange(count) % 2, torch.arange(count))


def test_shares_are_of_each_class_and_a_smaller_choice_is_part_of_a_larger_one():
    labels = (torch.arange(200) % 4 == 0).long()
    few, many = chosen(labels, 0.5, 0.1, 3), chosen(labels, 0.7, 0.2, 3)
    assert few.dtype == torch.bool and few.shape == (200,)
    assert (int(few[labels == 1].sum()), int(few[labels == 0].sum())) == (25, 15)
    assert (int(many[labels == 1].sum()), int(many[labels == 0].sum())) == (35, 30)
    assert bool(many[few].all())
    assert torch.equal(few, chosen(labels, 0.5, 0.1, 3)) and not torch.equal(few, chosen(labels, 0.5, 0.1, 4))
    assert not chosen(labels, 0, 0).any() and chosen(labels, 1, 1).all()
    assert torch.equal(chosen(labels, 1, 0), labels == 1)


def test_only_what_is_under_the_ink_changes_and_nothing_but_the_picture():
    patches = white()
    before = patches.images.clone()
    state = torch.get_rng_state()
    marked, marks = pen_mark(patches, 0.6, 0.1, seed=1)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(patches.images, before)
    assert marked.images.dtype == torch.uint8 and marks.dtype == torch.bool and marks.shape == (40, 48, 64)
    has_mark = marks.flatten(1).any(1)
    assert torch.equal(has_mark, chosen(patches.labels, 0.6, 0.1, 1))
    changed = (marked.images != before).any(1)
    assert not bool((changed & ~marks).any())
    # Under the softest edge the ink may be too thin to change a number; everywhere else it shows.
    assert float(changed[has_mark].sum() / marks.sum()) > 0.9
    assert torch.equal(marked.labels, patches.labels) and torch.equal(marked.patients, patches.patients)
    assert torch.equal(marked.masks["stroma"], patches.masks["stroma"]) and marked.mpp == 0.5
    assert list(marked.names) == list(patches.names)


def test_ink_lets_a_share_of_the_light_through_in_the_colour_of_a_pen():
    marked, marks = pen_mark(white(), 1, 1)
    inks = torch.tensor(list(INKS.values())).log()
    met = set()
    for image, mark in zip(marked.images, marks, strict=True):
        light = image.float()[:, mark] / 250
        density = -light[:, light.sum(0).argmin()].log()  # in the middle of the stroke
        share = density @ -inks.T / inks.square().sum(1)
        misfit = (density + share[:, None] * inks).norm(dim=1)
        assert float(misfit.min()) < 0.03  # a level of 255 is up to 0.01 in each colour
        assert 0.6 - 0.01 <= float(share[misfit.argmin()]) <= 1 + 0.01
        met.add(int(misfit.argmin()))
        levels = light[0].unique()
        assert len(levels) > 5  # a soft edge, no step
    assert met == {0, 1, 2}


def test_densities_add_so_that_the_tissue_shows_through():
    patches = white(8)
    darker = patches.images.clone()
    darker[:, :, ::2] = 125
    both = Patches(darker, patches.labels, patches.patients)
    on_white, marks = pen_mark(patches, 1, 1)
    on_stripes, same = pen_mark(both, 1, 1)
    assert torch.equal(marks, same)
    ratio = on_stripes.images[:, :, ::2].float() / on_white.images[:, :, ::2].float()
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.5), atol=0.02, rtol=0)
    assert torch.equal(on_stripes.images[:, :, 1::2], on_white.images[:, :, 1::2])


def test_strokes_enter_from_every_border_and_are_slender():
    _, marks = pen_mark(white(200), 1, 1, seed=5)
    rims = torch.stack([marks[:, 0].any(1), marks[:, -1].any(1), marks[:, :, 0].any(1), marks[:, :, -1].any(1)])
    assert bool(rims.any(0).all())
    alone = rims[:, rims.sum(0) == 1]  # strokes that touch one border: the one that they enter from
    assert all(10 < int(one.sum()) < 80 for one in alone)
    area = marks.float().mean((1, 2))
    assert float(area.min()) > 0.02 and float(area.max()) < 0.25
    assert len(marks.flatten(1).unique(dim=0)) == 200
    # Half as wide as 6 % of the shorter side at most, and soft by two pixels: a disc of more does not fit in.
    eroded = -torch.nn.functional.max_pool2d(-marks.float(), 11, 1, 5)
    assert float(eroded[:, 8:-8, 8:-8].sum()) == 0


def test_the_stroke_of_a_patch_is_the_same_whichever_others_are_marked():
    some, few = pen_mark(white(), 0.5, 0.1, seed=2)
    every, all_marks = pen_mark(white(), 1, 1, seed=2)
    has_mark = few.flatten(1).any(1)
    assert torch.equal(some.images[has_mark], every.images[has_mark])
    assert torch.equal(few[has_mark], all_marks[has_mark])
    assert not torch.equal(pen_mark(white(), 1, 1, seed=3)[1], all_marks)


def test_stain_shift_by_hand():
    patches = pink()
    before = patches.images.clone()
    shifted, which = stain_shift(patches, 0.5, 0, seed=0, hematoxylin=0.5, eosin=-0.5)
    assert torch.equal(patches.images, before)
    assert torch.equal(which, chosen(patches.labels, 0.5, 0, 0)) and int(which.sum()) == 3
    assert torch.equal(shifted.images[~which], before[~which])
    assert bool((shifted.images[:, :, :2] == 255).all())
    old, new = separate(before)[0, :, 5, 5], separate(shifted.images[which])[:, :, 5, 5]
    expected = old * torch.tensor([1.5, 0.5, 1])
    torch.testing.assert_close(new, expected.expand(3, 3), atol=0.01, rtol=0)
    # By default hematoxylin stays and eosin goes.
    new = separate(stain_shift(patches, 1, 1)[0].images)[0, :, 5, 5]
    torch.testing.assert_close(new, old * torch.tensor([1, 0.5, 1]), atol=0.01, rtol=0)


@pytest.mark.parametrize("plant", [pen_mark, stain_shift])
def test_bad_input_is_one_line(plant):
    for share in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=rf"^{share} is no share of the patches: expected 0 to 1$"):
            plant(pink(), share, 0)
        with pytest.raises(ValueError, match=rf"^{share} is no share of the patches: expected 0 to 1$"):
            plant(pink(), 0, share)
    wrong = Patches(pink().images, torch.full((12,), 2), torch.arange(12))
    with pytest.raises(ValueError, match="^label 2 is neither 1, for tumour, nor 0$"):
        plant(wrong, 1, 1)
    with pytest.raises(ValueError, match="eosin = -2 is out of range"):
        stain_shift(pink(), 1, 1, eosin=-2)
