"""An API server that does not exist: discovery, list and watch over real HTTP.

Generic over kinds: a kind is one row. Objects are kept as bytes; a watch sees every change after its
resourceVersion, bookmarks on request, and 410 where the history was compacted. Faults are queued per path.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from aiohttp import web

MAX_HISTORY: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One row: a kind in one version of one group ("" is the core group)."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = False
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # field selector -> path in the object


RESOURCE_SLICES: Final = Kind(
    group="resource.k8s.io",
    version="v1",
    plural="resourceslices",
    kind="ResourceSlice",
    fields={"spec.nodeName": ("spec", "nodeName"), "spec.driver": ("spec", "driver")},
)
RESOURCE_CLAIMS: Final = Kind(
    group="resource.k8s.io", version="v1", plural="resourceclaims", kind="ResourceClaim", namespaced=True
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpFault:
    """One answer instead of the real one."""

    status: int
    message: str = "injected"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Change:
    version: int
    type: str
    body: bytes
    selectors: Mapping[str, str]
    namespace: str


@dataclass(slots=True)
class _Table:
    kind: Kind
    objects: dict[tuple[str, str], _Change] = field(default_factory=dict)
    history: deque[_Change] = field(default_factory=lambda: deque(maxlen=MAX_HISTORY))


class SimApiServer:
    """Serves what was `put` on 127.0.0.1 until it is stopped."""

    def __init__(self, kinds: Sequence[Kind] = (RESOURCE_SLICES, RESOURCE_CLAIMS), *, token: str | None = None) -> None:
        self._tables = {(kind.group, kind.version, kind.plural): _Table(kind) for kind in kinds}
        self._token = token
        self._version = 1
        self._oldest = 1
        self._faults: dict[str, deque[HttpFault]] = {}
        self._injected: list[bytes] = []
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._closing = False
        self._drop = 0
        self.requests: list[tuple[str, dict[str, str]]] = []  # path and query of each request
        self.watchers = 0
        self.url = ""

    async def start(self, port: int = 0) -> str:
        """Begins to serve and returns the base URL."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self._serve)
        self._closing = False
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        host, bound = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{bound}"
        return self.url

    async def stop(self) -> None:
        """Ends all watches and the server."""
        self._closing = True
        async with self._changed:
            self._changed.notify_all()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def put(self, kind: Kind, obj: Mapping[str, Any]) -> int:
        """Creates or replaces an object and returns its resourceVersion."""
        table = self._table(kind)
        meta = obj["metadata"]
        key = (meta.get("namespace", ""), meta["name"])
        self._version += 1
        body = {
            "apiVersion": f"{kind.group}/{kind.version}" if kind.group else kind.version,
            "kind": kind.kind,
            **obj,
            "metadata": {**meta, "resourceVersion": str(self._version)},
        }
        change = _Change(
            self._version,
            "MODIFIED" if key in table.objects else "ADDED",
            msgspec.json.encode(body),
            {name: _at(body, path) for name, path in kind.fields.items()},
            key[0],
        )
        table.objects[key] = change
        await self._publish(table, change)
        return self._version

    async def delete(self, kind: Kind, name: str, namespace: str = "") -> int:
        """Deletes an object and returns the resourceVersion of the deletion."""
        table = self._table(kind)
        gone = table.objects.pop((namespace, name))
        self._version += 1
        body = msgspec.json.decode(gone.body)
        body["metadata"]["resourceVersion"] = str(self._version)
        await self._publish(
            table, _Change(self._version, "DELETED", msgspec.json.encode(body), gone.selectors, namespace)
        )
        return self._version

    def fail(self, path: str, *faults: HttpFault) -> None:
        """The next requests for `path` are answered so, in this order."""
        self._faults.setdefault(path, deque()).extend(faults)

    def compact(self) -> None:
        """Forgets the history: a watch from an older version is answered with 410."""
        self._oldest = self._version + 1
        self._version += 1

    async def inject_line(self, line: bytes) -> None:
        """Sends a raw line to every open watch."""
        async with self._changed:
            self._injected.append(line)
            self._changed.notify_all()

    async def drop_watches(self) -> None:
        """Ends every open watch, as a server does that goes away for a moment."""
        async with self._changed:
            self._drop += 1
            self._changed.notify_all()

    async def _publish(self, table: _Table, change: _Change) -> None:
        table.history.append(change)
        async with self._changed:
            self._changed.notify_all()

    def _table(self, kind: Kind) -> _Table:
        return self._tables[(kind.group, kind.version, kind.plural)]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.path, dict(request.query)))
        faults = self._faults.get(request.path)
        if faults:
            fault = faults.popleft()
            if fault.body is not None:
                return web.Response(status=fault.status, body=fault.body, headers=fault.headers)
            return _status(fault.status, fault.message, fault.headers)
        if self._token is not None and request.headers.get("Authorization") != f"Bearer {self._token}":
            return _status(401, "Unauthorized")
        parts = [part for part in request.path.split("/") if part]
        if parts[:1] == ["apis"]:
            group, rest = (parts[1] if len(parts) > 1 else None), parts[2:]
        elif parts[:1] == ["api"]:
            group, rest = "", parts[1:]
        else:
            return _status(404, "the server could not find the requested resource")
        if group is None:
            return _status(404, "the server could not find the requested resource")
        return await self._grouped(request, group, rest)

    async def _grouped(self, request: web.Request, group: str, rest: list[str]) -> web.StreamResponse:
        kinds = [table.kind for table in self._tables.values() if table.kind.group == group]
        if not kinds:
            return _status(404, "the server could not find the requested resource")
        if not rest:
            versions = [
                {"groupVersion": f"{group}/{version}", "version": version}
                for version in dict.fromkeys(kind.version for kind in kinds)
            ]
            return _json({"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": versions})
        version, *rest = rest
        kinds = [kind for kind in kinds if kind.version == version]
        if not kinds:
            return _status(404, "the server could not find the requested resource")
        if not rest:
            resources = [
                {
                    "name": kind.plural,
                    "kind": kind.kind,
                    "namespaced": kind.namespaced,
                    "verbs": ["get", "list", "watch"],
                }
                for kind in kinds
            ]
            return _json({"kind": "APIResourceList", "groupVersion": f"{group}/{version}", "resources": resources})
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        table = self._tables.get((group, version, rest[0]))
        if table is None or len(rest) > 2:
            return _status(404, "the server could not find the requested resource")
        if len(rest) == 2:
            one = table.objects.get((namespace, rest[1]))
            if one is None:
                return _status(404, f'{table.kind.plural}.{group} "{rest[1]}" not found')
            return web.Response(body=one.body, content_type="application/json")
        wanted = dict(term.split("=", 1) for term in request.query.get("fieldSelector", "").split(",") if "=" in term)
        if wanted.keys() - table.kind.fields.keys() - {"metadata.name"}:
            return _status(400, f"field label not supported: {', '.join(sorted(wanted))}")
        if request.query.get("watch") in ("true", "1"):
            return await self._watch(request, table, namespace, wanted)
        return self._list(table, namespace, wanted)

    def _list(self, table: _Table, namespace: str, wanted: Mapping[str, str]) -> web.Response:
        kind = table.kind
        items = b",".join(change.body for change in table.objects.values() if _selected(change, namespace, wanted))
        group_version = f"{kind.group}/{kind.version}" if kind.group else kind.version
        head = (
            f'{{"kind":"{kind.kind}List","apiVersion":"{group_version}",'
            f'"metadata":{{"resourceVersion":"{self._version}"}},"items":['
        )
        return web.Response(body=head.encode() + items + b"]}", content_type="application/json")

    async def _watch(
        self, request: web.Request, table: _Table, namespace: str, wanted: Mapping[str, str]
    ) -> web.StreamResponse:
        after = int(request.query.get("resourceVersion") or 0)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if after < self._oldest:
            await response.write(
                b'{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","message":"too old '
                b'resource version: %d (%d)","reason":"Expired","code":410}}\n' % (after, self._oldest)
            )
            return response
        if request.query.get("allowWatchBookmarks") == "true" and after >= self._version:
            await response.write(
                b'{"type":"BOOKMARK","object":{"kind":"%s","metadata":{"resourceVersion":"%d"}}}\n'
                % (table.kind.kind.encode(), after)
            )
        injected, drop = len(self._injected), self._drop
        loop = asyncio.get_running_loop()
        deadline = loop.time() + float(request.query.get("timeoutSeconds") or 300)
        self.watchers += 1
        try:
            while not self._closing and self._drop == drop:
                lines = [
                    b'{"type":"%s","object":%s}\n' % (change.type.encode(), change.body)
                    for change in table.history
                    if change.version > after and _selected(change, namespace, wanted)
                ]
                after = max(after, *(change.version for change in table.history)) if table.history else after
                lines += self._injected[injected:]
                injected = len(self._injected)
                for line in lines:
                    await response.write(line)
                if lines:
                    continue
                try:
                    async with asyncio.timeout_at(deadline), self._changed:
                        await self._changed.wait()
                except TimeoutError:
                    break
        finally:
            self.watchers -= 1
        return response


def _selected(change: _Change, namespace: str, wanted: Mapping[str, str]) -> bool:
    if namespace and change.namespace != namespace:
        return False
    return all(change.selectors.get(name) == value for name, value in wanted.items() if name != "metadata.name")


def _at(body: Mapping[str, Any], path: tuple[str, ...]) -> str:
    here: Any = body
    for part in path:
        here = here.get(part) if isinstance(here, dict) else None
    return here if isinstance(here, str) else ""


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _status(code: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return web.Response(
        status=code, body=msgspec.json.encode(body), content_type="application/json", headers=headers or {}
    )
