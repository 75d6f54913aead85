"""Do findings begin, change and end as they should, over lost devices, resets, restarts and bad clocks?"""

from __future__ import annotations

import dataclasses
import time

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claimscope.health.engine import HealthEngine
from claimscope.health.model import RuleState, Severity
from claimscope.health.restore import EngineState
from claimscope.health.rules import RULES
from claimscope.health.thresholds import Thresholds
from claimscope.health.track import STANDING
from claimscope.model import Device, Entity, Event, MigInstance, Missing
from health_help import DAY, HOUR, LONG_AGO, MINUTE, Bench, Gpu, gpu_device

LOST = "the GPU has fallen off the bus or does not answer the driver (NVML: GPU is lost)"

# The driver's verdict and XIDs


@pytest.mark.parametrize(("action", "expected"), [
    ("none", {"xid_degraded": "degraded"}),
    ("gpu_reset", {"xid_fatal": "unhealthy", "recovery_action": "unhealthy"}),
])
def test_xid_that_waits_for_the_driver(action: str, expected: dict[str, str]) -> None:
    bench = Bench()
    bench.xid(46)
    assert bench.state("xid_fatal") is RuleState.PENDING
    bench.gpus[0].text["recovery_action"] = action
    bench.run(MINUTE)
    assert bench.rules() == expected


def test_xid_is_confirmed_within_seconds_where_the_driver_wants_a_reset() -> None:
    bench = Bench()
    bench.xid(46)
    bench.gpus[0].text["recovery_action"] = "gpu_reset"
    bench.run(1, window=1)
    assert bench.rules() == {"xid_fatal": "unhealthy"}


def test_xid_is_fatal_at_once_where_the_driver_cannot_say() -> None:
    bench = Bench()
    bench.gpus[0].without("recovery_action")
    bench.run(5)
    bench.xid(46)
    assert bench.rules() == {"xid_fatal": "unhealthy"}


def test_xid_is_fatal_when_the_driver_is_silent_until_the_end_of_the_wait() -> None:
    bench = Bench()
    bench.xid(46)
    bench.gpus[0].silent = True
    bench.run(29, window=1)
    assert bench.rules() == {}
    bench.run(1, window=1)
    assert bench.rules() == {"xid_fatal": "unhealthy"}


@pytest.mark.parametrize("code", [94, 109])
def test_xid_94_and_109_are_as_bad_as_the_driver_says(code: int) -> None:
    bench = Bench()
    bench.xid(code)
    bench.run(MINUTE)
    assert bench.severity() is Severity.DEGRADED
    bench.gpus[0].text["recovery_action"] = "gpu_reset"
    bench.run(10)
    assert bench.severity() is Severity.UNHEALTHY


def test_second_xid_109_within_a_day_is_serious() -> None:
    bench = Bench()
    bench.xid(109)
    bench.xid(109)  # of the same burst
    assert bench.rules() == {"xid_degraded": "degraded"}
    bench.run(10 * MINUTE)
    bench.xid(109)
    assert bench.rules() == {"xid_degraded": "degraded", "xid_repeat_fatal": "unhealthy"}


def test_milder_event_never_lowers_the_severity() -> None:
    bench = Bench()
    bench.xid(79)
    for code in (45, 13, 43, 94, 63, 162, 48):
        bench.xid(code)
        bench.run(MINUTE)
        assert bench.severity() is Severity.LOST
    assert bench.rules() == {"xid_lost": "lost", "xid_fatal": "unhealthy", "xid_degraded": "degraded"}
    assert bench.findings()["xid_degraded"].evidence["xids"] == "94, 63"


def test_event_of_a_device_that_is_not_known_yet_is_not_lost() -> None:
    bench = Bench(settle=False)
    bench.engine = HealthEngine(RULES, Thresholds(), boot_id="b")
    for uuid in ("GPU-0", "MIG-0"):
        event = Event(entity=uuid, kind="xid", code=154, wall_ns=bench.wall_ns)
        bench.engine.event(event, {}, bench.now_ns, bench.wall_ns, recovery_action=1)
    assert bench.rules() == {"xid_fatal": "unhealthy"}  # a GPU that the driver names is there
    bench.take_inventory()
    bench.take_inventory()
    assert bench.rules() == {"xid_fatal": "unhealthy"}
    part = dataclasses.replace(gpu_device(0), entity=Entity(uuid="MIG-0", parent="GPU-0", gpu=0), pci_bus_id=None)
    bench.gpus.append(Gpu(device=part))
    bench.take_inventory()
    assert bench.rules(1) == {"xid_fatal": "unhealthy"}


def test_eight_hundred_thousand_copies_of_one_xid_cost_little() -> None:
    bench = Bench()
    bench.engine.transitions()
    event = Event(entity="GPU-0", kind="xid", code=95, wall_ns=0)
    begun = time.process_time()
    for _ in range(8000):
        bench.engine.event(event, {"line": "x" * 500}, bench.now_ns, bench.wall_ns)
    assert time.process_time() - begun < 2.0
    assert len(bench.engine.transitions()) == 1
    assert len(msgspec.json.encode(bench.engine.to_state())) < 4000


