"""Claims' lives in made-up moments: clocks, gaps, shared claims, restarts of containers, leaks, outcomes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claimscope.claims.durations import MOST_SEEDED_CLASSES, MOST_SEEDED_PAIRS, Figures, Moment, Skip, duration
from claimscope.claims.model import ClaimState, Doing
from claimscope.kube.objects import Event, ObjectReference, Pod, PodMeta
from lifecycle_data import BASE, Watched, claim, condition, container, pod, published, stamp, zeros_of


def ns(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e9)


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        ((5.2, 100), (5.9, 100), 0.7),  # arrivals refine within the second
        ((5.2, 100), (7.0, 101), 1.8),
        ((5.2, 100), (5.2, 101), 1),  # one event brought both
        ((5.2, 100), (5.1, 100), 0.0),  # two watches out of step
        ((500.0, 100), (500.1, 185), 85),  # old news after a gap: stamps are right
        ((5.0, 100), (9.0, 90), 4.0),  # stamps run backwards: clocks disagree, our own does not
        ((9.0, 100), (5.0, 90), Skip.CLOCK),
        ((None, 100), (None, 103), 3),
        ((None, 100), (None, 99), 0.0),  # cut to seconds by two clocks
        ((None, 100), (None, 98), Skip.CLOCK),
        ((None, 100), (5.0, 103), 3),
        ((5.0, None), (7.5, None), 2.5),
        ((5.0, None), (7.5, 100), 2.5),
        ((5.0, None), (None, 100), Skip.UNSEEN),
        ((None, None), (5.0, 100), Skip.UNSEEN),
    ],
)
def test_duration(
    begin: tuple[float | None, float | None], end: tuple[float | None, float | None], expected: float | Skip
) -> None:
    found = duration(Moment(ns(begin[0]), begin[1]), Moment(ns(end[0]), end[1]))
    assert found == (expected if isinstance(expected, Skip) else pytest.approx(expected))


def test_a_life_and_its_times() -> None:
    watched = Watched()
    watched.saw(10.0, claim(created=10))
    watched.saw(10.5, pod(created=10))
    watched.saw(11.0, claim(created=10, allocated=11, reserved=["p"]))
    watched.saw(11.25, pod(created=10, bound=11))
    watched.saw(14.25, pod(created=10, bound=11, prepared=14))
    assert watched.view().state is ClaimState.PREPARED
    watched.saw(15.0, pod(created=10, bound=11, prepared=14, started=15, phase="Running"))
    assert watched.view().state is ClaimState.RUNNING
    assert watched.seconds() == {"scheduling": 0.5, "binding": 0.25, "prepare": 3.0, "start": 0.75, "k": 4.5}
    watched.saw(70.0, pod(created=10, bound=11, prepared=14, phase="Succeeded", statuses=[
        container({"terminated": {"startedAt": stamp(15), "finishedAt": stamp(70)}})
    ]))
    view = watched.view()
    assert (view.state, view.doing, view.doing_since_wall) == (ClaimState.PREPARED, Doing.FINISHED, BASE + 70)
    watched.saw(71.0, claim(created=10, reserved=[]))
    assert watched.view().state is ClaimState.RELEASED
    watched.saw(72.0, claim(created=10), gone=True)
    assert watched.lifecycle.views == {}
    assert {key: value for key, value in watched.figures().items() if key[0] in ("completed", "lifetime")} == {
        ("completed", "ns", "k", "ran"): 1,
        ("lifetime", "k", "ran", "count"): 1,
        ("lifetime", "k", "ran", "sum"): 62.0,
    }


def test_deleted_and_made_again_under_one_name() -> None:
    watched = Watched()
    watched.saw(1, claim(uid="one", created=1))
    watched.saw(2, pod(created=2))
    watched.saw(3, claim(uid="one", created=1, allocated=3, reserved=["p"]))
    watched.saw(9, claim(uid="two", created=9))  # the end of the first is not told
    assert {uid: view.state for uid, view in watched.lifecycle.views.items()} == {"two": ClaimState.PENDING}
    watched.saw(10, claim(uid="one", created=1), gone=True)  # told late
    assert list(watched.lifecycle.views) == ["two"]
    watched.saw(12, claim(uid="two", created=9, allocated=12, reserved=["p"]))
    assert watched.figures()["phase", "k", "scheduling", "count"] == 2
    assert watched.seconds()["scheduling"] == 1.0 + 3.0


def test_two_pods_share_a_claim() -> None:
    watched = Watched()
    watched.saw(1, claim(created=1))
    watched.saw(2, pod("a", created=2))
    watched.saw(2.5, pod("b", created=2))
    watched.saw(3, claim(created=1, allocated=3, reserved=["a"]))
    watched.saw(3.5, pod("a", created=2, bound=3, prepared=3, started=3, phase="Running"))
    watched.saw(4, claim(created=1, allocated=3, reserved=["a", "b"]))
    watched.saw(8, pod("b", created=2, bound=4, prepared=8, started=8, phase="Running"))
    assert watched.view().pods == ("a", "b")
    watched.saw(9, pod("a", created=2, bound=3, prepared=3, started=3, phase="Running"), gone=True)
    watched.saw(9, claim(created=1, allocated=3, reserved=["b"]))
    assert watched.view().state is ClaimState.RUNNING  # b still runs
    assert {key: value for key, value in watched.figures().items() if key[-1] == "count"} == {
        ("phase", "k", phase, "count"): 1 for phase in ("scheduling", "binding", "prepare", "start")
    } | {("ready", "k", "count"): 1}
    watched.saw(10, pod("b", created=2, phase="Running"), gone=True)
    watched.saw(10, claim(created=1))
    assert watched.figures()["completed", "ns", "k", "ran"] == 1


def test_a_pod_that_joins_later_starts_no_phases_after_a_restart() -> None:
    watched = Watched(since=990)
    watched.listed(1000, "resourceclaims", claim(created=1, allocated=3, reserved=["late"]))
    watched.listed(1000, "pods", pod("late", created=500, bound=995))
    watched.saw(1001, pod("late", created=500, bound=995, prepared=1001, started=1001, phase="Running"))
    assert watched.figures() == {}
    assert watched.view().state is ClaimState.RUNNING
    lately = Watched(since=990)
    lately.listed(1010, "resourceclaims", claim(created=1, allocated=995, reserved=["late"]))
    lately.listed(1010, "pods", pod("late", created=1000, bound=1001, prepared=1002, started=1003, phase="Running"))
    assert lately.figures() == {}
    lately.listed(1020, "pods")
    lately.listed(1020, "resourceclaims")
    assert lately.figures() == {("skipped", "scheduling", "unseen"): 1, ("completed", "ns", "k", "ran"): 1}


def test_what_ended_before_our_time_is_not_counted_again() -> None:
    watched = Watched(since=20)
    watched.listed(100, "resourceclaims", claim(created=1, allocated=15, reserved=["p"]))
    watched.listed(100, "pods", pod(created=1, bound=16, prepared=30, started=31, phase="Running"))
    assert watched.figures() == {
        ("phase", "k", "prepare", "count"): 1, ("phase", "k", "prepare", "sum"): 14.0,
        ("phase", "k", "start", "count"): 1, ("phase", "k", "start", "sum"): 1.0,
        ("ready", "k", "count"): 1, ("ready", "k", "sum"): 30.0,
    }


def test_an_allocation_time_that_was_filled_in_later_is_not_believed() -> None:
    watched = Watched()
    watched.listed(100, "resourceclaims", claim(created=1, allocated=90, reserved=["p"]))
    watched.listed(100, "pods", pod(created=1, bound=5, prepared=6, started=7, phase="Running"))
    assert watched.seconds() == {"prepare": 1.0, "start": 1.0, "k": 6.0}
    seen = Watched()
    seen.saw(1, claim(created=1))
    seen.saw(1, pod(created=1))
    seen.saw(3.5, claim(created=1, device="gpu-0", reserved=["p"]))  # an older scheduler writes no time
    seen.saw(5.0, pod(created=1, bound=5))
    seen.saw(90, claim(created=1, allocated=90, device="gpu-0", reserved=["p", "q"]))
    assert seen.seconds() == {"scheduling": 2.5, "binding": 1.5}
    seen.saw(95, claim(created=1), gone=True)
    assert "never_ran" not in str(seen.figures())  # p has not ended as far as is known: judged later
    seen.tick(120)
    assert seen.figures()["completed", "ns", "k", "unknown"] == 1


def test_clock_skew_of_a_kubelet_leaves_the_arrivals() -> None:
    watched = Watched()
    watched.saw(1, claim(created=1))
    watched.saw(1, pod(created=1))
    watched.saw(2, claim(created=1, allocated=2, reserved=["p"]))
    watched.saw(3, pod(created=1, bound=3))
    watched.saw(8, pod(created=1, bound=3, prepared=-592, started=-591, phase="Running"))  # ten minutes behind
    assert watched.seconds() == {"scheduling": 1.0, "binding": 1.0, "prepare": 5.0, "start": 1.0, "k": 7.0}
    listed = Watched()
    listed.listed(100, "resourceclaims", claim(created=1, allocated=50, reserved=["p"]))
    listed.listed(100, "pods", pod(created=1, bound=51, prepared=40, started=41, phase="Running"))
    assert listed.figures()["skipped", "prepare", "clock"] == 1


def test_a_restarted_container_no_longer_tells_its_first_start() -> None:
    watched = Watched()
    watched.listed(100, "resourceclaims", claim(created=1, allocated=2, reserved=["p"]))
    watched.listed(100, "pods", pod(created=1, bound=2, prepared=3, phase="Running", statuses=[
        container({"running": {"startedAt": stamp(90)}}, restarts=3)
    ]))
    assert {key[1:3]: value for key, value in watched.figures().items() if key[-1] == "sum"} == {
        ("k", "scheduling"): 1.0, ("k", "binding"): 0.0,
    }
    watched.saw(101, pod(created=1, phase="Running"), gone=True)
    watched.saw(101, claim(created=1))
    assert watched.figures()["completed", "ns", "k", "ran"] == 1


def test_claims_watch_far_ahead_of_the_pods_watch() -> None:
    watched = Watched()
    watched.saw(1, claim(created=1))
    watched.saw(2, claim(created=1, allocated=2, reserved=["p"]))
    watched.saw(30, claim(created=1))
    watched.saw(31, claim(created=1), gone=True)
    assert watched.figures() == {}
    watched.saw(32, pod(created=1, bound=2, prepared=2, started=3, phase="Running"))
    watched.saw(32, pod(created=1, bound=2, prepared=2, phase="Running"), gone=True)
    assert watched.figures() == {
        ("phase", "k", "scheduling", "count"): 1, ("phase", "k", "scheduling", "sum"): 1.0,
        ("phase", "k", "binding", "count"): 1, ("phase", "k", "binding", "sum"): 0.0,
        ("phase", "k", "prepare", "count"): 1, ("phase", "k", "prepare", "sum"): 0.0,
        ("phase", "k", "start", "count"): 1, ("phase", "k", "start", "sum"): 1.0,
        ("ready", "k", "count"): 1, ("ready", "k", "sum"): 2.0,
        ("lifetime", "k", "ran", "count"): 1, ("lifetime", "k", "ran", "sum"): 30.0,
        ("completed", "ns", "k", "ran"): 1,
    }


@pytest.mark.parametrize(
    ("last_words", "outcome"),
    [
        (pod(created=1, bound=2, phase="Failed"), "never_ran"),
        (pod(created=1, bound=2, prepared=2, started=3, phase="Running"), "ran"),
        (pod(created=1, bound=2, prepared=2, phase="Failed", statuses=[
            container({"terminated": {"reason": "StartError", "startedAt": "1970-01-01T00:00:00Z"}})
        ]), "never_ran"),
        (pod(created=1, bound=2, prepared=2, started=3, conditions=[
            condition("DisruptionTarget", 4, reason="DeletionByDeviceTaintManager")
        ]), "evicted"),
        (pod(created=1, bound=2, prepared=2, started=3, conditions=[
            condition("DisruptionTarget", 4, reason="PreemptionByScheduler")
        ]), "ran"),
    ],
)
def test_outcomes(last_words: Pod, outcome: str) -> None:
    watched = Watched()
    watched.saw(1, claim(created=1))
    watched.saw(1, pod(created=1))
    watched.saw(2, claim(created=1, allocated=2, reserved=["p"]))
    watched.saw(9, last_words, gone=True)
    watched.saw(9, claim(created=1))
    figures = watched.figures()
    assert {key: value for key, value in figures.items() if key[0] == "completed"} == {
        ("completed", "ns", "k", outcome): 1
    }
    assert figures.get(("evictions", "ns", "k")) == (1 if outcome == "evicted" else None)


def test_never_allocated_is_said_only_of_claims_seen_from_the_start() -> None:
    watched = Watched()
    watched.listed(5, "resourceclaims", claim("old", created=1))
    watched.saw(6, claim("new", created=6))
    watched.saw(16, claim("old", created=1), gone=True)
    watched.saw(16, claim("new", created=6), gone=True)
    assert watched.figures() == {
        ("completed", "ns", "k", "unknown"): 1, ("completed", "ns", "k", "never_allocated"): 1,
        ("lifetime", "k", "unknown", "count"): 1, ("lifetime", "k", "unknown", "sum"): 15.0,
        ("lifetime", "k", "never_allocated", "count"): 1, ("lifetime", "k", "never_allocated", "sum"): 10.0,
    }


def test_a_deletion_that_a_list_tells_has_an_outcome_and_no_lifetime() -> None:
    watched = Watched()
    watched.saw(1, claim(created=1))
    watched.saw(1, pod(created=1))
    watched.saw(2, claim(created=1, allocated=2, reserved=["p"]))
    watched.saw(3, pod(created=1, bound=2, prepared=2, started=3, phase="Running"))
    watched.listed(50, "pods")
    watched.listed(50, "resourceclaims")
    assert watched.figures()["completed", "ns", "k", "ran"] == 1
    assert not [key for key in watched.figures() if key[0] == "lifetime"]


def test_released_and_allocated_again_behind_a_gap() -> None:
    watched = Watched()
    watched.saw(1, claim(created=1))
    watched.saw(1, pod("a", created=1))
    watched.saw(2, claim(created=1, allocated=2, reserved=["a"]))
    watched.saw(3, pod("a", created=1, bound=2, prepared=2, started=3, phase="Running"))
    watched.listed(60, "resourceclaims", claim(created=1, allocated=50, reserved=["b"]))
    watched.listed(60, "pods", pod("b", created=40, bound=51, prepared=52, started=53, phase="Running"))
    assert watched.figures()["completed", "ns", "k", "ran"] == 1
    assert watched.figures()["phase", "k", "scheduling", "count"] == 2
    assert watched.seconds() == {"scheduling": 11.0, "binding": 2.0, "prepare": 1.0, "start": 2.0, "k": 15.0}


def _given_up(watched: Watched) -> None:
    """Allocated at 2, and given up: a device could not be bound."""
    watched.saw(0, claim(created=0))
    watched.saw(0.1, pod(created=0))
    watched.saw(2, claim(created=0, allocated=2, device="g0", reserved=["p"]))


def _runs(watched: Watched, since: float) -> None:
    watched.saw(since, pod(created=0, bound=since))
    watched.saw(since + 1, pod(created=0, bound=since, prepared=since + 1))
    watched.saw(since + 2, pod(created=0, bound=since, prepared=since + 1, started=since + 2, phase="Running"))


def _one_life(scheduling: int, seconds: float, ready: float) -> dict[tuple[str, ...], Any]:
    """The figures of one pod that ran, a second a phase, with so much time in so many searches before."""
    phases: dict[tuple[str, ...], Any] = {}
    for phase in ("binding", "prepare", "start"):
        phases |= {("phase", "k", phase, "count"): 1, ("phase", "k", phase, "sum"): 1.0}
    return phases | {
        ("phase", "k", "scheduling", "count"): scheduling, ("phase", "k", "scheduling", "sum"): pytest.approx(seconds),
        ("ready", "k", "count"): 1, ("ready", "k", "sum"): pytest.approx(ready),
    }


@pytest.mark.parametrize("again", [4, 40])
def test_an_allocation_that_was_given_up_leaves_only_its_scheduling(again: int) -> None:
    watched = Watched()
    _given_up(watched)
    watched.saw(3, claim(created=0))
    watched.tick(again)
    watched.saw(again, claim(created=0, allocated=again, device="g1", reserved=["p"]))
    _runs(watched, again + 1)
    watched.tick(again + 60)
    # 1.9 s to the first, and from its end at 3 to the second; what the first kept from 2 to 3 is in ready alone.
    assert watched.figures() == _one_life(2, 1.9 + again - 3, again + 2.9) | {
        ("completed", "ns", "k", "never_ran"): 1,
    }
    watched.saw(again + 70, pod(created=0, phase="Succeeded"), gone=True)
    watched.saw(again + 70, claim(created=0))
    assert watched.figures() == _one_life(2, 1.9 + again - 3, again + 2.9) | {
        ("completed", "ns", "k", "never_ran"): 1, ("completed", "ns", "k", "ran"): 1,
    }


@pytest.mark.parametrize(("device", "allocated"), [("g0", 5), ("g1", 5), ("g1", None)])
def test_given_up_and_allocated_again_behind_a_gap(device: str, allocated: float | None) -> None:
    watched = Watched()
    _given_up(watched)
    watched.listed(5, "resourceclaims", claim(created=0, allocated=allocated, device=device, reserved=["p"]))
    _runs(watched, 6)
    figures = watched.figures()
    assert {key[-2]: value for key, value in figures.items() if key[-1] == "count"} == {
        "scheduling": 1,  # since when the second was sought nobody saw
        "prepare": 1, "start": 1, "k": 1,
    } | ({"binding": 1} if allocated is not None else {})
    assert figures["ready", "k", "sum"] == 7.9
    assert figures.get(("skipped", "scheduling", "unseen")) == (1 if allocated is not None else None)
    assert figures["completed", "ns", "k", "never_ran"] == 1


def test_the_pods_watch_ahead_of_a_second_allocation_counts_once() -> None:
    watched = Watched()
    _given_up(watched)
    _runs(watched, 5)  # for the second allocation, of which the claims' watch tells late
    watched.saw(8, claim(created=0))
    watched.saw(8.1, claim(created=0, allocated=4, device="g1", reserved=["p"]))
    watched.tick(60)
    counts = {key: value for key, value in watched.figures().items() if key[-1] != "sum"}
    assert counts == {
        ("phase", "k", "scheduling", "count"): 2,
        ("phase", "k", "binding", "count"): 1,
        ("phase", "k", "prepare", "count"): 1,
        ("phase", "k", "start", "count"): 1,
        ("ready", "k", "count"): 1,
        ("completed", "ns", "k", "never_ran"): 1,
    }
    watched.saw(70, pod(created=0, phase="Succeeded", started=7), gone=True)
    watched.saw(70, claim(created=0))
    assert watched.figures()["completed", "ns", "k", "ran"] == 1


@given(st.lists(st.booleans(), max_size=11))
def test_two_allocations_for_one_pod_count_once_in_any_order_of_the_watches(choices: list[bool]) -> None:
    claims = [
        (0, claim(created=0)), (2, claim(created=0, allocated=2, device="g0", reserved=["p"])), (3, claim(created=0)),
        (4, claim(created=0, allocated=4, device="g1", reserved=["p"])), (9, claim(created=0)),
    ]
    pods = [
        (0, pod(created=0)), (5, pod(created=0, bound=5)), (6, pod(created=0, bound=5, prepared=6)),
        (7, pod(created=0, bound=5, prepared=6, started=7)), (9, pod(created=0, bound=5, prepared=6, started=7)),
    ]
    merged: list[tuple[int, Any]] = []
    for claims_first in choices:
        queue = claims if claims_first else pods
        if queue:
            merged.append(queue.pop(0))
    watched, now = Watched(), 0
    for at, obj in [*merged, *claims, *pods]:
        now = max(now, at)
        watched.saw(now, obj, gone=at == 9 and isinstance(obj, Pod))
    watched.tick(60)
    figures = watched.figures()
    assert {key[-2]: value for key, value in figures.items() if key[-1] == "count"} == {
        "scheduling": 2, "binding": 1, "prepare": 1, "start": 1, "k": 1,
    }
    assert sum(value for key, value in figures.items() if key[0] == "completed") == 2


def test_what_a_pod_does_after_the_end_of_an_allocation_is_not_its_doing() -> None:
    watched = Watched()
    _given_up(watched)
    watched.saw(3, claim(created=0))
    _runs(watched, 5)  # it may run with another claim, or by another hand
    watched.saw(9, pod(created=0, bound=5, prepared=6, started=7, conditions=[
        condition("DisruptionTarget", 9, reason="DeletionByDeviceTaintManager")
    ]), gone=True)
    assert watched.figures() == {
        ("phase", "k", "scheduling", "count"): 1, ("phase", "k", "scheduling", "sum"): 1.9,
        ("completed", "ns", "k", "never_ran"): 1,
    }


def _evicted(name: str, at: float) -> Pod:
    return pod(name, created=0, bound=1, prepared=2, started=2, phase="Running", conditions=[
        condition("DisruptionTarget", at, reason="DeletionByDeviceTaintManager")
    ])


@pytest.mark.parametrize(
    ("evicted", "outcome"), [("x", "ran"), ("y", "ran"), ("xy", "evicted"), ("", "ran")],
)
def test_a_shared_claim_is_evicted_when_all_its_users_were(evicted: str, outcome: str) -> None:
    watched = Watched()
    watched.saw(0, claim(created=0))
    for name in "xy":
        watched.saw(0, pod(name, created=0))
    watched.saw(1, claim(created=0, allocated=1, reserved=["x", "y"]))
    for name in "xy":
        watched.saw(2, pod(name, created=0, bound=1, prepared=2, started=2, phase="Running"))
    for name in evicted:
        watched.saw(9, _evicted(name, 9))
    for name in "xy":
        watched.saw(20, pod(name, created=0, phase="Succeeded"), gone=True)
    watched.saw(21, claim(created=0))
    figures = watched.figures()
    assert {key[-1]: value for key, value in figures.items() if key[0] == "completed"} == {outcome: 1}
    assert figures.get(("evictions", "ns", "k"), 0) == len(evicted)


def test_a_pod_with_two_claims_of_a_class_is_evicted_once() -> None:
    watched = Watched()
    other = [{"name": "gpu", "exactly": {"deviceClassName": "other"}}]
    asked = {"a": None, "b": None, "c": other}
    for name, requests in asked.items():
        watched.saw(0, claim(name, created=0, requests=requests))
    watched.saw(0, pod(claims=asked, created=0))
    for name, requests in asked.items():
        watched.saw(1, claim(name, created=0, allocated=1, reserved=["p"], requests=requests))
    watched.saw(9, pod(claims=asked, created=0, bound=1, prepared=2, started=2, phase="Running", conditions=[
        condition("DisruptionTarget", 9, reason="DeletionByDeviceTaintManager")
    ]))
    evictions = {key: value for key, value in watched.figures().items() if key[0] == "evictions"}
    assert evictions == {("evictions", "ns", "k"): 1, ("evictions", "ns", "other"): 1}


def test_counters_and_histograms_of_a_known_class_begin_at_zero() -> None:
    watched = Watched()
    watched.saw(1, claim(created=1))
    outcomes = ("ran", "never_ran", "evicted", "never_allocated", "unknown")
    assert watched.figures() == {}
    assert zeros_of(watched.lifecycle) == {
        ("phase", "k", "scheduling"), ("phase", "k", "binding"), ("phase", "k", "prepare"), ("phase", "k", "start"),
        ("ready", "k"), ("evictions", "ns", "k"),
        *(("completed", "ns", "k", outcome) for outcome in outcomes),
        *(("lifetime", "k", outcome) for outcome in outcomes),
    }


def test_zeros_are_bounded() -> None:
    figures = Figures()
    for number in range(2_000):
        figures.seed(f"n{number}", f"k{number}", waits=True)
    assert (MOST_SEEDED_PAIRS, MOST_SEEDED_CLASSES) == (1_000, 100)
    assert len(figures.samples()) == 1_000 * (5 + 1) + 100 * (4 + 1 + 5)
    figures.completed("n1999", "k1999", "ran")  # and what is counted is shown all the same
    assert len(figures.samples()) == 1_000 * (5 + 1) + 100 * (4 + 1 + 5) + 1


def test_a_released_claim_that_is_wanted_again_is_pending() -> None:
    watched = Watched()
    watched.saw(1, claim(created=1))
    watched.saw(2, claim(created=1, allocated=2))
    assert watched.view().state is ClaimState.ALLOCATED
    watched.saw(3, claim(created=1))
    assert (watched.view().state, watched.view().referenced) == (ClaimState.RELEASED, False)
    watched.saw(4, pod(created=4))
    assert (watched.view().state, watched.view().referenced) == (ClaimState.PENDING, True)


def test_leaked_after_a_minute_without_reservation() -> None:
    watched = Watched()
    watched.saw(1, claim(created=1, allocated=1, reserved=["p"]))
    watched.saw(500, claim(created=1, allocated=1))
    watched.tick(560)
    assert not watched.view().leaked
    watched.tick(561)
    assert watched.view().leaked
    watched.saw(600, claim(created=1, allocated=1, reserved=["q"]))
    assert not watched.view().leaked
    again = Watched(since=700)
    again.listed(700, "resourceclaims", claim(created=1, allocated=1))
    again.tick(760)
    assert not again.view().leaked  # it may have been reserved until just now: no object tells
    again.tick(761)
    assert again.view().leaked


def test_views_are_replaced_only_when_they_change() -> None:
    watched = Watched()
    watched.saw(1, claim(created=1))
    watched.saw(1, pod(created=1))
    first = watched.view()
    watched.saw(2, pod(created=1, conditions=[condition("Other", 1)]))
    assert watched.view() is first
    watched.saw(3, claim(created=1, allocated=3, reserved=["p"]))
    assert watched.view() is not first


def test_slices_tell_uuid_and_node_and_are_remembered() -> None:
    watched = Watched()
    watched.saw(1, claim(created=1, allocated=1, device="gpu-3", reserved=["p"]))
    assert [(device.uuid, device.node) for device in watched.view().devices] == [("", "")]
    watched.saw(2, published("gpu-3"))
    assert [(device.uuid, device.node) for device in watched.view().devices] == [("GPU-gpu-3", "n")]
    watched.saw(3, published("gpu-3"), gone=True)  # the kubelet restarts
    watched.saw(4, claim(created=1, allocated=1, device="gpu-3", reserved=["p", "q"]))
    assert [(device.uuid, device.node) for device in watched.view().devices] == [("GPU-gpu-3", "n")]


def test_health_by_both_kinds_of_ids_and_unknown_overrides_nothing() -> None:
    results = [
        {"request": "gpu", "driver": "d", "pool": "n", "device": device} for device in ("gpu-1", "gpu-11", "gpu-2")
    ]
    held = claim(created=1, status={
        "allocation": {"devices": {"results": results}},
        "reservedFor": [{"resource": "pods", "name": "p", "uid": "p-uid"}],
    })

    def told(name: str, *healths: tuple[str, str]) -> dict[str, Any]:
        resources = [{"resourceID": each, "health": health} for each, health in healths]
        return container({}, name=name, allocatedResourcesStatus=[
            {"name": "claim:my-c/gpu", "resources": resources},
            {"name": "claim:other", "resources": [{"resourceID": "d/n/gpu-2", "health": "Unhealthy"}]},
        ])

    watched = Watched()
    watched.saw(1, held)
    watched.saw(1, pod(created=1, bound=1, statuses=[
        told("main", ("k8s.d/claim=0b1c-gpu-11", "Unhealthy"), ("d/n/gpu-1", "Healthy")),
        told("side", ("k8s.d/claim=0b1c-gpu-11", "Unknown"), ("d/n/gpu-1", "Unknown"), ("d/n/gpu-2", "Unknown")),
    ]))
    assert {device.key.device: device.health for device in watched.view().devices} == {
        "gpu-1": "Healthy", "gpu-11": "Unhealthy", "gpu-2": "Unknown",
    }


@pytest.mark.parametrize(
    ("now", "doing"),
    [
        (pod(), Doing.PENDING_OTHER),
        (pod(bound=2), Doing.PREPARING),
        (pod(bound=2, prepared=3, waiting="ContainerCreating"), Doing.PULLING),
        (pod(bound=2, prepared=3, waiting="ImagePullBackOff"), Doing.IMAGE_FAILED),
        (pod(bound=2, prepared=3, waiting="CrashLoopBackOff"), Doing.CRASH_LOOPING),
        (pod(bound=2, prepared=3, waiting="CreateContainerConfigError"), Doing.CREATE_FAILED),
        (pod(bound=2, prepared=3, waiting="PodInitializing"), Doing.INITIALIZING),
        (pod(bound=2, prepared=3, conditions=[condition("Initialized", 2, "False")]), Doing.INITIALIZING),
        (pod(bound=2, prepared=3, waiting="SomethingNew"), Doing.UNKNOWN),
        (pod(bound=2, prepared=3, phase="Succeeded"), Doing.FINISHED),
        (pod(bound=2, prepared=3, statuses=[container({"terminated": {"startedAt": stamp(3)}})]), Doing.FINISHED),
        (pod(bound=2, prepared=3, metadata={"deletionTimestamp": stamp(9)}), Doing.TERMINATING),
        (pod(bound=2, prepared=3, started=3), None),
    ],
)
def test_doing(now: Pod, doing: Doing | None) -> None:
    watched = Watched()
    watched.saw(1, claim(allocated=2, reserved=["p"]))
    watched.saw(1, now)
    assert watched.view().doing is doing


def test_a_failed_prepare_is_believed_while_it_is_news() -> None:
    def event(at: float) -> Event:
        about = ObjectReference(kind="Pod", namespace="ns", name="p", uid="p-uid")
        return Event(metadata=PodMeta(name="e", namespace="ns"), reason="FailedPrepareDynamicResources",
                     involved_object=about, last_timestamp=stamp(at))

    watched = Watched()
    watched.saw(1, claim(allocated=2, reserved=["p"]))
    watched.saw(2, pod(bound=2))

    def tell(at: float) -> Doing | None:
        kind = "events/FailedPrepareDynamicResources"
        watched.lifecycle.take(watched.cluster.apply(kind, event(at), True), watched.cluster,
                               arrival_ns=round(at * 1e9), wall=BASE + at)
        return watched.view().doing

    assert tell(3) is Doing.PREPARE_FAILED
    assert watched.view().doing_since_wall == BASE + 2
    watched.saw(50, pod(bound=2, conditions=[condition("PodReadyToStartContainers", 50, "False")]))
    assert watched.view().doing is Doing.PREPARING  # the event is older than the loss of the sandbox
    assert tell(51) is Doing.PREPARE_FAILED


def test_observers_count_in_no_phase() -> None:
    requests = [{"name": "all", "exactly": {"deviceClassName": "k", "allocationMode": "All", "adminAccess": True}}]
    watched = Watched()
    watched.saw(1, claim(created=1, requests=requests))
    watched.saw(1, pod(created=1))
    watched.saw(2, claim(created=1, allocated=2, reserved=["p"], requests=requests))
    watched.saw(3, pod(created=1, bound=2, prepared=2, started=3, phase="Running"))
    assert (watched.figures(), watched.view().requested_devices) == ({}, None)


def test_classes_and_counts_of_several_requests() -> None:
    requests: list[dict[str, Any]] = [
        {"name": "a", "exactly": {"deviceClassName": "big", "count": 3}},
        {"name": "b", "firstAvailable": [
            {"name": "x", "deviceClassName": "rare"}, {"name": "y", "deviceClassName": "big", "count": 2},
        ]},
    ]
    watched = Watched()
    watched.saw(1, claim(created=1, requests=requests))
    assert (watched.view().deviceclass, watched.view().requested_devices) == ("big+rare", 4)
    results = [{"request": "b/y", "driver": "d", "pool": "n", "device": f"gpu-{each}"} for each in range(2)]
    watched.saw(2, claim(created=1, requests=requests, status={"allocation": {"devices": {"results": results}}}))
    view = watched.view()
    assert (view.deviceclass, view.requested_devices, view.alternative) == ("big", 5, "b/y")


def test_objects_without_status_and_pods_without_claims() -> None:
    watched = Watched()
    watched.saw(1, claim(status={}, metadata={"creationTimestamp": None}))
    watched.saw(1, pod(claims=(), metadata={"creationTimestamp": "yesterday"}))
    assert (watched.view().state, watched.view().created_wall) == (ClaimState.PENDING, None)
    watched.saw(2, claim(), gone=True)
    assert watched.figures()["completed", "ns", "k", "never_allocated"] == 1


def test_a_claim_reserved_for_a_pod_group_is_used_by_its_pods() -> None:
    held = claim(created=1, status={
        "allocation": {"devices": {"results": [{"request": "gpu", "driver": "d", "pool": "n", "device": "gpu-0"}]}},
        "reservedFor": [{"apiGroup": "scheduling.k8s.io", "resource": "podgroups", "name": "g", "uid": "g-uid"}],
    })
    watched = Watched()
    watched.saw(1, claim(created=1))
    watched.saw(1, pod(created=1))
    watched.saw(2, held)
    watched.saw(3, pod(created=1, bound=2, prepared=2, started=3, phase="Running"))
    assert (watched.view().state, watched.view().pods) == (ClaimState.RUNNING, ())
    watched.saw(4, pod(created=1, bound=2, prepared=2, started=3, phase="Running"), gone=True)
    watched.saw(4, claim(created=1))
    assert watched.figures()["completed", "ns", "k", "ran"] == 1


def test_a_kubelet_that_does_not_tell_of_sandboxes() -> None:
    watched = Watched()
    watched.saw(1, claim(created=1))
    watched.saw(1, pod(created=1))
    watched.saw(2, claim(created=1, allocated=2, reserved=["p"]))
    watched.saw(3, pod(created=1, bound=3))
    watched.saw(5, pod(created=1, bound=3, started=5, phase="Running"))
    watched.saw(9, pod(created=1, bound=3, started=5, phase="Running"), gone=True)
    watched.saw(9, claim(created=1))
    assert watched.seconds() == {"scheduling": 1.0, "binding": 1.0, "k": 4.0}
    assert watched.figures()["skipped", "start", "unseen"] == 1


def test_pods_that_may_not_be_read_leave_the_outcome_unknown() -> None:
    watched = Watched()
    watched.saw(1, claim(created=1))
    watched.saw(2, claim(created=1, allocated=2, reserved=["p"]))
    watched.saw(50, claim(created=1), gone=True)
    assert watched.figures() == {}
    watched.tick(61)
    assert watched.figures() == {
        ("completed", "ns", "k", "unknown"): 1,
        ("lifetime", "k", "unknown", "count"): 1, ("lifetime", "k", "unknown", "sum"): 49.0,
    }


def test_a_claim_that_no_container_names_is_used_by_the_whole_pod() -> None:
    spec = {"containers": [{"name": "main"}]}
    watched = Watched()
    watched.saw(1, claim(created=1, allocated=1, reserved=["p"]))
    watched.saw(2, pod(created=1, bound=1, prepared=1, started=2, spec=spec))
    assert watched.view().state is ClaimState.RUNNING


def test_a_container_that_does_not_use_the_claim_does_not_make_it_run() -> None:
    spec = {"containers": [{"name": "main", "resources": {"claims": [{"name": "my-c"}]}}, {"name": "log"}]}
    statuses = [
        container({"waiting": {"reason": "ImagePullBackOff"}}),
        container({"running": {"startedAt": stamp(3)}}, name="log"),
    ]
    watched = Watched()
    watched.saw(1, claim(created=1, allocated=1, reserved=["p"]))
    watched.saw(2, pod(created=1, bound=1, prepared=1, statuses=statuses, spec=spec))
    assert (watched.view().state, watched.view().doing) == (ClaimState.PREPARED, Doing.IMAGE_FAILED)


def test_a_pod_that_comes_back_is_not_forgotten() -> None:
    watched = Watched()
    watched.saw(1, claim(created=1, allocated=1, reserved=["p"]))
    watched.saw(2, pod(created=1, bound=1))
    watched.saw(3, pod(created=1, bound=1), gone=True)
    assert (watched.view().doing, watched.view().referenced) == (Doing.FINISHED, False)
    watched.saw(4, pod(created=1, bound=1))
    watched.tick(60)
    assert (watched.view().doing, watched.view().referenced) == (Doing.PREPARING, True)
