"""What changes under our hands: the file of thresholds, the kernel log, the PCI bus; looked at now and then."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from claimscope.health.kmsg import (
    KernelLog,
    KernelLogCounts,
    KernelLogError,
    KernelReport,
    newest_sequence,
    open_kernel_log,
)
from claimscope.health.thresholds import ThresholdError, Thresholds
from claimscope.health.watch import HealthWatch
from claimscope.metrics.own import own
from claimscope.model import Sample
from claimscope.watchedfile import WatchedFile
from claimscope.yamlfile import ConfigError, read_mapping

logger = logging.getLogger(__name__)

FILE_NS = 2_000_000_000  # how often the file of thresholds is looked at
REOPEN_NS = 60_000_000_000
BUS_NS = 30_000_000_000
_CHUNK_BYTES = 1 << 16


def thresholds_file(path: Path) -> WatchedFile[Thresholds]:
    """The numbers of a YAML file."""
    return WatchedFile(path, lambda content: read_thresholds(content, str(path)), about="the file of thresholds")


def read_thresholds(text: bytes | str, name: str) -> Thresholds:
    """The numbers of a YAML text. Raises ConfigError with file, line and column."""
    found = read_mapping(text, name)
    if found is None:
        return Thresholds()
    keys = {key.value: key for key, _ in found.pairs()}
    try:
        return Thresholds.from_mapping(found.values)
    except ThresholdError as error:
        wrong = next((key for name, key in keys.items() if f"{name}: " in str(error)), found.root)
        raise ConfigError(f"{found.at(wrong)}: {error}") from error


class KernelLogSource:
    """The kernel log at a path, opened again now and then while it cannot be read."""

    def __init__(self, path: Path, *, after: int | None) -> None:
        self._path = path
        self._after = after
        self._log: KernelLog | None = None
        self._descriptor: int | None = None
        self._retry_ns: int | None = None
        self._error: str | None = None
        self._before = KernelLogCounts()  # of logs that were closed since

    @property
    def up(self) -> bool:
        """It is being read."""
        return self._log is not None

    @property
    def sequence(self) -> int | None:
        """Number of the newest record that was read."""
        return self._after if self._log is None else self._log.last_sequence

    @property
    def counts(self) -> KernelLogCounts:
        """What happened while reading."""
        before, now = self._before, self._log.counts if self._log is not None else KernelLogCounts()
        return KernelLogCounts(
            records=before.records + now.records,
            overruns=before.overruns + now.overruns,
            lost_records=before.lost_records + now.lost_records,
            oversized=before.oversized + now.oversized,
            malformed=before.malformed + now.malformed,
            written_by_processes=before.written_by_processes + now.written_by_processes,
            dropped_reports=before.dropped_reports + now.dropped_reports,
        )

    def poll(self, *, monotonic_ns: int, wall_ns: int) -> tuple[KernelReport, ...]:
        """What was logged since the last look."""
        if self._log is None and (self._retry_ns is None or monotonic_ns >= self._retry_ns):
            self._retry_ns = monotonic_ns + REOPEN_NS
            self._open()
        if self._log is None:
            return ()
        reports = self._log.poll(monotonic_ns=monotonic_ns, wall_ns=wall_ns)
        if self._log.closed is not None:
            self._say(self._log.closed)
            self.close()
        return reports

    def close(self) -> None:
        """Lets it go."""
        self._before, self._after = self.counts, self.sequence
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._log = self._descriptor = None

    def _open(self) -> None:
        try:
            descriptor = self._descriptor = open_kernel_log(self._path, from_start=True)
        except KernelLogError as error:
            self._say(error.strerror or str(error))
            return
        kept_in_a_file = not stat.S_ISCHR(os.fstat(descriptor).st_mode)
        read = RecordedLines(descriptor).read if kept_in_a_file else lambda size: os.read(descriptor, size)
        first = self._after is None
        if first:
            self._after = newest_sequence(read)
        self._log = KernelLog(read, after=self._after, caught_up=first)
        if self._error is not None:
            logger.info("the kernel log %s is read", self._path)
        self._error = None

    def _say(self, error: str) -> None:
        if error != self._error:
            logger.error("the kernel log is not read: %s", error)
        self._error = error


class RecordedLines:
    """A regular file that grows, one record of a kernel log a line: a recording, or a drill's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""

    def read(self, size: int) -> bytes:
        """One record, as the kernel's device gives them; raises BlockingIOError where there is no whole line yet."""
        line, newline, rest = self._rest.partition(b"\n")
        if not newline:
            self._rest += os.read(self._descriptor, _CHUNK_BYTES)
            line, newline, rest = self._rest.partition(b"\n")
        if not newline:
            raise BlockingIOError
        self._rest = rest
        return line[:size]


class HealthSources:
    """All of them, as far as they are configured."""

    def __init__(
        self, *, thresholds: WatchedFile[Thresholds] | None = None, kernel_log: KernelLogSource | None = None,
        bus: Callable[[], Mapping[str, str] | None] | None = None,
    ) -> None:
        self._thresholds = thresholds
        self._kernel_log = kernel_log
        self._bus = bus
        self._looked_ns: int | None = None
        self._looked_at_bus_ns: int | None = None

    def poll(self, watch: HealthWatch, now_ns: int, wall_ns: int) -> None:
        """Hands on what is new."""
        if self._thresholds is not None and (self._looked_ns is None or now_ns - self._looked_ns >= FILE_NS):
            self._looked_ns = now_ns
            thresholds = self._thresholds.poll()
            if thresholds is not None:
                watch.set_thresholds(thresholds)
        if self._bus is not None and (self._looked_at_bus_ns is None or now_ns - self._looked_at_bus_ns >= BUS_NS):
            self._looked_at_bus_ns = now_ns
            watch.bus(self._bus())
        if self._kernel_log is not None:
            reports = self._kernel_log.poll(monotonic_ns=now_ns, wall_ns=wall_ns)
            watch.kernel(reports, self._kernel_log.sequence, now_ns, wall_ns)

    def close(self) -> None:
        """Lets the kernel log go."""
        if self._kernel_log is not None:
            self._kernel_log.close()

    def samples(self) -> Iterable[Sample]:
        """How they are doing; nothing of what is not configured."""
        if self._thresholds is not None:
            yield own("thresholds_up", float(self._thresholds.up))
        if self._kernel_log is not None:
            counts = self._kernel_log.counts
            yield own("kernel_log_up", float(self._kernel_log.up))
            yield own("kernel_log_records_total", counts.records)
            yield own("kernel_log_overruns_total", counts.overruns)
            yield own("kernel_log_lost_records_total", counts.lost_records)
            yield own("kernel_log_ignored_total", counts.written_by_processes)
