"""What do the agent and the controller answer over HTTP in the same way?

Everything is answered from a published snapshot: a request touches no device, no kubelet and no API server, so a
client costs rendering at most once per snapshot and its own transfer. Clients that read slowly, hang up or come in
crowds are bounded by time and by number; where all places are taken, the scrape ends that was not read for longest.
"""

from __future__ import annotations

import abc
import asyncio
import errno
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from aiohttp import web

from claimscope.config import split_address
from claimscope.metrics import own as agent_own
from claimscope.web.negotiation import Format, accepts_gzip, choose_format, wants_json
from claimscope.web.serving.connection import Connection
from claimscope.web.serving.limits import Limits
from claimscope.web.serving.listener import Listener, bind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from aiohttp.typedefs import Handler, Middleware

    from claimscope.model import Sample
    from claimscope.web.serving.source import ServingSource

_log = logging.getLogger(__name__)

MAX_SCRAPES = 40  # answers to /metrics in flight at once, as node_exporter has it
SHARE_OF_CLIENT = 10  # one client has at most a tenth of them: two Prometheus replicas behind one address, and a person
PIECE_BYTES = 128 * 1024  # of an answer that are handed to the transport at once, which copies what it cannot send
SEND_SECONDS = 30.0  # what a client may take to read an answer
_BODY_BYTES = 4096  # no request has a body that we read


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that must hold for a part to be ready."""

    name: str  # "sampler", "attribution"
    ok: bool
    reason: str = ""  # what was found, with its age


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether the figures are fresh, and what says so."""

    checks: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        """True where every check holds."""
        return all(check.ok for check in self.checks)


EXTRA_HEADERS: Final = web.RequestKey("claimscope.extra_headers", dict[str, str])  # of the web configuration file

# Families that this side adds to an answer, without the prefix; whoever fills `own` of a snapshot leaves them out.
WEB_NAMES: Final = (
    "scrapes_total", "scrape_seconds_total", "render_seconds_total", "scrape_response_bytes", "web_connections",
    "web_connections_cut_total", "series",
)  # fmt: skip
REFUSALS: Final = ("certificate", "password", "crowded", "rate")
CUT_REASONS: Final = ("handshake", "head", "answer", "size", "evicted", "full")


@dataclass(slots=True, kw_only=True)
class WebCounters:
    """What the web side counts about itself."""

    own: Callable[..., Sample] = agent_own.own  # makes a sample of the part's own families
    scrapes: Counter[int] = field(default_factory=lambda: Counter({200: 0, 503: 0}))
    scrape_seconds: float = 0.0
    render_seconds: float = 0.0
    response_bytes: int = 0
    in_flight: int = 0
    reviews: Mapping[tuple[str, str], int] | None = None  # of callers by Kubernetes; None: they are not reviewed
    refused: Counter[str] = field(default_factory=Counter)  # requests, by the guard of the web configuration file
    connections: int = 0  # open now
    cut: Counter[str] = field(default_factory=Counter)  # connections that we ended, by why
    web_config: Callable[[], Iterable[tuple[str, float]]] | None = None  # how its file is doing; None: there is none

    def samples(self) -> list[Sample]:
        """The counts as samples of the part's own families."""
        made = [self.own("scrapes_total", count, str(code)) for code, count in sorted(self.scrapes.items())]
        made.append(self.own("scrape_seconds_total", self.scrape_seconds))
        made.append(self.own("render_seconds_total", self.render_seconds))
        made.append(self.own("scrape_response_bytes", self.response_bytes))
        made += [self.own("reviews_total", count, *which) for which, count in (self.reviews or {}).items()]
        made.append(self.own("web_connections", self.connections))
        made += [self.own("web_connections_cut_total", self.cut[reason], reason) for reason in CUT_REASONS]
        if self.web_config is not None:
            made += [self.own("web_requests_refused_total", self.refused[reason], reason) for reason in REFUSALS]
            made += [self.own(name, value) for name, value in self.web_config()]
        return made


