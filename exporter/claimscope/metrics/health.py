"""How well are the devices, as the agent judges it? The families of health, as data."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from claimscope.metrics.spec import DEVICE_LABELS, Family, Type, Unit

HEALTH = "gpu_health"
FINDING = "gpu_health_finding_info"
SINCE = "gpu_health_finding_since_timestamp_seconds"
FINDINGS = "gpu_health_findings_total"

_ROWS = (
    Family(
        name=HEALTH,
        help="1 for the state that the device is in, 0 for the others: the worst of its findings.",
        type=Type.GAUGE,
        unit=Unit.ONE,
        labels=(*DEVICE_LABELS, "state"),
        otel="dra.device.health.state",
    ),
    Family(
        name=FINDING,
        help="A rule that stands against the device; its evidence is in /api/v1/health.",
        type=Type.INFO,
        unit=Unit.ONE,
        labels=(*DEVICE_LABELS, "rule", "severity", "state"),
        otel="dra.device.health.finding",
    ),
    Family(
        name=SINCE,
        help="Unix time at which the finding began.",
        type=Type.GAUGE,
        unit=Unit.SECONDS,
        labels=(*DEVICE_LABELS, "rule"),
        otel="dra.device.health.finding.since",
    ),
    Family(
        name=FINDINGS,
        help="Findings that began since the agent started, by how bad they were then.",
        type=Type.COUNTER,
        unit=Unit.ONE,
        labels=(*DEVICE_LABELS, "severity"),
        otel="dra.device.health.findings",
    ),
)

# hw.state of OpenTelemetry's hw.status for each state of ours.
OTEL_STATES: Mapping[str, str] = MappingProxyType(
    {"ok": "ok", "degraded": "degraded", "unhealthy": "failed", "lost": "failed"}
)

FAMILIES: Mapping[str, Family] = MappingProxyType({row.name: row for row in _ROWS})
