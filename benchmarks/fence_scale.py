"""What do 5,000 nodes with 1 % faulty cost the API server and the controller, and how soon is each fenced?

Eight GPUs a node. One process plays all agents with the agents' own Lease writer: heartbeats each minute, spread as in
a fleet that has run for long. The controller fences in mode enforce with the default budgets. First 1 % of the nodes
report a GPU each within 20 seconds, for rules of which none comes up on enough nodes to be taken for one cause; then
1 % more report one rule at once, which is: some may be fenced, the others are announced and held. Then the first get
well. Times are from the agent's finding to the watch event of the DeviceTaintRule, by the one clock of this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
from benchmarks.controller_scale import Memory, cpu_seconds
from benchmarks.fence_latency import answer, percentile, watch
from benchmarks.memory import free_port

from claimscope.clock import SystemClock
from claimscope.health.report import FINDINGS_ANNOTATION, LeaseFinding, LeaseFindings
from claimscope.health.rules import RULE_BY_KEY
from claimscope.kube.api import Access, ApiClient
from claimscope.kube.lease import HeartbeatLease
from claimscope.sim.load import device_uuid, node_name
from claimscope.taints.policy import VERDICT_RULES, Systemic

NODES = int(os.environ.get("CLAIMSCOPE_BENCH_FENCE_NODES", "5000"))
CLAIMS = 2 * NODES
FAULTY = max(1, NODES // 100)
FLOOD_RULE = "ecc_uncorrected_sram"
BEAT_SECONDS = 60.0
START_SECONDS = NODES / 250  # agents begin one after the other
STEADY_SECONDS = 20.0
FAULTS_SECONDS = 20.0
GIVE_UP_SECONDS = 60.0
READY_SECONDS = 120.0
WHO = {"agents": "agents", "system:anonymous": "controller"}  # bearer token -> who it is


@dataclass(frozen=True, slots=True)
class Agents:
    """Shows the API server who asks."""

    url: str

    async def access(self, *, renew: bool = False) -> Access:
        """Where it is, and as whom."""
        del renew
        return Access(base_url=self.url, authorization="Bearer agents")


def spread(seed: int) -> Callable[[], float]:
    """Jitter whose first answer puts the second beat anywhere in a minute."""
    chance = random.Random(seed)
    first = iter([(chance.random() - 0.9) / 0.2])
    return lambda: next(first, None) or chance.random()


class Fleet:
    """All agents."""

    def __init__(self, api: ApiClient) -> None:
        self.leases = [
            HeartbeatLease(
                api, "claimscope", f"claimscope-agent-{node_name(number)}", node_name(number),
                {"app.kubernetes.io/name": "claimscope"}, SystemClock(), beat_seconds=BEAT_SECONDS,
                jitter=spread(number),
            )
            for number in range(NODES)
        ]  # fmt: skip
        for number in range(NODES):
            self.says(number)

    def says(self, number: int, *rules: str) -> None:
        """What stands against GPU 0 of a node from now on."""
        findings = tuple(
            LeaseFinding(
                uuid=device_uuid(node_name(number), 0), rule=rule, severity=RULE_BY_KEY[rule].severity.value,
                state="firing", since=int(time.time()), serial="1", parent=None, evidence={"xid": "95"},
                clears="A reset.", systemic=False,
            )
            for rule in rules
        )  # fmt: skip
        told = LeaseFindings(boot_id="boot-1", findings=findings, omitted=0)
        self.leases[number].set_annotations({
            "claimscope.io/node": node_name(number), FINDINGS_ANNOTATION: msgspec.json.encode(told).decode(),
        })

    async def live(self) -> None:
        """Beats until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for number, lease in enumerate(self.leases):
                tasks.create_task(lease.run())
                if number % 10 == 9:
                    await asyncio.sleep(START_SECONDS * 10 / NODES)


@dataclass(slots=True)
class Fences:
    """The rules that stand, by node number, and when (monotonic) each came and went."""

    effects: dict[int, str] = field(default_factory=dict)
    came: dict[int, float] = field(default_factory=dict)
    went: dict[int, float] = field(default_factory=dict)

    def take(self, rule: dict[str, Any], present: bool) -> None:
        """An event of the watch."""
        number = int(rule["spec"]["deviceSelector"]["pool"].rpartition("-")[2])
        if present:
            self.came.setdefault(number, time.monotonic())
            self.effects[number] = rule["spec"]["taint"]["effect"]
        else:
            self.went.setdefault(number, time.monotonic())


class Server:
    """The API server's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._input, self._output = process.stdin, process.stdout
        self.url = self._output.readline().strip()

    def requests(self) -> Counter[tuple[str, str]]:
        """Requests so far, by who asked and verb."""
        self._input.write("requests\n")
        self._input.flush()
        found: Counter[tuple[str, str]] = Counter()
        for key, count in json.loads(self._output.readline()).items():
            token, verb, _ = key.split(" ")
            found[WHO.get(token, "bench"), verb] += count
        return found


@dataclass(slots=True, kw_only=True)
class Phase:
    """What a span of time cost."""

    name: str
    server: Server
    controller: int
    began: float = 0.0
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    cpu: float = 0.0

    def begin(self) -> Phase:
        """From now on."""
        self.requests = self.server.requests()
        self.cpu, self.began = cpu_seconds(self.controller), time.monotonic()
        return self

    def end(self) -> Iterator[tuple[str, float]]:
        """Until now: figures per second."""
        seconds = time.monotonic() - self.began
        requests = self.server.requests() - self.requests
        for whose in ("agents", "controller"):
            total = sum(count for (who, _), count in requests.items() if who == whose)
            yield f"{self.name}_{whose}_calls_per_second", total / seconds
        for (who, verb), count in sorted(requests.items()):
            if who == "controller":
                yield f"{self.name}_controller_{verb}_per_second", count / seconds
        yield f"{self.name}_controller_cpu_ratio", (cpu_seconds(self.controller) - self.cpu) / seconds


async def until(done: Callable[[], bool], what: str) -> None:
    """Waits for it."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit(f"fence_scale: {what} takes more than {GIVE_UP_SECONDS:g} s")
        await asyncio.sleep(0.05)


