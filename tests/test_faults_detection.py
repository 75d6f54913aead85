"""Faults of GPUs, and what only looks like one, each by name: from what the driver says to what the Lease says."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import msgspec
import pytest

from agent_process import Agent, Recorder, Scrape
from claimscope.health.kmsg import KernelLog
from claimscope.health.model import RuleState
from claimscope.health.report import LeaseFindings
from claimscope.health.xids import CATALOGUE
from claimscope.model import Entity
from claimscope.sim.scenario import (
    AnswerFault,
    EccFault,
    FabricFault,
    Fault,
    NvlinkErrorsFault,
    NvlinkRecoveryFault,
    PodPlan,
    ReturnCodeFault,
    StalledFault,
    ThermalFault,
)
from claimscope.sim.stretched import stretched_node
from faults_help import Node, tell
from health_help import DAY, HOUR, MINUTE, gpu_device
from taints_help import World, gpu

NOTHING = LeaseFindings(boot_id="boot-1")
NOT_SUPPORTED = 3
HOT = 88.0  # an H100 slows down at 89


def _in_a_cluster() -> tuple[Node, World]:
    """Node n1 of ten, with eight GPUs."""
    devices = [gpu_device(index, entity=Entity(uuid=gpu(1, index), gpu=index)) for index in range(8)]
    return Node(devices), World()


# XIDs

# What each code is while the driver can be asked and wants nothing.
XIDS: dict[tuple[str, str], set[int]] = {
    ("", ""): {
        8, 11, 13, 14, 25, 31, 32, 37, 38, 39, 40, 41, 43, 44, 45, 60, *range(66, 73), 75, 76, 77, 80, *range(82, 87),
        88, 89, *range(96, 109), *range(126, 136), 137, 139, 141, 152, 153, 154, 160, 161, 162, 171, 172,
    },
    ("xid_unknown", "degraded"): {
        *range(1, 8), 9, 10, 12, *range(15, 25), *range(26, 31), *range(33, 37), 42, 47, *range(49, 54),
        *range(55, 60), 61, 65, 73, 81, 87, 90, 91, *range(111, 119), *range(122, 126), 138, 999,
    },
    ("xid_degraded", "degraded"): {
        46, 63, 74, 78, 92, 93, 94, 109, 110, 121, 136, 142, 143, *range(144, 152), 155, 156, 157, 158, 159, 163, 164,
        165, 166, 167, 168, 169, 170, 173,
    },
    ("xid_fatal", "unhealthy"): {48, 62, 95, 119, 120, 140},
    ("xid_needs_repair", "unhealthy"): {54, 64},
    ("xid_lost", "lost"): {79},
}  # fmt: skip
# What is worse while the driver cannot be asked.
XIDS_UNASKED: dict[tuple[str, str], set[int]] = {
    ("xid_fatal", "unhealthy"): {46, 110, 136, 143, 150, 156, 158, 167, 169, 173},
    ("xid_needs_reboot", "unhealthy"): {151},
}


def _by_finding(node: Node, codes: list[int]) -> dict[tuple[str, str], set[int]]:
    found: dict[tuple[str, str], set[int]] = {}
    for index, code in enumerate(codes):
        rules = node.rules(index)
        assert len(rules) <= 1, (code, rules)
        found.setdefault(next(iter(rules.items()), ("", "")), set()).add(code)
    return found


@pytest.mark.parametrize("source", ["nvml", "kernel log", "both"])
def test_every_xid_is_one_finding_or_none_whoever_tells_it(source: str) -> None:
    codes = sorted({*CATALOGUE, 999})
    assert sorted(code for some in XIDS.values() for code in some) == codes
    node = Node(len(codes), settle=False)
    node.run(5)
    for index, code in enumerate(codes):
        if source != "kernel log":
            node.xid(code, index)
        if source != "nvml":
            node.log_xid(code, index)
    node.run(40)
    assert _by_finding(node, codes) == XIDS


def test_every_xid_while_the_driver_cannot_be_asked() -> None:
    codes = sorted({*CATALOGUE, 999})
    worse = set().union(*XIDS_UNASKED.values())
    expected = {finding: some - worse for finding, some in XIDS.items()}
    for finding, some in XIDS_UNASKED.items():
        expected[finding] = expected.get(finding, set()) | some
    node = Node(len(codes), settle=False)
    for one in node.gpus:
        one.without("recovery_action")
    node.run(5)
    for index, code in enumerate(codes):
        node.xid(code, index)
    node.run(40)
    assert _by_finding(node, codes) == expected


def test_an_xid_that_both_sources_tell_is_one_event_of_one_finding() -> None:
    node = Node()
    node.xid(95)
    node.log_xid(95)
    node.run(5)
    assert node.rules() == {"xid_fatal": "unhealthy"}
    assert {key: value for key, value in node.view.began.items() if value} == {
        ("GPU-0", node.view.devices["GPU-0"].severity): 1
    }


def test_an_unknown_xid_is_degraded_announced_and_never_a_fence() -> None:
    node, world = _in_a_cluster()
    node.log_xid(999, 3)
    node.run(5)
    tell(world, "n1", node.annotation())
    assert world.round() == ["create gpu-3@n1 degraded=xid_unknown:None"]


def test_a_milder_xid_after_a_fatal_one_takes_nothing_back() -> None:
    node, world = _in_a_cluster()
    node.log_xid(95, 3)
    node.run(5)
    tell(world, "n1", node.annotation())
    assert world.round() == ["create gpu-3@n1 unhealthy=xid_fatal:NoSchedule"]
    for code in (45, 43, 63, 13):
        node.run(5)
        node.log_xid(code, 3)
    node.run(MINUTE)
    tell(world, "n1", node.annotation())
    world.round(60)
    assert world.blocked() == {gpu(1, 3)}


def test_the_teardown_of_a_job_on_77_nodes_is_no_finding() -> None:
    world = World(nodes=77)
    for number in range(77):
        node, index = Node(8, settle=False), 0
        node.pods = {one.uuid: f"ml/worker-{number}-{index}" for one in node.gpus}
        node.run(5)
        for index in range(8):
            for code in (13, 43, 45, 45, 45):
                node.log_xid(code, index, count=40)
                node.xid(code, index)
        node.run(10)
        assert node.all_rules() == {}
        tell(world, f"n{number}", node.annotation())
    assert world.round() == []
    assert world.last.held == ()


def test_a_flood_of_lines_of_one_xid_is_one_finding() -> None:
    lines, burst = 80_000, 10_000  # so many between two looks
    node = Node(settle=False)
    node.run(5)
    text = b"NVRM: Xid (PCI:0000:10:00): 95, pid=4242, name=python3, Uncontained"
    left, sequence = 0, 0

    def read(_: int) -> bytes:
        nonlocal left, sequence
        if not left:
            raise BlockingIOError
        left, sequence = left - 1, sequence + 1
        return b"4,%d,%d,-;%b\n" % (sequence, sequence * 25, text)

    log = KernelLog(read, records_per_poll=burst)
    for _ in range(lines // burst):
        left = burst
        reports = log.poll(monotonic_ns=node.now_ns, wall_ns=node.wall_ns)
        assert len(reports) <= 2  # one for each second of the log
        node.watch.kernel(reports, log.last_sequence, node.now_ns, node.wall_ns)
        node.run(0.5, window=0.5)
    assert log.counts.records == lines
    assert node.rules() == {"xid_fatal": "unhealthy"}
    assert sum(node.view.began.values()) == 1
    assert len(node.annotations) == 2  # nothing, and this


# Counters


def test_lifetime_counters_above_zero_at_the_start_are_no_finding(cc: str) -> None:
    before: list[Fault] = []
    for index in range(8):
        before += [
            EccFault(at=1, gpu=index, type="corrected", count=9999),
            NvlinkErrorsFault(at=1, gpu=index, link=2, count=5000),
            NvlinkRecoveryFault(at=1, gpu=index, link=2, count=70),
            NvlinkRecoveryFault(at=1, gpu=index, link=3, failed=True),
            *(AnswerFault(at=1, gpu=index, field=field, value=100_000) for field in (94, 173, 179, 180)),
        ]  # fmt: skip
    for profile in ("h100x8", "b200x8"):
        with stretched_node(profile, *before, window_seconds=15.0) as node:
            assert node.run(40 * MINUTE).findings() == set()


# What a device does not have


UNABLE: dict[str, tuple[str | int, ...]] = {
    "an A100 has no temperature margin": ("nvmlDeviceGetMarginTemperature", 193, 194, 195, 196),
    "a GeForce has no ECC, no NVLink and no fabric": (
        "nvmlDeviceGetMemoryErrorCounter", "nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetSramEccErrorStatus",
        "nvmlDeviceGetRemappedRows", "nvmlDeviceGetRowRemapperHistogram", "nvmlDeviceGetRepairStatus",
        "nvmlDeviceGetNvLinkState", "nvmlDeviceGetNvLinkErrorCounter", "nvmlDeviceGetGpuFabricInfo",
        "nvmlDeviceGetGpuFabricInfoV", "nvmlDeviceGetMigMode", 3, 4, 230, 142, 143, 144, 145, 147, 165,
    ),
    "a vGPU has no power, heat, clocks or bus of its own": (
        "nvmlDeviceGetPowerUsage", "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetTemperature",
        "nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperatureThreshold", "nvmlDeviceGetMarginTemperature",
        "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetClockInfo", "nvmlDeviceGetCurrPcieLinkWidth",
        "nvmlDeviceGetCurrPcieLinkGeneration", "nvmlDeviceGetMaxPcieLinkWidth", "nvmlDeviceGetMaxPcieLinkGeneration",
        "nvmlDeviceGetPcieReplayCounter", "nvmlDeviceGetViolationStatus", "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetRemappedRows", "nvmlDeviceGetPerformanceState", 94, 173, 179, 180, 186, 230,
    ),
}  # fmt: skip


@pytest.mark.parametrize("answers", UNABLE.values(), ids=UNABLE)
def test_what_a_device_does_not_have_is_no_finding(answers: tuple[str | int, ...], cc: str) -> None:
    faults = tuple(
        ReturnCodeFault(at=0, code=NOT_SUPPORTED, function=one)
        if isinstance(one, str)
        else ReturnCodeFault(at=0, code=NOT_SUPPORTED, field=one)
        for one in answers
    )
    with stretched_node("h100x8", *faults, window_seconds=15.0) as node:
        assert node.run(40 * MINUTE).findings() == set()


@pytest.mark.parametrize("profile", ["l40sx4", "a100x8-mig"])
def test_pcie_only_cards_and_mig_are_no_finding(profile: str, cc: str) -> None:
    with stretched_node(profile, window_seconds=15.0) as node:
        assert node.run(HOUR).findings() == set()


# Links


def _answers(value: float, function: str, gpus: int = 8, place: int | None = 0) -> tuple[Fault, ...]:
    return tuple(AnswerFault(at=0, gpu=one, function=function, value=value, place=place) for one in range(gpus))


def test_idle_gen1_link_is_no_finding(cc: str) -> None:
    asleep = (
        *_answers(1, "nvmlDeviceGetCurrPcieLinkGeneration"), *_answers(8, "nvmlDeviceGetCurrPcieLinkWidth"),
        *_answers(8, "nvmlDeviceGetPerformanceState"),
    )  # fmt: skip
    with stretched_node("h100x8", *asleep, pods=(), window_seconds=15.0) as node:
        assert node.run(40 * MINUTE).findings() == set()


def test_a_fabric_that_is_still_coming_up_is_no_finding_and_one_that_never_does_is_one() -> None:
    node = Node(8, at=60, settle=False)
    for one in node.gpus:
        one.text["fabric_state"] = "not_started"
    node.run(9 * MINUTE)
    assert node.all_rules() == {}
    for one in node.gpus[1:]:
        one.text["fabric_state"] = "completed"
    node.run(7 * MINUTE)
    assert node.all_rules() == {"GPU-0": {"fabric_not_ready": "unhealthy"}}
    node.gpus[0].text["fabric_state"] = "completed"
    node.run(11 * MINUTE)
    assert node.all_rules() == {}


def test_an_idle_imex_domain_is_no_finding(cc: str) -> None:
    # The GPUs of an idle node are in the fabric; that no IMEX domain is ready on it says nothing of them.
    joined = tuple(FabricFault(at=1, gpu=index) for index in range(8))
    with stretched_node("b200x8", *joined, pods=(), window_seconds=15.0) as node:
        assert node.run(30 * MINUTE).findings() == set()


def test_a_link_that_flaps_twenty_times_an_hour_is_one_finding_and_one_write() -> None:
    node, world = _in_a_cluster()
    for _ in range(20):
        node.gpus[0].last["nvlink_up/3"] = 0.0
        node.run(90)
        node.gpus[0].last["nvlink_up/3"] = 1.0
        node.run(90)
    assert node.rules() == {"nvlink_down": "unhealthy"}
    assert sum(node.view.began.values()) == 1
    actions = []
    for text in node.annotations:
        tell(world, "n1", text)
        actions += world.round(90)
    assert actions == ["create gpu-0@n1 unhealthy=nvlink_down:NoSchedule"]


# Power, heat, work


def test_power_cap_all_the_time_is_no_finding(cc: str) -> None:
    capped = _answers(0x4, "nvmlDeviceGetCurrentClocksEventReasons")
    train = tuple(
        PodPlan(namespace="ml", name=f"train-{one}", workload="training", plugin={"nvidia.com/gpu": (f"gpu:{one}",)})
        for one in range(8)
    )
    with stretched_node("h100x8", *capped, pods=train, window_seconds=15.0) as node:
        assert node.run(40 * MINUTE).findings() == set()


def test_half_a_node_hot_is_one_finding_of_the_node_and_fences_nothing(cc: str) -> None:
    hot = tuple(ThermalFault(at=240, gpu=index, duration=7200, hardware=True, celsius=HOT) for index in range(4))
    world = World()
    with stretched_node("h100x8", *hot, window_seconds=15.0) as node:
        node.run(25 * MINUTE)
        assert node.findings() == {
            (index, rule)
            for index in range(4)
            for rule in ("thermal_slowdown", "thermal_slowdown_lasting", "thermal_margin")
        }
        view = node.watch.view()
        uuids = {health.uuid: index for index, health in enumerate(view.devices.values())}
        assert {one.rule: len(one.uuids) for one in view.shared} == {
            "thermal_slowdown": 4, "thermal_slowdown_lasting": 4, "thermal_margin": 4,
        }  # fmt: skip
        world.publish(1, {f"gpu-{index}": uuid for uuid, index in uuids.items()})
        tell(world, "n1", node.annotation())
    world.round()
    assert world.blocked() == set()
    assert {reason for _, reason in world.held()} <= {"systemic_node"}


def test_one_hot_gpu_of_eight_is_fenced_alone(cc: str) -> None:
    world = World()
    hot = ThermalFault(at=240, gpu=5, duration=7200, hardware=True, celsius=HOT)
    with stretched_node("h100x8", hot, window_seconds=15.0) as node:
        node.run(25 * MINUTE)
        world.publish(1, {f"gpu-{index}": uuid for index, uuid in enumerate(node.watch.view().devices)})
        tell(world, "n1", node.annotation())
    world.round()
    assert "gpu-5@n1 unhealthy=thermal_slowdown_lasting:NoSchedule" in world.taints()
    assert len(world.blocked()) == 1


def test_a_hang_is_shown_only_and_a_spinning_kernel_not_even_that(cc: str) -> None:
    spins = (
        AnswerFault(at=0, gpu=1, function="nvmlDeviceGetUtilizationRates", place=0, value=100),
        AnswerFault(at=0, gpu=1, function="nvmlDeviceGetUtilizationRates", place=1, value=0),
        AnswerFault(at=0, gpu=1, function="nvmlDeviceGetPowerUsage", value=350_000),
        AnswerFault(at=0, gpu=1, field=186, value=350_000),
    )
    work = tuple(
        PodPlan(namespace="ml", name=f"train-{one}", workload="training", plugin={"nvidia.com/gpu": (f"gpu:{one}",)})
        for one in (1, 2)
    )
    with stretched_node("h100x8", StalledFault(at=60, gpu=2), *spins, pods=work, window_seconds=15.0) as node:
        node.run(25 * MINUTE)
        assert node.findings() == {(2, "hang")}
        assert {health.severity.value for health in node.watch.view().devices.values()} == {"ok"}
        assert msgspec.json.decode(node.annotation(), type=LeaseFindings) == NOTHING


# Lost


def test_a_lost_gpu_is_one_fence_and_not_eight() -> None:
    node, world = _in_a_cluster()
    node.lose(5)
    node.log_xid(79, 5, "pid='<unknown>', name=<unknown>, GPU has fallen off the bus.")
    node.run(10)
    tell(world, "n1", node.annotation())
    assert world.round() == ["create gpu-5@n1 lost=xid_lost:NoSchedule"]
    assert world.blocked() == {gpu(1, 5)}


def test_a_gpu_that_is_not_counted_any_more_is_missed_alone_and_welcome_back() -> None:
    node, world = _in_a_cluster()
    missing = node.gpus[5]
    missing.silent = True
    node.take_inventory(devices=[one.device for one in node.gpus if one is not missing])
    node.run(3 * MINUTE)
    tell(world, "n1", node.annotation())
    assert world.round() == ["create gpu-5@n1 lost=gpu_missing:NoSchedule"]
    missing.silent = False
    missing.reset()
    node.take_inventory()
    node.run(12 * MINUTE)
    tell(world, "n1", node.annotation())
    assert world.round(720) == ["delete gpu-5@n1 lost=gpu_missing:NoSchedule"]


# Resets and reboots


def _sram(node: Node) -> None:
    node.gpus[0].raw["sram_ecc_volatile_parity"] += 1


def _flag(key: str) -> Callable[[Node], None]:
    def cause(node: Node) -> None:
        node.gpus[0].last[key] = 1.0

    return cause


def _rows(node: Node) -> None:
    node.gpus[0].raw["remapped_rows_uncorrected"] = 600.0


def _bus(node: Node) -> None:
    node.gpus[0].raw["pcie_errors_fatal"] += 1


def _lose(node: Node) -> None:
    node.log_xid(79, 0)


def _failed(node: Node) -> None:
    node.log(f"nvsentinel-gpu-reset: GPU reset executed: {node.gpus[0].uuid}, success: false")


UUID = "GPU-6c1b5c24-0d6c-5b6f-8a0c-2f1f8e0a7b11"  # as the kernel log wants it


@pytest.mark.parametrize(
    ("cause", "found", "by_reset", "by_reboot"),
    [
        (_sram, {"ecc_uncorrected_sram": "unhealthy"}, True, True),
        (_bus, {"pcie_errors_fatal": "unhealthy"}, True, True),
        (_lose, {"xid_lost": "lost"}, False, True),
        (_failed, {"reset_failed": "unhealthy"}, True, True),
        (_flag("sram_ecc_threshold_exceeded"), {"sram_ecc_threshold": "unhealthy"}, False, False),
        (_flag("row_remap_failure"), {"row_remap_failure": "unhealthy"}, False, False),
        (_rows, {"remapped_rows_many": "degraded"}, False, False),
    ],
)
def test_what_a_reset_ends_what_only_a_reboot_and_what_neither(
    cause: Callable[[Node], None], found: dict[str, str], *, by_reset: bool, by_reboot: bool
) -> None:
    node = Node([gpu_device(0, entity=Entity(uuid=UUID, gpu=0))])
    cause(node)
    node.run(30)
    assert node.rules() == found
    node.gpus[0].reset()
    node.run(6 * MINUTE)
    assert node.rules() == ({} if by_reset else found)
    node.gpus[0].reset()
    node.restart(boot_id="boot-2", at=700)
    node.run(6 * MINUTE)
    assert node.rules() == ({} if by_reboot else found)
    for rule in node.rules():
        assert node.watch.acknowledge(UUID, rule) is None
    node.run(HOUR)
    assert node.rules() == {}


def test_a_reset_that_failed_is_a_finding_of_its_own() -> None:
    node = Node([gpu_device(0, entity=Entity(uuid=UUID, gpu=0))])
    _failed(node)
    node.run(5)
    assert node.rules() == {"reset_failed": "unhealthy"}


def test_what_comes_back_after_three_resets_in_a_day_is_not_repaired_by_a_fourth() -> None:
    node = Node([gpu_device(0, entity=Entity(uuid=UUID, gpu=0))])
    for _ in range(3):
        node.log_xid(95)
        node.run(5)
        assert node.rules() == {"xid_fatal": "unhealthy"}
        node.gpus[0].reset()
        node.run(5 * MINUTE)
        assert node.rules() == {}
    node.log_xid(95)
    node.run(5)
    node.gpus[0].reset()
    node.run(HOUR, window=20)
    (finding,) = node.view.devices[UUID].findings
    assert (finding.rule, finding.state) == ("xid_fatal", RuleState.LATCHED)
    assert finding.clears == "It came back after several resets within a day: a reboot, or an acknowledgement."
    node.restart(boot_id="boot-2", at=700)
    node.run(5 * MINUTE)
    assert node.rules() == {}


# Restarts, clocks and the kernel log


def test_a_journal_of_another_boot_hides_no_line_of_this_one() -> None:
    node = Node()
    node.log_xid(31, count=90_000)
    node.run(5)
    assert node.watch.journal().kernel_sequence == 90_000
    node.restart()
    assert node.watch.journal().kernel_sequence == 90_000
    node.restart(boot_id="boot-2", at=700)
    assert node.watch.journal().kernel_sequence is None


@pytest.mark.parametrize("jump", [-HOUR, HOUR, 8 * HOUR])
def test_a_clock_that_jumps_and_a_machine_that_slept_end_no_finding_and_make_none(jump: int) -> None:
    # CLOCK_MONOTONIC stands still while a machine sleeps; the time of day jumps when it wakes.
    node = Node()
    node.gpus[0].last["nvlink_up/3"] = 0.0
    node.run(30)
    node.wall_shift = jump
    node.run(20)
    assert node.rules() == {}
    node.run(20)
    assert node.rules() == {"nvlink_down": "unhealthy"}
    node.gpus[0].last["nvlink_up/3"] = 1.0
    node.wall_shift = -jump
    node.run(14 * MINUTE)
    assert node.rules() == {"nvlink_down": "unhealthy"}
    node.run(2 * MINUTE)
    assert node.rules() == {}


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_an_event_told_by_both_sources_over_a_jump_of_the_clock_is_one_finding(jump: int) -> None:
    node = Node()
    node.xid(95)
    node.wall_shift = jump
    node.log_xid(95)
    node.run(5)
    assert node.rules() == {"xid_fatal": "unhealthy"}
    assert sum(node.view.began.values()) == 1


def test_a_ring_that_overtook_us_loses_lines_and_no_later_fault() -> None:
    line = b"NVRM: Xid (PCI:0000:10:00): 95, pid=4242, name=python3, Uncontained"
    answers: list[bytes | OSError] = [
        b"6,10,1000000,-;something else\n", OSError(errno.EPIPE, "Broken pipe"), b"4,5000,2000000,-;%b\n" % line,
    ]  # fmt: skip

    def read(_: int) -> bytes:
        answer = answers.pop(0) if answers else BlockingIOError()
        if isinstance(answer, OSError):
            raise answer
        return answer

    node = Node(settle=False)
    node.run(5)
    log = KernelLog(read)
    node.watch.kernel(
        log.poll(monotonic_ns=node.now_ns, wall_ns=node.wall_ns), log.last_sequence, node.now_ns, node.wall_ns
    )
    node.run(5)
    assert (log.counts.overruns, log.counts.lost_records) == (1, 4989)
    assert node.rules() == {"xid_fatal": "unhealthy"}


# Driver upgrades


@pytest.mark.parametrize(
    ("grace", "found"),
    [({}, set()), ({"boot_grace_seconds": 0, "startup_grace_seconds": 0}, {"fabric_not_ready"})],
    ids=["with its grace", "without"],
)
def test_a_driver_upgrade_is_no_finding(grace: dict[str, object], found: set[str]) -> None:
    node = Node(8, thresholds=grace)
    node.take_inventory(error="the NVIDIA driver is not loaded", devices=())
    for one in node.gpus:
        one.silent = True
    node.run(10 * MINUTE)
    assert node.all_rules() == {}
    for one in node.gpus:
        one.silent = False
        one.reset()
        one.text["fabric_state"] = "in_progress"
    node.session += 1
    node.take_inventory()
    node.run(8 * MINUTE)
    assert {rule for rules in node.all_rules().values() for rule in rules} == found
    for one in node.gpus:
        one.text["fabric_state"] = "completed"
    node.run(HOUR, window=10)
    assert node.all_rules() == {}


# Calls that hang, in the real agent

HANGING = """
faults:
  - {kind: driver_event, at: 4, gpu: 1, event: ecc_single_bit_storm}
  - {kind: slow, at: 4.5, gpu: 1, function: nvmlDeviceGetUtilizationRates, milliseconds: 45000}
  - {kind: hang, at: 9, gpu: 0}
