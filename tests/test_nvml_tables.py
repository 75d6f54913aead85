"""Do the NVML tables say what nvml.h says?"""

from __future__ import annotations

import ctypes
import struct

import pynvml
import pytest

from claimscope.model import Missing
from claimscope.nvml import errors
from claimscope.nvml.calls import CALLS, Call
from claimscope.nvml.fields import FIELDS, SYMBOLS, driver_branch, field_ids
from claimscope.nvml.gpm_metrics import GPM_METRICS
from claimscope.nvml.group import locate

SLOWDOWN = (
    "CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN",
    "CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN",
    "CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",
)


@pytest.mark.parametrize(
    ("driver", "ids"),
    [
        ("535.247.01", (None, None, None)),
        ("550.163.01", (None, None, None)),
        ("570.172.08", (None, None, None)),
        ("575.57.08", (251, 252, 253)),
        ("580.65.06", (251, 252, 253)),
        ("590.44.01", (269, 270, 271)),
        ("610.57.04", (269, 270, 271)),
    ],
)
def test_slowdown_counters_follow_the_driver_branch(driver: str, ids: tuple[int | None, ...]) -> None:
    table = field_ids(driver)
    assert tuple(table.get(symbol) for symbol in SLOWDOWN) == ids


@pytest.mark.parametrize(
    ("driver", "symbol", "expected"),
    [
        ("525.147.05", "POWER_INSTANT", None),
        ("535.247.01", "POWER_INSTANT", 186),
        ("550.163.01", "PCIE_COUNT_TX_BYTES", None),
        ("555.42.02", "PCIE_COUNT_TX_BYTES", 197),
        ("550.163.01", "NVLINK_COUNT_XMIT_BYTES", None),
        ("570.172.08", "NVLINK_COUNT_XMIT_BYTES", 202),
        ("570.172.08", "NVLINK_COUNT_RCV_BYTES", 204),
        ("550.163.01", "GET_GPU_RECOVERY_ACTION", None),
        ("570.172.08", "GET_GPU_RECOVERY_ACTION", 230),
        ("535.247.01", "TOTAL_ENERGY_CONSUMPTION", 83),
        ("535.247.01", "NVLINK_THROUGHPUT_DATA_RX", 139),
        ("535.247.01", "PCIE_COUNT_LANE_ERROR", 183),
    ],
)
def test_no_driver_is_asked_for_an_id_it_cannot_know(driver: str, symbol: str, expected: int | None) -> None:
    assert field_ids(driver).get(symbol) == expected


@pytest.mark.parametrize(
    ("version", "branch"), [("580.65.06", 580), (" 610.57.04\n", 610), ("", 0), ("unknown", 0), ("[N/A]", 0)]
)
def test_driver_branch(version: str, branch: int) -> None:
    assert driver_branch(version) == branch


def test_a_version_that_cannot_be_read_gets_only_what_every_driver_has() -> None:
    assert field_ids("").keys() == {row.symbol for row in FIELDS if row.since == 0}
    assert field_ids("")["MEMORY_TEMP"] == 82


def test_ids_below_251_are_those_of_the_header() -> None:
    assert {
        row.symbol: row.id for row in FIELDS if row.id < 251 and row.id != getattr(pynvml, f"NVML_FI_DEV_{row.symbol}")
    } == {}


@pytest.mark.parametrize("branch", [0, 520, 530, 535, 550, 555, 560, 565, 570, 575, 580, 590, 610])
def test_within_one_branch_every_id_means_one_thing(branch: int) -> None:
    ids = field_ids(f"{branch}.1")
    assert len(set(ids.values())) == len(ids)
    assert set(ids) <= SYMBOLS


def test_gpm_ids_are_those_of_the_header() -> None:
    expected = {name: getattr(pynvml, f"NVML_GPM_METRIC_{name}") for name in GPM_METRICS}
    assert expected == GPM_METRICS
    assert max(GPM_METRICS.values()) <= 97


