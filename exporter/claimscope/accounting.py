"""Who used how much of which device? Windows and holds in, device totals and accounts out.

Conserved, not magic: for every quantity that is split, what the holders of a device were given and what could be
given to nobody add up to what the device counted. Two polls of the kubelet bound what is known: a hold that both
show is taken to have stood between them; what only one shows goes to nobody for that stretch.

A device's counters are read at the ends of windows, which lie between polls, so a stretch of counting is settled
once a poll at or after its end has arrived: accounts run at most one poll behind the device totals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from claimscope.metrics.spec import Kind, Quantity, Scope, Split, Stat, Unit
from claimscope.model import Account, Entity, Event, Hold, Holder, Inventory, Total, Window, XidCount
from claimscope.state import (
    AccountState,
    CounterState,
    DeviceState,
    IntegralState,
    IntervalState,
    JournalState,
    SpanState,
    SumState,
    XidState,
)

ALLOCATED_SECONDS = "allocated_seconds"  # key of held time x share, in accounts and in the unattributed rest
XID_ERRORS = "xid_errors"  # key of XIDs in accounts and in the unattributed rest: "xid_errors/79"
EXCLUSIVE = "exclusive"
RETENTION_NS = 300_000_000_000  # how long an ended account is shown with its final totals
GAUGE_MAX_AGE_NS = 10_000_000_000  # a gauge older than this is not the present any more
MAX_PENDING = 16  # windows per device that may wait for a poll before the oldest are merged
MAX_INTERVALS = 512  # changes of holders per device that are kept for counters that are read late
PROCESS_MEMORY_STEM = "memory_used"  # the only gauge that is known per process
MAX_PENDING_XIDS = 1024  # pairs of device and XID that may wait for a poll before the oldest are nobody's
# XIDs that each GPU shows at 0 before they happen, since a counter born at 1 hides its first rise from increase().
# Meanings: https://docs.nvidia.com/deploy/xid-errors/ (application faults, ECC and row remapping, NVLink, GSP, bus).
COMMON_XIDS = (13, 31, 43, 45, 48, 63, 64, 74, 79, 92, 94, 95, 119, 120)
_ROUNDING = 1e-12
_JITTER = 0.5  # a counter that falls, but not below this part of itself, did not begin anew

AccountKey = tuple[Holder, str, str]  # holder, entity, basis


def increase(before: float, now: float, *, renewed: bool = False) -> tuple[float, float]:
    """How much a driver counter rose, and the value from which its next rise counts.

    A small step back is jitter, or another source of the same number: no rise, and none until the former value is
    passed. After a restart from 0 or a wrap it rose by what it shows now (a lower bound). `renewed`: the device's
    handles were taken anew in between, so that any step back is a restart.
    """
    if now >= before:
        return now - before, now
    if not renewed and now > _JITTER * before:
        return 0.0, before
    return now, now


def own_weights(holds: Iterable[Hold]) -> dict[AccountKey, float]:
    """Each account's part of the one entity that all these holds are on; never more than 1 together."""
    weights: dict[AccountKey, float] = {}
    for hold in holds:
        key = (hold.holder, hold.entity, hold.basis)
        weights[key] = weights.get(key, 0.0) + max(hold.share, 0.0)
    return _at_most_one(weights)


def whole_weights(
    own: Mapping[AccountKey, float], leaves: Iterable[tuple[Entity, Mapping[AccountKey, float]]]
) -> dict[AccountKey, float]:
    """Each account's part of a whole GPU: of the GPU itself, and of its MIG devices by their compute slices."""
    weights = dict(own)
    for leaf, parts in leaves:
        if not leaf.slices or not leaf.total_slices:
            continue  # no declared share: nobody can be given a part
        for key, weight in parts.items():
            weights[key] = weight * leaf.slices / leaf.total_slices
    return _at_most_one(weights)


def _at_most_one(weights: dict[AccountKey, float]) -> dict[AccountKey, float]:
    together = sum(weights.values())
    if together <= 1.0 + 1e-9:
        return weights
    return {key: weight / together for key, weight in weights.items()}


@dataclass(slots=True, eq=False)
class _Book:
    """One account while it is kept; compared by identity, since a namesake is another account."""

    holder: Holder
    entity: str
    basis: str
    start_wall_ns: int
    ended_wall_ns: int | None = None
    ended_ns: int | None = None
    closed: bool = False  # no longer shown: forgotten, or a namesake took its place; what comes late is nobody's
    totals: dict[str, float] = field(default_factory=dict)


