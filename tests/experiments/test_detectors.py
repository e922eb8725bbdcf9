"""The detectors' record: what is compared with what, over whom the errors are, and that a run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from fake_tissue import detector, segmenter, surrogate_of, tissue
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.datasets.patches import GLASS, Patches
from smoothsal_lib.experiments import detectors
from smoothsal_lib.experiments.detectors import (
    GROUPS,
    HEMATOXYLIN,
    INTEGRATED,
    LAST,
    METHODS,
    NONE,
    RANDOM,
    SCORED,
    Detector,
    Quantity,
    Source,
    evenly,
    faithfulness,
    grouped,
    hematoxylin,
    in_pieces,
    kept,
    noise,
    pictures,
    rows,
)
from smoothsal_lib.fixes import Surrogate
from smoothsal_lib.ledger import Ledger
from smoothsal_lib.models import normalize


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return detector()


@pytest.fixture(scope="module")
def surrogate(model: nn.Module) -> Surrogate:
    return surrogate_of(model)


@pytest.fixture
def embedded(model: nn.Module, surrogate: Surrogate, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], None]:
    """Two detectors in the place of the trained ones, which may not be there; and their tissue."""
    dense = segmenter()
    models = {"tissue_segmenter": (dense, surrogate_of(dense))}
    monkeypatch.setattr(detectors, "load_model", lambda name: models.get(name, (model, surrogate))[0])
    monkeypatch.setattr(detectors, "load_surrogate", lambda name: models.get(name, (model, surrogate))[1])
    sources = (
        Source("tissue_resnet", "noise", lambda _, count: tissue(count), lambda some: some.patients, "patient"),
        Source("glas_resnet", "noise", lambda _, count: tissue(count), pictures, "picture"),
    )
    monkeypatch.setattr(detectors, "SOURCES", sources)
    monkeypatch.setattr(detectors, "STEPS", 2)
    monkeypatch.setattr(detectors, "PATH", 2)
    monkeypatch.setattr(detectors, "BATCH", 3)


def test_groups_by_hand() -> None:
    found = grouped(torch.tensor([1, 0, 1, 0, 1]), torch.tensor([[2.0], [1.0], [-1.0], [-0.1], [0.0]]))
    assert {name: members.nonzero()[:, 0].tolist() for name, members in found.items()} == {
        "true_positive": [0],
        "false_positive": [1],
        "false_negative": [2, 4],
        "true_negative": [3],
    }


def test_evenly_by_hand() -> None:
    places = torch.tensor([3, 4, 7, 9, 12])
    assert evenly(places, 3).tolist() == [3, 7, 12]
    assert evenly(places, 5).tolist() == evenly(places, 6).tolist() == places.tolist()
    assert len(evenly(places[:0], 2)) == 0


def test_pictures_are_told_by_names() -> None:
    some = tissue(4)
    names = ["testA_1/0-0", "testB_2/0-0", "testA_1/64-0", "testA_12/0-0"]
    assert pictures(replace(some, names=names)).tolist() == [0, 1, 0, 2]


def test_hematoxylin_is_darker_in_blue_dye() -> None:
    colours = torch.tensor(
        [[255, 255, 255], [90, 70, 160], [220, 130, 180]], dtype=torch.uint8
    )  # glass, nucleus, fibre
    glass, nucleus, fibre = hematoxylin(colours.view(1, 3, 1, 3).permute(0, 3, 2, 1))[0, 0].tolist()
    assert abs(glass) < 1e-6 < fibre < nucleus


def test_rows_compare_patch_by_patch_and_err_over_clusters() -> None:
    plain, fixed = Quantity("total_variation", "input", NONE, "gradient"), torch.tensor([0.0, 1, 3, 4])
    found = list(rows({plain: torch.tensor([1.0, 2, 4, 5]), replace(plain, fix="backward"): fixed}, torch.arange(4)))
    assert found[0]["mean"] == 3 and "change" not in found[0]
    assert (found[1]["mean"], found[1]["change"], found[1]["change_error"], found[1]["n"]) == (2, -1, 0, 4)
    together = list(rows({plain: torch.tensor([1.0, 2, 4, 5])}, torch.tensor([0, 0, 1, 1])))[0]
    assert together["error"] == pytest.approx(1.5)  # residuals -3 and 3: sqrt(2 * 18) / 4


def test_what_is_kept_by_hand() -> None:
    """Four tumours and two others: 6 of 8 pairs in order before, 7 of 8 after; two patches change sides."""
    labels = torch.tensor([1, 1, 1, 1, 0, 0])
    before = torch.tensor([[3.0], [2], [1], [-2], [-1], [-3]]).index_fill(0, torch.tensor([4]), 1.5)
    after = before.clone()
    after[2], after[3] = 2.5, 0.5
    found = {
        (row["measure"], row["fix"]): row
        for row in kept(labels, {NONE: before, "backward": after}, torch.arange(6), resamples=20)
    }
    assert found["auc", NONE]["mean"] == 0.75 and found["auc", "backward"]["mean"] == 0.875
    assert found["auc", "backward"]["change"] == 0.125
    low, high = (found["auc", NONE][name] for name in ("low", "high"))
    assert 0 <= low < 0.75 < high <= 1
    assert found["auc", "backward"]["change_low"] <= 0.125 <= found["auc", "backward"]["change_high"]
    assert found["accuracy", NONE]["mean"] == pytest.approx(4 / 6, abs=1e-6)
    assert found["accuracy", "backward"]["change"] == pytest.approx(1 / 6, abs=1e-6)
    assert found["agreement", "backward"]["mean"] == pytest.approx(5 / 6, abs=1e-6)
    moved = (before.sigmoid() - after.sigmoid()).abs().mean().item()
    assert found["prediction_difference", "backward"]["mean"] == pytest.approx(moved, abs=1e-5)
    assert found["prediction_difference", NONE]["mean"] == 0


def test_noise_is_that_of_the_attributions(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "PATH", 2)
    some = tissue(3)
    found = noise(model, {NONE: None, "backward": "backward"}, ("gradient", INTEGRATED), some)
    x = normalize(some.images.float() / 255)
    for layer in ("input", *sal.hidden_layers(model, x)):
        for method in ("gradient", INTEGRATED):
            name, baseline = method.removesuffix("_from_glass"), None if method == "gradient" else GLASS
            one = sal.explain(model, x, 0, layer, name, "backward", baseline, steps=2)[layer]
            key = Quantity("total_variation", layer, "backward", method)
            torch.testing.assert_close(found[key], sal.total_variation(one), rtol=1e-4, atol=1e-5)
            energy = replace(key, measure="checkerboard_energy")
            assert (energy in found) == (one.shape[-1] >= 4)
            if energy in found:
                torch.testing.assert_close(found[energy], sal.checkerboard_energy(one), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(
        found[Quantity("total_variation", "input", "backward", "gradient")],
        found[Quantity("total_variation", "input", NONE, "gradient")],
    )


def test_the_segmenter_explains_the_tumour_where_it_is() -> None:
    dense, some = segmenter(), tissue(4)[1::2]
    found = noise(dense, {NONE: None}, ("gradient",), some)
    x = normalize(some.images.float() / 255).requires_grad_()
    score = (dense(x)[:, 2] * some.masks["tumour"]).sum((1, 2)) / some.masks["tumour"].sum((1, 2))
    (gradient,) = torch.autograd.grad(score.sum(), x)
    key = Quantity("total_variation", "input", NONE, "gradient")
    torch.testing.assert_close(found[key], sal.total_variation(gradient), rtol=1e-4, atol=1e-5)


def test_all_maps_are_scored_on_the_unrepaired_network(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "STEPS", 3)
    some, layer = tissue(2), "layer2.1"
    found = faithfulness(model, {NONE: None, "forward": "forward"}, some, 0)
    x = normalize(some.images.float() / 255)
    maps = sal.explain(model, x, 0, layer, "deeplift", "forward", GLASS)[layer]
    up, down = (curve(model, x, maps, 0, 3, activation="sigmoid").auc for curve in (sal.insertion, sal.deletion))
    key = Quantity("insertion", layer, "forward", "deeplift_from_glass")
    for name, expected in (("insertion", up), ("deletion", down), ("insertion_minus_deletion", up - down)):
        torch.testing.assert_close(found[replace(key, measure=name)], expected, atol=5e-3, rtol=0)
    assert not torch.allclose(found[key], found[replace(key, fix=NONE)], atol=1e-6)
    dye = sal.insertion(model, x, hematoxylin(some.images), 0, 3, activation="sigmoid").auc
    torch.testing.assert_close(found[Quantity("insertion", "input", NONE, HEMATOXYLIN)], dye, atol=5e-3, rtol=0)
    assert len(found) == 3 * (3 + 2 * (len(METHODS) * len(SCORED) + 1))
    assert Quantity("deletion", LAST, "forward", "grad_cam") in found
    other = faithfulness(model, {NONE: None}, some, 2)
    random = Quantity("insertion", "input", NONE, RANDOM)
    assert not torch.equal(other[random], found[random])  # other patches, other random maps


def test_pieces_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "BATCH", 5)
    asked: list[tuple[int, int]] = []

    def brightness(some: Patches, start: int) -> dict[Quantity, Tensor]:
        asked.append((start, len(some)))
        return {
            Quantity("brightness", "input", NONE): some.images.float().mean((1, 2, 3)),
            other: torch.full((5,), 2.0),
        }

    other = Quantity("two", "input", NONE)
    patches, path = tissue(10), tmp_path / "ledger"
    in_pieces(patches[:5], Ledger(path, {}), "a", Quantity, brightness)
    found = in_pieces(patches, Ledger(path, {}), "a", Quantity, brightness)
    assert asked == [(0, 5), (5, 5)]
    expected = patches.images.double().mean((1, 2, 3))
    torch.testing.assert_close(found[Quantity("brightness", "input", NONE)], expected, rtol=1e-5, atol=0)
    in_pieces(patches[:5], Ledger(path, {}), "b", Quantity, brightness)
    assert asked[2:] == [(0, 5)]  # under another name
    assert in_pieces(patches[:0], Ledger(path, {}), "c", Quantity, brightness) == {}


@pytest.mark.usefixtures("embedded")
def test_record(tmp_path: Path) -> None:
    command = ["--out", str(tmp_path), "--device", "cpu", "--patches", "12"]
    detectors.main([*command, "--noise", "4", "--integrated", "2", "--score", "2"])
    assert not list(tmp_path.glob("*.partial.jsonl"))
    record = json.loads((tmp_path / "detectors.json").read_text())
    assert {"command", "versions", "device", "date"} <= set(record)
    assert record["images"] == 24 and record["model"] == "tissue_resnet, glas_resnet, tissue_segmenter"
    for name, over in (("tissue_resnet", "patient"), ("glas_resnet", "picture")):
        facts = record["detectors"][name]
        assert (facts["patches"], facts["patients"], facts["clusters"], facts["errors_over"]) == (12, 3, 3, over)
        assert sum(facts[group] for group in GROUPS) == 12 and facts["true_positive"] >= 2
    keys = ("network", "measure", "layer", "fix", "method")
    found = {tuple(row.get(key) for key in keys): row for row in record["rows"]}
    assert len(found) == len(record["rows"])
    for (_, measure, _, fix, method), row in found.items():
        assert ("change" in row) == (fix != NONE)
        assert ("low" in row) == (measure == "auc")
        expected = 12 if method is None else 2 if method == INTEGRATED or "tion" in measure[:10] else 4
        assert row["n"] == expected or measure == "total_variation"
    results = sal.report.load(tmp_path / "detectors.json")
    table = results.table("total_variation", "gradient", network="glas_resnet")
    assert list(table) == [NONE, "backward", "forward", "surrogate"]
    assert list(table[NONE])[:2] == ["input", "relu"] and len(table[NONE]) == 10
    table = results.table("total_variation", "deeplift_from_glass", network="tissue_segmenter")
    assert list(table) == [NONE, "backward", "forward", "surrogate"] and "layer4.1" in table["surrogate"]
    areas = results.table("auc", columns="fix", rows="network")
    assert set(areas["surrogate"]) == {"tissue_resnet", "glas_resnet"}


def test_a_detector_knows_its_weights_and_its_patients(model: nn.Module, surrogate: Surrogate) -> None:
    some = tissue()
    source = Source("any", "noise", lambda _, count: tissue(count), pictures, "picture")
    make: partial[Detector] = partial(Detector, source, patches=some, clusters=some.patients)
    groups = grouped(some.labels, torch.where(some.labels > 0, 1.0, -1.0)[:, None])
    one = make(model, {NONE: None, "surrogate": surrogate}, groups=groups)
    assert one.weights != make(model, {NONE: None}, groups=groups).weights
    assert one.facts["patients_true_positive"] == 3 and one.facts["patients_false_positive"] == 0
