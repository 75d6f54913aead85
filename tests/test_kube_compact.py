"""Compaction: what is kept of an object, what is kept once, and that nothing that is said of a claim changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest

from claimscope.claims.engine import Engine
from claimscope.claims.explain import explain
from claimscope.claims.model import ClaimView, ClusterSnapshot
from claimscope.claims.published import flatten
from claimscope.claims.selectors import Selectors
from claimscope.kube.compact import Sharing
from claimscope.kube.objects import Node, Pod, ResourceClaim, ResourceSlice
from recorded_cluster import KINDS, START, Arrival, arrivals, lists

POD: dict[str, Any] = {
    "metadata": {
        "name": "train-0", "namespace": "team-a", "uid": "pod-uid", "resourceVersion": "7",
        "creationTimestamp": "2026-09-21T14:12:20Z",
        "labels": {"batch.kubernetes.io/job-name": "train", "job-name": "train", "team": "not read"},
        "ownerReferences": [
            {"apiVersion": "batch/v1", "kind": "Job", "name": "train", "uid": "job-uid", "controller": True}
        ],
    },
    "spec": {
        "nodeName": "node-a",
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}],
        "containers": [{"name": "main", "resources": {"claims": [{"name": "gpu"}]}}],
    },
    "status": {
        "phase": "Running",
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-09-21T14:12:20Z"},
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-09-21T14:12:29Z"},
            {"type": "ContainersReady", "status": "True", "lastTransitionTime": "2026-09-21T14:12:29Z"},
            {"type": "Initialized", "status": "False", "lastTransitionTime": "2026-09-21T14:12:23Z"},
        ],
        "containerStatuses": [
            {
                "name": "main", "restartCount": 1, "state": {"running": {"startedAt": "2026-09-21T14:12:29Z"}},
                "allocatedResourcesStatus": [
                    {
                        "name": "claim:gpu",
                        "resources": [
                            {"resourceID": "d/node-a/gpu-0", "health": "Unknown"},
                            {"resourceID": "d/node-a/gpu-1", "health": "Unhealthy"},
                            {"resourceID": "d/node-a/gpu-2", "health": "Unknown", "message": "not answering"},
                        ],
                    },
                    {"name": "claim:other", "resources": [{"resourceID": "d/node-a/gpu-3", "health": "Unknown"}]},
                ],
            }
        ],
        "resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "train-0-gpu"}],
    },
}
CLAIM: dict[str, Any] = {
    "metadata": {
        "name": "train-0-gpu", "namespace": "team-a", "uid": "claim-uid", "resourceVersion": "8",
        "creationTimestamp": "2026-09-21T14:12:20Z",
        "annotations": {"resource.kubernetes.io/pod-claim-name": "gpu", "more": "not read"},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "train-0", "uid": "pod-uid"}],
    },
    "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com"}}]}},
    "status": {
        "allocation": {
            "devices": {"results": [{"request": "gpu", "driver": "d", "pool": "node-a", "device": "gpu-0"}]},
            "allocationTimestamp": "2026-09-21T14:12:20Z",
            "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": ["node-a"]}
            ]}]},
        },
        "reservedFor": [{"resource": "pods", "name": "train-0", "uid": "pod-uid"}],
    },
}


def decoded(kind: type[Any], raw: dict[str, Any]) -> Any:
    return msgspec.json.decode(msgspec.json.encode(raw), type=kind)


def as_dict(obj: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(obj))


def test_claim_stays_as_it_was() -> None:
    claim = decoded(ResourceClaim, CLAIM)

    assert as_dict(Sharing().claim(claim)) == as_dict(claim)


def test_of_a_pod_goes_what_nobody_reads() -> None:
    pod = decoded(Pod, POD)
    expected = as_dict(pod)
    del expected["status"]["conditions"][1:3]  # Ready, and ContainersReady while it holds
    expected["metadata"]["ownerReferences"][0]["uid"] = ""
    expected["metadata"]["labels"]["job-name"] = None
    told = expected["status"]["containerStatuses"][0]["allocatedResourcesStatus"]
    del told[1]
    del told[0]["resources"][0]

    assert as_dict(Sharing().pod(pod)) == expected


@pytest.mark.parametrize(("kind", "name"), [(ResourceClaim, "claim"), (Pod, "pod"), (Node, "node")])
def test_an_object_without_anything(kind: type[Any], name: str) -> None:
    empty = decoded(kind, {"metadata": {"name": "x"}})

    assert as_dict(getattr(Sharing(), name)(empty)) == as_dict(empty)


def test_claims_of_one_template_share_what_is_alike() -> None:
    sharing = Sharing()
    one = sharing.claim(decoded(ResourceClaim, CLAIM))
    other = sharing.claim(decoded(ResourceClaim, CLAIM))

    assert one.spec is other.spec
    assert one.metadata.annotations is other.metadata.annotations
    assert one.metadata.creation_timestamp is other.metadata.creation_timestamp
    assert one.status.allocation is not None
    assert other.status.allocation is not None
    assert one.status.allocation.node_selector is other.status.allocation.node_selector


def test_a_claim_and_its_pod_share_their_names() -> None:
    sharing = Sharing()
    claim, pod = sharing.claim(decoded(ResourceClaim, CLAIM)), sharing.pod(decoded(Pod, POD))

    assert claim.status.reserved_for is not None
    assert claim.metadata.owner_references is not None
    assert pod.status.resource_claim_statuses is not None
    assert claim.status.reserved_for[0].uid is claim.metadata.owner_references[0].uid is pod.metadata.uid
    assert claim.status.reserved_for[0].name is pod.metadata.name
    assert pod.status.resource_claim_statuses[0].resource_claim_name is claim.metadata.name


def test_devices_of_a_slice_share_what_is_alike() -> None:
    device = {
        "attributes": {"model": {"string": "H100 80GB"}, "driverVersion": {"version": "580.95.5"}},
        "capacity": {"memory": {"value": "80Gi"}},
    }
    published = decoded(ResourceSlice, {
        "metadata": {"name": "s"},
        "spec": {
            "driver": "d", "nodeName": "node-a", "pool": {"name": "node-a", "generation": 3, "resourceSliceCount": 2},
            "devices": [{"name": "gpu-0", **device}, {"name": "gpu-1", **device}],
        },
    })

    flat = flatten(published)

    assert (flat.pool, flat.generation, flat.expected) == (("d", "node-a"), 3, 2)
    one, other = flat.devices
    assert one.attributes == {"model": "H100 80GB", "driverVersion": "580.95.5"}
    assert all(one.attributes[name] is other.attributes[name] for name in one.attributes)
    assert one.capacity is other.capacity
    assert one.capacity["memory"].value == "80Gi"


@dataclass(slots=True)
class Clock:
    """Stands at the event that is being told."""

    seconds: float = 0.0

    def monotonic_ns(self) -> int:
        return round((self.seconds + 1000) * 1e9)

    def wall_ns(self) -> int:
        return round((START + self.seconds) * 1e9)


async def told(compact: bool, seconds: float) -> tuple[Engine, ClusterSnapshot]:
    """The recording up to a moment."""
    clock = Clock()
    engine = Engine(clock=clock, selectors=Selectors.in_process(), count_since_wall=START)
    keepers = {name: kind.compact() for name, kind in KINDS.items() if compact and kind.compact is not None}

    def kept(kind: str, obj: Any) -> Any:
        return keepers[kind](obj) if kind in keepers else obj

    for kind, objects in lists().items():
        engine.on_sync(kind, [kept(kind, obj) for obj in objects])
    for arrival in _until(seconds):
        clock.seconds = max(clock.seconds, arrival.seconds)
        engine.on_change(arrival.kind, kept(arrival.kind, arrival.obj), arrival.present)
    clock.seconds = seconds
    return engine, await engine.publish(complete=True)


def _until(seconds: float) -> list[Arrival]:
    return [arrival for arrival in arrivals() if arrival.seconds <= seconds]


def without_unknown_health(view: ClaimView) -> ClaimView:
    devices = tuple(
        replace(device, health="" if device.health == "Unknown" else device.health) for device in view.devices
    )
    return replace(view, devices=devices)


@pytest.mark.parametrize("seconds", [5.0, 15.0, 25.0, 40.0, 60.0, 90.0, 150.0, 300.0, 1e6])
async def test_nothing_that_is_said_of_a_claim_changes(seconds: float) -> None:
    whole, expected = await told(False, seconds)
    engine, found = await told(True, seconds)

    assert {uid: without_unknown_health(view) for uid, view in found.claims.items()} == {
        uid: without_unknown_health(view) for uid, view in expected.claims.items()
    }
    assert found.waits == expected.waits
    assert found.samples == expected.samples
    for view in expected.claims.values():
        words = [
            explain(each.cluster, each.selectors, each.lifecycle.views, view.namespace, view.name, START + seconds)
            for each in (engine, whole)
        ]
        assert words[0] == words[1]
