"""Passes that need no more than sixteen bits take them where they are fast, and float32 elsewhere."""

from __future__ import annotations

import pytest
import torch

from smoothsal_lib.precision import fast_autocast, precision


@pytest.mark.parametrize(("tiles", "kept"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_processor_without_the_instructions_keeps_float32(tiles, kept, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    assert precision("cpu") == str(kept).removeprefix("torch.")
    with fast_autocast("cpu"):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == kept
    assert not torch.is_autocast_enabled("cpu")


def test_an_old_torch_knows_of_no_tiles(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert precision(torch.device("cpu")) == "float32"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_gpus_are_fast_at_it_from_ampere_on(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision("cuda:1") == expected
