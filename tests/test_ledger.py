"""Partial results survive a kill, and no other run's are taken for one's own."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from smoothsal_lib.ledger import Ledger, own_path, own_paths
from smoothsal_lib.parallel import Team

SETTINGS = {"images": 4, "fixes": ("none", "backward")}
KEYS = [str(number) for number in range(17)]


@dataclass(frozen=True)
class Threads(Team):
    """A team of threads, which takes no time to start."""

    barrier: Barrier = field(default_factory=lambda: Barrier(1))
    box: list[Any] = field(default_factory=list)

    def wait(self) -> None:
        self.barrier.wait(10)

    def tell(self, value: Any) -> Any:
        if self.leads:
            self.box.append(value)
        self.wait()
        told = self.box[-1]
        self.wait()
        return told


def attempt(path: Path, size: int, pieces: int | None = None) -> list[Ledger]:
    """All processes of a team at work on one run; with ``pieces``, each of them is killed after so many."""
    first = Threads(0, size, Barrier(size))

    def work(rank: int) -> Ledger:
        team = replace(first, rank=rank)
        ledger = Ledger(path, SETTINGS, team)
        own = team.share([key for key in KEYS if key not in ledger])
        for key in own[:pieces]:
            ledger.add(key, {"square": int(key) ** 2})
        if pieces is None:
            ledger.gather(KEYS)
        return ledger

    with ThreadPoolExecutor(size) as threads:
        return [done.result() for done in [threads.submit(work, rank) for rank in range(size)]]


def test_what_was_added_is_found_again(tmp_path):
    path = tmp_path / "deep" / "run.jsonl"
    ledger = Ledger(path, SETTINGS)
    assert "0" not in ledger
    ledger.add("0", {"values": [1.5, 2]})
    again = Ledger(path, SETTINGS)
    assert "0" in again and again.pieces == {"0": {"values": [1.5, 2]}}


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_cut_by_a_kill_is_dropped_and_written_anew(tmp_path, cut):
    path = tmp_path / "run.jsonl"
    ledger = Ledger(path, SETTINGS)
    ledger.add("first", [1])
    whole = path.read_bytes()
    ledger.add("second", [2])
    path.write_bytes(path.read_bytes()[:-cut])
    again = Ledger(path, SETTINGS)
    assert list(again.pieces) == ["first"]
    assert path.read_bytes() == whole
    again.add("second", [2])
    assert [json.loads(line).get("key") for line in path.read_text().splitlines()] == [None, "first", "second"]


def test_killed_before_the_first_line_was_whole(tmp_path):
    path = tmp_path / "run.jsonl"
    Ledger(path, SETTINGS)
    path.write_bytes(path.read_bytes()[:12])
    ledger = Ledger(path, SETTINGS)
    ledger.add("first", 1)
    assert Ledger(path, SETTINGS).pieces == {"first": 1}


def test_a_piece_counts_once(tmp_path):
    ledger = Ledger(tmp_path / "run.jsonl", SETTINGS)
    ledger.add("0", 1)
    with pytest.raises(ValueError, match=r"^'0' is in '.*run.jsonl' already$"):
        ledger.add("0", 2)
    assert Ledger(tmp_path / "run.jsonl", SETTINGS).pieces == {"0": 1}


def test_other_settings_are_refused_and_nothing_is_changed(tmp_path):
    path = tmp_path / "run.jsonl"
    Ledger(path, SETTINGS).add("0", 1)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"was begun with images = 4, not 5: finish it as it was begun, or delete it$"):
        Ledger(path, {**SETTINGS, "images": 5})
    with pytest.raises(ValueError, match=r"begun with seed = None, not 1"):
        Ledger(path, {**SETTINGS, "seed": 1})
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"something else\n", b"[1, 2]\n", b'{"settings": {}}\n{"key": 1}\n'])
def test_another_file_is_left_as_it_is(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"holds no partial results: give another path, or delete it$"):
        Ledger(path, SETTINGS)
    assert path.read_bytes() == content


def test_remove(tmp_path):
    ledger = Ledger(tmp_path / "run.jsonl", SETTINGS)
    ledger.remove()
    assert not list(tmp_path.iterdir())


WHOLE = {key: {"square": int(key) ** 2} for key in KEYS}


@pytest.mark.parametrize("sizes", [(1,), (2,), (3, 1), (3, 2), (3, 5), (1, 4), (5, 2, 3), (2, 20, 1)])
def test_a_run_goes_on_with_any_number_of_processes(tmp_path, sizes):
    path = tmp_path / "run.partial.jsonl"
    *killed, last = sizes
    done = 0
    for size in killed:
        attempt(path, size, 1)
        done += size
        for own in own_paths(path)[::2]:  # some were killed while they wrote
            with open(own, "ab") as file:
                file.write(b'{"key":"3","val')
        assert sum(len(own.read_bytes().split(b"\n")) - 2 for own in own_paths(path)) == min(done, len(KEYS))
    ledgers = attempt(path, last)
    assert ledgers[0].pieces == WHOLE
    assert sum(len(one.pieces) for one in ledgers[1:]) <= len(KEYS)  # the others hold no more than their own
    assert len(own_paths(path)) == max(sizes)
    ledgers[0].remove()
    assert not list(tmp_path.iterdir())


def test_the_leader_begins_all_files_and_reads_all_others(tmp_path):
    path = tmp_path / "run.jsonl"
    ledgers = attempt(path, 3, 2)
    assert [one.path for one in ledgers] == own_paths(path) == [own_path(path, rank) for rank in range(3)]
    assert [one.name for one in own_paths(path)] == ["run.jsonl", "run.1.jsonl", "run.2.jsonl"]
    for other in ("run.x.jsonl", "run.1.jsonl.bak", "run.01.jsonl", "rerun.1.jsonl", "run.1.json"):
        (tmp_path / other).write_text("something else")
    assert len(own_paths(path)) == 3 and len(Ledger(path, SETTINGS).pieces) == 6
    with pytest.raises(ValueError, match=r"'4' is in '.*run.jsonl' already$"):
        Ledger(path, SETTINGS).add("4", 1)
    with pytest.raises(ValueError, match=r"run.2.jsonl' was begun with images = 4, not 5"):
        path.unlink()
        own_path(path, 1).unlink()
        Ledger(path, {**SETTINGS, "images": 5})
    assert [one.name for one in own_paths(path)] == ["run.2.jsonl"]


def test_a_piece_that_is_there_twice_or_not_at_all_is_an_error(tmp_path):
    path = tmp_path / "run.jsonl"
    ledger = Ledger(path, SETTINGS)
    for key in KEYS[2:]:
        ledger.add(key, 1)
    with pytest.raises(
        ValueError, match=r"^2 pieces are not in '.*run.jsonl', '0' for one: give the same command again$"
    ):
        ledger.gather(KEYS)
    own_path(path, 1).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"^'2' is in the files of '.*run.jsonl' twice: delete them, begin anew$"):
        Ledger(path, SETTINGS)


def test_processes_with_other_settings_do_not_work_together(tmp_path):
    first = Threads(0, 2, Barrier(2))
    with ThreadPoolExecutor(2) as threads:
        leader = threads.submit(Ledger, tmp_path / "run", SETTINGS, first)
        other = threads.submit(Ledger, tmp_path / "run", {**SETTINGS, "weights": "abc"}, replace(first, rank=1))
        assert leader.result().pieces == {}
        with pytest.raises(ValueError, match=r"^the leader's run was begun with weights = None, not 'abc'"):
            other.result()
