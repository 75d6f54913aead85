"""Which rules judge a GPU? One row each: on what condition, for how long, how bad, and what ends it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from claimscope.health import conditions, link_conditions, load_conditions
from claimscope.health.model import Judgement, Look, Severity, Survives
from claimscope.health.thresholds import Thresholds

Condition = Callable[[Look, Thresholds], Judgement]


class On(enum.Enum):
    """When a rule is judged."""

    WINDOW = "window"  # each window, on its last values
    MINUTE = "minute"  # each minute of observed time, on its rises and means
    EVENT = "event"  # when an event says so (events.py)


class Grace(enum.Enum):
    """What a rule waits for before it judges."""

    NONE = "none"
    START = "start"  # a device that was first seen just now
    BOOT = "boot"  # also the time after boot or driver load, in which links and fabric come up


@dataclass(frozen=True, slots=True)
class First:
    """The first time is enough."""


@dataclass(frozen=True, slots=True)
class Steady:
    """It must hold without a break for so long, and be seen twice at least."""

    seconds: str  # name of a threshold


@dataclass(frozen=True, slots=True)
class Minutes:
    """The last `of` minutes must bring `need`: each counts by the weight of its judgement."""

    need: str  # names of thresholds
    of: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row."""

    key: str
    title: str
    severity: Severity
    survives: Survives
    clears: str  # what ends it, for people
    on: On = On.WINDOW
    condition: Condition | None = None  # None for On.EVENT
    window: First | Steady | Minutes = First()
    grace: Grace = Grace.START
    latches: bool = False  # time does not end it; what `survives` does not outlive, or an acknowledgement, does
    correlated: bool = False  # many GPUs at once have a cause outside of them: cooling, power supply, firmware
    needs_load: bool = False  # judged only while the device works
    on_mig: bool = False  # also judged on MIG devices
    milder: str | None = None  # rule that stands instead where the driver says that nothing needs to be done

    @property
    def hold(self) -> str | None:
        """Name of the threshold of how long it stands at least; None where time does not end it."""
        return None if self.latches else f"{self.key}_hold_seconds"

    @property
    def clean(self) -> str | None:
        """Name of the threshold of how long all must be well; None where time does not end it."""
        return None if self.latches else f"{self.key}_clean_seconds"


def _steady(key: str) -> Steady:
    return Steady(f"{key}_seconds")


def _minutes(key: str) -> Minutes:
    return Minutes(f"{key}_minutes", f"{key}_of_minutes")


_DEGRADED, _UNHEALTHY, _LOST = Severity.DEGRADED, Severity.UNHEALTHY, Severity.LOST
_RESET_ENDS = "A GPU reset or driver reload, with no recovery action left afterwards."
_REBOOT_ENDS = "A reboot, with no recovery action left afterwards."
_REPAIR_ENDS = "Another board, or an acknowledgement after its repair."

_DRIVER: tuple[Rule, ...] = (
    Rule(
        key="recovery_action", title="The driver wants the GPU to be reset", severity=_UNHEALTHY,
        survives=Survives.TIME, clears="The driver wants nothing any more, read twice.",
        condition=conditions.action_reset, window=_steady("recovery_action"), grace=Grace.NONE,
    ),
    Rule(
        key="recovery_action_reboot", title="The driver wants the node to be rebooted", severity=_UNHEALTHY,
        survives=Survives.RESET, clears="The driver wants no reboot any more, read twice.",
        condition=conditions.action_reboot, window=_steady("recovery_action"), grace=Grace.NONE,
    ),
    Rule(
        key="recovery_action_peer", title="The driver wants traffic between GPUs to be drained", severity=_DEGRADED,
        survives=Survives.TIME, clears="The driver wants it no more, for five minutes.",
        condition=conditions.action_peer, window=_steady("recovery_action_peer"), grace=Grace.NONE,
    ),
    Rule(
        key="reset_failed", title="A reset or reboot did not bring the GPU back to health", severity=_UNHEALTHY,
        survives=Survives.TIME, clears=_RESET_ENDS, latches=True,
        condition=conditions.reset_failed, window=_steady("reset_failed"), grace=Grace.NONE,
    ),
    Rule(
        key="gpu_lost", title="The GPU does not answer the driver", severity=_LOST,
        survives=Survives.RESET, clears="It answers again for ten minutes.",
        condition=conditions.gpu_lost, window=_steady("gpu_lost"), grace=Grace.NONE, on_mig=True,
    ),
    Rule(
        key="gpu_missing", title="NVML does not list a GPU that should be there", severity=_LOST,
        survives=Survives.RESET, clears="It is listed and answers again for ten minutes.",
        condition=conditions.gpu_missing, window=_steady("gpu_missing"), grace=Grace.NONE,
    ),
    Rule(
        key="reset_required", title="The driver refuses the GPU until it is reset", severity=_UNHEALTHY,
        survives=Survives.TIME, clears="It answers again for a minute.",
        condition=conditions.reset_required, window=_steady("reset_required"), grace=Grace.NONE,
    ),
    Rule(
        key="driver_call_hangs", title="Driver calls on the GPU do not come back", severity=_DEGRADED,
        survives=Survives.RESET, clears="It answers again for five minutes.",
        condition=conditions.driver_call_hangs, window=_steady("driver_call_hangs"), grace=Grace.NONE,
    ),
)  # fmt: skip

