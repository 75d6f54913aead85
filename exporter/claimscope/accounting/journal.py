"""How do accounts outlive the process? Their form in the journal, and back.

In the journal an account is named by its place in the list of accounts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from claimscope.accounting.books import Book, Device, Interval, Parts, Presence, Span, Sum
from claimscope.state import (
    AccountState,
    CounterState,
    DeviceState,
    IntegralState,
    IntervalState,
    SpanState,
    SumState,
)


def account_state(book: Book) -> AccountState:
    """One account, copied."""
    return AccountState(
        holder=book.holder,
        entity=book.entity,
        basis=book.basis,
        start_wall_ns=book.start_wall_ns,
        ended_wall_ns=book.ended_wall_ns,
        totals=dict(book.totals),
    )


def restored_book(account: AccountState, *, saved_wall_ns: int, saved_ns: int) -> Book:
    """One account again; `saved_ns` is the moment of saving on the monotonic clock of today."""
    book = Book(
        account.holder,
        account.entity,
        account.basis,
        account.start_wall_ns,
        account.ended_wall_ns,
        totals=dict(account.totals),
    )
    if account.ended_wall_ns is not None:
        book.ended_ns = saved_ns - max(saved_wall_ns - account.ended_wall_ns, 0)
    return book


def device_state(device: Device, presence: Presence | None, places: Mapping[Book, int]) -> DeviceState:
    """One device, copied. Books without a place were replaced or forgotten: their part is nobody's."""

    def parts(those: Parts) -> list[tuple[int, float]]:
        return [(places[book], weight) for book, weight in those if book in places]

    return DeviceState(
        totals=_sums(device.totals),
        unattributed=_sums(device.unattributed),
        session=device.session,
        end_ns=device.end_ns,
        counters={
            key: CounterState(value=v, at_ns=at, session=session, epoch=epoch)
            for key, (v, at, session, epoch) in device.counters.items()
        },
        integrals={
            key: IntegralState(value=v, at_ns=at, session=session, epoch=epoch)
            for key, (v, at, session, epoch) in device.integrals.items()
        },
        pending=[
            SpanState(
                start_ns=span.start_ns,
                end_ns=span.end_ns,
                deltas=dict(span.deltas),
                busy=list(span.busy.items()),
                busy_all=span.busy_all,
            )
            for span in device.pending
        ],
        intervals=[
            IntervalState(start_ns=i.start_ns, end_ns=i.end_ns, own=parts(i.own), whole=parts(i.whole))
            for i in device.intervals
        ],
        present=presence is not None,
        counted=presence is not None and presence.counted,
        own=parts(presence.own) if presence is not None else [],
        whole=parts(presence.whole) if presence is not None else [],
    )


def restore_device(device: Device, saved: DeviceState, books: Sequence[Book]) -> None:
    """Takes over where its counters stood; only within the boot in which that was saved."""
    device.session = saved.session
    device.end_ns = saved.end_ns
    device.totals = restored_sums(saved.totals)
    device.counters = {
        key: (known.value, known.at_ns, known.session, known.epoch)
        for key, known in saved.counters.items()
        if key in device.totals
    }
    device.integrals = {
        key: (known.value, known.at_ns, known.session, known.epoch) for key, known in saved.integrals.items()
    }
    device.pending = [
        Span(span.start_ns, span.end_ns, dict(span.deltas), dict(span.busy), span.busy_all) for span in saved.pending
    ]
    device.intervals = [
        Interval(i.start_ns, i.end_ns, _named(i.own, books), _named(i.whole, books)) for i in saved.intervals
    ]


def restored_presence(saved: DeviceState, books: Sequence[Book]) -> Presence | None:
    """Who held the device at the last poll before saving."""
    if not saved.present:
        return None
    own = _named(saved.own, books)
    whole = _named(saved.whole, books)
    return Presence(own=own, whole=own if whole == own else whole, counted=saved.counted)


def restored_sums(saved: Mapping[str, SumState]) -> dict[str, Sum]:
    """Sums by reading key again."""
    return {key: Sum(s.value, s.start_wall_ns, s.start_value) for key, s in saved.items()}


def _sums(sums: Mapping[str, Sum]) -> dict[str, SumState]:
    return {
        key: SumState(value=s.value, start_wall_ns=s.start_wall_ns, start_value=s.start_value)
        for key, s in sums.items()
    }


def _named(parts: Iterable[tuple[int, float]], books: Sequence[Book]) -> Parts:
    return tuple((books[number], weight) for number, weight in parts if 0 <= number < len(books))
