"""How long did a phase take, given that the API keeps times in whole seconds and some not at all?

Each end of a phase may be known twice: by the second that an object states, and by the moment at which a watch brought
the news. The arrival refines the stamp within its second; where the two disagree by more, the stamps are right, since
a watch may bring old news after a gap.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, TypeVar

from claimscope.claims.model import DURATION_BOUNDS, LIFETIME_BOUNDS, Phase
from claimscope.metrics.cluster import histogram, sample
from claimscope.metrics.controller import own
from claimscope.model import Histogram, Sample

STAMP_RESOLUTION_SECONDS = 1.0  # metav1.Time
READY = "ready"  # the whole way, beside the phases
LIFETIME = "lifetime"
_Labels = TypeVar("_Labels")

PHASES = (*(phase.value for phase in Phase), READY)


class Moment(NamedTuple):
    """When something happened, as far as it is known."""

    arrival_ns: int | None  # monotonic; None where a list told it
    stamp: float | None  # Unix seconds as an object states them, 1 s resolution

    def counts_after(self, wall: float) -> bool:
        """Whether this happened under our own eyes, or states that it happened after `wall`."""
        return self.arrival_ns is not None or (self.stamp is not None and self.stamp > wall)


@lru_cache(maxsize=16_384)
def listed(stamp: float | None) -> Moment:
    """What a list told: only the second is known, and all that happened in it share one object."""
    return Moment(None, stamp)


def moment(arrival_ns: int | None, stamp: float | None) -> Moment:
    """When something happened that a watch brought at `arrival_ns`, or a list."""
    return listed(stamp) if arrival_ns is None else Moment(arrival_ns, stamp)


class Skip(enum.Enum):
    """Why there is no duration."""

    CLOCK = "clock"  # the end is stamped before the beginning
    UNSEEN = "unseen"  # an end is not known


def duration(begin: Moment | None, end: Moment | None) -> float | Skip:
    """Seconds from `begin` to `end`, or why they cannot be told."""
    if begin is None or end is None:
        return Skip.UNSEEN
    stamped = end.stamp - begin.stamp if begin.stamp is not None and end.stamp is not None else None
    arrived = (
        (end.arrival_ns - begin.arrival_ns) / 1e9
        if begin.arrival_ns is not None and end.arrival_ns is not None
        else None
    )
    if stamped is None:
        return Skip.UNSEEN if arrived is None else _forward(arrived)
    if arrived is None or arrived == 0:  # the same event brought both: only the stamps tell them apart
        return _forward(stamped)
    if abs(arrived - stamped) <= STAMP_RESOLUTION_SECONDS:
        return max(arrived, 0.0)
    return stamped if stamped >= 0 else _forward(arrived)


def _forward(seconds: float) -> float | Skip:
    """Two watches, or two clocks cut to seconds, may be out of step by up to a second; more is a clock gone wrong."""
    return max(seconds, 0.0) if seconds >= -STAMP_RESOLUTION_SECONDS else Skip.CLOCK


def later(one: Moment, other: Moment) -> Moment:
    """When both had happened."""
    if one.stamp is None or other.stamp is None:
        return Moment(_latest(one.arrival_ns, other.arrival_ns), None)
    if one.stamp == other.stamp:
        return Moment(_latest(one.arrival_ns, other.arrival_ns), one.stamp)
    return one if one.stamp > other.stamp else other


def _latest(one: int | None, other: int | None) -> int | None:
    return max(one, other) if one is not None and other is not None else None


@dataclass(slots=True)
class _Series:
    """One histogram."""

    counts: list[int]
    sum: float = 0.0


@dataclass(slots=True)
class Figures:
    """Histograms and counters of claims' lives, as monotone as Prometheus wants them."""

    start_ns: int | None = None
    _phases: dict[tuple[str, str], _Series] = field(default_factory=dict)  # class, phase
    _ready: dict[str, _Series] = field(default_factory=dict)
    _lifetimes: dict[tuple[str, str], _Series] = field(default_factory=dict)  # class, outcome
    _completed: dict[tuple[str, str, str], int] = field(default_factory=dict)  # namespace, class, outcome
    _evictions: dict[tuple[str, str], int] = field(default_factory=dict)  # namespace, class
    _skipped: dict[tuple[str, str], int] = field(default_factory=dict)  # phase, reason

    def phase(self, deviceclass: str, phase: str, seconds: float | Skip) -> None:
        """One phase of one allocation, or READY."""
        if isinstance(seconds, Skip):
            self.skip(phase, seconds)
        elif phase == READY:
            _observe(self._ready, deviceclass, seconds, DURATION_BOUNDS)
        else:
            _observe(self._phases, (deviceclass, phase), seconds, DURATION_BOUNDS)

    def lifetime(self, deviceclass: str, outcome: str, seconds: float | Skip) -> None:
        """One claim, from creation to deletion."""
        if isinstance(seconds, Skip):
            self.skip(LIFETIME, seconds)
        else:
            _observe(self._lifetimes, (deviceclass, outcome), seconds, LIFETIME_BOUNDS)

    def skip(self, phase: str, reason: Skip) -> None:
        """One duration that cannot be told."""
        self._skipped[phase, reason.value] = self._skipped.get((phase, reason.value), 0) + 1

    def completed(self, namespace: str, deviceclass: str, outcome: str) -> None:
        """One allocation that ended, or one claim that ended without."""
        labels = (namespace, deviceclass, outcome)
        self._completed[labels] = self._completed.get(labels, 0) + 1

    def evicted(self, namespace: str, deviceclass: str) -> None:
        """One pod evicted from one claim."""
        self._evictions[namespace, deviceclass] = self._evictions.get((namespace, deviceclass), 0) + 1

    def samples(self) -> list[Sample | Histogram]:
        """Everything, in the families' terms."""
        start = self.start_ns
        found: list[Sample | Histogram] = []
        for family, bounds, table in (
            ("dra_allocation_duration_seconds", DURATION_BOUNDS, self._phases),
            ("dra_claim_lifetime_seconds", LIFETIME_BOUNDS, self._lifetimes),
        ):
            for labels, series in table.items():
                found.append(histogram(family, bounds, tuple(series.counts), series.sum, *labels, start_ns=start))
        for deviceclass, series in self._ready.items():
            found.append(histogram("dra_claim_ready_duration_seconds", DURATION_BOUNDS, tuple(series.counts),
                                   series.sum, deviceclass, start_ns=start))
        for ended, count in self._completed.items():
            found.append(sample("dra_claims_completed_total", count, *ended, start_ns=start))
        for evicted, count in self._evictions.items():
            found.append(sample("dra_claim_evictions_total", count, *evicted, start_ns=start))
        for skipped, count in self._skipped.items():
            found.append(own("skipped_durations_total", count, *skipped))
        return found


def _observe(table: dict[_Labels, _Series], labels: _Labels, seconds: float, bounds: tuple[float, ...]) -> None:
    series = table.get(labels)
    if series is None:
        series = table[labels] = _Series([0] * (len(bounds) + 1))
    series.counts[bisect_left(bounds, seconds)] += 1
    series.sum += seconds
