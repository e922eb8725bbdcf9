"""Networks to explain: the embedded ones, torchvision's, and those of the pointing game on PASCAL VOC."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import models as torchvision_models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from smoothsal_lib.capture import logits_of
from smoothsal_lib.datasets.voc import CLASSES as VOC_CLASSES
from smoothsal_lib.embedded import data_folder
from smoothsal_lib.fixes.surrogate import Surrogate

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_CATEGORIES = torchvision_models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]  # the names of its classes

EMBEDDED = ("tiny_resnet", "tissue_resnet", "glas_resnet", "tissue_pen", "tissue_segmenter")  # the first: the default
MADE_BY = {"tiny_resnet": "training.classifier", "tissue_pen": "experiments.shortcut"}
# What is published under "IMAGENET1K_V1" stays the same; "DEFAULT" would move with torchvision's version.
DOWNLOADED = {
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "resnet34": "ResNet34_Weights.IMAGENET1K_V1",
    "resnet50": "ResNet50_Weights.IMAGENET1K_V1",
    "vgg16": "VGG16_Weights.IMAGENET1K_V1",
}

CAFFE_MEAN = (123.68, 116.779, 103.939)  # of red, green and blue between 0 and 255
# What is raised for files that are damaged, besides what torch means to raise.
UNREADABLE = (
    AssertionError,
    EOFError,
    LookupError,
    RuntimeError,
    UnicodeDecodeError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)
WINDOW = 224  # what the networks of the pointing game were trained on
POSITIONS = ("mean", "log_mean_exp")
VOC_FILES = {  # beneath dl.fbaipublicfiles.com/torchray
    "vgg16": "vgg16_voc-b050e8c3.pth.tar",
    "resnet50": "resnet50_voc-9ca920d6.pth.tar",
}


def normalize(images: Tensor) -> Tensor:
    """Subtract ImageNet's mean colour and divide by its spread: ``images`` in [0, 1] to what the networks expect.

    Args:
        images: (N, 3, H, W), or one picture, (3, H, W).
    """
    mean = images.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = images.new_tensor(IMAGENET_STD).view(3, 1, 1)
    return (images - mean) / std


class _Trunk(nn.Module):
    """What the small networks of this library share: a ResNet of BasicBlocks without what follows its four stages.

    Args:
        widths: channels of the four stages.
        strides: of the four stages, each at its first block.
    """

    categories: list[str]

    def __init__(self, widths: tuple[int, int, int, int], strides: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(widths[0], widths[0], strides[0])
        self.layer2 = self._stage(widths[0], widths[1], strides[1])
        self.layer3 = self._stage(widths[1], widths[2], strides[2])
        self.layer4 = self._stage(widths[2], widths[3], strides[3])

    @staticmethod
    def _stage(c_in: int, c_out: int, stride: int) -> nn.Sequential:
        shortcut = None
        if stride != 1 or c_in != c_out:
            shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        return nn.Sequential(BasicBlock(c_in, c_out, stride, shortcut), BasicBlock(c_out, c_out))

    def _draw_convolutions(self) -> None:
        """Random weights as He et al. 2015 (arXiv 1502.01852) choose them."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """What the last stage returns, for normalised pictures (N, 3, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class TinyResNet(_Trunk):
    """A ResNet of BasicBlocks in which every downsampling is a strided convolution.

    A 3 x 3 stride-2 stem without max-pool, then four stages of two blocks; stages 2 to 4 begin with a stride of 2,
    by a 3 x 3 convolution on the main path and a 1 x 1 convolution on the shortcut (He et al. 2016, arXiv 1512.03385).

    Args:
        classes: number of outputs.
        widths: channels of the four stages.
    """

    def __init__(self, classes: int = 100, widths: tuple[int, int, int, int] = (32, 64, 160, 288)) -> None:
        super().__init__(widths, strides=(1, 2, 2, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], classes)
        self._draw_convolutions()

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, classes), for normalised pictures (N, 3, H, W) of any size."""
        return self.fc(torch.flatten(self.avgpool(self.features(x)), 1))


class DenseResNet(_Trunk):
    """:class:`TinyResNet` with an answer for every pixel: the last stage keeps its size, the total stride is 8.

    A 1 x 1 convolution takes the place of pooling and classifier, and its logits are enlarged bilinearly to the
    picture's size (as in fully convolutional networks, Long et al. 2015, arXiv 1411.4038, without their skips). To
    explain one, :func:`smoothsal_lib.explain` needs a ``region``.

    Args:
        classes: number of classes of a pixel.
        widths: channels of the four stages.
    """

    def __init__(self, classes: int = 4, widths: tuple[int, int, int, int] = (16, 32, 64, 96)) -> None:
        super().__init__(widths, strides=(1, 2, 2, 1))
        self._draw_convolutions()
        self.head = nn.Conv2d(widths[3], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, classes, H, W), for normalised pictures (N, 3, H, W) of any size."""
        scores = self.head(self.features(x))
        return F.interpolate(scores, x.shape[2:], mode="bilinear", align_corners=False)


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
    """Read what :func:`save_weights` wrote at ``path``, back into ``model`` at the model's own precision."""
    model.load_state_dict(load_file(path))


