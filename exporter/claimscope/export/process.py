"""What does the agent's own process use? prometheus_client's process, platform and garbage collector figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from claimscope.metrics.spec import Family, Type, Unit
from claimscope.model import Sample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client.metrics_core import Metric

_TYPES = {"counter": Type.COUNTER, "gauge": Type.GAUGE}


class ProcessSamples:
    """`process_*`, `python_gc_*` and `python_info` as samples of ours, from a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._labels: dict[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]] = {}
        self.families: Mapping[str, Family] = {
            family.name: family for metric in self._registry.collect() for family in [_family(metric)]
        }

    def samples(self) -> list[Sample]:
        """The figures now; reads /proc/self."""
        made: list[Sample] = []
        for metric in self._registry.collect():
            for sample in metric.samples:
                if sample.name in self.families:  # not the _created gauges
                    labels = tuple(sample.labels.items())
                    labels = self._labels.setdefault(labels, labels)
                    made.append(Sample(family=sample.name, labels=labels, value=float(sample.value)))
        return made


def _family(metric: Metric) -> Family:
    kind = _TYPES.get(metric.type, Type.GAUGE)
    name = metric.name + ("_total" if kind is Type.COUNTER else "")
    if name.endswith("_info"):
        kind = Type.INFO
    unit = next((unit for unit in Unit if unit.suffix and metric.name.endswith("_" + unit.suffix)), Unit.ONE)
    labels = tuple(metric.samples[0].labels) if metric.samples else ()
    help_text = metric.documentation if metric.documentation.endswith(".") else metric.documentation + "."
    return Family(name=name, help=help_text, type=kind, unit=unit, labels=labels)
