"""What does claimscope look like at work? The real agents and controller in a simulated cluster, and a real Prometheus.

Everything runs on the loopback interface and in one temporary directory, and is gone afterwards: children die with
the demo however it ends, and what a killed demo could not clear away the next one does. Prometheus is left out where
there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from claimscope.clock import SystemClock
from claimscope.kube.api import ApiClient, ApiError, OpenAccess, decode
from claimscope.kube.objects import Node
from claimscope.sim.cluster import SimulatedCluster
from claimscope.sim.profiles import profile_named
from claimscope.sim.sandbox import child, work_directory
from claimscope.sim.scenario import load_scenario
from claimscope.sim.scheduler import SchedulerCannotDecideError
from claimscope.taints import command, conditions
from claimscope.taints.notebook import Notebook

AGENT_PORT = 19400
CONTROLLER_PORT = 19401
NAMESPACE = "claimscope"
PROMETHEUS_PORT = 19490
_READY_SECONDS = 60.0  # three agents and a controller start at once, perhaps on one core
_FENCED_SECONDS = 60.0
_RATE_SECONDS = 10  # the queries' range: as much as a demo has seen after a few moments

_BREAKS_AT = 15  # seconds after the start

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
    rows: int = 6  # shown at most


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
        promql=f"sum by (node, gpu) (rate(gpu_unattributed_energy_joules_total[{_RATE_SECONDS}s])) > 0",
        labels=("node", "gpu"),
        unit="W",
    ),
    Query(
        title="Claims that wait, by the reason for it",
        promql="sort_desc(count by (reason) (dra_claim_pending_reason))",
        labels=("reason",),
        unit="claims",
        rows=30,
    ),
    Query(
        title="What is left: devices by class and state",
        promql="sort_desc(sum by (deviceclass, state) (dra_pool_devices) > 0)",
        labels=("deviceclass", "state"),
        unit="devices",
        rows=12,
    ),
    Query(
        title="Half of the claims were allocated in less than",
        promql=(
            "histogram_quantile(0.5, sum by (deviceclass, le) "
            '(dra_allocation_duration_seconds_bucket{phase="scheduling"})) > 0'
        ),
        labels=("deviceclass",),
        unit="s",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One simulated node with its agent."""

    node: str
    profile: str
    port: int

    @property
    def address(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"


def nodes_of(profile: str) -> tuple[tuple[str, str], ...]:
    """The demo's nodes: one of the chosen profile, one more with whole GPUs, one with MIG devices."""
    return (("demo-node-1", profile), ("demo-node-2", "h100x8"), ("demo-node-3", "a100x8-mig"))


def scenario_of(profile: str) -> str:
    """What happens on the first node where nobody says otherwise: memory of its last GPU fails, nothing contains it."""
    gpu = profile_named(profile).gpu_count - 1
    return f"""\
faults:
- {{kind: xid, at: {_BREAKS_AT}, gpu: {gpu}, code: 95}}
- {{kind: recovery_action, at: {_BREAKS_AT}, gpu: {gpu}, action: 1}}  # the driver asks for a reset
"""


def free_port(preferred: int, avoid: Collection[int] = ()) -> int:
    """The preferred port of 127.0.0.1, or the next one that is free and not to be avoided."""
    for port in range(preferred, preferred + 50):
        if port in avoid:
            continue
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise DemoError(f"ports {preferred} to {preferred + 49} of 127.0.0.1 are all taken: stop what listens there")


def prometheus_config(agents: Sequence[Agent], controller_port: int) -> str:
    """The whole configuration of the demo's Prometheus."""
    targets = "\n".join(
        f"  - {{targets: ['127.0.0.1:{agent.port}'], labels: {{node: {agent.node}}}}}" for agent in agents
    )
    return f"""\
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 5s}}
scrape_configs:
- job_name: claimscope-agent
  static_configs:
{targets}
- job_name: claimscope-controller
  static_configs:
  - targets: ['127.0.0.1:{controller_port}']
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


def reasons_of(exposition: str) -> list[str]:
    """How many claims wait for which reason, from the controller's exposition alone."""
    counts = Counter(
        sample.labels["reason"]
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if sample.name == "dra_claim_pending_reason"
    )
    return [f"{reason:44} {count:8} claims" for reason, count in sorted(counts.items())]


def _write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


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


async def _all_ready(
    web: aiohttp.ClientSession, children: Mapping[str, asyncio.subprocess.Process], addresses: Sequence[str]
) -> None:
    failed: tuple[BaseException, ...] = ()
    try:
        async with asyncio.TaskGroup() as waiting:
            for (name, process), address in zip(children.items(), addresses, strict=True):
                waiting.create_task(_ready(web, f"{address}/readyz", process, name))
    except* DemoError as group:
        failed = group.exceptions
    if failed:
        raise failed[0]


async def _ask(web: aiohttp.ClientSession, prometheus: str, query: Query) -> list[str]:
    response = await _get(web, f"{prometheus}/api/v1/query", query=query.promql)
    return [] if response is None or response.status != 200 else rows_of(await response.json(), query)


async def _show_queries(web: aiohttp.ClientSession, prometheus: str, say: Say) -> None:
    # A full range of scrapes first: a rate over less would be too low.
    await asyncio.sleep(_RATE_SECONDS + 3)
    for query in QUERIES:
        say(f"\n{query.title}\n  {query.promql}")
        rows = await _ask(web, prometheus, query)
        for row in rows[: query.rows] or ["(no series)"]:
            say(f"    {row}")
        if len(rows) > query.rows:
            say(f"    and {len(rows) - query.rows} more")


async def _show_totals(web: aiohttp.ClientSession, agent: str, controller: str, say: Say) -> None:
    await asyncio.sleep(5)
    for title, address, lines_of in (
        ("Energy of each claim so far, dra_claim_gpu_energy_joules_total:", agent, totals_of),
        ("Claims that wait, dra_claim_pending_reason:", controller, reasons_of),
    ):
        response = await _get(web, f"{address}/metrics")
        if response is None or response.status != 200:
            say(f"{address}/metrics does not answer")
            continue
        say(f"\n{title}")
        for row in lines_of(await response.text()):
            say(f"    {row}")
    say("\nWorth trying in a Prometheus that scrapes them:")
    for query in QUERIES:
        say(f"  {query.promql}")


async def _show_fence_after(show: Coroutine[object, object, None], url: str, program: str, say: Say) -> None:
    await show
    await show_fence(url, program, say)


async def show_fence(url: str, program: str, say: Say) -> None:
    """The first taint, once it stands, and how one asks about it."""
    api = ApiClient(OpenAccess(url))
    notebook = Notebook(api, NAMESPACE, "claimscope-controller", apart=True)
    try:
        async with asyncio.timeout(_FENCED_SECONDS):
            while not (rules := (await command.overview(api, notebook)).rules):  # noqa: ASYNC110 - another process
                await asyncio.sleep(1)
        uuid = rules[0].fence.uuid
        say(f"\nA GPU that broke after {_BREAKS_AT} s: announced, and fenced by a controller with --taint-mode=enforce")
        say(f"  {program} explain gpu {uuid} --api-server-url {url}")
        for line in command.story_words(await command.gpu_story(api, notebook, uuid)).splitlines():
            say(f"    {line}")
        path = f"/api/v1/nodes/{rules[0].fence.node}"
        for each in conditions.present_on(decode(await api.get(path), Node, path)).values():
            if each.status == "True":
                say(f"  condition {each.type} of node {rules[0].fence.node}: {each.message}")
    except (ApiError, TimeoutError) as error:
        say(f"\nno GPU is tainted yet: {error or 'nothing was found in time'}")
    finally:
        await api.close()


def _agent_command(
    agent: Agent, cluster: SimulatedCluster, directory: Path, scenario: Path | None
) -> tuple[str, ...]:
    return (
        sys.executable, "-m", "claimscope", "agent",
        "--simulate", agent.profile,
        *([] if scenario is None else ["--scenario", str(scenario)]),
        "--simulation-start-monotonic-ns", str(cluster.start_monotonic_ns),
        "--api-server-url", cluster.url,
        "--lease-namespace", NAMESPACE,
        "--web-listen-address", f"127.0.0.1:{agent.port}",
        "--node-name", agent.node,
        "--state-file", f"{directory}/{agent.node}.json",
        "--control-socket", f"{directory}/{agent.node}.sock",
        "--log-level", "warning",
    )


def _controller_command(port: int, cluster: SimulatedCluster) -> tuple[str, ...]:
    return (
        sys.executable, "-m", "claimscope", "controller",
        "--api-server-url", cluster.url,
        "--namespace", NAMESPACE,
        "--web-listen-address", f"127.0.0.1:{port}",
        "--log-level", "warning",
    )


async def _cluster(stack: contextlib.AsyncExitStack, profile: str, scenario: Path) -> SimulatedCluster:
    try:
        played = load_scenario(scenario)
        return await stack.enter_async_context(
            SimulatedCluster.open(nodes_of(profile), clock=SystemClock(), scenario=played)
        )
    except (ValueError, SchedulerCannotDecideError) as error:
        raise DemoError(str(error)) from error


def _ports(profile: str, say: Say) -> tuple[tuple[Agent, ...], int]:
    """Ports for the agents and the controller."""
    taken = {CONTROLLER_PORT}
    agents: list[Agent] = []
    for node, of in nodes_of(profile):
        port = free_port(AGENT_PORT, taken)
        if not agents and port != AGENT_PORT:
            say(f"port {AGENT_PORT} is taken: the agent listens on {port}")
        agents.append(Agent(node=node, profile=of, port=port))
        taken.add(port)
    return tuple(agents), free_port(CONTROLLER_PORT, taken - {CONTROLLER_PORT})


async def run(
    *, profile: str, scenario: str | None, seconds: float | None, say: Say, program: str = "claimscope"
) -> None:
    """Runs until cancelled, until `seconds` have passed, or until a part of it ends by itself."""
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(say, "\nstopped, nothing is left behind")
        directory = stack.enter_context(work_directory(Path(tempfile.gettempdir())))
        web = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)))
        played = Path(scenario) if scenario is not None else _write(directory, "scenario.yaml", scenario_of(profile))
        cluster = await _cluster(stack, profile, played)
        agents, controller_port = _ports(profile, say)
        controller = f"http://127.0.0.1:{controller_port}"
        children: dict[str, asyncio.subprocess.Process] = {}
        for place, agent in enumerate(agents):
            words = _agent_command(agent, cluster, directory, played if place == 0 else None)
            children[f"the agent of {agent.node}"] = await stack.enter_async_context(
                child(*words, directory=directory)
            )
        children["the controller"] = await stack.enter_async_context(
            child(*_controller_command(controller_port, cluster), directory=directory)
        )
        await _all_ready(web, children, [*(agent.address for agent in agents), controller])
        say(f"api server  {cluster.url}  (simulated; `kubectl --server {cluster.url} get resourceclaims -A` works)")
        for agent in agents:
            say(f"agent       {agent.address}/metrics  (simulated node {agent.profile}, {agent.node})")
        say(f"controller  {controller}/metrics  ({controller}/ says more)")
        show, prometheus = await _prometheus(stack, web, directory, agents, controller_port, say)
        if prometheus is not None:
            children["Prometheus"] = prometheus
        say(f"taints      {program} taints list --api-server-url {cluster.url}")
        until = "" if seconds is None else f", or wait {seconds:g} s"
        say(f"Ctrl-C stops everything{until}.")
        if scenario is None:
            show = _show_fence_after(show, cluster.url, program, say)
        await _until_end(children, show, seconds)