_EVENTS: tuple[Rule, ...] = (
    Rule(
        key="xid_lost", title="The GPU fell off the bus (XID 79)", severity=_LOST, on=On.EVENT,
        survives=Survives.RESET, clears=_REBOOT_ENDS, latches=True, on_mig=True,
    ),
    Rule(
        key="xid_fatal", title="An XID after which no work should start", severity=_UNHEALTHY, on=On.EVENT,
        survives=Survives.TIME, clears=_RESET_ENDS, latches=True, on_mig=True, milder="xid_degraded",
    ),
    Rule(
        key="xid_needs_reboot", title="An XID that outlives a reset", severity=_UNHEALTHY, on=On.EVENT,
        survives=Survives.RESET, clears=_REBOOT_ENDS, latches=True, on_mig=True, milder="xid_degraded",
    ),
    Rule(
        key="xid_needs_repair", title="An XID that a person must look after", severity=_UNHEALTHY, on=On.EVENT,
        survives=Survives.REBOOT, clears=_REPAIR_ENDS, latches=True, on_mig=True,
    ),
    Rule(
        key="xid_degraded", title="An XID that is worth a look", severity=_DEGRADED, on=On.EVENT,
        survives=Survives.TIME, clears="A day without it, or a GPU reset.", on_mig=True,
    ),
    Rule(
        key="xid_unknown", title="An XID that is in no catalogue", severity=_DEGRADED, on=On.EVENT,
        survives=Survives.TIME, clears="A day without it, or a GPU reset.", on_mig=True,
    ),
    Rule(
        key="xid_repeat", title="XIDs of applications that keep coming from different pods", severity=_DEGRADED,
        on=On.EVENT, survives=Survives.TIME, clears="A day without them, or a GPU reset.", on_mig=True,
    ),
    Rule(
        key="xid_repeat_fatal", title="An XID that is serious when it comes again", severity=_UNHEALTHY,
        on=On.EVENT, survives=Survives.TIME, clears=_RESET_ENDS, latches=True, on_mig=True,
    ),
    Rule(
        key="driver_event_fatal", title="The driver reports fatal poison or an unusable GPU", severity=_UNHEALTHY,
        on=On.EVENT, survives=Survives.TIME, clears=_RESET_ENDS, latches=True, on_mig=True,
        milder="driver_event_degraded",
    ),
    Rule(
        key="driver_event_degraded", title="The driver reports contained poison or a storm of corrected errors",
        severity=_DEGRADED, on=On.EVENT, survives=Survives.TIME, clears="Six hours without, or a GPU reset.",
        on_mig=True,
    ),
)  # fmt: skip

