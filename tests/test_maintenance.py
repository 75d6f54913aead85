"""How far a maintenance is, decided from what is seen and what was remembered; nothing is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claimscope.kube.objects import Node as KubeNode
from claimscope.kube.objects import NodeMeta, NodeNotes
from claimscope.taints.maintenance import NodeFacts, Phase, Request, Status, legible, step
from claimscope.taints.maintenance_ask import Answer, Ask
from claimscope.taints.maintenance_facts import LATEST_WALL, request_of
from claimscope.taints.memory import Maintained
from claimscope.taints.policy import MaintenancePolicy
from inventory_objects import make

START = 1_700_000_000.0
BY_ANN = Request(reason="fan swap", by="ann")
FACTS = NodeFacts(
    node="n1",
    node_uid="u1",
    request=BY_ANN,
    gpus=8,
    known_gpus=8,
    devices=8,
    announced=8,
    fenced=8,
    confirmed=8,
    standing=8,
    boot_id="b1",
    heard_wall=START,
    renewed_wall=START,
)
NOTHING_PUT_UP: dict[str, Any] = {"announced": 0, "fenced": 0, "confirmed": 0, "standing": 0}


class Node:
    """One node's maintenance, step by step; the memory goes through its text each time."""

    def __init__(self, **policy: Any) -> None:
        self.policy = MaintenancePolicy(**policy)
        self.now = START
        self.memory: dict[str, Maintained] = {}
        self.status: Status | None = None

    def step(self, facts: NodeFacts, seconds: float = 0.0) -> str:
        """The phase after a step; "" once it is over."""
        self.now += seconds
        found = step([facts], self.memory, self.policy, fleet=100, groups={}, now_wall=self.now)
        text = msgspec.json.encode(found.states)
        self.memory = msgspec.json.decode(text, type=dict[str, Maintained])
        self.status = found.statuses.get(facts.node)
        return "" if self.status is None else self.status.phase.value

    @property
    def uid(self) -> str:
        return self.memory["n1"].uid

    def answered(self, facts: NodeFacts = FACTS, **answer: Any) -> NodeFacts:
        return replace(facts, answer=Answer(uid=self.uid, **answer))

    def ready(self) -> None:
        self.step(replace(FACTS, **NOTHING_PUT_UP))
        self.step(FACTS)
        assert self.step(self.answered(released=True, processes=0)) == "ready"


def said(node: Node) -> tuple[str, str, str | None, Ask | None]:
    assert node.status is not None
    return node.status.reason, node.status.message, node.status.effect, node.status.ask


def test_from_the_wish_to_ready() -> None:
    node = Node()
    node.step(replace(FACTS, **NOTHING_PUT_UP))
    watch, release = Ask(uid=node.uid, do="watch"), Ask(uid=node.uid, do="release")
    by = " Maintenance by ann: fan swap"
    assert said(node) == ("Announced", f"0 of 8 devices are announced.{by}", "None", watch)
    node.step(replace(FACTS, fenced=0, confirmed=0))
    assert said(node) == ("WaitingForTaints", f"0 of 8 devices are kept from new work.{by}", "NoSchedule", watch)
    node.step(replace(FACTS, confirmed=1))
    text = (
        "Kubernetes confirms the taints of 1 of 8 devices; if that stays so, cordon the node, and check the feature "
        "gate DRADeviceTaintRules."
    )
    assert said(node) == ("WaitingForTaints", text + by, "NoSchedule", watch)
    held = replace(FACTS, holders=("claim t/a (pods a-0)",))
    node.step(held)
    assert said(node) == ("WaitingForClaims", f"Held by claim t/a (pods a-0).{by}", "NoSchedule", watch)
    node.step(FACTS)
    text = "The node's agent is asked to let NVML go and has not answered yet."
    assert said(node) == ("WaitingForAgent", text + by, "NoSchedule", release)
    node.step(node.answered(processes=2))
    assert said(node)[:2] == ("WaitingForProcesses", f"Processes that use its GPUs: 2.{by}")
    node.step(node.answered(processes=0))
    assert said(node)[:2] == ("WaitingForAgent", f"The node's agent has not let NVML go yet.{by}")
    node.step(node.answered(released=True, processes=0))
    text = "No claim holds its GPUs and the agent has let NVML go: it can go offline."
    assert said(node) == ("Ready", text + by, "NoSchedule", release)


