"""How does a program come to see the simulated GPUs? The library is compiled, and a file filled that it answers from.

`SimulatedNvml` is that file. Whoever runs it calls `step`, or lets `run_writer` do so ten times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import logging
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final

from claimscope.clock import Clock
from claimscope.sim import layout
from claimscope.sim.answers import Answers, answers
from claimscope.sim.moment import WHOLE, EntityState, WorldState
from claimscope.sim.world import World

log = logging.getLogger(__name__)

LIBRARY_NAME: Final = "libnvidia-ml.so.1"
STATE_VARIABLE: Final = "CLAIMSCOPE_SIM_STATE"
STEP_SECONDS: Final = 0.1
COMPILE_SECONDS: Final = 60

_SLOT = struct.Struct("<IIHHidd")
_OVERRIDE = struct.Struct("<IIQ")
_PROCESS = struct.Struct("<IIIIQIIII")
_SAMPLE = struct.Struct(f"<Q{layout.SAMPLE_KINDS}d")
_EVENT = struct.Struct("<QIIQQII")
_VARIABLES = struct.Struct(f"<{2 * len(layout.VARIABLES)}d")
_HEAD = struct.Struct("<10I")
_CLOCK = struct.Struct("<qqqqIIII")
_U64 = struct.Struct("<Q")
_RECORD: Final = ctypes.sizeof(layout.EntityRecord)
_SAMPLED: Final = tuple(
    layout.VARIABLE_INDEX[name]
    for name in (
        "power_milliwatts",
        "gpu_percent",
        "memory_percent",
        "encoder_percent",
        "decoder_percent",
        "sm_megahertz",
        "memory_megahertz",
    )
)
# Only these move between two steps; a gauge holds until the next.
_INTERPOLATED: Final = tuple(
    name.endswith("_total") or name in {"energy_millijoules", "uptime_microseconds"} for name in layout.VARIABLES
)


class SimulatorError(RuntimeError):
    """The simulated NVML cannot be made; the text says what was found, where and what to do."""


def build_library(directory: Path | None = None) -> Path:
    """Compiles nvml.c, unless it was before, and answers with the path of libnvidia-ml.so.1.

    The result lies under a name of its content in `directory`, by default $XDG_CACHE_HOME/claimscope.
    """
    source = Path(__file__).with_name("nvml.c")
    header = layout.c_header()
    text = source.read_bytes()
    machine = os.uname().machine
    name = hashlib.sha256(b"\0".join((text, header.encode(), machine.encode()))).hexdigest()[:16]
    home = (directory if directory is not None else _cache_directory()) / f"nvml-{name}"
    library = home / LIBRARY_NAME
    if library.exists():
        return library
    compiler = next((found for found in map(shutil.which, ("cc", "gcc", "clang")) if found), None)
    if compiler is None:
        raise SimulatorError(
            "the simulated NVML needs a C compiler, and there is none in PATH (tried cc, gcc, clang). "
            "Install one, on Debian or Ubuntu: apt-get install gcc libc6-dev"
        )
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as work:
            (Path(work) / "layout.h").write_text(header)
            made = Path(work) / LIBRARY_NAME
            _compile(compiler, source, Path(work), made)
            made.replace(library)
    except OSError as error:
        raise SimulatorError(
            f"cannot write the simulated NVML to {home}: {error.strerror}. Set XDG_CACHE_HOME to a directory "
            "that can be written."
        ) from error
    return library


def _compile(compiler: str, source: Path, include: Path, output: Path) -> None:
    command = [compiler, "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden", "-I", str(include)]
    command += [f"-Wl,-soname,{LIBRARY_NAME}", "-o", str(output), str(source), "-lpthread", "-lm"]
    try:
        done = subprocess.run(  # noqa: S603 - the compiler from PATH, arguments all ours
            command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SimulatorError(f"{compiler} did not finish {source} within {COMPILE_SECONDS} s.") from error
    if done.returncode != 0:
        raise SimulatorError(
            f"{compiler} cannot compile {source} (exit code {done.returncode}): {done.stderr.strip()[-2000:]} "
            "Install a C compiler with its headers, on Debian or Ubuntu: apt-get install gcc libc6-dev"
        )


def _cache_directory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "claimscope"


class SimulatedNvml:
    """The state file of one simulated node, and the environment that makes a program see it."""

    def __init__(
        self,
        world: World,
        directory: Path | None = None,
        *,
        library_path: Path | None = None,
        library_directory: Path | None = None,
    ) -> None:
        self.world = world
        self.library_path = library_path or build_library(library_directory)
        self._made: Path | None = None
        if directory is None:
            directory = self._made = Path(tempfile.mkdtemp(prefix="claimscope-sim-"))
        directory.mkdir(parents=True, exist_ok=True)
        self.state_path = directory / "nvml.state"
        size = ctypes.sizeof(layout.State)
        # A new file, never one that a running reader has mapped.
        descriptor, name = tempfile.mkstemp(prefix="nvml.state.", dir=directory)
        try:
            os.ftruncate(descriptor, size)
            os.fchmod(descriptor, 0o644)
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._sequence = 0
        self._events = 0
        self._samples = [0] * layout.MAX_ENTITIES
        self._instances = [0] * layout.MAX_ENTITIES
        self._uuids: list[str | None] = [None] * layout.MAX_ENTITIES
        self._facts: dict[int, tuple[object, ...]] = {}
        self._processes: dict[int, tuple[object, ...]] = {}
        self._last_step: float | None = None
        self._ahead: WorldState | None = None
        self.step(0.0)
        self._map[: _U64.size] = _U64.pack(layout.MAGIC)
        Path(name).replace(self.state_path)

    @property
    def environment(self) -> dict[str, str]:
        """What to add to a child's environment. LD_LIBRARY_PATH is for programs that take no path of a library."""
        return {STATE_VARIABLE: str(self.state_path), "LD_LIBRARY_PATH": str(self.library_path.parent)}

    def close(self) -> None:
        """Unmaps the file and removes it."""
        self._map.close()
        self.state_path.unlink(missing_ok=True)
        if self._made is not None:
            with contextlib.suppress(OSError):
                self._made.rmdir()

    def __enter__(self) -> SimulatedNvml:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def step(
        self, t_seconds: float, *, monotonic_ns: int = 0, wall_ns: int | None = None, step_seconds: float = 0.0
    ) -> None:
        """Makes it `t_seconds`.

        Time then stands still, unless `monotonic_ns` says at which CLOCK_MONOTONIC that moment is: counters then
        move on by themselves for `step_seconds`, and stop there if no further step comes. Steps that follow each
        other on such a grid never let a counter go back.
        """
        # What the last step led up to is taken as it is, so that not even a rounding error moves a counter back.
        ahead = self._ahead
        now = ahead if ahead is not None and abs(ahead.t_seconds - t_seconds) < 1e-6 else self.world.state(t_seconds)
        moving = monotonic_ns != 0 and step_seconds > 0
        later = self.world.state(t_seconds + step_seconds) if moving else now
        self._ahead = later
        patches: list[tuple[int, bytes]] = []
        ends = {(entity.gpu, entity.place): entity for entity in later.entities}
        seen: set[int] = set()
        stamp_ns = wall_ns if wall_ns is not None else round(t_seconds * 1e9)
        for entity in now.entities:
            index = _index(entity.gpu, entity.place)
            seen.add(index)
            end = ends.get((entity.gpu, entity.place), entity)
            self._write_entity(patches, index, entity, end, t_seconds, stamp_ns)
        for index in range(layout.MAX_ENTITIES):
            if index not in seen and self._uuids[index] is not None:
                self._uuids[index] = None
                self._facts.pop(index, None)
                patches.append((_offset(index, "present"), struct.pack("<I", 0)))
        self._write_events(patches, t_seconds)
        header = layout.Header
        patches.append(
            (
                header.monotonic_ns.offset,
                _CLOCK.pack(
                    monotonic_ns if moving else 0,
                    round(step_seconds * 1e9) if moving else 0,
                    round(t_seconds * 1e9),
                    stamp_ns,
                    now.init_return,
                    self.world.profile.gpu_count,
                    now.driver_generation,
                    self.world.profile.cuda_version,
                ),
            )
        )
        for field, text in (("driver_version", now.driver_version), ("nvml_version", f"13.{now.driver_version}")):
            patches.append((getattr(header, field).offset, text.encode().ljust(layout.NAME_BYTES, b"\0")))
        self._apply(patches)
        if self._events:
            self._map[header.event_head.offset : header.event_head.offset + 8] = _U64.pack(self._events)
        self._last_step = t_seconds

    def _apply(self, patches: list[tuple[int, bytes]]) -> None:
        """Readers see all of it or nothing: the sequence is odd meanwhile."""
        place = layout.Header.sequence.offset
        self._map[place : place + 8] = _U64.pack(self._sequence + 1)
        for offset, data in patches:
            self._map[offset : offset + len(data)] = data
        self._sequence += 2
        self._map[place : place + 8] = _U64.pack(self._sequence)

    def _write_entity(
        self,
        patches: list[tuple[int, bytes]],
        index: int,
        entity: EntityState,
        end: EntityState,
        t_seconds: float,
        stamp_ns: int,
    ) -> None:
        if self._uuids[index] != entity.uuid:
            self._uuids[index] = entity.uuid
            self._instances[index] += 1
        # Where the counters begin anew within the step, they stand still until it is over.
        follows = end.facts[2:3] == entity.facts[2:3] and end.uuid == entity.uuid
        ahead = end.variables if follows else entity.variables
        pairs: list[float] = []
        for value, later, moves in zip(entity.variables, ahead, _INTERPOLATED, strict=True):
            pairs += (value, later if moves else value)
        patches.append((_offset(index, "variable"), _VARIABLES.pack(*pairs)))
        mig = entity.mig
        head = _HEAD.pack(
            1,
            self._instances[index],
            _index(entity.gpu, WHOLE),
            entity.lost,
            layout.FLAG_HANG if entity.hanging else 0,
            int(mig is not None),
            mig.gpu_instance_id if mig else 0xFFFFFFFF,
            mig.compute_instance_id if mig else 0xFFFFFFFF,
            min(len(entity.processes), layout.PROCESSES),
            0,
        )
        patches.append((_offset(index, "present"), head))
        if self._processes.get(index) != entity.processes:
            self._processes[index] = entity.processes
            patches.append((_offset(index, "process"), _processes(entity)))
        facts = (self._instances[index], entity.facts)
        if self._facts.get(index) != facts:
            self._facts[index] = facts
            _write_answers(patches, index, answers(self.world, entity, t_seconds))
        if mig is None and (self._last_step is None or t_seconds > self._last_step):
            number = self._samples[index]
            values = [entity.variables[place] for place in _SAMPLED]
            values += [0.0] * (layout.SAMPLE_KINDS - len(values))
            place = _offset(index, "sample") + number % layout.SAMPLES * _SAMPLE.size
            patches.append((place, _SAMPLE.pack(stamp_ns // 1000, *values)))
            self._samples[index] = number + 1
            patches.append((_offset(index, "sample_head"), _U64.pack(number + 1)))

    def _write_events(self, patches: list[tuple[int, bytes]], t_seconds: float) -> None:
        if self._last_step is None or t_seconds <= self._last_step:
            return
        for event in self.world.events(self._last_step, t_seconds):
            place = layout.Header.event.offset + self._events % layout.EVENTS * _EVENT.size
            self._events += 1
            record = _EVENT.pack(
                self._events,
                _index(event.gpu, WHOLE),
                0,
                event.type,
                event.data,
                event.gpu_instance,
                event.compute_instance,
            )
            patches.append((place, record))


def _index(gpu: int, place: int) -> int:
    return gpu if place == WHOLE else layout.MAX_GPUS + gpu * layout.MIG_SLOTS + place


def _offset(index: int, name: str) -> int:
    start: int = layout.State.entity.offset
    return start + index * _RECORD + int(getattr(layout.EntityRecord, name).offset)


def _processes(entity: EntityState) -> bytes:
    return b"".join(
        _PROCESS.pack(
            process.pid,
            process.gpu_instance,
            process.compute_instance,
            0,
            process.memory_bytes,
            process.sm_percent,
            process.memory_percent,
            process.encoder_percent,
            process.decoder_percent,
        )
        for process in entity.processes[: layout.PROCESSES]
    )


def _write_answers(patches: list[tuple[int, bytes]], index: int, made: Answers) -> None:
    table = bytearray(layout.SLOTS * _SLOT.size)
    taken = [False] * layout.SLOTS
    for (key, arg), (code, kind, variable, scale, base) in made.slots.items():
        place = layout.slot_hash(key, arg)
        while taken[place]:
            place = (place + 1) % layout.SLOTS
        taken[place] = True
        _SLOT.pack_into(table, place * _SLOT.size, key, arg, code, kind, variable, scale, base)
    patches.append((_offset(index, "slot"), bytes(table)))
    width = layout.STRING_BYTES
    strings = b"".join(text.encode()[: width - 1].ljust(width, b"\0") for text in made.strings)
    patches.append((_offset(index, "string"), strings))
    overrides = bytearray(_OVERRIDE.size * (len(layout.FUNCTIONS) + 1))
    for name, (code, flags, delay_ns) in made.overrides.items():
        _OVERRIDE.pack_into(overrides, layout.FUNCTION_KEYS[name] * _OVERRIDE.size, code, flags, delay_ns)
    patches.append((_offset(index, "override"), bytes(overrides)))


async def run_writer(simulated: SimulatedNvml, clock: Clock, *, origin_ns: int | None = None) -> None:
    """Steps ten times a second until cancelled; `origin_ns` is the monotonic time at which the simulation began.

    `clock` must be the machine's: the library moves counters on by CLOCK_MONOTONIC.
    """
    step_ns = round(STEP_SECONDS * 1e9)
    origin = clock.monotonic_ns() if origin_ns is None else origin_ns
    while True:
        now = clock.monotonic_ns()
        number = max(0, (now - origin) // step_ns)
        begins = origin + number * step_ns
        simulated.step(
            number * step_ns / 1e9,
            monotonic_ns=begins,
            wall_ns=clock.wall_ns() - (now - begins),
            step_seconds=STEP_SECONDS,
        )
        await asyncio.sleep(max(0.0, (begins + step_ns - clock.monotonic_ns()) / 1e9))