Parts = tuple[tuple[_Book, float], ...]


def common(before: Parts, after: Parts) -> Parts:
    """What both polls show alike."""
    if before == after:
        return after
    known = dict(before)
    return tuple((book, weight) for book, weight in after if known.get(book) == weight)


@dataclass(frozen=True, slots=True)
class _Presence:
    """Who held an entity at one poll."""

    own: Parts
    whole: Parts  # of the GPU with its MIG devices; the same as `own` elsewhere
    counted: bool  # its time is handed out: not a GPU that is cut into MIG devices


@dataclass(slots=True)
class _Interval:
    """Who held an entity from one poll to another, without a change."""

    start_ns: int
    end_ns: int
    own: Parts
    whole: Parts


@dataclass(slots=True)
class _Span:
    """What a device counted between two readings."""

    start_ns: int
    end_ns: int
    deltas: dict[str, float]
    busy: dict[Holder, float]  # seconds of processes with a known holder
    busy_all: float  # seconds of all processes


@dataclass(slots=True)
class _Sum:
    value: float
    start_wall_ns: int

    def total(self) -> Total:
        return Total(value=self.value, start_wall_ns=self.start_wall_ns)


@dataclass(slots=True)
class _Device:
    """One entity: where its counters stand and what is not settled."""

    session: int = 0
    end_ns: int = 0
    counters: dict[str, tuple[float, int, int, int]] = field(default_factory=dict)  # value, time, session, epoch
    integrals: dict[str, tuple[float, int, int, int]] = field(default_factory=dict)  # value, time, session, epoch
    totals: dict[str, _Sum] = field(default_factory=dict)
    unattributed: dict[str, _Sum] = field(default_factory=dict)
    pending: list[_Span] = field(default_factory=list)
    intervals: list[_Interval] = field(default_factory=list)
    window: Window | None = None
    memory: Mapping[Holder, float] = field(default_factory=dict)  # of processes, in the newest window
    absent_ns: int | None = None  # since when the inventory does not show it


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is done with one quantity."""

    counter: bool
    integral: bool
    split: Split  # of its total
    gauge: Split  # of its present value
    scope: Scope
    process_memory: bool


def _plan(quantity: Quantity) -> _Plan:
    def split(stat: Stat) -> Split:
        return next(
            (view.split for view in quantity.views if view.stat is stat and view.split is not Split.NO), Split.NO
        )

    return _Plan(
        counter=quantity.kind is Kind.COUNTER,
        integral=quantity.kind is Kind.GAUGE and any(view.stat is Stat.TOTAL for view in quantity.views),
        split=split(Stat.TOTAL),
        gauge=split(Stat.LAST) if quantity.kind is Kind.GAUGE else Split.NO,
        scope=quantity.scope,
        process_memory=any(
            view.stem == PROCESS_MEMORY_STEM and view.unit is Unit.BYTES and view.stat is Stat.LAST
            for view in quantity.views
        ),
    )


def _merge(first: _Span, second: _Span) -> _Span:
    deltas = dict(first.deltas)
    for key, delta in second.deltas.items():
        deltas[key] = deltas.get(key, 0.0) + delta
    busy = dict(first.busy)
    for holder, seconds in second.busy.items():
        busy[holder] = busy.get(holder, 0.0) + seconds
    return _Span(
        min(first.start_ns, second.start_ns),
        max(first.end_ns, second.end_ns),
        deltas,
        busy,
        first.busy_all + second.busy_all,
    )


def _sole(parts: Parts) -> _Book | None:
    """The exclusive holder of all of it, if there is one."""
    if len(parts) == 1 and parts[0][0].basis == EXCLUSIVE and parts[0][1] >= 1.0:
        return parts[0][0]
    return None


def _observed(interval: _Interval, span: _Span) -> list[tuple[_Book, float]]:
    """Parts of a quantity that is split by what is seen."""
    sole = _sole(interval.own)
    if sole is not None:
        return [(sole, 1.0)]
    if not span.busy or span.busy_all <= 0.0:
        return []
    parts: list[tuple[_Book, float]] = []
    given: set[Holder] = set()
    for book, _ in interval.own:
        seconds = span.busy.get(book.holder)
        if seconds is not None and book.holder not in given:
            given.add(book.holder)
            parts.append((book, seconds / span.busy_all))
    return parts


def _fractions(
    intervals: Sequence[_Interval], span: _Span
) -> tuple[dict[_Book, float], dict[_Book, float], dict[_Book, float]]:
    """Each account's part of a span: of the entity, of the whole GPU, and by what was seen. The rest is nobody's."""
    own: dict[_Book, float] = {}
    whole: dict[_Book, float] = {}
    observed: dict[_Book, float] = {}
    length = span.end_ns - span.start_ns
    if length <= 0:
        return own, whole, observed
    for interval in reversed(intervals):
        if interval.end_ns <= span.start_ns:
            break
        covered = min(interval.end_ns, span.end_ns) - max(interval.start_ns, span.start_ns)
        if covered <= 0:
            continue
        fraction = covered / length
        for book, weight in interval.own:
            own[book] = own.get(book, 0.0) + weight * fraction
        for book, weight in interval.whole:
            whole[book] = whole.get(book, 0.0) + weight * fraction
        for book, weight in _observed(interval, span):
            observed[book] = observed.get(book, 0.0) + weight * fraction
    return own, whole, observed


class Ledger:
    """The accounts of one node.

    Feed it `observe` for each window, `event` for each event, `inventory` when it changed and `hold` for each good
    listing of the kubelet whose devices could be resolved; a failed poll is simply not fed. An account's basis is
    that of the hold; what an account with basis "share" has of a Split.OBSERVED quantity was split by process.
    """

    def __init__(self, quantities: Iterable[Quantity]) -> None:
        self._quantities = {quantity.key: _plan(quantity) for quantity in quantities}
        self._plans: dict[str, _Plan | None] = {}  # by reading key
        self._devices: dict[str, _Device] = {}
        self._entities: dict[str, Entity] = {}
        self._books: dict[AccountKey, _Book] = {}
        self._polled_ns: int | None = None
        self._holds: tuple[Hold, ...] | None = None  # of the last poll; None: its presence must be built anew
        self._present: Mapping[str, _Presence] = {}
        self._xids: dict[tuple[str, int], tuple[int, int]] = {}  # count, last wall time
        self._pending_xids: dict[tuple[str, int], int] = {}
        self._unobserved_seconds = 0.0

    # ---- what comes in

    def inventory(self, inventory: Inventory) -> None:
        """Takes over which devices there are. While NVML is not usable the devices of before stand."""
        if inventory.error is not None or inventory.released:
            return
        entities = {device.entity.uuid: device.entity for device in inventory.devices}
        for uuid, entity in self._entities.items():
            if uuid in inventory.lost or entity.parent in inventory.lost:
                entities.setdefault(uuid, entity)
        if entities != self._entities:
            self._entities = entities
            self._holds = None

    def observe(self, window: Window, owners: Mapping[int, Holder] | None = None) -> None:
        """Follows the totals of one window. `owners` names the holder of a process, where that is known."""
        device = self._devices.get(window.entity)
        if device is None:
            device = self._devices[window.entity] = _Device()
            self._holds = None
        if window.session < device.session or window.end_ns <= device.end_ns:
            return  # a late packet of a predecessor, or one that came twice
        deltas: dict[int, dict[str, float]] = {}
        self._follow_counters(device, window, deltas)
        self._follow_integrals(device, window, deltas)
        device.session = window.session
        device.end_ns = window.end_ns
        device.window = window
        busy, busy_all, device.memory = _processes(window, owners)
        for start_ns, amounts in deltas.items():
            device.pending.append(_Span(start_ns, window.end_ns, amounts, busy, busy_all))
        self._settle(device, window.end_wall_ns)
        while len(device.pending) > MAX_PENDING:
            device.pending[:2] = [_merge(device.pending[0], device.pending[1])]

    def event(self, event: Event) -> None:
        """Counts an XID; its holder is decided at the next poll."""
        if event.kind != "xid":
            return
        key = (event.entity, event.code)
        if event.entity not in self._devices:  # so that its XIDs are forgotten with it
            self._devices[event.entity] = _Device()
            self._holds = None
        if key not in self._pending_xids and len(self._pending_xids) >= MAX_PENDING_XIDS:
            entity, xid = oldest = next(iter(self._pending_xids))
            waiting = self._pending_xids.pop(oldest)
            _leave(self._devices[entity], f"{XID_ERRORS}/{xid}", float(waiting), event.wall_ns)
        count, last_wall_ns = self._xids.get(key, (0, event.wall_ns))
        self._xids[key] = (count + 1, max(last_wall_ns, event.wall_ns))
        self._pending_xids[key] = self._pending_xids.get(key, 0) + 1

    def hold(self, holds: Iterable[Hold], at_ns: int, wall_ns: int) -> None:
        """Takes a good listing as of monotonic time `at_ns`: a hold it does not show has ended."""
        holds = tuple(holds)
        if self._polled_ns is not None and at_ns <= self._polled_ns:
            return
        before = self._present
        if holds != self._holds:
            self._open(holds, at_ns, wall_ns)
            self._present = self._presence(holds)
            self._holds = holds
        if self._polled_ns is not None:
            for entity, after in self._present.items():
                was = before.get(entity)
                if was is not None:
                    self._elapse(entity, was, after, self._polled_ns, at_ns, wall_ns)
        self._settle_xids(before, wall_ns)
        self._polled_ns = at_ns
        self._forget(at_ns)  # first: what is settled now must not go to an account that nobody will see again
        for device in self._devices.values():
            self._settle(device, wall_ns)

    # ---- what goes out

    def totals(self) -> dict[str, dict[str, Total]]:
        """Entity -> reading key -> device total."""
        return {
            entity: {key: total.total() for key, total in device.totals.items()}
            for entity, device in self._devices.items()
            if device.totals
        }

    def unattributed(self) -> dict[str, dict[str, Total]]:
        """Entity -> reading key -> what no holder could be given."""
        return {
            entity: {key: rest.total() for key, rest in device.unattributed.items()}
            for entity, device in self._devices.items()
            if device.unattributed
        }

    def unattributed_gauges(self, accounts: Iterable[Account], now_ns: int) -> dict[str, dict[str, float]]:
        """Entity -> reading key -> present value that none of these accounts has, such as memory of no known process.

        Of a GPU that is cut, only its MIG devices have a rest, so that nothing counts twice.
        """
        given: dict[tuple[str, str], float] = {}
        for account in accounts:
            for key, value in account.gauges.items():
                given[account.entity, key] = given.get((account.entity, key), 0.0) + value
        cut = {entity.parent for entity in self._entities.values()}
        rests: dict[str, dict[str, float]] = {}
        for uuid in self._entities.keys() - cut:
            device = self._devices.get(uuid)
            if device is None or device.window is None or uuid not in self._present:
                continue
            if now_ns - device.window.end_ns > GAUGE_MAX_AGE_NS:
                continue
            for key, value in device.window.last.items():
                plan = self._plan_of(key)
                if plan is None or plan.gauge is Split.NO or plan.scope is Scope.GPU:
                    continue
                rest = value - given.get((uuid, key), 0.0)
                if rest >= 0.0:  # processes and memory are read at different moments and may contradict each other
                    rests.setdefault(uuid, {})[key] = rest
        return rests

    def accounts(self, now_ns: int) -> tuple[Account, ...]:
        """All accounts, those that ended less than five minutes ago included; forgets what is gone for longer."""
        self._forget(now_ns)  # here too: devices come and go while the kubelet does not answer
        return tuple(
            Account(
                holder=book.holder,
                entity=book.entity,
                basis=book.basis,
                start_wall_ns=book.start_wall_ns,
                ended_wall_ns=book.ended_wall_ns,
                totals=dict(book.totals),
                gauges=self._gauges(book, now_ns) if book.ended_ns is None else {},
            )
            for book in self._books.values()
            if book.ended_ns is None or now_ns - book.ended_ns < RETENTION_NS
        )

    def xids(self) -> tuple[XidCount, ...]:
        """Every XID that was seen, and at 0 the common ones that a whole GPU was spared."""
        seen = [
            XidCount(entity=entity, xid=xid, count=count, last_wall_ns=last_wall_ns)
            for (entity, xid), (count, last_wall_ns) in self._xids.items()
        ]
        spared = [
            XidCount(entity=uuid, xid=xid, count=0, last_wall_ns=0)
            for uuid, entity in self._entities.items()
            if entity.parent is None
            for xid in COMMON_XIDS
            if (uuid, xid) not in self._xids
        ]
        return (*seen, *spared)

    @property
    def unobserved_seconds(self) -> float:
        """Time during which nobody watched although accounts were open."""
        return self._unobserved_seconds

    # ---- counters and integrals

    def _plan_of(self, key: str) -> _Plan | None:
        try:
            return self._plans[key]
        except KeyError:
            plan = self._plans[key] = self._quantities.get(key.partition("/")[0])
            return plan

    def _follow_counters(self, device: _Device, window: Window, deltas: dict[int, dict[str, float]]) -> None:
        session, epoch, end_ns = window.session, window.epoch, window.end_ns
        for key, value in window.raw.items():
            plan = self._plan_of(key)
            if plan is None or not plan.counter or not 0.0 <= value < math.inf:
                continue
            known = device.counters.get(key)
            standing = value
            if known is None:  # what was before belongs to the device, and to nobody's account
                device.totals[key] = _Sum(value, window.end_wall_ns)
                start_ns, delta = window.start_ns, 0.0
            else:
                start_ns = known[1]
                # A new sampler begins its epochs anew and leaves the driver's counters as they are.
                renewed = session == known[2] and epoch != known[3]
                delta, standing = increase(known[0], value, renewed=renewed)
                device.totals[key].value += delta
            device.counters[key] = (standing, end_ns, session, epoch)
            if plan.split is not Split.NO:
                deltas.setdefault(start_ns, {})[key] = delta

    def _follow_integrals(self, device: _Device, window: Window, deltas: dict[int, dict[str, float]]) -> None:
        session, epoch, end_ns = window.session, window.epoch, window.end_ns
        for key, value in window.integral.items():
            plan = self._plan_of(key)
            if plan is None or not plan.integral or not 0.0 <= value < math.inf:
                continue
            known = device.integrals.get(key)
            device.integrals[key] = (value, end_ns, session, epoch)
            if known is None:
                start_ns, delta = window.start_ns, value
            elif (session, epoch) == known[2:]:
                start_ns, delta = known[1], max(value - known[0], 0.0)
            else:  # it began at 0 with the session or the epoch; what was before was not seen
                start_ns, delta = max(known[1], session) if session != known[2] else known[1], value
            total = device.totals.get(key)
            if total is None:
                length_ns = window.end_ns - window.start_ns
                device.totals[key] = _Sum(delta, window.end_wall_ns - length_ns)
            else:
                total.value += delta
            if plan.split is not Split.NO:
                deltas.setdefault(start_ns, {})[key] = delta

    # ---- holds

    def _open(self, holds: Iterable[Hold], at_ns: int, wall_ns: int) -> None:
        held: set[AccountKey] = set()
        for hold in holds:
            key = (hold.holder, hold.entity, hold.basis)
            if key in held:
                continue
            held.add(key)
            book = self._books.get(key)
            if book is not None and book.ended_ns is not None:
                if hold.holder.uid is not None and at_ns - book.ended_ns < RETENTION_NS:
                    book.ended_ns = book.ended_wall_ns = None  # the same claim again
                else:
                    book = None  # without a uid it may be a namesake, and a namesake starts at 0
            if book is None:
                former = self._books.pop(key, None)
                if former is not None:
                    former.closed = True
                self._books[key] = _Book(*key, start_wall_ns=wall_ns, totals=self._zeros(hold))
        for key, book in self._books.items():
            if key not in held and book.ended_ns is None:
                book.ended_ns = at_ns
                book.ended_wall_ns = wall_ns

    def _zeros(self, hold: Hold) -> dict[str, float]:
        """The totals that are sure to come, at 0: a counter born above 0 hides its first rise from increase()."""
        totals = {ALLOCATED_SECONDS: 0.0}
        entity = self._entities.get(hold.entity)
        sources = [(hold.entity, False)]
        if entity is not None and entity.parent is not None and entity.slices and entity.total_slices:
            sources.append((entity.parent, True))
        for uuid, parent in sources:
            device = self._devices.get(uuid)
            for key in device.totals if device is not None else ():
                plan = self._plan_of(key)
                if plan is None or (parent and plan.scope is not Scope.GPU):
                    continue
                if plan.split is Split.SHARE or (
                    plan.split is Split.OBSERVED and hold.basis == EXCLUSIVE and not parent
                ):
                    totals[key] = 0.0
        return totals

    def _presence(self, holds: Iterable[Hold]) -> Mapping[str, _Presence]:
        by_entity: dict[str, list[Hold]] = {}
        for hold in holds:
            by_entity.setdefault(hold.entity, []).append(hold)
        own = {entity: own_weights(those) for entity, those in by_entity.items()}
        leaves: dict[str, list[Entity]] = {}
        for entity in self._entities.values():
            if entity.parent is not None:
                leaves.setdefault(entity.parent, []).append(entity)
        present: dict[str, _Presence] = {}
        for uuid in dict.fromkeys((*self._entities, *self._devices, *own)):
            mine = own.get(uuid, {})
            cut = leaves.get(uuid, ())
            whole = whole_weights(mine, ((leaf, own.get(leaf.uuid, {})) for leaf in cut)) if cut else mine
            parts = self._parts(mine)
            present[uuid] = _Presence(
                own=parts,
                whole=self._parts(whole) if cut else parts,
                counted=bool(mine) or (uuid in self._entities and not cut),
            )
        return present

    def _parts(self, weights: Mapping[AccountKey, float]) -> Parts:
        return tuple((self._books[key], weight) for key, weight in weights.items() if weight > 0.0)

    def _elapse(
        self, entity: str, was: _Presence, now: _Presence, from_ns: int, to_ns: int, wall_ns: int
    ) -> None:
        """Notes who held an entity between two polls, and hands out the time itself."""
        device = self._devices.get(entity)
        if device is None:
            device = self._devices[entity] = _Device()
        own = common(was.own, now.own)
        whole = own if was.whole is was.own and now.whole is now.own else common(was.whole, now.whole)
        intervals = device.intervals
        newest = intervals[-1] if intervals else None
        if newest is not None and newest.end_ns == from_ns and newest.own == own and newest.whole == whole:
            newest.end_ns = to_ns
        else:
            intervals.append(_Interval(from_ns, to_ns, own, whole))
            _prune(device)
        if not (was.counted and now.counted):
            return
        seconds = (to_ns - from_ns) / 1e9
        rest = seconds
        for book, weight in own:
            book.totals[ALLOCATED_SECONDS] = book.totals.get(ALLOCATED_SECONDS, 0.0) + seconds * weight
            rest -= seconds * weight
        _leave(device, ALLOCATED_SECONDS, rest if rest > seconds * _ROUNDING else 0.0, wall_ns)

    # ---- who gets what

    def _settle(self, device: _Device, wall_ns: int) -> None:
        if self._polled_ns is None or not device.pending:
            return
        waiting: list[_Span] = []
        for span in device.pending:
            if span.end_ns <= self._polled_ns:
                self._attribute(device, span, wall_ns)
            else:
                waiting.append(span)
        device.pending = waiting

    def _attribute(self, device: _Device, span: _Span, wall_ns: int) -> None:
        own, whole, observed = _fractions(device.intervals, span)
        for key, delta in span.deltas.items():
            plan = self._plan_of(key)
            parts = own
            if plan is not None and plan.split is Split.OBSERVED:
                parts = observed
            elif plan is not None and plan.scope is Scope.GPU:
                parts = whole
            rest = delta
            for book, fraction in parts.items():
                if book.closed:
                    continue
                amount = min(delta * fraction, rest)
                book.totals[key] = book.totals.get(key, 0.0) + amount
                rest -= amount
            _leave(device, key, rest if rest > delta * _ROUNDING else 0.0, wall_ns)

    def _settle_xids(self, before: Mapping[str, _Presence], wall_ns: int) -> None:
        for (entity, xid), count in self._pending_xids.items():
            was, now = before.get(entity), self._present.get(entity)
            book = None
            if was is not None and now is not None:
                holders = {part.holder for part, _ in (*was.own, *was.whole, *now.own, *now.whole)}
                parts = [part for part, _ in common(was.whole, now.whole) if part.basis == EXCLUSIVE]
                if len(holders) == 1 and parts:
                    book = min(parts, key=lambda part: part.entity)
            key = f"{XID_ERRORS}/{xid}"
            if book is not None:
                book.totals[key] = book.totals.get(key, 0.0) + count
            else:
                _leave(self._devices.setdefault(entity, _Device()), key, float(count), wall_ns)
        self._pending_xids.clear()

    def _gauges(self, book: _Book, now_ns: int) -> dict[str, float]:
        gauges: dict[str, float] = {}
        self._gauges_of(book, book.entity, now_ns, gauges)
        entity = self._entities.get(book.entity)
        if entity is not None and entity.parent is not None:
            self._gauges_of(book, entity.parent, now_ns, gauges)
        return gauges

    def _gauges_of(self, book: _Book, uuid: str, now_ns: int, gauges: dict[str, float]) -> None:
        device, presence = self._devices.get(uuid), self._present.get(uuid)
        if device is None or device.window is None or presence is None:
            return
        window = device.window
        if now_ns - window.end_ns > GAUGE_MAX_AGE_NS:
            return
        itself = uuid == book.entity
        sole = _sole(presence.own) is book
        own, whole = dict(presence.own), dict(presence.whole)
        for key, value in window.last.items():
            plan = self._plan_of(key)
            if plan is None or plan.gauge is Split.NO or not (itself or plan.scope is Scope.GPU):
                continue
            if plan.gauge is Split.SHARE:
                weight = (whole if plan.scope is Scope.GPU else own).get(book)
                if weight is not None:
                    gauges[key] = value * weight
            elif itself and sole:
                gauges[key] = value
            elif itself and plan.process_memory and book.holder in device.memory:
                gauges[key] = device.memory[book.holder]

    # ---- forgetting

    def _forget(self, now_ns: int) -> None:
        for key in [
            key
            for key, book in self._books.items()
            if book.ended_ns is not None and now_ns - book.ended_ns >= RETENTION_NS
        ]:
            self._books.pop(key).closed = True
        if not self._entities:
            return  # never saw an inventory
        gone: list[str] = []
        held: set[str] | None = None
        for uuid, device in self._devices.items():
            if uuid in self._entities:
                device.absent_ns = None
            elif device.absent_ns is None:
                device.absent_ns = now_ns
            elif now_ns - device.absent_ns >= RETENTION_NS:
                if held is None:
                    held = {book.entity for book in self._books.values()}
                if uuid not in held:
                    gone.append(uuid)
        for uuid in gone:
            del self._devices[uuid]
            for xid in [xid for xid in self._xids if xid[0] == uuid]:
                del self._xids[xid]
                self._pending_xids.pop(xid, None)
        if gone:
            self._holds = None
            self._present = {uuid: who for uuid, who in self._present.items() if uuid not in gone}

    # ---- the journal

    def to_state(self, boot_id: str, now_ns: int, wall_ns: int) -> JournalState:
        """A copy of everything that must outlive this process."""
        # Books that were replaced by a namesake or forgotten may still stand in old intervals: their part is nobody's.
        index = {book: number for number, book in enumerate(self._books.values())}

        def parts(those: Parts) -> list[tuple[int, float]]:
            return [(index[book], weight) for book, weight in those if book in index]

        devices: dict[str, DeviceState] = {}
        for uuid in dict.fromkeys((*self._devices, *self._present)):
            device = self._devices.get(uuid) or _Device()
            presence = self._present.get(uuid)
            devices[uuid] = DeviceState(
                totals=_sums(device.totals),
                unattributed=_sums(device.unattributed),
                session=device.session,
                end_ns=device.end_ns,
                counters={
                    key: CounterState(value=v, at_ns=at, session=session, epoch=epoch)
                    for key, (v, at, session, epoch) in device.counters.items()
                },
                integrals={
                    key: IntegralState(value=v, at_ns=at, session=session, epoch=epoch)
                    for key, (v, at, session, epoch) in device.integrals.items()
                },
                pending=[
                    SpanState(
                        start_ns=span.start_ns,
                        end_ns=span.end_ns,
                        deltas=dict(span.deltas),
                        busy=list(span.busy.items()),
                        busy_all=span.busy_all,
                    )
                    for span in device.pending
                ],
                intervals=[
                    IntervalState(start_ns=i.start_ns, end_ns=i.end_ns, own=parts(i.own), whole=parts(i.whole))
                    for i in device.intervals
                ],
                present=presence is not None,
                counted=presence is not None and presence.counted,
                own=parts(presence.own) if presence is not None else [],
                whole=parts(presence.whole) if presence is not None else [],
            )
        return JournalState(
            boot_id=boot_id,
            saved_wall_ns=wall_ns,
            saved_ns=now_ns,
            polled_ns=self._polled_ns,
            unobserved_seconds=self._unobserved_seconds,
            accounts=[
                AccountState(
                    holder=book.holder,
                    entity=book.entity,
                    basis=book.basis,
                    start_wall_ns=book.start_wall_ns,
                    ended_wall_ns=book.ended_wall_ns,
                    totals=dict(book.totals),
                )
                for book in self._books.values()
            ],
            devices=devices,
            xids=[
                XidState(
                    entity=entity,
                    xid=xid,
                    count=count,
                    last_wall_ns=last,
                    pending=self._pending_xids.get((entity, xid), 0),
                )
                for (entity, xid), (count, last) in self._xids.items()
            ],
        )

    @classmethod
    def from_state(
        cls, quantities: Iterable[Quantity], state: JournalState, *, boot_id: str, now_ns: int, wall_ns: int
    ) -> Ledger:
        """Goes on from a journal. After another boot the driver's counters and monotonic times mean nothing any more:
        accounts are kept, what was not settled goes to nobody.
        """
        ledger = cls(quantities)
        same_boot = boot_id != "" and state.boot_id == boot_id and now_ns >= state.saved_ns
        away_ns = now_ns - state.saved_ns if same_boot else max(wall_ns - state.saved_wall_ns, 0)
        books: list[_Book] = []
        for account in state.accounts:
            book = _Book(
                account.holder,
                account.entity,
                account.basis,
                account.start_wall_ns,
                account.ended_wall_ns,
                totals=dict(account.totals),
            )
            if account.ended_wall_ns is not None:
                before_ns = max(state.saved_wall_ns - account.ended_wall_ns, 0)
                book.ended_ns = now_ns - away_ns - before_ns
            books.append(book)
            ledger._books[(book.holder, book.entity, book.basis)] = book
        ledger._unobserved_seconds = state.unobserved_seconds
        if any(book.ended_ns is None for book in books):
            ledger._unobserved_seconds += away_ns / 1e9
        for xid in state.xids:
            ledger._xids[(xid.entity, xid.xid)] = (xid.count, xid.last_wall_ns)
            if xid.pending:
                ledger._pending_xids[(xid.entity, xid.xid)] = xid.pending
        present: dict[str, _Presence] = {}
        for uuid, saved in state.devices.items():
            device = ledger._devices[uuid] = _Device()
            device.unattributed = {key: _Sum(s.value, s.start_wall_ns) for key, s in saved.unattributed.items()}
            if not same_boot:
                for span in saved.pending:
                    for key, delta in span.deltas.items():
                        _leave(device, key, delta, wall_ns)
                continue
            _restore(device, saved, books)
            if saved.present:
                own = _named(saved.own, books)
                whole = _named(saved.whole, books)
                present[uuid] = _Presence(own=own, whole=own if whole == own else whole, counted=saved.counted)
        if same_boot:
            ledger._polled_ns = state.polled_ns
            ledger._present = present
        ledger._forget(now_ns)
        return ledger


def _leave(device: _Device, key: str, amount: float, wall_ns: int) -> None:
    """Adds to what nobody gets; the series is there from the first moment, at 0."""
    rest = device.unattributed.get(key)
    if rest is None:
        total = device.totals.get(key)
        device.unattributed[key] = _Sum(amount, wall_ns if total is None else total.start_wall_ns)
    else:
        rest.value += amount


def _prune(device: _Device) -> None:
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


def _processes(
    window: Window, owners: Mapping[int, Holder] | None
) -> tuple[dict[Holder, float], float, dict[Holder, float]]:
    """Busy seconds by holder, busy seconds of all, memory by holder; a holder with an unknown process has none."""
    busy: dict[Holder, float] = {}
    memory: dict[Holder, float] = {}
    busy_all = 0.0
    if not window.processes or not owners:
        return busy, busy_all, memory
    seconds = (window.end_ns - window.start_ns) / 1e9
    unknown: set[Holder] = set()
    for process in window.processes:
        holder = owners.get(process.pid)
        if process.busy_ratio is not None and 0.0 < process.busy_ratio < math.inf:
            busy_all += process.busy_ratio * seconds
            if holder is not None:
                busy[holder] = busy.get(holder, 0.0) + process.busy_ratio * seconds
        if holder is not None:
            if process.memory_used_bytes is None:
                unknown.add(holder)
            else:
                memory[holder] = memory.get(holder, 0.0) + process.memory_used_bytes
    return busy, busy_all, {holder: used for holder, used in memory.items() if holder not in unknown}


def _sums(sums: Mapping[str, _Sum]) -> dict[str, SumState]:
    return {key: SumState(value=s.value, start_wall_ns=s.start_wall_ns) for key, s in sums.items()}


def _named(parts: Iterable[tuple[int, float]], books: Sequence[_Book]) -> Parts:
    return tuple((books[number], weight) for number, weight in parts if 0 <= number < len(books))


def _restore(device: _Device, saved: DeviceState, books: Sequence[_Book]) -> None:
    device.session = saved.session
    device.end_ns = saved.end_ns
    device.totals = {key: _Sum(s.value, s.start_wall_ns) for key, s in saved.totals.items()}
    device.counters = {
        key: (known.value, known.at_ns, known.session, known.epoch)
        for key, known in saved.counters.items()
        if key in device.totals
    }
    device.integrals = {
        key: (known.value, known.at_ns, known.session, known.epoch) for key, known in saved.integrals.items()
    }
    device.pending = [
        _Span(span.start_ns, span.end_ns, dict(span.deltas), dict(span.busy), span.busy_all) for span in saved.pending
    ]
    device.intervals = [
        _Interval(i.start_ns, i.end_ns, _named(i.own, books), _named(i.whole, books)) for i in saved.intervals
    ]
