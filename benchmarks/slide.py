"""Memory of explaining a whole slide: peak of the resident set at one size and at sixteen times its area.

    python -m benchmarks.slide            # about 10 minutes on two cores, 2 GB of the disk

The slides are mosaics of generated tissue, with pieces of white glass. Each run is a process of its own, and its peak
is what Linux notes as ``VmHWM``. Writes ``data/results/slide_memory.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SIDES = (2048, 8192)  # pixels
PIECE = 512  # pixels of a piece of the mosaic
PIECES = 4  # different ones
GLASS = 16  # one of so many pieces is empty


def resident() -> tuple[float, float]:
    """Resident memory of this process in MiB: now, and at its peak."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(rows[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def write(path: Path, side: int) -> dict[str, float]:
    """Write a slide of ``side`` x ``side`` pixels, tile by tile."""
    import numpy as np

    from smoothsal_lib.datasets import slides, tissue

    pieces = [tissue.field(PIECE, seed).image.numpy() for seed in range(PIECES)]
    white = np.full_like(pieces[0], 243)

    def block(top: int, left: int, height: int, width: int) -> Any:
        row, column = top // PIECE, left // PIECE
        number = 5 * row + 3 * column
        return white if number % GLASS == 0 else pieces[number % PIECES]

    before = resident()[0]
    slides.write_pyramid(path, block, (3, side, side), tissue.MPP, compression="jpeg", tile=PIECE // 2)
    return {"before": before, "peak": resident()[1]}


def explain(path: Path, out: Path) -> dict[str, float]:
    """Explain it with a small network; what is measured does not depend on its weights."""
    import torch

    from smoothsal_lib.datasets.slides import open_slide
    from smoothsal_lib.models import TinyResNet
    from smoothsal_lib.slide import SlidePlan, explain_slide

    torch.manual_seed(0)
    model = TinyResNet(1, (8, 8, 16, 16)).eval()
    before = resident()[0]
    with open_slide(path) as slide:
        summary = explain_slide(slide, model, SlidePlan("layer2.1"), out)
    return {"before": before, "peak": resident()[1], "tiles": summary["tiles"]}


def child(*words: str) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.slide", *words]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(printed.splitlines()[-1])
    return found


def main() -> None:
    """Measure, print a table, store it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--explain", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3, help="of explaining: the allocator differs from run to run")
    options = parser.parse_args()
    if options.write:
        print(json.dumps(write(Path(options.write[0]), int(options.write[1]))))
        return
    if options.explain:
        print(json.dumps(explain(*map(Path, options.explain))))
        return
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        for side in SIDES:
            path = Path(folder) / f"{side}.tif"
            runs = [("write", ("--write", str(path), str(side)))]
            runs += [("explain", ("--explain", str(path), str(Path(folder) / str(side))))] * options.repeats
            for what, words in runs:
                row = {"run": what, "side": side, "area": (side // SIDES[0]) ** 2}
                rows.append(row | {name: round(value, 1) for name, value in child(*words).items()})
                print(rows[-1], flush=True)

    def peak(what: str, side: int) -> float:
        return float(statistics.median(row["peak"] for row in rows if (row["run"], row["side"]) == (what, side)))

    growth = {what: round(peak(what, SIDES[1]) / peak(what, SIDES[0]), 3) for what in ("write", "explain")}
    print("median peak at 16 times the area, relative to that at once:", growth)

    from smoothsal_lib.embedded import data_folder
    from smoothsal_lib.record import provenance
    from smoothsal_lib.slide import SlidePlan

    stored = {
        **provenance("benchmarks.slide", "cpu"),
        "network": "TinyResNet, one class, widths 8, 8, 16, 16, random weights",
        "plan": asdict(SlidePlan("layer2.1")),
        "unit": "MiB of resident memory, VmHWM of the process; 'before': after the imports",
        "repeats": options.repeats,
        "growth": growth,
        "rows": rows,
    }
    (data_folder() / "results" / "slide_memory.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
