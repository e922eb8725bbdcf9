from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from skimage.color import hed2rgb, rgb2hed
from torch import Tensor

from smoothsal_lib.datasets import stains


def pictures(n: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random colours, (n, 3, 6, 5)."""
    images = torch.rand(n, 3, 6, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (images * 255).round().to(torch.uint8) if dtype == torch.uint8 else images.to(dtype)


def channels_last(images: Tensor) -> np.ndarray:
    return images.movedim(-3, -1).numpy()


def test_a_tenth_of_the_light_is_one_unit_of_density():
    images = torch.tensor([1.0, 0.1, 0.01, 0.0], dtype=torch.float64).expand(3, 1, 4)
    expected = torch.tensor([0.0, 1.0, 2.0, 6.0], dtype=torch.float64).expand(3, 1, 4)
    torch.testing.assert_close(stains.optical_density(images), expected)
    grey = stains.optical_density(torch.full((3, 2, 2), 51, dtype=torch.uint8))
    torch.testing.assert_close(grey, torch.full((3, 2, 2), 0.69897))  # log10 of 5


def test_separating_is_scikit_images_in_units_of_optical_density():
    images = pictures()
    own = channels_last(stains.separate(images))
    theirs = rgb2hed(channels_last(images))  # which divides by log10 of the darkest, 6, and cuts off below 0
    np.testing.assert_allclose(own.clip(min=0) / 6, theirs, atol=1e-14)
    assert (own < 0).any()


def test_mixing_is_scikit_images():
    densities = 0.3 * pictures()
    np.testing.assert_allclose(
        channels_last(stains.mix(densities)), hed2rgb(channels_last(densities) / 6), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.uint8])
def test_mixing_undoes_separating_also_where_amounts_are_negative(dtype: torch.dtype):
    images = pictures(dtype=dtype)
    expected = images / 255 if dtype == torch.uint8 else images
    densities = stains.separate(images)
    assert densities.dtype == expected.dtype and (densities < 0).any()
    torch.testing.assert_close(stains.mix(densities), expected)


def test_pure_stains_have_the_densities_that_were_measured():
    """One unit of eosin lets 10 ** -0.07 of the red light through, 10 ** -0.99 of the green and 10 ** -0.11."""
    eosin = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).view(3, 1, 1)
    expected = torch.tensor([10**-0.07, 10**-0.99, 10**-0.11], dtype=torch.float64).view(3, 1, 1)
    torch.testing.assert_close(stains.mix(eosin), expected)
    torch.testing.assert_close(stains.separate(expected), eosin, atol=1e-12, rtol=0)
    assert stains.STAINS[1] == "eosin"


def test_leading_dimensions_are_free():
    images = pictures(4)
    torch.testing.assert_close(stains.separate(images[1]), stains.separate(images)[1])
    torch.testing.assert_close(stains.separate(images.view(2, 2, 3, 6, 5)).view(4, 3, 6, 5), stains.separate(images))


def test_no_jitter_changes_nothing():
    for dtype in (torch.uint8, torch.float32, torch.float64):
        images = pictures(dtype=dtype)
        jittered = stains.jitter(images, 0.0)
        assert jittered.dtype == dtype
        torch.testing.assert_close(jittered, images)


def test_jitter_scales_and_offsets_every_stain_of_every_picture():
    """What was drawn is recovered from the amounts before and after, pixel by pixel, and differs between pictures."""
    images = 0.4 + 0.4 * pictures(3)  # neither so bright nor so dark that anything is cut off
    before = stains.separate(images).flatten(2)
    after = stains.separate(stains.jitter(images, 0.1, torch.Generator().manual_seed(5))).flatten(2)
    spread = before - before.mean(2, keepdim=True)
    scale = (spread * after).sum(2) / (spread**2).sum(2)
    offset = (after - scale[..., None] * before).mean(2)
    torch.testing.assert_close(after, scale[..., None] * before + offset[..., None])
    drawn = 2 * torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64) - 1
    torch.testing.assert_close(scale, 1 + 0.1 * drawn[0])
    torch.testing.assert_close(offset, 0.1 * drawn[1])


def test_jitter_of_whole_numbers_is_that_of_intensities_rounded():
    images = pictures(dtype=torch.uint8)
    whole = stains.jitter(images, 0.2, torch.Generator().manual_seed(1))
    exact = stains.jitter(images.double() / 255, 0.2, torch.Generator().manual_seed(1))
    assert whole.dtype == torch.uint8
    assert (whole.double() - 255 * exact).abs().max() <= 0.5 + 1e-3
    assert exact.max() <= 1


def test_jitter_repeats_with_its_generator_and_leaves_the_global_state_alone():
    images, state = pictures(), torch.random.get_rng_state()
    first, second = (stains.jitter(images, 0.1, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(stains.jitter(images, 0.1), stains.jitter(images, 0.1))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_shift_multiplies_the_amount_of_one_stain():
    images = 0.4 + 0.4 * pictures()
    before = stains.separate(images)
    after = stains.separate(stains.shift(images, hematoxylin=0.3, eosin=-0.5))
    factors = torch.tensor([1.3, 0.5, 1.0], dtype=torch.float64).view(3, 1, 1)
    torch.testing.assert_close(after, factors * before, atol=1e-12, rtol=0)


def test_a_shift_is_the_same_for_all_pictures_and_leaves_bare_glass_white():
    images = pictures(4, torch.uint8)
    shifted = stains.shift(images, hematoxylin=0.4)
    assert shifted.dtype == torch.uint8 and not torch.equal(shifted, images)
    assert torch.equal(stains.shift(images[2], hematoxylin=0.4), shifted[2])
    assert torch.equal(stains.shift(images), images)
    white = torch.full((3, 2, 2), 255, dtype=torch.uint8)
    assert torch.equal(stains.shift(white, 2.0, 2.0), white)
    purple = torch.tensor([120, 80, 170], dtype=torch.uint8).view(3, 1, 1)
    assert (stains.shift(purple, hematoxylin=0.4) < purple).all()


@pytest.mark.parametrize("given", [torch.zeros(3, 4), torch.zeros(2, 4, 5, 5), torch.zeros(2, 5, 5, 3)])
def test_images_of_another_shape_are_refused(given: Tensor):
    message = rf"\(\.\.\., 3, H, W\), got shape \({', '.join(map(str, given.shape))}\)$"
    for function in (stains.optical_density, stains.separate, stains.mix, stains.shift):
        with pytest.raises(ValueError, match=message):
            function(given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stains.separate(torch.full((3, 2, 2), 255.0)), "values from 0 to 1, got values from 255 to 255$"),
        (lambda: stains.separate(torch.full((3, 2, 2), -0.5)), "got values from -0.5 to -0.5$"),
        (lambda: stains.separate(torch.full((3, 2, 2), float("nan"))), "got values from nan to nan$"),
        (lambda: stains.separate(torch.ones(3, 2, 2, dtype=torch.int64)), "uint8 or floating point, got torch.int64$"),
        (lambda: stains.mix(torch.ones(3, 2, 2, dtype=torch.uint8)), "^expected densities of floating point, got .*8$"),
        (lambda: stains.jitter(torch.rand(3, 2, 2), 0.1), r"^expected images \(N, 3, H, W\), got shape \(3, 2, 2\)$"),
        (lambda: stains.jitter(pictures(), -0.1), "^strength = -0.1 is out of range: give one from 0 "),
        (lambda: stains.jitter(pictures(), 1.1), "^strength = 1.1 is out of range"),
        (lambda: stains.shift(pictures(), hematoxylin=-1.5), "^hematoxylin = -1.5 is out of range: .*or more$"),
        (lambda: stains.shift(pictures(), eosin=float("nan")), "^eosin = nan is out of range"),
    ],
)
def test_bad_input_is_one_line(call: Any, message: str):
    with pytest.raises(ValueError, match=message):
        call()