def load_model(name: str | None = None, folder: str | Path | None = None) -> nn.Module:
    """A trained network in evaluation mode, with its class names in the attribute ``categories`` (a list of str).

    All of them expect pictures that went through :func:`normalize`, as :func:`smoothsal_lib.load_photo` gives them.

    Args:
        name: ``"tiny_resnet"`` ships with the library: 100 classes, pictures of 64 to 160 px, no network needed. So do
            networks for tissue under the microscope (hematoxylin and eosin, 20x): the tumour detectors
            ``"tissue_resnet"``, trained on generated tissue, and ``"glas_resnet"``, trained on real glands, with a
            single logit (N, 1) each, whose sigmoid is the probability of a tumour; ``"tissue_pen"``, another detector,
            which has learnt a shortcut (:mod:`smoothsal_lib.experiments.shortcut`); and ``"tissue_segmenter"``, with
            logits (N, 4, H, W) for every pixel (:class:`DenseResNet`).
            ``"resnet18"``, ``"resnet34"``, ``"resnet50"`` and ``"vgg16"`` (no strided convolutions) are torchvision's:
            1,000 classes of ImageNet, made for 224 px, downloaded once and checked against the hash in the file's name.
            So is every other classifier of torchvision's by its name, with its current weights, and ``"timm/NAME"`` is
            one of timm's, if that is installed.
            ``None`` takes the environment variable ``SMOOTHSAL_MODEL``, or ``"tiny_resnet"`` where it is not set.
        folder: where the weights of an embedded network lie, in ``NAME.safetensors``; ``None`` means the files that
            ship with the library.

    Raises:
        ValueError: for an unknown name, or for weights that carry no class names.
        FileNotFoundError: when the embedded weights are missing.
        ModuleNotFoundError: for a network of timm's without timm.
        RuntimeError: when weights cannot be downloaded.
    """
    if name is None:
        name = os.environ.get("SMOOTHSAL_MODEL") or EMBEDDED[0]
    if name in EMBEDDED:
        return _load_embedded(name, Path(folder) if folder is not None else data_folder())
    if name.startswith("timm/"):
        return _load_timm(name.removeprefix("timm/"))
    if name in classifiers():
        return _load_downloaded(name)
    choices = ", ".join([*EMBEDDED, *DOWNLOADED])
    raise ValueError(f"unknown model {name!r}: choose one of {choices}, another of torchvision's, or timm/NAME")


def classifiers() -> list[str]:
    """The names of torchvision's networks that :func:`load_model` knows."""
    return torchvision_models.list_models(torchvision_models)


def _load_embedded(name: str, folder: Path) -> nn.Module:
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        command = MADE_BY.get(name, f"training.detector --model {name}")
        raise FileNotFoundError(f"no {path.name} in {str(folder)!r}: python -m smoothsal_lib.{command} makes it")
    kind, last = (DenseResNet, "head") if name == "tissue_segmenter" else (TinyResNet, "fc")
    with safe_open(path, framework="pt") as file:
        names = json.loads((file.metadata() or {}).get("categories", "[]"))
        widths = [file.get_slice(f"layer{i}.0.conv1.weight").get_shape()[0] for i in (1, 2, 3, 4)]
        classes = file.get_slice(f"{last}.bias").get_shape()[0]
    if len(names) != classes:
        raise ValueError(
            f"{str(path)!r} names {len(names)} categories for {classes} outputs: write it with save_weights"
        )
    model = kind(classes, tuple(widths))
    load_weights(model, path)
    model.categories = [synonyms.split(",")[0] for synonyms in names]  # "tabby, tabby cat" is shown as "tabby"
    return model.eval()


