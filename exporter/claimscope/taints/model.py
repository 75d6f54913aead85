"""The types of fencing: what agents report, what policy allows, what is to be written.

Nothing here reads a clock or a connection. Wall times are Unix seconds.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from claimscope.claims.model import DeviceKey
from claimscope.health.model import Severity

KEY_DOMAIN = "claimscope.io"
MANAGED_BY = "claimscope"
PINNED = "pinned"  # what a human declared unhealthy has this name in place of a rule's


class Mode(enum.Enum):
    """How far fencing goes."""

    OBSERVE = "observe"  # metrics only
    ANNOUNCE = "announce"  # effect None: visible, and the API answers what it would evict
    ENFORCE = "enforce"  # NoSchedule for unhealthy and lost devices


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedFinding:
    """One finding of an agent, as its Lease tells it."""

    node: str
    uuid: str
    serial: str
    rule: str
    severity: Severity
    since_wall: float
    evidence: Mapping[str, str] = field(default_factory=dict)
    clears: str = ""
    systemic: bool = False
    boot_id: str = ""
    parent: str = ""  # uuid of the GPU that a MIG device is cut from
    pinned: bool = False  # a person says so, and no agent: never read from a Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What one agent says, and whether it still speaks."""

    node: str
    node_uid: str  # for the owner reference; "" where the Node is not known
    group: str  # of the node-group label; "" where it has none
    heard_wall: float
    stale: bool  # its heartbeat is older than the limit: unmonitored, and what stands stays
    unheard: bool = False  # it is stale by its own clock alone, which may be wrong: nothing is said of it yet
    cordoned: bool = False  # a human's, or somebody else's
    devices: int = 0  # accelerators of the node, for the budgets' denominators
    plugin_devices: int = 0  # that its device plugin gives out
    plugin_withdrawn: int = 0  # that its device plugin gives out no more
    unsettled: str = ""  # why the machine is in no state to be judged: a driver upgrade, a boot just now, a cordon
    driver_changes: bool = False  # the first or the second of these: UNSETTLED_RULES are no news
    findings: tuple[ReportedFinding, ...] = ()
    partial: bool = False  # some findings were left out or cannot be read: what is not told is not over


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """One DeviceTaintRule of ours: as wanted, or as it stands."""

    name: str
    device: DeviceKey  # all three selector fields are always set
    key: str  # claimscope.io/degraded, .../unhealthy, .../lost, .../maintenance
    value: str  # the leading rule
    effect: str  # "None", "NoSchedule", "NoExecute"
    uuid: str
    node: str
    node_uid: str = ""
    severity: Severity = Severity.DEGRADED  # OK: maintenance is no finding
    annotations: Mapping[str, str] = field(default_factory=dict)  # evidence, rules, since, boot id
    created_wall: float | None = None  # of one that stands
    edited: bool = False  # a human changed it: it is left alone
    going: bool = False  # it is deleted, and stands until somebody's finalizer is taken from it
    eviction: str = ""  # reason of the condition EvictionInProgress of one that stands; "": not said yet


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTaint:
    """One taint of a Node."""

    key: str
    value: str
    effect: str  # "PreferNoSchedule", "NoSchedule"

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}"


class Do(enum.Enum):
    """What is done with a fence."""

    CREATE = "create"
    UPDATE = "update"  # selector, value, effect or annotations
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One write, and why."""

    do: Do
    fence: Fence
    reason: str  # one sentence for the log, the Event and `taints list`


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAction:
    """The taints of ours that a Node should have, where it has others."""

    node: str
    node_uid: str
    before: tuple[NodeTaint, ...]
    after: tuple[NodeTaint, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A fence that is wanted and not put up, or weaker than wanted, and why."""

    fence: Fence
    reason: str  # "budget_node", "budget_group", "budget_fleet", "rate", "cap", "breaker", "paused",
    # "systemic" (on many nodes), "systemic_node" (on many GPUs of one), "mode", "ignored", "unresolved",
    # "stale" (too many agents are silent), "edited" (a human changed it),
    # "upgrade" (the machine is not settled), "evict" (NoSchedule stands, and its pods may not be deleted yet),
    # "refused" (the API server does not take the write)
    text: str
    cause: str = ""  # what it shares with others that are held back, so that all of them are told once


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer of one round."""

    actions: tuple[Action, ...] = ()  # clears first, then by severity and age
    nodes: tuple[NodeAction, ...] = ()  # taints of Nodes, written after the rules
    held: tuple[Held, ...] = ()
    standing: tuple[Fence, ...] = ()  # as they will be after the actions
    budgets: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # scope -> (used, limit)
    node_taints: Mapping[str, tuple[NodeTaint, ...]] = field(default_factory=dict)  # ours, as they will be
    breaker: str = "closed"  # closed, open, half_open
