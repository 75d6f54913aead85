"""Objects of a small made-up cluster, as short as a test can say them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from claimscope.claims.cluster import Cluster
from claimscope.kube.objects import (
    DeviceClass,
    DeviceTaintRule,
    Lease,
    Node,
    Pod,
    ResourceClaim,
    ResourceQuota,
    ResourceSlice,
)
from claimscope.model import Sample

T = TypeVar("T")

DRIVER = "gpu.example.com"


def make(kind: type[T], **document: Any) -> T:
    return msgspec.convert(document, kind)


def a_device(name: str, attributes: Mapping[str, str | int | bool] | None = None, **more: Any) -> dict[str, Any]:
    kinds = {str: "string", int: "int", bool: "bool"}
    return {
        "name": name,
        "attributes": {key: {kinds[type(value)]: value} for key, value in (attributes or {}).items()},
        **more,
    }


def a_slice(
    devices: Iterable[dict[str, Any]], *, driver: str = DRIVER, pool: str = "n1", name: str = "", count: int = 1,
    generation: int = 1, **spec: Any,
) -> ResourceSlice:
    where = {} if {"nodeSelector", "allNodes", "perDeviceNodeSelection"} & spec.keys() else {"nodeName": pool}
    return make(
        ResourceSlice,
        metadata={"name": name or f"{driver}-{pool}"},
        spec={
            "driver": driver, "pool": {"name": pool, "generation": generation, "resourceSliceCount": count},
            "devices": list(devices), **where, **spec,
        },
    )


def a_class(name: str, *expressions: str, resource: str | None = None, created: str | None = None) -> DeviceClass:
    return make(
        DeviceClass,
        metadata={"name": name, "creationTimestamp": created},
        spec={
            "selectors": [{"cel": {"expression": expression}} for expression in expressions],
            "extendedResourceName": resource,
        },
    )


def a_result(device: str, *, driver: str = DRIVER, pool: str = "n1", request: str = "gpu", **more: Any) -> Any:
    return {"request": request, "driver": driver, "pool": pool, "device": device, **more}


def a_claim(
    name: str, *results: Any, namespace: str = "a", at: str | None = None, requests: list[Any] | None = None
) -> ResourceClaim:
    """A claim of the class gpu, allocated where there are results."""
    allocation = {"devices": {"results": list(results)}, "allocationTimestamp": at} if results else None
    default = [{"name": "gpu", "exactly": {"deviceClassName": "gpu"}}]
    return make(
        ResourceClaim,
        metadata={"namespace": namespace, "name": name, "uid": f"uid-{name}"},
        spec={"devices": {"requests": requests if requests is not None else default}},
        status={"allocation": allocation},
    )


def a_rule(
    name: str, selector: dict[str, str] | None, *, effect: str = "NoSchedule", since: str | None = None,
    key: str = "example.com/sick", value: str = "",
) -> DeviceTaintRule:
    taint = {"key": key, "value": value, "effect": effect, "timeAdded": since}
    return make(
        DeviceTaintRule, metadata={"name": name, "uid": f"uid-{name}"},
        spec={"taint": taint, "deviceSelector": selector},
    )


def a_pod(name: str, *, namespace: str = "a", phase: str = "Running", **parts: Any) -> Pod:
    status = {"phase": phase, **parts.pop("status", {})}
    return make(
        Pod, metadata={"namespace": namespace, "name": name, "uid": f"uid-{name}"}, spec=parts, status=status
    )


def a_node(name: str, labels: Any = None, **allocatable: str) -> Node:
    return make(
        Node, metadata={"name": name, "labels": labels},
        status={"allocatable": {key.replace("__", "/").replace("_", "."): text for key, text in allocatable.items()}},
    )


def a_quota(name: str, hard: dict[str, str], used: dict[str, str] | None = None) -> ResourceQuota:
    return make(ResourceQuota, metadata={"namespace": "a", "name": name}, status={"hard": hard, "used": used})


def a_lease(node: str, annotation: str) -> Lease:
    return make(
        Lease, metadata={"namespace": "claimscope", "name": node, "annotations": {"claimscope.io/devices": annotation}},
        spec={"holderIdentity": node},
    )


def a_cluster(**kinds: list[Any]) -> Cluster:
    cluster = Cluster()
    for kind, objects in kinds.items():
        cluster.sync(kind, objects)
    return cluster


def values(samples: Iterable[Sample], family: str) -> dict[tuple[str, ...], float]:
    """The series of one family by their label values; a series that stands twice is an error."""
    found = [(tuple(value for _, value in each.labels), each.value) for each in samples if each.family == family]
    assert len(dict(found)) == len(found), f"{family} has equal series"
    return dict(found)
