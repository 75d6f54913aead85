"""Which number does a field of nvmlDeviceGetFieldValues have on this driver?

The ids are an interface of the driver, not of pynvml: the constants above 250 were renumbered between driver
branches (NVML_FI_* of nvml.h in CUDA 12.8, 12.9/13.0 and 13.1), so that pynvml's names for the throttle counters
ask R575 and R580 drivers for power-smoothing knobs. Hence a table of our own, by branch, with the branch in which an
id first stood in the header, so that no driver is asked for an id it cannot know.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

ALL_LINKS = 0xFFFFFFFF  # scopeId that sums an NVLink field over all links


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One id under which a symbol is known, and the driver branches in which it is."""

    symbol: str  # NVML_FI_DEV_ without the prefix
    id: int
    since: int = 0  # first driver branch with this id; 0: every branch that we meet
    until: int | None = None  # first driver branch in which the id means something else


def _run(since: int, first: int, *symbols: str) -> tuple[Field, ...]:
    return tuple(Field(symbol=symbol, id=first + index, since=since) for index, symbol in enumerate(symbols))


FIELDS: tuple[Field, ...] = (
    *_run(
        0,
        1,
        "ECC_CURRENT",
        "ECC_PENDING",
        "ECC_SBE_VOL_TOTAL",
        "ECC_DBE_VOL_TOTAL",
        "ECC_SBE_AGG_TOTAL",
        "ECC_DBE_AGG_TOTAL",
        "ECC_SBE_VOL_L1",
        "ECC_DBE_VOL_L1",
        "ECC_SBE_VOL_L2",
        "ECC_DBE_VOL_L2",
        "ECC_SBE_VOL_DEV",
        "ECC_DBE_VOL_DEV",
        "ECC_SBE_VOL_REG",
        "ECC_DBE_VOL_REG",
        "ECC_SBE_VOL_TEX",
        "ECC_DBE_VOL_TEX",
        "ECC_DBE_VOL_CBU",
        "ECC_SBE_AGG_L1",
        "ECC_DBE_AGG_L1",
        "ECC_SBE_AGG_L2",
        "ECC_DBE_AGG_L2",
        "ECC_SBE_AGG_DEV",
        "ECC_DBE_AGG_DEV",
        "ECC_SBE_AGG_REG",
        "ECC_DBE_AGG_REG",
        "ECC_SBE_AGG_TEX",
        "ECC_DBE_AGG_TEX",
        "ECC_DBE_AGG_CBU",
        "RETIRED_SBE",
        "RETIRED_DBE",
        "RETIRED_PENDING",
    ),
    Field(symbol="NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", id=38),
    Field(symbol="NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", id=45),
    Field(symbol="NVLINK_REPLAY_ERROR_COUNT_TOTAL", id=52),
    Field(symbol="NVLINK_RECOVERY_ERROR_COUNT_TOTAL", id=59),
    *_run(
        0,
        74,
        "PERF_POLICY_POWER",
        "PERF_POLICY_THERMAL",
        "PERF_POLICY_SYNC_BOOST",
        "PERF_POLICY_BOARD_LIMIT",
        "PERF_POLICY_LOW_UTILIZATION",
        "PERF_POLICY_RELIABILITY",
        "PERF_POLICY_TOTAL_APP_CLOCKS",
        "PERF_POLICY_TOTAL_BASE_CLOCKS",
        "MEMORY_TEMP",
        "TOTAL_ENERGY_CONSUMPTION",
    ),
    Field(symbol="NVLINK_LINK_COUNT", id=91),
    *_run(0, 94, "PCIE_REPLAY_COUNTER", "PCIE_REPLAY_ROLLOVER_COUNTER"),
    *_run(
        0,
        138,
        "NVLINK_THROUGHPUT_DATA_TX",
        "NVLINK_THROUGHPUT_DATA_RX",
        "NVLINK_THROUGHPUT_RAW_TX",
        "NVLINK_THROUGHPUT_RAW_RX",
        "REMAPPED_COR",
        "REMAPPED_UNC",
        "REMAPPED_PENDING",
        "REMAPPED_FAILURE",
        "NVLINK_REMOTE_NVLINK_ID",
        "NVSWITCH_CONNECTED_LINK_COUNT",
    ),
    Field(symbol="NVLINK_ECC_DATA_ERROR_COUNT_TOTAL", id=160),
    *_run(
        520,
        161,
        "NVLINK_ERROR_DL_REPLAY",
        "NVLINK_ERROR_DL_RECOVERY",
        "NVLINK_ERROR_DL_CRC",
        "NVLINK_GET_SPEED",
        "NVLINK_GET_STATE",
        "NVLINK_GET_VERSION",
    ),
    *_run(
        530,
        167,
        "NVLINK_GET_POWER_STATE",
        "NVLINK_GET_POWER_THRESHOLD",
        "PCIE_L0_TO_RECOVERY_COUNTER",
        "C2C_LINK_COUNT",
        "C2C_LINK_GET_STATUS",
        "C2C_LINK_GET_MAX_BW",
    ),
    *_run(
        535,
        173,
        "PCIE_COUNT_CORRECTABLE_ERRORS",
        "PCIE_COUNT_NAKS_RECEIVED",
        "PCIE_COUNT_RECEIVER_ERROR",
        "PCIE_COUNT_BAD_TLP",
        "PCIE_COUNT_NAKS_SENT",
        "PCIE_COUNT_BAD_DLLP",
        "PCIE_COUNT_NON_FATAL_ERROR",
        "PCIE_COUNT_FATAL_ERROR",
        "PCIE_COUNT_UNSUPPORTED_REQ",
        "PCIE_COUNT_LCRC_ERROR",
        "PCIE_COUNT_LANE_ERROR",
    ),
    *_run(
        535,
        185,
        "POWER_AVERAGE",
        "POWER_INSTANT",
        "POWER_MIN_LIMIT",
        "POWER_MAX_LIMIT",
        "POWER_DEFAULT_LIMIT",
        "POWER_CURRENT_LIMIT",
        "ENERGY",
        "POWER_REQUESTED_LIMIT",
        "TEMPERATURE_SHUTDOWN_TLIMIT",
        "TEMPERATURE_SLOWDOWN_TLIMIT",
        "TEMPERATURE_MEM_MAX_TLIMIT",
        "TEMPERATURE_GPU_MAX_TLIMIT",
    ),
    *_run(555, 197, "PCIE_COUNT_TX_BYTES", "PCIE_COUNT_RX_BYTES"),
    *_run(
        560,
        201,
        "NVLINK_COUNT_XMIT_PACKETS",
        "NVLINK_COUNT_XMIT_BYTES",
        "NVLINK_COUNT_RCV_PACKETS",
        "NVLINK_COUNT_RCV_BYTES",
    ),
    *_run(
        560,
        206,
        "NVLINK_COUNT_MALFORMED_PACKET_ERRORS",
        "NVLINK_COUNT_BUFFER_OVERRUN_ERRORS",
        "NVLINK_COUNT_RCV_ERRORS",
        "NVLINK_COUNT_RCV_REMOTE_ERRORS",
        "NVLINK_COUNT_RCV_GENERAL_ERRORS",
        "NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS",
        "NVLINK_COUNT_XMIT_DISCARDS",
        "NVLINK_COUNT_LINK_RECOVERY_SUCCESSFUL_EVENTS",
        "NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS",
        "NVLINK_COUNT_LINK_RECOVERY_EVENTS",
    ),
    Field(symbol="NVLINK_COUNT_EFFECTIVE_ERRORS", id=219, since=560),
    Field(symbol="NVLINK_COUNT_SYMBOL_ERRORS", id=221, since=560),
    Field(symbol="GET_GPU_RECOVERY_ACTION", id=230, since=565),
    # CUDA 12.9 and 13.0 headers.
    Field(symbol="CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN", id=251, since=575, until=590),
    Field(symbol="CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN", id=252, since=575, until=590),
    Field(symbol="CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN", id=253, since=575, until=590),
    # CUDA 13.1 headers and later.
    Field(symbol="CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN", id=269, since=590),
    Field(symbol="CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN", id=270, since=590),
    Field(symbol="CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN", id=271, since=590),
)

SYMBOLS: frozenset[str] = frozenset(row.symbol for row in FIELDS)


def driver_branch(driver_version: str) -> int:
    """The branch of a driver: 550 for "550.163.01"; 0 where the version does not begin with a number."""
    head = driver_version.strip().partition(".")[0]
    return int(head) if head.isascii() and head.isdecimal() else 0


@functools.lru_cache(maxsize=8)
def _ids_of_branch(branch: int) -> Mapping[str, int]:
    return MappingProxyType(
        {row.symbol: row.id for row in FIELDS if row.since <= branch and (row.until is None or branch < row.until)}
    )


def field_ids(driver_version: str) -> Mapping[str, int]:
    """Symbol -> field id for the symbols that this driver can know.

    A version that cannot be read gets only the ids that every driver has.
    """
    return _ids_of_branch(driver_branch(driver_version))
