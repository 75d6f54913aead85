"""Under which name, unit and attributes does a family appear in OpenTelemetry? Pure data, and what follows from it.

Devices follow the hardware conventions (`hw.*`), claims and everything that they do not know have names of our own
(`dra.*`). A family without a name in its row gets one by rule: the first two words of its name with dots between them,
then the rest, without unit and `_total`. Prometheus' OTLP receiver writes dots as `_` and puts unit and `_total` back,
so that a family named by the rule has there the name under which it is scraped; the others have another one there.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from claimscope.metrics import health
from claimscope.metrics.spec import Family, Quantity, Split, Type, Unit, View, family_name
from claimscope.model import Histogram, Sample

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"  # of the semantic conventions that the names are taken from

Labels = tuple[tuple[str, str], ...]


class Instrument(enum.Enum):
    """What kind of stream a metric is in OTLP."""

    GAUGE = "gauge"
    COUNTER = "counter"  # cumulative monotonic sum
    UPDOWN = "updowncounter"  # cumulative sum that may fall
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One OpenTelemetry metric."""

    name: str
    description: str
    unit: str  # UCUM; empty for numbers of things
    instrument: Instrument


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """How the series of a family, or of one row of it, become points of a metric."""

    metric: Metric
    fixed: tuple[tuple[str, str], ...]
    names: Mapping[str, str]  # label -> attribute; other labels are said by `fixed`
    device: bool  # is about a device alone, and says what it is

    def attributes(self, labels: Labels) -> list[tuple[str, str]]:
        """The attributes of one series; a label without a value has none."""
        names = self.names
        made = [
            (names[label], _PREFIXES[label] + value if label in _PREFIXES else value)
            for label, value in labels
            if value and label in names
        ]
        made += self.fixed
        return made


# Metrics that are no gauge or counter with the unit and the words of the family they come from. Those that several
# families feed need words that fit all of them.
_KNOWN: Mapping[str, tuple[Instrument, str, str]] = MappingProxyType({
    "hw.gpu.utilization": (Instrument.GAUGE, "1", "Fraction of time spent in a specific task."),
    "hw.gpu.memory.limit": (Instrument.UPDOWN, "By", "Size of the GPU memory."),
    "hw.gpu.memory.usage": (Instrument.UPDOWN, "By", "GPU memory used."),
    "hw.gpu.io": (Instrument.COUNTER, "By", "Received and transmitted bytes by the GPU."),
    "hw.energy": (Instrument.COUNTER, "J", "Energy consumed by the component."),
    "hw.power": (Instrument.GAUGE, "W", "Instantaneous power consumed by the component."),
    "hw.errors": (Instrument.COUNTER, "{error}", "Number of errors encountered by the component."),
    "hw.status": (
        Instrument.UPDOWN, "1", "Operational status: `1` (true) or `0` (false) for each of the possible states.",
    ),
    "hw.temperature": (Instrument.GAUGE, "Cel", "Temperature in degrees Celsius."),
    "hw.temperature.limit": (Instrument.GAUGE, "Cel", "Temperature limit in degrees Celsius."),
    "hw.fan.speed": (Instrument.GAUGE, "rpm", "Fan speed in revolutions per minute."),
    "hw.fan.speed_ratio": (Instrument.GAUGE, "1", "Fan speed expressed as a fraction of its maximum speed."),
    "dra.device.nvlink.io": (Instrument.COUNTER, "By", "Bytes over all NVLinks of the device."),
    "dra.device.nvlink.link.io": (Instrument.COUNTER, "By", "Bytes over one NVLink."),
    "dra.device.nvlink.speed": (Instrument.GAUGE, "By/s", "Bytes per second that the NVLink can carry."),
})  # fmt: skip

_ATTRIBUTES: Mapping[str, str] = MappingProxyType({
    "uuid": "hw.id",
    "gpu": "hw.name",
    "parent_uuid": "hw.parent",
    "model": "hw.model",
    "serial": "hw.serial_number",
    "driver_version": "hw.driver_version",
    "vbios_version": "hw.firmware_version",
    "xid": "error.type",
    "pid": "process.pid",
    "engine": "dra.device.engine",
    "link": "dra.device.nvlink.link",
    "fan": "dra.device.fan",
    "namespace": "k8s.namespace.name",
    "pod": "k8s.pod.name",
    "container": "k8s.container.name",
    "node": "k8s.node.name",
    "resourceclaim": "dra.claim.name",
    "claim_uid": "dra.claim.uid",
    "deviceclass": "dra.device_class",
})  # fmt: skip
_PREFIXES: Mapping[str, str] = MappingProxyType({"gpu": "gpu", "xid": "xid_"})
INTEGERS = frozenset({"process.pid"})  # attributes that the conventions want as numbers

