"""What does one look at a device say about heat, power and clocks, about its work, and about its modes?"""

from __future__ import annotations

from claimscope.health.model import Judgement, Look
from claimscope.health.readings import (
    CHOSEN_CLOCKS,
    NO,
    NOT_APPLICABLE,
    NOT_CLEAN,
    UNKNOWN,
    absent,
    mean,
    mean_load,
    number,
    percent,
    yes,
)
from claimscope.health.thresholds import Thresholds
from claimscope.model import Window


def _duty(look: Look, key: str, thresholds: Thresholds, *, added_up: bool = False) -> Judgement:
    """In which part of the minute the driver named this reason: enough of it, or however much there is."""
    held = look.deltas.get(key)
    if held is None:
        return UNKNOWN if look.window is None else absent(look.window, key)
    duty = min(1.0, held / look.seconds)
    if duty < thresholds["duty_clean_ratio"]:
        return NO
    if duty < thresholds["duty_active_ratio"] and not added_up:
        return NOT_CLEAN
    evidence = {key: f"{percent(duty)} of the minute"}
    window = look.window
    if window is not None:
        for name in ("temperature_gpu", "temperature_margin", "power_instant"):
            if name in window.last:
                evidence[name] = number(window.last[name])
    return yes(evidence, weight=duty if added_up else 1.0)


def thermal_slowdown(look: Look, thresholds: Thresholds) -> Judgement:
    """The hardware slows itself down for heat."""
    return _duty(look, "clock_event_hw_thermal", thresholds)


def thermal_slowdown_lasting(look: Look, thresholds: Thresholds) -> Judgement:
    """How long the hardware slows itself down for heat, all added up."""
    return _duty(look, "clock_event_hw_thermal", thresholds, added_up=True)


def power_brake(look: Look, thresholds: Thresholds) -> Judgement:
    """The power supply slows it down. A power cap, which is normal work, is another reason."""
    return _duty(look, "clock_event_hw_power_brake", thresholds)


def _distance(window: Window, limit: str) -> float | None:
    """Degrees that are left until slowdown or shutdown."""
    last = window.last
    margin = last.get("temperature_margin")
    if margin is not None:
        if limit == "slowdown":
            return margin
        at = last.get(f"temperature_margin_limit_{limit}")
        if at is not None:
            return margin - at
    now, at = last.get("temperature_gpu"), last.get(f"temperature_limit_{limit}")
    return None if now is None or at is None else at - now


def _near(look: Look, limit: str, near: float, clean: float) -> Judgement:
    window = look.window
    if window is None:
        return UNKNOWN
    left = _distance(window, limit)
    if left is None:
        return absent(window, f"temperature_limit_{limit}")
    if left <= near:
        evidence = {f"celsius_to_{limit}": number(left)}
        if "temperature_gpu" in window.last:
            evidence["temperature_gpu"] = number(window.last["temperature_gpu"])
        return yes(evidence)
    return NO if left > clean else NOT_CLEAN


def thermal_margin(look: Look, thresholds: Thresholds) -> Judgement:
    """It is close to slowing itself down."""
    return _near(look, "slowdown", thresholds["thermal_margin_celsius"], thresholds["thermal_margin_clean_celsius"])


def thermal_shutdown(look: Look, thresholds: Thresholds) -> Judgement:
    """It is close to shutting itself down."""
    return _near(look, "shutdown", thresholds["thermal_shutdown_celsius"], thresholds["thermal_margin_clean_celsius"])


def power_excess(look: Look, thresholds: Thresholds) -> Judgement:
    """More power over a whole minute than any limit that was in force within it."""
    watts = mean(look, "power_instant")
    if isinstance(watts, Judgement) or look.window is None:
        return watts if isinstance(watts, Judgement) else UNKNOWN
    limit = look.highest.get("power_limit_enforced")
    if not limit:
        return absent(look.window, "power_limit_enforced")
    if watts <= limit * thresholds["power_excess_ratio"]:
        return NO
    return yes({"power_watts": number(watts), "limit_watts": number(limit)})


def power_absent(look: Look, thresholds: Thresholds) -> Judgement:
    """It says that it works and uses no power."""
    watts, load = mean(look, "power_instant"), mean_load(look)
    if isinstance(watts, Judgement):
        return watts
    if watts >= thresholds["power_absent_watts"]:
        return NO
    if not load:
        return NOT_CLEAN
    return yes({"power_watts": number(watts), "utilization": percent(load)})


def clocks_low(look: Look, thresholds: Thresholds) -> Judgement:
    """Slower than its busy peers of the same model, without any reason that the driver names."""
    if look.peers is not None and look.peers < thresholds["clocks_low_peers"]:
        return NOT_APPLICABLE
    hertz, load = mean(look, "clock_sm"), mean_load(look)
    if isinstance(hertz, Judgement):
        return hertz
    if load is None or load < thresholds["clocks_low_load_ratio"] or not look.peer_clock:
        return NOT_CLEAN
    ratio = hertz / look.peer_clock
    if ratio >= thresholds["clocks_low_clean_ratio"]:
        return NO
    deltas, seconds = look.deltas, look.seconds
    if ratio >= thresholds["clocks_low_ratio"] or any(
        deltas.get(key, 0.0) / seconds >= thresholds["duty_clean_ratio"] for key in CHOSEN_CLOCKS
    ):
        return NOT_CLEAN
    return yes(
        {"clock_sm_megahertz": number(hertz / 1e6), "peers_median_megahertz": number(look.peer_clock / 1e6)}
    )


# Work and modes


def hang(look: Look, thresholds: Thresholds) -> Judgement:
    """It seems busy and moves nothing. Busy waiting of a communication library looks the same."""
    window, load = look.window, mean_load(look)
    if window is None or load is None:
        return UNKNOWN if window is None else absent(window, "utilization_gpu")
    memory, watts = mean(look, "utilization_memory"), mean(look, "power_instant")
    limit = window.last.get("power_limit_enforced")
    if load < thresholds["hang_utilization_ratio"] or window.processes == ():
        return NO
    if isinstance(memory, Judgement) or isinstance(watts, Judgement) or not limit or window.processes is None:
        return UNKNOWN
    if memory > thresholds["hang_memory_ratio"] or watts > limit * thresholds["hang_power_ratio"]:
        return NO
    return yes(
        {
            "utilization": percent(load),
            "memory_utilization": percent(memory),
            "power_watts": number(watts),
            "pids": ", ".join(str(process.pid) for process in window.processes[:8]),
        }
    )


def mig_mode(look: Look, _: Thresholds) -> Judgement:
    """A change of the MIG mode waits for a reset."""
    window = look.window
    if window is None:
        return UNKNOWN
    now, then = window.last.get("mig_mode_enabled"), window.last.get("mig_mode_pending_enabled")
    if now is None or then is None:
        return absent(window, "mig_mode_enabled" if now is None else "mig_mode_pending_enabled")
    if now == then:
        return NO
    words = ("off", "on")
    return yes({"mig_mode": words[bool(now)], "pending": words[bool(then)]})