def test_more_than_five_claims_are_counted() -> None:
    node = Node()
    node.step(replace(FACTS, holders=tuple(f"claim t/{number}" for number in range(8))))
    assert said(node)[1].startswith("Held by claim t/0; claim t/1; claim t/2; claim t/3; claim t/4 and 3 more.")
    assert node.status is not None
    assert node.status.holders == 8


def test_an_answer_to_an_earlier_maintenance_is_not_believed() -> None:
    node = Node()
    assert node.step(replace(FACTS, answer=Answer(uid="earlier", released=True))) == "waiting_for_agent"


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (replace(FACTS, heard_wall=0.0, stale=True), "No agent of claimscope has been heard of on this node."),
        (replace(FACTS, stale=True), "The node's agent has not been heard of since 2023-11-14T22:13:20Z."),
    ],
)
def test_without_an_agent_it_is_not_ready(facts: NodeFacts, text: str) -> None:
    node = Node()
    assert node.step(facts) == "waiting_for_agent"
    assert said(node)[1].startswith(text)


def test_a_node_that_is_ready_may_go_off_and_come_back() -> None:
    node = Node()
    node.ready()
    off = replace(node.answered(released=True), stale=True, published=False, gpus=0, devices=0)
    assert node.step(off, 600) == "ready"
    booted = node.answered(replace(FACTS, boot_id="b2"), released=True)
    assert node.step(booted, 600) == "ready"
    # Somebody took NVML up again by hand, or a claim that tolerates the taint got a device.
    assert node.step(node.answered(processes=0)) == "waiting_for_agent"
    assert node.step(node.answered(released=True)) == "ready"
    assert node.step(node.answered(replace(FACTS, holders=("claim t/a",)), released=True)) == "waiting_for_claims"


def test_a_board_put_in_meanwhile_is_fenced_at_once() -> None:
    node = Node()
    node.ready()
    release = said(node)[3]
    assert node.step(replace(node.answered(released=True), announced=7, fenced=7, confirmed=7)) == "waiting_for_taints"
    assert said(node)[2:] == ("NoSchedule", release)  # NVML stays let go: somebody is at work
    assert node.step(node.answered(released=True, processes=0)) == "ready"


def test_a_deadline_that_passes_is_said_and_it_goes_on() -> None:
    node = Node()
    facts = replace(FACTS, request=replace(BY_ANN, deadline_wall=START + 60), holders=("claim t/a (pods a-0)",))
    node.step(facts)
    assert said(node)[1] == (
        "Held by claim t/a (pods a-0). The deadline is 2023-11-14T22:14:20Z. Maintenance by ann: fan swap"
    )
    node.step(facts, 60)
    assert said(node)[:2] == (
        "DeadlineMissed",
        "The deadline 2023-11-14T22:14:20Z has passed. Held by claim t/a (pods a-0). Maintenance by ann: fan swap",
    )
    assert node.status is not None
    assert node.status.missed
    free = replace(facts, holders=())
    node.step(free)
    node.step(node.answered(free, released=True))
    assert said(node)[0] == "Ready"


def test_a_deadline_that_is_no_time_is_said() -> None:
    node = Node()
    problem = "The deadline `soon` is no RFC 3339 time such as 2026-11-21T18:00:00Z, and is not kept."
    node.step(replace(FACTS, request=replace(BY_ANN, deadline_problem=problem), holders=("claim t/a",)))
    assert said(node)[:2] == ("WaitingForClaims", f"Held by claim t/a. {problem} Maintenance by ann: fan swap")


def test_where_no_taint_may_be_written_it_goes_on_and_says_so() -> None:
    node = Node()
    unfenced = "No taint is put up (the mode is observe)."
    facts = replace(FACTS, highest=None, unfenced=unfenced, **NOTHING_PUT_UP)
    assert node.step(facts) == "waiting_for_taints"
    assert said(node)[1:3] == (f"{unfenced} Cordon the node. Maintenance by ann: fan swap", None)
    facts = replace(facts, cordoned=True)
    assert node.step(facts) == "waiting_for_agent"
    assert unfenced in said(node)[1]
    assert node.step(node.answered(facts, released=True)) == "ready"
    assert node.step(replace(facts, request=None)) == "verifying"
    assert node.step(replace(facts, request=None, renewed_wall=node.now + 1), 1) == "verifying"
    assert node.step(replace(facts, request=None, renewed_wall=node.now + 601), 600) == ""


