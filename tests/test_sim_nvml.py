"""The simulated libnvidia-ml, asked through pynvml as any program would ask it."""

import asyncio
import ctypes
import json
import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

import claimscope.sim
from claimscope.clock import SystemClock
from claimscope.nvml.calls import CALLS
from claimscope.nvml.inventory import nvlink_peers
from claimscope.nvml.library import load
from claimscope.sim.layout import FUNCTIONS
from claimscope.sim.library import STATE_VARIABLE, SimulatedNvml, SimulatorError, build_library, run_writer
from claimscope.sim.scenario import decode_scenario
from claimscope.sim.world import make_world

Start = Callable[..., SimulatedNvml]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a simulated node, initialises pynvml on it, and ends both afterwards."""
    open_nodes: list[SimulatedNvml] = []
    load(str(build_library()))

    def begin(profile: str, scenario: str = "", t_seconds: float = 0.0) -> SimulatedNvml:
        node = SimulatedNvml(make_world(profile, decode_scenario(scenario) if scenario else None))
        open_nodes.append(node)
        monkeypatch.setenv(STATE_VARIABLE, str(node.state_path))
        node.step(t_seconds)
        pynvml.nvmlInit()
        return node

    yield begin
    try:
        while True:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError_Uninitialized:
        pass
    for node in open_nodes:
        node.close()


def code(call: Callable[..., object], *args: object) -> int:
    """The return code of a pynvml call that is meant to fail."""
    with pytest.raises(pynvml.NVMLError) as caught:
        call(*args)
    return int(caught.value.value)


def fields(handle: object, *ids: object) -> list[tuple[int, int]]:
    return [
        (value.nvmlReturn, value.value.ullVal if value.nvmlReturn == 0 else 0)
        for value in pynvml.nvmlDeviceGetFieldValues(handle, list(ids))
    ]


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (
            "h100x8",
            ["580.95.05", "13.580.95.05", 13000, 8, "NVIDIA H100 80GB HBM3", 9, (9, 0), "00000000:18:00.0",
             85520809984, 700000, (200000, 700000), 1980, 5, 18],
        ),
        (
            "a100x8-mig",
            ["550.163.01", "13.550.163.01", 12040, 8, "NVIDIA A100-SXM4-40GB", 7, (8, 0), "00000000:07:00.0",
             42949672960, 400000, (100000, 400000), 1410, 4, 12],
        ),
        (
            "b200x8",
            ["590.48.01", "13.590.48.01", 13010, 8, "NVIDIA B200", 10, (10, 0), "00000000:1B:00.0",
             192265846784, 1000000, (200000, 1000000), 1965, 6, 18],
        ),
        (
            "l40sx4",
            ["570.195.03", "13.570.195.03", 12080, 4, "NVIDIA L40S", 8, (8, 9), "00000000:16:00.0",
             48305799168, 350000, (100000, 350000), 2520, 4, None],
        ),
        (
            "a100x4-bridge",
            ["570.195.03", "13.570.195.03", 12080, 4, "NVIDIA A100 80GB PCIe", 7, (8, 0), "00000000:17:00.0",
             85899345920, 300000, (150000, 300000), 1410, 4, 12],
        ),
    ],
)  # fmt: skip
def test_inventory(start: Start, profile: str, expected: list[object]) -> None:
    start(profile)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    links = fields(handle, 91)[0]
    assert [
        pynvml.nvmlSystemGetDriverVersion(),
        pynvml.nvmlSystemGetNVMLVersion(),
        pynvml.nvmlSystemGetCudaDriverVersion_v2(),
        pynvml.nvmlDeviceGetCount(),
        pynvml.nvmlDeviceGetName(handle),
        pynvml.nvmlDeviceGetArchitecture(handle),
        tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
        pynvml.nvmlDeviceGetPciInfo(handle).busId,
        pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).total,
        pynvml.nvmlDeviceGetPowerManagementLimit(handle),
        tuple(pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)),
        pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
        pynvml.nvmlDeviceGetCurrPcieLinkGeneration(handle),
        links[1] if links[0] == 0 else None,
    ] == expected


def test_handles_by_every_name(start: Start) -> None:
    node = start("h100x8")
    uuid = node.world.profile.gpu_uuid(3)
    by_index = pynvml.nvmlDeviceGetHandleByIndex(3)
    same = [
        pynvml.nvmlDeviceGetHandleByUUID(uuid),
        pynvml.nvmlDeviceGetHandleByPciBusId(b"00000000:5D:00.0"),
        pynvml.nvmlDeviceGetHandleByPciBusId(b"0000:5d:00.0"),
    ]
    address = ctypes.cast(by_index, ctypes.c_void_p).value
    assert [ctypes.cast(handle, ctypes.c_void_p).value for handle in same] == [address] * 3
    assert (pynvml.nvmlDeviceGetUUID(by_index), pynvml.nvmlDeviceGetMinorNumber(by_index)) == (uuid, 3)
    assert code(pynvml.nvmlDeviceGetHandleByUUID, "GPU-none") == pynvml.NVML_ERROR_NOT_FOUND
    assert code(pynvml.nvmlDeviceGetHandleByIndex, 8) == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_every_function_that_is_asked_for_exists() -> None:
    library = ctypes.CDLL(str(build_library()))
    assert [name for name in sorted({call.symbol for call in CALLS.values()}) if not hasattr(library, name)] == []


def test_every_key_is_used_by_the_library() -> None:
    # A key without a function would take a return-code fault and do nothing with it.
    body = (Path(claimscope.sim.__file__).parent / "nvml.c").read_text()
    asked = set(re.findall(r"nvml\w+", body)) | {name.removesuffix("_v3") for name in re.findall(r"nvml\w+", body)}
    assert set(FUNCTIONS) - asked == set()


def test_a_licence_is_held_where_one_is_needed(start: Start) -> None:
    licences = "\n".join(
        f"  - {{kind: answer, at: 10, gpu: 0, function: nvmlDeviceGetGridLicensableFeatures, place: {place}, value: 1}}"
        for place in (0, 1)
    )
    node = start("h100x8", f"faults:\n{licences}")

    def licence(gpu: int) -> tuple[int, int, int]:
        found = pynvml.nvmlDeviceGetGridLicensableFeatures_v4(pynvml.nvmlDeviceGetHandleByIndex(gpu))
        return found.isGridLicenseSupported, found.licensableFeaturesCount, found.gridLicensableFeatures[0].featureState

    assert licence(0) == (0, 0, 0)
    node.step(11)
    assert (licence(0), licence(1)) == ((1, 1, 1), (0, 0, 0))


def test_a_bridge_leads_to_the_other_gpu_of_a_pair(start: Start) -> None:
    start("a100x4-bridge")

    def peers(gpu: int) -> dict[int, str]:
        return nvlink_peers(pynvml.nvmlDeviceGetHandleByIndex(gpu), range(18))

    assert [set(peers(gpu).items()) for gpu in range(4)] == [
        {(link, f"0000:{bus}:00.0") for link in range(12)} for bus in ("31", "17", "ca", "b1")
    ]
    first, second = (pynvml.nvmlDeviceGetHandleByIndex(gpu) for gpu in (0, 2))
    assert pynvml.nvmlDeviceGetP2PStatus(first, second, 2) == pynvml.NVML_P2P_STATUS_NOT_SUPPORTED


def test_ids_of_the_throttle_counters_follow_the_driver(start: Start) -> None:
    scenario = "faults: [{kind: thermal_throttle, at: 10, gpu: 0, duration: 20, hardware: true}]"
    answered = {}
    for profile in ("h100x8", "a100x8-mig", "b200x8"):
        start(profile, scenario, 15.0)
        answered[profile] = fields(pynvml.nvmlDeviceGetHandleByIndex(0), 75, 251, 252, 269, 270)
        pynvml.nvmlShutdown()
    hot, cold, unknown = (0, 5_000_000_000), (0, 0), (pynvml.NVML_ERROR_NOT_SUPPORTED, 0)
    assert answered == {
        "h100x8": [hot, hot, hot, unknown, unknown],
        "a100x8-mig": [hot, unknown, unknown, unknown, unknown],
        "b200x8": [hot, cold, unknown, hot, hot],  # 251 is a power-smoothing knob there
    }


def test_energy_is_the_integral_of_power(start: Start) -> None:
    node = start("h100x8")
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    begin = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    joules = 0.0
    for tick in range(300):
        node.step(tick / 10)
        joules += fields(handle, 186)[0][1] / 1000 * 0.1
    node.step(30.0)
    measured = (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - begin) / 1000
    assert measured == pytest.approx(joules, abs=0.3)
    assert measured > 10_000


def test_counters_grow_by_themselves_up_to_the_end_of_the_step(start: Start) -> None:
    node = start("h100x8")
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    node.step(30.0)
    begin = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    node.step(30.1)
    end = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    node.step(30.0, monotonic_ns=time.monotonic_ns() - 50_000_000, step_seconds=0.1)
    half = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    node.step(30.0, monotonic_ns=time.monotonic_ns() - 10_000_000_000, step_seconds=0.1)
    late = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    assert begin < (begin + end) / 2 <= half <= end
    assert late == end


async def test_the_writer_never_moves_a_counter_back(start: Start) -> None:
    node = start("h100x8")
    handle = pynvml.nvmlDeviceGetHandleByIndex(1)
    clock = SystemClock()
    writer = asyncio.create_task(run_writer(node, clock, origin_ns=clock.monotonic_ns() - 40_000_000_000))
    values = []
    until = time.monotonic() + 0.6
    while time.monotonic() < until:
        values.append(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        await asyncio.sleep(0.001)
    writer.cancel()
    grown = values[10:]  # before the first step it was second 0
    assert grown == sorted(grown)
    assert len(set(grown)) > 100


def test_utilization_power_and_memory_follow_the_pods(start: Start) -> None:
    node = start("h100x8", "", 30.0)
    busy, idle = pynvml.nvmlDeviceGetHandleByIndex(0), pynvml.nvmlDeviceGetHandleByIndex(7)
    rates = [pynvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in (busy, idle)]
    memory = [pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used for handle in (busy, idle)]
    assert (rates, memory[1]) == ([100, 0], 0)
    assert memory[0] > 60e9
    assert pynvml.nvmlDeviceGetPowerUsage(busy) > 400_000
    assert pynvml.nvmlDeviceGetPowerUsage(idle) == 70_000
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(idle) == 1
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(busy)
    assert [process.usedGpuMemory for process in processes] == [memory[0]]
    assert len(pynvml.nvmlDeviceGetProcessUtilization(busy, 0)) == 1
    assert code(pynvml.nvmlDeviceGetProcessUtilization, idle, 0) == pynvml.NVML_ERROR_NOT_FOUND
    node.step(100.0)  # the pod has ended
    assert pynvml.nvmlDeviceGetUtilizationRates(busy).gpu == 0
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(busy) == []


def test_samples(start: Start) -> None:
    node = start("h100x8")
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    for tick in range(1, 201):
        node.step(tick / 10)
    _, samples = pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_GPU_UTILIZATION_SAMPLES, 19_500_000)
    assert [(sample.timeStamp, sample.sampleValue.uiVal) for sample in samples] == [
        (19_600_000, 100), (19_700_000, 100), (19_800_000, 100), (19_900_000, 100), (20_000_000, 100),
    ]  # fmt: skip
    _, samples = pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_GPU_UTILIZATION_SAMPLES, 0)
    assert len(samples) == 120
    assert code(pynvml.nvmlDeviceGetSamples, handle, 1, 30_000_000) == pynvml.NVML_ERROR_NOT_FOUND


def gpm(handle: object, node: SimulatedNvml, begin: float, end: float, ids: list[int]) -> list[tuple[int, float]]:
    first, second = pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()
    node.step(begin)
    pynvml.nvmlGpmSampleGet(handle, first)
    node.step(end)
    pynvml.nvmlGpmSampleGet(handle, second)
    get = pynvml.c_nvmlGpmMetricsGet_t()
    get.version, get.numMetrics, get.sample1, get.sample2 = 1, len(ids), first, second
    for place, number in enumerate(ids):
        get.metrics[place].metricId = number
    pynvml.nvmlGpmMetricsGet(get)
    answer = [(get.metrics[place].nvmlReturn, get.metrics[place].value) for place in range(len(ids))]
    pynvml.nvmlGpmSampleFree(first)
    pynvml.nvmlGpmSampleFree(second)
    return answer


def test_gpm_is_the_mean_between_two_samples(start: Start) -> None:
    node = start("h100x8")
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice == 1
    # One training step of 1.2 s: nine tenths of computing, three of exchanging gradients.
    (_, graphics), (_, sm), (_, tensor), (_, nvlink), (unknown, _) = gpm(handle, node, 24.0, 25.2, [1, 2, 5, 61, 299])
    assert graphics == pytest.approx(100.0)
    assert sm == pytest.approx((0.93 * 9 + 0.35 * 3) / 12 * 100)
    assert tensor == pytest.approx((0.77 * 9 + 0.04 * 3) / 12 * 100)
    per_second = (0.11 * 9 + 0.72 * 3) / 12 * 18 * 26562e6
    assert nvlink == pytest.approx(per_second / 2**20)
    assert unknown == pynvml.NVML_ERROR_NOT_SUPPORTED
    begin = fields(handle, (138, 0xFFFFFFFF), (138, 0))
    node.step(26.4)
    end = fields(handle, (138, 0xFFFFFFFF), (138, 0))
    assert (end[0][1] - begin[0][1]) * 1024 == pytest.approx(per_second * 1.2, rel=1e-6)
    assert (end[1][1] - begin[1][1]) * 1024 * 18 == pytest.approx(per_second * 1.2, rel=1e-6)


def test_gpm_without_time_between_is_no_number(start: Start) -> None:
    node = start("h100x8")
    ((ret, value),) = gpm(pynvml.nvmlDeviceGetHandleByIndex(0), node, 5.0, 5.0, [1])
    assert ret == 0
    assert math.isnan(value)


@pytest.mark.parametrize("profile", ["a100x8-mig", "l40sx4"])
def test_no_gpm_before_hopper(start: Start, profile: str) -> None:
    start(profile)
    handle = pynvml.nvmlDeviceGetHandleByIndex(2)
    assert pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice == 0
    sample = pynvml.nvmlGpmSampleAlloc()
    assert code(pynvml.nvmlGpmSampleGet, handle, sample) == pynvml.NVML_ERROR_NOT_SUPPORTED
    pynvml.nvmlGpmSampleFree(sample)


def test_nvlink_of_two_generations(start: Start) -> None:
    answered = {}
    for profile in ("h100x8", "b200x8"):
        start(profile, "faults: [{kind: nvlink_down, at: 1, gpu: 0, link: 4}]", 5.0)
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        answered[profile] = (
            [pynvml.nvmlDeviceGetNvLinkState(handle, link) for link in range(18)],
            pynvml.nvmlDeviceGetNvLinkVersion(handle, 0),
            [ret for ret, _ in fields(handle, (161, 0), (202, 0xFFFFFFFF), (206, 0))],
            code(pynvml.nvmlDeviceGetNvLinkState, handle, 18),
        )
        pynvml.nvmlShutdown()
    states = [1, 1, 1, 1, 0, *[1] * 13]
    assert answered == {"h100x8": (states, 6, [0, 3, 3], 2), "b200x8": (states, 7, [3, 0, 0], 2)}


def test_l40s_has_no_nvlink_and_no_fan(start: Start) -> None:
    start("l40sx4")
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    failed = [
        code(pynvml.nvmlDeviceGetNvLinkState, handle, 0),
        code(pynvml.nvmlDeviceGetFanSpeed, handle),
        code(pynvml.nvmlDeviceGetMigMode, handle),
    ]
    assert failed == [pynvml.NVML_ERROR_NOT_SUPPORTED] * 3


def mig_devices(handle: object) -> list[tuple[str, int, int]]:
    found = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except pynvml.NVMLError_NotFound:
            continue
        gi = pynvml.nvmlDeviceGetGpuInstanceId(mig)
        info = pynvml.nvmlGpuInstanceGetInfo(pynvml.nvmlDeviceGetGpuInstanceById(handle, gi))
        found.append((pynvml.nvmlDeviceGetName(mig), info.profileId, info.placement.start))
    return found


def test_mig(start: Start) -> None:
    start("a100x8-mig", "", 30.0)
    cut, whole = pynvml.nvmlDeviceGetHandleByIndex(0), pynvml.nvmlDeviceGetHandleByIndex(2)
    assert [pynvml.nvmlDeviceGetMigMode(handle) for handle in (cut, whole)] == [[1, 1], [0, 0]]
    model = "NVIDIA A100-SXM4-40GB MIG "
    assert mig_devices(cut) == [(model + "3g.20gb", 9, 0), (model + "1g.5gb", 19, 4), (model + "1g.5gb", 19, 5)]
    assert mig_devices(whole) == []
    mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(cut, 0)
    attributes = pynvml.nvmlDeviceGetAttributes_v2(mig)
    memory = pynvml.nvmlDeviceGetMemoryInfo(mig, version=pynvml.nvmlMemory_v2)
    process = pynvml.nvmlDeviceGetComputeRunningProcesses(mig)[0]
    assert (attributes.gpuInstanceSliceCount, attributes.memorySizeMB, memory.total) == (3, 19968, 19968 << 20)
    assert (process.gpuInstanceId, process.usedGpuMemory) == (1, memory.used)
    parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig)
    assert pynvml.nvmlDeviceGetIndex(parent) == 0
    unsupported = [
        code(pynvml.nvmlDeviceGetUtilizationRates, cut),
        code(pynvml.nvmlDeviceGetUtilizationRates, mig),
        code(pynvml.nvmlDeviceGetPowerUsage, mig),
        code(pynvml.nvmlDeviceGetSamples, cut, 1, 0),
        code(pynvml.nvmlDeviceGetRemappedRows, cut),
    ]
    assert unsupported == [pynvml.NVML_ERROR_NOT_SUPPORTED] * 5
    assert pynvml.nvmlDeviceGetPowerUsage(cut) > 52_000


def test_gpm_of_a_mig_device(start: Start) -> None:
    scenario = """
