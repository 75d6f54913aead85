"""How long until 100,000 claims on 10,000 nodes are shown, in what memory, and how late is 2,000 events a second?

The API server is the simulated one in a process of its own, on the same cores; objects have real sizes, managed fields
and all. Decoding is compared with the generated client's models on the same list.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
from benchmarks.memory import free_port, size_mib

from claimscope.kube.objects import ListMeta, ResourceClaim

CLAIMS = int(os.environ.get("CLAIMSCOPE_BENCH_CLAIMS", "100000"))
NODES = int(os.environ.get("CLAIMSCOPE_BENCH_NODES", "10000"))
EVENTS_PER_SECOND = 2000
CHURN_SECONDS = int(os.environ.get("CLAIMSCOPE_BENCH_CHURN_SECONDS", "30"))
DECODED_CLAIMS = 2000
GIVE_UP_SECONDS = 180.0


class ClaimList(msgspec.Struct):
    """A page of claims, decoded at once."""

    metadata: ListMeta
    items: list[ResourceClaim]


def get(url: str, gzip: bool = False) -> bytes | None:
    """The body of a 200; None for anything else."""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"} if gzip else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            body: bytes = response.read()
            return body
    except (urllib.error.URLError, OSError):
        return None


def seconds_of(work: Any) -> tuple[float, Any]:  # noqa: ANN401 - any function
    """CPU-bound work and how long it took."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def decode_ratio(url: str) -> float:
    """How many times longer the generated client's models take for the same list."""
    body = get(f"{url}/apis/resource.k8s.io/v1/resourceclaims?limit={DECODED_CLAIMS}")
    assert body is not None
    ours = min(seconds_of(lambda: msgspec.json.decode(body, type=ClaimList))[0] for _ in range(3))
    from kubernetes.client import ApiClient

    text = body.decode()

    def models() -> Any:  # noqa: ANN401
        return ApiClient().deserialize(text, "V1ResourceClaimList", "application/json")

    theirs, listed = seconds_of(models)
    assert len(listed.items) == DECODED_CLAIMS
    return theirs / ours


class Memory(threading.Thread):
    """The largest memory seen, looked at four times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.largest_mib = 0.0
        self.ended = threading.Event()

    def run(self) -> None:
        """Looks until told to end."""
        while not self.ended.wait(0.25):
            self.largest_mib = max(self.largest_mib, size_mib(self.pid, "Pss"))


def until(url: str) -> float:
    """Waits for a 200 and says when it came."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while get(url) is None:
        if time.monotonic() > deadline:
            raise SystemExit(f"{url} does not answer 200 within {GIVE_UP_SECONDS:.0f} s")
        time.sleep(0.02)
    return time.monotonic()


def value_of(exposition: bytes, name: str) -> float:
    """One sample without labels."""
    for line in exposition.splitlines():
        if line.startswith(name.encode() + b" "):
            return float(line.split()[1])
    raise SystemExit(f"{name} is not in the exposition")


def cpu_seconds(pid: int) -> float:
    """What a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def churn(server: subprocess.Popen[str], base: str) -> list[float]:
    """How late each marker was known, while claims and pods change."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(f"churn {EVENTS_PER_SECOND} {CHURN_SECONDS}\n")
    server.stdin.flush()
    late: list[float] = []
    for line in server.stdout:
        word, number, *rest = line.split()
        if word == "done":
            break
        late.append(until(f"{base}/api/v1/claims/bench/marker-{number}") - float(rest[0]))
    return late


def run() -> dict[str, float]:
    """Starts both processes and measures."""
    found: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.cluster_server", str(CLAIMS), str(NODES)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
        )
        stack.callback(server.terminate)
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        address = f"127.0.0.1:{free_port()}"
        base = f"http://{address}"
        began = time.monotonic()
        controller = stack.enter_context(
            subprocess.Popen(
                [
                    sys.executable, "-m", "claimscope", "controller", "--api-server-url", url,
                    "--web-listen-address", address, "--leader-election", "off", "--log-level", "warning",
                ]
            )
        )
        stack.callback(controller.terminate)
        memory = Memory(controller.pid)
        memory.start()
        until(f"{base}/readyz")
        body = b""
        while body.count(b"\nkube_resourceclaim_status_allocation_state{") < CLAIMS:
            body = get(f"{base}/metrics") or b""
            if time.monotonic() - began > GIVE_UP_SECONDS:
                raise SystemExit(f"/metrics is not complete after {GIVE_UP_SECONDS:.0f} s")
            time.sleep(0.05)
        found["first_complete_metrics_seconds"] = time.monotonic() - began
        found["exposition_mib"] = len(body) / (1 << 20)
        found["series"] = float(sum(not line.startswith(b"#") for line in body.splitlines()))
        del body
        found["scrape_seconds"] = min(seconds_of(lambda: get(f"{base}/metrics"))[0] for _ in range(3))
        found["scrape_gzip_seconds"] = min(seconds_of(lambda: get(f"{base}/metrics", gzip=True))[0] for _ in range(3))
        used, began = cpu_seconds(controller.pid), time.monotonic()
        late = sorted(churn(server, base))
        found["churn_cpu_ratio"] = (cpu_seconds(controller.pid) - used) / (time.monotonic() - began)
        found["event_lag_median_seconds"] = late[len(late) // 2]
        found["event_lag_worst_seconds"] = late[-1]
        exposition = get(f"{base}/metrics") or b""
        found["publish_lag_seconds"] = value_of(exposition, "claimscope_controller_publish_lag_seconds")
        memory.ended.set()
        memory.join()
        found["memory_mib"] = memory.largest_mib
        found["decode_ratio"] = decode_ratio(url)
    return found


UNITS = {
    "first_complete_metrics_seconds": ("s", "<=30"),
    "memory_mib": ("MiB", "<=1024"),
    "decode_ratio": ("x", ""),
    "event_lag_worst_seconds": ("s", "<=5"),
}


def main() -> None:
    """Prints the figures."""
    for name, value in run().items():
        unit, bound = UNITS.get(name, ("s" if name.endswith("seconds") else "MiB" if name.endswith("mib") else "", ""))
        sys.stdout.write(f"{name} {value:.4g} {unit} {bound}".rstrip() + "\n")


if __name__ == "__main__":
    main()
