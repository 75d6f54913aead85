"""Which claims are needed and not ready, since when, and why?

Needs come from pods: a claim that no pod names is nobody's fault. The first check that has an answer decides: what
ails the claim itself, then the pod's other claims, then what the scheduler and the kubelet do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from sys import intern
from typing import Final, NamedTuple

from claimscope.claims import causes, creation, scarcity
from claimscope.claims.causes import Check, Question
from claimscope.claims.cluster import Cluster, PodClaim, claims_of, is_active, key_of
from claimscope.claims.extended import ExtendedResources
from claimscope.claims.fitting import Matching, Stage
from claimscope.claims.model import ClaimView, Diagnosis, Key, PendingReason, Wait
from claimscope.claims.shortage import Shortage
from claimscope.claims.state import became_true, condition_of, is_bound
from claimscope.claims.survey import Survey
from claimscope.claims.views import deviceclass_of
from claimscope.kube.kinds import EVENT_REASONS
from claimscope.kube.objects import NodeSelector, Pod, ResourceClaim, unix_seconds

# What a claim can suffer from whatever the pod's other claims do.
_OF_ITSELF: Final[tuple[Check, ...]] = (
    creation.claim_missing,
    creation.template_missing,
    creation.quota,
    creation.admission,
    creation.stopped_at_other,
    creation.claim_not_created,
    causes.claim_deleting,
    causes.wrong_owner,
    causes.gated,
    causes.class_missing,
    causes.too_many_devices,
    scarcity.not_read,
    scarcity.no_driver,
    scarcity.pool_incomplete,
    scarcity.selector_error,
    scarcity.not_evaluated,
    scarcity.too_few,
)


def waits_for_other(question: Question) -> Diagnosis | None:
    """The scheduler takes all claims of a pod or none, so what keeps one of them waiting keeps them all."""
    if question.claim is None:
        return None
    for other in question.others:
        found = _first((*_OF_ITSELF, causes.allocated_elsewhere), other)
        if found is not None and found.reason is not PendingReason.UNKNOWN:
            words = found.reason.value.replace("_", " ")
            return replace(found, summary=f"waits for {other.called} of the same pod ({words}): {found.summary}")
    return None


CHECKS: Final[tuple[Check, ...]] = (
    *_OF_ITSELF,
    causes.allocated_elsewhere,
    waits_for_other,
    scarcity.too_few_together,
    causes.binding_conditions,
    causes.scheduler_timeout,
    causes.other_scheduling,
    causes.unseen,
    causes.scheduling,
    causes.not_retried,
    causes.prepare_failed,
    causes.preparing,
)


def _first(checks: Iterable[Check], question: Question) -> Diagnosis | None:
    for check in checks:
        found = check(question)
        if found is not None:
            return found
    return None


def diagnose(question: Question) -> Diagnosis:
    """The first cause that applies."""
    found = _first(CHECKS, question) or causes.unknown(question)
    if not question.resources:
        return found
    evidence = found.evidence
    if not question.reads("nodes"):
        evidence = (*evidence, "nodes cannot be read, so whether a device plugin offers the resource too is not known")
    return replace(found, summary=f"{question.called}: {found.summary}", evidence=evidence)


_WAITING_PHASES: Final = frozenset({"Pending", ""})


def is_waiting(pod: Pod, entry: PodClaim, claim: ResourceClaim | None) -> bool:
    """Whether a pod still waits for a claim that it names."""
    if entry.needless or not is_active(pod) or pod.status.phase not in _WAITING_PHASES:
        return False
    if claim is None or claim.status.allocation is None:
        return True
    return not (is_bound(pod) and _has_sandbox(pod))


def _has_sandbox(pod: Pod) -> bool:
    """The devices are prepared before the sandbox is made, so a pod that has one has its devices."""
    if became_true(pod, "PodReadyToStartContainers") is not None:
        return True
    return any(
        status.state.running is not None or status.state.terminated is not None
        for status in (*(pod.status.container_statuses or ()), *(pod.status.init_container_statuses or ()))
    )


class Need(NamedTuple):
    """One claim of a pod: one that it names, or the one that the scheduler is yet to make for extended resources."""

    pod: Pod
    entry: PodClaim
    claim: ResourceClaim | None
    resources: tuple[str, ...] = ()


def needs_of(cluster: Cluster, extended: ExtendedResources, pod: Pod) -> list[Need]:
    """Every claim of a pod, in the pod's order."""
    namespace = pod.metadata.namespace
    found = [
        Need(pod, entry, cluster.claims.get(Key(namespace, entry.claim)) if entry.claim is not None else None)
        for entry in claims_of(pod)
    ]
    unmade = extended.need_of(pod)
    if unmade is not None:
        entry = PodClaim(pod_claim="", claim=None, extended=True)
        found.append(Need(pod, entry, unmade.claim, unmade.resources))
    return found


