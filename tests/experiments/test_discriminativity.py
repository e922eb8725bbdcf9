"""The record of two objects in a picture, and the maps that are compared in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import smoothsal_lib as sal
from smoothsal_lib.datasets.pairs import Pairs, load_pairs, ranks
from smoothsal_lib.experiments import discriminativity
from smoothsal_lib.experiments.discriminativity import (
    FIXES,
    INTEGRATED,
    LAYERS,
    RANDOM,
    REDUCTIONS,
    Case,
    attributed,
    prepared,
    scores,
    seen,
)
from smoothsal_lib.ledger import Ledger
from smoothsal_lib.sampling import SmoothGrad


@pytest.fixture
def pairs(fake_data: Path) -> Pairs:
    return load_pairs(fake_data, 7)


def test_one_pass_explains_the_left_class_and_then_the_right_one(pairs: Pairs):
    model, some = sal.load_model("tiny_resnet"), pairs[torch.tensor([0, 3])]  # no class twice
    x = prepared(some.images, model)
    for case in (Case("gradient", "none", "backward"), Case("deeplift")):
        both = attributed(model, x, some.classes, case, {}, 0)
        left, right = (
            sal.explain(model, x, some.classes[:, side], LAYERS, case.method, FIXES[case.fix]) for side in (0, 1)
        )
        for name in LAYERS:
            torch.testing.assert_close(both[name], torch.cat([left[name], right[name]]), atol=1e-5, rtol=1e-3)
            assert not torch.allclose(left[name], right[name], atol=1e-5, rtol=1e-3)


def test_random_maps_are_like_the_layers_and_others_for_every_picture_and_class(pairs: Pairs):
    model = sal.load_model("tiny_resnet")
    x = prepared(pairs[:2].images, model)
    places = sal.hidden_layers(model, x)
    found = attributed(model, x, pairs[:2].classes, Case(RANDOM), places, 0)
    for name in LAYERS:
        height, width = (64, 128) if name == "input" else places[name].shape[1:]
        assert found[name].shape == (4, 1, height, width)
        assert len(found[name].flatten(1).unique(dim=0)) == 4
    assert not torch.equal(attributed(model, x, pairs[:2].classes, Case(RANDOM), places, 1)["input"], found["input"])


@pytest.mark.parametrize("swapped", [False, True])
def test_maps_that_show_their_own_object_score_1_at_every_layer(pairs: Pairs, swapped: bool):
    model, some = sal.load_model("tiny_resnet"), pairs[:3]
    places = sal.hidden_layers(model, prepared(some.images, model))
    attributions: dict[str, Tensor] = {}
    for name in LAYERS:
        height, width = (64, 128) if name == "input" else places[name].shape[1:]
        attributions[name] = torch.zeros(6, 2, height, width)
        attributions[name][:3, :, :, : width // 2] = 1  # the first three maps are those of the left objects
        attributions[name][3:, :, :, width // 2 :] = 5
    if swapped:
        attributions = {name: one.roll(3, 0) for name, one in attributions.items()}
    found = scores(attributions, some.boxes, places)
    assert len(found) == len(LAYERS) * len(REDUCTIONS) * len(discriminativity.MEASURES)
    for (layer, _, measure), numbers in found.items():
        # A unit of layer4.1 is 16 pixels wide, and boxes begin 16 from the seam: interpolation reaches just as far.
        assert (1 - numbers if swapped else numbers).tolist() == pytest.approx([1] * 3, abs=1e-6), (layer, measure)


def test_what_is_seen_does_not_depend_on_batches(pairs: Pairs):
    model = sal.load_model("tiny_resnet")
    with torch.no_grad():
        expected = ranks(model(prepared(pairs.images, model)), pairs.classes)
    assert torch.equal(seen(model, pairs, batch=3), expected)


def test_a_run_goes_on_from_what_another_one_left(pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[int, Case]] = []

    def counted(model, x, classes, case, places, seed) -> dict[str, Tensor]:
        asked.append((seed, case))
        return {"input": classes.T.reshape(-1, 1, 1, 1).float() + torch.arange(64 * 128).view(1, 1, 64, 128)}

    monkeypatch.setattr(discriminativity, "attributed", counted)
    monkeypatch.setattr(discriminativity, "BATCH", 3)
    model, one, other = sal.load_model("tiny_resnet"), Case("gradient"), Case("deeplift")
    ledger = Ledger(tmp_path / "ledger", {})
    short = discriminativity.measure(model, pairs, {one: 3, other: 2}, ledger)
    assert asked == [(0, one), (0, other)]
    asked.clear()
    long = discriminativity.measure(model, pairs, {one: 7, other: 3}, Ledger(ledger.path, {}))
    assert asked == [(0, other), (3, one), (6, one)]  # two pictures of the other were another piece of work
    for key, numbers in short[one].items():
        assert long[one][key].shape == (7,) and torch.equal(long[one][key][:3], numbers)
        assert long[other][key].shape == (3,) and torch.equal(long[other][key], numbers)


def test_rows_compare_pair_by_pair():
    key = ("input", "mean", "discriminativity")
    measured = {
        Case("gradient"): {key: torch.tensor([0.5, 0.6, 0.9])},
        Case("gradient", "none", "backward"): {key: torch.tensor([0.7, 0.8, 1.0])},
        Case("gradient", "smoothgrad", "backward"): {key: torch.tensor([1.0, 0.9])},
        Case("gradient", "smoothgrad"): {key: torch.tensor([0.6, 0.6])},
    }
    plain, fixed, sampled, plainly_sampled = discriminativity.rows(measured)
    assert (plain["n"], plain["mean"]) == (3, pytest.approx(2 / 3, abs=1e-5)) and "change" not in plain
    assert fixed["change"] == pytest.approx((0.2 + 0.2 + 0.1) / 3, abs=1e-5) and "from_one_pass" not in fixed
    assert (sampled["n"], sampled["change"]) == (2, pytest.approx(0.35))
    assert sampled["from_one_pass"] == pytest.approx(0.2)
    assert plainly_sampled["from_one_pass"] == pytest.approx(0.05) and "change" not in plainly_sampled


def test_record(fake_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cases = [Case(RANDOM)]
    cases += [Case(method, "none", fix) for method in ("gradient", INTEGRATED, "grad_cam") for fix in FIXES]
    cases += [Case("gradient", "smoothgrad", fix) for fix in FIXES]
    monkeypatch.setattr(discriminativity, "CASES", tuple(cases))
    monkeypatch.setattr(discriminativity, "STEPS", 2)
    monkeypatch.setitem(discriminativity.SAMPLINGS, "smoothgrad", SmoothGrad(n=2))
    folders = ["--data", str(fake_data), "--out", str(tmp_path), "--device", "cpu"]
    counts = ["--limit", "4", "--integrated", "3", "--sampled", "2"]
    with pytest.raises(ValueError, match="^no picture has both classes among the first 1: give a larger --top$"):
        discriminativity.main([*folders, *counts, "--top", "1"])
    discriminativity.main([*folders, *counts, "--top", "100"])
    assert not list(tmp_path.glob("*.partial.jsonl"))
    record = json.loads((tmp_path / "discriminativity.json").read_text())
    assert {"command", "versions", "device", "date"} <= set(record)
    assert (record["images"], record["candidates"], record["top"], record["steps"]) == (4, 100, 100, 2)
    choices = seen(sal.load_model("tiny_resnet"), load_pairs(fake_data))
    assert record["both_among_first"]["20"] == int((choices <= 20).all(1).sum())
    keys = ("method", "sampling", "fix", "layer", "reduce", "measure")
    rows = {tuple(row[key] for key in keys): row for row in record["rows"]}
    assert len(rows) == len(record["rows"]) == len(cases) * len(LAYERS) * len(REDUCTIONS) * 2
    for (method, sampling, fix, layer, _, measure), row in rows.items():
        assert row["n"] == (2 if sampling != "none" else 3 if method == INTEGRATED else 4)
        assert ("change" in row) == (fix != "none") and ("from_one_pass" in row) == (sampling != "none")
        if (method, layer, measure) == ("gradient", "layer4.1", "discriminativity"):
            assert row["mean"] == 0.5  # below the global mean the gradient is constant
