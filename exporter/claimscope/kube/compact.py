"""How do 100,000 claims and pods fit into memory? What is alike is kept once, what nobody reads not at all.

A decoder makes every word and every nested object anew. Most of them repeat: the spec of claims that come from one
template, the containers of pods of one job, the names of drivers, pools and nodes.
"""

from __future__ import annotations

import sys
from typing import Final, TypeVar, cast

import msgspec

from claimscope.kube.objects import (
    Allocation,
    Condition,
    ConsumerReference,
    ContainerStatus,
    DeviceAllocation,
    DeviceResult,
    OwnerReference,
    Pod,
    PodClaimStatus,
    ResourceClaim,
    ResourceStatus,
    WorkloadLabels,
)

T = TypeVar("T")

# Of the conditions of a pod: what tells how far it has come, why it waits, and who ended it.
POD_CONDITIONS: Final = frozenset({"PodScheduled", "PodReadyToStartContainers", "DisruptionTarget"})
_UNMET_CONDITIONS: Final = frozenset({"ContainersReady"})  # while unmet, it alone tells since when a container waits
_MAX_SHARED: Final = 50_000

_intern = sys.intern
_encode = msgspec.json.Encoder().encode


class Sharing:
    """Objects that were seen before, by their content."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes], object] = {}

    def of(self, kind: str, content: T) -> T:
        """The first object of this kind and content that was seen."""
        if len(self._known) > _MAX_SHARED:
            self._known.clear()
        return cast("T", self._known.setdefault((kind, _encode(content)), content))

    def claim(self, claim: ResourceClaim) -> ResourceClaim:
        """The same claim in less memory."""
        meta, status = claim.metadata, claim.status
        return ResourceClaim(
            metadata=msgspec.structs.replace(
                meta,
                namespace=_intern(meta.namespace),
                owner_references=_owners(meta.owner_references),
                labels=self._labels(meta.labels),
                annotations=None if meta.annotations is None else self.of("annotations", meta.annotations),
            ),
            spec=self.of("spec", claim.spec),
            status=msgspec.structs.replace(
                status,
                allocation=None if status.allocation is None else self._allocation(status.allocation),
                reserved_for=status.reserved_for and [_consumer(each) for each in status.reserved_for],
            ),
        )

    def _allocation(self, allocation: Allocation) -> Allocation:
        return Allocation(
            devices=DeviceAllocation(results=[_result(each) for each in allocation.devices.results or ()]),
            allocation_timestamp=allocation.allocation_timestamp,
            node_selector=None if allocation.node_selector is None else self.of("nodes", allocation.node_selector),
        )

    def pod(self, pod: Pod) -> Pod:
        """The same pod in less memory; conditions that nobody reads are left out."""
        meta, spec, status = pod.metadata, pod.spec, pod.status
        return Pod(
            metadata=msgspec.structs.replace(
                meta,
                namespace=_intern(meta.namespace),
                owner_references=_owners(meta.owner_references),
                labels=self._labels(meta.labels),
                annotations=None if meta.annotations is None else self.of("pod annotations", meta.annotations),
            ),
            spec=msgspec.structs.replace(
                spec,
                node_name=spec.node_name and _intern(spec.node_name),
                scheduler_name=_intern(spec.scheduler_name),
                resource_claims=self.of("pod claims", spec.resource_claims),
                containers=self.of("containers", spec.containers),
                init_containers=self.of("containers", spec.init_containers),
            ),
            status=msgspec.structs.replace(
                status,
                phase=_intern(status.phase),
                conditions=status.conditions and [_condition(each) for each in status.conditions if _is_read(each)],
                container_statuses=status.container_statuses
                and [_container(each) for each in status.container_statuses],
                resource_claim_statuses=status.resource_claim_statuses
                and [
                    PodClaimStatus(name=_intern(each.name), resource_claim_name=each.resource_claim_name)
                    for each in status.resource_claim_statuses
                ],
            ),
        )

    def _labels(self, labels: WorkloadLabels | None) -> WorkloadLabels | None:
        if labels is None:
            return None
        return self.of(
            "labels",
            msgspec.structs.replace(
                labels,
                # The old spelling is put beside the new one since Kubernetes 1.27.
                old_job_name=None if labels.job_name else labels.old_job_name,
                app_name=labels.app_name and _intern(labels.app_name),
                kueue_queue=labels.kueue_queue and _intern(labels.kueue_queue),
            ),
        )


def _owners(owners: list[OwnerReference] | None) -> list[OwnerReference] | None:
    return owners and [
        msgspec.structs.replace(owner, api_version=_intern(owner.api_version), kind=_intern(owner.kind))
        for owner in owners
    ]


def _consumer(consumer: ConsumerReference) -> ConsumerReference:
    return msgspec.structs.replace(consumer, resource=_intern(consumer.resource))


def _result(result: DeviceResult) -> DeviceResult:
    return msgspec.structs.replace(
        result,
        request=_intern(result.request),
        driver=_intern(result.driver),
        pool=_intern(result.pool),
        device=_intern(result.device),
    )


def _container(status: ContainerStatus) -> ContainerStatus:
    return msgspec.structs.replace(
        status,
        name=_intern(status.name),
        allocated_resources_status=status.allocated_resources_status
        and [
            ResourceStatus(
                name=_intern(each.name),
                resources=each.resources
                and [msgspec.structs.replace(health, health=_intern(health.health)) for health in each.resources],
            )
            for each in status.allocated_resources_status
        ],
    )


def _is_read(condition: Condition) -> bool:
    return condition.type in POD_CONDITIONS or (condition.type in _UNMET_CONDITIONS and condition.status != "True")


def _condition(condition: Condition) -> Condition:
    return msgspec.structs.replace(
        condition,
        type=_intern(condition.type),
        status=_intern(condition.status),
        reason=_intern(condition.reason),
    )