def _load_downloaded(name: str) -> nn.Module:
    every = torchvision_models.get_model_weights(name)
    weights = torchvision_models.get_weight(DOWNLOADED[name]) if name in DOWNLOADED else every.DEFAULT
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network, no room on the disk, or a hash that does not match
        raise _not_downloaded(name, error) from None
    model = torchvision_models.get_model(name, **_options(name, weights))
    model.load_state_dict(state)
    transforms = weights.transforms()
    model = _renormalised(model, transforms.mean, transforms.std)
    model.categories = list(weights.meta["categories"])
    return model.eval()


def _options(name: str, weights: Any) -> dict[str, Any]:
    """What torchvision sets where it loads weights itself, and not where it makes a network by its name alone."""
    if name in ("googlenet", "inception_v3"):  # trained elsewhere, with another mean and spread
        return {"transform_input": True, "init_weights": False}
    if name.startswith("vit_"):  # made for pictures of one size
        return {"image_size": weights.meta["min_size"][0]}
    return {}


def _not_downloaded(name: str, error: Exception) -> RuntimeError:
    reason = " ".join(str(error).split())
    alternative = f"the embedded load_model({EMBEDDED[0]!r}) needs no network"
    return RuntimeError(f"the weights of {name} could not be downloaded ({reason}); {alternative}")


class Renormalised(nn.Module):
    """A network that was trained with another mean and spread, for pictures that went through :func:`normalize`.

    Args:
        network: what is asked; its layers are named ``network....``.
        mean: of red, green and blue between 0 and 1, that the network expects to be subtracted.
        std: by which it expects pictures to be divided.
    """

    categories: list[str]

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, classes), for normalised pictures (N, 3, H, W)."""
        own = [x.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_STD, IMAGENET_MEAN, self.mean, self.std)]
        return self.network((x * own[0] + own[1] - own[2]) / own[3])


def _renormalised(model: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """The network itself where it expects what :func:`normalize` gives."""
    usual = (tuple(mean), tuple(std)) == (IMAGENET_MEAN, IMAGENET_STD)
    return model if usual else Renormalised(model, mean, std)


def _load_timm(name: str) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"load_model('timm/{name}') needs timm: pip install timm") from None
    if not timm.is_model(name):
        raise ValueError(f"unknown model 'timm/{name}': timm.list_models() lists its names")
    try:
        model: Any = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise _not_downloaded(f"timm/{name}", error) from None
    classes = getattr(model, "num_classes", None)
    model = _renormalised(model, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    if classes == len(IMAGENET_CATEGORIES):
        model.categories = list(IMAGENET_CATEGORIES)
    return model.eval()


def caffe_pixels(x: Tensor) -> Tensor:
    """Normalised pictures (N, 3, H, W) as Caffe's networks expect them: 0 to 255 minus :data:`CAFFE_MEAN`, still RGB.

    To fold this into the first convolution would be wrong at the border: its padding is zero behind the subtraction.
    """
    mean, std, caffe = (x.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD, CAFFE_MEAN))
    return x * (255 * std) + (255 * mean - caffe)


def check_positions(positions: str) -> str:
    """Return ``positions``; raise a one-line ``ValueError`` for what is none of :data:`POSITIONS`."""
    if positions not in POSITIONS:
        raise ValueError(f"unknown positions {positions!r}: choose one of {', '.join(POSITIONS)}")
    return positions


def over_positions(scores: Tensor, positions: str) -> Tensor:
    """Scores (N, classes, h, w) of every window of a picture to logits (N, classes)."""
    if positions == "mean":
        return scores.mean((2, 3))
    return scores.flatten(2).logsumexp(2) - math.log(scores.shape[2] * scores.shape[3])


def check_window(x: Tensor) -> Tensor:
    """Return pictures (N, C, H, W); raise a one-line ``ValueError`` for some that are smaller than one window."""
    if min(x.shape[2:]) < WINDOW:
        raise ValueError(f"expected pictures of at least {WINDOW} x {WINDOW} pixels, got {tuple(x.shape[2:])}")
    return x


class CaffeVGG16(nn.Module):
    """The VGG16 of the pointing game (Zhang et al. 2016, arXiv 1608.00507): converted from Caffe, fully convolutional.

    It differs from torchvision's in the pixels it expects (:func:`caffe_pixels`, which it calls itself) and in poolings
    that round up. Layers are named as in torchvision. The classifier sees every window of 7 x 7 places that a larger
    picture has, one in one of 224 pixels.

    Args:
        positions: what becomes of the windows' scores, see :func:`load_voc_model`.
    """

    categories: list[str]

    def __init__(self, positions: str = "mean") -> None:
        super().__init__()
        self.positions = check_positions(positions)
        self.features = torchvision_models.vgg16(num_classes=1, init_weights=False).features
        for module in self.features:
            if isinstance(module, nn.MaxPool2d):
                module.ceil_mode = True
        self.classifier = nn.Sequential(
            nn.Conv2d(512, 4096, 7),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Conv2d(4096, 4096, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Conv2d(4096, len(VOC_CLASSES), 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, 20), for normalised pictures (N, 3, H, W) of at least 224 pixels a side."""
        scores = self.classifier(self.features(caffe_pixels(check_window(x))))
        return over_positions(scores, self.positions)


