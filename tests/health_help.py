"""A node of made-up GPUs whose readings a test sets, and time that only the test moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from claimscope.health.engine import HealthEngine
from claimscope.health.model import Finding, RuleState, Severity
from claimscope.health.rules import RULES
from claimscope.health.thresholds import Thresholds
from claimscope.health.xids import Verdict
from claimscope.model import Device, Entity, Event, Inventory, Missing, ProcessUse, Window

MINUTE, HOUR, DAY = 60, 3600, 86400
LONG_AGO = 100_000  # seconds since boot at which tests begin
WALL = 1_750_000_000

HEALTHY: Mapping[str, float] = {
    "utilization_gpu": 0.95, "utilization_memory": 0.4, "clock_sm": 1.98e9, "power_instant": 600.0,
    "power_limit_enforced": 700.0, "temperature_gpu": 60.0, "temperature_margin": 25.0,
    "temperature_limit_slowdown": 89.0, "temperature_limit_shutdown": 95.0,
    "temperature_margin_limit_shutdown": -8.0, "performance_state": 0.0,
    "pcie_link_width": 16.0, "pcie_link_width_max": 16.0, "pcie_link_generation": 5.0,
    "pcie_link_generation_max": 5.0, "row_remap_pending": 0.0, "row_remap_failure": 0.0,
    "sram_ecc_threshold_exceeded": 0.0, "row_remap_banks_none": 0.0, "mig_mode_enabled": 0.0,
    "mig_mode_pending_enabled": 0.0, "nvlink_switch_links": 18.0,
    "clock_event_hw_thermal": 0.0, "clock_event_hw_power_brake": 0.0, "clock_event_sw_power_cap": 0.0,
    "clock_event_application_clocks": 0.0, "clock_event_sync_boost": 0.0, "clock_event_sw_thermal": 0.0,
    "fabric_fault_route_unhealthy": 0.0, "fabric_fault_incorrect_configuration": 0.0,
    "fabric_fault_degraded_bandwidth": 0.0,
    **{f"nvlink_up/{link}": 1.0 for link in range(18)},
}  # fmt: skip
COUNTERS: Mapping[str, float] = {  # what they stand at when a test begins: lifetime totals alarm nobody
    "energy": 5e9, "ecc_volatile_corrected": 12.0, "ecc_volatile_uncorrected": 3.0,
    "ecc_volatile_uncorrected_dram": 2.0, "ecc_volatile_uncorrected_sram": 1.0,
    "ecc_volatile_uncorrected_l1_cache": 0.0, "sram_ecc_volatile_parity": 1.0, "sram_ecc_volatile_secded": 0.0,
    "remapped_rows_uncorrected": 2.0, "nvlink_errors_replay": 40.0, "nvlink_errors_recovery": 3.0,
    "nvlink_errors_crc_flit": 900.0, "pcie_replays": 77.0, "pcie_errors_fatal": 1.0, "pcie_errors_non_fatal": 4.0,
    "pcie_errors_correctable": 5000.0,
}  # fmt: skip
TEXTS: Mapping[str, str] = {"recovery_action": "none", "fabric_state": "completed", "fabric_status": "success"}
UNSUPPORTED = (
    "retired_pages_single_bit", "retired_pages_double_bit", "retired_pages_pending", "nvlink_recoveries_failed",
    "nvlink_recoveries_successful", "repair_pending_channel", "repair_pending_tpc", "nvlink_errors_receive",
)  # fmt: skip


@dataclass
class Gpu:
    """One device and what it says."""

    device: Device
    last: dict[str, float] = field(default_factory=lambda: dict(HEALTHY))
    text: dict[str, str] = field(default_factory=lambda: dict(TEXTS))
    raw: dict[str, float] = field(default_factory=lambda: dict(COUNTERS))
    missing: dict[str, Missing] = field(default_factory=lambda: dict.fromkeys(UNSUPPORTED, Missing.UNSUPPORTED))
    integral: dict[str, float] = field(default_factory=dict)
    rate: dict[str, float] = field(default_factory=lambda: {"energy": 600.0})  # of counters, per second
    processes: tuple[ProcessUse, ...] | None = (ProcessUse(pid=4242),)
    epoch: int = 1
    silent: bool = False  # no windows

    @property
    def uuid(self) -> str:
        return self.device.entity.uuid

    def without(self, *keys: str, reason: Missing = Missing.UNSUPPORTED) -> None:
        """It does not answer these."""
        for key in keys:
            self.last.pop(key, None)
            self.raw.pop(key, None)
            self.text.pop(key, None)
            self.missing[key] = reason


    def window(self, session: int, now_ns: int, wall_ns: int, length: float) -> Window:
        """What the sampler says at the end of so many seconds."""
        for key, rate in self.rate.items():
            self.raw[key] = self.raw.get(key, 0.0) + rate * length
        for key, value in self.last.items():
            if key.startswith(("utilization_", "clock_event_")):  # the gauges that the sampler integrates
                self.integral[key] = self.integral.get(key, 0.0) + value * length
        return Window(
            entity=self.uuid, session=session, epoch=self.epoch, start_ns=now_ns - round(length * 1e9),
            end_ns=now_ns, end_wall_ns=wall_ns, ticks=10, last=dict(self.last), text=dict(self.text),
            raw=dict(self.raw), integral=dict(self.integral), missing=dict(self.missing), processes=self.processes,
        )  # fmt: skip

    def reset(self) -> None:
        """Handles are taken anew and the driver's totals begin at 0."""
        self.epoch += 1
        self.integral = {}
        self.raw = {key: 0.0 if key != "remapped_rows_uncorrected" else value for key, value in self.raw.items()}
        self.last["row_remap_pending"] = 0.0


