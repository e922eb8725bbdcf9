"""The record of what every fix costs."""

import json

from smoothsal_lib.training import fidelity


def test_record(fake_data, tmp_path):
    fidelity.main(["--data", str(fake_data), "--out", str(tmp_path), "--device", "cpu", "--limit", "40"])
    record = json.loads((tmp_path / "fidelity.json").read_text())
    assert record["images"] == 40
    assert {"command", "versions", "device", "date"} <= set(record)
    for exact in ("none", "backward", "backward:paper"):  # these leave the forward pass alone
        assert record["fixes"][exact]["agreement"] == 1
        assert record["fixes"][exact]["prediction_difference"] == 0
    for changing in ("forward", "forward:paper", "surrogate"):
        assert record["fixes"][changing]["prediction_difference"] > 0
