"""How does one request get to a Collector, and what did the Collector say to it? HTTP and gRPC.

Which answers are worth another attempt is OTLP's rule: https://opentelemetry.io/docs/specs/otlp/ (retryable response
codes, RetryInfo, Retry-After, partial success).
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import enum
import logging
import os
import ssl
import threading
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from claimscope.clienttls import client_context
from claimscope.export.otlp.settings import GRPC, OtlpSettings, TlsFiles

logger = logging.getLogger(__name__)

_ANSWER_BYTES = 1 << 16  # of an answer that is read; a good one is a handful
_TEXT_CHARACTERS = 300
_RETRYABLE_HTTP = frozenset({429, 502, 503, 504})
_RETRYABLE_GRPC = frozenset({
    grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED,
    grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS,
})  # fmt: skip
_PROTOBUF = "application/x-protobuf"
_LONGEST_WAIT_SECONDS = 86_400.0
_EXPORT = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"


class Verdict(enum.Enum):
    """What came of one attempt."""

    TAKEN = "taken"
    RETRY = "retry"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one attempt, in detail."""

    verdict: Verdict
    rejected_points: int = 0  # of a request that was taken in part
    text: str = ""  # for people: what was answered
    wait_seconds: float | None = None  # what the Collector asks for before the next attempt


class Transport(Protocol):
    """One way to a Collector."""

    def pack(self, body: bytes) -> bytes:
        """A request as it waits to be sent; may take milliseconds."""

    async def send(self, body: bytes) -> Outcome:
        """One attempt with a packed request; never raises for what the other side does."""

    async def close(self) -> None:
        """Lets connections go."""


class TlsError(Exception):
    """Certificates that cannot be used: which, and why."""


def open_transport(settings: OtlpSettings) -> Transport:
    """The transport that settings ask for; raises TlsError."""
    return GrpcTransport(settings) if settings.protocol == GRPC else HttpTransport(settings)


Signature = tuple[tuple[int, int, int], ...]


def _signature(files: TlsFiles) -> Signature:
    """Changes when a file does; a file that is being replaced shows as zeros."""
    made: list[tuple[int, int, int]] = []
    for path in files.paths:
        try:
            found = os.stat(path)
            made.append((found.st_mtime_ns, found.st_size, found.st_ino))
        except OSError:
            made.append((0, 0, 0))
    return tuple(made)


def _context(files: TlsFiles) -> ssl.SSLContext:
    try:
        context = client_context(None if files.authorities is None else str(files.authorities))
        if files.certificate is not None:
            context.load_cert_chain(str(files.certificate), None if files.key is None else str(files.key))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise TlsError(f"{', '.join(map(str, files.paths))}: no usable certificates: {error}") from error
    return context


def _printable(text: str) -> str:
    """Text of the other side, fit for a log."""
    return "".join(char if char.isprintable() else " " for char in text[:_TEXT_CHARACTERS]).strip()


def _taken(body: bytes) -> Outcome:
    try:
        partial = ExportMetricsServiceResponse.FromString(body).partial_success
    except DecodeError:
        return Outcome(verdict=Verdict.TAKEN, text="the answer is no ExportMetricsServiceResponse")
    return _partial(partial.rejected_data_points, partial.error_message)


def _partial(rejected: int, text: str) -> Outcome:
    return Outcome(verdict=Verdict.TAKEN, rejected_points=max(0, rejected), text=_printable(text))


def retry_after(text: str | None, now: float) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return min(float(text), _LONGEST_WAIT_SECONDS)
    parsed = email.utils.parsedate_tz(text)
    if parsed is None:
        return None
    try:
        return min(max(0.0, email.utils.mktime_tz(parsed) - now), _LONGEST_WAIT_SECONDS)
    except (OverflowError, ValueError):
        return None


