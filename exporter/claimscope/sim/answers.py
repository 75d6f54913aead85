"""Which function, field and metric answers on a device, and with what? Pure: from profile and faults to slots.

What an architecture or a driver branch does not have stays out and is then answered with NOT_SUPPORTED.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from claimscope.sim import layout
from claimscope.sim.layout import (
    ANY_SCOPE,
    FIELD_SPACE,
    FUNCTION_KEYS,
    GPM_SPACE,
    SIGNED,
    STRING,
    ULONG_LONG,
    UNSIGNED,
    VARIABLE_INDEX,
)
from claimscope.sim.moment import WHOLE, EntityState
from claimscope.sim.profiles import MEBIBYTE, MigPlace, Profile
from claimscope.sim.scenario import (
    AnswerFault,
    CrashFault,
    EccFault,
    FabricFault,
    Fault,
    HangFault,
    NvlinkDownFault,
    NvlinkErrorsFault,
    NvlinkRecoveryFault,
    RecoveryActionFault,
    ReturnCodeFault,
    SlowFault,
    without_version,
)
from claimscope.sim.world import World

FUNCTION_NOT_FOUND: Final = 13
ALL_LINKS: Final = 0xFFFFFFFF
LOCATIONS: Final = ("l1_cache", "l2_cache", "dram", "register_file", "texture_memory", "shared", "cbu", "sram")
# Fields of ECC errors by location (NVML_FI_DEV_ECC_*): (corrected, uncorrected), volatile; aggregate is 11 behind.
ECC_FIELDS: Final = {
    "l1_cache": (7, 8),
    "l2_cache": (9, 10),
    "dram": (11, 12),
    "register_file": (13, 14),
    "texture_memory": (15, 16),
}
ROWS: Final = 640  # banks of the row remapper


@dataclass(slots=True)
class Answers:
    """The constant part of one entity's record."""

    slots: dict[tuple[int, int], tuple[int, int, int, float, float]] = field(default_factory=dict)
    strings: list[str] = field(default_factory=list)
    overrides: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # name -> (code, flags, delay in ns)

    def put(self, key: int, arg: int, value: float, type_: int = UNSIGNED) -> None:
        """A constant."""
        self.slots[key, arg] = (0, type_, -1, 0.0, float(value))

    def follow(self, key: int, arg: int, variable: str, scale: float = 1.0, type_: int = UNSIGNED) -> None:
        """A number that moves."""
        self.slots[key, arg] = (0, type_, VARIABLE_INDEX[variable], scale, 0.0)

    def text(self, name: str, value: str, arg: int = 0) -> None:
        """A string."""
        if value not in self.strings:
            self.strings.append(value)
        self.put(FUNCTION_KEYS[name], arg, self.strings.index(value), STRING)

    def call(self, name: str, *values: float, first: int = 0) -> None:
        """A function with constant answers, one for each member."""
        for index, value in enumerate(values):
            self.put(FUNCTION_KEYS[name], first + index, value)

    def calls(self, name: str, *variables: str, first: int = 0) -> None:
        """A function whose members move."""
        for index, variable in enumerate(variables):
            self.follow(FUNCTION_KEYS[name], first + index, variable)

    def fail(self, name: str, code: int, arg: int = 0) -> None:
        """A function that answers with a return code."""
        self.slots[FUNCTION_KEYS[name], arg] = (code, 0, -1, 0.0, 0.0)

    def field(self, number: int, value: float, type_: int = UNSIGNED, scope: int = ANY_SCOPE) -> None:
        """A field with a constant answer."""
        self.put(FIELD_SPACE | number, scope, value, type_)

    def moving(
        self, number: int, variable: str, scale: float = 1.0, type_: int = UNSIGNED, scope: int = ANY_SCOPE
    ) -> None:
        """A field that moves."""
        self.follow(FIELD_SPACE | number, scope, variable, scale, type_)

    def metric(self, number: int, variable: str, scale: float) -> None:
        """A GPM metric: the rate of an integral."""
        self.follow(GPM_SPACE | number, 0, variable, scale, layout.DOUBLE)


