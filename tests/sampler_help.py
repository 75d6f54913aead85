"""Runs a real sampler process under a supervisor for tests, and waits for what it says."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from claimscope.model import Event, Inventory, Window
from claimscope.nvml.supervisor import Supervisor
from claimscope.nvml.wire import EventMessage, FromSampler, InventoryMessage, Settings, Status, WindowMessage


@dataclass(slots=True, repr=False)
class Heard:
    """Everything the sampler has said so far."""

    windows: list[Window] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    inventories: list[Inventory] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __repr__(self) -> str:
        return (
            f"{len(self.windows)} windows, {self.events}, inventories "
            f"{[(i.epoch, len(i.devices), dict(i.lost), i.error) for i in self.inventories]}"
        )

    def take(self, message: FromSampler) -> None:
        match message:
            case WindowMessage(window=window):
                self.windows.append(window)
            case EventMessage(event=event):
                self.events.append(event)
            case InventoryMessage(inventory=inventory):
                self.inventories.append(inventory)
            case Status():
                self.statuses.append(message)
        self.changed.set()

    async def until(self, condition: Callable[[], object], seconds: float = 15.0) -> None:
        """Waits until the condition holds; it is asked after every message, and now and then."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds:g} s; heard {self}")
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await self.changed.wait()

    def newest(self, uuid: str) -> Window:
        """The last window of an entity."""
        return next(window for window in reversed(self.windows) if window.entity == uuid)

    def count(self, uuid: str) -> int:
        """How many windows an entity has sent."""
        return sum(window.entity == uuid for window in self.windows)


def quick(library: str | None, **more: object) -> Settings:
    """Settings with short times."""
    values: dict[str, object] = {
        "library": library, "sampling_hz": 20.0, "gpm_hz": 5.0, "window_seconds": 0.1, "retry_seconds": 0.1, **more,
    }
    return Settings(**values)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(
    settings: Settings,
    environment: Mapping[str, str] | None = None,
    *,
    hang_seconds: float = 5.0,
    kill_seconds: float = 5.0,
    quarantine_seconds: float = 60.0,
) -> AsyncIterator[tuple[Supervisor, Heard]]:
    """A supervisor that runs while the context is open."""
    heard = Heard()
    supervisor = Supervisor(
        settings, heard.take, environ=environment, hang_seconds=hang_seconds, kill_seconds=kill_seconds,
        restart_seconds=0.05, max_restart_seconds=0.2, quarantine_seconds=quarantine_seconds, jitter=lambda: 0.0,
    )
    task = asyncio.create_task(supervisor.run())
    try:
        yield supervisor, heard
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
