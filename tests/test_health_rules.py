"""Does each rule of health fire on its fault, and on nothing that only looks like it?"""

from __future__ import annotations

import dataclasses
import random

import pytest

from claimscope.health import conditions, readings
from claimscope.health.events import charges
from claimscope.health.model import Holds, Look, RuleState, Severity, Survives
from claimscope.health.rules import NOT_JUDGED, RULE_BY_KEY, RULES, First, Minutes, On, Rule, Steady
from claimscope.health.thresholds import BY_NAME, ROWS, ThresholdError, Thresholds
from claimscope.health.xids import CATALOGUE, Verdict
from claimscope.metrics.spec import Kind, Stat
from claimscope.metrics.tables import by_key
from claimscope.model import Event, Missing
from claimscope.nvml.library import GONE_WORDS, GPU_IS_LOST, RESET_REQUIRED
from health_help import COUNTERS, DAY, HEALTHY, HOUR, MINUTE, TEXTS, UNSUPPORTED, Bench

# The table itself


def test_every_rule_has_a_unique_key_and_all_its_numbers() -> None:
    assert len(RULE_BY_KEY) == len(RULES)
    for rule in RULES:
        assert rule.hold is None or rule.hold in BY_NAME, rule.key
        assert rule.clean is None or rule.clean in BY_NAME, rule.key
        assert (rule.condition is None) is (rule.on is On.EVENT), rule.key
        assert rule.milder is None or rule.milder in RULE_BY_KEY
        assert rule.clears.endswith("."), rule.key


def thresholds_of(rule: Rule) -> set[str]:
    """Of its window, hold and clean time."""
    match rule.window:
        case Steady(seconds):
            names = {seconds}
        case Minutes(need, of):
            names = {need, of}
        case First():
            names = set()
    return names | {name for name in (rule.hold, rule.clean) if name is not None}


def test_every_threshold_is_used() -> None:
    by_rules = {name for rule in RULES for name in thresholds_of(rule)}
    elsewhere = {row.name for row in ROWS} - by_rules
    assert elsewhere == {
        "startup_grace_seconds", "boot_grace_seconds", "verdict_wait_seconds", "after_reset_clean_seconds",
        "flapping_cycles", "flapping_window_seconds", "clear_delay_max_seconds", "stale_seconds", "systemic_ratio",
        "systemic_devices", "systemic_window_seconds", "systemic_release_seconds", "reset_failed_within_seconds",
        "xid_repeat_window_seconds", "xid_burst_seconds", "ecc_uncorrected_errors", "ecc_corrected_per_minute",
        "remapped_rows_uncorrected", "retired_pages", "nvlink_crc_per_second", "pcie_width_load_ratio",
        "pcie_width_unhealthy_ratio", "pcie_generation_load_ratio", "pcie_replays_factor", "duty_clean_ratio",
        "duty_active_ratio",
        "thermal_margin_celsius", "thermal_margin_clean_celsius", "thermal_shutdown_celsius", "power_excess_ratio",
        "power_absent_watts", "clocks_low_load_ratio", "clocks_low_ratio", "clocks_low_clean_ratio",
        "clocks_low_peers", "hang_utilization_ratio", "hang_memory_ratio", "hang_power_ratio",
    }  # fmt: skip


def test_every_reading_that_a_rule_looks_at_is_in_the_metric_tables() -> None:
    assert {*readings.WINDOW_DELTAS, *readings.MINUTE_DELTAS} <= {
        key for key, quantity in by_key.items() if quantity.kind is Kind.COUNTER
    }
    assert {*readings.MINUTE_INTEGRALS, *readings.MINUTE_MEANS} <= {
        key for key, quantity in by_key.items() if quantity.kind is Kind.GAUGE
    }


def test_the_sampler_integrates_what_a_rule_needs_the_integral_of() -> None:
    for key in readings.MINUTE_INTEGRALS:
        assert any(view.stat is Stat.TOTAL for view in by_key[key].views), key


def test_made_up_readings_of_these_tests_are_readings_of_the_sampler() -> None:
    assert {key.partition("/")[0] for key in (*HEALTHY, *COUNTERS, *TEXTS, *UNSUPPORTED)} <= by_key.keys()


def test_what_is_not_judged_is_no_rule_and_has_a_reason() -> None:
    assert not {key for key, _ in NOT_JUDGED} & RULE_BY_KEY.keys()
    assert all(reason for _, reason in NOT_JUDGED)


def test_reasons_of_lost_devices_are_told_apart_by_the_words_they_are_made_of() -> None:
    assert conditions.RESET_WORD in GONE_WORDS[RESET_REQUIRED]
    lost = GONE_WORDS[GPU_IS_LOST]
    assert not any(
        word in lost for word in (conditions.RESET_WORD, conditions.QUARANTINE_WORD, conditions.MISSING_WORD)
    )


def test_every_xid_of_the_catalogue_speaks_for_at_most_one_rule_and_only_79_is_lost() -> None:
    lost = set()
    for code, row in CATALOGUE.items():
        found = charges(Event(entity="GPU-0", kind="xid", code=code, wall_ns=0), {}, None)
        assert len(found) == (row.verdict not in (Verdict.RECORD, Verdict.RECOVERY_ACTION)), code
        for charge in found:
            assert charge.judgement.evidence["xid"] == str(code)
            if RULE_BY_KEY[charge.rule].severity is Severity.LOST:
                lost.add(code)
    assert lost == {79}


