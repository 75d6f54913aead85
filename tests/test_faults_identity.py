"""Which device a fence is on, when names move: from what an agent finds to the selector of the rule, by name."""

from __future__ import annotations

import dataclasses

from claimscope.model import Device, Entity, MigInstance
from faults_help import Node, tell
from health_help import DAY, MINUTE, gpu_device
from inventory_objects import a_device, a_slice
from taints_help import DRIVER, World, gpu

SICK = gpu(1, 3)
NAMES = {f"gpu-{index}": gpu(1, index) for index in range(8)}
FENCED = {"driver": DRIVER, "pool": "n1", "device": "gpu-3"}


def board(index: int, uuid: str, *, minor: int | None = None, serial: str = "") -> Device:
    """A GPU at the PCI address of this index."""
    return dataclasses.replace(
        gpu_device(index), entity=Entity(uuid=uuid, gpu=index if minor is None else minor),
        minor=index if minor is None else minor, identity={"serial": serial or f"S-{uuid}"},
    )  # fmt: skip


def part(index: int, uuid: str, *, parent: str, instance: int) -> Device:
    """A MIG device."""
    return Device(
        entity=Entity(uuid=uuid, parent=parent, gpu=index, slices=3, total_slices=7), minor=None, pci_bus_id=None,
        model=None, mig=MigInstance(gpu_instance_id=instance, compute_instance_id=0, profile="3g.40gb"),
    )  # fmt: skip


def a_node() -> Node:
    return Node([board(index, uuid) for index, uuid in enumerate(NAMES.values())])


def selectors(world: World) -> list[dict[str, str | None]]:
    """What the rules in the API select, all of it."""
    chosen = [rule.spec.device_selector for rule in world.cluster.rules.values()]
    assert all(one is not None for one in chosen)
    return sorted(
        ({"driver": one.driver, "pool": one.pool, "device": one.device} for one in chosen if one is not None),
        key=lambda each: each["device"] or "",
    )


def fenced() -> tuple[Node, World]:
    """Row remapping has failed on gpu-3 of n1, which no reset and no reboot repairs."""
    node, world = a_node(), World()
    node.log_xid(64, 3)
    node.run(5)
    tell(world, "n1", node.annotation())
    assert world.round() == ["create gpu-3@n1 unhealthy=xid_needs_repair:NoSchedule"]
    assert selectors(world) == [FENCED]
    return node, world


# Minors


def test_minors_shuffled_after_a_reboot_while_the_agent_is_down_the_fence_follows_the_uuid() -> None:
    node, world = fenced()
    world.stale.add("n1")
    shuffled = {**NAMES, "gpu-3": NAMES["gpu-5"], "gpu-5": NAMES["gpu-3"]}
    world.publish(1, shuffled)
    assert world.round(60) == ["update gpu-5@n1 unhealthy=xid_needs_repair:NoSchedule"]
    assert selectors(world) == [{**FENCED, "device": "gpu-5"}]
    node.gpus[3].device = board(3, NAMES["gpu-3"], minor=5)
    node.gpus[5].device = board(5, NAMES["gpu-5"], minor=3)
    for one in node.gpus:
        one.reset()
    node.restart(boot_id="boot-2", at=200)
    node.run(20 * MINUTE)
    world.stale.clear()
    tell(world, "n1", node.annotation())
    assert world.round(1300) == ["update gpu-5@n1 unhealthy=xid_needs_repair:NoSchedule"]  # its boot id
    assert selectors(world) == [{**FENCED, "device": "gpu-5"}]
    assert world.blocked() == {SICK}


def test_minors_shuffled_and_the_kernel_log_told_by_address_finds_the_board() -> None:
    node = a_node()
    node.gpus[3].device = board(3, NAMES["gpu-3"], minor=5)
    node.gpus[5].device = board(5, NAMES["gpu-5"], minor=3)
    node.take_inventory()
    node.log_xid(95, 3)
    node.run(5)
    assert node.all_rules() == {SICK: {"xid_fatal": "unhealthy"}}


# Another board


