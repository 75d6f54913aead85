"""How does the controller's snapshot become samples, and the bytes of a scrape with 100,000 claims in it?

`claim_samples` says once what is shown of a claim. A claim's lines are kept as bytes for as long as its ClaimView is
the same object, as kube-state-metrics does, but without what they all begin with: the labels that name the claim are
kept once. A scrape puts both together, chunk by chunk, so that no second copy of the whole exposition ever exists.
What depends on the time (how long a claim waits) is written for each snapshot.
"""

from __future__ import annotations

import threading
import zlib
from functools import lru_cache
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from claimscope.cel.quantity import Quantity, QuantityError
from claimscope.claims.model import ClaimState, ClaimView, ClusterSnapshot
from claimscope.export.text import (
    Labels,
    UnknownFamilyError,
    check_family,
    format_value,
    histogram_lines,
    label_pairs,
    openmetrics_header,
    sample_prefix,
    text_header,
)
from claimscope.metrics import cluster, controller
from claimscope.metrics.cluster import sample
from claimscope.model import Histogram, Sample

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

    from claimscope.config import ClaimSeries
    from claimscope.metrics.spec import Family

# Families of claim_samples, in the order of an exposition.
CLAIM_FAMILIES: Final = (
    "dra_claim_info",
    "kube_resourceclaim_status_allocation_state",
    "dra_claim_created_timestamp_seconds",
    "dra_claim_allocated_timestamp_seconds",
    "dra_claim_requested_devices",
    "dra_claim_device_info",
    "dra_claim_consumed_capacity",
    "dra_claim_device_health",
    "dra_claim_unreferenced",
    "dra_claim_leaked",
)
_ESSENTIAL: Final = frozenset({
    "dra_claim_info", "kube_resourceclaim_status_allocation_state", "dra_claim_device_info", "dra_claim_device_health",
    "dra_claim_leaked",
})  # fmt: skip
_SELECTED: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {"all": frozenset(CLAIM_FAMILIES), "essential": _ESSENTIAL, "off": frozenset()}
)
_NAMES: Final = len(cluster.CLAIM_LABELS)  # all families of claims begin with these labels
_CLAIMS_PER_CHUNK: Final = 1024  # some 300 KB of a family: little enough for an event loop to copy at once

# Stands for the family and the labels that name the claim; no UTF-8 text has this byte.
_BEGINNING: Final = b"\xff"
# Drivers without a health service get Unknown: no number where nothing is known.
_KNOWN_HEALTH: Final = frozenset({"Healthy", "Unhealthy"})

LAYERS: Final = ("claim", "cluster", "own")  # of claimscope_controller_series


def claim_samples(view: ClaimView) -> tuple[Sample, ...]:
    """What is shown of one claim and does not depend on the time."""
    if view.state is ClaimState.DELETED:
        return ()
    claim = (view.namespace, view.name, view.uid)
    workload = view.workload
    made = [
        sample(
            "dra_claim_info", 1, *claim, view.deviceclass, view.template, view.source, view.alternative,
            workload.kind, workload.name, workload.group, workload.queue,
        ),
        sample("kube_resourceclaim_status_allocation_state", 1, *claim, view.state.value),
    ]
    if view.created_wall is not None:
        made.append(sample("dra_claim_created_timestamp_seconds", view.created_wall, *claim))
    if view.allocated_wall is not None:
        made.append(sample("dra_claim_allocated_timestamp_seconds", view.allocated_wall, *claim))
    if view.requested_devices is not None:
        made.append(sample("dra_claim_requested_devices", view.requested_devices, *claim))
    if view.devices:
        made += _device_samples(view, claim)
    if view.state is ClaimState.PENDING and view.referenced is False:
        made.append(sample("dra_claim_unreferenced", 1, *claim))
    if view.leaked:
        made.append(sample("dra_claim_leaked", 1, *claim))
    return tuple(made)


def _device_samples(view: ClaimView, claim: tuple[str, str, str]) -> list[Sample]:
    # Results may repeat each other, and a series may be served only once.
    infos = dict.fromkeys(
        (held.request, *held.key, held.uuid, held.node, held.share_id, "true" if held.admin else "false")
        for held in view.devices
    )
    made = [sample("dra_claim_device_info", 1, *claim, *info) for info in infos]
    consumed: dict[tuple[str, ...], float] = {}
    for held in view.devices:
        for capacity, text in held.consumed.items():
            try:
                amount = Quantity.parse(text).as_float()
            except QuantityError:
                continue  # no number, no series; the API server lets none through
            key = (*held.key, held.share_id, capacity)
            consumed[key] = consumed.get(key, 0.0) + amount
    made += (sample("dra_claim_consumed_capacity", value, *claim, *key) for key, value in consumed.items())
    # Two requests of a claim with adminAccess may both look at one device.
    healths = dict.fromkeys((*held.key, held.health.lower()) for held in view.devices if held.health in _KNOWN_HEALTH)
    made += (sample("dra_claim_device_health", 1, *claim, *key) for key in healths)
    return made


