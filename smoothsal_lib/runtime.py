"""What a chapter's first cell does: say on what the chapter runs, how long that takes, and with which network.

    from smoothsal_lib import runtime

    runtime.start("01-gridded", "resnet34")

The minutes come from ``data/results/chapter_times.json``, which ``python book/build.py times`` measures; the book's
build writes the same minutes into the chapters.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import sys
from importlib.metadata import version
from typing import Any

import torch

import smoothsal_lib
from smoothsal_lib.embedded import data_folder
from smoothsal_lib.models import EMBEDDED

VARIABLE = "SMOOTHSAL_MODEL"
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
# What the environment asked for before this module wrote into it: it goes before the choice made in a notebook.
_ASKED = os.environ.get(VARIABLE)


def start(chapter: str, model: str | None = None) -> None:
    """Choose the network that :func:`smoothsal_lib.load_model` gives where it is not told which, and print a few lines.

    They name the processor, the versions, the time that the chapter takes, and the network. The chapters' text and
    their ``assert`` statements are about ``tiny_resnet``. With another network, an assertion in a cell that does not
    hold is printed, and the chapter goes on.

    Args:
        chapter: such as ``"01-gridded"``.
        model: the name of a network; the environment variable ``SMOOTHSAL_MODEL``, where it is set, goes before it.
            ``None`` for a chapter that names its networks itself.
    """
    print(f"{processor()}. {versions()}.")
    if torch.cuda.is_available():
        hint = 'Everything here runs on the CPU; .to("cuda") moves a network and its pictures to the GPU.'
    else:
        hint = "That is enough: everything here runs on the CPU."
    row = recorded(chapter)
    print(hint if row is None else f"{hint} Expect {expected(row)}.")
    if model is None:
        print("This chapter names its networks itself: its text and its recorded results are about them.")
        _soften(EMBEDDED[0])
        return
    chosen = _ASKED or model
    os.environ[VARIABLE] = chosen
    _soften(chosen)
    if chosen == EMBEDDED[0]:
        print(f"Network: {chosen}.")
    else:
        print(f"Network: {chosen}, which is larger and takes longer. The text is about {EMBEDDED[0]}:")
        print(f"where an assertion does not hold for {chosen}, the cell says so and goes on.")


def processor() -> str:
    """The GPU's name and memory, or the number of the CPU's cores."""
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return f"GPU: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
    return f"No GPU, {counted(cores())}"


def cores() -> int:
    """How many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> str:
    """Names and versions of the library, of torch, of torchvision and of Python, in one line."""
    there = {
        "smoothsal_lib": smoothsal_lib.__version__,
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "Python": platform.python_version(),
    }
    return ", ".join(f"{name} {number}" for name, number in there.items())


def recorded(chapter: str) -> dict[str, Any] | None:
    """What was measured for a chapter: ``seconds``, ``cores`` and ``minutes_to_read``; ``None`` for a new chapter."""
    path = data_folder() / "results" / "chapter_times.json"
    if not path.is_file():
        return None
    record = json.loads(path.read_text("utf-8"))
    for row in record["rows"]:
        if row["chapter"] == chapter:
            return {**row, "cores": record["cores"]}
    return None


def counted(cores: int) -> str:
    """A number of CPU cores, small ones in words."""
    shown = NUMBERS[cores] if cores < len(NUMBERS) else f"{cores}"
    return f"{shown} CPU core" + ("" if cores == 1 else "s")


def duration(seconds: float) -> str:
    """Seconds as one says them: whole ones up to a minute and a half, minutes above, never less than one second."""
    number, unit = (max(1, round(seconds)), "second") if seconds < 90 else (round(seconds / 60), "minute")
    return f"{number} {unit}" + ("" if number == 1 else "s")


def expected(row: dict[str, Any]) -> str:
    """The time of a chapter in words, from what :func:`recorded` gives."""
    reading = duration(60 * row["minutes_to_read"])
    return f"{reading} to read, {duration(row['seconds'])} to run on {counted(row['cores'])}"


class _Softened(ast.NodeTransformer):
    """Turns ``assert claim`` into a line that is printed where the claim does not hold."""

    def __init__(self, model: str) -> None:
        self.model = model

    def visit_Assert(self, node: ast.Assert) -> ast.AST:  # noqa: N802
        claim = ast.parse(f"if not (0):\n    print({f'not so for {self.model}: {ast.unparse(node.test)}'!r})").body[0]
        assert isinstance(claim, ast.If) and isinstance(claim.test, ast.UnaryOp)
        claim.test.operand = node.test
        return ast.fix_missing_locations(ast.copy_location(claim, node))


def _soften(model: str) -> None:
    """Have the notebook's assertions printed instead of raised, or raised again for the network of the text."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None:
        return
    shell.ast_transformers[:] = [one for one in shell.ast_transformers if not isinstance(one, _Softened)]
    if model != EMBEDDED[0]:
        shell.ast_transformers.append(_Softened(model))