def answers(world: World, entity: EntityState, t_seconds: float) -> Answers:
    """All slots of one entity."""
    made = Answers()
    reset = world.last_reset(entity.gpu, t_seconds)
    faults = world.faults_of(entity.gpu, t_seconds)
    profile = world.profile
    mig_on = bool(world.mig_places(entity.gpu, t_seconds))
    made.text("nvmlDeviceGetUUID", entity.uuid)
    if entity.place == WHOLE:
        _identity(made, profile, entity.gpu, mig_on)
        _load(made, profile, mig_on)
        _power(made, profile)
        _clocks(made, profile)
        _temperature(made, profile)
        _pcie(made, profile)
        _reliability(made, profile, faults, reset, mig_on)
        if profile.nvlink_links:
            _nvlink(made, profile, entity.gpu, faults, reset, t_seconds, mig_on)
        _mig_parent(made, profile, mig_on)
        _topology(made, profile, entity.gpu)
        _events(made, profile)
    elif entity.mig is not None:
        _mig_device(made, profile, entity.mig)
        _ecc(made, [], 0.0, uncorrected_only=True)
    if profile.has_gpm and (entity.place != WHOLE or not mig_on):
        _gpm(made, profile, whole=entity.place == WHOLE)
    _interfere(made, faults, t_seconds)
    if entity.place == WHOLE:
        for fault in faults:
            if isinstance(fault, AnswerFault) and (fault.duration is None or t_seconds < fault.at + fault.duration):
                _answer(made, fault, max(0.0, fault.at - reset))
    return made


def _answer(made: Answers, fault: AnswerFault, uptime: float) -> None:
    """Another number where there is one; it rises with the uptime, which was so many seconds at the beginning."""
    if fault.function is not None:
        wanted = FUNCTION_KEYS[without_version(fault.function)]
    else:
        wanted = FIELD_SPACE | (fault.field or 0)
    moving = VARIABLE_INDEX["uptime_microseconds"] if fault.per_second else -1
    for (key, arg), (code, kind, _, _, _) in list(made.slots.items()):
        if key == wanted and (fault.place is None or arg == fault.place):
            begin = fault.value - fault.per_second * uptime
            made.slots[key, arg] = (code, kind, moving, fault.per_second * 1e-6, begin)


def _identity(made: Answers, profile: Profile, gpu: int, mig_on: bool) -> None:
    bus = profile.bus_ids[gpu]
    made.call("nvmlDeviceGetIndex", gpu)
    made.call("nvmlDeviceGetMinorNumber", gpu)
    made.text("nvmlDeviceGetName", profile.model)
    made.text("nvmlDeviceGetSerial", f"165{profile.device_id >> 16:05d}{gpu + 1:05d}")
    made.call("nvmlDeviceGetBrand", 14)  # NVML_BRAND_NVIDIA
    made.call("nvmlDeviceGetArchitecture", profile.architecture_code)
    made.text("nvmlDeviceGetBoardPartNumber", profile.part_number)
    made.text("nvmlDeviceGetVbiosVersion", profile.vbios_version)
    made.text("nvmlDeviceGetInforomImageVersion", profile.inforom_image_version)
    for object_, version in enumerate(("2.1", "7.16", "0.0")):
        made.text("nvmlDeviceGetInforomVersion", version, object_)
    made.text("nvmlDeviceGetGspFirmwareVersion", profile.driver_version)
    made.call("nvmlDeviceGetGspFirmwareMode", 1, 1)
    made.call("nvmlDeviceGetCudaComputeCapability", *profile.compute_capability)
    made.text("nvmlDeviceGetPciInfo", f"00000000:{bus:02X}:00.0")
    made.call("nvmlDeviceGetPciInfo", 0, bus, 0, profile.device_id, profile.subsystem_id, first=1)
    made.call("nvmlDeviceGetBoardId", bus << 8)
    made.call("nvmlDeviceGetMultiGpuBoard", 0)
    made.call("nvmlDeviceGetMemoryBusWidth", profile.memory_bus_width)
    made.call("nvmlDeviceGetNumGpuCores", profile.multiprocessors * 128)
    made.call("nvmlDeviceGetIrqNum", 100 + gpu)
    if profile.nvlink_links:
        made.call("nvmlDeviceGetModuleId", gpu + 1)
    if profile.architecture_code >= 10:
        made.call("nvmlDeviceGetPlatformInfo", 1, 0, 0, 1, gpu + 1)
    made.call("nvmlDeviceGetPerformanceState", 0)
    made.call("nvmlDeviceGetPersistenceMode", 1)
    made.call("nvmlDeviceGetComputeMode", 0)
    made.call("nvmlDeviceGetDisplayMode", 0)
    made.call("nvmlDeviceGetDisplayActive", 0)
    made.call("nvmlDeviceGetVirtualizationMode", 0)
    made.call("nvmlDeviceGetGridLicensableFeatures", 0, 0)  # whole boards need no licence
    made.call("nvmlDeviceGetAccountingBufferSize", 4000)
    if not mig_on:
        made.call("nvmlDeviceGetAccountingMode", 0)


