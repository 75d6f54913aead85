"""Are the boards right where Prometheus scrapes a target twice? Two jobs that select it, or two servers behind one
querier, make two series of each: whatever adds up or joins must have reduced them to one first."""

from __future__ import annotations

import promql_parser as promql
import pytest
from dashboards.catalogue import BOARDS
from dashboards.grafana import Dashboard

from dashboard_lint import plain
from promql import nodes

_ONE_OF_EQUALS = {"max", "min", "group"}  # the same for one series and for two that are alike
_NOT_SCRAPED = {"ALERTS"}  # Prometheus makes it itself


def adds_twice(expr: str) -> list[str]:
    """Metrics of a query that nothing reduces to one series before anything else is done with them."""
    return [
        node.name or node.prettify()
        for node, parents in nodes(plain(expr))
        if isinstance(node, promql.VectorSelector)
        and node.name not in _NOT_SCRAPED
        and next((str(each.op) for each in reversed(parents) if isinstance(each, promql.AggregateExpr)), None)
        not in _ONE_OF_EQUALS
    ]


@pytest.mark.parametrize(
    ("expr", "found"),
    [
        ("sum by (pool) (max by (pool, state) (dra_pool_devices))", []),
        ("sum by (pool) (dra_pool_devices)", ["dra_pool_devices"]),
        ("gpu_up", ["gpu_up"]),
        ("max by (uuid) (gpu_up) * on (uuid) group_right () gpu_info", ["gpu_info"]),
        ("sum(max by (uuid) (rate(gpu_energy_joules_total[$__rate_interval])))", []),
    ],
)
def test_what_counts_twice_is_found(expr: str, found: list[str]) -> None:
    assert adds_twice(expr) == found


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_a_second_scrape_changes_nothing(board: Dashboard) -> None:
    wrong = [
        f"{panel.title}: {name}"
        for panel in board.panels()
        for query in panel.queries
        for name in adds_twice(query.expr)
    ]
    assert wrong == []
