"""Requests against a real HTTP server: every refusal has its reason and says what to do."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from claimscope.clock import ManualClock
from claimscope.kube.api import (
    APPLY,
    JSON_PATCH,
    MERGE_PATCH,
    Access,
    ApiClient,
    ApiError,
    ApiReason,
    InCluster,
    Kubeconfig,
    discover,
)
from claimscope.sim.api.kinds import DEVICE_TAINT_RULES, LEASES
from claimscope.sim.api.server import HttpFault, Kind
from kube_help import PATH, THING, Fixed, serving, thing

RULES = "/apis/resource.k8s.io/v1/devicetaintrules"
NAMED = f"{RULES}/r"
RULE = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "DeviceTaintRule",
    "metadata": {"name": "r"},
    "spec": {"taint": {"key": "a", "effect": "None"}},
}


def effect(body: bytes) -> object:
    return msgspec.json.decode(body)["spec"]["taint"]["effect"]


async def test_every_way_to_write() -> None:
    async with serving(None, DEVICE_TAINT_RULES) as (server, client):
        made = await client.send("POST", RULES, body=RULE)
        version = msgspec.json.decode(made)["metadata"]["resourceVersion"]
        replaced = await client.send(
            "PUT",
            NAMED,
            body=msgspec.json.encode(
                {
                    **RULE,
                    "metadata": {"name": "r", "resourceVersion": version},
                    "spec": {"taint": {"key": "a", "effect": "NoSchedule"}},
                }
            ),
        )
        merged = await client.send(
            "PATCH", NAMED, body={"spec": {"taint": {"effect": "None"}}}, content_type=MERGE_PATCH
        )
        patched = await client.send(
            "PATCH",
            NAMED,
            body=[{"op": "replace", "path": "/spec/taint/effect", "value": "NoExecute"}],
            content_type=JSON_PATCH,
        )
        applied = await client.send(
            "PATCH",
            NAMED,
            body={**RULE, "spec": {"taint": {"key": "a", "effect": "NoSchedule"}}},
            content_type=APPLY,
            params={"fieldManager": "claimscope", "force": "true"},
        )
        await client.send("DELETE", NAMED)
        assert [effect(body) for body in (made, replaced, merged, patched, applied)] == [
            "None",
            "NoSchedule",
            "None",
            "NoExecute",
            "NoSchedule",
        ]
        assert server.get(DEVICE_TAINT_RULES, "r") is None


async def test_refused_writes_have_their_reasons() -> None:
    async with serving(None, DEVICE_TAINT_RULES, LEASES) as (server, client):
        leases = "/apis/coordination.k8s.io/v1/namespaces/n/leases"
        await client.send("POST", RULES, body=RULE)
        found = []
        for method, path, body in (
            ("POST", RULES, RULE),
            ("PUT", NAMED, {**RULE, "metadata": {"name": "r", "resourceVersion": "1"}}),
            ("POST", leases, {"metadata": {}}),
            ("DELETE", f"{RULES}/none", None),
        ):
            with pytest.raises(ApiError) as caught:
                await client.send(method, path, body=body)
            found.append((caught.value.reason, str(caught.value)))
        assert [reason for reason, _ in found] == [
            ApiReason.CONFLICT,
            ApiReason.CONFLICT,
            ApiReason.INVALID,
            ApiReason.NOT_FOUND,
        ]
        assert found[0][1] == (
            f'{server.url}{RULES} answered 409: devicetaintrules.resource.k8s.io "r" already exists; somebody else '
            "wrote it first; it is read again"
        )
        assert "the server does not take this object" in found[2][1]


async def test_write_to_a_server_that_is_away() -> None:
    async with serving() as (server, client):
        await server.stop()
        with pytest.raises(ApiError) as caught:
            await client.send("POST", PATH, body=thing("a"))
        assert caught.value.reason is ApiReason.UNREACHABLE
        assert str(caught.value).startswith(f"cannot POST {server.url}{PATH}: ")


async def test_more_watches_than_a_default_pool_has_connections() -> None:
    async with serving() as (server, client):

        async def watch() -> None:
            async for _ in client.lines(PATH, {"watch": "true", "resourceVersion": "1"}, 30):
                pass

        async with asyncio.timeout(20):
            watches = [asyncio.create_task(watch()) for _ in range(110)]
            await server.until_watched(110)
            await client.get(PATH)
        for each in watches:
            each.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


async def test_core_group_needs_no_discovery() -> None:
    async with serving() as (server, client):
        assert (await discover(client, "", ("v1",), "pods"), server.requests) == ("v1", [])


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
