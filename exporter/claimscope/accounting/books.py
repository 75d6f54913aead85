"""What is kept of an account, and of a device until what it counted is settled?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from claimscope.model import Holder, Total, Window

ALLOCATED_SECONDS = "allocated_seconds"  # key of held time x share, in accounts and in the unattributed rest
EXCLUSIVE = "exclusive"
RETENTION_NS = 300_000_000_000  # how long an ended account is shown with its final totals
MAX_INTERVALS = 512  # changes of holders per device that are kept for counters that are read late
ROUNDING = 1e-12  # a rest below this part of the whole is none

AccountKey: TypeAlias = tuple[Holder, str, str]  # holder, entity, basis


@dataclass(slots=True, eq=False)
class Book:
    """One account while it is kept; compared by identity, since a namesake is another account."""

    holder: Holder
    entity: str
    basis: str
    start_wall_ns: int
    ended_wall_ns: int | None = None
    ended_ns: int | None = None
    closed: bool = False  # no longer shown: forgotten, or a namesake took its place; what comes late is nobody's
    totals: dict[str, float] = field(default_factory=dict)


Parts: TypeAlias = tuple[tuple[Book, float], ...]


@dataclass(frozen=True, slots=True)
class Presence:
    """Who held an entity at one poll."""

    own: Parts
    whole: Parts  # of the GPU with its MIG devices; the same as `own` elsewhere
    counted: bool  # its time is handed out: not a GPU that is cut into MIG devices


@dataclass(slots=True)
class Interval:
    """Who held an entity from one poll to another, without a change."""

    start_ns: int
    end_ns: int
    own: Parts
    whole: Parts


@dataclass(slots=True)
class Span:
    """What a device counted between two readings."""

    start_ns: int
    end_ns: int
    deltas: dict[str, float]
    busy: dict[Holder, float]  # seconds of processes with a known holder
    busy_all: float  # seconds of all processes


@dataclass(slots=True)
class Sum:
    """A total that grows."""

    value: float
    start_wall_ns: int
    start_value: float = 0.0  # at start_wall_ns: what was counted before that is in `value`, and in no rise

    def total(self) -> Total:
        """As it is shown."""
        return Total(value=self.value, start_wall_ns=self.start_wall_ns, start_value=self.start_value)


@dataclass(slots=True)
class Device:
    """One entity: where its counters stand and what is not settled."""

    session: int = 0
    end_ns: int = 0
    counters: dict[str, tuple[float, int, int, int]] = field(default_factory=dict)  # value, time, session, epoch
    integrals: dict[str, tuple[float, int, int, int]] = field(default_factory=dict)  # value, time, session, epoch
    totals: dict[str, Sum] = field(default_factory=dict)
    unattributed: dict[str, Sum] = field(default_factory=dict)
    pending: list[Span] = field(default_factory=list)
    intervals: list[Interval] = field(default_factory=list)
    window: Window | None = None
    memory: Mapping[Holder, float] = field(default_factory=dict)  # of processes, in the newest window
    absent_ns: int | None = None  # since when the inventory does not show it


def merged(first: Span, second: Span) -> Span:
    """Two stretches as one."""
    deltas = dict(first.deltas)
    for key, delta in second.deltas.items():
        deltas[key] = deltas.get(key, 0.0) + delta
    busy = dict(first.busy)
    for holder, seconds in second.busy.items():
        busy[holder] = busy.get(holder, 0.0) + seconds
    return Span(
        min(first.start_ns, second.start_ns),
        max(first.end_ns, second.end_ns),
        deltas,
        busy,
        first.busy_all + second.busy_all,
    )


def leave(device: Device, key: str, amount: float, wall_ns: int) -> None:
    """Adds to what nobody gets; the series is there from the first moment, at 0."""
    rest = device.unattributed.get(key)
    if rest is None:
        total = device.totals.get(key)
        device.unattributed[key] = Sum(amount, wall_ns if total is None else total.start_wall_ns)
    else:
        rest.value += amount


def prune(device: Device) -> None:
    """Forgets who held the device before the oldest stretch that may still come."""
    if len(device.intervals) <= 8:
        return
    oldest_ns = min(
        (
            *(known[1] for known in device.counters.values()),
            *(known[1] for known in device.integrals.values()),
            *(span.start_ns for span in device.pending),
        ),
        default=0,
    )
    intervals = [interval for interval in device.intervals if interval.end_ns > oldest_ns]
    device.intervals = intervals[-MAX_INTERVALS:]
