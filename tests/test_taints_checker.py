"""The checker can fail: outcomes of a broken fencing, made by hand, are each found by the function that is for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from claimscope.claims.model import DeviceKey
from claimscope.health.model import Severity
from claimscope.taints import fences
from claimscope.taints.model import Fence
from claimscope.taints.policy import Policy
from taints_checker import (
    Moment,
    Said,
    blocked_against_orders,
    lowered,
    over_budget,
    over_rate,
    without_device,
    without_evidence,
)


def at(name: str, node: str = "n1") -> DeviceKey:
    return DeviceKey("gpu.nvidia.com", node, name)


def fence(uuid: str = "GPU-1-3", device: str = "gpu-3", effect: str = "NoSchedule", *, node: str = "n1") -> Fence:
    return Fence(
        name=f"of-{uuid}", device=at(device, node), key="claimscope.io/unhealthy", value="xid_fatal", effect=effect,
        uuid=uuid, node=node, severity=Severity.UNHEALTHY, annotations={fences.EVIDENCE: '{"xid_fatal":{"xid":"79"}}'},
    )


def said(uuid: str = "GPU-1-3", severity: Severity = Severity.UNHEALTHY, *, node: str = "n1") -> Said:
    return Said(node=node, uuid=uuid, rule="xid_fatal", severity=severity)


FLEET = {at(f"gpu-{gpu}", f"n{node}"): (f"GPU-{node}-{gpu}", f"n{node}") for node in (1, 2) for gpu in range(8)}
GOOD = Moment(
    fences={"of-GPU-1-3": fence()}, said=(said(),), nodes=frozenset({"n1", "n2"}), published=FLEET
)
NOTHING = replace(GOOD, fences={})


def with_fences(*standing: Fence) -> Moment:
    return replace(GOOD, fences={each.name: each for each in standing})


def test_a_good_outcome_is_found_good() -> None:
    assert without_evidence(GOOD) == without_device(GOOD) == []
    assert over_budget(NOTHING, GOOD, Policy()) == []
    assert lowered(GOOD, GOOD) == []
    assert blocked_against_orders(GOOD, GOOD, "paused") == []
    assert over_rate(["GPU-1-3"], 16, Policy()) == []


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (replace(GOOD, said=()), "of-GPU-1-3: nothing of severity unhealthy is found against GPU-1-3"),
        (replace(GOOD, said=(said("GPU-1-4"),)), "of-GPU-1-3: nothing of severity unhealthy is found against GPU-1-3"),
        (
            replace(GOOD, said=(said(severity=Severity.DEGRADED),)),
            "of-GPU-1-3: nothing of severity unhealthy is found against GPU-1-3",
        ),
        (
            replace(GOOD, said=(replace(said(), systemic=True),)),
            "of-GPU-1-3: nothing of severity unhealthy is found against GPU-1-3",
        ),
        (replace(GOOD, nodes=frozenset({"n2"})), "of-GPU-1-3: node n1 is gone"),
        (with_fences(replace(fence(), annotations={})), "of-GPU-1-3: says no evidence"),
    ],
)
def test_a_fence_without_evidence_is_found(wrong: Moment, complaint: str) -> None:
    assert without_evidence(wrong) == [complaint]


@pytest.mark.parametrize(
    "excused",
    [
        replace(GOOD, said=(), unjudged=frozenset({"n1"})),
        replace(GOOD, said=(), pinned=frozenset({"GPU-1-3"})),
        with_fences(replace(fence("GPU-1-5"), edited=True)),
    ],
    ids=["an agent that does not tell", "a person's word", "a person's hand"],
)
def test_a_fence_may_rest_on_silence_or_a_person(excused: Moment) -> None:
    assert without_evidence(excused) == []


@pytest.mark.parametrize(
    ("device", "complaint"),
    [
        (at("gpu-4"), "gpu.nvidia.com/n1/gpu-4 is GPU-1-4, not GPU-1-3"),
        (at("gpu-9"), "gpu.nvidia.com/n1/gpu-9 is nothing, not GPU-1-3"),
        (at("gpu-3", "n2"), "gpu.nvidia.com/n2/gpu-3 is GPU-2-3, not GPU-1-3"),
        (DeviceKey("gpu.nvidia.com", "n1", ""), "selects gpu.nvidia.com/n1/ without all three names"),
        (DeviceKey("", "", ""), "selects // without all three names"),
    ],
)
def test_a_selector_of_the_wrong_device_or_of_none_is_found(device: DeviceKey, complaint: str) -> None:
    assert without_device(with_fences(replace(fence(), device=device))) == [f"of-GPU-1-3: {complaint}"]


def test_a_pool_that_is_absent_says_nothing_about_a_selector() -> None:
    assert without_device(with_fences(replace(fence(), device=at("gpu-3", "n7")))) == []


def test_a_fence_beyond_the_budget_is_found() -> None:
    assert over_budget(GOOD, with_fences(fence(), fence("GPU-2-0", "gpu-0", node="n2")), Policy()) == [
        "2 of at most 1 GPUs of the fleet are blocked, 1 of them anew"
    ]
    cordoned = replace(GOOD, cordoned=frozenset({"n2"}))
    assert over_budget(replace(cordoned, fences={}), cordoned, Policy()) == [
        "9 of at most 1 GPUs of the fleet are blocked, 1 of them anew",
        "9 of at most 3 GPUs of the group are blocked, 1 of them anew",
    ]
    assert over_budget(cordoned, cordoned, Policy()) == []  # what stands may stay


def test_a_flood_is_found() -> None:
    assert over_rate([f"GPU-1-{gpu}" for gpu in (0, 1, 2, 3, 3)], 16, Policy()) == [
        "4 GPUs were newly blocked, of at most 3"
    ]


def test_a_fence_in_spite_of_a_pause_is_found() -> None:
    assert blocked_against_orders(NOTHING, GOOD, "paused") == ["GPU-1-3: blocked although paused"]


@pytest.mark.parametrize(
    "after",
    [NOTHING, with_fences(fence(effect="None")), with_fences(replace(fence(), severity=Severity.DEGRADED))],
    ids=["gone", "weaker", "of a milder severity instead"],
)
def test_a_fence_that_a_milder_event_made_weaker_is_found(after: Moment) -> None:
    milder = (*GOOD.said, said(severity=Severity.DEGRADED))
    assert lowered(GOOD, replace(after, said=milder)) == [
        "of-GPU-1-3: NoSchedule on GPU-1-3 became weaker, and unhealthy is still said"
    ]
    assert lowered(GOOD, replace(after, said=())) == []