def test_xid_154_speaks_for_the_driver_while_the_reading_does_not_come() -> None:
    bench = Bench(2)
    bench.gpus[0].without("recovery_action", reason=Missing.FAILED)
    bench.run(5)
    for index in (0, 1):
        event = Event(entity=f"GPU-{index}", kind="xid", code=154, wall_ns=0)
        bench.engine.event(event, {}, bench.now_ns, bench.wall_ns, recovery_action=2)
    assert bench.all_rules() == {"GPU-0": {"xid_needs_reboot": "unhealthy"}}
    bench.run(HOUR)
    assert bench.all_rules() == {"GPU-0": {"xid_needs_reboot": "unhealthy"}}
    del bench.gpus[0].missing["recovery_action"]
    bench.gpus[0].text["recovery_action"] = "none"
    bench.run(15)
    assert bench.all_rules() == {}


# Ends


def test_fatal_xid_ends_by_a_reset_after_a_while_of_quiet_and_not_by_time() -> None:
    bench = Bench()
    bench.xid(48)
    bench.run(2 * DAY, window=60)
    assert bench.state("xid_fatal") is RuleState.LATCHED
    bench.reset()
    bench.run(30)
    assert bench.state("xid_fatal") is RuleState.CLEARING
    assert bench.severity() is Severity.UNHEALTHY
    bench.run(MINUTE)
    assert bench.rules() == {}


def test_new_handles_are_no_reset() -> None:
    bench = Bench()
    bench.xid(48)
    for _ in range(3):
        bench.gpus[0].epoch += 1
        bench.gpus[0].integral = {}
        bench.run(10 * MINUTE)
        bench.session += 1
        bench.run(10 * MINUTE)
    assert bench.state("xid_fatal") is RuleState.LATCHED


def test_reset_that_leaves_a_recovery_action_ends_nothing_and_is_a_finding() -> None:
    bench = Bench()
    bench.xid(48)
    bench.gpus[0].text["recovery_action"] = "gpu_reset"
    bench.run(MINUTE)
    bench.reset()
    bench.gpus[0].text["recovery_action"] = "node_reboot"
    bench.run(10 * MINUTE)
    assert bench.rules() == {
        "xid_fatal": "unhealthy", "recovery_action_reboot": "unhealthy", "reset_failed": "unhealthy",
    }  # fmt: skip


def test_kernel_says_that_a_reset_failed_or_succeeded() -> None:
    bench = Bench()
    bench.xid(48)
    bench.engine.reset("GPU-0", succeeded=False, evidence={"line": "GPU reset executed"}, now_ns=bench.now_ns,
                       wall_ns=bench.wall_ns)
    bench.run(10 * MINUTE)
    assert bench.rules() == {"xid_fatal": "unhealthy", "reset_failed": "unhealthy"}
    bench.engine.reset("GPU-0", succeeded=True, evidence={}, now_ns=bench.now_ns, wall_ns=bench.wall_ns)
    bench.run(5 * MINUTE)
    assert bench.rules() == {"xid_fatal": "unhealthy", "reset_failed": "unhealthy"}  # anybody can write such a line
    bench.reset()
    bench.run(5 * MINUTE)
    assert bench.rules() == {}


@pytest.mark.parametrize(
    ("code", "after_reset", "after_reboot", "after_acknowledgement"),
    [
        (48, {}, {}, {}),
        (94, {}, {}, {}),
        (79, {"xid_lost": "lost"}, {}, {}),
        (151, {"xid_needs_reboot": "unhealthy"}, {}, {}),
        (54, {"xid_needs_repair": "unhealthy"}, {"xid_needs_repair": "unhealthy"}, {}),
        (64, {"xid_needs_repair": "unhealthy"}, {"xid_needs_repair": "unhealthy"}, {}),
    ],
)
def test_what_ends_which_xid(
    code: int, after_reset: dict[str, str], after_reboot: dict[str, str], after_acknowledgement: dict[str, str]
) -> None:
    bench = Bench()
    if code == 151:  # its severity waits for the driver
        bench.gpus[0].without("recovery_action")
        bench.run(5)
    bench.xid(code)
    bench.run(MINUTE)
    bench.reset()
    bench.run(5 * MINUTE)
    assert bench.rules() == after_reset
    bench.restart(boot_id="boot-2", at=700)
    bench.run(5 * MINUTE)
    assert bench.rules() == after_reboot
    for rule in tuple(bench.rules()):
        assert bench.engine.acknowledge("GPU-0", rule)
    assert bench.rules() == after_acknowledgement


def test_acknowledging_what_is_not_there_is_refused() -> None:
    bench = Bench()
    assert not bench.engine.acknowledge("GPU-0", "xid_fatal")
    assert not bench.engine.acknowledge("GPU-9", "xid_fatal")
    assert not bench.engine.acknowledge("GPU-0", "no_such_rule")


