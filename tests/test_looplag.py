"""How long the event loop was blocked: the longest of late, and forgotten after a while."""

from __future__ import annotations

import pytest

from claimscope.looplag import LoopLag


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic_ns(self) -> int:
        return round(self.seconds * 1e9)

    def wall_ns(self) -> int:
        return 0


def test_the_longest_of_the_last_minutes() -> None:
    clock = Clock()
    lag = LoopLag(clock)
    seen = []
    for at, slept in ((1, 0.1), (2, 2.1), (59, 0.3), (61, 0.2), (119, 0.2), (121, 0.2), (181, 0.1)):
        clock.seconds = at
        lag.take(slept)
        seen.append(lag.longest_seconds)
    assert seen == pytest.approx([0, 2, 2, 2, 2, 0.1, 0.1])
