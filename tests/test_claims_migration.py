"""Migration: pods and accelerators by how they ask, nodes by how they hand out."""

from __future__ import annotations

from claimscope.claims.cluster import Cluster
from claimscope.claims.migration import Migration
from inventory_objects import a_claim, a_class, a_cluster, a_device, a_node, a_pod, a_result, a_slice, values
from recorded_cluster import lists, until

PODS, DEVICES = "dra_migration_pods", "dra_migration_devices"
MODE, TWICE = "dra_node_mode_info", "dra_node_devices_advertised_twice"
CLAIM, PLUGIN, EXTENDED = ("a", "claim"), ("a", "device_plugin"), ("a", "extended_resource")


def limits(**resources: str) -> list[dict[str, object]]:
    named = {name.replace("__", "/").replace("_", "."): text for name, text in resources.items()}
    return [{"name": "main", "resources": {"limits": named}}]


def by_claim(*names: str) -> list[dict[str, str]]:
    return [{"name": f"p{index}", "resourceClaimName": name} for index, name in enumerate(names)]


def test_pods_by_how_they_ask() -> None:
    cluster = a_cluster(
        pods=[
            a_pod("plugin", containers=limits(nvidia_com__gpu="2")),
            a_pod("extended", containers=limits(nvidia_com__gpu="1"),
                  status={"extendedResourceClaimStatus": {"resourceClaimName": "made"}}),
            a_pod("claim", resourceClaims=by_claim("two")),
            a_pod("both", resourceClaims=by_claim("one"), containers=limits(nvidia_com__gpu="4")),
            a_pod("done", phase="Succeeded", containers=limits(nvidia_com__gpu="8")),
        ],
        resourceclaims=[
            a_claim("made", a_result("gpu-0")), a_claim("one", a_result("gpu-1")),
            a_claim("two", a_result("gpu-2"), a_result("gpu-3"), a_result("gpu-4", adminAccess=True)),
        ],
    )
    samples = Migration().samples(cluster)
    assert values(samples, PODS) == {CLAIM: 2, PLUGIN: 2, EXTENDED: 1}
    assert values(samples, DEVICES) == {CLAIM: 3, PLUGIN: 6, EXTENDED: 1}


def test_words_that_a_class_serves_are_told_apart_by_who_offers_them() -> None:
    asks = limits(example_com__gpu="2")
    cluster = a_cluster(
        deviceclasses=[a_class("gpu", resource="example.com/gpu")],
        nodes=[a_node("plugin", example_com__gpu="8"), a_node("dra", example_com__gpu="0")],
        pods=[a_pod("on-plugin", containers=asks, nodeName="plugin"), a_pod("on-dra", containers=asks, nodeName="dra"),
              a_pod("waits", containers=asks, phase="Pending")],
    )
    migration = Migration()
    samples = migration.samples(cluster)
    assert (values(samples, PODS), values(samples, DEVICES)) == ({PLUGIN: 2, EXTENDED: 1}, {PLUGIN: 4, EXTENDED: 2})
    assert values(samples, MODE) == {("plugin", "device_plugin"): 1, ("dra", "none"): 1}
    cluster.apply("nodes", a_node("plugin"), True)
    assert values(migration.samples(cluster), PODS) == {EXTENDED: 3}
    cluster.apply("deviceclasses", a_class("gpu"), True)
    assert migration.samples(cluster) == []  # nothing says any more that these are accelerators


def test_the_words_of_a_class_itself_are_always_dra() -> None:
    cluster = a_cluster(
        nodes=[a_node("n1", nvidia_com__gpu="8")],
        pods=[a_pod("p", nodeName="n1", containers=[{"name": "main", "resources": {"limits": {
            "deviceclass.resource.kubernetes.io/gpu": "2", "nvidia.com/gpu": "1", "rdma/hca": "1",
        }}}])],
    )
    samples = Migration().samples(cluster)
    assert (values(samples, PODS), values(samples, DEVICES)) == ({PLUGIN: 1, EXTENDED: 1}, {PLUGIN: 1, EXTENDED: 2})


