"""What is sent to a real HTTP and a real gRPC server, and what happens while that does not take it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import grpc
import pytest

from claimscope.clock import SystemClock
from claimscope.export.otlp.encode import Batch, Encoder
from claimscope.export.otlp.push import Pusher
from claimscope.export.otlp.settings import GRPC, HTTP, OtlpSettings, TlsFiles
from claimscope.export.otlp.transport import Outcome, TlsError, Transport, Verdict, open_transport, retry_after
from claimscope.export.otlp.wire import Envelope
from claimscope.metrics.otel import OtelTable
from claimscope.metrics.own import own
from claimscope.metrics.tables import QUANTITIES, all_families
from claimscope.model import Sample
from controller_process import until as wait_until
from otlp_collector import Answer, Collector, grpc_collector, http_collector, points_of
from tls_files import Authority

ENVELOPE = Envelope({"service.name": "test"}, scope="claimscope", version="1", schema_url="")


@pytest.fixture(params=[HTTP, GRPC])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.asynccontextmanager
async def served(protocol: str, *answers: Answer) -> AsyncIterator[Collector]:
    async with grpc_collector() if protocol == GRPC else http_collector() as collector:
        collector.answers.extend(answers)
        yield collector


def settings(protocol: str, port: int, *, timeout_seconds: float = 10.0, gzip: bool = True,
             headers: tuple[tuple[str, str], ...] = (), tls: TlsFiles | None = None) -> OtlpSettings:  # fmt: skip
    scheme = "http" if tls is None else "https"
    endpoint = f"127.0.0.1:{port}" if protocol == GRPC else f"{scheme}://127.0.0.1:{port}/v1/metrics"
    return OtlpSettings(
        endpoint=endpoint, protocol=protocol, timeout_seconds=timeout_seconds, gzip=gzip, headers=headers, tls=tls
    )


def batch(value: float = 1.0, points: int = 1) -> Batch:
    encoder = Encoder(OtelTable(all_families(), QUANTITIES), ENVELOPE, began_ns=1)
    samples = [
        Sample(family="gpu_power_watts", labels=(("uuid", f"GPU-{number}"), ("gpu", "0")), value=value)
        for number in range(points)
    ]
    (made,) = encoder.requests(samples, 1_000)
    return made


async def attempt(settings: OtlpSettings, made: Batch | None = None) -> Outcome:
    transport = open_transport(settings)
    try:
        return await transport.send(transport.pack((made or batch()).body))
    finally:
        await transport.close()


def values(collector: Collector) -> list[float]:
    return [point.as_double for metric in collector.metrics() for point in metric.gauge.data_points]


def pusher(
    transport: Transport, *pushes: Sequence[Batch], interval_seconds: float = 60.0, retry_seconds: float = 300.0,
    queue_bytes: int = 1 << 20,
) -> Pusher:
    """Pushes these, one after the other, and then has nothing more to say."""
    left = iter(pushes)

    def requests() -> Iterator[Batch] | None:
        present = next(left, None)
        return None if present is None else iter(present)

    return pusher_of(requests, transport, interval_seconds=interval_seconds, retry_seconds=retry_seconds,
                     queue_bytes=queue_bytes)  # fmt: skip


def pusher_of(
    requests: Callable[[], Iterator[Batch] | None], transport: Transport, *, interval_seconds: float = 60.0,
    retry_seconds: float = 300.0, queue_bytes: int = 1 << 20,
) -> Pusher:
    return Pusher(
        requests=requests, transport=transport, interval_seconds=interval_seconds, clock=SystemClock(), own=own,
        destination="the test's Collector", jitter=lambda: 0.5, queue_bytes=queue_bytes, retry_seconds=retry_seconds,
        first_wait_seconds=0.01,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def running(made: Pusher) -> AsyncIterator[None]:
    task = asyncio.create_task(made.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def said(made: Pusher, family: str = "otlp_points_total") -> dict[str, float]:
    return {
        sample.labels[0][1] if sample.labels else "": sample.value
        for sample in made.samples()
        if sample.family == f"claimscope_agent_{family}" and sample.value
    }


async def until(condition: Callable[[], object]) -> None:
    await wait_until(condition, 20.0, lambda: "")


# One attempt.


async def test_a_request_arrives_compressed_and_whole(protocol: str) -> None:
    async with served(protocol) as collector:
        outcome = await attempt(settings(protocol, collector.port, headers=(("api-key", "k"),)), batch(42.5, 300))

    assert outcome == Outcome(verdict=Verdict.TAKEN)
    assert values(collector) == [42.5] * 300
    headers = collector.headers[0]
    assert headers["api-key"] == "k"
    assert headers["user-agent"].startswith("claimscope")
    if protocol == HTTP:
        assert headers["content-encoding"] == "gzip"
        assert collector.bytes_received < len(batch(42.5, 300).body) / 5


async def test_compression_can_be_left_out(protocol: str) -> None:
    async with served(protocol) as collector:
        outcome = await attempt(settings(protocol, collector.port, gzip=False))

    assert outcome.verdict is Verdict.TAKEN
    assert values(collector) == [1.0]
    assert "content-encoding" not in collector.headers[0]


async def test_5000_points_fit_a_grpc_server_as_it_is_by_default() -> None:
    made = batch(1.0, 5_000)
    async with served(GRPC) as collector:
        assert (await attempt(settings(GRPC, collector.port), made)).verdict is Verdict.TAKEN

    assert len(values(collector)) == 5_000


async def test_points_that_were_rejected_are_told(protocol: str) -> None:
    async with served(protocol, Answer(rejected=7, text="out of order\n")) as collector:
        outcome = await attempt(settings(protocol, collector.port))

    assert outcome == Outcome(verdict=Verdict.TAKEN, rejected_points=7, text="out of order")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_http_answers_that_are_worth_another_attempt(status: int) -> None:
    async with served(HTTP, Answer(status=status, retry_after="7")) as collector:
        outcome = await attempt(settings(HTTP, collector.port))

    assert (outcome.verdict, outcome.wait_seconds) == (Verdict.RETRY, 7.0)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 413, 500, 501])
async def test_http_answers_that_are_final(status: int) -> None:
    async with served(HTTP, Answer(status=status, text="no such tenant")) as collector:
        outcome = await attempt(settings(HTTP, collector.port))

    assert outcome.verdict is Verdict.REFUSED
    assert outcome.text.startswith(str(status))
    assert outcome.text.endswith("no such tenant")
    assert collector.attempts == 1


@pytest.mark.parametrize(
    ("code", "verdict"),
    [(code, Verdict.RETRY) for code in ("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE",
                                        "DATA_LOSS")]
    + [(code, Verdict.REFUSED) for code in ("UNKNOWN", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS",
                                            "PERMISSION_DENIED", "UNAUTHENTICATED", "FAILED_PRECONDITION",
                                            "UNIMPLEMENTED", "INTERNAL", "RESOURCE_EXHAUSTED")],
)  # fmt: skip
async def test_grpc_answers(code: str, verdict: Verdict) -> None:
    async with served(GRPC, Answer(code=grpc.StatusCode[code], text="so it is")) as collector:
        outcome = await attempt(settings(GRPC, collector.port))

    assert outcome == Outcome(verdict=verdict, text=f"{code} so it is")


async def test_a_grpc_server_that_says_when_to_come_again() -> None:
    answer = Answer(code=grpc.StatusCode.RESOURCE_EXHAUSTED, text="quota", retry_seconds=0.25)
    async with served(GRPC, answer) as collector:
        outcome = await attempt(settings(GRPC, collector.port))

    assert outcome == Outcome(verdict=Verdict.RETRY, text="RESOURCE_EXHAUSTED quota", wait_seconds=0.25)


async def test_a_collector_that_does_not_answer(protocol: str) -> None:
    async with served(protocol, Answer(silent=True)) as collector:
        outcome = await attempt(settings(protocol, collector.port, timeout_seconds=0.2))

    assert outcome.verdict is Verdict.RETRY


@contextlib.asynccontextmanager
async def _forgetful(port: int) -> AsyncIterator[tuple[int, list[bool]]]:
    """A way to a port whose connections are passed on while they are True and swallow everything from when they are
    not, as where a node in between has forgotten them."""
    alive: list[bool] = []
    pumps: set[asyncio.Task[None]] = set()

    async def pump(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65_536):
                    if alive[number]:
                        writer.write(data)
                        await writer.drain()
        finally:
            writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(alive)
        alive.append(True)
        back, forth = await asyncio.open_connection("127.0.0.1", port)
        for ends in ((reader, forth), (back, writer)):
            task = asyncio.create_task(pump(number, *ends))
            pumps.add(task)
            task.add_done_callback(pumps.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], alive
    finally:
        server.close()
        ended = list(pumps)
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)
        await server.wait_closed()


async def test_a_connection_that_died_in_silence_is_left_after_one_attempt(protocol: str) -> None:
    async with served(protocol) as collector, _forgetful(collector.port) as (port, alive):
        transport = open_transport(settings(protocol, port, timeout_seconds=1.0))
        body = transport.pack(batch().body)
        try:
            first = await transport.send(body)
            alive[0] = False
            second, third = await transport.send(body), await transport.send(body)
        finally:
            await transport.close()

    assert [first.verdict, second.verdict, third.verdict] == [Verdict.TAKEN, Verdict.RETRY, Verdict.TAKEN]
    assert len(alive) == 2


async def test_calls_beside_and_after_one_that_is_given_up_are_answered() -> None:
    async with served(GRPC, Answer(silent=True)) as collector:
        transport = open_transport(settings(GRPC, collector.port, timeout_seconds=0.5))
        try:
            given_up = asyncio.create_task(transport.send(batch().body))
            await collector.until(lambda: collector.attempts == 1)
            beside = await transport.send(batch().body)
            late = await given_up
            after = await transport.send(batch().body)
        finally:
            await transport.close()

    assert [beside.verdict, late.verdict, after.verdict] == [Verdict.TAKEN, Verdict.RETRY, Verdict.TAKEN]


async def test_a_collector_that_is_not_there(protocol: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        outcome = await attempt(settings(protocol, taken.getsockname()[1]))

    assert outcome.verdict is Verdict.RETRY
    assert outcome.text


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after(None, 0) is None
    assert retry_after("120", 0) == 120.0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT", 1_445_412_470.0) == 10.0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT", 1_445_412_490.0) == 0.0
    assert retry_after("soon", 0) is None


# TLS.


async def test_both_sides_show_certificates(protocol: str, openssl: str, tmp_path: Path) -> None:
    authority = Authority(openssl, tmp_path)
    ours = authority.sign("ours")
    tls = TlsFiles(authorities=authority.pair.certificate, certificate=ours.certificate, key=ours.key)
    async with _encrypted(protocol, authority) as collector:
        good = await attempt(settings(protocol, collector.port, tls=tls))
        nameless = await attempt(
            settings(protocol, collector.port, tls=TlsFiles(authorities=authority.pair.certificate))
        )

    assert good == Outcome(verdict=Verdict.TAKEN)
    assert nameless.verdict is Verdict.RETRY
    assert values(collector) == [1.0]


async def test_authorities_are_the_systems_unless_others_are_named(
    protocol: str, openssl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(openssl, tmp_path)
    ours = authority.sign("ours")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.pair.certificate))
    async with _encrypted(protocol, authority) as collector:
        tls = TlsFiles(certificate=ours.certificate, key=ours.key)

        assert await attempt(settings(protocol, collector.port, tls=tls)) == TAKEN


async def test_a_server_of_another_authority_gets_nothing_until_the_file_is_right(
    protocol: str, openssl: str, tmp_path: Path
) -> None:
    authority, other = Authority(openssl, tmp_path), Authority(openssl, tmp_path, "other")
    ours = authority.sign("ours")
    trusted = tmp_path / "trusted.pem"
    shutil.copy(other.pair.certificate, trusted)
    tls = TlsFiles(authorities=trusted, certificate=ours.certificate, key=ours.key)
    async with _encrypted(protocol, authority) as collector:
        transport = open_transport(settings(protocol, collector.port, tls=tls))
        try:
            before = await transport.send(transport.pack(batch().body))
            shutil.copy(authority.pair.certificate, trusted)
            after = await transport.send(transport.pack(batch().body))
        finally:
            await transport.close()

    assert before.verdict is Verdict.RETRY
    assert "certificate" in before.text.lower()
    assert after == Outcome(verdict=Verdict.TAKEN)


def test_files_that_are_no_certificates_are_said_at_once(protocol: str, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("no certificate")

    with pytest.raises(TlsError, match="no usable certificates"):
        open_transport(settings(protocol, 1, tls=TlsFiles(authorities=path)))


@contextlib.asynccontextmanager
async def _encrypted(protocol: str, authority: Authority) -> AsyncIterator[Collector]:
    """A Collector that wants a certificate of the same authority."""
    theirs = authority.sign("theirs")
    if protocol == GRPC:
        credentials = grpc.ssl_server_credentials(
            [(theirs.key.read_bytes(), theirs.certificate.read_bytes())],
            root_certificates=authority.pair.certificate.read_bytes(), require_client_auth=True,
        )
        async with grpc_collector(credentials) as collector:
            yield collector
    else:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.pair.certificate))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as Collectors, which are of Go
        context.load_cert_chain(theirs.certificate, theirs.key)
        context.verify_mode = ssl.CERT_REQUIRED
        async with http_collector(context) as collector:
            yield collector


# Pushing.


async def test_pushes_come_in_order_and_are_counted(protocol: str) -> None:
    async with served(protocol) as collector:
        made = pusher(
            open_transport(settings(protocol, collector.port)), [batch(1), batch(2)], [batch(3)], interval_seconds=0.02
        )
        async with running(made):
            await collector.until_requests(3)
            await until(lambda: said(made) == {"accepted": 3})

    assert set(values(collector)[:2]) == {1, 2}  # of one push, sent at once
    assert values(collector)[2:] == [3]
    assert said(made, "otlp_requests_total") == {"ok": 3}
    assert said(made, "otlp_last_success_timestamp_seconds")[""] > 1.6e9
    assert said(made, "otlp_encode_seconds_total")[""] > 0


async def test_a_request_is_sent_again_until_it_is_taken(protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    busy = Answer(status=503, code=grpc.StatusCode.UNAVAILABLE, text="busy")
    with caplog.at_level(logging.INFO):
        async with served(protocol, busy, busy, busy) as collector:
            made = pusher(open_transport(settings(protocol, collector.port)), [batch(1)])
            async with running(made):
                await collector.until_requests(1)
                await until(lambda: said(made))

    assert values(collector) == [1]
    assert said(made) == {"accepted": 1}
    assert said(made, "otlp_requests_total") == {"ok": 1, "retried": 3}
    assert [record.levelname for record in caplog.records if "OTLP" in record.message] == ["WARNING", "INFO"]


async def test_a_refused_request_is_lost_and_the_next_one_is_sent(protocol: str) -> None:
    no = Answer(status=400, code=grpc.StatusCode.INVALID_ARGUMENT)
    async with served(protocol, no) as collector:
        made = pusher(
            open_transport(settings(protocol, collector.port)), [batch(1, 5)], [batch(2)], interval_seconds=0.02
        )
        async with running(made):
            await collector.until_requests(1)
            await until(lambda: said(made) == {"refused": 5, "accepted": 1})

    assert values(collector) == [2]


async def test_rejected_points_are_counted_and_said_once(protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    partly = Answer(rejected=2, text="too old")
    async with served(protocol, partly, partly) as collector:
        made = pusher(open_transport(settings(protocol, collector.port)), [batch(1, 5), batch(2, 5)])
        async with running(made):
            await until(lambda: said(made) == {"accepted": 6, "rejected": 4})

    assert [record.getMessage() for record in caplog.records if "OTLP" in record.message] == [
        "OTLP to the test's Collector: 2 of 5 points of a request were rejected: too old"
    ]


async def test_a_request_that_is_tried_too_long_is_lost(protocol: str) -> None:
    busy = Answer(status=503, code=grpc.StatusCode.UNAVAILABLE)
    async with served(protocol, busy) as collector:
        transport = open_transport(settings(protocol, collector.port))
        made = pusher(transport, [batch(1, 3)], *[[batch(2)]] * 200, retry_seconds=0.0, interval_seconds=0.02)
        async with running(made):
            await collector.until_requests(1)
            await until(lambda: said(made).get("accepted") and said(made).get("expired", 0) >= 3)

    assert values(collector)[0] == 2  # the other never came


@dataclasses.dataclass(slots=True)
class Fake:
    """A transport that answers by a script, the last line of it again and again; None is an answer that fails here."""

    answers: list[Outcome | None]
    sent: list[tuple[float, bytes]] = dataclasses.field(default_factory=list)
    under_way: set[bytes] = dataclasses.field(default_factory=set)
    together: set[frozenset[bytes]] = dataclasses.field(default_factory=set)
    open: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)  # answers are given once it is set

    def pack(self, body: bytes) -> bytes:
        return body

    async def send(self, body: bytes) -> Outcome:
        self.sent.append((asyncio.get_running_loop().time(), body))
        self.under_way.add(body)
        self.together.add(frozenset(self.under_way))
        await self.open.wait()
        self.under_way.remove(body)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise RuntimeError("a fault of ours")
        return answer

    async def close(self) -> None:
        pass


TAKEN = Outcome(verdict=Verdict.TAKEN)


def fake(*answers: Outcome | None, opened: bool = True) -> Fake:
    made = Fake(list(answers))
    if opened:
        made.open.set()
    return made


def request(name: str) -> Batch:
    return Batch(body=name.encode(), points=1)


async def test_a_push_larger_than_the_queue_waits_and_loses_nothing() -> None:
    transport, taken = fake(TAKEN, opened=False), []
    requests = [request(f"{number:04}") for number in range(200)]

    def lazily() -> Iterator[Batch]:
        for each in requests:
            taken.append(each)
            yield each

    pushes = iter([lazily()])
    made = pusher_of(lambda: next(pushes, None), transport, queue_bytes=12)
    async with running(made):
        await until(lambda: len(transport.sent) == 2 and said(made, "otlp_queue_bytes") == {"": 12.0})
        assert len(taken) == 5  # two are being sent and three wait
        transport.open.set()
        await until(lambda: said(made) == {"accepted": 200})

    assert {body for _, body in transport.sent} == {each.body for each in requests}


async def test_two_requests_are_sent_at_once_but_never_of_two_pushes() -> None:
    transport = fake(TAKEN, opened=False)
    made = pusher(transport, [request("a1"), request("a2"), request("a3")], [request("b1"), request("b2")],
                  interval_seconds=0.001)  # fmt: skip
    async with running(made):
        await until(lambda: said(made, "otlp_queue_bytes") == {"": 6.0})
        transport.open.set()
        await until(lambda: said(made) == {"accepted": 5})

    assert max(map(len, transport.together)) == 2
    assert all(len({body[:1] for body in together}) == 1 for together in transport.together)


async def test_a_fault_of_the_push_is_said_and_it_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    transport = fake(None, TAKEN)
    made = pusher(transport, *[[request("a")]] * 50, interval_seconds=0.01)
    async with running(made):
        await until(lambda: said(made).get("accepted"))
        assert said(made, "otlp_restarts_total") == {"": 1}

    (fault,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "a fault of claimscope's own" in fault.getMessage()
    assert "a fault of ours" in caplog.text


async def test_requests_that_cannot_be_made_end_nothing_but_that_push() -> None:
    broken = iter([True])

    def requests() -> Iterator[Batch]:
        if next(broken, False):
            raise UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed")
        return iter([request("a")])

    made = pusher_of(requests, fake(TAKEN), interval_seconds=0.01)
    async with running(made):
        await until(lambda: said(made).get("accepted"))

    assert said(made, "otlp_restarts_total") == {"": 1}


async def test_nothing_is_sent_before_the_time_that_the_collector_asked_for() -> None:
    asked = Outcome(verdict=Verdict.RETRY, text="503", wait_seconds=0.4)
    transport = fake(asked, TAKEN)
    made = pusher(transport, *[[request("a")]] * 200, interval_seconds=0.01, retry_seconds=0.1)
    async with running(made):
        await until(lambda: said(made).get("accepted"))

    (first, _), (second, _) = transport.sent[:2]
    assert second - first >= 0.4
    assert said(made)["expired"] >= 1  # the one that could not wait so long


async def test_another_kind_of_trouble_is_said_and_the_same_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    transport = fake(
        Outcome(verdict=Verdict.RETRY, text="503 busy"), Outcome(verdict=Verdict.RETRY, text="503 still"),
        Outcome(verdict=Verdict.REFUSED, text="401 who are you"),
    )  # fmt: skip
    made = pusher(transport, *[[request("a")]] * 200, interval_seconds=0.01)
    async with running(made):
        await until(lambda: said(made).get("refused", 0) > 2)

    assert [record.getMessage() for record in caplog.records if "OTLP" in record.message] == [
        "OTLP to the test's Collector: a request was not taken, tried again: 503 busy",
        "OTLP to the test's Collector: a request was refused, its points are lost: 401 who are you",
    ]


async def test_a_dead_collector_fills_no_memory() -> None:
    transport = fake(TAKEN, opened=False)
    made = pusher(transport, *[[request("abcd")]] * 200, interval_seconds=0.001, queue_bytes=12)
    async with running(made):
        await until(lambda: said(made, "otlp_queue_bytes") == {"": 12.0})
        transport.open.set()
        await until(lambda: said(made).get("accepted", 0) > 4)


async def test_an_answer_that_is_none_is_said_and_ends_nothing(
    protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(protocol, Answer(raw=b"\xff\xff\xff")) as collector:
        made = pusher(
            open_transport(settings(protocol, collector.port)), [batch(1)], [batch(2)], interval_seconds=0.02
        )
        async with running(made):
            await until(lambda: said(made) == {"accepted": 2})

    assert "the answer is no ExportMetricsServiceResponse" in caplog.text
    assert said(made, "otlp_restarts_total") == {}


async def test_a_page_of_somebody_else_is_no_answer() -> None:
    async with served(HTTP, Answer(raw=b"<html>log in</html>", content_type="text/html"),
                      Answer(raw=b"", content_type="text/plain")) as collector:  # fmt: skip
        page = await attempt(settings(HTTP, collector.port))
        nothing = await attempt(settings(HTTP, collector.port))

    assert page.verdict is Verdict.REFUSED
    assert page.text == "200, but with text/html: no OTLP answer; is the URL right?"
    assert nothing == TAKEN  # as Prometheus answers


async def test_short_claims_leave_no_points_behind_at_a_real_server(protocol: str) -> None:
    encoder = Encoder(OtelTable(all_families(), QUANTITIES), ENVELOPE, began_ns=1)
    moments = iter(range(30))

    def requests() -> Iterator[Batch] | None:
        moment = next(moments, None)
        if moment is None:
            return None
        claims = [
            Sample(family="dra_claim_gpu_energy_joules_total", value=1.0, start_ns=moment + 1,
                   labels=(("claim_uid", f"{moment}-{number}"), ("uuid", "GPU-1"), ("attribution", "exclusive")))
            for number in range(100)
        ]  # fmt: skip
        return encoder.requests(claims, 1_000 + moment)

    async with served(protocol) as collector:
        made = pusher_of(requests, open_transport(settings(protocol, collector.port)), interval_seconds=0.01)
        async with running(made):
            await until(lambda: said(made) == {"accepted": 100 + 29 * 200})

    shown: set[object] = set()
    for metric in collector.metrics():
        for point in points_of(metric):
            (uid,) = [pair.value.string_value for pair in point.attributes if pair.key == "dra.claim.uid"]
            assert (uid in shown) is bool(point.flags)  # each begins once, and then ends once
            (shown.remove if point.flags else shown.add)(uid)
    assert shown == {f"29-{number}" for number in range(100)}


async def test_the_last_totals_are_pushed_at_the_end(protocol: str) -> None:
    async with served(protocol) as collector:
        made = pusher(open_transport(settings(protocol, collector.port)), [batch(1)], [batch(2)])
        async with running(made):
            await collector.until_requests(1)
            await until(lambda: said(made))

    assert values(collector) == [1, 2]


async def test_there_may_be_nothing_to_say_yet() -> None:
    async with served(HTTP) as collector:
        asked: list[None] = []
        made = pusher_of(lambda: asked.append(None), open_transport(settings(HTTP, collector.port)))
        async with running(made):
            await until(lambda: asked)

    assert collector.attempts == 0
