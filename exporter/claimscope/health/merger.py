"""Which faults happened, each told once, whoever told of it?

NVML and the kernel log tell of the same XID: NVML with the MIG device, the log with the process, the unit and the
registers. Events of one code on one GPU within two seconds are one fault, of which both sources and everything they
know are kept. Nothing depends on the order in which the two come in: a fault is handed out a moment after its first
event, when the other source has had its time.

The log names GPUs by their PCI addresses, and may tell of them before NVML does, or while it does not answer. What is
told of an address at which no GPU is known is kept until one is: it may be the only word of that fault.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from claimscope.health import nvlink5
from claimscope.health.kernel_lines import GpuLine, LineKind
from claimscope.health.kmsg import KernelReport
from claimscope.health.nvlink5 import Decode
from claimscope.health.xids import Verdict, verdict_of
from claimscope.model import Event, Inventory

logger = logging.getLogger(__name__)

SAME_FAULT_NS: Final = 2_000_000_000
LATENESS_NS: Final = 500_000_000
MAX_PENDING: Final = 8_192
MAX_UNPLACED: Final = 256
_FOLD_EVERY: Final = 1_024
_FORGET_AFTER_NS: Final = 600_000_000_000
_HANDED_KEPT: Final = 16

NVML: Final = "nvml"
KERNEL: Final = "kernel"

_PCIE: Final = frozenset({LineKind.PCIE_FATAL, LineKind.PCIE_NON_FATAL, LineKind.PCIE_CORRECTED})
_SEVERE_FIRST: Final[Mapping[Verdict, int]] = {Verdict.UNHEALTHY: 0, Verdict.DEGRADED: 1, Verdict.RECORD: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault(Event):
    """One thing that happened to one device. `kind` is "xid", "gpu_reset", "pcie_fatal", ... or as NVML says.

    A GPU that fell off the bus is XID 79, also where the log says so in words only.
    """

    boot_id: str
    bdf: str | None
    sources: tuple[str, ...]  # of "kernel" and "nvml"
    count: int  # how often it was told within the two seconds, by the source that told most
    verdict: Verdict | None = None  # of XIDs; never DECODE, which is decoded here
    decode: Decode | None = None  # of NVLink 5 codes
    recovery_action: int | None = None  # what XID 154 says that it is now
    gpu_instance: int | None = None
    evidence: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class MergerCounts:
    """What was not handed out; each only rises."""

    late: int = 0  # came after their fault had been handed out, and add nothing to it
    foreign: int = 0  # PCIe errors of other devices
    dropped: int = 0  # more at once, or more of addresses without a GPU, than are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """One event of one source, before it is known what else belongs to it."""

    source: str
    kind: str
    code: int
    wall_ns: int
    arrived_ns: int
    entity: str | None  # uuid as the source said it
    line: GpuLine | None
    count: int = 1
    from_kernel: bool = True


@dataclass(frozen=True, slots=True)
class _Key:
    """What events must agree in to be one fault."""

    device: str  # PCI address of the GPU, else its uuid
    kind: str
    code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Handed:
    """A fault as it was handed out, which later events may add something to."""

    begin_ns: int
    at_ns: int
    entities: frozenset[str]
    said: frozenset[object]


class EventMerger:
    """Takes events of both sources as they come and hands out faults. Pure: all times are given."""

    def __init__(
        self,
        *,
        boot_id: str,
        same_fault_ns: int = SAME_FAULT_NS,
        lateness_ns: int = LATENESS_NS,
        wait_ns: int | None = None,
    ) -> None:
        """`wait_ns` is how long a fault waits for the other source; as long as it may come, where not given."""
        self.counts = MergerCounts()
        self._boot_id = boot_id
        self._same_fault_ns = same_fault_ns
        self._wait_ns = same_fault_ns + lateness_ns if wait_ns is None else wait_ns
        self._pending: list[_Told] = []
        self._since_fold = 0
        self._places = _Places()
        self._driver_version: str | None = None
        self._handed: dict[_Key, tuple[_Handed, ...]] = {}
        self._unplaced: dict[object, tuple[KernelReport, int]] = {}  # with when it came

    @property
    def waiting_since_ns(self) -> int | None:
        """When the first came of what was told and not handed out yet; None where there is nothing."""
        return min((told.arrived_ns for told in self._pending), default=None)

    @property
    def unplaced(self) -> tuple[KernelReport, ...]:
        """What the kernel log told of addresses at which no GPU is known."""
        return tuple(report for report, _ in self._unplaced.values())

    def place(self, uuid: str, bdf: str) -> None:
        """Learns where a GPU was when this machine was looked at last."""
        self._places.learn_place(uuid, bdf)

    def inventory(self, inventory: Inventory) -> None:
        """Learns where the GPUs are. One that is gone is still known at its place until another takes it."""
        self._driver_version = inventory.driver_version or self._driver_version
        self._places.learn(inventory)
        self._place_what_waits()

    def nvml(self, event: Event, *, now_ns: int) -> None:
        """An event as NVML told it."""
        self._add(
            _Told(
                source=NVML,
                kind=event.kind,
                code=event.code,
                wall_ns=event.wall_ns,
                arrived_ns=now_ns,
                entity=event.entity,
                line=None,
            )
        )

    def kernel(self, report: KernelReport, *, now_ns: int) -> None:
        """What the kernel log told."""
        line = report.line
        if line.kind is LineKind.GPU_IDENTITY:
            if line.bdf is not None and line.uuid is not None:
                self._places.learn_place(line.uuid, line.bdf)
                self._place_what_waits()
            return
        if not self._places.has(line):
            self._keep(report, now_ns)
            return
        kind = LineKind.XID if line.kind is LineKind.FALLEN_OFF_BUS else line.kind
        self._add(
            _Told(
                source=KERNEL,
                kind=kind.value,
                code=line.code,
                wall_ns=report.wall_ns,
                arrived_ns=now_ns,
                entity=line.uuid,
                line=line,
                count=report.count,
                from_kernel=report.from_kernel,
            )
        )

    def _keep(self, report: KernelReport, now_ns: int) -> None:
        """Of what is said of one address, the first report of each kind; PCIe errors are mostly of other devices."""
        line = report.line
        if line.kind in _PCIE:
            self.counts.foreign += report.count
            return
        key = (line.bdf, line.gpu_instance, line.kind, line.code, line.nvlink, line.recovery_action)
        known = self._unplaced.get(key)
        if known is not None:
            self._unplaced[key] = replace(known[0], count=known[0].count + report.count), known[1]
        elif len(self._unplaced) >= MAX_UNPLACED:
            self.counts.dropped += report.count
        else:
            self._unplaced[key] = report, now_ns
            logger.warning(
                "the kernel log tells of %s %d at %s, where no GPU is known; it is kept until one is",
                line.kind.value, line.code, line.bdf,
            )  # fmt: skip

    def _place_what_waits(self) -> None:
        placed = [key for key, (report, _) in self._unplaced.items() if self._places.has(report.line)]
        for key in placed:
            report, arrived_ns = self._unplaced.pop(key)
            self.kernel(report, now_ns=arrived_ns)

    def take(self, *, now_ns: int) -> tuple[Fault, ...]:
        """The faults that are complete, oldest first."""
        by_key: dict[_Key, list[_Told]] = defaultdict(list)
        for told in self._pending:
            by_key[_Key(self._places.of(told), told.kind, told.code)].append(told)
        faults: list[Fault] = []
        waiting: list[_Told] = []
        for key, items in by_key.items():
            for cluster in _clusters(self._timely(key, items), self._same_fault_ns):
                if min(told.arrived_ns for told in cluster) + self._wait_ns <= now_ns:
                    found = list(self._faults(key, cluster))
                    faults.extend(found)
                    self._note_handed(key, cluster, found, now_ns)
                else:
                    waiting.extend(cluster)
        self._pending = waiting
        faults.sort(key=lambda fault: (fault.wall_ns, fault.entity, fault.kind, fault.code))
        self._forget(now_ns)
        return tuple(faults)

    def _add(self, told: _Told) -> None:
        if len(self._pending) >= MAX_PENDING and self._since_fold >= _FOLD_EVERY:
            self._pending = _folded(self._pending)
            self._since_fold = 0
        if len(self._pending) >= MAX_PENDING:
            self.counts.dropped += told.count
            return
        self._since_fold += 1
        self._pending.append(told)

    def _timely(self, key: _Key, items: list[_Told]) -> list[_Told]:
        """Without those whose fault was handed out before they came, if they add nothing to it."""
        handed = self._handed.get(key)
        if handed is None:
            return items
        timely = [told for told in items if not self._adds_nothing(key, told, handed)]
        self.counts.late += len(items) - len(timely)
        return timely

    def _adds_nothing(self, key: _Key, told: _Told, handed: Iterable[_Handed]) -> bool:
        before = [one for one in handed if one.begin_ns <= told.wall_ns <= one.begin_ns + self._same_fault_ns]
        if not before:
            return False
        entity, said = self._places.named(told, key.device), _said(told)
        named = entity is None or entity == self._places.gpu_at.get(key.device)
        return (named or any(entity in one.entities for one in before)) and (
            said is None or any(said in one.said for one in before)
        )

    def _note_handed(self, key: _Key, cluster: Sequence[_Told], found: Iterable[Fault], now_ns: int) -> None:
        handed = _Handed(
            begin_ns=cluster[0].wall_ns, at_ns=now_ns, entities=frozenset(fault.entity for fault in found),
            said=frozenset(said for told in cluster if (said := _said(told)) is not None),
        )  # fmt: skip
        self._handed[key] = (*self._handed.get(key, ()), handed)[-_HANDED_KEPT:]

    def _faults(self, key: _Key, cluster: Sequence[_Told]) -> Iterable[Fault]:
        """Usually one; one for each MIG device where several are named."""
        gpu = self._places.gpu_at.get(key.device, key.device)
        named = [(self._places.named(told, key.device), told) for told in cluster]
        parts = sorted({entity for entity, _ in named if entity is not None and entity != gpu})
        for part in parts or [gpu]:
            yield self._fault(key, part, [told for entity, told in named if entity in (part, gpu, None)])

    def _fault(self, key: _Key, entity: str, cluster: Sequence[_Told]) -> Fault:
        lines = [told.line for told in cluster if told.line is not None]
        decode, verdict = self._judge(key, lines)
        actions = [line.recovery_action for line in lines if line.recovery_action is not None]
        action = actions[-1] if actions else None
        deciding = [told for told in cluster if action is None or _action(told) == action]
        if decode is not None:
            deciding = [told for told in deciding if self._decoded(key.code, told.line) == decode][:1]
        evidence = _evidence(deciding)
        if decode is not None:
            evidence["decoded"] = decode.text
        return Fault(
            entity=entity,
            kind=key.kind,
            code=key.code,
            wall_ns=cluster[0].wall_ns,
            boot_id=self._boot_id,
            bdf=key.device if ":" in key.device else None,
            sources=tuple(sorted({told.source for told in cluster})),
            count=_count(cluster),
            verdict=verdict,
            decode=decode,
            recovery_action=action,
            gpu_instance=next((line.gpu_instance for line in lines if line.gpu_instance is not None), None),
            evidence=evidence,
        )

    def _judge(self, key: _Key, lines: Sequence[GpuLine]) -> tuple[Decode | None, Verdict | None]:
        if key.kind != LineKind.XID.value:
            return None, None
        verdict = verdict_of(key.code).verdict
        if verdict is not Verdict.DECODE:
            return None, verdict
        decodes = [self._decoded(key.code, line) for line in lines or (None,)]
        decode = min(decodes, key=lambda each: (_SEVERE_FIRST[each.verdict], each.text))
        return decode, decode.verdict

    def _decoded(self, code: int, line: GpuLine | None) -> Decode:
        return nvlink5.decode(code, line.nvlink if line is not None else None, self._driver_version)

    def _forget(self, now_ns: int) -> None:
        since_ns = now_ns - _FORGET_AFTER_NS
        self._handed = {key: each for key, each in self._handed.items() if each[-1].at_ns >= since_ns}


class _Places:
    """Which GPU is where, as far as it was ever known in this boot."""

    def __init__(self) -> None:
        self.gpu_at: dict[str, str] = {}
        self._bdf_of: dict[str, str] = {}  # uuid of a GPU or MIG device -> address of the GPU
        self._mig_at: Mapping[tuple[str, int], Mapping[int, str]] = {}  # address, GPU instance -> compute instance
        self.known = False  # an inventory has said where the GPUs are

    def learn(self, inventory: Inventory) -> None:
        self.known = self.known or bool(inventory.devices)
        for device in inventory.devices:
            if device.entity.parent is None and device.pci_bus_id is not None:
                self._bdf_of[device.entity.uuid] = device.pci_bus_id
                self.gpu_at[device.pci_bus_id] = device.entity.uuid
        mig: dict[tuple[str, int], dict[int, str]] = defaultdict(dict)
        for device in inventory.devices:
            bdf = self._bdf_of.get(device.entity.parent or "")
            if bdf is not None and device.mig is not None:
                self._bdf_of[device.entity.uuid] = bdf
                mig[bdf, device.mig.gpu_instance_id][device.mig.compute_instance_id] = device.entity.uuid
        self._mig_at = mig

    def learn_place(self, uuid: str, bdf: str) -> None:
        """Where no inventory says otherwise: the driver names a GPU before its first XID, the journal others."""
        self._bdf_of.setdefault(uuid, bdf)
        self.gpu_at.setdefault(bdf, uuid)

    def has(self, line: GpuLine) -> bool:
        """It is known which device this line is about. Which MIG devices there are, only an inventory tells."""
        return line.bdf is None or (line.bdf in self.gpu_at and (line.gpu_instance is None or self.known))

    def of(self, told: _Told) -> str:
        """The address of the GPU, else its uuid."""
        if told.line is not None and told.line.bdf is not None:
            return told.line.bdf
        entity = told.entity or ""
        return self._bdf_of.get(entity, entity)

    def named(self, told: _Told, bdf: str) -> str | None:
        """The device that this event names; None if it names only an address."""
        if told.entity is not None or told.line is None or told.line.gpu_instance is None:
            return told.entity
        parts = self._mig_at.get((bdf, told.line.gpu_instance), {})
        if told.line.compute_instance is not None:
            return parts.get(told.line.compute_instance)
        return next(iter(parts.values())) if len(parts) == 1 else None


def _said(told: _Told) -> object | None:
    """What may change the verdict on a fault; None for an event that says no more than its code."""
    line = told.line
    if line is None:
        return None
    said = (line.recovery_action, line.nvlink, line.evidence.get("link"), line.evidence.get("registers"))
    return None if not any(each is not None for each in said) else said


def _action(told: _Told) -> int | None:
    return told.line.recovery_action if told.line is not None else None


def _order(told: _Told) -> tuple[int, str, str]:
    line = told.line.evidence.get("line", "") if told.line is not None else ""
    return told.wall_ns, told.source, line


def _clusters(items: Iterable[_Told], within_ns: int) -> Iterable[list[_Told]]:
    """Parts that begin with one event and hold all that come within that time after it."""
    cluster: list[_Told] = []
    for told in sorted(items, key=_order):
        if cluster and told.wall_ns - cluster[0].wall_ns > within_ns:
            yield cluster
            cluster = []
        cluster.append(told)
    if cluster:
        yield cluster


def _folded(items: Iterable[_Told]) -> list[_Told]:
    """The same with one for all that differ in nothing but the text and the time within a second."""
    first: dict[object, _Told] = {}
    for told in sorted(items, key=_order):
        line = told.line
        said = (line.bdf, line.nvlink, line.recovery_action) if line is not None else None
        key = (told.source, told.kind, told.code, told.entity, said, told.wall_ns // 10**9)
        known = first.get(key)
        first[key] = told if known is None else replace(known, count=known.count + told.count)
    return list(first.values())


def _count(cluster: Iterable[_Told]) -> int:
    counts: dict[tuple[str, LineKind | None], int] = defaultdict(int)
    for told in cluster:
        counts[told.source, told.line.kind if told.line is not None else None] += told.count
    return max(counts.values())


def _evidence(cluster: Iterable[_Told]) -> dict[str, str]:
    """What the line that says most says, and what only others say."""
    told_by_log = [(told.line.evidence, told.from_kernel) for told in cluster if told.line is not None]
    evidence: dict[str, str] = {}
    for each, _ in sorted(told_by_log, key=lambda pair: -len(pair[0])):
        evidence = {**each, **evidence}
    if not all(from_kernel for _, from_kernel in told_by_log):
        evidence["written_by"] = "a process, not the kernel"
    return evidence
