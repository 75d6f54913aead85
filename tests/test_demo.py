"""The demo's configuration, and its agents as parts of one simulated cluster."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from pathlib import Path

import aiohttp
import msgspec
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import taints_bench
from claimscope import demo
from claimscope.agent.wiring import run as run_agent
from claimscope.claims.drift import DEVICES_ANNOTATION, DevicesEntry
from claimscope.clock import SystemClock
from claimscope.config import PROFILES, Config
from claimscope.model import Device, Entity, Inventory, Snapshot, Window
from claimscope.node import device_entries
from claimscope.sim import demo_files, layout, questions
from claimscope.sim.api.kinds import LEASES
from claimscope.sim.cluster import SimulatedCluster
from claimscope.sim.profiles import profile_named
from claimscope.sim.scenario import check_scenario, decode_scenario
from claimscope.taints.model import Mode
from simulated_reasons import REASONS


def test_prometheus_scrapes_every_agent_and_the_controller() -> None:
    agents = (
        demo_files.Agent(node="demo-node-1", profile="h100x8", port=19400),
        demo_files.Agent(node="demo-node-2", profile="h100x8", port=19402),
    )
    assert yaml.safe_load(demo_files.prometheus_config(agents, 19401))["scrape_configs"] == [
        {
            "job_name": "claimscope-agent",
            "static_configs": [
                {"targets": ["127.0.0.1:19400"], "labels": {"node": "demo-node-1"}},
                {"targets": ["127.0.0.1:19402"], "labels": {"node": "demo-node-2"}},
            ],
        },
        {"job_name": "claimscope-controller", "static_configs": [{"targets": ["127.0.0.1:19401"]}]},
    ]


def test_reasons_are_counted_without_a_prometheus() -> None:
    text = "# TYPE dra_claim_pending_reason gauge\n" + "".join(
        f'dra_claim_pending_reason{{pod="{pod}",reason="{reason}"}} 1\n'
        for pod, reason in (("a", "quota"), ("b", "tainted"), ("c", "quota"))
    )
    assert questions.reasons_of(text) == [f"{'quota':44} {2:8} claims", f"{'tainted':44} {1:8} claims"]


def test_the_profile_is_that_of_the_first_node() -> None:
    assert demo.nodes_of("b200x8") == (
        ("demo-node-1", "b200x8"), ("demo-node-2", "h100x8"), ("demo-node-3", "a100x8-mig"),
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_what_the_demo_plays_can_be_played_on_every_profile(profile: str) -> None:
    scenario = decode_scenario(demo.scenario_of(profile))
    check_scenario(scenario, profile_named(profile), layout.FUNCTIONS)
    assert [type(fault).__name__ for fault in scenario.faults] == ["XidFault", "RecoveryActionFault"]


async def test_the_demo_shows_the_first_taint_and_how_to_ask_about_it() -> None:
    lines: list[str] = []
    async with taints_bench.serving(Mode.ANNOUNCE) as bench:
        await bench.says("node-1", taints_bench.finding("GPU-1-3"))
        await bench.leader.round()
        await demo.show_fence(bench.server.url, "bin/claimscope", lines.append)
        url = bench.server.url
    assert lines[:4] == [
        "\nA GPU that broke after 15 s: announced, and fenced by a controller with --taint-mode=enforce",
        f"  bin/claimscope explain gpu GPU-1-3 --api-server-url {url}",
        "    GPU-1-3 on node node-1: gpu.nvidia.com/node-1/gpu-3",
        "    tainted claimscope.io/unhealthy=xid_fatal, effect None: announced, new work may still get it",
    ]
    assert "    not fenced: the mode is announce (xid_fatal, mode)" in lines
    assert lines[-1] == "  condition GPUUnhealthy of node node-1: 1 GPU: GPU-1-3 (xid_fatal)"


def test_a_port_is_neither_taken_nor_promised_to_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert demo.free_port(port, {port + 1}) not in (port, port + 1)


async def test_a_scenario_that_cannot_be_read_ends_the_demo_with_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    with pytest.raises(demo.DemoError, match=f"cannot read the scenario file {missing}: No such file or directory"):
        await demo.run(profile="h100x8", scenario=str(missing), seconds=1, say=lambda _: None)


def test_what_should_be_alike_among_nodes_is_counted_by_kind() -> None:
    def gpu(number: int, vbios: str) -> Device:
        return Device(
            entity=Entity(uuid=f"GPU-{number}", gpu=number), minor=number, pci_bus_id=None, model="H100",
            identity={"vbios_version": vbios},
        )

    def window(uuid: str, **last: float) -> Window:
        return Window(
            entity=uuid, session=1, epoch=1, start_ns=0, end_ns=1, end_wall_ns=1, ticks=1, last=last
        )

    mig = Device(entity=Entity(uuid="MIG-1", parent="GPU-0", gpu=0), minor=None, pci_bus_id=None, model="H100")
    snapshot = Snapshot(
        node="n", wall_ns=0, monotonic_ns=0,
        inventory=Inventory(
            session=1, epoch=1, driver_version="580.95.05", nvml_version=None, cuda_version=None,
            devices=(gpu(0, "96"), gpu(1, "96"), gpu(2, "97"), mig),
        ),
        windows={
            "GPU-0": window("GPU-0", mig_mode_enabled=1.0, ecc_mode_enabled=1.0, power_limit_enforced=700.0),
            "GPU-1": window("GPU-1", mig_mode_enabled=1.0, ecc_mode_enabled=1.0, power_limit_enforced=700.0),
            "GPU-2": window("GPU-2", ecc_mode_enabled=0.0),
        },
    )
    assert device_entries(snapshot) == [
        DevicesEntry(
            model="H100", count=2, driver_version="580.95.05", vbios_version="96", mig_mode="enabled",
            ecc_mode="enabled", power_limit_watts=700.0,
        ),
        DevicesEntry(model="H100", count=1, driver_version="580.95.05", vbios_version="97", ecc_mode="disabled"),
    ]


async def test_an_agent_of_a_cluster_shows_that_it_lives_and_what_its_gpus_are(cc: str, tmp_path: Path) -> None:
    del cc  # the simulated library is compiled
    nodes = (("one", "a100x8-mig"),)
    async with SimulatedCluster.open(nodes, clock=SystemClock()) as cluster:
        config = Config(
            simulate="a100x8-mig", node_name="one", api_server_url=cluster.url, lease_namespace="monitoring",
            simulation_start_monotonic_ns=cluster.start_monotonic_ns, web_listen_address="127.0.0.1:0",
            state_file=str(tmp_path / "agent.json"), control_socket="",
        )
        agent = asyncio.create_task(run_agent(config, {}))
        try:
            lease = await asyncio.wait_for(_lease(cluster, agent), 30)
        finally:
            agent.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await agent
    assert lease["metadata"]["labels"]["app.kubernetes.io/component"] == "agent"
    assert lease["metadata"]["annotations"]["claimscope.io/node"] == "one"
    entries = msgspec.json.decode(lease["metadata"]["annotations"][DEVICES_ANNOTATION], type=list[DevicesEntry])
    assert sorted((entry.model, entry.count, entry.driver_version, entry.mig_mode) for entry in entries) == [
        ("NVIDIA A100-SXM4-40GB", 2, "550.163.01", "enabled"),
        ("NVIDIA A100-SXM4-40GB", 6, "550.163.01", "disabled"),
    ]


async def _lease(cluster: SimulatedCluster, agent: asyncio.Task[None]) -> dict[str, dict[str, dict[str, str]]]:
    """The agent's Lease once it says how every GPU is set; the modes come with the first slow reading."""
    while True:
        lease = cluster.server.get(LEASES, "claimscope-agent-one", "monitoring")
        if lease is not None and '"mig_mode"' in lease["metadata"]["annotations"].get(DEVICES_ANNOTATION, ""):
            return lease
        if agent.done():
            await agent
        await asyncio.sleep(0.05)


