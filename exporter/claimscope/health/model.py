"""The types of health: what a rule looks at, what it says, what follows for a device.

Times named `_ns` are CLOCK_MONOTONIC; wall time only stamps. Nothing here reads a clock.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from claimscope.model import Device, Window


class Severity(enum.Enum):
    """How bad; the words of `gpu_health{state}`. Ordered by `rank`."""

    OK = "ok"
    DEGRADED = "degraded"  # visible, new work may still come
    UNHEALTHY = "unhealthy"  # no new work
    LOST = "lost"  # not there any more

    @property
    def rank(self) -> int:
        """0 for ok, 3 for lost."""
        return _RANKS[self]


_RANKS: dict[Severity, int] = {severity: rank for rank, severity in enumerate(Severity)}


class RuleState(enum.Enum):
    """Where one rule stands on one device."""

    OK = "ok"
    PENDING = "pending"  # the condition holds, its window is not over yet
    FIRING = "firing"
    CLEARING = "clearing"  # still a finding; the condition has gone, the clean time is not over
    LATCHED = "latched"  # a finding until a reset, a reboot, another serial number or an acknowledgement
    UNKNOWN = "unknown"  # cannot be read now: neither raises nor clears
    NOT_APPLICABLE = "not_applicable"  # this device has no such thing


class Survives(enum.Enum):
    """What a fault outlives, and so what may end a latched finding."""

    NOTHING = "nothing"  # time alone clears it
    TIME = "time"  # cleared by a GPU reset or driver reload
    RESET = "reset"  # cleared by a reboot
    REBOOT = "reboot"  # in the InfoROM: repair, replacement or acknowledgement


class Holds(enum.Enum):
    """What a condition says of a device at a moment."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"
    NOT_APPLICABLE = "not_applicable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Everything a condition may look at: one device at the end of one window."""

    device: Device
    now_ns: int
    window: Window | None  # the newest; None while the device does not answer
    # Counters: rise in this window or minute; gauges: value x seconds. Within one epoch; what is not known is absent.
    deltas: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 1.0  # length of the window or minute that `deltas` are about
    lost: str | None = None  # why the device does not answer, as the inventory says
    boot_seconds: float = float("inf")  # since this machine booted
    driver_seconds: float = float("inf")  # since the driver was loaded, or this GPU was reset
    links_seen: frozenset[str] = frozenset()  # NVLinks that were up since this machine booted: "nvlink_up/3"
    peer_clock: float | None = None  # median SM clock of busy GPUs of this model on this node; None: too few of them
    peers: int | None = None  # other GPUs of this model on this node; None: not looked at
    highest: Mapping[str, float] = field(default_factory=dict)  # of this minute, of gauges that are limits
    driver: Window | None = None  # where the driver's word on a MIG device is read: the newest window of its GPU
    unrepaired: bool = False  # the driver wanted a reset or reboot before the last one, and has wanted it ever since


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The answer of one condition to one look."""

    holds: Holds
    evidence: Mapping[str, str] = field(default_factory=dict)  # what was found: "width": "4 of 16"
    severity: Severity | None = None  # another one than the rule's own, where the evidence decides
    weight: float = 1.0  # what a minute counts for in a window of minutes: the part of it, or a number of errors
    clean: bool = True  # False: it does not hold, and is too close to it, too idle, or not told, to count as clean
    provisional: bool = False  # the driver's own verdict is waited for, and may make it milder


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One rule that stands against one device: what is shown, told to the controller, and kept over a restart."""

    uuid: str
    rule: str  # key of the rule: "xid_fatal"
    severity: Severity
    state: RuleState  # FIRING, CLEARING or LATCHED
    since_wall_ns: int
    evidence: Mapping[str, str] = field(default_factory=dict)
    clears: str = ""  # what would clear it, for people
    systemic: bool = False  # many devices at once: one finding of the node, which taints none of them


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceHealth:
    """All findings of one device, and the worst of them."""

    uuid: str
    severity: Severity
    findings: tuple[Finding, ...] = ()
    states: Mapping[str, RuleState] = field(default_factory=dict)  # of every rule
    serial: str = ""  # of the board; empty: not known
    action: str = ""  # what the driver wants, as read last: "none", "gpu_reset"; empty: it does not say
    parent: str | None = None  # uuid of the GPU that a MIG device is cut from
