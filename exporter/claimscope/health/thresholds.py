"""Which numbers decide about health, what are they by default, and who says so?

One row a number. All of them can be changed while the agent runs, by a mapping of names to numbers.
"""

from __future__ import annotations

import difflib
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


class Source(enum.Enum):
    """Who says so."""

    NVIDIA = "N"  # a default or a limit of NVIDIA's: driver, DCGM, its documents
    GPUD = "G"  # a default of leptonai/gpud
    ENGINEERING = "E"  # our choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """One number."""

    name: str
    default: float
    unit: str  # "seconds", "minutes", "ratio", "celsius", "errors", ... for people
    low: float
    high: float
    source: Source
    help: str


class ThresholdError(ValueError):
    """A threshold that cannot be used: which, what was found, what is allowed."""


def _row(name: str, default: float, unit: str, low: float, high: float, source: str, help_text: str) -> Threshold:
    return Threshold(
        name=name, default=default, unit=unit, low=low, high=high, source=Source(source), help=help_text
    )


def _seconds(name: str, default: float, source: str, help_text: str, *, low: float = 0.0) -> Threshold:
    return _row(name, default, "seconds", low, 30 * DAY, source, help_text)


def _minutes(stem: str, need: float, of: int, source: str, what: str) -> tuple[Threshold, Threshold]:
    return (
        _row(f"{stem}_minutes", need, "minutes", 0.1, 1e6, source, f"How much of the last minutes {what} to count."),
        _row(f"{stem}_of_minutes", of, "minutes", 1, 1440, source, "How many minutes are looked at for that."),
    )


def _settle(stem: str, hold: float, clean: float, source: str = "E") -> tuple[Threshold, ...]:
    """How long a finding that time ends lasts at least, and how long its cause must be gone."""
    return (
        _seconds(f"{stem}_hold_seconds", hold, source, f"How long `{stem}` stands at least."),
        _seconds(f"{stem}_clean_seconds", clean, source, f"How long all must be well to end `{stem}`."),
    )