# Thresholds


def test_thresholds_can_be_changed_by_name() -> None:
    assert Thresholds.from_mapping({"thermal_slowdown_minutes": 8})["thermal_slowdown_minutes"] == 8.0


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({"thermal_slowdown_minuts": 8}, "thermal_slowdown_minuts: there is no such threshold; did you mean "
         "thermal_slowdown_minutes?"),
        ({"duty_clean_ratio": 5}, "duty_clean_ratio: found 5, expected 0.001 to 1 ratio"),
        ({"duty_clean_ratio": "much"}, "duty_clean_ratio: found 'much', expected a number (ratio)"),
        ({"duty_clean_ratio": True}, "duty_clean_ratio: found True, expected a number (ratio)"),
        ({"duty_clean_ratio": float("nan")}, "duty_clean_ratio: found nan, expected 0.001 to 1 ratio"),
        ({"power_brake_minutes": 11}, "power_brake_minutes: found 11, expected at most power_brake_of_minutes (10), "
         "or it never fires"),
        ({"thermal_margin_clean_celsius": 1}, "thermal_margin_clean_celsius: found 1, expected at least "
         "thermal_margin_celsius (3), or nothing ever ends; thermal_margin_clean_celsius: found 1, expected at least "
         "thermal_shutdown_celsius (2), or nothing ever ends"),
        ({"stale_seconds": 0}, "stale_seconds: found 0, expected 5 to 2.592e+06 seconds"),
    ],
)  # fmt: skip
def test_a_threshold_that_cannot_be_used_is_named(found: dict[str, object], text: str) -> None:
    with pytest.raises(ThresholdError) as raised:
        Thresholds.from_mapping(found)
    assert str(raised.value) == "health thresholds: " + text


def test_defaults_are_within_their_own_bounds() -> None:
    assert Thresholds.from_mapping({row.name: row.default for row in ROWS}) == Thresholds()


# True cases and their edges


def test_a_healthy_node_has_no_finding_and_says_what_it_cannot_judge() -> None:
    bench = Bench(8)
    bench.run(2 * HOUR, window=10)
    assert bench.all_rules() == {}
    assert bench.state("thermal_slowdown") is RuleState.OK
    assert bench.state("retired_pages_many") is RuleState.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("none", {}),
        ("gpu_reset", {"recovery_action": "unhealthy"}),
        ("drain_and_reset", {"recovery_action": "unhealthy"}),
        ("bus_reset", {"recovery_action": "unhealthy"}),
        ("node_reboot", {"recovery_action_reboot": "unhealthy"}),
        ("system_reboot", {"recovery_action_reboot": "unhealthy"}),
        ("drain_p2p", {"recovery_action_peer": "degraded"}),
        ("recover_imex_domain", {"recovery_action_peer": "degraded"}),
        ("42", {"recovery_action": "degraded"}),
    ],
)
def test_recovery_action(action: str, expected: dict[str, str]) -> None:
    bench = Bench()
    bench.gpus[0].text["recovery_action"] = action
    bench.run(MINUTE)
    assert bench.rules() == expected


def test_recovery_action_must_be_read_twice_and_clears_when_none_is_read_twice() -> None:
    bench = Bench()
    gpu = bench.gpus[0]
    gpu.text["recovery_action"] = "gpu_reset"
    bench.run(1, window=1)
    gpu.text["recovery_action"] = "none"
    bench.run(1, window=1)
    assert bench.rules() == {}
    gpu.text["recovery_action"] = "gpu_reset"
    bench.run(3, window=1)
    assert bench.rules() == {"recovery_action": "unhealthy"}
    gpu.text["recovery_action"] = "none"
    bench.run(1, window=1)
    assert bench.state("recovery_action") is RuleState.CLEARING
    bench.run(2, window=1)
    assert bench.rules() == {}


def test_uncorrected_dram_error_with_a_recovery_action_is_unhealthy_until_a_reset() -> None:
    bench = Bench()
    gpu = bench.gpus[0]
    gpu.raw["ecc_volatile_uncorrected_dram"] += 1
    bench.run(5)
    gpu.text["recovery_action"] = "gpu_reset"
    bench.run(10)
    assert bench.rules()["ecc_uncorrected_dram"] == "unhealthy"
    gpu.text["recovery_action"] = "none"
    bench.run(DAY, window=60)
    assert bench.rules() == {"ecc_uncorrected_dram": "unhealthy"}
    assert bench.state("ecc_uncorrected_dram") is RuleState.LATCHED
    bench.reset()
    bench.run(5 * MINUTE)
    assert bench.rules() == {}


def test_contained_uncorrected_dram_error_is_degraded_after_the_driver_wanted_nothing() -> None:
    bench = Bench()
    bench.gpus[0].raw["ecc_volatile_uncorrected_dram"] += 1
    bench.run(25)
    assert bench.rules() == {}
    bench.run(15)
    assert bench.rules() == {"ecc_uncorrected_dram": "degraded"}
    assert bench.findings()["ecc_uncorrected_dram"].evidence == {
        "ecc_volatile_uncorrected_dram": "+1", "recovery_action": "none",
    }  # fmt: skip


