"""Every chapter runs where a student opens it: with Colab's packages, a notebook file, and nothing of this repository.

The environment is made without the network. What Colab brings is linked out of the environment that runs the tests;
what the first cells have to install lies in a folder of wheels, packed out of the same environment.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from importlib.metadata import Distribution, distributions
from pathlib import Path

import build
import nbformat
import pytest
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SITE = Path(sysconfig.get_path("purelib"))
INSTALLED = {canonicalize_name(one.name): one for one in distributions(path=[str(SITE)])}
BROUGHT_BY_COLAB = ("torch", "torchvision", "numpy", "ipywidgets", "ipykernel", "pip")


def with_requirements(names: Iterable[str]) -> set[str]:
    """These distributions and all that they require."""
    found: set[str] = set()
    waiting = [(canonicalize_name(name), "") for name in names]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        found.add(name)
        for line in INSTALLED[name].requires or []:
            wanted = Requirement(line)
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
                continue
            for one in ("", *wanted.extras):
                pair = (canonicalize_name(wanted.name), one)
                if pair not in seen:
                    seen.add(pair)
                    waiting.append(pair)
    return found


def files(distribution: Distribution) -> list[str]:
    """What a distribution has put into the folder of packages, byte code aside."""
    paths = [str(path) for path in distribution.files or []]
    return [path for path in paths if not path.startswith("..") and "__pycache__" not in path]


def link(names: set[str], site: Path) -> None:
    """Link installed distributions into another folder: whole folders where nobody else has a part in them."""
    others = {path.split("/")[0] for name in INSTALLED.keys() - names for path in files(INSTALLED[name])}
    for name in names:
        for path in files(INSTALLED[name]):
            top = path.split("/")[0]
            shown = path if top in others else top
            if not (site / shown).exists():
                (site / shown).parent.mkdir(parents=True, exist_ok=True)
                (site / shown).symlink_to(SITE / shown)


def pack(distribution: Distribution, folder: Path) -> None:
    """Write an installed distribution as the wheel that it came from."""
    described = Parser().parsestr(distribution.read_text("WHEEL") or "")
    name = f"{re.sub(r'[-.]+', '_', distribution.name)}-{distribution.version}-{described.get_all('Tag')[0]}.whl"
    record = io.StringIO()
    with zipfile.ZipFile(folder / name, "w") as wheel:
        for path in files(distribution):
            if path.endswith(".dist-info/RECORD"):
                kept_in = path
            elif not path.endswith((".dist-info/INSTALLER", ".dist-info/REQUESTED")):
                wheel.write(SITE / path, path)
                csv.writer(record).writerow([path, "", ""])
        csv.writer(record).writerow([kept_in, "", ""])
        wheel.writestr(kept_in, record.getvalue())


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment variables of a machine like Colab's, on which nothing of this repository is installed."""
    folder = tmp_path_factory.mktemp("colab")
    brought = with_requirements(BROUGHT_BY_COLAB)
    venv.create(folder / "python", with_pip=False, symlinks=True)
    link(brought, next((folder / "python" / "lib").glob("python*/site-packages")))
    (folder / "wheels").mkdir()
    needed = [Requirement(line).name for line in build.project()["dependencies"]]
    needed += [name for names in build.BESIDE.values() for name in names]
    for name in with_requirements(needed) - brought:
        pack(INSTALLED[name], folder / "wheels")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "library")]
    subprocess.run(command, cwd=build.ROOT, check=True, capture_output=True)
    (library,) = (folder / "library").glob("*.whl")
    python = str(folder / "python" / "bin" / "python")
    kernel = folder / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    kernel.joinpath("kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}))
    return {
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "JUPYTER_PATH": str(folder / "jupyter"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_FIND_LINKS": str(folder / "wheels"),
        "PIP_NO_COMPILE": "1",
        "PIP_NO_INDEX": "1",
        "SMOOTHSAL_WHEEL": str(library),
    }


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.parametrize("name", build.notebooks())
def test_chapter_runs_on_colab(name, colab, tmp_path, monkeypatch):
    for variable in list(os.environ):
        if variable.startswith(("PIP_", "PYTHON", "SMOOTHSAL_", "JUPYTER")):
            monkeypatch.delenv(variable)
    for variable, value in colab.items():
        monkeypatch.setenv(variable, value)
    path = tmp_path / f"{name}.ipynb"
    path.write_text(build.serialise(build.compose(name)), "utf-8")
    notebook = nbformat.read(path, as_version=4)
    where = "import smoothsal_lib, sys\nprint(smoothsal_lib.__file__, *sys.path, sep='\\n')"
    notebook.cells.append(nbformat.v4.new_code_cell(where))
    client = NotebookClient(
        notebook, timeout=build.CELL_TIMEOUT, kernel_name="colab", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    said = printed(notebook.cells[1])
    assert "ERROR" not in said
    assert f"smoothsal_lib {build.project()['version']}, torch " in said
    assert "GPU" in said and "runs on the CPU" in said
    assert ("Network: tiny_resnet." in said) == build.follows_choice(name)
    assert str(build.ROOT) not in printed(notebook.cells[-1])
