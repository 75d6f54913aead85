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

from claimscope.claims import verdicts
from claimscope.claims.cluster import Cluster
from claimscope.claims.demand import Demand, Option, Rule, demand_of
from claimscope.claims.fitting import (
    DEVICES_PER_CLAIM,
    Candidate,
    CounterKey,
    Matching,
    SearchTooLong,
    Stage,
    Stock,
    candidate,
    rule_value,
    serves,
    stage_of,
    stock_of,
)
from claimscope.claims.layout import SOME_NODE, Layout, State, nodes_of
from claimscope.claims.model import Pool, PoolKey
from claimscope.claims.quantity import Quantity
from claimscope.claims.shortage import Near, Obstacle, Shortage, Tally
from claimscope.claims.verdicts import Column, Columns, Trouble
from claimscope.kube.objects import ClaimSpec, NodeSelector

HOLDERS_SHOWN: Final = 10
CLOSEST_SHOWN: Final = 3
_KEPT_TURNS: Final = 10  # that a demand is remembered after it was last asked for
_DRIVER: Final = re.compile(r"""device\.driver\s*==\s*(["'])(.*?)\1""")
_SURE: Final = (verdicts.MATCH,)
_HOPEFUL: Final = (verdicts.MATCH, verdicts.UNKNOWN)


class _Reach(NamedTuple):
    """How far a demand gets on a node; None: the search was given up."""

    sure: Stage | None  # with the devices that are known to match
    hopeful: Stage | None  # with those besides of which it is not known


@dataclass(frozen=True, slots=True)
class _Kind:
    """Pools that a demand cannot tell apart."""

    tally: Tally
    error: Trouble | None
    matching: tuple[int, ...]  # devices, by option
    free: tuple[int, ...]  # of these, the ones that could be had, by option


@dataclass(slots=True)
class _Shape:
    """A demand and what is known about every node."""

    demand: Demand
    options: tuple[Option, ...]
    drivers: tuple[str, ...]
    within: tuple[NodeSelector, ...]
    nodes: frozenset[str] | None = None  # those that satisfy `within`; None: all
    kind_of_pool: dict[PoolKey, int] = field(default_factory=dict)
    mark: int = -1  # how many of the layout's moves it has seen
    numbers: dict[object, int] = field(default_factory=dict)  # of kinds
    kinds: list[_Kind] = field(default_factory=list)
    open: dict[PoolKey, Trouble] = field(default_factory=dict)  # pools with unknown verdicts
    group_of_node: dict[str, object] = field(default_factory=dict)  # nodes of one group are alike
    reach: dict[object, _Reach] = field(default_factory=dict)  # by group
    labels: int = -1  # version of the node labels that wide pools were matched with
    asked_in_turn: int = 0
    updated_in_round: int = 0
    answer: Shortage | None = None

    def forget(self) -> None:
        """Drops what was concluded."""
        for known in (self.kinds, self.numbers, self.reach, self.group_of_node):
            known.clear()


