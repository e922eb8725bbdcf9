"""What a tile of a slide takes: seconds of reading, network and writing, and bytes read and written.

    python -m benchmarks.slide_rate       # under 3 minutes on one core; --device cuda where there is one

The slide is a mosaic of generated tissue, compressed as most slides are (JPEG); the detector is the embedded one, the
command's own defaults otherwise. Writes ``data/results/slide_rate.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tifffile
import torch

from benchmarks.slide import write
from smoothsal_lib import load_model
from smoothsal_lib import slide as library
from smoothsal_lib.datasets.slides import Grid, open_slide, tile_grid, tissue_mask
from smoothsal_lib.embedded import data_folder
from smoothsal_lib.ledger import Ledger
from smoothsal_lib.record import provenance

SIDE = 3072  # pixels: 16 tiles of 1,024 that share 256
MODEL, LAYER = "tissue_resnet", "layer2.1"

Seconds = defaultdict[str, list[float]]


def timed(seconds: Seconds, what: str, function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """The same function, which notes how long it takes."""

    @wraps(function)
    def measured(*arguments: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        found = function(*arguments, **options)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds[what].append(time.perf_counter() - begun)
        return found

    return measured


def explain(path: Path, out: Path, plan: library.SlidePlan, device: str) -> tuple[dict[str, Any], Seconds, float]:
    """Explain the slide; returns the summary, the seconds of each step, and those of all."""
    seconds: Seconds = defaultdict(list)
    model = load_model(MODEL).to(device)
    parts = {
        "network": (library.View, "maps"),
        "writing": (library._Store, "write"),
        "noting": (Ledger, "add"),
        "putting_together": (library, "_write_heatmap"),
        "drawing": (library, "_write_overview"),
    }
    for what, (owner, name) in parts.items():
        setattr(owner, name, timed(seconds, what, getattr(owner, name), device))
    with open_slide(path) as slide:
        slide.read = timed(seconds, "reading", slide.read, device)  # type: ignore[method-assign]
        begun = time.perf_counter()
        summary = library.explain_slide(slide, model, plan, out)
        return summary, seconds, time.perf_counter() - begun


def compressed(path: Path, grid: Grid) -> tuple[int, int]:
    """Bytes of the file's finest level that the tiles need: each as often as it is needed, and each once."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        across, side = -(-page.imagewidth // page.tilewidth), page.tilewidth
        rows, counts = -(-page.imagelength // side), page.databytecounts
    needed = [
        row * across + column
        for tile in grid.tiles
        for row in range(int(tile.y) // side, min(rows, -(-int(tile.y + grid.size[0] * grid.scale) // side)))
        for column in range(int(tile.x) // side, min(across, -(-int(tile.x + grid.size[1] * grid.scale) // side)))
    ]
    return sum(counts[index] for index in needed), sum(counts[index] for index in set(needed))


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (default: %(default)s)")
    options = parser.parse_args()
    plan = library.SlidePlan(LAYER)
    with TemporaryDirectory() as folder:
        path, out = Path(folder) / "slide.tif", Path(folder) / "out"
        write(path, SIDE)
        summary, seconds, total = explain(path, out, plan, options.device)
        with open_slide(path) as slide:
            mask = tissue_mask(slide, plan.mask)
            grid = tile_grid(
                slide, plan.tile, plan.overlap, plan.mpp, mask, library.probe(load_model(MODEL), plan).stride
            )
        tiles, often, once = summary["explained"], *compressed(path, grid)
        slide_bytes, heatmap_bytes = path.stat().st_size, (out / library.HEATMAP).stat().st_size
    per_tile = {
        "reading": statistics.median(seconds["reading"]),
        "network": statistics.median(seconds["network"]),
        "writing": 2 * statistics.median(seconds["writing"]) + statistics.median(seconds["noting"]),  # two maps
        "putting_together": (sum(seconds["putting_together"]) + sum(seconds["drawing"])) / tiles,
    }
    per_tile["sum"] = sum(per_tile.values())
    stored = {
        **provenance(
            "benchmarks.slide_rate" + (f" --device {options.device}" * (options.device != "cpu")), options.device
        ),
        "network": MODEL,
        "slide": f"{SIDE} x {SIDE} pixels of generated tissue at {plan.mpp} micrometres, JPEG",
        "plan": asdict(plan),
        "tiles": tiles,
        "seconds_per_tile": {name: float(f"{value:.4g}") for name, value in per_tile.items()},
        "seconds_in_all": round(total, 2),
        "bytes_per_tile": {
            "read": often // tiles,
            "compressed": once // tiles,
            "heatmap": heatmap_bytes // tiles,
        },
        "bytes_of_slide": slide_bytes,
        "unit": "seconds: medians over tiles, of putting together the mean; bytes: means over tiles. 'read' counts a "
        "JPEG tile of the file as often as tiles of the plan need it, 'compressed' once",
    }
    print(
        json.dumps({name: stored[name] for name in ("device", "tiles", "seconds_per_tile", "bytes_per_tile")}, indent=1)
    )
    (data_folder() / "results" / "slide_rate.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
