"""Can the values of labels that boards and rules ask for ever be there? Held against the words that the code writes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import promql_parser as promql
import pytest
from alerts.table import alerts, recordings
from dashboards import palette
from dashboards.catalogue import BOARDS

from claimscope.claims import capacity
from claimscope.claims.model import ClaimState, PendingReason, Phase
from claimscope.health.model import Severity
from claimscope.health.rules import RULES
from claimscope.metrics import tables
from claimscope.metrics.spec import families
from claimscope.taints import maintenance
from claimscope.taints.model import Mode
from claimscope.taints.tally import BREAKER_STATES
from dashboard_lint import plain
from promql import nodes

_SEVERITIES = frozenset(each.value for each in Severity)
_REASONS = frozenset(each.value for each in PendingReason)
_CLAIM_STATES = frozenset(each.value for each in ClaimState)
_PHASES = frozenset(each.value for each in maintenance.Phase)
_MODES = frozenset(each.value for each in Mode)

# By metric, or by what its name begins with, and label.
WORDS: Mapping[tuple[str, str], frozenset[str]] = {
    ("gpu_health", "state"): _SEVERITIES,
    ("gpu_health_finding_info", "severity"): _SEVERITIES,
    ("gpu_health_finding_info", "rule"): frozenset(rule.key for rule in RULES),
    ("node_rule:gpu_health_finding_info:count", "rule"): frozenset(rule.key for rule in RULES),
    ("node_rule:gpu_health_finding_info:systemic", "rule"): frozenset(rule.key for rule in RULES),
    ("dra_claim_pending_reason", "reason"): _REASONS,
    ("claim:dra_claim_pending_reason:since", "reason"): _REASONS,
    ("claim:dra_claim_pending_seconds:workload", "reason"): _REASONS,
    ("kube_resourceclaim_status_allocation_state", "state"): _CLAIM_STATES,
    ("dra_allocation_duration_seconds_bucket", "phase"): frozenset(each.value for each in Phase),
    ("dra_allocation_duration_seconds_count", "phase"): frozenset(each.value for each in Phase),
    ("dra_pool_devices", "state"): frozenset(each.value for each in capacity.State),
    ("deviceclass_state:dra_pool_devices:sum", "state"): frozenset(each.value for each in capacity.State),
    ("dra_node_maintenance_state", "state"): _PHASES,
    ("claimscope_controller_taint_mode_info", "mode"): _MODES,
    ("claimscope_controller_taint_breaker_state", "state"): frozenset(BREAKER_STATES),
    ("claimscope_agent_taint_breaker_state", "state"): frozenset(BREAKER_STATES),
}  # fmt: skip


def of_quantities() -> dict[tuple[str, str], frozenset[str]]:
    """What the rows of the tables write: the engine, the domain, the reason of a quantity."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for quantity in tables.QUANTITIES:
        for family in families(quantity):
            for view in quantity.views:
                if re.fullmatch(rf"[a-z_]+?_{view.stem}(_[a-z_]+)?", family.name):
                    for label, value in view.labels.items():
                        found[family.name, label].add(value)
    return {place: frozenset(values) for place, values in found.items()}


KNOWN = of_quantities() | dict(WORDS)


def asked(expr: str) -> Iterator[tuple[str, str, str]]:
    """Metric, label and value of all comparisons with a word, or with several."""
    for node, _ in nodes(expr):
        if isinstance(node, promql.VectorSelector):
            for each in node.matchers.matchers:
                pattern = each.op in (promql.MatchOp.Re, promql.MatchOp.NotRe)
                for value in each.value.split("|") if pattern else [each.value]:
                    if re.fullmatch(r"\w+", value) and value != "x":  # else a pattern, or a variable
                        yield node.name or "", each.name, value


def unknown(expr: str) -> list[str]:
    """Comparisons that never hold."""
    return [
        f"{metric}{{{label}}}: {value}" for metric, label, value in asked(expr)
        if value not in KNOWN.get((metric, label), {value})
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("expr", "found"),
    [
        ('gpu_health{state="lost"}', []),
        ('gpu_health{state=~"lost|gone"}', ["gpu_health{state}: gone"]),
        ('gpu_throttle_seconds_total{reason="hw_thermal"}', []),
        ('gpu_throttle_seconds_total{reason="hot"}', ["gpu_throttle_seconds_total{reason}: hot"]),
        ('gpu_ecc_device_errors_total{type!="correct"}', ["gpu_ecc_device_errors_total{type}: correct"]),
        ('gpu_utilization_ratio{engine="gpu"}', []),
        ('gpu_utilization_max_ratio{engine="cpu"}', ["gpu_utilization_max_ratio{engine}: cpu"]),
        ('dra_claim_pending_reason{reason!~"quota|gate"}', ["dra_claim_pending_reason{reason}: gate"]),
    ],
)
def test_a_word_that_nobody_writes_is_found(expr: str, found: list[str]) -> None:
    assert unknown(expr) == found


def test_boards_and_rules_ask_for_words_that_somebody_writes() -> None:
    wrong = {
        place: faults
        for place, expr in (
            *((f"{board.uid}: {panel.title}", plain(query.expr))
              for board in BOARDS for panel in board.panels() for query in panel.queries),
            *((f"{board.uid}: {each.name}", plain(each.expr)) for board in BOARDS for each in board.annotations),
            *((rule.record, rule.expr) for rule in recordings()),
            *((alert.name, alert.bound()) for alert in alerts()),
        )
        if (faults := unknown(expr))
    }  # fmt: skip
    assert wrong == {}


@pytest.mark.parametrize(
    ("shown", "written"),
    [
        (palette.HEALTH, _SEVERITIES), (palette.CLAIM, _CLAIM_STATES - {ClaimState.DELETED.value}),
        (palette.MAINTENANCE, _PHASES), (palette.MODE, _MODES), (palette.BREAKER, frozenset(BREAKER_STATES)),
    ],
)  # fmt: skip
def test_every_state_has_a_name_and_a_colour(shown: Mapping[str, object], written: frozenset[str]) -> None:
    assert shown.keys() == written


def test_every_reason_for_low_clocks_has_a_colour() -> None:
    assert palette.THROTTLE.keys() >= of_quantities()["gpu_throttle_seconds_total", "reason"]
