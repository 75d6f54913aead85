"""An API server that does not exist: discovery, list, watch and writes over real HTTP.

Generic over kinds (rows in apikinds). Faults, delays and pauses can be asked for per path. What it holds is in
apistore, what writes do in apiwrites, who may do what in apiaccess.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import yaml
from aiohttp import web

from claimscope.sim.api import discovery as apidiscovery
from claimscope.sim.api import errors as apierrors
from claimscope.sim.api.access import REVIEWS, AccessTable, Asked, Rule, User
from claimscope.sim.api.errors import Refused
from claimscope.sim.api.faults import HttpFault, faulty
from claimscope.sim.api.kinds import ALL_KINDS, RESOURCE_CLAIMS, RESOURCE_SLICES, in_version
from claimscope.sim.api.store import MAX_HISTORY, Kind, Selection, Store, Stored
from claimscope.sim.api.watch import BATCH, StreamingLists, Watches, number
from claimscope.sim.api.writes import Admit, Target, Writes

__all__ = [
    "ALL_KINDS",
    "RESOURCE_CLAIMS",
    "RESOURCE_SLICES",
    "HttpFault",
    "Kind",
    "SimApiServer",
    "StreamingLists",
    "User",
    "in_version",
]

_MAX_REQUESTS: Final = 10_000
_MAX_BODY_BYTES: Final = 16 * 1024 * 1024
_STREAMED: Final = 1_000  # longer lists are not built as one body
_PATCHES: Final = (apierrors.JSON_PATCH, apierrors.MERGE_PATCH, apierrors.APPLY_PATCH)


class SimApiServer:
    """Serves what was `put`, loaded or written on 127.0.0.1 until it is stopped."""

    def __init__(
        self,
        kinds: Sequence[Kind] = (RESOURCE_SLICES, RESOURCE_CLAIMS),
        *,
        token: str | None = None,
        users: Mapping[str, User] | None = None,
        rule: Rule | None = None,
        admit: Admit | None = None,
        git_version: str = "v1.36.3",
        streaming_lists: StreamingLists = StreamingLists.SERVED,
        bookmark_seconds: float = 60.0,
        max_history: int = MAX_HISTORY,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.store = Store(kinds, on_change=lambda table: self._watches.wake(table), max_history=max_history)
        self.writes = Writes(self.store, wall, admit)
        known = {} if token is None else {token: User(name="kubernetes-admin")}
        self.access = AccessTable({**known, **(users or {})}, rule)
        self.git_version = git_version
        self.ready = True  # what /readyz says
        self._faults: dict[str, deque[HttpFault]] = {}
        self._latency: dict[str, float] = {}
        self._open = asyncio.Event()
        self._open.set()
        self._watches = Watches(self.store, self._open, streaming_lists, bookmark_seconds)
        self._requests: deque[tuple[str, dict[str, str]]] = deque(maxlen=_MAX_REQUESTS)
        self._writes: deque[str] = deque(maxlen=_MAX_REQUESTS)
        self._runner: web.AppRunner | None = None
        self.url = ""

    @property
    def requests(self) -> list[tuple[str, dict[str, str]]]:
        """Path and query of the latest requests."""
        return list(self._requests)

    @property
    def write_requests(self) -> list[str]:
        """Method and path of the latest requests that are to change something, refused ones and trials among them."""
        return list(self._writes)

    @property
    def watchers(self) -> int:
        """How many watches are open."""
        return self._watches.count

    async def start(self, port: int = 0) -> str:
        """Begins to serve and returns the base URL."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._serve)
        # Cancelled handlers: a watch whose client has gone is no longer counted.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        host, bound = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{bound}"
        return self.url

    async def stop(self) -> None:
        """Ends all watches and the server."""
        self._open.set()
        await self.drop_watches()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    # ---- The cluster's side ------------------------------------------------------------------------------------

    async def put(self, kind: Kind, obj: Mapping[str, Any]) -> int:
        """Creates or replaces an object as it is given and returns its resourceVersion."""
        return self.store.write(kind, obj).version

    async def delete(self, kind: Kind, name: str, namespace: str = "") -> int:
        """Deletes an object at once, whatever its finalizers, and returns the resourceVersion of the deletion."""
        return self.store.remove(kind, (namespace, name)).version

    def get(self, kind: Kind, name: str, namespace: str = "") -> dict[str, Any] | None:
        """An object as a client would get it, None where there is none."""
        stored = self.store.table(kind).objects.get((namespace, name))
        if stored is None:
            return None
        found: dict[str, Any] = msgspec.json.decode(stored.body(kind))
        return found

    def load(self, kind: Kind, objects: Iterable[Mapping[str, Any] | bytes]) -> int:
        """Stores many objects (JSON, or decoded) fast. Watches on the kind end with 410. Returns the number."""
        return self.store.load(kind, objects)

    def upgrade(self, git_version: str, kinds: Sequence[Kind]) -> None:
        """Another release takes over what is stored, and serves it in other versions."""
        self.git_version = git_version
        self.store.kinds = tuple(kinds)

    def compact(self) -> None:
        """Forgets the history: a watch from an older version is answered with 410."""
        self.store.compact()

    async def until_watched(self, count: int = 1) -> None:
        """Waits until so many watches are open."""
        await self._watches.until(count)

    # ---- Faults ------------------------------------------------------------------------------------------------

    def fail(self, path: str, *faults: HttpFault) -> None:
        """The next requests for `path` are answered so, in this order."""
        self._faults.setdefault(path, deque()).extend(faults)

    def delay(self, path: str, seconds: float) -> None:
        """Every answer for `path` comes so late, until it is set back to 0."""
        self._latency[path] = seconds

    def pause(self) -> None:
        """Takes requests but does not answer them, and sends nothing to open watches."""
        self._open.clear()

    def resume(self) -> None:
        """Answers again."""
        self._open.set()

    async def inject_line(self, line: bytes) -> None:
        """Sends a raw line to every open watch."""
        self._watches.inject(line)

    async def drop_watches(self) -> None:
        """Ends every open watch, as a server does that goes away for a moment."""
        self._watches.drop()

    async def cut_watches(self) -> None:
        """Breaks the connection of every open watch in the middle of a line."""
        self._watches.cut()

    # ---- Requests ----------------------------------------------------------------------------------------------

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self._requests.append((request.path, dict(request.query)))
        if request.method != "GET":
            self._writes.append(f"{request.method} {request.path}")
        if seconds := self._latency.get(request.path):
            await asyncio.sleep(seconds)
        await self._open.wait()
        if faults := self._faults.get(request.path):
            return await faulty(request, faults.popleft())
        try:
            return await self._answer(request)
        except Refused as refused:
            return _refusal(refused)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        user = self.access.user(request.headers.get("Authorization", ""))
        if request.path in ("/readyz", "/livez", "/healthz"):
            well = self.ready or request.path != "/readyz"
            return web.Response(
                status=200 if well else 500, text="ok" if well else "[-]shutdown failed: reason withheld"
            )
        parts = [part for part in request.path.split("/") if part]
        found = apidiscovery.answer(parts, self.store.kinds, self.git_version)
        if found is not None:
            if request.method != "GET":
                raise apierrors.wrong_method()
            return _json(found)
        if parts[:1] not in (["apis"], ["api"]):
            raise apierrors.no_resource()
        group, version, *rest = ("", *parts[1:]) if parts[0] == "api" else parts[1:]
        if (group, version, rest[0]) in REVIEWS:
            return await self._review(request, user, (group, version, rest[0]))
        return await self._resource(request, user, group, version, rest)

    async def _review(self, request: web.Request, user: User, which: tuple[str, str, str]) -> web.Response:
        if request.method != "POST":
            raise apierrors.wrong_method()
        body = await _body(request)
        status = self.access.review(which[2], user, body)
        kind = {"kind": REVIEWS[which], "apiVersion": f"{which[0]}/{which[1]}", "metadata": {}}
        return _json({**kind, **({"spec": body["spec"]} if "spec" in body else {}), "status": status}, 201)

    async def _resource(
        self, request: web.Request, user: User, group: str, version: str, rest: list[str]
    ) -> web.StreamResponse:
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        kind = self.store.find(group, version, rest[0])
        name, subresource = (*rest[1:], "", "")[:2]
        known_parts = {"": True, "status": kind.status, "scale": kind.scale and request.method == "PATCH"}
        unknown_part = not known_parts.get(subresource, False)
        if len(rest) > 3 or unknown_part or (namespace and not kind.namespaced):
            raise apierrors.no_resource()
        if kind.namespaced and not namespace and (name or request.method != "GET"):
            raise apierrors.no_resource() if name else apierrors.wrong_method()
        query = request.query
        watching = request.method == "GET" and not name and query.get("watch") in ("true", "1")
        verb = "watch" if watching else _verb(request.method, bool(name))
        self.access.check(
            user,
            kind,
            Asked(
                verb=verb, group=group, resource=kind.plural, subresource=subresource, namespace=namespace, name=name
            ),
        )
        if request.method == "GET" and not name:
            chosen = Selection(kind, namespace, query.get("fieldSelector", ""), query.get("labelSelector", ""))
            return await (self._watches.serve if watching else self._list)(request, kind, chosen)
        target = Target(
            kind=kind,
            namespace=namespace,
            name=name,
            subresource=subresource,
            manager=_manager(request),
            dry_run=query.get("dryRun") == "All",
            force=query.get("force") in ("true", "1"),
        )
        return await self._one(request, target)

    async def _one(self, request: web.Request, target: Target) -> web.Response:
        kind, made = target.kind, False
        if request.method == "GET":
            stored = self.store.table(kind).objects.get(target.key)
            if stored is None:
                raise apierrors.not_found(kind, target.name)
        elif request.method == "POST":
            stored, made = self.writes.create(target, await _body(request)), True
        elif request.method == "PUT":
            stored, made = self.writes.replace(target, await _body(request))
        elif request.method == "PATCH":
            if request.content_type not in _PATCHES:
                raise apierrors.unknown_format(_PATCHES)
            stored, made = self.writes.patch(target, request.content_type, await _body(request, any_type=True))
        else:
            options = await _body(request) if request.can_read_body else {}
            if "gracePeriodSeconds" in request.query:
                options = {**options, "gracePeriodSeconds": int(request.query["gracePeriodSeconds"])}
            stored, gone = self.writes.delete(target, options)
            if gone:
                return _json(_deleted(kind, stored))
        return web.Response(status=201 if made else 200, body=stored.body(kind), content_type="application/json")

    # ---- List --------------------------------------------------------------------------------------------------

    async def _list(self, request: web.Request, kind: Kind, selection: Selection) -> web.StreamResponse:
        query = request.query
        asked = number(query.get("resourceVersion", ""), "resourceVersion")
        if asked > self.store.version:
            raise apierrors.too_large_version(asked, self.store.version)
        page = self.store.page(kind, selection, number(query.get("limit", ""), "limit"), query.get("continue", ""))
        meta: dict[str, Any] = {"resourceVersion": str(page.version)}
        if page.following:
            meta["continue"] = page.following
        if page.remaining:
            meta["remainingItemCount"] = page.remaining
        head = (
            f'{{"kind":"{kind.kind}List","apiVersion":"{kind.api_version}","metadata":'.encode()
            + msgspec.json.encode(meta)
            + b',"items":['
        )
        if len(page.items) <= _STREAMED:
            body = head + b",".join(stored.tail for stored in page.items) + b"]}"
            return web.Response(body=body, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(head)
        for start in range(0, len(page.items), BATCH):
            part = b",".join(stored.tail for stored in page.items[start : start + BATCH])
            await response.write(b"," + part if start else part)
        await response.write(b"]}")
        return response


async def _body(request: web.Request, *, any_type: bool = False) -> Any:  # noqa: ANN401 - whatever was sent
    accepted = ("application/json", "application/yaml")
    raw = await request.read()
    if not any_type and request.content_type not in (*accepted, "application/octet-stream"):
        raise apierrors.unknown_format(accepted)
    try:
        if request.content_type in (apierrors.APPLY_PATCH, "application/yaml") and not raw.lstrip().startswith(b"{"):
            return yaml.safe_load(raw)
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise apierrors.bad_request(
            f"the object provided is unrecognized (must be of type runtime.Object): {error}"
        ) from error


def _verb(method: str, named: bool) -> str:
    verbs = (
        {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
        if named
        else {"GET": "list", "POST": "create"}
    )
    if method not in verbs:
        raise apierrors.wrong_method()
    return verbs[method]


def _manager(request: web.Request) -> str:
    named = request.query.get("fieldManager", "")
    if named or request.content_type == apierrors.APPLY_PATCH:
        return named
    return request.headers.get("User-Agent", "").split("/", 1)[0] or "unknown"


def _deleted(kind: Kind, stored: Stored) -> dict[str, Any]:
    details = {"name": stored.key[1], "group": kind.group, "kind": kind.plural}
    uid = msgspec.json.decode(stored.tail)["metadata"].get("uid", "")
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    return {**body, "details": {name: value for name, value in {**details, "uid": uid}.items() if value}}


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


def _refusal(refused: Refused) -> web.Response:
    return _json(refused.status, refused.code)
