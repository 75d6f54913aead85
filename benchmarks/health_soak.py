"""Does a healthy fleet raise a finding or a fence in a simulated week, and what does judging it cost?

Six nodes of different kinds, one process each (soak_node.py), go through a week; what their agents would write into
their Leases is then handed, in the order of time, to the controller's own decisions in mode enforce with the default
budgets. A seventh node, which does fail, shows that a fence would be seen.

`python -m benchmarks.health_soak DAYS NODE...` plays less.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec
from benchmarks.soak_node import CONTROL, DAY, KINDS

from claimscope.claims.cluster import Cluster
from claimscope.health.report import FINDINGS_ANNOTATION
from claimscope.kube.lease import micro_time
from claimscope.kube.objects import Lease, Node, ResourceSlice
from claimscope.sim.objects import node_object
from claimscope.sim.profiles import profile_named
from claimscope.sim.scenario import Scenario
from claimscope.sim.world import make_world
from claimscope.taints.fences import blocks
from claimscope.taints.inputs import gather
from claimscope.taints.inventory import Inventory
from claimscope.taints.memory import Memory
from claimscope.taints.model import Do, Fence, Held, Mode
from claimscope.taints.plan import plan
from claimscope.taints.policy import Policy
from claimscope.taints.reports import NODE_ANNOTATION, Reports

WEEK_DAYS = 7.0
CONTROL_DAYS = 0.02
ROUND_SECONDS = 300.0
WALL = 1_700_000_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one node's agent said, and what that cost."""

    node: str
    changes: tuple[tuple[float, str | None], ...]  # seconds, text of the annotation; None: nobody writes
    costs: dict[str, Any]

    @property
    def findings(self) -> set[tuple[str, str]]:
        """(uuid, rule) of all there were."""
        texts = [text for _, text in self.changes if text is not None]
        return {(one["uuid"], one["rule"]) for text in texts for one in json.loads(text)["findings"]}


def of_node(node: str, text: str) -> str:
    """Nodes of one profile are simulated with the same UUIDs."""
    return text.replace("GPU-", f"GPU-{node}-").replace("MIG-", f"MIG-{node}-")


def listen(node: str, days: float) -> Told:
    """Plays a node in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak_node", node, str(days)], stdout=subprocess.PIPE, text=True, check=True
    )
    *lines, costs = map(json.loads, done.stdout.splitlines())
    changes = [(line["at"], None if line["findings"] is None else of_node(node, line["findings"])) for line in lines]
    return Told(node=node, changes=tuple(changes), costs=costs)


@dataclass(slots=True)
class Fencing:
    """The controller's decisions, round by round."""

    cluster: Cluster = field(default_factory=Cluster)
    inventory: Inventory = field(default_factory=Inventory)
    reports: Reports = field(default_factory=Reports)
    policy: Policy = field(default_factory=lambda: Policy(mode=Mode.ENFORCE))
    memory: Memory = field(default_factory=Memory)
    standing: dict[str, Fence] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    effects: Counter[str] = field(default_factory=Counter)  # of fences that were put up
    held: set[tuple[str, str, str]] = field(default_factory=set)  # (node, rule, why)

    def begin(self, profiles: dict[str, str]) -> None:
        """Takes nodes (name -> profile) and their slices."""
        nodes, slices = [], []
        for name, profile in profiles.items():
            labels = {"nvidia.com/gpu.product": profile_named(profile).model.replace(" ", "-")}
            nodes.append(msgspec.convert(node_object(name, origin=WALL, labels=labels, devices={}), Node))
            world = make_world(profile, Scenario())
            slices += [
                msgspec.json.decode(of_node(name, json.dumps(each)), type=ResourceSlice) for each in world.slices(name)
            ]
        self.cluster.sync("nodes", nodes)
        self.cluster.sync("resourceslices", slices)
        self.cluster.sync("devicetaintrules", [])

    def hear(self, node: str, at: float, text: str) -> None:
        """An agent's Lease."""
        annotations = {NODE_ANNOTATION: node, FINDINGS_ANNOTATION: text}
        self.leases[node] = msgspec.convert({
            "metadata": {"name": f"claimscope-agent-{node}", "namespace": "claimscope", "annotations": annotations},
            "spec": {"renewTime": micro_time(round((WALL + at) * 1e9))},
        }, Lease)

    def round(self, at: float) -> None:
        """One round; what it decides on is taken as written."""
        now_ns, wall = round(at * 1e9), WALL + at
        self.inventory.follow(self.cluster)
        self.reports.follow(self.leases.values(), now_ns, wall)
        reports = self.reports.by_node(
            self.cluster.nodes, self.inventory, group_label=self.policy.node_group_label,
            stale_seconds=self.policy.stale_seconds, now_ns=now_ns, now_wall=wall,
        )
        inputs = gather(
            cluster=self.cluster, inventory=self.inventory, reports=reports.values(), policy=self.policy,
            now_wall=wall, standing=self.standing.values(),
        )
        decided, self.memory = plan(inputs, self.memory)
        for action in decided.actions:
            self._written(action.do, action.fence)
        self.held |= {_why(held) for held in decided.held}

    def _written(self, do: Do, fence: Fence) -> None:
        before = self.standing.pop(fence.name, None)
        if do is Do.DELETE:
            return
        self.standing[fence.name] = fence
        if before is None or before.effect != fence.effect:
            self.effects["blocking" if blocks(fence.effect) else "announced"] += 1


