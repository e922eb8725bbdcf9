"""Units whose places are known, and the record of where those of the trained network look."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.experiments import locality
from smoothsal_lib.experiments.locality import Case, Values
from smoothsal_lib.metrics.locality import Field


class Leaning(nn.Module):
    """One convolution whose units read a tent of the stride's width, ``lean`` pixels below and right of their place.

    A tent shares every pixel among the units around it as linear interpolation would. What a square of the picture
    changes then has its centre of mass exactly in the square's middle, plus what the units' places are wrong by.
    """

    def __init__(self, stride: int, lean: int) -> None:
        super().__init__()
        tent = torch.cat([torch.arange(1.0, stride), torch.arange(float(stride), 0, -1)])
        taps = torch.cat([torch.zeros(2 * lean), tent])
        self.conv = nn.Conv2d(1, 1, len(taps), stride, len(taps) // 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(taps[:, None] * taps)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


@pytest.fixture
def trained_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locality, "WEIGHTS", (locality.TRAINED,))


@pytest.mark.parametrize(("stride", "lean"), [(2, 0), (2, 1), (4, 0), (4, 2)])
def test_only_the_measured_place_is_right_whatever_the_unit_reads(trained_only: None, stride: int, lean: int) -> None:
    model, x = Leaning(stride, lean), torch.ones(3, 1, 64, 64)
    layers = sal.hidden_layers(model, x)
    assert layers["conv"].offset == (0, 0)  # by geometry: the zeros are part of the kernel
    values: Values = {}
    locality.fields(values, model, x, layers, locality.TRAINED)
    off = locality.offsets(values, layers)[locality.TRAINED]
    assert off["conv"] == pytest.approx((lean, lean), abs=1e-5)
    locality.squares(values, model, x, layers, locality.TRAINED, off, torch.Generator().manual_seed(0))
    cell = (stride - 1) / 2
    for mode, expected in {"nearest": cell - lean, "bilinear": cell - lean, "aligned": -lean, "measured": 0}.items():
        found = {
            measure: torch.cat(values[Case("square", "trained", "square in 64 px", "conv", measure, mode)])
            for measure in ("off_down", "off_right", "distance", "follows")
        }
        for measure in ("off_down", "off_right"):
            torch.testing.assert_close(found[measure], torch.full((3,), float(expected)), atol=1e-3, rtol=0)
        torch.testing.assert_close(found["distance"], torch.full((3,), abs(expected) * 2**0.5), atol=1e-3, rtol=0)
        torch.testing.assert_close(found["follows"], torch.ones(3), atol=1e-3, rtol=0)


def test_a_field_by_hand(trained_only: None) -> None:
    """The taps 1 2 1, one pixel off: at distances 0, 1 and 2."""
    model, x = Leaning(2, 1), torch.ones(2, 1, 64, 64)
    values: Values = {}
    locality.fields(values, model, x, sal.hidden_layers(model, x), locality.TRAINED)
    expected = {"spread": 3**0.5, "off_down": 1, "off_right": 1, "within_stride": 1, "within_8": 1, "reach": 2}
    for measure, number in expected.items():
        found = torch.cat(values[Case("field", "trained", "gradient", "conv", measure)])
        assert found.tolist() == pytest.approx([number] * 2, abs=1e-5)


def test_a_unit_that_is_off_looks_nowhere() -> None:
    places = torch.tensor([-2.0, 0, 3])
    values = torch.zeros(2, 3, 3)
    values[0, 0, 1] = 0.1
    field = Field(values, places, places)
    for measure, one in {**locality.summary(field, 2), "reach": locality.reach(field)}.items():
        assert one.isnan().tolist() == [False, True], measure
    assert locality.reach(field)[0] == 2


def test_what_fields_stand_beside() -> None:
    places = torch.tensor([-8.0, -4, 0, 4])
    field = Field(torch.rand(5, 4, 4), places, places)
    single = locality.references(field, 1)
    assert single["point"].values.nonzero().tolist() == [[0, 2, 2]]
    assert single["point"].spread().item() == 0 and single["uniform"].centroid().tolist() == [[-2, -2]]
    nine = locality.references(field, 9)["point"]  # a patch of 9 reaches 4 pixels to all sides: 9 places in 3 rows
    assert nine.values.sum() == 9 and nine.centroid().tolist() == [[0, 0]]
    assert locality.references(field, 8)["point"].values.sum() == 1  # a patch of 8, of whole pixels around a place: 3.5


def test_places_mirror_each_other_in_the_middle_of_the_picture() -> None:
    for size in (64, 128):
        found = torch.tensor(locality.places(size, torch.Generator().manual_seed(3))).float()
        middles = found + (locality.SQUARE - 1) / 2
        assert middles.mean(0).tolist() == [(size - 1) / 2] * 2
        assert (middles - (size - 1) / 2).abs().max() <= locality.ROAM
        assert len(found.unique(dim=0)) == 4 * locality.PLACES


def test_a_map_that_follows_the_square_by_half() -> None:
    squares = torch.tensor([[10.0, 20], [10, 40], [30, 20], [30, 40]])
    middle = torch.tensor([20.0, 30])
    local = torch.zeros(4, 2) + 3  # a constant displacement is no failure to follow
    blind = middle - squares
    off = torch.stack([local, blind, (local + blind) / 2], 1)
    assert locality.follows(off, squares).tolist() == pytest.approx([1, 0, 0.5])


def test_enlarged_by_mirrored_borders() -> None:
    x = torch.randn(1, 1, 6, 6)
    found = locality.enlarged(x, 10)
    assert found.shape == (1, 1, 10, 10) and found[..., 2:8, 2:8].equal(x)
    assert found[..., 0, 2:8].equal(x[..., 2, :]) and found[..., 2:8, 9].equal(x[..., 3])
    assert locality.enlarged(x, 6) is x


def test_random_weights_with_and_without_statistics() -> None:
    model, x = sal.load_model("tiny_resnet"), torch.randn(4, 3, 64, 64)
    norm = model.layer2[0].bn1
    deviations: dict[str, Tensor] = {}
    hook = norm.register_forward_hook(lambda *call: deviations.update(now=call[2].std((0, 2, 3))))
    with torch.no_grad():
        logits = model(x)
        for weights in locality.WEIGHTS:
            with locality.weighted(model, weights, x, seed=0):
                assert model(x).equal(logits) == (weights == "trained")
            deviations[weights] = deviations["now"]
        assert model(x).equal(logits)
    hook.remove()
    one = deviations["random, normalised"]
    torch.testing.assert_close(one, torch.ones_like(one), atol=0.01, rtol=0)
    assert deviations["random"].max() < 0.9


def test_rows_by_hand() -> None:
    nan = torch.nan
    field = [Case("field", weights, "gradient", "a", "spread") for weights in ("trained", "point", "uniform")]
    near, aligned = (
        Case("square", "trained", "square in 64 px", "a", "distance", mode) for mode in ("nearest", "aligned")
    )
    values = {
        field[0]: [torch.tensor([1.0, nan]), torch.tensor([3.0])],
        field[1]: [torch.tensor([0.5])],
        field[2]: [torch.tensor([9.0])],
        near: [torch.tensor([4.0, 5])],
        Case("square", "trained", "square in 64 px", "a", "distance", "bilinear"): [torch.tensor([3.0, 3])],
        aligned: [torch.tensor([1.0, 3])],
        Case("field", "trained", "gradient", "b", "spread"): [torch.tensor([nan])],
    }
    first, *_, last = locality.rows(values)
    assert (first["n"], first["mean"], first["if_point"], first["if_uniform"]) == (2, 2, 0.5, 9)
    assert (last["mode"], last["mean"], last["from_nearest"], last["from_bilinear"]) == ("aligned", 2, -2.5, -1)
    assert last["from_nearest_error"] == pytest.approx(0.5) and "if_point" not in last
    assert len(list(locality.rows(values))) == 4  # neither references nor a unit that never depends on anything


def test_record(fake_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CHANNELS": 2, "PATCH_STRIDE": 14, "PLACES": 1, "SIDES": (64,)}.items():
        monkeypatch.setattr(locality, name, value)
    folders = ["--data", str(fake_data), "--out", str(tmp_path), "--device", "cpu"]
    locality.main([*folders, "--limit", "4", "--some", "2"])
    record = json.loads((tmp_path / "locality.json").read_text())
    assert {"command", "versions", "device", "date"} <= set(record)
    assert (record["images"], record["some"]) == (4, 2)
    strides = record["strides"]
    keys = ("question", "weights", "method", "layer", "measure", "mode")
    rows = {tuple(row.get(key) for key in keys): row for row in record["rows"]}
    assert len(rows) == len(record["rows"])
    for weights in locality.WEIGHTS:
        reach = [rows["field", weights, "gradient", layer, "reach", None]["mean"] for layer in list(strides)[:3]]
        assert reach == [1, 5, 9]  # 3 x 3 at stride 1, then four of them at stride 2
        for layer in list(strides)[:3]:  # above them, responses reach the borders
            places = {
                mode: rows["square", weights, "square in 64 px", layer, "off_down", mode] for mode in locality.MODES
            }
            cell = (strides[layer] - 1) / 2
            assert places["bilinear"]["mean"] - places["aligned"]["mean"] == pytest.approx(cell, abs=0.25)
            assert places["aligned"]["n"] == (2 if weights == "trained" else 1)  # images, or draws
    for title in locality.OVERLAYS:
        moved = rows["overlay", "trained", title, "relu", "down_from_nearest", "aligned"]["mean"]
        assert moved == pytest.approx(-0.5, abs=0.2)
    for key, row in rows.items():
        if "from_bilinear" in row:
            assert row["from_bilinear"] == pytest.approx(row["mean"] - rows[*key[:-1], "bilinear"]["mean"], abs=1e-4)
    assert rows["overlay", "trained", "chance", "output", "box_share", None]["mean"] == 0.25
