"""Why is a claim that a pod needs not ready? The causes that objects, events and the scheduler's words tell.

One function a cause; each answers None where it does not apply. The texts looked for are those of Kubernetes 1.36:
pkg/scheduler/framework/plugins/dynamicresources, pkg/kubelet/cm/dra. Nothing writes a reason to the claim itself, and
no event is ever emitted on one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from claimscope.claims.cluster import Cluster, PodClaim, claims_of, event_wall
from claimscope.claims.fitting import DEVICES_PER_CLAIM, Stage
from claimscope.claims.model import Diagnosis, PendingReason
from claimscope.claims.shortage import Shortage
from claimscope.claims.state import condition_of, is_bound
from claimscope.kube.objects import ClaimSpec, Condition, DeviceResult, Event, Pod, ResourceClaim, unix_seconds

GRACE_SECONDS: Final = 10.0  # for controllers and watches to come to a new object
DEFAULT_SCHEDULER: Final = "default-scheduler"
UNSEEN_SECONDS: Final = 60.0  # after which a scheduler that runs has looked at a pod
# Parts of the scheduler's message that say nothing of their own.
_NOISE: Final = (
    "still not schedulable", "cannot allocate all claims", "no new claims to deallocate", "cannot fit resource",
    "cannot schedule extended resource claim", "is in the process of being allocated",
)
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
    resources: tuple[str, ...] = ()  # extended resources for which the scheduler is yet to make this claim
    shortage: Shortage | None = None  # of a claim that is not allocated; None: devices or classes are not known
    together: Shortage | None = None  # of all claims of the pod that are not allocated, where there are several
    others: tuple[Question, ...] = ()  # the pod's other claims, while the pod is on no node; these know no others
    scheduler_known: bool = True  # the pod's scheduler is Kubernetes' own, or has been at work on other pods

    @property
    def called(self) -> str:
        """The claim in words."""
        if self.resources:
            return f"extended resource {', '.join(self.resources)}"
        return f"claim {self.entry.claim or self.entry.pod_claim}"

    @property
    def open_others(self) -> tuple[str, ...]:
        """The pod's other claims that exist and have no devices, in words."""
        return tuple(other.called for other in self.others if other.unallocated is not None)

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
    def age_seconds(self) -> float | None:
        """How long both the pod and the claim have been there."""
        stamps = [self.pod.metadata.creation_timestamp]
        if self.claim is not None and not self.resources:
            stamps.append(self.claim.metadata.creation_timestamp)
        walls = [seconds for stamp in stamps if (seconds := unix_seconds(stamp)) is not None]
        return self.wall - max(walls) if walls else None

    @property
    def young(self) -> bool:
        """True while controllers may simply not have come to it yet."""
        return self.age_seconds is None or self.age_seconds < GRACE_SECONDS

    @property
    def unseen(self) -> bool:
        """True where no scheduler has said anything of the pod for as long as one that runs may take."""
        if is_bound(self.pod) or condition_of(self.pod, "PodScheduled") is not None:
            return False
        return self.age_seconds is not None and self.age_seconds >= UNSEEN_SECONDS

    def reads(self, kind: str) -> bool:
        """Whether a kind is known, so that an absent object is known to be absent; what is not served has none."""
        return kind in self.cluster.synced or kind in self.cluster.unserved


Check = Callable[[Question], Diagnosis | None]


def event_words(event: Event | None) -> tuple[str, ...]:
    """An event as evidence."""
    if event is None:
        return ()
    times = max(event.count or 1, event.series.count if event.series is not None else 1)
    return (f"event {event.reason}{f' ({times} times)' if times > 1 else ''}: {event.message}",)


def count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


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
        evidence=(*open_, *event_words(event), *question.words),
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
    others = _other_reasons(question)
    if not others and not question.open_others:
        return None
    near = question.shortage.closest if question.shortage is not None else ()
    where = f"its devices are free on {', '.join(each.node for each in near)}" if near else "it has its devices"
    if question.allocated is not None:
        where = "it has its devices"
    but = "; ".join(others) or f"the pod also waits for {', '.join(question.open_others)}"
    return Diagnosis(
        reason=PendingReason.OTHER_SCHEDULING,
        summary=f"{where}, but pod {question.pod.metadata.name} cannot be scheduled: {but}",
        evidence=(*cordoned(question), *question.words),
        cure="make room on a node with free devices: cpu, memory, node taints and affinity count as well",
    )


def _other_reasons(question: Question) -> list[str]:
    """What the scheduler's histogram names besides claims: "2 Insufficient cpu"."""
    text = _PREEMPTION.sub("", question.said)
    _, _, parts = text.rpartition("nodes are available: ")
    noise = (*_NOISE, *(f"Insufficient {name}" for name in question.resources))
    return [part.strip(" .") for part in parts.split(", ") if part.strip(" .") and not any(n in part for n in noise)]


def cordoned(question: Question) -> tuple[str, ...]:
    """Which of the closest nodes take no new pods."""
    near = question.shortage.closest if question.shortage is not None else ()
    return tuple(
        f"node {each.node} is cordoned" for each in near
        if (node := question.cluster.nodes.get(each.node)) is not None and node.spec.unschedulable
    )


