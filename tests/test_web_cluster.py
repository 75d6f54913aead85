from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from claimscope.claims.explain import Explanation
from claimscope.claims.model import ClaimState, ClaimView, ClusterSnapshot, PendingReason
from claimscope.clock import SystemClock
from claimscope.export.cluster import ClusterCollector
from claimscope.kube.api import ApiClient
from claimscope.kube.lease import LeaderElection, LeaseSeen
from claimscope.metrics import controller
from claimscope.metrics.cluster import sample
from claimscope.model import Sample
from claimscope.sim.api.kinds import ALL_KINDS
from claimscope.sim.api.server import SimApiServer
from claimscope.web import client
from claimscope.web.cluster import WEB_FAMILIES, make_cluster_application
from claimscope.web.cluster_page import page_body
from claimscope.web.site import Check, Readiness, RunningSite, WebCounters, start_site
from cluster_data import CLUSTER, NVIDIA, STANDBY, STUCK, TRAIN, WAITS
from exposition import parsed
from kube_help import Fixed

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
READY = Readiness(checks=(Check(name="election", ok=True, reason="leading"),))


FOUND = Explanation(
    namespace="team-c", name="finetune-gpu", exists=True, verdict="claim team-c/finetune-gpu is pending",
    state=ClaimState.PENDING, reason=PendingReason.DEVICES_IN_USE, similar=(),
)  # fmt: skip
MISSING = Explanation(
    namespace="team-c", name="finetune", exists=False, verdict="claim team-c/finetune does not exist",
    similar=("team-c/finetune-gpu",),
)  # fmt: skip


def explain(namespace: str, name: str) -> Explanation:
    """What the controller would say of a claim."""
    return FOUND if (namespace, name) == ("team-c", "finetune-gpu") else MISSING


@dataclass
class Controller:
    """What the application asks, to be changed by a test."""

    snapshot: ClusterSnapshot | None = CLUSTER
    readiness: Readiness = READY
    leader: str = "pod-2"
    explain: Callable[[str, str], Any] = explain


@asynccontextmanager
async def serving(
    asked: Controller, *, collector: ClusterCollector | None = None, send_seconds: float = 30.0
) -> AsyncIterator[tuple[RunningSite, WebCounters, aiohttp.ClientSession]]:
    counters = WebCounters(own=controller.own)
    application = make_cluster_application(
        snapshot=lambda: asked.snapshot,
        collector=collector or ClusterCollector(),
        readiness=lambda: asked.readiness,
        explain=lambda namespace, name: asked.explain(namespace, name),
        leader=lambda: asked.leader,
        version="0.1.0",
        counters=counters,
        send_seconds=send_seconds,
    )
    site = await start_site(application, "127.0.0.1:0")
    try:
        async with aiohttp.ClientSession(site.url, auto_decompress=False) as session:
            yield site, counters, session
    finally:
        await site.close()


async def fetched(asked: Controller, path: str) -> tuple[int, Any]:
    """Status and document of one answer of the JSON API."""
    async with serving(asked) as (_, _, session), session.get(path, headers={"Accept-Encoding": ""}) as response:
        return response.status, await response.json(content_type=None)


@pytest.mark.parametrize("openmetrics", [False, True])
async def test_scrape(openmetrics: bool) -> None:
    accept = OPENMETRICS if openmetrics else "text/plain"
    async with serving(Controller()) as (_, counters, session):
        async with session.get("/metrics", headers={"Accept": accept, "Accept-Encoding": "gzip"}) as packed:
            body = gzip.decompress(await packed.read())
            assert packed.headers["Content-Encoding"] == "gzip"
        async with session.get("/metrics", headers={"Accept": accept, "Accept-Encoding": "identity"}) as response:
            assert await response.read() == body
            assert (response.status, "Content-Encoding" in response.headers) == (200, False)
            assert response.headers["Vary"] == "Accept, Accept-Encoding"

    series = parsed(body.decode(), openmetrics)
    layers = {dict(labels)["layer"]: value for (name, labels), value in series.items() if name.endswith("_series")}
    assert sum(layers.values()) == len(series)
    assert set(layers) == {"claim", "cluster", "own"}
    names = {name for name, _ in series}
    assert names >= {*WEB_FAMILIES, "dra_claim_info", "dra_pool_devices", "process_cpu_seconds_total"}
    assert not any(name.startswith("claimscope_agent_") for name in names)
    assert counters.scrapes[200] == 2
    assert counters.response_bytes == pytest.approx(len(body), rel=0.05)  # of text 0.0.4, whose comments differ


