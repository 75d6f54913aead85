"""What does the parent see of a driver call that does not come back?

The heartbeat page, which both processes map. Its layout, unsigned 64-bit numbers: 0 ticks so far,
1 (GPU index + 1) << 32 | number of the call or 0 between calls, 2 CLOCK_MONOTONIC ns at which that call began,
3 CLOCK_MONOTONIC ns of the last turn of the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from claimscope.nvml.calls import CALLS
from claimscope.nvml.plan import call_names

HEARTBEAT_BYTES = 64

Heartbeat: TypeAlias = Any  # a memoryview of unsigned 64-bit numbers over the shared page


class Marker:
    """Names the call that comes next; group.py does the same in place for the calls of a tick."""

    def __init__(self, heartbeat: Heartbeat, clock: Callable[[], int]) -> None:
        self._heartbeat = heartbeat
        self._clock = clock
        self._numbers = {name: number for number, name in enumerate(call_names(CALLS))}

    def __call__(self, gpu: int, call: str) -> None:
        """`gpu` is -1 for a call that is for none."""
        self._heartbeat[2] = self._clock()
        self._heartbeat[1] = (gpu + 1) << 32 | self._numbers[call]
