"""Every chapter gives a deck in which nothing is missing, nothing overflows, and nothing is asked of the network."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

import build
import nbformat
import pytest
import slides
from bs4 import BeautifulSoup

from smoothsal_lib.widgets import quiz, taps

CHAPTERS = build.chapters()
SMALLEST = 15  # pixels of a slide 720 pixels high: letters that the last row reads
# Every slide at once, as reveal.js shows it: with what appears on a key.
SHOW_ALL = (
    ".reveal .slides section { display: block !important; visibility: visible !important; }"
    ".reveal .fragment { visibility: visible !important; }"
)
# What a slide holds beyond its edges: [title, what, pixels]. MathJax clips a copy for screen readers, which is no text.
OVERFLOW = """() => [...document.querySelectorAll(".page")].flatMap((page) => {
  const box = page.getBoundingClientRect(), scale = box.height / 720, title = page.querySelector("h2").textContent;
  const parts = [...page.querySelectorAll("*")].filter((part) =>
    !part.closest("details.code") && (part.tagName === "MJX-CONTAINER" || !part.closest("mjx-container")));
  const beyond = parts.map((part) => [part, part.getBoundingClientRect()]).filter(([, r]) => r.width > 0 &&
    (r.bottom - box.top > 716 * scale || r.right - box.left > 1270 * scale || r.left < box.left || r.top < box.top));
  const cut = parts.filter((part) => part.tagName === "PRE" && part.scrollWidth > part.clientWidth + 1);
  return [...beyond.map(([part]) => part), ...cut].map((part) => `${title}: ${part.tagName} ${part.className}`);
})"""
# What cannot be read from the last row: letters that are too small, pictures neither wide nor high.
TOO_SMALL = f"""() => [...document.querySelectorAll(".page")].flatMap((page) => {{
  const title = page.querySelector("h2").textContent, scale = page.getBoundingClientRect().height / 720;
  const letters = [...page.querySelectorAll("p, li, td, figcaption, pre, .equation")]
    .filter((part) => !part.closest(".live") && parseFloat(getComputedStyle(part).fontSize) < {SMALLEST});
  const pictures = [...page.querySelectorAll("figure > img")].filter((img) => {{
    const box = img.getBoundingClientRect();
    const of = Math.min(box.width / img.naturalWidth, box.height / img.naturalHeight);
    return of * img.naturalWidth / scale < 900 && of * img.naturalHeight / scale < 330;
  }});
  return [...letters, ...pictures].map((part) => `${{title}}: ${{part.tagName}} ${{part.className}}`);
}})"""


def executed_notebook(name: str):
    return nbformat.read(build.BOOK / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module")
def decks(tmp_path_factory) -> Path:
    """The folder with the decks of all chapters, made from the stored notebooks."""
    site = tmp_path_factory.mktemp("site")
    slides.write(CHAPTERS, site)
    return site / "slides"


@pytest.fixture(scope="module")
def visit(visit) -> partial:
    """The same, as wide as a slide."""
    if slides.fetched() is None:
        pytest.skip("no npm on this machine, or it cannot reach its registry")
    return partial(visit, 1280)


def soup(decks: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((decks / f"{name}.html").read_text("utf-8"), "html.parser")


def opened(visited, path: Path):
    """The page, once reveal.js has begun."""
    page = visited.open(path)
    page.wait_for_selector(".reveal.ready")
    return page


@pytest.mark.parametrize("name", CHAPTERS)
def test_deck_begins_with_title_question_and_objectives(name, decks):
    first = soup(decks, name).select_one(".page")
    assert first.h2.get_text() == build.title(name)
    assert first.select_one(".ask").get_text().strip().endswith("?")
    assert len(first.select(".objectives li")) >= 3
    assert first.select_one(f'a[href="../{name}.html"]')


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_section_has_slides_and_prose_becomes_notes(name, decks):
    deck, source = soup(decks, name), (build.SOURCES / f"{name}.md").read_text("utf-8")
    outside = re.sub(r"^```.*?^```$", "", source, flags=re.MULTILINE | re.DOTALL)
    shown = {re.sub(r"\W", "", h2.get_text()) for h2 in deck.select("h2, .above")}
    for heading in re.findall(r"^##+ (.+)$", outside, re.MULTILINE):
        if heading not in ("Quiz", "Exercises", "Further reading"):
            assert re.sub(r"\W|\*", "", heading) in shown
    # Half of the words at least: equations and exercises are on the slides instead.
    assert len(deck.select_one("body").get_text().split()) > 0.5 * build.words(name)
    assert [page for page in deck.select(".page") if len(page.get_text(strip=True)) == len(page.h2.get_text())] == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_figure_is_on_exactly_one_slide(name, decks):
    deck, notebook = soup(decks, name), executed_notebook(name)
    drawn = [
        out.data["image/png"]
        for cell in build.own_code(notebook)
        for out in cell.outputs
        if "image/png" in out.get("data", {})
    ]
    on_slides = [img["src"] for img in deck.select("section .page figure > img")]
    assert sorted(src.partition(",")[2] for src in on_slides if "image/png" in src) == sorted(
        "".join(picture.split()) for picture in drawn
    )
    chapter = CHAPTERS.index(name) + 1
    numbers = [b.get_text() for b in deck.select("figcaption b") if b.get_text().startswith("Fig. ")]
    wanted = [number for number in slides.labels().values() if number.startswith(f"{chapter}.")]
    assert numbers == [f"Fig. {chapter}.{i + 1}" for i in range(len(numbers))]
    assert len(numbers) >= len(on_slides) and {number[5:] for number in numbers} <= set(wanted)
    assert all(len(img.get("alt", "")) >= build.ALT_LENGTH for img in deck.select("figure > img"))


@pytest.mark.parametrize("name", CHAPTERS)
def test_figures_have_the_numbers_of_the_site(name, decks, site):
    page = BeautifulSoup((site / f"{name}.html").read_text("utf-8"), "html.parser")

    def captions(tree):
        return [" ".join(tag.get_text().split())[:40] for tag in tree.select("figure figcaption")]

    of_site = [caption.removesuffix("#").strip() for caption in captions(page)]
    assert [caption.partition(" ")[2].partition(" ")[0] for caption in of_site] == [
        caption.partition(" ")[2].partition(" ")[0] for caption in captions(soup(decks, name))
    ]


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_quiz_question_is_a_slide_that_holds_its_answer_back(name, decks):
    sources = [cell.source for cell in build.compose(name).cells if cell.cell_type == "code"]
    asked = [quiz(text) for source in sources if (text := build.quiz_of(source)) is not None]
    assert asked
    pages = soup(decks, name).select(".page.with-quiz")
    assert len(pages) == len(asked)
    for page, question in zip(pages, asked, strict=True):
        options = page.select("ol.options > li")
        assert ["right" in li.get("class", []) for li in options] == [option.right for option in question.options]
        held_back = page.select_one(".fragment.answer").get_text()
        letters = [chr(ord("A") + i) for i, option in enumerate(question.options) if option.right]
        assert re.findall(r"\b([A-F])\.", held_back)[: len(letters)] == letters


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_exercise_is_a_slide_at_the_end_and_no_solution_is(name, decks):
    labels = re.findall(r"^:label: (ex-\S+)$", (build.SOURCES / f"{name}.md").read_text("utf-8"), re.MULTILINE)
    deck = soup(decks, name)
    assert [section["id"] for section in deck.select(".slides > section")[-1].select("section")] == labels
    assert "@title Solution" not in deck.get_text() and "Solution" not in {h2.get_text() for h2 in deck.select("h2")}


@pytest.mark.parametrize("name", CHAPTERS)
def test_roles_and_directives_are_text(name, decks):
    deck = soup(decks, name)
    for code in deck.select("pre, code"):
        code.decompose()
    text = deck.select_one(".slides").get_text()
    assert re.findall(r"\{[a-z:]+\}`|:::|\{page\}|<IPython|\bms?t-role", text) == []
    ids = [tag["id"] for tag in deck.select("[id]")]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", CHAPTERS)
def test_nothing_overflows_nothing_is_small_and_formulas_are_drawn(name, decks, visit):
    with visit() as visited:
        page = opened(visited, decks / f"{name}.html")
        page.add_style_tag(content=SHOW_ALL)
        assert page.evaluate(OVERFLOW) == []
        assert page.evaluate(TOO_SMALL) == []
        assert page.locator("mjx-merror").count() == 0
        if "\\[" in (decks / f"{name}.html").read_text("utf-8"):
            assert page.locator(".page mjx-container").count() > 0


def test_a_slide_asks_before_it_shows(decks, visit):
    with visit() as visited:
        page = opened(visited, Path(f"{decks / '01-gridded.html'}"))
        page.evaluate("Reveal.slide(...Object.values(Reveal.getIndices(document.querySelector('#fig-gridded'))))")
        slide = page.locator("#fig-gridded")
        assert "what do you expect to see" in slide.locator(".ask").inner_text()
        assert not slide.locator("figure").is_visible()
        page.keyboard.press("ArrowDown")
        slide.locator("figure").wait_for(state="visible")


def test_a_slide_can_be_addressed_by_its_figure(decks, visit):
    with visit() as visited:
        page = visited.open(f"{(decks / '03-checkerboard.html').as_uri()}#/fig-taps")
        page.wait_for_selector(".reveal.ready")
        assert page.evaluate("Reveal.getCurrentSlide().id") == "fig-taps"


EXPLORED = """# An explorer

