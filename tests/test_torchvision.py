"""Every classification network that torchvision offers: layers found, fixes applied, DeepLift complete."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from benchmarks import torchvision_table

TRANSFORMERS = {"vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32"}
WITHOUT_STRIDE = {f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")}


@pytest.fixture(autouse=True)
def memory_is_given_back() -> Iterator[None]:
    """The largest network takes 5 GB, so one has to go before the next one comes."""
    yield
    gc.collect()


def test_the_exceptions_are_named_after_networks() -> None:
    assert set(torchvision_table.names()) > TRANSFORMERS | WITHOUT_STRIDE
    assert len(torchvision_table.names()) >= 80


@pytest.mark.parametrize("name", torchvision_table.names())
def test_network(name: str) -> None:
    row = torchvision_table.row(name)
    assert row["strided"] == row["strided_calls"]
    assert (row["strided"] == 0) == (name in WITHOUT_STRIDE)
    assert (row["hidden_layers"] == 1) == (name in TRANSFORMERS)
    assert row["completeness"] < 1e-8
    assert row["gradient_error"] < 1e-4
    assert row["fixes"] == ([] if name in WITHOUT_STRIDE else list(torchvision_table.FIXES))
    assert bool(row["reason"]) == (name in TRANSFORMERS | WITHOUT_STRIDE or name.startswith("swin_"))
