import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import aiohttp
import pytest

from claimscope.export.collect import Collector
from claimscope.health.model import DeviceHealth, Finding, RuleState, Severity
from claimscope.health.watch import HealthView
from claimscope.model import Hold, Holder, Sample, Snapshot
from claimscope.web.application import (
    WEB_FAMILIES,
    Check,
    ListenError,
    Readiness,
    RunningSite,
    WebCounters,
    layer_of,
    make_application,
    start_site,
)
from claimscope.web.html import duration_text
from claimscope.web.negotiation import Format, accepts_gzip, choose_format, wants_json
from claimscope.web.page import bytes_text, joules_text, render_page
from exposition import GPU_0, GPU_2, QUANTITIES, SNAPSHOT, WALL, parsed
from serving_help import get, raw, served

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
FRESH = Readiness(checks=(Check(name="sampler", ok=True, reason="newest window 0.4 s old"),))
STALE = Readiness(
    checks=(
        Check(name="sampler", ok=False, reason="newest window 12.0 s old, allowed are 5 s"),
        Check(name="attribution", ok=True),
    )
)


@dataclass
class Agent:
    """What the application asks, to be changed by a test."""

    snapshot: Snapshot | None = SNAPSHOT
    readiness: Readiness = FRESH
    asked: int = 0


@asynccontextmanager
async def serving(
    agent: Agent, *, max_scrapes: int = 40, send_seconds: float = 30.0, collector: Collector | None = None
) -> AsyncIterator[tuple[RunningSite, WebCounters]]:
    counters = WebCounters()

    def snapshot() -> Snapshot | None:
        agent.asked += 1
        return agent.snapshot

    application = make_application(
        snapshot=snapshot,
        collector=collector or Collector(QUANTITIES),
        readiness=lambda: agent.readiness,
        version="0.1.0",
        counters=counters,
        max_scrapes=max_scrapes,
        send_seconds=send_seconds,
    )
    site = await start_site(application, "127.0.0.1:0")
    try:
        yield site, counters
    finally:
        await site.close()


@asynccontextmanager
async def client(agent: Agent) -> AsyncIterator[tuple[aiohttp.ClientSession, WebCounters]]:
    async with (
        serving(agent) as (site, counters),
        aiohttp.ClientSession(site.url, auto_decompress=False) as session,
    ):
        yield session, counters


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, Format.TEXT),
        ("", Format.TEXT),
        ("*/*", Format.TEXT),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Format.TEXT),
        ("text/plain", Format.TEXT),
        ("text/plain;version=0.0.4", Format.TEXT),
        ("application/openmetrics-text", Format.OPENMETRICS),
        ("application/openmetrics-text;version=1.0.0", Format.OPENMETRICS),
        ('APPLICATION/OpenMetrics-Text; Version="1.0.0"; charset=utf-8', Format.OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1", Format.TEXT),
        ("application/openmetrics-text;version=2.0.0", Format.TEXT),
        (  # Prometheus 2.42
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            Format.OPENMETRICS,
        ),
        (  # Prometheus 3
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
            "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
            "text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            Format.OPENMETRICS,
        ),
        (  # Prometheus with native histograms
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,"
            "application/openmetrics-text;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.5",
            Format.TEXT,
        ),
        ("application/openmetrics-text;q=0", Format.TEXT),
        ("application/openmetrics-text;q=0,*/*", Format.TEXT),
        ("application/openmetrics-text;q=0.5,text/plain;q=0.5", Format.OPENMETRICS),
        ("application/openmetrics-text;q=0.5,text/*;q=0.6", Format.TEXT),
        ("application/openmetrics-text;q=high", Format.TEXT),
        ("application/openmetrics-text;q=1.5", Format.TEXT),
        ("application/openmetrics-text;q=nan,text/plain", Format.TEXT),
        ("application/openmetrics-text;x=\"a,b;q=0\";q=0.9", Format.OPENMETRICS),
        ("application/json", Format.TEXT),
        (",,;;=,/,*", Format.TEXT),
        ('text/plain;version="0.0.4', Format.TEXT),
        ("application/openmetrics-text" + ";x=y" * 100_000, Format.OPENMETRICS),
        ("\x00\xff, application/openmetrics-text", Format.OPENMETRICS),
    ],
)
def test_format(accept: str | None, form: Format) -> None:
    assert choose_format(accept) is form


