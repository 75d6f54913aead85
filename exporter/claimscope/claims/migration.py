"""How far has the move from device plugins to DRA come: pods and accelerators by kind of request, nodes by mode?

Device names and attributes tell what belongs to whom; no class selector is evaluated here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Final, TypeVar

from claimscope.claims.cluster import Cluster, claims_of, is_active
from claimscope.claims.model import Key, Pool, PoolKey
from claimscope.claims.quota import class_of_resource
from claimscope.kube.kinds import IMPLICIT_PREFIX, extended_resources_of, is_accelerator
from claimscope.kube.objects import ClaimRequest, Node, Pod, ResourceClaim
from claimscope.metrics.cluster import sample
from claimscope.model import Sample

K = TypeVar("K")
V = TypeVar("V")

# Drivers of resource.k8s.io whose devices are no accelerators: a node is not moved to DRA by having them.
OTHER_DRIVERS: Final = frozenset({"compute-domain.nvidia.com", "dra.cpu", "dra.memory", "dra.net"})

# Labels that say that a node has accelerators, whoever hands them out: GPU feature discovery, node feature discovery
# (PCI vendor and class), AMD's labeller, GKE.
_LABELS: Final = (
    "nvidia.com/gpu.present",
    "nvidia.com/gpu.product",
    "feature.node.kubernetes.io/pci-10de.present",
    "feature.node.kubernetes.io/pci-0302_10de.present",
    "amd.com/gpu.product-name",
    "cloud.google.com/gke-accelerator",
    "cloud.google.com/gke-tpu-accelerator",
)


_AT_ONCE: Final = 5_000  # pods, some 0.1 s
_NO_LIMITS: Final[Mapping[str, int]] = {}

# How a pod asks for accelerators. Plain text, since members of an Enum are slow keys.
DEVICE_PLUGIN: Final = "device_plugin"
EXTENDED_RESOURCE: Final = "extended_resource"  # the same words in the pod, and a claim made by the scheduler
CLAIM: Final = "claim"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asks:
    """What one pod asks for, in one way."""

    kind: str
    claims: tuple[Key, ...] = ()
    devices: int = 0  # beyond those of the claims


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What was read of one pod; `limits` are accelerators alone, and empty for most pods."""

    pod: Pod
    by_claim: tuple[_Asks, ...] = ()
    extended: tuple[Key, ...] = ()
    limits: Mapping[str, int]


