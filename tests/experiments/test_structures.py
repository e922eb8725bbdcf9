"""The record of maps against masks: the equally smooth blur, what is compared with what, and groups of patches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_tissue import detector, surrogate_of, tissue
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.datasets.patches import GLASS, STRUCTURES
from smoothsal_lib.experiments import detectors, structures
from smoothsal_lib.experiments.detectors import GROUPS, HEMATOXYLIN, NONE, RANDOM, Detector, Source, grouped
from smoothsal_lib.experiments.structures import (
    AMONG,
    AREA,
    CUTOFFS,
    READINGS,
    Blurs,
    Quantity,
    among_nuclei,
    areas,
    of_group,
    of_hits,
    rows,
    scores,
    shares,
)
from smoothsal_lib.extract import on_picture
from smoothsal_lib.filters import low_pass
from smoothsal_lib.metrics.structures import average_precision, pointing_at, structure_shares
from smoothsal_lib.models import normalize


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return detector()


@pytest.fixture
def made(model: nn.Module) -> Detector:
    some = tissue()
    groups = grouped(some.labels, torch.where(some.labels > 0, 1.0, -1.0)[:, None])
    source = Source("any", "noise", lambda _, count: tissue(count), lambda one: one.patients, "patient")
    return Detector(source, model, {NONE: None, "forward": "forward"}, some, some.patients, groups)


def roughness(maps: Tensor) -> Tensor:
    return sal.total_variation(maps[:, None])


def test_the_blur_is_as_smooth_as_the_other_map() -> None:
    maps = torch.randn(4, 24, 24, generator=torch.Generator().manual_seed(0))
    blurs = Blurs(maps)
    assert torch.equal(blurs.as_smooth_as(maps), maps)
    places = torch.arange(24)
    grid = ((places[:, None] + places) % 2).float().expand(4, 24, 24)
    assert torch.equal(blurs.as_smooth_as(grid), maps)  # nothing is as rough
    other = torch.stack([low_pass(maps[i], cutoff) for i, cutoff in enumerate((CUTOFFS[3], 0.4, CUTOFFS[9], 0.11))])
    found = blurs.as_smooth_as(3 * other - 1)  # scale and offset do not count
    torch.testing.assert_close(found[[0, 2]], other[[0, 2]])
    torch.testing.assert_close(roughness(found), roughness(other), rtol=0.1, atol=0)
    assert (roughness(found)[1:] < 0.9 * roughness(maps)[1:]).all()
    between = torch.stack([low_pass(maps, cutoff) for cutoff in CUTOFFS])
    gaps = torch.stack([(roughness(one) - roughness(other)).abs() for one in between])
    assert ((roughness(found) - roughness(other)).abs() <= gaps.min(0).values + 1e-6).all()


def test_scores_are_those_of_the_map_on_the_picture(model: nn.Module) -> None:
    some = tissue(4)
    layer = sal.hidden_layers(model, normalize(some.images.float() / 255))["layer2.1"]
    maps = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    found = scores(maps, some.masks, layer)
    overlay = on_picture(maps, (32, 32), layer)
    for name, share in structure_shares(overlay, some.masks).items():
        torch.testing.assert_close(found["share", name], share)
    for name in ("tumour", "tumour_nuclei"):
        torch.testing.assert_close(found["pointing", name], pointing_at(overlay, some.masks[name]))
        precision = average_precision(overlay, some.masks[name])
        torch.testing.assert_close(found["average_precision", name], precision, equal_nan=True)
    torch.testing.assert_close(found["total_variation", None], roughness(maps))  # as the layer has it
    assert ("checkerboard_energy", None) in found
    assert ("checkerboard_energy", None) not in scores(maps[:, :3, :3], some.masks, None)


def test_among_nuclei_by_hand() -> None:
    """Tumour nuclei hold 3 of the 4 that lie on nuclei; then there is one kind only; then nothing lies on nuclei."""
    energy = {"tumour_nuclei": torch.tensor([0.3, 0.3, 0.0]), "normal_nuclei": torch.tensor([0.1, 0.0, 0.0])}
    masks = {name: torch.ones(3, 2, 2, dtype=torch.bool) for name in energy}
    masks["normal_nuclei"][1] = False
    found = among_nuclei(energy, masks)
    assert found[0].item() == pytest.approx(0.75) and found[1:].isnan().all()


def test_areas_are_what_a_constant_map_scores() -> None:
    some = tissue(4)
    constant = scores(torch.ones(4, 8, 8), some.masks, None)
    found = areas(some.masks)
    for name in STRUCTURES:
        torch.testing.assert_close(found[Quantity(AREA, name)], constant["share", name])
    torch.testing.assert_close(found[Quantity(AREA, AMONG)], constant[AMONG, None], equal_nan=True)
    for measure in ("pointing", "average_precision"):
        expected = found[Quantity(AREA, "tumour")][1::2]  # where there is tumour
        torch.testing.assert_close(constant[measure, "tumour"][1::2], expected)


def test_what_speaks_against_lies_under_the_negative_values() -> None:
    maps = torch.tensor([[[3.0, 1.0], [-1.0, -4.0]]])
    masks = {"stroma": torch.tensor([[[True, False], [False, True]]])}
    found = shares(maps, masks, None, signed=True)
    assert found["share", "stroma"].tolist() == [0.75]
    assert found["share_against", "stroma"].tolist() == pytest.approx([0.8])
    assert ("share_against", "stroma") not in shares(maps, masks, None, signed=False)


def test_every_repaired_map_has_an_equally_smooth_rival(made: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structures, "READINGS", (("gradient", "mean"), ("gradient", "positive_norm")))
    some = made.patches[1:4:2]
    found = of_hits(made, some, 0)
    x = normalize(some.images.float() / 255)
    places = sal.hidden_layers(made.model, x)
    for layer in ("input", "relu", "layer2.0"):
        attributions = {fix: sal.explain(made.model, x, 0, layer, "gradient", fix)[layer] for fix in (None, "forward")}
        for reduce in ("mean", "positive_norm"):
            plain, repaired = (sal.saliency_map(one, reduce) for one in attributions.values())
            blurred = Blurs(plain).as_smooth_as(repaired)
            key = Quantity("", None, layer, "forward", "gradient", reduce)
            for one, maps in (
                (key, repaired),
                (replace(key, fix=NONE), plain),
                (replace(key, blurred=True), blurred),
            ):
                for (measure, name), expected in scores(maps, some.masks, places.get(layer)).items():
                    if measure != "pointing":  # which rounding decides where values are equal
                        numbers = found[replace(one, measure=measure, structure=name)]
                        torch.testing.assert_close(numbers, expected, rtol=1e-3, atol=1e-3, equal_nan=True)
    assert not any(one.blurred and one.fix == NONE for one in found)
    dye = average_precision(detectors.hematoxylin(some.images), some.masks["tumour"])
    torch.testing.assert_close(
        found[Quantity("average_precision", "tumour", "input", NONE, HEMATOXYLIN)], dye, rtol=1e-4, atol=1e-4
    )
    random = Quantity("average_precision", "tumour", "input", NONE, RANDOM)
    assert not torch.equal(of_hits(made, some, 7)[random], found[random])


def test_groups_are_compared_by_the_signed_map_too(made: Detector) -> None:
    found = of_group(made, made.patches[:2], 0)
    x = normalize(made.patches.images[:2].float() / 255)
    maps = sal.saliency_map(sal.explain(made.model, x, 0, "input", "deeplift", None, GLASS)["input"])
    expected = structure_shares(-maps, made.patches[:2].masks)["stroma"]
    key = Quantity("share_against", "stroma", "input", NONE, "deeplift_from_glass", "mean")
    torch.testing.assert_close(found[key], expected, rtol=1e-3, atol=1e-3)
    assert replace(key, method="grad_cam") not in found


@pytest.fixture(autouse=True)
def fixes_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structures, "FIXES_OF_GROUPS", (NONE, "forward"))


def test_rows_by_hand() -> None:
    """Four patches of two patients; the last has no tumour nuclei, where precision is not defined.

    Nor is in the third what of the unrepaired map lies on nuclei: the change is that of the first two.
    """
    nan = float("nan")
    plain = Quantity("average_precision", "tumour_nuclei", "input", NONE, "gradient", "mean")
    fixed, against = replace(plain, fix="backward"), Quantity("share", "lumen", "input", NONE, "gradient", "mean")
    values = {
        Quantity(AREA, "tumour_nuclei"): torch.tensor([0.1, 0.2, 0.3, 0.0]),
        Quantity(AREA, "lumen"): torch.zeros(4),
        Quantity("average_precision", "tumour_nuclei", "input", NONE, HEMATOXYLIN): torch.tensor([0.2, 0.2, 0.2, nan]),
        plain: torch.tensor([0.3, 0.4, 0.5, nan]),
        fixed: torch.tensor([0.5, 0.6, 0.7, nan]),
        replace(fixed, blurred=True): torch.tensor([0.5, 0.5, 0.4, nan]),
        against: torch.zeros(4),
        Quantity(AMONG, None, "input", NONE, "gradient", "mean"): torch.tensor([0.5, 0.4, nan, nan]),
        Quantity(AMONG, None, "input", "backward", "gradient", "mean"): torch.tensor([0.6, 0.7, 0.9, nan]),
    }
    values = {one: numbers.double() for one, numbers in values.items()}
    area, none_there, dye, unrepaired, repaired, _, among = rows(values, torch.tensor([0, 0, 1, 1]))
    assert (area["measure"], area["structure"], area["n"]) == (AREA, "tumour_nuclei", 4)
    assert (none_there["structure"], none_there["mean"]) == ("lumen", 0)
    assert dye["from_hematoxylin"] == 0 and dye["mean"] == pytest.approx(0.2, abs=1e-6)
    assert "change" not in unrepaired and "from_blurred" not in unrepaired
    assert unrepaired["from_chance"] == pytest.approx(0.2, abs=1e-6) and unrepaired[
        "from_chance_error"
    ] == pytest.approx(0, abs=1e-6)
    assert (repaired["n"], repaired["mean"], repaired["change"]) == (
        3,
        pytest.approx(0.6),
        pytest.approx(0.2, abs=1e-6),
    )
    assert repaired["from_blurred"] == pytest.approx(0.4 / 3, abs=1e-6)
    # 0, 0.1 | 0.3: residuals -1/6 and 1/6 of the two patients.
    assert repaired["from_blurred_error"] == pytest.approx((2 * (2 / 36)) ** 0.5 / 3, rel=1e-4)
    assert repaired["from_hematoxylin"] == pytest.approx(0.4)
    assert "blurred" not in repaired
    assert (among["n"], among["change"]) == (3, pytest.approx(0.2, abs=1e-6))


def test_record(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surrogate = surrogate_of(model)
    monkeypatch.setattr(detectors, "load_model", lambda name: model)
    monkeypatch.setattr(detectors, "load_surrogate", lambda name: surrogate)
    one = Source("tissue_resnet", "noise", lambda _, count: tissue(count), lambda some: some.patients, "patient")
    for module in (detectors, structures):
        monkeypatch.setattr(module, "SOURCES", (one, replace(one, network="glas_resnet")))
    monkeypatch.setattr(detectors, "BATCH", 2)
    readings = (("deeplift_from_glass", "mean"), ("grad_cam", "mean"))
    assert set(readings) < set(READINGS)
    monkeypatch.setattr(structures, "READINGS", readings)
    monkeypatch.setattr(structures, "OF_GROUPS", readings)
    monkeypatch.setattr(structures, "CUTOFFS", (0.4, 0.1))
    command = ["--out", str(tmp_path), "--device", "cpu", "--patches", "12", "--limit", "3", "--groups", "2"]
    structures.main(command)
    assert not list(tmp_path.glob("*.partial.jsonl"))
    record = json.loads((tmp_path / "structures.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert {"command", "versions", "device", "date"} <= set(record)
    facts = record["detectors"]["tissue_resnet"]
    assert facts["patches"] == 12 and sum(facts[group] for group in GROUPS) == 12
    keys = ("network", "part", "measure", "structure", "layer", "fix", "method", "reduce")
    found = {tuple(row.get(key) for key in keys): row for row in record["rows"]}
    assert len(found) == len(record["rows"])
    for (_, part, measure, structure, _, fix, method, _), row in found.items():
        assert row["n"] <= (3 if part == "hits" else 2)
        assert ("change" in row) == (fix != NONE)
        if part == "hits" and fix != NONE and structure is not None:
            assert {"from_blurred", "from_chance"} <= set(row)
        assert measure == AREA or method is not None
        if measure == AMONG and part == "hits":
            assert {"from_chance", "from_hematoxylin"} <= set(row)
        assert (measure == "share_against") <= (part != "hits" and method == "deeplift_from_glass")
    assert {part for _, part, *_ in found} == {"hits", *(group for group in GROUPS if facts[group])}
    results = sal.report.load(tmp_path / "structures.json")
    chosen = {"network": "glas_resnet", "part": "hits", "structure": "tumour_nuclei"}
    table = results.table("average_precision", "deeplift_from_glass", value="from_blurred", **chosen)
    assert list(table) == ["backward", "forward", "surrogate"] and len(table["backward"]) == 10
    table = results.table(
        "share", "grad_cam", columns="part", rows="layer", fix="forward", **(chosen | {"part": GROUPS})
    )
    assert set(table) <= set(GROUPS)
