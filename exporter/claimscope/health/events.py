"""What does one event of a GPU say against it, and what do repeats of it say?

The catalogue of XIDs decides (xids.py); a code that it does not know is worth a look and never a fence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from claimscope.health.conditions import REBOOTS, RESETS
from claimscope.health.model import Judgement, Severity, Survives
from claimscope.health.readings import yes
from claimscope.health.xids import RECOVERY_ACTION_CHANGED, Repeat, Verdict, XidRow, verdict_of
from claimscope.metrics.state import RECOVERY_ACTIONS
from claimscope.model import Event

XID = "xid"
NO_ACTION = 0  # of RECOVERY_ACTIONS
FATAL_KINDS = frozenset({"fatal_poison", "gpu_unavailable", "dram_retirement_failure"})
DEGRADED_KINDS = frozenset({"non_fatal_poison", "ecc_single_bit_storm"})

_RULES_OF_UNHEALTHY: Mapping[Survives, str] = {
    Survives.NOTHING: "xid_fatal",
    Survives.TIME: "xid_fatal",
    Survives.RESET: "xid_needs_reboot",
    Survives.REBOOT: "xid_needs_repair",
}
_EVIDENCE_KEYS = 16  # of what the source adds, so that a finding stays small
_EVIDENCE_CHARACTERS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One rule that an event speaks for."""

    rule: str
    judgement: Judgement


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """Events of one code within a short time, counted once."""

    start_ns: int
    pod: str = ""
    unit: str = ""  # where on the GPU: "GPC 3, TPC 1"


def charges(event: Event, evidence: Mapping[str, str], decoded: Verdict | None) -> tuple[Charge, ...]:
    """The rules that one event speaks for. `decoded`: what the registers of an NVLink 5 line say, where it was read."""
    more = shown(evidence)
    if event.kind in FATAL_KINDS:
        return (Charge(rule="driver_event_fatal", judgement=yes({"event": event.kind, **more}, provisional=True)),)
    if event.kind in DEGRADED_KINDS:
        return (Charge(rule="driver_event_degraded", judgement=yes({"event": event.kind, **more})),)
    if event.kind != XID:
        return ()
    row = verdict_of(event.code)
    verdict = decoded if row.verdict is Verdict.DECODE and decoded is not None else row.verdict
    found = {"xid": str(event.code), "meaning": row.meaning, **more}
    if verdict is Verdict.LOST:
        return (Charge(rule="xid_lost", judgement=yes(found)),)
    if verdict is Verdict.UNHEALTHY:
        rule = _RULES_OF_UNHEALTHY[row.survives]
        return (Charge(rule=rule, judgement=yes(found, provisional=not row.stands_without_action)),)
    if verdict in (Verdict.DEGRADED, Verdict.DECODE):
        return (Charge(rule="xid_degraded" if row.known else "xid_unknown", judgement=yes(found)),)
    return ()


def action_charges(action: int, evidence: Mapping[str, str]) -> tuple[Charge, ...]:
    """The rule that a recovery action in the kernel log speaks for, where it cannot be read: that of such an XID."""
    word = RECOVERY_ACTIONS.get(action, str(action))
    if word == "none":
        return ()
    meaning = verdict_of(RECOVERY_ACTION_CHANGED).meaning
    found = {"xid": str(RECOVERY_ACTION_CHANGED), "meaning": meaning, "recovery_action": word, **shown(evidence)}
    rule = "xid_fatal" if word in RESETS else "xid_needs_reboot" if word in REBOOTS else "xid_degraded"
    return (Charge(rule=rule, judgement=yes(found)),)


def shown(evidence: Mapping[str, str]) -> dict[str, str]:
    """As much of what a source adds as a finding should carry."""
    return {key: value[:_EVIDENCE_CHARACTERS] for key, value in list(evidence.items())[:_EVIDENCE_KEYS]}


def takes_back(code: int) -> frozenset[int]:
    """The codes that this one clears."""
    return _CLEARS.get(code, frozenset())


def with_event(
    bursts: Iterable[Burst], evidence: Mapping[str, str], at_ns: int, *, burst_ns: int, window_ns: int
) -> tuple[Burst, ...]:
    """The bursts of one code of the last day with one more event of it."""
    kept = tuple(burst for burst in bursts if at_ns - burst.start_ns < window_ns)[-_BURSTS_KEPT:]
    if kept and at_ns - kept[-1].start_ns < burst_ns:
        return kept
    return (*kept, Burst(start_ns=at_ns, pod=evidence.get("pod", ""), unit=evidence.get("unit", "")))


def repeated(code: int, bursts: tuple[Burst, ...]) -> tuple[Charge, ...]:
    """The rules that repeats of one code speak for."""
    row = verdict_of(code)
    return tuple(_charge(row, repeat, bursts) for repeat in row.repeats if _enough(repeat, bursts))


def _enough(repeat: Repeat, bursts: tuple[Burst, ...]) -> bool:
    if repeat.same_unit:
        units = [burst.unit for burst in bursts if burst.unit]
        return any(units.count(unit) >= repeat.bursts for unit in set(units))
    pods = {burst.pod for burst in bursts if burst.pod}
    return len(bursts) >= repeat.bursts and (repeat.pods <= 1 or len(pods) >= repeat.pods)


def _charge(row: XidRow, repeat: Repeat, bursts: tuple[Burst, ...]) -> Charge:
    found = {"xid": str(row.code), "meaning": row.meaning, "times": str(len(bursts))}
    pods = sorted({burst.pod for burst in bursts if burst.pod})
    if pods:
        found["pods"] = ", ".join(pods[:8])
    fatal = repeat.verdict is Verdict.UNHEALTHY
    return Charge(
        rule="xid_repeat_fatal" if fatal else "xid_repeat",
        judgement=yes(found, severity=Severity.UNHEALTHY if fatal else Severity.DEGRADED),
    )


def _clears() -> dict[int, frozenset[int]]:
    found: dict[int, frozenset[int]] = {}
    for code in range(256):
        by = verdict_of(code).cleared_by
        if by is not None:
            found[by] = found.get(by, frozenset()) | {code}
    return found


_CLEARS = _clears()
_BURSTS_KEPT = 31
