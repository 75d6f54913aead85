"""Which published devices does a finding mean: parts of a GPU that have no uuid yet, and one GPU of two drivers."""

from __future__ import annotations

from typing import Any

import pytest

from claimscope.claims.model import DeviceKey
from claimscope.health.model import Severity
from claimscope.taints import fences
from claimscope.taints.maintenance_fences import sites_of
from inventory_objects import a_device, a_slice
from taints_help import DRIVER, World, a_finding, gpu

LOST = Severity.LOST
PART, OTHER = "gpu-0-mig-1g5gb-19-0", "gpu-0-mig-1g5gb-19-1"
SECOND = "second.example.com"
ROOM = "\nbudgets: {group_share: 1, fleet_share: 1, node_share: 1}\nrate: {least: 100}\nbreaker: {least: 100}"


def put(world: World, devices: list[dict[str, Any]], *, driver: str = DRIVER, node: int = 1) -> None:
    world.cluster.apply("resourceslices", a_slice(devices, driver=driver, pool=f"n{node}", count=1), True)


def a_gpu(name: str = "gpu-0", uuid: str = gpu(1, 0)) -> dict[str, Any]:
    return a_device(name, {"uuid": uuid, "type": "gpu"})


def a_part(name: str, parent: str = gpu(1, 0)) -> dict[str, Any]:
    """As the driver publishes what it cuts only once it is allocated."""
    return a_device(name, {"parentUUID": parent, "type": "mig"})


def pools(world: World) -> list[str]:
    """Devices that fences select, with driver, and their effect."""
    return sorted(
        f"{fence.device.driver}/{fence.device.device}:{fence.effect}" for fence in world.standing().values()
    )


# --- parts without a uuid ---


def cut(*parts: str, policy: str = "") -> World:
    world = World("mode: enforce" + policy, nodes=10)
    put(world, [a_gpu(), *map(a_part, parts)])
    return world


def test_parts_without_a_uuid_are_fenced_with_their_gpu_and_cost_nothing_more() -> None:
    world = cut(PART, OTHER)
    world.find(a_finding(gpu(1, 0), "gpu_lost", LOST))
    world.round()
    assert world.taints() == [
        f"{PART}@n1 lost=gpu_lost:NoSchedule", f"{OTHER}@n1 lost=gpu_lost:NoSchedule",
        "gpu-0@n1 lost=gpu_lost:NoSchedule",
    ]
    assert world.last.budgets["fleet"][0] == 1
    assert {fence.uuid for fence in world.standing().values()} == {
        gpu(1, 0), f"{gpu(1, 0)}/{PART}", f"{gpu(1, 0)}/{OTHER}",
    }
    assert world.round() == []


def test_a_part_without_a_uuid_is_let_go_with_its_gpu() -> None:
    world = cut(PART)
    world.find(a_finding(gpu(1, 0), "gpu_lost", LOST))
    world.round()
    world.clear(gpu(1, 0))
    world.round()
    assert world.taints() == []


def test_a_part_that_is_published_no_more_is_let_go() -> None:
    world = cut(PART, OTHER)
    world.find(a_finding(gpu(1, 0), "gpu_lost", LOST))
    world.round()
    put(world, [a_gpu(), a_part(OTHER)])
    assert world.round() == [f"delete {PART}@n1 lost=gpu_lost:NoSchedule"]


def test_a_name_that_now_means_a_part_of_another_gpu_is_let_go_and_the_parts_of_the_sick_one_are_fenced() -> None:
    world = cut(PART, policy=ROOM)
    world.find(a_finding(gpu(1, 0), "gpu_lost", LOST))
    world.round()
    swapped = PART.replace("gpu-0", "gpu-1")
    put(world, [a_gpu("gpu-0", gpu(1, 1)), a_gpu("gpu-1"), a_part(PART, gpu(1, 1)), a_part(swapped)])
    world.round()
    assert world.taints() == [f"{swapped}@n1 lost=gpu_lost:NoSchedule", "gpu-1@n1 lost=gpu_lost:NoSchedule"]
    assert world.round() == []


def test_a_part_follows_into_another_pool_while_its_agent_is_silent() -> None:
    world = cut(PART)
    world.find(a_finding(gpu(1, 0), "gpu_lost", LOST))
    world.round()
    world.stale = {"n1"}
    put(world, [])
    world.cluster.apply(
        "resourceslices", a_slice([a_gpu(), a_part(PART)], driver=DRIVER, pool="pool-b", nodeName="n1", count=1), True
    )
    assert world.round() == [
        "update gpu-0@pool-b lost=gpu_lost:NoSchedule", f"update {PART}@pool-b lost=gpu_lost:NoSchedule",
    ]


def test_maintenance_knows_parts_without_a_uuid() -> None:
    world = cut(PART)
    world.reports()
    assert [site.device.device for site in sites_of(world.inventory, "n1")] == ["gpu-0", PART]


def test_a_device_that_says_neither_uuid_nor_parent_is_no_gpu() -> None:
    world = World(nodes=1)
    put(world, [a_device("x", {"type": "gpu"}), a_part("y", "")], node=0)
    world.reports()
    assert world.inventory.gpus_of("n0") == 0


# --- one GPU of two drivers ---


def twice() -> World:
    world = World(nodes=10)
    put(world, [a_gpu("dev-0")], driver=SECOND)
    return world


def test_one_gpu_of_two_drivers_is_fenced_for_both_and_costs_one() -> None:
    world = twice()
    world.find(a_finding(gpu(1, 0)))
    world.round()
    assert pools(world) == [f"{DRIVER}/gpu-0:NoSchedule", f"{SECOND}/dev-0:NoSchedule"]
    assert world.last.budgets["fleet"] == (1, 8)
    assert world.round() == []


def test_the_names_of_the_usual_driver_are_what_they_were() -> None:
    world = twice()
    world.find(a_finding(gpu(1, 0)))
    world.round()
    names = {fence.device.driver: name for name, fence in world.standing().items()}
    assert names[DRIVER] == fences.base_name("n1", gpu(1, 0), Severity.UNHEALTHY)
    assert names[SECOND] == fences.base_name("n1", f"{gpu(1, 0)}@{SECOND}", Severity.UNHEALTHY)


@pytest.mark.parametrize("silent", [False, True])
def test_a_driver_that_publishes_it_no_more_takes_its_own_fence_with_it(silent: bool) -> None:
    world = twice()
    world.find(a_finding(gpu(1, 0)))
    world.round()
    world.stale = {"n1"} if silent else set()
    put(world, [], driver=SECOND)
    world.round()
    assert pools(world) == [f"{DRIVER}/gpu-0:NoSchedule"]


def test_maintenance_keeps_it_free_of_both() -> None:
    world = twice()
    world.reports()
    found = [site.device for site in sites_of(world.inventory, "n1") if site.uuid == gpu(1, 0)]
    assert found == [DeviceKey(DRIVER, "n1", "gpu-0"), DeviceKey(SECOND, "n1", "dev-0")]


