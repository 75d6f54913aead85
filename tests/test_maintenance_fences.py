"""Which taints stand on a node under maintenance, whatever findings, people and the cluster do beside."""

from __future__ import annotations

import msgspec

from claimscope.taints import fences
from claimscope.taints.fences import MAINTENANCE
from claimscope.taints.maintenance import Phase, Request, Status
from claimscope.taints.maintenance_fences import sites_of, wanted
from taints_help import DRIVER, ENFORCE, START, World, a_finding, gpu

WISH = Request(reason="fan swap", by="ann")


def under(world: World, *nodes: str, effect: str | None = "NoSchedule") -> None:
    """From now on these nodes are under maintenance."""
    world.reports()
    world.extra = {
        "maintenance": frozenset(nodes),
        "kept_free": {
            node: wanted(
                Status(node=node, phase=Phase.ANNOUNCED, message="", started_wall=START, effect=effect),
                sites_of(world.inventory, node), f"uid-{node}", WISH,
            )
            for node in nodes if effect is not None
        },
    }  # fmt: skip


def test_every_device_has_one_each_names_its_device_and_a_second_round_writes_nothing() -> None:
    world = World(nodes=2, gpus=2)
    under(world, "n1", effect="None")
    assert world.round() == ["create gpu-0@n1 maintenance=requested:None", "create gpu-1@n1 maintenance=requested:None"]
    assert world.round() == []
    under(world, "n1")
    assert world.round() == [
        "update gpu-0@n1 maintenance=requested:NoSchedule", "update gpu-1@n1 maintenance=requested:NoSchedule",
    ]  # fmt: skip
    assert world.round(3600) == []
    (fence, *_) = world.standing().values()
    assert fences.labels(fence) == {
        "app.kubernetes.io/managed-by": "claimscope",
        "claimscope.io/severity": "maintenance",
        "claimscope.io/node": "n1",
    }
    assert fence.name.startswith("claimscope.n1.")
    assert fence.name.endswith(".maintenance")
    assert fence.annotations["claimscope.io/maintenance-by"] == "ann"
    assert world.memory.known == {}  # one that is taken away is put up again
    world.delete(fence.name)
    assert len(world.round()) == 1
    under(world)
    assert {each.split()[0] for each in world.round()} == {"delete"}
    assert world.taints() == []


def test_mig_devices_have_their_own() -> None:
    world = World(nodes=2, gpus=1)
    world.publish(1, {"gpu-0": gpu(1, 0)}, parts={"gpu-0-mig-1": ("MIG-1", gpu(1, 0))})
    under(world, "n1")
    world.round()
    assert world.taints() == [
        "gpu-0-mig-1@n1 maintenance=requested:NoSchedule", "gpu-0@n1 maintenance=requested:NoSchedule",
    ]  # fmt: skip


def test_names_that_move_are_followed_by_uuid() -> None:
    world = World(nodes=2, gpus=2)
    under(world, "n1")
    world.round()
    before = {fence.uuid: fence.name for fence in world.standing().values()}
    world.publish(1, {"gpu-0": gpu(1, 1), "gpu-1": gpu(1, 0)})
    under(world, "n1")
    assert sorted(each.split()[0] for each in world.round()) == ["update", "update"]
    after = {fence.uuid: (fence.name, fence.device.device) for fence in world.standing().values()}
    assert after == {gpu(1, 0): (before[gpu(1, 0)], "gpu-1"), gpu(1, 1): (before[gpu(1, 1)], "gpu-0")}


def test_slices_that_are_away_lift_nothing_and_a_device_that_is_gone_does() -> None:
    world = World(nodes=2, gpus=2)
    under(world, "n1")
    world.round()
    world.withdraw(1)
    world.cluster.tick(START)
    world.cluster.tick(START + 3600)  # the pool is forgotten
    under(world, "n1")
    assert world.round() == []
    world.publish(1, {"gpu-0": gpu(1, 0)})
    under(world, "n1")
    assert world.round() == ["delete gpu-1@n1 maintenance=requested:NoSchedule"]


def test_findings_come_and_go_beside_it() -> None:
    world = World(ENFORCE, nodes=10, gpus=2)
    world.find(a_finding(gpu(1, 0)))
    world.round()
    under(world, "n1")
    world.find(a_finding(gpu(1, 1)))
    world.round()
    assert world.taints() == [
        "gpu-0@n1 maintenance=requested:NoSchedule", "gpu-0@n1 unhealthy=xid_fatal:NoSchedule",
        "gpu-1@n1 maintenance=requested:NoSchedule",
    ]  # fmt: skip
    assert set(world.held()) == {(gpu(1, 1), "paused")}
    world.clear(gpu(1, 0))
    world.round()
    assert "gpu-0@n1 unhealthy=xid_fatal:NoSchedule" not in world.taints()
    under(world)
    actions = world.round()
    assert actions[0] == "create gpu-1@n1 unhealthy=xid_fatal:NoSchedule"
    assert [each.split()[0] for each in actions[1:]] == ["delete", "delete"]


