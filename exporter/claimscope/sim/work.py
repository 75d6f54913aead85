"""What does a program's activity make of a device: power, clocks, rates, and the numbers that the library shows?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from claimscope.sim import layout
from claimscope.sim.profiles import Profile
from claimscope.sim.workloads import Activity

REASON_IDLE = 0x1
REASON_POWER_CAP = 0x4
REASON_HARDWARE = 0x8
REASON_SOFTWARE_THERMAL = 0x20
REASON_HARDWARE_THERMAL = 0x40
REASON_POWER_BRAKE = 0x80

PCIE_BYTES_PER_LANE = {3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}  # one direction, after encoding

# Rates that are integrated, with the variable that shows the integral and its scale.
RATES: Final = (
    "power",
    "graphics",
    "sm",
    "occupancy",
    "tensor",
    "dram",
    "fp64",
    "fp32",
    "fp16",
    "integer",
    "encoder",
    "decoder",
    "jpeg",
    "pcie_tx",
    "pcie_rx",
    "nvlink",
    "power_cap",
    "software_thermal",
    "hardware_thermal",
    "power_brake",
)
RATE_INDEX: Final = {name: index for index, name in enumerate(RATES)}
ADDED: Final = frozenset(RATE_INDEX[name] for name in ("power", "pcie_tx", "pcie_rx", "nvlink"))
# Gauges of a table's cell.
POWER, GRAPHICS, DRAM, ENCODER, DECODER, JPEG, CLOCK, REASONS, BUSY, PCIE_TX, PCIE_RX = range(11)


@dataclass(frozen=True, slots=True)
class Bend:
    """What faults make of a device's work."""

    thermal: bool = False
    hardware_thermal: bool = False
    brake: bool = False
    links_down: int = 0
    clock: float = 1.0  # part of the clocks it would have
    stalled: bool = False


def row(profile: Profile, activity: Activity, share: float, bend: Bend) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Gauges and rates of one cell; `share` is the part of the GPU that the device is."""
    room = profile.power_limit_watts - profile.idle_watts
    effort = (
        0.10 * activity.graphics
        + 0.28 * activity.sm
        + 0.40 * activity.tensor
        + 0.22 * activity.dram
        + 0.05 * activity.fp64
        + 0.06 * activity.fp32
        + 0.04 * (activity.encoder + activity.decoder)
    )
    power = 1.06 * room * effort
    reasons = 0 if activity.graphics > 0 else REASON_IDLE
    clock = 1.0 - 0.04 * min(1.0, effort)
    cap = 0.0
    if power > room:
        power, cap, reasons, clock = room, 1.0, reasons | REASON_POWER_CAP, clock * 0.92
    power, clock = power * bend.clock, clock * bend.clock
    software = hardware = brake = 0.0
    if bend.thermal:
        power, clock = power * 0.7, clock * 0.7
        software, reasons = 1.0, reasons | REASON_SOFTWARE_THERMAL
        if bend.hardware_thermal:
            hardware, reasons = 1.0, reasons | REASON_HARDWARE | REASON_HARDWARE_THERMAL
    if bend.brake:
        power, clock = power * 0.5, clock * 0.5
        brake, reasons = 1.0, reasons | REASON_HARDWARE | REASON_POWER_BRAKE
    power *= share
    lanes = PCIE_BYTES_PER_LANE[profile.pcie_generation] * 16 * share
    pcie_tx, pcie_rx = activity.pcie_tx * lanes, activity.pcie_rx * lanes
    links = max(0, profile.nvlink_links - bend.links_down) if share == 1.0 else 0
    nvlink = activity.nvlink * links * profile.nvlink_megabytes_per_second * 1e6
    gauges = (
        power,
        activity.graphics,
        activity.dram,
        activity.encoder,
        activity.decoder,
        activity.jpeg,
        clock if activity.graphics > 0 else 0.0,
        float(reasons),
        activity.sm,
        pcie_tx,
        pcie_rx,
    )
    rates = (
        power,
        activity.graphics,
        activity.sm,
        activity.occupancy,
        activity.tensor,
        activity.dram,
        activity.fp64,
        activity.fp32,
        activity.fp16,
        activity.integer,
        activity.encoder,
        activity.decoder,
        activity.jpeg,
        pcie_tx,
        pcie_rx,
        nvlink,
        cap,
        software,
        hardware,
        brake,
    )
    return gauges, rates


_TOTALS: Final = {
    "pcie_tx_total": ("pcie_tx", 1.0),
    "pcie_rx_total": ("pcie_rx", 1.0),
    "nvlink_tx_total": ("nvlink", 1.0),
    "nvlink_rx_total": ("nvlink", 0.98),
    "power_cap_total": ("power_cap", 1e9),
    "software_thermal_total": ("software_thermal", 1e9),
    "hardware_thermal_total": ("hardware_thermal", 1e9),
    "power_brake_total": ("power_brake", 1e9),
    **{
        f"{name}_total": (name, 1.0)
        for name in (
            "graphics",
            "sm",
            "occupancy",
            "tensor",
            "dram",
            "fp64",
            "fp32",
            "fp16",
            "integer",
            "encoder",
            "decoder",
            "jpeg",
        )
    },
}
_TOTAL_SOURCES: Final = tuple(
    (RATE_INDEX[_TOTALS[name][0]], _TOTALS[name][1]) if name in _TOTALS else None for name in layout.VARIABLES
)


def variables(values: Mapping[str, float], totals: list[float]) -> tuple[float, ...]:
    """In the order of layout.VARIABLES: gauges by name, and the integrals of rates."""
    return tuple(
        values.get(name, 0.0) if source is None else totals[source[0]] * source[1]
        for name, source in zip(layout.VARIABLES, _TOTAL_SOURCES, strict=True)
    )
