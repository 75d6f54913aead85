"""What does this node know of the health of its GPUs? Everything that tells of it is brought together here.

Readings, events, inventories and lines of the kernel log are pushed in; faults go to the engine once both sources had
their time to tell of them. Nothing here reads a clock, a file or a device.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from claimscope.health.engine import HealthEngine
from claimscope.health.kernel_lines import LineKind
from claimscope.health.kmsg import KernelReport
from claimscope.health.ledger import Transition
from claimscope.health.merger import EventMerger, Fault
from claimscope.health.model import DeviceHealth, Severity
from claimscope.health.restore import EngineState
from claimscope.health.rules import RULES
from claimscope.health.systemic import NodeFinding
from claimscope.health.thresholds import Thresholds
from claimscope.health.track import Change
from claimscope.model import Device, Event, Inventory, Window

logger = logging.getLogger(__name__)

SECOND_NS = 1_000_000_000
KERNEL_WAIT_NS = 1_000_000_000  # how long a fault waits for the other source; the log is read four times a second
DRIVER_AWAY = "driver is not loaded"  # what Inventory.error says then
BEGAN = frozenset({Change.FIRED.value, Change.LATCHED.value})  # reasons of transitions that begin a finding

# (device, pid as the kernel log tells it) -> "namespace/pod" of whoever uses the device
PodOf = Callable[[str, str | None], str | None]


class HealthJournal(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent's journal keeps of health."""

    engine: EngineState
    kernel_sequence: int | None = None  # of the newest record of the kernel log whose faults were all handed out
    unplaced: tuple[KernelReport, ...] = ()  # of records up to that one: faults of GPUs that nobody knows yet


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthView:
    """All of it at one moment."""

    boot_id: str
    devices: Mapping[str, DeviceHealth]
    shared: tuple[NodeFinding, ...] = ()
    began: Mapping[tuple[str, Severity], int] = field(default_factory=dict)  # device, severity -> findings that began
    started_wall_ns: int = 0  # since when those are counted
    late: int = 0  # events that came after their fault had been handed out
    foreign: int = 0  # PCIe errors of other devices
    dropped: int = 0  # events that were more at once than are kept
    unplaced: tuple[KernelReport, ...] = ()  # what the kernel log told of addresses at which no GPU is known


def journal_of(raw: bytes) -> HealthJournal | None:
    """What the journal kept; None, and one line, where it makes no sense."""
    if raw in (b"", b"null"):
        return None
    try:
        return msgspec.json.decode(raw, type=HealthJournal)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        logger.error("the journal's part about health is not usable, findings start anew: %s", error)
        return None