def unseen(question: Question) -> Diagnosis | None:
    """No scheduler has said a word of the pod, for longer than one that runs would take."""
    if question.claim is None or not question.unseen:
        return None
    if question.unallocated is not None and (question.shortage is None or question.shortage.stage is not Stage.FITS):
        return None
    pod, name = question.pod.metadata.name, question.pod.spec.scheduler_name or DEFAULT_SCHEDULER
    evidence = ("the pod has no condition PodScheduled", *cordoned(question))
    if not question.scheduler_known:  # a name that is misspelt, more likely than a scheduler that is down
        return Diagnosis(
            reason=PendingReason.OTHER_SCHEDULING,
            summary=f"no scheduler has looked at pod {pod}; spec.schedulerName is {name}, which has placed no pod that "
            "is known: does it exist?",
            evidence=evidence,
            cure=f"correct spec.schedulerName of the pod, or start scheduler {name}",
        )
    return Diagnosis(
        reason=PendingReason.SCHEDULER_SILENT,
        summary=f"no scheduler has looked at pod {pod}; spec.schedulerName is {name}: is it running?",
        evidence=evidence,
        cure=f"see whether scheduler {name} runs and what its log says",
    )


def not_retried(question: Question) -> Diagnosis | None:
    """The scheduler said no, yet now there is room: it has not looked again, or sees what the objects do not show."""
    if question.unallocated is None or is_bound(question.pod) or not question.said:
        return None
    if question.shortage is None or question.shortage.stage is not Stage.FITS:
        return None
    if not question.reads("devicetaintrules") or _unserved_resources(question):
        return None
    near = ", ".join(each.node for each in question.shortage.closest) or "a node"
    name = question.pod.spec.scheduler_name or DEFAULT_SCHEDULER
    return Diagnosis(
        reason=PendingReason.NOT_RETRIED,
        summary=f"the scheduler could not allocate it when it last tried, yet its devices are free on {near}",
        evidence=(*cordoned(question), *question.words),
        cure=f"nothing for some minutes: a scheduler looks again when devices come free, and after five minutes at the "
        f"latest; if it lasts, see whether scheduler {name} runs and what its log says of the pod",
    )


def _unserved_resources(question: Question) -> tuple[str, ...]:
    """Extended resources that the scheduler looks for at device plugins alone."""
    return tuple(name for name in question.resources if f"Insufficient {name}" in question.said)


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
    node = question.pod.spec.node_name or "the node"
    told = event.message.removeprefix("Failed to prepare dynamic resources: ").removeprefix(
        "prepare dynamic resources: "
    )
    about = _claims_named(question, told)
    if about and question.entry.claim not in about:
        return Diagnosis(
            reason=PendingReason.PREPARING,
            summary=f"waits for claim {', '.join(about)} of the same pod, which node {node} cannot prepare: {told}",
            evidence=event_words(event),
            cure=_prepare_cure(told, node),
        )
    return Diagnosis(
        reason=PendingReason.PREPARE_FAILED,
        summary=f"node {node} cannot prepare the devices: {told}",
        evidence=event_words(event),
        cure=_prepare_cure(told, node),
    )


def _claims_named(question: Question, told: str) -> tuple[str, ...]:
    """Which of the pod's claims the kubelet speaks of; none where it does not say."""
    names = [entry.claim for entry in claims_of(question.pod) if entry.claim is not None]
    spoken = {name.rstrip(".") for name in re.findall(r"ResourceClaim (?:with same name )?([a-z0-9.-]+)", told)}
    return tuple(name for name in names if name in spoken)


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
    deaf = not question.reads("events/FailedPrepareDynamicResources")
    return Diagnosis(
        reason=PendingReason.PREPARING,
        summary=f"node {question.pod.spec.node_name} prepares devices, volumes and network of the pod",
        evidence=("whether that failed is not known: the kubelet's events cannot be read",) if deaf else (),
        cure="nothing yet; if it lasts, see the pod's events and the driver's log on the node",
    )


def unknown(question: Question, why: str = "") -> Diagnosis:
    """None of the causes fits; what is known is shown."""
    return Diagnosis(
        reason=PendingReason.UNKNOWN,
        summary=why or _what_is_known(question) or "none of the known causes fits",
        evidence=(*cordoned(question), *question.words),
        cure="see the pod's conditions and events and the scheduler's log",
    )


def _what_is_known(question: Question) -> str:
    pod = question.pod
    if question.unallocated is not None and is_bound(pod):
        return (f"pod {pod.metadata.name} is on node {pod.spec.node_name}, and the claim has no devices: whoever put "
                "it there allocates no claims, or the claim was released since")
    if question.allocated is not None and question.said:
        return "it has its devices, and the scheduler has not said since what keeps the pod"
    if question.said and question.shortage is not None and question.shortage.stage is Stage.FITS:
        near = ", ".join(each.node for each in question.shortage.closest) or "a node"
        words = f"the scheduler could not allocate it when it last tried, yet its devices are free on {near}"
        short = _unserved_resources(question)
        if short:
            return (f"the scheduler looks for {', '.join(short)} at device plugins alone, yet devices are free on "
                    f"{near}: is feature gate DRAExtendedResource on?")
        if not question.reads("devicetaintrules"):
            words += ", as far as is known: DeviceTaintRules cannot be read, so their taints are not known"
        return words
    return ""