def test_uncorrected_sram_error_is_unhealthy() -> None:
    bench = Bench()
    bench.gpus[0].raw["sram_ecc_volatile_secded"] += 1
    bench.run(5)
    assert bench.rules() == {"ecc_uncorrected_sram": "unhealthy"}


def test_sram_threshold_is_latched_and_outlives_reset_and_reboot() -> None:
    bench = Bench()
    bench.gpus[0].last["sram_ecc_threshold_exceeded"] = 1.0
    bench.run(MINUTE)
    assert bench.rules() == {"sram_ecc_threshold": "unhealthy"}
    bench.reset()
    bench.run(10 * MINUTE)
    bench.restart(boot_id="boot-2", at=1000)
    bench.gpus[0].last["sram_ecc_threshold_exceeded"] = 0.0
    bench.run(HOUR)
    assert bench.state("sram_ecc_threshold") is RuleState.LATCHED


def test_storm_of_corrected_errors_and_a_trickle_of_them() -> None:
    bench = Bench(2)
    bench.gpus[0].rate["ecc_volatile_corrected"] = 17_700 / 60
    bench.gpus[1].rate["ecc_volatile_corrected"] = 900 / 60
    bench.run(9 * MINUTE)
    assert bench.all_rules() == {}
    bench.run(3 * MINUTE)
    assert bench.all_rules() == {"GPU-0": {"ecc_corrected_storm": "degraded"}}
    bench.gpus[0].rate["ecc_volatile_corrected"] = 0
    bench.run(5 * HOUR, window=20)
    assert bench.rules() == {"ecc_corrected_storm": "degraded"}
    bench.run(2 * HOUR, window=20)
    assert bench.rules() == {}


def test_row_remap_pending_is_degraded_until_it_is_gone() -> None:
    bench = Bench()
    bench.gpus[0].last["row_remap_pending"] = 1.0
    bench.run(10)
    assert bench.rules() == {"row_remap_pending": "degraded"}
    bench.reset()
    bench.run(20)
    assert bench.rules() == {}


def test_row_remap_failure_is_latched_and_ends_by_acknowledgement_or_another_board() -> None:
    bench = Bench()
    bench.gpus[0].last["row_remap_failure"] = 1.0
    bench.run(10)
    bench.reset()
    bench.run(HOUR)
    assert bench.rules() == {"row_remap_failure": "unhealthy"}
    assert bench.engine.acknowledge("GPU-0", "row_remap_failure")
    bench.run(HOUR)
    assert bench.rules() == {}  # the flag stands and somebody knows
    bench.gpus[0].last["row_remap_failure"] = 0.0
    bench.run(MINUTE)
    bench.gpus[0].last["row_remap_failure"] = 1.0
    bench.run(MINUTE)
    assert bench.rules() == {"row_remap_failure": "unhealthy"}


@pytest.mark.parametrize(("key", "value"), [("row_remap_banks_none", 1.0), ("remapped_rows_uncorrected", 512.0)])
def test_remapped_rows_many(key: str, value: float) -> None:
    bench = Bench()
    (bench.gpus[0].last if key.startswith("row_") else bench.gpus[0].raw)[key] = value
    bench.run(MINUTE)
    assert bench.rules() == {"remapped_rows_many": "degraded"}


def test_repair_pending_and_retired_pages() -> None:
    bench = Bench(3)
    bench.gpus[0].last["repair_pending_tpc"] = 1.0
    bench.gpus[1].last["retired_pages_pending"] = 1.0
    bench.gpus[2].raw |= {"retired_pages_single_bit": 60.0, "retired_pages_double_bit": 3.0}
    bench.run(MINUTE)
    assert bench.all_rules() == {
        "GPU-0": {"repair_pending": "degraded"},
        "GPU-1": {"retired_pages_pending": "degraded"},
        "GPU-2": {"retired_pages_many": "unhealthy"},
    }


@pytest.mark.parametrize(("switches", "severity"), [(18.0, "unhealthy"), (0.0, "degraded")])
def test_nvlink_down(switches: float, severity: str) -> None:
    bench = Bench()
    gpu = bench.gpus[0]
    gpu.last["nvlink_switch_links"] = switches
    bench.run(5 * MINUTE)
    gpu.last["nvlink_up/7"] = 0.0
    bench.run(MINUTE)
    assert bench.rules() == {}
    bench.run(10)
    assert bench.rules() == {"nvlink_down": severity}
    assert bench.findings()["nvlink_down"].evidence == {"links": "7", "were_up": "18"}
    gpu.last["nvlink_up/7"] = 1.0
    bench.run(14 * MINUTE)
    assert bench.rules() == {"nvlink_down": severity}
    bench.run(2 * MINUTE)
    assert bench.rules() == {}


def test_nvlink_errors_in_sixteen_of_thirty_minutes_and_in_fifteen() -> None:
    bench = Bench(2)
    for minute in range(30):
        for index, gpu in enumerate(bench.gpus):
            if minute % 2 == 0 or (index == 0 and minute == 15):
                gpu.raw["nvlink_errors_replay"] += 1
        bench.run(MINUTE)
    assert bench.all_rules() == {"GPU-0": {"nvlink_errors": "degraded"}}


