from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path

import msgspec
import pytest

from claimscope import logs
from claimscope.claims.explain import Explanation
from claimscope.claims.model import PendingReason
from claimscope.cli.signals import until_signal
from claimscope.sim import questions
from claimscope.sim.library import SimulatedNvml
from claimscope.sim.world import make_world

ROOT = Path(__file__).parent.parent


def claimscope(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the real command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "claimscope", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": os.environ["PATH"]} | environment,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["agent", "--smulate", "h100x8"], {}, "No such option '--smulate'. Did you mean '--simulate'?"),
        (["agen"], {}, "No such command 'agen'. Did you mean 'agent'?"),
        (["agent", "--simulate", "h100x9"], {}, "--simulate: unknown value `h100x9`: did you mean `h100x8`?"),
        (["demo", "--profile", "b200"], {}, "--profile: unknown value `b200`: did you mean `b200x8`?"),
        (
            ["agent"],
            {"CLAIMSCOPE_SAMPLING_HZ": "fast"},
            "environment variable CLAIMSCOPE_SAMPLING_HZ: `fast` is not a number from 1 to 20",
        ),
        (["controller", "--claim-sries", "all"], {}, "No such option '--claim-sries'. Did you mean '--claim-series'?"),
        (["controller", "--lease-seconds", "1"], {}, "--lease-seconds: `1` is not a number from 3 to 600"),
        (
            ["explain", "claim", "train"],
            {},
            "`train` is not NAMESPACE/NAME of a ResourceClaim, such as team-a/train-gpus",
        ),
        (
            ["explain", "claim", "a/b/c"],
            {},
            "`a/b/c` is not NAMESPACE/NAME of a ResourceClaim, such as team-a/train-gpus",
        ),
        *(
            ([part, "--web-config-file", "/no.yaml"], {},
             "/no.yaml: No such file or directory; name a file that can be read with --web-config-file")
            for part in ("agent", "controller")
        ),
        (["explain", "claim", "a/b", "--ca-file", "x"], {},
         "--ca-file is for --controller; the API server is asked as --kubeconfig says"),
        (["explain", "claim", "a/b", "--controller", "https://x", "--key-file", "x"], {},
         "--key-file is of no use without --cert-file"),
        (["explain", "claim", "a/b", "--controller", "https://x", "--user", "a", "--token-file", "x"], {},
         "--token-file and --user are two ways to say who you are: leave one of them out"),
        (["explain", "claim", "a/b", "--controller", "https://x", "--user", "a", "--password-file", "/no"], {},
         "--password-file /no: No such file or directory"),
        (["agent", "--config", "/nowhere.yaml"], {}, "configuration file /nowhere.yaml: No such file or directory"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    arguments: list[str], environment: dict[str, str], expected: str
) -> None:
    done = claimscope(*arguments, **environment)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"claimscope: {expected}\n")


def test_a_mistake_in_the_configuration_file_names_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "claimscope.yaml"
    file.write_text("node_name: a\nkubeconfg: /x\n")
    done = claimscope("doctor", CLAIMSCOPE_CONFIG=str(file))
    assert done.returncode == 2
    assert done.stderr == f"claimscope: {file}:2:1: unknown key `kubeconfg`: did you mean `kubeconfig`?\n"


def test_version_and_help() -> None:
    assert claimscope("--version").stdout == "claimscope 0.1.0\n"
    text = claimscope("agent", "--help").stdout
    assert all(flag in text for flag in ("--simulate", "--nvml-library", "--pod-resources-socket", "--node-name"))


def test_metrics_of_both_parts_are_listed() -> None:
    listed = {entry["name"] for entry in json.loads(claimscope("metrics", "--format", "json").stdout)}
    assert {"gpu_power_watts", "dra_claim_pending_reason", "claimscope_controller_leader"} <= listed


