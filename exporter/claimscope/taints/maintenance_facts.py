"""What is seen of the nodes for which maintenance is asked for, or on which it was begun?"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from claimscope.claims.cluster import Cluster, is_active
from claimscope.claims.drift import DEVICES_ANNOTATION, devices_of
from claimscope.claims.model import Key, PoolKey
from claimscope.health.model import Severity
from claimscope.kube.kinds import IMPLICIT_PREFIX, extended_resources_of, is_accelerator
from claimscope.kube.objects import Lease, Node, NodeNotes, Pod, ResourceClaim, unix_seconds
from claimscope.taints.fences import MAINTENANCE, blocks, for_maintenance
from claimscope.taints.inputs import Inputs
from claimscope.taints.machines import OnNode
from claimscope.taints.maintenance import NodeFacts, Request
from claimscope.taints.maintenance_ask import ANSWER, ASK, Answer, read_answer
from claimscope.taints.maintenance_fences import sites_of
from claimscope.taints.model import Fence, Mode, NodeReport, ReportedFinding
from claimscope.taints.reports import NODE_ANNOTATION
from claimscope.taints.wants import pool_of

# Degraded only, and yet a node is not given back with them: they wait for the very reset that was the occasion.
RESET_RULES: Final = frozenset({"row_remap_pending", "repair_pending", "retired_pages_pending", "mig_mode"})
LATEST_WALL: Final = 4102444800.0  # 2100-01-01: a deadline after it is a slip of the pen
_TEXT_MAX: Final = 300
_PODS_SHOWN: Final = 3
_GPUS_MAX: Final = 1024  # of one node: what says more is not believed
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
    elif deadline is not None and not 0 <= deadline <= LATEST_WALL:
        problem, deadline = f"The deadline `{_cut(text)}` is not between 1970 and 2100, and is not kept.", None
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


@dataclass(slots=True)
class Renewals:
    """When this process saw each agent renew its Lease: a Lease that it finds may be of an agent that is dead."""

    _seen: dict[str, tuple[str | None, float]] = field(default_factory=dict)  # node -> renewTime, and since when

    def follow(self, leases: Mapping[str, Lease], now_wall: float) -> None:
        """Takes the agents' Leases as they stand; 0 is the time of one that is met for the first time."""
        found = {node: lease.spec.renew_time for node, lease in leases.items()}
        self._seen = {
            node: (text, 0.0) if before is None else before if before[0] == text else (text, now_wall)
            for node, text in found.items() for before in (self._seen.get(node),)
        }  # fmt: skip

    def wall(self, node: str) -> float:
        """When it was last seen to change; 0 where it was not."""
        return self._seen.get(node, (None, 0.0))[1]


class Sight:
    """The cluster as a maintenance sees it, in one round."""

    def __init__(
        self,
        cluster: Cluster,
        inputs: Inputs,
        leases: Mapping[str, Lease],
        nodes: Collection[str],
        *,
        readable: bool,
        renewals: Renewals,
    ) -> None:
        """`leases` are the agents', by node. `readable`: which rules stand is known."""
        self._cluster = cluster
        self._inputs = inputs
        self._leases = leases
        self._readable = readable
        self._renewals = renewals
        self._plugin_pods = _plugin_pods(cluster, inputs, nodes)
        self._fences: dict[str, list[Fence]] = {}
        for fence in inputs.standing.values():
            if for_maintenance(fence) and not fence.edited:
                self._fences.setdefault(fence.node, []).append(fence)
        self._pools = {node: self._pools_of(node) for node in nodes}
        self._claims = _reserved(cluster, self._pools)

    def _pools_of(self, node: str) -> set[PoolKey]:
        """Pools with GPUs of a node: those that are published, and those in which its taints stand."""
        devices = [site.device for site in sites_of(self._inputs.inventory, node)]
        return {pool_of(device) for device in (*devices, *(fence.device for fence in self._fences.get(node, ())))}

    def of(self, name: str, request: Request | None) -> NodeFacts:
        """What is seen of one node."""
        inputs, node, report = self._inputs, self._cluster.nodes[name], self._inputs.reports.get(name)
        group = "" if report is None else report.group
        sites = sites_of(inputs.inventory, name)
        fences = self._fences.get(name, [])
        by_device = {fence.device: fence for fence in fences if fence.key == MAINTENANCE}
        present = [by_device[site.device] for site in sites if site.device in by_device] if sites else fences
        blocking = [fence for fence in present if blocks(fence.effect)]
        published = self._published(name, report)
        plugin_gpus = 0 if report is None else report.plugin_devices
        seen = _gpus_said(self._leases.get(name))
        told = max(plugin_gpus, seen)
        by_slices, by_plugin = inputs.inventory.gpus_of(name), plugin_gpus
        by_plugin -= 0 if report is None else report.plugin_withdrawn
        # The same boards, as far as its agent does not see more of them.
        gpus = min(by_slices + by_plugin, max(by_slices, by_plugin, seen))
        standing = len({fence.uuid for fence in fences})
        node_tainted = _node_tainted(inputs.node_taints.get(name))
        highest, unfenced = _highest(inputs, group, readable=self._readable)
        return NodeFacts(
            node=name,
            node_uid=node.metadata.uid,
            group=group,
            request=request,
            unverified=(node.metadata.annotations or _NO_NOTES).maintenance_unverified or "",
            no_gpus=not (gpus or told or standing or self._pools[name] or self._claims[name]),
            gpus=gpus,
            told_gpus=told,
            known_gpus=max(gpus, told, standing) if published or told or standing else 0,
            published=published,
            boot_id=node.status.node_info.boot_id,
            highest=highest,
            unfenced=unfenced if not unfenced or not node_tainted else f"{unfenced} The Node is.",
            taints_node=inputs.taints_node(group) and (plugin_gpus > 0 or highest is None or not (sites or blocking)),
            node_tainted=node_tainted,
            cordoned=bool(node.spec.unschedulable),
            devices=len(sites),
            announced=len(present),
            fenced=len(blocking),
            confirmed=sum(bool(fence.eviction) for fence in blocking),
            standing=standing,
            holders=(*map(_claim_name, self._claims[name]), *map(_pod_name, self._plugin_pods.get(name, ()))),
            heard_wall=0.0 if report is None else report.heard_wall,
            renewed_wall=self._renewals.wall(name),
            stale=report is None or report.stale,
            partial=report is None or report.partial,
            answer=self._answer(name),
            findings=() if report is None else tuple(sorted(set(_serious(report.findings)))),
        )

    def _published(self, node: str, report: NodeReport | None) -> bool:
        """Whether all that the node can give out is seen, so that what holds none of it holds none."""
        pools = self._pools[node]
        plugin = report is not None and report.plugin_devices > 0
        some = bool(pools) or plugin or "resourceslices" in self._cluster.unserved
        return some and all(map(self._inputs.inventory.complete, pools))

    def users(self, node: str) -> Iterator[tuple[str, str, str]]:
        """Namespace, name and uid of the pods for which claims on a node's devices are reserved."""
        seen: set[str] = set()
        for claim in self._claims.get(node, ()):
            for user in claim.status.reserved_for or ():
                if user.resource == "pods" and user.uid not in seen:
                    seen.add(user.uid)
                    yield claim.metadata.namespace, user.name, user.uid

    def _answer(self, node: str) -> Answer | None:
        lease = self._leases.get(node)
        return None if lease is None else read_answer((lease.metadata.annotations or {}).get(ANSWER))


