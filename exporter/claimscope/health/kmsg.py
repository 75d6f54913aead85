"""Which lines about GPUs did the kernel log since we looked last?

/dev/kmsg gives one record for each read, "priority,sequence,microseconds,flags;text" with lines " KEY=value" behind it
(Documentation/ABI/testing/dev-kmsg). It goes on while NVML hangs, has the events from before we came, and has more in
its text than NVML tells. A GPU may fill it with hundreds of thousands of copies of one line, so each poll reads a
bounded number of records and hands out one report for each fault and second; what the ring overwrote meanwhile is
counted from the gap in the sequence numbers.

Lines that a process wrote into the log are not the kernel's word. They are left out unless asked for, as a drill does.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from claimscope.health.kernel_lines import GpuLine, LineKind, parse_line

logger = logging.getLogger(__name__)

DEVICE: Final = Path("/dev/kmsg")
BUFFER_BYTES: Final = 16_384  # CONSOLE_EXT_LOG_MAX is 8192
RECORDS_PER_POLL: Final = 1_000  # some 10 ms of work
REPORTS_PER_POLL: Final = 512
_REMEMBERED_TEXTS: Final = 256
_SECOND_US: Final = 1_000_000
_MOST_RECORDS_KEPT: Final = 1_000_000  # a ring of 32 MiB with records of 32 bytes

_ESCAPE: Final = re.compile(rb"\\x([0-9a-fA-F]{2})")
_MARKS: Final = (b"NVRM: ", b"PCIe Bus Error", b"AER: ", b"GPU reset executed")
_WRITTEN_KINDS: Final = frozenset({LineKind.GPU_RESET})  # only ever written by a process


class KernelLogError(OSError):
    """The kernel log cannot be read: where, why, what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of the log."""

    level: int  # 0 emergency to 7 debug
    facility: int  # 0: the kernel itself
    sequence: int  # since boot
    since_boot_us: int
    text: bytes  # still escaped

    @property
    def from_kernel(self) -> bool:
        """Whether the kernel wrote it; what a process writes into /dev/kmsg gets another facility."""
        return self.facility == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReport:
    """All lines of one second that say the same of one GPU."""

    line: GpuLine  # the first of them, with what the others add
    count: int
    sequence: int  # of the last
    wall_ns: int  # of the first
    from_kernel: bool = True


@dataclass(slots=True, kw_only=True)
class KernelLogCounts:
    """What happened while reading; each only rises."""

    records: int = 0
    overruns: int = 0  # times that the ring had overtaken us
    lost_records: int = 0  # overwritten before we read them
    oversized: int = 0  # longer than the buffer, skipped
    malformed: int = 0
    written_by_processes: int = 0  # lines about GPUs that were left out because the kernel did not write them
    dropped_reports: int = 0  # more different faults in one poll than are kept


def parse_record(data: bytes) -> Record | None:
    """One record as read; None if it is none."""
    header, separator, body = data.partition(b";")
    fields = header.split(b",")
    if not separator or len(fields) < 4 or not all(field.isdigit() and len(field) < 20 for field in fields[:3]):
        return None
    priority, sequence, since_boot_us = (int(field) for field in fields[:3])
    return Record(
        level=priority & 7,
        facility=priority >> 3,
        sequence=sequence,
        since_boot_us=since_boot_us,
        text=body.partition(b"\n")[0],
    )


def unescaped(text: bytes) -> str:
    """The text as it was printed: the kernel writes what is not printable as \\xNN."""
    plain = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), text)
    return plain.decode("utf-8", errors="replace")


def open_kernel_log(path: Path = DEVICE, *, from_start: bool) -> int:
    """A descriptor at the oldest record that is kept, or behind the newest. Raises KernelLogError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise KernelLogError(
            error.errno, f"{path} is not there: mount it from the host to see faults that NVML does not tell"
        ) from error
    except PermissionError as error:
        raise KernelLogError(
            error.errno, f"{path} may not be read: it needs root or CAP_SYSLOG, and the device allowed to the container"
        ) from error
    except OSError as error:
        raise KernelLogError(error.errno, f"{path} cannot be opened: {error.strerror}") from error
    try:
        os.lseek(descriptor, 0, os.SEEK_SET if from_start else os.SEEK_END)
    except OSError as error:
        os.close(descriptor)
        raise KernelLogError(error.errno, f"{path} is not a kernel log: {error.strerror}") from error
    return descriptor


def newest_sequence(read: Callable[[int], bytes]) -> int:
    """Number of the newest record that is kept, by reading past all of them; -1 where there is none.

    Who begins behind it must know it: what is logged before the next restart has to be found again after that.
    """
    newest = -1
    for _ in range(_MOST_RECORDS_KEPT):
        try:
            record = parse_record(read(BUFFER_BYTES))
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EINVAL):
                break
            continue
        newest = record.sequence if record is not None else newest
    return newest


def start_after(boot_id: str, seen_boot_id: str | None, seen_sequence: int | None) -> int | None:
    """Where to begin: None behind the newest record, else the sequence number of the last record already seen.

    Who never looked before begins at the end: faults from before that may be repaired long since.
    """
    if seen_boot_id is None or seen_sequence is None:
        return None
    return seen_sequence if seen_boot_id == boot_id else -1


@dataclass(slots=True)
class _Group:
    """The lines of one report so far."""

    line: GpuLine
    first_us: int
    from_kernel: bool
    count: int = 0
    sequence: int = 0

    def report(self, boot_wall_ns: int, now_wall_ns: int) -> KernelReport:
        return KernelReport(
            line=self.line,
            count=self.count,
            sequence=self.sequence,
            wall_ns=min(now_wall_ns, boot_wall_ns + self.first_us * 1000),
            from_kernel=self.from_kernel,
        )


