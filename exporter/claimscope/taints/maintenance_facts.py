"""What is seen of the nodes for which maintenance is asked for, or on which it was begun?"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Final

from claimscope.claims.cluster import Cluster, is_active
from claimscope.claims.model import Key
from claimscope.health.model import Severity
from claimscope.kube.kinds import IMPLICIT_PREFIX, extended_resources_of, is_accelerator
from claimscope.kube.objects import Lease, Node, NodeNotes, Pod, unix_seconds
from claimscope.taints.fences import MAINTENANCE, blocks, for_maintenance
from claimscope.taints.inputs import Inputs
from claimscope.taints.inventory import Site
from claimscope.taints.maintenance import NodeFacts, Request
from claimscope.taints.maintenance_ask import ANSWER, ASK, Answer, read_answer
from claimscope.taints.maintenance_fences import sites_of
from claimscope.taints.model import Fence, Mode, ReportedFinding
from claimscope.taints.node_taints import needs_node_taint
from claimscope.taints.reports import NODE_ANNOTATION
from claimscope.taints.wants import pool_of

# Degraded only, and yet a node is not given back with them: they wait for the very reset that was the occasion.
RESET_RULES: Final = frozenset({"row_remap_pending", "repair_pending", "retired_pages_pending", "mig_mode"})
_TEXT_MAX: Final = 300
_PODS_SHOWN: Final = 3
_NO_NOTES: Final = NodeNotes()


def request_of(node: Node) -> Request | None:
    """What the annotations of a Node ask for; "" and "false" ask for nothing."""
    notes = node.metadata.annotations or _NO_NOTES
    if notes.maintenance in (None, "", "false"):
        return None
    text = notes.maintenance_deadline or ""
    deadline = unix_seconds(text)
    problem = ""
    if text and deadline is None:
        problem = f"The deadline `{_cut(text)}` is no RFC 3339 time such as 2026-11-21T18:00:00Z, and is not kept."
    return Request(
        reason=_cut(notes.maintenance or ""),
        by=_cut(notes.maintenance_by or ""),
        deadline_wall=deadline,
        deadline_problem=problem,
    )


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]} ..."


def leases_of(cluster: Cluster, nodes: Container[str]) -> dict[str, Lease]:
    """The agents' Leases of some nodes, and those in which something is still asked, by node."""
    found: dict[str, Lease] = {}
    for lease in cluster.leases.values():
        notes = lease.metadata.annotations or {}
        node = notes.get(NODE_ANNOTATION, "")
        if node in nodes or ASK in notes:
            before = found.get(node)
            if before is None or (before.spec.renew_time or "") < (lease.spec.renew_time or ""):
                found[node] = lease  # where two name one node, the one renewed last is believed
    return found


def concerned(cluster: Cluster, inputs: Inputs, remembered: Mapping[str, object]) -> dict[str, Request | None]:
    """The nodes, and what is asked for; a node that is gone needs nothing any more."""
    found = {
        name: request for name, node in cluster.nodes.items()
        if node.metadata.annotations is not None and (request := request_of(node)) is not None
    }  # fmt: skip
    begun = {*remembered, *(fence.node for fence in inputs.standing.values() if for_maintenance(fence))}
    return {**{name: None for name in sorted(begun) if name in cluster.nodes}, **found}


class Sight:
    """The cluster as a maintenance sees it, in one round."""

    def __init__(
        self, cluster: Cluster, inputs: Inputs, leases: Mapping[str, Lease], nodes: Collection[str], *, readable: bool
    ) -> None:
        """`leases` are the agents', by node. `readable`: which rules stand is known."""
        self._cluster = cluster
        self._inputs = inputs
        self._leases = leases
        self._readable = readable
        self._pods = _plugin_pods(cluster, inputs, nodes)
        self._fences: dict[str, list[Fence]] = {}
        for fence in inputs.standing.values():
            if for_maintenance(fence):
                self._fences.setdefault(fence.node, []).append(fence)

    def of(self, name: str, request: Request | None) -> NodeFacts:
        """What is seen of one node."""
        inputs, node, report = self._inputs, self._cluster.nodes[name], self._inputs.reports.get(name)
        group = "" if report is None else report.group
        sites = sites_of(inputs.inventory, name)
        fences = self._fences.get(name, [])
        by_device = {fence.device: fence for fence in fences if fence.key == MAINTENANCE}
        present = [by_device[site.device] for site in sites if site.device in by_device]
        highest, unfenced = _highest(inputs, name, group, readable=self._readable)
        plugin_gpus = 0 if report is None else report.plugin_devices - report.plugin_withdrawn
        return NodeFacts(
            node=name,
            node_uid=node.metadata.uid,
            group=group,
            request=request,
            unverified=(node.metadata.annotations or _NO_NOTES).maintenance_unverified or "",
            gpus=inputs.inventory.gpus_of(name) + plugin_gpus,
            published=all(inputs.inventory.complete(pool_of(site.device)) for site in sites),
            boot_id=node.status.node_info.boot_id,
            highest=highest,
            unfenced=unfenced,
            devices=len(sites),
            announced=len(present),
            fenced=sum(blocks(fence.effect) for fence in present),
            standing=len({fence.uuid for fence in fences if not fence.edited}),
            holders=(*_claims(self._cluster, sites), *map(_pod_name, self._pods.get(name, ()))),
            heard_wall=0.0 if report is None else report.heard_wall,
            stale=report is None or report.stale,
            partial=report is None or report.partial,
            answer=self._answer(name),
            findings=() if report is None else tuple(sorted(set(_serious(report.findings)))),
        )

    def _answer(self, node: str) -> Answer | None:
        lease = self._leases.get(node)
        return None if lease is None else read_answer((lease.metadata.annotations or {}).get(ANSWER))


