"""What a node's agent serves while something is wrong: the real process, faults played by the simulation."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent_process import Agent, Recorder, Scrape

LATE_POD, XID, LOST, LOST_SECONDS, HANG = 5.0, 5.5, 4.0, 5.0, 4.0  # seconds of the simulation
PODS = """
pods:
  - {namespace: research, name: job, workload: training, claims: [{name: job-gpu, devices: ["gpu:1"]}]}
  - {namespace: monitoring, name: observer, workload: idle,
     claims: [{name: observe, devices: ["gpu:1", "gpu:2"], admin_access: true}]}
  - {namespace: research, name: late, workload: training, start: 5.0, claims: [{name: late-gpu, devices: ["gpu:3"]}]}
"""
FAULTS = f"""{PODS}
faults:
  - {{kind: lost, at: {LOST}, gpu: 0, duration: {LOST_SECONDS}}}
  - {{kind: xid, at: {XID}, gpu: 1, code: 31}}
"""
HANGS = f"""{PODS}
faults:
  - {{kind: hang, at: {HANG}, gpu: 2}}
"""

RELOAD = 5.0
RELOADS = f"""
faults:
  - {{kind: driver_reload, at: {RELOAD}, duration: 3.0}}
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, cc: str) -> Iterator[dict[str, Recorder]]:
    """Nodes with troubles of their own, all at once since each takes its time; only asked, never changed."""
    directory = tmp_path_factory.mktemp("nodes")
    (directory / "faults.yaml").write_text(FAULTS)
    (directory / "hangs.yaml").write_text(HANGS)
    (directory / "reloads.yaml").write_text(RELOADS)
    (directory / "faults").mkdir()
    (directory / "faults" / "agent.json").write_text("{ half a jour")
    (directory / "file").write_text("")
    nowhere = str(directory / "nowhere.sock")
    with contextlib.ExitStack() as stack:
        agents = {
            "faults": Agent(
                directory / "faults", "--simulate", "l40sx4", "--scenario", str(directory / "faults.yaml")
            ),
            "hangs": Agent(
                directory / "hangs", "--simulate", "l40sx4", "--scenario", str(directory / "hangs.yaml"),
                "--hang-seconds", "1", "--api-server", "off", "--observer-namespaces", "monitoring",
                state_file=directory / "file" / "agent.json",
            ),
            "no kubelet": Agent(
                directory / "k", "--simulate", "l40sx4", "--scenario", str(directory / "reloads.yaml"),
                "--pod-resources-socket", nowhere,
            ),
            "no nvml": Agent(
                directory / "n", "--nvml-library", "/nonexistent.so", "--pod-resources-socket", nowhere,
                "--api-server", "off",
            ),
        }
        for agent in agents.values():
            stack.enter_context(agent)
        with ThreadPoolExecutor(len(agents)) as pool:
            list(pool.map(Agent.wait_served, agents.values()))
        yield {name: stack.enter_context(Recorder(agent)) for name, agent in agents.items()}


def _up(scrape: Scrape) -> dict[str, float]:
    return scrape.by("gpu", "gpu_up")


def test_a_pod_shows_within_two_seconds(nodes: dict[str, Recorder]) -> None:
    node = nodes["faults"]
    at = node.first(lambda scrape: scrape.find("gpu_allocation_info", pod="late", resourceclaim="late-gpu"))
    assert node.agent.spawned + LATE_POD <= at <= node.agent.served + LATE_POD + 2.0


def test_an_xid_shows_within_two_seconds_and_in_its_holders_account(nodes: dict[str, Recorder]) -> None:
    node = nodes["faults"]
    at = node.first(lambda scrape: scrape.value("gpu_xid_errors_total", gpu="1", xid="31") == 1)
    assert node.agent.spawned + XID <= at <= node.agent.served + XID + 2.0
    node.first(
        lambda scrape: scrape.value("dra_claim_gpu_xid_errors_total", resourceclaim="job-gpu", xid="31") == 1
    )


