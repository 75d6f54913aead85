"""What has each device done up to time t?

Counters are exact integrals of the rates that the gauges show. The stretches of time that were already laid out are
remembered, which changes how fast it answers and never what.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from claimscope.sim import work
from claimscope.sim.moment import WHOLE
from claimscope.sim.scenario import (
    ClocksLowFault,
    NvlinkDownFault,
    PowerBrakeFault,
    StalledFault,
    ThermalFault,
)
from claimscope.sim.timeline import Timeline, end_of, position
from claimscope.sim.workloads import CELL_SECONDS, STALLED, WORKLOADS, Table, combined, table

WARMTH_SECONDS = 25.0  # time constant of the heat sink


@dataclass(frozen=True, slots=True)
class Stretch:
    """A span of cells in which a device has the same load."""

    start: int
    table: Table
    workloads: tuple[str, ...]
    offset: tuple[float, ...]  # integrals from cell 0 to `start`, less those of the table
    warmth: float  # watts above idle, as the slow heat sink feels them, at `start`


class Leaf:
    """A device that does work: a whole GPU, or one MIG device of one layout."""

    def __init__(self, history: History, gpu: int, place: int, layout_number: int, share: float) -> None:
        self._history = history
        self.gpu = gpu
        self.place = place
        self.layout_number = layout_number
        self.share = share
        self.stretches: list[Stretch] = []
        self.starts: list[int] = []
        self.laid_out_to = 0
        self.newest: tuple[float, list[float]] | None = None  # totals of the moment that was asked last

    def stretch(self, cell: float) -> Stretch:
        """The stretch that `cell` lies in."""
        while not self.stretches or self.laid_out_to <= cell:
            self._lay_out()
        return self.stretches[bisect_right(self.starts, cell) - 1]

    def _lay_out(self) -> None:
        start = self.laid_out_to
        workloads, bend = self._history.load(self, start)
        end = self._history.timeline.next_edge(start)
        rows = self._history.table(workloads, self.share, bend, (self.gpu * 3 + max(self.place, 0) * 5) % 12)
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
        self.stretches.append(Stretch(start, rows, workloads, offset, warmth))
        self.starts.append(start)
        self.laid_out_to = end

    @staticmethod
    def totals_at(stretch: Stretch, cell: float) -> list[float]:
        """Integrals from cell 0 to `cell`."""
        return [a + b for a, b in zip(stretch.offset, stretch.table.integral(cell), strict=True)]

    @staticmethod
    def warmth_at(stretch: Stretch, cell: float) -> float:
        """The slow part of the temperature: power above idle behind a first-order lag."""
        mean = stretch.table.mean_power
        return mean + (stretch.warmth - mean) * math.exp(-(cell - stretch.start) * CELL_SECONDS / WARMTH_SECONDS)


class History:
    """The work of all devices of one node."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self._leaves: dict[tuple[int, int, int], Leaf] = {}
        self._tables: dict[tuple[Any, ...], Table] = {}
        self._resets: dict[tuple[int, float], list[float]] = {}

    def load(self, leaf: Leaf, cell: int) -> tuple[tuple[str, ...], work.Bend]:
        """The workloads on a device, and what bends them."""
        workloads = tuple(plan.workload for plan, _ in self.timeline.holders(leaf.gpu, leaf.place, cell))
        at = cell * CELL_SECONDS + CELL_SECONDS / 2
        active = [
            fault
            for fault in self.timeline.scenario.faults
            if getattr(fault, "gpu", None) == leaf.gpu and fault.at <= at < end_of(fault)
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

    def table(self, workloads: tuple[str, ...], share: float, bend: work.Bend, phase: int) -> Table:
        """What such a load does, cell by cell."""
        key = (workloads, share, bend, phase if workloads else 0)
        if key not in self._tables:
            kinds = [WORKLOADS[name] for name in workloads or ("idle",)]
            period = 1 if bend.stalled else math.lcm(*(kind.period for kind in kinds))
            does = [
                STALLED if bend.stalled else combined([kind.activity(cell + phase) for kind in kinds])
                for cell in range(period)
            ]
            rows = [work.row(self.timeline.profile, activity, share, bend) for activity in does]
            self._tables[key] = table([row[0] for row in rows], [row[1] for row in rows], work.RATE_INDEX["power"])
        return self._tables[key]

    def _leaf(self, gpu: int, place: int, number: int) -> Leaf:
        key = (gpu, place, number)
        if key not in self._leaves:
            places = self.timeline.layouts(gpu)[number][1]
            share = places[place].profile.slices / 7 if place != WHOLE else 1.0
            self._leaves[key] = Leaf(self, gpu, place, number, share)
        return self._leaves[key]

    def leaves_of(self, gpu: int, number: int) -> list[Leaf]:
        """The devices of one layout of a GPU that do work."""
        places = self.timeline.layouts(gpu)[number][1]
        return [self._leaf(gpu, place, number) for place in (range(len(places)) if places else (WHOLE,))]

    def leaf_totals(self, leaf: Leaf, t_seconds: float) -> list[float]:
        """Integrals over the leaf's life up to `t_seconds`."""
        if leaf.newest is not None and leaf.newest[0] == t_seconds:
            return leaf.newest[1]
        steps = self.timeline.layouts(leaf.gpu)
        born = steps[leaf.layout_number][0]
        dies = steps[leaf.layout_number + 1][0] if leaf.layout_number + 1 < len(steps) else math.inf
        until, since = position(min(t_seconds, dies)), position(born)
        totals = leaf.totals_at(leaf.stretch(until), until)
        if since > 0:
            start = leaf.totals_at(leaf.stretch(since), since)
            totals = [b - a for a, b in zip(start, totals, strict=True)]
        leaf.newest = (t_seconds, totals)
        return totals

    def gpu_totals(self, gpu: int, t_seconds: float) -> list[float]:
        """Integrals of a GPU's rates from 0 to `t_seconds`, over all its layouts."""
        layouts = self.timeline.layouts(gpu)
        if len(layouts) == 1 and not layouts[0][1]:
            return self.leaf_totals(self._leaf(gpu, WHOLE, 0), t_seconds)
        totals = [0.0] * len(work.RATES)
        for number in range(self.timeline.layout_number(gpu, t_seconds) + 1):
            parts = [self.leaf_totals(leaf, t_seconds) for leaf in self.leaves_of(gpu, number)]
            # Energy and bytes of MIG devices add up; a second in which two of them are throttled is one second.
            for rate, several in enumerate(zip(*parts, strict=True)):
                totals[rate] += sum(several) if rate in work.ADDED else max(several)
        return totals

    def since_reset(self, gpu: int, totals: list[float], reset: float) -> list[float]:
        """`totals` of a GPU, less what they were at `reset`."""
        if reset == 0.0:
            return totals
        key = (gpu, reset)
        if key not in self._resets:
            self._resets[key] = self.gpu_totals(gpu, reset)
        return [b - a for a, b in zip(self._resets[key], totals, strict=True)]
