"""What the experiments' command lines have in common: options, and the head of a record."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from smoothsal_lib.evaluate import write
from smoothsal_lib.record import provenance

DATA = "tiny-imagenet-100, validation"


def options(
    name: str, description: str | None, argv: Sequence[str] | None, **counts: tuple[int | None, str]
) -> argparse.Namespace:
    """Parse ``--data``, ``--out``, ``--device`` and the numbers that an experiment takes.

    Args:
        name: of the experiment, and of its record.
        description: the module's docstring, whose first line is shown.
        argv: the command line, or ``None`` for that of the process.
        counts: ``option=(default, help)``; a default of ``None`` stands for all.
    """
    parser = argparse.ArgumentParser(description=(description or name).split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with the data (default: $SMOOTHSAL_DATA)")
    parser.add_argument("--out", type=Path, default=Path("data/results"), help=f"where {name}.json goes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for option, (default, text) in counts.items():
        shown = "all" if default is None else "%(default)s"
        parser.add_argument(f"--{option}", type=int, default=default, help=f"{text} (default: {shown})")
    parsed = parser.parse_args(argv)
    given = {option: getattr(parsed, option) for option in counts}
    words = [f"--{option} {count}" for option, count in given.items() if count is not None]
    parsed.name, parsed.command = name, " ".join([f"smoothsal_lib.experiments.{name}", *words])
    return parsed


def save(parsed: argparse.Namespace, images: int, rows: Sequence[dict[str, object]], **facts: Any) -> None:
    """Write the record of an experiment on ``tiny_resnet``.

    Args:
        parsed: from :func:`options`.
        images: how many were measured.
        rows: what was measured.
        facts: what else the record's head says; ``data`` where it is not the validation images alone.
    """
    head = {**provenance(parsed.command, parsed.device), "model": "tiny_resnet", "data": DATA, "images": images}
    write(parsed.out / f"{parsed.name}.json", head | facts, rows)