async def test_standby_shows_itself_alone_and_says_who_leads() -> None:
    async with serving(Controller(snapshot=STANDBY)) as (_, _, session):
        async with session.get("/metrics", headers={"Accept-Encoding": ""}) as response:
            names = {name for name, _ in parsed(await response.text(), openmetrics=False)}
        async with session.get("/readyz") as response:
            assert response.status == 200
        async with session.get("/") as response:
            assert "this replica stands by; pod-2 leads" in gzip_text(await response.read())
        for path in ("/api/v1/claims", "/api/v1/claims/team-a/x", "/api/v1/waits", "/api/v1/capacity",
                     "/api/v1/health"):
            async with session.get(path) as response:
                assert response.status == 503
                assert (await response.json())["error"] == (
                    "this replica stands by; pod-2 leads: ask it, or the Service that points to it"
                )

    assert {name.split("_")[0] for name in names} == {"claimscope", "process", "python"}


def gzip_text(body: bytes) -> str:
    """A body as text, whether compressed or not."""
    return (gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body).decode()


@pytest.mark.parametrize(
    ("snapshot", "leader", "expected"),
    [
        (None, "", "the controller has only just started and has nothing to show yet"),
        (STANDBY, "", "this replica stands by, and no other leads yet: ask again in a moment"),
        (replace(CLUSTER, complete=False), "", "the cluster is still being read: ask again in a moment"),
    ],
    ids=["starting", "no leader", "reading"],
)
async def test_api_without_a_cluster_says_why(snapshot: ClusterSnapshot | None, leader: str, expected: str) -> None:
    assert await fetched(Controller(snapshot=snapshot, leader=leader), "/api/v1/claims") == (503, {"error": expected})


async def test_scrape_before_the_first_snapshot_says_so() -> None:
    async with serving(Controller(snapshot=None)) as (_, counters, session), session.get("/metrics") as response:
        assert response.status == 503
        assert "only just started" in await response.text()
        assert (counters.scrapes[503], counters.in_flight) == (1, 0)


async def test_claims() -> None:
    status, document = await fetched(Controller(), "/api/v1/claims?namespace=team-a&limit=1")

    assert (status, document["total"], len(document["claims"])) == (200, 3, 1)
    claim = document["claims"][0]
    assert claim["name"] == "train-0-gpus-x7k2p"
    assert claim["state"] == "running"
    assert claim["workload"] == {"kind": "RayJob", "name": "train", "group": "train-pg", "queue": "research"}
    assert claim["devices"][0] == {
        "driver": NVIDIA, "pool": "node-a", "device": "gpu-0", "request": "gpu", "uuid": "GPU-1", "node": "node-a",
        "admin_access": False, "share_id": "", "consumed": {}, "health": "Healthy",
    }  # fmt: skip


async def test_claims_of_a_state() -> None:
    _, document = await fetched(Controller(), "/api/v1/claims?state=pending")

    assert [claim["name"] for claim in document["claims"]] == ['odd"\\name', "finetune-gpu"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("claims?limit=0", "limit='0' is not a number from 1 to 10000"),
        ("waits?limit=x", "limit='x' is not a number from 1 to 10000"),
        ("claims?limit=%D9%A3", "limit='\\u0663' is not a number from 1 to 10000"),
        ("claims?state=stuck", "state='stuck' is none; known are pending, allocated, reserved, prepared, running, "
                               "released, deleted"),
        ("health?severity=bad", "severity='bad' is none; known are lost, unhealthy, degraded"),
        ("claims?name=x", "unknown parameter 'name'; known are namespace, state, limit"),
    ],
)  # fmt: skip
async def test_bad_query_is_one_line(query: str, expected: str) -> None:
    assert await fetched(Controller(), f"/api/v1/{query}") == (400, {"error": expected})


