"""What does pushing 5,000 points of 12 attributes by OTLP cost, and pushing 100,000 claims? Does the loop stand still?

Every value differs from that of the push before, as between two snapshots; series stay, as they do while holders stay.
Beside it the same request built through the generated protobuf classes, which keep nothing between two requests. The
claims are those of a controller: one push of all of them, and the next one after a hundredth of them has changed. CPU
time of the least disturbed of several pushes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import resource
import sys
import time
from collections.abc import Callable
from types import MappingProxyType
from typing import TypeVar

import grpc
import grpc.aio
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, NumberDataPoint

from claimscope.claims.model import ClaimState, ClaimView, ClusterSnapshot, DeviceKey, HeldDevice, Workload
from claimscope.export.cluster import ClusterCollector
from claimscope.export.otlp.cluster import ClusterEncoder
from claimscope.export.otlp.encode import MAX_POINTS, Batch, Encoder
from claimscope.export.otlp.settings import GRPC, HTTP, OtlpSettings
from claimscope.export.otlp.transport import GrpcTransport, HttpTransport
from claimscope.export.otlp.wire import Envelope
from claimscope.metrics.otel import OtelTable
from claimscope.metrics.spec import Family, Type, Unit
from claimscope.model import Sample

BOUND_RATIO = 5.0
GRPC_LAG_MS = 50.0
FAMILIES = 50
ATTRIBUTES = 12
ROUNDS = 15
CLAIMS = 100_000
START_NS = 1_700_000_000_000_000_000

T = TypeVar("T")

_LABELS = tuple(f"label_{number}" for number in range(ATTRIBUTES))
_FAMILIES = {
    f"dra_bench_{number}_joules_total": Family(
        name=f"dra_bench_{number}_joules_total", help="A sum.", type=Type.COUNTER, unit=Unit.JOULES, labels=_LABELS
    )
    for number in range(FAMILIES)
}
_ENVELOPE = Envelope({"service.name": "bench"}, scope="claimscope", version="1", schema_url="")


def _samples(turn: int) -> list[Sample]:
    draw = random.Random(turn)
    return [
        Sample(family=name, labels=labels, value=turn * 1e6 + draw.random() * 1e5, start_ns=START_NS)
        for name in _FAMILIES
        for labels in _SETS
    ]


_SETS = [
    tuple((label, f"value-{series}-of-{label}-0123456789") for label in _LABELS)
    for series in range(MAX_POINTS // FAMILIES)
]  # fmt: skip


def _through_classes(samples: list[Sample], table: OtelTable, wall_ns: int) -> bytes:
    request = ExportMetricsServiceRequest()
    scoped = request.resource_metrics.add().scope_metrics.add()
    points, name = None, ""
    for sample in samples:
        stream = table.stream(sample.family, sample.labels)
        if stream is None:
            raise AssertionError(sample.family)
        if stream.metric.name != name or points is None:
            name = stream.metric.name
            metric = scoped.metrics.add(name=name, unit=stream.metric.unit, description=stream.metric.description)
            metric.sum.is_monotonic = True
            metric.sum.aggregation_temporality = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
            points = metric.sum.data_points
        points.append(
            NumberDataPoint(
                attributes=[
                    KeyValue(key=key, value=AnyValue(string_value=value))
                    for key, value in stream.attributes(sample.labels)
                ],
                start_time_unix_nano=START_NS, time_unix_nano=wall_ns, as_double=sample.value,
            )
        )  # fmt: skip
    return request.SerializeToString()


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    began = time.process_time()
    made = work()
    return time.process_time() - began, made


def points() -> dict[str, float]:
    """Figures of one request."""
    turns = [_samples(turn) for turn in range(ROUNDS)]
    table = OtelTable(_FAMILIES)
    encoder = Encoder(table, _ENVELOPE, began_ns=START_NS)
    transport = HttpTransport(OtlpSettings(endpoint="http://localhost/v1/metrics", protocol=HTTP))

    def push(turn: int) -> Batch:
        (batch,) = encoder.requests(turns[turn], START_NS + turn)
        return batch

    first, _ = _timed(lambda: push(0))
    times = [_timed(lambda turn=turn: push(turn)) for turn in range(1, ROUNDS)]  # type: ignore[misc]
    packing = [_timed(lambda: transport.pack(times[0][1].body)) for _ in range(ROUNDS)]
    classes = [
        _timed(lambda turn=turn: _through_classes(turns[turn], table, START_NS + turn))  # type: ignore[misc]
        for turn in range(1, 6)
    ]
    ours = ExportMetricsServiceRequest.FromString(times[0][1].body).resource_metrics[0].scope_metrics[0].metrics
    theirs = ExportMetricsServiceRequest.FromString(classes[0][1]).resource_metrics[0].scope_metrics[0].metrics
    if list(ours) != list(theirs):
        raise AssertionError("the two requests do not say the same")
    encode, gzip, slow = (min(each for each, _ in measured) for measured in (times, packing, classes))
    return {
        "otlp_points": float(times[0][1].points),
        "otlp_body_bytes": float(len(times[0][1].body)),
        "otlp_gzip_bytes": float(len(packing[0][1])),
        "otlp_encode_ms": encode * 1e3,
        "otlp_first_encode_ms": first * 1e3,
        "otlp_gzip_ms": gzip * 1e3,
        "otlp_cpu_ms": (encode + gzip) * 1e3,
        "otlp_generated_classes_ms": slow * 1e3,
        "otlp_speedup_ratio": slow / encode,
    }


def _view(number: int, state: ClaimState = ClaimState.RUNNING) -> ClaimView:
    key = DeviceKey("gpu.nvidia.com", f"node-{number // 8}", f"gpu-{number % 8}")
    return ClaimView(
        namespace=f"team-{number % 100}", name=f"train-{number}-gpus-x7k2p",
        uid=f"c0ffee00-0000-0000-0000-{number:012d}", state=state, referenced=True, deviceclass="gpu.nvidia.com",
        template="training", source="template", workload=Workload(kind="Job", name=f"train-{number}"),
        devices=(HeldDevice(key=key, request="gpu", node=key.pool, uuid=f"GPU-{number:036d}"),),
        pods=(f"train-{number}",), requested_devices=1, created_wall=1.7e9, allocated_wall=1.7e9 + 1,
    )  # fmt: skip


def claims() -> dict[str, float]:
    """Figures of all claims of a large cluster."""
    collector = ClusterCollector()
    table = OtelTable(collector.families)
    encoder = ClusterEncoder(collector, table, Encoder(table, _ENVELOPE, began_ns=START_NS))
    views = {view.uid: view for view in map(_view, range(CLAIMS))}
    changed = views | {
        uid: dataclasses.replace(view, state=ClaimState.RESERVED) for uid, view in list(views.items())[:: 100]
    }

    def push(present: dict[str, ClaimView], seconds: int) -> int:
        snapshot = ClusterSnapshot(
            wall_ns=START_NS + seconds * 10**9, leading=True, complete=True, claims=MappingProxyType(present)
        )
        return sum(batch.points for batch in encoder.requests(snapshot))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    push(views, 0)
    seconds, count = _timed(lambda: push(changed, 60))
    return {
        "otlp_claims": float(CLAIMS),
        "otlp_claims_points": float(count),
        "otlp_claims_cpu_s": seconds,
        "otlp_claims_more_memory_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def grpc_lag() -> dict[str, float]:
    """How long an event loop stands still while a large request is compressed and sent by gRPC."""

    async def measured() -> float:
        server = grpc.aio.server()

        async def export(body: bytes, context: object) -> bytes:
            del body, context
            return b""

        service = "opentelemetry.proto.collector.metrics.v1.MetricsService"
        handlers = {"Export": grpc.unary_unary_rpc_method_handler(export)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        transport = GrpcTransport(OtlpSettings(endpoint=f"127.0.0.1:{port}", protocol=GRPC))
        body = bytes(random.Random(1).choices(b"abcdefghijklmnop", k=3 << 20))  # hard to compress, as large as they get
        await transport.send(b"")
        longest, sending = 0.0, asyncio.create_task(transport.send(body))
        while not sending.done():
            before = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - before)
        await transport.close()
        await server.stop(None)
        return longest

    return {"otlp_grpc_loop_lag_ms": min(asyncio.run(measured()) for _ in range(3)) * 1e3}


UNITS = {
    "otlp_grpc_loop_lag_ms": ("ms", f"<={GRPC_LAG_MS:.0f}"),
    "otlp_points": ("points", ""),
    "otlp_body_bytes": ("bytes", ""),
    "otlp_gzip_bytes": ("bytes", ""),
    "otlp_encode_ms": ("ms", ""),
    "otlp_first_encode_ms": ("ms", ""),
    "otlp_gzip_ms": ("ms", ""),
    "otlp_cpu_ms": ("ms", ""),
    "otlp_generated_classes_ms": ("ms", ""),
    "otlp_speedup_ratio": ("x", f">={BOUND_RATIO:.0f}"),
    "otlp_claims": ("claims", ""),
    "otlp_claims_points": ("points", ""),
    "otlp_claims_cpu_s": ("s", ""),
    "otlp_claims_more_memory_mib": ("MiB", "<=64"),
}

if __name__ == "__main__":
    at_scale = claims()  # first, so that what it adds to the memory shows
    for name, value in (points() | at_scale | grpc_lag()).items():
        unit, bound = UNITS[name]
        sys.stdout.write(f"{name} {value:.4g} {unit} {bound}\n")
