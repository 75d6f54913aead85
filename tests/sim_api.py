"""A client of the simulated API server in one line per request, and the objects that its tests write."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from claimscope.sim.api.kinds import ALL_KINDS
from claimscope.sim.api.server import SimApiServer

Json = dict[str, Any]

TIME = 1795260212.0
CLAIMS = "/apis/resource.k8s.io/v1/namespaces/ml/resourceclaims"
ALL_CLAIMS = "/apis/resource.k8s.io/v1/resourceclaims"
RULES = "/apis/resource.k8s.io/v1/devicetaintrules"
LEASE_PATH = "/apis/coordination.k8s.io/v1/namespaces/ml/leases"
POD_PATH = "/api/v1/namespaces/ml/pods"
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY = "application/apply-patch+yaml"


class Client:
    """Requests in one line each."""

    def __init__(self, session: aiohttp.ClientSession, server: SimApiServer) -> None:
        self.session = session
        self.server = server

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        content_type: str = "application/json",
        token: str = "",
        **query: str,
    ) -> tuple[int, Json]:
        headers = {"User-Agent": "tester/1.0"}
        if body is not None:
            headers["Content-Type"] = content_type
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        async with self.session.request(
            method, self.server.url + path, data=data, headers=headers, params=query
        ) as response:
            raw = await response.read()
            answer: Json = json.loads(raw) if response.content_type == "application/json" else {"text": raw.decode()}
            return response.status, answer

    async def get(self, path: str, **query: str) -> Json:
        status, answer = await self.ask("GET", path, **query)
        assert status == 200, answer
        return answer

    @asynccontextmanager
    async def watch(self, path: str, **query: str) -> AsyncIterator[aiohttp.StreamReader]:
        params = {"watch": "true", "timeoutSeconds": "30", **query}
        async with self.session.get(self.server.url + path, params=params) as response:
            assert response.status == 200, await response.text()
            yield response.content


async def event(stream: aiohttp.StreamReader) -> tuple[str, Json]:
    async with asyncio.timeout(5):
        line = json.loads(await stream.readline())
    return line["type"], line["object"]


async def short(stream: aiohttp.StreamReader) -> tuple[str, str, str]:
    """An event as type, name, resourceVersion."""
    kind, found = await event(stream)
    return kind, found["metadata"].get("name", ""), found["metadata"].get("resourceVersion", "")


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[SimApiServer, Client]]:
    server = SimApiServer(options.pop("kinds", ALL_KINDS), wall=lambda: TIME, **options)
    await server.start()
    async with aiohttp.ClientSession() as session:
        try:
            yield server, Client(session, server)
        finally:
            await server.stop()


def named(name: str, namespace: str = "", **rest: Any) -> Json:
    meta = {"name": name, **({"namespace": namespace} if namespace else {}), **rest.pop("meta", {})}
    return {"metadata": meta, **rest}


def rule(effect: str = "NoSchedule", key: str = "broken") -> Json:
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceTaintRule",
        "metadata": {"name": "r"},
        "spec": {"deviceSelector": {"pool": "node-1"}, "taint": {"key": key, "effect": effect}},
    }