def test_finding_stands_for_its_minimum_even_where_all_is_well_earlier() -> None:
    bench = Bench(8)
    bench.gpus[0].last["clock_sm"] = 1.2e9
    bench.run(12 * MINUTE)
    bench.gpus[0].last["clock_sm"] = 1.98e9
    bench.run(25 * MINUTE)  # the clean time is 15 minutes, the least time 30
    assert bench.rules() == {"clocks_low": "degraded"}
    bench.run(6 * MINUTE)
    assert bench.rules() == {}


def test_errors_in_cache_end_by_a_reset_only_when_the_driver_wants_nothing_more() -> None:
    bench = Bench()
    bench.gpus[0].raw["sram_ecc_volatile_parity"] += 1
    bench.run(5)
    bench.reset()
    bench.gpus[0].text["recovery_action"] = "drain_p2p"
    bench.run(HOUR)
    assert bench.state("ecc_uncorrected_sram") is RuleState.CLEARING
    bench.gpus[0].text["recovery_action"] = "none"
    bench.run(2 * MINUTE)
    assert "ecc_uncorrected_sram" not in bench.rules()


def test_errors_of_hours_that_nobody_watched_are_not_those_of_a_minute() -> None:
    bench = Bench()
    bench.run(2 * MINUTE)
    bench.skip(8 * HOUR)
    bench.gpus[0].raw["pcie_errors_correctable"] += 500
    bench.run(10 * MINUTE)
    assert bench.rules() == {}


def test_finding_that_comes_and_goes_takes_longer_to_clear_and_then_stays() -> None:
    bench = Bench()
    gpu = bench.gpus[0]
    bench.run(2 * MINUTE)
    ended_after = []
    for _ in range(3):
        gpu.last["nvlink_up/3"] = 0.0
        bench.run(2 * MINUTE)
        assert bench.state("nvlink_down") is RuleState.FIRING
        gpu.last["nvlink_up/3"] = 1.0
        begun = bench.seconds
        while bench.rules():
            bench.run(MINUTE)
        ended_after.append(round((bench.seconds - begun) / MINUTE))
    assert ended_after == [16, 31, 61]
    gpu.last["nvlink_up/3"] = 0.0
    bench.run(2 * MINUTE)
    gpu.last["nvlink_up/3"] = 1.0
    bench.run(DAY, window=60)
    assert bench.state("nvlink_down") is RuleState.LATCHED
    assert bench.rules() == {"nvlink_down": "unhealthy"}
    assert bench.engine.transitions()[-1].reason == "latched: it came and went too often"
    bench.engine.acknowledge("GPU-0", "nvlink_down")
    bench.run(HOUR)
    assert bench.rules() == {}


# Devices that go and come


def test_one_lost_gpu_is_one_and_not_eight() -> None:
    bench = Bench(8)
    bench.lost = {"GPU-3": LOST}
    bench.take_inventory()
    bench.run(4, window=1)
    assert bench.all_rules() == {}
    bench.run(10)
    assert bench.all_rules() == {"GPU-3": {"gpu_lost": "lost"}}
    assert bench.findings(3)["gpu_lost"].evidence == {"reason": LOST}


def test_gpu_that_was_lost_before_anybody_looked() -> None:
    bench = Bench(8, settle=False)
    bench.lost = {"GPU-99": LOST}
    bench.take_inventory()
    bench.run(20)
    assert [one.rule for one in bench.engine.health()["GPU-99"].findings] == ["gpu_lost"]


def test_hot_reappearance_clears_after_ten_minutes_but_xid_79_stays_until_a_reboot() -> None:
    bench = Bench(2)
    bench.lost = {"GPU-0": LOST, "GPU-1": LOST}
    bench.xid(79, 1)
    bench.take_inventory()
    bench.run(MINUTE)
    bench.lost = {}
    for index in (0, 1):
        bench.reset(index)
    bench.take_inventory()
    bench.run(9 * MINUTE)
    assert bench.rules(0) == {"gpu_lost": "lost"}
    bench.run(5 * MINUTE)
    assert bench.all_rules() == {"GPU-1": {"xid_lost": "lost"}}


def test_quarantine_of_our_own_and_a_refused_gpu_are_not_lost() -> None:
    bench = Bench(2)
    bench.lost = {
        "GPU-0": "quarantined: a driver call on it did not come back; it is tried again later",
        "GPU-1": "the GPU must be reset before it can be used again (NVML: reset required)",
    }
    bench.take_inventory()
    bench.run(MINUTE)
    assert bench.all_rules() == {
        "GPU-0": {"driver_call_hangs": "degraded"}, "GPU-1": {"reset_required": "unhealthy"},
    }  # fmt: skip


def test_gpu_that_is_not_listed_any_more_is_lost_after_two_minutes() -> None:
    bench = Bench(8)
    bench.gpus[5].silent = True
    bench.take_inventory(devices=[gpu.device for gpu in bench.gpus if gpu.uuid != "GPU-5"])
    bench.run(MINUTE)
    assert bench.all_rules() == {}
    bench.run(2 * MINUTE)
    assert bench.all_rules() == {"GPU-5": {"gpu_missing": "lost"}}


