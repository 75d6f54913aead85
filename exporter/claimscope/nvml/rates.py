"""How often is everything read: as set, less often to spare the driver, or more often in a burst?"""

from __future__ import annotations

from collections.abc import Mapping

from claimscope.nvml.wire import Settings

SHED_HZ = (5.0, 2.0, 1.0)
RECOVER_BELOW = 0.7  # of the budget, at the rate that would come next


class Rates:
    """The rate of full ticks, and of a burst if there is one."""

    def __init__(self, settings: Settings) -> None:
        self.burst_until_ns = 0
        self.burst_period_ns = 0
        self._shed_since_ns = 0
        self._calm_since_ns = 0
        self._shed_base: Mapping[str, float] = {}
        self.change(settings)

    def change(self, settings: Settings) -> None:
        """Begins anew with the rate that is set."""
        self._settings = settings
        hz = settings.sampling_hz
        self._ladder = (hz, *(step for step in SHED_HZ if step < hz))
        self._level = 0

    @property
    def period_ns(self) -> int:
        """Of full ticks."""
        return round(1e9 / self._ladder[self._level])

    @property
    def bursting(self) -> bool:
        """Whether a burst is on."""
        return self.burst_until_ns > 0

    @property
    def hz(self) -> float:
        """Of all ticks."""
        return 1e9 / self.burst_period_ns if self.bursting else self._ladder[self._level]

    @property
    def shed(self) -> bool:
        """Whether it is less often than set."""
        return self._level > 0

    def judge(self, driver_seconds: Mapping[str, float], now: int) -> None:
        """Steps down where the driver took more time on one GPU than the budget allows, and up again after calm."""
        settings = self._settings
        elapsed = (now - self._shed_since_ns) * 1e-9
        if elapsed < settings.shed_seconds or self.bursting:
            return
        ratio = max(
            ((total - self._shed_base.get(uuid, 0.0)) / elapsed for uuid, total in driver_seconds.items()),
            default=0.0,
        )
        first = self._shed_since_ns == 0
        self._shed_since_ns = now
        self._shed_base = dict(driver_seconds)
        if first:
            return
        budget = settings.driver_time_budget_ratio
        level = self._level
        if ratio > budget:
            self._calm_since_ns = 0
            level = min(level + 1, len(self._ladder) - 1)
        elif level > 0:
            higher = self._ladder[level - 1] / self._ladder[level]
            if ratio * higher > RECOVER_BELOW * budget:
                self._calm_since_ns = 0
            elif self._calm_since_ns == 0:
                self._calm_since_ns = now
            elif (now - self._calm_since_ns) * 1e-9 >= settings.recover_seconds:
                self._calm_since_ns = 0
                level -= 1
        self._level = level

    def start_burst(self, hz: float, seconds: float, now: int) -> bool:
        """Begins or prolongs a burst; whether one began."""
        if hz <= self._ladder[self._level] or seconds <= 0:
            return False
        already = self.bursting
        self.burst_period_ns = round(1e9 / hz)
        self.burst_until_ns = now + round(seconds * 1e9)
        return not already

    def end_burst(self) -> None:
        """Full ticks only; the driver's time is judged from here on."""
        self.burst_until_ns = 0
        self._shed_since_ns = 0
