"""Where does each number lie in the state file that the simulated libnvidia-ml answers from?

These ctypes structures are the only description: Python writes through their offsets, and `c_header` prints them
as the header that nvml.c is compiled with.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

MAGIC: Final = 0x31304D4953534C43  # changes with the layout
MAX_GPUS: Final = 8
MIG_SLOTS: Final = 7  # MIG devices per GPU
MAX_ENTITIES: Final = MAX_GPUS * (1 + MIG_SLOTS)
SLOTS: Final = 4096  # hash table of answers per entity, a power of two
STRINGS: Final = 32
STRING_BYTES: Final = 96
PROCESSES: Final = 32
SAMPLES: Final = 120
SAMPLE_KINDS: Final = 10
EVENTS: Final = 256
NAME_BYTES: Final = 80

FIELD_SPACE: Final = 0x10000  # key of field id n: FIELD_SPACE | n, argument: scope
GPM_SPACE: Final = 0x20000  # key of GPM metric n: GPM_SPACE | n
ANY_SCOPE: Final = 0xFFFFFFFE  # a field that looks at no scope

FLAG_HANG: Final = 1
FLAG_CRASH: Final = 2

# NVML's value types; STRING is ours: the value is the index of a string.
DOUBLE, UNSIGNED, ULONG, ULONG_LONG, LONG_LONG, SIGNED, USHORT = range(7)
STRING: Final = 15

# What moves from step to step. Names with _total are integrals of the rate before it.
VARIABLES: Final = (
    "power_milliwatts",
    "power_average_milliwatts",
    "energy_millijoules",
    "gpu_percent",
    "memory_percent",
    "encoder_percent",
    "decoder_percent",
    "jpeg_percent",
    "ofa_percent",
    "temperature",
    "memory_temperature",
    "margin_temperature",
    "graphics_megahertz",
    "sm_megahertz",
    "memory_megahertz",
    "video_megahertz",
    "event_reasons",
    "performance_state",
    "memory_used",
    "memory_free",
    "memory_used_v1",
    "bar1_used",
    "bar1_free",
    "fan_percent",
    "fan_rpm",
    "pcie_tx_kibibytes_per_second",
    "pcie_rx_kibibytes_per_second",
    "pcie_tx_total",
    "pcie_rx_total",
    "nvlink_tx_total",
    "nvlink_rx_total",
    "power_cap_total",
    "software_thermal_total",
    "hardware_thermal_total",
    "power_brake_total",
    "graphics_total",
    "sm_total",
    "occupancy_total",
    "tensor_total",
    "dram_total",
    "fp64_total",
    "fp32_total",
    "fp16_total",
    "integer_total",
    "encoder_total",
    "decoder_total",
    "jpeg_total",
    "ofa_total",
    "uptime_microseconds",
)
VARIABLE_INDEX: Final = {name: index for index, name in enumerate(VARIABLES)}

# Every exported function that answers for a device; its place is its key.
FUNCTIONS: Final = (
    "nvmlDeviceGetIndex",
    "nvmlDeviceGetMinorNumber",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetSerial",
    "nvmlDeviceGetBrand",
    "nvmlDeviceGetArchitecture",
    "nvmlDeviceGetBoardPartNumber",
    "nvmlDeviceGetVbiosVersion",
    "nvmlDeviceGetInforomVersion",
    "nvmlDeviceGetInforomImageVersion",
    "nvmlDeviceGetGspFirmwareVersion",
    "nvmlDeviceGetGspFirmwareMode",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetPciInfo",
    "nvmlDeviceGetBoardId",
    "nvmlDeviceGetModuleId",
    "nvmlDeviceGetMultiGpuBoard",
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetHandleByPciBusId",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetBAR1MemoryInfo",
    "nvmlDeviceGetConfComputeMemSizeInfo",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetEncoderUtilization",
    "nvmlDeviceGetDecoderUtilization",
    "nvmlDeviceGetJpgUtilization",
    "nvmlDeviceGetOfaUtilization",
    "nvmlDeviceGetSamples",
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
    "nvmlDeviceGetMPSComputeRunningProcesses",
    "nvmlDeviceGetProcessUtilization",
    "nvmlDeviceGetProcessesUtilizationInfo",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetPowerManagementLimit",
    "nvmlDeviceGetPowerManagementDefaultLimit",
    "nvmlDeviceGetPowerManagementLimitConstraints",
    "nvmlDeviceGetPowerManagementMode",
    "nvmlDeviceGetEnforcedPowerLimit",
    "nvmlDeviceGetPowerSource",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetMaxClockInfo",
    "nvmlDeviceGetMaxCustomerBoostClock",
    "nvmlDeviceGetApplicationsClock",
    "nvmlDeviceGetDefaultApplicationsClock",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetSupportedClocksEventReasons",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetTemperatureThreshold",
    "nvmlDeviceGetMarginTemperature",
    "nvmlDeviceGetNumFans",
    "nvmlDeviceGetFanSpeed",
    "nvmlDeviceGetFanSpeed_v2",
    "nvmlDeviceGetFanSpeedRPM",
    "nvmlDeviceGetMaxPcieLinkGeneration",
    "nvmlDeviceGetGpuMaxPcieLinkGeneration",
    "nvmlDeviceGetCurrPcieLinkGeneration",
    "nvmlDeviceGetMaxPcieLinkWidth",
    "nvmlDeviceGetCurrPcieLinkWidth",
    "nvmlDeviceGetPcieThroughput",
    "nvmlDeviceGetPcieReplayCounter",
    "nvmlDeviceGetPcieSpeed",
    "nvmlDeviceGetPcieLinkMaxSpeed",
    "nvmlDeviceGetNvLinkState",
    "nvmlDeviceGetNvLinkVersion",
    "nvmlDeviceGetNvLinkCapability",
    "nvmlDeviceGetNvLinkRemotePciInfo",
    "nvmlDeviceGetNvLinkRemoteDeviceType",
    "nvmlDeviceGetNvLinkErrorCounter",
    "nvmlDeviceGetGpuFabricInfo",
    "nvmlDeviceGetGpuFabricInfoV",
    "nvmlDeviceGetEccMode",
    "nvmlDeviceGetDefaultEccMode",
    "nvmlDeviceGetTotalEccErrors",
    "nvmlDeviceGetMemoryErrorCounter",
    "nvmlDeviceGetSramEccErrorStatus",
    "nvmlDeviceGetRemappedRows",
    "nvmlDeviceGetRowRemapperHistogram",
    "nvmlDeviceGetRetiredPages",
    "nvmlDeviceGetRetiredPagesPendingStatus",
    "nvmlDeviceGetRepairStatus",
    "nvmlDeviceGetPerformanceState",
    "nvmlDeviceGetPersistenceMode",
    "nvmlDeviceGetComputeMode",
    "nvmlDeviceGetDisplayMode",
    "nvmlDeviceGetDisplayActive",
    "nvmlDeviceGetAccountingMode",
    "nvmlDeviceGetAccountingBufferSize",
    "nvmlDeviceGetVirtualizationMode",
    "nvmlDeviceGetGridLicensableFeatures",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
    "nvmlDeviceIsMigDeviceHandle",
    "nvmlDeviceGetGpuInstanceId",
    "nvmlDeviceGetComputeInstanceId",
    "nvmlDeviceGetAttributes_v2",
    "nvmlDeviceGetGpuInstanceById",
    "nvmlDeviceGetGpuInstanceProfileInfo",
    "nvmlDeviceGetGpuInstances",
    "nvmlDeviceRegisterEvents",
    "nvmlDeviceGetSupportedEventTypes",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetNumaNodeId",
    "nvmlDeviceGetTopologyCommonAncestor",
    "nvmlDeviceGetP2PStatus",
    "nvmlDeviceGetCpuAffinity",
    "nvmlDeviceGetMemoryAffinity",
    "nvmlDeviceGetViolationStatus",
    "nvmlDeviceGetPlatformInfo",
    "nvmlDeviceGetMemoryBusWidth",
    "nvmlDeviceGetNumGpuCores",
    "nvmlDeviceGetIrqNum",
    "nvmlDeviceGetAutoBoostedClocksEnabled",
    "nvmlGpmSampleGet",
    "nvmlGpmMigSampleGet",
    "nvmlGpmQueryDeviceSupport",
    "nvmlGpmQueryIfStreamingEnabled",
)
FUNCTION_KEYS: Final = {name: index + 1 for index, name in enumerate(FUNCTIONS)}

u32 = ctypes.c_uint32
u64 = ctypes.c_uint64
i64 = ctypes.c_int64
f64 = ctypes.c_double


class Slot(ctypes.Structure):
    """One answer: `base + scale * variable`, or the return code that stands instead."""

    _fields_ = [
        ("key", u32),
        ("arg", u32),
        ("ret", ctypes.c_uint16),
        ("type", ctypes.c_uint16),
        ("variable", ctypes.c_int32),
        ("scale", f64),
        ("base", f64),
    ]


class Variable(ctypes.Structure):
    """A number now, and at the end of the step; in between it is interpolated and never passes the end."""

    _fields_ = [("now", f64), ("next", f64)]


class Override(ctypes.Structure):
    """What a fault makes of one function of one entity."""

    _fields_ = [("ret", u32), ("flags", u32), ("delay_ns", u64)]


class Process(ctypes.Structure):
    """One process on an entity."""

    _fields_ = [
        ("pid", u32),
        ("gi", u32),
        ("ci", u32),
        ("kind", u32),
        ("used", u64),
        ("sm", u32),
        ("mem", u32),
        ("enc", u32),
        ("dec", u32),
    ]


class Sample(ctypes.Structure):
    """One entry of the ring that nvmlDeviceGetSamples reads."""

    _fields_ = [("timestamp_us", u64), ("value", f64 * SAMPLE_KINDS)]


class Event(ctypes.Structure):
    """One entry of the event ring; `number` is 1 plus its place since the start."""

    _fields_ = [
        ("number", u64),
        ("entity", u32),
        ("reserved", u32),
        ("type", u64),
        ("data", u64),
        ("gi", u32),
        ("ci", u32),
    ]


class Header(ctypes.Structure):
    """What holds for the whole node."""

    _fields_ = [
        ("magic", u64),
        ("sequence", u64),  # odd while a step is being written
        ("monotonic_ns", i64),  # when the step began; 0: time stands still
        ("step_ns", i64),
        ("time_ns", i64),  # simulated time at which the step began
        ("wall_ns", i64),
        ("init_return", u32),  # what nvmlInit answers
        ("gpu_count", u32),
        ("driver_generation", u32),  # rises when the driver is loaded again
        ("cuda_version", u32),
        ("event_head", u64),  # number of the newest event
        ("driver_version", ctypes.c_char * NAME_BYTES),
        ("nvml_version", ctypes.c_char * NAME_BYTES),
        ("event", Event * EVENTS),
    ]


class EntityRecord(ctypes.Structure):
    """Everything about one GPU or MIG device."""

    _fields_ = [
        ("present", u32),
        ("instance", u32),  # changes when another MIG device takes the place
        ("parent", u32),  # entity of the GPU; of a GPU: itself
        ("lost", u32),  # return code of every call; 0: it answers
        ("flags", u32),  # FLAG_HANG: every call hangs
        ("mig", u32),  # 1 on MIG devices
        ("gi", u32),
        ("ci", u32),
        ("process_count", u32),
        ("reserved", u32),
        ("sample_head", u64),
        ("variable", Variable * len(VARIABLES)),
        ("override", Override * (len(FUNCTIONS) + 1)),
        ("process", Process * PROCESSES),
        ("sample", Sample * SAMPLES),
        ("string", (ctypes.c_char * STRING_BYTES) * STRINGS),
        ("slot", Slot * SLOTS),
    ]


class State(ctypes.Structure):
    """The whole file."""

    _fields_ = [("header", Header), ("entity", EntityRecord * MAX_ENTITIES)]


def slot_hash(key: int, arg: int) -> int:
    """Where the search for a slot begins; nvml.c has the same."""
    return ((key * 2654435761 + arg * 40503) & 0xFFFFFFFF) >> 7 & (SLOTS - 1)


_C_NAMES: Final[dict[Any, str]] = {
    u32: "uint32_t",
    u64: "uint64_t",
    i64: "int64_t",
    f64: "double",
    ctypes.c_uint16: "uint16_t",
    ctypes.c_int32: "int32_t",
    ctypes.c_char: "char",
}


def _declaration(name: str, kind: Any) -> str:  # noqa: ANN401 - ctypes has no name for its types
    dimensions = ""
    while hasattr(kind, "_length_"):
        dimensions += f"[{kind._length_}]"
        kind = kind._type_
    type_name = _C_NAMES.get(kind) or f"struct sim_{kind.__name__.lower()}"
    return f"    {type_name} {name}{dimensions};"


def c_header() -> str:
    """The header that nvml.c includes."""
    lines = ["#include <stdint.h>"]
    constants = {
        "SIM_MAGIC": f"0x{MAGIC:x}ULL",
        "SIM_MAX_GPUS": MAX_GPUS,
        "SIM_MIG_SLOTS": MIG_SLOTS,
        "SIM_MAX_ENTITIES": MAX_ENTITIES,
        "SIM_SLOTS": SLOTS,
        "SIM_SAMPLES": SAMPLES,
        "SIM_SAMPLE_KINDS": SAMPLE_KINDS,
        "SIM_PROCESSES": PROCESSES,
        "SIM_EVENTS": EVENTS,
        "SIM_VARIABLES": len(VARIABLES),
        "SIM_FIELD_SPACE": f"0x{FIELD_SPACE:x}u",
        "SIM_GPM_SPACE": f"0x{GPM_SPACE:x}u",
        "SIM_ANY_SCOPE": f"0x{ANY_SCOPE:x}u",
        "SIM_FLAG_HANG": FLAG_HANG,
        "SIM_FLAG_CRASH": FLAG_CRASH,
        "SIM_STRING": STRING,
    }
    lines += [f"#define {name} {value}" for name, value in constants.items()]
    lines += [f"#define K_{name} {key}u" for name, key in FUNCTION_KEYS.items()]
    for structure in (Slot, Variable, Override, Process, Sample, Event, Header, EntityRecord, State):
        name = f"struct sim_{structure.__name__.lower()}"
        lines.append(f"{name} {{")
        lines += [_declaration(field[0], field[1]) for field in structure._fields_]
        lines.append("};")
        lines.append(f'_Static_assert(sizeof({name}) == {ctypes.sizeof(structure)}, "layout");')
    return "\n".join(lines) + "\n"
