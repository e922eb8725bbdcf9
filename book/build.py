"""The book's pipeline: chapters in Markdown become executed notebooks, and these become a site.

    python book/build.py book                      execute what changed, then build the site (this is `make book`)
    python book/build.py execute 03-checkerboard   execute the named chapters only, changed or not
    python book/build.py html                      build the site from the stored notebooks (this is `make html`)
    python book/build.py book --model resnet34     the same with another network, beneath _build/resnet34/
    python book/build.py times                     measure how long each chapter takes, and write it into the chapters
    python book/build.py badges                    carry the address of _config.yml into README.md and its like

A chapter is written in ``book/src/NAME.md`` and stored with its outputs as ``book/NAME.ipynb``; a page without code is
``book/NAME.md``; ``book/_toc.yml`` names them all. What the pipeline adds to a notebook (the Colab button, the install
cell, the request for a GPU) it derives from ``_config.yml`` and ``pyproject.toml``, so that the Markdown stays prose
and code. Executing a chapter twice on one machine gives the same bytes.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from PIL import Image

from smoothsal_lib import runtime
from smoothsal_lib.models import EMBEDDED, load_model
from smoothsal_lib.record import provenance

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
SOURCES = BOOK / "src"
BUILD = ROOT / "_build"
RECORD = BUILD / "execution.json"
RESULTS = ROOT / "data" / "results"
TIMES = RESULTS / "chapter_times.json"
FRONT_PAGE = "intro"

CELL_TIMEOUT = 600  # seconds
SIZE_LIMIT = 1_000_000  # bytes of one notebook
ALT_LENGTH = 20  # characters; shorter than that, a text cannot stand for a picture
ADDED_BY_BUILD = "added-by-build"  # tag of the cells that are in the notebook and not in the Markdown
FOLDED = {"hide-cell", "hide-input", "remove-input", ADDED_BY_BUILD}  # tags of cells whose code Colab folds away
WORDS_PER_MINUTE = 120  # of a text with formulas and figures to think about
TOLERANCE = 1.5  # between the minutes that a chapter states and those that it takes
TIME_LINE = re.compile(r"^\*Time: .*\*$", re.MULTILINE)

# Packages whose version can change what a cell prints or draws.
ENVIRONMENT = ("torch", "torchvision", "numpy", "scikit-image", "matplotlib")
# What a notebook says of its language; the kernel would add its own version of Python.
LANGUAGE = {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"}
# Networks that a reader may choose for the chapters that are about any network. The first is the text's.
NETWORKS = (EMBEDDED[0], "resnet18", "resnet34")
# What is there in Colab or on a lab's machine matches its GPU driver: pip must leave it as it is.
KEPT = ("numpy", "torch", "torchvision")
# An ipywidget is moved by a kernel, which a page has not.
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
# What a chapter needs besides the library's dependencies; part of the extra `book`.
BESIDE = {
    "05-backward-hook": ("captum",),
    "10-smoothgrad": ("zennit",),
    "13-slides": ("fsspec", "imagecodecs", "tiffslide"),
}


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


def notebooks() -> list[str]:
    """Names of the pages with code that are written, in reading order.

    Raises:
        BookError: for a page that ``book/_toc.yml`` does not list; no reader would find it.
    """
    listed = pages()
    for path in sorted(SOURCES.glob("*.md")):
        if path.stem not in listed:
            raise BookError(f"book/src/{path.name} is not listed in book/_toc.yml: add it there")
    return [name for name in listed if (SOURCES / f"{name}.md").is_file()]


def chapters() -> list[str]:
    """Those of the :func:`notebooks` that are chapters: all but the front page."""
    return [name for name in notebooks() if name != FRONT_PAGE]


def title(name: str) -> str:
    """The heading of a chapter."""
    match = re.search(r"^# (.+)$", (SOURCES / f"{name}.md").read_text("utf-8"), re.MULTILINE)
    if match is None:
        raise BookError(f"book/src/{name}.md has no heading: begin it with a line '# Title'")
    return match[1].strip()


# --- Markdown to notebook ---------------------------------------------------------------------------------------------


def follows_choice(name: str) -> bool:
    """Whether a chapter is about any network, and takes the one that ``SMOOTHSAL_MODEL`` or the reader chooses."""
    return "sal.load_model()" in (SOURCES / f"{name}.md").read_text("utf-8")


def install_cell(repo: Repository, name: str) -> str:
    """Source of a chapter's first cell: it installs what is missing, and says where the chapter runs."""
    dependencies = [re.split(r"[^\w-]", requirement)[0] for requirement in project()["dependencies"]]
    first, choice = ["# @title Set up"], ""
    if follows_choice(name):
        first = ["# @title Set up, with a network"]
        first.append(f'MODEL = "{NETWORKS[0]}"  # @param {json.dumps(NETWORKS)}')
        choice = ", MODEL"
    return "\n".join(
        [
            *first,
            "import os",
            "from importlib.metadata import distributions",
            "from importlib.util import find_spec",
            "",
            'if not find_spec("smoothsal_lib"):',
            f'    source = "git+{repo.url}@{repo.tag}"',
            '    source = os.environ.get("SMOOTHSAL_WHEEL", source)',
            '    %pip install -q --no-deps "{source}"',
            "here = {d.name: d.version for d in distributions()}",
            f'needed = "{" ".join((*dependencies, *BESIDE.get(name, ())))}"',
            "missing = [name for name in needed.split() if name not in here]",
            "if missing:  # and whatever pip does, these stay as they are",
            f'    kept = [f"{{n}}=={{here[n]}}" for n in {json.dumps(KEPT)} if n in here]',
            '    %pip install -q {" ".join(missing + kept)}',
            "",
            "from smoothsal_lib import runtime",
            "",
            f'runtime.start("{name}"{choice})',
        ]
    )


