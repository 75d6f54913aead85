"""Taints of Nodes, for GPUs that cannot be fenced one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from claimscope.health.model import Severity
from claimscope.kube.api import ApiClient, ApiError, ApiReason, OpenAccess
from claimscope.kube.objects import Node
from claimscope.sim.api.kinds import ALL_KINDS, DEVICE_TAINT_RULES, NODES
from claimscope.sim.api.server import HttpFault, SimApiServer
from claimscope.taints import apply_nodes, command, machines
from claimscope.taints.model import Mode, NodeTaint
from claimscope.taints.policy import read_policy
from inventory_objects import make
from taints_bench import Bench, Json, finding, lift, serving
from taints_help import START, World, a_finding, gpu

LOST, UNHEALTHY, DEGRADED = Severity.LOST, Severity.UNHEALTHY, Severity.DEGRADED
ENFORCE = "mode: enforce\nnode_taints: enforce\nbudgets: {group_share: 0.5, fleet_share: 0.5}"
PREFER = "mode: enforce\nnode_taints: prefer"


def plugin_world(policy: str = ENFORCE, **options: Any) -> World:
    """Ten nodes whose eight GPUs a device plugin gives out: no slice publishes them."""
    world = World(policy, gpus=0, **options)
    world.plugin = dict.fromkeys(world.found, (8, 0))
    return world


def sick(node: int, count: int, rule: str = "xid_fatal", severity: Severity = UNHEALTHY) -> list[Any]:
    return [a_finding(gpu(node, index), rule, severity) for index in range(count)]


# --- how hard ---


@pytest.mark.parametrize(
    ("policy", "findings", "expected"),
    [
        (ENFORCE, sick(1, 1, "pcie_width", DEGRADED), {}),
        (ENFORCE, sick(1, 8, "pcie_width", DEGRADED), {}),
        (ENFORCE, sick(1, 1), {"n1": ["unhealthy=xid_fatal:PreferNoSchedule"]}),
        (ENFORCE, sick(1, 3), {"n1": ["unhealthy=xid_fatal:PreferNoSchedule"]}),
        (ENFORCE, sick(1, 4), {"n1": ["unhealthy=xid_fatal:NoSchedule"]}),
        (ENFORCE, sick(1, 1, "gpu_lost", LOST), {"n1": ["lost=gpu_lost:NoSchedule"]}),
        (ENFORCE, sick(1, 1, "recovery_action_reboot"), {"n1": ["unhealthy=recovery_action_reboot:NoSchedule"]}),
        (f"{ENFORCE}\nnode_taint_share: 1.0", sick(1, 7), {"n1": ["unhealthy=xid_fatal:PreferNoSchedule"]}),
        (f"{ENFORCE}\nnode_taint_share: 1.0", sick(1, 8), {"n1": ["unhealthy=xid_fatal:NoSchedule"]}),
        (PREFER, sick(1, 8), {"n1": ["unhealthy=xid_fatal:PreferNoSchedule"]}),
        (PREFER, sick(1, 1, "gpu_lost", LOST), {"n1": ["lost=gpu_lost:PreferNoSchedule"]}),
        ("mode: enforce", sick(1, 8), {}),
        ("node_taints: enforce", sick(1, 8), {}),  # the mode is announce
        (f"{ENFORCE}\nrules: {{xid_fatal: {{mode: announce}}}}", sick(1, 8), {}),
    ],
)
def test_what_a_node_gets(policy: str, findings: list[Any], expected: dict[str, list[str]]) -> None:
    world = plugin_world(policy)
    world.find(*findings)
    assert world.round() == []  # no rule
    assert world.on_nodes() == expected
    world.round(5)
    assert world.last.nodes == ()
    world.found["n1"].clear()
    world.round(5)
    assert world.on_nodes() == {}


def test_lost_and_unhealthy_gpus_have_a_taint_each() -> None:
    world = plugin_world()
    world.find(a_finding(gpu(1, 0), "gpu_lost", LOST), a_finding(gpu(1, 1)))
    world.round()
    assert world.on_nodes() == {"n1": ["lost=gpu_lost:NoSchedule", "unhealthy=xid_fatal:PreferNoSchedule"]}


def test_parts_of_one_gpu_are_one_gpu() -> None:
    world = plugin_world()
    world.find(*(a_finding(f"MIG-1-{index}", parent=gpu(1, 0)) for index in range(7)))
    world.round()
    assert world.on_nodes() == {"n1": ["unhealthy=xid_fatal:PreferNoSchedule"]}


@pytest.mark.parametrize(
    ("withdrawn", "expected"),
    [
        (0, {"n1": ["unhealthy=xid_fatal:NoSchedule"]}),
        (3, {"n1": ["unhealthy=xid_fatal:PreferNoSchedule"]}),
        (5, {}),
        (8, {}),
    ],
)
def test_what_the_device_plugin_has_withdrawn_needs_no_taint(withdrawn: int, expected: dict[str, list[str]]) -> None:
    world = plugin_world()
    world.plugin["n1"] = (8, withdrawn)
    world.find(*sick(1, 5))
    world.round()
    assert world.on_nodes() == expected


# --- which GPUs ---


def test_where_devices_can_be_fenced_no_node_is_tainted() -> None:
    world = World(ENFORCE)
    world.find(*sick(1, 1, "gpu_lost", LOST))
    assert world.round() == ["create gpu-0@n1 lost=gpu_lost:NoSchedule"]
    assert world.on_nodes() == {}


def test_on_a_mixed_node_rules_are_for_published_gpus_and_the_taint_for_the_rest() -> None:
    world = World(ENFORCE)
    world.plugin["n1"] = (8, 0)
    world.publish(1, {f"gpu-{index}": gpu(1, index) for index in range(4)})
    world.find(a_finding(gpu(1, 0)), a_finding(gpu(1, 7)))
    assert world.round() == ["create gpu-0@n1 unhealthy=xid_fatal:NoSchedule"]
    assert world.on_nodes() == {"n1": ["unhealthy=xid_fatal:PreferNoSchedule"]}
    assert world.held() == []


def test_a_gpu_that_is_published_nowhere_taints_no_node_without_a_device_plugin() -> None:
    world = World(ENFORCE)
    world.publish(1, {})
    world.find(*sick(1, 8))
    world.round()
    assert world.on_nodes() == {}
    assert {reason for _, reason in world.held()} == {"unresolved"}


def test_without_the_api_published_gpus_taint_their_node_and_with_it_they_do_no_more() -> None:
    world = World(ENFORCE)
    world.extra = {"device_taints": False, "ceiling": Mode.OBSERVE}
    world.find(*sick(1, 1, "gpu_lost", LOST))
    assert world.round() == []
    assert world.on_nodes() == {"n1": ["lost=gpu_lost:NoSchedule"]}
    world.extra = {}
    world.think(60)  # the rule is refused: until it stands the taint does
    assert [action.fence.effect for action in world.last.actions] == ["NoSchedule"]
    assert world.last.nodes == ()
    assert world.round(5) == ["create gpu-0@n1 lost=gpu_lost:NoSchedule"]
    assert world.on_nodes() == {"n1": ["lost=gpu_lost:NoSchedule"]}
    assert world.round(5) == []
    assert world.on_nodes() == {}


# --- what bounds it ---


def test_a_node_counts_with_all_its_gpus() -> None:
    world = plugin_world(
        "mode: enforce\nnode_taints: enforce\nbudgets: {fleet_share: 0.1, group_share: 1.0}\nbreaker: {share: 1.0}"
    )
    world.find(*sick(1, 4), *sick(2, 4))
    world.round()
    assert world.on_nodes() == {
        "n1": ["unhealthy=xid_fatal:NoSchedule"], "n2": ["unhealthy=xid_fatal:PreferNoSchedule"],
    }
    (held,) = world.last.held
    assert (held.fence.node, held.reason, held.text) == (
        "n2", "budget_fleet", "a taint of node n2: 8 of at most 8 GPUs of the fleet are kept from work",
    )
    assert world.last.budgets["fleet"] == (8, 8)


def test_the_rate_lets_one_node_through_and_the_next_in_ten_minutes() -> None:
    world = plugin_world(f"{ENFORCE}\nbreaker: {{share: 1.0}}")
    world.find(*sick(1, 4), *sick(2, 4))
    world.round()
    assert world.on_nodes()["n2"] == ["unhealthy=xid_fatal:PreferNoSchedule"]
    assert [held.reason for held in world.last.held] == ["rate"]
    world.round(599)
    assert world.on_nodes()["n2"] == ["unhealthy=xid_fatal:PreferNoSchedule"]
    world.round(1)
    assert world.on_nodes()["n2"] == ["unhealthy=xid_fatal:NoSchedule"]


def test_one_cause_on_many_nodes_taints_none_of_them() -> None:
    world = plugin_world()
    world.find(*(each for node in range(5) for each in sick(node, 4)))
    world.round()
    assert world.on_nodes() == {}
    assert {held.reason for held in world.last.held} == {"systemic"}


def test_the_breaker_stops_them() -> None:
    world = plugin_world("mode: enforce\nnode_taints: enforce\nsystemic: {nodes: 100}")
    world.find(*sick(1, 4, "xid_lost", LOST), *sick(2, 4))
    world.round()
    assert world.on_nodes() == {}
    assert world.last.breaker == "open"
    assert {held.reason for held in world.last.held} == {"breaker"}


def test_a_pause_lets_nothing_new_and_everything_old_go() -> None:
    world = plugin_world()
    world.find(*sick(1, 4))
    world.round()
    running, paused = world.policy, read_policy(f"{ENFORCE}\npause: [{{author: ann}}]", "policy.yaml", START)
    world.policy = paused
    world.find(*sick(2, 1))
    world.round(60)
    assert world.on_nodes() == {"n1": ["unhealthy=xid_fatal:NoSchedule"]}
    assert [(held.fence.node, held.reason) for held in world.last.held] == [("n2", "paused")]
    world.found["n1"].clear()
    world.round(5)
    assert world.on_nodes() == {}
    world.policy = running
    world.round(5)
    assert world.on_nodes() == {"n2": ["unhealthy=xid_fatal:PreferNoSchedule"]}


@pytest.mark.parametrize("how", ["stale", "partial"])
def test_what_stands_stays_while_the_agent_is_silent(how: str) -> None:
    world = plugin_world()
    world.find(*sick(1, 4))
    world.round()
    world.found["n1"].clear()
    getattr(world, how).add("n1")
    world.round(60)
    assert world.on_nodes() == {"n1": ["unhealthy=xid_fatal:NoSchedule"]}
    world.policy = read_policy("mode: enforce", "policy.yaml", START)  # nobody wants taints of nodes any more
    world.round(5)
    assert world.on_nodes() == {}


def test_what_stands_stays_when_agent_and_device_plugin_are_gone() -> None:
    world = plugin_world()
    world.find(*sick(1, 4))
    world.round()
    del world.found["n1"], world.plugin["n1"]
    world.round(60)
    assert world.on_nodes() == {"n1": ["unhealthy=xid_fatal:NoSchedule"]}


def test_an_agent_that_writes_for_itself_taints_no_node() -> None:
    world = plugin_world()
    world.options = {"only_node": "n1"}
    world.find(*sick(1, 8))
    world.round()
    assert world.on_nodes() == {}


# --- a verdict on the whole machine ---


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_driver_that_wants_a_reboot_fences_the_gpus_of_which_it_says_so(gpus: int) -> None:
    world = World(f"{ENFORCE}\nrate: {{least: 8}}")
    world.find(*sick(1, gpus, "recovery_action_reboot"))
    world.round()
    assert world.taints() == [f"gpu-{index}@n1 unhealthy=recovery_action_reboot:NoSchedule" for index in range(gpus)]
    assert world.on_nodes() == {}


# --- people ---


def test_taints_of_others_stay_and_a_persons_taint_with_our_key_stands_for_ours() -> None:
    world = plugin_world()
    theirs = ["example.com/team=a:NoSchedule", "claimscope.io/unhealthy=by-hand:NoSchedule"]
    world.tainted("n1", *theirs)
    world.find(*sick(1, 4))
    world.round()
    assert world.last.nodes == ()
    world.found["n1"].clear()
    world.round(5)
    assert world.on_nodes() == {"n1": ["example.com/team=a:NoSchedule", "unhealthy=by-hand:NoSchedule"]}


def test_ours_come_and_go_beside_theirs() -> None:
    world = plugin_world()
    world.tainted("n1", "example.com/team=a:NoSchedule")
    world.find(*sick(1, 4))
    world.round()
    assert world.machines["n1"]["metadata"]["annotations"] == {
        "claimscope.io/node-taints": "claimscope.io/unhealthy=xid_fatal:NoSchedule"
    }
    assert world.on_nodes() == {"n1": ["example.com/team=a:NoSchedule", "unhealthy=xid_fatal:NoSchedule"]}
    world.found["n1"].clear()
    world.round(5)
    assert world.on_nodes() == {"n1": ["example.com/team=a:NoSchedule"]}
    assert world.machines["n1"]["metadata"]["annotations"] == {}


def test_a_taint_that_a_person_took_away_stays_away_for_an_hour() -> None:
    world = plugin_world()
    world.find(*sick(1, 4))
    world.round()
    world.round(5)
    world.tainted("n1")
    world.round(5)
    assert world.on_nodes() == {}
    assert world.machines["n1"]["metadata"]["annotations"] == {}
    assert {reason for _, reason in world.held()} == {"ignored"}
    world.round(3590)
    assert world.on_nodes() == {}
    world.round(20)
    assert world.on_nodes() == {"n1": ["unhealthy=xid_fatal:NoSchedule"]}


def test_a_node_that_was_made_anew_lost_its_taint_by_nobodys_hand() -> None:
    world = plugin_world()
    world.find(*sick(1, 4))
    world.round()
    world.round(5)
    world.node("n1", "uid-again")
    world.round(600)
    assert world.on_nodes() == {"n1": ["unhealthy=xid_fatal:NoSchedule"]}


def test_a_taint_that_a_person_changed_is_theirs() -> None:
    world = plugin_world()
    world.find(*sick(1, 4))
    world.round()
    world.tainted("n1", "claimscope.io/unhealthy=kept:NoSchedule")
    world.found["n1"].clear()
    world.round(5)
    assert world.on_nodes() == {"n1": ["unhealthy=kept:NoSchedule"]}


# --- maintenance ---


@pytest.mark.parametrize(("offered", "api", "expected"), [
    (8, True, {"n1": ["maintenance=requested:NoSchedule"]}),
    (0, True, {}),  # its devices have rules of their own
    (0, False, {"n1": ["maintenance=requested:NoSchedule"]}),
])  # fmt: skip
def test_a_node_under_maintenance_whose_gpus_have_no_rules(
    offered: int, api: bool, expected: dict[str, list[str]]
) -> None:
    world = World("mode: enforce")
    world.plugin["n1"] = (offered, 0)
    world.extra = {"fenced_nodes": frozenset({"n1"}), "maintenance": frozenset({"n1"}), "device_taints": api}
    world.round()
    assert world.on_nodes() == expected
    world.extra = {"device_taints": api}
    world.round(5)
    assert world.on_nodes() == {}


def test_findings_of_a_node_under_maintenance_wait_for_its_end() -> None:
    world = plugin_world()
    world.extra = {"fenced_nodes": frozenset({"n1"}), "maintenance": frozenset({"n1"})}
    world.round()
    world.find(*sick(1, 8))
    world.round(5)
    assert world.on_nodes() == {"n1": ["maintenance=requested:NoSchedule"]}
    assert [held.reason for held in world.last.held] == ["paused"]
    world.extra = {}
    world.round(5)
    assert world.on_nodes() == {"n1": ["unhealthy=xid_fatal:NoSchedule"]}


# --- what a Node says ---


@pytest.mark.parametrize(
    ("labels", "capacity", "allocatable", "expected"),
    [
        ({}, {"cpu": "8"}, {"cpu": "8"}, (0, 0)),
        ({}, {"nvidia.com/gpu": "8"}, {"nvidia.com/gpu": "8"}, (8, 0)),
        ({}, {"nvidia.com/gpu": "8"}, {"nvidia.com/gpu": "6"}, (8, 2)),
        ({}, {"nvidia.com/gpu": "8"}, {}, (8, 8)),
        ({"nvidia.com/gpu.count": "8"}, {"nvidia.com/gpu": "80"}, {"nvidia.com/gpu": "70"}, (8, 1)),
        ({"nvidia.com/gpu.count": "2"}, {"nvidia.com/mig-1g.10gb": "14"}, {"nvidia.com/mig-1g.10gb": "14"}, (2, 0)),
        ({"nvidia.com/gpu.count": "8"}, {"nvidia.com/gpu": "0"}, {"nvidia.com/gpu": "0"}, (0, 0)),
        ({}, {"deviceclass.resource.kubernetes.io/gpu": "8"}, {}, (0, 0)),
    ],
)
def test_gpus_of_the_device_plugin(
    labels: dict[str, str], capacity: dict[str, str], allocatable: dict[str, str], expected: tuple[int, int]
) -> None:
    node = make(
        Node, metadata={"name": "n1", "labels": labels}, status={"capacity": capacity, "allocatable": allocatable}
    )
    assert machines.plugin_gpus(node) == expected


# --- the patch ---

OURS = NodeTaint(key="claimscope.io/lost", value="gpu_lost", effect="NoSchedule")
ENTRY = {"key": "claimscope.io/lost", "value": "gpu_lost", "effect": "NoSchedule"}
RECORD = {"claimscope.io/node-taints": "claimscope.io/lost=gpu_lost:NoSchedule"}
FOREIGN = {"key": "node.kubernetes.io/x", "effect": "NoExecute", "timeAdded": "2026-11-21T11:00:00Z", "new": {"a": 1}}


@pytest.mark.parametrize(
    ("taints", "notes", "after", "expected"),
    [
        (None, None, (), []),
        (None, None, (OURS,), [
            {"op": "add", "path": "/spec/taints", "value": [ENTRY]},
            {"op": "add", "path": "/metadata/annotations", "value": {}},
            {"op": "add", "path": "/metadata/annotations/claimscope.io~1node-taints",
             "value": "claimscope.io/lost=gpu_lost:NoSchedule"},
        ]),
        ([FOREIGN, ENTRY], RECORD, (OURS,), []),
        ([FOREIGN, ENTRY], RECORD, (), [
            {"op": "add", "path": "/spec/taints", "value": [FOREIGN]},
            {"op": "remove", "path": "/metadata/annotations/claimscope.io~1node-taints"},
        ]),
        ([ENTRY], RECORD, (), [
            {"op": "remove", "path": "/spec/taints"},
            {"op": "remove", "path": "/metadata/annotations/claimscope.io~1node-taints"},
        ]),
        ([ENTRY], {"a": "b"}, (), []),  # not recorded as ours
        ([ENTRY], {"a": "b"}, (OURS,), []),
        ([], RECORD, (), [{"op": "remove", "path": "/metadata/annotations/claimscope.io~1node-taints"}]),
    ],
)  # fmt: skip
def test_a_patch_has_what_changes_and_others_as_they_were_read(
    taints: list[Json] | None, notes: dict[str, str] | None, after: tuple[NodeTaint, ...], expected: list[Json]
) -> None:
    node: Json = {"metadata": {"name": "n1"}, "spec": {}}
    if taints is not None:
        node["spec"]["taints"] = taints
    if notes is not None:
        node["metadata"]["annotations"] = notes
    assert apply_nodes.patch_of(node, after) == expected


# --- on a server ---

WITHOUT_RULES = tuple(kind for kind in ALL_KINDS if kind is not DEVICE_TAINT_RULES)
BROKEN = finding("GPU-1-3", "gpu_lost", "lost")


def taints_on(bench: Bench, node: str = "node-1") -> list[Json]:
    found: list[Json] = (bench.server.get(NODES, node) or {})["spec"].get("taints", [])
    return found


def enforced(folder: Path) -> Path:
    file = folder / "policy.yaml"
    file.write_text(ENFORCE)
    return file


async def test_without_the_api_the_node_is_tainted_told_and_freed(tmp_path: Path) -> None:
    async with serving(kinds=WITHOUT_RULES, policy=enforced(tmp_path)) as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        assert taints_on(bench) == [ENTRY]
        assert ("Node", "node-1", "GPUNodeTainted") in bench.events()
        bench.clock.advance(5)
        await bench.leader.round()
        assert bench.leader.value("dra_node_taints", "claimscope.io/lost", "NoSchedule") == 1.0
        shown = command.table(await command.overview(bench.leader.api, bench.leader.notebook))
        assert "node node-1 has claimscope.io/lost=gpu_lost:NoSchedule" in shown.splitlines()
        writes = [each for each in bench.server.write_requests if each.startswith("PATCH /api/v1/nodes/node-1")]
        assert writes.count("PATCH /api/v1/nodes/node-1") == 1
        await bench.says("node-1")
        await bench.leader.round()
        assert taints_on(bench) == []
        assert ("Node", "node-1", "GPUNodeTaintsLifted") in bench.events()


class Overtaken(ApiClient):
    """A client whose reader is overtaken by somebody else's write, once."""

    def __init__(self, server: SimApiServer) -> None:
        super().__init__(OpenAccess(server.url))
        self._server = server
        self._left = 1

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> bytes:
        found = await super().get(path, params)
        if self._left:
            self._left = 0
            node = self._server.get(NODES, "node-1") or {}
            await self._server.put(NODES, {**node, "spec": {"taints": [FOREIGN]}})
        return found


