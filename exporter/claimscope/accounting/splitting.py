"""Which part of what a device counted does each holder get?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from claimscope.accounting.books import EXCLUSIVE, AccountKey, Book, Interval, Parts, Presence, Span
from claimscope.model import Entity, Hold, Holder


def own_weights(holds: Iterable[Hold]) -> dict[AccountKey, float]:
    """Each account's part of the one entity that all these holds are on; never more than 1 together."""
    weights: dict[AccountKey, float] = {}
    for hold in holds:
        key = (hold.holder, hold.entity, hold.basis)
        weights[key] = weights.get(key, 0.0) + max(hold.share, 0.0)
    return _at_most_one(weights)


def whole_weights(
    own: Mapping[AccountKey, float], leaves: Iterable[tuple[Entity, Mapping[AccountKey, float]]]
) -> dict[AccountKey, float]:
    """Each account's part of a whole GPU: of the GPU itself, and of its MIG devices by their compute slices."""
    weights = dict(own)
    for leaf, parts in leaves:
        if not leaf.slices or not leaf.total_slices:
            continue  # no declared share: nobody can be given a part
        for key, weight in parts.items():
            weights[key] = weight * leaf.slices / leaf.total_slices
    return _at_most_one(weights)


def _at_most_one(weights: dict[AccountKey, float]) -> dict[AccountKey, float]:
    together = sum(weights.values())
    if together <= 1.0 + 1e-9:
        return weights
    return {key: weight / together for key, weight in weights.items()}


def presences(
    holds: Iterable[Hold],
    entities: Mapping[str, Entity],
    devices: Iterable[str],
    books: Mapping[AccountKey, Book],
) -> dict[str, Presence]:
    """Who holds each entity, by one listing; entities without a holder and devices that are gone included."""

    def parts_of(weights: Mapping[AccountKey, float]) -> Parts:
        return tuple((books[key], weight) for key, weight in weights.items() if weight > 0.0)

    by_entity: dict[str, list[Hold]] = {}
    for hold in holds:
        by_entity.setdefault(hold.entity, []).append(hold)
    own = {entity: own_weights(those) for entity, those in by_entity.items()}
    leaves: dict[str, list[Entity]] = {}
    for entity in entities.values():
        if entity.parent is not None:
            leaves.setdefault(entity.parent, []).append(entity)
    present: dict[str, Presence] = {}
    for uuid in dict.fromkeys((*entities, *devices, *own)):
        mine = own.get(uuid, {})
        cut = leaves.get(uuid, ())
        whole = whole_weights(mine, ((leaf, own.get(leaf.uuid, {})) for leaf in cut)) if cut else mine
        parts = parts_of(mine)
        present[uuid] = Presence(
            own=parts,
            whole=parts_of(whole) if cut else parts,
            counted=bool(mine) or (uuid in entities and not cut),
        )
    return present


def common(before: Parts, after: Parts) -> Parts:
    """What both polls show alike."""
    if before == after:
        return after
    known = dict(before)
    return tuple((book, weight) for book, weight in after if known.get(book) == weight)


def sole(parts: Parts) -> Book | None:
    """The exclusive holder of all of it, if there is one."""
    if len(parts) == 1 and parts[0][0].basis == EXCLUSIVE and parts[0][1] >= 1.0:
        return parts[0][0]
    return None


def _observed(interval: Interval, span: Span) -> list[tuple[Book, float]]:
    """Parts of a quantity that is split by what is seen."""
    alone = sole(interval.own)
    if alone is not None:
        return [(alone, 1.0)]
    if not span.busy or span.busy_all <= 0.0:
        return []
    parts: list[tuple[Book, float]] = []
    given: set[Holder] = set()
    for book, _ in interval.own:
        seconds = span.busy.get(book.holder)
        if seconds is not None and book.holder not in given:
            given.add(book.holder)
            parts.append((book, seconds / span.busy_all))
    return parts


def fractions(
    intervals: Sequence[Interval], span: Span
) -> tuple[dict[Book, float], dict[Book, float], dict[Book, float]]:
    """Each account's part of a span: of the entity, of the whole GPU, and by what was seen. The rest is nobody's."""
    own: dict[Book, float] = {}
    whole: dict[Book, float] = {}
    observed: dict[Book, float] = {}
    length = span.end_ns - span.start_ns
    if length <= 0:
        return own, whole, observed
    for interval in reversed(intervals):
        if interval.end_ns <= span.start_ns:
            break
        covered = min(interval.end_ns, span.end_ns) - max(interval.start_ns, span.start_ns)
        if covered <= 0:
            continue
        fraction = covered / length
        for book, weight in interval.own:
            own[book] = own.get(book, 0.0) + weight * fraction
        for book, weight in interval.whole:
            whole[book] = whole.get(book, 0.0) + weight * fraction
        for book, weight in _observed(interval, span):
            observed[book] = observed.get(book, 0.0) + weight * fraction
    return own, whole, observed
