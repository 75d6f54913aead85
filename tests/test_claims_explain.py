"""What `explain` says of claims, as people read it."""

from __future__ import annotations

import pytest

from claim_objects import (
    CREATED_WALL,
    GPU,
    UNSCHEDULABLE,
    allocated,
    claim,
    cluster_of,
    decoded,
    device,
    device_class,
    pod,
    pod_of_resources,
    pool,
    request,
    rule,
)
from claimscope.claims.cluster import Cluster
from claimscope.claims.explain import duration_words, explain, words
from claimscope.claims.model import PendingReason
from claimscope.claims.pending import Waiting
from claimscope.claims.selectors import Selectors

NOW = CREATED_WALL + 3 * 3600 + 60


@pytest.fixture(scope="module")
def selectors() -> Selectors:
    return Selectors.in_process()


def cluster() -> Cluster:
    running = pod("trainer", "busy", node="n1")
    running["status"]["phase"] = "Running"
    state = {"running": {"startedAt": "2026-11-21T11:00:05Z"}}
    running["status"]["containerStatuses"] = [{"name": "main", "state": state}]
    return cluster_of(
        deviceclasses=[device_class()],
        resourceslices=[pool("n1", device("g0", attributes={"uuid": "GPU-0"}), device("g1"))],
        resourceclaims=[
            allocated("busy", ("n1", "g0"), user="trainer"), claim("waiting", request(count=2)), claim("idle"),
            allocated("forgotten", ("n1", "g9")),
        ],
        pods=[running, pod("stuck", "waiting", said=UNSCHEDULABLE), pod("lost", "wating")],
        devicetaintrules=[rule("drain", "NoExecute", driver=GPU, pool="n1", device="g0")],
        resourcequotas=[{"metadata": {"name": "q", "namespace": "team", "uid": "q"}, "status": {
            "hard": {"cpu": "4", f"{GPU}.deviceclass.resource.k8s.io/devices": "4"},
            "used": {f"{GPU}.deviceclass.resource.k8s.io/devices": "3"}}}],
    )


def said(name: str, selectors: Selectors) -> str:
    return words(explain(cluster(), selectors, {}, "team", name, NOW))


def test_a_claim_that_waits(selectors: Selectors) -> None:
    assert said("waiting", selectors) == """\
claim team/waiting is pending for 3 h 1 min: devices in use
  needs 2 devices of gpu.nvidia.com on one node: 2 exist, 2 match, 1 is in use, 1 is free

evidence:
  closest: n1 (1 free of 2)
  device gpu.nvidia.com/n1/g0 is held by claim team/busy (pod trainer)
  scheduler on pod stuck: 0/2 nodes are available: 2 cannot allocate all claims.

pods:
  stuck  no node  is not on a node yet

class:
  gpu.nvidia.com

workload:
  Pod stuck

quota:
  q: 3 of 4 gpu.nvidia.com.deviceclass.resource.k8s.io/devices

what to do:
  wait for claims to be released, delete some that are idle, or add nodes
"""


def test_a_claim_in_use(selectors: Selectors) -> None:
    assert said("busy", selectors) == """\
claim team/busy is in use by running containers

devices:
  gpu.nvidia.com/n1/g0  gpu  n1  GPU-0  maintenance=now:NoExecute (DeviceTaintRule drain)

pods:
  trainer  n1  runs

class:
  gpu.nvidia.com

workload:
  Pod trainer

quota:
  q: 3 of 4 gpu.nvidia.com.deviceclass.resource.k8s.io/devices
"""


@pytest.mark.parametrize(
    ("name", "verdict", "cure"),
    [
        ("idle", "claim team/idle is pending for 3 h 1 min: no pod wants it, so nothing is allocated; "
                 "this is not a fault", ""),
        ("forgotten", "claim team/forgotten has devices, and no pod has reserved it",
         "nobody uses these devices: delete the claim, or find out who forgot it"),
        ("wating", "claim team/wating does not exist",
         "create ResourceClaim wating in namespace team, or correct the pod"),
        ("stuck", "claim team/stuck does not exist; a pod of this name does",
         "wait for claims to be released, delete some that are idle, or add nodes"),
        ("nothing-alike-at-all", "claim team/nothing-alike-at-all does not exist",
         "see the claims of the namespace: kubectl get resourceclaims"),
    ],
)
def test_verdicts(name: str, verdict: str, cure: str, selectors: Selectors) -> None:
    found = explain(cluster(), selectors, {}, "team", name, NOW)
    assert (found.verdict, found.cure) == (verdict, cure)


def test_a_name_that_is_misspelt(selectors: Selectors) -> None:
    found = explain(cluster(), selectors, {}, "team", "wating", NOW)
    assert (found.similar, [each.name for each in found.pods]) == (("team/waiting",), ["lost"])


def test_a_name_in_the_wrong_namespace(selectors: Selectors) -> None:
    assert explain(cluster(), selectors, {}, "other", "busy", NOW).similar == ("team/busy",)


def test_a_pod_that_asks_for_an_extended_resource(selectors: Selectors) -> None:
    known = cluster()
    asks = pod_of_resources("asks", {f"deviceclass.resource.kubernetes.io/{GPU}": "2"})
    known.apply("pods", decoded("pods", asks), True)
    found = explain(known, selectors, {}, "team", "asks", NOW)
    assert (found.verdict, found.reason, found.evidence[0], [each.name for each in found.pods]) == (
        "claim team/asks does not exist; a pod of this name does",
        PendingReason.DEVICES_IN_USE,
        f"extended resource deviceclass.resource.kubernetes.io/{GPU}: needs 2 devices of {GPU} on one node: 2 exist, "
        "2 match, 1 is in use, 1 is free",
        ["asks"],
    )


def test_a_search_already_made_answers_the_same(selectors: Selectors) -> None:
    known, waiting = cluster(), Waiting()
    waiting.waits(known, selectors, {}, NOW)
    assert explain(known, selectors, {}, "team", "waiting", NOW, waiting) == (
        explain(known, selectors, {}, "team", "waiting", NOW))


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59.9, "59 s"), (60, "1 min"), (3725, "1 h 2 min"), (90000, "1 d 1 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_words(seconds) == text
