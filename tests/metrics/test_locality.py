"""Where units look, and how far maps have moved: by hand, and against scikit-image."""

from __future__ import annotations

import pytest
import torch
from networks import build
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.fixes.blur import centred_blur, cyclic_mean
from smoothsal_lib.layers import HiddenLayer
from smoothsal_lib.metrics.locality import Field, effective_receptive_field, occlusion_response, shift


def moved(maps: Tensor, rows: float, columns: float) -> Tensor:
    """Cyclic displacement by a fraction of a pixel: a factor of modulus 1 at every frequency but the Nyquist's."""
    height, width = maps.shape[-2:]
    frequency = [torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width)]
    wave = torch.exp(-2j * torch.pi * (rows * frequency[0][:, None] + columns * frequency[1]))
    wave = wave * (frequency[0] != -0.5)[:, None] * (frequency[1] != -0.5)
    return torch.fft.ifft2(torch.fft.fft2(maps) * wave).real


DISTANCES = [(0, 0), (1, 0), (0, -2), (0.5, 0.5), (0.25, -1.75), (-3.3, 2.62), (1.004, 5.49)]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("size", [(12, 16), (13, 15), (16, 13)])
def test_known_distances(distance: tuple[float, float], size: tuple[int, int]) -> None:
    maps = torch.randn(4, *size, dtype=torch.float64)
    expected = torch.tensor(distance, dtype=torch.float64).expand(4, 2)
    torch.testing.assert_close(shift(maps, moved(maps, *distance)), expected, atol=1 / 8**4, rtol=0)
    scaled = 3 * moved(maps, *distance) + 7
    torch.testing.assert_close(shift(maps, scaled), expected, atol=1 / 8**4, rtol=0)


def test_distance_by_hand() -> None:
    a = torch.zeros(2, 9, 9)
    a[:, 4, 4] = 1
    b = torch.zeros(2, 9, 9)
    b[0, 5, 2] = 1  # one down, two left
    b[1, 4, 5] = b[1, 4, 6] = 0.5  # between one and two to the right
    assert shift(a, b).tolist() == [[1, -2], [0, 1.5]]
    assert shift(b, a).tolist() == [[-1, 2], [0, -1.5]]


def test_distance_is_that_of_scikit_image() -> None:
    registration = pytest.importorskip("skimage.registration")
    smooth = centred_blur(torch.randn(6, 1, 20, 24, dtype=torch.float64), (2, 2))[:, 0]
    b = torch.cat([moved(smooth[:3], 1.27, -2.61), torch.randn(3, 20, 24, dtype=torch.float64) / 4 + smooth[3:]])
    for one, other, found in zip(smooth, b, shift(smooth, b), strict=True):
        back, _, _ = registration.phase_cross_correlation(
            one.numpy() - one.mean().item(),
            other.numpy() - other.mean().item(),
            upsample_factor=200,
            normalization=None,
        )
        torch.testing.assert_close(found, -torch.from_numpy(back), atol=0.01, rtol=0)


def test_the_published_blur_moves_by_half_a_pixel_and_the_centred_one_does_not() -> None:
    attributions = torch.randn(5, 7, 16, 16, dtype=torch.float64)
    half = torch.full((5, 2), 0.5, dtype=torch.float64)
    torch.testing.assert_close(shift(attributions, cyclic_mean(attributions, (2, 2))), half, atol=1e-3, rtol=0)
    # Replicated borders are not cyclic, hence the tolerance.
    nothing = torch.zeros(5, 2, dtype=torch.float64)
    torch.testing.assert_close(shift(attributions, centred_blur(attributions, (2, 2))), nothing, atol=0.03, rtol=0)


def test_channels_move_together() -> None:
    attributions = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = shift(attributions, moved(attributions, 0, 1.5))
    torch.testing.assert_close(found, torch.tensor([[0, 1.5]] * 2, dtype=torch.float64), atol=1e-3, rtol=0)


def test_a_constant_map_has_no_distance() -> None:
    maps = torch.randn(3, 8, 8)
    maps[1] = 0.3
    found = shift(maps, torch.randn(3, 8, 8))
    assert found.isnan().all(1).tolist() == [False, True, False]
    assert shift(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)).isnan().all()


