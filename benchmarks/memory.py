"""How much memory maps of hidden layers take, beside a plain pass forward and back.

    python -m benchmarks.memory
    python -m benchmarks.memory --device cuda

Each measurement is a process of its own. On the CPU it is the peak of the resident set (Linux notes it as ``VmHWM``)
less what was resident before, after a small picture has gone the same way; glibc is told to hand freed memory back, so
that what is counted is in use. On a GPU it is ``torch.cuda.max_memory_allocated``, less what was allocated before.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from tqdm import tqdm

import smoothsal_lib as sal
from benchmarks.case import Case
from benchmarks.ours import explain, plain
from benchmarks.slide import resident
from benchmarks.verdicts import verdict

Row = dict[str, Any]
TARGET = 1.5
PICTURES = 8  # enough to outweigh the noise of the allocator, and few enough for a laptop


def _whole(case: Case) -> object:
    return plain(case.model, case.x, case.target)


def _doubled(case: Case) -> object:
    return plain(case.model, case.x.repeat(2, 1, 1, 1), case.target.repeat(2))


# {what: (how, which of these it is compared with, whether the target is for it)}; all layers are the 13 of the case.
RUNS: dict[str, tuple[Callable[[Case], object], str, bool]] = {
    "plain": (_whole, "plain", False),
    "plain, twice the batch": (_doubled, "plain, twice the batch", False),
    "gradient": (lambda case: explain(case, "gradient"), "plain", True),
    "gradient, layers='all'": (
        lambda case: sal.explain(case.model, case.x, case.target, "all", "gradient", fix=None), "plain", True,
    ),
    "gradient x activation": (lambda case: explain(case, "gradient_x_activation"), "plain", True),
    "gradient, one layer": (
        lambda case: sal.explain(case.model, case.x, case.target, case.layers[-1], "gradient", fix=None), "plain", True,
    ),
    "DeepLift": (lambda case: explain(case, "deeplift"), "plain, twice the batch", True),
}  # fmt: skip


def peak(name: str, device: str, size: int) -> float:
    """MiB that a run of :data:`RUNS` takes at most, beyond what is there before."""
    run = RUNS[name][0]
    torch.manual_seed(0)
    model = torchvision.models.resnet34(weights=None).eval().to(device)
    run(Case.of(model, torch.randn(1, 3, 64, 64).to(device)))
    case = Case.of(model, torch.randn(PICTURES, 3, size, size).to(device))
    if case.x.is_cuda:
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run(case)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    now = resident()[0]
    run(case)
    return resident()[1] - now


def child(name: str, device: torch.device, size: int) -> float:
    """:func:`peak` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--run", name, "--device", str(device), "--size", str(size)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return float(printed.splitlines()[-1])


def measure(device: torch.device, size: int = 224) -> list[Row]:
    """The table's rows of memory."""
    if device.type == "cpu" and not Path("/proc/self/clear_refs").exists():
        return []  # neither macOS nor Windows notes a peak that can be reset
    shown = tqdm(RUNS, desc="memory", file=sys.stderr, leave=False)
    found = {name: child(name, device, size) for name in shown}
    rows = []
    for name, (_, floor, aimed) in RUNS.items():
        ratio = found[name] / found[floor]
        target = TARGET if aimed else None
        rows.append(
            {
                "run": f"memory: {name}", "who": "floor" if name == floor else "ours", "MiB": found[name],
                "floor": floor, "ratio": ratio, "target": target, "at_least": False, "verdict": verdict(ratio, target),
                "note": f"{PICTURES} pictures at once", "repeats": 1,
            }
        )  # fmt: skip
    return rows


def main() -> None:
    """Measure and print; ``python -m benchmarks.speed`` stores the same beside the seconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(peak(options.run, options.device, options.size))
        return
    for row in measure(torch.device(options.device), options.size):
        print(f"{row['run']:34s}{row['MiB']:8.0f} MiB{row['ratio']:7.2f} of {row['floor']:24s}{row['verdict']}")


if __name__ == "__main__":
    main()
