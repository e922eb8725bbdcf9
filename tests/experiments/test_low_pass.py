"""The record of filtering against repairing, and the tuning that must not see what it is reported on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from smoothsal_lib.experiments import low_pass
from smoothsal_lib.experiments.low_pass import CANDIDATES, CONTENDERS, TUNED_BY, Candidate, Contender, tuned


def test_each_half_is_filtered_as_suits_the_other() -> None:
    """Even images would gain most by 0.35, odd ones by 0.09: reported is each half at the other's choice."""
    contender = Contender("none", "gaussian")
    found = {one: {TUNED_BY: torch.zeros(4)} for one in contender.choices()}
    found[Candidate("none", "gaussian", 0.35)] = {TUNED_BY: torch.tensor([5.0, 1, 5, 1])}
    found[Candidate("none", "gaussian", 0.09)] = {TUNED_BY: torch.tensor([2.0, 7, 2, 7])}
    values, cutoffs = tuned(contender, found)
    assert values[TUNED_BY].tolist() == [2, 1, 2, 1]
    assert cutoffs == [0.09, 0.35]


def test_a_filter_that_does_no_good_is_not_applied() -> None:
    contender = Contender("backward", "gaussian")
    found = {one: {TUNED_BY: torch.tensor([1.0, 2]) - (one.cutoff or 0)} for one in contender.choices()}
    values, cutoffs = tuned(contender, found)
    assert (values[TUNED_BY].tolist(), cutoffs) == ([1, 2], [None, None])


def test_record(fake_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_pass, "LAYERS", ("layer2.1",))
    folders = ["--data", str(fake_data), "--out", str(tmp_path)]
    low_pass.main([*folders, "--device", "cpu", "--limit", "4", "--steps", "2"])
    record = json.loads((tmp_path / "low_pass.json").read_text())
    assert {"command", "versions", "device", "date"} <= set(record)
    assert (record["images"], record["steps"]) == (4, 2)
    keys = ("method", "layer", "repair", "filter", "cutoff", "measure")
    rows = {tuple(row[key] for key in keys): row for row in record["rows"]}
    assert len(rows) == len(record["rows"]) == 2 * 7 * (len(CANDIDATES) + len(CONTENDERS))
    for (method, layer, repair, kind, cutoff, measure), row in rows.items():
        if cutoff == "tuned":
            rival = rows[method, layer, "none", "gaussian", "tuned", measure]
            assert row["from_low_pass"] == pytest.approx(row["mean"] - rival["mean"], abs=1e-5)
            assert (row["from_repair_alone"] == 0) or kind != "none"
        if measure == "total_variation" and cutoff in (0.14, 0.09):
            assert row["mean"] < rows[method, layer, repair, "none", None, measure]["mean"]
