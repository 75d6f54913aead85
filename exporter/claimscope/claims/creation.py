"""Why does a claim that a pod names not exist?

The texts looked for are those of Kubernetes 1.36, pkg/controller/resourceclaim and pkg/quota. The claim controller
makes a pod's claims one after the other and stops at the first that fails, with an event on the pod that names it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from claimscope.claims.causes import Question, event_words, unknown
from claimscope.claims.model import Diagnosis, Key, PendingReason
from claimscope.kube.objects import Event

CREATION_EVENTS: Final = "events/FailedResourceClaimCreation"
_REFUSED: Final = "create ResourceClaim"  # the API server was asked, and said no
_NOT_FOUND: Final = re.compile(r"resource claim template .* not found")
_EXCEEDED: Final = re.compile(r"exceeded quota: ([^,]+), requested: (.*), used: (.*), limited: (.*)")
_FAILED: Final = re.compile(r"failed quota: ([^:]+): (.*)")
_DEVICES_OF: Final = ".deviceclass.resource.k8s.io/devices"


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
    elif event is None or not _NOT_FOUND.search(event.message):
        return None
    return Diagnosis(
        reason=PendingReason.TEMPLATE_MISSING,
        summary=f"pod {question.pod.metadata.name} names ResourceClaimTemplate {entry.template}, which does not exist",
        evidence=event_words(event),
        cure=f"create ResourceClaimTemplate {entry.template} in namespace {namespace}, or correct the pod",
    )


def quota(question: Question) -> Diagnosis | None:
    """A ResourceQuota forbids the claim that the template would yield."""
    event = creation_event(question)
    if event is None:
        return None
    exceeded, failed = _EXCEEDED.search(event.message), _FAILED.search(event.message)
    if exceeded is not None:
        name = exceeded[1]
        about = f"leaves no room: {_quota_words(exceeded[2], exceeded[3], exceeded[4])}"
        cure = (f"raise ResourceQuota {name}, or delete claims that count against it; a claim counts from its "
                "creation, also while it is pending")
    elif failed is not None:
        name = failed[1]
        about, cure = f"refuses the claim: {failed[2]}", f"correct the template, or ResourceQuota {name}"
    else:
        return None
    return Diagnosis(
        reason=PendingReason.QUOTA,
        summary=f"ResourceQuota {name} of namespace {question.pod.metadata.namespace} {about}",
        evidence=(*_quota_now(question, name), *event_words(event)),
        cure=cure,
    )


def _quota_words(requested: str, used: str, limited: str) -> str:
    """ "asks for 1 device of gpu.nvidia.com, 4 of 4 are used", from the three lists of the API server's text."""
    asked, taken, limits = (dict(_amounts(text)) for text in (requested, used, limited))
    if not asked or not asked.keys() <= taken.keys() & limits.keys():
        return f"requested: {requested}, used: {used}, limited: {limited}"
    return "; ".join(
        f"asks for {_resource_words(name, amount)}, {taken[name]} of {limits[name]} are used"
        for name, amount in asked.items()
    )


def _amounts(text: str) -> list[tuple[str, str]]:
    parts = [part.strip().rpartition("=") for part in text.split(",")]
    return [(name, amount) for name, _, amount in parts if name]


def _resource_words(name: str, amount: str) -> str:
    number = int(amount) if amount.isdigit() else 2
    if name.endswith(_DEVICES_OF):
        noun = f"device{'' if number == 1 else 's'} of {name.removesuffix(_DEVICES_OF)}"
    elif name == "count/resourceclaims.resource.k8s.io":
        noun = f"claim{'' if number == 1 else 's'}"
    else:
        noun = name.removeprefix("requests.")
    return f"{amount} {noun}"


def _quota_now(question: Question, name: str) -> tuple[str, ...]:
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
    if event is None or _REFUSED not in event.message:
        return None
    _, _, text = event.message.partition(_REFUSED)
    return Diagnosis(
        reason=PendingReason.ADMISSION,
        summary=f"the claim of template {question.entry.template} could not be created: {text.lstrip(' :')}",
        evidence=event_words(event),
        cure="change the template, or the webhook or policy that refuses it",
    )


def stopped_at_other(question: Question) -> Diagnosis | None:
    """The controller did not come to this claim, since it failed with another one of the same pod."""
    if question.claim is not None or question.entry.template is None:
        return None
    for other in question.others:
        for check in (template_missing, quota, admission):
            found = check(other) if creation_event(other) is not None else None
            if found is not None:
                summary = f"not created, since the claim controller stopped at {other.called} of the same pod"
                return replace(found, summary=f"{summary}: {found.summary}")
    return None


def claim_not_created(question: Question) -> Diagnosis | None:
    """No claim yet, and nobody says why."""
    if question.claim is not None:
        return None
    if not question.reads("resourceclaims"):
        return unknown(question, "ResourceClaims cannot be read")
    template, event = question.entry.template, creation_event(question)
    if not template or question.entry.claim is not None:
        summary = "the claim that the pod names has not been seen yet"
    else:
        summary = f"no claim has been made from template {template} yet, and "
        if not question.reads(CREATION_EVENTS):
            summary += "why is not known: the claim controller's events cannot be read"
        elif event is None:
            summary += "the claim controller says nothing"
        elif _NOT_FOUND.search(event.message):
            summary += f"the claim controller last said that there is no such template; it exists now{_since(question)}"
        else:
            summary += "the claim controller failed"
    return Diagnosis(
        reason=PendingReason.CLAIM_NOT_CREATED,
        summary=summary,
        evidence=event_words(event),
        cure="look at the log of kube-controller-manager (resourceclaim controller) if this lasts longer than "
        f"{'minutes: it tries again ever more slowly' if event is not None else 'seconds'}",
    )


def _since(question: Question) -> str:
    made = question.cluster.templates.get(Key(question.pod.metadata.namespace, question.entry.template or ""))
    stamp = made.metadata.creation_timestamp if made is not None else None
    return f", since {stamp}" if stamp else ""
