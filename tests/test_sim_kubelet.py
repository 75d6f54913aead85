"""The simulated kubelet answers as a kubelet of 1.36 does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from claimscope.clock import ManualClock
from claimscope.kube import podresources_pb2 as pb
from claimscope.kube.podresources import PodResourcesClient, decode_listing
from claimscope.kube.structs import ClaimDevice, ClaimEntry, ContainerEntry, Listing, PodEntry
from claimscope.sim.kubelet import RateLimiter, SimKubelet, pod_message
from claimscope.sim.moment import SimClaim, SimContainer, SimPod

UID = "bc2bfd43-bee6-4611-97bc-bd747926512a"
CLAIM = SimClaim(
    namespace="ml", name="two", uid=UID, driver="gpu.nvidia.com", pool="node-1", devices=("gpu-3", "gpu-4")
)
POD = SimPod(
    namespace="ml",
    name="trainer-0",
    containers=(
        SimContainer(name="main", devices=(("nvidia.com/gpu", ("GPU-a::1",)),), claims=(CLAIM,)),
        SimContainer(name="sidecar"),
    ),
    workload="train",
)


async def call(kubelet: SimKubelet, method: str, request: bytes) -> bytes:
    async with grpc.aio.insecure_channel(f"unix:{kubelet.socket_path}") as channel:
        answer: bytes = await channel.unary_unary(f"/v1.PodResourcesLister/{method}", None, None)(request, timeout=10)
        return answer


@pytest.fixture
async def kubelet(tmp_path: Path) -> AsyncIterator[SimKubelet]:
    served = SimKubelet(
        tmp_path / "kubelet.sock",
        lambda: (POD,),
        allocatable=lambda: [("nvidia.com/gpu", "GPU-a"), ("nvidia.com/gpu", "GPU-b")],
        numa_nodes={"GPU-a": (0, 1)},
    )
    await served.start()
    yield served
    await served.stop()


def test_cdi_names_pile_up_over_the_devices_of_a_claim() -> None:
    message = pod_message(POD, {})
    claim = message.containers[0].dynamic_resources[0]
    assert [[cdi.name for cdi in entry.cdi_devices] for entry in claim.claim_resources] == [
        [f"k8s.gpu.nvidia.com/claim={UID}-gpu-3"],
        [f"k8s.gpu.nvidia.com/claim={UID}-gpu-3", f"k8s.gpu.nvidia.com/claim={UID}-gpu-4"],
    ]


def test_one_entry_per_device_and_numa_node() -> None:
    devices = pod_message(POD, {"GPU-a": (0, 1)}).containers[0].devices
    assert [(list(d.device_ids), [node.ID for node in d.topology.nodes]) for d in devices] == [
        (["GPU-a::1"], [0]),
        (["GPU-a::1"], [1]),
    ]


def test_share_ids() -> None:
    shared = SimClaim(
        namespace="ml", name="s", uid=UID, driver="gpu.nvidia.com", pool="n", devices=("gpu-0",), share_ids=("sh",)
    )
    pod = SimPod(namespace="ml", name="p", containers=(SimContainer(name="c", claims=(shared,)),), workload="serve")
    data = pb.ListPodResourcesResponse(pod_resources=[pod_message(pod, {})]).SerializeToString()
    assert decode_listing(data).pods[0].containers[0].claims[0].resources[0].share_id == "sh"


async def test_list_and_allocatable_through_the_client(kubelet: SimKubelet) -> None:
    client = PodResourcesClient(str(kubelet.socket_path))
    try:
        cdi = tuple(f"k8s.gpu.nvidia.com/claim={UID}-{device}" for device in ("gpu-3", "gpu-4"))
        assert await client.list() == Listing(
            pods=(
                PodEntry(
                    namespace="ml",
                    name="trainer-0",
                    containers=(
                        ContainerEntry(
                            name="main",
                            devices=(("nvidia.com/gpu", ("GPU-a::1",)),),
                            claims=(
                                ClaimEntry(
                                    namespace="ml",
                                    name="two",
                                    resources=(
                                        ClaimDevice(
                                            driver="gpu.nvidia.com", pool="node-1", device="gpu-3", cdi=cdi[:1]
                                        ),
                                        ClaimDevice(driver="gpu.nvidia.com", pool="node-1", device="gpu-4", cdi=cdi),
                                    ),
                                ),
                            ),
                        ),
                        ContainerEntry(name="sidecar"),
                    ),
                ),
            )
        )
        assert await client.allocatable() == (("nvidia.com/gpu", ("GPU-a", "GPU-b")),)
    finally:
        await client.close()


async def test_get(kubelet: SimKubelet) -> None:
    asked = pb.GetPodResourcesRequest(pod_name="trainer-0", pod_namespace="ml").SerializeToString()
    answer = pb.GetPodResourcesResponse.FromString(await call(kubelet, "Get", asked))
    assert answer.pod_resources.name == "trainer-0"


async def test_get_of_an_unknown_pod(kubelet: SimKubelet) -> None:
    asked = pb.GetPodResourcesRequest(pod_name="nobody", pod_namespace="ml").SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(kubelet, "Get", asked)
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.UNKNOWN,
        "pod nobody in namespace ml not found",
    )


def test_rate_limiter_is_a_bucket_of_ten_that_fills_at_a_hundred_a_second() -> None:
    clock = ManualClock()
    limiter = RateLimiter(clock)
    first = [limiter.allow() for _ in range(11)]
    clock.advance(0.02)
    then = [limiter.allow() for _ in range(3)]
    clock.advance(60)
    full = [limiter.allow() for _ in range(11)]
    assert (first, then, full) == ([True] * 10 + [False], [True, True, False], [True] * 10 + [False])
