"""What does one look at a device say about its links: NVLink, the NVLink fabric, PCIe?"""

from __future__ import annotations

import math
from collections.abc import Mapping

from claimscope.health.model import Judgement, Look, Severity
from claimscope.health.readings import (
    NO,
    NOT_APPLICABLE,
    NOT_CLEAN,
    NVLINK5_ERRORS,
    NVLINK_CRC,
    NVLINK_ERRORS,
    NVLINK_FAILED,
    NVLINK_RECOVERED,
    PCIE_CORRECTABLE,
    PCIE_FATAL,
    PCIE_NON_FATAL,
    REPLAYS,
    UNKNOWN,
    absent,
    counted,
    mean_load,
    number,
    per_minute,
    percent,
    risen,
    yes,
)
from claimscope.health.thresholds import Thresholds

# Lanes x this = replays a minute that are too many: DCGM 4.6, DcgmGPUHardwareLimits.h
REPLAYS_PER_LANE: Mapping[int, float] = {1: 0.15, 2: 0.3, 3: 0.48, 4: 0.96, 5: 1.92, 6: 3.84}


def nvlink_errors(look: Look, _: Thresholds) -> Judgement:
    """Replays or recoveries of NVLink up to the fourth generation."""
    return risen(look, NVLINK_ERRORS)


def nvlink_crc(look: Look, thresholds: Thresholds) -> Judgement:
    """Many CRC errors."""
    return per_minute(look, NVLINK_CRC, thresholds["nvlink_crc_per_second"] * 60.0)


def nvlink5_errors(look: Look, _: Thresholds) -> Judgement:
    """Packet errors of NVLink 5."""
    return risen(look, NVLINK5_ERRORS)


def nvlink_recovery_failed(look: Look, _: Thresholds) -> Judgement:
    """A link went into recovery and did not come back."""
    return risen(look, NVLINK_FAILED)


def nvlink_recoveries(look: Look, _: Thresholds) -> Judgement:
    """Links that recover again and again."""
    return counted(look, NVLINK_RECOVERED)


def pcie_errors_fatal(look: Look, _: Thresholds) -> Judgement:
    """Fatal PCIe errors."""
    return risen(look, PCIE_FATAL)


def pcie_errors_non_fatal(look: Look, _: Thresholds) -> Judgement:
    """Uncorrectable PCIe errors that the link survived."""
    return risen(look, PCIE_NON_FATAL)


def pcie_errors_correctable(look: Look, _: Thresholds) -> Judgement:
    """Corrected PCIe errors."""
    return counted(look, PCIE_CORRECTABLE)


def pcie_replays(look: Look, thresholds: Thresholds) -> Judgement:
    """More replays than DCGM allows for this width and generation."""
    window = look.window
    if window is None:
        return UNKNOWN
    lanes, generation = window.last.get("pcie_link_width"), window.last.get("pcie_link_generation")
    if lanes is None or generation is None:
        return absent(window, "pcie_link_width" if lanes is None else "pcie_link_generation")
    per_lane = REPLAYS_PER_LANE.get(int(generation))
    if per_lane is None:
        return UNKNOWN
    # The link may have been idle and slow when it was looked at, and fast within the minute.
    per_lane = max(per_lane, REPLAYS_PER_LANE.get(int(window.last.get("pcie_link_generation_max", 0)), 0.0))
    return per_minute(look, REPLAYS, math.ceil(lanes * per_lane) * thresholds["pcie_replays_factor"])


# Links


def nvlink_down(look: Look, _: Thresholds) -> Judgement:
    """A link that was up since boot is down. Cards without links, and GPUs with MIG on, have none to lose."""
    window = look.window
    if window is None:
        return UNKNOWN
    seen = look.links_seen
    if not seen or look.device.mig_enabled:
        return NOT_APPLICABLE
    last, down, unread = window.last, [], False
    for key in seen:
        value = last.get(key)
        if value is None:
            unread = True
        elif not value:
            down.append(int(key.rpartition("/")[2]))
    if down:
        switched = bool(last.get("nvlink_switch_links"))
        return yes(
            {"links": ", ".join(map(str, sorted(down))), "were_up": str(len(seen))},
            severity=Severity.UNHEALTHY if switched else Severity.DEGRADED,
        )
    return UNKNOWN if unread else NO


def fabric_not_ready(look: Look, _: Thresholds) -> Judgement:
    """It has not joined the NVLink fabric."""
    window = look.window
    if window is None:
        return UNKNOWN
    state = window.text.get("fabric_state")
    if state is None:
        return absent(window, "fabric_state")
    if state == "not_supported":
        return NOT_APPLICABLE
    if state != "completed":
        return yes({"fabric_state": state})
    status = window.text.get("fabric_status")
    return NO if status in (None, "success") else yes({"fabric_state": state, "fabric_status": str(status)})


def _fabric_faults(look: Look, faults: tuple[str, ...], health: str) -> Judgement:
    window = look.window
    if window is None:
        return UNKNOWN
    state = window.text.get("fabric_state")
    if state is None:
        return absent(window, "fabric_state")
    if state == "not_supported":
        return NOT_APPLICABLE
    active = {key: "1" for key in faults if window.last.get(key)}
    if window.text.get("fabric_health") == health:
        active["fabric_health"] = health
    return yes(active) if active else NO


def fabric_unhealthy(look: Look, _: Thresholds) -> Judgement:
    """The fabric cannot be reached rightly."""
    return _fabric_faults(look, ("fabric_fault_route_unhealthy", "fabric_fault_incorrect_configuration"), "unhealthy")


def fabric_degraded(look: Look, _: Thresholds) -> Judgement:
    """The fabric is slower than it should be."""
    return _fabric_faults(look, ("fabric_fault_degraded_bandwidth",), "limited_capacity")


def pcie_width(look: Look, thresholds: Thresholds) -> Judgement:
    """Fewer lanes than device and slot allow, while it works: idle devices may give lanes up."""
    return _narrow(look, thresholds, "pcie_link_width", at_once_in_p0=True)


def pcie_generation(look: Look, thresholds: Thresholds) -> Judgement:
    """A slower link than device and slot allow, while it works: idle devices go down to generation 1."""
    return _narrow(look, thresholds, "pcie_link_generation", at_once_in_p0=False)


def _narrow(look: Look, thresholds: Thresholds, key: str, *, at_once_in_p0: bool) -> Judgement:
    window = look.window
    if window is None:
        return UNKNOWN
    last = window.last
    now, most = last.get(key), last.get(f"{key}_max")
    if now is None or most is None:
        return absent(window, key if now is None else f"{key}_max")
    if now >= most:
        return NO
    fastest = last.get("performance_state") == 0
    load = mean_load(look)
    rule = "pcie_width" if at_once_in_p0 else "pcie_generation"
    busy = load is not None and load >= thresholds[f"{rule}_load_ratio"]
    works = (fastest or busy) if at_once_in_p0 else (fastest and busy)
    if not works:
        return NOT_CLEAN
    very = at_once_in_p0 and now <= most * thresholds["pcie_width_unhealthy_ratio"]
    evidence = {key: f"{number(now)} of {number(most)}"}
    if load is not None:
        evidence["utilization"] = percent(load)
    return yes(evidence, severity=Severity.UNHEALTHY if very else None)
