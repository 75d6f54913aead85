"""How soon is an XID a finding, a taint that only tells, and one that keeps work away?

Real agents of a simulated cluster and a real controller. From the moment at which the driver reports the XID, by the
one clock of this machine, to the first look that shows the finding at the agent, and to the watch event that brings the
DeviceTaintRule. Half of the agents read a kernel log as well, and so wait a second for what it may add to an XID. The
rule of XID 95 is in mode announce (effect None), that of XID 79 in mode enforce (NoSchedule). Every GPU fails in a
minute, which the default budgets are there to stop, so the policy raises them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from benchmarks.memory import free_port

from claimscope.clock import SystemClock
from claimscope.sim.cluster import SimulatedCluster
from claimscope.sim.fleet import node_world

NODES = 4
GPUS = 8
TELLS, FENCES = 95, 79
RULE_OF = {TELLS: "xid_fatal", FENCES: "xid_lost"}
FIRST_SECONDS = 25.0  # everything has started by then
BETWEEN_SECONDS = 4.0  # two XIDs of a node; faster than that for long, and what is measured is the Lease's pace
LAST_SECONDS = 20.0  # what is not seen so long after the last XID is not seen
LOOK_SECONDS = 0.1
NAMESPACE = "claimscope"
POLICY = """\
mode: enforce
rules: {xid_fatal: {mode: announce}}
budgets: {node_share: 1, group_share: 1, fleet_share: 1}
rate: {least: 1000}
breaker: {least: 1000}
systemic: {nodes: 1000, least_nodes: 1000}
"""

Key = tuple[str, int, int]  # node, GPU, XID


@dataclass(slots=True, kw_only=True)
class Seen:
    """When (monotonic seconds) what was seen first."""

    gpus: dict[str, tuple[str, int]] = field(default_factory=dict)  # uuid -> node and GPU
    findings: dict[Key, float] = field(default_factory=dict)
    leases: dict[Key, float] = field(default_factory=dict)
    rules: dict[Key, float] = field(default_factory=dict)
    effects: dict[Key, str] = field(default_factory=dict)

    def key(self, uuid: str, rule: str) -> Key | None:
        """Which XID a finding or a taint is about."""
        code = next((code for code, name in RULE_OF.items() if name == rule), None)
        place = self.gpus.get(uuid)
        return None if code is None or place is None else (*place, code)

    def finding(self, document: dict[str, Any]) -> None:
        """Takes what an agent says."""
        now = time.monotonic()
        for device in document["devices"]:
            for found in device["findings"]:
                if (key := self.key(device["uuid"], found["rule"])) is not None:
                    self.findings.setdefault(key, now)

    def lease(self, lease: dict[str, Any], present: bool) -> None:
        """Takes an event of the watch on Leases."""
        now = time.monotonic()
        text = lease["metadata"].get("annotations", {}).get("claimscope.io/findings", "{}")
        for found in json.loads(text).get("findings", []):
            if (key := self.key(found["uuid"], found["rule"])) is not None:
                self.leases.setdefault(key, now)

    def rule(self, rule: dict[str, Any], present: bool) -> None:
        """Takes an event of the watch on DeviceTaintRules."""
        now, taint = time.monotonic(), rule["spec"]["taint"]
        uuid = rule["metadata"].get("annotations", {}).get("claimscope.io/uuid", "")
        if present and (key := self.key(uuid, taint["value"])) is not None:
            self.rules.setdefault(key, now)
            self.effects[key] = taint["effect"]


def due() -> Iterator[tuple[Key, float]]:
    """When each XID comes, in seconds of the simulation; never twice at the same phase of anybody's second."""
    for number in range(NODES):
        for place in range(2 * GPUS):
            code = TELLS if place < GPUS else FENCES
            at = FIRST_SECONDS + number * BETWEEN_SECONDS / NODES + place * BETWEEN_SECONDS + place * 0.618 % 0.5
            yield (f"node-{number}", place % GPUS, code), at


