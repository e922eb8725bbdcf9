"""The kernels that are compared, and the record of the comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import smoothsal_lib as sal
from smoothsal_lib.experiments import half_pixel
from smoothsal_lib.experiments.half_pixel import CyclicBlur
from smoothsal_lib.fixes.blur import cyclic_mean


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_the_box_half_a_pixel_off_is_the_published_hook(size: tuple[int, int]) -> None:
    gradient = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(CyclicBlur(1, 0.5).blur(gradient, (2, 2)), cyclic_mean(gradient, (2, 2)))


def test_the_tent_by_hand() -> None:
    gradient = torch.zeros(1, 1, 1, 8, dtype=torch.float64)
    gradient[..., 3] = 4
    expected = torch.tensor([0, 0, 1, 2, 1, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(CyclicBlur(2, 0).blur(gradient, (1, 2)).flatten(), expected)
    torch.testing.assert_close(CyclicBlur(2, 1).blur(gradient, (1, 2)).flatten(), expected.roll(1))


@pytest.mark.parametrize("boxes", [1, 2])
def test_centred_or_not_the_blur_is_equal(boxes: int) -> None:
    """The same power at every frequency, none at the Nyquist's, and half a pixel twice over is a whole one."""
    gradient = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    centred, off = CyclicBlur(boxes, 0).blur(gradient, (2, 2)), CyclicBlur(boxes, 0.5).blur(gradient, (2, 2))
    powers = [torch.fft.fft2(one).abs() for one in (centred, off)]
    torch.testing.assert_close(*powers)
    assert powers[0][..., 4, :].max() < 1e-12 and powers[0][..., 4].max() < 1e-12
    twice = CyclicBlur(boxes, 0.5).blur(off, (2, 2))
    torch.testing.assert_close(twice, CyclicBlur(boxes, 0).blur(centred, (2, 2)).roll((1, 1), (2, 3)))
    assert CyclicBlur(boxes, 0.5).blur(gradient, (1, 1)) is gradient


def test_what_half_a_pixel_a_stage_adds_up_to() -> None:
    model = sal.load_model("tiny_resnet")
    found = half_pixel.accumulated(half_pixel.described(model, torch.zeros(1, 3, 64, 64)))
    # In input pixels 0.5, 1, 2 and 4 for the stages that read strides 1, 2, 4 and 8.
    assert found["input"] == 7.5 and found["relu"] == found["layer1.1"] == (1 + 2 + 4) / 2
    assert found["layer2.1"] == (2 + 4) / 4 and found["layer3.0"] == 4 / 8 and found["layer4.0"] == 0


def test_the_linear_copy_leaves_the_network_alone() -> None:
    model = sal.load_model("tiny_resnet")
    linear = half_pixel.nothing_holds(model)
    assert not any(isinstance(module, nn.ReLU) for module in linear.modules())
    assert any(isinstance(module, nn.ReLU) for module in model.modules())
    linear, x = linear.double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(linear(2 * x) - linear(x), linear(x) - linear(0 * x))


def test_record(fake_data: Path, tmp_path: Path) -> None:
    folders = ["--data", str(fake_data), "--out", str(tmp_path), "--device", "cpu"]
    half_pixel.main([*folders, "--limit", "4", "--insert", "2"])
    record = json.loads((tmp_path / "half_pixel.json").read_text())
    assert {"command", "versions", "device", "date"} <= set(record) and record["images"] == 4
    moved = {
        tuple(row[key] for key in ("network", "method", "layer", "measure", "fix", "against")): row
        for row in record["rows"]
        if row["measure"].startswith("shift")
    }
    # Where nothing holds the map, the theory: half a pixel a stage against the same blur centred, nothing for ours.
    for layer, expected in (("layer3.1", 0.5), ("layer3.0", 0.5), ("layer2.1", 1.5), ("layer1.1", 3.5)):
        row = moved["linear", "gradient", layer, "shift", "backward:paper", "box"]
        assert row["mean"] == pytest.approx(expected, abs=0.05) and row["if_nothing_held_it"] == expected
    assert moved["linear", "gradient", "layer2.0", "shift", "backward", "none"]["mean"] == pytest.approx(0, abs=0.05)
    # In the trained network the last stage's half pixel is there in full, and none with a centred kernel.
    for method in half_pixel.METHODS:
        assert moved["trained", "gradient", "layer3.1", "shift", "backward:paper", "none"]["mean"] == pytest.approx(0.5)
        assert abs(moved["trained", method, "layer3.1", "shift", "box", "none"]["mean"]) < 0.1
    plain = {
        (row["method"], row["layer"], row["measure"], row["fix"]): row for row in record["rows"] if "against" not in row
    }
    compared = [row for row in record["rows"] if "effect" in row]
    assert {row["effect"] for row in compared} == set(half_pixel.EFFECTS)
    for row in compared:
        after, before = (plain[row["method"], row["layer"], row["measure"], row[key]] for key in ("fix", "against"))
        assert row["n"] == (2 if row["measure"] == "insertion" else 4)
        assert row["change"] == pytest.approx(after["mean"] - before["mean"], abs=1e-4)
