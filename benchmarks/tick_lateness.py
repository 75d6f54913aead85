"""How late does the sampler wake at 100 Hz while its parent renders 5,000 series four times a second?

The parent renders a whole exposition for each request of a scraper process, as the agent does for a new snapshot. The
sampler counts every tick by how late it woke; the 99th percentile is interpolated within its bucket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence

from claimscope.export.text import Renderer
from claimscope.metrics.spec import Family, Type, Unit
from claimscope.model import Sample
from claimscope.nvml.supervisor import Supervisor
from claimscope.nvml.wire import LATENESS_BOUNDS_SECONDS, FromSampler, Settings, Status
from claimscope.sim.library import SimulatedNvml
from claimscope.sim.world import make_world

BOUND_SECONDS = 0.001
HZ = 100.0
SECONDS = 12.0
WARM_UP_SECONDS = 2.0
SERIES = 5000

_SCRAPER = """
import socket, sys, time
while True:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
        while connection.recv(65536):
            pass
    time.sleep(0.25)
"""


def quantile(buckets: Sequence[int], part: float) -> float:
    """The quantile of counts per bucket of LATENESS_BOUNDS_SECONDS; infinite in the last one."""
    wanted, seen, lower = part * sum(buckets), 0, 0.0
    for count, upper in zip(buckets, (*LATENESS_BOUNDS_SECONDS, float("inf")), strict=True):
        if seen + count >= wanted and count:
            return lower + (upper - lower) * (wanted - seen) / count
        seen += count
        lower = upper
    return lower


async def measure(path: str, environ: Mapping[str, str]) -> dict[str, float | str]:
    """Runs a sampler at 100 Hz on the library at `path`."""
    names = tuple(f"label_{number}" for number in range(11))
    family = Family(
        name="bench_ratio", help="Series to render.", type=Type.GAUGE, unit=Unit.RATIO, labels=("uuid", *names)
    )
    samples = [
        Sample(
            family="bench_ratio",
            labels=(("uuid", f"GPU-{number}"), *((name, f"value-{number % 7}-{name}") for name in names)),
            value=number / 7,
        )
        for number in range(SERIES)
    ]
    renderer = Renderer({"bench_ratio": family})
    scrapes = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal scrapes
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + renderer.render(samples, False))
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()
        scrapes += 1

    statuses: list[Status] = []

    def hear(message: FromSampler) -> None:
        if isinstance(message, Status):
            statuses.append(message)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    scraper = await asyncio.create_subprocess_exec(sys.executable, "-c", _SCRAPER, str(port))
    supervisor = Supervisor(
        Settings(library=path, sampling_hz=HZ, driver_time_budget_ratio=1.0), hear, environ=environ
    )
    task = asyncio.create_task(supervisor.run())
    try:
        await asyncio.sleep(WARM_UP_SECONDS)
        first = statuses[-1]
        await asyncio.sleep(SECONDS)
        last = statuses[-1]
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        scraper.kill()
        await scraper.wait()
        server.close()
    buckets = [after - before for before, after in zip(first.lateness_buckets, last.lateness_buckets, strict=True)]
    wall = (last.wall_ns - first.wall_ns) / 1e9
    return {
        "tick_lateness_p50_seconds": quantile(buckets, 0.5),
        "tick_lateness_p99_seconds": quantile(buckets, 0.99),
        "tick_lateness_missed_ratio": (last.late_ticks - first.late_ticks) / sum(buckets),
        "tick_lateness_ticks": float(sum(buckets)),
        "tick_lateness_scrapes": float(scrapes),
        "tick_lateness_sampler_cpu_ratio": (last.cpu_seconds - first.cpu_seconds) / wall,
    }


def run() -> dict[str, float | str]:
    """On 8 GPUs of the simulated library."""
    with SimulatedNvml(make_world("h100x8")) as simulated:
        simulated.step(60.0, monotonic_ns=time.monotonic_ns(), step_seconds=600.0)
        return asyncio.run(measure(str(simulated.library_path), simulated.environment))


UNITS = {
    "tick_lateness_p50_seconds": ("s", ""),
    "tick_lateness_p99_seconds": ("s", f"<={BOUND_SECONDS}"),
    "tick_lateness_missed_ratio": ("ratio", ""),
    "tick_lateness_ticks": ("ticks", ""),
    "tick_lateness_scrapes": ("scrapes", ""),
    "tick_lateness_sampler_cpu_ratio": ("cores", ""),
}

if __name__ == "__main__":
    figures = asyncio.run(measure(sys.argv[1], os.environ)) if len(sys.argv) > 1 else run()
    for name, value in figures.items():
        unit, bound = UNITS[name]
        sys.stdout.write(f"{name} {value:.4g} {unit} {bound}\n")
