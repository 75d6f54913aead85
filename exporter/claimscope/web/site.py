"""What do the agent and the controller answer over HTTP in the same way?

Everything is answered from a published snapshot: a request touches no device, no kubelet and no API server, so a
client costs rendering at most once per snapshot and its own transfer. Clients that read slowly, hang up or come in
crowds are bounded by time and by number.
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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from claimscope.config import split_address
from claimscope.metrics import own as agent_own
from claimscope.web.negotiation import Format, accepts_gzip, choose_format, wants_json

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from aiohttp.typedefs import Handler, Middleware

    from claimscope.model import Sample

_log = logging.getLogger(__name__)

MAX_SCRAPES = 40  # answers to /metrics in flight at once, as node_exporter has it
SEND_SECONDS = 30.0  # what a client may take to read an answer
_HEADER_BYTES = 8190  # of the request line, and of each header field
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


# Families that this side adds to an answer, without the prefix; whoever fills `own` of a snapshot leaves them out.
WEB_NAMES: Final = ("scrapes_total", "scrape_seconds_total", "render_seconds_total", "scrape_response_bytes", "series")


@dataclass(slots=True, kw_only=True)
class WebCounters:
    """What the web side counts about itself."""

    own: Callable[..., Sample] = agent_own.own  # makes a sample of the part's own families
    scrapes: Counter[int] = field(default_factory=lambda: Counter({200: 0, 503: 0}))
    scrape_seconds: float = 0.0
    render_seconds: float = 0.0
    response_bytes: int = 0
    in_flight: int = 0

    def samples(self) -> list[Sample]:
        """The counts as samples of the part's own families."""
        made = [self.own("scrapes_total", count, str(code)) for code, count in sorted(self.scrapes.items())]
        made.append(self.own("scrape_seconds_total", self.scrape_seconds))
        made.append(self.own("render_seconds_total", self.render_seconds))
        made.append(self.own("scrape_response_bytes", self.response_bytes))
        return made


class Nothing(Exception):  # noqa: N818 - no error, an answer
    """There is nothing to show yet: one line that says why."""


class Site(abc.ABC):
    """The handlers that every part has."""

    def __init__(
        self, *, readiness: Callable[[], Readiness], counters: WebCounters, version: str, max_scrapes: int,
        send_seconds: float,
    ) -> None:
        self.readiness = readiness
        self.counters = counters
        self.version = version
        self.max_scrapes = max_scrapes
        self.send_seconds = send_seconds

    @abc.abstractmethod
    async def body(self, openmetrics: bool, gzip: bool) -> bytes | Iterator[bytes]:
        """The bytes of one scrape, whole or in pieces; raises Nothing."""

    async def serve_metrics(self, request: web.Request) -> web.StreamResponse:
        """The scrape."""
        began = time.perf_counter()
        counters = self.counters
        if counters.in_flight >= self.max_scrapes:
            counters.scrapes[503] += 1
            return plain(
                f"{counters.in_flight} scrapes are being answered already, which is the limit; scrape less often or "
                "from fewer places\n",
                status=503,
                headers={"Retry-After": "1"},
            )
        form = choose_format(header_of(request, "Accept"))
        gzip = accepts_gzip(header_of(request, "Accept-Encoding"))
        headers = {"Content-Type": form.value, "Vary": "Accept, Accept-Encoding", "Cache-Control": "no-store"}
        if gzip:
            headers["Content-Encoding"] = "gzip"
        counters.in_flight += 1
        code = 200
        try:
            body = await self.body(form is Format.OPENMETRICS, gzip)
            # Sent from here, and not after the handler, so that a stalled reader counts as in flight and ends.
            async with asyncio.timeout(self.send_seconds):
                return await _send(request, body, headers)
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
            counters.in_flight -= 1
            counters.scrapes[code] += 1
            counters.scrape_seconds += time.perf_counter() - began

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
    if isinstance(body, bytes):
        whole = web.Response(body=body, headers=headers)
        await whole.prepare(request)
        await whole.write_eof()
        return whole
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    if request.method != "HEAD":
        for chunk in body:
            await response.write(chunk)
            await asyncio.sleep(0)  # a reader that keeps up never makes the write wait
    await response.write_eof()
    return response


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


def in_json(document: object, *, status: int = 200) -> web.Response:
    """An answer for programs."""
    body = msgspec.json.encode(document)
    return web.Response(
        body=body, status=status, content_type="application/json", headers={"Cache-Control": "no-store"}
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
    host: str
    port: int

    @property
    def url(self) -> str:
        """Where to point a browser on this machine."""
        host = {"": "localhost", "0.0.0.0": "localhost", "::": "localhost"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    async def close(self) -> None:
        """Stops listening and lets answers in flight finish for a moment."""
        await self.runner.cleanup()


async def start_site(
    application: web.Application, listen_address: str, *, ssl_context: ssl.SSLContext | None = None
) -> RunningSite:
    """Starts to answer on `host:port`, `[v6]:port` or `:port`; port 0 takes a free one. Raises ListenError."""
    try:
        host, port = split_address(listen_address)
    except ValueError as error:
        raise ListenError(f"cannot listen on {listen_address!r}: {error}; set --web-listen-address") from error
    runner = web.AppRunner(
        application,
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,
        max_line_size=_HEADER_BYTES,
        max_field_size=_HEADER_BYTES,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    site = web.TCPSite(runner, host or None, port, ssl_context=ssl_context)
    try:
        await site.start()
    except (OSError, UnicodeError) as error:
        await runner.cleanup()
        raise ListenError(_listen_message(listen_address, error)) from error
    bound = [address for address in runner.addresses if isinstance(address, tuple)]
    running = RunningSite(runner=runner, host=host, port=int(bound[0][1]))
    _log.info("serving on %s (%s)", running.url, ", ".join(f"{address[0]}:{address[1]}" for address in bound))
    return running


def _listen_message(listen_address: str, error: OSError | UnicodeError) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number is None or isinstance(error, socket.gaierror):
        found, cure = "its host is no address and no name that resolves", "write an address of this machine"
    else:
        found, cure = os.strerror(number), _CURES.get(number, "choose another address")
    return f"cannot listen on {listen_address}: {found}; {cure} (--web-listen-address)"
