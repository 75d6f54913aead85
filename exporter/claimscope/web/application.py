"""What does the agent answer over HTTP?

Everything is answered from the published Snapshot: a request touches neither NVML nor the kubelet nor the API server,
so a client costs rendering at most once per Snapshot and its own transfer. Clients that read slowly, hang up or come
in crowds are bounded by time and by number.
"""

from __future__ import annotations

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
from claimscope.export.process import ProcessSamples
from claimscope.export.text import Exposition, Renderer
from claimscope.metrics import own
from claimscope.web.negotiation import Format, accepts_gzip, choose_format, wants_json
from claimscope.web.page import CONTENT_SECURITY_POLICY, render_page

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence

    from aiohttp.typedefs import Handler, Middleware

    from claimscope.export.collect import Collector
    from claimscope.model import Sample, Snapshot

_log = logging.getLogger(__name__)

MAX_SCRAPES = 40  # answers to /metrics in flight at once, as node_exporter has it
SEND_SECONDS = 30.0  # what a client may take to read an answer
_HEADER_BYTES = 8190  # of the request line, and of each header field
_BODY_BYTES = 4096  # no request has a body that we read

LAYERS: Final = ("device", "edge", "account", "own")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that must hold for the agent to be ready."""

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


@dataclass(slots=True, kw_only=True)
class WebCounters:
    """What the web side counts about itself."""

    scrapes: Counter[int] = field(default_factory=lambda: Counter({200: 0, 503: 0}))
    scrape_seconds: float = 0.0
    render_seconds: float = 0.0
    response_bytes: int = 0
    in_flight: int = 0

    def samples(self) -> list[Sample]:
        """The counts as samples of the agent's own families."""
        made = [own.own("scrapes_total", count, str(code)) for code, count in sorted(self.scrapes.items())]
        made.append(own.own("scrape_seconds_total", self.scrape_seconds))
        made.append(own.own("render_seconds_total", self.render_seconds))
        made.append(own.own("scrape_response_bytes", self.response_bytes))
        return made


# Families that this side adds to an answer; whoever fills Snapshot.own leaves them out.
WEB_FAMILIES: Final = tuple(
    own.PREFIX + name
    for name in ("scrapes_total", "scrape_seconds_total", "render_seconds_total", "scrape_response_bytes", "series")
)


def layer_of(family: str) -> str:
    """The layer that a family belongs to."""
    if family == "gpu_allocation_info":
        return "edge"
    if family.startswith(("dra_claim_gpu_", "pod_gpu_", "gpu_unattributed_")):
        return "account"
    return "device" if family.startswith("gpu_") else "own"


class Metrics:
    """The newest exposition, with what is only known when it is made: own process, web side, series."""

    def __init__(self, collector: Collector, counters: WebCounters) -> None:
        self._collector = collector
        self._counters = counters
        self._process = ProcessSamples()
        self._renderer = Renderer({**collector.families, **self._process.families})
        self._exposition: Exposition | None = None

    def exposition(self, snapshot: Snapshot) -> Exposition:
        """The exposition of this Snapshot: the one at hand, where it is of the same."""
        if self._exposition is None or self._exposition.snapshot is not snapshot:
            self._exposition = Exposition(snapshot, self.samples, self._renderer)
        return self._exposition

    def samples(self, snapshot: Snapshot) -> list[Sample]:
        """Everything that an answer to /metrics shows."""
        samples = self._collector.collect(snapshot)
        samples += self._counters.samples()
        samples += self._process.samples()
        layers = Counter(layer_of(sample.family) for sample in samples)
        layers["own"] += len(LAYERS)
        samples += [own.own("series", layers[layer], layer) for layer in LAYERS]
        return samples


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """What the handlers share."""

    snapshot: Callable[[], Snapshot | None]
    readiness: Callable[[], Readiness]
    collector: Collector
    metrics: Metrics
    counters: WebCounters
    version: str
    max_scrapes: int
    send_seconds: float

    async def serve_metrics(self, request: web.Request) -> web.StreamResponse:
        began = time.perf_counter()
        counters = self.counters
        if counters.in_flight >= self.max_scrapes:
            counters.scrapes[503] += 1
            return _plain(
                f"{counters.in_flight} scrapes are being answered already, which is the limit; scrape less often or "
                "from fewer places\n",
                status=503,
                headers={"Retry-After": "1"},
            )
        snapshot = self.snapshot()
        if snapshot is None:
            counters.scrapes[503] += 1
            return _plain("the agent has only just started and has nothing to show yet\n", status=503)
        form = choose_format(_header(request, "Accept"))
        gzip = accepts_gzip(_header(request, "Accept-Encoding"))
        exposition = self.metrics.exposition(snapshot)
        rendered = exposition.render_seconds
        body = exposition.body(form is Format.OPENMETRICS, gzip)
        counters.render_seconds += exposition.render_seconds - rendered
        counters.response_bytes = exposition.plain_bytes
        headers = {"Content-Type": form.value, "Vary": "Accept, Accept-Encoding", "Cache-Control": "no-store"}
        if gzip:
            headers["Content-Encoding"] = "gzip"
        response = web.Response(body=body, headers=headers)
        counters.in_flight += 1
        code = 200
        try:
            # Sent from here, and not after the handler, so that a stalled reader counts as in flight and ends.
            async with asyncio.timeout(self.send_seconds):
                await response.prepare(request)
                await response.write_eof()
        except (TimeoutError, ConnectionError, asyncio.CancelledError) as error:
            code = 499  # the client's doing; the number is nginx's
            if request.transport is not None:
                request.transport.abort()
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            counters.in_flight -= 1
            counters.scrapes[code] += 1
            counters.scrape_seconds += time.perf_counter() - began
        return response

    async def serve_livez(self, request: web.Request) -> web.Response:
        return _plain("ok\n")

    async def serve_readyz(self, request: web.Request) -> web.Response:
        readiness = self.readiness()
        status = 200 if readiness.ready else 503
        if wants_json(_header(request, "Accept")):
            return _json({"ready": readiness.ready, "checks": list(readiness.checks)}, status=status)
        lines = [
            f"[{'+' if check.ok else '-'}] {check.name}: {check.reason or ('ok' if check.ok else 'failing')}"
            for check in readiness.checks
        ]
        lines.append("ready" if readiness.ready else "not ready")
        return _plain("\n".join(lines) + "\n", status=status)

    async def serve_page(self, request: web.Request) -> web.Response:
        snapshot = self.snapshot()
        text = render_page(
            snapshot=snapshot,
            samples=() if snapshot is None else self.collector.collect(snapshot),
            version=self.version,
            failing=[f"{check.name}: {check.reason}" for check in self.readiness().checks if not check.ok],
            refresh=request.query.get("refresh") == "on",
        )
        headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Cache-Control": "no-store"}
        return web.Response(text=text, content_type="text/html", charset="utf-8", headers=headers)

    async def serve_snapshot(self, request: web.Request) -> web.Response:
        snapshot = self.snapshot()
        if snapshot is None:
            return _json({"error": "the agent has only just started and has nothing to show yet"}, status=503)
        return _json(snapshot_document(snapshot))


