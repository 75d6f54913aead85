"""List and watch against a real HTTP server: nothing is missed and every refusal has its reason."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from claimscope.clock import ManualClock, SystemClock
from claimscope.kube.api import (
    Access,
    ApiClient,
    ApiError,
    ApiReason,
    InCluster,
    Kubeconfig,
    ListWatch,
    discover,
)
from claimscope.kube.objects import Meta
from claimscope.sim.apiserver import RESOURCE_SLICES, HttpFault, Kind, SimApiServer

THING = Kind(group="example.com", version="v1", plural="things", kind="Thing")
PATH = "/apis/example.com/v1/things"


class Thing(msgspec.Struct, frozen=True):
    metadata: Meta
    size: int = 0


class Fixed:
    """Access that never changes; counts how often renewal was asked for."""

    def __init__(self, url: str, authorization: str | None = None) -> None:
        self.found = Access(base_url=url, authorization=authorization)
        self.renewed = 0

    async def access(self, *, renew: bool = False) -> Access:
        self.renewed += renew
        return self.found


def thing(name: str, size: int = 0) -> dict[str, object]:
    return {"metadata": {"name": name}, "size": size}


@asynccontextmanager
async def serving(token: str | None = None, *kinds: Kind) -> AsyncIterator[tuple[SimApiServer, ApiClient]]:
    server = SimApiServer(kinds or (THING, RESOURCE_SLICES), token=token)
    url = await server.start()
    client = ApiClient(Fixed(url, f"Bearer {token}" if token else None), timeout=10)
    try:
        yield server, client
    finally:
        await client.close()
        await server.stop()


class Mirror:
    """What a ListWatch told, to wait on."""

    def __init__(self) -> None:
        self.things: dict[str, int] = {}
        self.errors: list[ApiReason] = []
        self.texts: list[str] = []
        self.syncs = 0
        self._changed = asyncio.Event()

    def sync(self, things: list[Thing]) -> None:
        self.things = {entry.metadata.name: entry.size for entry in things}
        self.syncs += 1
        self._changed.set()

    def change(self, entry: Thing, exists: bool) -> None:
        if exists:
            self.things[entry.metadata.name] = entry.size
        else:
            self.things.pop(entry.metadata.name, None)
        self._changed.set()

    def error(self, error: ApiError) -> None:
        self.errors.append(error.reason)
        self.texts.append(str(error))
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def following(client: ApiClient, watch_seconds: int = 300) -> AsyncIterator[Mirror]:
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
            watch_seconds=watch_seconds,
            first_wait_seconds=0.01,
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
        while server.watchers == 0:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.001)


async def test_list_then_changes() -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        async with following(client) as mirror:
            await mirror.until(lambda: mirror.things == {"a": 1})
            await server.put(THING, thing("b", 2))
            await server.put(THING, thing("a", 3))
            await mirror.until(lambda: mirror.things == {"a": 3, "b": 2})
            await server.delete(THING, "a")
            await mirror.until(lambda: mirror.things == {"b": 2})
        assert (mirror.syncs, mirror.errors) == (1, [])
        assert server.requests[:2] == [
            (PATH, {"resourceVersion": "0"}),
            (
                PATH,
                {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": "2", "timeoutSeconds": "300"},
            ),
        ]


async def test_ended_watch_goes_on_where_it_was() -> None:
    async with serving() as (server, client), following(client) as mirror:
        await watched(server)
        await server.put(THING, thing("a", 1))
        await mirror.until(lambda: "a" in mirror.things)
        await server.drop_watches()
        await server.put(THING, thing("b", 2))
        await mirror.until(lambda: "b" in mirror.things)
        assert (mirror.syncs, mirror.errors) == (1, [])


async def test_gone_lists_anew_and_not_from_a_cache() -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        async with following(client) as mirror:
            await mirror.until(lambda: "a" in mirror.things)
            await watched(server)
            server.fail(PATH, HttpFault(status=410, message="too old"))
            await server.drop_watches()
            await mirror.until(lambda: mirror.syncs == 2)
        assert mirror.errors == [ApiReason.GONE]
        lists = [query for _, query in server.requests if "watch" not in query]
        assert lists == [{"resourceVersion": "0"}, {}]


async def test_gone_as_an_event_of_the_watch() -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        async with following(client) as mirror:
            await watched(server)
            await server.inject_line(
                b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}\n'
            )
            await mirror.until(lambda: mirror.syncs == 2)
        assert mirror.errors == [ApiReason.GONE]


async def test_watch_from_before_a_compacted_history() -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        server.compact()
        query = {"watch": "true", "resourceVersion": "2"}
        assert [line async for line in client.lines(PATH, query, 10)] == [
            b'{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","message":"too old '
            b'resource version: 2 (3)","reason":"Expired","code":410}}'
        ]


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
        (HttpFault(status=200, body=b'{"items":[{"size":1}]}'), ApiReason.MALFORMED, "metadata"),
    ],
)
async def test_refused_list_is_said_and_tried_again(fault: HttpFault, reason: ApiReason, text: str) -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        server.fail(PATH, fault)
        async with following(client) as mirror:
            await mirror.until(lambda: mirror.things == {"a": 1})
        assert mirror.errors == [reason]
        assert text in mirror.texts[0]
        assert f"{server.url}{PATH}" in mirror.texts[0] or reason is ApiReason.MALFORMED


async def test_malformed_line_of_a_watch() -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        async with following(client) as mirror:
            await watched(server)
            await server.inject_line(b'{"type":"ADDED","object":\n')
            await mirror.until(lambda: mirror.syncs == 2)
        assert mirror.errors == [ApiReason.MALFORMED]
        assert mirror.things == {"a": 1}


async def test_what_was_known_stands_while_the_server_is_away() -> None:
    async with serving() as (server, client):
        await server.put(THING, thing("a", 1))
        async with following(client) as mirror:
            await watched(server)
            port = int(server.url.rsplit(":", 1)[1])
            await server.stop()
            await mirror.until(lambda: ApiReason.UNREACHABLE in mirror.errors)
            assert mirror.things == {"a": 1}
            await server.start(port)
            await mirror.until(lambda: mirror.syncs == 2)


async def test_watches_that_end_at_once_make_no_busy_loop() -> None:
    async with serving() as (server, client):
        server.fail(PATH, HttpFault(status=200, body=b'{"metadata":{"resourceVersion":"1"},"items":null}'))
        server.fail(PATH, *(HttpFault(status=200, body=b"") for _ in range(5)))
        started = asyncio.get_running_loop().time()
        async with following(client):
            await watched(server)
        # Pauses of 10, 20, 40, 80 and 160 ms lie between.
        assert asyncio.get_running_loop().time() - started >= 0.31


async def test_object_larger_than_a_read_buffer() -> None:
    async with serving() as (server, client), following(client) as mirror:
        await watched(server)
        await server.put(THING, {**thing("a", 7), "padding": "x" * 3_000_000})
        await mirror.until(lambda: mirror.things == {"a": 7})
        assert mirror.errors == []


async def test_retry_after_is_told() -> None:
    async with serving() as (server, client):
        server.fail(PATH, HttpFault(status=429, headers={"Retry-After": "17"}))
        with pytest.raises(ApiError) as caught:
            await client.get(PATH)
        assert caught.value.retry_after_seconds == 17.0


async def test_credentials_are_renewed_after_401() -> None:
    async with serving("right") as (server, _):
        source = Fixed(server.url, "Bearer wrong")
        client = ApiClient(source)
        with pytest.raises(ApiError) as caught:
            await client.get(PATH)
        source.found = Access(base_url=server.url, authorization="Bearer right")
        await client.get(PATH)
        await client.get(PATH)
        await client.close()
        assert (caught.value.reason, source.renewed) == (ApiReason.UNAUTHORIZED, 1)


async def test_server_that_does_not_answer() -> None:
    release = asyncio.Event()

    async def hang(_request: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    app = web.Application()
    app.router.add_get("/{path:.*}", hang)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = ApiClient(Fixed(f"http://127.0.0.1:{runner.addresses[0][1]}"), timeout=0.1)
    with pytest.raises(ApiError) as caught:
        await client.get(PATH)
    release.set()
    await client.close()
    await runner.cleanup()
    assert caught.value.reason is ApiReason.TIMEOUT


async def test_discovery_takes_the_first_version_that_serves_the_kind() -> None:
    old = Kind(group="resource.k8s.io", version="v1beta1", plural="resourceslices", kind="ResourceSlice")
    other = Kind(group="resource.k8s.io", version="v1", plural="deviceclasses", kind="DeviceClass")
    async with serving(None, other, old) as (_, client):
        assert await discover(client, "resource.k8s.io", ("v1", "v1beta2", "v1beta1"), "resourceslices") == "v1beta1"


async def test_discovery_without_the_group() -> None:
    async with serving(None, THING) as (_, client):
        with pytest.raises(ApiError) as caught:
            await discover(client, "resource.k8s.io", ("v1", "v1beta1"), "resourceslices")
    assert caught.value.reason is ApiReason.NOT_FOUND
    assert str(caught.value).startswith(
        "the API server serves resourceslices in none of resource.k8s.io/v1, resource.k8s.io/v1beta1 (it has: nothing "
    )


def test_not_in_a_cluster() -> None:
    with pytest.raises(ApiError) as caught:
        InCluster({}, ManualClock())
    assert caught.value.reason is ApiReason.ABSENT


async def test_service_account_without_files(tmp_path: Path) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    with pytest.raises(ApiError) as caught:
        await InCluster(environ, ManualClock(), tmp_path).access()
    assert caught.value.reason is ApiReason.CONFIG
    assert f"cannot use the service account in {tmp_path}" in str(caught.value)


async def test_token_is_read_again_each_minute_and_after_a_401(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text(CERTIFICATE)
    (tmp_path / "token").write_text("one\n")
    clock = ManualClock()
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    source = InCluster(environ, clock, tmp_path)
    first = await source.access()
    (tmp_path / "token").write_text("two\n")
    clock.advance(59)
    same = await source.access()
    clock.advance(1)
    second = await source.access()
    (tmp_path / "token").write_text("three\n")
    third = await source.access(renew=True)
    assert first.base_url == "https://[fd00::1]:443"
    assert [a.authorization for a in (first, same, second, third)] == [
        "Bearer one",
        "Bearer one",
        "Bearer two",
        "Bearer three",
    ]


def kubeconfig(user: str, server: str = "http://127.0.0.1:1") -> str:
    return f"""apiVersion: v1
