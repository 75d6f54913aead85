"""What does prometheus-operator make of a monitor? The scrape configuration that Prometheus gets from it.

As pkg/prometheus/promcfg.go of prometheus-operator 0.80 writes it, but for where targets are found: a file of ours
takes the place of the cluster, with the labels that Prometheus finds there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_SNAKE: Final = re.compile(r"(?<=[a-z])([A-Z])")
_NO_LABEL: Final = re.compile(r"[^a-zA-Z0-9_]")


def as_label(name: str) -> str:
    """A label of Kubernetes as Prometheus spells it in a name."""
    return _NO_LABEL.sub("_", name)


def relabeling(given: Mapping[str, Any]) -> dict[str, Any]:
    """A relabeling of a monitor, as Prometheus has it."""
    return {_SNAKE.sub(lambda found: f"_{found[1].lower()}", key): value for key, value in given.items()}


def _copied(source: str, target: str) -> dict[str, Any]:
    return {"source_labels": [source], "target_label": target}


def _selected(selector: Mapping[str, Any], of: str) -> list[dict[str, Any]]:
    return [
        {"action": "keep", "regex": f"({re.escape(value)});true",
         "source_labels": [f"__meta_kubernetes_{of}_label_{as_label(key)}",
                           f"__meta_kubernetes_{of}_labelpresent_{as_label(key)}"]}
        for key, value in selector["matchLabels"].items()
    ]  # fmt: skip


def _of_pods(monitor: Mapping[str, Any], endpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    name = f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}"
    return [
        {"action": "drop", "source_labels": ["__meta_kubernetes_pod_phase"], "regex": "(Failed|Succeeded)"},
        *_selected(monitor["spec"]["selector"], "pod"),
        {"action": "keep", "source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": endpoint["port"]},
        _copied("__meta_kubernetes_namespace", "namespace"),
        _copied("__meta_kubernetes_pod_container_name", "container"),
        _copied("__meta_kubernetes_pod_name", "pod"),
        {"target_label": "job", "replacement": name},
        {"target_label": "endpoint", "replacement": endpoint["port"]},
    ]


def _of_services(monitor: Mapping[str, Any], endpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        *_selected(monitor["spec"]["selector"], "service"),
        {"action": "keep", "source_labels": ["__meta_kubernetes_endpointslice_port_name"], "regex": endpoint["port"]},
        *(
            {"source_labels": ["__meta_kubernetes_endpointslice_address_target_kind",
                               "__meta_kubernetes_endpointslice_address_target_name"],
             "separator": ";", "regex": f"{kind};(.*)", "replacement": "${1}", "target_label": kind.lower()}
            for kind in ("Node", "Pod")
        ),
        _copied("__meta_kubernetes_namespace", "namespace"),
        _copied("__meta_kubernetes_service_name", "service"),
        _copied("__meta_kubernetes_pod_name", "pod"),
        _copied("__meta_kubernetes_pod_container_name", "container"),
        {"action": "drop", "source_labels": ["__meta_kubernetes_pod_phase"], "regex": "(Failed|Succeeded)"},
        {"source_labels": ["__meta_kubernetes_service_name"], "target_label": "job", "replacement": "${1}"},
        {"target_label": "endpoint", "replacement": endpoint["port"]},
    ]  # fmt: skip


def scrape_config(
    monitor: Mapping[str, Any], targets: Path, *, interval: str, without: Sequence[str] = ()
) -> dict[str, Any]:
    """The job of a monitor with one endpoint; its own `relabelings` and the like can be left out."""
    kind = monitor["kind"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints" if kind == "PodMonitor" else "endpoints"]
    given = {key: value for key, value in endpoint.items() if key not in without}
    name = f"{kind[0].lower()}{kind[1:]}/{monitor['metadata']['namespace']}/{monitor['metadata']['name']}/0"
    standard = _of_pods if kind == "PodMonitor" else _of_services
    return {
        "job_name": "/".join([name, *without]),
        "honor_labels": given["honorLabels"],
        "scrape_interval": interval,
        "scrape_timeout": interval,
        "metrics_path": given["path"],
        "scheme": given["scheme"],
        "file_sd_configs": [{"files": [str(targets)]}],
        "relabel_configs": [
            _copied("job", "__tmp_prometheus_job_name"),
            *standard(monitor, given),
            *map(relabeling, given.get("relabelings", [])),
        ],
        "metric_relabel_configs": [*map(relabeling, given.get("metricRelabelings", []))],
    }


def found_pod(
    address: str, *, name: str, node: str, namespace: str, labels: Mapping[str, str], port: str, container: str
) -> dict[str, str]:
    """The labels with which Prometheus discovers a port of a pod."""
    return {
        "__address__": address,
        "__meta_kubernetes_namespace": namespace,
        "__meta_kubernetes_pod_name": name,
        "__meta_kubernetes_pod_node_name": node,
        "__meta_kubernetes_pod_container_name": container,
        "__meta_kubernetes_pod_container_port_name": port,
        "__meta_kubernetes_pod_phase": "Running",
        **{f"__meta_kubernetes_pod_label_{as_label(key)}": value for key, value in labels.items()},
        **{f"__meta_kubernetes_pod_labelpresent_{as_label(key)}": "true" for key in labels},
    }


def found_endpoint(pod: Mapping[str, str], *, service: str, labels: Mapping[str, str], port: str) -> dict[str, str]:
    """The labels with which Prometheus discovers the same by a Service."""
    return {
        **pod,
        "__meta_kubernetes_service_name": service,
        "__meta_kubernetes_endpointslice_port_name": port,
        "__meta_kubernetes_endpointslice_address_target_kind": "Pod",
        "__meta_kubernetes_endpointslice_address_target_name": pod["__meta_kubernetes_pod_name"],
        **{f"__meta_kubernetes_service_label_{as_label(key)}": value for key, value in labels.items()},
        **{f"__meta_kubernetes_service_labelpresent_{as_label(key)}": "true" for key in labels},
    }


def as_file(targets: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """What a file of targets has."""
    return [
        {"targets": [each["__address__"]], "labels": {k: v for k, v in each.items() if k != "__address__"}}
        for each in targets
    ]