def waiting_needs(cluster: Cluster, pod: Pod) -> list[Need]:
    """The claims that a pod waits for."""
    return [
        need for need in needs_of(cluster, ExtendedResources(cluster), pod) if is_waiting(pod, need.entry, need.claim)
    ]


_Where = tuple[str, Key]


@dataclass(frozen=True, slots=True)
class _Known:
    """A diagnosis and what it was made of; it stands while all of that is the same."""

    made_of: tuple[object, ...]
    wait: Wait


class Waiting:
    """Every need that is not met. Keeps diagnoses from one call to the next."""

    def __init__(self) -> None:
        self._survey = Survey()
        self._schedulers: frozenset[str] | None = None  # known at this call; None: nobody asked yet
        self._known: dict[_Where, _Known] = {}

    def waits(
        self, cluster: Cluster, matching: Matching, views: Mapping[str, ClaimView], wall: float
    ) -> tuple[Wait, ...]:
        """All of them, each claim once, for the pod that has waited longest."""
        self._begin(cluster)
        kept: dict[_Where, _Known] = {}
        for where, (need, needs) in _oldest(cluster).items():
            question = self._question(cluster, matching, need, needs, wall)
            made_of = _made_of(question)
            known = self._known.get(where)
            if known is None or not _same(known.made_of, made_of):
                known = _Known(made_of, _wait(question))
            kept[where] = known
        self._known = kept
        self._survey.forget_unasked()
        return tuple(known.wait for known in kept.values())

    def diagnose_claim(
        self, cluster: Cluster, matching: Matching, pod: Pod, entry: PodClaim, wall: float
    ) -> Diagnosis:
        """Why one pod waits for one claim."""
        self._begin(cluster)
        needs = needs_of(cluster, ExtendedResources(cluster), pod)
        need = next(each for each in needs if each.entry == entry)
        return diagnose(self._question(cluster, matching, need, needs, wall))

    def _begin(self, cluster: Cluster) -> None:
        self._survey.begin(cluster)
        self._schedulers = None

    def _scheduler_known(self, cluster: Cluster, pod: Pod) -> bool:
        if pod.spec.scheduler_name in ("", causes.DEFAULT_SCHEDULER):
            return True
        if self._schedulers is None:
            self._schedulers = _schedulers(cluster)
        return pod.spec.scheduler_name in self._schedulers

    def _question(
        self, cluster: Cluster, matching: Matching, need: Need, needs: Sequence[Need], wall: float
    ) -> Question:
        pod, within = need.pod, _ties(need, needs)
        question = self._alone(cluster, matching, need, within, wall)
        if len(needs) == 1 or is_bound(pod):
            return question
        others = tuple(self._alone(cluster, matching, each, within, wall) for each in needs if each is not need)
        open_ = [each.claim for each in needs if each.claim is not None and each.claim.status.allocation is None]
        together = None
        if question.shortage is not None and question.shortage.stage is Stage.FITS and len(open_) > 1:
            together = self._shortage(cluster, matching, open_, within)
        return replace(question, others=others, together=together)

    def _alone(
        self, cluster: Cluster, matching: Matching, need: Need, within: Sequence[NodeSelector], wall: float
    ) -> Question:
        claim, shortage = need.claim, None
        if claim is not None and claim.status.allocation is None:
            shortage = self._shortage(cluster, matching, [claim], within)
        return Question(
            cluster=cluster, wall=wall, pod=need.pod, entry=need.entry, claim=claim, resources=need.resources,
            shortage=shortage,
            scheduler_known=self._scheduler_known(cluster, need.pod),
        )

    def _shortage(
        self, cluster: Cluster, matching: Matching, claims: Sequence[ResourceClaim], within: Sequence[NodeSelector]
    ) -> Shortage | None:
        for kind in scarcity.NEEDED_KINDS:
            if kind not in cluster.synced and kind not in cluster.unserved:
                return None
        for claim in claims:
            for name in causes.class_names(claim.spec):
                if name not in cluster.classes:
                    return None
        return self._survey.find(cluster, matching, [claim.spec for claim in claims], within)


