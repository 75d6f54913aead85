"""Which families of dcgm-exporter can be served, and from which readings?

Names, types and HELP texts are those of its `default-counters.csv`; names since DCGM 4.6 are those of its
`dcgm_fields.py`. What a family is made of follows from the `dcgm` column of the metric tables; three families that no
single reading stands for have rows of their own.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from claimscope.metrics.spec import Kind, Quantity, Scope, Type, View, family_name

NVLINK_BANDWIDTH: Final = "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL"
XID_ERRORS: Final = "DCGM_FI_DEV_XID_ERRORS"
TRANSMIT: Final = "nvlink_transmit_bytes"
RECEIVE: Final = "nvlink_receive_bytes"
LINK_AXIS: Final = "link"
PER_LINK: Final = MappingProxyType({TRANSMIT: "nvlink_link_transmit_bytes", RECEIVE: "nvlink_link_receive_bytes"})


class Source(enum.Enum):
    """What of the readings the number is."""

    GAUGE = "last value"
    COUNTER = "driver's counter"
    RATE = "rate of a counter over the last window"
    XID = "code of the last XID"
    LINK = "driver's counter of each NVLink"
    EVENTS = "what the agent saw itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One family."""

    name: str  # "DCGM_FI_DEV_FB_USED"
    renamed: str  # its name since DCGM 4.6; the same where that kept it
    type: Type
    help: str
    default: bool  # dcgm-exporter serves it unless it is told otherwise
    source: Source
    keys: tuple[str, ...]  # reading keys; the number is their sum
    scale: float  # base unit x scale = DCGM's unit
    whole: bool  # DCGM's field is an integer
    scope: Scope
    ours: tuple[str, ...]  # series of ours with the same figure
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Published:
    """A line of default-counters.csv."""

    type: Type
    help: str
    default: bool


def _on(help_text: str, kind: Type = Type.GAUGE) -> _Published:
    return _Published(type=kind, help=help_text, default=True)


def _off(help_text: str, kind: Type = Type.BARE_COUNTER) -> _Published:
    return _Published(type=kind, help=help_text, default=False)


_COUNTER: Final = Type.BARE_COUNTER
_PCIE_RATE = (
    "The rate of data {} over the PCIe bus - including both protocol headers and data payloads - in bytes per second."
)
_NVLINK_RATE = "The rate of data {} over NVLink not including protocol headers in bytes per second."

