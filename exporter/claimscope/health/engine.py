"""Which findings stand against which devices of this node now, and what changed about them?

The state machine over all devices. Readings, events and inventories are pushed in; nothing here reads a clock.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from claimscope.health import slot as slots
from claimscope.health import track as tracks
from claimscope.health.conditions import NOT_LISTED
from claimscope.health.events import XID, Charge, action_charges, charges, repeated, takes_back, with_event
from claimscope.health.model import (
    DeviceHealth,
    Holds,
    Judgement,
    Look,
    RuleState,
    Severity,
    Survives,
)
from claimscope.health.readings import NO, NOT_CLEAN
from claimscope.health.rules import Condition, First, Grace, On, Rule
from claimscope.health.slot import Slot, SlotState
from claimscope.health.systemic import NodeFinding, SharedCauses, node_finding
from claimscope.health.thresholds import Thresholds
from claimscope.health.track import Change, Times, Track, Waiting
from claimscope.health.xids import Verdict, verdict_of
from claimscope.model import Device, Entity, Event, Inventory, Missing, Window

logger = logging.getLogger(__name__)

MAX_TRANSITIONS = 4096
MAX_EARLY_EVENTS = 256
_SETTLED = {
    Holds.NO: RuleState.OK,
    Holds.UNKNOWN: RuleState.UNKNOWN,
    Holds.NOT_APPLICABLE: RuleState.NOT_APPLICABLE,
}


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal keeps of health."""

    boot_id: str = ""  # empty: unknown, never equal to another
    saved_ns: int = 0
    devices: dict[str, SlotState] = {}


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


@dataclass(frozen=True, slots=True)
class _Row:
    """A rule with its numbers, as the loop over all rules wants it."""

    key: str
    rule: Rule
    condition: Condition
    times: Times