# Labels of gpu_info that every metric about a device carries.
DEVICE_FACTS = ("parent_uuid", "model", "serial", "driver_version", "vbios_version")
INFO = "gpu_info"
STATUS = "gpu_status"  # not scraped: the family that hardware_status makes of gpu_health
VENDOR = ("hw.vendor", "NVIDIA")

# Prefix of a family -> prefix of its metric's name, with the words of families() about it.
_ACCOUNTS = (
    ("dra_claim_gpu", "dra.claim.device.", "The part of a ResourceClaim."),
    ("pod_gpu", "dra.pod.device.", "The part of a device-plugin container."),
    ("gpu_unattributed", "dra.device.unattributed.", "The part that no holder can be given."),
)
_STRIPPED = ("dra.claim.device.", "dra.device.", "hw.gpu.", "hw.")  # of a device's metric, to name its accounts
_TYPES = {
    Type.GAUGE: Instrument.GAUGE, Type.INFO: Instrument.GAUGE, Type.COUNTER: Instrument.COUNTER,
    Type.HISTOGRAM: Instrument.HISTOGRAM,
}  # fmt: skip


_SUFFIXES = {
    "s": "seconds", "By": "bytes", "J": "joules", "W": "watts", "Cel": "celsius", "Hz": "hertz",
    "By/s": "bytes_per_second",
}  # fmt: skip


def prometheus_name(metric: Metric) -> str:
    """What Prometheus' OTLP receiver calls a metric: https://github.com/prometheus/otlptranslator, with suffixes."""
    name = metric.name.replace(".", "_")
    suffix = _SUFFIXES.get(metric.unit, "" if metric.unit.startswith("{") else metric.unit)
    if metric.unit == "1":
        suffix = "ratio" if metric.instrument is Instrument.GAUGE else ""
    if suffix and not set(suffix.split("_")) <= set(name.split("_")):
        name += "_" + suffix
    if metric.instrument is Instrument.COUNTER:
        name = name.removesuffix("_total") + "_total"
    return name


def hardware_status(samples: Iterable[Sample | Histogram]) -> list[Sample]:
    """gpu_health in OpenTelemetry's words: one sample for each of them, where two states of ours may be one."""
    states: dict[Labels, float] = {}
    for sample in samples:
        if isinstance(sample, Sample) and sample.family == health.HEALTH:
            labels = tuple(
                (name, health.OTEL_STATES[value] if name == "state" else value) for name, value in sample.labels
            )
            states[labels] = max(states.get(labels, 0.0), sample.value)
    return [Sample(family=STATUS, labels=labels, value=value) for labels, value in states.items()]


class OtelConflictError(ValueError):
    """Two families describe one metric differently."""


def attribute_of(label: str, family: str) -> str:
    """The attribute that a label becomes."""
    if label == "namespace" and family.startswith(("dra_claim_", "kube_resourceclaim_")):
        return "dra.claim.namespace"
    if family.startswith("claimscope_") and label not in ("uuid", "node"):
        return f"claimscope.{label}"
    return _ATTRIBUTES.get(label) or f"dra.{label}"


def name_by_rule(family: Family) -> str:
    """The name of a metric that has none in a row."""
    name = family.name
    if family.type is Type.COUNTER:
        name = name.removesuffix("_total")
    if family.unit.suffix:
        name = name.removesuffix("_" + family.unit.suffix)
    return ".".join(name.split("_", 2))


