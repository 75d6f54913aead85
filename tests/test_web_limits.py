"""A slow or malicious client costs only itself: raw sockets against the server's limits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import tracemalloc
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from claimscope.web.serving.connection import Connection
from claimscope.web.serving.limits import Limits
from claimscope.web.serving.listener import Listener
from serving_help import SECONDS, Served, get, raw, served, until

REQUEST = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
BAD = "127.0.0.2"  # a client at another address of this machine


async def test_a_head_that_comes_byte_by_byte_is_cut_off() -> None:
    async with served(limits=Limits(head_seconds=0.3)) as site, raw(site.port, source=BAD) as slow:

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in b"GET /metrics HTTP/1.1\r\n" + b"X-Slow: yes\r\n" * 100_000:
                    await slow.send(bytes([byte]))
                    await asyncio.sleep(0.002)

        dripping = asyncio.ensure_future(drip())
        assert await get(site) == (200, "gpu_up 1\n")
        assert await slow.ended() == b""
        dripping.cancel()
        assert site.counters.cut["head"] == 1


async def test_a_socket_that_takes_nothing_is_said_once_and_stops_nothing_else(
    caplog: pytest.LogCaptureFixture
) -> None:
    """Accepting fails at once there, and without end."""
    async with served() as site:
        with socket.socket() as unlistened:
            unlistened.setblocking(False)
            server = site.running.runner.server
            assert server is not None
            listener = Listener(
                server, [unlistened], context=lambda: None, limits=Limits(), counters=site.counters
            )
            for _ in range(3):
                assert await get(site) == (200, "gpu_up 1\n")
            await listener.stop()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert said == ["no connection can be taken: Invalid argument"]


async def test_a_client_that_says_nothing_is_let_go() -> None:
    async with served(limits=Limits(head_seconds=0.1)) as site, raw(site.port) as silent:
        assert await silent.ended() == b""
        assert site.counters.cut["head"] == 1
        await until(lambda: site.counters.connections == 0)


async def test_a_second_request_has_its_own_time() -> None:
    """Between requests idle_seconds hold, from the first byte of the next on head_seconds."""
    async with served(limits=Limits(head_seconds=0.1)) as site, raw(site.port) as half:
        await half.send(REQUEST)
        assert await half.answer() == b"HTTP/1.1 200 OK"
        await half.send(b"GET /met")
        assert await half.ended() == b""
        assert site.counters.cut["head"] == 1


async def test_an_idle_connection_is_closed_without_ado() -> None:
    async with served(limits=Limits(idle_seconds=0.1)) as site, raw(site.port) as idle:
        await idle.send(REQUEST)
        assert await idle.answer() == b"HTTP/1.1 200 OK"
        assert await idle.ended() == b""
        assert site.counters.cut.total() == 0


async def test_who_does_not_read_is_cut_off() -> None:
    async with served(limits=Limits(answer_seconds=0.3)) as site:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await asyncio.get_running_loop().sock_connect(deaf, ("127.0.0.1", site.port))
            await asyncio.get_running_loop().sock_sendall(deaf, b"GET /?bytes=20000000 HTTP/1.1\r\nHost: a\r\n\r\n")
            await until(lambda: site.site.answered == 1)
            assert (await get(site))[0] == 200
            await until(lambda: site.counters.cut["answer"] == 1)
            await until(lambda: site.counters.connections == 0)


async def test_who_closes_without_reading_leaves_nothing_behind() -> None:
    """An answer that fits no buffer, and a server that wants to be rid of the connection."""
    async with served(limits=Limits(linger_seconds=0.1, answer_seconds=0.3)) as site:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await asyncio.get_running_loop().sock_connect(deaf, ("127.0.0.1", site.port))
            await asyncio.get_running_loop().sock_sendall(
                deaf, b"GET /?bytes=3000000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            )
            await until(lambda: site.site.answered == 1)
            await until(lambda: site.counters.connections == 0)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 9_000 + b"\r\n\r\n", b"400 Bad Request"),
        (b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: x\r\n" % number for number in range(100)) + b"\r\n",
         b"400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40 + b"\r\n\r\n", b"400 Bad Request"),
        (b"\x00\x01\x02\r\n\r\n", b"400 Bad Request"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b"400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
         b"400 Bad Request"),
        (b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\nabc", b"405 Method Not Allowed"),
    ],
    ids=["long header", "long line", "many headers", "TLS", "garbage", "version", "smuggling", "endless body"],
)  # fmt: skip
async def test_what_is_no_proper_request_is_refused_and_ended(request_bytes: bytes, status: bytes) -> None:
    async with served() as site, raw(site.port, source=BAD) as bad:
        await bad.send(request_bytes)
        assert (await bad.ended()).split(b"\r\n")[0].partition(b" ")[2] == status
        assert (await get(site))[0] == 200


async def test_headers_without_end_are_refused() -> None:
    async with served() as site, raw(site.port, source=BAD) as bad:
        with contextlib.suppress(ConnectionError):
            await bad.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n")
            for number in range(100_000):
                await bad.send(b"X-%d: %s\r\n" % (number, b"x" * 5_000))
        await bad.ended()
        assert (await get(site))[0] == 200
        await until(lambda: site.counters.connections == 0)


async def test_pipelined_requests_are_answered_and_no_more_than_some_kept() -> None:
    async with served() as site, raw(site.port) as many:
        await many.send(REQUEST * 20)
        assert [await many.answer() for _ in range(20)] == [b"HTTP/1.1 200 OK"] * 20
    async with served(limits=Limits(request_bytes=500)) as site, raw(site.port) as greedy:
        await greedy.send(b"GET /?bytes=20000000 HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: site.site.answered == 1)
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                await greedy.send(REQUEST * 10)
                await asyncio.sleep(0)
        await until(lambda: site.counters.cut["size"] == 1)
        await until(lambda: site.counters.connections == 0)


async def test_a_thousand_idle_connections_cost_whoever_opened_them() -> None:
    async with served(limits=Limits(connections=20)) as site, contextlib.AsyncExitStack() as stack:
        good = await stack.enter_async_context(raw(site.port))
        await good.send(REQUEST)
        assert await good.answer() == b"HTTP/1.1 200 OK"
        for _ in range(1_000):
            await stack.enter_async_context(raw(site.port, source=BAD))
        await until(lambda: site.counters.cut["evicted"] == 981)
        assert site.counters.connections == 20
        assert (await get(site))[0] == 200
        await good.send(REQUEST)  # the longest idle of all, of a client that has one
        assert await good.answer() == b"HTTP/1.1 200 OK"


async def test_who_does_not_read_gives_way_too() -> None:
    async with served(limits=Limits(connections=5)) as site, contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            deaf = await stack.enter_async_context(raw(site.port, source=BAD))
            deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is one that reads
            await deaf.send(b"GET /?bytes=20000000 HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: site.site.answered == 5)
        assert (await get(site))[0] == 200
        assert site.counters.cut["evicted"] == 1


async def test_a_connection_too_many_is_refused_while_all_are_being_answered() -> None:
    go_on = asyncio.Event()
    waiting = 0

    async def slow(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal waiting
        waiting += 1
        await go_on.wait()
        return await handler(request)

    async with served(limits=Limits(connections=3), token=slow) as site:
        asked = [asyncio.ensure_future(get(site)) for _ in range(3)]
        await until(lambda: waiting == 3)
        async with raw(site.port) as late:
            assert await late.ended() == b""
        assert site.counters.cut["full"] == 1
        go_on.set()
        assert [status for status, _ in await asyncio.gather(*asked)] == [200, 200, 200]


async def test_one_client_leaves_scrapes_to_the_others() -> None:
    async with served() as site, contextlib.AsyncExitStack() as stack:
        site.site.go_on.clear()
        many = [await stack.enter_async_context(raw(site.port, source=BAD)) for _ in range(4)]
        for each in many:
            await each.send(REQUEST)
        await until(lambda: site.counters.in_flight == 4)
        async with raw(site.port, source=BAD) as late:
            await late.send(REQUEST)
            assert await late.answer() == b"HTTP/1.1 503 Service Unavailable"
        good = asyncio.ensure_future(get(site))
        await until(lambda: site.counters.in_flight == 5)
        site.site.go_on.set()
        assert (await good)[0] == 200
        assert await many[0].answer() == b"HTTP/1.1 200 OK"
        await until(lambda: not site.site.scraping)


LARGE = b"x" * (8 << 20)  # fits into no socket's buffers


async def unread(site: Served, source: str) -> socket.socket:
    """A scrape that is answered and not read."""
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.setblocking(False)
    deaf.bind((source, 0))
    before = stalled(site)
    await asyncio.get_running_loop().sock_connect(deaf, ("127.0.0.1", site.port))
    await asyncio.get_running_loop().sock_sendall(deaf, REQUEST)
    await until(lambda: source in site.site.scraping and stalled(site) >= min(before + 1, 40))
    return deaf


def stalled(site: Served) -> int:
    server = site.running.runner.server
    assert server is not None
    return sum(isinstance(each, Connection) and each.stalled_since is not None for each in server.connections)


async def test_scrapes_that_nobody_reads_give_way_to_those_that_somebody_does() -> None:
    """Forty of them from ten addresses, which is all that there is: a scrape more is served, again and again."""
    async with served() as site, contextlib.AsyncExitStack() as stack:
        site.site.text = LARGE
        for number in range(40):
            stack.callback((await unread(site, f"127.0.0.{20 + number % 10}")).close)
        assert site.counters.in_flight == 40
        site.site.text = b"gpu_up 1\n"
        for _ in range(3):
            assert await get(site) == (200, "gpu_up 1\n")
        assert site.counters.cut["evicted"] == 1  # one place is enough, and it was free from then on
        assert site.site.scraping["127.0.0.20"] == 3  # the oldest of those who had most
        await until(lambda: site.counters.scrapes[499] == 1)
        assert (site.counters.in_flight, site.counters.scrapes[503]) == (39, 0)


async def test_of_one_client_the_scrape_that_it_does_not_read_gives_way() -> None:
    """As of a Prometheus behind the address of somebody else."""
    async with served() as site, contextlib.AsyncExitStack() as stack:
        site.site.text = LARGE
        for _ in range(4):
            stack.callback((await unread(site, "127.0.0.1")).close)
        site.site.text = b"gpu_up 1\n"
        assert await get(site) == (200, "gpu_up 1\n")
        assert (site.site.scraping["127.0.0.1"], site.counters.cut["evicted"]) == (3, 1)


async def test_who_reads_slowly_holds_no_copy_of_the_answer() -> None:
    async with served() as site, contextlib.AsyncExitStack() as stack:
        site.site.text = LARGE
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        for number in range(24):
            stack.callback((await unread(site, f"127.0.0.{20 + number % 8}")).close)
        held, _ = tracemalloc.get_traced_memory()
        assert site.counters.in_flight == 24
        assert held < 12 << 20  # of 192 MiB that are being sent


async def test_closing_does_not_wait_for_those_who_do_not_read() -> None:
    async with served() as site, raw(site.port) as deaf:
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await deaf.send(b"GET /?bytes=20000000 HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: site.site.answered == 1)
        async with asyncio.timeout(SECONDS):
            await site.running.close()


def test_the_documented_limits_are_those_in_force() -> None:
    text = (Path(__file__).parent.parent / "docs/serving.md").read_text()
    documented = {
        name: float(number) for name, number in re.findall(r"^\| `([a-z_]+)` \| ([0-9.]+) \|", text, re.MULTILINE)
    }
    assert documented == dict(Limits().rows())
