"""What would the driver say of a GPU and its MIG devices at time t?"""

from __future__ import annotations

import math
import uuid

from claimscope.sim import work
from claimscope.sim.history import History, Leaf, Stretch
from claimscope.sim.moment import ATTRIBUTABLE_TO_NOBODY, NAMESPACE, WHOLE, EntityState, SimProcess
from claimscope.sim.profiles import MEBIBYTE, MigPlace
from claimscope.sim.scenario import Fault, HangFault, LostFault, PodPlan, ThermalFault
from claimscope.sim.timeline import Timeline, end_of, position
from claimscope.sim.workloads import WORKLOADS


def gpu_states(history: History, gpu: int, t_seconds: float) -> list[EntityState]:
    """The GPU, then its MIG devices."""
    timeline = history.timeline
    faults = timeline.faults_of(gpu, t_seconds) if timeline.scenario.faults else ()
    lost, hanging = 0, False
    for fault in faults:
        if t_seconds < end_of(fault):
            if isinstance(fault, LostFault):
                lost = fault.code
            elif isinstance(fault, HangFault) and fault.function is None:
                hanging = True
    number = timeline.layout_number(gpu, t_seconds)
    reset = timeline.last_reset(gpu, t_seconds) if faults else 0.0
    version = timeline.driver(t_seconds)[1] if faults else timeline.profile.driver_version
    facts = (
        version,
        number,
        reset,
        tuple((timeline.scenario.faults.index(fault), t_seconds < end_of(fault)) for fault in faults),
    )
    places = timeline.layouts(gpu)[number][1]
    cell = position(t_seconds)
    leaves = history.leaves_of(gpu, number)
    here = [(leaf, leaf.stretch(cell)) for leaf in leaves]
    gauges = [stretch.table.gauge(cell) for _, stretch in here]
    memory = [_memory(timeline, leaf, stretch) for leaf, stretch in here]
    all_processes: list[SimProcess] = []
    states: list[EntityState] = []
    for place, (leaf, stretch) in enumerate(here):
        mig = places[place] if places else None
        processes = _processes(timeline, leaf, stretch, cell, memory[place], gauges[place], mig)
        all_processes.extend(processes)
        if mig is not None:
            states.append(
                EntityState(
                    gpu=gpu,
                    place=place,
                    mig=mig,
                    uuid=timeline.profile.mig_uuid(gpu, number, mig),
                    variables=_mig_variables(history, leaf, mig, memory[place], t_seconds),
                    processes=tuple(processes),
                    lost=lost,
                    hanging=hanging,
                    facts=facts,
                )
            )
    states.insert(
        0,
        EntityState(
            gpu=gpu,
            place=WHOLE,
            uuid=timeline.profile.gpu_uuid(gpu),
            variables=_gpu_variables(history, gpu, t_seconds, reset, here, gauges, sum(memory), faults),
            processes=tuple(all_processes),
            lost=lost,
            hanging=hanging,
            facts=facts,
        ),
    )
    return states


def _memory(timeline: Timeline, leaf: Leaf, stretch: Stretch) -> int:
    """Bytes that programs hold on a device."""
    parts = [WORKLOADS[name].memory for name in stretch.workloads]
    part = min(max([0.95, *parts]), sum(parts))
    if leaf.place == WHOLE:
        total = timeline.profile.memory_mebibytes - timeline.profile.reserved_mebibytes
    else:
        total = timeline.layouts(leaf.gpu)[leaf.layout_number][1][leaf.place].profile.memory_mebibytes
    return int(total * part) // 2 * 2 * MEBIBYTE


def _processes(
    timeline: Timeline,
    leaf: Leaf,
    stretch: Stretch,
    cell: float,
    memory: int,
    gauges: tuple[float, ...],
    mig: MigPlace | None,
) -> list[SimProcess]:
    if not stretch.workloads:
        return []
    holders = timeline.holders(leaf.gpu, leaf.place, int(cell))
    count = max(1, len(holders))
    return [
        SimProcess(
            pid=_pid(plan, run, leaf.gpu, leaf.place),
            gpu_instance=mig.gpu_instance_id if mig else ATTRIBUTABLE_TO_NOBODY,
            compute_instance=mig.compute_instance_id if mig else ATTRIBUTABLE_TO_NOBODY,
            memory_bytes=memory // count,
            sm_percent=round(100 * gauges[work.BUSY] / count),
            memory_percent=round(100 * gauges[work.DRAM] / count),
            encoder_percent=round(100 * gauges[work.ENCODER] / count),
            decoder_percent=round(100 * gauges[work.DECODER] / count),
        )
        for plan, run in holders
    ]


