"""What does a look say about one reading: what it is, what it rose by, what it was over a minute?

Of a counter only its rise counts, never what it stands at: lifetime totals are no news.
"""

from __future__ import annotations

from collections.abc import Mapping

from claimscope.health.model import Holds, Judgement, Look, Severity
from claimscope.model import Missing, Window

NO = Judgement(holds=Holds.NO)
NOT_CLEAN = Judgement(holds=Holds.NO, clean=False)
UNKNOWN = Judgement(holds=Holds.UNKNOWN)
NOT_APPLICABLE = Judgement(holds=Holds.NOT_APPLICABLE)  # it cannot have this fault now
ABSENT = Judgement(holds=Holds.NOT_APPLICABLE, clean=False)  # it does not tell: what was known before stands

NVLINKS: tuple[str, ...] = tuple(f"nvlink_up/{link}" for link in range(18))

DRAM = ("ecc_volatile_uncorrected_dram",)
SRAM = (
    "ecc_volatile_uncorrected_sram",
    "ecc_volatile_uncorrected_l1_cache",
    "ecc_volatile_uncorrected_l2_cache",
    "ecc_volatile_uncorrected_register_file",
    "sram_ecc_volatile_parity",
    "sram_ecc_volatile_secded",
)
CORRECTED = ("ecc_volatile_corrected",)
NVLINK_ERRORS = ("nvlink_errors_replay", "nvlink_errors_recovery")
NVLINK_CRC = ("nvlink_errors_crc_flit",)
NVLINK5_ERRORS = (
    "nvlink_errors_malformed_packet",
    "nvlink_errors_buffer_overrun",
    "nvlink_errors_receive",
    "nvlink_errors_receive_remote",
    "nvlink_errors_receive_general",
    "nvlink_errors_local_link_integrity",
)
NVLINK_FAILED = ("nvlink_recoveries_failed",)
NVLINK_RECOVERED = ("nvlink_recoveries_successful",)
REPLAYS = ("pcie_replays",)
PCIE_FATAL = ("pcie_errors_fatal",)
PCIE_NON_FATAL = ("pcie_errors_non_fatal",)
PCIE_CORRECTABLE = ("pcie_errors_correctable",)

# Reasons for low clocks that somebody chose, or that another rule is about.
CHOSEN_CLOCKS = (
    "clock_event_sw_power_cap",
    "clock_event_application_clocks",
    "clock_event_sync_boost",
    "clock_event_sw_thermal",
    "clock_event_hw_thermal",
    "clock_event_hw_power_brake",
)

# What a look must have the rise of, by when it is judged.
WINDOW_DELTAS: tuple[str, ...] = (*DRAM, *SRAM, *NVLINK_FAILED, *PCIE_FATAL, *PCIE_NON_FATAL)
MINUTE_DELTAS: tuple[str, ...] = (
    *CORRECTED, *NVLINK_ERRORS, *NVLINK_CRC, *NVLINK5_ERRORS, *NVLINK_RECOVERED, *REPLAYS, *PCIE_CORRECTABLE,
)  # fmt: skip
MINUTE_INTEGRALS: tuple[str, ...] = ("utilization_gpu", "utilization_memory", *CHOSEN_CLOCKS)
# The sampler keeps no integral of these: the mean is that of the last values of the windows.
MINUTE_MEANS: tuple[str, ...] = ("clock_sm", "power_instant")
MINUTE_HIGHEST: tuple[str, ...] = ("power_limit_enforced",)  # a limit that is lowered is not kept to at once


def yes(
    evidence: Mapping[str, str], *, severity: Severity | None = None, weight: float = 1.0, provisional: bool = False
) -> Judgement:
    """It holds."""
    return Judgement(
        holds=Holds.YES, evidence=evidence, severity=severity, weight=weight, provisional=provisional
    )


def absent(window: Window, key: str) -> Judgement:
    """A reading is not there: because the device has no such thing, or because it could not be read."""
    return ABSENT if window.missing.get(key) is Missing.UNSUPPORTED else UNKNOWN


def number(value: float) -> str:
    """For people."""
    return f"{value:.6g}"


def percent(ratio: float) -> str:
    """For people."""
    return f"{ratio:.0%}"


def rise(look: Look, keys: tuple[str, ...]) -> tuple[float, dict[str, str]] | Judgement:
    """The sum of what these rose by, and by how much each; or why it cannot be told."""
    deltas = look.deltas
    total, known, risen = 0.0, False, {}
    for key in keys:
        by = deltas.get(key)
        if by is None:
            continue
        known = True
        if by:
            total += by
            risen[key] = f"+{number(by)}"
    if known:
        return total, risen
    window = look.window
    if window is not None and all(window.missing.get(key) is Missing.UNSUPPORTED for key in keys):
        return ABSENT
    return UNKNOWN


def risen(look: Look, keys: tuple[str, ...], at_least: float = 1.0) -> Judgement:
    """YES where these rose by so much."""
    found = rise(look, keys)
    if isinstance(found, Judgement):
        return found
    return yes(found[1]) if found[0] >= at_least else NO


def per_minute(look: Look, keys: tuple[str, ...], limit: float) -> Judgement:
    """YES where these rose by more than so much a minute."""
    found = rise(look, keys)
    if isinstance(found, Judgement):
        return found
    rate = found[0] * 60.0 / look.seconds
    if rate <= limit:
        return NO
    return yes({**found[1], "per_minute": number(rate), "limit_per_minute": number(limit)})


def counted(look: Look, keys: tuple[str, ...]) -> Judgement:
    """A minute counts for as many errors as it brought."""
    found = rise(look, keys)
    if isinstance(found, Judgement):
        return found
    return yes(found[1], weight=found[0]) if found[0] else NO


def mean(look: Look, key: str) -> float | Judgement:
    """The mean of a gauge over this minute, or why it cannot be told."""
    total = look.deltas.get(key)
    if total is None:
        return UNKNOWN if look.window is None else absent(look.window, key)
    return total / look.seconds


def mean_load(look: Look) -> float | None:
    """Mean utilization over this minute."""
    busy = look.deltas.get("utilization_gpu")
    return None if busy is None else busy / look.seconds