# In the file's order, which is the order of the page.
_PUBLISHED: Final[Mapping[str, _Published]] = MappingProxyType({
    "DCGM_FI_DEV_SM_CLOCK": _on("SM clock frequency (in MHz)."),
    "DCGM_FI_DEV_MEM_CLOCK": _on("Memory clock frequency (in MHz)."),
    "DCGM_FI_DEV_MEMORY_TEMP": _on("Memory temperature (in C)."),
    "DCGM_FI_DEV_GPU_TEMP": _on("GPU temperature (in C)."),
    "DCGM_FI_DEV_POWER_USAGE": _on("Power draw (in W)."),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": _on("Total energy consumption since boot (in mJ).", _COUNTER),
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": _on("Total number of PCIe retries.", _COUNTER),
    "DCGM_FI_DEV_GPU_UTIL": _on("GPU utilization (in %)."),
    "DCGM_FI_DEV_MEM_COPY_UTIL": _on("Memory utilization (in %)."),
    "DCGM_FI_DEV_ENC_UTIL": _on("Encoder utilization (in %)."),
    "DCGM_FI_DEV_DEC_UTIL": _on("Decoder utilization (in %)."),
    XID_ERRORS: _on("Value of the last XID error encountered."),
    "DCGM_FI_DEV_POWER_VIOLATION": _off("Throttling duration due to power constraints (in ns)."),
    "DCGM_FI_DEV_THERMAL_VIOLATION": _off("Throttling duration due to thermal constraints (in ns)."),
    "DCGM_FI_DEV_SYNC_BOOST_VIOLATION": _off("Throttling duration due to sync-boost constraints (in ns)."),
    "DCGM_FI_DEV_BOARD_LIMIT_VIOLATION": _off("Throttling duration due to board limit constraints (in ns)."),
    "DCGM_FI_DEV_LOW_UTIL_VIOLATION": _off("Throttling duration due to low utilization (in ns)."),
    "DCGM_FI_DEV_RELIABILITY_VIOLATION": _off("Throttling duration due to reliability constraints (in ns)."),
    "DCGM_EXP_CLOCK_EVENTS_COUNT": _off("Clock events observed during the configured time window.", Type.GAUGE),
    "DCGM_EXP_CLOCK_EVENTS_TOTAL": _off("Total clock events observed since exporter start (edge-counted)."),
    "DCGM_EXP_XID_ERRORS_COUNT": _off("XID errors observed during the configured time window.", Type.GAUGE),
    "DCGM_EXP_XID_ERRORS_TOTAL": _off("Total XID errors observed since exporter start."),
    "DCGM_EXP_GPU_HEALTH_STATUS": _off("Current DCGM-reported GPU health status.", Type.GAUGE),
    "DCGM_FI_DEV_FB_FREE": _on("Framebuffer memory free (in MiB)."),
    "DCGM_FI_DEV_FB_USED": _on("Framebuffer memory used (in MiB)."),
    "DCGM_FI_DEV_FB_RESERVED": _on("Framebuffer memory reserved (in MiB)."),
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": _off("Total number of single-bit volatile ECC errors."),
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": _off("Total number of double-bit volatile ECC errors."),
    "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL": _off("Total number of single-bit persistent ECC errors."),
    "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL": _off("Total number of double-bit persistent ECC errors."),
    "DCGM_FI_DEV_RETIRED_SBE": _off("Total number of retired pages due to single-bit errors."),
    "DCGM_FI_DEV_RETIRED_DBE": _off("Total number of retired pages due to double-bit errors."),
    "DCGM_FI_DEV_RETIRED_PENDING": _off("Total number of pages pending retirement."),
    "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL": _off("Total number of NVLink flow-control CRC errors."),
    "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL": _off("Total number of NVLink data CRC errors."),
    "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL": _off("Total number of NVLink retries."),
    "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL": _off("Total number of NVLink recovery errors."),
    NVLINK_BANDWIDTH: _on("Total number of NVLink bandwidth counters for all lanes."),
    "DCGM_FI_DEV_VGPU_LICENSE_STATUS": _on("vGPU License status"),
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": _on("Number of remapped rows for uncorrectable errors", _COUNTER),
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": _on("Number of remapped rows for correctable errors", _COUNTER),
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": _on("Whether remapping of rows has failed"),
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": _on("Ratio of time the graphics engine is active."),
    "DCGM_FI_PROF_SM_ACTIVE": _off("The ratio of cycles an SM has at least 1 warp assigned.", Type.GAUGE),
    "DCGM_FI_PROF_SM_OCCUPANCY": _off("The ratio of number of warps resident on an SM.", Type.GAUGE),
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": _on("Ratio of cycles the tensor (HMMA) pipe is active."),
    "DCGM_FI_PROF_DRAM_ACTIVE": _on(
        "Ratio of cycles the device memory interface is active sending or receiving data."
    ),
    "DCGM_FI_PROF_PIPE_FP64_ACTIVE": _off("Ratio of cycles the fp64 pipes are active.", Type.GAUGE),
    "DCGM_FI_PROF_PIPE_FP32_ACTIVE": _off("Ratio of cycles the fp32 pipes are active.", Type.GAUGE),
    "DCGM_FI_PROF_PIPE_FP16_ACTIVE": _off("Ratio of cycles the fp16 pipes are active.", Type.GAUGE),
    "DCGM_FI_PROF_PCIE_TX_BYTES": _on(_PCIE_RATE.format("transmitted")),
    "DCGM_FI_PROF_PCIE_RX_BYTES": _on(_PCIE_RATE.format("received")),
    # Not in the file; served by default because claims are asked for them.
    "DCGM_FI_PROF_NVLINK_TX_BYTES": _on(_NVLINK_RATE.format("transmitted")),
    "DCGM_FI_PROF_NVLINK_RX_BYTES": _on(_NVLINK_RATE.format("received")),
})  # fmt: skip