def test_a_claim_that_pods_share_counts_once() -> None:
    cluster = a_cluster(
        pods=[a_pod("p", resourceClaims=by_claim("c")), a_pod("q", resourceClaims=by_claim("c"))],
        resourceclaims=[a_claim("c", a_result("gpu-0"))],
    )
    samples = Migration().samples(cluster)
    assert (values(samples, PODS), values(samples, DEVICES)) == ({CLAIM: 2}, {CLAIM: 1})


def test_claims_that_hold_nothing_count_what_they_ask_for() -> None:
    requests = [
        {"name": "r", "exactly": {"deviceClassName": "gpu", "count": 3}},
        {"name": "s", "firstAvailable": [{"name": "x", "deviceClassName": "gpu", "count": 2}]},
        {"name": "t", "exactly": {"deviceClassName": "gpu", "allocationMode": "All"}},
        {"name": "u", "exactly": {"deviceClassName": "gpu", "adminAccess": True}},
    ]
    cluster = a_cluster(
        pods=[a_pod("p", phase="Pending", resourceClaims=by_claim("c", "missing"))],
        resourceclaims=[a_claim("c", requests=requests)],
    )
    assert values(Migration().samples(cluster), DEVICES) == {CLAIM: 5}


def test_nodes_by_mode_and_what_they_offer_twice() -> None:
    gpus = [a_device(f"gpu-{index}", {"type": "gpu"}) for index in range(8)]
    migs = [a_device(f"mig-{index}", {"type": "mig"}) for index in range(3)]
    cluster = a_cluster(
        nodes=[
            a_node("plugin", nvidia_com__gpu="8"),
            a_node("dra", cpu="4"),
            a_node("both", nvidia_com__gpu="4", **{"nvidia_com__mig-1g_5gb": "7"}),
            a_node("other-vendor", amd_com__gpu="2"),
            a_node("unused", nvidia_com__gpu="0"),
            a_node("labelled", {"nvidia.com/gpu.present": "true"}, cpu="4"),
            a_node("plain", cpu="4"),
            a_node("fabric", cpu="4"),
        ],
        resourceslices=[
            a_slice(gpus, driver="gpu.nvidia.com", pool="dra"),
            a_slice([*gpus, *migs], driver="gpu.nvidia.com", pool="both"),
            a_slice(gpus, driver="gpu.nvidia.com", pool="other-vendor"),
            a_slice([a_device("channel-0")], driver="compute-domain.nvidia.com", pool="fabric"),
            a_slice(gpus, driver="gpu.nvidia.com", pool="anywhere", allNodes=True),
        ],
    )
    samples = Migration().samples(cluster)
    assert sorted(values(samples, MODE)) == [
        ("both", "both"), ("dra", "dra"), ("labelled", "none"), ("other-vendor", "both"), ("plugin", "device_plugin"),
        ("unused", "none"),
    ]
    assert values(samples, TWICE) == {("both", "nvidia.com/gpu"): 4, ("both", "nvidia.com/mig-1g.5gb"): 3}


def test_what_was_read_is_read_anew_when_it_changes() -> None:
    cluster, migration = Cluster(), Migration()
    pod, claim = a_pod("p", resourceClaims=by_claim("c")), a_claim("c", a_result("gpu-0"), a_result("gpu-1"))
    cluster.sync("pods", [pod])
    cluster.sync("resourceclaims", [a_claim("c")])
    assert values(migration.samples(cluster), DEVICES) == {CLAIM: 1}
    cluster.apply("resourceclaims", claim, True)
    assert values(migration.samples(cluster), DEVICES) == {CLAIM: 2}
    cluster.apply("pods", pod, False)
    assert migration.samples(cluster) == []


def test_the_recorded_cluster() -> None:
    cluster = Cluster()
    for kind, objects in lists().items():
        cluster.sync(kind, objects)
    for arrival in until(3.0):
        cluster.apply(arrival.kind, arrival.obj, arrival.present)
    samples = Migration().samples(cluster)
    assert values(samples, PODS) == {
        ("ai-production", "claim"): 1, ("ml-team", "claim"): 3, ("ml-team", "extended_resource"): 1,
    }
    assert values(samples, DEVICES) == {
        ("ai-production", "claim"): 1, ("ml-team", "claim"): 3, ("ml-team", "extended_resource"): 1,
    }
    assert values(samples, MODE) == {("gpu-node-1", "dra"): 1}
    assert values(samples, TWICE) == {}
