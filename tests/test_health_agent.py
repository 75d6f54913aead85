"""What a node's agent says of the health of its GPUs: the real process, faults played by the simulation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent_process import Agent, Recorder, Scrape, claimscope, until
from claimscope.health.report import FINDINGS_ANNOTATION, LeaseFindings
from claimscope.sim.api.kinds import ALL_KINDS
from claimscope.sim.api.server import SimApiServer

XID, LINK_DOWN = 8.0, 14.0  # seconds of the simulation
FAULTS = f"""
faults:
  - {{kind: xid, at: {XID}, gpu: 1, code: 79}}
  - {{kind: xid, at: 5, gpu: 2, code: 31}}
  - {{kind: xid, at: 5.2, gpu: 2, code: 13}}
  - {{kind: xid, at: 5.4, gpu: 2, code: 43}}
  - {{kind: xid, at: 5.6, gpu: 2, code: 45}}
  - {{kind: ecc, at: 5, gpu: 3}}
  - {{kind: nvlink_down, at: {LINK_DOWN}, gpu: 4, link: 3}}
  - {{kind: lost, at: 6, gpu: 5, xid: null}}
  - {{kind: recovery_action, at: 6, gpu: 6, action: 2}}
"""
QUICK = """
startup_grace_seconds: 1
boot_grace_seconds: 0
nvlink_down_seconds: 2
gpu_lost_seconds: 2
"""
REMAP = """
faults:
  - {kind: ecc, at: 3, gpu: 0}
  - {kind: xid, at: 3, gpu: 1, code: 95}
