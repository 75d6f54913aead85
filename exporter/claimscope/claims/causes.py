"""Why is a claim that a pod needs not ready? The causes that objects, events and the scheduler's words tell.

One function a cause; each answers None where it does not apply. The texts looked for are those of Kubernetes 1.36:
pkg/controller/resourceclaim, pkg/scheduler/framework/plugins/dynamicresources, pkg/kubelet/cm/dra. Nothing writes a
reason to the claim itself, and no event is ever emitted on one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from claimscope.claims.cluster import Cluster, PodClaim, event_wall
from claimscope.claims.fitting import DEVICES_PER_CLAIM, Stage
from claimscope.claims.model import Diagnosis, Key, PendingReason
from claimscope.claims.shortage import Shortage
from claimscope.claims.state import condition_of, is_bound
from claimscope.kube.objects import ClaimSpec, Condition, DeviceResult, Event, Pod, ResourceClaim, unix_seconds

GRACE_SECONDS: Final = 10.0  # for controllers and watches to come to a new object
CANNOT_ALLOCATE: Final = "cannot allocate all claims"
# Parts of the scheduler's message that say nothing of their own.
_NOISE: Final = ("still not schedulable", CANNOT_ALLOCATE, "no new claims to deallocate")
_PREEMPTION: Final = re.compile(
    r"\s*(still not schedulable,|no new claims to deallocate,)?\s*preemption: .*$", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One pod that is not ready and one claim that it names."""

    cluster: Cluster
    wall: float
    pod: Pod
    entry: PodClaim
    claim: ResourceClaim | None
    shortage: Shortage | None = None  # of a claim that is not allocated; None: devices or classes are not known
    together: Shortage | None = None  # of all claims of the pod that are not allocated, where there are several
    other_claims: tuple[str, ...] = ()  # these others, by name

    @property
    def unallocated(self) -> ResourceClaim | None:
        """The claim, where it exists and has no devices."""
        return self.claim if self.claim is not None and self.claim.status.allocation is None else None

    @property
    def allocated(self) -> ResourceClaim | None:
        """The claim, where it has devices."""
        return self.claim if self.claim is not None and self.claim.status.allocation is not None else None

    @property
    def condition(self) -> Condition | None:
        """What the scheduler last said, where it said no."""
        found = condition_of(self.pod, "PodScheduled")
        return found if found is not None and found.status != "True" else None

    @property
    def said(self) -> str:
        """The scheduler's message."""
        return self.condition.message if self.condition is not None else ""

    @property
    def words(self) -> tuple[str, ...]:
        """The scheduler's message as evidence, without what preemption adds to every one."""
        text = _PREEMPTION.sub("", self.said).strip()
        return (f"scheduler on pod {self.pod.metadata.name}: {text}",) if text else ()

    @property
    def young(self) -> bool:
        """True while controllers may simply not have come to it yet."""
        created = unix_seconds(self.pod.metadata.creation_timestamp)
        return created is None or self.wall - created < GRACE_SECONDS

    def reads(self, kind: str) -> bool:
        """Whether a kind has been read, so that an absent object is known to be absent."""
        return kind in self.cluster.synced


Check = Callable[[Question], Diagnosis | None]


def count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


# --- claims that do not exist ---


def claim_missing(question: Question) -> Diagnosis | None:
    """A pod names a claim that nobody made; the scheduler holds the pod back without a word."""
    entry = question.entry
    if question.claim is not None or entry.claim is None or not question.reads("resourceclaims"):
        return None
    if entry.template is not None and question.young:
        return None
    about = f"made from template {entry.template} and gone since" if entry.template else "which does not exist"
    return Diagnosis(
        reason=PendingReason.CLAIM_MISSING,
        summary=f"pod {question.pod.metadata.name} names ResourceClaim {entry.claim}, {about}",
        evidence=(f"spec.resourceClaims[name={entry.pod_claim}] of the pod",
                  "the scheduler emits no event and sets no condition for this"),
        cure="delete the pod so that its claim is made again" if entry.template else
        f"create ResourceClaim {entry.claim} in namespace {question.pod.metadata.namespace}, or correct the pod",
    )


