"""Sliders on the book's pages: what a page without Python needs is stored, and a browser without network shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import build
import nbformat
import pytest
from bs4 import BeautifulSoup

CHAPTERS = build.chapters()
ALT = "Random numbers as a grid of colours"
CHAPTER = f"""# Sliders

```{{code-cell}} ipython3
---
mystnb:
  figure: {{caption: Random numbers., name: fig-random}}
---
import torch

import smoothsal_lib.widgets

torch.manual_seed(0)
maps = {{(noise, looks): torch.rand(8, 8) for noise in ("0 %", "10 %") for looks in ("1", "5", "20")}}
smoothsal_lib.widgets.frames(maps, ("noise", "looks"), alt="{ALT}.")
```

See {{numref}}`fig-random`.
"""
# The keys that a reader presses, on the page itself: chromium --dump-dom shows it as it is some time after loading.
MOVE = """<script>
window.addEventListener("load", () => {
  const press = () => {
    const [noise, looks] = document.querySelectorAll(".noUi-handle");
    if (looks === undefined) { setTimeout(press, 100); return; }
    for (const handle of [noise, looks, looks])
      handle.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
  };
  press();
});
</script>"""


def views(notebook) -> list[str]:
    """The model ids of the widgets that cells show."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    data = [output.get("data", {}).get(build.WIDGET_VIEW) for output in outputs]
    return [view["model_id"] for view in data if view]


def referred(states) -> set[str]:
    """The model ids that models name as their children, styles, layouts, sources and targets."""
    return set(re.findall(r"IPY_MODEL_(\w+)", json.dumps(states)))


def only_chapter(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(build, "SOURCES", folder / "src")
    patch.setattr(build, "pages", lambda: ["intro"])


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The folder of a book of one chapter, executed."""
    folder = tmp_path_factory.mktemp("sliders")
    (folder / "src").mkdir()
    (folder / "src" / "intro.md").write_text(CHAPTER, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        only_chapter(patch, folder)
        build.execute_chapters(["intro"], to=folder / "book")
    (folder / "book" / "_toc.yml").write_text("format: jb-book\nroot: intro\n", "utf-8")
    shutil.copy(build.BOOK / "references.bib", folder / "book")
    return folder


@pytest.fixture
def book(written, monkeypatch) -> Path:
    only_chapter(monkeypatch, written)
    return written / "book"


def scripts(page: Path) -> list[str]:
    return [tag["src"] for tag in BeautifulSoup(page.read_text("utf-8"), "html.parser").select("script[src]")]


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_widget_that_is_shown_has_its_state_stored(name):
    notebook = nbformat.read(build.BOOK / f"{name}.ipynb", 4)
    states = build.widget_states(notebook)
    assert (set(views(notebook)) | referred(states)) - set(states) == set()


@pytest.mark.parametrize("name", CHAPTERS)
def test_executing_makes_the_widgets_that_are_stored(name, executed):
    new, old = (build.widget_states(nbformat.read(folder / f"{name}.ipynb", 4)) for folder in (executed, build.BOOK))
    assert {key: state["model_name"] for key, state in new.items()} == {
        key: state["model_name"] for key, state in old.items()
    }


def test_a_widget_without_state_is_reported(book):
    notebook = nbformat.read(book / "intro.ipynb", 4)
    (shown,) = views(notebook)
    states = build.widget_states(notebook)
    assert set(states) >= {shown} | referred(states)
    assert build.problems("intro", notebook) == []
    del states[shown]
    assert any("widget whose state is not stored" in problem for problem in build.problems("intro", notebook))


def test_executing_sliders_twice_gives_the_same_bytes(book, tmp_path):
    build.execute_chapters(["intro"], to=tmp_path / "again")
    assert (book / "intro.ipynb").read_bytes() == (tmp_path / "again" / "intro.ipynb").read_bytes()


def test_other_states_are_other_outputs(book):
    notebook = nbformat.read(book / "intro.ipynb", 4)
    before = build.outputs_digest(notebook)
    next(iter(build.widget_states(notebook).values()))["state"]["edited"] = True
    assert build.outputs_digest(notebook) != before


def test_sliders_change_the_picture_in_a_browser_without_network_and_without_python(book, tmp_path):
    if not build.widget_files():
        pytest.skip("no npm on this machine, or it cannot reach its registry")
    front = build.build_site(book, tmp_path)
    loaded = scripts(front.parent / "intro.html")
    assert any(Path(address.partition("?")[0]).name == build.WIDGET_SCRIPT for address in loaded)
    assert [address for address in loaded if "//" in address] == []
    assert (front.parent / "_static" / f"{build.WIDGET_SCRIPT}.LICENSE.txt").is_file()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    page = front.parent / "intro.html"
    moved = page.with_name("moved.html")
    moved.write_text(page.read_text("utf-8").replace("</head>", f"{MOVE}</head>", 1), "utf-8")
    shown = {}
    for path in (page, moved):
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += ["--no-first-run", f"--user-data-dir={tmp_path}/browser", "--virtual-time-budget=20000"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", path.as_uri()]
        dump = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        (shown[path],) = BeautifulSoup(dump, "html.parser").select(".jupyter-widgets img")
    assert shown[page]["alt"] == f"{ALT}. noise 0 %, looks 1"
    assert shown[moved]["alt"] == f"{ALT}. noise 10 %, looks 20"
    assert shown[page]["src"] != shown[moved]["src"]


def test_without_the_script_the_page_asks_a_server_for_it(book, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "widget_files", lambda: [])
    front = build.build_site(book, tmp_path)
    assert any("//" in address and "html-manager" in address for address in scripts(front.parent / "intro.html"))
    assert "npm cannot fetch @jupyter-widgets/html-manager" in capsys.readouterr().out


def test_script_is_fetched_once(tmp_path, monkeypatch):
    """A stand-in for npm packs a package that it counts."""
    dist = tmp_path / "package" / "dist"
    dist.mkdir(parents=True)
    for name in ("embed.js", "embed.js.LICENSE.txt", "a.woff2", "embed-amd.js"):
        (dist / name).write_text(name, "utf-8")
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\necho x >> {tmp_path}/calls\ntar czf html-manager.tgz -C {tmp_path} package\n", "utf-8")
    npm.chmod(0o755)
    monkeypatch.setattr(build.shutil, "which", lambda name: str(npm))
    for _ in range(2):
        files = build.widget_files(tmp_path / "kept")
        assert [file.name for file in files] == ["a.woff2", "embed.js", "embed.js.LICENSE.txt"]
        assert [file.read_text("utf-8") for file in files] == [file.name for file in files]
    assert (tmp_path / "calls").read_text("utf-8") == "x\n"


@pytest.mark.parametrize("npm", [None, "false"])
def test_no_npm_is_no_error(npm, tmp_path, monkeypatch):
    program = shutil.which(npm) if npm else None
    monkeypatch.setattr(build.shutil, "which", lambda name: program)
    assert build.widget_files(tmp_path / "kept") == []
    assert build.widget_files(tmp_path / "kept") == []