def test_every_return_code_of_the_header_has_a_row() -> None:
    codes = {
        name.removeprefix("NVML_ERROR_"): value
        for name, value in vars(pynvml).items()
        if name.startswith("NVML_ERROR_")
    }
    assert {row.name: row.code for row in errors.RETURNS.values() if row.code} == codes


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, None),
        (1, Missing.LOST),
        (2, Missing.UNSUPPORTED),
        (3, Missing.UNSUPPORTED),
        (4, Missing.DENIED),
        (6, Missing.FAILED),
        (9, Missing.LOST),
        (13, Missing.UNSUPPORTED),
        (15, Missing.LOST),
        (16, Missing.LOST),
        (17, Missing.DENIED),
        (18, Missing.LOST),
        (21, Missing.FAILED),
        (25, Missing.UNSUPPORTED),
        (28, Missing.LOST),
        (31, Missing.FAILED),
        (999, Missing.FAILED),
    ],
)
def test_return_codes_map_to_missing(code: int, expected: Missing | None) -> None:
    assert errors.missing(code) is expected


def test_lifecycle_codes_all_mean_lost() -> None:
    assert frozenset({1, 9, 15, 16, 18, 28}) == errors.LIFECYCLE
    assert {errors.missing(code) for code in errors.LIFECYCLE} == {Missing.LOST}


def test_describe() -> None:
    assert errors.describe(0) == "NVML_SUCCESS (0): success"
    assert errors.describe(18) == (
        "NVML_ERROR_LIB_RM_VERSION_MISMATCH (18): NVML and the loaded driver differ in version"
    )
    assert errors.describe(77) == "NVML return code 77, unknown to this version of claimscope"


@pytest.mark.parametrize("name", sorted(CALLS))
def test_calls_are_named_after_symbols_that_exist(name: str) -> None:
    call = CALLS[name]
    assert call.symbol == "nvmlDeviceGet" + name.partition("/")[0]
    stem = call.symbol.removesuffix("_v2")
    assert any(hasattr(pynvml, symbol) for symbol in (call.symbol, stem))


@pytest.mark.parametrize("name", sorted(CALLS))
def test_members_lead_to_numbers(name: str) -> None:
    call = CALLS[name]
    assert call.members
    for index, attribute in call.members.values():
        offset, code = locate(call.outs[index], attribute)
        assert code in "bBhHiIqQfd"
        assert 0 <= offset <= ctypes.sizeof(call.outs[index]) - struct.calcsize("=" + code)


@pytest.mark.parametrize("name", sorted(name for name, call in CALLS.items() if call.version is not None))
def test_a_structure_version_states_the_size_of_the_structure(name: str) -> None:
    call = CALLS[name]
    assert call.version is not None
    assert ctypes.sizeof(call.outs[0]) == call.version & 0xFFFFFF
    assert hasattr(call.outs[0], "version")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("UtilizationRates", 8),
        ("MemoryInfo_v2", 40),
        ("BAR1MemoryInfo", 24),
        ("GpuFabricInfoV", 40),
        ("SramEccErrorStatus", 104),
        ("RowRemapperHistogram", 20),
        ("TemperatureV", 12),
        ("FanSpeedRPM", 12),
    ],
)
def test_structure_sizes_are_those_of_the_header(name: str, size: int) -> None:
    assert ctypes.sizeof(CALLS[name].outs[0]) == size


def test_the_field_value_structure_has_the_size_of_the_header() -> None:
    assert ctypes.sizeof(pynvml.c_nvmlFieldValue_t) == 40


def test_literal_rows() -> None:
    assert CALLS["ClockInfo/memory"] == Call(symbol="nvmlDeviceGetClockInfo", outs=(ctypes.c_uint,), args=(2,))
    assert CALLS["MemoryErrorCounter/uncorrected/volatile/sram"] == Call(
        symbol="nvmlDeviceGetMemoryErrorCounter", outs=(ctypes.c_ulonglong,), args=(1, 0, 7)
    )
    assert CALLS["FanSpeed_v2"].axis is True
    assert CALLS["FanSpeedRPM"].axis_member == "fan"
    assert CALLS["MigMode"].members == {"current": (0, None), "pending": (1, None)}
