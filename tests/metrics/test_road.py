from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import build
from test_nothing_leaks import state, used
from torch import Tensor, nn

from smoothsal_lib.metrics.road import PERCENTAGES, linear_imputation, road


def exact(x: Tensor, removed: Tensor) -> Tensor:
    """The linear system written down pixel by pixel and solved by elimination; one image (C, H, W)."""
    height, width = removed.shape
    unknown = [tuple(u) for u in removed.nonzero().tolist()]
    index = {u: i for i, u in enumerate(unknown)}
    a, b = np.zeros((len(unknown), len(unknown))), np.zeros((len(unknown), len(x)))
    for i, (row, column) in enumerate(unknown):
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                u = (row + dy, column + dx)
                if (dy, dx) == (0, 0) or not (0 <= u[0] < height and 0 <= u[1] < width):
                    continue
                weight = 1 / 6 if 0 in (dy, dx) else 1 / 12
                a[i, i] += weight
                if u in index:
                    a[i, index[u]] -= weight
                else:
                    b[i] += weight * x[:, u[0], u[1]].numpy()
    filled = x.clone()
    filled[:, removed] = torch.from_numpy(np.linalg.solve(a, b)).T.to(x)
    return filled


def gaps(kind: str, n: int, size: int, share: float) -> Tensor:
    """Removed pixels (n, size, size): scattered, or in blocks as the map of a deep layer ranks them."""
    cells = size if kind == "scattered" else 4
    values = torch.rand(n, cells, cells).repeat_interleave(size // cells, 1).repeat_interleave(size // cells, 2)
    ranks = values.flatten(1).argsort(dim=1, stable=True).argsort(dim=1).view_as(values)
    return ranks < round(share * size**2)


def test_one_pixel_is_the_weighted_mean_of_its_neighbours():
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 99.0, 5.0], [6.0, 7.0, 8.0]]).view(1, 1, 3, 3)
    removed = torch.zeros(1, 3, 3, dtype=torch.bool)
    removed[0, 1, 1] = True
    found = linear_imputation(x, removed)
    assert found[0, 0, 1, 1].item() == pytest.approx((2 + 4 + 5 + 7) / 6 + (1 + 3 + 6 + 8) / 12)
    assert torch.equal(found[~removed[:, None]], x[~removed[:, None]])


def test_a_corner_has_three_neighbours():
    x = torch.tensor([[99.0, 6.0], [12.0, 36.0]]).view(1, 1, 2, 2)
    removed = torch.tensor([[[True, False], [False, False]]])
    # (6/6 + 12/6 + 36/12) / (1/6 + 1/6 + 1/12)
    assert linear_imputation(x, removed)[0, 0, 0, 0].item() == pytest.approx(6 / (5 / 12))


def test_a_gap_in_a_ramp_is_filled_by_the_ramp():
    ramp = torch.arange(9.0, dtype=torch.float64).expand(1, 2, 9, 9)
    removed = torch.zeros(1, 9, 9, dtype=torch.bool)
    removed[0, 2:7, 3:6] = True
    torch.testing.assert_close(linear_imputation(ramp, removed, tolerance=1e-10), ramp)


