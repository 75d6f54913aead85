"""An agent that fences its own node, in a cluster without the controller."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from claimscope import config as settings
from claimscope.clock import SystemClock
from claimscope.health.report import FINDINGS_ANNOTATION
from claimscope.kube.api import ApiClient, OpenAccess
from claimscope.kube.lease import HeartbeatLease
from claimscope.localfence import LocalFencing, OwnNodePolicies, own_kinds, read_policies
from claimscope.sim.api.kinds import ALL_KINDS, DEVICE_TAINT_RULES, EVENTS, LEASES, NODES, RESOURCE_SLICES
from claimscope.sim.api.server import SimApiServer
from claimscope.taints.model import Mode
from claimscope.taints.notebook import is_note
from claimscope.yamlfile import ConfigError
from controller_process import until
from taints_bench import finding, fleet

LEASE = "claimscope-agent-node-1"
OWN_RULE = "claimscope.node-1.5f9a1aafdd6a.unhealthy"  # of GPU-1-3: sha256 of the uuid


def told(*findings: dict[str, Any]) -> dict[str, str]:
    return {
        "claimscope.io/node": "node-1",
        FINDINGS_ANNOTATION: json.dumps({"boot_id": "boot-1", "findings": list(findings)}),
    }


def rules(server: SimApiServer) -> dict[str, dict[str, Any]]:
    stored = server.store.table(DEVICE_TAINT_RULES).objects
    return {name: msgspec.json.decode(each.body(DEVICE_TAINT_RULES)) for (_, name), each in stored.items()}


def a_rule(name: str, node: str, device: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {
            "deviceSelector": {"driver": "gpu.nvidia.com", "pool": node, "device": device},
            "taint": {"key": "claimscope.io/unhealthy", "value": "xid_fatal", "effect": "NoSchedule"},
        },
    }


class Node:
    """node-1's fencing and Lease, without the agent around them."""

    def __init__(self, server: SimApiServer, mode: Mode) -> None:
        self.server = server
        self.api = ApiClient(OpenAccess(server.url))
        clock = SystemClock()
        self.local = LocalFencing(
            self.api, clock, node="node-1", lease_namespace="claimscope", lease_name=LEASE,
            policies=OwnNodePolicies(None, mode),
        )
        self.lease = HeartbeatLease(
            self.api, "claimscope", LEASE, "node-1", {}, clock, change_seconds=0.05, keeps=is_note
        )

    def says(self, *findings: dict[str, Any]) -> None:
        self.lease.set_annotations(told(*findings))
        self.local.tell(told(*findings))

    def annotations(self) -> dict[str, str]:
        found = self.server.get(LEASES, LEASE, "claimscope") or {"metadata": {}}
        return dict(found["metadata"].get("annotations") or {})


@contextlib.asynccontextmanager
async def serving(git_version: str) -> AsyncIterator[SimApiServer]:
    server = SimApiServer(ALL_KINDS, git_version=git_version)
    for each in fleet():
        await server.put(RESOURCE_SLICES, each)
    for name in ("node-1", "node-2"):
        await server.put(NODES, {"metadata": {"name": name, "uid": f"uid-{name}"}})
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def fencing(mode: Mode = Mode.ENFORCE, git_version: str = "v1.37.0") -> AsyncIterator[Node]:
    async with serving(git_version) as server:
        node = Node(server, mode)
        node.says()
        work = [asyncio.create_task(node.local.run()), asyncio.create_task(node.lease.run())]
        try:
            yield node
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await node.api.close()


async def until_rules(node: Node, *names: str) -> None:
    await until(lambda: sorted(rules(node.server)) == sorted(names), 10.0, lambda: str(rules(node.server)))


async def test_a_node_fences_its_own_gpu_and_lifts_again_and_nobody_elses() -> None:
    async with fencing() as node:
        ours = {"app.kubernetes.io/managed-by": "claimscope"}
        others = [
            a_rule("claimscope.node-2.0.unhealthy", "node-2", "gpu-0", {**ours, "claimscope.io/node": "node-2"}),
            a_rule("claimscope.node-10.0.unhealthy", "node-10", "gpu-0", {**ours, "claimscope.io/node": "node-10"}),
            a_rule("mine", "node-1", "gpu-0", {}),
        ]
        for each in others:
            await node.server.put(DEVICE_TAINT_RULES, each)
        names = [str(each["metadata"]["name"]) for each in others]
        before = rules(node.server)
        node.says(finding("GPU-1-3"), finding("GPU-2-3"))  # a uuid of another node's is none of this one's devices
        await until_rules(node, OWN_RULE, *names)
        rule = rules(node.server)[OWN_RULE]
        assert rule["spec"] == {
            "deviceSelector": {"driver": "gpu.nvidia.com", "pool": "node-1", "device": "gpu-3"},
            "taint": {"key": "claimscope.io/unhealthy", "value": "xid_fatal", "effect": "NoSchedule"},
        }
        assert rule["metadata"]["labels"]["claimscope.io/node"] == "node-1"
        await until(lambda: (node.server.get(NODES, "node-1") or {}).get("status"), 5.0, lambda: "no condition")
        stored = node.server.store.table(EVENTS).objects.values()
        events = [msgspec.json.decode(each.body(EVENTS)) for each in stored]
        assert {(each["reason"], each["source"]["component"]) for each in events} == {
            ("GPUTainted", "claimscope-agent"), ("GPUTaintHeld", "claimscope-agent"),
        }
        node.says()
        await until_rules(node, *names)
        assert {name: rules(node.server)[name] for name in names} == before
        assert "status" not in (node.server.get(NODES, "node-2") or {})


