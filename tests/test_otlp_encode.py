"""What OTLP requests say: read back by the official messages."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric

from claimscope.export.otlp.encode import Batch, Encoder, batches
from claimscope.export.otlp.wire import Envelope, key_value, varint
from claimscope.metrics.cluster import FAMILIES as CLUSTER_FAMILIES
from claimscope.metrics.cluster import histogram
from claimscope.metrics.otel import Instrument, OtelTable, hardware_status
from claimscope.metrics.otel import Metric as Described
from claimscope.metrics.tables import QUANTITIES, all_families
from claimscope.model import Histogram, Sample
from otlp_collector import attributes, metrics_of, points_of, resource_of

TABLE = OtelTable({**all_families(), **CLUSTER_FAMILIES}, QUANTITIES)
BEGAN = 1_000_000_000
GPU = (("uuid", "GPU-1"), ("gpu", "0"))
CLAIM = (
    ("namespace", "team-a"), ("resourceclaim", "train"), ("claim_uid", "u-1"), ("uuid", "GPU-1"),
    ("attribution", "exclusive"),
)  # fmt: skip
CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE


def encoder(**resource: str) -> Encoder:
    envelope = Envelope(resource, scope="claimscope", version="1.2.3", schema_url="https://example.org/1")
    return Encoder(TABLE, envelope, began_ns=BEGAN, carried_over={"gpu_xid_errors_total"})


def decoded(made: Sequence[Batch]) -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    for batch in made:
        request = ExportMetricsServiceRequest.FromString(batch.body)
        metrics = list(metrics_of(request))
        assert batch.points == sum(len(points_of(metric)) for metric in metrics)
        for metric in metrics:
            assert metric.name not in found
            found[metric.name] = metric
    return found


def push(into: Encoder, wall_ns: int, *samples: Sample | Histogram) -> dict[str, Metric]:
    return decoded(list(into.requests(samples, wall_ns)))


def sample(family: str, labels: tuple[tuple[str, str], ...], value: float, start_ns: int | None = None) -> Sample:
    return Sample(family=family, labels=labels, value=value, start_ns=start_ns)


def info(**facts: str) -> Sample:
    return sample("gpu_info", (*GPU, *facts.items()), 1)


def test_a_gauge_of_a_device_follows_the_hardware_conventions() -> None:
    facts = info(model="NVIDIA H100", serial="123", driver_version="580.1", vbios_version="96.0", minor="0")

    found = push(encoder(), 5_000, facts, sample("gpu_power_watts", GPU, 412.5))

    metric = found["hw.power"]
    (point,) = metric.gauge.data_points
    assert (metric.unit, metric.description) == ("W", "Instantaneous power consumed by the component.")
    assert (point.as_double, point.time_unix_nano, point.start_time_unix_nano, point.flags) == (412.5, 5_000, 0, 0)
    assert attributes(point.attributes) == {
        "hw.id": "GPU-1", "hw.name": "gpu0", "hw.type": "gpu", "hw.model": "NVIDIA H100", "hw.serial_number": "123",
        "hw.driver_version": "580.1", "hw.firmware_version": "96.0", "hw.vendor": "NVIDIA",
    }  # fmt: skip


def test_a_mig_device_names_its_gpu() -> None:
    labels = (("uuid", "MIG-1"), ("gpu", "0"))
    facts = sample("gpu_info", (*labels, ("parent_uuid", "GPU-1"), ("model", "NVIDIA H100")), 1)

    found = push(encoder(), 5_000, facts, sample("gpu_memory_used_bytes", labels, 1024))

    metric = found["hw.gpu.memory.usage"]
    (point,) = metric.sum.data_points
    assert attributes(point.attributes)["hw.parent"] == "GPU-1"
    assert metric.unit == "By"
    assert metric.sum.is_monotonic is False
    assert metric.sum.aggregation_temporality == CUMULATIVE


def test_a_claims_energy_is_cumulative_since_the_claim_began() -> None:
    found = push(encoder(), 9_000, sample("dra_claim_gpu_energy_joules_total", CLAIM, 77.0, start_ns=4_000))

    metric = found["dra.claim.device.energy"]
    (point,) = metric.sum.data_points
    assert metric.sum.is_monotonic
    assert metric.sum.aggregation_temporality == CUMULATIVE
    assert (metric.unit, point.as_double, point.start_time_unix_nano) == ("J", 77.0, 4_000)
    assert attributes(point.attributes) == {
        "dra.claim.namespace": "team-a", "dra.claim.name": "train", "dra.claim.uid": "u-1", "hw.id": "GPU-1",
        "dra.attribution": "exclusive",
    }  # fmt: skip


@pytest.mark.parametrize("bad", ["unhealthy", "lost"])
def test_health_has_each_state_of_the_conventions_once_and_ours_in_a_metric_of_its_own(bad: str) -> None:
    states = [
        sample("gpu_health", (*GPU, ("state", state)), float(state == bad))
        for state in ("ok", "degraded", "unhealthy", "lost")
    ]

    found = push(encoder(), 9_000, *states, *hardware_status(states))

    assert [
        (point.as_double, attributes(point.attributes)["hw.state"]) for point in found["hw.status"].sum.data_points
    ] == [(0, "ok"), (0, "degraded"), (1, "failed")]
    assert {
        attributes(point.attributes)["dra.state"]: point.as_double
        for point in found["dra.device.health.state"].gauge.data_points
    } == {"ok": 0, "degraded": 0, "unhealthy": float(bad == "unhealthy"), "lost": float(bad == "lost")}


def test_an_xid_is_an_error_type_and_counts_on_from_before() -> None:
    (metric,) = push(encoder(), 9_000, sample("gpu_xid_errors_total", (*GPU, ("xid", "79")), 2)).values()

    (point,) = metric.sum.data_points
    assert (metric.name, metric.unit, metric.sum.is_monotonic) == ("hw.errors", "{error}", True)
    assert attributes(point.attributes)["error.type"] == "xid_79"
    assert point.start_time_unix_nano == 0  # not known


def test_families_that_are_one_metric_are_sent_as_one() -> None:
    found = push(
        encoder(), 9_000, sample("gpu_pcie_transmit_bytes_total", GPU, 1, start_ns=5),
        sample("gpu_power_watts", GPU, 1), sample("gpu_pcie_receive_bytes_total", GPU, 2, start_ns=5),
    )  # fmt: skip

    assert [
        (point.as_double, attributes(point.attributes)["network.io.direction"])
        for point in found["hw.gpu.io"].sum.data_points
    ] == [(1, "transmit"), (2, "receive")]


def test_what_this_process_counts_began_with_it_and_anew_where_it_falls() -> None:
    into, name = encoder(), "claimscope_agent_scrapes_total"

    starts = []
    for wall_ns, value in ((2 * BEGAN, 5.0), (3 * BEGAN, 6.0), (4 * BEGAN, 1.0), (5 * BEGAN, 2.0)):
        (metric,) = push(into, wall_ns, sample(name, (("code", "200"),), value)).values()
        (point,) = metric.sum.data_points
        starts.append((point.start_time_unix_nano, point.as_double))

    assert metric.name == "claimscope.agent.scrapes"
    assert starts == [(BEGAN, 5.0), (BEGAN, 6.0), (3 * BEGAN, 1.0), (3 * BEGAN, 2.0)]


def test_a_sum_that_comes_or_comes_back_without_a_start_began_after_the_push_before() -> None:
    into, other = encoder(), sample("gpu_power_watts", GPU, 1)
    counted = [sample("claimscope_agent_scrapes_total", (("code", "200"),), value) for value in (10.0, 2.0)]
    push(into, 2 * BEGAN, counted[0], other)
    push(into, 3 * BEGAN, other)

    found = push(into, 4 * BEGAN, counted[1], other)
    later = push(into, 5 * BEGAN, counted[1], other)

    for metric in (found["claimscope.agent.scrapes"], later["claimscope.agent.scrapes"]):
        (point,) = metric.sum.data_points
        assert (point.start_time_unix_nano, point.as_double) == (3 * BEGAN, 2.0)


def test_no_sum_begins_after_its_point_also_where_the_clock_is_set_back() -> None:
    into = encoder()
    starts = []
    for wall_ns, start_ns, value in (
        (5_000, 4_500, 1), (4_000, 4_500, 2), (4_200, 4_500, 3), (6_000, 4_500, 4), (7_000, 8_000, 5),
    ):  # fmt: skip
        (metric,) = push(into, wall_ns, sample("gpu_energy_joules_total", GPU, value, start_ns=start_ns)).values()
        starts.append(metric.sum.data_points[0].start_time_unix_nano)
    (end,) = push(into, 3_000)["hw.energy"].sum.data_points

    assert starts == [4_500, 4_000, 4_000, 4_500, 4_500]
    assert (end.flags, end.start_time_unix_nano, end.time_unix_nano) == (1, 3_000, 3_000)


def test_a_counter_that_was_there_before_us_begins_with_a_point_of_no_duration() -> None:
    def energy(value: float, start_ns: int, start_value: float) -> Sample:
        return Sample(
            family="gpu_energy_joules_total", labels=GPU, value=value, start_ns=start_ns, start_value=start_value
        )

    def points(into: Encoder, wall_ns: int, *samples: Sample) -> list[tuple[int, int, float]]:
        metric = push(into, wall_ns, *samples)["hw.energy"]
        return [(p.start_time_unix_nano, p.time_unix_nano, p.as_double) for p in metric.sum.data_points]

    began = BEGAN + 1_000
    into = encoder()
    assert points(into, BEGAN + 9_000, energy(5e9 + 700, began, 5e9)) == [
        (began, began, 5e9), (began, BEGAN + 9_000, 5e9 + 700),
    ]  # fmt: skip
    assert points(into, BEGAN + 10_000, energy(5e9 + 800, began, 5e9)) == [(began, BEGAN + 10_000, 5e9 + 800)]
    # Another board's counter in its place, after five minutes without the device.
    anew = BEGAN + 10_500
    assert points(into, BEGAN + 11_000, energy(3e9 + 1, anew, 3e9)) == [
        (anew, anew, 3e9), (anew, BEGAN + 11_000, 3e9 + 1),
    ]  # fmt: skip
    # First seen at the moment of the push: one point says both.
    assert points(encoder(), began, energy(5e9, began, 5e9)) == [(began, began, 5e9)]
    # Before this process: the one before has said it, and what begins at 0 needs no such point.
    assert points(encoder(), BEGAN + 9_000, energy(5e9 + 700, BEGAN - 1, 5e9)) == [
        (BEGAN - 1, BEGAN + 9_000, 5e9 + 700)
    ]
    assert points(encoder(), BEGAN + 9_000, energy(700, began, 0.0)) == [(began, BEGAN + 9_000, 700)]


def test_a_device_whose_facts_are_away_for_a_push_is_the_same_stream() -> None:
    facts, xids = info(model="NVIDIA H100", serial="1"), sample("gpu_xid_errors_total", (*GPU, ("xid", "79")), 1)
    into = encoder()

    for wall_ns, samples in ((2_000_000_000, (facts, xids)), (3_000_000_000, (xids,)), (4_000_000_000, (facts, xids))):
        points = push(into, wall_ns, *samples)["hw.errors"].sum.data_points
        assert [(point.time_unix_nano, point.flags, point.as_double) for point in points] == [(wall_ns, 0, 1.0)]


def test_a_new_start_of_a_sum_is_told() -> None:
    into = encoder()
    push(into, 2_000, sample("gpu_energy_joules_total", GPU, 100.0, start_ns=10))

    (metric,) = push(into, 3_000, sample("gpu_energy_joules_total", GPU, 4.0, start_ns=2_500)).values()

    assert metric.sum.data_points[0].start_time_unix_nano == 2_500


def test_a_series_that_is_gone_ends_once_without_a_value() -> None:
    into = encoder()
    claim = sample("dra_claim_gpu_energy_joules_total", CLAIM, 77.0, start_ns=4_000)
    push(into, 9_000, claim, sample("gpu_power_watts", GPU, 1))

    found = push(into, 10_000, sample("gpu_power_watts", GPU, 2))
    later = push(into, 11_000, sample("gpu_power_watts", GPU, 3))

    (point,) = found["dra.claim.device.energy"].sum.data_points
    assert (point.flags, point.WhichOneof("value"), point.time_unix_nano) == (1, None, 10_000)
    assert point.start_time_unix_nano == 4_000
    assert attributes(point.attributes)["dra.claim.uid"] == "u-1"
    assert list(later) == ["hw.power"]
    assert into.series == 1


def test_a_device_that_gets_a_new_driver_ends_its_series_and_begins_others() -> None:
    into, power = encoder(), sample("gpu_power_watts", GPU, 1)
    push(into, 1, info(model="M", driver_version="570"), power)

    found = push(into, 2, info(model="M", driver_version="580"), power)

    assert [
        (point.flags, attributes(point.attributes)["hw.driver_version"])
        for point in found["hw.power"].gauge.data_points
    ] == [(1, "570"), (0, "580")]


def test_a_histogram_has_bounds_counts_and_sum_and_ends_like_the_rest() -> None:
    into = encoder()
    made = histogram("dra_allocation_duration_seconds", (0.5, 1.0), (3, 2, 1), 7.25, "gpu", "binding", start_ns=44)

    (metric,) = push(into, 9_000, made).values()
    (after,) = push(into, 10_000).values()

    (point,) = metric.histogram.data_points
    assert metric.name == "dra.allocation.duration"
    assert metric.histogram.aggregation_temporality == CUMULATIVE
    assert (point.count, point.sum, list(point.bucket_counts), list(point.explicit_bounds)) == (
        6, 7.25, [3, 2, 1], [0.5, 1.0],
    )  # fmt: skip
    assert (point.start_time_unix_nano, point.time_unix_nano) == (44, 9_000)
    assert attributes(point.attributes) == {"dra.device_class": "gpu", "dra.phase": "binding"}
    assert (after.histogram.data_points[0].flags, after.histogram.data_points[0].count) == (1, 0)


def test_what_is_no_number_or_in_no_table_or_there_already_is_left_out() -> None:
    found = push(
        encoder(), 1, sample("gpu_power_watts", GPU, math.nan), sample("other_total", GPU, 1),
        sample("gpu_up", GPU, 1), sample("gpu_up", GPU, 0),
    )  # fmt: skip

    assert [metric.gauge.data_points[0].as_double for metric in found.values()] == [1]
    assert list(found) == ["dra.device.up"]


def test_labels_are_recognised_by_value_too() -> None:
    into = encoder()
    push(into, 1, sample("gpu_up", (("uuid", "GPU-1"), ("gpu", "0")), 1))

    found = push(into, 2, sample("gpu_up", (("uuid", "".join(("GPU", "-1"))), ("gpu", "0")), 0))

    assert [point.flags for point in found["dra.device.up"].gauge.data_points] == [0]
    assert into.series == 1


def test_the_resource_and_the_scope_say_who_measures() -> None:
    into = encoder(**{"service.name": "x", "k8s.node.name": "node-a"})

    (batch,) = into.requests([sample("gpu_up", GPU, 1)], 1)

    request = ExportMetricsServiceRequest.FromString(batch.body)
    (scoped,) = request.resource_metrics[0].scope_metrics
    assert resource_of(request) == {"service.name": "x", "k8s.node.name": "node-a"}
    assert (scoped.scope.name, scoped.scope.version) == ("claimscope", "1.2.3")
    assert request.resource_metrics[0].schema_url == scoped.schema_url == "https://example.org/1"


def test_requests_hold_at_most_5000_points() -> None:
    samples = [sample("gpu_up", (("uuid", f"GPU-{number}"), ("gpu", "0")), number) for number in range(12_001)]

    made = list(encoder().requests(samples, 1))

    assert [batch.points for batch in made] == [5_000, 5_000, 2_001]
    values = [
        point.as_double
        for batch in made
        for metric in metrics_of(ExportMetricsServiceRequest.FromString(batch.body))
        for point in metric.gauge.data_points
    ]
    assert values == list(range(12_001))


def test_requests_hold_at_most_a_number_of_bytes() -> None:
    described = Described(name="m", description="", unit="", instrument=Instrument.GAUGE)
    envelope = Envelope({}, scope="s", version="1", schema_url="")

    made = list(batches([(described, [b"\x0a\x00" * 50] * 10)], envelope, max_bytes=250))

    assert [batch.points for batch in made] == [2, 2, 2, 2, 2]
    assert max(len(batch.body) for batch in made) < 280


def test_thousands_of_short_claims_leave_nothing_behind() -> None:
    into = encoder()
    ends = 0
    for generation in range(40):
        claims = [
            sample(
                "dra_claim_gpu_busy_seconds_total",
                (("namespace", "n"), ("resourceclaim", f"c-{generation}-{number}"), ("claim_uid", f"{number}"),
                 ("uuid", "GPU-1"), ("attribution", "exclusive"), ("engine", "gpu")),
                1.0, start_ns=generation + 1,
            )
            for number in range(300)
        ]  # fmt: skip
        (metric,) = push(into, 1_000 + generation, *claims).values()
        points = metric.sum.data_points
        ends += sum(point.flags for point in points)
        assert [point.start_time_unix_nano for point in points if not point.flags] == [generation + 1] * 300
        assert into.series == 300

    assert ends == 39 * 300
    assert push(into, 2_000)["dra.claim.device.busy.time"].sum.data_points[0].flags == 1
    assert into.series == 0


def test_a_process_id_is_a_number() -> None:
    (metric,) = push(encoder(), 1, sample("gpu_process_memory_used_bytes", (*GPU, ("pid", "4711")), 5)).values()

    assert attributes(metric.gauge.data_points[0].attributes)["process.pid"] == 4711


@given(st.text(min_size=1), st.text())
def test_any_text_is_an_attribute(key: str, value: str) -> None:
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

    safe = key.encode("utf-8", "replace").decode()

    read = KeyValue.FromString(key_value(safe, value))

    assert (read.key, read.value.string_value) == (safe, value.encode("utf-8", "replace").decode())


@given(st.integers(0, 2**63 - 1))
def test_varints_are_those_of_protobuf(number: int) -> None:
    from google.protobuf.wrappers_pb2 import UInt64Value

    assert UInt64Value.FromString(b"\x08" + varint(number)).value == number
