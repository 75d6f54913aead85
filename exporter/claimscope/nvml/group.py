"""How are the readings of one tier of an entity taken cheaply?

A `Group` compiles them into pre-bound C calls that write into one reused buffer. A tick copies that buffer and nothing
else; at the end of a window all copies are unpacked at once and folded, column by column. Return codes are looked at,
never turned into exceptions.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any, TypeAlias

import pynvml

from claimscope.metrics.spec import Kind, Via
from claimscope.nvml.calls import Call
from claimscope.nvml.folding import Row, Totals, fold_row, trapezoid_weights, why_missing
from claimscope.nvml.heartbeat import Heartbeat
from claimscope.nvml.library import (
    DRIVER_GONE,
    FUNCTION_NOT_FOUND,
    GPU_GONE,
    NEVER_ANSWERED,
    NO_PERMISSION,
    SUCCESS,
    Library,
)
from claimscope.nvml.plan import Reading, Source, sources

FIELD_SIZE = 40  # sizeof(nvmlFieldValue_t), nvml.h
_FIELD_STATUS = 24  # offset of valueType and nvmlReturn, read as one number: type + (return << 32)
_FIELD_VALUE = 32
_FORMATS = {0: "d", 1: "I4x", 2: "Q", 3: "Q", 4: "q", 5: "i4x", 6: "H6x"}  # nvmlValueType_t
_ULL = 3

FATAL = DRIVER_GONE | GPU_GONE

CType: TypeAlias = Any  # a ctypes class; ctypes keeps its type codes in untyped members


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
        self._offsets = offsets
        self._calls = calls
        self._types = [_ULL] * fields
        self._rows: list[Row] = []
        self._counters: list[tuple[str, int, float]] = []
        self._gauges: list[tuple[str, int, float]] = []
        self._bits: list[tuple[str, int, int, float]] = []
        self._masks: dict[int, list[Row]] = {}  # bits with an integral, by column
        self._heavy: list[Row] = []
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
        rows: list[tuple[Row, tuple[int, str]]] = []
        field_places = {source: place for place, source in enumerate(self.field_sources)}
        call_places = {source: place for place, source in enumerate(self.call_sources)}
        for reading in self.readings:
            if reading.source.via is Via.FIELD:
                place = field_places[reading.source]
                spot = (place * FIELD_SIZE + _FIELD_VALUE, _FORMATS.get(self._types[place], "Q"))
                rows.append((Row(reading, place), spot))
            else:
                place = call_places[reading.source]
                call = self._calls[reading.source.name]
                index, path = call.members[reading.member]
                offset, code = locate(call.outs[index], path)
                spot = (self._offsets[place][index] + offset, code)
                wanted[spot] = None
                rows.append((Row(reading, place + 1), spot))
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
                    totals.forget(row.key, why_missing(code))
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
                fold_row(row, totals, column_values, column_values[carried:], weights)
                continue
            if codes_here[-1] in FATAL:
                fatal = codes_here[-1]
            good = [code == SUCCESS for code in codes_here]
            body = tuple(compress(column_values[carried:], good[carried:]))
            if not body:
                code = codes_here[-1]
                totals.forget(row.key, why_missing(code))
                if code in NEVER_ANSWERED or code == NO_PERMISSION:
                    refused[row.source] = code
                continue
            times = list(compress(self.times, good))
            fold_row(
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
                    fold_row(row, totals, values, values[carried:], weights)
                continue
            for row in rows:  # it stood still, as it mostly does
                key, value = row.key, row.scale if reasons & row.mask else 0.0
                last[key] = value
                integral[key] = integral.get(key, 0.0) + value * span
        for row in self._heavy:
            values = columns[row.column]
            fold_row(row, totals, values, values[carried:], weights)
        for key in totals.missing.keys() & self._keys:
            del totals.missing[key]