class HttpTransport:
    """POST of protobuf."""

    def __init__(self, settings: OtlpSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._signature: Signature = ()
        self._context: ssl.SSLContext | None = None
        if settings.tls is not None:
            self._signature = _signature(settings.tls)
            self._context = _context(settings.tls)

    def pack(self, body: bytes) -> bytes:
        """Compressed where that is wanted."""
        if not self._settings.gzip:
            return body
        compressor = zlib.compressobj(1, zlib.DEFLATED, 31)  # level 1: a third of the time for a tenth more bytes
        return compressor.compress(body) + compressor.flush()

    async def send(self, body: bytes) -> Outcome:
        """One POST."""
        settings = self._settings
        headers = {"user-agent": "claimscope", **dict(settings.headers), "content-type": _PROTOBUF}
        if settings.gzip:
            headers["content-encoding"] = "gzip"
        try:
            async with self._opened().post(
                settings.endpoint, data=body, headers=headers, ssl=self._tls(), allow_redirects=False
            ) as response:
                return _of_http(response, await _beginning(response.content))
        except TimeoutError:
            return Outcome(verdict=Verdict.RETRY, text=f"no answer within {settings.timeout_seconds:g} s")
        except aiohttp.ClientResponseError as error:  # its text has the URL, whose query may be a secret
            return Outcome(verdict=Verdict.RETRY, text=_printable(error.message))
        except aiohttp.InvalidURL as error:  # likewise
            return Outcome(verdict=Verdict.RETRY, text=type(error).__name__)
        except (aiohttp.ClientError, ValueError) as error:
            return Outcome(verdict=Verdict.RETRY, text=_printable(str(error) or type(error).__name__))

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            # No proxy and no .netrc by accident: metrics carry names of claims.
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._settings.timeout_seconds), trust_env=False,
            )
        return self._session

    def _tls(self) -> ssl.SSLContext | bool:
        files = self._settings.tls
        if files is None:
            return True
        seen = _signature(files)
        if seen != self._signature:
            self._signature = seen
            try:
                self._context = _context(files)
            except TlsError as error:
                logger.error("%s; those of before stay in use", error)
        return self._context or True

    async def close(self) -> None:
        """Lets connections go."""
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _beginning(content: aiohttp.StreamReader) -> bytes:
    """An answer, as far as it is read."""
    body = b""
    while len(body) < _ANSWER_BYTES and (more := await content.read(_ANSWER_BYTES - len(body))):
        body += more
    return body


def _of_http(response: aiohttp.ClientResponse, body: bytes) -> Outcome:
    code = response.status
    if 200 <= code < 300:
        # A page that somebody else answers with, a login for example, is no sign that the points arrived.
        if body and "Content-Type" in response.headers and response.content_type != _PROTOBUF:
            kind = _printable(response.content_type)
            return Outcome(verdict=Verdict.REFUSED, text=f"{code}, but with {kind}: no OTLP answer; is the URL right?")
        return _taken(body)
    text = _printable(f"{code} {response.reason or ''} {_status_text(body, response.content_type)}")
    if code in _RETRYABLE_HTTP:
        return Outcome(
            verdict=Verdict.RETRY, text=text, wait_seconds=retry_after(response.headers.get("Retry-After"), time.time())
        )
    return Outcome(verdict=Verdict.REFUSED, text=text)


def _status_text(body: bytes, content_type: str) -> str:
    """What an error's body says: a google.rpc.Status, or text."""
    if content_type == _PROTOBUF:
        try:
            return str(Status.FromString(body).message)
        except DecodeError:
            return ""
    return body.decode("utf-8", "replace")


