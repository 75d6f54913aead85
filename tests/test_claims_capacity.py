"""Capacity: every device in one state, counters and shares as they stand, and the largest claim that would fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from claimscope.claims.capacity import Capacity, says_unwell
from claimscope.claims.cluster import Cluster
from claimscope.claims.fitting import Stage, allocate
from claimscope.claims.model import DeviceFacts
from claimscope.claims.selectors import Match, Selectors, Verdict
from inventory_objects import a_claim, a_class, a_cluster, a_device, a_node, a_result, a_rule, a_slice, values
from recorded_cluster import lists, until

D = "gpu.example.com"
GPU = a_class("gpu", 'device.driver == "gpu.example.com"')
EVERY = a_class("every")


class Counting:
    """Selectors that know nothing until they are told to, and count the questions."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.asked = 0

    def matches_all(self, expressions: Iterable[str], device: DeviceFacts) -> Match:
        self.asked += 1
        return Match(self.verdict)


def states(cluster: Cluster, deviceclass: str = "gpu", pool: str = "n1") -> dict[str, float]:
    found = values(Capacity().samples(cluster, Selectors.in_process()), "dra_pool_devices")
    return {state: number for (_, at, name, state), number in found.items() if (at, name) == (pool, deviceclass)}


def largest(cluster: Cluster) -> dict[tuple[str, ...], float]:
    return values(Capacity().samples(cluster, Selectors.in_process()), "dra_class_largest_claim_devices")


def gpus(count: int, **more: Any) -> list[dict[str, Any]]:
    return [a_device(f"gpu-{index}", **more) for index in range(count)]


def test_each_state_and_what_comes_first() -> None:
    sick: dict[str, Any] = {"taints": [{"key": "gpu.nvidia.com/xid", "value": "79", "effect": "NoSchedule"}]}
    cordoned: dict[str, Any] = {"taints": [{"key": "example.com/cordon", "effect": "NoExecute"}]}
    watched: dict[str, Any] = {"taints": [{"key": "claimscope.io/degraded", "effect": "None"}]}
    devices = [
        a_device("held-and-sick", **sick), a_device("sick", **sick), a_device("cordoned", **cordoned),
        a_device("watched", **watched), a_device("observed"), a_device("ruled"),
    ]
    cluster = a_cluster(
        deviceclasses=[GPU],
        resourceslices=[a_slice(devices)],
        resourceclaims=[
            a_claim("c", a_result("held-and-sick")), a_claim("observer", a_result("observed", adminAccess=True)),
        ],
        devicetaintrules=[a_rule("r", {"device": "ruled"}, key="claimscope.io/lost")],
    )
    assert states(cluster) == {"allocated": 1, "unhealthy": 2, "tainted": 1, "free": 2}


def test_devices_of_no_class_stand_under_an_empty_one() -> None:
    never = a_class("never", 'device.driver == "other.example.com"')
    wrong = a_class("wrong", 'device.attributes["gpu.example.com"].absent == "x"')
    cluster = a_cluster(deviceclasses=[never, wrong], resourceslices=[a_slice(gpus(2))])
    found = values(Capacity().samples(cluster, Selectors.in_process()), "dra_pool_devices")
    assert found == {(D, "n1", "", "allocated"): 0, (D, "n1", "", "free"): 2}


def test_nobody_gets_a_device_of_an_incomplete_pool() -> None:
    cluster = a_cluster(deviceclasses=[GPU], resourceslices=[a_slice(gpus(2), count=2)])
    samples = Capacity().samples(cluster, Selectors.in_process())
    assert states(cluster) == {"allocated": 0, "reserved": 2, "free": 0}
    assert values(samples, "dra_pool_complete") == {(D, "n1"): 0}
    assert largest(cluster) == {("gpu",): 0}


def test_a_wipe_and_a_rewrite_leave_what_is_held_where_it_was() -> None:
    cluster = a_cluster(
        deviceclasses=[GPU], resourceslices=[a_slice(gpus(2))], resourceclaims=[a_claim("c", a_result("gpu-0"))]
    )
    held = {"allocated": 1, "reserved": 1, "free": 0}
    cluster.apply("resourceslices", a_slice(gpus(2)), False)
    samples = Capacity().samples(cluster, Selectors.in_process())
    assert (states(cluster), largest(cluster)) == (held, {("gpu",): 0})
    assert values(samples, "dra_pool_published") == {(D, "n1"): 0}
    assert values(samples, "dra_pool_complete") == {(D, "n1"): 0}
    cluster.apply("resourceslices", a_slice(gpus(2)[1:], name="second", count=2, generation=2), True)
    samples = Capacity().samples(cluster, Selectors.in_process())
    assert (states(cluster), values(samples, "dra_pool_published")) == (held, {(D, "n1"): 1})
    cluster.apply("resourceslices", a_slice(gpus(1), name="first", count=2, generation=2), True)
    assert (states(cluster), largest(cluster)) == ({"allocated": 1, "free": 1}, {("gpu",): 1})


