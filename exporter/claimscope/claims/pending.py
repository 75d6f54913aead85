"""Which claims are needed and not ready, since when, and why?

Needs come from pods: a claim that no pod names is nobody's fault. The first check that has an answer decides; their
order is that of PendingReason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from claimscope.claims.state import became_true, is_bound
from claimscope.claims.survey import Survey
from claimscope.claims.views import deviceclass_of
from claimscope.kube.kinds import EVENT_REASONS
from claimscope.kube.objects import Pod, ResourceClaim, unix_seconds

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
    if question.resources:
        return replace(found, summary=f"{question.called}: {found.summary}")
    return found


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


@dataclass(frozen=True, slots=True)
class _Known:
    """A diagnosis and what it was made of; it stands while all of that is the same."""

    made_of: tuple[object, ...]
    wait: Wait


class Waiting:
    """Every need that is not met. Keeps diagnoses from one call to the next."""

    def __init__(self) -> None:
        self._shortages = Shortages()
        self._known: dict[tuple[str, Key], _Known] = {}

    def waits(
        self, cluster: Cluster, matching: Matching, views: Mapping[str, ClaimView], wall: float
    ) -> tuple[Wait, ...]:
        """All of them, each claim once, for the pod that has waited longest."""
        self._shortages.begin(cluster)
        kept: dict[tuple[str, Key], _Known] = {}
        for where, (pod, entry, first) in _needs(cluster).items():
            question = self._question(cluster, matching, pod, entry, wall)
            made_of = self._made_of(question)
            known = self._known.get(where)
            if known is None or not _same(known.made_of, made_of):
                known = _Known(made_of, _wait(question, first))
            kept[where] = known
        self._known = kept
        return tuple(known.wait for known in kept.values())

    def diagnose_claim(
        self, cluster: Cluster, matching: Matching, pod: Pod, entry: PodClaim, wall: float
    ) -> Diagnosis:
        """Why one pod waits for one claim."""
        self._shortages.begin(cluster)
        return diagnose(self._question(cluster, matching, pod, entry, wall))

    def shortage_of(self, cluster: Cluster, matching: Matching, claim: ResourceClaim) -> Shortage:
        """What stands in the way of a claim, whether a pod wants it or not."""
        self._shortages.begin(cluster)
        return self._shortages.find(cluster, matching, [claim.spec])

    def _question(
        self, cluster: Cluster, matching: Matching, pod: Pod, entry: PodClaim, wall: float
    ) -> Question:
        claim = _claim(cluster, pod, entry)
        shortage = together = None
        others: list[ResourceClaim] = []
        known = all(kind in cluster.synced for kind in scarcity.NEEDED_KINDS)
        if claim is not None and claim.status.allocation is None:
            for other in claims_of(pod):
                found = _claim(cluster, pod, other)
                if other != entry and found is not None and found.status.allocation is None:
                    others.append(found)
            if known and all(name in cluster.classes for name in causes.class_names(claim.spec)):
                shortage = self._shortages.find(cluster, matching, [claim.spec])
            if shortage is not None and shortage.stage is Stage.FITS and others:
                together = self._shortages.find(cluster, matching, [claim.spec, *(each.spec for each in others)])
        return Question(
            cluster=cluster, wall=wall, pod=pod, entry=entry, claim=claim, shortage=shortage, together=together,
            other_claims=tuple(each.metadata.name for each in others),
        )

    def _made_of(self, question: Question) -> tuple[object, ...]:
        cluster, pod = question.cluster, question.pod
        events: list[Event | None] = [cluster.event(pod, reason) for reason in EVENT_REASONS]
        template = question.entry.template
        return (
            pod, question.claim, question.shortage, question.together, *events,
            cluster.templates.get(Key(pod.metadata.namespace, template)) if template else None,
            cluster.classes_revision, len(cluster.synced), question.other_claims,
            question.young if question.claim is None else None,
            # A quota's numbers are shown with the claim that it forbids.
            cluster.revision if question.claim is None and cluster.quotas else None,
        )


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    """Objects of the mirror are the same while nothing replaced them, so identity tells; the rest is small."""
    return len(one) == len(other) and all(
        a is b or (isinstance(a, int | tuple) and a == b) for a, b in zip(one, other, strict=True)
    )


def _claim(cluster: Cluster, pod: Pod, entry: PodClaim) -> ResourceClaim | None:
    return cluster.claims.get(Key(pod.metadata.namespace, entry.claim)) if entry.claim is not None else None


def _needs(cluster: Cluster) -> dict[tuple[str, Key], tuple[Pod, PodClaim, str | None]]:
    """The oldest pod that waits for each claim; claims that do not exist are told apart by their pod."""
    found: dict[tuple[str, Key], tuple[Pod, PodClaim, str | None]] = {}
    for key, pod in cluster.pods.items():
        if pod.status.phase not in _WAITING_PHASES:
            continue
        for entry in claims_of(pod):
            claim = _claim(cluster, pod, entry)
            if not is_waiting(pod, entry, claim):
                continue
            where = ("", Key(key.namespace, entry.claim)) if entry.claim is not None else (entry.pod_claim, key)
            before = found.get(where)
            if before is None or _age(pod) < _age(before[0]):
                found[where] = (pod, entry, pod.metadata.creation_timestamp)
    return found


def _age(pod: Pod) -> tuple[str, str]:
    return (pod.metadata.creation_timestamp or "", pod.metadata.name)


def _wait(question: Question, pod_created: str | None) -> Wait:
    claim, pod, entry = question.claim, question.pod, question.entry
    stamps = (pod_created, claim.metadata.creation_timestamp if claim is not None else None)
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
    return _joined(causes.class_names(made_from.spec.spec)) if made_from is not None else ""


def _joined(names: Iterable[str]) -> str:
    return "+".join(dict.fromkeys(names))
