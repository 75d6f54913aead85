"""Do the rules say what they should, on metrics that exist?"""

from __future__ import annotations

import subprocess

import pytest
from alerts.__main__ import CASES, HERE, files
from alerts.model import Alert, Recording
from alerts.table import alerts, groups, recordings
from alerts.upstream import NODE_TARGET_LABELS, OVERWRITTEN, TARGET_LABELS, UPSTREAM

from promql import Labels, own_series, read


@pytest.fixture(scope="module")
def known() -> dict[str, Labels]:
    return known_series()


def known_series() -> dict[str, Labels]:
    """Ours, those of others, and what is recorded of them; a recorded series has the labels that its rule leaves."""
    known = own_series(TARGET_LABELS)
    known["gpu_allocation_info"] |= OVERWRITTEN
    known |= {row.name: frozenset(row.labels) | NODE_TARGET_LABELS for row in UPSTREAM.values()}
    for rule in recordings():
        known[rule.record] = known.get(rule.record, frozenset()) | read(rule.expr, known)[1] | {*rule.labels}
    return known


def expression(rule: Recording | Alert) -> str:
    return rule.expr if isinstance(rule, Recording) else rule.bound()


RULES = [
    pytest.param(rule, id=rule.record if isinstance(rule, Recording) else f"{rule.name}{''.join(rule.labels.values())}")
    for group in groups()
    for rule in group.rules
]
CRITICAL = {
    "DRASchedulingStalled", "DRADriverAbsent", "DRAPrepareFailing", "DRASystemicFinding", "DRASystemicFindingGrave",
    "DRATaintBreakerOpen", "DRANodesBlind", "DRAControllerDown",
}  # fmt: skip


def test_committed_files_are_those_of_the_tables() -> None:
    made = files()
    assert {path: path.read_text() for path in made} == made, "run `python -m alerts`"
    assert {*HERE.glob("rules/*"), *HERE.glob("tests/*")} == {*made}, "a file that no table makes any more"


def test_promtool_accepts_the_rules(promtool: str) -> None:
    done = subprocess.run(
        [promtool, "check", "rules", *sorted(str(path) for path in HERE.glob("rules/*.yml"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in files() if path.parent.name == "tests"])
def test_alerts_fire_and_stay_quiet_as_their_cases_say(promtool: str, path: object) -> None:
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    fired = {
        (case.alert, *sorted(alert.labels.values()))
        for cases in CASES.values() for case in cases for one in case.fires
        for alert in alerts() if alert.name == case.alert and alert.labels.items() <= one.labels.items()
    }  # fmt: skip
    assert fired == {(alert.name, *sorted(alert.labels.values())) for alert in alerts()}


def test_every_alert_has_a_case_in_which_it_stays_quiet() -> None:
    quiet = {case.alert for cases in CASES.values() for case in cases if not case.fires}
    assert quiet == {alert.name for alert in alerts()} - {"DRAWatchdog"}  # which must never be


@pytest.mark.parametrize("rule", RULES)
def test_metrics_and_labels_exist(rule: Recording | Alert, known: dict[str, Labels]) -> None:
    assert read(expression(rule), known)[0].faults == []


def test_cluster_is_kept_by_every_aggregation_but_one(known: dict[str, Labels]) -> None:
    lost = [
        rule.record if isinstance(rule, Recording) else rule.name
        for group in groups() for rule in group.rules
        if "cluster" not in read(expression(rule), known)[1]
    ]  # fmt: skip
    assert lost == ["DRAWatchdog"]


def test_critical_is_what_wakes_somebody_and_nothing_else() -> None:
    assert {alert.name for alert in alerts() if alert.severity == "critical"} == CRITICAL


def test_only_one_alert_is_about_pending_claims_and_goes_to_their_owner() -> None:
    assert [
        (alert.name, alert.severity) for alert in alerts()
        if alert.owner == "workload" and "dra_claim_pending" in alert.expr
    ] == [("DRAClaimPendingTooLong", "warning")]  # fmt: skip


def test_raw_errors_only_inform() -> None:
    raw = {alert.name: alert.severity for alert in alerts() if "xid" in alert.expr or "gpu_ecc" in alert.expr}
    assert raw == {"DRADeviceXid": "info", "DRADeviceEccUncorrected": "info"}


@pytest.mark.parametrize("alert", [pytest.param(each, id=each.name) for each in alerts() if each.owner == "workload"])
def test_alerts_for_owners_name_the_workload(alert: Alert, known: dict[str, Labels]) -> None:
    assert read(alert.bound(), known)[1] >= {"cluster", "namespace", "workload_kind", "workload"}


def test_summaries_and_descriptions_are_sentences() -> None:
    odd = [alert.name for alert in alerts() if not alert.summary.endswith(".") or "{{" in alert.summary]
    assert odd == []


def test_thresholds_can_be_changed_and_none_is_unused() -> None:
    alert = next(alert for alert in alerts() if alert.name == "DRAClaimPendingTooLong")
    assert alert.bound({"seconds": 900}).endswith("> 900")
    assert [each.name for each in alerts() if any(f"[[{name}]]" not in each.expr for name in each.thresholds)] == []


@pytest.mark.parametrize(
    ("expr", "faults"),
    [
        ("sum by (cluster, uuid) (gpu_up)", []),
        ("gpu_upp", ["gpu_upp: no such metric"]),
        ('gpu_up{namespace="a"}', ["label namespace in a selector of gpu_up is on no series there"]),
        ("sum by (pod) (gpu_up)", ["label pod in sum by (pod) is on no series there"]),
        (
            "max by (uuid) (gpu_up) * on (uuid, node) group_left (model) max by (uuid, node, model) (gpu_info)",
            ["label node in on (uuid, node), left of *, is on no series there"],
        ),
        ('sum by (who) (label_replace(gpu_up, "who", "$1", "uuid", "(.*)"))', []),
        (
            "rate(dra_allocation_duration_seconds[5m])",
            ["dra_allocation_duration_seconds: no such metric"],
        ),
        ("sum by (le) (rate(dra_allocation_duration_seconds_bucket[5m]))", []),
    ],
)  # fmt: skip
def test_the_reader_finds_what_cannot_be(expr: str, faults: list[str]) -> None:
    assert read(expr, own_series(TARGET_LABELS))[0].faults == faults
