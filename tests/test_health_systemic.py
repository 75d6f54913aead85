"""Are many GPUs with one fault told from many faults?"""

from __future__ import annotations

import pytest

from claimscope.health.model import Severity
from claimscope.health.rules import RULES
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
        ((0, 1, 2, 3, 500), ("a", "b", "c", "d"), "abcd"),
        ((0, 1, 2, 3, 13), ("a", "b", "c", "d"), "abcde"),
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


# Each rule of heat, power, clocks and links, and what makes it stand: the last value of a reading, or what a counter
# rises by each minute.
SHARED: dict[str, dict[str, float | str]] = {
    "nvlink_down": {"nvlink_up/3": 0.0},
    "nvlink_errors": {"+nvlink_errors_replay": 1.0},
    "nvlink_crc": {"+nvlink_errors_crc_flit": 9000.0},
    "nvlink5_errors": {"+nvlink_errors_receive": 1.0},
    "nvlink_recovery_failed": {"+nvlink_recoveries_failed": 4.0},
    "nvlink_recoveries": {"+nvlink_recoveries_successful": 5.0},
    "fabric_not_ready": {"fabric_state": "in_progress"},
    "fabric_unhealthy": {"fabric_fault_route_unhealthy": 1.0},
    "fabric_degraded": {"fabric_fault_degraded_bandwidth": 1.0},
    "pcie_width": {"pcie_link_width": 8.0},
    "pcie_generation": {"pcie_link_generation": 3.0},
    "pcie_replays": {"+pcie_replays": 500.0},
    "pcie_errors_fatal": {"+pcie_errors_fatal": 4.0},
    "pcie_errors_non_fatal": {"+pcie_errors_non_fatal": 4.0},
    "pcie_errors_correctable": {"+pcie_errors_correctable": 50.0},
    "thermal_slowdown": {"clock_event_hw_thermal": 0.5},
    "thermal_slowdown_lasting": {"clock_event_hw_thermal": 1.0},
    "thermal_margin": {"temperature_margin": 2.0},
    "thermal_shutdown": {"temperature_margin": -7.0},
    "power_brake": {"clock_event_hw_power_brake": 1.0},
    "power_excess": {"power_instant": 900.0},
    "power_absent": {"power_instant": 1.0},
    "clocks_low": {"clock_sm": 0.9e9},
}


def test_every_rule_of_heat_power_clocks_and_links_may_be_shared() -> None:
    parts = ("thermal", "power", "clocks", "nvlink", "fabric", "pcie")
    assert {rule.key for rule in RULES if rule.key.split("_")[0].startswith(parts)} == set(SHARED)
    assert {rule.key for rule in RULES if rule.correlated} == set(SHARED)


@pytest.mark.parametrize("rule", SHARED)
def test_half_of_a_node_with_one_rule_is_one_finding_of_the_node(rule: str) -> None:
    bench = Bench(16)  # clocks are compared with those of the other half
    for gpu in bench.gpus:
        for counter in ("nvlink_errors_receive", "nvlink_recoveries_failed", "nvlink_recoveries_successful"):
            gpu.missing.pop(counter, None)
            gpu.raw[counter] = 0.0
    bench.run(5)
    for gpu in bench.gpus[:8]:
        for key, value in SHARED[rule].items():
            if key.startswith("+"):
                gpu.rate[key[1:]] = float(value) / MINUTE
            elif isinstance(value, str):
                gpu.text[key] = value
            else:
                gpu.last[key] = value
    bench.run(31 * MINUTE, window=15)
    shared = {one.rule: one.uuids for one in bench.engine.node_findings()}
    assert shared[rule] == tuple(sorted(f"GPU-{index}" for index in range(8)))
    assert all(bench.findings(index)[rule].systemic for index in range(8))
    assert bench.findings(8) == {}


def test_what_comes_hours_later_is_no_follower() -> None:
    bench = Bench(8)
    _hot(bench, range(4))
    bench.run(10 * MINUTE)
    bench.run(3 * HOUR, window=15)
    _hot(bench, range(5, 6))
    bench.run(10 * MINUTE)
    assert _systemic(bench) == {"GPU-0", "GPU-1", "GPU-2", "GPU-3"}
    assert bench.rules(5) == {"thermal_slowdown": "degraded"}


def test_heat_that_is_shared_stays_so_when_it_lasts_though_the_gpus_followed_one_another() -> None:
    bench = Bench(8)
    for index in range(8):
        _hot(bench, range(index, index + 1))
        bench.run(2 * MINUTE)
    for _ in range(40):
        bench.run(MINUTE, window=15)
        lasting = [bench.findings(index).get("thermal_slowdown_lasting") for index in range(8)]
        assert all(one.systemic for one in lasting if one is not None)
    assert all(lasting)


def test_one_gpu_whose_shared_heat_lasts_is_not_its_own_while_the_others_are_hot() -> None:
    bench = Bench(8)
    _hot(bench, range(4), 0.5)
    bench.run(10 * MINUTE)
    assert len(_systemic(bench)) == 4
    _hot(bench, range(1))
    bench.run(80 * MINUTE, window=15)
    assert bench.findings(0)["thermal_slowdown_lasting"].systemic
    assert bench.rules(1) == {"thermal_slowdown": "degraded"}


def test_heat_of_one_gpu_that_lasts_is_its_own() -> None:
    bench = Bench(8)
    _hot(bench, range(1))
    bench.run(31 * MINUTE, window=15)
    assert not bench.findings(0)["thermal_slowdown_lasting"].systemic


def test_what_is_worse_on_one_gpu_than_on_the_others_is_its_own() -> None:
    bench = Bench(2)
    for index, width in enumerate((8.0, 1.0)):
        bench.gpus[index].last["pcie_link_width"] = width
    bench.run(10 * MINUTE)
    assert [bench.rules(index)["pcie_width"] for index in (0, 1)] == ["degraded", "unhealthy"]
    assert not any(bench.findings(index)["pcie_width"].systemic for index in (0, 1))


def test_what_becomes_worse_on_one_gpu_has_another_cause() -> None:
    bench = Bench(8)
    for gpu in bench.gpus[:4]:
        gpu.last["pcie_link_width"] = 8.0
    bench.run(10 * MINUTE)
    assert [bench.findings(index)["pcie_width"].systemic for index in range(4)] == [True] * 4
    bench.gpus[3].last["pcie_link_width"] = 1.0
    bench.run(10 * MINUTE)
    assert bench.rules(3) == {"pcie_width": "unhealthy"}
    assert [bench.findings(index)["pcie_width"].systemic for index in range(4)] == [True, True, True, False]
