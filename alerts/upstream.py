"""Which metrics of others do rules and dashboards use, with which labels, and where are they from?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A metric that others make."""

    name: str
    labels: tuple[str, ...]
    source: str


_DCGM_LABELS: Final = (
    "gpu", "UUID", "device", "modelName", "Hostname", "GPU_I_ID", "GPU_I_PROFILE", "namespace", "pod", "container",
    "resourceclaim",
)  # fmt: skip


def _histogram(name: str, labels: tuple[str, ...], source: str) -> tuple[Upstream, ...]:
    return (
        Upstream(name=f"{name}_bucket", labels=(*labels, "le"), source=source),
        Upstream(name=f"{name}_sum", labels=labels, source=source),
        Upstream(name=f"{name}_count", labels=labels, source=source),
    )


_ROWS: Final = (
    Upstream(name="up", labels=(), source="Prometheus, for each target"),
    Upstream(name="ALERTS", labels=("alertname", "alertstate", "severity", "owner", "component"), source="Prometheus"),
    Upstream(
        name="kube_node_status_allocatable", labels=("node", "resource", "unit"), source="kube-state-metrics",
    ),
    *(
        Upstream(name=name, labels=_DCGM_LABELS, source="dcgm-exporter, or claimscope with --compat-dcgm")
        for name in ("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_POWER_USAGE")
    ),
    *_histogram("dra_operations_duration_seconds", ("operation_name", "is_error"), "kubelet"),
    *_histogram(
        "dra_grpc_operations_duration_seconds", ("driver_name", "method_name", "grpc_status_code"), "kubelet",
    ),
    Upstream(name="dra_resource_claims_in_use", labels=("driver_name",), source="kubelet"),
    Upstream(
        name="device_taint_eviction_controller_pod_deletions_total", labels=(),
        source="kube-controller-manager, KEP-5055",
    ),
    *(
        Upstream(
            name=f"{subsystem}_resource_claims", labels=("allocated", "admin_access", "source"),
            source="kube-controller-manager, renamed between releases",
        )
        for subsystem in ("resourceclaim_controller", "dynamic_resource_allocation")
    ),
    *(
        Upstream(name=name, labels=(), source="prometheus_client, in agent and controller")
        for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds")
    ),
)  # fmt: skip

UPSTREAM: Final[Mapping[str, Upstream]] = MappingProxyType({row.name: row for row in _ROWS})

# Labels that Prometheus puts on a series beside its own: by the scrape configuration, and in place of those that
# collide with it.
TARGET_LABELS: Final = frozenset({"cluster", "job", "instance"})
NODE_TARGET_LABELS: Final = TARGET_LABELS | {"node"}  # on series of the agents
OVERWRITTEN: Final = frozenset({"exported_namespace", "exported_pod", "exported_container"})
