"""Which devices are tainted, by whom, and which claims hold a device that they should not have been given?

Taints come from two places, slices and DeviceTaintRules, and the slices never show those of rules. A violation is a
claim, a device it is allocated, and a constraint that the allocation goes against; it is counted once when it begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from claimscope.claims.cluster import Change, Cluster, holdings_of, key_of, rule_selects
from claimscope.claims.model import DeviceFacts, DeviceKey, Holding, Key, StandingTaint
from claimscope.claims.published import PublishedSlice
from claimscope.claims.selectors import Match, Verdict
from claimscope.kube.objects import (
    DeviceClass,
    DeviceRequest,
    DeviceSelector,
    DeviceTaintRule,
    ResourceClaim,
    Taint,
    Toleration,
    unix_seconds,
)
from claimscope.metrics.cluster import sample
from claimscope.model import Sample

T = TypeVar("T")

_NONE: Final[frozenset[Any]] = frozenset()

TAINT: Final = "taint"
SELECTOR: Final = "selector"

_RETRY_SECONDS: Final = 1.0  # between two looks at selectors that were not evaluated yet
_FRUITLESS: Final = 64  # claims without news after which such a look ends


class Matcher(Protocol):
    """The one thing asked of Selectors here."""

    def matches_all(self, expressions: Iterable[str], device: DeviceFacts) -> Match:
        """Whether a device satisfies all expressions."""


def tolerates(tolerations: Iterable[Toleration], taint: StandingTaint | Taint) -> bool:
    """Whether one of the tolerations covers a taint, as the scheduler decides it.

    Source: ToleratesTaint in k8s.io/dynamic-resource-allocation/resourceclaim. An empty effect or key covers every
    effect or key, an empty operator means Equal, and an unknown operator covers nothing.
    """
    return any(_covers(toleration, taint) for toleration in tolerations)


def _covers(toleration: Toleration, taint: StandingTaint | Taint) -> bool:
    if toleration.effect not in ("", taint.effect) or toleration.key not in ("", taint.key):
        return False
    if toleration.operator in ("", "Equal"):
        return toleration.value == taint.value
    return toleration.operator == "Exists"


def untolerated(taints: Iterable[StandingTaint], tolerations: Sequence[Toleration]) -> tuple[StandingTaint, ...]:
    """The taints that keep a claim with these tolerations from a device; effect None keeps nobody from it."""
    return tuple(taint for taint in taints if taint.blocks and not tolerates(tolerations, taint))


# --- inventory ---


def taint_samples(cluster: Cluster) -> list[Sample]:
    """Every taint on a published device, and how many devices each rule selects.

    Costs as much as there are taints, not as there are devices. A rule with an empty or absent selector taints every
    device there is, and is shown so.
    """
    samples: list[Sample] = []
    chosen: dict[DeviceKey, None] = dict.fromkeys(sorted(cluster.tainted))
    for name in sorted(cluster.rules):
        rule = cluster.rules[name]
        selected = list(devices_of_rule(cluster, rule))
        chosen.update(dict.fromkeys(selected))
        taint = rule.spec.taint
        effect = taint.effect if taint.effect in ("NoSchedule", "NoExecute") else "None"
        samples.append(sample("dra_taint_rule_devices", len(selected), name, taint.key, effect))
    for device in chosen:
        samples += _info(cluster, device)
    return samples


def _info(cluster: Cluster, device: DeviceKey) -> Iterator[Sample]:
    facts = cluster.devices[device]
    # Nothing forbids a slice to list one taint twice, and a series may be served only once.
    for taint in dict.fromkeys((each.key, each.value, each.effect, each.rule or "") for each in cluster.taints(device)):
        yield sample(
            "dra_device_taint_info", 1, *device, facts.node or "", str(facts.attribute("uuid") or ""), *taint,
        )


def devices_of_rule(cluster: Cluster, rule: DeviceTaintRule) -> Iterator[DeviceKey]:
    """The published devices that a rule selects."""
    selector = rule.spec.device_selector
    for pool in cluster.pools_of_rule(rule):
        if selector is not None and selector.device is not None:
            device = DeviceKey(pool.driver, pool.pool, selector.device)
            if device in cluster.devices:
                yield device
        else:
            for facts in cluster.pools[pool].devices:
                if rule_selects(rule, facts.key):
                    yield facts.key


# --- what a claim asked for ---


def request_of(claim: ResourceClaim, name: str) -> DeviceRequest | None:
    """The request that a result names: "main", or "main/sub" for the alternative that firstAvailable took."""
    main, _, alternative = name.partition("/")
    for request in claim.spec.devices.requests or ():
        if request.name == main:
            if not alternative:
                return request.exactly
            return next((each for each in request.first_available or () if each.name == alternative), None)
    return None


def expressions_of(selectors: Iterable[DeviceSelector] | None) -> tuple[str, ...] | None:
    """The CEL expressions of selectors; None where one is of a kind that is not known."""
    found = [selector.cel.expression if selector.cel is not None else None for selector in selectors or ()]
    known = tuple(expression for expression in found if expression is not None)
    return known if len(known) == len(found) else None


def _asked(cluster: Cluster, request: DeviceRequest) -> tuple[str, ...] | None:
    device_class = cluster.classes.get(request.device_class_name)
    if device_class is None:
        return None
    of_class = expressions_of(device_class.spec.selectors)
    of_request = expressions_of(request.selectors)
    return None if of_class is None or of_request is None else (*of_class, *of_request)


# --- violations ---


class _Result(NamedTuple):
    """One result of an allocation: a claim may be given one device twice, as shares or to look at."""

    request: str
    device: DeviceKey
    share_id: str | None


def _result(held: Holding) -> _Result:
    return _Result(held.request, held.device, held.share_id)


@dataclass(slots=True)
class _Book:
    """One allocated claim: what it goes against now, and which selectors have had no verdict since the allocation."""

    claim: Key
    witnessed: bool  # allocated while violations are counted; else what was wrong before stays uncounted
    standing: frozenset[tuple[_Result, str]] = frozenset()
    unjudged: tuple[_Result, ...] = ()  # a set of one would weigh four times as much


class Violations:
    """Counts what of an allocation enters violation of a constraint while the claim is allocated.

    `taint`: the claim was given the device although a NoSchedule or NoExecute taint that it does not tolerate already
    stood; whoever only observes (adminAccess) must tolerate taints as well. A taint that comes later is the taint
    manager's matter, not a violation. Stamps decide, and where they are missing or name the same second, the order of
    arrival does. `selector`: the device, as published now, no longer matches the class or the request it was given
    for; a device without a slice, an error and an unknown verdict change nothing.

    Nothing is counted again after a list or a restart, and nothing of an allocation that only a list told: which taints
    stood when it was made is not known behind a gap.
    """

    def __init__(self, count_since_wall: float = math.inf) -> None:
        self._since = count_since_wall
        self._counts: dict[tuple[str, str], int] = {}
        self._books: dict[str, _Book] = {}  # by uid, of allocated claims
        self._open: dict[str, None] = {}  # uids with selectors that were not evaluated yet, longest waiting first
        self._retried_wall = -math.inf
        self._rules = Cluster()  # the rules as of the change that is being taken; the cluster is ahead within a batch

    def take(self, changes: Sequence[Change], cluster: Cluster, selectors: Matcher, wall: float) -> None:
        """Follows changes that the cluster has already taken in."""
        reclassed: set[str] = set()
        for change in changes:
            match change.kind:
                case "resourceclaims":
                    self._take_claim(change, cluster, selectors)
                case "devicetaintrules":
                    self._take_rule(change, cluster)
                case "resourceslices" if change.after is not None:
                    self._take_slice(change.after, cluster, selectors)
                case "deviceclasses":
                    reclassed |= self._take_class(change)
        if reclassed:
            self._judge_classes(reclassed, cluster, selectors)
        if self._open and abs(wall - self._retried_wall) >= _RETRY_SECONDS:
            self._retried_wall = wall
            self._retry(cluster, selectors)

    def samples(self) -> list[Sample]:
        """The counter, from 0 for every class known, so that its first increase can be seen."""
        start_ns = round(self._since * 1e9) if math.isfinite(self._since) else None
        return [
            sample("dra_constraint_violations_total", count, *labels, start_ns=start_ns)
            for labels, count in sorted(self._counts.items())
        ]

    def _take_claim(self, change: Change, cluster: Cluster, selectors: Matcher) -> None:
        before: ResourceClaim | None = change.before
        after: ResourceClaim | None = change.after
        holdings = holdings_of(after) if after is not None else ()
        if after is None or not holdings:
            gone = after or before
            if gone is not None:
                self._books.pop(gone.metadata.uid, None)
                self._open.pop(gone.metadata.uid, None)
            return
        uid = after.metadata.uid
        if uid in self._books and before is not None and holdings_of(before) == holdings:
            return
        book = self._books[uid] = _Book(claim=key_of(after), witnessed=not change.listed)
        book.unjudged = tuple(map(_result, holdings))
        for held in holdings:
            taints = tuple(self._taints(held.device, cluster))
            self._judge_taints(book, after, held, taints, cluster, just_allocated=not change.listed)
        self._judge_selectors(book, after, holdings, cluster, selectors)

    def _take_rule(self, change: Change, cluster: Cluster) -> None:
        before: DeviceTaintRule | None = change.before
        after: DeviceTaintRule | None = change.after
        self._rules.apply("devicetaintrules", after if after is not None else before, after is not None)
        if before is not None and after is not None and before.spec == after.spec:
            return
        selected = (devices_of_rule(cluster, rule) for rule in (before, after) if rule is not None)
        for device in dict.fromkeys(chain.from_iterable(selected)):
            self._judge_device(device, cluster)

    def _take_slice(self, published: PublishedSlice, cluster: Cluster, selectors: Matcher) -> None:
        pool = cluster.pools.get(published.pool)
        for facts in pool.devices if pool is not None else ():
            self._judge_device(facts.key, cluster)
            for held, claim, book in self._held(facts.key, cluster):
                self._judge_selectors(book, claim, (held,), cluster, selectors)

    def _take_class(self, change: Change) -> set[str]:
        before: DeviceClass | None = change.before
        after: DeviceClass | None = change.after
        if after is None:
            return set()
        name = after.metadata.name
        for constraint in (TAINT, SELECTOR):
            self._counts.setdefault((name, constraint), 0)
        return set() if before is not None and before.spec == after.spec else {name}

    def _judge_classes(self, names: set[str], cluster: Cluster, selectors: Matcher) -> None:
        for book in self._books.values():
            claim = cluster.claims.get(book.claim)
            if claim is not None and not names.isdisjoint(_classes_of(claim)):
                self._judge_selectors(book, claim, holdings_of(claim), cluster, selectors)

    def _held(self, device: DeviceKey, cluster: Cluster) -> Iterator[tuple[Holding, ResourceClaim, _Book]]:
        for held in cluster.holdings(device):
            claim, book = cluster.claims.get(held.claim), self._books.get(held.claim_uid)
            if claim is not None and book is not None:
                yield held, claim, book

    def _judge_device(self, device: DeviceKey, cluster: Cluster) -> None:
        """Every claim on it once: thousands may share one device."""
        taints: tuple[StandingTaint, ...] | None = None
        for held, claim, book in self._held(device, cluster):
            if taints is None:
                taints = tuple(self._taints(device, cluster))
            self._judge_taints(book, claim, held, taints, cluster, just_allocated=False)

    def _judge_taints(
        self, book: _Book, claim: ResourceClaim, held: Holding, taints: Iterable[StandingTaint], cluster: Cluster, *,
        just_allocated: bool,
    ) -> None:
        key = (_result(held), TAINT)
        bad = untolerated(taints, held.tolerations)
        if not bad:
            if held.device in cluster.devices:  # without its slice it is unknown which taints it has
                book.standing = _without(book.standing, key)
            return
        allocated = _allocated_wall(claim)
        if any(_stood_before(taint, allocated, known=just_allocated) for taint in bad):
            self._enter(book, key, claim, held, counts=book.witnessed)

    def _taints(self, device: DeviceKey, cluster: Cluster) -> Iterator[StandingTaint]:
        if device in cluster.tainted:
            yield from (taint for taint in cluster.taints(device) if taint.rule is None)
        if self._rules.rules:
            yield from self._rules.taints(device)

    def _judge_selectors(
        self, book: _Book, claim: ResourceClaim, holdings: Iterable[Holding], cluster: Cluster, selectors: Matcher
    ) -> bool:
        """Judges anew; True where every selector has a verdict, be it an error."""
        settled = True
        for held in holdings:
            verdict = _verdict(claim, held, cluster, selectors)
            result = _result(held)
            key = (result, SELECTOR)
            if verdict is Verdict.MATCH:
                book.standing = _without(book.standing, key)
            elif verdict is Verdict.NO_MATCH:
                self._enter(book, key, claim, held, counts=book.witnessed or result not in book.unjudged)
            if verdict in (Verdict.MATCH, Verdict.NO_MATCH):
                book.unjudged = tuple(each for each in book.unjudged if each != result)
            elif verdict is Verdict.UNKNOWN:
                settled = False
        if not settled:
            self._open[claim.metadata.uid] = None
        return settled

    def _enter(
        self, book: _Book, key: tuple[_Result, str], claim: ResourceClaim, held: Holding, *, counts: bool
    ) -> None:
        if key in book.standing:
            return
        book.standing |= {key}
        request = request_of(claim, held.request)
        labels = (request.device_class_name if request is not None else "", key[1])
        self._counts[labels] = self._counts.get(labels, 0) + (1 if counts else 0)

    def _retry(self, cluster: Cluster, selectors: Matcher) -> None:
        fruitless = 0
        for uid in list(self._open):
            if fruitless >= _FRUITLESS:
                return
            del self._open[uid]
            book = self._books.get(uid)
            claim = cluster.claims.get(book.claim) if book is not None else None
            if book is None or claim is None or claim.metadata.uid != uid:
                continue
            settled = self._judge_selectors(book, claim, holdings_of(claim), cluster, selectors)
            fruitless = 0 if settled else fruitless + 1


def _without(some: frozenset[T], one: T) -> frozenset[T]:
    """The result is nearly always empty, and then it is the one empty set, which costs nothing."""
    return (some - {one}) or _NONE if one in some else some


def _allocated_wall(claim: ResourceClaim) -> float | None:
    allocation = claim.status.allocation
    return unix_seconds(allocation.allocation_timestamp) if allocation is not None else None


def _classes_of(claim: ResourceClaim) -> Iterator[str]:
    for request in claim.spec.devices.requests or ():
        if request.exactly is not None:
            yield request.exactly.device_class_name
        for alternative in request.first_available or ():
            yield alternative.device_class_name


def _stood_before(taint: StandingTaint, allocated: float | None, *, known: bool) -> bool:
    """Whether a taint stood when the claim was allocated; `known`: it had arrived when the allocation did.

    Both stamps have a resolution of one second.
    """
    if taint.since_wall is None or allocated is None or taint.since_wall == allocated:
        return known
    return taint.since_wall < allocated


def _verdict(claim: ResourceClaim, held: Holding, cluster: Cluster, selectors: Matcher) -> Verdict | None:
    """None where there is nothing to evaluate: no slice shows the device, or class or request are not there."""
    facts = cluster.devices.get(held.device)
    request = request_of(claim, held.request)
    asked = _asked(cluster, request) if request is not None else None
    return selectors.matches_all(asked, facts).verdict if facts is not None and asked is not None else None
