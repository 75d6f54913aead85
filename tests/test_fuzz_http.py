"""What anybody may send to the web servers: refused or answered, and the next request is served all the same."""

from __future__ import annotations

import asyncio
import logging
import re
import resource
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claimscope.cel.quantity import Quantity, QuantityError
from claimscope.cel.semver import Semver, SemverError
from claimscope.claims.explain import Explanation
from claimscope.export.cluster import ClusterCollector
from claimscope.export.collect import Collector
from claimscope.metrics import controller
from claimscope.web.application import make_application
from claimscope.web.cluster import make_cluster_application
from claimscope.web.negotiation import Format, accepts_gzip, choose_format, parse, wants_json
from claimscope.web.review.sight import Sight
from claimscope.web.review.visible import visible_text
from claimscope.web.site import Check, Readiness, RunningSite, WebCounters, start_site
from cluster_data import CLUSTER
from exposition import QUANTITIES, SNAPSHOT
from fuzzing import QUICK, SECRET, SLOW, TIMES, mutated

T = TypeVar("T")
READY = Readiness(checks=(Check(name="all", ok=True),))
REQUESTS = (
    b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: text/plain;version=0.0.4\r\nAccept-Encoding: gzip\r\n\r\n",
    b"GET /api/v1/claims?limit=5&state=running HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + SECRET.encode()
    + b"\r\nConnection: close\r\n\r\n",
    b"GET /api/v1/claims/team-a/x%2Fy HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
    b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n0123456789",
    b"GET / HTTP/1.0\r\nRange: bytes=0-1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
)  # fmt: skip
WORDS = (
    b"\r\n", b"\r\n\r\n", b"\n", b"\x00", b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999\r\n",
    b"Transfer-Encoding: chunked\r\n", b"ffffffffffffffff\r\n", b"HTTP/9.9", b"%00%ff%", b"../../", b" ", b"\t", b":",
    b"Host: b\r\n", b"GET http://[::1/x HTTP/1.1\r\n", b"\xff\xfe", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01", b"Content-Encoding: gzip\r\n",
)  # fmt: skip
GOOD = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


_KNOWN = re.compile(rb"HTTP/1\.[01] (100|200|400|404|405|408|411|413|414|417|426|431)\b")


