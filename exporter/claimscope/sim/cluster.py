"""A whole simulated cluster behind one API server: nodes with agents' worlds, other vendors' nodes, pods that wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from claimscope.claims.selectors import Selectors
from claimscope.clock import Clock
from claimscope.sim.api.kinds import DEVICE_TAINT_RULES
from claimscope.sim.api.server import ALL_KINDS, Kind, SimApiServer, in_version
from claimscope.sim.cluster_state import ClusterState, ObjectKey
from claimscope.sim.evictions import DeviceTaintEvictions
from claimscope.sim.fleet import node_world
from claimscope.sim.node import API_SECONDS, running
from claimscope.sim.objects import Object
from claimscope.sim.scenario import Scenario

DEFAULT_NODES: Final = (("demo-node-1", "h100x8"), ("demo-node-2", "h100x8"), ("demo-node-3", "a100x8-mig"))
# Kubernetes 1.36 serves DeviceTaintRules in v1beta2, 1.37 in v1.
KINDS: Final = tuple(in_version(kind, "v1beta2") if kind is DEVICE_TAINT_RULES else kind for kind in ALL_KINDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCluster:
    """Where a running cluster is, and what its agents must know to be part of it."""

    url: str  # of the API server
    start_monotonic_ns: int  # when the simulation began
    nodes: Mapping[str, str]  # node -> profile
    state: ClusterState
    server: SimApiServer

    @staticmethod
    @contextlib.asynccontextmanager
    async def open(
        nodes: Sequence[tuple[str, str]] = DEFAULT_NODES,
        *,
        clock: Clock,
        port: int = 0,
        scenarios: Mapping[str, Scenario] = MappingProxyType({}),
    ) -> AsyncIterator[SimulatedCluster]:
        """Runs a cluster until the context ends. `scenarios` are played on the nodes of their names.

        Raises ValueError and ScenarioError as `node_world` does, and SchedulerCannotDecideError without CEL.
        """
        worlds = [node_world(profile, name, scenarios.get(name)) for name, profile in nodes]
        began_ns, wall_ns = clock.monotonic_ns(), clock.wall_ns()
        selectors = Selectors.in_process()
        try:
            state = ClusterState(worlds, selectors, origin=wall_ns / 1e9)
        finally:
            selectors.close()
        server = SimApiServer(KINDS)
        follower = Follower(server, state)
        await follower.show(0.0)
        await server.start(port)
        try:
            rules = DeviceTaintEvictions(server, lambda: clock.wall_ns() / 1e9)
            async with running(follower.run(clock, began_ns)), running(_tell_of_rules(rules)):
                yield SimulatedCluster(
                    url=server.url, start_monotonic_ns=began_ns, nodes=dict(nodes), state=state, server=server
                )
        finally:
            await server.stop()


async def _tell_of_rules(evictions: DeviceTaintEvictions) -> None:
    """Says in the status of each DeviceTaintRule what it does, as kube-controller-manager does."""
    while True:
        evictions.step()
        await asyncio.sleep(API_SECONDS)


class Follower:
    """Keeps the objects of an API server as the state says, and writes only what changes."""

    def __init__(self, server: SimApiServer, state: ClusterState) -> None:
        self._server = server
        self._state = state
        self._kinds: Mapping[str, Kind] = {kind.plural: kind for kind in KINDS}
        self._shown: dict[ObjectKey, Object] = {}

    async def show(self, at: float) -> None:
        """Writes what is different at `at`."""
        present = self._state.objects(at)
        for key, obj in present.items():
            if self._shown.get(key) != obj:
                await self._server.put(self._kinds[key[0]], obj)
        for plural, namespace, name in self._shown.keys() - present.keys():
            await self._server.delete(self._kinds[plural], name, namespace)
        self._shown = present

    async def run(self, clock: Clock, began_ns: int) -> None:
        """Follows time until it is cancelled."""
        while True:
            await self.show((clock.monotonic_ns() - began_ns) / 1e9)
            await asyncio.sleep(API_SECONDS)