ROWS: tuple[Threshold, ...] = (
    # All rules
    _seconds("startup_grace_seconds", 120, "E", "After a device is first seen, before its figures are judged."),
    _seconds("boot_grace_seconds", 10 * MINUTE, "E", "After boot or driver load, before links and fabric are judged."),
    _seconds("verdict_wait_seconds", 30, "E", "How long the driver's word is waited for after an error.", low=5),
    _seconds("after_reset_clean_seconds", MINUTE, "E", "Quiet after a reset or reboot before a finding ends.", low=10),
    _row("flapping_cycles", 3, "cycles", 1, 100, "E", "Findings that came and went, after which the next one stays."),
    _seconds("flapping_window_seconds", DAY, "E", "In which time those are counted."),
    _seconds("clear_delay_max_seconds", 6 * HOUR, "E", "Most that a clean time grows to; it doubles with each return."),
    _seconds("stale_seconds", MINUTE, "E", "Without a reading for so long, rules of the device are unknown.", low=5),
    _row("systemic_ratio", 0.5, "ratio", 0.01, 1.0, "E", "Part of the node's GPUs that makes one cause likely."),
    _row("systemic_devices", 2, "devices", 2, 1000, "E", "GPUs that it takes at least."),
    _seconds("systemic_window_seconds", 10 * MINUTE, "E", "Within which time they must fire.", low=10),
    _seconds("systemic_release_seconds", 30 * MINUTE, "E", "After the others cleared, until it is a GPU's own."),
    # Driver
    _seconds("recovery_action_seconds", 2, "N", "How long the driver must ask for a reset or reboot."),
    *_settle("recovery_action", 0, 2),
    *_settle("recovery_action_reboot", 0, 2),
    _seconds("recovery_action_peer_seconds", 30, "N", "How long the driver must ask to drain peers."),
    *_settle("recovery_action_peer", 5 * MINUTE, 5 * MINUTE),
    _seconds("gpu_lost_seconds", 5, "N", "How long a GPU must not answer."),
    *_settle("gpu_lost", 0, 10 * MINUTE),
    _seconds("gpu_missing_seconds", 2 * MINUTE, "G", "How long NVML must not list a GPU that was there since boot."),
    *_settle("gpu_missing", 10 * MINUTE, 10 * MINUTE),
    _seconds("reset_required_seconds", 2, "N", "How long the driver must refuse a GPU until it is reset."),
    *_settle("reset_required", 0, MINUTE),
    _seconds("driver_call_hangs_seconds", 15, "E", "How long a GPU must be left out because driver calls hang."),
    *_settle("driver_call_hangs", 0, 5 * MINUTE),
    _seconds("reset_failed_seconds", 10, "E", "How long a GPU must still want a reset or reboot after one."),
    _seconds("reset_failed_within_seconds", 5 * MINUTE, "E", "How long after a reset its success is judged."),
    # XIDs and other events
    *_settle("xid_degraded", 30 * MINUTE, DAY),
    *_settle("xid_unknown", 30 * MINUTE, DAY),
    _seconds("xid_repeat_window_seconds", DAY, "E", "In which time repeats of an XID are counted."),
    _seconds("xid_burst_seconds", 3 * MINUTE, "E", "XIDs of one code within this time are counted once."),
    *_settle("xid_repeat", 0, DAY),
    *_settle("driver_event_degraded", 6 * HOUR, 6 * HOUR),
    # Memory
    _row("ecc_uncorrected_errors", 1, "errors", 1, 1e6, "N", "Uncorrected errors, between two readings, that count."),
    _seconds("sram_ecc_threshold_seconds", 10, "N", "How long the driver must say that SRAM errors passed its limit."),
    _row("ecc_corrected_per_minute", 1000, "errors per minute", 1, 1e9, "E", "Corrected errors that are a storm."),
    *_minutes("ecc_corrected_storm", 10, 10, "E", "must have such a storm"),
    *_settle("ecc_corrected_storm", 6 * HOUR, 6 * HOUR),
    _seconds("row_remap_pending_seconds", 2, "N", "How long a row must wait for a reset to be replaced."),
    *_settle("row_remap_pending", 0, 2),
    _seconds("row_remap_failure_seconds", 1, "N", "How long the driver must say that a row could not be replaced."),
    _row("remapped_rows_uncorrected", 512, "rows", 1, 1e6, "N", "Rows replaced for uncorrected errors that are many."),
    _seconds("remapped_rows_many_seconds", 10, "E", "How long that must be read."),
    _seconds("repair_pending_seconds", 10, "E", "How long a repair must wait for a reset."),
    *_settle("repair_pending", 0, 20),
    _row("retired_pages", 63, "pages", 1, 1e6, "N", "Retired pages (before Ampere) that are too many."),
    _seconds("retired_pages_seconds", 10, "E", "How long that must be read."),
    *_settle("retired_pages_pending", 0, 20),
    # NVLink and fabric
    _seconds("nvlink_down_seconds", MINUTE, "E", "How long a link that was up must be down."),
    *_settle("nvlink_down", 15 * MINUTE, 15 * MINUTE),
    *_minutes("nvlink_errors", 16, 30, "N", "must have replays or recoveries"),
    *_settle("nvlink_errors", 30 * MINUTE, 30 * MINUTE),
    _row("nvlink_crc_per_second", 100, "errors per second", 0.001, 1e9, "N", "CRC errors of all links that are many."),
    *_minutes("nvlink_crc", 2, 3, "N", "must have as many CRC errors"),
    *_settle("nvlink_crc", 30 * MINUTE, 30 * MINUTE),
    *_minutes("nvlink5_errors", 3, 10, "E", "must have packet errors of NVLink 5"),
    *_settle("nvlink5_errors", 30 * MINUTE, 30 * MINUTE),
    *_settle("nvlink_recovery_failed", HOUR, DAY),
    *_minutes("nvlink_recoveries", 10, 60, "E", "must bring so many successful recoveries"),
    *_settle("nvlink_recoveries", HOUR, HOUR),
    _seconds("fabric_not_ready_seconds", 5 * MINUTE, "E", "How long a GPU must not have joined the fabric."),
    *_settle("fabric_not_ready", 10 * MINUTE, 10 * MINUTE),
    _seconds("fabric_fault_seconds", 2 * MINUTE, "E", "How long the fabric must report a fault."),
    *_settle("fabric_unhealthy", 10 * MINUTE, 10 * MINUTE),
    *_settle("fabric_degraded", 10 * MINUTE, 10 * MINUTE),
    # PCIe
    _row("pcie_width_load_ratio", 0.2, "ratio", 0, 1, "E", "Utilization from which on the width is judged."),
    _row("pcie_width_unhealthy_ratio", 0.25, "ratio", 0, 1, "E", "Part of the width at which no new work should come."),
    *_minutes("pcie_width", 5, 5, "E", "must show a narrow link under load"),
    *_settle("pcie_width", 30 * MINUTE, 30 * MINUTE),
    _row("pcie_generation_load_ratio", 0.5, "ratio", 0, 1, "E", "Utilization from which on the generation is judged."),
    *_minutes("pcie_generation", 5, 5, "E", "must show a slow link under load"),
    *_settle("pcie_generation", 30 * MINUTE, 30 * MINUTE),
    _row("pcie_replays_factor", 1.0, "ratio", 0.01, 1e6, "N", "Times DCGM's limit of replays per lane and minute."),
    *_minutes("pcie_replays", 5, 10, "E", "must have more replays than the limit"),
    *_settle("pcie_replays", 30 * MINUTE, 30 * MINUTE),
    *_settle("pcie_errors_non_fatal", HOUR, HOUR),
    *_minutes("pcie_errors_correctable", 100, 60, "E", "must bring so many correctable errors"),
    *_settle("pcie_errors_correctable", HOUR, HOUR),
    # Heat, power, clocks
    _row("duty_clean_ratio", 0.05, "ratio", 0.001, 1, "E", "Part of a minute of slowdown below which it is clean."),
    _row("duty_active_ratio", 0.25, "ratio", 0.001, 1, "E", "Part of a minute of slowdown from which on it counts."),
    *_minutes("thermal_slowdown", 6, 10, "G", "must be slowed down by heat"),
    *_settle("thermal_slowdown", 30 * MINUTE, 30 * MINUTE),
    *_minutes("thermal_slowdown_lasting", 18, 30, "E", "of slowdown by heat, all added up, must be there"),
    *_settle("thermal_slowdown_lasting", 30 * MINUTE, 30 * MINUTE),
    _row("thermal_margin_celsius", 3, "celsius", 0, 50, "E", "Distance to the slowdown that is near."),
    _row("thermal_margin_clean_celsius", 8, "celsius", 0, 50, "E", "Distance beyond which all is well again."),
    *_minutes("thermal_margin", 10, 15, "E", "must end as near to the slowdown"),
    *_settle("thermal_margin", 15 * MINUTE, 30 * MINUTE),
    _row("thermal_shutdown_celsius", 2, "celsius", 0, 50, "E", "Distance to the shutdown that is near."),
    _seconds("thermal_shutdown_seconds", 5, "E", "How long it must be as near."),
    *_settle("thermal_shutdown", 30 * MINUTE, 30 * MINUTE),
    *_minutes("power_brake", 3, 10, "E", "must be braked by the power supply"),
    *_settle("power_brake", 30 * MINUTE, 30 * MINUTE),
    _row("power_excess_ratio", 1.15, "ratio", 1, 10, "E", "Power against the enforced limit that is too much."),
    *_minutes("power_excess", 1, 1, "E", "must use more than that"),
    *_settle("power_excess", 30 * MINUTE, 30 * MINUTE),
    _row("power_absent_watts", 5, "watts", 0, 1000, "E", "Power below which a busy GPU cannot be."),
    *_minutes("power_absent", 5, 5, "E", "must use less than that"),
    *_settle("power_absent", 30 * MINUTE, 30 * MINUTE),
    _row("clocks_low_load_ratio", 0.9, "ratio", 0, 1, "E", "Utilization from which on clocks are compared."),
    _row("clocks_low_ratio", 0.7, "ratio", 0, 1, "E", "Part of the peers' median clock that is low."),
    _row("clocks_low_clean_ratio", 0.9, "ratio", 0, 1, "E", "Part of the peers' median clock that is well again."),
    _row("clocks_low_peers", 4, "devices", 2, 1000, "E", "Busy peers of the same model that a comparison takes."),
    *_minutes("clocks_low", 10, 10, "E", "must have clocks as low"),
    *_settle("clocks_low", 30 * MINUTE, 15 * MINUTE),
    # Work and modes
    _row("hang_utilization_ratio", 0.99, "ratio", 0, 1, "E", "Utilization from which on a GPU may only seem busy."),
    _row("hang_memory_ratio", 0.01, "ratio", 0, 1, "E", "Memory utilization below which it only seems so."),
    _row("hang_power_ratio", 0.3, "ratio", 0, 1, "E", "Part of the power limit below which it only seems so."),
    *_minutes("hang", 15, 15, "E", "must look so"),
    *_settle("hang", 0, MINUTE),
    *_minutes("mig_mode", 15, 15, "E", "must wait for a change of the MIG mode"),
    *_settle("mig_mode", 0, MINUTE),
)  # fmt: skip

