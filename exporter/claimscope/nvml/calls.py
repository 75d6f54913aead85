"""The NVML getters we use, as a table: symbol, arguments and where the numbers are in the answer.

The sampler compiles each row into one pre-bound ctypes call with reused output buffers; nothing here calls NVML.
Rows are named after their symbol without "nvmlDeviceGet"; where constant arguments choose between several numbers,
they follow behind slashes ("ClockInfo/sm").
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pynvml

COutput = type[ctypes.Structure] | type["ctypes._SimpleCData[Any]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One C function `nvmlReturn_t symbol(handle, args..., [axis], out*...)`."""

    symbol: str
    outs: tuple[COutput, ...]  # one per output pointer, in order
    args: tuple[int, ...] = ()  # constant unsigned ints between the handle and the outputs
    axis: bool = False  # the axis value (fan, link) is one more unsigned int behind args
    axis_member: str | None = None  # or the axis value is written into this member of outs[0] before each call
    version: int | None = None  # written into outs[0].version before each call
    # member -> (index into outs, attribute of the structure; None for a plain number)
    members: Mapping[str, tuple[int, str | None]] = field(default_factory=lambda: {"value": (0, None)})


# Values of nvml.h enumerations.
CLOCKS: Mapping[str, int] = MappingProxyType({"graphics": 0, "sm": 1, "memory": 2, "video": 3})  # nvmlClockType_t
TEMPERATURE_THRESHOLDS: Mapping[str, int] = MappingProxyType(  # nvmlTemperatureThresholds_t
    {"shutdown": 0, "slowdown": 1, "memory_max": 2, "gpu_max": 3}
)
ECC_TYPES: Mapping[str, int] = MappingProxyType({"corrected": 0, "uncorrected": 1})  # nvmlMemoryErrorType_t
ECC_COUNTERS: Mapping[str, int] = MappingProxyType({"volatile": 0, "aggregate": 1})  # nvmlEccCounterType_t
ECC_LOCATIONS: Mapping[str, int] = MappingProxyType(  # nvmlMemoryLocation_t
    {
        "l1_cache": 0,
        "l2_cache": 1,
        "dram": 2,
        "register_file": 3,
        "texture_memory": 4,
        "texture_shared": 5,
        "cbu": 6,
        "sram": 7,
    }
)

# pynvml's default, c_nvmlGpuFabricInfoV_t, is version 2 and lacks the health summary; version 3 is that of nvml.h.
FABRIC_INFO_VERSION = pynvml.nvmlGpuFabricInfo_v3
MEMORY_VERSION = pynvml.nvmlMemory_v2


def _number(symbol: str, *args: int, out: COutput = ctypes.c_uint, axis: bool = False) -> Call:
    return Call(symbol=symbol, outs=(out,), args=args, axis=axis)


def _pair(symbol: str, first: str, second: str) -> Call:
    return Call(symbol=symbol, outs=(ctypes.c_uint, ctypes.c_uint), members={first: (0, None), second: (1, None)})


def _struct(symbol: str, out: COutput, members: Mapping[str, str], version: int | None = None) -> Call:
    return Call(
        symbol=symbol,
        outs=(out,),
        version=version,
        members={name: (0, attribute) for name, attribute in members.items()},
    )


