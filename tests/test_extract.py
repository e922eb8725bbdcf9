from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import build

import smoothsal_lib as sal
from smoothsal_lib.extract import REDUCTIONS, RESIZINGS, capped, resize_map, saliency_map, times_image
from smoothsal_lib.layers import HiddenLayer

# One image, three channels, two positions: the channels are 3, -4, 0 at the first and 1, 1, 1 at the second.
ATTRIBUTION = torch.tensor([[3.0, 1.0], [-4.0, 1.0], [0.0, 1.0]]).view(1, 3, 1, 2)
BY_HAND = {
    "mean": [-1 / 3, 1.0],
    "sum": [-1.0, 3.0],
    "abs_mean": [7 / 3, 1.0],
    "l2": [5.0, 3**0.5],
    "max_abs": [4.0, 1.0],
    "positive_norm": [3.0, 3**0.5],
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
    with pytest.raises(ValueError, match=r"^unknown reduction 'max': choose one of mean, .*, max_abs, positive_norm$"):
        saliency_map(ATTRIBUTION, "max")
    with pytest.raises(ValueError, match=r"^expected an attribution of shape \(N, C, H, W\), got \(3, 1, 2\)$"):
        saliency_map(ATTRIBUTION[0])


@pytest.mark.parametrize("percentile", [50, 90, 99.0, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_capped_by_numpy(percentile: float, dtype: torch.dtype):
    """Every map by the percentile of its own magnitudes; signs stay."""
    maps = torch.randn(3, 9, 11, dtype=torch.float64).pow(3).to(dtype)
    found = capped(maps, percentile)
    assert found.dtype == dtype
    for one, result in zip(maps.double(), found.double(), strict=True):
        limit = np.percentile(one.abs(), percentile)
        expected = one.sign() * one.abs().clamp(max=limit)
        torch.testing.assert_close(result, expected, rtol=max(4 * torch.finfo(dtype).eps, 1e-9), atol=0)
    assert torch.equal(found, maps) == (percentile == 100)


def test_capped_by_hand():
    """Magnitudes 0, 1, 2, 10: the third quartile lies a quarter of the way from 2 to 10."""
    maps = torch.tensor([[[0.0, -1.0], [2.0, -10.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert capped(maps, 75).tolist() == [[[0, -1], [2, -4]], [[0, 0], [0, 0]]]
    assert torch.equal(capped(maps), capped(maps, 99))


def test_times_the_image_by_hand():
    picture = torch.tensor([[[[1.0, 2.0]], [[3.0, 6.0]]], [[[0.0, 0.0]], [[2.0, -2.0]]]])  # (2, 2, 1, 2)
    maps = torch.tensor([[[5.0, -1.0]], [[1.0, 3.0]]])
    assert times_image(maps, picture).tolist() == [[[10, -4]], [[1, -3]]]
    assert torch.equal(times_image(picture, picture), picture.square())


def test_times_the_image_is_gradient_times_activation(x: torch.Tensor):
    model = build("residual")
    gradient = sal.explain(model, x, 1, "input", "gradient")["input"]
    product = sal.explain(model, x, 1, "input", "gradient_x_activation")["input"]
    torch.testing.assert_close(times_image(gradient, x), product)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 16), (3, 1, 16, 16), (16, 16)])
def test_times_the_image_needs_its_size(shape: tuple[int, ...], x: torch.Tensor):
    with pytest.raises(ValueError, match=r"^maps of \(.*\) are not at the size of pictures of \(3, 3, 16, 16\)"):
        times_image(torch.zeros(shape), x)


@pytest.mark.parametrize("percentile", [0, -1, 100.5, float("nan")])
def test_bad_percentiles_are_one_line(percentile: float):
    with pytest.raises(ValueError, match=f"^percentile = {percentile} is not above 0 and at most 100$"):
        capped(torch.zeros(2, 3, 3), percentile)
    with pytest.raises(ValueError, match=r"^expected maps of shape \(N, H, W\), got \(3, 3\)$"):
        capped(torch.zeros(3, 3))


def layer(size: tuple[int, int], stride: tuple[int, int], offset: tuple[float, float]) -> HiddenLayer:
    return HiddenLayer("l", (1, *size), stride, offset)


def test_aligned_by_hand():
    """Two units at pixels 0 and 4: a straight line between, and the last value behind."""
    maps = torch.tensor([[[0.0, 8.0]]])
    found = resize_map(maps, (1, 8), layer((1, 2), (1, 4), (0, 0)))
    assert found.tolist() == [[[0, 2, 4, 6, 8, 8, 8, 8]]]
    half = resize_map(maps, (1, 8), layer((1, 2), (1, 4), (0, 1.5)))
    assert half.tolist() == [[[0, 0, 1, 3, 5, 7, 8, 8]]]
    assert resize_map(maps, (1, 8), mode="bilinear").tolist() == half.tolist()
    assert resize_map(maps, (1, 8), mode="nearest").tolist() == [[[0, 0, 0, 0, 8, 8, 8, 8]]]


@pytest.mark.parametrize("offset", [-1, 0, 1, 3])
@pytest.mark.parametrize("unit", [(1, 1), (2, 3)])
def test_a_unit_lands_where_it_stands(offset: int, unit: tuple[int, int]):
    one_hot = torch.zeros(1, 4, 5, dtype=torch.float64)
    one_hot[0, unit[0], unit[1]] = 1
    found = resize_map(one_hot, (16, 25), layer((4, 5), (4, 5), (offset, offset)))[0]
    row, column = offset + 4 * unit[0], offset + 5 * unit[1]
    assert found[row, column] == 1 == found.max() and (found == 1).sum() == 1
    # A tent of one stride to each side, cut at the border where the unit is the last: 1, 3/4, 1/2, 1/4, 0.
    torch.testing.assert_close(found[row - 3 : row, column], torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))


def test_half_a_unit_between_two_pixels():
    one_hot = torch.tensor([[[0.0, 1.0, 0.0, 0.0]]])
    found = resize_map(one_hot, (1, 8), layer((1, 4), (1, 2), (0, 0.5)))
    assert found.tolist() == [[[0, 0.25, 0.75, 0.75, 0.25, 0, 0, 0]]]  # centred at 2.5


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
def test_aligned_is_bilinear_where_units_are_in_the_middle_of_their_cells(stride: int):
    maps = torch.randn(3, 5, 6, dtype=torch.float64)
    middle = ((stride - 1) / 2,) * 2
    size = (5 * stride, 6 * stride)
    aligned = resize_map(maps, size, layer((5, 6), (stride, stride), middle))
    torch.testing.assert_close(aligned, resize_map(maps, size, mode="bilinear"))


@pytest.mark.parametrize("name", ["residual", "overlapping_max_pool", "patchify", "stride_3", "asymmetric"])
def test_layers_of_a_network_fit(name: str, x: torch.Tensor):
    for found in sal.hidden_layers(build(name), x).values():
        row, column = resize_map(torch.ones(2, *found.shape[1:]), (16, 16), found), found.shape[1:]
        torch.testing.assert_close(row, torch.ones(2, 16, 16))
        # A ramp over the units is a ramp over the pixels between the outermost units, and repeated outside.
        ramp = torch.arange(column[1], dtype=torch.float64).expand(1, *column)
        pixels = (torch.arange(16, dtype=torch.float64) - found.offset[1]) / found.stride[1]
        torch.testing.assert_close(resize_map(ramp, (16, 16), found)[0, 3], pixels.clamp(0, column[1] - 1))


@pytest.mark.parametrize("mode", RESIZINGS)
def test_resizing_keeps_dtype_and_gradient(mode: str):
    maps = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    found = resize_map(maps, (6, 6), layer((3, 3), (2, 2), (0, 0)), mode)
    assert found.shape == (2, 6, 6) and found.dtype == torch.float64
    found.sum().backward()
    assert maps.grad is not None and maps.grad.sum() == pytest.approx(72)


@pytest.mark.parametrize(
    ("maps", "size", "given", "mode", "message"),
    [
        ((2, 3, 3), (6, 6), None, "cubic", "^unknown mode 'cubic': choose one of nearest, bilinear, aligned$"),
        ((3, 3), (6, 6), None, "nearest", r"^expected maps of shape \(N, h, w\), none of them 0, got \(3, 3\)$"),
        (
            (2, 3, 3),
            (6, 0),
            None,
            "nearest",
            r"^expected the picture's size as \(H, W\), at least 1 each, got \(6, 0\)$",
        ),
        ((2, 3, 3), (6, 6), None, "aligned", "^mode 'aligned' needs the layer"),
        ((2, 4, 3), (6, 6), layer((3, 3), (2, 2), (0, 0)), "aligned", r"^maps of \(4, 3\) are not of layer 'l'"),
        (
            (2, 3, 3),
            (2, 6),
            layer((3, 3), (2, 2), (0, 0)),
            "aligned",
            "^3 units of layer 'l', 2 pixels apart from pixel 0",
        ),
    ],
)
def test_bad_resizing_is_one_line(maps, size, given, mode: str, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        resize_map(torch.zeros(maps), size, given, mode)
    assert "\n" not in str(caught.value)
