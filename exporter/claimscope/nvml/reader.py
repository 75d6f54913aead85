"""What is read of one entity, and when?

Its plan is compiled into one group of calls per tier. What the driver refuses for good is left out of the plan until
everything is probed again; processes and GPM have calls of their own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence

import pynvml

from claimscope.metrics.spec import Kind, Quantity, Tier
from claimscope.model import Missing, ProcessUse
from claimscope.nvml.calls import Call
from claimscope.nvml.folding import Totals, why_missing
from claimscope.nvml.gpm import MIN_PERIOD_NS, GpmReader, supported
from claimscope.nvml.group import FATAL, Group
from claimscope.nvml.heartbeat import Heartbeat
from claimscope.nvml.inventory import Found
from claimscope.nvml.library import NEVER_ANSWERED, NO_PERMISSION, SUCCESS, Library
from claimscope.nvml.plan import Reading, Source, build_plan, call_names
from claimscope.nvml.processes import ProcessReader


class Catalog:
    """What is common to all entities of one initialisation of NVML."""

    def __init__(
        self,
        *,
        quantities: Sequence[Quantity],
        calls: Mapping[str, Call],
        field_ids: Mapping[str, int],
        gpm_metrics: Mapping[str, int],
        collectors: Sequence[str],
        reprobe_ns: int,
        found: Sequence[Found],
    ) -> None:
        self.quantities = quantities
        self.calls = calls
        self.field_ids = field_ids
        self.gpm_metrics = gpm_metrics
        self.collectors = frozenset(collectors)
        self.reprobe_ns = reprobe_ns
        self.call_numbers = {name: number for number, name in enumerate(call_names(calls))}
        self._instances: dict[tuple[int, int], int] = {}
        for one in found:
            if one.device.mig is not None:
                key = (one.parent_pointer, one.device.mig.gpu_instance_id)
                self._instances[key] = self._instances.get(key, 0) + 1
        self._gpm: dict[int, bool] = {}

    def shares_gpu_instance(self, found: Found) -> bool:
        """Whether other compute instances sit on the same GPU instance: then GPM must be asked per compute instance."""
        mig = found.device.mig
        return mig is not None and self._instances.get((found.parent_pointer, mig.gpu_instance_id), 0) > 1

    def gpm_supported(self, found: Found) -> bool:
        """Whether the GPU has GPM; asked once per GPU."""
        pointer = found.parent_pointer
        if pointer not in self._gpm:
            self._gpm[pointer] = supported(ctypes.cast(pointer, pynvml.c_nvmlDevice_t))
        return self._gpm[pointer]


class EntityReader:
    """One entity: its plan, its groups and what they add up to."""

    def __init__(self, library: Library, found: Found, catalog: Catalog, *, has_mig: bool, epoch: int) -> None:
        self.found = found
        self.uuid = found.device.entity.uuid
        self.gpu = found.device.entity.gpu
        self.gpu_uuid = found.device.entity.parent or self.uuid
        self.epoch = epoch
        self.totals = Totals()
        self.ticks = 0
        self.processes: tuple[ProcessUse, ...] | None = None
        self.costs: dict[str, tuple[int, int]] = {}
        self.fold_at = 1 << 30  # samples after which they are folded without waiting for the window
        self.due_ns = 0  # the earliest of all slower tiers
        self.tick_groups: tuple[Group, ...] = ()
        self.fast_groups: tuple[Group, ...] = ()  # in a burst: read at every burst tick
        self._library = library
        self._catalog = catalog
        self._mig = found.device.mig
        self._has_mig = has_mig
        self._gpm_supported = catalog.gpm_supported(found)
        self._refused: dict[Source, Missing] = {}
        self._slow: dict[Tier, Group] = {}
        self._due: dict[Tier, int] = {}
        self._gpm: GpmReader | None = None
        self._gpm_readings: tuple[Reading, ...] = ()
        self._gpm_due_ns = 0
        self._gpm_period_ns = 0
        self._burst = False
        self._process_reader: ProcessReader | None = None
        self._reprobe_ns = 0
        self.count_processes(False)

    @property
    def waiting(self) -> int:
        """Samples of the fastest group that have not been folded."""
        groups = self.fast_groups or self.tick_groups
        return len(groups[0].times) if groups else 0

    def count_processes(self, on: bool) -> None:
        """Has the processes read, or no more where no collector asks for them."""
        wanted = (on or "processes" in self._catalog.collectors) and not self._has_mig
        if not wanted:
            self._process_reader = self.processes = None
            self._due.pop(Tier.EVENT, None)
        elif self._process_reader is None:
            self._process_reader = ProcessReader(self._library, self.found.pointer, mig=self._mig is not None)
            self._due[Tier.EVENT] = self.due_ns = 0

    # Building

    def _group(self, readings: Sequence[Reading]) -> Group:
        return Group(
            self._library, pointer=self.found.pointer, gpu=self.gpu, readings=readings,
            field_ids=self._catalog.field_ids, calls=self._catalog.calls, call_numbers=self._catalog.call_numbers,
        )

    def _build(self) -> None:
        catalog = self._catalog
        plan = build_plan(
            catalog.quantities, mig=self._mig is not None, has_mig=self._has_mig, axes=self.found.axes,
            refused=self._refused, field_ids=catalog.field_ids, calls=catalog.calls,
            gpm_metrics=catalog.gpm_metrics, gpm=self._gpm_supported, collectors=catalog.collectors,
        )
        for key, reason in plan.missing.items():
            self.totals.forget(key, reason)
        for group in (*self.tick_groups, *self.fast_groups, *self._slow.values()):
            self._take_cost(group)
        tick = plan.of_tier(Tier.TICK)
        fast = tuple(r for r in tick if r.fast) if self._burst else ()
        rest = tuple(r for r in tick if not r.fast) if self._burst else tick
        self.fast_groups = (self._group(fast),) if fast else ()
        self.tick_groups = (self._group(rest),) if rest else ()
        self._slow = {
            tier: self._group(readings)
            for tier in (Tier.SECOND, Tier.SLOW, Tier.RARE)
            if (readings := plan.of_tier(tier))
        }
        self._gpm_readings = plan.gpm()

    def _take_cost(self, group: Group) -> None:
        for name, times, nanoseconds in group.take_cost():
            self._cost(name, times, nanoseconds)

    def _cost(self, name: str, times: int, nanoseconds: int) -> None:
        known = self.costs.get(name, (0, 0))
        self.costs[name] = (known[0] + times, known[1] + nanoseconds)

    def probe(self, heartbeat: Heartbeat, clock: Callable[[], int], *, gpm_period_ns: int, offset_ns: int) -> int:
        """Reads everything until the driver refuses nothing more; returns 0 or why the GPU is gone."""
        self._refused = {}
        self._gpm_period_ns = max(MIN_PERIOD_NS, gpm_period_ns)
        self._build()
        for _ in range(8):
            refused: dict[Source, int] = {}
            for group in (*self.fast_groups, *self.tick_groups, *self._slow.values()):
                code = group.read(heartbeat, clock)
                if code:
                    return code
                more, code = group.fold(self.totals, 0)
                if code:
                    return code
                refused.update(more)
            if not refused:
                break
            self._refuse(refused)
        now = clock()
        for tier in self._slow:
            self._due[tier] = now + offset_ns + round(tier.value * 1e9)
        self._reprobe_ns = now + offset_ns + self._catalog.reprobe_ns
        if self._process_reader is not None:
            self._due[Tier.EVENT] = now
        self._reset_gpm()
        self._gpm_due_ns = now + offset_ns
        if self._gpm is not None:
            code = self._sample_gpm(self._gpm, heartbeat, clock)
            if code:
                return code
        self._reckon()
        return 0

    def _refuse(self, codes: Mapping[Source, int]) -> None:
        for source, code in codes.items():
            self._refused[source] = why_missing(code)
        self._build()

    def _reckon(self) -> None:
        self.due_ns = min(
            [*self._due.values(), self._reprobe_ns, *([self._gpm_due_ns] if self._gpm is not None else [])]
        )

    def _reset_gpm(self) -> None:
        ids = [self._catalog.gpm_metrics[r.source.name] for r in self._gpm_readings]
        if self._gpm is not None:
            if self._gpm.ids == tuple(ids):
                return
            self._gpm.free()
            self._gpm = None
        if not ids:
            return
        shared = self._mig is not None and not self._catalog.shares_gpu_instance(self.found)
        try:
            if self._mig is not None and shared:
                self._gpm = GpmReader(
                    self._library, self.found.parent_pointer, self._mig.gpu_instance_id, ids
                )
            else:
                self._gpm = GpmReader(self._library, self.found.pointer, None, ids)
        except pynvml.NVMLError as error:
            for reading in self._gpm_readings:
                self.totals.forget(reading.key, why_missing(int(error.value)))

    # Reading

    def read_slow(self, now_ns: int, heartbeat: Heartbeat, clock: Callable[[], int]) -> int:
        """Reads what is due besides the ticks; returns 0 or why the GPU is gone."""
        for tier, group in self._slow.items():
            if now_ns >= self._due[tier]:
                period = round(tier.value * 1e9)
                self._due[tier] += period * max(1, -(-(now_ns + 1 - self._due[tier]) // period))
                code = group.read(heartbeat, clock)
                if code:
                    return code
        if self._gpm is not None and now_ns >= self._gpm_due_ns:
            period = self._gpm_period_ns
            self._gpm_due_ns += period * max(1, -(-(now_ns + 1 - self._gpm_due_ns) // period))
            code = self._sample_gpm(self._gpm, heartbeat, clock)
            if code:
                return code
        if self._process_reader is not None and now_ns >= self._due[Tier.EVENT]:
            self._due[Tier.EVENT] = now_ns + round(Tier.SLOW.value * 1e9)
            code = self._read_processes(self._process_reader, heartbeat, clock)
            if code in FATAL:
                return code
        if now_ns >= self._reprobe_ns:
            code = self.fold(0)
            return code or self.probe(heartbeat, clock, gpm_period_ns=self._gpm_period_ns, offset_ns=0)
        self._reckon()
        return 0

    def _mark(self, heartbeat: Heartbeat, name: str, now_ns: int) -> None:
        heartbeat[2] = now_ns
        heartbeat[1] = (self.gpu + 1) << 32 | self._catalog.call_numbers[name]

    def _read_processes(
        self, reader: ProcessReader, heartbeat: Heartbeat, clock: Callable[[], int]
    ) -> int:
        name = "nvmlDeviceGetComputeRunningProcesses_v3"
        begun = clock()
        self._mark(heartbeat, name, begun)
        code, self.processes = reader.read()
        self._cost(name, 1, clock() - begun)
        return code

    def _sample_gpm(self, gpm: GpmReader, heartbeat: Heartbeat, clock: Callable[[], int]) -> int:
        begun = clock()
        self._mark(heartbeat, gpm.call_name, begun)
        code, elapsed = gpm.sample(begun)
        now = clock()
        self._cost(gpm.call_name, 1, now - begun)
        if code == SUCCESS and elapsed:
            self._mark(heartbeat, "nvmlGpmMetricsGet", now)
            code, answers = gpm.metrics()
            self._cost("nvmlGpmMetricsGet", 1, clock() - now)
            if code == SUCCESS:
                self._fold_gpm(answers, elapsed)
        if code in FATAL:
            return code
        if code != SUCCESS:
            for reading in self._gpm_readings:
                self.totals.forget(reading.key, why_missing(code))
            if code in NEVER_ANSWERED or code == NO_PERMISSION:
                gpm.free()  # until everything is probed again
                self._gpm = None
        return 0

    def _fold_gpm(self, answers: Sequence[tuple[int, float | None]], elapsed_ns: int) -> None:
        totals = self.totals
        for reading, (code, answer) in zip(self._gpm_readings, answers, strict=True):
            key = reading.key
            if answer is None:
                totals.forget(key, why_missing(code) if code else Missing.FAILED)
                continue
            value = answer * reading.scale
            totals.missing.pop(key, None)
            if reading.kind is Kind.COUNTER:
                totals.raw[key] = value
                continue
            totals.last[key] = value
            if reading.extremes:
                totals.low[key] = min(value, totals.low.get(key, value))
                totals.high[key] = max(value, totals.high.get(key, value))
            if reading.integral:
                # The mean over just this stretch: value x time is its integral, however late it came.
                totals.integral[key] = totals.integral.get(key, 0.0) + value * elapsed_ns * 1e-9

    def fold(self, tick_period_ns: int) -> int:
        """Brings the totals up to date; returns 0 or why the GPU is gone."""
        refused: dict[Source, int] = {}
        self.ticks += max((group.fresh for group in (*self.fast_groups, *self.tick_groups)), default=0)
        for group in (*self.fast_groups, *self.tick_groups):
            more, code = group.fold(self.totals, tick_period_ns * 5 // 2)
            self._take_cost(group)
            if code:
                return code
            refused.update(more)
        for tier, group in self._slow.items():
            more, code = group.fold(self.totals, round(tier.value * 2e9) + tick_period_ns)
            self._take_cost(group)
            if code:
                return code
            refused.update(more)
        if refused:
            self._refuse(refused)
            for tier in self._slow:
                self._due.setdefault(tier, 0)
            self._reckon()
        return 0

    def set_burst(self, on: bool, tick_period_ns: int) -> int:
        """Splits the fast tier in two for a burst, or joins it again; returns 0 or why the GPU is gone."""
        code = self.fold(tick_period_ns)
        self._burst = on
        self._build()
        return code

    def free(self) -> None:
        """Frees the GPM samples; must come before nvmlShutdown."""
        if self._gpm is not None:
            self._gpm.free()
            self._gpm = None
