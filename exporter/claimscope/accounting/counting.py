"""How much did a device count in a window?

Counters of the driver and integrals of the sampler are followed apart. `deltas` collects what is split, by the
beginning of the stretch in which it was counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from claimscope.accounting.books import Device, Sum
from claimscope.accounting.plans import Plans
from claimscope.metrics.spec import Split
from claimscope.model import Holder, Window

_JITTER = 0.5  # a counter that falls, but not below this part of itself, did not begin anew


def increase(before: float, now: float, *, renewed: bool = False) -> tuple[float, float]:
    """How much a driver counter rose, and the value from which its next rise counts.

    A small step back is jitter, or another source of the same number: no rise, and none until the former value is
    passed. After a restart from 0 or a wrap it rose by what it shows now (a lower bound). `renewed`: the device's
    handles were taken anew in between, so that any step back is a restart.
    """
    if now >= before:
        return now - before, now
    if not renewed and now > _JITTER * before:
        return 0.0, before
    return now, now


def follow_counters(device: Device, window: Window, plans: Plans, deltas: dict[int, dict[str, float]]) -> None:
    """Adds the rises of the counters to the totals of the device."""
    session, epoch, end_ns = window.session, window.epoch, window.end_ns
    for key, value in window.raw.items():
        plan = plans.of(key)
        if plan is None or not plan.counter or not 0.0 <= value < math.inf:
            continue
        known = device.counters.get(key)
        standing = value
        if known is None:  # what was before belongs to the device, and to nobody's account
            device.totals[key] = Sum(value, window.end_wall_ns, value)
            start_ns, delta = window.start_ns, 0.0
        else:
            start_ns = known[1]
            # A new sampler begins its epochs anew and leaves the driver's counters as they are.
            renewed = session == known[2] and epoch != known[3]
            delta, standing = increase(known[0], value, renewed=renewed)
            device.totals[key].value += delta
        device.counters[key] = (standing, end_ns, session, epoch)
        if plan.split is not Split.NO:
            deltas.setdefault(start_ns, {})[key] = delta


def follow_integrals(device: Device, window: Window, plans: Plans, deltas: dict[int, dict[str, float]]) -> None:
    """Adds the rises of the integrals to the totals of the device."""
    session, epoch, end_ns = window.session, window.epoch, window.end_ns
    for key, value in window.integral.items():
        plan = plans.of(key)
        if plan is None or not plan.integral or not 0.0 <= value < math.inf:
            continue
        known = device.integrals.get(key)
        device.integrals[key] = (value, end_ns, session, epoch)
        if known is None:
            start_ns, delta = window.start_ns, value
        elif (session, epoch) == known[2:]:
            start_ns, delta = known[1], max(value - known[0], 0.0)
        else:  # it began at 0 with the session or the epoch; what was before was not seen
            start_ns, delta = max(known[1], session) if session != known[2] else known[1], value
        total = device.totals.get(key)
        if total is None:
            length_ns = window.end_ns - window.start_ns
            device.totals[key] = Sum(delta, window.end_wall_ns - length_ns)
        else:
            total.value += delta
        if plan.split is not Split.NO:
            deltas.setdefault(start_ns, {})[key] = delta


def processes(
    window: Window, owners: Mapping[int, Holder] | None
) -> tuple[dict[Holder, float], float, dict[Holder, float]]:
    """Busy seconds by holder, busy seconds of all, memory by holder; a holder with an unknown process has none."""
    busy: dict[Holder, float] = {}
    memory: dict[Holder, float] = {}
    busy_all = 0.0
    if not window.processes or not owners:
        return busy, busy_all, memory
    seconds = (window.end_ns - window.start_ns) / 1e9
    unknown: set[Holder] = set()
    for process in window.processes:
        holder = owners.get(process.pid)
        if process.busy_ratio is not None and 0.0 < process.busy_ratio < math.inf:
            busy_all += process.busy_ratio * seconds
            if holder is not None:
                busy[holder] = busy.get(holder, 0.0) + process.busy_ratio * seconds
        if holder is not None:
            if process.memory_used_bytes is None:
                unknown.add(holder)
            else:
                memory[holder] = memory.get(holder, 0.0) + process.memory_used_bytes
    return busy, busy_all, {holder: used for holder, used in memory.items() if holder not in unknown}