def timed_samples(snapshot: ClusterSnapshot) -> Iterator[Sample]:
    """What is shown of claims and depends on the time: few series, made anew for each snapshot."""
    wall = snapshot.wall_ns / 1e9
    for view in snapshot.claims.values():
        if view.doing is not None and view.doing_since_wall is not None:
            yield sample(
                "dra_claim_held_not_running_seconds", max(0.0, wall - view.doing_since_wall), view.namespace,
                view.name, view.uid, view.doing.value,
            )
    # One pod may lack two claims that have no name yet: their series would be the same one twice.
    pending: dict[tuple[str, ...], float] = {}
    reasons: dict[tuple[str, ...], None] = {}
    for wait in snapshot.waits:
        key = (wait.namespace, wait.claim, wait.claim_uid, wait.pod, wait.deviceclass)
        if wait.since_wall is not None:
            pending[key] = max(pending.get(key, 0.0), wall - wait.since_wall)
        reasons[(*key, wait.diagnosis.reason.value)] = None
    for labels, seconds in pending.items():
        yield sample("dra_claim_pending_seconds", seconds, *labels)
    for labels in reasons:
        yield sample("dra_claim_pending_reason", 1, *labels)


class ClusterCollector:
    """Makes samples of a ClusterSnapshot; keeps nothing between two of them."""

    def __init__(self, claim_series: ClaimSeries = "all") -> None:
        self.selected = _SELECTED[claim_series]
        self.families: Mapping[str, Family] = MappingProxyType({**cluster.FAMILIES, **controller.FAMILIES})

    def claim_samples(self, view: ClaimView) -> Iterator[Sample]:
        """The samples of one claim that are wanted."""
        return (each for each in claim_samples(view) if each.family in self.selected)

    def shared_samples(self, snapshot: ClusterSnapshot) -> Iterator[Sample | Histogram]:
        """Everything but the claims' own samples and what the controller says about itself."""
        if snapshot.leading:
            yield from timed_samples(snapshot)
            yield from snapshot.samples

    def collect(self, snapshot: ClusterSnapshot) -> Iterator[Sample | Histogram]:
        """Everything there is to show; a standby has only what it says about itself."""
        if snapshot.leading and self.selected:
            for view in snapshot.claims.values():
                yield from self.claim_samples(view)
        yield from self.shared_samples(snapshot)
        yield from snapshot.own


class _Rendered:
    """The lines of one claim."""

    __slots__ = ("labels", "lines", "pieces", "size", "view")

    def __init__(self, view: ClaimView, labels: bytes, pieces: tuple[bytes, ...], lines: int, size: int) -> None:
        self.view = view
        self.labels = labels  # those that name the claim
        self.pieces = pieces  # by family, in the order of CLAIM_FAMILIES; each line starts with _BEGINNING
        self.lines = lines
        self.size = size  # written out


@lru_cache(maxsize=4096)
def _rest_of_line(labels: Labels, value: str) -> bytes:
    """What follows the labels that name the claim; thousands of claims have the same state and number of devices."""
    more = f",{label_pairs(labels)}" if labels else ""
    return _BEGINNING + f"{more}}} {value}".encode("utf-8", "replace")


class _Lines:
    """Lines of what is not a claim's own, by family.

    They are written anew for each snapshot: to keep them would take more memory than the claims do, and writing
    100,000 of them takes a third of a second.
    """

    def __init__(self, known: Container[str]) -> None:
        self._known = known
        self.by_family: dict[str, bytearray] = {}

    def add(self, samples: Iterable[Sample | Histogram]) -> int:
        """Writes samples; returns the number of their lines."""
        number = 0
        for each in samples:
            family = each.family
            if isinstance(each, Histogram):
                self._of(family).extend("".join(histogram_lines(each)).encode("utf-8", "replace"))
                number += len(each.counts) + 2
            elif (value := format_value(each.value)) is not None:
                self._of(family).extend((sample_prefix(family, each.labels) + value).encode("utf-8", "replace"))
                number += 1
        return number

    def _of(self, family: str) -> bytearray:
        if family not in self._known:
            raise UnknownFamilyError(f"sample of family {family!r}, which is in no metric table; add its row there")
        return self.by_family.setdefault(family, bytearray())


