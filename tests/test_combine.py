"""Several layers' maps in one, against values worked out by hand."""

from __future__ import annotations

import pytest
import torch
from networks import build
from torch import Tensor

import smoothsal_lib as sal
from smoothsal_lib.combine import COMBINATIONS, combine, localisation_weights, spread_weights
from smoothsal_lib.extract import resize_map
from smoothsal_lib.layers import HiddenLayer
from smoothsal_lib.metrics.localisation import box_share, pointing_game

SIZE = (1, 5)
# Five units at every pixel; three units at the pixels 0, 2 and 4; two units at 0 and 4.
LAYERS = {
    "fine": HiddenLayer("fine", (8, 1, 5), (1, 1), (0, 0)),
    "middle": HiddenLayer("middle", (8, 1, 3), (1, 2), (0, 0)),
    "coarse": HiddenLayer("coarse", (8, 1, 2), (1, 4), (0, 0)),
}
MAPS = {
    "fine": torch.tensor([[[1.0, 5.0, 3.0, 2.0, 5.0]]]),  # scaled 0, 1, 1/2, 1/4, 1
    "middle": torch.tensor([[[-2.0, 0.0, 2.0]]]),  # resized -2 to 2, scaled 0, 1/4, 1/2, 3/4, 1
    "coarse": torch.tensor([[[12.0, 8.0]]]),  # resized 12 to 8, scaled 1, 3/4, 1/2, 1/4, 0
}


def test_the_product_by_hand():
    found = combine(MAPS, SIZE, LAYERS, "product")
    torch.testing.assert_close(found, torch.tensor([[[0, 3 / 16, 1 / 8, 3 / 64, 0]]]))


def test_the_weighted_geometric_mean_by_hand():
    weights = {"coarse": 4.0, "fine": 1.0, "middle": 3.0}  # 1/2, 1/8, 3/8
    expected = [0, 0.75**0.5 * 0.25**0.375, 0.5, 0.25**0.5 * 0.25**0.125 * 0.75**0.375, 0]
    torch.testing.assert_close(combine(MAPS, SIZE, LAYERS, weights=weights), torch.tensor([[expected]]))


def test_without_weights_it_is_the_plain_geometric_mean():
    product = combine(MAPS, SIZE, LAYERS, "product")
    found = combine(MAPS, SIZE, LAYERS)
    torch.testing.assert_close(found, product ** (1 / 3))
    assert torch.equal(found, combine(MAPS, SIZE, LAYERS, "geometric", dict.fromkeys(MAPS, 7.0)))
    assert torch.equal(found.flatten().argsort(stable=True), product.flatten().argsort(stable=True))


def test_a_layer_of_weight_zero_has_no_say_even_where_it_is_zero():
    weights = {"fine": 1.0, "middle": 0.0, "coarse": 0.0}
    torch.testing.assert_close(
        combine(MAPS, SIZE, LAYERS, weights=weights), torch.tensor([[[0, 1, 0.5, 0.25, 1]]]), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("how", COMBINATIONS)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e9])
def test_a_constant_map_has_no_say(how: str, value: float):
    """0.1 three times resized to five pixels is not quite constant any more."""
    constant = {"middle": torch.full((1, 1, 3), value), "coarse": torch.tensor([[[value, value * (1 + 1e-7)]]])}
    expected = torch.tensor([[[0, 1, 0.5, 0.25, 1]]])
    found = combine({"fine": MAPS["fine"], **constant}, SIZE, LAYERS, how)
    torch.testing.assert_close(found, expected if how == "product" else expected ** (1 / 3))
    assert torch.equal(combine(constant, SIZE, LAYERS, how), torch.ones(1, 1, 5))


def test_images_are_scaled_on_their_own():
    two = {name: torch.cat([maps, 100 - 3 * maps.flip(2)]) for name, maps in MAPS.items()}
    found = combine(two, SIZE, LAYERS)
    torch.testing.assert_close(found[:1], combine(MAPS, SIZE, LAYERS))
    alone = {name: maps[1:] for name, maps in two.items()}
    torch.testing.assert_close(found[1:], combine(alone, SIZE, LAYERS))
    assert not torch.equal(found[0], found[1])


