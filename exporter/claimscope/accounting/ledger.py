"""Who used how much of which device? Windows and holds in, device totals and accounts out.

Conserved, not magic: for every quantity that is split, what the holders of a device were given and what could be
given to nobody add up to what the device counted. Two polls of the kubelet bound what is known: a hold that both
show is taken to have stood between them; what only one shows goes to nobody for that stretch.

A device's counters are read at the ends of windows, which lie between polls, so a stretch of counting is settled
once a poll at or after its end has arrived: accounts run at most one poll behind the device totals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from claimscope.accounting.books import (
    ALLOCATED_SECONDS,
    EXCLUSIVE,
    RETENTION_NS,
    ROUNDING,
    AccountKey,
    Book,
    Device,
    Interval,
    Presence,
    Span,
    leave,
    merged,
    prune,
)
from claimscope.accounting.counting import follow_counters, follow_integrals, processes
from claimscope.accounting.gauges import account_gauges, rest_gauges
from claimscope.accounting.journal import (
    account_state,
    device_state,
    restore_device,
    restored_book,
    restored_presence,
    restored_sums,
)
from claimscope.accounting.plans import Plans
from claimscope.accounting.splitting import common, fractions, presences
from claimscope.accounting.xids import Xids
from claimscope.metrics.spec import Quantity, Scope, Split
from claimscope.model import Account, Entity, Event, Hold, Holder, Inventory, Total, Window, XidCount
from claimscope.state import JournalState

MAX_PENDING = 16  # windows per device that may wait for a poll before the oldest are merged


class Ledger:
    """The accounts of one node.

    Feed it `observe` for each window, `event` for each event, `inventory` when it changed and `hold` for each good
    listing of the kubelet whose devices could be resolved; a failed poll is simply not fed. An account's basis is
    that of the hold; what an account with basis "share" has of a Split.OBSERVED quantity was split by process.
    """

    def __init__(self, quantities: Iterable[Quantity]) -> None:
        self._plans = Plans(quantities)
        self._devices: dict[str, Device] = {}
        self._entities: dict[str, Entity] = {}
        self._books: dict[AccountKey, Book] = {}
        self._polled_ns: int | None = None
        self._holds: tuple[Hold, ...] | None = None  # of the last poll; None: its presence must be built anew
        self._present: Mapping[str, Presence] = {}
        self._xids = Xids()
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
            device = self._devices[window.entity] = Device()
            self._holds = None
        if window.session < device.session or window.end_ns <= device.end_ns:
            return  # a late packet of a predecessor, or one that came twice
        deltas: dict[int, dict[str, float]] = {}
        follow_counters(device, window, self._plans, deltas)
        follow_integrals(device, window, self._plans, deltas)
        device.session = window.session
        device.end_ns = window.end_ns
        device.window = window
        busy, busy_all, device.memory = processes(window, owners)
        for start_ns, amounts in deltas.items():
            device.pending.append(Span(start_ns, window.end_ns, amounts, busy, busy_all))
        self._settle(device, window.end_wall_ns)
        while len(device.pending) > MAX_PENDING:
            device.pending[:2] = [merged(device.pending[0], device.pending[1])]

    def event(self, event: Event) -> None:
        """Counts an XID; its holder is decided at the next poll."""
        if event.kind != "xid":
            return
        if event.entity not in self._devices:  # so that its XIDs are forgotten with it
            self._devices[event.entity] = Device()
            self._holds = None
        self._xids.add(event, self._devices)

    def hold(self, holds: Iterable[Hold], at_ns: int, wall_ns: int) -> None:
        """Takes a good listing as of monotonic time `at_ns`: a hold it does not show has ended."""
        holds = tuple(holds)
        if self._polled_ns is not None and at_ns <= self._polled_ns:
            return
        before = self._present
        if holds != self._holds:
            self._open(holds, at_ns, wall_ns)
            self._present = presences(holds, self._entities, self._devices, self._books)
            self._holds = holds
        if self._polled_ns is not None:
            for entity, after in self._present.items():
                was = before.get(entity)
                if was is not None:
                    self._elapse(entity, was, after, self._polled_ns, at_ns, wall_ns)
        self._xids.settle(before, self._present, self._devices, wall_ns)
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
        given: dict[str, dict[str, float]] = {}
        for account in accounts:
            of_entity = given.setdefault(account.entity, {})
            for key, value in account.gauges.items():
                of_entity[key] = of_entity.get(key, 0.0) + value
        cut = {entity.parent for entity in self._entities.values()}
        rests = {
            uuid: rest_gauges(self._devices.get(uuid), given.get(uuid, {}), self._plans, now_ns)
            for uuid in self._entities.keys() - cut
            if uuid in self._present
        }
        return {uuid: rest for uuid, rest in rests.items() if rest}

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
        return self._xids.counts(self._entities)

    @property
    def unobserved_seconds(self) -> float:
        """Time during which nobody watched although accounts were open."""
        return self._unobserved_seconds

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
                self._books[key] = Book(*key, start_wall_ns=wall_ns, totals=self._zeros(hold))
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
                plan = self._plans.of(key)
                if plan is None or (parent and plan.scope is not Scope.GPU):
                    continue
                if plan.split is Split.SHARE or (
                    plan.split is Split.OBSERVED and hold.basis == EXCLUSIVE and not parent
                ):
                    totals[key] = 0.0
        return totals

    def _elapse(self, entity: str, was: Presence, now: Presence, from_ns: int, to_ns: int, wall_ns: int) -> None:
        """Notes who held an entity between two polls, and hands out the time itself."""
        device = self._devices.get(entity)
        if device is None:
            device = self._devices[entity] = Device()
        own = common(was.own, now.own)
        whole = own if was.whole is was.own and now.whole is now.own else common(was.whole, now.whole)
        intervals = device.intervals
        newest = intervals[-1] if intervals else None
        if newest is not None and newest.end_ns == from_ns and newest.own == own and newest.whole == whole:
            newest.end_ns = to_ns
        else:
            intervals.append(Interval(from_ns, to_ns, own, whole))
            prune(device)
        if not (was.counted and now.counted):
            return
        seconds = (to_ns - from_ns) / 1e9
        rest = seconds
        for book, weight in own:
            book.totals[ALLOCATED_SECONDS] = book.totals.get(ALLOCATED_SECONDS, 0.0) + seconds * weight
            rest -= seconds * weight
        leave(device, ALLOCATED_SECONDS, rest if rest > seconds * ROUNDING else 0.0, wall_ns)

    # ---- who gets what

    def _settle(self, device: Device, wall_ns: int) -> None:
        if self._polled_ns is None or not device.pending:
            return
        waiting: list[Span] = []
        for span in device.pending:
            if span.end_ns <= self._polled_ns:
                self._attribute(device, span, wall_ns)
            else:
                waiting.append(span)
        device.pending = waiting

    def _attribute(self, device: Device, span: Span, wall_ns: int) -> None:
        own, whole, observed = fractions(device.intervals, span)
        for key, delta in span.deltas.items():
            plan = self._plans.of(key)
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
            leave(device, key, rest if rest > delta * ROUNDING else 0.0, wall_ns)

    def _gauges(self, book: Book, now_ns: int) -> dict[str, float]:
        entity = self._entities.get(book.entity)
        gauges: dict[str, float] = {}
        for uuid in (book.entity, entity.parent if entity is not None else None):
            if uuid is not None:
                device, presence = self._devices.get(uuid), self._present.get(uuid)
                gauges |= account_gauges(book, uuid, device, presence, self._plans, now_ns)
        return gauges

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
            self._xids.forget(uuid)
        if gone:
            self._holds = None
            self._present = {uuid: who for uuid, who in self._present.items() if uuid not in gone}

    # ---- the journal

    def to_state(self, boot_id: str, now_ns: int, wall_ns: int) -> JournalState:
        """A copy of everything that must outlive this process."""
        # Books that were replaced by a namesake or forgotten may still stand in old intervals; they have no place.
        places = {book: number for number, book in enumerate(self._books.values())}
        return JournalState(
            boot_id=boot_id,
            saved_wall_ns=wall_ns,
            saved_ns=now_ns,
            polled_ns=self._polled_ns,
            unobserved_seconds=self._unobserved_seconds,
            accounts=[account_state(book) for book in self._books.values()],
            devices={
                uuid: device_state(self._devices.get(uuid) or Device(), self._present.get(uuid), places)
                for uuid in dict.fromkeys((*self._devices, *self._present))
            },
            xids=self._xids.to_state(),
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
        books = [
            restored_book(account, saved_wall_ns=state.saved_wall_ns, saved_ns=now_ns - away_ns)
            for account in state.accounts
        ]
        ledger._books = {(book.holder, book.entity, book.basis): book for book in books}
        ledger._unobserved_seconds = state.unobserved_seconds
        if any(book.ended_ns is None for book in books):
            ledger._unobserved_seconds += away_ns / 1e9
        ledger._xids.restore(state.xids)
        present: dict[str, Presence] = {}
        for uuid, saved in state.devices.items():
            device = ledger._devices[uuid] = Device()
            device.unattributed = restored_sums(saved.unattributed)
            if not same_boot:
                for span in saved.pending:
                    for key, delta in span.deltas.items():
                        leave(device, key, delta, wall_ns)
                continue
            restore_device(device, saved, books)
            presence = restored_presence(saved, books)
            if presence is not None:
                present[uuid] = presence
        if same_boot:
            ledger._polled_ns = state.polled_ns
            ledger._present = present
        ledger._forget(now_ns)
        return ledger
