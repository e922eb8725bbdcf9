"""The colours of figures and explorers say the same to colour-blind readers, and text on them can be read.

How a colour looks without one kind of cones is computed as by Machado, Oliveira and Fernandes, "A physiologically-based
model for simulation of color vision deficiency", IEEE Transactions on Visualization and Computer Graphics 15(6), 2009:
their matrices for the whole deficiency (severity 1), applied to linear RGB. Differences between colours are CIEDE2000,
of which about 1 can just be noticed; contrasts are those of WCAG 2, which asks for 4.5 for text and 3 for other marks.
"""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from browser import set_slider
from matplotlib.colors import to_rgb
from skimage.color import deltaE_ciede2000, rgb2lab

from smoothsal_lib import plot, widgets

READERS = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
SEQUENTIAL = (plot.UNSIGNED, plot.OVERLAID, plot.SPECTRAL, plot.COUNTS)
STEPS = 255  # of a scale: an odd number, so that it has a middle, and no more than it has colours
APART = 10  # lines and areas that stand for different things
TEXT, MARK = 4.5, 3.0
WIDGETS = Path(widgets.__file__).parent
SETTINGS = mpl.rc_params_from_file(plot.STYLE, use_default_template=False)
LINES = SETTINGS["axes.prop_cycle"].by_key()["color"]


def linear(rgb):
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def seen(rgb, reader: str):
    """(..., 3) RGB, as someone sees it who has all cones and to whom it looks as ``rgb`` looks to the reader."""
    mixed = np.clip(linear(np.asarray(rgb)) @ np.transpose(READERS[reader]), 0, 1)
    return np.where(mixed <= 0.0031308, 12.92 * mixed, 1.055 * mixed ** (1 / 2.4) - 0.055)


def scale(name: str, reader: str):
    """(STEPS, 3) a colour map in CIELAB."""
    return rgb2lab(seen(mpl.colormaps[name](np.linspace(0, 1, STEPS))[:, :3], reader))


def difference(one: str, other: str, reader: str) -> float:
    return float(deltaE_ciede2000(*(rgb2lab(seen(to_rgb(colour), reader)) for colour in (one, other))))


def contrast(one, other) -> float:
    luminances = [float(linear(np.array(to_rgb(colour))) @ (0.2126, 0.7152, 0.0722)) for colour in (one, other)]
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


def colours_in(file: str) -> list[str]:
    """The colours that a script or a style sheet of the explorers names."""
    return re.findall(r"#[0-9a-f]{6}\b|#[0-9a-f]{3}\b", (WIDGETS / file).read_text("utf-8"))


def test_simulation_keeps_greys_and_takes_red_from_green():
    greys = np.linspace(0, 1, 11)[:, None].repeat(3, 1)
    for reader in READERS:
        np.testing.assert_allclose(seen(greys, reader), greys, atol=1e-5)
    red_and_green = ("#b95f00", "#738500")  # of one lightness to those without L cones
    assert difference(*red_and_green, "all cones") > 3 * difference(*red_and_green, "deuteranopia")
    assert difference("#0072b2", "#009e73", "all cones") > 2 * difference("#0072b2", "#009e73", "tritanopia")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", SEQUENTIAL)
def test_sequential_scales_grow_darker_or_lighter_all_along(name, reader):
    lightness = scale(name, reader)[:, 0]
    direction = np.sign(lightness[-1] - lightness[0])
    assert (direction * np.diff(lightness) > 0).all()
    tenths = lightness[np.linspace(0, STEPS - 1, 11).round().astype(int)]
    assert np.abs(np.diff(tenths)).min() > 2
    assert abs(lightness[-1] - lightness[0]) > 60