class Survey:
    """Answers for demands, kept from one round to the next."""

    def __init__(self) -> None:
        self._round = 0
        self._turn = 0
        self._classes_revision = -1
        self._layout = Layout()
        self._columns = Columns()
        self._shapes: dict[bytes, _Shape] = {}

    def begin(self, cluster: Cluster) -> None:
        """Takes in what changed since the last round."""
        self._round += 1
        if cluster.classes_revision != self._classes_revision:
            self._classes_revision = cluster.classes_revision
            self._shapes.clear()
        self._layout.refresh(cluster)

    def forget_unasked(self) -> None:
        """Once a turn in which all demands that matter were asked for: drops those of long ago."""
        self._turn += 1
        self._shapes = {
            key: shape for key, shape in self._shapes.items() if shape.asked_in_turn >= self._turn - _KEPT_TURNS
        }
        self._columns.forget_all_but(
            text for shape in self._shapes.values() for option in shape.options for text in option.selectors or ()
        )

    def find(
        self, cluster: Cluster, matching: Matching, specs: Sequence[ClaimSpec], within: Sequence[NodeSelector] = ()
    ) -> Shortage:
        """What stands in the way of claims that one pod needs together, on the nodes that all of `within` select."""
        key = msgspec.msgpack.encode((specs, within))
        shape = self._shapes.get(key)
        if shape is None:
            demand = demand_of(specs, cluster.classes)
            shape = self._shapes[key] = _Shape(demand, demand.options, drivers_named(demand), tuple(within))
        shape.asked_in_turn = self._turn
        if shape.updated_in_round != self._round or shape.answer is None:
            shape.updated_in_round = self._round
            if self._update(cluster, matching, shape) or shape.answer is None:
                answer = self._answer(cluster, matching, shape)
                if answer != shape.answer:  # else the same object, so that what was made of it stands
                    shape.answer = answer
        return shape.answer

    # --- one demand, all pools ---

    def _update(self, cluster: Cluster, matching: Matching, shape: _Shape) -> bool:
        """Looks again at what changed; False where nothing did."""
        layout = self._layout
        moves = layout.moves_since(shape.mark)
        shape.mark = layout.mark
        labels_moved = shape.labels != cluster.node_labels_version and bool(layout.wide or shape.within)
        shape.labels = cluster.node_labels_version
        changed = {move.pool for move in moves or ()}
        if any(verdicts.may_be_known(matching, trouble) for trouble in shape.open.values()):
            changed |= set(shape.open)
        if moves is not None and not changed and not labels_moved:
            return False
        anew = moves is None or len(shape.kinds) > 2 * len(layout.states) + 1000  # most of them states of long ago
        if anew or shape.within:
            changed = {*layout.states, *shape.kind_of_pool}
        if anew:
            shape.forget()
        if shape.within:
            shape.nodes = nodes_of(cluster, shape.within)
            if shape.nodes is not None:
                changed = self._pools_on(shape.nodes) | set(shape.kind_of_pool)
        touched = {move.left for move in moves or () if move.left is not None}
        for key in changed:
            self._look(cluster, matching, shape, key)
            if key in layout.home:
                touched.add(layout.home[key])
        if labels_moved or not changed.isdisjoint(layout.wide) or any(move.wide for move in moves or ()):
            shape.reach.clear()
            touched = {*layout.local, *shape.group_of_node}
            if layout.wide:
                touched |= {*cluster.nodes, SOME_NODE}
        for node in touched:
            self._group(cluster, matching, shape, node)
        return True

    def _pools_on(self, nodes: frozenset[str]) -> set[PoolKey]:
        """The pools that may serve some of these nodes; where a pool without devices belongs is not known."""
        layout = self._layout
        found = set(layout.wide) | {key for key in layout.barred if key not in layout.home}
        for node in nodes:
            found |= layout.local.get(node, set())
        return found

    def _look(self, cluster: Cluster, matching: Matching, shape: _Shape, key: PoolKey) -> None:
        """Finds out anew what kind of pool a pool is."""
        shape.open.pop(key, None)
        shape.kind_of_pool.pop(key, None)
        state = self._layout.states.get(key)
        home = self._layout.home.get(key)
        if state is None or (shape.nodes is not None and home is not None and home not in shape.nodes):
            return
        columns = [self._columns.of(matching, option, state.pool) for option in shape.options]
        unknown = next((column.unknown for column in columns if column.unknown is not None), None)
        if unknown is not None:
            shape.open[key] = unknown
        codes = tuple([column.codes for column in columns])
        values = tuple([_values(rule, state.pool) for rule in shape.demand.rules])
        alike = (key.driver, codes, state.marks, values)
        number = shape.numbers.get(alike)
        if number is None:
            number = shape.numbers[alike] = len(shape.kinds)
            shape.kinds.append(_kind(cluster, shape, state, columns))
        shape.kind_of_pool[key] = number

    def _group(self, cluster: Cluster, matching: Matching, shape: _Shape, node: str) -> None:
        """Puts a node into the group of those that look alike; what a constraint compares is alike by position."""
        pools = self._layout.local.get(node, ())
        wide = self._layout.wide_on(cluster, node)
        group: object
        if (not pools and not wide) or (shape.nodes is not None and node not in shape.nodes):
            shape.group_of_node.pop(node, None)
            return
        if len(pools) == 1 and not wide:
            group = next(shape.kind_of_pool[key] for key in pools)
        elif shape.demand.rules:
            group = node  # attributes are compared across pools, so no two nodes are surely alike
            shape.reach.pop(node, None)
        else:
            group = (frozenset(Counter([shape.kind_of_pool[key] for key in pools]).items()), wide)
        shape.group_of_node[node] = group
        if group not in shape.reach:
            shape.reach[group] = self._reach(cluster, matching, shape, node)

    def _reach(self, cluster: Cluster, matching: Matching, shape: _Shape, node: str) -> _Reach:
        sure: list[Candidate] = []
        hopeful: list[Candidate] = []
        counters: dict[CounterKey, Quantity] = {}
        for key in self._pools_of(node):
            pool = cluster.pools[key]
            if serves(pool):
                stock = stock_of(cluster, pool)
                counters.update(stock.counters)
                sure += self._candidates(cluster, matching, shape, stock, _SURE, node)
                hopeful += self._candidates(cluster, matching, shape, stock, _HOPEFUL, node)
        stage = _stage(shape.demand, sure, counters)
        if [each.fits for each in sure] == [each.fits for each in hopeful]:
            return _Reach(stage, stage)
        return _Reach(stage, _stage(shape.demand, hopeful, counters))

    def _pools_of(self, node: str) -> Iterable[PoolKey]:
        return (*sorted(self._layout.local.get(node, ())), *sorted(self._layout.wide))

    def _candidates(
        self, cluster: Cluster, matching: Matching, shape: _Shape, stock: Stock, codes: Sequence[int],
        node: str | None,
    ) -> list[Candidate]:
        """A pool's devices whose verdicts are among `codes`, usable on a node or, with None, wherever they are."""
        columns = [self._columns.of(matching, option, stock.pool).codes for option in shape.options]
        found: list[Candidate] = []
        for index, stocked in enumerate(stock.devices):
            fits = tuple([column[index] in codes for column in columns])
            if True in fits and (node is None or cluster.usable_on(stocked.facts, node)):
                found.append(candidate(shape.demand, shape.options, stocked, fits))
        return found

    # --- the answer ---

    def _answer(self, cluster: Cluster, matching: Matching, shape: _Shape) -> Shortage:
        kinds = [(shape.kinds[number], times) for number, times in Counter(shape.kind_of_pool.values()).items()]
        tally = Tally(*(
            sum(kind.tally[place] * times for kind, times in kinds) for place in range(len(Tally._fields))
        ))
        reach = [shape.reach[group] for group in set(shape.group_of_node.values())]
        stage = max((each.sure for each in reach if each.sure is not None), default=Stage.MATCH)
        nowhere, nowhere_free = self._nowhere(cluster, matching, shape)
        unknown = self._unknown(cluster, matching, shape, reach, stage)
        closest, nodes = self._closest(shape, stage)
        incomplete = self._incomplete(cluster, shape)
        error = next((kind.error for kind, _ in kinds if kind.error is not None), None)
        return Shortage(
            demand=shape.demand,
            stage=None if unknown else stage,
            tally=tally._replace(usable=tally.usable - nowhere_free),
            only_on=None if shape.nodes is None else tuple(sorted(shape.nodes)),
            fragmented=stage is Stage.FREE and _enough(shape.demand, tally.usable - nowhere_free, [
                sum(kind.free[option.number] * times for kind, times in kinds) for option in shape.options
            ]),
            over_limit=self._over_limit(shape) if stage is Stage.MATCH else 0,
            nowhere=nowhere,
            closest=closest,
            closest_nodes=nodes,
            drivers=shape.drivers,
            missing_drivers=tuple(
                driver for driver in shape.drivers if not any(key.driver == driver for key in self._layout.states)
            ),
            incomplete=incomplete,
            incomplete_matches=sum(
                shape.kinds[shape.kind_of_pool[pool.key]].tally.match for pool in incomplete
            ),
            only_incomplete=not any(
                key not in self._layout.barred and (not shape.drivers or key.driver in shape.drivers)
                for key in shape.kind_of_pool
            ),
            error=error.text if error is not None else "",
            error_selector=error.expression if error is not None else "",
            unknown=unknown,
            taints=self._taints(cluster, matching, shape) if tally.tainted else (),
            holders=self._holders(cluster, matching, shape, [each.node for each in closest]) if tally.in_use else (),
        )

    def _unknown(
        self, cluster: Cluster, matching: Matching, shape: _Shape, reach: Sequence[_Reach], stage: Stage
    ) -> str:
        """Why the stage is not known for sure; "" where it is."""
        if stage is Stage.FITS:
            return ""
        if any(found is None for each in reach for found in each):
            return "the search for devices was given up, there are too many combinations"
        if any(each.hopeful is not None and each.hopeful > stage for each in reach):
            return next((f"cannot tell which devices match: {trouble.text}" for trouble in shape.open.values()), "")
        if "nodes" not in cluster.synced:
            unplaced = sum(
                each.stocked.facts.node_selector is not None for each in self._wide_candidates(cluster, matching, shape)
            )
            if unplaced:
                return f"nodes cannot be read, so it is not known where {unplaced} of the matching devices can be used"
        return ""

    def _wide_candidates(self, cluster: Cluster, matching: Matching, shape: _Shape) -> Iterator[Candidate]:
        for key in sorted(self._layout.wide):
            stock = stock_of(cluster, cluster.pools[key])
            yield from self._candidates(cluster, matching, shape, stock, _SURE, None)

    def _nowhere(self, cluster: Cluster, matching: Matching, shape: _Shape) -> tuple[int, int]:
        """Matching devices whose node selector matches no node, and how many of them the tally takes for usable."""
        lost = self._layout.nowhere(cluster)
        if not lost:
            return 0, 0
        found = [
            each for each in self._wide_candidates(cluster, matching, shape) if each.stocked.facts.key in lost
        ]
        usable = sum(
            serves(cluster.pools[PoolKey(*each.stocked.facts.key[:2])]) and True in _available(shape, each)
            for each in found
        )
        return len(found), usable

    def _over_limit(self, shape: _Shape) -> int:
        """The most devices of one node that a request for every device means, where no claim can hold so many."""
        wanted = [option.number for option in shape.options if option.every]
        most = max(
            (
                sum(shape.kinds[shape.kind_of_pool[key]].matching[number] for key in self._layout.local.get(node, ()))
                for node in shape.group_of_node for number in wanted
            ),
            default=0,
        )
        return most if most > DEVICES_PER_CLAIM else 0

    def _incomplete(self, cluster: Cluster, shape: _Shape) -> tuple[Pool, ...]:
        """Pools that serve nobody, and whose missing part could be what is asked for."""
        barred = [key for key in sorted(self._layout.barred) if key in shape.kind_of_pool]
        nothing_else = len(barred) == len(shape.kind_of_pool)
        return tuple(
            cluster.pools[key] for key in barred
            if nothing_else or key.driver in shape.drivers or shape.kinds[shape.kind_of_pool[key]].tally.match
        )

    def _closest(self, shape: _Shape, stage: Stage) -> tuple[tuple[Near, ...], int]:
        """The nodes that get furthest, those with most usable devices first, and how many they are."""
        groups = {group for group, reach in shape.reach.items() if reach.sure is stage}
        nodes = [node for node, group in shape.group_of_node.items() if group in groups]
        tallies: dict[object, tuple[int, int]] = {}
        for node in nodes:
            group = shape.group_of_node[node]
            if group not in tallies:
                own = [shape.kinds[shape.kind_of_pool[key]].tally for key in self._layout.local.get(node, ())]
                tallies[group] = (sum(each.usable for each in own), sum(each.match for each in own))
        best = heapq.nsmallest(
            CLOSEST_SHOWN,
            (
                (-tallies[group][0], -tallies[group][1], node)
                for node in nodes if (group := shape.group_of_node[node]) in tallies and node != SOME_NODE
            ),
        )
        return tuple(Near(node=node, match=-match, usable=-usable) for usable, match, node in best), len(nodes)

    def _holders(
        self, cluster: Cluster, matching: Matching, shape: _Shape, nodes: Iterable[str]
    ) -> tuple[tuple[str, str], ...]:
        first = [key for node in nodes for key in sorted(self._layout.local.get(node, ()))]
        found: list[tuple[str, str]] = []
        seen: set[PoolKey] = set()
        busy = {number for number, kind in enumerate(shape.kinds) if kind.tally.in_use}
        for key in itertools.chain(first, _sorted_late(shape.kind_of_pool)):
            if shape.kind_of_pool[key] not in busy or key in seen:
                continue
            seen.add(key)
            stock = stock_of(cluster, cluster.pools[key])
            for each in self._candidates(cluster, matching, shape, stock, _SURE, None):
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
            for each in self._candidates(cluster, matching, shape, stock, _SURE, None):
                for taint in each.stocked.taints if any(each.blocked) and not each.stocked.held else ():
                    counts[Obstacle(taint.key, taint.value, taint.effect, taint.rule or "")] += times
        return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _sorted_late(keys: Iterable[PoolKey]) -> Iterator[PoolKey]:
    """Sorts when it is first asked, which is seldom."""
    yield from sorted(keys)


