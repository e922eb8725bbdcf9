"""The benchmark of surrogates at ImageNet's size: operations are counted right, and projections follow from them."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import surrogates
from benchmarks.surrogates import GPUS, operations, project
from smoothsal_lib.embedded import data_folder

STORED = json.loads((data_folder() / "results" / "surrogate_cost.json").read_text())


def test_operations_of_what_a_fit_runs() -> None:
    a, b = torch.randn(2, 5, 7), torch.randn(2, 7, 3)
    spd = torch.eye(6, dtype=torch.float64)[None]
    columns = torch.ones(1, 6, 4, dtype=torch.float64)
    assert operations(lambda: a @ b) == {"float32": 2 * 2 * 5 * 7 * 3, "float64": 0}
    assert operations(lambda: a.double() @ b.double()) == {"float32": 0, "float64": 2 * 2 * 5 * 7 * 3}
    assert operations(lambda: torch.linalg.cholesky(spd))["float64"] == 6**3 / 3
    assert operations(lambda: torch.cholesky_inverse(spd))["float64"] == 2 * 6**3 / 3
    assert operations(lambda: torch.linalg.eigh(spd))["float64"] == 9 * 6**3
    assert operations(lambda: torch.linalg.solve_triangular(spd, columns, upper=True))["float64"] == 6**2 * 4
    assert operations(lambda: torch.cholesky_solve(columns, spd))["float64"] == 2 * 6**2 * 4
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert operations(lambda: conv(torch.randn(1, 3, 8, 8)))["float32"] == 2 * 5 * 3 * 9 * 64


def test_projections_are_those_of_the_stored_measurements() -> None:
    measured = STORED["measured"]
    found = project(measured["networks"], measured["rate"], measured["decoding_seconds"])
    assert found == STORED["projected"]
    assert STORED["assumed"]["gpus"] == GPUS


def test_a_projection_by_hand() -> None:
    """Ten times ImageNet on an A100: the network's step has so many operations, and a fifth of the peak is reached."""
    found = STORED["measured"]["networks"]["resnet34"]["operations"]["paper"]
    share = 2470 * 3 * STORED["measured"]["networks"]["resnet50"]["operations"]["forward"] / 312e12
    (row,) = (
        row
        for row in STORED["projected"]
        if (row["kind"], row["network"], row["recipe"], row.get("on")) == ("projection", "resnet34", "paper", "A100")
    )
    assert 0.15 < share < 0.25
    assert row["minutes"] == pytest.approx(10 * 1_281_167 * found / (312e12 * share) / 60)


def test_the_memory_of_a_streamed_fit_does_not_grow_with_the_pictures() -> None:
    few, many = STORED["measured"]["streamed_fit"]
    assert many["pictures"] == 8 * few["pictures"]
    whole = many["pictures"] * 3 * 64 * 64 * 4 / 2**20  # MiB of all pictures: what gathering them would take
    assert abs(many["peak"] - few["peak"]) < (whole - whole / 8) / 2


def test_few_is_what_the_command_takes() -> None:
    assert surrogates.FEW == 512 and surrogates.IMAGENET == 1_281_167
