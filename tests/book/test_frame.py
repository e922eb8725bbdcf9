"""The files around the book agree with each other, and the wheel carries what the library needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile

import build
import pytest

README = (build.ROOT / "README.md").read_text("utf-8")


def test_requirements_are_those_of_the_project():
    lines = (build.ROOT / "requirements.txt").read_text("utf-8").splitlines()
    project = build.project()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert listed == project["dependencies"] + project["optional-dependencies"]["book"]


def test_versions_have_no_exact_pins():
    project = build.project()
    every = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    assert [requirement for requirement in every if "==" in requirement] == []


@pytest.mark.parametrize("path", build.addressed(), ids=lambda path: path.name)
def test_address_and_badges_are_those_of_the_config(path):
    assert path.read_text("utf-8") == build.addressed()[path], "run: python book/build.py badges"


@pytest.mark.parametrize("name", build.chapters())
def test_readme_opens_every_chapter_in_colab(name):
    assert build.repository().badge(name) in README


def test_a_new_address_reaches_every_file(monkeypatch):
    moved = build.Repository("https://github.com/somebody/else", "trunk", "v9")
    monkeypatch.setattr(build, "repository", lambda: moved)
    for path, text in build.addressed().items():
        assert moved.url in text or path.name == "README.md"
        assert build.project()["urls"]["Repository"] not in text
        assert "smooth-deep-saliency/smooth-deep-saliency" not in text


def test_citation_names_this_version():
    assert f"version: {build.project()['version']}\n" in (build.ROOT / "CITATION.cff").read_text("utf-8")


def test_files_that_the_readme_links_to_exist():
    targets = re.findall(r"\]\(([^)#\s]+)\)", README)
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (build.ROOT / target).is_file()] == []


def test_commands_of_the_readme_exist_in_the_makefile():
    targets = re.findall(r"^(\w+):", (build.ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert set(re.findall(r"^make (\w+)", README, re.MULTILINE)) <= set(targets)
    assert "make test" in (build.ROOT / ".ci" / "run").read_text("utf-8")


def test_quick_start_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) <= 12
    exec(compile(code, "README.md", "exec"), {})
    assert "total variation" in capsys.readouterr().out


def test_wheel_carries_data_and_no_checkpoint(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(build.ROOT / name, source)
    for name in ("smoothsal_lib", "data"):
        shutil.copytree(build.ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "data" / "net.checkpoint.pt").write_bytes(b"half trained")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    data = [path.relative_to(build.ROOT).as_posix() for path in (build.ROOT / "data").rglob("*") if path.is_file()]
    wanted = {f"smoothsal_lib/{name}" for name in data if not name.endswith((".checkpoint.pt", ".partial"))}
    assert {name for name in names if name.startswith("smoothsal_lib/data/")} == wanted
    assert "smoothsal_lib/__init__.py" in names