def creation_event(question: Question) -> Event | None:
    """What the claim controller last said about this claim of the pod."""
    if question.claim is not None or question.entry.template is None:
        return None
    event = question.cluster.event(question.pod, "FailedResourceClaimCreation")
    if event is None or f"PodResourceClaim {question.entry.pod_claim}:" not in event.message:
        return None
    return event


def template_missing(question: Question) -> Diagnosis | None:
    """A pod names a template that does not exist."""
    entry, namespace = question.entry, question.pod.metadata.namespace
    if question.claim is not None or entry.template is None:
        return None
    event = creation_event(question)
    if question.reads("resourceclaimtemplates"):
        if Key(namespace, entry.template) in question.cluster.templates:
            return None
    elif event is None or not re.search(r"resource claim template .* not found", event.message):
        return None
    return Diagnosis(
        reason=PendingReason.TEMPLATE_MISSING,
        summary=f"pod {question.pod.metadata.name} names ResourceClaimTemplate {entry.template}, which does not exist",
        evidence=_event_words(event),
        cure=f"create ResourceClaimTemplate {entry.template} in namespace {namespace}, or correct the pod",
    )


def quota(question: Question) -> Diagnosis | None:
    """A ResourceQuota forbids the claim that the template would yield."""
    event = creation_event(question)
    found = re.search(r"exceeded quota: ([^,]+), (requested: .*)", event.message) if event is not None else None
    if event is None or found is None:
        return None
    name = found[1]
    return Diagnosis(
        reason=PendingReason.QUOTA,
        summary=f"ResourceQuota {name} of namespace {question.pod.metadata.namespace} forbids the claim: {found[2]}",
        evidence=(*_quota_words(question, name), *_event_words(event)),
        cure=f"raise ResourceQuota {name}, or delete claims that count against it; a claim counts from its creation, "
        "also while it is pending",
    )


def _quota_words(question: Question, name: str) -> tuple[str, ...]:
    known = question.cluster.quotas.get(Key(question.pod.metadata.namespace, name))
    if known is None:
        return ()
    used = known.status.used or {}
    return tuple(
        f"quota {name} now: {used.get(resource, '0')} of {hard} {resource} used"
        for resource, hard in sorted((known.status.hard or {}).items())
    )


def admission(question: Question) -> Diagnosis | None:
    """Something else refuses the claim: a webhook, a policy, validation, permissions."""
    event = creation_event(question)
    if event is None:
        return None
    _, _, text = event.message.partition("create ResourceClaim")
    told = text.removeprefix(" : ").removeprefix(": ") or event.message
    return Diagnosis(
        reason=PendingReason.ADMISSION,
        summary=f"the claim of template {question.entry.template} could not be created: {told}",
        evidence=_event_words(event),
        cure="change the template, or the webhook or policy that refuses it",
    )


def _event_words(event: Event | None) -> tuple[str, ...]:
    if event is None:
        return ()
    times = max(event.count or 1, event.series.count if event.series is not None else 1)
    return (f"event {event.reason}{f' ({times} times)' if times > 1 else ''}: {event.message}",)


def claim_not_created(question: Question) -> Diagnosis | None:
    """No claim yet, and nobody says why."""
    if question.claim is not None:
        return None
    if not question.reads("resourceclaims"):
        return unknown(question, "ResourceClaims cannot be read")
    template = question.entry.template
    return Diagnosis(
        reason=PendingReason.CLAIM_NOT_CREATED,
        summary=f"no claim has been made from template {template} yet, and the claim controller says nothing"
        if template and question.entry.claim is None else "the claim that the pod names has not been seen yet",
        cure="look at the log of kube-controller-manager (resourceclaim controller) if this lasts longer than seconds",
    )


# --- claims that cannot be scheduled, whatever devices there are ---


