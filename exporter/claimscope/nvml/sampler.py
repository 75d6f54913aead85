"""The sampler process: reads NVML to deadlines and sends windows, events and inventories to its parent.

Single-threaded. A tick never waits for the parent; a driver call that does not come back is visible to the parent in
the heartbeat page, which names the GPU and the call in flight. Layout of the page, unsigned 64-bit numbers:
0 ticks so far, 1 (GPU index + 1) << 32 | number of the call or 0 between calls, 2 CLOCK_MONOTONIC ns at which that call
began, 3 CLOCK_MONOTONIC ns of the last turn of the loop.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import pynvml

from claimscope.metrics.spec import Quantity
from claimscope.metrics.tables import QUANTITIES
from claimscope.model import Device, Event, Inventory, Window
from claimscope.nvml import inventory, library
from claimscope.nvml.calls import CALLS
from claimscope.nvml.fields import field_ids
from claimscope.nvml.gpm_metrics import GPM_METRICS
from claimscope.nvml.group import Heartbeat
from claimscope.nvml.library import DRIVER_GONE, LIB_RM_VERSION_MISMATCH, SUCCESS, Library, LibraryError
from claimscope.nvml.plan import call_names
from claimscope.nvml.reader import Catalog, EntityReader
from claimscope.nvml.wire import (
    LATENESS_BOUNDS_SECONDS,
    MAX_BURST_HZ,
    MAX_BURST_SECONDS,
    Acquire,
    Burst,
    CallCost,
    CountProcesses,
    EventMessage,
    FromSampler,
    InventoryMessage,
    Release,
    Settings,
    Status,
    ToSampler,
    WindowMessage,
    is_unnamed,
)

HEARTBEAT_BYTES = 64
EXIT_LIBRARY_CHANGED = 18  # the kernel driver is of another version than the loaded library: only a new process helps
EXIT_BAD_MESSAGE = 65

SHED_HZ = (5.0, 2.0, 1.0)
RECOVER_BELOW = 0.7  # of the budget, at the rate that would come next
LOST_CHECK_NS = 1_000_000_000
MIG_CHECK_NS = 10_000_000_000
MAX_RETRY_SECONDS = 10.0
REOPEN_FIRST_NS, REOPEN_MAX_NS = 60_000_000_000, 1_800_000_000_000
MAX_KEPT_EVENTS = 4096
FOLD_AT = 20
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


class ParentGoneError(Exception):
    """The socket is closed: nobody is there to sample for."""


class DriverGoneError(Exception):
    """NVML must be taken up anew."""

    def __init__(self, code: int, path: str) -> None:
        super().__init__(library.explain(code, path))
        self.code = code


class Outbox:
    """What is on its way to the parent. Windows are dropped, events and inventories are kept."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._encode = msgspec.msgpack.Encoder().encode
        self._kept: deque[bytes] = deque()
        self._windows: deque[bytes] = deque()
        self.dropped = 0
        self.events_missed = 0

    def keep(self, message: FromSampler) -> None:
        """Sends it now or at a later tick."""
        if len(self._kept) >= MAX_KEPT_EVENTS:
            self._kept.popleft()
            self.events_missed += 1
        self._kept.append(self._encode(message))
        self.flush()

    def windows(self, messages: list[FromSampler]) -> None:
        """Sends what it can until the next windows come; the older ones are then dropped."""
        self.dropped += len(self._windows)
        self._windows.clear()
        self._windows.extend(map(self._encode, messages))
        self.flush()

    def flush(self) -> None:
        """Sends as much as the parent takes without waiting."""
        for queue in (self._kept, self._windows):
            while queue:
                try:
                    self._channel.send(queue[0])
                except BlockingIOError:
                    return
                except OSError as error:
                    if isinstance(error, ConnectionError):
                        raise ParentGoneError from error
                    self.dropped += 1  # EMSGSIZE, ENOBUFS: this one will never fit
                queue.popleft()


