"""What is worth asking of a demo's metrics, and how does an answer read?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

RATE_SECONDS: Final = 10  # the queries' range: as much as a demo has seen after a few moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One question worth asking."""

    title: str
    promql: str
    labels: tuple[str, ...]  # shown in front of each value
    unit: str
    scale: float = 1.0
    rows: int = 6  # shown at most


QUERIES = (
    Query(
        title="Power that each claim draws, whichever GPUs, MIG devices or shares it holds",
        promql=(
            "sort_desc(sum by (namespace, resourceclaim) "
            f"(rate(dra_claim_gpu_energy_joules_total[{RATE_SECONDS}s])))"
        ),
        labels=("namespace", "resourceclaim"),
        unit="W",
    ),
    Query(
        title="How busy the GPUs are that a claim holds: what is allocated and idle stands at the bottom",
        promql=(
            "sort_desc("
            f'sum by (namespace, resourceclaim) (rate(dra_claim_gpu_busy_seconds_total{{engine="gpu"}}'
            f"[{RATE_SECONDS}s]))"
            f" / sum by (namespace, resourceclaim) (rate(dra_claim_gpu_allocated_seconds_total[{RATE_SECONDS}s])))"
        ),
        labels=("namespace", "resourceclaim"),
        unit="%",
        scale=100.0,
    ),
    Query(
        title="Power that nobody holds a claim for: idle GPUs, by device",
        promql=f"sum by (node, gpu) (rate(gpu_unattributed_energy_joules_total[{RATE_SECONDS}s])) > 0",
        labels=("node", "gpu"),
        unit="W",
    ),
    Query(
        title="Claims that wait, by the reason for it",
        promql="sort_desc(count by (reason) (dra_claim_pending_reason))",
        labels=("reason",),
        unit="claims",
        rows=30,
    ),
    Query(
        title="What is left: devices by class and state",
        promql="sort_desc(sum by (deviceclass, state) (dra_pool_devices) > 0)",
        labels=("deviceclass", "state"),
        unit="devices",
        rows=12,
    ),
    Query(
        title="Half of the claims were allocated in less than",
        promql=(
            "histogram_quantile(0.5, sum by (deviceclass, le) "
            '(dra_allocation_duration_seconds_bucket{phase="scheduling"})) > 0'
        ),
        labels=("deviceclass",),
        unit="s",
    ),
)


def rows_of(answer: object, query: Query) -> list[str]:
    """An answer of Prometheus' query API as lines to read; empty where it holds no series yet."""
    found: list[str] = []
    data = answer.get("data") if isinstance(answer, Mapping) else None
    result = data.get("result") if isinstance(data, Mapping) else None
    for series in result if isinstance(result, list) else []:
        name = "/".join(series["metric"].get(label, "") for label in query.labels)
        found.append(f"{name:44} {float(series['value'][1]) * query.scale:8.1f} {query.unit}")
    return found


def totals_of(exposition: str) -> list[str]:
    """Energy of each claim from an exposition alone, as lines to read; for machines without Prometheus."""
    joules: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == "dra_claim_gpu_energy_joules_total":
                joules[f"{sample.labels['namespace']}/{sample.labels['resourceclaim']}"] += sample.value
    return [f"{name:44} {value:8.0f} J" for name, value in sorted(joules.items())]


def reasons_of(exposition: str) -> list[str]:
    """How many claims wait for which reason, from the controller's exposition alone."""
    counts = Counter(
        sample.labels["reason"]
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if sample.name == "dra_claim_pending_reason"
    )
    return [f"{reason:44} {count:8} claims" for reason, count in sorted(counts.items())]
