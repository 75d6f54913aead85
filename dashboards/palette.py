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
    "pending": (0, WARNING),
    "allocated": (1, NEUTRAL),
    "reserved": (2, SOON),
    "prepared": (3, SOON),
    "running": (4, GOOD),
    "released": (5, QUIET),
}

# Stages of a node's maintenance, in order.
MAINTENANCE: Final[dict[str, tuple[int, str]]] = {
    "waiting_for_budget": (1, WARNING),
    "announced": (2, NOTICE),
    "waiting_for_claims": (3, NOTICE),
    "waiting_for_processes": (4, NOTICE),
    "waiting_for_agent": (5, WARNING),
    "ready": (6, GOOD),
    "verifying": (7, NEUTRAL),
    "verify_failed": (8, BAD),
    "lifting": (9, NEUTRAL),
}

# How far fencing goes, and its breaker.
MODE: Final[dict[str, tuple[int, str]]] = {"observe": (0, QUIET), "announce": (1, NEUTRAL), "enforce": (2, GOOD)}
BREAKER: Final[dict[str, tuple[int, str]]] = {"closed": (0, GOOD), "half_open": (1, WARNING), "open": (2, BAD)}

# States of devices in a pool, of claims, of rules and of the breaker.
STATES: Final[dict[str, str]] = {
    **{state: colour for state, (_, colour) in HEALTH.items()},
    "allocated": NEUTRAL,
    "free": GOOD,
    "shared": "#1f60c4",
    "tainted": WARNING,
    "reserved": SOON,
    "pending": WARNING,
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