class GrpcTransport:
    """MetricsService/Export. The bytes are sent as they are: what is encoded already is not built again.

    The channel is gRPC's blocking one, used from threads: it compresses in the thread that starts a call, and for
    requests of MiB that is a third of a second, which an event loop may not stand still.
    """

    def __init__(self, settings: OtlpSettings) -> None:
        self._settings = settings
        self._channel: grpc.Channel | None = None
        self._calls: dict[grpc.Channel, int] = {}  # that are under way
        self._opening = threading.Lock()
        self._signature: Signature = ()
        if settings.tls is not None:
            _context(settings.tls)  # says what is wrong with a file; gRPC would only fail to connect
            self._signature = _signature(settings.tls)

    def pack(self, body: bytes) -> bytes:
        """As it is: gRPC compresses by itself."""
        return body

    async def send(self, body: bytes) -> Outcome:
        """One call."""
        try:
            channel, call = await asyncio.to_thread(self._begin, body)
        except TlsError as error:
            return Outcome(verdict=Verdict.RETRY, text=str(error))
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def end(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before the call
                loop.call_soon_threadsafe(over.set)

        call.add_done_callback(end)
        try:
            await over.wait()
        finally:
            call.cancel()  # does nothing to one that is over
            await asyncio.to_thread(self._over, channel, given_up=call.code() is grpc.StatusCode.DEADLINE_EXCEEDED)
        return _taken(call.result()) if call.code() is grpc.StatusCode.OK else _of_grpc(call)

    # grpc has no public name for a call that is a future too.
    def _begin(self, body: bytes) -> tuple[grpc.Channel, Any]:
        """In a thread. No deserializer: what it made of an answer that is none would not come back as an outcome."""
        with self._opening:
            channel = self._opened()
            self._calls[channel] = self._calls.get(channel, 0) + 1
            return channel, channel.unary_unary(_EXPORT, None, None).future(
                body, timeout=self._settings.timeout_seconds, metadata=self._settings.headers
            )

    def _over(self, channel: grpc.Channel, *, given_up: bool) -> None:
        """After a call. One that nobody answered in time may be lost on a connection that is dead without anybody
        having said so, as after a node in between forgot it: TCP would find out in a quarter of an hour, and HTTP/2
        pings below five minutes are what Go servers hang up for (grpc-go, keepalive.EnforcementPolicy). So the next
        call gets a connection of its own."""
        with self._opening:
            self._calls[channel] = self._calls.get(channel, 1) - 1
            if given_up and channel is self._channel:
                self._channel = None
            self._close_unused(channel)

    def _close_unused(self, channel: grpc.Channel) -> None:
        if channel is not self._channel and not self._calls.get(channel):
            self._calls.pop(channel, None)
            channel.close()

    def _opened(self) -> grpc.Channel:
        files = self._settings.tls
        if files is not None and self._channel is not None and _signature(files) != self._signature:
            former, self._channel = self._channel, None
            self._close_unused(former)
        if self._channel is None:
            compression = grpc.Compression.Gzip if self._settings.gzip else grpc.Compression.NoCompression
            options = (
                ("grpc.enable_http_proxy", 0),
                ("grpc.primary_user_agent", "claimscope"),
                ("grpc.max_reconnect_backoff_ms", 30_000),  # a Collector that is back is found soon
                ("grpc.use_local_subchannel_pool", 1),  # else a new channel takes over the connection of one before
                ("grpc.max_receive_message_length", _ANSWER_BYTES),
            )
            if files is None:
                self._channel = grpc.insecure_channel(self._settings.endpoint, options, compression)
            else:
                self._signature = _signature(files)
                credentials = _credentials(files)
                self._channel = grpc.secure_channel(self._settings.endpoint, credentials, options, compression)
        return self._channel

    async def close(self) -> None:
        """Lets the connection go."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._opening:
            for channel in {*self._calls, *([] if self._channel is None else [self._channel])}:
                channel.close()
            self._calls.clear()
            self._channel = None


def _credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    try:
        authorities = files.authorities or _system_authorities()
        read = [None if path is None else path.read_bytes() for path in (authorities, files.key, files.certificate)]
    except OSError as error:
        raise TlsError(f"{error.filename}: {error.strerror}") from error
    return grpc.ssl_channel_credentials(*read)


def _system_authorities() -> Path | None:
    """The bundle that OpenSSL uses, SSL_CERT_FILE included; left to itself gRPC takes one that it brought along."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile is not None:
        return Path(paths.cafile)
    bundle = Path(paths.capath or "/etc/ssl/certs", "ca-certificates.crt")
    return bundle if bundle.is_file() else None


def _of_grpc(call: Any) -> Outcome:  # noqa: ANN401 - a failed call: grpc.Call and grpc.Future
    code = call.code()
    wait = _retry_info(call.trailing_metadata() or ())
    text = _printable(f"{code.name} {call.details() or ''}")
    # A server that is out of something for good says no more; one that will have it again says when.
    if code in _RETRYABLE_GRPC or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and wait is not None):
        return Outcome(verdict=Verdict.RETRY, text=text, wait_seconds=wait)
    return Outcome(verdict=Verdict.REFUSED, text=text)


def _retry_info(metadata: Iterable[Any]) -> float | None:
    """Seconds of the RetryInfo among the trailing metadata, which are pairs of name and value."""
    for key, value in metadata:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                details = Status.FromString(value).details
                for detail in details:
                    info = RetryInfo()
                    if detail.Unpack(info):
                        wait = float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
                        return min(max(0.0, wait), _LONGEST_WAIT_SECONDS)
            except DecodeError:
                return None
    return None