pods: [{namespace: a, name: b, workload: training, claims: [{name: c, devices: ["mig:0/0"]}]}]
faults: [{kind: mig_change, at: 0.1, gpu: 0, layout: [3g.40gb, 1g.10gb]}]
"""
    node = start("h100x8", scenario, 1.0)
    parent = pynvml.nvmlDeviceGetHandleByIndex(0)
    used, unused = (pynvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, index) for index in (0, 1))
    assert gpm(used, node, 24.0, 25.2, [1, 60]) == [(0, pytest.approx(100.0)), (3, 0.0)]
    assert gpm(unused, node, 25.2, 26.4, [1]) == [(0, 0.0)]
    assert code(pynvml.nvmlGpmSampleGet, parent, pynvml.nvmlGpmSampleAlloc()) == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_a_mig_change_kills_the_old_handles_and_is_told(start: Start) -> None:
    node = start("a100x8-mig", "faults: [{kind: mig_change, at: 5, gpu: 0, layout: [2g.10gb, 3g.20gb]}]", 4.0)
    parent = pynvml.nvmlDeviceGetHandleByIndex(0)
    old = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, 0)
    events = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(parent, pynvml.nvmlEventMigConfigChange, events)
    node.step(5.0)
    assert pynvml.nvmlEventSetWait_v2(events, 0).eventType == pynvml.nvmlEventMigConfigChange
    assert [name.split()[-1] for name, _, _ in mig_devices(parent)] == ["2g.10gb", "3g.20gb"]
    assert code(pynvml.nvmlDeviceGetUUID, old) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    pynvml.nvmlEventSetFree(events)


def test_events(start: Start) -> None:
    scenario = """
