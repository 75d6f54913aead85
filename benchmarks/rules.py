"""How long does Prometheus take to evaluate the rules and alerts of a cluster with 10,000 GPUs and 10,000 claims?

A Prometheus scrapes every series that the rules read, from 1,250 nodes with 8 GPUs, 200 jobs and 500 claims that wait.
It scrapes more often than usual and for a shorter time, so that a range of five minutes holds about half of the samples
that it would; the longer ranges of budgets are over few series. Rules are evaluated when the scraping is done, so that
nothing else is measured.

Then every query of every dashboard is asked, one after the other, for all clusters, namespaces and nodes, over 200
steps that all see what was stored. Of the chosen time itself a range holds few samples, so that those few queries that
read samples and not steps take longer elsewhere.
"""

from __future__ import annotations

import gzip
import http.server
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
BOARDS: Final = ROOT / "dashboards" / "json"
NODES: Final = 1250
GPUS: Final = 8
JOBS: Final = 200
WAITING: Final = 500
TARGETS: Final = 10
SCRAPE_SECONDS: Final = 6
SCRAPING_SECONDS: Final = 50
EVALUATING_SECONDS: Final = 45  # two rounds; the second is the usual one, with all that the first has recorded
INTERVAL_SECONDS: Final = 20
SETTLING_SECONDS: Final = 5  # until no rule is evaluated any more, and boards are measured alone
CLASS: Final = "gpu.nvidia.com"
STEPS: Final = 200
STEP_MILLISECONDS: Final = 1400  # so that they end before Prometheus takes the last sample for too old
SLOWEST: Final = 3  # panels of each board that are named
_PLACE: Final = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|([A-Za-z_]\w*))")
_NAME: Final = re.compile(r"\b(?:gpu|dra|claimscope|kube|pod)_[a-z0-9_]+\b")

# What the agent says of a GPU and of a claim's part of it, as far as rules read it: series without the labels that all
# have, and a value.
_ENGINES: Final = (
    "gpu", "memory", "sm", "tensor", "fp64", "fp32", "fp16", "dram", "graphics", "encoder", "decoder",
)  # fmt: skip
_OF_GPU: Final = (
    *(f'gpu_health{{state="{state}"}} {int(state == "ok")}' for state in ("ok", "degraded", "unhealthy", "lost")),
    'gpu_info{parent_uuid="",model="H100"} 1', "gpu_size_ratio{} 1",
    *(
        f'gpu_utilization_ratio{{engine="{engine}"}} 0.9'
        for engine in _ENGINES
    ),
    *(
        f'gpu_busy_seconds_total{{engine="{engine}"}} 8000'
        for engine in _ENGINES
    ),
    *(f'gpu_clock_hertz{{domain="{domain}"}} 1.9e9' for domain in ("sm", "memory", "graphics", "video")),
    *(f'gpu_clock_max_hertz{{domain="{domain}"}} 1.98e9' for domain in ("sm", "memory", "graphics", "video")),
    "gpu_energy_joules_total{} 5e7",
    *(f'gpu_power_limit_watts{{kind="{kind}"}} 700' for kind in ("min", "max", "default", "requested", "enforced")),
    "gpu_memory_used_bytes{} 7e10", "gpu_memory_free_bytes{} 1e10",
    *(f'gpu_nvlink_up{{link="{link}"}} 1' for link in range(18)),
    *(f'gpu_nvlink_errors_total{{type="{kind}"}} 0' for kind in ("replay", "recovery", "crc_flit", "crc_data", "ecc")),
    *(
        f'gpu_throttle_seconds_total{{reason="{reason}"}} 12'
        for reason in ("sw_power_cap", "sync_boost", "sw_thermal", "hw_thermal", "hw_power_brake", "reliability")
    ),
    *(f'gpu_ecc_device_errors_total{{type="{kind}"}} 0' for kind in ("corrected", "uncorrected")),
    *(f'gpu_remapped_rows_total{{type="{kind}"}} 0' for kind in ("corrected", "uncorrected")),
    "gpu_row_remap_failure{} 0", "gpu_row_remap_pending{} 0", "gpu_up{} 1",
    "gpu_unattributed_energy_joules_total{} 5e5",
    *(f'gpu_temperature_celsius{{sensor="{sensor}"}} 61' for sensor in ("gpu", "memory")),
)  # fmt: skip
_OF_PART: Final = (
    *(
        f'dra_claim_gpu_busy_seconds_total{{engine="{engine}"}} 8000'
        for engine in _ENGINES
    ),
    "dra_claim_gpu_allocated_seconds_total{} 9000", "dra_claim_gpu_energy_joules_total{} 5e7",
    "dra_claim_gpu_memory_used_bytes{} 7e10",
)  # fmt: skip
_OF_AGENT: Final = (
    "build_info{} 1", "sampler_up{} 1", "nvml_up{} 1", "nvml_released{} 0", "sampler_ticks_total{} 1e5",
    "sampler_late_ticks_total{} 3", 'attribution_unresolved_devices{reason="x",driver="y"} 0',
    *(f'otlp_points_total{{result="{result}"}} 0' for result in ("accepted", "rejected", "refused", "expired")),
    'taint_breaker_state{state="open"} 0', 'taint_mode_info{mode="enforce",configured="enforce",reason=""} 1',
)  # fmt: skip
# Nothing of these: no GPU has a finding or an XID, and nothing is amiss in the cluster.
_ABSENT: Final = frozenset({
    "gpu_health_finding_info", "gpu_xid_last_timestamp_seconds", "dra_claim_leaked", "dra_node_drift_info",
    "dra_claim_held_not_running_seconds", "kube_node_status_allocatable", "dra_taint_rule_ineffective",
    "dra_node_maintenance_state", "dra_node_maintenance_deadline_missed", "dra_node_devices_advertised_twice",
    # All GPUs are handed out by claim.
    "pod_gpu_allocated_seconds_total", "pod_gpu_busy_seconds_total", "pod_gpu_energy_joules_total",
})  # fmt: skip


