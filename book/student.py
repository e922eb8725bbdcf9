"""The student edition: the chapters as notebooks without outputs and without solutions, in one archive.

    python book/student.py                                     write _build/student/ and _build/student.zip
    python book/student.py --at https://github.com/OWNER/REPO/tree/BRANCH/FOLDER
                                                               the same, for notebooks that will be put there
    python book/student.py --mark handed-in/*.ipynb            run what students handed in, and say which checks pass

It is made from the same sources as the book. Exercises, checks, hints and quizzes stay; solutions go. Nothing is
executed, and the same sources give the same bytes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import zipfile
from itertools import zip_longest
from pathlib import Path
from typing import Any

import build
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat.reader import NotJSONError

from smoothsal_lib.exercises.marking import UNANSWERED

FOLDER = build.BUILD / "student"
COLAB = "https://colab.research.google.com"
# How CONTRIBUTING.md has authors write a solution: in words as folded HTML or as a directive, in code as a cell.
SOLUTION_IN_WORDS = re.compile(
    r'^<details class="solution">$.*?^</details>$|^(:::+)\{solution\}.*?^\1$', re.MULTILINE | re.DOTALL
)
SOLUTION_IN_CODE = "# @title Solution"
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
FIGURE = re.compile(r"^:::+\{figure\} (\S+)", re.MULTILINE)
TERM = re.compile(r"\{term\}`([^`<]+?)(?:\s*<[^>`]+>)?`")  # a link to the glossary, which is on the site alone
EARLIEST = (1980, 1, 1, 0, 0, 0)  # the date of every file in the archive, so that it does not change from day to day


def colab(name: str, at: str | None) -> str:
    """Where the button of a notebook leads: to the notebook itself where it is public, else to Colab's front door.

    Never to the notebook of the book, which has the solutions.

    Args:
        name: of the chapter.
        at: the folder on GitHub that will hold the notebooks, as its page is addressed; None if there is none.

    Raises:
        BookError: for an address that Colab cannot open.
    """
    if at is None:
        return COLAB
    match = re.fullmatch(r"https://github\.com/([^/]+/[^/]+)/tree/([^/]+)((?:/[^/]+)*)/?", at)
    if match is None:
        raise build.BookError(f"--at {at!r}: give it as https://github.com/OWNER/REPO/tree/BRANCH or .../BRANCH/FOLDER")
    repository, branch, folder = match.groups()
    return f"{COLAB}/github/{repository}/blob/{branch}{folder}/{name}.ipynb"


def first_line(name: str, at: str | None) -> str:
    """Markdown of the first cell: which edition this is, where the book is, and the button for Colab."""
    repo = build.repository()
    button = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({colab(name, at)})"
    how = "" if at else f" Choose *Upload* there, and this file, `{name}.ipynb`."
    return f"*Student edition, without solutions, of [Smooth Deep Saliency]({repo.url}).*\n\n{button}{how}"


def without_solutions(name: str, notebook: Any) -> Any:
    """The notebook of a chapter without the solutions, in place; cells of which nothing is left go as well.

    Raises:
        BookError: for a solution that does not begin or end as it should, and so would have been given away.
    """
    kept = []
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.lstrip().startswith(SOLUTION_IN_CODE):
            continue
        if "hide-cell" in cell.metadata.get("tags", []):
            raise build.BookError(f"{name}: begin the hidden cell {cell.source[:40]!r} with {SOLUTION_IN_CODE!r}")
        if cell.cell_type == "markdown":
            source = TERM.sub(r"\1", SOLUTION_IN_WORDS.sub("", cell.source))
            cell.source = re.sub(r"\n{3,}", "\n\n", source).strip()
            left = re.search(r'^.*(?:class="solution"|\{solution\}).*$', cell.source, re.MULTILINE)
            if left is not None:
                raise build.BookError(f"book/src/{name}.md: {left[0]!r} has no end of its own line, </details> or :::")
        if cell.source.strip():
            kept.append(cell)
    notebook.cells = kept
    return notebook


def compose(name: str, at: str | None = None) -> Any:
    """The notebook of a chapter as students get it.

    Args:
        name: of the chapter.
        at: see :func:`colab`.

    Returns:
        The notebook without outputs. Links between chapters work in one folder; links to other pages lead to the book.
    """
    notebook = without_solutions(name, build.compose(name))
    notebook.cells[0].source = first_line(name, at)
    repo, together = build.repository(), {f"{chapter}.ipynb" for chapter in build.chapters()}

    def lead(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        return match[0] if target in together else f"]({repo.url}/blob/{repo.branch}/book/{target}{anchor})"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(lead, cell.source)
    return notebook


def read_me() -> str:
    """Text of the file that says how to begin."""
    repo = build.repository()
    rows = [f"| [{build.title(name)}]({name}.ipynb) | `{name}.ipynb` |" for name in build.chapters()]
    return "\n".join(
        [
            "# Smooth Deep Saliency, student edition",
            "",
            f"The chapters of [the book]({repo.url}) without outputs and without solutions. Guess what a cell prints,",
            "then run it. An exercise is done when its check says so; a hint is folded away below it.",
            "",
            "**In Google Colab:** open " + COLAB + ", choose *Upload*, and one of the notebooks.",
            "Its first cell installs what is missing. A GPU is not needed.",
            "",
            "**On your own machine**, with Python 3.11 or newer:",
            "",
            "```bash",
            "python -m venv saliency && . saliency/bin/activate",
            f'pip install jupyterlab "smoothsal-lib[book] @ git+{repo.url}@{repo.tag}"',
            "jupyter lab",
            "```",
            "",
            "| Chapter | File |",
            "|---|---|",
            *rows,
            "",
            "Text and figures: CC BY 4.0. Code: MIT.",
            "",
        ]
    )


def write(folder: Path = FOLDER, at: str | None = None) -> Path:
    """Write the student edition of all chapters, and an archive of it beside the folder.

    Args:
        folder: made anew; the archive has its name, with ``.zip``.
        at: see :func:`colab`.

    Returns:
        The archive.
    """
    texts = {"README.md": read_me().encode()}
    for name in build.chapters():
        notebook = compose(name, at)
        texts[f"{name}.ipynb"] = build.serialise(notebook).encode()
        for cell in notebook.cells:
            for figure in FIGURE.findall(cell.source) if cell.cell_type == "markdown" else []:
                texts[figure] = (build.BOOK / figure).read_bytes()
    shutil.rmtree(folder, ignore_errors=True)
    archive = folder.with_name(f"{folder.name}.zip")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path, content in sorted(texts.items()):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            entry = zipfile.ZipInfo(f"smooth-deep-saliency/{path}", EARLIEST)
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return archive


def marks(notebook: Any) -> dict[str, bool]:
    """Which exercises of a notebook are right, by what its checks printed: one line each, in their order.

    Args:
        notebook: executed.

    Returns:
        By number, such as ``"3.2"``: whether one of the calls of this check printed *Correct*.
    """
    found: dict[str, bool] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            printed = "\n".join(output.get("text", "") for output in cell.outputs)
            said = re.findall(rf"^(Correct|Not yet|{UNANSWERED})", printed, re.MULTILINE)
            calls = re.findall(r"\bcheck_(\d+)_(\d+)\(", cell.source)
            for (chapter, number), word in zip_longest(calls, said[: len(calls)]):
                found[f"{chapter}.{number}"] = found.get(f"{chapter}.{number}", False) or word == "Correct"
    return found


def executed(path: Path) -> Any:
    """A notebook that somebody handed in, run from top to bottom; a cell that fails does not stop it."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []  # what it says of itself does not count
    client = NotebookClient(notebook, timeout=build.CELL_TIMEOUT, kernel_name="python3", allow_errors=True)
    client.execute(env=build.kernel_environment())
    return notebook


def main(arguments: list[str] | None = None) -> int:
    """Write the student edition, or mark what came back; 0 if all went well, 1 after a message."""
    parser = argparse.ArgumentParser(prog="book/student.py", description="Write the book's student edition, or mark.")
    parser.add_argument("--at", metavar="ADDRESS", help="folder on GitHub that will hold it, for the Colab buttons")
    parser.add_argument("--mark", nargs="+", type=Path, metavar="NOTEBOOK", help="run these and list their checks")
    options = parser.parse_args(arguments)
    for path in options.mark or ():
        try:
            found = marks(executed(path))
        except (CellTimeoutError, DeadKernelError, NotJSONError, OSError) as error:  # the others are marked
            print(f"{path.name}: cannot be run: {str(error).strip().splitlines()[0]}")
            continue
        print(f"{path.name}: {sum(found.values())} of {len(found)}")
        print("".join(f"  {number} {'right' if right else '-'}\n" for number, right in found.items()), end="")
    if options.mark:
        return 0
    try:
        archive = write(at=options.at)
    except build.BookError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"The student edition is ready: {archive}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
