"""Are many GPUs with one fault told from many faults?"""

from __future__ import annotations

import pytest

from claimscope.health.model import Severity
from claimscope.health.systemic import needed, together
from claimscope.health.thresholds import Thresholds
from health_help import HOUR, MINUTE, Bench

DEFAULT = Thresholds()


@pytest.mark.parametrize(("gpus", "need"), [(1, 2), (2, 2), (3, 2), (4, 2), (5, 3), (8, 4), (16, 8)])
def test_half_of_the_gpus_and_two_at_least(gpus: int, need: int) -> None:
    assert needed(gpus, DEFAULT) == need


@pytest.mark.parametrize(
    ("minutes", "marked", "expected"),
    [
        ((0, 1, 2), (), ""),
        ((0, 1, 2, 10), (), "abcd"),
        ((0, 1, 2, 11), (), ""),
        ((0, 5, 9, 12, 14), (), "bcde"),
        ((0, 100, 101, 102, 103), (), "bcde"),
        ((0, 1, 2, 3, 500), ("a", "b", "c", "d"), "abcde"),
        ((0, 1, 500), ("a", "b"), "ab"),
    ],
)
def test_four_of_eight_within_ten_minutes(minutes: tuple[int, ...], marked: tuple[str, ...], expected: str) -> None:
    fired = {name: minute * MINUTE * 1_000_000_000 for name, minute in zip("abcde", minutes, strict=False)}
    assert together(fired, marked, 8, DEFAULT) == frozenset(expected)


def _hot(bench: Bench, gpus: range, value: float = 1.0) -> None:
    for index in gpus:
        bench.gpus[index].last["clock_event_hw_thermal"] = value


def _systemic(bench: Bench) -> set[str]:
    return {
        uuid
        for uuid, health in bench.engine.health().items()
        for finding in health.findings
        if finding.rule == "thermal_slowdown" and finding.systemic
    }


def test_one_hot_gpu_of_eight_is_its_own() -> None:
    bench = Bench(8)
    _hot(bench, range(1))
    bench.run(10 * MINUTE)
    assert bench.engine.node_findings() == ()
    assert _systemic(bench) == set()


def test_half_of_the_node_hot_is_one_finding_of_the_node_and_stays_visible_on_each() -> None:
    bench = Bench(8)
    _hot(bench, range(4))
    bench.run(10 * MINUTE)
    assert [(one.rule, one.uuids) for one in bench.engine.node_findings()] == [
        ("thermal_slowdown", ("GPU-0", "GPU-1", "GPU-2", "GPU-3"))
    ]
    assert _systemic(bench) == {"GPU-0", "GPU-1", "GPU-2", "GPU-3"}
    assert bench.severity(0) is Severity.DEGRADED
    _hot(bench, range(4, 6))
    bench.run(20 * MINUTE)
    assert len(_systemic(bench)) == 6  # who follows while it lasts has the same cause


def test_rules_without_a_common_cause_are_never_systemic() -> None:
    bench = Bench(8)
    for index, gpu in enumerate(bench.gpus):
        gpu.last["row_remap_pending"] = 1.0
        bench.xid(48, index)
    bench.run(MINUTE)
    assert bench.engine.node_findings() == ()
    assert len(bench.all_rules()) == 8


def test_a_gpu_that_stays_hot_after_the_others_have_cooled_is_its_own() -> None:
    bench = Bench(8)
    _hot(bench, range(8))
    bench.run(10 * MINUTE)
    assert len(_systemic(bench)) == 8
    _hot(bench, range(7), 0.0)
    bench.run(45 * MINUTE)
    assert _systemic(bench) == {"GPU-7"}
    bench.run(30 * MINUTE)
    assert _systemic(bench) == set()
    assert bench.rules(7)["thermal_slowdown"] == "degraded"
    assert bench.engine.node_findings() == ()


def test_systemic_findings_survive_a_restart_and_clear_like_others() -> None:
    bench = Bench(8)
    _hot(bench, range(8))
    bench.run(10 * MINUTE)
    bench.restart()
    assert len(_systemic(bench)) == 8
    _hot(bench, range(8), 0.0)
    bench.run(HOUR)
    assert bench.all_rules() == {}
    assert bench.engine.node_findings() == ()
