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
    pod_of_resources,
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
AMD = "gpu.amd.com.deviceclass.resource.k8s.io/devices"

KIND = f"device.attributes['{GPU}'].kind == '{{}}'"
BY_LABEL = {
    "metadata": {"name": "net", "uid": "net"},
    "spec": {"driver": GPU, "pool": {"name": "net", "generation": 1, "resourceSliceCount": 1},
             "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [
                 {"key": "rack", "operator": "In", "values": ["r1"]}]}]},
             "devices": [device("g0")]},
}



def by_scheduler(name: str, wanted: str, scheduler: str, node: str | None = None) -> dict[str, Any]:
    made = pod(name, wanted, node=node)
    made["spec"]["schedulerName"] = scheduler
    return made


Case = tuple[str, dict[str, Any], str]
CASES: list[Case] = [
    ("claim_missing", {"claims": [], "pods": [pod("p", "w")]},
     "pod p names ResourceClaim w, which does not exist"),
    ("template_missing", {"claims": [], "pods": [BY_TEMPLATE]},
     "pod p names ResourceClaimTemplate t, which does not exist"),
    ("quota", {"claims": [], "pods": [BY_TEMPLATE], "resourceclaimtemplates": [TEMPLATE],
               "events_FailedResourceClaimCreation": [event(
                   "FailedResourceClaimCreation", "p", CREATION + "claims \"x\" is forbidden: exceeded quota: q, "
                   f"requested: {AMD}=1, used: {AMD}=1, limited: {AMD}=1")]},
     "ResourceQuota q of namespace team leaves no room: asks for 1 device of gpu.amd.com, 1 of 1 are used"),
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
    ("scheduling", {"claims": [claim("w")], "pods": [
        pod("p", "w", said="resource claim team/w is in the process of being allocated")]},
     "the scheduler is at it: devices are there, and it has not refused pod p"),
    ("prepare_failed", {"claims": [allocated("w", ("n1", "g0"), user="p")], "pods": [pod("p", "w", node="n1")],
                        "events_FailedPrepareDynamicResources": [event(
                            "FailedPrepareDynamicResources", "p", "Failed to prepare dynamic resources: prepare "
                            "dynamic resources: DRA driver gpu.nvidia.com is not registered")]},
     "node n1 cannot prepare the devices: DRA driver gpu.nvidia.com is not registered"),
    ("preparing", {"claims": [allocated("w", ("n1", "g0"), user="p")], "pods": [pod("p", "w", node="n1")]},
     "node n1 prepares devices, volumes and network of the pod"),
    ("not_retried", {"claims": [claim("w")]},
     "the scheduler could not allocate it when it last tried, yet its devices are free on n1"),
    ("scheduler_silent", {"claims": [claim("w")], "pods": [pod("p", "w")]},
     "no scheduler has looked at pod p; spec.schedulerName is default-scheduler: is it running?"),
    ("unknown", {"claims": [claim("w")], "pods": [pod("p", "w", node="n1")]},
     "pod p is on node n1, and the claim has no devices: whoever put it there allocates no claims, or the claim was "
     "released since"),
]


@pytest.mark.parametrize(("reason", "given", "summary"), CASES, ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)])
def test_a_cause(reason: str, given: dict[str, Any], summary: str, selectors: Selectors) -> None:
    given = dict(given)
    found = only(cluster(*given.pop("claims"), **given), selectors)
    assert (found.reason.value, found.summary) == (reason, summary)
    assert found.cure


