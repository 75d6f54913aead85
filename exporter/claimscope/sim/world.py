"""What does the simulated node look like at time t? One pure function of profile, scenario and time.

Devices do what the pods that hold them do (workloads.py), bent by the faults of the scenario. Counters are exact
integrals of the rates that the gauges show. A World remembers the stretches of time it has already laid out, which
changes how fast it answers and never what.
"""

from __future__ import annotations

import functools
import math
import uuid
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from claimscope.sim import layout, work
from claimscope.sim.default_pods import default_pods
from claimscope.sim.moment import (
    ATTRIBUTABLE_TO_NOBODY,
    DRIVER,
    DRIVER_EVENTS,
    EVENT_DOUBLE_BIT,
    EVENT_GPU_UNAVAILABLE,
    EVENT_MIG_CHANGE,
    EVENT_RECOVERY_ACTION,
    EVENT_XID,
    NAMESPACE,
    WHOLE,
    EntityState,
    SimClaim,
    SimContainer,
    SimEvent,
    SimPod,
    SimProcess,
    WorldState,
)
from claimscope.sim.profiles import MEBIBYTE, MigPlace, Profile, profile_named
from claimscope.sim.published import claim_object, mig_device_name, slice_device
from claimscope.sim.scenario import (
    ClaimPlan,
    ClocksLowFault,
    DriverEventFault,
    DriverReloadFault,
    EccFault,
    Fault,
    HangFault,
    LostFault,
    MigChangeFault,
    NvlinkDownFault,
    PodPlan,
    PowerBrakeFault,
    RecoveryActionFault,
    Scenario,
    StalledFault,
    ThermalFault,
    XidFault,
    check_scenario,
    parse_device,
)
from claimscope.sim.workloads import CELL_SECONDS, STALLED, WORKLOADS, Table, combined, table

