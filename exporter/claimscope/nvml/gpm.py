"""What do the performance counters of Hopper and newer GPUs say?

GPM compares two samples: each entity keeps two, and each new one is the baseline of the next. Never faster than
200 ms (the hardware refreshes every 100 ms; faster gives invalid values, DCGM issue 310), never from two threads.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pynvml

from claimscope.nvml.library import FUNCTION_NOT_FOUND, SUCCESS, Handle, Library

MIN_PERIOD_NS = 200_000_000
MAX_BASELINE_NS = 600_000_000_000  # an older baseline says nothing about now
MAX_METRICS = 98  # capacity of metrics[] in the oldest headers (CUDA 12.8 and before)

_METRIC = struct.Struct("=II d 24x".replace(" ", ""))  # metricId, nvmlReturn, value, metricInfo


def supported(handle: Handle) -> bool:
    """Whether the GPU has GPM at all."""
    try:
        return bool(pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice)
    except pynvml.NVMLError:
        return False


class GpmReader:
    """The two samples of one entity and the reused request."""

    def __init__(self, library: Library, pointer: int, gpu_instance_id: int | None, ids: Sequence[int]) -> None:
        self.ids = tuple(ids)
        sample_get = library.function(
            "nvmlGpmSampleGet" if gpu_instance_id is None else "nvmlGpmMigSampleGet"
        )
        metrics_get = library.function("nvmlGpmMetricsGet")
        free = library.function("nvmlGpmSampleFree")
        if sample_get is None or metrics_get is None or free is None:
            raise pynvml.NVMLError(FUNCTION_NOT_FOUND)
        self._sample_get: Callable[..., int] = sample_get
        self._metrics_get: Callable[..., int] = metrics_get
        self._free: Callable[..., int] = free
        self.call_name = "nvmlGpmSampleGet" if gpu_instance_id is None else "nvmlGpmMigSampleGet"
        self._handle: tuple[Any, ...] = (ctypes.c_void_p(pointer),)
        if gpu_instance_id is not None:
            self._handle += (ctypes.c_uint(gpu_instance_id),)
        self._samples = [pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()]
        self._newest = 0
        self._newest_ns = 0  # 0: there is no baseline
        self._requests: list[tuple[Any, int]] = []
        for begin in range(0, len(self.ids), MAX_METRICS):
            chunk = self.ids[begin : begin + MAX_METRICS]
            request = pynvml.c_nvmlGpmMetricsGet_t()
            request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
            request.numMetrics = len(chunk)
            for place, metric in enumerate(chunk):
                request.metrics[place].metricId = metric
            self._requests.append((request, len(chunk)))
        self._offset = pynvml.c_nvmlGpmMetricsGet_t.metrics.offset

    def sample(self, now_ns: int) -> tuple[int, int]:
        """Takes the next sample: (return code, nanoseconds since the baseline or 0 where there was none)."""
        elapsed = now_ns - self._newest_ns if self._newest_ns else 0
        if self._newest_ns and elapsed < MIN_PERIOD_NS:
            return SUCCESS, 0
        older = 1 - self._newest
        code = self._sample_get(*self._handle, self._samples[older])
        if code != SUCCESS:
            self._newest_ns = 0
            return code, 0
        self._newest = older
        self._newest_ns = now_ns
        return SUCCESS, 0 if elapsed > MAX_BASELINE_NS else elapsed

    def metrics(self) -> tuple[int, list[tuple[int, float | None]]]:
        """Compares the two samples: (return code, (code, value) per id); NaN is no value."""
        answers: list[tuple[int, float | None]] = []
        for request, count in self._requests:
            request.sample1 = self._samples[1 - self._newest]
            request.sample2 = self._samples[self._newest]
            code = self._metrics_get(ctypes.byref(request))
            if code != SUCCESS:
                return code, []
            end = self._offset + count * _METRIC.size
            for _, answer, value in _METRIC.iter_unpack(memoryview(request).cast("B")[self._offset : end]):
                answers.append((answer, None if answer != SUCCESS or math.isnan(value) else value))
        return SUCCESS, answers

    def free(self) -> None:
        """Frees both samples, once; must come before nvmlShutdown."""
        for sample in self._samples:
            self._free(sample)
        self._samples = []
