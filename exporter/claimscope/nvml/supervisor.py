"""How does the agent keep one sampler process alive without ever waiting for the driver?

The parent's side of the sampler: starts it, listens to it, and watches the heartbeat page. A sampler whose driver call
does not come back is left behind and replaced once; the GPU it named is quarantined. Nothing here waits for a process
to die: one in uninterruptible sleep does not die, and must not block the event loop or the exit. So processes are
`subprocess.Popen` that are polled, not asyncio's transports, whose watchers wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import mmap
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

import claimscope
from claimscope.clock import Clock, SystemClock
from claimscope.model import Inventory
from claimscope.nvml.wire import (
    EVENT_WAIT_NUMBER,
    Acquire,
    Burst,
    CountProcesses,
    FromSampler,
    InventoryMessage,
    Release,
    Settings,
    Status,
    ToSampler,
    WindowMessage,
    unnamed,
)

logger = logging.getLogger(__name__)

# Of messages of one kind that the socket did not take yet, only the newest waits.
_KINDS = {Release: "nvml", Acquire: "nvml", Burst: "burst", CountProcesses: "processes", Settings: "settings"}
HEARTBEAT_BYTES = 64
EXIT_LIBRARY_CHANGED = 18
MAX_PACKET = 1 << 20
MAX_PACKETS_PER_TURN = 256  # the loop serves others in between
POLL_SECONDS = 0.05
RESTART_REASONS = ("hang", "stopped", "crash", "library_changed")
LOOP_IDLE_SECONDS = 1.0  # the sampler's loop turns at least this often while it is healthy
EXIT_GRACE_SECONDS = 1.0
QUARANTINE_FIRST_SECONDS, QUARANTINE_MAX_SECONDS = 60.0, 3600.0

# What of the environment the sampler needs: where the library is, what a container shows, which simulation.
ENVIRONMENT = ("LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "LANG", "TZ")
ENVIRONMENT_PREFIXES = ("NVIDIA_", "CLAIMSCOPE_SIM_")

_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL})

_PROGRAM = (
    "import sys\nsys.path[:0] = sys.argv[3:]\nfrom claimscope.nvml.sampler import main\nsys.exit(main(sys.argv[1:3]))"
)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that the sampler gets."""
    return {
        name: value
        for name, value in environment.items()
        if name in ENVIRONMENT or name.startswith(ENVIRONMENT_PREFIXES)
    }