def _gpus_said(lease: Lease | None) -> int:
    """How many GPUs an agent sees; 0 where it does not say."""
    text = "" if lease is None else (lease.metadata.annotations or {}).get(DEVICES_ANNOTATION, "")
    count = sum(max(entry.count, 0) for entry in devices_of(text) or ())
    return count if count <= _GPUS_MAX else 0


def _node_tainted(found: OnNode | None) -> bool:
    """Whether a taint of maintenance on the Node keeps new work away, ours or a person's."""
    if found is None:
        return False
    effects = {taint.effect for taint in found.ours if taint.key == MAINTENANCE}
    return any(map(blocks, effects | {effect for key, effect in found.theirs if key == MAINTENANCE}))


def _serious(findings: Iterable[ReportedFinding]) -> Iterator[str]:
    """Those with which a node is not given back."""
    for each in findings:
        if each.severity in (Severity.UNHEALTHY, Severity.LOST) or each.rule in RESET_RULES:
            yield f"{each.uuid} ({each.rule})"


def _pod_name(pod: Pod) -> str:
    return f"pod {pod.metadata.namespace}/{pod.metadata.name}"


def _highest(inputs: Inputs, group: str, *, readable: bool) -> tuple[str | None, str]:
    """The effect that a device's taint may have at most, and what is said where that is not NoSchedule.

    A person asked for this maintenance: it fences in mode announce, too. What the cluster cannot bear is not written.
    """
    if inputs.policy.mode_of(group, "") is Mode.OBSERVE:
        return None, "No taint is put up (the mode is observe)."
    if inputs.ceiling is Mode.OBSERVE:
        return None, f"Its devices are not tainted ({inputs.ceiling_text})."
    if not readable:
        return None, "Its devices are not tainted (DeviceTaintRules may not be read)."
    if inputs.ceiling is Mode.ANNOUNCE:
        return "None", f"Its devices are announced only ({inputs.ceiling_text})."
    return "NoSchedule", ""


def _reserved(cluster: Cluster, pools: Mapping[str, Collection[PoolKey]]) -> dict[str, list[ResourceClaim]]:
    """By node the claims that somebody is using and that are allocated something of its pools.

    Also of devices without a uuid, such as parts that a driver makes on demand, and of such as are not published now.
    """
    nodes_of: dict[PoolKey, list[str]] = {}
    for node, keys in pools.items():
        for key in keys:
            nodes_of.setdefault(key, []).append(node)
    found: dict[str, dict[Key, ResourceClaim]] = {node: {} for node in pools}
    for device, holdings in cluster.held_devices().items() if pools else ():
        key, facts = pool_of(device), cluster.devices.get(device)
        nodes = nodes_of.get(key, [])
        if facts is not None:
            nodes = [node for node in nodes if node == facts.node]
        elif key not in cluster.pools and not nodes and key.pool in pools:
            nodes = [key.pool]  # drivers name a node's pool after it
        for held in holdings if nodes else ():
            claim = cluster.claims.get(held.claim)
            if claim is not None and not held.admin and claim.status.reserved_for:
                for node in nodes:
                    found[node][held.claim] = claim
    return {node: [claims[key] for key in sorted(claims)] for node, claims in found.items()}


def _claim_name(claim: ResourceClaim) -> str:
    pods = sorted(user.name for user in claim.status.reserved_for or ())
    more = f" and {len(pods) - _PODS_SHOWN} more" if len(pods) > _PODS_SHOWN else ""
    return f"claim {claim.metadata.namespace}/{claim.metadata.name} (pods {', '.join(pods[:_PODS_SHOWN])}{more})"


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
