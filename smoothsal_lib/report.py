"""Turn the JSON files of whole-set runs, and of the experiments, into the tables and figures of the book.

python -m smoothsal_lib report data/results/noise.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

from smoothsal_lib.embedded import data_folder

COUNT = "n"  # of images: the one whole number in a row that is a result

Table = dict[str, dict[str, float]]  # column -> row -> number


@dataclass(frozen=True)
class Results:
    """What one or several runs of ``evaluate``, or of an experiment, have measured. Made by :func:`load`.

    Attributes:
        records: the head of each file: command, versions, device, date, data, number of images.
        rows: what :func:`smoothsal_lib.evaluate.summary` describes, or what the experiment's ``rows`` does, of all
            files together.
    """

    records: list[dict[str, Any]]
    rows: list[dict[str, Any]]

    @property
    def source(self) -> str:
        """Where the numbers come from, for each file the images, and below them the command that measured them."""
        wrap = partial(fill, width=78, initial_indent="  ", subsequent_indent="      ", break_long_words=False)
        return "\n".join(
            f"{one['images']} images of {one['data']}:\n{wrap(one['command'], break_on_hyphens=False)}"
            for one in self.records
        )

    @property
    def axes(self) -> list[str]:
        """The fields that hold words or whole numbers, by which the rows differ; the others are what was measured."""
        found = dict.fromkeys(key for row in self.rows for key in row if key != COUNT)
        return [key for key in found if _is_axis([row[key] for row in self.rows if key in row])]

    def values(self, axis: str) -> list[Any]:
        """Which fixes, methods, layers, measures and so on there are, in the order of the rows.

        Raises:
            ValueError: for a field that is no axis.
        """
        _check(axis, self.axes, "axis")
        return list(dict.fromkeys(row[axis] for row in self.rows if axis in row))

    def table(
        self,
        measure: str | Sequence[str],
        method: str | None = None,
        columns: str = "fix",
        rows: str = "layer",
        value: str = "mean",
        **only: Any,
    ) -> Table:
        """Two axes of the results, the others held fast.

        Args:
            measure: such as ``"total_variation"``; or several, where the measures are an axis.
            method: such as ``"gradient"``; may be left out where there is one only, or where it is an axis.
            columns: the axis along the head of the table.
            rows: the axis down its side.
            value: ``"mean"``, ``"std"``, ``"n"``, ``"change"`` and ``"change_error"`` against no fix, or what else the
                rows hold.
            only: values of other axes, ``state="trained"`` unless given; or several of an axis shown, in that order.

        Returns:
            ``{column: {row: number}}``, which :func:`smoothsal_lib.plot.by_layer` draws.

        Raises:
            ValueError: for an unknown axis or value, when nothing is left, or when an axis has several values and
                neither was one chosen nor does a column or a row of the table stand for one of them.
        """
        axes = self.axes
        for axis in (columns, rows, *only):
            _check(axis, axes, "axis")
        numbers = dict.fromkeys(key for row in self.rows for key in row if key not in axes)
        _check(value, numbers, "number")
        wanted: dict[str, Any] = {"measure": measure, **only}
        if method is not None:
            wanted["method"] = method
        if "state" in axes and "state" not in {columns, rows, *only}:
            wanted["state"] = "trained"
        chosen: dict[str, list[Any]] = {}
        for axis, one in wanted.items():
            chosen[axis] = list(one) if isinstance(one, list | tuple | set | dict) else [one]
            for name in chosen[axis]:
                _check(name, self.values(axis), axis)
        shown = [row for row in self.rows if columns in row and rows in row and value in row]
        left = [row for row in shown if all(row.get(axis) in names for axis, names in chosen.items())]
        if not left:
            raise ValueError(f"no {value} for {', '.join(f'{k} {v}' for k, v in chosen.items())}")
        for axis in axes:
            found = list(dict.fromkeys(row.get(axis) for row in left))
            if len(found) > 1 and not any(_determines(shown_axis, axis, left) for shown_axis in (columns, rows)):
                raise ValueError(
                    f"several values of {axis} ({', '.join(map(str, found))}): choose one, or make it an axis"
                )
        order = chosen.get(columns) or list(dict.fromkeys(row[columns] for row in left))
        table: Table = {str(column): {} for column in order if any(row[columns] == column for row in left)}
        for row_name in chosen.get(rows) or list(dict.fromkeys(row[rows] for row in left)):
            for row in left:
                if row[rows] == row_name:
                    table[str(row[columns])][str(row_name)] = row[value]
        return table


def _is_axis(values: Sequence[Any]) -> bool:
    words = any(value is None or isinstance(value, str) for value in values)
    return words or all(isinstance(value, int) for value in values)


def _determines(shown: str, axis: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an axis has one value for each of another, as the fix of a comparison that has a name."""
    return len({(row[shown], row.get(axis)) for row in rows}) == len({row[shown] for row in rows})


