"""How many devices are there, what state are they in, and how large a claim would still fit?

Every published device of the newest generation of its pool is in exactly one state, the first of these that holds:

allocated   a claim that does not merely observe holds it. A device that claims may share is allocated only when not
            even the smallest share that its request policies allow is left, and without a policy as soon as one claim
            has some of it, since a plain claim takes all; what is taken of it has its own family.
unhealthy   a NoSchedule or NoExecute taint says that something is wrong with it (HEALTH_WORDS).
tainted     any other NoSchedule or NoExecute taint.
reserved    free, and yet nobody can have it: partitions that overlap it have taken the counters it draws from, or its
            pool is being rewritten, has lost its slices for the moment or is broken, which makes the scheduler pass it
            over. Its devices are then those that were published before.
free        the rest.

What the kubelet reports about health in pod status concerns allocated devices alone, so it decides no state here.
Only allocated and free are shown where they are zero; a pool without tainted devices has no series that says so.
A device counts in every class that it matches, and under an empty class where it is known to match none, or where it
cannot be told. Drivers are data: nothing here knows a vendor. What is left of a device is reckoned as the search for
devices does it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from claimscope.cel.quantity import Quantity, QuantityError
from claimscope.claims.cluster import Cluster
from claimscope.claims.fitting import (
    DEVICES_PER_CLAIM,
    CounterKey,
    Stock,
    Stocked,
    consumption_of,
    counters_of,
    has_share_left,
    serves,
    stock_of,
)
from claimscope.claims.model import DeviceFacts, Pool, PoolKey
from claimscope.claims.selectors import Verdict
from claimscope.claims.taints import Matcher, expressions_of
from claimscope.kube.nodeselector import node_matches
from claimscope.kube.objects import NodeSelector, NodeSelectorTerm
from claimscope.metrics.cluster import sample
from claimscope.model import Sample

# A taint whose key has one of these in its name, behind the driver's domain, says that the device is not well. The keys
# are each driver's own: xid and gpu-lost are NVIDIA's, unhealthy and the like AMD's, Intel's and this project's.
HEALTH_WORDS: Final = ("health", "unhealthy", "xid", "lost", "degraded", "error", "failed", "failure", "fault")
_HEALTH: Final = re.compile("|".join(HEALTH_WORDS).replace("fault", "(?<!de)fault"), re.IGNORECASE)

_NO_CLASS: Final = ""
_AT_ONCE: Final = 1000  # pools, some 0.15 s
_FRUITLESS: Final = 16  # pools without news after which the look for newly evaluated selectors ends

Amounts = Mapping[CounterKey, Quantity]


class State(enum.Enum):
    """What can be done with a device, in order of precedence."""

    ALLOCATED = "allocated"
    UNHEALTHY = "unhealthy"
    TAINTED = "tainted"
    RESERVED = "reserved"
    FREE = "free"


_ALWAYS_SHOWN: Final = frozenset({State.ALLOCATED, State.FREE})


class _Place(NamedTuple):
    """Where devices can be used: one node, the nodes that a selector takes, or (neither) every node."""

    node: str | None = None
    selector: bytes | None = None  # encoded, since a selector has no hash


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What follows from the pool and the classes alone; remade when either changes."""

    pool: Pool
    members: tuple[tuple[str, ...], ...]  # classes of each device
    unsettled: bool  # a selector was not evaluated yet
    counters: Amounts  # while nothing is allocated
    places: tuple[_Place, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counted:
    """What is shown of one pool, and what of it a claim could have on one node."""

    known: _Known
    samples: tuple[Sample, ...]
    available: Mapping[tuple[str, _Place], int]  # class, place -> devices that could be had together


@dataclass(slots=True)
class _Nodes:
    """Which nodes a selector takes; forgotten when nodes are labelled anew."""

    version: int = -1
    _chosen: dict[bytes, tuple[str, ...]] = field(default_factory=dict)
    _by_hostname: dict[str, list[str]] = field(default_factory=dict)

    def follow(self, cluster: Cluster) -> bool:
        """True where nodes have changed in a way that selectors can see."""
        if self.version == cluster.node_labels_version:
            return False
        self.version = cluster.node_labels_version
        self._chosen.clear()
        self._by_hostname.clear()
        for name, node in cluster.nodes.items():
            self._by_hostname.setdefault((node.metadata.labels or {}).get(_HOSTNAME, name), []).append(name)
        return True

    def chosen(self, encoded: bytes, cluster: Cluster) -> tuple[str, ...]:
        """The nodes that a selector takes."""
        if encoded not in self._chosen:
            selector = _SELECTOR.decode(encoded)
            candidates = {name for term in selector.node_selector_terms or () for name in self._named(term, cluster)}
            self._chosen[encoded] = tuple(
                name for name in candidates if name in cluster.nodes and node_matches(selector, cluster.nodes[name])
            )
        return self._chosen[encoded]

    def _named(self, term: NodeSelectorTerm, cluster: Cluster) -> Iterable[str]:
        """The nodes that a term names, so that a selector for one node does not cost a look at all of them."""
        for requirement in term.match_fields or ():
            if requirement.operator == "In":
                return requirement.values or ()
        for requirement in term.match_expressions or ():
            if requirement.operator == "In" and requirement.key == _HOSTNAME:
                return [name for value in requirement.values or () for name in self._by_hostname.get(value, ())]
        return cluster.nodes


_HOSTNAME: Final = "kubernetes.io/hostname"
_SELECTOR: Final = msgspec.json.Decoder(NodeSelector)


class Capacity:
    """Counts per pool, and only those pools anew in which something happened. One cluster, one Capacity."""

    def __init__(self) -> None:
        self._classes: dict[str, tuple[str, ...] | None] | None = None
        self._counted: dict[PoolKey, _Counted] = {}
        self._dirty: set[PoolKey] = set()  # to be counted anew
        self._stale = False  # something was counted since the result was put together
        self._unsettled: dict[PoolKey, None] = {}  # longest waiting first
        self._on_node: dict[str, dict[str, int]] = {}  # class -> node -> devices that could be had there
        self._roaming: dict[PoolKey, Mapping[tuple[str, _Place], int]] = {}  # those usable on several nodes
        self._nodes = _Nodes()
        self._result: list[Sample] = []

    def samples(self, cluster: Cluster, selectors: Matcher) -> list[Sample]:
        """dra_pool_*, dra_device_shared_* and dra_class_largest_claim_devices."""
        self._follow(cluster)
        self._dirty |= self._settled(cluster, selectors, self._dirty)
        relabelled = self._nodes.follow(cluster) and bool(self._roaming)
        if self._dirty or self._stale or relabelled:
            for key in self._dirty:
                self._count(key, cluster, selectors)
            self._dirty.clear()
            self._stale = False
            self._result = [each for counted in self._counted.values() for each in counted.samples]
            self._result += self._largest(cluster)
        return list(self._result)

    def counting(self, cluster: Cluster, selectors: Matcher) -> Iterator[None]:
        """Counts all that is to be counted, with a pause after each thousand pools; `samples` has little left then."""
        self._follow(cluster)
        while self._dirty:
            for key in [self._dirty.pop() for _ in range(min(_AT_ONCE, len(self._dirty)))]:
                self._count(key, cluster, selectors)
            self._stale = True
            yield

    def _follow(self, cluster: Cluster) -> None:
        """Notes which pools are to be counted anew."""
        self._dirty |= cluster.take_dirty_pools()
        classes = {name: expressions_of(each.spec.selectors) for name, each in cluster.classes.items()}
        if classes != self._classes:
            self._classes = classes
            self._stale = True
            self._dirty |= cluster.pools.keys() | self._counted.keys()
            for key in self._dirty:
                self._forget(key)

    def _settled(self, cluster: Cluster, selectors: Matcher, dirty: set[PoolKey]) -> set[PoolKey]:
        """Pools whose selectors have verdicts now; a short look where there are none."""
        found: set[PoolKey] = set()
        fruitless = 0
        for key in list(self._unsettled):
            if fruitless >= _FRUITLESS:
                break
            if key in dirty or key not in cluster.pools:
                continue
            del self._unsettled[key]
            known = self._know(cluster.pools[key], selectors)
            if known.unsettled:
                self._unsettled[key] = None
            if known.members == self._counted[key].known.members and known.unsettled:
                fruitless += 1
                continue
            fruitless = 0
            found.add(key)
            self._forget(key)
        return found

    def _forget(self, key: PoolKey) -> None:
        counted = self._counted.pop(key, None)
        self._unsettled.pop(key, None)
        self._roaming.pop(key, None)
        for (name, place), number in counted.available.items() if counted is not None else ():
            if place.node is not None:
                nodes = self._on_node[name]
                nodes[place.node] -= number
                if not nodes[place.node]:
                    del nodes[place.node]

    def _count(self, key: PoolKey, cluster: Cluster, selectors: Matcher) -> None:
        before = self._counted.get(key)
        self._forget(key)
        pool = cluster.pools.get(key)
        if pool is None:
            return
        same = before is not None and before.known.pool is pool and not before.known.unsettled
        known = before.known if before is not None and same else self._know(pool, selectors)
        counted = self._counted[key] = _count(known, cluster)
        if known.unsettled:
            self._unsettled[key] = None
        roaming = {}
        for (name, place), number in counted.available.items():
            if place.node is not None:
                nodes = self._on_node.setdefault(name, {})
                nodes[place.node] = nodes.get(place.node, 0) + number
            else:
                roaming[name, place] = number
        if roaming:
            self._roaming[key] = roaming

    def _know(self, pool: Pool, selectors: Matcher) -> _Known:
        members: list[tuple[str, ...]] = []
        alike: dict[Any, Any] = {}  # what is the same for most devices of a pool is kept once
        unsettled = False
        for device in pool.devices:
            found: list[str] = []
            for name, expressions in (self._classes or {}).items():
                if expressions is None:
                    continue
                verdict = selectors.matches_all(expressions, device).verdict
                if verdict is Verdict.MATCH:
                    found.append(name)
                elif verdict is Verdict.UNKNOWN:
                    unsettled = True
            members.append(alike.setdefault(tuple(found), tuple(found)))
        return _Known(
            pool=pool,
            members=tuple(members),
            unsettled=unsettled,
            counters=counters_of(pool),
            places=tuple([alike.setdefault(place, place) for place in map(_place, pool.devices)]),
        )

    def _largest(self, cluster: Cluster) -> Iterator[Sample]:
        everywhere: dict[str, int] = {}
        several: dict[str, dict[str, int]] = {}
        for roaming in self._roaming.values():
            for (name, place), number in roaming.items():
                if place.selector is None:
                    everywhere[name] = everywhere.get(name, 0) + number
                    continue
                on_node = several.setdefault(name, {})
                for node in self._nodes.chosen(place.selector, cluster):
                    on_node[node] = on_node.get(node, 0) + number
        for name in sorted(self._classes or {}):
            local, more = self._on_node.get(name, {}), several.get(name, {})
            best = max(local.values(), default=0)
            best = max([best, *(number + local.get(node, 0) for node, number in more.items())])
            yield sample(
                "dra_class_largest_claim_devices", min(best + everywhere.get(name, 0), DEVICES_PER_CLAIM), name
            )


# --- one pool ---


def _count(known: _Known, cluster: Cluster) -> _Counted:
    pool = known.pool
    stock = stock_of(cluster, pool)
    states = [_state(stocked, stock) for stocked in stock.devices]
    samples = [
        *_states(known, states),
        sample("dra_pool_complete", 1 if pool.complete else 0, *pool.key),
        sample("dra_pool_published", 1 if pool.published else 0, *pool.key),
        *_counters(known, stock.counters),
        *(each for stocked in stock.devices if stocked.facts.shared for each in _shares(stocked)),
    ]
    return _Counted(known=known, samples=tuple(samples), available=_available(known, states, stock))


def _state(stocked: Stocked, stock: Stock) -> State:
    fits = not stocked.facts.shared or has_share_left(stocked)
    if stocked.held or (stocked.drawn and not fits):
        return State.ALLOCATED
    if stocked.taints:
        return State.UNHEALTHY if any(says_unwell(taint.key) for taint in stocked.taints) else State.TAINTED
    if not (fits and serves(stock.pool) and _fits(stock.counters, _needs(stocked))):
        return State.RESERVED
    return State.FREE


@lru_cache(maxsize=1024)
def says_unwell(key: str) -> bool:
    """Whether the key of a taint says that something is wrong with the device."""
    return _HEALTH.search(key.rpartition("/")[2]) is not None


def _states(known: _Known, states: list[State]) -> Iterator[Sample]:
    of_class: dict[str, list[State]] = {}
    for members, state in zip(known.members, states, strict=True):
        for name in members or (_NO_CLASS,):
            of_class.setdefault(name, []).append(state)
    for name in sorted(of_class):
        for state in State:
            number = of_class[name].count(state)
            if number or state in _ALWAYS_SHOWN:
                yield sample("dra_pool_devices", number, *known.pool.key, name, state.value)


def _counters(known: _Known, left: Amounts) -> Iterator[Sample]:
    for key in sorted(known.counters):
        capacity = known.counters[key]
        yield sample("dra_pool_shared_capacity", capacity.as_float(), *known.pool.key, *key[1:])
        yield sample("dra_pool_shared_capacity_consumed", (capacity - left[key]).as_float(), *known.pool.key, *key[1:])


def _available(known: _Known, states: list[State], stock: Stock) -> dict[tuple[str, _Place], int]:
    """How many free devices of a class could be had together at one place.

    A shared device counts once. Partitions are taken greedily, the least demanding first; devices of one pool at
    different places are looked at apart, although they may draw from the same counters.
    """
    groups: dict[tuple[str, _Place], list[Stocked]] = {}
    for index, state in enumerate(states):
        if state is State.FREE:
            for name in known.members[index]:
                groups.setdefault((name, known.places[index]), []).append(stock.devices[index])
    if not known.counters:
        return {group: len(devices) for group, devices in groups.items()}
    return {
        group: _together([_needs(each) for each in devices], dict(stock.counters), known.counters)
        for group, devices in groups.items()
    }


def _together(devices: list[Amounts], left: dict[CounterKey, Quantity], whole: Amounts) -> int:
    def part(needs: Amounts) -> float:
        return sum(float(need.value / whole[key].value) for key, need in needs.items() if need.sign > 0)

    taken = 0
    for needs in sorted(devices, key=part):
        if _fits(left, needs):
            for key, need in needs.items():
                left[key] = left[key] - need
            taken += 1
    return taken


def _needs(stocked: Stocked) -> Amounts:
    """What taking a device draws from its pool's counters; a shared one that is in use draws nothing more."""
    return {} if stocked.drawn or not stocked.facts.consumes else dict(consumption_of(stocked.facts))


def _fits(left: Amounts, needs: Amounts) -> bool:
    """A counter that the pool does not have gives nothing."""
    return all(key in left and need <= left[key] for key, need in needs.items())


def _place(device: DeviceFacts) -> _Place:
    if device.node is not None or device.all_nodes:
        return _Place(node=device.node)
    return _Place(selector=msgspec.json.encode(device.node_selector or NodeSelector()))  # an empty one takes no node


# --- one shared device ---


def _shares(stocked: Stocked) -> Iterator[Sample]:
    device = stocked.facts
    for name in sorted(stocked.left):
        try:
            whole = Quantity.parse(device.capacity[name].value)
        except QuantityError:
            continue  # no number, no series
        yield sample("dra_device_shared_capacity", whole.as_float(), *device.key, name)
        yield sample(
            "dra_device_shared_capacity_consumed", (whole - stocked.left[name]).as_float(), *device.key, name
        )