def compose(name: str) -> Any:
    """The notebook of a chapter, without outputs: the cells of ``book/src/NAME.md`` after the button and the set-up."""
    repo = repository()
    notebook = jupytext.reads((SOURCES / f"{name}.md").read_text("utf-8"), fmt="md:myst")
    first = [
        nbformat.v4.new_markdown_cell(repo.badge(name), metadata={"tags": [ADDED_BY_BUILD, "remove-cell"]}),
        nbformat.v4.new_code_cell(install_cell(repo, name), metadata={"tags": [ADDED_BY_BUILD, "remove-cell"]}),
    ]
    notebook.cells = first + notebook.cells
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        # An id made from the text stays when cells are added before it, so that a diff shows what changed.
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        if cell.cell_type == "code" and FOLDED & set(cell.metadata.get("tags", [])):
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


def quiz_of(code: str) -> str | None:
    """The text of the quiz that a cell shows; None for any other cell."""
    if ".quiz(" not in code:
        return None
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "quiz":
            return str(ast.literal_eval(node.args[0]))
    return None


# --- executing --------------------------------------------------------------------------------------------------------


def kernel_environment(model: str | None = None) -> dict[str, str]:
    """Environment variables of a chapter's kernel: the same on every machine, as far as a program can make it so.

    Args:
        model: the network of the chapters that leave the choice; ``None`` leaves it to them.
    """
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
        **({} if model is None else {runtime.VARIABLE: model}),
    }


