"""Fencing, decided: each sentence of its rules on a small cluster, with what stands afterwards."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib

import msgspec
import pytest

from claimscope.claims.model import DeviceKey
from claimscope.health.model import Severity
from claimscope.taints import fences
from claimscope.taints.memory import Ignore, ignoring
from claimscope.taints.model import Do, Mode
from claimscope.taints.policy import Override, Pause
from inventory_objects import a_device, a_rule, a_slice
from taints_help import DRIVER, START, World, a_finding, gpu

LOST, UNHEALTHY, DEGRADED = Severity.LOST, Severity.UNHEALTHY, Severity.DEGRADED
SICK = gpu(1, 3)


def a_world(policy: str = "mode: enforce") -> World:
    return World(policy)


def name_of(uuid: str, severity: Severity, node: str = "n1") -> str:
    return f"claimscope.{node}.{hashlib.sha256(uuid.encode()).hexdigest()[:12]}.{severity.value}"


# --- from finding to fence ---


def test_an_unhealthy_gpu_is_fenced_with_evidence_by_all_three_names() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    assert world.round() == ["create gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]
    (fence,) = world.standing().values()
    assert fence.name == name_of(SICK, UNHEALTHY)
    assert fence.device == DeviceKey(DRIVER, "n1", "gpu-3")
    assert (fence.node, fence.node_uid, fence.uuid, fence.severity) == ("n1", "uid-n1", SICK, UNHEALTHY)
    assert fence.edited is False
    annotations = dict(fence.annotations)
    assert annotations.pop("claimscope.io/spec-hash")
    assert annotations == {
        "claimscope.io/uuid": SICK, "claimscope.io/finding-uuid": SICK, "claimscope.io/node": "n1",
        "claimscope.io/rules": "xid_fatal", "claimscope.io/since": "1700000000",
        "claimscope.io/evidence": '{"xid_fatal":{"xid":"79"}}', "claimscope.io/clears": "A GPU reset.",
        "claimscope.io/serial": "S1", "claimscope.io/boot-id": "B1", "claimscope.io/effect-since": "1700000000",
    }  # fmt: skip
    rule = world.cluster.rules[fence.name]
    assert [(owner.kind, owner.name, owner.uid) for owner in rule.metadata.owner_references or ()] == [
        ("Node", "n1", "uid-n1")
    ]
    assert rule.metadata.labels == {
        "app.kubernetes.io/managed-by": "claimscope", "claimscope.io/node": "n1", "claimscope.io/severity": "unhealthy",
    }


def test_a_round_without_news_writes_nothing() -> None:
    world = a_world()
    world.find(a_finding(SICK), a_finding(gpu(2, 0), "pcie_width", DEGRADED))
    assert len(world.round()) == 2
    assert [world.round(), world.round(30), world.round(3600)] == [[], [], []]


def test_evidence_that_changes_is_no_reason_to_write() -> None:
    world = a_world()
    world.find(a_finding(SICK, evidence={"xid": "79"}))
    world.round()
    world.clear(SICK)
    world.find(a_finding(SICK, evidence={"xid": "79", "times": "2"}))
    assert world.round(5) == []


def test_the_end_of_a_finding_lifts_in_the_same_round() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    world.clear(SICK)
    assert world.round(60) == ["delete gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]
    assert world.last.actions[0].reason == f"no finding of node n1 is against {SICK} any more"
    assert world.taints() == []


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("observe", []),
        ("announce", ["gpu-3@n1 degraded=pcie_width:None", "gpu-3@n1 lost=gpu_lost:None",
                      "gpu-3@n1 unhealthy=xid_fatal:None"]),
        ("enforce", ["gpu-3@n1 degraded=pcie_width:None", "gpu-3@n1 lost=gpu_lost:NoSchedule",
                     "gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]),
    ],
)  # fmt: skip
def test_each_severity_has_its_own_key_and_the_mode_decides_the_effect(mode: str, expected: list[str]) -> None:
    world = a_world(f"mode: {mode}")
    world.find(a_finding(SICK), a_finding(SICK, "pcie_width", DEGRADED), a_finding(SICK, "gpu_lost", LOST))
    world.round()
    assert world.taints() == expected


def test_the_default_announces_and_says_what_it_would_do() -> None:
    world = a_world("")
    world.find(a_finding(SICK), a_finding(gpu(2, 0), "pcie_width", DEGRADED))
    world.round()
    assert world.taints() == ["gpu-0@n2 degraded=pcie_width:None", "gpu-3@n1 unhealthy=xid_fatal:None"]
    assert world.held() == [(SICK, "mode")]


def test_a_milder_event_leaves_a_worse_fence_alone() -> None:
    world = a_world()
    world.find(a_finding(SICK, "gpu_lost", LOST))
    world.round()
    world.find(a_finding(SICK, "pcie_width", DEGRADED))
    assert world.round(10) == ["create gpu-3@n1 degraded=pcie_width:None"]
    assert world.taints() == ["gpu-3@n1 degraded=pcie_width:None", "gpu-3@n1 lost=gpu_lost:NoSchedule"]


def test_a_fence_that_another_one_takes_the_place_of_goes_last() -> None:
    world = a_world("mode: enforce\nrate: {least: 1, share: 0}")
    world.find(a_finding(SICK))
    world.round()
    world.clear(SICK)
    world.find(a_finding(SICK, "gpu_lost", LOST))
    world.options = {"pauses": (Pause(author="ann"),)}
    assert world.round(10) == [
        "create gpu-3@n1 lost=gpu_lost:NoSchedule", "delete gpu-3@n1 unhealthy=xid_fatal:NoSchedule",
    ]


def test_the_drivers_word_leads_then_the_oldest() -> None:
    world = a_world()
    world.find(
        a_finding(SICK, "thermal_shutdown", since=START - 50), a_finding(SICK, "ecc_uncorrected_dram", since=START - 90)
    )
    world.round()
    assert world.taints() == ["gpu-3@n1 unhealthy=ecc_uncorrected_dram:NoSchedule"]
    world.find(a_finding(SICK, "recovery_action", since=START))
    assert world.round(10) == ["update gpu-3@n1 unhealthy=recovery_action:NoSchedule"]


def test_clears_come_first_then_the_worst_then_the_oldest() -> None:
    world = a_world("mode: enforce\nbudgets: {fleet_share: 1, group_share: 1}")
    world.find(a_finding(gpu(0, 0)))
    world.round()
    world.clear(gpu(0, 0))
    world.find(
        a_finding(gpu(1, 0), "pcie_width", DEGRADED, since=START - 900), a_finding(gpu(2, 0), since=START - 10),
        a_finding(gpu(3, 0), since=START - 20), a_finding(gpu(4, 0), "gpu_lost", LOST, since=START),
    )
    assert world.round(601) == [
        "delete gpu-0@n0 unhealthy=xid_fatal:NoSchedule", "create gpu-0@n4 lost=gpu_lost:NoSchedule",
        "create gpu-0@n3 unhealthy=xid_fatal:NoSchedule", "create gpu-0@n2 unhealthy=xid_fatal:NoSchedule",
        "create gpu-0@n1 degraded=pcie_width:None",
    ]


# --- names ---


def test_a_moved_name_is_followed_at_once_even_when_the_agent_is_silent() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    names = {f"gpu-{index}": gpu(1, index) for index in range(8)}
    world.publish(1, {**names, "gpu-3": gpu(1, 5), "gpu-5": SICK})
    world.stale.add("n1")
    assert world.round(5) == ["update gpu-5@n1 unhealthy=xid_fatal:NoSchedule"]
    assert world.standing()[name_of(SICK, UNHEALTHY)].edited is False
    world.publish(1, names)
    world.stale.clear()
    assert world.round(5) == ["update gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]
    assert world.round(5) == []


def test_a_uuid_that_a_complete_pool_lacks_is_lifted_and_held() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    world.publish(1, {"gpu-0": gpu(1, 0)})
    assert world.round(5) == ["delete gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]
    assert world.held() == [(SICK, "unresolved")]
    world.publish(1, {"gpu-0": gpu(1, 0), "gpu-1": SICK})
    assert world.round(5) == ["create gpu-1@n1 unhealthy=xid_fatal:NoSchedule"]


def test_another_gpu_under_the_name_is_freed_as_soon_as_the_pool_is_published_whole() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    world.publish(1, {"gpu-3": gpu(1, 5)}, count=2)
    assert world.round(5) == []  # while a pool is rewritten, what it was stands
    world.publish(1, {"gpu-3": gpu(1, 5)})
    assert world.round(5) == ["delete gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]


@pytest.mark.parametrize("how", ["absent", "incomplete"])
def test_slices_that_are_not_there_say_nothing(how: str) -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    if how == "absent":
        world.withdraw(1)
    else:
        world.publish(1, {"gpu-0": gpu(1, 0)}, count=2)
    assert world.round(5) == []
    assert world.taints() == ["gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]
    world.clear(SICK)
    assert world.round(5) == ["delete gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]


def test_an_agent_cannot_fence_the_gpu_of_another_node() -> None:
    world = a_world()
    world.found["n2"].append(dataclasses.replace(a_finding(SICK), node="n2"))
    assert world.round() == []
    assert world.held() == [(SICK, "unresolved")]


def test_a_finding_on_a_gpu_fences_each_part_of_it_and_one_on_a_part_only_that() -> None:
    world = a_world("mode: enforce\nbudgets: {fleet_share: 1, group_share: 1}")
    parts = {f"gpu-0-mig-{index}": (f"MIG-1-{index}", gpu(1, 0)) for index in range(2)}
    world.publish(1, {"gpu-0": gpu(1, 0), "gpu-1": gpu(1, 1)}, parts=parts)
    world.find(a_finding("MIG-1-1"))
    assert world.round() == ["create gpu-0-mig-1@n1 unhealthy=xid_fatal:NoSchedule"]
    world.clear("MIG-1-1")
    world.find(a_finding(gpu(1, 0)))
    world.round()
    assert world.taints() == [
        "gpu-0-mig-0@n1 unhealthy=xid_fatal:NoSchedule", "gpu-0-mig-1@n1 unhealthy=xid_fatal:NoSchedule",
        "gpu-0@n1 unhealthy=xid_fatal:NoSchedule",
    ]
    assert world.last.budgets["fleet"] == (1.0, 74.0)  # one board; node n1 publishes two of 74
    world.clear(gpu(1, 0))
    world.round()
    assert world.taints() == []


def test_a_part_whose_fence_a_human_deleted_is_left_in_work_alone() -> None:
    world = a_world()
    world.publish(1, {"gpu-0": gpu(1, 0)}, parts={"gpu-0-mig-0": ("MIG-1-0", gpu(1, 0))})
    world.find(a_finding(gpu(1, 0)))
    world.round()
    world.round(5)
    world.delete(name_of("MIG-1-0", UNHEALTHY))
    assert world.round(5) == []
    assert world.held() == [("MIG-1-0", "ignored")]
    assert world.taints() == ["gpu-0@n1 unhealthy=xid_fatal:NoSchedule"]


def test_a_gpu_published_twice_for_two_uses_has_two_fences() -> None:
    world = a_world()
    devices = [a_device(f"gpu-{kind}-0", {"uuid": SICK, "type": kind}) for kind in ("gpu", "vfio")]
    world.cluster.apply("resourceslices", a_slice(devices, driver=DRIVER, pool="n1"), True)
    world.find(a_finding(SICK))
    world.round()
    assert world.taints() == [
        "gpu-gpu-0@n1 unhealthy=xid_fatal:NoSchedule", "gpu-vfio-0@n1 unhealthy=xid_fatal:NoSchedule",
    ]
    assert world.round(5) == []
    assert world.last.budgets["fleet"] == (1.0, 7.0)


def test_a_node_that_is_gone_takes_its_fences_with_it() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    world.node("n1", present=False)
    world.withdraw(1)  # the agent's Lease may outlive the node
    assert world.round(5) == ["delete gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]
    assert world.last.actions[0].reason == "node n1 is gone"
    assert world.round(5) == []
    world.publish(1, {"gpu-3": SICK})  # slices outlive it too
    assert world.round(5) == []


def test_what_the_garbage_collector_took_with_a_node_is_no_humans_wish() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    world.round()
    world.node("n1", present=False)
    world.node("n1", uid="another")
    world.delete(name_of(SICK, UNHEALTHY))
    assert world.round(5) == ["create gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]


# --- other hands ---


def test_a_foreign_rule_is_never_touched_and_its_name_is_avoided() -> None:
    world = a_world()
    world.put(a_rule(name_of(SICK, UNHEALTHY), {"driver": DRIVER, "pool": "n9", "device": "gpu-0"}))
    world.find(a_finding(SICK))
    assert world.round() == ["create gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]
    assert sorted(world.cluster.rules) == [name_of(SICK, UNHEALTHY), f"{name_of(SICK, UNHEALTHY)}-2"]
    assert world.round(5) == []
    world.clear(SICK)
    world.round(5)
    assert list(world.cluster.rules) == [name_of(SICK, UNHEALTHY)]


def test_a_rule_that_a_human_changed_is_left_alone_and_said() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    world.edit(name_of(SICK, UNHEALTHY), effect="None")
    assert world.round(5) == []
    assert world.held() == [(SICK, "edited")]
    world.clear(SICK)
    assert world.round(5) == []
    assert world.taints() == ["gpu-3@n1 unhealthy=xid_fatal:None"]


def test_a_rule_that_a_human_deleted_stays_away_for_an_hour() -> None:
    world = a_world()
    world.find(a_finding(SICK), a_finding(SICK, "gpu_lost", LOST))
    world.round()
    world.round(5)
    world.delete(name_of(SICK, UNHEALTHY))
    assert world.round(5) == []
    assert world.held() == [(SICK, "ignored")]
    assert world.taints() == ["gpu-3@n1 lost=gpu_lost:NoSchedule"]
    assert world.round(3599) == []
    assert world.round(2) == ["create gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]


def test_a_fence_whose_writing_failed_was_not_deleted_by_anybody() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.think()
    world.think(5)
    assert world.round(5) == ["create gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]


def test_a_rule_of_maintenance_that_is_not_as_it_was_made_is_left_alone() -> None:
    world = a_world()
    rule = a_rule("claimscope-x", {"driver": DRIVER, "pool": "n1", "device": "gpu-0"}, key="claimscope.io/maintenance")
    metadata = msgspec.structs.replace(rule.metadata, labels={fences.MANAGED_LABEL: "claimscope"})
    world.put(msgspec.structs.replace(rule, metadata=metadata))
    assert world.round() == []
    assert world.held() == [("", "edited")]


def test_a_rule_with_our_label_and_without_a_device_is_somebody_elses_work() -> None:
    rule = a_rule("claimscope-x", {}, key="claimscope.io/unhealthy")
    metadata = msgspec.structs.replace(rule.metadata, labels={fences.MANAGED_LABEL: "claimscope"})
    world = a_world()
    world.put(msgspec.structs.replace(rule, metadata=metadata))
    assert world.round() == []
    assert world.held() == [("", "edited")]


# --- overrides ---


def until(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(START + seconds, datetime.UTC)


def test_an_ignored_finding_is_lifted_and_comes_back_when_the_override_ends() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    world.options = {
        "overrides": (Override(do="ignore", uuid=SICK, rule="xid_fatal", until=until(100), author="ann", reason="ok"),)
    }
    assert world.round(10) == ["delete gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]
    assert world.last.actions[0].reason == "ann ignores it until 2023-11-14T22:15:00+00:00: ok"
    assert world.round(80) == []
    assert world.held() == [(SICK, "ignored")]
    assert world.round(11) == ["create gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]


def test_an_ignore_lifts_the_fence_of_a_silent_node_too() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    world.stale.add("n1")
    world.memory = ignoring(world.memory, [Ignore(uuid=SICK, rule="", until_wall=START + 100)])
    assert world.round(10) == ["delete gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]


def test_a_human_may_declare_a_gpu_unhealthy() -> None:
    world = a_world("")
    world.options = {"overrides": (Override(do="pin_unhealthy", uuid=SICK, until=until(100), author="ann"),)}
    assert world.round() == ["create gpu-3@n1 unhealthy=pinned:NoSchedule"]
    (fence,) = world.standing().values()
    assert fence.annotations[fences.EVIDENCE] == '{"pinned":{"author":"ann","until":"2023-11-14T22:15:00+00:00"}}'
    assert world.round(101) == ["delete gpu-3@n1 unhealthy=pinned:NoSchedule"]


@pytest.mark.parametrize("silent", [False, True])
def test_a_pin_and_a_finding_are_one_fence(silent: bool) -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    world.stale = {"n1"} if silent else set()
    world.options = {"overrides": (Override(do="pin_unhealthy", uuid=SICK, until=until(100), author="ann"),)}
    world.round(1)
    (fence,) = world.standing().values()
    assert (fence.value, fence.annotations[fences.RULES]) == ("xid_fatal", "xid_fatal,pinned")
    world.round(100)
    assert world.taints() == ["gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]


@pytest.mark.parametrize(("node", "group"), [("", ""), ("n1", ""), ("", "h100")])
def test_a_pause_stops_new_fences_and_no_lifting(node: str, group: str) -> None:
    world = a_world()
    world.groups["n1"] = "h100"
    world.find(a_finding(SICK))
    world.round()
    world.options = {"pauses": (Pause(author="ann", reason="upgrade", node=node, group=group),)}
    world.clear(SICK)
    world.find(a_finding(gpu(1, 4)), a_finding(gpu(1, 5), "pcie_width", DEGRADED))
    assert world.round(5) == ["delete gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]
    assert {(each.fence.uuid, each.reason, each.text) for each in world.last.held} == {
        (gpu(1, 4), "paused", "paused by ann: upgrade"), (gpu(1, 5), "paused", "paused by ann: upgrade"),
    }
    world.find(a_finding(gpu(2, 0)))
    assert world.round(5) == ([] if node == group else ["create gpu-0@n2 unhealthy=xid_fatal:NoSchedule"])


# --- silence ---


def test_what_stands_stays_while_the_agent_is_silent_and_nothing_new_comes_from_it() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    world.clear(SICK)
    world.find(a_finding(gpu(1, 0)))
    world.stale.add("n1")
    assert world.round(86400) == []
    assert world.taints() == ["gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]
    world.stale.clear()
    assert world.round(5) == [
        "delete gpu-3@n1 unhealthy=xid_fatal:NoSchedule", "create gpu-0@n1 unhealthy=xid_fatal:NoSchedule",
    ]


def test_a_report_with_gaps_ends_nothing() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    world.clear(SICK)
    world.partial.add("n1")
    assert world.round(5) == []


def test_more_than_a_fifth_of_silent_agents_stops_new_blocking_fences() -> None:
    world = a_world()
    world.find(a_finding(SICK), a_finding(gpu(1, 5)))
    world.stale = {"n7", "n8"}
    world.round()
    world.stale = {"n7", "n8", "n9"}
    world.clear(SICK)
    world.find(a_finding(gpu(2, 0)))
    assert world.round(5) == [
        "delete gpu-3@n1 unhealthy=xid_fatal:NoSchedule", "create gpu-0@n2 unhealthy=xid_fatal:None",
    ]
    assert [(each.reason, each.text) for each in world.last.held] == [("stale", "3 of 10 agents are silent")]
    world.stale = {"n7", "n8"}
    assert world.round(5) == ["update gpu-0@n2 unhealthy=xid_fatal:NoSchedule"]


# --- modes ---


def test_group_and_rule_go_before_the_default_and_the_milder_of_both_counts() -> None:
    world = a_world(
        "mode: announce\ngroups: {prod: {mode: announce}, lab: {mode: enforce}}\n"
        "rules: {xid_fatal: {mode: enforce}, gpu_lost: {mode: observe}}\nbudgets: {group_share: 1}"
    )
    world.groups = {"n1": "prod", "n2": "lab"}
    world.find(
        *(a_finding(gpu(node, 0), since=START - 3600) for node in range(3)),
        a_finding(gpu(2, 1), "reset_required"), a_finding(gpu(2, 2), "gpu_lost", LOST),
    )
    world.round()
    assert world.taints() == [
        "gpu-0@n0 unhealthy=xid_fatal:None", "gpu-0@n1 unhealthy=xid_fatal:None",  # n0 may be of either group
        "gpu-0@n2 unhealthy=xid_fatal:NoSchedule", "gpu-1@n2 unhealthy=reset_required:NoSchedule",
    ]


@pytest.mark.parametrize("silent", [False, True])
def test_a_lowered_mode_lowers_what_stands(silent: bool) -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    world.stale = {"n1"} if silent else set()
    world.extra = {"ceiling": Mode.ANNOUNCE}
    assert world.round(5) == ["update gpu-3@n1 unhealthy=xid_fatal:None"]
    world.extra = {"ceiling": Mode.OBSERVE, "ceiling_text": "the scheduler is not safe with rules"}
    assert world.round(5) == ["delete gpu-3@n1 unhealthy=xid_fatal:None"]
    assert world.last.actions[0].reason == "the scheduler is not safe with rules"


def test_an_agent_that_writes_for_itself_touches_nothing_else() -> None:
    world = a_world()
    world.find(a_finding(SICK), a_finding(gpu(2, 0)))
    world.round()
    world.clear(gpu(2, 0))
    world.clear(SICK)
    world.found = {"n1": world.found["n1"]}
    world.options = {"only_node": "n1"}
    assert world.round(5) == ["delete gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]


# --- a rule as it is read ---


def test_an_unknown_effect_or_key_of_our_own_rule_tells_of_another_hand() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    world.edit(name_of(SICK, UNHEALTHY), key="example.com/mine")
    fence = fences.standing(world.cluster.rules[name_of(SICK, UNHEALTHY)])
    assert fence is not None
    assert fence.edited is True
    assert world.round(5) == []


def test_rules_that_were_not_read_were_taken_away_by_nobody() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    before = world.memory
    standing = dict(world.cluster.rules)
    world.cluster.rules.clear()
    world.options = {"rules_read": False, "device_taints": False}
    world.think(5)
    assert (world.memory.known, world.memory.ignores) == (before.known, ())
    world.cluster.rules.update(standing)
    world.options = {}
    assert world.round(5) == []


def test_a_fence_without_its_uuid_is_left_alone() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    (rule,) = world.cluster.rules.values()
    kept = {key: text for key, text in (rule.metadata.annotations or {}).items() if key != fences.UUID}
    world.put(msgspec.structs.replace(rule, metadata=msgspec.structs.replace(rule.metadata, annotations=kept)))
    world.clear(SICK)
    assert world.round(5) == []
    assert world.held() == [("", "edited")]


def test_foreign_annotations_are_theirs() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    world.round()
    (rule,) = world.cluster.rules.values()
    annotations = {**(rule.metadata.annotations or {}), "example.com/ticket": "7"}
    metadata = msgspec.structs.replace(rule.metadata, annotations=annotations)
    world.put(msgspec.structs.replace(rule, metadata=metadata))
    assert world.round(5) == []


def test_actions_name_what_they_do() -> None:
    world = a_world()
    world.find(a_finding(SICK))
    (action,) = world.think().actions
    assert (action.do, action.reason) == (Do.CREATE, f"xid_fatal: {SICK} is unhealthy")
