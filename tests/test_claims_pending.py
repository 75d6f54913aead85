"""Every cause of a claim that waits, from the smallest cluster that shows it; and the recorded cluster's own cases."""

from __future__ import annotations

from typing import Any

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
    event,
    pod,
    pool,
    request,
    rule,
    spec,
)
from claimscope.claims.cluster import Cluster
from claimscope.claims.model import DeviceFacts, Diagnosis, PendingReason, Wait
from claimscope.claims.pending import CHECKS, Waiting
from claimscope.claims.selectors import Match, Selectors, Verdict
from recorded_cluster import START, lists, until

LATER = CREATED_WALL + 3600
GPUS = pool("n1", device("g0"), device("g1"))
FULL = [allocated("a", ("n1", "g0"), user="pa"), allocated("b", ("n1", "g1"), user="pb")]
STUCK = pod("p", "w", said=UNSCHEDULABLE)


@pytest.fixture(scope="module")
def selectors() -> Selectors:
    return Selectors.in_process()


def cluster(*claims: dict[str, Any], **more: list[dict[str, Any]]) -> Cluster:
    return cluster_of(**{
        "deviceclasses": [device_class()], "resourceslices": [GPUS], "pods": [STUCK],
        "resourceclaims": [*claims], **more,
    })


def waits(known: Cluster, selectors: Selectors, wall: float = LATER) -> tuple[Wait, ...]:
    return Waiting().waits(known, selectors, {}, wall)


def only(known: Cluster, selectors: Selectors, wall: float = LATER) -> Diagnosis:
    (wait,) = waits(known, selectors, wall)
    return wait.diagnosis


TEMPLATE = {"metadata": {"name": "t", "namespace": "team", "uid": "t"}, "spec": {"spec": spec()}}
BY_TEMPLATE = pod("p", template="t")
CREATION = "PodResourceClaim c0: create ResourceClaim : "

