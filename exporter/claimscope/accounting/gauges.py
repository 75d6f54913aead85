"""What does each account have of the present values of a device?"""

from __future__ import annotations

from collections.abc import Mapping

from claimscope.accounting.books import Book, Device, Presence
from claimscope.accounting.plans import Plans
from claimscope.accounting.splitting import sole
from claimscope.metrics.spec import Scope, Split

GAUGE_MAX_AGE_NS = 10_000_000_000  # a gauge older than this is not the present any more


def present_values(device: Device | None, now_ns: int) -> Mapping[str, float]:
    """What a device shows now, by reading key; nothing where its newest window is old."""
    if device is None or device.window is None or now_ns - device.window.end_ns > GAUGE_MAX_AGE_NS:
        return {}
    return device.window.last


def account_gauges(
    book: Book, uuid: str, device: Device | None, presence: Presence | None, plans: Plans, now_ns: int
) -> dict[str, float]:
    """What an account has of the device `uuid`, which is its own or the GPU around it."""
    if device is None or presence is None:
        return {}
    gauges: dict[str, float] = {}
    itself = uuid == book.entity
    alone = sole(presence.own) is book
    own, whole = dict(presence.own), dict(presence.whole)
    for key, value in present_values(device, now_ns).items():
        plan = plans.of(key)
        if plan is None or plan.gauge is Split.NO or not (itself or plan.scope is Scope.GPU):
            continue
        if plan.gauge is Split.SHARE:
            weight = (whole if plan.scope is Scope.GPU else own).get(book)
            if weight is not None:
                gauges[key] = value * weight
        elif itself and alone:
            gauges[key] = value
        elif itself and plan.process_memory and book.holder in device.memory:
            gauges[key] = device.memory[book.holder]
    return gauges


def rest_gauges(device: Device | None, given: Mapping[str, float], plans: Plans, now_ns: int) -> dict[str, float]:
    """What is left of a device's present values after `given`."""
    rests: dict[str, float] = {}
    for key, value in present_values(device, now_ns).items():
        plan = plans.of(key)
        if plan is None or plan.gauge is Split.NO or plan.scope is Scope.GPU:
            continue
        rest = value - given.get(key, 0.0)
        if rest >= 0.0:  # processes and memory are read at different moments and may contradict each other
            rests[key] = rest
    return rests
