"""Claims and pods in few words, and a Lifecycle that is told of them as by watches."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from claimscope.claims.cluster import Cluster
from claimscope.claims.lifecycle import Lifecycle
from claimscope.claims.model import ClaimView
from claimscope.kube.objects import Pod, ResourceClaim, ResourceSlice
from claimscope.model import Histogram

BASE = 1_700_000_000.0


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(BASE + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def claim(
    name: str = "c", *, uid: str = "", created: float = 0, allocated: float | None = None, device: str = "",
    reserved: Iterable[str] = (), status: dict[str, Any] | None = None, requests: list[dict[str, Any]] | None = None,
    metadata: dict[str, Any] | None = None,
) -> ResourceClaim:
    told: dict[str, Any] = {}
    if device or allocated is not None:
        results = [{"request": "gpu", "driver": "d", "pool": "n", "device": device or "gpu-0"}]
        told["allocation"] = {"devices": {"results": results}}
        if allocated is not None:
            told["allocation"]["allocationTimestamp"] = stamp(allocated)
    told["reservedFor"] = [{"resource": "pods", "name": pod, "uid": f"{pod}-uid"} for pod in reserved]
    return msgspec.convert(
        {
            "metadata": {
                "name": name, "namespace": "ns", "uid": uid or f"{name}-uid", "creationTimestamp": stamp(created),
                **(metadata or {}),
            },
            "spec": {"devices": {"requests": requests or [{"name": "gpu", "exactly": {"deviceClassName": "k"}}]}},
            "status": status if status is not None else told,
        },
        ResourceClaim,
    )


def condition(kind: str, at: float, status: str = "True", reason: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "lastTransitionTime": stamp(at)}


def container(state: dict[str, Any], *, restarts: int = 0, name: str = "main", **more: Any) -> dict[str, Any]:
    return {"name": name, "state": state, "restartCount": restarts, **more}


def pod(
    name: str = "p", *, claims: Iterable[str] = ("c",), created: float = 0, bound: float | None = None,
    prepared: float | None = None, started: float | None = None, waiting: str = "", phase: str = "Pending",
    conditions: Iterable[dict[str, Any]] = (), statuses: list[dict[str, Any]] | None = None,
    metadata: dict[str, Any] | None = None, spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None,
) -> Pod:
    found = list(conditions)
    if bound is not None:
        found.append(condition("PodScheduled", bound))
    if prepared is not None:
        found.append(condition("PodReadyToStartContainers", prepared))
    if statuses is None and started is not None:
        statuses = [container({"running": {"startedAt": stamp(started)}})]
    elif statuses is None and waiting:
        statuses = [container({"waiting": {"reason": waiting}})]
    names = list(claims)
    return msgspec.convert(
        {
            "metadata": {
                "name": name, "namespace": "ns", "uid": f"{name}-uid", "creationTimestamp": stamp(created),
                **(metadata or {}),
            },
            "spec": {
                "resourceClaims": [{"name": f"my-{each}", "resourceClaimName": each} for each in names],
                "containers": [
                    {"name": "main", "resources": {"claims": [{"name": f"my-{each}"} for each in names]}},
                ],
                **(spec or {}),
            },
            "status": {"phase": phase, "conditions": found, "containerStatuses": statuses, **(status or {})},
        },
        Pod,
    )


def published(*devices: str, node: str = "n", name: str = "slice") -> ResourceSlice:
    return msgspec.convert(
        {
            "metadata": {"name": name},
            "spec": {
                "driver": "d", "pool": {"name": "n"}, "nodeName": node,
                "devices": [{"name": each, "attributes": {"uuid": {"string": f"GPU-{each}"}}} for each in devices],
            },
        },
        ResourceSlice,
    )


class Watched:
    """Cluster and Lifecycle together; `at` is seconds after BASE on both clocks."""

    def __init__(self, *, since: float = 0) -> None:
        self.cluster = Cluster()
        self.cluster.synced.add("pods")  # there are no others than those that were told
        self.lifecycle = Lifecycle(count_since_wall=BASE + since)
        self._versions = 0

    def _versioned(self, obj: Any) -> Any:
        self._versions += 1
        metadata = msgspec.structs.replace(obj.metadata, resource_version=str(self._versions))
        return msgspec.structs.replace(obj, metadata=metadata)

    def listed(self, at: float, kind: str, *objects: Any) -> None:
        changes = self.cluster.sync(kind, [self._versioned(obj) for obj in objects])
        self.lifecycle.take(changes, self.cluster, arrival_ns=round(at * 1e9), wall=BASE + at)

    def saw(self, at: float, obj: Any, *, gone: bool = False, wall: float | None = None) -> None:
        kinds: dict[Any, str] = {ResourceClaim: "resourceclaims", Pod: "pods", ResourceSlice: "resourceslices"}
        changes = self.cluster.apply(kinds[type(obj)], self._versioned(obj), not gone)
        self.lifecycle.take(
            changes, self.cluster, arrival_ns=round(at * 1e9), wall=BASE + (at if wall is None else wall)
        )

    def tick(self, at: float) -> None:
        self.lifecycle.tick(self.cluster, BASE + at)

    def view(self, name: str = "c") -> ClaimView:
        return next(view for view in self.lifecycle.views.values() if view.name == name)

    def figures(self) -> dict[tuple[str, ...], float]:
        return figures_of(self.lifecycle)

    def seconds(self) -> dict[str, float]:
        """Sum of each phase, rounded to milliseconds."""
        return {key[-2]: value for key, value in self.figures().items() if key[-1] == "sum"}


def figures_of(lifecycle: Lifecycle) -> dict[tuple[str, ...], float]:
    """Every number by short name and label values; histograms as their count, and their sum beside it."""
    found: dict[tuple[str, ...], float] = {}
    for each in lifecycle.samples():
        key = (_SHORT[each.family], *(value for _, value in each.labels))
        if isinstance(each, Histogram):
            found[(*key, "count")] = sum(each.counts)
            found[(*key, "sum")] = round(each.sum, 3)
        else:
            found[key] = each.value
    return found


_SHORT = {
    "dra_allocation_duration_seconds": "phase",
    "dra_claim_ready_duration_seconds": "ready",
    "dra_claim_lifetime_seconds": "lifetime",
    "dra_claims_completed_total": "completed",
    "dra_claim_evictions_total": "evictions",
    "claimscope_controller_skipped_durations_total": "skipped",
}
