"""What does claimscope look like at work? The real agents and controller in a simulated cluster, and a real Prometheus.

Everything runs on the loopback interface, unless `listen_host` says otherwise, and in one temporary directory, and is
gone afterwards: children die with the demo however it ends, and what a killed demo could not clear away the next one
does. Prometheus is left out where there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec

from claimscope.clock import Clock, SystemClock
from claimscope.kube.api import ApiClient, ApiError, OpenAccess, decode
from claimscope.kube.objects import Node
from claimscope.sim import script
from claimscope.sim.cluster import SimulatedCluster
from claimscope.sim.demo_files import POLICY, ROUTES, Agent, prometheus_config, quick_thresholds, rules
from claimscope.sim.profiles import profile_named
from claimscope.sim.questions import QUERIES, RATE_SECONDS, Query, reasons_of, rows_of, totals_of
from claimscope.sim.sandbox import Parts, work_directory
from claimscope.sim.scenario import Scenario, ScenarioError, decode_scenario, load_scenario
from claimscope.sim.scheduler import SchedulerCannotDecideError
from claimscope.sim.told_alerts import Firing, about, news
from claimscope.taints import command, conditions, maintenance_command
from claimscope.taints.apply import api_time
from claimscope.taints.notebook import Notebook

AGENT_PORT = 19400
CONTROLLER_PORT = 19401
NAMESPACE = "claimscope"
LOOPBACK = "127.0.0.1"
PROMETHEUS_PORT = 19490
ALERTMANAGER_PORT = 19493
_READY_SECONDS = 60.0  # three agents and a controller start at once, perhaps on one core
_FENCED_SECONDS = 60.0
_BREAKS_AT = 15  # seconds after the start
_DEADLINE_SECONDS = 10.0  # of the maintenance that the script asks for
_TELL_SECONDS = 2.0
_THRESHOLDS_FILE = "thresholds.yaml"
_POLICY_FILE = "policy.yaml"

Say = Callable[[str], None]


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


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


def free_port(preferred: int, avoid: Collection[int] = (), host: str = LOOPBACK) -> int:
    """The preferred port of a local address, or the next one that is free and not to be avoided."""
    for port in range(preferred, preferred + 50):
        if port in avoid:
            continue
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((host, port))
            except OSError:
                continue
            return port
    raise DemoError(f"ports {preferred} to {preferred + 49} of {host} are all taken: stop what listens there")


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
    await asyncio.sleep(RATE_SECONDS + 3)
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
    agent: Agent, host: str, cluster: SimulatedCluster, directory: Path, scenario: Path
) -> tuple[str, ...]:
    return (
        sys.executable, "-m", "claimscope", "agent",
        "--simulate", agent.profile,
        "--scenario", str(scenario),
        "--simulation-start-monotonic-ns", str(cluster.start_monotonic_ns),
        "--api-server-url", cluster.url,
        "--lease-namespace", NAMESPACE,
        "--web-listen-address", f"{host}:{agent.port}",
        "--node-name", agent.node,
        "--state-file", f"{directory}/{agent.node}.json",
        "--control-socket", f"{directory}/{agent.node}.sock",
        "--health-thresholds", f"{directory}/{_THRESHOLDS_FILE}",
        "--compat-dcgm", "on",
        "--log-level", "error",
    )


def _controller_command(port: int, host: str, cluster: SimulatedCluster, directory: Path) -> tuple[str, ...]:
    return (
        sys.executable, "-m", "claimscope", "controller",
        "--api-server-url", cluster.url,
        "--namespace", NAMESPACE,
        "--web-listen-address", f"{host}:{port}",
        "--taint-policy", f"{directory}/{_POLICY_FILE}",
        "--log-level", "error",
    )


async def _cluster(
    stack: contextlib.AsyncExitStack, profile: str, scenarios: Mapping[str, Scenario]
) -> SimulatedCluster:
    try:
        return await stack.enter_async_context(
            SimulatedCluster.open(nodes_of(profile), clock=SystemClock(), scenarios=scenarios)
        )
    except (ValueError, SchedulerCannotDecideError) as error:
        raise DemoError(str(error)) from error


def _ports(profile: str, host: str, say: Say) -> tuple[tuple[Agent, ...], int]:
    """Ports for the agents and the controller."""
    taken = {CONTROLLER_PORT}
    agents: list[Agent] = []
    for node, of in nodes_of(profile):
        port = free_port(AGENT_PORT, taken, host)
        if not agents and port != AGENT_PORT:
            say(f"port {AGENT_PORT} is taken: the agent listens on {port}")
        agents.append(Agent(node=node, profile=of, port=port))
        taken.add(port)
    return tuple(agents), free_port(CONTROLLER_PORT, taken - {CONTROLLER_PORT}, host)


def _scenarios(profile: str, chosen: str | None, acts: Sequence[script.Act]) -> dict[str, Scenario]:
    """What each node plays: the script, or what somebody wrote for the first node."""
    first, *others = (node for node, _ in nodes_of(profile))
    if chosen is not None:
        return {first: load_scenario(Path(chosen)), **{node: Scenario() for node in others}}
    of_script = {node: Scenario() for node in (first, *others)} | script.scenarios(acts)
    breaks = decode_scenario(scenario_of(profile)).faults
    return of_script | {first: msgspec.structs.replace(of_script[first], faults=of_script[first].faults + breaks)}


async def run(
    *,
    profile: str,
    scenario: str | None,
    seconds: float | None,
    say: Say,
    program: str = "claimscope",
    acts: Sequence[script.Act] = script.SCRIPT,
    haste: float = 1.0,
    listen_host: str = LOOPBACK,
) -> None:
    """Runs until cancelled, until `seconds` have passed, or until a part of it ends by itself.

    Without a `scenario` the acts are played. Alerts are held for that much shorter than in the demo's rules: `haste`.
    Agents and controller listen on `listen_host`, the loopback interface or 0.0.0.0; all else on the former.
    """
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(say, "\nstopped, nothing is left behind")
        directory = stack.enter_context(work_directory(Path(tempfile.gettempdir())))
        web = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)))
        try:
            scenarios = _scenarios(profile, scenario, acts)
        except ScenarioError as error:
            raise DemoError(str(error)) from error
        cluster = await _cluster(stack, profile, scenarios)
        agents, controller_port = _ports(profile, listen_host, say)
        controller = f"http://127.0.0.1:{controller_port}"
        _write(directory, _THRESHOLDS_FILE, quick_thresholds())
        _write(directory, _POLICY_FILE, POLICY)
        commands = {
            script.agent_of(agent.node): _agent_command(
                agent, listen_host, cluster, directory,
                _write(directory, f"{agent.node}.yaml", msgspec.yaml.encode(scenarios[agent.node]).decode()),
            )
            for agent in agents
        }
        commands[script.CONTROLLER] = _controller_command(controller_port, listen_host, cluster, directory)
        parts = Parts(directory)
        stack.push_async_callback(parts.stop_all)
        started = {name: await parts.start(name, command) for name, command in commands.items()}
        await _all_ready(web, started, [*(agent.address for agent in agents), controller])
        say(f"api server  {cluster.url}  (simulated; `kubectl --server {cluster.url} get resourceclaims -A` works)")
        for agent in agents:
            say(f"agent       {agent.address}/metrics  (simulated node {agent.profile}, {agent.node})")
        say(f"controller  {controller}/metrics  ({controller}/ says more)")
        alertmanager = await _alertmanager(web, directory, parts, say)
        config = prometheus_config(agents, controller_port, alertmanager)
        prometheus = await _prometheus(web, directory, parts, config, haste, say)
        say(f"taints      {program} taints list --api-server-url {cluster.url}")
        until = "" if seconds is None else f", or wait {seconds:g} s"
        say(f"Ctrl-C stops everything{until}.")
        if scenario is None:
            say(f"\nWhat goes wrong, and about when its alerts fire; they are held {script.FACTOR} times shorter than "
                "in alerts/rules, and stay for 50 s (elsewhere for 10 minutes) once it is over:")
            say("\n".join(script.timetable(acts)))
        show = (
            _show_totals(web, agents[0].address, controller, say) if prometheus is None
            else _show_queries(web, prometheus, say)
        )
        shown = [_show_fence_after(show, cluster.url, program, say) if scenario is None else show]
        if prometheus is not None:
            shown.append(_tell_alerts(web, prometheus, cluster.start_monotonic_ns, say))
        if scenario is None:
            ports = {script.agent_of(agent.node): agent.port for agent in agents} | {script.CONTROLLER: controller_port}
            stage = Stage(
                parts=parts, commands=commands, ports=ports, url=cluster.url, began_ns=cluster.start_monotonic_ns,
                clock=SystemClock(),
            )
            shown.append(stage.play(acts))
        await _until_end(parts, shown, seconds)


async def _alertmanager(web: aiohttp.ClientSession, directory: Path, parts: Parts, say: Say) -> str | None:
    """Starts Alertmanager where there is one; its address."""
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if program is None or shutil.which("prometheus") is None:
        say("alertmanager  left out, there is none on PATH: `apt-get install prometheus-alertmanager` brings it")
        return None
    address = f"127.0.0.1:{free_port(ALERTMANAGER_PORT)}"
    file = _write(directory, "alertmanager.yml", ROUTES.read_text(encoding="utf-8"))
    words = (
        program, f"--config.file={file}", f"--storage.path={directory}/alertmanager", "--cluster.listen-address=",
        f"--web.listen-address={address}", "--log.level=error",
    )
    server = await parts.start("Alertmanager", words)
    await _ready(web, f"http://{address}/-/ready", server, "Alertmanager")
    say(f"alertmanager  http://{address}/#/alerts")
    return address


async def _prometheus(
    web: aiohttp.ClientSession, directory: Path, parts: Parts, config: str, haste: float, say: Say
) -> str | None:
    """Starts Prometheus where there is one; its address."""
    program = shutil.which("prometheus")
    if program is None:
        say("prometheus  left out, there is none on PATH: `make tools` or `apt-get install prometheus` brings it")
        return None
    port = free_port(PROMETHEUS_PORT)
    if port != PROMETHEUS_PORT:
        say(f"port {PROMETHEUS_PORT} is taken: Prometheus listens on {port}")
    file = _write(directory, "prometheus.yml", config)
    _write(directory, "rules.yml", rules(haste))
    words = (
        program, f"--config.file={file}", f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    )
    server = await parts.start("Prometheus", words)
    address = f"http://127.0.0.1:{port}"
    await _ready(web, f"{address}/-/ready", server, "Prometheus")
    say(f"prometheus  {address}/graph  ({address}/alerts shows the alerts)")
    return address


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Does what no scenario of a GPU can: parts of the demo go away, somebody asks for maintenance."""

    parts: Parts
    commands: Mapping[str, Sequence[str]]  # of each part
    ports: Mapping[str, int]
    url: str  # of the API server
    began_ns: int
    clock: Clock

    async def play(self, acts: Sequence[script.Act]) -> None:
        """Plays all acts to their ends."""
        async with asyncio.TaskGroup() as playing:
            for act in acts:
                if act.stops or act.maintenance:
                    playing.create_task(self._play(act))

    async def _play(self, act: script.Act) -> None:
        await asyncio.sleep(act.at - (self.clock.monotonic_ns() - self.began_ns) / 1e9)
        if act.maintenance:
            await self._maintain(act.node, api_time(self.clock.wall_ns() / 1e9 + _DEADLINE_SECONDS))
            await asyncio.sleep(act.lasts or 0)
            await self._maintain(act.node, None)
            return
        await self.parts.stop(act.stops)
        with socket.create_server(("127.0.0.1", self.ports[act.stops])):  # else another process may take the port
            await asyncio.sleep(act.lasts or 0)
        await self.parts.start(act.stops, self.commands[act.stops])

    async def _maintain(self, node: str, deadline: str | None) -> None:
        api = ApiClient(OpenAccess(self.url))
        try:
            if deadline is None:
                now = self.clock.wall_ns() / 1e9
                await maintenance_command.finish(api, node, author="demo", verified=False, now_wall=now)
            else:
                await maintenance_command.start(api, node, reason="new firmware", author="demo", deadline=deadline)
        finally:
            await api.close()


