"""What stands in for one strided convolution: two convolutions of stride 1 with a bilinear resize between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Geometry:
    """What a stage must know of the strided convolution it stands for.

    Attributes:
        channels: (C_in, C_out).
        groups: number of channel groups.
        kernel: of the strided convolution, (rows, columns), as the next three; they decide the output's size.
        stride: as above.
        padding: as above.
        dilation: as above.
    """

    channels: tuple[int, int]
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Geometry:
        """The geometry of an existing convolution."""
        padding = (0, 0) if isinstance(conv.padding, str) else conv.padding  # with a stride only "valid" is allowed
        channels = (conv.in_channels, conv.out_channels)
        return cls(channels, conv.groups, conv.kernel_size, conv.stride, padding, conv.dilation)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Geometry:
        """Undo ``dataclasses.asdict`` after a detour through JSON, which turns tuples into lists."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**fields)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """(H, W) of the strided convolution's output for an input of ``size`` (H, W)."""
        axes = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)


class Stage(nn.Module):
    """Conv 3 x 3, stride 1 -> bilinear resize -> conv 3 x 3, stride 1: what stands in for one strided convolution.

    Args:
        geometry: of the strided convolution; the result has the size that its output has.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        c_in, c_out = geometry.channels
        self.before = nn.Conv2d(c_in, c_out, 3, padding=1, groups=geometry.groups)
        self.after = nn.Conv2d(c_out, c_out, 3, padding=1, groups=geometry.groups)

    def resize(self, z: Tensor) -> Tensor:
        """Shrink (N, C, H, W) bilinearly to the strided convolution's output size.

        At a factor of exactly 2 this is 2 x 2 average pooling. Beyond 2, plain bilinear interpolation still mixes only
        four neighbours and would never look at the positions between them; there the kernel is widened (antialias).
        """
        size = self.geometry.output_size(z.shape[-2:])
        factor = max(n / m for n, m in zip(z.shape[-2:], size, strict=True))
        if factor <= 2:
            return F.interpolate(z, size, mode="bilinear", align_corners=False)
        exact = z if z.dtype in (torch.float32, torch.float64) else z.float()  # the CPU has no antialias below 32 bits
        return F.interpolate(exact, size, mode="bilinear", align_corners=False, antialias=True).to(z.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W'), the shape of the strided convolution's output."""
        return self.after(self.resize(self.before(x)))

    def extra_repr(self) -> str:
        """How many times fewer rows and columns come out."""
        return f"stride={self.geometry.stride}"