@pytest.mark.parametrize(
    ("counter", "per_minute", "rule", "severity"),
    [
        ("nvlink_errors_crc_flit", 6001, "nvlink_crc", "degraded"),
        ("nvlink_errors_receive", 1, "nvlink5_errors", "degraded"),
        ("nvlink_recoveries_successful", 2, "nvlink_recoveries", "degraded"),
        ("nvlink_recoveries_failed", 1, "nvlink_recovery_failed", "unhealthy"),
        ("pcie_errors_fatal", 1, "pcie_errors_fatal", "unhealthy"),
        ("pcie_errors_non_fatal", 1, "pcie_errors_non_fatal", "degraded"),
        ("pcie_errors_correctable", 20, "pcie_errors_correctable", "degraded"),
        ("pcie_replays", 33, "pcie_replays", "degraded"),
    ],
)
def test_counters_that_rise(counter: str, per_minute: float, rule: str, severity: str) -> None:
    bench = Bench()
    gpu = bench.gpus[0]
    gpu.raw.setdefault(counter, 7.0)
    gpu.missing.pop(counter, None)
    bench.run(MINUTE)
    assert bench.rules() == {}
    for _ in range(10):
        gpu.raw[counter] += per_minute
        bench.run(MINUTE)
    assert bench.rules() == {rule: severity}


@pytest.mark.parametrize(
    ("counter", "per_minute"),
    [("nvlink_errors_crc_flit", 5999), ("pcie_errors_correctable", 1), ("pcie_replays", 31)],
)
def test_counters_that_rise_as_much_as_is_normal(counter: str, per_minute: float) -> None:
    bench = Bench()
    for _ in range(60):
        bench.gpus[0].raw[counter] += per_minute
        bench.run(MINUTE)
    assert bench.rules() == {}


@pytest.mark.parametrize(
    ("texts", "flags", "expected"),
    [
        ({"fabric_state": "in_progress"}, {}, {"fabric_not_ready": "unhealthy"}),
        ({"fabric_status": "999"}, {}, {"fabric_not_ready": "unhealthy"}),
        ({}, {"fabric_fault_route_unhealthy": 1.0}, {"fabric_unhealthy": "unhealthy"}),
        ({"fabric_health": "unhealthy"}, {}, {"fabric_unhealthy": "unhealthy"}),
        ({}, {"fabric_fault_degraded_bandwidth": 1.0}, {"fabric_degraded": "degraded"}),
        ({"fabric_state": "not_supported"}, {"fabric_fault_degraded_bandwidth": 1.0}, {}),
    ],
)
def test_fabric(texts: dict[str, str], flags: dict[str, float], expected: dict[str, str]) -> None:
    bench = Bench()
    bench.gpus[0].text |= texts
    bench.gpus[0].last |= flags
    bench.run(6 * MINUTE)
    assert bench.rules() == expected


@pytest.mark.parametrize(("width", "severity"), [(8.0, "degraded"), (4.0, "unhealthy")])
def test_pcie_width_under_load(width: float, severity: str) -> None:
    bench = Bench()
    bench.gpus[0].last["pcie_link_width"] = width
    bench.run(4 * MINUTE)
    assert bench.rules() == {}
    bench.run(2 * MINUTE)
    assert bench.rules() == {"pcie_width": severity}
    assert bench.findings()["pcie_width"].evidence == {"pcie_link_width": f"{width:g} of 16", "utilization": "95%"}


def test_pcie_generation_under_load() -> None:
    bench = Bench()
    bench.gpus[0].last["pcie_link_generation"] = 3.0
    bench.run(6 * MINUTE)
    assert bench.rules() == {"pcie_generation": "degraded"}
    bench.gpus[0].last |= {"utilization_gpu": 0.0}
    bench.run(2 * HOUR, window=20)
    assert bench.rules() == {"pcie_generation": "degraded"}  # an idle link proves nothing
    bench.gpus[0].last |= {"utilization_gpu": 0.9, "pcie_link_generation": 5.0}
    bench.run(35 * MINUTE)
    assert bench.rules() == {}


def test_thermal_slowdown_in_six_of_ten_minutes_and_in_five_of_one_gpu_only() -> None:
    bench = Bench(8)
    for minute in range(10):
        bench.gpus[0].last["clock_event_hw_thermal"] = float(minute < 6)
        bench.gpus[1].last["clock_event_hw_thermal"] = float(minute < 5)
        bench.run(MINUTE)
    assert bench.all_rules() == {"GPU-0": {"thermal_slowdown": "degraded"}}
    assert not bench.findings()["thermal_slowdown"].systemic


def test_heat_that_slows_it_down_half_of_each_minute_is_found_and_serious_only_most_of_the_time() -> None:
    bench = Bench(8)
    bench.gpus[0].last["clock_event_hw_thermal"] = 0.5
    bench.gpus[1].last["clock_event_hw_thermal"] = 0.2
    bench.run(HOUR)
    assert bench.all_rules() == {"GPU-0": {"thermal_slowdown": "degraded"}}