def _load(made: Answers, profile: Profile, mig_on: bool) -> None:
    _memory(made, profile.memory_mebibytes, profile.reserved_mebibytes, profile.bar1_mebibytes * MEBIBYTE)
    kinds = (0, 5, 6) if mig_on else (0, 1, 2, 3, 4, 5, 6)
    for kind in kinds:
        made.put(FUNCTION_KEYS["nvmlDeviceGetSamples"], kind, 0)
    if mig_on:
        return
    made.calls("nvmlDeviceGetUtilizationRates", "gpu_percent", "memory_percent")
    for name, variable in (
        ("Encoder", "encoder_percent"),
        ("Decoder", "decoder_percent"),
        ("Jpg", "jpeg_percent"),
        ("Ofa", "ofa_percent"),
    ):
        made.calls(f"nvmlDeviceGet{name}Utilization", variable)
        made.call(f"nvmlDeviceGet{name}Utilization", 167000, first=1)
    made.call("nvmlDeviceGetProcessUtilization", 0)
    made.call("nvmlDeviceGetProcessesUtilizationInfo", 0)


def _memory(made: Answers, total: int, reserved: int, bar1: int) -> None:
    made.call("nvmlDeviceGetMemoryInfo", total * MEBIBYTE, reserved * MEBIBYTE)
    made.calls("nvmlDeviceGetMemoryInfo", "memory_free", "memory_used", "memory_used_v1", first=2)
    made.call("nvmlDeviceGetBAR1MemoryInfo", bar1)
    made.calls("nvmlDeviceGetBAR1MemoryInfo", "bar1_free", "bar1_used", first=1)


def _power(made: Answers, profile: Profile) -> None:
    limit, least = profile.power_limit_watts * 1000, profile.power_minimum_watts * 1000
    # On Ampere and newer the getter tells the one-second mean (nvml.h, nvmlDeviceGetPowerUsage); GA100 has none.
    made.calls(
        "nvmlDeviceGetPowerUsage",
        "power_average_milliwatts" if profile.has_average_power else "power_milliwatts",
    )
    made.call("nvmlDeviceGetPowerManagementLimit", limit)
    made.call("nvmlDeviceGetPowerManagementDefaultLimit", limit)
    made.call("nvmlDeviceGetPowerManagementLimitConstraints", least, limit)
    made.call("nvmlDeviceGetPowerManagementMode", 1)
    made.call("nvmlDeviceGetEnforcedPowerLimit", limit)
    made.call("nvmlDeviceGetPowerSource", 0)
    key = FUNCTION_KEYS["nvmlDeviceGetTotalEnergyConsumption"]
    made.follow(key, 0, "energy_millijoules", type_=ULONG_LONG)
    made.moving(83, "energy_millijoules", type_=ULONG_LONG)
    if profile.has_average_power:
        made.moving(185, "power_average_milliwatts", scope=0)
    made.moving(186, "power_milliwatts", scope=0)
    for number, value in ((187, least), (188, limit), (189, limit), (190, limit), (192, limit)):
        made.field(number, value, scope=0)
    made.moving(191, "energy_millijoules", type_=ULONG_LONG, scope=0)


