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
