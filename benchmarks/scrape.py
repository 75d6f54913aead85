"""How long does a scrape of 8 GPUs take end to end, per series, against nvitop-exporter on the same fake library?

Both servers run as their users run them, on the same simulated driver, and are asked in turn as Prometheus asks:
OpenMetrics or text, gzip allowed, one kept connection. Scrapes lie 1.03 s apart, so that each meets figures that were
not shown before, and none finds an answer made for another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from claimscope.clock import SystemClock
from claimscope.sim.library import SimulatedNvml, run_writer
from claimscope.sim.world import make_world

BOUND_RATIO = 0.2
SCRAPES = 25
APART_SECONDS = 1.03
START_SECONDS = 30.0
HEADERS = {
    "Accept": "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "Accept-Encoding": "gzip",
    "User-Agent": "Prometheus/2.42.0",
}


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def series(body: bytes) -> list[bytes]:
    """The sample lines of an exposition."""
    return [line for line in body.split(b"\n") if line and not line.startswith(b"#")]


class Target:
    """One server that is scraped over a kept connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def scrape(self) -> tuple[float, bytes]:
        """(seconds from the request to the last byte, the plain body)."""
        begun = time.perf_counter()
        self._connection.request("GET", "/metrics", headers=HEADERS)
        answer = self._connection.getresponse()
        body = answer.read()
        seconds = time.perf_counter() - begun
        if answer.status != 200:
            raise ConnectionError(f"status {answer.status}: {body[:200]!r}")
        packed = answer.headers.get("Content-Encoding") == "gzip"
        return seconds, gzip.decompress(body) if packed else body

    def wait(self, needle: bytes) -> None:
        """Waits until the answer names `needle`."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if needle in self.scrape()[1]:
                    return
            self._connection.close()
            time.sleep(0.2)
        raise SystemExit(f"scrape: port {self._connection.port} does not show {needle.decode()}")

    def close(self) -> None:
        """Hangs up."""
        self._connection.close()


@contextlib.contextmanager
def started(arguments: list[str], environment: Mapping[str, str]) -> Iterator[None]:
    """A process that is stopped behind the block."""
    process = subprocess.Popen(
        arguments, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def compare(library: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """Starts both and scrapes them in turn."""
    ports = free_port(), free_port()
    beside = Path(sys.executable).parent
    agent = [
        str(beside / "claimscope"), "agent", "--nvml-library", str(library), "--attribution", "off", "--state-file", "",
        "--control-socket", "", "--log-level", "error", "--web-listen-address", f"127.0.0.1:{ports[0]}",
    ]  # fmt: skip
    nvitop = [str(beside / "nvitop-exporter"), "--bind-address", "127.0.0.1", "--port", str(ports[1])]
    with started(agent, environment), started(nvitop, environment):
        targets = Target(ports[0]), Target(ports[1])
        targets[0].wait(b"gpu_power_watts{")
        targets[1].wait(b"gpu_utilization")
        times: tuple[list[float], list[float]] = [], []
        counts = [0, 0]
        for turn in range(SCRAPES + 2):
            for which, target in enumerate(targets):
                time.sleep(APART_SECONDS / 2)
                seconds, body = target.scrape()
                counts[which] = len(series(body))
                if turn >= 2:
                    times[which].append(seconds)
        for target in targets:
            target.close()
    ours, theirs = (statistics.median(seconds) for seconds in times)
    return {
        "scrape_series": float(counts[0]),
        "scrape_ms": ours * 1e3,
        "scrape_us_per_series": ours * 1e6 / counts[0],
        "scrape_nvitop_series": float(counts[1]),
        "scrape_nvitop_ms": theirs * 1e3,
        "scrape_nvitop_us_per_series": theirs * 1e6 / counts[1],
        "scrape_ratio": (ours / counts[0]) / (theirs / counts[1]),
    }


async def measure() -> dict[str, float]:
    """Keeps the simulated driver moving while the two are compared."""
    with (
        tempfile.TemporaryDirectory(prefix="claimscope-bench-") as directory,
        SimulatedNvml(make_world("h100x8", node_name="bench"), directory=Path(directory)) as nvml,
    ):
        writer = asyncio.create_task(run_writer(nvml, SystemClock()))
        try:
            return await asyncio.to_thread(compare, nvml.library_path, nvml.environment)
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)


def run() -> dict[str, float]:
    """On 8 GPUs of the simulated library."""
    return asyncio.run(measure())


UNITS = {
    "scrape_series": ("series", ""),
    "scrape_ms": ("ms", ""),
    "scrape_us_per_series": ("us", ""),
    "scrape_nvitop_series": ("series", ""),
    "scrape_nvitop_ms": ("ms", ""),
    "scrape_nvitop_us_per_series": ("us", ""),
    "scrape_ratio": ("x", f"<={BOUND_RATIO}"),
}

if __name__ == "__main__":
    for name, value in run().items():
        unit, bound = UNITS[name]
        sys.stdout.write(f"{name} {value:.4g} {unit} {bound}\n")