"""
WAITS = "row_remap_pending_seconds: 3600\nverdict_wait_seconds: 3600\n"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, cc: str) -> Iterator[dict[str, Recorder]]:
    """Nodes with troubles of their own, all at once since each takes its time."""
    directory = tmp_path_factory.mktemp("health")
    for name, text in (
        ("faults.yaml", FAULTS), ("quick.yaml", QUICK), ("remap.yaml", REMAP), ("waits.yaml", WAITS), ("kmsg", ""),
    ):  # fmt: skip
        (directory / name).write_text(text)
    with contextlib.ExitStack() as stack:
        agents = {
            "faults": Agent(
                directory / "faults", "--simulate", "h100x8", "--scenario", str(directory / "faults.yaml"),
                "--health-thresholds", str(directory / "quick.yaml"),
            ),
            "remap": Agent(
                directory / "remap", "--simulate", "l40sx4", "--scenario", str(directory / "remap.yaml"),
                "--health-thresholds", str(directory / "waits.yaml"), "--kernel-log", str(directory / "kmsg"),
            ),
            "off": Agent(
                directory / "off", "--simulate", "l40sx4", "--health", "off", "--kernel-log", str(directory / "none"),
            ),
            "no log": Agent(
                directory / "nolog", "--simulate", "l40sx4", "--kernel-log", str(directory / "none"),
            ),
        }  # fmt: skip
        for agent in agents.values():
            stack.enter_context(agent)
        with ThreadPoolExecutor(len(agents)) as pool:
            list(pool.map(Agent.wait_served, agents.values()))
        yield {name: stack.enter_context(Recorder(agent)) for name, agent in agents.items()}


def _states(scrape: Scrape) -> dict[str, str]:
    """GPU -> the state that is 1; each has all four and one of them is 1."""
    found: dict[str, str] = {}
    for gpu in {sample.labels["gpu"] for sample in scrape.find("gpu_health")}:
        states = {sample.labels["state"]: sample.value for sample in scrape.find("gpu_health", gpu=gpu)}
        assert set(states) == {"ok", "degraded", "unhealthy", "lost"}
        (found[gpu],) = (state for state, value in states.items() if value == 1)
        assert sum(states.values()) == 1
    return found


def _findings(scrape: Scrape) -> set[tuple[str, str, str]]:
    """(GPU, rule, severity)."""
    return {
        (sample.labels["gpu"], sample.labels["rule"], sample.labels["severity"])
        for sample in scrape.find("gpu_health_finding_info")
    }


def test_a_gpu_that_fell_off_the_bus_is_lost_within_two_seconds_alone(nodes: dict[str, Recorder]) -> None:
    node = nodes["faults"]
    at = node.first(lambda scrape: _states(scrape).get("1") == "lost" and ("1", "xid_lost", "lost") in
                    _findings(scrape))
    assert node.agent.spawned + XID <= at <= node.agent.served + XID + 2.0
    for _, scrape in node.scrapes():
        assert {gpu for gpu, rule, _ in _findings(scrape) if rule == "xid_lost"} <= {"1"}
    scrape = node.agent.scrape()
    assert scrape.value("gpu_health_findings_total", gpu="1", severity="lost") == 1
    assert scrape.value("gpu_health_findings_total", gpu="0", severity="lost") == 0
    assert scrape.value("claimscope_agent_rule_state", rule="xid_lost", state="latched") == 1
    assert scrape.value("claimscope_agent_rule_state", rule="xid_lost", state="ok") == 7
    since = scrape.value("gpu_health_finding_since_timestamp_seconds", gpu="1", rule="xid_lost")
    assert since == pytest.approx(time.time() - (time.monotonic() - at), abs=3.0)
    assert node.agent.log.count("xid_lost (lost) fired") == 1


def test_every_fault_of_the_simulation_is_found_on_its_gpu(nodes: dict[str, Recorder]) -> None:
    node = nodes["faults"]
    wanted = {
        ("1", "xid_lost", "lost"),
        ("3", "row_remap_pending", "degraded"),
        ("3", "recovery_action", "unhealthy"),
        ("3", "ecc_uncorrected_dram", "unhealthy"),
        ("4", "nvlink_down", "unhealthy"),  # it leads to an NVSwitch
        ("5", "gpu_lost", "lost"),
        ("6", "recovery_action_reboot", "unhealthy"),
    }
    node.first(lambda scrape: _findings(scrape) >= wanted, 45.0)
    scrape = node.agent.scrape()
    others = {gpu for gpu, _, _ in _findings(scrape)} - {"1", "3", "4", "5", "6"}
    assert others == set()
    assert {gpu for gpu, state in _states(scrape).items() if state == "ok"} == {"0", "2", "7"}


def test_xids_of_applications_raise_nothing(nodes: dict[str, Recorder]) -> None:
    node = nodes["faults"]
    node.first(lambda scrape: scrape.by("xid", "gpu_xid_errors_total", gpu="2").keys() >= {"31", "13", "43", "45"})
    node.first(lambda scrape: ("1", "xid_lost", "lost") in _findings(scrape))
    for _, scrape in node.scrapes():
        assert [finding for finding in _findings(scrape) if finding[0] == "2"] == []


def test_evidence_is_in_json_and_on_the_page(nodes: dict[str, Recorder]) -> None:
    node = nodes["faults"]
    node.first(lambda scrape: ("1", "xid_lost", "lost") in _findings(scrape))
    document = json.loads(node.agent.get("/api/v1/health").body)
    device = document["devices"][1]
    (finding,) = device["findings"]
    assert (device["gpu"], device["severity"], device["serial"]) == (1, "lost", "1650900800002")
    assert {key: finding[key] for key in ("rule", "severity", "state", "systemic", "clears")} == {
        "rule": "xid_lost", "severity": "lost", "state": "latched", "systemic": False,
        "clears": "A reboot, with no recovery action left afterwards.",
    }  # fmt: skip
    assert finding["evidence"]["xid"] == "79"
    assert "pod" not in finding["evidence"]  # two pods use it, and the event does not say which
    assert device["rules"]["xid_lost"] == "latched"
    assert "imex_domain" in document["not_judged"]
    page = node.agent.get("/").text
    assert "<h2>Findings</h2>" in page
    assert page.index("The GPU fell off the bus (XID 79)") < page.index("<h2>Devices</h2>")
    assert '<span class="tag bad">lost</span>' in page


def test_the_command_line_lists_and_acknowledges(nodes: dict[str, Recorder]) -> None:
    node = nodes["faults"]
    node.first(lambda scrape: ("6", "recovery_action_reboot", "unhealthy") in _findings(scrape))
    socket = ("--control-socket", str(node.agent.control_socket))
    listed = claimscope("health", "list", *socket)
    assert listed.returncode == 0
    assert "unhealthy: The driver wants the node to be rebooted (recovery_action_reboot, firing)" in listed.stdout
    uuid = json.loads(node.agent.get("/api/v1/health").body)["devices"][0]["uuid"]
    refused = claimscope("health", "ack", uuid, "xid_lost", *socket)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"claimscope: nothing stands against {uuid}; there are GPU-")


def test_a_finding_ends_by_acknowledgement_and_thresholds_change_while_it_runs(nodes: dict[str, Recorder]) -> None:
    node = nodes["remap"]
    thresholds = node.agent.state_file.parent.parent / "waits.yaml"
    node.first(lambda scrape: scrape.value("claimscope_agent_rule_state", rule="row_remap_pending", state="pending"))
    for _, scrape in node.scrapes():
        assert not any(rule == "row_remap_pending" for _, rule, _ in _findings(scrape))

    thresholds.write_text("row_remap_pending_seconds: 1\nnvlink_down_secnds: 3\n")
    node.first(lambda scrape: scrape.value("claimscope_agent_thresholds_up") == 0)
    assert f"what was in force before stays: {thresholds}:2:1: health thresholds: nvlink_down_secnds: there is no " \
        "such threshold; did you mean nvlink_down_seconds?" in node.agent.log
    assert not any(rule == "row_remap_pending" for _, rule, _ in _findings(node.agent.scrape()))

    thresholds.write_text("row_remap_pending_seconds: 1\n")
    node.first(lambda scrape: ("0", "row_remap_pending", "degraded") in _findings(scrape))
    assert node.agent.scrape().value("claimscope_agent_thresholds_up") == 1

    uuid = json.loads(node.agent.get("/api/v1/health").body)["devices"][0]["uuid"]
    done = claimscope(
        "health", "ack", uuid, "row_remap_pending", "--control-socket", str(node.agent.control_socket)
    )
    assert (done.returncode, done.stdout) == (
        0, f"row_remap_pending of {uuid} is over; new evidence brings it back. The driver still asks for gpu_reset: as "
        "long as it does, the device is not fit for work\n"
    )  # fmt: skip
    assert f"health of {uuid}: row_remap_pending (degraded) acknowledged" in node.agent.log


def test_the_kernel_log_tells_what_nvml_does_not(nodes: dict[str, Recorder]) -> None:
    node = nodes["remap"]
    log = node.agent.state_file.parent.parent / "kmsg"
    node.first(lambda scrape: scrape.value("claimscope_agent_kernel_log_up") == 1)
    node.first(lambda scrape: scrape.find("gpu_allocation_info", pod="render-farm"))
    scrape = node.agent.scrape()
    (info,) = scrape.find("gpu_info", gpu="2")
    bus = info.labels["pci_bus_id"].removesuffix(".0")
    assert scrape.value("claimscope_agent_kernel_log_records_total") == 0
    with log.open("a") as file:
        file.write(f"12,90,1000000,-;NVRM: Xid (PCI:{bus}): 64, a process wrote this\n")
        file.write(f"4,91,1000001,-;NVRM: Xid (PCI:{bus}): 79, pid='4711', name=train, GPU has fallen off the bus.\n")
        file.write("6,92,1000002,-;usb 1-1: new device\n4,93,10000")
    node.first(lambda scrape: ("2", "xid_lost", "lost") in _findings(scrape))
    scrape = node.agent.scrape()
    assert {finding for finding in _findings(scrape) if finding[0] == "2"} == {("2", "xid_lost", "lost")}
    assert scrape.value("claimscope_agent_kernel_log_records_total") == 3
    assert scrape.value("claimscope_agent_kernel_log_ignored_total") == 1
    (finding,) = json.loads(node.agent.get("/api/v1/health").body)["devices"][2]["findings"]
    assert (finding["evidence"]["pid"], finding["evidence"]["process"]) == ("4711", "train")
    assert finding["evidence"]["pod"] == "legacy/render-farm"
    assert "fallen off the bus" in finding["evidence"]["line"]


def test_a_kernel_log_that_is_not_there_costs_nothing_else(nodes: dict[str, Recorder]) -> None:
    node = nodes["no log"]
    node.first(lambda scrape: scrape.by("gpu", "gpu_up") == {"0": 1.0, "1": 1.0, "2": 1.0, "3": 1.0})
    node.first(lambda scrape: scrape.value("claimscope_agent_kernel_log_up") == 0)
    assert _states(node.agent.scrape()) == {"0": "ok", "1": "ok", "2": "ok", "3": "ok"}
    assert node.agent.log.count("the kernel log is not read: ") == 1
    assert "none is not there: mount it from the host" in node.agent.log


def test_health_that_is_off_says_nothing(nodes: dict[str, Recorder]) -> None:
    node = nodes["off"]
    node.first(lambda scrape: scrape.by("gpu", "gpu_up") == {"0": 1.0, "1": 1.0, "2": 1.0, "3": 1.0})
    scrape = node.agent.scrape()
    assert [sample for sample in scrape.samples if "health" in sample.name or "rule" in sample.name] == []
    answer = node.agent.get("/api/v1/health")
    assert answer.status == 503
    assert json.loads(answer.body) == {
        "error": "nothing is known of the devices' health: --health is off, or NVML has not answered yet"
    }


def test_a_finding_survives_a_restart(tmp_path: Path, cc: str) -> None:
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text("faults:\n  - {kind: xid, at: 64, gpu: 1, code: 79, every: 5}\n")
    began_ns = time.monotonic_ns() - 60_000_000_000
    arguments = (
        "--simulate", "l40sx4", "--scenario", str(scenario), "--simulation-start-monotonic-ns", str(began_ns),
    )  # fmt: skip

    def since(scrape: Scrape) -> float | None:
        return scrape.value("gpu_health_finding_since_timestamp_seconds", gpu="1", rule="xid_lost")

    with Agent(tmp_path / "agent", *arguments) as agent:
        agent.wait_served()
        before = agent.until(since)
        until(lambda: b"xid_lost" in agent.state_file.read_bytes(), 5.0, lambda: agent.log)  # long before the end
    with Agent(tmp_path / "agent", *arguments) as agent:
        agent.wait_served()
        assert agent.until(since) == before
        assert agent.scrape().value("gpu_health_findings_total", gpu="1", severity="lost") == 0  # none began since
        assert "fired" not in agent.log


def test_a_journal_whose_part_about_health_is_broken_keeps_the_accounts(tmp_path: Path, cc: str) -> None:
    (tmp_path / "agent.json").write_text('{"version":1,"unobserved_seconds":7.5,"health":{"engine":[]}}')
    with Agent(tmp_path, "--simulate", "l40sx4") as agent:
        agent.wait_served()
        agent.until(lambda scrape: _states(scrape) == {"0": "ok", "1": "ok", "2": "ok", "3": "ok"})
        assert (agent.scrape().value("claimscope_agent_unobserved_seconds_total") or 0) >= 7.5
        assert agent.log.count("the journal's part about health is not usable, findings start anew") == 1


@pytest.fixture
def api_url() -> Iterator[str]:
    """A simulated API server in a thread."""
    urls: list[str] = []
    started, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        server = SimApiServer(ALL_KINDS)
        await server.start()
        urls.append(server.url)
        started.set()
        await stop.wait()
        await server.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(10)
    yield urls[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


def test_the_lease_tells_the_controller(tmp_path: Path, cc: str, api_url: str) -> None:
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text("faults:\n  - {kind: xid, at: 8, gpu: 1, code: 79, every: 5}\n")
    url = f"{api_url}/apis/coordination.k8s.io/v1/namespaces/monitoring/leases/claimscope-agent-node-a"

    def told() -> LeaseFindings | None:
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                lease: dict[str, Any] = json.loads(reply.read())
        except urllib.error.HTTPError as error:
            error.close()
            return None
        return msgspec.json.decode(lease["metadata"]["annotations"][FINDINGS_ANNOTATION], type=LeaseFindings)

    def finding_told() -> LeaseFindings | None:
        found = told()
        return found if found is not None and found.findings else None

    with Agent(
        tmp_path / "agent", "--simulate", "l40sx4", "--scenario", str(scenario), "--api-server-url", api_url,
        "--lease-namespace", "monitoring",
    ) as agent:  # fmt: skip
        agent.wait_served()
        nothing = until(told, 15.0, lambda: agent.log)
        assert nothing is not None
        assert nothing.findings == ()
        found = until(finding_told, 15.0, lambda: agent.log)
        assert found is not None
        (finding,) = found.findings
        (shown,) = agent.until(lambda scrape: scrape.find("gpu_health_finding_info", gpu="1"))
        uuid = shown.labels["uuid"]
        assert (finding.uuid, finding.rule, finding.severity, finding.state) == (uuid, "xid_lost", "lost", "latched")
        assert finding.evidence["xid"] == "79"
        assert finding.clears == "A reboot, with no recovery action left afterwards."
        assert finding.serial != ""
        assert found.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert found.omitted == 0