Case = tuple[str, dict[str, Any], str]
CASES: list[Case] = [
    ("claim_missing", {"claims": [], "pods": [pod("p", "w")]},
     "pod p names ResourceClaim w, which does not exist"),
    ("template_missing", {"claims": [], "pods": [BY_TEMPLATE]},
     "pod p names ResourceClaimTemplate t, which does not exist"),
    ("quota", {"claims": [], "pods": [BY_TEMPLATE], "resourceclaimtemplates": [TEMPLATE],
               "events_FailedResourceClaimCreation": [event(
                   "FailedResourceClaimCreation", "p", CREATION + "claims \"x\" is forbidden: exceeded quota: q, "
                   "requested: g=1, used: g=1, limited: g=1")]},
     "ResourceQuota q of namespace team forbids the claim: requested: g=1, used: g=1, limited: g=1"),
    ("admission", {"claims": [], "pods": [BY_TEMPLATE], "resourceclaimtemplates": [TEMPLATE],
                   "events_FailedResourceClaimCreation": [event(
                       "FailedResourceClaimCreation", "p", CREATION + "admission webhook denied the request")]},
     "the claim of template t could not be created: admission webhook denied the request"),
    ("claim_not_created", {"claims": [], "pods": [BY_TEMPLATE], "resourceclaimtemplates": [TEMPLATE]},
     "no claim has been made from template t yet, and the claim controller says nothing"),
    ("claim_deleting", {"claims": [claim("w", deletionTimestamp="2026-11-21T11:01:00Z")]},
     "claim w is being deleted since 2026-11-21T11:01:00Z"),
    ("wrong_owner", {"claims": [claim("w", ownerReferences=[
        {"kind": "Pod", "name": "older", "uid": "u", "controller": True}])],
        "pods": [pod("p", template="t", made="w")]},
     "claim w was not made for pod p: it belongs to Pod older (u)"),
    ("gated", {"claims": [claim("w")], "pods": [pod("p", "w", gates=[{"name": "kueue.x-k8s.io/admission"}])]},
     "pod p is kept back by its scheduling gates: kueue.x-k8s.io/admission"),
    ("class_missing", {"claims": [claim("w", request(deviceClassName="none"))]}, "DeviceClass none does not exist"),
    ("too_many_devices", {"claims": [claim("w", request(count=33))]}, "asks for 33 devices; one claim can hold 32"),
    ("no_driver", {"claims": [claim("w")], "resourceslices": [pool("n1", device("t0"), driver="tpu.google.com")]},
     "driver gpu.nvidia.com, which the selectors ask for, publishes no device"),
    ("no_driver", {"claims": [claim("w")], "resourceslices": []},
     "no driver publishes any device: the cluster has no ResourceSlice"),
    ("pool_incomplete", {"claims": [claim("w")], "resourceslices": [pool("n1", device("g0"), count=2)]},
     "needs 1 device of gpu.nvidia.com on one node: 1 exists, 1 matches; 1 pool cannot be used, not being published "
     "as a whole"),
    ("selector_error", {"claims": [claim("w", request(selector=f"device.attributes['{GPU}'].healthy"))],
                        "pods": [pod("p", "w", reason="SchedulerError", said='running "DynamicResources" filter '
                                     "plugin: claim team/w: selector #0: CEL runtime error: no such key: healthy")]},
     "a CEL selector fails on 2 devices, and the scheduler stops there: no such key: healthy"),
    ("no_matching_device", {"claims": [claim("w", request(selector="device.driver == 'other'"))],
                            "resourceslices": [GPUS, pool("n1", device("x"), driver="other")]},
     "needs 1 device of gpu.nvidia.com on one node: 3 exist, 0 match"),
    ("no_matching_device", {"claims": [claim("w", request(count=3))],
                            "resourceslices": [GPUS, pool("n2", device("g0"))]},
     "needs 3 devices of gpu.nvidia.com on one node: 3 exist, 3 match, 3 are free; no node has more than 2 that match"),
    ("devices_in_use", {"claims": [*FULL, claim("w")]},
     "needs 1 device of gpu.nvidia.com on one node: 2 exist, 2 match, 2 are in use"),
    ("fragmented", {"claims": [allocated("a", ("n1", "g0")), allocated("b", ("n2", "g1")),
                               claim("w", request(count=2))],
                    "resourceslices": [GPUS, pool("n2", device("g0"), device("g1"))]},
     "needs 2 devices of gpu.nvidia.com on one node: 4 exist, 4 match, 2 are in use, 2 are free; "
     "no node has more than 1"),
    ("tainted", {"claims": [allocated("a", ("n1", "g0")), claim("w")],
                 "devicetaintrules": [rule("drain", driver=GPU, pool="n1", device="g1")]},
     "needs 1 device of gpu.nvidia.com on one node: 2 exist, 2 match, 1 is in use, 1 is tainted"),
    ("constraint", {"claims": [claim("w", request(count=2), constraints=[{"matchAttribute": f"{GPU}/numa"}])],
                    "resourceslices": [pool("n1", device("g0", attributes={"numa": 0}),
                                            device("g1", attributes={"numa": 1}))]},
     "needs 2 devices of gpu.nvidia.com on one node: 2 exist, 2 match, 2 are free; "
     "no choice of them agree in gpu.nvidia.com/numa"),
    ("counters_exhausted", {
        "claims": [allocated("a", ("n1", "m0")), claim("w")],
        "resourceslices": [pool(
            "n1",
            *(device(name, consumesCounters=[{"counterSet": "g", "counters": {"memory": {"value": "40Gi"}}}])
              for name in ("m0", "m1")),
            counters=[{"name": "g", "counters": {"memory": {"value": "79Gi"}}}])]},
     "needs 1 device of gpu.nvidia.com on one node: 2 exist, 2 match, 1 is in use, 1 is free; "
     "the counters that they share are used up"),
    ("capacity_exhausted", {
        "claims": [allocated("a", ("n1", "s0"), shareID="1", consumedCapacity={"memory": "60Gi"}),
                   claim("w", request(capacity={"requests": {"memory": "30Gi"}}))],
        "resourceslices": [pool("n1", device("s0", {"memory": {"value": "80Gi"}}, allowMultipleAllocations=True))]},
     "needs 1 device of gpu.nvidia.com on one node: 1 exists, 1 matches, 1 is free; none has as much capacity left"),
    ("binding_conditions", {"claims": [allocated("w", ("n1", "g0"), bindingConditions=["attached"])],
                            "pods": [pod("p", "w")]},
     "allocated; 1 device must be made ready before the pod is bound"),
    ("allocated_elsewhere", {"claims": [allocated("w", ("n1", "g0"), user="q")], "pods": [
        pod("p", "w", said="0/2 nodes are available: 1 Insufficient cpu, 1 resourceclaim not available on the node.")]},
     "claim w has its devices where pod p cannot go"),
    ("scheduler_timeout", {"claims": [claim("w")], "pods": [
        pod("p", "w", reason="SchedulerError", said="node n1: timed out trying to allocate devices")]},
     "the scheduler's search for devices took longer than its time limit"),
    ("other_scheduling", {"claims": [claim("w")], "pods": [
        pod("p", "w", said="0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: 2 x.")]},
     "its devices are free on n1, but pod p cannot be scheduled: 2 Insufficient cpu"),
    ("scheduling", {"claims": [claim("w")], "pods": [pod("p", "w")]},
     "the scheduler is at it: devices are there, and it has not refused pod p"),
    ("prepare_failed", {"claims": [allocated("w", ("n1", "g0"), user="p")], "pods": [pod("p", "w", node="n1")],
                        "events_FailedPrepareDynamicResources": [event(
                            "FailedPrepareDynamicResources", "p", "Failed to prepare dynamic resources: prepare "
                            "dynamic resources: DRA driver gpu.nvidia.com is not registered")]},
     "node n1 cannot prepare the devices: DRA driver gpu.nvidia.com is not registered"),
    ("preparing", {"claims": [allocated("w", ("n1", "g0"), user="p")], "pods": [pod("p", "w", node="n1")]},
     "node n1 prepares devices, volumes and network of the pod"),
    ("unknown", {"claims": [claim("w")]},
     "the scheduler could not allocate it when it last tried, yet its devices are free on n1"),
]


