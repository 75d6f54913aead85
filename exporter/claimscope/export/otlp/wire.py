"""How are the parts of an OTLP request written that there are thousands of? Protobuf's wire format, by hand.

Building 5,000 points of twelve attributes through the generated classes takes some twenty times as long, since nothing
of a message can be kept between two requests there. Field numbers are those of opentelemetry-proto 1.x
(metrics/v1/metrics.proto, common/v1/common.proto), which may never change.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import DataPointFlags, Metric
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from claimscope.metrics.otel import INTEGERS, Instrument

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from claimscope.metrics import otel
    from claimscope.model import Histogram

# Tags: field number << 3 | wire type (1: eight bytes, 2: length and bytes, 0: varint).
_MESSAGE = b"\x0a"  # field 1: data_points, resource, scope, resource_metrics
_METRICS = b"\x12"  # ScopeMetrics.metrics, ResourceMetrics.scope_metrics
_SCHEMA_URL = b"\x1a"
_NUMBER_ATTRIBUTE = b"\x3a"
_HISTOGRAM_ATTRIBUTE = b"\x4a"
_START = b"\x11"
_TIME = b"\x19"
_NUMBER_VALUE = b"\x21"
_HISTOGRAM_COUNT = b"\x21"
_HISTOGRAM_SUM = b"\x29"
_HISTOGRAM_BUCKETS = b"\x32"
_HISTOGRAM_BOUNDS = b"\x3a"
_NUMBER_FLAGS = b"\x40"
_HISTOGRAM_FLAGS = b"\x50"
_CUMULATIVE = b"\x10\x02"
_MONOTONIC = b"\x18\x01"

_NO_VALUE = bytes([DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK])
_DATA = {  # the field of Metric that holds the points, and what stands there beside them
    Instrument.GAUGE: (b"\x2a", b""),
    Instrument.COUNTER: (b"\x3a", _CUMULATIVE + _MONOTONIC),
    Instrument.UPDOWN: (b"\x3a", _CUMULATIVE),
    Instrument.HISTOGRAM: (b"\x4a", _CUMULATIVE),
}

fixed64 = struct.Struct("<Q").pack
double = struct.Struct("<d").pack


def varint(number: int) -> bytes:
    """A length."""
    if number < 128:
        return bytes((number,))
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    made.append(number)
    return bytes(made)


def delimited(tag: bytes, body: bytes) -> bytes:
    """A field of bytes."""
    return b"".join((tag, varint(len(body)), body))


@lru_cache(maxsize=2048)  # uids of claims are of use once; namespaces, classes and devices again and again
def key_value(name: str, value: str) -> bytes:
    """One attribute."""
    if name in INTEGERS and value.isdecimal():
        return KeyValue(key=name, value=AnyValue(int_value=int(value))).SerializeToString()
    text = value.encode("utf-8", "replace")
    return delimited(_MESSAGE, name.encode()) + delimited(_METRICS, delimited(_MESSAGE, text))


def attributes(pairs: Iterable[tuple[str, str]], *, histogram: bool = False) -> bytes:
    """The attributes of one point."""
    tag = _HISTOGRAM_ATTRIBUTE if histogram else _NUMBER_ATTRIBUTE
    parts: list[bytes] = []
    for name, value in pairs:
        body = key_value(name, value)
        parts += (tag, varint(len(body)), body)
    return b"".join(parts)


def start(wall_ns: int) -> bytes:
    """When a sum began; nothing where that is not known."""
    return _START + fixed64(wall_ns) if wall_ns else b""


def time(wall_ns: int) -> bytes:
    """Time of a point."""
    return _TIME + fixed64(wall_ns)


_NUMBER_BYTES = 18  # time and value


def number_head(attributes_and_start: bytes) -> bytes:
    """Everything of a point that stays the same between two requests; time and `number_value` follow."""
    return _MESSAGE + varint(len(attributes_and_start) + _NUMBER_BYTES) + attributes_and_start


def number_tail(wall_ns: int) -> bytes:
    """What stands between the head of a point and the eight bytes of its value, the same in all of one request."""
    return time(wall_ns) + _NUMBER_VALUE


def number_ended(attributes_and_start: bytes, wall_ns: int) -> bytes:
    """The point that ends a series: it has no value any more."""
    return delimited(_MESSAGE, attributes_and_start + time(wall_ns) + _NUMBER_FLAGS + _NO_VALUE)


def histogram_point(attributes_and_start: bytes, wall_ns: int, histogram: Histogram) -> bytes:
    """One point of a histogram."""
    counts, bounds = histogram.counts, histogram.bounds
    return delimited(_MESSAGE, b"".join((
        attributes_and_start,
        time(wall_ns),
        _HISTOGRAM_COUNT, fixed64(sum(counts)),
        _HISTOGRAM_SUM, double(histogram.sum),
        delimited(_HISTOGRAM_BUCKETS, struct.pack(f"<{len(counts)}Q", *counts)),
        delimited(_HISTOGRAM_BOUNDS, struct.pack(f"<{len(bounds)}d", *bounds)),
    )))  # fmt: skip


def histogram_ended(attributes_and_start: bytes, wall_ns: int) -> bytes:
    """The same end for a histogram."""
    return delimited(_MESSAGE, attributes_and_start + time(wall_ns) + _HISTOGRAM_FLAGS + _NO_VALUE)


@lru_cache(maxsize=1024)
def _described(metric: otel.Metric) -> bytes:
    return Metric(name=metric.name, description=metric.description, unit=metric.unit).SerializeToString()


def metric(described: otel.Metric, points: Sequence[bytes], size: int) -> list[bytes]:
    """A metric with its points, of `size` bytes in all, as a field of ScopeMetrics in pieces."""
    tag, beside = _DATA[described.instrument]
    head = _described(described)
    length = varint(size + len(beside))
    whole = varint(len(head) + len(tag) + len(length) + size + len(beside))
    return [b"".join((_METRICS, whole, head, tag, length)), *points, beside]


class Envelope:
    """What stands around the metrics of every request: the resource, and who measures."""

    def __init__(self, resource: Mapping[str, str], *, scope: str, version: str, schema_url: str) -> None:
        made = Resource(attributes=[
            KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in resource.items()
        ])  # fmt: skip
        measures = InstrumentationScope(name=scope, version=version)
        self._resource = delimited(_MESSAGE, made.SerializeToString())
        self._scope = delimited(_MESSAGE, measures.SerializeToString())
        self._schema = delimited(_SCHEMA_URL, schema_url.encode())

    def request(self, metrics: Sequence[bytes]) -> bytes:
        """An ExportMetricsServiceRequest of metrics in pieces; they are copied once."""
        scoped = len(self._scope) + sum(map(len, metrics)) + len(self._schema)
        before = self._resource + _METRICS + varint(scoped) + self._scope
        whole = len(self._resource) + len(_METRICS) + len(varint(scoped)) + scoped + len(self._schema)
        return b"".join(chain((_MESSAGE, varint(whole), before), metrics, (self._schema, self._schema)))
