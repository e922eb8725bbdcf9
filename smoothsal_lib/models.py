"""Networks to explain: the embedded ``tiny_resnet`` and torchvision's ResNets."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import models as torchvision_models
from torchvision.models.resnet import BasicBlock

from smoothsal_lib.embedded import data_folder
from smoothsal_lib.fixes.surrogate import Surrogate
from smoothsal_lib.state import preserved

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

EMBEDDED = "tiny_resnet"
# What is published under "IMAGENET1K_V1" stays the same; "DEFAULT" would move with torchvision's version.
DOWNLOADED = {
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "resnet34": "ResNet34_Weights.IMAGENET1K_V1",
    "resnet50": "ResNet50_Weights.IMAGENET1K_V1",
}


def normalize(images: Tensor) -> Tensor:
    """Subtract ImageNet's mean colour and divide by its spread: (N, 3, H, W) in [0, 1] to what the networks expect."""
    mean = images.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = images.new_tensor(IMAGENET_STD).view(3, 1, 1)
    return (images - mean) / std


class TinyResNet(nn.Module):
    """A ResNet of BasicBlocks in which every downsampling is a strided convolution.

    A 3 x 3 stride-2 stem without max-pool, then four stages of two blocks; stages 2 to 4 begin with a stride of 2,
    by a 3 x 3 convolution on the main path and a 1 x 1 convolution on the shortcut (He et al. 2016, arXiv 1512.03385).

    Args:
        classes: number of outputs.
        widths: channels of the four stages.
    """

    categories: list[str]

    def __init__(self, classes: int = 100, widths: tuple[int, int, int, int] = (32, 64, 160, 288)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(widths[0], widths[0], stride=1)
        self.layer2 = self._stage(widths[0], widths[1], stride=2)
        self.layer3 = self._stage(widths[1], widths[2], stride=2)
        self.layer4 = self._stage(widths[2], widths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(c_in: int, c_out: int, stride: int) -> nn.Sequential:
        shortcut = None
        if stride != 1:
            shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        return nn.Sequential(BasicBlock(c_in, c_out, stride, shortcut), BasicBlock(c_out, c_out))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, classes), for normalised pictures (N, 3, H, W) of any size."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def save_weights(model: nn.Module, path: str | Path, categories: Sequence[str] = ()) -> None:
    """Write a network's parameters and buffers as half-precision safetensors (half the bytes, same predictions).

    Args:
        model: the network.
        path: the file to write.
        categories: the names of its classes, in the order of its outputs; they go into the file's metadata.
    """
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    metadata = {"categories": json.dumps(list(categories))} if categories else None
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Read what :func:`save_weights` wrote, back into ``model`` at the model's own precision."""
    model.load_state_dict(load_file(path))


def load_model(name: str | None = None, folder: str | Path | None = None) -> nn.Module:
    """A trained network in evaluation mode, with its class names in the attribute ``categories`` (a list of str).

    All of them expect pictures that went through :func:`normalize`, as :func:`smoothsal_lib.load_photo` gives them.

    Args:
        name: ``"tiny_resnet"`` ships with the library: 100 classes, pictures of 64 to 160 px, no network needed.
            ``"resnet18"``, ``"resnet34"`` and ``"resnet50"`` are torchvision's: 1,000 classes of ImageNet, made for
            224 px, downloaded once and checked against the hash in the file's name. ``None`` takes the environment
            variable ``SMOOTHSAL_MODEL``, or ``"tiny_resnet"`` where it is not set.
        folder: where ``tiny_resnet.safetensors`` lies; ``None`` means the file that ships with the library.

    Raises:
        ValueError: for an unknown name, or for weights that carry no class names.
        FileNotFoundError: when the embedded weights are missing.
        RuntimeError: when weights cannot be downloaded.
    """
    if name is None:
        name = os.environ.get("SMOOTHSAL_MODEL") or EMBEDDED
    if name == EMBEDDED:
        return _load_embedded(Path(folder) if folder is not None else data_folder())
    if name in DOWNLOADED:
        return _load_downloaded(name)
    raise ValueError(f"unknown model {name!r}: choose one of {', '.join([EMBEDDED, *DOWNLOADED])}")


def _load_embedded(folder: Path) -> nn.Module:
    path = folder / f"{EMBEDDED}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {str(folder)!r}: python -m smoothsal_lib.training.classifier makes it"
        )
    with safe_open(path, framework="pt") as file:
        names = json.loads((file.metadata() or {}).get("categories", "[]"))
        widths = [file.get_slice(f"layer{i}.0.conv1.weight").get_shape()[0] for i in (1, 2, 3, 4)]
        classes = file.get_slice("fc.bias").get_shape()[0]
    if len(names) != classes:
        raise ValueError(
            f"{str(path)!r} names {len(names)} categories for {classes} outputs: write it with save_weights"
        )
    model = TinyResNet(classes, tuple(widths))
    load_weights(model, path)
    model.categories = [synonyms.split(",")[0] for synonyms in names]  # "tabby, tabby cat" is shown as "tabby"
    return model.eval()


def _load_downloaded(name: str) -> nn.Module:
    weights = torchvision_models.get_weight(DOWNLOADED[name])
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network, no room on the disk, or a hash that does not match
        reason = " ".join(str(error).split())
        alternative = f"the embedded load_model({EMBEDDED!r}) needs no network"
        raise RuntimeError(f"the weights of {name} could not be downloaded ({reason}); {alternative}") from None
    model = torchvision_models.get_model(name)
    model.load_state_dict(state)
    model.categories = list(weights.meta["categories"])
    return model.eval()


def load_surrogate(name: str = EMBEDDED) -> Surrogate:
    """The fitted bilinear surrogate that ships with the library: a fix for the embedded network of the same name.

    Raises:
        ValueError: for a network that has none here.
        FileNotFoundError: when the embedded file is missing.
    """
    if name != EMBEDDED:
        raise ValueError(f"no surrogate of {name!r} ships with the library: fit one with fit_surrogate(model, images)")
    path = data_folder() / f"{name}_surrogate.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {str(path.parent)!r}: make one with fit_surrogate(...).save(path)")
    return Surrogate.load(path)


@torch.no_grad()
def top_classes(model: nn.Module, x: Tensor, k: int = 5) -> list[list[tuple[str, float]]]:
    """What the network sees: for every image its k most probable classes, the most probable first.

    Args:
        model: a network with logits (N, classes); without ``categories`` its classes are called "class 0", "class 1"...
        x: (N, 3, H, W), normalised.
        k: how many classes.

    Returns:
        A list of N lists of k pairs (name, probability between 0 and 1).

    Raises:
        ValueError: when x is not of shape (N, C, H, W), or k is not between 1 and the number of classes.
    """
    if x.ndim != 4:
        raise ValueError(f"expected images of shape (N, C, H, W), got {tuple(x.shape)}")
    with preserved(model):
        probabilities = model(x.clone()).softmax(1)  # a network may work in place
    if not 1 <= k <= probabilities.shape[1]:
        raise ValueError(f"k = {k} is not between 1 and the network's {probabilities.shape[1]} classes")
    names = getattr(model, "categories", None) or [f"class {i}" for i in range(probabilities.shape[1])]
    found = probabilities.topk(k, dim=1)
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [[(names[i], p) for i, p in zip(indices, values, strict=True)] for indices, values in pairs]
