"""Does a healthy week raise a finding, what does judging it cost, and how soon is an XID a finding?

The week is that of a simulated node whose pods come and go: every window is read through the sampler's own readers from
the simulated library, with the clock stretched, and judged by all rules. The latency is that of real agents, from the
moment at which the driver reports the XID to the first scrape that shows the finding.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from claimscope.sim.stretched import stretched_node

DAY = 86_400.0
WEEK_DAYS = 7.0
WINDOW_SECONDS = 15.0  # the agent's are a second long
XIDS, XID_EVERY = 60, 0.73
LATENCY_BOUND_SECONDS = 2.0


def week(days: float) -> dict[str, float]:
    """Judges so many days of a healthy node, whose pods come and go."""
    spent = 0.0
    with stretched_node("h100x8", window_seconds=WINDOW_SECONDS) as node:
        devices = len(node.readers)
        steps = round(days * DAY / WINDOW_SECONDS)
        for _ in range(steps):
            windows = node.windows()
            begun = time.process_time()
            node.judge(windows)
            shown = node.watch.view()
            spent += time.process_time() - begun
    unknown = {
        rule for health in shown.devices.values() for rule, state in health.states.items() if state.value == "unknown"
    }
    if unknown:
        sys.stdout.write(f"not judged for want of readings: {', '.join(sorted(unknown))}\n")
    return {
        "health_soak_device_days": devices * days,
        "health_soak_findings": float(sum(shown.began.values())),
        "health_soak_cpu_per_window_us": spent / (devices * steps) * 1e6,
        "health_soak_cpu_per_device_day_s": spent / (devices * steps) * DAY,
    }


def latency() -> dict[str, float]:
    """Seconds from an XID to the scrape that shows its finding, over agents of eight GPUs each."""
    seconds: list[float] = []
    while len(seconds) < XIDS:
        seconds += _latencies()
    seconds.sort()
    return {
        "xid_to_finding_p50_s": seconds[len(seconds) // 2],
        "xid_to_finding_p99_s": seconds[min(len(seconds) - 1, len(seconds) * 99 // 100)],
    }


def _latencies() -> list[float]:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        at = {gpu: 5.0 + gpu * XID_EVERY for gpu in range(8)}
        faults = [{"kind": "xid", "at": seconds, "gpu": gpu, "code": 79} for gpu, seconds in at.items()]
        (place / "scenario.yaml").write_text(json.dumps({"faults": faults}))
        began_ns = time.monotonic_ns()
        command = [
            sys.executable, "-m", "claimscope", "agent", "--simulate", "h100x8", "--scenario",
            str(place / "scenario.yaml"), "--simulation-start-monotonic-ns", str(began_ns), "--web-listen-address",
            "127.0.0.1:0", "--state-file", "", "--control-socket", "", "--node-name", "bench",
        ]  # fmt: skip
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as agent:
            try:
                return _watch(agent, {gpu: began_ns / 1e9 + seconds for gpu, seconds in at.items()})
            finally:
                agent.terminate()


def _watch(agent: subprocess.Popen[str], due: dict[int, float]) -> list[float]:
    assert agent.stderr is not None
    url = next(line.split("serving on ")[1].split()[0] for line in agent.stderr if "serving on " in line)
    threading.Thread(target=agent.stderr.read, daemon=True).start()  # an agent that cannot log would stand still
    found: dict[int, float] = {}
    pause = threading.Event()
    while len(found) < len(due) and time.monotonic() < max(due.values()) + 10:
        try:
            with urllib.request.urlopen(url + "/metrics", timeout=5) as reply:
                text = reply.read().decode()
        except urllib.error.URLError:
            text = ""
        now = time.monotonic()
        for gpu in due.keys() - found.keys():
            if f'gpu="{gpu}",rule="xid_lost"' in text:
                found[gpu] = now - due[gpu]
        pause.wait(0.02)
    if len(found) < len(due):
        raise SystemExit(f"no finding for XIDs on GPUs {sorted(due.keys() - found.keys())}")
    return list(found.values())


UNITS = {
    "health_soak_device_days": ("days", ""),
    "health_soak_findings": ("findings", "<=0"),
    "health_soak_cpu_per_window_us": ("us", ""),
    "health_soak_cpu_per_device_day_s": ("s", "<=60"),
    "xid_to_finding_p50_s": ("s", ""),
    "xid_to_finding_p99_s": ("s", f"<={LATENCY_BOUND_SECONDS:g}"),
}

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)  # a finding is told in words
    for name, value in {**week(float(sys.argv[1]) if len(sys.argv) > 1 else WEEK_DAYS), **latency()}.items():
        unit, bound = UNITS[name]
        sys.stdout.write(f"{name} {value:.4g} {unit} {bound}\n")
