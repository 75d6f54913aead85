"""What do `claimscope maintenance start`, `finish` and `list` write, read and say? They ask the API server themselves.

All that they write are annotations of one Node, which `kubectl annotate` can write as well.
"""

from __future__ import annotations

import re
from typing import Final

from claimscope.kube.api import MERGE_PATCH, ApiClient, ApiError, ApiReason, decode, discover
from claimscope.kube.objects import Node, RawList, ResourceSlice, unix_seconds
from claimscope.kube.slices import GROUP, VERSIONS, attributes_of
from claimscope.taints.apply import MANAGER, api_time, send
from claimscope.taints.conditions import MAINTENANCE_READY, present_on
from claimscope.taints.machines import plugin_gpus
from claimscope.taints.maintenance_facts import LATEST_WALL, request_of
from claimscope.taints.model import KEY_DOMAIN

REASON: Final = f"{KEY_DOMAIN}/maintenance"
BY: Final = f"{KEY_DOMAIN}/maintenance-by"
DEADLINE: Final = f"{KEY_DOMAIN}/maintenance-deadline"
UNVERIFIED: Final = f"{KEY_DOMAIN}/maintenance-unverified"
_GPU_PRESENT: Final = "nvidia.com/gpu.present"  # label by GPU Feature Discovery
_PAGE: Final = "500"
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class MaintenanceError(Exception):
    """It cannot be done: what was found, and what to do instead."""


def deadline_of(text: str, now_wall: float) -> str:
    """A deadline as it is written, from a span such as 2h or a time. Raises ValueError."""
    span = _SPAN.fullmatch(text)
    wall = unix_seconds(text) if span is None else now_wall + float(span[1]) * _SECONDS[span[2]]
    if wall is None:
        raise ValueError(f"`{text}` is neither a span such as 90m, 2h or 1d, nor a time such as 2026-11-21T18:00:00Z")
    if span is None and wall <= now_wall:
        raise ValueError(f"`{text}` has passed")
    if wall > LATEST_WALL:
        raise ValueError(f"`{text}` is after {api_time(LATEST_WALL)}")
    return api_time(wall)


async def start(api: ApiClient, node: str, *, reason: str, author: str, deadline: str | None) -> str:
    """Asks for the maintenance of a node. Raises MaintenanceError and ApiError."""
    found = await _node(api, node)
    request = request_of(found)
    if request is not None:
        by = f" by {request.by}" if request.by else ""
        raise MaintenanceError(
            f"maintenance of {node} is asked for already{by} ({request.reason}): finish that first, or change the "
            f"annotations {REASON} and {DEADLINE} of the node"
        )
    if await _without_gpus(api, found):
        raise MaintenanceError(
            f"no ResourceSlice of {node} and no capacity of it names a GPU; where it has some all the same, and its "
            f"driver is down, annotate it: kubectl annotate node {node} {REASON}=..."
        )
    await _annotate(api, node, {REASON: reason, BY: author, DEADLINE: deadline, UNVERIFIED: None})
    until = f" until {deadline}" if deadline is not None else ""
    return (
        f"maintenance of {node} is asked for{until}; wait until it can go offline:\n"
        f"kubectl wait --for=condition={MAINTENANCE_READY} --timeout=-1s node/{node}"
    )


async def finish(api: ApiClient, node: str, *, author: str, verified: bool, now_wall: float) -> str:
    """Gives a node back. Raises MaintenanceError and ApiError."""
    found = await _node(api, node)
    under = MAINTENANCE_READY in present_on(found)
    if request_of(found) is None and not under:
        raise MaintenanceError(f"{node} is not under maintenance; `claimscope maintenance list` shows which nodes are")
    unverified = None if verified else f"{author} {api_time(now_wall)}"
    await _annotate(api, node, {REASON: None, BY: None, DEADLINE: None, UNVERIFIED: unverified})
    if verified:
        return f"the maintenance of {node} is over; its taints go once it is verified"
    return f"the maintenance of {node} is over; its taints go without verification"


async def listed(api: ApiClient) -> str:
    """Every node under maintenance, for people. Raises ApiError."""
    rows = [("NODE", "STATE", "SINCE", "BY", "DEADLINE", "MESSAGE")]
    more: dict[str, str] = {}
    while True:
        page = decode(await api.get("/api/v1/nodes", {"limit": _PAGE, **more}), RawList, "/api/v1/nodes")
        for item in page.items or ():
            row = _row(decode(item, Node, "/api/v1/nodes"))
            rows += [row] if row is not None else []
        if not page.metadata.continue_:
            break
        more = {"continue": page.metadata.continue_}
    if len(rows) == 1:
        return "no node is under maintenance"
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(node: Node) -> tuple[str, str, str, str, str, str] | None:
    request, condition = request_of(node), present_on(node).get(MAINTENANCE_READY)
    if request is None and condition is None:
        return None
    by = request.by if request is not None else ""
    deadline = api_time(request.deadline_wall) if request is not None and request.deadline_wall is not None else ""
    if condition is None:
        reason = request.reason if request is not None else ""
        return (node.metadata.name, "NotSeenYet", "-", by or "-", deadline or "-", f"no controller yet; {reason}")
    since = condition.last_transition_time or "-"
    return (node.metadata.name, condition.reason, since, by or "-", deadline or "-", condition.message)


async def _node(api: ApiClient, name: str) -> Node:
    path = f"/api/v1/nodes/{name}"
    try:
        return decode(await api.get(path), Node, path)
    except ApiError as error:
        if error.reason is ApiReason.NOT_FOUND:
            raise MaintenanceError(f"there is no node `{name}`; `kubectl get nodes` shows them") from error
        raise


async def _without_gpus(api: ApiClient, node: Node) -> bool:
    """Whether nothing tells of a GPU; what may not be read tells nothing either way."""
    if plugin_gpus(node)[0] or (node.metadata.labels or {}).get(_GPU_PRESENT) == "true":
        return False
    try:
        path = f"/apis/{GROUP}/{await discover(api, GROUP, VERSIONS, 'resourceslices')}/resourceslices"
        body = await api.get(path, {"fieldSelector": f"spec.nodeName={node.metadata.name}"})
    except ApiError as error:
        if error.reason in (ApiReason.NOT_FOUND, ApiReason.FORBIDDEN):
            return error.reason is ApiReason.NOT_FOUND
        raise
    slices = [decode(item, ResourceSlice, path) for item in decode(body, RawList, path).items or ()]
    devices = [(each.spec.driver, device) for each in slices for device in each.spec.devices or ()]
    return not any(attributes_of(*device).keys() & {"uuid", "parentUUID"} for device in devices)


async def _annotate(api: ApiClient, node: str, annotations: dict[str, str | None]) -> None:
    body = {"metadata": {"annotations": annotations}}
    await send(api, "PATCH", f"/api/v1/nodes/{node}", body, MERGE_PATCH, {"fieldManager": MANAGER})