class KernelLog:
    """Reads a log record by record and never waits."""

    def __init__(
        self,
        read: Callable[[int], bytes],
        *,
        after: int | None = None,
        caught_up: bool = False,
        accept_written: bool = False,
        records_per_poll: int = RECORDS_PER_POLL,
    ) -> None:
        """`read` gives one record and raises as a non-blocking os.read does; `after` as start_after says.

        `caught_up`: all up to there has just been read, so that what comes has just been written.
        """
        self._read = read
        self._accept_written = accept_written
        self._records_per_poll = records_per_poll
        self._last = after
        self._caught_up = caught_up or after is None  # what we read now has just been written
        self._boot_wall_ns: int | None = None
        self._overrun = False
        self._skipped = 0  # too long, since the last record
        self._lines: dict[bytes, GpuLine | None] = {}
        self.counts = KernelLogCounts()
        self.closed: str | None = None  # why there is nothing more to read

    @classmethod
    def of(cls, descriptor: int, *, after: int | None = None, accept_written: bool = False) -> KernelLog:
        """A log that reads this descriptor."""
        return cls(lambda size: os.read(descriptor, size), after=after, accept_written=accept_written)

    @property
    def last_sequence(self) -> int | None:
        """Of the newest record seen; None if there was none yet."""
        return self._last

    def poll(self, *, monotonic_ns: int, wall_ns: int) -> tuple[KernelReport, ...]:
        """What was logged since the last poll, oldest first, at most `records_per_poll` records of it."""
        if self.closed is not None:
            return ()
        groups: dict[object, _Group] = {}
        newest_us: int | None = None
        overruns = self.counts.overruns
        empty = False
        for _ in range(self._records_per_poll):
            record = self._next()
            if record is None:
                empty = True
                break
            if isinstance(record, Record):
                newest_us = record.since_boot_us
                self._gather(record, groups)
        boot_wall_ns = self._place(newest_us if empty and self._caught_up else None, monotonic_ns, wall_ns)
        self._caught_up = empty
        self._say_overrun(self.counts.overruns > overruns)
        return tuple(group.report(boot_wall_ns, wall_ns) for group in groups.values())

    def _next(self) -> Record | bool | None:
        """A record, True for one to skip, None when there is no more for now."""
        try:
            data = self._read(BUFFER_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            return self._failed(error)
        if not data:
            self.closed = "the kernel log has ended"
            return None
        self.counts.records += 1
        record = parse_record(data)
        if record is None:
            self.counts.malformed += 1
            return True
        if self._last is not None:
            if record.sequence <= self._last:
                return True  # seen before a restart
            if self._last >= 0:
                self.counts.lost_records += max(0, record.sequence - self._last - 1 - self._skipped)
        self._last = record.sequence
        self._skipped = 0
        return record

    def _failed(self, error: OSError) -> bool | None:
        if error.errno == errno.EPIPE:  # overwritten; the next read gives the oldest record that is left
            self.counts.overruns += 1
            return True
        if error.errno == errno.EINVAL:  # longer than the buffer; the kernel has gone on to the next
            self.counts.oversized += 1
            self._skipped += 1
            return True
        self.closed = f"the kernel log cannot be read any more: {error.strerror}"
        logger.warning("%s", self.closed)
        return None

    def _gather(self, record: Record, groups: dict[object, _Group]) -> None:
        line = self._line(record.text)
        if line is None:
            return
        if not record.from_kernel and line.kind not in _WRITTEN_KINDS and not self._accept_written:
            self.counts.written_by_processes += 1
            return
        key = (
            line.kind, line.bdf, line.uuid, line.code, line.gpu_instance, line.compute_instance, line.nvlink,
            line.recovery_action, record.from_kernel, record.since_boot_us // _SECOND_US,
        )
        group = groups.get(key)
        if group is None:
            if len(groups) >= REPORTS_PER_POLL:
                self.counts.dropped_reports += 1
                return
            group = groups[key] = _Group(line, record.since_boot_us, record.from_kernel)
        elif not line.evidence.keys() <= group.line.evidence.keys():
            group.line = replace(group.line, evidence={**line.evidence, **group.line.evidence})
        group.count += 1
        group.sequence = record.sequence

    def _line(self, text: bytes) -> GpuLine | None:
        if not any(mark in text for mark in _MARKS):
            return None
        try:
            return self._lines[text]
        except KeyError:
            pass
        if len(self._lines) >= _REMEMBERED_TEXTS:
            self._lines.clear()
        line = self._lines[text] = parse_line(unescaped(text))
        return line

    def _place(self, newest_us: int | None, monotonic_ns: int, wall_ns: int) -> int:
        """Learns when the clock of the log was zero, in wall time.

        That clock is no clock of ours: it is not disciplined and drifts by minutes in a month. So a line that was just
        written says what it shows now; before the first of them, the time since boot has to do.
        """
        if newest_us is not None:
            self._boot_wall_ns = wall_ns - newest_us * 1000
        elif self._boot_wall_ns is None:
            self._boot_wall_ns = wall_ns - monotonic_ns
        return self._boot_wall_ns

    def _say_overrun(self, overrun: bool) -> None:
        if overrun and not self._overrun:
            logger.warning("the kernel log is written faster than it is read; %d lines lost", self.counts.lost_records)
        self._overrun = overrun
