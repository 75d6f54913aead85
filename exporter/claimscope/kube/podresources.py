"""Which pods and claims hold which devices on this node, by the kubelet's own word?

One gRPC channel over the kubelet's Unix socket, kept open. The kubelet allows 100 calls a second with a burst of 10
for all its clients together, so a refusal by its rate limit means waiting longer, never retrying faster.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import random
import socket
import stat
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from claimscope.clock import Clock
from claimscope.kube import podresources_pb2 as pb
from claimscope.kube.structs import ClaimDevice, ClaimEntry, ContainerEntry, Listing, PodEntry

log = logging.getLogger(__name__)

DEFAULT_SOCKET: Final = "/var/lib/kubelet/pod-resources/kubelet.sock"
RECEIVE_LIMIT_BYTES: Final = 64 * 1024 * 1024  # gRPC's own 4 MiB is too small for a full node
_LIST: Final = "/v1.PodResourcesLister/List"
_ALLOCATABLE: Final = "/v1.PodResourcesLister/GetAllocatableResources"

_T = TypeVar("_T")

Devices = tuple[tuple[str, tuple[str, ...]], ...]


class Reason(enum.Enum):
    """Why the kubelet gave no listing."""

    SOCKET_MISSING = "socket_missing"
    DENIED = "denied"
    UNAVAILABLE = "unavailable"
    RATE_LIMITED = "rate_limited"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    TIMEOUT = "timeout"
    UNSUPPORTED = "unsupported"
    EMPTY = "empty"
    FAILED = "failed"


class PodResourcesError(Exception):
    """No listing: `reason` for a counter's label, the text for a person."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


# Reasons that pass by themselves as soon as the kubelet is back are asked at the normal pace: before each call the
# socket's file is looked at, which costs the kubelet nothing. The others wait longer and longer, up to so many seconds.
_LONGEST_WAIT_SECONDS: Final[dict[Reason, float]] = {
    Reason.SOCKET_MISSING: 0.0,
    Reason.UNAVAILABLE: 0.0,
    Reason.EMPTY: 0.0,
    Reason.DENIED: 30.0,
    Reason.RATE_LIMITED: 30.0,
    Reason.TOO_LARGE: 30.0,
    Reason.UNSUPPORTED: 30.0,
    Reason.MALFORMED: 10.0,
    Reason.TIMEOUT: 10.0,
    Reason.FAILED: 10.0,
}