faults:
  - {kind: xid, at: 1, gpu: 0, code: 48}
  - {kind: xid, at: 2, gpu: 0, code: 63}
  - {kind: xid, at: 2, gpu: 3, code: 31}
  - {kind: lost, at: 3, gpu: 3}
"""
    node = start("h100x8", scenario)
    first, fourth = pynvml.nvmlDeviceGetHandleByIndex(0), pynvml.nvmlDeviceGetHandleByIndex(3)
    node.step(1.0)
    events = pynvml.nvmlEventSetCreate()
    for handle in (first, fourth):
        pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
    assert code(pynvml.nvmlEventSetWait_v2, events, 0) == pynvml.NVML_ERROR_TIMEOUT  # before the registration
    node.step(3.0)
    got = [pynvml.nvmlEventSetWait_v2(events, 0) for _ in range(3)]
    address = {ctypes.cast(handle, ctypes.c_void_p).value: gpu for handle, gpu in ((first, 0), (fourth, 3))}
    assert [
        (address[ctypes.cast(event.device, ctypes.c_void_p).value], event.eventData, event.gpuInstanceId)
        for event in got
    ] == [(0, 63, 0xFFFFFFFF), (3, 31, 0xFFFFFFFF), (3, 79, 0xFFFFFFFF)]
    assert code(pynvml.nvmlDeviceGetIndex, got[2].device) == pynvml.NVML_ERROR_GPU_IS_LOST
    begin = time.monotonic()
    assert code(pynvml.nvmlEventSetWait_v2, events, 30) == pynvml.NVML_ERROR_TIMEOUT
    assert time.monotonic() - begin >= 0.03
    pynvml.nvmlEventSetFree(events)


def test_an_xid_of_a_mig_device_names_it(start: Start) -> None:
    node = start("a100x8-mig", "faults: [{kind: xid, at: 1, gpu: 0, code: 43, mig: 1}]")
    events = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(pynvml.nvmlDeviceGetHandleByIndex(0), 8, events)
    node.step(1.0)
    event = pynvml.nvmlEventSetWait_v2(events, 0)
    assert (event.eventData, event.gpuInstanceId, event.computeInstanceId) == (43, 7, 0)


def test_a_lost_gpu_and_its_return(start: Start) -> None:
    node = start("h100x8", "faults: [{kind: lost, at: 10, gpu: 2, duration: 10}]", 5.0)
    gone, other = pynvml.nvmlDeviceGetHandleByIndex(2), pynvml.nvmlDeviceGetHandleByIndex(7)
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(gone)
    node.step(12.0)
    failed = [
        code(pynvml.nvmlDeviceGetPowerUsage, gone),
        code(pynvml.nvmlDeviceGetUUID, gone),
        code(pynvml.nvmlDeviceGetHandleByIndex, 2),
        fields(gone, 83)[0][0],
    ]
    assert failed == [pynvml.NVML_ERROR_GPU_IS_LOST] * 4
    assert (pynvml.nvmlDeviceGetCount(), pynvml.nvmlDeviceGetPowerUsage(other)) == (8, 70_000)
    node.step(22.0)
    again = pynvml.nvmlDeviceGetHandleByIndex(2)
    assert pynvml.nvmlDeviceGetUUID(again) == node.world.profile.gpu_uuid(2)
    assert 0 < pynvml.nvmlDeviceGetTotalEnergyConsumption(again) < before


def test_ecc_errors_and_row_remapping(start: Start) -> None:
    scenario = """
