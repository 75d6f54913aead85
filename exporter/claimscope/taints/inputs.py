"""What does one round of fencing look at, and where in the cluster's mirror does it come from?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from claimscope.claims.cluster import Cluster
from claimscope.claims.model import DeviceKey, StandingTaint
from claimscope.claims.taints import devices_of_rule, tolerates
from claimscope.kube.objects import DeviceTaintRule
from claimscope.taints import fences
from claimscope.taints.fences import blocks, rules_of
from claimscope.taints.inventory import Inventory
from claimscope.taints.machines import OnNode, on_node
from claimscope.taints.model import KEY_DOMAIN, Fence, Mode, NodeReport, ReportedFinding
from claimscope.taints.policy import Override, Pause, Policy, milder


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that a round looks at. Nothing in it is changed."""

    now_wall: float
    policy: Policy
    reports: Mapping[str, NodeReport]  # by node; also of nodes that have GPUs and no agent
    inventory: Inventory
    standing: Mapping[str, Fence] = field(default_factory=dict)  # ours, by name
    foreign: frozenset[str] = frozenset()  # names of everybody else's rules
    rules_read: bool = True  # else one that is missing may be there all the same, and nobody took it away
    maintenance_known: bool = True  # else who asks for it is not seen, and what stands for it stays
    nodes: Mapping[str, str] = field(default_factory=dict)  # name -> uid
    nodes_known: bool = True
    blocked_elsewhere: frozenset[DeviceKey] = frozenset()  # devices that others' taints keep work from
    closed_nodes: frozenset[str] = frozenset()  # Nodes that others' taints keep work from, or that are not ready
    ceiling: Mode = Mode.ENFORCE  # what the cluster's API allows at most
    ceiling_text: str = ""
    device_taints: bool = True  # devices can be fenced one by one here; else a Node can be tainted
    node_taints: Mapping[str, OnNode] = field(default_factory=dict)  # of Nodes that have taints with our keys
    overrides: tuple[Override, ...] = ()  # besides the policy's: `claimscope taints ack`
    pauses: tuple[Pause, ...] = ()  # besides the policy's: `claimscope taints pause`
    maintenance: frozenset[str] = frozenset()  # nodes under maintenance: no budget counts them
    kept_free: Mapping[str, tuple[Fence, ...]] = field(default_factory=dict)  # by node: fences that maintenance asks
    # for; a node that is not in it has none, and one without any now keeps what stands
    fenced_nodes: frozenset[str] = frozenset()  # nodes that maintenance wants to be kept from work
    holders: Mapping[DeviceKey, int] = field(default_factory=dict)  # pods that NoExecute would delete; absent: unknown
    unlifted: frozenset[str] = frozenset()  # names of ours that could not be lifted just now: they still count
    only_node: str = ""  # an agent that writes for itself touches nothing else

    def all_overrides(self) -> Iterable[Override]:
        """Those that have not ended."""
        for each in (*self.policy.overrides, *self.overrides):
            if self.now_wall < each.until.timestamp():
                yield each

    def pause_of(self, node: str, group: str) -> Pause | None:
        """What keeps new fences from a node."""
        for each in (*self.policy.pause, *self.pauses):
            over = each.until is not None and self.now_wall >= each.until.timestamp()
            if not over and each.node in ("", node) and each.group in ("", group):
                return each
        return None

    def taints_node(self, group: str) -> bool:
        """Whether a Node may get a taint for maintenance: a person asked for it, on this very node."""
        return self.policy.mode_of(group, "") is not Mode.OBSERVE

    def mode_of(self, group: str, rule: str) -> Mode:
        """How far a rule goes in a group on this cluster."""
        return milder((self.policy.mode_of(group, rule), self.ceiling))

    def mode_for(self, report: NodeReport, finding: ReportedFinding) -> Mode:
        """How far a finding goes: what a person declared goes as far as the cluster lets it."""
        return self.ceiling if finding.pinned else self.mode_of(report.group, finding.rule)


def gather(
    *, cluster: Cluster, inventory: Inventory, reports: Iterable[NodeReport], standing: Iterable[Fence],
    policy: Policy, now_wall: float,
) -> Inputs:
    """What a round sees in the mirror; `standing` are our fences, with what was just written."""
    ours = {fence.name: fence for fence in standing}
    # A rule of ours that is not among them was deleted just now, and the mirror lags behind.
    others = [rule for name, rule in cluster.rules.items() if name not in ours and fences.standing(rule) is None]
    return Inputs(
        now_wall=now_wall, policy=policy, reports={report.node: report for report in reports}, inventory=inventory,
        standing=ours, foreign=frozenset(rule.metadata.name for rule in others),
        nodes={name: node.metadata.uid for name, node in cluster.nodes.items()},
        nodes_known="nodes" in cluster.synced,
        node_taints={name: found for name, node in cluster.nodes.items() if (found := on_node(node)) is not None},
        blocked_elsewhere=frozenset(_blocked(cluster, (*others, *_edited(cluster, ours)))),
        closed_nodes=frozenset(_closed(cluster, policy)),
        holders=_holders(cluster, policy, ours.values()),
    )  # fmt: skip


def _blocked(cluster: Cluster, others: Iterable[DeviceTaintRule]) -> Iterator[DeviceKey]:
    """Devices that others' taints keep work from: drivers' in slices, people's in rules."""
    for device in cluster.tainted:
        if any(blocks(taint.effect) for taint in cluster.devices[device].taints):
            yield device
    for rule in others:
        if blocks(rule.spec.taint.effect):
            yield from devices_of_rule(cluster, rule)


def _edited(cluster: Cluster, ours: Mapping[str, Fence]) -> Iterator[DeviceTaintRule]:
    """Rules of ours that a person changed: they may select more than the one device that they are about."""
    return (cluster.rules[name] for name, fence in ours.items() if fence.edited and name in cluster.rules)


def _closed(cluster: Cluster, policy: Policy) -> Iterator[str]:
    """Nodes that others' taints keep work from, or that are not ready."""
    dedicating = policy.budgets.dedicating_taints
    for name, node in cluster.nodes.items():
        tainted = any(
            blocks(taint.effect) and taint.key not in dedicating and not taint.key.startswith(f"{KEY_DOMAIN}/")
            for taint in node.spec.taints or ()
        )
        if tainted or any(each.type == "Ready" and each.status != "True" for each in node.status.conditions or ()):
            yield name


def _holders(cluster: Cluster, policy: Policy, standing: Iterable[Fence]) -> dict[DeviceKey, int]:
    """Pods that would be deleted, of the fences that may come to that."""
    return {
        fence.device: _evicted(cluster, fence)
        for fence in standing
        if blocks(fence.effect) and any(policy.evicts(rule) for rule in rules_of(fence))
    }


def _evicted(cluster: Cluster, fence: Fence) -> int:
    taint = StandingTaint(device=fence.device, key=fence.key, value=fence.value, effect="NoExecute")
    pods: set[str] = set()
    for holding in cluster.holdings(fence.device):
        claim = cluster.claims.get(holding.claim)
        lasting = [each for each in holding.tolerations if each.toleration_seconds is None]
        if claim is not None and not tolerates(lasting, taint):
            pods.update(consumer.uid for consumer in claim.status.reserved_for or ())
    return len(pods)