def late(moments: dict[int, float], since: dict[int, float]) -> list[float]:
    """How long after."""
    return [moments[number] - began for number, began in since.items()]


async def play(fleet: Fleet, fences: Fences, server: Server, controller: int) -> dict[str, float]:
    """A quiet time, faults, a flood of one fault, and recovery."""
    found: dict[str, float] = {}
    phase = Phase(name="steady", server=server, controller=controller).begin()
    await asyncio.sleep(STEADY_SECONDS)
    found |= phase.end()

    chosen = random.Random(0).sample(range(NODES), 2 * FAULTY)
    faulty, flooded = chosen[:FAULTY], chosen[FAULTY:]
    rules = sorted(VERDICT_RULES)
    phase = Phase(name="faults", server=server, controller=controller).begin()
    since: dict[int, float] = {}
    for place, number in enumerate(faulty):
        since[number] = time.monotonic()
        fleet.says(number, rules[place % len(rules)])
        await asyncio.sleep(FAULTS_SECONDS / FAULTY)
    await until(lambda: since.keys() <= fences.came.keys(), "fencing")
    found |= phase.end()
    found["fenced"] = float(sum(fences.effects[number] == "NoSchedule" for number in faulty))
    found |= times("finding_to_no_schedule", late(fences.came, since))

    since = {}
    for number in flooded:
        since[number] = time.monotonic()
        fleet.says(number, FLOOD_RULE)
    await until(lambda: since.keys() <= fences.came.keys(), "announcing")
    found["flood_fenced"] = float(sum(fences.effects[number] == "NoSchedule" for number in flooded))
    found["flood_held"] = float(sum(fences.effects[number] == "None" for number in flooded))
    found |= times("flood_to_rule", late(fences.came, since))

    since = {}
    for number in faulty:
        since[number] = time.monotonic()
        fleet.says(number)
    await until(lambda: since.keys() <= fences.went.keys(), "lifting")
    found |= times("recovery_to_lift", late(fences.went, since))
    return found


def times(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """Half of them, and nearly all."""
    return {f"{name}_p{percent}_s": percentile(list(seconds), percent) for percent in (50, 99)}


async def ready(web: aiohttp.ClientSession, address: str) -> None:
    """Waits until the controller has read everything."""
    deadline = time.monotonic() + READY_SECONDS
    while await answer(web, f"http://{address}/readyz") is None:
        if time.monotonic() > deadline:
            raise SystemExit(f"fence_scale: the controller is not ready after {READY_SECONDS:g} s")
        await asyncio.sleep(0.2)


async def run(server: Server, address: str, controller: int) -> dict[str, float]:
    """Brings the agents up and plays."""
    fences = Fences()
    rules = f"{server.url}/apis/resource.k8s.io/v1/devicetaintrules"
    api = ApiClient(Agents(server.url))
    headers = {"Authorization": "Bearer bench"}
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=10)) as web:
        fleet = Fleet(api)
        tasks = [asyncio.create_task(fleet.live()), asyncio.create_task(watch(web, rules, fences.take))]
        try:
            await ready(web, address)
            await until(lambda: all(lease.renewed_wall is not None for lease in fleet.leases), "the agents' start")
            await asyncio.sleep(5.0)  # what their first Leases bring is over
            found = await play(fleet, fences, server, controller)
            for task in tasks:
                if task.done():
                    task.result()
            found["failed_heartbeats"] = float(sum(sum(lease.errors.values()) for lease in fleet.leases))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await api.close()
    return found


def main() -> dict[str, float]:
    """Starts the processes and measures."""
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.cluster_server", str(CLAIMS), str(NODES)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
        )
        stack.callback(process.terminate)
        server = Server(process)
        address = f"127.0.0.1:{free_port()}"
        controller = stack.enter_context(
            subprocess.Popen(
                [
                    sys.executable, "-m", "claimscope", "controller", "--api-server-url", server.url,
                    "--web-listen-address", address, "--identity", "bench", "--log-level", "error",
                    "--taint-mode", "enforce",
                ]
            )
        )
        stack.callback(controller.terminate)
        memory = Memory(controller.pid)
        memory.start()
        found = asyncio.run(run(server, address, controller.pid))
        memory.ended.set()
        memory.join()
    return {"nodes": float(NODES), "faulty_nodes": float(FAULTY), **found, "controller_memory_mib": memory.largest_mib}


BOUNDS = {
    "steady_controller_calls_per_second": "<=5",
    "faults_controller_calls_per_second": "<=50",
    "fenced": f">={FAULTY}",
    "finding_to_no_schedule_p99_s": "<=8",
    "flood_fenced": f"<={Systemic().nodes - 1}",
    "flood_to_rule_p99_s": "<=8",
    "recovery_to_lift_p99_s": "<=8",
    "failed_heartbeats": "<=0",
    "controller_memory_mib": "<=1024",
}

if __name__ == "__main__":
    for name, value in main().items():
        unit = "s" if name.endswith("_s") else "MiB" if name.endswith("_mib") else ""
        sys.stdout.write(f"{name} {value:.4g} {unit} {BOUNDS.get(name, '')}".rstrip() + "\n")