def execute(name: str, notebook: Any, progress: Callable[[int, int], None], model: str | None = None) -> float:
    """Run all cells in a new kernel and store their outputs in the notebook, in place.

    Args:
        name: the chapter, for messages.
        notebook: from :func:`compose`.
        progress: called before each cell with its number, from 1, and the number of cells.
        model: as :func:`kernel_environment` takes it.

    Returns:
        The seconds it took, with the kernel's start.

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
    start = time.monotonic()
    try:
        client.execute(env=kernel_environment(model))
    except CellExecutionError as error:
        last = f"{error.ename}: {error.evalue}".strip().splitlines()[-1]
        raise BookError(place(name, notebook, position, f"failed\n    {last}")) from None
    except CellTimeoutError:
        raise BookError(place(name, notebook, position, f"took longer than {CELL_TIMEOUT} s")) from None
    except DeadKernelError:
        raise BookError(place(name, notebook, position, "ended its kernel; was there memory enough?")) from None
    seconds = time.monotonic() - start
    tidy(notebook)
    return seconds


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
        if ADDED_BY_BUILD in cell.metadata.get("tags", []):
            cell.outputs = []  # it tells what is on this machine
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                picture = base64.b64decode(output["data"]["image/png"])
                output["data"]["image/png"] = base64.b64encode(smallest(picture)).decode()
    notebook.metadata["language_info"] = dict(LANGUAGE)


def smallest(png: bytes) -> bytes:
    """A PNG of the same pixels, as small as Pillow can write it: no opacity where all is opaque, no comments.

    The comments name the version of the program that drew it.
    """
    with Image.open(io.BytesIO(png)) as picture:
        kept = {"dpi": picture.info["dpi"]} if "dpi" in picture.info else {}
        opaque = picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (255, 255)
        pixels = picture.convert("RGB") if opaque else picture.copy()
    pixels.info.clear()
    written = io.BytesIO()
    pixels.save(written, "PNG", optimize=True, **kept)
    return written.getvalue()


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
            if WIDGET_VIEW in data:
                report("shows an ipywidget, which no page can move: take smoothsal_lib.widgets, or tag skip-execution")
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
            # How long chapters took is in no output: it stands in the text and in the first cell.
            if path.is_file() and path.suffix != ".pyc" and path != TIMES:
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def key(notebook: Any, shared: str) -> str:
    """Digest of what decides a chapter's outputs: its code, and :func:`ingredients`. Prose is not among it."""
    code = [[cell.source, cell.metadata.get("tags", [])] for cell in own_code(notebook)]
    return hashlib.sha256(json.dumps([shared, code]).encode()).hexdigest()


def outputs_digest(notebook: Any) -> str:
    """Digest of the stored outputs, to notice a notebook that came from elsewhere."""
    outputs = [cell.outputs for cell in own_code(notebook)]
    return hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()


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


def execute_chapters(
    names: list[str], *, again: bool = False, to: Path = BOOK, model: str | None = None
) -> dict[str, float]:
    """Execute chapters and write their notebooks, showing progress.

    Args:
        names: from :func:`notebooks`.
        again: execute also what did not change.
        to: the folder to write into; the record is kept for ``book/`` only.
        model: the network of the chapters that leave the choice, instead of the text's.

    Returns:
        The seconds of each chapter that was executed.

    Raises:
        BookError: at the first cell that fails, or for outputs that must not be stored.
    """
    BUILD.mkdir(exist_ok=True)
    to.mkdir(parents=True, exist_ok=True)
    # Matplotlib announces its first font search on stderr: let that happen outside of a chapter.
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], env=kernel_environment(), check=True)
    record, shared, took = read_record(), ingredients(), {}
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
            took[name] = execute(name, notebook, progress, model)
            found = problems(name, notebook)
            if found:
                raise BookError("\n".join(found))
        finally:
            if sys.stdout.isatty():
                print("\r\033[K", end="")
        stored.write_text(serialise(notebook), "utf-8")
        print(f"{label}  {took[name]:.0f} s", flush=True)
        if to == BOOK:
            record[name] = {"key": wanted, "outputs": outputs_digest(notebook), "seconds": round(took[name])}
            RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")
    return took


def copy_pages(to: Path) -> None:
    """Copy what the site needs besides notebooks: the table of contents, pages without code, figures, references."""
    shutil.copytree(
        BOOK, to, ignore=shutil.ignore_patterns("*.ipynb", "src", "status.md", "__pycache__"), dirs_exist_ok=True
    )


def execute_with(model: str) -> tuple[Path, dict[str, float]]:
    """Execute the chapters that leave the choice of a network with this one; the stored notebooks stay as they are.

    Args:
        model: one that is downloaded; here, since the chapters run without the network.

    Returns:
        A book beneath ``_build/``, with the stored notebooks of the other chapters, and the seconds of those executed.

    Raises:
        BookError: when the network cannot be had, or as :func:`execute_chapters` does.
    """
    try:
        load_model(model)
    except RuntimeError as error:
        raise BookError(str(error)) from None
    folder = BUILD / model / "book"
    shutil.rmtree(folder, ignore_errors=True)
    copy_pages(folder)
    free = [name for name in notebooks() if follows_choice(name)]
    for stored in BOOK.glob("*.ipynb"):
        if stored.stem not in free:
            shutil.copy(stored, folder)
    return folder, execute_chapters(free, to=folder, model=model)