# The words of these are worth as much as their reason.
MORE: list[Case] = [
    ("quota", {"claims": [], "pods": [BY_TEMPLATE], "resourceclaimtemplates": [TEMPLATE],
               "events_FailedResourceClaimCreation": [event(
                   "FailedResourceClaimCreation", "p", CREATION + "failed quota: q: must specify limits")]},
     "ResourceQuota q of namespace team refuses the claim: must specify limits"),
    ("claim_not_created", {"claims": [], "pods": [BY_TEMPLATE], "resourceclaimtemplates": [TEMPLATE],
                           "events_FailedResourceClaimCreation": [event(
                               "FailedResourceClaimCreation", "p",
                               'PodResourceClaim c0: resource claim template "t": x "t" not found')]},
     "no claim has been made from template t yet, and the claim controller last said that there is no such template; "
     "it exists now"),
    ("too_many_devices", {"claims": [claim("w", request(count=None, allocationMode="All"))],
                          "resourceslices": [pool("n1", *(device(f"g{number}") for number in range(40)))]},
     "needs every device of gpu.nvidia.com on one node: 40 exist, 40 match, 40 are free; one node has 40 of them, and "
     "one claim can hold 32"),
    ("devices_in_use", {"claims": [allocated("a", ("n1", "g0")),
                                   claim("w", request(count=None, allocationMode="All"))]},
     "needs every device of gpu.nvidia.com on one node: 2 exist, 2 match, 1 is in use, 1 is free"),
    ("devices_in_use", {
        "claims": [allocated("a", ("n1", "b0")), claim("w", request("big", selector=KIND.format("big")),
                                                       request("small", selector=KIND.format("small")))],
        "resourceslices": [pool("n1", device("b0", attributes={"kind": "big"}),
                                *(device(f"s{number}", attributes={"kind": "small"}) for number in range(3)))]},
     "needs 2 devices of gpu.nvidia.com on one node: 4 exist, 4 match, 1 is in use, 3 are free"),
    ("devices_in_use", {"claims": [*FULL, claim("w")],
                        "resourceslices": [GPUS, pool("n2", device("g0"), count=2)]},
     "needs 1 device of gpu.nvidia.com on one node: 3 exist, 3 match, 2 are in use"),
    ("no_matching_device", {"claims": [claim("w", request(selector=KIND.format("big")))],
                            "resourceslices": [pool("n1", device("g0", attributes={"kind": "small"})),
                                               pool("n2", device("g0", attributes={"kind": "small"}), count=2)]},
     "needs 1 device of gpu.nvidia.com on one node: 2 exist, 0 match"),
    ("no_matching_device", {"claims": [claim("w")], "resourceslices": [BY_LABEL], "nodes": [
        {"metadata": {"name": "n1", "uid": "n1"}}]},
     "needs 1 device of gpu.nvidia.com on one node: 1 exists, 1 matches; 1 of them has a node selector that matches "
     "no node"),
    ("devices_in_use", {
        "claims": [allocated("s", ("n1", "g0"), node="n1"), allocated("o", ("n1", "g1")), claim("w")],
        "pods": [pod("p", "s", "w", said="0/2 nodes are available: 2 cannot allocate all claims.")],
        "resourceslices": [GPUS, pool("n2", device("g0"))]},
     "needs 1 device of gpu.nvidia.com on n1, where the pod's other claims have theirs: 2 exist, 2 match, "
     "2 are in use"),
    ("other_scheduling", {"claims": [claim("w")], "pods": [by_scheduler("p", "w", "volcanoo")]},
     "no scheduler has looked at pod p; spec.schedulerName is volcanoo, which has placed no pod that is known: does it "
     "exist?"),
    ("scheduler_silent", {"claims": [claim("w"), claim("x")], "pods": [
        by_scheduler("p", "w", "volcano"), by_scheduler("q", "x", "volcano", node="n1")]},
     "no scheduler has looked at pod p; spec.schedulerName is volcano: is it running?"),
    ("unknown", {"claims": [claim("w")], "pods": [
        pod("p", "w", reason="SchedulerError", said="class gpu.nvidia.com: selector #0: CEL runtime error: no key")]},
     "the scheduler's last word is of a selector that failed; it fails on no device now, so the word is older than its "
     "repair, and the scheduler has yet to look again"),
    ("scheduler_timeout", {
        "claims": [claim("w", request(selector=f"device.attributes['{GPU}'].healthy"))],
        "resourceslices": [pool("n1", device("g0", attributes={"healthy": True}), device("g1"))],
        "pods": [pod("p", "w", reason="SchedulerError", said="node n1: timed out trying to allocate devices")]},
     "the scheduler's search for devices took longer than its time limit"),
]


@pytest.mark.parametrize(("reason", "given", "summary"), MORE, ids=[f"{case[0]}-{n}" for n, case in enumerate(MORE)])
def test_a_cause_in_words(reason: str, given: dict[str, Any], summary: str, selectors: Selectors) -> None:
    given = dict(given)
    known = cluster(*given.pop("claims"), **given)
    found = next(wait.diagnosis for wait in waits(known, selectors) if wait.claim in ("w", ""))
    assert (found.reason.value, found.summary) == (reason, summary)