def test_gpu_that_is_not_there_after_a_reboot_is_not_missed() -> None:
    bench = Bench(8)
    bench.restart(boot_id="boot-2", at=700)
    bench.gpus.pop(5)
    bench.take_inventory()
    bench.run(10 * MINUTE)
    assert bench.all_rules() == {}
    assert "GPU-5" not in bench.engine.health()


def test_another_board_closes_what_stood_against_the_former() -> None:
    bench = Bench(2)
    bench.xid(64, 0)
    bench.gpus[0].device = dataclasses.replace(
        gpu_device(0), entity=Entity(uuid="GPU-new", gpu=0), identity={"serial": "new"}
    )
    bench.take_inventory()
    assert "GPU-0" not in bench.engine.health()
    bench.run(HOUR)
    assert bench.all_rules() == {}
    assert bench.engine.transitions()[-1].reason == "replaced by GPU-new"


def test_replaced_board_that_is_still_named_as_lost_stays_closed() -> None:
    bench = Bench(2)
    bench.xid(79, 0)
    new = gpu_device(0, entity=Entity(uuid="GPU-new", gpu=0), identity={"serial": "new"})
    bench.lost = {"GPU-0": LOST}
    for devices in ([gpu_device(0), new, gpu_device(1)], [new, gpu_device(1), gpu_device(0)], [new, gpu_device(1)]):
        bench.take_inventory(devices=devices)
        bench.run(MINUTE)
        assert sorted(bench.engine.health()) == ["GPU-1", "GPU-new"]
        assert bench.all_rules() == {}


def test_another_serial_under_the_same_uuid_is_another_board() -> None:
    bench = Bench()
    bench.xid(64)
    bench.gpus[0].device = gpu_device(0, identity={"serial": "other"})
    bench.take_inventory()
    assert bench.rules() == {}


def test_findings_follow_the_uuid_and_not_the_minor() -> None:
    bench = Bench(2)
    bench.xid(48, 0)
    first, second = bench.gpus
    first.device = gpu_device(0, minor=1, pci_bus_id="0000:10:00.0")
    second.device = gpu_device(1, minor=0, pci_bus_id="0000:11:00.0")
    bench.take_inventory()
    bench.run(MINUTE)
    assert bench.all_rules() == {"GPU-0": {"xid_fatal": "unhealthy"}}


def test_mig_devices_have_findings_of_their_own_that_end_with_the_partition() -> None:
    bench = Bench()
    part = Device(
        entity=Entity(uuid="MIG-1", parent="GPU-0", gpu=0), minor=None, pci_bus_id="0000:10:00.0", model=None,
        mig=MigInstance(gpu_instance_id=1, compute_instance_id=0, profile="1g.10gb"),
    )
    gpu = gpu_device(0, mig_enabled=True)
    bench.take_inventory(devices=[gpu, part])
    bench.engine.event(Event(entity="MIG-1", kind="xid", code=94, wall_ns=0), {}, bench.now_ns, bench.wall_ns)
    health = bench.engine.health()
    assert [one.rule for one in health["MIG-1"].findings] == ["xid_degraded"]
    assert health["GPU-0"].findings == ()
    assert "nvlink_down" not in health["MIG-1"].states
    bench.take_inventory(devices=[gpu])
    assert "MIG-1" not in bench.engine.health()
    assert bench.engine.transitions()[-1].reason == "the partition is gone"


# Counters, unknown readings, numbers changed while it runs


def test_counter_that_falls_within_an_epoch_is_a_new_baseline() -> None:
    bench = Bench()
    gpu = bench.gpus[0]
    gpu.raw["ecc_volatile_uncorrected_dram"] = 0.0  # from 2
    bench.run(MINUTE)
    assert bench.rules() == {}
    gpu.raw["ecc_volatile_uncorrected_dram"] += 1
    bench.run(MINUTE)
    assert bench.rules() == {"ecc_uncorrected_dram": "degraded"}


def test_what_cannot_be_read_neither_ends_nor_starts_a_finding() -> None:
    bench = Bench()
    gpu = bench.gpus[0]
    gpu.last["row_remap_pending"] = 1.0
    bench.run(10)
    gpu.without("row_remap_pending", reason=Missing.FAILED)
    bench.run(HOUR)
    assert bench.rules() == {"row_remap_pending": "degraded"}
    gpu.missing["row_remap_pending"] = Missing.UNSUPPORTED
    bench.run(HOUR)
    assert bench.rules() == {"row_remap_pending": "degraded"}
    del gpu.missing["row_remap_pending"]
    gpu.last["row_remap_pending"] = 0.0
    bench.run(15)
    assert bench.rules() == {}


def test_reading_that_fails_in_between_is_not_clean_time() -> None:
    bench = Bench(8)
    gpu = bench.gpus[0]
    gpu.last["clock_event_hw_thermal"] = 1.0
    bench.run(7 * MINUTE)
    gpu.without("clock_event_hw_thermal", reason=Missing.FAILED)
    bench.run(3 * HOUR, window=20)
    assert bench.rules() == {"thermal_slowdown": "degraded"}


