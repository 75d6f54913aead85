"""What does the simulated API server say it serves?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from claimscope.sim.api.access import REVIEWS
from claimscope.sim.api.errors import no_resource
from claimscope.sim.api.store import Kind

_VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


def answer(parts: Sequence[str], kinds: Sequence[Kind], git_version: str) -> dict[str, Any] | None:
    """The document for a path of discovery, None for other paths. Raises Refused (404) for what is not served."""
    if list(parts) == ["version"]:
        return _version(git_version)
    if list(parts) == ["api"]:
        return {
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": "127.0.0.1:6443"}],
        }
    served = _served(kinds)
    if list(parts) == ["apis"]:
        groups = [_group(group, versions) for group, versions in served.items() if group]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if len(parts) == 2 and parts[0] == "apis":
        if parts[1] not in served:
            raise no_resource()
        return {"kind": "APIGroup", "apiVersion": "v1", **_group(parts[1], served[parts[1]])}
    group, version = ("", parts[1]) if len(parts) == 2 and parts[0] == "api" else (*parts[1:], "", "")[:2]
    if not (len(parts) == 3 and parts[0] == "apis") and not (len(parts) == 2 and parts[0] == "api"):
        return None
    if version not in served.get(group, ()):
        raise no_resource()
    resources: list[dict[str, Any]] = []
    for kind in kinds:
        if (kind.group, kind.version) == (group, version):
            resources += _resources(kind)
    resources += [
        {"name": plural, "singularName": name.lower(), "namespaced": False, "kind": name, "verbs": ["create"]}
        for (review_group, review_version, plural), name in REVIEWS.items()
        if (review_group, review_version) == (group, version)
    ]
    group_version = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def _served(kinds: Sequence[Kind]) -> dict[str, list[str]]:
    served: dict[str, list[str]] = {}
    for group, version in [(kind.group, kind.version) for kind in kinds] + [key[:2] for key in REVIEWS]:
        versions = served.setdefault(group, [])
        if version not in versions:
            versions.append(version)
    return served


def _group(group: str, versions: Sequence[str]) -> dict[str, Any]:
    listed = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"name": group, "versions": listed, "preferredVersion": listed[0]}


def _resources(kind: Kind) -> list[dict[str, Any]]:
    shared = {"singularName": kind.kind.lower(), "namespaced": kind.namespaced, "kind": kind.kind}
    found = [{"name": kind.plural, **shared, "verbs": _VERBS}]
    if kind.status:
        status = {**shared, "singularName": "", "verbs": ["get", "patch", "update"]}
        found.append({"name": f"{kind.plural}/status", **status})
    return found


def _version(git_version: str) -> dict[str, Any]:
    numbers = re.match(r"v(\d+)\.(\d+)", git_version)
    major, minor = numbers.groups() if numbers else ("", "")
    return {
        "major": major,
        "minor": minor,
        "gitVersion": git_version,
        "gitTreeState": "clean",
        "goVersion": "go1.26.0",
        "compiler": "gc",
        "platform": "linux/amd64",
    }
