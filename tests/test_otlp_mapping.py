"""Where each family goes in OpenTelemetry, held to the published conventions and to Prometheus' translation."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from pathlib import Path

import pytest
from opentelemetry.semconv._incubating.metrics import hw_metrics
from opentelemetry.semconv.schemas import Schemas

from claimscope.claims.model import ClaimState
from claimscope.export.docs import all_families
from claimscope.health.model import Severity
from claimscope.metrics.health import OTEL_STATES
from claimscope.metrics.otel import (
    SCHEMA_URL,
    Instrument,
    Metric,
    OtelConflictError,
    OtelTable,
    name_by_rule,
    prometheus_name,
)
from claimscope.metrics.spec import Family, Type, Unit
from claimscope.metrics.tables import QUANTITIES

FAMILIES = all_families()
TABLE = OtelTable(FAMILIES, QUANTITIES)
OTLP_PAGE = Path(__file__).parent.parent / "docs" / "otlp.md"
SEVERAL = {  # families whose rows are different metrics: what the conventions know, and the rest
    "gpu_utilization_ratio": ("hw.gpu.utilization", "dra.device.utilization"),
    "gpu_temperature_limit_celsius": ("hw.temperature.limit", "dra.device.temperature.limit"),
}


def _conventions() -> dict[str, tuple[str, str, str]]:
    """Instrument, unit and description of each hw.* metric, from the documentation strings of the package."""
    found: dict[str, tuple[str, str, str]] = {}
    pattern = r'^HW_\w+: Final = \(?\s*"([\w.]+)"\s*\)?\n"""\n(.*?)\nInstrument: (\w+)\nUnit: (\S+)'
    for name, about, instrument, unit in re.findall(pattern, inspect.getsource(hw_metrics), re.MULTILINE | re.DOTALL):
        found[name] = (instrument, unit, about)
    return found


def test_hardware_metrics_are_those_of_the_conventions() -> None:
    conventions = _conventions()
    ours = {name: metric for name, metric in TABLE.metrics.items() if name.startswith("hw.")}

    assert len(conventions) > 30
    assert sorted(ours) == [
        "hw.energy", "hw.errors", "hw.fan.speed", "hw.fan.speed_ratio", "hw.gpu.io", "hw.gpu.memory.limit",
        "hw.gpu.memory.usage", "hw.gpu.utilization", "hw.power", "hw.status", "hw.temperature", "hw.temperature.limit",
    ]  # fmt: skip
    for name, metric in ours.items():
        assert (metric.instrument.value, metric.unit) == conventions[name][:2], name


def test_the_schema_is_one_that_there_is() -> None:
    assert SCHEMA_URL in {schema.value for schema in Schemas}


def test_every_family_has_its_metric_and_no_metric_hides_another() -> None:
    fed: defaultdict[str, set[str]] = defaultdict(set)
    for name in FAMILIES:
        metrics = TABLE.names(name)
        assert metrics == SEVERAL.get(name, metrics[:1])
        for metric in metrics:
            fed[metric].add(name)

    assert {metric: sorted(names) for metric, names in fed.items() if len(names) > 1} == {
        "hw.gpu.io": ["gpu_pcie_receive_bytes_total", "gpu_pcie_transmit_bytes_total"],
        "dra.claim.device.io": ["dra_claim_gpu_pcie_receive_bytes_total", "dra_claim_gpu_pcie_transmit_bytes_total"],
        "dra.pod.device.io": ["pod_gpu_pcie_receive_bytes_total", "pod_gpu_pcie_transmit_bytes_total"],
        "dra.device.unattributed.io": [
            "gpu_unattributed_pcie_receive_bytes_total", "gpu_unattributed_pcie_transmit_bytes_total",
        ],
        "dra.device.nvlink.io": ["gpu_nvlink_receive_bytes_total", "gpu_nvlink_transmit_bytes_total"],
        "dra.claim.device.nvlink.io": [
            "dra_claim_gpu_nvlink_receive_bytes_total", "dra_claim_gpu_nvlink_transmit_bytes_total",
        ],
        "dra.pod.device.nvlink.io": ["pod_gpu_nvlink_receive_bytes_total", "pod_gpu_nvlink_transmit_bytes_total"],
        "dra.device.unattributed.nvlink.io": [
            "gpu_unattributed_nvlink_receive_bytes_total", "gpu_unattributed_nvlink_transmit_bytes_total",
        ],
        "dra.device.nvlink.link.io": ["gpu_nvlink_link_receive_bytes_total", "gpu_nvlink_link_transmit_bytes_total"],
        "hw.errors": [
            "gpu_ecc_device_errors_total", "gpu_nvlink_errors_total", "gpu_pcie_errors_total",
            "gpu_pcie_recoveries_total", "gpu_pcie_replays_total", "gpu_xid_errors_total",
        ],
    }  # fmt: skip


