"""Every code has the verdict that its row says, literally; NVLink 5 lines are decoded by NVIDIA's table and no further.

Lines are from the test data and issues of public projects: leptonai/gpud #1160 and #1174, NVIDIA/NVSentinel
(health-monitors/syslog-health-monitor, csv_test.go), NVIDIA/open-gpu-kernel-modules #1150.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claimscope.health.model import Survives
from claimscope.health.nvlink5 import Action, NvlinkReport, decode
from claimscope.health.xids import CATALOGUE, FaultKind, Repeat, Verdict, verdict_of

RECORD = [
    8, 11, 13, 14, 25, 31, 32, 37, 38, 39, 40, 41, 43, 44, 45, 60, 66, 67, 68, 69, 70, 71, 72, 75, 76, 77, 80, 82, 83,
    84, 85, 86, 88, 89, 96, 97, 98, 99, 100, 101, 102, 103, 104, 105, 106, 107, 108, 126, 127, 128, 129, 130, 131, 132,
    133, 134, 135, 137, 139, 141, 152, 153, 160, 161, 162, 171, 172,
]
UNUSED = [
    1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 26, 27, 28, 29, 30, 33, 34, 35, 36, 42, 47,
    49, 50, 51, 52, 53, 55, 56, 57, 58, 59, 61, 65, 73, 81, 87, 90, 91, 111, 112, 113, 114, 115, 116, 117, 118, 122,
    123, 124, 125, 138,
]
DEGRADED = [63, 74, 78, 92, 93, 94, 109, 121, 142, 155, 157, 159, 163, 164, 165, 166, 168, 170]
UNHEALTHY = [46, 48, 54, 62, 64, 95, 110, 119, 120, 136, 140, 143, 151, 156, 158, 167, 169, 173]
DECODE = [144, 145, 146, 147, 148, 149, 150]

VERDICTS = {
    **dict.fromkeys(RECORD, Verdict.RECORD),
    **dict.fromkeys(DEGRADED + UNUSED, Verdict.DEGRADED),
    **dict.fromkeys(UNHEALTHY, Verdict.UNHEALTHY),
    **dict.fromkeys(DECODE, Verdict.DECODE),
    79: Verdict.LOST,
    154: Verdict.RECOVERY_ACTION,
}


@pytest.mark.parametrize(("code", "verdict"), sorted(VERDICTS.items()))
def test_the_verdict_of_each_code(code: int, verdict: Verdict) -> None:
    row = verdict_of(code)

    assert (row.code, row.verdict, row.known) == (code, verdict, code not in UNUSED)
    assert row.meaning


def test_every_code_of_the_catalogue_has_exactly_one_verdict() -> None:
    lists = [RECORD, UNUSED, DEGRADED, UNHEALTHY, DECODE, [79, 154]]

    assert sorted(code for codes in lists for code in codes) == list(range(1, 174))
    assert sorted(CATALOGUE) == list(range(1, 174))


@given(st.integers())
def test_a_code_that_nobody_knows_is_degraded_and_never_fatal(code: int) -> None:
    row = verdict_of(code)

    assert row.code == code
    if not 1 <= code <= 173:
        assert (row.verdict, row.known) == (Verdict.DEGRADED, False)
        assert row.fault is FaultKind.UNKNOWN


def test_what_stands_though_the_driver_asks_for_nothing() -> None:
    assert {code for code, row in CATALOGUE.items() if row.stands_without_action} == {
        48, 54, 62, 64, 79, 95, 119, 120, 140,
    }


def test_what_ends_a_finding() -> None:
    assert {code for code, row in CATALOGUE.items() if row.survives is Survives.REBOOT} == {54, 64}
    assert {code for code, row in CATALOGUE.items() if row.survives is Survives.RESET} == {79, 151}
    assert {code for code, row in CATALOGUE.items() if row.cleared_by is not None} == {163}
    assert verdict_of(163).cleared_by == 162


def test_what_repeats_mean() -> None:
    assert {code: row.repeats for code, row in CATALOGUE.items() if row.repeats} == {
        8: (Repeat(bursts=3, pods=2),),
        13: (Repeat(bursts=2, same_unit=True), Repeat(bursts=3, pods=2)),
        31: (Repeat(bursts=2, pods=2),),
        44: (Repeat(bursts=2, pods=2),),
        80: (Repeat(bursts=2, pods=2),),
        109: (Repeat(bursts=2, verdict=Verdict.UNHEALTHY),),
    }


def test_what_an_application_does_never_fences_by_one_event() -> None:
    faults = {FaultKind.APPLICATION, FaultKind.APPLICATION_OR_DRIVER, FaultKind.FOLLOWER}

    assert {row.verdict for row in CATALOGUE.values() if row.fault in faults} == {
        Verdict.RECORD, Verdict.RECOVERY_ACTION,
    }


def report(unit: str, *registers: int, fatal: bool = True, injected: bool = False, link: int = 0) -> NvlinkReport:
    return NvlinkReport(unit=unit, fatal=fatal, injected=injected, link=link, registers=registers)


OLD, NEW = "570.148.08", "580.65.06"


@pytest.mark.parametrize(
    ("xid", "driver", "registers", "action", "verdict", "unit"),
    [
        # Lines that were seen.
        (144, NEW, (0x00000001, 0x00000008), Action.IGNORE, Verdict.RECORD, "SAW_MVB"),
        (145, OLD, (0x0409A0C2, 0x00000008), Action.IGNORE, Verdict.RECORD, "RLW_RXPIPE"),
        (149, OLD, (0x000FE406, 0x00000000), Action.RESET, Verdict.UNHEALTHY, "NETIR_INT"),
        (149, OLD, (0x016415C6, 0x00000000), Action.RESET, Verdict.UNHEALTHY, "NETIR_LINK_DOWN"),
        (149, OLD, (0x026001C6, 0x00000000), Action.IGNORE, Verdict.RECORD, "NETIR_LINK_DOWN"),
        (149, OLD, (0x000625C6, 0x00000000), Action.RESET, Verdict.UNHEALTHY, "NETIR_LINK_DOWN"),
        # One of each unit and answer.
        (144, OLD, (0x00000021, 0x00000002), Action.RESET, Verdict.UNHEALTHY, "SAW_MVB"),
        (145, NEW, (0x00000003, 0x80000000), Action.IGNORE, Verdict.RECORD, "RLW_CTRL"),
        (145, NEW, (0x00000004, 0x00000001), Action.EVALUATE, Verdict.DEGRADED, "RLW_REMAP"),
        (145, NEW, (0x00000004, 0x00000040), Action.RESET, Verdict.UNHEALTHY, "RLW_REMAP"),
        (145, OLD, (0x000000A2, 0x00000002), Action.RESET, Verdict.UNHEALTHY, "RLW_RSPCOL"),
        (145, NEW, (0x00000006, 0x00000001), Action.IGNORE, Verdict.RECORD, "RLW_RXPIPE"),
        (145, NEW, (0x00000086, 0x00000001), Action.RESET, Verdict.UNHEALTHY, "RLW_RXPIPE"),
        (145, OLD, (0x000004C2, 0x00000004), Action.RESET, Verdict.UNHEALTHY, "RLW_RXPIPE"),
        (145, NEW, (0x00000007, 0x00000008), Action.EVALUATE, Verdict.DEGRADED, "RLW_SRC_TRACK"),
        (145, NEW, (0x00000008, 0x00020000), Action.RESET, Verdict.UNHEALTHY, "RLW_TAGSTATE"),
        (146, OLD, (0x00000123, 0x00000004), Action.RESET, Verdict.UNHEALTHY, "TLW_CTRL"),
        (146, NEW, (0x0000000B, 0x00000002), Action.IGNORE, Verdict.RECORD, "TLW_RX_PIPE1"),
        (147, NEW, (0x0000000E, 0x80000000), Action.IGNORE, Verdict.RECORD, "TREX"),
        (148, OLD, (0x00000005, 0x80000000), Action.IGNORE, Verdict.RECORD, "NVLPW"),
        (149, NEW, (0x00000013, 0x00000002), Action.IGNORE, Verdict.DEGRADED, "NETIR_BER_EVENT"),
        (149, NEW, (0x00000014, 0x00000004), Action.RESET, Verdict.UNHEALTHY, "NETIR_MFDE_EVENT"),
        (149, NEW, (0x00000014, 0x00000003), Action.IGNORE, Verdict.RECORD, "NETIR_MFDE_EVENT"),
        (150, NEW, (0x00000000, 0xFFFFFFFF), Action.RESET, Verdict.UNHEALTHY, "MSE"),
    ],
)
def test_registers_are_decoded_by_the_table(
    xid: int, driver: str, registers: tuple[int, ...], action: Action, verdict: Verdict, unit: str
) -> None:
    found = decode(xid, report("AS_PRINTED", *registers), driver)

    assert (found.action, found.verdict, found.unit, found.peer) == (action, verdict, unit, False)


@pytest.mark.parametrize("cause", [21, 32, 33, 34, 35, 36, 37])
def test_a_link_that_the_other_end_took_down_is_not_held_against_this_end(cause: int) -> None:
    found = decode(149, report("NETIR_LINK_EVT", cause << 20 | 0x1C6, 0), OLD)

    assert (found.action, found.verdict, found.peer, found.cause) == (Action.RESET, Verdict.DEGRADED, True, cause)


def test_the_driver_decides_which_bits_name_the_unit() -> None:
    link_down_new, link_down_old = report("NETIR_LINK_EVT", 0x11, 0), report("NETIR_LINK_EVT", 0x1C6, 0)

    assert decode(149, link_down_new, "575.51.02").action is Action.RESET
    assert decode(149, link_down_new, "574.99").action is Action.UNKNOWN
    assert decode(149, link_down_old, "574.99").action is Action.RESET
    assert decode(149, link_down_old, "575.51.02").action is Action.UNKNOWN
    assert decode(149, link_down_old, None).action is Action.RESET  # no bits mean something in both layouts


@pytest.mark.parametrize(
    ("xid", "registers", "text"),
    [
        (149, (0x03F00011, 0), "no row for NETIR_LINK_EVT 0x03f00011 with driver 580.65.06"),
        (145, (0x00000004, 0x00000003), "no row for NETIR_LINK_EVT 0x00000004 with driver 580.65.06"),
        (145, (0x00000004,), "no row for NETIR_LINK_EVT 0x00000004 with driver 580.65.06"),
        (147, (0x00000011, 0), "no row for NETIR_LINK_EVT 0x00000011 with driver 580.65.06"),
        (149, (), "the line has no registers, or was cut off"),
    ],
)
def test_what_no_row_says_is_degraded_and_said(xid: int, registers: tuple[int, ...], text: str) -> None:
    found = decode(xid, report("NETIR_LINK_EVT", *registers), NEW)

    assert (found.action, found.verdict, found.text) == (Action.UNKNOWN, Verdict.DEGRADED, text)


def test_without_the_line_the_code_alone_is_degraded() -> None:
    assert {xid: decode(xid, None, NEW).verdict for xid in range(144, 151)} == {
        144: Verdict.DEGRADED, 145: Verdict.DEGRADED, 146: Verdict.DEGRADED, 147: Verdict.DEGRADED,
        148: Verdict.DEGRADED, 149: Verdict.DEGRADED, 150: Verdict.UNHEALTHY,
    }


REGISTER = st.integers(0, 2**32 - 1)


@given(
    st.integers(144, 150), st.lists(REGISTER, max_size=7), st.sampled_from([None, "", "570.1", "580.1", "x", "٣.1"])
)
def test_any_registers_are_decoded_to_one_of_three_verdicts(xid: int, registers: list[int], driver: str | None) -> None:
    found = decode(xid, report("X", *registers), driver)

    assert found.verdict in {Verdict.RECORD, Verdict.DEGRADED, Verdict.UNHEALTHY}
    assert found.verdict is not Verdict.UNHEALTHY or found.action is Action.RESET


INFO = st.builds(lambda cause, unit: cause << 20 | unit, st.sampled_from([0, 0, 33, 38]), st.integers(0, 0x7FF))
STATUS = st.sampled_from([0, 1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80000000])


@given(st.integers(144, 150), INFO, STATUS)
def test_no_registers_have_two_meanings_while_the_driver_is_not_known(xid: int, info: int, status: int) -> None:
    line = report("X", info, status)
    known = {found for found in (decode(xid, line, OLD), decode(xid, line, NEW)) if found.action is not Action.UNKNOWN}

    assert len(known) <= 1
    if known:
        assert decode(xid, line, None) in known