def _clocks(made: Answers, profile: Profile) -> None:
    for domain, name in enumerate(("graphics", "sm", "memory", "video")):
        made.calls("nvmlDeviceGetClockInfo", f"{name}_megahertz", first=domain)
        made.call("nvmlDeviceGetMaxClockInfo", profile.clock_maximum[domain], first=domain)
        made.call("nvmlDeviceGetMaxCustomerBoostClock", profile.clock_maximum[domain], first=domain)
        if domain != 3:
            made.call("nvmlDeviceGetApplicationsClock", profile.clock_maximum[domain], first=domain)
            made.call("nvmlDeviceGetDefaultApplicationsClock", profile.clock_maximum[domain], first=domain)
    made.calls("nvmlDeviceGetCurrentClocksEventReasons", "event_reasons")
    made.call("nvmlDeviceGetSupportedClocksEventReasons", 0x1FF)
    # nvmlPerfPolicyType_t: 0 power, 1 thermal, 2 sync boost, ...; fields 74-81 in the same order.
    for policy in range(8):
        total = {0: "power_cap_total", 1: "software_thermal_total"}.get(policy)
        if total is None:
            made.field(74 + policy, 0, ULONG_LONG)
        else:
            made.moving(74 + policy, total, type_=ULONG_LONG)
        if policy < 6:
            if total is None:
                made.call("nvmlDeviceGetViolationStatus", 0, first=policy)
            else:
                made.calls("nvmlDeviceGetViolationStatus", total, first=policy)
    made.calls("nvmlDeviceGetViolationStatus", "uptime_microseconds", first=100)
    # The throttle counters moved with the headers of CUDA 13.1.
    first = 269 if profile.branch >= 590 else 251 if profile.branch >= 575 else None
    if first is not None:
        for offset, name in enumerate(("software_thermal", "hardware_thermal", "power_brake")):
            made.moving(first + offset, f"{name}_total", type_=ULONG_LONG)
        if first == 269:
            made.field(251, 0, UNSIGNED)  # power smoothing there


def _temperature(made: Answers, profile: Profile) -> None:
    made.calls("nvmlDeviceGetTemperature", "temperature")
    if profile.branch >= 570:
        made.calls("nvmlDeviceGetTemperatureV", "temperature")
    else:
        made.fail("nvmlDeviceGetTemperatureV", FUNCTION_NOT_FOUND)
        made.fail("nvmlDeviceGetMarginTemperature", FUNCTION_NOT_FOUND)
    if profile.has_memory_temperature:
        made.moving(82, "memory_temperature")
    thresholds = (
        profile.temperature_shutdown,
        profile.temperature_slowdown,
        profile.temperature_memory_maximum,
        profile.temperature_gpu_maximum,
    )
    for index, value in enumerate(thresholds):
        if value:
            made.call("nvmlDeviceGetTemperatureThreshold", value, first=index)
    if profile.architecture_code >= 8:
        if profile.branch >= 570:
            made.calls("nvmlDeviceGetMarginTemperature", "margin_temperature")
        slowdown = profile.temperature_slowdown
        for number, value in zip((193, 194, 195, 196), thresholds, strict=True):
            if value:
                made.field(number, slowdown - value, SIGNED)