def _with(series: str, labels: str) -> str:
    name, _, rest = series.partition("{")
    return f"{name}{{{labels},{rest}" if not rest.startswith("}") else f"{name}{{{labels}{rest}"


def _claim(number: int) -> str:
    return f'namespace="team-{number % JOBS // 10}",resourceclaim="claim-{number}",claim_uid="uid-{number}"'


def _node(number: int, now: float) -> Iterator[str]:
    """What the agent of a node says."""
    node = f'node="node-{number}"'
    for series in _OF_AGENT:
        yield _with(f"claimscope_agent_{series}", node)
    yield f'claimscope_agent_attribution_last_success_timestamp_seconds{{{node},source="pod-resources"}} {now}'
    yield f"claimscope_agent_journal_last_success_timestamp_seconds{{{node}}} {now}"
    for gpu in range(GPUS):
        at = number * GPUS + gpu
        device = f'{node},uuid="GPU-{at:08x}-0000-4000-8000-000000000000"'
        for series in _OF_GPU:
            yield _with(series, f'{device},gpu="{gpu}"')
        for series in _OF_PART:
            yield _with(series, f'{device},{_claim(at)},attribution="exclusive"')
        yield f'gpu_allocation_info{{{device},{_claim(at)},pod="pod-{at}",container="main"}} 1'