class HealthEngine:
    """All rules over all devices of one node."""

    def __init__(self, rules: Sequence[Rule], thresholds: Thresholds, *, boot_id: str) -> None:
        self._rules: dict[str, Rule] = {rule.key: rule for rule in rules}
        self._boot_id = boot_id
        self._slots: dict[str, Slot] = {}
        self._transitions: deque[Transition] = deque(maxlen=MAX_TRANSITIONS)
        self._early: deque[tuple[Event, Mapping[str, str], Verdict | None]] = deque(maxlen=MAX_EARLY_EVENTS)
        self._replaced: set[str] = set()  # GPUs whose slot another has now, though NVML may still name them as lost
        self._usable = False
        self._driver_loaded_ns: int | None = None
        self._wall_ns = 0
        self._now_ns = 0
        self._shared = SharedCauses()
        self._correlated = tuple(rule for rule in rules if rule.correlated)
        self.set_thresholds(thresholds)

    def set_thresholds(self, thresholds: Thresholds) -> None:
        """Judges by these numbers from now on; findings that stand keep standing and clear by the new ones."""
        self._thresholds = thresholds
        self._times = {key: tracks.times_of(rule, thresholds) for key, rule in self._rules.items()}
        rows = [
            _Row(key, rule, rule.condition, self._times[key])
            for key, rule in self._rules.items()
            if rule.condition is not None
        ]
        self._window_rows = [row for row in rows if row.rule.on is On.WINDOW]
        self._minute_rows = [row for row in rows if row.rule.on is On.MINUTE]
        self._event_keys = [key for key, rule in self._rules.items() if rule.on is On.EVENT]

    def driver_loaded(self, at_ns: int) -> None:
        """Tells since when the driver's module is loaded; resets of single GPUs are found by their counters."""
        self._driver_loaded_ns = at_ns

    # Readings

    def observe(self, window: Window, device: Device, now_ns: int, wall_ns: int) -> None:
        """Judges one device at the end of one window."""
        self._now_ns, self._wall_ns = now_ns, wall_ns
        slot = self._slot(device)
        if window.end_ns <= slot.end_ns and window.session == slot.session:
            return  # seen already
        span = (window.end_ns - window.start_ns) * 1e-9
        same, was_reset = slots.take(slot, window, now_ns)
        if slot.first_ns is None:
            slot.first_ns = now_ns
        if was_reset:
            self._end_what(slot, _ENDED_BY_RESET)
        before = slot.window
        look = Look(
            device=device, now_ns=now_ns, window=window, lost=slot.lost, links_seen=slot.links_seen,
            deltas=slots.window_deltas(window, before) if same and before is not None else {},
            seconds=(window.end_ns - before.end_ns) * 1e-9 if before is not None else span,
            boot_seconds=now_ns * 1e-9, driver_seconds=self._driver_seconds(slot, now_ns),
        )  # fmt: skip
        slot.window, slot.end_ns, slot.seen_ns, slot.stale = window, window.end_ns, now_ns, False
        self._judge(slot, self._window_rows, look, span)
        minute = slots.minute_look(slot, window, look)
        if minute is not None:
            if not slot.is_mig:
                minute = slots.with_peers(slot, minute, self._slots.values(), self._thresholds)
            self._judge(slot, self._minute_rows, minute, minute.seconds)
        self._judge_events(slot, look, span)
        if slot.waiting:
            self._hear_verdict(slot, window)
        slot.shown = None

    def _driver_seconds(self, slot: Slot, now_ns: int) -> float:
        since = slot.reset_ns if slot.reset_ns is not None else self._driver_loaded_ns
        if since is not None and self._driver_loaded_ns is not None:
            since = max(since, self._driver_loaded_ns)
        return float("inf") if since is None else (now_ns - since) * 1e-9

    def _judge(self, slot: Slot, rows: Iterable[_Row], look: Look, span: float) -> None:
        thresholds, of_slot, settled = self._thresholds, slot.tracks, _SETTLED
        now_ns = look.now_ns
        grace = self._grace(slot, look)
        for row in rows:
            track = of_slot.get(row.key)
            if track is None or row.rule.grace in grace:
                continue
            judged = row.condition(look, thresholds)
            if track.waiting is not None:
                continue
            if settled.get(judged.holds) is track.state and track.acknowledged is None:
                continue
            if judged.provisional and not track.stands and judged.holds is Holds.YES:
                self._wait(slot, track, row.key, judged)
                continue
            if track.freed and judged.holds is Holds.NO and _wants_something(look):
                judged = NOT_CLEAN
            change = tracks.advance(
                track, row.rule, row.times, judged, span=span, now_ns=now_ns, wall_ns=self._wall_ns
            )
            if change is not None:
                self._changed(slot, row.rule, track, change)

    def _grace(self, slot: Slot, look: Look) -> frozenset[Grace]:
        """The rules that do not judge yet."""
        thresholds = self._thresholds
        settled = min(look.boot_seconds, look.driver_seconds)
        seen = look.now_ns - slot.first_ns if slot.first_ns is not None else 0
        starting = seen * 1e-9 < thresholds["startup_grace_seconds"]
        starting = starting or look.driver_seconds < thresholds["startup_grace_seconds"]
        if starting:
            return _STARTING
        return _BOOTING if settled < thresholds["boot_grace_seconds"] else _RUNNING

    def _judge_events(self, slot: Slot, look: Look, span: float) -> None:
        """What events brought has quiet time while no new one comes and the driver wants nothing."""
        for key in self._event_keys:
            track = slot.tracks.get(key)
            if track is None or not track.stands:
                continue
            judged = NOT_CLEAN if _wants_something(look) else NO
            change = tracks.advance(
                track, self._rules[key], self._times[key], judged,
                span=span, now_ns=look.now_ns, wall_ns=self._wall_ns,
            )  # fmt: skip
            if change is not None:
                self._changed(slot, self._rules[key], track, change)

    # Events

    def event(
        self, event: Event, evidence: Mapping[str, str], now_ns: int, wall_ns: int, *, decoded: Verdict | None = None,
        recovery_action: int | None = None,
    ) -> None:
        """Takes one event, de-duplicated over its sources.

        `decoded` is the verdict on an NVLink 5 line whose registers were read, `recovery_action` what a line of
        XID 154 says; it counts while the reading of it does not come.
        """
        self._now_ns, self._wall_ns = now_ns, wall_ns
        slot = self._slots.get(event.entity)
        if slot is None:
            self._early.append((event, evidence, decoded))
            return
        found: tuple[Charge, ...] = charges(event, evidence, decoded)
        if event.kind == XID:
            self._take_back(slot, event.code)
            if verdict_of(event.code).repeats:
                bursts = with_event(
                    slot.bursts.get(event.code, ()), event, evidence, now_ns,
                    burst_ns=round(self._thresholds["xid_burst_seconds"] * 1e9),
                    window_ns=round(self._thresholds["xid_repeat_window_seconds"] * 1e9),
                )  # fmt: skip
                slot.bursts[event.code] = bursts
                found = (*found, *repeated(event.code, bursts))
        if recovery_action is not None and (slot.stale or not _says_action(slot.window)):
            found = (*found, *action_charges(recovery_action, evidence))
        for charge in found:
            self._charge(slot, charge, event.code if event.kind == XID else None)

    def reset(self, uuid: str, *, succeeded: bool, evidence: Mapping[str, str], now_ns: int, wall_ns: int) -> None:
        """Takes the kernel's word that a GPU was reset, or that this failed."""
        self._now_ns, self._wall_ns = now_ns, wall_ns
        slot, rule = self._slots.get(uuid), self._rules.get("reset_failed")
        if slot is None:
            return
        if succeeded:
            slot.reset_ns = now_ns
            self._end_what(slot, _ENDED_BY_RESET)
        elif rule is not None:
            judged = Judgement(holds=Holds.YES, evidence={"reset": "failed", **evidence})
            self._charge(slot, Charge(rule=rule.key, judgement=judged), None)

    def _charge(self, slot: Slot, charge: Charge, code: int | None) -> None:
        track, rule = slot.tracks.get(charge.rule), self._rules.get(charge.rule)
        if track is None or rule is None:
            return
        slot.shown = None
        if track.stands:
            change = tracks.again(track, rule, charge.judgement, code)
            if change is not None:
                self._changed(slot, rule, track, change)
        elif charge.judgement.provisional and _verdict_readable(slot):
            self._wait(slot, track, charge.rule, charge.judgement)
            if code is not None:
                tracks.with_code(track, code)
        else:
            slot.waiting.discard(charge.rule)
            self._fire(slot, rule, track, charge.judgement, (code,) if code is not None else ())

    def _fire(self, slot: Slot, rule: Rule, track: Track, judged: Judgement, codes: Iterable[int]) -> None:
        change = tracks.fire(
            track, rule, self._times[rule.key], judged, now_ns=self._now_ns, wall_ns=self._wall_ns
        )
        for code in codes:
            tracks.with_code(track, code)
        self._changed(slot, rule, track, change)

    def _take_back(self, slot: Slot, code: int) -> None:
        cleared = takes_back(code)
        track = slot.tracks.get("xid_degraded")
        if not cleared or track is None or not track.stands or not cleared.intersection(track.codes):
            return
        track.codes = [one for one in track.codes if one not in cleared]
        if not track.codes:
            self._finish(slot, self._rules["xid_degraded"], track, f"taken back by XID {code}")

    # The driver's own verdict

    def _wait(self, slot: Slot, track: Track, key: str, judged: Judgement) -> None:
        if track.waiting is not None:
            return
        wait_ns = round(self._thresholds["verdict_wait_seconds"] * 1e9)
        track.waiting = Waiting(
            since_ns=self._now_ns, until_ns=self._now_ns + wait_ns, evidence=dict(judged.evidence),
            severity=judged.severity or self._rules[key].severity,
        )  # fmt: skip
        track.state = RuleState.PENDING
        track.codes = []
        slot.waiting.add(key)

    def _hear_verdict(self, slot: Slot, window: Window | None) -> None:
        """A recovery action confirms at once, none at the end of the wait makes it milder, silence confirms."""
        for key in sorted(slot.waiting):
            track, rule = slot.tracks[key], self._rules[key]
            waiting = track.waiting
            if waiting is None:
                slot.waiting.discard(key)
                continue
            if window is not None and window.end_ns > waiting.since_ns:
                action = window.text.get("recovery_action")
                if action is None:
                    waiting.said_none = False
                    if window.missing.get("recovery_action") is Missing.UNSUPPORTED:
                        self._decide(slot, rule, track, waiting, milder=False)
                        continue
                elif action != "none":
                    waiting.evidence = {**waiting.evidence, "recovery_action": action}
                    self._decide(slot, rule, track, waiting, milder=False)
                    continue
                else:
                    waiting.said_none = True
            if self._now_ns >= waiting.until_ns:
                self._decide(slot, rule, track, waiting, milder=waiting.said_none)

    def _decide(self, slot: Slot, rule: Rule, track: Track, waiting: Waiting, *, milder: bool) -> None:
        slot.waiting.discard(rule.key)
        codes, track.waiting = track.codes, None
        if not milder:
            judged = Judgement(holds=Holds.YES, evidence=waiting.evidence, severity=waiting.severity)
            self._fire(slot, rule, track, judged, codes)
            return
        evidence = {**waiting.evidence, "recovery_action": "none"}
        judged = Judgement(holds=Holds.YES, evidence=evidence, severity=Severity.DEGRADED)
        if rule.milder is None:
            self._fire(slot, rule, track, judged, codes)
            return
        track.state, track.codes = RuleState.OK, []
        self._charge(slot, Charge(rule=rule.milder, judgement=judged), codes[0] if codes else None)

    # Inventory

    def inventory(self, inventory: Inventory, now_ns: int, wall_ns: int) -> None:
        """Takes what NVML shows: devices that are lost, came back, were replaced, or are not listed any more."""
        self._now_ns, self._wall_ns = now_ns, wall_ns
        self._usable = inventory.error is None and not inventory.released
        if not self._usable:
            for slot in self._slots.values():
                slot.lost = slot.lost_ns = slot.absent_since_ns = None
            return
        for device in inventory.devices:
            if device.entity.uuid not in inventory.lost:  # what is lost takes nobody's place
                self._replaced.discard(device.entity.uuid)
                self._close_replaced(device)
        for device in inventory.devices:
            if device.entity.uuid in self._replaced:
                continue
            slot = self._slot(device)
            slot.present = True
            slot.absent_since_ns = None
        listed = {device.entity.uuid for device in inventory.devices}
        for uuid in inventory.lost.keys() - self._slots.keys() - self._replaced:
            if uuid.startswith("GPU-"):  # lost before anybody here saw it
                entity = Entity(uuid=uuid, gpu=-1)
                self._slot(Device(entity=entity, minor=None, pci_bus_id=None, model=None))
        for uuid, slot in list(self._slots.items()):
            parent = slot.device.entity.parent
            if uuid in inventory.lost and (parent is None or parent in inventory.lost):
                self._lose(slot, inventory.lost[uuid], now_ns)
            elif uuid in listed:
                slot.lost = slot.lost_ns = None
            elif parent is not None:
                if uuid not in inventory.lost and parent not in inventory.lost:
                    self._close(slot, "the partition is gone")
            elif slot.present:
                self._lose(slot, NOT_LISTED, now_ns)
            elif not any(track.stands for track in slot.tracks.values()):
                del self._slots[uuid]  # of another boot, and nothing stands against it
        for event, evidence, decoded in [self._early.popleft() for _ in range(len(self._early))]:
            if event.entity in self._slots:
                self.event(event, evidence, now_ns, wall_ns, decoded=decoded)

    def _lose(self, slot: Slot, reason: str, now_ns: int) -> None:
        if slot.lost != reason:
            slot.lost, slot.lost_ns = reason, now_ns
        slot.shown = None

    def _close_replaced(self, device: Device) -> None:
        """Another board in the slot: what stood against the former one is over."""
        entity, serial = device.entity, device.identity.get("serial", "")
        known = self._slots.get(entity.uuid)
        if known is not None and serial and known.serial and serial != known.serial:
            self._close(known, f"replaced: serial {serial} instead of {known.serial}")
        if entity.parent is not None or device.pci_bus_id is None:
            return
        for slot in list(self._slots.values()):
            if slot.uuid != entity.uuid and not slot.is_mig and slot.device.pci_bus_id == device.pci_bus_id:
                self._close(slot, f"replaced by {entity.uuid}")
                self._replaced.add(slot.uuid)

    def _close(self, slot: Slot, reason: str) -> None:
        for key, track in slot.tracks.items():
            if track.stands:
                self._finish(slot, self._rules[key], track, reason)
        del self._slots[slot.uuid]

    def _slot(self, device: Device) -> Slot:
        slot = self._slots.get(device.entity.uuid)
        if slot is None:
            slot = self._slots[device.entity.uuid] = slots.new_slot(device, self._rules.values())
        elif slot.device is not device:
            slot.device = device
            slot.serial = device.identity.get("serial", slot.serial)
        return slot

    # Time

    def tick(self, now_ns: int, wall_ns: int) -> None:
        """What happens without a reading: devices that do not answer, waits that are over, readings that are old."""
        self._now_ns, self._wall_ns = now_ns, wall_ns
        stale_ns = round(self._thresholds["stale_seconds"] * 1e9)
        for slot in self._slots.values():
            if self._usable and slot.lost is not None and slot.lost_ns is not None:
                look = Look(
                    device=slot.device, now_ns=now_ns, window=None, lost=slot.lost, boot_seconds=now_ns * 1e-9,
                    driver_seconds=self._driver_seconds(slot, now_ns),
                )  # fmt: skip
                self._judge(slot, self._window_rows, look, (now_ns - slot.lost_ns) * 1e-9)
                slot.lost_ns = now_ns
                slot.shown = None
            if slot.waiting:
                self._hear_verdict(slot, None)
            if not slot.stale and slot.lost is None and now_ns - slot.seen_ns > stale_ns:
                slot.stale = True
                slot.shown = None
                for key, track in slot.tracks.items():
                    if not track.stands and track.waiting is None and self._rules[key].on is not On.EVENT:
                        track.state = RuleState.UNKNOWN
        self._release_systemic()

    def acknowledge(self, uuid: str, rule: str) -> bool:
        """Ends a finding by a person's word; False where there is none."""
        slot = self._slots.get(uuid)
        track = None if slot is None else slot.tracks.get(rule)
        if slot is None or track is None or not track.stands:
            return False
        evidence = track.evidence if self._rules[rule].survives is Survives.REBOOT else None
        self._finish(slot, self._rules[rule], track, "acknowledged")
        track.ended_ns = []
        track.acknowledged = evidence
        return True

    def _end_what(self, slot: Slot, ends: Iterable[Survives]) -> None:
        """A reset or reboot: what does not survive it, and no clean time ends, clears after a while of quiet."""
        slot.shown = None
        for key, track in slot.tracks.items():
            rule = self._rules[key]
            momentary = rule.on is On.EVENT or isinstance(rule.window, First)
            if rule.survives in ends and (momentary or track.state is RuleState.LATCHED):
                tracks.free(track)

    # Changes

    def _changed(self, slot: Slot, rule: Rule, track: Track, change: Change) -> None:
        slot.shown = None
        if change is Change.CLEARED:
            self._tell(slot, rule, change.value, rule.severity, stands=False, evidence={})
            return
        self._tell(slot, rule, change.value, track.severity, stands=True, evidence=track.evidence)
        if rule.correlated and change is not Change.WORSE:
            self._mark_systemic(rule)

    def _finish(self, slot: Slot, rule: Rule, track: Track, reason: str) -> None:
        severity, evidence = track.severity, track.evidence
        tracks.end(track, self._now_ns)
        slot.shown = None
        self._tell(slot, rule, reason, severity, stands=False, evidence=evidence)

    def _tell(
        self, slot: Slot, rule: Rule, reason: str, severity: Severity, *, stands: bool, evidence: Mapping[str, str]
    ) -> None:
        logger.info("health of %s: %s (%s) %s", slot.uuid, rule.key, severity.value, reason)
        self._transitions.append(
            Transition(
                uuid=slot.uuid, rule=rule.key, reason=reason, severity=severity, stands=stands,
                wall_ns=self._wall_ns, evidence=dict(evidence),
            )
        )  # fmt: skip

    def transitions(self) -> tuple[Transition, ...]:
        """What changed since this was last asked."""
        found = tuple(self._transitions)
        self._transitions.clear()
        return found

    # One cause for many devices

    def _mark_systemic(self, rule: Rule) -> None:
        for slot in self._shared.mark(rule.key, self._slots.values(), self._thresholds):
            self._tell_systemic(slot, rule, "shared by many GPUs")

    def _release_systemic(self) -> None:
        for rule in self._correlated:
            for slot in self._shared.release(rule.key, self._slots.values(), self._thresholds, self._now_ns):
                self._tell_systemic(slot, rule, "its own")

    def _tell_systemic(self, slot: Slot, rule: Rule, reason: str) -> None:
        slot.shown = None
        track = slot.tracks[rule.key]
        self._tell(slot, rule, reason, track.severity, stands=True, evidence=track.evidence)

    def node_findings(self) -> tuple[NodeFinding, ...]:
        """What many devices of this node share."""
        found = (node_finding(rule.key, self._slots.values()) for rule in self._correlated)
        return tuple(finding for finding in found if finding is not None)

    # What is shown and kept

    def health(self) -> Mapping[str, DeviceHealth]:
        """The findings of every device, by uuid."""
        shown = {}
        for uuid, slot in self._slots.items():
            if slot.shown is None:
                slot.shown = slots.show(slot, self._rules)
            shown[uuid] = slot.shown
        return shown

    def to_state(self) -> EngineState:
        """A copy of what must outlive this process."""
        return EngineState(
            boot_id=self._boot_id,
            saved_ns=self._now_ns,
            devices={uuid: slots.to_state(slot) for uuid, slot in self._slots.items()},
        )

    @classmethod
    def from_state(
        cls, rules: Sequence[Rule], thresholds: Thresholds, state: EngineState, *, boot_id: str, now_ns: int
    ) -> HealthEngine:
        """The engine as it was. Time that nobody saw counts neither as dirty nor as clean."""
        engine = cls(rules, thresholds, boot_id=boot_id)
        rebooted = not boot_id or state.boot_id != boot_id
        for uuid, kept in state.devices.items():
            slot = engine._slots[uuid] = slots.from_state(uuid, kept, engine._rules)
            slot.seen_ns = now_ns
            if rebooted:
                engine._reboot(slot, now_ns - state.saved_ns)
        engine._now_ns = now_ns
        return engine

    def _reboot(self, slot: Slot, shift_ns: int) -> None:
        """Monotonic times of the former boot are moved as if the machine had been off for no time."""
        self._end_what(slot, _ENDED_BY_REBOOT)
        slot.session = slot.epoch = slot.end_ns = 0
        slot.reset_ns, slot.present, slot.proof, slot.links_seen = None, False, {}, frozenset()
        slot.waiting = set()
        slot.bursts = {
            code: tuple(msgspec.structs.replace(one, start_ns=one.start_ns + shift_ns) for one in bursts)
            for code, bursts in slot.bursts.items()
        }
        for track in slot.tracks.values():
            track.waiting = None
            track.fired_ns += shift_ns
            track.ended_ns = [at + shift_ns for at in track.ended_ns]
            track.seen, track.dirty_seconds, track.minutes = False, 0.0, []


_ENDED_BY_RESET = frozenset({Survives.NOTHING, Survives.TIME})
_ENDED_BY_REBOOT = _ENDED_BY_RESET | {Survives.RESET}
_STARTING = frozenset({Grace.START, Grace.BOOT})
_BOOTING = frozenset({Grace.BOOT})
_RUNNING: frozenset[Grace] = frozenset()


def _wants_something(look: Look) -> bool:
    """The driver says that something must be done, or the device is not there to say so."""
    if look.window is None:
        return True
    return look.window.text.get("recovery_action", "none") != "none"


def _says_action(window: Window | None) -> bool:
    return window is not None and "recovery_action" in window.text


def _verdict_readable(slot: Slot) -> bool:
    window = slot.window
    return window is None or window.missing.get("recovery_action") is not Missing.UNSUPPORTED