# Of the fields above and of those in the metric tables, those that DCGM 4.6 renamed.
_RENAMED: Final[Mapping[str, str]] = MappingProxyType({
    "DCGM_FI_DEV_PERSISTENCE_MODE": "DCGM_FI_DEV_GPU_PERSISTENCE_MODE",
    "DCGM_FI_DEV_MEMORY_TEMP": "DCGM_FI_DEV_MEMORY_TEMP_CELSIUS",
    "DCGM_FI_DEV_GPU_TEMP": "DCGM_FI_DEV_GPU_TEMP_CELSIUS",
    "DCGM_FI_DEV_MEM_MAX_OP_TEMP": "DCGM_FI_DEV_MEMORY_MAX_OP_TEMP_CELSIUS",
    "DCGM_FI_DEV_GPU_MAX_OP_TEMP": "DCGM_FI_DEV_GPU_MAX_OP_TEMP_CELSIUS",
    "DCGM_FI_DEV_GPU_TEMP_LIMIT": "DCGM_FI_DEV_GPU_TEMP_MARGIN_CELSIUS",
    "DCGM_FI_DEV_SLOWDOWN_TEMP": "DCGM_FI_DEV_GPU_TEMP_SLOWDOWN_CELSIUS",
    "DCGM_FI_DEV_SHUTDOWN_TEMP": "DCGM_FI_DEV_GPU_TEMP_SHUTDOWN_CELSIUS",
    "DCGM_FI_DEV_POWER_USAGE": "DCGM_FI_DEV_BOARD_POWER_WATTS",
    "DCGM_FI_DEV_POWER_USAGE_INSTANT": "DCGM_FI_DEV_BOARD_POWER_RAW_WATTS",
    "DCGM_FI_DEV_POWER_MGMT_LIMIT": "DCGM_FI_DEV_BOARD_POWER_LIMIT_REQUESTED_WATTS",
    "DCGM_FI_DEV_POWER_MGMT_LIMIT_MIN": "DCGM_FI_DEV_BOARD_POWER_LIMIT_MIN_WATTS",
    "DCGM_FI_DEV_POWER_MGMT_LIMIT_MAX": "DCGM_FI_DEV_BOARD_POWER_LIMIT_MAX_WATTS",
    "DCGM_FI_DEV_POWER_MGMT_LIMIT_DEF": "DCGM_FI_DEV_BOARD_POWER_LIMIT_DEFAULT_WATTS",
    "DCGM_FI_DEV_ENFORCED_POWER_LIMIT": "DCGM_FI_DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS",
    "DCGM_FI_DEV_PSTATE": "DCGM_FI_DEV_GPU_PSTATE",
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": "DCGM_FI_DEV_PCIE_REPLAY_TOTAL",
    "DCGM_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS": "DCGM_FI_DEV_PCIE_CORRECTABLE_ERROR_TOTAL",
    "DCGM_FI_DEV_GPU_UTIL": "DCGM_FI_DEV_GPU_UTIL_RATIO",
    XID_ERRORS: "DCGM_FI_DEV_XID_ERROR",
    "DCGM_FI_DEV_ECC_CURRENT": "DCGM_FI_DEV_ECC_MODE",
    "DCGM_FI_DEV_THRESHOLD_SRM": "DCGM_FI_DEV_SRAM_EXCEEDED",
    **{
        f"DCGM_FI_DEV_BANKS_REMAP_ROWS_AVAIL_{left}": f"DCGM_FI_DEV_BANK_REMAP_AVAIL_{left}"
        for left in ("MAX", "HIGH", "PARTIAL", "LOW", "NONE")
    },
    "DCGM_FI_DEV_RETIRED_SBE": "DCGM_FI_DEV_PAGE_RETIRED_SBE_TOTAL",
    "DCGM_FI_DEV_RETIRED_DBE": "DCGM_FI_DEV_PAGE_RETIRED_DBE_TOTAL",
    "DCGM_FI_DEV_RETIRED_PENDING": "DCGM_FI_DEV_PAGE_RETIRED_PENDING",
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": "DCGM_FI_DEV_ROW_REMAP_UNCORRECTABLE_TOTAL",
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": "DCGM_FI_DEV_ROW_REMAP_CORRECTABLE_TOTAL",
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": "DCGM_FI_DEV_ROW_REMAP_FAILED",
    "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL": "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_TOTAL",
    "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL": "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_TOTAL",
    "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL": "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_TOTAL",
    "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL": "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_TOTAL",
    "DCGM_FI_DEV_NVLINK_ECC_DATA_ERROR_COUNT_TOTAL": "DCGM_FI_DEV_NVLINK_ECC_ERROR_TOTAL",
    NVLINK_BANDWIDTH: "DCGM_FI_DEV_NVLINK_THROUGHPUT_TOTAL",
    "DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES": "DCGM_FI_DEV_NVLINK_TX_BYTES_TOTAL",
    "DCGM_FI_DEV_NVLINK_COUNT_RX_BYTES": "DCGM_FI_DEV_NVLINK_RX_BYTES_TOTAL",
    "DCGM_FI_DEV_NVLINK_COUNT_RX_MALFORMED_PACKET_ERRORS": "DCGM_FI_DEV_NVLINK_RX_PACKET_MALFORMED_TOTAL",
    "DCGM_FI_DEV_NVLINK_COUNT_RX_BUFFER_OVERRUN_ERRORS": "DCGM_FI_DEV_NVLINK_RX_PACKET_DROPPED_TOTAL",
    "DCGM_FI_DEV_NVLINK_COUNT_RX_ERRORS": "DCGM_FI_DEV_NVLINK_RX_ERROR_TOTAL",
    "DCGM_FI_DEV_NVLINK_COUNT_RX_REMOTE_ERRORS": "DCGM_FI_DEV_NVLINK_RX_REMOTE_ERROR_TOTAL",
    "DCGM_FI_DEV_NVLINK_COUNT_RX_GENERAL_ERRORS": "DCGM_FI_DEV_NVLINK_RX_GENERAL_ERROR_TOTAL",
    "DCGM_FI_DEV_NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS": "DCGM_FI_DEV_NVLINK_INTEGRITY_ERROR_TOTAL",
    "DCGM_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_SUCCESSFUL_EVENTS": "DCGM_FI_DEV_NVLINK_RECOVERY_SUCCESSFUL_TOTAL",
    "DCGM_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS": "DCGM_FI_DEV_NVLINK_RECOVERY_FAILED_TOTAL",
    "DCGM_FI_DEV_NVLINK_COUNT_RX_SYMBOL_ERRORS": "DCGM_FI_DEV_NVLINK_RX_SYMBOL_ERROR_TOTAL",
    "DCGM_FI_DEV_NVLINK_COUNT_EFFECTIVE_ERRORS": "DCGM_FI_DEV_NVLINK_EFFECTIVE_ERROR_TOTAL",
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": "DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO",
    "DCGM_FI_PROF_SM_ACTIVE": "DCGM_FI_PROF_SM_UTIL_RATIO",
    "DCGM_FI_PROF_SM_OCCUPANCY": "DCGM_FI_PROF_SM_OCCUPANCY_RATIO",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": "DCGM_FI_PROF_TENSOR_UTIL_RATIO",
    "DCGM_FI_PROF_DRAM_ACTIVE": "DCGM_FI_PROF_DRAM_UTIL_RATIO",
    "DCGM_FI_PROF_PIPE_FP64_ACTIVE": "DCGM_FI_PROF_FP64_UTIL_RATIO",
    "DCGM_FI_PROF_PIPE_FP32_ACTIVE": "DCGM_FI_PROF_FP32_UTIL_RATIO",
    "DCGM_FI_PROF_PIPE_FP16_ACTIVE": "DCGM_FI_PROF_FP16_UTIL_RATIO",
})  # fmt: skip