@pytest.mark.parametrize("reader", READERS)
def test_signs_differ_and_zero_is_the_lightest(reader):
    colours = scale(plot.SIGNED, reader)
    middle = STEPS // 2
    lightness = colours[:, 0]
    assert lightness[middle] > lightness.max() - 0.1
    assert (np.diff(lightness[: middle + 1]) > -0.1).all() and (np.diff(lightness[middle:]) < 0.1).all()
    assert np.hypot(*colours[middle, 1:]) < 2, "zero is grey"
    negative, positive = colours[middle::-1], colours[middle:]
    magnitude = np.linspace(0, 1, middle + 1)
    between_signs = deltaE_ciede2000(negative, positive)
    assert between_signs[magnitude >= 0.1].min() > 8
    assert between_signs[magnitude >= 0.25].min() > 20
    for arm in (negative, positive):
        assert deltaE_ciede2000(arm[magnitude >= 0.25], colours[[middle]]).min() > 9, "unlike zero"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("one", "other"), list(combinations(LINES, 2)))
def test_lines_are_told_apart_by_colour(one, other, reader):
    assert difference(one, other, reader) > APART


def test_lines_are_told_apart_by_marker_too():
    assert len(set(plot.MARKERS)) == len(plot.MARKERS) >= len(LINES)


def test_explorers_draw_their_lines_in_the_colours_of_the_figures():
    listed = re.search(r"const colours = \[(.*?)\]", (WIDGETS / "player.js").read_text("utf-8"))
    assert re.findall(r"#\w{6}", listed[1]) == ["#" + colour.lstrip("#").lower() for colour in LINES]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("file", "one", "other"),
    [
        ("taps.js", "#d55e00", "#e9e9ee"),  # taps that are met, and others
        ("nuclei.js", "#d55e00", "#0072b2"),  # the nucleus that was added last, and those before
        ("quiz.py", "#009e73", "#d55e00"),  # right and wrong, which words say as well
    ],
)
def test_what_an_explorer_marks_differs_from_the_rest(file, one, other, reader):
    assert {one, other} <= set(colours_in(file))
    assert difference(one, other, reader) > APART


@pytest.mark.parametrize("name", ["text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"])
def test_text_of_figures_can_be_read_on_their_paper(name):
    papers = {SETTINGS["figure.facecolor"], SETTINGS["axes.facecolor"]}
    assert min(contrast(SETTINGS[name], paper) for paper in papers) >= TEXT


@pytest.mark.parametrize("case", [(1, 1), (2, 1), (3, 2), (3, 1), (5, 2), (5, 1), (7, 2), (7, 1)])
def test_counts_can_be_read_on_their_squares(case):
    figure = plot.taps([(1, 1), case])
    for ax in figure.axes:
        (image,) = ax.images
        for text in ax.texts:
            column, row = (int(place) for place in text.get_position())
            square = image.cmap(image.norm(image.get_array()[row, column]))
            assert contrast(text.get_color(), square) >= TEXT, text.get_text()


def test_counts_and_taps_of_the_explorer_can_be_read(visit, tmp_path):
    pairs = """[...document.querySelectorAll('svg g')].map(
      (g) => ['rect', 'text'].map((part) => getComputedStyle(g.querySelector(part)).fill))"""
    path = tmp_path / "taps.html"
    widgets.taps().save(path)
    found = set()
    with visit() as visited:
        page = visited.open(path)
        for kernel in range(7):
            set_slider(page, "kernel", kernel)
            found |= {tuple(pair) for pair in page.evaluate(pairs)}
    assert len(found) > 6
    for pair in found:
        square, text = (np.array(re.findall(r"\d+", fill), float) / 255 for fill in pair)
        assert contrast(square, text) >= TEXT, pair


def test_controls_can_be_seen_and_their_text_be_read_on_white_and_on_dark_pages():
    style = (WIDGETS / "explorer.css").read_text("utf-8")
    chosen = re.search(r"input:checked\) \{ background: (#\w+);.* color: (#\w+);", style)
    assert contrast(chosen[1], chosen[2]) >= TEXT
    marks = [*re.findall(r"outline: 3px solid (#\w+)", style), *re.findall(r"border: 1px solid (#\w{6});", style)]
    assert len(set(marks)) > 1
    for page in ("#ffffff", "#121212"):  # the second: the theme's dark mode
        assert min(contrast(mark, page) for mark in (*marks, chosen[1])) >= MARK
