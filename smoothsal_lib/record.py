"""What a stored number needs beside it: the command, the versions, the device and the day that made it."""

from __future__ import annotations

import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch


def provenance(command: str, device: torch.device | str, processes: int = 1) -> dict[str, object]:
    """The fields that every file in ``data/results`` begins with.

    Args:
        command: the module, or the module and options, that ``python -m`` runs.
        device: where the numbers were computed.
        processes: how many computed them together, each on such a device.
    """
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "command": f"python -m {command}",
        "versions": {name: version(name) for name in ("torch", "torchvision", "numpy")},
        "device": name if processes == 1 else f"{processes} processes, each on {name}",
        "date": date.today().isoformat(),
    }


def _processor() -> str:
    """The processor's name, as the operating system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {torch.get_num_threads()} threads"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
