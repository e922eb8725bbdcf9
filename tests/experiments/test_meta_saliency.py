"""Learning first: each kind of step against explain, and the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import smoothsal_lib as sal
from smoothsal_lib.experiments import meta_saliency as experiment
from smoothsal_lib.experiments.meta_saliency import LAYERS, METHODS, STEPS, one_image
from smoothsal_lib.metrics.similarity import rank_correlation


def test_every_step_is_what_explain_does() -> None:
    model, (x, _) = sal.load_model(), sal.load_photo(size=64)
    listed = sal.hidden_layers(model, x)
    logits = model(x)
    cells = {"gradient": "bias+max_abs", "normgrad": "normgrad", "grad_cam": "grad_cam"}
    for step in ("none", "order 1, rate 0.001", "order 2, rate 0.001"):
        order, rate = STEPS[step]
        meta = sal.MetaStep(rate, order) if order else None
        values = one_image(model, x, torch.tensor([[0.0, 0, 31, 31]]), listed, step)
        assert values.keys() == METHODS.keys()
        for method, name in cells.items():
            both = [
                sal.explain(model, x, target, LAYERS, name, None, meta=meta)
                for target in (logits.argmax(1), logits.argmin(1))
            ]
            for layer in LAYERS:
                expected = rank_correlation(*(found[layer][:, 0] for found in both)).item()
                assert values[method][layer]["class_sensitivity"] == pytest.approx(expected, abs=2e-3)


def test_record(fake_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "STEPS", {"none": (0, 0.0), "order 2, rate 0.01": (2, 0.01)})
    experiment.main(["--data", str(fake_data), "--out", str(tmp_path), "--device", "cpu", "--limit", "2"])
    record = json.loads((tmp_path / "meta_saliency.json").read_text())
    found = {(row["step"], row["method"], row["layer"], row["measure"]): row for row in record["rows"]}
    assert record["images"] == 2
    assert len(found) == len(record["rows"]) == 2 * 5 * 3 * 3
    for key, row in found.items():
        if key[0] == "none":
            assert "change" not in row
        else:
            before = found["none", *key[1:]]["mean"]
            assert row["change"] == pytest.approx(row["mean"] - before, abs=1e-4)