def snapshot_document(snapshot: Snapshot) -> dict[str, object]:
    """A Snapshot as /api/v1/snapshot shows it: devices with their readings, holds, accounts."""
    inventory = snapshot.inventory
    document: dict[str, object] = {
        "node": snapshot.node,
        "unix_seconds": snapshot.wall_ns / 1e9,
        "driver_version": inventory.driver_version if inventory else None,
        "nvml_version": inventory.nvml_version if inventory else None,
        "error": inventory.error if inventory else "the sampler has not reported yet",
        "lost": dict(inventory.lost) if inventory else {},
    }
    devices: list[dict[str, object]] = []
    for device in inventory.devices if inventory else ():
        uuid = device.entity.uuid
        window = snapshot.windows.get(uuid)
        totals = snapshot.totals.get(uuid, {})
        devices.append(
            {
                "uuid": uuid,
                "gpu": device.entity.gpu,
                "parent_uuid": device.entity.parent,
                "model": device.model,
                "pci_bus_id": device.pci_bus_id,
                "mig": device.mig,
                "up": snapshot.up.get(uuid, False),
                "window_end_unix_seconds": None if window is None else window.end_wall_ns / 1e9,
                "readings": {} if window is None else {**window.last, **window.text},
                "missing": {} if window is None else {key: why.value for key, why in window.missing.items()},
                "totals": {key: total.value for key, total in totals.items()},
            }
        )
    document["devices"] = devices
    document["holds"] = list(snapshot.holds)
    document["accounts"] = list(snapshot.accounts)
    return document


def _header(request: web.Request, name: str) -> str | None:
    """A list header as one string, however many lines it came in."""
    lines = request.headers.getall(name, None)
    return None if lines is None else ",".join(lines)


def _plain(text: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        text=text, status=status, content_type="text/plain", charset="utf-8",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def _json(document: object, *, status: int = 200) -> web.Response:
    body = msgspec.json.encode(document)
    return web.Response(
        body=body, status=status, content_type="application/json", headers={"Cache-Control": "no-store"}
    )


@web.middleware
async def _clean_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals as one plain line that says what there is instead."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return _plain(
            f"nothing is served at {request.path[:200]!a}; there are /, /metrics, /livez, /readyz "
            "and /api/v1/snapshot\n",
            status=404,
        )
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return _plain(
            f"{request.method[:20]!a} is not allowed here; use {allowed}\n", status=405, headers={"Allow": allowed}
        )


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Server"] = "claimscope"


def make_application(
    *,
    snapshot: Callable[[], Snapshot | None],
    collector: Collector,
    readiness: Callable[[], Readiness],
    version: str,
    counters: WebCounters | None = None,
    middlewares: Sequence[Middleware] = (),
    max_scrapes: int = MAX_SCRAPES,
    send_seconds: float = SEND_SECONDS,
) -> web.Application:
    """The agent's web application; `snapshot` and `readiness` are asked at every request and must not wait."""
    counters = counters if counters is not None else WebCounters()
    site = _Site(
        snapshot=snapshot,
        readiness=readiness,
        collector=collector,
        metrics=Metrics(collector, counters),
        counters=counters,
        version=version,
        max_scrapes=max_scrapes,
        send_seconds=send_seconds,
    )
    application = web.Application(middlewares=[_clean_errors, *middlewares], client_max_size=_BODY_BYTES)
    application.on_response_prepare.append(_harden)
    application.router.add_get("/", site.serve_page)
    application.router.add_get("/metrics", site.serve_metrics)
    application.router.add_get("/livez", site.serve_livez)
    application.router.add_get("/readyz", site.serve_readyz)
    application.router.add_get("/api/v1/snapshot", site.serve_snapshot)
    return application


class ListenError(Exception):
    """The web server cannot listen: where, why, and what to do."""


_CURES = {
    errno.EADDRINUSE: "another process listens there, perhaps a second agent; stop it (`ss -ltnp` shows it) or choose "
    "another port",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address; `ip address` lists them, `:PORT` means all",
    errno.EACCES: "ports below 1024 need a privilege the agent gives up; choose a higher port",
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
