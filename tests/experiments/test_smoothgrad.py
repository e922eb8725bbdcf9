"""SmoothGrad beside the repairs: means over blocks of looks, what adds up, and the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import smoothsal_lib as sal
from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.experiments import smoothgrad
from smoothsal_lib.experiments.smoothgrad import rows, running_means
from smoothsal_lib.ledger import Ledger
from smoothsal_lib.metrics.localisation import energy_in_box
from smoothsal_lib.models import normalize
from smoothsal_lib.sampling import SmoothGrad


def test_blocks_add_up_to_the_mean_of_all_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothgrad, "BLOCKS", (1, 2))
    model, (x, _) = sal.load_model(), sal.load_photo(size=64)
    target = sal.capture(model, x).target
    found = dict(running_means(model, x, target, "gradient", "backward", 0.1, seed=5))
    assert list(found) == [0, 1, 3]
    pictures = [picture for seed, n in ((5, 1), (6, 2)) for _, picture in SmoothGrad(n, 0.1, seed).images(x)]
    for layer in smoothgrad.LAYERS:
        each = [sal.explain(model, one, target, layer, "gradient", "backward")[layer] for one in (x, *pictures)]
        torch.testing.assert_close(found[0][layer], each[0])
        torch.testing.assert_close(found[1][layer], each[1], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found[3][layer], torch.stack(each[1:]).mean(0), rtol=1e-3, atol=1e-5)


def test_the_interaction_is_what_the_sum_does_not_explain(tmp_path: Path) -> None:
    """The fix alone changes by -3 and -5, the noise alone by -1 and -2, both by -6 and -7; one image has no fix."""
    ledger = Ledger(tmp_path / "l", {})
    numbers = {"none/0/0": [10, 20], "none/9/0": [9, 18], "blur/0/0": [7, 15], "blur/9/0": [4, 13]}
    numbers |= {"none/0/1": [50], "none/9/1": [40]}
    for key, values in numbers.items():
        ledger.add(f"gradient/{key}", {"tv": {"l": values}})
    found = {(row["fix"], row["looks"]): row for row in rows(ledger)}
    assert found["none", 9]["n"] == 3
    assert found["none", 9]["change"] == pytest.approx((-1 - 2 - 10) / 3, abs=1e-4)
    both = found["blur", 9]
    assert (both["n"], both["mean"]) == (2, 8.5)
    assert (both["change"], both["from_plain"]) == (-2.5, -6.5)
    assert both["interaction"] == (-6 + 3 + 1 - 7 + 5 + 2) / 2
    assert both["interaction_error"] == pytest.approx(1.0)
    assert found["blur", 0]["interaction"] == 0


def test_record(fake_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothgrad, "BLOCKS", (1, 1))
    monkeypatch.setattr(smoothgrad, "SCORED", (0, 2))
    monkeypatch.setattr(smoothgrad, "LAYERS", ("input", "layer3.1"))
    words = ["--data", str(fake_data), "--out", str(tmp_path), "--device", "cpu", "--limit", "2", "--deeplift", "1"]
    smoothgrad.main(words)
    record = json.loads((tmp_path / "smoothgrad.json").read_text())
    assert (record["images"], record["noise"]) == (2, 0.15)
    assert not (tmp_path / "smoothgrad.partial.jsonl").exists()
    keys = ("method", "fix", "looks", "layer", "measure")
    found = {tuple(row[key] for key in keys): row for row in record["rows"]}
    measures = ["total_variation", "checkerboard_energy", "energy_in_box"]
    assert {key[2] for key in found} == {0, 1, 2}
    assert len(found) == len(record["rows"]) == 2 * 4 * 2 * (3 * len(measures) + 2 * 2)
    images, _ = tiny_imagenet.load_split("val", fake_data, 2)
    x, boxes = normalize(images.float() / 255), tiny_imagenet.load_boxes("val", fake_data, 2)
    plain = sal.explain(sal.load_model(), x, None, "input", "gradient", None)["input"]
    energy = energy_in_box(sal.saliency_map(plain, "abs_mean"), boxes)
    assert found["gradient", "none", 0, "input", "energy_in_box"]["mean"] == pytest.approx(float(energy.mean()), 1e-4)
    variation = sal.total_variation(plain).mean()
    assert found["gradient", "none", 0, "input", "total_variation"]["mean"] == pytest.approx(float(variation), 1e-4)