def test_thermal_slowdown_most_of_the_time_is_unhealthy_and_clears_after_half_an_hour_without() -> None:
    bench = Bench(8)
    bench.gpus[0].last["clock_event_hw_thermal"] = 0.7
    bench.run(30 * MINUTE)
    assert bench.rules() == {"thermal_slowdown": "degraded", "thermal_slowdown_lasting": "unhealthy"}
    bench.gpus[0].last["clock_event_hw_thermal"] = 0.02
    bench.run(29 * MINUTE)
    assert bench.severity() is Severity.UNHEALTHY
    bench.run(5 * MINUTE)
    assert bench.rules() == {}


def test_thermal_margin_has_a_band_in_which_it_neither_fires_nor_clears() -> None:
    bench = Bench(8)
    gpu = bench.gpus[0]
    gpu.last["temperature_margin"] = 2.0
    bench.run(11 * MINUTE)
    assert bench.rules() == {"thermal_margin": "degraded"}
    gpu.last["temperature_margin"] = 6.0
    bench.run(3 * HOUR, window=20)
    assert bench.rules() == {"thermal_margin": "degraded"}
    gpu.last["temperature_margin"] = 20.0
    bench.run(32 * MINUTE)
    assert bench.rules() == {}


def test_near_the_shutdown() -> None:
    bench = Bench(8)
    bench.gpus[0].last["temperature_margin"] = -6.5
    bench.run(15)
    assert bench.rules() == {"thermal_shutdown": "unhealthy"}


def test_power_brake_at_thirty_percent() -> None:
    bench = Bench(8)
    bench.gpus[0].last["clock_event_hw_power_brake"] = 0.3
    bench.gpus[1].last["clock_event_hw_power_brake"] = 0.24
    bench.run(11 * MINUTE)
    assert bench.all_rules() == {"GPU-0": {"power_brake": "degraded"}}


def test_power_above_the_limit_and_none_at_all() -> None:
    bench = Bench(8)
    bench.gpus[0].last["power_instant"] = 830.0
    bench.gpus[1].last["power_instant"] = 2.0
    bench.run(6 * MINUTE)
    assert bench.all_rules() == {"GPU-0": {"power_excess": "degraded"}, "GPU-1": {"power_absent": "degraded"}}


def test_clocks_low_against_peers() -> None:
    bench = Bench(8)
    bench.gpus[0].last["clock_sm"] = 1.2e9
    bench.run(12 * MINUTE)
    assert bench.all_rules() == {"GPU-0": {"clocks_low": "degraded"}}
    assert bench.findings()["clocks_low"].evidence == {
        "clock_sm_megahertz": "1200", "peers_median_megahertz": "1980",
    }  # fmt: skip


def test_a_hang_is_recorded_and_makes_nothing_worse() -> None:
    bench = Bench()
    bench.gpus[0].last |= {"utilization_gpu": 1.0, "utilization_memory": 0.0, "power_instant": 140.0}
    bench.run(16 * MINUTE)
    assert bench.rules() == {"hang": "ok"}
    assert bench.severity() is Severity.OK


def test_mig_mode_that_waits_for_a_reset() -> None:
    bench = Bench()
    bench.gpus[0].last["mig_mode_pending_enabled"] = 1.0
    bench.run(14 * MINUTE)
    assert bench.rules() == {}
    bench.run(2 * MINUTE)
    assert bench.rules() == {"mig_mode": "degraded"}


# What only looks like a fault


def test_idle_link_at_generation_one_and_narrow_in_p8_is_normal() -> None:
    bench = Bench()
    bench.gpus[0].last |= {
        "pcie_link_generation": 1.0, "pcie_link_width": 8.0, "performance_state": 8.0, "utilization_gpu": 0.0,
        "power_instant": 70.0,
    }  # fmt: skip
    bench.run(2 * HOUR, window=20)
    assert bench.all_rules() == {}


def test_idle_link_at_generation_one_in_p0_is_normal() -> None:
    bench = Bench()
    bench.gpus[0].last |= {"pcie_link_generation": 1.0, "utilization_gpu": 0.0}
    bench.run(2 * HOUR, window=20)
    assert bench.all_rules() == {}


def test_bursts_of_work_with_a_reading_of_the_idle_link_are_normal() -> None:
    bench = Bench()
    for _ in range(60):  # the reading is up to a minute old when work begins
        bench.gpus[0].last |= {"pcie_link_generation": 1.0, "utilization_gpu": 0.9}
        bench.run(MINUTE)
        bench.gpus[0].last |= {"pcie_link_generation": 1.0, "utilization_gpu": 0.0}
        bench.run(2 * MINUTE, window=10)
    assert bench.all_rules() == {}


def test_power_cap_all_the_time_is_normal() -> None:
    bench = Bench(8)
    for gpu in bench.gpus:
        gpu.last |= {"clock_event_sw_power_cap": 1.0, "clock_sm": 1.2e9, "power_instant": 700.0}
    bench.gpus[0].last["clock_sm"] = 0.8e9
    bench.run(2 * HOUR, window=20)
    assert bench.all_rules() == {}


