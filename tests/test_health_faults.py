"""Every rule that a reading or an event can speak for is caused by a fault of the simulation, on its GPU alone."""

from __future__ import annotations

import pytest

from claimscope.sim.scenario import (
    AnswerFault,
    ClaimPlan,
    DriverEventFault,
    EccFault,
    Fault,
    NvlinkDownFault,
    NvlinkErrorsFault,
    PodPlan,
    PowerBrakeFault,
    RecoveryActionFault,
    ScenarioError,
    ThermalFault,
    XidFault,
    decode_scenario,
)
from claimscope.sim.stretched import stretched_node
from claimscope.sim.world import make_world

AT = 240.0  # the grace of the start is over
GPU = 2
TRAIN = PodPlan(
    namespace="ml", name="train", workload="training", claims=(ClaimPlan(name="gpu", devices=(f"gpu:{GPU}",)),)
)

MINUTES = 60.0


def number(function: str, value: float, place: int = 0, per_second: float = 0.0) -> AnswerFault:
    return AnswerFault(at=AT, gpu=GPU, function=function, place=place, value=value, per_second=per_second)


def field(number: int, value: float, per_second: float = 0.0) -> AnswerFault:
    return AnswerFault(at=AT, gpu=GPU, field=number, value=value, per_second=per_second)


CAUSED: tuple[tuple[str, str, float, tuple[Fault, ...]], ...] = (
    ("recovery_action", "h100x8", 60, (RecoveryActionFault(at=AT, gpu=GPU, action=1),)),
    ("recovery_action_reboot", "h100x8", 60, (RecoveryActionFault(at=AT, gpu=GPU, action=2),)),
    ("recovery_action_peer", "h100x8", 120, (RecoveryActionFault(at=AT, gpu=GPU, action=3),)),
    ("xid_lost", "h100x8", 60, (XidFault(at=AT, gpu=GPU, code=79),)),
    ("xid_fatal", "h100x8", 60, (XidFault(at=AT, gpu=GPU, code=95),)),
    ("xid_degraded", "h100x8", 120, (XidFault(at=AT, gpu=GPU, code=110),)),  # the driver wants nothing
    ("xid_unknown", "h100x8", 60, (XidFault(at=AT, gpu=GPU, code=999),)),
    ("driver_event_degraded", "h100x8", 60, (DriverEventFault(at=AT, gpu=GPU, event="ecc_single_bit_storm"),)),
    (
        "driver_event_fatal", "h100x8", 60,
        (DriverEventFault(at=AT, gpu=GPU, event="fatal_poison"), RecoveryActionFault(at=AT, gpu=GPU, action=1)),
    ),
    ("ecc_uncorrected_dram", "h100x8", 120, (EccFault(at=AT, gpu=GPU),)),
    ("ecc_uncorrected_sram", "h100x8", 120, (EccFault(at=AT, gpu=GPU, location="sram"),)),
    ("row_remap_pending", "h100x8", 120, (EccFault(at=AT, gpu=GPU),)),
    ("row_remap_failure", "h100x8", 120, (EccFault(at=AT, gpu=GPU, remap_failure=True),)),
    ("repair_pending", "b200x8", 120, (number("nvmlDeviceGetRepairStatus", 1),)),
    ("nvlink_down", "h100x8", 180, (NvlinkDownFault(at=AT, gpu=GPU, link=5),)),
    (
        "nvlink_errors", "h100x8", 31 * MINUTES,
        tuple(NvlinkErrorsFault(at=AT + 60 * minute, gpu=GPU, link=1) for minute in range(31)),
    ),
    ("pcie_width", "h100x8", 8 * MINUTES, (number("nvmlDeviceGetCurrPcieLinkWidth", 4),)),
    ("pcie_replays", "h100x8", 12 * MINUTES, (field(94, 0, per_second=200),)),
    ("pcie_generation", "h100x8", 8 * MINUTES, (number("nvmlDeviceGetCurrPcieLinkGeneration", 1),)),
    ("pcie_errors_correctable", "h100x8", 62 * MINUTES, (field(173, 0, per_second=0.1),)),
    ("pcie_errors_non_fatal", "h100x8", 60, (field(179, 1),)),
    ("pcie_errors_fatal", "h100x8", 60, (field(180, 1),)),
    ("ecc_corrected_storm", "h100x8", 12 * MINUTES, (field(3, 0, per_second=50),)),
    ("sram_ecc_threshold", "h100x8", 60, (number("nvmlDeviceGetSramEccErrorStatus", 1, place=11),)),
    ("remapped_rows_many", "h100x8", 60, (EccFault(at=AT, gpu=GPU, count=600),)),
    ("nvlink_crc", "h100x8", 5 * MINUTES, (field(38, 0, per_second=500),)),
    ("nvlink5_errors", "b200x8", 12 * MINUTES, tuple(
        NvlinkErrorsFault(at=AT + 60 * minute, gpu=GPU, link=1) for minute in range(11))),
    ("fabric_not_ready", "h100x8", 7 * MINUTES, (number("nvmlDeviceGetGpuFabricInfo", 2),)),
    ("thermal_margin", "h100x8", 17 * MINUTES, (ThermalFault(at=AT, gpu=GPU, duration=3600),)),
    ("power_excess", "h100x8", 3 * MINUTES, (number("nvmlDeviceGetPowerUsage", 900_000), field(186, 900_000))),
    ("power_absent", "h100x8", 7 * MINUTES, (number("nvmlDeviceGetPowerUsage", 1000), field(186, 1000))),
    ("mig_mode", "h100x8", 17 * MINUTES, (number("nvmlDeviceGetMigMode", 1, place=1),)),
    ("thermal_slowdown", "h100x8", 12 * MINUTES, (ThermalFault(at=AT, gpu=GPU, duration=3600, hardware=True),)),
    ("power_brake", "h100x8", 12 * MINUTES, (PowerBrakeFault(at=AT, gpu=GPU, duration=3600),)),
)  # fmt: skip