def import_paths() -> tuple[str, ...]:
    """Where the sampler finds our package, msgspec and pynvml; without site and its start-up hooks."""
    paths = [str(Path(claimscope.__file__).resolve().parents[1])]
    for name in ("msgspec", "pynvml"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{name} is not installed in this Python ({sys.executable})")
        origin = Path(spec.origin)
        paths.append(str(origin.parents[1] if origin.name == "__init__.py" else origin.parent))
    return tuple(dict.fromkeys(paths))


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """A GPU that is left alone because a call on it hung or crashed the sampler."""

    uuid: str
    index: int
    call: str
    until_ns: int
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorState:
    """How the sampler process is doing, for own metrics, readiness and the local socket."""

    pid: int | None
    restarts: Mapping[str, int]  # reason -> count: hang, stopped, crash, library_changed
    quarantined: tuple[Quarantine, ...]
    unreaped: bool  # a predecessor that hangs in the driver is still there
    last_message_ns: int | None
    last_window_ns: int | None
    malformed_messages: int
    released: bool
    status: Status | None
    inventory: Inventory | None


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    channel: socket.socket
    page: mmap.mmap
    beat: memoryview
    started_ns: int
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    terminated_ns: int | None = None
    killed: bool = False

    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        self.channel.close()
        self.beat.release()
        self.page.close()


def _ignore(message: FromSampler) -> None:
    """Nobody listens yet."""


def process_state(pid: int) -> str:
    """The state letter of /proc/PID/stat: R, S, D, T (stopped), Z; "" where it cannot be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[0]


def call_name(number: int) -> str:
    """The name behind a call number of the heartbeat page."""
    # Only needed after a hang, and the table brings pynvml, whose memory the parent otherwise saves.
    from claimscope.nvml.calls import CALLS
    from claimscope.nvml.plan import call_names

    names = call_names(CALLS)
    return names[number] if number < len(names) else "unknown"


def hang_of(beat: tuple[int, int, int, int], *, now_ns: int, started_ns: int, hang_ns: int, start_ns: int) -> bool:
    """Whether a sampler with this heartbeat page is stuck. Calls that concern no single GPU (nvmlInit without
    persistence mode takes seconds per GPU) and the start have `start_ns`; calls on one GPU and the look for
    events, which does not wait, have `hang_ns`."""
    _, mark, call_ns, loop_ns = beat
    if loop_ns == 0:
        return now_ns - started_ns > start_ns
    if mark:
        short = mark >> 32 or mark == EVENT_WAIT_NUMBER
        return now_ns - call_ns > (hang_ns if short else max(start_ns, hang_ns))
    return now_ns - max(loop_ns, call_ns) > hang_ns + round(LOOP_IDLE_SECONDS * 1e9)


class Supervisor:
    """Keeps one sampler process running and hands its messages to `on_message`, on the event loop."""

    def __init__(
        self,
        settings: Settings,
        on_message: Callable[[FromSampler], None] | None = None,
        *,
        clock: Clock | None = None,
        environ: Mapping[str, str] | None = None,
        python: str = sys.executable,
        hang_seconds: float = 5.0,
        start_seconds: float = 60.0,
        kill_seconds: float = 30.0,
        restart_seconds: float = 0.5,
        max_restart_seconds: float = 30.0,
        quarantine_seconds: float = QUARANTINE_FIRST_SECONDS,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self.on_message = on_message or _ignore
        self._clock = clock or SystemClock()
        self._environment = child_environment(environ or {})
        self._python = python
        self._hang_ns = round(hang_seconds * 1e9)
        self._start_ns = round(start_seconds * 1e9)
        self._kill_ns = round(kill_seconds * 1e9)
        self._restart_seconds = restart_seconds
        self._max_restart_seconds = max_restart_seconds
        self._quarantine_seconds = quarantine_seconds
        self._jitter = jitter
        self._paths = import_paths()
        self._decoder: msgspec.msgpack.Decoder[FromSampler] = msgspec.msgpack.Decoder(FromSampler)
        self._buffer = bytearray(MAX_PACKET)
        self._child: _Child | None = None
        self._predecessor: _Child | None = None
        self._restarts: dict[str, int] = dict.fromkeys(RESTART_REASONS, 0)
        self._quarantined: dict[str, Quarantine] = {}
        self._hung: dict[str, Quarantine] = {}  # also those that are being tried again
        self._malformed = 0
        self._last_message_ns: int | None = None
        self._last_window_ns: int | None = None
        self._status: Status | None = None
        self._inventory: Inventory | None = None
        self._index_of: dict[str, int] = {}  # uuid -> NVML index of every GPU seen, the newest last
        self._released = False
        self._counts_processes = False
        self._unsent: dict[str, ToSampler] = {}  # kind -> the newest message that the socket did not take yet

    # What others see and ask

    @property
    def state(self) -> SupervisorState:
        """How it is doing now."""
        return SupervisorState(
            pid=self._child.process.pid if self._child is not None else None,
            restarts=dict(self._restarts),
            quarantined=tuple(self._quarantined.values()),
            unreaped=self._predecessor is not None,
            last_message_ns=self._last_message_ns,
            last_window_ns=self._last_window_ns,
            malformed_messages=self._malformed,
            released=self._released,
            status=self._status,
            inventory=self._inventory,
        )

    @property
    def restarts(self) -> Mapping[str, int]:
        """Samplers that had to be replaced, by reason: hang, stopped, crash, library_changed."""
        return self._restarts

    @property
    def quarantined(self) -> tuple[Quarantine, ...]:
        """GPUs that are left alone now."""
        return tuple(self._quarantined.values())

    def release(self) -> None:
        """Lets NVML go, so that a GPU can be reset; holds over restarts of the sampler."""
        self._released = True
        self._send(Release())

    def acquire(self) -> None:
        """Takes NVML up again."""
        self._released = False
        self._send(Acquire())

    def count_processes(self, on: bool) -> None:
        """Has the processes on each device told, whatever the collectors say; holds over restarts of the sampler."""
        self._counts_processes = on
        self._send(CountProcesses(on=on))

    def burst(self, hz: float, seconds: float) -> None:
        """Samples the few fast quantities at `hz` for `seconds`."""
        self._send(Burst(hz=hz, seconds=seconds))

    # The life of the sampler

    async def run(self) -> None:
        """Until cancelled."""
        wait = self._restart_seconds
        try:
            while True:
                child = self._start()
                reason = await self._watch(child)
                lived = self._clock.monotonic_ns() - child.started_ns
                self._restarts[reason] = self._restarts.get(reason, 0) + 1
                self._retire(child)
                if lived > 60_000_000_000 or reason in ("hang", "stopped"):
                    wait = self._restart_seconds
                await self._pause(wait * (0.5 + self._jitter() / 2) if reason != "hang" else 0.0)
                wait = min(2 * wait, self._max_restart_seconds)
        finally:
            self._leave()

    def _start(self) -> _Child:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        page_fd = os.memfd_create("claimscope-heartbeat")
        try:
            os.ftruncate(page_fd, HEARTBEAT_BYTES)
            page = mmap.mmap(page_fd, HEARTBEAT_BYTES)
            process = subprocess.Popen(  # noqa: S603 - our own interpreter with our own arguments
                [self._python, "-I", "-S", "-c", _PROGRAM, str(theirs.fileno()), str(page_fd), *self._paths],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), page_fd),
                env=self._environment,
                start_new_session=True,  # a terminal's Ctrl-C is for the parent
            )
        finally:
            os.close(page_fd)
            theirs.close()
        ours.setblocking(False)
        child = _Child(
            process=process,
            channel=ours,
            page=page,
            beat=memoryview(page).cast("Q"),
            started_ns=self._clock.monotonic_ns(),
        )
        self._child = child
        self._unsent.clear()
        self._send_settings()
        if self._counts_processes:
            self._send(CountProcesses(on=True))
        if self._released:
            self._send(Release())
        asyncio.get_running_loop().add_reader(ours.fileno(), self._receive, child)
        return child

    async def _watch(self, child: _Child) -> str:
        """Until it is dead or stuck; says which."""
        while True:
            if child.ended.is_set() or not child.alive():
                self._receive(child)
                code = await self._exit_code(child)
                if code == EXIT_LIBRARY_CHANGED:
                    logger.warning("the driver was changed under the sampler: starting it anew with the new library")
                    return "library_changed"
                logger.error("the sampler process %d ended with code %s: starting another", child.process.pid, code)
                if code is not None and -code in _CRASHES and child.beat[1] >> 32:
                    self._quarantine(child.beat[1], self._clock.monotonic_ns(), "crashes the sampler")
                return "crash"
            now = self._clock.monotonic_ns()
            beat = (child.beat[0], child.beat[1], child.beat[2], child.beat[3])
            if hang_of(
                beat, now_ns=now, started_ns=child.started_ns, hang_ns=self._hang_ns, start_ns=self._start_ns
            ):
                if process_state(child.process.pid) in ("T", "t"):
                    logger.error("the sampler process %d is stopped: replacing it", child.process.pid)
                    return "stopped"
                self._quarantine(beat[1], now, "does not come back")
                return "hang"
            self._reap(now)
            self._end_quarantines(now)
            self._send_unsent()
            # Not wait_for: in Python 3.11 it can swallow a cancellation that comes with the result.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await child.ended.wait()

    async def _exit_code(self, child: _Child) -> int | None:
        """A process that closed its socket is about to be gone; the kernel needs a moment."""
        for _ in range(20):
            if not child.alive():
                break
            await asyncio.sleep(POLL_SECONDS / 5)
        return child.process.returncode

    async def _pause(self, seconds: float) -> None:
        """Waits before the next start, and for a predecessor to be gone if there are two already."""
        end = self._clock.monotonic_ns() + round(seconds * 1e9)
        while (now := self._clock.monotonic_ns()) < end or self._child is not None:
            self._reap(now)
            if self._child is not None and self._predecessor is None:
                self._predecessor, self._child = self._child, None
            await asyncio.sleep(min(POLL_SECONDS, max(0.0, (end - now) * 1e-9) or POLL_SECONDS))

    def _retire(self, child: _Child) -> None:
        """Stops listening to it; asks it to go, and does not wait."""
        asyncio.get_running_loop().remove_reader(child.channel.fileno())
        child.close()
        if not child.alive():
            self._child = None
            return
        self._terminate(child)
        if self._predecessor is None:
            self._predecessor, self._child = child, None

    def _terminate(self, child: _Child) -> None:
        if child.terminated_ns is None:
            child.terminated_ns = self._clock.monotonic_ns()
            child.process.send_signal(signal.SIGTERM)
            child.process.send_signal(signal.SIGCONT)  # one that is stopped gets the other signal only then

    def _reap(self, now: int) -> None:
        for old in (self._predecessor, self._child):
            if old is None or old.terminated_ns is None:
                continue
            if not old.alive():
                if old is self._predecessor:
                    self._predecessor = None
                else:
                    self._child = None
            elif not old.killed and now - old.terminated_ns > self._kill_ns:
                old.killed = True  # late, because a kill within a driver call has frozen machines (dcgm-exporter 84)
                old.process.kill()

    def _leave(self) -> None:
        """At the end: a healthy sampler lets NVML go by itself when its socket closes; none is waited for for long."""
        for child in (self._child, self._predecessor):
            if child is None:
                continue
            if child.terminated_ns is None:
                asyncio.get_running_loop().remove_reader(child.channel.fileno())
                stuck = child.beat[1] != 0 and hang_of(
                    (child.beat[0], child.beat[1], child.beat[2], child.beat[3]),
                    now_ns=self._clock.monotonic_ns(), started_ns=child.started_ns, hang_ns=self._hang_ns // 4,
                    start_ns=self._hang_ns // 4,
                )
                child.close()
                if not stuck:
                    try:
                        child.process.wait(EXIT_GRACE_SECONDS)
                    except subprocess.TimeoutExpired:
                        logger.warning("the sampler process %d does not end: leaving it", child.process.pid)
                if child.alive():
                    self._terminate(child)
            if child.alive():
                # It is the kernel's from here on; Popen would warn of a child that is still running.
                child.process.returncode = -signal.SIGTERM
        self._child = self._predecessor = None

    # Quarantine

    def _quarantine(self, mark: int, now: int, what: str) -> None:
        index, number = (mark >> 32) - 1, mark & 0xFFFFFFFF
        call = call_name(number)
        if index < 0:
            logger.error("the sampler is stuck in %s, which names no GPU: replacing it", call or "its own code")
            return
        # One that hangs since before anybody could ask it has no uuid here.
        uuid = next((known for known, at in reversed(self._index_of.items()) if at == index), None) or unnamed(index)
        before = self._hung.get(uuid)
        times = before.times + 1 if before is not None else 1
        seconds = min(self._quarantine_seconds * 2 ** (times - 1), QUARANTINE_MAX_SECONDS)
        entry = Quarantine(uuid=uuid, index=index, call=call, until_ns=now + round(seconds * 1e9), times=times)
        self._quarantined[uuid] = self._hung[uuid] = entry
        logger.error(
            "%s on GPU %d (%s) %s: the GPU is left alone for %.0f s and the sampler replaced",
            call, index, uuid, what, seconds,
        )

    def _end_quarantines(self, now: int) -> None:
        if self._predecessor is not None:
            return  # it still sits in the driver: asking again would hang again
        over = [uuid for uuid, entry in self._quarantined.items() if now >= entry.until_ns]
        for uuid in over:
            logger.warning("GPU %s is tried again after its quarantine", uuid)
            del self._quarantined[uuid]
        if over:
            self._send_settings()

    # Messages

    def _send_settings(self) -> None:
        quarantine = {uuid: entry.index for uuid, entry in self._quarantined.items()}
        known = {uuid: index for uuid, index in self._index_of.items() if uuid not in quarantine}
        self._send(msgspec.structs.replace(self._settings, quarantine=quarantine, known=known))

    def _send(self, message: ToSampler) -> None:
        """Now, or as soon as the socket takes it; of each kind only the newest waits."""
        kind = _KINDS[type(message)]
        self._unsent.pop(kind, None)
        self._unsent[kind] = message
        self._send_unsent()

    def _send_unsent(self) -> None:
        child = self._child
        if child is None or child.terminated_ns is not None:
            self._unsent.clear()  # the next sampler is told at its start
            return
        for kind, message in list(self._unsent.items()):
            try:
                child.channel.send(msgspec.msgpack.encode(message))
            except BlockingIOError:
                return
            except OSError as error:  # it is dead or stuck; the watch finds out which
                logger.warning("a message could not be handed to the sampler: %s", error)
            del self._unsent[kind]

    def _receive(self, child: _Child) -> None:
        if child.terminated_ns is not None or child.channel.fileno() < 0:
            return
        view = memoryview(self._buffer)
        for _ in range(MAX_PACKETS_PER_TURN):
            try:
                size = child.channel.recv_into(view)
            except BlockingIOError:
                return
            except OSError:
                size = 0
            if size == 0:
                asyncio.get_running_loop().remove_reader(child.channel.fileno())
                child.ended.set()
                return
            try:
                message = self._decoder.decode(view[:size])
            except msgspec.MsgspecError as error:
                self._malformed += 1
                if self._malformed == 1:
                    logger.error("a message of the sampler cannot be understood and is dropped: %s", error)
                continue
            self._note(message)
            self.on_message(message)

    def _note(self, message: FromSampler) -> None:
        now = self._clock.monotonic_ns()
        self._last_message_ns = now
        match message:
            case WindowMessage(window=window):
                self._last_window_ns = now
                if window.entity in self._hung and window.entity not in self._quarantined:
                    hung = self._hung[window.entity]
                    if now - hung.until_ns > self._hang_ns:
                        del self._hung[window.entity]  # it answers again, and has for a while
            case InventoryMessage(inventory=inventory):
                self._inventory = inventory
                for device in inventory.devices:
                    if device.mig is None:
                        self._index_of.pop(device.entity.uuid, None)
                        self._index_of[device.entity.uuid] = device.entity.gpu
            case Status():
                self._status = message
            case _:
                pass
