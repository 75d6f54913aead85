"""What follows from everything the watches have brought? Changes in, one immutable ClusterSnapshot out.

The order is fixed: the mirror first, then the claims' lives and the violations that a change means, and once per
publication what is counted over all of it. Parts that range over the whole cluster are remade no more often than
their own cost allows, so that a large cluster is shown a little later and never late for news.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from claimscope.claims.capacity import Capacity
from claimscope.claims.cluster import Change, Cluster
from claimscope.claims.drift import Drift
from claimscope.claims.lifecycle import Lifecycle
from claimscope.claims.migration import Migration
from claimscope.claims.model import ClusterSnapshot, Wait
from claimscope.claims.pending import Waiting
from claimscope.claims.quota import quota_samples
from claimscope.claims.selectors import Selectors
from claimscope.claims.taints import Violations, expressions_of, taint_samples
from claimscope.metrics.controller import own

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from claimscope.clock import Clock
    from claimscope.model import Histogram, Sample

T = TypeVar("T")

SHARE_OF_TIME: Final = 0.05  # of the wall clock that one part may take
LONGEST_SECONDS: Final = 60.0  # and after which it is remade whatever it costs
AGEING_SECONDS: Final = 5.0  # what grace times end late by
_CAPACITY_KINDS: Final = frozenset(("resourceclaims", "resourceslices", "deviceclasses"))
_MIGRATION_KINDS: Final = frozenset(("pods", "nodes", "resourceclaims", "resourceslices"))
VIEWS_AT_ONCE: Final = 10_000  # some 0.3 s
SETTLE_ROUNDS: Final = 4  # a class selector first, then the claim's on what it left: two, and room for news between


@dataclass(slots=True, kw_only=True)
class _Part(Generic[T]):
    """A result over the whole cluster that is remade when news has come and its cost allows."""

    make: Callable[[], T]
    result: T
    ages: bool = False  # depends on time as well: remade every few seconds without news, too
    made_ns: int | None = None
    cost_ns: int = 0
    generation: int = -1

    def refresh(self, generation: int, clock: Clock) -> None:
        """Remakes the result as of `generation`, unless that would take too much of the time."""
        began = clock.monotonic_ns()
        if self.made_ns is not None:
            age_ns = began - self.made_ns
            if self.generation == generation and not (self.ages and age_ns >= AGEING_SECONDS * 1e9):
                return
            if age_ns < min(self.cost_ns / SHARE_OF_TIME, LONGEST_SECONDS * 1e9):
                return
        self.result = self.make()
        self.made_ns = clock.monotonic_ns()
        self.cost_ns = self.made_ns - began
        self.generation = generation


@dataclass(slots=True)
class Engine:
    """The books of one leadership. One event loop owns it."""

    clock: Clock
    selectors: Selectors
    count_since_wall: float  # what ended before was counted by the previous leader, or by nobody who still runs
    cluster: Cluster = field(default_factory=Cluster)
    lifecycle: Lifecycle = field(init=False)
    violations: Violations = field(init=False)
    _waits: _Part[tuple[Wait, ...]] = field(init=False)
    _capacity: _Part[list[Sample]] = field(init=False)
    _others: tuple[_Part[list[Sample]], ...] = field(init=False)  # these evaluate no selector
    _classes_asked: int = 0  # revision of the classes whose selectors have been asked of every device
    _generation: int = 0
    _oldest_news_ns: int | None = None
    _publishes: int = 0
    _publish_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.lifecycle = Lifecycle(count_since_wall=self.count_since_wall, start_ns=self.clock.wall_ns())
        self.violations = Violations(count_since_wall=self.count_since_wall)
        cluster, selectors = self.cluster, self.selectors
        waiting, capacity, migration, drift = Waiting(), Capacity(), Migration(), Drift()
        self._waits = _Part(
            make=lambda: waiting.waits(cluster, selectors, self.lifecycle.views, self._wall()), result=(), ages=True
        )
        counted = self._where_read(lambda: capacity.samples(cluster, selectors), _CAPACITY_KINDS)
        self._capacity = _Part(make=counted, result=[])
        # Nothing is counted from a kind that cannot be read: without claims, every device would look free.
        makers: tuple[tuple[Callable[[], list[Sample]], frozenset[str]], ...] = (
            (lambda: taint_samples(cluster), frozenset()),
            (lambda: quota_samples(cluster), frozenset()),
            (lambda: migration.samples(cluster), _MIGRATION_KINDS),
            (lambda: drift.samples(cluster), frozenset()),
        )
        self._others = tuple(_Part(make=self._where_read(make, kinds), result=[]) for make, kinds in makers)

    def _where_read(self, make: Callable[[], list[Sample]], kinds: frozenset[str]) -> Callable[[], list[Sample]]:
        return lambda: make() if kinds <= self.cluster.synced else []

    def _wall(self) -> float:
        return self.clock.wall_ns() / 1e9

    def on_sync(self, kind: str, objects: Iterable[Any]) -> None:
        """Takes a whole list of one kind."""
        self._take(self.cluster.sync(kind, objects))

    def on_change(self, kind: str, obj: Any, present: bool) -> None:  # noqa: ANN401 - of the kind's struct
        """Takes one object that changed, or went."""
        self._take(self.cluster.apply(kind, obj, present))

    def _take(self, changes: Sequence[Change]) -> None:
        now_ns, wall = self.clock.monotonic_ns(), self._wall()
        self._generation += 1
        if self._oldest_news_ns is None:
            self._oldest_news_ns = now_ns
        self.lifecycle.take(changes, self.cluster, arrival_ns=now_ns, wall=wall)
        self.violations.take(changes, self.cluster, self.selectors, wall)

    @property
    def changed(self) -> bool:
        """True when something came since the last publication."""
        return self._oldest_news_ns is not None

    async def publish(self, *, complete: bool) -> ClusterSnapshot:
        """A snapshot of everything known; until every kind that can be read has been read, only of the engine."""
        began_ns = self.clock.monotonic_ns()
        oldest_ns, self._oldest_news_ns = self._oldest_news_ns, None
        if complete:
            await self._count()
        samples: list[Sample | Histogram] = [*self.lifecycle.samples(), *self.violations.samples()]
        samples += (sample for part in (self._capacity, *self._others) for sample in part.result)
        now_ns = self.clock.monotonic_ns()
        self._publishes += 1
        self._publish_seconds += (now_ns - began_ns) / 1e9
        return ClusterSnapshot(
            wall_ns=self.clock.wall_ns(),
            leading=True,
            complete=complete,
            claims=dict(self.lifecycle.views) if complete else {},
            waits=self._waits.result if complete else (),
            samples=tuple(samples) if complete else (),
            own=(
                own("publishes_total", self._publishes),
                own("publish_seconds_total", self._publish_seconds),
                own("publish_lag_seconds", 0.0 if oldest_ns is None else (now_ns - oldest_ns) / 1e9),
                *self.selectors.counters(),
            ),
        )

    async def _count(self) -> None:
        """Everything that ranges over the whole cluster; again what had to wait for selectors to be evaluated."""
        for _ in range(self.lifecycle.stale // VIEWS_AT_ONCE):
            self.lifecycle.show(VIEWS_AT_ONCE)
            await asyncio.sleep(0)  # what waits to be read, or renewed, goes first
        self.lifecycle.tick(self.cluster, self._wall())
        if self._classes_asked != self.cluster.classes_revision:
            self._ask_classes()
            await self.selectors.settle()
        for part in self._others:
            await asyncio.sleep(0)
            part.refresh(self._generation, self.clock)
        for _ in range(SETTLE_ROUNDS):
            for selecting in (self._waits, self._capacity):
                await asyncio.sleep(0)
                selecting.refresh(self._generation, self.clock)
            if not await self.selectors.settle():
                return
            self._generation += 1
            self._waits.cost_ns = self._capacity.cost_ns = 0

    def _ask_classes(self) -> None:
        """Leaves the selectors of all classes to be settled, so that nothing is counted in vain before they are."""
        self._classes_asked = self.cluster.classes_revision
        for each in self.cluster.classes.values():
            expressions = expressions_of(each.spec.selectors) or ()
            for device in self.cluster.devices.values():
                self.selectors.matches_all(expressions, device)