# --- how long a chapter takes -----------------------------------------------------------------------------------------


def words(name: str) -> int:
    """How many words a chapter has for its reader; code and what is folded away do not count."""
    text = (SOURCES / f"{name}.md").read_text("utf-8").split("---\n", 2)[-1]
    text = re.sub(r"^```.*?^```$|<details.*?</details>|\$\$.*?\$\$", " ", text, flags=re.DOTALL | re.MULTILINE)
    return len(re.findall(r"[^\W\d_]{2,}", text))


def measure_times() -> None:
    """Execute every chapter, write down how long it took, and carry that into the chapters."""
    names = notebooks()
    took = execute_chapters(names, again=True)
    rows = [
        {
            "chapter": name,
            "device": "CPU",
            "seconds": round(took[name], 1),
            "words": words(name),
            "minutes_to_read": max(5, 5 * round(words(name) / WORDS_PER_MINUTE / 5)),
        }
        for name in names
    ]
    head = provenance("", "cpu") | {"command": "python book/build.py times", "cores": runtime.cores()}
    record = {**head, "words_per_minute": WORDS_PER_MINUTE, "rows": rows}
    TIMES.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for name in names:
        path = SOURCES / f"{name}.md"
        path.write_text(TIME_LINE.sub(time_line(name), path.read_text("utf-8")), "utf-8")


def time_line(name: str) -> str:
    """What a chapter says about its time.

    Raises:
        BookError: for a chapter that was not measured.
    """
    row = runtime.recorded(name)
    if row is None:
        raise BookError(f"{name} is not in {TIMES.relative_to(ROOT)}: run python book/build.py times")
    return f"*Time: {runtime.expected(row)}.*"


# --- the site ---------------------------------------------------------------------------------------------------------


def status_page(names: list[str], took: Mapping[str, float]) -> str:
    """Markdown of the page that says how long each chapter took on this machine, and with which versions.

    Args:
        names: of the chapters.
        took: the seconds of those that were executed here.
    """
    rows = [f"| [{title(name)}]({name}.ipynb) | {' | '.join(stated_and_taken(name, took))} |" for name in names]
    versions = [f"| {name} | {number} |" for name, number in environment().items()]
    return "\n".join(
        [
            "# Execution record",
            "",
            "Every figure in the chapters was computed by the cell above it, without a GPU and without the network.",
            "This page is made with the site. It gives the seconds that each chapter states, and those that it took on",
            f"the machine that built this page; bold where they differ by more than a factor of {TOLERANCE}.",
            "*Stored* means that the notebook was taken as it lies in the repository.",
            "",
            "| Chapter | Seconds, stated | Seconds, here |",
            "|---|---:|---:|",
            *rows,
            "",
            "| Built with | Version |",
            "|---|---|",
            *versions,
            "",
        ]
    )


def stated_and_taken(name: str, took: Mapping[str, float]) -> tuple[str, str]:
    """The seconds that a chapter states, and those that it took here."""
    row, seconds = runtime.recorded(name), took.get(name)
    stated = "*not measured*" if row is None else f"{row['seconds']:.0f}"
    if seconds is None:
        return stated, "*stored*"
    taken = f"{seconds:.0f}"
    if row is not None and not 1 / TOLERANCE <= seconds / row["seconds"] <= TOLERANCE:
        taken = f"**{taken}**"
    return stated, taken