def _rows() -> dict[str, Call]:
    rows: dict[str, Call] = {
        # Utilization: percent over the driver's last sample period.
        "UtilizationRates": _struct(
            "nvmlDeviceGetUtilizationRates", pynvml.c_nvmlUtilization_t, {"gpu": "gpu", "memory": "memory"}
        ),
        "EncoderUtilization": _pair("nvmlDeviceGetEncoderUtilization", "value", "sampling_period_us"),
        "DecoderUtilization": _pair("nvmlDeviceGetDecoderUtilization", "value", "sampling_period_us"),
        "JpgUtilization": _pair("nvmlDeviceGetJpgUtilization", "value", "sampling_period_us"),
        "OfaUtilization": _pair("nvmlDeviceGetOfaUtilization", "value", "sampling_period_us"),
        # Memory: bytes.
        "MemoryInfo_v2": _struct(
            "nvmlDeviceGetMemoryInfo_v2",
            pynvml.c_nvmlMemory_v2_t,
            {"total": "total", "reserved": "reserved", "free": "free", "used": "used"},
            version=MEMORY_VERSION,
        ),
        "BAR1MemoryInfo": _struct(
            "nvmlDeviceGetBAR1MemoryInfo",
            pynvml.c_nvmlBAR1Memory_t,
            {"total": "bar1Total", "free": "bar1Free", "used": "bar1Used"},
        ),
        # Power: milliwatts; energy: millijoules since driver load.
        "PowerUsage": _number("nvmlDeviceGetPowerUsage"),
        "TotalEnergyConsumption": _number("nvmlDeviceGetTotalEnergyConsumption", out=ctypes.c_ulonglong),
        "PowerManagementLimit": _number("nvmlDeviceGetPowerManagementLimit"),
        "PowerManagementDefaultLimit": _number("nvmlDeviceGetPowerManagementDefaultLimit"),
        "EnforcedPowerLimit": _number("nvmlDeviceGetEnforcedPowerLimit"),
        "PowerManagementLimitConstraints": _pair("nvmlDeviceGetPowerManagementLimitConstraints", "min", "max"),
        # Clock-event reasons: a bit mask. The second is the name before R535.
        "CurrentClocksEventReasons": _number("nvmlDeviceGetCurrentClocksEventReasons", out=ctypes.c_ulonglong),
        "CurrentClocksThrottleReasons": _number("nvmlDeviceGetCurrentClocksThrottleReasons", out=ctypes.c_ulonglong),
        "PerformanceState": _number("nvmlDeviceGetPerformanceState"),
        # Temperatures: degrees Celsius. sensorType 0 is the GPU, which a zeroed structure asks for.
        "TemperatureV": _struct(
            "nvmlDeviceGetTemperatureV",
            pynvml.c_nvmlTemperature_v1_t,
            {"value": "temperature"},
            version=pynvml.nvmlTemperature_v1,
        ),
        "Temperature": _number("nvmlDeviceGetTemperature", 0),
        "MarginTemperature": _struct(
            "nvmlDeviceGetMarginTemperature",
            pynvml.c_nvmlMarginTemperature_v1_t,
            {"value": "marginTemperature"},
            version=pynvml.nvmlMarginTemperature_v1,
        ),
        # Fans. NumFans gives the values of the axis.
        "NumFans": _number("nvmlDeviceGetNumFans"),
        "FanSpeed_v2": _number("nvmlDeviceGetFanSpeed_v2", axis=True),
        "FanSpeedRPM": Call(
            symbol="nvmlDeviceGetFanSpeedRPM",
            outs=(pynvml.c_nvmlFanSpeedInfo_t,),
            axis_member="fan",
            version=pynvml.nvmlFanSpeedInfo_v1,
            members={"value": (0, "speed")},
        ),
        # PCIe.
        "CurrPcieLinkGeneration": _number("nvmlDeviceGetCurrPcieLinkGeneration"),
        "MaxPcieLinkGeneration": _number("nvmlDeviceGetMaxPcieLinkGeneration"),
        "CurrPcieLinkWidth": _number("nvmlDeviceGetCurrPcieLinkWidth"),
        "MaxPcieLinkWidth": _number("nvmlDeviceGetMaxPcieLinkWidth"),
        "PcieReplayCounter": _number("nvmlDeviceGetPcieReplayCounter"),
        # NVLink; INVALID_ARGUMENT past the last link.
        "NvLinkState": _number("nvmlDeviceGetNvLinkState", axis=True),
        "NvLinkRemoteDeviceType": _number("nvmlDeviceGetNvLinkRemoteDeviceType", axis=True),
        "GpuFabricInfoV": _struct(
            "nvmlDeviceGetGpuFabricInfoV",
            pynvml.c_nvmlGpuFabricInfo_v3_t,
            {
                "state": "state",
                "status": "status",
                "clique_id": "cliqueId",
                "health_mask": "healthMask",
                "health_summary": "healthSummary",
            },
            version=FABRIC_INFO_VERSION,
        ),
        # Reliability. SramEccErrorStatus needs root.
        "SramEccErrorStatus": _struct(
            "nvmlDeviceGetSramEccErrorStatus",
            pynvml.c_nvmlEccSramErrorStatus_v1_t,
            {
                "aggregate_parity": "aggregateUncParity",
                "aggregate_secded": "aggregateUncSecDed",
                "aggregate_corrected": "aggregateCor",
                "volatile_parity": "volatileUncParity",
                "volatile_secded": "volatileUncSecDed",
                "volatile_corrected": "volatileCor",
                "l2": "aggregateUncBucketL2",
                "sm": "aggregateUncBucketSm",
                "pcie": "aggregateUncBucketPcie",
                "mcu": "aggregateUncBucketMcu",
                "other": "aggregateUncBucketOther",
                "threshold_exceeded": "bThresholdExceeded",
            },
            version=pynvml.nvmlEccSramErrorStatus_v1,
        ),
        "RemappedRows": Call(
            symbol="nvmlDeviceGetRemappedRows",
            outs=(ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint),
            members={
                "corrected": (0, None),
                "uncorrected": (1, None),
                "pending": (2, None),
                "failure": (3, None),
            },
        ),
        "RowRemapperHistogram": _struct(
            "nvmlDeviceGetRowRemapperHistogram",
            pynvml.c_nvmlRowRemapperHistogramValues,
            {"max": "max", "high": "high", "partial": "partial", "low": "low", "none": "none"},
        ),
        "RepairStatus": _struct(
            "nvmlDeviceGetRepairStatus",
            pynvml.c_nvmlRepairStatus_t,
            {"channel": "bChannelRepairPending", "tpc": "bTpcRepairPending"},
            version=pynvml.nvmlRepairStatus_v1,
        ),
        "RetiredPagesPendingStatus": _number("nvmlDeviceGetRetiredPagesPendingStatus"),
        # Licence of the guest's vGPU: NVML lists one feature there, and none where nothing needs a licence.
        "GridLicensableFeatures_v4": _struct(
            "nvmlDeviceGetGridLicensableFeatures_v4",
            pynvml.c_nvmlGridLicensableFeatures_v4_t,
            {"value": "gridLicensableFeatures[0].featureState"},
        ),
        # Modes.
        "PersistenceMode": _number("nvmlDeviceGetPersistenceMode"),
        "ComputeMode": _number("nvmlDeviceGetComputeMode"),
        "EccMode": _pair("nvmlDeviceGetEccMode", "current", "pending"),
        "MigMode": _pair("nvmlDeviceGetMigMode", "current", "pending"),
    }
    for name, clock in CLOCKS.items():
        rows[f"ClockInfo/{name}"] = _number("nvmlDeviceGetClockInfo", clock)
        rows[f"MaxClockInfo/{name}"] = _number("nvmlDeviceGetMaxClockInfo", clock)
    for name, threshold in TEMPERATURE_THRESHOLDS.items():
        rows[f"TemperatureThreshold/{name}"] = _number("nvmlDeviceGetTemperatureThreshold", threshold)
    for counter_name, counter in ECC_COUNTERS.items():
        for type_name, error_type in ECC_TYPES.items():
            rows[f"TotalEccErrors/{type_name}/{counter_name}"] = _number(
                "nvmlDeviceGetTotalEccErrors", error_type, counter, out=ctypes.c_ulonglong
            )
            for location_name, location in ECC_LOCATIONS.items():
                rows[f"MemoryErrorCounter/{type_name}/{counter_name}/{location_name}"] = _number(
                    "nvmlDeviceGetMemoryErrorCounter",
                    error_type,
                    counter,
                    location,
                    out=ctypes.c_ulonglong,
                )
    return rows


CALLS: Mapping[str, Call] = MappingProxyType(_rows())
