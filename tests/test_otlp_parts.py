"""What the agent and the controller push: the real processes, and thousands of short claims."""

from __future__ import annotations

import asyncio
import dataclasses
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from agent_process import Agent, Scrape
from claimscope.claims.model import ClaimState, ClaimView, ClusterSnapshot
from claimscope.clock import ManualClock, SystemClock
from claimscope.config import Config, ControllerConfig
from claimscope.export.cluster import ClusterCollector
from claimscope.export.collect import Collector
from claimscope.export.otlp.cluster import ClusterEncoder
from claimscope.export.otlp.encode import Batch, Encoder
from claimscope.export.otlp.parts import agent_pusher, controller_pusher, controller_resource, of_new
from claimscope.export.otlp.push import QUEUE_BYTES
from claimscope.export.otlp.wire import Envelope
from claimscope.metrics.otel import OtelTable
from claimscope.metrics.tables import QUANTITIES
from claimscope.model import Account, Device, Entity, Holder, Inventory, Snapshot
from claimscope.sim.cluster import SimulatedCluster
from claimscope.yamlfile import ConfigError
from cluster_data import SHARED, TRAIN, WALL
from controller_process import Controller, states
from otlp_collector import Answer, attributes, grpc_collector, http_collector, metrics_of, points_of, resource_of
from otlp_collector import Collector as Received

ENVELOPE = Envelope({}, scope="claimscope", version="1", schema_url="")
Point = tuple[str, frozenset[tuple[str, str | int]]]


def read(requests: Iterable[ExportMetricsServiceRequest]) -> dict[Point, Any]:
    """Points by metric and attributes; none may be there twice."""
    found: dict[Point, Any] = {}
    for request in requests:
        for metric in metrics_of(request):
            for point in points_of(metric):
                key = (metric.name, frozenset(attributes(point.attributes).items()))
                assert key not in found, key
                found[key] = point
    return found


def decoded(made: Iterable[Batch]) -> dict[Point, Any]:
    return read(ExportMetricsServiceRequest.FromString(batch.body) for batch in made)


def of(points: dict[Point, Any], name: str) -> list[tuple[dict[str, str | int], Any]]:
    return [(dict(pairs), point) for (metric, pairs), point in points.items() if metric == name]


async def test_an_agent_pushes_what_it_serves(tmp_path: Path, cc: str) -> None:
    del cc
    async with http_collector() as received:
        endpoint = f"http://127.0.0.1:{received.port}"
        agent = Agent(tmp_path, "--simulate", "h100x8", "--otlp-endpoint", endpoint, "--otlp-interval-seconds", "1")
        with agent:
            await asyncio.to_thread(agent.wait_served)
            scrape = await asyncio.to_thread(
                agent.until, lambda scrape: scrape.find("dra_claim_gpu_energy_joules_total") and scrape
            )
            await received.until_requests(len(received.requests) + 2)
            accepted = await asyncio.to_thread(
                agent.until, lambda scrape: scrape.value("claimscope_agent_otlp_points_total", result="accepted")
            )
            request = received.requests[-1]

    points = read([request])
    _same_metrics(points, scrape)
    assert accepted > 500
    assert resource_of(request) | {"service.version": ""} == {
        "service.name": "claimscope-agent", "service.version": "", "service.instance.id": "node-a",
        "host.name": "node-a", "k8s.node.name": "node-a",
    }  # fmt: skip
    energies = of(points, "hw.energy")
    assert len(energies) == 8
    assert all(pairs["hw.vendor"] == "NVIDIA" and pairs["hw.model"] for pairs, _ in energies)
    assert all(0 < point.start_time_unix_nano < point.time_unix_nano for _, point in energies)
    assert {pairs["dra.claim.name"] for pairs, _ in of(points, "dra.claim.device.energy")} >= {
        sample.labels["resourceclaim"] for sample in scrape.find("dra_claim_gpu_energy_joules_total")
    }


def _same_metrics(points: dict[Point, Any], scrape: Scrape) -> None:
    """Every family that is served is pushed, but for what is only known when a scrape is answered."""
    families = Collector(QUANTITIES).families
    table = OtelTable(families, QUANTITIES)
    web = ("scrape", "render", "series", "web_", "reviews")
    served = {
        metric
        for sample in scrape.samples
        if sample.name in families and not sample.name.removeprefix("claimscope_agent_").startswith(web)
        for metric in table.names(sample.name)
    }
    assert served - {name for name, _ in points} == set()
    assert len(served) > 80