@pytest.mark.parametrize(
    ("header", "answer"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("identity", False),
        ("identity;q=1, gzip;q=0.5", False),
        ("br", False),
        ("gzip;q=x", False),
    ],
)
def test_gzip_is_sent_to_who_allows_it(header: str | None, answer: bool) -> None:
    assert accepts_gzip(header) is answer


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        ("application/json", True),
        ("*/*", False),
        (None, False),
        ("application/json;q=0", False),
        ("application/json;q=0.1, text/plain", False),
    ],
)
def test_json_is_sent_to_who_names_it(accept: str | None, answer: bool) -> None:
    assert wants_json(accept) is answer


@pytest.mark.parametrize(
    ("accept", "content_type", "openmetrics"), [("text/plain", TEXT, False), (OPENMETRICS, OPENMETRICS, True)]
)
async def test_scrape(accept: str, content_type: str, openmetrics: bool) -> None:
    async with client(Agent()) as (session, counters):
        async with session.get("/metrics", headers={"Accept": accept, "Accept-Encoding": "gzip"}) as packed:
            body = gzip.decompress(await packed.read())
            assert packed.headers["Content-Encoding"] == "gzip"
        async with session.get("/metrics", headers={"Accept": accept, "Accept-Encoding": "identity"}) as response:
            assert "Content-Encoding" not in response.headers
            assert await response.read() == body
            assert (response.status, response.headers["Content-Type"]) == (200, content_type)
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Vary"] == "Accept, Accept-Encoding"

    series = parsed(body.decode(), openmetrics)
    assert series[("gpu_power_watts", (("gpu", "0"), ("uuid", GPU_0)))] == 412.5
    assert ("process_cpu_seconds_total", ()) in series
    layers = {dict(labels)["layer"]: value for (name, labels), value in series.items() if name.endswith("_series")}
    assert sum(layers.values()) == len(series)
    assert counters.scrapes[200] == 2


async def test_web_families_are_all_in_the_answer() -> None:
    async with client(Agent()) as (session, _), session.get("/metrics", headers={"Accept-Encoding": ""}) as response:
        names = {name for name, _ in parsed(await response.text(), openmetrics=False)}

    assert set(WEB_FAMILIES) <= names


async def test_answer_is_made_once_per_snapshot() -> None:
    agent = Agent()
    collected: list[Snapshot] = []

    class Counting(Collector):
        def collect(self, snapshot: Snapshot) -> list[Sample]:
            collected.append(snapshot)
            return super().collect(snapshot)

    async with (
        serving(agent, collector=Counting(QUANTITIES)) as (site, _),
        aiohttp.ClientSession(site.url) as session,
    ):
        for _ in range(3):
            await (await session.get("/metrics")).read()
        agent.snapshot = replace(SNAPSHOT, wall_ns=WALL + 1)
        await (await session.get("/metrics", headers={"Accept": OPENMETRICS})).read()

    assert collected == [SNAPSHOT, agent.snapshot]


async def test_scrape_before_the_first_snapshot_says_so() -> None:
    async with client(Agent(snapshot=None)) as (session, counters), session.get("/metrics") as response:
        assert response.status == 503
        assert "only just started" in await response.text()
        assert counters.scrapes[503] == 1


@pytest.mark.parametrize("path", ["/", "/metrics", "/livez", "/readyz", "/api/v1/snapshot"])
async def test_head_is_get_without_a_body(path: str) -> None:
    async with client(Agent()) as (session, _), session.head(path) as response:
        assert response.status == 200
        assert await response.read() == b""
        assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_live_is_live_whatever_the_rest_does() -> None:
    async with client(Agent(snapshot=None, readiness=STALE)) as (session, _), session.get("/livez") as response:
        assert (response.status, await response.text()) == (200, "ok\n")


async def test_readiness_in_lines() -> None:
    agent = Agent()
    async with client(agent) as (session, _):
        async with session.get("/readyz") as response:
            assert (response.status, await response.text()) == (200, "[+] sampler: newest window 0.4 s old\nready\n")
        agent.readiness = STALE
        async with session.get("/readyz") as response:
            assert response.status == 503
            assert await response.text() == (
                "[-] sampler: newest window 12.0 s old, allowed are 5 s\n[+] attribution: ok\nnot ready\n"
            )


async def test_readiness_in_json() -> None:
    headers = {"Accept": "application/json"}
    async with client(Agent(readiness=STALE)) as (session, _), session.get("/readyz", headers=headers) as response:
        assert response.status == 503
        assert await response.json() == {
            "ready": False,
            "checks": [
                {"name": "sampler", "ok": False, "reason": "newest window 12.0 s old, allowed are 5 s"},
                {"name": "attribution", "ok": True, "reason": ""},
            ],
        }


