"""Which claim will the scheduler make for a pod that asks for devices as an extended resource?

A class may serve an extended resource by its name, and serves deviceclass.resource.kubernetes.io/<class> in any case.
The scheduler makes the claim only together with its allocation, so while the pod waits there is no object to look at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from claimscope.claims.cluster import Cluster
from claimscope.claims.quota import class_of_resource
from claimscope.claims.state import is_bound
from claimscope.kube.objects import (
    ClaimDevices,
    ClaimMeta,
    ClaimRequest,
    ClaimSpec,
    Container,
    DeviceRequest,
    Pod,
    ResourceClaim,
)

IMPLICIT_PREFIX: Final = "deviceclass.resource.kubernetes.io/"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendedNeed:
    """The claim that a pod's extended resources come down to; it has no name and no uid."""

    claim: ResourceClaim
    resources: tuple[str, ...]


class ExtendedResources:
    """Which class serves which extended resource, as of one moment."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._classes = class_of_resource(cluster)
        self._plugins: frozenset[str] | None = None

    def need_of(self, pod: Pod) -> ExtendedNeed | None:
        """What a pod waits for that DRA alone can give it."""
        if pod.status.extended_resource_claim_status is not None or is_bound(pod):
            return None
        requests: list[ClaimRequest] = []
        resources: dict[str, None] = {}
        for resource, number in _asked(pod):
            name = self._class_of(resource)
            if name is not None and resource not in self._offered():
                resources[resource] = None
                requests.append(ClaimRequest(
                    name=f"request-{len(requests)}",
                    exactly=DeviceRequest(device_class_name=name, allocation_mode="ExactCount", count=number),
                ))
        if not requests:
            return None
        metadata = ClaimMeta(namespace=pod.metadata.namespace)
        claim = ResourceClaim(metadata=metadata, spec=ClaimSpec(devices=ClaimDevices(requests=requests)))
        return ExtendedNeed(claim=claim, resources=tuple(resources))

    def _class_of(self, resource: str) -> str | None:
        if resource.startswith(IMPLICIT_PREFIX):
            return resource.removeprefix(IMPLICIT_PREFIX)
        return self._classes.get(resource)

    def _offered(self) -> frozenset[str]:
        """Resources that a device plugin offers on some node: the scheduler may use it, and what is left of it is
        not known here."""
        if self._plugins is None:
            self._plugins = frozenset(
                name for node in self._cluster.nodes.values()
                for name, amount in (node.status.allocatable or {}).items()
                if "/" in name and amount != "0"
            )
        return self._plugins


def _asked(pod: Pod) -> Iterator[tuple[str, int]]:
    """What each container asks for; init containers are done before, so only what they ask for beyond counts."""
    initial = pod.spec.init_containers or []
    sidecars = [each for each in initial if each.restart_policy == "Always"]
    asked: Counter[str] = Counter()
    for container in (*(pod.spec.containers or ()), *sidecars):
        for resource, number in _limits(container):
            asked[resource] += number
            yield resource, number
    for container in initial:
        for resource, number in _limits(container) if container not in sidecars else ():
            if number > asked[resource]:
                yield resource, number - asked[resource]
                asked[resource] = number


def _limits(container: Container) -> Iterator[tuple[str, int]]:
    for name, amount in ((container.resources.limits if container.resources else None) or {}).items():
        if "/" in name and str(amount).isdigit() and int(amount) > 0:
            yield name, int(amount)
