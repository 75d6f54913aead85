"""Does NVML answer here, and which GPUs does it show? Asked once, by a process made for it.

`python -m claimscope.nvml.probe [LIBRARY]` prints one JSON document and exits 0, whatever NVML said. The one who asks
sets a time limit: a broken driver can hang or crash its caller.
"""

from __future__ import annotations

import sys

import msgspec
import pynvml

from claimscope.nvml import inventory, library


class ProbedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU."""

    uuid: str
    model: str | None = None
    mig_enabled: bool = False


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What NVML said."""

    error: str | None = None  # what was found, where, what to do; the rest is then empty
    driver_version: str | None = None
    devices: tuple[ProbedDevice, ...] = ()
    lost: dict[str, str] = {}  # GPUs that are there and do not answer -> why


def probe(path: str | None) -> Probe:
    """Loads NVML, lists the GPUs and lets NVML go again."""
    try:
        loaded = library.load(path)
        library.initialise(loaded)
        driver = library.version(pynvml.nvmlSystemGetDriverVersion)
        walk = inventory.enumerate_gpus(lambda index, call: None, {}, {}, loaded.path)
    except library.LibraryError as error:
        return Probe(error=str(error))
    library.shut_down()
    devices = tuple(
        ProbedDevice(uuid=each.device.entity.uuid, model=each.device.model, mig_enabled=each.device.mig_enabled)
        for each in walk.found
        if each.device.entity.parent is None
    )
    unnamed = {f"index {index}": reason for index, reason in walk.unnamed.items()}
    return Probe(driver_version=driver, devices=devices, lost={**walk.lost, **unnamed})


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(probe(sys.argv[1] if len(sys.argv) > 1 else None)))
