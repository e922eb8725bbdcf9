"""Networks to explain: the embedded ``tiny_resnet`` and torchvision's ResNets."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write a network's parameters and buffers as half-precision safetensors (half the bytes, same predictions)."""
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, path)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Read what :func:`save_weights` wrote, back into ``model`` at the model's own precision."""
    model.load_state_dict(load_file(path))