def test_nodes_under_maintenance_are_in_no_budget_and_no_breaker() -> None:
    world = World(ENFORCE, nodes=10, gpus=8)
    under(world, "n0", "n1", "n2")
    world.stale |= {"n0", "n1", "n2"}  # three of ten: they are off
    world.find(a_finding(gpu(5, 0)))
    world.round()
    assert "gpu-0@n5 unhealthy=xid_fatal:NoSchedule" in world.taints()
    assert world.last.budgets["fleet"] == (1.0, 5.0)  # a tenth of 56
    world.stale.clear()
    world.find(*(a_finding(gpu(node, index), "xid_lost") for node in range(3) for index in range(8)))
    world.round()
    assert world.last.breaker == "closed"
    assert world.memory.holds == {}


def test_a_pause_and_the_cap_hold_new_ones_back_and_never_the_lifting() -> None:
    world = World("mode: enforce\ncap: 3", nodes=3, gpus=2)
    under(world, "n0", "n1")
    world.round()
    assert len(world.taints()) == 3
    assert [reason for _, reason in world.held()] == ["cap"]
    paused = World("mode: enforce\npause: [{node: n1, author: ann}]", nodes=3, gpus=2)
    under(paused, "n0", "n1")
    paused.round()
    assert {each.split("@")[1].split()[0] for each in paused.taints()} == {"n0"}
    assert {reason for _, reason in paused.held()} == {"paused"}
    under(world)
    assert len(world.round()) == 3


def test_the_cap_counts_both_kinds() -> None:
    world = World("mode: enforce\ncap: 2", nodes=3, gpus=2)
    under(world, "n0")
    world.round()
    world.find(a_finding(gpu(2, 0)))
    world.round()
    assert world.held() == [(gpu(2, 0), "cap")]
    assert world.last.budgets["cap"] == (2.0, 2.0)


def test_where_no_taint_may_be_written_any_more_it_goes() -> None:
    world = World(nodes=2, gpus=1)
    under(world, "n1")
    world.round()
    under(world, "n1", effect=None)
    (action,) = world.think().actions
    assert (action.do.value, action.reason) == ("delete", "no taint may be written here now")


def test_one_that_somebody_changed_is_left_alone_and_a_second_one_goes() -> None:
    world = World(nodes=2, gpus=1)
    under(world, "n1")
    world.round()
    (fence,) = world.standing().values()
    world.edit(fence.name, effect="None")
    assert world.round() == []
    assert world.held() == [(gpu(1, 0), "edited")]
    world.delete(fence.name)
    world.round()
    (rule,) = world.cluster.rules.values()
    copied = msgspec.structs.replace(rule.metadata, name=f"{rule.metadata.name}-2", uid="copy")
    world.put(msgspec.structs.replace(rule, metadata=copied))
    assert world.round() == ["delete gpu-0@n1 maintenance=requested:NoSchedule"]


def test_a_name_that_somebody_else_took_is_not_touched() -> None:
    world = World(nodes=2, gpus=1)
    under(world, "n1")
    name = world.extra["kept_free"]["n1"][0].name
    world.round()
    (rule,) = world.cluster.rules.values()
    world.delete(name)
    world.put(msgspec.structs.replace(rule, metadata=msgspec.structs.replace(rule.metadata, labels={})))
    world.round()
    assert {name, f"{name}-2"} == set(world.cluster.rules)
    assert world.round() == []


def test_a_node_that_is_gone_takes_its_own_with_it() -> None:
    world = World(nodes=2, gpus=1)
    under(world, "n1")
    world.round()
    world.node("n1", present=False)
    world.extra = {}
    assert world.round() == ["delete gpu-0@n1 maintenance=requested:NoSchedule"]


def test_the_key_and_driver_are_as_documented() -> None:
    world = World(nodes=2, gpus=1)
    under(world, "n1")
    world.round()
    (rule,) = world.cluster.rules.values()
    assert rule.spec.taint.key == MAINTENANCE == "claimscope.io/maintenance"
    selector = rule.spec.device_selector
    assert selector is not None
    assert (selector.driver, selector.pool, selector.device) == (DRIVER, "n1", "gpu-0")