class Sampler:
    """The state of one sampler process."""

    def __init__(
        self,
        channel: socket.socket,
        heartbeat: Heartbeat,
        settings: Settings,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], int] = time.time_ns,
        quantities: Sequence[Quantity] = QUANTITIES,
    ) -> None:
        self._channel = channel
        self._heartbeat = heartbeat
        self._settings = settings
        self._clock = clock
        self._wall = wall
        self._quantities = quantities
        self._numbers = {name: number for number, name in enumerate(call_names(CALLS))}
        self._symbols = {name: call.symbol for name, call in CALLS.items()}
        self._outbox = Outbox(channel)
        self._decoder: msgspec.msgpack.Decoder[ToSampler] = msgspec.msgpack.Decoder(ToSampler)
        self._session = clock()
        self._epoch = 0
        self._library: Library | None = None
        self._open = False
        self._counts_processes = False
        self._released = False
        self._error: str | None = None
        self._versions: tuple[str | None, str | None, str | None] = (None, None, None)
        self._retry_ns = 0
        self._retry_seconds = settings.retry_seconds
        self._entities: list[EntityReader] = []
        self._devices: dict[str, Device] = {}
        self._lost: dict[str, str] = {}
        self._lost_with: dict[str, str] = {}  # MIG device -> its lost GPU
        self._lost_check_ns = 0
        self._reopen_ns = 0
        self._reopen_wait_ns = REOPEN_FIRST_NS
        self._mig_check_ns = 0
        self._mig_signature: dict[str, tuple[str, ...]] = {}
        self._mig_unsure: set[str] = set()  # GPUs whose MIG devices the driver did not tell
        self._known: dict[str, int] = dict(settings.known)  # uuid -> NVML index, the newest last
        self._unnamed: dict[int, str] = {}
        self._event_set: Any = None
        self._event_data = pynvml.c_nvmlEventData_t()
        self._event_wait: Callable[[], int] | None = None
        self._event_cost = [0, 0]
        self._of_pointer: dict[int, str] = {}
        self._of_instance: dict[tuple[int, int, int], str] = {}
        self._catalog: Catalog | None = None
        self._mig_changed = False
        self._sent_inventory: Inventory | None = None
        # Rates
        self._ladder = self._make_ladder()
        self._level = 0
        self._burst_until_ns = 0
        self._burst_period_ns = 0
        self._shed_since_ns = 0
        self._calm_since_ns = 0
        self._shed_base: dict[str, float] = {}
        # Counts
        self._ticks = 0
        self._late_ticks = 0
        self._window_start_ns = 0
        self._lateness_max_ns = 0
        self._lateness = [0] * (len(LATENESS_BOUNDS_SECONDS) + 1)
        self._driver_seconds: dict[str, float] = {}
        self._calls: dict[str, tuple[int, float]] = {}

    # Time

    def _make_ladder(self) -> tuple[float, ...]:
        hz = self._settings.sampling_hz
        return (hz, *(step for step in SHED_HZ if step < hz))

    @property
    def _period_ns(self) -> int:
        """Of full ticks."""
        return round(1e9 / self._ladder[self._level])

    @property
    def _bursting(self) -> bool:
        return self._burst_until_ns > 0

    @property
    def _path(self) -> str:
        """Of the library, as errors name it: always the same, so that one trouble is one message."""
        return self._library.path if self._library is not None else self._settings.library or library.DEFAULT_NAME

    def _mark(self, gpu: int, call: str) -> None:
        self._heartbeat[2] = self._clock()
        self._heartbeat[1] = (gpu + 1) << 32 | self._numbers[call]

    # The loop

    def run(self) -> int:
        """Samples until the parent goes away; returns the exit code."""
        clock, heartbeat = self._clock, self._heartbeat
        window_ns = round(self._settings.window_seconds * 1e9)
        start = clock()
        # Deadlines and windows stand on the grid of whole seconds of the wall clock, as it was at the start.
        origin = start - self._wall() % 1_000_000_000
        self._window_start_ns = start
        window_end = origin + window_ns * ((start - origin) // window_ns + 1)
        deadline = start
        full_due = start
        try:
            self._wait(start)  # what was already asked, such as to leave NVML alone
            if not self._released and not self._open:
                self._try_open()
            while True:
                self._wait(deadline)  # also hears commands when the deadline has passed
                now = clock()
                heartbeat[3] = now
                late = max(0, now - deadline)
                self._lateness_max_ns = max(self._lateness_max_ns, late)
                self._lateness[bisect_left(LATENESS_BOUNDS_SECONDS, late * 1e-9)] += 1
                full = deadline >= full_due
                self._tick(now, full=full)
                heartbeat[1] = 0
                heartbeat[0] = self._ticks
                if deadline >= window_end:
                    if window_end > self._window_start_ns:  # else NVML was just reopened and the rest cut there
                        self._cut(self._window_start_ns, window_end)
                        self._window_start_ns = window_end
                    window_end += window_ns
                    if window_end <= deadline:  # windows that passed unserved are one long window
                        window_end += window_ns * ((deadline - window_end) // window_ns + 1)
                if self._bursting and deadline >= self._burst_until_ns:
                    self._end_burst()
                heartbeat[1] = 0
                # The next deadline on the grid; those that have passed are counted and not replayed.
                period = self._burst_period_ns if self._bursting else self._period_ns
                following = origin + period * ((deadline - origin) // period + 1)
                now = clock()
                if following <= now:
                    skipped = (now - following) // period + 1
                    self._late_ticks += skipped
                    following += skipped * period
                if full:
                    grid = self._period_ns
                    full_due = origin + grid * ((deadline - origin) // grid + 1)
                if not self._bursting:
                    full_due = following
                deadline = following
        except ParentGoneError:
            self._heartbeat[3] = clock()
            self._close()
            return 0
        except LibraryChangedError:
            return EXIT_LIBRARY_CHANGED

    def _wait(self, deadline: int) -> None:
        """Sleeps until the deadline and hears commands meanwhile."""
        while True:
            remaining = deadline - self._clock()
            readable, _, _ = select.select([self._channel], [], [], max(0.0, remaining * 1e-9))
            if not readable:
                return
            self._command()

    def _command(self) -> None:
        try:
            packet = self._channel.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionError as error:
            raise ParentGoneError from error
        if not packet:
            raise ParentGoneError
        match self._decoder.decode(packet):
            case Release():
                self._released = True
                self._cut_rest()
                self._close()
                self._send_inventory()
            case Acquire():
                if self._released:
                    self._released = False
                    self._try_open()
            case Burst(hz=hz, seconds=seconds):
                self._start_burst(min(hz, MAX_BURST_HZ), min(seconds, MAX_BURST_SECONDS))
            case CountProcesses(on=on):
                self._counts_processes = on
                for entity in self._entities:
                    entity.count_processes(on)
            case Settings() as settings:
                self._change(settings)

    def _change(self, settings: Settings) -> None:
        old, self._settings = self._settings, settings
        for uuid, index in settings.known.items():
            self._known.setdefault(uuid, index)
        if msgspec.structs.replace(settings, quarantine=old.quarantine, known=old.known) == old:
            freed = set(old.quarantine) - set(settings.quarantine)
            self._lost_check_ns = 0
            for uuid in freed & set(self._lost):
                self._lost[uuid] = "was quarantined and has not answered yet"
            return
        self._ladder = self._make_ladder()
        self._level = 0
        self._reopen()

    def _reopen(self) -> None:
        """Takes NVML up anew; what was measured until now is sent first."""
        self._cut_rest()
        if self._open:
            self._close()
            self._try_open()

    def _cut_rest(self) -> None:
        now = self._clock()
        if self._open and now > self._window_start_ns:
            self._cut(self._window_start_ns, now)
            self._window_start_ns = now

    def _tick(self, now: int, *, full: bool) -> None:
        if not self._open:
            if not self._released and now >= self._retry_ns:
                self._try_open()
            self._outbox.flush()
            return
        self._ticks += full or self._bursting
        heartbeat, clock = self._heartbeat, self._clock
        gone: list[tuple[EntityReader, int]] = []
        for entity in self._entities:
            code = 0
            for group in entity.fast_groups:
                code = code or group.read(heartbeat, clock)
            if full and not code:
                for group in entity.tick_groups:
                    code = code or group.read(heartbeat, clock)
            if not code and entity.waiting >= entity.fold_at:
                code = entity.fold(self._period_ns)
            if not code and now >= entity.due_ns:
                code = entity.read_slow(now, heartbeat, clock)
            if code:
                gone.append((entity, code))
        try:
            for entity, code in gone:
                self._lose(entity, code)
            self._poll_events()
            if self._lost and now >= self._lost_check_ns:
                self._lost_check_ns = now + LOST_CHECK_NS
                self._find_lost()
            if now >= self._mig_check_ns:
                self._mig_check_ns = now + MIG_CHECK_NS
                self._mig_changed = self._mig_changed or self._mig_differs()
            if self._mig_changed or ((self._lost or self._unnamed) and now >= self._reopen_ns):
                if not self._mig_changed:
                    self._reopen_wait_ns = min(2 * self._reopen_wait_ns, REOPEN_MAX_NS)
                self._mig_changed = False
                self._reopen()
        except (DriverGoneError, LibraryError) as error:
            self._driver_gone(error.code, str(error))
        self._outbox.flush()

    # Taking NVML up and letting it go

    def _try_open(self) -> None:
        try:
            self._open_nvml()
        except (LibraryError, DriverGoneError) as error:
            self._driver_gone(error.code, str(error))
        except pynvml.NVMLError as error:
            code = int(error.value)
            self._driver_gone(code, library.explain(code, self._path))

    def _driver_gone(self, code: int, text: str) -> None:
        self._close()
        self._error = text
        self._send_inventory()
        if code == LIB_RM_VERSION_MISMATCH:
            raise LibraryChangedError
        self._retry_ns = self._clock() + round(self._retry_seconds * 1e9)
        self._retry_seconds = min(2 * self._retry_seconds, MAX_RETRY_SECONDS)

    def _open_nvml(self) -> None:
        settings = self._settings
        self._mark(-1, "import")
        if self._library is None:
            self._library = library.load(settings.library)
        path = self._library.path
        self._mark(-1, "nvmlInitWithFlags")
        library.initialise(self._library)
        self._open = True
        self._epoch += 1
        self._error = None
        driver = library.version(pynvml.nvmlSystemGetDriverVersion)
        self._versions = (driver, library.version(pynvml.nvmlSystemGetNVMLVersion), library.cuda_version())
        self._known.update(
            (uuid, index) for uuid, index in settings.quarantine.items() if not is_unnamed(uuid)
        )
        mig_before = {uuid: device.mig_enabled for uuid, device in self._devices.items()}
        walk = inventory.enumerate_gpus(self._mark, settings.quarantine, self._known, path, mig_before)
        self._lost = dict(walk.lost)
        for index, reason in walk.unnamed.items():
            if index not in self._unnamed:
                sys.stderr.write(f"claimscope sampler: GPU {index} cannot say its UUID and is left out: {reason}\n")
        self._unnamed = dict(walk.unnamed)
        self._mig_unsure = set(walk.unsure)
        self._lost_with = {}
        for uuid in self._devices.keys() - {one.device.entity.uuid for one in walk.found}:
            parent = self._devices[uuid].entity.parent
            if parent is not None and parent in walk.unsure:
                self._lost[uuid] = "the driver does not say now which MIG devices the GPU has"
                self._lost_with[uuid] = parent
        self._devices = {}
        self._entities = []
        self._catalog = Catalog(
            quantities=self._quantities, calls=CALLS, field_ids=field_ids(driver or ""), gpm_metrics=GPM_METRICS,
            collectors=settings.collectors, reprobe_ns=round(settings.reprobe_seconds * 1e9), found=walk.found,
        )
        self._mark(-1, "nvmlEventSetCreate")
        self._of_pointer.clear()
        self._of_instance.clear()
        with contextlib.suppress(pynvml.NVMLError):
            self._event_set = pynvml.nvmlEventSetCreate()
            self._bind_events(self._library)
        self._take(self._library, self._catalog, walk.found)
        self._mig_signature = self._read_mig_signature()
        self._mig_check_ns = self._clock() + MIG_CHECK_NS
        self._reopen_ns = self._clock() + self._reopen_wait_ns
        self._heartbeat[1] = 0
        self._retry_seconds = settings.retry_seconds
        if not self._lost:
            self._reopen_wait_ns = REOPEN_FIRST_NS
        if self._bursting:
            self._split(on=True)
        self._send_inventory()

    def _bind_events(self, loaded: Library) -> None:
        function = loaded.function("nvmlEventSetWait_v2")
        if function is None:
            return
        arguments = (self._event_set, ctypes.byref(self._event_data), ctypes.c_uint(0))
        wait = function
        self._event_wait = lambda: wait(*arguments)

    def _take(self, loaded: Library, catalog: Catalog, found: Sequence[inventory.Found]) -> None:
        """Starts to read these entities; their GPUs register for events."""
        parents = {one.device.entity.parent for one in found if one.device.entity.parent is not None}
        gone: list[tuple[EntityReader, int]] = []
        for place, one in enumerate(found):
            device = one.device
            uuid = device.entity.uuid
            if device.mig is None:
                self._known.pop(uuid, None)
                self._known[uuid] = device.entity.gpu
                self._of_pointer[one.pointer] = uuid
                self._register(device.entity.gpu, one.pointer)
            else:
                where = (one.parent_pointer, device.mig.gpu_instance_id, device.mig.compute_instance_id)
                self._of_instance[where] = uuid
            self._mark(device.entity.gpu, "nvmlGpmQueryDeviceSupport")
            entity = EntityReader(
                loaded, one, catalog, has_mig=uuid in parents, epoch=self._epoch
            )
            self._devices[uuid] = device
            entity.count_processes(self._counts_processes)
            entity.fold_at = FOLD_AT + 2 * (place % 8)  # at high rates, in turns
            self._entities.append(entity)
            # Entities take turns within the second, so that their slow readings do not fall on one tick.
            code = entity.probe(
                self._heartbeat, self._clock, gpm_period_ns=round(1e9 / self._settings.gpm_hz),
                offset_ns=place * 1_000_000_000 // max(1, len(found)),
            )
            if code:
                gone.append((entity, code))
        for entity, code in gone:
            self._lose(entity, code)

    def _register(self, gpu: int, pointer: int) -> None:
        if self._event_set is None:
            return
        handle = ctypes.cast(pointer, pynvml.c_nvmlDevice_t)
        self._mark(gpu, "nvmlDeviceRegisterEvents")
        with contextlib.suppress(pynvml.NVMLError):  # denied in some containers; sampling works without
            mask = pynvml.nvmlDeviceGetSupportedEventTypes(handle) & EVENT_MASK
            if mask:
                pynvml.nvmlDeviceRegisterEvents(handle, mask, self._event_set)

    def _close(self) -> None:
        """GPM samples, event set, NVML: in this order, to a reference count of 0."""
        if not self._open:
            return
        self._mark(-1, "nvmlGpmSampleFree")
        self._collect_costs()
        for entity in self._entities:
            entity.free()
        self._entities = []
        if self._event_set is not None:
            self._mark(-1, "nvmlEventSetFree")
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlEventSetFree(self._event_set)
        self._event_set = None
        self._event_wait = None
        self._mark(-1, "nvmlShutdown")
        library.shut_down()
        self._open = False
        self._heartbeat[1] = 0

    # Lost GPUs, MIG

    def _lose(self, entity: EntityReader, code: int) -> None:
        if code in DRIVER_GONE:
            raise DriverGoneError(code, self._path)
        reason = inventory.gone(code)
        gpu = entity.gpu_uuid
        if gpu in self._lost:
            return
        self._collect_costs()
        for one in [e for e in self._entities if e.gpu_uuid == gpu]:
            self._mark(one.gpu, "nvmlGpmSampleFree")
            one.free()
            self._entities.remove(one)
            self._devices.pop(one.uuid, None)
            self._lost[one.uuid] = reason
            if one.uuid != gpu:
                self._lost_with[one.uuid] = gpu
        self._lost[gpu] = reason
        self._lost_check_ns = self._clock() + LOST_CHECK_NS
        self._reopen_ns = self._clock() + self._reopen_wait_ns
        self._send_inventory()

    def _find_lost(self) -> None:
        if self._library is None or self._catalog is None:
            return
        for uuid in list(self._lost):
            if uuid in self._settings.quarantine or not uuid.startswith("GPU-"):
                continue
            self._mark(self._known.get(uuid, -1), "find_lost")
            answer = inventory.find_gpu(uuid, self._path)
            if answer is None:
                continue
            gpu, handle = answer
            self._mark(gpu, "enumerate")
            try:
                found, sure = inventory.read_gpu(gpu, handle, uuid)
            except pynvml.NVMLError as error:
                if error.value in DRIVER_GONE:
                    raise DriverGoneError(int(error.value), self._path) from error
                continue
            del self._lost[uuid]
            (self._mig_unsure.discard if sure else self._mig_unsure.add)(uuid)
            back = {one.device.entity.uuid for one in found}
            for child in [one for one, parent in self._lost_with.items() if parent == uuid]:
                if sure or child in back:
                    del self._lost_with[child]
                    self._lost.pop(child, None)
            self._epoch += 1
            self._take(self._library, self._catalog, found)
            self._entities.sort(key=lambda one: one.gpu)
            self._mig_signature = self._read_mig_signature()
            self._send_inventory()

    def _read_mig_signature(self) -> dict[str, tuple[str, ...]]:
        signature: dict[str, tuple[str, ...]] = {}
        for one in self._entities:
            if one.uuid == one.gpu_uuid:
                self._mark(one.gpu, "enumerate")
                found = inventory.mig_uuids(ctypes.cast(one.found.pointer, pynvml.c_nvmlDevice_t))
                if found is not None:
                    signature[one.uuid] = found
        return signature

    def _mig_differs(self) -> bool:
        """Whether MIG devices came or went without an event: those need a right we may lack."""
        now = self._read_mig_signature()
        known = {**now, **self._mig_signature}  # the first answer after an error at the start is no change
        return any(known[uuid] != found or uuid in self._mig_unsure for uuid, found in now.items())

    # Events

    def _poll_events(self) -> None:
        wait = self._event_wait
        if wait is None:
            return
        data = self._event_data
        for _ in range(256):
            begun = self._clock()
            self._heartbeat[2] = begun
            self._heartbeat[1] = self._numbers["nvmlEventSetWait_v2"]
            code = wait()
            self._event_cost[0] += 1
            self._event_cost[1] += self._clock() - begun
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
                self._mig_changed = True
            self._outbox.keep(
                EventMessage(Event(entity=uuid, kind=kind, code=int(data.eventData), wall_ns=self._wall()))
            )

    # Windows

    def _cut(self, start_ns: int, end_ns: int) -> None:
        messages: list[FromSampler] = []
        gone: list[tuple[EntityReader, int]] = []
        wall = self._wall() - (self._clock() - end_ns)
        for entity in self._entities:
            code = entity.fold(self._period_ns)
            if code:
                gone.append((entity, code))
                continue
            totals = entity.totals
            messages.append(
                WindowMessage(
                    Window(
                        entity=entity.uuid, session=self._session, epoch=entity.epoch, start_ns=start_ns,
                        end_ns=end_ns, end_wall_ns=wall, ticks=entity.ticks, last=totals.last.copy(),
                        low=totals.low, high=totals.high, integral=totals.integral.copy(),
                        raw=totals.raw.copy(), missing=totals.missing.copy(), text=totals.text.copy(),
                        processes=entity.processes,
                    )
                )
            )
            totals.low, totals.high = {}, {}
            entity.ticks = 0
        self._collect_costs()
        self._judge_driver_time()
        messages.append(self._status())
        self._lateness_max_ns = 0
        self._outbox.windows(messages)
        try:
            for entity, code in gone:
                self._lose(entity, code)
        except DriverGoneError as error:
            self._driver_gone(error.code, str(error))

    def _collect_costs(self) -> None:
        for entity in self._entities:
            for name, (times, nanoseconds) in entity.costs.items():
                self._count(self._symbols.get(name, name), times, nanoseconds * 1e-9)
                self._driver_seconds[entity.gpu_uuid] = (
                    self._driver_seconds.get(entity.gpu_uuid, 0.0) + nanoseconds * 1e-9
                )
            entity.costs.clear()
        if self._event_cost[0]:
            self._count("nvmlEventSetWait_v2", self._event_cost[0], self._event_cost[1] * 1e-9)
            self._event_cost = [0, 0]

    def _count(self, name: str, times: int, seconds: float) -> None:
        known = self._calls.get(name, (0, 0.0))
        self._calls[name] = (known[0] + times, known[1] + seconds)

    def _status(self) -> Status:
        hz = 1e9 / self._burst_period_ns if self._bursting else self._ladder[self._level]
        return Status(
            session=self._session, wall_ns=self._wall(), ticks=self._ticks, late_ticks=self._late_ticks,
            lateness_max_seconds=self._lateness_max_ns * 1e-9, dropped_messages=self._outbox.dropped,
            sampling_hz=hz, shed=self._level > 0, driver_seconds=self._driver_seconds,
            calls={name: CallCost(calls=n, seconds=s) for name, (n, s) in self._calls.items()},
            cpu_seconds=time.process_time(), lateness_buckets=tuple(self._lateness),
            events_missed=self._outbox.events_missed,
        )

    def _send_inventory(self) -> None:
        usable = self._open and self._error is None
        shown = Inventory(
            session=self._session, epoch=self._epoch, driver_version=self._versions[0],
            nvml_version=self._versions[1], cuda_version=self._versions[2],
            devices=tuple(
                sorted(self._devices.values(), key=lambda one: (one.entity.gpu, one.mig is not None))
            )
            if usable
            else (),
            lost=dict(self._lost) if usable else {}, error=None if self._released else self._error,
            released=self._released,
        )
        if shown != self._sent_inventory:
            self._sent_inventory = shown
            self._outbox.keep(InventoryMessage(shown))

    # Shedding and bursts

    def _judge_driver_time(self) -> None:
        now = self._clock()
        elapsed = (now - self._shed_since_ns) * 1e-9
        if elapsed < self._settings.shed_seconds or self._bursting:
            return
        ratio = max(
            ((total - self._shed_base.get(uuid, 0.0)) / elapsed for uuid, total in self._driver_seconds.items()),
            default=0.0,
        )
        first = self._shed_since_ns == 0
        self._shed_since_ns = now
        self._shed_base = dict(self._driver_seconds)
        if first:
            return
        budget = self._settings.driver_time_budget_ratio
        level = self._level
        if ratio > budget:
            self._calm_since_ns = 0
            level = min(level + 1, len(self._ladder) - 1)
        elif level > 0:
            higher = self._ladder[level - 1] / self._ladder[level]
            if ratio * higher > RECOVER_BELOW * budget:
                self._calm_since_ns = 0
            elif self._calm_since_ns == 0:
                self._calm_since_ns = now
            elif (now - self._calm_since_ns) * 1e-9 >= self._settings.recover_seconds:
                self._calm_since_ns = 0
                level -= 1
        self._level = level

    def _start_burst(self, hz: float, seconds: float) -> None:
        if hz <= self._ladder[self._level] or seconds <= 0:
            return
        already = self._bursting
        self._burst_period_ns = round(1e9 / hz)
        self._burst_until_ns = self._clock() + round(seconds * 1e9)
        if not already:
            self._split(on=True)

    def _end_burst(self) -> None:
        self._burst_until_ns = 0
        self._shed_since_ns = 0
        self._split(on=False)

    def _split(self, *, on: bool) -> None:
        gone = [(entity, code) for entity in self._entities if (code := entity.set_burst(on, self._period_ns))]
        try:
            for entity, code in gone:
                self._lose(entity, code)
        except DriverGoneError as error:
            self._driver_gone(error.code, str(error))


class LibraryChangedError(Exception):
    """The loaded library no longer fits the kernel driver; pynvml never unloads it."""


_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # system call numbers
_SLICE_NS = 100_000  # the kernel's minimum


def _wake_on_time() -> None:
    """Asks the kernel, unprivileged, to wake us on time; where it cannot, ticks are only a little later.

    Timers have a slack of 50 us (PR_SET_TIMERSLACK, prctl(2)). And since Linux 6.12 a task with a shorter slice
    (sched_setattr(2), sched_runtime of SCHED_OTHER) preempts one that computes; with the default of about 3 ms, a
    parent that renders makes every fiftieth tick 2 to 5 ms late on two cores. Older kernels ignore the slice.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.prctl(29, ctypes.c_ulong(1), 0, 0, 0)
        number = _SCHED_SETATTR.get(os.uname().machine)
        if number is not None:
            nice = os.getpriority(os.PRIO_PROCESS, 0)
            # struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period
            attributes = struct.pack("=IIQiIQQQ", 48, os.SCHED_OTHER, 0, nice, 0, _SLICE_NS, 0, 0)
            libc.syscall(ctypes.c_long(number), ctypes.c_int(0), attributes, ctypes.c_uint(0))


def main(arguments: Sequence[str]) -> int:
    """Entry point of the process: `arguments` are the numbers of the socket and of the heartbeat page."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the parent's to answer
    _wake_on_time()
    channel = socket.socket(fileno=int(arguments[0]))
    page = mmap.mmap(int(arguments[1]), HEARTBEAT_BYTES)
    os.close(int(arguments[1]))
    heartbeat = memoryview(page).cast("Q")
    heartbeat[3] = time.monotonic_ns()
    channel.setblocking(True)
    packet = channel.recv(1 << 16)
    if not packet:
        return 0
    try:
        settings = msgspec.msgpack.decode(packet, type=Settings)
    except msgspec.DecodeError as error:
        sys.stderr.write(f"claimscope sampler: the first message is no settings: {error}\n")
        return EXIT_BAD_MESSAGE
    channel.setblocking(False)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
    heartbeat[3] = time.monotonic_ns()
    return Sampler(channel, heartbeat, settings).run()