def test_a_taint_of_the_node_or_a_cordon_serves_where_device_taints_do_not() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "waiting_for_taints"), ({"node_tainted": True}, "waiting_for_agent"),
        ({"cordoned": True}, "waiting_for_agent"),
    ]  # fmt: skip
    for more, phase in cases:
        node = Node()
        facts = replace(FACTS, highest=None, unfenced="Its devices are not tainted (why).", taints_node=True, **more)
        assert node.step(facts) == phase
        assert ("The Node does not carry the taint" in said(node)[1]) == (not more)
        mixed = replace(FACTS, taints_node=True, **more)  # slices publish some, a device plugin gives out the others
        assert Node().step(mixed) == phase
    assert Node().step(replace(FACTS, confirmed=0, cordoned=True)) == "waiting_for_agent"


def test_ready_falls_with_the_taints() -> None:
    node = Node()
    node.ready()
    assert node.step(replace(node.answered(released=True, processes=0), announced=8, fenced=0)) == "waiting_for_taints"
    off = replace(node.answered(released=True), stale=True, published=False, devices=0, fenced=0)
    assert node.step(off) == "waiting_for_taints"


def test_it_is_not_ready_while_slices_are_away() -> None:
    node = Node()
    node.step(FACTS)
    assert node.step(replace(node.answered(released=True, processes=0), published=False)) == "waiting_for_claims"
    assert said(node)[1].startswith("Not all of its devices are published: whether a claim holds one is not known.")


def test_an_agent_that_this_leader_has_not_heard_itself_may_be_dead() -> None:
    node = Node()
    node.step(FACTS)
    assert node.step(replace(node.answered(released=True, processes=0), renewed_wall=0.0)) == "waiting_for_agent"


def test_nvml_that_was_let_go_while_processes_ran_or_were_not_counted() -> None:
    node = Node()
    node.step(FACTS)
    assert node.step(node.answered(released=True, processes=3)) == "waiting_for_processes"
    assert node.step(node.answered(released=True)) == "ready"
    assert "Its processes could not be counted: look on the node whether one uses a GPU." in said(node)[1]


def test_a_node_without_gpus_takes_no_place_and_no_taint() -> None:
    bare = replace(FACTS, node="cpu", no_gpus=True, gpus=0, known_gpus=0, devices=0, **NOTHING_PUT_UP)
    found = step([bare, replace(FACTS, node="n1", **NOTHING_PUT_UP)], {}, MaintenancePolicy(), fleet=1, groups={},
                 now_wall=START)  # fmt: skip
    assert found.nodes == {"n1"}
    status = found.statuses["cpu"]
    assert (status.reason, status.effect, status.kept_free, status.ask) == ("NoGpus", None, False, None)
    assert status.message.startswith("Neither slices, its capacity nor an agent tell of a GPU on this node")


def test_gpus_that_show_up_later_begin_it_and_are_not_taken_for_all_there_were() -> None:
    node = Node()
    bare = replace(FACTS, no_gpus=True, gpus=0, known_gpus=0, devices=0, published=False, **NOTHING_PUT_UP)
    assert node.step(bare) == "no_gpus"
    assert node.step(replace(FACTS, **NOTHING_PUT_UP)) == "announced"
    assert node.memory["n1"].gpus == 0
    node.step(replace(FACTS, told_gpus=8))
    assert node.memory["n1"].gpus == 8
    assert node.step(replace(bare, request=None), 1) != ""
    node = Node()
    node.step(bare)
    assert node.step(replace(bare, request=None)) == ""
    assert node.memory == {}


# --- what was remembered ---


def test_what_another_version_remembered_is_not_taken_up() -> None:
    assert legible(Maintained(uid="a", phase="draining", started_wall=1.0), START) is None


