"""The student edition gives no solution away, and lacks nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import build
import jupytext
import nbformat
import pytest
import student
from nbclient.exceptions import CellTimeoutError

CHAPTERS = build.chapters()
EXECUTED = "03-checkerboard"  # all would take as long as the book does


def lines(cells) -> Counter[str]:
    """How often each line stands in cells, links without where they lead; what the build adds does not count."""

    def plain(source: str) -> str:
        return re.sub(r"\{term\}`([^`<]*[^`<\s])[^`]*`", r"\1", re.sub(r"\]\([^)]*\)", "]()", source))

    own = [cell for cell in cells if build.ADDED_BY_BUILD not in cell.metadata.get("tags", [])]
    text = "\n".join(plain(cell.source) for cell in own)
    return Counter(line for line in text.splitlines() if line.strip())


def solutions(name: str) -> Counter[str]:
    """The lines of all solutions of a chapter, read line by line and not as the edition reads them."""
    found: Counter[str] = Counter()
    for cell in jupytext.reads((build.SOURCES / f"{name}.md").read_text("utf-8"), fmt="md:myst").cells:
        if cell.cell_type == "code":
            if "@title Solution" in cell.source.splitlines()[0]:
                found += lines([cell])
            continue
        end = None
        for line in cell.source.splitlines():
            begins = {"<details": "</details>", ":::": ":::"} if "solution" in line else {}
            end = end or next((close for open_, close in begins.items() if line.startswith(open_)), None)
            if end and line.strip():
                found += lines([nbformat.v4.new_markdown_cell(line)])
            if line.strip() == end:
                end = None
        assert end is None
    return found


@pytest.fixture(scope="module")
def edition(tmp_path_factory) -> Path:
    """The folder of the edition."""
    folder = tmp_path_factory.mktemp("edition") / "student"
    student.write(folder)
    return folder


def notebook(folder: Path, name: str):
    return nbformat.read(folder / f"{name}.ipynb", as_version=4)


@pytest.mark.parametrize("name", CHAPTERS)
def test_solutions_are_gone_and_nothing_else_is(name, edition):
    everything = lines(build.compose(name).cells)
    left, taken = lines(notebook(edition, name).cells), solutions(name)
    assert taken
    assert "{term}" not in "".join(cell.source for cell in notebook(edition, name).cells)
    assert everything - left == taken
    assert left - everything == Counter()


@pytest.mark.parametrize("name", CHAPTERS)
def test_exercises_checks_hints_and_quizzes_stay(name, edition):
    source = (build.SOURCES / f"{name}.md").read_text("utf-8")
    text = "\n".join(cell.source for cell in notebook(edition, name).cells)
    labels = re.findall(r"^:label: (ex-\S+)$", source, re.MULTILINE)
    assert labels
    assert re.findall(r"^:label: (ex-\S+)$", text, re.MULTILINE) == labels
    assert {f"check_{label[3:].replace('-', '_')}(" for label in labels} <= set(re.findall(r"check_\d+_\d+\(", text))
    for kept in ('class="hint"', "sal.widgets.quiz("):
        assert text.count(kept) == source.count(kept)


@pytest.mark.parametrize("name", CHAPTERS)
def test_notebooks_are_valid_and_have_no_outputs(name, edition):
    read = notebook(edition, name)
    nbformat.validate(read)
    assert [cell.source for cell in read.cells if cell.get("outputs") or cell.get("execution_count")] == []
    assert build.install_cell(build.repository(), name) in [cell.source for cell in read.cells]


@pytest.mark.parametrize("name", CHAPTERS)
def test_first_line_says_what_it_is_and_the_button_keeps_the_solutions_away(name, edition):
    first = notebook(edition, name).cells[0].source
    assert first.startswith("*Student edition, without solutions, of [Smooth Deep Saliency](")
    assert build.repository().url in first
    assert build.repository().colab(name) not in first
    assert f"]({student.COLAB})" in first and f"`{name}.ipynb`" in first


def test_button_opens_the_notebook_where_a_teacher_has_put_it():
    first = student.compose(CHAPTERS[0], "https://github.com/uni/course/tree/main/week-1").cells[0].source
    assert f"({student.COLAB}/github/uni/course/blob/main/week-1/{CHAPTERS[0]}.ipynb)" in first
    assert "Upload" not in first


@pytest.mark.parametrize("at", ["uni/course", "https://github.com/uni/course", "https://example.org/uni/course/tree/x"])
def test_an_address_that_colab_cannot_open_is_refused(at, capsys):
    assert student.main(["--at", at]) == 1
    assert f"--at {at!r}: give it as https://github.com/OWNER/REPO/tree/BRANCH" in capsys.readouterr().err


def test_no_cell_needs_what_a_solution_defined(edition):
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--extension", "ipynb:ipynb"]
    done = subprocess.run([*command, edition], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_links_lead_to_files_of_the_edition_or_to_the_book(edition):
    missing = []
    for path in edition.glob("*.ipynb"):
        for cell in notebook(edition, path.stem).cells:
            targets = re.findall(r"\]\(([^)#\s]+)", cell.source) if cell.cell_type == "markdown" else []
            targets += student.FIGURE.findall(cell.source)
            missing += [t for t in targets if "://" not in t and not (edition / t).is_file()]
    assert missing == []


def test_writing_twice_gives_the_same_bytes(edition, tmp_path):
    again = student.write(tmp_path / "student")
    assert again.read_bytes() == edition.with_suffix(".zip").read_bytes()


def test_archive_holds_the_edition(edition):
    with zipfile.ZipFile(edition.with_suffix(".zip")) as packed:
        inside = {entry.partition("/")[2]: packed.read(entry) for entry in packed.namelist()}
    files = [path for path in edition.rglob("*") if path.is_file()]
    assert inside == {path.relative_to(edition).as_posix(): path.read_bytes() for path in files}
    assert set(inside) >= {"README.md", *(f"{name}.ipynb" for name in CHAPTERS)}


@pytest.mark.parametrize(
    "text",
    [
        '<details class="solution">\n<summary>Solution</summary>\n\nNine.\n\n</details> :::',
        ":::{solution} ex-1-1\nNine.",
        '  <details class="solution">\nNine.\n</details>',
    ],
)
def test_a_solution_that_does_not_end_is_an_error_and_not_given_away(text):
    cells = [nbformat.v4.new_markdown_cell(text)]
    with pytest.raises(build.BookError, match="01-gridded.md: .*has no end"):
        student.without_solutions("01-gridded", nbformat.v4.new_notebook(cells=cells))


def test_a_hidden_cell_that_does_not_say_that_it_is_a_solution_is_an_error():
    cells = [nbformat.v4.new_code_cell("answer = 9", metadata={"tags": ["hide-cell"]})]
    with pytest.raises(build.BookError, match="begin the hidden cell 'answer = 9'"):
        student.without_solutions("01-gridded", nbformat.v4.new_notebook(cells=cells))


def test_every_cell_runs_and_open_exercises_say_what_to_do(edition):
    read = notebook(edition, EXECUTED)
    build.execute(EXECUTED, read, lambda cell, cells: None)
    for cell in read.cells:
        if cell.cell_type == "code" and re.search(r"exercises\.check_\w+\(.*\.\.\.", cell.source):
            (output,) = cell.outputs
            assert "in place of the dots" in output["text"]


def test_marking_runs_the_notebook_and_believes_no_output(tmp_path, capsys):
    claims = [nbformat.v4.new_output("stream", text="Correct: so it says.\n")]
    handed_in = ["from smoothsal_lib.exercises import check_1_1, check_3_1, check_3_2"]
    handed_in += [
        "check_1_1(9)",
        "1 / 0",
        "check_3_1([2, 2, 1])\ncheck_3_1([0])",
        "check_3_2([1, 1, 1])",
        "check_3_2(...)",
    ]
    cells = [nbformat.v4.new_code_cell(source, outputs=claims) for source in handed_in]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "ada.ipynb")
    assert student.main(["--mark", str(tmp_path / "ada.ipynb")]) == 0
    assert capsys.readouterr().out == "ada.ipynb: 2 of 3\n  1.1 right\n  3.1 right\n  3.2 -\n"


def test_of_two_checks_in_a_cell_each_has_its_own_mark():
    printed = nbformat.v4.new_output("stream", text="A line of mine.\nNot yet: try again.\nCorrect: one in nine.\n")
    cell = nbformat.v4.new_code_cell("check_3_1(1)\ncheck_3_2(2)\ncheck_3_3(3)", outputs=[printed])
    found = student.marks(nbformat.v4.new_notebook(cells=[cell]))
    assert found == {"3.1": False, "3.2": True, "3.3": False}


def test_a_notebook_that_does_not_end_does_not_keep_the_others_from_being_marked(tmp_path, capsys, monkeypatch):
    printed = nbformat.v4.new_output("stream", text="Correct: three times three.\n")
    right = nbformat.v4.new_code_cell("check_1_1(9)", outputs=[printed])

    def executed(path):
        if path.stem == "ada":
            raise CellTimeoutError("A cell timed out\nwhile it ran")
        if path.stem == "ben":
            return nbformat.read(path, as_version=4)
        return nbformat.v4.new_notebook(cells=[right])

    monkeypatch.setattr(student, "executed", executed)
    (tmp_path / "ben.ipynb").write_text("no notebook")
    assert student.main(["--mark", *(str(tmp_path / f"{name}.ipynb") for name in ("ada", "ben", "cy"))]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "ada.ipynb: cannot be run: A cell timed out"
    assert said[1].startswith("ben.ipynb: cannot be run: ")
    assert said[2:] == ["cy.ipynb: 1 of 1", "  1.1 right"]
