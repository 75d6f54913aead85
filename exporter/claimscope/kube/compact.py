"""How do 100,000 claims and pods fit into memory? What is alike is kept once, what nobody reads not at all.

A decoder makes every word and every nested object anew. Most of them repeat: the spec of claims that come from one
template, the containers of pods of one job, the names of drivers, pools and nodes, the seconds at which things
happened; and a claim and its pod name each other. Interned words are freed with the last object that uses them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Final, TypeVar, cast

import msgspec
from msgspec.structs import replace

from claimscope.kube.objects import (
    Allocation,
    Condition,
    ConsumerReference,
    ContainerState,
    ContainerStatus,
    DeviceAllocation,
    DeviceResult,
    Node,
    NodeInfo,
    OwnerReference,
    Pod,
    PodClaimStatus,
    ResourceClaim,
    ResourceHealth,
    ResourceStatus,
    Running,
    WorkloadLabels,
)

T = TypeVar("T")

# Of the conditions of a pod: what tells how far it has come, why it waits, and who ended it.
POD_CONDITIONS: Final = frozenset({"PodScheduled", "PodReadyToStartContainers", "DisruptionTarget"})
# While unmet, they alone tell since when a container waits, and that init containers still run.
_UNMET_CONDITIONS: Final = frozenset({"ContainersReady", "Initialized"})
_MAX_SHARED: Final = 20_000

_intern = sys.intern
_encode = msgspec.json.Encoder().encode


class Sharing:
    """Objects that were seen before, by their content."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes], object] = {}

    def of(self, kind: str, content: T) -> T:
        """The first object of this kind and content that was seen."""
        if content is None:
            return content
        if len(self._known) > _MAX_SHARED:
            self._known.clear()
        return cast("T", self._known.setdefault((kind, _encode(content)), content))

    def claim(self, claim: ResourceClaim) -> ResourceClaim:
        """The same claim in less memory."""
        meta, status = claim.metadata, claim.status
        return ResourceClaim(
            metadata=replace(
                meta,
                name=_intern(meta.name),
                namespace=_intern(meta.namespace),
                creation_timestamp=_word(meta.creation_timestamp),
                owner_references=_all(_owner, meta.owner_references),
                labels=self._labels(meta.labels),
                annotations=self.of("annotations", meta.annotations),
            ),
            spec=self.of("spec", claim.spec),
            status=replace(
                status,
                allocation=None if status.allocation is None else self._allocation(status.allocation),
                reserved_for=_all(_consumer, status.reserved_for),
            ),
        )

    def _allocation(self, allocation: Allocation) -> Allocation:
        return Allocation(
            devices=DeviceAllocation(results=_all(_result, allocation.devices.results)),
            allocation_timestamp=_word(allocation.allocation_timestamp),
            node_selector=self.of("nodes", allocation.node_selector),
        )

    def pod(self, pod: Pod) -> Pod:
        """The same pod in less memory; conditions that nobody reads are left out, and owners' uids."""
        meta, spec, status = pod.metadata, pod.spec, pod.status
        return Pod(
            metadata=replace(
                meta,
                name=_intern(meta.name),
                namespace=_intern(meta.namespace),
                uid=_intern(meta.uid),
                creation_timestamp=_word(meta.creation_timestamp),
                owner_references=_all(_owner_of_pod, meta.owner_references),
                labels=self._labels(meta.labels),
                annotations=self.of("pod annotations", meta.annotations),
            ),
            spec=replace(
                spec,
                node_name=_word(spec.node_name),
                scheduler_name=_intern(spec.scheduler_name),
                resource_claims=self.of("pod claims", spec.resource_claims),
                containers=self.of("containers", spec.containers),
                init_containers=self.of("containers", spec.init_containers),
            ),
            status=replace(
                status,
                phase=_intern(status.phase),
                conditions=_all(_condition, [each for each in status.conditions or () if _is_read(each)]),
                container_statuses=_all(_container, status.container_statuses),
                init_container_statuses=_all(_container, status.init_container_statuses),
                resource_claim_statuses=_all(_claim_status, status.resource_claim_statuses),
            ),
        )

    def node(self, node: Node) -> Node:
        """The same node in less memory: the words of its labels and resources are those of all nodes."""
        labels, allocatable = node.metadata.labels, node.status.allocatable
        return Node(
            metadata=replace(node.metadata, labels=_words(labels)),
            spec=self.of("node spec", node.spec),
            status=replace(
                node.status,
                capacity=_words(node.status.capacity),
                allocatable=_words(allocatable),
                conditions=_all(_condition, node.status.conditions),
                node_info=_node_info(node.status.node_info),
            ),
        )

    def _labels(self, labels: WorkloadLabels | None) -> WorkloadLabels | None:
        if labels is None:
            return None
        return self.of(
            "labels",
            replace(
                labels,
                job_name=_word(labels.job_name),
                # The old spelling is put beside the new one since Kubernetes 1.27.
                old_job_name=None if labels.job_name else labels.old_job_name,
                app_name=_word(labels.app_name),
                kueue_queue=_word(labels.kueue_queue),
            ),
        )


