"""How does the simulated API server tell a watch what changes?

A watch stands at a position among a table's changes and is woken by each one; what came meanwhile goes out in one
write. Bookmarks come at intervals and at the end; a watch may ask to be told what there is first.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
from aiohttp import web

from claimscope.sim.api import errors as apierrors
from claimscope.sim.api.errors import Refused
from claimscope.sim.api.store import Change, Kind, Selection, Store, Stored, Table

BATCH: Final = 500  # changes or objects in one write to the socket
_WATCH_SECONDS: Final = 300.0  # without timeoutSeconds; the real server takes a random 30 to 60 minutes


class StreamingLists(enum.Enum):
    """What the server does with a watch that asks for `sendInitialEvents`."""

    SERVED = "served"
    STORAGE_TOO_OLD = "storage too old"  # HTTP 200 and one ERROR event, as with an old etcd
    REFUSED = "refused"  # 422, as without the feature


@dataclass(slots=True, eq=False)
class _Watcher:
    table: Table
    kind: Kind
    selection: Selection
    position: int
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    injected: deque[bytes] = field(default_factory=deque)
    ended: bool = False
    cut: bool = False


class Watches:
    """All open watches."""

    def __init__(
        self, store: Store, gate: asyncio.Event, streaming_lists: StreamingLists, bookmark_seconds: float
    ) -> None:
        self._store = store
        self._gate = gate  # nothing is sent while it is not set
        self._streaming_lists = streaming_lists
        self._bookmark_seconds = bookmark_seconds
        self._open: dict[tuple[str, str], set[_Watcher]] = {}
        self._came = asyncio.Condition()

    @property
    def count(self) -> int:
        """How many are open."""
        return sum(map(len, self._open.values()))

    async def until(self, count: int) -> None:
        """Waits until so many are open."""
        async with self._came:
            await self._came.wait_for(lambda: self.count >= count)

    def wake(self, table: Table) -> None:
        """Tells the watches on a table that it changed."""
        for watcher in self._open.get((table.kind.group, table.kind.plural), ()):
            watcher.wake.set()

    def inject(self, line: bytes) -> None:
        """Sends a raw line to each."""
        for watcher in self._each():
            watcher.injected.append(line)
            watcher.wake.set()

    def drop(self) -> None:
        """Ends each."""
        for watcher in self._each():
            watcher.ended = True
            watcher.wake.set()

    def cut(self) -> None:
        """Breaks each in the middle of a line."""
        for watcher in self._each():
            watcher.cut = True
            watcher.wake.set()

    def _each(self) -> list[_Watcher]:
        return [watcher for watchers in self._open.values() for watcher in watchers]

    async def serve(self, request: web.Request, kind: Kind, selection: Selection) -> web.StreamResponse:
        """Answers one watch, until it ends. Raises Refused."""
        query = request.query
        initial = self._initial_events(query)
        after = number(query.get("resourceVersion", ""), "resourceVersion")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        table = self._store.table(kind)
        refused = self._refused(table, after, initial=initial)
        if refused is not None:
            await response.prepare(request)
            await response.write(_error_line(refused))
            return response
        # Taken in one step with the position, so that no change falls between.
        present = [] if after and not initial else [stored for stored in table.ordered() if stored in selection]
        version = self._store.version if initial or not after else after
        watcher = _Watcher(table, kind, selection, table.position(version))
        watching = self._open.setdefault((kind.group, kind.plural), set())
        watching.add(watcher)
        bookmarks = query.get("allowWatchBookmarks") in ("true", "1")
        try:
            await response.prepare(request)
            async with self._came:
                self._came.notify_all()
            for start in range(0, len(present), BATCH):
                part = present[start : start + BATCH]
                await response.write(b"".join(_line(b"ADDED", kind, stored) for stored in part))
            if initial and bookmarks:
                await response.write(_bookmark(kind, version, b',"annotations":{"k8s.io/initial-events-end":"true"}'))
            await self._follow(request, response, watcher, bookmarks=bookmarks)
        finally:
            watching.discard(watcher)
        return response

    def _initial_events(self, query: Mapping[str, str]) -> bool:
        initial = query.get("sendInitialEvents") in ("true", "1")
        match = query.get("resourceVersionMatch", "")
        if initial and self._streaming_lists is StreamingLists.REFUSED:
            raise _forbidden_option(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
            )
        if match and "sendInitialEvents" not in query:
            raise _forbidden_option(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            )
        if initial and match != "NotOlderThan":
            raise _forbidden_option(
                "resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            )
        return initial

    def _refused(self, table: Table, after: int, *, initial: bool) -> Refused | None:
        """What the first line of a watch says that cannot be: errors of a watch come with HTTP 200."""
        if initial:
            return _STORAGE_TOO_OLD if self._streaming_lists is StreamingLists.STORAGE_TOO_OLD else None
        oldest = max(self._store.oldest, table.forgotten)
        return apierrors.too_old(after, oldest) if after and after < oldest else None

    async def _follow(
        self, request: web.Request, response: web.StreamResponse, watcher: _Watcher, *, bookmarks: bool
    ) -> None:
        now = asyncio.get_running_loop().time
        deadline = now() + float(request.query.get("timeoutSeconds") or _WATCH_SECONDS)
        next_bookmark = now() + self._bookmark_seconds
        while not watcher.ended:
            await self._gate.wait()
            watcher.wake.clear()
            lines = _due(watcher)
            if lines is None:
                await response.write(_error_line(apierrors.too_old(0, watcher.table.forgotten)))
                return
            if lines:
                await response.write(b"".join(lines))
            if watcher.cut:
                await _break(request, response, watcher)
                return
            if lines or watcher.wake.is_set():
                continue
            if now() >= min(next_bookmark, deadline):
                if bookmarks:
                    await response.write(_bookmark(watcher.kind, self._store.version))
                if now() >= deadline:
                    return
                next_bookmark += self._bookmark_seconds
                continue
            try:
                async with asyncio.timeout_at(min(next_bookmark, deadline)):
                    await watcher.wake.wait()
            except TimeoutError:
                continue


def _due(watcher: _Watcher) -> list[bytes] | None:
    """The lines that a watch has not seen; None where a change of them is forgotten."""
    lines: list[bytes] = []
    while not lines:
        changes = watcher.table.since(watcher.position, BATCH)
        if changes is None:
            return None
        watcher.position += len(changes)
        lines += [
            _line(seen[0].encode(), watcher.kind, seen[1]) for seen in map(watcher.selection.seen, changes) if seen
        ]
        if not changes:
            break
    lines += watcher.injected
    watcher.injected.clear()
    return lines


_STORAGE_TOO_OLD: Final = Refused(
    500,
    "InternalError",
    "a watch stream was requested by the client but the required storage feature RequestWatchProgress is disabled",
)


def _forbidden_option(path: str, why: str) -> Refused:
    return apierrors.invalid_options("ListOptions", path, f"Forbidden: {why}")


def number(text: str, name: str) -> int:
    """A parameter that is a number; 0 where it is not given. Raises Refused."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        raise apierrors.bad_request(
            f'{name}: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        )
    return int(text)


def _line(event: bytes, kind: Kind, stored: Stored) -> bytes:
    return b'{"type":"%b","object":%b%b}\n' % (event, kind.head, stored.tail[1:])


def _bookmark(kind: Kind, version: int, more: bytes = b"") -> bytes:
    return b'{"type":"BOOKMARK","object":%b"metadata":{"resourceVersion":"%d"%b}}}\n' % (kind.head, version, more)


def _error_line(refused: Refused) -> bytes:
    return b'{"type":"ERROR","object":%b}\n' % msgspec.json.encode(refused.status)


async def _break(request: web.Request, response: web.StreamResponse, watcher: _Watcher) -> None:
    change: Change | None = watcher.table.last
    line = _line(b"MODIFIED", watcher.kind, change.now) if change else _bookmark(watcher.kind, 1)
    await response.write(line[: len(line) // 2])
    if request.transport is not None:
        request.transport.close()