def test_words_of_taints_that_say_that_a_device_is_unwell() -> None:
    keys = (
        "gpu.nvidia.com/xid", "gpu.nvidia.com/gpu-lost", "gpu.intel.com/unhealthy", "gpu.amd.com/DeviceUnhealthy",
        "example.com/health", "claimscope.io/degraded", "example.com/ecc-error", "example.com/fault", "failed",
    )
    assert [key for key in keys if not says_unwell(key)] == []
    others = ("example.com/cordon", "example.com/default-off", "health.example.com/drain", "gpu.nvidia.com/unmonitored")
    assert [key for key in others if says_unwell(key)] == []


def partition(name: str, memory: str) -> dict[str, Any]:
    return a_device(name, consumesCounters=[{"counterSet": "gpu-0", "counters": {"memory": {"value": memory}}}])


PARTITIONS = [partition("whole", "80Gi"), partition("half-a", "40Gi"), partition("half-b", "40Gi"),
              partition("quarter", "20Gi")]
COUNTERS = [{"name": "gpu-0", "counters": {"memory": {"value": "80Gi"}}}]


def test_partitions_that_overlap_a_held_one_are_reserved() -> None:
    cluster = a_cluster(
        deviceclasses=[EVERY],
        resourceslices=[
            a_slice(PARTITIONS, count=2), a_slice((), name="counters", count=2, sharedCounters=COUNTERS),
        ],
        resourceclaims=[a_claim("c", a_result("half-a"))],
    )
    samples = Capacity().samples(cluster, Selectors.in_process())
    assert states(cluster, "every") == {"allocated": 1, "reserved": 1, "free": 2}
    assert values(samples, "dra_pool_shared_capacity") == {(D, "n1", "gpu-0", "memory"): 80 * 2**30}
    assert values(samples, "dra_pool_shared_capacity_consumed") == {(D, "n1", "gpu-0", "memory"): 40 * 2**30}
    assert largest(cluster) == {("every",): 1}  # the quarter, after which no half is left


EVERY_REQUEST = [{"name": "gpu", "exactly": {"deviceClassName": "every", "allocationMode": "ExactCount", "count": 1}}]


def shared(claims: list[Any], policy: dict[str, Any] | None) -> Cluster:
    memory = {"value": "80Gi", "requestPolicy": policy}
    device = a_device("gpu-0", allowMultipleAllocations=True, capacity={"memory": memory})
    return a_cluster(deviceclasses=[EVERY], resourceslices=[a_slice([device])], resourceclaims=claims)


def share(name: str, memory: str) -> Any:
    return a_claim(name, a_result("gpu-0", shareID=f"share-{name}", consumedCapacity={"memory": memory}))


def test_a_shared_device_is_free_while_the_smallest_share_fits() -> None:
    policy = {"default": "40Gi", "validRange": {"min": "10Gi"}}
    some = shared([share("a", "40Gi"), share("b", "30Gi")], policy)
    assert states(some, "every")["free"] == 1
    samples = Capacity().samples(some, Selectors.in_process())
    assert values(samples, "dra_device_shared_capacity") == {(D, "n1", "gpu-0", "memory"): 80 * 2**30}
    assert values(samples, "dra_device_shared_capacity_consumed") == {(D, "n1", "gpu-0", "memory"): 70 * 2**30}
    assert states(shared([share("a", "40Gi"), share("b", "35Gi")], policy), "every")["allocated"] == 1
    assert states(shared([share("a", "80Gi")], None), "every")["allocated"] == 1
    # Without a policy a claim that asks for no amount takes all there is, so that one share leaves none.
    assert states(shared([share("a", "1Gi")], None), "every") == {"allocated": 1, "free": 0}
    assert largest(shared([share("a", "1Gi")], None)) == {("every",): 0}
    assert states(shared([], None), "every") == {"allocated": 0, "free": 1}


def test_a_plain_claim_fits_where_a_device_is_free() -> None:
    for claims in ([], [share("a", "1Gi")]):
        cluster = shared(claims, None)
        found = allocate(cluster, Selectors.in_process(), [a_claim("w", requests=EVERY_REQUEST).spec], "n1")
        assert (found.stage is Stage.FITS) == (states(cluster, "every")["free"] == 1)


