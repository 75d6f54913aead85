"""What befell each device in the last five minutes? XIDs, and what held its clocks back.

dcgm-exporter's DCGM_EXP_* families count in a window that slides. It is kept in memory here as there, by what the
sampler says and never by scrapes, so that every scraper gets the same answer.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from claimscope.model import Recent

if TYPE_CHECKING:
    from collections.abc import Collection

    from claimscope.model import Event, Window

WINDOW_MILLISECONDS: Final = 300_000  # dcgm-exporter's --xid-count-window-size and --clock-events-count-window-size
_WINDOW_NS: Final = WINDOW_MILLISECONDS * 1_000_000

# Reading key -> dcgm-exporter's word (clockEventToString in its clock_events_collector.go); it has none for the others.
CLOCK_EVENTS: Final[Mapping[str, str]] = MappingProxyType({
    "clock_event_gpu_idle": "gpu_idle",
    "clock_event_application_clocks": "clocks_setting",
    "clock_event_sw_power_cap": "power_cap",
    "clock_event_hw_slowdown": "hw_slowdown",
    "clock_event_sync_boost": "sync_boost",
    "clock_event_sw_thermal": "sw_thermal",
    "clock_event_hw_thermal": "hw_thermal",
    "clock_event_hw_power_brake": "hw_power_brake",
    "clock_event_display_clock": "display_clocks",
})  # fmt: skip


@dataclass(slots=True)
class _Of:
    """One entity."""

    xids: deque[tuple[int, int]] = field(default_factory=deque)  # when, XID
    clocks: deque[tuple[int, frozenset[str]]] = field(default_factory=deque)  # end of a window, what held then
    held: Counter[str] = field(default_factory=Counter)  # of `clocks`
    begun: Counter[str] = field(default_factory=Counter)

    def forget(self, before_ns: int) -> None:
        while self.xids and self.xids[0][0] <= before_ns:
            self.xids.popleft()
        while self.clocks and self.clocks[0][0] <= before_ns:
            self.held.subtract(self.clocks.popleft()[1])


class RecentEvents:
    """XIDs and clock events of the last five minutes."""

    def __init__(self) -> None:
        self._entities: dict[str, _Of] = {}

    def observe(self, window: Window) -> None:
        """Takes one window."""
        if not any(key in window.last for key in CLOCK_EVENTS):
            return  # it does not say
        known = self._entities.setdefault(window.entity, _Of())
        now = frozenset(word for key, word in CLOCK_EVENTS.items() if window.last.get(key))
        if known.clocks:  # what held already at the first look did not begin then
            known.begun.update(now - known.clocks[-1][1])
        known.clocks.append((window.end_ns, now))
        known.held.update(now)
        known.forget(window.end_ns - _WINDOW_NS)

    def event(self, event: Event, now_ns: int) -> None:
        """Takes one event of the driver."""
        if event.kind == "xid":
            self._entities.setdefault(event.entity, _Of()).xids.append((now_ns, event.code))

    def view(self, entities: Collection[str], now_ns: int) -> dict[str, Recent]:
        """By entity; forgets those that are not named."""
        for gone in self._entities.keys() - set(entities):
            del self._entities[gone]
        for known in self._entities.values():
            known.forget(now_ns - _WINDOW_NS)
        return {
            entity: Recent(
                xids=Counter(xid for _, xid in known.xids), clock_events=+known.held,
                clock_events_begun=dict(known.begun),
            )
            for entity, known in self._entities.items()
        }