class ClusterExposition:
    """One snapshot as lines; immutable but for the compressed forms, which are made when first asked for."""

    def __init__(
        self, snapshot: ClusterSnapshot, claims: Sequence[_Rendered], claim_families: Sequence[str],
        rest: Mapping[str, bytearray], headers: Mapping[bool, Mapping[str, bytes]],
    ) -> None:
        """`rest` are the lines of all other families, `headers` the comment lines of all."""
        self.snapshot = snapshot
        # Give or take the comment lines of families without a series.
        self.plain_bytes = (
            sum(claim.size for claim in claims)
            + sum(map(len, rest.values()))
            + sum(len(headers[False][name]) for name in (*claim_families, *rest))
        )
        self._claims = claims
        self._claim_families = claim_families
        self._rest = rest
        self._headers = headers
        self._packed: dict[bool, bytes] = {}
        self._lock = threading.Lock()

    def chunks(self, openmetrics: bool) -> Iterator[bytes]:
        """The uncompressed bytes in pieces of some 300 KB; two readers may take them at once."""
        pieces = self._pieces(openmetrics)
        yield next(pieces, b"\n")[1:]  # every line has its break in front
        yield from pieces
        yield b"\n# EOF\n" if openmetrics else b"\n"

    def _pieces(self, openmetrics: bool) -> Iterator[bytes]:
        headers = self._headers[openmetrics]
        for at, name in enumerate(self._claim_families):
            header = headers[name]
            beginning = f"\n{name}{{".encode()
            for start in range(0, len(self._claims), _CLAIMS_PER_CHUNK):
                piece = b"".join([
                    claim.pieces[at].replace(_BEGINNING, beginning + claim.labels)
                    for claim in self._claims[start : start + _CLAIMS_PER_CHUNK]
                ])
                if piece:
                    yield header + piece
                    header = b""
        for name, lines in self._rest.items():
            yield headers[name] + lines

    def gzipped(self, openmetrics: bool) -> bytes:
        """The compressed bytes; takes about a second for 100 MB, and holds the interpreter for little of it."""
        with self._lock:
            found = self._packed.get(openmetrics)
            if found is None:
                compressor = zlib.compressobj(1, zlib.DEFLATED, 31)  # as in export/text.py
                parts = [compressor.compress(chunk) for chunk in self.chunks(openmetrics)]
                found = self._packed[openmetrics] = b"".join([*parts, compressor.flush()])
        return found


class ClusterText:
    """Writes snapshots as text; made for worker threads, of which one works at a time."""

    def __init__(self, collector: ClusterCollector, more_families: Mapping[str, Family]) -> None:
        self._collector = collector
        families = {**collector.families, **more_families}
        for family in families.values():
            check_family(family)
        self._families = [name for name in CLAIM_FAMILIES if name in collector.selected]
        self._headers: dict[bool, dict[str, bytes]] = {
            openmetrics: {name: header(family).encode() for name, family in families.items()}
            for openmetrics, header in ((False, text_header), (True, openmetrics_header))
        }
        self._rendered: dict[str, _Rendered] = {}
        self._lock = threading.Lock()

    def exposition(self, snapshot: ClusterSnapshot, own: Sequence[Sample]) -> ClusterExposition:
        """The lines of a snapshot and of `own`, with the series of each layer counted."""
        with self._lock:
            claims = self._claims(snapshot)
            rest = _Lines(self._headers[False])
            layers = {
                "claim": sum(claim.lines for claim in claims),
                "cluster": rest.add(self._collector.shared_samples(snapshot)),
                "own": len(snapshot.own) + len(own) + len(LAYERS),
            }
            series = [controller.own("series", layers[layer], layer) for layer in LAYERS]
            rest.add(chain(snapshot.own, own, series))
            return ClusterExposition(snapshot, claims, self._families, rest.by_family, self._headers)

    def _claims(self, snapshot: ClusterSnapshot) -> list[_Rendered]:
        before, now = self._rendered, {}
        if snapshot.leading and self._families:
            for uid, view in snapshot.claims.items():
                made = before.get(uid)
                now[uid] = made if made is not None and made.view is view else self._render(view)
        self._rendered = now
        return list(now.values())

    def _render(self, view: ClaimView) -> _Rendered:
        texts: dict[str, bytes] = {}
        names: Labels = ()
        lines = more = 0
        for each in self._collector.claim_samples(view):
            value = format_value(each.value)
            if value is not None:
                names, labels = each.labels[:_NAMES], each.labels[_NAMES:]
                line = _rest_of_line(labels, value)
                texts[each.family] = texts[each.family] + line if each.family in texts else line
                lines += 1
                more += len(each.family) + 1  # the break and the brace, less the byte that stands for them
        named = label_pairs(names).encode("utf-8", "replace")
        size = sum(map(len, texts.values())) + more + lines * len(named)
        return _Rendered(view, named, tuple([texts.get(name, b"") for name in self._families]), lines, size)
