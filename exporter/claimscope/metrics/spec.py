"""What a row of the metric tables is, and how families follow from it.

A `Quantity` says how a number is read from NVML, how often, and on which entities; its `View`s say under which
names it appears. Everything else (families, help texts, labels, docs, OTLP names, DCGM names) is derived.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Via(enum.Enum):
    """The way a number is read from NVML."""

    CALL = "call"  # a function of nvml/calls.py, by name
    FIELD = "field"  # nvmlDeviceGetFieldValues, by symbolic name resolved per driver branch in nvml/fields.py
    GPM = "gpm"  # GPU performance monitoring, by metric name of nvml/gpm.py


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One way to read a quantity. A quantity tries its reads in order until one is supported."""

    via: Via
    name: str  # function, field symbol ("TOTAL_ENERGY_CONSUMPTION") or GPM metric ("SM_UTIL")
    member: str | None = None  # member of the answer, where it has several
    scale: float = 1.0  # answer x scale = base unit
    bit: int | None = None  # mask: the answer is a bit field and this quantity is 1.0 where any bit of it is set
    scope: int | None = None  # scopeId of the field: power scope, or 0xFFFFFFFF for all NVLinks; None: 0, or the axis


class Kind(enum.Enum):
    """How a reading behaves."""

    GAUGE = "gauge"
    COUNTER = "counter"  # the driver counts; may restart at a driver load, GPU reset or wrap
    TEXT = "text"  # an enumeration, shown as a label


class Tier(enum.Enum):
    """How often a quantity is read (period in seconds at the default rate; TICK follows --sampling-hz)."""

    TICK = 0.1
    GPM = 1.0001
    SECOND = 1.0
    SLOW = 10.0
    RARE = 60.0
    EVENT = 0.0


class Scope(enum.Enum):
    """Which entities carry the quantity."""

    GPU = "gpu"  # the GPU, also while MIG is on
    LEAF = "leaf"  # the MIG devices where there are any, else the GPU; never both
    PART = "part"  # the GPU and each MIG device on it (memory, uncorrectable SRAM errors)


class Split(enum.Enum):
    """How an account gets its part of a device that several hold."""

    NO = "no"  # device family only
    SHARE = "share"  # by declared share
    OBSERVED = "observed"  # by what is seen per process; without that only an exclusive holder gets it


class Stat(enum.Enum):
    """Which figure of the window a view shows."""

    LAST = "last"
    MIN = "min"  # rolling minimum over the last completed minute, aligned to the clock
    MAX = "max"
    TOTAL = "total"  # a driver counter followed across epochs, or the time integral of a gauge


class Unit(enum.Enum):
    """Base units: the Prometheus suffix and the UCUM code of OpenTelemetry."""

    SECONDS = ("seconds", "s")
    BYTES = ("bytes", "By")
    JOULES = ("joules", "J")
    WATTS = ("watts", "W")
    CELSIUS = ("celsius", "Cel")
    HERTZ = ("hertz", "Hz")
    RATIO = ("ratio", "1")
    ONE = ("", "1")

    @property
    def suffix(self) -> str:
        """What stands at the end of a Prometheus name, without the underscore."""
        return self.value[0]

    @property
    def ucum(self) -> str:
        """The unit code in OTLP."""
        return self.value[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One name under which a quantity appears; rows that share a stem share the family and must agree on it."""

    stem: str  # "power": becomes gpu_power_watts
    help: str  # one sentence, without the unit; ends with a full stop
    stat: Stat
    unit: Unit
    since: str = "0.1.0"
    labels: Mapping[str, str] = field(default_factory=dict)  # fixed labels of this row: {"engine": "sm"}
    split: Split = Split.NO
    otel: str | None = None  # OpenTelemetry metric name: "hw.power"
    otel_attributes: Mapping[str, str] = field(default_factory=dict)
    dcgm: str | None = None  # DCGM field with the same meaning: "DCGM_FI_DEV_POWER_USAGE"
    dcgm_scale: float = 1.0  # base unit x dcgm_scale = DCGM's unit
    dcgm_rate: bool = False  # DCGM's field is the rate per second of this total, not the total


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One thing that NVML measures."""

    key: str  # reading key: "power_instant"
    reads: tuple[Read, ...]
    kind: Kind
    tier: Tier
    scope: Scope
    views: tuple[View, ...]
    axis: str | None = None  # label whose values are found at run time: "link", "fan", "sensor"
    opt_in: str | None = None  # name of the collector switch that must be on: "nvlink-per-link", "processes"
    text_label: str | None = None  # Kind.TEXT: the label that carries the value
    values: Mapping[int, str] = field(default_factory=dict)  # Kind.TEXT: number -> word; others are shown as the number
    device_family: bool = True  # False: only accounts and the unattributed rest have it, there is no gpu_* family


class Type(enum.Enum):
    """Prometheus metric types that we expose."""

    GAUGE = "gauge"
    COUNTER = "counter"
    INFO = "info"  # a gauge that is always 1; its name ends in _info
    HISTOGRAM = "histogram"
    BARE_COUNTER = "bare counter"  # of others, whose name does not end in _total


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric family as it appears in an exposition."""

    name: str  # full name, with unit and, for counters, _total
    help: str
    type: Type
    unit: Unit
    labels: tuple[str, ...]  # every label a series of it may carry, in order
    since: str = "0.1.0"
    otel: str | None = None  # OpenTelemetry metric name, where metrics/otel.py does not derive it from what is above


DEVICE_LABELS = ("uuid", "gpu")
CLAIM_LABELS = ("namespace", "resourceclaim", "claim_uid", "uuid", "attribution")
POD_LABELS = ("namespace", "pod", "container", "uuid", "attribution")
WINDOW_LABEL = "window"  # on rolling minima and maxima


def family_name(prefix: str, view: View) -> str:
    """The Prometheus name of a view: prefix, stem, statistic, unit, `_total`, in this order."""
    parts = [prefix, view.stem]
    if view.stat in (Stat.MIN, Stat.MAX):
        parts.append(view.stat.value)
    if view.unit.suffix:
        parts.append(view.unit.suffix)
    if view.stat is Stat.TOTAL:
        parts.append("total")
    return "_".join(parts)


def _extra_labels(quantity: Quantity, view: View) -> tuple[str, ...]:
    extra = tuple(view.labels)
    if quantity.axis is not None:
        extra += (quantity.axis,)
    if quantity.text_label is not None:
        extra += (quantity.text_label,)
    if view.stat in (Stat.MIN, Stat.MAX):
        extra += (WINDOW_LABEL,)
    return extra


def families(quantity: Quantity) -> tuple[Family, ...]:
    """Every family one quantity feeds: device, and for split views claim, pod and unattributed."""
    made: list[Family] = []
    for view in quantity.views:
        kind = Type.COUNTER if view.stat is Stat.TOTAL else Type.GAUGE
        extra = _extra_labels(quantity, view)

        def make(prefix: str, labels: tuple[str, ...], about: str, view: View = view, kind: Type = kind) -> Family:
            return Family(
                name=family_name(prefix, view), help=view.help + about, type=kind, unit=view.unit, labels=labels,
                since=view.since,
            )

        if quantity.device_family:
            made.append(make("gpu", DEVICE_LABELS + extra, ""))
        if view.split is not Split.NO:
            made.append(make("dra_claim_gpu", CLAIM_LABELS + extra, " The part of a ResourceClaim."))
            made.append(make("pod_gpu", POD_LABELS + extra, " The part of a device-plugin container."))
            made.append(make("gpu_unattributed", DEVICE_LABELS + extra, " The part that no holder can be given."))
    return tuple(made)