kind: Config
current-context: here
clusters: [{{name: c, cluster: {{server: "{server}"}}}}]
contexts: [{{name: here, context: {{cluster: c, user: u}}}}]
users: [{{name: u, user: {user}}}]
"""


async def test_kubeconfig_with_a_token_file_that_changes(tmp_path: Path) -> None:
    pytest.importorskip("kubernetes.aio")
    (tmp_path / "token").write_text("one\n")
    (tmp_path / "config").write_text(kubeconfig(f'{{tokenFile: "{tmp_path}/token"}}'))
    source = Kubeconfig(tmp_path / "config", ManualClock())
    first = await source.access()
    (tmp_path / "token").write_text("two\n")
    second = await source.access(renew=True)
    assert (first, second) == (
        Access(base_url="http://127.0.0.1:1", authorization="Bearer one"),
        Access(base_url="http://127.0.0.1:1", authorization="Bearer two"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just text",
        "{",
        "a: [",
        "clusters: 3",
        "current-context: nowhere\nclusters: []\ncontexts: []\nusers: []\n",
        kubeconfig('{tokenFile: "/nonexistent/token"}'),
        kubeconfig("{}", server="http://127.0.0.1:1").replace("cluster: c,", "cluster: other,"),
    ],
)
async def test_wrong_kubeconfig(tmp_path: Path, text: str) -> None:
    pytest.importorskip("kubernetes.aio")
    (tmp_path / "config").write_text(text)
    with pytest.raises(ApiError) as caught:
        await Kubeconfig(tmp_path / "config", ManualClock()).access()
    assert caught.value.reason is ApiReason.CONFIG
    assert str(caught.value).startswith(f"cannot use kubeconfig {tmp_path}/config: ")


async def test_missing_kubeconfig(tmp_path: Path) -> None:
    pytest.importorskip("kubernetes.aio")
    with pytest.raises(ApiError) as caught:
        await Kubeconfig(tmp_path / "none", ManualClock()).access()
    assert caught.value.reason is ApiReason.CONFIG
    assert str(caught.value).startswith(f"cannot use kubeconfig {tmp_path}/none: ")


async def test_kubeconfig_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes.aio", None)
    with pytest.raises(ApiError) as caught:
        await Kubeconfig(tmp_path / "config", ManualClock()).access()
    assert (caught.value.reason, str(caught.value)) == (
        ApiReason.CONFIG,
        "--kubeconfig needs the package kubernetes, which is not installed; install claimscope[kubeconfig]",
    )


CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUPQIpjdCqYvvuZB208qa7UCqRsJAwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjExNTAxNDZaGA8yMTI2MTAyODE1MDE0
NlowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNkC
PA6q3NCSUa9cIFCmqXJWEB+LFCyQap4/9BdIbXlcDKlWwUMvlMkXLsHFPMKSLVwg
sd60W9wEtbnSpTSV0LyjUzBRMB0GA1UdDgQWBBQsse3Te0k3kvVGG17H8TUl9nbs
zTAfBgNVHSMEGDAWgBQsse3Te0k3kvVGG17H8TUl9nbszTAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIQDzsXGUCRwZ76PLZWKpeLjUgwOR8BAIHZ7j
yHVV0hnDsAIgIBzw/PIu/EjWjSB5OWW4mE1AXOtA1uXIR7waOw3/Knc=
-----END CERTIFICATE-----
"""
