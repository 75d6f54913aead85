"""A small cluster for the decisions of fencing: nodes, slices, what agents say, and rules as the API has them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from claimscope.claims.cluster import Cluster
from claimscope.health.model import Severity
from claimscope.kube.objects import DeviceTaintRule, Node
from claimscope.sim.api.patch import json_patched
from claimscope.taints import apply_nodes, fences
from claimscope.taints.apply import rule_object
from claimscope.taints.inventory import Inventory
from claimscope.taints.memory import Memory, decode, encode
from claimscope.taints.model import Action, Do, Fence, NodeAction, NodeReport, Plan, ReportedFinding
from claimscope.taints.plan import gather, plan
from claimscope.taints.policy import Policy, read_policy
from inventory_objects import a_device, a_slice, make

DRIVER = "gpu.nvidia.com"
START = 1_700_000_000.0
ENFORCE = "mode: enforce"


def gpu(node: int, index: int) -> str:
    return f"GPU-{node}-{index}"


def a_finding(
    uuid: str, rule: str = "xid_fatal", severity: Severity = Severity.UNHEALTHY, *, since: float = START,
    **more: Any,
) -> ReportedFinding:
    more.setdefault("evidence", {"xid": "79"})
    return ReportedFinding(
        node=f"n{uuid.split('-')[1]}", uuid=uuid, serial="S1", rule=rule, severity=severity, since_wall=since,
        clears="A GPU reset.", boot_id="B1", **more,
    )


class World:
    """The cluster, and rounds on it. Actions are applied as an API server would."""

    def __init__(self, policy: str = ENFORCE, *, nodes: int = 10, gpus: int = 8) -> None:
        self.policy: Policy = read_policy(policy, "policy.yaml", START)
        self.now = START
        self.cluster = Cluster()
        self.inventory = Inventory()
        self.memory = Memory()
        self.gpus = gpus
        self.found: dict[str, list[ReportedFinding]] = {f"n{node}": [] for node in range(nodes)}
        self.stale: set[str] = set()
        self.partial: set[str] = set()
        self.cordoned: set[str] = set()
        self.groups: dict[str, str] = {}
        self.options: dict[str, Any] = {}  # of Inputs, besides what the cluster says
        self.extra: dict[str, Any] = {}  # the same
        self.machines: dict[str, dict[str, Any]] = {}  # Nodes as the API server has them
        self.plugin: dict[str, tuple[int, int]] = {}  # node -> GPUs that its device plugin offers, and has withdrawn
        self.unsettled: dict[str, str] = {}
        self.answers = True  # the cluster says of each rule what it does
        self.last = Plan()
        for kind in ("resourceslices", "devicetaintrules", "nodes", "resourceclaims"):
            self.cluster.sync(kind, [])
        for node in range(nodes):
            self.node(f"n{node}")
            self.publish(node, {f"gpu-{index}": gpu(node, index) for index in range(gpus)})

    # --- what happens ---

    def node(self, name: str, uid: str = "", *, present: bool = True) -> None:
        self.machines[name] = {"metadata": {"name": name, "uid": uid or f"uid-{name}"}, "spec": {}}
        self.cluster.apply("nodes", make(Node, **self.machines[name]), present)

    def tainted(self, name: str, *taints: str) -> None:
        """Somebody's hand on the taints of a Node: "key=value:effect"; the record of ours stays."""
        self.machines[name]["spec"]["taints"] = [
            dict(zip(("key", "value", "effect"), re.split("[=:]", taint), strict=True)) for taint in taints
        ]
        self.cluster.apply("nodes", make(Node, **self.machines[name]), True)

    def publish(
        self, node: int, devices: Mapping[str, str], *, parts: Mapping[str, tuple[str, str]] | None = None,
        count: int = 1, generation: int = 1, taints: Mapping[str, list[dict[str, str]]] | None = None,
    ) -> None:
        """`devices`: name -> uuid; `parts`: name -> uuid and parent; "" for one that is not cut yet."""
        listed = [
            a_device(name, {"uuid": uuid, "type": "gpu"}, taints=(taints or {}).get(name))
            for name, uuid in devices.items()
        ]
        listed += [
            a_device(name, {**({"uuid": uuid} if uuid else {}), "parentUUID": parent, "type": "mig"})
            for name, (uuid, parent) in (parts or {}).items()
        ]
        obj = a_slice(listed, driver=DRIVER, pool=f"n{node}", count=count)
        self.cluster.apply("resourceslices", obj, True)

    def withdraw(self, node: int) -> None:
        self.cluster.apply("resourceslices", a_slice([], driver=DRIVER, pool=f"n{node}"), False)

    def find(self, *findings: ReportedFinding) -> None:
        for finding in findings:
            self.found[finding.node].append(finding)

    def clear(self, uuid: str, rule: str | None = None) -> None:
        for found in self.found.values():
            found[:] = [each for each in found if each.uuid != uuid or rule not in (None, each.rule)]

    def edit(self, name: str, **changes: Any) -> None:
        """A human's hand on a rule: annotations and labels stay."""
        rule = self.cluster.rules[name]
        taint = msgspec.structs.replace(rule.spec.taint, **changes)
        spec = msgspec.structs.replace(rule.spec, taint=taint)
        self.cluster.apply("devicetaintrules", msgspec.structs.replace(rule, spec=spec), True)

    def delete(self, name: str) -> None:
        self.cluster.apply("devicetaintrules", self.cluster.rules[name], False)

    def put(self, rule: DeviceTaintRule) -> None:
        self.cluster.apply("devicetaintrules", rule, True)

    # --- rounds ---

    def reports(self) -> list[NodeReport]:
        self.inventory.follow(self.cluster)
        return [
            NodeReport(
                node=node, node_uid=f"uid-{node}", group=self.groups.get(node, ""), heard_wall=self.now,
                stale=node in self.stale, partial=node in self.partial, cordoned=node in self.cordoned,
                devices=max(self.inventory.gpus_of(node), self.plugin.get(node, (0, 0))[0]), findings=tuple(found),
                plugin_devices=self.plugin.get(node, (0, 0))[0], plugin_withdrawn=self.plugin.get(node, (0, 0))[1],
                unsettled=self.unsettled.get(node, ""),
            )
            for node, found in self.found.items()
        ]

    def standing(self) -> dict[str, Fence]:
        read = {name: fences.standing(rule) for name, rule in self.cluster.rules.items()}
        return {name: fence for name, fence in read.items() if fence is not None}

    def think(self, seconds: float = 0.0) -> Plan:
        """A round whose writes all fail."""
        self.now += seconds
        inputs = gather(
            cluster=self.cluster, inventory=self.inventory, reports=self.reports(),
            standing=self.standing().values(), policy=self.policy, now_wall=self.now,
        )
        self.last, memory = plan(dataclasses.replace(inputs, **self.options, **self.extra), self.memory)
        self.memory, problem = decode(encode(memory), self.now)  # as the next leader would have it
        assert problem == ""
        return self.last

    def round(self, seconds: float = 0.0) -> list[str]:
        """A round; answers its actions in short."""
        for action in self.think(seconds).actions:
            self._apply(action)
        for change in self.last.nodes:
            self._taint(change)
        return told(self.last.actions)

    def _taint(self, action: NodeAction) -> None:
        before = self.machines[action.node]
        self.machines[action.node] = json_patched(before, apply_nodes.patch_of(before, action.after))
        self.cluster.apply("nodes", make(Node, **self.machines[action.node]), True)

    def on_nodes(self) -> dict[str, list[str]]:
        """Taints of every Node that has some: "unhealthy=xid_fatal:NoSchedule"."""
        return {
            name: [
                f"{each['key'].removeprefix('claimscope.io/')}={each['value']}:{each['effect']}"
                for each in node["spec"]["taints"]
            ]
            for name, node in self.machines.items() if node["spec"].get("taints")
        }

    def _apply(self, action: Action) -> None:
        name = action.fence.name
        assert (action.do is Do.CREATE) == (name not in self.cluster.rules)
        document = rule_object(action.fence, "v1")
        document["metadata"]["uid"] = f"uid-{name}-{self.now}"
        if self.answers:  # as the eviction controller does
            reason = {"None": "NoEffect", "NoSchedule": "OtherEffect"}.get(action.fence.effect, "NotStarted")
            document["status"] = {
                "conditions": [{"type": "EvictionInProgress", "status": "False", "reason": reason}]
            }
        rule = msgspec.convert(document, DeviceTaintRule)
        self.cluster.apply(
            "devicetaintrules", self.cluster.rules[name] if action.do is Do.DELETE else rule, action.do is not Do.DELETE
        )

    # --- looking ---

    def taints(self) -> list[str]:
        """What stands: "gpu-0@n1 unhealthy=xid_fatal:NoSchedule"."""
        return sorted(shown(fence) for fence in self.standing().values())

    def held(self) -> list[tuple[str, str]]:
        return sorted((each.fence.uuid, each.reason) for each in self.last.held)

    def blocked(self) -> set[str]:
        return {fence.uuid for fence in self.standing().values() if fences.blocks(fence.effect)}


def shown(fence: Fence) -> str:
    key = fence.key.removeprefix("claimscope.io/")
    return f"{fence.device.device}@{fence.device.pool} {key}={fence.value}:{fence.effect}"


def told(actions: Iterable[Action]) -> list[str]:
    return [f"{action.do.value} {shown(action.fence)}" for action in actions]
