"""The taps that the explorer says a position meets are those that autograd finds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from browser import set_slider, table

from smoothsal_lib import widgets
from smoothsal_lib.widgets.taps import SIZE


def met_by_autograd(kernel: int, stride: int, dilation: int) -> torch.Tensor:
    """(SIZE, SIZE): the gradient of a sum of ones, from the middle of a large picture, at its parity class."""
    far = 5 * 12  # a multiple of every stride, and beyond the reach of every kernel
    x = torch.zeros(1, 1, 2 * far + SIZE, 2 * far + SIZE, requires_grad=True)
    weight = torch.ones(1, 1, kernel, kernel)
    y = F.conv2d(x, weight, stride=stride, dilation=dilation, padding=dilation * (kernel - 1) // 2)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    return gradient[0, 0, far : far + SIZE, far : far + SIZE].int()


CASES = [(3, 2, 1), (1, 2, 1), (2, 2, 1), (3, 3, 1), (5, 3, 1), (7, 4, 1), (3, 2, 2), (4, 2, 3), (6, 4, 2), (3, 1, 1)]


def test_counts_are_those_of_autograd_for_every_choice(tmp_path, visit):
    path = tmp_path / "taps.html"
    widgets.taps().save(path)
    with visit() as visited:
        page = visited.open(path)
        for kernel, stride, dilation in CASES:
            for name, value in (("kernel", kernel), ("stride", stride), ("dilation", dilation)):
                set_slider(page, name, value - 1)
            shown = [int(text) for text in page.locator("svg").first.locator("text").all_text_contents()]
            assert torch.equal(torch.tensor(shown).view(SIZE, SIZE), met_by_autograd(kernel, stride, dilation).long())
            rows = table(page)[1:]
            assert len(rows) == stride**2
            assert rows[-1] == [f"({stride - 1}, {stride - 1})", str(shown[(stride - 1) * (SIZE + 1)])]


def test_the_chosen_position_fills_its_taps_by_click_and_by_key(tmp_path, visit):
    path = tmp_path / "taps.html"
    widgets.taps(kernel=3, stride=2).save(path)
    within = "document.querySelectorAll('svg')[1].querySelectorAll('rect[fill=\"#d55e00\"] + text')"
    filled = f"[...{within}].map((text) => text.textContent)"
    with visit() as visited:
        page = visited.open(path)
        assert page.evaluate(filled) == ["1, 1"]
        page.locator("svg").first.locator("text").nth(3 * SIZE + 5).click()
        assert page.evaluate(filled) == ["0, 0", "0, 2", "2, 0", "2, 2"]
        assert "Position (3, 5), parity class (1, 1), meets 4 of 9 taps." in page.inner_text("body")
        set_slider(page, "row", 2)
        assert page.evaluate(filled) == ["1, 0", "1, 2"]


@pytest.mark.parametrize(("name", "value"), [("kernel", 0), ("kernel", 8), ("stride", 5), ("dilation", 4)])
def test_what_is_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} = {value} is out of range"):
        widgets.taps(**{name: value})
