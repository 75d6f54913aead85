"""What do the rules say of one look at one device, and which of them do not judge yet?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from claimscope.health import driver_verdict
from claimscope.health.ledger import Ledger, wants_something
from claimscope.health.model import Holds, Look, RuleState
from claimscope.health.readings import NO, NOT_CLEAN
from claimscope.health.rules import Condition, Grace, On, Rule
from claimscope.health.slot import Slot
from claimscope.health.thresholds import Thresholds

_SETTLED = {
    Holds.NO: RuleState.OK,
    Holds.UNKNOWN: RuleState.UNKNOWN,
    Holds.NOT_APPLICABLE: RuleState.NOT_APPLICABLE,
}
_STARTING = frozenset({Grace.START, Grace.BOOT})
_BOOTING = frozenset({Grace.BOOT})
_RUNNING: frozenset[Grace] = frozenset()


@dataclass(frozen=True, slots=True)
class _Row:
    """A rule as the loop over all rules wants it."""

    key: str
    rule: Rule
    condition: Condition


class Judge:
    """All rules, sorted by when they judge."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        rows = [_Row(rule.key, rule, rule.condition) for rule in rules if rule.condition is not None]
        self._of_windows = tuple(row for row in rows if row.rule.on is On.WINDOW)
        self._of_minutes = tuple(row for row in rows if row.rule.on is On.MINUTE)
        self._of_events = tuple(rule for rule in rules if rule.on is On.EVENT)

    def window(self, ledger: Ledger, slot: Slot, look: Look, span: float) -> None:
        """The rules of each window; `span` is how long it was."""
        _judge(ledger, slot, self._of_windows, look, span)

    def minute(self, ledger: Ledger, slot: Slot, look: Look) -> None:
        """The rules of each minute."""
        _judge(ledger, slot, self._of_minutes, look, look.seconds)

    def quiet(self, ledger: Ledger, slot: Slot, look: Look, span: float) -> None:
        """What events brought has quiet time while no new one comes and the driver wants nothing."""
        judged = NOT_CLEAN if wants_something(look) else NO
        for rule in self._of_events:
            track = slot.tracks.get(rule.key)
            if track is not None and track.stands:
                ledger.advance(slot, rule, track, judged, span)


def _judge(ledger: Ledger, slot: Slot, rows: Iterable[_Row], look: Look, span: float) -> None:
    thresholds, of_slot, settled = ledger.thresholds, slot.tracks, _SETTLED
    grace = _grace(slot, look, thresholds)
    for row in rows:
        track = of_slot.get(row.key)
        if track is None or row.rule.grace in grace:
            continue
        judged = row.condition(look, thresholds)
        if track.waiting is not None:
            continue
        if settled.get(judged.holds) is track.state and track.acknowledged is None:
            continue
        if judged.provisional and judged.holds is Holds.YES and not driver_verdict.confirmed(row.rule, track, judged):
            driver_verdict.wait(ledger, slot, row.rule, track, judged, ledger.wall_ns)
            continue
        if track.freed and judged.holds is Holds.NO and wants_something(look):
            judged = NOT_CLEAN
        ledger.advance(slot, row.rule, track, judged, span)


def _grace(slot: Slot, look: Look, thresholds: Thresholds) -> frozenset[Grace]:
    """The rules that do not judge yet."""
    settled = min(look.boot_seconds, look.driver_seconds)
    seen = look.now_ns - slot.first_ns if slot.first_ns is not None else 0
    starting = seen * 1e-9 < thresholds["startup_grace_seconds"]
    starting = starting or look.driver_seconds < thresholds["startup_grace_seconds"]
    if starting:
        return _STARTING
    return _BOOTING if settled < thresholds["boot_grace_seconds"] else _RUNNING