class Server:
    """A part on a loop of its own that a property drives from outside."""

    def __init__(self, loop: asyncio.AbstractEventLoop, site: RunningSite) -> None:
        self.loop = loop
        self.site = site

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def send(self, raw: bytes) -> bytes:
        """What comes back for raw bytes, after which the client hangs up."""
        return self.do(self.ask(raw, hangs_up=True))

    def serves(self) -> bool:
        """Whether a good request is answered."""
        return self.do(self.ask(GOOD)).startswith(b"HTTP/1.1 200 OK")

    async def ask(self, raw: bytes, *, hangs_up: bool = False) -> bytes:
        """What comes back until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.site.port)
        answer = b""
        try:
            writer.write(raw)
            if hangs_up:
                writer.write_eof()
            async with asyncio.timeout(5):
                answer = await reader.read()
        except ConnectionError:
            pass  # it closed before it had read all: that is an answer
        finally:
            writer.close()
        return answer


def explain(namespace: str, name: str) -> Explanation:
    return Explanation(namespace=namespace, name=name, exists=False, verdict=f"claim {namespace}/{name}")


@contextmanager
def running(part: str) -> Iterator[Server]:
    loop = asyncio.new_event_loop()
    if part == "agent":
        application = make_application(
            snapshot=lambda: SNAPSHOT, collector=Collector(QUANTITIES), readiness=lambda: READY, version="0",
        )
    else:
        application = make_cluster_application(
            snapshot=lambda: CLUSTER, collector=ClusterCollector(), readiness=lambda: READY, explain=explain,
            version="0", counters=WebCounters(own=controller.own),
        )
    site = loop.run_until_complete(start_site(application, "127.0.0.1:0"))
    try:
        yield Server(loop, site)
    finally:
        loop.run_until_complete(site.close())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@pytest.mark.parametrize("part", ["agent", "controller"])
def test_any_bytes_are_answered_or_refused_and_the_next_request_is_served(
    part: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running(part) as server:

        @settings(QUICK, max_examples=400 * TIMES)
        @given(mutated(REQUESTS, WORDS) | st.binary(max_size=200))
        def attack(raw: bytes) -> None:
            answer = server.send(raw)
            assert SECRET.encode() not in answer
            assert answer == b"" or _KNOWN.match(answer), answer
            assert server.serves()

        with caplog.at_level(logging.WARNING):
            attack()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR], caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("raw", "answer"),
    [  # found by the property above
        (REQUESTS[1].replace(b"Host:", b"Host \x01:"), b"400"),
        (REQUESTS[1].replace(b"Host:", b"Expect: \x9d\xff\r\nHost:"), b"417"),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: \x9d\r\n\r\n", b"417"),
    ],
)
def test_a_bad_request_is_no_line_in_the_log(raw: bytes, answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with running("agent") as server, caplog.at_level(logging.INFO, "aiohttp"):
        found = server.do(server.ask(raw))
    assert found.split(b" ")[1] == answer
    assert b"\r\nServer: claimscope\r\n" in found
    assert caplog.text == ""


@pytest.mark.parametrize("part", ["agent", "controller"])
@pytest.mark.parametrize(
    "raw",
    [
        b"GET /" + b"a" * (8 << 20), b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * (8 << 20),
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * (1 << 20),
        b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n" + b"a" * (8 << 20),
        b"POST /metrics HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"fffff\r\n" + b"a" * (8 << 20),
        GOOD.replace(b"Connection: close\r\n", b"") * 5_000,
    ],
    ids=["path", "header", "headers", "body", "chunk", "pipelined"],
)
def test_too_much_is_not_kept(part: str, raw: bytes) -> None:
    with running(part) as server:
        assert server.serves()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        server.send(raw)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert server.serves()
    # The client's own buffer of what it could not send is in this process as well.
    assert grown_kib < 40 << 10


@SLOW
@given(mutated((b"limit=5", b"state=running&namespace=a", b"reason=devices_in_use", b"severity=lost&node=x")))
def test_any_query_is_an_answer_or_a_refusal_of_one_line(raw: bytes) -> None:
    from urllib.parse import parse_qsl

    from claimscope.web.cluster_documents import BadQueryError, claims_document, health_document, waits_document

    query = dict(parse_qsl(raw.decode("latin-1"), keep_blank_values=True))
    for make in (claims_document, waits_document, health_document):
        said = ""
        try:
            make(CLUSTER, query)
        except BadQueryError as error:
            said = str(error)
        assert len(said) < 2_000
        assert said.isprintable()


# --- headers ---

_ACCEPTS = (
    b"application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5",
    b'APPLICATION/OpenMetrics-Text; Version="1.0.0"; charset=utf-8',
    b"gzip;q=1.0, identity; q=0.5, *;q=0",
    b"application/json, text/html;q=0.9",
)


@QUICK
@given(mutated(_ACCEPTS, (b";", b",", b'"', b"\\", b"q=", b"*/*", b"=")) | st.binary(max_size=80))
def test_any_accept_header_chooses_a_format(raw: bytes) -> None:
    header = raw.decode("utf-8", "surrogateescape")
    assert choose_format(header) in Format
    assert accepts_gzip(header) in (True, False)
    assert wants_json(header) in (True, False)
    assert all(0.0 <= each.quality <= 1.0 for each in parse(header))
    assert choose_format(header + ",application/openmetrics-text;version=1.0.0;q=0") in Format


# --- names ---


@QUICK
@given(st.text(max_size=60), st.text(alphabet="abc-/. claim()", max_size=60))
def test_no_text_hides_a_name_that_may_not_be_seen(noise: str, more: str) -> None:
    nobody = Sight(namespaces=frozenset({"mine"}))
    hidden = frozenset({"other"})
    text = f"{noise} claim other/secret-name (pod secret-pod) {more} other/secret-name {noise}"
    shown = visible_text(text, nobody, hidden)
    assert "secret-name" not in shown
    assert "secret-pod" not in shown
    assert visible_text(f"{noise} claim mine/x", nobody, hidden).endswith("claim mine/x")


# --- words of selectors ---


@QUICK
@given(
    mutated((b"12e3Gi", b"1.50", b"-0.001Ki", b"9223372036854775807", b"1E400", b"1e-400"), (b"9" * 5_000, b"e"))
)
def test_any_quantity_is_one_or_refused(raw: bytes) -> None:
    try:
        found = Quantity.parse(raw.decode("latin-1"))
    except QuantityError:
        return
    assert Quantity.parse(str(found)) == found


@QUICK
@given(
    mutated((b"1.2.3-alpha.1+build.5", b"v580.95.05", b"0.0.0", b"99999999999999999999.0.0"), (b"9" * 5_000,)),
    st.booleans(),
)
def test_any_version_is_one_or_refused(raw: bytes, normalize: bool) -> None:
    try:
        found = Semver.parse(raw.decode("latin-1"), normalize=normalize)
    except SemverError:
        return
    assert Semver.parse(str(found)) == found