def test_pcie_card_without_nvlink_has_none_to_lose() -> None:
    bench = Bench(settle=False)
    gpu = bench.gpus[0]
    for link in range(18):
        del gpu.last[f"nvlink_up/{link}"]
    gpu.without("nvlink_switch_links", "fabric_state", "fabric_status", *readings.NVLINK_ERRORS)
    bench.run(HOUR, window=10)
    assert bench.all_rules() == {}
    assert bench.state("nvlink_down") is RuleState.NOT_APPLICABLE
    assert bench.state("fabric_not_ready") is RuleState.NOT_APPLICABLE
    assert bench.state("nvlink_errors") is RuleState.NOT_APPLICABLE


def test_links_that_are_down_since_boot_are_not_missed() -> None:
    bench = Bench(settle=False)
    for link in range(18):
        bench.gpus[0].last[f"nvlink_up/{link}"] = 0.0
    bench.run(HOUR, window=10)
    assert bench.all_rules() == {}


def test_links_that_went_down_before_mig_was_turned_on_are_no_finding_for_ever() -> None:
    bench = Bench()
    gpu = bench.gpus[0]
    bench.run(2 * MINUTE)
    gpu.last["nvlink_up/3"] = 0.0
    gpu.last["row_remap_pending"] = 1.0
    bench.run(2 * MINUTE)
    assert bench.rules() == {"row_remap_pending": "degraded", "nvlink_down": "unhealthy"}
    gpu.device = dataclasses.replace(gpu.device, mig_enabled=True)
    gpu.without("row_remap_pending")  # not told while MIG is on, and so what was known stands
    bench.run(20 * MINUTE)
    assert bench.rules() == {"row_remap_pending": "degraded"}


def test_mig_on_takes_links_out_of_judgement() -> None:
    bench = Bench()
    gpu = bench.gpus[0]
    bench.run(2 * MINUTE)
    gpu.device = type(gpu.device)(
        entity=gpu.device.entity, minor=0, pci_bus_id=gpu.device.pci_bus_id, model=gpu.device.model,
        mig_enabled=True, identity=gpu.device.identity,
    )  # fmt: skip
    gpu.last |= {f"nvlink_up/{link}": 0.0 for link in range(18)}
    gpu.last |= {"mig_mode_enabled": 1.0, "mig_mode_pending_enabled": 1.0}
    gpu.without("utilization_gpu", "utilization_memory", "row_remap_pending", "row_remap_failure")
    bench.run(2 * HOUR, window=20)
    assert bench.all_rules() == {}
    assert bench.state("nvlink_down") is RuleState.NOT_APPLICABLE
    assert bench.state("row_remap_failure") is RuleState.NOT_APPLICABLE


def test_a100_without_a_temperature_margin_is_judged_by_temperature() -> None:
    bench = Bench(8)
    for gpu in bench.gpus:
        gpu.without("temperature_margin", "temperature_margin_limit_shutdown")
    bench.run(HOUR, window=10)
    assert bench.all_rules() == {}
    bench.gpus[0].last["temperature_gpu"] = 87.0
    bench.run(11 * MINUTE)
    assert bench.all_rules() == {"GPU-0": {"thermal_margin": "degraded"}}


def test_a_consumer_card_that_supports_next_to_nothing_is_not_judged() -> None:
    bench = Bench(settle=False)
    gpu = bench.gpus[0]
    keep = {"utilization_gpu", "power_instant", "temperature_gpu", "performance_state"}
    gpu.without(*(key for key in (*gpu.last, *gpu.raw, *gpu.text) if key not in keep))
    gpu.rate = {}
    bench.run(HOUR, window=10)
    assert bench.all_rules() == {}
    assert {state for rule, state in bench.engine.health()["GPU-0"].states.items() if RULE_BY_KEY[rule].condition} <= {
        RuleState.OK, RuleState.NOT_APPLICABLE, RuleState.UNKNOWN,
    }  # fmt: skip


def test_readings_that_fail_are_unknown_and_no_fault() -> None:
    bench = Bench()
    gpu = bench.gpus[0]
    gpu.without(*gpu.last, *gpu.raw, *gpu.text, reason=Missing.FAILED)
    gpu.rate = {}
    bench.run(HOUR, window=10)
    assert bench.all_rules() == {}
    assert bench.state("recovery_action") is RuleState.UNKNOWN
    assert bench.state("thermal_slowdown") is RuleState.UNKNOWN
    assert bench.state("row_remap_failure") is RuleState.UNKNOWN


def test_lifetime_counters_above_zero_at_the_start_alarm_nobody() -> None:
    bench = Bench(8, settle=False)
    for gpu in bench.gpus:
        gpu.raw = dict.fromkeys(gpu.raw, 1000000.0) | {"remapped_rows_uncorrected": 30.0}
    bench.run(2 * HOUR, window=10)
    assert bench.all_rules() == {}


def test_counters_that_fall_or_wrap_alarm_nobody() -> None:
    bench = Bench()
    gpu = bench.gpus[0]
    for value in (2.0**32 - 1, 0.0, 2.0**64, 5.0):
        gpu.raw |= dict.fromkeys((*readings.NVLINK_ERRORS, *readings.PCIE_CORRECTABLE), value)
        gpu.epoch += 1
        bench.run(10 * MINUTE)
        gpu.raw |= dict.fromkeys((*readings.NVLINK_ERRORS, *readings.PCIE_CORRECTABLE, *readings.DRAM), 0.0)
        bench.run(10 * MINUTE)
    assert bench.all_rules() == {}


