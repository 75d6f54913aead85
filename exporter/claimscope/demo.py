"""What does claimscope look like at work? The real agent on a simulated node, and a real Prometheus where there is one.

Everything runs on the loopback interface and in one temporary directory, and is gone afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

AGENT_PORT = 19400
PROMETHEUS_PORT = 19490
_READY_SECONDS = 30.0
_STOP_SECONDS = 10.0
_RATE_SECONDS = 10  # the queries' range: as much as a demo has seen after a few moments
_SHOWN_ROWS = 6

Say = Callable[[str], None]


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One question worth asking."""

    title: str
    promql: str
    labels: tuple[str, ...]  # shown in front of each value
    unit: str
    scale: float = 1.0


QUERIES = (
    Query(
        title="Power that each claim draws, whichever GPUs, MIG devices or shares it holds",
        promql=(
            "sort_desc(sum by (namespace, resourceclaim) "
            f"(rate(dra_claim_gpu_energy_joules_total[{_RATE_SECONDS}s])))"
        ),
        labels=("namespace", "resourceclaim"),
        unit="W",
    ),
    Query(
        title="How busy the GPUs are that a claim holds: what is allocated and idle stands at the bottom",
        promql=(
            "sort_desc("
            f'sum by (namespace, resourceclaim) (rate(dra_claim_gpu_busy_seconds_total{{engine="gpu"}}'
            f"[{_RATE_SECONDS}s]))"
            f" / sum by (namespace, resourceclaim) (rate(dra_claim_gpu_allocated_seconds_total[{_RATE_SECONDS}s])))"
        ),
        labels=("namespace", "resourceclaim"),
        unit="%",
        scale=100.0,
    ),
    Query(
        title="Power that nobody holds a claim for: idle GPUs, by device",
        promql=f"sum by (gpu) (rate(gpu_unattributed_energy_joules_total[{_RATE_SECONDS}s])) > 0",
        labels=("gpu",),
        unit="W",
    ),
)


def free_port(preferred: int) -> int:
    """The preferred port of 127.0.0.1, or the next one that is free."""
    for port in range(preferred, preferred + 50):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise DemoError(f"ports {preferred} to {preferred + 49} of 127.0.0.1 are all taken: stop what listens there")


def prometheus_config(agent_port: int) -> str:
    """The whole configuration of the demo's Prometheus."""
    return f"""\
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 5s}}
scrape_configs:
- job_name: claimscope
  static_configs:
  - targets: ['127.0.0.1:{agent_port}']
"""


def rows_of(answer: object, query: Query) -> list[str]:
    """An answer of Prometheus' query API as lines to read; empty where it holds no series yet."""
    found: list[str] = []
    data = answer.get("data") if isinstance(answer, Mapping) else None
    result = data.get("result") if isinstance(data, Mapping) else None
    for series in result if isinstance(result, list) else []:
        name = "/".join(series["metric"].get(label, "") for label in query.labels)
        found.append(f"{name:44} {float(series['value'][1]) * query.scale:8.1f} {query.unit}")
    return found


def totals_of(exposition: str) -> list[str]:
    """Energy of each claim from an exposition alone, as lines to read; for machines without Prometheus."""
    joules: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == "dra_claim_gpu_energy_joules_total":
                joules[f"{sample.labels['namespace']}/{sample.labels['resourceclaim']}"] += sample.value
    return [f"{name:44} {value:8.0f} J" for name, value in sorted(joules.items())]


def _write(directory: str, name: str, text: str) -> Path:
    path = Path(directory, name)
    path.write_text(text, encoding="utf-8")
    return path