def claim_deleting(question: Question) -> Diagnosis | None:
    """The scheduler does not allocate a claim that is being deleted."""
    claim = question.unallocated
    if claim is None or claim.metadata.deletion_timestamp is None:
        return None
    return Diagnosis(
        reason=PendingReason.CLAIM_DELETING,
        summary=f"claim {claim.metadata.name} is being deleted since {claim.metadata.deletion_timestamp}",
        evidence=question.words,
        cure="wait for the deletion, or see which finalizer holds it; then create the claim or the pod again",
    )


def wrong_owner(question: Question) -> Diagnosis | None:
    """A claim of the expected name stands in the way of the one that the template would yield."""
    claim, pod = question.unallocated, question.pod
    if claim is None or question.entry.template is None:
        return None
    owners = [owner for owner in claim.metadata.owner_references or () if owner.controller]
    if any(owner.uid == pod.metadata.uid for owner in owners):
        return None
    owner = f"{owners[0].kind} {owners[0].name} ({owners[0].uid})" if owners else "nobody"
    return Diagnosis(
        reason=PendingReason.WRONG_OWNER,
        summary=f"claim {claim.metadata.name} was not made for pod {pod.metadata.name}: it belongs to {owner}",
        evidence=question.words,
        cure="delete the pod so that it gets a claim of its own",
    )


def gated(question: Question) -> Diagnosis | None:
    """The pod is kept from the scheduler on purpose."""
    gates = [gate.name for gate in question.pod.spec.scheduling_gates or ()]
    condition = question.condition
    if question.claim is None or not (gates or (condition is not None and condition.reason == "SchedulingGated")):
        return None
    return Diagnosis(
        reason=PendingReason.GATED,
        summary=f"pod {question.pod.metadata.name} is kept back by its scheduling gates: {', '.join(gates) or '?'}",
        evidence=question.words,
        cure="whoever set the gate must remove it (a queue such as Kueue does so when it admits the workload)",
    )


def class_missing(question: Question) -> Diagnosis | None:
    """The scheduler refuses a claim one of whose classes does not exist, alternatives included."""
    claim = question.unallocated
    if claim is None:
        return None
    told = re.search(r"request (\S+): device class (\S+) does not exist", question.said)
    if question.reads("deviceclasses"):
        missing = {name for name in class_names(claim.spec) if name not in question.cluster.classes}
    elif told is not None:
        missing = {told[2]}
    else:
        return None
    if not missing:
        return None
    names = ", ".join(sorted(missing))
    return Diagnosis(
        reason=PendingReason.CLASS_MISSING,
        summary=f"DeviceClass {names} does not exist",
        evidence=(*question.words, *_classes_there(question)),
        cure=f"create DeviceClass {names}, or make the claim again with a class that exists (its spec is immutable)",
    )


def _classes_there(question: Question) -> tuple[str, ...]:
    names = sorted(question.cluster.classes)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (f"classes that exist: {', '.join(names[:10])}{more}",) if names else ()


def class_names(spec: ClaimSpec) -> Iterable[str]:
    """Every class that a claim names."""
    for request in spec.devices.requests or ():
        for each in (request.exactly, *(request.first_available or ())):
            if each is not None:
                yield each.device_class_name


def too_many_devices(question: Question) -> Diagnosis | None:
    """More devices than one claim can hold, whatever the cluster has."""
    claim = question.unallocated
    if claim is None:
        return None
    wanted = 0
    for request in claim.spec.devices.requests or ():
        counts = [
            1 if each.count is None else each.count
            for each in (request.exactly, *(request.first_available or ()))
            if each is not None
        ]
        wanted += min(counts, default=0)
    if wanted <= DEVICES_PER_CLAIM and "exceeds the claim limit" not in question.said:
        return None
    return Diagnosis(
        reason=PendingReason.TOO_MANY_DEVICES,
        summary=f"asks for {count(max(wanted, DEVICES_PER_CLAIM + 1), 'device')}; "
        f"one claim can hold {DEVICES_PER_CLAIM}",
        evidence=question.words,
        cure="split the claim",
    )


# --- the scheduler's and the kubelet's part ---


