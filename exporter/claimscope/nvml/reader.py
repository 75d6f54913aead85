"""How is one entity read cheaply, and what do its samples add up to?

A `Group` compiles the readings of one tier into pre-bound C calls that write into one reused buffer. A tick copies
that buffer and nothing else; at the end of a window all copies are unpacked at once and folded, column by column.
Return codes are looked at, never turned into exceptions.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from operator import mul
from typing import Any, TypeAlias

import pynvml

from claimscope.metrics.spec import Kind, Quantity, Tier, Via
from claimscope.model import Missing, ProcessUse
from claimscope.nvml.calls import Call
from claimscope.nvml.errors import missing
from claimscope.nvml.gpm import MIN_PERIOD_NS, GpmReader, supported
from claimscope.nvml.inventory import Found
from claimscope.nvml.library import (
    DRIVER_GONE,
    FUNCTION_NOT_FOUND,
    GPU_GONE,
    INSUFFICIENT_SIZE,
    NEVER_ANSWERED,
    NO_PERMISSION,
    NOT_FOUND,
    SUCCESS,
    Library,
)
from claimscope.nvml.plan import Reading, Source, build_plan, call_names, sources

FIELD_SIZE = 40  # sizeof(nvmlFieldValue_t), nvml.h
_FIELD_STATUS = 24  # offset of valueType and nvmlReturn, read as one number: type + (return << 32)
_FIELD_VALUE = 32
_LATENCY = 16
_FORMATS = {0: "d", 1: "I4x", 2: "Q", 3: "Q", 4: "q", 5: "i4x", 6: "H6x"}  # nvmlValueType_t
_ULL = 3

FATAL = DRIVER_GONE | GPU_GONE

CType: TypeAlias = Any  # a ctypes class; ctypes keeps its type codes in untyped members
Heartbeat: TypeAlias = Any  # a memoryview of unsigned 64-bit numbers over the shared page


def _missing(code: int) -> Missing:
    return missing(code) or Missing.FAILED


class Totals:
    """What the readings of one entity have come to; `low` and `high` are per window, the rest runs on."""

    __slots__ = ("high", "integral", "last", "low", "missing", "raw", "text")

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.low: dict[str, float] = {}
        self.high: dict[str, float] = {}
        self.integral: dict[str, float] = {}
        self.raw: dict[str, float] = {}
        self.text: dict[str, str] = {}
        self.missing: dict[str, Missing] = {}

    def forget(self, key: str, reason: Missing) -> None:
        """There is no number now."""
        self.last.pop(key, None)
        self.raw.pop(key, None)
        self.text.pop(key, None)
        self.missing[key] = reason


def trapezoid_weights(times_ns: Sequence[int], max_gap_ns: int) -> list[float]:
    """Weights w with sum(w x v) = the time integral of v in value x seconds; gaps longer than `max_gap_ns` are left
    out, because nobody knows what happened in them."""
    weights = [0.0] * len(times_ns)
    for place in range(1, len(times_ns)):
        gap = times_ns[place] - times_ns[place - 1]
        if gap <= max_gap_ns:
            half = gap * 5e-10
            weights[place - 1] += half
            weights[place] += half
    return weights


def c_format(kind: CType) -> str:
    """The struct code, in standard sizes, of a plain C number."""
    code = str(kind._type_)
    size = ctypes.sizeof(kind)
    if code in "fd":
        return code
    letter = {1: "b", 2: "h", 4: "i", 8: "q"}[size]
    return letter if code in "bhilq" else letter.upper()


def locate(structure: CType, path: str | None) -> tuple[int, str]:
    """(offset, struct code) of a member: "used", "pci.bus", "counts[2]"; None is the plain number itself."""
    offset = 0
    if path is not None:
        for part in path.replace("[", ".[").split("."):
            if part.startswith("["):
                structure = structure._type_
                offset += int(part[1:-1]) * ctypes.sizeof(structure)
            else:
                offset += getattr(structure, part).offset
                structure = next(f[1] for f in structure._fields_ if f[0] == part)
    return offset, c_format(structure)


class _Row:
    """One reading, resolved to columns."""

    __slots__ = (
        "bit", "column", "extremes", "gauge", "integral", "key", "kind", "mask", "place", "scale", "source", "values",
    )

    def __init__(self, reading: Reading, place: int) -> None:
        self.key = reading.key
        self.kind = reading.kind
        self.gauge = reading.kind is Kind.GAUGE
        self.scale = reading.scale
        self.bit = reading.bit
        self.mask = reading.bit or 0
        self.values = reading.values
        self.source = reading.source
        self.place = place  # of the field, or of the call
        self.column = -1
        self.integral = reading.integral
        self.extremes = reading.extremes


class Group:
    """The readings of one tier of one entity, compiled."""

    def __init__(
        self,
        library: Library,
        *,
        pointer: int,
        gpu: int,
        readings: Sequence[Reading],
        field_ids: Mapping[str, int],
        calls: Mapping[str, Call],
        call_numbers: Mapping[str, int],
    ) -> None:
        handle = ctypes.c_void_p(pointer)
        self.readings = tuple(readings)
        self.field_sources = sources(readings, Via.FIELD)
        self.call_sources = sources(readings, Via.CALL)
        device = (gpu + 1) << 32
        fields = len(self.field_sources)
        offsets: list[list[int]] = []
        end = fields * FIELD_SIZE
        for source in self.call_sources:
            places = []
            for out in calls[source.name].outs:
                places.append(end)
                end += (ctypes.sizeof(out) + 7) & ~7
            offsets.append(places)
        self._buffer = (ctypes.c_uint64 * max(1, end // 8))()
        self._copy: Callable[[], bytes] = memoryview(self._buffer).tobytes
        self.names: list[str] = []
        self._refused_at_once: dict[Source, int] = {}
        steps: list[tuple[int, int, Callable[..., int], tuple[Any, ...]]] = []
        if fields:
            array = (pynvml.c_nvmlFieldValue_t * fields).from_buffer(self._buffer)
            for entry, source in zip(array, self.field_sources, strict=True):
                entry.fieldId = field_ids[source.name]
                entry.scopeId = source.argument
                entry.nvmlReturn = FUNCTION_NOT_FOUND
            function = library.function("nvmlDeviceGetFieldValues")
            if function is None:
                self._refused_at_once.update(dict.fromkeys(self.field_sources, FUNCTION_NOT_FOUND))
            else:
                steps.append((
                    0, device | call_numbers["nvmlDeviceGetFieldValues"], function,
                    (handle, ctypes.c_int(fields), ctypes.byref(array)),
                ))
        self.names.append("nvmlDeviceGetFieldValues")
        for number, source in enumerate(self.call_sources, start=1):
            call = calls[source.name]
            self.names.append(source.name)
            function = library.function(call.symbol)
            if function is None:
                self._refused_at_once[source] = FUNCTION_NOT_FOUND
                continue
            arguments: list[Any] = [handle, *(ctypes.c_uint(a) for a in call.args)]
            if call.axis:
                arguments.append(ctypes.c_uint(source.argument))
            targets: list[Any] = [
                out.from_buffer(self._buffer, place)
                for out, place in zip(call.outs, offsets[number - 1], strict=True)
            ]
            if call.version is not None:
                targets[0].version = call.version  # no getter writes it back, so once is enough
            if call.axis_member is not None:
                setattr(targets[0], call.axis_member, source.argument)
            arguments += [ctypes.byref(target) for target in targets]
            steps.append((number, device | call_numbers[source.name], function, tuple(arguments)))
        self._steps = tuple(steps)
        self.cost_ns = [0] * len(self.names)
        self.reads = 0
        self.field_latency_us = 0
        self._offsets = offsets
        self._calls = calls
        self._types = [_ULL] * fields
        self._rows: list[_Row] = []
        self._counters: list[tuple[str, int, float]] = []
        self._gauges: list[tuple[str, int, float]] = []
        self._bits: list[tuple[str, int, int, float]] = []
        self._masks: dict[int, list[_Row]] = {}  # bits with an integral, by column
        self._heavy: list[_Row] = []
        self._keys = frozenset(reading.key for reading in readings)
        self._expected: list[int] = []
        self._struct = struct.Struct("=")
        self._compile()
        self.times: list[int] = []
        self._copies: list[bytes] = []
        self._errors: list[tuple[int, int, int]] = []  # sample, place, code
        self._carried = 0  # 1 where the first sample belongs to the window before

    def _compile(self) -> None:
        """Lays out one struct that picks the used members and skips the rest."""
        wanted: dict[tuple[int, str], None] = {}
        for place, kind in enumerate(self._types):
            wanted[(place * FIELD_SIZE + _FIELD_STATUS, "Q")] = None
            wanted[(place * FIELD_SIZE + _FIELD_VALUE, _FORMATS.get(kind, "Q"))] = None
        rows: list[tuple[_Row, tuple[int, str]]] = []
        field_places = {source: place for place, source in enumerate(self.field_sources)}
        call_places = {source: place for place, source in enumerate(self.call_sources)}
        for reading in self.readings:
            if reading.source.via is Via.FIELD:
                place = field_places[reading.source]
                spot = (place * FIELD_SIZE + _FIELD_VALUE, _FORMATS.get(self._types[place], "Q"))
                rows.append((_Row(reading, place), spot))
            else:
                place = call_places[reading.source]
                call = self._calls[reading.source.name]
                index, path = call.members[reading.member]
                offset, code = locate(call.outs[index], path)
                spot = (self._offsets[place][index] + offset, code)
                wanted[spot] = None
                rows.append((_Row(reading, place + 1), spot))
        ordered = sorted(wanted)
        columns = {spot: number for number, spot in enumerate(ordered)}
        form, at = "=", 0
        for offset, code in ordered:
            form += f"{offset - at}x{code}" if offset > at else code
            at = offset + struct.calcsize("=" + code)
        size = ctypes.sizeof(self._buffer)
        form += f"{size - at}x" if size > at else ""
        self._struct = struct.Struct(form)
        for row, spot in rows:
            row.column = columns[spot]
        self._rows = [row for row, _ in rows]
        # Where every sample is good, most rows need their newest value and nothing else.
        self._counters, self._gauges, self._bits, self._heavy = [], [], [], []
        self._masks = {}
        for row, (_, code) in rows:
            if row.bit is not None and row.integral and not row.extremes:
                self._masks.setdefault(row.column, []).append(row)
            elif row.integral or row.extremes or row.kind is Kind.TEXT or code in "df":
                self._heavy.append(row)
            elif row.kind is Kind.COUNTER:
                self._counters.append((row.key, row.column, row.scale))
            elif row.bit is not None:
                self._bits.append((row.key, row.column, row.bit, row.scale))
            else:
                self._gauges.append((row.key, row.column, row.scale))
        self._expected = list(self._types)
        self._status_columns = [
            columns[(place * FIELD_SIZE + _FIELD_STATUS, "Q")] for place in range(len(self._types))
        ]

    def read(self, heartbeat: Heartbeat, clock: Callable[[], int]) -> int:
        """One sample. Returns 0, or the code that says that the GPU or the driver is gone."""
        begun = at = clock()
        cost = self.cost_ns
        fatal = 0
        for number, mark, function, arguments in self._steps:
            heartbeat[2] = at
            heartbeat[1] = mark
            code = function(*arguments)
            now = clock()
            cost[number] += now - at
            at = now
            if code:
                self._errors.append((len(self.times), number, code))
                if code in FATAL:
                    fatal = code
                    break
        self.times.append(begun)
        self._copies.append(self._copy())
        self.reads += 1
        return fatal

    @property
    def fresh(self) -> int:
        """Samples taken since the last fold."""
        return len(self.times) - self._carried

    def take_cost(self) -> list[tuple[str, int, int]]:
        """(call, times, nanoseconds) since the last time this was asked."""
        reads, self.reads = self.reads, 0
        taken = [(self.names[step[0]], reads, self.cost_ns[step[0]]) for step in self._steps] if reads else []
        self.cost_ns = [0] * len(self.names)
        return taken

    def _columns(self) -> list[tuple[Any, ...]]:
        """The samples as columns, after learning the value types the driver answers with."""
        packed = b"".join(self._copies)
        columns = list(zip(*self._struct.iter_unpack(packed), strict=True))
        changed = False
        for place, status in enumerate(self._status_columns):
            newest = columns[status][-1]
            if newest >> 32 == 0 and newest != self._types[place] and newest in _FORMATS:
                self._types[place] = newest
                changed = True
        if changed:
            self._compile()
            columns = list(zip(*self._struct.iter_unpack(packed), strict=True))
        return columns

    def fold(self, totals: Totals, max_gap_ns: int) -> tuple[dict[Source, int], int]:
        """Adds the samples since the last fold to `totals`.

        Returns the sources that are never answered, with their codes, and a code that says that the GPU or the
        driver is gone, or 0.
        """
        count = len(self.times)
        carried = self._carried
        refused = dict(self._refused_at_once)
        for source, code in refused.items():
            for row in self._rows:
                if row.source == source:
                    totals.forget(row.key, _missing(code))
        if count == carried:
            return refused, 0
        fatal = 0
        columns = self._columns()
        weights = trapezoid_weights(self.times, max_gap_ns)
        # Places with any error, as code per sample; places of fields and of calls are kept apart.
        field_codes: dict[int, list[int]] = {}
        for place, column in enumerate(self._status_columns):
            status = columns[column]
            expected = self._expected[place]
            if status.count(expected) != count:
                field_codes[place] = [
                    0 if s == expected else (s >> 32 or pynvml.NVML_ERROR_UNKNOWN) for s in status
                ]
        call_codes: dict[int, list[int]] = {}
        for sample, place, code in self._errors:
            call_codes.setdefault(place, [0] * count)[sample] = code
        if 0 in call_codes:  # the whole batch failed: what stands in the buffer is old
            for place in range(len(self._types)):
                codes = field_codes.setdefault(place, [0] * count)
                field_codes[place] = [whole or own for whole, own in zip(call_codes[0], codes, strict=True)]
        if not (field_codes or call_codes or self._refused_at_once):
            self._fold_good(totals, columns, carried, weights)
            self._open_next(count)
            return refused, 0
        for row in self._rows:
            codes_of = field_codes if row.source.via is Via.FIELD else call_codes
            codes_here = codes_of.get(row.place)
            column_values = columns[row.column]
            if row.source in self._refused_at_once:
                continue
            if codes_here is None:
                self._fold_row(row, totals, column_values, column_values[carried:], weights)
                continue
            if codes_here[-1] in FATAL:
                fatal = codes_here[-1]
            good = [code == SUCCESS for code in codes_here]
            body = tuple(compress(column_values[carried:], good[carried:]))
            if not body:
                code = codes_here[-1]
                totals.forget(row.key, _missing(code))
                if code in NEVER_ANSWERED or code == NO_PERMISSION:
                    refused[row.source] = code
                continue
            times = list(compress(self.times, good))
            self._fold_row(
                row, totals, tuple(compress(column_values, good)), body, trapezoid_weights(times, max_gap_ns)
            )
        self._open_next(count)
        return refused, fatal

    def _open_next(self, count: int) -> None:
        """The last sample opens the next window."""
        self._errors = [(0, place, code) for sample, place, code in self._errors if sample == count - 1]
        del self.times[:-1], self._copies[:-1]
        self._carried = 1

    def _fold_good(
        self, totals: Totals, columns: Sequence[tuple[Any, ...]], carried: int, weights: Sequence[float]
    ) -> None:
        """The usual case: every sample of every source is good."""
        newest = self._struct.unpack(self._copies[-1])
        raw, last = totals.raw, totals.last
        for key, column, scale in self._counters:
            raw[key] = newest[column] * scale
        for key, column, scale in self._gauges:
            last[key] = newest[column] * scale
        for key, column, mask, scale in self._bits:
            last[key] = scale if newest[column] & mask else 0.0
        integral, span = totals.integral, sum(weights)
        for column, rows in self._masks.items():
            values = columns[column]
            reasons = values[0]
            if values.count(reasons) != len(values):
                for row in rows:
                    self._fold_row(row, totals, values, values[carried:], weights)
                continue
            for row in rows:  # it stood still, as it mostly does
                key, value = row.key, row.scale if reasons & row.mask else 0.0
                last[key] = value
                integral[key] = integral.get(key, 0.0) + value * span
        for row in self._heavy:
            values = columns[row.column]
            self._fold_row(row, totals, values, values[carried:], weights)
        for key in totals.missing.keys() & self._keys:
            del totals.missing[key]

    @staticmethod
    def _fold_row(
        row: _Row, totals: Totals, column: tuple[Any, ...], body: tuple[Any, ...], weights: Sequence[float]
    ) -> None:
        key, scale = row.key, row.scale
        if row.bit is not None:
            mask = row.bit
            if not (row.integral or row.extremes):
                column = body = (1.0 if body[-1] & mask else 0.0,)
            else:
                column = tuple([1.0 if value & mask else 0.0 for value in column])
                body = column[len(column) - len(body) :]
        last = body[-1]
        if row.gauge:
            if last != last:  # NaN
                totals.forget(key, Missing.FAILED)
                return
            totals.last[key] = last * scale
            if row.extremes:
                low, high = min(body) * scale, max(body) * scale
                if key in totals.low:
                    totals.low[key] = min(low, totals.low[key])
                    totals.high[key] = max(high, totals.high[key])
                else:
                    totals.low[key] = low
                    totals.high[key] = high
            if row.integral:
                grown = sum(map(mul, column, weights)) * scale
                totals.integral[key] = totals.integral.get(key, 0.0) + (grown if grown == grown else 0.0)
        elif row.kind is Kind.COUNTER:
            totals.raw[key] = last * scale
        else:
            totals.text[key] = row.values.get(int(last), str(last))
        if key in totals.missing:
            del totals.missing[key]


class ProcessReader:
    """The processes on one entity, into a reused array that grows when NVML says so."""

    def __init__(self, library: Library, pointer: int, *, mig: bool) -> None:
        self._handle = ctypes.c_void_p(pointer)
        self._list = library.function("nvmlDeviceGetComputeRunningProcesses_v3")
        # No source of per-process utilization while MIG is on (nvml.h, nvmlDeviceGetProcessUtilization).
        self._use = None if mig else library.function("nvmlDeviceGetProcessUtilization")
        self._capacity = 64
        self._seen_us = 0

    def _fetch(self, function: Callable[..., int], kind: CType, *, behind: tuple[Any, ...]) -> tuple[int, list[Any]]:
        for _ in range(4):
            array = (kind * self._capacity)()
            count = ctypes.c_uint(self._capacity)
            order = (array, ctypes.byref(count)) if behind else (ctypes.byref(count), array)
            code = function(self._handle, *order, *behind)
            if code != INSUFFICIENT_SIZE:
                return code, list(array[: min(count.value, self._capacity)]) if code == SUCCESS else []
            self._capacity = max(self._capacity * 2, count.value)
        return INSUFFICIENT_SIZE, []

    def read(self) -> tuple[int, tuple[ProcessUse, ...] | None]:
        """(return code, the processes or None where they cannot be told)."""
        if self._list is None:
            return FUNCTION_NOT_FOUND, None
        code, processes = self._fetch(self._list, pynvml.c_nvmlProcessInfo_v3_t, behind=())
        if code != SUCCESS:
            return code, None
        busy: dict[int, float] = {}
        if self._use is not None and processes:
            answer, samples = self._fetch(
                self._use, pynvml.c_nvmlProcessUtilizationSample_t, behind=(ctypes.c_ulonglong(self._seen_us),)
            )
            for sample in samples:
                if sample.smUtil <= 100:  # garbage has been seen (nvtop issue 110)
                    busy[sample.pid] = sample.smUtil / 100
                self._seen_us = max(self._seen_us, int(sample.timeStamp))
            if answer in FATAL:
                return answer, None
            told = answer in (SUCCESS, NOT_FOUND)  # NOT_FOUND: nobody used the GPU since
        else:
            told = False
        unknown = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value
        return SUCCESS, tuple(
            ProcessUse(
                pid=int(process.pid),
                memory_used_bytes=None if process.usedGpuMemory == unknown else int(process.usedGpuMemory),
                busy_ratio=busy.get(int(process.pid), 0.0) if told else None,
            )
            for process in processes
        )


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
            self._refused[source] = _missing(code)
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
                self.totals.forget(reading.key, _missing(int(error.value)))

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
                self.totals.forget(reading.key, _missing(code))
            if code in NEVER_ANSWERED or code == NO_PERMISSION:
                gpm.free()  # until everything is probed again
                self._gpm = None
        return 0

    def _fold_gpm(self, answers: Sequence[tuple[int, float | None]], elapsed_ns: int) -> None:
        totals = self.totals
        for reading, (code, answer) in zip(self._gpm_readings, answers, strict=True):
            key = reading.key
            if answer is None:
                totals.forget(key, _missing(code) if code else Missing.FAILED)
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
