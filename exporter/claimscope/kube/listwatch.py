"""How is one kind followed without a gap, from its first list on?

A list, then a watch from the list's version; a watch that ends or breaks goes on from the last version heard, and only
where the server's memory does not reach back that far everything is listed again. Objects are decoded one by one as
they arrive, in one pass, to the few fields that are read: a first list of 100,000 claims is some 260 MB of JSON and is
never held as a whole.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from claimscope.clock import Clock
from claimscope.kube.api import ApiClient, ApiError, ApiReason, Params, decode, reason_of
from claimscope.kube.depth import shallow
from claimscope.kube.objects import ListMeta, Meta, RawList, Status, Versioned, WatchLine

log = logging.getLogger(__name__)

FIRST_WAIT_SECONDS: Final = 0.5
_LONGEST_WAIT_SECONDS: Final = 30.0
_REFUSED_FACTOR: Final = 60.0  # who may not read, or reads what is not there, asks again after 30 s at first
_LONGEST_REFUSED_SECONDS: Final = 300.0
_QUIET_SECONDS: Final = 30.0  # a watch that is this late with its end is dead
_LASTED_SECONDS: Final = 10.0  # a watch that was open for so long did work
_TEXT_CHARACTERS: Final = 600  # of a name, an error or a message; a qualified name has 317 at most
_STUCK: Final = 3  # failures of a watch from one version before everything is listed again
# The server keeps a list's version for five minutes; where pages take longer, fewer and larger ones do not.
_PAGE_SIZES: Final = (500, 5_000, None)
_INITIAL_END: Final = "k8s.io/initial-events-end"
_CHANGES: Final = frozenset(("ADDED", "MODIFIED", "DELETED"))
_REFUSED: Final = frozenset((ApiReason.FORBIDDEN, ApiReason.NOT_FOUND))
# Failures before the first byte: an accepted watch is the proof that they are over.
_BEFORE_ACCEPTED: Final = _REFUSED | {ApiReason.UNREACHABLE, ApiReason.UNAUTHORIZED, ApiReason.RATE_LIMITED}


class ApiObject(Protocol):
    """What every kind has."""

    @property
    def metadata(self) -> Meta:
        """Its metadata."""


T = TypeVar("T", bound=ApiObject)


class FirstList(enum.Enum):
    """How everything there is gets read at first, and again after a gap."""

    CACHED = "cached"  # one answer, from the server's cache: for lists known to be small
    STREAMED = "streamed"  # as the first events of the watch (WatchList, on by default from 1.34), else PAGED
    PAGED = "paged"


class _Event(msgspec.Struct, Generic[T], frozen=True, gc=False):
    type: str
    object: T


class _Page(msgspec.Struct, Generic[T], frozen=True):
    metadata: ListMeta = ListMeta()
    items: list[T] | None = None


class _WatchError(ApiError):
    """An ERROR event: the server accepted the watch and then gave up on it."""


@dataclass(slots=True, kw_only=True)
class WatchStatus:
    """How the following of one kind goes; written by its ListWatch, read by the metrics."""

    name: str = ""
    up: bool = False  # listed, and the watch is open
    served: bool | None = None  # None: not known yet; False: not served, or may not be read
    absent: bool = False  # the API server does not know the kind, so there are none; False where it may not be read
    synced: bool = False  # listed once
    last_heard_wall: float | None = None  # an event, a bookmark or an orderly end, Unix seconds
    lists: int = 0
    events: int = 0
    errors: Counter[ApiReason] = field(default_factory=Counter)
    undecodable: int = 0


class BackOff:
    """How long to wait after a failure: doubling, jittered, longer where the server refuses, as long as it asks."""

    def __init__(self, first_seconds: float, jitter: Callable[[], float]) -> None:
        self._first = first_seconds
        self._jitter = jitter
        self._doublings = 0

    def reset(self) -> None:
        """Something worked."""
        self._doublings = 0

    def next_seconds(self, error: ApiError | None = None) -> float:
        """The next pause."""
        first, longest = self._first, _LONGEST_WAIT_SECONDS
        if error is not None and error.reason in _REFUSED:
            first, longest = first * _REFUSED_FACTOR, _LONGEST_REFUSED_SECONDS
        pause = min(first * 2.0 ** min(self._doublings, 20), longest) * (0.5 + self._jitter())
        self._doublings += 1
        if error is not None and error.retry_after_seconds is not None:
            pause = max(pause, min(error.retry_after_seconds, 2 * _LONGEST_WAIT_SECONDS))
        return pause


def _ignore(_: Any) -> None:  # noqa: ANN401 - whatever is told
    pass


class ListWatch(Generic[T]):
    """Follows one kind.

    `on_sync` gets everything there is, after each list, and "namespace/name" of what the list holds and cannot be
    decoded; `on_change` one object that changed (True) or went (False). Both are called as soon as the bytes have
    arrived. Where `on_sync` is a coroutine function, nothing more is taken in before it has returned. What `keep`
    refuses is dropped as soon as it is decoded; what it refuses from now on is told as gone. `on_error` gets every
    failure, with the text that says what to do; what was known before it stands. `on_undecodable` gets a text for each
    object left out. `on_heard` is called at each sign of life: a list, events, a bookmark, an orderly end.
    """

    def __init__(
        self,
        api: ApiClient,
        path: str,
        kind: type[T],
        *,
        clock: Clock,
        on_sync: Callable[[list[T], frozenset[str]], Awaitable[None] | None],
        on_change: Callable[[T, bool], None],
        on_error: Callable[[ApiError], None] = _ignore,
        on_undecodable: Callable[[str], None] = _ignore,
        on_heard: Callable[[], None] | None = None,
        keep: Callable[[T], bool] | None = None,
        compact: Callable[[T], T] | None = None,
        params: Params | None = None,
        first_list: FirstList = FirstList.CACHED,
        status: WatchStatus | None = None,
        watch_seconds: int = 300,
        first_wait_seconds: float = FIRST_WAIT_SECONDS,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._api = api
        self._path = path
        self._kind = kind
        self._events: msgspec.json.Decoder[_Event[T]] = msgspec.json.Decoder(_Event[kind])  # type: ignore[valid-type]
        self._pages: msgspec.json.Decoder[_Page[T]] = msgspec.json.Decoder(_Page[kind])  # type: ignore[valid-type]
        self._clock = clock
        self._on_sync = on_sync
        self._on_change = on_change
        self._on_error = on_error
        self._on_undecodable = on_undecodable
        self._on_heard = on_heard
        self._keep = keep
        self._compact = compact
        self._kept: set[str] | None = set() if keep is not None else None  # "namespace/name" of what `keep` let pass
        self._params = dict(params or {})
        self._first_list = first_list
        self._status = status if status is not None else WatchStatus()
        self._watch_seconds = watch_seconds
        self._back_off = BackOff(first_wait_seconds, jitter)
        self._version: str | None = None  # where the watch goes on; None: everything must be listed
        self._initial: dict[str, T] | None = None  # by "namespace/name": what a streamed list brought so far
        self._unreadable: set[str] = set()  # "namespace/name": what the list that is being read holds, undecodable
        self._brought: list[T] | None = None  # a streamed list that is whole, and not handed on yet
        self._gone = False  # the next list must not come from a cache that may be older than what was gone
        self._opened_ns: int | None = None  # when the present watch was accepted
        self._stuck = 0  # failures in a row that brought nothing
        self._failure: ApiReason | None = None
        self._told_undecodable = False
        self._undecodable_before = 0  # the list that is being read

    async def run(self, *, until_absent: bool = False) -> None:
        """Runs until it is cancelled; with `until_absent` it raises ApiError once the kind is not served any more."""
        while True:
            try:
                await self._round()
            except ApiError as error:
                if until_absent and error.reason is ApiReason.NOT_FOUND:
                    self._note(error)
                    raise
                await self._fail(error)

    async def _round(self) -> None:
        began_ns = self._clock.monotonic_ns()
        if self._version is None:
            self._undecodable_before = self._status.undecodable
            self._unreadable = set()
            if self._first_list is not FirstList.STREAMED:
                await self._list()
        heard = await self._watch()
        self._heard()
        if heard or self._clock.monotonic_ns() - began_ns >= 1_000_000_000:
            self._progress()
        else:  # a proxy that ends every watch at once must not make a busy loop
            await asyncio.sleep(self._back_off.next_seconds())

    # --- lists ---

    async def _list(self) -> None:
        if self._first_list is FirstList.CACHED:
            # resourceVersion=0 is answered from the server's cache; without it the list is as new as etcd.
            objects, head = await self._page({} if self._gone else {"resourceVersion": "0"})
            await self._synced(objects, head.resource_version)
            return
        for size in _PAGE_SIZES:
            try:
                objects, version = await self._paged(size)
            except ApiError as error:
                if error.reason is not ApiReason.GONE or size is None:
                    raise
                log.info("the list of %s outlived its version in pages of %d; reading larger ones", self._path, size)
            else:
                await self._synced(objects, version)
                return

    async def _paged(self, size: int | None) -> tuple[list[T], str]:
        objects: list[T] = []
        params = {} if size is None else {"limit": str(size)}
        while True:
            page, head = await self._page(params)
            objects += page
            if not head.continue_:
                return objects, head.resource_version
            params["continue"] = head.continue_

    async def _page(self, params: Params) -> tuple[list[T], ListMeta]:
        body = await self._api.get(self._path, {**self._params, **params})
        try:
            page = self._pages.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._page_in_parts(shallow(body))
        return self._wanted(page.items or []), page.metadata

    def _page_in_parts(self, body: bytes) -> tuple[list[T], ListMeta]:
        raw = decode(body, RawList, self._path)
        objects = []
        for item in raw.items or ():
            try:
                entry = msgspec.json.decode(item, type=self._kind)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                found = _meta_of(item)
                self._unreadable.add(_name(found))
                self._undecodable(found, error)
            else:
                objects.append(entry)
        return self._wanted(objects), raw.metadata

    def _wanted(self, objects: list[T]) -> list[T]:
        kept = objects if self._keep is None else [entry for entry in objects if self._keep(entry)]
        return kept if self._compact is None else [self._compact(entry) for entry in kept]

    async def _synced(self, objects: list[T], version: str) -> None:
        self._version, self._initial = version, None
        self._status.lists += 1
        self._heard()
        self._progress()
        if self._kept is not None:
            # What cannot be decoded now was known before, and its end has to be told.
            self._kept = {_name(entry) for entry in objects} | (self._kept & self._unreadable)
        if self._told_undecodable and self._status.undecodable == self._undecodable_before:
            log.info("all objects of %s can be decoded again", self._path)
            self._told_undecodable = False
        taken = self._on_sync(objects, frozenset(self._unreadable))
        self._unreadable = set()
        if taken is not None:
            await taken
        self._status.synced = True

    def _heard(self) -> None:
        self._status.last_heard_wall = self._clock.wall_ns() / 1e9
        if self._on_heard is not None:
            self._on_heard()

    # --- watches ---

    async def _watch(self) -> bool:
        """Follows until the server ends the watch in good order; True where anything came."""
        params = {
            **self._params,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version or "",
            "timeoutSeconds": str(self._watch_seconds),
        }
        if self._version is None:
            self._initial = {}
            params |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        heard = False
        async with aclosing(self._api.batches(self._path, params, self._watch_seconds + _QUIET_SECONDS)) as batches:
            async for batch in batches:
                if not batch:
                    self._accepted()
                    continue
                for line in batch:
                    self._take(line)
                    if self._brought is not None:
                        await self._hand_on()
                heard = True
                self._heard()
                if self._initial is None:
                    self._gone = False
                    self._progress()
        if self._initial is not None:
            raise _WatchError(ApiReason.FAILED, f"the watch on {self._path} ended before it had brought the whole list")
        return heard

    async def _hand_on(self) -> None:
        # No variable of the watch may keep these objects: it lasts, and most of them will be replaced.
        objects, self._brought = self._brought or [], None
        await self._synced(objects, self._version or "")

    def _take(self, line: bytes) -> None:
        try:
            event = self._decoded(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._take_other(line, error)
            return
        if event.type not in _CHANGES:
            self._take_other(line, None)
            return
        entry = event.object
        self._apply(entry, event.type)
        self._went_on(entry.metadata.resource_version)

    def _decoded(self, line: bytes) -> _Event[T]:
        try:
            return self._events.decode(line)
        except RecursionError:
            return self._events.decode(shallow(line))

    def _apply(self, entry: T, change: str) -> None:
        present = change != "DELETED" and (self._keep is None or self._keep(entry))
        if present and self._compact is not None:
            entry = self._compact(entry)
        if self._initial is not None:
            if present:
                self._initial[_name(entry)] = entry
            else:
                self._initial.pop(_name(entry), None)
            return
        self._status.events += 1
        if self._kept is None:
            self._on_change(entry, present)
        elif present:
            self._kept.add(_name(entry))
            self._on_change(entry, True)
        elif (name := _name(entry)) in self._kept:
            self._kept.discard(name)
            self._on_change(entry, False)

    def _take_other(self, line: bytes, error: Exception | None) -> None:
        """A bookmark, an error, or an object that is not as it should be; anything else is a broken stream."""
        event = decode(line, WatchLine, self._path)
        if event.type == "ERROR":
            status = decode(event.object, Status, self._path)
            raise _WatchError(
                reason_of(status.code),
                f"the watch on {self._path} ended with {status.code}: {_shown(status.message)}",
            )
        found = _meta_of(event.object)
        if event.type == "BOOKMARK":
            if self._initial is not None and (found.metadata.annotations or {}).get(_INITIAL_END) == "true":
                self._brought, self._initial = list(self._initial.values()), None
            self._went_on(found.metadata.resource_version)
            return
        if self._initial is not None:
            self._unreadable.add(_name(found))
        self._undecodable(found, error or ValueError(f"an event of the unknown type {event.type}"))
        if event.type == "DELETED":
            self._forget(found)
        self._went_on(found.metadata.resource_version)

    def _forget(self, found: Versioned) -> None:
        # That it went is known although what it was is not: its metadata is enough for kinds that need no more.
        try:
            gone = msgspec.convert(msgspec.to_builtins(found), self._kind)
        except msgspec.ValidationError:
            return
        self._apply(gone, "DELETED")

    def _went_on(self, version: str) -> None:
        if version and self._initial is None:
            self._version = version

    # --- how it goes ---

    def _accepted(self) -> None:
        self._opened_ns = self._clock.monotonic_ns()
        if self._initial is None:
            self._status.up = True
            if self._failure in _BEFORE_ACCEPTED:
                self._recovered()

    def _progress(self) -> None:
        self._stuck = 0
        self._status.up = True
        self._back_off.reset()
        self._recovered()

    def _recovered(self) -> None:
        if self._failure is not None:
            log.info("%s is readable again", self._path)
        self._failure = None
        self._status.served = True

    def _note(self, error: ApiError) -> None:
        self._status.up = False
        self._status.errors[error.reason] += 1
        if error.reason in _REFUSED:
            self._status.served = False
        if error.reason is not ApiReason.GONE:
            if error.reason is not self._failure:
                log.warning("cannot follow %s: %s", self._path, error)
            self._failure = error.reason
        self._on_error(error)

    async def _fail(self, error: ApiError) -> None:
        opened_ns, self._opened_ns = self._opened_ns, None
        if opened_ns is not None and self._clock.monotonic_ns() - opened_ns >= _LASTED_SECONDS * 1e9:
            self._back_off.reset()  # a quiet watch that a proxy cuts now and then is no server in trouble
        if self._version is None and self._first_list is FirstList.STREAMED:
            self._initial = None
            self._stuck += 1
            not_offered = isinstance(error, _WatchError) or error.reason in (ApiReason.FAILED, ApiReason.INVALID)
            if not_offered or (self._stuck >= _STUCK and error.reason not in _BEFORE_ACCEPTED):
                log.info("%s is listed in pages, since it is not streamed: %s", self._path, error)
                self._first_list, self._stuck = FirstList.PAGED, 0
                return
        self._note(error)
        if error.reason is ApiReason.GONE:
            again, self._gone, self._version = self._gone, True, None
            if not again:
                return
        else:
            self._step_back(error)
        await asyncio.sleep(self._back_off.next_seconds(error))

    def _step_back(self, error: ApiError) -> None:
        """Goes on from the last version, but not for ever: a server that came back from a backup does not know it."""
        if error.reason in _BEFORE_ACCEPTED:
            return
        self._stuck += 1
        if self._stuck >= _STUCK:
            self._stuck, self._version, self._gone = 0, None, True

    def _undecodable(self, found: Versioned, error: Exception) -> None:
        where = _shown(f"{found.metadata.namespace}/{found.metadata.name}".lstrip("/")) or "an object without a name"
        text = f"{where} of {self._path} is left out, since it cannot be decoded: {_shown(str(error))}"
        self._status.undecodable += 1
        if not self._told_undecodable:
            log.warning("%s; further ones are only counted", text)
        self._told_undecodable = True
        self._on_undecodable(text)


def _meta_of(raw: msgspec.Raw) -> Versioned:
    try:
        return msgspec.json.decode(raw, type=Versioned)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Versioned()


def _shown(text: str) -> str:
    """Text of the other side, fit for a log."""
    return "".join(char if char.isprintable() else " " for char in text[:_TEXT_CHARACTERS])


def _name(entry: ApiObject | Versioned) -> str:
    return f"{entry.metadata.namespace}/{entry.metadata.name}"
