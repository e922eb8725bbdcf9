"""Fixtures for all tests."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import chromium, visiting
from networks import NETWORKS, build
from PIL import Image
from torch import Tensor, nn

CLASSES, PER_CLASS = 100, {"train": 3, "val": 1}


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> nn.Module:
    """Every network of :data:`NETWORKS` in turn; ``parametrize("network", [...], indirect=True)`` chooses some."""
    return build(request.param)


@pytest.fixture
def x() -> Tensor:
    """Three images, (3, 3, 16, 16)."""
    return torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def reference() -> Tensor:
    """Three other images to compare with."""
    return torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests share a process, which makes what they share once; so do all that need the executed book."""
    for item in items:
        executed = "executed" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("book" if executed else str(item.path)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run, whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def visit() -> Iterator[partial]:
    """``with visit(width) as visited:`` gives a page that may complain of nothing and ask nobody."""
    with chromium() as browser:
        yield partial(visiting, browser)


@pytest.fixture(scope="session")
def fake_data(tmp_path_factory) -> Path:
    """A tiny-imagenet-100 of our own making; the folder to pass as ``--data``.

    100 classes, three training pictures and one for validation each, with a box around the middle.
    """
    folder = tmp_path_factory.mktemp("data") / "tiny-imagenet-100"
    folder.mkdir()
    random = np.random.default_rng(0)
    with open(folder / "classes.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["label", "wnid", "imagenet_index", "name"])
        table.writerows([label, f"n{label:08}", label, f"thing {label}, object {label}"] for label in range(CLASSES))
    for split, count in PER_CLASS.items():
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            for label in range(CLASSES):
                for i in range(count):
                    colour = random.integers(0, 256, 3)
                    picture = np.clip(colour + random.normal(0, 20, (64, 64, 3)), 0, 255).astype(np.uint8)
                    buffer = io.BytesIO()
                    Image.fromarray(picture).save(buffer, "JPEG")
                    archive.writestr(f"{split}/n{label:08}/n{label:08}_{i}.JPEG", buffer.getvalue())
    with open(folder / "boxes.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "x_min", "y_min", "x_max", "y_max"])
        for split, count in PER_CLASS.items():
            names = [f"{split}/n{label:08}/n{label:08}_{i}.JPEG" for label in range(CLASSES) for i in range(count)]
            table.writerows([name, 16, 16, 47, 47] for name in names)
    return folder.parent
