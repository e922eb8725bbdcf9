from __future__ import annotations

import io
import socket
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smoothsal_lib.datasets.photos import PHOTOS, load_photo, photo_names
from smoothsal_lib.models import IMAGENET_MEAN, IMAGENET_STD


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a photograph must not need the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_every_photograph_is_part_of_the_wheel():
    shipped = {file.name for file in files("scikit-image") or [] if file.parent.as_posix() == "skimage/data"}
    assert set(PHOTOS.values()) <= shipped
    assert photo_names() == sorted(photo_names())


@pytest.mark.parametrize("name", photo_names())
@pytest.mark.parametrize("square", [True, False])
def test_every_photograph_loads(name: str, square: bool):
    x, photo = load_photo(name, size=48, square=square)
    assert x.dtype == torch.float32 and photo.dtype == np.uint8
    assert x.shape == (1, 3, *photo.shape[:2]) and photo.shape[2] == 3
    assert min(photo.shape[:2]) == 48
    assert photo.std() > 10  # a picture, not a blank


def test_square_cuts_the_middle_and_whole_keeps_all():
    assert load_photo("chelsea", 100)[1].shape == (100, 100, 3)
    assert load_photo("chelsea", 100, square=False)[1].shape == (100, 150, 3)  # 300 x 451
    _, square = load_photo("chelsea", 100)
    _, whole = load_photo("chelsea", 100, square=False)
    difference = square.astype(float) - whole[:, 25:125].astype(float)
    assert np.abs(difference).mean() < 4  # the same cut, but for half a pixel


def test_x_is_the_photograph_normalised():
    x, photo = load_photo("coffee", 32)
    expected = (photo / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(x[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_shrinking_is_antialiased(tmp_path: Path):
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255  # the finest there is: it must become grey, not black, white or broad stripes
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    _, photo = load_photo(tmp_path / "stripes.png", 50)
    assert np.abs(photo[5:-5, 5:-5].astype(float) - 127.5).max() < 16


def test_greyscale_fills_three_channels(tmp_path: Path):
    Image.new("L", (20, 20), 90).save(tmp_path / "grey.png")
    assert (load_photo(tmp_path / "grey.png", 10)[1] == 90).all()


def test_transparent_parts_become_white(tmp_path: Path):
    picture = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 10, 20))
    picture.save(tmp_path / "alpha.png")
    _, photo = load_photo(str(tmp_path / "alpha.png"), 20)
    assert (photo[:, :10] == (255, 0, 0)).all() and (photo[:, 10:] == 255).all()


def test_sixteen_bit_pictures_keep_their_range(tmp_path: Path):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    _, photo = load_photo(tmp_path / "deep.png", 64)
    assert photo[0, 0, 0] == 0 and photo[0, -1, 0] == 255
    assert len(np.unique(photo)) > 50


def test_a_cameras_rotation_is_obeyed(tmp_path: Path):
    picture = Image.new("RGB", (40, 20), "black")
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to look at it
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert load_photo(tmp_path / "turned.jpg", 20, square=False)[1].shape == (40, 20, 3)


def test_bad_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"^no photograph 'dog': choose one of astronaut, .*tissue, or give .*path$"):
        load_photo("dog")
    with pytest.raises(ValueError, match=r"^size = 0 is not a number of pixels"):
        load_photo("chelsea", 0)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text.png' is no picture that PIL can read$"):
        load_photo(tmp_path / "text.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "png")
    with pytest.raises(ValueError, match=r"^\d+ bytes are no picture that PIL can read$"):
        load_photo(file.getvalue())