async def test_a_controller_pushes_the_cluster_by_grpc(tmp_path: Path) -> None:
    async with grpc_collector() as received, SimulatedCluster.open(clock=SystemClock()) as cluster:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{received.port}", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_METRIC_EXPORT_INTERVAL": "500", "OTEL_RESOURCE_ATTRIBUTES": "k8s.cluster.name=east",
            "OTEL_SERVICE_NAME": "gpus",
        }  # fmt: skip
        async with Controller(tmp_path, "--api-server-url", cluster.url, **variables) as controller:
            await controller.until(states)
            await received.until(lambda: bool(_claims(received)))
            await controller.until(
                lambda scrape: scrape.value("claimscope_controller_otlp_points_total", result="accepted")
            )
            before = _last(received)

    # What it says last is that the claims are not its own any more: another replica goes on with them.
    assert not all(point.flags for point in before)
    assert all(point.flags for point in _last(received))
    request = received.requests[-1]
    resource = resource_of(request)
    assert (resource["service.name"], resource["k8s.cluster.name"]) == ("gpus", "east")
    assert resource["service.instance.id"] == "one"
    assert _claims(received) > {"pending"}


def _last(received: Received) -> list[Any]:
    """The last point of each series of the claims' states."""
    last = {
        frozenset(attributes(point.attributes).items()): point
        for metric in received.metrics()
        if metric.name == "dra.claim.state"
        for point in points_of(metric)
    }
    return list(last.values())


def _claims(received: Received) -> set[str | int]:
    """States of the claims that were pushed."""
    return {
        attributes(point.attributes)["dra.state"]
        for metric in received.metrics()
        if metric.name == "dra.claim.state"
        for point in points_of(metric)
    }


async def test_every_scrape_answers_while_the_collector_does_not(tmp_path: Path, cc: str) -> None:
    del cc
    async with http_collector() as received:
        received.answers.extend([Answer(silent=True)] * 1000)
        endpoint = f"http://127.0.0.1:{received.port}"
        agent = Agent(tmp_path, "--simulate", "h100x8", "--otlp-endpoint", endpoint, "--otlp-interval-seconds", "0.2")
        with agent:
            await asyncio.to_thread(agent.wait_served)
            await asyncio.to_thread(agent.until, lambda scrape: scrape.find("gpu_power_watts"))
            await received.until(lambda: received.attempts >= 2)  # as many as are sent at once
            queued = []
            for _ in range(20):
                scrape = await asyncio.to_thread(agent.scrape)
                assert scrape.find("gpu_power_watts")
                queued.append(scrape.value("claimscope_agent_otlp_queue_bytes") or 0.0)
            accepted = scrape.value("claimscope_agent_otlp_points_total", result="accepted")

    assert accepted == 0
    assert max(queued) < QUEUE_BYTES


def test_settings_that_cannot_be_used_are_said() -> None:
    clock = ManualClock()

    with pytest.raises(ConfigError, match="--otlp-endpoint: `collector`"):
        agent_pusher(Config(otlp_endpoint="collector"), {}, lambda: None, Collector(QUANTITIES), clock)
    with pytest.raises(ConfigError, match="is not KEY=VALUE"):
        controller_pusher(
            ControllerConfig(otlp_endpoint="http://c:4318"), {"OTEL_EXPORTER_OTLP_HEADERS": "secret"},
            lambda: None, ClusterCollector(), clock,
        )  # fmt: skip


def test_a_controller_names_its_pod_and_only_inside_of_one() -> None:
    config = ControllerConfig(identity="controller-7d9", namespace="gpus")
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "controller-7d9"}

    assert controller_resource(config, {"HOSTNAME": "laptop"}) == {"service.instance.id": "controller-7d9"}
    assert controller_resource(config, pod) == {
        "service.instance.id": "controller-7d9", "k8s.namespace.name": "gpus", "k8s.pod.name": "controller-7d9",
    }  # fmt: skip
    assert controller_resource(config, pod | {"POD_UID": "c0ffee", "POD_NAME": "c-1", "POD_NAMESPACE": "other"}) == {
        "service.instance.id": "c0ffee", "k8s.namespace.name": "other", "k8s.pod.name": "c-1",
        "k8s.pod.uid": "c0ffee",
    }  # fmt: skip


def test_a_snapshot_is_pushed_once() -> None:
    present: list[str] = []
    newest = of_new(
        lambda: present[-1] if present else None, lambda found: iter([Batch(body=found.encode(), points=1)])
    )
    first, second = "snapshot".upper(), "snapshot".upper()  # equal, but two

    said = [newest()]
    for each in (first, first, second):
        present.append(each)
        said.append(newest())

    assert [None if made is None else [batch.body for batch in made] for made in said] == [
        None, [b"SNAPSHOT"], None, [b"SNAPSHOT"],
    ]  # fmt: skip


# Claims of the controller.


def snapshot(*views: ClaimView, seconds: int = 0) -> ClusterSnapshot:
    claims = {view.uid: view for view in views}
    return ClusterSnapshot(
        wall_ns=(WALL + seconds) * 10**9, leading=True, complete=True, claims=MappingProxyType(claims)
    )


