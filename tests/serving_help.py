"""A small site behind a web configuration file, and raw clients of it."""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from gzip import compress
from pathlib import Path

import aiohttp
import bcrypt
from aiohttp import web

from claimscope.clock import SystemClock
from claimscope.web.serving.guard import make_guards
from claimscope.web.serving.limits import Limits
from claimscope.web.serving.source import ServingSource
from claimscope.web.site import Body, Check, Readiness, RunningSite, Site, WebCounters, assemble, plain, start_site

SECONDS = 20.0  # after which a test is stuck


def hashed(password: str, cost: int = 4) -> str:
    """A bcrypt hash as htpasswd writes it."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode().replace("$2b$", "$2y$", 1)


class SmallSite(Site):
    """Serves one line of metrics, a page, and a page as large as somebody asks for."""

    def __init__(self, counters: WebCounters) -> None:
        super().__init__(
            readiness=lambda: Readiness(checks=(Check(name="sampler", ok=True),)), counters=counters, version="1",
            max_scrapes=40, send_seconds=30.0,
        )  # fmt: skip
        self.answered = 0
        self.text = b"gpu_up 1\n"
        self.go_on = asyncio.Event()  # what scrapes wait for
        self.go_on.set()

    async def body(self, openmetrics: bool, gzip: bool) -> Body:
        await self.go_on.wait()
        return Body(compress(self.text) if gzip else self.text, source=self.text)

    async def serve_page(self, request: web.Request) -> web.StreamResponse:
        self.answered += 1
        return plain("x" * int(request.query.get("bytes", "4")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A site that answers, and what may be looked at of it."""

    running: RunningSite
    counters: WebCounters
    site: SmallSite
    source: ServingSource | None = None

    @property
    def port(self) -> int:
        return self.running.port


@asynccontextmanager
async def served(
    file: Path | None = None, *, limits: Limits | None = None,
    token: Callable[..., Awaitable[web.StreamResponse]] | None = None,
) -> AsyncIterator[Served]:
    """The site on a free port of this machine."""
    counters = WebCounters()
    source = None if file is None else ServingSource(file, SystemClock())
    site = SmallSite(counters)
    guard = None if token is None else web.middleware(token)
    application = assemble(
        site, {"/": site.serve_page, "/api/v1/snapshot": site.serve_page}, make_guards(source, counters, guard)
    )
    running = await start_site(application, "127.0.0.1:0", serving=source, counters=counters, limits=limits)
    try:
        yield Served(running=running, counters=counters, site=site, source=source)
    finally:
        await running.close()


@dataclass(slots=True)
class Raw:
    """A connection that says exactly what a test wants."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    received: bytes = field(default=b"")

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ended(self) -> bytes:
        """Everything up to the server's end of the connection."""
        try:
            async with asyncio.timeout(SECONDS):
                while piece := await self.reader.read(65536):
                    self.received += piece
        except ConnectionError:
            pass
        return self.received

    async def line(self) -> bytes:
        async with asyncio.timeout(SECONDS):
            return await self.reader.readline()

    async def answer(self) -> bytes:
        """One answer with a Content-Length: its status line."""
        async with asyncio.timeout(SECONDS):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
            )
            await self.reader.readexactly(length)
        return head.split(b"\r\n")[0]


@asynccontextmanager
async def raw(port: int, *, source: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[Raw]:
    """A connection from one of this machine's loopback addresses."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0), ssl=tls)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


async def get(
    served_site: Served, path: str = "/metrics", *, tls: ssl.SSLContext | None = None,
    headers: dict[str, str] | None = None, user: tuple[str, str] | None = None,
) -> tuple[int, str]:
    """Status and text of one request on a connection of its own."""
    if user is not None:
        headers = {"Authorization": f"Basic {b64encode(':'.join(user).encode()).decode()}"}
    async with (
        asyncio.timeout(SECONDS),
        aiohttp.ClientSession(served_site.running.url) as session,
        session.get(path, ssl=True if tls is None else tls, headers=headers) as response,
    ):
        return response.status, await response.text()


async def until(holds: Callable[[], bool]) -> None:
    """Waits, in turns of the event loop, until something holds."""
    async with asyncio.timeout(SECONDS):
        while not holds():  # noqa: ASYNC110 - nothing tells when it does
            await asyncio.sleep(0.001)
