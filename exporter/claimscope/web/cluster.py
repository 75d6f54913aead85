"""What does the controller answer over HTTP?

The cluster's series, a page and a small JSON API from the published ClusterSnapshot. An exposition of 100 MB is
written and compressed in a worker thread and sent in pieces, so that watches go on meanwhile. A standby serves what it
says about itself; everything else it answers with the name of the replica that leads.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Final, TypeAlias

from claimscope.claims.model import ClaimState, PendingReason
from claimscope.export.cluster import ClusterCollector, ClusterExposition, ClusterText
from claimscope.export.process import ProcessSamples
from claimscope.metrics import controller
from claimscope.web.cluster_page import CONTENT_SECURITY_POLICY, render_page
from claimscope.web.health_part import SEVERITIES
from claimscope.web.site import (
    MAX_SCRAPES,
    SEND_SECONDS,
    WEB_NAMES,
    Nothing,
    Readiness,
    Site,
    WebCounters,
    assemble,
    in_json,
    in_page,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from aiohttp import web
    from aiohttp.typedefs import Middleware

    from claimscope.claims.explain import Explanation
    from claimscope.claims.model import ClaimView, ClusterSnapshot, Wait

    Explain: TypeAlias = Callable[[str, str], Explanation | Awaitable[Explanation | None] | None]

WEB_FAMILIES: Final = tuple(controller.PREFIX + name for name in WEB_NAMES)
LIST_LIMIT: Final = 500  # claims and waits in one answer where nothing else is asked for
LIST_LIMIT_MAX: Final = 10_000
_NOTHING: Final = "the controller has only just started and has nothing to show yet"
_READING: Final = "the cluster is still being read: ask again in a moment"
_STATES: Final = tuple(state.value for state in ClaimState)
_REASONS: Final = tuple(reason.value for reason in PendingReason)


def claim_document(view: ClaimView) -> dict[str, object]:
    """A claim as /api/v1/claims shows it."""
    return {
        "namespace": view.namespace,
        "name": view.name,
        "uid": view.uid,
        "state": view.state.value,
        "referenced": view.referenced,
        "deviceclass": view.deviceclass,
        "template": view.template,
        "source": view.source,
        "alternative": view.alternative,
        "workload": view.workload,
        "pods": view.pods,
        "devices": [
            {**held.key._asdict(), "request": held.request, "uuid": held.uuid, "node": held.node,
             "admin_access": held.admin, "share_id": held.share_id, "consumed": held.consumed, "health": held.health}
            for held in view.devices
        ],
        "requested_devices": view.requested_devices,
        "created_unix_seconds": view.created_wall,
        "deleting_unix_seconds": view.deleting_wall,
        "allocated_unix_seconds": view.allocated_wall,
        "leaked": view.leaked,
        "doing": view.doing,
        "doing_since_unix_seconds": view.doing_since_wall,
    }  # fmt: skip


def wait_document(wait: Wait, wall: float) -> dict[str, object]:
    """A claim that waits, as /api/v1/waits shows it."""
    return {
        "namespace": wait.namespace,
        "claim": wait.claim,
        "claim_uid": wait.claim_uid,
        "pod": wait.pod,
        "pod_claim": wait.pod_claim,
        "deviceclass": wait.deviceclass,
        "pending_seconds": None if wait.since_wall is None else round(max(0.0, wall - wait.since_wall), 3),
        "reason": wait.diagnosis.reason,
        "summary": wait.diagnosis.summary,
        "evidence": wait.diagnosis.evidence,
        "cure": wait.diagnosis.cure,
    }


def capacity_document(snapshot: ClusterSnapshot, query: Mapping[str, str]) -> dict[str, object]:
    """Devices by class and pool and state, as /api/v1/capacity shows them. Raises _BadQueryError."""
    _only_known(query)
    classes: dict[str, dict[str, int]] = {}
    pools: dict[tuple[str, str, str], dict[str, int]] = {}
    largest: dict[str, int] = {}
    for each in snapshot.samples:
        if each.family == "dra_pool_devices":
            labels = dict(each.labels)
            count = int(each.value)  # type: ignore[union-attr]  # not one of the histograms
            states = classes.setdefault(labels["deviceclass"], {})
            states[labels["state"]] = states.get(labels["state"], 0) + count
            key = (labels["driver"], labels["pool"], labels["deviceclass"])
            pools.setdefault(key, {})[labels["state"]] = count
        elif each.family == "dra_class_largest_claim_devices":
            largest[dict(each.labels)["deviceclass"]] = int(each.value)  # type: ignore[union-attr]
    return {
        "classes": [
            {"deviceclass": name, "devices": states, "largest_claim_devices": largest.get(name)}
            for name, states in sorted(classes.items())
        ],
        "pools": [
            {"driver": driver, "pool": pool, "deviceclass": name, "devices": states}
            for (driver, pool, name), states in sorted(pools.items())
        ],
    }


class _BadQueryError(ValueError):
    """A query parameter that cannot be used: which, and what to write instead."""


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit")
    if text is None:
        return LIST_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= LIST_LIMIT_MAX):
        raise _BadQueryError(f"limit={text[:40]!a} is not a number from 1 to {LIST_LIMIT_MAX}")
    return int(text)


def _only_known(query: Mapping[str, str], *known: str) -> None:
    for name in query:
        if name not in known:
            raise _BadQueryError(f"unknown parameter {name[:40]!a}; known are {', '.join(known) or 'none'}")


def claims_document(snapshot: ClusterSnapshot, query: Mapping[str, str]) -> dict[str, object]:
    """/api/v1/claims: the first claims that a query asks for, and how many there are. Raises _BadQueryError."""
    _only_known(query, "namespace", "state", "limit")
    limit, namespace, state = _limit(query), query.get("namespace"), query.get("state")
    if state is not None and state not in _STATES:
        raise _BadQueryError(f"state={state[:40]!a} is none; known are {', '.join(_STATES)}")
    found = [
        view
        for view in snapshot.claims.values()
        if (namespace is None or view.namespace == namespace) and (state is None or view.state.value == state)
    ]
    return {
        "unix_seconds": snapshot.wall_ns / 1e9,
        "total": len(found),
        "claims": [claim_document(view) for view in found[:limit]],
    }


def waits_document(snapshot: ClusterSnapshot, query: Mapping[str, str]) -> dict[str, object]:
    """/api/v1/waits: what waits, longest first. Raises _BadQueryError."""
    _only_known(query, "namespace", "reason", "limit")
    limit, namespace, reason = _limit(query), query.get("namespace"), query.get("reason")
    if reason is not None and reason not in _REASONS:
        raise _BadQueryError(f"reason={reason[:40]!a} is none; known are {', '.join(_REASONS)}")
    found = [
        wait
        for wait in snapshot.waits
        if (namespace is None or wait.namespace == namespace)
        and (reason is None or wait.diagnosis.reason.value == reason)
    ]
    found.sort(key=lambda wait: wait.since_wall if wait.since_wall is not None else float("inf"))
    wall = snapshot.wall_ns / 1e9
    return {
        "unix_seconds": wall, "total": len(found), "waits": [wait_document(wait, wall) for wait in found[:limit]]
    }  # fmt: skip


def health_document(snapshot: ClusterSnapshot, query: Mapping[str, str]) -> dict[str, object]:
    """/api/v1/health: GPUs that something is found against, worst first. Raises _BadQueryError."""
    _only_known(query, "node", "severity", "limit")
    limit, node, severity = _limit(query), query.get("node"), query.get("severity")
    if severity is not None and severity not in SEVERITIES:
        raise _BadQueryError(f"severity={severity[:40]!a} is none; known are {', '.join(SEVERITIES)}")
    found = [
        gpu for gpu in snapshot.sick
        if (node is None or gpu.node == node) and (severity is None or gpu.severity == severity)
    ]  # fmt: skip
    return {
        "unix_seconds": snapshot.wall_ns / 1e9,
        "total": len(found),
        "gpus": [
            {"uuid": gpu.uuid, "node": gpu.node, "severity": gpu.severity, "rules": gpu.rules,
             "since_unix_seconds": gpu.since_wall, "effect": gpu.effect, "held": gpu.held}
            for gpu in found[:limit]
        ],
    }  # fmt: skip


class _ClusterSite(Site):
    """The controller's handlers."""

    def __init__(
        self, *, snapshot: Callable[[], ClusterSnapshot | None], collector: ClusterCollector,
        readiness: Callable[[], Readiness], explain: Explain, leader: Callable[[], str | None],
        counters: WebCounters, version: str, max_scrapes: int, send_seconds: float,
    ) -> None:
        super().__init__(
            readiness=readiness, counters=counters, version=version, max_scrapes=max_scrapes,
            send_seconds=send_seconds,
        )
        self.snapshot = snapshot
        self.explain = explain
        self.leader = leader
        self._process = ProcessSamples()
        self._text = ClusterText(collector, self._process.families)
        self._exposition: ClusterExposition | None = None
        self._rendering = asyncio.Lock()

    async def body(self, openmetrics: bool, gzip: bool) -> bytes | Iterator[bytes]:
        snapshot = self.snapshot()
        if snapshot is None:
            raise Nothing(_NOTHING)
        async with self._rendering:
            began = time.perf_counter()
            exposition = self._exposition
            if exposition is None or exposition.snapshot is not snapshot:
                own = [*self.counters.samples(), *self._process.samples()]
                exposition = await asyncio.to_thread(self._text.exposition, snapshot, own)
                self._exposition = exposition
            packed = await asyncio.to_thread(exposition.gzipped, openmetrics) if gzip else None
            self.counters.render_seconds += time.perf_counter() - began
            self.counters.response_bytes = exposition.plain_bytes
        return exposition.chunks(openmetrics) if packed is None else packed

    def _leading(self) -> ClusterSnapshot:
        """The snapshot, where this replica has one of the cluster; raises Nothing."""
        snapshot = self.snapshot()
        if snapshot is None:
            raise Nothing(_NOTHING)
        if not snapshot.leading:
            leader = self.leader()
            raise Nothing(
                f"this replica stands by; {leader} leads: ask it, or the Service that points to it" if leader
                else "this replica stands by, and no other leads yet: ask again in a moment"
            )
        if not snapshot.complete:
            raise Nothing(_READING)
        return snapshot

    def _list(
        self, request: web.Request, make: Callable[[ClusterSnapshot, Mapping[str, str]], dict[str, object]]
    ) -> web.Response:
        try:
            return in_json(make(self._leading(), request.query))
        except Nothing as error:
            return in_json({"error": str(error)}, status=503)
        except _BadQueryError as error:
            return in_json({"error": str(error)}, status=400)

    async def serve_claims(self, request: web.Request) -> web.Response:
        return self._list(request, claims_document)

    async def serve_waits(self, request: web.Request) -> web.Response:
        return self._list(request, waits_document)

    async def serve_health(self, request: web.Request) -> web.Response:
        return self._list(request, health_document)

    async def serve_capacity(self, request: web.Request) -> web.Response:
        return self._list(request, capacity_document)

    async def serve_claim(self, request: web.Request) -> web.Response:
        try:
            self._leading()
            found = self.explain(request.match_info["namespace"], request.match_info["name"])
            if inspect.isawaitable(found):
                found = await found
            if found is None:
                raise Nothing(_READING)
            return in_json(found, status=200 if found.exists else 404)
        except Nothing as error:
            return in_json({"error": str(error)}, status=503)

    async def serve_page(self, request: web.Request) -> web.Response:
        snapshot = self.snapshot()
        text = render_page(
            snapshot=snapshot,
            leader=self.leader(),
            version=self.version,
            failing=self.failing(),
            refresh=request.query.get("refresh") == "on",
        )
        return in_page(text, CONTENT_SECURITY_POLICY)


