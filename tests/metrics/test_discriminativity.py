from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from smoothsal_lib.explain import explain
from smoothsal_lib.extract import resize_map, saliency_map
from smoothsal_lib.layers import INPUT, hidden_layers
from smoothsal_lib.metrics.discriminativity import discriminativity, own_object

SIZE = (16, 32)
RED, BLUE = torch.tensor([[4, 5, 9, 10]]), torch.tensor([[20, 3, 27, 12]])  # where the picture has them
Measure = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
MEASURES = pytest.mark.parametrize("measure", [discriminativity, own_object])


class Colours(nn.Module):
    """Sees red and blue squares, and reads them through a strided convolution like those that leave a grid.

    Args:
        classes: (classes, 2), how much of each score is red, and how much is blue.
    """

    def __init__(self, classes: list[list[float]]) -> None:
        super().__init__()
        self.see = nn.Conv2d(3, 2, 1)  # red minus a half, blue minus a half: nothing on the dark ground
        self.see.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])[:, :, None, None]
        self.see.bias.data.fill_(-0.5)
        self.relu = nn.ReLU()
        self.stride = nn.Conv2d(2, 2, 3, stride=2, padding=1, groups=2, bias=False)
        self.stride.weight.data = torch.arange(1.0, 10).view(1, 1, 3, 3).repeat(2, 1, 1, 1)
        self.again = nn.ReLU()
        self.head = nn.Linear(2, len(classes), bias=False)
        self.head.weight.data = torch.tensor(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.stride(self.relu(self.see(x)))).mean((2, 3)))


KNOWS = [[1.0, 0], [0, 1.0]]  # class 0 is the amount of red, class 1 that of blue
AGAINST = [[1.0, -2.0], [-0.5, 1.0]]  # each also speaks against the other
BLIND = [[1.0, 1.0], [3.0, 3.0]]  # both classes are whatever is not dark


def _picture() -> Tensor:
    x = torch.zeros(1, 3, *SIZE, dtype=torch.float64)
    for channel, ((x_min, y_min, x_max, y_max),) in ((0, RED.tolist()), (2, BLUE.tolist())):
        x[:, channel, y_min : y_max + 1, x_min : x_max + 1] = 1
    return x


def _score(
    measure: Measure,
    classes: list[list[float]],
    method: str = "gradient",
    layer: str = INPUT,
    fix: str | None = None,
    reduce: str = "mean",
    asked: tuple[int, int] = (0, 1),
) -> float:
    """The score of the maps of two classes of :class:`Colours`, the first asked of the red square."""
    model, x = Colours(classes).double().eval(), _picture()
    maps = [saliency_map(explain(model, x, target, layer, method, fix)[layer], reduce) for target in asked]
    if layer != INPUT:
        maps = [resize_map(one, SIZE, hidden_layers(model, x)[layer]) for one in maps]
    return measure(maps[0], maps[1], RED, BLUE).item()


def _random(n: int = 20, height: int = 13, width: int = 18) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two sets of maps and boxes, the ones on the left of the picture and the others on the right."""
    generator = torch.Generator().manual_seed(5)
    a, b = torch.randn(2, n, height, width, generator=generator, dtype=torch.float64)
    boxes = []
    for left in (0, width // 2):
        columns = left + torch.randint(width // 2, (n, 2), generator=generator).sort(1).values
        rows = torch.randint(height, (n, 2), generator=generator).sort(1).values
        boxes.append(torch.stack([columns[:, 0], rows[:, 0], columns[:, 1], rows[:, 1]], 1))
    return a, b, *boxes


@MEASURES
@pytest.mark.parametrize("fix", [None, "backward", "backward:paper"])
@pytest.mark.parametrize("layer", [INPUT, "relu", "again"])
@pytest.mark.parametrize("reduce", ["mean", "abs_mean"])
def test_a_network_that_tells_two_colours_apart(measure: Measure, fix: str | None, layer: str, reduce: str):
    """Activation times gradient shows each class's square and nothing else, at every layer, repaired or not."""
    arguments = ("gradient_x_activation", layer, fix, reduce)
    assert _score(measure, KNOWS, *arguments) == 1
    assert _score(measure, KNOWS, *arguments, asked=(1, 0)) == 0
    assert _score(measure, BLIND, *arguments) == pytest.approx(0.5, abs=1e-12)


@MEASURES
@pytest.mark.parametrize("fix", [None, "backward"])
@pytest.mark.parametrize("method", ["gradient", "deeplift", "integrated_gradients", "guided_backprop"])
def test_so_it_is_at_the_input_by_every_method(measure: Measure, fix: str | None, method: str):
    for reduce in ("mean", "abs_mean"):
        assert _score(measure, KNOWS, method, INPUT, fix, reduce) == 1
        assert _score(measure, KNOWS, method, INPUT, fix, reduce, asked=(1, 0)) == 0
        assert _score(measure, BLIND, method, INPUT, fix, reduce) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("fix", [None, "backward"])
