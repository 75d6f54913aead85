"""While a machine is not settled, what measurements say of its GPUs puts up nothing that keeps work away."""

from __future__ import annotations

import pytest

from claimscope.clock import ManualClock
from claimscope.health.model import Severity
from claimscope.kube.objects import Node
from claimscope.sim.api.kinds import NODES
from claimscope.taints.apply import api_time
from claimscope.taints.machines import Boots, driver_changes
from claimscope.taints.policy import read_policy
from inventory_objects import make
from taints_bench import Json, finding, serving
from taints_help import START, World, a_finding, gpu

LOST, DEGRADED = Severity.LOST, Severity.DEGRADED
SICK = gpu(1, 3)
UPGRADE = "nvidia.com/gpu-driver-upgrade-state"
WHY = "the GPU driver of node n1 is being upgraded (pod-restart-required)"


# --- when ---


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("", ""),
        ("upgrade-done", ""),
        ("upgrade-required", ""),  # waits for its turn, perhaps for days: nothing has been touched
        ("upgrade-failed", ""),  # stays so until a person looks after it
        *(
            (state, f"the GPU driver of node n1 is being upgraded ({state})")
            for state in (
                "cordon-required", "wait-for-jobs-required", "pod-deletion-required", "drain-required",
                "node-maintenance-required", "post-maintenance-required", "pod-restart-required",
                "validation-required", "uncordon-required", "a-state-of-tomorrow",
            )
        ),
    ],
)  # fmt: skip
def test_a_driver_upgrade_by_the_gpu_operator(state: str, expected: str) -> None:
    node = make(Node, metadata={"name": "n1", "labels": {UPGRADE: state}})
    assert driver_changes(node, booted_just_now=False) == expected


def test_a_boot_is_told() -> None:
    node = make(Node, metadata={"name": "n1"})
    assert driver_changes(node, booted_just_now=True) == "node n1 booted less than 10 minutes ago"


def booted(boot_id: str) -> Node:
    found: Node = make(Node, metadata={"name": "n1"}, status={"nodeInfo": {"bootID": boot_id}})
    return found


def test_a_boot_is_another_boot_id_than_before_and_is_over_after_ten_minutes() -> None:
    boots, clock = Boots(), ManualClock(monotonic=10**12)

    def look(boot_id: str, seconds: float) -> bool:
        clock.advance(seconds)
        return boots.just_now(booted(boot_id), clock.monotonic_ns(), clock.wall_ns() / 1e9)

    assert look("A", 0) is False  # the first one tells nothing
    assert look("A", 100) is False
    assert look("B", 100) is True
    assert look("B", 599) is True
    assert look("", 0) is True  # a kubelet that does not say it
    assert look("B", 1) is False
    assert look("C", 1) is True


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, True), (599, True), (601, False), (-5, True)]  # a clock that is ahead
)
def test_the_boot_that_is_seen_first_is_as_old_as_the_readiness_of_its_kubelet(seconds: int, expected: bool) -> None:
    clock = ManualClock(monotonic=10**12)
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": api_time(clock.wall_ns() / 1e9 - seconds)}
    node = make(Node, metadata={"name": "n1"}, status={"nodeInfo": {"bootID": "A"}, "conditions": [ready]})
    boots = Boots()
    assert boots.just_now(node, clock.monotonic_ns(), clock.wall_ns() / 1e9) is expected
    clock.advance(601)
    assert boots.just_now(node, clock.monotonic_ns(), clock.wall_ns() / 1e9) is False


# --- what it holds ---


