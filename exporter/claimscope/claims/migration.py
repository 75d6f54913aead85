"""How far has the move from device plugins to DRA come: pods and accelerators by kind of request, nodes by mode?

Device names and attributes tell what belongs to whom; no class selector is evaluated here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from claimscope.claims.cluster import Cluster, claims_of, is_active
from claimscope.claims.model import Key, Pool, PoolKey
from claimscope.kube.kinds import accelerators_of, is_accelerator
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


# How a pod asks for accelerators. Plain text, since members of an Enum are slow keys.
DEVICE_PLUGIN: Final = "device_plugin"
EXTENDED_RESOURCE: Final = "extended_resource"  # the same words in the pod, and a claim made by the scheduler
CLAIM: Final = "claim"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asks:
    """What one pod asks for, in one way."""

    kind: str
    claims: tuple[Key, ...] = ()
    plugin_devices: int = 0


def migration_samples(cluster: Cluster) -> list[Sample]:
    """dra_migration_* and dra_node_*, worked out anew."""
    return Migration().samples(cluster)


class Migration:
    """Keeps what was read of every object until there is a newer one, so that a large cluster costs a short loop."""

    def __init__(self) -> None:
        self._pods: dict[Key, tuple[Pod, tuple[_Asks, ...]]] = {}
        self._claims: dict[Key, tuple[ResourceClaim, int]] = {}
        self._nodes: dict[str, tuple[Node, Mapping[str, int] | None]] = {}
        self._pools: dict[PoolKey, tuple[Pool, Counter[tuple[str, str]]]] = {}

    def samples(self, cluster: Cluster) -> list[Sample]:
        """dra_migration_* and dra_node_*."""
        return [*self._of_pods(cluster), *self._of_nodes(cluster)]

    def _of_pods(self, cluster: Cluster) -> Iterator[Sample]:
        pods: Counter[tuple[str, str]] = Counter()
        devices: Counter[tuple[str, str]] = Counter()
        claims: dict[str, set[Key]] = {CLAIM: set(), EXTENDED_RESOURCE: set()}  # one that pods share counts once
        for key, pod in cluster.pods.items():
            known = self._pods.get(key)
            if known is None or known[0] is not pod:
                known = self._pods[key] = pod, _asks(pod)
            for asks in known[1]:
                pods[key.namespace, asks.kind] += 1
                if asks.kind == DEVICE_PLUGIN:
                    devices[key.namespace, DEVICE_PLUGIN] += asks.plugin_devices
                else:
                    claims[asks.kind].update(asks.claims)
        _forget_gone(self._pods, cluster.pods)
        _forget_gone(self._claims, cluster.claims)
        for kind, keys in claims.items():
            for claim in keys:
                devices[claim.namespace, kind] += self._devices_of(claim, cluster)
        for (namespace, kind), number in sorted(pods.items()):
            yield sample("dra_migration_pods", number, namespace, kind)
            yield sample("dra_migration_devices", devices[namespace, kind], namespace, kind)

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
            known = self._nodes[name] = node, _accelerators(node)
        return known[1]


def _forget_gone(known: dict[K, V], present: Mapping[K, object]) -> None:
    """Keeps no more than there is; until then what is gone costs memory alone."""
    if len(known) > len(present):
        for gone in known.keys() - present.keys():
            del known[gone]


def _asks(pod: Pod) -> tuple[_Asks, ...]:
    """Empty for pods that have ended. A pod may ask both by claim and by limits."""
    if not is_active(pod):
        return ()
    found: list[_Asks] = []
    entries = [entry for entry in claims_of(pod) if not entry.needless]
    namespace = pod.metadata.namespace
    extended = tuple(Key(namespace, entry.claim) for entry in entries if entry.extended and entry.claim)
    named = tuple(Key(namespace, entry.claim) for entry in entries if not entry.extended and entry.claim)
    limits = accelerators_of(pod)
    if extended:
        found.append(_Asks(kind=EXTENDED_RESOURCE, claims=extended))
    elif limits:
        found.append(_Asks(kind=DEVICE_PLUGIN, plugin_devices=sum(limits.values())))
    if any(not entry.extended for entry in entries):
        found.append(_Asks(kind=CLAIM, claims=named))
    return tuple(found)


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


def _accelerators(node: Node) -> Mapping[str, int] | None:
    """Accelerators that device plugins offer, zeros included; None for nodes on which nothing hints at any."""
    found = {
        name: int(text) if text.isdecimal() else 0
        for name, text in (node.status.allocatable or {}).items()
        if is_accelerator(name)
    }
    labels = node.metadata.labels or {}
    return found if found or any(label in labels for label in _LABELS) else None


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
