"""Which devices of a node could a claim be given, and if none, what is it that stands in the way?

A pure search over the devices that slices publish, with the scheduler's rules (Kubernetes 1.36
staging/src/k8s.io/dynamic-resource-allocation/structured): selectors, count or all, alternatives, taints, constraints,
shared counters, consumable capacity. The rules are switched on one after the other; the first one with which a search
finds nothing is the stage at which the claim fails on that node.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Protocol

from claimscope.claims.cluster import Cluster
from claimscope.claims.demand import Demand, Option, Rule, demand_of
from claimscope.claims.model import DeviceFacts, DeviceKey, Pool, PoolKey, StandingTaint
from claimscope.claims.quantity import Quantity
from claimscope.claims.selectors import Match, Verdict
from claimscope.claims.taints import tolerates
from claimscope.kube.objects import Capacity, ClaimSpec, Toleration

DEVICES_PER_CLAIM: Final = 32  # API resource/v1 AllocationResultsMaxSize
MAX_STEPS: Final = 20_000


class Matching(Protocol):
    """What evaluates selectors."""

    def match(self, expression: str, device: DeviceFacts) -> Match:
        """What one expression says of a device."""
        ...

    def matches_all(self, expressions: Iterable[str], device: DeviceFacts) -> Match:
        """The verdict of the first expression that is not MATCH, or MATCH."""
        ...


class Stage(enum.IntEnum):
    """The rule at which a claim fails; each stage keeps the rules of those before it."""

    MATCH = 0  # too few devices satisfy the selectors
    FREE = 1  # ... and are not held
    UNTAINTED = 2  # ... and bear no taint that the claim does not tolerate
    CONSTRAINT = 3  # ... and agree, or differ, in an attribute
    COUNTERS = 4  # ... and leave enough of the counters that they share
    CAPACITY = 5  # ... and have enough capacity left where several claims share a device
    FITS = 6


class SearchTooLong(Exception):  # noqa: N818 - an answer, not an error
    """The search was given up after MAX_STEPS."""


# --- what there is ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Stocked:
    """A device and what is taken of it."""

    facts: DeviceFacts
    held: bool  # by a claim that has it for itself
    drawn: bool = False  # somebody holds it, so what it takes of shared counters is taken already
    taints: tuple[StandingTaint, ...] = ()  # those that block
    left: Mapping[str, Quantity] = field(default_factory=dict)  # of a shared device's capacity


CounterKey = tuple[PoolKey, str, str]  # pool, counter set, counter


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """A pool's devices and what is left of its counters."""

    pool: Pool
    devices: tuple[Stocked, ...]
    counters: Mapping[CounterKey, Quantity] = field(default_factory=dict)


def serves(pool: Pool) -> bool:
    """Whether the scheduler allocates from a pool: not from one that is being rewritten or contradicts itself."""
    return pool.complete and pool.problem is None


@lru_cache(maxsize=4096)
def _quantity(text: str) -> Quantity | None:
    try:
        return Quantity.parse(text)
    except ValueError:
        return None


def stock_of(cluster: Cluster, pool: Pool) -> Stock:
    """What is in a pool now."""
    devices = tuple(_stocked(cluster, facts) for facts in pool.devices)
    counters: dict[CounterKey, Quantity] = {}
    for set_name, values in pool.counters.items():
        for name, text in values.items():
            amount = _quantity(text)
            if amount is not None:
                counters[(pool.key, set_name, name)] = amount
    if counters:
        for device in devices:
            if device.drawn:
                for key, amount in consumption_of(device.facts):
                    if key in counters:
                        counters[key] = counters[key] - amount
    return Stock(pool=pool, devices=devices, counters=counters)


def _stocked(cluster: Cluster, facts: DeviceFacts) -> Stocked:
    holdings = [each for each in cluster.holdings(facts.key) if not each.admin]
    left: dict[str, Quantity] = {}
    if facts.shared:
        for name, capacity in facts.capacity.items():
            amount = _quantity(capacity.value)
            for holding in holdings if amount is not None else ():
                taken = _quantity(_by_name(holding.consumed, name, facts.key.driver) or "0")
                amount = amount - taken if amount is not None and taken is not None else amount
            if amount is not None:
                left[name] = amount
    return Stocked(
        facts=facts,
        held=any(holding.share_id is None for holding in holdings) if facts.shared else bool(holdings),
        drawn=bool(holdings),
        taints=tuple(taint for taint in cluster.taints(facts.key) if taint.blocks),
        left=left,
    )