_MEMORY: tuple[Rule, ...] = (
    Rule(
        key="ecc_uncorrected_dram", title="Uncorrected memory errors", severity=_UNHEALTHY,
        survives=Survives.TIME, clears=_RESET_ENDS, latches=True, condition=conditions.ecc_uncorrected_dram,
        grace=Grace.NONE,
    ),
    Rule(
        key="ecc_uncorrected_sram", title="Uncorrected errors in caches or registers", severity=_UNHEALTHY,
        survives=Survives.TIME, clears=_RESET_ENDS, latches=True, on_mig=True,
        condition=conditions.ecc_uncorrected_sram, grace=Grace.NONE,
    ),
    Rule(
        key="sram_ecc_threshold", title="SRAM errors passed the number at which NVIDIA replaces the board",
        severity=_UNHEALTHY, survives=Survives.REBOOT, clears=_REPAIR_ENDS, latches=True,
        condition=conditions.sram_threshold, window=_steady("sram_ecc_threshold"), grace=Grace.NONE,
    ),
    Rule(
        key="ecc_corrected_storm", title="A storm of corrected memory errors", severity=_DEGRADED, on=On.MINUTE,
        survives=Survives.TIME, clears="Six hours below the limit.",
        condition=conditions.ecc_corrected_storm, window=_minutes("ecc_corrected_storm"),
    ),
    Rule(
        key="row_remap_pending", title="A memory row waits for a reset to be replaced", severity=_DEGRADED,
        survives=Survives.TIME, clears="A GPU reset.",
        condition=conditions.row_remap_pending, window=_steady("row_remap_pending"), grace=Grace.NONE,
    ),
    Rule(
        key="row_remap_failure", title="A memory row could not be replaced", severity=_UNHEALTHY,
        survives=Survives.REBOOT, clears=_REPAIR_ENDS, latches=True,
        condition=conditions.row_remap_failure, window=_steady("row_remap_failure"), grace=Grace.NONE,
    ),
    Rule(
        key="remapped_rows_many", title="Spare memory rows are running out", severity=_DEGRADED,
        survives=Survives.REBOOT, clears=_REPAIR_ENDS, latches=True,
        condition=conditions.remapped_rows_many, window=_steady("remapped_rows_many"), grace=Grace.NONE,
    ),
    Rule(
        key="repair_pending", title="A repair waits for a reset", severity=_DEGRADED, survives=Survives.TIME,
        clears="A GPU reset.", condition=conditions.repair_pending, window=_steady("repair_pending"),
        grace=Grace.NONE,
    ),
    Rule(
        key="retired_pages_pending", title="A memory page waits for a reboot to be retired", severity=_DEGRADED,
        survives=Survives.RESET, clears="A reboot or driver reload.", condition=conditions.retired_pages_pending,
        window=_steady("retired_pages"), grace=Grace.NONE,
    ),
    Rule(
        key="retired_pages_many", title="Too many memory pages were retired", severity=_UNHEALTHY,
        survives=Survives.REBOOT, clears=_REPAIR_ENDS, latches=True, condition=conditions.retired_pages_many,
        window=_steady("retired_pages"), grace=Grace.NONE,
    ),
)  # fmt: skip

