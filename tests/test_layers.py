"""Which layers can be explained, and which ones downsample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import NETWORKS, build
from torch import Tensor, nn
from torchvision.models import densenet121, googlenet, resnet18, vgg11

import smoothsal_lib as sal

# What should be listed, written down by reading the networks.
LISTED = {
    "functional": ["first", "second"],  # F.relu is no module, so the convolutions stand for themselves
    "reused_relu": ["relu"],  # its last call
    "in_place_vgg": ["1", "2", "5", "6"],
    "residual": ["layer2", "layer3.0", "layer3.1", "layer4"],
    "overlapping_max_pool": ["layer1", "layer2", "layer4"],
    "squeeze_excite": ["layer1", "layer2", "layer4"],
    "attention": ["layer0", "layer1", "layer3"],
    "group_norm": ["layer2", "layer4"],
    "dense": ["layer1", "layer2", "layer3", "layer4"],
    "grouped": ["layer1", "layer2"],
    "patchify": ["layer1", "layer3"],
}


@pytest.mark.parametrize("name", LISTED)
def test_names_in_forward_order(name: str, x: Tensor) -> None:
    assert list(sal.hidden_layers(build(name), x)) == LISTED[name]


def cut(model: nn.Module, name: str, x: Tensor) -> tuple[bool, list[Tensor]]:
    """Whether the scores lose all touch with the images when the module's output is cut out of the graph."""
    returned: list[Tensor] = []

    def sever(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        returned.append(output.detach().clone())
        return output.detach()

    handle = model.get_submodule(name).register_forward_hook(sever)
    image = x[:1].clone().requires_grad_()
    score = model(image.clone()).sum()
    handle.remove()
    depends = score.requires_grad and torch.autograd.grad(score, image, allow_unused=True)[0] is not None
    return not depends, returned


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "reused_relu"])
def test_listed_are_exactly_the_maps_that_everything_passes_through(name: str, x: Tensor) -> None:
    """By brute force: cut out every module in turn, and see whether the image still reaches the score."""
    model = build(name)
    listed = sal.hidden_layers(model, x)
    values = {layer: cut(model, layer, x)[1][-1] for layer in listed}
    for candidate, module in model.named_modules():
        if not candidate or isinstance(module, nn.MultiheadAttention):
            continue
        everything, returned = cut(model, candidate, x)
        is_map = bool(returned) and returned[-1].ndim == 4 and returned[-1][0, 0].numel() > 1
        if candidate in listed:
            assert everything and is_map, candidate
            assert listed[candidate].shape == returned[-1].shape[1:]
        elif everything and is_map:
            is_container = isinstance(module, nn.Sequential)
            same_tensor = any(v.shape == returned[-1].shape and v.equal(returned[-1]) for v in values.values())
            is_start_of_a_run = isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.LocalResponseNorm))
            is_start_of_a_run |= isinstance(module, nn.InstanceNorm2d)
            assert is_container or same_tensor or is_start_of_a_run, f"{candidate} should be listed"


def test_a_residual_branch_is_not_listed(x: Tensor) -> None:
    model = build("residual")
    for inside in ("layer3.0.conv2", "layer3.0.bn2", "layer3.1.shortcut.0", "layer4.bn1"):
        assert not cut(model, inside, x)[0]
        assert inside not in sal.hidden_layers(model, x)


def test_shapes_and_strides(x: Tensor) -> None:
    found = sal.hidden_layers(build("residual"), x)
    assert [(layer.shape, layer.stride) for layer in found.values()] == [
        ((4, 8, 8), (2, 2)),
        ((4, 8, 8), (2, 2)),
        ((6, 4, 4), (4, 4)),
        ((8, 2, 2), (8, 8)),
    ]
    assert all(name == layer.name for name, layer in found.items())
    assert sal.hidden_layers(build("asymmetric"), x)["layer1"].stride == (1, 2)


def described(model: nn.Module, size: int) -> list[tuple[str, int, int, int]]:
    """(name, channels, rows, stride) of the hidden layers of a float32 model."""
    found = sal.hidden_layers(model, torch.rand(1, 3, size, size))
    return [(layer.name, *layer.shape[:2], layer.stride[0]) for layer in found.values()]


def test_resnet() -> None:
    expected = [("relu", 64, 32, 2), ("maxpool", 64, 16, 4)]
    for stage, (channels, rows, stride) in enumerate([(64, 16, 4), (128, 8, 8), (256, 4, 16), (512, 2, 32)], start=1):
        expected += [(f"layer{stage}.{block}", channels, rows, stride) for block in (0, 1)]
    assert described(resnet18(), 64) == expected


