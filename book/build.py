"""The book's pipeline: chapters in Markdown become executed notebooks, and these become a site.

    python book/build.py book                      execute what changed, then build the site (this is `make book`)
    python book/build.py execute 03-checkerboard   execute the named chapters only, changed or not
    python book/build.py html                      build the site from the stored notebooks (this is `make html`)
    python book/build.py badges                    carry the address of _config.yml into README.md and its like

A chapter is written in ``book/src/NAME.md`` and stored with its outputs as ``book/NAME.ipynb``; a page without code is
``book/NAME.md``; ``book/_toc.yml`` names them all. What the pipeline adds to a notebook (the Colab button, the install
cell, the request for a GPU) it derives from ``_config.yml`` and ``pyproject.toml``, so that the Markdown stays prose
and code. Executing a chapter twice on one machine gives the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
SOURCES = BOOK / "src"
BUILD = ROOT / "_build"
RECORD = BUILD / "execution.json"
FRONT_PAGES = ("index.html", "intro.html")

CELL_TIMEOUT = 600  # seconds
SIZE_LIMIT = 1_000_000  # bytes of one notebook
NPM_TIMEOUT = 60  # seconds
ALT_LENGTH = 20  # characters; shorter than that, a text cannot stand for a picture
ADDED_BY_BUILD = "added-by-build"  # tag of the cells that are in the notebook and not in the Markdown

# Packages whose version can change what a cell prints or draws.
ENVIRONMENT = ("torch", "torchvision", "numpy", "scikit-image", "matplotlib")
# What a notebook says of its language; the kernel would add its own version of Python.
LANGUAGE = {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"}
# Colab brings these, matched to its GPU driver: never ask pip for them there.
BROUGHT_BY_COLAB = {"torch", "torchvision", "numpy"}
# The script that shows widgets on a page without a kernel, and the package of npm that has it.
WIDGET_PACKAGE = "@jupyter-widgets/html-manager@1.0.15"
WIDGET_SCRIPT = "embed.js"
WIDGET_FILES = (WIDGET_SCRIPT, f"{WIDGET_SCRIPT}.LICENSE.txt", "*.woff2")  # the last: fonts that the script asks for
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
# What chapters import besides the library; part of the extra `book`.
IMPORTED_BY_CHAPTERS = ("captum",)


class BookError(Exception):
    """Something the reader of the message can repair; printed without a traceback."""


# --- what the book consists of ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repository:
    """Where the repository lives, as ``_config.yml`` says."""

    url: str
    branch: str
    tag: str

    @property
    def slug(self) -> str:
        """Owner and name, as in ``owner/name``."""
        return self.url.removeprefix("https://github.com/")

    def colab(self, name: str) -> str:
        """Address that opens a chapter in Google Colab."""
        return f"https://colab.research.google.com/github/{self.slug}/blob/{self.branch}/book/{name}.ipynb"

    def badge(self, name: str) -> str:
        """Markdown of the button that opens a chapter in Google Colab."""
        return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({self.colab(name)})"


def project() -> dict[str, Any]:
    """The table ``[project]`` of ``pyproject.toml``."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def repository() -> Repository:
    """The repository's address from ``_config.yml``, and the tag of this version."""
    settings = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]
    return Repository(settings["url"].rstrip("/"), settings["branch"], f"v{project()['version']}")


def pages() -> list[str]:
    """Names of all pages, in the order of ``book/_toc.yml``."""

    def files(node: Any) -> Iterator[str]:
        if isinstance(node, list):
            for item in node:
                yield from files(item)
        elif isinstance(node, dict):
            for key, value in node.items():
                if key in ("root", "file"):
                    yield value
                else:
                    yield from files(value)

    return list(files(yaml.safe_load((BOOK / "_toc.yml").read_text("utf-8"))))


def chapters() -> list[str]:
    """Names of the pages with code that are written, in reading order.

    Raises:
        BookError: for a chapter that ``book/_toc.yml`` does not list; no reader would find it.
    """
    listed = pages()
    for path in sorted(SOURCES.glob("*.md")):
        if path.stem not in listed:
            raise BookError(f"book/src/{path.name} is not listed in book/_toc.yml: add it there")
    return [name for name in listed if (SOURCES / f"{name}.md").is_file()]


