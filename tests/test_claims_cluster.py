"""The mirror of the cluster: whatever way the news came, the indexes are those of the objects that stand."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from claimscope.claims.cluster import Change, Cluster, PodClaim, claims_of, rule_selects
from claimscope.claims.model import DeviceKey, Holding, Key, PoolKey, StandingTaint, Version
from claimscope.kube.nodeselector import node_matches
from claimscope.kube.objects import (
    DeviceTaintRule,
    Event,
    Node,
    NodeSelector,
    Pod,
    ResourceClaim,
    ResourceSlice,
)
from recorded_cluster import KINDS, Arrival, arrivals, lists


def make(kind: type[Any], **document: Any) -> Any:
    return msgspec.convert(document, kind)


def a_slice(name: str, *devices: str, generation: int = 1, count: int = 1) -> ResourceSlice:
    spec = {
        "driver": "gpu.example.com",
        "nodeName": "n1",
        "pool": {"name": "p", "generation": generation, "resourceSliceCount": count},
        "devices": [{"name": device} for device in devices],
    }
    made: ResourceSlice = make(ResourceSlice, metadata={"name": name}, spec=spec)
    return made


def a_claim(uid: str, device: str | None) -> ResourceClaim:
    result = {"request": "gpu", "driver": "gpu.example.com", "pool": "p", "device": device}
    allocation = None if device is None else {"devices": {"results": [result]}}
    made: ResourceClaim = make(
        ResourceClaim, metadata={"namespace": "a", "name": "c", "uid": uid}, status={"allocation": allocation}
    )
    return made


def a_rule(name: str, **spec: Any) -> DeviceTaintRule:
    taint = {"key": "example.com/sick", "effect": "NoSchedule"}
    made: DeviceTaintRule = make(DeviceTaintRule, metadata={"name": name}, spec={"taint": taint, **spec})
    return made


P, DEVICE = PoolKey("gpu.example.com", "p"), DeviceKey("gpu.example.com", "p", "gpu-0")


def test_only_the_newest_generation_of_a_pool_counts() -> None:
    cluster = Cluster()
    cluster.sync("resourceslices", [a_slice("new", "gpu-0", generation=2, count=2), a_slice("old", "gpu-0", "gpu-1")])
    pool = cluster.pools[P]
    assert (pool.generation, pool.slices_seen, pool.slices_expected, pool.complete) == (2, 1, 2, False)
    assert [device.key for device in pool.devices] == [DEVICE]
    cluster.apply("resourceslices", a_slice("new-2", "gpu-1", generation=2, count=2), True)
    assert cluster.pools[P].complete
    assert set(cluster.devices) == {DEVICE, DeviceKey("gpu.example.com", "p", "gpu-1")}


def test_two_devices_of_one_name_make_a_pool_unusable() -> None:
    cluster = Cluster()
    cluster.sync("resourceslices", [a_slice("a", "gpu-0", count=2), a_slice("b", "gpu-0", count=2)])
    assert cluster.pools[P].problem == "two slices of pool p publish a device named gpu-0"


def test_while_a_pool_is_rewritten_its_devices_are_those_of_before() -> None:
    cluster = Cluster()
    cluster.apply("resourceslices", a_slice("a", "gpu-0", "gpu-1"), True)
    cluster.apply("resourceslices", a_slice("b", "gpu-1", generation=2, count=2), True)
    pool = cluster.pools[P]
    assert (pool.generation, pool.complete, pool.published) == (2, False, True)
    assert [device.key.device for device in pool.devices] == ["gpu-0", "gpu-1"]
    cluster.apply("resourceslices", a_slice("a", "gpu-2", generation=2, count=2), True)
    assert cluster.pools[P].complete
    assert {device.device for device in cluster.devices} == {"gpu-1", "gpu-2"}


def test_a_pool_outlives_its_slices_by_ten_minutes() -> None:
    cluster = Cluster()
    cluster.sync("resourceslices", [a_slice("a", "gpu-0")])
    cluster.apply("resourceslices", a_slice("a", "gpu-0"), False)
    pool = cluster.pools[P]
    assert (pool.published, pool.complete, list(cluster.devices)) == (False, False, [DEVICE])
    assert [cluster.tick(wall) for wall in (1000.0, 1599.0, 1600.0, 1601.0)] == [False, False, True, False]
    assert (cluster.pools, cluster.devices) == ({}, {})


def test_a_pool_that_is_back_begins_anew() -> None:
    cluster = Cluster()
    for wall in (0.0, 500.0):
        cluster.sync("resourceslices", [a_slice("a", "gpu-0")])
        assert cluster.pools[P].complete
        cluster.sync("resourceslices", [])
        cluster.tick(wall)
    cluster.tick(1099.0)
    assert P in cluster.pools
    cluster.tick(1100.0)
    assert P not in cluster.pools


def test_a_pool_goes_with_its_node() -> None:
    cluster = Cluster()
    node: Node = make(Node, metadata={"name": "n1"})
    cluster.sync("nodes", [node])
    cluster.sync("resourceslices", [a_slice("a", "gpu-0")])
    cluster.sync("resourceslices", [])
    assert not cluster.tick(1000.0)
    cluster.apply("nodes", node, False)
    assert cluster.tick(1005.0)
    assert cluster.pools == {}


def test_what_a_list_holds_and_nobody_can_decode_is_not_gone() -> None:
    cluster = Cluster()
    first = a_claim("1", "gpu-0")
    cluster.sync("resourceclaims", [first])
    assert cluster.sync("resourceclaims", [], frozenset({"a/c"})) == []
    assert cluster.claims == {Key("a", "c"): first}
    rule = a_rule("r")
    cluster.sync("devicetaintrules", [rule, a_rule("gone")])
    cluster.sync("devicetaintrules", [], frozenset({"/r"}))
    assert cluster.rules == {"r": rule}


def test_a_list_in_parts_is_read_with_its_last() -> None:
    cluster = Cluster()
    nodes = [make(Node, metadata={"name": f"n{number}"}) for number in range(5)]
    found = [
        (len(changes), "nodes" in cluster.synced) for changes in cluster.sync_parts("nodes", nodes, at_once=2)
    ]
    assert found == [(2, False), (2, False), (1, True)]
    assert [len(changes) for changes in cluster.sync_parts("nodes", nodes[:1], at_once=2)] == [2, 2, 1]
    assert list(cluster.nodes) == ["n0"]
    assert list(cluster.sync_parts("pods", [])) == [[]]
    assert cluster.synced == {"nodes", "pods"}


def an_event(pod: str, minute: int) -> Event:
    stamp = f"2026-01-01T00:{minute:02d}:00Z"
    made: Event = make(
        Event, metadata={"namespace": "a", "name": f"{pod}.1"}, reason="R", lastTimestamp=stamp,
        involvedObject={"kind": "Pod", "namespace": "a", "name": pod, "uid": pod},
    )
    return made


def test_events_of_pods_that_never_come_are_forgotten_after_an_hour() -> None:
    cluster = Cluster()
    pod: Pod = make(Pod, metadata={"namespace": "a", "name": "here", "uid": "here"})
    cluster.apply("pods", pod, True)
    for name, minute in (("here", 0), ("old", 0), ("new", 30)):
        cluster.apply("events/R", an_event(name, minute), True)
    begin = 1767225600.0
    cluster.tick(begin + 3599)
    assert cluster.counts()["events/R"] == 3
    cluster.tick(begin + 3661)
    assert cluster.counts()["events/R"] == 2
    assert cluster.event(pod, "R") is not None
    cluster.tick(begin + 3 * 3600)
    assert cluster.counts()["events/R"] == 1


def test_version_attributes_stay_apart_from_strings() -> None:
    (recorded,) = lists()["resourceslices"]
    cluster = Cluster()
    cluster.sync("resourceslices", [recorded])
    device = cluster.devices[DeviceKey("gpu.nvidia.com", "gpu-node-1", "gpu-4")]
    assert device.attribute("driverVersion") == Version("550.163.1")
    assert type(device.attribute("driverVersion")) is Version
    assert type(device.attribute("architecture")) is str


def test_a_claim_made_again_under_its_name_is_two_changes() -> None:
    cluster = Cluster()
    first, second = a_claim("1", "gpu-0"), a_claim("2", None)
    cluster.sync("resourceclaims", [first])
    assert cluster.sync("resourceclaims", [second]) == [
        Change(kind="resourceclaims", before=first, after=None, listed=True),
        Change(kind="resourceclaims", before=None, after=second, listed=True),
    ]
    assert cluster.holdings(DEVICE) == ()
    assert cluster.apply("resourceclaims", first, False) == []  # the end of the first one, told late
    assert cluster.claims == {Key("a", "c"): second}


def test_a_deletion_brings_the_last_state_along() -> None:
    cluster = Cluster()
    cluster.sync("resourceclaims", [a_claim("1", None)])
    final: ResourceClaim = make(ResourceClaim, metadata={"namespace": "a", "name": "c", "uid": "1",
                                                         "resourceVersion": "9"})
    assert cluster.apply("resourceclaims", final, False) == [
        Change(kind="resourceclaims", before=final, after=None)
    ]


def test_holdings_follow_the_allocation() -> None:
    cluster = Cluster()
    cluster.apply("resourceclaims", a_claim("1", "gpu-0"), True)
    assert cluster.holdings(DEVICE) == (
        Holding(claim=Key("a", "c"), claim_uid="1", request="gpu", device=DEVICE),
    )
    cluster.apply("resourceclaims", a_claim("1", None), True)
    assert dict(cluster.held_devices()) == {}


def test_rules_taint_what_slices_do_not_show() -> None:
    cluster = Cluster()
    cluster.sync("resourceslices", [a_slice("a", "gpu-0")])
    exact = a_rule("exact", deviceSelector={"driver": "gpu.example.com", "pool": "p", "device": "gpu-0"})
    cluster.sync("devicetaintrules", [exact, a_rule("other", deviceSelector={"driver": "gpu.other.com"})])
    assert cluster.taints(DEVICE) == (
        StandingTaint(device=DEVICE, key="example.com/sick", value="", effect="NoSchedule", rule="exact"),
    )
    cluster.apply("devicetaintrules", exact, False)
    assert cluster.taints(DEVICE) == ()


def test_an_empty_or_absent_selector_taints_everything() -> None:
    assert rule_selects(a_rule("empty", deviceSelector={}), DEVICE)
    assert rule_selects(a_rule("absent"), DEVICE)


def test_an_unknown_effect_is_none() -> None:
    cluster = Cluster()
    taint = {"key": "k", "effect": "NoWhatever"}
    rule: DeviceTaintRule = make(DeviceTaintRule, metadata={"name": "r"}, spec={"taint": taint, "deviceSelector": {}})
    cluster.apply("devicetaintrules", rule, True)
    (standing,) = cluster.taints(DEVICE)
    assert (standing.effect, standing.blocks) == ("None", False)


def test_claims_of_a_pod() -> None:
    pod: Pod = make(
        Pod,
        metadata={"namespace": "a", "name": "p"},
        spec={
            "resourceClaims": [
                {"name": "named", "resourceClaimName": "c"},
                {"name": "made", "resourceClaimTemplateName": "t"},
                {"name": "waiting", "resourceClaimTemplateName": "t"},
                {"name": "none", "resourceClaimTemplateName": "t"},
            ]
        },
        status={
            "resourceClaimStatuses": [{"name": "made", "resourceClaimName": "p-made-x"}, {"name": "none"}],
            "extendedResourceClaimStatus": {"resourceClaimName": "p-extended"},
        },
    )
    assert claims_of(pod) == (
        PodClaim(pod_claim="named", claim="c"),
        PodClaim(pod_claim="made", claim="p-made-x", template="t"),
        PodClaim(pod_claim="waiting", claim=None, template="t"),
        PodClaim(pod_claim="none", claim=None, template="t", needless=True),
        PodClaim(pod_claim="", claim="p-extended", extended=True),
    )


def test_node_selectors() -> None:
    node: Node = make(Node, metadata={"name": "n1", "labels": {"zone": "a", "gpus": "8"}})

    def holds(*terms: dict[str, Any]) -> bool:
        selector: NodeSelector = make(NodeSelector, nodeSelectorTerms=list(terms))
        return node_matches(selector, node)

    def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
        return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}

    assert holds(expression("zone", "In", "a", "b"))
    assert not holds(expression("zone", "NotIn", "a"))
    assert holds(expression("rack", "DoesNotExist"))
    assert holds(expression("gpus", "Gt", "4"))
    assert not holds(expression("gpus", "Gt", "many"))
    assert holds({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]})
    assert holds(expression("zone", "In", "z"), expression("zone", "Exists"))
    assert not holds({})  # an empty term selects nothing


def _state(cluster: Cluster) -> object:
    """Everything readable, free of order."""
    devices = set(cluster.devices) | set(cluster.held_devices())
    return (
        cluster.claims,
        cluster.pods,
        cluster.rules,
        cluster.pools,
        {device: set(map(repr, cluster.holdings(device))) for device in devices},
        {device: cluster.taints(device) for device in devices},
        {claim: [pod.metadata.name for pod in cluster.pods_of(claim)] for claim in cluster.claims},
        {
            (pod.metadata.name, kind): cluster.event(pod, kind.removeprefix("events/"))
            for pod in cluster.pods.values()
            for kind in KINDS
            if kind.startswith("events/")
        },
    )


def _replay(stream: list[Arrival]) -> Cluster:
    cluster = Cluster()
    for kind, objects in lists().items():
        cluster.sync(kind, objects)
    for arrival in stream:
        cluster.apply(arrival.kind, arrival.obj, arrival.present)
    return cluster


@settings(max_examples=40)
@given(st.data())
def test_any_order_across_kinds_any_repetition_and_any_relist_end_alike(data: st.DataObject) -> None:
    by_kind: dict[str, list[Arrival]] = {}
    for arrival in arrivals():
        by_kind.setdefault(arrival.kind, []).append(arrival)
    cluster = Cluster()
    for kind, objects in lists().items():
        cluster.sync(kind, objects)
    heads = dict.fromkeys(by_kind, 0)
    while heads:
        kind = data.draw(st.sampled_from(sorted(heads)))
        run = data.draw(st.integers(1, 40))
        for arrival in by_kind[kind][heads[kind] : heads[kind] + run]:
            cluster.apply(kind, arrival.obj, arrival.present)
        heads[kind] += run
        if data.draw(st.integers(0, 3)) == 0:  # what is known is listed again
            tables: dict[str, dict[Any, Any]] = {
                "resourceclaims": cluster.claims, "pods": cluster.pods, "devicetaintrules": cluster.rules
            }
            if kind in tables:
                cluster.sync(kind, list(tables[kind].values()))
        if heads[kind] >= len(by_kind[kind]):
            del heads[kind]
    assert _state(cluster) == _state(_replay(list(arrivals())))
