"""How are 100,000 claims pushed without a second copy of them? Chunk by chunk, and compared by identity.

What is shown of a claim follows from its ClaimView alone, and a claim that did not change is the same object in the
next snapshot. So nothing is kept of the claims but a reference to the views that were pushed last: where one is gone or
another, the series that it had and has no more are ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from claimscope.claims.model import ClaimView, ClusterSnapshot
from claimscope.export.cluster import ClusterCollector
from claimscope.export.otlp.encode import Batch, Encoder, batches, by_metric
from claimscope.metrics.otel import OtelTable
from claimscope.model import Sample

CLAIMS_PER_CHUNK = 700  # some 4,000 points


class ClusterEncoder:
    """Makes requests of ClusterSnapshots; one thread at a time."""

    def __init__(self, collector: ClusterCollector, table: OtelTable, encoder: Encoder) -> None:
        self._collector = collector
        self._table = table
        self._encoder = encoder
        self._pushed: Mapping[str, ClaimView] = {}

    def requests(self, snapshot: ClusterSnapshot) -> Iterator[Batch]:
        """The requests of one snapshot, made as they are taken."""
        collector, wall_ns, envelope = self._collector, snapshot.wall_ns, self._encoder.envelope
        # A leader that is still reading the cluster has no claims yet; those that were pushed are not gone for that.
        if snapshot.complete or not snapshot.leading:
            before, self._pushed = self._pushed, snapshot.claims if snapshot.leading else {}
            views = iter(self._pushed.values())
            while chunk := list(islice(views, CLAIMS_PER_CHUNK)):
                samples = (each for view in chunk for each in collector.claim_samples(view))
                yield from batches(by_metric(self._table, samples, wall_ns).values(), envelope)
            gone = self._gone(before, self._pushed)
            while some := list(islice(gone, 4 * CLAIMS_PER_CHUNK)):
                yield from batches(by_metric(self._table, some, wall_ns, ended=True).values(), envelope)
        rest = [*collector.shared_samples(snapshot), *snapshot.own]
        yield from self._encoder.requests(rest, wall_ns)

    def _gone(self, before: Mapping[str, ClaimView], now: Mapping[str, ClaimView]) -> Iterator[Sample]:
        """Series that claims had and have no more."""
        for uid, view in before.items():
            present = now.get(uid)
            if present is view:
                continue
            left = _series(self._collector.claim_samples(present)) if present is not None else frozenset()
            for sample in self._collector.claim_samples(view):
                if (sample.family, sample.labels) not in left:
                    yield sample


def _series(samples: Iterable[Sample]) -> frozenset[tuple[str, tuple[tuple[str, str], ...]]]:
    return frozenset((each.family, each.labels) for each in samples)
