"""The simulated cluster: what it shows at any time, and what the controller's own judgement says of it."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claimscope.claims.cluster import Change, Cluster
from claimscope.claims.lifecycle import Lifecycle
from claimscope.claims.model import DeviceKey, PendingReason
from claimscope.claims.pending import Waiting
from claimscope.claims.selectors import Selectors
from claimscope.clock import SystemClock
from claimscope.kube import objects
from claimscope.kube.api import ApiClient, OpenAccess
from claimscope.kube.kinds import WatchedKind, watched_kinds
from claimscope.metrics.cluster import FAMILIES
from claimscope.model import Histogram
from claimscope.sim.cluster import DEFAULT_NODES, Follower, SimulatedCluster
from claimscope.sim.cluster_state import ClusterState, ObjectKey
from claimscope.sim.fleet import node_world
from claimscope.sim.load import churn, generate
from claimscope.sim.objects import ClaimScript, Object, PodScript, cel, request
from claimscope.sim.scenario import ScenarioError, decode_scenario
from claimscope.sim.scheduler import Scheduler, SchedulerCannotDecideError
from simulated_reasons import REASONS

ORIGIN = 1_800_000_000.0
TYPES: Mapping[str, type[Any]] = {
    "resourceclaims": objects.ResourceClaim,
    "resourceslices": objects.ResourceSlice,
    "deviceclasses": objects.DeviceClass,
    "resourceclaimtemplates": objects.ResourceClaimTemplate,
    "devicetaintrules": objects.DeviceTaintRule,
    "pods": objects.Pod,
    "nodes": objects.Node,
    "resourcequotas": objects.ResourceQuota,
    "events": objects.Event,
}


@pytest.fixture(scope="module")
def selectors() -> Iterator[Selectors]:
    made = Selectors.in_process()
    yield made
    made.close()


def new_state(selectors: Selectors) -> ClusterState:
    return ClusterState([node_world(profile, name) for name, profile in DEFAULT_NODES], selectors, origin=ORIGIN)


@functools.cache
def shared_state() -> ClusterState:
    """For properties, too: they take no fixture that is made once for many examples."""
    selectors = Selectors.in_process()
    try:
        return new_state(selectors)
    finally:
        selectors.close()


@pytest.fixture
def state() -> ClusterState:
    return shared_state()


def watched(kind: WatchedKind, found: Mapping[ObjectKey, Object]) -> list[Any]:
    """What a watch of this kind would bring."""
    plural = kind.name.partition("/")[0]
    told = kind.params.get("fieldSelector", "")
    items = [
        msgspec.convert(obj, kind.kind)
        for key, obj in found.items()
        if key[0] == plural and (plural != "events" or told == f"reason={obj['reason']}")
    ]
    return [item for item in items if kind.keep(item)]


def seen(cluster: Cluster, found: Mapping[ObjectKey, Object]) -> list[Change]:
    return [
        change for kind in watched_kinds("claimscope") for change in cluster.sync(kind.name, watched(kind, found))
    ]


def allocations(found: Mapping[ObjectKey, Object]) -> dict[ObjectKey, list[Object]]:
    return {
        key: obj["status"]["allocation"]["devices"]["results"]
        for key, obj in found.items()
        if key[0] == "resourceclaims" and "allocation" in obj["status"]
    }


def test_the_cluster_names_the_cause_that_it_set_up_for_each_pod(state: ClusterState) -> None:
    assert {f"{namespace}/{pod}": reason for (namespace, pod), reason in state.expected.items()} == REASONS


@pytest.mark.parametrize("at", [0.0, 31.7, 100.0, 3600.0])
def test_the_controller_gives_each_waiting_pod_the_cause_that_was_set_up(
    state: ClusterState, selectors: Selectors, at: float
) -> None:
    cluster = Cluster()
    lifecycle = Lifecycle(count_since_wall=ORIGIN)
    lifecycle.take(seen(cluster, state.objects(at)), cluster, arrival_ns=0, wall=ORIGIN + at)

    waits = Waiting().waits(cluster, selectors, lifecycle.views, ORIGIN + at)

    found = {f"{wait.namespace}/{wait.pod}": wait.diagnosis.reason for wait in waits}
    in_passing = {PendingReason.SCHEDULING, PendingReason.NOT_RETRIED, PendingReason.PREPARING}
    assert {pod: reason for pod, reason in found.items() if reason not in in_passing} == REASONS


def test_what_holds_devices_without_using_them_is_told_apart(state: ClusterState) -> None:
    cluster = Cluster()
    lifecycle = Lifecycle(count_since_wall=ORIGIN)
    lifecycle.take(seen(cluster, state.objects(45.0)), cluster, arrival_ns=0, wall=ORIGIN + 45.0)
    lifecycle.tick(cluster, ORIGIN + 45.0)

    views = {view.name: view for view in lifecycle.views.values()}
    doing = {name: view.doing.value for name, view in views.items() if view.doing is not None and "demo" not in name}
    assert doing == {
        "crash-looping-gpu": "crash_looping",
        "fabric-gpu": "pending_other",
        "image-missing-gpu": "image_failed",
        "prepare-failed-gpu": "prepare_failed",
        "pulling-gpu": "pulling",
    }
    lifecycle.tick(cluster, ORIGIN + 105.0)
    assert [view.name for view in lifecycle.views.values() if view.leaked] == []  # watched for a minute, no longer
    lifecycle.tick(cluster, ORIGIN + 106.0)
    assert [view.name for view in lifecycle.views.values() if view.leaked] == ["leaked-gpu"]
    assert views["prefers-large"].alternative == "gpu/any"
    assert views["prefers-large"].pods == ("prioritized", "prioritized-second")
    assert views["rendering-extended-resources-x7k2p"].source == "extended_resource"
    assert not views["unreferenced"].referenced
    assert views["observe-demo-node-1"].devices[0].admin
    assert views["crash-looping-gpu"].devices[0].health == "Unhealthy"


def test_pods_have_owners_and_labels_that_name_their_workload(state: ClusterState) -> None:
    cluster = Cluster()
    lifecycle = Lifecycle(count_since_wall=ORIGIN)
    lifecycle.take(seen(cluster, state.objects(33.0)), cluster, arrival_ns=0, wall=ORIGIN + 33.0)
    kinds = {view.workload.kind for view in lifecycle.views.values()}
    assert {"Job", "RayJob", "Deployment", "DaemonSet", "StatefulSet", "InferenceService", "Model"} <= kinds


@settings(max_examples=60)
@given(at=st.floats(min_value=0.0, max_value=900.0))
def test_no_device_is_allocated_twice_at_any_time(at: float) -> None:
    found = shared_state().objects(at)
    holders = Counter(
        DeviceKey(result["driver"], result["pool"], result["device"])
        for results in allocations(found).values()
        for result in results
        if not result.get("adminAccess") and "shareID" not in result
    )
    assert [device for device, count in holders.items() if count > 1] == []


@settings(max_examples=60)
@given(at=st.floats(min_value=0.0, max_value=900.0), node=st.integers(min_value=0, max_value=2))
def test_whatever_a_kubelet_shows_is_allocated_and_reserved_in_the_api(at: float, node: int) -> None:
    name, profile = DEFAULT_NODES[node]
    found = shared_state().objects(at)
    # The kubelet's pods begin and end on tenths of a second.
    for pod in node_world(profile, name).pods(round(at, 1)):
        assert ("pods", pod.namespace, pod.name) in found
        for claim in (claim for container in pod.containers for claim in container.claims):
            told = found["resourceclaims", claim.namespace, claim.name]
            assert told["metadata"]["uid"] == claim.uid
            assert [each["device"] for each in told["status"]["allocation"]["devices"]["results"]] == list(
                claim.devices
            )


@settings(max_examples=25)
@given(at=st.floats(min_value=0.0, max_value=900.0))
def test_every_object_is_what_its_kind_says(at: float) -> None:
    for (plural, namespace, name), obj in shared_state().objects(at).items():
        assert obj["metadata"]["uid"]
        assert obj["metadata"]["creationTimestamp"].endswith("Z")
        if plural != "namespaces":
            decoded = msgspec.convert(obj, TYPES[plural])
            assert (decoded.metadata.namespace, decoded.metadata.name) == (namespace, name)


def test_the_same_time_gives_the_same_objects_whatever_was_asked_before(selectors: Selectors) -> None:
    one, other = new_state(selectors), new_state(selectors)
    for at in (500.0, 3.0, 77.7):
        other.objects(at)
    assert other.objects(63.2) == one.objects(63.2)


def test_a_short_job_goes_through_every_state_and_leaves_nothing(state: ClusterState) -> None:
    # The job with number 1 on demo-node-1, whose container runs from 28 to 39.
    cluster, lifecycle = Cluster(), Lifecycle(count_since_wall=ORIGIN)
    states: list[str] = []
    for step in range(200, 500, 2):
        at = step / 10
        changes = claims_and_pods(cluster, state.objects(at))
        lifecycle.take(changes, cluster, arrival_ns=round(at * 1e9), wall=ORIGIN + at)
        shown = next(
            (view.state.value for view in lifecycle.views.values() if view.name == "job-0-gpu-demo-node-1-1"), "none"
        )
        if not states or states[-1] != shown:
            states.append(shown)
    # Reserved once more: its pod has ended, and the claim controller has not let the devices go yet.
    assert states == ["none", "pending", "reserved", "prepared", "running", "reserved", "released", "none"]


def test_short_jobs_fill_the_histograms_of_every_phase(state: ClusterState) -> None:
    cluster, lifecycle = Cluster(), Lifecycle(count_since_wall=ORIGIN)
    for step in range(0, 120):
        at = step / 2
        changes = claims_and_pods(cluster, state.objects(at))
        lifecycle.take(changes, cluster, arrival_ns=round(at * 1e9), wall=ORIGIN + at)
    told = {
        dict(each.labels)["phase"]: sum(each.counts)
        for each in lifecycle.samples()
        if isinstance(each, Histogram)
        and each.family == "dra_allocation_duration_seconds"
        and dict(each.labels)["deviceclass"] == "gpu.nvidia.com"
    }
    assert "dra_allocation_duration_seconds" in FAMILIES
    assert set(told) == {"scheduling", "binding", "prepare", "start"}
    assert min(told.values()) >= 4


def claims_and_pods(cluster: Cluster, found: Mapping[ObjectKey, Object]) -> list[Change]:
    """What watches of the two kinds bring since the last call."""
    kinds = [kind for kind in watched_kinds("claimscope") if kind.name in ("resourceclaims", "pods")]
    return [change for kind in kinds for change in _applied(cluster, kind, found)]


def _applied(cluster: Cluster, kind: WatchedKind, found: Mapping[ObjectKey, Object]) -> list[Change]:
    """What a watch brings: changes one by one, after a first list."""
    items = watched(kind, found)
    if kind.name not in cluster.synced:
        return cluster.sync(kind.name, items)
    table: dict[Any, Any] = cluster.claims if kind.name == "resourceclaims" else cluster.pods
    present = {(item.metadata.namespace, item.metadata.name) for item in items}
    gone = [obj for key, obj in table.items() if tuple(key) not in present]
    changes = [change for obj in gone for change in cluster.apply(kind.name, obj, present=False)]
    new = [obj for obj in items if table.get((obj.metadata.namespace, obj.metadata.name)) != obj]
    return changes + [change for obj in new for change in cluster.apply(kind.name, obj, present=True)]


def test_a_rule_comes_over_the_device_of_the_nightly_job_and_goes_again(state: ClusterState) -> None:
    held = allocations(state.objects(70.0))["resourceclaims", "team-b", "nightly-gpu"]
    assert [(each["driver"], each["pool"], each["device"]) for each in held] == [
        ("gpu.example.com", "example-node-1", "small-2")
    ]
    shown = {at: ("devicetaintrules", "", "overheated") in state.objects(at) for at in (29.0, 31.0, 89.0, 91.0, 151.0)}
    assert shown == {29.0: False, 31.0: True, 89.0: True, 91.0: False, 151.0: True}


def test_two_nodes_of_one_profile_share_no_name_and_no_uuid() -> None:
    one, other = node_world("h100x8", "a"), node_world("h100x8", "b")
    names = [{(pod.namespace, pod.name) for pod in world.pods(30.0)} for world in (one, other)]
    assert not names[0] & names[1]
    assert {one.profile.gpu_uuid(gpu) for gpu in range(8)}.isdisjoint(other.profile.gpu_uuid(gpu) for gpu in range(8))


def test_two_nodes_of_one_name_are_refused(selectors: Selectors) -> None:
    worlds = [node_world("h100x8", "a"), node_world("l40sx4", "a")]
    with pytest.raises(ValueError, match="two simulated nodes have one name: a, a"):
        ClusterState(worlds, selectors, origin=ORIGIN)


def test_a_scenario_that_names_what_is_not_there_is_refused() -> None:
    scenario = decode_scenario("pods: [{namespace: a, name: b, workload: training, plugin: {x: ['gpu:9']}}]")
    with pytest.raises(ScenarioError, match="gpu:9"):
        node_world("h100x8", "a", scenario)


# --- the scheduler ---


@pytest.mark.parametrize(
    ("claim", "refusal"),
    [
        (
            request("none-such"),
            ("Unschedulable", "0/8 nodes are available: request gpu: device class none-such does not exist. no new "
             "claims to deallocate, preemption: 0/8 nodes are available: 8 Preemption is not helpful for scheduling."),
        ),
        (
            request("gpu.amd.com", count=3),
            ("Unschedulable", "0/8 nodes are available: 8 cannot allocate all claims. still not schedulable, "
             "preemption: 0/8 nodes are available: 8 Preemption is not helpful for scheduling."),
        ),
        (
            request("gpu.amd.com", count=33),
            ("SchedulerError", 'running "DynamicResources" filter plugin: claim n/c: number of requested devices 33 '
             "exceeds the claim limit of 32"),
        ),
        (
            request("gpu.amd.com", selectors=cel("device.attributes['gpu.amd.com'].wings == 2")),
            ("SchedulerError", 'running "DynamicResources" filter plugin: claim n/c: selector #0: CEL runtime error: '
             "no such key: wings"),
        ),
    ],
)  # fmt: skip
def test_the_scheduler_refuses_in_the_words_of_the_real_one(
    state: ClusterState, selectors: Selectors, claim: Object, refusal: tuple[str, str]
) -> None:
    cluster = Cluster()
    seen(cluster, state.objects(0.0))
    pod = PodScript(namespace="n", name="p", claims=(ClaimScript(namespace="n", name="c", requests=(claim,)),))
    assert Scheduler(cluster, selectors).decide(pod).refusal == refusal


def test_the_scheduler_gives_each_device_once(state: ClusterState, selectors: Selectors) -> None:
    cluster = Cluster()
    seen(cluster, {key: obj for key, obj in state.objects(0.0).items() if key[0] != "resourceclaims"})
    scheduler = Scheduler(cluster, selectors)
    given_away = []
    for number in range(4):
        claim = ClaimScript(namespace="n", name=f"c{number}", requests=(request("gpu.amd.com"),))
        decision = scheduler.decide(PodScript(namespace="n", name=f"p{number}", claims=(claim,)))
        given_away.append((decision.node, decision.claims[0].results[0]["device"]))
    assert given_away == [
        ("amd-node-1", "gpu-0"), ("amd-node-1", "gpu-1"), ("amd-node-2", "gpu-0"), ("amd-node-2", "gpu-1"),
    ]


def test_the_scheduler_does_not_guess_where_a_selector_cannot_be_evaluated(state: ClusterState) -> None:
    cluster = Cluster()
    seen(cluster, state.objects(0.0))
    claim = ClaimScript(namespace="n", name="c", requests=(request("gpu.amd.com"),))
    unsettled = Selectors()
    try:
        with pytest.raises(SchedulerCannotDecideError, match="pod n/p: device gpu"):
            Scheduler(cluster, unsettled).decide(PodScript(namespace="n", name="p", claims=(claim,)))
    finally:
        unsettled.close()


# --- behind an API server ---


async def test_an_api_server_shows_the_cluster_and_its_changes() -> None:
    async with SimulatedCluster.open(clock=SystemClock()) as cluster:
        api = ApiClient(OpenAccess(cluster.url))
        try:
            version = msgspec.json.decode(await api.get("/version"))
            listed = msgspec.json.decode(await api.get("/apis/resource.k8s.io/v1beta2/devicetaintrules"))
            claims = msgspec.json.decode(await api.get("/apis/resource.k8s.io/v1/resourceclaims"))
        finally:
            await api.close()
    assert version["gitVersion"] == "v1.36.3"
    assert [item["metadata"]["name"] for item in listed["items"]] == ["tpu-maintenance", "watch-amd"]
    assert "prefers-large" in [item["metadata"]["name"] for item in claims["items"]]


async def test_only_changes_are_written(state: ClusterState) -> None:
    written = _Written()
    follower = Follower(written, state)  # type: ignore[arg-type]  # the two methods it uses
    await follower.show(40.0)
    first = len(written.changes)
    await follower.show(40.01)
    assert (first, len(written.changes) - first) == (len(state.objects(40.0)), 0)
    await follower.show(44.0)
    assert 0 < len(written.changes) - first < 30


class _Written:
    def __init__(self) -> None:
        self.changes: list[str] = []

    async def put(self, kind: Any, obj: Any) -> None:
        self.changes.append(f"put {kind.plural} {obj['metadata']['name']}")
        await asyncio.sleep(0)

    async def delete(self, kind: Any, name: str, namespace: str) -> None:
        self.changes.append(f"delete {kind.plural} {namespace}/{name}")
        await asyncio.sleep(0)


# --- load ---


def claim_states(claims: list[Object], pods: Mapping[str, Object]) -> Counter[str]:
    found: Counter[str] = Counter()
    for claim in claims:
        reserved = claim["status"].get("reservedFor")
        if "allocation" not in claim["status"]:
            found["pending"] += 1
        elif not reserved:
            found["allocated"] += 1
        else:
            pod = pods[reserved[0]["name"]]
            ready = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
            found[
                "running" if pod["status"]["phase"] == "Running"
                else "prepared" if ready.get("PodReadyToStartContainers") == "True" else "reserved"
            ] += 1
    return found


def test_a_generated_cluster_has_claims_in_every_state_and_gives_no_device_twice() -> None:
    made: dict[str, list[Object]] = {}
    for kind, obj in generate(2000, 250):
        made.setdefault(kind.plural, []).append(obj)
    assert {plural: len(found) for plural, found in made.items()} == {
        "deviceclasses": 3, "resourceclaimtemplates": 50, "nodes": 250, "resourceslices": 250, "resourceclaims": 2000,
        "pods": 1996,
    }
    pods = {pod["metadata"]["name"]: pod for pod in made["pods"]}
    assert claim_states(made["resourceclaims"], pods) == {
        "pending": 100, "allocated": 20, "reserved": 20, "prepared": 20, "running": 1840,
    }
    held = Counter(
        (result["pool"], result["device"])
        for claim in made["resourceclaims"]
        for result in claim["status"].get("allocation", {"devices": {"results": []}})["devices"]["results"]
    )
    assert max(held.values()) == 1
    for plural, found in made.items():
        for obj in found:
            msgspec.convert(obj, TYPES[plural])


def test_claims_that_find_no_device_left_wait() -> None:
    states = Counter(
        "allocation" in obj["status"] for kind, obj in generate(100, 2) if kind.plural == "resourceclaims"
    )
    assert states == {True: 16, False: 84}


def test_changes_come_as_many_as_asked_and_never_give_a_device_twice() -> None:
    claims = {
        obj["metadata"]["name"]: obj for kind, obj in generate(100, 20) if kind.plural == "resourceclaims"
    }
    changes = list(churn(100, 20, 1001))
    assert len(changes) == 1001
    for kind, obj in changes:
        if kind.plural != "resourceclaims":
            continue
        claims[obj["metadata"]["name"]] = obj
        held = Counter(
            (result["pool"], result["device"])
            for claim in claims.values()
            for result in claim["status"].get("allocation", {"devices": {"results": []}})["devices"]["results"]
        )
        assert max(held.values()) == 1


def test_churn_without_a_running_claim_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="none of the first 10 of 10 claims on 0 nodes runs: add nodes"):
        list(churn(10, 0, 1))