## Move it

Which pixel meets most taps?

```{code-cell} ipython3
---
mystnb:
  figure: {caption: Taps., name: fig-explored}
---
taps()
```

$$ a = b $$ (eq-explored)

## After it

Nothing.
"""


@pytest.fixture
def explored(tmp_path, monkeypatch) -> Path:
    """The deck of a chapter with an explorer."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "explored.md").write_text(EXPLORED, "utf-8")
    (tmp_path / "src" / "intro.md").touch()
    monkeypatch.setattr(build, "SOURCES", tmp_path / "src")
    monkeypatch.setattr(build, "chapters", lambda: ["explored"])
    slides.labels.cache_clear()
    notebook = build.compose("explored")
    (cell,) = build.own_code(notebook)
    explorer = taps()
    cell.outputs = [nbformat.v4.new_output("execute_result", {"text/html": explorer.html, "text/plain": "taps"})]
    nbformat.write(notebook, tmp_path / "explored.ipynb")
    yield slides.write(["explored"], tmp_path / "site", tmp_path)[0]
    slides.labels.cache_clear()


def test_arrows_move_an_explorer_and_not_the_slides(explored, visit):
    with visit() as visited:
        page = opened(visited, explored)
        page.evaluate("Reveal.slide(1, 0, 0)")
        slider = page.get_by_role("slider", name="kernel", exact=True)
        before = slider.input_value()
        slider.focus()
        page.keyboard.press("ArrowRight")
        assert int(slider.input_value()) == int(before) + 1
        assert page.evaluate("Reveal.getIndices().h") == 1
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("Reveal.getIndices().h") == 2
        page.add_style_tag(content=SHOW_ALL)
        assert page.evaluate(OVERFLOW) == []


