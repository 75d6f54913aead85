"""What is remembered of one device between two looks, and how does a window become a look?"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from claimscope.health.events import Burst
from claimscope.health.model import DeviceHealth, Finding, Look, RuleState, Severity
from claimscope.health.readings import (
    CHOSEN_CLOCKS,
    MINUTE_DELTAS,
    MINUTE_HIGHEST,
    MINUTE_INTEGRALS,
    MINUTE_MEANS,
    NVLINKS,
    WINDOW_DELTAS,
)
from claimscope.health.rules import On, Rule
from claimscope.health.thresholds import Thresholds
from claimscope.health.track import Track
from claimscope.model import Device, Entity, Window

MINUTE_NS = 60_000_000_000
_NEARLY_NS = 500_000_000  # windows do not end on the nanosecond
_GAP_NS = 2 * MINUTE_NS  # a longer minute is none
_PEER_FRESH_NS = 2 * MINUTE_NS

# Totals of the driver that begin anew with a GPU reset or a driver load and fall at no other time. Handles are also
# taken anew for other reasons (a change of MIG devices, a restart of the sampler), which must not pass for a reset; nor
# must what anybody can set to 0: volatile ECC counts are not among them (nvidia-smi --reset-ecc-errors=0).
RESET_PROOF = ("energy", "pcie_replays", "throttle_sw_power_cap", "throttle_hw_thermal")


class SlotState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the journal keeps of one device."""

    serial: str = ""
    pci_bus_id: str = ""
    parent: str = ""
    gpu: int = -1
    model: str = ""
    session: int = 0
    epoch: int = 0
    end_ns: int = 0
    reset_ns: int | None = None
    before_reset_ns: int = 0
    action: str = ""
    unrepaired: bool = False
    present: bool = False  # was in the inventory since this machine booted
    proof: dict[str, float] = {}
    totals: dict[str, float] = {}
    links_seen: list[str] = []
    bursts: dict[int, list[Burst]] = {}
    tracks: dict[str, Track] = {}


@dataclass(slots=True, kw_only=True)
class Slot:
    """One device."""

    device: Device
    tracks: dict[str, Track]
    serial: str = ""
    first_ns: int | None = None  # first window that this process saw
    window: Window | None = None  # the newest
    minute: Window | None = None  # the one at which this minute began
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)  # in this minute: value x seconds, seconds
    highest: dict[str, float] = field(default_factory=dict)  # in this minute
    session: int = 0
    epoch: int = 0
    end_ns: int = 0
    seen_ns: int = 0  # now_ns of the newest window
    reset_ns: int | None = None  # when it was seen that it had been reset
    before_reset_ns: int = 0  # when it was last seen before that
    action: str = ""  # the newest recovery action that was read
    unrepaired: bool = False  # as in Look
    present: bool = False
    stale: bool = False
    lost: str | None = None
    lost_ns: int | None = None  # until when a lost look was judged
    proof: dict[str, float] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)  # counters judged in each window, as they were read last
    links_seen: frozenset[str] = frozenset()
    bursts: dict[int, tuple[Burst, ...]] = field(default_factory=dict)
    clock: tuple[float, int] | None = None  # mean SM clock of the last busy minute, and when
    waiting: set[str] = field(default_factory=set)
    shown: DeviceHealth | None = None  # as last asked for

    @property
    def uuid(self) -> str:
        """Of the device."""
        return self.device.entity.uuid

    @property
    def is_mig(self) -> bool:
        """It is a part of a GPU."""
        return self.device.entity.parent is not None


def new_slot(device: Device, rules: Iterable[Rule]) -> Slot:
    """A device of which nothing is known yet."""
    return Slot(device=device, tracks=new_tracks(device, rules), serial=device.identity.get("serial", ""))


def new_tracks(device: Device, rules: Iterable[Rule]) -> dict[str, Track]:
    """Rules that look at readings begin as unknown, those that wait for events as well."""
    mig = device.entity.parent is not None
    return {
        rule.key: Track(state=RuleState.OK if rule.on is On.EVENT else RuleState.UNKNOWN)
        for rule in rules
        if rule.on_mig or not mig
    }