def test_vgg() -> None:
    """Features 0 to 20; ReLU stands for its convolution, max-pool for itself, and the last pool is 2 x 2 at 64 px."""
    found = described(vgg11(), 64)
    names = [name for name, *_ in found]
    assert names[:13] == [f"features.{i}" for i in (1, 2, 4, 5, 7, 9, 10, 12, 14, 15, 17, 19, 20)]
    assert names[13:] == ["avgpool"]
    assert found[0] == ("features.1", 64, 64, 1)
    assert found[12] == ("features.20", 512, 2, 32)


def test_densenet() -> None:
    """Inside a dense block every layer is passed by; its input, output and the transitions are crossed by all."""
    names = [name for name, *_ in described(densenet121(), 64)]
    blocks = [name for name in names if name.startswith("features.denseblock") and name.count(".") == 1]
    assert blocks == [f"features.denseblock{i}" for i in (1, 2, 3, 4)]
    assert not any("denselayer" in name for name in names)
    assert [name for name in names if "transition" in name and name.count(".") == 1] == [
        f"features.transition{i}" for i in (1, 2, 3)
    ]
    assert names[:2] == ["features.relu0", "features.pool0"]


def test_googlenet() -> None:
    names = [name for name, *_ in described(googlenet(init_weights=False, aux_logits=False), 64)]
    assert [name for name in names if name.startswith("inception")] == [
        f"inception{i}" for i in "3a 3b 4a 4b 4c 4d 4e 5a 5b".split()
    ]
    assert not any("branch" in name for name in names)


@pytest.mark.parametrize("passive", [nn.Identity, nn.Dropout])
def test_what_hands_its_input_on_hides_no_layer(passive: Any, x: Tensor) -> None:
    """timm leaves nn.Identity wherever an option is off."""
    model = chain(nn.Conv2d(3, 4, 3), passive(), nn.Conv2d(4, 4, 3), nn.ReLU()).eval()
    model(x)
    assert list(sal.hidden_layers(model, x)) == ["1", "3"]


def test_network_without_maps_has_no_hidden_layers(x: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 5)).double()
    assert sal.hidden_layers(model, x) == {}


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_found_without_gradients_too(context: Any, network: nn.Module, x: Tensor) -> None:
    expected = sal.hidden_layers(network, x)
    with context():
        assert sal.hidden_layers(network, x) == expected
        assert sal.hidden_layers(network, x.clone()) == expected


def test_a_module_named_input_is_not_mistaken_for_the_picture(x: Tensor) -> None:
    model = nn.Sequential()
    model.add_module("input", nn.Conv2d(3, 4, 3))
    model.add_module("pool", nn.AvgPool2d(2))
    model.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)))
    model = model.double()
    assert list(sal.hidden_layers(model, x)) == ["pool"]
    assert sal.explain(model, x, 1, "input", fix=None)["input"].shape == x.shape
    with pytest.raises(ValueError, match="no layer"):
        sal.explain(model, x, 1, model.input, fix=None)


# ------------------------------------------------------------------------------------------ where the units stand


def seen_by(model: nn.Module, name: str, size: int) -> list[Tensor]:
    """By brute force, for rows and for columns: (units, 2), the first and the last pixel that a unit can see.

    NaN spreads to every unit that reads it, whatever the weights. Near the border a unit's field is cut.
    """
    module, units, caught = model.get_submodule(name), [], []
    handle = module.register_forward_hook(lambda module, args, output: caught.append(output.detach()))
    for axis in (2, 3):
        pictures = torch.zeros(size, 3, size, size, dtype=torch.float64)
        for pixel in range(size):
            pictures[pixel].select(axis - 1, pixel).fill_(torch.nan)
        with torch.no_grad():
            model(pictures)
        reached = caught.pop().isnan().any(1).any(5 - axis - 1).mT  # (units, pixels)
        last = size - 1 - reached.flip(1).int().argmax(1)
        last[~reached.any(1)] = -1  # sees nothing but padding
        units.append(torch.stack([reached.int().argmax(1), last], 1))
    handle.remove()
    return units


def check_offset(model: nn.Module, size: int, names: list[str] | None = None) -> dict[str, sal.HiddenLayer]:
    """Every unit whose field the border does not cut is centred where the layer says."""
    listed = sal.hidden_layers(model, torch.zeros(1, 3, size, size, dtype=torch.float64))
    for name in names or listed:
        layer = listed[name]
        for axis, fields in enumerate(seen_by(model, name, size)):
            width = fields[:, 1] - fields[:, 0]
            whole = width == width.max()
            assert (whole & (fields[:, 0] > 0) & (fields[:, 1] < size - 1)).any(), f"{size} px are too few for {name}"
            expected = layer.offset[axis] + layer.stride[axis] * torch.arange(len(fields))
            torch.testing.assert_close(fields.double().mean(1)[whole], expected.double()[whole], rtol=0, atol=0)
    return listed