_F = TypeVar("_F")


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A span of cells in which a device has the same load."""

    start: int
    table: Table
    workloads: tuple[str, ...]
    offset: tuple[float, ...]  # integrals from cell 0 to `start`, less those of the table
    warmth: float  # watts above idle, as the slow heat sink feels them, at `start`


WARMTH_SECONDS = 25.0  # time constant of the heat sink


class _Leaf:
    """A device that does work: a whole GPU, or one MIG device of one layout."""

    def __init__(self, world: World, gpu: int, place: int, layout_number: int, share: float) -> None:
        self.world = world
        self.gpu = gpu
        self.place = place
        self.layout_number = layout_number
        self.share = share
        self.stretches: list[_Stretch] = []
        self.starts: list[int] = []
        self.laid_out_to = 0
        self.newest: tuple[float, list[float]] | None = None  # totals of the moment that was asked last

    def stretch(self, cell: float) -> _Stretch:
        """The stretch that `cell` lies in."""
        while not self.stretches or self.laid_out_to <= cell:
            self._lay_out()
        return self.stretches[bisect_right(self.starts, cell) - 1]

    def _lay_out(self) -> None:
        start = self.laid_out_to
        workloads, bend = self.world._load(self, start)
        end = self.world._next_edge(start)
        rows = self.world._table(workloads, self.share, bend, (self.gpu * 3 + max(self.place, 0) * 5) % 12)
        if self.stretches:
            before = self.stretches[-1]
            totals = self.totals_at(before, start)
            warmth = self.warmth_at(before, start)
        else:
            totals, warmth = [0.0] * len(work.RATES), 0.0
        if self.stretches and self.stretches[-1].table is rows and self.stretches[-1].workloads == workloads:
            self.laid_out_to = end
            return
        offset = tuple(a - b for a, b in zip(totals, rows.integral(start), strict=True))
        self.stretches.append(_Stretch(start, rows, workloads, offset, warmth))
        self.starts.append(start)
        self.laid_out_to = end

    @staticmethod
    def totals_at(stretch: _Stretch, cell: float) -> list[float]:
        """Integrals from cell 0 to `cell`."""
        return [a + b for a, b in zip(stretch.offset, stretch.table.integral(cell), strict=True)]

    @staticmethod
    def warmth_at(stretch: _Stretch, cell: float) -> float:
        """The slow part of the temperature: power above idle behind a first-order lag."""
        mean = stretch.table.mean_power
        return mean + (stretch.warmth - mean) * math.exp(-(cell - stretch.start) * CELL_SECONDS / WARMTH_SECONDS)


def _cell(seconds: float) -> int:
    return round(seconds / CELL_SECONDS)


def _position(seconds: float) -> float:
    """Seconds in cells; times that are meant to lie on the border of a cell do."""
    cell = seconds / CELL_SECONDS
    near = round(cell)
    return float(near) if abs(cell - near) < 1e-6 else cell


def _end(fault: Fault) -> float:
    duration: float | None = getattr(fault, "duration", None)
    return math.inf if duration is None else fault.at + duration


@dataclass(slots=True)
class World:
    """A node under a scenario."""

    profile: Profile
    scenario: Scenario
    node_name: str = "claimscope-node"
    _plans: tuple[PodPlan, ...] = ()
    _edges: tuple[int, ...] = ()  # cells at which a fault begins or ends
    _periods: tuple[tuple[int, int, int | None], ...] = ()  # (start, duration, period) of pods that end, in cells
    _layouts: dict[int, tuple[tuple[float, tuple[MigPlace, ...]], ...]] = field(default_factory=dict)
    _leaves: dict[tuple[int, int, int], _Leaf] = field(default_factory=dict)
    _tables: dict[tuple[Any, ...], Table] = field(default_factory=dict)
    _resets: dict[tuple[int, float], list[float]] = field(default_factory=dict)
    _pods_cache: tuple[tuple[int, ...], tuple[SimPod, ...]] | None = None

    def __post_init__(self) -> None:
        self._plans = default_pods(self.profile) if self.scenario.pods is None else self.scenario.pods
        edges = {0}
        for fault in self.scenario.faults:
            edges.add(_cell(fault.at))
            if math.isfinite(_end(fault)):
                edges.add(_cell(_end(fault)))
        for plan in self._plans:
            edges.add(_cell(plan.start))
            if plan.duration is not None and plan.period is None:
                edges.add(_cell(plan.start + plan.duration))
        self._edges = tuple(sorted(edges))
        self._periods = tuple(
            (_cell(plan.start), _cell(plan.duration), _cell(plan.period))
            for plan in self._plans
            if plan.duration is not None and plan.period is not None
        )
        for gpu in range(self.profile.gpu_count):
            steps = [(0.0, self.profile.places(self.profile.mig_layout.get(gpu, ())))]
            changes = sorted(
                (fault for fault in self._faults(MigChangeFault) if fault.gpu == gpu), key=lambda fault: fault.at
            )
            steps += [(change.at, self.profile.places(change.layout)) for change in changes]
            self._layouts[gpu] = tuple(steps)

    # ---- pods ----

    def pods(self, t_seconds: float) -> tuple[SimPod, ...]:
        """The pods that are active at `t_seconds`."""
        cell = _cell(t_seconds)
        key = tuple(-1 if run is None else run for run in (self._run(plan, cell) for plan in self._plans)) + tuple(
            self._layout_number(gpu, t_seconds) for gpu in range(self.profile.gpu_count)
        )
        if self._pods_cache is None or self._pods_cache[0] != key:
            made = (self._pod(plan, run, t_seconds) for plan, run in zip(self._plans, key, strict=False) if run >= 0)
            self._pods_cache = (key, tuple(made))
        return self._pods_cache[1]

    @staticmethod
    def _run(plan: PodPlan, cell: int) -> int | None:
        """The number of the pod of this plan that is active, counted from 0."""
        since = cell - _cell(plan.start)
        if since < 0:
            return None
        if plan.duration is None:
            return 0
        run, inside = divmod(since, _cell(plan.period)) if plan.period is not None else (0, since)
        return run if inside < _cell(plan.duration) else None

    def _pod(self, plan: PodPlan, run: int, t_seconds: float) -> SimPod:
        suffix = "" if plan.period is None else f"-{run}"
        claims = []
        for claim in plan.claims:
            devices = tuple(
                name for name in (self._dra_name(text, t_seconds) for text in claim.devices) if name is not None
            )
            if devices:
                claims.append(self._claim(plan, claim, devices, "" if claim.shared else suffix))
        plugin = tuple(
            (resource, ids)
            for resource, texts in plan.plugin.items()
            if (ids := tuple(i for i in (self._plugin_id(text, t_seconds) for text in texts) if i is not None))
        )
        container = SimContainer(name=plan.container, devices=plugin, claims=tuple(claims))
        return SimPod(
            namespace=plan.namespace, name=plan.name + suffix, containers=(container,), workload=plan.workload
        )

    def _claim(self, plan: PodPlan, claim: ClaimPlan, devices: tuple[str, ...], suffix: str) -> SimClaim:
        name = claim.name + suffix
        key = f"{self.profile.name}/{plan.namespace}/{name}"
        shares = tuple(
            str(uuid.uuid5(NAMESPACE, f"{key}/{device}")) for device in devices if claim.capacity_share
        )
        return SimClaim(
            namespace=plan.namespace,
            name=name,
            uid=str(uuid.uuid5(NAMESPACE, key)),
            driver=claim.driver,
            pool=self.node_name,
            devices=devices,
            share_ids=shares,
            admin_access=claim.admin_access,
        )

    def _dra_name(self, text: str, t_seconds: float) -> str | None:
        gpu, place, _ = parse_device(text)
        if place is None:
            return f"gpu-{gpu}"
        places = self._places(gpu, t_seconds)
        return mig_device_name(gpu, places[place]) if place < len(places) else None

    def _plugin_id(self, text: str, t_seconds: float) -> str | None:
        gpu, place, replica = parse_device(text)
        suffix = "" if replica is None else f"::{replica}"
        if place is None:
            return self.profile.gpu_uuid(gpu) + suffix
        places = self._places(gpu, t_seconds)
        if place >= len(places):
            return None
        return self.profile.mig_uuid(gpu, self._layout_number(gpu, t_seconds), places[place]) + suffix

    def claims(self, t_seconds: float) -> tuple[dict[str, Any], ...]:
        """The ResourceClaims behind the pods, as allocated and reserved; resource.k8s.io/v1."""
        found: dict[str, tuple[SimClaim, list[SimPod]]] = {}
        for pod in self.pods(t_seconds):
            for container in pod.containers:
                for claim in container.claims:
                    found.setdefault(claim.uid, (claim, []))[1].append(pod)
        return tuple(claim_object(claim, users) for claim, users in found.values())

    # ---- slices ----

    def slices(self, node_name: str | None = None, t_seconds: float = 0.0) -> tuple[dict[str, Any], ...]:
        """The node's ResourceSlices as NVIDIA's driver publishes them, resource.k8s.io/v1.

        A GPU that is cut into MIG devices is represented by these alone.
        """
        node = node_name or self.node_name
        devices: list[dict[str, Any]] = []
        for gpu in range(self.profile.gpu_count):
            places = self._places(gpu, t_seconds)
            if not places:
                devices.append(slice_device(self.profile, gpu, f"gpu-{gpu}", self.profile.gpu_uuid(gpu), None))
            number = self._layout_number(gpu, t_seconds)
            for place in places:
                part = self.profile.mig_uuid(gpu, number, place)
                devices.append(slice_device(self.profile, gpu, mig_device_name(gpu, place), part, place))
        return (
            {
                "apiVersion": "resource.k8s.io/v1",
                "kind": "ResourceSlice",
                "metadata": {"name": f"00000-{DRIVER}-{node}-sim"},
                "spec": {
                    "driver": DRIVER,
                    "nodeName": node,
                    "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
                    "devices": devices,
                },
            },
        )

    # ---- faults ----

    def _faults(self, kind: type[_F]) -> list[_F]:
        return [fault for fault in self.scenario.faults if isinstance(fault, kind)]

    def _layout_number(self, gpu: int, t_seconds: float) -> int:
        return max(number for number, (at, _) in enumerate(self._layouts[gpu]) if at <= max(t_seconds, 0.0))

    def _places(self, gpu: int, t_seconds: float) -> tuple[MigPlace, ...]:
        return self._layouts[gpu][self._layout_number(gpu, t_seconds)][1]

    def mig_places(self, gpu: int, t_seconds: float) -> tuple[MigPlace, ...]:
        """The MIG devices that a GPU is cut into; none: MIG is off."""
        return self._places(gpu, t_seconds)

    def driver(self, t_seconds: float) -> tuple[int, str, int]:
        """(what nvmlInit answers, driver version, generation of the driver)."""
        answer, version, generation = 0, self.profile.driver_version, 1
        for fault in self._faults(DriverReloadFault):
            if fault.at > t_seconds:
                continue
            generation += 1
            if t_seconds < _end(fault):
                answer = fault.code
            elif fault.version is not None:
                version = fault.version
        return answer, version, generation

    def last_reset(self, gpu: int, t_seconds: float) -> float:
        """When the counters of a GPU last began anew: 0, a GPU that came back, or a driver that was loaded."""
        ends = [
            _end(fault)
            for fault in self.scenario.faults
            if isinstance(fault, DriverReloadFault) or (isinstance(fault, LostFault) and fault.gpu == gpu)
        ]
        return max((end for end in ends if end <= t_seconds), default=0.0)

    def faults_of(self, gpu: int, t_seconds: float) -> tuple[Fault, ...]:
        """The faults of one GPU that have begun, over or not; what counts them decides."""
        return tuple(
            fault
            for fault in self.scenario.faults
            if fault.at <= t_seconds and getattr(fault, "gpu", None) in (None, gpu)
        )

    def events(self, after: float, until: float) -> tuple[SimEvent, ...]:
        """What the driver reports in the span (after, until]."""
        events: list[SimEvent] = []
        for fault in self.scenario.faults:
            if isinstance(fault, XidFault):
                events += [self._xid(fault, at) for at in _times(fault.at, fault.every, after, until)]
            if not after < fault.at <= until:
                continue
            if isinstance(fault, LostFault):
                if fault.xid is not None:
                    events.append(SimEvent(at=fault.at, gpu=fault.gpu, type=EVENT_XID, data=fault.xid))
                if self.profile.branch >= 580:
                    events.append(SimEvent(at=fault.at, gpu=fault.gpu, type=EVENT_GPU_UNAVAILABLE, data=0))
            elif isinstance(fault, DriverEventFault):
                events.append(SimEvent(at=fault.at, gpu=fault.gpu, type=DRIVER_EVENTS[fault.event], data=0))
            elif isinstance(fault, EccFault) and fault.type == "uncorrected":
                events.append(SimEvent(at=fault.at, gpu=fault.gpu, type=EVENT_DOUBLE_BIT, data=0))
            elif isinstance(fault, MigChangeFault):
                events.append(SimEvent(at=fault.at, gpu=fault.gpu, type=EVENT_MIG_CHANGE, data=0))
            elif isinstance(fault, RecoveryActionFault) and self.profile.branch >= 580:
                events.append(SimEvent(at=fault.at, gpu=fault.gpu, type=EVENT_RECOVERY_ACTION, data=fault.action))
        return tuple(sorted(events, key=lambda event: event.at))

    def _xid(self, fault: XidFault, at: float) -> SimEvent:
        places = self._places(fault.gpu, at)
        if fault.mig is None or fault.mig >= len(places):
            return SimEvent(at=at, gpu=fault.gpu, type=EVENT_XID, data=fault.code)
        place = places[fault.mig]
        return SimEvent(
            at=at,
            gpu=fault.gpu,
            type=EVENT_XID,
            data=fault.code,
            gpu_instance=place.gpu_instance_id,
            compute_instance=place.compute_instance_id,
        )

    # ---- work ----

    def _next_edge(self, cell: int) -> int:
        """The first cell behind `cell` in which a pod or a fault may begin or end; at most ten minutes ahead."""
        edge = cell + 6000
        place = bisect_right(self._edges, cell)
        if place < len(self._edges):
            edge = min(edge, self._edges[place])
        for start, duration, period in self._periods:
            if period is None or cell < start:
                continue
            inside = (cell - start) % period
            edge = min(edge, cell - inside + (duration if inside < duration else period))
        return edge

    def _holders(self, gpu: int, place: int, cell: int) -> list[tuple[PodPlan, int]]:
        """The pods that work on a device, with their number."""
        holders: list[tuple[PodPlan, int]] = []
        for plan in self._plans:
            run = self._run(plan, cell)
            if run is not None and (gpu, place) in _worked(plan):
                holders.append((plan, run))
        return holders

    def _load(self, leaf: _Leaf, cell: int) -> tuple[tuple[str, ...], work.Bend]:
        workloads = tuple(plan.workload for plan, _ in self._holders(leaf.gpu, leaf.place, cell))
        at = cell * CELL_SECONDS + CELL_SECONDS / 2
        active = [
            fault
            for fault in self.scenario.faults
            if getattr(fault, "gpu", None) == leaf.gpu and fault.at <= at < _end(fault)
        ]
        thermal = [fault for fault in active if isinstance(fault, ThermalFault)]
        return workloads, work.Bend(
            thermal=bool(thermal),
            hardware_thermal=any(fault.hardware for fault in thermal),
            brake=any(isinstance(fault, PowerBrakeFault) for fault in active),
            links_down=len({fault.link for fault in active if isinstance(fault, NvlinkDownFault)}),
            clock=min((fault.ratio for fault in active if isinstance(fault, ClocksLowFault)), default=1.0),
            stalled=bool(workloads) and any(isinstance(fault, StalledFault) for fault in active),
        )

    def _table(self, workloads: tuple[str, ...], share: float, bend: work.Bend, phase: int) -> Table:
        key = (workloads, share, bend, phase if workloads else 0)
        if key not in self._tables:
            kinds = [WORKLOADS[name] for name in workloads or ("idle",)]
            period = 1 if bend.stalled else math.lcm(*(kind.period for kind in kinds))
            does = [
                STALLED if bend.stalled else combined([kind.activity(cell + phase) for kind in kinds])
                for cell in range(period)
            ]
            rows = [work.row(self.profile, activity, share, bend) for activity in does]
            self._tables[key] = table([row[0] for row in rows], [row[1] for row in rows], work.RATE_INDEX["power"])
        return self._tables[key]

    def _leaf(self, gpu: int, place: int, number: int) -> _Leaf:
        key = (gpu, place, number)
        if key not in self._leaves:
            places = self._layouts[gpu][number][1]
            share = places[place].profile.slices / 7 if place != WHOLE else 1.0
            self._leaves[key] = _Leaf(self, gpu, place, number, share)
        return self._leaves[key]

    def _leaves_of(self, gpu: int, number: int) -> list[_Leaf]:
        places = self._layouts[gpu][number][1]
        return [self._leaf(gpu, place, number) for place in (range(len(places)) if places else (WHOLE,))]

    def _leaf_totals(self, leaf: _Leaf, t_seconds: float) -> list[float]:
        """Integrals over the leaf's life up to `t_seconds`."""
        if leaf.newest is not None and leaf.newest[0] == t_seconds:
            return leaf.newest[1]
        steps = self._layouts[leaf.gpu]
        born = steps[leaf.layout_number][0]
        dies = steps[leaf.layout_number + 1][0] if leaf.layout_number + 1 < len(steps) else math.inf
        until, since = _position(min(t_seconds, dies)), _position(born)
        totals = leaf.totals_at(leaf.stretch(until), until)
        if since > 0:
            start = leaf.totals_at(leaf.stretch(since), since)
            totals = [b - a for a, b in zip(start, totals, strict=True)]
        leaf.newest = (t_seconds, totals)
        return totals

    def _gpu_totals(self, gpu: int, t_seconds: float) -> list[float]:
        """Integrals of a GPU's rates from 0 to `t_seconds`, over all its layouts."""
        if len(self._layouts[gpu]) == 1 and not self._layouts[gpu][0][1]:
            return self._leaf_totals(self._leaf(gpu, WHOLE, 0), t_seconds)
        totals = [0.0] * len(work.RATES)
        for number in range(self._layout_number(gpu, t_seconds) + 1):
            parts = [self._leaf_totals(leaf, t_seconds) for leaf in self._leaves_of(gpu, number)]
            # Energy and bytes of MIG devices add up; a second in which two of them are throttled is one second.
            for rate, several in enumerate(zip(*parts, strict=True)):
                totals[rate] += sum(several) if rate in work.ADDED else max(several)
        return totals

    def _since_reset(self, gpu: int, totals: list[float], reset: float) -> list[float]:
        if reset == 0.0:
            return totals
        key = (gpu, reset)
        if key not in self._resets:
            self._resets[key] = self._gpu_totals(gpu, reset)
        return [b - a for a, b in zip(self._resets[key], totals, strict=True)]

    # ---- state ----

    def state(self, t_seconds: float) -> WorldState:
        """Everything at `t_seconds`."""
        answer, version, generation = self.driver(t_seconds)
        entities: list[EntityState] = []
        for gpu in range(self.profile.gpu_count):
            entities.extend(self._gpu_state(gpu, t_seconds))
        return WorldState(
            t_seconds=t_seconds,
            init_return=answer,
            driver_version=version,
            driver_generation=generation,
            entities=tuple(entities),
        )

    def _gpu_state(self, gpu: int, t_seconds: float) -> Iterable[EntityState]:
        faults = self.faults_of(gpu, t_seconds) if self.scenario.faults else ()
        lost, hanging = 0, False
        for fault in faults:
            if t_seconds < _end(fault):
                if isinstance(fault, LostFault):
                    lost = fault.code
                elif isinstance(fault, HangFault) and fault.function is None:
                    hanging = True
        number = self._layout_number(gpu, t_seconds)
        reset = self.last_reset(gpu, t_seconds) if faults else 0.0
        version = self.driver(t_seconds)[1] if faults else self.profile.driver_version
        facts = (
            version,
            number,
            reset,
            tuple((self.scenario.faults.index(fault), t_seconds < _end(fault)) for fault in faults),
        )
        places = self._layouts[gpu][number][1]
        cell = _position(t_seconds)
        leaves = self._leaves_of(gpu, number)
        here = [(leaf, leaf.stretch(cell)) for leaf in leaves]
        gauges = [stretch.table.gauge(cell) for _, stretch in here]
        memory = [self._memory(leaf, stretch) for leaf, stretch in here]
        all_processes: list[SimProcess] = []
        states: list[EntityState] = []
        for place, (leaf, stretch) in enumerate(here):
            mig = places[place] if places else None
            processes = self._processes(leaf, stretch, cell, memory[place], gauges[place], mig)
            all_processes.extend(processes)
            if mig is not None:
                states.append(
                    EntityState(
                        gpu=gpu,
                        place=place,
                        mig=mig,
                        uuid=self.profile.mig_uuid(gpu, number, mig),
                        variables=self._mig_variables(leaf, mig, memory[place], t_seconds),
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
                uuid=self.profile.gpu_uuid(gpu),
                variables=self._gpu_variables(gpu, t_seconds, reset, here, gauges, sum(memory), faults),
                processes=tuple(all_processes),
                lost=lost,
                hanging=hanging,
                facts=facts,
            ),
        )
        return states

    def _memory(self, leaf: _Leaf, stretch: _Stretch) -> int:
        """Bytes that programs hold on a device."""
        part = min(0.95, sum(WORKLOADS[name].memory for name in stretch.workloads))
        if leaf.place == WHOLE:
            total = self.profile.memory_mebibytes - self.profile.reserved_mebibytes
        else:
            total = self._layouts[leaf.gpu][leaf.layout_number][1][leaf.place].profile.memory_mebibytes
        return int(total * part) // 2 * 2 * MEBIBYTE

    def _processes(
        self,
        leaf: _Leaf,
        stretch: _Stretch,
        cell: float,
        memory: int,
        gauges: tuple[float, ...],
        mig: MigPlace | None,
    ) -> list[SimProcess]:
        if not stretch.workloads:
            return []
        holders = self._holders(leaf.gpu, leaf.place, int(cell))
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

    def _gpu_variables(
        self,
        gpu: int,
        t_seconds: float,
        reset: float,
        here: list[tuple[_Leaf, _Stretch]],
        gauges: list[tuple[float, ...]],
        memory: int,
        faults: tuple[Fault, ...],
    ) -> tuple[float, ...]:
        profile = self.profile
        totals = self._since_reset(gpu, self._gpu_totals(gpu, t_seconds), reset)
        cell = _position(t_seconds)
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
            if isinstance(fault, ThermalFault) and t_seconds < _end(fault):
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

    def _mig_variables(self, leaf: _Leaf, place: MigPlace, memory: int, t_seconds: float) -> tuple[float, ...]:
        total = place.profile.memory_mebibytes * MEBIBYTE
        bar1 = self.profile.bar1_mebibytes * MEBIBYTE * place.profile.size // 8
        values: dict[str, float] = {
            "memory_used": memory,
            "memory_free": total - memory,
            "memory_used_v1": memory,
            "bar1_used": MEBIBYTE,
            "bar1_free": bar1 - MEBIBYTE,
        }
        return work.variables(values, self._leaf_totals(leaf, t_seconds))


