"""Where is a claim in its life, and what do its pods do with it? Pure functions of the objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from claimscope.claims.cluster import TERMINAL_PHASES, PodClaim, event_wall, holdings_of
from claimscope.claims.model import ClaimState, DeviceKey, Doing
from claimscope.kube.objects import (
    Condition,
    Container,
    ContainerStatus,
    Event,
    Pod,
    ResourceClaim,
    unix_seconds,
)

TAINT_EVICTION: Final = "DeletionByDeviceTaintManager"
# Reasons of the kubelet for a waiting container (pkg/kubelet/images/types.go, pkg/kubelet/container/sync_result.go).
_IMAGE_FAILED: Final = frozenset({
    "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
    "RegistryUnavailable", "SignatureValidationFailed",
})
_CREATE_FAILED: Final = frozenset({
    "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError",
    "PreStartHookError", "PostStartHookError", "KillContainerError", "VerifyNonRootError",
})
# Ends of containers that never ran: the runtime could not start the process.
_NEVER_STARTED: Final = frozenset({"StartError", "ContainerCannotRun", "ContainerStatusUnknown"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What one pod does with one claim that it names."""

    entry: PodClaim
    running: bool = False  # a container that uses it runs now
    ran: bool = False  # one runs, or has run
    started_wall: float | None = None  # of the very first start; None where that is not known (any more)
    stopped_wall: float | None = None  # when the last of them ended, where none runs


def condition_of(pod: Pod, kind: str) -> Condition | None:
    """A condition of a pod."""
    return next((each for each in pod.status.conditions or () if each.type == kind), None)


def became_true(pod: Pod, kind: str) -> Condition | None:
    """A condition of a pod that holds."""
    found = condition_of(pod, kind)
    return found if found is not None and found.status == "True" else None


def evicted_by_taint(pod: Pod) -> Condition | None:
    """The condition that the device taint eviction controller leaves on a pod that it deletes."""
    found = became_true(pod, "DisruptionTarget")
    return found if found is not None and found.reason == TAINT_EVICTION else None


def is_bound(pod: Pod) -> bool:
    """True once a pod has its node."""
    return bool(pod.spec.node_name) or became_true(pod, "PodScheduled") is not None


def users_of(pod: Pod, entry: PodClaim) -> frozenset[str]:
    """The names of the containers that use a claim.

    All of them where none says so: the claim is prepared and held for the pod all the same, as network drivers do
    whose devices belong to the pod's network namespace.
    """
    mapped = pod.status.extended_resource_claim_status
    if entry.extended and mapped is not None and mapped.request_mappings:
        return frozenset(each.container_name for each in mapped.request_mappings)
    containers = [*(pod.spec.containers or ()), *(pod.spec.init_containers or ())]
    named = frozenset(each.name for each in containers if _uses(each, entry))
    return named or frozenset(each.name for each in pod.spec.containers or ())


def _uses(container: Container, entry: PodClaim) -> bool:
    resources = container.resources
    if resources is None or entry.extended:
        return False
    return any(claim.name == entry.pod_claim for claim in resources.claims or ())


def _statuses(pod: Pod, names: frozenset[str]) -> Iterator[ContainerStatus]:
    for status in (*(pod.status.container_statuses or ()), *(pod.status.init_container_statuses or ())):
        if status.name in names:
            yield status


def use_of(pod: Pod, entry: PodClaim) -> Use:
    """What a pod does with a claim."""
    running = ran = restarted = False
    starts: list[float] = []
    stops: list[float] = []
    for status in _statuses(pod, users_of(pod, entry)):
        state = status.state
        restarted = restarted or status.restart_count > 0
        if state.running is not None:
            running = ran = True
            _add(starts, state.running.started_at)
        elif state.terminated is not None and state.terminated.reason not in _NEVER_STARTED:
            ran = True
            _add(starts, state.terminated.started_at)
            _add(stops, state.terminated.finished_at)
    return Use(
        entry=entry,
        running=running,
        ran=ran or restarted,
        # A container that was started again no longer says when it first was.
        started_wall=min(starts) if starts and not restarted else None,
        stopped_wall=max(stops) if stops and not running else None,
    )


def _add(stamps: list[float], stamp: str | None) -> None:
    seconds = unix_seconds(stamp)
    if seconds is not None and seconds > 0:  # a runtime that does not know says 1970
        stamps.append(seconds)