def title(name: str) -> str:
    """The heading of a chapter."""
    match = re.search(r"^# (.+)$", (SOURCES / f"{name}.md").read_text("utf-8"), re.MULTILINE)
    if match is None:
        raise BookError(f"book/src/{name}.md has no heading: begin it with a line '# Title'")
    return match[1].strip()


# --- Markdown to notebook ---------------------------------------------------------------------------------------------


def install_cell(repo: Repository) -> str:
    """Source of the cell that makes a chapter run on Google Colab; anywhere else it does nothing."""
    names = [re.split(r"[^\w-]", requirement)[0] for requirement in (*project()["dependencies"], *IMPORTED_BY_CHAPTERS)]
    beside = " ".join(name for name in names if name not in BROUGHT_BY_COLAB)
    return (
        "# On Google Colab only: add the book's library, and what it lacks, to the torch that is there.\n"
        "import sys\n\n"
        'if "google.colab" in sys.modules:\n'
        f"    %pip install --quiet --no-deps git+{repo.url}@{repo.tag}\n"
        f"    %pip install --quiet {beside}"
    )


def compose(name: str) -> Any:
    """The notebook of a chapter, without outputs: the cells of ``book/src/NAME.md`` after the two that Colab needs."""
    repo = repository()
    notebook = jupytext.reads((SOURCES / f"{name}.md").read_text("utf-8"), fmt="md:myst")
    first = [
        nbformat.v4.new_markdown_cell(repo.badge(name), metadata={"tags": [ADDED_BY_BUILD, "remove-cell"]}),
        nbformat.v4.new_code_cell(install_cell(repo), metadata={"tags": [ADDED_BY_BUILD, "remove-cell"]}),
    ]
    notebook.cells = first + notebook.cells
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        # An id made from the text stays when cells are added before it, so that a diff shows what changed.
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        if {"hide-cell", "hide-input"} & set(cell.metadata.get("tags", [])):
            cell.metadata["cellView"] = "form"  # what Colab calls a cell with its code folded away
    notebook.metadata = nbformat.from_dict(
        {
            "accelerator": "GPU",
            "colab": {"gpuType": "T4", "provenance": []},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": LANGUAGE,
        }
    )
    return notebook


def serialise(notebook: Any) -> str:
    """The text of an ``.ipynb`` file, the same for the same notebook."""
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def own_code(notebook: Any) -> list[Any]:
    """The code cells that the chapter's author wrote."""
    return [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and ADDED_BY_BUILD not in cell.metadata.get("tags", [])
    ]


# --- executing --------------------------------------------------------------------------------------------------------