def test_a_lost_gpu_is_down_alone_and_comes_back(nodes: dict[str, Recorder]) -> None:
    node = nodes["faults"]
    all_up = {"0": 1.0, "1": 1.0, "2": 1.0, "3": 1.0}
    lost = all_up | {"0": 0.0}
    before = node.first(lambda scrape: _up(scrape) == all_up)
    gone = node.first(lambda scrape: _up(scrape) == lost and not scrape.find("gpu_power_watts", gpu="0"), after=before)
    back = node.first(lambda scrape: _up(scrape) == all_up and scrape.find("gpu_power_watts", gpu="0"), after=gone)
    assert back >= node.agent.spawned + LOST + LOST_SECONDS
    for at, scrape in node.scrapes():
        if before < at <= back:
            assert {gpu: up for gpu, up in _up(scrape).items() if gpu != "0"} == {"1": 1.0, "2": 1.0, "3": 1.0}
            if _up(scrape)["0"] == 0:
                assert scrape.find("gpu_power_watts", gpu="0") == []


def test_a_hang_costs_one_gpu(nodes: dict[str, Recorder]) -> None:
    node = nodes["hangs"]
    hung = node.first(lambda scrape: scrape.value("claimscope_agent_sampler_restarts_total", reason="hang"))
    settled = node.first(
        lambda scrape: scrape.value("claimscope_agent_quarantined_devices") == 1
        and _up(scrape) == {"0": 1.0, "1": 1.0, "2": 0.0, "3": 1.0},
        after=hung,
    )
    assert settled <= node.agent.served + HANG + 10.0
    assert node.failures == []
    assert node.longest_seconds < 1.0
    assert node.agent.until_ready().endswith("\nready\n")


def test_an_observer_is_known_by_its_claim_or_its_namespace(nodes: dict[str, Recorder]) -> None:
    """One node has an API server that says adminAccess; the other has none and was given the namespace."""
    for name in ("faults", "hangs"):
        node = nodes[name]
        node.first(lambda scrape: scrape.find("gpu_allocation_info", resourceclaim="job-gpu"))
        for _, scrape in node.scrapes():
            assert scrape.find("gpu_allocation_info", namespace="monitoring") == [], name
        everything = node.agent.scrape()
        assert [sample for sample in everything.samples if sample.labels.get("namespace") == "monitoring"] == [], name


def test_without_an_api_server_claims_have_accounts(nodes: dict[str, Recorder]) -> None:
    node = nodes["hangs"]
    assert node.agent.until(lambda scrape: scrape.value("dra_claim_gpu_energy_joules_total", resourceclaim="job-gpu"))
    assert node.agent.scrape().find("claimscope_agent_attribution_errors_total") == []


def _gets_old(node: Recorder, family: str, **labels: str) -> None:
    """What never worked counts from the first attempt on, so that alerts see its age."""
    began = {found for _, scrape in node.scrapes() if (found := scrape.value(family, **labels)) is not None}
    assert len(began) == 1
    assert 0 < time.time() - began.pop() < 600


def test_a_journal_that_cannot_be_written_is_said(nodes: dict[str, Recorder]) -> None:
    node = nodes["hangs"]
    node.first(lambda scrape: scrape.value("claimscope_agent_journal_writes_total", result="error"))
    _gets_old(node, "claimscope_agent_journal_last_success_timestamp_seconds")
    assert node.agent.log.count("cannot write the journal") == 1
    assert "Not a directory" in node.agent.log


def test_a_corrupt_journal_is_kept_aside(nodes: dict[str, Recorder]) -> None:
    agent = nodes["faults"].agent
    aside = agent.state_file.with_name("agent.json.corrupt-1")
    assert aside.read_text() == "{ half a jour"
    assert f"it is kept as {aside}" in agent.log


def test_without_a_kubelet_devices_are_served(nodes: dict[str, Recorder]) -> None:
    node = nodes["no kubelet"]
    node.first(lambda scrape: _up(scrape) == {"0": 1.0, "1": 1.0, "2": 1.0, "3": 1.0})
    node.first(
        lambda scrape: scrape.value(
            "claimscope_agent_attribution_errors_total", source="pod-resources", reason="socket_missing"
        )
    )
    _gets_old(node, "claimscope_agent_attribution_last_success_timestamp_seconds", source="pod-resources")
    ready = node.agent.until_ready()
    assert "[+] pod-resources: degraded: " in ready
    assert "nowhere.sock" in ready
    assert node.agent.scrape().find("gpu_allocation_info") == []


