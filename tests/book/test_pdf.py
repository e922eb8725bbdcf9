"""The printed book: what the copy for paper changes, and that LaTeX makes pages of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import build
import nbformat
import pdf
import pypdf
import pytest

from smoothsal_lib.widgets import quiz

SITE = "https://example.org/book"
MARKDOWN, CODE = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell

EXERCISES = """## Exercises

:::{exercise}
:label: ex-1-1
How many?
:::

<details class="hint">
<summary>Hint</summary>

Count the *odd* ones.

</details>

<details class="solution">
<summary>Solution</summary>

Exactly **five**.

</details>

:::{exercise}
:label: ex-1-2
Why $\\tfrac12$?
:::

:::{solution} ex-1-2
:class: dropdown
Because of symmetry.
:::

:::{exercise}
:label: ex-1-3
Write it.
:::"""

QUIZ = """Which?
- `x`
  Too small it is.
+ $b$
  It is `x > 0`, and *so* $a < b$."""


def output(**data: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("execute_result", {key.replace("_", "/"): value for key, value in data.items()})


def stream(text: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("stream", name="stdout", text=text)


def code(source: str, *outputs: nbformat.NotebookNode, tags: tuple[str, ...] = ()) -> nbformat.NotebookNode:
    return CODE(source, outputs=list(outputs), metadata={"tags": list(tags)}, execution_count=1)


def one_chapter() -> nbformat.NotebookNode:
    """A chapter with one of each: explorers, a quiz, hints, solutions of three kinds, a check, folded code."""
    explorer = output(
        text_html="<div><script>1</script></div>", text_plain=f"{pdf.PLACEHOLDER} Choose a layer → see it."
    )
    widget = output(text_plain="VBox(children=(...))", **{build.WIDGET_VIEW.replace("/", "_"): {"model_id": "0"}})
    wide = "\n".join(["name  " + "number  " * 12] * 3)
    return nbformat.v4.new_notebook(
        metadata={"language_info": build.LANGUAGE},
        cells=[
            MARKDOWN("badge", metadata={"tags": ["remove-cell"]}),
            MARKDOWN(
                "# One → two\n\nSee [the reference](api/explain.md#the-call), {func}`smoothsal_lib.explain`, ½ ≤ 1."
            ),
            code("print('½ ≤ × →')", stream("½ ≤ × → −\n")),
            code("explorer()", explorer),
            code("frames()", widget),
            code(
                f'sal.widgets.quiz(r"""\n{QUIZ}\n""")',
                output(text_html=quiz(QUIZ)._repr_html_(), text_plain=repr(quiz(QUIZ))),
            ),
            code("folded()", stream(wide), tags=("hide-input",)),
            MARKDOWN(EXERCISES),
            code("check(...)", stream(pdf.UNANSWERED + "\n")),
            code("# @title Solution\nwritten = 1", stream("Correct: one.\n"), tags=("hide-cell",)),
            MARKDOWN("## Further reading\n\nNothing."),
        ],
    )


@pytest.fixture
def chapter() -> nbformat.NotebookNode:
    return one_chapter()


def everything(notebook: nbformat.NotebookNode) -> str:
    """All that is printed of a notebook, as one text."""
    parts = []
    for cell in notebook.cells:
        if "remove-input" not in cell.metadata.get("tags", []):
            parts.append(cell.source)
        for shown in cell.get("outputs", []):
            data = shown.get("data", {})
            parts.append(data.get("text/markdown") or data.get("text/plain") or shown.get("text", ""))
    return "\n\n".join(parts)


def test_no_html_is_printed(chapter):
    printed = everything(pdf.for_paper(chapter, "01-one", SITE))
    assert not re.search(r"</?(details|summary|div|fieldset|script|code|p|strong)\b", printed)
    assert "badge" not in printed


@pytest.mark.parametrize("said", ["Count the *odd* ones.", "Exactly **five**.", "Because of symmetry.", "written = 1"])
def test_hints_and_solutions_move_to_the_end_once(chapter, said):
    printed = everything(pdf.for_paper(chapter, "01-one", SITE))
    assert printed.count(said) == 1
    assert printed.index("## Further reading") < printed.index("## Hints") < printed.index("## Solutions")
    assert printed.index(said) > printed.index("## Solutions" if "odd" not in said else "## Hints")


def test_solutions_stand_under_the_exercise_they_solve(chapter):
    printed = everything(pdf.for_paper(chapter, "01-one", SITE))
    end = printed[printed.index("## Solutions") :]
    order = ["ex-1-1", "Exactly", "ex-1-2", "symmetry", "ex-1-3", "written = 1", "Correct: one."]
    assert [end.index(word) for word in order] == sorted(end.index(word) for word in order)
    assert "@title" not in printed


def test_explorers_become_boxes_with_the_address(chapter):
    notebook = pdf.for_paper(chapter, "01-one", SITE)
    boxes = [o.data for cell in notebook.cells for o in cell.get("outputs", []) if "Interactive" in str(o.get("data"))]
    assert [list(box) for box in boxes] == [["text/markdown"]] * 2
    assert all(f"<{SITE}/01-one.html>" in box["text/markdown"] for box in boxes)
    assert "Choose a layer → see it." in boxes[0]["text/markdown"]
    assert "VBox" not in everything(notebook)
    assert "widgets" not in notebook.metadata


def test_quizzes_are_asked_and_answered_at_the_end(chapter):
    printed = everything(pdf.for_paper(chapter, "01-one", SITE))
    assert "**Question 1.** Which?\n\nA. `x`\n\nB. $b$" in printed
    assert printed[printed.index("## Answers") :].startswith("## Answers\n\n1. B. It is `x > 0`, and *so* $a < b$.")
    assert "+ $b$" not in printed and "Too" not in printed


def test_folded_code_and_replies_to_no_answer_are_left_out(chapter):
    printed = everything(pdf.for_paper(chapter, "01-one", SITE))
    assert "folded()" not in printed and "number  number" in printed
    assert "check(...)" in printed and pdf.UNANSWERED not in printed


def test_wide_columns_are_set_smaller_and_long_sentences_are_not(chapter):
    chapter.cells.append(code("print(1)", stream("word " * 40)))
    tags = [cell.metadata.get("tags", []) for cell in pdf.for_paper(chapter, "01-one", SITE).cells]
    assert sum("wide" in one for one in tags) == 1


def test_links_to_the_site_alone_become_addresses(chapter):
    printed = everything(pdf.for_paper(chapter, "01-one", SITE))
    assert f"[the reference]({SITE}/api/explain.html#the-call)" in printed
    assert "`smoothsal_lib.explain`" in printed and "{func}" not in printed
    assert pdf.on_paper("[two](02-two.ipynb)", SITE) == "[two](02-two.ipynb)"


@pytest.mark.parametrize("kind", ["hint", "solution"])
def test_a_solution_without_exercise_is_refused(kind):
    text = f'<details class="{kind}">\n<summary>S</summary>\n\nLost.\n\n</details>'
    with pytest.raises(build.BookError, match="01-one: a hint or solution stands before every exercise"):
        pdf.for_paper(nbformat.v4.new_notebook(cells=[MARKDOWN(text)]), "01-one", SITE)


@pytest.mark.parametrize("name", build.chapters())
def test_chapters_keep_all_their_solutions(name):
    before = build.compose(name)
    solutions = sum(len(re.findall(r"\{solution\}|<details class=", cell.source)) for cell in before.cells)
    solutions += sum(cell.source.startswith("# @title Solution") for cell in before.cells)
    notebook = pdf.for_paper(before, name, SITE)
    headings = [i for i, cell in enumerate(notebook.cells) if cell.source.startswith(("## Hints", "## Solutions"))]
    behind = [cell for cell in notebook.cells[headings[0] :] if not re.search(r"\*\*\{ref\}`", cell.source)]
    assert len(behind) == solutions > 0
    printed = everything(notebook)
    assert not re.search(r"</?(details|summary|div|script|fieldset)\b|@title|VBox\(|\{solution\}", printed)


def test_all_parts_and_pages_but_those_of_the_site_are_printed():
    parts = pdf.contents()
    names = [name for part in parts for name in part.names]
    assert [name for name in build.pages() if name not in names and not pdf.SITE_ONLY.fullmatch(name)] == []
    assert not any(pdf.SITE_ONLY.fullmatch(name) for name in names)
    assert names[0] == "intro" and names[-1] == "references"
    assert all(part.numbered for part in parts if set(part.names) & set(build.chapters()))


@pytest.fixture(scope="module")
def small_book(tmp_path_factory) -> tuple[Path, Path]:
    """A book of one chapter and a bibliography, and the LaTeX made of it."""
    book = tmp_path_factory.mktemp("small")
    (book / "figures").mkdir()
    (book / "_toc.yml").write_text(
        "format: jb-book\nroot: intro\nparts:\n"
        "  - caption: The only part\n    numbered: true\n    chapters: [{file: 01-one}]\n"
        "  - caption: Back matter\n    chapters: [{file: references}, {file: status}]\n"
    )
    preface = "# Preface\n\nTo [chapter 1](01-one.ipynb), and {cite:t}`herdt2024smooth`.\n"
    (book / "intro.md").write_text(preface, "utf-8")
    (book / "references.md").write_text("# Bibliography\n\n```{bibliography}\n:style: plain\n```\n", "utf-8")
    shutil.copy(build.BOOK / "references.bib", book)
    nbformat.write(one_chapter(), book / "01-one.ipynb")
    return book, pdf.write_latex(pdf.contents(book), tmp_path_factory.mktemp("made"), book)


def titles_of(outline: list) -> list[str]:
    """The titles of a PDF's outline, at all depths."""
    return [title for one in outline for title in (titles_of(one) if isinstance(one, list) else [one.title])]