async def _prometheus(
    stack: contextlib.AsyncExitStack,
    web: aiohttp.ClientSession,
    directory: Path,
    agents: Sequence[Agent],
    controller_port: int,
    say: Say,
) -> tuple[Coroutine[object, object, None], asyncio.subprocess.Process | None]:
    """Starts Prometheus where there is one; what is to be shown, and its process."""
    program = shutil.which("prometheus")
    if program is None:
        say("prometheus  left out, there is none on PATH: `make tools` or `apt-get install prometheus` brings it")
        return _show_totals(web, agents[0].address, f"http://127.0.0.1:{controller_port}", say), None
    port = free_port(PROMETHEUS_PORT)
    if port != PROMETHEUS_PORT:
        say(f"port {PROMETHEUS_PORT} is taken: Prometheus listens on {port}")
    file = _write(directory, "prometheus.yml", prometheus_config(agents, controller_port))
    server = await stack.enter_async_context(
        child(
            program, f"--config.file={file}", f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=error", directory=directory,
        )
    )
    address = f"http://127.0.0.1:{port}"
    await _ready(web, f"{address}/-/ready", server, "Prometheus")
    say(f"prometheus  {address}/graph")
    return _show_queries(web, address, say), server


async def _until_end(
    processes: Mapping[str, asyncio.subprocess.Process],
    show: Coroutine[object, object, None],
    seconds: float | None,
) -> None:
    """Shows, then waits; raises DemoError as soon as a child ends by itself."""
    children = {asyncio.create_task(process.wait()): name for name, process in processes.items()}
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