async def test_the_controller_serves_the_cause_that_was_set_up_for_each_pod() -> None:
    address = f"127.0.0.1:{demo.free_port(19460)}"
    async with SimulatedCluster.open(clock=SystemClock()) as cluster:
        controller = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "claimscope", "controller", "--api-server-url", cluster.url,
            "--web-listen-address", address, "--log-level", "warning",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )
        try:
            found = await asyncio.wait_for(_reasons(f"http://{address}/metrics", controller), 30)
        finally:
            if controller.returncode is None:
                controller.terminate()
            _, said = await controller.communicate()
    assert found == {pod: reason.value for pod, reason in REASONS.items()}
    assert said.decode() == ""


# Of short jobs that come and go meanwhile, and of what is not yet judged.
_ON_THEIR_WAY = ("scheduling", "preparing", "unknown", "not_retried")


async def _reasons(url: str, controller: asyncio.subprocess.Process) -> dict[str, str]:
    """Pods that wait, by cause, as soon as all of them are judged; those on their way are left out."""
    settled: dict[str, str] = {}
    async with aiohttp.ClientSession() as web:
        while len(settled) < len(REASONS) and controller.returncode is None:
            await asyncio.sleep(0.1)
            with contextlib.suppress(aiohttp.ClientError):
                async with web.get(url) as response:
                    text = await response.text()
                found = {
                    f"{sample.labels['namespace']}/{sample.labels['pod']}": sample.labels["reason"]
                    for family in text_string_to_metric_families(text)
                    for sample in family.samples
                    if sample.name == "dra_claim_pending_reason"
                }
                settled = {
                    pod: reason
                    for pod, reason in found.items()
                    if reason not in _ON_THEIR_WAY and (pod in REASONS or reason != "claim_not_created")
                }
    return settled
