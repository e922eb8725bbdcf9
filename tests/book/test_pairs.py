"""Every stored notebook is what its Markdown source says, with outputs that may be stored."""

from __future__ import annotations

import json

import build
import nbformat
import pytest

CHAPTERS = build.notebooks()


def stored(name: str):
    return nbformat.read(build.BOOK / f"{name}.ipynb", as_version=4)


def test_all_pages_are_there():
    made_with_the_site = "status"
    without_code = set(build.pages()) - set(CHAPTERS) - {made_with_the_site}
    assert [page for page in without_code if not (build.BOOK / f"{page}.md").is_file()] == []


def test_no_notebook_without_source():
    assert sorted(path.stem for path in build.BOOK.glob("*.ipynb")) == sorted(CHAPTERS)


@pytest.mark.parametrize("name", CHAPTERS)
def test_cells_equal_those_of_the_source(name):
    def cells(notebook):
        return [(cell.cell_type, cell.id, cell.source, cell.metadata) for cell in notebook.cells]

    assert cells(stored(name)) == cells(build.compose(name)), f"run: python book/build.py execute {name}"


@pytest.mark.parametrize("name", CHAPTERS)
def test_outputs_may_be_stored(name):
    assert build.problems(name, stored(name)) == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_cell_was_executed_in_order(name):
    code = [cell for cell in stored(name).cells if cell.cell_type == "code" and cell.source.strip()]
    counts = [cell.execution_count for cell in code if "skip-execution" not in cell.metadata.get("tags", [])]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize("name", CHAPTERS)
def test_notebook_is_ready_for_colab(name):
    notebook = stored(name)
    badge, install = notebook.cells[:2]
    assert build.repository().colab(name) in badge.source
    assert install.source == build.install_cell(build.repository(), name)
    assert install.outputs == []
    assert {"remove-cell", build.ADDED_BY_BUILD} <= set(install.metadata["tags"])
    assert notebook.metadata["accelerator"] == "GPU"
    assert notebook.metadata["colab"]["gpuType"] == "T4"
    assert notebook.metadata["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("name", CHAPTERS)
def test_notebook_is_valid_and_written_by_the_build(name):
    text = (build.BOOK / f"{name}.ipynb").read_text("utf-8")
    nbformat.validate(json.loads(text))
    assert text == build.serialise(json.loads(text))


@pytest.mark.parametrize("name", build.chapters())
def test_stated_time_is_the_recorded_one(name):
    text = (build.SOURCES / f"{name}.md").read_text("utf-8")
    assert build.TIME_LINE.findall(text) == [build.time_line(name)], "run: python book/build.py times"


@pytest.mark.parametrize("name", build.chapters())
def test_stated_time_for_reading_fits_the_words(name):
    row = build.runtime.recorded(name)
    assert 1 / build.TOLERANCE <= row["words"] / build.words(name) <= build.TOLERANCE, "run: python book/build.py times"