def test_thresholds_change_while_it_runs() -> None:
    bench = Bench(8)
    bench.gpus[0].last["clock_event_hw_thermal"] = 1.0
    bench.run(4 * MINUTE)
    assert bench.rules() == {}
    bench.engine.set_thresholds(Thresholds.from_mapping({"thermal_slowdown_minutes": 3}))
    bench.run(MINUTE)
    assert bench.rules() == {"thermal_slowdown": "degraded"}


# Time


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_wall_clock_that_jumps_changes_nothing(jump: int) -> None:
    bench = Bench()
    bench.run(2 * MINUTE)
    bench.gpus[0].last["nvlink_up/3"] = 0.0
    bench.run(30)
    bench.wall_shift = jump
    bench.run(20)
    assert bench.rules() == {}
    bench.run(20)
    assert bench.rules() == {"nvlink_down": "unhealthy"}
    bench.gpus[0].last["nvlink_up/3"] = 1.0
    bench.wall_shift = 0
    bench.run(14 * MINUTE)
    assert bench.rules() == {"nvlink_down": "unhealthy"}
    bench.run(2 * MINUTE)
    assert bench.rules() == {}


def test_restart_in_the_middle_of_a_window_keeps_what_was_seen() -> None:
    bench = Bench(8)
    bench.gpus[0].last["clock_event_hw_thermal"] = 1.0
    bench.run(5 * MINUTE)
    bench.skip(4 * HOUR)  # nobody saw this
    bench.restart()
    bench.run(2 * MINUTE)
    assert bench.rules() == {}  # the grace of a new start
    bench.run(2 * MINUTE)
    assert bench.rules() == {"thermal_slowdown": "degraded"}


def test_restart_in_the_clean_time_neither_loses_nor_invents_time() -> None:
    bench = Bench()
    gpu = bench.gpus[0]
    bench.run(2 * MINUTE)
    gpu.last["nvlink_up/3"] = 0.0
    bench.run(20 * MINUTE)
    gpu.last["nvlink_up/3"] = 1.0
    bench.run(10 * MINUTE)
    bench.skip(HOUR)
    bench.restart()
    bench.run(6 * MINUTE)  # two of them are grace
    assert bench.rules() == {"nvlink_down": "unhealthy"}
    bench.run(2 * MINUTE)
    assert bench.rules() == {}


def test_restart_keeps_findings_with_their_evidence_and_time() -> None:
    bench = Bench(2)
    bench.xid(48, 0, line="NVRM: Xid (PCI:0000:10:00): 48, ...")
    before = bench.findings(0)
    bench.skip(HOUR)
    bench.restart()
    assert bench.findings(0) == before
    assert bench.engine.transitions() == ()


def test_reset_while_the_agent_was_away_is_seen() -> None:
    bench = Bench()
    bench.xid(48)
    bench.run(MINUTE)
    bench.reset()
    bench.restart()
    bench.run(5 * MINUTE)
    assert bench.rules() == {}


def test_journal_of_another_boot_moves_its_times() -> None:
    bench = Bench()
    bench.xid(31, pod="a/one")
    bench.run(HOUR, window=20)
    bench.restart(boot_id="boot-2", at=700)
    bench.take_inventory()
    bench.run(5 * MINUTE)
    bench.xid(31, pod="b/two")
    assert bench.rules() == {"xid_repeat": "degraded"}


def test_unknown_boot_id_is_another_boot() -> None:
    bench = Bench(boot_id="")
    bench.xid(79)
    bench.restart()
    assert bench.state("xid_lost") is RuleState.CLEARING


def test_state_survives_json() -> None:
    bench = Bench(4)
    bench.xid(48, 0)
    bench.xid(46, 1)
    bench.xid(31, 2, pod="a/one")
    bench.gpus[3].last["clock_event_hw_thermal"] = 1.0
    bench.run(20)
    state = bench.engine.to_state()
    assert msgspec.json.decode(msgspec.json.encode(state), type=EngineState) == state


# Whatever happens

_ACTIONS = st.sampled_from((
    "quiet", "quiet", "long", "hot", "cool", "link_down", "link_up", "remap", "remapped", "unreadable", "readable",
    "action", "no_action", "reset", "handles", "gap", "lose", "find", "restart", "reboot", "acknowledge",
    *(f"xid {code}" for code in (13, 31, 45, 46, 48, 54, 63, 79, 94, 109, 999)),
))  # fmt: skip