def test_the_range_is_that_among_the_pixels():
    """Units between pixels: no pixel has their values, and the highest one is 1 all the same."""
    between = {"l": HiddenLayer("l", (1, 1, 3), (1, 2), (0, 0.5))}  # at 0.5, 2.5 and 4.5
    found = combine({"l": torch.tensor([[[0.0, 4.0, 0.0]]])}, (1, 6), between)
    assert found.tolist() == [[[0, pytest.approx(1 / 3), 1, 1, pytest.approx(1 / 3), 0]]]


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_other_modes_need_no_layers(mode: str):
    maps = {"a": torch.rand(2, 3, 3, dtype=torch.float64), "b": torch.rand(2, 2, 2, dtype=torch.float64)}
    expected = torch.ones(2, 6, 6, dtype=torch.float64)
    for own in maps.values():
        large = resize_map(own, (6, 6), mode=mode)
        for i in range(2):
            expected[i] *= (large[i] - large[i].min()) / (large[i].max() - large[i].min())
    torch.testing.assert_close(combine(maps, (6, 6), how="product", mode=mode), expected)


def test_the_maps_of_a_network_and_of_the_picture(x: Tensor):
    model = build("residual")
    layers = sal.hidden_layers(model, x)
    attributions = sal.explain(model, x, 1, ["input", *layers], method="gradient_x_activation", fix=None)
    maps = {name: sal.saliency_map(attribution, "l2") for name, attribution in attributions.items()}
    found = combine(maps, (16, 16), layers)
    assert found.shape == (3, 16, 16) and found.dtype == torch.float64
    assert 0 <= found.min() and found.max() <= 1
    expected = torch.ones_like(found)
    for name, own in maps.items():
        large = own if name == "input" else resize_map(own, (16, 16), layers[name])
        low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        expected *= ((large - low) / (high - low)) ** (1 / len(maps))
    torch.testing.assert_close(found, expected)


def test_values_that_32_bits_hardly_hold():
    for factor in (3e38, 1e-40):
        maps = {"fine": torch.tensor([[[-1.0, 1.0, 0.0, -0.5, 1.0]]]) * factor}
        found = combine(maps, SIZE, LAYERS, "product")
        torch.testing.assert_close(found, torch.tensor([[[0, 1, 0.5, 0.25, 1]]]), rtol=1e-4, atol=0)
    half = {name: maps.half() for name, maps in MAPS.items()}
    assert torch.equal(combine(half, SIZE, LAYERS), combine(MAPS, SIZE, LAYERS))
    # 40 layers of 1/1000 each: too little for a product of 32 bits, not for the mean.
    many = {str(i): torch.tensor([[[0.0, 0.001, 1.0]]]) for i in range(40)}
    assert combine(many, (1, 3), mode="nearest")[0, 0].tolist() == pytest.approx([0, 0.001, 1], rel=1e-4)
    assert combine(many, (1, 3), how="product", mode="nearest")[0, 0].tolist() == [0, 0, 1]


def test_spread_by_hand():
    """0, 1: mean 1/2 and deviation 1/2. 0, 0, 0, 1: mean 1/4 and deviation √3/4."""
    maps = {
        "even": torch.tensor([[[5.0, 7.0]]]),
        "peak": torch.tensor([[[0.0, 0.0], [0.0, 9.0]]]),
        "flat": torch.ones(1, 3, 3),
        "both": torch.tensor([[[5.0, 7.0]], [[2.0, 2.0]]]),  # 1 and 0
    }
    total = 1 + 3**0.5 + 0 + 0.5
    expected = {"even": 1 / total, "peak": 3**0.5 / total, "flat": 0, "both": 0.5 / total}
    found = spread_weights(maps)
    assert found == pytest.approx(expected) and list(found) == list(maps)
    assert spread_weights({"flat": maps["flat"], "other": torch.zeros(2, 4, 4)}) == {"flat": 0.5, "other": 0.5}
    moved = spread_weights({name: 3 * own - 100 for name, own in maps.items()})
    assert moved == pytest.approx(expected, rel=1e-5)