def _by_name(values: Mapping[str, str], name: str, driver: str) -> str | None:
    """A value by a name that may or may not carry the driver's own domain."""
    for spelling in (name, f"{driver}/{name}", name.removeprefix(f"{driver}/")):
        if spelling in values:
            return values[spelling]
    return None


def consumption_of(facts: DeviceFacts) -> list[tuple[CounterKey, Quantity]]:
    """What a device takes from the counters of its pool."""
    pool = PoolKey(facts.key.driver, facts.key.pool)
    return [
        ((pool, each.counter_set, name), amount)
        for each in facts.consumes
        for name, counter in (each.counters or {}).items()
        if (amount := _quantity(counter.value)) is not None
    ]


def capacity_taken(option: Option, facts: DeviceFacts) -> dict[str, Quantity] | None:
    """What a request takes of each capacity of a shared device; None where it wants what the device cannot give.

    Rounded up as requestPolicy says (structured allocator, calculateConsumedCapacity).
    """
    driver = facts.key.driver
    wanted = dict(option.capacity)
    if any(
        all(spelling not in facts.capacity for spelling in (name, name.removeprefix(f"{driver}/"), f"{driver}/{name}"))
        for name in wanted
    ):
        return None
    taken: dict[str, Quantity] = {}
    for name, capacity in facts.capacity.items():
        amount = _rounded(_by_name(wanted, name, driver), capacity)
        whole = _quantity(capacity.value)
        if amount is None or whole is None or amount > whole:
            return None
        taken[name] = amount
    return taken


def _rounded(wanted: str | None, capacity: Capacity) -> Quantity | None:
    policy = capacity.request_policy
    if wanted is None:
        return _quantity(policy.default if policy is not None and policy.default is not None else capacity.value)
    amount = _quantity(wanted)
    if amount is None or policy is None:
        return amount
    if policy.valid_values:
        fitting = [value for text in policy.valid_values if (value := _quantity(text)) is not None and value >= amount]
        return min(fitting) if fitting else None
    if policy.valid_range is None:
        return amount
    smallest = _quantity(policy.valid_range.min or "0")
    largest = _quantity(policy.valid_range.max) if policy.valid_range.max else None
    step = _quantity(policy.valid_range.step) if policy.valid_range.step else None
    if smallest is None:
        return None
    amount = max(amount, smallest)
    if step is not None and step > _ZERO:
        amount = _next_step(smallest, step, amount)
    return None if largest is not None and amount > largest else amount


_ZERO: Final = Quantity.parse("0")


def _next_step(smallest: Quantity, step: Quantity, amount: Quantity) -> Quantity:
    """The smallest of smallest + n * step that is not below amount, by doubling: quantities only add."""
    reached = smallest
    while reached < amount:
        stride = step
        while reached + stride + stride < amount:
            stride = stride + stride
        reached = reached + stride
    return reached


