"""Figures say what is seen, explorers carry what they need and have a twin in print, quizzes answer every choice.

Read are the stored notebooks, which tests/book/test_execution.py compares with fresh ones, and the Markdown.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import build
import nbformat
import pytest
from bs4 import BeautifulSoup, Tag
from prose import plain

from smoothsal_lib.widgets.explorer import SIZE_LIMIT
from smoothsal_lib.widgets.quiz import SHORTEST

NOTEBOOKS = build.notebooks()
FEWEST_WORDS = 8  # with which a picture can be told
COMMON = 0.8  # of an alternative text's words, at most, are the caption's: each says something of its own
EMPTY_BEGINNING = re.compile(
    r"(an? |the )?(image|picture|figure|plot|graph|diagram|screenshot)s?( of| show|:|\.)", re.I
)
HEADING = re.compile(r"^#+ .*$", re.MULTILINE)
DIRECTIVE = re.compile(r"^:::\{figure\} *(\S+)\n((?::\w+:[^\n]*\n)*)(.*?)^:::$", re.MULTILINE | re.DOTALL)
REFERENCE = re.compile(r"\{(?:numref|ref)\}`(?:[^`<]*<)?([\w-]+)>?`")
LABEL = re.compile(r"^:(?:label|name): *([\w-]+)$|^\(([\w-]+)\)=$|\$\$ *\(([\w-]+)\)", re.MULTILINE)


@dataclass(frozen=True)
class Figure:
    """Something with a number: a picture or an explorer.

    Attributes:
        page: the page's name.
        section: the number of the heading above it, counted from the top of the page.
        told: whether a paragraph leads to it, with nothing but code between, or follows at once.
        explorer: its element; ``None`` for a picture.
    """

    page: str
    section: int
    name: str
    alt: str
    caption: str
    told: bool
    explorer: Tag | None = None

    def __str__(self) -> str:
        return f"{self.page}: {self.name or self.caption[:40]}"


def markdown() -> dict[str, str]:
    """The text of every page that people write, by the page's name."""
    sources = {path.stem: path for path in sorted(build.SOURCES.glob("*.md"))}
    pages = {name: build.BOOK / f"{name}.md" for name in build.pages() if name not in sources and name != "status"}
    return {name: path.read_text("utf-8") for name, path in (sources | pages).items()}


@cache
def stored(name: str) -> Any:
    return nbformat.read(build.BOOK / f"{name}.ipynb", 4)


def elements(cell: Any, selector: str) -> list[Tag]:
    """The elements that a cell's HTML outputs have."""
    html = ["".join(output.get("data", {}).get("text/html", "")) for output in cell.get("outputs", [])]
    return [found for text in html for found in BeautifulSoup(text, "html.parser").select(selector)]


def in_text(page: str, text: str, sections: int) -> Iterator[Figure]:
    """The figures of Markdown, which stands below so many headings."""
    for match in DIRECTIVE.finditer(text):
        options = dict(re.findall(r"^:(\w+): *(.*)$", match[2], re.MULTILINE))
        above = sections + len(HEADING.findall(text[: match.start()]))
        told = is_paragraph(text[: match.start()], -1) or is_paragraph(text[match.end() :], 0)
        yield Figure(page, above, options.get("name", ""), options.get("alt", ""), match[3].strip(), told)


def is_paragraph(text: str, block: int) -> bool:
    """Whether the first (0) or the last (-1) block of a text is one."""
    blocks = [part for part in re.split(r"\n\s*\n", text.strip()) if part]
    return bool(blocks) and re.match(r"#|:::|---|```|<|\|", blocks[block]) is None


def in_notebook(page: str, notebook: Any) -> Iterator[Figure]:
    """The figures of a notebook, in order; those with which cells end, and those of its Markdown."""
    sections, above = 0, ""  # what was written since the last figure
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            yield from in_text(page, cell.source, sections)
            sections += len(HEADING.findall(cell.source))
            above = cell.source
            continue
        explorers = elements(cell, ".sal[data-sal]")
        pictures = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
        settings = cell.metadata.get("mystnb", {})
        below = [other.source for other in notebook.cells[number + 1 : number + 2] if other.cell_type == "markdown"]
        told = is_paragraph(above, -1) or is_paragraph("".join(below), 0)
        caption, name = (settings.get("figure", {}).get(key, "") for key in ("caption", "name"))
        for explorer in explorers:
            yield Figure(page, sections, name, explorer.get("aria-label", ""), caption, told, explorer)
        if pictures:
            yield Figure(page, sections, name, settings.get("image", {}).get("alt", ""), caption, told)
        if explorers or pictures:
            above = ""


@cache
def figures() -> tuple[Figure, ...]:
    """All figures of the book."""
    found = [figure for name in NOTEBOOKS for figure in in_notebook(name, stored(name))]
    pages = {name: text for name, text in markdown().items() if name not in NOTEBOOKS}
    return (*found, *(figure for name, text in pages.items() for figure in in_text(name, text, 0)))


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{3,}", plain(text).lower()))


def complaints(figure: Figure, references: set[str]) -> list[str]:
    """What is wrong with what is said of a figure."""
    found = []
    if not figure.caption.strip():
        found.append("has no caption")
    if len(figure.alt.split()) < FEWEST_WORDS:
        found.append(f"is told in fewer than {FEWEST_WORDS} words: {figure.alt!r}")
    if EMPTY_BEGINNING.match(figure.alt):
        found.append(f"begins with what everybody knows: {figure.alt!r}")
    if re.search(r"\.(png|svg|jpe?g)\b|\bfig-|_images", figure.alt):
        found.append(f"is told by the name of a file or a figure: {figure.alt!r}")
    if words(figure.alt) and len(words(figure.alt) & words(figure.caption)) > COMMON * len(words(figure.alt)):
        found.append("says the same in the caption and to those who cannot see it")
    if not figure.told and figure.name not in references:
        found.append("is spoken of neither beside it nor by number")
    return [f"{figure} {what}" for what in found]