async def test_a_taint_that_somebody_wrote_between_reading_and_writing_is_not_lost() -> None:
    async with serving() as bench:
        api = Overtaken(bench.server)
        with pytest.raises(ApiError) as caught:
            await apply_nodes.write(api, "node-1", "uid-node-1", (OURS,))
        assert caught.value.reason is ApiReason.CONFLICT
        assert taints_on(bench) == [FOREIGN]
        assert await apply_nodes.write(api, "node-1", "uid-node-1", (OURS,)) is True
        assert taints_on(bench) == [FOREIGN, ENTRY]
        assert await apply_nodes.write(api, "node-1", "uid-node-1", (OURS,)) is False
        await api.close()


async def test_a_node_of_the_same_name_that_is_another_one_is_not_tainted() -> None:
    async with serving() as bench:
        with pytest.raises(ApiError) as caught:
            await apply_nodes.write(bench.leader.api, "node-1", "uid-of-before", (OURS,))
        assert caught.value.reason is ApiReason.CONFLICT
        assert taints_on(bench) == []


async def test_a_refused_write_loses_nothing_and_is_tried_again(tmp_path: Path) -> None:
    async with serving(kinds=WITHOUT_RULES, policy=enforced(tmp_path)) as bench:
        await bench.says("node-1", BROKEN)
        bench.server.fail("/api/v1/nodes/node-1", HttpFault(status=403))
        await bench.leader.round()
        assert taints_on(bench) == []
        assert bench.leader.value("claimscope_controller_taint_writes_total", "node_taint", "forbidden") == 1.0
        await bench.leader.round()
        assert taints_on(bench) == [ENTRY]


async def test_uninstalling_takes_our_taints_alone(tmp_path: Path) -> None:
    async with serving(kinds=WITHOUT_RULES, policy=enforced(tmp_path)) as bench:
        await bench.server.put(NODES, {**(bench.server.get(NODES, "node-1") or {}), "spec": {"taints": [FOREIGN]}})
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        await bench.leader.round()
        done = (await lift(bench, all_of_ours=True)).done
        assert "took the taints from node node-1" in done
        assert taints_on(bench) == [FOREIGN]
        assert "claimscope" not in json.dumps((bench.server.get(NODES, "node-1") or {})["metadata"].get("annotations"))
        await bench.says("node-1", BROKEN)
        await bench.leader.round()  # a controller that still runs respects it
        assert taints_on(bench) == [FOREIGN]