def test_a_gpu_that_was_swapped_takes_its_findings_with_it_and_the_new_one_is_clean() -> None:
    node, world = fenced()
    node.gpus[3].device = board(3, "GPU-new")
    node.restart(boot_id="boot-2", at=200)
    node.run(5 * MINUTE)
    assert node.all_rules() == {}
    world.publish(1, {**NAMES, "gpu-3": "GPU-new"})
    tell(world, "n1", node.annotation())
    assert world.round(600) == ["delete gpu-3@n1 unhealthy=xid_needs_repair:NoSchedule"]
    assert world.round(600) == []


def test_a_gpu_that_was_swapped_while_the_agent_is_down_frees_the_new_one() -> None:
    _, world = fenced()
    world.stale.add("n1")
    world.publish(1, {**NAMES, "gpu-3": "GPU-new"})
    assert world.round(600) == ["delete gpu-3@n1 unhealthy=xid_needs_repair:NoSchedule"]


def test_a_swapped_gpu_that_comes_back_elsewhere_is_judged_anew() -> None:
    node, world = fenced()
    node.gpus[3].device = board(3, "GPU-new")
    node.take_inventory()
    node.run(5)
    node.gpus[3].device = board(3, SICK)  # the same board was put in again
    node.gpus[3].last["row_remap_failure"] = 1.0  # and its flash remembers
    node.take_inventory()
    node.run(5 * MINUTE)
    tell(world, "n1", node.annotation())
    world.round(600)
    assert world.blocked() == {SICK}


# MIG


def _parts(first: int, *uuids: str) -> dict[str, tuple[str, str]]:
    return {f"gpu-3-mig-{first + index}": (uuid, SICK) for index, uuid in enumerate(uuids)}


def test_a_gpu_that_is_cut_anew_while_it_is_fenced_has_every_part_fenced() -> None:
    _, world = fenced()
    others = {name: uuid for name, uuid in NAMES.items() if name != "gpu-3"}
    world.publish(1, others, parts=_parts(0, "MIG-a", "MIG-b"), generation=2)
    assert sorted(world.round(30)) == [
        "create gpu-3-mig-0@n1 unhealthy=xid_needs_repair:NoSchedule",
        "create gpu-3-mig-1@n1 unhealthy=xid_needs_repair:NoSchedule",
        "delete gpu-3@n1 unhealthy=xid_needs_repair:NoSchedule",
    ]
    world.publish(1, others, parts=_parts(5, "MIG-c"), generation=3)
    assert sorted(world.round(30)) == [
        "create gpu-3-mig-5@n1 unhealthy=xid_needs_repair:NoSchedule",
        "delete gpu-3-mig-0@n1 unhealthy=xid_needs_repair:NoSchedule",
        "delete gpu-3-mig-1@n1 unhealthy=xid_needs_repair:NoSchedule",
    ]
    assert selectors(world) == [{**FENCED, "device": "gpu-3-mig-5"}]


def test_a_finding_of_a_mig_device_fences_it_alone_and_ends_with_it() -> None:
    devices = [board(index, uuid) for index, uuid in enumerate(NAMES.values())]
    devices[3] = dataclasses.replace(devices[3], mig_enabled=True)
    cut = [part(3, uuid, parent=SICK, instance=number) for number, uuid in enumerate(("MIG-a", "MIG-b"), start=1)]
    node, world = Node([*devices, *cut]), World()
    others = {name: uuid for name, uuid in NAMES.items() if name != "gpu-3"}
    world.publish(1, others, parts=_parts(0, "MIG-a", "MIG-b"))
    bdf = (devices[3].pci_bus_id or "").removesuffix(".0")
    node.log(f"NVRM: Xid (PCI:{bdf} GPU-I:02): 95, pid=4242, name=python3, Uncontained")
    node.run(5)
    tell(world, "n1", node.annotation())
    assert world.round() == ["create gpu-3-mig-1@n1 unhealthy=xid_fatal:NoSchedule"]
    node.gpus = [one for one in node.gpus if one.uuid != "MIG-b"]
    node.take_inventory()
    node.run(5)
    assert node.all_rules() == {}
    world.publish(1, others, parts=_parts(0, "MIG-a"), generation=2)
    tell(world, "n1", node.annotation())
    assert world.round(30) == ["delete gpu-3-mig-1@n1 unhealthy=xid_fatal:NoSchedule"]