def _cluster(now: float) -> Iterator[str]:
    """What the controller says."""
    claims = NODES * GPUS
    for number in range(claims + WAITING):
        claim = _claim(number)
        yield (
            f'dra_claim_info{{{claim},deviceclass="{CLASS}",template="gpu",source="template",workload_kind="Job",'
            f'workload="train-{number % JOBS}"}} 1'
        )
        yield f"dra_claim_created_timestamp_seconds{{{claim}}} {now - 90000}"
        state = "running" if number < claims else "pending"
        yield f'kube_resourceclaim_status_allocation_state{{{claim},state="{state}"}} 1'
        if number < claims:
            yield (
                f'dra_claim_device_info{{{claim},request="gpu",driver="{CLASS}",pool="node-{number // GPUS}",'
                f'device="gpu-{number % GPUS}",uuid="GPU-{number:08x}-0000-4000-8000-000000000000",'
                f'node="node-{number // GPUS}",admin_access="false"}} 1'
            )
        else:
            wait = f'{claim},pod="pod-{number}",deviceclass="{CLASS}"'
            yield f"dra_claim_pending_seconds{{{wait}}} 900"
            yield f'dra_claim_pending_reason{{{wait},reason="devices_in_use"}} 1'
    for number in range(NODES):
        pool = f'driver="{CLASS}",pool="node-{number}"'
        yield f'dra_pool_devices{{{pool},deviceclass="{CLASS}",state="free"}} 0'
        yield f'dra_pool_devices{{{pool},deviceclass="{CLASS}",state="allocated"}} {GPUS}'
        yield f"dra_pool_complete{{{pool}}} 1"
        yield f'dra_node_mode_info{{node="node-{number}",mode="dra"}} 1'
        yield f'claimscope_controller_agent_lease_renew_timestamp_seconds{{node="node-{number}"}} {now}'
    for le in ("0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "120", "300", "600", "1800", "+Inf"):
        yield f'dra_allocation_duration_seconds_bucket{{deviceclass="{CLASS}",phase="binding",le="{le}"}} 1000'
    yield f'dra_allocation_duration_seconds_count{{deviceclass="{CLASS}",phase="binding"}} 1000'
    yield f'dra_constraint_violations_total{{deviceclass="{CLASS}",constraint="health"}} 0'
    yield f'dra_gpu_nodes{{agent="heard"}} {NODES}'
    yield 'dra_taint_held{reason="systemic"} 0'
    own = "claimscope_controller"
    yield f"{own}_leader{{}} 1"
    yield f'{own}_watch_last_event_timestamp_seconds{{resource="pods"}} {now}'
    for state in ("served", "up"):
        yield f'{own}_watch_{state}{{resource="pods"}} 1'
    yield f"{own}_taint_last_round_timestamp_seconds{{}} {now}"
    for series in (
        "publish_lag_seconds{} 1", "selector_engine_up{} 1", "taint_paused{} 0", 'taint_breaker_state{state="open"} 0',
        'taint_mode_info{mode="enforce",configured="enforce",reason=""} 1', 'otlp_points_total{result="accepted"} 1',
    ):  # fmt: skip
        yield f"{own}_{series}"


def expositions() -> tuple[list[bytes], int]:
    """What each target answers, compressed, and how many series there are."""
    now = time.time()
    parts = [[line for node in range(at, NODES, TARGETS) for line in _node(node, now)] for at in range(TARGETS)]
    parts.append(list(_cluster(now)))
    served = {line.partition("{")[0] for part in parts for line in part}
    read = {name for path in sorted((ROOT / "alerts/rules").glob("*.yml")) for name in _expressions(path)}
    if missing := read - served - _ABSENT:
        raise SystemExit(f"the rules read series that this benchmark does not serve: {sorted(missing)}; add them")
    return [gzip.compress(("\n".join(part) + "\n").encode(), 1) for part in parts], sum(map(len, parts))


def _expressions(path: Path) -> Iterator[str]:
    """Names of series, of what is recorded left out, that expressions have in them."""
    text = path.read_text()
    recorded = set(re.findall(r"[a-z_]+:[a-z0-9_]+:[a-z0-9_]+", text))
    for block in re.findall(r"expr: (\|-\n(?:      .*\n)+|.*\n)", text):
        stripped = block
        for name in sorted(recorded, key=len, reverse=True):
            stripped = stripped.replace(name, "")
        stripped = re.sub(r'"[^"]*"', "", stripped)
        labels = "".join(re.findall(r"(?:by|on|group_left|group_right) \(([^)]*)\)", stripped))
        yield from (name for name in _NAME.findall(stripped) if name not in labels)


def _server(bodies: list[bytes]) -> http.server.ThreadingHTTPServer:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = bodies[int(self.path.rpartition("/")[2])]
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _config(port: int, bodies: int, *, evaluating: bool, interval: str = f"{INTERVAL_SECONDS}s") -> str:
    target = f"static_configs: [{{targets: ['127.0.0.1:{port}']}}]"
    jobs = "\n".join(
        f"- {{job_name: t{at}, honor_labels: true, metrics_path: /{at}, {target}}}" for at in range(bodies)
    )
    scraping = "1h" if evaluating else f"{SCRAPE_SECONDS}s"
    return f"""\
global: {{evaluation_interval: {interval}, scrape_interval: {scraping}, scrape_timeout: {SCRAPE_SECONDS}s}}
rule_files: [{"rules/*.yml" if evaluating else ""}]
scrape_configs:
{jobs}
"""


def _ask(address: str, expr: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{address}/api/v1/query?query={urllib.parse.quote(expr)}", timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def _groups(address: str) -> dict[str, tuple[float, list[tuple[str, float]]]]:
    """Groups with their last evaluation's seconds, and those of their rules."""
    with urllib.request.urlopen(f"{address}/api/v1/rules", timeout=60) as answer:
        groups = json.load(answer)["data"]["groups"]
    bad = [(rule["name"], rule["lastError"]) for group in groups for rule in group["rules"] if rule.get("lastError")]
    if bad:
        raise SystemExit(f"rules that failed: {bad}")
    return {
        group["name"]: (
            group["evaluationTime"], [(rule["name"], rule["evaluationTime"]) for rule in group["rules"]]
        )
        for group in groups
    }  # fmt: skip


def _filled(expr: str, values: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda found: values.get(found[1] or found[2], found[0]), expr)


def _queries(board: Any) -> Iterator[tuple[str, str, bool]]:  # noqa: ANN401 - JSON
    """Titles of panels, what they ask, and whether they do so for one moment only."""
    one = {"namespace": "team-0", "resourceclaim": "claim-7", "node": "node-0", "price": "2.50"}
    seconds = STEPS * STEP_MILLISECONDS // 1000
    values = {
        "__rate_interval": "5m", "__range": f"{seconds}s", "__range_s": str(seconds),
    }
    values |= {
        each["name"]: ".*" if each.get("allValue") else one[each["name"]] for each in board["templating"]["list"]
        if each["type"] != "datasource"
    }  # fmt: skip
    panels = [inside for panel in board["panels"] for inside in (panel, *panel.get("panels", ()))]
    for panel in panels:
        step = STEPS * STEP_MILLISECONDS // panel.get("maxDataPoints", STEPS)
        filled = {**values, "__interval": f"{step}ms", "__interval_ms": str(step)}
        for target in panel.get("targets", ()):
            yield panel["title"], _filled(target["expr"], filled), target["instant"]


def boards(address: str, directory: Path, since: float) -> dict[str, list[tuple[float, str]]]:
    """Seconds that each panel of each board takes, the slowest first."""
    end = since + STEPS * STEP_MILLISECONDS / 1000
    made: dict[str, list[tuple[float, str]]] = {}
    for path in sorted(directory.glob("*.json")):
        board = json.loads(path.read_text())
        taken: dict[str, float] = {}
        for title, expr, instant in _queries(board):
            asked = {"query": expr, "timeout": "60s"} | (
                {"time": f"{end:.3f}"} if instant
                else {"start": f"{since:.3f}", "end": f"{end:.3f}", "step": str(STEP_MILLISECONDS / 1000)}
            )
            began = time.perf_counter()
            kind = "query" if instant else "query_range"
            try:
                urllib.request.urlopen(
                    f"{address}/api/v1/{kind}", urllib.parse.urlencode(asked).encode(), timeout=90
                ).read()
            except urllib.error.HTTPError as error:
                raise SystemExit(f"{path.stem}, {title}: {error.read().decode()[:300]}: {expr}") from error
            taken[title] = taken.get(title, 0.0) + time.perf_counter() - began
        slowest = sorted(((each, title) for title, each in taken.items()), reverse=True)
        made[path.stem.removeprefix("claimscope-")] = slowest
    return made


def _run(program: str, directory: Path, bodies: list[bytes]) -> tuple[Any, list[dict[str, Any]], Any]:
    server = _server(bodies)
    (directory / "rules").mkdir()
    for path in (ROOT / "alerts/rules").glob("*.yml"):
        text = re.sub(r"^  interval: .*\n", "", path.read_text(), flags=re.MULTILINE)  # each as often as the others
        (directory / "rules" / path.name).write_text(text)
    (directory / "prometheus.yml").write_text(_config(server.server_address[1], len(bodies), evaluating=False))
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    with (directory / "log").open("w") as log:
        prometheus = subprocess.Popen(
            [program, f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data",
             f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            time.sleep(SCRAPING_SECONDS)
            address = f"http://127.0.0.1:{port}"
            scraped = _ask(address, "sum(scrape_samples_scraped) or vector(0)")
            config = _config(server.server_address[1], len(bodies), evaluating=True)
            (directory / "prometheus.yml").write_text(config)
            prometheus.send_signal(signal.SIGHUP)
            time.sleep(EVALUATING_SECONDS)
            groups = _groups(address)
            config = _config(server.server_address[1], len(bodies), evaluating=True, interval="1h")
            (directory / "prometheus.yml").write_text(config)
            prometheus.send_signal(signal.SIGHUP)
            time.sleep(SETTLING_SECONDS)
            return groups, scraped, boards(address, BOARDS, time.time())
        finally:
            prometheus.kill()  # what it stored is of no use
            prometheus.wait()
            server.shutdown()


def main() -> int:
    program = shutil.which("prometheus")
    if program is None:
        print("left out: there is no prometheus on PATH", file=sys.stderr)
        return 0
    bodies, series = expositions()
    with tempfile.TemporaryDirectory() as directory:
        groups, scraped, shown = _run(program, Path(directory), bodies)
    print(f"series {series} series")
    if float(scraped[0]["value"][1]) < series:
        raise SystemExit(f"only {scraped[0]['value'][1]} of {series} series were scraped; is the machine too slow?")
    for name, (seconds, rules) in sorted(groups.items(), key=lambda each: -each[1][0]):
        slowest = ", ".join(f"{rule} {1000 * each:.0f} ms" for rule, each in sorted(rules, key=lambda one: -one[1])[:3])
        print(f"{name}: {slowest}")
        print(f"{name.replace('-', '_')}_ms {1000 * seconds:.0f} ms")
    print(f"all_groups_s {sum(seconds for seconds, _ in groups.values()):.2f} s")
    print(f"slowest_group_s {max(seconds for seconds, _ in groups.values()):.2f} s <=10")  # of 30 or 60 between two
    for board, panels in shown.items():
        print(f"{board}: " + ", ".join(f"{title} {seconds:.2f} s" for seconds, title in panels[:SLOWEST]))
        print(f"board_{board}_s {sum(seconds for seconds, _ in panels):.2f} s")
    print(f"slowest_panel_s {max(panels[0][0] for panels in shown.values()):.2f} s <=10")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
