"""What must hold of fencing at any time? Functions that look at a cluster from outside and list what is wrong with it.

They know nothing of how fencing decides: they compare what stands with what agents say, what is published, and the
numbers of the policy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from claimscope.claims.model import DeviceKey
from claimscope.health.model import Severity
from claimscope.taints import fences
from claimscope.taints.model import Fence
from claimscope.taints.policy import Policy

_WEIGHT = {"None": 0, "NoSchedule": 1, "NoExecute": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One finding, as the Lease of its node tells it."""

    node: str
    uuid: str
    rule: str
    severity: Severity
    systemic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A cluster, seen from outside."""

    fences: Mapping[str, Fence]  # rules of ours, by name
    said: tuple[Said, ...] = ()
    unjudged: frozenset[str] = frozenset()  # nodes without a Lease, or whose agent does not tell everything
    nodes: frozenset[str] = frozenset()
    published: Mapping[DeviceKey, tuple[str, str]]  # uuid and node; pools are published whole, absent ones as they were
    cordoned: frozenset[str] = frozenset()
    pinned: frozenset[str] = frozenset()

    def blocked(self) -> set[str]:
        """GPUs that fences keep from work."""
        return {fence.uuid for fence in self.fences.values() if fences.blocks(fence.effect)}

    def counted(self) -> set[str]:
        """GPUs that anything keeps from work."""
        return self.blocked() | {uuid for uuid, node in self.published.values() if node in self.cordoned}


def without_evidence(now: Moment) -> list[str]:
    """Fences that no finding, silence or person stands behind."""
    found = []
    for name, fence in now.fences.items():
        if fence.edited:
            continue
        asks = {
            each.rule for each in now.said
            if (each.node, each.uuid, each.severity) == (fence.node, fence.uuid, fence.severity) and not each.systemic
        }
        pinned = fence.uuid in now.pinned and fence.severity is Severity.UNHEALTHY
        if fence.node not in now.nodes:
            found.append(f"{name}: node {fence.node} is gone")
        elif not asks and not pinned and fence.node not in now.unjudged:
            found.append(f"{name}: nothing of severity {fence.severity.value} is found against {fence.uuid}")
        elif not fence.annotations.get(fences.EVIDENCE):
            found.append(f"{name}: says no evidence")
    return found


def without_device(now: Moment) -> list[str]:
    """Fences that select nothing, everything, or another device than the one they are about."""
    pools = {(device.driver, device.pool) for device in now.published}
    found = []
    for name, fence in now.fences.items():
        if fence.edited:
            continue
        if not all(fence.device):
            found.append(f"{name}: selects {fence.device!s} without all three names")
            continue
        uuid = now.published.get(fence.device, ("", ""))[0]
        if uuid != fence.uuid and (uuid or (fence.device.driver, fence.device.pool) in pools):
            found.append(f"{name}: {fence.device} is {uuid or 'nothing'}, not {fence.uuid}")
    return found


def over_budget(before: Moment, after: Moment, policy: Policy) -> list[str]:
    """New fences beyond what may be kept from work at once. What stood before may stay, however much it is."""
    new = after.blocked() - before.counted()
    if not new:
        return []
    counted, total = after.counted(), len(after.published)
    found = []
    for scope, share in (("fleet", policy.budgets.fleet_share), ("group", policy.budgets.group_share)):
        limit = max(1, math.floor(total * share + 1e-9))
        if len(counted) > limit:
            found.append(f"{len(counted)} of at most {limit} GPUs of the {scope} are blocked, {len(new)} of them anew")
    return found


def over_rate(lately: Iterable[str], total: int, policy: Policy) -> list[str]:
    """GPUs that were newly blocked within the time of the rate, beyond it."""
    new, limit = set(lately), max(policy.rate.least, math.floor(total * policy.rate.share + 1e-9))
    return [f"{len(new)} GPUs were newly blocked, of at most {limit}"] if len(new) > limit else []


def blocked_against_orders(before: Moment, after: Moment, why: str) -> list[str]:
    """New fences where there must be none: `why` is "paused", or "the breaker is open"."""
    return [f"{uuid}: blocked although {why}" for uuid in sorted(after.blocked() - before.counted())]


def lowered(before: Moment, after: Moment) -> list[str]:
    """Fences that became weaker, or went, while what they are about is still said: a milder event must not do that."""
    said = {(each.uuid, each.severity) for each in after.said if not each.systemic}
    published = {uuid for uuid, _ in after.published.values()}
    strongest: dict[tuple[str, Severity], int] = {}
    for fence in after.fences.values():
        key = (fence.uuid, fence.severity)
        strongest[key] = max(strongest.get(key, -1), _WEIGHT[fence.effect])
    return [
        f"{name}: {fence.effect} on {fence.uuid} became weaker, and {fence.severity.value} is still said"
        for name, fence in before.fences.items()
        if (fence.uuid, fence.severity) in said and fence.node in after.nodes and fence.uuid in published
        and not fence.edited and strongest.get((fence.uuid, fence.severity), -1) < _WEIGHT[fence.effect]
    ]
