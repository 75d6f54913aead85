"""How hard does a program work the GPU at a moment, and how much has it worked since?

Time goes in cells of a tenth of a second; within a cell every rate is constant, and every workload repeats after a
whole number of cells. Hence integrals over any span are exact and cost the same for a second as for a year.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

CELL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What one program does in one cell; parts of the whole, 0 to 1."""

    graphics: float = 0.0
    sm: float = 0.0
    occupancy: float = 0.0
    tensor: float = 0.0
    dram: float = 0.0
    fp64: float = 0.0
    fp32: float = 0.0
    fp16: float = 0.0
    integer: float = 0.0
    nvlink: float = 0.0
    pcie_tx: float = 0.0  # GPU to host
    pcie_rx: float = 0.0
    encoder: float = 0.0
    decoder: float = 0.0
    jpeg: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A kind of program."""

    name: str
    period: int  # cells
    memory: float  # part of the device's memory it holds
    activity: Callable[[int], Activity]  # of the cell's place in the period


def _noise(cell: int, salt: int) -> float:
    """A fixed pseudo-random number in 0 to 1 for a cell."""
    value = (cell * 2654435761 + salt * 40503 + 12345) & 0xFFFFFFFF
    value = ((value >> 16) ^ value) * 0x45D9F3B & 0xFFFFFFFF
    return (((value >> 16) ^ value) & 0xFFFF) / 65535


def _training(cell: int) -> Activity:
    # A step of 1.2 s: forward and backward ramp up, then gradients are exchanged over NVLink.
    place = cell % 12
    if place < 9:
        rise = place / 8
        return Activity(
            graphics=1.0,
            sm=0.88 + 0.1 * rise,
            occupancy=0.42 + 0.12 * rise,
            tensor=0.62 + 0.3 * rise,
            dram=0.45 + 0.25 * rise,
            fp32=0.18,
            fp16=0.12,
            integer=0.1,
            nvlink=0.06 + 0.1 * rise,
            pcie_rx=0.03,
            pcie_tx=0.01,
        )
    return Activity(
        graphics=1.0,
        sm=0.35,
        occupancy=0.12,
        tensor=0.04,
        dram=0.5,
        fp32=0.05,
        fp16=0.08,
        integer=0.06,
        nvlink=0.72,
        pcie_rx=0.02,
        pcie_tx=0.02,
    )


def _inference(cell: int) -> Activity:
    # Requests come in bursts: some seconds busy, some nearly idle, each different.
    load = _noise(cell // 15, 1)
    load = 0.0 if load < 0.3 else load
    jitter = 0.75 + 0.25 * _noise(cell, 2)
    level = load * jitter
    return Activity(
        graphics=min(1.0, level * 1.1),
        sm=level * 0.75,
        occupancy=level * 0.3,
        tensor=level * 0.35,
        dram=level * 0.7,
        fp32=level * 0.15,
        fp16=level * 0.2,
        integer=level * 0.1,
        nvlink=level * 0.04,
        pcie_rx=level * 0.05,
        pcie_tx=level * 0.03,
        decoder=level * 0.25,
        jpeg=level * 0.1,
    )


def _data_starved(cell: int) -> Activity:
    # Computes for half a second, then waits a second and a half for the next batch over PCIe.
    if cell % 20 < 5:
        return Activity(
            graphics=1.0,
            sm=0.8,
            occupancy=0.35,
            tensor=0.55,
            dram=0.5,
            fp32=0.2,
            fp16=0.1,
            integer=0.1,
            nvlink=0.05,
            pcie_rx=0.1,
        )
    return Activity(graphics=0.04, sm=0.02, occupancy=0.01, dram=0.03, pcie_rx=0.35, pcie_tx=0.01)


def _idle(cell: int) -> Activity:
    del cell
    return Activity()


# A kernel that waits for something that does not come: one block spins, nothing else moves.
STALLED = Activity(graphics=1.0, sm=0.01)

WORKLOADS: Mapping[str, Workload] = MappingProxyType(
    {
        workload.name: workload
        for workload in (
            Workload(name="training", period=12, memory=0.82, activity=_training),
            Workload(name="inference", period=300, memory=0.55, activity=_inference),
            Workload(name="data_starved", period=20, memory=0.45, activity=_data_starved),
            Workload(name="crowded", period=300, memory=0.99, activity=_inference),
            Workload(name="idle", period=1, memory=0.05, activity=_idle),
        )
    }
)


def combined(activities: Sequence[Activity]) -> Activity:
    """What programs that share a device do together: they get in each other's way, so nothing passes 1."""
    if len(activities) == 1:
        return activities[0]
    left = dict.fromkeys(Activity.__slots__, 1.0)
    for activity in activities:
        for name in left:
            left[name] *= 1.0 - getattr(activity, name)
    return Activity(**{name: 1.0 - rest for name, rest in left.items()})


@dataclass(frozen=True, slots=True)
class Table:
    """One period of a load on one device: gauges per cell, rates per cell and their running sums.

    `rates` are per second; `sums[n]` is the integral over the first n cells.
    """

    gauges: tuple[tuple[float, ...], ...]
    rates: tuple[tuple[float, ...], ...]
    sums: tuple[tuple[float, ...], ...]
    mean_power: float  # watts above idle

    def gauge(self, cell: float) -> tuple[float, ...]:
        """The gauges in a cell."""
        return self.gauges[int(cell) % len(self.gauges)]

    def integral(self, cell: float) -> list[float]:
        """The integral of every rate from cell 0 to `cell`."""
        period = len(self.rates)
        whole = math.floor(cell)
        turns, place = divmod(whole, period)
        part = (cell - whole) * CELL_SECONDS
        total = self.sums[period]
        return [
            turns * full + done + part * rate
            for full, done, rate in zip(total, self.sums[place], self.rates[place], strict=True)
        ]


def table(gauges: Sequence[tuple[float, ...]], rates: Sequence[tuple[float, ...]], power_index: int) -> Table:
    """Adds the running sums."""
    sums: list[tuple[float, ...]] = [tuple(0.0 for _ in rates[0])]
    for row in rates:
        sums.append(tuple(s + r * CELL_SECONDS for s, r in zip(sums[-1], row, strict=True)))
    return Table(tuple(gauges), tuple(rates), tuple(sums), sums[-1][power_index] / (len(rates) * CELL_SECONDS))
