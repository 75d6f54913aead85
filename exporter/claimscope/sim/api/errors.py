"""How does the API server word its refusals?

The texts are those of k8s.io/apimachinery/pkg/api/errors and k8s.io/apiserver, since clients and people match on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from claimscope.sim.api.store import Kind

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class Refused(Exception):  # noqa: N818 - an answer, not a defect
    """A request that is answered with a metav1.Status."""

    def __init__(self, code: int, reason: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    @property
    def status(self) -> dict[str, Any]:
        """The object that is sent."""
        body: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        body["message"] = self.message
        if self.reason:
            body["reason"] = self.reason
        if self.details is not None:
            body["details"] = dict(self.details)
        return {**body, "code": self.code}


def bad_request(message: str) -> Refused:
    """400: what was asked cannot be understood."""
    return Refused(400, "BadRequest", message)


def unauthorized() -> Refused:
    """401: no token, or one that nobody knows."""
    return Refused(401, "Unauthorized", "Unauthorized")


def forbidden(kind: Kind, user: str, verb: str, *, namespace: str, name: str, subresource: str) -> Refused:
    """403, as RBAC says it."""
    resource = f"{kind.plural}/{subresource}" if subresource else kind.plural
    scope = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    subject = f'{kind.resource} "{name}"' if name else kind.resource
    what = f'resource "{resource}" in API group "{kind.group}" {scope}'
    return Refused(
        403,
        "Forbidden",
        f'{subject} is forbidden: User "{user}" cannot {verb} {what}',
        _details(kind, name),
    )


def no_resource() -> Refused:
    """404 for a path that means nothing here."""
    return Refused(404, "NotFound", "the server could not find the requested resource", {})


def not_found(kind: Kind, name: str) -> Refused:
    """404 for an object."""
    return Refused(404, "NotFound", f'{kind.resource} "{name}" not found', _details(kind, name))


def wrong_method() -> Refused:
    """405."""
    return Refused(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def already_exists(kind: Kind, name: str) -> Refused:
    """409 for a create."""
    return Refused(409, "AlreadyExists", f'{kind.resource} "{name}" already exists', _details(kind, name))


def conflict(kind: Kind, name: str, why: str = "") -> Refused:
    """409 for a write that knows an older state."""
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    return Refused(
        409, "Conflict", f'Operation cannot be fulfilled on {kind.resource} "{name}": {why}', _details(kind, name)
    )


def apply_conflict(conflicts: Sequence[tuple[str, str]]) -> Refused:
    """409 for a server-side apply of fields that others manage: pairs of manager (with version) and field."""
    count = len(conflicts)
    if count == 1:
        text = f"Apply failed with 1 conflict: conflict with {conflicts[0][0]}: {conflicts[0][1]}"
    else:
        by_manager: dict[str, list[str]] = {}
        for manager, path in conflicts:
            by_manager.setdefault(manager, []).append(f"- {path}")
        text = f"Apply failed with {count} conflicts: " + "\n".join(
            "\n".join((f"conflicts with {manager}:", *paths)) for manager, paths in by_manager.items()
        )
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {manager}", "field": path}
        for manager, path in conflicts
    ]
    return Refused(409, "Conflict", text, {"causes": causes})


def continue_expired() -> Refused:
    """410 for a continue token of a snapshot that is gone."""
    return Refused(
        410,
        "Expired",
        "The provided continue parameter is too old to display a consistent list result. You must start a new list "
        "without the continue parameter.",
    )


def too_old(version: int, oldest: int) -> Refused:
    """410 for a watch from a version that is compacted."""
    return Refused(410, "Expired", f"too old resource version: {version} ({oldest})")


def unknown_format(accepted: Sequence[str]) -> Refused:
    """415."""
    return Refused(
        415,
        "UnsupportedMediaType",
        f"the body of the request was in an unknown format - accepted media types include: {', '.join(accepted)}",
    )


def invalid(kind: Kind, name: str, path: str, why: str) -> Refused:
    """422 for a field; `why` begins with the sort of fault, like 'Required value: '."""
    qualified = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    sort, _, text = why.partition(": ")
    causes = [{"reason": f"FieldValue{sort.title().replace(' ', '')}", "message": f"{sort}: {text}", "field": path}]
    return Refused(
        422,
        "Invalid",
        f'{qualified} "{name}" is invalid: {path}: {why}',
        {"name": name, "group": kind.group, "kind": kind.kind, "causes": causes},
    )


def invalid_options(options: str, path: str, why: str) -> Refused:
    """422 for the parameters of a request."""
    return Refused(
        422,
        "Invalid",
        f'{options}.meta.k8s.io "" is invalid: {path}: {why}',
        {"group": "meta.k8s.io", "kind": options, "causes": [{"message": why, "field": path}]},
    )


def patch_failed() -> Refused:
    """422 for a JSON patch whose test does not hold or whose path is not there."""
    return Refused(422, "Invalid", "the server rejected our request due to an error in our request", {})


def too_large_version(asked: int, current: int) -> Refused:
    """504 for a list that must not be older than what does not exist yet."""
    return Refused(
        504,
        "Timeout",
        f"Too large resource version: {asked}, current: {current}",
        {
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        },
    )


def _details(kind: Kind, name: str) -> dict[str, str]:
    details = {"name": name} if name else {}
    if kind.group:
        details["group"] = kind.group
    return {**details, "kind": kind.plural}