def test_the_largest_claim_is_that_of_the_best_node() -> None:
    cluster = a_cluster(
        deviceclasses=[GPU],
        resourceslices=[a_slice(gpus(2)), a_slice(gpus(8), pool="n2"), a_slice(gpus(5), pool="n3")],
        resourceclaims=[a_claim("c", *(a_result(f"gpu-{index}", pool="n2") for index in range(4)))],
    )
    assert largest(cluster) == {("gpu",): 5}


def test_devices_of_several_nodes_add_to_those_of_each() -> None:
    zone = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z"]}]}]}
    named = {
        "nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["host-1"]}]}
        ]
    }
    capacity, selectors = Capacity(), Selectors.in_process()
    cluster = a_cluster(
        deviceclasses=[GPU],
        nodes=[a_node("n1", {"kubernetes.io/hostname": "host-1"}), a_node("n2", {"zone": "z"})],
        resourceslices=[
            a_slice(gpus(2), pool="n1"), a_slice(gpus(1), pool="n2"),
            a_slice(gpus(3), pool="zone", nodeSelector=zone), a_slice(gpus(1), pool="all", allNodes=True),
            a_slice(gpus(1), pool="host", nodeSelector=named),
        ],
    )
    family = "dra_class_largest_claim_devices"
    assert values(capacity.samples(cluster, selectors), family) == {("gpu",): 5}  # n2: 1 + 3 + 1
    cluster.apply("nodes", a_node("n1", {"kubernetes.io/hostname": "host-1", "zone": "z"}), True)
    assert values(capacity.samples(cluster, selectors), family) == {("gpu",): 7}  # n1: 2 + 3 + 1 + 1


def test_no_claim_holds_more_than_32_devices() -> None:
    cluster = a_cluster(deviceclasses=[GPU], resourceslices=[a_slice(gpus(40))])
    assert largest(cluster) == {("gpu",): 32}


def test_only_what_changed_is_asked_again() -> None:
    capacity, selectors = Capacity(), Counting(Verdict.MATCH)
    cluster = a_cluster(
        deviceclasses=[GPU], resourceslices=[a_slice(gpus(8), pool=f"n{index}") for index in range(10)]
    )
    first = capacity.samples(cluster, selectors)
    assert selectors.asked == 80
    assert capacity.samples(cluster, selectors) == first
    cluster.apply("resourceclaims", a_claim("c", a_result("gpu-0", pool="n3")), True)
    changed = values(capacity.samples(cluster, selectors), "dra_pool_devices")
    assert selectors.asked == 80
    assert changed[D, "n3", "gpu", "allocated"] == 1
    cluster.apply("resourceslices", a_slice(gpus(8), pool="n3"), False)
    cluster.tick(0.0)
    cluster.tick(600.0)
    assert (D, "n3", "gpu", "free") not in values(capacity.samples(cluster, selectors), "dra_pool_devices")
    cluster.apply("deviceclasses", a_class("gpu", "true"), True)
    capacity.samples(cluster, selectors)
    assert selectors.asked == 80 + 72


def test_what_was_unknown_is_shown_as_soon_as_it_is_known() -> None:
    capacity, selectors = Capacity(), Counting(Verdict.UNKNOWN)
    cluster = a_cluster(
        deviceclasses=[GPU], resourceslices=[a_slice(gpus(1), pool=f"n{index}") for index in range(100)]
    )
    assert largest_of(capacity, cluster, selectors) == (0, {""})
    asked = selectors.asked
    assert largest_of(capacity, cluster, selectors) == (0, {""})
    assert selectors.asked - asked == 16  # a look, not a search through everything
    selectors.verdict = Verdict.MATCH
    assert largest_of(capacity, cluster, selectors) == (1, {"gpu"})


def test_counting_in_parts_comes_to_the_same() -> None:
    slices = [a_slice(gpus(2), pool=f"n{index}") for index in range(2500)]
    cluster = a_cluster(deviceclasses=[GPU], resourceslices=slices)
    capacity, selectors = Capacity(), Counting(Verdict.MATCH)
    assert sum(1 for _ in capacity.counting(cluster, selectors)) == 3
    cluster.apply("resourceclaims", a_claim("c", a_result("gpu-0", pool="n3")), True)
    samples = capacity.samples(cluster, selectors)
    assert selectors.asked == 5000
    fresh = a_cluster(
        deviceclasses=[GPU], resourceslices=slices, resourceclaims=[a_claim("c", a_result("gpu-0", pool="n3"))]
    )
    assert set(samples) == set(Capacity().samples(fresh, selectors))
    assert list(capacity.counting(cluster, selectors)) == []