class HealthWatch:
    """The health of one node's devices."""

    def __init__(
        self, *, boot_id: str, thresholds: Thresholds, pod_of: PodOf, now_ns: int, wall_ns: int,
        kernel_log: bool = False, journal: HealthJournal | None = None,
    ) -> None:
        self.boot_id = boot_id
        self.changed = False  # something to tell came up; whoever tells it sets this back
        self._pod_of = pod_of
        if journal is None:
            self._engine = HealthEngine(RULES, thresholds, boot_id=boot_id)
        else:
            self._engine = HealthEngine.from_state(RULES, thresholds, journal.engine, boot_id=boot_id, now_ns=now_ns)
        # Where NVML is the only source there is nothing to wait for.
        self._merger = EventMerger(boot_id=boot_id, wait_ns=KERNEL_WAIT_NS if kernel_log else 0)
        self._devices: Mapping[str, Device] = {}
        self._driver_away = False
        self._ticked_ns: int | None = None
        # Records are numbered anew with each boot.
        of_this_boot = journal if journal is not None and journal.engine.boot_id == boot_id else None
        self._settled_sequence = of_this_boot.kernel_sequence if of_this_boot else None
        self._read: deque[tuple[int, int]] = deque()  # when the kernel log was read, and up to which record
        if of_this_boot is not None:
            self._know_places(of_this_boot, now_ns)
        self._began: Counter[tuple[str, Severity]] = Counter()
        self._started_wall_ns = wall_ns

    def _know_places(self, journal: HealthJournal, now_ns: int) -> None:
        """Until NVML answers, GPUs are where they were."""
        for uuid, kept in journal.engine.devices.items():
            if kept.pci_bus_id and not kept.parent:
                self._merger.place(uuid, kept.pci_bus_id)
        for report in journal.unplaced:
            self._merger.kernel(report, now_ns=now_ns)

    def set_thresholds(self, thresholds: Thresholds) -> None:
        """Judges by these from now on."""
        self._engine.set_thresholds(thresholds)

    def window(self, window: Window, now_ns: int, wall_ns: int) -> None:
        """Takes one window of a device that the inventory knows."""
        device = self._devices.get(window.entity)
        if device is not None:
            self._engine.observe(window, device, now_ns, wall_ns)
            self._follow()

    def event(self, event: Event, now_ns: int, wall_ns: int) -> None:
        """Takes what NVML told."""
        self._merger.nvml(event, now_ns=now_ns)
        self._hand_out(now_ns, wall_ns)

    def kernel(self, reports: Iterable[KernelReport], sequence: int | None, now_ns: int, wall_ns: int) -> None:
        """Takes what the kernel log told up to the record of this number."""
        for report in reports:
            self._merger.kernel(report, now_ns=now_ns)
        if sequence is not None and (not self._read or self._read[-1][1] != sequence):
            self._read.append((now_ns, sequence))
        self._hand_out(now_ns, wall_ns)

    def inventory(self, inventory: Inventory, now_ns: int, wall_ns: int) -> None:
        """Takes what NVML shows; devices that are lost are among them, as they were known before."""
        if inventory.error is not None:
            self._driver_away = DRIVER_AWAY in inventory.error
        elif self._driver_away and not inventory.released:
            self._driver_away = False
            self._engine.driver_loaded(now_ns)
        self._devices = {device.entity.uuid: device for device in inventory.devices}
        self._merger.inventory(inventory)
        self._engine.inventory(inventory, now_ns, wall_ns)
        self._follow()

    def bus(self, gpus: Mapping[str, str] | None) -> None:
        """Takes which GPUs the kernel sees on the PCI bus and the driver of each, None where it cannot be told."""
        self._engine.bus(gpus)

    def tick(self, now_ns: int, wall_ns: int) -> None:
        """Lets time pass; called several times a second."""
        self._hand_out(now_ns, wall_ns)
        if self._ticked_ns is None or now_ns - self._ticked_ns >= SECOND_NS:
            self._ticked_ns = now_ns
            self._engine.tick(now_ns, wall_ns)
            self._follow()

    def acknowledge(self, uuid: str, rule: str) -> str | None:
        """Ends a finding by a person's word; gives why it could not, None where it did."""
        if self._engine.acknowledge(uuid, rule):
            self._follow()
            return None
        standing = [finding for health in self._engine.health().values() for finding in health.findings]
        of_device = [finding.rule for finding in standing if finding.uuid == uuid]
        if of_device:
            return f"{rule} does not stand against {uuid}; there are {', '.join(of_device)}"
        found = ", ".join(f"{finding.uuid} {finding.rule}" for finding in standing)
        return f"nothing stands against {uuid}; " + (f"there are {found}" if found else "no device has a finding")

    def view(self) -> HealthView:
        """What is shown."""
        counts = self._merger.counts
        return HealthView(
            boot_id=self.boot_id,
            devices=self._engine.health(),
            shared=self._engine.node_findings(),
            began=dict(self._began),
            started_wall_ns=self._started_wall_ns,
            late=counts.late,
            foreign=counts.foreign,
            dropped=counts.dropped,
            unplaced=self._merger.unplaced,
        )

    def journal(self) -> HealthJournal:
        """A copy of what must outlive this process."""
        return HealthJournal(
            engine=self._engine.to_state(), kernel_sequence=self._settled_sequence, unplaced=self._merger.unplaced
        )

    def _hand_out(self, now_ns: int, wall_ns: int) -> None:
        for fault in self._merger.take(now_ns=now_ns):
            self._fault(fault, now_ns, wall_ns)
        waiting_ns = self._merger.waiting_since_ns  # a fault that still waits is read again after a restart
        while self._read and (waiting_ns is None or self._read[0][0] < waiting_ns):
            self._settled_sequence = self._read.popleft()[1]
        self._follow()

    def _fault(self, fault: Fault, now_ns: int, wall_ns: int) -> None:
        evidence = dict(fault.evidence)
        if fault.kind == LineKind.GPU_RESET.value:
            succeeded = evidence.get("success") != "false"
            self._engine.reset(fault.entity, succeeded=succeeded, evidence=evidence, now_ns=now_ns, wall_ns=wall_ns)
            return
        pod = self._pod_of(fault.entity, evidence.get("pid"))
        if pod is not None:
            evidence["pod"] = pod
        self._engine.event(
            fault, evidence, now_ns, wall_ns,
            decoded=fault.verdict if fault.decode is not None else None, recovery_action=fault.recovery_action,
        )  # fmt: skip

    def _follow(self) -> None:
        for transition in self._engine.transitions():
            self.changed = True
            self._count(transition)

    def _count(self, transition: Transition) -> None:
        if transition.stands and transition.reason in BEGAN:
            self._began[transition.uuid, transition.severity] += 1