def _why(held: Held) -> tuple[str, str, str]:
    return held.fence.node, held.fence.value, held.reason


def moments(told: list[Told], days: float) -> Iterator[tuple[float, str, str | None]]:
    """(seconds, node, text) in the order of time; "" for the node is a round."""
    rounds = [(number * ROUND_SECONDS, "", None) for number in range(1, round(days * DAY / ROUND_SECONDS) + 1)]
    yield from sorted(
        [*((at, each.node, text) for each in told for at, text in each.changes), *rounds], key=lambda one: one[:2]
    )


def fence(told: list[Told], days: float) -> Fencing:
    """Hands everything that was told to the controller's decisions."""
    fencing = Fencing()
    fencing.begin({each.node: (KINDS.get(each.node) or CONTROL).profile for each in told})
    said: dict[str, str | None] = {}
    for at, node, text in moments(told, days):
        if node:
            said[node] = text
        for name, present in said.items():
            if present is not None:
                fencing.hear(name, at, present)
        fencing.round(at)
    return fencing


def soak(days: float, nodes: Sequence[str]) -> dict[str, float]:
    """Plays these nodes; two processes at once where there are two cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        told = list(pool.map(lambda node: listen(node, days), nodes))
        sick = listen("sick", CONTROL_DAYS)
    fencing, control = fence(told, days), fence([sick], CONTROL_DAYS)
    found = Counter(rule for each in told for _, rule in each.findings)
    for rule, count in sorted(found.items()):
        sys.stdout.write(f"{count} findings of rule {rule}\n")
    for node, rule, why in sorted(fencing.held):
        sys.stdout.write(f"held on {node}: {rule} ({why})\n")
    unknown = sorted({rule for each in told for rule in each.costs["unknown"]})
    if unknown:
        sys.stdout.write(f"not judged for want of readings: {', '.join(unknown)}\n")
    judging = sum(each.costs["judging_seconds"] for each in told)
    per_window = judging / sum(each.costs["windows"] for each in told)
    return {
        "health_soak_gpu_days": sum(each.costs["gpus"] for each in told) * days,
        "health_soak_blocking_fences": float(fencing.effects["blocking"]),
        "health_soak_announced_fences": float(fencing.effects["announced"]),
        "health_soak_findings": float(sum(found.values())),
        "health_soak_control_blocking_fences": float(control.effects["blocking"]),
        "health_soak_cpu_per_window_us": per_window * 1e6,
        "health_soak_cpu_per_device_day_s": per_window * DAY,  # of windows of a second
    }


UNITS = {
    "health_soak_gpu_days": ("days", ""),
    "health_soak_blocking_fences": ("", "<=0"),
    "health_soak_announced_fences": ("", "<=0"),
    "health_soak_findings": ("", "<=0"),
    "health_soak_control_blocking_fences": ("", ">=1"),
    "health_soak_cpu_per_window_us": ("us", ""),
    "health_soak_cpu_per_device_day_s": ("s", "<=60"),
}

if __name__ == "__main__":
    days = float(sys.argv[1]) if len(sys.argv) > 1 else WEEK_DAYS
    for name, value in soak(days, sys.argv[2:] or tuple(KINDS)).items():
        unit, bound = UNITS[name]
        sys.stdout.write(f"{name} {value:.4g} {unit} {bound}".rstrip() + "\n")