async def test_snapshot_in_json() -> None:
    async with client(Agent()) as (session, _), session.get("/api/v1/snapshot") as response:
        document = await response.json()

    assert document["node"] == "node-a"
    assert document["lost"] == {GPU_2: "GPU is lost"}
    assert document["devices"][0]["readings"]["power"] == 412.5
    assert document["holds"][0]["holder"]["name"] == "train"
    assert document["accounts"][0]["totals"]["energy"] == 1000000.0


async def test_unknown_path_names_the_known_ones() -> None:
    async with client(Agent()) as (session, _), session.get("/nothing<script>") as response:
        assert response.status == 404
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "/metrics" in await response.text()


async def test_unknown_method_names_the_known_ones() -> None:
    async with client(Agent()) as (session, _), session.post("/metrics", data=b"x" * 100_000) as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
        assert await response.text() == "'POST' is not allowed here; use GET, HEAD\n"


async def test_page_shows_devices_and_holders_escaped() -> None:
    hold = Hold(holder=Holder(source="claim", namespace="<b>", name="&x", uid="u"), entity=GPU_0)
    agent = Agent(snapshot=replace(SNAPSHOT, node="<node>", holds=(*SNAPSHOT.holds, hold)), readiness=STALE)
    async with client(agent) as (session, _), session.get("/") as response:
        text = await response.text()
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")

    assert "&lt;b&gt;/&amp;x" in text
    assert "<node>" not in text
    assert "<b>" not in text
    for shown in ("GPU 0 NVIDIA H100", "GPU 1 MIG 7/0", "412 W", "93\u00a0%", "40.0 GiB", "team-a/train", "12.0 s old"):
        assert shown in text


async def test_page_shows_findings_first_and_escaped() -> None:
    finding = Finding(
        uuid=GPU_0, rule="xid_lost", severity=Severity.LOST, state=RuleState.LATCHED, since_wall_ns=WALL - 90 * 10**9,
        evidence={"line": "<script>alert(1)</script>"}, clears="A reboot.", systemic=True,
    )  # fmt: skip
    health = DeviceHealth(uuid=GPU_0, severity=Severity.LOST, findings=(finding,))
    view = HealthView(boot_id="b", devices={GPU_0: health})

    text = render_page(snapshot=SNAPSHOT, samples=(), version="0", failing=(), refresh=False, health=view)

    assert text.index("<h2>Findings</h2>") < text.index("<h2>Devices</h2>")
    assert "The GPU fell off the bus (XID 79)" in text
    assert "shared by many GPUs" in text
    assert "1 min 30 s" in text
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert text.count('<span class="tag bad">lost</span>') >= 2


async def test_no_findings_no_section() -> None:
    view = HealthView(boot_id="b", devices={GPU_0: DeviceHealth(uuid=GPU_0, severity=Severity.OK)})

    text = render_page(snapshot=SNAPSHOT, samples=(), version="0", failing=(), refresh=False, health=view)

    assert "Findings" not in text
    assert '<span class="tag good">ok</span>' in text


async def test_health_in_json() -> None:
    async with client(Agent()) as (session, _), session.get("/api/v1/health") as response:
        assert response.status == 503
        assert "nothing is known of the devices' health" in (await response.json())["error"]


async def test_page_before_the_first_snapshot() -> None:
    async with client(Agent(snapshot=None)) as (session, _), session.get("/?refresh=on") as response:
        text = await response.text()

    assert "only just started" in text
    assert '<meta http-equiv="refresh" content="5">' in text


@pytest.mark.parametrize(
    ("make", "value", "text"),
    [
        (bytes_text, None, "–"),
        (bytes_text, 0.0, "0 B"),
        (bytes_text, 1536.0, "1.5 KiB"),
        (bytes_text, 80 * 1024.0**3, "80.0 GiB"),
        (bytes_text, 2 * 1024.0**4, "2.0 TiB"),
        (joules_text, 100.0, "100 J"),
        (joules_text, 7200.0, "2.0 Wh"),
        (joules_text, 7.2e6, "2.00 kWh"),
        (duration_text, 59.9, "59 s"),
        (duration_text, 61.0, "1 min 1 s"),
        (duration_text, 7260.0, "2 h 1 min"),
        (duration_text, 90000.0, "1 d 1 h"),
    ],
)
def test_numbers_for_people(make: Callable[[float | None], str], value: float | None, text: str) -> None:
    assert make(value) == text


def large(series: int) -> Snapshot:
    """A Snapshot whose answer does not fit into socket buffers."""
    holds = tuple(
        Hold(holder=Holder(source="claim", namespace="n" * 60, name=f"{at}-" + "c" * 240), entity=GPU_0)
        for at in range(series)
    )
    return replace(SNAPSHOT, holds=holds)