class OtelTable:
    """Where each family goes; made once from the metric tables."""

    def __init__(self, families: Mapping[str, Family], quantities: Sequence[Quantity] = ()) -> None:
        self.metrics: dict[str, Metric] = {}
        self._rows: dict[str, _Rows] = {}
        rows: dict[str, list[tuple[Mapping[str, str], Stream]]] = {}
        for quantity in quantities:
            for view in quantity.views:
                for name, labels, stream in self._of_view(families, quantity, view):
                    rows.setdefault(name, []).append((labels, stream))
        for family in families.values():
            if family.name == health.HEALTH:
                rows[STATUS] = list(self._of_status(family))
            if family.name not in rows:
                name = family.otel or name_by_rule(family)
                rows[family.name] = [({}, self._stream(family, name, family.labels, {}))]
        for name, members in rows.items():
            self._rows[name] = _Rows(members)

    def stream(self, family: str, labels: Labels) -> Stream | None:
        """How a series is sent; None for a family that no table has."""
        rows = self._rows.get(family)
        return None if rows is None else rows.of(labels)

    def names(self, family: str) -> tuple[str, ...]:
        """The metrics that a family becomes."""
        rows = self._rows.get(family)
        return () if rows is None else tuple(dict.fromkeys(stream.metric.name for stream in rows.streams))

    def streams(self, family: str) -> tuple[Stream, ...]:
        """All ways in which series of a family are sent."""
        rows = self._rows.get(family)
        return () if rows is None else rows.streams

    def _of_view(
        self, families: Mapping[str, Family], quantity: Quantity, view: View
    ) -> Iterable[tuple[str, Mapping[str, str], Stream]]:
        if view.otel is None:
            return  # named by rule
        device = families.get(family_name("gpu", view))
        if device is not None and quantity.device_family:
            names = {} if quantity.text_label is None else {quantity.text_label: view.otel}
            yield device.name, view.labels, self._stream(device, view.otel, _free(device, view), view.otel_attributes,
                                                         names)
        if view.split is Split.NO:
            return
        attributes = {name: value for name, value in view.otel_attributes.items() if name != "hw.type"}
        for prefix, otel, about in _ACCOUNTS:
            family = families[family_name(prefix, view)]
            name = otel + next(view.otel.removeprefix(each) for each in _STRIPPED if view.otel.startswith(each))
            yield family.name, view.labels, self._stream(family, name, _free(family, view), attributes,
                                                         like=view.otel, about=about)

    def _of_status(self, family: Family) -> Iterable[tuple[Mapping[str, str], Stream]]:
        free = tuple(label for label in family.labels if label != "state")
        for word in dict.fromkeys(health.OTEL_STATES.values()):
            attributes = {"hw.type": "gpu", "hw.state": word}
            yield {"state": word}, self._stream(family, "hw.status", free, attributes)

    def _stream(
        self, family: Family, name: str, labels: Iterable[str], attributes: Mapping[str, str],
        more: Mapping[str, str] | None = None, *, like: str = "", about: str = "",
    ) -> Stream:
        """`like` names the device's metric that an account is a part of, `about` says which part."""
        names = {label: attribute_of(label, family.name) for label in labels} | dict(more or {})
        return Stream(
            metric=self._metric(family, name, like or name, about), fixed=tuple(attributes.items()),
            names=MappingProxyType(names), device=name.startswith(("hw.", "dra.device.")) and "uuid" in family.labels,
        )

    def _metric(self, family: Family, name: str, like: str, about: str) -> Metric:
        known = _KNOWN.get(like)
        if known is not None:
            instrument, unit, description = known
            description = f"{description} {about}".rstrip()
        else:
            instrument, unit, description = _TYPES[family.type], unit_of(family), family.help
        made = Metric(name=name, description=description, unit=unit, instrument=instrument)
        found = self.metrics.setdefault(name, made)
        if found != made:
            raise OtelConflictError(
                f"the metric {name} is described twice and differently: {found} and {made} (of {family.name}); "
                "give it one description in metrics/otel.py"
            )
        return found


def unit_of(family: Family) -> str:
    """The unit in OTLP; none for numbers of things, since Prometheus would call a gauge of unit 1 a ratio."""
    return "" if family.unit is Unit.ONE else family.unit.ucum


def _free(family: Family, view: View) -> tuple[str, ...]:
    """Labels whose values are found at run time, as far as the view's attributes do not say them."""
    return tuple(label for label in family.labels if label not in view.labels)


class _Rows:
    """The streams of one family, by the values of the labels in which its rows differ."""

    __slots__ = ("_by_values", "_keys", "_only", "streams")

    def __init__(self, rows: Sequence[tuple[Mapping[str, str], Stream]]) -> None:
        self._keys = tuple(dict.fromkeys(label for labels, _ in rows for label in labels))
        self._by_values = {
            tuple(labels.get(key, "") for key in self._keys): stream for labels, stream in rows
        }
        self.streams = tuple(self._by_values.values())
        self._only = self.streams[0] if not self._keys else None

    def of(self, labels: Labels) -> Stream | None:
        if self._only is not None:
            return self._only
        values = dict(labels)
        return self._by_values.get(tuple([values.get(key, "") for key in self._keys]))
