"""How much memory do the agent and its sampler take on 8 GPUs with everything on, and does it stay there?

PSS of the agent and all its descendants, while /metrics is scraped once a second; the largest reading counts. PSS falls
whenever another program maps the same libraries, so growth is told by anonymous memory alone, which nobody shares, and
from when every pod has come and gone once, which takes two minutes: until then there is ever more to show. The agent
runs with --simulate: the simulated kubelet and the world behind the library count too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

BOUND_MIB = 100.0
WARM_SECONDS = 140.0
SOAK_SECONDS = float(os.environ.get("CLAIMSCOPE_BENCH_SOAK_SECONDS", "45"))


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def family(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def size_mib(pid: int, row: str) -> float:
    """One row of smaps_rollup, over the process and its descendants."""
    total = 0
    for each in family(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
                if line.startswith(f"{row}:"):
                    total += int(line.split()[1])
    return total / 1024


def scrape(address: str) -> bool:
    """One scrape, as Prometheus makes it."""
    request = urllib.request.Request(f"http://{address}/metrics", headers={"Accept-Encoding": "gzip"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            response.read()
    except (urllib.error.URLError, OSError):
        return False
    return True


def run() -> dict[str, float]:
    """Starts the agent, waits, and measures twice."""
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="claimscope-bench-") as directory:
        agent = subprocess.Popen(
            [
                sys.executable, "-m", "claimscope", "agent", "--simulate", "h100x8", "--web-listen-address", address,
                "--collectors", "nvlink-per-link,processes", "--state-file", f"{directory}/agent.json",
                "--control-socket", f"{directory}/agent.sock", "--log-level", "warning",
            ]
        )
        try:
            start = time.monotonic()
            largest = 0.0
            anonymous: list[float] = []
            for until in (WARM_SECONDS, WARM_SECONDS + SOAK_SECONDS):
                while time.monotonic() - start < until:
                    if agent.poll() is not None:
                        raise SystemExit(f"memory: the agent ended with status {agent.returncode}")
                    scrape(address)
                    largest = max(largest, size_mib(agent.pid, "Pss"))
                    time.sleep(1)
                anonymous.append(size_mib(agent.pid, "Pss_Anon"))
            if not scrape(address):
                raise SystemExit(f"memory: no answer at {address}")
        finally:
            agent.send_signal(signal.SIGTERM)
            try:
                agent.wait(20)
            except subprocess.TimeoutExpired:
                agent.kill()
    return {"memory_pss_mib": largest, "memory_anonymous_growth_mib": anonymous[1] - anonymous[0]}


UNITS = {"memory_pss_mib": ("MiB", f"<={BOUND_MIB:g}"), "memory_anonymous_growth_mib": ("MiB", "<=2")}

if __name__ == "__main__":
    for name, value in run().items():
        unit, bound = UNITS[name]
        sys.stdout.write(f"{name} {value:.4g} {unit} {bound}\n")
