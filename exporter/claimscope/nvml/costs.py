"""How much time has the driver taken, by call and by GPU?"""

from __future__ import annotations

from collections.abc import Iterable

from claimscope.nvml.calls import CALLS
from claimscope.nvml.driver_events import EventReader
from claimscope.nvml.reader import EntityReader
from claimscope.nvml.wire import CallCost

_SYMBOLS = {name: call.symbol for name, call in CALLS.items()}


class Costs:
    """Calls and seconds since the process started."""

    def __init__(self) -> None:
        self.driver_seconds: dict[str, float] = {}  # by UUID of the GPU
        self._calls: dict[str, tuple[int, float]] = {}

    def collect(self, entities: Iterable[EntityReader], events: EventReader) -> None:
        """Takes over what they have noted."""
        for entity in entities:
            for name, (times, nanoseconds) in entity.costs.items():
                self._count(_SYMBOLS.get(name, name), times, nanoseconds * 1e-9)
                self.driver_seconds[entity.gpu_uuid] = (
                    self.driver_seconds.get(entity.gpu_uuid, 0.0) + nanoseconds * 1e-9
                )
            entity.costs.clear()
        times, nanoseconds = events.take_cost()
        if times:
            self._count("nvmlEventSetWait_v2", times, nanoseconds * 1e-9)

    def _count(self, name: str, times: int, seconds: float) -> None:
        known = self._calls.get(name, (0, 0.0))
        self._calls[name] = (known[0] + times, known[1] + seconds)

    def calls(self) -> dict[str, CallCost]:
        """By name of the C function."""
        return {name: CallCost(calls=n, seconds=s) for name, (n, s) in self._calls.items()}