def take(slot: Slot, window: Window) -> bool:
    """Notes a new window's epoch: whether the device was reset since the last one."""
    was_reset = False
    if (window.session, window.epoch) != (slot.session, slot.epoch):
        proof, raw = slot.proof, window.raw
        was_reset = any(raw[key] < proof[key] for key in RESET_PROOF if key in proof and key in raw)
        slot.session, slot.epoch = window.session, window.epoch
        slot.minute = slot.window = None
        if was_reset or slot.is_mig:  # a partition that was made anew may count anew
            slot.totals = {}
    slot.proof = {key: window.raw[key] for key in RESET_PROOF if key in window.raw}
    return was_reset


def window_deltas(slot: Slot, window: Window) -> dict[str, float]:
    """What the counters judged in each window rose by since they were last read, in this process or a former one.

    One that fell tells nothing: it began anew or wrapped.
    """
    raw, old, missing = window.raw, slot.totals, window.missing
    read = {key: raw[key] for key in WINDOW_DELTAS if key in raw and key not in missing}
    slot.totals = {**old, **read}
    return {key: rise for key, now in read.items() if key in old and (rise := now - old[key]) >= 0.0}


def note_action(slot: Slot, action: str) -> None:
    """The driver says what it wants; that it wants nothing ends what was left to do before a reset."""
    slot.action = action
    slot.unrepaired = slot.unrepaired and action != "none"


def minute_look(slot: Slot, window: Window, look: Look) -> Look | None:
    """The look at a minute that is over with this window; None while it is not."""
    begun = slot.minute
    highest = {key: window.last[key] for key in MINUTE_HIGHEST if key in window.last}
    if not slot.links_seen:  # a link may be lost within the first minute
        slot.links_seen = frozenset(key for key in NVLINKS if window.last.get(key))
    if begun is None:
        slot.minute, slot.sums, slot.highest = window, {}, highest
        return None
    length = (window.end_ns - window.start_ns) * 1e-9
    for key in MINUTE_MEANS:
        value = window.last.get(key)
        if value is not None:
            total, seconds = slot.sums.get(key, (0.0, 0.0))
            slot.sums[key] = total + value * length, seconds + length
    for key, value in highest.items():
        slot.highest[key] = max(value, slot.highest.get(key, value))
    elapsed = window.end_ns - begun.end_ns
    if elapsed < MINUTE_NS - _NEARLY_NS:
        return None
    sums, slot.minute, slot.sums = slot.sums, window, {}
    was_highest, slot.highest = slot.highest, highest
    slot.links_seen |= {key for key in NVLINKS if window.last.get(key)}
    if elapsed > _GAP_NS:
        return None
    deltas: dict[str, float] = {}
    for new, old, keys in (
        (window.raw, begun.raw, MINUTE_DELTAS),
        (window.integral, begun.integral, MINUTE_INTEGRALS),
    ):
        for key in keys:
            # A total stands still while its reading fails, which must not pass for nothing having happened.
            if key in new and key in old and key not in window.missing and key not in begun.missing:
                rise = new[key] - old[key]
                if rise >= 0.0:
                    deltas[key] = rise
    for key, (total, seconds) in sums.items():
        if seconds * 2e9 >= elapsed:  # of less than half the minute nothing is said
            deltas[key] = total / seconds * elapsed * 1e-9
    return replace(
        look, deltas=deltas, seconds=elapsed * 1e-9, links_seen=slot.links_seen, highest=was_highest
    )


