"""How does a pod with its claims look in the Kubernetes API at time t? Scripts of a life, and the objects they make.

A script says when each step of a life happens, in seconds since the simulation began (negative: before). Rendering
one at a time gives the objects as a real 1.36 API server shows them, down to conditions and managed fields.
"""

from __future__ import annotations

import functools
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

Object = dict[str, Any]

KUBELET_VERSION: Final = "v1.36.3"
_UIDS: Final = uuid.UUID("6a1c8f2e-8a55-5d0b-9d43-2b2f6c1d7e02")
_NEVER: Final = math.inf
NO_EXECUTE_TOLERATIONS: Final = tuple(
    {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
    for key in ("not-ready", "unreachable")
)


def uid_of(kind: str, namespace: str, name: str) -> str:
    """The uid that an object of this name always has in a simulation."""
    return str(uuid.uuid5(_UIDS, f"{kind}/{namespace}/{name}"))


def stamp(wall_seconds: float) -> str:
    """A metav1.Time: whole seconds, cut off."""
    return _stamp(math.floor(wall_seconds))


@functools.lru_cache(maxsize=65536)
def _stamp(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def managed(manager: str, wall_seconds: float, fields: Mapping[str, Any], *, status: bool = False) -> Object:
    """One entry of metadata.managedFields."""
    entry: Object = {
        "manager": manager,
        "operation": "Update",
        "apiVersion": "v1",
        "time": stamp(wall_seconds),
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }
    return entry | {"subresource": "status"} if status else entry


def owned(names: Iterable[str]) -> Object:
    """The fieldsV1 of a few fields."""
    return {f"f:{name}": {} for name in names}


def _conditions_owned(kinds: Iterable[str]) -> Object:
    names = owned(("lastProbeTime", "lastTransitionTime", "observedGeneration", "status", "type"))
    return {f'k:{{"type":"{kind}"}}': {".": {}, **names} for kind in kinds}


_CLAIM_MADE: Final[Object] = {
    "f:metadata": {
        "f:annotations": {".": {}, "f:resource.kubernetes.io/pod-claim-name": {}},
        "f:generateName": {},
        "f:ownerReferences": {".": {}, **owned(("apiVersion", "blockOwnerDeletion", "controller", "kind", "name"))},
    },
    "f:spec": {"f:devices": {".": {}, "f:requests": {}}},
}
_CLAIM_FINALIZED: Final[Object] = {
    "f:metadata": {"f:finalizers": {".": {}, 'v:"resource.kubernetes.io/delete-protection"': {}}}
}
_POD_SCHEDULED: Final[Object] = {"f:status": {"f:conditions": {".": {}, **_conditions_owned(("PodScheduled",))}}}
_POD_RUN: Final[Object] = {
    "f:status": {
        "f:conditions": _conditions_owned(("ContainersReady", "Initialized", "PodReadyToStartContainers", "Ready")),
        **owned(("containerStatuses", "hostIP", "hostIPs", "phase", "podIP", "podIPs", "startTime")),
    }
}


def metadata(
    kind: str,
    name: str,
    namespace: str = "",
    *,
    created: float,
    uid: str = "",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    owners: Sequence[Mapping[str, Any]] = (),
) -> Object:
    """metadata of any object; `created` is Unix time."""
    made: Object = {"name": name, "uid": uid or uid_of(kind, namespace, name), "creationTimestamp": stamp(created)}
    if namespace:
        made["namespace"] = namespace
    for key, value in (("labels", labels), ("annotations", annotations), ("ownerReferences", owners)):
        if value:
            made[key] = dict(value) if isinstance(value, Mapping) else [dict(each) for each in value]
    return made


def owner(kind: str, name: str, namespace: str, *, api_version: str) -> Object:
    """A reference to the controller of an object."""
    return {
        "apiVersion": api_version, "kind": kind, "name": name, "uid": uid_of(kind, namespace, name),
        "controller": True, "blockOwnerDeletion": True,
    }


def request(deviceclass: str, *, count: int = 1, name: str = "gpu", **more: Any) -> Object:  # noqa: ANN401 - JSON
    """One entry of spec.devices.requests for so many devices of a class."""
    exactly = {"deviceClassName": deviceclass, "allocationMode": "ExactCount", "count": count, **more}
    return {"name": name, "exactly": exactly}


def cel(expression: str) -> list[Object]:
    """`selectors` with one expression."""
    return [{"cel": {"expression": expression}}]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimScript:
    """The life of a ResourceClaim."""

    namespace: str
    name: str
    requests: tuple[Object, ...]
    constraints: tuple[Object, ...] = ()
    pod_claim: str = "gpu"  # the pods' own name of it
    template: str | None = None
    uid: str = ""
    owner_pod: str = ""  # of claims made from a template or for an extended resource
    owner_uid: str = ""  # "": the uid that the pod of that name has
    extended: bool = False
    results: tuple[Object, ...] = ()  # what it is allocated, while it is
    node: str | None = None  # the node of the devices
    created: float = 0.0
    allocated: float = _NEVER
    released: float = _NEVER
    gone: float = _NEVER
    deleting: float = _NEVER

    @property
    def holds(self) -> bool:
        """True where it takes devices from others while it is allocated."""
        return any(not result.get("adminAccess") for result in self.results)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventScript:
    """What a component says about a pod."""

    reason: str
    message: str
    component: str
    type: str = "Warning"
    after: float = 1.0  # seconds after the pod was created


@dataclass(frozen=True, slots=True, kw_only=True)
class PodScript:
    """The life of a pod."""

    namespace: str
    name: str
    claims: tuple[ClaimScript, ...] = ()
    missing: tuple[Object, ...] = ()  # entries of spec.resourceClaims that have no claim
    limits: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    owners: tuple[Object, ...] = ()
    node: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    gates: tuple[str, ...] = ()
    refusal: tuple[str, str] | None = None  # reason and message of PodScheduled=False
    waiting: str = ""  # why its container waits after the sandbox is ready: "CrashLoopBackOff", "ImagePullBackOff"
    restarts: int = 0
    health: str = "Unknown"  # of its devices as the kubelet was told; Unknown: the driver tells none
    never_reserved: bool = False  # the scheduler has not let it use its claims
    events: tuple[EventScript, ...] = ()
    created: float = 0.0
    bound: float = _NEVER
    prepared: float = _NEVER
    started: float = _NEVER
    finished: float = _NEVER
    gone: float = _NEVER

    @property
    def uid(self) -> str:
        """Its uid."""
        return uid_of("Pod", self.namespace, self.name)


def claim_object(claim: ClaimScript, users: Sequence[PodScript], at: float, origin: float) -> Object:
    """The claim at `at`; `users` are the pods that it may be reserved for."""
    allocated = bool(claim.results) and claim.allocated <= at < claim.released
    annotations = {}
    owners = []
    if claim.template is not None:
        annotations["resource.kubernetes.io/pod-claim-name"] = claim.pod_claim
    if claim.extended:
        annotations["resource.kubernetes.io/extended-resource-claim"] = "true"
    if claim.owner_pod:
        owners.append(
            {
                "apiVersion": "v1", "kind": "Pod", "name": claim.owner_pod, "controller": True,
                "uid": claim.owner_uid or uid_of("Pod", claim.namespace, claim.owner_pod),
                "blockOwnerDeletion": True,
            }
        )
    meta = metadata(
        "ResourceClaim", claim.name, claim.namespace, created=origin + claim.created, uid=claim.uid,
        annotations=annotations, owners=owners,
    )
    maker = "kube-controller-manager" if claim.template else "kubectl-create"
    fields = [managed(maker, origin + claim.created, _CLAIM_MADE)]
    devices: Object = {"requests": list(claim.requests)}
    if claim.constraints:
        devices["constraints"] = list(claim.constraints)
    status: Object = {}
    if allocated:
        meta["finalizers"] = ["resource.kubernetes.io/delete-protection"]
        when = origin + claim.allocated
        status["allocation"] = {"devices": {"results": list(claim.results)}, "allocationTimestamp": stamp(when)}
        if claim.node is not None:
            status["allocation"]["nodeSelector"] = {
                "nodeSelectorTerms": [
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [claim.node]}]}
                ]
            }
        reserved = [
            pod for pod in users
            if not pod.never_reserved and pod.created <= at < min(max(pod.finished, _finite(claim.released)), pod.gone)
        ]
        if reserved:
            status["reservedFor"] = [{"resource": "pods", "name": pod.name, "uid": pod.uid} for pod in reserved]
        written: Object = {
            "f:allocation": {".": {}, "f:allocationTimestamp": {}, "f:devices": {".": {}, "f:results": {}},
                             "f:nodeSelector": {}},
            "f:reservedFor": {
                ".": {},
                **{f'k:{{"uid":"{pod.uid}"}}': {".": {}, **owned(("name", "resource", "uid"))} for pod in reserved},
            },
        }
        fields.append(managed("kube-scheduler", when, _CLAIM_FINALIZED))
        fields.append(managed("kube-scheduler", when, {"f:status": written}, status=True))
    if claim.deleting <= at:
        meta["deletionTimestamp"] = stamp(origin + claim.deleting)
        meta["deletionGracePeriodSeconds"] = 0
        meta.setdefault("finalizers", []).append("example.com/audit")
    meta["managedFields"] = fields
    return {
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": meta,
        "spec": {"devices": devices}, "status": status,
    }