def _values(rule: Rule, pool: Pool) -> tuple[int, ...]:
    """Which devices of a pool have the same value, whatever it is; 0: none."""
    seen: dict[object, int] = {None: 0}
    return tuple([seen.setdefault(rule_value(rule, facts), len(seen)) for facts in pool.devices])


def _kind(cluster: Cluster, shape: _Shape, state: State, columns: Sequence[Column]) -> _Kind:
    """Counts a pool's devices."""
    pool = state.pool
    match = in_use = tainted = usable = errors = unknown = 0
    matching, free = [0] * len(shape.options), [0] * len(shape.options)
    for index, stocked in enumerate(stock_of(cluster, pool).devices):
        codes = [column.codes[index] for column in columns]
        errors += verdicts.ERROR in codes
        unknown += verdicts.UNKNOWN in codes
        fits = tuple([code == verdicts.MATCH for code in codes])
        if True not in fits:
            continue
        match += 1
        available = _available(shape, candidate(shape.demand, shape.options, stocked, fits))
        able = True in available
        untaken = not stocked.held or any(fit and option.admin for fit, option in zip(fits, shape.options, strict=True))
        in_use += not untaken
        tainted += untaken and not able
        usable += able and serves(pool)
        for number, fit in enumerate(fits):
            matching[number] += fit
            free[number] += available[number] and serves(pool)
    exist = len(pool.devices) if not shape.drivers or pool.key.driver in shape.drivers else 0
    return _Kind(
        tally=Tally(exist, match, in_use, tainted, usable, errors, unknown),
        error=next((column.error for column in columns if column.error is not None), None),
        matching=tuple(matching),
        free=tuple(free),
    )


def _available(shape: _Shape, each: Candidate) -> list[bool]:
    """By option: whether a device matches, is not held and bears no taint in the way."""
    return [
        fit and (option.admin or not each.stocked.held) and not blocked
        for fit, blocked, option in zip(each.fits, each.blocked, shape.options, strict=True)
    ]


def _enough(demand: Demand, usable: int, free: Sequence[int]) -> bool:
    """Whether the free devices of all nodes together would do, so that it is where they are that matters."""
    wanted: Counter[object] = Counter()
    for request in demand.requests:
        fitting = [option for option in request if not option.every and option.count <= free[option.number]]
        if not fitting:
            return False
        option = fitting[0]
        wanted[option.selectors] += option.count
        if wanted[option.selectors] > free[option.number]:
            return False
    return wanted.total() <= usable


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