def test_without_npm_the_deck_asks_a_server_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(slides, "fetched", lambda: None)
    (page,) = slides.write(["03-checkerboard"], tmp_path)
    deck = BeautifulSoup(page.read_text("utf-8"), "html.parser")
    addresses = [tag["src"] for tag in deck.select("script[src]")] + [tag["href"] for tag in deck.select("link")]
    assert f"{slides.NETWORK}/{slides.PACKAGE}/dist/reveal.js" in addresses
    assert f"npm cannot fetch {slides.PACKAGE}" in capsys.readouterr().out


def test_every_file_that_a_deck_loads_is_beside_it(decks):
    if slides.fetched() is None:
        pytest.skip("no npm on this machine, or it cannot reach its registry")
    for name in CHAPTERS:
        deck = soup(decks, name)
        loaded = [tag["src"] for tag in deck.select("script[src]")] + [tag["href"] for tag in deck.select("link")]
        assert [path for path in loaded if "//" in path or not (decks / path).is_file()] == []
    assert (decks / "reveal" / "LICENSE").is_file()


def test_reveal_is_fetched_once(tmp_path, monkeypatch):
    """A stand-in for npm packs a package that it counts."""
    package = tmp_path / "package"
    for path in ("LICENSE", *(f"dist/{file}" for file in slides.PACKAGE_FILES)):
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text(path, "utf-8")
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\necho x >> {tmp_path}/calls\ntar czf reveal.tgz -C {tmp_path} package\n", "utf-8")
    npm.chmod(0o755)
    monkeypatch.setattr(slides.shutil, "which", lambda name: str(npm))
    for _ in range(2):
        kept = slides.fetched(tmp_path / "kept")
        assert [(kept / file).read_text("utf-8") for file in slides.PACKAGE_FILES] == [
            f"dist/{file}" for file in slides.PACKAGE_FILES
        ]
    assert (tmp_path / "calls").read_text("utf-8") == "x\n"


