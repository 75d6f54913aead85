"""Which events does the driver report, and of which device?"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import pynvml

from claimscope.model import Event
from claimscope.nvml.heartbeat import Marker
from claimscope.nvml.inventory import Found
from claimscope.nvml.library import SUCCESS, Library

MAX_EVENTS_PER_TICK = 256
NO_INSTANCE = 0xFFFFFFFF

# nvml.h, nvmlEventType*; performance state and clock changes are left out: they are sampled anyway, and frequent.
EVENT_KINDS: Mapping[int, str] = {
    0x1: "ecc_single_bit",
    0x2: "ecc_double_bit",
    0x8: "xid",
    0x100: "mig_config_change",
    0x200: "ecc_single_bit_storm",
    0x400: "dram_retirement",
    0x800: "dram_retirement_failure",
    0x1000: "non_fatal_poison",
    0x2000: "fatal_poison",
    0x4000: "gpu_unavailable",
    0x8000: "gpu_recovery_action",
}
MIG_CHANGE = 0x100
EVENT_MASK = sum(EVENT_KINDS)


class EventReader:
    """One event set; without the right to events it has none, and reads none."""

    def __init__(self, mark: Marker, clock: Callable[[], int], wall: Callable[[], int]) -> None:
        self.mig_changed = False  # for its reader to take back
        self._mark = mark
        self._clock = clock
        self._wall = wall
        self._set: Any = None
        self._data = pynvml.c_nvmlEventData_t()
        self._wait: Callable[[], int] | None = None
        self._cost = (0, 0)
        self._of_pointer: dict[int, str] = {}
        self._of_instance: dict[tuple[int, int, int], str] = {}

    def open(self, loaded: Library) -> None:
        """Begins a new event set; devices register with `add`."""
        self._mark(-1, "nvmlEventSetCreate")
        self._of_pointer.clear()
        self._of_instance.clear()
        with contextlib.suppress(pynvml.NVMLError):
            self._set = pynvml.nvmlEventSetCreate()
            function = loaded.function("nvmlEventSetWait_v2")
            if function is not None:
                wait, arguments = function, (self._set, ctypes.byref(self._data), ctypes.c_uint(0))
                self._wait = lambda: wait(*arguments)

    def add(self, found: Found) -> None:
        """Hears of a device from now on."""
        entity, mig = found.device.entity, found.device.mig
        if mig is not None:
            where = (found.parent_pointer, mig.gpu_instance_id, mig.compute_instance_id)
            self._of_instance[where] = entity.uuid
            return
        self._of_pointer[found.pointer] = entity.uuid
        if self._set is None:
            return
        handle = ctypes.cast(found.pointer, pynvml.c_nvmlDevice_t)
        self._mark(entity.gpu, "nvmlDeviceRegisterEvents")
        with contextlib.suppress(pynvml.NVMLError):  # denied in some containers; sampling works without
            mask = pynvml.nvmlDeviceGetSupportedEventTypes(handle) & EVENT_MASK
            if mask:
                pynvml.nvmlDeviceRegisterEvents(handle, mask, self._set)

    def poll(self, keep: Callable[[Event], None]) -> None:
        """Gives what has come to `keep`, without waiting."""
        wait = self._wait
        if wait is None:
            return
        data = self._data
        for _ in range(MAX_EVENTS_PER_TICK):
            self._mark(-1, "nvmlEventSetWait_v2")
            begun = self._clock()
            code = wait()
            self._cost = (self._cost[0] + 1, self._cost[1] + self._clock() - begun)
            if code != SUCCESS:
                return  # TIMEOUT: there is none
            # By the table that was filled beforehand: a lost GPU cannot be asked who it is.
            pointer = int(ctypes.cast(data.device, ctypes.c_void_p).value or 0)
            uuid = self._of_pointer.get(pointer)
            if uuid is None:
                continue
            if data.gpuInstanceId != NO_INSTANCE:
                where = (pointer, int(data.gpuInstanceId), int(data.computeInstanceId))
                uuid = self._of_instance.get(where, uuid)
            kind = EVENT_KINDS.get(int(data.eventType), f"type_{int(data.eventType):#x}")
            if data.eventType == MIG_CHANGE:
                self.mig_changed = True
            keep(Event(entity=uuid, kind=kind, code=int(data.eventData), wall_ns=self._wall()))

    def take_cost(self) -> tuple[int, int]:
        """(times, nanoseconds) of waiting since the last time this was asked."""
        taken, self._cost = self._cost, (0, 0)
        return taken

    def close(self) -> None:
        """Frees the event set; must come before nvmlShutdown."""
        if self._set is not None:
            self._mark(-1, "nvmlEventSetFree")
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlEventSetFree(self._set)
        self._set = None
        self._wait = None
