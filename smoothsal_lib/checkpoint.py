"""Files that a killed run goes on from; in a team the leader alone touches them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from smoothsal_lib.parallel import Team


def read(path: Path | None, settings: dict[str, Any], team: Team) -> dict[str, Any] | None:
    """What :func:`write` has stored, on the CPU and the same in every process; ``None`` where there is no file.

    The leader reads for all: others may see a file on a shared disk later, or an older one.

    Args:
        path: the file; ``None`` for a run that keeps none.
        settings: everything that decides the outcome.
        team: the processes of the run.

    Raises:
        ValueError: when the file was made with other settings.
    """
    found = path if team.leads and path is not None and path.exists() else None
    state = team.tell(None if found is None else torch.load(found, weights_only=True, map_location="cpu"))
    if state is not None and state["settings"] != settings:
        raise ValueError(f"{path} was made with {state['settings']}: use those settings, or remove the file")
    return state


def write(path: Path, settings: dict[str, Any], **state: Any) -> None:
    """Store the state of a run, in two steps: a kill while writing must not cost what was stored before.

    Args:
        path: the file.
        settings: everything that decides the outcome.
        state: what torch can store.
    """
    partial = path.with_suffix(".partial")
    torch.save({**state, "settings": settings}, partial)
    os.replace(partial, path)
