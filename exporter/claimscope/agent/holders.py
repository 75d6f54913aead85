"""Who holds the node's devices, as the kubelet and the API server tell it?"""

from __future__ import annotations

import asyncio

from claimscope.kube.api import AccessSource, ApiClient
from claimscope.kube.claims import ClaimLookup
from claimscope.kube.podresources import PodResourcesClient, poll
from claimscope.kube.slices import watch_slices
from claimscope.node import Node

LOOKUP_SECONDS = 2.0  # what the API server may delay the first attribution


async def poll_kubelet(node: Node, path: str, *, in_pod: bool) -> None:
    """Hears from the kubelet which containers hold which devices, for as long as the agent runs."""
    client = PodResourcesClient(path)
    try:
        await poll(client, node.clock, node.on_listing, node.on_listing_error, expect_pods=in_pod)
    finally:
        await client.close()


async def attribute(node: Node, source: AccessSource | None, wait_seconds: float) -> None:
    """Joins every new listing, with what the API server adds where there is one."""
    if source is None:
        while True:
            await node.attribute(None)
    node.expects_slices = True
    api = ApiClient(source)
    try:
        await attribute_with_api(node, api, wait_seconds)
    finally:
        await api.close()


async def attribute_with_api(node: Node, api: ApiClient, wait_seconds: float) -> None:
    """Joins listings with slices and claims; asks nothing at the same moment as every other agent of a roll-out."""
    served: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_slices_after(node, api, wait_seconds, served), name="slices")
        tasks.create_task(_attribute_with_claims(node, api, served), name="claims")


async def _slices_after(node: Node, api: ApiClient, wait_seconds: float, served: asyncio.Future[str]) -> None:
    await asyncio.sleep(wait_seconds)
    await watch_slices(
        api, node.name, node.clock, node.on_slices, node.on_slices_error, node.on_slices_heard,
        on_version=served.set_result,
    )  # fmt: skip


async def _attribute_with_claims(node: Node, api: ApiClient, served: asyncio.Future[str]) -> None:
    """`served` is the version of slices and claims, which the slices' watch asks for with its back-off."""
    lookup: ClaimLookup | None = None
    waited = False
    while True:
        await node.news()
        if node.wants_api and not waited:  # the first listing is joined with what claims say, where that comes soon
            waited = True
            await asyncio.wait((served,), timeout=LOOKUP_SECONDS)
        if lookup is None and served.done():
            lookup = ClaimLookup(api, served.result(), node.clock, node.on_claims_error)
        await node.attribute(lookup)
