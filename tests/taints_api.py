"""The simulated API server without a network: the same stored objects and refusals, and writes that fail when told."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from claimscope.kube.api import JSON, ApiClient, ApiError, ApiReason, OpenAccess, Params, reason_of
from claimscope.sim.api import discovery
from claimscope.sim.api.errors import Refused
from claimscope.sim.api.server import SimApiServer
from claimscope.sim.api.store import Stored
from claimscope.sim.api.writes import Target

LOST = "lost"  # the server does what was asked, and its answer does not come


class StoreApi(ApiClient):
    """Asks a server that was never started."""

    def __init__(self, server: SimApiServer) -> None:
        super().__init__(OpenAccess("http://127.0.0.1:1"))
        self._server = server
        self.trouble: deque[ApiReason | str | None] = deque()  # what comes of the next writes; None: they are done
        self.spared = ""  # a kind that it does not concern
        self.keeps: set[str] = set()  # names of what it lets nobody delete
        self.writes: list[str] = []  # method and kind of those that were done

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Mapping[str, Any] | Sequence[Any] | None = None,
        content_type: str = JSON,
        params: Params | None = None,
    ) -> bytes:
        """One request."""
        try:
            return self._answer(method, path, body, content_type, params or {})
        except Refused as refused:
            raise ApiError(reason_of(refused.code), f"{method} {path}: {refused}") from refused

    def _answer(self, method: str, path: str, body: Any, content_type: str, params: Params) -> bytes:
        store = self._server.store
        parts = [part for part in path.split("/") if part]
        found = discovery.answer(parts, store.kinds, self._server.git_version)
        if found is not None:
            return msgspec.json.encode(found)
        group, version, *rest = ("", *parts[1:]) if parts[0] == "api" else parts[1:]
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        kind = store.find(group, version, rest[0])
        name, subresource = (*rest[1:], "", "")[:2]
        if method == "GET":
            stored = store.table(kind).objects.get((namespace, name))
            if stored is None:
                raise ApiError(ApiReason.NOT_FOUND, f"{path} is not there")
            return stored.body(kind)
        target = Target(
            kind=kind, namespace=namespace, name=name, subresource=subresource,
            manager=params.get("fieldManager", "test"), dry_run=params.get("dryRun") == "All",
        )
        if method == "DELETE" and name in self.keeps:
            raise ApiError(ApiReason.FORBIDDEN, f"{method} {path}: another admission policy does not want it")
        trouble = self.trouble.popleft() if self.trouble and kind.plural != self.spared else None
        if isinstance(trouble, ApiReason):
            raise ApiError(trouble, f"{method} {path}: injected")
        document = msgspec.json.decode(body) if isinstance(body, bytes) else body
        stored = self._write(method, target, content_type, document)
        if not target.dry_run:
            self.writes.append(f"{method} {kind.plural}")
        if trouble == LOST:
            raise ApiError(ApiReason.TIMEOUT, f"{method} {path}: no answer")
        return stored.body(kind)

    def _write(self, method: str, target: Target, content_type: str, document: Any) -> Stored:
        writes = self._server.writes
        match method:
            case "POST":
                return writes.create(target, document)
            case "PUT":
                return writes.replace(target, document)[0]
            case "PATCH":
                return writes.patch(target, content_type, document)[0]
            case _:
                return writes.delete(target, document or {})[0]