@pytest.mark.parametrize(
    ("waiting", "after_seconds", "reason"),
    [
        (pod("p", "w"), 30, "scheduling"),
        (pod("p", "w"), 61, "scheduler_silent"),
        (pod("p", "w"), 3600, "scheduler_silent"),
        (STUCK, 30, "not_retried"),  # its devices have come free since
        (STUCK, 3600, "not_retried"),
    ],
)
def test_a_scheduler_that_is_dead(
    waiting: dict[str, Any], after_seconds: float, reason: str, selectors: Selectors
) -> None:
    assert only(cluster(claim("w"), pods=[waiting]), selectors, CREATED_WALL + after_seconds).reason.value == reason


def test_a_scheduler_that_is_first_seen_at_work_is_known_from_then_on(selectors: Selectors) -> None:
    waiting = Waiting()
    for others, reason in (([], "other_scheduling"), ([by_scheduler("q", "x", "volcano", node="n1")],
                                                      "scheduler_silent")):
        known = cluster(claim("w"), claim("x"), pods=[by_scheduler("p", "w", "volcano"), *others])
        found = next(wait for wait in waiting.waits(known, selectors, {}, LATER) if wait.claim == "w")
        assert found.diagnosis.reason.value == reason


def test_an_incomplete_pool_is_evidence_where_something_else_explains(selectors: Selectors) -> None:
    known = cluster(*FULL, claim("w"), resourceslices=[GPUS, pool("n2", device("g0"), count=2)])
    assert f"pool {GPU}/n2: 1 of 2 slices of generation 1" in only(known, selectors).evidence


# --- what a pod's claims have to do with each other ---


def by_claim(known: Cluster, selectors: Selectors) -> dict[str, tuple[str, str]]:
    return {
        wait.pod_claim: (wait.diagnosis.reason.value, wait.diagnosis.summary) for wait in waits(known, selectors)
    }


def test_a_missing_claim_keeps_the_others_waiting(selectors: Selectors) -> None:
    missing = "pod p names ResourceClaim nope, which does not exist"
    assert by_claim(cluster(claim("w"), pods=[pod("p", "w", "nope")]), selectors) == {
        "c0": ("claim_missing", f"waits for claim nope of the same pod (claim missing): {missing}"),
        "c1": ("claim_missing", missing),
    }


def test_the_claim_controller_stops_at_the_first_claim_that_fails(selectors: Selectors) -> None:
    two = pod("p", template="t")
    two["spec"]["resourceClaims"].append({"name": "c1", "resourceClaimTemplateName": "t"})
    refused = event("FailedResourceClaimCreation", "p", CREATION + "denied by policy")
    known = cluster(pods=[two], resourceclaimtemplates=[TEMPLATE], events_FailedResourceClaimCreation=[refused])
    denied = "the claim of template t could not be created: denied by policy"
    assert by_claim(known, selectors) == {
        "c0": ("admission", denied),
        "c1": ("admission", f"not created, since the claim controller stopped at claim c0 of the same pod: {denied}"),
    }


def test_a_failed_preparation_is_the_claims_that_the_kubelet_names(selectors: Selectors) -> None:
    failed = event("FailedPrepareDynamicResources", "p", "Failed to prepare dynamic resources: prepare dynamic "
                   "resources: NodePrepareResources failed for ResourceClaim b: boom")
    known = cluster(
        allocated("a", ("n1", "g0"), user="p"), allocated("b", ("n1", "g1"), user="p"),
        pods=[pod("p", "a", "b", node="n1")], events_FailedPrepareDynamicResources=[failed],
    )
    told = "NodePrepareResources failed for ResourceClaim b: boom"
    assert by_claim(known, selectors) == {
        "c0": ("preparing", f"waits for claim b of the same pod, which node n1 cannot prepare: {told}"),
        "c1": ("prepare_failed", f"node n1 cannot prepare the devices: {told}"),
    }


# --- extended resources ---


def mapped(name: str = "nvidia.com/gpu") -> dict[str, Any]:
    found = device_class()
    found["spec"]["extendedResourceName"] = name
    return found


def extended(selectors: Selectors, *pods: dict[str, Any], **more: Any) -> list[tuple[str, str, str]]:
    known = cluster(*FULL, deviceclasses=[mapped()], pods=list(pods), **more)
    return [(wait.pod, wait.deviceclass, wait.diagnosis.summary) for wait in waits(known, selectors)]


def test_devices_asked_for_as_an_extended_resource(selectors: Selectors) -> None:
    plain = pod_of_resources("e", {"nvidia.com/gpu": "1"}, said="0/1 nodes are available: 1 cannot fit resource.")
    assert extended(selectors, plain) == [
        ("e", GPU, "extended resource nvidia.com/gpu: needs 1 device of gpu.nvidia.com on one node: 2 exist, 2 match, "
                   "2 are in use")]


