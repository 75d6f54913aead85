"""Which faults can be played, and which of them makes which rule of health fire? Also the reference page of both."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, get_args

import msgspec

from claimscope.health.rules import RULES
from claimscope.sim.scenario import (
    AnswerFault,
    ClaimPlan,
    ClocksLowFault,
    DriverEventFault,
    DriverReloadFault,
    EccFault,
    FabricFault,
    Fault,
    NvlinkDownFault,
    NvlinkErrorsFault,
    NvlinkRecoveryFault,
    PodPlan,
    PowerBrakeFault,
    RecoveryActionFault,
    StalledFault,
    ThermalFault,
    XidFault,
)

AT: Final = 240.0  # after the grace of the start, in seconds of the simulation
GPU: Final = 2
MINUTES: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """What makes one rule fire on one GPU."""

    rule: str
    faults: tuple[Fault, ...]
    seconds: float  # after AT: until the rule has fired
    profile: str = "h100x8"
    trained: tuple[int, ...] = (GPU,)  # GPUs that work meanwhile

    @property
    def pods(self) -> tuple[PodPlan, ...]:
        """One training pod for each GPU that works."""
        return tuple(
            PodPlan(
                namespace="ml", name=f"train-{gpu}", workload="training",
                claims=(ClaimPlan(name=f"gpu-{gpu}", devices=(f"gpu:{gpu}",)),),
            )
            for gpu in self.trained
        )  # fmt: skip


def _function(name: str, value: float, place: int = 0) -> AnswerFault:
    return AnswerFault(at=AT, gpu=GPU, function=name, place=place, value=value)


def _field(number: int, value: float, per_second: float = 0.0) -> AnswerFault:
    return AnswerFault(at=AT, gpu=GPU, field=number, value=value, per_second=per_second)


def _power(milliwatts: float) -> tuple[Fault, ...]:
    return _function("nvmlDeviceGetPowerUsage", milliwatts), _field(186, milliwatts)


def _link_errors(minutes: int) -> tuple[Fault, ...]:
    return tuple(NvlinkErrorsFault(at=AT + MINUTES * minute, gpu=GPU, link=1) for minute in range(minutes))


def _hot(celsius: float | None = None, *, hardware: bool = False) -> ThermalFault:
    return ThermalFault(at=AT, gpu=GPU, duration=7200, hardware=hardware, celsius=celsius)


def _xid(code: int, at: float = AT) -> XidFault:
    return XidFault(at=at, gpu=GPU, code=code)


def _action(action: int) -> RecoveryActionFault:
    return RecoveryActionFault(at=AT, gpu=GPU, action=action)


DRILLS: Final[tuple[Drill, ...]] = (
    Drill(rule="recovery_action", seconds=60, faults=(_action(1),)),
    Drill(rule="recovery_action_reboot", seconds=60, faults=(_action(2),)),
    Drill(rule="recovery_action_peer", seconds=120, faults=(_action(3),)),
    Drill(rule="reset_failed", seconds=120, faults=(_action(1), DriverReloadFault(at=AT + 30))),
    Drill(rule="xid_lost", seconds=60, faults=(_xid(79),)),
    Drill(rule="xid_fatal", seconds=60, faults=(_xid(95),)),
    Drill(rule="xid_needs_reboot", seconds=60, faults=(_xid(151), _action(2))),
    Drill(rule="xid_needs_repair", seconds=60, faults=(_xid(64),)),
    Drill(rule="xid_degraded", seconds=60, faults=(_xid(110),)),  # the driver wants nothing
    Drill(rule="xid_unknown", seconds=60, faults=(_xid(999),)),
    Drill(rule="xid_repeat_fatal", seconds=300, faults=(_xid(109), _xid(109, AT + 240))),
    Drill(
        rule="driver_event_degraded", seconds=60,
        faults=(DriverEventFault(at=AT, gpu=GPU, event="ecc_single_bit_storm"),),
    ),
    Drill(
        rule="driver_event_fatal", seconds=60,
        faults=(DriverEventFault(at=AT, gpu=GPU, event="fatal_poison"), _action(1)),
    ),
    Drill(rule="ecc_uncorrected_dram", seconds=120, faults=(EccFault(at=AT, gpu=GPU),)),
    Drill(rule="ecc_uncorrected_sram", seconds=120, faults=(EccFault(at=AT, gpu=GPU, location="sram"),)),
    Drill(
        rule="sram_ecc_threshold", seconds=60, faults=(_function("nvmlDeviceGetSramEccErrorStatus", 1, place=11),)
    ),
    Drill(rule="ecc_corrected_storm", seconds=12 * MINUTES, faults=(_field(3, 0, per_second=50),)),
    Drill(rule="row_remap_pending", seconds=120, faults=(EccFault(at=AT, gpu=GPU),)),
    Drill(rule="row_remap_failure", seconds=120, faults=(EccFault(at=AT, gpu=GPU, remap_failure=True),)),
    Drill(rule="remapped_rows_many", seconds=60, faults=(EccFault(at=AT, gpu=GPU, count=600),)),
    Drill(
        rule="repair_pending", seconds=120, profile="b200x8", faults=(_function("nvmlDeviceGetRepairStatus", 1),)
    ),
    Drill(rule="nvlink_down", seconds=180, faults=(NvlinkDownFault(at=AT, gpu=GPU, link=5),)),
    Drill(rule="nvlink_errors", seconds=31 * MINUTES, faults=_link_errors(31)),
    Drill(rule="nvlink_crc", seconds=5 * MINUTES, faults=(_field(38, 0, per_second=500),)),
    Drill(rule="nvlink5_errors", seconds=12 * MINUTES, profile="b200x8", faults=_link_errors(11)),
    Drill(
        rule="nvlink_recovery_failed", seconds=60, profile="b200x8",
        faults=(NvlinkRecoveryFault(at=AT, gpu=GPU, link=3, failed=True),),
    ),
    Drill(
        rule="nvlink_recoveries", seconds=13 * MINUTES, profile="b200x8",
        faults=tuple(NvlinkRecoveryFault(at=AT + 61 * turn, gpu=GPU, link=3) for turn in range(11)),
    ),
    Drill(
        rule="fabric_not_ready", seconds=7 * MINUTES, faults=(FabricFault(at=AT, gpu=GPU, state="in_progress"),)
    ),
    Drill(
        rule="fabric_unhealthy", seconds=4 * MINUTES, faults=(FabricFault(at=AT, gpu=GPU, fault="route_unhealthy"),)
    ),
    Drill(
        rule="fabric_degraded", seconds=4 * MINUTES, profile="b200x8",
        faults=(FabricFault(at=AT, gpu=GPU, fault="degraded_bandwidth"),),
    ),
    Drill(rule="pcie_width", seconds=8 * MINUTES, faults=(_function("nvmlDeviceGetCurrPcieLinkWidth", 4),)),
    Drill(rule="pcie_generation", seconds=8 * MINUTES, faults=(_function("nvmlDeviceGetCurrPcieLinkGeneration", 1),)),
    Drill(rule="pcie_replays", seconds=12 * MINUTES, faults=(_field(94, 0, per_second=200),)),
    Drill(rule="pcie_errors_correctable", seconds=62 * MINUTES, faults=(_field(173, 0, per_second=0.1),)),
    Drill(rule="pcie_errors_non_fatal", seconds=60, faults=(_field(179, 1),)),
    Drill(rule="pcie_errors_fatal", seconds=60, faults=(_field(180, 1),)),
    Drill(rule="thermal_slowdown", seconds=12 * MINUTES, faults=(_hot(hardware=True),)),
    Drill(rule="thermal_slowdown_lasting", seconds=20 * MINUTES, faults=(_hot(hardware=True),)),
    Drill(rule="thermal_margin", seconds=17 * MINUTES, faults=(_hot(),)),
    Drill(rule="thermal_shutdown", seconds=2 * MINUTES, faults=(_hot(91.0),)),
    Drill(rule="power_brake", seconds=12 * MINUTES, faults=(PowerBrakeFault(at=AT, gpu=GPU, duration=3600),)),
    Drill(rule="power_excess", seconds=3 * MINUTES, faults=_power(900_000)),
    Drill(rule="power_absent", seconds=7 * MINUTES, faults=_power(1000)),
    Drill(
        rule="clocks_low", seconds=13 * MINUTES, trained=(0, 1, 2, 3, 4),
        faults=(ClocksLowFault(at=AT, gpu=GPU),),
    ),
    Drill(rule="hang", seconds=17 * MINUTES, faults=(StalledFault(at=AT, gpu=GPU),)),
    Drill(rule="mig_mode", seconds=17 * MINUTES, faults=(_function("nvmlDeviceGetMigMode", 1, place=1),)),
)  # fmt: skip

# Rules that no drill of one GPU's readings makes fire, and what does.
OTHERWISE: Final[tuple[tuple[str, str], ...]] = (
    ("gpu_lost", "`lost` in the agent: the sampler finds that the GPU does not answer"),
    ("reset_required", "`lost` with code 16 in the agent"),
    ("driver_call_hangs", "`hang` in the agent: the call is given up and the GPU left out"),
    ("gpu_missing", "not simulated: the simulated driver lists a GPU as long as the node has it"),
    ("xid_repeat", "`xid` in the agent, while pods come and go on the GPU: repeats from one pod are its own"),
    ("retired_pages_pending", "not simulated: GPUs before Ampere"),
    ("retired_pages_many", "not simulated: GPUs before Ampere"),
)


_HEAD = """\
<!-- Written by `make docs` from exporter/claimscope/sim. -->
# Simulated faults

