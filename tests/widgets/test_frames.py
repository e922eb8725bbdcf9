"""The pictures that sliders choose are those of plot.maps, colour for colour."""

from __future__ import annotations

import base64
import io
import zlib
from itertools import product

import numpy as np
import pytest
import torch
from browser import pixels, set_slider
from matplotlib import pyplot as plt
from PIL import Image

from smoothsal_lib import plot, widgets
from smoothsal_lib.widgets import explorer

ALT = "A map of random numbers, all of them above zero."
NOISE, LOOKS = ("0 %", "10 %"), ("1", "5", "20")


@pytest.fixture(autouse=True)
def without_a_window():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def grid(*size: int) -> dict[tuple[str, str], torch.Tensor]:
    return {key: torch.rand(size or (8, 8)) for key in product(NOISE, LOOKS)}


def shown(explorer, place: int) -> np.ndarray:
    """What the script paints for a picture, by its place among the combinations: (H, W, 3)."""
    picture = explorer.data["panels"][0]["pictures"][place]
    if isinstance(picture, str):
        kind, _, data = picture.partition(",")
        assert kind == "data:image/png;base64"
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    width, height, start, colours = picture
    values = np.frombuffer(zlib.decompress(base64.b64decode(explorer.data["bytes"])), np.uint8)
    lut = np.frombuffer(zlib.decompress(base64.b64decode(explorer.data["luts"][colours])), np.uint8).reshape(256, 4)
    return lut[values[start : start + width * height]].reshape(height, width, 4)[..., :3]


def labels(explorer) -> dict[str, list[str]]:
    return {axis["name"]: axis["labels"] for axis in explorer.data["axes"]}


def drawn_by_plot(maps, **options) -> list[np.ndarray]:
    figure = plot.maps(maps, **options)
    images = [ax.images[0] for ax in figure.axes if ax.images]
    return [image.to_rgba(image.get_array(), bytes=True)[..., :3] for image in images[: len(maps)]]


@pytest.mark.parametrize("low", [0.0, -0.5])
@pytest.mark.parametrize("shared_scale", [True, False])
def test_colours_are_those_of_plot(low, shared_scale):
    maps = {label: scale * (torch.rand(12, 9) + low) for label, scale in zip(("a", "b", "c"), (1, 3, 10), strict=True)}
    found = widgets.frames(maps, ["layer"], alt=ALT, percentile=95, shared_scale=shared_scale)
    for index, wanted in enumerate(drawn_by_plot(maps, percentile=95, shared_scale=shared_scale)):
        np.testing.assert_array_equal(shown(found, index), wanted)
    assert "95th percentile" in found.data["note"]
    assert ("own scale" in found.data["note"]) is not shared_scale


def test_the_browser_shows_the_picture_the_sliders_stand_at(visit, tmp_path):
    maps = grid()
    path = tmp_path / "frames.html"
    widgets.frames(maps, ("noise", "looks"), alt=ALT).save(path)
    wanted = dict(zip(maps, drawn_by_plot({str(key): values for key, values in maps.items()}), strict=True))
    with visit() as visited:
        page = visited.open(path)
        for i, j in [(0, 0), (1, 2), (0, 1), (1, 0)]:
            set_slider(page, "noise", i)
            set_slider(page, "looks", j)
            np.testing.assert_array_equal(pixels(page.locator(".sal-view canvas"))[..., :3], wanted[NOISE[i], LOOKS[j]])
            position = f"noise {NOISE[i]}, looks {LOOKS[j]}"
            assert page.locator(".sal-view").get_attribute("aria-label") == f"{ALT} {position}"
            assert page.get_by_text(position, exact=True).is_visible()