@settings(max_examples=200)
@given(
    st.lists(
        st.builds(
            Maintained, uid=st.text(max_size=3), phase=st.sampled_from([phase.value for phase in Phase] + ["draining"]),
            started_wall=st.floats(allow_nan=False), ended_wall=st.floats(allow_nan=False),
            quiet_wall=st.floats(allow_nan=False), gpus=st.integers(-9, 99), touched=st.booleans(),
            boot_id=st.text(max_size=3), unverified=st.text(max_size=3), let_go=st.booleans(),
        ),
        min_size=1, max_size=3,
    ),
    st.one_of(st.none(), st.text(max_size=40), st.datetimes().map(lambda when: f"{when.isoformat()}Z"),
              st.sampled_from(["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00"])),
    st.booleans(), st.booleans(), st.floats(allow_nan=False),
)  # fmt: skip
def test_whatever_annotations_and_memory_say_a_step_is_decided(
    states: list[Maintained], deadline: str | None, wanted: bool, stale: bool, heard_wall: float
) -> None:
    notes = NodeNotes(maintenance="x" if wanted else None, maintenance_deadline=deadline)
    request = request_of(make(KubeNode, metadata=msgspec.to_builtins(NodeMeta(name="n0", annotations=notes))))
    assert request is None or request.deadline_wall is None or 0 <= request.deadline_wall <= LATEST_WALL
    known = {f"n{number}": state for number, each in enumerate(states) if (state := legible(each, START)) is not None}
    facts = [
        replace(FACTS, node=f"n{number}", request=request, stale=stale, renewed_wall=min(heard_wall, START))
        for number in range(3)
    ]
    found = step(facts, known, MaintenancePolicy(), fleet=100, groups={}, now_wall=START)
    for status in found.statuses.values():
        assert status.started_wall is None or 0 <= status.started_wall <= START


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("9999-12-31T23:59:59-12:00", "is not between 1970 and 2100, and is not kept."),
        ("0001-01-01T00:00:00+14:00", "is not between 1970 and 2100, and is not kept."),
        ("tomorrow", "is no RFC 3339 time such as 2026-11-21T18:00:00Z, and is not kept."),
        ("2026-11-21T18:00:00Z", ""),
    ],
)
def test_deadlines_that_are_none(text: str, problem: str) -> None:
    node = make(KubeNode, metadata={
        "name": "n1", "annotations": {"claimscope.io/maintenance": "x", "claimscope.io/maintenance-deadline": text},
    })  # fmt: skip
    request = request_of(node)
    assert request is not None
    assert request.deadline_problem == (f"The deadline `{text}` {problem}" if problem else "")


# --- budget ---


def many(nodes: int, **more: Any) -> list[NodeFacts]:
    return [replace(FACTS, node=f"n{number}", **more) for number in range(nodes)]


def phases(facts: list[NodeFacts], memory: dict[str, Maintained], groups: dict[str, str], **policy: Any) -> list[str]:
    found = step(facts, memory, MaintenancePolicy(**policy), fleet=40, groups=groups, now_wall=START)
    return [found.statuses[each.node].reason for each in facts]


def test_one_node_of_a_group_at_a_time_and_a_share_of_the_fleet() -> None:
    fresh = NOTHING_PUT_UP
    assert phases(many(3, **fresh), {}, {}) == ["Announced", "WaitingForBudget", "WaitingForBudget"]
    groups = [replace(each, group=each.node) for each in many(4, **fresh)]
    assert phases(groups, {}, {}) == ["Announced", "Announced", "WaitingForBudget", "WaitingForBudget"]
    assert phases(groups, {}, {}, fleet_share=0.0) == ["Announced", *["WaitingForBudget"] * 3]


def test_the_nearest_deadline_goes_first_and_what_was_begun_stays() -> None:
    urgent = replace(BY_ANN, deadline_wall=START + 60)
    facts = many(2, **NOTHING_PUT_UP)
    facts[1] = replace(facts[1], request=urgent)
    assert phases(facts, {}, {}) == ["WaitingForBudget", "Announced"]
    begun = {"n0": Maintained(uid="a", phase="announced", started_wall=START)}
    assert phases(facts, begun, {"n0": ""}) == ["Announced", "WaitingForBudget"]


def test_a_missed_deadline_is_said_while_it_waits_for_its_turn_too() -> None:
    late = replace(BY_ANN, deadline_wall=START - 60)
    begun = {"n0": Maintained(uid="a", phase="announced", started_wall=START)}
    facts = many(2)
    facts[1] = replace(facts[1], request=late, **NOTHING_PUT_UP)
    assert phases(facts, begun, {"n0": ""})[1] == "DeadlineMissed"


# --- the way back ---


BACK = replace(FACTS, request=None)


def test_what_nobody_can_have_touched_is_given_back_at_once() -> None:
    node = Node()
    node.step(replace(FACTS, holders=("claim t/a",)))
    assert node.step(BACK) == "lifting"
    assert said(node)[2] is None
    assert node.step(replace(BACK, standing=0)) == ""
    assert node.memory == {}


