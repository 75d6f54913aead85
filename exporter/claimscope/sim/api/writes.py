"""What does a create, update, patch or delete do to the stored objects, and when is it refused?

Follows the generic registry of the API server (k8s.io/apiserver/pkg/registry/generic/registry/store.go).
"""

from __future__ import annotations

import copy
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from claimscope.sim.api import errors as apierrors
from claimscope.sim.api import patch as apipatch
from claimscope.sim.api.store import Key, Kind, Store, Stored, stored_of

Json = dict[str, Any]

_NAME_LETTERS: Final = "bcdfghjklmnpqrstvwxz2456789"  # k8s.io/apimachinery/pkg/util/rand
_UIDS: Final = uuid.UUID("5f3c8a52-6a0e-4b0f-9d0b-0a0d7c1e5b11")
_SYSTEM: Final = (  # metadata that a writer cannot change
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "name",
    "namespace",
    "generateName",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a request is about, and on whose behalf it is made."""

    kind: Kind
    namespace: str = ""
    name: str = ""
    subresource: str = ""  # "", "status" or "scale"
    manager: str = "unknown"
    dry_run: bool = False
    force: bool = False  # take over others' fields in a server-side apply

    @property
    def key(self) -> Key:
        """Where the object is kept."""
        return self.namespace, self.name


Admit = Callable[[Target, str, Json | None, Json | None], None]
"""Told "CREATE", "UPDATE" or "DELETE", the object as it would be and as it is; raises Refused."""


class Writes:
    """The writing half of the API."""

    def __init__(self, store: Store, wall: Callable[[], float], admit: Admit | None = None) -> None:
        self._store = store
        self._wall = wall
        self._admit: Admit = admit or (lambda *_: None)
        self._suffixes = random.Random(0)  # noqa: S311 - names, and the same ones in each run

    def create(self, target: Target, body: Json) -> Stored:
        """POST on a collection."""
        kind = target.kind
        content = self._received(target, body)
        meta = content["metadata"]
        if meta.get("resourceVersion"):
            raise apierrors.Refused(500, "", "resourceVersion should not be set on objects to be created")
        if not meta.get("name"):
            prefix = meta.get("generateName")
            if not prefix:
                raise apierrors.invalid(kind, "", "metadata.name", "Required value: name or generateName is required")
            meta["name"] = prefix + "".join(self._suffixes.choices(_NAME_LETTERS, k=5))
        if (target.namespace, meta["name"]) in self._store.table(kind).objects:
            raise apierrors.already_exists(kind, meta["name"])
        if kind.status and not kind.status_on_create:
            content.pop("status", None)
        return self._make(target, content)

    def _make(self, target: Target, content: Json, managers: list[Json] | None = None) -> Stored:
        kind, meta = target.kind, content["metadata"]
        key = (target.namespace, meta["name"])
        made = {
            "name": meta["name"],
            **({"generateName": meta["generateName"]} if meta.get("generateName") else {}),
            **({"namespace": target.namespace} if kind.namespaced else {}),
            "uid": str(uuid.uuid5(_UIDS, "/".join((kind.plural, *key, str(self._store.next_version()))))),
            **({"generation": 1} if kind.generation else {}),
            "creationTimestamp": self._time(),
        }
        rest = {name: value for name, value in meta.items() if name not in (*_SYSTEM, "resourceVersion")}
        content = {**content, "metadata": {**made, **rest}}
        if managers is None:
            managers = apipatch.updated_managers(
                None, content, manager=target.manager, api_version=kind.api_version, subresource="", time=self._time()
            )
        content["metadata"]["managedFields"] = managers
        self._admit(target, "CREATE", content, None)
        return self._commit(target, content)

    def replace(self, target: Target, body: Json) -> tuple[Stored, bool]:
        """PUT on an object or its status: what is stored, and whether it was made by it."""
        content = self._received(target, body)
        if content["metadata"].get("name", target.name) != target.name:
            raise apierrors.bad_request(
                f"the name of the object ({content['metadata']['name']}) does not match the name on the URL "
                f"({target.name})"
            )
        before = self._store.table(target.kind).objects.get(target.key)
        if before is None:
            if not target.kind.put_creates or target.subresource:
                raise apierrors.not_found(target.kind, target.name)
            return self._make(target, {**content, "metadata": {**content["metadata"], "name": target.name}}), True
        if not content["metadata"].get("resourceVersion") and not target.kind.unconditional:
            raise apierrors.invalid(
                target.kind,
                target.name,
                "metadata.resourceVersion",
                "Invalid value: 0: must be specified for an update",
            )
        return self._update(target, before, content), False

    def patch(self, target: Target, content_type: str, body: Any) -> tuple[Stored, bool]:  # noqa: ANN401 - any JSON
        """PATCH on an object or its status: what is stored, and whether it was made by it."""
        before = self._store.table(target.kind).objects.get(target.key)
        if content_type == apierrors.APPLY_PATCH:
            return self._apply(target, before, body)
        if before is None:
            raise apierrors.not_found(target.kind, target.name)
        old = _decoded(before)
        if content_type == apierrors.JSON_PATCH:
            content = apipatch.json_patched({**_typed(target.kind), **old}, body)
        elif isinstance(body, dict):
            content = apipatch.merge_patched(old, body)
        else:
            raise apierrors.bad_request("json: cannot unmarshal array into Go value of type map[string]interface {}")
        return self._update(target, before, self._received(target, content)), False

    def _apply(self, target: Target, before: Stored | None, body: Any) -> tuple[Stored, bool]:  # noqa: ANN401
        if target.manager == "":
            raise apierrors.invalid_options(
                "PatchOptions", "fieldManager", "Required value: is required for apply patch"
            )
        if not isinstance(body, dict) or not body.get("apiVersion") or not body.get("kind"):
            raise apierrors.bad_request("error decoding YAML: Object 'Kind' or 'apiVersion' is missing")
        content = self._received(target, body)
        if content["metadata"].get("managedFields"):
            raise apierrors.bad_request("metadata.managedFields must be nil")
        if content["metadata"].setdefault("name", target.name) != target.name:
            raise apierrors.bad_request(
                f"the name of the object ({content['metadata']['name']}) does not match the name on the URL "
                f"({target.name})"
            )
        asked = content["metadata"].pop("resourceVersion", None)
        if target.kind.status:
            content = _only(content, status=bool(target.subresource))
        old = _decoded(before) if before else None
        result = apipatch.applied(
            old,
            content,
            manager=target.manager,
            api_version=target.kind.api_version,
            force=target.force,
            time=self._time(),
            subresource=target.subresource,
        )
        if before is None:
            if target.subresource:
                raise apierrors.not_found(target.kind, target.name)
            return self._make(target, result, result["metadata"].pop("managedFields")), True
        if asked is not None:
            result["metadata"]["resourceVersion"] = asked
        return self._update(target, before, result, managed=True), False

    def _update(self, target: Target, before: Stored, content: Json, *, managed: bool = False) -> Stored:
        kind, old = target.kind, _decoded(before)
        had, meta = old["metadata"], dict(content["metadata"])
        asked = meta.pop("resourceVersion", None)
        if asked not in (None, "", "0", had["resourceVersion"]):
            raise apierrors.conflict(kind, target.name)
        if meta.get("uid") not in (None, "", had.get("uid")):
            raise apierrors.conflict(
                kind,
                target.name,
                f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {had.get('uid', '')}",
            )
        content = {name: value for name, value in content.items() if name not in ("kind", "apiVersion")}
        if target.subresource:
            replicas = {"replicas": (content.get("spec") or {}).get("replicas")}
            if target.subresource == "scale":
                content = {**old, "spec": {**(old.get("spec") or {}), **replicas}}
            else:
                content = {**old, **({"status": content["status"]} if "status" in content else {})}
            meta = {**had, **({"managedFields": meta["managedFields"]} if managed else {})}
        elif kind.status:
            content = {**content, "status": old["status"]} if "status" in old else _without(content, "status")
        meta = {**_without(meta, *_SYSTEM), **{name: had[name] for name in _SYSTEM if name in had}}
        content["metadata"] = meta
        if kind.immutable and content.get("spec") != old.get("spec"):
            shown = msgspec.json.encode(content.get("spec")).decode()
            raise apierrors.invalid(kind, target.name, "spec", f"Invalid value: {shown}: field is immutable")
        self._admit(target, "UPDATE", content, old)
        if _substance(content) == _substance(old):
            return before  # the real server does not write either
        if kind.generation and _without(content, "metadata", "status") != _without(old, "metadata", "status"):
            meta["generation"] = had.get("generation", 0) + 1
        if not managed:
            meta["managedFields"] = apipatch.updated_managers(
                old,
                content,
                manager=target.manager,
                api_version=kind.api_version,
                subresource=target.subresource,
                time=self._time(),
            )
        if meta.get("deletionTimestamp") and not meta.get("finalizers") and had.get("finalizers"):
            return self._remove(target, content)
        return self._commit(target, content)

    def delete(self, target: Target, options: Mapping[str, Any]) -> tuple[Stored, bool]:
        """DELETE on an object: its last or present state, and whether it is gone."""
        before = self._store.table(target.kind).objects.get(target.key)
        if before is None:
            raise apierrors.not_found(target.kind, target.name)
        content = _decoded(before)
        meta = content["metadata"]
        wanted = options.get("preconditions") or {}
        for name, field, label in (("uid", "uid", "UID"), ("resourceVersion", "resourceVersion", "ResourceVersion")):
            if wanted.get(name) not in (None, meta.get(field, "")):
                raise apierrors.conflict(
                    target.kind,
                    target.name,
                    f"Precondition failed: {label} in precondition: {wanted[name]}, {label} in object meta: "
                    f"{meta.get(field, '')}",
                )
        self._admit(target, "DELETE", None, content)
        grace = options.get("gracePeriodSeconds")
        if grace is None:
            grace = target.kind.grace_seconds if (content.get("spec") or {}).get("nodeName") else 0
        if not meta.get("finalizers") and not grace:
            return self._remove(target, content), True
        if meta.get("deletionTimestamp") and grace >= meta.get("deletionGracePeriodSeconds", 0):
            return before, False
        meta.setdefault("deletionTimestamp", self._time(grace))
        meta["deletionGracePeriodSeconds"] = grace
        if target.kind.generation:
            meta["generation"] = meta.get("generation", 0) + 1
        return self._commit(target, content), False

    def _received(self, target: Target, body: Any) -> Json:  # noqa: ANN401 - whatever was sent
        kind = target.kind
        if not isinstance(body, dict) or not isinstance(body.get("metadata", {}), dict):
            raise apierrors.bad_request("the body of the request is not an object with metadata")
        said = body.get("apiVersion", kind.api_version)
        if said != kind.api_version:
            raise apierrors.bad_request(
                f"the API version in the data ({said}) does not match the expected API version ({kind.api_version})"
            )
        if body.get("kind", kind.kind) != kind.kind:
            raise apierrors.bad_request(
                f'no kind "{body["kind"]}" is registered for version "{kind.api_version}" in scheme'
            )
        meta = dict(body.get("metadata") or {})
        if kind.namespaced and meta.setdefault("namespace", target.namespace) != target.namespace:
            raise apierrors.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
        return {**{name: value for name, value in body.items() if name not in ("kind", "apiVersion")}, "metadata": meta}

    def _commit(self, target: Target, content: Json) -> Stored:
        if target.dry_run:
            return stored_of(target.kind, content, self._store.version)
        return self._store.write(target.kind, content)

    def _remove(self, target: Target, content: Json) -> Stored:
        if target.dry_run:
            return stored_of(target.kind, content, self._store.version)
        return self._store.remove(target.kind, target.key, content)

    def _time(self, later_seconds: float = 0.0) -> str:
        return datetime.fromtimestamp(int(self._wall() + later_seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _typed(kind: Kind) -> Json:
    return {"kind": kind.kind, "apiVersion": kind.api_version}


def _decoded(stored: Stored) -> Json:
    content: Json = msgspec.json.decode(stored.tail)
    return content


def _without(content: Mapping[str, Any], *names: str) -> Json:
    return {name: value for name, value in content.items() if name not in names}


def _only(content: Json, *, status: bool) -> Json:
    if not status:
        return _without(content, "status")
    meta = {name: value for name, value in content["metadata"].items() if name in ("name", "namespace")}
    return {"metadata": meta, **({"status": content["status"]} if "status" in content else {})}


def _substance(content: Json) -> Json:
    """An object without what the server itself writes at each update; managers count, their times do not."""
    managers = [_without(entry, "time") for entry in content["metadata"].get("managedFields") or ()]
    meta = _without(content["metadata"], "resourceVersion", "managedFields", "generation")
    return copy.copy({**content, "metadata": {**meta, "managers": managers}})