def test_driver_reload_alarms_nobody() -> None:
    bench = Bench(8)
    bench.take_inventory(error="the driver is not loaded", devices=())
    for gpu in bench.gpus:
        gpu.silent = True
    bench.run(10 * MINUTE)
    assert bench.all_rules() == {}
    assert bench.state("thermal_slowdown") is RuleState.UNKNOWN
    for index, gpu in enumerate(bench.gpus):
        gpu.silent = False
        bench.reset(index)
        gpu.text["fabric_state"] = "in_progress"
        gpu.last |= {f"nvlink_up/{link}": 0.0 for link in range(18)}
    bench.session += 1
    bench.take_inventory()
    bench.run(8 * MINUTE)
    for gpu in bench.gpus:
        gpu.text["fabric_state"] = "completed"
        gpu.last |= {f"nvlink_up/{link}": 1.0 for link in range(18)}
    bench.run(HOUR, window=10)
    assert bench.all_rules() == {}


def test_fabric_that_comes_up_within_the_grace_after_boot() -> None:
    bench = Bench(8, at=60, settle=False)
    for gpu in bench.gpus:
        gpu.text["fabric_state"] = "not_started"
    bench.run(9 * MINUTE)
    assert bench.all_rules() == {}
    bench.run(7 * MINUTE)
    assert {rule for found in bench.all_rules().values() for rule in found} == {"fabric_not_ready"}


@pytest.mark.parametrize("code", [8, 13, 31, 32, 43, 45, 68, 69])
def test_xids_of_applications_are_no_finding(code: int) -> None:
    bench = Bench()
    for _ in range(20):
        bench.xid(code, pod="team/crashes-again-and-again")
        bench.run(10 * MINUTE, window=60)
    assert bench.all_rules() == {}


def test_teardown_of_a_job_over_all_gpus_is_no_finding() -> None:
    bench = Bench(8)
    for gpu in range(8):
        for code in (13, 43, *(45,) * 50):
            bench.xid(code, gpu, pod="team/train-0")
    bench.run(10 * MINUTE)
    assert bench.all_rules() == {}


def test_xid_31_from_two_pods_at_different_times_is_worth_a_look() -> None:
    bench = Bench()
    bench.xid(31, pod="a/one")
    bench.run(10 * MINUTE)
    assert bench.rules() == {}
    bench.xid(31, pod="b/two")
    bench.run(5)
    assert bench.rules() == {"xid_repeat": "degraded"}
    assert bench.findings()["xid_repeat"].evidence["pods"] == "a/one, b/two"
    bench.run(25 * HOUR, window=60)
    assert bench.rules() == {}


def test_xid_13_twice_on_one_part_of_the_gpu() -> None:
    bench = Bench(2)
    for unit in ("GPC 3, TPC 1", "GPC 3, TPC 1"):
        bench.xid(13, 0, unit=unit, pod="a/one")
        bench.run(10 * MINUTE)
    for unit in ("GPC 3, TPC 1", "GPC 5, TPC 0"):
        bench.xid(13, 1, unit=unit, pod="a/one")
        bench.run(10 * MINUTE)
    assert bench.all_rules() == {"GPU-0": {"xid_repeat": "degraded"}}


@pytest.mark.parametrize(
    ("code", "rule", "severity"),
    [
        (48, "xid_fatal", "unhealthy"), (54, "xid_needs_repair", "unhealthy"), (62, "xid_fatal", "unhealthy"),
        (64, "xid_needs_repair", "unhealthy"), (79, "xid_lost", "lost"), (95, "xid_fatal", "unhealthy"),
        (119, "xid_fatal", "unhealthy"), (120, "xid_fatal", "unhealthy"), (140, "xid_fatal", "unhealthy"),
        (63, "xid_degraded", "degraded"), (92, "xid_degraded", "degraded"), (94, "xid_degraded", "degraded"),
        (109, "xid_degraded", "degraded"), (5, "xid_unknown", "degraded"), (999, "xid_unknown", "degraded"),
    ],
)  # fmt: skip
def test_xids_that_need_no_verdict_of_the_driver(code: int, rule: str, severity: str) -> None:
    bench = Bench()
    bench.xid(code)
    assert bench.rules() == {rule: severity}


@pytest.mark.parametrize(
    ("decoded", "expected"),
    [
        (Verdict.RECORD, {}),
        (Verdict.DEGRADED, {"xid_degraded": "degraded"}),
        (None, {"xid_degraded": "degraded"}),
    ],
)
def test_nvlink5_codes_are_what_their_registers_say(decoded: Verdict | None, expected: dict[str, str]) -> None:
    bench = Bench()
    bench.xid(149, decoded=decoded)
    bench.run(MINUTE)
    assert bench.rules() == expected


def test_nvlink5_code_that_wants_a_reset_waits_for_the_driver() -> None:
    bench = Bench()
    bench.xid(149, decoded=Verdict.UNHEALTHY)
    assert bench.rules() == {}
    bench.gpus[0].text["recovery_action"] = "gpu_reset"
    bench.run(5)
    assert bench.rules()["xid_fatal"] == "unhealthy"


