"""A whole simulated node: its NVML library, its kubelet and its API server, all from one World.

The agent meets them as it meets real ones: a shared library, a Unix socket, an HTTP address. A node of a simulated
cluster has no API server of its own: the cluster's shows its objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claimscope.kube.api import OpenAccess
from claimscope.sim.api.server import RESOURCE_CLAIMS, RESOURCE_SLICES, Kind, SimApiServer
from claimscope.sim.fleet import node_world
from claimscope.sim.kubelet import SimKubelet
from claimscope.sim.library import SimulatedNvml, SimulatorError, run_writer
from claimscope.sim.scenario import load_scenario
from claimscope.sim.world import World, make_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping

    from claimscope.clock import Clock

SOCKET_PATH_BYTES = 107  # sun_path of unix(7), with its final zero byte
API_SECONDS = 0.5  # how often changes of the world reach the simulated API server


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedNode:
    """Where the parts of a running simulation are."""

    library_path: Path
    environment: Mapping[str, str]  # for whoever loads the library
    socket_path: Path  # of the simulated kubelet
    api: OpenAccess

    @staticmethod
    @contextlib.asynccontextmanager
    async def open(
        profile: str,
        *,
        node_name: str,
        scenario: str | None,
        clock: Clock,
        api_server_url: str | None = None,
        start_monotonic_ns: int | None = None,
    ) -> AsyncIterator[SimulatedNode]:
        """Runs a node until the context ends, with an API server of its own unless there is a cluster's.

        Raises ValueError, ScenarioError, or what a missing compiler says.
        """
        chosen = None if scenario is None else load_scenario(Path(scenario))
        if api_server_url is None:
            world = make_world(profile, chosen, node_name=node_name)
        else:
            world = node_world(profile, node_name, chosen)
        began_ns = clock.monotonic_ns() if start_monotonic_ns is None else start_monotonic_ns

        def now_seconds() -> float:
            return (clock.monotonic_ns() - began_ns) / 1e9

        async with contextlib.AsyncExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="claimscope-sim-")))
            socket_path = directory / "kubelet.sock"
            if len(str(socket_path)) > SOCKET_PATH_BYTES:
                raise SimulatorError(
                    f"the simulated kubelet's socket {socket_path} has a longer path than a socket may have "
                    f"({SOCKET_PATH_BYTES} bytes): set TMPDIR to a shorter one"
                )
            nvml = stack.enter_context(SimulatedNvml(world, directory=directory))
            kubelet = SimKubelet(socket_path, lambda: world.pods(now_seconds()))
            await kubelet.start()
            stack.push_async_callback(kubelet.stop)
            if api_server_url is None:
                api_server_url = await stack.enter_async_context(_own_server(world, node_name, now_seconds))
            await stack.enter_async_context(running(run_writer(nvml, clock, origin_ns=began_ns)))
            yield SimulatedNode(
                library_path=nvml.library_path,
                environment=nvml.environment,
                socket_path=kubelet.socket_path,
                api=OpenAccess(api_server_url),
            )


@contextlib.asynccontextmanager
async def running(work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Runs something beside the body, and ends it with the body; what it failed of is raised then."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, Exception):
            raise outcome


@contextlib.asynccontextmanager
async def _own_server(world: World, node_name: str, now_seconds: Callable[[], float]) -> AsyncIterator[str]:
    """An API server that shows one world; its URL."""
    server = SimApiServer()
    await server.start()
    try:
        async with running(_follow(world, server, node_name, now_seconds)):
            yield server.url
    finally:
        await server.stop()


async def _follow(world: World, server: SimApiServer, node_name: str, now_seconds: Callable[[], float]
) -> None:
    """Keeps the objects of the simulated API server as the world is."""
    known: dict[tuple[str, str, str], Mapping[str, Any]] = {}

    async def show(kind: Kind, objects: Iterable[Mapping[str, Any]]) -> None:
        present = {
            (kind.plural, item["metadata"].get("namespace", ""), item["metadata"]["name"]): item for item in objects
        }
        for key, item in present.items():
            if known.get(key) != item:
                known[key] = item
                await server.put(kind, item)
        for key in [key for key in known if key[0] == kind.plural and key not in present]:
            del known[key]
            await server.delete(kind, key[2], key[1])

    while True:
        at_seconds = now_seconds()
        await show(RESOURCE_SLICES, world.slices(node_name, at_seconds))
        await show(RESOURCE_CLAIMS, world.claims(at_seconds))
        await asyncio.sleep(API_SECONDS)