def _finite(moment: float) -> float:
    """An end that never comes ends nothing."""
    return moment if moment < _NEVER else -_NEVER


def pod_object(pod: PodScript, at: float, origin: float) -> Object:
    """The pod at `at`."""
    meta = metadata(
        "Pod", pod.name, pod.namespace, created=origin + pod.created, labels=pod.labels, owners=pod.owners
    )
    entries = [dict(entry) for entry in pod.missing]
    made = []
    for claim in pod.claims:
        if claim.extended:
            continue
        if claim.template is None:
            entries.append({"name": claim.pod_claim, "resourceClaimName": claim.name})
        else:
            entries.append({"name": claim.pod_claim, "resourceClaimTemplateName": claim.template})
            if claim.created <= at:
                made.append({"name": claim.pod_claim, "resourceClaimName": claim.name})
    resources: Object = {}
    if entries:
        resources["claims"] = [{"name": entry["name"]} for entry in entries]
    if pod.limits:
        resources["limits"] = resources["requests"] = dict(pod.limits)
    container = {
        "name": "main", "image": "registry.example.com/workload:1", "resources": resources,
        "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log",
    }
    spec: Object = {
        "containers": [container], "restartPolicy": "Never", "schedulerName": "default-scheduler",
        "tolerations": [*NO_EXECUTE_TOLERATIONS],
    }
    if entries:
        spec["resourceClaims"] = entries
    if pod.gates:
        spec["schedulingGates"] = [{"name": gate} for gate in pod.gates]
    if pod.node_selector:
        spec["nodeSelector"] = dict(pod.node_selector)
    if pod.bound <= at:
        spec["nodeName"] = pod.node
    status = _pod_status(pod, at, origin)
    if made:
        status["resourceClaimStatuses"] = made
    extended = next((claim for claim in pod.claims if claim.extended and claim.created <= at), None)
    if extended is not None:
        status["extendedResourceClaimStatus"] = {"resourceClaimName": extended.name}
    if pod.bound <= at:
        meta["managedFields"] = [
            managed("kube-scheduler", origin + pod.bound, _POD_SCHEDULED, status=True),
            managed("kubelet", origin + pod.bound, _POD_RUN, status=True),
        ]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": status}