# --- candidates ---


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device, seen from a demand: what speaks for it under each option."""

    stocked: Stocked
    fits: tuple[bool, ...]  # by option number
    blocked: tuple[bool, ...]  # by option number
    values: tuple[object, ...]  # by rule; None: it has no such attribute


def match_option(matching: Matching, option: Option, facts: DeviceFacts) -> Match:
    """Whether a device is what an option asks for, whoever has it now."""
    if option.selectors is None:
        return Match(Verdict.NO_MATCH, f"device class {option.device_class} does not exist")
    match = matching.matches_all(option.selectors, facts)
    if match.verdict is Verdict.MATCH and option.capacity and capacity_taken(option, facts) is None:
        return Match(Verdict.NO_MATCH, "less capacity than asked for")
    return match


def candidate(demand: Demand, options: Sequence[Option], stocked: Stocked, fits: tuple[bool, ...]) -> Candidate:
    """A device with its verdicts."""
    if stocked.taints:
        blocked = tuple(
            any(not tolerates(option.tolerations, taint) for taint in stocked.taints) for option in options
        )
    else:
        blocked = (False,) * len(options)
    return Candidate(stocked, fits, blocked, tuple(rule_value(rule, stocked.facts) for rule in demand.rules))


def rule_value(rule: Rule, facts: DeviceFacts) -> object:
    """The attribute that a constraint compares, with its type; None where the device lacks it."""
    value = facts.attributes.get(rule.attribute)
    if value is None:
        domain, _, name = rule.attribute.partition("/")
        value = facts.attributes.get(name) if domain == facts.key.driver else None
    return None if value is None else (type(value).__name__, value)


# --- the search ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """One device of an allocation."""

    claim: int  # which of the demand's claims
    request: str  # "gpu", or "gpu/any"
    device: DeviceFacts
    admin: bool
    tolerations: tuple[Toleration, ...]
    consumed: Mapping[str, Quantity] | None = None  # of a shared device; None: the device is the claim's alone


@dataclass(slots=True)
class _Taken:
    option: Option
    index: int
    rules: list[int]
    counters: list[tuple[CounterKey, Quantity]]
    consumed: dict[str, Quantity] | None


class _Search:
    """Bounded backtracking; devices that are alike are tried once in each place."""

    def __init__(
        self, demand: Demand, candidates: Sequence[Candidate], counters: Mapping[CounterKey, Quantity], stage: Stage
    ) -> None:
        self._demand = demand
        self._candidates = candidates
        self._stage = stage
        self._counters = dict(counters) if stage >= Stage.COUNTERS else {}
        self._left = {
            index: dict(each.stocked.left) for index, each in enumerate(candidates) if each.stocked.facts.shared
        }
        self._users: dict[int, list[int]] = {}  # by candidate: the claims that took it
        self._values: list[list[object]] = [[] for _ in demand.rules]
        self._devices_of_claim: dict[int, int] = {}
        self._kinds = [self._kind(each) for each in candidates]
        self._steps = MAX_STEPS
        self.taken: list[_Taken] = []

    def run(self) -> bool:
        return self._request(0)

    def _kind(self, each: Candidate) -> object:
        facts = each.stocked.facts
        alone = facts.key if facts.shared else None
        pool = (facts.key.pool, tuple(map(str, consumption_of(facts)))) if facts.consumes else None
        return (each.fits, each.stocked.held, each.blocked, each.values, alone, pool)

    def _request(self, index: int) -> bool:
        if index == len(self._demand.requests):
            return True
        return any(self._option(option, index) for option in self._demand.requests[index])

    def _option(self, option: Option, index: int) -> bool:
        fitting = [at for at, each in enumerate(self._candidates) if each.fits[option.number]]
        if not option.every:
            fitting = [at for at in fitting if self._available(option, self._candidates[at])]
            repeats = any(at in self._left for at in fitting)
            return self._pick(option, fitting, 0, option.count, repeats, index)
        mark = len(self.taken)
        if fitting and all(self._take(option, at) for at in fitting) and self._request(index + 1):
            return True
        self._undo(mark)
        return False

    def _pick(self, option: Option, fitting: list[int], start: int, wanted: int, repeats: bool, index: int) -> bool:
        if wanted == 0:
            return self._request(index + 1)
        tried: set[object] = set()
        for position in range(start, len(fitting)):
            if not repeats and len(fitting) - position < wanted:
                return False
            at = fitting[position]
            kind = (self._kinds[at], at in self._users)
            if kind in tried:
                continue
            self._steps -= 1
            if self._steps < 0:
                raise SearchTooLong
            mark = len(self.taken)
            if self._take(option, at):
                tried.add(kind)
                again = position if at in self._left else position + 1
                if self._pick(option, fitting, again, wanted - 1, repeats, index):
                    return True
                self._undo(mark)
        return False

    def _available(self, option: Option, each: Candidate) -> bool:
        if self._stage >= Stage.FREE and each.stocked.held and not option.admin:
            return False
        return not (self._stage >= Stage.UNTAINTED and each.blocked[option.number])

    def _take(self, option: Option, at: int) -> bool:
        each = self._candidates[at]
        shared = at in self._left
        if self._taken_from(option, at) or not self._available(option, each):
            return False
        if self._devices_of_claim.get(option.claim, 0) >= DEVICES_PER_CLAIM:
            return False
        rules = [number for number, rule in enumerate(self._demand.rules) if option.number in rule.options]
        if self._stage >= Stage.CONSTRAINT and not all(self._rule_allows(number, each) for number in rules):
            return False
        counters: list[tuple[CounterKey, Quantity]] = []
        if self._stage >= Stage.COUNTERS and not option.admin and not self._already_drawn(at):
            counters = consumption_of(each.stocked.facts)
            if any(key not in self._counters or self._counters[key] < amount for key, amount in counters):
                return False
        consumed: dict[str, Quantity] | None = None
        if shared and not option.admin:
            consumed = capacity_taken(option, each.stocked.facts) or {}
            left = self._left[at]
            if self._stage >= Stage.CAPACITY and any(left[name] < amount for name, amount in consumed.items()):
                return False
            for name, amount in consumed.items():
                left[name] = left[name] - amount
        for key, amount in counters:
            self._counters[key] = self._counters[key] - amount
        for number in rules:
            self._values[number].append(each.values[number])
        self._users.setdefault(at, []).append(option.claim)
        self._devices_of_claim[option.claim] = self._devices_of_claim.get(option.claim, 0) + 1
        self.taken.append(_Taken(option, at, rules, counters, consumed))
        return True

    def _taken_from(self, option: Option, at: int) -> bool:
        """Admin access takes a device whoever has it, yet only once for a claim; others share what can be shared."""
        users = self._users.get(at, ())
        return option.claim in users if option.admin else bool(users) and at not in self._left

    def _already_drawn(self, at: int) -> bool:
        """A shared device that somebody holds, or that was just taken once, draws nothing more."""
        return at in self._left and (at in self._users or self._candidates[at].stocked.drawn)

    def _rule_allows(self, number: int, each: Candidate) -> bool:
        value = each.values[number]
        if value is None:
            return False
        others = self._values[number]
        return value not in others if self._demand.rules[number].distinct else not others or others[0] == value

    def _undo(self, mark: int) -> None:
        while len(self.taken) > mark:
            last = self.taken.pop()
            for number in last.rules:
                self._values[number].pop()
            for key, amount in last.counters:
                self._counters[key] = self._counters[key] + amount
            for name, amount in (last.consumed or {}).items():
                self._left[last.index][name] = self._left[last.index][name] + amount
            self._devices_of_claim[last.option.claim] -= 1
            self._users[last.index].pop()
            if not self._users[last.index]:
                del self._users[last.index]


def stage_of(demand: Demand, candidates: Sequence[Candidate], counters: Mapping[CounterKey, Quantity]) -> Stage:
    """The rule at which a demand fails among the devices of one node, or FITS. Raises SearchTooLong."""
    if _Search(demand, candidates, counters, Stage.CAPACITY).run():
        return Stage.FITS
    for stage in (Stage.MATCH, Stage.FREE, Stage.UNTAINTED, Stage.CONSTRAINT, Stage.COUNTERS):
        if not _Search(demand, candidates, counters, stage).run():
            return stage
    return Stage.CAPACITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of looking for devices on one node."""

    stage: Stage | None  # FITS: `chosen` is set; None: given up after too many steps
    chosen: tuple[Chosen, ...] | None = None
    errors: tuple[tuple[DeviceKey, str], ...] = ()  # devices on which a selector failed; the scheduler may stop there
    unknown: tuple[tuple[DeviceKey, str], ...] = ()  # devices on which no selector could be evaluated