class PodResourcesClient:
    """The kubelet's `v1.PodResourcesLister`; not to be shared between event loops."""

    def __init__(self, socket_path: str = DEFAULT_SOCKET, timeout: float = 5.0) -> None:
        self.socket_path = os.path.abspath(socket_path)
        self._timeout = timeout
        self._channel: grpc.aio.Channel | None = None
        self._identity: tuple[int, int, int] | None = None
        self._last: tuple[bytes, Listing] | None = None

    async def list(self) -> Listing:
        """All active pods of this node. The same object again as long as the kubelet answers the same bytes."""
        data = await self._call(_LIST, pb.ListPodResourcesRequest().SerializeToString())
        if self._last is not None and self._last[0] == data:
            return self._last[1]
        listing = self._decoded(data, decode_listing)
        self._last = (data, listing)
        return listing

    async def allocatable(self) -> Devices:
        """(resource name, device ids) of what device plugins offer and find healthy; DRA devices are never in it."""
        data = await self._call(_ALLOCATABLE, pb.AllocatableResourcesRequest().SerializeToString())
        return self._decoded(data, decode_allocatable)

    async def close(self) -> None:
        """Closes the channel; the next call opens a new one."""
        channel, self._channel, self._identity = self._channel, None, None
        if channel is not None:
            await channel.close(None)

    def _decoded(self, data: bytes, decode: Callable[[bytes], _T]) -> _T:
        try:
            return decode(data)
        except DecodeError as error:
            raise PodResourcesError(
                Reason.MALFORMED,
                f"the answer ({len(data)} bytes) on {self.socket_path} is not a pod-resources message: {error}; "
                "check that --pod-resources-socket names the kubelet's pod-resources socket",
            ) from error

    async def _call(self, method: str, request: bytes) -> bytes:
        identity = self._look()
        if self._channel is not None and identity != self._identity:
            log.info("kubelet socket %s was replaced, connecting anew", self.socket_path)
            await self.close()
        if self._channel is None:
            self._channel = _open(self.socket_path)
            self._identity = identity
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method, None, None)
        try:
            return await call(request, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                await self.close()  # a fresh channel has no back-off of its own, so a restart is seen at once
            raise self._explained(error) from error

    def _look(self) -> tuple[int, int, int]:
        """Identity of the socket's file; a restarted kubelet makes a new one."""
        path = self.socket_path
        try:
            found = os.stat(path)
        except FileNotFoundError as error:
            raise PodResourcesError(
                Reason.SOCKET_MISSING,
                f"no kubelet socket at {path}; mount the kubelet's pod-resources directory into the container, or name "
                "another socket with --pod-resources-socket",
            ) from error
        except PermissionError as error:
            raise _denied(path) from error
        except OSError as error:
            raise PodResourcesError(
                Reason.FAILED, f"cannot look at the kubelet socket {path}: {error.strerror}; check the mount"
            ) from error
        if not stat.S_ISSOCK(found.st_mode):
            raise PodResourcesError(
                Reason.SOCKET_MISSING,
                f"{path} is not a socket; a directory there means that the volume was mounted before the kubelet made "
                "its socket: mount the directory /var/lib/kubelet/pod-resources, not the file",
            )
        return found.st_dev, found.st_ino, found.st_ctime_ns

    def _explained(self, error: grpc.aio.AioRpcError) -> PodResourcesError:
        path, code, details = self.socket_path, error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE:
            # gRPC does not tell a refused connection from a forbidden one; the system call does.
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
                    probe.connect(path)
            except PermissionError:
                return _denied(path)
            except OSError:
                pass
            return PodResourcesError(
                Reason.UNAVAILABLE, f"no kubelet answers on {path} ({details}); it is restarting or stopped"
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return PodResourcesError(
                Reason.TIMEOUT,
                f"the kubelet did not answer on {path} within {self._timeout:g} s; look at the kubelet's log",
            )
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than" in details:
            return PodResourcesError(
                Reason.TOO_LARGE,
                f"the kubelet's answer on {path} exceeds {RECEIVE_LIMIT_BYTES >> 20} MiB ({details}); "
                "check that the socket is the kubelet's",
            )
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return PodResourcesError(
                Reason.RATE_LIMITED,
                f"the kubelet refused a call on {path}: {details}; its limit is shared by all clients of the socket, "
                "look for another one that polls too fast",
            )
        if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
            return _denied(path)
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return PodResourcesError(
                Reason.UNSUPPORTED,
                f"the server on {path} has no v1 pod-resources API ({details}); it needs Kubernetes 1.20 or newer, and "
                "the pod-resources socket, not the device-plugin one",
            )
        return PodResourcesError(
            Reason.FAILED,
            f"the kubelet on {path} answered {code.name}: {details}; look at the kubelet's log",
        )


async def poll(
    client: PodResourcesClient,
    clock: Clock,
    on_listing: Callable[[Listing, int], None],
    on_error: Callable[[PodResourcesError], None],
    period: float = 1.0,
    *,
    expect_pods: bool = False,
    jitter: Callable[[], float] = random.random,
) -> None:
    """Asks for the listing once a period until it is cancelled.

    `on_listing` gets each answer with the monotonic time at which it was asked for. `expect_pods` says that this
    node surely runs a pod (the agent's own): an empty listing is then what a kubelet says that cannot look its pods
    up, and is reported as an error instead of ending every hold.
    """
    failed: Reason | None = None
    wait = period
    while True:
        asked_ns = clock.monotonic_ns()
        try:
            listing = await client.list()
            if expect_pods and not listing.pods:
                raise PodResourcesError(
                    Reason.EMPTY,
                    f"the kubelet on {client.socket_path} lists no pod at all, not even this agent; it is starting or "
                    "cannot look its pods up: what was known before stands",
                )
        except PodResourcesError as error:
            if error.reason is not failed:
                log.warning("no pod-resources listing: %s", error)
                wait = period
            failed = error.reason
            on_error(error)
            longest = _LONGEST_WAIT_SECONDS[error.reason]
            if longest > 0:
                wait = max(period, min(wait * 2, longest))
            pause = wait * (0.75 + 0.5 * jitter()) if longest > 0 else period
        else:
            if failed is not None:
                log.info("pod-resources listing is back on %s", client.socket_path)
            failed, wait = None, period
            on_listing(listing, asked_ns)
            pause = period - (clock.monotonic_ns() - asked_ns) / 1e9
        await asyncio.sleep(max(0.0, pause))


def decode_listing(data: bytes) -> Listing:
    """The listing in a serialized ListPodResourcesResponse. Raises DecodeError."""
    message = pb.ListPodResourcesResponse.FromString(data)
    return Listing(
        pods=tuple(
            PodEntry(
                namespace=pod.namespace,
                name=pod.name,
                containers=tuple(_container(container) for container in pod.containers),
            )
            for pod in message.pod_resources
        )
    )


def decode_allocatable(data: bytes) -> Devices:
    """The devices in a serialized AllocatableResourcesResponse. Raises DecodeError."""
    return _devices(pb.AllocatableResourcesResponse.FromString(data).devices)


def _container(container: pb.ContainerResources) -> ContainerEntry:
    return ContainerEntry(
        name=container.name,
        devices=_devices(container.devices),
        claims=tuple(
            ClaimEntry(
                namespace=claim.claim_namespace,
                name=claim.claim_name,
                resources=tuple(
                    ClaimDevice(
                        driver=device.driver_name,
                        pool=device.pool_name,
                        device=device.device_name,
                        cdi=tuple(cdi.name for cdi in device.cdi_devices),
                        share_id=device.share_id if device.HasField("share_id") and device.share_id else None,
                    )
                    for device in claim.claim_resources
                ),
            )
            for claim in container.dynamic_resources
        ),
    )


def _devices(entries: Iterable[pb.ContainerDevices]) -> Devices:
    """The kubelet writes one entry per device and NUMA node: the same id may come several times."""
    found: dict[str, dict[str, None]] = {}
    for entry in entries:
        found.setdefault(entry.resource_name, {}).update(dict.fromkeys(entry.device_ids))
    return tuple((resource, tuple(ids)) for resource, ids in found.items())


def _denied(path: str) -> PodResourcesError:
    return PodResourcesError(
        Reason.DENIED,
        f"no permission to connect to {path} as uid {os.geteuid()}; the kubelet's socket is 0755 root:root, so run the "
        "agent as uid 0 (no capability is needed)",
    )


def _open(path: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(
        f"unix:{path}",
        options=[
            ("grpc.max_receive_message_length", RECEIVE_LIMIT_BYTES),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            ("grpc.default_authority", "localhost"),  # a Go server refuses the path gRPC would put there
        ],
    )