@pytest.mark.parametrize(("reason", "given", "summary"), CASES, ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)])
def test_a_cause(reason: str, given: dict[str, Any], summary: str, selectors: Selectors) -> None:
    given = dict(given)
    found = only(cluster(*given.pop("claims"), **given), selectors)
    assert (found.reason.value, found.summary) == (reason, summary)
    assert found.cure


def test_every_cause_has_a_case() -> None:
    assert {case[0] for case in CASES} == {reason.value for reason in PendingReason}


def test_there_is_a_check_for_every_cause_and_none_twice() -> None:
    assert len(set(CHECKS)) == len(CHECKS)


def test_evidence_names_who_holds_the_devices(selectors: Selectors) -> None:
    assert only(cluster(*FULL, claim("w")), selectors).evidence == (
        "closest: n1 (0 free of 2)",
        "device gpu.nvidia.com/n1/g0 is held by claim team/a (pod pa)",
        "device gpu.nvidia.com/n1/g1 is held by claim team/b (pod pb)",
        "scheduler on pod p: 0/2 nodes are available: 2 cannot allocate all claims.",
    )


def test_evidence_is_bounded(selectors: Selectors) -> None:
    names = [f"g{number:02}" for number in range(24)]
    held = [allocated(f"c{name}", ("n1", name)) for name in names]
    slices = [pool("n1", *(device(name) for name in names))]
    found = only(cluster(*held, claim("w"), resourceslices=slices), selectors)
    assert sum("is held by" in line for line in found.evidence) == 10
    assert "and 14 more devices in use" in found.evidence


def test_the_rule_that_taints_is_named(selectors: Selectors) -> None:
    found = only(cluster(claim("w"), devicetaintrules=[rule("drain", driver=GPU)]), selectors)
    assert "taint maintenance=now:NoSchedule of DeviceTaintRule drain on 2 free devices" in found.evidence
    assert found.cure == "delete DeviceTaintRule drain once the devices may be used again, or tolerate it"


def test_a_selector_error_comes_with_its_cure(selectors: Selectors) -> None:
    given = dict(next(case[1] for case in CASES if case[0] == "selector_error"))
    found = only(cluster(*given.pop("claims"), **given), selectors)
    assert 'has(device.attributes["gpu.nvidia.com"].healthy) &&' in found.cure


def test_errors_on_some_devices_do_not_matter_after_a_plain_refusal(selectors: Selectors) -> None:
    wanted = claim("w", request(selector=f"device.attributes['{GPU}'].healthy"))
    assert only(cluster(wanted), selectors).reason is PendingReason.NO_MATCHING_DEVICE


def test_two_claims_of_a_pod_that_fit_only_alone(selectors: Selectors) -> None:
    known = cluster(
        allocated("a", ("n1", "g0")), claim("w"), claim("v"), pods=[pod("p", "w", "v", said=UNSCHEDULABLE)]
    )
    assert {wait.claim: wait.diagnosis.summary for wait in waits(known, selectors)} == {
        "w": "together with claim v of the same pod needs 2 devices of gpu.nvidia.com on one node: 2 exist, 2 match, "
             "1 is in use, 1 is free",
        "v": "together with claim w of the same pod needs 2 devices of gpu.nvidia.com on one node: 2 exist, 2 match, "
             "1 is in use, 1 is free",
    }


@pytest.mark.parametrize("missing", ["resourceslices", "deviceclasses"])
def test_what_cannot_be_read_makes_the_cause_unknown(missing: str, selectors: Selectors) -> None:
    known = cluster(claim("w"))
    known.synced.discard(missing)
    found = only(known, selectors)
    assert (found.reason, found.summary) == (
        PendingReason.UNKNOWN, f"{missing} cannot be read, so nothing is known about devices"
    )


