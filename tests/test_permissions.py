"""The rights of the manifests suffice, none is left over, and the admission policies let pass what the parts write.

Each part runs as its real process against an API server that holds it to exactly these rights and policies.
"""

from __future__ import annotations

import contextlib
import copy
import re
import runpy
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from admission import MANIFESTS
from agent_process import Agent
from claim_objects import device_class
from claimscope.claims.model import DeviceKey
from claimscope.kube.api import ApiError
from claimscope.sim.api.kinds import (
    ALL_KINDS,
    DEVICE_CLASSES,
    DEVICE_TAINT_RULES,
    EVENTS,
    LEASES,
    NODES,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
)
from claimscope.sim.api.server import HttpFault, SimApiServer, StreamingLists
from claimscope.sim.fleet import node_world
from claimscope.taints.apply import RuleWriter
from claimscope.taints.model import Action, Do, Fence
from controller_process import Controller, until
from maintenance_help import annotate
from rights import AGENT, CONTROLLER, Warden, rights, warden, written
from taints_bench import RULES, fleet, serving
from taints_bench import finding as a_finding
from test_controller_taints import effects, finding, says, until_effects

LOOK, CHANGE = (("", "devicetaintrules.resource.k8s.io", verb) for verb in ("get", "patch"))
# What the driver advises stands from the start; an XID is seen only by who listens already: a change that comes later.
SICK = "faults:\n  - {kind: recovery_action, at: 0.5, gpu: 1, action: 2}\n  - {kind: xid, at: 6, gpu: 2, code: 79}\n"
QUICK = "startup_grace_seconds: 1\nboot_grace_seconds: 0\n"
OWN_RULE = "claimscope.node-1.5f9a1aafdd6a.unhealthy"  # of GPU-1-3: sha256 of the uuid