def gpu_device(index: int, **changes: object) -> Device:
    """A GPU of eight."""
    device = Device(
        entity=Entity(uuid=f"GPU-{index}", gpu=index), minor=index, pci_bus_id=f"0000:{index + 16:02x}:00.0",
        model="NVIDIA H100 80GB HBM3", identity={"serial": f"16530{index}"},
    )  # fmt: skip
    return dataclasses.replace(device, **changes)  # type: ignore[arg-type]


class Bench:
    """A node under test."""

    def __init__(
        self, gpus: int = 1, *, boot_id: str = "boot-1", at: float = LONG_AGO, settle: bool = True,
        thresholds: Thresholds | None = None,
    ) -> None:
        self.seconds = float(at)
        self.wall_shift = 0
        self.session = 1
        self.boot_id = boot_id
        self.gpus = [Gpu(device=gpu_device(index)) for index in range(gpus)]
        self.lost: dict[str, str] = {}
        self.thresholds = thresholds or Thresholds()
        self.engine = HealthEngine(RULES, self.thresholds, boot_id=boot_id)
        self.take_inventory()
        if settle:
            self.run(3 * MINUTE)  # past the grace of the start
            self.engine.transitions()

    @property
    def now_ns(self) -> int:
        return round(self.seconds * 1e9)

    @property
    def wall_ns(self) -> int:
        return round((WALL + self.seconds + self.wall_shift) * 1e9)

    def take_inventory(self, *, error: str | None = None, devices: Iterable[Device] | None = None) -> None:
        """Tells what NVML shows."""
        self.engine.inventory(
            Inventory(
                session=self.session, epoch=1, driver_version="580.65.06", nvml_version=None, cuda_version=None,
                devices=tuple(devices) if devices is not None else tuple(gpu.device for gpu in self.gpus),
                lost=dict(self.lost), error=error,
            ),
            self.now_ns, self.wall_ns,
        )  # fmt: skip

    def run(self, seconds: float, *, window: float = 5.0) -> None:
        """Lets time pass, window by window."""
        end = self.seconds + seconds
        while self.seconds < end - 1e-9:
            self.seconds += window
            for gpu in self.gpus:
                if not gpu.silent and gpu.uuid not in self.lost:
                    made = gpu.window(self.session, self.now_ns, self.wall_ns, window)
                    self.engine.observe(made, gpu.device, self.now_ns, self.wall_ns)
            self.engine.tick(self.now_ns, self.wall_ns)

    def skip(self, seconds: float) -> None:
        """Time that nobody watches."""
        self.seconds += seconds


    def xid(
        self, code: int, gpu: int = 0, *, kind: str = "xid", decoded: Verdict | None = None, **evidence: str
    ) -> None:
        """An event comes."""
        event = Event(entity=self.gpus[gpu].uuid, kind=kind, code=code, wall_ns=self.wall_ns)
        self.engine.event(event, evidence, self.now_ns, self.wall_ns, decoded=decoded)

    def reset(self, gpu: int = 0) -> None:
        """The GPU is reset."""
        self.gpus[gpu].reset()

    def restart(self, *, boot_id: str | None = None, at: float | None = None) -> None:
        """The agent ends and another one reads its journal."""
        state = self.engine.to_state()
        if boot_id is not None:
            self.boot_id = boot_id
        if at is not None:
            self.seconds = at
        self.session += 1
        self.engine = HealthEngine.from_state(
            RULES, self.thresholds, state, boot_id=self.boot_id, now_ns=self.now_ns
        )
        for gpu in self.gpus:
            gpu.integral = {}

    def findings(self, gpu: int = 0) -> dict[str, Finding]:
        """By rule."""
        shown = self.engine.health().get(self.gpus[gpu].uuid)
        return {finding.rule: finding for finding in shown.findings} if shown is not None else {}

    def rules(self, gpu: int = 0) -> dict[str, str]:
        """Rule -> severity of what stands."""
        return {rule: finding.severity.value for rule, finding in self.findings(gpu).items()}

    def all_rules(self) -> dict[str, dict[str, str]]:
        """Of the GPUs that have any."""
        return {gpu.uuid: found for index, gpu in enumerate(self.gpus) if (found := self.rules(index))}

    def severity(self, gpu: int = 0) -> Severity:
        return self.engine.health()[self.gpus[gpu].uuid].severity

    def state(self, rule: str, gpu: int = 0) -> RuleState:
        return self.engine.health()[self.gpus[gpu].uuid].states[rule]