_SLIDING = "of the last five minutes, kept in memory as there; "
_LINK_NOTE = (
    "one line per NVLink (`nvlink=\"1\"`, `gpu_uuid`, `model_name`) with the collector `nvlink-per-link`; from GPUs "
    "before NVLink 5 too"
)
_NO_PCIE_HEADERS = "the driver's byte counters in place of a profiling sample"
_NOTES: Final[Mapping[str, str]] = MappingProxyType({
    "DCGM_FI_DEV_GPU_UTIL": "on a MIG instance (Hopper and newer) the time in which its graphics and compute engine "
    "was active, where dcgm-exporter has nothing; in percent under its new name too, as in DCGM 4.6",
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": "since the driver was loaded",
    XID_ERRORS: "0 while there was none; `err_code` and `err_msg` as labels, the words from NVIDIA's catalogue as in "
    "health.md; stays at the last code, so alert on `gpu_xid_errors_total`",
    "DCGM_FI_DEV_FB_RESERVED": "what driver and firmware keep, not what a claim reserves",
    NVLINK_BANDWIDTH: "a rate in 1,024,000 bytes per second, both directions; dcgm-exporter up to 4.8.2 called it a "
    "counter, which it never was",
    "DCGM_FI_DEV_VGPU_LICENSE_STATUS": "0 where nothing needs a licence, as there",
    "DCGM_EXP_CLOCK_EVENTS_COUNT": _SLIDING + "samples in which the reason held: one a second, where dcgm-exporter has "
    "one per `--collect-interval`",
    "DCGM_EXP_CLOCK_EVENTS_TOTAL": "since the agent started; a reason that comes and goes within a second is missed",
    "DCGM_EXP_XID_ERRORS_COUNT": _SLIDING + "0 without `xid` where there was none",
    "DCGM_EXP_XID_ERRORS_TOTAL": "each code that was seen, over restarts of the agent too",
    "DCGM_EXP_GPU_HEALTH_STATUS": "the findings of health.md that DCGM has a code for, 10 for degraded and 20 for "
    "worse; the watches PCIE, NVLINK, MEM, THERMAL and POWER, on whole GPUs: no rule stands for the others",
    "DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES": _LINK_NOTE,
    "DCGM_FI_DEV_NVLINK_COUNT_RX_BYTES": _LINK_NOTE,
    "DCGM_FI_PROF_PCIE_TX_BYTES": _NO_PCIE_HEADERS,
    "DCGM_FI_PROF_PCIE_RX_BYTES": _NO_PCIE_HEADERS,
    "DCGM_FI_PROF_NVLINK_TX_BYTES": "with `gpu_pair`; not among dcgm-exporter's defaults",
    "DCGM_FI_PROF_NVLINK_RX_BYTES": "with `gpu_pair`; not among dcgm-exporter's defaults",
})  # fmt: skip

_EVENTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({  # with the figures of ours beside them
    "DCGM_EXP_CLOCK_EVENTS_COUNT": ("gpu_clock_event_seconds_total", "gpu_throttle_seconds_total"),
    "DCGM_EXP_CLOCK_EVENTS_TOTAL": ("gpu_clock_event_seconds_total", "gpu_throttle_seconds_total"),
    "DCGM_EXP_XID_ERRORS_COUNT": ("gpu_xid_errors_total",),
    "DCGM_EXP_XID_ERRORS_TOTAL": ("gpu_xid_errors_total",),
    "DCGM_EXP_GPU_HEALTH_STATUS": ("gpu_health", "gpu_health_finding_info"),
})

_DOUBLES: Final = ("DCGM_FI_PROF_", "DCGM_FI_DEV_POWER_", "DCGM_FI_DEV_ENFORCED_POWER_LIMIT")


def _row(
    name: str, source: Source, keys: tuple[str, ...], *, scale: float = 1.0, scope: Scope = Scope.GPU,
    ours: tuple[str, ...] = (), help_text: str = "",
) -> Row:  # fmt: skip
    counter = source in (Source.COUNTER, Source.LINK)
    published = _PUBLISHED.get(name) or _off(help_text, Type.BARE_COUNTER if counter else Type.GAUGE)
    floating = name.startswith(_DOUBLES) and source is Source.GAUGE
    return Row(
        name=name,
        renamed=_RENAMED.get(name, name),
        type=published.type,
        help=published.help,
        default=published.default,
        source=source,
        keys=keys,
        scale=scale,
        whole=not floating,
        scope=scope,
        ours=ours,
        note=_NOTES.get(name, ""),
    )


