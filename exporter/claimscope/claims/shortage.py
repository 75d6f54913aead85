"""What do the nodes of the cluster lack for a claim, and which node comes closest?

Nodes that look alike to a demand are searched once, and claims that want the same share one answer, so that thousands
of pending claims on ten thousand nodes cost little; only pools that changed are looked at again.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from claimscope.claims.cluster import Cluster
from claimscope.claims.demand import Demand, Option, Rule, demand_of
from claimscope.claims.fitting import (
    Candidate,
    CounterKey,
    Matching,
    SearchTooLong,
    Stage,
    Stock,
    Stocked,
    candidate,
    capacity_taken,
    rule_value,
    stage_of,
    stock_of,
)
from claimscope.claims.model import DeviceFacts, Pool, PoolKey
from claimscope.claims.quantity import Quantity
from claimscope.claims.selectors import Verdict
from claimscope.claims.taints import tolerates
from claimscope.kube.objects import ClaimSpec

NOT_YET: Final = "not evaluated yet"  # the text of a verdict that will come
HOLDERS_SHOWN: Final = 10
CLOSEST_SHOWN: Final = 3
_DRIVER: Final = re.compile(r"""device\.driver\s*==\s*(["'])(.*?)\1""")


class Tally(NamedTuple):
    """Devices, counted."""

    exist: int = 0  # of the drivers that the selectors name, or of all
    match: int = 0
    in_use: int = 0  # of those that match
    tainted: int = 0  # of those that match and are not in use
    usable: int = 0  # the rest
    errors: int = 0
    unknown: int = 0


class Obstacle(NamedTuple):
    """A taint, wherever it stands."""

    key: str
    value: str
    effect: str
    rule: str  # "": the driver set it


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """A node that comes as close as any."""

    node: str
    match: int
    usable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Why a demand finds no devices, or that it does."""

    demand: Demand
    stage: Stage | None  # FITS: some node could serve it; None: unknown, see `unknown`
    tally: Tally
    fragmented: bool = False  # fails for want of free devices on one node, of which there are enough in all
    closest: tuple[Near, ...] = ()
    closest_nodes: int = 0  # how many nodes get as far
    drivers: tuple[str, ...] = ()  # that selectors name
    missing_drivers: tuple[str, ...] = ()  # of these, the ones that publish nothing
    incomplete: tuple[Pool, ...] = ()  # pools of these drivers that serve nobody at present
    incomplete_would_fit: bool = False
    error: str = ""  # what a selector says on `tally.errors` devices
    error_selector: str = ""
    unknown: str = ""
    taints: tuple[tuple[Obstacle, int], ...] = ()  # in the way, and on how many matching devices that are free
    holders: tuple[tuple[str, str], ...] = ()  # (device, claim) of devices that match, the closest node's first


_CODES: Final = {Verdict.MATCH: 0, Verdict.NO_MATCH: 1, Verdict.ERROR: 2, Verdict.UNKNOWN: 3}
_MATCH, _NO_MATCH, _ERROR, _UNKNOWN = range(4)

Trouble = tuple[str, str]  # a selector and what it said


@dataclass(frozen=True, slots=True)
class _Column:
    """What one option's selectors say of a pool's devices."""

    codes: bytes
    error: Trouble | None = None  # one of them
    unknown: Trouble | None = None
    unclear: DeviceFacts | None = None  # the device of `unknown`


class _Move(NamedTuple):
    """A pool that changed."""

    pool: PoolKey
    left: str | None  # the one node that it served before
    wide: bool  # it served several


@dataclass(frozen=True, slots=True)
class _Kind:
    """Pools that a demand cannot tell apart."""

    tally: Tally
    error: Trouble | None


@dataclass(slots=True)
class _Shape:
    """A demand and what is known about every node."""

    demand: Demand
    options: tuple[Option, ...]
    drivers: tuple[str, ...]
    kind_of_pool: dict[PoolKey, int] = field(default_factory=dict)
    told: int = -1  # how much of the log of changes it has seen
    numbers: dict[object, int] = field(default_factory=dict)  # of kinds
    kinds: list[_Kind] = field(default_factory=list)
    open: dict[PoolKey, _Column] = field(default_factory=dict)  # pools with unknown verdicts
    group_of_node: dict[str, object] = field(default_factory=dict)
    stages: dict[object, tuple[Stage | None, Stage | None]] = field(default_factory=dict)  # for sure, and at best
    wide_labels: int = -1  # node labels that wide pools were matched with
    used_in_round: int = 0
    updated_in_round: int = 0
    answer: Shortage | None = None


class Shortages:
    """Answers for demands, kept from one round to the next."""

    def __init__(self) -> None:
        self._round = 0
        self._revision = -1
        self._classes_revision = -1
        self._seen: dict[PoolKey, int] = {}
        self._states: dict[PoolKey, tuple[Pool, tuple[object, ...]]] = {}
        self._log: list[_Move] = []
        self._log_began = 0  # how many older entries were dropped
        self._home: dict[PoolKey, str] = {}  # the one node that a pool serves
        self._local: dict[str, set[PoolKey]] = {}
        self._wide: set[PoolKey] = set()  # pools that serve several nodes
        self._barred: set[PoolKey] = set()  # pools that serve nobody: incomplete or contradictory
        self._columns: dict[str, dict[PoolKey, tuple[Pool, _Column]]] = {}
        self._shapes: dict[bytes, _Shape] = {}

    def begin(self, cluster: Cluster) -> None:
        """Takes in what changed since the last round; demands that nobody asked for in a while are forgotten."""
        self._round += 1
        if cluster.classes_revision != self._classes_revision:
            self._classes_revision = cluster.classes_revision
            self._shapes.clear()
        self._shapes = {
            key: shape for key, shape in self._shapes.items() if shape.used_in_round >= self._round - 10
        }
        used = {text for shape in self._shapes.values() for option in shape.options for text in option.selectors or ()}
        self._columns = {text: known for text, known in self._columns.items() if text in used}
        if cluster.revision == self._revision:
            return
        self._revision = cluster.revision
        if len(self._log) > 100_000:
            self._log_began += len(self._log)
            self._log.clear()
        for key, revision in cluster.pool_revisions.items():
            if self._seen.get(key) != revision:
                self._seen[key] = revision
                self._restock(cluster, key)

    def _restock(self, cluster: Cluster, key: PoolKey) -> None:
        home = self._home.pop(key, None)
        if home is not None:
            self._local[home].discard(key)
            if not self._local[home]:
                del self._local[home]
        move = _Move(key, home, key in self._wide)
        self._wide.discard(key)
        self._barred.discard(key)
        pool = cluster.pools.get(key)
        if pool is None:
            if self._states.pop(key, None) is not None:
                self._log.append(move)
            return
        if not pool.complete or pool.problem is not None:
            self._barred.add(key)
        state = _state(cluster, pool)
        known = self._states.get(key)
        if known is None or known[0] is not pool or known[1] != state:
            self._states[key] = (pool, state)
            self._log.append(move)
        nodes = {facts.node for facts in pool.devices}
        home = nodes.pop() if len(nodes) == 1 else None
        if home is not None:
            self._home[key] = home
            self._local.setdefault(home, set()).add(key)
        elif pool.devices:
            self._wide.add(key)

    def find(self, cluster: Cluster, matching: Matching, specs: Sequence[ClaimSpec]) -> Shortage:
        """What stands in the way of claims that one pod needs together."""
        key = msgspec.msgpack.encode(specs)
        shape = self._shapes.get(key)
        if shape is None:
            demand = demand_of(specs, cluster.classes)
            shape = self._shapes[key] = _Shape(demand, demand.options, drivers_named(demand))
        shape.used_in_round = self._round
        if shape.updated_in_round != self._round or shape.answer is None:
            shape.updated_in_round = self._round
            if self._update(cluster, matching, shape) or shape.answer is None:
                answer = self._answer(cluster, matching, shape)
                if answer != shape.answer:  # else the same object, so that what was made of it stands
                    shape.answer = answer
        return shape.answer

    # --- one demand, all pools ---

    def _update(self, cluster: Cluster, matching: Matching, shape: _Shape) -> bool:
        known = shape.kind_of_pool
        moves: Sequence[_Move] = ()
        if shape.told < self._log_began:
            changed = {*self._states, *known}
            shape.group_of_node.clear()
            shape.stages.clear()
        else:
            moves = self._log[shape.told - self._log_began:]
            changed = {move.pool for move in moves}
        shape.told = self._log_began + len(self._log)
        if _clearer(matching, shape):
            changed |= set(shape.open)
        labels_moved = bool(self._wide) and shape.wide_labels != cluster.node_labels_version
        shape.wide_labels = cluster.node_labels_version
        if not changed and not labels_moved:
            return False
        if len(shape.kinds) > 2 * len(self._states) + 1000:  # most of them states of long ago
            shape.kinds.clear()
            shape.numbers.clear()
            shape.stages.clear()
            shape.group_of_node.clear()
            changed = {*self._states, *known}
        everywhere = labels_moved or not changed.isdisjoint(self._wide) or any(move.wide for move in moves)
        touched = {move.left for move in moves if move.left is not None}
        for key in changed:
            shape.open.pop(key, None)
            known.pop(key, None)
            state = self._states.get(key)
            if state is not None:
                known[key] = self._kind(cluster, matching, shape, *state)
            if key in self._home:
                touched.add(self._home[key])
        if everywhere:
            shape.stages.clear()
            touched = {*self._local, *cluster.nodes, *shape.group_of_node, ""} if self._wide else {
                *self._local, *shape.group_of_node
            }
        for node in touched:
            self._group(cluster, matching, shape, node)
        return True

    def _kind(
        self, cluster: Cluster, matching: Matching, shape: _Shape, pool: Pool, state: tuple[object, ...]
    ) -> int:
        columns = [self._column(matching, option, pool) for option in shape.options]
        for column in columns:
            if column.unknown is not None:
                shape.open[pool.key] = column
                break
        codes = tuple([column.codes for column in columns])
        values = tuple([_values(rule, pool) for rule in shape.demand.rules])
        key = (pool.key.driver, codes, state, values)
        number = shape.numbers.get(key)
        if number is None:
            number = shape.numbers[key] = len(shape.kinds)
            error = next((column.error for column in columns if column.error is not None), None)
            shape.kinds.append(_Kind(_tally(cluster, shape, pool, codes), error))
        return number

    def _column(self, matching: Matching, option: Option, pool: Pool) -> _Column:
        if option.selectors is None:
            return _Column(bytes([_NO_MATCH]) * len(pool.devices))
        found = _Column(bytes(len(pool.devices)))
        for expression in option.selectors:
            if not any(found.codes):  # every device got as far, mostly
                found = self._evaluated(matching, expression, pool)
            elif _MATCH in found.codes:
                found = _and(found, self._evaluated(matching, expression, pool))
        if option.capacity:
            codes = bytes([
                _NO_MATCH if code == _MATCH and capacity_taken(option, facts) is None else code
                for code, facts in zip(found.codes, pool.devices, strict=True)
            ])
            return _Column(codes, found.error, found.unknown, found.unclear)
        return found

    def _evaluated(self, matching: Matching, expression: str, pool: Pool) -> _Column:
        known = self._columns.setdefault(expression, {})
        found = known.get(pool.key)
        if found is not None and found[0] is pool:
            return found[1]
        error = unknown = unclear = None
        codes = bytearray()
        for facts in pool.devices:
            match = matching.match(expression, facts)
            codes.append(_CODES[match.verdict])
            if match.verdict is Verdict.ERROR:
                error = (expression, match.text)
            elif match.verdict is Verdict.UNKNOWN and (unknown is None or match.text.startswith(NOT_YET)):
                unknown, unclear = (expression, match.text), facts
        column = _Column(bytes(codes), error, unknown, unclear)
        if unknown is None:
            known[pool.key] = (pool, column)
        return column

    def _group(self, cluster: Cluster, matching: Matching, shape: _Shape, node: str) -> None:
        """Puts a node into the group of those that look alike; what a constraint compares is alike by position."""
        pools = self._local.get(node, ())
        wide = self._wide and any(
            cluster.usable_on(facts, node) for key in self._wide for facts in cluster.pools[key].devices
        )
        group: object
        if not pools and not wide:
            shape.group_of_node.pop(node, None)
            return
        if len(pools) == 1 and not wide:
            group = next(shape.kind_of_pool[key] for key in pools)
        elif shape.demand.rules:
            group = node  # attributes are compared across pools, so no two nodes are surely alike
            shape.stages.pop(node, None)
        else:
            local = frozenset(Counter([shape.kind_of_pool[key] for key in pools]).items())
            usable = frozenset(
                facts.key for key in self._wide for facts in cluster.pools[key].devices
                if cluster.usable_on(facts, node)
            ) if wide else frozenset()
            group = (local, usable)
        shape.group_of_node[node] = group
        if group not in shape.stages:
            shape.stages[group] = self._stages(cluster, matching, shape, node)

    def _stages(
        self, cluster: Cluster, matching: Matching, shape: _Shape, node: str
    ) -> tuple[Stage | None, Stage | None]:
        certain: list[Candidate] = []
        hopeful: list[Candidate] = []
        counters: dict[CounterKey, Quantity] = {}
        for key in (*sorted(self._local.get(node, ())), *sorted(self._wide)):
            pool = cluster.pools[key]
            if pool.complete and pool.problem is None:
                stock = stock_of(cluster, pool)
                counters.update(stock.counters)
                for found, codes in ((certain, (_MATCH,)), (hopeful, (_MATCH, _UNKNOWN))):
                    found.extend(self._candidates(cluster, matching, shape, stock, codes, node))
        sure = _stage(shape.demand, certain, counters)
        if all(each.fits == other.fits for each, other in zip(certain, hopeful, strict=False)) and len(
            certain
        ) == len(hopeful):
            return sure, sure
        return sure, _stage(shape.demand, hopeful, counters)

    def _candidates(
        self, cluster: Cluster, matching: Matching, shape: _Shape, stock: Stock, codes: Sequence[int],
        node: str | None,
    ) -> list[Candidate]:
        columns = [self._column(matching, option, stock.pool).codes for option in shape.options]
        found: list[Candidate] = []
        for index, stocked in enumerate(stock.devices):
            fits = tuple([column[index] in codes for column in columns])
            if True in fits and (node is None or cluster.usable_on(stocked.facts, node)):
                found.append(candidate(shape.demand, shape.options, stocked, fits))
        return found

    # --- the answer ---

    def _answer(self, cluster: Cluster, matching: Matching, shape: _Shape) -> Shortage:
        pools = Counter(shape.kind_of_pool.values())
        kinds = [(shape.kinds[number], times) for number, times in pools.items()]
        tally = Tally(*(
            sum(kind.tally[place] * times for kind, times in kinds) for place in range(len(Tally._fields))
        ))
        stages = [shape.stages[group] for group in set(shape.group_of_node.values())]
        sure = max((stage for stage, _ in stages if stage is not None), default=Stage.MATCH)
        best = max((stage for _, stage in stages if stage is not None), default=Stage.MATCH)
        unknown = ""
        if best != sure:
            unknown = next((column.unknown[1] for column in shape.open.values() if column.unknown is not None), "")
        if sure is not Stage.FITS and any(stage is None for pair in stages for stage in pair):
            unknown = "the search for devices was given up, there are too many combinations"
        closest, nodes = self._closest(shape, sure)
        incomplete = tuple(
            cluster.pools[key] for key in sorted(self._barred) if not shape.drivers or key.driver in shape.drivers
        )
        error = next((kind.error for kind, _ in kinds if kind.error is not None), ("", ""))
        return Shortage(
            demand=shape.demand,
            stage=None if unknown else sure,
            fragmented=sure is Stage.FREE and tally.usable >= shape.demand.devices,
            tally=tally,
            closest=closest,
            closest_nodes=nodes,
            drivers=shape.drivers,
            missing_drivers=tuple(
                driver for driver in shape.drivers if not any(key.driver == driver for key in self._states)
            ),
            incomplete=incomplete,
            incomplete_would_fit=any(self._would_fit(cluster, matching, shape, pool) for pool in incomplete),
            error=error[1],
            error_selector=error[0],
            unknown=unknown,
            taints=self._taints(cluster, matching, shape) if tally.tainted else (),
            holders=self._holders(cluster, matching, shape, [each.node for each in closest]) if tally.in_use else (),
        )

    def _closest(self, shape: _Shape, stage: Stage) -> tuple[tuple[Near, ...], int]:
        """The nodes that get furthest, those with most usable devices first, and how many they are."""
        groups = {group for group, stages in shape.stages.items() if stages[0] is stage}
        nodes = [node for node, group in shape.group_of_node.items() if group in groups]
        tallies: dict[object, tuple[int, int]] = {}
        for node in nodes:
            group = shape.group_of_node[node]
            if group not in tallies:
                own = [shape.kinds[shape.kind_of_pool[key]].tally for key in self._local.get(node, ())]
                tallies[group] = (sum(each.usable for each in own), sum(each.match for each in own))
        best = heapq.nsmallest(
            CLOSEST_SHOWN,
            ((-tallies[group][0], -tallies[group][1], node) for node in nodes if (group := shape.group_of_node[node])
             in tallies and node),
        )
        return tuple(Near(node=node, match=-match, usable=-usable) for usable, match, node in best), len(nodes)

    def _would_fit(self, cluster: Cluster, matching: Matching, shape: _Shape, pool: Pool) -> bool:
        stock = stock_of(cluster, pool)
        seen = self._candidates(cluster, matching, shape, stock, (_MATCH, _UNKNOWN), None)
        return _stage(shape.demand, seen, stock.counters) is Stage.FITS

    def _holders(
        self, cluster: Cluster, matching: Matching, shape: _Shape, nodes: Iterable[str]
    ) -> tuple[tuple[str, str], ...]:
        first = [key for node in nodes for key in sorted(self._local.get(node, ()))]
        found: list[tuple[str, str]] = []
        seen: set[PoolKey] = set()
        busy = {number for number, kind in enumerate(shape.kinds) if kind.tally.in_use}
        for key in itertools.chain(first, _sorted_late(shape.kind_of_pool)):
            if shape.kind_of_pool[key] not in busy or key in seen:
                continue
            seen.add(key)
            stock = stock_of(cluster, cluster.pools[key])
            for each in self._candidates(cluster, matching, shape, stock, (_MATCH,), None):
                if each.stocked.held:
                    holdings = cluster.holdings(each.stocked.facts.key)
                    found += [(str(holding.device), str(holding.claim)) for holding in holdings if not holding.admin]
            if len(found) >= HOLDERS_SHOWN:
                break
        return tuple(found[:HOLDERS_SHOWN])

    def _taints(self, cluster: Cluster, matching: Matching, shape: _Shape) -> tuple[tuple[Obstacle, int], ...]:
        pools = Counter(shape.kind_of_pool.values())
        examples = {number: key for key, number in shape.kind_of_pool.items()}
        counts: Counter[Obstacle] = Counter()
        for number, times in pools.items():
            if not shape.kinds[number].tally.tainted:
                continue
            stock = stock_of(cluster, cluster.pools[examples[number]])
            for each in self._candidates(cluster, matching, shape, stock, (_MATCH,), None):
                for taint in each.stocked.taints if any(each.blocked) and not each.stocked.held else ():
                    counts[Obstacle(taint.key, taint.value, taint.effect, taint.rule or "")] += times
        return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _sorted_late(keys: Iterable[PoolKey]) -> Iterator[PoolKey]:
    """Sorts when it is first asked, which is seldom."""
    yield from sorted(keys)


def _clearer(matching: Matching, shape: _Shape) -> bool:
    """Whether verdicts that were unknown may be known by now; one of them stands for all that fail alike."""
    for column in shape.open.values():
        if column.unknown is not None and column.unclear is not None:
            expression, text = column.unknown
            return text.startswith(NOT_YET) or matching.match(expression, column.unclear).text != text
    return False


def _and(one: _Column, other: _Column) -> _Column:
    """Selectors in their order: the first that is not MATCH decides."""
    return _Column(
        bytes([right if left == _MATCH else left for left, right in zip(one.codes, other.codes, strict=True)]),
        one.error or other.error, one.unknown or other.unknown, one.unclear or other.unclear,
    )


def _state(cluster: Cluster, pool: Pool) -> tuple[object, ...]:
    """All that tells two pools apart but their devices' contents: what is held, tainted, drawn and left."""
    held = bytearray()
    holdings = cluster.held_devices()
    plain = not cluster.rules
    for facts in pool.devices:
        holders = holdings.get(facts.key)
        held.append(holders is not None and not all(each.admin for each in holders))
        plain = plain and not (facts.taints or facts.shared or facts.consumes)
    serves = pool.complete and pool.problem is None
    if plain:
        return (serves, bytes(held))
    stock = stock_of(cluster, pool)
    return (
        serves,
        bytes(held),
        tuple(_own_state(stocked) for stocked in stock.devices),
        tuple(sorted((name, counter, str(left)) for (_, name, counter), left in stock.counters.items())),
    )


def _own_state(stocked: Stocked) -> tuple[object, ...]:
    facts = stocked.facts
    return (
        stocked.held,
        stocked.drawn,
        tuple((taint.key, taint.value, taint.effect, taint.rule) for taint in stocked.taints),
        tuple(
            (each.counter_set, tuple(sorted((name, counter.value) for name, counter in (each.counters or {}).items())))
            for each in facts.consumes
        ),
        tuple(sorted((name, str(amount)) for name, amount in stocked.left.items())),
    )


def _values(rule: Rule, pool: Pool) -> tuple[int, ...]:
    """Which devices of a pool have the same value, whatever it is; 0: none."""
    seen: dict[object, int] = {None: 0}
    return tuple([seen.setdefault(rule_value(rule, facts), len(seen)) for facts in pool.devices])


def _tally(cluster: Cluster, shape: _Shape, pool: Pool, columns: tuple[bytes, ...]) -> Tally:
    stock = stock_of(cluster, pool)
    match = in_use = tainted = usable = errors = unknown = 0
    for index, stocked in enumerate(stock.devices):
        codes = [column[index] for column in columns]
        errors += _ERROR in codes
        unknown += _UNKNOWN in codes
        if _MATCH not in codes:
            continue
        match += 1
        fitting = [option for option, code in zip(shape.options, codes, strict=True) if code == _MATCH]
        free = [option for option in fitting if option.admin or not stocked.held]
        able = any(all(tolerates(option.tolerations, taint) for taint in stocked.taints) for option in free)
        in_use += not free
        tainted += bool(free) and not able
        usable += able and pool.complete and pool.problem is None
    exist = len(stock.devices) if not shape.drivers or pool.key.driver in shape.drivers else 0
    return Tally(exist, match, in_use, tainted, usable, errors, unknown)


def drivers_named(demand: Demand) -> tuple[str, ...]:
    """The drivers that the selectors compare with, by their text; an expression may name several."""
    named = {
        literal
        for option in demand.options
        for expression in option.selectors or ()
        for _, literal in _DRIVER.findall(expression)
    }
    return tuple(sorted(named))


def _stage(
    demand: Demand, candidates: Sequence[Candidate], counters: Mapping[CounterKey, Quantity]
) -> Stage | None:
    try:
        return stage_of(demand, candidates, counters)
    except SearchTooLong:
        return None
