"""What goes wrong in the demo, when, and which alerts say so? A timetable, and the scenarios of its nodes.

Everything heals again but what only a repair would, so that alerts are seen to come and to go.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import msgspec

from claimscope.sim.scenario import (
    AnswerFault,
    ClaimPlan,
    ClocksLowFault,
    DriverEventFault,
    DriverReloadFault,
    EccFault,
    Fault,
    LostFault,
    NvlinkDownFault,
    NvlinkErrorsFault,
    PodPlan,
    PowerBrakeFault,
    Scenario,
    SlowFault,
    ThermalFault,
)

FACTOR: Final = 30  # alerts and findings of health are held for that much shorter than elsewhere
FIRST: Final = "demo-node-1"  # of the chosen profile; what breaks there is the last GPU
SECOND: Final = "demo-node-2"  # eight H100, whose pods are those below
THIRD: Final = "demo-node-3"  # eight A100, two of them cut by MIG
CONTROLLER: Final = "the controller"
_WIDTH: Final = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One thing that goes wrong."""

    at: float  # seconds after the start
    lasts: float | None = None  # None: until the end
    words: str
    alerts: Mapping[str, int]  # that fire because of it, and about when, in seconds after the start
    stays: str = ""  # what ends its alerts, where that is not its own end
    node: str = ""
    faults: tuple[Fault, ...] = ()  # of that node; their `at` counts from the act's
    stops: str = ""  # the part of the demo that is not there meanwhile
    maintenance: bool = False  # of that node, asked for with a deadline that is missed


def agent_of(node: str) -> str:
    """What an agent is called among the parts of the demo."""
    return f"the agent of {node}"


SCRIPT: Final = (
    Act(
        at=0, words="claims wait or are held in vain, one for every cause",
        alerts={
            "DRAWatchdog": 7, "DRAClaimPendingTooLong": 13, "DRAClaimHeldNotRunning": 13, "DRADriverAbsent": 23,
            "DRAPrepareFailing": 23, "DRADevicesAdvertisedTwice": 31, "DRADeviceClassBacklog": 33,
            "DRASchedulingStalled": 34, "DRAPoolIncomplete": 41, "DRADeviceClassExhausted": 43, "DRAClaimLeaked": 95,
            "DRAClaimIdle": 135,
        },
    ),
    Act(
        at=0, node=SECOND, words="GPU 7 has a lower power limit than all others", alerts={},
        faults=(AnswerFault(at=0, gpu=7, function="nvmlDeviceGetEnforcedPowerLimit", value=500_000),),
    ),
    Act(
        at=0, node=SECOND, words="a server nearly fills the memory of GPU 4", alerts={"DRAClaimMemoryNearlyFull": 43},
    ),
    Act(
        at=15, words="GPU 7 of demo-node-1 reports XID 95, and the driver wants a reset",
        alerts={"DRADeviceXid": 17, "DRADeviceFailed": 21, "DRAClaimOnUnhealthyDevice": 33},
        stays="until a reset, the last comes and goes with each job that lands there",
    ),
    Act(
        at=20, lasts=150, node=SECOND, words="GPU 2 runs at half the clocks of the other three of its job",
        alerts={"DRAClaimStraggler": 55}, faults=(ClocksLowFault(at=0, gpu=2),),
    ),
    Act(
        at=25, lasts=100, node=SECOND, words="the heat slows GPU 5 down", alerts={"DRADeviceThermalThrottling": 49},
        faults=(ThermalFault(at=0, gpu=5, hardware=True),),
    ),
    Act(
        at=30, lasts=120, node=SECOND, words="NVLink 5 of GPU 3 goes down",
        alerts={"DRADeviceNVLinkDown": 39}, faults=(NvlinkDownFault(at=0, gpu=3, link=5),),
    ),
    Act(
        at=35, lasts=90, node=SECOND, words="NVLink 1 of GPU 1 counts errors", alerts={"DRADeviceNVLinkErrors": 59},
        faults=tuple(NvlinkErrorsFault(at=2.0 * turn, gpu=1, link=1, count=10) for turn in range(45)),
    ),
    Act(
        at=40, lasts=80, node=SECOND, words="the power supply brakes GPU 6", alerts={"DRADevicePowerBrake": 53},
        faults=(PowerBrakeFault(at=0, gpu=6),),
    ),
    Act(
        at=45, node=SECOND, words="a memory row of GPU 0 breaks, and is remapped at the next reset",
        alerts={"DRADeviceEccUncorrected": 49, "DRADeviceRowRemapPending": 49}, faults=(EccFault(at=0, gpu=0),),
        stays="for a minute, the second until a reset",
    ),
    Act(
        at=50, node=SECOND, words="the driver tells of a storm of corrected memory errors on GPU 7",
        alerts={"DRADeviceDegraded": 61}, faults=(DriverEventFault(at=0, gpu=7, event="ecc_single_bit_storm"),),
        stays="until a reset",
    ),
    Act(
        at=50, node=THIRD, words="a memory row of GPU 7 breaks, and there is no spare one",
        alerts={"DRADeviceRowRemapFailure": 53}, faults=(EccFault(at=0, gpu=7, remap_failure=True),),
        stays="until a repair",
    ),
    Act(
        at=60, lasts=75, node=THIRD, words="five of eight GPUs are close to shutting down for heat",
        alerts={"DRASystemicFindingOnNode": 77, "DRASystemicFindingGrave": 77},
        faults=tuple(ThermalFault(at=0, gpu=gpu, hardware=True, celsius=95) for gpu in range(2, 7)),
        stays="until they were cool for a while, about +260 s",
    ),
    Act(
        at=70, lasts=100, node=THIRD, words="maintenance is asked for, and the node is not empty in time",
        alerts={"DRAMaintenanceDeadlineMissed": 85}, maintenance=True,
    ),
    Act(
        at=130, lasts=60, node=SECOND, words="GPU 6 falls off the bus, XID 79",
        alerts={"DRADeviceXid": 132, "DRADeviceFailed": 134},
        faults=(LostFault(at=0, gpu=6),),
    ),
    Act(
        at=190, lasts=20, words="the controller is away, and other alerts stay as they were",
        alerts={"DRAControllerDown": 202}, stops=CONTROLLER,
    ),
    Act(
        at=235, lasts=90, node=THIRD, words="calls of NVML take their time", alerts={"DRAAgentSamplesLate": 248},
        faults=(SlowFault(at=0, gpu=0, function="nvmlDeviceGetFieldValues", milliseconds=250),),
    ),
    Act(
        at=180, lasts=25, node=THIRD, words="the driver is unloaded",
        alerts={"DRANvmlDown": 193, "DRASamplerDown": 198},
        faults=(DriverReloadFault(at=0),),
    ),
    Act(
        at=240, lasts=60, words="the agent of demo-node-1 is away",
        alerts={"DRAAgentDown": 284}, stops=agent_of(FIRST),
    ),
)  # fmt: skip

