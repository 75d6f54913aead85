"""Quotas: one series per class however many keys limit it."""

from __future__ import annotations

from claimscope.claims.cluster import Cluster
from claimscope.claims.quota import class_of_resource, quota_samples
from inventory_objects import a_class, a_cluster, a_quota, values
from recorded_cluster import lists, until

DEVICES, CLAIMS = "dra_quota_devices", "dra_quota_claims"


def test_devices_of_a_class_and_claims() -> None:
    quota = a_quota(
        "q",
        {"gpu.example.com.deviceclass.resource.k8s.io/devices": "4", "count/resourceclaims.resource.k8s.io": "1k",
         "requests.cpu": "10"},
        {"gpu.example.com.deviceclass.resource.k8s.io/devices": "3", "count/resourceclaims.resource.k8s.io": "7",
         "requests.cpu": "1"},
    )
    samples = quota_samples(a_cluster(resourcequotas=[quota]))
    assert values(samples, DEVICES) == {
        ("a", "q", "gpu.example.com", "hard"): 4, ("a", "q", "gpu.example.com", "used"): 3,
    }
    assert values(samples, CLAIMS) == {("a", "q", "hard"): 1000, ("a", "q", "used"): 7}


def test_a_quota_that_is_not_counted_yet_has_only_its_limit() -> None:
    quota = a_quota("q", {"gpu.deviceclass.resource.k8s.io/devices": "4"})
    assert values(quota_samples(a_cluster(resourcequotas=[quota])), DEVICES) == {("a", "q", "gpu", "hard"): 4}


def test_of_several_keys_for_a_class_the_one_that_binds_is_shown() -> None:
    hard = {
        "gpu.deviceclass.resource.k8s.io/devices": "8",
        "requests.deviceclass.resource.kubernetes.io/gpu": "6",
        "requests.example.com/gpu": "9",
    }
    used = {
        "gpu.deviceclass.resource.k8s.io/devices": "2",
        "requests.deviceclass.resource.kubernetes.io/gpu": "2",
        "requests.example.com/gpu": "7",  # pods of the device plugin count here as well
    }
    cluster = a_cluster(
        deviceclasses=[a_class("gpu", resource="example.com/gpu")], resourcequotas=[a_quota("q", hard, used)]
    )
    assert values(quota_samples(cluster), DEVICES) == {("a", "q", "gpu", "hard"): 9, ("a", "q", "gpu", "used"): 7}


def test_extended_resources_without_a_class_and_nonsense_are_left_out() -> None:
    hard = {"requests.example.com/gpu": "9", "x.deviceclass.resource.k8s.io/devices": "many"}
    assert quota_samples(a_cluster(resourcequotas=[a_quota("q", hard)])) == []


def test_the_newest_class_serves_an_extended_resource() -> None:
    cluster = a_cluster(
        deviceclasses=[
            a_class("old", resource="example.com/gpu", created="2026-01-01T00:00:00Z"),
            a_class("new-b", resource="example.com/gpu", created="2026-02-01T00:00:00Z"),
            a_class("new-a", resource="example.com/gpu", created="2026-02-01T00:00:00Z"),
        ]
    )
    assert class_of_resource(cluster) == {"example.com/gpu": "new-a"}


def test_the_recorded_quota() -> None:
    cluster = Cluster()
    for kind, objects in lists().items():
        cluster.sync(kind, objects)
    for arrival in until(13.0):
        cluster.apply(arrival.kind, arrival.obj, arrival.present)
    samples = quota_samples(cluster)
    assert sorted(values(samples, DEVICES).values()) == [1, 1]
    assert sorted(values(samples, CLAIMS).values()) == [1, 5]
