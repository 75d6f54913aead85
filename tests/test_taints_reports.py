"""What agents say in their Leases, however badly, and which of them still speak."""

from __future__ import annotations

import json
import logging
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claimscope.claims.cluster import Cluster
from claimscope.health import report
from claimscope.health.model import Severity
from claimscope.kube.objects import Lease, Node
from claimscope.taints.inventory import Inventory
from claimscope.taints.model import NodeReport, ReportedFinding
from claimscope.taints.reports import FINDINGS_ANNOTATION, Heartbeats, Reports, Told, read_findings
from inventory_objects import a_device, a_slice, make

SECOND = 10**9
NOON = 1795262400.0  # 2026-11-21T12:00:00Z
ENTRY = {
    "uuid": "GPU-1", "rule": "xid_fatal", "severity": "unhealthy", "state": "firing", "since": 1_700_000_000,
    "serial": "S1", "evidence": {"xid": "79"}, "clears": "A GPU reset.", "systemic": True,
}  # fmt: skip
FINDING = ReportedFinding(
    node="n1", uuid="GPU-1", serial="S1", rule="xid_fatal", severity=Severity.UNHEALTHY, since_wall=1_700_000_000.0,
    evidence={"xid": "79"}, clears="A GPU reset.", systemic=True, boot_id="B1",
)


def a_lease(node: str, renewed: str, findings: Any = None, *, name: str = "") -> Lease:
    annotations = {"claimscope.io/node": node}
    if findings is not None:
        annotations["claimscope.io/findings"] = findings if isinstance(findings, str) else json.dumps(findings)
    return make(
        Lease, metadata={"name": name or f"agent-{node}", "annotations": annotations}, spec={"renewTime": renewed}
    )


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ([], Told()),
        ({"boot_id": "B1", "findings": [ENTRY], "omitted": 0}, Told(findings=(FINDING,))),
        ([{**ENTRY, "boot_id": "B1"}], Told(findings=(FINDING,))),
        ({"boot_id": "B1", "findings": [ENTRY], "omitted": 2}, Told(findings=(FINDING,), partial=True)),
        ({"boot_id": "B1", "findings": [{**ENTRY, "severity": "degraded"}, ENTRY]}, Told(findings=(FINDING,))),
        ({"findings": 7}, Told(skipped=1, partial=True, problem="no list of findings")),
    ],
)  # fmt: skip
def test_findings_are_read(document: object, expected: Told) -> None:
    assert read_findings("n1", json.dumps(document)) == expected


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"uuid": ""}, "`` is no uuid"), ({"uuid": "GPU 1"}, "`GPU 1` is no uuid"),
        ({"rule": "Xid Fatal"}, "`Xid Fatal` is no name of a rule"), ({"rule": "x" * 64}, None),
        ({"severity": "awful"}, "`awful` is no severity"), ({"since": "yesterday"}, None), ({"since": True}, None),
        ({"evidence": ["xid"]}, "`['xid']` is no evidence"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_left_out_and_the_rest_is_taken(change: dict[str, object], problem: str | None) -> None:
    told = read_findings("n1", json.dumps({"boot_id": "B1", "findings": [{**ENTRY, **change}, ENTRY]}))
    assert (told.findings, told.skipped, told.partial) == ((FINDING,), 1, True)
    assert problem is None or told.problem == problem


def test_what_agents_write_is_what_is_read() -> None:
    assert FINDINGS_ANNOTATION == report.FINDINGS_ANNOTATION
    entry = report.LeaseFinding(
        uuid="GPU-1", rule="xid_fatal", severity="unhealthy", state="latched", since=1_700_000_000, serial="S1",
        evidence={"xid": "79"}, clears="A GPU reset.", systemic=True,
    )
    text = msgspec.json.encode(report.LeaseFindings(boot_id="B1", findings=(entry,))).decode()
    assert read_findings("n1", text) == Told(findings=(FINDING,))


def test_an_agent_that_has_not_judged_yet_ends_nothing() -> None:
    assert read_findings("n1", None) == Told(partial=True)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["findings", "uuid", "rule", "severity", "since", "evidence", "boot_id", "omitted", "x"]),
        inner, max_size=6,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.one_of(st.text(), _JSON.map(json.dumps)))
def test_nothing_that_an_agent_writes_raises(text: str) -> None:
    told = read_findings("n1", text)
    assert told.partial or not told.skipped


def test_silence_is_counted_from_the_last_change_by_our_own_clock() -> None:
    hearts = Heartbeats()
    assert hearts.silence_seconds("n1", 0) is None
    hearts.hear("n1", "1999-01-01T00:00:00Z", 5 * SECOND, NOON)
    hearts.hear("n1", "1999-01-01T00:00:01Z", 50 * SECOND, NOON)  # an old clock is a clock
    assert hearts.silence_seconds("n1", 65 * SECOND) == 15.0
    hearts.hear("n1", "1999-01-01T00:01:00Z", 65 * SECOND, NOON)
    assert hearts.silence_seconds("n1", 66 * SECOND) == 1.0
    hearts.forget("n1")
    assert hearts.silence_seconds("n1", 67 * SECOND) is None


