"""Who asks the simulated API server, and what may they do? Answers the review APIs and refuses with 403."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from claimscope.sim.api.errors import Refused, bad_request, forbidden, unauthorized
from claimscope.sim.api.store import Kind

REVIEWS: Final = {  # (group, version, plural) -> kind
    ("authentication.k8s.io", "v1", "tokenreviews"): "TokenReview",
    ("authentication.k8s.io", "v1", "selfsubjectreviews"): "SelfSubjectReview",
    ("authorization.k8s.io", "v1", "subjectaccessreviews"): "SubjectAccessReview",
    ("authorization.k8s.io", "v1", "selfsubjectaccessreviews"): "SelfSubjectAccessReview",
}
API_AUDIENCE: Final = "https://kubernetes.default.svc.cluster.local"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody with a token. `denied` are (verb, group, resource); "*" stands for any."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ("system:authenticated",)
    denied: frozenset[tuple[str, str, str]] = frozenset()
    audiences: tuple[str, ...] = (API_AUDIENCE,)  # that the token is meant for
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What somebody wants to do: with a resource, or with a path that is none."""

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""


Rule = Callable[[User, Asked], bool]
ANONYMOUS: Final = User(name="system:anonymous", groups=("system:unauthenticated",))


class AccessTable:
    """Tokens and rights. Without tokens everybody may do everything, and any token is a user of that name."""

    def __init__(self, users: Mapping[str, User], rule: Rule | None) -> None:
        self.users = dict(users)  # by token
        self._rule = rule

    def user(self, authorization: str) -> User:
        """Who sends a request. Raises Refused (401)."""
        token = authorization.removeprefix("Bearer ") if authorization.startswith("Bearer ") else ""
        if not self.users:
            return User(name=token) if token else ANONYMOUS
        if token not in self.users or API_AUDIENCE not in self.users[token].audiences:
            raise unauthorized()
        return self.users[token]

    def allowed(self, user: User, asked: Asked) -> bool:
        """Whether `user` may do it."""
        resource = f"{asked.resource}/{asked.subresource}" if asked.subresource else asked.resource
        wanted = (asked.verb, asked.group, resource)
        if any(all(has in ("*", want) for has, want in zip(denied, wanted, strict=True)) for denied in user.denied):
            return False
        return self._rule is None or self._rule(user, asked)

    def check(self, user: User, kind: Kind, asked: Asked) -> None:
        """Raises Refused (403) where `user` may not."""
        if not self.allowed(user, asked):
            raise forbidden(
                kind, user.name, asked.verb, namespace=asked.namespace, name=asked.name, subresource=asked.subresource
            )

    def review(self, plural: str, asker: User, body: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever was sent
        """The status of a review. Raises Refused."""
        if plural == "selfsubjectreviews":
            return {"userInfo": _info(asker)}
        if not plural.startswith("self"):  # those of oneself are everybody's, by system:basic-user
            self._check_review(asker, plural)
        spec = body.get("spec") if isinstance(body, dict) else None
        if not isinstance(spec, dict):
            raise bad_request("the body of the request is not a review with a spec")
        if plural == "tokenreviews":
            return self._token(str(spec.get("token") or ""), spec.get("audiences") or [])
        user = asker
        if plural == "subjectaccessreviews":
            name = str(spec.get("user") or "")
            user = next((known for known in self.users.values() if known.name == name), User(name=name))
        if self.allowed(user, _asked(spec)):
            return {"allowed": True}
        return {"allowed": False}

    def _check_review(self, asker: User, plural: str) -> None:
        group = next(key[0] for key in REVIEWS if key[2] == plural)
        if not self.allowed(asker, Asked(verb="create", group=group, resource=plural)):
            raise Refused(
                403, "Forbidden",
                f'{plural}.{group} is forbidden: User "{asker.name}" cannot create resource "{plural}" in API group '
                f'"{group}" at the cluster scope',
                {"group": group, "kind": plural},
            )  # fmt: skip

    def _token(self, token: str, asked: Sequence[str]) -> dict[str, Any]:
        user = self.users.get(token) if self.users else User(name=token) if token else None
        if user is None:
            return {"user": {}, "error": "[invalid bearer token, token lookup failed]"}
        meant = [audience for audience in user.audiences if audience in (asked or [API_AUDIENCE])]
        if not meant:  # k8s.io/kubernetes/pkg/serviceaccount/jwt.go
            wanted, has = " ".join(asked or [API_AUDIENCE]), " ".join(user.audiences)
            why = f"token audiences [{has}] is invalid for the target audiences [{wanted}]"
            return {"user": {}, "error": f"[invalid bearer token, {why}]"}
        return {"authenticated": True, "user": _info(user), "audiences": meant}


def _info(user: User) -> dict[str, Any]:
    found: dict[str, Any] = {"username": user.name, "groups": list(user.groups)}
    if user.extra:
        found["extra"] = {name: list(values) for name, values in user.extra.items()}
    return {**found, "uid": user.uid} if user.uid else found


def _asked(spec: Mapping[str, Any]) -> Asked:
    resource, other = spec.get("resourceAttributes") or {}, spec.get("nonResourceAttributes") or {}
    return Asked(
        verb=resource.get("verb") or other.get("verb") or "",
        group=resource.get("group") or "",
        resource=resource.get("resource") or "",
        subresource=resource.get("subresource") or "",
        namespace=resource.get("namespace") or "",
        name=resource.get("name") or "",
        path=other.get("path") or "",
    )