def _act(bench: Bench, action: str, index: int) -> None:
    gpu = bench.gpus[index]
    match action.split():
        case ["xid", code]:
            bench.xid(int(code), index, pod=f"pod-{len(bench.engine.transitions())}")
        case ["long"]:
            bench.run(HOUR, window=60)
        case ["hot" | "cool"]:
            gpu.last["clock_event_hw_thermal"] = float(action == "hot")
        case ["link_down" | "link_up"]:
            gpu.last["nvlink_up/3"] = float(action == "link_up")
        case ["remap" | "remapped"]:
            gpu.last["row_remap_pending"] = float(action == "remap")
            gpu.missing.pop("row_remap_pending", None)
        case ["unreadable"]:
            gpu.missing |= dict.fromkeys(("row_remap_pending", "clock_event_hw_thermal"), Missing.FAILED)
            gpu.last.pop("row_remap_pending", None)
        case ["readable"]:
            gpu.missing.pop("row_remap_pending", None)
            gpu.missing.pop("clock_event_hw_thermal", None)
        case ["action" | "no_action"]:
            gpu.text["recovery_action"] = "gpu_reset" if action == "action" else "none"
        case ["reset"]:
            bench.reset(index)
        case ["handles"]:
            gpu.epoch, gpu.integral = gpu.epoch + 1, {}
        case ["gap"]:
            bench.skip(HOUR)
        case ["lose"]:
            bench.lost[gpu.uuid] = LOST
            bench.take_inventory()
        case ["find"]:
            bench.lost.pop(gpu.uuid, None)
            bench.take_inventory()
        case ["restart"]:
            bench.restart()
            bench.take_inventory()
        case ["reboot"]:
            bench.restart(boot_id=f"boot-{bench.seconds}", at=LONG_AGO)
            bench.take_inventory()
        case ["acknowledge"]:
            for rule in tuple(bench.rules(index)):
                bench.engine.acknowledge(gpu.uuid, rule)
    bench.run(MINUTE, window=10)


