"""Every fault that a product of this kind must pass has a test by name: the list, and that each of them is there."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# "file::test", the file without `test_` and `.py`.
DETECTION: dict[str, tuple[str, ...]] = {
    "1 every XID, by kernel log and by NVML event": (
        "faults_detection::test_every_xid_is_one_finding_or_none_whoever_tells_it",
        "faults_detection::test_every_xid_while_the_driver_cannot_be_asked",
        "health_xids::test_every_code_of_the_catalogue_has_exactly_one_verdict",
    ),
    "2 one event told by both": (
        "faults_detection::test_an_xid_that_both_sources_tell_is_one_event_of_one_finding",
        "health_merger::test_what_both_sources_tell_is_one_fault_with_what_both_know",
        "health_watch::test_an_event_that_both_sources_tell_is_one_finding_with_what_both_know",
    ),
    "3 NVLink 5 registers, driver versions, no match, injected errors": (
        "health_xids::test_registers_are_decoded_by_the_table",
        "health_xids::test_the_driver_decides_which_bits_name_the_unit",
        "health_xids::test_what_no_row_says_is_degraded_and_said",
        "health_kmsg::test_an_nvlink_5_line",
    ),
    "4 an unknown XID": (
        "faults_detection::test_an_unknown_xid_is_degraded_announced_and_never_a_fence",
        "health_xids::test_a_code_that_nobody_knows_is_degraded_and_never_fatal",
    ),
    "5 XID 94 and 109, with and without a recovery action": (
        "health_engine::test_xid_94_and_109_are_as_bad_as_the_driver_says",
        "health_engine::test_second_xid_109_within_a_day_is_serious",
    ),
    "6 a fatal XID, then one that is ignored": (
        "faults_detection::test_a_milder_xid_after_a_fatal_one_takes_nothing_back",
        "health_engine::test_milder_event_never_lowers_the_severity",
        "taints_plan::test_a_milder_event_leaves_a_worse_fence_alone",
    ),
    "7 row remapping pending, and failed": (
        "health_rules::test_row_remap_pending_is_degraded_until_it_is_gone",
        "health_rules::test_row_remap_failure_is_latched_and_ends_by_acknowledgement_or_another_board",
    ),
    "8 SRAM threshold, uncorrected errors contained and not": (
        "health_rules::test_sram_threshold_is_latched_and_outlives_reset_and_reboot",
        "health_rules::test_uncorrected_sram_error_is_unhealthy",
        "health_rules::test_contained_uncorrected_dram_error_is_degraded_after_the_driver_wanted_nothing",
        "health_rules::test_uncorrected_dram_error_with_a_recovery_action_is_unhealthy_until_a_reset",
    ),
    "9 a storm of corrected errors while calls take 45 s": (
        "faults_detection::test_a_storm_of_corrected_errors_is_told_though_calls_take_45_seconds",
    ),
    "10 counters that reset, wrap or fall": (
        "health_rules::test_counters_that_fall_or_wrap_alarm_nobody",
        "health_engine::test_counter_that_falls_within_an_epoch_is_a_new_baseline",
    ),
    "11 lifetime counters above zero": (
        "faults_detection::test_lifetime_counters_above_zero_at_the_start_are_no_finding",
        "health_rules::test_lifetime_counters_above_zero_at_the_start_alarm_nobody",
    ),
    "12 PCIe-only card, A100, GeForce, vGPU, MIG": (
        "faults_detection::test_what_a_device_does_not_have_is_no_finding",
        "faults_detection::test_pcie_only_cards_and_mig_are_no_finding",
        "health_rules::test_pcie_card_without_nvlink_has_none_to_lose",
        "health_rules::test_a100_without_a_temperature_margin_is_judged_by_temperature",
        "health_rules::test_mig_on_takes_links_out_of_judgement",
    ),
    "13 idle Gen1 link, and a slow link under load": (
        "faults_detection::test_idle_gen1_link_is_no_finding",
        "health_rules::test_idle_link_at_generation_one_in_p0_is_normal",
        "health_rules::test_pcie_generation_under_load",
    ),
    "14 power cap, and power brake": (
        "faults_detection::test_power_cap_all_the_time_is_no_finding",
        "health_rules::test_power_brake_at_thirty_percent",
    ),
    "15 thermal slowdown in 5 and in 6 of 10 minutes, one of eight hot": (
        "health_rules::test_thermal_slowdown_in_six_of_ten_minutes_and_in_five_of_one_gpu_only",
        "faults_detection::test_one_hot_gpu_of_eight_is_fenced_alone",
    ),
    "16 half a node hot": (
        "faults_detection::test_half_a_node_hot_is_one_finding_of_the_node_and_fences_nothing",
        "health_systemic::test_half_of_the_node_hot_is_one_finding_of_the_node_and_stays_visible_on_each",
    ),
    "17 a hang, and a communication library that spins": (
        "faults_detection::test_a_hang_is_shown_only_and_a_spinning_kernel_not_even_that",
    ),
    "18 fabric not started, idle IMEX": (
        "faults_detection::test_a_fabric_that_is_still_coming_up_is_no_finding_and_one_that_never_does_is_one",
        "faults_detection::test_an_idle_imex_domain_is_no_finding",
    ),
    "19 one GPU lost of eight": (
        "faults_detection::test_a_lost_gpu_is_one_fence_and_not_eight",
        "health_agent::test_a_gpu_that_fell_off_the_bus_is_lost_within_two_seconds_alone",
    ),
    "20 a GPU that is not counted any more, and comes back": (
        "faults_detection::test_a_gpu_that_is_not_counted_any_more_is_missed_alone_and_welcome_back",
        "health_engine::test_hot_reappearance_clears_after_ten_minutes_but_xid_79_stays_until_a_reboot",
    ),
}
IDENTITY: dict[str, tuple[str, ...]] = {
    "21 minors shuffled after a reboot": (
        "faults_identity::test_minors_shuffled_after_a_reboot_while_the_agent_is_down_the_fence_follows_the_uuid",
        "faults_identity::test_minors_shuffled_and_the_kernel_log_told_by_address_finds_the_board",
    ),
    "22 a GPU swapped": (
        "faults_identity::test_a_gpu_that_was_swapped_takes_its_findings_with_it_and_the_new_one_is_clean",
        "faults_identity::test_a_gpu_that_was_swapped_while_the_agent_is_down_frees_the_new_one",
        "faults_identity::test_a_swapped_gpu_that_comes_back_elsewhere_is_judged_anew",
    ),
    "23 MIG cut anew while fenced": (
        "faults_identity::test_a_gpu_that_is_cut_anew_while_it_is_fenced_has_every_part_fenced",
        "faults_identity::test_a_finding_of_a_mig_device_fences_it_alone_and_ends_with_it",
    ),
    "24 a node renamed, registered anew, with a pool of another name": (
        "faults_identity::test_a_pool_that_is_not_named_like_its_node_is_selected_by_its_own_name",
        "faults_identity::test_a_node_that_was_renamed_is_fenced_under_its_new_name_alone",
        "faults_identity::test_a_node_that_registered_anew_is_fenced_again_when_its_rule_went_with_the_old_one",
    ),
    "25 a slice absent, late, published again": (
        "faults_identity::test_a_slice_that_comes_late_is_fenced_when_it_comes",
        "faults_identity::test_a_slice_that_is_absent_for_a_day_and_published_again_changes_nothing",
    ),
    "26 two drivers with the same device names": (
        "faults_identity::test_two_drivers_with_the_same_device_names_only_the_right_one_is_fenced",
    ),
}
LIFECYCLE: dict[str, tuple[str, ...]] = {
    "27 ended by a reset, only by a reboot, by neither": (
        "faults_detection::test_what_a_reset_ends_what_only_a_reboot_and_what_neither",
        "health_engine::test_what_ends_which_xid",
    ),
    "28 a reset that failed; three resets in a day": (
        "faults_detection::test_a_reset_that_failed_is_a_finding_of_its_own",
        "faults_detection::test_what_comes_back_after_three_resets_in_a_day_is_not_repaired_by_a_fourth",
        "health_engine::test_kernel_says_that_a_reset_failed_or_succeeded",
    ),
    "32 another boot with the journal of the one before": (
        "faults_detection::test_a_journal_of_another_boot_hides_no_line_of_this_one",
        "health_engine::test_journal_of_another_boot_moves_its_times",
        "health_engine::test_unknown_boot_id_is_another_boot",
    ),
    "33 the clock jumps, the machine sleeps": (
        "faults_detection::test_a_clock_that_jumps_and_a_machine_that_slept_end_no_finding_and_make_none",
        "faults_detection::test_an_event_told_by_both_sources_over_a_jump_of_the_clock_is_one_finding",
        "health_engine::test_errors_of_hours_that_nobody_watched_are_not_those_of_a_minute",
    ),
    "34 the ring of the kernel log overtakes us; old lines at the start": (
        "faults_detection::test_a_ring_that_overtook_us_loses_lines_and_no_later_fault",
        "health_kmsg::test_what_was_seen_before_a_restart_is_not_told_again",
        "health_kmsg::test_a_log_that_is_opened_at_its_end_has_nothing_to_say_yet",
        "health_kmsg::test_where_reading_begins",
    ),
    "35 a driver upgrade": (
        "faults_detection::test_a_driver_upgrade_is_no_finding",
        "health_rules::test_driver_reload_alarms_nobody",
    ),
    "36 NVML fails or hangs; a sampler that cannot be killed": (
        "faults_detection::test_a_gpu_whose_calls_hang_costs_only_itself",
        "sampler::test_a_gpu_that_hangs_since_before_the_start_costs_only_itself",
        "agent_faults::test_without_nvml_it_lives_and_says_what_to_do",
        "sampler::test_a_hang_quarantines_one_gpu_and_replaces_the_sampler_once",
        "sampler::test_the_parent_ends_at_once_while_its_sampler_hangs",
    ),
}
WORK: dict[str, tuple[str, ...]] = {
    "55 a link that flaps": (
        "faults_lifecycle::test_a_link_that_flaps_twenty_times_an_hour_latches_and_costs_few_writes",
        "faults_detection::test_a_link_that_flaps_twenty_times_an_hour_is_one_finding_and_one_write",
        "health_engine::test_finding_that_comes_and_goes_takes_longer_to_clear_and_then_stays",
    ),
    "56 a healthy fleet for days": (
        "health_faults::test_hours_of_a_healthy_node_raise_nothing",
        "health_rules::test_a_healthy_week_of_a_node_raises_nothing",
        "faults_detection::test_a_day_of_a_healthy_node_writes_nothing_to_its_lease",
    ),
    "58 the teardown of a job on 77 nodes": (
        "faults_detection::test_the_teardown_of_a_job_on_77_nodes_is_no_finding",
        "health_rules::test_xids_of_applications_are_no_finding",
    ),
    "59 800,000 lines of one XID": (
        "faults_detection::test_a_flood_of_lines_of_one_xid_is_one_finding",
        "health_engine::test_eight_hundred_thousand_copies_of_one_xid_cost_little",
        "health_kmsg::test_a_storm_costs_bounded_work_and_gives_one_report_a_second",
    ),
}

# ---- Death and return of the agent, control plane, workflow: 29 to 31, 39 to 54, 57 --------------------------------
CONTROL_PLANE: dict[str, tuple[str, ...]] = {
    "29 the agent is killed while it writes": (
        "faults_lifecycle::test_an_agent_killed_while_it_writes_its_journal_leaves_a_whole_one",
        "faults_lifecycle::test_an_agent_killed_while_it_writes_its_lease_doubles_and_loses_nothing",
        "health_agent::test_a_finding_survives_a_restart",
    ),
    "30 the agent is dead for ten minutes, for 25 hours": (
        "faults_lifecycle::test_an_agent_dead_for_ten_minutes_and_for_a_day_leaves_what_stands_and_is_unmonitored",
        "taints_plan::test_what_stands_stays_while_the_agent_is_silent_and_nothing_new_comes_from_it",
        "taints_reports::test_silence_is_counted_from_the_last_change_by_our_own_clock",
    ),
    "31 a GPU heals while the agent is dead": (
        "faults_lifecycle::test_a_gpu_that_heals_while_its_agent_is_dead_is_freed_when_the_agent_is_back",
    ),
    "39 the API server is away, slow, busy, or forgets": (
        "faults_control_plane::test_an_outage_of_an_hour_ends_with_what_is_true_then_and_replays_nothing",
        "faults_control_plane::test_a_server_that_asks_to_wait_half_a_minute_is_asked_nothing_meanwhile",
        "faults_control_plane::test_a_write_whose_answer_is_lost_is_not_done_twice",
        "faults_control_plane::test_a_slow_server_is_written_to_once",
        "taints_apply::test_a_refused_write_costs_only_itself_and_is_tried_again",
        "kube_listwatch::test_gone_lists_anew_and_not_from_a_cache",
        "kube_listwatch::test_watch_from_before_a_compacted_history",
        "controller_faults::test_lost_history_costs_a_list_and_no_account",
    ),
    "40 rights that are missing, writes that are not admitted": (
        "faults_control_plane::test_a_right_that_is_missing_costs_only_what_it_is_for",
        "controller_taints::test_rules_that_may_not_be_read_are_not_written",
        "admission_policy::test_refused",
        "admission_policy::test_each_validation_is_what_refuses_something_alone",
    ),
    "41 a third of the fleet with the same false signal": (
        "faults_control_plane::test_a_third_of_the_fleet_with_the_same_false_signal_within_a_minute",
    ),
    "42 slow accumulation to a fifth of the fleet": (
        "faults_control_plane::test_gpus_that_break_one_by_one_over_days_are_stopped_by_what_stands",
    ),
    "43 the breaker: lifting, restart, release at a rate, no replay": (
        "faults_control_plane::test_an_open_breaker_lifts_outlives_its_leader_and_releases_what_is_true_then",
        "faults_lifecycle::test_what_heals_is_freed_in_one_round_with_everything_that_holds_back_in_force",
        "taints_budget::test_an_open_breaker_lifts_announces_and_opens_a_quarter_after_half_an_hour",
    ),
    "44 no known fleet, cold start": (
        "faults_control_plane::test_a_fleet_of_no_known_devices_is_an_open_breaker",
        "faults_control_plane::test_a_cold_start_fences_nothing",
    ),
    "45 a leader that dies while it writes, two leaders": (
        "faults_control_plane::test_a_leader_that_dies_while_it_writes_leaves_nothing_twice_and_nothing_out",
        "faults_control_plane::test_two_leaders_at_once_agree_in_the_end",
        "taints_apply::test_two_who_both_believe_to_lead_write_each_rule_once",
        "controller_taints::test_a_replica_that_wakes_up_after_its_lease_writes_nothing",
    ),
    "46 hands of people: rules deleted and changed, cordons, pins and ignores that end": (
        "taints_apply::test_a_rule_that_somebody_deleted_stays_away_for_an_hour",
        "taints_apply::test_a_rule_that_somebody_edited_is_left_alone",
        "faults_control_plane::test_a_cordon_that_was_there_before_counts",
        "faults_control_plane::test_a_pin_and_an_ignore_end_with_their_time",
    ),
    "47 NoExecute in two steps, its cap, tolerations": (
        "taints_no_execute::test_the_pod_on_a_lost_gpu_goes_five_minutes_after_new_work_was_kept_away",
        "taints_no_execute::test_more_pods_than_the_cap_are_left_alone_and_that_is_said",
        "taints_budget::test_pods_are_counted_that_would_be_deleted",
    ),
    "48 versions with the API and without, upgrades while rules stand": (
        "taints_versions::test_what_is_written_where",
        "taints_versions::test_an_upgrade_from_alpha_through_a_release_with_the_bug_to_the_stable_api",
        "taints_apply::test_without_the_api_conditions_and_events_remain",
    ),
    "49 nodes of the device plugin, mixed nodes": (
        "taints_nodes::test_gpus_of_the_device_plugin",
        "taints_nodes::test_on_a_mixed_node_rules_are_for_published_gpus_and_the_taint_for_the_rest",
    ),
    "50 a node is deleted": (
        "faults_control_plane::test_a_node_that_is_deleted_takes_its_rules_along",
        "faults_control_plane::test_what_the_garbage_collector_took_first_is_no_persons_doing",
    ),
    "52 sizes and rates of Events and conditions": (
        "faults_control_plane::test_events_and_conditions_are_bounded_in_size_and_rate",
        "taints_tell::test_the_same_news_waits_and_all_news_have_a_rate",
    ),
    "53 maintenance: well, held up, late, given up, a reboot, a failed check": (
        "maintenance_leader::test_from_the_annotation_to_offline_and_back",
        "maintenance_leader::test_a_deadline_that_is_missed_is_said_once",
        "maintenance_leader::test_who_changes_their_mind_has_the_node_back_at_once",
        "maintenance_leader::test_the_node_is_off_and_reboots_and_a_board_is_swapped",
        "maintenance_leader::test_fewer_gpus_or_a_finding_keep_it_fenced_until_a_person_says_so",
    ),
    "54 observing writes nothing, announcing no effect but None": (
        "faults_control_plane::test_observing_asks_and_never_writes",
        "faults_control_plane::test_announcing_writes_no_effect_but_none",
        "taints_apply::test_observing_writes_nothing_at_all_and_still_counts",
    ),
    "57 everything at once, looked at from outside": (
        "taints_invariants_api::test_whatever_happens_every_invariant_holds_after_every_round",
        "taints_checker::test_a_fence_without_evidence_is_found",
        "taints_checker::test_a_selector_of_the_wrong_device_or_of_none_is_found",
        "taints_checker::test_a_fence_beyond_the_budget_is_found",
        "taints_checker::test_a_fence_that_a_milder_event_made_weaker_is_found",
    ),
}
# --------------------------------------------------------------------------------------------------------------------

# Only real hardware can show these.
NEED_HARDWARE: dict[str, str] = {
    "37 handles are let go for a real reset": "a reset fails while a process holds the device; what can be shown "
    "without one is sampler::test_release_lets_the_driver_go_and_acquire_takes_it_up",
    "38 SIGKILL of the agent under load does not disturb the GPU": "simulated GPUs do not fail with their readers",
}

# Programs in benchmarks/ that print what they measure.
MEASURED: dict[str, str] = {"51 5,000 nodes of eight GPUs, one in a hundred sick": "fence_scale"}

LISTED = {**DETECTION, **IDENTITY, **LIFECYCLE, **WORK, **CONTROL_PLANE}


def _functions(file: str) -> set[str]:
    tree = ast.parse((TESTS / f"test_{file}.py").read_text(encoding="utf-8"))
    return {each.name for each in tree.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}


def _missing(tests: Iterable[str]) -> list[str]:
    return [test for test in tests if test.partition("::")[2] not in _functions(test.partition("::")[0])]


@pytest.mark.parametrize("fault", LISTED)
def test_each_fault_has_its_tests(fault: str) -> None:
    assert LISTED[fault]
    assert _missing(LISTED[fault]) == []


@pytest.mark.parametrize("fault", MEASURED)
def test_what_is_measured_has_its_program(fault: str) -> None:
    assert (TESTS.parent / "benchmarks" / f"{MEASURED[fault]}.py").is_file()


def test_no_fault_is_left_out() -> None:
    numbers = sorted(int(fault.partition(" ")[0]) for fault in (*LISTED, *NEED_HARDWARE, *MEASURED))
    assert numbers == list(range(1, 60))