def with_peers(slot: Slot, look: Look, others: Iterable[Slot], thresholds: Thresholds) -> Look:
    """The look with how many peers the device has, and their clock where it works and enough of them do."""
    model = slot.device.model
    peers = [other for other in others if other is not slot and not other.is_mig and other.device.model == model]
    look = replace(look, peers=len(peers))
    seconds, deltas = look.seconds, look.deltas
    load, hertz = deltas.get("utilization_gpu", 0.0) / seconds, deltas.get("clock_sm")
    if hertz is None or load < thresholds["clocks_low_load_ratio"]:
        slot.clock = None
        return look
    held_back = any(deltas.get(key, 0.0) / seconds >= thresholds["duty_clean_ratio"] for key in CHOSEN_CLOCKS)
    slot.clock = None if held_back else (hertz / seconds, look.now_ns)
    clocks = [
        other.clock[0]
        for other in peers
        if other.clock is not None and look.now_ns - other.clock[1] <= _PEER_FRESH_NS
    ]
    if len(clocks) < thresholds["clocks_low_peers"]:
        return look
    return replace(look, peer_clock=statistics.median(clocks))


def show(slot: Slot, rules: Mapping[str, Rule]) -> DeviceHealth:
    """The findings of a device and the worst of them."""
    findings = tuple(
        Finding(
            uuid=slot.uuid, rule=key, severity=track.severity, state=track.state,
            since_wall_ns=track.since_wall_ns, evidence=dict(track.evidence), clears=_clears(rules[key], track),
            systemic=track.systemic,
        )
        for key, track in slot.tracks.items()
        if track.stands
    )  # fmt: skip
    worst = max((finding.severity for finding in findings), key=lambda one: one.rank, default=Severity.OK)
    return DeviceHealth(
        uuid=slot.uuid, severity=worst, findings=findings,
        states={key: track.state for key, track in slot.tracks.items()},
        serial=slot.serial, action=slot.action, parent=slot.device.entity.parent,
    )  # fmt: skip


def _clears(rule: Rule, track: Track) -> str:
    if not track.flapping:
        return rule.clears
    if not rule.latches:
        return "It came and went too often: a GPU reset, a reboot, or an acknowledgement."
    return "It came back after several resets within a day: a reboot, or an acknowledgement."


def to_state(slot: Slot) -> SlotState:
    """A copy for the journal."""
    device = slot.device
    return SlotState(
        serial=slot.serial, pci_bus_id=device.pci_bus_id or "", parent=device.entity.parent or "",
        gpu=device.entity.gpu, model=device.model or "", session=slot.session, epoch=slot.epoch,
        end_ns=slot.end_ns, reset_ns=slot.reset_ns, before_reset_ns=slot.before_reset_ns, action=slot.action,
        unrepaired=slot.unrepaired, present=slot.present, proof=dict(slot.proof), totals=dict(slot.totals),
        links_seen=sorted(slot.links_seen), bursts={code: list(bursts) for code, bursts in slot.bursts.items()},
        tracks={key: copy(track) for key, track in slot.tracks.items() if not track.idle},
    )  # fmt: skip


def copy(track: Track) -> Track:
    """One that does not change with the other; its lists and mappings are replaced and never changed in place."""
    made: Track = msgspec.structs.replace(track)
    if track.waiting is not None:
        made.waiting = msgspec.structs.replace(track.waiting)
    return made


def from_state(uuid: str, state: SlotState, rules: Mapping[str, Rule]) -> Slot:
    """The device as the journal knows it, until the inventory names it."""
    device = Device(
        entity=Entity(uuid=uuid, parent=state.parent or None, gpu=state.gpu),
        minor=None, pci_bus_id=state.pci_bus_id or None, model=state.model or None,
    )  # fmt: skip
    tracks = new_tracks(device, rules.values())
    tracks.update({key: copy(track) for key, track in state.tracks.items() if key in tracks})
    return Slot(
        device=device, tracks=tracks, serial=state.serial, session=state.session, epoch=state.epoch,
        end_ns=state.end_ns, reset_ns=state.reset_ns, before_reset_ns=state.before_reset_ns, action=state.action,
        unrepaired=state.unrepaired, present=state.present, proof=dict(state.proof), totals=dict(state.totals),
        links_seen=frozenset(state.links_seen),
        bursts={code: tuple(bursts) for code, bursts in state.bursts.items()},
        waiting={key for key, track in tracks.items() if track.waiting is not None},
    )  # fmt: skip