def test_a_field_by_hand() -> None:
    values = torch.tensor([[[0.0, 1, 0], [2, 4, 0], [0, 1, 0]], [[0.0, 0, 0], [0, 0, 0], [0, 0, 3]]])
    values = torch.cat([values, torch.zeros(1, 3, 3)])
    field = Field(values, torch.tensor([-1.0, 0, 1]), torch.tensor([-4.0, 0, 4]))
    centroid = field.centroid()
    assert centroid[:2].tolist() == [[0, -1], [1, 4]]
    assert field.spread()[:2].tolist() == pytest.approx([((1 + 1 + 2 * 16) / 8) ** 0.5, 17**0.5])
    assert field.within(1)[:2].tolist() == [0.75, 0]
    assert field.within(0)[:2].tolist() == [0.5, 0]
    assert field.within(4)[:2].tolist() == [1, 1]
    for of_nothing in (centroid[2], field.spread()[2], field.within(9)[2]):
        assert of_nothing.isnan().all()


class Reader(nn.Module):
    """One convolution, then the mean: what a unit reads is the kernel."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


def reader(stride: int = 1) -> tuple[Reader, Tensor]:
    conv = nn.Conv2d(2, 3, 3, stride, 1, bias=False).double()
    return Reader(conv), conv.weight.detach()


@pytest.mark.parametrize("stride", [1, 2])
def test_the_effective_receptive_field_of_a_convolution_is_its_kernel(stride: int) -> None:
    model, weight = reader(stride)
    x = torch.randn(4, 2, 11, 11, dtype=torch.float64)
    layers = sal.hidden_layers(model, x)
    field = effective_receptive_field(model, x, layers, at=(4, 6))["conv"]
    expected = torch.zeros(4, 11, 11, dtype=torch.float64)
    expected[:, 3:6, 5:8] = weight.abs().mean((0, 1))
    torch.testing.assert_close(field.values, expected)
    assert field.rows.tolist() == [i - 4 for i in range(11)] and field.columns.tolist() == [i - 6 for i in range(11)]
    torch.testing.assert_close(field.within(1), torch.ones(4, dtype=torch.float64))
    offsets = torch.tensor([-1.0, 0, 1], dtype=torch.float64)
    share = weight.abs().sum((0, 1)) / weight.abs().sum()
    down = (share.sum(1) * offsets).sum()
    torch.testing.assert_close(field.centroid()[:, 0], down.expand(4))
    torch.testing.assert_close(field.centroid()[:, 1], (share.sum(0) * offsets).sum().expand(4))


def test_channels_are_evenly_spread() -> None:
    model, weight = reader()
    x = torch.randn(1, 2, 7, 7, dtype=torch.float64)
    field = effective_receptive_field(model, x, sal.hidden_layers(model, x), channels=1)["conv"]
    torch.testing.assert_close(field.values[0, 2:5, 2:5], weight[0].abs().mean(0))
    every = effective_receptive_field(model, x, sal.hidden_layers(model, x), channels=9)["conv"]
    torch.testing.assert_close(every.values[0, 2:5, 2:5], weight.abs().mean((0, 1)))


def test_the_occlusion_response_of_a_convolution_is_its_kernel_times_what_was_covered() -> None:
    model, weight = reader()
    x = torch.randn(4, 2, 9, 9, dtype=torch.float64)
    layers = sal.hidden_layers(model, x)
    field = occlusion_response(model, x, layers, patch=1, stride=1, at=(3, 5), baseline=0.5, batch=7)["conv"]
    expected = torch.zeros(4, 9, 9, dtype=torch.float64)
    change = ((0.5 - x[:, None, :, 2:5, 4:7]) * weight).sum(2).abs().mean(1)  # colours add up before |.|
    expected[:, 2:5, 4:7] = change
    torch.testing.assert_close(field.values, expected)
    assert field.rows.tolist() == [i - 3 for i in range(9)] and field.columns.tolist() == [i - 5 for i in range(9)]


def test_places_of_the_patch() -> None:
    """A patch of 4 every 3 pixels of 11: centres 1.5, 4.5, 7.5; the unit stands at pixel 5, and reads 4 to 6."""
    model, _ = reader()
    x = torch.randn(2, 2, 11, 11, dtype=torch.float64)
    field = occlusion_response(model, x, sal.hidden_layers(model, x), patch=4, stride=3)["conv"]
    assert field.rows.tolist() == field.columns.tolist() == [-3.5, -0.5, 2.5]
    assert ((field.values > 0) == torch.tensor([[False, False, False], [False, True, True], [False, True, True]])).all()


def test_the_unit_nearest_to_the_pixel_is_taken() -> None:
    model, _ = reader(2)
    x = torch.randn(1, 2, 12, 12, dtype=torch.float64)
    layers = sal.hidden_layers(model, x)
    for at, centre in ((None, 6), ((0, 0), 0), ((11, 11), 10), ((6.9, 7.1), None)):
        field = effective_receptive_field(model, x, layers, at)["conv"]
        found = (-field.rows[0].item(), -field.columns[0].item())
        assert found == ((centre, centre) if centre is not None else (6, 8))


@pytest.mark.parametrize("measure", [effective_receptive_field, occlusion_response])
def test_every_network_is_left_as_it_was(measure, network: nn.Module, x: Tensor) -> None:
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    layers = sal.hidden_layers(network, x)
    usual = {name: layer for name, layer in layers.items() if min(layer.stride) >= 1}
    found = measure(network, x, usual)
    assert list(found) == list(usual)
    for field in found.values():
        assert field.values.shape[0] == 3 and (field.values >= 0).all() and field.values.dtype == x.dtype
        assert not field.values.requires_grad
    assert all(module.training for module in network.modules())
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters()) and x.grad is None


def test_images_do_not_mix(x: Tensor) -> None:
    model = build("residual")
    layers = sal.hidden_layers(model, x)
    for measure in (effective_receptive_field, occlusion_response):
        together = measure(model, x, layers)["layer3.1"].values
        alone = torch.cat([measure(model, one[None], layers)["layer3.1"].values for one in x])
        torch.testing.assert_close(together, alone)


def layer(name: str = "conv") -> dict[str, HiddenLayer]:
    return {name: HiddenLayer(name, (3, 8, 8), (1, 1), (0, 0))}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: effective_receptive_field(m, x, {}), "^no layers given"),
        (lambda m, x: effective_receptive_field(m, x, layer("head")), "^no layer 'head' in this Reader"),
        (
            lambda m, x: effective_receptive_field(m, x, layer(), (8, 0)),
            r"^pixel \(8, 0\) is outside the picture of 8 x 8$",
        ),
        (
            lambda m, x: effective_receptive_field(m, x, layer(), channels=0),
            "^expected at least one channel, got channels=0$",
        ),
        (lambda m, x: effective_receptive_field(m, x[0], layer()), r"^expected images of shape \(N, C, H, W\)"),
        (lambda m, x: occlusion_response(m, x, layer(), patch=9), "^expected a patch of 1 to 8 pixels.* got patch=9"),
        (lambda m, x: occlusion_response(m, x, layer(), stride=0), "^expected a patch .* stride=0"),
        (lambda m, x: shift(x, x[:1]), r"^expected two of one shape .* got \(2, 2, 8, 8\) and \(1, 2, 8, 8\)$"),
        (lambda m, x: shift(x[0, 0], x[0, 0]), r"^expected two of one shape \(N, H, W\) or \(N, C, H, W\)"),
        (lambda m, x: shift(x, x * torch.nan), "^expected finite maps, got NaN or infinite values$"),
    ],
)
def test_bad_input_is_one_line(call, message: str) -> None:
    model, _ = reader()
    with pytest.raises(ValueError, match=message) as caught:
        call(model, torch.randn(2, 2, 8, 8, dtype=torch.float64))
    assert "\n" not in str(caught.value)


def test_a_layer_that_is_not_run_is_refused() -> None:
    model, _ = reader()
    model.spare = nn.ReLU()
    with pytest.raises(ValueError, match="^layer 'spare' was not run by this Reader$"):
        effective_receptive_field(model, torch.randn(1, 2, 8, 8, dtype=torch.float64), layer("spare"))
