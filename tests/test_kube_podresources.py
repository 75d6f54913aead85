"""The client of the kubelet's socket: every fault has its reason and its cure, and the rest goes on."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from claimscope.clock import ManualClock, SystemClock
from claimscope.kube import podresources_pb2 as pb
from claimscope.kube.podresources import (
    RECEIVE_LIMIT_BYTES,
    PodResourcesClient,
    PodResourcesError,
    Reason,
    decode_allocatable,
    decode_listing,
    poll,
)
from claimscope.kube.structs import Listing
from claimscope.sim.kubelet import Fault, RateLimiter, SimKubelet
from claimscope.sim.moment import SimContainer, SimPod

POD = SimPod(
    namespace="ml",
    name="p",
    containers=(SimContainer(name="main", devices=(("nvidia.com/gpu", ("GPU-a",)),)),),
    workload="serve",
)


@asynccontextmanager
async def both(
    tmp_path: Path, *, limit: float = 5.0, limiter: RateLimiter | None = None
) -> AsyncIterator[tuple[SimKubelet, PodResourcesClient]]:
    kubelet = SimKubelet(tmp_path / "kubelet.sock", lambda: (POD,), limiter=limiter)
    await kubelet.start()
    client = PodResourcesClient(str(kubelet.socket_path), timeout=limit)
    try:
        yield kubelet, client
    finally:
        await client.close()
        await kubelet.stop()


async def failure(client: PodResourcesClient) -> tuple[Reason, str]:
    with pytest.raises(PodResourcesError) as caught:
        await client.list()
    return caught.value.reason, str(caught.value)


class Heard:
    """What a poll said, to wait on."""

    def __init__(self) -> None:
        self.listings: list[Listing] = []
        self.errors: list[Reason] = []
        self._changed = asyncio.Event()

    def listing(self, listing: Listing, _asked_ns: int) -> None:
        self.listings.append(listing)
        self._changed.set()

    def error(self, error: PodResourcesError) -> None:
        self.errors.append(error.reason)
        self._changed.set()

    async def until(self, *, listings: int = 0, errors: int = 0) -> None:
        async with asyncio.timeout(20):
            while len(self.listings) < listings or len(self.errors) < errors:
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def polling(client: PodResourcesClient, *, expect_pods: bool = False) -> AsyncIterator[Heard]:
    heard = Heard()
    task = asyncio.create_task(
        poll(
            client,
            SystemClock(),
            heard.listing,
            heard.error,
            period=0.01,
            expect_pods=expect_pods,
            jitter=lambda: 0.5,
        )
    )
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_same_answer_is_the_same_object(tmp_path: Path) -> None:
    async with both(tmp_path) as (_, client):
        assert await client.list() is await client.list()


async def test_missing_socket(tmp_path: Path) -> None:
    reason, text = await failure(PodResourcesClient(str(tmp_path / "none.sock")))
    assert reason is Reason.SOCKET_MISSING
    assert text == (
        f"no kubelet socket at {tmp_path}/none.sock; mount the kubelet's pod-resources directory into the container, "
        "or name another socket with --pod-resources-socket"
    )


async def test_directory_in_the_socket_s_place(tmp_path: Path) -> None:
    reason, text = await failure(PodResourcesClient(str(tmp_path)))
    assert reason is Reason.SOCKET_MISSING
    assert text.startswith(f"{tmp_path} is not a socket; ")


@contextmanager
def ordinary_user() -> Iterator[None]:
    """As somebody for whom file modes count: root may connect to every socket."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


async def test_denied_socket() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        async with both(Path(name)) as (kubelet, client):
            await client.list()
            await client.close()
            kubelet.socket_path.chmod(0o555)
            with ordinary_user():
                uid = os.geteuid()
                assert await failure(client) == (
                    Reason.DENIED,
                    f"no permission to connect to {kubelet.socket_path} as uid {uid}; the kubelet's socket is 0755 "
                    "root:root, so run the agent as uid 0 (no capability is needed)",
                )


async def test_denied_directory(tmp_path: Path) -> None:
    closed = tmp_path / "pod-resources"
    closed.mkdir(mode=0)
    with ordinary_user():
        reason, _ = await failure(PodResourcesClient(str(closed / "kubelet.sock")))
    closed.chmod(0o755)
    assert reason is Reason.DENIED


async def test_denied_by_the_server(tmp_path: Path) -> None:
    async with both(tmp_path) as (kubelet, client):
        kubelet.fault = Fault(code=grpc.StatusCode.PERMISSION_DENIED)
        assert (await failure(client))[0] is Reason.DENIED


async def test_nobody_listens(tmp_path: Path) -> None:
    async with both(tmp_path) as (kubelet, client):
        os.link(kubelet.socket_path, tmp_path / "kept.sock")
        await kubelet.stop()
        os.rename(tmp_path / "kept.sock", kubelet.socket_path)
        reason, text = await failure(client)
        assert reason is Reason.UNAVAILABLE
        assert text.startswith(f"no kubelet answers on {kubelet.socket_path} (")


