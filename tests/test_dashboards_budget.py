"""Can the boards be used with 10,000 GPUs? No query reads all devices, accounts or claims of a fleet for long, or at
each step of a graph: that takes a Prometheus ten seconds and more, for each of a board's panels.
"""

from __future__ import annotations

from collections.abc import Iterator

import promql_parser as promql
import pytest
from dashboards.catalogue import BOARDS
from dashboards.grafana import Dashboard

from dashboard_lint import plain
from promql import nodes

# As many series as there are devices, claims or nodes times classes, and what is recorded of each of them.
_PER_DEVICE = ("gpu_", "dra_claim_gpu_", "pod_gpu_", "claimscope_agent_driver_seconds",
               "dra_claim_info", "dra_claim_device_info", "dra_pool_devices",
               "account:", "holder:", "claim:", "claim_device:", "workload_device:")  # fmt: skip
# Series that only devices have on which something has happened.
_FEW = frozenset({"gpu_health_finding_info", "gpu_health_finding_since_timestamp_seconds",
                  "gpu_xid_last_timestamp_seconds", "gpu_xid_errors_total",
                  "claim:dra_claim_pending_seconds:workload"})  # fmt: skip
# One recorded series a claim, and the figure is of each claim. `benchmarks/rules.py` measures them at 10,000.
_BY_CLAIM = {
    "claimscope-fleet": {"Who wastes most"},
    "claimscope-claims": {"Claims that hold GPUs", "Busy ratio of the largest claims"},
}
_OF_ONE = frozenset({'node="$node"', 'resourceclaim="$resourceclaim"'})  # node or claim, and not all that match


def _many(node: promql.Expr, few: frozenset[str]) -> Iterator[str]:
    """Series by device of a whole fleet that a part of a query selects. Works on Grafana's variables as they are."""
    for each, _ in nodes(node.prettify()):
        name = each.name if isinstance(each, promql.VectorSelector) else None
        if name is None or not name.startswith(_PER_DEVICE) or name in _FEW or "@ end()" in each.prettify():
            continue
        if not any(one in each.prettify() for one in few):
            yield name


def too_much(expr: str, *, instant: bool, few: frozenset[str] = _OF_ONE) -> list[str]:
    """What in a query is more than a Prometheus answers at once, unless it selects by one of a `few`."""
    kept = expr.replace("$__range:$__interval", "3h:7s").replace("$__range", "3h")
    for name in ("$__rate_interval_ms", "$__interval_ms"):
        kept = kept.replace(name, "1000")
    kept = kept.replace("$__rate_interval", "5m").replace("$__interval", "7s").replace("$price", "1")
    if not instant:
        return [f"{name}: at each step of a graph" for name in _many(promql.parse(kept), few)]
    found: list[str] = []
    for node, _ in nodes(kept):
        match node:
            case promql.SubqueryExpr():
                found += [f"{name}: a subquery" for name in _many(node.expr, few)]
            case promql.MatrixSelector() if node.range.total_seconds() == 3 * 3600:
                found += [f"{name}: all samples of the chosen time" for name in _many(node.vector_selector, few)]
    return found


@pytest.mark.parametrize(
    ("expr", "instant", "found"),
    [
        ("sum(rate(gpu_busy_seconds_total[$__rate_interval]))", True, []),
        (
            "sum(rate(gpu_busy_seconds_total[$__rate_interval]))", False,
            ["gpu_busy_seconds_total: at each step of a graph"],
        ),
        (
            'sum(increase(dra_claim_gpu_busy_seconds_total{namespace=~"$namespace"}[$__range]))', True,
            ["dra_claim_gpu_busy_seconds_total: all samples of the chosen time"],
        ),
        ('sum(increase(gpu_busy_seconds_total{node="$node"}[$__range]))', True, []),
        ("sum(gpu_busy_seconds_total - gpu_busy_seconds_total offset $__range)", True, []),
        ("sum(gpu_power_watts)", False, ["gpu_power_watts: at each step of a graph"]),
        ("sum(gpu_power_watts)", True, []),
        ("sum_over_time(gpu_power_watts[$__range:$__interval])", True, ["gpu_power_watts: a subquery"]),
        ("sum_over_time(cluster:gpus_held:rate5m[$__range:$__interval])", True, []),
        (
            "sum_over_time(holder:gpus_held:rate5m[$__range:$__interval])", True,
            ["holder:gpus_held:rate5m: a subquery"],
        ),
        ("topk(10, holder:gpus_held:rate5m @ end())", False, []),
        ("sum(claim:x:y)", False, ["claim:x:y: at each step of a graph"]),
    ],
)  # fmt: skip
def test_what_reads_too_much_is_found(expr: str, instant: bool, found: list[str]) -> None:
    assert too_much(expr, instant=instant) == found


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_boards_can_be_used_with_many_gpus(board: Dashboard) -> None:
    # "All" of such a variable is what the claim has, and not the fleet.
    few = _OF_ONE | {f'{each.name}=~"${each.name}"' for each in board.variables if each.listed}
    wrong = [
        f"{panel.title}: {fault}"
        for panel in board.panels()
        if panel.title not in _BY_CLAIM.get(board.uid, ())
        for query in panel.queries
        for fault in too_much(query.expr, instant=query.instant or panel.kind == "table", few=few)
    ]
    wrong += [
        f"annotation {each.name}: {fault}"
        for each in board.annotations
        for fault in too_much(each.expr, instant=False, few=few)
    ]
    assert wrong == []


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_what_is_largest_is_chosen_once(board: Dashboard) -> None:
    # At each point of a graph another ten may be the largest, and a legend of a hundred series comes of it.
    wrong = [
        panel.title
        for panel in board.panels()
        for query in panel.queries
        if not (query.instant or panel.kind == "table")
        for node, _ in nodes(plain(query.expr))
        if isinstance(node, promql.AggregateExpr) and str(node.op) in ("topk", "bottomk")
        and "@ end()" not in node.prettify()
    ]  # fmt: skip
    assert wrong == []
