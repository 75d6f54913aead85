"""What does an NVML return code mean for a reading?

One table for every code of nvmlReturn_t. Codes that a newer driver may add count as failures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from claimscope.model import Missing

SUCCESS = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """One return code."""

    code: int
    name: str  # NVML_ERROR_ without the prefix
    missing: Missing | None  # None: there is a number
    meaning: str


def _row(code: int, name: str, missing: Missing | None, meaning: str) -> Return:
    return Return(code=code, name=name, missing=missing, meaning=meaning)


_RETURNS: tuple[Return, ...] = (
    _row(0, "SUCCESS", None, "success"),
    _row(1, "UNINITIALIZED", Missing.LOST, "NVML is not initialized"),
    # Also the answer for a link or fan past the last one, and of older drivers for an id they do not know.
    _row(2, "INVALID_ARGUMENT", Missing.UNSUPPORTED, "invalid argument"),
    _row(3, "NOT_SUPPORTED", Missing.UNSUPPORTED, "not supported by this device"),
    _row(4, "NO_PERMISSION", Missing.DENIED, "no permission"),
    _row(5, "ALREADY_INITIALIZED", Missing.FAILED, "already initialized"),
    _row(6, "NOT_FOUND", Missing.FAILED, "not found"),
    _row(7, "INSUFFICIENT_SIZE", Missing.FAILED, "the buffer is too small"),
    _row(8, "INSUFFICIENT_POWER", Missing.FAILED, "external power cables are not attached"),
    _row(9, "DRIVER_NOT_LOADED", Missing.LOST, "the driver is not loaded"),
    _row(10, "TIMEOUT", Missing.FAILED, "timed out"),
    _row(11, "IRQ_ISSUE", Missing.FAILED, "the kernel found an interrupt problem with the GPU"),
    _row(12, "LIBRARY_NOT_FOUND", Missing.LOST, "the NVML library was not found"),
    _row(13, "FUNCTION_NOT_FOUND", Missing.UNSUPPORTED, "this driver's NVML has no such function"),
    _row(14, "CORRUPTED_INFOROM", Missing.FAILED, "the infoROM is corrupted"),
    _row(15, "GPU_IS_LOST", Missing.LOST, "the GPU has fallen off the bus or is otherwise inaccessible"),
    _row(16, "RESET_REQUIRED", Missing.LOST, "the GPU needs a reset before it can be used again"),
    _row(17, "OPERATING_SYSTEM", Missing.DENIED, "blocked by the operating system or its cgroups"),
    _row(18, "LIB_RM_VERSION_MISMATCH", Missing.LOST, "NVML and the loaded driver differ in version"),
    _row(19, "IN_USE", Missing.FAILED, "the GPU is in use"),
    _row(20, "MEMORY", Missing.FAILED, "out of memory"),
    _row(21, "NO_DATA", Missing.FAILED, "no data"),
    _row(22, "VGPU_ECC_NOT_SUPPORTED", Missing.UNSUPPORTED, "not available with ECC on this vGPU"),
    _row(23, "INSUFFICIENT_RESOURCES", Missing.FAILED, "out of critical resources other than memory"),
    _row(24, "FREQ_NOT_SUPPORTED", Missing.UNSUPPORTED, "the frequency is not supported"),
    _row(25, "ARGUMENT_VERSION_MISMATCH", Missing.UNSUPPORTED, "this driver knows another structure version"),
    _row(26, "DEPRECATED", Missing.UNSUPPORTED, "the function was deprecated"),
    _row(27, "NOT_READY", Missing.FAILED, "not ready"),
    _row(28, "GPU_NOT_FOUND", Missing.LOST, "no GPU was found"),
    _row(29, "INVALID_STATE", Missing.FAILED, "invalid state"),
    _row(30, "RESET_TYPE_NOT_SUPPORTED", Missing.UNSUPPORTED, "the reset type is not supported"),
    _row(999, "UNKNOWN", Missing.FAILED, "an internal driver error"),
)

RETURNS: Mapping[int, Return] = MappingProxyType({row.code: row for row in _RETURNS})

# The device, the driver or NVML itself is gone: handles are void, reading on is pointless until they are taken anew.
LIFECYCLE: frozenset[int] = frozenset({1, 9, 15, 16, 18, 28})


def missing(code: int) -> Missing | None:
    """Why an answer with this code holds no number; None for success."""
    row = RETURNS.get(code)
    return Missing.FAILED if row is None else row.missing


def describe(code: int) -> str:
    """The code for people: "NVML_ERROR_GPU_IS_LOST (15): the GPU has fallen off the bus or ..."."""
    row = RETURNS.get(code)
    if row is None:
        return f"NVML return code {code}, unknown to this version of claimscope"
    prefix = "NVML_" if code == SUCCESS else "NVML_ERROR_"
    return f"{prefix}{row.name} ({code}): {row.meaning}"
