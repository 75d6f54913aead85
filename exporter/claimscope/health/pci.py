"""Which NVIDIA GPUs are on this machine's PCI bus, and which driver has each?

NVML names only what its own driver has. The kernel knows a board that was taken out from one that fell silent, and one
that was handed to a virtual machine from one that is lost.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DEVICES: Final = Path("/sys/bus/pci/devices")
NVIDIA_DRIVER: Final = "nvidia"
_NVIDIA_VENDOR: Final = "0x10de"
_DISPLAY_CLASS: Final = "0x03"  # base class of display controllers, of which a GPU without outputs is one (0x0302)


def gpus_on_bus(devices: Path = DEVICES) -> Mapping[str, str] | None:
    """Address of each NVIDIA GPU -> its driver, "" where it has none; None where that cannot be read."""
    found: dict[str, str] = {}
    try:
        for name in os.listdir(devices):
            device = devices / name
            if not (device / "class").read_text("ascii").startswith(_DISPLAY_CLASS):
                continue
            if (device / "vendor").read_text("ascii").strip() == _NVIDIA_VENDOR:
                found[name.lower()] = _driver(device)
    except (OSError, UnicodeDecodeError):
        return None
    return found


def _driver(device: Path) -> str:
    try:
        return os.path.basename(os.readlink(device / "driver"))
    except FileNotFoundError:
        return ""