def largest_of(capacity: Capacity, cluster: Cluster, selectors: Counting) -> tuple[float, set[str]]:
    samples = capacity.samples(cluster, selectors)
    classes = {name for _, _, name, _ in values(samples, "dra_pool_devices")}
    return values(samples, "dra_class_largest_claim_devices")["gpu",], classes


def test_the_recorded_node() -> None:
    cluster = Cluster()
    for kind, objects in lists().items():
        cluster.sync(kind, objects)
    for arrival in until(25.0):
        cluster.apply(arrival.kind, arrival.obj, arrival.present)
    samples = Capacity().samples(cluster, Selectors.in_process())
    node = ("gpu.nvidia.com", "gpu-node-1")
    assert values(samples, "dra_pool_devices") == {
        (*node, "gpu.nvidia.com", "allocated"): 6,
        (*node, "gpu.nvidia.com", "unhealthy"): 2,
        (*node, "gpu.nvidia.com", "free"): 0,
        (*node, "high-memory-gpu", "allocated"): 6,
        (*node, "high-memory-gpu", "unhealthy"): 2,
        (*node, "high-memory-gpu", "free"): 0,
    }
    assert values(samples, "dra_class_largest_claim_devices") == {
        ("gpu.nvidia.com",): 0, ("h200-only",): 0, ("high-memory-gpu",): 0,
    }


# --- every device is in one state, whatever happened before ---

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("slice"), st.integers(0, 2), st.integers(0, 4), st.booleans()),
        st.tuples(st.just("claim"), st.integers(0, 3), st.integers(0, 4), st.booleans()),
        st.tuples(st.just("rule"), st.integers(0, 2), st.integers(0, 4), st.booleans()),
        st.tuples(st.just("class"), st.integers(0, 1), st.integers(0, 2), st.booleans()),
    ),
    max_size=25,
)
_EFFECTS = ("None", "NoSchedule", "NoExecute", "", "Later")
_KEYS = ("claimscope.io/lost", "cordon", "example.com/x")
_CLASSES = ("true", 'device.attributes["gpu.example.com"].even', 'device.driver == "other"')


def _do(cluster: Cluster, step: tuple[str, int, int, bool]) -> None:
    what, first, second, present = step
    match what:
        case "slice":
            devices = [
                a_device(f"gpu-{index}", {"even": index % 2 == 0}, allowMultipleAllocations=index == 3,
                         capacity={"memory": {"value": "2"}},
                         consumesCounters=[{"counterSet": "s", "counters": {"c": {"value": str(index)}}}])
                for index in range(second + 1)
            ]
            counters = [{"name": "s", "counters": {"c": {"value": "5"}}}]
            obj = a_slice(devices, pool=f"n{first}", count=1 + second % 2, sharedCounters=counters)
            cluster.apply("resourceslices", obj, present)
        case "claim":
            result = a_result(f"gpu-{second}", pool=f"n{first % 2}", adminAccess=first == 3,
                              consumedCapacity={"memory": "1"})
            cluster.apply("resourceclaims", a_claim(f"c{first}", result), present)
        case "rule":
            selector = {"pool": f"n{second % 3}"} if first else {"device": f"gpu-{second}"}
            rule = a_rule(f"r{first}", selector, effect=_EFFECTS[second], key=_KEYS[first])
            cluster.apply("devicetaintrules", rule, present)
        case _:
            cluster.apply("deviceclasses", a_class(f"class-{first}", _CLASSES[second]), present)


@settings(max_examples=60)
@given(_STEPS)
def test_states_exclude_each_other_and_add_up(steps: list[tuple[str, int, int, bool]]) -> None:
    cluster, capacity, selectors = Cluster(), Capacity(), Selectors.in_process()
    for step in steps:
        _do(cluster, step)
        samples = capacity.samples(cluster, selectors)
        by_class: dict[tuple[str, str, str], float] = {}
        for (driver, pool, name, _), number in values(samples, "dra_pool_devices").items():
            by_class[driver, pool, name] = by_class.get((driver, pool, name), 0) + number
        assert by_class == _devices(cluster, selectors)
    assert set(capacity.samples(cluster, selectors)) == set(Capacity().samples(cluster, selectors))  # without a past


def _devices(cluster: Cluster, selectors: Selectors) -> dict[tuple[str, str, str], float]:
    found: dict[tuple[str, str, str], float] = {}
    for device in cluster.devices.values():
        members = [
            name for name, each in cluster.classes.items()
            if selectors.match((each.spec.selectors or [])[0].cel.expression, device).verdict is Verdict.MATCH  # type: ignore[union-attr]
        ]
        for name in members or [""]:
            key = (device.key.driver, device.key.pool, name)
            found[key] = found.get(key, 0) + 1
    return found
