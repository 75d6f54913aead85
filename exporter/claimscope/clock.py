"""The one seam to time: durations come from the monotonic clock, wall time only stamps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """What a part that needs time is given."""

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC in nanoseconds, the same in every process of the machine."""

    def wall_ns(self) -> int:
        """Unix time in nanoseconds."""


class SystemClock:
    """The machine's clocks."""

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC in nanoseconds."""
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        """Unix time in nanoseconds."""
        return time.time_ns()


@dataclass(slots=True)
class ManualClock:
    """A clock that moves only when told; for tests and for the simulator's replay."""

    monotonic: int = 0
    wall: int = 1_700_000_000_000_000_000

    def monotonic_ns(self) -> int:
        """The monotonic time that was set."""
        return self.monotonic

    def wall_ns(self) -> int:
        """The wall time that was set."""
        return self.wall

    def advance(self, seconds: float) -> None:
        """Moves both clocks forward by `seconds`."""
        self.monotonic += round(seconds * 1e9)
        self.wall += round(seconds * 1e9)