@pytest.mark.parametrize("what", [{"boot_id": "b2"}, {"stale": True}, {"gpus": 7}])
def test_a_node_that_was_touched_before_it_was_ready_is_verified(what: dict[str, Any]) -> None:
    node = Node()
    node.step(replace(FACTS, holders=("claim t/a",)))
    assert node.step(replace(BACK, **what)) == "verifying"


def test_verified_when_it_has_been_quiet_for_long_enough() -> None:
    node = Node()
    node.ready()
    assert node.step(node.answered(BACK, released=True)) == "verifying"
    assert said(node)[1] == "The node's agent has not been heard of since the maintenance ended."
    assert node.step(replace(BACK, renewed_wall=START + 10, answer=Answer(uid="x", released=True)), 10) == "verifying"
    assert said(node)[1] == "The node's agent has not taken NVML up again."
    back = replace(BACK, renewed_wall=START + 20)
    assert node.step(back, 10) == "verifying"
    assert said(node)[1] == "Nothing is wrong with it; it is given back at 2023-11-14T22:23:40Z if that stays so."
    assert node.step(replace(back, renewed_wall=START + 619), 599) == "verifying"
    assert node.step(replace(back, renewed_wall=START + 620), 1) == "lifting"
    assert node.step(replace(back, standing=0)) == ""


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ({"gpus": 7}, "7 of 8 GPUs are published."),
        ({"published": False}, "Not all of its devices are published."),
        ({"stale": True}, "The node's agent has not been heard of since the maintenance ended."),
        ({"partial": True}, "The node's agent does not say all that it finds."),
    ],
)
def test_what_does_not_come_back_fails_after_a_while_and_goes_on_when_it_does(what: dict[str, Any], text: str) -> None:
    node = Node()
    node.ready()
    back = replace(BACK, renewed_wall=START + 1)
    assert node.step(replace(back, **what)) == "verifying"
    assert node.step(replace(back, **what), 599) == "verifying"
    assert node.step(replace(back, **what), 1) == "verify_failed"
    assert said(node)[:3] == (
        "VerifyFailed",
        f"{text} It goes on by itself once that is mended; `claimscope maintenance finish --without-verification` "
        "gives n1 back as it is.",
        "NoSchedule",
    )
    assert node.step(back) == "verifying"
    assert node.step(back, 600) == "lifting"


def test_a_swapped_board_is_fine() -> None:
    node = Node()
    node.ready()
    assert node.step(replace(BACK, renewed_wall=START + 1, announced=7, fenced=7, standing=8)) == "verifying"
    assert "Nothing is wrong" in said(node)[1]


def test_how_many_gpus_it_had_is_the_most_that_anything_told_and_not_known_if_nothing_did() -> None:
    node = Node()
    away = replace(FACTS, published=False, gpus=0, known_gpus=0)
    node.step(away)
    node.ready()  # what is published by and by may be less than there was
    assert node.step(replace(BACK, renewed_wall=START + 1)) == "verify_failed"
    assert said(node)[1] == (
        "How many GPUs it had before is not known. `claimscope maintenance finish --without-verification` gives n1 "
        "back as it is."
    )
    node = Node()
    node.step(replace(away, known_gpus=6))  # the agent sees six
    node.step(replace(away, known_gpus=8))
    node.ready()
    assert node.step(replace(BACK, renewed_wall=START + 1, gpus=6)) == "verifying"
    assert said(node)[1] == "6 of 8 GPUs are published."


def test_a_leader_that_has_not_heard_the_agent_does_not_give_the_node_back() -> None:
    node = Node()
    node.ready()
    node.step(BACK)
    node.step(replace(BACK, renewed_wall=START + 1), 1)
    assert node.step(replace(BACK, renewed_wall=0.0), 600) == "verifying"
    assert said(node)[1] == "The node's agent has not been heard of yet by the controller that leads now."
    assert node.step(replace(BACK, renewed_wall=START + 610), 10) == "lifting"  # the quiet was no less quiet
    node = Node()
    node.ready()
    node.step(BACK)
    assert node.step(replace(BACK, renewed_wall=0.0), 600) == "verify_failed"


