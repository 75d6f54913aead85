"""Which series of dcgm-exporter does a Snapshot amount to?

A family stands for a number that was measured, or it has no series: nothing is made up to complete the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from claimscope.export.dcgm import events
from claimscope.export.dcgm.rows import PER_LINK, Row, Source, rate_periods, rows
from claimscope.export.dcgm.subjects import Labels, Subject, subjects
from claimscope.health.xids import CATALOGUE
from claimscope.metrics.spec import Family, Quantity, Scope, Unit
from claimscope.model import Sample, Snapshot, Window

if TYPE_CHECKING:
    from claimscope.config import DcgmFamilies, DcgmHostnameLabel, DcgmNames

_NO_XID = "No Error"  # dcgm-exporter's words
_UNKNOWN_XID = "Unknown Error"
_REMOTE = "nvlink_remote/"
_UP = "nvlink_up/"
_SWITCH = "switch"
_FRACTION_DIGITS = 6  # as %f
_EVENTS: Final[Mapping[str, Callable[[Subject, Snapshot], Iterator[tuple[Labels, float]]]]] = MappingProxyType({
    "DCGM_EXP_CLOCK_EVENTS_COUNT": events.clock_events_in_window,
    "DCGM_EXP_CLOCK_EVENTS_TOTAL": events.clock_events_in_all,
    "DCGM_EXP_XID_ERRORS_COUNT": events.xids_in_window,
    "DCGM_EXP_XID_ERRORS_TOTAL": events.xids_in_all,
    "DCGM_EXP_GPU_HEALTH_STATUS": events.health,
})  # fmt: skip


class DcgmCollector:
    """Applies the rows to Snapshots; remembers nothing but label tuples."""

    def __init__(
        self,
        quantities: Sequence[Quantity],
        *,
        families: DcgmFamilies = "on",
        names: DcgmNames = "dcgm-exporter",
        hostname_label: DcgmHostnameLabel = "Hostname",
    ) -> None:
        chosen = [row for row in rows(quantities) if row.default or families == "all"]
        self._rows = [(row, _names(row, names)) for row in chosen]
        self._hostname_label = hostname_label
        self._known: tuple[object, object, Mapping[str, frozenset[int]], str] | None = None
        self._subjects: tuple[Subject, ...] = ()
        self.rate_periods = rate_periods(chosen, quantities)  # what Snapshot.rates must hold
        self.families: Mapping[str, Family] = {
            name: Family(name=name, help=row.help, type=row.type, unit=Unit.ONE, labels=())
            for row, row_names in self._rows
            for name in row_names
        }

    def collect(self, snapshot: Snapshot) -> list[Sample]:
        """All samples, grouped by family."""
        present = [
            (subject, entity, _last_xid(snapshot, subject))
            for subject in self._follow(snapshot)
            if (entity := _answering(subject, snapshot)) is not None
        ]
        samples: list[Sample] = []
        for row, names in self._rows:
            if row.source is Source.LINK:
                samples += _links(row, names, [subject for subject, _, _ in present], snapshot)
                continue
            numbers = [
                (subject, more, _rounded(row, value))
                for subject, entity, xid in present
                for more, value in _values(row, subject, entity, snapshot, xid)
            ]
            for name in names:
                samples += [
                    Sample(family=name, labels=series.with_(more), value=value)
                    for subject, more, value in numbers
                    for series in subject.series
                ]
        return samples

    def _follow(self, snapshot: Snapshot) -> tuple[Subject, ...]:
        """The subjects; made anew only when devices, holders or links are not those of before."""
        inventory = snapshot.inventory
        if inventory is None:
            return ()
        switched = {uuid: links for uuid, window in snapshot.windows.items() if (links := _switched(window))}
        now = (inventory, snapshot.holds, switched, snapshot.node)
        known = self._known
        if known is None or known[0] is not inventory or known[1] is not snapshot.holds or known[2:] != now[2:]:
            self._known = now
            self._subjects = subjects(inventory, snapshot.holds, switched, snapshot.node, self._hostname_label)
        return self._subjects


def _names(row: Row, names: DcgmNames) -> tuple[str, ...]:
    match names:
        case "dcgm-exporter":
            return (row.name,)
        case "dcgm-4.6":
            return (row.renamed,)
        case "both":
            return tuple(dict.fromkeys((row.name, row.renamed)))


def _switched(window: Window) -> frozenset[int]:
    return frozenset(
        int(key.removeprefix(_REMOTE))
        for key, word in window.text.items()
        if word == _SWITCH and key.startswith(_REMOTE)
    )


def _answering(subject: Subject, snapshot: Snapshot) -> str | None:
    """Who is asked for the readings of a subject: the first of its members that answers, on a GPU that does."""
    if not snapshot.up.get(subject.gpu.entity.uuid, False):
        return None
    return next((member for member in subject.members if snapshot.up.get(member, False)), None)


def _values(
    row: Row, subject: Subject, entity: str, snapshot: Snapshot, xid: int
) -> Iterator[tuple[Labels, float]]:
    """The numbers of a row for a subject, in DCGM's unit, each with the labels that this family has alone."""
    if row.source is Source.XID:
        yield _xid_labels(xid), float(xid)
        return
    if row.source is Source.EVENTS:
        yield from _EVENTS[row.name](subject, snapshot)
        return
    whose = _whose(row, subject, entity)
    if whose is None:
        return
    if row.source is Source.RATE:
        rates = snapshot.rates.get(whose, {})
        if len(row.keys) == 1 and row.keys[0] in PER_LINK:
            yield from _pair_rates(row.keys[0], subject, rates, _active_links(snapshot.windows.get(whose)))
            return
        readings: Mapping[str, float] = rates
    else:
        window = snapshot.windows.get(whose)
        if window is None:
            return
        readings = window.raw if row.source is Source.COUNTER else window.last
    found = [readings[key] for key in row.keys if key in readings]
    if found and len(found) == len(row.keys):
        yield (), sum(found) * row.scale


