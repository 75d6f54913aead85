"""How many devices are there, what state are they in, and how large a claim would still fit?

Every published device of the newest generation of its pool is in exactly one state, the first of these that holds:

allocated   a claim that does not merely observe holds it. A device that claims may share is allocated only when not
            even the smallest share that its request policies allow is left; what is taken of it has its own family.
unhealthy   a NoSchedule or NoExecute taint says that something is wrong with it (HEALTH_KEYS).
tainted     any other NoSchedule or NoExecute taint.
reserved    free, and yet nobody can have it: partitions that overlap it have taken the counters it draws from, or its
            pool is incomplete or broken, which makes the scheduler pass it over.
free        the rest.

What the kubelet reports about health in pod status concerns allocated devices alone, so it decides no state here.
Only allocated and free are shown where they are zero; a pool without tainted devices has no series that says so.
A device counts in every class that it matches, and under an empty class where it is known to match none, or where it
cannot be told. Drivers are data: nothing here knows a vendor beyond the keys of its health taints.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final, NamedTuple

import msgspec

from claimscope.claims.cluster import Cluster, node_matches
from claimscope.claims.fitting import DEVICES_PER_CLAIM
from claimscope.claims.model import DeviceFacts, Holding, Pool, PoolKey
from claimscope.claims.quantity import Quantity, QuantityError
from claimscope.claims.selectors import Verdict
from claimscope.claims.taints import Matcher, expressions_of
from claimscope.kube.objects import Capacity as DeviceCapacity
from claimscope.kube.objects import NodeSelector, NodeSelectorTerm
from claimscope.metrics.cluster import sample
from claimscope.model import Sample

HEALTH_KEYS: Final = frozenset({
    "gpu.nvidia.com/xid",
    "gpu.nvidia.com/gpu-lost",
    "claimscope.io/degraded",
    "claimscope.io/unhealthy",
    "claimscope.io/lost",
})

_NO_CLASS: Final = ""
_FRUITLESS: Final = 16  # pools without news after which the look for newly evaluated selectors ends

CounterKey = tuple[str, str]  # counter set, counter
Amounts = Mapping[CounterKey, Fraction]

_NOTHING: Final[Amounts] = {}


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
    needs: tuple[Amounts, ...]  # counters that each device draws while it is allocated
    counters: Amounts
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
        self._unsettled: dict[PoolKey, None] = {}  # longest waiting first
        self._on_node: dict[str, dict[str, int]] = {}  # class -> node -> devices that could be had there
        self._roaming: dict[PoolKey, Mapping[tuple[str, _Place], int]] = {}  # those usable on several nodes
        self._nodes = _Nodes()
        self._result: list[Sample] = []

    def samples(self, cluster: Cluster, selectors: Matcher) -> list[Sample]:
        """dra_pool_*, dra_device_shared_* and dra_class_largest_claim_devices."""
        dirty = cluster.take_dirty_pools()
        classes = {name: expressions_of(each.spec.selectors) for name, each in cluster.classes.items()}
        reclassed = classes != self._classes
        if reclassed:
            self._classes = classes
            dirty |= cluster.pools.keys() | self._counted.keys()
            for key in dirty:
                self._forget(key)
        dirty |= self._settled(cluster, selectors, dirty)
        relabelled = self._nodes.follow(cluster) and bool(self._roaming)
        if dirty or reclassed or relabelled:
            for key in dirty:
                self._count(key, cluster, selectors)
            self._result = [each for counted in self._counted.values() for each in counted.samples]
            self._result += self._largest(cluster)
        return list(self._result)

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
            needs=tuple(_needs(device) for device in pool.devices),
            counters={
                (name, counter): amount
                for name, counters in pool.counters.items()
                for counter, text in counters.items()
                if (amount := _amount(text)) is not None
            },
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
    holders = [_holders(cluster, device) for device in pool.devices]
    left = dict(known.counters)
    for needs, holding in zip(known.needs, holders, strict=True):
        if holding:
            _draw(left, needs)
    # A shared device in use has drawn its counters already; further shares draw nothing.
    open_needs = [_NOTHING if holding else needs for needs, holding in zip(known.needs, holders, strict=True)]
    states = [
        _state(device, holding, needs, left, pool, cluster)
        for device, holding, needs in zip(pool.devices, holders, open_needs, strict=True)
    ]
    samples = [
        *_states(known, states),
        sample("dra_pool_complete", 1 if pool.complete else 0, *pool.key),
        *_counters(known, left),
        *(each for device, holding in zip(pool.devices, holders, strict=True) if device.shared
          for each in _shares(device, holding)),
    ]
    return _Counted(known=known, samples=tuple(samples), available=_available(known, states, open_needs, left))


def _holders(cluster: Cluster, device: DeviceFacts) -> tuple[Holding, ...]:
    """Who holds a device, observers left out."""
    holdings = cluster.holdings(device.key)
    return tuple(each for each in holdings if not each.admin) if holdings else ()


def _state(
    device: DeviceFacts, holding: tuple[Holding, ...], needs: Amounts, left: Amounts, pool: Pool, cluster: Cluster
) -> State:
    if holding and not (device.shared and _share_fits(device, holding)):
        return State.ALLOCATED
    keys = [taint.key for taint in cluster.taints(device.key) if taint.blocks]
    if keys:
        return State.TAINTED if HEALTH_KEYS.isdisjoint(keys) else State.UNHEALTHY
    if pool.problem is not None or not pool.complete:
        return State.RESERVED
    return State.FREE if _fits(left, needs) else State.RESERVED


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
        yield sample("dra_pool_counter_capacity", float(capacity), *known.pool.key, *key)
        yield sample("dra_pool_counter_consumed", float(capacity - left[key]), *known.pool.key, *key)


def _available(
    known: _Known, states: list[State], needs: list[Amounts], left: Amounts
) -> dict[tuple[str, _Place], int]:
    """How many free devices of a class could be had together at one place.

    A shared device counts once. Partitions are taken greedily, the least demanding first; devices of one pool at
    different places are looked at apart, although they may draw from the same counters.
    """
    groups: dict[tuple[str, _Place], list[Amounts]] = {}
    for index, state in enumerate(states):
        if state is State.FREE:
            for name in known.members[index]:
                groups.setdefault((name, known.places[index]), []).append(needs[index])
    if not known.counters:
        return {group: len(devices) for group, devices in groups.items()}
    return {group: _together(devices, dict(left), known.counters) for group, devices in groups.items()}


def _together(devices: list[Amounts], left: dict[CounterKey, Fraction], whole: Amounts) -> int:
    taken = 0
    for needs in sorted(devices, key=lambda each: sum(need / whole[key] for key, need in each.items() if need > 0)):
        if _fits(left, needs):
            _draw(left, needs)
            taken += 1
    return taken


def _draw(left: dict[CounterKey, Fraction], needs: Amounts) -> None:
    for key, need in needs.items():
        if key in left:
            left[key] -= need


def _fits(left: Amounts, needs: Amounts) -> bool:
    """A counter that the pool does not have gives nothing."""
    return all(need <= left.get(key, Fraction(0)) for key, need in needs.items())


def _needs(device: DeviceFacts) -> Amounts:
    if not device.consumes:
        return _NOTHING
    return {
        (consumption.counter_set, name): amount
        for consumption in device.consumes
        for name, counter in (consumption.counters or {}).items()
        if (amount := _amount(counter.value)) is not None
    }


def _place(device: DeviceFacts) -> _Place:
    if device.node is not None or device.all_nodes:
        return _Place(node=device.node)
    return _Place(selector=msgspec.json.encode(device.node_selector or NodeSelector()))  # an empty one takes no node


def _amount(text: str) -> Fraction | None:
    """A quantity; None where the text is none, which leaves the series out."""
    try:
        return Quantity.parse(text).value
    except QuantityError:
        return None


# --- one shared device ---


def _shares(device: DeviceFacts, holding: tuple[Holding, ...]) -> Iterator[Sample]:
    for name in sorted(device.capacity):
        amount = _amount(device.capacity[name].value)
        if amount is not None:
            taken = _consumed(device, holding, name)
            yield sample("dra_device_shared_capacity", float(amount), *device.key, name)
            yield sample("dra_device_shared_capacity_consumed", float(taken), *device.key, name)


def _consumed(device: DeviceFacts, holding: tuple[Holding, ...], name: str) -> Fraction:
    """What claims take of a capacity; results may spell its name with the driver's domain before it."""
    texts = (each.consumed.get(name, each.consumed.get(f"{device.key.driver}/{name}")) for each in holding)
    return sum((amount for text in texts if text is not None and (amount := _amount(text)) is not None), Fraction(0))


def _share_fits(device: DeviceFacts, holding: tuple[Holding, ...]) -> bool:
    """Whether one more share can be had; a device without any capacity has no end of them."""
    for name, capacity in device.capacity.items():
        amount = _amount(capacity.value)
        if amount is None:
            continue
        left = amount - _consumed(device, holding, name)
        if (left <= 0 and amount > 0) or left < _smallest_share(capacity):
            return False
    return True


def _smallest_share(capacity: DeviceCapacity) -> Fraction:
    """The least that a claim takes of a capacity; without a policy it may ask for however little."""
    policy = capacity.request_policy
    if policy is None:
        return Fraction(0)
    lower = policy.valid_range.min if policy.valid_range is not None else None
    texts = [text for text in (*(policy.valid_values or ()), lower, policy.default) if text is not None]
    return min((amount for text in texts if (amount := _amount(text)) is not None), default=Fraction(0))
