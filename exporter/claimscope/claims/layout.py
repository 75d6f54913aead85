"""Which nodes does each pool serve, and which pools changed since somebody last looked?

Most pools are local: all their devices are on one node. The others are wide: a node selector, or nothing, says where
their devices can be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from claimscope.claims.cluster import Cluster, node_matches
from claimscope.claims.fitting import Stocked, serves, stock_of
from claimscope.claims.model import DeviceFacts, DeviceKey, Pool, PoolKey
from claimscope.kube.objects import NodeSelector

_LONGEST_LOG: Final = 100_000
SOME_NODE: Final = ""  # stands for nodes of which nothing is known: devices for all nodes can be used there


class Move(NamedTuple):
    """A pool that changed."""

    pool: PoolKey
    left: str | None  # the one node that it served before
    wide: bool  # it served several


class State(NamedTuple):
    """A pool, and all that tells it from an alike one: what is held, tainted, drawn and left."""

    pool: Pool
    marks: tuple[object, ...]


class Layout:
    """Every pool and where it serves; `refresh` follows the cluster, everything else reads."""

    def __init__(self) -> None:
        self.states: dict[PoolKey, State] = {}
        self.local: dict[str, set[PoolKey]] = {}  # by node
        self.wide: set[PoolKey] = set()
        self.barred: set[PoolKey] = set()  # incomplete or contradictory, so they serve nobody
        self.home: dict[PoolKey, str] = {}  # of local pools
        self._revision = -1
        self._seen: dict[PoolKey, int] = {}
        self._moves: list[Move] = []
        self._dropped = 0  # older moves that are not kept
        self._labels = -1  # node labels for which the following two hold
        self._wide_on: dict[str, frozenset[DeviceKey]] = {}
        self._nowhere: frozenset[DeviceKey] | None = None

    @property
    def mark(self) -> int:
        """How many moves there have been."""
        return self._dropped + len(self._moves)

    def moves_since(self, mark: int) -> Sequence[Move] | None:
        """What moved since a mark; None where that is too long ago to be known."""
        return None if mark < self._dropped else self._moves[mark - self._dropped:]

    def refresh(self, cluster: Cluster) -> None:
        """Takes in what changed in the cluster."""
        if self._labels != cluster.node_labels_version:
            self._labels = cluster.node_labels_version
            self._forget_wide()
        if cluster.revision == self._revision:
            return
        self._revision = cluster.revision
        if len(self._moves) > _LONGEST_LOG:
            self._dropped += len(self._moves)
            self._moves.clear()
        for key, revision in cluster.pool_revisions.items():
            if self._seen.get(key) != revision:
                self._seen[key] = revision
                self._restock(cluster, key)

    def _restock(self, cluster: Cluster, key: PoolKey) -> None:
        move = Move(key, self._take_out(key), key in self.wide)
        self.barred.discard(key)
        if move.wide:
            self.wide.discard(key)
            self._forget_wide()
        pool = cluster.pools.get(key)
        if pool is None:
            if self.states.pop(key, None) is not None:
                self._moves.append(move)
            return
        if not serves(pool):
            self.barred.add(key)
        state = State(pool, _marks(cluster, pool))
        known = self.states.get(key)
        if known is None or known.pool is not pool or known.marks != state.marks:
            self.states[key] = state
            self._moves.append(move)
        nodes = {facts.node for facts in pool.devices}
        home = nodes.pop() if len(nodes) == 1 else None
        if home is not None:
            self.home[key] = home
            self.local.setdefault(home, set()).add(key)
        elif pool.devices:
            self.wide.add(key)
            self._forget_wide()

    def _take_out(self, key: PoolKey) -> str | None:
        """Takes a local pool from its node."""
        home = self.home.pop(key, None)
        if home is not None:
            self.local[home].discard(key)
            if not self.local[home]:
                del self.local[home]
        return home

    def _forget_wide(self) -> None:
        self._wide_on.clear()
        self._nowhere = None

    # --- reading ---

    def wide_on(self, cluster: Cluster, node: str) -> frozenset[DeviceKey]:
        """The devices of wide pools that a pod on a node could use."""
        if not self.wide:
            return frozenset()
        found = self._wide_on.get(node)
        if found is None:
            found = self._wide_on[node] = frozenset(
                facts.key for facts in self._wide_devices(cluster) if cluster.usable_on(facts, node)
            )
        return found

    def nowhere(self, cluster: Cluster) -> frozenset[DeviceKey]:
        """Devices whose node selector matches no node; where nodes cannot be read, of no device is that known."""
        if self._nowhere is None:
            left = {facts.key for facts in self._wide_devices(cluster) if facts.node_selector is not None}
            if "nodes" not in cluster.synced:
                left.clear()
            for node in cluster.nodes:
                if not left:
                    break
                left -= self.wide_on(cluster, node)
            self._nowhere = frozenset(left)
        return self._nowhere

    def _wide_devices(self, cluster: Cluster) -> Iterable[DeviceFacts]:
        return (facts for key in sorted(self.wide) for facts in cluster.pools[key].devices)


def nodes_of(cluster: Cluster, selectors: Iterable[NodeSelector]) -> frozenset[str] | None:
    """The nodes that satisfy every selector; None: all, as far as is known."""
    allowed: frozenset[str] | None = None
    for selector in selectors:
        names = _named(selector)
        if names is None:
            if "nodes" not in cluster.synced:
                continue
            names = frozenset(name for name, node in cluster.nodes.items() if node_matches(selector, node))
        allowed = names if allowed is None else allowed & names
    return allowed


def _named(selector: NodeSelector) -> frozenset[str] | None:
    """The nodes that a selector names, as the scheduler writes it for devices of one node; None: it goes by labels."""
    found: set[str] = set()
    for term in selector.node_selector_terms or ():
        fields = term.match_fields or []
        if term.match_expressions or len(fields) != 1:
            return None
        if fields[0].key != "metadata.name" or fields[0].operator != "In":
            return None
        found.update(fields[0].values or ())
    return frozenset(found)


def _marks(cluster: Cluster, pool: Pool) -> tuple[object, ...]:
    """All that tells two pools apart but their devices' contents."""
    held = bytearray()
    holdings = cluster.held_devices()
    plain = not cluster.rules
    for facts in pool.devices:
        holders = holdings.get(facts.key)
        held.append(holders is not None and not all(each.admin for each in holders))
        plain = plain and not (facts.taints or facts.shared or facts.consumes)
    if plain:
        return (serves(pool), bytes(held))
    stock = stock_of(cluster, pool)
    return (
        serves(pool),
        bytes(held),
        tuple(_own_marks(stocked) for stocked in stock.devices),
        tuple(sorted((name, counter, str(left)) for (_, name, counter), left in stock.counters.items())),
    )


def _own_marks(stocked: Stocked) -> tuple[object, ...]:
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