@pytest.mark.parametrize(
    ("rule", "severity", "expected"),
    [
        # Inferred: announced, and blocks nothing.
        ("thermal_slowdown_lasting", Severity.UNHEALTHY, "unhealthy=thermal_slowdown_lasting:None"),
        ("ecc_uncorrected_dram", Severity.UNHEALTHY, "unhealthy=ecc_uncorrected_dram:None"),
        # What a driver that is exchanged looks like: not even that.
        ("gpu_missing", LOST, None),
        ("driver_call_hangs", DEGRADED, None),
        ("fabric_not_ready", Severity.UNHEALTHY, None),
        ("fabric_unhealthy", Severity.UNHEALTHY, None),
        ("fabric_degraded", DEGRADED, None),
        # What the driver or the hardware itself says.
        ("xid_fatal", Severity.UNHEALTHY, "unhealthy=xid_fatal:NoSchedule"),
        ("recovery_action", Severity.UNHEALTHY, "unhealthy=recovery_action:NoSchedule"),
        ("gpu_lost", LOST, "lost=gpu_lost:NoSchedule"),
        ("pcie_width", DEGRADED, "degraded=pcie_width:None"),
    ],
)
def test_what_is_put_up_during_an_upgrade(rule: str, severity: Severity, expected: str | None) -> None:
    world = World()
    world.unsettled = {"n1": WHY}
    world.find(a_finding(SICK, rule, severity))
    world.round()
    assert world.taints() == ([] if expected is None else [f"gpu-3@n1 {expected}"])
    held = [(each.reason, each.text) for each in world.last.held]
    blocked = expected is not None and (expected.endswith("NoSchedule") or severity is DEGRADED)
    assert set(held) == (set() if blocked else {("upgrade", WHY)})
    world.unsettled = {}
    world.round(5)
    effect = "None" if severity is DEGRADED else "NoSchedule"
    assert world.taints() == [f"gpu-3@n1 {severity.value}={rule}:{effect}"]


def test_the_drivers_word_beside_it_is_enough() -> None:
    world = World()
    world.unsettled = {"n1": WHY}
    world.find(a_finding(SICK, "gpu_missing", LOST), a_finding(SICK, "xid_lost", LOST))
    world.round()
    assert world.taints() == ["gpu-3@n1 lost=gpu_missing:NoSchedule"]


def test_what_stands_stays_and_what_is_over_is_lifted() -> None:
    world = World()
    world.find(a_finding(SICK, "gpu_missing", LOST), a_finding(gpu(1, 4), "ecc_uncorrected_dram"))
    world.round()
    world.unsettled = {"n1": WHY}
    assert world.round(5) == []
    world.clear(SICK)
    assert world.round(5) == ["delete gpu-3@n1 lost=gpu_missing:NoSchedule"]


def test_other_nodes_are_not_concerned() -> None:
    world = World()
    world.unsettled = {"n2": WHY}
    world.find(a_finding(SICK, "ecc_uncorrected_dram"))
    assert world.round() == ["create gpu-3@n1 unhealthy=ecc_uncorrected_dram:NoSchedule"]


def test_a_node_taint_waits_as_well() -> None:
    world = World(gpus=0)
    world.policy = read_policy(
        "mode: enforce\nnode_taints: enforce\nbudgets: {fleet_share: 1.0, group_share: 1.0}", "policy.yaml", START
    )
    world.plugin = dict.fromkeys(world.found, (8, 0))
    world.unsettled = {"n1": WHY}
    world.find(*(a_finding(gpu(1, index), "fabric_not_ready") for index in range(8)))
    world.round()
    assert world.on_nodes() == {}
    assert [held.reason for held in world.last.held] == ["upgrade"]
    world.unsettled = {}
    world.round(5)
    assert world.on_nodes() == {"n1": ["unhealthy=fabric_not_ready:NoSchedule"]}


# --- on a server ---


async def test_a_driver_upgrade_from_its_label_to_its_end() -> None:
    async with serving() as bench:
        async def label(state: str) -> None:
            node: Json = bench.server.get(NODES, "node-1") or {}
            node["metadata"]["labels"] = {UPGRADE: state}
            await bench.server.put(NODES, node)

        missing = [finding(f"GPU-1-{gpu}", "gpu_missing", "lost") for gpu in range(8)]
        await label("pod-restart-required")
        await bench.says("node-1", *missing)
        await bench.leader.round()
        assert bench.effects() == {}
        assert bench.leader.value("dra_taint_held", "upgrade") == 8.0
        assert (bench.events(), bench.conditions("node-1")) == ([], {"Ready": ("True", "KubeletReady")})
        await label("upgrade-done")
        await bench.says("node-1")
        await bench.leader.round()
        assert bench.rule_writes() == []
        assert bench.leader.value("dra_taint_held", "upgrade") == 0.0