@contextlib.asynccontextmanager
async def child(*arguments: str) -> AsyncIterator[None]:
    """A process of claimscope that must live until the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "claimscope", *arguments, "--log-level", "error", stdin=asyncio.subprocess.DEVNULL
    )
    try:
        yield
        if process.returncode is not None:
            raise SystemExit(f"fence_latency: {arguments[0]} ended with status {process.returncode}")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def answer(web: aiohttp.ClientSession, url: str) -> bytes | None:
    """The body of a 200."""
    try:
        async with web.get(url) as response:
            body = await response.read()
            return body if response.status == 200 else None
    except aiohttp.ClientError:
        return None


async def look(web: aiohttp.ClientSession, url: str, seen: Seen) -> None:
    """Asks one agent again and again."""
    while True:
        body = await answer(web, f"{url}/api/v1/health")
        if body is not None:
            seen.finding(json.loads(body))
        await asyncio.sleep(LOOK_SECONDS)


async def watch(web: aiohttp.ClientSession, url: str, take: Callable[[dict[str, Any], bool], None]) -> None:
    """Hands over every object that a watch brings, and whether it is there."""
    async with web.get(url, params={"watch": "true"}, timeout=aiohttp.ClientTimeout(total=None)) as response:
        async for line in response.content:
            event = json.loads(line)
            if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                take(event["object"], event["type"] != "DELETED")


def agent(cluster: SimulatedCluster, node: str, profile: str, address: str, place: Path) -> list[str]:
    """The arguments of one agent; every other one reads a kernel log."""
    faults = [
        {"kind": "xid", "at": at, "gpu": gpu, "code": code} for (of, gpu, code), at in due() if of == node
    ]
    (place / f"{node}.yaml").write_text(json.dumps({"faults": faults}))
    (place / "kmsg").touch()
    return [
        "agent", "--simulate", profile, "--scenario", str(place / f"{node}.yaml"), "--node-name", node,
        "--simulation-start-monotonic-ns", str(cluster.start_monotonic_ns), "--api-server-url", cluster.url,
        "--lease-namespace", NAMESPACE, "--web-listen-address", address, "--state-file", "", "--control-socket", "",
        *(["--kernel-log", str(place / "kmsg")] if with_kernel_log(node) else []),
    ]  # fmt: skip


def with_kernel_log(node: str) -> bool:
    """Every other node."""
    return int(node.rpartition("-")[2]) % 2 == 1


async def start(stack: contextlib.AsyncExitStack, cluster: SimulatedCluster, web: aiohttp.ClientSession) -> list[str]:
    """Starts everything and waits until it is ready; the agents' URLs."""
    place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="claimscope-bench-")))
    (place / "policy.yaml").write_text(POLICY)
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(NODES + 1)]
    for (node, profile), address in zip(cluster.nodes.items(), addresses, strict=False):
        await stack.enter_async_context(child(*agent(cluster, node, profile, address, place)))
    await stack.enter_async_context(child(
        "controller", "--api-server-url", cluster.url, "--namespace", NAMESPACE, "--identity", "bench",
        "--web-listen-address", addresses[-1], "--taint-policy", str(place / "policy.yaml"),
    ))  # fmt: skip
    deadline = cluster.start_monotonic_ns / 1e9 + FIRST_SECONDS
    for address in addresses:
        while await answer(web, f"http://{address}/readyz") is None:
            if time.monotonic() > deadline:
                raise SystemExit(f"fence_latency: {address} is not ready {FIRST_SECONDS:g} s after the start")
            await asyncio.sleep(0.1)
    return [f"http://{address}" for address in addresses[:-1]]


async def run() -> Seen:
    """Plays it all; the times in the answer are seconds after each XID."""
    nodes = [(f"node-{number}", "h100x8") for number in range(NODES)]
    seen = Seen()
    for node, profile in nodes:
        gpu_uuid = node_world(profile, node).profile.gpu_uuid
        seen.gpus |= {gpu_uuid(gpu): (node, gpu) for gpu in range(GPUS)}
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(SimulatedCluster.open(nodes, clock=SystemClock()))
        web = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10), read_bufsize=1 << 20)
        )
        agents = await start(stack, cluster, web)
        leases = f"{cluster.url}/apis/coordination.k8s.io/v1/leases"
        rules = f"{cluster.url}/apis/resource.k8s.io/v1beta2/devicetaintrules"
        works = [*(look(web, url, seen) for url in agents), watch(web, leases, seen.lease),
                 watch(web, rules, seen.rule)]
        tasks = [asyncio.create_task(work) for work in works]
        began = cluster.start_monotonic_ns / 1e9
        try:
            await until_all(tasks, seen, began)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    times = {key: began + at for key, at in due()}
    for found in (seen.findings, seen.leases, seen.rules):
        for key in found:
            found[key] -= times[key]
    return seen


async def until_all(tasks: list[asyncio.Task[None]], seen: Seen, began: float) -> None:
    """Waits for all XIDs to be fenced."""
    last = began + max(at for _, at in due()) + LAST_SECONDS
    while min(len(seen.findings), len(seen.leases), len(seen.rules)) < 2 * NODES * GPUS:
        for task in tasks:
            if task.done():
                task.result()
                raise SystemExit("fence_latency: a watch ended")
        if time.monotonic() > last:
            raise SystemExit(
                f"fence_latency: of {2 * NODES * GPUS} XIDs {len(seen.findings)} are findings, {len(seen.leases)} are "
                f"in Leases and {len(seen.rules)} have rules"
            )
        await asyncio.sleep(0.2)


def percentile(seconds: list[float], percent: float) -> float:
    """The nearest rank."""
    return sorted(seconds)[max(0, math.ceil(len(seconds) * percent / 100) - 1)]


def figures(seen: Seen) -> dict[str, float]:
    """What is told of it."""
    wrong = {key for key, effect in seen.effects.items() if effect != ("None" if key[2] == TELLS else "NoSchedule")}
    if wrong:
        raise SystemExit(f"fence_latency: rules of another effect than their mode's: {sorted(wrong)}")
    rows = {
        "xid_to_finding": [took for key, took in seen.findings.items() if not with_kernel_log(key[0])],
        "xid_to_finding_with_kernel_log": [took for key, took in seen.findings.items() if with_kernel_log(key[0])],
        "xid_to_lease": list(seen.leases.values()),
        "xid_to_none_rule": [took for key, took in seen.rules.items() if key[2] == TELLS],
        "xid_to_no_schedule": [took for key, took in seen.rules.items() if key[2] == FENCES],
    }
    found = {"xids": float(len(seen.rules))}
    for name, seconds in rows.items():
        found |= {f"{name}_{percent}_s": percentile(seconds, int(percent[1:])) for percent in ("p50", "p99")}
    return found


BOUNDS = {
    "xid_to_finding_p99_s": "<=2",
    "xid_to_finding_with_kernel_log_p99_s": "<=2",
    "xid_to_none_rule_p99_s": "<=2",
    "xid_to_no_schedule_p99_s": "<=10",
}

if __name__ == "__main__":
    for name, value in figures(asyncio.run(run())).items():
        unit = "s" if name.endswith("_s") else ""
        sys.stdout.write(f"{name} {value:.3g} {unit} {BOUNDS.get(name, '')}".rstrip() + "\n")