async def test_rate_limit(tmp_path: Path) -> None:
    async with both(tmp_path, limiter=RateLimiter(ManualClock(), burst=1.0, tokens=1.0)) as (kubelet, client):
        await client.list()
        assert await failure(client) == (
            Reason.RATE_LIMITED,
            f"the kubelet refused a call on {kubelet.socket_path}: rejected by rate limit; its limit is shared by all "
            "clients of the socket, look for another one that polls too fast",
        )


async def test_too_large(tmp_path: Path) -> None:
    async with both(tmp_path) as (kubelet, client):
        kubelet.fault = Fault(answer=bytes(RECEIVE_LIMIT_BYTES + 1))
        assert (await failure(client))[0] is Reason.TOO_LARGE


async def test_answer_above_grpc_s_own_limit(tmp_path: Path) -> None:
    many = pb.ListPodResourcesResponse(
        pod_resources=[pb.PodResources(name="p" * 250, namespace="n" * 60) for _ in range(20_000)]
    )
    data = many.SerializeToString()
    assert len(data) > 4 * 1024 * 1024
    async with both(tmp_path) as (kubelet, client):
        kubelet.fault = Fault(answer=data)
        assert len((await client.list()).pods) == 20_000


async def test_malformed(tmp_path: Path) -> None:
    async with both(tmp_path) as (kubelet, client):
        kubelet.fault = Fault(answer=b"\xff\xff\xff")
        reason, text = await failure(client)
        assert reason is Reason.MALFORMED
        assert text.startswith(f"the answer (3 bytes) on {kubelet.socket_path} is not a pod-resources message: ")


async def test_empty_is_an_answer(tmp_path: Path) -> None:
    async with both(tmp_path) as (kubelet, client):
        kubelet.fault = Fault(answer=b"")
        assert await client.list() == Listing()


async def test_hang(tmp_path: Path) -> None:
    async with both(tmp_path, limit=0.1) as (kubelet, client):
        kubelet.fault = Fault(hang=True)
        assert await failure(client) == (
            Reason.TIMEOUT,
            f"the kubelet did not answer on {kubelet.socket_path} within 0.1 s; look at the kubelet's log",
        )
        kubelet.fault = None


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNIMPLEMENTED, Reason.UNSUPPORTED),
        (grpc.StatusCode.INTERNAL, Reason.FAILED),
        (grpc.StatusCode.UNKNOWN, Reason.FAILED),
    ],
)
async def test_other_codes(tmp_path: Path, code: grpc.StatusCode, reason: Reason) -> None:
    async with both(tmp_path) as (kubelet, client):
        kubelet.fault = Fault(code=code)
        assert (await failure(client))[0] is reason


async def test_restart_is_seen_by_the_next_call(tmp_path: Path) -> None:
    async with both(tmp_path) as (kubelet, client):
        await client.list()
        await kubelet.stop()
        assert (await failure(client))[0] is Reason.SOCKET_MISSING
        await kubelet.start()
        assert len((await client.list()).pods) == 1


async def test_poll_over_a_restart(tmp_path: Path) -> None:
    async with both(tmp_path) as (kubelet, client), polling(client) as heard:
        await heard.until(listings=2)
        await kubelet.stop()
        await heard.until(errors=1)
        await kubelet.start()
        await heard.until(listings=len(heard.listings) + 2)
        assert set(heard.errors) <= {Reason.SOCKET_MISSING, Reason.UNAVAILABLE}


async def test_poll_waits_longer_each_time_it_is_rate_limited(tmp_path: Path) -> None:
    async with both(tmp_path) as (kubelet, client):
        kubelet.fault = Fault(code=grpc.StatusCode.RESOURCE_EXHAUSTED, details="rejected by rate limit")
        started = asyncio.get_running_loop().time()
        async with polling(client) as heard:
            await heard.until(errors=5)  # pauses of 20, 40, 80 and 160 ms lie between them
            assert asyncio.get_running_loop().time() - started >= 0.3
            kubelet.fault = None
            await heard.until(listings=2)


async def test_poll_keeps_what_it_knew_where_an_empty_list_cannot_be(tmp_path: Path) -> None:
    async with both(tmp_path) as (kubelet, client), polling(client, expect_pods=True) as heard:
        await heard.until(listings=1)
        kubelet.fault = Fault(answer=b"")
        await heard.until(errors=1)
        assert heard.errors[0] is Reason.EMPTY
        assert all(listing.pods for listing in heard.listings)


def test_device_ids_are_listed_once_although_the_kubelet_lists_them_per_numa_node() -> None:
    data = pb.AllocatableResourcesResponse(
        devices=[
            pb.ContainerDevices(resource_name="nvidia.com/gpu", device_ids=["GPU-b"]),
            pb.ContainerDevices(resource_name="nvidia.com/gpu", device_ids=["GPU-a"]),
            pb.ContainerDevices(resource_name="nvidia.com/gpu", device_ids=["GPU-b"]),
        ]
    ).SerializeToString()
    assert decode_allocatable(data) == (("nvidia.com/gpu", ("GPU-b", "GPU-a")),)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    with suppress(DecodeError):
        decode_listing(data)