def allocate(
    cluster: Cluster, matching: Matching, specs: Sequence[ClaimSpec], node: str, pools: Iterable[Pool] | None = None
) -> Attempt:
    """Chooses devices of one node for claims that one pod needs together.

    Looks at all pools, or at `pools` where the caller knows which can serve the node. Pools that are incomplete or
    broken serve nobody, as with the scheduler.
    """
    demand = demand_of(specs, cluster.classes)
    options = demand.options
    candidates: list[Candidate] = []
    counters: dict[CounterKey, Quantity] = {}
    errors: list[tuple[DeviceKey, str]] = []
    unknown: list[tuple[DeviceKey, str]] = []
    for pool in cluster.pools.values() if pools is None else pools:
        if not serves(pool):
            continue
        usable = {facts.key for facts in pool.devices if cluster.usable_on(facts, node)}
        if not usable:
            continue
        stock = stock_of(cluster, pool)
        counters.update(stock.counters)
        for stocked in stock.devices:
            if stocked.facts.key not in usable:
                continue
            matches = [match_option(matching, option, stocked.facts) for option in options]
            for found, verdict in ((errors, Verdict.ERROR), (unknown, Verdict.UNKNOWN)):
                found.extend((stocked.facts.key, each.text) for each in matches if each.verdict is verdict)
            if any(each.verdict is Verdict.MATCH for each in matches):
                fits = tuple(each.verdict is Verdict.MATCH for each in matches)
                candidates.append(candidate(demand, options, stocked, fits))
    search = _Search(demand, candidates, counters, Stage.CAPACITY)
    try:
        found_all = search.run()
        stage = Stage.FITS if found_all else stage_of(demand, candidates, counters)
    except SearchTooLong:
        return Attempt(stage=None, errors=tuple(errors), unknown=tuple(unknown))
    chosen = tuple(
        Chosen(
            claim=each.option.claim, request=each.option.name, device=candidates[each.index].stocked.facts,
            admin=each.option.admin, tolerations=each.option.tolerations, consumed=each.consumed,
        )
        for each in search.taken
    )
    return Attempt(
        stage=stage, chosen=chosen if found_all else None, errors=tuple(errors), unknown=tuple(unknown)
    )