async def test_a_cordon_holds_what_is_inferred_and_hides_nothing() -> None:
    async with serving() as bench:
        node: Json = bench.server.get(NODES, "node-1") or {}
        await bench.server.put(NODES, {**node, "spec": {"unschedulable": True}})
        await bench.says("node-1", finding("GPU-1-3", "fabric_not_ready"), finding("GPU-1-4", "thermal_shutdown"))
        await bench.leader.round()
        assert bench.effects() == {"gpu-4": "unhealthy None"}
        assert bench.conditions("node-1")["GPUUnhealthy"] == ("True", "GPUFindings")
        await bench.server.put(NODES, {**node, "spec": {}})
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": "unhealthy NoSchedule", "gpu-4": "unhealthy None"}


async def test_a_reboot_holds_what_is_inferred_for_ten_minutes() -> None:
    async with serving() as bench:
        async def boot(boot_id: str) -> None:
            node: Json = bench.server.get(NODES, "node-1") or {}
            node["status"]["nodeInfo"] = {"bootID": boot_id}
            await bench.server.put(NODES, node)

        await boot("A")
        await bench.leader.round()
        await boot("B")
        await bench.says("node-1", finding("GPU-1-3", "nvlink_recovery_failed"))
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": "unhealthy None"}
        bench.clock.advance(599)
        await bench.all_say({"node-1": [finding("GPU-1-3", "nvlink_recovery_failed")]})
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": "unhealthy None"}
        bench.clock.advance(1)
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": "unhealthy NoSchedule"}


# --- nodes that nobody watches ---


async def test_nodes_are_counted_by_whether_their_agent_is_heard() -> None:
    async with serving(nodes=3) as bench:
        await bench.server.put(NODES, {
            "metadata": {"name": "node-9", "uid": "uid-node-9"}, "spec": {},
            "status": {"capacity": {"nvidia.com/gpu": "8"}, "allocatable": {"nvidia.com/gpu": "8"}},
        })  # fmt: skip
        await bench.leader.round()
        bench.clock.advance(121)
        await bench.says("node-1")
        await bench.says("node-2")
        await bench.leader.round()
        counts = {state: bench.leader.value("dra_gpu_nodes", state) for state in ("heard", "silent", "absent")}
        assert counts == {"heard": 2.0, "silent": 1.0, "absent": 1.0}


async def test_a_node_that_is_gone_is_not_counted_although_its_lease_stays() -> None:
    async with serving(nodes=3) as bench:
        await bench.leader.round()
        await bench.server.delete(NODES, "node-3")
        bench.clock.advance(121)
        await bench.says("node-1")
        await bench.says("node-2")
        await bench.leader.round()
        counts = {state: bench.leader.value("dra_gpu_nodes", state) for state in ("heard", "silent", "absent")}
        assert counts == {"heard": 2.0, "silent": 0.0, "absent": 0.0}


async def test_silence_is_told_and_told_again_each_day() -> None:
    async with serving() as bench:
        told = ("Node", "node-1", "GPUUnmonitored")
        await bench.leader.round()
        assert told not in bench.events()
        for hours, expected in ((1, 1), (1, 1), (21, 1), (2, 2), (10, 2), (14, 3)):
            bench.clock.advance(hours * 3600)
            await bench.says("node-2")
            await bench.leader.round()
            assert bench.events().count(told) == expected
        await bench.says("node-1")
        await bench.leader.round()
        bench.clock.advance(121)
        await bench.says("node-2")
        await bench.leader.round()
        assert bench.events().count(told) == 4
        assert bench.events().count(("Node", "node-2", "GPUUnmonitored")) == 0
