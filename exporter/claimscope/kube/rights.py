"""Which rights at the API server does each part need, what is missing without each, and which are there?

The same as deploy/manifests/rbac-*.yaml grant; a test holds them together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from claimscope.kube.api import ApiClient, decode

_REVIEWS: Final = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_DRA, _LEASES = "resource.k8s.io", "coordination.k8s.io"
OWN: Final = "own"  # the namespace that claimscope runs in
ELECTION: Final = "election"  # the name of the Lease by which a leader is elected


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a part does with one kind of object."""

    verbs: tuple[str, ...]
    resource: str  # "nodes/status" for a subresource
    without: str  # what is missing then
    group: str = ""
    namespace: str = ""  # "" is everywhere
    name: str = ""  # "" is any
    required: bool = False  # the part is of no use without it

    @property
    def title(self) -> str:
        """The resource as `kubectl auth can-i` takes it, and where."""
        name, slash, part = self.resource.partition("/")
        where = f" {self.name}" if self.name else ""
        where += f" in namespace {self.namespace}" if self.namespace else ""
        return f"{name}.{self.group}{slash}{part}{where}" if self.group else f"{self.resource}{where}"


_RULES_WITHOUT: Final = "no GPU is tainted"
_CONDITIONS: Final = Need(
    verbs=("patch",), resource="nodes/status", without="the conditions GPUDegraded and GPUUnhealthy are not written",
)  # fmt: skip

AGENT: Final = (
    Need(
        verbs=("list", "watch"), group=_DRA, resource="resourceslices",
        without="devices that are not named by their minor number have no holder",
    ),
    Need(
        verbs=("get",), group=_DRA, resource="resourceclaims",
        without="claims that only observe are taken for holders; see --observer-namespaces",
    ),
    Need(
        verbs=("get", "create", "update"), group=_LEASES, resource="leases", namespace=OWN,
        without="the controller hears nothing of this node: it is unmonitored, and nothing new is fenced on it",
    ),
)  # fmt: skip

AGENT_LOCAL: Final = (
    Need(
        verbs=("get", "list", "watch", "create", "patch", "delete"), group=_DRA, resource="devicetaintrules",
        without=_RULES_WITHOUT,
    ),
    Need(verbs=("list", "watch"), resource="nodes", without=_RULES_WITHOUT),
    _CONDITIONS,
    Need(verbs=("patch",), group=_LEASES, resource="leases", namespace=OWN, without=_RULES_WITHOUT),
    Need(verbs=("create",), resource="events", namespace="default", without="only the log tells of taints"),
)  # fmt: skip

CONTROLLER: Final = (
    Need(
        verbs=("list", "watch"), group=_DRA, resource="resourceclaims", without="there is nothing to show",
        required=True,
    ),
    Need(
        verbs=("list", "watch"), group=_DRA, resource="resourceslices", required=True,
        without="capacity and most causes of waiting are unknown",
    ),
    Need(
        verbs=("list", "watch"), group=_DRA, resource="deviceclasses", required=True,
        without="capacity per class and most causes of waiting are unknown",
    ),
    Need(
        verbs=("list", "watch"), group=_DRA, resource="resourceclaimtemplates",
        without="a missing template is not recognised",
    ),
    Need(
        verbs=("list", "watch"), resource="pods", required=True,
        without="phases after allocation and what pods wait for are unknown",
    ),
    Need(verbs=("list", "watch"), resource="nodes", without="migration, drift and node selectors are unknown"),
    Need(verbs=("list", "watch"), resource="resourcequotas", without="use of quota is unknown"),
    Need(
        verbs=("list", "watch"), resource="events",
        without="what the claim controller, the scheduler and kubelets say about pods is unknown",
    ),
    Need(
        verbs=("get", "list", "watch", "create", "patch"), group=_LEASES, resource="leases", namespace=OWN,
        without="no replica leads, and the agents are not heard", required=True,
    ),
    Need(
        verbs=("update",), group=_LEASES, resource="leases", namespace=OWN, name=ELECTION, without="no replica leads",
        required=True,
    ),
    Need(
        verbs=("list", "watch"), group=_DRA, resource="devicetaintrules",
        without="taints by rule are unknown, and no GPU is tainted",
    ),
)  # fmt: skip

CONTROLLER_FENCING: Final = (
    Need(
        verbs=("get", "create", "patch", "delete"), group=_DRA, resource="devicetaintrules", without=_RULES_WITHOUT
    ),
    _CONDITIONS,
    Need(verbs=("create",), resource="events", without="only log and metrics tell of taints"),
)  # fmt: skip

CONTROLLER_NODE_TAINTS: Final = (
    Need(verbs=("get", "patch"), resource="nodes", without="no Node is tainted; the policy asks for it"),
)

_REVIEWS_WITHOUT: Final = "nobody is let in; --web-authorization=kubernetes asks for it"
REVIEWS: Final = (
    Need(
        verbs=("create",), group="authentication.k8s.io", resource="tokenreviews", without=_REVIEWS_WITHOUT,
    ),
    Need(
        verbs=("create",), group="authorization.k8s.io", resource="subjectaccessreviews", without=_REVIEWS_WITHOUT,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """What may not be done of a need."""

    need: Need
    verbs: tuple[str, ...]


class _Status(msgspec.Struct, frozen=True):
    allowed: bool = False


class _Review(msgspec.Struct, frozen=True):
    status: _Status = _Status()


async def missing(
    api: ApiClient, needs: Iterable[Need], own_namespace: str, election: str = ""
) -> tuple[Denied, ...]:
    """What whoever asks may not do. `election` is the name of the leader's Lease. Raises ApiError."""
    found: list[Denied] = []
    for need in needs:
        place = own_namespace if need.namespace == OWN else need.namespace
        name = election if need.name == ELECTION else need.name
        need = dataclasses.replace(need, namespace=place, name=name)
        verbs = [verb for verb in need.verbs if not await _may(api, need, verb)]
        if verbs:
            found.append(Denied(need=need, verbs=tuple(verbs)))
    return tuple(found)


async def _may(api: ApiClient, need: Need, verb: str) -> bool:
    resource, _, subresource = need.resource.partition("/")
    attributes = {
        "verb": verb, "group": need.group, "resource": resource, "subresource": subresource,
        "namespace": need.namespace, "name": need.name,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {name: value for name, value in attributes.items() if value}},
    }
    return decode(await api.send("POST", _REVIEWS, body=review), _Review, _REVIEWS).status.allowed
