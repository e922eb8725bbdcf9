"""The site has its pages, its links lead somewhere, its pictures have words, and it needs no network."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import build
import pytest
from bs4 import BeautifulSoup

CHAPTERS = build.notebooks()
REFERENCES = {"a": "href", "img": "src", "script": "src", "link": "href"}


@cache
def soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text("utf-8"), "html.parser")


@cache
def anchors(page: Path) -> frozenset[str]:
    return frozenset(tag["id"] for tag in soup(page).find_all(id=True))


def html_pages(site: Path) -> list[Path]:
    return [site / f"{name}.html" for name in build.pages()]


def test_every_page_is_there(site):
    assert (site / "index.html").is_file()
    assert [page.name for page in html_pages(site) if not page.is_file()] == []


def test_internal_links_and_pictures_exist(site):
    broken = []
    for page in html_pages(site):
        for tag, attribute in REFERENCES.items():
            for element in soup(page).find_all(tag, **{attribute: True}):
                parts = urlsplit(element[attribute])
                if parts.scheme or parts.netloc:
                    continue
                target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
                if not target.is_file():
                    broken.append(f"{page.name}: {element[attribute]}")
                elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in anchors(target):
                    broken.append(f"{page.name}: no anchor {element[attribute]}")
    assert broken == []


def test_every_picture_has_words(site):
    wordless = []
    for page in html_pages(site):
        for image in soup(page).select("article img"):
            alt = image.get("alt", "").strip()
            if len(alt) < build.ALT_LENGTH or alt.startswith("_images"):
                wordless.append(f"{page.name}: {image['src']}")
    assert wordless == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_stored_picture_is_shown_as_a_figure_with_a_caption(name, site):
    article = soup(site / f"{name}.html").select_one("article")
    notebook = build.nbformat.read(build.BOOK / f"{name}.ipynb", 4)
    drawn = sum("image/png" in output.get("data", {}) for cell in build.own_code(notebook) for output in cell.outputs)
    assert len(article.select("figure figcaption")) >= drawn


def test_cells_for_colab_are_not_on_the_page(site):
    assert [page.name for page in html_pages(site) if "google.colab" in soup(page).get_text()] == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_page_opens_its_chapter_in_colab(name, site):
    links = [a["href"] for a in soup(site / f"{name}.html").find_all("a", href=True)]
    assert build.repository().colab(name) in links


def test_no_page_shows_a_traceback(site):
    first_line = "Traceback (most recent call last)"
    assert [page.name for page in html_pages(site) if first_line in soup(page).get_text()] == []


def test_pages_load_nothing_from_the_network(site):
    remote = []
    for page in html_pages(site):
        loaded = [tag.get("src") for tag in soup(page).select("script[src], img[src]")]
        loaded += [tag["href"] for tag in soup(page).select("link[rel=stylesheet]")]
        remote += [f"{page.name}: {address}" for address in loaded if urlsplit(address).netloc]
    assert remote == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_formulas_are_drawn_in_a_browser_without_network(name, site, visit):
    if "$" not in (build.SOURCES / f"{name}.md").read_text("utf-8"):
        pytest.skip("no formula in this chapter")
    with visit() as visited:
        page = visited.open(site / f"{name}.html")
        page.evaluate("MathJax.startup.promise")
        assert page.locator("mjx-container").count() > 0
        errors = page.locator("mjx-merror, [data-mjx-error]").all()
        assert [error.get_attribute("data-mjx-error") for error in errors] == []
