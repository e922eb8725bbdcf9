"""Cells at every depth, combined with weights that must not have seen the images, and the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import smoothsal_lib as sal
from smoothsal_lib.combine import combine, localisation_weights, spread_weights
from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.experiments import extract_aggregate as experiment
from smoothsal_lib.experiments.extract_aggregate import CELLS, COMBINED, GRAD_CAM, _combined, maps_of
from smoothsal_lib.metrics.localisation import box_share, energy_in_box
from smoothsal_lib.models import normalize


def test_cells_and_grad_cam_are_what_explain_gives() -> None:
    model, (x, _) = sal.load_model(), sal.load_photo(size=64)
    maps = maps_of(sal.capture(model, x, "layer3.1"))
    assert len(maps) == 21
    methods = {cell: "+".join(cell) for cell in CELLS} | {GRAD_CAM: "grad_cam"}
    for cell, method in methods.items():
        expected = sal.explain(model, x, None, "layer3.1", method, None)["layer3.1"][:, 0]
        torch.testing.assert_close(maps[cell, "layer3.1"], expected, msg=lambda m, c=cell: f"{c}: {m}")


def test_weights_come_from_the_other_half() -> None:
    model, (x, _) = sal.load_model(), sal.load_photo(size=64)
    listed = {name: layer for name, layer in sal.hidden_layers(model, x).items() if name in ("layer2.1", "layer3.1")}
    maps = {name: torch.rand(4, *layer.shape[1:]) for name, layer in listed.items()}
    boxes = torch.tensor([[0.0, 0, 31, 31]] * 4)
    scores = {"layer2.1": torch.tensor([0.9, 0.3, 0.8, 0.5]), "layer3.1": torch.tensor([0.3, 0.9, 0.4, 0.7])}
    measured = {name: {"energy_in_box": one} for name, one in scores.items()}
    found = dict(_combined(maps, measured, (64, 64), listed, boxes))
    assert tuple(found) == COMBINED
    torch.testing.assert_close(found["product"], combine(maps, (64, 64), listed, "product"))
    for image, others in ((0, [1, 3]), (1, [0, 2])):
        one = {name: each[image : image + 1] for name, each in maps.items()}
        chance = box_share(boxes[others], (64, 64))
        by_score = localisation_weights({name: each[others] for name, each in scores.items()}, chance)
        by_spread = spread_weights({name: each[others] for name, each in maps.items()})
        for how, weights in (("geometric_by_localisation", by_score), ("geometric_by_spread", by_spread)):
            torch.testing.assert_close(found[how][image], combine(one, (64, 64), listed, weights=weights)[0])


def test_record(fake_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "LAYERS", ("layer2.1", "layer4.1"))
    experiment.main(["--data", str(fake_data), "--out", str(tmp_path), "--device", "cpu", "--limit", "4"])
    record = json.loads((tmp_path / "extract_aggregate.json").read_text())
    assert record["images"] == 4
    assert record["chance"]["mean"] == pytest.approx((32 / 64) ** 2)
    keys = ("fix", "extract", "aggregate", "layer", "measure")
    found = {tuple(row[key] for key in keys): row for row in record["rows"]}
    assert len(found) == len(record["rows"]) == 4 * 21 * (2 * 5 + 4 * 2)
    # Behind average pooling the gradient is the same everywhere, and NormGrad does not know the class.
    assert found["none", "conv1x1", "l2", "layer4.1", "class_sensitivity"]["mean"] == pytest.approx(1, abs=1e-3)
    assert found["none", "bias", "l2", "layer4.1", "energy_in_box"]["mean"] == pytest.approx(0.25, abs=1e-3)
    one = found["backward", "conv1x1", "l2", "layer2.1", "total_variation"]
    images, _ = tiny_imagenet.load_split("val", fake_data, 4)
    x, boxes = normalize(images.float() / 255), tiny_imagenet.load_boxes("val", fake_data, 4)
    maps = sal.explain(sal.load_model(), x, None, "layer2.1", "normgrad", "backward")["layer2.1"]
    assert one["mean"] == pytest.approx(float(sal.total_variation(maps).mean()), rel=1e-4)
    combined = found["backward", "conv1x1", "l2", "product", "energy_in_box"]
    singles = [found["backward", "conv1x1", "l2", layer, "energy_in_box"] for layer in ("layer2.1", "layer4.1")]
    best = max(row["mean"] for row in singles)
    assert combined["gain"] == pytest.approx(combined["mean"] - best, abs=1e-4)
    assert boxes.shape == (4, 4) and energy_in_box(torch.ones(4, 64, 64), boxes).mean() == 0.25
