"""The crossed design, what is compared with what, and the record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.capture import record_activations
from smoothsal_lib.evaluate import OUTPUT
from smoothsal_lib.experiments import surrogate_explains
from smoothsal_lib.experiments.surrogate_explains import (
    AGREEMENT,
    BACKWARD,
    CONFIDENCE,
    DIFFERENCE,
    METHODS,
    NONE,
    ORIGINAL,
    RANDOM,
    SURROGATE,
    Quantity,
    Values,
    dealt,
    groups,
    measure,
    predictions,
    relations,
    rows,
)
from smoothsal_lib.metrics.similarity import rank_correlation
from smoothsal_lib.models import normalize
from smoothsal_lib.precision import fast_autocast

LAYER = "layer3.1"


@pytest.fixture(autouse=True)
def one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate_explains, "LAYERS", ("layer1.1", LAYER))
    monkeypatch.setattr(surrogate_explains, "STEPS", 2)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return sal.load_model("tiny_resnet")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_dealt_by_hand() -> None:
    assert dealt(torch.tensor([7, 7, 7, 2, 2, 5])).tolist() == [0, 3, 5, 1, 4, 2]


def test_groups_by_hand() -> None:
    """Seven images: 3, 2 and 2 in the thirds, the least different first; what is equal stays in order."""
    difference = torch.tensor([0.5, 0.1, 0.9, 0.1, 0.7, 0.1, 0.1])
    found = {name: members.nonzero()[:, 0].tolist() for name, members in groups(difference < 0.6, difference).items()}
    assert found == {
        "all": [0, 1, 2, 3, 4, 5, 6],
        "agree": [0, 1, 3, 5, 6],
        "disagree": [2, 4],
        "difference low": [1, 3, 5],
        "difference middle": [0, 6],
        "difference high": [2, 4],
    }


def test_predictions_by_hand() -> None:
    """One image stays at (3/4, 1/4), the other moves from (3/4, 1/4) to (1/4, 3/4)."""
    original, other = (torch.tensor(shares).log() for shares in ([[0.75, 0.25]] * 2, [[0.75, 0.25], [0.25, 0.75]]))
    found = predictions(original, other)
    torch.testing.assert_close(found[AGREEMENT], torch.tensor([1.0, 0]))
    torch.testing.assert_close(found[DIFFERENCE], torch.tensor([0, 1.0]))
    torch.testing.assert_close(found[CONFIDENCE], torch.tensor([0.75, 0.75]))


def by_hand() -> Values:
    """Four images, of which two are scored; the surrogate agrees on the first three."""
    maps = Quantity("insertion", LAYER, "gradient", SURROGATE, scored_on=SURROGATE)
    alike = Quantity("rank_correlation", LAYER, "gradient", SURROGATE, BACKWARD)
    there = replace(maps, scored_on=ORIGINAL)
    numbers = {
        AGREEMENT: [1, 1, 1, 0],
        DIFFERENCE: [0.1, 0.2, 0.3, 0.4],
        CONFIDENCE: [0.9, 0.8, 0.6, 0.7],
        Quantity("activation_error", LAYER): [0, 0, 0, 0],
        maps: [7, 9],
        replace(maps, maps=BACKWARD): [4, 4],
        replace(maps, maps=NONE): [3, 3],
        replace(maps, maps=RANDOM, method=RANDOM): [1, 2],
        there: [6, 6],
        replace(there, maps=BACKWARD): [5, 5],
        replace(there, maps=NONE): [4, 4],
        replace(there, maps=RANDOM, method=RANDOM): [2, 2],
        alike: [0.9, 0.7, 0.8, 0.1],
        replace(alike, maps=BACKWARD, against="backward, second class"): [0.5, 0.5, 0.5, 0.5],
        replace(alike, maps=BACKWARD, against="backward, another image"): [0, 0, 0, 0.2],
    }
    return {one: torch.tensor(values, dtype=torch.float32) for one, values in numbers.items()}


def test_changes_by_hand() -> None:
    found = {
        (row["group"], row["measure"], row.get("maps"), row.get("scored_on", row.get("against"))): row
        for row in rows(by_hand())
        if "with" not in row
    }
    row = found["all", "insertion", SURROGATE, SURROGATE]
    assert (row["n"], row["mean"], row["error"]) == (2, 8, 1)
    assert (row["from_own"], row["from_unrepaired"], row["from_random"]) == (4, 5, 6.5)
    assert (row["from_other_network"], row["from_other_network_error"]) == (2, 1)
    assert (row["home_advantage"], row["home_advantage_error"]) == (3, 1)  # ahead by 3 and 5 here, by 1 and 1 there
    away = found["all", "insertion", SURROGATE, ORIGINAL]
    assert (away["from_own"], away["from_other_network"]) == (1, -2) and "home_advantage" not in away
    row = found["all", "rank_correlation", SURROGATE, BACKWARD]
    assert (row["n"], row["mean"]) == (4, pytest.approx(0.625))
    assert (row["from_second_class"], row["from_another_image"]) == (pytest.approx(0.125), pytest.approx(0.575))
    assert found["agree", "rank_correlation", SURROGATE, BACKWARD]["mean"] == pytest.approx(0.8)
    assert found["disagree", "rank_correlation", SURROGATE, BACKWARD]["mean"] == pytest.approx(0.1)
    # The one image on which they disagree was not scored, nor was one of the highest third.
    assert ("disagree", "insertion", SURROGATE, SURROGATE) not in found
    assert found["difference low", "insertion", SURROGATE, SURROGATE]["n"] == 2


def test_relations_by_hand() -> None:
    """Ranks 4 2 3 1 against 1 2 3 4: 1 - 6 (9 + 0 + 0 + 9) / 60 = -0.8; against 4 3 1 2: 1 - 6 (0 + 1 + 4 + 1) / 60."""
    found = {(row["measure"], row["with"]): row for row in relations(by_hand())}
    assert found["rank_correlation", "prediction_difference"]["correlation"] == pytest.approx(-0.8)
    assert found["rank_correlation", "confidence"]["correlation"] == pytest.approx(0.4)
    assert found["confidence", "prediction_difference"]["correlation"] == pytest.approx(-0.8)
    assert found["confidence", "prediction_difference"]["error_if_unrelated"] == pytest.approx(3**-0.5, abs=1e-5)
    assert len(found) == 3  # an error that is the same for all images goes with nothing


def test_a_surrogate_that_is_the_original_explains_it(model: nn.Module, images: Tensor) -> None:
    measured = measure(model, None, images, scored=2, batch=4)  # 3 + 2, never one alone
    for one, numbers in measured.items():
        assert len(numbers) == (2 if one.scored_on else 5)
        if (one.maps, one.against) == (SURROGATE, NONE):
            torch.testing.assert_close(numbers, torch.ones(5))
        if one.maps == BACKWARD and one.against:  # the comparison itself tells maps apart
            assert (numbers < 0.999).all()
    assert (measured[AGREEMENT] == 1).all() and (measured[DIFFERENCE] == 0).all()
    assert (measured[Quantity("activation_error", LAYER)] == 0).all()
    for row in rows(measured):
        assert row["group"] != "disagree"
        if "scored_on" in row and row["maps"] == SURROGATE:
            assert row["from_unrepaired"] == row["from_other_network"] == row.get("home_advantage", 0) == 0
            assert row["from_own"] != 0 and row["from_random"] != 0


def test_every_map_is_scored_on_either_network(model: nn.Module, images: Tensor) -> None:
    """The forward hook in the surrogate's place, which changes much: each cell of the design against a direct call."""
    x = normalize(images[:2].float() / 255)
    target = model(x).argmax(1)
    measured = measure(model, "forward", images[:2], scored=2)
    areas, found, layer = [], {}, {}
    for name, fix in ((NONE, None), (BACKWARD, "backward"), (SURROGATE, "forward")):
        found[name] = sal.explain(model, x, target, LAYER, "deeplift", fix)[LAYER]
        with sal.smoothed(model, fix):
            layer[name] = record_activations(model, x, LAYER)[LAYER]
        for network, repair in ((ORIGINAL, None), (SURROGATE, "forward")):
            with sal.smoothed(model, repair), fast_autocast("cpu"):
                for kind, curve in (("insertion", sal.insertion), ("deletion", sal.deletion)):
                    auc = curve(model, x, found[name], target, 2).auc
                    one = measured[Quantity(kind, LAYER, "deeplift", name, scored_on=network)]
                    torch.testing.assert_close(one, auc, atol=2e-3, rtol=0)
                    areas.append(auc)
    assert len({tuple(auc.tolist()) for auc in areas}) == 3 * 2 * 2  # no cell is another's copy
    for kind, reduce in (("rank_correlation", "mean"), ("rank_correlation_magnitude", "abs_mean")):
        maps = {name: sal.saliency_map(attribution, reduce) for name, attribution in found.items()}
        for against in (NONE, BACKWARD):
            alike = measured[Quantity(kind, LAYER, "deeplift", SURROGATE, against)]
            torch.testing.assert_close(alike, rank_correlation(maps[SURROGATE], maps[against]), atol=1e-3, rtol=0)
            assert (alike < 0.99).all()
    squares = [one.square().sum((1, 2, 3)) for one in (layer[SURROGATE] - layer[NONE], layer[NONE])]
    error = (squares[0] / squares[1]).sqrt()
    torch.testing.assert_close(measured[Quantity("activation_error", LAYER)], error)
    assert (error > 0.01).all()
    assert (measured[Quantity("activation_error", "layer1.1")] == 0).all()  # no strided convolution but the stem below


