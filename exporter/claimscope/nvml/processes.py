"""Which processes use an entity, and how much of it does each have?"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pynvml

from claimscope.model import ProcessUse
from claimscope.nvml.group import FATAL, CType
from claimscope.nvml.library import FUNCTION_NOT_FOUND, INSUFFICIENT_SIZE, NOT_FOUND, SUCCESS, Library


class ProcessReader:
    """The processes on one entity, into a reused array that grows when NVML says so."""

    def __init__(self, library: Library, pointer: int, *, mig: bool) -> None:
        self._handle = ctypes.c_void_p(pointer)
        self._list = library.function("nvmlDeviceGetComputeRunningProcesses_v3")
        # No source of per-process utilization while MIG is on (nvml.h, nvmlDeviceGetProcessUtilization).
        self._use = None if mig else library.function("nvmlDeviceGetProcessUtilization")
        self._capacity = 64
        self._seen_us = 0

    def _fetch(self, function: Callable[..., int], kind: CType, *, behind: tuple[Any, ...]) -> tuple[int, list[Any]]:
        for _ in range(4):
            array = (kind * self._capacity)()
            count = ctypes.c_uint(self._capacity)
            order = (array, ctypes.byref(count)) if behind else (ctypes.byref(count), array)
            code = function(self._handle, *order, *behind)
            if code != INSUFFICIENT_SIZE:
                return code, list(array[: min(count.value, self._capacity)]) if code == SUCCESS else []
            self._capacity = max(self._capacity * 2, count.value)
        return INSUFFICIENT_SIZE, []

    def read(self) -> tuple[int, tuple[ProcessUse, ...] | None]:
        """(return code, the processes or None where they cannot be told)."""
        if self._list is None:
            return FUNCTION_NOT_FOUND, None
        code, processes = self._fetch(self._list, pynvml.c_nvmlProcessInfo_v3_t, behind=())
        if code != SUCCESS:
            return code, None
        busy: dict[int, float] = {}
        if self._use is not None and processes:
            answer, samples = self._fetch(
                self._use, pynvml.c_nvmlProcessUtilizationSample_t, behind=(ctypes.c_ulonglong(self._seen_us),)
            )
            for sample in samples:
                if sample.smUtil <= 100:  # garbage has been seen (nvtop issue 110)
                    busy[sample.pid] = sample.smUtil / 100
                self._seen_us = max(self._seen_us, int(sample.timeStamp))
            if answer in FATAL:
                return answer, None
            told = answer in (SUCCESS, NOT_FOUND)  # NOT_FOUND: nobody used the GPU since
        else:
            told = False
        unknown = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value
        return SUCCESS, tuple(
            ProcessUse(
                pid=int(process.pid),
                memory_used_bytes=None if process.usedGpuMemory == unknown else int(process.usedGpuMemory),
                busy_ratio=busy.get(int(process.pid), 0.0) if told else None,
            )
            for process in processes
        )