@contextlib.asynccontextmanager
async def held_to(guard: Warden) -> AsyncIterator[SimApiServer]:
    # Streamed lists are refused, as servers before 1.34 do: both `list` and `watch` are then asked for.
    server = SimApiServer(
        ALL_KINDS, git_version="v1.37.0", streaming_lists=StreamingLists.REFUSED, rule=guard.rule, admit=guard.admit
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def test_the_controller_works_with_its_rights_and_needs_each(tmp_path: Path) -> None:
    guard = warden(CONTROLLER, "rbac-controller.yaml", node="any")
    async with held_to(guard) as server:
        await server.put(DEVICE_CLASSES, device_class())
        for each in fleet():
            await server.put(RESOURCE_SLICES, each)
        for node in ("node-1", "node-2"):
            await server.put(NODES, {"metadata": {"name": node, "uid": f"uid-{node}"}})
            await says(server, node)
        arguments = ("--api-server-url", server.url, "--taint-mode", "enforce")
        async with Controller(tmp_path, *arguments) as controller:
            await says(server, "node-1", finding("GPU-1-3"))
            await until_effects(server, {"node-1/gpu-3": "NoSchedule"}, controller)
            # A write that is refused is followed by a look whether somebody was faster.
            server.fail(f"{RULES}/{OWN_RULE}", HttpFault(status=422))
            await says(server, "node-1", finding("GPU-1-3"), finding("GPU-1-3", "reset_failed"))
            await until(lambda: {LOOK, CHANGE} <= guard.used, 10.0, lambda: controller.log[-4000:])
            await says(server, "node-1")
            await until_effects(server, {}, controller)
            await until(lambda: (server.get(NODES, "node-1") or {}).get("status"), 10.0, lambda: controller.log)
            await until(lambda: server.store.table(EVENTS).objects, 10.0, lambda: controller.log)
            await controller.until_ready()
        assert guard.troubles() == []
        assert written(guard.unused()) == []


async def test_an_agent_works_with_its_rights_and_needs_each(tmp_path: Path, cc: str) -> None:
    guard = warden(AGENT, "rbac-agent.yaml", node="node-a")
    async with held_to(guard) as server:
        await publish(server)
        with agent(tmp_path, server) as process:
            await until(lambda: not guard.unused(), 20.0, lambda: f"{written(guard.unused())}\n{process.log}")
        assert guard.troubles() == []


async def test_an_agent_that_fences_works_with_its_rights_and_needs_each(tmp_path: Path, cc: str) -> None:
    guard = warden(AGENT, "rbac-agent.yaml", "rbac-agent-local.yaml", node="node-a")
    other = {
        "metadata": {"name": "claimscope.node-b.0.lost", "labels": {"claimscope.io/node": "node-b"}},
        "spec": {
            "deviceSelector": {"driver": "gpu.nvidia.com", "pool": "node-b", "device": "gpu-0"},
            "taint": {"key": "claimscope.io/lost", "effect": "NoSchedule"},
        },
    }
    async with held_to(guard) as server:
        await server.put(NODES, {"metadata": {"name": "node-a", "uid": "uid-a"}, "status": {"capacity": {"cpu": "8"}}})
        await server.put(DEVICE_TAINT_RULES, other)
        await publish(server)
        with agent(tmp_path, server, "--taint-writer", "local", "--taint-mode", "enforce") as process:

            async def until_named(name: str | None) -> None:
                await until(lambda: effects(server).keys() & {"node-a/gpu-1", "node-a/gpu-9"} == ({name} - {None}),
                            20.0, lambda: f"{effects(server)}\n{guard.troubles()}\n{process.log[-4000:]}")

            await until_named("node-a/gpu-1")
            process.wait_served()
            mode = process.until(lambda scrape: scrape.find("claimscope_agent_taint_mode_info"))[0].labels
            assert (mode["mode"], mode["configured"], mode["reason"]) == ("enforce", "enforce", "")
            server.fail(f"{RULES}/{rule_of(server, 'gpu-1')}", HttpFault(status=422))
            await publish(server, **{"gpu-1": "gpu-9"})
            await until_named("node-a/gpu-9")
            await publish(server, **{"gpu-1": ""})
            await until_named(None)
            await until(lambda: not guard.unused(), 20.0, lambda: f"{written(guard.unused())}\n{process.log[-4000:]}")
        assert guard.troubles() == []


def rule_of(server: SimApiServer, device: str) -> str:
    rules = (server.get(DEVICE_TAINT_RULES, name) for _, name in server.store.table(DEVICE_TAINT_RULES).objects)
    (found,) = (rule for rule in rules if rule and rule["spec"]["deviceSelector"]["device"] == device)
    return str(found["metadata"]["name"])


def agent(directory: Path, server: SimApiServer, *arguments: str) -> Agent:
    scenario, quick = directory / "scenario.yaml", directory / "quick.yaml"
    scenario.write_text(SICK)
    quick.write_text(QUICK)
    return Agent(
        directory / "agent", "--simulate", "l40sx4", "--api-server-url", server.url, "--lease-namespace", "claimscope",
        "--scenario", str(scenario), "--health-thresholds", str(quick), *arguments,
    )


async def publish(server: SimApiServer, **renamed: str) -> None:
    """The claims and slices of node-a, with some devices under another name, or ("") none."""
    world = node_world("l40sx4", "node-a", None)
    for each in world.slices("node-a", 0.0):
        found = copy.deepcopy(each)
        devices = found["spec"]["devices"]
        for device in devices:
            device["name"] = renamed.get(device["name"], device["name"])
        found["spec"]["devices"] = [device for device in devices if device["name"]]
        await server.put(RESOURCE_SLICES, found)
    for claim in world.claims(0.0):
        await server.put(RESOURCE_CLAIMS, claim)


# --- what is given ---


def test_what_each_part_may_write() -> None:
    """Reviewed by eye when it changes: reading is not listed."""
    assert [right for right in written(rights(AGENT, "rbac-agent.yaml")) if not _reads(right)] == [
        "create leases.coordination.k8s.io in claimscope", "update leases.coordination.k8s.io in claimscope",
    ]
    assert [right for right in written(rights(AGENT, "rbac-agent-local.yaml")) if not _reads(right)] == [
        "create devicetaintrules.resource.k8s.io", "create events in default",
        "delete devicetaintrules.resource.k8s.io", "patch devicetaintrules.resource.k8s.io",
        "patch leases.coordination.k8s.io in claimscope", "patch nodes/status",
    ]
    assert [right for right in written(rights(CONTROLLER, "rbac-controller.yaml")) if not _reads(right)] == [
        "create devicetaintrules.resource.k8s.io", "create events", "create leases.coordination.k8s.io in claimscope",
        "delete devicetaintrules.resource.k8s.io", "patch devicetaintrules.resource.k8s.io",
        "patch leases.coordination.k8s.io in claimscope", "patch nodes/status",
        "update leases.coordination.k8s.io in claimscope",
    ]


def _reads(right: str) -> bool:
    return right.split()[0] in ("get", "list", "watch")


def test_no_right_is_a_wildcard_and_none_reads_secrets() -> None:
    for account in (AGENT, CONTROLLER):
        for _, resource, verb in rights(account):
            assert "*" not in resource + verb
            assert resource.partition(".")[0] not in ("secrets", "configmaps", "pods/exec")
            assert verb != "deletecollection"


# --- rounds of one leader, without the process ---


async def test_taints_of_nodes_need_their_rights_and_no_more(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("mode: enforce\nnode_taints: enforce\nbudgets: {group_share: 0.5, fleet_share: 0.5}\n")
    kinds = tuple(kind for kind in ALL_KINDS if kind is not DEVICE_TAINT_RULES)
    guard = warden(CONTROLLER, "rbac-controller.yaml", "rbac-controller-node-taints.yaml")
    async with serving(policy=policy, kinds=kinds, rule=guard.rule, admit=guard.admit) as bench:

        def taints() -> list[str]:
            node = bench.server.get(NODES, "node-1") or {}
            return [f"{taint['key']}:{taint['effect']}" for taint in node["spec"].get("taints", [])]

        node = bench.server.get(NODES, "node-1") or {}
        others = {"taints": [{"key": "example.com/rack", "effect": "NoExecute"}], "unschedulable": True}
        await bench.server.put(NODES, {**node, "spec": others})
        await bench.says("node-1", a_finding("GPU-1-3", "gpu_lost", "lost"))
        await bench.leader.round()
        assert taints() == ["example.com/rack:NoExecute", "claimscope.io/lost:NoSchedule"]
        bench.clock.advance(5)
        await bench.says("node-1")
        await bench.leader.round()
        assert taints() == ["example.com/rack:NoExecute"]
    assert guard.troubles() == []
    assert guard.used >= rights(CONTROLLER, "rbac-controller-node-taints.yaml")


async def test_maintenance_needs_no_more_rights() -> None:
    guard = warden(CONTROLLER, "rbac-controller.yaml")
    async with serving(rule=guard.rule, admit=guard.admit) as bench:
        await annotate(bench, "node-1", maintenance="fan swap", maintenance_by="ann")
        for _ in range(4):
            await bench.leader.round()
            bench.clock.advance(10)
        assert set(bench.effects().values()) == {"maintenance NoSchedule"}
        assert bench.conditions("node-1")["GPUMaintenanceReady"][0] == "False"
        lease = bench.server.get(LEASES, "claimscope-agent-node-1", "claimscope") or {}
        assert "claimscope.io/maintenance-ask" in lease["metadata"]["annotations"]
        await annotate(bench, "node-1", maintenance=None, maintenance_by=None)
        for _ in range(4):
            await bench.leader.round()
            bench.clock.advance(10)
    assert guard.troubles() == []


async def test_eviction_is_refused_until_somebody_deletes_the_binding() -> None:
    guard = warden(CONTROLLER, "rbac-controller.yaml")
    given = Fence(
        name="claimscope.node-1.5f9a1aafdd6a.lost", device=DeviceKey("gpu.nvidia.com", "node-1", "gpu-3"),
        key="claimscope.io/lost", value="gpu_lost", effect="NoExecute", uuid="GPU-1-3", node="node-1",
    )
    async with serving(rule=guard.rule, admit=guard.admit) as bench:
        with pytest.raises(ApiError, match="NoExecute is not allowed here; to allow it delete the binding"):
            await RuleWriter(bench.leader.api, "v1").write(Action(do=Do.CREATE, fence=given, reason=""), None)
    assert guard.forbidden == []


# --- what is said of it ---


def test_the_page_is_current_and_tells_what_fails_without_each_right() -> None:
    """`make docs` writes it."""
    script = runpy.run_path(str(MANIFESTS.parent.parent / "scripts" / "permissions.py"))
    assert (MANIFESTS.parent.parent / "docs" / "permissions.md").read_text() == script["document"]()
    for path in MANIFESTS.glob("rbac-*.yaml"):
        for rule, _, text in script["rules"](path.read_text()):
            assert re.search(r"\b[Ww]ithout\b|Required", text), (path, rule)
