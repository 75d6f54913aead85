"""The search for devices against one that tries every choice there is, on small clusters.

The rules are written down here a second time, from the Kubernetes documentation and the allocator's behaviour, with
plain numbers and without any code of the search itself.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from claim_objects import GPU, allocated, claim_spec, cluster_of, device, device_class, pool, spec
from claimscope.claims.cluster import Cluster
from claimscope.claims.fitting import Stage, allocate
from claimscope.claims.model import DeviceFacts
from claimscope.claims.selectors import Match, Verdict
from claimscope.claims.survey import Survey

COUNTER_TOTAL = 4


@dataclass(frozen=True)
class Gpu:
    """A device and what is already taken of it."""

    name: str
    kind: str
    numa: int | None
    draws: int  # of the pool's one counter
    memory: int | None  # None: it has no such capacity
    shared: bool
    tainted: bool
    holders: tuple[int, ...]  # memory that each holder consumes
    watched: bool  # somebody has admin access to it


@dataclass(frozen=True)
class Want:
    """One alternative of a request."""

    kind: str | None
    count: int | None  # None: all
    admin: bool
    tolerant: bool
    memory: int | None


@dataclass(frozen=True)
class Ask:
    """One claim: requests of one or more alternatives, and at most one constraint."""

    requests: tuple[tuple[Want, ...], ...]
    constraint: str | None
    of: int | None  # the one request that the constraint is about; None: all


# --- the rules, once more ---


Pick = tuple[int, int, Want, Gpu]  # claim, request, what was asked, what was given


def matches(want: Want, gpu: Gpu) -> bool:
    if want.kind is not None and want.kind != gpu.kind:
        return False
    return want.memory is None or (gpu.memory is not None and want.memory <= gpu.memory)


def choices(want: Want, gpus: list[Gpu]) -> Iterable[tuple[Gpu, ...]]:
    fitting = [gpu for gpu in gpus if matches(want, gpu)]
    if want.count is None:
        return [tuple(fitting)] if fitting else []
    return itertools.combinations_with_replacement(fitting, want.count)


def every_choice(asks: list[Ask], gpus: list[Gpu]) -> Iterator[list[Pick]]:
    places = [(claim, number) for claim, ask in enumerate(asks) for number in range(len(ask.requests))]
    ways = [
        [(want, given) for want in asks[claim].requests[number] for given in choices(want, gpus)]
        for claim, number in places
    ]
    for combination in itertools.product(*ways):
        yield [
            (claim, number, want, gpu)
            for (claim, number), (want, given) in zip(places, combination, strict=True) for gpu in given
        ]


def distinct_devices(picks: list[Pick]) -> bool:
    """In the order in which the scheduler hands them out."""
    taken: list[tuple[int, Gpu]] = []
    for claim, _, want, gpu in picks:
        before = [other for other, each in taken if each == gpu]
        if claim in before if want.admin else before and not gpu.shared:
            return False
        taken.append((claim, gpu))
    return True


def free(picks: list[Pick]) -> bool:
    return all(want.admin or gpu.shared or not gpu.holders for _, _, want, gpu in picks)


def untainted(picks: list[Pick]) -> bool:
    return all(want.tolerant or not gpu.tainted for _, _, want, gpu in picks)


def constrained(picks: list[Pick], asks: list[Ask]) -> bool:
    for claim, ask in enumerate(asks):
        values = [gpu.numa for at, number, _, gpu in picks if at == claim and ask.of in (None, number)]
        if ask.constraint is None or not values:
            continue
        if None in values or len(set(values)) != (1 if ask.constraint == "matchAttribute" else len(values)):
            return False
    return True


def counted(picks: list[Pick], gpus: list[Gpu]) -> bool:
    new = {gpu for _, _, want, gpu in picks if not want.admin and not gpu.holders}
    drawn = sum(gpu.draws for gpu in gpus if gpu.holders)
    return drawn + sum(gpu.draws for gpu in new) <= COUNTER_TOTAL or not any(gpu.draws for gpu in new)


def roomy(picks: list[Pick]) -> bool:
    wanted: Counter[Gpu] = Counter()
    for _, _, want, gpu in picks:
        if gpu.shared and not want.admin and gpu.memory is not None:
            wanted[gpu] += gpu.memory if want.memory is None else want.memory
    return all(
        amount + sum(gpu.holders) <= gpu.memory for gpu, amount in wanted.items() if gpu.memory is not None
    )


def furthest(asks: list[Ask], gpus: list[Gpu]) -> Stage:
    reached = Stage.MATCH
    for picks in every_choice(asks, gpus):
        rules = [
            distinct_devices(picks), free(picks), untainted(picks), constrained(picks, asks), counted(picks, gpus),
            roomy(picks),
        ]
        reached = max(reached, Stage(rules.index(False) if False in rules else len(rules)))
    return reached


# --- the same things as API objects ---


class ByKind:
    """The class lets every device pass; a selector names the kind."""

    def match(self, expression: str, device: DeviceFacts) -> Match:
        return Match(Verdict.MATCH if expression in ("every", device.attribute("kind")) else Verdict.NO_MATCH)

    def matches_all(self, expressions: Iterable[str], device: DeviceFacts) -> Match:
        found = [self.match(expression, device) for expression in expressions]
        return next((each for each in found if each.verdict is not Verdict.MATCH), Match(Verdict.MATCH))


def published(node: str, gpus: list[Gpu]) -> dict[str, Any]:
    devices = []
    for gpu in gpus:
        more: dict[str, Any] = {"attributes": {"kind": gpu.kind}}
        if gpu.numa is not None:
            more["attributes"]["numa"] = gpu.numa
        if gpu.draws:
            more["consumesCounters"] = [{"counterSet": "s", "counters": {"c": {"value": str(gpu.draws)}}}]
        if gpu.memory is not None:
            more["capacity"] = {"memory": {"value": str(gpu.memory)}}
        if gpu.tainted:
            more["taints"] = [{"key": "broken", "effect": "NoSchedule"}]
        devices.append(device(gpu.name, allowMultipleAllocations=gpu.shared, **more))
    return pool(node, *devices, counters=[{"name": "s", "counters": {"c": {"value": str(COUNTER_TOTAL)}}}])


def holding(node: str, gpus: list[Gpu]) -> Iterator[dict[str, Any]]:
    for gpu in gpus:
        for number, memory in enumerate(gpu.holders):
            more: dict[str, Any] = {}
            if gpu.shared:
                more = {"shareID": f"{number}", "consumedCapacity": {"memory": str(memory)}}
            yield allocated(f"{node}-{gpu.name}-{number}", (node, gpu.name), **more)
        if gpu.watched:
            yield allocated(f"{node}-{gpu.name}-admin", (node, gpu.name), adminAccess=True)


def wanted(want: Want) -> dict[str, Any]:
    found: dict[str, Any] = {"deviceClassName": GPU}
    if want.kind is not None:
        found["selectors"] = [{"cel": {"expression": want.kind}}]
    if want.count is None:
        found["allocationMode"] = "All"
    else:
        found.update(allocationMode="ExactCount", count=want.count)
    if want.tolerant:
        found["tolerations"] = [{"key": "broken", "operator": "Exists"}]
    if want.admin:
        found["adminAccess"] = True
    if want.memory is not None:
        found["capacity"] = {"requests": {"memory": str(want.memory)}}
    return found


def asked(ask: Ask) -> dict[str, Any]:
    requests: list[dict[str, Any]] = [
        {"name": f"r{number}", "exactly": wanted(request[0])} if len(request) == 1 else
        {"name": f"r{number}", "firstAvailable": [
            {"name": f"a{at}", **wanted(want)} for at, want in enumerate(request)]}
        for number, request in enumerate(ask.requests)
    ]
    if ask.constraint is None:
        return spec(*requests)
    constraint: dict[str, Any] = {ask.constraint: f"{GPU}/numa"}
    if ask.of is not None:
        constraint["requests"] = [f"r{ask.of}"]
    return spec(*requests, constraints=[constraint])


def cluster(nodes: dict[str, list[Gpu]]) -> Cluster:
    return cluster_of(
        deviceclasses=[device_class(expression="every")],
        resourceslices=[published(node, gpus) for node, gpus in nodes.items()],
        resourceclaims=[each for node, gpus in nodes.items() for each in holding(node, gpus)],
    )


# --- what is tried ---


@st.composite
def gpus(draw: st.DrawFn) -> list[Gpu]:
    found = []
    for number in range(draw(st.integers(1, 4))):
        shared = draw(st.integers(0, 2)) == 0
        memory = draw(st.sampled_from([None, 2, 4])) if not shared else draw(st.sampled_from([2, 4]))
        most = 2 if shared else 1
        holders = draw(st.lists(st.integers(1, 2), max_size=most)) if draw(st.integers(0, 2)) == 0 else []
        found.append(Gpu(
            name=f"g{number}", kind=draw(st.sampled_from("ab")), numa=draw(st.sampled_from([0, 1, None])),
            draws=draw(st.integers(0, 3)), memory=memory, shared=shared, tainted=draw(st.integers(0, 4)) == 0,
            holders=tuple(holders), watched=draw(st.integers(0, 5)) == 0,
        ))
    return found


def wants(admin: bool) -> st.SearchStrategy[Want]:
    return st.builds(
        Want, kind=st.sampled_from([None, "a", "b"]), count=st.sampled_from([1, 1, 1, 2, 2, 3, None]),
        admin=st.sampled_from([False, False, False, admin]), tolerant=st.sampled_from([False, False, True]),
        memory=st.sampled_from([None, None, 1, 2, 3]),
    )


@st.composite
def asks(draw: st.DrawFn) -> list[Ask]:
    found = []
    left = 3
    for _ in range(draw(st.integers(1, 2))):
        requests = []
        for _ in range(draw(st.integers(1, min(2, left)))):
            left -= 1
            several = draw(st.integers(0, 3)) == 0
            requests.append(tuple(draw(st.lists(wants(admin=not several), min_size=1 + several, max_size=1 + several))))
        constraint = draw(st.sampled_from([None, None, "matchAttribute", "distinctAttribute"]))
        of = draw(st.sampled_from([None, *range(len(requests))]))
        found.append(Ask(requests=tuple(requests), constraint=constraint, of=of))
        if not left:
            break
    return found


@settings(max_examples=1000)
@given(gpus(), asks())
def test_devices_are_found_exactly_where_there_are_some(there: list[Gpu], wanted: list[Ask]) -> None:
    found = allocate(cluster({"n1": there}), ByKind(), [claim_spec(asked(ask)) for ask in wanted], "n1")
    assert found.stage is furthest(wanted, there)
    assert (found.chosen is not None) == (found.stage is Stage.FITS)


@settings(max_examples=100)
@given(gpus(), asks())
def test_what_is_chosen_keeps_every_rule(there: list[Gpu], wanted: list[Ask]) -> None:
    found = allocate(cluster({"n1": there}), ByKind(), [claim_spec(asked(ask)) for ask in wanted], "n1")
    if found.chosen is None:
        return
    by_name = {gpu.name: gpu for gpu in there}
    picks: list[Pick] = []
    for each in found.chosen:
        name, _, alternative = each.request.partition("/")
        request = wanted[each.claim].requests[int(name[1:])]
        want = request[int(alternative[1:]) if alternative else 0]
        picks.append((each.claim, int(name[1:]), want, by_name[each.device.key.device]))
    key = [sorted((claim, number, gpu.name) for claim, number, _, gpu in each) for each in every_choice(wanted, there)]
    assert sorted((claim, number, gpu.name) for claim, number, _, gpu in picks) in key
    assert distinct_devices(picks)
    assert free(picks)
    assert untainted(picks)
    assert constrained(picks, wanted)
    assert counted(picks, there)
    assert roomy(picks)


@settings(max_examples=100)
@given(st.lists(gpus(), min_size=1, max_size=3), asks())
def test_the_survey_says_how_far_the_best_node_gets(there: list[list[Gpu]], wanted: list[Ask]) -> None:
    nodes = {f"n{number}": each for number, each in enumerate(there)}
    known, survey = cluster(nodes), Survey()
    survey.begin(known)
    found = survey.find(known, ByKind(), [claim_spec(asked(ask)) for ask in wanted])
    reached = {node: furthest(wanted, each) for node, each in nodes.items()}
    best = max(reached.values())
    assert found.stage is best
    assert found.closest_nodes == sum(stage is best for stage in reached.values())