def _spelled(view: View) -> str:
    """Our family with the labels that tell it from others, as a query."""
    labels = ",".join(f'{name}="{value}"' for name, value in view.labels.items())
    return family_name("gpu", view) + (f"{{{labels}}}" if labels else "")


def _of_view(quantity: Quantity, view: View, name: str) -> Row:
    value = Source.COUNTER if quantity.kind is Kind.COUNTER else Source.GAUGE
    source = Source.LINK if quantity.axis == LINK_AXIS else Source.RATE if view.dcgm_rate else value
    return _row(
        name,
        source,
        (quantity.key,),
        scale=view.dcgm_scale,
        scope=quantity.scope,
        ours=(_spelled(view),),
        help_text=view.help,
    )


def rows(quantities: Sequence[Quantity]) -> tuple[Row, ...]:
    """Every family that can be served, in the order of dcgm-exporter's file, then in that of the tables."""
    made = {
        NVLINK_BANDWIDTH: _row(
            NVLINK_BANDWIDTH, Source.RATE, (TRANSMIT, RECEIVE), scale=1 / 1_024_000,
            ours=("gpu_nvlink_transmit_bytes_total", "gpu_nvlink_receive_bytes_total"),
        ),
        XID_ERRORS: _row(XID_ERRORS, Source.XID, (), ours=("gpu_xid_errors_total",)),
    } | {name: _row(name, Source.EVENTS, (), ours=ours) for name, ours in _EVENTS.items()}  # fmt: skip
    for quantity in quantities:
        for view in quantity.views:
            if view.dcgm is not None and quantity.kind is not Kind.TEXT and quantity.axis in (None, LINK_AXIS):
                made.setdefault(view.dcgm, _of_view(quantity, view, view.dcgm))
    order = {name: place for place, name in enumerate(_PUBLISHED)}
    return tuple(sorted(made.values(), key=lambda row: order.get(row.name, len(order))))


def rate_periods(chosen: Iterable[Row], quantities: Sequence[Quantity]) -> dict[str, float]:
    """Quantity key -> seconds between two readings, of every counter that is shown as a rate."""
    wanted = {key for row in chosen if row.source is Source.RATE for key in row.keys}
    wanted |= {PER_LINK[key] for key in wanted if key in PER_LINK}
    return {quantity.key: quantity.tier.value for quantity in quantities if quantity.key in wanted}


# What dcgm-exporter can serve and this cannot, with the reason and what there is instead.
ABSENT: Final[Mapping[str, str]] = MappingProxyType({
    "DCGM_FI_DEV_PCIE_TX_THROUGHPUT, DCGM_FI_DEV_PCIE_RX_THROUGHPUT": "the call behind them blocks for 20 ms, and DCGM "
    "does not answer them any more: use `DCGM_FI_PROF_PCIE_TX_BYTES` and `_RX_BYTES`",
    "`DCGM_FI_PROF_*` of Ampere and older": "only DCGM's own profiling module knows them; NVML has them from Hopper on",
    "DCGM_EXP_P2P_STATUS": "`gpu_nvlink_up{link}` and `gpu_nvlink_remote{link}`",
    "DCGM_FI_DEV_GET_GPU_RECOVERY_ACTION": "a word, not a number: `gpu_recovery_action{action}`",
    "DCGM_FI_DEV_FAN_SPEED": "there is one figure per fan: `gpu_fan_speed_ratio{fan}`",
    "DCGM_FI_DEV_NVLINK_BANDWIDTH_L*": "per link: `DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES{nvlink}` and `_RX_BYTES`, or "
    "`gpu_nvlink_link_transmit_bytes_total{link}`, with the collector `nvlink-per-link`",
    "lines of NVSwitches and CPUs (`nvswitch=`, `cpu=`, `cpucore=`)": "neither is read: NVML knows GPUs only",
    "lines of one pod of a shared GPU (`vgpu=`, `pod_uid=`)": "each holder's own part is in `dra_claim_gpu_*` and "
    "`pod_gpu_*`, without `--kubernetes-virtual-gpus`",
    "the label `hpc_job`": "jobs of Slurm are read from no directory; a claim names its workload in `dra_claim_info`",
})  # fmt: skip