def test_streams_of_one_metric_differ_in_their_attributes() -> None:
    seen: defaultdict[str, dict[tuple[object, ...], str]] = defaultdict(dict)
    for family in FAMILIES:
        for stream in TABLE.streams(family):
            key = (frozenset(stream.fixed), frozenset(stream.names.values()))
            assert key not in seen[stream.metric.name], (stream.metric.name, family, seen[stream.metric.name][key])
            seen[stream.metric.name][key] = family


def test_no_label_is_lost_and_no_attribute_is_meant_twice() -> None:
    for family in FAMILIES.values():
        for stream in TABLE.streams(family.name):
            names = [*stream.names.values(), *dict(stream.fixed)]
            assert len(names) == len(set(names)), family.name
            assert all(re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+|error\.type", name) for name in names), names
            said = len(family.labels) - len(stream.names)
            assert said <= len(stream.fixed), (family.name, stream)


def test_what_prometheus_gives_back_and_what_not() -> None:
    same = {
        name for name in FAMILIES
        if all(prometheus_name(stream.metric) == name for stream in TABLE.streams(name))
    }  # fmt: skip

    by_rule = {name for name, family in FAMILIES.items() if name.startswith(("dra_", "claimscope_"))
               and family.otel is None and not name.startswith("dra_claim_gpu_")}  # fmt: skip
    assert by_rule <= same
    # What the page under docs must not promise: devices and accounts have other names there.
    assert not any(name.startswith(("dra_claim_gpu_", "pod_gpu_", "gpu_")) for name in same)
    assert f"{len(same)} of {len(FAMILIES)} families get their scraped name" in OTLP_PAGE.read_text()


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (Metric(name="hw.gpu.utilization", description="", unit="1", instrument=Instrument.GAUGE),
         "hw_gpu_utilization_ratio"),
        (Metric(name="hw.errors", description="", unit="{error}", instrument=Instrument.COUNTER), "hw_errors_total"),
        (Metric(name="hw.status", description="", unit="1", instrument=Instrument.UPDOWN), "hw_status"),
        (Metric(name="dra.claim.device.energy", description="", unit="J", instrument=Instrument.COUNTER),
         "dra_claim_device_energy_joules_total"),
        (Metric(name="dra.allocation.duration", description="", unit="s", instrument=Instrument.HISTOGRAM),
         "dra_allocation_duration_seconds"),
    ],
)  # fmt: skip
def test_names_at_prometheus(metric: Metric, name: str) -> None:
    assert prometheus_name(metric) == name


def test_points_of_the_conventions_differ_in_attributes_of_the_conventions() -> None:
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    for family in FAMILIES:
        for stream in TABLE.streams(family):
            known = [(key, value) for key, value in stream.fixed if not key.startswith("dra.")]
            if stream.metric.name in ("hw.temperature.limit", "hw.gpu.utilization", "hw.temperature"):
                key = (stream.metric.name, frozenset(known))
                assert key not in seen
                seen.add(key)
    assert {dict(attributes).get("hw.gpu.task") for name, attributes in seen if name == "hw.gpu.utilization"} == {
        "general", "encoder", "decoder",
    }  # fmt: skip


def test_every_state_of_health_has_one_of_the_conventions() -> None:
    assert set(OTEL_STATES) == {severity.value for severity in Severity}
    assert set(OTEL_STATES.values()) <= {"ok", "degraded", "failed", "predicted_failure"}


def test_a_claims_state_is_no_kube_metric() -> None:
    stream = TABLE.stream("kube_resourceclaim_status_allocation_state", (("state", ClaimState.PENDING.value),))

    assert stream is not None
    assert stream.metric.name == "dra.claim.state"


def test_two_meanings_of_one_name_are_refused() -> None:
    families = {
        name: Family(name=name, help="", type=Type.GAUGE, unit=unit, labels=(), otel="dra.x")
        for name, unit in (("dra_a_seconds", Unit.SECONDS), ("dra_b_bytes", Unit.BYTES))
    }

    with pytest.raises(OtelConflictError, match="is described twice and differently"):
        OtelTable(families)


def test_the_rule() -> None:
    def named(name: str, kind: Type, unit: Unit) -> str:
        return name_by_rule(Family(name=name, help="", type=kind, unit=unit, labels=()))

    assert named("dra_claim_held_not_running_seconds", Type.GAUGE, Unit.SECONDS) == "dra.claim.held_not_running"
    assert named("claimscope_agent_sampler_ticks_total", Type.COUNTER, Unit.ONE) == "claimscope.agent.sampler_ticks"
    assert named("dra_claim_info", Type.INFO, Unit.ONE) == "dra.claim.info"