async def test_waits_come_longest_first() -> None:
    _, document = await fetched(Controller(), "/api/v1/waits")

    assert [(wait["pod_claim"], wait["pending_seconds"]) for wait in document["waits"]] == [
        ("gpu", 5400.0), ("gpu", 300.0), ("spare", 200.0), ("gpu", None),
    ]  # fmt: skip
    assert document["waits"][0]["reason"] == "devices_in_use"
    assert document["waits"][0]["cure"] == "wait for a node to become free, or ask for fewer devices on one node"
    _, document = await fetched(Controller(), "/api/v1/waits?reason=preparing&namespace=team-a")
    assert [wait["claim"] for wait in document["waits"]] == ["eval-gpu"]


async def test_capacity() -> None:
    _, document = await fetched(Controller(), "/api/v1/capacity")

    assert document["classes"][0] == {
        "deviceclass": NVIDIA,
        "devices": {"allocated": 21, "free": 1, "tainted": 1, "unhealthy": 1, "reserved": 0},
        "largest_claim_devices": 1,
    }
    assert [pool["pool"] for pool in document["pools"]] == ["node-a", "node-b", "node-c", "node-d"]


async def answer_later(namespace: str, name: str) -> Explanation:
    """An explanation that has to be waited for."""
    return explain(namespace, name)


@pytest.mark.parametrize("asked", [explain, answer_later], ids=["at once", "later"])
async def test_explanation_in_json_and_for_the_command_line(asked: Callable[[str, str], Any]) -> None:
    async with serving(Controller(explain=asked)) as (site, _, session):
        async with session.get("/api/v1/claims/team-c/finetune-gpu") as response:
            assert (response.status, (await response.json())["reason"]) == (200, "devices_in_use")
        async with session.get("/api/v1/claims/team-c/finetune") as response:
            assert (response.status, (await response.json())["similar"]) == (404, ["team-c/finetune-gpu"])

        assert await client.explanation(site.url + "/", "team-c", "finetune-gpu") == FOUND
        assert await client.explanation(site.url, "team-c", "finetune") == MISSING


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (Controller(snapshot=STANDBY), "this replica stands by; pod-2 leads: ask it, or the Service that points to it"),
        (Controller(explain=lambda _namespace, _name: None), "the cluster is still being read: ask again in a moment"),
    ],
    ids=["standby", "reading"],
)
async def test_command_line_is_told_why_there_is_no_explanation(asked: Controller, expected: str) -> None:
    async with serving(asked) as (site, _, _):
        with pytest.raises(client.ClientError) as caught:
            await client.explanation(site.url, "team-c", "finetune-gpu")

    assert str(caught.value) == expected


@pytest.mark.parametrize("url", ["127.0.0.1:19401", "ftp://x", "http://", "http://[::1"])
async def test_url_of_a_controller_that_is_none(url: str) -> None:
    with pytest.raises(client.ClientError) as caught:
        await client.explanation(url, "a", "b")

    assert str(caught.value) == f"--controller: `{url}` is not http://HOST:PORT"


async def test_something_else_than_a_controller_is_named() -> None:
    async def other(_request: web.Request) -> web.Response:
        return web.Response(text="<html>")

    application = web.Application()
    application.router.add_get("/{any:.*}", other)
    site = await start_site(application, "127.0.0.1:0")
    try:
        with pytest.raises(client.ClientError, match="answered 200 with something else than an explanation"):
            await client.explanation(site.url, "a", "b")
    finally:
        await site.close()
    with pytest.raises(client.ClientError, match="no controller answers at"):
        await client.explanation(site.url, "a", "b")


async def test_explanation_of_a_cluster_that_is_still_read() -> None:
    asked = Controller(explain=lambda _namespace, _name: None)

    assert (await fetched(asked, "/api/v1/claims/a/b"))[0] == 503


@pytest.mark.parametrize("path", ["/", "/metrics", "/livez", "/readyz", "/api/v1/claims"])
async def test_head_is_get_without_a_body(path: str) -> None:
    async with serving(Controller()) as (_, _, session):
        async with session.head(path, headers={"Accept-Encoding": "identity"}) as response:
            assert (response.status, await response.read()) == (200, b"")
        async with session.get("/livez") as response:
            assert response.status == 200


