"""What does the controller's JSON API tell of a snapshot? Pure functions of it and of the query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from claimscope.claims.model import ClaimState, PendingReason
from claimscope.web.health_part import SEVERITIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from claimscope.claims.model import ClaimView, ClusterSnapshot, Wait

LIST_LIMIT: Final = 500  # claims and waits in one answer where nothing else is asked for
LIST_LIMIT_MAX: Final = 10_000
_STATES: Final = tuple(state.value for state in ClaimState)
_REASONS: Final = tuple(reason.value for reason in PendingReason)


def claim_document(view: ClaimView) -> dict[str, object]:
    """A claim as /api/v1/claims shows it."""
    return {
        "namespace": view.namespace,
        "name": view.name,
        "uid": view.uid,
        "state": view.state.value,
        "referenced": view.referenced,
        "deviceclass": view.deviceclass,
        "template": view.template,
        "source": view.source,
        "alternative": view.alternative,
        "workload": view.workload,
        "pods": view.pods,
        "devices": [
            {**held.key._asdict(), "request": held.request, "uuid": held.uuid, "node": held.node,
             "admin_access": held.admin, "share_id": held.share_id, "consumed": held.consumed, "health": held.health}
            for held in view.devices
        ],
        "requested_devices": view.requested_devices,
        "created_unix_seconds": view.created_wall,
        "deleting_unix_seconds": view.deleting_wall,
        "allocated_unix_seconds": view.allocated_wall,
        "leaked": view.leaked,
        "doing": view.doing,
        "doing_since_unix_seconds": view.doing_since_wall,
    }  # fmt: skip


def wait_document(wait: Wait, wall: float) -> dict[str, object]:
    """A claim that waits, as /api/v1/waits shows it."""
    return {
        "namespace": wait.namespace,
        "claim": wait.claim,
        "claim_uid": wait.claim_uid,
        "pod": wait.pod,
        "pod_claim": wait.pod_claim,
        "deviceclass": wait.deviceclass,
        "pending_seconds": None if wait.since_wall is None else round(max(0.0, wall - wait.since_wall), 3),
        "reason": wait.diagnosis.reason,
        "summary": wait.diagnosis.summary,
        "evidence": wait.diagnosis.evidence,
        "cure": wait.diagnosis.cure,
    }


def capacity_document(snapshot: ClusterSnapshot, query: Mapping[str, str]) -> dict[str, object]:
    """Devices by class and pool and state, as /api/v1/capacity shows them. Raises BadQueryError."""
    _only_known(query)
    classes: dict[str, dict[str, int]] = {}
    pools: dict[tuple[str, str, str], dict[str, int]] = {}
    largest: dict[str, int] = {}
    for each in snapshot.samples:
        if each.family == "dra_pool_devices":
            labels = dict(each.labels)
            count = int(each.value)  # type: ignore[union-attr]  # not one of the histograms
            states = classes.setdefault(labels["deviceclass"], {})
            states[labels["state"]] = states.get(labels["state"], 0) + count
            key = (labels["driver"], labels["pool"], labels["deviceclass"])
            pools.setdefault(key, {})[labels["state"]] = count
        elif each.family == "dra_class_largest_claim_devices":
            largest[dict(each.labels)["deviceclass"]] = int(each.value)  # type: ignore[union-attr]
    return {
        "classes": [
            {"deviceclass": name, "devices": states, "largest_claim_devices": largest.get(name)}
            for name, states in sorted(classes.items())
        ],
        "pools": [
            {"driver": driver, "pool": pool, "deviceclass": name, "devices": states}
            for (driver, pool, name), states in sorted(pools.items())
        ],
    }


class BadQueryError(ValueError):
    """A query parameter that cannot be used: which, and what to write instead."""


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit")
    if text is None:
        return LIST_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= LIST_LIMIT_MAX):
        raise BadQueryError(f"limit={text[:40]!a} is not a number from 1 to {LIST_LIMIT_MAX}")
    return int(text)


def _only_known(query: Mapping[str, str], *known: str) -> None:
    for name in query:
        if name not in known:
            raise BadQueryError(f"unknown parameter {name[:40]!a}; known are {', '.join(known) or 'none'}")


def claims_document(snapshot: ClusterSnapshot, query: Mapping[str, str]) -> dict[str, object]:
    """/api/v1/claims: the first claims that a query asks for, and how many there are. Raises BadQueryError."""
    _only_known(query, "namespace", "state", "limit")
    limit, namespace, state = _limit(query), query.get("namespace"), query.get("state")
    if state is not None and state not in _STATES:
        raise BadQueryError(f"state={state[:40]!a} is none; known are {', '.join(_STATES)}")
    found = [
        view
        for view in snapshot.claims.values()
        if (namespace is None or view.namespace == namespace) and (state is None or view.state.value == state)
    ]
    return {
        "unix_seconds": snapshot.wall_ns / 1e9,
        "total": len(found),
        "claims": [claim_document(view) for view in found[:limit]],
    }


def waits_document(snapshot: ClusterSnapshot, query: Mapping[str, str]) -> dict[str, object]:
    """/api/v1/waits: what waits, longest first. Raises BadQueryError."""
    _only_known(query, "namespace", "reason", "limit")
    limit, namespace, reason = _limit(query), query.get("namespace"), query.get("reason")
    if reason is not None and reason not in _REASONS:
        raise BadQueryError(f"reason={reason[:40]!a} is none; known are {', '.join(_REASONS)}")
    found = [
        wait
        for wait in snapshot.waits
        if (namespace is None or wait.namespace == namespace)
        and (reason is None or wait.diagnosis.reason.value == reason)
    ]
    found.sort(key=lambda wait: wait.since_wall if wait.since_wall is not None else float("inf"))
    wall = snapshot.wall_ns / 1e9
    return {
        "unix_seconds": wall, "total": len(found), "waits": [wait_document(wait, wall) for wait in found[:limit]]
    }  # fmt: skip


def health_document(snapshot: ClusterSnapshot, query: Mapping[str, str]) -> dict[str, object]:
    """/api/v1/health: GPUs that something is found against, worst first. Raises BadQueryError."""
    _only_known(query, "node", "severity", "limit")
    limit, node, severity = _limit(query), query.get("node"), query.get("severity")
    if severity is not None and severity not in SEVERITIES:
        raise BadQueryError(f"severity={severity[:40]!a} is none; known are {', '.join(SEVERITIES)}")
    found = [
        gpu for gpu in snapshot.sick
        if (node is None or gpu.node == node) and (severity is None or gpu.severity == severity)
    ]  # fmt: skip
    return {
        "unix_seconds": snapshot.wall_ns / 1e9,
        "total": len(found),
        "gpus": [
            {"uuid": gpu.uuid, "node": gpu.node, "severity": gpu.severity, "rules": gpu.rules,
             "since_unix_seconds": gpu.since_wall, "effect": gpu.effect, "held": gpu.held}
            for gpu in found[:limit]
        ],
    }  # fmt: skip