def _all(make: Callable[[T], T], entries: Sequence[T] | None) -> tuple[T, ...] | None:
    """Tuples, which are a third smaller than lists; None where there is nothing."""
    return tuple([make(each) for each in entries]) if entries else None


def _word(text: str | None) -> str | None:
    return None if text is None else _intern(text)


def _words(table: dict[str, str] | None) -> dict[str, str] | None:
    return table and {_intern(name): _intern(value) for name, value in table.items()}


def _node_info(info: NodeInfo) -> NodeInfo:
    return replace(info, kubelet_version=_intern(info.kubelet_version))


def _owner(owner: OwnerReference) -> OwnerReference:
    return replace(
        owner,
        api_version=_intern(owner.api_version),
        kind=_intern(owner.kind),
        name=_intern(owner.name),
        uid=_intern(owner.uid),
    )


def _owner_of_pod(owner: OwnerReference) -> OwnerReference:
    """A pod's owner is known by its name; only who owns a claim is asked for its uid."""
    return replace(_owner(owner), uid="")


def _consumer(consumer: ConsumerReference) -> ConsumerReference:
    return replace(
        consumer, resource=_intern(consumer.resource), name=_intern(consumer.name), uid=_intern(consumer.uid)
    )


def _result(result: DeviceResult) -> DeviceResult:
    return replace(
        result,
        request=_intern(result.request),
        driver=_intern(result.driver),
        pool=_intern(result.pool),
        device=_intern(result.device),
    )


def _claim_status(status: PodClaimStatus) -> PodClaimStatus:
    return PodClaimStatus(name=_intern(status.name), resource_claim_name=_word(status.resource_claim_name))


def _container(status: ContainerStatus) -> ContainerStatus:
    return replace(
        status,
        name=_intern(status.name),
        state=_state(status.state),
        allocated_resources_status=_told_healths(status.allocated_resources_status),
    )


def _state(state: ContainerState) -> ContainerState:
    """Of a container that runs, the second at which it began is mostly another's as well."""
    running = state.running
    return state if running is None else ContainerState(running=Running(started_at=_word(running.started_at)))


def _told_healths(statuses: Sequence[ResourceStatus] | None) -> tuple[ResourceStatus, ...] | None:
    """The kubelet lists every device, as Unknown where its driver reports no health: that says nothing."""
    told = [
        ResourceStatus(name=_intern(each.name), resources=_all(_health, known))
        for each in statuses or ()
        if (known := [health for health in each.resources or () if health.health != "Unknown" or health.message])
    ]
    return tuple(told) or None


def _health(health: ResourceHealth) -> ResourceHealth:
    return replace(health, health=_intern(health.health))


def _is_read(condition: Condition) -> bool:
    return condition.type in POD_CONDITIONS or (condition.type in _UNMET_CONDITIONS and condition.status != "True")


def _condition(condition: Condition) -> Condition:
    return replace(
        condition,
        type=_intern(condition.type),
        status=_intern(condition.status),
        reason=_intern(condition.reason),
        message=_intern(condition.message),
        last_transition_time=_word(condition.last_transition_time),
    )