class Migration:
    """Keeps what was read of every object until there is a newer one, so that a large cluster costs a short loop."""

    def __init__(self) -> None:
        self._pods: dict[Key, _Read] = {}
        self._claims: dict[Key, tuple[ResourceClaim, int]] = {}
        self._nodes: dict[str, tuple[Node, Mapping[str, int] | None]] = {}
        self._pools: dict[PoolKey, tuple[Pool, Counter[tuple[str, str]]]] = {}
        self._mapped: Set[str] = frozenset()  # extended resources that device classes serve

    def reading(self, cluster: Cluster) -> Iterator[None]:
        """Reads all pods, with a pause after each few thousand; `samples` has little left to do then."""
        self._map(cluster)
        for number, (key, pod) in enumerate(list(cluster.pods.items()), 1):
            self._pods[key] = self._read(pod)
            if number % _AT_ONCE == 0:
                yield

    def samples(self, cluster: Cluster) -> list[Sample]:
        """dra_migration_* and dra_node_*."""
        self._map(cluster)
        return [*self._of_pods(cluster), *self._of_nodes(cluster)]

    def _map(self, cluster: Cluster) -> None:
        mapped = class_of_resource(cluster).keys()
        if mapped != self._mapped:
            self._mapped = frozenset(mapped)
            self._pods.clear()
            self._nodes.clear()

    def _of_pods(self, cluster: Cluster) -> Iterator[Sample]:
        pods: Counter[tuple[str, str]] = Counter()
        devices: Counter[tuple[str, str]] = Counter()
        claims: dict[str, set[Key]] = {CLAIM: set(), EXTENDED_RESOURCE: set()}  # one that pods share counts once
        offered = self._offered(cluster)
        for key, pod in cluster.pods.items():
            known = self._pods.get(key)
            if known is None or known.pod is not pod:
                known = self._pods[key] = self._read(pod)
            parts = known.by_claim
            if known.limits or known.extended:
                parts = (*self._by_limits(known, cluster, offered), *parts)
            for asks in parts:
                pods[key.namespace, asks.kind] += 1
                devices[key.namespace, asks.kind] += asks.devices
                if asks.claims:
                    claims[asks.kind].update(asks.claims)
        _forget_gone(self._pods, cluster.pods)
        _forget_gone(self._claims, cluster.claims)
        for kind, keys in claims.items():
            for claim in keys:
                devices[claim.namespace, kind] += self._devices_of(claim, cluster)
        for (namespace, kind), number in sorted(pods.items()):
            yield sample("dra_migration_pods", number, namespace, kind)
            yield sample("dra_migration_devices", devices[namespace, kind], namespace, kind)

    def _read(self, pod: Pod) -> _Read:
        """Nothing of pods that have ended. A pod may ask both by claim and by limits."""
        if not is_active(pod):
            return _Read(pod=pod, limits=_NO_LIMITS)
        namespace = pod.metadata.namespace
        entries = [entry for entry in claims_of(pod) if not entry.needless]
        named = tuple([Key(namespace, entry.claim) for entry in entries if not entry.extended and entry.claim])
        limits = extended_resources_of(pod)
        return _Read(
            pod=pod,
            by_claim=(_Asks(kind=CLAIM, claims=named),) if any(not entry.extended for entry in entries) else (),
            extended=tuple([Key(namespace, entry.claim) for entry in entries if entry.extended and entry.claim]),
            limits={name: number for name, number in limits.items() if self._counts(name)} or _NO_LIMITS,
        )

    def _counts(self, resource: str) -> bool:
        return resource in self._mapped or is_accelerator(resource)

    def _by_limits(self, read: _Read, cluster: Cluster, offered: Set[str]) -> Iterator[_Asks]:
        """What a pod asks for by the words of device plugins, parted by who answers.

        A class may serve the words of a device plugin. The scheduler then uses the plugin on nodes that have one, and
        makes a claim where none offers the resource.
        """
        node = read.pod.spec.node_name
        here = self._resources(node, cluster) or {} if node and node in cluster.nodes else None
        by_plugin = by_dra = 0
        served = {name for name in read.limits if name in self._mapped or name.startswith(IMPLICIT_PREFIX)}
        for name, number in read.limits.items():
            if name in served:
                plugin = bool(here.get(name)) if here is not None else name in offered
                dra = bool(read.extended) or name.startswith(IMPLICIT_PREFIX) or not plugin
            else:
                dra = bool(read.extended) and not served  # the class that served it may be gone
            by_dra += number if dra else 0
            by_plugin += 0 if dra else number
        if by_plugin:
            yield _Asks(kind=DEVICE_PLUGIN, devices=by_plugin)
        if read.extended:
            yield _Asks(kind=EXTENDED_RESOURCE, claims=read.extended)
        elif by_dra:
            yield _Asks(kind=EXTENDED_RESOURCE, devices=by_dra)

    def _offered(self, cluster: Cluster) -> Set[str]:
        """What device plugins offer on any node."""
        return {
            name
            for node in cluster.nodes
            for name, number in (self._resources(node, cluster) or {}).items()
            if number > 0
        }

    def _devices_of(self, key: Key, cluster: Cluster) -> int:
        claim = cluster.claims.get(key)
        if claim is None:
            return 0
        known = self._claims.get(key)
        if known is None or known[0] is not claim:
            known = self._claims[key] = claim, claim_devices(claim)
        return known[1]

    def _of_nodes(self, cluster: Cluster) -> Iterator[Sample]:
        published: Counter[tuple[str, str, str]] = Counter()  # node, vendor, type
        for key, pool in cluster.pools.items():
            if key.driver in OTHER_DRIVERS:
                continue
            known = self._pools.get(key)
            if known is None or known[0] is not pool:
                known = self._pools[key] = pool, _by_node(pool)
            for (node, kind), number in known[1].items():
                published[node, vendor(key.driver), kind] += number
        _forget_gone(self._pools, cluster.pools)
        _forget_gone(self._nodes, cluster.nodes)
        by_dra = {node for node, _, _ in published}
        for name in sorted(by_dra | cluster.nodes.keys()):
            resources = self._resources(name, cluster)
            mode = _mode(resources, name in by_dra)
            if mode is not None:
                yield sample("dra_node_mode_info", 1, name, mode)
            for resource, number in sorted((resources or {}).items()):
                kind = "mig" if "/mig-" in resource else "gpu"
                twice = min(number, published[name, vendor(resource.partition("/")[0]), kind])
                if twice > 0:
                    yield sample("dra_node_devices_advertised_twice", twice, name, resource)

    def _resources(self, name: str, cluster: Cluster) -> Mapping[str, int] | None:
        node = cluster.nodes.get(name)
        if node is None:
            return None
        known = self._nodes.get(name)
        if known is None or known[0] is not node:
            known = self._nodes[name] = node, self._accelerators(node)
        return known[1]

    def _accelerators(self, node: Node) -> Mapping[str, int] | None:
        """Accelerators that device plugins offer, zeros included; None for nodes on which nothing hints at any."""
        found = {
            name: int(text) if text.isdecimal() else 0
            for name, text in (node.status.allocatable or {}).items()
            if self._counts(name)
        }
        labels = node.metadata.labels or {}
        return found if found or any(label in labels for label in _LABELS) else None


def _forget_gone(known: dict[K, V], present: Mapping[K, object]) -> None:
    """Keeps no more than there is; until then what is gone costs memory alone."""
    if len(known) > len(present):
        for gone in known.keys() - present.keys():
            del known[gone]


def claim_devices(claim: ResourceClaim) -> int:
    """Devices that a claim holds, observers' left out; what it asks for while it holds none."""
    allocation = claim.status.allocation
    if allocation is not None:
        return sum(1 for result in allocation.devices.results or () if not result.admin_access)
    return sum(_asked(request) for request in claim.spec.devices.requests or ())


def _asked(request: ClaimRequest) -> int:
    """How many devices a request wants; 0 for all that match, since how many those are is not known before."""
    wanted = request.exactly or next(iter(request.first_available or ()), None)
    if wanted is None or wanted.admin_access or wanted.allocation_mode == "All":
        return 0
    return 1 if wanted.count is None else wanted.count


def _by_node(pool: Pool) -> Counter[tuple[str, str]]:
    """(node, type) -> devices; what can be used from several nodes belongs to none of them."""
    return Counter(
        (device.node, str(device.attribute("type") or "gpu")) for device in pool.devices if device.node is not None
    )


def _mode(resources: Mapping[str, int] | None, by_dra: bool) -> str | None:
    """None for nodes without accelerators: "none" is a node that has them and hands out not one."""
    by_plugin = any(number > 0 for number in (resources or {}).values())
    if by_dra:
        return "both" if by_plugin else "dra"
    if by_plugin:
        return "device_plugin"
    return "none" if resources is not None else None


def vendor(domain: str) -> str:
    """The vendor's domain: the last two labels, in which drivers and resources agree (gpu.nvidia.com, nvidia.com)."""
    return ".".join(domain.split(".")[-2:])
