"""The record of what re-estimating batch-norm statistics brings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smoothsal_lib.experiments import recalibration


def test_record(fake_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recalibration, "SMOOTHNESS_FROM", 100)
    folders = ["--data", str(fake_data), "--out", str(tmp_path)]
    recalibration.main([*folders, "--device", "cpu", "--limit", "20", "--maps", "4"])
    record = json.loads((tmp_path / "recalibration.json").read_text())
    assert {"command", "versions", "device", "date"} <= set(record)
    rows = {
        tuple(row[key] for key in ("fix", "reestimated_from", "seed", "layer", "measure")): row
        for row in record["rows"]
    }
    cases = {key[:3] for key in rows}  # the fake training split has 300 images: enough for the smallest count only
    assert cases == {
        (fix, count, seed) for fix in recalibration.FIXES for count, seed in [(0, 0), *((100, s) for s in range(3))]
    }
    assert rows["none", 0, 0, "output", "agreement"]["mean"] == 1
    for (fix, _, _, layer, measure), row in rows.items():
        assert row["n"] == (20 if layer == "output" else 4)
        earlier = rows[fix, 0, 0, layer, measure]
        assert row["change"] == pytest.approx(row["mean"] - earlier["mean"], abs=1e-5)
    assert rows["forward", 100, 0, "output", "prediction_difference"]["change"] != 0
    assert (
        rows["none", 0, 0, "layer1.1", "checkerboard_energy"]["mean"]
        > rows["forward", 0, 0, "layer1.1", "checkerboard_energy"]["mean"]
    )