faults:
  - {kind: ecc, at: 1, gpu: 0, type: corrected, location: l2_cache, count: 3}
  - {kind: ecc, at: 2, gpu: 0, type: uncorrected, location: dram}
  - {kind: ecc, at: 3, gpu: 0, type: uncorrected, location: sram, count: 4}
"""
    start("h100x8", scenario, 5.0)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    totals = [pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, 0) for kind in (0, 1)]
    sram = pynvml.c_nvmlEccSramErrorStatus_v1_t()
    sram.version = pynvml.nvmlEccSramErrorStatus_v1
    pynvml.nvmlDeviceGetSramEccErrorStatus(handle, ctypes.byref(sram))
    histogram = pynvml.nvmlDeviceGetRowRemapperHistogram(handle)
    assert totals == [3, 5]
    assert pynvml.nvmlDeviceGetMemoryErrorCounter(handle, 0, 0, 1) == 3
    assert pynvml.nvmlDeviceGetMemoryErrorCounter(handle, 1, 1, 2) == 1
    assert [value for _, value in fields(handle, 3, 4, 5, 6, 9, 12, 20, 23)] == [3, 5, 3, 5, 3, 1, 3, 1]
    assert tuple(pynvml.nvmlDeviceGetRemappedRows(handle)) == (0, 1, 1, 0)
    assert (histogram.max, histogram.high) == (639, 1)
    assert (sram.aggregateUncSecDed, sram.bThresholdExceeded) == (4, 1)
    assert fields(handle, 230) == [(0, 1)]


def test_thermal_throttling(start: Start) -> None:
    node = start("h100x8", "faults: [{kind: thermal_throttle, at: 20, gpu: 0, duration: 30}]", 19.0)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    clock = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
    node.step(40.0)
    assert pynvml.nvmlDeviceGetTemperatureV(handle, 0) >= 89
    assert pynvml.nvmlDeviceGetMarginTemperature(handle) <= 0
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & 0x20
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) < 0.8 * clock
    node.step(60.0)
    assert not pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & 0x20


def test_return_codes_of_functions_and_fields(start: Start) -> None:
    scenario = """