def test_a_finding_fails_at_once_and_the_taints_stay() -> None:
    node = Node()
    node.ready()
    back = replace(BACK, renewed_wall=START + 1)
    node.step(back)
    assert node.step(replace(back, findings=("GPU-3 (row_remap_pending)",)), 300) == "verify_failed"
    assert said(node)[1].startswith("Findings: GPU-3 (row_remap_pending).")
    assert node.step(back, 1) == "verifying"
    assert node.step(back, 599) == "verifying"  # quiet anew
    assert node.step(back, 1) == "lifting"


def test_a_person_may_give_it_back_as_it_is() -> None:
    node = Node()
    node.ready()
    bad = replace(BACK, findings=("GPU-3 (xid_fatal)",))
    assert node.step(bad) == "verify_failed"
    assert node.step(replace(bad, unverified="ann 2026-11-21T12:00:00Z")) == "lifting"
    assert said(node)[1] == "Given back without verification (ann 2026-11-21T12:00:00Z); the taints go."


def test_a_word_of_an_earlier_maintenance_does_not_count() -> None:
    node = Node()
    old = replace(FACTS, unverified="ann 2026-01-01T00:00:00Z")
    node.step(old)
    node.step(node.answered(old, released=True))
    assert node.step(replace(old, request=None)) == "verifying"


def test_wanted_again_while_it_is_verified() -> None:
    node = Node()
    node.ready()
    first = node.uid
    node.step(BACK)
    assert node.step(node.answered(released=True), 10) == "waiting_for_agent"
    assert node.uid != first
    assert node.memory["n1"].touched
    assert node.memory["n1"].gpus == 8


def test_taints_without_memory_are_not_just_lifted() -> None:
    node = Node()
    assert node.step(BACK) == "verifying"
    assert node.memory["n1"].gpus == 8
    again = Node()
    assert again.step(FACTS) == "waiting_for_agent"  # no place is asked for what stands already
    swapped = Node()
    swapped.step(replace(FACTS, announced=7, fenced=7))
    assert said(swapped)[2] == "NoSchedule"  # what stands is not weakened to announce one more


@settings(max_examples=300)
@given(
    st.lists(
        st.fixed_dictionaries({}, optional={
            "request": st.sampled_from([None, BY_ANN, replace(BY_ANN, deadline_wall=START + 100)]),
            "announced": st.integers(0, 8), "fenced": st.integers(0, 8), "standing": st.integers(0, 8),
            "gpus": st.integers(0, 8), "published": st.booleans(), "stale": st.booleans(),
            "renewed_wall": st.one_of(st.just(0.0), st.floats(START - 100, START + 2000)),
            "boot_id": st.sampled_from(["", "b1", "b2"]),
            "holders": st.sampled_from([(), ("claim t/a",)]), "findings": st.sampled_from([(), ("GPU-0 (lost)",)]),
            "answer": st.sampled_from([None, Answer(uid="?"), Answer(uid="!", released=True)]),
            "highest": st.sampled_from(["NoSchedule", "None", None]), "cordoned": st.booleans(),
            "node_tainted": st.booleans(), "taints_node": st.booleans(), "confirmed": st.integers(0, 8),
            "known_gpus": st.integers(0, 8),
        }),
        max_size=12,
    ),
    st.lists(st.floats(0, 700), min_size=12, max_size=12),
)  # fmt: skip
def test_whatever_happens(changes: list[dict[str, Any]], pauses: list[float]) -> None:
    """Ready is said only without holders and with the agent's word; what may have been touched is verified."""
    node = Node()
    before = ""
    for change, seconds in zip(changes, pauses, strict=False):
        facts = replace(FACTS, **change)
        if facts.answer is not None and facts.answer.uid == "!" and node.memory:
            facts = replace(facts, answer=Answer(uid=node.uid, released=True))
        touched = bool(node.memory) and node.memory["n1"].touched
        phase = node.step(facts, seconds)
        if phase == "ready":
            assert not facts.holders
            assert facts.cordoned or facts.node_tainted or (facts.highest == "NoSchedule" and facts.fenced >= 8)
            assert before == "ready" or (facts.published and facts.renewed_wall)
            assert facts.request is not None
            assert before == "ready" or (not facts.stale and facts.answer is not None and facts.answer.released)
        if facts.request is not None:
            assert phase not in ("", "verifying", "verify_failed", "lifting")
        elif before not in ("", "lifting") and before == "ready":
            assert touched
            assert phase in ("verifying", "verify_failed")
        assert (node.status is None) == (phase == "")
        assert phase == "" or Phase(phase) is not None
        before = phase
