"""A page in headless Chromium that may reach nothing but this machine, and what went wrong on it."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright

BUILT = """() => [...document.querySelectorAll("[data-sal]")]
  .every((root) => root.querySelector("input, [role=alert]"))"""
HERE = ("data", "blob", "file", "about")  # schemes that ask nobody


@dataclass
class Visit:
    """A page, with the complaints of its scripts and the addresses it asked for beyond this machine."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def open(self, address: str | Path) -> Page:
        self.page.goto(address.as_uri() if isinstance(address, Path) else address)
        self.page.wait_for_function(BUILT)  # explorers unpack their data after the page has come
        return self.page

    def note(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in HERE and parts.hostname not in ("127.0.0.1", "localhost"):
            self.outside.append(address)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser. As long as it runs, nothing else in this thread may use asyncio."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@contextmanager
def visiting(browser: Browser, width: int = 1000) -> Iterator[Visit]:
    """A page of this width. At the end, nothing may have been complained of, and nobody outside asked."""
    visited = Visit(browser.new_page(viewport={"width": width, "height": 900}))
    page = visited.page
    page.set_default_timeout(20_000)
    page.on("console", lambda said: visited.complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: visited.complaints.append(str(error)))
    page.on("request", lambda request: visited.note(request.url))
    yield visited
    page.close()
    assert visited.complaints == []
    assert visited.outside == []


def pixels(canvas: Locator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(H, W, 4) what a canvas shows, at its own size."""
    address = canvas.evaluate("canvas => canvas.toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGBA"))


def set_slider(page: Page, name: str, position: int) -> None:
    """Move a slider as a reader without a mouse does: from its beginning, with the arrow keys."""
    slider = page.get_by_role("slider", name=name, exact=True)
    slider.focus()
    slider.press("Home")
    for _ in range(position):
        slider.press("ArrowRight")


def choose(page: Page, group: str, option: str) -> None:
    """Choose an option of a group by its label."""
    page.get_by_role("group", name=group, exact=True).get_by_text(option, exact=True).click()


def table(page: Page) -> list[list[str]]:
    """The rows of the first table, its head first."""
    return [row.locator("th, td").all_inner_texts() for row in page.locator("table").first.locator("tr").all()]