_PODS: Final = (
    PodPlan(
        namespace="ml-research", name="pretrain", workload="training",
        claims=(ClaimPlan(name="pretrain-gpus", devices=("gpu:0", "gpu:1", "gpu:2", "gpu:3")),),
    ),
    PodPlan(
        namespace="serving", name="long-context", workload="crowded",
        claims=(ClaimPlan(name="long-context-gpu", devices=("gpu:4",)),),
    ),
    PodPlan(
        namespace="serving", name="chat", workload="inference",
        claims=(ClaimPlan(name="chat-gpu", devices=("gpu:5",)),),
    ),
    PodPlan(
        namespace="legacy", name="render-farm", workload="data_starved", plugin={"nvidia.com/gpu": ("gpu:6",)},
    ),
    PodPlan(
        namespace="ml-research", name="forgotten-notebook", workload="idle",
        claims=(ClaimPlan(name="forgotten-gpu", devices=("gpu:7",)),),
    ),
)  # fmt: skip
PODS: Final[Mapping[str, tuple[PodPlan, ...]]] = MappingProxyType({SECOND: _PODS})


def scenarios(acts: Iterable[Act]) -> dict[str, Scenario]:
    """What the nodes play."""
    faults: dict[str, list[Fault]] = {node: [] for node in PODS}
    for act in acts:
        for fault in act.faults:
            changes: dict[str, float] = {"at": act.at + fault.at}
            if act.lasts is not None and "duration" in fault.__struct_fields__:
                changes["duration"] = act.lasts
            faults.setdefault(act.node, []).append(msgspec.structs.replace(fault, **changes))
    return {node: Scenario(pods=PODS.get(node), faults=tuple(found)) for node, found in faults.items()}


def timetable(acts: Iterable[Act]) -> list[str]:
    """The acts as lines to read."""
    lines = []
    for act in sorted(acts, key=lambda act: act.at):
        where = f"{act.node}: " if act.node else ""
        until = f", until +{act.at + act.lasts:.0f} s" if act.lasts is not None else ""
        stays = f" (alerts stay {act.stays})" if act.stays else ""
        alerts = ", ".join(f"{name} +{seconds} s" for name, seconds in act.alerts.items()) or "no alert"
        lines += textwrap.wrap(
            f"+{act.at:3.0f} s  {where}{act.words}{until}: {alerts}{stays}", _WIDTH,
            subsequent_indent=" " * 8,
        )
    return lines
