"""What maps of hidden layers cost: ours, other libraries' and the paper's way, beside the passes that they need.

    python -m benchmarks.speed                     # ResNet34, 13 layers, one picture of 224 px, on the CPU
    python -m benchmarks.speed --device cuda --batch 32

First every result is compared, and nothing is timed unless all agree. Then, run by run, every repeat does the floor
and all contenders one after the other, so that whatever else the machine does falls on all alike; the next repeat goes
backwards. Reported are medians: of the seconds, and of each repeat's ratio to its floor. Memory is measured last, see
:mod:`benchmarks.memory`. Writes ``data/results/bench.json``, of a GPU
``bench_cuda.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision
from tqdm import tqdm

from benchmarks import memory, ours, paper, peers
from benchmarks.case import Case, Contender
from benchmarks.verdicts import verdict
from smoothsal_lib.embedded import data_folder
from smoothsal_lib.record import provenance

FEWEST, MOST = 3, 25  # repeats
FASTER = 8.0  # times, than captum's loop over the layers
Row = dict[str, Any]


def agree(case: Case, contenders: Sequence[Contender]) -> list[Row]:
    """How far each contender's result is from what it is compared with.

    Raises:
        SystemExit: when one is farther than its tolerance; nothing should be timed then.
    """
    found = []
    for each in tqdm(contenders, desc="compare", file=sys.stderr, leave=False):
        error = each.error(case)
        found.append(
            {"run": each.run, "who": each.who, "against": each.against, "error": error, "tolerance": each.tolerance}
        )
    wrong = [row for row in found if not row["error"] <= row["tolerance"]]
    if wrong:
        lines = [f"{r['run']}, {r['who']}: off by {r['error']:.1e} from {r['against']}" for r in wrong]
        raise SystemExit("results differ, nothing is timed:\n" + "\n".join(lines))
    return found


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def interleaved(calls: dict[str, Callable[[], object]], once: set[str], budget: float, device: torch.device) -> Seconds:
    """Seconds of every call in every repeat; those of ``once`` run in one only.

    Args:
        calls: what to time.
        once: names of those that take too long to be repeated.
        budget: seconds that the repeats may take; there are at least :data:`FEWEST` all the same.
        device: where.
    """
    seconds: Seconds = {name: [] for name in calls}

    def do(names: Sequence[str]) -> float:
        begun = clock(device)
        for name in names:
            start = clock(device)
            calls[name]()
            seconds[name].append(clock(device) - start)
        return clock(device) - begun

    names = [name for name in calls if name not in once]
    repeats = min(MOST, max(FEWEST, int(budget / max(do(names), 1e-9))))
    counted = repeats == FEWEST
    if not counted:  # the first run of a quick call is its slowest; to one of seconds that is nothing
        seconds = {name: [] for name in calls}
    do(list(once))
    for repeat in range(int(counted), repeats):
        do(names[:: -1 if repeat % 2 else 1])
    return seconds


Seconds = dict[str, list[float]]


def ratio(some: list[float], others: list[float]) -> float:
    """The median of the repeats' ratios: the two calls of a repeat share the machine's mood, those of two do not."""
    return statistics.median(a / b for a, b in zip(some, others, strict=False))


def rows_of(run: str, contenders: Sequence[Contender], seconds: Seconds, case: Case) -> list[Row]:
    """The table's rows for one run: its floor, the contenders, and captum's loop beside ours.

    Args:
        run: a name of :data:`ours.FLOORS`.
        contenders: those of the run.
        seconds: of ``"floor"`` and of every contender, repeat by repeat.
        case: what they did it with.
    """
    floor = ours.FLOORS[run].name
    rows: list[Row] = [row(run, "floor", seconds["floor"], floor, 1.0)]
    for each in contenders:
        times = [value / (each.share or 1.0) for value in seconds[each.who]]
        note = each.note if isinstance(each.note, str) else each.note(case)
        rows.append(row(run, each.who, times, floor, ratio(times, seconds["floor"]), each.target, note))
    if run == "gradient" and "captum" in seconds:
        faster = ratio(seconds["captum"], seconds["ours"])
        note = "how many times faster ours is"
        rows.append(row(run, "captum", seconds["captum"], "ours", faster, FASTER, note, at_least=True))
    return rows


def row(
    run: str,
    who: str,
    seconds: list[float],
    floor: str,
    ratio: float,
    target: float | None = None,
    note: str = "",
    at_least: bool = False,
) -> Row:
    """One row, as it is stored."""
    return {
        "run": run,
        "who": who,
        "seconds": statistics.median(seconds),
        "floor": floor,
        "ratio": ratio,
        "target": target,
        "at_least": at_least,
        "verdict": verdict(ratio, target, at_least),
        "note": note,
        "repeats": len(seconds),
    }


def measure(case: Case, contenders: Sequence[Contender], budget: float) -> list[Row]:
    """All rows of seconds."""
    rows: list[Row] = []
    for run, floor in tqdm(ours.FLOORS.items(), desc="time", file=sys.stderr, leave=False):
        here = [each for each in contenders if each.run == run]
        calls: dict[str, Callable[[], object]] = {"floor": floor.prepare(case)}
        calls |= {each.who: (lambda each=each: each.call(case)) for each in here}
        once = {each.who for each in here if each.share}
        rows += rows_of(run, here, interleaved(calls, once, budget, case.x.device), case)
    return rows


def table(rows: Sequence[Row], missing: Sequence[str] = ()) -> str:
    """The rows as one table, with a line for every peer that is missing."""
    lines = [f"{'run':32s}{'who':22s}{'cost':>11s}{'ratio':>8s}  {'of':28s}{'target':>8s}  {'verdict':8s}note"]
    for each in rows:
        cost = f"{each['seconds']:9.3f} s" if "seconds" in each else f"{each['MiB']:7.0f} MiB"
        goal = "" if each["target"] is None else f"{'>=' if each['at_least'] else '<='} {each['target']:g}"
        start = f"{each['run']:32s}{each['who']:22s}{cost:>11s}{each['ratio']:8.2f}  {each['floor']:28s}"
        lines.append(f"{start}{goal:>8s}  {each['verdict']:8s}{each['note']}".rstrip())
    return "\n".join([*lines, *missing])


def main() -> None:
    """Compare, measure, print the table, store it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=1, help="pictures at once")
    parser.add_argument("--size", type=int, default=224, help="of the pictures, in pixels: a multiple of 14")
    parser.add_argument("--seconds", type=float, default=8.0, help="about how long the repeats of one run may take")
    options = parser.parse_args()
    if options.size < 56 or options.size % 14:
        parser.error(f"--size {options.size}: the 28 steps of insertion must be equal, so give 56, 70, 84 or so")
    device = torch.device(options.device)

    started = time.perf_counter()
    torch.manual_seed(0)
    model = torchvision.models.resnet34(weights=None).eval().to(device)
    case = Case.of(model, torch.randn(options.batch, 3, options.size, options.size).to(device))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peers warn about hooks that they set, and about Python
        others, missing = peers.contenders()
        contenders = [*ours.contenders(), *others, *paper.contenders()]
        # TensorFloat-32, which cuDNN takes for float32 unasked, is off by 1e-3: more than is agreed upon.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            agreement = agree(case, contenders)
        rows = measure(case, contenders, options.seconds)
    rows += memory.measure(device, options.size)
    minutes = (time.perf_counter() - started) / 60

    asked = f"--device {options.device} --batch {options.batch} --size {options.size} --seconds {options.seconds:g}"
    head = provenance(f"benchmarks.speed {asked}", device)
    shape = f"{options.size} px, {options.batch} at once, {len(case.layers)} layers"
    print(f"ResNet34 with random weights, {shape}; {head['device']}; all results agree; {minutes:.1f} minutes")
    print(table(rows, missing))
    stored = {
        **head,
        "network": "resnet34, random weights",
        "pixels": options.size,
        "batch": options.batch,
        "layers": list(case.layers),
        "minutes": minutes,
        "agreement": agreement,
        "missing": missing,
        "rows": rows,
    }
    name = "bench.json" if device.type == "cpu" else "bench_cuda.json"
    (data_folder() / "results" / name).write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