def test_a_driver_reload_is_down_and_not_gone(nodes: dict[str, Recorder]) -> None:
    node = nodes["no kubelet"]
    down = node.first(
        lambda scrape: scrape.value("claimscope_agent_nvml_up") == 0
        and _up(scrape) == {"0": 0.0, "1": 0.0, "2": 0.0, "3": 0.0}
        and not scrape.find("gpu_power_watts")
    )
    assert down >= node.agent.spawned + RELOAD
    node.first(
        lambda scrape: scrape.value("claimscope_agent_nvml_up") == 1
        and _up(scrape) == {"0": 1.0, "1": 1.0, "2": 1.0, "3": 1.0},
        after=down,
    )


def test_without_nvml_it_lives_and_says_what_to_do(nodes: dict[str, Recorder]) -> None:
    agent = nodes["no nvml"].agent
    agent.until(lambda scrape: scrape.value("claimscope_agent_nvml_up") == 0)
    assert agent.get("/livez").status == 200
    ready = agent.until_ready(503)
    assert "[-] sampler: no usable NVML library at /nonexistent.so: " in ready
    assert "--nvml-library" in ready
    assert ready.endswith("\nnot ready\n")
    assert agent.scrape().find("gpu_up") == []


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory, cc: str) -> Iterator[Agent]:
    """An agent whose sampler is stopped, killed and told to let go; every test leaves it ready."""
    with Agent(tmp_path_factory.mktemp("agent"), "--simulate", "l40sx4", "--hang-seconds", "1") as agent:
        agent.wait_served().until_ready()
        yield agent


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGSTOP, "stopped"), (signal.SIGKILL, "crash")], ids=["stopped", "killed"]
)
def test_a_sampler_that_goes_is_replaced(agent: Agent, number: signal.Signals, reason: str) -> None:
    agent.until_ready()
    before = agent.sampler_pid()
    os.kill(before, number)
    agent.until(lambda scrape: scrape.value("claimscope_agent_sampler_restarts_total", reason=reason) == 1)
    assert agent.sampler_pid(other_than=before) != before
    last = agent.scrape().value("claimscope_agent_sampler_last_window_timestamp_seconds")
    assert last is not None
    agent.until(
        lambda scrape: (scrape.value("claimscope_agent_sampler_last_window_timestamp_seconds") or 0) > last
        and scrape.value("claimscope_agent_sampler_up") == 1
        and _up(scrape) == {"0": 1.0, "1": 1.0, "2": 1.0, "3": 1.0}
    )
    agent.until_ready()


def test_nvml_is_let_go_and_taken_up_again(agent: Agent) -> None:
    agent.until_ready()
    assert agent.nvml("release") == "NVML is being let go; `claimscope nvml acquire` takes it up again\n"
    agent.until(
        lambda scrape: scrape.value("claimscope_agent_nvml_released") == 1
        and set(_up(scrape).values()) == {0.0}
        and not scrape.find("gpu_power_watts")
    )
    assert "NVML is released on request" in agent.until_ready(503)
    agent.nvml("acquire")
    agent.until(
        lambda scrape: scrape.value("claimscope_agent_nvml_released") == 0 and set(_up(scrape).values()) == {1.0}
    )
    agent.until_ready()


def test_a_burst_samples_faster_and_ends(agent: Agent) -> None:
    agent.until_ready()
    usual = agent.until(lambda scrape: scrape.value("claimscope_agent_sampler_hz"))
    assert usual == 10
    assert agent.nvml("burst", "--hz", "50", "--seconds", "2") == "sampling at 50 Hz for 2 s\n"
    agent.until(lambda scrape: scrape.value("claimscope_agent_sampler_hz") == 50)
    agent.until(lambda scrape: scrape.value("claimscope_agent_sampler_hz") == 10)


def test_accounts_go_on_after_a_restart(tmp_path: Path, cc: str) -> None:
    def energy(scrape: Scrape) -> float | None:
        return scrape.value("dra_claim_gpu_energy_joules_total", resourceclaim="chat-gpu")

    with Agent(tmp_path, "--simulate", "l40sx4") as agent:
        agent.wait_served()
        before = agent.until(lambda scrape: (energy(scrape) or 0) > 100 and energy(scrape))
        assert before is not None
    with Agent(tmp_path, "--simulate", "l40sx4") as agent:
        agent.wait_served()
        first = agent.until(energy)
        assert first is not None
        assert first >= before
        agent.until(lambda scrape: (energy(scrape) or 0) > first)
        agent.until(lambda scrape: (scrape.value("claimscope_agent_unobserved_seconds_total") or 0) > 0)