def _serious(findings: Iterable[ReportedFinding]) -> Iterator[str]:
    """Those with which a node is not given back."""
    for each in findings:
        if each.severity in (Severity.UNHEALTHY, Severity.LOST) or each.rule in RESET_RULES:
            yield f"{each.uuid} ({each.rule})"


def _pod_name(pod: Pod) -> str:
    return f"pod {pod.metadata.namespace}/{pod.metadata.name}"


def _highest(inputs: Inputs, node: str, group: str, *, readable: bool) -> tuple[str | None, str]:
    """The effect that a device's taint may have at most, and what is said where that is not NoSchedule.

    A person asked for this maintenance: it fences in mode announce, too. What the cluster cannot bear is not written.
    """
    wanted = inputs.policy.mode_of(group, "")
    if wanted is Mode.OBSERVE:
        why = "the mode is observe"
    elif inputs.ceiling is Mode.OBSERVE:
        why = inputs.ceiling_text
    elif not readable:
        why = "DeviceTaintRules may not be read"
    elif inputs.ceiling is Mode.ANNOUNCE:
        return "None", f"Its devices are announced only ({inputs.ceiling_text}): cordon the node."
    else:
        return "NoSchedule", ""
    if wanted is not Mode.OBSERVE and needs_node_taint(inputs, node):
        return None, f"Its devices are not tainted ({why}); the Node is."
    return None, f"No taint keeps new work away ({why}): cordon the node."


def _claims(cluster: Cluster, sites: list[Site]) -> Iterator[str]:
    """Claims that are allocated devices of the node and reserved by somebody."""
    seen: set[Key] = set()
    for site in sites:
        for held in cluster.holdings(site.device):
            claim = cluster.claims.get(held.claim)
            if held.admin or held.claim in seen or claim is None or not claim.status.reserved_for:
                continue
            seen.add(held.claim)
            pods = sorted(user.name for user in claim.status.reserved_for)
            more = f" and {len(pods) - _PODS_SHOWN} more" if len(pods) > _PODS_SHOWN else ""
            yield f"claim {held.claim} (pods {', '.join(pods[:_PODS_SHOWN])}{more})"


def users(cluster: Cluster, inputs: Inputs, node: str) -> Iterator[tuple[str, str, str]]:
    """Namespace, name and uid of the pods for which claims on a node's devices are reserved."""
    seen: set[str] = set()
    for site in sites_of(inputs.inventory, node):
        for held in cluster.holdings(site.device):
            claim = cluster.claims.get(held.claim)
            for user in (claim.status.reserved_for or ()) if claim is not None and not held.admin else ():
                if user.resource == "pods" and user.uid not in seen:
                    seen.add(user.uid)
                    yield held.claim.namespace, user.name, user.uid


def _plugin_pods(cluster: Cluster, inputs: Inputs, of: Collection[str]) -> dict[str, list[Pod]]:
    """Pods that a device plugin of these nodes gave GPUs; no claim tells of those."""
    reports = inputs.reports
    nodes = {name for name in of if name in reports and reports[name].plugin_devices > 0}
    found: dict[str, list[Pod]] = {}
    for pod in cluster.pods.values() if nodes else ():
        node = pod.spec.node_name or ""
        if node in nodes and is_active(pod) and _asks_plugin(pod):
            found.setdefault(node, []).append(pod)
    return found


def _asks_plugin(pod: Pod) -> bool:
    return pod.status.extended_resource_claim_status is None and any(
        is_accelerator(name) and not name.startswith(IMPLICIT_PREFIX) for name in extended_resources_of(pod)
    )
