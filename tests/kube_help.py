"""A simulated API server with a client, as the tests of claimscope.kube use it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from claimscope.kube.api import Access, ApiClient
from claimscope.kube.objects import Meta
from claimscope.sim.api.server import RESOURCE_SLICES, Kind, SimApiServer, StreamingLists

THING = Kind(group="example.com", version="v1", plural="things", kind="Thing")
PATH = "/apis/example.com/v1/things"


class Thing(msgspec.Struct, frozen=True):
    metadata: Meta
    size: int = 0


class Fixed:
    """Access that never changes; counts how often renewal was asked for."""

    def __init__(self, url: str, authorization: str | None = None) -> None:
        self.found = Access(base_url=url, authorization=authorization)
        self.renewed = 0

    async def access(self, *, renew: bool = False) -> Access:
        self.renewed += renew
        return self.found


def thing(name: str, size: int = 0) -> dict[str, object]:
    return {"metadata": {"name": name}, "size": size}


@asynccontextmanager
async def serving(
    token: str | None = None, *kinds: Kind, streaming_lists: StreamingLists = StreamingLists.SERVED
) -> AsyncIterator[tuple[SimApiServer, ApiClient]]:
    server = SimApiServer(kinds or (THING, RESOURCE_SLICES), token=token, streaming_lists=streaming_lists)
    url = await server.start()
    client = ApiClient(Fixed(url, f"Bearer {token}" if token else None), timeout=10)
    try:
        yield server, client
    finally:
        await client.close()
        await server.stop()
