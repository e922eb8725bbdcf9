from __future__ import annotations

import base64
import importlib
import io
import sys
from itertools import product

import ipywidgets
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from ipywidgets.widgets.widget import _instances as instances
from matplotlib import pyplot as plt
from PIL import Image

from smoothsal_lib import plot, widgets

ALT = "A map of random numbers, all of them above zero."
NOISE, LOOKS = ("0 %", "10 %"), ("1", "5", "20")


@pytest.fixture(autouse=True)
def without_a_window():
    plt.switch_backend("agg")
    torch.manual_seed(0)
    yield
    plt.close("all")


def grid(*size: int) -> dict[tuple[str, str], torch.Tensor]:
    return {key: torch.rand(size or (8, 8)) for key in product(NOISE, LOOKS)}


def move(box, *positions: int) -> None:
    """What a browser does when the sliders are moved: it sets their index and follows the links."""
    for slider, index in zip(box.children, positions, strict=False):
        slider.index = index
        for link in list(instances.values()):
            if isinstance(link, ipywidgets.widgets.widget_link.DirectionalLink) and link.source[0] is slider:
                setattr(link.target[0], link.target[1], getattr(*link.source))


def element(box) -> BeautifulSoup:
    """What the widget shows between its sliders and its note."""
    shown = next(child for child in box.children if isinstance(child, ipywidgets.Stack | ipywidgets.HTML))
    while isinstance(shown, ipywidgets.Stack):
        shown = shown.children[shown.selected_index]
    return BeautifulSoup(shown.value, "html.parser")


def picture(box) -> np.ndarray:
    kind, _, data = element(box).img["src"].partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def note(box) -> str:
    return BeautifulSoup(box.children[-1].value, "html.parser").get_text()


def drawn_by_plot(maps, **options) -> list[np.ndarray]:
    figure = plot.maps(maps, **options)
    images = [ax.images[0] for ax in figure.axes if ax.images]
    return [image.to_rgba(image.get_array(), bytes=True)[..., :3] for image in images[: len(maps)]]


@pytest.mark.parametrize("low", [0.0, -0.5])
@pytest.mark.parametrize("shared_scale", [True, False])
def test_colours_are_those_of_plot(low, shared_scale):
    maps = {label: scale * (torch.rand(12, 9) + low) for label, scale in zip(("a", "b", "c"), (1, 3, 10), strict=True)}
    box = widgets.frames(maps, ["layer"], alt=ALT, percentile=95, shared_scale=shared_scale)
    for index, wanted in enumerate(drawn_by_plot(maps, percentile=95, shared_scale=shared_scale)):
        move(box, index)
        np.testing.assert_array_equal(picture(box), wanted)
    assert "95th percentile" in note(box)
    assert ("own scale" in note(box)) is not shared_scale


def test_two_sliders_reach_every_picture_and_say_which_it_is():
    maps = grid()
    box = widgets.frames(maps, ("noise", "looks"), alt=ALT)
    assert [slider.description for slider in box.children[:2]] == ["noise", "looks"]
    assert [slider.options for slider in box.children[:2]] == [NOISE, LOOKS]
    wanted = dict(zip(maps, drawn_by_plot({str(key): values for key, values in maps.items()}), strict=True))
    for i, j in [(0, 0), (1, 2), (0, 1), (1, 0), (0, 2), (1, 1)]:
        move(box, i, j)
        np.testing.assert_array_equal(picture(box), wanted[NOISE[i], LOOKS[j]])
        position = f"noise {NOISE[i]}, looks {LOOKS[j]}"
        assert element(box).get_text() == position
        assert element(box).img["alt"] == f"{ALT} {position}"


def test_the_first_labels_come_first_whatever_the_order_of_the_rest():
    maps = {("b", "1"): torch.ones(4, 4), ("a", "2"): torch.ones(4, 4)}
    maps |= {("b", "2"): torch.ones(4, 4), ("a", "1"): torch.ones(4, 4)}
    box = widgets.frames(maps, ("x", "y"), alt=ALT)
    assert [slider.options for slider in box.children[:2]] == [("b", "a"), ("1", "2")]


def test_colour_pictures_and_maps_of_several_sizes_stand_side_by_side():
    photo = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    box = widgets.frames({"photo": photo, "7": torch.rand(7, 7), "3": torch.rand(1, 3, 3)}, ["layer"], alt=ALT)
    np.testing.assert_array_equal(picture(box), photo)
    move(box, 2)
    assert picture(box).shape == (3, 3, 3)
    assert "one scale for maps of one size" in note(box)
    coloured = widgets.frames({"a": photo, "b": torch.from_numpy(photo)}, ["layer"], alt=ALT)
    assert len(coloured.children) == 2  # nothing to say of scales


