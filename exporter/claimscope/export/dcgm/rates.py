"""How fast do counters rise?

DCGM shows some counters as rates only. They are taken over windows, which the clock cuts, and never over scrapes, so
that every scraper gets the same answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from claimscope.model import Window

_SLACK = 0.5  # windows are as long as a second and end a little early or late


class Rates:
    """Rates of some counters per second, over the last window or over the time between two readings if longer."""

    def __init__(self, periods: Mapping[str, float]) -> None:
        self._period_ns = {key: round((seconds - _SLACK) * 1e9) for key, seconds in periods.items()}
        # entity -> reading key -> (session, epoch, end of the window, value) that the next rate is taken from
        self._before: dict[str, dict[str, tuple[int, int, int, float]]] = {}
        self._rates: dict[str, dict[str, float]] = {}

    def observe(self, window: Window) -> None:
        """Takes one window."""
        before = self._before.setdefault(window.entity, {})
        rates = self._rates.setdefault(window.entity, {})
        for key in rates.keys() - window.raw.keys():
            del rates[key]
        for key, value in window.raw.items():
            period_ns = self._period_ns.get(key.partition("/")[0])
            if period_ns is None:
                continue
            now = (window.session, window.epoch, window.end_ns, value)
            known = before.get(key)
            if known is None or known[:2] != now[:2] or value < known[3]:
                rates.pop(key, None)  # the counter began anew: what it was meanwhile is not known
            elif window.end_ns - known[2] >= max(period_ns, 1):
                rates[key] = (value - known[3]) / ((window.end_ns - known[2]) / 1e9)
            else:
                continue
            before[key] = now

    def view(self, entities: Collection[str]) -> dict[str, Mapping[str, float]]:
        """Entity -> reading key -> per second; forgets the entities that are not named."""
        for gone in self._rates.keys() - set(entities):
            del self._rates[gone], self._before[gone]
        return {entity: dict(rates) for entity, rates in self._rates.items() if rates}
