"""The nuclei that are outlined are the first of the ranking, and lie where the labels say."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from browser import choose, set_slider, table

from smoothsal_lib import widgets
from smoothsal_lib.nuclei import rank_nuclei
from smoothsal_lib.widgets import explorer

SIZE = 48
PHOTO = np.full((SIZE, SIZE, 3), 200, np.uint8)


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    """Nine nuclei of 8 x 10 pixels."""
    found = torch.zeros(SIZE, SIZE, dtype=torch.long)
    for i in range(9):
        row, column = 2 + 16 * (i // 3), 3 + 15 * (i % 3)
        found[row : row + 8, column : column + 10] = i + 1
    return found


@pytest.fixture(scope="module")
def rankings(labels):
    rising = torch.arange(10.0)[labels]
    return {
        name: rank_nuclei(map_, labels, mpp=0.5)
        for name, map_ in (("last first", rising), ("first first", 10 - rising))
    }


MARKED = [0.0, 1, 0.9, 0.51, 0.5, 0, 0, 0, 0, 0]  # by label; 1, 2 and 3 count


def box(path: str) -> tuple[float, float, float, float]:
    x, y = (np.array(re.findall(pattern, path), float) for pattern in (r"[ML]([\d.]+) ", r" ([\d.]+)"))
    return x.min(), y.min(), x.max(), y.max()


def test_outlines_are_the_rims_of_the_labels(labels, rankings):
    found = widgets.nuclei_ranking(PHOTO, labels, rankings)
    for i, path in enumerate(found.data["outlines"]):
        rows, columns = torch.where(labels == i + 1)
        wanted = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert box(path) == pytest.approx([float(value) for value in wanted], abs=0.51)


def test_the_reader_goes_down_the_list(labels, rankings, visit, tmp_path):
    path = tmp_path / "nuclei.html"
    found = widgets.nuclei_ranking(PHOTO, labels, rankings, marked=MARKED, start=2)
    found.save(path)
    outlined = "[...document.querySelectorAll('svg g path')].map((path) => path.getAttribute('d'))"
    with visit() as visited:
        page = visited.open(path)
        for name, count, right, first in [("last first", 2, 0, 8), ("first first", 4, 3, 0), ("last first", 9, 3, 8)]:
            set_slider(page, "outlined", count - 1)
            choose(page, "ranking", name)
            paths = list(dict.fromkeys(page.evaluate(outlined)))
            step = 1 if first == 0 else -1
            assert paths == [found.data["outlines"][first + step * i] for i in range(count)]
            rows = {row[0]: row[1:] for row in table(page)[1:]}
            assert rows[name][0] == f"{right} of {count}"
            share = sum(100 * one.share for one in rankings[name][:count])
            assert float(rows[name][1]) == pytest.approx(share, abs=0.1)
            assert f"Nucleus {count}: 20 µm²" in page.inner_text("body")
        assert "tumour." in page.inner_text("body")


def test_without_marks_there_is_no_table(labels, rankings, visit, tmp_path):
    path = tmp_path / "nuclei.html"
    widgets.nuclei_ranking(PHOTO, labels, {"one": rank_nuclei(torch.arange(10.0)[labels], labels)}, start=99).save(path)
    with visit() as visited:
        page = visited.open(path)
        assert page.locator("table").count() == 0
        assert page.get_by_role("group", name="ranking", exact=True).count() == 0
        assert "Nucleus 9: 80 pixels" in page.inner_text("body")


def test_too_large_a_picture_is_refused(labels, rankings, monkeypatch):
    monkeypatch.setattr(explorer, "SIZE_LIMIT", 5_000)
    with pytest.raises(ValueError, match="9 nuclei take more than 5,000 bytes: give a smaller picture"):
        widgets.nuclei_ranking(PHOTO, labels, rankings)


def test_bad_input_is_named(labels, rankings):
    one = {"one": rankings["last first"]}
    for photo, numbers, some, message in [
        (PHOTO[:-1], labels, one, r"expected labels \(47, 48\)"),
        (PHOTO, labels, {}, "expected rankings by name"),
        (PHOTO, labels, {"none": []}, "expected rankings by name"),
        (
            PHOTO,
            labels,
            one | {"short": rankings["first first"][:3]},
            "the rankings one, short are not of the same nuclei",
        ),
        (PHOTO, labels.clamp(max=8), one, "the labels have no nucleus 9"),
    ]:
        with pytest.raises(ValueError, match=message):
            widgets.nuclei_ranking(photo, numbers, some)
