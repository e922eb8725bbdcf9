"""Commands that the pages show are ones that a shell reads, with options that their programs have."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import build
import pytest

PAGES = [build.ROOT / "README.md", build.ROOT / "CONTRIBUTING.md", *sorted(build.BOOK.glob("*.md"))]
PAGES += sorted(build.SOURCES.glob("*.md"))
SHARED = build.ROOT / "smoothsal_lib" / "experiments" / "command.py"  # where experiments have common options from
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(r"-m (smoothsal_lib(?:\.\w+)*|benchmarks\.\w+)((?: [^\n|;&]*)?)")
BLOCKS = [
    (f"{page.stem}-{number}", block)
    for page in PAGES
    for number, block in enumerate(BLOCK.findall(page.read_text("utf-8")))
]


def programs(block: str) -> list[tuple[str, list[str]]]:
    """The modules that a block runs, each with the options that it is given."""
    found = []
    for module, words in PROGRAM.findall(block.replace("\\\n", " ")):
        command = re.match(r" (evaluate|report|slide)\b", words)
        if module == "smoothsal_lib" and command:
            module = f"smoothsal_lib.{command[1]}"
        found.append((module, re.findall(r"(?<=\s)--[a-z][\w-]*", words)))
    return found


@pytest.mark.parametrize("block", [block for _, block in BLOCKS], ids=[name for name, _ in BLOCKS])
def test_shell_reads_it_and_programs_have_the_options(block):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    for module, options in programs(block):
        source = SHARED.read_text("utf-8") if "experiments" in module else ""
        source += Path(importlib.util.find_spec(module).origin).read_text("utf-8")
        assert [option for option in options if f'"{option}"' not in source and option != "--help"] == []


def test_the_pages_show_what_they_should():
    """Or the test above would have nothing to look at."""
    shown = {module for _, block in BLOCKS for module, _ in programs(block)}
    assert {"smoothsal_lib.evaluate", "smoothsal_lib.slide", "smoothsal_lib.training.surrogate"} <= shown
    assert programs("torchrun --nnodes 2 -m smoothsal_lib evaluate \\\n  --out FILE --fix none") == [
        ("smoothsal_lib.evaluate", ["--out", "--fix"])
    ]
