"""Taints: who tolerates what, the inventory of slices and rules, and violations counted once when they begin."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claimscope.claims.cluster import Cluster
from claimscope.claims.model import DeviceFacts, DeviceKey, StandingTaint
from claimscope.claims.selectors import Match, Selectors, Verdict
from claimscope.claims.taints import Violations, request_of, taint_samples, tolerates, untolerated
from claimscope.kube.objects import Taint, Toleration
from inventory_objects import a_claim, a_class, a_cluster, a_device, a_result, a_rule, a_slice, make, values
from recorded_cluster import START, Arrival, arrivals, lists

D = "gpu.example.com"
SICK = Taint(key="example.com/sick", value="ecc", effect="NoSchedule")


@pytest.mark.parametrize(
    ("toleration", "expected"),
    [
        ({"key": "example.com/sick", "operator": "Exists"}, True),
        ({"key": "example.com/sick", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "example.com/sick", "operator": "Equal", "value": "ecc"}, True),
        ({"key": "example.com/sick", "operator": "Equal", "value": "xid"}, False),
        ({"key": "example.com/sick", "value": "ecc", "effect": "NoSchedule"}, True),
        ({"key": "example.com/other", "operator": "Exists"}, False),
        ({"operator": "Exists"}, True),
        ({"operator": "Exists", "effect": "NoSchedule"}, True),
        ({"operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "example.com/sick", "operator": "Matches", "value": "ecc"}, False),
    ],
)
def test_who_tolerates_what(toleration: dict[str, str], expected: bool) -> None:
    assert tolerates([make(Toleration, **toleration)], SICK) is expected
    assert tolerates([], SICK) is False


def test_effect_none_keeps_nobody_from_a_device() -> None:
    device = DeviceKey(D, "n1", "gpu-0")
    standing = [StandingTaint(device=device, key="k", value="", effect=effect) for effect in ("None", "NoExecute")]
    assert untolerated(standing, ()) == (standing[1],)


# --- inventory ---


def test_taints_of_slices_and_rules_stand_side_by_side() -> None:
    taints = [{"key": "gpu.example.com/lost", "effect": "NoSchedule"}] * 2
    cluster = a_cluster(
        resourceslices=[a_slice([a_device("gpu-0", {"uuid": "GPU-0"}, taints=taints), a_device("gpu-1")])],
        devicetaintrules=[
            a_rule("one", {"driver": D, "pool": "n1", "device": "gpu-0"}, effect="Later", value="v"),
            a_rule("gone", {"driver": D, "pool": "n1", "device": "gpu-7"}),
            a_rule("pool", {"pool": "n1"}, effect="NoExecute"),
        ],
    )
    samples = taint_samples(cluster)
    assert values(samples, "dra_device_taint_info") == {
        (D, "n1", "gpu-0", "n1", "GPU-0", "gpu.example.com/lost", "", "NoSchedule", ""): 1,
        (D, "n1", "gpu-0", "n1", "GPU-0", "example.com/sick", "v", "None", "one"): 1,
        (D, "n1", "gpu-0", "n1", "GPU-0", "example.com/sick", "", "NoExecute", "pool"): 1,
        (D, "n1", "gpu-1", "n1", "", "example.com/sick", "", "NoExecute", "pool"): 1,
    }
    assert values(samples, "dra_taint_rule_devices") == {
        ("one", "example.com/sick", "None"): 1,
        ("gone", "example.com/sick", "NoSchedule"): 0,
        ("pool", "example.com/sick", "NoExecute"): 2,
    }


@pytest.mark.parametrize("selector", [None, {}])
def test_a_rule_without_selector_taints_everything(selector: dict[str, str] | None) -> None:
    cluster = a_cluster(
        resourceslices=[a_slice([a_device("gpu-0")]), a_slice([a_device("nic-0")], driver="nic.example.com")],
        devicetaintrules=[a_rule("all", selector)],
    )
    assert values(taint_samples(cluster), "dra_taint_rule_devices") == {("all", "example.com/sick", "NoSchedule"): 2}


def test_a_slice_that_goes_takes_its_taints_along() -> None:
    tainted = a_slice([a_device("gpu-0", taints=[{"key": "k", "effect": "NoSchedule"}])])
    cluster = a_cluster(resourceslices=[tainted])
    assert len(taint_samples(cluster)) == 1
    cluster.apply("resourceslices", tainted, False)
    assert len(taint_samples(cluster)) == 1  # it may be back in a moment
    cluster.tick(0.0)
    cluster.tick(600.0)
    assert taint_samples(cluster) == []


# --- requests ---


def test_a_result_names_its_request_or_the_alternative_taken() -> None:
    requests = [
        {"name": "nic", "exactly": {"deviceClassName": "nic"}},
        {"name": "gpu", "firstAvailable": [{"name": "big", "deviceClassName": "h200"},
                                           {"name": "any", "deviceClassName": "gpu"}]},
    ]
    claim = a_claim("c", requests=requests)
    names = {name: found.device_class_name if (found := request_of(claim, name)) else None
             for name in ("nic", "gpu", "gpu/big", "gpu/any", "gpu/none", "x")}
    assert names == {"nic": "nic", "gpu": None, "gpu/big": "h200", "gpu/any": "gpu", "gpu/none": None, "x": None}


# --- violations ---

EARLY, AT, LATE = "2026-01-01T00:00:01Z", "2026-01-01T00:00:10Z", "2026-01-01T00:00:20Z"
AT_WALL = 1767225610.0
GPU_0 = {"driver": D, "pool": "n1", "device": "gpu-0"}
CLASS = a_class("gpu", 'device.driver == "gpu.example.com"')


class Told:
    """A cluster whose changes reach the violations, as they do in the engine."""

    def __init__(self, count_since_wall: float = AT_WALL - 5, selectors: Any = None) -> None:
        self.cluster = Cluster()
        self.violations = Violations(count_since_wall=count_since_wall)
        self.selectors = selectors or Selectors.in_process()
        self.wall = AT_WALL

    def list(self, kind: str, *objects: Any) -> Told:
        self.violations.take(self.cluster.sync(kind, objects), self.cluster, self.selectors, self.wall)
        return self

    def tell(self, kind: str, obj: Any, present: bool = True) -> Told:
        self.violations.take(self.cluster.apply(kind, obj, present), self.cluster, self.selectors, self.wall)
        return self

    def counts(self) -> dict[tuple[str, ...], float]:
        return values(self.violations.samples(), "dra_constraint_violations_total")

    @property
    def taint(self) -> float:
        return self.counts()["gpu", "taint"]

    @property
    def selector(self) -> float:
        return self.counts()["gpu", "selector"]


def told(*devices: dict[str, Any], **options: Any) -> Told:
    return Told(**options).list("deviceclasses", CLASS).list(
        "resourceslices", a_slice(devices or [a_device("gpu-0")])
    )


def held(at: str | None = AT, **more: Any) -> Any:
    return a_claim("c", a_result("gpu-0", **more), at=at)


def test_known_classes_start_at_zero() -> None:
    assert told().counts() == {("gpu", "taint"): 0, ("gpu", "selector"): 0}


def test_an_allocation_in_spite_of_a_taint_is_counted_once() -> None:
    made = told().tell("devicetaintrules", a_rule("r", GPU_0, since=EARLY)).tell("resourceclaims", held())
    assert made.counts() == {("gpu", "taint"): 1, ("gpu", "selector"): 0}
    made.tell("resourceclaims", held()).list("resourceclaims", held()).tell(
        "devicetaintrules", a_rule("r", GPU_0, since=EARLY, effect="NoExecute")
    )
    assert made.taint == 1


def test_a_taint_that_comes_after_the_allocation_is_no_violation() -> None:
    assert told().tell("resourceclaims", held()).tell("devicetaintrules", a_rule("r", GPU_0, since=LATE)).taint == 0


def test_news_of_a_taint_may_come_late() -> None:
    assert told().tell("resourceclaims", held()).tell("devicetaintrules", a_rule("r", GPU_0, since=EARLY)).taint == 1


@pytest.mark.parametrize("since", [None, AT])
def test_without_stamps_or_within_one_second_the_order_of_arrival_decides(since: str | None) -> None:
    rule = a_rule("r", GPU_0, since=since)
    assert told().tell("devicetaintrules", rule).tell("resourceclaims", held()).taint == 1
    assert told().tell("resourceclaims", held()).tell("devicetaintrules", rule).taint == 0


def test_within_one_batch_changes_are_taken_in_their_order() -> None:
    made = told()
    changes = [
        *made.cluster.apply("devicetaintrules", a_rule("r", GPU_0, since=EARLY), True),
        *made.cluster.apply("resourceclaims", held(), True),
        *made.cluster.apply("devicetaintrules", a_rule("r", GPU_0, since=EARLY), False),
    ]
    made.violations.take(changes, made.cluster, made.selectors, made.wall)
    assert made.taint == 1


def test_the_taint_of_a_slice_counts_as_a_rule_does() -> None:
    taint = {"key": "k", "effect": "NoSchedule", "timeAdded": EARLY}
    assert told(a_device("gpu-0", taints=[taint])).tell("resourceclaims", held()).taint == 1
    assert told(a_device("gpu-0", taints=[{**taint, "effect": "None"}])).tell("resourceclaims", held()).taint == 0


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"tolerations": [{"operator": "Exists"}]}, 0),
        ({"adminAccess": True}, 1),
        ({"adminAccess": True, "tolerations": [{"operator": "Exists", "key": "example.com/sick"}]}, 0),
        ({"tolerations": [{"operator": "Exists", "effect": "NoExecute"}]}, 1),
    ],
)
def test_tolerations_are_those_of_the_allocation_for_observers_too(more: dict[str, Any], expected: int) -> None:
    made = told().tell("devicetaintrules", a_rule("r", GPU_0, since=EARLY)).tell("resourceclaims", held(**more))
    assert made.taint == expected


def test_what_was_wrong_before_is_not_counted_at_a_start() -> None:
    made = told(count_since_wall=AT_WALL + 60)
    made.list("devicetaintrules", a_rule("r", GPU_0, since=EARLY)).list("resourceclaims", held())
    assert made.taint == 0
    made.tell("resourceclaims", held())
    assert made.taint == 0


def test_what_a_gap_hid_is_not_counted_whatever_is_listed_first() -> None:
    for kinds in itertools.permutations(["devicetaintrules", "resourceclaims", "resourceslices"]):
        objects = {
            "devicetaintrules": a_rule("r", GPU_0, since=EARLY), "resourceclaims": held(),
            "resourceslices": a_slice([a_device("gpu-0")]),
        }
        made = Told().list("deviceclasses", CLASS)
        for kind in kinds:
            made.list(kind, objects[kind])
        assert made.taint == 0, kinds


def test_a_claim_allocated_anew_can_violate_anew() -> None:
    made = told().tell("devicetaintrules", a_rule("r", GPU_0, since=EARLY)).tell("resourceclaims", held())
    made.tell("resourceclaims", a_claim("c")).tell("resourceclaims", held(at=LATE))
    assert made.taint == 2


def with_kind(kind: str) -> Any:
    return a_slice([a_device("gpu-0", {"kind": kind})])


ASKS = 'device.attributes["gpu.example.com"].kind == "a"'


def asking(**options: Any) -> Told:
    made = Told(**options).list("deviceclasses", a_class("gpu", ASKS)).list("resourceslices", with_kind("a"))
    return made.tell("resourceclaims", held())


def test_a_device_that_no_longer_matches_is_counted_when_it_ceases_to() -> None:
    made = asking()
    assert made.selector == 0
    made.tell("resourceslices", with_kind("b"))
    assert made.selector == 1
    made.tell("resourceslices", with_kind("b")).list("resourceclaims", held())
    assert made.selector == 1
    made.tell("resourceslices", with_kind("a")).tell("resourceslices", with_kind("b"))
    assert made.selector == 2


def test_a_device_whose_slice_is_gone_violates_nothing() -> None:
    made = asking().tell("resourceslices", with_kind("b"))
    made.tell("resourceslices", with_kind("b"), False).tell("resourceslices", with_kind("b"))
    assert made.selector == 1  # what stood before the slice went stands after it


def test_two_looks_at_one_device_are_judged_apart_and_once() -> None:
    taint = {"key": "k", "effect": "NoSchedule", "timeAdded": EARLY}
    requests = [
        {"name": name, "exactly": {"deviceClassName": "gpu", "adminAccess": True}} for name in ("allowed", "not")
    ]
    claim = a_claim(
        "c", a_result("gpu-0", request="allowed", adminAccess=True, tolerations=[{"operator": "Exists"}]),
        a_result("gpu-0", request="not", adminAccess=True), requests=requests, at=AT,
    )
    made = told(a_device("gpu-0", taints=[taint])).tell("resourceclaims", claim)
    for number in range(5):
        made.tell("resourceslices", a_slice([a_device("gpu-0", {"n": number}, taints=[taint])]))
    assert made.counts() == {("gpu", "taint"): 1, ("gpu", "selector"): 0}


def test_a_slice_costs_one_question_for_each_claim_on_a_shared_device() -> None:
    made = told(a_device("gpu-0", allowMultipleAllocations=True))
    for number in range(50):
        made.tell("resourceclaims", a_claim(f"c{number}", a_result("gpu-0", shareID=str(number)), at=AT))
    asked = made.selectors = Later()
    asked.verdict = Verdict.MATCH
    made.tell("resourceslices", a_slice([a_device("gpu-0", {"n": 1}, allowMultipleAllocations=True)]))
    assert asked.asked == 50


def test_an_error_is_no_violation() -> None:
    assert asking().tell("resourceslices", a_slice([a_device("gpu-0")])).selector == 0


def test_a_class_may_come_to_ask_for_something_else() -> None:
    assert asking().tell("deviceclasses", a_class("gpu", ASKS.replace('"a"', '"b"'))).selector == 1


def test_the_request_asks_as_well_as_the_class() -> None:
    requests = [{"name": "gpu", "exactly": {"deviceClassName": "gpu", "selectors": [{"cel": {"expression": ASKS}}]}}]
    claim = a_claim("c", a_result("gpu-0"), at=AT, requests=requests)
    made = told(a_device("gpu-0", {"kind": "a"})).tell("resourceclaims", claim)
    assert (made.selector, made.tell("resourceslices", with_kind("b")).selector) == (0, 1)


class Later:
    """Selectors that answer only when told."""

    def __init__(self) -> None:
        self.verdict = Verdict.UNKNOWN
        self.asked = 0

    def matches_all(self, expressions: Iterable[str], device: DeviceFacts) -> Match:
        self.asked += 1
        return Match(self.verdict)


def test_a_verdict_that_was_not_known_is_asked_for_again() -> None:
    selectors = Later()
    made = asking(selectors=selectors)
    selectors.verdict = Verdict.NO_MATCH
    made.wall += 2
    assert made.tell("deviceclasses", a_class("other")).selector == 1


def test_a_first_verdict_on_an_old_allocation_is_not_counted() -> None:
    made = Told(count_since_wall=AT_WALL + 60).list("deviceclasses", a_class("gpu", ASKS))
    made.list("resourceslices", with_kind("b")).list("resourceclaims", held())
    assert made.selector == 0
    made.tell("resourceslices", with_kind("a")).tell("resourceslices", with_kind("b"))
    assert made.selector == 1  # this one was seen


# --- the recording ---


def replay(stream: Iterable[Arrival]) -> Told:
    made = Told(count_since_wall=START)
    for kind, objects in lists().items():
        made.list(kind, *objects)
    for arrival in stream:
        made.wall = START + arrival.seconds
        made.tell(arrival.kind, arrival.obj, arrival.present)
    return made


def test_the_recording_has_two_violations() -> None:
    assert {labels: count for labels, count in replay(arrivals()).counts().items() if count} == {
        ("gpu.nvidia.com", "taint"): 2
    }


def test_each_of_them_at_its_moment() -> None:
    def count(seconds: float) -> float:
        counts = replay(arrival for arrival in arrivals() if arrival.seconds <= seconds).counts()
        return counts["gpu.nvidia.com", "taint"]

    assert [count(seconds) for seconds in (26.0, 27.0, 170.0, 177.0, 182.0)] == [0, 1, 1, 1, 2]


@settings(max_examples=25)
@given(st.lists(st.integers(1, 60), min_size=1))
def test_however_many_events_are_taken_at_once(sizes: list[int]) -> None:
    made = replay(())
    stream = iter(arrivals())
    for size in itertools.cycle(sizes):
        batch = list(itertools.islice(stream, size))
        if not batch:
            break
        changes = [
            change for each in batch for change in made.cluster.apply(each.kind, each.obj, each.present)
        ]
        made.violations.take(changes, made.cluster, made.selectors, START + batch[-1].seconds)
    assert made.counts()["gpu.nvidia.com", "taint"] == 2


def test_repeated_events_count_once() -> None:
    twice = [arrival for arrival in arrivals() for _ in range(2)]
    assert replay(twice).counts()["gpu.nvidia.com", "taint"] == 2
