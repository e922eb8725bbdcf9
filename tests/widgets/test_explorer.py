"""An explorer is the same HTML every time, keeps its data whatever they hold, and is shown where scripts run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup

import smoothsal_lib as sal
from smoothsal_lib import widgets
from smoothsal_lib.widgets.explorer import Explorer, address

ALT = "A map of random numbers, all of them above zero."
MAPS = {"a": torch.rand(8, 8), "b": torch.rand(8, 8)}


def test_the_same_data_are_the_same_bytes():
    assert widgets.frames(MAPS, ["map"], alt=ALT).html == widgets.frames(MAPS, ["map"], alt=ALT).html


def test_data_that_look_like_html_come_back_as_they_were():
    label = '<!--<script></script><script>alert("x")</script> & <b>'
    explorer = Explorer("choices", label, {"note": label})
    page = BeautifulSoup(explorer.html, "html.parser")
    assert json.loads(page.select_one('script[type="application/json"]').string) == {"note": label}
    assert page.select_one("[data-sal]")["aria-label"] == label
    assert len(page.select("script")) == 2


def test_in_print_it_is_one_line_of_text():
    text = repr(widgets.frames(MAPS, ["map"], alt=ALT))
    assert ALT in text and "\n" not in text and "nteractive" in text


def test_a_saved_page_stands_alone(tmp_path, visit):
    path = tmp_path / "explorer.html"
    widgets.frames(MAPS, ["map"], alt=ALT).save(path)
    with visit() as visited:
        page = visited.open(path)
        assert page.get_by_role("slider", name="map").count() == 1
        assert page.get_by_text("needs a page or a notebook").count() == 0


def test_the_same_explorer_twice_on_a_page_is_two_explorers(tmp_path, visit):
    path = tmp_path / "two.html"
    html = widgets.frames(MAPS, ["map"], alt=ALT).html
    path.write_text(f"<meta charset=utf-8>{html}{html}", "utf-8")
    with visit() as visited:
        page = visited.open(path)
        sliders = page.get_by_role("slider", name="map")
        assert sliders.count() == 2
        sliders.nth(1).press("ArrowRight")
        assert page.locator(".sal output").all_inner_texts() == ["a", "b"]


def test_the_keys_that_move_an_explorer_are_left_to_it_by_jupyterlab(tmp_path, visit):
    path = tmp_path / "keys.html"
    model, (x, photo) = sal.load_model("tiny_resnet"), sal.load_photo("chelsea", size=64)
    two = ["layer1.0", "layer1.1"]
    widgets.layer_explorer(model, x, photo, methods=["gradient"], fixes=[None], layers=two).save(path)
    with visit() as visited:
        page = visited.open(path)
        fields = page.locator(".sal input")
        fields.first.wait_for()
        assert {field.get_attribute("type") for field in fields.all()} == {"range", "radio"}
        assert page.locator(".sal input:not([data-lm-suppress-shortcuts])").count() == 0


def test_what_cannot_be_shown_is_said(tmp_path, visit):
    path = tmp_path / "broken.html"
    explorer = widgets.frames(MAPS, ["map"], alt=ALT)
    Explorer("choices", explorer.label, dict(explorer.data, bytes="AAAA")).save(path)
    with visit() as visited:
        page = visited.open(path)
        page.get_by_role("alert").wait_for()
        assert "cannot be shown" in page.get_by_role("alert").inner_text()


@pytest.mark.parametrize("width", [1000, 360])
def test_nothing_is_wider_than_the_screen(tmp_path, width, visit):
    path = tmp_path / "explorer.html"
    widgets.taps().save(path)
    with visit(width) as visited:
        page = visited.open(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_address_of_a_picture_is_its_file():
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    assert address(image).startswith("data:image/png;base64,")
    assert address(image, 80).startswith("data:image/jpeg;base64,")
    assert len(address(image, 20)) < len(address(image, 95))
