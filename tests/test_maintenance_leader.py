"""Maintenance as the leader carries it out on a simulated API server, with a node's agent beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from claim_objects import allocated
from claimscope.sim.api.kinds import (
    ALL_KINDS,
    DEVICE_TAINT_RULES,
    EVENTS,
    LEASES,
    NODES,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
)
from claimscope.sim.api.server import HttpFault, Kind
from claimscope.taints.model import Mode
from claimscope.taints.notebook import MEMORY, PAUSE
from maintenance_help import NodeAgent, annotate, confirm, message
from taints_bench import Bench, finding, serving

ANNOUNCED = {f"gpu-{gpu}": "maintenance None" for gpu in range(8)}
FENCED = {f"gpu-{gpu}": "maintenance NoSchedule" for gpu in range(8)}
WITHOUT_RULES = tuple(kind for kind in ALL_KINDS if kind is not DEVICE_TAINT_RULES)


async def rounds(bench: Bench, agent: NodeAgent, seconds: float, step: float = 10.0) -> None:
    """Lets time pass: the agent renews its Lease, the cluster confirms taints, the leader decides, each `step`."""
    passed = 0.0
    while passed < seconds:
        bench.clock.advance(step)
        passed += step
        await agent.beat()
        await confirm(bench)
        await bench.leader.round()


def slice_of(bench: Bench, node: str = "node-1") -> dict[str, Any]:
    return next(each for each in bench.objects(RESOURCE_SLICES) if each["spec"]["pool"]["name"] == node)


def state(bench: Bench, node: str = "node-1") -> tuple[str, str] | None:
    return bench.conditions(node).get("GPUMaintenanceReady")


async def ready(bench: Bench, agent: NodeAgent) -> None:
    await annotate(bench, "node-1", maintenance="fan swap", maintenance_by="ann")
    await rounds(bench, agent, 60)
    assert state(bench) == ("True", "Ready")
    assert agent.nvml.released


@pytest.mark.parametrize("mode", [Mode.ANNOUNCE, Mode.ENFORCE])
async def test_from_the_annotation_to_offline_and_back(mode: Mode) -> None:
    async with serving(mode) as bench:
        agent = NodeAgent(bench, processes=2)
        await bench.server.put(RESOURCE_CLAIMS, allocated("train", ("node-1", "gpu-3"), user="train-0"))
        await annotate(bench, "node-1", maintenance="fan swap", maintenance_by="ann")
        await bench.leader.round()
        assert bench.effects() == ANNOUNCED
        assert state(bench) == ("False", "Announced")
        assert bench.leader.value("dra_node_maintenance_state", "node-1", "announced") == 1.0
        await rounds(bench, agent, 20)
        assert bench.effects() == FENCED
        assert state(bench) == ("False", "WaitingForClaims")
        assert message(bench, "node-1") == ("Held by claim team/train (pods train-0). Maintenance by ann: fan swap")
        assert agent.nvml.did == ["count True"]  # told early, so that it is quick later
        (rule, *_) = bench.rules().values()
        assert rule["metadata"]["labels"]["claimscope.io/severity"] == "maintenance"
        assert rule["metadata"]["annotations"]["claimscope.io/maintenance-reason"] == "fan swap"

        await bench.server.put(RESOURCE_CLAIMS, allocated("train", ("node-1", "gpu-3")))
        await rounds(bench, agent, 30)
        assert state(bench) == ("False", "WaitingForProcesses")
        agent.processes = 0
        await rounds(bench, agent, 30)
        assert state(bench) == ("True", "Ready")
        assert agent.nvml.did == ["count True", "count True", "release"]
        assert bench.effects() == FENCED
        assert bench.leader.value("dra_taint_fences", "maintenance", "NoSchedule") == 8.0

        await annotate(bench, "node-1", maintenance=None, maintenance_by=None)
        await rounds(bench, agent, 60)
        assert state(bench) == ("False", "Verifying")
        assert agent.nvml.did[-2:] == ["acquire", "count False"]
        assert bench.effects() == FENCED
        await rounds(bench, agent, 600)
        assert bench.effects() == {}
        assert state(bench) is None
        assert "claimscope.io/maintenance-ask" not in agent.notes()
        assert bench.leader.value("dra_node_maintenance_state", "node-1", "verifying") is None
        assert [each for each in bench.events() if "Maintenance" in each[2]] == [
            *(("Node", "node-1", f"GPUMaintenance{each}") for each in (
                "Announced", "Over", "Ready", "Verifying", "WaitingForAgent", "WaitingForClaims",
                "WaitingForProcesses", "WaitingForTaints",
            )),
            ("Pod", "train-0", "GPUMaintenancePlanned"),
        ]  # fmt: skip


async def test_a_deadline_that_is_missed_is_said_once() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        await bench.server.put(RESOURCE_CLAIMS, allocated("train", ("node-1", "gpu-3"), user="train-0"))
        await annotate(bench, "node-1", maintenance="fan swap", maintenance_deadline="2026-11-21T11:25:00Z")
        await rounds(bench, agent, 80)
        assert state(bench) == ("False", "WaitingForClaims")
        assert bench.leader.value("dra_node_maintenance_deadline_missed", "node-1") == 0.0
        await rounds(bench, agent, 60)
        assert state(bench) == ("False", "DeadlineMissed")
        assert message(bench, "node-1") == (
            "The deadline 2026-11-21T11:25:00Z has passed. Held by claim team/train (pods train-0). "
            "Maintenance: fan swap"
        )
        assert bench.leader.value("dra_node_maintenance_deadline_missed", "node-1") == 1.0
        assert bench.events().count(("Node", "node-1", "GPUMaintenanceDeadlineMissed")) == 1
        other = bench.another("two")
        await other.round()
        assert bench.events().count(("Node", "node-1", "GPUMaintenanceDeadlineMissed")) == 1


async def test_a_deadline_that_is_no_time_is_said_and_not_kept() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        await annotate(bench, "node-1", maintenance="fan swap", maintenance_deadline="tomorrow")
        await rounds(bench, agent, 20)
        assert "The deadline `tomorrow` is no RFC 3339 time" in message(bench, "node-1")
        assert ("Node", "node-1", "GPUMaintenanceDeadlineUnreadable") in bench.events()
        await rounds(bench, agent, 40)
        assert state(bench) == ("True", "Ready")


async def test_who_changes_their_mind_has_the_node_back_at_once() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        await bench.server.put(RESOURCE_CLAIMS, allocated("train", ("node-1", "gpu-3"), user="train-0"))
        await annotate(bench, "node-1", maintenance="fan swap")
        await rounds(bench, agent, 30)
        assert bench.effects() == FENCED
        await annotate(bench, "node-1", maintenance=None)
        await rounds(bench, agent, 20)
        assert bench.effects() == {}
        assert state(bench) is None
        assert "release" not in agent.nvml.did


async def test_the_node_is_off_and_reboots_and_a_board_is_swapped() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        await ready(bench, agent)
        slices = slice_of(bench)
        meta = slices["metadata"]
        await bench.server.delete(RESOURCE_SLICES, meta["name"], meta.get("namespace", ""))
        for _ in range(5):  # off: nobody renews
            bench.clock.advance(100)
            await bench.leader.round()
        assert state(bench) == ("True", "Ready")
        assert bench.effects() == FENCED
        # It comes back with another board in the place of gpu-3, and gpu-0 and gpu-1 have changed their names.
        devices = slices["spec"]["devices"]
        devices[3]["attributes"]["uuid"]["string"] = "GPU-new"
        devices[0]["name"], devices[1]["name"] = devices[1]["name"], devices[0]["name"]
        await bench.server.put(RESOURCE_SLICES, slices)
        await rounds(bench, agent, 20)
        assert bench.effects() == FENCED
        uuids = {each["metadata"]["annotations"]["claimscope.io/uuid"] for each in bench.rules().values()}
        assert "GPU-new" in uuids
        assert "GPU-1-3" not in uuids
        assert bench.rule("gpu-0")["metadata"]["annotations"]["claimscope.io/uuid"] == "GPU-1-1"
        await annotate(bench, "node-1", maintenance=None)
        await rounds(bench, agent, 660)
        assert bench.effects() == {}


async def test_fewer_gpus_or_a_finding_keep_it_fenced_until_a_person_says_so() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        await ready(bench, agent)
        await annotate(bench, "node-1", maintenance=None)
        await rounds(bench, agent, 60)
        bench.clock.advance(10)
        await agent.beat(finding("GPU-1-5", "row_remap_pending", "degraded"))
        await bench.leader.round()
        assert state(bench) == ("False", "VerifyFailed")
        assert message(bench, "node-1").startswith("Findings: GPU-1-5 (row_remap_pending).")
        assert ("Node", "node-1", "GPUMaintenanceVerifyFailed") in bench.events()
        slices = slice_of(bench)
        del slices["spec"]["devices"][7]
        await bench.server.put(RESOURCE_SLICES, slices)
        await rounds(bench, agent, 700)
        assert state(bench) == ("False", "VerifyFailed")
        assert message(bench, "node-1").startswith("7 of 8 GPUs are published.")
        assert len(bench.effects()) == 7
        await annotate(bench, "node-1", maintenance_unverified="ann 2026-11-21T12:00:00Z")
        await rounds(bench, agent, 20)
        assert bench.effects() == {}
        assert state(bench) is None


async def test_a_gpu_that_is_given_back_sick_is_fenced_for_that_before_the_taints_go() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        await ready(bench, agent)
        await annotate(bench, "node-1", maintenance=None, maintenance_unverified="ann now")
        bench.clock.advance(10)
        await agent.beat(finding("GPU-1-5"))
        await bench.leader.round()
        assert bench.effects() == {"gpu-5": "unhealthy NoSchedule"}
        writes = bench.rule_writes()
        assert next(n for n, each in enumerate(writes) if "unhealthy" in each or each.startswith("POST")) < next(
            n for n, each in enumerate(writes) if each.startswith("DELETE")
        )


async def test_the_next_leader_goes_on_where_this_one_stopped() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        await ready(bench, agent)
        rules, events = bench.rules(), bench.events()
        bench.leader.leads = False
        bench.leader = bench.another("two")
        await rounds(bench, agent, 30)
        assert state(bench) == ("True", "Ready")
        assert (bench.rules(), bench.events()) == (rules, events)
        assert agent.nvml.did.count("release") == 1


async def test_a_leader_without_memory_verifies_before_it_lifts() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        await ready(bench, agent)
        await annotate(bench, "node-1", maintenance=None)
        await bench.server.put(
            LEASES,
            {
                "metadata": {"name": "claimscope-controller", "namespace": "claimscope"},
                "spec": {"holderIdentity": "two"},
            },
        )
        bench.leader = bench.another("two")
        await rounds(bench, agent, 300)
        assert bench.effects() == FENCED
        assert state(bench) == ("False", "Verifying")
        await rounds(bench, agent, 400)
        assert bench.effects() == {}


async def test_one_node_at_a_time() -> None:
    async with serving(nodes=3) as bench:
        agents = [NodeAgent(bench, f"node-{number}") for number in (1, 2, 3)]
        for agent in agents:
            await annotate(bench, agent.node, maintenance="firmware")
        for _ in range(6):
            bench.clock.advance(10)
            for agent in agents:
                await agent.beat()
            await confirm(bench)
            await bench.leader.round()
        assert [state(bench, agent.node) for agent in agents] == [
            ("True", "Ready"), ("False", "WaitingForBudget"), ("False", "WaitingForBudget"),
        ]  # fmt: skip
        assert message(bench, "node-2") == (
            "Nodes of the fleet under maintenance: 1, and at most 1 may be. Maintenance: firmware"
        )
        assert bench.effects() == FENCED
        assert len(agents[1].notes()) == 2  # nothing is asked of it yet


async def test_somebody_takes_a_taint_away_and_it_is_put_up_again() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        await ready(bench, agent)
        await bench.server.delete(DEVICE_TAINT_RULES, bench.rule("gpu-2")["metadata"]["name"])
        await rounds(bench, agent, 20)
        assert bench.effects() == FENCED


async def test_paused_nothing_new_is_put_up() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        await bench.leader.notebook.write({"claimscope.io/pause": "ann"})
        await annotate(bench, "node-1", maintenance="fan swap")
        await rounds(bench, agent, 30)
        assert bench.rules() == {}
        assert bench.leader.value("dra_node_maintenance_state", "node-1", "announced") == 1.0
        assert bench.leader.value("dra_taint_held", "paused") == 8.0
        await bench.leader.notebook.write({"claimscope.io/pause": None})
        await rounds(bench, agent, 30)
        assert bench.effects() == FENCED


async def test_findings_of_a_node_under_maintenance_put_up_nothing_and_count_nowhere() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        await ready(bench, agent)
        bench.clock.advance(10)
        await agent.beat(*(finding(f"GPU-1-{gpu}", "xid_lost", "lost") for gpu in range(8)))
        await bench.leader.round()
        assert bench.effects() == FENCED
        assert bench.leader.value("dra_taint_budget_used", "fleet") == 0.0
        assert bench.leader.value("dra_taint_budget_limit", "fleet") == 1.0  # of the other node's eight
        assert bench.leader.value("claimscope_controller_taint_breaker_state", "closed") == 1.0


@pytest.mark.parametrize(
    ("mode", "options", "said"),
    [
        (Mode.OBSERVE, {}, "No taint is put up (the mode is observe)."),
        (
            Mode.ANNOUNCE,
            {"kinds": WITHOUT_RULES},
            "Its devices are not tainted (the API server serves devicetaintrules "
            "neither as v1 nor as v1beta2: no device is tainted). The Node is.",
        ),
        (
            Mode.ENFORCE,
            {"git_version": "v1.36.1"},
            "Its devices are not tainted (kube-scheduler of Kubernetes v1.36.1 exits while any DeviceTaintRule exists",
        ),
    ],
)
async def test_where_devices_may_not_be_tainted_it_goes_on_and_says_so(
    mode: Mode, options: dict[str, Any], said: str
) -> None:
    async with serving(mode, **options) as bench:
        agent = NodeAgent(bench)
        await annotate(bench, "node-1", maintenance="fan swap")
        await rounds(bench, agent, 50)
        if mode is Mode.OBSERVE:
            assert state(bench) == ("False", "WaitingForTaints")
            assert message(bench, "node-1") == f"{said} Cordon the node. Maintenance: fan swap"
            assert "release" not in agent.nvml.did
            await cordon(bench)
            await rounds(bench, agent, 30)
        assert state(bench) == ("True", "Ready")
        assert said in message(bench, "node-1")
        assert not bench.rule_writes()
        taints = (bench.server.get(NODES, "node-1") or {}).get("spec", {}).get("taints") or []
        assert [each["key"] for each in taints] == ([] if mode is Mode.OBSERVE else ["claimscope.io/maintenance"])
        assert set(bench.conditions("node-1")) == {"Ready", "GPUMaintenanceReady"}
        await annotate(bench, "node-1", maintenance=None)
        await rounds(bench, agent, 660)
        assert state(bench) is None
        assert "claimscope.io/maintenance-ask" not in agent.notes()
        node = bench.server.get(NODES, "node-1") or {}
        assert node.get("spec", {}).get("taints", []) == []


async def test_pods_of_a_device_plugin_are_waited_for() -> None:
    async with serving() as bench:
        found = bench.server.get(NODES, "node-1") or {}
        found["status"] |= {"capacity": {"nvidia.com/gpu": "8"}, "allocatable": {"nvidia.com/gpu": "8"}}
        await bench.server.put(NODES, found)
        agent = NodeAgent(bench)
        await annotate(bench, "node-1", maintenance="fan swap")
        bench.leader.cluster.apply("pods", plugin_pod(), True)
        await rounds(bench, agent, 30)
        assert state(bench) == ("False", "WaitingForClaims")
        assert message(bench, "node-1").startswith("Held by pod team/old.")
        bench.leader.cluster.apply("pods", plugin_pod(), False)
        await rounds(bench, agent, 40)
        assert state(bench) == ("True", "Ready")


async def cordon(bench: Bench) -> None:
    found = bench.server.get(NODES, "node-1") or {}
    await bench.server.put(NODES, {**found, "spec": {"unschedulable": True}})


async def with_plugin(bench: Bench, *, slices: bool = False) -> None:
    """The GPUs of node-1 are given out by a device plugin."""
    found = bench.server.get(NODES, "node-1") or {}
    found["status"] |= {"capacity": {"nvidia.com/gpu": "8"}, "allocatable": {"nvidia.com/gpu": "8"}}
    await bench.server.put(NODES, found)
    if not slices:
        await without_slices(bench)


async def without_slices(bench: Bench) -> dict[str, Any]:
    """Takes the slices of node-1 away, as a kubelet does that starts; answers them."""
    found = slice_of(bench)
    await bench.server.delete(RESOURCE_SLICES, found["metadata"]["name"], found["metadata"].get("namespace", ""))
    return found


def plugin_pod() -> object:
    from claim_objects import decoded, pod_of_resources

    document = pod_of_resources("old", {"nvidia.com/gpu": "1"})
    document["spec"]["nodeName"] = "node-1"
    return decoded("pods", document)


TRAIN = allocated("train", ("node-1", "gpu-3"), user="train-0")


@pytest.mark.parametrize("paused", [False, True])
async def test_a_node_of_a_device_plugin_is_ready_only_once_its_taint_stands(paused: bool, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"mode: enforce\npause: {[{'author': 'ann', 'node': 'node-1'}] if paused else []}\n")
    async with serving(policy=policy) as bench:
        await with_plugin(bench)
        agent = NodeAgent(bench)
        await annotate(bench, "node-1", maintenance="fan swap")
        await rounds(bench, agent, 60)
        taints = (bench.server.get(NODES, "node-1") or {})["spec"].get("taints", [])
        if paused:
            assert (state(bench), taints) == (("False", "WaitingForTaints"), [])
            assert message(bench, "node-1").startswith("The Node does not carry the taint claimscope.io/maintenance")
            await cordon(bench)
            await rounds(bench, agent, 30)
        else:
            assert [each["key"] for each in taints] == ["claimscope.io/maintenance"]
        assert state(bench) == ("True", "Ready")


@pytest.mark.parametrize("kinds", [ALL_KINDS, WITHOUT_RULES])
async def test_where_the_controller_may_not_taint_nodes_it_says_so(kinds: tuple[Kind, ...]) -> None:
    async with serving(kinds=kinds) as bench:
        if kinds is ALL_KINDS:
            await with_plugin(bench)
        agent = NodeAgent(bench)
        bench.server.fail("/api/v1/nodes/node-1", *[HttpFault(status=403)] * 1000)
        await annotate(bench, "node-1", maintenance="fan swap")
        await rounds(bench, agent, 60)
        assert bench.leader.value("dra_node_maintenance_state", "node-1", "waiting_for_taints") == 1.0


@pytest.mark.parametrize("partly", [False, True])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_claim_holds_the_node_while_its_slices_are_away_or_incomplete(begun: bool, partly: bool) -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        await bench.server.put(RESOURCE_CLAIMS, TRAIN)
        if begun:
            await annotate(bench, "node-1", maintenance="fan swap")
            await rounds(bench, agent, 30)
        slices = await without_slices(bench)
        if partly:
            slices["spec"]["pool"]["resourceSliceCount"] = 2
            slices["spec"]["devices"] = slices["spec"]["devices"][:2]
            await bench.server.put(RESOURCE_SLICES, slices)
        bench.leader.leads = False
        bench.leader = bench.another("two")  # has never seen them
        await annotate(bench, "node-1", maintenance="fan swap")
        await rounds(bench, agent, 60)
        assert state(bench) in (("False", "WaitingForClaims"), ("False", "WaitingForTaints"))
        if begun or partly:
            assert message(bench, "node-1").startswith("Held by claim team/train (pods train-0).")
        await bench.server.delete(RESOURCE_CLAIMS, "train", "team")
        await rounds(bench, agent, 60)
        assert state(bench) != ("True", "Ready")
        assert not agent.nvml.released


async def test_a_claim_on_a_part_without_a_uuid_holds_the_node() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        slices = slice_of(bench)
        attributes = {"type": {"string": "mig"}, "parentUUID": {"string": "GPU-1-3"}}
        slices["spec"]["devices"].append({"name": "gpu-3-mig-1g5gb-19-0", "attributes": attributes})
        await bench.server.put(RESOURCE_SLICES, slices)
        claim = allocated("train", ("node-1", "gpu-3-mig-1g5gb-19-0"), user="train-0")
        await bench.server.put(RESOURCE_CLAIMS, claim)
        await annotate(bench, "node-1", maintenance="fan swap")
        await rounds(bench, agent, 60)
        assert state(bench) == ("False", "WaitingForClaims")
        assert message(bench, "node-1").startswith("Held by claim team/train (pods train-0).")


async def test_an_agent_restarted_while_processes_run_does_not_make_the_node_ready() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench, processes=2)
        await annotate(bench, "node-1", maintenance="fan swap")
        await rounds(bench, agent, 60)
        agent.restart()
        await rounds(bench, agent, 120)
        assert state(bench) == ("False", "WaitingForProcesses")
        agent.processes = 0
        await rounds(bench, agent, 20)
        assert state(bench) == ("True", "Ready")
        agent.restart()
        assert agent.nvml.did == ["count True", "release"]
        await rounds(bench, agent, 60)
        assert state(bench) == ("True", "Ready")


async def test_processes_that_cannot_be_counted_are_left_to_the_person() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench, processes=None)
        await annotate(bench, "node-1", maintenance="fan swap")
        await rounds(bench, agent, 150)
        assert state(bench) == ("True", "Ready")
        assert "Its processes could not be counted" in message(bench, "node-1")


async def test_taints_that_nothing_confirms_do_not_make_the_node_ready() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        await annotate(bench, "node-1", maintenance="fan swap")
        for _ in range(12):
            bench.clock.advance(10)
            await agent.beat()
            await bench.leader.round()
        assert state(bench) == ("False", "WaitingForTaints")
        assert message(bench, "node-1").startswith("Kubernetes confirms the taints of 0 of 8 devices; if that stays so")


async def test_a_pause_holds_taints_back_and_nothing_that_is_said() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        await bench.server.put(RESOURCE_CLAIMS, TRAIN)
        await annotate(bench, "node-1", maintenance="fan swap", maintenance_deadline="2026-11-21T11:25:00Z")
        await bench.leader.round()
        assert bench.effects() == ANNOUNCED
        await bench.leader.notebook.write({PAUSE: "ann"})
        await rounds(bench, agent, 120)
        assert bench.effects() == ANNOUNCED
        assert state(bench) == ("False", "DeadlineMissed")
        assert ("Node", "node-1", "GPUMaintenanceDeadlineMissed") in bench.events()
        await bench.leader.notebook.write({PAUSE: None})
        await bench.server.delete(RESOURCE_CLAIMS, "train", "team")
        await rounds(bench, agent, 40)
        assert state(bench) == ("True", "Ready")
        await bench.leader.notebook.write({PAUSE: "ann"})
        await annotate(bench, "node-1", maintenance=None, maintenance_unverified="ann now")
        await rounds(bench, agent, 20)
        assert (bench.effects(), state(bench)) == ({}, None)
        assert not agent.nvml.released
        assert ("Node", "node-1", "GPUMaintenanceOver") in bench.events()


@pytest.mark.parametrize("said", [None, 8])
async def test_verified_are_as_many_gpus_as_anything_told_of(said: int | None) -> None:
    async with serving() as bench:
        agent = NodeAgent(bench, gpus=said)
        slices = await without_slices(bench)
        await annotate(bench, "node-1", maintenance="fan swap")
        await rounds(bench, agent, 30)
        slices["spec"]["devices"] = slices["spec"]["devices"][:1]
        await bench.server.put(RESOURCE_SLICES, slices)
        await rounds(bench, agent, 60)
        assert state(bench) == ("True", "Ready")
        await annotate(bench, "node-1", maintenance=None)
        await rounds(bench, agent, 700)
        assert state(bench) == ("False", "VerifyFailed")
        text = "1 of 8 GPUs are published." if said else "How many GPUs it had before is not known."
        assert message(bench, "node-1").startswith(text)
        assert bench.effects() == {"gpu-0": "maintenance NoSchedule"}


@pytest.mark.parametrize(("published", "seen"), [(8, 8), (4, 12), (8, None)])
async def test_slices_and_a_device_plugin_may_give_out_the_same_boards_or_others(
    published: int, seen: int | None
) -> None:
    async with serving() as bench:
        agent = NodeAgent(bench, gpus=seen)
        slices = slice_of(bench)
        slices["spec"]["devices"] = slices["spec"]["devices"][:published]
        await bench.server.put(RESOURCE_SLICES, slices)
        await with_plugin(bench, slices=True)
        await ready(bench, agent)
        await annotate(bench, "node-1", maintenance=None)
        await rounds(bench, agent, 660)
        assert (state(bench), bench.effects()) == (None, {})


async def test_a_node_without_gpus_is_left_alone_and_takes_nobodys_place() -> None:
    async with serving() as bench:
        await bench.server.put(NODES, {"metadata": {"name": "cpu-1", "uid": "u"}, "spec": {}, "status": {}})
        agent = NodeAgent(bench)
        await annotate(bench, "cpu-1", maintenance="typo")
        await annotate(bench, "node-1", maintenance="real")
        await rounds(bench, agent, 60)
        assert state(bench, "cpu-1") == ("False", "NoGpus")
        assert "taints" not in (bench.server.get(NODES, "cpu-1") or {})["spec"]
        assert state(bench) == ("True", "Ready")


async def test_leaders_that_come_and_go_do_not_bring_a_dead_agent_back() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        await ready(bench, agent)
        await annotate(bench, "node-1", maintenance=None)
        await bench.leader.round()
        for number in range(9):
            bench.leader.leads = False
            bench.leader = bench.another(f"leader-{number}")
            for _ in range(4):
                bench.clock.advance(25)
                await bench.leader.round()
        assert bench.effects() == FENCED
        assert state(bench) == ("False", "VerifyFailed")


@pytest.mark.parametrize("deadline", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00"])
async def test_a_deadline_out_of_range_stops_nobody(deadline: str) -> None:
    async with serving() as bench:
        await annotate(bench, "node-1", maintenance="x", maintenance_deadline=deadline)
        await bench.says("node-2", finding("GPU-2-0"))
        await bench.leader.round()
        assert f"The deadline `{deadline}` is not between 1970 and 2100, and is not kept." in message(bench, "node-1")
        assert ("Node", "node-1", "GPUMaintenanceDeadlineUnreadable") in bench.events()
        assert bench.effects()["node-2/gpu-0"] == "unhealthy NoSchedule"


async def test_a_phase_that_another_version_remembered_is_forgotten() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        state_of_it = {"uid": "x", "phase": "draining", "started_wall": 1.0}
        await bench.leader.notebook.write({MEMORY: json.dumps({"maintenance": {"node-1": state_of_it}})})
        await rounds(bench, agent, 20)
        assert state(bench) is None
        assert "draining" not in (await bench.leader.notebook.read()).get(MEMORY, "")


async def test_the_pods_told_and_the_writes_are_bounded() -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        for gpu in range(8):
            claim = allocated(f"c{gpu}", ("node-1", f"gpu-{gpu}"))
            claim["status"]["reservedFor"] = [
                {"resource": "pods", "name": f"p{gpu}-{number}", "uid": f"{gpu}-{number}"} for number in range(10)
            ]
            await bench.server.put(RESOURCE_CLAIMS, claim)
        await annotate(bench, "node-1", maintenance="fan swap " * 200)
        await rounds(bench, agent, 30)
        assert sum(kind == "Pod" for kind, _, _ in bench.events()) == 20
        assert len(message(bench, "node-1").encode()) <= 1000
        sizes = [len(each.body(EVENTS)) for each in bench.server.store.table(EVENTS).objects.values()]
        assert max(sizes) < 3000
        before = len(bench.server.write_requests)
        for _ in range(5):
            bench.clock.advance(5)
            await bench.leader.round()
        assert len(bench.server.write_requests) == before  # without news nothing is written
        assert json.loads(agent.notes()["claimscope.io/maintenance-answer"])["processes"] == 0
