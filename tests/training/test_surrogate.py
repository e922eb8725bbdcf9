"""The command that fits, measures and stores a surrogate."""

import json

import pytest

import smoothsal_lib as sal
from smoothsal_lib.training import surrogate


@pytest.fixture(scope="module")
def made(fake_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("surrogate")
    surrogate.main(["--data", str(fake_data), "--out", str(out), "--images", "32", "--device", "cpu"])
    return out


def test_weights_load_and_carry_their_errors(made):
    loaded = sal.Surrogate.load(made / "tiny_resnet_surrogate.safetensors")
    assert len(loaded.errors) == 6
    assert loaded.record["images"] == 32


def test_card_and_record(made):
    card = (made / "tiny_resnet_surrogate.md").read_text()
    assert "Top-1" in card and "layer2.0.conv1" in card and "{" not in card
    record = json.loads((made / "results" / "tiny_resnet_surrogate.json").read_text())
    assert {"command", "versions", "device", "date", "top1", "agreement"} <= set(record)