"""
QUICK = "driver_call_hangs_seconds: 1\n"


@pytest.fixture(scope="module")
def hanging(tmp_path_factory: pytest.TempPathFactory, cc: str) -> Iterator[Recorder]:
    directory = tmp_path_factory.mktemp("hanging")
    (directory / "faults.yaml").write_text(HANGING)
    (directory / "quick.yaml").write_text(QUICK)
    arguments = (
        "--simulate", "l40sx4", "--scenario", str(directory / "faults.yaml"), "--hang-seconds", "1",
        "--health-thresholds", str(directory / "quick.yaml"), "--api-server", "off",
    )  # fmt: skip
    with Agent(directory / "agent", *arguments) as agent, Recorder(agent.wait_served()) as node:
        yield node


def _found(scrape: Scrape) -> set[tuple[str, str, str]]:
    return {
        (one.labels["gpu"], one.labels["rule"], one.labels["severity"])
        for one in scrape.find("gpu_health_finding_info")
    }


def _up(scrape: Scrape) -> dict[str, float]:
    return {one.labels["gpu"]: one.value for one in scrape.find("gpu_up")}


def test_a_storm_of_corrected_errors_is_told_though_calls_take_45_seconds(hanging: Recorder) -> None:
    wanted = {("1", "driver_event_degraded", "degraded"), ("1", "driver_call_hangs", "degraded")}
    hanging.first(lambda scrape: _found(scrape) >= wanted, 45.0)
    scrape = hanging.agent.scrape()
    assert {_up(scrape)["2"], _up(scrape)["3"]} == {1.0}
    assert hanging.failures == []


def test_a_gpu_whose_calls_hang_costs_only_itself(hanging: Recorder) -> None:
    hanging.first(lambda scrape: ("0", "driver_call_hangs", "degraded") in _found(scrape), 45.0)
    up = {"0": 0.0, "1": 0.0, "2": 1.0, "3": 1.0}
    hanging.first(lambda scrape: _up(scrape) == up, 45.0)
    assert hanging.longest_seconds < 1.0


def test_a_day_of_a_healthy_node_writes_nothing_to_its_lease() -> None:
    node = Node(2)
    node.run(DAY, window=60)
    assert node.all_rules() == {}
    assert len(node.annotations) == 1
