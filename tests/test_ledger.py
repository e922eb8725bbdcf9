"""Partial results survive a kill, and no other run's are taken for one's own."""

import json

import pytest

from smoothsal_lib.ledger import Ledger

SETTINGS = {"images": 4, "fixes": ("none", "backward")}


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
