"""Which OTLP requests do samples amount to?

Sums are cumulative, with the time at which they truly began: an account with its claim; one that does not say when
began with the process, or after the push before, if it was not there then. When a driver's counter began is not known:
its stream begins where it was first seen, with a point of no duration that has the value of then, which says to a
receiver that this value is not a rise
(https://opentelemetry.io/docs/specs/otel/metrics/data-model/#cumulative-streams-handling-unknown-start-time).
A sum that falls began anew at the point before. A series that is gone gets one last point that says so
(NO_RECORDED_VALUE), since a receiver would otherwise show its last value for minutes. Only series of the last request
are remembered: there is no limit that thousands of short claims could reach, and nothing that they leave behind.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from claimscope.export.otlp import wire
from claimscope.metrics.otel import DEVICE_FACTS, INFO, VENDOR, Instrument, Metric, OtelTable, Stream, attribute_of
from claimscope.model import Histogram, Sample

MAX_POINTS = 5_000  # of one request
MAX_BYTES = 3 << 20  # of one request before compression: gRPC servers refuse more than 4 MiB

Labels = tuple[tuple[str, str], ...]
Facts = tuple[tuple[str, str], ...]
Points = tuple[Metric, list[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One request."""

    body: bytes  # an ExportMetricsServiceRequest
    points: int


