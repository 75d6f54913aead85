"""Which driver calls are made for one entity, how often, and which reading comes out of which?

Pure: quantities x entity x what the driver has refused so far -> a `Plan`. A source that several readings share is
read once; each tier has one field batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from claimscope.metrics.spec import Kind, Quantity, Read, Scope, Stat, Tier, Unit, Via
from claimscope.model import Missing
from claimscope.nvml.calls import Call
from claimscope.nvml.wire import SPECIAL_CALLS

_EXTREMES = frozenset({Stat.MIN, Stat.MAX})

BURST_UNITS = frozenset({Unit.JOULES, Unit.BYTES, Unit.WATTS})
"""What can change faster than ten times a second: energy, byte counters, instant power. Everything else the driver
itself refreshes at 10 Hz (open-gpu-kernel-modules, cl00de.h)."""


@dataclass(frozen=True, slots=True)
class Source:
    """One thing that is asked of the driver for one entity."""

    via: Via
    name: str
    argument: int = 0  # FIELD: scopeId; CALL: the axis value; GPM: unused


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One number that comes out of a source."""

    key: str
    kind: Kind
    tier: Tier
    source: Source
    member: str = "value"
    scale: float = 1.0
    bit: int | None = None
    values: Mapping[int, str] = field(default_factory=dict)
    fast: bool = False  # also read in a burst
    integral: bool = False  # a gauge whose time integral somebody shows
    extremes: bool = False  # a gauge whose minimum and maximum somebody shows


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is read for one entity."""

    readings: tuple[Reading, ...]
    missing: Mapping[str, Missing]

    def of_tier(self, tier: Tier) -> tuple[Reading, ...]:
        """The readings of one tier, except GPM's."""
        return tuple(r for r in self.readings if r.tier is tier and r.source.via is not Via.GPM)

    def gpm(self) -> tuple[Reading, ...]:
        """The readings that come from GPU performance monitoring."""
        return tuple(r for r in self.readings if r.source.via is Via.GPM)


def sources(readings: Iterable[Reading], via: Via) -> tuple[Source, ...]:
    """The distinct sources of that kind, in the order of first use."""
    return tuple(dict.fromkeys(r.source for r in readings if r.source.via is via))


def applies(scope: Scope, *, mig: bool, has_mig: bool) -> bool:
    """Whether an entity carries quantities of that scope: `mig` is a MIG device, `has_mig` a GPU that has some."""
    if scope is Scope.GPU:
        return not mig
    if scope is Scope.LEAF:
        return not has_mig
    return True


def _source(read: Read, axis_value: int | None) -> Source:
    if read.via is Via.FIELD:
        return Source(read.via, read.name, read.scope if read.scope is not None else (axis_value or 0))
    return Source(read.via, read.name, (axis_value or 0) if read.via is Via.CALL else 0)


def _is_fast(quantity: Quantity, read: Read) -> bool:
    return (
        quantity.tier is Tier.TICK
        and read.via is Via.FIELD
        and any(view.unit in BURST_UNITS for view in quantity.views)
    )


def build_plan(
    quantities: Sequence[Quantity],
    *,
    mig: bool,
    has_mig: bool,
    axes: Mapping[str, Sequence[int]],
    refused: Mapping[Source, Missing],
    field_ids: Mapping[str, int],
    calls: Mapping[str, Call],
    gpm_metrics: Mapping[str, int],
    gpm: bool,
    collectors: Iterable[str],
) -> Plan:
    """The plan of one entity; `refused` names sources that the driver does not answer for it."""
    switched_on = frozenset(collectors)
    readings: list[Reading] = []
    missing: dict[str, Missing] = {}

    def state(source: Source) -> Missing | None:
        known = {
            Via.FIELD: source.name in field_ids,
            Via.CALL: source.name in calls,
            Via.GPM: gpm and source.name in gpm_metrics,
        }[source.via]
        return refused.get(source) if known else Missing.UNSUPPORTED

    for quantity in quantities:
        if not applies(quantity.scope, mig=mig, has_mig=has_mig) or quantity.tier is Tier.EVENT:
            continue
        if quantity.opt_in is not None and quantity.opt_in not in switched_on:
            continue
        gauge = quantity.kind is Kind.GAUGE
        stats = {view.stat for view in quantity.views}
        values: Sequence[int | None] = (None,) if quantity.axis is None else tuple(axes.get(quantity.axis, ()))
        for value in values:
            key = quantity.key if value is None else f"{quantity.key}/{value}"
            reasons: list[Missing] = []
            for read in quantity.reads:
                source = _source(read, value)
                reason = state(source)
                if reason is not None:
                    reasons.append(reason)
                    continue
                readings.append(
                    Reading(
                        key=key, kind=quantity.kind, tier=quantity.tier, source=source,
                        member=read.member or "value", scale=read.scale, bit=read.bit, values=quantity.values,
                        fast=_is_fast(quantity, read),
                        integral=gauge and Stat.TOTAL in stats, extremes=gauge and bool(_EXTREMES & stats),
                    )
                )
                break
            else:
                missing[key] = Missing.DENIED if Missing.DENIED in reasons else Missing.UNSUPPORTED
    return Plan(readings=tuple(readings), missing=missing)


def call_names(calls: Mapping[str, Call]) -> tuple[str, ...]:
    """The names behind the call numbers of the heartbeat, the same in both processes; number 0 is no call."""
    return ("", *SPECIAL_CALLS, *sorted(calls))
