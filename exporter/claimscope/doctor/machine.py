"""What can this process see of the NVIDIA driver, and what may it do? Nothing is opened: that could wake a GPU."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from claimscope.doctor.gpu import GpuFacts
from claimscope.doctor.privileges import Privileges

_IN_POD: Final = "KUBERNETES_SERVICE_HOST"  # set in every container of a pod
_NODE: Final = re.compile(r"nvidia(ctl|\d+)")
_VERSION: Final = re.compile(r"\b\d{3,4}\.\d+(?:\.\d+)?\b")  # "... Kernel Module  580.65.06  Sun Jul 27 ..."
_MINOR: Final = re.compile(r"^DeviceFileMinor:\s*(\d+)$", re.MULTILINE)
_INJECTED: Final = re.compile(r"/libnvidia-ml\.so[.\d]* ")  # a mount point of /proc/self/mountinfo


def gpu_facts(driver_root: str | None, environment: Mapping[str, str], system: Path = Path("/")) -> GpuFacts:
    """The driver as it is seen from here; `system` is where /proc and /dev are."""
    kernel = system / "proc/driver/nvidia"
    version = _VERSION.search(_text(kernel / "version"))
    gpus = kernel / "gpus"
    return GpuFacts(
        driver_root=driver_root,
        in_pod=_IN_POD in environment,
        environment={name: value for name, value in environment.items() if name.startswith("NVIDIA_")},
        injected=_INJECTED.search(_text(system / "proc/self/mountinfo")) is not None,
        kernel_driver=version[0] if version is not None else None,
        kernel_gpus=sum(1 for _ in gpus.iterdir()) if gpus.is_dir() else None,
        nodes=device_nodes(system / "dev"),
        mig_monitor=_mig_monitor(system),
    )


def device_nodes(directory: Path) -> dict[str, int | None]:
    """The errno with which each of the driver's nodes could not be read and written, the control node first."""
    names = [path.name for path in directory.glob("nvidia*") if _NODE.fullmatch(path.name)]
    return {
        f"/dev/{name}": access_error(directory / name, os.R_OK | os.W_OK)
        for name in sorted(names, key=lambda name: (name != "nvidiactl", len(name), name))
    }


def access_error(path: Path, mode: int) -> int | None:
    """The errno of access(2), which tells the devices cgroup's EPERM from the file mode's EACCES; None: allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.access(os.fsencode(path), ctypes.c_int(mode)) == 0:
        return None
    return ctypes.get_errno()


def _mig_monitor(system: Path) -> int | None:
    """Of the capability to see every MIG device: its file tells which node stands for it."""
    file = system / "proc/driver/nvidia/capabilities/mig/monitor"
    error = access_error(file, os.R_OK)
    if error is not None:
        return error
    minor = _MINOR.search(_text(file))
    if minor is None:
        return None  # a driver without nodes for its capabilities: the file itself is the right
    return access_error(system / f"dev/nvidia-caps/nvidia-cap{minor[1]}", os.R_OK)


def privileges(environment: Mapping[str, str], system: Path = Path("/")) -> Privileges:
    """Of this process."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", _text(system / "proc/self/status"), re.MULTILINE)
    return Privileges(
        uid=os.geteuid(),
        effective=int(found[1], 16) if found is not None else 0,
        in_pod=_IN_POD in environment,
        dmesg_restricted=_text(system / "proc/sys/kernel/dmesg_restrict").strip() == "1",
    )


def _text(path: Path) -> str:
    """A file of /proc, empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM):
            return ""
        raise