def test_weights_from_localisation_by_hand():
    scores = {
        "good": torch.tensor([1.0, 1.0, 0.0, 1.0]),
        "poor": torch.tensor([1.0, 0.0, 0.0, 0.5]),
        "bad": torch.zeros(4),
    }
    expected = {"good": 0.5 / 0.625, "poor": 0.125 / 0.625, "bad": 0}
    assert localisation_weights(scores, 0.25) == pytest.approx(expected)
    assert localisation_weights(scores, torch.tensor([0.5, 0.0, 0.1, 0.4])) == pytest.approx(expected)
    assert localisation_weights({"good": 0.75, "poor": 0.375, "bad": 0}, 0.25) == pytest.approx(expected)
    assert localisation_weights({"a": 0.5, "b": 0.2}, 0.5) == {"a": 0.5, "b": 0.5}  # no better than chance


def test_weights_from_the_pointing_game():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 0.0]] * 2)  # the first two of five pixels
    maps = {
        "hits": torch.tensor([[[0.0, 1, 0, 0, 0]], [[1.0, 0, 0, 0, 0]]]),
        "misses": torch.tensor([[[0.0, 1, 0, 3, 3]]] * 2),
    }
    scores = {name: pointing_game(own, boxes) for name, own in maps.items()}
    assert localisation_weights(scores, box_share(boxes, SIZE)) == {"hits": 1.0, "misses": 0.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: combine({}, SIZE, LAYERS), r"^no maps given: pass \{layer: maps \(N, h, w\)\}$"),
        (lambda: combine(MAPS, SIZE, LAYERS, "sum"), "^unknown way to combine 'sum': choose 'geometric' or 'product'$"),
        (lambda: combine(MAPS, SIZE, LAYERS, "product", dict.fromkeys(MAPS, 1.0)), "^a product has no weights"),
        (lambda: combine(MAPS, SIZE), r"^layers do not tell where 'fine' is: pass hidden_layers\(model, x\), or mode"),
        (lambda: combine({"other": MAPS["fine"]}, SIZE, LAYERS), "^layers do not tell where 'other' is"),
        (lambda: combine({"input": MAPS["middle"]}, SIZE, LAYERS), "^layers do not tell where 'input' is"),
        (lambda: combine({"fine": MAPS["fine"][0]}, SIZE, LAYERS), r"^expected maps .* got \(1, 5\) for layer 'fine'$"),
        (
            lambda: combine({**MAPS, "fine": MAPS["fine"].repeat(2, 1, 1)}, SIZE, LAYERS),
            "^layer 'middle' has 1 maps, and 'fine' has 2$",
        ),
        (
            lambda: combine({"fine": MAPS["fine"] * torch.nan}, SIZE, LAYERS),
            "^expected finite maps, got 5 NaN or infinite values at layer 'fine'$",
        ),
        (
            lambda: combine(MAPS, SIZE, LAYERS, weights={"fine": 1.0, "middle": 1.0}),
            "^weights and maps must have the same layers, and 'coarse' is in one of them only$",
        ),
        (lambda: combine(MAPS, SIZE, LAYERS, weights=dict.fromkeys(MAPS, 0.0)), "^all weights are 0"),
        (
            lambda: combine(MAPS, SIZE, LAYERS, weights={**dict.fromkeys(MAPS, 1.0), "fine": -1.0}),
            "^weight -1.0 of layer 'fine' is not 0 or more$",
        ),
        (
            lambda: combine(MAPS, SIZE, LAYERS, weights={**dict.fromkeys(MAPS, 1.0), "fine": torch.nan}),
            "^weight nan of layer 'fine' is not 0 or more$",
        ),
        (lambda: combine(MAPS, SIZE, LAYERS, mode="cubic"), "^unknown mode 'cubic'"),
        (lambda: spread_weights({}), "^no maps given"),
        (lambda: localisation_weights({}, 0.5), r"^no layers given: pass \{layer: scores \(N,\)\}$"),
        (
            lambda: localisation_weights({"a": torch.ones(2, 3)}, 0.5),
            r"^expected finite scores \(N,\) of layer 'a', or their mean, got \(2, 3\) with a mean of 1$",
        ),
        (
            lambda: localisation_weights({"a": torch.tensor([1.0, torch.nan])}, 0.5),
            "^expected finite scores .* of nan$",
        ),
        (lambda: localisation_weights({"a": 0.6}, torch.inf), "^expected finite scores .* of chance, .* got inf$"),
    ],
)
def test_bad_input_is_one_line(call, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
