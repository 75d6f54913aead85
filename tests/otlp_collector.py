"""OpenTelemetry Collectors for tests: a real HTTP and a real gRPC server that decode what they are sent.

Each answers as it is told to and keeps every request that it took.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import grpc
import grpc.aio
from aiohttp import web
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import HistogramDataPoint, Metric, NumberDataPoint

SERVICE = "opentelemetry.proto.collector.metrics.v1.MetricsService"
Attributes = dict[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a Collector answers to one request."""

    status: int = 200
    code: grpc.StatusCode = grpc.StatusCode.OK
    text: str = ""
    rejected: int = 0
    retry_after: str | None = None  # HTTP
    retry_seconds: float | None = None  # gRPC: RetryInfo
    silent: bool = False  # never answers
    raw: bytes | None = None  # in place of an ExportMetricsServiceResponse
    content_type: str = "application/x-protobuf"  # HTTP

    @property
    def packed(self) -> bytes:
        if self.raw is not None:
            return self.raw
        partial = ExportMetricsPartialSuccess(rejected_data_points=self.rejected, error_message=self.text)
        return ExportMetricsServiceResponse(partial_success=partial).SerializeToString()


@dataclass(slots=True)
class Collector:
    """What was sent, and what is answered: `answers` first, then 200."""

    answers: deque[Answer] = field(default_factory=deque)
    requests: list[ExportMetricsServiceRequest] = field(default_factory=list)  # those that were taken
    attempts: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)  # of each attempt, names in lower case
    bytes_received: int = 0
    port: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, body: bytes, headers: dict[str, str]) -> Answer:
        answer = self.answers.popleft() if self.answers else Answer()
        self.attempts += 1
        self.headers.append(headers)
        if answer.silent:
            self.changed.set()
            await asyncio.Event().wait()
        if answer.status == 200 and answer.code is grpc.StatusCode.OK:
            self.requests.append(ExportMetricsServiceRequest.FromString(body))
        self.changed.set()
        return answer

    async def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def until_requests(self, count: int) -> None:
        await self.until(lambda: len(self.requests) >= count)

    def metrics(self) -> Iterator[Metric]:
        for request in self.requests:
            yield from metrics_of(request)


def metrics_of(request: ExportMetricsServiceRequest) -> Iterator[Metric]:
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            yield from scope.metrics


def points_of(metric: Metric) -> list[NumberDataPoint] | list[HistogramDataPoint]:
    match metric.WhichOneof("data"):
        case "gauge":
            return list(metric.gauge.data_points)
        case "sum":
            return list(metric.sum.data_points)
        case "histogram":
            return list(metric.histogram.data_points)
        case other:
            raise AssertionError(f"{metric.name} is a {other}")


def attributes(pairs: object) -> Attributes:
    """Attributes as a dict; a key that stands there twice is a fault."""
    made: Attributes = {}
    for pair in pairs:  # type: ignore[attr-defined]  # a repeated field
        assert isinstance(pair, KeyValue)
        assert pair.key not in made, pair.key
        kind = pair.value.WhichOneof("value")
        assert kind in ("string_value", "int_value"), kind
        made[pair.key] = pair.value.int_value if kind == "int_value" else pair.value.string_value
    return made


def resource_of(request: ExportMetricsServiceRequest) -> Attributes:
    (resource,) = request.resource_metrics
    return attributes(resource.resource.attributes)


@contextlib.asynccontextmanager
async def http_collector(tls: ssl.SSLContext | None = None) -> AsyncIterator[Collector]:
    """OTLP over HTTP at /v1/metrics."""
    collector = Collector()

    async def export(request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        headers = {name.lower(): value for name, value in request.headers.items()}
        collector.bytes_received += request.content_length or 0
        answer = await collector.take(await request.read(), headers)  # aiohttp has undone Content-Encoding
        more = {} if answer.retry_after is None else {"Retry-After": answer.retry_after}
        body = answer.packed if answer.status == 200 else Status(code=3, message=answer.text).SerializeToString()
        return web.Response(status=answer.status, body=body, content_type=answer.content_type, headers=more)

    application = web.Application(client_max_size=64 << 20)
    application.router.add_post("/v1/metrics", export)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    collector.port = runner.addresses[0][1]
    try:
        yield collector
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def grpc_collector(credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[Collector]:
    """OTLP over gRPC, with the limits of a server as they are by default."""
    collector = Collector()

    async def export(body: bytes, context: grpc.aio.ServicerContext) -> bytes:  # type: ignore[type-arg]
        headers = {str(key): str(value) for key, value in context.invocation_metadata() or ()}
        answer = await collector.take(body, headers)
        if answer.code is not grpc.StatusCode.OK:
            if answer.retry_seconds is not None:
                status = Status(code=answer.code.value[0], message=answer.text)
                info = RetryInfo(retry_delay=Duration(nanos=round(answer.retry_seconds * 1e9)))
                status.details.add().Pack(info)
                context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            await context.abort(answer.code, answer.text)
        return answer.packed

    handler: Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]] = export  # type: ignore[type-arg]
    server = grpc.aio.server()
    methods = {"Export": grpc.unary_unary_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    if credentials is None:
        collector.port = server.add_insecure_port("127.0.0.1:0")
    else:
        collector.port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(None)
