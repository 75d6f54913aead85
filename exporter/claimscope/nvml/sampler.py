"""The sampler process: how does it read NVML to deadlines and send windows, events and inventories to its parent?

Single-threaded. A tick never waits for the parent; a driver call that does not come back is visible to the parent in
the heartbeat page (heartbeat.py), which names the GPU and the call in flight.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence

import msgspec
import pynvml

from claimscope.metrics.spec import Quantity
from claimscope.metrics.tables import QUANTITIES
from claimscope.model import Event, Inventory, Window
from claimscope.nvml import library
from claimscope.nvml.costs import Costs
from claimscope.nvml.devices import Devices, DriverGoneError
from claimscope.nvml.driver_events import EventReader
from claimscope.nvml.heartbeat import HEARTBEAT_BYTES, Heartbeat, Marker
from claimscope.nvml.library import LIB_RM_VERSION_MISMATCH, LibraryError
from claimscope.nvml.outbox import Outbox, ParentGoneError
from claimscope.nvml.rates import Rates
from claimscope.nvml.reader import EntityReader
from claimscope.nvml.wakeups import wake_on_time
from claimscope.nvml.wire import (
    LATENESS_BOUNDS_SECONDS,
    MAX_BURST_HZ,
    MAX_BURST_SECONDS,
    Acquire,
    Burst,
    CountProcesses,
    EventMessage,
    FromSampler,
    InventoryMessage,
    Release,
    Settings,
    Status,
    ToSampler,
    WindowMessage,
)

EXIT_LIBRARY_CHANGED = 18  # the kernel driver is of another version than the loaded library: only a new process helps
EXIT_BAD_MESSAGE = 65
MAX_RETRY_SECONDS = 10.0


class LibraryChangedError(Exception):
    """The loaded library no longer fits the kernel driver; pynvml never unloads it."""


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
        self._outbox = Outbox(channel)
        self._decoder: msgspec.msgpack.Decoder[ToSampler] = msgspec.msgpack.Decoder(ToSampler)
        self._session = clock()
        mark = Marker(heartbeat, clock)
        self._rates = Rates(settings)
        self._costs = Costs()
        self._events = EventReader(mark, clock, wall)
        self._devices = Devices(
            settings, heartbeat, mark=mark, clock=clock, quantities=quantities, costs=self._costs,
            events=self._events, changed=self._send_inventory,
        )
        self._released = False
        self._retry_ns = 0
        self._retry_seconds = settings.retry_seconds
        self._sent_inventory: Inventory | None = None
        # Counts
        self._ticks = 0
        self._late_ticks = 0
        self._window_start_ns = 0
        self._lateness_max_ns = 0
        self._lateness = [0] * (len(LATENESS_BOUNDS_SECONDS) + 1)

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
            if not self._released and not self._devices.open:
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
                if self._rates.bursting and deadline >= self._rates.burst_until_ns:
                    self._rates.end_burst()
                    self._split(on=False)
                heartbeat[1] = 0
                # The next deadline on the grid; those that have passed are counted and not replayed.
                period = self._rates.burst_period_ns if self._rates.bursting else self._rates.period_ns
                following = origin + period * ((deadline - origin) // period + 1)
                now = clock()
                if following <= now:
                    skipped = (now - following) // period + 1
                    self._late_ticks += skipped
                    following += skipped * period
                if full:
                    grid = self._rates.period_ns
                    full_due = origin + grid * ((deadline - origin) // grid + 1)
                if not self._rates.bursting:
                    full_due = following
                deadline = following
        except ParentGoneError:
            self._heartbeat[3] = clock()
            self._devices.let_go()
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
                self._devices.let_go()
                self._send_inventory()
            case Acquire():
                if self._released:
                    self._released = False
                    self._try_open()
            case Burst(hz=hz, seconds=seconds):
                if self._rates.start_burst(min(hz, MAX_BURST_HZ), min(seconds, MAX_BURST_SECONDS), self._clock()):
                    self._split(on=True)
            case CountProcesses(on=on):
                self._devices.count_processes(on)
            case Settings() as settings:
                self._change(settings)

    def _change(self, settings: Settings) -> None:
        old, self._settings = self._settings, settings
        self._devices.change(settings)
        if msgspec.structs.replace(settings, quarantine=old.quarantine, known=old.known) == old:
            self._devices.release_from_quarantine(set(old.quarantine) - set(settings.quarantine))
            return
        self._rates.change(settings)
        self._reopen()

    def _reopen(self) -> None:
        """Takes NVML up anew; what was measured until now is sent first."""
        self._cut_rest()
        if self._devices.open:
            self._devices.let_go()
            self._try_open()

    def _cut_rest(self) -> None:
        now = self._clock()
        if self._devices.open and now > self._window_start_ns:
            self._cut(self._window_start_ns, now)
            self._window_start_ns = now

    def _tick(self, now: int, *, full: bool) -> None:
        if not self._devices.open:
            if not self._released and now >= self._retry_ns:
                self._try_open()
            self._outbox.flush()
            return
        self._ticks += full or self._rates.bursting
        heartbeat, clock = self._heartbeat, self._clock
        gone: list[tuple[EntityReader, int]] = []
        for entity in self._devices.entities:
            code = 0
            for group in entity.fast_groups:
                code = code or group.read(heartbeat, clock)
            if full and not code:
                for group in entity.tick_groups:
                    code = code or group.read(heartbeat, clock)
            if not code and entity.waiting >= entity.fold_at:
                code = entity.fold(self._rates.period_ns)
            if not code and now >= entity.due_ns:
                code = entity.read_slow(now, heartbeat, clock)
            if code:
                gone.append((entity, code))
        try:
            for entity, code in gone:
                self._devices.lose(entity, code)
            self._events.poll(self._keep_event)
            if self._devices.need_anew(now):
                self._reopen()
        except (DriverGoneError, LibraryError) as error:
            self._driver_gone(error.code, str(error))
        self._outbox.flush()

    # Taking NVML up again

    def _try_open(self) -> None:
        try:
            self._devices.take_up()
            self._retry_seconds = self._settings.retry_seconds
            if self._rates.bursting:
                self._split(on=True)
            self._send_inventory()
        except (LibraryError, DriverGoneError) as error:
            self._driver_gone(error.code, str(error))
        except pynvml.NVMLError as error:
            code = int(error.value)
            self._driver_gone(code, library.explain(code, self._devices.path))

    def _driver_gone(self, code: int, text: str) -> None:
        self._devices.let_go()
        self._devices.error = text
        self._send_inventory()
        if code == LIB_RM_VERSION_MISMATCH:
            raise LibraryChangedError
        self._retry_ns = self._clock() + round(self._retry_seconds * 1e9)
        self._retry_seconds = min(2 * self._retry_seconds, MAX_RETRY_SECONDS)

    def _split(self, *, on: bool) -> None:
        period_ns = self._rates.period_ns
        gone = [(entity, code) for entity in self._devices.entities if (code := entity.set_burst(on, period_ns))]
        try:
            for entity, code in gone:
                self._devices.lose(entity, code)
        except DriverGoneError as error:
            self._driver_gone(error.code, str(error))

    # What is sent

    def _cut(self, start_ns: int, end_ns: int) -> None:
        messages: list[FromSampler] = []
        gone: list[tuple[EntityReader, int]] = []
        wall = self._wall() - (self._clock() - end_ns)
        for entity in self._devices.entities:
            code = entity.fold(self._rates.period_ns)
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
        self._costs.collect(self._devices.entities, self._events)
        self._rates.judge(self._costs.driver_seconds, self._clock())
        messages.append(self._status())
        self._lateness_max_ns = 0
        self._outbox.windows(messages)
        try:
            for entity, code in gone:
                self._devices.lose(entity, code)
        except DriverGoneError as error:
            self._driver_gone(error.code, str(error))

    def _status(self) -> Status:
        return Status(
            session=self._session, wall_ns=self._wall(), ticks=self._ticks, late_ticks=self._late_ticks,
            lateness_max_seconds=self._lateness_max_ns * 1e-9, dropped_messages=self._outbox.dropped,
            sampling_hz=self._rates.hz, shed=self._rates.shed, driver_seconds=self._costs.driver_seconds,
            calls=self._costs.calls(), cpu_seconds=time.process_time(), lateness_buckets=tuple(self._lateness),
            events_missed=self._outbox.events_missed,
        )

    def _send_inventory(self) -> None:
        shown = self._devices.as_inventory(self._session, released=self._released)
        if shown != self._sent_inventory:
            self._sent_inventory = shown
            self._outbox.keep(InventoryMessage(shown))

    def _keep_event(self, event: Event) -> None:
        self._outbox.keep(EventMessage(event))


def main(arguments: Sequence[str]) -> int:
    """Entry point of the process: `arguments` are the numbers of the socket and of the heartbeat page."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the parent's to answer
    wake_on_time()
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
