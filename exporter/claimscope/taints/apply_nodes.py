"""How are taints of a Node written without losing anybody else's?

spec.taints is replaced as a whole by whoever writes it (listType=atomic in k8s.io/api core/v1 types.go): neither a
merge patch nor server-side apply can put an entry beside others'. So the Node is read, the list is changed as it was
read, fields that are not known here included, and one JSON patch writes the list and the record of what is ours in it.
It holds only while the Node is in the version that was read; else the server refuses it, and it is decided anew.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from claimscope.kube.api import JSON_PATCH, ApiClient, ApiError, ApiReason, decode
from claimscope.kube.objects import Versioned
from claimscope.taints.apply import MANAGER, send
from claimscope.taints.machines import NOTE, recorded
from claimscope.taints.model import NodeTaint

_RECORD: Final = "/metadata/annotations/" + NOTE.replace("/", "~1")


async def write(api: ApiClient, node: str, uid: str, after: tuple[NodeTaint, ...]) -> bool:
    """Leaves exactly these taints of ours on a Node; False where they were there already. Raises ApiError."""
    path = f"/api/v1/nodes/{node}"
    found: dict[str, Any] = msgspec.json.decode(await api.get(path))
    meta = found["metadata"]
    if uid and meta.get("uid") != uid:
        raise ApiError(ApiReason.CONFLICT, f"node {node} was made anew: it is decided anew")
    changes = patch_of(found, after)
    if not changes:
        return False
    tests = [
        {"op": "test", "path": f"/metadata/{name}", "value": meta.get(name)} for name in ("uid", "resourceVersion")
    ]
    try:
        await send(api, "PATCH", path, [*tests, *changes], JSON_PATCH, {"fieldManager": MANAGER})
    except ApiError as error:
        # A test that does not hold is 422, and means that somebody wrote the Node since; so does 409.
        if error.reason is ApiReason.INVALID:
            now = decode(await api.get(path), Versioned, path).metadata
            if now.resource_version != meta.get("resourceVersion"):
                raise ApiError(ApiReason.CONFLICT, f"somebody changed node {node}: it is decided anew") from error
        raise
    return True


def patch_of(node: dict[str, Any], after: tuple[NodeTaint, ...]) -> list[dict[str, Any]]:
    """What has to be changed on a Node as the API server has it; nothing where it is as it should be."""
    present: list[dict[str, Any]] = node.get("spec", {}).get("taints") or []
    notes: dict[str, str] | None = node["metadata"].get("annotations")
    note = (notes or {}).get(NOTE)
    ours = recorded(note)
    theirs = [entry for entry in present if _read(entry) not in ours]
    taken = {(entry.get("key"), entry.get("effect")) for entry in theirs}  # the API takes each of them once
    wanted = [taint for taint in after if (taint.key, taint.effect) not in taken]
    stays = [entry for entry in present if entry in theirs or _read(entry) in wanted]
    new = [taint for taint in wanted if all(_read(entry) != taint for entry in stays)]
    taints = [*stays, *({"key": each.key, "value": each.value, "effect": each.effect} for each in new)]
    changes: list[dict[str, Any]] = []
    if taints != present:
        changes.append(
            {"op": "add", "path": "/spec/taints", "value": taints} if taints
            else {"op": "remove", "path": "/spec/taints"}
        )  # fmt: skip
    text = ",".join(map(str, wanted)) or None
    if text is not None and text != note:
        if notes is None:
            changes.append({"op": "add", "path": "/metadata/annotations", "value": {}})
        changes.append({"op": "add", "path": _RECORD, "value": text})
    elif text is None and note is not None:
        changes.append({"op": "remove", "path": _RECORD})
    return changes


def _read(entry: dict[str, Any]) -> NodeTaint:
    key, value, effect = (str(entry.get(name) or "") for name in ("key", "value", "effect"))
    return NodeTaint(key=key, value=value, effect=effect)