def _pcie(made: Answers, profile: Profile) -> None:
    generation = profile.pcie_generation
    made.call("nvmlDeviceGetMaxPcieLinkGeneration", generation)
    made.call("nvmlDeviceGetGpuMaxPcieLinkGeneration", generation)
    made.call("nvmlDeviceGetCurrPcieLinkGeneration", generation)
    made.call("nvmlDeviceGetMaxPcieLinkWidth", 16)
    made.call("nvmlDeviceGetCurrPcieLinkWidth", 16)
    made.calls("nvmlDeviceGetPcieThroughput", "pcie_tx_kibibytes_per_second", "pcie_rx_kibibytes_per_second")
    made.call("nvmlDeviceGetPcieReplayCounter", 0)
    made.call("nvmlDeviceGetPcieSpeed", {3: 8000, 4: 16000, 5: 32000, 6: 64000}[generation])
    made.call("nvmlDeviceGetPcieLinkMaxSpeed", generation)
    for number in (94, 95, 169, *range(173, 184)):
        made.field(number, 0)
    if profile.branch >= 555:
        made.moving(197, "pcie_tx_total", type_=ULONG_LONG)
        made.moving(198, "pcie_rx_total", type_=ULONG_LONG)


def _count(faults: Iterable[Fault], kind: str, location: str | None, since: float) -> int:
    return sum(
        fault.count
        for fault in faults
        if isinstance(fault, EccFault)
        and fault.type == kind
        and (location is None or fault.location == location)
        and fault.at >= since
    )


def _ecc(made: Answers, faults: Iterable[Fault], reset: float, *, uncorrected_only: bool = False) -> None:
    """Errors by location, volatile since the last reset and over the life of the board."""
    faults = tuple(faults)
    for error, kind in enumerate(("corrected", "uncorrected")):
        if uncorrected_only and error == 0:
            continue
        for counter, since in ((0, reset), (1, 0.0)):
            if uncorrected_only and counter == 1:
                continue
            for index, location in enumerate(LOCATIONS):
                if uncorrected_only and location == "dram":
                    continue
                count = _count(faults, kind, location, since)
                made.call("nvmlDeviceGetMemoryErrorCounter", count, first=error << 16 | counter << 8 | index)
                numbers = ECC_FIELDS.get(location)
                if numbers and not uncorrected_only:
                    # NVML_FI_DEV_ECC_*_AGG_* stand 11 behind *_VOL_*: DBE_VOL_CBU lies between them.
                    made.field(numbers[error] + 11 * counter, count, ULONG_LONG)


def _reliability(made: Answers, profile: Profile, faults: tuple[Fault, ...], reset: float, mig_on: bool) -> None:
    made.call("nvmlDeviceGetEccMode", 1, 1)
    made.call("nvmlDeviceGetDefaultEccMode", 1)
    made.field(1, 1)
    made.field(2, 1)
    _ecc(made, faults, reset)
    made.field(17, 0, ULONG_LONG)
    made.field(28, 0, ULONG_LONG)
    for error, kind in enumerate(("corrected", "uncorrected")):
        for counter, since in ((0, reset), (1, 0.0)):
            count = _count(faults, kind, None, since)
            made.call("nvmlDeviceGetTotalEccErrors", count, first=error << 8 | counter)
            made.field(3 + error + 2 * counter, count, ULONG_LONG)
    sram = [fault for fault in faults if isinstance(fault, EccFault) and fault.location != "dram"]
    recent = [fault for fault in sram if fault.at >= reset]
    broken, fresh = _count(sram, "uncorrected", None, 0.0), _count(recent, "uncorrected", None, 0.0)
    l2 = _count(sram, "uncorrected", "l2_cache", 0.0)
    made.call(
        "nvmlDeviceGetSramEccErrorStatus",
        0,
        broken,
        _count(sram, "corrected", None, 0.0),
        0,
        fresh,
        _count(recent, "corrected", None, 0.0),
        l2,
        broken - l2,
        0,
        0,
        0,
        int(broken >= 4),
    )
    # An uncorrected DRAM error remaps a row; it is pending until the next reset.
    dram = [f for f in faults if isinstance(f, EccFault) and f.type == "uncorrected" and f.location == "dram"]
    rows = sum(fault.count for fault in dram)
    pending = int(any(fault.at >= reset for fault in dram))
    failure = int(any(fault.remap_failure for fault in dram))
    if not mig_on:
        made.call("nvmlDeviceGetRemappedRows", 0, rows, pending, failure)
        for number, value in ((142, 0), (143, rows), (144, pending), (145, failure)):
            made.field(number, value)
        spent = min(rows, ROWS)
        made.call("nvmlDeviceGetRowRemapperHistogram", ROWS - spent, spent - failure, 0, 0, failure)
    made.call("nvmlDeviceGetRepairStatus", 0, 0)
    if profile.branch >= 565:
        action = 1 if pending else 0
        for fault in faults:
            if isinstance(fault, RecoveryActionFault):
                action = fault.action
        made.field(230, action)