# Those whose units do not see everything: no attention, no norm over space, no fixed size of the picture.
LOCAL = [
    name
    for name in NETWORKS
    if name not in ("in_place_vgg", "attention", "squeeze_excite", "group_norm", "instance_norm")
]


@pytest.mark.parametrize("name", LOCAL)
def test_units_are_centred_on_what_they_see(name: str) -> None:
    model = build(name)
    # LayerNorm runs on (N, H, W, C), of which no picture has a stride.
    check_offset(model, 96, ["layer2", "layer4"] if name == "layer_norm" else None)


def chain(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(2)).double()


WINDOWS = {
    "3x3 stride 2 padding 1": (nn.Conv2d(3, 4, 3, 2, 1), (0, 0), (2, 2)),
    "3x3 stride 2": (nn.Conv2d(3, 4, 3, 2), (1, 1), (2, 2)),
    "2x2 stride 2": (nn.Conv2d(3, 4, 2, 2), (0.5, 0.5), (2, 2)),
    "7x7 stride 2 padding 3": (nn.Conv2d(3, 4, 7, 2, 3), (0, 0), (2, 2)),
    "4x4 stride 4": (nn.Conv2d(3, 4, 4, 4), (1.5, 1.5), (4, 4)),
    "even kernel, padded": (nn.Conv2d(3, 4, 4, 2, 1), (0.5, 0.5), (2, 2)),
    "padded beyond the kernel": (nn.Conv2d(3, 4, 3, 1, 2), (-1, -1), (1, 1)),
    "dilated": (nn.Conv2d(3, 4, 3, 2, 1, dilation=3), (2, 2), (2, 2)),
    "asymmetric": (nn.Conv2d(3, 4, (5, 2), (1, 3), (0, 1)), (2, -0.5), (1, 3)),
    "same, even kernel": (nn.Conv2d(3, 4, (2, 4), padding="same"), (0.5, 0.5), (1, 1)),
    "reflected border": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (0, 0), (1, 1)),
    "max pool": (nn.MaxPool2d(2), (0.5, 0.5), (2, 2)),
    "overlapping max pool": (nn.MaxPool2d(3, 2, 1), (0, 0), (2, 2)),
    "dilated max pool": (nn.MaxPool2d(2, 2, dilation=3), (1.5, 1.5), (2, 2)),
    "ceiling": (nn.MaxPool2d(3, 2, ceil_mode=True), (1, 1), (2, 2)),
    "ceiling, last window in the padding": (nn.MaxPool2d(2, 2, 1, ceil_mode=True), (-0.5, -0.5), (2, 2)),
    "average pool": (nn.AvgPool2d(3, 2, 1), (0, 0), (2, 2)),
    "padded on one side": (nn.ZeroPad2d((0, 1, 2, 0)), (-2, 0), (1, 1)),
}


@pytest.mark.parametrize("case", WINDOWS)
@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_offset_and_stride_of_every_window(case: str, size: int) -> None:
    window, offset, stride = WINDOWS[case]
    model = chain(window, nn.ReLU())
    model(torch.zeros(1, 3, size, size, dtype=torch.float64))
    layer = list(check_offset(model, size).values())[0]
    assert (layer.offset, layer.stride) == (offset, stride)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_windows_add_up() -> None:
    first = nn.Conv2d(3, 4, 4, 2, 1), nn.ReLU(), nn.MaxPool2d(2, 2, ceil_mode=True)
    model = chain(*first, nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.ZeroPad2d((1, 0, 0, 0)), nn.AvgPool2d(2))
    model(torch.zeros(1, 3, 95, 95, dtype=torch.float64))
    last = list(check_offset(model, 95).values())[-1]
    # Rows: 0.5, + 0.5 * 2 for the pooling, + 1 * 4 for the convolution, + 0.5 * 8; columns: less a pad of 1 * 8.
    assert (last.offset, last.stride) == ((9.5, 1.5), (16, 16))


def test_a_resnet_is_centred_on_even_pixels() -> None:
    """Every kernel is odd and padded by half: unit (i, j) stands at pixel (s i, s j), not in the middle of its cell."""
    layers = sal.hidden_layers(resnet18(), torch.zeros(1, 3, 64, 64))
    assert {layer.offset for layer in layers.values()} == {(0, 0)}
    assert layers["layer4.1"].stride == (32, 32)


