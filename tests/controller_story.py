"""Objects of a claim's life that happens now, for a controller that watches a simulated API server."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from claim_objects import UNSCHEDULABLE, allocated, claim, device, device_class, pod, pool, request
from claimscope.sim.apikinds import DEVICE_CLASSES, PODS, RESOURCE_CLAIMS, RESOURCE_SLICES
from claimscope.sim.apiserver import SimApiServer
from claimscope.sim.cluster import KINDS

RESOURCES = "/apis/resource.k8s.io/v1"
PHASES = {"scheduling": 1.0, "binding": 1.0, "prepare": 1.0, "start": 1.0}


def stamp(offset: float = 0.0) -> str:
    """Now, or so many seconds later, as objects state it."""
    return datetime.fromtimestamp(time.time() + offset, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def living_claim(name: str, *, uid: str = "", at: float = 0.0, dev: str = "") -> dict[str, Any]:
    """A claim that is wanted; with `dev` it has that device of node-1, for the pod of the same name."""
    found = allocated(name, ("node-1", dev), user=name) if dev else claim(name)
    if dev:
        found["status"]["reservedFor"][0]["uid"] = f"{uid or name}-pod"
    found["metadata"] |= {"uid": uid or f"uid-{name}", "creationTimestamp": stamp(at)}
    if dev:
        found["status"]["allocation"]["allocationTimestamp"] = stamp(at)
    return found


def living_pod(name: str, *, uid: str = "", at: float = 0.0, running: bool = False) -> dict[str, Any]:
    """A pod that wants the claim of its name; bound, prepared and running at once, or none of it yet."""
    found = pod(name, name, node="node-1") if running else pod(name, name, said=UNSCHEDULABLE)
    found["metadata"] |= {"creationTimestamp": stamp(at), "uid": f"{uid or name}-pod"}
    if not running:
        return found
    when = stamp(at)
    found["status"] = {
        "phase": "Running",
        "conditions": [
            {"type": kind, "status": "True", "lastTransitionTime": when}
            for kind in ("PodScheduled", "PodReadyToStartContainers")
        ],
        "containerStatuses": [{"name": "main", "restartCount": 0, "state": {"running": {"startedAt": when}}}],
    }
    return found


async def wants(server: SimApiServer, name: str, *, uid: str = "", at: float = 0.0) -> None:
    """A pod wants a new claim."""
    await server.put(RESOURCE_CLAIMS, living_claim(name, uid=uid, at=at))
    await server.put(PODS, living_pod(name, uid=uid, at=at))


async def runs(server: SimApiServer, name: str, *, uid: str = "", at: float = 0.0, dev: str = "gpu-0") -> None:
    """It gets it, and its container runs."""
    await server.put(RESOURCE_CLAIMS, living_claim(name, uid=uid, at=at, dev=dev))
    await server.put(PODS, living_pod(name, uid=uid, at=at, running=True))


async def runs_backwards(server: SimApiServer, name: str, *, dev: str = "gpu-0") -> None:
    """It runs by one clock, and comes to its node two hours later by another."""
    found = living_pod(name, running=True)
    found["status"]["conditions"][0]["lastTransitionTime"] = stamp(7200.0)
    await server.put(RESOURCE_CLAIMS, living_claim(name, dev=dev))
    await server.put(PODS, found)


async def goes(server: SimApiServer, name: str) -> None:
    """Pod and claim are deleted."""
    await server.delete(PODS, name, "team")
    await server.delete(RESOURCE_CLAIMS, name, "team")


async def furnish(server: SimApiServer) -> None:
    """Two GPUs on a node, a claim that has one of them, and one that wants four."""
    await server.put(DEVICE_CLASSES, device_class())
    await server.put(RESOURCE_SLICES, pool("node-1", device("gpu-0"), device("gpu-1")))
    await server.put(RESOURCE_CLAIMS, allocated("held", ("node-1", "gpu-1"), user="holder"))
    await server.put(RESOURCE_CLAIMS, claim("big", request(count=4)))
    await server.put(PODS, pod("waiter", "big", said=UNSCHEDULABLE))


FURNISHED = {"team/held": "reserved", "team/big": "pending"}
BIG_WAITS = {"big": "no_matching_device"}


@contextlib.asynccontextmanager
async def serving(port: int = 0, **options: Any) -> AsyncIterator[SimApiServer]:
    """An API server with the furnished cluster."""
    server = SimApiServer(options.pop("kinds", KINDS), **options)
    await furnish(server)
    await server.start(port)
    try:
        yield server
    finally:
        await server.stop()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


