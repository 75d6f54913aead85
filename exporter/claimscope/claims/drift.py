"""Which nodes differ from the rest of their kind: in driver, VBIOS, MIG mode, ECC mode or power limit?

Two sources: the agents' Leases carry what NVML says, and slices carry the driver's version. A node whose agent tells a
fact is judged by that, any other by its slices. A node drifts where a fact of its devices is not the value that more
than half of all devices of the model have; where no value has that majority nobody can be said to drift, and there
is no series.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from claimscope.claims.cluster import Cluster
from claimscope.claims.model import Key, Pool, PoolKey
from claimscope.kube.objects import Lease
from claimscope.metrics.cluster import sample
from claimscope.model import Sample

log = logging.getLogger(__name__)

DEVICES_ANNOTATION: Final = "claimscope.io/devices"
DRIVER_VERSION: Final = "driver_version"


class DevicesEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Devices of one node that are alike, as its agent writes them; None where NVML does not tell."""

    model: str
    count: int = 1
    driver_version: str | None = None
    vbios_version: str | None = None
    mig_mode: str | None = None
    ecc_mode: str | None = None
    power_limit_watts: float | None = None

    def facts(self) -> Iterator[tuple[str, str]]:
        """What is told, as label values."""
        if self.driver_version:
            yield DRIVER_VERSION, _plain_version(self.driver_version)
        for name, text in (
            ("vbios_version", self.vbios_version), ("mig_mode", self.mig_mode), ("ecc_mode", self.ecc_mode),
        ):
            if text:
                yield name, text
        if self.power_limit_watts is not None:
            yield "power_limit_watts", f"{self.power_limit_watts:g}"


_ENTRIES: Final = msgspec.json.Decoder(list[DevicesEntry])


class _Fact(NamedTuple):
    """One value on some devices of a node."""

    node: str
    model: str
    name: str
    value: str


def devices_annotation(entries: Iterable[DevicesEntry]) -> str:
    """The text of the annotation; the same entries give the same text, so that a Lease changes only with them."""
    return msgspec.json.encode(sorted(entries, key=msgspec.json.encode)).decode()


def devices_of(text: str) -> list[DevicesEntry] | None:
    """What an annotation says; None where it cannot be read."""
    try:
        return _ENTRIES.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


class Drift:
    """Keeps what was read of each Lease and pool, and says once which annotation cannot be read."""

    def __init__(self) -> None:
        self._leases: dict[Key, tuple[str, Counter[_Fact]]] = {}  # annotation, and what it says
        self._pools: dict[PoolKey, tuple[Pool, Counter[_Fact]]] = {}

    def samples(self, cluster: Cluster) -> list[Sample]:
        """dra_node_drift_info."""
        facts: Counter[_Fact] = Counter()
        told: set[str] = set()  # nodes whose agents tell the driver's version
        for found in self._of_leases(cluster):
            facts.update(found)
            told.update(fact.node for fact in found if fact.name == DRIVER_VERSION)
        for found in self._of_pools(cluster):
            facts.update({fact: number for fact, number in found.items() if fact.node not in told})
        majorities = _majorities(facts)
        return [
            sample("dra_node_drift_info", 1, *fact, majority)
            for fact in sorted(facts)
            if (majority := majorities.get((fact.model, fact.name))) is not None and majority != fact.value
        ]

    def _of_leases(self, cluster: Cluster) -> Iterator[Counter[_Fact]]:
        for gone in self._leases.keys() - cluster.leases.keys():
            del self._leases[gone]
        for key, lease in cluster.leases.items():
            text = (lease.metadata.annotations or {}).get(DEVICES_ANNOTATION)
            if text is None:
                continue
            known = self._leases.get(key)
            if known is None or known[0] != text:
                known = self._leases[key] = text, _read(key, _node_of(lease), text)
            yield known[1]

    def _of_pools(self, cluster: Cluster) -> Iterator[Counter[_Fact]]:
        for gone in self._pools.keys() - cluster.pools.keys():
            del self._pools[gone]
        for key, pool in cluster.pools.items():
            known = self._pools.get(key)
            if known is None or known[0] is not pool:
                known = self._pools[key] = pool, _published(pool)
            yield known[1]


def _node_of(lease: Lease) -> str:
    return lease.spec.holder_identity or lease.metadata.name


def _read(key: Key, node: str, text: str) -> Counter[_Fact]:
    try:
        entries = _ENTRIES.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        log.warning(
            "annotation %s of lease %s cannot be read (%s): the node's drift is judged by its slices alone; run the "
            "same version of agent and controller", DEVICES_ANNOTATION, key, error,
        )
        return Counter()
    found: Counter[_Fact] = Counter()
    for entry in entries:
        for name, value in entry.facts():
            found[_Fact(node, entry.model, name, value)] += max(entry.count, 0)
    return +found


def _published(pool: Pool) -> Counter[_Fact]:
    """Driver versions of whole devices; partitions would count their device several times."""
    found: Counter[_Fact] = Counter()
    for device in pool.devices:
        model, version = device.attribute("productName"), device.attribute("driverVersion")
        if device.node and model and version and device.attribute("type") in (None, "gpu"):
            found[_Fact(device.node, str(model), DRIVER_VERSION, _plain_version(str(version)))] += 1
    return found


def _plain_version(text: str) -> str:
    """Without leading zeros: NVIDIA's DRA driver publishes 550.163.1 for what NVML calls 550.163.01."""
    return ".".join(str(int(part)) if part.isdecimal() else part for part in text.split("."))


def _majorities(facts: Counter[_Fact]) -> dict[tuple[str, str], str]:
    """(model, fact) -> the value of more than half of the devices."""
    by_value: dict[tuple[str, str], Counter[str]] = {}
    for fact, number in facts.items():
        by_value.setdefault((fact.model, fact.name), Counter())[fact.value] += number
    found: dict[tuple[str, str], str] = {}
    for key, numbers in by_value.items():
        value, most = numbers.most_common(1)[0]
        if 2 * most > numbers.total():
            found[key] = value
    return found