@contextlib.asynccontextmanager
async def _child(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child in a session of its own, so that Ctrl-C reaches it through us and in order; stopped at the end."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _get(web: aiohttp.ClientSession, url: str, **parameters: str) -> aiohttp.ClientResponse | None:
    """The answer, read to its end; None while nobody listens."""
    try:
        async with web.get(url, params=parameters) as response:
            await response.read()
            return response
    except (aiohttp.ClientError, TimeoutError):
        return None


async def _ready(web: aiohttp.ClientSession, url: str, process: asyncio.subprocess.Process, name: str) -> None:
    deadline = asyncio.get_running_loop().time() + _READY_SECONDS
    while process.returncode is None:
        response = await _get(web, url)
        if response is not None and response.status == 200:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise DemoError(f"{name} does not answer 200 at {url} after {_READY_SECONDS:g} s")
        await asyncio.sleep(0.1)
    raise DemoError(f"{name} ended with status {process.returncode} before it was ready: it says why above")


async def _ask(web: aiohttp.ClientSession, prometheus: str, query: Query) -> list[str]:
    response = await _get(web, f"{prometheus}/api/v1/query", query=query.promql)
    return [] if response is None or response.status != 200 else rows_of(await response.json(), query)


async def _show_queries(web: aiohttp.ClientSession, prometheus: str, say: Say) -> None:
    # A full range of scrapes first: a rate over less would be too low.
    await asyncio.sleep(_RATE_SECONDS + 3)
    for query in QUERIES:
        say(f"\n{query.title}\n  {query.promql}")
        rows = await _ask(web, prometheus, query)
        for row in rows[:_SHOWN_ROWS] or ["(no series)"]:
            say(f"    {row}")
        if len(rows) > _SHOWN_ROWS:
            say(f"    and {len(rows) - _SHOWN_ROWS} more")


async def _show_totals(web: aiohttp.ClientSession, agent: str, say: Say) -> None:
    await asyncio.sleep(5)
    response = await _get(web, f"{agent}/metrics")
    if response is None or response.status != 200:
        say(f"{agent}/metrics does not answer")
        return
    say("\nEnergy of each claim so far, dra_claim_gpu_energy_joules_total:")
    for row in totals_of(await response.text()):
        say(f"    {row}")
    say("\nWorth trying in a Prometheus that scrapes it:")
    for query in QUERIES:
        say(f"  {query.promql}")


async def run(*, profile: str, scenario: str | None, seconds: float | None, say: Say) -> None:
    """Runs until cancelled, until `seconds` have passed, or until a part of it ends by itself."""
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(say, "\nstopped, nothing is left behind")
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="claimscope-demo-"))
        web = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)))
        port = free_port(AGENT_PORT)
        if port != AGENT_PORT:
            say(f"port {AGENT_PORT} is taken: the agent listens on {port}")
        agent = await stack.enter_async_context(
            _child(
                sys.executable, "-m", "claimscope", "agent",
                "--simulate", profile,
                *([] if scenario is None else ["--scenario", scenario]),
                "--web-listen-address", f"127.0.0.1:{port}",
                "--node-name", "demo-node",
                "--state-file", f"{directory}/agent.json",
                "--control-socket", f"{directory}/agent.sock",
                "--log-level", "warning",
            )
        )
        address = f"http://127.0.0.1:{port}"
        await _ready(web, f"{address}/readyz", agent, "the agent")
        say(f"agent       {address}/metrics  (simulated node {profile}; {address}/ says more)")

        server: asyncio.subprocess.Process | None = None
        program = shutil.which("prometheus")
        if program is None:
            say("prometheus  left out, there is none on PATH: `make tools` or `apt-get install prometheus` brings it")
            show = _show_totals(web, address, say)
        else:
            prometheus_port = free_port(PROMETHEUS_PORT)
            if prometheus_port != PROMETHEUS_PORT:
                say(f"port {PROMETHEUS_PORT} is taken: Prometheus listens on {prometheus_port}")
            file = _write(directory, "prometheus.yml", prometheus_config(port))
            server = await stack.enter_async_context(
                _child(
                    program, f"--config.file={file}", f"--storage.tsdb.path={directory}/data",
                    f"--web.listen-address=127.0.0.1:{prometheus_port}", "--log.level=error",
                )
            )
            query_address = f"http://127.0.0.1:{prometheus_port}"
            await _ready(web, f"{query_address}/-/ready", server, "Prometheus")
            say(f"prometheus  {query_address}/graph")
            show = _show_queries(web, query_address, say)

        until = "" if seconds is None else f", or wait {seconds:g} s"
        say(f"Ctrl-C stops everything{until}.")
        await _until_end(agent, server, show, seconds)


async def _until_end(
    agent: asyncio.subprocess.Process,
    server: asyncio.subprocess.Process | None,
    show: Coroutine[object, object, None],
    seconds: float | None,
) -> None:
    """Shows, then waits; raises DemoError as soon as a child ends by itself."""
    children: dict[asyncio.Task[int], str] = {asyncio.create_task(agent.wait()): "the agent"}
    if server is not None:
        children[asyncio.create_task(server.wait())] = "Prometheus"
    showing = asyncio.create_task(show)
    pending: set[asyncio.Task[int] | asyncio.Task[None]] = {*children, showing}
    try:
        async with asyncio.timeout(seconds):
            while True:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task, name in children.items():
                    if task in done:
                        raise DemoError(f"{name} ended by itself with status {task.result()}: it says why above")
                if showing in done:
                    showing.result()
    except TimeoutError:
        return
    finally:
        for each in (*children, showing):
            each.cancel()
        await asyncio.gather(*children, showing, return_exceptions=True)
