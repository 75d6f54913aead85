"""What were the lowest and highest values in the last completed minute of the wall clock?

Cut by the clock and never by a scrape, so that every scraper gets the same answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from claimscope.metrics.spec import Quantity, Stat

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from claimscope.model import Window

MINUTE_NS = 60_000_000_000
SETTLE_NS = 2_000_000_000  # the last windows of a minute arrive a little after it
FIRST_SLACK_NS = 2_000_000_000  # a first minute that was joined later than this is not a full one


class Extremes:
    """Rolling 1-minute minima and maxima of the quantities that have a Stat.MIN or Stat.MAX view."""

    def __init__(self, quantities: Iterable[Quantity]) -> None:
        self._keys = frozenset(
            quantity.key
            for quantity in quantities
            if any(view.stat in (Stat.MIN, Stat.MAX) for view in quantity.views)
        )
        # entity -> minute -> reading key -> (low, high)
        self._minutes: dict[str, dict[int, dict[str, tuple[float, float]]]] = {}
        self._first_full: dict[str, int] = {}

    def observe(self, window: Window) -> None:
        """Takes the extremes of one window into the minute in which it ended."""
        minute = (window.end_wall_ns - 1) // MINUTE_NS  # a window that ends on the minute belongs to the one before
        minutes = self._minutes.setdefault(window.entity, {})
        if window.entity not in self._first_full:
            start_wall_ns = window.end_wall_ns - (window.end_ns - window.start_ns)
            joined_ns = start_wall_ns - minute * MINUTE_NS
            self._first_full[window.entity] = minute if joined_ns <= FIRST_SLACK_NS else minute + 1
        if minute + 1 < max(minutes, default=minute):  # the clock was set back: those minutes are still to come
            minutes.clear()
            self._first_full[window.entity] = minute + 1
        values = minutes.setdefault(minute, {})
        for key, low in window.low.items():
            if key.partition("/")[0] not in self._keys or key not in window.high:
                continue
            high = window.high[key]
            known = values.get(key)
            values[key] = (low, high) if known is None else (min(low, known[0]), max(high, known[1]))
        if len(minutes) > 3:  # the running minute, the one before, and the one that is answered until that settles
            for old in [other for other in minutes if not minute - 3 < other <= minute]:
                del minutes[old]

    def view(self, wall_ns: int) -> Mapping[str, Mapping[str, tuple[float, float]]]:
        """Entity -> reading key -> (low, high) of the last completed minute; forgets entities gone for long."""
        completed = (wall_ns - SETTLE_NS) // MINUTE_NS - 1
        answer: dict[str, dict[str, tuple[float, float]]] = {}
        for entity, minutes in list(self._minutes.items()):
            if all(minute < completed for minute in minutes) or all(minute > completed + 2 for minute in minutes):
                del self._minutes[entity]  # silent for a minute, or left behind by a clock that was set back
                del self._first_full[entity]
                continue
            values = minutes.get(completed)
            if values and completed >= self._first_full[entity]:
                answer[entity] = dict(values)
        return answer
