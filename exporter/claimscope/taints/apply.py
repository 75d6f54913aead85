"""How does a fence become a DeviceTaintRule and back, and how is it written without overwriting anybody?

Every update and deletion names the version that it was decided on: a rule that somebody changed meanwhile is refused
by the server with 409, and looked at again. Two leaders therefore cannot undo each other's work, and what a person
writes stands. There is no write on more than one object.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from claimscope.kube.api import JSON_PATCH, ApiClient, ApiError, ApiReason, decode
from claimscope.kube.objects import RESOURCE_GROUP, DeviceTaintRule
from claimscope.taints import fences
from claimscope.taints.guard import RULES
from claimscope.taints.model import KEY_DOMAIN, Action, Do, Fence

MANAGER: Final = "claimscope"  # fieldManager of every write
WRITE_SECONDS: Final = 5.0  # shorter than what a lease lasts after its holder has stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A rule of ours as the API server has it."""

    fence: Fence
    uid: str
    resource_version: str
    honoured: bool  # the cluster has said in a status condition what the rule does


def standing_of(rule: DeviceTaintRule) -> Standing | None:
    """A rule of ours as it was read; None for everybody else's."""
    fence = fences.standing(rule)
    if fence is None:
        return None
    return Standing(
        fence=fence, uid=rule.metadata.uid, resource_version=rule.metadata.resource_version,
        honoured=bool(rule.status.conditions),
    )


def _owners(fence: Fence) -> list[dict[str, str]]:
    """With the Node goes the rule; without its UID the garbage collector would delete the rule at once."""
    if not fence.node or not fence.node_uid:
        return []
    return [{"apiVersion": "v1", "kind": "Node", "name": fence.node, "uid": fence.node_uid}]


def rule_object(fence: Fence, version: str) -> dict[str, Any]:
    """The DeviceTaintRule of a fence, whole."""
    owners = _owners(fence)
    return {
        "apiVersion": f"{RESOURCE_GROUP}/{version}",
        "kind": "DeviceTaintRule",
        "metadata": {
            "name": fence.name,
            "labels": fences.labels(fence),
            "annotations": dict(fence.annotations),
            **({"ownerReferences": owners} if owners else {}),
        },
        "spec": {
            "deviceSelector": fence.device._asdict(),
            "taint": {"key": fence.key, "value": fence.value, "effect": fence.effect},
        },
    }


def update_patch(fence: Fence, standing: Standing) -> list[dict[str, Any]]:
    """A JSON patch that holds only while the rule is as it was seen; what others put beside our fields stays."""
    taint, device = "/spec/taint", "/spec/deviceSelector"
    patch: list[dict[str, Any]] = [
        {"op": "test", "path": "/metadata/resourceVersion", "value": standing.resource_version},
        {"op": "test", "path": "/metadata/uid", "value": standing.uid},
        {"op": "replace", "path": device, "value": fence.device._asdict()},
        *({"op": "add", "path": f"{taint}/{name}", "value": value}
          for name, value in (("key", fence.key), ("value", fence.value), ("effect", fence.effect))),
    ]
    if fence.node_uid != standing.fence.node_uid:  # the Node could not be read when the rule was made
        patch.append({"op": "add", "path": "/metadata/ownerReferences", "value": _owners(fence)})
    ours = {name for name in standing.fence.annotations if name.startswith(f"{KEY_DOMAIN}/")}
    gone = ours - fence.annotations.keys()
    patch += ({"op": "remove", "path": f"/metadata/annotations/{_pointer(name)}"} for name in sorted(gone))
    for where, wanted in (("annotations", fence.annotations), ("labels", fences.labels(fence))):
        patch += (
            {"op": "add", "path": f"/metadata/{where}/{_pointer(name)}", "value": text}
            for name, text in wanted.items()
        )
    return patch


def _pointer(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


class RuleWriter:
    """Writes single rules in the API version that is served. Every call raises ApiError."""

    def __init__(self, api: ApiClient, version: str) -> None:
        self._api = api
        self.version = version
        self._all = f"/apis/{RESOURCE_GROUP}/{version}/{RULES}"

    async def try_out(self, fence: Fence) -> None:
        """Lets the server say whether it would take such a rule, storing none. That it is there already is a yes."""
        try:
            await self._send("POST", self._all, rule_object(fence, self.version), dryRun="All")
        except ApiError as error:
            if error.reason is not ApiReason.CONFLICT:
                raise

    async def write(self, action: Action, standing: Standing | None) -> DeviceTaintRule | None:
        """Does one action; answers the rule as it is then, None where it is gone."""
        fence = action.fence
        if action.do is Do.CREATE:
            return self._read(await self._send("POST", self._all, rule_object(fence, self.version)))
        if standing is None:
            raise ApiError(ApiReason.NOT_FOUND, f"the DeviceTaintRule {fence.name} is gone; it is decided anew")
        if action.do is Do.DELETE:
            await self.delete(fence.name, standing.uid, standing.resource_version)
            return None
        path = f"{self._all}/{fence.name}"
        try:
            body = await self._send("PATCH", path, update_patch(fence, standing), JSON_PATCH)
        except ApiError as error:
            # A test that does not hold is 422, and means that somebody wrote the rule since; so does 409.
            if error.reason is ApiReason.INVALID and await self._changed(path, standing):
                raise ApiError(ApiReason.CONFLICT, f"somebody changed {fence.name}: it is decided anew") from error
            raise
        return self._read(body)

    async def _changed(self, path: str, standing: Standing) -> bool:
        found = decode(await self._api.get(path), DeviceTaintRule, path).metadata
        return (found.uid, found.resource_version) != (standing.uid, standing.resource_version)

    async def read(self, name: str) -> DeviceTaintRule | None:
        """A rule as it is now; None where there is none."""
        try:
            return self._read(await self._api.get(f"{self._all}/{name}"))
        except ApiError as error:
            if error.reason is ApiReason.NOT_FOUND:
                return None
            raise

    async def delete(self, name: str, uid: str, resource_version: str) -> None:
        """Deletes the very rule that was seen; that it is gone already is as good."""
        conditions = {"uid": uid, "resourceVersion": resource_version}
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": conditions}
        try:
            await self._send("DELETE", f"{self._all}/{name}", options)
        except ApiError as error:
            if error.reason is not ApiReason.NOT_FOUND:
                raise

    async def _send(
        self, method: str, path: str, body: object, content_type: str = "application/json", **params: str
    ) -> bytes:
        if method != "DELETE":
            params["fieldManager"] = MANAGER
        return await send(self._api, method, path, body, content_type, params)

    def _read(self, body: bytes) -> DeviceTaintRule:
        return decode(body, DeviceTaintRule, self._all)


async def send(
    api: ApiClient, method: str, path: str, body: object, content_type: str, params: Mapping[str, str]
) -> bytes:
    """One write that ends in time, whatever the network does. Raises ApiError."""
    try:
        async with asyncio.timeout(WRITE_SECONDS):
            return await api.send(
                method, path, body=msgspec.json.encode(body), content_type=content_type, params=params
            )
    except TimeoutError as error:
        raise ApiError(ApiReason.TIMEOUT, f"{method} {path}: no answer in {WRITE_SECONDS:.0f} s") from error


def api_time(wall: float) -> str:
    """Unix seconds as a metav1.Time."""
    return f"{datetime.fromtimestamp(int(wall), UTC):%Y-%m-%dT%H:%M:%SZ}"
