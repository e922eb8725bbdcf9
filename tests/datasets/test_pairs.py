from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.datasets.pairs import compose, load_pairs, neighbours, ranks

CLASSES, EACH = 7, 5
LABELS = torch.arange(CLASSES).repeat_interleave(EACH)


def test_every_image_stands_once_on_either_side_beside_one_of_another_class():
    sides = neighbours(LABELS)
    assert sides.shape == (CLASSES * EACH, 2) and sides.dtype == torch.int64
    for side in (0, 1):
        assert sorted(sides[:, side].tolist()) == list(range(CLASSES * EACH))
    assert bool((LABELS[sides[:, 0]] != LABELS[sides[:, 1]]).all())
    assert len({frozenset(pair) for pair in sides.tolist()}) == len(sides)  # never the same two the other way round


def test_left_and_right_are_balanced_after_every_round():
    sides = neighbours(LABELS)
    for rounds in range(1, EACH + 1):
        some = sides[: rounds * CLASSES]
        assert sorted(some[:, 0].tolist()) == sorted(some[:, 1].tolist())
        assert Counter(LABELS[some[:, 0]].tolist()) == dict.fromkeys(range(CLASSES), rounds)


def test_the_order_is_that_of_the_seed_and_takes_no_number_of_others():
    state = torch.get_rng_state()
    assert torch.equal(neighbours(LABELS, 3), neighbours(LABELS, 3))
    assert not torch.equal(neighbours(LABELS, 3), neighbours(LABELS, 4))
    assert torch.equal(torch.get_rng_state(), state)
    beside = [
        {int(LABELS[right]) for left, right in neighbours(LABELS).tolist() if LABELS[left] == c} for c in range(7)
    ]
    assert all(len(partners) > 1 for partners in beside)  # a class meets several others


def test_images_of_a_class_alone_in_its_round_are_left_over():
    sides = neighbours(torch.tensor([0, 0, 0, 1, 1, 2]))
    assert sorted(sides[:3, 0].tolist())[-1] == 5 and len(sides) == 5  # rounds of three classes, two, and one
    assert sorted(sides[:, 0].tolist()) == sorted(sides[:, 1].tolist())
    assert set(sides.flatten().tolist()) > {3, 4, 5}


def test_composed_by_hand():
    images = torch.arange(3 * 3 * 2 * 4, dtype=torch.uint8).view(3, 3, 2, 4)
    labels = torch.tensor([8, 5, 8])
    boxes = torch.tensor([[0.0, 0, 1, 1], [2, 0, 3, 0], [1, 1, 1, 1]])
    pairs = compose(images, labels, boxes, torch.tensor([[0, 1], [1, 2]]))
    assert pairs.images.shape == (2, 3, 2, 8) and pairs.images.dtype == torch.uint8
    assert torch.equal(pairs.images[1, :, :, :4], images[1]) and torch.equal(pairs.images[1, :, :, 4:], images[2])
    assert pairs.classes.tolist() == [[8, 5], [5, 8]]
    assert pairs.boxes.tolist() == [[[0, 0, 1, 1], [6, 0, 7, 0]], [[2, 0, 3, 0], [5, 1, 5, 1]]]
    # What the box cut out of the image, it cuts out of the picture.
    x_min, y_min, x_max, y_max = pairs.boxes[0, 1].int().tolist()
    assert torch.equal(pairs.images[0, :, y_min : y_max + 1, x_min : x_max + 1], images[1, :, 0:1, 2:4])
    assert len(pairs) == 2
    for chosen in (slice(1, 2), torch.tensor([1]), torch.tensor([False, True])):
        one = pairs[chosen]
        assert len(one) == 1 and one.classes.tolist() == [[5, 8]] and torch.equal(one.boxes[0], pairs.boxes[1])


def test_ranks_by_hand():
    logits = torch.tensor([[0.1, 3, -2, 1], [5, 5, 5, 6]])
    assert ranks(logits, torch.tensor([[1, 2], [0, 3]])).tolist() == [[1, 4], [2, 1]]


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match=r"^expected labels \(N,\) of two classes or more, got \[4\] in 1d$"):
        neighbours(torch.tensor([4, 4]))
    with pytest.raises(ValueError, match=r"^expected labels \(N,\) of two classes or more, got \[0, 1\] in 2d$"):
        neighbours(torch.tensor([[0, 1]]))
    images, boxes = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 4)
    with pytest.raises(ValueError, match="^pair 1 has two objects of class 9: expected two classes$"):
        compose(images, torch.tensor([9, 1]), boxes, torch.tensor([[0, 1], [0, 0]]))
    with pytest.raises(
        ValueError, match="^expected a label and a box for each image, got 2 labels and 1 boxes for 2 im"
    ):
        compose(images, torch.tensor([9, 1]), boxes[:1], torch.tensor([[0, 1]]))
    with pytest.raises(
        ValueError, match=r"^expected logits \(P, classes\) and classes \(P, 2\), got \(2, 4\) and \(2,\)$"
    ):
        ranks(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="^class 4 has no logit: there are 4, beginning with that of class 0$"):
        ranks(torch.zeros(1, 4), torch.tensor([[0, 4]]))
    with pytest.raises(ValueError, match="^limit = 0 is not a number of pairs: give 1 or more, or None for all$"):
        load_pairs("nowhere", 0)


def test_pairs_of_a_data_set(fake_data: Path):
    images, labels = tiny_imagenet.load_split("val", fake_data)
    pairs = load_pairs(fake_data)
    assert pairs.images.shape == (100, 3, 64, 128)
    for i, (left, right) in enumerate(neighbours(labels).tolist()):
        assert pairs.classes[i].tolist() == [labels[left], labels[right]]
        assert torch.equal(pairs.images[i], torch.cat([images[left], images[right]], 2))
    assert pairs.boxes.unique(dim=0).tolist() == [[[16, 16, 47, 47], [80, 16, 111, 47]]]
    assert torch.equal(load_pairs(fake_data, 10).images, pairs.images[:10])
    assert not torch.equal(load_pairs(fake_data, seed=1).classes, pairs.classes)


@pytest.mark.skipif("SMOOTHSAL_DATA" not in os.environ, reason="SMOOTHSAL_DATA is not set: no real tiny-imagenet-100")
def test_the_real_pairs():
    pairs = load_pairs()
    assert pairs.images.shape == (5000, 3, 64, 128)
    assert bool((pairs.classes[:, 0] != pairs.classes[:, 1]).all())
    assert torch.equal(pairs.classes.flatten().bincount(), torch.full((100,), 100))
    assert pairs.boxes[:, 0, 2].max() <= 63 and pairs.boxes[:, 1, 0].min() >= 64 and pairs.boxes.max() <= 127