class _FixedController(BaseHTTPRequestHandler):
    """Explains one claim and knows no other."""

    def do_GET(self) -> None:
        """One answer of /api/v1/claims."""
        exists = self.path == "/api/v1/claims/team-a/train"
        waiting = self.path == "/api/v1/claims/team-a/awaited"
        found = Explanation(
            namespace="team-a", name="train", exists=exists, verdict="claim team-a/train is pending\x1b[2J"
            if exists else "claim team-a/trian does not exist",
            reason=PendingReason.QUOTA if exists else PendingReason.CLAIM_MISSING if waiting else None,
            cure="raise the quota" if exists else "see the claims", similar=() if exists else ("team-a/train",),
        )  # fmt: skip
        body = msgspec.json.encode(found)
        self.send_response(200 if exists else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def fixed_controller() -> Iterator[str]:
    """URL of a controller that knows one claim."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _FixedController) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("name", "code", "out", "error"),
    [
        ("train", 0, "claim team-a/train is pending\ufffd[2J\n\nwhat to do:\n  raise the quota\n", ""),
        ("trian", 1, "", "claimscope: claim team-a/trian does not exist: did you mean team-a/train?\n"),
    ],
)
def test_explain_asks_a_controller(fixed_controller: str, name: str, code: int, out: str, error: str) -> None:
    done = claimscope("explain", "claim", f"team-a/{name}", "--controller", fixed_controller)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, error)


def test_explain_tells_of_a_claim_that_does_not_exist_but_is_waited_for(fixed_controller: str) -> None:
    done = claimscope("explain", "claim", "team-a/awaited", "--controller", fixed_controller)
    assert done.returncode == 0
    assert done.stdout.startswith("claim team-a/trian does not exist\n")


def test_explain_without_any_api_server_is_one_line_and_exit_code_1() -> None:
    done = claimscope("explain", "claim", "team-a/train")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("claimscope: ")
    assert done.stderr.count("\n") == 1


def test_control_without_an_agent_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = claimscope("nvml", "status", "--control-socket", str(tmp_path / "agent.sock"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "agent.sock") in done.stderr


def test_doctor_on_a_machine_without_gpus_says_so_and_exits_1(tmp_path: Path) -> None:
    library = tmp_path / "libnvidia-ml.so.1"
    done = claimscope(
        "doctor", "--nvml-library", str(library), "--web-listen-address", "127.0.0.1:0", "--api-server", "off"
    )
    assert done.returncode == 1
    assert done.stderr == ""
    first, second = done.stdout.splitlines()[:2]
    assert first == (
        "fail  gpu access    this system's own: libnvidia-ml.so.1 cannot be loaded: install the NVIDIA driver, or name "
        "its library with --nvml-library"
    )
    assert second.startswith(f"fail  nvml          no usable NVML library at {library}")


async def stopped_by(number: signal.Signals) -> list[str]:
    """What a piece of work does when the process receives the signal."""
    seen: list[str] = []

    async def work() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cleaned up")

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        await until_signal(work())
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    return seen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_the_work_clean_up_and_is_no_error(number: signal.Signals) -> None:
    assert await stopped_by(number) == ["cleaned up"]


async def test_work_that_fails_fails_the_command() -> None:
    async def work() -> None:
        raise OSError("broken")

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(OSError, match="broken"):
            await until_signal(work())
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_json_log_lines() -> None:
    stream = StringIO()
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.handlers.clear()  # they are pytest's; `configure` would close them
    try:
        logs.configure("info", "json", stream)
        logging.getLogger("claimscope.test").info("gpu %s lost", "GPU-1", extra={"uuid": "GPU-1"})
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {"level": "info", "logger": "claimscope.test", "message": "gpu GPU-1 lost", "uuid": "GPU-1"}


def test_the_demo_shows_answers_of_prometheus_in_the_queries_units() -> None:
    answer = {
        "data": {
            "result": [{"metric": {"namespace": "ml", "resourceclaim": "train"}, "value": [1700000000, "0.5"]}],
        }
    }
    assert questions.rows_of(answer, questions.QUERIES[1]) == [f"{'ml/train':44}     50.0 %"]
    assert questions.rows_of({"status": "error"}, questions.QUERIES[1]) == []


def test_the_demo_sums_the_devices_of_a_claim() -> None:
    labels = 'namespace="ml",resourceclaim="train",claim_uid="u",attribution="exclusive"'
    text = (
        "# TYPE dra_claim_gpu_energy_joules_total counter\n"
        f'dra_claim_gpu_energy_joules_total{{{labels},uuid="GPU-1"}} 40\n'
        f'dra_claim_gpu_energy_joules_total{{{labels},uuid="GPU-2"}} 2\n'
    )
    assert questions.totals_of(text) == [f"{'ml/train':44}       42 J"]




def start(*arguments: str) -> subprocess.Popen[str]:
    """The command line, running; its standard error can be read line by line."""
    return subprocess.Popen(
        [sys.executable, "-m", "claimscope", *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_agent_serves_and_a_signal_ends_it_with_exit_code_0(
    cc: str, tmp_path: Path, number: signal.Signals
) -> None:
    del cc  # the simulated library is compiled
    with start(
        "agent", "--simulate", "h100x8", "--web-listen-address", "127.0.0.1:0",
        "--state-file", str(tmp_path / "agent.json"), "--control-socket", str(tmp_path / "agent.sock"),
    ) as agent:  # fmt: skip
        assert agent.stderr is not None
        try:
            assert any("8 devices" in line for line in agent.stderr)
            agent.send_signal(number)
            rest = agent.stderr.read()
            assert agent.wait(20) == 0
        finally:
            agent.kill()
    assert "Traceback" not in rest
    assert not (tmp_path / "agent.sock").exists()


def test_a_taken_port_is_one_line_and_exit_code_1(cc: str, tmp_path: Path) -> None:
    del cc
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = claimscope(
            "agent", "--simulate", "l40sx4", "--web-listen-address", address,
            "--state-file", str(tmp_path / "agent.json"), "--control-socket", "",
        )  # fmt: skip
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if address in line and line.startswith("claimscope: ")] != []
    assert "Traceback" not in done.stderr


def test_a_missing_scenario_is_one_line(cc: str, tmp_path: Path) -> None:
    del cc
    scenario = tmp_path / "none.yaml"
    done = claimscope("agent", "--simulate", "h100x8", "--scenario", str(scenario), "--control-socket", "")
    assert done.returncode == 2
    assert done.stderr == f"claimscope: cannot read the scenario file {scenario}: No such file or directory\n"


def test_doctor_lists_the_gpus_that_a_library_shows(cc: str, tmp_path: Path) -> None:
    del cc
    with SimulatedNvml(make_world("a100x8-mig"), directory=tmp_path) as simulated:
        simulated.step(0.0)
        done = claimscope("doctor", "--nvml-library", str(simulated.library_path), **simulated.environment)
    lines = done.stdout.splitlines()
    assert lines[0] == f"ok    gpu access    this system's own: {simulated.library_path.resolve()}"
    assert lines[1].startswith("ok    nvml          driver ")
    assert lines[2].startswith("ok    devices       8 x NVIDIA A100")
    assert "GPUs have MIG switched on" in lines[3]


@pytest.mark.parametrize("with_prometheus", [True, False])
def test_the_demo_says_what_to_open_and_leaves_nothing_behind(
    cc: str, request: pytest.FixtureRequest, tmp_path: Path, with_prometheus: bool
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("cc", "as", "ld"):
        found = shutil.which(name)
        if found is not None:
            (programs / name).symlink_to(found)
    if with_prometheus:
        (programs / "prometheus").symlink_to(request.getfixturevalue("prometheus"))
    # Sockets stand in it, and a socket's path has at most 107 bytes.
    temporary = Path(tempfile.mkdtemp(prefix="demo-", dir="/tmp"))
    request.addfinalizer(lambda: shutil.rmtree(temporary))
    done = claimscope("demo", "--profile", "h100x8", "--seconds", "2", PATH=str(programs), TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert "/metrics  (simulated node h100x8" in done.stdout
    assert ("/graph  (" in done.stdout) == with_prometheus
    assert "taints      claimscope taints list --api-server-url http://127.0.0.1:" in done.stdout
    assert ("prometheus  left out" in done.stdout) == (not with_prometheus)
    assert done.stdout.endswith("stopped, nothing is left behind\n")
    assert list(temporary.iterdir()) == []


def test_the_metrics_command_lists_the_tables() -> None:
    listed = json.loads(claimscope("metrics", "--format", "json").stdout)
    assert {"gpu_power_watts", "dra_claim_gpu_energy_joules_total"} <= {entry["name"] for entry in listed}
    assert claimscope("metrics").stdout == (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
