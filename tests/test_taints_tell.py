"""What Nodes and Events say of findings, and what people ask for in annotations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from claimscope.claims.model import DeviceKey
from claimscope.health.model import Severity
from claimscope.health.rules import RULES
from claimscope.kube.api import ApiClient, OpenAccess
from claimscope.taints import command, conditions
from claimscope.taints.conditions import NodeCondition
from claimscope.taints.events import BURST, About, Announcer, Note, event_object, of_action
from claimscope.taints.memory import Ignore, Memory
from claimscope.taints.model import Action, Do, Fence, NodeReport, ReportedFinding
from claimscope.taints.notebook import Asked, asked_of, paused_by
from claimscope.taints.violations import CONSTRAINT_OF_RULE, CONSTRAINTS

NODE = About(kind="Node", name="node-1", uid="uid-1")
FENCE = Fence(
    name="f", device=DeviceKey("gpu.nvidia.com", "node-1", "gpu-3"), key="claimscope.io/unhealthy", value="xid_fatal",
    effect="NoSchedule", uuid="GPU-3", node="node-1",
)


def found(uuid: str, severity: Severity = Severity.UNHEALTHY, **more: Any) -> ReportedFinding:
    return ReportedFinding(
        node="node-1", uuid=uuid, serial="", rule=more.pop("rule", "xid_fatal"), severity=severity, since_wall=0.0,
        **more,
    )


def report(*findings: ReportedFinding, stale: bool = False) -> NodeReport:
    return NodeReport(
        node="node-1", node_uid="uid-1", group="", heard_wall=0.0, stale=stale, devices=8, findings=findings
    )


def test_a_node_of_which_nothing_was_ever_found_says_nothing() -> None:
    assert conditions.wanted(report(), ()) == ()
    assert conditions.wanted(report(stale=True), ()) == ()


def test_a_node_that_said_something_says_when_it_is_over() -> None:
    assert conditions.wanted(report(), ("GPUUnhealthy",)) == (
        NodeCondition(type="GPUDegraded", status="False", reason="NoFindings",
                      message="No GPU has such a finding."),
        NodeCondition(type="GPUUnhealthy", status="False", reason="NoFindings",
                      message="No GPU has such a finding."),
    )


@pytest.mark.parametrize(
    ("finding", "reason"),
    [
        (found("GPU-1"), "GPUFindings"),
        (found("GPU-1", Severity.LOST, rule="gpu_lost"), "GPULost"),
        (found("GPU-1", systemic=True), "ManyAtOnce"),
    ],
)
def test_reasons(finding: ReportedFinding, reason: str) -> None:
    assert conditions.wanted(report(finding), ())[1].reason == reason


def test_a_silent_agent_leaves_what_it_said_and_makes_it_unknown() -> None:
    _, unhealthy = conditions.wanted(report(found("GPU-1"), stale=True), ())
    assert (unhealthy.status, unhealthy.reason) == ("Unknown", "AgentSilent")
    assert unhealthy.message == (
        "The node's agent has not been heard of; what it found stands. It said last: 1 GPU: GPU-1 (xid_fatal)"
    )


def test_a_message_names_five_gpus_and_is_bounded() -> None:
    many = [found(f"GPU-{number}") for number in range(8)]
    assert conditions.wanted(report(*many), ())[1].message == (
        "8 GPUs: GPU-0 (xid_fatal); GPU-1 (xid_fatal); GPU-2 (xid_fatal); GPU-3 (xid_fatal); GPU-4 (xid_fatal) "
        "and 3 more"
    )
    long = [found("GPU-" + "ü\n" * 60 + str(number), rule=f"r{number}" * 15) for number in range(8)]
    message = conditions.wanted(report(*long), ())[1].message
    assert len(message.encode()) <= 1000
    assert message.isprintable()


def test_an_event_is_for_the_node_and_names_device_reason_and_cause() -> None:
    (note,) = of_action(Action(do=Do.CREATE, fence=FENCE, reason="xid_fatal: GPU-3 is unhealthy"), None, [NODE])
    event = event_object(note, "replica-1", 1795260212.7)
    assert event.pop("metadata")["namespace"] == "default"
    assert event == {
        "apiVersion": "v1", "kind": "Event", "count": 1, "type": "Warning", "reason": "GPUTainted",
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "uid-1"},
        "message": "gpu.nvidia.com/node-1/gpu-3 (GPU-3), claimscope.io/unhealthy=xid_fatal, effect NoSchedule: "
                   "xid_fatal: GPU-3 is unhealthy",
        "source": {"component": "claimscope-controller"}, "reportingComponent": "claimscope-controller",
        "reportingInstance": "replica-1", "firstTimestamp": "2026-11-21T11:23:32Z",
        "lastTimestamp": "2026-11-21T11:23:32Z",
    }


def test_an_update_of_evidence_alone_is_no_event() -> None:
    assert of_action(Action(do=Do.UPDATE, fence=FENCE, reason="its findings changed"), FENCE, [NODE]) == []


def test_the_same_news_waits_and_all_news_have_a_rate() -> None:
    announcer = Announcer(ApiClient(OpenAccess("http://127.0.0.1:9")), "one")
    first = Note(about=NODE, reason="GPUTainted", message="", subject="GPU-3")
    assert [announcer.due(first, wall) for wall in (0.0, 1.0, 599.0, 600.0)] == [True, False, False, True]
    others = [
        Note(about=replace(NODE, name=f"node-{n}"), reason="GPUTainted", message="", subject="GPU-0")
        for n in range(BURST + 5)
    ]
    assert sum(announcer.due(note, 601.0) for note in others) == BURST
    assert announcer.dropped == 5
    assert announcer.due(Note(about=NODE, reason="GPUTainted", message="", subject="later"), 602.0)


def test_one_node_leaves_room_for_news_of_others() -> None:
    announcer = Announcer(ApiClient(OpenAccess("http://127.0.0.1:9")), "one")

    def told(node: str, wall: float) -> int:
        about = replace(NODE, name=node)
        notes = (Note(about=about, reason="GPUTaintHeld", message="", subject=f"{wall}/{n}") for n in range(900))
        return sum(announcer.due(note, wall) for note in notes)

    assert [told("loud", 0.0), told("quiet", 0.0)] == [20, 20]
    assert [told("loud", 60.0), told("loud", 600.0)] == [1, 9]


@pytest.mark.parametrize(
    ("annotations", "who"),
    [({}, None), ({"claimscope.io/pause": ""}, None), ({"claimscope.io/pause": "false"}, None),
     ({"claimscope.io/pause": "ann: rack work"}, "ann: rack work"), ({"claimscope.io/pause": "true"}, "true")],
)
def test_who_paused(annotations: dict[str, str], who: str | None) -> None:
    assert paused_by(annotations) == who


def test_what_people_ask_for() -> None:
    asked = asked_of({
        "ack.claimscope.io/thermal_slowdown": "ann", "ack.claimscope.io/breaker": "ann",
        "ignore.claimscope.io/GPU-3": '{"author":"ann","rule":"","hours":9999}',
        "ignore.claimscope.io/GPU-4": "no json", "claimscope.io/pause": "",
    }, 100.0)
    assert asked == Asked(
        annotations=(
            "ack.claimscope.io/breaker", "ack.claimscope.io/thermal_slowdown", "ignore.claimscope.io/GPU-3",
            "ignore.claimscope.io/GPU-4",
        ),
        rules=("thermal_slowdown",), breaker=True,
        ignores=(Ignore(uuid="GPU-3", rule="", until_wall=100.0 + 30 * 86400, author="ann"),),
    )
    assert Asked().on(Memory(), 0.0) == Memory()


@pytest.mark.parametrize(
    ("what", "rule", "name"),
    [("thermal_slowdown", "", "ack.claimscope.io/thermal_slowdown"), ("breaker", "", "ack.claimscope.io/breaker"),
     ("GPU-1-2", "xid_fatal", "ignore.claimscope.io/GPU-1-2")],
)
def test_acknowledgements(what: str, rule: str, name: str) -> None:
    assert command.acknowledgement(what, rule=rule, hours=1, author="ann", reason="")[0] == name


@pytest.mark.parametrize(("what", "rule"), [("xid_fata", ""), ("GPU-1", "xid_fata"), ("GPU 1-2", ""), ("", "")])
def test_acknowledgements_of_nothing_known(what: str, rule: str) -> None:
    with pytest.raises(ValueError, match=r"unknown|no uuid"):
        command.acknowledgement(what, rule=rule, hours=1, author="ann", reason="")


def test_every_health_rule_is_about_one_constraint() -> None:
    assert CONSTRAINT_OF_RULE.keys() == {rule.key for rule in RULES}
    assert set(CONSTRAINT_OF_RULE.values()) == set(CONSTRAINTS)
    assert {rule: CONSTRAINT_OF_RULE[rule] for rule in (
        "thermal_shutdown", "power_brake", "ecc_corrected_storm", "sram_ecc_threshold", "row_remap_failure",
        "retired_pages_many", "nvlink5_errors", "fabric_unhealthy", "pcie_width", "clocks_low", "gpu_lost", "xid_fatal",
        "recovery_action",
    )} == {
        "thermal_shutdown": "temperature", "power_brake": "power", "ecc_corrected_storm": "ecc",
        "sram_ecc_threshold": "ecc", "row_remap_failure": "ecc", "retired_pages_many": "ecc",
        "nvlink5_errors": "nvlink", "fabric_unhealthy": "nvlink", "pcie_width": "pcie", "clocks_low": "clocks",
        "gpu_lost": "health", "xid_fatal": "health", "recovery_action": "health",
    }
