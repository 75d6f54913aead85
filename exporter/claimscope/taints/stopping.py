"""How is what writes taints stopped, before all of them are lifted for good?

A Deployment is scaled to none, so that one command takes it up again where lifting fails, and the last of its pods is
waited for: one that is being deleted counts no more in the Deployment's status, and writes until its containers end. A
DaemonSet cannot be scaled. It is deleted in the foreground: the object then stays until its pods are gone
(https://kubernetes.io/docs/concepts/architecture/garbage-collection/#foreground-deletion).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import msgspec

from claimscope.kube.api import JSON, MERGE_PATCH, ApiClient, ApiError, ApiReason, decode
from claimscope.kube.objects import Pod, RawList
from claimscope.taints.apply import send

_PLURALS: Final = {"deployment": "deployments", "daemonset": "daemonsets"}
_FOREGROUND: Final = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
_NONE: Final = {"spec": {"replicas": 0}}
_ENDED: Final = frozenset(("Succeeded", "Failed"))  # phases of pods whose containers have all ended
MARK: Final = "claimscope-fencing"  # of who fences in this cluster
_MARK_PATH: Final = f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{MARK}"
# Helm annotates each object that it installs; `helm template` does not.
_RELEASE: Final = "meta.helm.sh/release-name"
_RELEASE_NAMESPACE: Final = "meta.helm.sh/release-namespace"
LOOK_SECONDS: Final = 1.0


class _Selector(msgspec.Struct, frozen=True, rename="camel"):
    match_labels: dict[str, str] | None = None


class _Spec(msgspec.Struct, frozen=True):
    replicas: int = 1
    selector: _Selector = _Selector()


class _Meta(msgspec.Struct, frozen=True):
    annotations: dict[str, str] | None = None


class _Found(msgspec.Struct, frozen=True):
    metadata: _Meta = _Meta()
    spec: _Spec = _Spec()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A Deployment or DaemonSet."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"

    def path(self, namespace: str) -> str:
        """Where the API server has it."""
        return f"/apis/apps/v1/namespaces/{namespace}/{_PLURALS[self.kind]}/{self.name}"


def workload_of(text: str) -> Workload:
    """The workload of `deployment/NAME`. Raises ValueError with what is wrong."""
    kind, slash, name = text.partition("/")
    if kind not in _PLURALS or not slash or not name or "/" in name:
        raise ValueError(f"`{text}` is not deployment/NAME or daemonset/NAME")
    return Workload(kind=kind, name=name)


async def _read(api: ApiClient, path: str) -> _Found | None:
    try:
        return decode(await api.get(path), _Found, path)
    except ApiError as error:
        if error.reason is ApiReason.NOT_FOUND:
            return None
        raise


async def not_of_release(api: ApiClient, namespace: str, release: str) -> str | None:
    """Why this release of Helm does not lift what stands; None where it does. Raises ApiError.

    Whose the taints are is told by the ClusterRole that its chart gives the same name in each release: Helm lets one
    have it. Where there is none, no release with the chart's own roles writes taints, and what stands was left by an
    earlier version. Nothing is known here of a release with `rbac.create=false` and roles written by hand: it has no
    such ClusterRole unless somebody made one, and what it put up is then lifted by whichever release is uninstalled.
    """
    found = await _read(api, _MARK_PATH)
    if found is None:
        return None
    notes = found.metadata.annotations or {}
    owner, where = notes.get(_RELEASE, ""), notes.get(_RELEASE_NAMESPACE, "")
    if (owner, where) == (release, namespace):
        return None
    if owner:
        return (
            f"nothing is lifted: the taints of this cluster are those of release `{owner}` in namespace `{where}`, "
            f"which has the ClusterRole {MARK}"
        )
    return (
        f"nothing is lifted: Helm did not install the ClusterRole {MARK}, so it is not Helm that uninstalls. This is "
        "what runs before `helm uninstall`; `helm template` prints it unless it is given --no-hooks. Delete this Job, "
        "its account and its roles; to lift every taint, run `claimscope taints lift --all` with --stop and your own "
        "rights"
    )


async def stop(
    api: ApiClient, namespace: str, workload: Workload, *, seconds: float, look_seconds: float = LOOK_SECONDS
) -> str:
    """Stops it and waits until its pods are gone; says what came of it. Raises ApiError where it may not be stopped.

    Pods of a node that is off stay for ever: after `seconds` they are waited for no more, and that is said.
    """
    path = workload.path(namespace)
    found = await _read(api, path)
    if found is None:
        return f"{workload} is not there"
    try:
        async with asyncio.timeout(seconds):
            if workload.kind == "deployment":
                await send(api, "PATCH", f"{path}/scale", _NONE, MERGE_PATCH, {})
                await _until_no_pods(api, namespace, workload, found.spec.selector, look_seconds)
            else:
                await send(api, "DELETE", path, _FOREGROUND, JSON, {})
                await _until_gone(api, path, look_seconds)
    except TimeoutError:
        return f"{workload} has pods after {seconds:g} s yet: what they write from now on is not lifted"
    if workload.kind == "deployment":
        return f"stopped {workload}: scaled from {found.spec.replicas} to 0"
    return f"stopped {workload}: deleted"


async def _until_gone(api: ApiClient, path: str, look_seconds: float) -> None:
    while True:
        if await _read(api, path) is None:
            return
        await asyncio.sleep(look_seconds)


async def _until_no_pods(
    api: ApiClient, namespace: str, workload: Workload, selector: _Selector, look_seconds: float
) -> None:
    labels = selector.match_labels
    if not labels:
        raise ApiError(ApiReason.FAILED, f"{workload} selects its pods by no labels, so which are its own is not known")
    path = f"/api/v1/namespaces/{namespace}/pods"
    params = {"labelSelector": ",".join(f"{name}={value}" for name, value in sorted(labels.items()))}
    while True:
        listed = decode(await api.get(path, params), RawList, path).items or ()
        if all(decode(item, Pod, path).status.phase in _ENDED for item in listed):
            return
        await asyncio.sleep(look_seconds)