def state_of(claim: ResourceClaim, users: Iterable[tuple[Pod, Use]], *, released: bool, referenced: bool) -> ClaimState:
    """Where a claim is.

    `users` are the pods that it is reserved for, as far as they exist. `released` says that an allocation was seen to
    go; the object itself keeps no trace of it. A released claim that a pod wants again is pending again.
    """
    if claim.status.allocation is None:
        return ClaimState.RELEASED if released and not referenced else ClaimState.PENDING
    if not claim.status.reserved_for:
        return ClaimState.ALLOCATED
    state = ClaimState.RESERVED
    for pod, use in users:
        if use.running:
            return ClaimState.RUNNING
        if became_true(pod, "PodReadyToStartContainers") is not None:
            state = ClaimState.PREPARED
    return state


def doing_of(pod: Pod, use: Use, failure: Event | None) -> Doing:
    """What a pod does that is entitled to a claim's devices and runs nothing on them.

    `failure` is its newest FailedPrepareDynamicResources event.
    """
    if pod.metadata.deletion_timestamp is not None:
        return Doing.TERMINATING
    names = users_of(pod, use.entry)
    statuses = list(_statuses(pod, names))
    if pod.status.phase in TERMINAL_PHASES or (
        len(statuses) == len(names) and all(status.state.terminated is not None for status in statuses)
    ):
        return Doing.FINISHED
    if not is_bound(pod):
        return Doing.PENDING_OTHER
    if became_true(pod, "PodReadyToStartContainers") is None and not use.ran:
        return Doing.PREPARE_FAILED if _still_true(pod, failure) else Doing.PREPARING
    return _waiting_for(pod, statuses)


def _still_true(pod: Pod, failure: Event | None) -> bool:
    """Events stay for an hour: one from before the sandbox was last lost, or before binding, says nothing of today."""
    if failure is None:
        return False
    since = condition_of(pod, "PodReadyToStartContainers") or condition_of(pod, "PodScheduled")
    stamp = unix_seconds(since.last_transition_time) if since is not None else None
    return stamp is None or event_wall(failure) >= stamp - 1


def _waiting_for(pod: Pod, statuses: list[ContainerStatus]) -> Doing:
    initialized = condition_of(pod, "Initialized")
    if initialized is not None and initialized.status == "False":
        return Doing.INITIALIZING
    reasons = {status.state.waiting.reason for status in statuses if status.state.waiting is not None}
    if reasons & _IMAGE_FAILED:
        return Doing.IMAGE_FAILED
    if "CrashLoopBackOff" in reasons:
        return Doing.CRASH_LOOPING
    if reasons & _CREATE_FAILED:
        return Doing.CREATE_FAILED
    if "PodInitializing" in reasons:
        return Doing.INITIALIZING
    # The sandbox stands, and the kubelet has no word of its own for fetching the image.
    return Doing.PULLING if "ContainerCreating" in reasons else Doing.UNKNOWN


def stopped_wall_of(pod: Pod, use: Use) -> float | None:
    """Since when a pod that has run on a claim does not, where the pod tells."""
    if use.running or not use.ran:
        return None
    if use.stopped_wall is not None:
        return use.stopped_wall
    ready = condition_of(pod, "ContainersReady")  # while a container waits, only this keeps the time
    return unix_seconds(ready.last_transition_time) if ready is not None and ready.status == "False" else None


_HEALTH_RANK: Final = {"": 0, "Unknown": 1, "Healthy": 2, "Unhealthy": 3}


def healths_of(pod: Pod, entry: PodClaim, claim: ResourceClaim) -> dict[DeviceKey, str]:
    """The health of a claim's devices as the kubelet reports it for the containers of one pod."""
    prefix = f"claim:{entry.pod_claim}"  # the pod's own name of the claim
    found: dict[DeviceKey, str] = {}
    for status in pod.status.container_statuses or ():
        for told in status.allocated_resources_status or ():
            if told.name != prefix and not told.name.startswith(f"{prefix}/"):
                continue
            for resource in told.resources or ():
                device = _device_called(resource.resource_id, claim)
                if device is not None:
                    found[device] = worse_health(found.get(device, ""), resource.health)
    return found


def worse_health(one: str, other: str) -> str:
    """Unknown is what a driver without a health service gets; it says less than any other word."""
    return one if _HEALTH_RANK.get(one, 1) >= _HEALTH_RANK.get(other, 1) else other


def _device_called(resource_id: str, claim: ResourceClaim) -> DeviceKey | None:
    """resourceID is driver/pool/device, or the first CDI id, which ends in the device's name by custom."""
    keys = [holding.device for holding in holdings_of(claim)]
    for key in keys:
        if resource_id == str(key):
            return key
    # gpu-10 ends in -10 and claims end in a uid, so the longest name that fits at a boundary is the device.
    _, _, name = resource_id.rpartition("=")
    fits = {key for key in keys if name == key.device or name.endswith(f"-{key.device}")}
    if not fits:
        return None
    longest = max(len(key.device) for key in fits)
    best = [key for key in fits if len(key.device) == longest]
    return best[0] if len(best) == 1 else None