class CaffeResNet50(ResNet):
    """The ResNet50 of the pointing game (TorchRay, Fong et al. 2019, arXiv 1910.08485): converted from Caffe.

    It differs from torchvision's in the pixels it expects (:func:`caffe_pixels`, which it calls itself), a bias in the
    first convolution, a max-pooling without padding that rounds up, and the strides of stages 2 to 4, which the first
    1 x 1 convolution of a stage has instead of the 3 x 3 one. Layers are named as in torchvision. The classifier sees
    the mean of every window of 7 x 7 places that a larger picture has, one in one of 224 pixels.

    Args:
        positions: what becomes of the windows' scores, see :func:`load_voc_model`.
    """

    categories: list[str]

    def __init__(self, positions: str = "mean") -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3], num_classes=len(VOC_CLASSES))
        self.positions = check_positions(positions)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        for stage in (self.layer2, self.layer3, self.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        self.avgpool = nn.AvgPool2d(7, stride=1)
        self.fc = nn.Conv2d(2048, len(VOC_CLASSES), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, 20), for normalised pictures (N, 3, H, W) of at least 224 pixels a side."""
        x = self.relu(self.bn1(self.conv1(caffe_pixels(check_window(x)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.maxpool(x)))))
        return over_positions(self.fc(self.avgpool(x)), self.positions)


def load_voc_model(arch: str, weights: str | Path, positions: str = "mean") -> nn.Module:
    """A network of the pointing game on PASCAL VOC, in evaluation mode, with its 20 class names in ``categories``.

    It takes what every network of this library takes, pictures that went through :func:`normalize`, and gives logits
    (N, 20), one independent yes or no a class.

    Args:
        arch: ``"vgg16"`` or ``"resnet50"``.
        weights: a file that torch saved. Either the published checkpoint, converted from Caffe (:data:`VOC_FILES` of
            TorchRay, see :class:`CaffeVGG16` and :class:`CaffeResNet50`), or the state of torchvision's network with 20
            outputs, which is then loaded as it is.
        positions: how a picture larger than 224 pixels, in which the published networks have several scores for each
            class, one for every window of that size at a stride of 32, comes by one logit. ``"mean"`` of them; or
            ``"log_mean_exp"``, log(mean(exp)), whose gradient prefers the windows with the higher scores by their
            softmax, as TorchRay does in the pointing game, and for which there is no DeepLift. torchvision's networks
            pool adaptively instead.

    Raises:
        ValueError: for an unknown name, or a file that is none of these.
        FileNotFoundError: when there is no such file.
    """
    if arch not in VOC_FILES:
        raise ValueError(f"unknown network {arch!r}: choose one of {', '.join(VOC_FILES)}")
    check_positions(positions)
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights {str(path)!r}: {VOC_FILES[arch]} is published beneath dl.fbaipublicfiles.com/torchray"
        )
    state, what = read_state(path), f"{arch} with {len(VOC_CLASSES)} outputs"
    model: Any
    if arch == "vgg16" and "classifier.2.weight" in state:
        # torchvision counts the dropout layers, Caffe does not.
        renamed = {"classifier.2": "classifier.3", "classifier.4": "classifier.6"}
        state = {re.sub(r"^classifier\.[24]", lambda old: renamed[old[0]], key): value for key, value in state.items()}
        model = CaffeVGG16(positions)
        load_checked(model, as_convolutions(state, model), what, path)
        model.features[0].weight.data = model.features[0].weight.data.flip(1)  # from BGR, Caffe's order, to RGB
    elif arch == "resnet50" and "bn1.0.running_mean" in state:
        # Caffe normalises in one layer and rescales in another, which torch has in one.
        state = {re.sub(r"\b(bn\d|downsample\.1)\.[01]\.", r"\1.", key): value for key, value in state.items()}
        model = CaffeResNet50(positions)
        load_checked(model, as_convolutions(state, model), what, path)
        model.conv1.weight.data = model.conv1.weight.data.flip(1)
    else:
        model = torchvision_models.get_model(arch, num_classes=len(VOC_CLASSES))
        load_checked(model, state, what, path)
    model.categories = list(VOC_CLASSES)
    return model.eval()


def read_state(path: Path, inside: Sequence[str] = ()) -> Mapping[str, Tensor]:
    """The names and tensors that torch saved in a file.

    Args:
        path: of a state dict, or of a TorchScript archive.
        inside: keys under which a checkpoint may hold its state dict.

    Raises:
        ValueError: for any other file.
    """
    try:
        if _is_torchscript(path):
            return torch.jit.load(path, map_location="cpu").state_dict()
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE:
        raise ValueError(f"{path.name} is no file that torch.load(weights_only=True) can read") from None
    for key in inside:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path.name} holds no state dict: expected names and tensors")
    return state


def _is_torchscript(path: Path) -> bool:
    """Whether the file is an archive of a scripted network, which only ``torch.jit.load`` reads."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def as_convolutions(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights of linear layers in the shape of the convolutions that ``model`` has for them."""
    shapes = {name: value.shape for name, value in model.state_dict().items() if name.startswith(("classifier", "fc"))}
    return {
        name: value.reshape(shapes[name]) if name in shapes and shapes[name].numel() == value.numel() else value
        for name, value in state.items()
    }


def load_checked(model: nn.Module, state: Mapping[str, Tensor], what: str, path: Path) -> None:
    """Load weights that must fit; torch's own message has a line for every tensor that does not.

    Args:
        model: written to.
        state: names and tensors.
        what: to call the network in an error.
        path: to name there.

    Raises:
        ValueError: for the first tensor that is lacking, foreign or of another shape.
    """
    expected = model.state_dict()
    lacking = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    foreign = [name for name in state if name not in expected]
    wrong = [name for name, value in state.items() if name in expected and value.shape != expected[name].shape]
    if lacking:
        problem = f"it has no {lacking[0]!r}"
    elif foreign:
        problem = f"it has {foreign[0]!r}"
    elif wrong:
        problem = f"{wrong[0]!r} is {tuple(state[wrong[0]].shape)} instead of {tuple(expected[wrong[0]].shape)}"
    else:
        model.load_state_dict(dict(state))
        return
    raise ValueError(f"{path.name} does not fit a {what}: {problem}")


def load_surrogate(name: str = EMBEDDED[0]) -> Surrogate:
    """The fitted bilinear surrogate that ships with the library: a fix for the embedded network of that name.

    Raises:
        ValueError: for a network that has none here.
        FileNotFoundError: when the embedded file is missing.
    """
    if name not in EMBEDDED:
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
        k: how many classes. A detector with a single logit has one answer, the sigmoid probability of what it detects,
            however many are asked for.

    Returns:
        A list of N lists of k pairs (name, probability between 0 and 1).

    Raises:
        ValueError: when x is not of shape (N, C, H, W), the network returns no logits (N, classes), or k is not between
            1 and the number of classes.
    """
    if x.ndim != 4:
        raise ValueError(f"expected images of shape (N, C, H, W), got {tuple(x.shape)}")
    probabilities = class_probabilities(model, x)
    classes = probabilities.shape[1]
    if k < 1 or 1 < classes < k:
        raise ValueError(f"k = {k} is not between 1 and the network's {classes} classes")
    found = probabilities.topk(min(k, classes), dim=1)
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [[(category(model, i), p) for i, p in zip(indices, values, strict=True)] for indices, values in pairs]


def class_probabilities(model: nn.Module, x: Tensor) -> Tensor:
    """(N, classes): the softmax of a classifier's logits, or the sigmoid of a detector's single one.

    The network answers in evaluation mode, and is left as it was.
    """
    logits = logits_of(model, x)
    return logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()


def category(model: nn.Module, target: int) -> str:
    """What a class is called: its name among the network's ``categories``, or "class 3" where it has none."""
    names = getattr(model, "categories", None)
    return str(names[target]) if names else f"class {target}"
