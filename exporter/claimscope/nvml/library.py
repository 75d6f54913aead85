"""Which libnvidia-ml is loaded, and what to say where it cannot be used?

pynvml loads the library by itself under one fixed name. Here it is told which file to use, in `load`, and nowhere
else are pynvml's module globals written. The sampler's hot path has a second `ctypes.CDLL` of the same file, so that
the C functions it binds are not those whose restype and argtypes pynvml changes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pynvml

from claimscope.nvml.driver_root import DIRECTORIES, LIBRARY, find_library

Handle: TypeAlias = Any  # what pynvml gives for a device, an event set or a sample; pynvml has no types

DEFAULT_NAME = LIBRARY

# nvmlReturn_t, nvml.h
SUCCESS = 0
UNINITIALIZED = 1
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
INSUFFICIENT_SIZE = 7
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
RESET_REQUIRED = 16
LIB_RM_VERSION_MISMATCH = 18
ARGUMENT_VERSION_MISMATCH = 25
GPU_NOT_FOUND = 28
UNKNOWN = 999

DRIVER_GONE = frozenset({UNINITIALIZED, DRIVER_NOT_LOADED, LIB_RM_VERSION_MISMATCH})
GPU_GONE = frozenset({GPU_IS_LOST, RESET_REQUIRED, GPU_NOT_FOUND})
NEVER_ANSWERED = frozenset({INVALID_ARGUMENT, NOT_SUPPORTED, FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH})

GONE_WORDS = {
    GPU_IS_LOST: "the GPU has fallen off the bus or does not answer the driver (NVML: GPU is lost)",
    RESET_REQUIRED: "the GPU must be reset before it can be used again (NVML: reset required)",
    GPU_NOT_FOUND: "the driver does not know the GPU any more (NVML: GPU not found)",
    NOT_FOUND: "the driver does not know the GPU any more (NVML: not found)",
}


class LibraryError(Exception):
    """NVML as a whole cannot be used; the text says what was found, where, and what to do."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """The loaded library; `hot` is for the sampler's own bindings, everything else goes through pynvml."""

    path: str
    hot: ctypes.CDLL
    found: dict[str, Callable[..., int] | None] = field(default_factory=dict)

    def function(self, symbol: str) -> Callable[..., int] | None:
        """The C function of that name, or None where this driver's library has none."""
        if symbol not in self.found:
            function: Any = getattr(self.hot, symbol, None)
            if function is not None:
                function.restype = ctypes.c_int
            self.found[symbol] = function
        return self.found[symbol]


def load(path: str | None, driver_root: str | None = None) -> Library:
    """Loads the library and makes pynvml use it; initialises nothing."""
    if path is None and driver_root is not None:
        path = _under(driver_root)
    name = path or DEFAULT_NAME
    try:
        loaded = ctypes.CDLL(name)
        hot = ctypes.CDLL(name)
    except OSError as error:
        where = f"at {path}" if path else f"as {DEFAULT_NAME} on the dynamic linker's path"
        raise LibraryError(
            LIBRARY_NOT_FOUND,
            f"no usable NVML library {where}: {error}. Install the NVIDIA driver, run the container with the NVIDIA "
            "runtime (capability utility) or as docs/install.md says, or name the file with --nvml-library.",
        ) from error
    if not hasattr(loaded, "nvmlInitWithFlags"):
        raise LibraryError(
            LIBRARY_NOT_FOUND,
            f"{name} is a library, but not an NVML of driver 396 or newer (it has no nvmlInitWithFlags). Name the "
            "driver's own libnvidia-ml.so.1 with --nvml-library.",
        )
    pynvml.nvmlLib = loaded
    pynvml._nvmlGetFunctionPointer_cache.clear()  # pointers into a library that was loaded before
    return Library(path=name, hot=hot)


def _under(driver_root: str) -> str:
    root = Path(driver_root)
    found = find_library(root)
    if found is not None:
        return str(found)
    what = f"no {LIBRARY} in {', '.join(DIRECTORIES[1:])} of it" if root.is_dir() else "no such directory"
    raise LibraryError(
        LIBRARY_NOT_FOUND,
        f"--driver-root {driver_root}: {what}. Mount there the root of the driver that runs on the node: "
        "/run/nvidia/driver with the GPU Operator's driver container, / with a driver on the host, "
        "/home/kubernetes/bin/nvidia on GKE; it is tried again by itself.",
    )


def explain(code: int, path: str) -> str:
    """What the return code of nvmlInit means here, and what to do."""
    if code == DRIVER_NOT_LOADED:
        return (
            f"the NVIDIA kernel driver is not loaded (nvmlInit of {path}: driver not loaded). Load it (modprobe "
            "nvidia) or let the GPU operator finish; it is tried again by itself."
        )
    if code == LIB_RM_VERSION_MISMATCH:
        return (
            f"{path} and the loaded kernel driver are of different versions (nvmlInit: driver/library version "
            "mismatch). After a driver upgrade reload the kernel modules or reboot; in a container mount the library "
            "of the running driver."
        )
    if code == NO_PERMISSION:
        return (
            f"no permission on the device nodes (nvmlInit of {path}: no permission). Give the process read and write "
            "access to /dev/nvidiactl and /dev/nvidia0 and following, in a container through the NVIDIA runtime."
        )
    if code in (NOT_FOUND, GPU_NOT_FOUND):
        return (
            f"the driver has no GPU (nvmlInit of {path}: not found). Look at lspci -d 10de: and at the kernel log; on "
            "a node without NVIDIA GPUs do not run this agent."
        )
    if code == UNKNOWN:
        return (
            f"the driver does not answer (nvmlInit of {path}: unknown error). In a container the device nodes or their "
            "cgroup rule are often gone after a systemd reload: restart the pod; else look at the kernel log."
        )
    return f"nvmlInit of {path} failed: {error_name(code)}. Look at the kernel log and run nvidia-smi."


def error_name(code: int) -> str:
    """The return code in NVML's words."""
    return f"{pynvml.NVMLError._errcode_to_string.get(code, 'return code')} ({code})"


def initialise(library: Library) -> None:
    """nvmlInit; raises LibraryError with what to do."""
    try:
        pynvml.nvmlInitWithFlags(0)
    except pynvml.NVMLError as error:
        raise LibraryError(int(error.value), explain(int(error.value), library.path)) from error


def shut_down() -> None:
    """nvmlShutdown until the reference count is 0: only then the device nodes are let go (nvml.h, nvmlInit)."""
    for _ in range(16):
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            return


def version(read: Callable[[], Any]) -> str | None:
    """One of NVML's system version strings, or None where it does not answer."""
    try:
        return str(read())
    except pynvml.NVMLError:
        return None


def cuda_version() -> str | None:
    """The CUDA version of the driver as "12.4"."""
    try:
        number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    except pynvml.NVMLError:
        return None
    return f"{number // 1000}.{number % 1000 // 10}"