def kernel_environment() -> dict[str, str]:
    """Environment variables of a chapter's kernel: the same on every machine, as far as a program can make it so."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SMOOTHSAL_")}
    nowhere = "http://127.0.0.1:9"  # a download fails at once instead of making the book depend on the network
    return environment | {
        "CUDA_VISIBLE_DEVICES": "",
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "IPYTHONDIR": str(BUILD / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "MPLCONFIGDIR": str(BUILD / "matplotlib"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONHASHSEED": "0",
        "TQDM_DISABLE": "1",  # a progress bar shows times, and is over when the page is read
        "http_proxy": nowhere,
        "https_proxy": nowhere,
    }


def execute(name: str, notebook: Any, progress: Callable[[int, int], None]) -> None:
    """Run all cells in a new kernel and store their outputs in the notebook, in place.

    Args:
        name: the chapter, for messages.
        notebook: from :func:`compose`.
        progress: called before each cell with its number, from 1, and the number of cells.

    Raises:
        BookError: at the first cell that fails; the message names chapter, cell, first line and error.
    """
    position = 0

    def before(cell: Any, cell_index: int) -> None:
        nonlocal position
        position = cell_index
        progress(cell_index + 1, len(notebook.cells))

    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        startup_timeout=CELL_TIMEOUT,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        on_cell_start=before,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(BOOK)}},
    )
    try:
        client.execute(env=kernel_environment())
    except CellExecutionError as error:
        last = f"{error.ename}: {error.evalue}".strip().splitlines()[-1]
        raise BookError(place(name, notebook, position, f"failed\n    {last}")) from None
    except CellTimeoutError:
        raise BookError(place(name, notebook, position, f"took longer than {CELL_TIMEOUT} s")) from None
    except DeadKernelError:
        raise BookError(place(name, notebook, position, "ended its kernel; was there memory enough?")) from None
    tidy(notebook)


def place(name: str, notebook: Any, position: int, what: str) -> str:
    """A message about one cell: its chapter, its number among the author's code cells, and where to find it."""
    cell = notebook.cells[position]
    number = sum(c.cell_type == "code" for c in notebook.cells[: position + 1]) - 1  # the install cell is number 0
    verdict, _, detail = what.partition("\n")
    lines = cell.source.strip().splitlines() or ["(empty)"]
    text = (SOURCES / f"{name}.md").read_text("utf-8")
    start = text.find(cell.source)
    line = f":{text.count(chr(10), 0, start) + 1}" if start >= 0 else ""
    message = f"{name}: code cell {number} {verdict}\n    book/src/{name}.md{line}: {lines[0]}"
    return f"{message}\n{detail}" if detail else message


def tidy(notebook: Any) -> None:
    """Take out of the outputs what differs from one run to the next."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                picture = base64.b64decode(output["data"]["image/png"])
                output["data"]["image/png"] = base64.b64encode(without_text(picture)).decode()
    notebook.metadata["language_info"] = dict(LANGUAGE)
    text = serialise(notebook)
    for number, model_id in enumerate(widget_states(notebook)):
        text = text.replace(model_id, f"{number:032x}")
    notebook.update(nbformat.from_dict(json.loads(text)))


def widget_states(notebook: Any) -> dict[str, Any]:
    """What a page without a kernel knows of its widgets, by model id, in the order in which they were made."""
    states: dict[str, Any] = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    return states


def without_text(png: bytes) -> bytes:
    """A PNG without its comments, which name the version of the program that drew it."""
    kept, position = [png[:8]], 8
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        chunk = png[position : position + 12 + length]
        if chunk[4:8] not in (b"tEXt", b"zTXt", b"iTXt", b"tIME", b"eXIf"):
            kept.append(chunk)
        position += len(chunk)
    return b"".join(kept)


def problems(name: str, notebook: Any) -> list[str]:
    """What must not be stored: errors, warnings, addresses, paths of this machine, pictures without words.

    Returns:
        One message for each, naming the cell; empty for a chapter in order.
    """
    found = []
    size = len(serialise(notebook).encode())
    if size > SIZE_LIMIT:
        found.append(f"{name}: the notebook has {size:,} bytes, more than {SIZE_LIMIT:,}: draw smaller pictures")
    here = [str(path) for path in (ROOT, Path(sys.prefix), Path.home())]
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue

        def report(what: str, position: int = position) -> None:
            found.append(place(name, notebook, position, what))

        pictures = 0
        for output in cell.outputs:
            kind, data = output["output_type"], output.get("data", {})
            text = str(output.get("text", "")) + "".join(str(data[key]) for key in data if key.startswith("text/"))
            if kind == "error":
                report("stores an error: show the message with try, except and print")
            elif kind == "stream" and output["name"] == "stderr":
                report(f"writes to stderr: repair what it warns about\n    {text.strip().splitlines()[0]}")
            if re.search(r"\bat 0x[0-9a-fA-F]{6,}", text):
                report("shows a memory address, which changes from run to run: end the cell with something readable")
            if any(path in text for path in here if len(path) > 1):
                report("shows a path of this machine")
            if WIDGET_VIEW in data and data[WIDGET_VIEW]["model_id"] not in widget_states(notebook):
                report("shows a widget whose state is not stored, which leaves its place on the page empty")
            pictures += sum(key.startswith("image/") for key in data)
        if pictures > 1:
            report("draws several pictures, which share one text: draw one, or make several cells")
        if pictures:
            settings = cell.metadata.get("mystnb", {})
            if len(settings.get("image", {}).get("alt", "")) < ALT_LENGTH:
                report("has no text for those who cannot see its picture: set mystnb.image.alt")
            if not settings.get("figure", {}).get("caption"):
                report("has no caption: set mystnb.figure.caption")
    return found


# --- what has to be executed again ------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a chapter prints."""
    return {"Python": platform.python_version()} | {name: version(name) for name in ENVIRONMENT}