@pytest.mark.parametrize("network", ["squeeze_excite", "group_norm", "instance_norm"], indirect=True)
def test_what_sees_everything_stands_where_its_windows_put_it(network: nn.Module, x: Tensor) -> None:
    """A gate or a norm over space lets a unit see the whole picture, but its place is that of the convolutions."""
    found = [(layer.offset, layer.stride) for layer in sal.hidden_layers(network, x).values()]
    assert set(found[:-1]) == {((0, 0), (2, 2))} and found[-1] == ((0, 0), (4, 4))


class Ways(nn.Module):
    """Two ways, added."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right, self.end = left, right, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.left(x) + self.right(x))


class Merge(nn.Module):
    """Swin's patch merging: four parity classes side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)


GUESSED = {
    "adaptive pool": (nn.AdaptiveAvgPool2d(4), (3.5, 3.5), (8, 8)),
    "adaptive pool, no divisor": (nn.AdaptiveMaxPool2d(7), (0.5, 0.5), (5, 5)),  # (32 - 1 - 5 * 6) / 2
    "upsampling": (nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Upsample(scale_factor=2)), (0.5, 0.5), (2, 2)),
    "transposed": (nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ConvTranspose2d(4, 4, 2, 2)), (0.5, 0.5), (2, 2)),
    "cropping": (nn.ZeroPad2d((-3, 0, -1, 0)), (0.5, 1.5), (1, 1)),
    "patch merging": (Merge(), (0.5, 0.5), (2, 2)),
    "ways that disagree": (Ways(nn.AvgPool2d(2), nn.Conv2d(3, 3, 3, 2, 1)), (0.5, 0.5), (2, 2)),
    "ways that agree": (Ways(nn.MaxPool2d(3, 2, 1), nn.Conv2d(3, 3, 1, 2)), (0, 0), (2, 2)),
}


@pytest.mark.parametrize("case", GUESSED)
def test_units_are_spread_around_the_centre_where_no_window_tells(case: str) -> None:
    window, offset, stride = GUESSED[case]
    model = chain(window, nn.ReLU())
    model(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    *_, layer = sal.hidden_layers(model, torch.zeros(1, 3, 32, 32, dtype=torch.float64)).values()
    assert (layer.offset, layer.stride) == (offset, stride)


# ------------------------------------------------------------------------------------------------- what downsamples

KINDS = nn.ModuleDict(
    {
        "plain": nn.Conv2d(3, 4, 3),
        "two": nn.Conv2d(3, 4, 3, stride=2),
        "grouped": nn.Conv2d(4, 4, 3, stride=2, groups=2),
        "depthwise": nn.Conv2d(4, 4, 3, stride=2, groups=4),
        "dilated": nn.Conv2d(4, 4, 3, stride=2, dilation=2),
        "only_rows": nn.Conv2d(4, 4, 3, stride=(2, 1)),
        "only_columns": nn.Conv2d(4, 4, (1, 3), stride=(1, 3)),
        "patchify": nn.Conv2d(3, 4, 16, stride=16),
        "one_d": nn.Conv1d(3, 4, 3, stride=2),
        "three_d": nn.Conv3d(3, 4, 3, stride=(1, 1, 2)),
        "upsampling": nn.ConvTranspose2d(3, 4, 4, stride=2),
        "max": nn.MaxPool2d(3, 2),
        "max_default": nn.MaxPool2d(2),
        "max_columns": nn.MaxPool2d(2, (1, 2)),
        "max_in_place_size": nn.MaxPool2d(3, 1, 1),
        "max_1d": nn.MaxPool1d(2),
        "average": nn.AvgPool2d(2),
        "average_1d": nn.AvgPool1d(2),
        "average_3d": nn.AvgPool3d((1, 2, 2)),
        "average_in_place_size": nn.AvgPool2d(3, 1, 1),
        "adaptive": nn.AdaptiveAvgPool2d(1),
    }
)


def test_strided_layers_of_every_kind() -> None:
    expected = "two grouped depthwise dilated only_rows only_columns patchify one_d three_d".split()
    assert list(sal.strided_layers(KINDS)) == expected
    assert all(sal.strided_layers(KINDS)[name] is KINDS[name] for name in expected)


def test_pooling_layers_of_every_kind() -> None:
    assert list(sal.pooling_layers(KINDS)) == "max max_default max_columns max_1d average average_1d average_3d".split()


def test_subclasses_count() -> None:
    class Fixed(nn.MaxPool2d):
        pass

    class Standardised(nn.Conv2d):
        pass

    model = nn.Sequential(Fixed(2), Standardised(3, 4, 3, 2))
    assert list(sal.pooling_layers(model)) == ["0"]
    assert list(sal.strided_layers(model)) == ["1"]


def test_nothing_to_find() -> None:
    assert sal.strided_layers(nn.Conv2d(3, 4, 3)) == {}
    assert sal.pooling_layers(nn.Linear(3, 4)) == {}
