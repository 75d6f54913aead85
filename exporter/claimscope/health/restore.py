"""What of the findings outlives the agent's process, and what a reboot of the machine?"""

from __future__ import annotations

import msgspec

from claimscope.health import slot as slots
from claimscope.health.conditions import REBOOTS, RESETS
from claimscope.health.ledger import Ledger
from claimscope.health.slot import Slot, SlotState


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal keeps of health."""

    boot_id: str = ""  # empty: unknown, never equal to another
    saved_ns: int = 0
    devices: dict[str, SlotState] = {}


def to_state(ledger: Ledger, boot_id: str) -> EngineState:
    """A copy of what must outlive this process."""
    return EngineState(
        boot_id=boot_id, saved_ns=ledger.now_ns,
        devices={uuid: slots.to_state(slot) for uuid, slot in ledger.slots.items()},
    )  # fmt: skip


def restore(ledger: Ledger, state: EngineState, *, boot_id: str, now_ns: int) -> None:
    """All devices as they were. Time that nobody saw counts neither as dirty nor as clean."""
    rebooted = not boot_id or state.boot_id != boot_id
    for uuid, kept in state.devices.items():
        slot = ledger.slots[uuid] = slots.from_state(uuid, kept, ledger.rules)
        slot.seen_ns = now_ns
        if rebooted:
            _reboot(ledger, slot, now_ns - state.saved_ns)
    ledger.now_ns = now_ns


def _reboot(ledger: Ledger, slot: Slot, shift_ns: int) -> None:
    """Monotonic times of the former boot are moved as if the machine had been off for no time."""
    ledger.was_rebooted(slot)
    slot.session = slot.epoch = slot.end_ns = slot.before_reset_ns = 0
    slot.reset_ns, slot.present, slot.links_seen = None, False, frozenset()
    slot.proof, slot.totals = {}, {}
    slot.unrepaired = slot.action in RESETS | REBOOTS
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