def test_power_smoothing_back_takes_its_loss_back() -> None:
    bench = Bench()
    bench.xid(163)
    assert bench.rules() == {"xid_degraded": "degraded"}
    bench.xid(162)
    assert bench.rules() == {}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ecc_single_bit_storm", {"driver_event_degraded": "degraded"}),
        ("non_fatal_poison", {"driver_event_degraded": "degraded"}),
        ("ecc_single_bit", {}),
        ("mig_config_change", {}),
        ("type_0x40000", {}),
    ],
)
def test_other_events_of_the_driver(kind: str, expected: dict[str, str]) -> None:
    bench = Bench()
    bench.xid(0, kind=kind)
    assert bench.rules() == expected


def test_a_healthy_week_of_a_node_raises_nothing() -> None:
    bench = Bench(8)
    noise = random.Random(7)
    for gpu in bench.gpus:
        gpu.rate |= {"ecc_volatile_corrected": 1 / 3600, "pcie_replays": 1 / 600, "nvlink_errors_crc_flit": 0.01}
    for hour in range(7 * 24):
        busy = hour % 24 < 20
        for index, gpu in enumerate(bench.gpus):
            gpu.last |= {
                "utilization_gpu": 0.9 + 0.1 * noise.random() if busy else 0.0,
                "clock_sm": (1.7 + 0.2 * noise.random()) * 1e9 if busy else 345e6,
                "power_instant": 500 + 190 * noise.random() if busy else 75.0,
                "clock_event_sw_power_cap": noise.random() if busy else 0.0,
                "clock_event_hw_thermal": 0.03 * noise.random(),
                "temperature_margin": 8 + 20 * noise.random(),
                "pcie_link_generation": 5.0 if busy else 1.0,
            }
            if noise.random() < 0.2:
                bench.xid(noise.choice((13, 31, 43, 45)), index, pod="team/train-0")
        bench.run(HOUR, window=60)
    assert bench.engine.transitions() == ()
    assert bench.all_rules() == {}


def test_conditions_of_a_device_that_does_not_answer_are_unknown() -> None:
    bench = Bench()
    look = Look(device=bench.gpus[0].device, now_ns=0, window=None)
    for rule in RULES:
        if rule.condition is not None and rule.key != "reset_failed":
            assert rule.condition(look, Thresholds()).holds is Holds.UNKNOWN, rule.key


def test_what_ends_latched_rules_is_said() -> None:
    latched = {rule.key: rule.survives for rule in RULES if rule.latches}
    assert latched["xid_lost"] is Survives.RESET
    assert latched["row_remap_failure"] is Survives.REBOOT
    assert Survives.NOTHING not in latched.values()


@pytest.mark.parametrize("phase", range(0, 60, 10))
def test_a_power_limit_that_is_lowered_is_no_excess(phase: int) -> None:
    bench = Bench()
    bench.run(phase)
    bench.gpus[0].last.update(power_limit_enforced=350.0, power_instant=340.0)
    bench.run(5 * MINUTE)
    assert bench.rules() == {}
    bench.gpus[0].last["power_instant"] = 600.0
    bench.run(2 * MINUTE)
    assert bench.rules() == {"power_excess": "degraded"}


def test_clocks_without_enough_peers_are_said_to_be_not_compared() -> None:
    bench = Bench(4)
    bench.gpus[0].last["clock_sm"] = 5e8
    bench.run(20 * MINUTE)
    assert (bench.rules(), bench.state("clocks_low")) == ({}, RuleState.NOT_APPLICABLE)


def test_a_second_contained_memory_error_waits_for_the_driver_like_the_first() -> None:
    bench = Bench()
    for action, severity in (("none", "degraded"), ("none", "degraded"), ("gpu_reset", "unhealthy")):
        bench.gpus[0].raw["ecc_volatile_uncorrected_dram"] += 1
        bench.gpus[0].text["recovery_action"] = action
        bench.run(5)
        assert bench.rules().get("ecc_uncorrected_dram") != ("unhealthy" if action == "none" else None)
        bench.run(MINUTE)
        assert bench.rules()["ecc_uncorrected_dram"] == severity


@pytest.mark.parametrize(
    ("counter", "rule"),
    [
        ("ecc_volatile_uncorrected_dram", "ecc_uncorrected_dram"),
        ("ecc_volatile_uncorrected_sram", "ecc_uncorrected_sram"),
        ("pcie_errors_fatal", "pcie_errors_fatal"),
        ("pcie_errors_non_fatal", "pcie_errors_non_fatal"),
    ],
)
def test_errors_right_after_the_start_a_restart_a_reset_or_new_handles_count(counter: str, rule: str) -> None:
    def started(bench: Bench) -> None:
        bench.run(30)

    def restarted(bench: Bench) -> None:
        bench.run(3 * MINUTE)
        bench.restart()

    def reset(bench: Bench) -> None:
        bench.run(3 * MINUTE)
        bench.reset()
        bench.run(30)

    def new_handles(bench: Bench) -> None:
        bench.run(3 * MINUTE)
        bench.gpus[0].epoch += 1

    for before in (started, restarted, reset, new_handles):
        bench = Bench(settle=False)
        before(bench)
        assert bench.rules() == {}
        bench.gpus[0].raw[counter] += 5
        bench.run(MINUTE)
        assert set(bench.rules()) == {rule}, before.__name__