@pytest.mark.parametrize(
    ("renewed", "silence"),
    [
        ("2026-11-21T12:00:00Z", 0.0), ("2026-11-21T11:59:30Z", 30.0), ("2026-11-21T11:00:00Z", 3600.0),
        ("2026-11-21T12:05:00Z", 0.0),  # a clock that is ahead
    ],
)  # fmt: skip
def test_who_is_seen_for_the_first_time_was_heard_when_the_lease_says(renewed: str, silence: float) -> None:
    hearts = Heartbeats()
    hearts.hear("n1", renewed, 5000 * SECOND, NOON)
    assert hearts.silence_seconds("n1", 5000 * SECOND) == silence


def test_nobody_is_told_of_a_silence_that_is_seen_for_the_first_time() -> None:
    hearts = Heartbeats()
    hearts.hear("n1", "2026-11-21T11:00:00Z", 5000 * SECOND, NOON)
    assert [hearts.unheard("n1", at * SECOND, 120.0) for at in (5000, 5120, 5121)] == [True, True, False]
    hearts.hear("n1", "2026-11-21T11:01:00Z", 5001 * SECOND, NOON + 1)
    assert hearts.unheard("n1", 5001 * SECOND, 120.0) is False
    assert hearts.silence_seconds("n1", 5001 * SECOND) == 0.0


def by_node(reports: Reports, cluster: Cluster, now_ns: int) -> dict[str, NodeReport]:
    inventory = Inventory()
    inventory.follow(cluster)
    return reports.by_node(
        cluster.nodes, inventory, group_label="model", stale_seconds=120, now_ns=now_ns, now_wall=NOON
    )


def a_small_cluster() -> Cluster:
    cluster = Cluster()
    cluster.sync("nodes", [make(Node, metadata={"name": "n1", "uid": "u1", "labels": {"model": "h100"}}),
                           make(Node, metadata={"name": "n2", "uid": "u2"}, spec={"unschedulable": True})])
    cluster.sync("resourceslices", [
        a_slice([a_device("gpu-0", {"uuid": "GPU-2-0"}),
                 a_device("gpu-1-mig-0", {"uuid": "MIG-2-0", "parentUUID": "GPU-2-1"}),
                 a_device("gpu-1-mig-1", {"uuid": "MIG-2-1", "parentUUID": "GPU-2-1"}), a_device("nic-0")], pool="n2"),
    ])  # fmt: skip
    return cluster


def test_every_node_with_an_agent_or_gpus_has_a_report() -> None:
    reports, cluster = Reports(), a_small_cluster()
    reports.follow([a_lease("n1", "2026-11-21T11:59:59Z", {"boot_id": "B1", "findings": [ENTRY]})], 10 * SECOND, NOON)
    assert by_node(reports, cluster, 11 * SECOND) == {
        "n1": NodeReport(
            node="n1", node_uid="u1", group="h100", heard_wall=NOON - 2, stale=False, findings=(FINDING,)
        ),
        "n2": NodeReport(
            node="n2", node_uid="u2", group="", heard_wall=0.0, stale=True, cordoned=True, devices=2, partial=True,
            unsettled="node n2 is cordoned, and gets no new work anyway",
        ),
    }
    assert by_node(reports, cluster, 131 * SECOND)["n1"].stale is True
    reports.follow([], 140 * SECOND, NOON)
    assert list(by_node(reports, cluster, 141 * SECOND)) == ["n2"]


def test_of_two_leases_for_one_node_the_one_renewed_last_is_believed() -> None:
    reports, cluster = Reports(), a_small_cluster()
    reports.follow([a_lease("n1", "2026-01-02", [], name="b"), a_lease("n1", "2026-01-01", [ENTRY], name="a")], 0, NOON)
    assert by_node(reports, cluster, 0)["n1"].findings == ()


def test_a_malformed_lease_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    reports = Reports()
    with caplog.at_level(logging.WARNING, logger="claimscope.taints.reports"):
        reports.follow([a_lease("n1", "T1", "{")], 0, NOON)
        reports.follow([a_lease("n1", "T2", "{")], SECOND, NOON)
        reports.follow([a_lease("n1", "T3", "{ ")], 2 * SECOND, NOON)
    assert len(caplog.records) == 1
    assert reports.skipped_total == 2  # the third one has another text
    reports.follow([a_lease("n1", "T4", [])], 3 * SECOND, NOON)
    assert by_node(reports, a_small_cluster(), 3 * SECOND)["n1"].partial is False
