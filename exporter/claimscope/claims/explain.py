"""What would one want to know of a claim at three in the morning? The verdict first, then why, then what to do.

Works for claims in every state and for names that no claim has.
"""

from __future__ import annotations

import difflib
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from claimscope.claims.cluster import Cluster, PodClaim, claims_of, holdings_of, is_active
from claimscope.claims.fitting import Matching
from claimscope.claims.model import ClaimState, ClaimView, Diagnosis, Doing, Holding, Key, PendingReason
from claimscope.claims.pending import Waiting, is_waiting, waiting_needs
from claimscope.claims.state import doing_of, state_of, use_of
from claimscope.claims.views import deviceclass_of
from claimscope.claims.workloads import workload_of
from claimscope.kube.objects import Pod, ResourceClaim, unix_seconds

WIDTH: Final = 110
_COMPARED: Final = 200  # names that a misspelt one is compared with
_POD_WORDS: Final = {
    Doing.PREPARING: "its devices, volumes and network are being prepared",
    Doing.PREPARE_FAILED: "its devices cannot be prepared",
    Doing.PULLING: "pulls its image",
    Doing.IMAGE_FAILED: "cannot get its image",
    Doing.INITIALIZING: "runs its init containers",
    Doing.CRASH_LOOPING: "crashes again and again",
    Doing.CREATE_FAILED: "its containers cannot be created",
    Doing.PENDING_OTHER: "is not on a node yet",
    Doing.FINISHED: "has finished",
    Doing.TERMINATING: "is being deleted",
    Doing.UNKNOWN: "does not run, for reasons it does not tell",
}
_STATE_WORDS: Final = {
    ClaimState.PENDING: "is pending",
    ClaimState.ALLOCATED: "has devices, and no pod has reserved it",
    ClaimState.RESERVED: "has devices, and a pod has reserved it",
    ClaimState.PREPARED: "has devices, and they are prepared on the node",
    ClaimState.RUNNING: "is in use by running containers",
    ClaimState.RELEASED: "was released and still exists",
    ClaimState.DELETED: "was deleted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedDevice:
    """A device of the claim."""

    device: str
    request: str
    uuid: str = ""
    node: str = ""
    admin: bool = False
    taints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedPod:
    """A pod that names the claim."""

    name: str
    node: str
    doing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Everything known about one claim, or about a name."""

    namespace: str
    name: str
    exists: bool
    verdict: str  # one sentence
    state: ClaimState | None = None
    since_wall: float | None = None  # in that state, where it is known
    age_seconds: float | None = None
    deviceclass: str = ""
    reason: PendingReason | None = None  # why it is not ready
    summary: str = ""
    evidence: tuple[str, ...] = ()
    cure: str = ""
    devices: tuple[ExplainedDevice, ...] = ()
    pods: tuple[ExplainedPod, ...] = ()
    workload: str = ""
    quota: tuple[str, ...] = ()
    similar: tuple[str, ...] = ()  # claims whose names look like the one asked for


def explain(
    cluster: Cluster, matching: Matching, views: Mapping[str, ClaimView], namespace: str, name: str, wall: float,
    waiting: Waiting | None = None,
) -> Explanation:
    """What there is to say about the claim namespace/name; `waiting` spares a search that was already made."""
    key = Key(namespace, name)
    waiting = waiting if waiting is not None else Waiting()
    claim = cluster.claims.get(key)
    users = [(pod, entry) for pod in cluster.pods_of(key) for entry in claims_of(pod) if entry.claim == name]
    if claim is None:
        return _of_nothing(cluster, matching, waiting, key, users, wall)
    view = views.get(claim.metadata.uid)
    state = view.state if view is not None else _state(cluster, claim, users)
    diagnosis = _diagnosis(cluster, matching, waiting, claim, users, wall)
    created = unix_seconds(claim.metadata.creation_timestamp)
    since = _since(claim, state, view)
    return Explanation(
        namespace=namespace,
        name=name,
        exists=True,
        verdict=_verdict(key, claim, state, diagnosis, users, since, wall, pods_known="pods" in cluster.synced),
        state=state,
        since_wall=since,
        age_seconds=wall - created if created is not None else None,
        deviceclass=deviceclass_of(claim),
        reason=diagnosis.reason if diagnosis is not None else None,
        summary=diagnosis.summary if diagnosis is not None else "",
        evidence=diagnosis.evidence if diagnosis is not None else (),
        cure=diagnosis.cure if diagnosis is not None else _cure(state, users, pods_known="pods" in cluster.synced),
        devices=tuple(_device(cluster, holding) for holding in holdings_of(claim)),
        pods=tuple(_pod(cluster, pod, entry) for pod, entry in users),
        workload=_workload(claim, users),
        quota=_quota(cluster, namespace),
    )


def _of_nothing(
    cluster: Cluster, matching: Matching, waiting: Waiting, key: Key, users: Sequence[tuple[Pod, PodClaim]],
    wall: float,
) -> Explanation:
    namespace, name = key
    known = "resourceclaims" in cluster.synced
    verdict = f"claim {key} does not exist" if known else f"claim {key} is not known: ResourceClaims cannot be read"
    reason: PendingReason | None = None
    evidence: tuple[str, ...] = ()
    cure = ""
    # A pod may be meant, or a claim that is yet to be made for it.
    pod = cluster.pods.get(key)
    needs = [(each, entry) for each, entry in users if is_waiting(each, entry, None)]
    if pod is not None and not needs:
        needs = [(pod, need.entry) for need in waiting_needs(cluster, pod)]
        verdict += "; a pod of this name does"
    if needs:
        found = waiting.diagnose_claim(cluster, matching, *needs[0], wall)
        reason, evidence, cure = found.reason, (found.summary, *found.evidence), found.cure
    elif known:
        cure = "see the claims of the namespace: kubectl get resourceclaims"
    beside = [each.name for each in cluster.claims if each.namespace == namespace]
    others = [str(each) for each in cluster.claims if each.name == name]
    # A comparison takes some 20 us: of a large namespace only those that begin alike.
    beside.sort(key=lambda each: -len(os.path.commonprefix((each, name))))  # noqa: RUF071 - these are no paths
    alike = [str(Key(namespace, each)) for each in difflib.get_close_matches(name, beside[:_COMPARED], n=5, cutoff=0.6)]
    return Explanation(
        namespace=namespace, name=name, exists=False, verdict=verdict, reason=reason, evidence=evidence, cure=cure,
        pods=tuple(_pod(cluster, each, entry) for each, entry in users or needs),
        quota=_quota(cluster, namespace), similar=tuple(dict.fromkeys((*others, *alike)))[:5],
    )


def _state(cluster: Cluster, claim: ResourceClaim, users: Sequence[tuple[Pod, PodClaim]]) -> ClaimState:
    reserved = {each.uid for each in claim.status.reserved_for or ()}
    using = [(pod, use_of(pod, entry)) for pod, entry in users if pod.metadata.uid in reserved]
    return state_of(claim, using, released=False, referenced=bool(users))


def _diagnosis(
    cluster: Cluster, matching: Matching, waiting: Waiting, claim: ResourceClaim,
    users: Sequence[tuple[Pod, PodClaim]], wall: float,
) -> Diagnosis | None:
    for pod, entry in users:
        if is_waiting(pod, entry, claim):
            return waiting.diagnose_claim(cluster, matching, pod, entry, wall)
    return None


def _since(claim: ResourceClaim, state: ClaimState, view: ClaimView | None) -> float | None:
    if state is ClaimState.PENDING:
        return unix_seconds(claim.metadata.creation_timestamp)
    if view is not None and view.doing_since_wall is not None:
        return view.doing_since_wall
    allocation = claim.status.allocation
    return unix_seconds(allocation.allocation_timestamp) if allocation is not None else None


def _verdict(
    key: Key, claim: ResourceClaim, state: ClaimState, diagnosis: Diagnosis | None,
    users: Sequence[tuple[Pod, PodClaim]], since: float | None, wall: float, *, pods_known: bool,
) -> str:
    ago = f" for {duration_words(wall - since)}" if since is not None and state is ClaimState.PENDING else ""
    words = f"claim {key} {_STATE_WORDS[state]}{ago}"
    if diagnosis is not None:
        return f"{words}: {diagnosis.reason.value.replace('_', ' ')}"
    if not pods_known:
        return f"{words}; which pods want it is not known: Pods cannot be read"
    if state is ClaimState.PENDING and not any(is_active(pod) for pod, _ in users):
        return f"{words}: no pod wants it, so nothing is allocated; this is not a fault"
    if claim.metadata.deletion_timestamp is not None:
        return f"{words}; it is being deleted"
    return words


def _cure(state: ClaimState, users: Sequence[tuple[Pod, PodClaim]], *, pods_known: bool) -> str:
    if not pods_known:
        return "let the controller read pods: see its log, and /readyz"
    if state is ClaimState.ALLOCATED and not users:
        return "nobody uses these devices: delete the claim, or find out who forgot it"
    if state is ClaimState.RELEASED:
        return "it holds nothing; delete it if no pod will come back to it"
    return ""


def _device(cluster: Cluster, holding: Holding) -> ExplainedDevice:
    facts = cluster.devices.get(holding.device)
    uuid = facts.attribute("uuid") if facts is not None else None
    taints = tuple(
        f"{taint.key}{f'={taint.value}' if taint.value else ''}:{taint.effect} "
        f"({f'DeviceTaintRule {taint.rule}' if taint.rule is not None else 'driver'})"
        for taint in cluster.taints(holding.device)
    )
    return ExplainedDevice(
        device=str(holding.device), request=holding.request, uuid=uuid if isinstance(uuid, str) else "",
        node=(facts.node or "") if facts is not None else "", admin=holding.admin, taints=taints,
    )


def _pod(cluster: Cluster, pod: Pod, entry: PodClaim) -> ExplainedPod:
    use = use_of(pod, entry)
    doing = "runs" if use.running else _POD_WORDS[
        doing_of(pod, use, cluster.event(pod, "FailedPrepareDynamicResources"))
    ]
    return ExplainedPod(name=pod.metadata.name, node=pod.spec.node_name or "", doing=doing)


def _workload(claim: ResourceClaim, users: Sequence[tuple[Pod, PodClaim]]) -> str:
    found = workload_of(users[0][0] if users else None, claim)
    words = [f"{found.kind} {found.name}"] if found.kind else []
    words += [f"group {found.group}"] if found.group else []
    words += [f"queue {found.queue}"] if found.queue else []
    return ", ".join(words)


def _quota(cluster: Cluster, namespace: str) -> tuple[str, ...]:
    return tuple(
        f"{key.name}: {(quota.status.used or {}).get(resource, '0')} of {hard} {resource}"
        for key, quota in sorted(cluster.quotas.items())
        if key.namespace == namespace
        for resource, hard in sorted((quota.status.hard or {}).items())
        if "resourceclaims" in resource or "deviceclass" in resource
    )


# --- words ---


def duration_words(seconds: float) -> str:
    """A duration as people say it: "3 h 20 min"."""
    whole = max(0, int(seconds))
    for size, unit, lesser, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // lesser
            return f"{whole // size} {unit}{f' {rest} {name}' if rest else ''}"
    return f"{whole} s"


def words(explanation: Explanation) -> str:
    """The explanation as text, the verdict first."""
    lines = [explanation.verdict]
    if explanation.summary:
        lines.append(f"  {explanation.summary}")
    for title, content in (
        ("evidence", list(explanation.evidence)),
        ("devices", _table([
            (each.device, each.request + (" (admin)" if each.admin else ""), each.node, each.uuid,
             " ".join(each.taints)) for each in explanation.devices
        ])),
        ("pods", _table([(each.name, each.node or "no node", each.doing) for each in explanation.pods])),
        ("class", [explanation.deviceclass] if explanation.deviceclass else []),
        ("workload", [explanation.workload] if explanation.workload else []),
        ("quota", list(explanation.quota)),
        ("similar names", list(explanation.similar)),
        ("what to do", [explanation.cure] if explanation.cure else []),
    ):
        lines += _section(title, content)
    return "\n".join(lines) + "\n"


def _section(title: str, content: Sequence[str]) -> list[str]:
    if not content:
        return []
    lines = ["", f"{title}:"]
    for each in content:
        # Tables are aligned and stay on one line; names and expressions must be copied whole.
        lines += textwrap.wrap(
            each, WIDTH, initial_indent="  ", subsequent_indent="      ", break_long_words=False,
            break_on_hyphens=False, replace_whitespace=False, drop_whitespace=True,
        ) if "  " not in each else [f"  {each}"]
    return lines


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