def _links(row: Row, names: Sequence[str], present: Sequence[Subject], snapshot: Snapshot) -> list[Sample]:
    """Of each NVLink that is read by itself; the links are the GPU's, whatever is on it."""
    (key,) = row.keys
    numbers = [
        (subject, name.removeprefix(f"{key}/"), _rounded(row, value * row.scale))
        for subject in present
        if not subject.instance and (window := snapshot.windows.get(subject.gpu.entity.uuid)) is not None
        for name, value in window.raw.items()
        if name.startswith(f"{key}/")
    ]
    return [
        Sample(family=name, labels=series.of_link(link), value=value)
        for name in names
        for subject, link, value in numbers
        for series in subject.series
    ]


def _whose(row: Row, subject: Subject, entity: str) -> str | None:
    """Whose reading a subject shows: as in dcgm-exporter, an instance repeats what only its GPU has."""
    if not subject.instance or row.scope is Scope.GPU:
        return subject.gpu.entity.uuid
    if row.scope is Scope.LEAF and not subject.whole:
        return None  # one compute instance is not the instance
    return entity


def _active_links(window: Window | None) -> frozenset[int]:
    """The NVLinks that are up."""
    readings = {} if window is None else window.last
    return frozenset(
        int(key.removeprefix(_UP)) for key, value in readings.items() if key.startswith(_UP) and value
    )


def _pair_rates(
    key: str, subject: Subject, rates: Mapping[str, float], active: frozenset[int]
) -> Iterator[tuple[Labels, float]]:
    """NVLink traffic by GPU pair where it is known: all active links lead to one place, or each is read by itself."""
    total = rates.get(key)
    leading = {pair: up for pair, links in subject.pairs.items() if (up := active & set(links))}
    if not active or active != frozenset().union(*leading.values()):
        leading = {}  # nobody knows where the others lead, and what of the traffic is theirs
    if len(leading) > 1:
        link_key = PER_LINK[key]
        by_pair = {pair: [rates.get(f"{link_key}/{link}") for link in links] for pair, links in leading.items()}
        if all(rate is not None for found in by_pair.values() for rate in found):
            for pair, found in by_pair.items():
                yield (("gpu_pair", pair),), sum(rate for rate in found if rate is not None)
            return
    if total is not None:
        yield tuple(("gpu_pair", pair) for pair in leading) if len(leading) == 1 else (), total


def _last_xid(snapshot: Snapshot, subject: Subject) -> int:
    """The last XID on the GPU or in the instance; 0 while there was none."""
    seen = [count for count in snapshot.xids if count.count and count.entity in subject.entities]
    return max(seen, key=lambda count: count.last_wall_ns).xid if seen else 0


def _xid_labels(code: int) -> Labels:
    row = CATALOGUE.get(code)
    words = _NO_XID if code == 0 else _UNKNOWN_XID if row is None or not row.known else row.meaning
    return (("err_code", str(code)), ("err_msg", words))


def _rounded(row: Row, value: float) -> float:
    """As DCGM gives it; the little that is added takes back what floats lose in 0.29 x 100."""
    return float(math.floor(value + 1e-6)) if row.whole else round(value, _FRACTION_DIGITS)