def binding_conditions(question: Question) -> Diagnosis | None:
    """Devices are chosen, and their driver has not said yet that they can be attached."""
    claim = question.allocated
    if claim is None or is_bound(question.pod):
        return None
    results = (claim.status.allocation.devices.results if claim.status.allocation is not None else None) or ()
    open_ = [words for result in results if (words := _open_conditions(claim, result))]
    event = question.cluster.event(question.pod, "BindingConditionsPending")
    if not open_ and "device binding" not in question.said:
        return None
    return Diagnosis(
        reason=PendingReason.BINDING_CONDITIONS,
        summary=f"allocated; {count(len(open_), 'device')} must be made ready before the pod is bound"
        if open_ else f"allocated, and {question.said}",
        evidence=(*open_, *_event_words(event), *question.words),
        cure="look at the driver that sets these conditions in the claim's status.devices; the scheduler gives up "
        "after its binding timeout (10 minutes by default) and tries again",
    )


def _open_conditions(claim: ResourceClaim, result: DeviceResult) -> str:
    told = {
        condition.type: condition
        for device in claim.status.devices or ()
        if (device.driver, device.pool, device.device) == (result.driver, result.pool, result.device)
        for condition in device.conditions or ()
    }
    missing = [name for name in result.binding_conditions or () if name not in told or told[name].status != "True"]
    failed = [
        f"{name}: {told[name].reason} {told[name].message}".strip()
        for name in result.binding_failure_conditions or ()
        if name in told and told[name].status == "True"
    ]
    if not missing and not failed:
        return ""
    words = [f"waits for {', '.join(missing)}"] if missing else []
    words += [f"failed with {'; '.join(failed)}"] if failed else []
    return f"{result.driver}/{result.pool}/{result.device} {' and '.join(words)}"


def allocated_elsewhere(question: Question) -> Diagnosis | None:
    """A shared claim has its devices on a node that this pod cannot go to."""
    claim = question.allocated
    if claim is None or is_bound(question.pod) or "resourceclaim not available on the node" not in question.said:
        return None
    results = (claim.status.allocation.devices.results if claim.status.allocation is not None else None) or ()
    return Diagnosis(
        reason=PendingReason.ALLOCATED_ELSEWHERE,
        summary=f"claim {claim.metadata.name} has its devices where pod {question.pod.metadata.name} cannot go",
        evidence=(
            *(f"device {each.driver}/{each.pool}/{each.device}" for each in list(results)[:10]),
            *(f"in use by {each.resource} {each.name}" for each in (claim.status.reserved_for or ())[:10]),
            *question.words,
        ),
        cure="let the pod run on that node (affinity, tolerations, cpu and memory there), or give it its own claim",
    )


def scheduler_timeout(question: Question) -> Diagnosis | None:
    """The scheduler gave up looking for devices."""
    if question.unallocated is None or "timed out trying to allocate devices" not in question.said:
        return None
    return Diagnosis(
        reason=PendingReason.SCHEDULER_TIMEOUT,
        summary="the scheduler's search for devices took longer than its time limit",
        evidence=question.words,
        cure="fewer requests and constraints in one claim, or a longer filterTimeout of the DynamicResources plugin",
    )


def other_scheduling(question: Question) -> Diagnosis | None:
    """There are devices, and something else keeps the pod from their node."""
    condition = question.condition
    if question.claim is None or is_bound(question.pod) or condition is None or not question.said:
        return None
    if question.unallocated is not None and (question.shortage is None or question.shortage.stage is not Stage.FITS):
        return None
    others = _other_reasons(question.said)
    if not others and question.unallocated is not None and not question.other_claims:
        return None
    near = question.shortage.closest if question.shortage is not None else ()
    where = f"its devices are free on {', '.join(each.node for each in near)}" if near else "it has its devices"
    if question.allocated is not None:
        where = "it has its devices"
    but = "; ".join(others) or f"the pod also waits for claim {', '.join(question.other_claims) or 'of its own'}"
    return Diagnosis(
        reason=PendingReason.OTHER_SCHEDULING,
        summary=f"{where}, but pod {question.pod.metadata.name} cannot be scheduled: {but}",
        evidence=(*_cordoned(question), *question.words),
        cure="make room on a node with free devices: cpu, memory, node taints and affinity count as well",
    )


