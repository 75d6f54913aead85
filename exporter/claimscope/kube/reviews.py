"""Who sends a request, and may they do what they ask? The API server's answers: TokenReview, SubjectAccessReview."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from claimscope.kube.api import ApiClient, ApiError, decode

TOKEN_REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"  # noqa: S105 - a path
ACCESS_REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
ANONYMOUS: Final = "system:anonymous"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whom a token belongs to, as the API server says."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """What somebody wants to do: with a path of a web server, or with objects."""

    verb: str
    path: str = ""
    group: str = ""
    resource: str = ""
    namespace: str = ""  # "" is every namespace

    def attributes(self) -> dict[str, Any]:
        """The part of a SubjectAccessReview's spec that says it."""
        if self.path:
            return {"nonResourceAttributes": {"path": self.path, "verb": self.verb}}
        asked = {"verb": self.verb, "group": self.group, "resource": self.resource, "namespace": self.namespace}
        return {"resourceAttributes": {name: value for name, value in asked.items() if value}}


class _User(msgspec.Struct, frozen=True):
    username: str = ""
    uid: str = ""
    groups: tuple[str, ...] | None = None
    extra: dict[str, tuple[str, ...]] | None = None


class _TokenStatus(msgspec.Struct, frozen=True):
    authenticated: bool = False
    user: _User = _User()
    audiences: tuple[str, ...] | None = None


class _TokenReview(msgspec.Struct, frozen=True):
    status: _TokenStatus = _TokenStatus()


class _AccessStatus(msgspec.Struct, frozen=True):
    allowed: bool = False
    denied: bool = False


class _AccessReview(msgspec.Struct, frozen=True):
    status: _AccessStatus = _AccessStatus()


async def review_token(api: ApiClient, token: str, audiences: Sequence[str] = ()) -> Caller | None:
    """Whom a token belongs to; None for one that is not accepted, or not meant for `audiences`. Raises ApiError.

    No error names the token.
    """
    spec: dict[str, Any] = {"token": token, **({"audiences": list(audiences)} if audiences else {})}
    try:
        body = await api.send("POST", TOKEN_REVIEWS, body=_review("authentication", "TokenReview", spec))
    except ApiError as error:
        # Between here and the API server something may answer with what it was sent.
        text = str(error).replace(token, "[token]")
        raise ApiError(error.reason, text, error.retry_after_seconds) from None
    try:
        status = decode(body, _TokenReview, TOKEN_REVIEWS).status
    except ApiError as error:
        raise ApiError(error.reason, str(error).replace(token, "[token]")) from None
    user = status.user
    # An authenticator that knows no audiences leaves them out; such a token is for the API server (TokenReviewStatus of
    # k8s.io/api/authentication/v1).
    meant = not audiences or not set(audiences).isdisjoint(status.audiences or ())
    if not status.authenticated or not meant or user.username in ("", ANONYMOUS):
        return None
    return Caller(
        name=user.username, uid=user.uid, groups=user.groups or (), extra=tuple(sorted((user.extra or {}).items())),
    )


async def review_access(api: ApiClient, caller: Caller, deed: Deed) -> bool:
    """Whether somebody may do something. Raises ApiError."""
    spec = {
        "user": caller.name, "uid": caller.uid, "groups": list(caller.groups),
        "extra": {name: list(values) for name, values in caller.extra},
    }
    given = {name: value for name, value in spec.items() if value}
    body = _review("authorization", "SubjectAccessReview", {**given, **deed.attributes()})
    status = decode(await api.send("POST", ACCESS_REVIEWS, body=body), _AccessReview, ACCESS_REVIEWS).status
    return status.allowed and not status.denied


def _review(group: str, kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": f"{group}.k8s.io/v1", "kind": kind, "spec": spec}
