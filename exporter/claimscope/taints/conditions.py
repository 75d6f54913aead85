"""What does a Node say about its GPUs, and how is it written?

Conditions for people and for what watches nodes; the scheduler reads none of them. GPUDegraded and GPUUnhealthy follow
from findings; a node of which nothing was ever found has none. GPUMaintenanceReady is there while somebody wants the
node for maintenance (maintenance.py). They are written by server-side apply without force, so that each entry of the
list has one owner and nobody else's is taken over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from claimscope.health.model import Severity
from claimscope.kube.api import APPLY, ApiClient
from claimscope.kube.objects import Condition, Node, unix_seconds
from claimscope.taints.apply import MANAGER, api_time, send
from claimscope.taints.model import NodeReport, ReportedFinding
from claimscope.taints.policy import UNSETTLED_RULES

DEGRADED: Final = "GPUDegraded"
UNHEALTHY: Final = "GPUUnhealthy"
MAINTENANCE_READY: Final = "GPUMaintenanceReady"
HEALTH_TYPES: Final = (DEGRADED, UNHEALTHY)
OUR_TYPES: Final = (*HEALTH_TYPES, MAINTENANCE_READY)

MESSAGE_BYTES: Final = 1000
_SHOWN_DEVICES: Final = 5
_TYPE_OF: Final = {Severity.DEGRADED: DEGRADED, Severity.UNHEALTHY: UNHEALTHY, Severity.LOST: UNHEALTHY}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCondition:
    """One condition as it should be."""

    type: str
    status: str  # "True", "False", "Unknown"
    reason: str
    message: str


def wanted(report: NodeReport, present: Iterable[str]) -> tuple[NodeCondition, ...]:
    """The conditions that follow from a report; `present` are the types that the Node carries already."""
    found: dict[str, list[ReportedFinding]] = {kind: [] for kind in HEALTH_TYPES}
    for finding in report.findings:
        if report.driver_changes and finding.rule in UNSETTLED_RULES:
            continue
        if (kind := _TYPE_OF.get(finding.severity)) is not None:
            found[kind].append(finding)
    if not set(HEALTH_TYPES) & set(present) and not any(found.values()):
        return ()
    return tuple(_condition(kind, findings, stale=report.stale) for kind, findings in found.items())


def kept(present: Mapping[str, Condition]) -> tuple[NodeCondition, ...]:
    """What a Node's conditions about health say already."""
    return tuple(
        NodeCondition(type=kind, status=each.status, reason=each.reason, message=each.message)
        for kind, each in present.items() if kind in HEALTH_TYPES
    )  # fmt: skip


def _condition(kind: str, findings: Sequence[ReportedFinding], *, stale: bool) -> NodeCondition:
    if stale:
        last = f" It said last: {_summary(findings)}" if findings else ""
        return NodeCondition(
            type=kind, status="Unknown", reason="AgentSilent",
            message=cut(f"The node's agent has not been heard of; what it found stands.{last}"),
        )
    if not findings:
        return NodeCondition(type=kind, status="False", reason="NoFindings", message="No GPU has such a finding.")
    systemic = all(finding.systemic for finding in findings)
    reason = "ManyAtOnce" if systemic else "GPULost" if _lost(findings) else "GPUFindings"
    return NodeCondition(type=kind, status="True", reason=reason, message=cut(_summary(findings)))


def _lost(findings: Sequence[ReportedFinding]) -> bool:
    return any(finding.severity is Severity.LOST for finding in findings)


def _summary(findings: Sequence[ReportedFinding]) -> str:
    by_device: dict[str, set[str]] = {}
    for finding in findings:
        by_device.setdefault(finding.uuid, set()).add(finding.rule)
    shown = [f"{uuid} ({', '.join(sorted(by_device[uuid]))})" for uuid in sorted(by_device)]
    more = len(shown) - _SHOWN_DEVICES
    rest = f" and {more} more" if more > 0 else ""
    return f"{len(shown)} GPU{'s' if len(shown) > 1 else ''}: {'; '.join(shown[:_SHOWN_DEVICES])}{rest}"


def cut(text: str) -> str:
    """A message as long as a Node should carry, in one line."""
    clean = "".join(char if char.isprintable() else " " for char in text)
    encoded = clean.encode("utf-8", "replace")
    if len(encoded) <= MESSAGE_BYTES:
        return clean
    return encoded[: MESSAGE_BYTES - 4].decode("utf-8", "ignore") + " ..."


def present_on(node: Node) -> dict[str, Condition]:
    """The conditions of ours that a Node carries."""
    return {each.type: each for each in node.status.conditions or () if each.type in OUR_TYPES}


def differ(conditions: Iterable[NodeCondition], present: Mapping[str, Condition]) -> bool:
    """True where something has to be written, or taken away."""
    wanted = {each.type: each for each in conditions}
    return not present.keys() <= wanted.keys() or any(
        (have := present.get(each.type)) is None
        or (have.status, have.reason, have.message) != (each.status, each.reason, each.message)
        for each in wanted.values()
    )


def apply_object(
    node: str, conditions: Iterable[NodeCondition], present: Mapping[str, Condition], wall: float
) -> dict[str, Any]:
    """What is applied; a condition that keeps its status keeps the time since when it has it."""
    entries = []
    for each in conditions:
        have = present.get(each.type)
        kept = have.last_transition_time if have is not None and have.status == each.status else None
        entries.append({
            "type": each.type, "status": each.status, "reason": each.reason, "message": each.message,
            "lastTransitionTime": kept if unix_seconds(kept) is not None else api_time(wall),
        })
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}, "status": {"conditions": entries}}


async def write(
    api: ApiClient,
    node: str,
    conditions: Iterable[NodeCondition],
    present: Mapping[str, Condition],
    wall: float,
) -> None:
    """Writes the conditions of one node; none at all takes ours away. Raises ApiError."""
    body = apply_object(node, conditions, present, wall)
    await send(api, "PATCH", f"/api/v1/nodes/{node}/status", body, APPLY, {"fieldManager": MANAGER})