async def stalled(site: RunningSite) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that asks and does not read."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", site.port))
    reader, writer = await asyncio.open_connection(sock=made, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    await writer.drain()
    return reader, writer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  (the server has no event to wait for)
            await asyncio.sleep(0.005)


async def test_crowd_is_refused_with_a_line_and_served_when_it_is_over() -> None:
    async with served() as site, raw(site.port, source="127.0.0.2") as one, raw(site.port, source="127.0.0.3") as two:
        site.site.max_scrapes = 2
        site.site.go_on.clear()
        for each in (one, two):
            await each.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: site.counters.in_flight == 2)

        async with aiohttp.ClientSession(site.running.url) as session, session.get("/metrics") as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert await response.text() == (
                "2 scrapes are being answered already, which is the limit; scrape less often or from fewer places\n"
            )
        assert await get(site, "/livez") == (200, "ok\n")

        site.site.go_on.set()
        assert [await one.answer(), await two.answer()] == [b"HTTP/1.1 200 OK"] * 2
        assert await get(site) == (200, "gpu_up 1\n")
        assert (site.counters.in_flight, site.counters.scrapes) == (0, {200: 3, 503: 1})


async def test_reader_that_stalls_is_cut_off() -> None:
    async with serving(Agent(snapshot=large(30_000)), send_seconds=0.2) as (site, counters):
        _, writer = await stalled(site)

        await until(lambda: counters.scrapes[499] == 1)

        assert counters.in_flight == 0
        writer.transport.abort()


async def test_client_that_hangs_up_costs_only_itself() -> None:
    async with serving(Agent()) as (site, counters), aiohttp.ClientSession(site.url) as session:
        for rude in (b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00", b"\r\n" * 99):
            _, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(rude)
            await writer.drain()
            writer.transport.abort()

        async with session.get("/metrics") as response:
            assert response.status == 200
        await until(lambda: counters.in_flight == 0)


async def test_oversized_header_is_refused() -> None:
    async with serving(Agent()) as (site, _), aiohttp.ClientSession(site.url) as session:
        async with session.get("/metrics", headers={"X-Odd": "x" * 100_000}) as response:
            assert response.status == 400
        async with session.get("/metrics") as response:
            assert response.status == 200


async def test_accept_in_two_lines_counts_as_one() -> None:
    headers = [("Accept", "text/plain;q=0.5"), ("Accept", "application/openmetrics-text")]
    async with client(Agent()) as (session, _), session.get("/metrics", headers=headers) as response:
        assert response.headers["Content-Type"] == OPENMETRICS


async def test_port_taken_says_where_and_what_to_do() -> None:
    async with serving(Agent()) as (site, _):
        application = make_application(
            snapshot=lambda: None, collector=Collector(QUANTITIES), readiness=lambda: FRESH, version="0"
        )
        with pytest.raises(ListenError) as caught:
            await start_site(application, f"127.0.0.1:{site.port}")

    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{site.port}: Address already in use; another process listens there, perhaps a "
        "second claimscope; stop it (`ss -ltnp` shows it) or choose another port (--web-listen-address)"
    )


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("127.0.0.1", "not host:port"),
        ("::1:19400", "not host:port"),
        ("127.0.0.1:web", "port `web`"),
        ("127.0.0.1:70000", "port `70000`"),
        ("192.0.2.1:0", "Cannot assign requested address"),
        ("no such host:0", "no name that resolves"),
    ],
)
async def test_bad_address_says_what_is_wrong(address: str, found: str) -> None:
    application = make_application(
        snapshot=lambda: None, collector=Collector(QUANTITIES), readiness=lambda: FRESH, version="0"
    )
    with pytest.raises(ListenError, match="--web-listen-address") as caught:
        await start_site(application, address)

    assert found in str(caught.value)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as made:
            made.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
async def test_address_forms(address: str) -> None:
    if address.startswith("[") and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    application = make_application(
        snapshot=lambda: None, collector=Collector(QUANTITIES), readiness=lambda: FRESH, version="0"
    )
    site = await start_site(application, address)
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{site.url}/livez") as response:
            assert response.status == 200
    finally:
        await site.close()


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("gpu_power_watts", "device"),
        ("gpu_info", "device"),
        ("gpu_health", "device"),
        ("gpu_health_findings_total", "device"),
        ("gpu_allocation_info", "edge"),
        ("dra_claim_gpu_energy_joules_total", "account"),
        ("pod_gpu_energy_joules_total", "account"),
        ("gpu_unattributed_energy_joules_total", "account"),
        ("claimscope_agent_sampler_up", "own"),
        ("process_cpu_seconds_total", "own"),
    ],
)
def test_layers(family: str, layer: str) -> None:
    assert layer_of(family) == layer
