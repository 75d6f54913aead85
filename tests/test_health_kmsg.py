"""What lines of the kernel log say of a GPU, and how the log is read: bounded, without waiting, with what was lost.

Lines are from public places: NVIDIA's guides (docs.nvidia.com/deploy/xid-errors, .../a100-gpu-mem-error-mgmt), issues
and test data of leptonai/gpud (#46, #1160), NVIDIA/NVSentinel, NVIDIA/open-gpu-kernel-modules (#1150, #1151),
DataDog/datadog-agent, and the kernel's drivers/pci/pcie/aer.c.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claimscope.health.kernel_lines import GpuLine, LineKind, parse_line
from claimscope.health.kmsg import (
    KernelLog,
    KernelLogError,
    Record,
    open_kernel_log,
    parse_record,
    start_after,
    unescaped,
)
from claimscope.health.nvlink5 import NvlinkReport

UUID = "GPU-90b9424e-7236-fd4d-d903-44e565e1bd42"
OFF_THE_BUS = "NVRM: Xid (PCI:0000:65:00): 79, pid=2412, name=python3, GPU has fallen off the bus."
BDF = "0000:65:00.0"


# ---- Lines


@pytest.mark.parametrize(
    ("text", "bdf", "code", "evidence"),
    [
        (OFF_THE_BUS, BDF, 79, {"pid": "2412", "process": "python3"}),
        ("NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.", "0000:01:00.0", 79, {}),
        (
            "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            "0000:3b:00.0", 79, {},
        ),
        ("NVRM: Xid (0000:03:00): 14, Channel 00000001", "0000:03:00.0", 14, {}),
        ("NVRM: Xid (PCI:0000:B3:00.0): 79, pid=12345, GPU has fallen off the bus.", "0000:b3:00.0", 79,
         {"pid": "12345"}),
        ("NVRM: Xid (PCI:00010000:65:00): 48, x", "10000:65:00.0", 48, {}),
        (
            "NVRM: Xid (PCI:0000:cb:00): 13, pid='<unknown>', name=<unknown>, Graphics SM Warp Exception on "
            "(GPC 7, TPC 3, SM 0): Illegal Instruction Parameter",
            "0000:cb:00.0", 13, {"unit": "GPC 7, TPC 3", "sm": "0"},
        ),
        (
            "NVRM: Xid (PCI:0000:cb:00): 109, pid=1797828, name=pt_main_thread, Ch 00000008, errorString CTX SWITCH "
            "TIMEOUT, Info 0x58005",
            "0000:cb:00.0", 109, {"pid": "1797828", "process": "pt_main_thread"},
        ),
        (
            "NVRM: Xid (PCI:0000:dc:00): 45, pid=1818990, name=python3, Ch 00000001 caused by previous Xid 149",
            "0000:dc:00.0", 45, {"pid": "1818990", "process": "python3", "caused_by_xid": "149"},
        ),
        (
            "NVRM: Xid (PCI:0000:5d:00): 74, pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link "
            "14(0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0)",
            "0000:5d:00.0", 74, {"link": "14", "registers": "0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0"},
        ),
        ("NVRM: Xid (PCI:0000:00:1e): 999, pid=5, name=<unknown>, future driver detail", "0000:00:1e.0", 999,
         {"pid": "5"}),
        ("NVRM: Xid (PCI:0000:08:00): 13, pid='', name=, Graphi", "0000:08:00.0", 13, {}),
        ("NVRM: Xid (PCI:0000:65:00): 62,", BDF, 62, {}),
        (f"  {OFF_THE_BUS}\n", BDF, 79, {"pid": "2412", "process": "python3"}),
    ],
)
def test_an_xid_line(text: str, bdf: str, code: int, evidence: dict[str, str]) -> None:
    line = parse_line(text)

    assert line is not None
    assert (line.kind, line.bdf, line.code) == (LineKind.XID, bdf, code)
    assert line.evidence == {"line": text.strip(), **evidence}


def test_an_xid_of_a_mig_device() -> None:
    contained = parse_line("NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid=7194, Contained: CE User Channel (0x9).")
    graphics = parse_line("NVRM: Xid (PCI:0000:3b:00 GPU-I:01 GPU-CI:02): 13, pid=9, name=a, Graphics Exception")

    assert contained is not None
    assert (contained.bdf, contained.code, contained.gpu_instance, contained.compute_instance) == (
        "0000:01:00.0", 94, 5, None,
    )
    assert graphics is not None
    assert (graphics.bdf, graphics.code, graphics.gpu_instance, graphics.compute_instance) == ("0000:3b:00.0", 13, 1, 2)


@pytest.mark.parametrize(
    ("rest", "report"),
    [
        (
            "149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 09 (0x025525c6 0x00000000 0x00000000 0x00000000 0x00000000 "
            "0x00000000)",
            NvlinkReport(
                unit="NETIR_LINK_EVT", fatal=True, injected=False, link=9, registers=(0x025525C6, 0, 0, 0, 0, 0)
            ),
        ),
        (
            "149, NETIR Fatal XC0 i0 Link -1 (0x000fe406 0x00000000)",
            NvlinkReport(unit="NETIR", fatal=True, injected=False, link=None, registers=(0x000FE406, 0)),
        ),
        (
            "145, pid=4, name=<unknown>, RLW_SRC_TRACK Nonfatal XC1 i1 Link 00 (0x00000001 0x00000002)",
            NvlinkReport(unit="RLW_SRC_TRACK", fatal=False, injected=True, link=0, registers=(1, 2)),
        ),
        (
            "149, NETIR_LINK_EVT Fatal XC 1 i 2 Link 01 [0x0000000a]",
            NvlinkReport(unit="NETIR_LINK_EVT", fatal=True, injected=True, link=1, registers=(10,)),
        ),
        (
            "148, NVLPW_CTRL Fatal XC0 i0 Link 05",
            NvlinkReport(unit="NVLPW_CTRL", fatal=True, injected=False, link=5, registers=()),
        ),
        (  # cut off within the second register: it is none
            "149, NETIR_LINK_EVT Fatal XC0 i0 Link 00 (0x025001c6 0x0000",
            NvlinkReport(unit="NETIR_LINK_EVT", fatal=True, injected=False, link=0, registers=(0x025001C6,)),
        ),
        ("145, driver-specific detail", None),
    ],
)
def test_an_nvlink_5_line(rest: str, report: NvlinkReport | None) -> None:
    line = parse_line(f"NVRM: Xid (PCI:0018:01:00): {rest}")

    assert line is not None
    assert (line.bdf, line.nvlink) == ("0018:01:00.0", report)
    assert ("injected" in line.evidence) == (report is not None and report.injected)


@pytest.mark.parametrize(
    ("text", "action", "name"),
    [
        ("GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)", 1, "GPU Reset Required"),
        ("GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)", 2, "Node Reboot Required"),
        ("GPU recovery action changed from 0x0 (None) to 0x2 (OS Reboot)", 2, "OS Reboot"),
        ("GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)", 4, "Drain and Reset"),
        ("GPU recovery action changed from 0x1 (PF FLR) to 0x0 (None)", 0, "None"),
        ("GPU recovery action changed from 0x0 (None) to 0x1 (GPU Res", None, None),
        ("GPU recovery action changed", None, None),
    ],
)
def test_the_drivers_own_verdict(text: str, action: int | None, name: str | None) -> None:
    line = parse_line(f"NVRM: Xid (PCI:0009:01:00): 154, {text}")

    assert line is not None
    assert (line.code, line.recovery_action, line.evidence.get("recovery_action")) == (154, action, name)


@pytest.mark.parametrize(
    ("text", "bdf"),
    [
        ("NVRM: GPU at PCI:0000:65:00 has fallen off the bus.", BDF),
        ("NVRM: GPU 0000:01:00.0: GPU has fallen off the bus.", "0000:01:00.0"),
        (
            "NVRM: The NVIDIA GPU 0000:b3:00.0\nNVRM: (PCI ID: 10de:26b5) installed in this system has\n"
            "NVRM: fallen off the bus and is not responding to commands.",
            "0000:b3:00.0",
        ),
    ],
)
def test_off_the_bus_in_words(text: str, bdf: str) -> None:
    line = parse_line(text)

    assert line is not None
    assert (line.kind, line.bdf, line.code) == (LineKind.FALLEN_OFF_BUS, bdf, 79)
    assert line.evidence == {"line": text.replace("\n", " ")}


def test_which_gpu_is_where() -> None:
    assert parse_line(f"NVRM: GPU at PCI:0000:04:00: {UUID}") == GpuLine(
        kind=LineKind.GPU_IDENTITY, bdf="0000:04:00.0", uuid=UUID
    )


@pytest.mark.parametrize(
    ("text", "success"),
    [
        (f"GPU reset executed: {UUID}", None),
        (f"nvsentinel-gpu-reset: GPU reset executed: {UUID}, success: true", "true"),
        (f"nvsentinel-gpu-reset[12]: GPU reset executed: {UUID}, success: false", "false"),
    ],
)
def test_a_reset_that_a_tool_reports(text: str, success: str | None) -> None:
    line = parse_line(text)

    assert line is not None
    assert (line.kind, line.uuid, line.evidence.get("success")) == (LineKind.GPU_RESET, UUID, success)


@pytest.mark.parametrize(
    ("text", "kind", "bdf"),
    [
        ("pcieport 0000:00:01.0: AER: Uncorrected (Fatal) error received: 0000:65:00.0", LineKind.PCIE_FATAL, BDF),
        (
            "pcieport 0000:64:01.0: AER: Multiple Uncorrected (Non-Fatal) error received: 0000:65:00.0",
            LineKind.PCIE_NON_FATAL, BDF,
        ),
        (
            "pcieport 0000:64:01.0: AER: Correctable error message received from 0000:65:00.0",
            LineKind.PCIE_CORRECTED, BDF,
        ),
        (
            "nvidia 0000:65:00.0: AER: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Transaction Layer, "
            "(Receiver ID)",
            LineKind.PCIE_FATAL, BDF,
        ),
        (
            "nvidia 0000:65:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID)",
            LineKind.PCIE_CORRECTED, BDF,
        ),
        (
            "pcieport 0000:00:01.0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer",
            LineKind.PCIE_NON_FATAL, "0000:00:01.0",
        ),
    ],
)
def test_an_error_of_the_pcie_bus(text: str, kind: LineKind, bdf: str) -> None:
    line = parse_line(text)

    assert line is not None
    assert (line.kind, line.bdf, line.code) == (kind, bdf, 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NVRM: Xid (PCI:0000:65:00): 7",  # cut off: 79, or 7?
        "NVRM: Xid (PCI:0000:65:00)",
        "NVRM: Xid (PCI:0000:65:00): abc, pid=1",
        "NVRM: Xid (PCI:0000:65:00): 12345, x",
        "NVRM: Xid: 31",
        "NVRM: Xid (PCI:65): 79, x",
        "NVRM: Xid (PCI:0000:65:00): ٧٩, x",
        "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  595.91.07",
        "NVRM: GPU Board Serial Number: 1324023049334",
        "nouveau 0000:01:00.0: Xid (PCI:0000:65:00): 79, x",
        f"usb 1-1: Product: {OFF_THE_BUS}",
        f"audit: {OFF_THE_BUS}",
        "amdgpu 0000:65:00.0: amdgpu: GPU reset begin!",
        "nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 29 LTSSM Fault Up",
        "GPU reset executed:",
        "GPU reset executed: GPU-123",
        "pcieport 0000:00:01.0: AER: Uncorrected (Fatal) error received: id=0008",
        "pcieport 0000:00:01.0: pciehp: Slot(12): Link Down",
    ],
)
def test_other_lines_say_nothing(text: str) -> None:
    assert parse_line(text) is None


def test_evidence_is_one_printable_line_of_bounded_length() -> None:
    line = parse_line(OFF_THE_BUS + " \x1b[31m\n" + "x" * 1_000_000)

    assert line is not None
    shown = line.evidence["line"]
    assert (len(shown), shown[:86], shown[-3:]) == (400, OFF_THE_BUS + "  [", "...")


WORDS = st.sampled_from(
    ["NVRM: Xid (PCI:", "0000:65:00", ".0", " GPU-I:", "): ", "79", ", ", "pid=", "'<unknown>'", "name=", "154", "149",
     "GPU recovery action changed from 0x0 (None) to 0x", "NETIR Fatal XC0 i0 Link ", "(0x", "ffffffff",
     "NVRM: GPU at ", "fallen off the bus", "AER: ", "PCIe Bus Error: severity=", "Corrected", "\n", "\x00", "٣"]
)


@given(st.one_of(st.text(), st.lists(st.one_of(WORDS, st.text(max_size=3)), max_size=12).map("".join)))
def test_no_text_breaks_the_parser_and_no_code_is_invented(text: str) -> None:
    line = parse_line(text)

    if line is not None and line.kind is LineKind.XID:
        assert re.search(rf"\): 0{{0,3}}{line.code},", text)
    if line is not None and line.code and line.kind is not LineKind.XID:
        assert "fallen off the bus" in text


@given(st.integers(0, len(OFF_THE_BUS)))
def test_a_line_that_is_cut_off_says_the_same_or_nothing(length: int) -> None:
    line = parse_line(OFF_THE_BUS[:length])

    assert line is None or (line.bdf, line.code) == (BDF, 79)


# ---- Records


@pytest.mark.parametrize(
    ("data", "record"),
    [
        (
            b"6,339,5140900,-;NET: Registered protocol family\n",
            Record(level=6, facility=0, sequence=339, since_boot_us=5140900, text=b"NET: Registered protocol family"),
        ),
        (
            b"3,340,5690716,-,caller=T1;udevd[80]: starting; version 181\n SUBSYSTEM=pci\n DEVICE=+pci:0000:65:00.0\n",
            Record(level=3, facility=0, sequence=340, since_boot_us=5690716, text=b"udevd[80]: starting; version 181"),
        ),
        (b"12,341,7,-;by a process", Record(level=4, facility=1, sequence=341, since_boot_us=7, text=b"by a process")),
        (b"4,342,8,-;", Record(level=4, facility=0, sequence=342, since_boot_us=8, text=b"")),
        (b"", None),
        (b"no record", None),
        (b"4,x,8,-;text", None),
        (b"4,-1,8,-;text", None),
        (b"4,342,8;text", None),
        (b"4," + b"9" * 5000 + b",8,-;text", None),
    ],
)
def test_a_record(data: bytes, record: Record | None) -> None:
    assert parse_record(data) == record


@given(st.binary(max_size=200))
def test_no_bytes_break_the_record_parser(data: bytes) -> None:
    record = parse_record(data)

    assert record is None or record.sequence >= 0


def test_text_is_unescaped_as_the_kernel_escaped_it() -> None:
    assert unescaped(rb"a\x0ab \x5cx0a \xc3\xbc \xff \xg") == "a\nb \\x0a ü � \\xg"


def test_where_reading_begins() -> None:
    assert start_after("b", None, None) is None  # the first time: behind what is there
    assert start_after("b", "b", 17) == 17
    assert start_after("b", "a", 17) == -1  # another boot: all of this one is new


# ---- Reading

SECOND = 1_000_000_000
WALL = 1_700_000_000 * SECOND


def record(sequence: int, text: str = OFF_THE_BUS, *, us: int | None = None, priority: int = 3) -> bytes:
    return f"{priority},{sequence},{sequence * 1000 if us is None else us},-;{text}\n".encode()


def reading(items: Iterable[bytes | int | None]) -> Callable[[int], bytes]:
    """Gives records, raises errors by number, and for None and at the end says that there is nothing now."""
    left: Iterator[bytes | int | None] = iter(items)

    def read(_size: int) -> bytes:
        item = next(left, None)
        if item is None:
            raise BlockingIOError(errno.EAGAIN, "nothing now")
        if isinstance(item, int):
            raise OSError(item, os.strerror(item))
        return item

    return read


def poll(log: KernelLog, *, at: int = 0) -> list[tuple[str | None, int, int, int]]:
    """Address, code, count and sequence of each report."""
    reports = log.poll(monotonic_ns=100 * SECOND + at, wall_ns=WALL + at)
    return [(report.line.bdf, report.line.code, report.count, report.sequence) for report in reports]


def test_each_fault_of_a_second_is_reported_once_with_its_count() -> None:
    other = "NVRM: Xid (PCI:0000:01:00): 48, pid=1, name=a, DBE"
    log = KernelLog(
        reading([record(1), record(2, other), record(3), record(4, "usb 1-1: new device"), record(5, us=1_000_001)])
    )

    assert poll(log) == [(BDF, 79, 2, 3), ("0000:01:00.0", 48, 1, 2), (BDF, 79, 1, 5)]
    assert poll(log) == []
    assert (log.last_sequence, log.counts.records, log.closed) == (5, 5, None)


def test_what_the_lines_of_a_second_add_to_each_other_is_kept() -> None:
    first = "NVRM: Xid (PCI:0000:65:00): 13, pid='<unknown>', name=<unknown>, Graphics Exception: ESR 0x57c730=0x4000b"
    second = "NVRM: Xid (PCI:0000:65:00): 13, pid=7, name=train, Graphics SM Warp Exception on (GPC 1, TPC 2, SM 0): x"

    (report,) = KernelLog(reading([record(1, first), record(2, second)])).poll(monotonic_ns=0, wall_ns=0)

    assert report.line.evidence == {"line": first, "pid": "7", "process": "train", "unit": "GPC 1, TPC 2", "sm": "0"}


def test_a_new_line_has_the_time_at_which_it_is_read_whatever_the_clock_of_the_log_says() -> None:
    log = KernelLog(reading([record(1, us=1_000_000_000), record(2, OFF_THE_BUS[:-1], us=1_000_250_000), None, None]))

    reports = log.poll(monotonic_ns=SECOND, wall_ns=WALL)

    assert [report.wall_ns - WALL for report in reports] == [-250_000_000]
    assert [report.count for report in reports] == [2]


def test_what_was_logged_before_we_came_has_the_time_since_boot() -> None:
    log = KernelLog(reading([record(1), record(7, us=40_000_000)]), after=3)

    (report,) = log.poll(monotonic_ns=100 * SECOND, wall_ns=WALL)

    assert (report.sequence, report.wall_ns - WALL) == (7, -60 * SECOND)


def test_what_was_seen_before_a_restart_is_not_told_again() -> None:
    log = KernelLog(reading([record(sequence) for sequence in range(1, 6)]), after=3)

    assert poll(log) == [(BDF, 79, 2, 5)]


def test_a_ring_that_overtook_us_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    log = KernelLog(reading([record(1), errno.EPIPE, record(101), None, record(102), errno.EPIPE, record(202)]))

    assert poll(log) == [(BDF, 79, 2, 101)]
    assert (log.counts.overruns, log.counts.lost_records) == (1, 99)
    assert poll(log) == [(BDF, 79, 2, 202)]
    assert (log.counts.overruns, log.counts.lost_records, log.closed) == (2, 198, None)
    assert [each.getMessage() for each in caplog.records] == [
        "the kernel log is written faster than it is read; 99 lines lost"
    ]


def test_a_record_that_is_too_long_is_skipped_and_counted() -> None:
    log = KernelLog(reading([record(1), errno.EINVAL, record(3)]))

    assert poll(log) == [(BDF, 79, 2, 3)]
    assert (log.counts.oversized, log.counts.lost_records) == (1, 0)


def test_a_record_too_long_among_those_already_seen_hides_no_other() -> None:
    log = KernelLog(reading([record(1), errno.EINVAL, record(3), record(4)]), after=3)

    assert poll(log) == [(BDF, 79, 1, 4)]


def test_bytes_that_are_no_record_are_counted() -> None:
    log = KernelLog(reading([b"garbage", record(2), b"\xff\xfe;x"]))

    assert poll(log) == [(BDF, 79, 1, 2)]
    assert log.counts.malformed == 2


def test_an_error_closes_the_log_with_its_reason() -> None:
    log = KernelLog(reading([record(1), errno.EIO]))

    assert poll(log) == [(BDF, 79, 1, 1)]
    assert log.closed == "the kernel log cannot be read any more: Input/output error"
    assert poll(log) == []


def test_lines_that_a_process_wrote_are_not_the_kernels_word() -> None:
    forged, reset = record(1, priority=12), record(2, f"GPU reset executed: {UUID}", priority=12)

    log, drill = KernelLog(reading([forged, reset])), KernelLog(reading([forged, reset]), accept_written=True)

    assert [report.line.kind for report in log.poll(monotonic_ns=0, wall_ns=0)] == [LineKind.GPU_RESET]
    assert log.counts.written_by_processes == 1
    assert [(report.line.kind, report.from_kernel) for report in drill.poll(monotonic_ns=0, wall_ns=0)] == [
        (LineKind.XID, False), (LineKind.GPU_RESET, False),
    ]


def test_a_storm_costs_bounded_work_and_gives_one_report_a_second() -> None:
    # 800,000 copies of one XID on one node, 29 of them distinct: NVIDIA/NVSentinel #1120.
    copies = 50_000
    texts = [f"NVRM: Xid (PCI:0000:65:00): 95, pid={pid}, name=x, Uncontained" for pid in range(29)]
    log = KernelLog(reading(record(i + 1, texts[i % 29], us=i * 100) for i in range(copies)))

    polls = [poll(log) for _ in range(copies // 1_000)]

    assert [len(reports) for reports in polls] == [1] * 50
    assert sum(report[2] for reports in polls for report in reports) == copies
    assert log.counts.records == copies


def test_no_more_reports_than_a_bound_come_of_one_poll() -> None:
    log = KernelLog(reading(record(i, f"NVRM: Xid (PCI:{i:04x}:65:00): 13, x") for i in range(600)))

    assert len(poll(log)) == 512
    assert log.counts.dropped_reports == 88


def test_a_descriptor_is_read_record_by_record_without_waiting() -> None:
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, ours:
        ours.setblocking(False)
        log = KernelLog.of(ours.fileno())
        assert poll(log) == []

        kernel.send(record(8))
        kernel.send(record(9))

        assert poll(log) == [(BDF, 79, 2, 9)]
        kernel.close()
        assert poll(log) == []
        assert log.closed == "the kernel log has ended"


def test_no_log_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KernelLogError, match=r"kmsg is not there: mount it from the host"):
        open_kernel_log(tmp_path / "kmsg", from_start=True)
    os.mkfifo(tmp_path / "kmsg")
    with pytest.raises(KernelLogError, match=r"kmsg is not a kernel log: Illegal seek"):
        open_kernel_log(tmp_path / "kmsg", from_start=False)


def test_a_log_that_is_opened_at_its_end_has_nothing_to_say_yet(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_bytes(record(1))
    at_end, at_start = open_kernel_log(path, from_start=False), open_kernel_log(path, from_start=True)
    try:
        assert os.read(at_end, 100) == b""
        assert os.read(at_start, 1000) == record(1)
    finally:
        os.close(at_end)
        os.close(at_start)