def ingredients() -> str:
    """Digest of all that chapters share: the library, the embedded weights and results, the versions."""
    digest = hashlib.sha256(json.dumps(environment()).encode())
    for folder in (ROOT / "smoothsal_lib", ROOT / "data"):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def key(notebook: Any, shared: str) -> str:
    """Digest of what decides a chapter's outputs: its code, and :func:`ingredients`. Prose is not among it."""
    code = [[cell.source, cell.metadata.get("tags", [])] for cell in own_code(notebook)]
    return hashlib.sha256(json.dumps([shared, code]).encode()).hexdigest()


def outputs_digest(notebook: Any) -> str:
    """Digest of the stored outputs and widgets, to notice a notebook that came from elsewhere."""
    outputs = [cell.outputs for cell in own_code(notebook)]
    return hashlib.sha256(json.dumps([outputs, widget_states(notebook)], sort_keys=True).encode()).hexdigest()


def read_record() -> dict[str, dict[str, Any]]:
    """What this machine executed, by chapter: ``key``, ``outputs`` (digest) and ``seconds``."""
    if not RECORD.is_file():
        return {}
    record: dict[str, dict[str, Any]] = json.loads(RECORD.read_text("utf-8"))
    return record


def reuse(notebook: Any, stored: Path, entry: dict[str, Any] | None, wanted: str) -> bool:
    """Fill in the stored outputs if they are what executing would give; say whether they are."""
    if entry is None or entry["key"] != wanted or not stored.is_file():
        return False
    before = nbformat.read(stored, as_version=4)
    if outputs_digest(before) != entry["outputs"] or len(own_code(before)) != len(own_code(notebook)):
        return False
    code = [[cell for cell in book.cells if cell.cell_type == "code"] for book in (notebook, before)]
    for new, old in zip(*code, strict=True):
        new.outputs, new.execution_count = old.outputs, old.execution_count
    notebook.metadata = before.metadata
    return True


def execute_chapters(names: list[str], *, again: bool = False, to: Path = BOOK) -> None:
    """Execute chapters and write their notebooks, showing progress.

    Args:
        names: from :func:`chapters`.
        again: execute also what did not change.
        to: the folder to write into; the record is kept for ``book/`` only.

    Raises:
        BookError: at the first cell that fails, or for outputs that must not be stored.
    """
    BUILD.mkdir(exist_ok=True)
    to.mkdir(parents=True, exist_ok=True)
    # Matplotlib announces its first font search on stderr: let that happen outside of a chapter.
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], env=kernel_environment(), check=True)
    record, shared = read_record(), ingredients()
    width = max(map(len, names), default=0)
    for number, name in enumerate(names, 1):
        label = f"[{number}/{len(names)}] {name:<{width}}"
        notebook, stored = compose(name), to / f"{name}.ipynb"
        wanted = key(notebook, shared)
        if not again and to == BOOK and reuse(notebook, stored, record.get(name), wanted):
            stored.write_text(serialise(notebook), "utf-8")
            print(f"{label}  unchanged", flush=True)
            continue
        start = time.monotonic()

        def progress(cell: int, cells: int, label: str = label, start: float = start) -> None:
            if sys.stdout.isatty():
                print(f"\r{label}  cell {cell}/{cells}  {time.monotonic() - start:.0f} s ", end="", flush=True)

        try:
            execute(name, notebook, progress)
            found = problems(name, notebook)
            if found:
                raise BookError("\n".join(found))
        finally:
            if sys.stdout.isatty():
                print("\r\033[K", end="")
        seconds = time.monotonic() - start
        stored.write_text(serialise(notebook), "utf-8")
        print(f"{label}  {seconds:.0f} s", flush=True)
        if to == BOOK:
            record[name] = {"key": wanted, "outputs": outputs_digest(notebook), "seconds": round(seconds)}
            RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")