def test_every_figure_is_told():
    references = {name for text in markdown().values() for name in REFERENCE.findall(text)}
    assert [what for figure in figures() for what in complaints(figure, references)] == []


def test_every_reference_leads_to_a_figure():
    names = {figure.name for figure in figures()}
    referred = {name for text in markdown().values() for name in re.findall(r"\{numref\}`(?:[^`<]*<)?([\w-]+)", text)}
    assert referred - names == set()


def test_labels_are_unique_in_the_whole_book():
    labels = Counter(figure.name for figure in figures() if figure.name)
    for text in markdown().values():
        text = DIRECTIVE.sub("", text)
        labels.update("".join(label) for label in LABEL.findall(text))
    assert len(labels) > 100
    assert [label for label, count in labels.items() if count > 1] == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, ""),
        ({"caption": " "}, "no caption"),
        ({"alt": "A cat with a grid."}, "fewer than 8 words"),
        ({"alt": "Image of a cat that sits behind a fine grid of squares."}, "everybody knows"),
        ({"alt": "The figure shows a cat that sits behind a fine grid of squares."}, "everybody knows"),
        ({"alt": "See figures/cat.png, a cat that sits behind a grid of squares."}, "name of a file"),
        ({"alt": "The grid is as strong as the cat."}, "says the same"),
        ({"told": False}, "neither beside it nor by number"),
        ({"told": False, "name": "fig-dog"}, ""),
    ],
)
def test_what_is_missing_is_told(changed, told):
    alt = "A cat's outline under a fine pattern of bright and dark squares."
    given = {"name": "fig-cat", "alt": alt, "caption": "The grid is as strong as the cat.", "told": True}
    found = complaints(Figure("page", 1, **(given | changed)), {"fig-dog"})
    assert (told in "".join(found)) if told else found == []


def test_figures_of_a_page_are_found_with_their_section_and_their_text():
    text = "# One\n\n:::{figure} a.png\n:name: fig-a\n:alt: What is seen.\n\nWhat to see.\n:::\n\n## Two\n\nText.\n\n"
    first, second = in_text("page", text + text.replace("fig-a", "fig-b"), 3)
    assert first == Figure("page", 4, "fig-a", "What is seen.", "What to see.", False)
    assert (second.section, second.name, second.told) == (6, "fig-b", False)
    (third,) = in_text("page", "## Two\n\nText.\n\n" + text.partition("\n\n")[2], 0)
    assert (third.section, third.told) == (1, True)


@cache
def explorers() -> tuple[Figure, ...]:
    return tuple(figure for figure in figures() if figure.explorer is not None)


def test_explorers_are_found():
    assert {"intro", "03-checkerboard", "08-faithful", "10-smoothgrad", "13-slides"} <= {
        one.page for one in explorers()
    }


def test_explorers_carry_all_they_need_and_no_more_than_a_page_can_bear():
    for figure in explorers():
        (state,) = figure.explorer.select('script[type="application/json"]')
        assert json.loads(state.string), figure
        assert figure.explorer["role"] == "group", figure
        assert figure.name, f"{figure} has no name to refer to"
        assert len(str(figure.explorer).encode()) <= SIZE_LIMIT, figure
        assert figure.explorer.select_one("p").get_text(strip=True), f"{figure}: nothing to read where no script runs"
        addresses = [tag.get("src") or tag.get("href") for tag in figure.explorer.select("[src], [href]")]
        assert [address for address in addresses if not address.startswith("data:")] == [], figure


def test_beside_every_explorer_stands_a_figure_for_print():
    for figure in explorers():
        referred = set(REFERENCE.findall(figure.caption))
        pictures = [one for one in figures() if one.page == figure.page and one.explorer is None]
        assert [one for one in pictures if one.section == figure.section or one.name in referred], figure


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_ipywidget_is_shown_since_a_page_cannot_move_it(name):
    kinds = [
        kind for cell in stored(name).cells for output in cell.get("outputs", []) for kind in output.get("data", {})
    ]
    assert [kind for kind in kinds if "widget" in kind] == []


@pytest.mark.parametrize("name", build.chapters())
def test_every_option_of_a_quiz_answers_back(name):
    quizzes = [quiz for cell in stored(name).cells for quiz in elements(cell, ".sal-quiz")]
    assert 3 <= len(quizzes) <= 5
    for quiz in quizzes:
        options = quiz.select("details")
        verdicts = [option.select_one("p.sal-right, p.sal-wrong") for option in options]
        assert len(options) >= 3 and all(option.select_one("summary").get_text(strip=True) for option in options)
        assert all(len(verdict.get_text()) >= SHORTEST for verdict in verdicts)
        right = [verdict for verdict in verdicts if "sal-right" in verdict["class"]]
        assert 1 <= len(right) < len(options), quiz.select_one("p").get_text()


def test_right_answers_stand_in_no_fixed_place():
    places = Counter()
    for name in build.chapters():
        for quiz in (quiz for cell in stored(name).cells for quiz in elements(cell, ".sal-quiz")):
            right = [option.select_one("p.sal-right") is not None for option in quiz.select("details")]
            places.update(i for i, yes in enumerate(right) if yes)
    assert max(places.values()) < 0.6 * places.total()


def test_pictures_of_the_markdown_exist():
    listed = [(name, path) for name, text in markdown().items() for path, *_ in DIRECTIVE.findall(text)]
    assert listed
    assert [found for found in listed if not (build.BOOK / Path(found[1])).is_file()] == []
