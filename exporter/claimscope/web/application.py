"""What does the agent answer over HTTP?

Devices with their readings and who holds them, from the published Snapshot; what every part answers alike is in
`web/site.py`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from claimscope.export.process import ProcessSamples
from claimscope.export.text import Exposition, Renderer
from claimscope.metrics import own
from claimscope.web.page import CONTENT_SECURITY_POLICY, render_page
from claimscope.web.review.sight import sight_of
from claimscope.web.review.visible import (
    document_namespaces,
    evidence_namespaces,
    hidden_words,
    holder_namespaces,
    visible_document,
    visible_health,
    visible_node,
    visible_samples,
)
from claimscope.web.site import (
    MAX_SCRAPES,
    SEND_SECONDS,
    WEB_NAMES,
    Body,
    Check,
    ListenError,
    Nothing,
    Readiness,
    RunningSite,
    Site,
    WebCounters,
    assemble,
    in_json,
    in_page,
    start_site,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiohttp import web
    from aiohttp.typedefs import Middleware

    from claimscope.export.collect import Collector
    from claimscope.export.dcgm.collect import DcgmCollector
    from claimscope.health.watch import HealthView
    from claimscope.model import Sample, Snapshot

__all__ = [
    "LAYERS",
    "WEB_FAMILIES",
    "Check",
    "ListenError",
    "Metrics",
    "Readiness",
    "RunningSite",
    "WebCounters",
    "layer_of",
    "make_application",
    "snapshot_document",
    "start_site",
]

LAYERS: Final = ("device", "edge", "account", "own")
DCGM_LAYER: Final = "dcgm"
WEB_FAMILIES: Final = tuple(own.PREFIX + name for name in WEB_NAMES)
_NOTHING: Final = "the agent has only just started and has nothing to show yet"
_NO_HEALTH: Final = "nothing is known of the devices' health: --health is off, or NVML has not answered yet"


def layer_of(family: str) -> str:
    """The layer that a family belongs to."""
    if family == "gpu_allocation_info":
        return "edge"
    if family.startswith(("dra_claim_gpu_", "pod_gpu_", "gpu_unattributed_")):
        return "account"
    if family.startswith("DCGM_"):
        return DCGM_LAYER
    return "device" if family.startswith("gpu_") else "own"


class Metrics:
    """The newest exposition, with what is only known when it is made: own process, web side, series."""

    def __init__(self, collector: Collector, counters: WebCounters, dcgm: DcgmCollector | None = None) -> None:
        self._collector = collector
        self._counters = counters
        self._dcgm = dcgm
        self._layers = LAYERS if dcgm is None else (*LAYERS, DCGM_LAYER)
        self._process = ProcessSamples()
        more = {} if dcgm is None else dcgm.families
        self._renderer = Renderer({**collector.families, **self._process.families, **more})
        self._exposition: Exposition[Snapshot] | None = None

    def exposition(self, snapshot: Snapshot) -> Exposition[Snapshot]:
        """The exposition of this Snapshot: the one at hand, where it is of the same."""
        if self._exposition is None or self._exposition.snapshot is not snapshot:
            self._exposition = Exposition(snapshot, self.samples, self._renderer)
        return self._exposition

    def samples(self, snapshot: Snapshot) -> list[Sample]:
        """Everything that an answer to /metrics shows."""
        samples = self._collector.collect(snapshot)
        if self._dcgm is not None:
            samples += self._dcgm.collect(snapshot)
        samples += self._counters.samples()
        samples += self._process.samples()
        layers = Counter(layer_of(sample.family) for sample in samples)
        layers["own"] += len(self._layers)
        samples += [own.own("series", layers[layer], layer) for layer in self._layers]
        return samples


class _AgentSite(Site):
    """The agent's handlers."""

    def __init__(
        self, *, snapshot: Callable[[], Snapshot | None], collector: Collector, readiness: Callable[[], Readiness],
        health: Callable[[], HealthView | None], health_document: Callable[[], dict[str, object] | None],
        counters: WebCounters, version: str, max_scrapes: int, send_seconds: float, dcgm: DcgmCollector | None,
    ) -> None:
        super().__init__(
            readiness=readiness, counters=counters, version=version, max_scrapes=max_scrapes,
            send_seconds=send_seconds,
        )
        self.snapshot = snapshot
        self.health = health
        self.health_document = health_document
        self.collector = collector
        self.metrics = Metrics(collector, counters, dcgm)

    async def body(self, openmetrics: bool, gzip: bool) -> Body:
        snapshot = self.snapshot()
        if snapshot is None:
            raise Nothing(_NOTHING)
        exposition = self.metrics.exposition(snapshot)
        rendered = exposition.render_seconds
        body = exposition.body(openmetrics, gzip)
        self.counters.render_seconds += exposition.render_seconds - rendered
        self.counters.response_bytes = exposition.plain_bytes
        return Body(body, source=exposition)

    async def serve_page(self, request: web.Request) -> web.Response:
        snapshot, health, hidden = self.snapshot(), self.health(), 0
        samples: Sequence[Sample] = ()
        if snapshot is not None:
            shown = snapshot
            sight = await sight_of(request, lambda: holder_namespaces(shown) | evidence_namespaces(health))
            samples = visible_samples(self.collector.collect(snapshot), sight)
            snapshot, hidden = visible_node(snapshot, sight)
            health = visible_health(health, sight)
        text = render_page(
            snapshot=snapshot,
            samples=samples,
            health=health if snapshot is not None else None,
            version=self.version,
            failing=self.failing(),
            refresh=request.query.get("refresh") == "on",
            hidden=hidden_words(hidden, "holders of devices"),
        )
        return in_page(text, CONTENT_SECURITY_POLICY)

    async def serve_snapshot(self, request: web.Request) -> web.Response:
        snapshot = self.snapshot()
        if snapshot is None:
            return in_json({"error": _NOTHING}, status=503)
        shown, hidden = visible_node(snapshot, await sight_of(request, lambda: holder_namespaces(snapshot)))
        left_out = {"hidden": hidden_words(hidden, "holders of devices")} if hidden else {}
        return in_json({**snapshot_document(shown), **left_out})

    async def serve_health(self, request: web.Request) -> web.Response:
        found = self.health_document()
        if found is None:
            return in_json({"error": _NO_HEALTH}, status=503)
        return in_json(visible_document(found, await sight_of(request, lambda: document_namespaces(found))))


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


def make_application(
    *,
    snapshot: Callable[[], Snapshot | None],
    collector: Collector,
    readiness: Callable[[], Readiness],
    version: str,
    health: Callable[[], HealthView | None] = lambda: None,
    health_document: Callable[[], dict[str, object] | None] = lambda: None,
    dcgm: DcgmCollector | None = None,
    counters: WebCounters | None = None,
    middlewares: Sequence[Middleware] = (),
    max_scrapes: int = MAX_SCRAPES,
    send_seconds: float = SEND_SECONDS,
) -> web.Application:
    """The agent's web application; `snapshot` and `readiness` are asked at every request and must not wait."""
    site = _AgentSite(
        snapshot=snapshot,
        collector=collector,
        readiness=readiness,
        health=health,
        health_document=health_document,
        counters=counters if counters is not None else WebCounters(),
        version=version,
        max_scrapes=max_scrapes,
        send_seconds=send_seconds,
        dcgm=dcgm,
    )
    pages = {
        "/": site.serve_page, "/api/v1/snapshot": site.serve_snapshot, "/api/v1/health": site.serve_health,
    }  # fmt: skip
    return assemble(site, pages, middlewares)