def _condition(kind: str, true: bool, since: float, reason: str = "", message: str = "") -> Object:
    made: Object = {"type": kind, "status": "True" if true else "False", "lastTransitionTime": stamp(since)}
    if reason:
        made["reason"] = reason
    if message:
        made["message"] = message
    return made


def _pod_status(pod: PodScript, at: float, origin: float) -> Object:
    if pod.bound > at:
        status: Object = {"phase": "Pending", "qosClass": "BestEffort"}
        if pod.gates:
            text = "Scheduling is blocked due to non-empty scheduling gates"
            status["conditions"] = [
                _condition("PodScheduled", False, origin + pod.created, "SchedulingGated", text)
            ]
        elif pod.refusal is not None:
            status["conditions"] = [_condition("PodScheduled", False, origin + pod.created, *pod.refusal)]
        return status
    ready = pod.started <= at < pod.finished
    ended = pod.finished <= at
    since_ready = pod.finished if ended else pod.started if ready else pod.bound
    not_ready = ("PodCompleted", "") if ended else ("ContainersNotReady", "containers with unready status: [main]")
    because = ("", "") if ready else not_ready
    sandbox = pod.prepared <= at < pod.finished
    since_sandbox = pod.finished if ended else pod.prepared if sandbox else pod.bound
    state = _container_state(pod, at, origin)
    container: Object = {
        "name": "main", "state": state, "lastState": {}, "ready": ready, "started": ready,
        "restartCount": pod.restarts, "image": "registry.example.com/workload:1", "imageID": "",
    }
    if pod.restarts:
        container["lastState"] = {
            "terminated": {
                "exitCode": 1, "reason": "Error", "startedAt": stamp(origin + pod.prepared + 1),
                "finishedAt": stamp(origin + pod.prepared + 5),
            }
        }
    if pod.claims and not pod.claims[0].extended and sandbox:
        container["allocatedResourcesStatus"] = [
            {
                "name": f"claim:{claim.pod_claim}",
                "resources": [
                    {"resourceID": f"{each['driver']}/{each['pool']}/{each['device']}", "health": pod.health}
                    for each in claim.results
                ],
            }
            for claim in pod.claims
        ]
    running = pod.started <= at or bool(pod.restarts)
    return {
        "phase": "Succeeded" if ended else "Running" if running else "Pending",
        "qosClass": "BestEffort",
        "startTime": stamp(origin + pod.bound),
        "conditions": [
            _condition("PodReadyToStartContainers", sandbox, origin + since_sandbox),
            _condition("Initialized", True, origin + pod.bound),
            _condition("Ready", ready, origin + since_ready, *because),
            _condition("ContainersReady", ready, origin + since_ready, *because),
            _condition("PodScheduled", True, origin + pod.bound),
        ],
        "containerStatuses": [container],
    }


