"""The record of noise at training, at test time and of both; and that a kill changes nothing in it."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.experiments import training_noise
from smoothsal_lib.experiments.training_noise import LAYERS, map_values, predictions, rows, with_clean_statistics
from smoothsal_lib.explain import explain
from smoothsal_lib.metrics import deletion, insertion, total_variation
from smoothsal_lib.metrics.localisation import energy_in_box
from smoothsal_lib.models import load_model, normalize
from smoothsal_lib.precision import fast_autocast
from smoothsal_lib.sampling import SmoothGrad
from smoothsal_lib.training import classifier

MAP_MEASURES = 6


def test_what_both_do_beyond_the_sum_is_the_interaction() -> None:
    """By hand: in the first image the effects 1 and 2 add up to 3, in the second 1 and 2 become 7."""
    measured = {
        (0.0, "clean", "none", "input"): {"m": torch.tensor([10.0, 20.0])},
        (0.0, "clean", "smoothgrad", "input"): {"m": torch.tensor([12.0, 22.0])},
        (0.1, "clean", "none", "input"): {"m": torch.tensor([11.0, 21.0])},
        (0.1, "clean", "smoothgrad", "input"): {"m": torch.tensor([13.0, 27.0])},
    }
    # Networks with other statistics have nothing to do with it.
    others = {(noise, "training", *place): {"m": values["m"] * 7} for (noise, _, *place), values in measured.items()}
    found = {
        (row["training_noise"], row["sampling"]): row for row in rows(others | measured) if row["statistics"] == "clean"
    }
    both = found[0.1, "smoothgrad"]
    assert (both["from_training"], both["from_test"], both["from_both"], both["interaction"]) == (3, 4, 5, 2)
    assert (both["from_training_error"], both["interaction_error"]) == (2, 2)  # of the differences 1, 5 and 0, 4
    assert (both["from_test_error"], both["from_both_error"]) == (2, 2)
    assert (found[0.1, "none"]["from_training"], found[0.1, "none"]["from_training_error"]) == (1, 0)
    assert "from_test" not in found[0.1, "none"]
    assert found[0.0, "smoothgrad"]["from_test"] == 2
    assert not {"from_training", "from_both", "interaction"} & set(found[0.0, "smoothgrad"])


def pictures(fake_data: Path, limit: int | None) -> tuple[Tensor, Tensor, Tensor]:
    images, labels = tiny_imagenet.load_split("val", fake_data, limit)
    return images, labels, tiny_imagenet.load_boxes("val", fake_data, limit)


def test_the_measured_maps_are_means_over_noisy_pictures(fake_data: Path) -> None:
    images, _, boxes = pictures(fake_data, 3)
    model = load_model("tiny_resnet")
    found = map_values(model, model, images, boxes, samples=3, steps=2)
    assert set(found) == {(s, layer) for s in ("none", "smoothgrad") for layer in LAYERS} | {("random", "input")}
    x = normalize(images.float() / 255)
    target = model(x).argmax(1)
    looks = [one for _, one in SmoothGrad(3, 0.15).images(x)]
    for name, seen in {"none": [x], "smoothgrad": looks}.items():
        gradients = [explain(model, one, target, LAYERS, "gradient", None) for one in seen]
        for layer in LAYERS:
            mean = torch.stack([gradient[layer] for gradient in gradients]).mean(0)
            torch.testing.assert_close(found[name, layer]["total_variation"], total_variation(mean), rtol=1e-3, atol=0)
        magnitude = torch.stack([gradient["input"] for gradient in gradients]).mean(0).abs().mean(1)
        assert found[name, "input"]["energy_in_box"].tolist() == pytest.approx(
            energy_in_box(magnitude, boxes), rel=1e-3
        )
        with fast_autocast("cpu"):
            up = insertion(model, x, magnitude, target, 2).auc
            down = deletion(model, x, magnitude, target, 2).auc
        assert found[name, "input"]["insertion"].tolist() == pytest.approx(up.tolist(), abs=0.01)
        assert found[name, "input"]["deletion"].tolist() == pytest.approx(down.tolist(), abs=0.01)


def test_predictions_are_those_of_clean_and_of_noisy_pictures(fake_data: Path) -> None:
    """Answers that follow the picture's mean square, which noise of standard deviation s raises by s²."""

    class Bright(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            rise = x.square().mean((1, 2, 3)) - clean
            return self.scale * torch.stack([torch.zeros_like(rise), 100 * (rise - between)], 1)

    images, _, _ = pictures(fake_data, 20)
    x = normalize(images.float() / 255)
    clean = x.square().mean((1, 2, 3))
    extent = x.amax((1, 2, 3)) - x.amin((1, 2, 3))
    between = (0.15 * extent).square()  # brighter than by a noise of 0.1, less than by one of 0.2
    found = predictions(Bright().eval(), images, torch.zeros(20, dtype=torch.long))
    assert {name: values.mean().item() for name, values in found.items() if name != "confidence"} == {
        "top1": 1,
        "top1_noise_0.1": 1,
        "top1_noise_0.2": 0,
    }
    expected = torch.sigmoid(100 * between)
    assert found["confidence"].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_clean_statistics_are_those_of_a_pass_in_training_mode(fake_data: Path) -> None:
    images, _, _ = pictures(fake_data, 20)
    model = load_model("tiny_resnet")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clean = with_clean_statistics(model, images)
    x = normalize(images.float() / 255)
    assert not clean.training
    torch.testing.assert_close(clean(x), deepcopy(model).train()(x), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(clean(x), model(x))


def test_record(fake_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = ["--data", str(fake_data), "--weights", str(tmp_path / "weights")]
    sizes = ["--limit", "4", "--pictures", "256", "--epochs", "1", "--samples", "2", "--steps", "2"]

    def run(name: str) -> dict:
        training_noise.main([*folders, "--out", str(tmp_path / name), "--device", "cpu", *sizes])
        return json.loads((tmp_path / name / "training_noise.json").read_text())

    record = run("whole")
    assert {"command", "versions", "device", "date", "recipe", "curves", "scored_on"} <= set(record)
    assert record["command"].endswith(" ".join(sizes))
    assert (record["images"], record["limit"], record["recipe"]["noise"]) == (100, 4, [0.0, 0.1])
    assert all(len(record["curves"][noise]) == 1 for noise in ("0.0", "0.1"))
    keys = ("training_noise", "statistics", "sampling", "layer", "measure")
    found = {tuple(row[key] for key in keys): row for row in record["rows"]}
    assert len(found) == len(record["rows"]) == 2 * 2 * ((2 * len(LAYERS) + 1) * MAP_MEASURES + 4)
    for (noise, statistics, sampling, layer, measure), row in found.items():
        assert row["n"] == (100 if layer == "output" else 4)
        assert ("from_training" in row, "from_test" in row) == (noise > 0, sampling == "smoothgrad")
        if "interaction" in row:
            alone = (
                found[noise, statistics, "none", layer, measure]["from_training"]
                + found[0, statistics, sampling, layer, measure]["from_test"]
            )
            assert row["interaction"] == pytest.approx(row["from_both"] - alone, abs=1e-5)
    confidences = [
        found[noise, statistics, "none", "output", "confidence"]["mean"]
        for noise in (0.0, 0.1)
        for statistics in ("training", "clean")
    ]
    assert len(set(confidences)) == 4
    assert found[0.1, "clean", "random", "input", "total_variation"]["from_training"] == 0  # the same numbers for all

    measure, calls = training_noise.map_values, []

    def killed_at_the_second(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(training_noise, "map_values", killed_at_the_second)
    monkeypatch.setattr(classifier, "train_epoch", None)  # what is trained is not trained again
    with pytest.raises(KeyboardInterrupt):
        run("resumed")
    assert run("resumed")["rows"] == record["rows"]
    assert len(calls) == 1 + 1 + 3  # the first network was not measured again
