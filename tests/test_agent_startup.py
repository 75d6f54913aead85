"""A thousand agents that start at once, or meet an API server in trouble, do not ask it all at the same moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from claimscope.accounting.ledger import Ledger
from claimscope.agent.heartbeat import quiet_seconds
from claimscope.agent.holders import attribute_with_api
from claimscope.clock import SystemClock
from claimscope.kube.api import ApiClient, OpenAccess
from claimscope.kube.structs import ClaimDevice, ClaimEntry, ContainerEntry, Listing, PodEntry
from claimscope.metrics.tables import QUANTITIES
from claimscope.node import Node
from claimscope.sim.api.faults import HttpFault
from claimscope.sim.api.kinds import ALL_KINDS
from claimscope.sim.api.server import SimApiServer
from controller_process import until

GROUP = "/apis/resource.k8s.io"
UID = "6a4ef0c4-7a0e-4c4c-8d6e-0d2f2f3a9b10"
DEVICE = ClaimDevice(
    driver="gpu.nvidia.com", pool="node-a", device="gpu-0", cdi=(f"k8s.gpu.nvidia.com/claim={UID}-gpu-0",)
)
CONTAINER = ContainerEntry(name="main", claims=(ClaimEntry(namespace="ml", name="train", resources=(DEVICE,)),))
LISTING = Listing(pods=(PodEntry(namespace="ml", name="train-0", containers=(CONTAINER,)),))


def a_node() -> Node:
    return Node(name="node-a", clock=SystemClock(), ledger=Ledger(QUANTITIES), attribution=True, hang_seconds=3.0)


@contextlib.asynccontextmanager
async def following(*waits: float, faults: int = 0) -> AsyncIterator[tuple[SimApiServer, list[Node]]]:
    """Nodes on which a claim is held, each of which asks the server after its wait."""
    server = SimApiServer(ALL_KINDS, git_version="v1.37.0")
    await server.start()
    server.fail(GROUP, *[HttpFault(status=503)] * faults)
    api = ApiClient(OpenAccess(server.url))
    nodes = [a_node() for _ in waits]
    tasks = [asyncio.create_task(attribute_with_api(node, api, wait)) for node, wait in zip(nodes, waits, strict=True)]
    try:
        yield server, nodes
        assert [task.done() for task in tasks] == [False] * len(tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await api.close()
        await server.stop()


def asked(server: SimApiServer, path: str) -> int:
    return len([found for found, _ in server.requests if found == path])


async def test_nothing_is_asked_before_the_pause_is_over() -> None:
    async with following(3600.0, 0.0) as (server, nodes):
        nodes[0].on_listing(LISTING, nodes[0].clock.monotonic_ns())
        watched = f"{GROUP}/v1/resourceslices"
        await until(lambda: asked(server, watched) > 0, 10.0, lambda: str(server.requests))
        assert (asked(server, GROUP), asked(server, f"{GROUP}/v1/namespaces/ml/resourceclaims/train")) == (1, 0)


async def test_a_server_in_trouble_is_not_asked_again_with_each_listing() -> None:
    async with following(0.0, faults=2) as (server, (node,)):
        clock = node.clock

        def told_and_asked_three_times() -> bool:
            node.on_listing(LISTING, clock.monotonic_ns())
            return asked(server, GROUP) >= 3

        began_ns = clock.monotonic_ns()
        await until(told_and_asked_three_times, 20.0, lambda: str(server.requests))
        # Pauses of half a second and a second, each of them half as long at least.
        assert clock.monotonic_ns() - began_ns >= 0.75e9
        await until(lambda: asked(server, f"{GROUP}/v1/resourceslices") > 0, 10.0, lambda: str(server.requests))
        assert asked(server, GROUP) == 3


def test_the_lease_is_written_late_but_never_so_late_that_the_node_looks_silent() -> None:
    assert [quiet_seconds(seconds, "") for seconds in (0.0, 5.0, 600.0)] == [0.0, 5.0, 60.0]
    assert quiet_seconds(600.0, "maintenance") == 0.0
