"""NoExecute: by opt-in, for rules after which nothing runs any more, and as the second step after NoSchedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from claim_objects import allocated
from claimscope.claims.model import DeviceKey
from claimscope.health.model import Severity
from claimscope.sim.api.kinds import PODS, RESOURCE_CLAIMS
from claimscope.sim.evictions import DeviceTaintEvictions
from claimscope.taints.policy import RulePolicy, read_policy
from claimscope.yamlfile import ConfigError
from taints_bench import Bench, finding, serving
from taints_help import DRIVER, START, World, a_finding, gpu

LOST = Severity.LOST
SICK = gpu(1, 3)
FIRST, SECOND = DeviceKey(DRIVER, "n1", "gpu-3"), DeviceKey(DRIVER, "n2", "gpu-0")
EVICTING = "mode: enforce\nrules: {gpu_lost: {no_execute: true}}\nno_execute: {after_seconds: 300, pods_max: 2}"


# --- who may ---


@pytest.mark.parametrize("rule", ["gpu_lost", "gpu_missing", "xid_lost", "recovery_action_reboot"])
def test_rules_after_which_nothing_runs_may_delete_pods(rule: str) -> None:
    policy = read_policy(f"rules: {{{rule}: {{no_execute: true}}}}", "policy.yaml", START)
    assert policy.rules == {rule: RulePolicy(no_execute=True)}


@pytest.mark.parametrize("rule", ["xid_fatal", "thermal_slowdown", "recovery_action", "nvlink_down"])
def test_no_other_rule_may(rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_policy(f"rules:\n  {rule}:\n    no_execute: true\n", "policy.yaml", START)
    assert str(caught.value) == (
        f"policy.yaml:3:17: `{rule}` may not delete pods: `no_execute` is for `gpu_lost`, `gpu_missing`, `xid_lost`, "
        "`recovery_action_reboot`; remove it"
    )


# --- when ---


def test_it_needs_the_opt_in_and_comes_second() -> None:
    world = World(EVICTING)
    world.find(a_finding(SICK, "gpu_lost", LOST), a_finding(gpu(2, 0)))
    world.extra = {"holders": {FIRST: 2, SECOND: 1}}
    world.round()
    assert world.taints() == ["gpu-0@n2 unhealthy=xid_fatal:NoSchedule", "gpu-3@n1 lost=gpu_lost:NoSchedule"]
    assert world.round(299) == []
    assert world.held() == []
    assert world.round(1) == ["update gpu-3@n1 lost=gpu_lost:NoExecute"]
    assert world.round(3600) == []


@pytest.mark.parametrize(
    ("pods", "text"),
    [
        (None, "which pods hold the device is not known"),
        (3, "3 pods hold the device, and at most 2 may be deleted"),
    ],
)
def test_it_is_held_while_pods_are_unknown_or_too_many(pods: int | None, text: str) -> None:
    world = World(EVICTING)
    world.find(a_finding(SICK, "gpu_lost", LOST))
    world.extra = {"holders": {} if pods is None else {FIRST: pods}}
    world.round()
    assert world.round(3600) == []
    assert [(held.fence.uuid, held.reason, held.text) for held in world.last.held] == [(SICK, "evict", text)]


def test_where_nobody_holds_the_device_there_is_nothing_to_do_and_to_say() -> None:
    world = World(EVICTING)
    world.find(a_finding(SICK, "gpu_lost", LOST))
    world.extra = {"holders": {FIRST: 0}}
    world.round()
    assert world.round(3600) == []
    assert world.held() == []


def test_it_waits_until_the_cluster_has_said_that_it_sees_the_rule() -> None:
    world = World(EVICTING)
    world.answers = False
    world.find(a_finding(SICK, "gpu_lost", LOST))
    world.extra = {"holders": {FIRST: 1}}
    world.round()
    assert world.round(3600) == []
    assert world.held() == [(SICK, "evict")]


def test_one_gpu_is_evicted_at_a_time() -> None:
    world = World(EVICTING)
    world.extra = {"holders": {FIRST: 1, SECOND: 1}}
    world.find(a_finding(SICK, "gpu_lost", LOST), a_finding(gpu(2, 0), "gpu_lost", LOST, since=START + 1))
    world.round()
    assert world.round(300) == ["update gpu-3@n1 lost=gpu_lost:NoExecute"]
    assert world.round(300) == []
    assert [(held.fence.uuid, held.text) for held in world.last.held] == [
        (gpu(2, 0), "pods of another device are being deleted, and one device goes at a time")
    ]
    world.extra = {"holders": {FIRST: 0, SECOND: 1}}
    assert world.round(5) == ["update gpu-0@n2 lost=gpu_lost:NoExecute"]


def test_a_pause_keeps_it_away() -> None:
    world = World(EVICTING + "\npause: [{author: ann, node: n1, until: 2023-11-14T23:00:00Z}]")
    world.extra = {"holders": {FIRST: 1}}
    world.policy, policy = read_policy(EVICTING, "policy.yaml", START), world.policy
    world.find(a_finding(SICK, "gpu_lost", LOST))
    world.round()
    world.policy = policy
    assert world.round(600) == []
    assert world.held() == [(SICK, "paused")]
    assert world.round(3600) == ["update gpu-3@n1 lost=gpu_lost:NoExecute"]


def test_without_the_opt_in_it_goes_back() -> None:
    world = World(EVICTING)
    world.extra = {"holders": {FIRST: 1}}
    world.find(a_finding(SICK, "gpu_lost", LOST))
    world.round()
    world.round(300)
    world.policy = read_policy("mode: enforce", "policy.yaml", START)
    assert world.round(5) == ["update gpu-3@n1 lost=gpu_lost:NoSchedule"]
    assert world.round(3600) == []


# --- on a cluster whose eviction controller works ---

POLICY = "mode: enforce\nrules: {gpu_lost: {no_execute: true}}\n"
FOREVER = {"operator": "Exists", "effect": "NoExecute"}


async def hold(bench: Bench, name: str, *tolerations: dict[str, Any]) -> None:
    """A pod that works on gpu-3 of node-1."""
    await bench.server.put(PODS, {
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-{name}"}, "spec": {"nodeName": "node-1"},
    })
    await bench.server.put(
        RESOURCE_CLAIMS, allocated(f"{name}-claim", ("node-1", "gpu-3"), user=name, tolerations=list(tolerations))
    )


async def let_go(bench: Bench, name: str) -> None:
    """The kubelet has ended a pod, and the claim controller has taken its reservation away."""
    await bench.server.delete(PODS, name, "team")
    await bench.server.put(RESOURCE_CLAIMS, allocated(f"{name}-claim", ("node-1", "gpu-3")))


async def pass_time(bench: Bench, seconds: float) -> None:
    bench.clock.advance(seconds)
    await bench.says("node-1", finding("GPU-1-3", "gpu_lost", "lost"))
    await bench.says("node-2")
    await bench.leader.round()


def evictor(bench: Bench) -> DeviceTaintEvictions:
    return DeviceTaintEvictions(bench.server, lambda: bench.clock.wall_ns() / 1e9)


def reasons(bench: Bench) -> list[tuple[str, str]]:
    return [
        (condition["status"], condition["reason"])
        for rule in bench.rules().values() for condition in rule.get("status", {}).get("conditions", ())
    ]


async def test_the_pod_on_a_lost_gpu_goes_five_minutes_after_new_work_was_kept_away(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    async with serving(policy=file) as bench:
        evictions = evictor(bench)
        await hold(bench, "worker")
        await hold(bench, "watcher", FOREVER)  # is not counted, and stays
        await pass_time(bench, 0)
        assert evictions.step() == []
        assert reasons(bench) == [("False", "OtherEffect")]
        await pass_time(bench, 299)
        assert bench.effects() == {"gpu-3": "lost NoSchedule"}
        await pass_time(bench, 1)
        assert bench.effects() == {"gpu-3": "lost NoExecute"}
        assert evictions.step() == ["worker"]
        assert reasons(bench) == [("True", "PodsPendingEviction")]
        assert "deletionTimestamp" in (bench.server.get(PODS, "worker", "team") or {})["metadata"]
        assert "deletionTimestamp" not in (bench.server.get(PODS, "watcher", "team") or {})["metadata"]
        await let_go(bench, "worker")
        assert evictions.step() == []
        assert reasons(bench) == [("False", "Completed")]
        writes = bench.rule_writes()
        await pass_time(bench, 60)
        assert bench.rule_writes() == writes
        assert bench.leader.value("dra_device_taints_applied_total", "claimscope.io/lost", "NoExecute") == 1.0


async def test_more_pods_than_the_cap_are_left_alone_and_that_is_said(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    async with serving(policy=file) as bench:
        evictions = evictor(bench)
        await hold(bench, "one")
        await hold(bench, "two", {**FOREVER, "tolerationSeconds": 60})  # would go a minute later, so it counts
        for _ in range(3):
            await pass_time(bench, 300)
            assert evictions.step() == []
        assert bench.effects() == {"gpu-3": "lost NoSchedule"}
        assert bench.leader.value("dra_taint_held", "evict") == 1.0
        assert bench.events().count(("Node", "node-1", "GPUTaintHeld")) == 1
        await let_go(bench, "two")
        await pass_time(bench, 5)
        assert bench.effects() == {"gpu-3": "lost NoExecute"}


async def test_taking_the_opt_in_back_ends_it(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    async with serving(policy=file) as bench:
        evictions = evictor(bench)
        await hold(bench, "worker")
        await pass_time(bench, 0)
        evictions.step()
        await pass_time(bench, 300)
        assert bench.effects() == {"gpu-3": "lost NoExecute"}
        file.write_text("mode: enforce\n")
        await pass_time(bench, 5)
        assert bench.effects() == {"gpu-3": "lost NoSchedule"}
        assert evictions.step() == []
        assert bench.server.get(PODS, "worker", "team") is not None


async def test_without_an_eviction_controller_no_pod_is_promised_away(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    async with serving(policy=file) as bench:
        await hold(bench, "worker")
        for _ in range(3):
            await pass_time(bench, 300)
        assert bench.effects() == {"gpu-3": "lost NoSchedule"}
        assert bench.leader.value("dra_taint_held", "evict") == 1.0