@pytest.mark.parametrize("kind", ["scattered", "blocks"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_linear_system_is_solved(kind: str, share: float):
    x, removed = torch.randn(2, 3, 16, 16, dtype=torch.float64), gaps(kind, 2, 16, share)
    expected = torch.stack([exact(one, gap) for one, gap in zip(x, removed, strict=True)])
    torch.testing.assert_close(linear_imputation(x, removed, tolerance=1e-9), expected, rtol=0, atol=1e-7)
    # The default tolerance, in single precision, is finer than the noise that road adds.
    assert (linear_imputation(x.float(), removed) - expected).abs().max() < 0.005


@pytest.mark.parametrize("kind", ["scattered", "blocks"])
def test_imputation_is_that_of_pytorch_grad_cam(kind: str):
    oracle = pytest.importorskip("pytorch_grad_cam.metrics.road", exc_type=ImportError)
    x, removed = torch.randn(2, 3, 64, 64), gaps(kind, 2, 64, 0.6)
    imputer = oracle.NoisyLinearImputer(noise=0)
    expected = torch.stack([imputer(one, (~gap).float()) for one, gap in zip(x, removed, strict=True)])
    torch.testing.assert_close(linear_imputation(x, removed, tolerance=1e-5), expected, rtol=0, atol=1e-4)


def test_imputation_keeps_images_and_scales_apart():
    x, removed = torch.randn(3, 3, 16, 16), gaps("blocks", 3, 16, 0.5)
    removed[2] = False
    x[1] *= 1000
    together = linear_imputation(x, removed)
    for one, gap, found in zip(x, removed, together, strict=True):
        torch.testing.assert_close(found, linear_imputation(one[None], gap[None])[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(together[2], x[2])
    hidden = torch.where(removed[:, None], 5.0, x)
    assert torch.equal(linear_imputation(hidden, removed), together)
    assert torch.equal(linear_imputation(torch.full_like(x, 3), removed), torch.full_like(x, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_imputation_in_half_precision_and_under_autocast(dtype: torch.dtype):
    x, removed = torch.randn(2, 3, 16, 16), gaps("blocks", 2, 16, 0.5)
    found = linear_imputation(x.to(dtype), removed)
    assert found.dtype == dtype
    torch.testing.assert_close(found, linear_imputation(x.to(dtype).float(), removed).to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        inside = linear_imputation(x, removed)
    assert torch.equal(inside, linear_imputation(x, removed))


class TopLeft(nn.Module):
    """The log-odds of class 1 against class 0 are the value of the pixel at the top left."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)).to(x), x[:, 0, 0, 0]], 1)


def test_the_curve_by_hand():
    """2 x 2 pixels, one removed at a time, without noise; the map ranks the top left second."""
    x = torch.tensor([[3.0, 1.0], [2.0, 5.0]]).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    maps = torch.tensor([[0.5, 0.9], [0.1, 0.2]]).expand(2, 2, 2)
    found = road(TopLeft(), x, maps, target=[1, 0], percentages=[25, 50, 75], noise=0)
    assert found.fractions.tolist() == [0, 0.25, 0.5, 0.75]
    # First the top right goes, and nothing changes. Then v00 and v01 solve (2/6 + 1/12) v00 = v01/6 + 2/6 + 5/12 and
    # (2/6 + 1/12) v01 = v00/6 + 5/6 + 2/12, so 5 v00 = 2 v01 + 9 and 5 v01 = 2 v00 + 12: v00 = 69/21. Then only the 2
    # at the bottom left is known, and all are 2.
    expected = torch.tensor([3.0, 3.0, 69 / 21, 2.0]).sigmoid()
    torch.testing.assert_close(found.scores, torch.stack([expected, 1 - expected]), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.auc, torch.trapezoid(found.scores, dx=0.25))
    least = road(TopLeft(), x, maps, target=1, percentages=[25, 50], order="least", noise=0)
    # The bottom left goes, then the bottom right: nothing happens to the top left.
    torch.testing.assert_close(least.scores, torch.tensor(3.0).sigmoid().expand(2, 3))


class Region(nn.Module):
    """Class 1 is as likely as a bright spot of 8 x 8 pixels is there."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)).to(x), 4 * x[:, :, 4:12, 4:12].mean((1, 2, 3))], 1)


def test_a_map_that_knows_the_spot_falls_first_and_stays_longest():
    x = 0.1 * torch.randn(4, 3, 32, 32)
    x[:, :, 4:12, 4:12] += 1
    good = torch.zeros(4, 32, 32)
    good[:, 4:12, 4:12] = 1
    maps = {"good": good, "random": torch.rand(4, 32, 32), "bad": -good}
    most, least = (road(Region(), x, maps, 1, order=order) for order in ("most", "least"))
    assert list(most) == list(maps)
    assert most["good"].fractions.tolist() == pytest.approx([0, *(p / 100 for p in PERCENTAGES)], abs=1e-3)
    assert (most["good"].auc < most["random"].auc).all() and (most["random"].auc < most["bad"].auc).all()
    assert (least["good"].auc > least["random"].auc).all() and (least["random"].auc > least["bad"].auc).all()
    # 10 % is more than the spot of 6.25 %: what is filled in knows nothing of it.
    assert (most["good"].scores[:, 1] < 0.6).all() and (least["good"].scores[:, :-1] > 0.9).all()


def test_noise_is_what_was_asked_for_and_only_on_removed_pixels():
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return x[:, :2, 0, 0]

    x, maps = torch.randn(6, 3, 32, 32), torch.rand(6, 32, 32)
    road(Watch(), x, maps, percentages=[40], noise=0)
    road(Watch(), x, maps, percentages=[40], noise=0.05)
    (_, plain), (_, noisy) = seen[:2], seen[2:]
    added = (noisy - plain)[1::2]
    removed = plain[1::2] != x
    assert removed.float().mean().item() == pytest.approx(round(0.4 * 1024) / 1024, abs=1e-3)
    assert torch.equal(added != 0, removed)
    assert added[removed].std().item() == pytest.approx(0.05, rel=0.05)
    assert not torch.allclose(added[0], added[1])


@pytest.mark.parametrize("batch", [1, 3, 10, 11, 30, 1000])
def test_the_batch_does_not_change_the_curves(batch: int, x: Tensor):
    model, maps = build("residual"), torch.rand(3, 5, 5)
    torch.testing.assert_close(road(model, x, maps, batch=batch).scores, road(model, x, maps).scores)


def test_the_seed_alone_decides_and_maps_share_the_noise(x: Tensor):
    model, maps = build("residual"), torch.rand(3, 8, 8)
    random = torch.get_rng_state()
    first = road(model, x, {"a": maps, "b": maps}, noise=0.5)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(first["a"].scores, first["b"].scores)
    assert torch.equal(road(model, x, maps, noise=0.5).scores, first["a"].scores)
    assert not torch.allclose(road(model, x, maps, noise=0.5, seed=1).scores, first["a"].scores)


@pytest.mark.parametrize("failure", [None, KeyboardInterrupt])
def test_nothing_is_left_behind(failure: type[BaseException] | None, x: Tensor):
    model, maps = used(failure), torch.rand(3, 16, 16)
    before = state(model, x)
    with pytest.raises(failure) if failure else torch.enable_grad():
        road(model, x, maps)
    assert state(model, x) == before


def test_a_network_that_begins_in_place_leaves_the_images_alone(x: Tensor):
    model = nn.Sequential(nn.ReLU(inplace=True), *build("residual"))
    before = x.clone()
    found = road(model, x, torch.rand(3, 16, 16))
    assert torch.equal(x, before)
    torch.testing.assert_close(found.scores[:, 0], model(x.clone()).softmax(1).amax(1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"percentages": []}, r"ascending percentages between 0 and 100, got \[\]"),
        ({"percentages": [20, 10]}, r"got \[20, 10\]"),
        ({"percentages": [0, 10]}, r"got \[0, 10\]"),
        ({"percentages": [50, 100]}, r"got \[50, 100\]"),
        ({"percentages": [99.9]}, r"99.9 % of 256 pixels leave none"),
        ({"order": "morf"}, "unknown order 'morf': choose 'most' or 'least'"),
        ({"noise": -1.0}, "noise of 0 or more, got -1.0"),
        ({"target": 9}, "no class 9"),
        ({"batch": 0}, "batch = 0"),
        ({"maps": torch.zeros(2, 16, 16)}, r"expected 3 maps"),
    ],
)
def test_bad_input_is_one_line(wrong: dict[str, object], message: str, x: Tensor):
    with pytest.raises(ValueError, match=message) as caught:
        road(build("residual"), x, **{"maps": torch.rand(3, 16, 16), **wrong})
    assert "\n" not in str(caught.value)


def test_bad_masks_are_one_line():
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(TypeError, match="as booleans, got torch.float32"):
        linear_imputation(x, torch.zeros(2, 8, 8))
    with pytest.raises(ValueError, match=r"got \(2, 3, 8, 8\) and \(2, 8, 7\)$"):
        linear_imputation(x, torch.zeros(2, 8, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one known pixel"):
        linear_imputation(x, torch.ones(2, 8, 8, dtype=torch.bool))