# Nodes and pools


def test_a_pool_that_is_not_named_like_its_node_is_selected_by_its_own_name() -> None:
    node, world = a_node(), World(nodes=1)
    world.node("n1")
    listed = [a_device(name, {"uuid": uuid, "type": "gpu"}) for name, uuid in NAMES.items()]
    world.cluster.apply("resourceslices", a_slice(listed, driver=DRIVER, pool="rack-7-a", nodeName="n1"), True)
    node.log_xid(95, 3)
    node.run(5)
    tell(world, "n1", node.annotation())
    assert world.round() == ["create gpu-3@rack-7-a unhealthy=xid_fatal:NoSchedule"]
    assert selectors(world) == [{"driver": DRIVER, "pool": "rack-7-a", "device": "gpu-3"}]


def test_a_node_that_was_renamed_is_fenced_under_its_new_name_alone() -> None:
    node, world = fenced()
    world.withdraw(1)
    world.node("n1", present=False)
    del world.found["n1"]
    world.node("renamed")
    listed = [a_device(name, {"uuid": uuid, "type": "gpu"}) for name, uuid in NAMES.items()]
    world.cluster.apply("resourceslices", a_slice(listed, driver=DRIVER, pool="renamed"), True)
    tell(world, "renamed", node.annotation())
    assert sorted(world.round(60)) == [
        "create gpu-3@renamed unhealthy=xid_needs_repair:NoSchedule",
        "delete gpu-3@n1 unhealthy=xid_needs_repair:NoSchedule",
    ]
    assert selectors(world) == [{**FENCED, "pool": "renamed"}]


def test_a_node_that_registered_anew_is_fenced_again_when_its_rule_went_with_the_old_one() -> None:
    node, world = fenced()
    (rule,) = world.cluster.rules
    world.node("n1", present=False)
    world.delete(rule)  # Kubernetes' garbage collector takes what the Node owned
    world.round(5)
    world.node("n1", uid="uid-n1-again")
    tell(world, "n1", node.annotation())
    world.round(5)
    assert selectors(world) == [FENCED]


# Slices


def test_a_slice_that_comes_late_is_fenced_when_it_comes() -> None:
    node, world = a_node(), World(nodes=1)
    world.node("n1")
    node.log_xid(64, 3)
    node.run(5)
    tell(world, "n1", node.annotation())
    assert world.round() == []
    assert world.held() == [(SICK, "unresolved")]
    world.publish(1, NAMES)
    assert world.round(5) == ["create gpu-3@n1 unhealthy=xid_needs_repair:NoSchedule"]


def test_a_slice_that_is_absent_for_a_day_and_published_again_changes_nothing() -> None:
    _, world = fenced()
    world.withdraw(1)
    assert world.round(DAY) == []
    assert selectors(world) == [FENCED]
    world.publish(1, {"gpu-0": NAMES["gpu-0"]}, count=2, generation=2)  # the first of two
    assert world.round(5) == []
    world.publish(1, NAMES, generation=3)
    assert world.round(5) == []
    assert selectors(world) == [FENCED]


# Drivers


def test_two_drivers_with_the_same_device_names_only_the_right_one_is_fenced() -> None:
    node, world = a_node(), World()
    twins = [a_device(name, {"uuid": f"OTHER-{name}", "type": "gpu"}) for name in NAMES]
    world.cluster.apply("resourceslices", a_slice(twins, driver="gpu.example.com", pool="n1"), True)
    node.log_xid(64, 3)
    node.run(5)
    tell(world, "n1", node.annotation())
    assert world.round() == ["create gpu-3@n1 unhealthy=xid_needs_repair:NoSchedule"]
    assert selectors(world) == [FENCED]
    bare = [a_device(name, {"type": "gpu"}) for name in NAMES]  # one that tells no uuid is never selected
    world.cluster.apply("resourceslices", a_slice(bare, driver="bare.example.com", pool="n1"), True)
    assert world.round(5) == []
    assert selectors(world) == [FENCED]
