"""What devices a claim could be given: literal cases, and properties over many small clusters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claim_objects import (
    GPU,
    allocated,
    claim_spec,
    cluster_of,
    decoded,
    device,
    device_class,
    pool,
    request,
    rule,
    spec,
)
from claimscope.claims.cluster import Cluster
from claimscope.claims.demand import Rule
from claimscope.claims.fitting import Attempt, Stage, allocate, rule_value
from claimscope.claims.model import DeviceFacts
from claimscope.claims.selectors import Match, Verdict
from claimscope.claims.survey import Survey
from claimscope.kube import objects


class ByKind:
    """A selector is the text "kind=x": it matches devices whose attribute kind is x."""

    def match(self, expression: str, device: DeviceFacts) -> Match:
        wanted = expression.removeprefix("kind=")
        if wanted == expression:
            return Match(Verdict.MATCH)
        kind = device.attribute("kind")
        if kind is None:
            return Match(Verdict.ERROR, "no such key: kind")
        return Match(Verdict.MATCH if kind == wanted else Verdict.NO_MATCH)

    def matches_all(self, expressions: Any, device: DeviceFacts) -> Match:
        for expression in expressions:
            found = self.match(expression, device)
            if found.verdict is not Verdict.MATCH:
                return found
        return Match(Verdict.MATCH)


def cluster(
    *claims: dict[str, Any], slices: list[dict[str, Any]], rules: list[dict[str, Any]] | None = None
) -> Cluster:
    return cluster_of(
        deviceclasses=[device_class(expression="every")], resourceslices=slices, resourceclaims=[*claims],
        devicetaintrules=rules or [],
    )


def attempt(known: Cluster, *specs: dict[str, Any], node: str = "n1") -> Attempt:
    return allocate(known, ByKind(), [claim_spec(each) for each in specs], node)


def names(found: Attempt) -> list[tuple[str, str]]:
    return [(each.request, each.device.key.device) for each in found.chosen or ()]


TWO = [pool("n1", device("g0", attributes={"kind": "a", "numa": 0}), device("g1", attributes={"kind": "b", "numa": 1}))]


def test_takes_what_matches() -> None:
    assert names(attempt(cluster(slices=TWO), spec(request(selector="kind=b")))) == [("gpu", "g1")]


def test_requests_share_no_device() -> None:
    found = attempt(cluster(slices=TWO), spec(request("any"), request("a", selector="kind=a")))
    assert names(found) == [("any", "g1"), ("a", "g0")]


def test_several_claims_of_one_pod_share_no_device() -> None:
    found = attempt(cluster(slices=TWO), spec(), spec())
    assert [(each.claim, each.device.key.device) for each in found.chosen or ()] == [(0, "g0"), (1, "g1")]


def test_all_takes_every_one_or_nothing() -> None:
    every = spec(request(allocationMode="All", count=None))
    assert names(attempt(cluster(slices=TWO), every)) == [("gpu", "g0"), ("gpu", "g1")]
    assert attempt(cluster(allocated("a", ("n1", "g0")), slices=TWO), every).stage is Stage.FREE


def test_a_prioritized_list_falls_back() -> None:
    prefers = spec({"name": "gpu", "firstAvailable": [
        {"name": "best", "deviceClassName": GPU, "selectors": [{"cel": {"expression": "kind=c"}}]},
        {"name": "any", "deviceClassName": GPU},
    ]})
    assert names(attempt(cluster(slices=TWO), prefers)) == [("gpu/any", "g0")]


def test_admin_access_takes_what_others_hold_and_holds_nothing() -> None:
    admin = spec(request(adminAccess=True, count=2))
    known = cluster(allocated("a", ("n1", "g0")), slices=TWO)
    assert names(attempt(known, admin)) == [("gpu", "g0"), ("gpu", "g1")]
    watched = cluster(allocated("a", ("n1", "g0"), adminAccess=True), slices=TWO)
    assert names(attempt(watched, spec(request(count=2)))) == [("gpu", "g0"), ("gpu", "g1")]


def test_a_toleration_lets_pass_what_it_covers() -> None:
    known = cluster(slices=TWO, rules=[rule("drain", driver=GPU)])
    assert attempt(known, spec()).stage is Stage.UNTAINTED
    tolerant = request(tolerations=[{"key": "maintenance", "operator": "Equal", "value": "now"}])
    assert names(attempt(known, spec(tolerant))) == [("gpu", "g0")]
    assert attempt(cluster(slices=TWO, rules=[rule("dry", effect="None")]), spec()).stage is Stage.FITS


@pytest.mark.parametrize(
    ("constraint", "stage"),
    [
        ({"matchAttribute": f"{GPU}/numa"}, Stage.CONSTRAINT),
        ({"distinctAttribute": f"{GPU}/numa"}, Stage.FITS),
        ({"matchAttribute": f"{GPU}/absent"}, Stage.CONSTRAINT),
        ({"matchAttribute": f"{GPU}/numa", "requests": ["other"]}, Stage.FITS),
    ],
)
def test_constraints(constraint: dict[str, Any], stage: Stage) -> None:
    assert attempt(cluster(slices=TWO), spec(request(count=2), constraints=[constraint])).stage is stage


def shared(**policy: Any) -> list[dict[str, Any]]:
    memory: dict[str, Any] = {"value": "80Gi"}
    if policy:
        memory["requestPolicy"] = policy
    return [pool("n1", device("s0", {"memory": memory}, allowMultipleAllocations=True))]


@pytest.mark.parametrize(
    ("policy", "asked", "taken"),
    [
        ({}, "30Gi", "30Gi"),
        ({}, None, "80Gi"),
        ({"default": "10Gi"}, None, "10Gi"),
        ({"default": "10Gi", "validValues": ["10Gi", "20Gi", "40Gi"]}, "11Gi", "20Gi"),
        ({"default": "10Gi", "validValues": ["10Gi", "20Gi"]}, "21Gi", None),
        ({"default": "10Gi", "validRange": {"min": "10Gi", "step": "4Gi"}}, "15Gi", "18Gi"),
        ({"default": "10Gi", "validRange": {"min": "10Gi", "max": "20Gi"}}, "1Gi", "10Gi"),
        ({"default": "10Gi", "validRange": {"min": "10Gi", "max": "20Gi"}}, "21Gi", None),
        ({}, "81Gi", None),
    ],
)
def test_capacity_is_rounded_as_the_policy_says(policy: dict[str, Any], asked: str | None, taken: str | None) -> None:
    wanted = request(capacity={"requests": {"memory": asked}}) if asked is not None else request()
    found = attempt(cluster(slices=shared(**policy)), spec(wanted))
    consumed = [str((each.consumed or {})["memory"]) for each in found.chosen or ()]
    assert consumed == ([taken] if taken is not None else [])


def test_a_shared_device_serves_several_requests_until_it_is_full() -> None:
    wanted = [request(name, capacity={"requests": {"memory": "30Gi"}}) for name in ("x", "y", "z")]
    assert names(attempt(cluster(slices=shared()), spec(*wanted[:2]))) == [("x", "s0"), ("y", "s0")]
    assert attempt(cluster(slices=shared()), spec(*wanted)).stage is Stage.CAPACITY


def test_counters_are_shared_by_partitions() -> None:
    draw = [{"counterSet": "g", "counters": {"slices": {"value": "3"}}}]
    slices = [pool("n1", *(device(f"m{n}", consumesCounters=draw) for n in range(4)),
                   counters=[{"name": "g", "counters": {"slices": {"value": "7"}}}])]
    assert attempt(cluster(slices=slices), spec(request(count=2))).stage is Stage.FITS
    assert attempt(cluster(slices=slices), spec(request(count=3))).stage is Stage.COUNTERS
    assert attempt(cluster(allocated("a", ("n1", "m3")), slices=slices), spec(request(count=2))).stage is Stage.COUNTERS


def test_incomplete_pools_serve_nobody() -> None:
    assert attempt(cluster(slices=[pool("n1", device("g0"), count=2)]), spec()).stage is Stage.MATCH


def test_errors_are_told_by_device() -> None:
    found = attempt(cluster(slices=[pool("n1", device("g0"))]), spec(request(selector="kind=a")))
    assert [(str(key), text) for key, text in found.errors] == [(f"{GPU}/n1/g0", "no such key: kind")]


def test_a_search_without_end_is_given_up() -> None:
    # Fifteen devices that differ where only thirteen can, and no two are alike.
    slices = [pool("n1", *(device(f"g{n}", attributes={"one": n, "two": n // 2, "three": n % 7}) for n in range(26)))]
    wanted = spec(*(request(f"r{n}") for n in range(15)), constraints=[
        {"distinctAttribute": f"{GPU}/one"}, {"distinctAttribute": f"{GPU}/two"},
    ])
    assert attempt(cluster(slices=slices), wanted).stage is None


def test_devices_for_several_nodes_by_label() -> None:
    network = {
        "metadata": {"name": "net", "uid": "net"},
        "spec": {"driver": GPU, "pool": {"name": "net", "generation": 1, "resourceSliceCount": 1},
                 "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [
                     {"key": "rack", "operator": "In", "values": ["r1"]}]}]},
                 "devices": [device("nic")]},
    }
    known = cluster_of(
        deviceclasses=[device_class(expression="every")], resourceslices=[network],
        nodes=[{"metadata": {"name": "n1", "uid": "n1", "labels": {"rack": "r1"}}},
               {"metadata": {"name": "n2", "uid": "n2", "labels": {"rack": "r2"}}}],
    )
    assert [attempt(known, spec(), node=node).stage for node in ("n1", "n2")] == [Stage.FITS, Stage.MATCH]
    shortages = Survey()
    shortages.begin(known)
    found = shortages.find(known, ByKind(), [claim_spec(spec())])
    assert (found.stage, [near.node for near in found.closest]) == (Stage.FITS, ["n1"])


def test_a_pool_that_moves_or_goes_leaves_its_node() -> None:
    known, shortages, wanted = cluster(slices=TWO), Survey(), [claim_spec(spec())]
    seen = []
    for moved in (None, "n2", None):
        shortages.begin(known)
        found = shortages.find(known, ByKind(), wanted)
        seen.append((found.stage, [near.node for near in found.closest]))
        slices = known_slices(moved)
        known.sync("resourceslices", slices)
    assert seen == [(Stage.FITS, ["n1"]), (Stage.MATCH, ["n1"]), (Stage.FITS, ["n2"])]


def known_slices(node: str | None) -> list[Any]:
    if node is None:
        return []
    moved = pool("n1", device("g0"))
    moved["spec"]["nodeName"] = node
    return [decoded("resourceslices", moved)]


# --- properties ---

KINDS = st.sampled_from(["a", "b", None])


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    slices, held, rules = [], [], []
    for node in range(draw(st.integers(1, 3))):
        devices = []
        for number in range(draw(st.integers(1, 5))):
            kind = draw(KINDS)
            attributes: dict[str, Any] = {"numa": draw(st.integers(0, 1))}
            if kind is not None:
                attributes["kind"] = kind
            more: dict[str, Any] = {}
            if draw(st.booleans()):
                more["consumesCounters"] = [{"counterSet": "s", "counters": {"c": {"value": str(draw(
                    st.integers(1, 3)))}}}]
            devices.append(device(f"g{number}", attributes=attributes, **more))
            if draw(st.integers(0, 3)) == 0:
                held.append(allocated(f"h{node}-{number}", (f"n{node}", f"g{number}"), adminAccess=draw(st.booleans())))
            if draw(st.integers(0, 4)) == 0:
                effect = draw(st.sampled_from(["NoSchedule", "NoExecute", "None"]))
                rules.append(rule(f"r{node}-{number}", effect, driver=GPU, pool=f"n{node}", device=f"g{number}"))
        slices.append(pool(f"n{node}", *devices, counters=[{"name": "s", "counters": {"c": {"value": "5"}}}]))
    return cluster(*held, slices=slices, rules=rules)


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    wanted = []
    for number in range(draw(st.integers(1, 2))):
        more: dict[str, Any] = {}
        if draw(st.integers(0, 4)) == 0:
            more["tolerations"] = [{"operator": "Exists"}]
        if draw(st.integers(0, 5)) == 0:
            more["allocationMode"], more["count"] = "All", None
        else:
            more["count"] = draw(st.integers(1, 3))
        selector = draw(st.sampled_from([None, "kind=a", "kind=b"]))
        wanted.append(request(f"r{number}", selector=selector, **more))
    constraint = draw(st.sampled_from([None, "matchAttribute", "distinctAttribute"]))
    return spec(*wanted, constraints=[{constraint: f"{GPU}/numa"}] if constraint else None)


def draws(facts: DeviceFacts) -> int:
    return sum(int(counter.value) for use in facts.consumes for counter in (use.counters or {}).values())


@settings(max_examples=200)
@given(clusters(), specs())
def test_an_allocation_keeps_every_rule(known: Cluster, wanted: dict[str, Any]) -> None:
    parsed = claim_spec(wanted)
    best = None
    for node in {pool_key.pool for pool_key in known.pools}:
        found = allocate(known, ByKind(), [parsed], node)
        assert (found.stage is Stage.FITS) == (found.chosen is not None)
        best = max(stage for stage in (best, found.stage) if stage is not None)
        chosen = [each.device for each in found.chosen or ()]
        assert len({each.key for each in chosen}) == len(chosen)
        drawn = 0
        for each in found.chosen or ():
            assert each.device.node == node
            assert not [holding for holding in known.holdings(each.device.key) if not holding.admin]
            if not each.tolerations:
                assert not [taint for taint in known.taints(each.device.key) if taint.blocks]
            drawn += draws(each.device)
        drawn += sum(
            draws(facts) for facts in known.devices.values()
            if facts.node == node and any(not holding.admin for holding in known.holdings(facts.key))
        )
        assert drawn <= 5 or not any(each.device.consumes for each in found.chosen or ())
        for constraint in parsed.devices.constraints or () if found.chosen else ():
            values = [each.attribute("numa") for each in chosen]
            if constraint.match_attribute:
                assert len(set(values)) == 1
            else:
                assert len(set(values)) == len(values)
    shortages = Survey()
    shortages.begin(known)
    assert shortages.find(known, ByKind(), [parsed]).stage is best


def by_label(name: str, rack: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": name},
        "spec": {"driver": GPU, "pool": {"name": name, "generation": 1, "resourceSliceCount": 1},
                 "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [
                     {"key": "rack", "operator": "In", "values": [rack]}]}]},
                 "devices": [device("nic", attributes={"kind": "a", "numa": 0})]},
    }


def labelled(name: str, rack: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": name, "labels": {"rack": rack}}}


def on_node(name: str) -> objects.NodeSelector:
    return objects.NodeSelector(node_selector_terms=[objects.NodeSelectorTerm(match_fields=[
        objects.SelectorRequirement(key="metadata.name", operator="In", values=[name])])])


RACKS = st.sampled_from(["r1", "r2"])


@settings(max_examples=80)
@given(clusters(), specs(), st.data())
def test_what_is_kept_from_before_changes_no_answer(
    known: Cluster, wanted: dict[str, Any], data: st.DataObject
) -> None:
    parsed, kept = claim_spec(wanted), Survey()
    for number in range(6):
        kept.begin(known)
        fresh = Survey()
        fresh.begin(known)
        for within in ([], [on_node("n0")], [on_node("n0"), on_node("n1")]):
            assert kept.find(known, ByKind(), [parsed], within) == fresh.find(known, ByKind(), [parsed], within)
        match data.draw(st.sampled_from(["release", "wide", "label", "slices"])):
            case "release" if known.claims:
                known.apply("resourceclaims", known.claims[data.draw(st.sampled_from(sorted(known.claims)))], False)
            case "wide":
                known.apply("resourceslices", decoded("resourceslices", by_label(f"w{number}", data.draw(RACKS))), True)
            case "label":
                known.apply("nodes", decoded("nodes", labelled(f"n{number % 2}", data.draw(RACKS))), True)
            case "slices":
                known.sync("resourceslices", [decoded("resourceslices", pool("n1", device("g0")))])


def test_only_the_nodes_that_are_left_count() -> None:
    known = cluster(slices=[*TWO, pool("n2", device("g0"), device("g1"), device("g2"))])
    survey, three = Survey(), [claim_spec(spec(request(count=3)))]
    survey.begin(known)
    found = survey.find(known, ByKind(), three, [on_node("n1")])
    assert (found.stage, found.tally.match, found.only_on) == (Stage.MATCH, 2, ("n1",))
    assert survey.find(known, ByKind(), three).stage is Stage.FITS
    assert survey.find(known, ByKind(), three, [on_node("n1"), on_node("n2")]).tally.exist == 0


def test_admin_access_takes_each_device_once_for_a_claim() -> None:
    admin = spec(request("a", adminAccess=True), request("b", adminAccess=True))
    assert attempt(cluster(slices=[pool("n1", device("g0"))]), admin).stage is Stage.MATCH
    watch = spec(request("a", adminAccess=True))
    one = cluster(slices=[pool("n1", device("g0"))])
    assert attempt(one, spec(), watch).stage is Stage.FITS
    assert attempt(one, watch, spec()).stage is Stage.MATCH  # in the order of the pod's claims, as the scheduler


def test_the_attribute_of_a_constraint_may_carry_the_drivers_domain() -> None:
    known = cluster(slices=[pool("n1", device("g0", attributes={"numa": 1, "other.io/numa": 2}))])
    (facts,) = known.devices.values()
    found = [
        rule_value(Rule(attribute=name, distinct=False, options=frozenset()), facts)
        for name in (f"{GPU}/numa", "other.io/numa", "third.io/numa")
    ]
    assert found == [("int", 1), ("int", 2), None]