def build_site(
    book: Path = BOOK, output: Path = ROOT, *, draft: bool = False, took: Mapping[str, float] | None = None
) -> Path:
    """Build the HTML from the notebooks in ``book``, and the chapters' slides; a warning is an error.

    Args:
        book: folder with ``_toc.yml``, the notebooks and the pages.
        output: the site goes to ``_build/html`` in it.
        draft: leave out chapters that are listed and not written, instead of refusing.
        took: the seconds of the chapters that were executed; ``None`` takes what this machine recorded.

    Returns:
        The path of the front page.

    Raises:
        BookError: for a missing page, or with what Sphinx said.
    """
    names = chapters()
    if took is None:
        took = {name: entry["seconds"] for name, entry in read_record().items()}
    (book / "status.md").write_text(status_page(names, took), "utf-8")
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
    command = [str(Path(sysconfig.get_path("scripts")) / "jupyter-book"), "build", str(book)]
    command += ["--config", str(ROOT / "_config.yml"), "--toc", str(toc), "--path-output", str(output)]
    print("Building the site ...", flush=True)
    command += ["-n", "-W", "--keep-going"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"NO_COLOR": "1"})
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).splitlines()
        telling = [line for line in lines if re.search(r"WARNING|ERROR|CRITICAL|Error: ", line)] or lines[-20:]
        raise BookError("the site could not be built:\n" + "\n".join(telling))
    for page in ("index.html", f"{FRONT_PAGE}.html"):
        if not (build / "html" / page).is_file():
            raise BookError(f"jupyter-book reported success without writing {page}")
    import slides  # which needs this file

    slides.write([name for name in chapters() if name not in missing], build / "html", book)
    return build / "html" / "index.html"


# --- the address ------------------------------------------------------------------------------------------------------


def with_tables(readme: str) -> str:
    """README.md with its list of chapters, and what it says about starting, made anew."""
    repo = repository()
    rows = [f"| [{title(name)}](book/src/{name}.md) | {repo.badge(name)} |" for name in chapters()]
    made = {"chapters": "\n".join(["| Chapter | |", "|---|---|", *rows]), "start-up": first_map_line()}
    for name, text in made.items():
        start, end = f"<!-- {name}: made by book/build.py -->\n", f"<!-- end of {name} -->"
        before, _, rest = readme.partition(start)
        readme = f"{before}{start}{text}\n{end}{rest.partition(end)[2]}"
    return readme


def first_map_line() -> str:
    """How long the README's program takes to its first map, as it was measured."""
    record = json.loads((RESULTS / "startup.json").read_text("utf-8"))
    seconds = {row["run"]: row["seconds"] for row in record["rows"]}
    whole, alone = (seconds[run] for run in ("the README's program, to its first map", "import torch, torchvision"))
    return (
        f"Begun anew, it has its first map after {whole:.1f} s ({record['device']}), of which importing torch and\n"
        f"torchvision takes {alone:.1f} s (`{record['command']}`)."
    )


def addressed() -> dict[Path, str]:
    """The files that repeat the address of ``_config.yml``, with the text they should have."""
    old, new = project()["urls"]["Repository"], repository().url
    paths = [ROOT / name for name in ("pyproject.toml", "CITATION.cff", "README.md")]
    texts = {path: path.read_text("utf-8").replace(old, new) for path in paths}
    texts[ROOT / "README.md"] = with_tables(texts[ROOT / "README.md"])
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
    book.add_argument("--model", choices=NETWORKS, help="network of the chapters that leave the choice")
    commands.add_parser("times", help="measure the chapters' times, and write them into the chapters")
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
            known = notebooks()
            for name in options.names:
                if name not in known:
                    raise BookError(f"no chapter {name!r}; written are: {', '.join(known) or 'none yet'}")
            execute_chapters(options.names or known, again=bool(options.names))
        if options.command == "times":
            measure_times()
        other = getattr(options, "model", None) or NETWORKS[0]
        if options.command == "book" and other == NETWORKS[0]:
            execute_chapters(notebooks())
            write_addresses()
        if options.command in ("book", "html"):
            if other == NETWORKS[0]:
                front = build_site(draft=options.draft)
            else:
                folder, took = execute_with(other)
                front = build_site(book=folder, output=BUILD / other, draft=options.draft, took=took)
            print(f"The book is ready: {front}")
    except BookError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    import build  # the same module that book/slides.py knows

    sys.exit(build.main())
