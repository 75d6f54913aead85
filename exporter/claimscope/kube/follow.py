"""How is each kind that the controller reads followed, and how well does that go?

One task a kind, so that a kind that is not served, or may not be read, costs only itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from claimscope.clock import Clock
from claimscope.kube.api import COMMON_REASONS, ApiClient, ApiError, ApiReason, discover
from claimscope.kube.kinds import WatchedKind
from claimscope.kube.listwatch import FIRST_WAIT_SECONDS, BackOff, FirstList, ListWatch, WatchStatus
from claimscope.metrics.controller import own
from claimscope.model import Sample

__all__ = ["KindFollower", "WatchStatus", "follow", "samples"]

log = logging.getLogger(__name__)

ABSENT_SECONDS: Final = 180.0  # how often a kind that is not served is asked for again

OnSync = Callable[[str, list[Any], frozenset[str]], Awaitable[None] | None]
OnChange = Callable[[str, Any, bool], None]


class KindFollower:
    """Follows one kind in the best version that is served, for as long as it runs.

    `on_sync(kind.name, objects, unreadable)` and `on_change(kind.name, object, present)` are called the moment the
    bytes arrived; no change is told before `on_sync` is done, which may take its time.
    What was known stands while the kind cannot be read, and also when it is not served any more.
    """

    def __init__(
        self,
        api: ApiClient,
        kind: WatchedKind,
        *,
        clock: Clock,
        on_sync: OnSync,
        on_change: OnChange,
        status: WatchStatus,
        first_wait_seconds: float = FIRST_WAIT_SECONDS,
        absent_seconds: float = ABSENT_SECONDS,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._api = api
        self._kind = kind
        self._clock = clock
        self._on_sync = on_sync
        self._on_change = on_change
        self._status = status
        self._first_wait = first_wait_seconds
        self._absent_seconds = absent_seconds
        self._jitter = jitter
        status.name = kind.name

    async def run(self) -> None:
        """Runs until it is cancelled."""
        back_off = BackOff(self._first_wait, self._jitter)
        while True:
            version = await self._served_version()
            lists = self._status.lists
            try:
                await self._list_watch(version).run(until_absent=True)
            except ApiError:  # served a moment ago, then 404: the API was switched off, or moved to another version
                if self._status.lists > lists:
                    back_off.reset()
                await asyncio.sleep(back_off.next_seconds())

    async def _served_version(self) -> str:
        kind, back_off, failure = self._kind, BackOff(self._first_wait, self._jitter), None
        while True:
            try:
                version = await discover(self._api, kind.group, kind.versions, kind.plural)
            except ApiError as error:
                if error.reason is not failure:
                    self._say(error)
                failure = error.reason
                await asyncio.sleep(self._pause(error, back_off))
            else:
                if failure is not None:
                    log.info("%s is served as %s", kind.name, version)
                self._status.served, self._status.absent = True, False
                return version

    def _say(self, error: ApiError) -> None:
        missing = f" ({self._kind.about})" if self._kind.about else ""
        if error.reason is ApiReason.NOT_FOUND and not self._kind.required:
            log.info("%s cannot be followed%s: %s", self._kind.name, missing, error)
        else:
            log.warning("%s cannot be followed%s: %s", self._kind.name, missing, error)

    def _pause(self, error: ApiError, back_off: BackOff) -> float:
        self._status.up = False
        if error.reason is ApiReason.NOT_FOUND:
            self._status.served, self._status.absent = False, True
            return self._absent_seconds * (0.5 + self._jitter())
        if error.reason is ApiReason.FORBIDDEN:
            self._status.served, self._status.absent = False, False
        self._status.errors[error.reason] += 1
        return back_off.next_seconds(error)

    def _list_watch(self, version: str) -> ListWatch[Any]:
        kind, name = self._kind, self._kind.name
        return ListWatch(
            self._api,
            path_of(kind, version),
            kind.kind,
            clock=self._clock,
            on_sync=lambda objects, unreadable: self._on_sync(name, objects, unreadable),
            on_change=lambda entry, present: self._on_change(name, entry, present),
            keep=None if kind.keeps_everything else kind.keep,
            compact=None if kind.compact is None else kind.compact(),
            params=kind.params,
            first_list=FirstList.STREAMED,
            status=self._status,
            first_wait_seconds=self._first_wait,
            jitter=self._jitter,
        )


async def follow(
    api: ApiClient, kind: WatchedKind, *, clock: Clock, on_sync: OnSync, on_change: OnChange, status: WatchStatus
) -> None:
    """Follows one kind until it is cancelled."""
    await KindFollower(api, kind, clock=clock, on_sync=on_sync, on_change=on_change, status=status).run()


def path_of(kind: WatchedKind, version: str) -> str:
    """The path under which all objects of a kind are listed."""
    base = f"/apis/{kind.group}/{version}" if kind.group else f"/api/{version}"
    return f"{base}/namespaces/{kind.namespace}/{kind.plural}" if kind.namespace else f"{base}/{kind.plural}"


def samples(statuses: Iterable[WatchStatus]) -> list[Sample]:
    """How the watches go, as families of the controller itself."""
    found: list[Sample] = []
    for status in statuses:
        name = status.name
        found.append(own("watch_up", status.up, name))
        if status.served is not None:
            found.append(own("watch_served", status.served, name))
        if status.last_heard_wall is not None:
            found.append(own("watch_last_event_timestamp_seconds", status.last_heard_wall, name))
        found.append(own("watch_lists_total", status.lists, name))
        found.append(own("watch_events_total", status.events, name))
        found.append(own("watch_undecodable_total", status.undecodable, name))
        found += (
            own("watch_errors_total", status.errors[reason], name, reason.value)
            for reason in dict.fromkeys((*COMMON_REASONS, *status.errors))
        )
    return found