def _schedulers(cluster: Cluster) -> frozenset[str]:
    """Schedulers that have said something of a pod; of gates the API server speaks for them."""
    return frozenset(
        pod.spec.scheduler_name for pod in cluster.pods.values()
        if (said := condition_of(pod, "PodScheduled")) is not None and said.reason != "SchedulingGated"
    )


def _ties(need: Need, needs: Sequence[Need]) -> list[NodeSelector]:
    """Where a pod can still go, having claims that are allocated already."""
    if len(needs) == 1 or is_bound(need.pod):
        return []
    allocations = [each.claim.status.allocation for each in needs if each is not need and each.claim is not None]
    return [each.node_selector for each in allocations if each is not None and each.node_selector is not None]


def _made_of(question: Question) -> tuple[object, ...]:
    """All that a diagnosis depends on."""
    cluster, pod = question.cluster, question.pod
    return (
        pod, question.together, *_own_parts(question), *(part for each in question.others for part in _own_parts(each)),
        *(cluster.event(pod, reason) for reason in EVENT_REASONS),
        causes.cordoned(question), question.scheduler_known,
        cluster.classes_revision, len(cluster.synced), len(cluster.unserved),
    )


def _own_parts(question: Question) -> tuple[object, ...]:
    cluster, template = question.cluster, question.entry.template
    return (
        question.resources or question.claim,  # the claim for extended resources is made anew each time
        question.shortage,
        cluster.templates.get(Key(question.pod.metadata.namespace, template)) if template else None,
        question.young if question.claim is None else question.unseen,
        # A quota's numbers are shown with the claim that it forbids.
        cluster.revision if question.claim is None and cluster.quotas else None,
    )


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    """Objects of the mirror are the same while nothing replaced them, so identity tells; the rest is small."""
    return len(one) == len(other) and all(
        a is b or (isinstance(a, int | tuple) and a == b) for a, b in zip(one, other, strict=True)
    )


def _oldest(cluster: Cluster) -> dict[_Where, tuple[Need, list[Need]]]:
    """For each claim the oldest pod that waits for it, with all that this pod needs."""
    found: dict[_Where, tuple[Need, list[Need]]] = {}
    extended = ExtendedResources(cluster)
    for pod in cluster.pods.values():
        if pod.status.phase not in _WAITING_PHASES:
            continue
        needs = needs_of(cluster, extended, pod)
        for need in needs:
            if is_waiting(pod, need.entry, need.claim):
                where = _where(need)
                before = found.get(where)
                if before is None or _age(pod) < _age(before[0].pod):
                    found[where] = (need, needs)
    return found


def _where(need: Need) -> _Where:
    """What tells needs apart: the claim, or the pod and its own name of a claim that does not exist."""
    if need.resources:
        return ("extended resources", key_of(need.pod))
    if need.entry.claim is not None:
        return ("", Key(need.pod.metadata.namespace, need.entry.claim))
    return (need.entry.pod_claim, key_of(need.pod))


def _age(pod: Pod) -> tuple[str, str]:
    return (pod.metadata.creation_timestamp or "", pod.metadata.name)


def _wait(question: Question) -> Wait:
    claim, pod, entry = question.claim, question.pod, question.entry
    stamps = (pod.metadata.creation_timestamp, claim.metadata.creation_timestamp if claim is not None else None)
    walls = [seconds for stamp in stamps if (seconds := unix_seconds(stamp)) is not None]
    return Wait(
        namespace=pod.metadata.namespace,
        claim=entry.claim or "",
        claim_uid=claim.metadata.uid if claim is not None else "",
        pod=pod.metadata.name,
        pod_claim=entry.pod_claim,
        deviceclass=_deviceclass(question),
        since_wall=max(walls, default=None),
        diagnosis=_interned(diagnose(question)),
    )


def _interned(diagnosis: Diagnosis) -> Diagnosis:
    """Thousands of alike claims wait for the same devices: what holds those is kept in words once."""
    return replace(
        diagnosis, summary=intern(diagnosis.summary), evidence=tuple([intern(line) for line in diagnosis.evidence])
    )


def _deviceclass(question: Question) -> str:
    if question.claim is not None:
        return deviceclass_of(question.claim)
    template = question.entry.template
    made_from = question.cluster.templates.get(Key(question.pod.metadata.namespace, template)) if template else None
    return "+".join(dict.fromkeys(causes.class_names(made_from.spec.spec))) if made_from is not None else ""
