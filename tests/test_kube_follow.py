"""Kinds are followed in the version that is served, and fail alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from claimscope.clock import SystemClock
from claimscope.kube.api import ApiClient, ApiReason
from claimscope.kube.follow import KindFollower, WatchStatus, follow, path_of, samples
from claimscope.kube.kinds import WatchedKind, watched_kinds
from claimscope.kube.objects import DeviceTaintRule, ResourceClaim
from claimscope.sim.api.kinds import ALL_KINDS, DEVICE_TAINT_RULES, PODS, RESOURCE_CLAIMS, in_version
from claimscope.sim.api.server import HttpFault
from kube_help import serving

CLAIMS = WatchedKind(
    name="resourceclaims",
    group="resource.k8s.io",
    versions=("v1", "v1beta2"),
    plural="resourceclaims",
    kind=ResourceClaim,
    about="without claims there is nothing to show",
)
RULES = WatchedKind(
    name="devicetaintrules",
    group="resource.k8s.io",
    versions=("v1", "v1beta2"),
    plural="devicetaintrules",
    kind=DeviceTaintRule,
    required=False,
)
GROUP = "/apis/resource.k8s.io"


def claim(name: str) -> dict[str, Any]:
    return {"metadata": {"namespace": "ml-team", "name": name}, "spec": {"devices": {}}}


class Seen:
    """What a follower told, to wait on."""

    def __init__(self) -> None:
        self.names: dict[str, set[str]] = {}
        self.syncs = 0
        self.status = WatchStatus()
        self._told = asyncio.Event()

    def sync(self, kind: str, objects: list[Any], unreadable: frozenset[str]) -> None:
        self.syncs += 1
        self.names[kind] = {entry.metadata.name for entry in objects}
        self._told.set()

    def change(self, kind: str, entry: Any, present: bool) -> None:
        names = self.names.setdefault(kind, set())
        (names.add if present else names.discard)(entry.metadata.name)
        self._told.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._told.clear()
                with suppress(TimeoutError):  # a status tells nobody that it changed
                    async with asyncio.timeout(0.005):
                        await self._told.wait()


@asynccontextmanager
async def following(client: ApiClient, kind: WatchedKind) -> AsyncIterator[Seen]:
    seen = Seen()
    follower = KindFollower(
        client,
        kind,
        clock=SystemClock(),
        on_sync=seen.sync,
        on_change=seen.change,
        status=seen.status,
        first_wait_seconds=0.002,
        absent_seconds=0.02,
        jitter=lambda: 0.5,
    )
    task = asyncio.create_task(follower.run())
    try:
        yield seen
        assert not task.done(), task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_every_kind_of_a_whole_server() -> None:
    async with serving(None, *ALL_KINDS) as (server, client):
        await server.put(RESOURCE_CLAIMS, claim("a"))
        await server.put(PODS, {"metadata": {"namespace": "ml-team", "name": "web"}, "spec": {"containers": []}})
        await server.put(
            PODS,
            {
                "metadata": {"namespace": "ml-team", "name": "train"},
                "spec": {"containers": [], "resourceClaims": [{"name": "gpu", "resourceClaimName": "a"}]},
            },
        )
        kinds = watched_kinds("claimscope")
        seen = Seen()
        statuses = [WatchStatus() for _ in kinds]
        tasks = [
            asyncio.create_task(
                follow(client, kind, clock=SystemClock(), on_sync=seen.sync, on_change=seen.change, status=status)
            )
            for kind, status in zip(kinds, statuses, strict=True)
        ]
        await seen.until(lambda: seen.syncs == len(kinds))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert {name: found for name, found in seen.names.items() if found} == {
            "resourceclaims": {"a"},
            "pods": {"train"},
        }
        assert [(status.name, status.up, status.served, status.errors) for status in statuses] == [
            (kind.name, True, True, {}) for kind in kinds
        ]


def test_paths() -> None:
    paths = {kind.name: path_of(kind, kind.versions[0]) for kind in watched_kinds("claimscope")}
    assert [paths[name] for name in ("resourceclaims", "pods", "leases")] == [
        "/apis/resource.k8s.io/v1/resourceclaims",
        "/api/v1/pods",
        "/apis/coordination.k8s.io/v1/namespaces/claimscope/leases",
    ]


async def test_older_version_where_the_newer_is_not_served() -> None:
    async with serving(None, in_version(DEVICE_TAINT_RULES, "v1beta2"), RESOURCE_CLAIMS) as (server, client):
        rule = {"metadata": {"name": "r"}, "spec": {"taint": {"key": "a", "effect": "None"}}}
        await server.put(in_version(DEVICE_TAINT_RULES, "v1beta2"), rule)
        async with following(client, RULES) as seen:
            await seen.until(lambda: seen.names == {"devicetaintrules": {"r"}})
        assert f"{GROUP}/v1beta2/devicetaintrules" in [path for path, _ in server.requests]


async def test_kind_that_is_not_served_is_asked_for_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "claimscope.kube.follow")
    async with serving(None, RESOURCE_CLAIMS, DEVICE_TAINT_RULES) as (server, client):
        server.fail(GROUP, HttpFault(status=404), HttpFault(status=404))
        async with following(client, RULES) as seen:
            await seen.until(lambda: seen.status.served is False)
            assert seen.status.absent
            assert [
                (sample.family.removeprefix("claimscope_controller_watch_"), sample.value)
                for sample in samples([seen.status])
                if not sample.family.endswith("errors_total")
            ] == [
                ("up", 0),
                ("served", 0),
                ("lists_total", 0),
                ("events_total", 0),
                ("undecodable_total", 0),
            ]
            await seen.until(lambda: seen.syncs == 1)
            assert (seen.status.up, seen.status.served, seen.status.errors) == (True, True, {})
            assert not seen.status.absent
        assert [record.getMessage().split(":")[0] for record in caplog.records] == [
            "devicetaintrules cannot be followed",
            "devicetaintrules is served as v1",
        ]


async def test_kind_that_goes_away_is_looked_for_anew() -> None:
    async with serving(None, RESOURCE_CLAIMS) as (server, client):
        await server.put(RESOURCE_CLAIMS, claim("a"))
        async with following(client, CLAIMS) as seen:
            await seen.until(lambda: seen.syncs == 1)
            await server.until_watched()
            server.fail(f"{GROUP}/v1/resourceclaims", HttpFault(status=404))
            server.fail(GROUP, HttpFault(status=404), HttpFault(status=500), HttpFault(status=404))
            await server.drop_watches()
            await seen.until(lambda: seen.status.served is False)
            assert seen.names == {"resourceclaims": {"a"}}
            await seen.until(lambda: seen.syncs == 2)
            assert (seen.status.up, seen.status.served) == (True, True)
            assert seen.status.errors == {ApiReason.NOT_FOUND: 1, ApiReason.SERVER_ERROR: 1}


async def test_forbidden_kind_costs_only_itself() -> None:
    async with serving(None, RESOURCE_CLAIMS, DEVICE_TAINT_RULES) as (server, client):
        await server.put(RESOURCE_CLAIMS, claim("a"))
        server.fail(f"{GROUP}/v1/devicetaintrules", *(HttpFault(status=403) for _ in range(20)))
        async with following(client, RULES) as rules, following(client, CLAIMS) as claims:
            await claims.until(lambda: claims.names == {"resourceclaims": {"a"}})
            await rules.until(lambda: rules.status.served is False)
            assert (rules.status.up, rules.status.synced, rules.status.absent) == (False, False, False)
            assert (claims.status.up, claims.status.served) == (True, True)


def errors(resource: str, **counts: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What happens everywhere sooner or later starts at zero."""
    common = ("unreachable", "forbidden", "gone", "rate_limited", "server_error", "malformed", "timeout")
    return {
        ("claimscope_controller_watch_errors_total", (("resource", resource), ("reason", reason))): count
        for reason, count in (dict.fromkeys(common, 0) | counts).items()
    }


def test_families() -> None:
    status = WatchStatus(
        name="pods",
        up=True,
        served=True,
        synced=True,
        last_heard_wall=1_795_260_212.5,
        lists=2,
        events=7,
        undecodable=1,
    )
    status.errors.update({ApiReason.GONE: 1, ApiReason.CONFLICT: 2})
    found = {(sample.family, sample.labels): sample.value for sample in samples([status, WatchStatus(name="nodes")])}
    prefix, pods, nodes = "claimscope_controller_watch_", (("resource", "pods"),), (("resource", "nodes"),)
    assert found == {
        (f"{prefix}up", pods): 1,
        (f"{prefix}served", pods): 1,
        (f"{prefix}last_event_timestamp_seconds", pods): 1_795_260_212.5,
        (f"{prefix}lists_total", pods): 2,
        (f"{prefix}events_total", pods): 7,
        (f"{prefix}undecodable_total", pods): 1,
        **errors("pods", gone=1, conflict=2),
        **errors("nodes"),
        (f"{prefix}up", nodes): 0,
        (f"{prefix}lists_total", nodes): 0,
        (f"{prefix}events_total", nodes): 0,
        (f"{prefix}undecodable_total", nodes): 0,
    }
