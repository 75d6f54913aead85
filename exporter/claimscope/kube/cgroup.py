"""To which pod and container does a process belong, by the text of /proc/<pid>/cgroup?

pod-resources tells no pod UID, so joining this to a pod's name needs one more source (the kubelet's /pods, or the
API server). Meaningful only with the host's pids and without a cgroup namespace in between.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# kubepods-burstable-pod<uid with _>.slice (systemd driver) or /kubepods/burstable/pod<uid>/ (cgroupfs driver);
# static pods have a 32-digit hash for a uid.
_POD: Final = re.compile(
    r"(?:^|[/-])pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})"
    r"(?:\.slice)?(?=/|:|$)"
)
# cri-containerd-<id>.scope, crio-<id>.scope, docker-<id>.scope, or the bare id; "<slice>:cri-containerd:<id>" where
# containerd was not told of systemd.
_CONTAINER: Final = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?(?=/|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupOwner:
    """The pod, and the container where the path goes that deep."""

    pod_uid: str
    container_id: str | None


def owner_of(text: str) -> CgroupOwner | None:
    """The owner named in /proc/<pid>/cgroup of cgroup v1 or v2; None for a process of no pod."""
    for line in text.splitlines():
        path = line.split(":", 2)[-1]
        pod = _POD.search(path)
        if pod is None:
            continue
        container = _CONTAINER.search(path, pod.end())
        return CgroupOwner(
            pod_uid=pod.group(1).replace("_", "-"), container_id=container.group(1) if container else None
        )
    return None