def _nvlink(
    made: Answers,
    profile: Profile,
    gpu: int,
    faults: tuple[Fault, ...],
    reset: float,
    t_seconds: float,
    mig_on: bool,
) -> None:
    links, peer = profile.nvlink_links, profile.bridged_to(gpu)
    blackwell = profile.architecture_code >= 10
    down = {
        fault.link
        for fault in faults
        if isinstance(fault, NvlinkDownFault) and (fault.duration is None or t_seconds < fault.at + fault.duration)
    }
    errors, recovered, failed = Counter[int](), Counter[int](), Counter[int]()
    for fault in faults:
        if isinstance(fault, NvlinkErrorsFault) and fault.at >= reset:
            errors[fault.link] += fault.count
        elif isinstance(fault, NvlinkRecoveryFault) and fault.at >= reset:
            (failed if fault.failed else recovered)[fault.link] += fault.count
    kibibyte = 1 / 1024
    counters = [(202, "nvlink_tx_total", 1.0), (204, "nvlink_rx_total", 1.0)] if blackwell else []
    counters += [
        (138, "nvlink_tx_total", kibibyte),
        (139, "nvlink_rx_total", kibibyte),
        (140, "nvlink_tx_total", kibibyte * 1.07),
        (141, "nvlink_rx_total", kibibyte * 1.07),
    ]
    if blackwell:
        counters += [(201, "nvlink_tx_total", 1 / 272), (203, "nvlink_rx_total", 1 / 272)]
    made.field(91, links)
    made.field(147, links)
    for number, variable, scale in counters:
        if not mig_on:
            made.moving(number, variable, scale, ULONG_LONG, ALL_LINKS)
    for link in range(links):
        up = int(link not in down)
        count, recoveries = errors[link], recovered[link] + failed[link]
        made.call("nvmlDeviceGetNvLinkState", up, first=link)
        made.call("nvmlDeviceGetNvLinkVersion", profile.nvlink_version, first=link)
        made.call("nvmlDeviceGetNvLinkRemoteDeviceType", 2 if peer is None else 0, first=link)  # an NVSwitch, a GPU
        bus_id = "FFFFFFFF:FF:FF.0" if peer is None else f"00000000:{profile.bus_ids[peer]:02X}:00.0"
        made.text("nvmlDeviceGetNvLinkRemotePciInfo", bus_id, link)
        made.field(146, link, scope=link)
        made.field(164, profile.nvlink_megabytes_per_second if up else 0, scope=link)
        made.field(165, up, scope=link)
        made.field(166, profile.nvlink_version, scope=link)
        if not mig_on:
            for number, variable, scale in counters:
                made.moving(number, variable, scale / links, ULONG_LONG, link)
        if blackwell:
            _nvlink5_counters(made, link, count, recovered[link], failed[link])
        else:
            for number, value in ((161, count), (162, count + recoveries), (163, count)):
                made.field(number, value, ULONG_LONG, link)
            for counter in range(5):
                value = count + (recoveries if counter == 1 else 0) if counter in (0, 1, 3) else 0
                made.call("nvmlDeviceGetNvLinkErrorCounter", value, first=link << 8 | counter)
    every = errors.total()
    if blackwell:
        _nvlink5_counters(made, ALL_LINKS, every, recovered.total(), failed.total())
    else:
        for number, value in ((38, every), (45, 0), (52, every), (59, every + recovered.total() + failed.total())):
            made.field(number, value, ULONG_LONG)
    for capability in range(6):
        made.call("nvmlDeviceGetNvLinkCapability", 1, first=capability)
    if profile.architecture_code >= 9 and not profile.nvlink_bridged:
        _fabric(made, faults, t_seconds)