def _other_reasons(said: str) -> list[str]:
    """What the scheduler's histogram names besides claims: "2 Insufficient cpu"."""
    text = _PREEMPTION.sub("", said)
    _, _, parts = text.rpartition("nodes are available: ")
    return [part.strip(" .") for part in parts.split(", ") if part.strip(" .") and not any(n in part for n in _NOISE)]


def _cordoned(question: Question) -> tuple[str, ...]:
    near = question.shortage.closest if question.shortage is not None else ()
    return tuple(
        f"node {each.node} is cordoned" for each in near
        if (node := question.cluster.nodes.get(each.node)) is not None and node.spec.unschedulable
    )


def scheduling(question: Question) -> Diagnosis | None:
    """The scheduler has not said no."""
    if question.claim is None or is_bound(question.pod):
        return None
    if question.said and "is in the process of being allocated" not in question.said:
        return None
    if question.unallocated is not None and question.shortage is not None and question.shortage.stage is None:
        return None
    return Diagnosis(
        reason=PendingReason.SCHEDULING,
        summary=f"the scheduler is at it: devices are there, and it has not refused pod {question.pod.metadata.name}",
        evidence=question.words,
        cure=f"nothing yet; if it lasts, see whether scheduler {question.pod.spec.scheduler_name or 'of the pod'} runs",
    )


def prepare_failed(question: Question) -> Diagnosis | None:
    """The driver on the node cannot prepare the devices."""
    event = question.cluster.event(question.pod, "FailedPrepareDynamicResources")
    if question.allocated is None or event is None or not is_bound(question.pod):
        return None
    bound = condition_of(question.pod, "PodScheduled")
    since = unix_seconds(bound.last_transition_time) if bound is not None else None
    if since is not None and event_wall(event) < since - 1:
        return None
    told = event.message.removeprefix("Failed to prepare dynamic resources: ").removeprefix(
        "prepare dynamic resources: "
    )
    return Diagnosis(
        reason=PendingReason.PREPARE_FAILED,
        summary=f"node {question.pod.spec.node_name} cannot prepare the devices: {told}",
        evidence=_event_words(event),
        cure=_prepare_cure(told, question.pod.spec.node_name or "the node"),
    )


def _prepare_cure(told: str, node: str) -> str:
    if "is not registered" in told:
        return f"see whether the driver's kubelet plugin runs on {node} (its DaemonSet pod, its log)"
    if "old ResourceClaim with same name" in told:
        return f"wait for the previous pod on {node} to end; the kubelet has not let go of its claim yet"
    if "is not allowed to use ResourceClaim" in told:
        return "the claim is reserved for others; the kubelet tries again once the reservation reaches it"
    return f"read the log of the driver's kubelet plugin on {node}; the kubelet keeps trying"


def preparing(question: Question) -> Diagnosis | None:
    """Between binding and sandbox: devices, volumes, network."""
    if question.allocated is None or not is_bound(question.pod):
        return None
    return Diagnosis(
        reason=PendingReason.PREPARING,
        summary=f"node {question.pod.spec.node_name} prepares devices, volumes and network of the pod",
        cure="nothing yet; if it lasts, see the pod's events and the driver's log on the node",
    )


def unknown(question: Question, why: str = "") -> Diagnosis:
    """None of the causes fits; what is known is shown."""
    if not why and question.said and question.shortage is not None and question.shortage.stage is Stage.FITS:
        near = ", ".join(each.node for each in question.shortage.closest)
        why = f"the scheduler could not allocate it when it last tried, yet its devices are free on {near or 'a node'}"
    return Diagnosis(
        reason=PendingReason.UNKNOWN,
        summary=why or "none of the known causes fits",
        evidence=(*_cordoned(question), *question.words),
        cure="see the pod's conditions and events and the scheduler's log",
    )
