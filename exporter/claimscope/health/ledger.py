"""Which findings stand against which devices, what began and ended them, and who must hear of it?"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from claimscope.health import track as tracks
from claimscope.health.model import Judgement, Look, RuleState, Severity, Survives
from claimscope.health.rules import First, On, Rule
from claimscope.health.slot import Slot
from claimscope.health.systemic import LASTING_OF, NodeFinding, SharedCauses, node_finding
from claimscope.health.thresholds import Thresholds
from claimscope.health.track import Change, Track

logger = logging.getLogger(__name__)

MAX_TRANSITIONS = 4096
ENDED_BY_RESET = frozenset({Survives.NOTHING, Survives.TIME})


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """A finding began, changed its severity, or ended."""

    uuid: str
    rule: str
    reason: str  # "fired", "became worse", "cleared", "acknowledged", ...
    severity: Severity  # of the finding, or that it had
    stands: bool  # after it
    wall_ns: int
    evidence: Mapping[str, str] = field(default_factory=dict)


class Ledger:
    """The slots of all devices of a node, and every change of a finding on them."""

    def __init__(self, rules: Sequence[Rule], thresholds: Thresholds) -> None:
        self.rules: Mapping[str, Rule] = {rule.key: rule for rule in rules}
        self.slots: dict[str, Slot] = {}
        self.now_ns = 0
        self.wall_ns = 0
        self._transitions: deque[Transition] = deque(maxlen=MAX_TRANSITIONS)
        self._shared = SharedCauses()
        self._correlated = tuple(rule for rule in rules if rule.correlated)
        self.set_thresholds(thresholds)

    def set_thresholds(self, thresholds: Thresholds) -> None:
        """Findings that stand keep standing and clear by the new numbers."""
        self.thresholds = thresholds
        self._times = {key: tracks.times_of(rule, thresholds) for key, rule in self.rules.items()}

    def at(self, now_ns: int, wall_ns: int) -> None:
        """What follows happens now."""
        self.now_ns, self.wall_ns = now_ns, wall_ns

    # What happens to a finding

    def advance(self, slot: Slot, rule: Rule, track: Track, judged: Judgement, span: float) -> None:
        """Takes one judgement about `span` seconds."""
        change = tracks.advance(
            track, rule, self._times[rule.key], judged, span=span, now_ns=self.now_ns, wall_ns=self.wall_ns
        )
        if change is not None:
            self._changed(slot, rule, track, change)

    def fire(
        self, slot: Slot, rule: Rule, track: Track, judged: Judgement, codes: Iterable[int], since_wall_ns: int
    ) -> None:
        """A finding begins; what it is about may have happened before, as a log tells afterwards."""
        wall_ns = min(since_wall_ns, self.wall_ns)
        change = tracks.fire(track, rule, self._times[rule.key], judged, now_ns=self.now_ns, wall_ns=wall_ns)
        for code in codes:
            tracks.with_code(track, code)
        self._changed(slot, rule, track, change)

    def again(self, slot: Slot, rule: Rule, track: Track, judged: Judgement, code: int | None) -> None:
        """One more event speaks for a finding that stands."""
        change = tracks.again(track, rule, judged, code, now_ns=self.now_ns)
        if change is not None:
            self._changed(slot, rule, track, change)

    def finish(self, slot: Slot, rule: Rule, track: Track, reason: str) -> None:
        """A finding ends for another reason than time."""
        severity, evidence = track.severity, track.evidence
        tracks.end(track, self.now_ns)
        slot.shown = None
        self._tell(slot, rule, reason, severity, stands=False, evidence=evidence)

    def was_reset(self, slot: Slot) -> None:
        """A GPU reset or driver load. What came back after several of them within a day, they do not repair."""
        self._free(slot, ENDED_BY_RESET, unless_flapping=True)

    def was_rebooted(self, slot: Slot) -> None:
        """The machine was booted anew."""
        self._free(slot, ENDED_BY_RESET | {Survives.RESET}, unless_flapping=False)

    def _free(self, slot: Slot, ends: frozenset[Survives], *, unless_flapping: bool) -> None:
        """What does not survive this, and no clean time ends, clears after a while of quiet."""
        slot.shown = None
        for key, track in slot.tracks.items():
            rule = self.rules[key]
            momentary = rule.on is On.EVENT or isinstance(rule.window, First)
            kept = unless_flapping and rule.latches and track.flapping
            if rule.survives in ends and not kept and (momentary or track.state is RuleState.LATCHED):
                tracks.free(track)

    def close(self, slot: Slot, reason: str) -> None:
        """The device is gone, and all that stood against it with it."""
        for key, track in slot.tracks.items():
            if track.stands:
                self.finish(slot, self.rules[key], track, reason)
        del self.slots[slot.uuid]

    def acknowledge(self, uuid: str, rule: str) -> bool:
        """Ends a finding by a person's word; False where there is none."""
        slot = self.slots.get(uuid)
        track = None if slot is None else slot.tracks.get(rule)
        if slot is None or track is None or not track.stands:
            return False
        evidence = track.evidence if self.rules[rule].survives is Survives.REBOOT else None
        self.finish(slot, self.rules[rule], track, "acknowledged")
        track.ended_ns = []
        track.acknowledged = evidence
        return True

    # What is told

    def transitions(self) -> tuple[Transition, ...]:
        """What changed since this was last asked."""
        found = tuple(self._transitions)
        self._transitions.clear()
        return found

    def _changed(self, slot: Slot, rule: Rule, track: Track, change: Change) -> None:
        slot.shown = None
        if change is Change.CLEARED:
            self._tell(slot, rule, change.value, rule.severity, stands=False, evidence={})
            return
        self._tell(slot, rule, change.value, track.severity, stands=True, evidence=track.evidence)
        for one in self._correlated:
            if rule.key in (one.key, LASTING_OF.get(one.key)):
                for shared in self._shared.mark(one.key, self.slots.values(), self.thresholds):
                    self._tell_systemic(shared, one, "shared by many GPUs")

    def _tell(
        self, slot: Slot, rule: Rule, reason: str, severity: Severity, *, stands: bool, evidence: Mapping[str, str]
    ) -> None:
        logger.info("health of %s: %s (%s) %s", slot.uuid, rule.key, severity.value, reason)
        self._transitions.append(
            Transition(
                uuid=slot.uuid, rule=rule.key, reason=reason, severity=severity, stands=stands,
                wall_ns=self.wall_ns, evidence=dict(evidence),
            )
        )  # fmt: skip

    # One cause for many devices

    def release_systemic(self) -> None:
        """What outlived the findings of the others is a device's own."""
        for rule in self._correlated:
            for slot in self._shared.release(rule.key, self.slots.values(), self.thresholds, self.now_ns):
                self._tell_systemic(slot, rule, "its own")

    def _tell_systemic(self, slot: Slot, rule: Rule, reason: str) -> None:
        slot.shown = None
        track = slot.tracks[rule.key]
        self._tell(slot, rule, reason, track.severity, stands=True, evidence=track.evidence)

    def node_findings(self) -> tuple[NodeFinding, ...]:
        """What many devices of this node share."""
        found = (node_finding(rule.key, self.slots.values()) for rule in self._correlated)
        return tuple(finding for finding in found if finding is not None)


def wants_something(look: Look) -> bool:
    """The driver says that something must be done, or the device is not there to say so."""
    if look.window is None:
        return True
    return (look.driver or look.window).text.get("recovery_action", "none") != "none"