async def test_budgets_of_fleet_and_group_do_not_bound_one_node_and_its_own_does() -> None:
    async with fencing() as node:
        node.says(*(finding(f"GPU-1-{index}", "thermal_slowdown") for index in range(6)))
        await until(lambda: len(rules(node.server)) == 6, 10.0, lambda: str(rules(node.server)))
        effects = [rule["spec"]["taint"]["effect"] for rule in rules(node.server).values()]
        assert sorted(effects) == ["NoSchedule"] * 3 + ["None"] * 3  # 3 within ten minutes


async def test_what_fencing_notes_in_the_lease_outlives_heartbeats() -> None:
    async with fencing() as node:
        node.says(finding("GPU-1-3"))
        await until_rules(node, OWN_RULE)
        notes = await until(
            lambda: {n: t for n, t in node.annotations().items() if is_note(n)}, 5.0, lambda: str(node.annotations())
        )
        assert sorted(notes) == ["claimscope.io/taint-memory", "claimscope.io/taint-state"]
        node.says(finding("GPU-1-3"), finding("GPU-1-4", "pcie_width", "degraded"))
        await until(lambda: "GPU-1-4" in node.annotations()[FINDINGS_ANNOTATION], 5.0, lambda: str(node.annotations()))
        assert sorted(node.annotations()) == [
            "claimscope.io/findings", "claimscope.io/node", "claimscope.io/taint-memory", "claimscope.io/taint-state",
        ]
        assert json.loads(node.annotations()["claimscope.io/taint-state"])["mode"] == "enforce"


async def test_only_objects_of_the_node_are_asked_for() -> None:
    async with fencing(Mode.ANNOUNCE) as node:
        node.says(finding("GPU-1-3"))
        await until_rules(node, OWN_RULE)
        lists = {
            (path, query.get("fieldSelector", "") + query.get("labelSelector", ""))
            for path, query in node.server.requests if query
        }
        assert {each for each in lists if each[1]} == {
            ("/api/v1/nodes", "metadata.name=node-1"),
            ("/apis/resource.k8s.io/v1/resourceslices", "spec.nodeName=node-1"),
            ("/apis/resource.k8s.io/v1/devicetaintrules", "claimscope.io/node=node-1"),
        }
        assert not [path for path, _ in node.server.requests if "resourceclaims" in path or "pods" in path]


async def test_rules_that_would_stop_the_scheduler_are_not_written() -> None:
    async with fencing(git_version="v1.36.2") as node:
        node.says(finding("GPU-1-3"))
        await until(lambda: "xid_fatal" in node.annotations().get("claimscope.io/taint-state", ""), 10.0,
                    lambda: str(node.annotations()))
        assert json.loads(node.annotations()["claimscope.io/taint-state"])["mode"] == "observe"
        assert not [each for each in node.server.write_requests if "devicetaintrules" in each]


def test_the_kinds_that_are_followed() -> None:
    assert {kind.name: kind.params for kind in own_kinds("a.b")} == {
        "resourceslices": {"fieldSelector": "spec.nodeName=a.b"},
        "devicetaintrules": {"labelSelector": "claimscope.io/node=a.b"},
        "nodes": {"fieldSelector": "metadata.name=a.b"},
    }


# --- settings ---


def build(**flags: str) -> settings.Config:
    return settings.build(settings.from_flags(flags))


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"taint_mode": "enforce"},
         "--taint-mode: the agent fences nothing here: give it to the controller, or add --taint-writer=local"),
        ({"taint_policy": "p.yaml", "taint_writer": "controller"},
         "--taint-policy: the agent fences nothing here: give it to the controller, or add --taint-writer=local"),
        ({"taint_writer": "local", "health": "off"},
         "--taint-writer: nothing can be fenced with --health off: leave one of them out"),
        ({"taint_writer": "local", "api_server": "off"},
         "--taint-writer: nothing can be fenced with --api-server off: leave one of them out"),
        ({"taint_writer": "me"}, "--taint-writer: unknown value `me`: known are `controller`, `local`"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other(flags: dict[str, str], error: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build(**flags)
    assert str(raised.value) == error


def test_settings_that_cannot_be_followed(tmp_path: Path) -> None:
    def problem(**flags: str) -> str:
        local = settings.complete(build(taint_writer="local", **flags), "host", "")
        with pytest.raises(ConfigError) as raised:
            read_policies(local, SystemClock())
        return str(raised.value)

    assert problem().endswith("the agent's Lease, and it writes none: add --lease-namespace")
    name = "n" * 64
    assert problem(lease_namespace="claimscope", node_name=name) == (
        f"--taint-writer=local: the node's name `{name}` has 64 characters, and the label that its taints are known by "
        "takes 63: run the controller instead"
    )
    file = tmp_path / "policy.yaml"
    file.write_text("mode: enforced\n")
    assert problem(lease_namespace="claimscope", taint_policy=str(file)).startswith(f"{file}:1:7: unknown value")
