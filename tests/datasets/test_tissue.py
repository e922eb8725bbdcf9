"""Generated tissue: the same from the same seed, consistent with its masks, and of one colour whatever the label."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from smoothsal_lib.datasets import tissue
from smoothsal_lib.datasets.patches import STRUCTURES, Patches
from smoothsal_lib.datasets.tissue import EPITHELIAL, FIBROBLAST, KINDS, LYMPHOCYTE, TUMOUR, Field, Stain
from smoothsal_lib.metrics.detection import auc
from smoothsal_lib.training.colours import colour_statistics


@pytest.fixture(scope="module")
def some() -> Field:
    return tissue.field(320, seed=3, tumour=0.35)


@pytest.fixture(scope="module")
def patches() -> Patches:
    return tissue.patches(64, seed=4)


def areas(field: Field, kind: int) -> Tensor:
    counts = torch.bincount(field.nuclei.flatten())[1:]
    return counts[field.kinds == kind].double()


def colour_gaps(images: Tensor) -> Tensor:
    """(pairs, 6): by how many grey levels mean and spread of red, green and blue differ in a pair."""
    values = torch.cat([images.double().mean((2, 3)), images.double().std((2, 3))], 1)
    return values[1::2] - values[::2]


# --- repeatable -------------------------------------------------------------------------------------------------------


def test_same_seed_same_pixels_and_nobody_elses_random_state_is_touched():
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002, the global state is what must stay
    state, other = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = (tissue.field((70, 90), seed=5) for _ in range(2))
    cut, cut_again = (tissue.patches(9, 48, seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == other).all()  # noqa: NPY002
    for name in ("image", "nuclei", "kinds", "glands", "tumour", "lumen"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert first.stain == again.stain
    assert torch.equal(cut.images, cut_again.images)
    assert all(torch.equal(mask, cut_again.masks[name]) for name, mask in cut.masks.items())


def test_another_seed_is_another_picture():
    assert not torch.equal(tissue.field(64, seed=0).image, tissue.field(64, seed=1).image)
    assert tissue.field(64, seed=0).stain != tissue.field(64, seed=1).stain
    one, other = tissue.patches(8, 48, seed=0), tissue.patches(8, 48, seed=1)
    assert not torch.equal(one.images, other.images) and not set(one.names) & set(other.names)


def test_the_first_patches_are_the_same_whatever_the_count():
    few, many = tissue.patches(3, 48, seed=2), tissue.patches(17, 48, seed=2)
    first = many[:3]
    assert torch.equal(few.images, first.images) and torch.equal(few.labels, first.labels)
    assert few.names == first.names and torch.equal(few.patients, first.patients)
    assert all(torch.equal(few.masks[name], first.masks[name]) for name in STRUCTURES)


# --- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(33, 70), (70, 33), (1, 1), (301, 64)])
def test_any_size(size: tuple[int, int]):
    field = tissue.field(size, seed=1)
    assert field.image.shape == (3, *size) and field.image.dtype == torch.uint8
    assert field.nuclei.shape == field.glands.shape == size
    assert field.nuclei.dtype == field.glands.dtype == torch.int32
    for mask in field.structures().values():
        assert mask.shape == size and mask.dtype == torch.bool


def test_a_large_field():
    field = tissue.field(1024, seed=1, tumour=0.2)
    assert field.image.shape == (3, 1024, 1024) and len(field.kinds) > 1000
    assert float(field.tumour.double().mean()) == pytest.approx(0.2, abs=0.1)


def test_structures_are_consistent(some: Field):
    masks = some.structures()
    assert tuple(masks) == STRUCTURES
    assert all(bool(mask.any()) for mask in masks.values())
    apart = ("tumour_nuclei", "normal_nuclei", "stroma", "lumen")
    assert int(sum(masks[name].int() for name in apart).max()) == 1  # never two at once
    assert not bool((masks["tumour"] & masks["gland"]).any())
    assert not bool((masks["tumour_nuclei"] & ~masks["tumour"]).any())
    assert not bool((masks["normal_nuclei"] & masks["tumour"]).any())
    assert not bool((masks["lumen"] & ~masks["tumour"] & ~masks["gland"]).any())
    assert torch.equal(masks["tumour_nuclei"] | masks["normal_nuclei"], some.nuclei > 0)
    outside = ~masks["tumour"] & ~masks["gland"]
    assert torch.equal(masks["stroma"] | (masks["normal_nuclei"] & outside), outside)
    assert torch.equal(some.stroma, masks["stroma"])


def test_each_nucleus_lies_where_its_kind_does(some: Field):
    for kind, home in ((EPITHELIAL, some.glands > 0), (TUMOUR, some.tumour)):
        own = torch.isin(some.nuclei, 1 + (some.kinds == kind).nonzero().flatten())
        assert bool(own.any()) and not bool((own & ~home).any()), KINDS[kind]
    for kind in (LYMPHOCYTE, FIBROBLAST):
        own = torch.isin(some.nuclei, 1 + (some.kinds == kind).nonzero().flatten())
        assert bool(own.any()) and not bool((own & ((some.glands > 0) | some.tumour)).any()), KINDS[kind]


@pytest.mark.parametrize("what", ["nuclei", "glands"])
def test_instances_are_numbered_without_gaps_and_in_one_piece(some: Field, what: str):
    labels = getattr(some, what).numpy()
    n = int(labels.max())
    assert n > 1 and sorted(set(labels.flat)) == list(range(n + 1))
    boxes = ndimage.find_objects(labels)
    # A neighbour in front may cut one in two.
    whole = [ndimage.label(labels[box] == i + 1, np.ones((3, 3)))[1] == 1 for i, box in enumerate(boxes)]
    assert np.mean(whole) > 0.97
    if what == "nuclei":
        assert n == len(some.kinds) and np.bincount(labels.ravel())[1:].min() >= tissue.SMALLEST


def test_nuclei_of_the_tumour_are_larger_and_less_alike(some: Field):
    malignant, normal, lymphocytes = (areas(some, kind) for kind in (TUMOUR, EPITHELIAL, LYMPHOCYTE))
    assert malignant.mean() > 1.2 * normal.mean() and normal.mean() > 1.2 * lymphocytes.mean()
    assert malignant.std() > 1.3 * normal.std()


def test_structures_look_like_what_they_are(some: Field):
    red, green, _ = some.image.double()
    masks = some.structures()
    nuclei = some.nuclei > 0
    assert green[masks["lumen"]].mean() > green[masks["stroma"]].mean() + 30 > green[nuclei].mean() + 60
    assert red[nuclei].mean() < red[masks["stroma"]].mean() - 40  # hematoxylin is blue
    # Moved by ten pixels, a mask no longer fits its picture.
    assert green[nuclei.roll((10, 10), (0, 1))].mean() > green[nuclei].mean() + 20


def test_the_tumour_lies_where_a_mask_says():
    mask = torch.zeros(120, 150, dtype=torch.bool)
    mask[30:90, 40:110] = True
    field = tissue.field((120, 150), seed=2, tumour=mask)
    assert torch.equal(field.tumour, mask)
    assert int((field.kinds == TUMOUR).sum()) > 10
    assert not bool(field.structures()["tumour_nuclei"][~mask].any())


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0.0, 0.0), (0.5, 0.25, 0.75), (1.0, 1.0, 1.0)])
def test_the_tumour_has_the_share_asked_for(share: float, least: float, most: float):
    field = tissue.field(200, seed=6, tumour=share)
    assert least <= float(field.tumour.double().mean()) <= most
    assert bool((field.kinds == TUMOUR).any()) == (share > 0)
    assert bool((field.glands > 0).any()) == (share < 1)


def test_a_stain_changes_the_colours_and_nothing_else():
    plain = tissue.field(96, seed=8, stain=Stain())
    assert plain.stain == Stain()
    deep = tissue.field(96, seed=8, stain=Stain(strength=(1.5, 1.5)))
    assert torch.equal(plain.nuclei, deep.nuclei) and torch.equal(plain.lumen, deep.lumen)
    assert deep.image.double().mean() < plain.image.double().mean() - 15
    # One dye alone: the optical densities of the three colours stand in its ratio.
    pink = tissue.field(96, seed=8, stain=Stain(strength=(0.0, 1.0), blur=0.01, noise=0.0)).image.double()
    density = -torch.log10(pink / tissue.WHITE).flatten(1).mean(1)
    expected = torch.tensor(Stain.eosin, dtype=torch.float64)
    torch.testing.assert_close(density / density[1], expected / expected[1], atol=0.01, rtol=0)


# --- patches ----------------------------------------------------------------------------------------------------------


def test_labels_patients_and_names(patches: Patches):
    assert patches.images.shape == (64, 3, 96, 96) and patches.mpp == tissue.MPP
    assert set(patches.masks) == set(STRUCTURES)
    share = patches.masks["tumour"].double().mean((1, 2))
    assert bool((share[patches.labels == 1] >= tissue.SHARE).all())
    assert bool((share[patches.labels == 0] == 0).all())
    for patient in range(8):
        own = patches.labels[patches.patients == patient]
        assert len(own) == tissue.PER_PATIENT and int(own.sum()) == tissue.PER_PATIENT // 2
    assert patches.names[:2] == ["tissue-4-0", "tissue-4-1"] and len(set(patches.names)) == 64
    assert len(patches.images.flatten(1).unique(dim=0)) == 64


def test_masks_of_patches_fit_their_pictures(patches: Patches):
    green = patches.images[:, 1].double()
    nuclei = patches.masks["tumour_nuclei"] | patches.masks["normal_nuclei"]
    assert green[patches.masks["lumen"]].mean() > green[patches.masks["stroma"]].mean() > green[nuclei].mean() + 40
    assert green[nuclei.roll((10, 10), (1, 2))].mean() > green[nuclei].mean() + 20


def test_colour_does_not_tell_the_label(patches: Patches):
    # With and without tumour stand in turn, in pairs of like colours: a sharper test than any classifier's on so few.
    gaps, means = colour_gaps(patches.images), patches.images.double().mean((2, 3))
    assert float(gaps[:, :2].abs().max()) < 2.5  # red and green are brought there
    assert float(gaps[:, 2].abs().mean()) < 0.35 * float(means[:, 2].std())  # blue follows
    assert bool((gaps.mean(0).abs() < 1.5).all())
    # No single statistic of the colours sorts them: 0.5 would be chance, with a standard error of 0.07 on 64 patches.
    statistics = colour_statistics(patches.images)
    for k in range(statistics.shape[1]):
        assert abs(float(auc(statistics[:, k], patches.labels)) - 0.5) < 0.2, k


def test_there_is_room_for_four_patches_of_each_label_at_any_size():
    for size in range(48, 400):
        near = 2 * -(-(size // 3) // (size // 12)) - 1  # places in a row, of those a step apart, nearer than size // 3
        assert 3 * near**2 <= tissue.TAKEN, size
    odd = tissue.patches(8, 59, seed=3)
    assert odd.images.shape == (8, 3, 59, 59) and len(odd.images.flatten(1).unique(dim=0)) == 8


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_size_that_leaves_no_room_is_refused_instead_of_tried_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tissue, "TRIES", 2)
    with pytest.raises(ValueError, match="^size = 400: 2 tumours left no room for patches without any; give less, or"):
        tissue.patches(2, 400)


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match="^size = 0 has no pixels: give 1 or more in both directions$"):
        tissue.field(0)
    with pytest.raises(ValueError, match=r"^size = \(5, -1\) has no pixels: give 1 or more in both directions$"):
        tissue.field((5, -1))
    for share in (1.2, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"^tumour = {share} is not a share: give 0 to 1, or a mask$"):
            tissue.field(40, tumour=share)
    with pytest.raises(ValueError, match=r"^expected a mask \(40, 40\) of bool, got \(40, 41\) of torch.bool$"):
        tissue.field(40, tumour=torch.zeros(40, 41, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^expected a mask \(40, 40\) of bool, got \(40, 40\) of torch.float32$"):
        tissue.field(40, tumour=torch.zeros(40, 40))
    with pytest.raises(ValueError, match="^count = 0 is not a number of patches: give 1 or more$"):
        tissue.patches(0)
    with pytest.raises(ValueError, match="^size = 47 has no room for a gland: give 48 pixels or more$"):
        tissue.patches(4, 47)
