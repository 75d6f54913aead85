"""What does one look at a device say about the driver's verdict, about whether it is there, and about its memory?

Conditions are pure functions of a Look and the thresholds. They know nothing of time: how often or how long a condition
must hold is the rule's. A figure that the device does not have makes it NOT_APPLICABLE, one that cannot be read makes
it UNKNOWN. link_conditions.py and load_conditions.py have the others.
"""

from __future__ import annotations

from claimscope.health.model import Holds, Judgement, Look, Severity
from claimscope.health.readings import (
    CORRECTED,
    DRAM,
    NO,
    SRAM,
    UNKNOWN,
    absent,
    number,
    per_minute,
    risen,
    yes,
)
from claimscope.health.thresholds import Thresholds

# Words of Inventory.lost that mean another thing than a lost GPU: we leave it alone, or the driver wants a reset.
QUARANTINE_WORD = "quarantine"
RESET_WORD = "must be reset"
MISSING_WORD = "not listed"
NOT_LISTED = f"{MISSING_WORD} by NVML any more, though it was there or the NVIDIA driver has it"

# The driver's verdict


def recovery_action(look: Look) -> str | None:
    """What the driver says must be done; None where it does not say."""
    return None if look.window is None else look.window.text.get("recovery_action")


def _action(look: Look, wanted: frozenset[str]) -> Judgement:
    window = look.window
    if window is None:
        return UNKNOWN
    action = window.text.get("recovery_action")
    if action is None:
        return absent(window, "recovery_action")
    return yes({"recovery_action": action}) if action in wanted else NO


RESETS = frozenset({"gpu_reset", "drain_and_reset", "bus_reset"})
REBOOTS = frozenset({"node_reboot", "system_reboot"})
PEERS = frozenset({"drain_p2p", "recover_imex_domain"})
_ACTIONS = RESETS | REBOOTS | PEERS | {"none"}


def action_reset(look: Look, _: Thresholds) -> Judgement:
    """The driver wants this GPU to be reset; an action that is not known is degraded, not fatal."""
    judged = _action(look, RESETS)
    action = recovery_action(look)
    if judged is NO and action not in _ACTIONS:
        return yes({"recovery_action": f"{action}, which is not known"}, severity=Severity.DEGRADED)
    return judged


def action_reboot(look: Look, _: Thresholds) -> Judgement:
    """The driver wants this machine to be rebooted."""
    return _action(look, REBOOTS)


def action_peer(look: Look, _: Thresholds) -> Judgement:
    """The driver wants traffic between GPUs to be drained, or the IMEX domain recovered."""
    return _action(look, PEERS)


def reset_failed(look: Look, thresholds: Thresholds) -> Judgement:
    """The driver wanted a reset or reboot, got it, and still wants one."""
    since = min(look.driver_seconds, look.boot_seconds)
    if not look.unrepaired or since > thresholds["reset_failed_within_seconds"]:
        return NO
    return _action(look, RESETS | REBOOTS)


# Is it there?


def gpu_lost(look: Look, _: Thresholds) -> Judgement:
    """It does not answer the driver."""
    lost = look.lost
    if lost is None:
        return UNKNOWN if look.window is None else NO
    if QUARANTINE_WORD in lost or RESET_WORD in lost or MISSING_WORD in lost:
        return UNKNOWN
    return yes({"reason": lost})


def _lost_with(look: Look, word: str) -> Judgement:
    if look.lost is not None and word in look.lost:
        return yes({"reason": look.lost})
    return UNKNOWN if look.window is None else NO


def gpu_missing(look: Look, _: Thresholds) -> Judgement:
    """It was there since boot and NVML does not list it any more."""
    return _lost_with(look, MISSING_WORD)


def reset_required(look: Look, _: Thresholds) -> Judgement:
    """The driver refuses it until it is reset."""
    return _lost_with(look, RESET_WORD)


def driver_call_hangs(look: Look, _: Thresholds) -> Judgement:
    """A driver call on it did not come back, and it is left out of sampling."""
    return _lost_with(look, QUARANTINE_WORD)


# Flags and numbers that are states


def _flag(look: Look, key: str) -> Judgement:
    window = look.window
    if window is None:
        return UNKNOWN
    value = window.last.get(key)
    if value is None:
        return absent(window, key)
    return yes({key: "1"}) if value else NO


def row_remap_pending(look: Look, _: Thresholds) -> Judgement:
    """A row waits for a reset to be replaced."""
    return _flag(look, "row_remap_pending")


def row_remap_failure(look: Look, _: Thresholds) -> Judgement:
    """A row could not be replaced."""
    return _flag(look, "row_remap_failure")


def sram_threshold(look: Look, _: Thresholds) -> Judgement:
    """Uncorrected SRAM errors passed the driver's limit."""
    return _flag(look, "sram_ecc_threshold_exceeded")


def retired_pages_pending(look: Look, _: Thresholds) -> Judgement:
    """A page waits for a reboot to be retired."""
    return _flag(look, "retired_pages_pending")


def _either(first: Judgement, second: Judgement) -> Judgement:
    """YES where one is; else NO where one is known; else what the first says."""
    for wanted in (Holds.YES, Holds.NO):
        for judged in (first, second):
            if judged.holds is wanted:
                return judged
    return first


def repair_pending(look: Look, _: Thresholds) -> Judgement:
    """A repair of a memory channel or of a TPC waits for a reset."""
    return _either(_flag(look, "repair_pending_channel"), _flag(look, "repair_pending_tpc"))


def remapped_rows_many(look: Look, thresholds: Thresholds) -> Judgement:
    """Spare rows are running out. A lifetime number, which is what its limit is about."""
    window = look.window
    if window is None:
        return UNKNOWN
    none = window.last.get("row_remap_banks_none")
    if none:
        return yes({"banks_without_spare_rows": number(none)})
    rows = window.raw.get("remapped_rows_uncorrected")
    if rows is None:
        return absent(window, "remapped_rows_uncorrected")
    if rows >= thresholds["remapped_rows_uncorrected"]:
        return yes({"remapped_rows_uncorrected": number(rows)})
    return NO


def retired_pages_many(look: Look, thresholds: Thresholds) -> Judgement:
    """Too many pages were retired. A lifetime number, which is what its limit is about."""
    window = look.window
    if window is None:
        return UNKNOWN
    single, double = window.raw.get("retired_pages_single_bit"), window.raw.get("retired_pages_double_bit")
    if single is None or double is None:
        return absent(window, "retired_pages_single_bit" if single is None else "retired_pages_double_bit")
    if single + double >= thresholds["retired_pages"]:
        return yes({"retired_pages": f"{number(single)} single-bit, {number(double)} double-bit"})
    return NO


def ecc_uncorrected_dram(look: Look, thresholds: Thresholds) -> Judgement:
    """Memory errors; the driver's own verdict says whether they were contained."""
    judged = risen(look, DRAM, thresholds["ecc_uncorrected_errors"])
    return yes(judged.evidence, provisional=True) if judged.holds is Holds.YES else judged


def ecc_uncorrected_sram(look: Look, thresholds: Thresholds) -> Judgement:
    """Errors in caches or registers."""
    return risen(look, SRAM, thresholds["ecc_uncorrected_errors"])


def ecc_corrected_storm(look: Look, thresholds: Thresholds) -> Judgement:
    """So many corrected errors that it costs speed and foretells worse."""
    return per_minute(look, CORRECTED, thresholds["ecc_corrected_per_minute"])
