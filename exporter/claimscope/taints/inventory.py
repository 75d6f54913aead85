"""Under which name is a GPU published now? Names move (`gpu-<minor>`), uuids stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from claimscope.claims.cluster import Cluster
from claimscope.claims.model import DeviceFacts, DeviceKey, Pool, PoolKey

NVIDIA_DRIVER: Final = "gpu.nvidia.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One published device that is a GPU or a part of one."""

    device: DeviceKey
    uuid: str  # of a part that is cut only once it is allocated, and has none until then: its GPU's uuid and its name
    node: str = ""  # "": on no one node
    parent: str = ""  # uuid of the GPU that a MIG device is cut from
    kind: str = ""  # attribute `type`: "gpu", "mig", "vfio"

    @property
    def gpu(self) -> str:
        """uuid of the board, which budgets count."""
        return self.parent or self.uuid

    @property
    def identity(self) -> str:
        """What tells this device from every other one, whatever it is called.

        A GPU may be published a second time under its uuid, as one for virtual machines or by another driver.
        """
        by_kind = self.uuid if self.kind in ("", "gpu", "mig") else f"{self.uuid}/{self.kind}"
        return by_kind if self.device.driver == NVIDIA_DRIVER else f"{by_kind}@{self.device.driver}"


class Inventory:
    """All published devices by uuid; follows the cluster's mirror at the cost of what changed."""

    def __init__(self) -> None:
        self.known = False  # the slices have been read
        self._seen: dict[PoolKey, int] = {}
        self._pools: dict[PoolKey, tuple[Site, ...]] = {}
        self._complete: set[PoolKey] = set()
        self._at: dict[DeviceKey, Site] = {}
        self._sites: dict[str, tuple[Site, ...]] = {}  # by uuid; tuples, since nearly all hold one of 80,000
        self._parts: dict[str, tuple[Site, ...]] = {}  # by uuid of the GPU
        self._gpus: dict[str, dict[str, int]] = {}  # node -> GPU -> devices that are it or a part of it

    def follow(self, cluster: Cluster) -> None:
        """Takes what changed since the last call."""
        self.known = "resourceslices" in cluster.synced
        for key, revision in cluster.pool_revisions.items():
            if self._seen.get(key) != revision:
                self._seen[key] = revision
                self._take(key, cluster.pools.get(key))

    def _take(self, key: PoolKey, pool: Pool | None) -> None:
        self._complete.discard(key)
        if pool is not None and pool.complete and pool.problem is None:
            self._complete.add(key)
        sites = tuple(site for facts in pool.devices if (site := _site(facts)) is not None) if pool is not None else ()
        before = self._pools.get(key, ())
        if sites == before:
            return
        for site in before:
            self._remove(site)
        for site in sites:
            self._add(site)
        self._pools[key] = sites

    def _add(self, site: Site) -> None:
        self._at[site.device] = site
        self._sites[site.uuid] = (*self._sites.get(site.uuid, ()), site)
        if site.parent:
            self._parts[site.parent] = (*self._parts.get(site.parent, ()), site)
        gpus = self._gpus.setdefault(site.node, {})
        gpus[site.gpu] = gpus.get(site.gpu, 0) + 1

    def _remove(self, site: Site) -> None:
        self._at.pop(site.device, None)
        for index, uuid in ((self._sites, site.uuid), (self._parts, site.parent)):
            left = tuple(each for each in index.get(uuid, ()) if each.device != site.device)
            if left:
                index[uuid] = left
            else:
                index.pop(uuid, None)
        gpus = self._gpus[site.node]
        gpus[site.gpu] -= 1
        if not gpus[site.gpu]:
            del gpus[site.gpu]

    # --- reading ---

    def at(self, device: DeviceKey) -> Site | None:
        """What is published under a name."""
        return self._at.get(device)

    def sites(self, uuid: str, node: str) -> list[Site]:
        """The devices of a node that a uuid means: itself, and each MIG device cut from it; one of each identity."""
        found: dict[str, Site] = {}
        for device in sorted({site.device for site in self._meant(uuid)}):
            site = self._at[device]
            if site.node in ("", node):
                found.setdefault(site.identity, site)
        return list(found.values())

    def nodes_of(self, uuid: str) -> list[str]:
        """The nodes that publish a uuid, or parts of it; one, unless something is wrong."""
        return sorted({site.node for site in self._meant(uuid)})

    def _meant(self, uuid: str) -> Iterator[Site]:
        yield from self._sites.get(uuid, ())
        yield from self._parts.get(uuid, ())

    def complete(self, pool: PoolKey) -> bool:
        """Whether all of a pool is published, so that what is not in it is not there."""
        return pool in self._complete

    def gpus_of(self, node: str) -> int:
        """How many GPUs a node publishes, each once, however it is cut."""
        return len(self._gpus.get(node, ()))

    def gpus_on(self, node: str) -> Iterator[str]:
        """Their uuids."""
        yield from self._gpus.get(node, ())

    def nodes(self) -> Iterator[str]:
        """Nodes with GPUs."""
        return (node for node, gpus in self._gpus.items() if node and gpus)


def _site(facts: DeviceFacts) -> Site | None:
    uuid, parent, kind = (
        found if isinstance(found := facts.attribute(name), str) else "" for name in ("uuid", "parentUUID", "type")
    )
    if not uuid and parent:
        uuid = f"{parent}/{facts.key.device}"
    return Site(device=facts.key, uuid=uuid, node=facts.node or "", parent=parent, kind=kind) if uuid else None
