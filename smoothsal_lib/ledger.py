"""Partial results of a long run: written as they come, found again after a kill."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Ledger:
    """A file of JSON lines: first the settings of the run, then one line for every finished piece of work.

    A line is written in one go and flushed to the disk, so a killed run loses at most the piece it was working on.
    What a kill left of a line is cut off when the file is opened again. A piece is known by its key; adding one a
    second time is refused, so that nothing is counted twice.

    Args:
        path: the file; it is begun when it does not exist.
        settings: all that the results depend on, as JSON knows it.

    Raises:
        ValueError: when the file was begun with other settings, or is none of this class's; it is left as it is.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self.pieces: dict[str, Any] = {}
        settings = json.loads(json.dumps(settings))  # as they will be read back: tuples become lists
        first = json.dumps({"settings": settings}, separators=(",", ":")).encode() + b"\n"
        written = self.path.read_bytes() if self.path.is_file() else b""
        if len(written) < len(first) and first.startswith(written):  # new, or killed within the first line
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(first)
        else:
            self._read(settings)

    def _read(self, settings: dict[str, Any]) -> None:
        *lines, broken = self.path.read_bytes().split(b"\n")
        try:
            first, *rest = [json.loads(line) for line in lines]
            begun, pieces = first["settings"], {row["key"]: row["values"] for row in rest}
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{str(self.path)!r} holds no partial results: give another path, or delete it") from None
        for name in {**begun, **settings}:
            if begun.get(name) != settings.get(name):
                raise ValueError(
                    f"{str(self.path)!r} was begun with {name} = {begun.get(name)!r}, not {settings.get(name)!r}: "
                    "finish it as it was begun, or delete it"
                )
        self.pieces = pieces
        if broken:
            os.truncate(self.path, self.path.stat().st_size - len(broken))

    def __contains__(self, key: str) -> bool:
        return key in self.pieces

    def add(self, key: str, values: Any) -> None:
        """Store a finished piece.

        Raises:
            ValueError: when there is one of that key.
        """
        if key in self:
            raise ValueError(f"{key!r} is in {str(self.path)!r} already")
        self._append({"key": key, "values": values})
        self.pieces[key] = values

    def remove(self) -> None:
        """Delete the file, once its contents stand elsewhere."""
        self.path.unlink()

    def _append(self, row: dict[str, Any]) -> None:
        with open(self.path, "ab") as file:
            file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