faults:
  - {kind: return_code, at: 1, gpu: 0, function: nvmlDeviceGetPowerUsage, code: 4, duration: 2}
  - {kind: return_code, at: 1, function: nvmlDeviceGetUtilizationRates, code: 999}
  - {kind: return_code, at: 1, gpu: 0, function: nvmlDeviceGetMemoryInfo_v2, code: 4}
  - {kind: return_code, at: 1, gpu: 0, field: 83, code: 27}
"""
    node = start("h100x8", scenario, 2.0)
    first, second = pynvml.nvmlDeviceGetHandleByIndex(0), pynvml.nvmlDeviceGetHandleByIndex(1)
    assert code(pynvml.nvmlDeviceGetPowerUsage, first) == pynvml.NVML_ERROR_NO_PERMISSION
    assert pynvml.nvmlDeviceGetPowerUsage(second) == 70_000
    assert code(pynvml.nvmlDeviceGetUtilizationRates, second) == pynvml.NVML_ERROR_UNKNOWN
    assert code(pynvml.nvmlDeviceGetMemoryInfo, first) == pynvml.NVML_ERROR_NO_PERMISSION
    assert [ret for ret, _ in fields(first, 83, 186)] == [pynvml.NVML_ERROR_NOT_READY, 0]
    node.step(4.0)
    assert pynvml.nvmlDeviceGetPowerUsage(first) > 0


def test_a_driver_reload(start: Start) -> None:
    node = start("h100x8", "faults: [{kind: driver_reload, at: 10, duration: 5, version: 580.105.08}]", 9.0)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    node.step(11.0)
    assert code(pynvml.nvmlDeviceGetPowerUsage, handle) == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    pynvml.nvmlShutdown()
    assert code(pynvml.nvmlInit) == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    node.step(16.0)
    pynvml.nvmlInit()
    assert pynvml.nvmlSystemGetDriverVersion() == "580.105.08"
    assert code(pynvml.nvmlDeviceGetPowerUsage, handle) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0)) < before


def test_handles_that_outlive_a_reload_are_lost(start: Start) -> None:
    node = start("h100x8", "faults: [{kind: driver_reload, at: 10, duration: 5}]", 9.0)
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    node.step(16.0)
    assert code(pynvml.nvmlDeviceGetPowerUsage, handle) == pynvml.NVML_ERROR_GPU_IS_LOST


def test_initialisations_are_counted(start: Start) -> None:
    start("h100x8")
    pynvml.nvmlInit()
    pynvml.nvmlShutdown()
    assert pynvml.nvmlDeviceGetCount() == 8
    pynvml.nvmlShutdown()
    assert code(pynvml.nvmlDeviceGetCount) == pynvml.NVML_ERROR_UNINITIALIZED


def test_without_a_state_there_is_no_driver(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(STATE_VARIABLE, raising=False)
    assert code(pynvml.nvmlInit) == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    wrong = tmp_path / "wrong"
    wrong.write_text("not a state")
    monkeypatch.setenv(STATE_VARIABLE, str(wrong))
    assert code(pynvml.nvmlInit) == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH


def test_a_hang_lasts_until_it_is_healed(start: Start) -> None:
    node = start("h100x8", "faults: [{kind: hang, at: 10, gpu: 0, duration: 10}]", 9.0)
    handle, other = pynvml.nvmlDeviceGetHandleByIndex(0), pynvml.nvmlDeviceGetHandleByIndex(7)
    node.step(12.0)
    done = threading.Event()

    def ask() -> None:
        pynvml.nvmlDeviceGetPowerUsage(handle)
        done.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    assert not done.wait(0.1)
    assert pynvml.nvmlDeviceGetPowerUsage(other) == 70_000
    node.step(21.0)
    assert done.wait(5.0)
    thread.join(5.0)


CHILD = """
import os, pynvml
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
print("ready", flush=True)
os.read(0, 1)
print(pynvml.nvmlDeviceGetPowerUsage(handle), flush=True)
"""


@pytest.mark.parametrize("kind", ["hang", "crash"])
def test_a_process_in_a_hang_or_crash_ends_by_signal(kind: str) -> None:
    scenario = f"faults: [{{kind: {kind}, at: 1, gpu: 0, duration: 9, function: nvmlDeviceGetPowerUsage}}]"
    with SimulatedNvml(make_world("h100x8", decode_scenario(scenario))) as node:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env={**os.environ, **node.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        with child:
            assert child.stdout.readline() == b"ready\n"
            node.step(5.0)
            child.stdin.write(b"x")
            child.stdin.flush()
            if kind == "hang":
                assert select.select([child.stdout], [], [], 0.1)[0] == []
                child.terminate()
            assert child.wait(10) == (-signal.SIGTERM if kind == "hang" else -signal.SIGABRT)


def test_a_missing_compiler_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SimulatorError) as caught:
        build_library(tmp_path)
    assert str(caught.value) == (
        "the simulated NVML needs a C compiler, and there is none in PATH (tried cc, gcc, clang). "
        "Install one, on Debian or Ubuntu: apt-get install gcc libc6-dev"
    )


async def test_nvitop_exporter_runs_on_it() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clock = SystemClock()
    with SimulatedNvml(make_world("h100x8")) as node:
        began_ns = clock.monotonic_ns() - 20_000_000_000
        writer = asyncio.create_task(run_writer(node, clock, origin_ns=began_ns))
        command = [f"{os.path.dirname(sys.executable)}/nvitop-exporter", "-B", "127.0.0.1", "-p", str(port)]
        exporter = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [*command, "--interval", "0.25"],
            env={**os.environ, **node.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            text = await asyncio.to_thread(_scrape, f"http://127.0.0.1:{port}/metrics", exporter)
        finally:
            exporter.terminate()
            exporter.communicate(timeout=10)
            writer.cancel()
        uuid = node.world.profile.gpu_uuid(0)
    shown = {
        (name, found["uuid"]): float(value)
        for name, labels, value in re.findall(r"^(gpu_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE)
        for found in [dict(re.findall(r'(\w+)="([^"]*)"', labels))]
    }
    assert sum(name == "gpu_power_usage_W" for name, _ in shown) == 8
    assert shown["gpu_utilization_Percentage", uuid] == 100
    assert shown["gpu_memory_total_MiB", uuid] == 81559
    assert 300 < shown["gpu_power_usage_W", uuid] <= 700
    assert shown["gpu_nvlink_total_tx_throughput_MiBps", uuid] > 1000


def _scrape(url: str, process: subprocess.Popen[bytes]) -> str:
    """The page, as soon as it shows the NVLink rate of every GPU, for which it needs two samples."""
    deadline = time.monotonic() + 30
    text: str = ""
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0].decode()
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                text = str(answer.read(), "utf-8")
            if len(re.findall(r"^gpu_nvlink_total_tx_throughput_MiBps\{.*\} \d", text, re.MULTILINE)) == 8:
                return text
        except (urllib.error.URLError, ConnectionError):
            pass
        threading.Event().wait(0.1)
    raise AssertionError(f"nvitop-exporter showed no eight GPUs within 30 s: {text[-500:]}")


def test_the_environment_is_enough_for_a_child() -> None:
    text = "import json, pynvml; pynvml.nvmlInit(); print(json.dumps([pynvml.nvmlDeviceGetCount()]))"
    with SimulatedNvml(make_world("l40sx4")) as node:
        done = subprocess.run(
            [sys.executable, "-c", text], env={**os.environ, **node.environment}, capture_output=True, check=True
        )
    assert json.loads(done.stdout) == [4]