def _nvlink5_counters(made: Answers, scope: int, errors: int, recovered: int, failed: int) -> None:
    """One link's, or those of all links. Errors that were received are recovered from."""
    for number in (206, 207, 208, 209, 210, 211, 212, 219, 221):
        made.field(number, errors if number in (208, 221) else 0, ULONG_LONG, scope)
    made.field(213, errors + recovered, ULONG_LONG, scope)
    made.field(214, failed, ULONG_LONG, scope)
    made.field(215, errors + recovered + failed, ULONG_LONG, scope)


# nvml.h, NVML_GPU_FABRIC_STATE_* and NVML_GPU_FABRIC_HEALTH_MASK_*: two bits per condition, 1 true and 2 false, and
# four for the configuration, where 1 is right and 2 a wrong system GUID; the summary is healthy, unhealthy, limited.
_FABRIC_STATES: Final = {"not_started": 1, "in_progress": 2, "completed": 3}
_FABRIC_HEALTH: Final = {
    None: (0x1AA, 1), "degraded_bandwidth": (0x1A9, 3), "route_unhealthy": (0x19A, 2),
    "incorrect_configuration": (0x2AA, 2),
}  # fmt: skip


def _fabric(made: Answers, faults: Iterable[Fault], t_seconds: float) -> None:
    state, status, (mask, summary) = 3, 0, _FABRIC_HEALTH[None]
    for fault in faults:
        if isinstance(fault, FabricFault) and (fault.duration is None or t_seconds < fault.at + fault.duration):
            state, status = _FABRIC_STATES[fault.state], fault.status
            mask, summary = _FABRIC_HEALTH[fault.fault]
    made.call("nvmlDeviceGetGpuFabricInfo", state, status, 0, mask, summary)
    made.call("nvmlDeviceGetGpuFabricInfoV", 0)


def _mig_parent(made: Answers, profile: Profile, mig_on: bool) -> None:
    if not profile.mig_maximum:
        return
    made.call("nvmlDeviceGetMigMode", int(mig_on), int(mig_on))
    made.call("nvmlDeviceGetMaxMigDeviceCount", profile.mig_maximum)
    for mig in profile.mig_profiles:
        first = mig.index << 8
        made.call(
            "nvmlDeviceGetGpuInstanceProfileInfo",
            mig.profile_id,
            0,
            mig.slices,
            len(mig.starts),
            mig.multiprocessors,
            mig.copy_engines,
            mig.decoders,
            0,
            0,
            0,
            mig.memory_mebibytes,
            first=first,
        )
        made.text("nvmlDeviceGetGpuInstanceProfileInfo", f"MIG {mig.name}", first + 11)


