"""What do the samples of one reading add up to?

The samples of a window come as one column of a reading. The last sample of a window also opens the next one, so that
no time between two windows is left out of an integral.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul
from typing import Any

from claimscope.metrics.spec import Kind
from claimscope.model import Missing
from claimscope.nvml.errors import missing
from claimscope.nvml.plan import Reading


def why_missing(code: int) -> Missing:
    """What a return code says about a reading."""
    return missing(code) or Missing.FAILED


class Totals:
    """What the readings of one entity have come to; `low` and `high` are per window, the rest runs on."""

    __slots__ = ("high", "integral", "last", "low", "missing", "raw", "text")

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.low: dict[str, float] = {}
        self.high: dict[str, float] = {}
        self.integral: dict[str, float] = {}
        self.raw: dict[str, float] = {}
        self.text: dict[str, str] = {}
        self.missing: dict[str, Missing] = {}

    def forget(self, key: str, reason: Missing) -> None:
        """There is no number now."""
        self.last.pop(key, None)
        self.raw.pop(key, None)
        self.text.pop(key, None)
        self.missing[key] = reason


def trapezoid_weights(times_ns: Sequence[int], max_gap_ns: int) -> list[float]:
    """Weights w with sum(w x v) = the time integral of v in value x seconds; gaps longer than `max_gap_ns` are left
    out, because nobody knows what happened in them."""
    weights = [0.0] * len(times_ns)
    for place in range(1, len(times_ns)):
        gap = times_ns[place] - times_ns[place - 1]
        if gap <= max_gap_ns:
            half = gap * 5e-10
            weights[place - 1] += half
            weights[place] += half
    return weights


class Row:
    """One reading, resolved to columns."""

    __slots__ = (
        "bit", "column", "extremes", "gauge", "integral", "key", "kind", "mask", "place", "scale", "source", "values",
    )

    def __init__(self, reading: Reading, place: int) -> None:
        self.key = reading.key
        self.kind = reading.kind
        self.gauge = reading.kind is Kind.GAUGE
        self.scale = reading.scale
        self.bit = reading.bit
        self.mask = reading.bit or 0
        self.values = reading.values
        self.source = reading.source
        self.place = place  # of the field, or of the call
        self.column = -1
        self.integral = reading.integral
        self.extremes = reading.extremes


def fold_row(
    row: Row, totals: Totals, column: tuple[Any, ...], body: tuple[Any, ...], weights: Sequence[float]
) -> None:
    """Adds one column of good samples; `body` is `column` without what belongs to the window before."""
    key, scale = row.key, row.scale
    if row.bit is not None:
        mask = row.bit
        if not (row.integral or row.extremes):
            column = body = (1.0 if body[-1] & mask else 0.0,)
        else:
            column = tuple([1.0 if value & mask else 0.0 for value in column])
            body = column[len(column) - len(body) :]
    last = body[-1]
    if row.gauge:
        if last != last:  # NaN
            totals.forget(key, Missing.FAILED)
            return
        totals.last[key] = last * scale
        if row.extremes:
            low, high = min(body) * scale, max(body) * scale
            if key in totals.low:
                totals.low[key] = min(low, totals.low[key])
                totals.high[key] = max(high, totals.high[key])
            else:
                totals.low[key] = low
                totals.high[key] = high
        if row.integral:
            grown = sum(map(mul, column, weights)) * scale
            totals.integral[key] = totals.integral.get(key, 0.0) + (grown if grown == grown else 0.0)
    elif row.kind is Kind.COUNTER:
        totals.raw[key] = last * scale
    else:
        totals.text[key] = row.values.get(int(last), str(last))
    if key in totals.missing:
        del totals.missing[key]