class Nothing(Exception):  # noqa: N818 - no error, an answer
    """There is nothing to show yet: one line that says why."""


class Body(NamedTuple):
    """One scrape, whole or in pieces, and what it keeps in memory: scrapes of one exposition share it."""

    data: bytes | Iterator[bytes]
    source: object


@dataclass(slots=True, eq=False)
class _Scrape:
    """One answer to /metrics in flight."""

    request: web.Request
    client: str
    source: object | None = None  # None: it is still being made

    @property
    def unread_since(self) -> float | None:
        """Since when the client has read nothing of what is written; None while it reads, or waits."""
        connection = self.request.protocol
        return connection.stalled_since if isinstance(connection, Connection) else None


class Site(abc.ABC):
    """The handlers that every part has."""

    sources_held: int | None = None  # different expositions that are read at once; None: they are small

    def __init__(
        self, *, readiness: Callable[[], Readiness], counters: WebCounters, version: str, max_scrapes: int,
        send_seconds: float,
    ) -> None:
        self.readiness = readiness
        self.counters = counters
        self.version = version
        self.max_scrapes = max_scrapes
        self.send_seconds = send_seconds
        self.scraping: Counter[str] = Counter()  # in flight, by client
        self._scrapes: dict[_Scrape, None] = {}  # in flight, oldest first

    @abc.abstractmethod
    async def body(self, openmetrics: bool, gzip: bool) -> Body:
        """The bytes of one scrape; raises Nothing."""

    async def serve_metrics(self, request: web.Request) -> web.StreamResponse:
        """The scrape."""
        began = time.perf_counter()
        counters = self.counters
        scrape = _Scrape(request, request.remote or "")
        refused = self._take(scrape)
        if refused:
            counters.scrapes[503] += 1
            return plain(f"{refused}\n", status=503, headers={"Retry-After": "1"})
        form = choose_format(header_of(request, "Accept"))
        gzip = accepts_gzip(header_of(request, "Accept-Encoding"))
        headers = {"Content-Type": form.value, "Vary": "Accept, Accept-Encoding", "Cache-Control": "no-store"}
        if gzip:
            headers["Content-Encoding"] = "gzip"
        code = 200
        try:
            body = await self.body(form is Format.OPENMETRICS, gzip)
            scrape.source = body.source
            self._let_go_of_older()
            # Sent from here, and not after the handler, so that a stalled reader counts as in flight and ends.
            async with asyncio.timeout(self.send_seconds):
                return await _send(request, body.data, headers)
        except Nothing as error:
            code = 503
            return plain(f"{error}\n", status=503)
        except (TimeoutError, ConnectionError, asyncio.CancelledError) as error:
            code = 499  # the client's doing; the number is nginx's
            if request.transport is not None:
                request.transport.abort()
            if isinstance(error, asyncio.CancelledError):
                raise
            return web.Response(status=code)  # nobody is left to read it
        finally:
            self._leave(scrape)
            counters.scrapes[code] += 1
            counters.scrape_seconds += time.perf_counter() - began

    def _take(self, scrape: _Scrape) -> str:
        """Gives a scrape one of the places; why there is none, "" where there is."""
        client, most = scrape.client, max(1, self.max_scrapes // SHARE_OF_CLIENT)
        if self.scraping[client] >= most and not self._end_unread(client):
            return f"{most} scrapes of {client} are being answered already, which is the limit; scrape less often"
        if self.counters.in_flight >= self.max_scrapes and not self._end_unread():
            return (
                f"{self.max_scrapes} scrapes are being answered already, which is the limit; scrape less often or "
                "from fewer places"
            )
        self._scrapes[scrape] = None
        self.scraping[client] += 1
        self.counters.in_flight += 1
        return ""

    def _leave(self, scrape: _Scrape) -> None:
        if scrape not in self._scrapes:
            return  # it was ended
        del self._scrapes[scrape]
        self.counters.in_flight -= 1
        self.scraping[scrape.client] -= 1
        if not self.scraping[scrape.client]:
            del self.scraping[scrape.client]

    def _end_unread(self, client: str | None = None) -> bool:
        """Ends the scrape that was not read for longest, of the client that has most; False where each is read."""
        unread = [
            (-self.scraping[each.client], since, each) for each in self._scrapes
            if client in (None, each.client) and (since := each.unread_since) is not None
        ]  # fmt: skip
        if not unread:
            return False
        self._end(min(unread, key=lambda each: each[:2])[2])
        return True

    def _end(self, scrape: _Scrape) -> None:
        self._leave(scrape)
        self.counters.cut["evicted"] += 1
        if scrape.request.transport is not None:
            scrape.request.transport.abort()

    def _let_go_of_older(self) -> None:
        """Ends the scrapes of the oldest expositions where so many are read that they would fill the memory."""
        if self.sources_held is None:
            return
        sources = list({id(each.source): None for each in self._scrapes if each.source is not None})
        kept = set(sources[-self.sources_held :])
        for each in [each for each in self._scrapes if each.source is not None and id(each.source) not in kept]:
            self._end(each)

    async def serve_livez(self, request: web.Request) -> web.Response:
        """Whether the process answers at all."""
        del request
        return plain("ok\n")

    async def serve_readyz(self, request: web.Request) -> web.Response:
        """Whether the figures can be relied on."""
        readiness = self.readiness()
        status = 200 if readiness.ready else 503
        if wants_json(header_of(request, "Accept")):
            return in_json({"ready": readiness.ready, "checks": list(readiness.checks)}, status=status)
        lines = [
            f"[{'+' if check.ok else '-'}] {check.name}: {check.reason or ('ok' if check.ok else 'failing')}"
            for check in readiness.checks
        ]
        lines.append("ready" if readiness.ready else "not ready")
        return plain("\n".join(lines) + "\n", status=status)

    def failing(self) -> list[str]:
        """The checks that do not hold, for the page."""
        return [f"{check.name}: {check.reason}" for check in self.readiness().checks if not check.ok]


async def _send(request: web.Request, body: bytes | Iterator[bytes], headers: Mapping[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers)
    pieces: Iterator[bytes | memoryview[int]]
    if isinstance(body, bytes):
        response.content_length = len(body)
        pieces = _pieces(body)
    else:
        pieces = iter(body)
    await response.prepare(request)
    if request.method != "HEAD":
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0)  # a reader that keeps up never makes the write wait
    await response.write_eof()
    return response


def _pieces(body: bytes) -> Iterator[memoryview[int]]:
    whole = memoryview(body)
    return (whole[start : start + PIECE_BYTES] for start in range(0, len(body), PIECE_BYTES))


def in_page(text: str, content_security_policy: str) -> web.Response:
    """An HTML page that nothing outside may alter or frame."""
    headers = {"Content-Security-Policy": content_security_policy, "Cache-Control": "no-store"}
    return web.Response(text=text, content_type="text/html", charset="utf-8", headers=headers)


def header_of(request: web.Request, name: str) -> str | None:
    """A list header as one string, however many lines it came in."""
    lines = request.headers.getall(name, None)
    return None if lines is None else ",".join(lines)


def plain(text: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer of a few lines for people."""
    return web.Response(
        text=text, status=status, content_type="text/plain", charset="utf-8",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def in_json(document: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer for programs."""
    return json_bytes(msgspec.json.encode(document), status=status, headers=headers)


def json_bytes(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer for programs that is written already."""
    return web.Response(
        body=body, status=status, content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def _clean_errors(known: str) -> Middleware:
    @web.middleware
    async def clean(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refusals as one plain line that says what there is instead."""
        try:
            return await handler(request)
        except web.HTTPNotFound:
            return plain(f"nothing is served at {request.path[:200]!a}; there are {known}\n", status=404)
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            return plain(
                f"{request.method[:20]!a} is not allowed here; use {allowed}\n", status=405, headers={"Allow": allowed}
            )

    return clean


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Server"] = "claimscope"
    extra = request.get(EXTRA_HEADERS)
    if extra:
        response.headers.update(extra)
        if "Connection" in extra:
            response.force_close()


def assemble(site: Site, routes: Mapping[str, Handler], middlewares: Sequence[Middleware]) -> web.Application:
    """An application with the common routes and a part's own."""
    routes = {
        "/metrics": site.serve_metrics, "/livez": site.serve_livez, "/readyz": site.serve_readyz, **routes,
    }  # fmt: skip
    *some, last = sorted(routes)
    known = f"{', '.join(some)} and {last}"
    application = web.Application(middlewares=[_clean_errors(known), *middlewares], client_max_size=_BODY_BYTES)
    application.on_response_prepare.append(_harden)
    for path, handler in routes.items():
        application.router.add_get(path, handler)
    return application


class ListenError(Exception):
    """The web server cannot listen: where, why, and what to do."""


_CURES = {
    errno.EADDRINUSE: "another process listens there, perhaps a second claimscope; stop it (`ss -ltnp` shows it) or "
    "choose another port",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address; `ip address` lists them, `:PORT` means all",
    errno.EACCES: "ports below 1024 need a privilege that claimscope gives up; choose a higher port",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningSite:
    """A web server that answers."""

    runner: web.AppRunner
    listener: Listener
    host: str
    port: int
    tls: bool = False  # at the beginning; a web configuration file that changes may change it
    reloading: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where to point a browser on this machine."""
        host = {"": "localhost", "0.0.0.0": "localhost", "::": "localhost"}.get(self.host, self.host)  # noqa: S104
        scheme = "https" if self.tls else "http"
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"

    async def close(self) -> None:
        """Stops listening and lets answers in flight finish for a moment."""
        if self.reloading is not None:
            self.reloading.cancel()
        await self.listener.stop()
        await self.runner.cleanup()
        self.listener.abort()


async def start_site(
    application: web.Application, listen_address: str, *, serving: ServingSource | None = None,
    counters: WebCounters | None = None, limits: Limits | None = None,
) -> RunningSite:
    """Starts to answer on `host:port`, `[v6]:port` or `:port`; port 0 takes a free one. Raises ListenError.

    `serving` is the web configuration file; its guards are part of the application.
    """
    try:
        host, port = split_address(listen_address)
    except ValueError as error:
        raise ListenError(f"cannot listen on {listen_address!r}: {error}; set --web-listen-address") from error
    try:
        sockets = await bind(host or None, port)
    except (OSError, UnicodeError) as error:
        raise ListenError(_listen_message(listen_address, error)) from error
    counters = WebCounters() if counters is None else counters
    if serving is not None:
        counters.web_config = serving.samples
    runner = web.AppRunner(
        application, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=1.0
    )
    await runner.setup()
    assert runner.server is not None  # noqa: S101 - it is set up
    listener = Listener(
        runner.server, sockets, context=lambda: None if serving is None else serving.now().context,
        limits=Limits() if limits is None else limits, counters=counters,
    )
    bound = [each.getsockname() for each in sockets]
    running = RunningSite(
        runner=runner, listener=listener, host=host, port=int(bound[0][1]),
        tls=serving is not None and serving.now().context is not None,
        reloading=None if serving is None else asyncio.create_task(serving.run(), name="web configuration"),
    )
    _log.info("serving on %s (%s)", running.url, ", ".join(f"{address[0]}:{address[1]}" for address in bound))
    return running


def _listen_message(listen_address: str, error: OSError | UnicodeError) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number is None or isinstance(error, socket.gaierror):
        found, cure = "its host is no address and no name that resolves", "write an address of this machine"
    else:
        found, cure = os.strerror(number), _CURES.get(number, "choose another address")
    return f"cannot listen on {listen_address}: {found}; {cure} (--web-listen-address)"