# --- the site ---------------------------------------------------------------------------------------------------------


def status_page(names: list[str]) -> str:
    """Markdown of the page that says how long each chapter took on this machine, and with which versions."""
    record = read_record()
    seconds = {name: record[name]["seconds"] if name in record else "*stored*" for name in names}
    rows = [f"| [{title(name)}]({name}.ipynb) | {seconds[name]} |" for name in names]
    versions = [f"| {name} | {number} |" for name, number in environment().items()]
    return "\n".join(
        [
            "# Execution record",
            "",
            "Every figure in the chapters was computed by the cell above it, without a GPU and without the network.",
            "This page is made with the site. It gives the seconds each chapter took on the machine that built it;",
            "*stored* means that the notebook was taken as it lies in the repository.",
            "",
            "| Chapter | Seconds |",
            "|---|---:|",
            *rows,
            "",
            "| Built with | Version |",
            "|---|---|",
            *versions,
            "",
        ]
    )


def widget_files(folder: Path = BUILD / "widgets") -> list[Path]:
    """The script that shows widgets and what belongs to it, so that readers need not fetch it from elsewhere.

    Args:
        folder: where the files are kept for the next time.

    Returns:
        The files; none where npm is not there or cannot fetch them.
    """
    kept, npm = folder / WIDGET_PACKAGE.rpartition("/")[2], shutil.which("npm")
    if not kept.is_dir() and npm is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as fetched:
            command = [npm, "pack", "--fetch-retries=0", f"--fetch-timeout={NPM_TIMEOUT * 1000}", WIDGET_PACKAGE]
            try:
                subprocess.run(command, cwd=fetched, capture_output=True, check=True, timeout=2 * NPM_TIMEOUT)
            except subprocess.SubprocessError:
                return []
            (package,) = Path(fetched).glob("*.tgz")
            shutil.unpack_archive(package, fetched, "gztar")
            (Path(fetched) / "package" / "dist").rename(kept)
    return sorted(path for pattern in WIDGET_FILES for path in kept.glob(pattern))


def build_site(book: Path = BOOK, output: Path = ROOT, *, draft: bool = False) -> Path:
    """Build the HTML from the notebooks in ``book``; a warning is an error.

    Args:
        book: folder with ``_toc.yml``, the notebooks and the pages.
        output: the site goes to ``_build/html`` in it.
        draft: leave out chapters that are listed and not written, instead of refusing.

    Returns:
        The path of the front page.

    Raises:
        BookError: for a missing page, or with what Sphinx said.
    """
    names = chapters()
    (book / "status.md").write_text(status_page(names), "utf-8")
    missing = [page for page in pages() if not any((book / f"{page}{end}").is_file() for end in (".ipynb", ".md"))]
    if missing and not draft:
        raise BookError(f"book/_toc.yml lists pages that are not there: {', '.join(missing)} (--draft leaves them out)")
    build = output / "_build"
    # A page that did not change is not read again, so its warnings would be lost: start afresh.
    shutil.rmtree(build / "html", ignore_errors=True)
    shutil.rmtree(build / ".doctrees", ignore_errors=True)
    build.mkdir(parents=True, exist_ok=True)
    toc = book / "_toc.yml"
    if missing:
        contents = yaml.safe_load(toc.read_text("utf-8"))
        for part in contents["parts"]:
            part["chapters"] = [chapter for chapter in part["chapters"] if chapter["file"] not in missing]
        contents["parts"] = [part for part in contents["parts"] if part["chapters"]]
        toc = build / "_toc.yml"
        toc.write_text(yaml.safe_dump(contents, sort_keys=False), "utf-8")
    config, scripts = ROOT / "_config.yml", []
    if any(widget_states(nbformat.read(path, as_version=4)) for path in book.glob("*.ipynb")):
        scripts = widget_files()
        if scripts:
            settings = yaml.safe_load(config.read_text("utf-8"))
            # MyST-NB's own value is the address of a server that readers would have to reach.
            settings["sphinx"]["config"]["nb_ipywidgets_js"] = {WIDGET_SCRIPT: {"defer": "defer"}}
            config = build / "_config.yml"
            config.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
        else:
            print(f"npm cannot fetch {WIDGET_PACKAGE}: pages with sliders will fetch it when they are read", flush=True)
    command = [str(Path(sysconfig.get_path("scripts")) / "jupyter-book"), "build", str(book)]
    command += ["--config", str(config), "--toc", str(toc), "--path-output", str(output)]
    print("Building the site ...", flush=True)
    command += ["-n", "-W", "--keep-going"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"NO_COLOR": "1"})
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).splitlines()
        telling = [line for line in lines if re.search(r"WARNING|ERROR|CRITICAL", line)] or lines[-20:]
        raise BookError("the site could not be built:\n" + "\n".join(telling))
    for path in scripts:
        shutil.copy(path, build / "html" / "_static")
    for page in FRONT_PAGES:
        if not (build / "html" / page).is_file():
            raise BookError(f"jupyter-book reported success without writing {page}")
    return build / "html" / FRONT_PAGES[0]


