"""Which pod does a process belong to, without asking the API server?

/proc/<pid>/cgroup names the pod's UID, and the kubelet's log directory has one entry `<namespace>_<name>_<uid>` for
each pod (kubernetes pkg/kubelet/kuberuntime/helpers.go, BuildPodLogsDirectory). Needs the host's pids and a read-only
mount of /var/log/pods; without either, processes simply have no known pod.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from claimscope.kube.cgroup import owner_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PROC: Final = Path("/proc")
POD_LOGS: Final = Path("/var/log/pods")

PodName = tuple[str, str]  # namespace, name


def pod_names(entries: Iterable[str]) -> dict[str, PodName]:
    """Pod UID -> (namespace, name), from the entries of the kubelet's log directory."""
    names: dict[str, PodName] = {}
    for entry in entries:
        parts = entry.split("_")  # neither namespaces, names nor UIDs may contain "_"
        if len(parts) == 3 and all(parts):
            names[parts[2]] = (parts[0], parts[1])
    return names


class ProcessPods:
    """Looks processes up and remembers them for as long as they are asked for."""

    def __init__(self, proc: Path = PROC, pod_logs: Path = POD_LOGS) -> None:
        self._proc = proc
        self._pod_logs = pod_logs
        self._known: dict[int, tuple[str, PodName | None]] = {}  # pid -> (cgroup text, pod)

    def pods(self, pids: Iterable[int]) -> Mapping[int, PodName]:
        """The pods of those processes whose pod is known."""
        known: dict[int, tuple[str, PodName | None]] = {}
        names: dict[str, PodName] | None = None
        for pid in pids:
            try:
                text = (self._proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue  # it ended, or is in a pid namespace we do not see
            before = self._known.get(pid)
            if before is not None and before[0] == text and before[1] is not None:
                known[pid] = before  # a pid that was given to another process has another cgroup
                continue
            owner = owner_of(text)
            if owner is None:
                continue
            if names is None:
                names = self._names()
            known[pid] = (text, names.get(owner.pod_uid))
        self._known = known
        return {pid: pod for pid, (_, pod) in known.items() if pod is not None}

    def _names(self) -> dict[str, PodName]:
        try:
            return pod_names(entry.name for entry in self._pod_logs.iterdir())
        except OSError:
            return {}
