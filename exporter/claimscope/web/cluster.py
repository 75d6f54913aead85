"""What does the controller answer over HTTP?

The cluster's series, a page and a small JSON API from the published ClusterSnapshot. An exposition of 100 MB is
written and compressed in a worker thread and sent in pieces, so that watches go on meanwhile; whatever else walks the
cluster is made in worker threads too (`making.py`). A standby serves what it says about itself; everything else it
answers with the name of the replica that leads.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from claimscope.claims.model import ClusterSnapshot
from claimscope.export.cluster import ClusterCollector, ClusterExposition, ClusterText
from claimscope.export.process import ProcessSamples
from claimscope.metrics import controller
from claimscope.web.cluster_documents import (
    BadQueryError,
    capacity_document,
    claims_document,
    health_document,
    waits_document,
)
from claimscope.web.cluster_page import CONTENT_SECURITY_POLICY, page_body, render_page
from claimscope.web.making import OLDEST_SECONDS, Answers, CrowdedError, Makers, on_the_loop
from claimscope.web.review.sight import EVERYTHING, VIEWER, Sight, sight_of
from claimscope.web.review.visible import ClusterIndex, hidden_words, visible_explanation
from claimscope.web.site import (
    MAX_SCRAPES,
    SEND_SECONDS,
    WEB_NAMES,
    Body,
    Nothing,
    Readiness,
    Site,
    WebCounters,
    assemble,
    in_json,
    in_page,
    json_bytes,
    plain,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence

    from aiohttp import web
    from aiohttp.typedefs import Middleware

    from claimscope.claims.explain import Explanation

    Explain: TypeAlias = Callable[[str, str], Explanation | Awaitable[Explanation | None] | None]
    Make: TypeAlias = Callable[[ClusterSnapshot, Mapping[str, str]], dict[str, object]]

WEB_FAMILIES: Final = tuple(controller.PREFIX + name for name in WEB_NAMES)
_NOTHING: Final = "the controller has only just started and has nothing to show yet"
_READING: Final = "the cluster is still being read: ask again in a moment"
_EMPTY: Final = ClusterSnapshot(wall_ns=0, leading=True)
_CROWDED: Final = "too many answers are being made already; ask again in a moment"
_AGAIN: Final = {"Retry-After": "1"}
_NOT_YOURS: Final = "you may not read ResourceClaims in namespace {}: bind a Role to you with get resourceclaims there"


def _hidden(whole: ClusterSnapshot, shown: ClusterSnapshot) -> str:
    """What is said of that which somebody may not see."""
    if shown is whole:
        return ""
    claims, waits = len(whole.claims) - len(shown.claims), len(whole.waits) - len(shown.waits)
    return hidden_words(claims) or hidden_words(waits, "waits")


class _Cluster:
    """A snapshot that answers are made of, by worker threads."""

    def __init__(self, snapshot: ClusterSnapshot, makers: Makers) -> None:
        self.snapshot = snapshot
        self.answers = Answers(snapshot)
        self._makers = makers
        self._index: ClusterIndex | None = None

    async def index(self, client: str) -> ClusterIndex:
        """The snapshot by namespace. Raises CrowdedError."""
        if self._index is None:
            self._index = await self.answers.made(
                self._makers, ClusterIndex, client, lambda: ClusterIndex(self.snapshot)
            )
        return self._index

    async def sight(self, request: web.Request, namespaces: Iterable[str] | None = None) -> Sight:
        """What a caller may see of these namespaces, or of all that there are. Raises CrowdedError."""
        if request.get(VIEWER) is None:
            return EVERYTHING
        found = (await self.index(request.remote or "")).namespaces if namespaces is None else namespaces
        return await sight_of(request, lambda: found)

    async def answer(
        self, request: web.Request, what: Hashable, sight: Sight,
        make: Callable[[ClusterSnapshot, ClusterSnapshot], bytes],
    ) -> bytes:
        """What `make` makes of the whole snapshot and of what of it is seen. Raises CrowdedError."""
        client = request.remote or ""
        index = None if sight.everything else await self.index(client)

        def made() -> bytes:
            return make(self.snapshot, self.snapshot if index is None else index.visible(sight))

        return await self.answers.get(self._makers, (what, sight), client, made)


class _ClusterSite(Site):
    """The controller's handlers."""

    sources_held = 3  # the newest exposition, and two that slower scrapers still read

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
        self._makers = Makers()
        self._explainers = Makers(run=on_the_loop)
        self._cluster: _Cluster | None = None

    async def body(self, openmetrics: bool, gzip: bool) -> Body:
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
        return Body(exposition.chunks(openmetrics) if packed is None else packed, source=exposition)

    def _of(self, snapshot: ClusterSnapshot) -> _Cluster:
        """What answers are made of: this snapshot, or for a while one a little older."""
        known = self._cluster
        if known is None or (known.snapshot is not snapshot and not known.answers.hold()):
            known = self._cluster = _Cluster(snapshot, self._makers)
            asyncio.get_running_loop().call_later(OLDEST_SECONDS, self._forget, known)
        return known

    def _forget(self, cluster: _Cluster) -> None:
        if self._cluster is cluster:
            self._cluster = None  # where nobody asks, nothing is kept

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

    async def _list(self, request: web.Request, make: Make, *, of_claims: bool = True) -> web.Response:
        try:
            cluster = self._of(self._leading())
            query = {name: request.query[name] for name in request.query}
            make(_EMPTY, query)  # a query that makes no sense costs no review
            namespace = query.get("namespace") if of_claims else None
            sight = EVERYTHING
            if of_claims:
                sight = await cluster.sight(request, None if namespace is None else (namespace,))
            if namespace is not None and not sight.shows(namespace):
                return in_json({"error": _NOT_YOURS.format(namespace[:80])}, status=403)

            def document(whole: ClusterSnapshot, shown: ClusterSnapshot) -> bytes:
                hidden = _hidden(whole, shown) if namespace is None else ""  # who asks for one has it whole
                return msgspec.json.encode({**make(shown, query), **({"hidden": hidden} if hidden else {})})

            return json_bytes(await cluster.answer(request, (make, tuple(sorted(query.items()))), sight, document))
        except Nothing as error:
            return in_json({"error": str(error)}, status=503)
        except CrowdedError:
            return in_json({"error": _CROWDED}, status=503, headers=_AGAIN)
        except BadQueryError as error:
            return in_json({"error": str(error)}, status=400)

    async def serve_claims(self, request: web.Request) -> web.Response:
        return await self._list(request, claims_document)

    async def serve_waits(self, request: web.Request) -> web.Response:
        return await self._list(request, waits_document)

    async def serve_health(self, request: web.Request) -> web.Response:
        return await self._list(request, health_document, of_claims=False)

    async def serve_capacity(self, request: web.Request) -> web.Response:
        return await self._list(request, capacity_document, of_claims=False)

    async def serve_claim(self, request: web.Request) -> web.Response:
        try:
            cluster = self._of(self._leading())
            namespace, name = request.match_info["namespace"], request.match_info["name"]
            sight = await cluster.sight(request, (namespace,))
            if not sight.shows(namespace):  # before it is looked up: the answer must not tell whether it exists
                return in_json({"error": _NOT_YOURS.format(namespace[:80])}, status=403)
            found = await self._explainers.made(
                (namespace, name), request.remote or "", lambda: self.explain(namespace, name)
            )
            if found is None:
                raise Nothing(_READING)
            if not sight.everything:
                index = await cluster.index(request.remote or "")
                found = visible_explanation(found, sight, index.namespaces - {namespace})
            return in_json(found, status=200 if found.exists else 404)
        except Nothing as error:
            return in_json({"error": str(error)}, status=503)
        except CrowdedError:
            return in_json({"error": _CROWDED}, status=503, headers=_AGAIN)

    async def serve_page(self, request: web.Request) -> web.Response:
        snapshot, body = self.snapshot(), ""
        if snapshot is not None and snapshot.leading and snapshot.complete:
            cluster = self._of(snapshot)
            snapshot = cluster.snapshot
            try:
                sight = await cluster.sight(request)
                body = (await cluster.answer(request, page_body, sight, _page_body)).decode()
            except CrowdedError:
                return plain(f"{_CROWDED}\n", status=503, headers=_AGAIN)
        text = render_page(
            snapshot=snapshot,
            body=body,
            leader=self.leader(),
            version=self.version,
            failing=self.failing(),
            refresh=request.query.get("refresh") == "on",
        )
        return in_page(text, CONTENT_SECURITY_POLICY)


def _page_body(whole: ClusterSnapshot, shown: ClusterSnapshot) -> bytes:
    return page_body(shown, _hidden(whole, shown)).encode()


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
