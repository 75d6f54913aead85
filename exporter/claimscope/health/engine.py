"""Which findings stand against which devices of this node now, and what changed about them?

The state machine over all devices. Readings, events and inventories are pushed in; nothing here reads a clock. Which
rule says what is the judge's, whether the driver is asked first driver_verdict.py's, and every change of a finding the
ledger's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from claimscope.health import driver_verdict, presence, restore
from claimscope.health import slot as slots
from claimscope.health import track as tracks
from claimscope.health.conditions import REBOOTS, RESETS
from claimscope.health.events import NO_ACTION, XID, Charge, action_charges, charges, repeated, takes_back, with_event
from claimscope.health.judge import Judge
from claimscope.health.ledger import ENDED_BY_RESET, Ledger, Transition
from claimscope.health.model import DeviceHealth, Holds, Judgement, Look, RuleState
from claimscope.health.presence import Presence
from claimscope.health.restore import EngineState
from claimscope.health.rules import On, Rule
from claimscope.health.slot import Slot
from claimscope.health.systemic import NodeFinding
from claimscope.health.thresholds import Thresholds
from claimscope.health.xids import RECOVERY_ACTION_CHANGED, Verdict, verdict_of
from claimscope.model import Device, Event, Inventory, Window

MAX_EARLY_EVENTS = 256
_LOG_CLOCK_DRIFT = 10_000  # the clock of the kernel log goes wrong by one part in so many since boot, as crystals do
_LOGGED_ACTION = frozenset({RECOVERY_ACTION_CHANGED})
_TAKEN_BACK = ("xid_degraded", "xid_fatal", "xid_needs_reboot")  # what XID 154 can speak for, and codes like 163


@dataclass(frozen=True, slots=True)
class _Early:
    """An event of a device that no inventory has named yet."""

    event: Event
    evidence: Mapping[str, str]
    decoded: Verdict | None
    recovery_action: int | None


class HealthEngine:
    """All rules over all devices of one node."""

    def __init__(self, rules: Sequence[Rule], thresholds: Thresholds, *, boot_id: str) -> None:
        self._boot_id = boot_id
        self._ledger = Ledger(rules, thresholds)
        self._judge = Judge(rules)
        self._presence = Presence()
        self._early: deque[_Early] = deque(maxlen=MAX_EARLY_EVENTS)
        self._driver_loaded_ns: int | None = None

    @classmethod
    def from_state(
        cls, rules: Sequence[Rule], thresholds: Thresholds, state: EngineState, *, boot_id: str, now_ns: int
    ) -> HealthEngine:
        """The engine as it was. Time that nobody saw counts neither as dirty nor as clean."""
        engine = cls(rules, thresholds, boot_id=boot_id)
        restore.restore(engine._ledger, state, boot_id=boot_id, now_ns=now_ns)
        return engine

    def set_thresholds(self, thresholds: Thresholds) -> None:
        """Judges by these numbers from now on; findings that stand keep standing and clear by the new ones."""
        self._ledger.set_thresholds(thresholds)

    def driver_loaded(self, at_ns: int) -> None:
        """Tells since when the driver's module is loaded; resets of single GPUs are found by their counters."""
        self._driver_loaded_ns = at_ns
        for slot in self._ledger.slots.values():
            slot.unrepaired = slot.action in RESETS | REBOOTS

    # What comes in

    def bus(self, gpus: Mapping[str, str] | None) -> None:
        """Takes which GPUs the kernel sees on the PCI bus and the driver of each; counts from the next inventory."""
        self._presence.bus = gpus

    def observe(self, window: Window, device: Device, now_ns: int, wall_ns: int) -> None:
        """Judges one device at the end of one window."""
        ledger = self._ledger
        ledger.at(now_ns, wall_ns)
        slot = presence.slot_of(ledger, device)
        if window.end_ns <= slot.end_ns and window.session == slot.session:
            return  # seen already
        span = (window.end_ns - window.start_ns) * 1e-9
        if slot.first_ns is None:
            slot.first_ns = now_ns
        if slots.take(slot, window):
            self._was_reset(slot, slot.end_ns)
        action = window.text.get("recovery_action")
        if action is not None:
            slots.note_action(slot, action)
        before = slot.window
        look = Look(
            device=device, now_ns=now_ns, window=window, lost=slot.lost, links_seen=slot.links_seen,
            deltas=slots.window_deltas(slot, window),
            seconds=(window.end_ns - before.end_ns) * 1e-9 if before is not None else span,
            boot_seconds=now_ns * 1e-9, driver_seconds=self._driver_seconds(slot, now_ns),
            driver=driver_verdict.speaker(ledger, slot) if slot.is_mig else None, unrepaired=slot.unrepaired,
        )  # fmt: skip
        slot.window, slot.end_ns, slot.seen_ns, slot.stale = window, window.end_ns, now_ns, False
        self._judge.window(ledger, slot, look, span)
        minute = slots.minute_look(slot, window, look)
        if minute is not None:
            if not slot.is_mig:
                minute = slots.with_peers(slot, minute, ledger.slots.values(), ledger.thresholds)
            self._judge.minute(ledger, slot, minute)
        self._judge.quiet(ledger, slot, look, span)
        if action == "none":
            self._take_back(slot, _LOGGED_ACTION, "the driver wants nothing", before_ns=window.start_ns)
        if slot.waiting:
            driver_verdict.hear(ledger, slot, driver_verdict.speaker(ledger, slot))
        slot.shown = None

    def event(
        self,
        event: Event,
        evidence: Mapping[str, str],
        now_ns: int,
        wall_ns: int,
        *,
        decoded: Verdict | None = None,
        recovery_action: int | None = None,
    ) -> None:
        """Takes one event, de-duplicated over its sources.

        `decoded` is the verdict on an NVLink 5 line whose registers were read, `recovery_action` what a line of
        XID 154 says; it counts while the reading of it does not come.
        """
        ledger = self._ledger
        ledger.at(now_ns, wall_ns)
        slot = presence.slot_named(ledger, event.entity)
        if slot is None:
            self._early.append(_Early(event, evidence, decoded, recovery_action))
            return
        at_ns = now_ns - max(0, wall_ns - event.wall_ns)
        found: tuple[Charge, ...] = charges(event, evidence, decoded)
        if event.kind == XID:
            self._take_back(slot, takes_back(event.code), f"taken back by XID {event.code}")
            found += self._repeats(slot, event.code, evidence, at_ns)
        if recovery_action is not None:
            if recovery_action == NO_ACTION:
                self._take_back(slot, _LOGGED_ACTION, "the driver wants nothing")
            elif slot.stale or not _says_action(slot.window):
                found += action_charges(recovery_action, evidence)
        for charge in found:
            self._charge(slot, charge, event, at_ns)

    def _charge(self, slot: Slot, charge: Charge, event: Event, at_ns: int) -> None:
        """What happened before a reset that repairs it is no news; what may have, ends if all is quiet."""
        track, rule = slot.tracks.get(charge.rule), self._ledger.rules.get(charge.rule)
        if track is None or rule is None:
            return
        code = event.code if event.kind == XID else None
        repaired = slot.reset_ns is not None and rule.survives in ENDED_BY_RESET and at_ns <= slot.reset_ns
        if repaired and at_ns < slot.before_reset_ns - self._ledger.now_ns // _LOG_CLOCK_DRIFT:
            return
        news = track.stands and not track.freed
        driver_verdict.charge(self._ledger, slot, charge, code, event.wall_ns)
        if repaired and not news and slot.action == "none":
            tracks.free(track)

    def reset(self, uuid: str, *, succeeded: bool, evidence: Mapping[str, str], now_ns: int, wall_ns: int) -> None:
        """Takes the kernel's word that a GPU was reset, or that this failed."""
        ledger = self._ledger
        ledger.at(now_ns, wall_ns)
        slot = ledger.slots.get(uuid)
        if slot is None:
            return
        if not succeeded:
            judged = Judgement(holds=Holds.YES, evidence={"reset": "failed", **evidence})
            driver_verdict.charge(ledger, slot, Charge(rule="reset_failed", judgement=judged), None, wall_ns)
        elif not slot.proof:  # else its totals tell, which nobody can write
            self._was_reset(slot, now_ns)

    def _was_reset(self, slot: Slot, before_ns: int) -> None:
        """A GPU was reset since `before_ns`, and with it the MIG devices that are cut from it."""
        for one in list(self._ledger.slots.values()):
            if one is slot or one.device.entity.parent == slot.uuid:
                one.reset_ns, one.before_reset_ns = self._ledger.now_ns, before_ns
                one.unrepaired = one.action in RESETS | REBOOTS
                self._ledger.was_reset(one)

    def inventory(self, inventory: Inventory, now_ns: int, wall_ns: int) -> None:
        """Takes what NVML shows, and the events of devices that were not known before."""
        self._ledger.at(now_ns, wall_ns)
        self._presence.take(self._ledger, inventory)
        if not self._presence.usable:
            return
        for early in [self._early.popleft() for _ in range(len(self._early))]:
            self.event(  # which keeps it where its device is still not known
                early.event, early.evidence, now_ns, wall_ns, decoded=early.decoded,
                recovery_action=early.recovery_action,
            )  # fmt: skip

    def tick(self, now_ns: int, wall_ns: int) -> None:
        """What happens without a reading: devices that do not answer, waits that are over, readings that are old."""
        ledger = self._ledger
        ledger.at(now_ns, wall_ns)
        stale_ns = round(ledger.thresholds["stale_seconds"] * 1e9)
        for slot in ledger.slots.values():
            if self._presence.usable and slot.lost is not None and slot.lost_ns is not None:
                look = Look(
                    device=slot.device, now_ns=now_ns, window=None, lost=slot.lost, boot_seconds=now_ns * 1e-9,
                    driver_seconds=self._driver_seconds(slot, now_ns),
                )  # fmt: skip
                self._judge.window(ledger, slot, look, (now_ns - slot.lost_ns) * 1e-9)
                slot.lost_ns = now_ns
                slot.shown = None
            if slot.waiting:
                driver_verdict.hear(ledger, slot, None)
            if not slot.stale and slot.lost is None and now_ns - slot.seen_ns > stale_ns:
                self._stale(slot)
        ledger.release_systemic()

    def acknowledge(self, uuid: str, rule: str) -> bool:
        """Ends a finding by a person's word; False where there is none."""
        return self._ledger.acknowledge(uuid, rule)

    def _driver_seconds(self, slot: Slot, now_ns: int) -> float:
        since = slot.reset_ns if slot.reset_ns is not None else self._driver_loaded_ns
        if since is not None and self._driver_loaded_ns is not None:
            since = max(since, self._driver_loaded_ns)
        return float("inf") if since is None else (now_ns - since) * 1e-9

    def _repeats(self, slot: Slot, code: int, evidence: Mapping[str, str], at_ns: int) -> tuple[Charge, ...]:
        if not verdict_of(code).repeats:
            return ()
        thresholds = self._ledger.thresholds
        bursts = slot.bursts[code] = with_event(
            slot.bursts.get(code, ()), evidence, at_ns,
            burst_ns=round(thresholds["xid_burst_seconds"] * 1e9),
            window_ns=round(thresholds["xid_repeat_window_seconds"] * 1e9),
        )  # fmt: skip
        return repeated(code, bursts)

    def _take_back(self, slot: Slot, codes: frozenset[int], reason: str, *, before_ns: int | None = None) -> None:
        """Ends findings that are about these XIDs alone, where they were made before that time."""
        if not codes:
            return
        for key in _TAKEN_BACK:
            track = slot.tracks.get(key)
            if track is None or not track.stands or not codes.intersection(track.codes):
                continue
            if before_ns is not None and track.fired_ns > before_ns:
                continue
            track.codes = [one for one in track.codes if one not in codes]
            if not track.codes:
                self._ledger.finish(slot, self._ledger.rules[key], track, reason)

    def _stale(self, slot: Slot) -> None:
        slot.stale = True
        slot.shown = None
        for key, track in slot.tracks.items():
            if not track.stands and track.waiting is None and self._ledger.rules[key].on is not On.EVENT:
                track.state = RuleState.UNKNOWN

    # What comes out

    def transitions(self) -> tuple[Transition, ...]:
        """What changed since this was last asked."""
        return self._ledger.transitions()

    def node_findings(self) -> tuple[NodeFinding, ...]:
        """What many devices of this node share."""
        return self._ledger.node_findings()

    def health(self) -> Mapping[str, DeviceHealth]:
        """The findings of every device, by uuid."""
        shown = {}
        for uuid, slot in self._ledger.slots.items():
            if slot.shown is None:
                slot.shown = slots.show(slot, self._ledger.rules)
            shown[uuid] = slot.shown
        return shown

    def to_state(self) -> EngineState:
        """A copy of what must outlive this process."""
        return restore.to_state(self._ledger, self._boot_id)


def _says_action(window: Window | None) -> bool:
    return window is not None and "recovery_action" in window.text
