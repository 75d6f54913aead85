"""Which XIDs did the GPUs report, and to whose account do they go?

To that of the only holder whom the polls before and after show alike, where its hold is exclusive; else to nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from claimscope.accounting.books import EXCLUSIVE, Device, Presence, leave
from claimscope.accounting.splitting import common
from claimscope.model import Entity, Event, XidCount
from claimscope.state import XidState

XID_ERRORS = "xid_errors"  # key of XIDs in accounts and in the unattributed rest: "xid_errors/79"
MAX_PENDING_XIDS = 1024  # pairs of device and XID that may wait for a poll before the oldest are nobody's
# XIDs that each GPU shows at 0 before they happen, since a counter born at 1 hides its first rise from increase().
# Meanings: https://docs.nvidia.com/deploy/xid-errors/ (application faults, ECC and row remapping, NVLink, GSP, bus).
COMMON_XIDS = (13, 31, 43, 45, 48, 63, 64, 74, 79, 92, 94, 95, 119, 120)


class Xids:
    """The XIDs of one node."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], tuple[int, int]] = {}  # count, last wall time
        self._pending: dict[tuple[str, int], int] = {}

    def add(self, event: Event, devices: Mapping[str, Device]) -> None:
        """Counts one; its holder is decided at the next poll."""
        key = (event.entity, event.code)
        if key not in self._pending and len(self._pending) >= MAX_PENDING_XIDS:
            entity, xid = oldest = next(iter(self._pending))
            waiting = self._pending.pop(oldest)
            leave(devices[entity], f"{XID_ERRORS}/{xid}", float(waiting), event.wall_ns)
        count, last_wall_ns = self._counts.get(key, (0, event.wall_ns))
        self._counts[key] = (count + 1, max(last_wall_ns, event.wall_ns))
        self._pending[key] = self._pending.get(key, 0) + 1

    def settle(
        self,
        before: Mapping[str, Presence],
        after: Mapping[str, Presence],
        devices: dict[str, Device],
        wall_ns: int,
    ) -> None:
        """Gives what came between two polls to an account or to nobody."""
        for (entity, xid), count in self._pending.items():
            was, now = before.get(entity), after.get(entity)
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
                leave(devices.setdefault(entity, Device()), key, float(count), wall_ns)
        self._pending.clear()

    def counts(self, entities: Mapping[str, Entity]) -> tuple[XidCount, ...]:
        """Every XID that was seen, and at 0 the common ones that a whole GPU was spared."""
        seen = [
            XidCount(entity=entity, xid=xid, count=count, last_wall_ns=last_wall_ns)
            for (entity, xid), (count, last_wall_ns) in self._counts.items()
        ]
        spared = [
            XidCount(entity=uuid, xid=xid, count=0, last_wall_ns=0)
            for uuid, entity in entities.items()
            if entity.parent is None
            for xid in COMMON_XIDS
            if (uuid, xid) not in self._counts
        ]
        return (*seen, *spared)

    def forget(self, uuid: str) -> None:
        """The device is gone for good."""
        for key in [key for key in self._counts if key[0] == uuid]:
            del self._counts[key]
            self._pending.pop(key, None)

    def to_state(self) -> list[XidState]:
        """What must outlive this process."""
        return [
            XidState(
                entity=entity, xid=xid, count=count, last_wall_ns=last, pending=self._pending.get((entity, xid), 0)
            )
            for (entity, xid), (count, last) in self._counts.items()
        ]

    def restore(self, states: Iterable[XidState]) -> None:
        """Goes on from a journal."""
        for xid in states:
            self._counts[(xid.entity, xid.xid)] = (xid.count, xid.last_wall_ns)
            if xid.pending:
                self._pending[(xid.entity, xid.xid)] = xid.pending