def _times(at: float, every: float | None, after: float, until: float) -> list[float]:
    """The moments at, at + every, ... in (after, until]."""
    if every is None:
        return [at] if after < at <= until else []
    first = max(0, math.floor((after - at) / every) + 1)
    last = math.floor((until - at) / every)
    return [at + number * every for number in range(first, last + 1)]


@functools.lru_cache(maxsize=256)
def _worked_devices(texts: tuple[str, ...]) -> frozenset[tuple[int, int]]:
    devices = (parse_device(text) for text in texts)
    return frozenset((gpu, WHOLE if place is None else place) for gpu, place, _ in devices)


def _worked(plan: PodPlan) -> frozenset[tuple[int, int]]:
    """The devices that a pod works on: all that it holds but those it only looks at."""
    texts = [text for claim in plan.claims if not claim.admin_access for text in claim.devices]
    texts += [text for devices in plan.plugin.values() for text in devices]
    return _worked_devices(tuple(texts))


def _pid(plan: PodPlan, run: int, gpu: int, place: int) -> int:
    """A pid above what Linux gives by default, so that no process of this machine is meant."""
    return 5_000_000 + uuid.uuid5(NAMESPACE, f"{plan.namespace}/{plan.name}/{run}/{gpu}/{place}").int % 1_000_000


def make_world(profile_name: str, scenario: Scenario | None = None, *, node_name: str = "claimscope-node") -> World:
    """A node of the named profile. Raises ValueError where the name or the scenario is wrong."""
    profile = profile_named(profile_name)
    chosen = scenario if scenario is not None else Scenario()
    check_scenario(chosen, profile, layout.FUNCTIONS)
    return World(profile=profile, scenario=chosen, node_name=node_name)