def _pid(plan: PodPlan, run: int, gpu: int, place: int) -> int:
    """A pid above what Linux gives by default, so that no process of this machine is meant."""
    return 5_000_000 + uuid.uuid5(NAMESPACE, f"{plan.namespace}/{plan.name}/{run}/{gpu}/{place}").int % 1_000_000


def _gpu_variables(
    history: History,
    gpu: int,
    t_seconds: float,
    reset: float,
    here: list[tuple[Leaf, Stretch]],
    gauges: list[tuple[float, ...]],
    memory: int,
    faults: tuple[Fault, ...],
) -> tuple[float, ...]:
    profile = history.timeline.profile
    totals = history.since_reset(gpu, history.gpu_totals(gpu, t_seconds), reset)
    cell = position(t_seconds)
    power = profile.idle_watts + sum(row[work.POWER] for row in gauges)
    average = power
    if len(here) == 1 and cell - 10 >= here[0][1].start:
        _, stretch = here[0]
        done = stretch.table.integral(cell)[0] - stretch.table.integral(cell - 10)[0]
        average = profile.idle_watts + done
    elapsed = t_seconds - reset
    room = profile.power_limit_watts - profile.idle_watts
    warmth = sum(leaf.warmth_at(stretch, cell) for leaf, stretch in here)
    heat = (0.85 * warmth + 0.15 * (power - profile.idle_watts)) / room
    celsius = profile.temperature_idle + (profile.temperature_full - profile.temperature_idle) * heat
    for fault in faults:
        if isinstance(fault, ThermalFault) and t_seconds < end_of(fault):
            goal = profile.temperature_slowdown + 2.0 if fault.celsius is None else fault.celsius
            celsius += max(0.0, goal - celsius) * (1.0 - math.exp(-(t_seconds - fault.at + 1.0) / 2.0))
    busy = max(row[work.GRAPHICS] for row in gauges)
    dram = max(row[work.DRAM] for row in gauges)
    clock = max(row[work.CLOCK] for row in gauges)
    reasons = 0
    for row in gauges:
        reasons |= int(row[work.REASONS])
    if busy > 0:
        reasons &= ~work.REASON_IDLE
    maximum, idle = profile.clock_maximum, profile.clock_idle
    clocks = [
        round(low if clock == 0 else high * (clock if domain != 2 else 1.0))
        for domain, (low, high) in enumerate(zip(idle, maximum, strict=True))
    ]
    usable = (profile.memory_mebibytes - profile.reserved_mebibytes) * MEBIBYTE
    values = {
        "power_milliwatts": float(round(power * 1000)),
        "power_average_milliwatts": float(round(average * 1000)),
        "energy_millijoules": (profile.idle_watts * elapsed + totals[0]) * 1000,
        "gpu_percent": round(100 * busy),
        "memory_percent": round(100 * dram),
        "encoder_percent": round(100 * max(row[work.ENCODER] for row in gauges)),
        "decoder_percent": round(100 * max(row[work.DECODER] for row in gauges)),
        "jpeg_percent": round(100 * max(row[work.JPEG] for row in gauges)),
        "temperature": round(celsius),
        "memory_temperature": round(celsius + 3 + 6 * dram),
        "margin_temperature": round(profile.temperature_slowdown - celsius),
        "graphics_megahertz": clocks[0],
        "sm_megahertz": clocks[1],
        "memory_megahertz": clocks[2],
        "video_megahertz": clocks[3],
        "event_reasons": reasons,
        "memory_used": memory,
        "memory_free": usable - memory,
        "memory_used_v1": memory + profile.reserved_mebibytes * MEBIBYTE,
        "bar1_used": (2 if memory else 1) * MEBIBYTE,
        "bar1_free": profile.bar1_mebibytes * MEBIBYTE - (2 if memory else 1) * MEBIBYTE,
        "pcie_tx_kibibytes_per_second": round(sum(row[work.PCIE_TX] for row in gauges) / 1024),
        "pcie_rx_kibibytes_per_second": round(sum(row[work.PCIE_RX] for row in gauges) / 1024),
        "uptime_microseconds": elapsed * 1e6,
    }
    return work.variables(values, totals)


def _mig_variables(history: History, leaf: Leaf, place: MigPlace, memory: int, t_seconds: float) -> tuple[float, ...]:
    total = place.profile.memory_mebibytes * MEBIBYTE
    bar1 = history.timeline.profile.bar1_mebibytes * MEBIBYTE * place.profile.size // 8
    values: dict[str, float] = {
        "memory_used": memory,
        "memory_free": total - memory,
        "memory_used_v1": memory,
        "bar1_used": MEBIBYTE,
        "bar1_free": bar1 - MEBIBYTE,
    }
    return work.variables(values, history.leaf_totals(leaf, t_seconds))
