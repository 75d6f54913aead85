"""Who holds which device: the kubelet's listing, the node's slices and NVML's inventory joined. Pure.

A device is keyed by (driver, pool, device) for DRA and by the device plugin's id otherwise; CDI names only tell the
claim's UID. What cannot be resolved is named with its reason and never guessed.

Admin access: a device held with adminAccess looks in pod-resources like any other. Claims of which `claims` says so,
and claims of namespaces that the operator named as observers, are left out. Without either, two claims on one device
without a share id prove that one of them is such an observer, but not which: both keep half, and both are named with
the reason `admin_access_suspected`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from claimscope.kube.structs import ClaimDevice, ClaimEntry, ClaimFacts, ContainerEntry, Listing, PodEntry, SliceDevice
from claimscope.model import Device, Hold, Holder, Inventory, PodRef

NVIDIA_DRIVER: Final = "gpu.nvidia.com"
COMPUTE_DOMAIN_DRIVER: Final = "compute-domain.nvidia.com"  # IMEX channels and daemons: no GPUs

# Reasons of `Unresolved`.
UNKNOWN_DRIVER: Final = "unknown_driver"
UNKNOWN_ID: Final = "unknown_id"  # a device-plugin id of a form that is not known
UNKNOWN_NAME: Final = "unknown_device_name"  # a DRA device name of a form that is not known
NOT_IN_NVML: Final = "not_in_nvml"  # well-formed, but NVML shows no such device
OTHER_NODE: Final = "other_node"  # the pool is not this node's
VFIO: Final = "vfio"  # bound to vfio-pci, invisible to NVML
PLACEMENT_DENIED: Final = "mig_placement_denied"  # NVML denies the placement and the profile is not unique on its GPU
NOT_PREPARED: Final = "not_prepared"  # the claim's devices are not known yet: the driver has not prepared it
ADMIN_SUSPECTED: Final = "admin_access_suspected"  # it holds, beside another claim; one of them only observes

_REPLICA: Final = re.compile(r"^(.+)::[0-9]+$")  # time slicing and MPS: <id>::<n>
_OLD_MIG: Final = re.compile(r"^MIG-(GPU-[^/]+)/([0-9]{1,9})/([0-9]{1,9})$")
_GKE: Final = re.compile(r"^nvidia([0-9]{1,9})(?:/gi([0-9]{1,9}))?(?:/vgpu[0-9]{1,9})?$")
_GPU_RESOURCE: Final = re.compile(r"^nvidia\.com/(?:gpu|mig-)")
_DRA_GPU: Final = re.compile(r"^gpu-([0-9]{1,9})$")
_DRA_MIG: Final = re.compile(r"^gpu-([0-9]{1,9})-mig-(.+)-([0-9]{1,9})-([0-9]{1,9})$")
_DRA_VFIO: Final = re.compile(r"^gpu-vfio-[0-9]+$")
_CDI_CLAIM: Final = re.compile(
    r"^k8s\.[^/]+/claim=([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12})-(.+)$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unresolved:
    """Something held of which no entity, or no certain holder, is known."""

    source: str  # "claim" or "pod"
    namespace: str
    name: str  # of the claim, or of the pod
    driver: str | None  # DRA driver, or the device plugin's resource name
    pool: str | None
    device: str | None  # DRA device name, or the device plugin's id
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """All holds of one moment, in a stable order: equal inputs give equal answers, whatever the kubelet's order."""

    holds: tuple[Hold, ...] = ()
    unresolved: tuple[Unresolved, ...] = ()


def attribute(
    inventory: Inventory,
    listing: Listing,
    slices: Iterable[SliceDevice] = (),
    *,
    node: str | None = None,
    claims: Mapping[str, ClaimFacts] | None = None,
    observer_namespaces: frozenset[str] = frozenset(),
) -> Attribution:
    """Joins what is listed with what NVML shows.

    `node` is this node's name, which NVIDIA's driver uses as the pool's; None trusts any pool. `claims` are facts by
    claim UID where they could be read. `observer_namespaces` are those whose claims only observe.
    """
    lookup = _Lookup(inventory, slices, node)
    uids = _claim_uids(listing)
    join = _Join()
    for pod in listing.pods:
        for container in pod.containers:
            where = PodRef(namespace=pod.namespace, pod=pod.name, container=container.name)
            _plugin_devices(pod, container, where, lookup, join)
            for claim in container.claims:
                if claim.namespace not in observer_namespaces:
                    _claim_devices(claim, where, uids, claims or {}, lookup, join)
    return join.result()