def test_a_claim_that_nobody_wants_is_no_wait(selectors: Selectors) -> None:
    assert waits(cluster(claim("w"), pods=[]), selectors) == ()


def test_a_pod_that_runs_waits_for_nothing(selectors: Selectors) -> None:
    running = pod("p", "w", node="n1", conditions=[{"type": "PodReadyToStartContainers", "status": "True"}])
    assert waits(cluster(allocated("w", ("n1", "g0"), user="p"), pods=[running]), selectors) == ()


def test_a_wait_begins_with_the_later_of_claim_and_pod(selectors: Selectors) -> None:
    late = claim("w", creationTimestamp="2026-11-21T11:00:07Z")
    (wait,) = waits(cluster(late), selectors)
    assert (wait.namespace, wait.claim, wait.claim_uid, wait.pod, wait.pod_claim, wait.deviceclass) == (
        "team", "w", "uid-w", "p", "c0", GPU
    )
    assert wait.since_wall == CREATED_WALL + 7


class Unsure:
    """Selectors of which nothing is known until `verdict` is set."""

    def __init__(self) -> None:
        self.verdict = Match(Verdict.UNKNOWN, "not evaluated yet")

    def match(self, expression: str, device: DeviceFacts) -> Match:
        return self.verdict

    def matches_all(self, expressions: Any, device: DeviceFacts) -> Match:
        return self.verdict


def test_what_is_not_evaluated_yet_is_unknown_and_then_known() -> None:
    known, unsure, waiting = cluster(*FULL, claim("w")), Unsure(), Waiting()
    (before,) = waiting.waits(known, unsure, {}, LATER)
    unsure.verdict = Match(Verdict.MATCH)
    (after,) = waiting.waits(known, unsure, {}, LATER)
    assert (before.diagnosis.reason, before.diagnosis.summary, after.diagnosis.reason) == (
        PendingReason.UNKNOWN, "cannot tell which devices match: not evaluated yet", PendingReason.DEVICES_IN_USE
    )


def test_diagnoses_follow_every_change(selectors: Selectors) -> None:
    known, waiting = cluster(*FULL, claim("w")), Waiting()

    def reason() -> str:
        (wait,) = waiting.waits(known, selectors, {}, LATER)
        return wait.diagnosis.reason.value

    seen = [reason()]
    known.apply("resourceclaims", decoded("resourceclaims", FULL[0]), False)
    seen.append(reason())
    known.apply("devicetaintrules", decoded("devicetaintrules", rule("drain", driver=GPU)), True)
    seen.append(reason())
    known.apply("deviceclasses", decoded("deviceclasses", device_class()), False)
    seen.append(reason())
    known.apply("deviceclasses", decoded("deviceclasses", device_class()), True)
    known.apply("resourceslices", decoded("resourceslices", GPUS), False)
    seen.append(reason())
    assert seen == ["devices_in_use", "unknown", "tainted", "class_missing", "no_driver"]


def test_nothing_new_gives_the_same_objects(selectors: Selectors) -> None:
    known, waiting = cluster(*FULL, claim("w")), Waiting()
    (before,) = waiting.waits(known, selectors, {}, LATER)
    (after,) = waiting.waits(known, selectors, {}, LATER + 60)
    assert before is after


def recorded(seconds: float) -> Cluster:
    known = Cluster()
    for kind, objects in lists().items():
        known.sync(kind, objects)
    for arrival in until(seconds):
        known.apply(arrival.kind, arrival.obj, arrival.present)
    return known


def test_the_recorded_cluster(selectors: Selectors) -> None:
    found = {wait.pod: wait.diagnosis.reason.value for wait in waits(recorded(20), selectors, START + 20)}
    assert found == {
        "stuck-no-match": "no_matching_device",
        "stuck-missing-class": "class_missing",
        "stuck-missing-claim": "claim_missing",
        "stuck-all-in-use": "devices_in_use",
        "stuck-quota": "quota",
        "prioritized": "prepare_failed",
    }


def test_the_recorded_driver_that_was_down(selectors: Selectors) -> None:
    found = {wait.pod: wait.diagnosis for wait in waits(recorded(55), selectors, START + 55)}
    assert found["stuck-prepare"] == Diagnosis(
        reason=PendingReason.PREPARE_FAILED,
        summary="node gpu-node-1 cannot prepare the devices: DRA driver gpu.nvidia.com is not registered",
        evidence=("event FailedPrepareDynamicResources: Failed to prepare dynamic resources: prepare dynamic "
                  "resources: DRA driver gpu.nvidia.com is not registered",),
        cure="see whether the driver's kubelet plugin runs on gpu-node-1 (its DaemonSet pod, its log)",
    )