_LINKS: tuple[Rule, ...] = (
    Rule(
        key="nvlink_down", title="An NVLink that was up is down", severity=_DEGRADED, survives=Survives.TIME,
        clears="All links that were up are up for 15 minutes.", condition=link_conditions.nvlink_down,
        window=_steady("nvlink_down"), grace=Grace.BOOT, correlated=True,
    ),
    Rule(
        key="nvlink_errors", title="An NVLink has errors again and again", severity=_DEGRADED, on=On.MINUTE,
        survives=Survives.TIME, clears="30 minutes without.", condition=link_conditions.nvlink_errors,
        window=_minutes("nvlink_errors"), grace=Grace.BOOT, correlated=True,
    ),
    Rule(
        key="nvlink_crc", title="Many CRC errors on NVLinks", severity=_DEGRADED, on=On.MINUTE,
        survives=Survives.TIME, clears="30 minutes below the limit.", condition=link_conditions.nvlink_crc,
        window=_minutes("nvlink_crc"), grace=Grace.BOOT, correlated=True,
    ),
    Rule(
        key="nvlink5_errors", title="Packet errors on NVLinks again and again", severity=_DEGRADED, on=On.MINUTE,
        survives=Survives.TIME, clears="30 minutes without.", condition=link_conditions.nvlink5_errors,
        window=_minutes("nvlink5_errors"), grace=Grace.BOOT, correlated=True,
    ),
    Rule(
        key="nvlink_recovery_failed", title="An NVLink did not come back from recovery", severity=_UNHEALTHY,
        survives=Survives.TIME, clears="A day without.", condition=link_conditions.nvlink_recovery_failed,
        grace=Grace.BOOT, correlated=True,
    ),
    Rule(
        key="nvlink_recoveries", title="NVLinks go into recovery again and again", severity=_DEGRADED, on=On.MINUTE,
        survives=Survives.TIME, clears="An hour without.", condition=link_conditions.nvlink_recoveries,
        window=_minutes("nvlink_recoveries"), grace=Grace.BOOT, correlated=True,
    ),
    Rule(
        key="fabric_not_ready", title="The GPU has not joined the NVLink fabric", severity=_UNHEALTHY,
        survives=Survives.TIME, clears="It has joined for ten minutes.", condition=link_conditions.fabric_not_ready,
        window=_steady("fabric_not_ready"), grace=Grace.BOOT, correlated=True,
    ),
    Rule(
        key="fabric_unhealthy", title="The GPU's route through the NVLink fabric is not usable", severity=_UNHEALTHY,
        survives=Survives.TIME, clears="No such fault for ten minutes.", condition=link_conditions.fabric_unhealthy,
        window=_steady("fabric_fault"), grace=Grace.BOOT, correlated=True,
    ),
    Rule(
        key="fabric_degraded", title="The NVLink fabric is slower than it should be", severity=_DEGRADED,
        survives=Survives.TIME, clears="No such fault for ten minutes.", condition=link_conditions.fabric_degraded,
        window=_steady("fabric_fault"), grace=Grace.BOOT, correlated=True,
    ),
    Rule(
        key="pcie_width", title="The PCIe link has fewer lanes than it should", severity=_DEGRADED, on=On.MINUTE,
        survives=Survives.RESET, clears="Full width for 30 minutes.", condition=link_conditions.pcie_width,
        window=_minutes("pcie_width"), correlated=True, needs_load=True,
    ),
    Rule(
        key="pcie_generation", title="The PCIe link is slower than it should be", severity=_DEGRADED, on=On.MINUTE,
        survives=Survives.RESET, clears="Full generation under load for 30 minutes.",
        condition=link_conditions.pcie_generation, window=_minutes("pcie_generation"), correlated=True, needs_load=True,
    ),
    Rule(
        key="pcie_replays", title="Too many PCIe packets are sent again", severity=_DEGRADED, on=On.MINUTE,
        survives=Survives.TIME, clears="30 minutes below the limit.", condition=link_conditions.pcie_replays,
        window=_minutes("pcie_replays"), correlated=True,
    ),
    Rule(
        key="pcie_errors_fatal", title="Fatal PCIe errors", severity=_UNHEALTHY, survives=Survives.TIME,
        clears=_RESET_ENDS, latches=True, condition=link_conditions.pcie_errors_fatal,
        grace=Grace.NONE, correlated=True,
    ),
    Rule(
        key="pcie_errors_non_fatal", title="Uncorrectable PCIe errors that the link survived", severity=_DEGRADED,
        survives=Survives.TIME, clears="An hour without.", condition=link_conditions.pcie_errors_non_fatal,
        grace=Grace.NONE, correlated=True,
    ),
    Rule(
        key="pcie_errors_correctable", title="Many corrected PCIe errors", severity=_DEGRADED, on=On.MINUTE,
        survives=Survives.TIME, clears="An hour without.", condition=link_conditions.pcie_errors_correctable,
        window=_minutes("pcie_errors_correctable"), correlated=True,
    ),
)  # fmt: skip