@pytest.mark.parametrize("npm", [None, "false"])
def test_no_npm_is_no_error(npm, tmp_path, monkeypatch):
    program = shutil.which(npm) if npm else None
    monkeypatch.setattr(slides.shutil, "which", lambda name: program)
    assert slides.fetched(tmp_path / "kept") is None


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("cite:t", "herdt2024smooth", "Herdt et al. (2024)"),
        ("cite", "zhang2019blurpool, azulay2019why", "(Zhang, 2019; Azulay and Weiss, 2019)"),
        ("numref", "fig-taps", "Fig. 3.1"),
        ("numref", "Figure %s <fig-taps>", "Figure 3.1"),
        ("eq", "eq-taps", "(3.1)"),
        ("term", "stride", "stride"),
        ("term", "strides <stride>", "strides"),
    ],
)
def test_roles_read_like_the_site(name, text, shown):
    assert slides.role(name, text) == shown


@pytest.mark.parametrize(("name", "text"), [("cite:t", "nobody1900"), ("numref", "fig-none"), ("eq", "eq-none")])
def test_what_refers_to_nothing_is_an_error(name, text):
    with pytest.raises(build.BookError, match=text):
        slides.role(name, text)


@pytest.mark.parametrize(
    ("paragraph", "asked"),
    [
        (
            "It is so. Before you look: what do you expect to see in a map of 32 × 32 squares? Then go on.",
            "Before you look: what do you expect to see in a map of 32 × 32 squares?",
        ),
        ("The answer stays. Does the map?", "The answer stays. Does the map?"),
        (
            "**A gradient is constant. What does a strided convolution hand down to its input, and where?** Write.",
            "What does a strided convolution hand down to its input, and where?",
        ),
        ("There is none here.", ""),
        ("Long? " * 100 + "x" * 300 + "?", ""),
    ],
)
def test_question_of_a_paragraph(paragraph, asked):
    assert slides.question_before([slides.Part("prose", paragraph)]) == slides.inline(asked)


def test_a_long_result_is_continued_on_a_slide_of_about_the_same_length():
    groups = ["\n".join(f"{group} {line}" for line in range(9)) for group in range(4)]
    pages = slides.pages_of("\n\n".join(groups))
    assert [len(page.splitlines()) for page in pages] == [19, 19]
    assert slides.pages_of(groups[0]) == [groups[0]]


def test_a_figure_is_behind_its_question_and_its_code_behind_a_word():
    figure = slides.Part("figure", "<img>", code="draw()", caption="One.")
    (with_question,) = slides.shown(figure, [slides.Part("prose", "What will be seen in the picture, and what not?")])
    (without,) = slides.shown(figure, [slides.Part("prose", "See.")])
    assert '<figure class="fragment">' in with_question and '<figure class="">' in without
    assert "<summary>code</summary>" in without


def test_a_long_table_is_continued_below_the_same_head():
    rows = [f"| {row} | {'x' * 80} |" for row in range(24)]
    pieces = slides.tables_of("\n".join(["| a | b |", "|---|---|", *rows]))
    assert [piece.splitlines()[:2] for piece in pieces] == [["| a | b |", "|---|---|"]] * len(pieces)
    assert [line for piece in pieces for line in piece.splitlines()[2:]] == rows
    assert len(pieces) == 3


@pytest.mark.parametrize(
    ("prose", "points"),
    [
        ([("prose", "Before."), ("list", "- **One.** Two. Three.\n- Four.")], ["**One.** Two.", "Four."]),
        ([("prose", "Short. **This is the sentence that counts.** Long.")], ["This is the sentence that counts."]),
        ([("prose", "One. Two. Three."), ("prose", "Four.")], ["One. Two.", "Four."]),
        ([("prose", f"One. X{'x' * 400}. Three."), ("prose", f"Four. Y{'y' * 400}.")], ["One.", "Four."]),
    ],
)
def test_a_slide_with_nothing_to_show_says_what_counts(prose, points):
    said = BeautifulSoup(slides.stated([slides.Part(*part) for part in prose]), "html.parser").select("li")
    assert [item.decode_contents() for item in said] == [slides.inline(point) for point in points]


def test_guide_links_every_deck_and_only_slides_that_exist(decks):
    linked = set()
    for page in build.BOOK.glob("teaching*.md"):
        for name, anchor in re.findall(r'href="slides/([\w-]+)\.html(?:#([\w-]+))?"', page.read_text("utf-8")):
            linked.add(name)
            assert not anchor or soup(decks, name).find(id=anchor), f"{page.name}: {name}#{anchor}"
    assert linked == set(CHAPTERS)


def test_an_unknown_chapter_is_refused(capsys):
    assert slides.main(["99-nothing"]) == 1
    assert "no chapter '99-nothing'" in capsys.readouterr().err


def test_a_chapter_that_was_not_executed_is_refused(tmp_path):
    with pytest.raises(build.BookError, match="03-checkerboard was not executed"):
        slides.write(["03-checkerboard"], tmp_path / "site", tmp_path)
