"""The record of generated tissue beside real tissue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from glas_tree import PICTURES, plant
from torch import Tensor

from smoothsal_lib.datasets import tissue
from smoothsal_lib.datasets.patches import Patches
from smoothsal_lib.datasets.tissue import KINDS, TUMOUR
from smoothsal_lib.experiments import tissue_statistics
from smoothsal_lib.experiments.tissue_statistics import (
    FEATURES,
    colour_leak,
    exact_statistics,
    histogram,
    mean_and_spread,
    mean_colour,
    nuclei_statistics,
    picture_statistics,
    rows,
)

PINK, PURPLE = (225.0, 150.0, 190.0), (80.0, 45.0, 135.0)


def nuclei() -> Tensor:
    """(100, 200): a square of 4 pixels and a line of 8."""
    labels = torch.zeros(100, 200, dtype=torch.int32)
    labels[10:12, 20:22] = 1
    labels[50, 100:108] = 2
    return labels


def with_colours(colours: Tensor) -> Patches:
    """Noisy patches (N, 3, 8, 8) of mean colours (N, 3), every other one with tumour, four of a patient."""
    noise = 4 * torch.randn(len(colours), 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images = (colours[:, :, None, None] + noise).round().clamp(0, 255).to(torch.uint8)
    return Patches(images, torch.arange(len(colours)) % 2, torch.arange(len(colours)) // 4)


def test_nuclei_by_hand():
    found = nuclei_statistics(nuclei(), mpp=0.5)
    assert found["nucleus_area_px"] == 6 and found["nucleus_area_sd_px"] == 2
    assert found["nucleus_area_um2"] == pytest.approx(1.5)
    assert found["nuclei_per_mm2"] == pytest.approx(2 / 0.005)  # 100 x 200 pixels of 0.5 um are 0.005 square mm
    assert found["nucleus_eccentricity"] == pytest.approx(0.5, abs=0.01)  # 0 for the square, nearly 1 for the line
    assert nuclei_statistics(torch.zeros(10, 10, dtype=torch.int32), 0.5) == {"nuclei_per_mm2": 0}


def test_a_picture_by_hand():
    image = torch.tensor(PINK)[:, None, None].repeat(1, 80, 80)
    rows_, columns = torch.meshgrid(torch.arange(80), torch.arange(80), indexing="ij")
    disc = (rows_ - 40) ** 2 + (columns - 40) ** 2 <= 36
    image[:, disc] = torch.tensor(PURPLE)[:, None]
    found = picture_statistics(image.to(torch.uint8), 0.62)
    share = float(disc.double().mean())
    for name, pink, purple in zip(("red", "green", "blue"), PINK, PURPLE, strict=True):
        assert found[f"{name}_mean"] == pytest.approx(pink + share * (purple - pink))
        assert found[f"{name}_sd"] == pytest.approx((pink - purple) * (share * (1 - share)) ** 0.5)
    assert found["nuclei_per_mm2"] == pytest.approx(1 / (80 * 80 * 0.62e-3**2))
    assert found["nucleus_area_px"] == pytest.approx(float(disc.sum()), rel=0.2)
    assert {"hematoxylin_mean", "eosin_sd"} <= set(found)


def test_exact_nuclei_are_those_of_their_kind():
    field = tissue.field(160, seed=1, tumour=0.4)
    areas = torch.bincount(field.nuclei.flatten())[1:].double()
    for kind in range(len(KINDS)):
        own = areas[field.kinds == kind]
        found = exact_statistics(field, kind)
        assert found["nucleus_area_px"] == pytest.approx(float(own.mean()))
        assert found["nuclei_per_mm2"] == pytest.approx(len(own) / (160 * 160 * 0.62e-3**2))
    assert exact_statistics(tissue.field(96, seed=1, tumour=0.0), TUMOUR) == {"nuclei_per_mm2": 0}


def test_pictures_of_one_patient_are_one_case():
    pictures = [{"red": 1.0, "area": 5.0}, {"red": 1.0}, {"red": 4.0, "area": 7.0}]
    red, area = rows("glas", "benign", pictures, [3, 3, 8])
    assert (red["measure"], red["n"], red["mean"], red["between"]) == ("red", 3, 2, pytest.approx(2**0.5, abs=1e-5))
    # Two patients, whose residuals sum to -2 and 2: sqrt(2 / 1 * 8) / 3.
    assert red["error"] == pytest.approx(4 / 3, abs=1e-5)
    assert (area["measure"], area["n"], area["mean"]) == ("area", 2, 6)


def test_colour_leaks_where_it_does_and_nowhere_else():
    generator = torch.Generator().manual_seed(0)
    told = torch.tensor([120.0, 80, 140]) + 20 * (torch.arange(200) % 2)[:, None]
    assert colour_leak(with_colours(told), with_colours(told.flip(0).roll(1, 0)), mean_colour)["mean"] == 1
    random = [120 + 10 * torch.randn(200, 3, generator=generator) for _ in range(2)]
    for features in FEATURES.values():
        found = colour_leak(with_colours(random[0]), with_colours(random[1]), features)
        assert 0.35 < found["mean"] < 0.65  # four standard errors of an AUC of 200
        assert found["low"] < found["mean"] < found["high"]


def test_a_spread_leaks_only_to_those_who_see_it():
    noise = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    noise -= noise.mean((2, 3), keepdim=True)
    wide = 5 + 10 * (torch.arange(200) % 2)[:, None, None, None]
    images = (128 + wide * noise).round().clamp(0, 255).to(torch.uint8)
    patches = Patches(images, torch.arange(200) % 2, torch.arange(200) // 4)
    assert colour_leak(patches, patches, mean_and_spread)["mean"] > 0.999
    assert colour_leak(patches, patches, mean_colour)["mean"] < 0.75


def test_features_by_hand():
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, 1] = torch.tensor([[15, 16], [255, 255]])
    assert mean_colour(image)[0].tolist() == pytest.approx([0, 541 / 4 / 255, 0])
    spread = torch.tensor([15.0, 16, 255, 255]).std(correction=0).item() / 255
    assert mean_and_spread(image)[0].tolist() == pytest.approx([0, 541 / 4 / 255, 0, 0, spread, 0])
    red, green, blue = histogram(image)[0].chunk(3)
    assert red.tolist() == blue.tolist() == [1] + 15 * [0]
    assert green.tolist() == [0.25, 0.25, *13 * [0], 0.5]


def test_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tissue_statistics, "SIZE", (90, 110))
    shares: list[float] = []
    field = tissue.field
    monkeypatch.setattr(tissue, "field", lambda size, seed, tumour: shares.append(tumour) or field(size, seed, tumour))
    folders = ["--data", str(plant(tmp_path)), "--out", str(tmp_path)]
    tissue_statistics.main([*folders, "--device", "cpu", "--pictures", "4", "--patches", "16"])
    record = json.loads((tmp_path / "tissue_statistics.json").read_text())
    assert shares == [0, 0.5, 0, 0.5]
    assert {"command", "versions", "device", "date"} <= set(record)
    assert (record["model"], record["images"], record["patches"]) == ("none", len(PICTURES) + 4, 32)
    assert str(tmp_path) not in (tmp_path / "tissue_statistics.json").read_text()
    found = {(row["source"], row["what"], row["measure"]): row for row in record["rows"]}
    assert len(found) == len(record["rows"])
    malignant = sum(one[1] for one in PICTURES.values())
    assert found["glas", "malignant", "red_mean"]["n"] == malignant
    assert found["glas", "benign", "red_mean"]["n"] == len(PICTURES) - malignant
    for what in ("tumour", "no tumour"):
        assert found["generated", what, "nucleus_area_um2"]["n"] == 2
    exact = [found["generated, exact", kind, "nuclei_per_mm2"] for kind in KINDS]
    assert [row["n"] for row in exact] == [4, 2, 4, 4]
    for what in FEATURES:
        row = found["generated", what, "auc"]
        assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1 and row["n"] == 16
