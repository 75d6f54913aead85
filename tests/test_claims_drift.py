"""Drift: a node is compared with most devices of its model, and with nothing where there is no majority."""

from __future__ import annotations

import logging

import pytest

from claimscope.claims.drift import DevicesEntry, Drift, devices_annotation
from claimscope.kube.objects import ResourceSlice
from inventory_objects import a_cluster, a_device, a_lease, a_slice, values

FAMILY = "dra_node_drift_info"
H100 = "NVIDIA H100 80GB HBM3"


def published(node: str, version: str, count: int = 8, *, kind: str = "gpu", model: str = H100) -> ResourceSlice:
    attributes = {"productName": model, "type": kind}
    return a_slice(
        [{**a_device(f"{kind}-{index}"), "attributes": {
            **{name: {"string": text} for name, text in attributes.items()}, "driverVersion": {"version": version},
        }} for index in range(count)],
        pool=node,
    )


def test_the_annotation_is_the_same_for_the_same_devices() -> None:
    a = DevicesEntry(model="A", count=7, driver_version="580.1")
    b = DevicesEntry(model="A", power_limit_watts=700.0, mig_mode="disabled")
    assert devices_annotation([a, b]) == devices_annotation([b, a])
    assert devices_annotation([a]) == '[{"model":"A","count":7,"driver_version":"580.1"}]'
    assert devices_annotation([]) == "[]"


def test_slices_tell_of_drivers() -> None:
    cluster = a_cluster(
        resourceslices=[published("n1", "580.1.2"), published("n2", "580.1.2"), published("n3", "570.0.1"),
                        published("n4", "550.0.1", model="NVIDIA L40S"), published("n5", "1.0.0", 56, kind="mig")]
    )
    assert values(Drift().samples(cluster), FAMILY) == {("n3", H100, "driver_version", "570.0.1", "580.1.2"): 1}


def test_without_a_majority_nobody_drifts() -> None:
    cluster = a_cluster(resourceslices=[published("n1", "580.1.2"), published("n2", "570.0.1")])
    assert Drift().samples(cluster) == []


def lease(node: str, *entries: DevicesEntry) -> object:
    return a_lease(node, devices_annotation(entries))


def test_agents_tell_of_everything_else_even_within_one_node() -> None:
    usual = DevicesEntry(model=H100, count=8, driver_version="580.1", vbios_version="96.1", mig_mode="disabled",
                         ecc_mode="enabled", power_limit_watts=700.0)
    cluster = a_cluster(
        leases=[
            lease("n1", usual), lease("n2", usual),
            lease("n3", DevicesEntry(model=H100, count=7, driver_version="580.1", vbios_version="96.1",
                                     mig_mode="disabled", ecc_mode="enabled", power_limit_watts=700),
                  DevicesEntry(model=H100, count=1, driver_version="580.1", vbios_version="95.0",
                               mig_mode="enabled", ecc_mode="disabled", power_limit_watts=450.5)),
        ]
    )
    assert sorted(values(Drift().samples(cluster), FAMILY)) == [
        ("n3", H100, "ecc_mode", "disabled", "enabled"),
        ("n3", H100, "mig_mode", "enabled", "disabled"),
        ("n3", H100, "power_limit_watts", "450.5", "700"),
        ("n3", H100, "vbios_version", "95.0", "96.1"),
    ]


def test_the_agent_is_believed_before_the_slice_and_versions_are_read_alike() -> None:
    cluster = a_cluster(
        resourceslices=[published("n1", "550.163.1"), published("n2", "550.163.1"), published("n3", "550.163.1")],
        leases=[lease("n1", DevicesEntry(model=H100, count=8, driver_version="550.163.01")),
                lease("n3", DevicesEntry(model=H100, count=8, driver_version="570.1"))],
    )
    assert values(Drift().samples(cluster), FAMILY) == {("n3", H100, "driver_version", "570.1", "550.163.1"): 1}


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"count": 3}]', '[{"model": "A", "count": "x"}]', "[{"])
def test_an_annotation_that_cannot_be_read_is_said_once_and_skipped(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, drift = a_cluster(leases=[a_lease("n1", text)]), Drift()
    with caplog.at_level(logging.WARNING, "claimscope.claims.drift"):
        assert (drift.samples(cluster), drift.samples(cluster)) == ([], [])
    assert len(caplog.records) == 1
    assert "lease claimscope/n1" in caplog.text


def test_unknown_fields_and_numbers_below_zero_do_no_harm() -> None:
    cluster = a_cluster(
        leases=[a_lease("n1", '[{"model": "A", "count": -2, "driver_version": "1", "later": [1]}]')]
    )
    assert Drift().samples(cluster) == []


def test_nodes_that_go_are_forgotten() -> None:
    drift = Drift()
    cluster = a_cluster(
        resourceslices=[published("n1", "1.0.0"), published("n2", "1.0.0"), published("n3", "2.0.0")]
    )
    assert len(drift.samples(cluster)) == 1
    cluster.apply("resourceslices", published("n3", "2.0.0"), False)
    cluster.tick(0.0)
    cluster.tick(600.0)
    assert drift.samples(cluster) == []
