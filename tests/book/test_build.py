"""The pipeline itself: what it writes is stable, what must not be stored is refused, what fails is named."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

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
    explorer = "import smoothsal_lib as sal\n\nsal.widgets.taps()"
    folder = write(HEADER + cell("print('a')\nprint('b')") + FIGURE + cell(explorer))
    written = []
    for _ in range(2):
        build.execute_chapters(["one"], to=folder)
        written.append((folder / "one.ipynb").read_bytes())
    assert written[0] == written[1]
    assert b"image/png" in written[0] and b"data-sal" in written[0]


def test_a_widget_that_needs_a_kernel_is_reported(write):
    folder = write(HEADER + cell("import ipywidgets\n\nipywidgets.IntSlider(description='layer')"))
    with pytest.raises(build.BookError, match="shows an ipywidget, which no page can move"):
        build.execute_chapters(["one"], to=folder)


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


@pytest.mark.parametrize("tag", ["hide-cell", "hide-input", "remove-input"])
def test_folded_cells_are_folded_in_colab_too(write, tag):
    write(HEADER + cell("1", tags=tag) + cell("2"))
    folded, shown = build.compose("one").cells[-2:]
    assert folded.metadata["cellView"] == "form"
    assert "cellView" not in shown.metadata


def test_unlisted_chapter_is_refused(write, tmp_path):
    write(HEADER)
    (tmp_path / "two.md").write_text(HEADER, "utf-8")
    with pytest.raises(build.BookError, match="two.md is not listed"):
        build.chapters()


def written(picture: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png", **options)
    return file.getvalue()


def test_png_keeps_its_pixels_and_its_resolution_and_loses_the_rest():
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Software", "a version")
    opaque = Image.new("RGBA", (64, 48), (200, 30, 40, 255))
    opaque.putpixel((5, 6), (0, 0, 1, 255))
    before = written(opaque, pnginfo=comment, dpi=(200, 200))
    after = build.smallest(before)
    with Image.open(io.BytesIO(after)) as picture:
        assert picture.mode == "RGB"
        assert picture.tobytes() == opaque.convert("RGB").tobytes()
        assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    assert b"Software" in before and b"Software" not in after
    assert len(after) < len(before)
    assert build.smallest(after) == after


def test_png_that_lets_something_through_stays_so():
    clear = Image.new("RGBA", (4, 4), (200, 30, 40, 255))
    clear.putpixel((1, 1), (0, 0, 0, 254))
    with Image.open(io.BytesIO(build.smallest(written(clear)))) as picture:
        assert picture.mode == "RGBA" and picture.tobytes() == clear.tobytes()


REPOSITORY = build.Repository("https://github.com/somebody/else", "trunk", "v9")


class Machine:
    """A machine on which a first cell runs: what is installed there, what pip was asked for, what was started."""

    def __init__(self, monkeypatch, packages: dict[str, str], library: bool) -> None:
        self.asked: list[str] = []
        self.started: list[tuple] = []
        there = [SimpleNamespace(name=name, version=number) for name, number in packages.items()]
        monkeypatch.setattr("importlib.metadata.distributions", lambda: there)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if library else None)
        monkeypatch.setattr(build.runtime, "start", lambda *arguments: self.started.append(arguments))
        monkeypatch.delenv("SMOOTHSAL_WHEEL", raising=False)
        self.shell = InteractiveShell()
        self.shell.register_magic_function(self.asked.append, magic_name="pip")

    def run(self, source: str) -> None:
        self.shell.run_cell(source).raise_error()


def everything() -> dict[str, str]:
    names = [re.split(r"[^\w-]", line)[0] for line in build.project()["dependencies"]]
    return dict.fromkeys(names, "1.0") | {"torch": "2.9+cu"}


def test_first_cell_installs_nothing_where_all_is_there(write, monkeypatch):
    write(HEADER + cell("model = sal.load_model()"))
    machine = Machine(monkeypatch, everything(), library=True)
    machine.run(build.install_cell(REPOSITORY, "one"))
    assert machine.asked == []
    assert machine.started == [("one", "tiny_resnet")]


def test_first_cell_installs_what_is_missing_and_keeps_torch_as_it_is(write, monkeypatch):
    write(HEADER + cell("1"))
    monkeypatch.setitem(build.BESIDE, "one", ("captum",))
    there = {name: number for name, number in everything().items() if name != "safetensors"}
    machine = Machine(monkeypatch, there, library=False)
    machine.run(build.install_cell(REPOSITORY, "one"))
    library, beside = machine.asked
    assert "--no-deps" in library and f"git+{REPOSITORY.url}@v9" in library
    assert beside == "install -q safetensors captum numpy==1.0 torch==2.9+cu torchvision==1.0"
    assert machine.started == [("one",)]


def test_first_cell_takes_the_wheel_that_the_environment_names(write, monkeypatch):
    write(HEADER + cell("1"))
    machine = Machine(monkeypatch, everything(), library=False)
    monkeypatch.setenv("SMOOTHSAL_WHEEL", "/a folder/library.whl")
    machine.run(build.install_cell(REPOSITORY, "one"))
    assert machine.asked == ['install -q --no-deps "/a folder/library.whl"']


@pytest.mark.parametrize("name", build.chapters())
def test_first_cell_is_short(name):
    lines = build.install_cell(build.repository(), name).splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 120


def test_what_the_first_cell_prints_is_not_stored(write):
    folder = write(HEADER + cell("print('kept')"))
    build.execute_chapters(["one"], to=folder)
    notebook = build.nbformat.read(folder / "one.ipynb", as_version=4)
    first, own = (c for c in notebook.cells if c.cell_type == "code")
    assert first.outputs == [] and first.execution_count == 1
    assert own.outputs[0].text == "kept\n"


def test_kernels_see_the_network_that_was_asked_for_and_no_other_wish(write, monkeypatch):
    folder = write(HEADER + cell("import os\n\nprint(sorted(k for k in os.environ if 'SMOOTHSAL' in k))"))
    monkeypatch.setenv("SMOOTHSAL_MODEL", "vgg16")
    monkeypatch.setenv("SMOOTHSAL_DATA", "/data")
    for model, seen in ((None, "[]\n"), ("resnet34", "['SMOOTHSAL_MODEL']\n")):
        build.execute_chapters(["one"], to=folder, model=model)
        notebook = build.nbformat.read(folder / "one.ipynb", as_version=4)
        assert notebook.cells[-1].outputs[0].text == seen


def test_another_network_is_fetched_before_and_its_notebooks_lie_apart(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(build, "BUILD", tmp_path)
    monkeypatch.setattr(build, "load_model", asked.append)

    def execute(*arguments, **options):
        asked.append((arguments, options))
        return {"01-gridded": 60.0}

    monkeypatch.setattr(build, "execute_chapters", execute)
    before = {path: path.stat().st_mtime_ns for path in build.BOOK.glob("*.ipynb")}
    folder, took = build.execute_with("resnet34")
    assert took == {"01-gridded": 60.0}
    free = [name for name in build.chapters() if build.follows_choice(name)]
    assert asked == ["resnet34", ((free,), {"to": folder, "model": "resnet34"})]
    assert folder == tmp_path / "resnet34" / "book"
    assert {path.stem for path in folder.glob("*.ipynb")} == {path.stem for path in before} - set(free)
    assert (folder / "_toc.yml").is_file() and (folder / "references.bib").is_file()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_network_that_cannot_be_fetched_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    def unreachable(name):
        raise RuntimeError(f"the weights of {name} could not be downloaded")

    monkeypatch.setattr(build, "load_model", unreachable)
    assert build.main(["book", "--model", "resnet18"]) == 1
    assert capsys.readouterr().err.strip() == "the weights of resnet18 could not be downloaded"


def test_site_of_another_network_is_built_beneath_its_folder(monkeypatch):
    built = []
    monkeypatch.setattr(build, "execute_with", lambda model: (build.BUILD / model / "book", {"01-gridded": 60.0}))
    monkeypatch.setattr(build, "execute_chapters", lambda names: built.append("stored"))
    monkeypatch.setattr(build, "write_addresses", lambda: None)
    monkeypatch.setattr(build, "build_site", lambda **options: built.append(options))
    assert build.main(["book", "--model", "resnet34"]) == 0
    assert build.main(["book", "--model", "tiny_resnet"]) == 0
    folder = build.BUILD / "resnet34"
    other = {"draft": False, "book": folder / "book", "output": folder, "took": {"01-gridded": 60.0}}
    assert built == [other, "stored", {"draft": False}]


@pytest.fixture
def measured(write, tmp_path, monkeypatch):
    """A chapter with a line for its time, and a record of times elsewhere."""
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(build, "TIMES", tmp_path / "results" / "chapter_times.json")
    monkeypatch.setattr(build.runtime, "data_folder", lambda: tmp_path)
    monkeypatch.setattr(build.runtime, "cores", lambda: 2)
    monkeypatch.setattr(build, "execute_chapters", lambda names, again: dict.fromkeys(names, 12.34))
    write(HEADER + "*Time: unknown.*\n\n" + "word " * 1190 + "\n\n" + cell("no_word = 1\n" * 500))
    return tmp_path


def test_measured_times_are_carried_into_the_chapter(measured):
    assert build.main(["times"]) == 0
    assert "\n*Time: 10 minutes to read, 12 seconds to run on two CPU cores.*\n" in (measured / "one.md").read_text()
    record = json.loads(build.TIMES.read_text())
    assert record["command"] == "python book/build.py times" and record["cores"] == 2
    assert {"device", "versions", "date"} <= record.keys()
    (row,) = record["rows"]
    assert (row["chapter"], row["device"], row["seconds"], row["minutes_to_read"]) == ("one", "CPU", 12.3, 10)


def test_chapter_that_was_not_measured_is_named(write):
    write(HEADER)
    with pytest.raises(build.BookError, match="one is not in data/results/chapter_times.json"):
        build.time_line("one")


@pytest.mark.parametrize(("seconds", "shown"), [(18, "18"), (19, "**19**"), (9, "9"), (8, "**8**"), (None, "*stored*")])
def test_record_page_marks_times_that_differ_by_more_than_half(measured, seconds, shown):
    build.measure_times()
    here = {} if seconds is None else {"one": seconds}
    assert build.stated_and_taken("one", here) == ("12", shown)
    assert f"| [A chapter](one.ipynb) | 12 | {shown} |" in build.status_page(["one"], here)


def test_command_line_says_what_chapters_there_are(capsys):
    assert build.main(["execute", "99-nothing"]) == 1
    assert "no chapter '99-nothing'" in capsys.readouterr().err