def _mig_device(made: Answers, profile: Profile, place: MigPlace) -> None:
    mig = place.profile
    made.text("nvmlDeviceGetName", f"{profile.model} MIG {mig.name}")
    made.call("nvmlDeviceGetComputeMode", 0)
    made.call("nvmlDeviceGetGpuInstanceId", place.gpu_instance_id)
    made.call("nvmlDeviceGetComputeInstanceId", place.compute_instance_id)
    made.call(
        "nvmlDeviceGetAttributes_v2",
        mig.multiprocessors,
        mig.copy_engines,
        mig.decoders,
        0,
        0,
        0,
        mig.slices,
        mig.slices,
        mig.memory_mebibytes,
    )
    made.call("nvmlDeviceGetGpuInstanceById", mig.profile_id, place.start, mig.size)
    _memory(made, mig.memory_mebibytes, 0, profile.bar1_mebibytes * MEBIBYTE * mig.size // 8)


def _topology(made: Answers, profile: Profile, gpu: int) -> None:
    half = (profile.gpu_count + 1) // 2
    node = gpu // half
    made.call("nvmlDeviceGetNumaNodeId", node)
    made.put(FUNCTION_KEYS["nvmlDeviceGetCpuAffinity"], 0, 0xFFFFFFFF << 16 * node & 0xFFFFFFFF, ULONG_LONG)
    made.call("nvmlDeviceGetMemoryAffinity", 1 << node)
    for other in range(profile.gpu_count):
        ancestor = 0 if other == gpu else 30 if other // half == node else 50  # host bridge, system
        made.call("nvmlDeviceGetTopologyCommonAncestor", ancestor, first=other)
        for what in range(5):
            joined = profile.nvlink_links and (not profile.nvlink_bridged or profile.bridged_to(gpu) == other)
            linked = 0 if joined or what != 2 else 5  # P2P status: OK, not supported
            made.call("nvmlDeviceGetP2PStatus", linked, first=other << 8 | what)


def _events(made: Answers, profile: Profile) -> None:
    mask = 0x1 | 0x2 | 0x8 | 0x80 | 0x200 | 0x400 | 0x800 | 0x1000 | 0x2000
    if profile.mig_maximum:
        mask |= 0x100
    if profile.branch >= 580:
        mask |= 0x4000 | 0x8000
    made.put(FUNCTION_KEYS["nvmlDeviceGetSupportedEventTypes"], 0, mask, ULONG_LONG)


def _gpm(made: Answers, profile: Profile, *, whole: bool) -> None:
    made.call("nvmlGpmSampleGet", 0)
    made.call("nvmlGpmQueryIfStreamingEnabled", 0)
    for number, variable in (
        (1, "graphics_total"),
        (2, "sm_total"),
        (3, "occupancy_total"),
        (4, "integer_total"),
        (5, "tensor_total"),
        (7, "tensor_total"),
        (10, "dram_total"),
        (11, "fp64_total"),
        (12, "fp32_total"),
        (13, "fp16_total"),
        (30, "decoder_total"),
        (40, "jpeg_total"),
        (50, "ofa_total"),
    ):
        made.metric(number, variable, 100.0)
    for number in (6, 8, 9):
        made.put(GPM_SPACE | number, 0, 0.0, layout.DOUBLE)
    made.metric(20, "pcie_tx_total", 1 / MEBIBYTE)
    made.metric(21, "pcie_rx_total", 1 / MEBIBYTE)
    if profile.nvlink_links and whole:
        made.metric(60, "nvlink_rx_total", 1 / MEBIBYTE)
        made.metric(61, "nvlink_tx_total", 1 / MEBIBYTE)
        for link in range(min(18, profile.nvlink_links)):
            made.metric(62 + 2 * link, "nvlink_rx_total", 1 / MEBIBYTE / profile.nvlink_links)
            made.metric(63 + 2 * link, "nvlink_tx_total", 1 / MEBIBYTE / profile.nvlink_links)


def _interfere(made: Answers, faults: tuple[Fault, ...], t_seconds: float) -> None:
    """Return codes, hangs, crashes and delays that are in force."""
    for fault in faults:
        duration: float | None = getattr(fault, "duration", None)
        if t_seconds >= (math.inf if duration is None else fault.at + duration):
            continue
        if isinstance(fault, ReturnCodeFault):
            if fault.function is not None:
                made.overrides[without_version(fault.function)] = (fault.code, 0, 0)
            else:
                for key, arg in [slot for slot in made.slots if slot[0] == FIELD_SPACE | (fault.field or 0)]:
                    made.slots[key, arg] = (fault.code, 0, -1, 0.0, 0.0)
        elif isinstance(fault, HangFault) and fault.function is not None:
            made.overrides[without_version(fault.function)] = (0, layout.FLAG_HANG, 0)
        elif isinstance(fault, CrashFault):
            made.overrides[without_version(fault.function)] = (0, layout.FLAG_CRASH, 0)
        elif isinstance(fault, SlowFault):
            made.overrides[without_version(fault.function)] = (0, 0, round(fault.milliseconds * 1e6))
