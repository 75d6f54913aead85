"""What a Collector or a controller may answer: an outcome or one line of complaint, and bounded memory."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)

from claimscope.claims.explain import Explanation
from claimscope.export.otlp import transport
from claimscope.export.otlp.settings import OtlpSettings
from claimscope.export.otlp.transport import HttpTransport, Outcome, Verdict, retry_after
from claimscope.web import client
from fuzzing import JSON_WORDS, QUICK, SECRET, SLOW, deep, mutated

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: "
PARTIAL = ExportMetricsServiceResponse(
    partial_success=ExportMetricsPartialSuccess(rejected_data_points=7, error_message="too old")
).SerializeToString()
_DETAIL = AnyMessage()
_DETAIL.Pack(RetryInfo(retry_delay=Duration(seconds=3)))
REFUSED = Status(code=14, message="overloaded", details=[_DETAIL]).SerializeToString()
ANSWERS = (
    HEAD + str(len(PARTIAL)).encode() + b"\r\n\r\n" + PARTIAL,
    b"HTTP/1.1 503 Busy\r\nRetry-After: 5\r\nContent-Type: application/x-protobuf\r\nContent-Length: "
    + str(len(REFUSED)).encode() + b"\r\n\r\n" + REFUSED,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
    b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
)  # fmt: skip
WORDS = (b"\r\n", b"\r\n\r\n", b"Content-Length: 99999999999\r\n", b"Content-Encoding: br\r\n", b"\x00", b"HTTP/1.1 ")


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """A server that answers every request with these bytes and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # it hung up
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def sent(answer: bytes) -> Outcome:
    async with answering(answer) as url:
        settings = OtlpSettings(
            endpoint=f"{url}/v1/metrics", protocol="http/protobuf", timeout_seconds=5.0, gzip=False,
            headers=(("authorization", SECRET),), tls=None,
        )
        way = HttpTransport(settings)
        try:
            return await way.send(b"x")
        finally:
            await way.close()


@SLOW
@given(mutated(ANSWERS, WORDS))
def test_whatever_a_collector_answers_is_an_outcome(answer: bytes) -> None:
    outcome = asyncio.run(sent(answer))
    assert isinstance(outcome.verdict, Verdict)
    assert outcome.rejected_points >= 0
    assert len(outcome.text) <= 400
    assert outcome.text.isprintable()
    assert outcome.wait_seconds is None or 0 <= outcome.wait_seconds <= 86_400
    assert SECRET not in outcome.text


async def test_an_answer_that_unpacks_to_gigabytes_is_read_to_its_beginning() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = b"\x00" * (1 << 20)
    bomb = b"".join(packer.compress(zeros) for _ in range(64)) + packer.flush()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Encoding: gzip\r\nContent-Length: "
    outcome = await sent(head + str(len(bomb)).encode() + b"\r\n\r\n" + bomb)
    assert outcome.text == "the answer is no ExportMetricsServiceResponse"


@QUICK
@given(mutated((REFUSED,)) | st.binary(max_size=60))
def test_any_details_of_grpc_give_a_pause_or_none(data: bytes) -> None:
    wait = transport._retry_info((("grpc-status-details-bin", data),))
    assert wait is None or 0 <= wait <= 86_400


def test_the_details_as_they_are() -> None:
    assert transport._retry_info((("grpc-status-details-bin", REFUSED),)) == 3.0


@QUICK
@given(
    st.text(max_size=40) | mutated((b"Fri, 31 Dec 1999 23:59:59 GMT", b"120")).map(lambda raw: raw.decode("latin-1"))
)
def test_any_retry_after_gives_a_pause_or_none(text: str) -> None:
    wait = retry_after(text, 946_684_000.0)
    assert wait is None or 0 <= wait <= 86_400


EXPLAINED = b'{"namespace":"a","name":"b","exists":true,"verdict":"claim a/b is pending","evidence":["x"],"devices":[]}'


async def explained(body: bytes) -> Explanation | str:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
    async with answering(head + str(len(body)).encode() + b"\r\n\r\n" + body) as url:
        try:
            return await client.explanation(url, "a", "b", token=SECRET)
        except client.ClientError as error:
            return str(error)


@SLOW
@given(mutated((EXPLAINED,), JSON_WORDS) | st.integers(900, 3_000).map(deep))
def test_whatever_a_controller_explains_is_shown_or_refused_in_a_line(body: bytes) -> None:
    found = asyncio.run(explained(body))
    assert isinstance(found, Explanation) or SECRET not in found


@pytest.mark.parametrize("name", ["a/b", "../x", "a\r\nX-Evil: 1", "ä", "%2e%2e", "a" * 300, ""])
async def test_a_name_stays_one_part_of_the_path(name: str) -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        length = str(len(EXPLAINED)).encode()
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: " + length + b"\r\n\r\n" + EXPLAINED)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        await client.explanation(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "ns", name)
    target = asked[0].split(b" ")[1]
    assert target.startswith(b"/api/v1/claims/ns/")
    assert target.count(b"/") == 5
    assert b"X-Evil" not in asked[0].split(b"\r\n", 1)[1]