# --- the address ------------------------------------------------------------------------------------------------------


def with_badges(readme: str) -> str:
    """README.md with its table of chapters made anew."""
    repo = repository()
    rows = [f"| [{title(name)}](book/src/{name}.md) | {repo.badge(name)} |" for name in chapters()]
    table = "\n".join(["| Chapter | |", "|---|---|", *rows])
    return re.sub(
        r"(<!-- chapters: made by book/build.py -->\n).*?(<!-- end of chapters -->)",
        lambda match: f"{match[1]}{table}\n{match[2]}",
        readme,
        flags=re.DOTALL,
    )


def addressed() -> dict[Path, str]:
    """The files that repeat the address of ``_config.yml``, with the text they should have."""
    old, new = project()["urls"]["Repository"], repository().url
    paths = [ROOT / name for name in ("pyproject.toml", "CITATION.cff", "README.md")]
    texts = {path: path.read_text("utf-8").replace(old, new) for path in paths}
    texts[ROOT / "README.md"] = with_badges(texts[ROOT / "README.md"])
    return texts


def write_addresses() -> None:
    """Carry the address of ``_config.yml`` and the list of chapters into the files that repeat them."""
    for path, text in addressed().items():
        if path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


# --- the command line -------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line of this file."""
    top = argparse.ArgumentParser(prog="book/build.py", description="Execute the book's chapters and build its site.")
    commands = top.add_subparsers(dest="command", required=True)
    book = commands.add_parser("book", help="execute what changed, then build the site")
    one = commands.add_parser("execute", help="execute chapters and store their outputs")
    one.add_argument("names", nargs="*", metavar="NAME", help="such as 03-checkerboard; none: all that changed")
    html = commands.add_parser("html", help="build the site from the stored notebooks")
    for command in (book, html):
        command.add_argument("--draft", action="store_true", help="leave out chapters that are not written")
    commands.add_parser("badges", help="carry the address of _config.yml into README.md, CITATION.cff, pyproject.toml")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if all went well, 1 after a message."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "badges":
            write_addresses()
        if options.command == "execute":
            known = chapters()
            for name in options.names:
                if name not in known:
                    raise BookError(f"no chapter {name!r}; written are: {', '.join(known) or 'none yet'}")
            execute_chapters(options.names or known, again=bool(options.names))
        if options.command == "book":
            execute_chapters(chapters())
            write_addresses()
        if options.command in ("book", "html"):
            front = build_site(draft=options.draft)
            print(f"The book is ready: {front}")
    except BookError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
