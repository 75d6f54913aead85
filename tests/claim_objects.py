"""Small API objects for tests, made from JSON as watches would bring them."""

from __future__ import annotations

from typing import Any

import msgspec

from claimscope.claims.cluster import Cluster
from claimscope.kube import objects
from claimscope.kube.kinds import watched_kinds

GPU = "gpu.nvidia.com"
IS_GPU = f"device.driver == '{GPU}'"
CREATED = "2026-11-21T11:00:00Z"
CREATED_WALL = 1795258800.0
UNSCHEDULABLE = "0/2 nodes are available: 2 cannot allocate all claims."

_KINDS = {kind.name: kind.kind for kind in watched_kinds("claimscope")}


def decoded(kind: str, document: dict[str, Any]) -> Any:
    return msgspec.json.decode(msgspec.json.encode(document), type=_KINDS[kind])


def cluster_of(**listed: list[dict[str, Any]]) -> Cluster:
    """A cluster of which every kind has been read."""
    cluster = Cluster()
    for kind in _KINDS:
        plural = kind.replace("/", "_")
        cluster.sync(kind, [decoded(kind, each) for each in listed.get(plural, [])])
    return cluster


def meta(name: str, namespace: str = "team", **more: Any) -> dict[str, Any]:
    return {"name": name, "namespace": namespace, "uid": f"uid-{name}", "creationTimestamp": CREATED, **more}


def device(name: str, capacity: dict[str, Any] | None = None, taints: Any = None, **more: Any) -> dict[str, Any]:
    attributes = {
        key: {"bool": value} if isinstance(value, bool) else {"int": value} if isinstance(value, int) else
        {"string": value}
        for key, value in more.pop("attributes", {}).items()
    }
    spec: dict[str, Any] = {"name": name, "attributes": attributes, **more}
    if capacity is not None:
        spec["capacity"] = capacity
    if taints is not None:
        spec["taints"] = taints
    return spec


def pool(
    node: str, *devices: dict[str, Any], driver: str = GPU, count: int = 1, counters: Any = None
) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "driver": driver, "nodeName": node, "devices": list(devices),
        "pool": {"name": node, "generation": 1, "resourceSliceCount": count},
    }
    if counters is not None:
        spec["sharedCounters"] = counters
    return {"metadata": meta(f"{node}-{driver}"), "spec": spec}


def device_class(name: str = GPU, expression: str = IS_GPU) -> dict[str, Any]:
    return {"metadata": meta(name), "spec": {"selectors": [{"cel": {"expression": expression}}]}}


def request(name: str = "gpu", count: int | None = 1, selector: str | None = None, **more: Any) -> dict[str, Any]:
    exactly: dict[str, Any] = {"deviceClassName": GPU, "allocationMode": "ExactCount", "count": count, **more}
    if selector is not None:
        exactly["selectors"] = [{"cel": {"expression": selector}}]
    return {"name": name, "exactly": exactly}


def spec(*requests: dict[str, Any], constraints: Any = None) -> dict[str, Any]:
    return {"devices": {"requests": list(requests) or [request()], "constraints": constraints}}


def claim(name: str, *requests: dict[str, Any], constraints: Any = None, **metadata: Any) -> dict[str, Any]:
    return {"metadata": meta(name, **metadata), "spec": spec(*requests, constraints=constraints)}


def allocated(
    name: str, *results: tuple[str, str], user: str = "", node: str | None = None, **more: Any
) -> dict[str, Any]:
    """A claim that has devices: (pool, device); those of `node` can be used there alone."""
    found = claim(name, request(count=len(results)))
    found["status"] = {
        "allocation": {"devices": {"results": [
            {"request": "gpu", "driver": GPU, "pool": pool_name, "device": device_name, **more}
            for pool_name, device_name in results
        ]}},
        "reservedFor": [{"resource": "pods", "name": user, "uid": f"uid-{user}"}] if user else [],
    }
    if node is not None:
        found["status"]["allocation"]["nodeSelector"] = {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}
    return found


def pod(
    name: str, *claims: str, said: str | None = None, reason: str = "Unschedulable", node: str | None = None,
    template: str | None = None, conditions: Any = (), gates: Any = None, made: str | None = None,
) -> dict[str, Any]:
    """A pod that is not running; `said` is the scheduler's refusal."""
    entries = [{"name": f"c{index}", "resourceClaimName": each} for index, each in enumerate(claims)]
    if template is not None:
        entries.append({"name": "c0", "resourceClaimTemplateName": template})
    told = [*conditions]
    if said is not None:
        told.append({"type": "PodScheduled", "status": "False", "reason": reason, "message": said})
    if node is not None:
        told.append({"type": "PodScheduled", "status": "True", "lastTransitionTime": CREATED})
    return {
        "metadata": meta(name),
        "spec": {"resourceClaims": entries, "nodeName": node, "schedulingGates": gates,
                 "containers": [{"name": "main", "resources": {"claims": [{"name": "c0"}]}}]},
        "status": {"phase": "Pending", "conditions": told,
                   "resourceClaimStatuses": [{"name": "c0", "resourceClaimName": made}] if made else None},
    }


def pod_of_resources(
    name: str, *limits: dict[str, str], initial: list[dict[str, Any]] | None = None, said: str | None = None
) -> dict[str, Any]:
    """A pending pod whose containers ask for extended resources."""
    return {
        "metadata": meta(name),
        "spec": {
            "containers": [
                {"name": f"c{number}", "resources": {"limits": each}} for number, each in enumerate(limits)
            ],
            "initContainers": initial,
        },
        "status": {"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}] if said else []},
    }


def event(reason: str, pod_name: str, message: str) -> dict[str, Any]:
    return {
        "metadata": meta(f"{pod_name}.{reason}"), "reason": reason, "message": message, "lastTimestamp": CREATED,
        "involvedObject": {"kind": "Pod", "namespace": "team", "name": pod_name, "uid": f"uid-{pod_name}"},
    }


def rule(name: str, effect: str = "NoSchedule", **selector: str) -> dict[str, Any]:
    return {"metadata": meta(name), "spec": {"deviceSelector": selector, "taint": {
        "key": "maintenance", "value": "now", "effect": effect}}}


def claim_spec(document: dict[str, Any]) -> objects.ClaimSpec:
    return msgspec.json.decode(msgspec.json.encode(document), type=objects.ClaimSpec)
