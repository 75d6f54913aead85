"""Which colour stands for which state? The same everywhere, so that a reader learns it once."""

from __future__ import annotations

from typing import Final

GOOD: Final = "green"
NOTICE: Final = "yellow"
WARNING: Final = "orange"
BAD: Final = "red"
GONE: Final = "purple"
NEUTRAL: Final = "blue"
SOON: Final = "light-blue"
ALMOST: Final = "#3fb6a8"  # teal
QUIET: Final = "#8e8e8e"
PLAIN: Final = "text"  # of a number that is neither good nor bad

# Health of a device, its number in state timelines, and its colour.
HEALTH: Final[dict[str, tuple[int, str]]] = {
    "ok": (0, GOOD),
    "degraded": (1, WARNING),
    "unhealthy": (2, BAD),
    "lost": (3, GONE),
}

# Life of a claim, in order.
CLAIM: Final[dict[str, tuple[int, str]]] = {
    "pending": (0, NOTICE),  # how long it takes, and not that it waits, is a reason to worry
    "allocated": (1, NEUTRAL),
    "reserved": (2, SOON),
    "prepared": (3, ALMOST),
    "running": (4, GOOD),
    "released": (5, QUIET),
}

# Stages of a node's maintenance, in order.
MAINTENANCE: Final[dict[str, tuple[int, str]]] = {
    "waiting_for_budget": (1, WARNING),
    "announced": (2, NOTICE),
    "waiting_for_taints": (3, NOTICE),
    "waiting_for_claims": (4, NOTICE),
    "waiting_for_processes": (5, NOTICE),
    "waiting_for_agent": (6, WARNING),
    "ready": (7, GOOD),
    "verifying": (8, NEUTRAL),
    "verify_failed": (9, BAD),
    "lifting": (10, NEUTRAL),
    "no_gpus": (11, QUIET),
}

# How far fencing goes, and its breaker.
MODE: Final[dict[str, tuple[int, str]]] = {"observe": (0, QUIET), "announce": (1, NEUTRAL), "enforce": (2, GOOD)}
BREAKER: Final[dict[str, tuple[int, str]]] = {"closed": (0, GOOD), "half_open": (1, WARNING), "open": (2, BAD)}

# Why clocks are held back.
THROTTLE: Final[dict[str, str]] = {
    "hw_thermal": BAD,
    "hw_power_brake": "dark-red",
    "sw_thermal": WARNING,
    "reliability": "dark-orange",
    "board_limit": "dark-yellow",
    "sw_power_cap": NOTICE,
    "sync_boost": QUIET,
    "low_utilization": QUIET,
    "application_clocks": NEUTRAL,
    "base_clocks": SOON,
}

# GPUs beside each other, by number: none of the colours that stand for a state.
MEMBERS: Final = ("#5794f2", "#3fb6a8", "#c0a36e", "#d683ce", "#8ab8ff", "#7f8fa9", "#1f60c4", "#a9d6e5")
MOST_MEMBERS: Final = 16  # GPUs of a node

# States of devices in a pool, of claims, of rules and of the breaker.
STATES: Final[dict[str, str]] = {
    **{state: colour for state, (_, colour) in HEALTH.items()},
    **THROTTLE,
    "allocated": NEUTRAL,
    "free": GOOD,
    "shared": "#1f60c4",
    "tainted": WARNING,
    "reserved": SOON,
    "pending": NOTICE,
    "running": GOOD,
    "deallocating": QUIET,
    "busy": GOOD,
    "idle": WARNING,
    "closed": GOOD,
    "half_open": WARNING,
    "open": BAD,
    "device_plugin": NEUTRAL,
    "dra": GOOD,
    "both": WARNING,
    "none": QUIET,
    "claim": GOOD,
    "extended_resource": NOTICE,
}


def of_gpus() -> dict[str, str]:
    """Colours of series that are called `GPU 0`, `GPU 1` and so on."""
    return {f"GPU {number}": MEMBERS[number % len(MEMBERS)] for number in range(MOST_MEMBERS)}


def by_reason() -> dict[str, str]:
    """Colours of series whose names end in the reason for which clocks are held back."""
    return {f".*: {reason}": colour for reason, colour in THROTTLE.items()}
