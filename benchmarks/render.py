"""How long does rendering 5,000 series of 12 labels take, against prometheus_client's generate_latest?

Both write the same values of the same series in text 0.0.4. Every value differs from that of the render before, as it
does between two snapshots; label sets stay, as they do while holders stay. prometheus_client renders metric objects
that are made beforehand, so that only its writing is timed.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from claimscope.export.text import Exposition, Renderer
from claimscope.metrics.spec import Family, Type, Unit
from claimscope.model import Sample, Snapshot

BOUND_RATIO = 10.0
SERIES = 5_000
FAMILIES = 50
LABELS = 12
ROUNDS = 15

_NAMES = tuple(f"label_{number}" for number in range(LABELS))
_FAMILIES = tuple(
    Family(name=f"bench_{number}_watts", help="A gauge.", type=Type.GAUGE, unit=Unit.WATTS, labels=_NAMES)
    for number in range(FAMILIES)
)


def _label_sets() -> list[tuple[tuple[str, str], ...]]:
    return [
        tuple((name, f"value-{series}-of-{name}-0123456789") for name in _NAMES)
        for series in range(SERIES // FAMILIES)
    ]


def _values(turn: int) -> list[float]:
    """A third whole numbers, as counts and bytes are; the rest with all their digits."""
    draw = random.Random(turn)
    return [float(draw.randrange(10**11)) if at % 3 == 0 else draw.random() * 700 for at in range(SERIES)]


class _Fixed(Collector):
    """Metric objects made beforehand."""

    def __init__(self, families: list[GaugeMetricFamily]) -> None:
        self.families = families

    def collect(self) -> Iterator[GaugeMetricFamily]:
        return iter(self.families)


def _theirs(sets: list[tuple[tuple[str, str], ...]], values: list[float]) -> CollectorRegistry:
    families: list[GaugeMetricFamily] = []
    at = 0
    for family in _FAMILIES:
        metric = GaugeMetricFamily(family.name, family.help, labels=_NAMES)
        for labels in sets:
            metric.add_metric([value for _, value in labels], values[at])
            at += 1
        families.append(metric)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fixed(families))
    return registry


def _ours(sets: list[tuple[tuple[str, str], ...]], values: list[float]) -> list[Sample]:
    pairs = [(family.name, labels) for family in _FAMILIES for labels in sets]
    return [
        Sample(family=name, labels=labels, value=value) for (name, labels), value in zip(pairs, values, strict=True)
    ]


def _least(made: list[Callable[[], bytes]]) -> tuple[float, bytes]:
    times: list[float] = []
    body = b""
    for render in made:
        begun = time.process_time()
        body = render()
        times.append(time.process_time() - begun)
    return min(times), body


def run() -> dict[str, float | str]:
    """CPU time of the least disturbed of several renders, of either."""
    sets = _label_sets()
    renderer = Renderer({family.name: family for family in _FAMILIES})
    samples = [_ours(sets, _values(turn)) for turn in range(ROUNDS)]
    registries = [_theirs(sets, _values(turn)) for turn in range(ROUNDS)]
    first = time.process_time()
    renderer.render(_ours(sets, _values(-1)), openmetrics=False)
    first = time.process_time() - first
    ours, mine = _least([lambda s=s: renderer.render(s, openmetrics=False) for s in samples])  # type: ignore[misc]
    theirs, other = _least([lambda r=r: generate_latest(r) for r in registries])  # type: ignore[misc]
    values = [
        [line.rpartition(b" ") for line in body.splitlines() if not line.startswith(b"#")] for body in (mine, other)
    ]
    same = [[float(value) for _, _, value in lines] for lines in values]
    if same[0] != same[1] or len(same[0]) != SERIES:
        raise AssertionError("the two renders do not show the same values")
    snapshot = Snapshot(node="bench", wall_ns=0, monotonic_ns=0, inventory=None)
    exposition = Exposition(snapshot, lambda _: samples[0], renderer)
    exposition.body(openmetrics=False, gzip=False)
    packing = time.process_time()
    exposition.body(openmetrics=False, gzip=True)
    packing = time.process_time() - packing
    return {
        "render_series": float(SERIES),
        "render_body_bytes": float(len(mine)),
        "render_ms": ours * 1e3,
        "render_first_ms": first * 1e3,
        "render_gzip_ms": packing * 1e3,
        "render_prometheus_client_ms": theirs * 1e3,
        "render_speedup_ratio": theirs / ours,
    }


UNITS = {
    "render_series": ("series", ""),
    "render_body_bytes": ("bytes", ""),
    "render_ms": ("ms", ""),
    "render_first_ms": ("ms", ""),
    "render_gzip_ms": ("ms", ""),
    "render_prometheus_client_ms": ("ms", ""),
    "render_speedup_ratio": ("x", f">={BOUND_RATIO:.0f}"),
}

if __name__ == "__main__":
    for name, value in run().items():
        unit, bound = UNITS[name]
        sys.stdout.write(f"{name} {value:.4g} {unit} {bound}\n")