async def _tell_alerts(web: aiohttp.ClientSession, prometheus: str, began_ns: int, say: Say) -> None:
    """Says which alerts come to fire, and which no longer do."""
    firing: set[Firing] = set()
    gpus: dict[str, str] = {}  # their numbers by UUID; one that is lost keeps its number
    while True:
        await asyncio.sleep(_TELL_SECONDS)
        response = await _get(web, f"{prometheus}/api/v1/alerts")
        if response is None or response.status != 200:
            continue
        found = (await response.json())["data"]["alerts"]
        labels = [each["labels"] for each in found if each["state"] == "firing"]
        if any(each.get("uuid", "") not in gpus for each in labels):
            gpus |= await _numbers(web, prometheus)
        now = {(each["alertname"], about(each, gpus)) for each in labels}
        for line in news((SystemClock().monotonic_ns() - began_ns) / 1e9, firing, now):
            say(line)
        firing = now


async def _numbers(web: aiohttp.ClientSession, prometheus: str) -> dict[str, str]:
    """The numbers of the GPUs that are there."""
    response = await _get(web, f"{prometheus}/api/v1/query", query="max by (uuid, gpu) (gpu_info)")
    if response is None or response.status != 200:
        return {}
    return {each["metric"]["uuid"]: each["metric"]["gpu"] for each in (await response.json())["data"]["result"]}


async def _until_end(
    parts: Parts, shown: Sequence[Coroutine[object, object, None]], seconds: float | None
) -> None:
    """Shows everything, then waits; raises DemoError as soon as a part ends by itself."""
    showing = [asyncio.create_task(each) for each in shown]
    pending: set[asyncio.Future[tuple[str, int]] | asyncio.Task[None]] = {parts.ended, *showing}
    try:
        async with asyncio.timeout(seconds):
            while True:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                if parts.ended in done:
                    name, status = parts.ended.result()
                    raise DemoError(f"{name} ended by itself with status {status}: it says why above")
                for task in showing:
                    if task in done:
                        task.result()
    except TimeoutError:
        return
    finally:
        for task in showing:
            task.cancel()
        await asyncio.gather(*showing, return_exceptions=True)
