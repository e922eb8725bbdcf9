"""Executing the chapters today gives what is stored.

Text must be equal, integers too; other numbers may differ by one unit of the last printed place or by one part in a
thousand, whichever is more, and everything below 1e-6 in magnitude counts as zero: processors and versions of torch
round differently. A picture must have the stored size within two per cent, because versions of matplotlib measure
their labels differently. The maps that an explorer carries may differ by one of 256 shades in the mean.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib

import build
import nbformat
import numpy as np
import pytest

from smoothsal_lib.widgets import taps
from smoothsal_lib.widgets.explorer import Explorer, address, packed

CHAPTERS = build.notebooks()
# A number that stands for itself: the 2 and the 1 of "layer2.1" are part of a name.
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w])")
# What an explorer's HTML carries besides words: its name, made from all the rest, photographs, and maps.
NAME = re.compile(r"\b[0-9a-f]{16}\b")
PHOTOGRAPH = re.compile(r"data:image/(\w+);base64,[\w+/=]+")
PACKED = re.compile(r'"(eN[\w+/=]{20,})"')


def numbers_agree(new: str, old: str) -> bool:
    if new == old:
        return True
    if not re.search(r"[.eE]", new + old):
        return False
    a, b = float(new), float(old)
    if max(abs(a), abs(b)) < 1e-6:
        return True
    mantissa, _, exponent = old.lower().partition("e")
    last_place = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(a - b) <= max(1.001 * last_place, 1e-3 * abs(b))


def maps_agree(new: str, old: str) -> bool:
    a, b = (np.frombuffer(zlib.decompress(base64.b64decode(one)), np.uint8).astype(int) for one in (new, old))
    return a.shape == b.shape and np.abs(a - b).mean() <= 1


def explorers_agree(new: str, old: str) -> bool:
    maps = [PACKED.findall(text) for text in (new, old)]
    rest = [PACKED.sub('""', PHOTOGRAPH.sub(r"\1", NAME.sub("", text))) for text in (new, old)]
    return texts_agree(*rest) and len(maps[0]) == len(maps[1]) and all(map(maps_agree, *maps))


def texts_agree(new: str, old: str) -> bool:
    if "data-sal" in new and "data-sal" in old and new != old and NAME.search(new):
        return explorers_agree(new, old)
    words = [re.sub(r"\s+", " ", NUMBER.sub("#", text)).strip() for text in (new, old)]
    pairs = zip(NUMBER.findall(new), NUMBER.findall(old), strict=False)
    return words[0] == words[1] and all(numbers_agree(a, b) for a, b in pairs)


def texts(cell) -> list[str]:
    found = []
    for output in cell.get("outputs", []):
        found.append(output.get("text", ""))
        found += [str(value) for kind, value in sorted(output.get("data", {}).items()) if kind.startswith("text/")]
    return [text for text in found if text]


def picture_sizes(cell) -> list[tuple[int, int]]:
    pictures = [output.get("data", {}).get("image/png") for output in cell.get("outputs", [])]
    return [struct.unpack(">II", base64.b64decode(picture)[16:24]) for picture in pictures if picture]


@pytest.mark.parametrize("name", CHAPTERS)
def test_outputs_are_those_stored(name, executed):
    new, old = (build.own_code(nbformat.read(folder / f"{name}.ipynb", 4)) for folder in (executed, build.BOOK))
    assert len(new) == len(old)
    for number, (now, then) in enumerate(zip(new, old, strict=True), 1):
        where = f"{name}, code cell {number}: {now.source.splitlines()[0] if now.source else ''}"
        assert len(texts(now)) == len(texts(then)), where
        for now_text, then_text in zip(texts(now), texts(then), strict=True):
            assert texts_agree(now_text, then_text), f"{where}\nnow:\n{now_text}\nstored:\n{then_text}"
        assert len(picture_sizes(now)) == len(picture_sizes(then)), where
        for now_size, then_size in zip(picture_sizes(now), picture_sizes(then), strict=True):
            assert now_size == pytest.approx(then_size, rel=0.02), where


@pytest.mark.parametrize(
    ("new", "old", "same"),
    [
        ("tabby 0.47", "tabby 0.48", True),
        ("tabby 0.47", "tabby 0.49", False),
        ("tabby 0.47", "tiger 0.47", False),
        ("13 layers", "14 layers", False),
        ("layer2.1 1.00", "layer2.2 1.00", False),
        ("error 3.1e-09", "error 8.0e-12", True),
        ("error 3.1e-03", "error 3.3e-03", False),
        ("1234.5", "1235.0", True),
        ("a  1.0", "a 1.0", True),
        ("1.0 2.0", "1.0", False),
    ],
)
def test_comparison_of_texts(new, old, same):
    assert texts_agree(new, old) is same


def explorer(values, photo=0, label="a map") -> str:
    shades = np.full((8, 8, 3), photo, np.uint8)
    return Explorer("choices", label, {"bytes": packed(values.astype(np.uint8)), "photo": address(shades)}).html


def test_comparison_of_explorers():
    values = np.random.default_rng(0).integers(1, 255, 4000)
    stored = explorer(values)
    assert texts_agree(explorer(values + (np.arange(4000) % 2)), stored)
    assert texts_agree(explorer(values, photo=1), stored)
    assert not texts_agree(explorer(255 - values), stored)
    assert not texts_agree(explorer(values[1:]), stored)
    assert not texts_agree(explorer(values, label="another map"), stored)
    assert not texts_agree(taps().html, stored)
