"""A kubelet's pod-resources server that does not exist, on a real Unix socket.

It answers what a kubelet of Kubernetes 1.36 would, quirks included: one ContainerDevices entry per device and NUMA
node, CDI names that pile up over the devices of a claim, one rate limiter for all callers. Faults are switched on by
assigning `fault`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from claimscope.clock import Clock
from claimscope.kube import podresources_pb2 as pb
from claimscope.sim.moment import SimClaim, SimContainer, SimPod

SERVICE: Final = "v1.PodResourcesLister"
QPS: Final = 100.0
BURST: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with every call while it is set."""

    code: grpc.StatusCode | None = None
    details: str = "injected"
    answer: bytes | None = None  # these bytes instead of the answer; b"" is an empty listing
    hang: bool = False  # never answers


@dataclass(slots=True)
class RateLimiter:
    """The kubelet's token bucket: 100 calls a second, 10 at once, for all clients and methods together."""

    clock: Clock
    qps: float = QPS
    burst: float = BURST
    tokens: float = BURST
    _last_ns: int | None = field(default=None)

    def allow(self) -> bool:
        """Takes a token, if there is one."""
        now = self.clock.monotonic_ns()
        if self._last_ns is not None:
            self.tokens = min(self.burst, self.tokens + (now - self._last_ns) / 1e9 * self.qps)
        self._last_ns = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class SimKubelet:
    """Serves `pods()` as of each call until it is stopped."""

    def __init__(
        self,
        socket_path: str | Path,
        pods: Callable[[], Sequence[SimPod]],
        *,
        allocatable: Callable[[], Iterable[tuple[str, str]]] = tuple,
        numa_nodes: Mapping[str, tuple[int, ...]] | None = None,
        limiter: RateLimiter | None = None,
    ) -> None:
        self.socket_path = Path(os.path.abspath(socket_path))
        self.fault: Fault | None = None
        self.calls = 0
        self._pods = pods
        self._allocatable = allocatable  # (resource name, device id)
        self._numa_nodes = numa_nodes or {}  # device id without "::n" -> NUMA nodes; node 0 where it is not named
        self._limiter = limiter
        self._server: grpc.aio.Server | None = None
        self._stopped = asyncio.Event()

    async def start(self) -> None:
        """Makes the socket and serves. A second start after a stop is a restarted kubelet."""
        self.socket_path.parent.mkdir(parents=True, exist_ok=True)
        self.socket_path.unlink(missing_ok=True)
        self._stopped = asyncio.Event()
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    SERVICE,
                    {
                        "List": _handler(self._guarded(self._list)),
                        "GetAllocatableResources": _handler(self._guarded(self._get_allocatable)),
                        "Get": _handler(self._guarded(self._get)),
                    },
                ),
            )
        )
        server.add_insecure_port(f"unix:{self.socket_path}")
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Ends all calls and removes the socket, as a kubelet does that is stopped."""
        server, self._server = self._server, None
        self._stopped.set()
        if server is not None:
            await server.stop(None)
        self.socket_path.unlink(missing_ok=True)

    def _guarded(self, answer: Callable[[bytes], bytes | None]) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def call(request: bytes, context: Any) -> bytes:  # noqa: ANN401 - grpc's stubs cannot name it for bytes
            self.calls += 1
            fault = self.fault
            if self._limiter is not None and not self._limiter.allow():
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit")
            if fault is not None:
                if fault.hang:
                    await self._stopped.wait()
                if fault.code is not None:
                    await context.abort(fault.code, fault.details)
                if fault.answer is not None:
                    return fault.answer
            data = answer(request)
            if data is None:
                asked = pb.GetPodResourcesRequest.FromString(request)
                await context.abort(
                    grpc.StatusCode.UNKNOWN, f"pod {asked.pod_name} in namespace {asked.pod_namespace} not found"
                )
                raise AssertionError("abort returned")
            return data

        return call

    def _list(self, _request: bytes) -> bytes:
        return pb.ListPodResourcesResponse(
            pod_resources=[pod_message(pod, self._numa_nodes) for pod in self._pods()]
        ).SerializeToString()

    def _get_allocatable(self, _request: bytes) -> bytes:
        return pb.AllocatableResourcesResponse(
            devices=[
                entry
                for resource, device_id in self._allocatable()
                for entry in _per_node(resource, device_id, self._numa_nodes)
            ]
        ).SerializeToString()

    def _get(self, request: bytes) -> bytes | None:
        asked = pb.GetPodResourcesRequest.FromString(request)
        for pod in self._pods():
            if (pod.namespace, pod.name) == (asked.pod_namespace, asked.pod_name):
                return pb.GetPodResourcesResponse(pod_resources=pod_message(pod, self._numa_nodes)).SerializeToString()
        return None


def pod_message(pod: SimPod, numa_nodes: Mapping[str, tuple[int, ...]]) -> pb.PodResources:
    """One pod as the kubelet writes it."""
    return pb.PodResources(
        name=pod.name,
        namespace=pod.namespace,
        containers=[_container(container, numa_nodes) for container in pod.containers],
    )


def _container(container: SimContainer, numa_nodes: Mapping[str, tuple[int, ...]]) -> pb.ContainerResources:
    return pb.ContainerResources(
        name=container.name,
        devices=[
            entry
            for resource, ids in container.devices
            for device_id in ids
            for entry in _per_node(resource, device_id, numa_nodes)
        ],
        dynamic_resources=[_claim(claim) for claim in container.claims],
    )


def _per_node(resource: str, device_id: str, numa_nodes: Mapping[str, tuple[int, ...]]) -> list[pb.ContainerDevices]:
    nodes = numa_nodes.get(device_id.partition("::")[0], (0,))
    return [
        pb.ContainerDevices(
            resource_name=resource,
            device_ids=[device_id],
            topology=pb.TopologyInfo(nodes=[pb.NUMANode(ID=node)]),
        )
        for node in nodes
    ]


def _claim(claim: SimClaim) -> pb.DynamicResource:
    cdi = [
        pb.CDIDevice(name=f"k8s.{claim.driver}/claim={claim.uid}-{device}" if claim.uid else device)
        for device in claim.devices
    ]
    message = pb.DynamicResource(claim_name=claim.name, claim_namespace=claim.namespace)
    for index, device in enumerate(claim.devices):
        entry = message.claim_resources.add(
            driver_name=claim.driver,
            pool_name=claim.pool,
            device_name=device,
            cdi_devices=cdi[: index + 1],
        )
        if claim.share_ids:
            entry.share_id = claim.share_ids[index]
    return message


def _handler(call: Callable[[bytes, Any], Awaitable[bytes]]) -> Any:  # noqa: ANN401 - as grpc's stubs have it
    return grpc.unary_unary_rpc_method_handler(call)
