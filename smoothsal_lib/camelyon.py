"""The tumour detector of the paper's Camelyon16 experiments, which MONAI publishes, in plain torch.

    model = sal.load_camelyon_model("model.pt")
    model(x)  # (N, 1), x normalised like all pictures of this library

It is the bundle ``pathology_tumor_detection`` of MONAI's model zoo: a ResNet18 whose last layer is a 1 x 1 convolution,
trained on patches of 224 pixels of Camelyon16's lymph nodes at 40x.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from smoothsal_lib.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    as_convolutions,
    check_positions,
    check_window,
    load_checked,
    over_positions,
    read_state,
)

BUNDLE = "pathology_tumor_detection"
# MONAI keeps torchvision's layers in a sequence; those without parameters have a number too.
_STAGES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def signed_pixels(x: Tensor) -> Tensor:
    """Normalised pictures ``x`` (N, 3, H, W) as the network expects them: black is -1 and white is 1."""
    mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return x * (2 * std) + (2 * mean - 1)


class CamelyonResNet18(ResNet):
    """ResNet18 with a single logit, the tumour's, fully convolutional; layers are named as in torchvision.

    It differs from torchvision's in the pixels it expects (:func:`signed_pixels`, which it calls itself) and in what
    follows the last stage: the mean of every window of 7 x 7 places that a larger picture has, one in one of 224
    pixels, and a 1 x 1 convolution.

    Args:
        positions: what becomes of the windows' scores, see :func:`load_camelyon_model`.
    """

    categories: list[str]

    def __init__(self, positions: str = "mean") -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=1)
        self.positions = check_positions(positions)
        self.avgpool = nn.AvgPool2d(7, stride=1)
        self.fc = nn.Conv2d(512, 1, 1)
        self.categories = ["tumour"]

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, 1), for normalised pictures (N, 3, H, W) of at least 224 pixels a side."""
        x = self.relu(self.bn1(self.conv1(signed_pixels(check_window(x)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.maxpool(x)))))
        return over_positions(self.fc(self.avgpool(x)), self.positions)


def load_camelyon_model(weights: str | Path, positions: str = "mean") -> nn.Module:
    """The tumour detector of MONAI's bundle ``pathology_tumor_detection``, in evaluation mode.

    It takes what every network of this library takes, pictures that went through
    :func:`smoothsal_lib.models.normalize`, and gives logits (N, 1), the tumour's, whose sigmoid is the probability.

    Args:
        weights: the bundle's ``models/model.pt`` or ``models/model.ts``: a state dict, alone or under ``"model"`` or
            ``"state_dict"`` in a checkpoint, or a TorchScript archive. Names may be MONAI's or torchvision's.
        positions: how a picture larger than 224 pixels, for which the published network gives a map of scores, one for
            every window of that size at a stride of 32, comes by one logit: ``"mean"`` of them, or ``"log_mean_exp"``,
            log(mean(exp)), which follows the highest and has no DeepLift.

    Raises:
        ValueError: for unknown positions, or a file that is none of these.
        FileNotFoundError: when there is no such file.
    """
    model = CamelyonResNet18(positions)
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no weights {str(path)!r}: MONAI's bundle {BUNDLE} has them in models/model.pt")
    state = {_renamed(name): value for name, value in read_state(path, ("model", "state_dict")).items()}
    load_checked(model, as_convolutions(state, model), "resnet18 with 1 output", path)
    return model.eval()


def _renamed(name: str) -> str:
    """MONAI's name of a tensor as torchvision's: ``features.4.0.conv1.weight`` is ``layer1.0.conv1.weight``."""
    name = name.removeprefix("module.")  # which training on several GPUs puts in front
    return re.sub(r"^features\.(\d+)\b", lambda found: _STAGES.get(found[1], found[0]), name)