class _Lookup:
    """What an id can be resolved against."""

    def __init__(self, inventory: Inventory, slices: Iterable[SliceDevice], node: str | None) -> None:
        self.known = {device.entity.uuid for device in inventory.devices} | inventory.lost.keys()
        self.node = node
        self.slices = {(entry.driver, entry.pool, entry.device): entry for entry in slices}
        self.gpu_by_minor: dict[int, str] = {}
        self.mig_by_parent: dict[str, list[Device]] = {}
        for device in inventory.devices:
            if device.mig is not None and device.entity.parent is not None:
                self.mig_by_parent.setdefault(device.entity.parent, []).append(device)
            elif device.minor is not None:
                self.gpu_by_minor.setdefault(device.minor, device.entity.uuid)

    def plugin(self, resource: str, device_id: str) -> tuple[str, ...] | str | None:
        """Entities of a device plugin's id; a reason where there are none; None where it is no GPU of ours."""
        replica = _REPLICA.match(device_id)
        base = replica.group(1) if replica else device_id
        old = _OLD_MIG.match(base)
        if old:
            parent, instance, compute = old.group(1), int(old.group(2)), int(old.group(3))
            return self._mig(parent, instance, compute) or NOT_IN_NVML
        if base in self.known:
            return (base,)
        if base.startswith(("GPU-", "MIG-")):
            return NOT_IN_NVML
        if not resource.startswith("nvidia.com/"):
            return None
        gke = _GKE.match(base)
        if gke:
            gpu = self.gpu_by_minor.get(int(gke.group(1)))
            if gpu is None:
                return NOT_IN_NVML
            return (gpu,) if gke.group(2) is None else self._mig(gpu, int(gke.group(2)), None) or NOT_IN_NVML
        # Network cards are commonly offered under nvidia.com/ as well.
        return UNKNOWN_ID if _GPU_RESOURCE.match(resource) else None

    def dra(self, key: ClaimDevice) -> tuple[str, ...] | str | None:
        """Entities of a DRA device; a reason where there are none; None where it is no GPU."""
        if key.driver == COMPUTE_DOMAIN_DRIVER:
            return None
        published = self.slices.get((key.driver, key.pool, key.device))
        if published is not None:
            uuid = published.attributes.get("uuid")
            if isinstance(uuid, str) and uuid in self.known:
                return (uuid,)
            if key.driver == NVIDIA_DRIVER and published.attributes.get("type") == "vfio":
                return VFIO
            if key.driver == NVIDIA_DRIVER and isinstance(uuid, str) and published.present:
                return NOT_IN_NVML  # the driver itself says which device it is
        if key.driver != NVIDIA_DRIVER:
            return UNKNOWN_DRIVER
        return self._canonical(key)

    def _canonical(self, key: ClaimDevice) -> tuple[str, ...] | str:
        """By the names that NVIDIA's driver makes: gpu-<minor>, gpu-<minor>-mig-<profile>-<profile id>-<start>."""
        if self.node is not None and key.pool != self.node:
            return OTHER_NODE
        if _DRA_VFIO.match(key.device):
            return VFIO
        whole = _DRA_GPU.match(key.device)
        if whole:
            gpu = self.gpu_by_minor.get(int(whole.group(1)))
            return NOT_IN_NVML if gpu is None else (gpu,)
        cut = _DRA_MIG.match(key.device)
        if not cut:
            return UNKNOWN_NAME
        parent = self.gpu_by_minor.get(int(cut.group(1)))
        if parent is None:
            return NOT_IN_NVML
        profile, profile_id, start = cut.group(2), int(cut.group(3)), int(cut.group(4))
        exact: list[str] = []
        alike: list[str] = []  # right profile, placement not told
        for device in self.mig_by_parent.get(parent, ()):
            mig = device.mig
            if mig is None:
                continue
            if mig.profile_id is None:
                fits = _canonical_profile(mig.profile) == profile
            else:
                fits = mig.profile_id == profile_id
            if fits and mig.placement_start is None:
                alike.append(device.entity.uuid)
            elif fits and mig.placement_start == start:
                exact.append(device.entity.uuid)
        if exact:
            return tuple(sorted(exact))
        if len(alike) == 1:
            return (alike[0],)
        return PLACEMENT_DENIED if alike else NOT_IN_NVML

    def _mig(self, parent: str, instance: int, compute: int | None) -> tuple[str, ...]:
        return tuple(
            sorted(
                device.entity.uuid
                for device in self.mig_by_parent.get(parent, ())
                if device.mig is not None
                and device.mig.gpu_instance_id == instance
                and compute in (None, device.mig.compute_instance_id)
            )
        )