def batches(
    groups: Iterable[Points], envelope: wire.Envelope, *, max_points: int = MAX_POINTS, max_bytes: int = MAX_BYTES
) -> Iterator[Batch]:
    """Requests of bounded size; a metric with many points is spread over several."""
    pieces: list[bytes] = []
    count = size = 0
    for metric, points in groups:
        taken = 0
        while taken < len(points):
            some = points[taken : taken + max_points - count]
            bytes_taken = sum(map(len, some))
            while len(some) > 1 and size + bytes_taken > max_bytes:
                some = some[: len(some) // 2]
                bytes_taken = sum(map(len, some))
            if pieces and size + bytes_taken > max_bytes:
                yield Batch(body=envelope.request(pieces), points=count)
                pieces, count, size = [], 0, 0
                continue
            pieces += wire.metric(metric, some, bytes_taken)
            count, size, taken = count + len(some), size + bytes_taken, taken + len(some)
            if count >= max_points:
                yield Batch(body=envelope.request(pieces), points=count)
                pieces, count, size = [], 0, 0
    if pieces:
        yield Batch(body=envelope.request(pieces), points=count)


class _Series:
    """One series of the last request."""

    __slots__ = ("attributes", "began_ns", "head", "labels", "push", "stream", "time_ns", "value")

    def __init__(self, labels: Labels, stream: Stream, attributes: bytes) -> None:
        self.labels = labels
        self.stream = stream
        self.attributes = attributes
        self.began_ns = -1  # none yet
        self.head = b""  # number_head of attributes and start
        self.value = -math.inf
        self.time_ns = 0
        self.push = 0

    @property
    def attributes_and_start(self) -> bytes:
        """As in the last point."""
        return self.attributes + wire.start(self.began_ns)

    def begin(self, wall_ns: int) -> None:
        """A sum that begins at this time; 0 where it is not known, and for gauges."""
        self.began_ns = wall_ns
        self.head = wire.number_head(self.attributes_and_start)

    def since(self, before_ns: int) -> int:
        """When a sum began that does not say so: as it was told before, and if new after the push before."""
        return before_ns if self.began_ns < 0 else self.began_ns

    def follow(self, given_ns: int, value: float, wall_ns: int) -> None:
        """A sum: it began as it says, and at its last point where it fell and says nothing new; never after `wall_ns`,
        as it would seem to when that is set back."""
        if given_ns > wall_ns:
            given_ns = self.began_ns if 0 <= self.began_ns <= wall_ns else wall_ns
        if given_ns > self.began_ns or self.began_ns > wall_ns:
            self.begin(given_ns)
        elif value < self.value:
            self.begin(min(self.time_ns, wall_ns))
        self.value = value

    def first(self, sample: Sample, since_ns: int, wall_ns: int) -> bytes:
        """The point of no duration, where the sum was first seen after the push before; a point has it by itself where
        that was just now, and what went on from an earlier process had it then."""
        if self.began_ns != sample.start_ns or not since_ns <= self.began_ns < wall_ns:
            return b""
        return self.head + (wire.number_tail(self.began_ns) + wire.double(sample.start_value))

    def ended(self, wall_ns: int) -> bytes:
        """The last point."""
        if self.began_ns > wall_ns:
            self.begin(wall_ns)
        histogram = self.stream.metric.instrument is Instrument.HISTOGRAM
        end = wire.histogram_ended if histogram else wire.number_ended
        return end(self.attributes_and_start, wall_ns)


@dataclass(slots=True)
class _Family:
    """The series of one family."""

    series: dict[Labels, _Series] = field(default_factory=dict)
    # The same by identity of the label tuple, which most makers of samples hand out again: to hash a dozen strings
    # costs more than everything else about a point. The series holds the tuple, so that its identity stays its own.
    by_id: dict[int, _Series] = field(default_factory=dict)


def device_facts(samples: Iterable[Sample | Histogram]) -> dict[str, Facts]:
    """What each device is, by uuid: attributes that every metric about it carries."""
    found: dict[str, Facts] = {}
    for sample in samples:
        if sample.family == INFO:
            labels = dict(sample.labels)
            facts = [(attribute_of(label, INFO), labels[label]) for label in DEVICE_FACTS if labels.get(label)]
            found[labels["uuid"]] = (*facts, VENDOR) if labels.get("model") else tuple(facts)
    return found


class Encoder:
    """Makes requests of samples; one thread at a time."""

    def __init__(
        self, table: OtelTable, envelope: wire.Envelope, *, began_ns: int, carried_over: Container[str] = ()
    ) -> None:
        """`began_ns` is when this process began, and with it what is there at the first push and does not say when it
        did, but for the families in `carried_over`, which go on from a process before."""
        self._table = table
        self.envelope = envelope
        self._began_ns = began_ns
        self._since_ns = began_ns  # the push before
        self._carried_over = carried_over
        self._families: dict[str, _Family] = {}
        self._facts: dict[str, Facts] = {}
        self._push = 0

    @property
    def series(self) -> int:
        """Series remembered now."""
        return sum(len(family.series) for family in self._families.values())

    def requests(self, samples: Sequence[Sample | Histogram], wall_ns: int) -> Iterator[Batch]:
        """The requests of one moment, with the ends of what is gone since the one before; made as they are taken."""
        yield from batches(self._points(samples, wall_ns), self.envelope)

    def _points(self, samples: Sequence[Sample | Histogram], wall_ns: int) -> Iterable[Points]:
        """The points of one moment by metric."""
        groups: dict[str, Points] = {}
        self._push += 1
        self._follow(device_facts(samples), groups, wall_ns)
        push, tail, double = self._push, wire.number_tail(wall_ns), wire.double
        name, family, since, first = "", _Family(), 0, b""
        for sample in samples:
            if sample.family != name:
                name = sample.family
                family = self._families.setdefault(name, _Family())
                since = 0 if name in self._carried_over else self._since_ns
            series = family.by_id.get(id(sample.labels)) or self._series(name, family, sample.labels)
            if series is None or series.push == push:
                continue  # in no table, or a series that was shown already
            metric = series.stream.metric
            if isinstance(sample, Histogram):
                series.follow(sample.start_ns or series.since(since), float(sum(sample.counts)), wall_ns)
                point = wire.histogram_point(series.attributes_and_start, wall_ns, sample)
            else:
                value = sample.value
                if not math.isfinite(value):
                    continue
                if metric.instrument is Instrument.COUNTER:
                    before_ns = series.began_ns
                    series.follow(sample.start_ns or series.since(since), value, wall_ns)
                    if series.began_ns != before_ns and sample.start_value:
                        first = series.first(sample, self._since_ns, wall_ns)
                elif series.began_ns < 0:
                    series.begin(self._began_ns if metric.instrument is Instrument.UPDOWN else 0)
                point = series.head + (tail + double(value))
            series.push, series.time_ns = push, wall_ns
            group = groups.get(metric.name)
            if group is None:
                group = groups[metric.name] = (metric, [])
            if first:
                group[1].append(first)
                first = b""
            group[1].append(point)
        self._forget(groups, wall_ns)
        self._since_ns = wall_ns
        return groups.values()

    def _series(self, name: str, family: _Family, labels: Labels) -> _Series | None:
        known = family.series.get(labels)
        if known is not None:
            del family.by_id[id(known.labels)]
            known.labels = labels
            family.by_id[id(labels)] = known
            return known
        stream = self._table.stream(name, labels)
        if stream is None:
            return None
        made = _Series(labels, stream, self._attributes(name, stream, labels))
        family.series[labels] = family.by_id[id(labels)] = made
        return made

    def _attributes(self, name: str, stream: Stream, labels: Labels) -> bytes:
        pairs = stream.attributes(labels)
        if stream.device and name != INFO:
            pairs += next((self._facts.get(value, ()) for label, value in labels if label == "uuid"), ())
        return wire.attributes(pairs, histogram=stream.metric.instrument is Instrument.HISTOGRAM)

    def _follow(self, facts: dict[str, Facts], groups: dict[str, Points], wall_ns: int) -> None:
        """Begins the series of devices anew that became something else, after a new driver for example."""
        changed = {uuid for uuid, before in self._facts.items() if uuid in facts and facts[uuid] != before}
        changed |= facts.keys() - self._facts.keys()
        self._facts = facts
        if not changed:
            return
        for name, family in self._families.items():
            for series in list(family.series.values()):
                if not series.stream.device or all(
                    label != "uuid" or each not in changed for label, each in series.labels
                ):
                    continue
                # A device whose facts were away for a push is what it was: the end of its series and their next point
                # would be one stream at one time.
                if series.attributes != self._attributes(name, series.stream, series.labels):
                    self._end(family, series, groups, wall_ns)

    def _forget(self, groups: dict[str, Points], wall_ns: int) -> None:
        """Ends what was not there this time."""
        for name, family in list(self._families.items()):
            for series in [each for each in family.series.values() if each.push != self._push]:
                self._end(family, series, groups, wall_ns)
            if not family.series:
                del self._families[name]

    def _end(self, family: _Family, series: _Series, groups: dict[str, Points], wall_ns: int) -> None:
        del family.series[series.labels], family.by_id[id(series.labels)]
        if series.push:  # not one that never had a value
            metric = series.stream.metric
            groups.setdefault(metric.name, (metric, []))[1].append(series.ended(wall_ns))


def by_metric(
    table: OtelTable, samples: Iterable[Sample], wall_ns: int, *, ended: bool = False
) -> Mapping[str, Points]:
    """Points of gauges of which nothing is remembered, or their ends."""
    groups: dict[str, Points] = {}
    tail, double = wire.number_tail(wall_ns), wire.double
    for sample in samples:
        stream = table.stream(sample.family, sample.labels)
        if stream is None or not math.isfinite(sample.value):
            continue
        attributes = wire.attributes(stream.attributes(sample.labels))
        if ended:
            point = wire.number_ended(attributes, wall_ns)
        else:
            point = wire.number_head(attributes) + (tail + double(sample.value))
        groups.setdefault(stream.metric.name, (stream.metric, []))[1].append(point)
    return groups