async def test_unknown_path_names_the_known_ones() -> None:
    async with serving(Controller()) as (_, _, session), session.get("/api/v1/snapshot") as response:
        assert response.status == 404
        assert "/api/v1/claims/{namespace}/{name}, /api/v1/health, /api/v1/waits" in await response.text()


async def test_page_shows_what_waits_and_why_escaped() -> None:
    failing = Controller(readiness=Readiness(checks=(Check(name="pods", ok=False, reason="403"),)))
    async with serving(failing) as (_, _, session), session.get("/?refresh=on") as response:
        text = await response.text()
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")

    for shown in (
        "stuck, longest 1 h 30 min", "24 match, 21 are in use", "wait for a node to become free", "devices in use",
        "template not found &lt;script&gt;", "crash looping", "rule fan-swap", "offered twice", "pods: 403",
        'href="/api/v1/claims/team-c/finetune-gpu"', "≤ 10 s · ≤ 30 s", "<title>21 allocated</title>",
    ):  # fmt: skip
        assert shown in text
    assert "<script" not in text


async def test_page_begins_with_sick_gpus_and_what_is_done_about_them() -> None:
    samples = (*CLUSTER.samples, sample("dra_taint_held", 3, "budget_fleet"), sample("dra_taint_held", 0, "mode"),
               sample("dra_gpu_nodes", 9, "heard"), sample("dra_gpu_nodes", 1, "silent"))
    noted = (*CLUSTER.own, controller.own("taint_mode_info", 1, "announce", "enforce", "api_absent"),
             controller.own("taint_breaker_state", 1, "half_open"), controller.own("taint_paused", 1))
    asked = Controller(snapshot=replace(CLUSTER, samples=samples, own=noted))
    async with serving(asked) as (_, _, session), session.get("/") as response:
        text = await response.text()

    part = text.partition("<h2>Health and taints <small>")[2].partition("<h2>")[0]
    assert part.partition("</small>")[0] == (
        "1 lost · 1 unhealthy · 1 degraded · held back: 3 budget fleet · 1 agent silent · breaker half open · "
        "mode announce · paused"
    )
    for shown in ("GPU-8f6a", "node-4", "gpu lost, xid lost", "2 h 1 min", "NoSchedule", "GPU-&lt;b&gt;",
                  "budget_fleet: 8 of at most 8 GPUs of the fleet are kept from work"):
        assert shown in part
    assert text.index("<h2>Health and taints") < text.index("<h2>Taints") < text.index("<h2>Waiting")


async def test_page_says_that_no_gpu_is_sick_and_shows_the_first_of_many() -> None:
    many = tuple(replace(CLUSTER.sick[1], uuid=f"GPU-{at}") for at in range(2000))
    for sick, shown in (((), "No agent has found anything against a GPU."), (many, "1992 more: <a href=")):
        asked = Controller(snapshot=replace(CLUSTER, sick=sick))
        async with serving(asked) as (_, _, session), session.get("/") as response:
            assert shown in await response.text()


async def test_health() -> None:
    _, document = await fetched(Controller(), "/api/v1/health?severity=lost")
    assert document == {
        "unix_seconds": CLUSTER.wall_ns / 1e9, "total": 1,
        "gpus": [{
            "uuid": "GPU-8f6a", "node": "node-4", "severity": "lost", "rules": ["gpu_lost", "xid_lost"],
            "since_unix_seconds": CLUSTER.wall_ns / 1e9 - 7300, "effect": "NoSchedule", "held": "",
        }],
    }  # fmt: skip
    _, document = await fetched(Controller(), "/api/v1/health?node=node-2&limit=1")
    assert (document["total"], [gpu["uuid"] for gpu in document["gpus"]]) == (2, ["GPU-<b>"])


async def test_page_is_short_however_much_waits() -> None:
    waits = tuple(replace(WAITS[0], claim=f"claim-{at}") for at in range(2000))
    asked = Controller(snapshot=replace(CLUSTER, waits=waits))
    async with serving(asked) as (_, _, session), session.get("/") as response:
        text = await response.text()

    assert text.count("wait for a node to become free") == 50
    assert "1950 more" in text