def test_pictures_in_colours_are_shown_as_they_are(visit, tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    found = widgets.frames({"photo": photo, "7": torch.rand(7, 7), "3": torch.rand(1, 3, 3)}, ["layer"], alt=ALT)
    np.testing.assert_array_equal(shown(found, 0), photo)
    assert shown(found, 2).shape == (3, 3, 3)
    assert "one scale for maps of one size" in found.data["note"]
    path = tmp_path / "frames.html"
    found.save(path)
    with visit() as visited:
        page = visited.open(path)
        image, canvas = page.locator(".sal-view img"), page.locator(".sal-view canvas")
        assert image.is_visible() and not canvas.is_visible()
        assert image.evaluate("image => image.naturalWidth") == 5
        set_slider(page, "layer", 1)
        assert canvas.is_visible() and not image.is_visible()
    assert widgets.frames({"a": photo, "b": torch.from_numpy(photo)}, ["layer"], alt=ALT).data["note"] == ""


def test_the_first_labels_come_first_whatever_the_order_of_the_rest():
    maps = {("b", "1"): torch.ones(4, 4), ("a", "2"): torch.ones(4, 4)}
    maps |= {("b", "2"): torch.ones(4, 4), ("a", "1"): torch.ones(4, 4)}
    assert labels(widgets.frames(maps, ("x", "y"), alt=ALT)) == {"x": ["b", "a"], "y": ["1", "2"]}


def test_three_sliders_reach_every_combination():
    keys = list(product("ab", "12", "xyz"))
    maps = {key: torch.full((2, 2), float(i)) for i, key in enumerate(keys)}
    found = widgets.frames(maps, ("p", "q", "r"), alt=ALT, percentile=100)
    for i in range(len(keys)):
        np.testing.assert_array_equal(
            shown(found, i), drawn_by_plot({"m": maps[keys[i]], "n": maps[keys[-1]]}, percentile=100)[0]
        )


def test_what_takes_too_much_room_loses_colours_first_and_pixels_then(monkeypatch):
    maps = {"a": torch.rand(128, 128), "b": 2 * torch.rand(128, 128), "small": torch.rand(16, 16)}
    whole = widgets.frames(maps, ["map"], alt=ALT, percentile=100)
    size = len(whole.html.encode())
    monkeypatch.setattr(explorer, "SIZE_LIMIT", size - 1)
    fewer = widgets.frames(maps, ["map"], alt=ALT, percentile=100)
    assert shown(fewer, 0).shape == (128, 128, 3) and "drawn in 64 colours" in fewer.data["note"]
    assert len(np.unique(shown(fewer, 1).reshape(-1, 3), axis=0)) <= 65
    difference = np.abs(shown(fewer, 1).astype(int) - shown(whole, 1))
    assert 0 < difference.max() <= 12
    small = len(fewer.html.encode())
    monkeypatch.setattr(explorer, "SIZE_LIMIT", small // 2)
    means = widgets.frames(maps, ["map"], alt=ALT, percentile=100)
    assert shown(means, 0).shape == (64, 64, 3) and shown(means, 2).shape == (16, 16, 3)
    assert "mean of up to 2 × 2" in means.data["note"]
    assert len(means.html.encode()) <= small // 2
    monkeypatch.setattr(explorer, "SIZE_LIMIT", 1_000)
    with pytest.raises(ValueError, match=r"3 pictures take more than 1,000 bytes even .*leave out some labels"):
        widgets.frames(maps, ["map"], alt=ALT)


def test_with_few_colours_zero_stays_white(monkeypatch):
    maps = {"a": torch.randn(64, 64), "b": torch.randn(64, 64)}
    maps["a"][0, 0] = 0
    whole = widgets.frames(maps, ["map"], alt=ALT)
    monkeypatch.setattr(explorer, "SIZE_LIMIT", len(whole.html.encode()) - 1)
    fewer = widgets.frames(maps, ["map"], alt=ALT)
    assert "colours" in fewer.data["note"]
    np.testing.assert_array_equal(shown(fewer, 0)[0, 0], shown(whole, 0)[0, 0])


def test_labels_are_text_and_not_html(visit, tmp_path):
    path = tmp_path / "frames.html"
    widgets.frames({"<b>": torch.rand(4, 4), '"&"': torch.rand(4, 4)}, ["n < m"], alt=f'{ALT} "quoted" <i>').save(path)
    with visit() as visited:
        page = visited.open(path)
        assert page.locator("output").inner_text() == "<b>"
        assert page.locator(".sal-view").get_attribute("aria-label") == f'{ALT} "quoted" <i> n < m <b>'


def test_maps_and_their_gradients_stay_as_they_were():
    map_ = torch.rand(4, 4, requires_grad=True)
    before = map_.detach().clone()
    widgets.frames({"a": map_, "b": 2 * map_}, ["map"], alt=ALT)
    assert torch.equal(map_, before) and map_.grad is None


M = torch.ones(4, 4)


@pytest.mark.parametrize(
    ("pictures", "names", "options", "message"),
    [
        ({"a": M, "b": M}, ["x"], {"alt": "A map"}, r"alt = 'A map': describe"),
        ({"a": M, "b": M}, [], {}, r"names = \(\): expected one to three"),
        ({"a": M, "b": M}, ["x", "x"], {}, r"one to three different names"),
        ({"a": M, "b": M}, ["x", "y"], {}, r"\('a',\) does not have one label.*\('x', 'y'\)"),
        ({("a", 1): M, ("a", 2): M}, ["x", "y"], {}, r"\('a', 1\) does not have one label, a text"),
        ({"a": M}, ["x"], {}, r"slider 'x' has the labels \['a'\]: expected two or more"),
        ({}, ["x"], {}, r"slider 'x' has the labels \[\]"),
        ({("a", "1"): M, ("b", "2"): M}, ["x", "y"], {}, r"no picture for \('a', '2'\), \('b', '1'\)"),
        ({"a": M, "b": torch.ones(3, 4, 4)}, ["x"], {}, r"'b' has the shape \(3, 4, 4\).*float32.*uint8"),
        ({"a": M, "b": torch.ones(1, 3, 4, 4)}, ["x"], {}, r"'b' has the shape \(1, 3, 4, 4\).*saliency_map"),
        ({"a": M, "b": M * torch.nan}, ["x"], {}, r"'b' holds NaN"),
        ({"a": M, "b": M}, ["x"], {"percentile": 0}, r"percentile = 0"),
    ],
)
def test_bad_input_is_named(pictures, names, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        widgets.frames(pictures, names, **({"alt": ALT} | options))
    assert "\n" not in str(caught.value)
