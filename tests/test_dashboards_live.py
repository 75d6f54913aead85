"""Every query of every board, asked of a real Prometheus that scrapes the demo with faults on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from dashboards.catalogue import BOARDS
from dashboards.stage import Shown, show, stage, without_data

SECONDS = 15  # of data, beside the ten that rates look at

# What the demo does not have, so that a query that can never find anything does not hide behind a reason.
NOT_IN_THE_DEMO: Mapping[str, frozenset[str]] = {
    "claimscope-node": frozenset({  # there is no real kubelet with metrics of its own
        "How long the kubelet takes for claims", "Operations on claims that failed", "Claims in use on the node",
    }),
    "claimscope-health": frozenset({"Pods deleted for taints"}),  # no kube-controller-manager
    "claimscope-migration": frozenset({  # neither kube-state-metrics nor kube-controller-manager
        "Devices that nodes offer", "Claims by where they come from",
    }),
    "claimscope-self": frozenset({  # nothing is pushed
        "OTLP points", "OTLP queue", "OTLP: time since a request was taken",
    }),
}  # fmt: skip
# Panels of which some queries find something at all times, and others only when just that is wrong.
PARTLY: Mapping[str, frozenset[str]] = {
    "claimscope-health": frozenset({"XIDs", "Memory", "NVLink"}),
    "claimscope-self": frozenset({"Agents in trouble", "What cannot be measured", "What was lost"}),
}  # fmt: skip
# What it has at some times and not at others.
AT_TIMES: Mapping[str, frozenset[str]] = {
    "claimscope-claim": frozenset({  # rolling extremes begin with the first full minute
        "Why it waited", "Lowest and highest use within a minute",
    }),
    "claimscope-self": frozenset({"Attribution: errors", "Watches: errors"}),  # on a slow machine not all is well
}  # fmt: skip


def unexplained(seen: Sequence[Shown]) -> list[str]:
    """Queries that found nothing and do not say why that may be."""
    return [
        f"{shown.board.uid}: {panel.title}: {query.expr}" for shown in seen for panel, query in without_data(shown)
        if not query.may_be_empty
    ]  # fmt: skip


def never_seen(seen: Sequence[Shown]) -> list[str]:
    """Panels that may be empty, and are so although the demo has what they ask for."""
    def known(uid: str, where: Mapping[str, frozenset[str]]) -> frozenset[str]:
        return where.get(uid, frozenset())

    return sorted({
        f"{shown.board.uid}: {panel.title}" for shown in seen for panel, _ in without_data(shown)
        if panel.title not in known(shown.board.uid, NOT_IN_THE_DEMO) | known(shown.board.uid, AT_TIMES)
        and (panel.title not in known(shown.board.uid, PARTLY) or not any(
            shown.answers[panel.title, index] for index in range(len(panel.queries))
        ))
    })  # fmt: skip


def needless(seen: Sequence[Shown]) -> list[str]:
    """Panels of which it says above that the demo has nothing for them, and that show all they ask for."""
    return [
        f"{shown.board.uid}: {title}" for shown in seen
        for title in sorted(
            NOT_IN_THE_DEMO.get(shown.board.uid, frozenset()) - {panel.title for panel, _ in without_data(shown)}
        )
    ]  # fmt: skip


def without_choice(seen: Sequence[Shown]) -> list[str]:
    """Variables that have no value and do not say why that may be."""
    return [
        f"{shown.board.uid}: {variable.name}" for shown in seen for variable in shown.board.variables
        if variable.kind == "query" and not shown.choices[variable.name] and not variable.may_be_empty
    ]  # fmt: skip


# One test, so that the demo runs once however tests are shared out to workers. A first start compiles the simulated
# library, and all parts of the demo share the cores with the other tests.
@pytest.mark.timeout(180)
async def test_boards_show_the_demo(prometheus: str, cc: str) -> None:
    del prometheus, cc  # the demo finds them itself
    async with stage(SECONDS) as (server, times):
        # Raises where a query is not understood: with the first value of each variable, then with All.
        for board in BOARDS:
            await show(server, board, times, everything=False)
        seen = [await show(server, board, times) for board in BOARDS]
    fleet, _, _, node, _, health = seen[:6]
    gpus, held, busy = (fleet.answers["GPUs held and busy", index][0].points[-1][1] for index in range(3))

    assert unexplained(seen) == []
    assert never_seen(seen) == []
    assert needless(seen) == []
    assert without_choice(seen) == []
    assert {series.labels["xid"] for series in fleet.marks["XIDs"]} == {"48", "79"}  # only grave ones
    assert {series.labels["xid"] for series in node.marks["XIDs"]} >= {"13", "48", "63"}
    assert {series.labels["node"] for series in node.marks["XIDs"]} == {"demo-node-1"}
    # Of marks there are none yet: in its first minute a controller says what it found, and not what is new.
    assert "claimscope.io/unhealthy" in {series.labels["key"] for series in health.answers["Taints on devices", 0]}
    maintained = health.answers["Maintenance", 0]
    assert [(series.labels["node"], series.points[0][1]) for series in maintained] == [("demo-node-3", 1)]
    assert gpus == 24  # MIG devices are parts of these
    assert busy < held <= 24 * 1.01  # Prometheus extrapolates