_STEPS = st.lists(st.tuples(_ACTIONS, st.integers(0, 2)), max_size=25)
_SETTINGS = settings(
    max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@_SETTINGS
@given(_STEPS)
def test_whatever_happens_findings_are_sound(steps: list[tuple[str, int]]) -> None:
    bench = Bench(3)
    standing: dict[tuple[str, str], Severity] = {}
    for action, index in steps:
        _act(bench, action, index)
        for transition in bench.engine.transitions():
            key = (transition.uuid, transition.rule)
            if not transition.stands:
                del standing[key]  # only what stood can end
                continue
            assert transition.evidence
            # A severity rises or stays; it falls by an end only.
            assert transition.severity.rank >= standing.get(key, Severity.OK).rank
            standing[key] = transition.severity
        found = {}
        for uuid, health in bench.engine.health().items():
            assert health.severity.rank == max((one.severity.rank for one in health.findings), default=0)
            for finding in health.findings:
                assert finding.evidence
                assert finding.clears
                assert finding.state in STANDING
                assert health.states[finding.rule] is finding.state
                found[uuid, finding.rule] = finding.severity
        assert found == standing


@_SETTINGS
@given(_STEPS)
def test_state_that_is_written_and_read_back_is_the_same(steps: list[tuple[str, int]]) -> None:
    bench = Bench(3)
    for action, index in steps:
        _act(bench, action, index)
    state = bench.engine.to_state()
    again = HealthEngine.from_state(RULES, Thresholds(), state, boot_id=bench.boot_id, now_ns=bench.now_ns)
    assert again.to_state() == state
    for uuid, health in bench.engine.health().items():
        assert again.health()[uuid].findings == health.findings


@_SETTINGS
@given(_STEPS)
def test_order_of_devices_does_not_matter(steps: list[tuple[str, int]]) -> None:
    forward, backward = Bench(3), Bench(3)
    for action, index in steps:
        if action.startswith("xid"):
            forward.engine.transitions()
            backward.engine.transitions()
        _act(forward, action, index)
        backward.gpus.reverse()
        _act(backward, action, 2 - index)
        backward.gpus.reverse()
    assert forward.engine.health() == backward.engine.health()


@settings(_SETTINGS, max_examples=10)
@given(_STEPS)
def test_clears_follow_their_clean_time(steps: list[tuple[str, int]]) -> None:
    """With all well again, and every device there, time alone ends all that time may end, and nothing else."""
    bench = Bench(3)
    for action, index in steps:
        _act(bench, action, index)
    bench.lost = {}
    for gpu in bench.gpus:
        gpu.missing.pop("row_remap_pending", None)
        gpu.missing.pop("clock_event_hw_thermal", None)
        gpu.last |= {"row_remap_pending": 0.0, "clock_event_hw_thermal": 0.0, "nvlink_up/3": 1.0}
        gpu.text["recovery_action"] = "none"
    bench.take_inventory()
    latched = {
        (uuid, finding.rule)
        for uuid, health in bench.engine.health().items()
        for finding in health.findings
        if finding.state is RuleState.LATCHED
    }
    bench.run(30 * HOUR, window=60)
    assert {(uuid, one.rule) for uuid, health in bench.engine.health().items() for one in health.findings} == latched


# Recovery actions that only the kernel log tells


def _action(bench: Bench, action: int) -> None:
    event = Event(entity="GPU-0", kind="xid", code=154, wall_ns=bench.wall_ns)
    bench.engine.event(event, {}, bench.now_ns, bench.wall_ns, recovery_action=action)


@pytest.mark.parametrize(
    ("action", "rules"),
    [(1, {"xid_fatal": "unhealthy"}), (2, {"xid_needs_reboot": "unhealthy"}), (3, {"xid_degraded": "degraded"})],
)
def test_xid_154_ends_by_another_that_wants_nothing(action: int, rules: dict[str, str]) -> None:
    bench = Bench()
    bench.gpus[0].without("recovery_action")
    bench.run(MINUTE)
    _action(bench, action)
    bench.run(HOUR)
    assert bench.rules() == rules
    _action(bench, 0)
    assert bench.rules() == {}


def test_xid_154_ends_by_the_reset_or_the_reboot_that_it_asks_for() -> None:
    for action, left in ((1, {}), (2, {"xid_needs_reboot": "unhealthy"})):
        bench = Bench()
        bench.gpus[0].without("recovery_action")
        bench.run(MINUTE)
        _action(bench, action)
        bench.run(MINUTE)
        bench.reset()
        bench.run(5 * MINUTE)
        assert bench.rules() == left
        bench.restart(boot_id="boot-2", at=700)
        bench.run(5 * MINUTE)
        assert bench.rules() == {}


def test_xid_154_takes_back_no_other_xid() -> None:
    bench = Bench()
    bench.gpus[0].without("recovery_action")
    bench.run(MINUTE)
    bench.xid(95)
    _action(bench, 1)
    _action(bench, 0)
    assert bench.rules() == {"xid_fatal": "unhealthy"}


# Resets


def test_xid_from_before_a_reset_is_no_news() -> None:
    bench = Bench()
    happened = bench.wall_ns
    bench.run(MINUTE)
    bench.reset()
    bench.run(MINUTE)
    for code in (95, 151, 64):
        event = Event(entity="GPU-0", kind="xid", code=code, wall_ns=happened)
        bench.engine.event(event, {}, bench.now_ns, bench.wall_ns)
    bench.run(MINUTE)
    assert bench.rules() == {"xid_needs_repair": "unhealthy", "xid_degraded": "degraded"}
    assert bench.findings()["xid_degraded"].evidence["xid"] == "151"  # which a reset does not end


@pytest.mark.parametrize(("action", "expected"), [("none", set()), ("gpu_reset", {"xid_fatal", "recovery_action"})])
def test_xid_from_around_a_reset_that_nobody_watched_ends_if_the_driver_wants_nothing(
    action: str, expected: set[str]
) -> None:
    bench = Bench()
    bench.skip(MINUTE)
    happened = bench.wall_ns
    bench.skip(MINUTE)
    bench.reset()
    bench.gpus[0].text["recovery_action"] = action
    bench.restart()
    bench.take_inventory()
    bench.run(10)
    event = Event(entity="GPU-0", kind="xid", code=95, wall_ns=happened)
    bench.engine.event(event, {}, bench.now_ns, bench.wall_ns)
    assert bench.findings()["xid_fatal"].since_wall_ns == happened
    bench.run(3 * MINUTE)
    assert set(bench.rules()) == expected


def test_failed_reset_ends_by_one_that_succeeds() -> None:
    bench = Bench()
    bench.gpus[0].text["recovery_action"] = "gpu_reset"
    bench.run(MINUTE)
    bench.reset()
    bench.run(MINUTE)
    assert bench.rules() == {"recovery_action": "unhealthy", "reset_failed": "unhealthy"}
    bench.gpus[0].text["recovery_action"] = "none"
    bench.reset()
    bench.run(2 * MINUTE)
    assert bench.rules() == {}


def test_fault_that_begins_soon_after_a_reset_is_no_failed_reset() -> None:
    for before in ("none", "gpu_reset"):
        bench = Bench()
        bench.gpus[0].text["recovery_action"] = before
        bench.run(MINUTE)
        bench.gpus[0].text["recovery_action"] = "none"
        bench.reset()
        bench.run(200)
        bench.gpus[0].text["recovery_action"] = "gpu_reset"
        bench.run(30)
        assert bench.rules() == {"recovery_action": "unhealthy"}


def test_reboot_that_leaves_a_recovery_action_is_a_finding() -> None:
    bench = Bench()
    bench.gpus[0].text["recovery_action"] = "node_reboot"
    bench.run(MINUTE)
    bench.restart(boot_id="boot-2", at=100)
    bench.take_inventory()
    bench.run(MINUTE)
    assert bench.rules() == {"recovery_action_reboot": "unhealthy", "reset_failed": "unhealthy"}


def test_counts_that_people_clear_are_no_proof_of_a_reset() -> None:
    bench = Bench()
    bench.xid(48)
    bench.gpus[0].raw.update(ecc_volatile_corrected=0.0, ecc_volatile_uncorrected=0.0)
    bench.restart()
    bench.run(5 * MINUTE)
    assert bench.rules() == {"xid_fatal": "unhealthy"}


def test_word_of_a_reset_counts_where_no_total_can_prove_one() -> None:
    bench = Bench()
    bench.gpus[0].raw, bench.gpus[0].rate = {}, {}
    bench.restart()
    bench.run(MINUTE)
    bench.xid(48)
    bench.engine.reset("GPU-0", succeeded=True, evidence={}, now_ns=bench.now_ns, wall_ns=bench.wall_ns)
    bench.run(2 * MINUTE)
    assert bench.rules() == {}


# MIG devices


def _with_mig_device() -> Bench:
    bench = Bench()
    part = dataclasses.replace(
        gpu_device(0), entity=Entity(uuid="MIG-a", gpu=0, parent="GPU-0"), pci_bus_id=None, identity={}
    )
    bench.gpus.append(Gpu(device=part, last={}, text={}, raw={"ecc_volatile_uncorrected_sram": 1.0}, rate={}))
    bench.take_inventory()
    bench.run(MINUTE)
    return bench


@pytest.mark.parametrize(
    ("action", "rules"), [("none", {"xid_degraded": "degraded"}), ("gpu_reset", {"xid_fatal": "unhealthy"})]
)
def test_driver_is_asked_about_a_mig_device_by_its_gpu(action: str, rules: dict[str, str]) -> None:
    bench = _with_mig_device()
    bench.gpus[0].text["recovery_action"] = action
    bench.xid(46, 1)
    bench.run(MINUTE)
    assert bench.rules(1) == rules


def test_reset_of_a_gpu_ends_what_stands_against_its_mig_devices() -> None:
    bench = _with_mig_device()
    bench.xid(95, 1)
    bench.run(MINUTE)
    assert bench.rules(1) == {"xid_fatal": "unhealthy"}
    bench.reset()
    bench.gpus[0].text["recovery_action"] = "gpu_reset"
    bench.run(5 * MINUTE)
    assert bench.rules(1) == {"xid_fatal": "unhealthy"}
    bench.gpus[0].text["recovery_action"] = "none"
    bench.run(5 * MINUTE)
    assert bench.rules(1) == {}


def test_newest_event_is_shown_beside_the_first() -> None:
    bench = Bench()
    bench.xid(95, pod="ml/a", line="first")
    bench.xid(95, pod="ml/a", line="again")
    bench.xid(48, pod="ml/b", line="last")
    evidence = bench.findings()["xid_fatal"].evidence
    assert {key: evidence[key] for key in ("xid", "pod", "line", "last_xid", "last_pod", "last_line")} == {
        "xid": "95", "pod": "ml/a", "line": "first", "last_xid": "48", "last_pod": "ml/b", "last_line": "last",
    }  # fmt: skip


# The PCI bus


BUS = {f"0000:{index + 16:02x}:00.0": "nvidia" for index in range(2)}


def _second_gpu_gone(bus: dict[str, str] | None, *, rebooted: bool) -> Bench:
    bench = Bench(2)
    bench.xid(64, 1)
    if rebooted:
        bench.restart(boot_id="boot-2", at=700)
    bench.engine.bus(bus)
    bench.gpus[1].silent = True
    bench.take_inventory(devices=[bench.gpus[0].device])
    bench.run(5 * MINUTE)
    return bench


@pytest.mark.parametrize(
    ("driver", "rebooted", "expected"),
    [
        ("nvidia", False, {"xid_needs_repair", "gpu_missing"}),
        ("nvidia", True, {"xid_needs_repair", "gpu_missing"}),
        ("", False, {"xid_needs_repair", "gpu_missing"}),
        ("", True, {"xid_needs_repair"}),
        ("vfio-pci", False, {"xid_needs_repair"}),
        ("vfio-pci", True, {"xid_needs_repair"}),
        (None, False, {"xid_needs_repair", "gpu_missing"}),
        (None, True, set()),
    ],
)
def test_gpu_that_nvml_does_not_list_is_what_the_bus_says(
    driver: str | None, rebooted: bool, expected: set[str]
) -> None:
    bus = dict(BUS)
    if driver is None:
        del bus["0000:11:00.0"]
    else:
        bus["0000:11:00.0"] = driver
    assert set(_second_gpu_gone(bus, rebooted=rebooted).rules(1)) == expected


@pytest.mark.parametrize("bus", [None, {}, {"0000:99:00.0": "nvidia"}])
def test_bus_that_cannot_be_read_or_lacks_what_nvml_has_decides_nothing(bus: dict[str, str] | None) -> None:
    assert set(_second_gpu_gone(bus, rebooted=True).rules(1)) == {"xid_needs_repair"}
    assert set(_second_gpu_gone(bus, rebooted=False).rules(1)) == {"xid_needs_repair", "gpu_missing"}


def test_missing_gpu_that_another_driver_takes_is_not_lost_any_more() -> None:
    bench = _second_gpu_gone(dict(BUS), rebooted=False)
    bench.engine.bus({**BUS, "0000:11:00.0": "vfio-pci"})
    bench.take_inventory(devices=[bench.gpus[0].device])
    assert set(bench.rules(1)) == {"xid_needs_repair"}
