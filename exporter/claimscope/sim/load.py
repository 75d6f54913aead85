"""What does a large cluster look like to its API server? Objects in every state, as many as a benchmark asks for.

Devices are given away by counting and not by searching: 100,000 claims are made in seconds. Sizes are those of a real
cluster, managed fields and all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from claimscope.sim.api.kinds import (
    DEVICE_CLASSES,
    NODES,
    PODS,
    RESOURCE_CLAIM_TEMPLATES,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
)
from claimscope.sim.api.store import Kind
from claimscope.sim.objects import (
    ClaimScript,
    Object,
    PodScript,
    claim_object,
    class_object,
    metadata,
    node_object,
    owner,
    pod_object,
    request,
    slice_object,
)
from claimscope.sim.scheduler import cannot_allocate
from claimscope.sim.stories import CLASSES, HOUR, NVIDIA

DEVICES_PER_NODE: Final = 8
NAMESPACES: Final = 50
ORIGIN: Final = 1_790_000_000.0  # Unix time of t = 0
_NOW: Final = 0.0
# Of each hundred claims that have a device; the others run.
_ALLOCATED, _RESERVED, _PREPARED = 1, 2, 3
_STATES: Final = ("allocated", "reserved", "prepared")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much of what. Claims beyond the devices, and one in `pending_every` of all, wait."""

    claims: int
    nodes: int
    pending_every: int = 20
    unreferenced_every: int = 500

    @property
    def devices(self) -> int:
        """Devices of all nodes."""
        return self.nodes * DEVICES_PER_NODE

    def waits(self, number: int) -> bool:
        """Whether a claim has no device: its turn, or none is left."""
        holders_before = number - number // self.pending_every
        return number % self.pending_every == self.pending_every - 1 or holders_before >= self.devices

    def pair(self, number: int) -> tuple[ClaimScript, PodScript]:
        """A claim and its pod as they are at t = 0."""
        namespace = f"team-{number % NAMESPACES:02d}"
        job = f"train-{number:06d}"
        name = f"{job}-0-{number * 2654435761 % 60466176:05x}"
        created = -60.0 - number % 7 * HOUR
        claim = ClaimScript(
            namespace=namespace, name=f"{name}-gpu", requests=(request(NVIDIA),), template="one-gpu",
            owner_pod=name, created=created,
        )
        labels = {
            "batch.kubernetes.io/job-name": job, "job-name": job, "app.kubernetes.io/name": "trainer",
            "batch.kubernetes.io/job-completion-index": "0", "kueue.x-k8s.io/queue-name": f"queue-{number % 10}",
        }
        pod = PodScript(
            namespace=namespace, name=name, claims=(claim,), labels=labels, created=created,
            owners=(owner("Job", job, namespace, api_version="batch/v1"),),
        )
        if self.waits(number):
            return claim, replace(pod, refusal=("Unschedulable", cannot_allocate(self.nodes)))
        return self._placed(number - number // self.pending_every, claim, pod, number % 100)

    def _placed(self, slot: int, claim: ClaimScript, pod: PodScript, lot: int) -> tuple[ClaimScript, PodScript]:
        node = node_name(slot // DEVICES_PER_NODE)
        result = {
            "request": "gpu", "driver": NVIDIA, "pool": node, "device": f"gpu-{slot % DEVICES_PER_NODE}"
        }
        claim = replace(claim, results=(result,), node=node, allocated=claim.created + 2.0)
        pod = replace(
            pod, claims=(claim,), node=node, bound=pod.created + 3.0, prepared=pod.created + 5.0,
            started=pod.created + 9.0,
        )
        if lot == _ALLOCATED:
            pod = replace(pod, never_reserved=True)
        if lot in (_ALLOCATED, _RESERVED):
            pod = replace(pod, bound=float("inf"), prepared=float("inf"), started=float("inf"))
        elif lot == _PREPARED:
            pod = replace(pod, started=float("inf"))
        return claim, pod

    def unreferenced(self, number: int) -> bool:
        """Whether a claim that waits has no pod that names it."""
        return self.waits(number) and number % self.unreferenced_every == self.unreferenced_every - 1


def node_name(number: int) -> str:
    """The name of a node."""
    return f"gpu-node-{number:05d}"


def device_uuid(node: str, place: int) -> str:
    """The uuid of a GPU of a node."""
    return f"GPU-{node[-5:]}{place:03d}-4a5b-5c6d-8e7f-0123456789ab"


def generate(claims: int, nodes: int) -> Iterator[tuple[Kind, Object]]:
    """Every object of a cluster with so many claims and nodes of eight devices, grouped by kind."""
    load = Load(claims=claims, nodes=nodes)
    for name, expression, extended in CLASSES[:3]:
        yield DEVICE_CLASSES, class_object(name, expression, origin=ORIGIN, extended=extended)
    for number in range(NAMESPACES):
        meta = metadata("ResourceClaimTemplate", "one-gpu", f"team-{number:02d}", created=ORIGIN - 48 * HOUR)
        spec = {"spec": {"devices": {"requests": [request(NVIDIA)]}}}
        yield RESOURCE_CLAIM_TEMPLATES, {"metadata": meta, "spec": spec}
    for number in range(nodes):
        labels = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "topology.kubernetes.io/zone": f"z{number % 3}"}
        yield NODES, node_object(node_name(number), origin=ORIGIN, labels=labels, devices={})
    for number in range(nodes):
        name = node_name(number)
        devices = [_device(name, place) for place in range(DEVICES_PER_NODE)]
        yield RESOURCE_SLICES, slice_object(NVIDIA, name, devices, origin=ORIGIN)
    for number in range(claims):
        claim, pod = load.pair(number)
        users = () if load.unreferenced(number) else (pod,)
        yield RESOURCE_CLAIMS, claim_object(claim, users, _NOW, ORIGIN)
    for number in range(claims):
        if not load.unreferenced(number):
            yield PODS, pod_object(load.pair(number)[1], _NOW, ORIGIN)


def _device(node: str, place: int) -> Object:
    return {
        "name": f"gpu-{place}",
        "attributes": {
            "type": {"string": "gpu"},
            "uuid": {"string": device_uuid(node, place)},
            "productName": {"string": "NVIDIA H100 80GB HBM3"},
            "brand": {"string": "Nvidia"},
            "architecture": {"string": "Hopper"},
            "cudaComputeCapability": {"version": "9.0.0"},
            "driverVersion": {"version": "580.95.5"},
            "cudaDriverVersion": {"version": "13.0.0"},
            "resource.kubernetes.io/pciBusID": {"string": f"0000:{24 + place * 16:02x}:00.0"},
        },
        "capacity": {"memory": {"value": "81559Mi"}},
    }


def churn(claims: int, nodes: int, events: int) -> Iterator[tuple[Kind, Object]]:
    """So many changes to what `generate` made, in the order in which they happen: claims with their pods restart.

    In turn each pod that runs stops, its claim is released, is allocated the same device again, and the pod runs
    again; so the cluster stays as large as it was and no device is ever held twice. Raises ValueError where none runs.
    """
    load = Load(claims=claims, nodes=nodes)
    if not any(load.pair(number)[1].started < float("inf") for number in range(min(claims, 100))):
        raise ValueError(f"none of the first {min(claims, 100)} of {claims} claims on {nodes} nodes runs: add nodes")
    made, number = 0, 0
    while made < events:
        claim, pod = load.pair(number % claims)
        round_number = number // claims
        number += 1
        if pod.started == float("inf"):
            continue
        at = 10.0 + round_number * 60.0
        ended = replace(pod, finished=at)
        released = replace(claim, released=at)
        again = replace(claim, allocated=at + 2.0)
        runs = replace(pod, claims=(again,), bound=at + 3.0, prepared=at + 5.0, started=at + 9.0)
        for change in (
            (PODS, pod_object(ended, at, ORIGIN)),
            (RESOURCE_CLAIMS, claim_object(released, (), at, ORIGIN)),
            (RESOURCE_CLAIMS, claim_object(again, (runs,), at + 10.0, ORIGIN)),
            (PODS, pod_object(runs, at + 10.0, ORIGIN)),
        ):
            if made == events:
                return
            made += 1
            yield change
