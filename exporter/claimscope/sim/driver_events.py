"""Which events does the driver report in a span of time?"""

from __future__ import annotations

import math

from claimscope.sim.moment import (
    DRIVER_EVENTS,
    EVENT_DOUBLE_BIT,
    EVENT_GPU_UNAVAILABLE,
    EVENT_MIG_CHANGE,
    EVENT_RECOVERY_ACTION,
    EVENT_XID,
    SimEvent,
)
from claimscope.sim.scenario import (
    DriverEventFault,
    EccFault,
    LostFault,
    MigChangeFault,
    RecoveryActionFault,
    XidFault,
)
from claimscope.sim.timeline import Timeline


def events_of(timeline: Timeline, after: float, until: float) -> tuple[SimEvent, ...]:
    """What the driver reports in the span (after, until]."""
    events: list[SimEvent] = []
    for fault in timeline.scenario.faults:
        if isinstance(fault, XidFault):
            events += [_xid(timeline, fault, at) for at in _times(fault.at, fault.every, after, until)]
        if not after < fault.at <= until:
            continue
        if isinstance(fault, LostFault):
            if fault.xid is not None:
                events.append(SimEvent(at=fault.at, gpu=fault.gpu, type=EVENT_XID, data=fault.xid))
            if timeline.profile.branch >= 580:
                events.append(SimEvent(at=fault.at, gpu=fault.gpu, type=EVENT_GPU_UNAVAILABLE, data=0))
        elif isinstance(fault, DriverEventFault):
            events.append(SimEvent(at=fault.at, gpu=fault.gpu, type=DRIVER_EVENTS[fault.event], data=0))
        elif isinstance(fault, EccFault) and fault.type == "uncorrected":
            events.append(SimEvent(at=fault.at, gpu=fault.gpu, type=EVENT_DOUBLE_BIT, data=0))
        elif isinstance(fault, MigChangeFault):
            events.append(SimEvent(at=fault.at, gpu=fault.gpu, type=EVENT_MIG_CHANGE, data=0))
        elif isinstance(fault, RecoveryActionFault) and timeline.profile.branch >= 580:
            events.append(SimEvent(at=fault.at, gpu=fault.gpu, type=EVENT_RECOVERY_ACTION, data=fault.action))
    return tuple(sorted(events, key=lambda event: event.at))


def _xid(timeline: Timeline, fault: XidFault, at: float) -> SimEvent:
    places = timeline.places(fault.gpu, at)
    if fault.mig is None or fault.mig >= len(places):
        return SimEvent(at=at, gpu=fault.gpu, type=EVENT_XID, data=fault.code)
    place = places[fault.mig]
    return SimEvent(
        at=at,
        gpu=fault.gpu,
        type=EVENT_XID,
        data=fault.code,
        gpu_instance=place.gpu_instance_id,
        compute_instance=place.compute_instance_id,
    )


def _times(at: float, every: float | None, after: float, until: float) -> list[float]:
    """The moments at, at + every, ... in (after, until]."""
    if every is None:
        return [at] if after < at <= until else []
    first = max(0, math.floor((after - at) / every) + 1)
    last = math.floor((until - at) / every)
    return [at + number * every for number in range(first, last + 1)]
