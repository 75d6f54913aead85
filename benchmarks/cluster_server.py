"""The API server of a large simulated cluster, as a process of its own: `python -m benchmarks.cluster_server`.

Prints its URL, then obeys lines on standard input: `churn RATE SECONDS` changes claims and pods at that rate and adds
a claim `bench/marker-N` each second, printing `marker N MONOTONIC` the moment it is written, and `done N` at the end;
`requests` prints how many there were so far, as JSON: bearer token, verb and resource -> number.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections import Counter
from itertools import groupby

import msgspec

from claimscope.sim.api.access import Asked, User
from claimscope.sim.api.kinds import ALL_KINDS, RESOURCE_CLAIMS
from claimscope.sim.api.server import SimApiServer
from claimscope.sim.load import churn, generate

BATCHES_PER_SECOND = 20


def say(line: str) -> None:
    """One line to whoever started this."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def marker(number: int) -> dict[str, object]:
    """A claim that nobody wants; it only shows how late news is."""
    request = {"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com", "count": 1}}
    name = f"marker-{number}"
    return {
        "metadata": {"namespace": "bench", "name": name, "uid": f"uid-{name}", "creationTimestamp": now()},
        "spec": {"devices": {"requests": [request]}},
    }


def now() -> str:
    """The time as objects state it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


async def change(server: SimApiServer, claims: int, nodes: int, rate: int, seconds: int) -> int:
    """The churn; returns how many changes were written."""
    changes = churn(claims, nodes, rate * seconds)
    loop = asyncio.get_running_loop()
    began, written = loop.time(), 0
    for step in range(seconds * BATCHES_PER_SECOND):
        if step % BATCHES_PER_SECOND == 0:
            number = step // BATCHES_PER_SECOND
            await server.put(RESOURCE_CLAIMS, marker(number))
            say(f"marker {number} {time.monotonic()}")
        for _ in range(rate // BATCHES_PER_SECOND):
            kind, obj = next(changes)
            await server.put(kind, obj)
            written += 1
        await asyncio.sleep(max(0.0, began + (step + 1) / BATCHES_PER_SECOND - loop.time()))
    return written


class Requests:
    """Who asks for what, how often; everything is allowed."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __call__(self, user: User, asked: Asked) -> bool:
        """A right of the server's, which is asked once for each request."""
        self._counts[f"{user.name} {asked.verb} {asked.resource}"] += 1
        return True

    def text(self) -> str:
        """One line."""
        return msgspec.json.encode(self._counts).decode()


async def main(claims: int, nodes: int) -> None:
    """Loads, serves and obeys until standard input ends."""
    requests = Requests()
    server = SimApiServer(ALL_KINDS, max_history=100_000, rule=requests)
    for kind, group in groupby(generate(claims, nodes), key=lambda pair: pair[0]):
        server.load(kind, (obj for _, obj in group))
    gc.collect()
    gc.freeze()
    say(await server.start())
    while line := await asyncio.to_thread(sys.stdin.readline):
        match line.split():
            case ["requests"]:
                say(requests.text())
            case ["churn", rate, seconds]:
                say(f"done {await change(server, claims, nodes, int(rate), int(seconds))}")
            case _:
                raise SystemExit(f"cluster_server: {line.strip()!r} is neither `requests` nor `churn RATE SECONDS`")
    await server.stop()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
