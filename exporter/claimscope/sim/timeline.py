"""Which pods, MIG layouts, faults and driver stand at time t?

Time is cut into cells; pods and faults begin and end on their borders.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TypeVar

from claimscope.sim.default_pods import default_pods
from claimscope.sim.moment import WHOLE
from claimscope.sim.profiles import MigPlace, Profile
from claimscope.sim.scenario import (
    DriverReloadFault,
    Fault,
    LostFault,
    MigChangeFault,
    PodPlan,
    Scenario,
    parse_device,
)
from claimscope.sim.workloads import CELL_SECONDS

_F = TypeVar("_F")


def cell_of(seconds: float) -> int:
    """The cell whose border is nearest."""
    return round(seconds / CELL_SECONDS)


def position(seconds: float) -> float:
    """Seconds in cells; times that are meant to lie on the border of a cell do."""
    cell = seconds / CELL_SECONDS
    near = round(cell)
    return float(near) if abs(cell - near) < 1e-6 else cell


def end_of(fault: Fault) -> float:
    """When a fault is over; infinite: never."""
    duration: float | None = getattr(fault, "duration", None)
    return math.inf if duration is None else fault.at + duration


def run_of(plan: PodPlan, cell: int) -> int | None:
    """The number of the pod of this plan that is active, counted from 0."""
    since = cell - cell_of(plan.start)
    if since < 0:
        return None
    if plan.duration is None:
        return 0
    run, inside = divmod(since, cell_of(plan.period)) if plan.period is not None else (0, since)
    return run if inside < cell_of(plan.duration) else None


@functools.lru_cache(maxsize=256)
def _worked_devices(texts: tuple[str, ...]) -> frozenset[tuple[int, int]]:
    devices = (parse_device(text) for text in texts)
    return frozenset((gpu, WHOLE if place is None else place) for gpu, place, _ in devices)


def _worked(plan: PodPlan) -> frozenset[tuple[int, int]]:
    """The devices that a pod works on: all that it holds but those it only looks at."""
    texts = [text for claim in plan.claims if not claim.admin_access for text in claim.devices]
    texts += [text for devices in plan.plugin.values() for text in devices]
    return _worked_devices(tuple(texts))


@dataclass(slots=True)
class Timeline:
    """Pods, layouts, faults and driver of one node, as functions of time."""

    profile: Profile
    scenario: Scenario
    plans: tuple[PodPlan, ...] = ()
    _edges: tuple[int, ...] = ()  # cells at which a fault begins or ends
    _periods: tuple[tuple[int, int, int | None], ...] = ()  # (start, duration, period) of pods that end, in cells
    _layouts: dict[int, tuple[tuple[float, tuple[MigPlace, ...]], ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plans = default_pods(self.profile) if self.scenario.pods is None else self.scenario.pods
        edges = {0}
        for fault in self.scenario.faults:
            edges.add(cell_of(fault.at))
            if math.isfinite(end_of(fault)):
                edges.add(cell_of(end_of(fault)))
        for plan in self.plans:
            edges.add(cell_of(plan.start))
            if plan.duration is not None and plan.period is None:
                edges.add(cell_of(plan.start + plan.duration))
        self._edges = tuple(sorted(edges))
        self._periods = tuple(
            (cell_of(plan.start), cell_of(plan.duration), cell_of(plan.period))
            for plan in self.plans
            if plan.duration is not None and plan.period is not None
        )
        for gpu in range(self.profile.gpu_count):
            steps = [(0.0, self.profile.places(self.profile.mig_layout.get(gpu, ())))]
            changes = sorted(
                (fault for fault in self._faults(MigChangeFault) if fault.gpu == gpu), key=lambda fault: fault.at
            )
            steps += [(change.at, self.profile.places(change.layout)) for change in changes]
            self._layouts[gpu] = tuple(steps)

    def runs(self, cell: int) -> tuple[int | None, ...]:
        """Of each plan, the number of the pod that is active in `cell`, or None."""
        return tuple(run_of(plan, cell) for plan in self.plans)

    def holders(self, gpu: int, place: int, cell: int) -> list[tuple[PodPlan, int]]:
        """The pods that work on a device, with their number."""
        holders: list[tuple[PodPlan, int]] = []
        for plan in self.plans:
            run = run_of(plan, cell)
            if run is not None and (gpu, place) in _worked(plan):
                holders.append((plan, run))
        return holders

    def next_edge(self, cell: int) -> int:
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

    # ---- MIG layouts

    def layouts(self, gpu: int) -> tuple[tuple[float, tuple[MigPlace, ...]], ...]:
        """(when it begins, its MIG devices) of each layout that the GPU has in the scenario."""
        return self._layouts[gpu]

    def layout_number(self, gpu: int, t_seconds: float) -> int:
        """The place in `layouts` of the one that stands."""
        return max(number for number, (at, _) in enumerate(self._layouts[gpu]) if at <= max(t_seconds, 0.0))

    def places(self, gpu: int, t_seconds: float) -> tuple[MigPlace, ...]:
        """The MIG devices that a GPU is cut into; none: MIG is off."""
        return self._layouts[gpu][self.layout_number(gpu, t_seconds)][1]

    # ---- faults

    def _faults(self, kind: type[_F]) -> list[_F]:
        return [fault for fault in self.scenario.faults if isinstance(fault, kind)]

    def driver(self, t_seconds: float) -> tuple[int, str, int]:
        """(what nvmlInit answers, driver version, generation of the driver)."""
        answer, version, generation = 0, self.profile.driver_version, 1
        for fault in self._faults(DriverReloadFault):
            if fault.at > t_seconds:
                continue
            generation += 1
            if t_seconds < end_of(fault):
                answer = fault.code
            elif fault.version is not None:
                version = fault.version
        return answer, version, generation

    def last_reset(self, gpu: int, t_seconds: float) -> float:
        """When the counters of a GPU last began anew: 0, a GPU that came back, or a driver that was loaded."""
        ends = [
            end_of(fault)
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
