"""A node as its agent sees it: windows, events, lines of the kernel log and inventories in; findings and Lease out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from claimscope.health import report
from claimscope.health.kernel_lines import parse_line
from claimscope.health.kmsg import KernelReport
from claimscope.health.thresholds import Thresholds
from claimscope.health.watch import HealthJournal, HealthView, HealthWatch
from claimscope.model import Device, Event, Inventory
from claimscope.taints.model import ReportedFinding
from claimscope.taints.reports import read_findings
from health_help import LONG_AGO, MINUTE, WALL, Gpu, gpu_device
from taints_help import World

LOST = "the GPU has fallen off the bus or does not answer the driver (NVML: GPU is lost)"


class Node:
    """One node. Time moves only by `run` and `log`."""

    def __init__(
        self, gpus: Iterable[Device] | int = 1, *, kernel_log: bool = True, boot_id: str = "boot-1",
        at: float = LONG_AGO, settle: bool = True, thresholds: Mapping[str, object] | None = None,
    ) -> None:
        devices = map(gpu_device, range(gpus)) if isinstance(gpus, int) else gpus
        self.gpus = [Gpu(device=device) for device in devices]
        self.seconds = float(at)
        self.wall_shift = 0.0  # the time of day is wrong by so much
        self.boot_id = boot_id
        self.session = 1
        self.lost: dict[str, str] = {}
        self.pods: dict[str, str] = {}  # uuid -> whoever uses it
        self.annotations: list[str] = []  # each text of the Lease that differs from the one before
        self._kernel_log = kernel_log
        self._thresholds = Thresholds.from_mapping(thresholds or {})
        self._sequence = 0
        self.watch = self._begin(None)
        self.take_inventory()
        if settle:
            self.run(3 * MINUTE)

    def _begin(self, journal: HealthJournal | None) -> HealthWatch:
        return HealthWatch(
            boot_id=self.boot_id, thresholds=self._thresholds, pod_of=lambda uuid, pid: self.pods.get(uuid),
            now_ns=self.now_ns, wall_ns=self.wall_ns, kernel_log=self._kernel_log, journal=journal,
        )

    @property
    def now_ns(self) -> int:
        return round(self.seconds * 1e9)

    @property
    def wall_ns(self) -> int:
        return round((WALL + self.seconds + self.wall_shift) * 1e9)

    # What happens

    def run(self, seconds: float, *, window: float = 5.0) -> None:
        end = self.seconds + seconds
        while self.seconds < end - 1e-9:
            self.seconds += window
            for gpu in self.gpus:
                if not gpu.silent and gpu.uuid not in self.lost:
                    made = gpu.window(self.session, self.now_ns, self.wall_ns, window)
                    self.watch.window(made, self.now_ns, self.wall_ns)
            self.watch.tick(self.now_ns, self.wall_ns)
            text = self.annotation()
            if not self.annotations or self.annotations[-1] != text:
                self.annotations.append(text)

    def xid(self, code: int, gpu: int = 0, *, kind: str = "xid") -> None:
        """NVML tells an event."""
        told = Event(entity=self.gpus[gpu].uuid, kind=kind, code=code, wall_ns=self.wall_ns)
        self.watch.event(told, self.now_ns, self.wall_ns)

    def log(self, text: str, *, count: int = 1) -> None:
        """The kernel logs a line."""
        line = parse_line(text)
        assert line is not None, text
        self._sequence += count
        report = KernelReport(line=line, count=count, sequence=self._sequence, wall_ns=self.wall_ns)
        self.watch.kernel([report], self._sequence, self.now_ns, self.wall_ns)

    def log_xid(self, code: int, gpu: int = 0, rest: str = "pid=4242, name=python3, what it was", **more: int) -> None:
        """The kernel logs an XID."""
        bdf = self.gpus[gpu].device.pci_bus_id
        assert bdf is not None
        self.log(f"NVRM: Xid (PCI:{bdf.removesuffix('.0')}): {code}, {rest}", **more)

    def take_inventory(self, *, error: str | None = None, devices: Iterable[Device] | None = None) -> None:
        found = tuple(devices) if devices is not None else tuple(gpu.device for gpu in self.gpus)
        shown = Inventory(
            session=self.session, epoch=1, driver_version="580.65.06", nvml_version=None, cuda_version=None,
            devices=found, lost=dict(self.lost), error=error,
        )
        self.watch.inventory(shown, self.now_ns, self.wall_ns)

    def lose(self, gpu: int, reason: str = LOST) -> None:
        self.lost[self.gpus[gpu].uuid] = reason
        self.take_inventory()

    def restart(self, *, boot_id: str | None = None, at: float | None = None) -> None:
        """The agent ends and another one reads its journal, perhaps after a reboot."""
        kept = msgspec.json.decode(msgspec.json.encode(self.watch.journal()), type=HealthJournal)
        self.boot_id = boot_id or self.boot_id
        self.seconds = self.seconds if at is None else at
        self.session += 1
        for gpu in self.gpus:
            gpu.integral = {}
        self.watch = self._begin(kept)
        self.take_inventory()

    # What is seen

    @property
    def view(self) -> HealthView:
        return self.watch.view()

    def rules(self, gpu: int = 0) -> dict[str, str]:
        """Rule -> severity of what stands."""
        return self.all_rules().get(self.gpus[gpu].uuid, {})

    def all_rules(self) -> dict[str, dict[str, str]]:
        """Of the devices that have any."""
        found: dict[str, dict[str, str]] = {}
        for finding in report.all_findings(self.view):
            found.setdefault(finding.uuid, {})[finding.rule] = finding.severity.value
        return found

    def annotation(self) -> str:
        """What its Lease says to the controller."""
        return report.findings_annotation(self.view)


def told_by(node: str, text: str) -> list[ReportedFinding]:
    """What the controller reads in an annotation of a Lease; all of it can be read."""
    told = read_findings(node, text)
    assert (told.skipped, told.partial, told.problem) == (0, False, "")
    return list(told.findings)


def tell(world: World, node: str, text: str) -> None:
    """The controller has read this node's Lease."""
    world.found[node] = told_by(node, text)
