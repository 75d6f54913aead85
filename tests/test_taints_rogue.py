"""What can an agent not do by what it says? It is believed about GPUs of its node, and decides nothing."""

from __future__ import annotations

import pytest

from claimscope.health.model import Severity
from claimscope.taints import fences
from claimscope.taints.budget import onsets
from claimscope.taints.model import Mode
from claimscope.taints.reports import read_findings
from taints_bench import finding, serving
from taints_help import START, World, a_finding, gpu

LOST, UNHEALTHY = Severity.LOST, Severity.UNHEALTHY
PIN = f"""
overrides:
- {{do: pin_unhealthy, uuid: {gpu(1, 0)}, author: ann, until: 2023-11-20T00:00:00Z}}
"""
ROOM = "\nbudgets: {group_share: 1, fleet_share: 1}\nrate: {least: 100}\nbreaker: {least: 100}"


# --- the name that stands for what a person declared ---


@pytest.mark.parametrize(("mode", "taints"), [
    ("observe", []), ("announce", ["gpu-0@n1 unhealthy=pinned:None"]), ("enforce", ["gpu-0@n1 unhealthy=pinned:None"]),
])  # fmt: skip
def test_an_agent_cannot_declare_a_gpu_unhealthy_as_a_person_can(mode: str, taints: list[str]) -> None:
    world = World(f"mode: {mode}")
    world.find(a_finding(gpu(1, 0), "pinned"))
    world.round()
    assert world.taints() == taints


@pytest.mark.parametrize("mode", ["observe", "announce", "enforce"])
def test_a_person_can_in_every_mode(mode: str) -> None:
    world = World(f"mode: {mode}{PIN}")
    world.round()
    assert world.taints() == ["gpu-0@n1 unhealthy=pinned:NoSchedule"]
    assert world.round(7 * 86400) == ["delete gpu-0@n1 unhealthy=pinned:NoSchedule"]


def test_what_a_person_declares_is_no_mode_for_what_the_agent_finds() -> None:
    world = World(f"mode: announce{PIN}")
    world.find(a_finding(gpu(1, 0), "gpu_lost", LOST), a_finding(gpu(1, 1), "pinned"))
    world.round()
    assert world.taints() == [
        "gpu-0@n1 lost=gpu_lost:None", "gpu-0@n1 unhealthy=pinned:NoSchedule", "gpu-1@n1 unhealthy=pinned:None",
    ]


def test_the_name_is_refused_in_a_lease() -> None:
    told = read_findings("n1", '[{"uuid":"GPU-1","rule":"pinned","severity":"unhealthy","since":1}]')
    assert (told.findings, told.skipped, told.problem) == (
        (), 1, "`pinned` is what people declare, and no rule of an agent",
    )


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.ANNOUNCE, Mode.ENFORCE])
async def test_nothing_in_a_lease_keeps_work_away_by_that_name(mode: Mode) -> None:
    async with serving(mode) as bench:
        await bench.says("node-1", finding("GPU-1-0", "pinned", pinned=True))
        await bench.leader.round()
        assert bench.effects() == {}


# --- rules that nothing is known of ---


def test_a_rule_that_nothing_is_known_of_is_announced_at_most() -> None:
    world = World("mode: enforce")
    world.find(a_finding(gpu(1, 0), "made_up", LOST), a_finding(gpu(1, 1), "made_up"), a_finding(gpu(1, 1)))
    world.round()
    assert world.taints() == ["gpu-0@n1 lost=made_up:None", "gpu-1@n1 unhealthy=xid_fatal:NoSchedule"]


def test_nor_does_it_taint_a_node() -> None:
    world = World("mode: enforce\nnode_taints: enforce" + ROOM)
    world.withdraw(1)
    world.plugin["n1"] = (8, 0)
    world.find(*(a_finding(gpu(1, index), "made_up", LOST) for index in range(8)))
    world.round()
    assert world.on_nodes() == {}


def test_nor_is_it_remembered_as_one_that_came_up_on_many_nodes() -> None:
    world = World()
    world.find(*(a_finding(gpu(1, 0), f"made_up_{index}", since=START) for index in range(100)))
    assert onsets(world.reports()) == {}


def test_a_thousand_rules_of_one_device_leave_a_small_object() -> None:
    world = World()
    world.find(*(a_finding(gpu(1, 0), f"made_up_{'x' * 40}_{index:04d}") for index in range(1000)))
    world.find(a_finding(gpu(1, 0), "gpu_lost", UNHEALTHY))
    world.round()
    (fence,) = world.standing().values()
    assert len(fences.rules_of(fence)) == 32
    assert sum(map(len, fence.annotations.values())) < 8192
    assert (fence.value, fence.effect) == ("gpu_lost", "NoSchedule")
    assert world.round() == []