def load(*names: str | Path) -> Results:
    """Read the results of one or several runs.

    Args:
        names: files, or the names of those that ship with the library (``data/results/NAME.json``).

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when a file was not written by ``evaluate``.
    """
    records, rows = [], []
    for name in names:
        path = Path(name)
        if path.suffix != ".json":
            path = data_folder() / "results" / f"{name}.json"
        if not path.is_file():
            raise FileNotFoundError(f"no results {str(name)!r}: python -m smoothsal_lib evaluate --out {path.name}")
        record = json.loads(path.read_text())
        if not isinstance(record, dict) or "rows" not in record:
            raise ValueError(f"{str(name)!r} holds no rows: it was not written by python -m smoothsal_lib evaluate")
        rows += record.pop("rows")
        records.append(record)
    return Results(records, rows)


def text(table: Mapping[str, Mapping[str, float]], digits: int = 2, percent: bool = False) -> str:
    """A table for people, in plain text: a line for each row, aligned columns.

    Args:
        table: ``{column: {row: number}}``.
        digits: after the point.
        percent: show shares as percentages.

    Raises:
        ValueError: for an empty table.
    """
    rows, cells = _cells(table, digits, percent)
    widths = {name: max(len(name), *map(len, column)) for name, column in cells.items()}
    first = max(map(len, rows))
    lines = [" " * first + "".join(f"  {name:>{widths[name]}}" for name in cells)]
    for i, row in enumerate(rows):
        lines.append(f"{row:{first}}" + "".join(f"  {column[i]:>{widths[name]}}" for name, column in cells.items()))
    return "\n".join(lines)


def markdown(table: Mapping[str, Mapping[str, float]], digits: int = 2, percent: bool = False) -> str:
    """The same table in Markdown; arguments and errors are those of :func:`text`."""
    rows, cells = _cells(table, digits, percent)
    lines = [["", *cells], ["---", *["---:"] * len(cells)]]
    lines += [[row, *(column[i] for column in cells.values())] for i, row in enumerate(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(
    table: Mapping[str, Mapping[str, float]], digits: int, percent: bool
) -> tuple[list[str], dict[str, list[str]]]:
    """The names of the rows, and every column as text; a number that is missing is a dash."""
    if not table:
        raise ValueError("nothing to show: got an empty table")
    rows = list(dict.fromkeys(row for column in table.values() for row in column))
    form = f"z.{digits}{'%' if percent else 'f'}"  # z: no minus before what rounds to zero
    return rows, {
        name: [format(column[row], form) if row in column else "-" for row in rows] for name, column in table.items()
    }


def reduction(table: Mapping[str, Mapping[str, float]], without: str = "none") -> dict[str, dict[str, float]]:
    """By what share each column of a ``table`` is lower than that without a fix: ``{column: {row: share}}``.

    Rows in which the unrepaired value is 0 are left out.

    Raises:
        ValueError: when there is no column ``without``.
    """
    _check(without, table, "column")
    plain = table[without]
    return {
        name: {row: 1 - number / plain[row] for row, number in column.items() if plain.get(row, 0) != 0}
        for name, column in table.items()
        if name != without
    }


def _check(given: Any, known: Iterable[Any], kind: str) -> None:
    if given not in known:
        raise ValueError(f"no {kind} {given!r} here: choose out of {', '.join(map(str, known))}")


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m smoothsal_lib report``; ``--help`` lists the options."""
    parser = argparse.ArgumentParser(
        prog="python -m smoothsal_lib report",
        description="Tables, and with --out figures, from the JSON files that evaluate has written.",
    )
    parser.add_argument("files", nargs="+", help="JSON files, or names of results that ship with the library")
    parser.add_argument("--measure", nargs="+", help="only these")
    parser.add_argument("--out", type=Path, help="a folder for tables.md and one figure a measure and method")
    parser.add_argument("--digits", type=int, default=3)
    options = parser.parse_args(argv)
    results = load(*options.files)
    parts = [results.source]
    for measure in options.measure or results.values("measure"):
        _check(measure, results.values("measure"), "measure")
        for state in results.values("state"):
            for method in _methods(results, measure, state):
                table = results.table(measure, method, state=state)
                title = " · ".join([measure, method] + [state] * (state != "trained"))
                parts.append(f"### {title}\n\n{markdown(table, options.digits)}")
                if options.out is not None:
                    _draw(options.out, title, table, measure)
    print("\n\n".join(parts))
    if options.out is not None:
        (options.out / "tables.md").write_text("\n\n".join(parts) + "\n")


def _methods(results: Results, measure: str, state: str) -> list[str]:
    found = (row["method"] for row in results.rows if row["measure"] == measure and row["state"] == state)
    return list(dict.fromkeys(found))


def _draw(folder: Path, title: str, table: Table, measure: str) -> None:
    from smoothsal_lib import plot  # here, because matplotlib takes a second to load and tables do not need it

    folder.mkdir(parents=True, exist_ok=True)
    figure = plot.by_layer(table, ylabel=measure.replace("_", " "))
    figure.savefig(folder / f"{title.replace(' · ', '-').replace(' ', '-').replace(':', '-')}.png", dpi=150)
