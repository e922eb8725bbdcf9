"""The classifier's training: resumes after a kill as if nothing had happened, and writes all it promises."""

import json

import pytest
import torch
from safetensors.torch import load_file

from smoothsal_lib.training import classifier
from smoothsal_lib.training.classifier import POLISH, Recipe, learning_rate, random_crops, sizes_of_epoch


def run(data, out, epochs=2, seed=0):
    classifier.main(
        ["--data", str(data), "--out", str(out), "--epochs", str(epochs), "--seed", str(seed), "--device", "cpu"]
    )
    return load_file(out / "tiny_resnet.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(fake_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    return out, run(fake_data, out)


def test_a_killed_run_ends_as_an_uninterrupted_one(fake_data, uninterrupted, tmp_path, monkeypatch):
    train_epoch, calls = classifier.train_epoch, []

    def killed_in_the_second_epoch(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train_epoch(*args)

    monkeypatch.setattr(classifier, "train_epoch", killed_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        run(fake_data, tmp_path)
    assert not (tmp_path / "tiny_resnet.safetensors").exists()
    resumed = run(fake_data, tmp_path)
    finished, killed = Recipe(epochs=2).all_epochs, 1
    assert len(calls) == finished + killed  # the first epoch was not repeated
    for key, value in uninterrupted[1].items():
        assert torch.equal(value, resumed[key]), key


def test_weights_card_and_curve_are_written(uninterrupted):
    out, _ = uninterrupted
    record = json.loads((out / "results" / "tiny_resnet_training.json").read_text())
    assert len(record["curve"]) == Recipe(epochs=2).all_epochs
    assert record["command"].startswith("python -m smoothsal_lib.training.classifier")
    assert {"versions", "device", "date", "recipe"} <= set(record)
    card = (out / "tiny_resnet.md").read_text()
    assert "Top-1" in card and "chelsea" in card and "{" not in card


def test_another_recipe_does_not_take_over_a_checkpoint(fake_data, uninterrupted):
    out, _ = uninterrupted
    with pytest.raises(ValueError, match="seed.*0") as error:
        run(fake_data, out, seed=1)
    assert "\n" not in str(error.value)


def test_the_size_schedule_begins_small_and_ends_large():
    sizes = [sizes_of_epoch(epoch, 34) for epoch in range(34)]
    assert sizes[0] == {48: 1.0} and max(sizes[-1]) == 128
    assert [sizes_of_epoch(epoch, 34) for epoch in (34, 38)] == [sizes for _, sizes in POLISH]
    assert all(sum(shares.values()) == pytest.approx(1) for shares in sizes)


def test_the_learning_rate_rises_and_falls_to_zero():
    recipe = Recipe(epochs=8, warmup=0.25, peak_lr=0.4, polish_lr=0.01)
    assert learning_rate(1.0, recipe) == pytest.approx(0.2)
    assert learning_rate(2.0, recipe) == pytest.approx(0.4)
    assert learning_rate(8.0, recipe) == pytest.approx(0, abs=1e-7)
    (first, _), (second, _) = POLISH
    assert learning_rate(8 + first / 2, recipe) == pytest.approx(0.005)
    assert learning_rate(8 + first + second / 2, recipe) == pytest.approx(0.005)
    assert learning_rate(8.0 + first + second, recipe) == pytest.approx(0)


def test_a_crop_of_everything_is_the_picture_or_its_mirror_image():
    pictures = torch.rand(8, 3, 16, 16)
    crops = random_crops(pictures, 16, smallest=1.0, generator=torch.Generator().manual_seed(3))
    square = [
        torch.allclose(c, p, atol=1e-5) or torch.allclose(c, p.flip(-1), atol=1e-5)
        for c, p in zip(crops, pictures, strict=True)
    ]
    assert crops.shape == pictures.shape
    assert not all(square)  # the aspect ratio still varies
    assert crops.min() >= 0 and crops.max() <= 1