def make_cluster_application(
    *,
    snapshot: Callable[[], ClusterSnapshot | None],
    collector: ClusterCollector,
    readiness: Callable[[], Readiness],
    explain: Explain,
    version: str,
    leader: Callable[[], str | None] = lambda: None,
    counters: WebCounters | None = None,
    middlewares: Sequence[Middleware] = (),
    max_scrapes: int = MAX_SCRAPES,
    send_seconds: float = SEND_SECONDS,
) -> web.Application:
    """The controller's web application; nothing that it asks may wait, but `explain` may answer with an awaitable.

    `explain` takes namespace and name of a claim; None stands for a cluster that is still being read. `leader` names
    the replica that leads, as far as it is known.
    """
    site = _ClusterSite(
        snapshot=snapshot,
        collector=collector,
        readiness=readiness,
        explain=explain,
        leader=leader,
        counters=counters if counters is not None else WebCounters(own=controller.own),
        version=version,
        max_scrapes=max_scrapes,
        send_seconds=send_seconds,
    )
    routes = {
        "/": site.serve_page,
        "/api/v1/claims": site.serve_claims,
        "/api/v1/claims/{namespace}/{name}": site.serve_claim,
        "/api/v1/waits": site.serve_waits,
        "/api/v1/health": site.serve_health,
        "/api/v1/capacity": site.serve_capacity,
    }
    return assemble(site, routes, middlewares)