def test_record(fake_data: Path, tmp_path: Path) -> None:
    folders = ["--data", str(fake_data), "--out", str(tmp_path), "--device", "cpu"]
    surrogate_explains.main([*folders, "--limit", "4", "--score", "2"])
    record = json.loads((tmp_path / "surrogate_explains.json").read_text())
    assert {"command", "versions", "device", "date"} <= set(record)
    assert (record["images"], record["scored"], record["steps"]) == (4, 2, 2)
    assert str(fake_data) not in json.dumps(record)
    keys = ("group", "method", "layer", "measure", "maps", "against", "scored_on", "with")
    found = {tuple(row.get(key) for key in keys): row for row in record["rows"]}
    assert len(found) == len(record["rows"])
    for method in METHODS:
        for layer in surrogate_explains.LAYERS:
            for name in ("insertion", "deletion"):
                for network in (ORIGINAL, SURROGATE):
                    cells = {
                        maps: found["all", RANDOM if maps == RANDOM else method, layer, name, maps, None, network, None]
                        for maps in (NONE, BACKWARD, SURROGATE, RANDOM)
                    }
                    row = cells[SURROGATE]
                    assert row["n"] == 2
                    for title, rival in (("own", BACKWARD), ("unrepaired", NONE), ("random", RANDOM)):
                        assert row[f"from_{title}"] == pytest.approx(row["mean"] - cells[rival]["mean"], abs=1e-5)
            for name in surrogate_explains.SIMILARITY:
                for against in (NONE, BACKWARD):
                    row = found["all", method, layer, name, SURROGATE, against, None, None]
                    second = found["all", method, layer, name, against, f"{against}, second class", None, None]
                    assert row["n"] == 4 and -1 <= row["mean"] <= 1
                    assert row["from_second_class"] == pytest.approx(row["mean"] - second["mean"], abs=1e-5)
    error = found["all", None, LAYER, "activation_error", None, None, None, None]
    assert 0 < error["mean"] < 1
    low, high = (
        found[f"difference {which}", None, OUTPUT, "prediction_difference", *[None] * 4] for which in ("low", "high")
    )
    assert low["mean"] < high["mean"]