def test_latex_is_made_without_a_warning(small_book):
    book, latex = small_book
    text = latex.read_text("utf-8")
    assert r"\bookpart{The only part}" in text and r"\chapter{One → two}" in text
    assert "½ ≤ × → −" in text
    assert text.index("Exactly") > text.index("Further reading")
    assert everything(nbformat.read(book / "01-one.ipynb", as_version=4)) == everything(one_chapter())


def test_a_missing_program_is_told_with_its_package(monkeypatch, capsys):
    monkeypatch.setattr(pdf.shutil, "which", lambda program: None)
    assert pdf.main([]) == 1
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert "xelatex" in said and "apt-get install" in said and "texlive-xetex" in said


@pytest.mark.skipif(bool(pdf.missing_programs()), reason="the PDF needs TeX, which `make pdf` asks for")
def test_pages_have_outline_text_and_references(small_book):
    pages = pypdf.PdfReader(pdf.typeset(small_book[1]))
    text = "\n".join(page.extract_text() for page in pages.pages)
    assert "??" not in text
    assert "½ ≤ × → −" in text and "Interactive on the page" in text
    assert re.search(r"Part I\b", text) and "The only part" in text
    titles = set(titles_of(pages.outline))
    assert {"Preface", "I The only part", "1 One → two", "Bibliography"} <= titles


def test_faults_of_the_pages_are_told(tmp_path, monkeypatch):
    latex = tmp_path / "book.tex"
    latex.with_suffix(".log").write_text(
        "Missing character: There is no → in font X!\n"
        "LaTeX Warning: Reference `fig' on page 3 undefined on input line 7.\n"
        "Overfull \\hbox (14.2pt too wide) in paragraph at lines 1--2\n"
        "Overfull \\hbox (99.1pt too wide) in paragraph at lines 3--4\n"
        "Overfull \\vbox (3.1pt too high) detected at line 5\n"
        "Overfull \\vbox (110.9pt too high) has occurred while \\output is active []\n"
    )
    monkeypatch.setattr(pdf.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", ""))
    with pytest.raises(build.BookError) as caught:
        pdf.typeset(latex)
    assert len(str(caught.value).splitlines()) == 5  # the head, and all but what hardly stands out
    assert "14.2" not in str(caught.value)