BY_NAME: Mapping[str, Threshold] = MappingProxyType({row.name: row for row in ROWS})


class Thresholds:
    """The numbers in force; immutable."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, float] | None = None) -> None:
        self._values: dict[str, float] = {row.name: row.default for row in ROWS} | dict(values or {})

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thresholds) and self._values == other._values

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    @classmethod
    def from_mapping(cls, found: Mapping[str, object]) -> Thresholds:
        """The defaults with these in their place. Raises ThresholdError, which names all that is wrong."""
        values: dict[str, float] = {}
        wrong: list[str] = []
        for name, value in found.items():
            row = BY_NAME.get(name)
            if row is None:
                wrong.append(_unknown(str(name)))
            elif isinstance(value, bool) or not isinstance(value, int | float):
                wrong.append(f"{name}: found {value!r}, expected a number ({row.unit})")
            elif not math.isfinite(value) or not row.low <= value <= row.high:
                wrong.append(f"{name}: found {value!r}, expected {row.low:g} to {row.high:g} {row.unit}")
            else:
                values[name] = float(value)
        made = cls(values)
        if not wrong:
            wrong = [
                f"{stem}_minutes: found {made[f'{stem}_minutes']:g}, expected at most "
                f"{stem}_of_minutes ({made[f'{stem}_of_minutes']:g}), or it never fires"
                for stem in _PART_OF_MINUTES
                if made[f"{stem}_minutes"] > made[f"{stem}_of_minutes"]
            ]
            wrong += [
                f"{upper}: found {made[upper]:g}, expected at least {lower} ({made[lower]:g}), or nothing ever ends"
                for lower, upper in _AT_LEAST
                if made[upper] < made[lower]
            ]
        if wrong:
            raise ThresholdError("health thresholds: " + "; ".join(wrong))
        return made


# Where a finding ends must not be before where it begins.
_AT_LEAST = (
    ("thermal_margin_celsius", "thermal_margin_clean_celsius"),
    ("thermal_shutdown_celsius", "thermal_margin_clean_celsius"),
    ("clocks_low_ratio", "clocks_low_clean_ratio"),
    ("duty_clean_ratio", "duty_active_ratio"),
)
# The others count errors, of which a minute can have many.
COUNTED = ("nvlink_recoveries", "pcie_errors_correctable")
_PART_OF_MINUTES: tuple[str, ...] = tuple(
    stem
    for row in ROWS
    if row.name.endswith("_of_minutes") and (stem := row.name.removesuffix("_of_minutes")) not in COUNTED
)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, BY_NAME, n=1)
    return f"{name}: there is no such threshold" + (f"; did you mean {near[0]}?" if near else "")
