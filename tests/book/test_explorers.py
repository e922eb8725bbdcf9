"""Every explorer of the built site is moved in a real browser, as by a reader without a kernel or a network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import build
import pytest
from bs4 import BeautifulSoup

PHONE, DESKTOP = 390, 1300
# What an explorer shows: its canvases, its drawings, its tables and texts, without the controls that are moved.
SHOWN = """root => [
  ...[...root.querySelectorAll('canvas')].map(c => c.width && c.height ? c.toDataURL() : ''),
  ...[...root.querySelectorAll('svg, .sal-view img')].map(e => e.outerHTML),
].join()"""
SAID = """root => [...root.querySelectorAll("table, p, [aria-label]")]
  .map(e => e.getAttribute("aria-label") + e.innerText).join()"""


def pages_with(selector: str, site: Path) -> list[str]:
    found = []
    for name in build.pages():
        page = site / f"{name}.html"
        if page.is_file() and BeautifulSoup(page.read_text("utf-8"), "html.parser").select(selector):
            found.append(name)
    return found


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing: what is served is not news."""


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def state(root) -> tuple[str, str]:
    return tuple(hashlib.sha256(root.evaluate(script).encode()).hexdigest() for script in (SHOWN, SAID))


def test_the_book_has_the_explorers_it_promises(site):
    kinds = {}
    for name in pages_with("[data-sal]", site):
        page = BeautifulSoup((site / f"{name}.html").read_text("utf-8"), "html.parser")
        kinds[name] = [root["aria-label"].partition(":")[0] for root in page.select("[data-sal]")]
    assert "Layer explorer" in kinds["intro"]
    assert "Parity classes" in kinds["03-checkerboard"]
    assert any(kind.startswith("Insertion and deletion") for kind in kinds["08-faithful"])
    assert len(kinds["10-smoothgrad"]) == 1
    assert any(kind.startswith("Nuclei ranked by saliency") for kind in kinds["13-slides"])


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_every_control_of_every_explorer_changes_what_is_shown(served, site, visit, width):
    for name in pages_with("[data-sal]", site):
        with visit(width) as visited:
            page = visited.open(f"{served}/{name}.html")
            for root in page.locator("[data-sal]").all():
                root.locator("input").first.wait_for(state="attached")
                assert root.get_by_role("alert").count() == 0
                for slider in root.locator("input[type=range]").all():
                    before = state(root)
                    slider.focus()
                    slider.press("Home" if slider.input_value() == slider.get_attribute("max") else "ArrowRight")
                    after = state(root)
                    assert before[0] != after[0], f"{name}: {slider.get_attribute('aria-label')} changes no picture"
                    assert before[1] != after[1], f"{name}: {slider.get_attribute('aria-label')} changes no text"
                for group in root.locator("fieldset").all():
                    before = state(root)
                    group.locator("input:checked").focus()
                    page.keyboard.press("ArrowRight")
                    label = group.locator("legend").inner_text()
                    assert state(root) != before, f"{name}: {label} changes nothing"
                box = root.bounding_box()
                assert box is not None and box["width"] <= width


def test_every_control_has_a_name(served, site, visit):
    for name in pages_with("[data-sal]", site):
        with visit() as visited:
            page = visited.open(f"{served}/{name}.html")
            for root in page.locator("[data-sal]").all():
                root.locator("input").first.wait_for(state="attached")
                assert len(root.get_attribute("aria-label")) > 20
                assert all(slider.get_attribute("aria-label") for slider in root.locator("input[type=range]").all())
                assert all(slider.get_attribute("aria-valuetext") for slider in root.locator("input[type=range]").all())
                assert all(group.locator("legend").inner_text() for group in root.locator("fieldset").all())
                assert all(view.get_attribute("aria-label") for view in root.locator("[role=img]").all())


def test_every_quiz_answers(served, site, visit):
    names = pages_with(".sal-quiz", site)
    assert names
    for name in names:
        with visit() as visited:
            page = visited.open(f"{served}/{name}.html")
            for summary in page.locator(".sal-quiz summary").all():
                answer = summary.locator("xpath=following-sibling::p")
                assert not answer.is_visible()
                summary.press("Enter")
                assert answer.is_visible() and answer.inner_text().startswith(("Right.", "No."))
            assert page.locator(".sal-quiz mjx-merror").count() == 0


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_no_page_is_wider_than_the_screen(served, visit, width):
    wide = []
    with visit(width) as visited:
        for name in build.pages():
            page = visited.open(f"{served}/{name}.html")
            across = page.evaluate("document.querySelector('article, main').scrollWidth")
            if across > width:
                wide.append(f"{name}: {across} px")
    assert wide == []