@dataclass(slots=True)
class _Draft:
    """A hold before its share is known. Of several devices of one holder on one entity the first stands."""

    driver: str | None
    pool: str | None
    device: str
    resource: str | None
    share_id: str | None
    request: str | None
    pods: set[PodRef] = field(default_factory=set)

    def order(self) -> tuple[str, str, str, str, str, str]:
        return (
            self.driver or "",
            self.pool or "",
            self.resource or "",
            self.device,
            self.share_id or "",
            self.request or "",
        )


class _Join:
    """Collects drafts by entity and holder, so that no holder counts twice on one entity."""

    def __init__(self) -> None:
        self._drafts: dict[str, dict[Holder, _Draft]] = {}
        self._unresolved: set[Unresolved] = set()

    def hold(self, entity: str, holder: Holder, draft: _Draft, pod: PodRef) -> None:
        holders = self._drafts.setdefault(entity, {})
        kept = holders.get(holder)
        if kept is None:
            holders[holder] = kept = draft
        elif draft.order() < kept.order():
            draft.pods = kept.pods
            holders[holder] = kept = draft
        kept.pods.add(pod)

    def missing(self, unresolved: Unresolved) -> None:
        self._unresolved.add(unresolved)

    def result(self) -> Attribution:
        holds: list[Hold] = []
        for entity in sorted(self._drafts):
            holders = self._drafts[entity]
            unshared = [h for h, draft in holders.items() if h.source == "claim" and draft.share_id is None]
            for holder in sorted(holders, key=_holder_order):
                draft = holders[holder]
                if len(unshared) > 1 and holder in unshared:
                    self.missing(_unresolved_claim(holder, draft, ADMIN_SUSPECTED))
                holds.append(
                    Hold(
                        holder=holder,
                        entity=entity,
                        driver=draft.driver,
                        pool=draft.pool,
                        device=draft.device,
                        resource=draft.resource,
                        share_id=draft.share_id,
                        request=draft.request,
                        share=1.0 / len(holders),
                        basis="exclusive" if len(holders) == 1 else "share",
                        pods=tuple(sorted(draft.pods, key=lambda ref: (ref.namespace, ref.pod, ref.container))),
                    )
                )
        return Attribution(
            holds=tuple(holds),
            unresolved=tuple(
                sorted(
                    self._unresolved,
                    key=lambda u: (
                        u.source,
                        u.namespace,
                        u.name,
                        u.driver or "",
                        u.pool or "",
                        u.device or "",
                        u.reason,
                    ),
                )
            ),
        )


def _plugin_devices(pod: PodEntry, container: ContainerEntry, where: PodRef, lookup: _Lookup, join: _Join) -> None:
    holder = Holder(source="pod", namespace=pod.namespace, name=pod.name, container=container.name)
    for resource, ids in container.devices:
        for device_id in ids:
            found = lookup.plugin(resource, device_id)
            if found is None:
                continue
            if isinstance(found, str):
                join.missing(
                    Unresolved(
                        source="pod",
                        namespace=pod.namespace,
                        name=pod.name,
                        driver=resource,
                        pool=None,
                        device=device_id,
                        reason=found,
                    )
                )
                continue
            for entity in found:
                draft = _Draft(driver=None, pool=None, device=device_id, resource=resource, share_id=None, request=None)
                join.hold(entity, holder, draft, where)


