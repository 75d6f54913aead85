"""Do many GPUs of a node suffer from one cause outside of them: cooling, power supply, firmware?

Then it is one finding of the node. The findings of its GPUs stay visible, marked as systemic, and fence none of them.
One cause brings one severity: what is worse on one GPU than on the others is its own, but for what is the same and
merely lasts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from claimscope.health.model import RuleState, Severity
from claimscope.health.slot import Slot
from claimscope.health.thresholds import Thresholds
from claimscope.health.track import Track

# What a rule says of the same readings once they last: it has the cause that the first one has.
LASTING_OF: Final[Mapping[str, str]] = MappingProxyType({"thermal_slowdown_lasting": "thermal_slowdown"})


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFinding:
    """One rule that stands against many devices of a node at once."""

    rule: str
    uuids: tuple[str, ...]
    since_wall_ns: int


def needed(gpus: int, thresholds: Thresholds) -> int:
    """How many GPUs of so many make one cause likely."""
    return max(round(thresholds["systemic_devices"]), math.ceil(gpus * thresholds["systemic_ratio"] - 1e-9))


def together(
    fired_ns: Mapping[str, int], marked: Collection[str], gpus: int, thresholds: Thresholds
) -> frozenset[str]:
    """The devices whose findings of one rule have one cause, by when each of those that stand was made.

    Enough of them within the window; and whoever follows one of them within it, while enough of those that were
    `marked` before still stand.
    """
    need = needed(gpus, thresholds)
    window_ns = round(thresholds["systemic_window_seconds"] * 1e9)
    ordered = sorted(fired_ns, key=lambda uuid: (fired_ns[uuid], uuid))
    found = still = set(marked) & fired_ns.keys()
    if len(still) >= need:
        for uuid in ordered:
            if any(0 <= fired_ns[uuid] - fired_ns[one] <= window_ns for one in found):
                found = found | {uuid}
        return frozenset(found)
    for first in range(len(ordered) - need + 1):
        begin = fired_ns[ordered[first]]
        inside = [uuid for uuid in ordered[first:] if fired_ns[uuid] - begin <= window_ns]
        if len(inside) >= need:
            found.update(inside)
    return frozenset(found)


class SharedCauses:
    """Which findings are marked as systemic, on the tracks of all devices of a node."""

    def __init__(self) -> None:
        self._alone_since_ns: dict[tuple[str, Severity], int] = {}  # since when too few devices share it

    def mark(self, rule: str, slots: Collection[Slot], thresholds: Thresholds) -> list[Slot]:
        """After one more device fired: the devices whose finding is systemic from now on."""
        new = []
        for slot, track in _tracks(rule, slots):
            if track.stands and not track.systemic and _lasts(rule, slot):
                track.systemic = True
                new.append(slot)
        for severity in Severity:
            standing = {
                slot.uuid: (slot, track)
                for slot, track in _tracks(rule, slots)
                if track.stands and track.severity is severity
            }
            fired = {uuid: track.fired_ns for uuid, (_, track) in standing.items()}
            marked = {uuid for uuid, (_, track) in standing.items() if track.systemic}
            for uuid in sorted(together(fired, marked, _gpus(slots), thresholds) - marked):
                slot, track = standing[uuid]
                track.systemic = True
                new.append(slot)
        return new

    def release(self, rule: str, slots: Collection[Slot], thresholds: Thresholds, now_ns: int) -> list[Slot]:
        """The devices whose finding outlived those of the others so long that it is their own."""
        all_marked = [(slot, track) for slot, track in _tracks(rule, slots) if track.systemic]
        released = []
        for severity in Severity:
            marked = [(slot, track) for slot, track in all_marked if track.severity is severity]
            if not marked or len(marked) >= needed(_gpus(slots), thresholds):
                self._alone_since_ns.pop((rule, severity), None)
                continue
            since_ns = self._alone_since_ns.setdefault((rule, severity), now_ns)
            if now_ns - since_ns < round(thresholds["systemic_release_seconds"] * 1e9):
                continue
            for slot, track in marked:
                if track.state is not RuleState.CLEARING and not _lasts(rule, slot):
                    track.systemic = False
                    released.append(slot)
        return released


def node_finding(rule: str, slots: Iterable[Slot]) -> NodeFinding | None:
    """What devices share of one rule."""
    marked = {slot.uuid: track.since_wall_ns for slot, track in _tracks(rule, slots) if track.systemic}
    if not marked:
        return None
    return NodeFinding(rule=rule, uuids=tuple(sorted(marked)), since_wall_ns=min(marked.values()))


def _lasts(rule: str, slot: Slot) -> bool:
    """Whether it is what a systemic finding of the device has become."""
    first = slot.tracks.get(LASTING_OF.get(rule, ""))
    return first is not None and first.systemic


def _tracks(rule: str, slots: Iterable[Slot]) -> Iterable[tuple[Slot, Track]]:
    return ((slot, slot.tracks[rule]) for slot in slots if not slot.is_mig and rule in slot.tracks)


def _gpus(slots: Iterable[Slot]) -> int:
    return sum(1 for slot in slots if not slot.is_mig)
