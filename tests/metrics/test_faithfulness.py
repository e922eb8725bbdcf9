"""Insertion and deletion against curves computed by hand, and against the protocol written down a second time."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from networks import build
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from test_nothing_leaks import state, used
from torch import Tensor, nn

from smoothsal_lib.metrics.faithfulness import Curves, baseline_images, deletion, insertion, ranking


class Weighing(nn.Module):
    """Two classes; the odds of the first are ``exp(sum of weight * x)``, and 1 for an empty picture."""

    def __init__(self, odds: list[list[float]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(odds, dtype=torch.float64).log())

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.weight).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)


# Each pixel multiplies the odds of class 0 by its number: 9 in all, so the whole picture has a probability of 9/10.
MODEL = Weighing([[3, 1 / 3], [9, 1]])
WHITE = torch.ones(1, 1, 2, 2, dtype=torch.float64)
BEST_FIRST = torch.tensor([[[3.0, 1], [4, 2]]])  # the pixels 9, 3, 1 and 1/3 in turn


def _scores(curves: Curves) -> list[float]:
    assert curves.scores.dtype == torch.float64
    return curves.scores.flatten().tolist()


def test_deletion_by_hand():
    curves = deletion(MODEL, WHITE, BEST_FIRST, target=0, steps=4)
    assert curves.fractions.tolist() == [0, 0.25, 0.5, 0.75, 1]
    # The odds are 9; 1 without the 9; 1/3 without the 3; the same without the 1; 1 without the 1/3.
    assert _scores(curves) == pytest.approx([0.9, 0.5, 0.25, 0.25, 0.5])
    assert curves.auc.tolist() == pytest.approx([(0.45 + 0.5 + 0.25 + 0.25 + 0.25) / 4])


def test_insertion_by_hand():
    curves = insertion(MODEL, WHITE, BEST_FIRST, target=0, steps=4, baseline="zero")
    assert _scores(curves) == pytest.approx([0.5, 0.9, 27 / 28, 27 / 28, 0.9])
    assert curves.auc.tolist() == pytest.approx([(0.25 + 0.9 + 27 / 28 + 27 / 28 + 0.45) / 4])


def test_steps_that_do_not_divide_the_pixels_weigh_by_what_they_exchange():
    curves = deletion(MODEL, WHITE, BEST_FIRST, target=0, steps=3)
    assert curves.fractions.tolist() == [0, 0.25, 0.75, 1]  # 1, 2 and 1 pixels
    assert _scores(curves) == pytest.approx([0.9, 0.5, 0.25, 0.5])
    assert curves.auc.tolist() == pytest.approx([0.25 * 0.7 + 0.5 * 0.375 + 0.25 * 0.375])


def test_a_single_step_is_all_at_once():
    curves = insertion(MODEL, WHITE, BEST_FIRST, target=0, steps=1, baseline="zero")
    assert _scores(curves) == pytest.approx([0.5, 0.9]) and curves.auc.item() == pytest.approx(0.7)


def test_the_explained_class_is_the_predicted_one_unless_another_is_given():
    predicted = deletion(MODEL, WHITE, BEST_FIRST, steps=4)
    assert _scores(predicted) == pytest.approx([0.9, 0.5, 0.25, 0.25, 0.5])
    other = deletion(MODEL, WHITE, BEST_FIRST, target=1, steps=4)
    torch.testing.assert_close(other.scores, 1 - predicted.scores)
    # A black picture's odds are even: class 0 is predicted. One that is white at the 1/3 alone is of class 1.
    pictures = torch.cat([WHITE, WHITE * torch.tensor([[0, 1], [0, 0]])])
    both = deletion(MODEL, pictures, BEST_FIRST.expand(2, 2, 2), steps=1)
    assert both.scores.tolist() == [pytest.approx([0.9, 0.5]), pytest.approx([0.75, 0.5])]
    each = deletion(MODEL, pictures, BEST_FIRST.expand(2, 2, 2), torch.tensor([0, 0]), steps=1)
    assert each.scores[1].tolist() == pytest.approx([0.25, 0.5])


def test_a_sigmoid_looks_at_one_logit_alone():
    class Doubled(Weighing):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :1].expand(-1, 2)  # two equal logits: a softmax would say 1/2 throughout

    model = Doubled([[3, 1 / 3], [9, 1]])
    assert _scores(deletion(model, WHITE, BEST_FIRST, 1, 4, activation="softmax")) == pytest.approx([0.5] * 5)
    scores = _scores(deletion(model, WHITE, BEST_FIRST, 1, 4, activation="sigmoid"))
    assert scores == pytest.approx([0.9, 0.5, 0.25, 0.25, 0.5])


def test_the_pictures_own_mean_colour_by_hand():
    odds = [[2.0, 4], [8, 16]]
    x = WHITE * torch.tensor([[4, 0], [0, 0]])  # its mean is 1: odds of 2 * 4 * 8 * 16 = 1024
    curves = deletion(Weighing(odds), x, BEST_FIRST, target=0, steps=2, baseline="mean")
    # At first 2^4; then 2 and 8 are at the mean, so 2 * 8.
    assert _scores(curves) == pytest.approx([16 / 17, 16 / 17, 1024 / 1025])
    colours = torch.rand(2, 3, 4, 5)
    for i in range(2):
        for c in range(3):
            found = baseline_images(colours, "mean")[i, c]
            torch.testing.assert_close(found, colours[i, c].mean().expand(4, 5))


def test_the_blurred_picture_is_scipys():
    x = torch.randn(2, 3, 9, 14, dtype=torch.float64)
    expected = gaussian_filter(x.numpy(), sigma=5, radius=5, mode="mirror", axes=(2, 3))
    torch.testing.assert_close(baseline_images(x, "blur"), torch.from_numpy(expected))


def test_a_baseline_of_ones_own_is_spread_over_the_pictures():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(baseline_images(x, torch.ones(3, 1, 1, dtype=torch.float64)), torch.ones_like(x))
    assert torch.equal(baseline_images(x, "zero"), torch.zeros_like(x))
    own = torch.tensor(2.0)
    # Odds of 9 become 81 when every pixel is 2.
    assert _scores(deletion(MODEL, WHITE, BEST_FIRST, 0, 1, baseline=own)) == pytest.approx([0.9, 81 / 82])


@pytest.mark.parametrize(
    ("maps", "order"),
    [
        ([[1.0, 3.0], [3.0, 0.0]], [1, 2, 0, 3]),  # equal ones in reading order
        ([[0.0, 0.0], [0.0, 0.0]], [0, 1, 2, 3]),
        ([[-1.0, -3.0], [2.0, 0.0]], [2, 3, 0, 1]),  # by value, not by magnitude
    ],
)
def test_ranking_by_hand(maps: list[list[float]], order: list[int]):
    assert ranking(torch.tensor([maps]), torch.zeros(1, 3, 2, 2)).tolist() == [order]


def test_small_maps_are_enlarged_and_channels_averaged():
    small = torch.tensor([[[1.0, 2.0]]])  # 1 x 2 for a picture of 2 x 4: its right half comes first
    x = torch.zeros(1, 3, 2, 4)
    assert ranking(small, x).tolist() == [[2, 3, 6, 7, 0, 1, 4, 5]]
    channels = torch.stack([small + 9, -small, -small], 1)  # their mean falls where the first one rises
    assert ranking(channels, x).tolist() == [[0, 1, 4, 5, 2, 3, 6, 7]]


# The protocol a second time, from RISE (arXiv 1806.07421): one image, one step, one forward pass at a time.


def _probability(model: nn.Module, picture: NDArray[np.float64], label: int) -> float:
    with torch.no_grad():
        logits = model(torch.from_numpy(picture.copy())[None])[0].numpy()
    odds = np.exp(logits - logits.max())
    return float(odds[label] / odds.sum())


def _again(
    model: nn.Module, start: NDArray[np.float64], finish: NDArray[np.float64], relevance: NDArray[np.float64],
    label: int, steps: int,
) -> tuple[list[float], float]:  # fmt: skip
    """Scores and area of one picture (C, H, W) that turns from ``start`` into ``finish``."""
    pixels = relevance.size
    waiting = sorted(range(pixels), key=lambda pixel: -relevance.flat[pixel])  # Python's sort keeps ties in order
    current = start.copy().reshape(len(start), pixels)
    scores, area, exchanged = [_probability(model, start, label)], 0.0, 0
    for step in range(1, steps + 1):
        until = round(Fraction(step * pixels, steps))
        for pixel in waiting[exchanged:until]:
            current[:, pixel] = finish.reshape(len(start), pixels)[:, pixel]
        scores.append(_probability(model, current.reshape(start.shape), label))
        area += (until - exchanged) / pixels * (scores[-2] + scores[-1]) / 2
        exchanged = until
    return scores, area


@pytest.mark.parametrize("steps", [1, 7, 28, 100, 256])  # 16 x 16 pixels: none of 7, 28 and 100 divides 256
@pytest.mark.parametrize("baseline", ["zero", "blur", "mean"])
@pytest.mark.parametrize("game", [insertion, deletion])
def test_curves_are_those_of_the_protocol(game, baseline: str, steps: int, x: Tensor):
    model = build("functional")
    maps = torch.randn(3, 16, 16, dtype=torch.float64).mul(4).round()  # whole numbers: many ties
    found = game(model, x, maps, steps=steps, baseline=baseline)
    other = baseline_images(x, baseline)
    labels = model(x).argmax(1).tolist()
    for i, label in enumerate(labels):
        start, finish = (other[i], x[i]) if game is insertion else (x[i], other[i])
        scores, area = _again(model, start.numpy(), finish.numpy(), maps[i].numpy(), label, steps)
        np.testing.assert_allclose(found.scores[i].numpy(), scores, rtol=1e-12)
        assert found.auc[i].item() == pytest.approx(area, rel=1e-12)


def test_the_defaults_are_the_papers(x: Tensor):
    model = build("functional")
    maps = torch.randn(3, 16, 16)
    found, chosen = insertion(model, x, maps), insertion(model, x, maps, None, 28, "blur", "softmax")
    assert torch.equal(found.scores, chosen.scores)
    found, chosen = deletion(model, x, maps), deletion(model, x, maps, None, 28, "zero", "softmax")
    assert torch.equal(found.scores, chosen.scores)


def test_28_steps_of_a_picture_of_224_pixels_are_1792_pixels_each():
    model = Weighing([[1 + 1e-4]])
    x = torch.ones(1, 1, 224, 224, dtype=torch.float64)
    curves = deletion(model, x, torch.randn(1, 7, 7), target=0)
    assert (curves.fractions * 224 * 224).diff().tolist() == pytest.approx([1792] * 28, rel=1e-12)
    scores = curves.scores[0]
    # With equal steps the area is RISE's: the mean of the scores, the first and the last of which count half.
    assert curves.auc.item() == pytest.approx(((scores.sum() - scores[0] / 2 - scores[-1] / 2) / 28).item())
    remaining = (224 * 224 - 1792 * torch.arange(29)).double()
    torch.testing.assert_close(scores, torch.sigmoid(remaining * math.log(1 + 1e-4)))


def test_no_map_beats_the_contributions_of_a_linear_model():
    weight = torch.randn(8, 8, dtype=torch.float64)
    model = Weighing(weight.exp().tolist())
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    contributions = (x * weight)[:, 0]
    best = insertion(model, x, contributions, 0, 16, "zero").scores, deletion(model, x, contributions, 0, 16).scores
    for _ in range(5):
        maps = torch.randn(5, 8, 8)
        assert (insertion(model, x, maps, 0, 16, "zero").scores <= best[0] + 1e-12).all()
        assert (deletion(model, x, maps, 0, 16).scores >= best[1] - 1e-12).all()


def test_insertion_is_deletion_of_the_opposite_map_read_backwards(x: Tensor):
    model = build("functional")
    maps = torch.randn(3, 16, 16)  # no ties
    forth, back = insertion(model, x, maps, 2, 32, "blur"), deletion(model, x, -maps, 2, 32, "blur")
    torch.testing.assert_close(forth.scores, back.scores.flip(1))


def test_several_maps_by_name_are_each_as_alone(x: Tensor):
    model = build("functional")
    maps = {"layer1": torch.randn(3, 4, 8, 8), "random": torch.randn(3, 16, 16), "gradcam": torch.randn(3, 4, 4)}
    for game in (insertion, deletion):
        together = game(model, x, maps, steps=9)
        assert list(together) == list(maps)
        for name, one in maps.items():
            alone = game(model, x, one, steps=9)
            assert torch.equal(together[name].scores, alone.scores)
            assert torch.equal(together[name].fractions, alone.fractions)


@pytest.mark.parametrize("batch", [1, 2, 9, 10, 11, 29, 30, 31, 1000])
def test_the_batch_changes_nothing_but_the_memory(batch: int, x: Tensor):
    model = build("functional")
    maps = torch.randn(3, 16, 16)
    expected = insertion(model, x, maps, steps=9).scores
    seen = []
    with model.first.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0]))):
        found = insertion(model, x, maps, steps=9, batch=batch).scores
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert max(seen) <= batch and sum(seen) == 3 * (2 + 8)  # the picture and the baseline once, and 8 mixtures
    single = torch.cat([insertion(model, x[i : i + 1], maps[i : i + 1], steps=9).scores for i in range(3)])
    torch.testing.assert_close(single, expected, rtol=1e-12, atol=1e-12)


def test_what_all_curves_have_in_common_is_asked_once(x: Tensor):
    model = build("functional")
    maps = {name: torch.randn(3, 16, 16) for name in "abc"}
    seen = []
    with model.first.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0]))):
        together = deletion(model, x, maps, steps=4)
    assert sum(seen) == 3 * (2 + 3 * 3)
    for name, one in maps.items():
        torch.testing.assert_close(together[name].scores, deletion(model, x, one, steps=4).scores)
    assert deletion(model, x, maps["a"], steps=1).scores.shape == (3, 2)


def test_half_precision_inside_leaves_scores_in_single(x: Tensor):
    model = build("functional").float()
    maps = torch.randn(3, 16, 16)
    expected = insertion(model, x.float(), maps)
    with torch.autocast("cpu", torch.bfloat16):
        found = insertion(model, x.float(), maps)
    assert found.scores.dtype == found.fractions.dtype == found.auc.dtype == torch.float32
    torch.testing.assert_close(found.scores, expected.scores, atol=0.02, rtol=0)
    assert not torch.equal(found.scores, found.scores.bfloat16().float())


@pytest.mark.parametrize("game", [insertion, deletion])
@pytest.mark.parametrize(
    ("failure", "wrong"),
    [(None, {}), (None, {"target": 99}), (None, {"batch": 0}), (ArithmeticError, {}), (KeyboardInterrupt, {})],
)
def test_nothing_is_left_behind(game, failure: type[BaseException] | None, wrong: dict[str, int], x: Tensor):
    model = used(failure)
    maps = torch.randn(3, 16, 16)
    before = state(model, x), maps.clone()
    if failure is None and not wrong:
        game(model, x, maps, steps=3)
    else:
        with pytest.raises(failure or ValueError):
            game(model, x, maps, steps=3, **wrong)
    assert state(model, x) == before[0] and torch.equal(maps, before[1])


def test_a_failure_halfway_leaves_nothing_behind(x: Tensor):
    model = used()
    calls = iter(range(100))

    def fail(*_: object) -> None:
        if next(calls) == 3:
            raise ArithmeticError("on purpose")

    model.last.register_forward_hook(fail)
    maps = torch.randn(3, 16, 16)
    before = state(model, x)
    with pytest.raises(ArithmeticError):
        insertion(model, x, maps, batch=2)
    assert state(model, x) == before


def test_a_network_that_begins_in_place_does_not_change_the_pictures(x: Tensor):
    model = nn.Sequential(nn.ReLU(inplace=True), build("functional"))
    before = x.clone()
    found = deletion(model, x, torch.randn(3, 16, 16), steps=3)
    assert torch.equal(x, before)
    torch.testing.assert_close(found.scores[:, 0], model(x.clone()).softmax(1).amax(1))


def test_gradients_are_not_recorded(x: Tensor):
    found = insertion(build("functional"), x.requires_grad_(), torch.randn(3, 16, 16, requires_grad=True), steps=3)
    assert not found.scores.requires_grad and not found.auc.requires_grad and x.grad is None


@pytest.mark.parametrize("game", [insertion, deletion])
def test_bad_input_is_one_line(game, x: Tensor):
    model, maps = build("functional"), torch.randn(3, 16, 16)

    def refused(error: type[Exception], match: str, x: Tensor = x, maps: object = maps, **others: object) -> None:
        with pytest.raises(error, match=match) as caught:
            game(model, x, maps, **others)
        assert "\n" not in str(caught.value)

    refused(ValueError, r"^expected images of shape \(N, C, H, W\), none of them 0, got \(3, 16, 16\)$", x=x[0])
    refused(ValueError, "^images are torch.float32 on cpu but the model is torch.float64", x=x.float())
    refused(TypeError, "^expected maps as a tensor or a mapping of tensors, got list$", maps=[maps])
    refused(TypeError, "^expected maps as a tensor or a mapping of tensors, got list$", maps={"layer1": [maps]})
    refused(ValueError, r"^expected 3 maps \(N, h, w\) or attributions .+, got \(2, 16, 16\)$", maps=maps[:2])
    refused(ValueError, r"^expected 3 maps \(N, h, w\) or attributions .+, got \(16, 16\)$", maps=maps[0])
    refused(ValueError, r"^expected 3 maps \(N, h, w\) or attributions .+, got \(3, 0, 16\)$", maps=maps[:, :0])
    refused(ValueError, "^expected finite maps, got 768 NaN or infinite values$", maps=maps * math.nan)
    refused(TypeError, "^expected floating-point maps, got torch.int64$", maps=maps.long())
    refused(ValueError, "^steps = 0 is not between 1 and the number of pixels, 256$", steps=0)
    refused(ValueError, "^steps = 257 is not between 1 and the number of pixels, 256$", steps=257)
    refused(ValueError, "^unknown baseline 'grey': choose zero, blur, mean, or give a tensor$", baseline="grey")
    refused(ValueError, r"^baseline \(2, 1, 1\) does not broadcast to \(3, 3, 16, 16\)$", baseline=torch.ones(2, 1, 1))
    refused(ValueError, "^unknown activation 'tanh': choose 'softmax' or 'sigmoid'$", activation="tanh")
    refused(ValueError, "^batch = 0 is not a number of pictures: give 1 or more$", batch=0)
    refused(ValueError, "^no class 5: this network has classes 0 to 4$", target=5)
    refused(TypeError, "^expected integer class labels as target, got", target=1.5)
    small = {"x": x[..., :5], "maps": maps[..., :5], "baseline": "blur"}
    refused(ValueError, "^pictures of 16 x 5 are too small for 11 blurring taps: need 6 px$", **small)


def test_a_network_without_class_scores_is_refused_in_one_line(x: Tensor):
    with pytest.raises(ValueError, match=r"^expected the network to return logits of shape \(N, classes\), got .+$"):
        insertion(nn.Conv2d(3, 2, 3).double(), x, torch.randn(3, 16, 16))
    with pytest.raises(TypeError, match="^expected the network as a torch.nn.Module, got function$"):
        insertion(lambda x: x, x, torch.randn(3, 16, 16))


def test_the_softmax_of_a_single_output_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 1, 8), nn.Flatten())
    x, maps = torch.randn(1, 3, 8, 8), torch.rand(1, 8, 8)
    with pytest.raises(ValueError, match="^the softmax of a single output is always 1: use activation='sigmoid'$"):
        insertion(model, x, maps, steps=2)
    curves = insertion(model, x, maps, steps=2, activation="sigmoid")
    assert curves.scores[0, -1].item() == pytest.approx(model(x).sigmoid().item())