def test_every_class_is_an_extended_resource_too(selectors: Selectors) -> None:
    name = f"deviceclass.resource.kubernetes.io/{GPU}"
    assert [found[2] for found in extended(selectors, pod_of_resources("e", {name: "2"}))] == [
        f"extended resource {name}: needs 2 devices of gpu.nvidia.com on one node: 2 exist, 2 match, 2 are in use"]


def test_containers_and_sidecars_add_up_and_init_containers_do_not(selectors: Selectors) -> None:
    limits = {"limits": {"nvidia.com/gpu": "2"}}
    sidecar = {"name": "s", "restartPolicy": "Always", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    several = pod_of_resources(
        "e", {"nvidia.com/gpu": "1"}, {"nvidia.com/gpu": "1"}, initial=[sidecar, {"name": "i", "resources": limits}]
    )
    first = pod_of_resources("f", {"cpu": "1"}, initial=[{"name": "i", "resources": limits}])
    assert [found[2].split(" on one node")[0] for found in extended(selectors, several, first)] == [
        "extended resource nvidia.com/gpu: needs 3 devices of gpu.nvidia.com",
        "extended resource nvidia.com/gpu: needs 2 devices of gpu.nvidia.com",
    ]


def test_a_resource_that_a_device_plugin_offers_is_no_wait_of_ours(selectors: Selectors) -> None:
    def node(amount: str) -> dict[str, Any]:
        return {"metadata": {"name": "n9", "uid": "n9"}, "status": {"allocatable": {"nvidia.com/gpu": amount}}}

    plain = pod_of_resources("e", {"nvidia.com/gpu": "1"})
    assert extended(selectors, plain, nodes=[node("8")]) == []
    assert len(extended(selectors, plain, nodes=[node("0")])) == 1


def test_a_scheduler_that_knows_nothing_of_extended_resources_by_dra(selectors: Selectors) -> None:
    name = f"deviceclass.resource.kubernetes.io/{GPU}"
    known = cluster(pods=[pod_of_resources("e", {name: "1"}, said=f"0/1 nodes are available: 1 Insufficient {name}.")])
    assert only(known, selectors).summary == (
        f"extended resource {name}: the scheduler looks for {name} at device plugins alone, yet devices are free on "
        "n1: is feature gate DRAExtendedResource on?")


def test_extended_resources_that_have_nothing_to_do_with_dra(selectors: Selectors) -> None:
    served = pod_of_resources("e", {"nvidia.com/gpu": "1"})
    served["status"]["extendedResourceClaimStatus"] = {"resourceClaimName": "a"}
    known = extended(selectors, pod_of_resources("f", {"amd.com/gpu": "1", "cpu": "1"}), served)
    assert [name for name, _, _ in known] == ["e"]  # its claim exists, and is not yet used


# --- what cannot be read ---


@pytest.mark.parametrize(
    ("kind", "given", "summary"),
    [
        ("events/FailedResourceClaimCreation",
         {"pods": [BY_TEMPLATE], "resourceclaimtemplates": [TEMPLATE]},
         "no claim has been made from template t yet, and why is not known: the claim controller's events cannot be "
         "read"),
        ("nodes", {"resourceclaims": [claim("w")], "resourceslices": [BY_LABEL]},
         "nodes cannot be read, so it is not known where 1 of the matching devices can be used"),
        ("devicetaintrules", {"resourceclaims": [claim("w")]},
         "the scheduler could not allocate it when it last tried, yet its devices are free on n1, as far as is known: "
         "DeviceTaintRules cannot be read, so their taints are not known"),
    ],
)
def test_what_hangs_on_a_kind_that_cannot_be_read(
    kind: str, given: dict[str, Any], summary: str, selectors: Selectors
) -> None:
    known = cluster(**given)
    known.synced.discard(kind)
    assert only(known, selectors).summary == summary


def test_a_kind_that_is_not_served_is_known_to_be_empty(selectors: Selectors) -> None:
    known = cluster(claim("w"))
    known.synced.discard("devicetaintrules")
    known.unserved.add("devicetaintrules")
    assert only(known, selectors).summary == (
        "the scheduler could not allocate it when it last tried, yet its devices are free on n1")


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
    assert seen == ["devices_in_use", "not_retried", "tainted", "class_missing", "no_driver"]


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
