"""A whole simulated node: its NVML library, its kubelet and its API server, all from one World.

The agent meets them as it meets real ones: a shared library, a Unix socket, an HTTP address.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claimscope.kube.api import Access
from claimscope.sim.apiserver import RESOURCE_CLAIMS, RESOURCE_SLICES, Kind, SimApiServer
from claimscope.sim.kubelet import SimKubelet
from claimscope.sim.library import SimulatedNvml, run_writer
from claimscope.sim.scenario import load_scenario
from claimscope.sim.world import World, make_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from claimscope.clock import Clock

API_SECONDS = 0.5  # how often changes of the world reach the simulated API server


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedAccess:
    """Leads to the simulated API server; it asks for no credentials."""

    base_url: str

    async def access(self, *, renew: bool = False) -> Access:
        """Where it is."""
        return Access(base_url=self.base_url)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedNode:
    """Where the parts of a running simulation are."""

    library_path: Path
    environment: Mapping[str, str]  # for whoever loads the library
    socket_path: Path  # of the simulated kubelet
    api: SimulatedAccess

    @staticmethod
    @contextlib.asynccontextmanager
    async def open(
        profile: str, *, node_name: str, scenario: str | None, clock: Clock
    ) -> AsyncIterator[SimulatedNode]:
        """Runs a node until the context ends. Raises ValueError, ScenarioError, or what a missing compiler says."""
        chosen = None if scenario is None else load_scenario(Path(scenario))
        world = make_world(profile, chosen, node_name=node_name)
        began_ns = clock.monotonic_ns()

        def now_seconds() -> float:
            return (clock.monotonic_ns() - began_ns) / 1e9

        with contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="claimscope-sim-")))
            nvml = stack.enter_context(SimulatedNvml(world, directory=directory))
            kubelet = SimKubelet(directory / "kubelet.sock", lambda: world.pods(now_seconds()))
            server = SimApiServer()
            await server.start()
            await kubelet.start()
            writer = asyncio.create_task(run_writer(nvml, clock, origin_ns=began_ns))
            follower = asyncio.create_task(_follow(world, server, node_name, now_seconds))
            try:
                yield SimulatedNode(
                    library_path=nvml.library_path,
                    environment=nvml.environment,
                    socket_path=kubelet.socket_path,
                    api=SimulatedAccess(base_url=server.url),
                )
            finally:
                for task in (writer, follower):
                    task.cancel()
                await asyncio.gather(writer, follower, return_exceptions=True)
                await kubelet.stop()
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