def test_pictures_that_take_too_much_room_become_means_in_the_colours_of_the_whole(monkeypatch):
    maps = {"a": torch.rand(128, 128), "b": 2 * torch.rand(128, 128), "small": torch.rand(16, 16)}
    alone = widgets.frames(maps, ["map"], alt=ALT, percentile=100)
    assert picture(alone).shape == (128, 128, 3)
    monkeypatch.setattr(widgets, "SIZE_LIMIT", 14_000)
    box = widgets.frames(maps, ["map"], alt=ALT, percentile=100)
    assert picture(box).shape == (64, 64, 3)
    assert "mean of up to 2 × 2" in note(box)
    means = maps["a"].double().reshape(64, 2, 64, 2).mean((1, 3)) / max(maps["a"].max(), maps["b"].max())
    wanted = plt.get_cmap(plot.UNSIGNED)(means.numpy(), bytes=True)[..., :3]
    difference = np.abs(picture(box).astype(int) - wanted)
    assert difference.max() <= 3  # one step of the colour map, where float32 rounds across it
    assert (difference == 0).mean() > 0.99
    move(box, 2)
    assert picture(box).shape == (16, 16, 3)  # has few pixels already
    monkeypatch.setattr(widgets, "SIZE_LIMIT", 1_000)
    with pytest.raises(ValueError, match=r"3 pictures take .* more than 1,000.*leave out some labels"):
        widgets.frames(maps, ["map"], alt=ALT)


def test_size_counts_base64(monkeypatch):
    maps = {"a": torch.rand(64, 64), "b": torch.rand(64, 64)}
    sources = []
    box = widgets.frames(maps, ["map"], alt=ALT)
    for index in range(2):
        move(box, index)
        sources.append(element(box).img["src"].partition(",")[2])
    monkeypatch.setattr(widgets, "SIZE_LIMIT", sum(map(len, sources)))
    assert picture(widgets.frames(maps, ["map"], alt=ALT)).shape == (64, 64, 3)
    monkeypatch.setattr(widgets, "SIZE_LIMIT", sum(map(len, sources)) - 1)
    assert picture(widgets.frames(maps, ["map"], alt=ALT)).shape == (32, 32, 3)


def test_a_picture_adds_one_model_to_the_notebook():
    def models(labels: int) -> int:
        before = len(instances)
        widgets.frames({str(i): torch.rand(4, 4) for i in range(labels)}, ["map"], alt=ALT)
        return len(instances) - before

    assert models(12) - models(2) == 10


def test_labels_are_text_and_not_html():
    box = widgets.frames({"<b>": torch.rand(4, 4), '"&"': torch.rand(4, 4)}, ["n < m"], alt=f'{ALT} "quoted" <i>')
    assert element(box).get_text() == "n < m <b>"
    assert element(box).img["alt"] == f'{ALT} "quoted" <i> n < m <b>'


def test_maps_and_their_gradients_stay_as_they_were():
    map_ = torch.rand(4, 4, requires_grad=True)
    before = map_.detach().clone()
    widgets.frames({"a": map_, "b": 2 * map_}, ["map"], alt=ALT)
    assert torch.equal(map_, before) and map_.grad is None


def test_without_stacks_python_replaces_the_picture(monkeypatch):
    maps = grid()
    with_stacks = widgets.frames(maps, ("noise", "looks"), alt=ALT)
    monkeypatch.delattr(ipywidgets, "Stack")
    box = widgets.frames(maps, ("noise", "looks"), alt=ALT)
    monkeypatch.undo()
    for i, j in [(0, 0), (1, 2), (1, 0)]:
        move(with_stacks, i, j)
        box.children[0].index, box.children[1].index = i, j
        np.testing.assert_array_equal(picture(box), picture(with_stacks))
        assert element(box) == element(with_stacks)


def test_missing_ipywidgets_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.delitem(sys.modules, "smoothsal_lib.widgets")
    with pytest.raises(ModuleNotFoundError, match="pip install ipywidgets"):
        importlib.import_module("smoothsal_lib.widgets")


M = torch.ones(4, 4)


@pytest.mark.parametrize(
    ("pictures", "names", "options", "message"),
    [
        ({"a": M, "b": M}, ["x"], {"alt": "A map"}, r"alt = 'A map': describe"),
        ({"a": M, "b": M}, [], {}, r"names = \(\): expected one or two"),
        ({"a": M, "b": M}, ["x", "x"], {}, r"one or two different names"),
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
