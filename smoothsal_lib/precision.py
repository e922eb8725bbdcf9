"""Sixteen bits where the processor is faster with them; elsewhere they are emulated, at a multiple of the time."""

from __future__ import annotations

import torch


def precision(device: torch.device | str) -> str:
    """``"bfloat16"`` on a device that multiplies it faster than float32, ``"float32"`` on any other.

    Args:
        device: a GPU, from NVIDIA's Ampere on, or the processor, if it has matrix tiles (AMX).
    """
    if torch.device(device).type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "bfloat16" if fast else "float32"


def fast_autocast(device: torch.device | str) -> torch.autocast:
    """A context in which float32 networks compute in :func:`precision`, for passes that need no more than that.

    Args:
        device: where they compute.
    """
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision(device) == "bfloat16")