@pytest.mark.parametrize("layer", [INPUT, "relu", "again"])
def test_opposite_classes_are_told_apart_by_the_sign_alone(fix: str | None, layer: str):
    arguments = ("gradient_x_activation", layer, fix)
    for measure in (discriminativity, own_object):
        assert _score(measure, AGAINST, *arguments) == 1
        assert _score(measure, AGAINST, *arguments, asked=(1, 0)) == 0
        assert _score(measure, AGAINST, *arguments, "abs_mean") == pytest.approx(0.5, abs=1e-12)


def test_a_class_that_is_everything_differs_rightly_but_is_half_on_the_wrong_object():
    """The kernel's taps add up to 45 on every four pixels of either square, so both are equally high in the mean."""
    for asked, difference, own in (((0, 1), 1, (1 + 0.5) / 2), ((1, 0), 0, (0.5 + 0) / 2)):
        arguments = ([[1.0, 0], [1.0, 1.0]], "gradient_x_activation", "relu")
        assert _score(discriminativity, *arguments, asked=asked) == difference
        assert _score(own_object, *arguments, asked=asked) == pytest.approx(own, abs=1e-12)


@MEASURES
@pytest.mark.parametrize("classes", [KNOWS, AGAINST, BLIND])
@pytest.mark.parametrize("reduce", ["mean", "abs_mean"])
def test_below_the_global_mean_every_gradient_is_constant_and_says_nothing(
    measure: Measure, classes: list[list[float]], reduce: str
):
    assert _score(measure, classes, "gradient", "again", reduce=reduce) == 0.5


def test_the_two_measures_by_hand():
    """Object A is the left column of two pixels, object B the one pixel below on the right."""
    a = torch.tensor([[[6.0, 2.0], [0.0, 0.0]]])  # mean magnitude 2: scaled to 3, 1, 0, 0
    b = torch.tensor([[[1.0, 0.0], [-1.0, 2.0]]])  # mean magnitude 1
    left, corner = torch.tensor([[0, 0, 0, 1]]), torch.tensor([[1, 1, 1, 1]])
    # D is 2 and 1 on A, in the mean 1.5, and -2 on B: all right.
    assert discriminativity(a, b, left, corner).item() == 1
    # Positive values: A's map has 3 a pixel on A and 0 on B; B's has 2 on B and half of 1 on A.
    assert own_object(a, b, left, corner).item() == pytest.approx((1 + 2 / 2.5) / 2)
    # Now B's object is the pixel above, where D is 1, against 1.5 on A: three fifths are right.
    above = torch.tensor([[1, 0, 1, 0]])
    assert discriminativity(a, b, left, above).item() == pytest.approx(1.5 / 2.5)
    # A's map has 3 a pixel on A and 2 on B; B's has half of 1 on A and 0 on B.
    assert own_object(a, b, left, above).item() == pytest.approx((3 / 5 + 0) / 2)
    # Two boxes are one object: the mean over the three pixels that are not the corner.
    both = torch.cat([left, above])[None]
    assert discriminativity(a, b, both, corner).item() == 1
    assert own_object(a, b, both, corner).item() == pytest.approx((1 + 2 / (2 + 1 / 3)) / 2)


def test_the_measures_are_those_of_loops_over_pixels():
    a, b, boxes_a, boxes_b = _random()
    found, own = discriminativity(a, b, boxes_a, boxes_b), own_object(a, b, boxes_a, boxes_b)
    for i in range(len(a)):
        mean_a, mean_b = (sum(abs(v) for v in one[i].flatten().tolist()) / one[i].numel() for one in (a, b))
        up, down, of_a, of_b = ([0.0, 0.0] for _ in range(4))  # on object A, on object B
        for k, (x_min, y_min, x_max, y_max) in enumerate((boxes_a[i].tolist(), boxes_b[i].tolist())):
            pixels = (x_max - x_min + 1) * (y_max - y_min + 1)
            for y in range(y_min, y_max + 1):
                for x in range(x_min, x_max + 1):
                    difference = a[i, y, x].item() / mean_a - b[i, y, x].item() / mean_b
                    up[k] += max(difference, 0) / pixels
                    down[k] += max(-difference, 0) / pixels
                    of_a[k] += max(a[i, y, x].item(), 0) / pixels
                    of_b[k] += max(b[i, y, x].item(), 0) / pixels
        assert found[i].item() == pytest.approx((up[0] + down[1]) / (sum(up) + sum(down)), abs=1e-12)
        shares = [right / (right + wrong) if right + wrong else 0.5 for right, wrong in (of_a, of_b[::-1])]
        assert own[i].item() == pytest.approx(sum(shares) / 2, abs=1e-12)


