"""Small networks to test on, one for every trait that has broken an explanation library before: seeded, float64."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 5


class Functional(nn.Module):
    """Calls ``F.relu``, which no hook on modules can see."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.head(F.relu(self.second(x)).mean((2, 3)))


class ReusedReLU(Functional):
    """One ReLU module, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        return self.head(self.relu(self.second(x)).mean((2, 3)))


class Block(nn.Module):
    """torchvision's BasicBlock: one in-place ReLU used twice, in-place addition, 1 x 1 strided shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return self.relu(out)


class SqueezeExcite(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(c, 2, 1), nn.Conv2d(2, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Attention(nn.Module):
    """Every position attends to every other, residually, on maps (N, C, H, W)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(c)
        self.attend = nn.MultiheadAttention(c, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        mixed = self.attend(tokens, tokens, tokens, need_weights=False)[0]
        return x + mixed.transpose(1, 2).view_as(x)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a map, as ConvNeXt has it."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(c)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Dense(nn.Module):
    """Concatenates its input with what it computes, as DenseNet does."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(c), nn.Conv2d(c, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def _chain(*layers: nn.Module, width: int) -> nn.Sequential:
    """The layers, then a global mean and a linear classifier on ``width`` channels."""
    named = OrderedDict((f"layer{i}", layer) for i, layer in enumerate(layers))
    return nn.Sequential(
        named | OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), head=nn.Linear(width, CLASSES))
    )


def _normed(norm: nn.Module) -> nn.Sequential:
    return _chain(nn.Conv2d(3, 8, 3, 2, 1), norm, nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.GELU(), width=8)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "functional": Functional,
    "reused_relu": ReusedReLU,
    "in_place_vgg": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 16, 8),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(8, CLASSES),
    ),
    "residual": lambda: _chain(
        nn.Conv2d(3, 4, 3, 2, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Sequential(Block(4, 4), Block(4, 6, 2)),
        Block(6, 8, 2),
        width=8,
    ),
    "overlapping_max_pool": lambda: _chain(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 6, 3), nn.ReLU(), width=6
    ),
    "average_pool": lambda: _chain(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 3, 2), nn.SiLU(), width=6
    ),
    "squeeze_excite": lambda: _chain(
        nn.Conv2d(3, 6, 3, 2, 1), nn.Hardswish(), SqueezeExcite(6), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU6(), width=6
    ),
    "attention": lambda: _chain(nn.Conv2d(3, 8, 4, 4), Attention(8), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), width=8),
    "layer_norm": lambda: _normed(ChannelNorm(8)),
    "group_norm": lambda: _normed(nn.GroupNorm(2, 8)),
    "instance_norm": lambda: _normed(nn.InstanceNorm2d(8, affine=True)),
    "local_response_norm": lambda: _normed(nn.LocalResponseNorm(5, alpha=0.5)),
    "dense": lambda: _chain(nn.Conv2d(3, 4, 3, 2, 1), Dense(4), Dense(8), nn.AvgPool2d(2), nn.ReLU(), width=12),
    "grouped": lambda: _chain(
        nn.Conv2d(3, 6, 3, 2, 1, groups=3), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1, groups=2), width=6
    ),
    "depthwise": lambda: _chain(nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Conv2d(6, 6, 3, 2, 1, groups=6), nn.ReLU(), width=6),
    "dilated": lambda: _chain(nn.Conv2d(3, 4, 3, 2, 2, dilation=2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), width=4),
    "asymmetric": lambda: _chain(
        nn.Conv2d(3, 4, (3, 5), (1, 2), (1, 2)), nn.ReLU(), nn.Conv2d(4, 4, (1, 2), (2, 1)), nn.ReLU(), width=4
    ),
    "stride_3": lambda: _chain(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, 3), nn.ReLU(), width=4),
    "stride_4": lambda: _chain(nn.Conv2d(3, 4, 7, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), width=4),
    "patchify": lambda: _chain(nn.Conv2d(3, 6, 4, 4), nn.GELU(), nn.Conv2d(6, 6, 2, 2), nn.GELU(), width=6),
}


def build(name: str) -> nn.Module:
    """One of :data:`NETWORKS` in evaluation mode; the same weights every time, no normalisation at its start value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NETWORKS[name]().double().eval()
        for tensor_name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.ndim == 1:
                low, high = (0.5, 1.5) if "weight" in tensor_name or "var" in tensor_name else (-0.3, 0.3)
                tensor.data.uniform_(low, high)
    return model
