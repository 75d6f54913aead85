"""Does NVML answer here, and which GPUs does it show? Asked once, by a process made for it.

`python -m claimscope.nvml.probe [LIBRARY [DRIVER_ROOT]]` prints one JSON document and exits 0, whatever NVML said. The
one who asks sets a time limit: a broken driver can hang or crash its caller.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

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

    error: str | None = None  # what was found, where, what to do; the devices are then empty
    code: int = library.SUCCESS  # NVML's, of the error
    library_file: str | None = None  # the file that was loaded, links followed; None: none could be
    driver_version: str | None = None
    devices: tuple[ProbedDevice, ...] = ()
    lost: dict[str, str] = {}  # GPUs that are there and do not answer -> why


def probe(path: str | None, driver_root: str | None = None) -> Probe:
    """Loads NVML, lists the GPUs and lets NVML go again."""
    mapped = None
    try:
        loaded = library.load(path, driver_root)
        mapped = _mapped(loaded.path)
        library.initialise(loaded)
        driver = library.version(pynvml.nvmlSystemGetDriverVersion)
        walk = inventory.enumerate_gpus(lambda index, call: None, {}, {}, loaded.path)
    except library.LibraryError as error:
        return Probe(error=str(error), code=error.code, library_file=mapped)
    library.shut_down()
    devices = tuple(
        ProbedDevice(uuid=each.device.entity.uuid, model=each.device.model, mig_enabled=each.device.mig_enabled)
        for each in walk.found
        if each.device.entity.parent is None
    )
    unnamed = {f"index {index}": reason for index, reason in walk.unnamed.items()}
    return Probe(library_file=mapped, driver_version=driver, devices=devices, lost={**walk.lost, **unnamed})


def _mapped(name: str) -> str:
    """The file behind a library that was loaded by this name; the linker's own search is not repeated here."""
    if "/" in name:
        return os.path.realpath(name)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    files = (line.split(maxsplit=5)[-1] for line in maps.splitlines() if "/libnvidia-ml.so" in line)
    return next(files, name)


def main(arguments: Sequence[str]) -> None:
    """Prints what NVML says; an argument that is missing or empty is unset."""
    path, driver_root = ([*arguments, "", ""])[:2]
    sys.stdout.buffer.write(msgspec.json.encode(probe(path or None, driver_root or None)))


if __name__ == "__main__":
    main(sys.argv[1:])
