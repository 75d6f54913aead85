"""List and watch against a real HTTP server: nothing is missed, nothing is read twice without need."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from claimscope.clock import SystemClock
from claimscope.kube.api import ApiClient, ApiError, ApiReason
from claimscope.kube.kinds import watched_kinds
from claimscope.kube.listwatch import ApiObject, BackOff, FirstList, ListWatch, WatchStatus
from claimscope.sim.api.server import HttpFault, SimApiServer, StreamingLists
from kube_help import PATH, THING, Thing, serving, thing


class Mirror:
    """What a ListWatch told, to wait on."""

    def __init__(self) -> None:
        self.things: dict[str, int] = {}
        self.errors: list[ApiReason] = []
        self.texts: list[str] = []
        self.undecodable: list[str] = []
        self.changes: list[tuple[str, bool]] = []
        self.syncs = 0
        self.unreadable: frozenset[str] = frozenset()
        self.status = WatchStatus()
        self._changed = asyncio.Event()

    def sync(self, things: list[Thing], unreadable: frozenset[str]) -> None:
        self.unreadable = unreadable
        self.things = {entry.metadata.name: entry.size for entry in things}
        self.syncs += 1
        self._changed.set()

    def change(self, entry: Thing, exists: bool) -> None:
        self.changes.append((entry.metadata.name, exists))
        if exists:
            self.things[entry.metadata.name] = entry.size
        else:
            self.things.pop(entry.metadata.name, None)
        self._changed.set()

    def error(self, error: ApiError) -> None:
        self.errors.append(error.reason)
        self.texts.append(str(error))
        self._changed.set()

    def odd(self, text: str) -> None:
        self.undecodable.append(text)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def following(
    client: ApiClient,
    first_list: FirstList = FirstList.STREAMED,
    keep: Callable[[Thing], bool] | None = None,
    watch_seconds: int = 300,
) -> AsyncIterator[Mirror]:
    mirror = Mirror()
    task = asyncio.create_task(
        ListWatch(
            client,
            PATH,
            Thing,
            clock=SystemClock(),
            on_sync=mirror.sync,
            on_change=mirror.change,
            on_error=mirror.error,
            on_undecodable=mirror.odd,
            keep=keep,
            first_list=first_list,
            status=mirror.status,
            watch_seconds=watch_seconds,
            first_wait_seconds=0.005,
            jitter=lambda: 0.5,
        ).run()
    )
    try:
        yield mirror
        assert not task.done(), task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def watched(server: SimApiServer) -> None:
    async with asyncio.timeout(20):
        await server.until_watched()


EVERY = pytest.mark.parametrize("first_list", list(FirstList))


# --- the first list ---


@EVERY
async def test_list_then_changes(first_list: FirstList) -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        async with following(client, first_list) as mirror:
            await mirror.until(lambda: mirror.things == {"a": 1})
            await watched(server)
            await server.put(THING, thing("b", 2))
            await server.put(THING, thing("a", 3))
            await mirror.until(lambda: mirror.things == {"a": 3, "b": 2})
            await server.delete(THING, "a")
            await mirror.until(lambda: mirror.things == {"b": 2})
        status = mirror.status
        assert (mirror.syncs, mirror.errors, status.lists, status.events) == (1, [], 1, 3)
        assert (status.up, status.served, status.synced, status.errors) == (True, True, True, {})


@pytest.mark.parametrize(
    ("first_list", "requests"),
    [
        (
            FirstList.CACHED,
            [
                {"resourceVersion": "0"},
                {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": "2", "timeoutSeconds": "300"},
            ],
        ),
        (
            FirstList.PAGED,
            [
                {"limit": "500"},
                {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": "2", "timeoutSeconds": "300"},
            ],
        ),
        (
            FirstList.STREAMED,
            [
                {
                    "watch": "true",
                    "allowWatchBookmarks": "true",
                    "resourceVersion": "",
                    "timeoutSeconds": "300",
                    "sendInitialEvents": "true",
                    "resourceVersionMatch": "NotOlderThan",
                }
            ],
        ),
    ],
)
async def test_what_is_asked(first_list: FirstList, requests: list[dict[str, str]]) -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        async with following(client, first_list) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
            await watched(server)
        assert server.requests == [(PATH, query) for query in requests]


@pytest.mark.parametrize("answer", [StreamingLists.STORAGE_TOO_OLD, StreamingLists.REFUSED])
async def test_list_that_is_not_streamed_is_read_in_pages(answer: StreamingLists) -> None:
    async with serving(streaming_lists=answer) as (server, client):
        for number in range(1203):
            await server.put(THING, thing(f"t{number:04}", number))
        async with following(client) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
            await watched(server)
            server.compact()
            await server.inject_line(
                b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}\n'
            )
            await mirror.until(lambda: mirror.syncs == 2)
        assert (len(mirror.things), mirror.errors, mirror.status.lists) == (1203, [ApiReason.GONE], 2)
        asked = [("sendInitialEvents" in query, query.get("limit")) for _, query in server.requests[:8]]
        pages = [(False, "500")] * 3
        assert asked == [(True, None), *pages, (False, None), *pages]  # asked for a stream only once


async def test_list_that_outlives_its_version_is_read_in_larger_pages() -> None:
    async with serving(streaming_lists=StreamingLists.REFUSED) as (server, client):
        await server.put(THING, thing("a", 1))
        first = HttpFault(
            status=200,
            body=b'{"metadata":{"resourceVersion":"1","continue":"x"},"items":[{"metadata":{"name":"old"}}]}',
        )
        refused = HttpFault(status=422)
        gone = HttpFault(status=410)
        server.fail(PATH, refused, first, gone, first, gone)
        async with following(client) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
        assert (mirror.things, mirror.errors) == ({"a": 1}, [])
        assert [query.get("limit") for _, query in server.requests[1:6]] == ["500", "500", "5000", "5000", None]


async def test_stream_that_ends_before_the_list_is_whole() -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        server.fail(PATH, HttpFault(status=200, body=b'{"type":"ADDED","object":{"metadata":{"name":"half"}}}\n'))
        async with following(client) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
        assert (mirror.things, mirror.errors) == ({"a": 1}, [])


async def test_changes_during_a_streamed_list() -> None:
    lines = (
        b'{"type":"ADDED","object":{"metadata":{"name":"a"},"size":1}}\n'
        b'{"type":"ADDED","object":{"metadata":{"name":"b"},"size":1}}\n'
        b'{"type":"MODIFIED","object":{"metadata":{"name":"a"},"size":2}}\n'
        b'{"type":"DELETED","object":{"metadata":{"name":"b"},"size":1}}\n'
        b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"1","annotations":'
        b'{"k8s.io/initial-events-end":"true"}}}}\n'
    )
    async with serving() as (server, client):
        server.fail(PATH, HttpFault(status=200, body=lines))
        async with following(client) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
            assert (mirror.things, mirror.changes) == ({"a": 2}, [])
            await watched(server)
        assert server.requests[1][1]["resourceVersion"] == "1"


async def test_list_survives_a_server_that_cannot_be_reached_yet() -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        port = int(server.url.rsplit(":", 1)[1])
        await server.stop()
        async with following(client) as mirror:
            await mirror.until(lambda: len(mirror.errors) >= 4)
            assert (mirror.status.up, mirror.status.synced, mirror.status.last_heard_wall) == (False, False, None)
            await server.start(port)
            await mirror.until(lambda: mirror.syncs == 1)
        assert set(mirror.errors) == {ApiReason.UNREACHABLE}
        assert "sendInitialEvents" in server.requests[-1][1]


# --- gaps ---


@EVERY
async def test_ended_watch_goes_on_where_it_was(first_list: FirstList) -> None:
    async with serving() as (server, client), following(client, first_list) as mirror:
        await watched(server)
        await server.put(THING, thing("a", 1))
        await mirror.until(lambda: "a" in mirror.things)
        await server.drop_watches()
        await server.put(THING, thing("b", 2))
        await mirror.until(lambda: "b" in mirror.things)
        assert (mirror.syncs, mirror.errors, mirror.changes) == (1, [], [("a", True), ("b", True)])


async def test_gone_lists_anew_and_not_from_a_cache() -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        async with following(client, FirstList.CACHED) as mirror:
            await mirror.until(lambda: "a" in mirror.things)
            await watched(server)
            server.fail(PATH, HttpFault(status=410, message="too old"))
            await server.drop_watches()
            await mirror.until(lambda: mirror.syncs == 2)
        assert mirror.errors == [ApiReason.GONE]
        lists = [query for _, query in server.requests if "watch" not in query]
        assert lists == [{"resourceVersion": "0"}, {}]


@EVERY
async def test_gone_as_an_event_of_the_watch(first_list: FirstList) -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        async with following(client, first_list) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
            await watched(server)
            await server.inject_line(
                b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}\n'
            )
            await mirror.until(lambda: mirror.syncs == 2)
        assert (mirror.errors, mirror.things) == ([ApiReason.GONE], {"a": 1})


async def test_watch_from_before_a_compacted_history() -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        server.compact()
        query = {"watch": "true", "resourceVersion": "2"}
        [line] = [line async for line in client.lines(PATH, query, 10)]
        assert b'"code":410' in line


async def test_half_a_line_costs_nothing() -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        async with following(client) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
            await watched(server)
            await server.cut_watches()
            await mirror.until(lambda: mirror.errors == [ApiReason.UNREACHABLE])
            await server.put(THING, thing("b", 2))
            await mirror.until(lambda: "b" in mirror.things)
        assert (mirror.syncs, mirror.things) == (1, {"a": 1, "b": 2})


async def test_line_that_is_no_json_breaks_the_stream_and_loses_nothing() -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        async with following(client) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
            await watched(server)
            await server.inject_line(b'{"type":"ADDED","object":\n')
            await mirror.until(lambda: mirror.errors == [ApiReason.MALFORMED])
            assert not mirror.status.up
            await server.put(THING, thing("b", 2))
            await mirror.until(lambda: "b" in mirror.things)
        assert (mirror.syncs, mirror.things, mirror.undecodable) == (1, {"a": 1, "b": 2}, [])


async def test_stream_that_stays_broken_is_listed_anew() -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        async with following(client, FirstList.PAGED) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
            await watched(server)
            server.fail(PATH, *(HttpFault(status=200, body=b"<html>") for _ in range(2)))
            await server.inject_line(b"<html>\n")
            await mirror.until(lambda: mirror.syncs == 2)
        assert mirror.errors == [ApiReason.MALFORMED] * 3


async def test_what_was_known_stands_while_the_server_is_away() -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        async with following(client) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
            await watched(server)
            port = int(server.url.rsplit(":", 1)[1])
            await server.stop()
            await mirror.until(lambda: ApiReason.UNREACHABLE in mirror.errors)
            assert (mirror.things, mirror.status.up) == ({"a": 1}, False)
            await server.put(THING, thing("b", 2))
            await server.start(port)
            await mirror.until(lambda: "b" in mirror.things)
        assert (mirror.syncs, mirror.things) == (1, {"a": 1, "b": 2})


async def test_watches_that_end_at_once_make_no_busy_loop() -> None:
    async with serving() as (server, client):
        server.fail(PATH, HttpFault(status=200, body=b'{"metadata":{"resourceVersion":"1"},"items":null}'))
        server.fail(PATH, *(HttpFault(status=200, body=b"") for _ in range(5)))
        started = asyncio.get_running_loop().time()
        async with following(client, FirstList.CACHED):
            await watched(server)
        # Pauses of 5, 10, 20, 40 and 80 ms lie between.
        assert asyncio.get_running_loop().time() - started >= 0.155


async def test_quiet_watch_is_heard_of() -> None:
    async with serving() as (server, client):
        server.fail(
            PATH,
            HttpFault(status=200, body=b'{"metadata":{"resourceVersion":"1"},"items":null}'),
            HttpFault(status=200, body=b""),
        )
        async with following(client, FirstList.CACHED) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
            listed = mirror.status.last_heard_wall
            await watched(server)
        ended = mirror.status.last_heard_wall
        assert listed is not None
        assert ended is not None
        assert ended > listed


# --- refusals ---


@pytest.mark.parametrize(
    ("fault", "reason", "text"),
    [
        (
            HttpFault(status=403, message="things is forbidden"),
            ApiReason.FORBIDDEN,
            "answered 403: things is forbidden; grant the right in the ClusterRole",
        ),
        (HttpFault(status=401), ApiReason.UNAUTHORIZED, "the token is not accepted"),
        (HttpFault(status=429, headers={"Retry-After": "0"}), ApiReason.RATE_LIMITED, "asks to wait"),
        (HttpFault(status=500), ApiReason.SERVER_ERROR, "look at the API server's log"),
        (HttpFault(status=503), ApiReason.SERVER_ERROR, "answered 503"),
        (HttpFault(status=302, body=b""), ApiReason.FAILED, "answered 302"),
        (HttpFault(status=200, body=b"<html>"), ApiReason.MALFORMED, "not what the API server sends"),
        (HttpFault(status=200, body=b'{"items":3}'), ApiReason.MALFORMED, "items"),
    ],
)
async def test_refused_list_is_said_and_tried_again(fault: HttpFault, reason: ApiReason, text: str) -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        server.fail(PATH, fault)
        async with following(client, FirstList.CACHED) as mirror:
            await mirror.until(lambda: mirror.things == {"a": 1})
        assert (mirror.errors, mirror.status.errors) == ([reason], {reason: 1})
        assert text in mirror.texts[0]
        assert f"{server.url}{PATH}" in mirror.texts[0] or reason is ApiReason.MALFORMED


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
async def test_refused_watch_goes_on_where_it_was(status: int) -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        async with following(client) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
            await watched(server)
            server.fail(PATH, HttpFault(status=status))
            await server.drop_watches()
            await mirror.until(lambda: mirror.errors != [])
            served = mirror.status.served
            await server.put(THING, thing("b", 2))
            await mirror.until(lambda: "b" in mirror.things)
        assert (mirror.syncs, len(mirror.errors), served) == (1, 1, status not in (403, 404))


async def test_each_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "claimscope.kube.listwatch")
    async with serving() as (server, client):
        server.fail(PATH, HttpFault(status=403), HttpFault(status=500), HttpFault(status=500))
        async with following(client, FirstList.PAGED) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
        assert len(mirror.errors) == 3
        assert [(record.levelname, record.getMessage().split(":")[0]) for record in caplog.records] == [
            ("WARNING", f"cannot follow {PATH}"),
            ("WARNING", f"cannot follow {PATH}"),
            ("INFO", f"{PATH} is readable again"),
        ]


def test_pauses() -> None:
    back_off = BackOff(0.5, lambda: 0.5)
    plain = [back_off.next_seconds() for _ in range(8)]
    back_off.reset()
    refused = [back_off.next_seconds(ApiError(ApiReason.FORBIDDEN, "")) for _ in range(5)]
    back_off.reset()
    asked = [back_off.next_seconds(ApiError(ApiReason.RATE_LIMITED, "", wait)) for wait in (17.0, 9999.0)]
    assert plain == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert refused == [30.0, 60.0, 120.0, 240.0, 300.0]
    assert asked == [17.0, 60.0]


@pytest.mark.parametrize(("jitter", "pause"), [(0.0, 0.25), (0.999, 0.7495)])
def test_pauses_are_spread(jitter: float, pause: float) -> None:
    assert BackOff(0.5, lambda: jitter).next_seconds() == pytest.approx(pause)


# --- objects ---


@EVERY
async def test_object_that_cannot_be_decoded_costs_only_itself(first_list: FirstList) -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        await server.put(THING, {"metadata": {"name": "odd"}, "size": "large"})
        async with following(client, first_list) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
            await watched(server)
            assert (mirror.things, len(mirror.undecodable)) == ({"a": 1}, 1)
            await server.put(THING, {"metadata": {"name": "a"}, "size": []})
            await server.put(THING, thing("b", 2))
            await mirror.until(lambda: "b" in mirror.things)
        assert (mirror.things, mirror.errors, mirror.syncs) == ({"a": 1, "b": 2}, [], 1)
        assert mirror.status.undecodable == 2
        assert mirror.undecodable[0].startswith(
            f"odd of {PATH} is left out, since it cannot be decoded: Expected `int`"
        )


@EVERY
@pytest.mark.parametrize("keep", [None, lambda _: True])
async def test_object_that_a_new_list_holds_undecodable_is_named(
    first_list: FirstList, keep: Callable[[Thing], bool] | None
) -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        await server.put(THING, thing("b", 1))
        async with following(client, first_list, keep) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
            assert mirror.unreadable == frozenset()
            await watched(server)
            await server.put(THING, {"metadata": {"name": "a"}, "size": "large"})
            server.fail(PATH, HttpFault(status=410))
            await server.drop_watches()
            await mirror.until(lambda: mirror.syncs == 2)
            assert (mirror.things, mirror.unreadable) == ({"b": 1}, frozenset({"/a"}))
            await watched(server)
            await server.delete(THING, "a")
            await mirror.until(lambda: mirror.changes == [("a", False)])


@EVERY
async def test_no_change_overtakes_a_list_that_is_taken_in_slowly(first_list: FirstList) -> None:
    told: list[str] = []
    begun, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    status = WatchStatus()

    async def sync(things: list[Thing], unreadable: frozenset[str]) -> None:
        told.append(f"list of {len(things)}")
        begun.set()
        await go.wait()
        told.append(f"taken, synced {status.synced}")

    def change(entry: Thing, exists: bool) -> None:
        told.append(entry.metadata.name)
        done.set()

    async with serving() as (server, client), asyncio.timeout(20):
        await server.put(THING, thing("a"))
        task = asyncio.create_task(ListWatch(
            client, PATH, Thing, clock=SystemClock(), on_sync=sync, on_change=change, first_list=first_list,
            status=status,
        ).run())
        await begun.wait()
        await server.put(THING, thing("b"))
        for _ in range(20):
            await client.get("/version")  # whatever could come in the meantime has come
        go.set()
        await done.wait()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert (told, status.synced) == (["list of 1", "taken, synced False", "b"], True)


async def test_object_that_cannot_be_decoded_any_more_is_seen_to_go() -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        async with following(client) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
            await watched(server)
            await server.put(THING, {"metadata": {"name": "a"}, "size": "large"})
            await server.delete(THING, "a")
            await mirror.until(lambda: mirror.things == {})
        assert (mirror.errors, mirror.changes, mirror.status.undecodable) == ([], [("a", False)], 2)


async def test_unknown_type_of_event_is_left_out() -> None:
    async with serving() as (server, client), following(client) as mirror:
        await mirror.until(lambda: mirror.syncs == 1)
        await watched(server)
        await server.inject_line(b'{"type":"MOVED","object":{"metadata":{"name":"x"}}}\n')
        await server.put(THING, thing("a", 1))
        await mirror.until(lambda: "a" in mirror.things)
        assert (mirror.things, mirror.errors) == ({"a": 1}, [])
        assert mirror.undecodable == [
            f"x of {PATH} is left out, since it cannot be decoded: an event of the unknown type MOVED"
        ]


async def test_undecodable_objects_are_logged_once_until_all_can_be_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "claimscope.kube.listwatch")
    async with serving() as (server, client):
        for name in ("a", "b"):
            await server.put(THING, {"metadata": {"name": name}, "size": "large"})
        async with following(client, FirstList.PAGED) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
            await watched(server)
            for name in ("a", "b"):
                await server.put(THING, thing(name))
            server.fail(PATH, HttpFault(status=410))
            await server.drop_watches()
            await mirror.until(lambda: mirror.syncs == 2)
        assert mirror.status.undecodable == 2
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
        assert caplog.records[1].getMessage() == f"all objects of {PATH} can be decoded again"


@EVERY
async def test_objects_that_are_not_kept(first_list: FirstList) -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("small", 1))
        await server.put(THING, thing("large", 10))
        async with following(client, first_list, keep=lambda entry: entry.size >= 10) as mirror:
            await mirror.until(lambda: mirror.syncs == 1)
            await watched(server)
            assert mirror.things == {"large": 10}
            await server.put(THING, thing("small", 2))
            await server.put(THING, thing("large", 11))
            await server.put(THING, thing("large", 3))  # not kept any more
            await server.delete(THING, "small")
            await server.delete(THING, "large")
            await server.put(THING, thing("last", 12))
            await mirror.until(lambda: "last" in mirror.things)
        assert mirror.changes == [("large", True), ("large", False), ("last", True)]


async def test_object_larger_than_a_read_buffer() -> None:
    async with serving() as (server, client), following(client) as mirror:
        await watched(server)
        await server.put(THING, {**thing("a", 7), "padding": "x" * 3_000_000})
        await mirror.until(lambda: mirror.things == {"a": 7})
        assert mirror.errors == []


RECORDINGS = Path(__file__).parent / "recordings" / "kubernetes-1.36"
RECORDED = {kind.plural: kind for kind in watched_kinds("claimscope") if kind.plural != "leases"}


@pytest.mark.parametrize("plural", sorted(RECORDED))
async def test_everything_that_a_real_server_sent_can_be_decoded(plural: str) -> None:
    watch = RECORDINGS / f"{plural}.watch.jsonl"
    lines = watch.read_bytes().splitlines() if watch.exists() else []
    events = sum(b'"type":"BOOKMARK"' not in line for line in lines)
    path = f"/apis/recorded/v1/{plural}"
    undecodable: list[str] = []
    changes: list[str] = []
    over = asyncio.Event()

    def change(entry: ApiObject, present: bool) -> None:
        changes.append(entry.metadata.name)

    async with serving() as (server, client):
        server.fail(
            path,
            HttpFault(status=200, body=(RECORDINGS / f"{plural}.list.json").read_bytes()),
            HttpFault(status=200, body=b"\n".join(lines)),
        )
        status = WatchStatus()
        task = asyncio.create_task(
            ListWatch(
                client,
                path,
                RECORDED[plural].kind,
                clock=SystemClock(),
                on_sync=lambda _, __: None,
                on_change=change,
                on_error=lambda _: over.set(),  # 404 once the recording is over
                on_undecodable=undecodable.append,
                first_list=FirstList.PAGED,
                status=status,
                first_wait_seconds=0.001,
            ).run()
        )
        async with asyncio.timeout(20):
            await over.wait()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert (undecodable, len(changes), status.lists, status.events) == ([], events, 1, events)