def _claim_devices(
    claim: ClaimEntry,
    where: PodRef,
    uids: Mapping[tuple[str, str], set[str]],
    facts: Mapping[str, ClaimFacts],
    lookup: _Lookup,
    join: _Join,
) -> None:
    uid = _claim_uid(claim)
    if uid is None:
        others = uids.get((claim.namespace, claim.name), set())
        uid = next(iter(others)) if len(others) == 1 else None
    holder = Holder(source="claim", namespace=claim.namespace, name=claim.name, uid=uid)
    if not claim.resources:
        join.missing(
            Unresolved(
                source="claim",
                namespace=claim.namespace,
                name=claim.name,
                driver=None,
                pool=None,
                device=None,
                reason=NOT_PREPARED,
            )
        )
    told = {
        (result.driver, result.pool, result.device, result.share_id): result
        for result in (facts[uid].results if uid is not None and uid in facts else ())
    }
    for key in claim.resources:
        result = told.get((key.driver, key.pool, key.device, key.share_id))
        if result is not None and result.admin_access:
            continue
        found = lookup.dra(key)
        if found is None:
            continue
        draft = _Draft(
            driver=key.driver,
            pool=key.pool,
            device=key.device,
            resource=None,
            share_id=key.share_id,
            request=result.request if result is not None else None,
        )
        if isinstance(found, str):
            join.missing(_unresolved_claim(holder, draft, found))
            continue
        for entity in found:
            join.hold(entity, holder, _copy(draft), where)


def _copy(draft: _Draft) -> _Draft:
    return _Draft(
        driver=draft.driver,
        pool=draft.pool,
        device=draft.device,
        resource=draft.resource,
        share_id=draft.share_id,
        request=draft.request,
    )


def _unresolved_claim(holder: Holder, draft: _Draft, reason: str) -> Unresolved:
    return Unresolved(
        source="claim",
        namespace=holder.namespace,
        name=holder.name,
        driver=draft.driver,
        pool=draft.pool,
        device=draft.device,
        reason=reason,
    )


def _claim_uid(claim: ClaimEntry) -> str | None:
    """The claim's UID out of its CDI names: the entry of the device itself first, then any of this claim."""
    fallback: str | None = None
    for key in claim.resources:
        for name in key.cdi:
            named = _CDI_CLAIM.match(name)
            if named is None:
                continue
            if named.group(2) == key.device:
                return named.group(1).lower()
            fallback = fallback or named.group(1).lower()
    return fallback


def _claim_uids(listing: Listing) -> dict[tuple[str, str], set[str]]:
    """All UIDs seen under a claim's name: pods of one claim can be told it unevenly while it is prepared."""
    found: dict[tuple[str, str], set[str]] = {}
    for pod in listing.pods:
        for container in pod.containers:
            for claim in container.claims:
                uid = _claim_uid(claim)
                if uid is not None:
                    found.setdefault((claim.namespace, claim.name), set()).add(uid)
    return found


def _holder_order(holder: Holder) -> tuple[str, str, str, str, str]:
    return holder.source, holder.namespace, holder.name, holder.uid or "", holder.container or ""


def _canonical_profile(profile: str) -> str:
    """As the driver writes a MIG profile into a device name: "1g.10gb+me" becomes "1g10gb-me"."""
    return profile.replace(".", "").replace("+", "-")


def held_claims(listing: Listing) -> frozenset[tuple[str, str, str]]:
    """(namespace, name, uid) of every claim whose UID is told: what a claim lookup is asked for."""
    return frozenset((namespace, name, uid) for (namespace, name), uids in _claim_uids(listing).items() for uid in uids)


def owners(holds: Iterable[Hold], entity: str, pods: Mapping[int, tuple[str, str]]) -> dict[int, Holder]:
    """The holder behind each process on `entity`, from (namespace, name) of its pod; ambiguous ones are left out."""
    by_pod: dict[tuple[str, str], set[Holder]] = {}
    for hold in holds:
        if hold.entity == entity:
            for pod in hold.pods:
                by_pod.setdefault((pod.namespace, pod.pod), set()).add(hold.holder)
    found: dict[int, Holder] = {}
    for pid, name in pods.items():
        holders = by_pod.get(name, set())
        if len(holders) == 1:
            found[pid] = next(iter(holders))
    return found