def cluster_encoder() -> ClusterEncoder:
    collector = ClusterCollector()
    table = OtelTable(collector.families)
    return ClusterEncoder(collector, table, Encoder(table, ENVELOPE, began_ns=1))


def test_a_claim_that_is_gone_ends_its_series() -> None:
    encoder = cluster_encoder()
    before = decoded(encoder.requests(snapshot(TRAIN, SHARED)))

    after = decoded(encoder.requests(snapshot(TRAIN, seconds=60)))
    later = decoded(encoder.requests(snapshot(TRAIN, seconds=120)))

    ended = {key for key, point in after.items() if point.flags}
    assert ended == {key for key in before if ("dra.claim.uid", SHARED.uid) in key[1]}
    assert len(ended) > 5
    assert not any(point.flags for point in later.values())
    assert {key for key in before if ("dra.claim.uid", TRAIN.uid) in key[1]} == set(later)


def test_a_claim_that_changes_ends_only_what_it_is_no_more() -> None:
    encoder = cluster_encoder()
    list(encoder.requests(snapshot(TRAIN)))

    after = decoded(encoder.requests(snapshot(dataclasses.replace(TRAIN, state=ClaimState.RESERVED), seconds=60)))

    assert {
        (name, dict(pairs).get("dra.state")): point.flags
        for (name, pairs), point in after.items()
        if name == "dra.claim.state" or point.flags
    } == {("dra.claim.state", "running"): 1, ("dra.claim.state", "reserved"): 0}


def test_a_leader_that_still_reads_has_not_lost_its_claims_and_one_that_leads_no_more_has() -> None:
    encoder = cluster_encoder()
    list(encoder.requests(snapshot(TRAIN)))
    reading = ClusterSnapshot(wall_ns=WALL * 10**9 + 1, leading=True, complete=False)
    standby = ClusterSnapshot(wall_ns=WALL * 10**9 + 2, leading=False)

    assert decoded(encoder.requests(reading)) == {}
    ended = decoded(encoder.requests(standby))

    assert ended
    assert all(point.flags for point in ended.values())


def test_many_claims_come_in_requests_of_at_most_5000_points() -> None:
    views = [dataclasses.replace(TRAIN, uid=f"uid-{number}", name=f"claim-{number}") for number in range(3_000)]

    sizes = [batch.points for batch in cluster_encoder().requests(snapshot(*views))]

    assert sum(sizes) == 3_000 * 9
    assert max(sizes) <= 5_000


# Short claims on a node.


def node_snapshot(generation: int, claims: int) -> Snapshot:
    """A node on which each claim of the last generation has given way to another one."""
    entity = Entity(uuid="GPU-1", gpu=0)
    device = Device(entity=entity, minor=0, pci_bus_id="0000:18:00.0", model="NVIDIA H100")
    return Snapshot(
        node="node-a", wall_ns=10**18 + generation * 10**9, monotonic_ns=generation * 10**9,
        inventory=Inventory(session=1, epoch=1, driver_version="580", nvml_version="13", cuda_version="13",
                            devices=(device,)),
        up={"GPU-1": True},
        accounts=tuple(
            Account(
                holder=Holder(source="claim", namespace="team", name=f"job-{generation}-{number}",
                              uid=f"uid-{generation}-{number}"),
                entity="GPU-1", basis="share", start_wall_ns=10**18 + generation * 10**9 - 1,
                totals={"energy": 1.0, "allocated_seconds": 2.0, "utilization_gpu": 0.5},
            )
            for number in range(claims)
        ),
    )  # fmt: skip


def test_thousands_of_short_claims_overflow_nothing() -> None:
    collector = Collector(QUANTITIES)
    encoder = Encoder(OtelTable(collector.families, QUANTITIES), ENVELOPE, began_ns=1)
    ends = 0
    for generation in range(20):
        present = node_snapshot(generation, 200)
        points = decoded(encoder.requests(collector.collect(present), present.wall_ns))
        ends += sum(point.flags for point in points.values())
        energies = [point for _, point in of(points, "dra.claim.device.energy") if not point.flags]
        assert len(energies) == 200
        assert {point.start_time_unix_nano for point in energies} == {present.wall_ns - 1}

    assert ends == 19 * 200 * 3
    assert encoder.series == 200 * 3 + 3


def test_thousands_of_short_claims_keep_memory_flat() -> None:
    collector = Collector(QUANTITIES)
    encoder = Encoder(OtelTable(collector.families, QUANTITIES), ENVELOPE, began_ns=1)
    kept: list[int] = []
    tracemalloc.start()
    try:
        for generation in range(24):
            present = node_snapshot(generation, 100)
            for _ in encoder.requests(collector.collect(present), present.wall_ns):
                pass
            kept.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()

    # 1,000 claims come and go in between; the series of one take more than 1,000 bytes.
    assert kept[-1] - kept[13] < 100_000