class Held(ClusterCollector):
    """Stops in the middle of a rendering until a test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def claim_samples(self, view: ClaimView) -> Iterator[Sample]:
        """As it was, after a wait."""
        self.begun.set()
        assert self.go_on.wait(20)
        return super().claim_samples(view)


async def test_everything_else_goes_on_while_a_large_answer_is_made() -> None:
    collector = Held()
    async with serving(Controller(), collector=collector) as (_, counters, session):
        scrapes = [asyncio.create_task(session.get("/metrics")) for _ in range(2)]
        await asyncio.to_thread(collector.begun.wait, 20)

        async with session.get("/livez") as response:
            assert (response.status, counters.in_flight) == (200, 2)

        collector.go_on.set()
        bodies = [await (await scrape).read() for scrape in scrapes]
        assert bodies[0] == bodies[1]
        assert counters.scrapes[200] == 2


class HeldClaims(dict[str, ClaimView]):
    """The claims of a snapshot, which stop whoever walks them until a test lets them go on."""

    def __init__(self, claims: Mapping[str, ClaimView]) -> None:
        super().__init__(claims)
        self.walks = 0
        self.begun, self.go_on = threading.Event(), threading.Event()

    def values(self) -> Any:
        self.walks += 1
        self.begun.set()
        assert self.go_on.wait(20)
        return super().values()


@asynccontextmanager
async def leading() -> AsyncIterator[tuple[LeaderElection, SimApiServer]]:
    """A replica that leads and renews its lease some fifty times a second, on the event loop that serves."""
    async def work(_: LeaseSeen) -> None:
        began.set()
        await asyncio.Event().wait()

    began = asyncio.Event()
    server = SimApiServer(ALL_KINDS)
    api = ApiClient(Fixed(await server.start()))
    election = LeaderElection(
        api, "claimscope", "controller", "a", SystemClock(), lease_seconds=5, renew_deadline_seconds=3.0,
        retry_seconds=0.02,
    )  # fmt: skip
    task = asyncio.create_task(election.run(work))
    try:
        async with asyncio.timeout(20):
            await began.wait()
        yield election, server
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.close()
        await server.stop()


async def test_a_lease_is_renewed_while_a_page_is_made_that_takes_long_and_many_ask_for_it() -> None:
    claims = HeldClaims(CLUSTER.claims)
    asked = Controller(snapshot=replace(CLUSTER, claims=claims))
    async with leading() as (election, server), serving(asked) as (_, _, session):
        pages = [asyncio.create_task(session.get("/")) for _ in range(30)]
        await asyncio.to_thread(claims.begun.wait, 20)
        renewed = len(server.write_requests)
        async with asyncio.timeout(20):
            while len(server.write_requests) < renewed + 5:  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.001)
        async with session.get("/livez") as response:
            assert (response.status, election.is_leader) == (200, True)

        claims.go_on.set()
        texts = {await (await page).text() for page in pages}
        assert (len(texts), "Capacity" in texts.pop()) == (1, True)
        async with session.get("/") as response:
            assert response.status == 200
        walks, claims.walks = claims.walks, 0
        page_body(replace(CLUSTER, claims=claims), "")
        assert (walks, election.is_leader) == (claims.walks, True)  # it was made once


async def test_a_client_that_asks_for_ever_other_answers_is_refused_and_others_are_served() -> None:
    claims = HeldClaims(CLUSTER.claims)
    asked = Controller(snapshot=replace(CLUSTER, claims=claims))
    greedy = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0), limit=0)
    async with serving(asked) as (site, _, session), aiohttp.ClientSession(site.url, connector=greedy) as many:
        asking = [asyncio.create_task(many.get(f"/api/v1/claims?limit={at}")) for at in range(1, 21)]
        await asyncio.to_thread(claims.begun.wait, 20)
        done, _ = await asyncio.wait(asking, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        refused = done.pop().result()
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert await refused.json() == {"error": "too many answers are being made already; ask again in a moment"}
        async with session.get("/api/v1/capacity") as response:
            assert response.status == 200  # that walks no claims
        claims.go_on.set()
        found = [(await each).status for each in asking]
        assert (found.count(200), found.count(503)) == (5, 15)  # one is made, four wait


async def test_a_client_that_asks_for_ever_other_claims_is_refused_and_others_are_served() -> None:
    begun: list[str] = []
    go_on = asyncio.Event()

    async def slowly(namespace: str, name: str) -> Explanation:
        begun.append(name)
        await go_on.wait()
        return explain(namespace, name)

    greedy = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0), limit=0)
    async with (
        serving(Controller(explain=slowly)) as (site, _, session),
        aiohttp.ClientSession(site.url, connector=greedy) as many,
    ):
        asking = [asyncio.create_task(many.get(f"/api/v1/claims/team-a/guess-{at}")) for at in range(20)]
        done, _ = await asyncio.wait(asking, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        assert (done.pop().result().status, len(begun)) == (503, 1)
        other = asyncio.create_task(session.get("/api/v1/claims/team-a/guess"))
        async with asyncio.timeout(20):
            while len(begun) < 2:  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.001)
        go_on.set()
        found = [(await each).status for each in asking]
        assert ((await other).status, found.count(503)) == (404, 15)  # one is made, four wait


async def test_answers_of_a_newer_snapshot_and_of_none_are_not_those_of_before() -> None:
    asked = Controller()
    async with serving(asked) as (_, _, session):
        for snapshot, total in ((CLUSTER, len(CLUSTER.claims)), (replace(CLUSTER, claims={}), 0)):
            asked.snapshot = snapshot
            async with session.get("/api/v1/claims") as response:
                assert (await response.json())["total"] == total
        asked.snapshot = STANDBY
        async with session.get("/api/v1/claims") as response:
            assert response.status == 503
        async with session.get("/") as response:
            assert "Capacity" not in await response.text()


async def test_slow_readers_of_many_snapshots_keep_few_of_them() -> None:
    """Of five snapshots that somebody reads without hurry three stay; who reads an older one is let go."""
    claims = {str(at): replace(TRAIN, uid=f"{at:032x}") for at in range(15_000)}
    asked, collector = Controller(), ClusterCollector("essential")
    async with serving(asked, collector=collector) as (site, counters, _), contextlib.AsyncExitStack() as stack:
        for number in range(5):
            asked.snapshot = replace(CLUSTER, claims=claims, wall_ns=CLUSTER.wall_ns + number)
            deaf = stack.enter_context(socket.socket())
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await asyncio.get_running_loop().sock_connect(deaf, ("127.0.0.1", site.port))
            await asyncio.get_running_loop().sock_sendall(
                deaf, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
            )
            await asyncio.get_running_loop().sock_recv(deaf, 1)
        async with asyncio.timeout(20):
            while counters.scrapes[499] < 2:  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.001)
        assert (counters.in_flight, counters.cut["evicted"]) == (3, 2)


async def test_client_that_gives_up_while_an_answer_is_made_costs_only_itself() -> None:
    collector = Held()
    async with serving(Controller(), collector=collector) as (_, counters, session):
        impatient = asyncio.create_task(session.get("/metrics"))
        await asyncio.to_thread(collector.begun.wait, 20)
        impatient.cancel()
        async with asyncio.timeout(20):
            while counters.in_flight:  # noqa: ASYNC110  (the server has no event to wait for)
                await asyncio.sleep(0.005)
        collector.go_on.set()

        async with session.get("/metrics") as response:
            assert response.status == 200
        assert counters.scrapes[499] == 1


async def test_large_answer_is_sent_in_pieces_uncompressed() -> None:
    claims = {str(at): replace(TRAIN, uid=str(at)) for at in range(10_000)}
    asked = Controller(snapshot=replace(CLUSTER, claims={**claims, STUCK.uid: STUCK}))
    plain = {"Accept-Encoding": "identity"}
    async with serving(asked) as (_, _, session), session.get("/metrics", headers=plain) as response:
        body = await response.read()

    assert body.count(b"\ndra_claim_requested_devices{") == 10_001
    assert body.endswith(b"\n")