def _container_state(pod: PodScript, at: float, origin: float) -> Object:
    if pod.finished <= at:
        return {
            "terminated": {
                "exitCode": 0, "reason": "Completed", "startedAt": stamp(origin + pod.started),
                "finishedAt": stamp(origin + pod.finished),
            }
        }
    if pod.started <= at:
        return {"running": {"startedAt": stamp(origin + pod.started)}}
    if pod.waiting and pod.prepared <= at:
        text = {
            "CrashLoopBackOff": "back-off 5m0s restarting failed container=main",
            "ImagePullBackOff": 'Back-off pulling image "registry.example.com/workload:1"',
        }
        return {"waiting": {"reason": pod.waiting, "message": text.get(pod.waiting, "")}}
    return {"waiting": {"reason": "ContainerCreating"}}


def event_object(pod: PodScript, event: EventScript, origin: float) -> Object:
    """What was said about a pod, as core/v1 Event."""
    when = stamp(origin + pod.created + event.after)
    name = f"{pod.name}.{uid_of('Event', pod.namespace, pod.name + event.reason)[:16].replace('-', '')}"
    meta = metadata("Event", name, pod.namespace, created=origin + pod.created + event.after)
    return {
        "apiVersion": "v1", "kind": "Event", "metadata": meta,
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid
        },
        "reason": event.reason, "message": event.message, "type": event.type, "count": 1, "eventTime": None,
        "firstTimestamp": when, "lastTimestamp": when, "source": {"component": event.component},
        "reportingComponent": event.component, "reportingInstance": "",
    }


def node_object(name: str, *, origin: float, labels: Mapping[str, str], devices: Mapping[str, str]) -> Object:
    """A node that is ready; `devices` are extended resources of device plugins."""
    created = origin - 30 * 86400
    amounts = {"cpu": "192", "memory": "2113402880Ki", "pods": "110", "ephemeral-storage": "7Ti", **devices}
    all_labels = {
        "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux", "kubernetes.io/hostname": name, **labels
    }
    return {
        "apiVersion": "v1", "kind": "Node",
        "metadata": metadata("Node", name, created=created, labels=all_labels),
        "spec": {},
        "status": {
            "capacity": amounts, "allocatable": amounts,
            "conditions": [_condition("Ready", True, created, "KubeletReady", "kubelet is posting ready status")],
            "nodeInfo": {"kubeletVersion": KUBELET_VERSION, "operatingSystem": "linux", "architecture": "amd64"},
        },
    }


def class_object(name: str, expression: str, *, origin: float, extended: str | None = None) -> Object:
    """A DeviceClass with one selector."""
    spec: Object = {"selectors": cel(expression)}
    if extended is not None:
        spec["extendedResourceName"] = extended
    return {
        "apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass",
        "metadata": metadata("DeviceClass", name, created=origin - 30 * 86400), "spec": spec,
    }


def slice_object(
    driver: str, pool: str, devices: Sequence[Object], *, origin: float, node: str | None = None, slices: int = 1,
    part: int = 0, counters: Sequence[Object] = (),
) -> Object:
    """One ResourceSlice of a pool."""
    spec: Object = {
        "driver": driver, "pool": {"name": pool, "generation": 1, "resourceSliceCount": slices},
        "nodeName": node or pool,
    }
    if counters:
        spec["sharedCounters"] = list(counters)
    else:
        spec["devices"] = list(devices)
    name = f"{part:05d}-{driver}-{pool}-sim"
    return {
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice",
        "metadata": metadata("ResourceSlice", name, created=origin - 86400), "spec": spec,
    }


def device(name: str, *, attributes: Mapping[str, str] | None = None, **more: Any) -> Object:  # noqa: ANN401 - JSON
    """A device of a slice with text attributes."""
    made: Object = {"name": name, "attributes": {k: {"string": v} for k, v in (attributes or {}).items()}}
    return made | more