@MEASURES
def test_exchanging_the_maps_or_the_objects_mirrors_the_score(measure: Measure):
    a, b, boxes_a, boxes_b = _random()
    score = measure(a, b, boxes_a, boxes_b)
    torch.testing.assert_close(measure(b, a, boxes_a, boxes_b), 1 - score)
    torch.testing.assert_close(measure(a, b, boxes_b, boxes_a), 1 - score)
    torch.testing.assert_close(measure(b, a, boxes_b, boxes_a), score)


@MEASURES
@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1e20, 1e307])
def test_each_map_has_a_scale_of_its_own(measure: Measure, scale: float):
    a, b, boxes_a, boxes_b = _random()
    expected = measure(a, b, boxes_a, boxes_b)
    torch.testing.assert_close(measure(a * scale, b, boxes_a, boxes_b), expected)
    torch.testing.assert_close(measure(a, b * scale, boxes_a, boxes_b), expected)


@MEASURES
def test_random_maps_score_chance_whatever_the_boxes(measure: Measure):
    a, b, _, _ = _random(4000, 4, 6)
    narrow, wide = torch.tensor([[0, 0, 0, 0]]).expand(4000, 4), torch.tensor([[2, 0, 5, 3]]).expand(4000, 4)
    for one, other in ((a, b), (a.abs(), b.abs())):
        score = measure(one, other, narrow, wide)
        assert score.mean().item() == pytest.approx(0.5, abs=4 * score.std().item() / 4000**0.5)


@MEASURES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_equal_maps_score_chance_and_rounding_is_no_difference(measure: Measure, dtype: torch.dtype):
    a, _, boxes_a, boxes_b = _random()
    a = a.to(dtype).to(torch.promote_types(dtype, torch.float32))
    for other in (a, a * 3, a / 7):
        torch.testing.assert_close(measure(a, other, boxes_a, boxes_b), torch.full_like(a[:, 0, 0], 0.5))
    assert discriminativity(a, a / 7, boxes_a, boxes_b).tolist() == [0.5] * len(a)


@MEASURES
def test_constant_maps_score_chance(measure: Measure):
    a, _, boxes_a, boxes_b = _random()
    values = [torch.full_like(a, value) for value in (0.0, 2.0, -3.0)]
    for one in values:
        for other in values:
            torch.testing.assert_close(measure(one, other, boxes_a, boxes_b), torch.full_like(a[:, 0, 0], 0.5))


@MEASURES
def test_a_batch_of_one_is_its_row_of_a_larger_one(measure: Measure):
    given = _random()
    together = measure(*given)
    assert together.shape == (20,)
    rows = [measure(*(one[i : i + 1] for one in given)) for i in range(20)]
    torch.testing.assert_close(torch.cat(rows), together)


@MEASURES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_at_least_single_precision_comes_back(measure: Measure, dtype: torch.dtype):
    a, b, boxes_a, boxes_b = _random()
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert measure(a.to(dtype), b.to(dtype), boxes_a, boxes_b).dtype == expected


@MEASURES
def test_bad_input_is_one_line(measure: Measure):
    a, boxes_a, boxes_b = torch.zeros(1, 5, 6), torch.tensor([[0, 0, 1, 1]]), torch.tensor([[4, 0, 5, 1]])
    with pytest.raises(
        ValueError, match=r"^expected two tensors of maps of one shape .+, got \(1, 5, 6\), \(1, 5, 5\)$"
    ):
        measure(a, a[:, :, :5], boxes_a, boxes_b)
    with pytest.raises(ValueError, match=r"^expected maps of shape \(N, H, W\), none of them 0, got \(1, 1, 5, 6\)$"):
        measure(a[None], a[None], boxes_a, boxes_b)
    with pytest.raises(ValueError, match="^expected finite maps, got 30 NaN or infinite values$"):
        measure(a, a + math.nan, boxes_a, boxes_b)
    with pytest.raises(ValueError, match="^expected a box for each map, got 2 boxes for 1 maps$"):
        measure(a, a, boxes_a.expand(2, 4), boxes_b)
    with pytest.raises(
        ValueError, match=r"^box 0, \(0, 0, 6, 1\), does not lie in a picture of 5 x 6 pixels: expected"
    ):
        measure(a, a, boxes_a, torch.tensor([[0, 0, 6, 1]]))
    with pytest.raises(
        ValueError, match="^picture 0 has two objects whose boxes share pixels: expected disjoint ones$"
    ):
        measure(a, a, boxes_a, torch.tensor([[1, 1, 5, 1]]))
    empty = torch.tensor([[2.2, 0, 2.8, 0]])  # between two columns
    with pytest.raises(ValueError, match="^picture 0 has an object A whose box holds no pixel$"):
        measure(a, a, empty, boxes_b)
    with pytest.raises(ValueError, match="^picture 0 has an object B whose box holds no pixel$"):
        measure(a, a, boxes_a, empty)
