"""For how long did work keep the event loop from everything else that waits, such as renewing a lease in time?"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from claimscope.clock import Clock

PROBE_SECONDS: Final = 0.1  # shorter blocks matter to nobody
WINDOW_SECONDS: Final = 60.0


class LoopLag:
    """Sleeps again and again, and keeps by how much the latest awakening of the last one to two minutes was late."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_ns = clock.monotonic_ns()
        self._now = self._before = 0.0

    @property
    def longest_seconds(self) -> float:
        """The longest delay of the present window and of the one before."""
        return max(self._now, self._before)

    def take(self, slept_seconds: float) -> None:
        """Notes one sleep of PROBE_SECONDS that took so long."""
        now_ns = self._clock.monotonic_ns()
        if (now_ns - self._began_ns) / 1e9 >= WINDOW_SECONDS:
            self._began_ns, self._before, self._now = now_ns, self._now, 0.0
        self._now = max(self._now, slept_seconds - PROBE_SECONDS)

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            began_ns = self._clock.monotonic_ns()
            await asyncio.sleep(PROBE_SECONDS)
            self.take((self._clock.monotonic_ns() - began_ns) / 1e9)
