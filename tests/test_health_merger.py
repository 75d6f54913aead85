"""A fault is told once, with what both sources know of it, in whatever order they tell it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claimscope.health.kernel_lines import parse_line
from claimscope.health.kmsg import KernelReport
from claimscope.health.merger import MAX_PENDING, MAX_UNPLACED, EventMerger, Fault
from claimscope.health.nvlink5 import Action
from claimscope.health.xids import Verdict
from claimscope.model import Device, Entity, Event, Inventory, MigInstance

SECOND = 1_000_000_000
WALL = 1_700_000_000 * SECOND
GPU, OTHER = "GPU-00000000-0000-0000-0000-000000000001", "GPU-00000000-0000-0000-0000-000000000002"
MIG_1, MIG_2 = "MIG-1", "MIG-2"
BDF, OTHER_BDF = "0000:65:00.0", "0000:b3:00.0"
FAR_NS = 10**6 * SECOND


def device(uuid: str, bdf: str) -> Device:
    return Device(entity=Entity(uuid=uuid, gpu=0), minor=0, pci_bus_id=bdf, model=None)


def mig_device(uuid: str, gpu_instance: int) -> Device:
    return Device(
        entity=Entity(uuid=uuid, parent=OTHER, gpu=1),
        minor=1,
        pci_bus_id=OTHER_BDF,
        model=None,
        mig=MigInstance(gpu_instance_id=gpu_instance, compute_instance_id=0, profile="1g.10gb"),
    )


INVENTORY = Inventory(
    session=1,
    epoch=1,
    driver_version="580.65.06",
    nvml_version=None,
    cuda_version=None,
    devices=(device(GPU, BDF), device(OTHER, OTHER_BDF), mig_device(MIG_1, 5), mig_device(MIG_2, 6)),
)


def nvml(code: int, *, at: float = 0.0, entity: str = GPU, kind: str = "xid") -> Event:
    return Event(entity=entity, kind=kind, code=code, wall_ns=WALL + round(at * SECOND))


def logged(text: str, *, at: float = 0.0, count: int = 1, from_kernel: bool = True) -> KernelReport:
    line = parse_line(text)
    assert line is not None
    return KernelReport(
        line=line, count=count, sequence=1, wall_ns=WALL + round(at * SECOND), from_kernel=from_kernel
    )


def xid(code: int, rest: str = "x", *, at: float = 0.0, bdf: str = "0000:65:00", count: int = 1) -> KernelReport:
    return logged(f"NVRM: Xid (PCI:{bdf}): {code}, {rest}", at=at, count=count)


Told = Event | KernelReport


def merger(*, inventory: Inventory | None = INVENTORY) -> EventMerger:
    merged = EventMerger(boot_id="boot-1")
    if inventory is not None:
        merged.inventory(inventory)
    return merged


def tell(merged: EventMerger, *told: Told, now_ns: int = 0) -> None:
    for each in told:
        if isinstance(each, Event):
            merged.nvml(each, now_ns=now_ns)
        else:
            merged.kernel(each, now_ns=now_ns)


def faults(*told: Told, inventory: Inventory | None = INVENTORY) -> tuple[Fault, ...]:
    merged = merger(inventory=inventory)
    tell(merged, *told)
    return merged.take(now_ns=FAR_NS)


def short(found: Iterable[Fault]) -> list[tuple[str, int, float, int]]:
    return [(each.entity, each.code, (each.wall_ns - WALL) / SECOND, each.count) for each in found]


def test_what_both_sources_tell_is_one_fault_with_what_both_know() -> None:
    (fault,) = faults(nvml(79, at=0.1), xid(79, "pid=7, name=train, GPU has fallen off the bus."))

    assert fault == Fault(
        entity=GPU,
        kind="xid",
        code=79,
        wall_ns=WALL,
        boot_id="boot-1",
        bdf=BDF,
        sources=("kernel", "nvml"),
        count=1,
        verdict=Verdict.LOST,
        evidence={
            "line": "NVRM: Xid (PCI:0000:65:00): 79, pid=7, name=train, GPU has fallen off the bus.",
            "pid": "7",
            "process": "train",
        },
    )


def test_a_fault_is_handed_out_when_the_other_source_has_had_its_time() -> None:
    merged = merger()
    tell(merged, nvml(79), now_ns=10 * SECOND)

    assert merged.take(now_ns=10 * SECOND) == ()
    assert merged.take(now_ns=12 * SECOND + 499_999_999) == ()
    assert short(merged.take(now_ns=12 * SECOND + 500_000_000)) == [(GPU, 79, 0.0, 1)]
    assert merged.take(now_ns=FAR_NS) == ()


def test_two_seconds_are_one_fault_and_more_are_two() -> None:
    assert short(faults(nvml(48), xid(48, at=2.0))) == [(GPU, 48, 0.0, 1)]
    assert short(faults(nvml(48), xid(48, at=2.000001))) == [(GPU, 48, 0.0, 1), (GPU, 48, 2.000001, 1)]


def test_another_code_or_another_gpu_is_another_fault() -> None:
    found = faults(nvml(48), xid(63), nvml(48, entity=OTHER))

    assert short(found) == [(GPU, 48, 0.0, 1), (GPU, 63, 0.0, 1), (OTHER, 48, 0.0, 1)]


def test_the_count_is_that_of_the_source_that_told_most() -> None:
    (fault,) = faults(nvml(13), nvml(13, at=0.5), xid(13, count=40), xid(13, at=1, count=2))

    assert fault.count == 42


def test_what_comes_after_its_fault_was_handed_out_is_counted_and_not_told_again() -> None:
    merged = merger()
    tell(merged, nvml(79))
    assert len(merged.take(now_ns=3 * SECOND)) == 1

    tell(merged, xid(79, at=1.0), now_ns=4 * SECOND)

    assert merged.take(now_ns=FAR_NS) == ()
    assert merged.counts.late == 1


def test_off_the_bus_in_words_is_xid_79() -> None:
    words = logged("NVRM: GPU at PCI:0000:65:00 has fallen off the bus.")

    assert [(f.kind, f.code, f.verdict, f.count) for f in faults(words)] == [("xid", 79, Verdict.LOST, 1)]
    assert [(f.kind, f.code, f.count) for f in faults(words, xid(79), nvml(79))] == [("xid", 79, 1)]


def test_the_driver_names_the_gpu_before_its_first_xid_while_nvml_does_not_answer() -> None:
    identity = logged(f"NVRM: GPU at PCI:0000:65:00: {GPU}")

    assert short(faults(xid(79), inventory=None)) == []
    assert short(faults(identity, xid(79), inventory=None)) == [(GPU, 79, 0.0, 1)]
    assert short(faults(xid(79), identity, inventory=None)) == [(GPU, 79, 0.0, 1)]


def test_a_gpu_that_has_left_the_inventory_is_still_known_at_its_place() -> None:
    merged = merger()
    merged.inventory(
        Inventory(session=1, epoch=2, driver_version=None, nvml_version=None, cuda_version=None, devices=())
    )
    tell(merged, xid(79))

    assert short(merged.take(now_ns=FAR_NS)) == [(GPU, 79, 0.0, 1)]


def test_an_xid_of_a_mig_device_is_its_own() -> None:
    by_log = faults(logged("NVRM: Xid (PCI:0000:b3:00 GPU-I:05): 94, pid=7, Contained"))
    both = faults(
        nvml(94, entity=MIG_2), logged("NVRM: Xid (PCI:0000:b3:00): 94, pid=7, Contained"), nvml(94, entity=MIG_1)
    )

    assert [(f.entity, f.gpu_instance) for f in by_log] == [(MIG_1, 5)]
    assert [(f.entity, f.sources, f.evidence["pid"]) for f in both] == [
        (MIG_1, ("kernel", "nvml"), "7"), (MIG_2, ("kernel", "nvml"), "7"),
    ]


def test_nvlink_5_lines_are_decoded_and_the_worst_of_them_counts() -> None:
    found = faults(
        nvml(149),
        xid(149, "NETIR_LINK_EVT Nonfatal XC0 i1 Link 03 (0x02600011 0x00000000)"),
        xid(149, "NETIR_LINK_EVT Fatal XC0 i0 Link 09 (0x00000011 0x00000000)"),
    )

    assert [(f.verdict, f.decode and f.decode.action) for f in found] == [(Verdict.UNHEALTHY, Action.RESET)]
    assert found[0].evidence == {  # of that line alone: the other one was injected, this one was not
        "line": "NVRM: Xid (PCI:0000:65:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link 09 (0x00000011 0x00000000)",
        "part": "NETIR_LINK_EVT",
        "fatal": "yes",
        "link": "9",
        "decoded": "NETIR_LINK_DOWN: reset the GPU",
    }


def test_without_its_line_an_nvlink_5_code_is_degraded() -> None:
    (fault,) = faults(nvml(149))

    assert (fault.verdict, fault.evidence) == (
        Verdict.DEGRADED, {"decoded": "no kernel log line with the registers of this event"},
    )


def test_the_last_recovery_action_counts() -> None:
    (fault,) = faults(
        xid(154, "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x2 (Node Reboot Required)", at=1),
        xid(154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"),
        nvml(154),
    )

    assert (fault.recovery_action, fault.verdict) == (2, Verdict.RECOVERY_ACTION)
    assert fault.evidence["recovery_action"] == "Node Reboot Required"


def test_pcie_errors_only_of_gpus() -> None:
    merged = merger()
    text = "nvidia {}: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer"
    tell(merged, logged(text.format(BDF)), logged(text.format("0000:01:00.0").replace("nvidia", "nvme")))

    found = merged.take(now_ns=FAR_NS)

    assert [(f.entity, f.kind, f.verdict) for f in found] == [(GPU, "pcie_fatal", None)]
    assert merged.counts.foreign == 1


def test_a_reset_that_a_tool_reports() -> None:
    (fault,) = faults(logged(f"GPU reset executed: {GPU}, success: false", from_kernel=False))

    assert (fault.entity, fault.kind, fault.bdf, fault.evidence["success"], fault.evidence["written_by"]) == (
        GPU, "gpu_reset", BDF, "false", "a process, not the kernel",
    )


def test_other_nvml_events_pass() -> None:
    found = faults(nvml(0, kind="mig_config_change"), nvml(1, kind="gpu_recovery_action"))

    assert [(f.kind, f.code, f.verdict, f.sources) for f in found] == [
        ("gpu_recovery_action", 1, None, ("nvml",)), ("mig_config_change", 0, None, ("nvml",)),
    ]


def test_a_jump_of_the_wall_clock_holds_nothing_up() -> None:
    merged = merger()
    tell(merged, nvml(79, at=3600.0), now_ns=0)
    tell(merged, nvml(79, at=0.0), now_ns=SECOND)

    assert short(merged.take(now_ns=3 * SECOND)) == [(GPU, 79, 3600.0, 1)]
    assert short(merged.take(now_ns=4 * SECOND)) == [(GPU, 79, 0.0, 1)]


def test_a_storm_is_kept_in_a_bounded_place() -> None:
    merged = merger()
    for index in range(50_000):
        merged.nvml(nvml(95, at=index / 50_000), now_ns=0)

    assert short(merged.take(now_ns=FAR_NS)) == [(GPU, 95, 0.0, 50_000)]
    assert merged.counts.dropped == 0


def test_more_different_faults_than_are_kept_are_counted() -> None:
    merged = merger()
    for index in range(MAX_PENDING + 100):
        merged.nvml(nvml(index), now_ns=0)

    assert len(merged.take(now_ns=FAR_NS)) == MAX_PENDING
    assert merged.counts.dropped == 100


# ---- In any order

KINDS: tuple[Told, ...] = (
    nvml(13),
    nvml(94, entity=MIG_1),
    nvml(94, entity=MIG_2),
    nvml(94, entity=OTHER),
    xid(13),
    xid(13, "pid=9, name=a, Graphics SM Warp Exception on (GPC 1, TPC 2, SM 0): x"),
    xid(94, "pid=1, x", bdf="0000:b3:00"),
    logged("NVRM: Xid (PCI:0000:b3:00 GPU-I:06): 94, pid=7194, Contained: CE User Channel (0x9)."),
    xid(149, "NETIR_LINK_EVT Fatal XC0 i0 Link 09 (0x00000011 0x00000000)"),
    xid(149, "NETIR_LINK_EVT Fatal XC0 i0 Link 10 (0x02100011 0x00000000)"),
    xid(154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"),
    logged("NVRM: GPU 0000:65:00.0: GPU has fallen off the bus."),
    xid(79),
)


@dataclass(frozen=True)
class Timed:
    what: int  # of KINDS
    at_ms: int
    late_ms: int

    @property
    def told(self) -> Told:
        kind = KINDS[self.what]
        wall_ns = WALL + self.at_ms * 1_000_000
        if isinstance(kind, Event):
            return Event(entity=kind.entity, kind=kind.kind, code=kind.code, wall_ns=wall_ns)
        return KernelReport(line=kind.line, count=kind.count, sequence=kind.sequence, wall_ns=wall_ns)


TIMED = st.lists(
    st.builds(Timed, what=st.integers(0, len(KINDS) - 1), at_ms=st.integers(0, 8_000), late_ms=st.integers(0, 500)),
    max_size=25,
)


@given(TIMED, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(timed: list[Timed], chance: random.Random) -> None:
    expected = faults(*(each.told for each in timed))

    chance.shuffle(timed)

    assert faults(*(each.told for each in timed)) == expected


@settings(max_examples=200)
@given(TIMED)
def test_nor_does_it_matter_when_they_come_and_when_we_look(timed: list[Timed]) -> None:
    expected = faults(*(each.told for each in timed))
    merged = merger()
    found: list[Fault] = []

    for each in sorted(timed, key=lambda each: each.at_ms + each.late_ms):
        now_ns = (each.at_ms + each.late_ms) * 1_000_000
        tell(merged, each.told, now_ns=now_ns)
        found.extend(merged.take(now_ns=now_ns))
    found.extend(merged.take(now_ns=FAR_NS))

    key = [(f.wall_ns, f.entity, f.code, f.count, f.evidence, f.verdict) for f in found]
    assert sorted(key, key=str) == sorted(
        ((f.wall_ns, f.entity, f.code, f.count, f.evidence, f.verdict) for f in expected), key=str
    )
    assert merged.counts.late == 0


@given(TIMED)
def test_every_event_is_in_a_fault(timed: list[Timed]) -> None:
    found = faults(*(each.told for each in timed))

    for each in timed:
        told = each.told
        code = told.code if isinstance(told, Event) else told.line.code
        assert any(f.code == code and 0 <= told.wall_ns - f.wall_ns <= 2 * SECOND for f in found)


@pytest.mark.parametrize("count", [1, 3])
def test_faults_come_oldest_first(count: int) -> None:
    found = faults(*(nvml(79, at=10.0 * index, entity=entity) for index in range(count) for entity in (OTHER, GPU)))

    assert [f.wall_ns for f in found] == sorted(f.wall_ns for f in found)
    assert len(found) == 2 * count


# ---- Before it is known where the GPUs are


def test_what_is_told_of_an_unknown_address_waits_until_a_gpu_is_known_there() -> None:
    merged = merger(inventory=None)
    tell(merged, xid(79, count=2), xid(79, at=0.5), xid(95, bdf="0000:ff:00"))
    assert merged.take(now_ns=FAR_NS) == ()
    assert merged.waiting_since_ns is None
    assert [(each.line.bdf, each.line.code, each.count) for each in merged.unplaced] == [
        (BDF, 79, 3), ("0000:ff:00.0", 95, 1),
    ]
    merged.inventory(INVENTORY)
    assert short(merged.take(now_ns=FAR_NS)) == [(GPU, 79, 0.0, 3)]
    assert [each.line.code for each in merged.unplaced] == [95]


def test_an_xid_of_a_mig_device_waits_until_its_devices_are_known() -> None:
    merged = merger(inventory=None)
    merged.place(OTHER, OTHER_BDF)
    tell(merged, logged("NVRM: Xid (PCI:0000:b3:00 GPU-I:05): 94, Contained"), xid(48, bdf="0000:b3:00"))
    assert short(merged.take(now_ns=FAR_NS)) == [(OTHER, 48, 0.0, 1)]
    merged.inventory(INVENTORY)
    assert short(merged.take(now_ns=FAR_NS)) == [(MIG_1, 94, 0.0, 1)]


def test_unknown_addresses_take_a_bounded_place() -> None:
    merged = merger()
    for code in range(MAX_UNPLACED + 10):
        tell(merged, xid(code, bdf="0000:ff:00"))
    assert (len(merged.unplaced), merged.counts.dropped) == (MAX_UNPLACED, 10)


# ---- What a late event adds


def test_the_same_xid_of_another_mig_device_is_another_fault_however_soon() -> None:
    merged = merger()
    tell(merged, nvml(95, entity=MIG_1))
    assert short(merged.take(now_ns=3 * SECOND)) == [(MIG_1, 95, 0.0, 1)]
    tell(merged, nvml(95, entity=MIG_2, at=1.0), now_ns=3 * SECOND)
    assert short(merged.take(now_ns=6 * SECOND)) == [(MIG_2, 95, 1.0, 1)]
    tell(merged, nvml(95, entity=MIG_1, at=0.5), nvml(95, entity=MIG_2, at=1.5), now_ns=6 * SECOND)
    assert merged.take(now_ns=FAR_NS) == ()
    assert merged.counts.late == 2


def test_a_late_line_that_says_another_thing_is_another_fault() -> None:
    merged = merger()
    line = "NETIR_LINK_EVT {} XC0 i{} Link {} ({} 0x00000000)"
    tell(merged, xid(149, line.format("Nonfatal", 1, "03", "0x02600011")))
    assert len(merged.take(now_ns=3 * SECOND)) == 1
    tell(merged, xid(149, line.format("Fatal", 0, "09", "0x00000011"), at=1.5), nvml(149, at=1.5), now_ns=3 * SECOND)
    assert [fault.verdict for fault in merged.take(now_ns=6 * SECOND)] == [Verdict.UNHEALTHY]

    changed = "GPU recovery action changed from 0x0 (None) to {}"
    tell(merged, xid(154, changed.format("0x3 (Drain P2P)"), at=10), now_ns=10 * SECOND)
    assert [fault.recovery_action for fault in merged.take(now_ns=13 * SECOND)] == [3]
    tell(merged, xid(154, changed.format("0x1 (GPU Reset Required)"), at=11.5), now_ns=13 * SECOND)
    assert [fault.recovery_action for fault in merged.take(now_ns=FAR_NS)] == [1]