_HEAT_AND_POWER: tuple[Rule, ...] = (
    Rule(
        key="thermal_slowdown", title="The hardware slows itself down for heat", severity=_DEGRADED, on=On.MINUTE,
        survives=Survives.TIME, clears="30 minutes nearly without.", condition=load_conditions.thermal_slowdown,
        window=_minutes("thermal_slowdown"), correlated=True,
    ),
    Rule(
        key="thermal_slowdown_lasting", title="Heat slows it down most of the time", severity=_UNHEALTHY,
        on=On.MINUTE, survives=Survives.TIME, clears="30 minutes nearly without.",
        condition=load_conditions.thermal_slowdown_lasting, window=_minutes("thermal_slowdown_lasting"),
        correlated=True,
    ),
    Rule(
        key="thermal_margin", title="It is close to slowing itself down for heat", severity=_DEGRADED, on=On.MINUTE,
        survives=Survives.TIME, clears="30 minutes well below.", condition=load_conditions.thermal_margin,
        window=_minutes("thermal_margin"), correlated=True,
    ),
    Rule(
        key="thermal_shutdown", title="It is close to shutting itself down for heat", severity=_UNHEALTHY,
        survives=Survives.TIME, clears="30 minutes well below.", condition=load_conditions.thermal_shutdown,
        window=_steady("thermal_shutdown"), correlated=True,
    ),
    Rule(
        key="power_brake", title="The power supply slows it down", severity=_DEGRADED, on=On.MINUTE,
        survives=Survives.TIME, clears="30 minutes nearly without.", condition=load_conditions.power_brake,
        window=_minutes("power_brake"), correlated=True,
    ),
    Rule(
        key="power_excess", title="It uses more power than its limit", severity=_DEGRADED, on=On.MINUTE,
        survives=Survives.TIME, clears="30 minutes below.", condition=load_conditions.power_excess,
        window=_minutes("power_excess"), correlated=True,
    ),
    Rule(
        key="power_absent", title="It says that it works and uses no power", severity=_DEGRADED, on=On.MINUTE,
        survives=Survives.TIME, clears="30 minutes of plausible power.", condition=load_conditions.power_absent,
        window=_minutes("power_absent"), correlated=True, needs_load=True,
    ),
    Rule(
        key="clocks_low", title="It is slower than its busy peers for no reason that the driver names",
        severity=_DEGRADED, on=On.MINUTE, survives=Survives.TIME, clears="15 minutes as fast as its peers.",
        condition=load_conditions.clocks_low, window=_minutes("clocks_low"), correlated=True, needs_load=True,
    ),
)  # fmt: skip

_WORK_AND_MODES: tuple[Rule, ...] = (
    Rule(
        key="hang", title="It seems busy and moves nothing; shown only, since busy waiting looks the same",
        severity=Severity.OK, on=On.MINUTE, survives=Survives.NOTHING, clears="Any activity.",
        condition=load_conditions.hang, window=_minutes("hang"),
    ),
    Rule(
        key="mig_mode", title="A change of the MIG mode waits for a reset", severity=_DEGRADED, on=On.MINUTE,
        survives=Survives.TIME, clears="The mode is the one that was asked for.", condition=load_conditions.mig_mode,
        window=_minutes("mig_mode"),
    ),
)  # fmt: skip

RULES: tuple[Rule, ...] = (*_DRIVER, *_EVENTS, *_MEMORY, *_LINKS, *_HEAT_AND_POWER, *_WORK_AND_MODES)
RULE_BY_KEY: Mapping[str, Rule] = MappingProxyType({rule.key: rule for rule in RULES})

# What is known to tell of a fault and is not judged here, and why.
NOT_JUDGED: tuple[tuple[str, str], ...] = (
    ("nvlink_bit_error_rate", "effective and symbol bit error rates (NVLink 5) are not among the readings"),
    ("pcie_aer_of_the_kernel", "/sys/bus/pci/devices/*/aer_dev_* and the kernel log's AER lines: the driver's own"
     " counters of the same errors are judged"),
    ("inforom", "nvmlDeviceValidateInforom reads the board's flash and is too heavy for a sampler"),
    ("unrepairable_memory", "nvmlDeviceGetUnrepairableMemoryFlag is not among the readings; XID 64 and the recovery"
     " action tell of the same fault"),
    ("gsp_latency", "driver calls that hang are given up after hang_seconds and told by driver_call_hangs"),
    ("driver_calls_that_hang_for_long", "driver_call_hangs stays degraded: a call hangs for the driver of any GPU, and"
     " XIDs 119 and 120 and the recovery action tell of the GPU that is at fault"),
    ("driver_version_mismatch", "of the node and not of a device: gpu_up and claimscope_agent_nvml_up tell it"),
    ("retired_pages_new_in_a_week", "needs a history of seven days; the absolute limit and pending pages are judged"),
    ("nvlinks_never_up", "links that were never up since boot are not missed: nothing says how many a board has"),
    ("imex_domain", "healthy idle nodes have it not ready (NVIDIA/DCGM#308)"),
    ("gpus_never_seen", "a GPU on the PCI bus that NVML never listed: without its UUID there is nothing to fence; a"
     " known one is gpu_missing, and one without a finding that is gone after a reboot is forgotten"),
    ("processes_against_pods", "a process without a pod is no fault of the GPU"),
)  # fmt: skip
