"""Partial results of a long run: written as they come, found again after a kill."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smoothsal_lib.parallel import ALONE, Team


class Ledger:
    """Files of JSON lines: first the settings of the run, then one line for every finished piece of work.

    A line is written in one go and flushed to the disk, so a killed run loses at most the piece it was working on.
    What a kill left of a line is cut off when the file is opened again. A piece is known by its key; adding one a
    second time is refused, so that nothing is counted twice.

    Every process of a team writes a file of its own. The leader alone reads them, all that there are, and tells the
    others what is done already: a run goes on with any number of processes, whatever their number was before. It also
    begins the files of all, so that no process must look for what another has just made, which a network file system
    may show it later.

    Args:
        path: the leader's file; it is begun when it does not exist. See :func:`own_path` for the others'.
        settings: all that the results depend on, as JSON knows it.
        team: the processes that share the run.

    Attributes:
        pieces: the results by key: in the leader those of earlier attempts and its own, and of all processes after
            :meth:`gather`; in the others their own.
        team: as given.

    Raises:
        ValueError: when a file was begun with other settings, or is none of this class's, or a piece is there twice;
            all files are left as they are. Also for a process whose settings are not the leader's.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any], team: Team = ALONE) -> None:
        self.team = team
        self.pieces: dict[str, Any] = {}
        self._first, self.path = Path(path), own_path(path, team.rank)
        settings = json.loads(json.dumps(settings))  # as they will be read back: tuples become lists
        if team.leads:
            self._begin(settings)
        told, done = team.tell((settings, list(self.pieces)))
        _compare("the leader's run", told, settings)
        self._done = frozenset(done)

    def _begin(self, settings: dict[str, Any]) -> None:
        line = json.dumps({"settings": settings}, separators=(",", ":")).encode() + b"\n"
        ours = [own_path(self._first, rank) for rank in range(self.team.size)]
        paths = dict.fromkeys([*own_paths(self._first), *ours])
        written = {path: path.read_bytes() if path.is_file() else b"" for path in paths}
        # New, or killed within the first line.
        new = [path for path in paths if len(written[path]) < len(line) and line.startswith(written[path])]
        self._read([path for path in paths if path not in new], settings)
        self._first.parent.mkdir(parents=True, exist_ok=True)
        for path in paths:
            if path in new:
                path.write_bytes(line)
            elif not written[path].endswith(b"\n"):
                os.truncate(path, written[path].rfind(b"\n") + 1)

    def _read(self, paths: Iterable[Path], settings: dict[str, Any] | None = None) -> None:
        """Replace the pieces by those in the files; lines that a kill cut off are none."""
        self.pieces = {}
        for path in paths:
            try:
                first, *rest = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
                begun, rows = first["settings"], [(row["key"], row["values"]) for row in rest]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{str(path)!r} holds no partial results: give another path, or delete it") from None
            if settings is not None:
                _compare(repr(str(path)), begun, settings)
            for key, values in rows:
                if key in self.pieces:
                    raise ValueError(f"{key!r} is in the files of {str(self._first)!r} twice: delete them, begin anew")
                self.pieces[key] = values

    def __contains__(self, key: str) -> bool:
        return key in self.pieces or key in self._done

    def add(self, key: str, values: Any) -> None:
        """Store a finished piece.

        Raises:
            ValueError: when there is one of that key.
        """
        if key in self:
            raise ValueError(f"{key!r} is in {str(self.path)!r} already")
        self._append({"key": key, "values": values})
        self.pieces[key] = values

    def gather(self, keys: Iterable[str]) -> None:
        """Wait for all processes, and bring their pieces together in the leader.

        Args:
            keys: of all pieces that the run is to have.

        Raises:
            ValueError: when one of them is missing.
        """
        self.team.wait()
        if self.team.leads and self.team.size > 1:
            self._read(own_paths(self._first))
        missing = [key for key in keys if key not in self.pieces] if self.team.leads else []
        if missing:
            raise ValueError(
                f"{len(missing)} pieces are not in {str(self._first)!r}, {missing[0]!r} for one: "
                "give the same command again"
            )

    def remove(self) -> None:
        """Delete the files of all processes, once their contents stand elsewhere; nobody but the leader should."""
        for path in own_paths(self._first):
            path.unlink()

    def _append(self, row: dict[str, Any]) -> None:
        with open(self.path, "ab") as file:
            file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def own_path(path: str | Path, rank: int) -> Path:
    """A process's own file where several would write one: that one for the leader, else with the rank in its name.

    Args:
        path: such as ``run.jsonl``.
        rank: 2, say, which makes it ``run.2.jsonl``.
    """
    path = Path(path)
    return path.with_name(f"{path.stem}.{rank}{path.suffix}") if rank else path


def own_paths(path: str | Path) -> list[Path]:
    """The files of :func:`own_path` that exist, whatever the number of processes was that wrote them.

    Args:
        path: the leader's.
    """
    path = Path(path)
    names = re.compile(rf"{re.escape(path.stem)}(?:\.([1-9]\d*))?{re.escape(path.suffix)}")
    found = [(int(match[1] or 0), one) for one in path.parent.glob("*") if (match := names.fullmatch(one.name))]
    return [one for _, one in sorted(found)]


def _compare(where: str, begun: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse settings that are not those with which a run was begun."""
    for name in {**begun, **settings}:
        if begun.get(name) != settings.get(name):
            raise ValueError(
                f"{where} was begun with {name} = {begun.get(name)!r}, not {settings.get(name)!r}: "
                "finish it as it was begun, or delete it"
            )
