"""The pipeline itself: what it writes is stable, what must not be stored is refused, what fails is named."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import build
import pytest
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image, PngImagePlugin

HEADER = "# A chapter\n\nProse.\n\n"
FIGURE = """```{code-cell} ipython3
---
mystnb:
  image: {alt: A line that rises to the right.}
  figure: {caption: It rises.}
---
import matplotlib.pyplot as plt

plt.plot([1, 2]);
```
"""


def cell(code: str, tags: str = "") -> str:
    return "```{code-cell} ipython3\n" + (f":tags: [{tags}]\n\n" if tags else "") + code + "\n```\n\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a chapter into a book of its own, and return the folder for notebooks."""
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    monkeypatch.setattr(build, "pages", lambda: ["one"])

    def write(text: str) -> Path:
        (tmp_path / "one.md").write_text(text, "utf-8")
        return tmp_path / "notebooks"

    return write


def test_executing_twice_gives_the_same_bytes(write):
    slider = "import ipywidgets\n\nipywidgets.IntSlider(description='layer')"
    folder = write(HEADER + cell("print('a')\nprint('b')") + FIGURE + cell(slider))
    written = []
    for _ in range(2):
        build.execute_chapters(["one"], to=folder)
        written.append((folder / "one.ipynb").read_bytes())
    assert written[0] == written[1]
    assert b"image/png" in written[0] and b"widget-state" in written[0]


def test_failing_cell_is_named(write):
    folder = write(HEADER + cell("x = 1") + cell("y = x\nlist(y)"))
    with pytest.raises(build.BookError) as caught:
        build.execute_chapters(["one"], to=folder)
    message = str(caught.value)
    assert message.splitlines() == [
        "one: code cell 2 failed",
        "    book/src/one.md:10: y = x",
        "    TypeError: 'int' object is not iterable",
    ]
    assert not (folder / "one.ipynb").exists()


def test_downloads_fail(write):
    folder = write(HEADER + cell("import urllib.request\n\nurllib.request.urlopen('http://example.org', timeout=5)"))
    with pytest.raises(build.BookError, match="URLError"):
        build.execute_chapters(["one"], to=folder)


def stream(name: str, text: str) -> dict:
    return {"output_type": "stream", "name": name, "text": text}


def picture() -> dict:
    data = {"image/png": base64.b64encode(b"x").decode()}
    return {"output_type": "display_data", "data": data, "metadata": {}}


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([stream("stderr", "UserWarning: old")], "writes to stderr"),
        ([stream("stdout", "<object at 0x7f00deadbeef>")], "memory address"),
        ([stream("stdout", str(build.ROOT / "data"))], "path of this machine"),
        ([stream("stdout", "x" * 1_000_001)], "1,000,000"),
        ([{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}], "stores an error"),
        ([picture()], "mystnb.image.alt"),
        ([picture()], "mystnb.figure.caption"),
        ([picture(), picture()], "several pictures"),
    ],
)
def test_what_must_not_be_stored_is_reported(write, outputs, message):
    write(HEADER + cell("x = 1"))
    notebook = build.compose("one")
    assert build.problems("one", notebook) == []
    notebook.cells[-1].outputs = [build.nbformat.from_dict(output) for output in outputs]
    assert any(message in problem for problem in build.problems("one", notebook))


def test_prose_does_not_ask_for_execution_and_code_does(write):
    write(HEADER + cell("x = 1"))
    key = build.key(build.compose("one"), "shared")
    write(HEADER + "More prose.\n\n" + cell("x = 1"))
    assert build.key(build.compose("one"), "shared") == key
    assert build.key(build.compose("one"), "other library") != key
    write(HEADER + cell("x = 2"))
    assert build.key(build.compose("one"), "shared") != key


def test_reuse_needs_the_outputs_that_were_recorded(write, tmp_path):
    write(HEADER + cell("x = 1"))
    notebook, stored = build.compose("one"), tmp_path / "one.ipynb"
    notebook.cells[-1].outputs = [build.nbformat.from_dict(stream("stdout", "1"))]
    stored.write_text(build.serialise(notebook), "utf-8")
    entry = {"key": "k", "outputs": build.outputs_digest(notebook), "seconds": 1}
    fresh = build.compose("one")
    assert build.reuse(fresh, stored, entry, "k")
    assert fresh.cells[-1].outputs == notebook.cells[-1].outputs
    assert not build.reuse(fresh, stored, entry, "another key")
    assert not build.reuse(fresh, stored, entry | {"outputs": "edited"}, "k")
    assert not build.reuse(fresh, stored, None, "k")


def test_ids_stay_when_a_cell_is_added_before(write):
    write(HEADER + cell("x = 1") + cell("x = 1"))
    before = [c.id for c in build.compose("one").cells if c.cell_type == "code"]
    write(HEADER + cell("y = 0") + cell("x = 1") + cell("x = 1"))
    after = [c.id for c in build.compose("one").cells if c.cell_type == "code"]
    assert len(set(after)) == len(after)
    assert set(before) < set(after)


def test_folded_cells_are_folded_in_colab_too(write):
    write(HEADER + cell("1", tags="hide-cell") + cell("2"))
    folded, shown = build.compose("one").cells[-2:]
    assert folded.metadata["cellView"] == "form"
    assert "cellView" not in shown.metadata


def test_unlisted_chapter_is_refused(write, tmp_path):
    write(HEADER)
    (tmp_path / "two.md").write_text(HEADER, "utf-8")
    with pytest.raises(build.BookError, match="two.md is not listed"):
        build.chapters()


def test_png_loses_its_comments_and_nothing_else():
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Software", "a version")
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, "png", pnginfo=comment)
    bare = build.without_text(file.getvalue())
    assert b"Software" in file.getvalue() and b"Software" not in bare
    assert Image.open(io.BytesIO(bare)).tobytes() == Image.open(file).tobytes()


@pytest.mark.parametrize("on_colab", [False, True])
def test_install_cell(on_colab, monkeypatch):
    asked = []
    shell = InteractiveShell()
    shell.register_magic_function(asked.append, magic_name="pip")
    if on_colab:
        monkeypatch.setitem(build.sys.modules, "google.colab", object())
    shell.run_cell(build.install_cell(build.repository())).raise_error()
    if not on_colab:
        assert asked == []
        return
    library, beside = asked
    assert "--no-deps" in library and f"{build.repository().url}@v" in library
    assert "safetensors" in beside
    assert not {"torch", "torchvision", "numpy"} & set(beside.split())


def test_command_line_says_what_chapters_there_are(capsys):
    assert build.main(["execute", "99-nothing"]) == 1
    assert "no chapter '99-nothing'" in capsys.readouterr().err