`claimscope agent --simulate PROFILE --scenario FILE` plays a node without GPUs: real NVML calls are answered by a
simulated driver library. The file names pods and faults; times are seconds since the simulation began.

```yaml
faults:
  - {kind: xid, at: 30, gpu: 1, code: 79}
  - {kind: clocks_low, at: 60, gpu: 2, ratio: 0.5}
```

## Faults

A fault without a duration lasts for ever.
"""


def document() -> str:
    """docs/simulator.md, whole."""
    rules = {rule.key: rule for rule in RULES}
    drills = ((f"`{one.rule}`", rules[one.rule].title, f"`{one.profile}`", _played(one)) for one in DRILLS)
    others = ((f"`{rule}`", rules[rule].title, "", how) for rule, how in OTHERWISE)
    parts = [
        _HEAD,
        _table(("kind", "what happens", "fields"), map(_kind, get_args(Fault))),
        "## Which fault makes which rule fire\n",
        f"On GPU {GPU} under load, {AT:g} s after the start; tests play each of them through the agent's readers.\n",
        _table(("rule", "finding", "profile", "faults"), (*drills, *others)),
    ]
    return "\n".join(parts)


def _kind(fault: type[msgspec.Struct]) -> tuple[str, ...]:
    fields = ", ".join(
        f"`{field.name}`" if field.required else f"`{field.name}: {_shown(field.default)}`"
        for field in msgspec.structs.fields(fault)
    )
    words = " ".join((inspect.getdoc(fault) or "").split())
    return f"`{fault.__struct_config__.tag}`", words, fields


def _played(drill: Drill) -> str:
    played = [msgspec.to_builtins(fault) for fault in drill.faults]
    gaps = {later["at"] - earlier["at"] for earlier, later in pairwise(played)}
    alike = all({**fault, "at": 0} == {**played[0], "at": 0} for fault in played)
    if alike and len(gaps) == 1:
        return f"`{{{_settings(played[0])}}}`, then every {gaps.pop():g} s until {played[-1]['at']:g}"
    return ", ".join(f"`{{{_settings(fault)}}}`" for fault in played)


def _settings(fault: Mapping[str, object]) -> str:
    return ", ".join(f"{key}: {_shown(value)}" for key, value in fault.items() if value is not None)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return msgspec.json.encode(value).decode().strip('"')


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"