@pytest.mark.parametrize(("rule", "profile", "seconds", "faults"), CAUSED, ids=[row[0] for row in CAUSED])
def test_a_fault_of_the_simulation_is_found_on_its_gpu_alone(
    rule: str, profile: str, seconds: float, faults: tuple[Fault, ...], cc: str
) -> None:
    with stretched_node(profile, *faults, pods=(TRAIN,)) as node:
        node.run(AT - 60.0 - 5.0)
        assert node.findings() == set()
        node.run(seconds + 5.0)
        found = node.findings()
    assert (GPU, rule) in found
    assert {gpu for gpu, _ in found} == {GPU}


@pytest.mark.parametrize("code", [13, 31, 43, 45])
def test_xids_of_an_application_raise_nothing(code: int, cc: str) -> None:
    with stretched_node("h100x8", XidFault(at=AT, gpu=GPU, code=code, every=60.0)) as node:
        assert node.run(20 * MINUTES).findings() == set()


@pytest.mark.parametrize("profile", ["h100x8", "a100x8-mig", "b200x8", "l40sx4"])
def test_hours_of_a_healthy_node_raise_nothing(profile: str, cc: str) -> None:
    with stretched_node(profile, window_seconds=15.0) as node:
        assert node.run(2 * 3600.0).findings() == set()
        assert dict(node.watch.view().began) == {}


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("{kind: answer, at: 1, gpu: 0, value: 1}", "give either function or field"),
        ("{kind: answer, at: 1, gpu: 0, value: 1, function: nvmlDeviceGetIndex, field: 3}", "give either function or"),
        ("{kind: answer, at: 1, gpu: 0, value: 1, function: nvmlNothing}", "no simulated function 'nvmlNothing'"),
        ("{kind: answer, at: 1, gpu: 9, value: 1, field: 3}", "no GPU 9"),
        ("{kind: driver_event, at: 1, gpu: 0, event: bad_luck}", "Invalid enum value 'bad_luck'"),
    ],
)
def test_a_fault_that_cannot_be_played_is_refused(fault: str, why: str) -> None:
    with pytest.raises(ScenarioError, match=why):
        make_world("h100x8", decode_scenario(f"faults:\n  - {fault}\n"))
