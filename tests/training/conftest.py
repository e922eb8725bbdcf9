"""A tiny-imagenet-100 of our own making: 100 classes, three training pictures and one for validation each."""

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES, PER_CLASS = 100, {"train": 3, "val": 1}


@pytest.fixture(scope="session")
def fake_data(tmp_path_factory) -> Path:
    """The folder to pass as ``--data``."""
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
    return folder.parent
