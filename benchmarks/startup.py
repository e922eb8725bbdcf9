"""How long the library takes to start: its import beside torch and torchvision, the first map, the command line.

    python -m benchmarks.startup

Every repeat starts one new interpreter for each line, in turn, so that whatever else the machine does falls on all of
them alike; reported are medians, and the median of each repeat's ratio to ``import torch, torchvision``. The first map
is that of the README's ten lines. Writes ``data/results/startup.json``.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.verdicts import verdict
from smoothsal_lib.embedded import data_folder
from smoothsal_lib.record import provenance

REPOSITORY = Path(__file__).resolve().parent.parent
TARGET = 1.3
FLOOR = "import torch, torchvision"


def ten_lines() -> str:
    """The README's first program, as it stands there."""
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    found = re.search(r"```python\n(import smoothsal_lib as sal\n.*?)```", readme, re.DOTALL)
    if found is None:
        raise ValueError("README.md has no program that begins with import smoothsal_lib as sal")
    return found[1]


def first_map(program: str) -> str:
    """The program up to its first map, and no further."""
    return program[: program.index("\n", program.index("sal.explain("))]


def seconds(*arguments: str) -> float:
    """How long a new interpreter takes, from its start to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=False, capture_output=True, cwd=REPOSITORY)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print a table, store it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()

    program = ten_lines()
    runs = {
        FLOOR: ("-c", FLOOR),
        "import smoothsal_lib": ("-c", "import torch, torchvision, smoothsal_lib"),
        "the README's program, to its first map": ("-c", first_map(program)),
        "the README's program": ("-c", program),
        "python -m smoothsal_lib": ("-m", "smoothsal_lib"),
    }
    for arguments in runs.values():  # so that all files are in the system's cache
        seconds(*arguments)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, arguments in runs.items():
            taken[name].append(seconds(*arguments))
    rows = []
    for name, times in taken.items():
        ratio = statistics.median(a / b for a, b in zip(times, taken[FLOOR], strict=True))
        target = TARGET if name == "import smoothsal_lib" else None
        met, typical = verdict(ratio, target), statistics.median(times)
        rows.append({"run": name, "seconds": typical, "ratio": ratio, "target": target, "verdict": met})
        print(f"{name:40s}{typical:8.2f} s{ratio:7.2f}  {target or '':>4}  {met}")
    stored = {**provenance("benchmarks.startup", "cpu"), "repeats": options.repeats, "rows": rows}
    (data_folder() / "results" / "startup.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
