"""Does the example for Alertmanager send each alert where it belongs?"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from alerts.__main__ import HERE
from alerts.table import alerts

from claimscope.health.rules import RULE_BY_KEY

CONFIG = HERE / "alertmanager.yml"
KNOWN_OF_OTHERS = {"KubeNodeNotReady"}


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        ("alertname=DRAWatchdog component=dra severity=none owner=platform", "watchdog"),
        ("alertname=DRAClaimPendingTooLong component=dra severity=warning owner=workload namespace=ml",
         "workload-owners"),
        ("alertname=DRAClaimPendingTooLong component=dra severity=warning owner=workload namespace=ml-research",
         "ml-research"),
        ("alertname=DRAClaimIdle component=dra severity=info owner=workload namespace=ml", "dashboards"),
        ("alertname=DRADeviceFailed component=dra severity=warning owner=fleet node=n1", "gpu-fleet"),
        ("alertname=DRADeviceXid component=dra severity=info owner=fleet node=n1", "dashboards"),
        ("alertname=DRATaintBreakerOpen component=dra severity=critical owner=fleet", "page"),
        ("alertname=DRAControllerDown component=dra severity=critical owner=platform", "page"),
        ("alertname=DRADeviceClassExhausted component=dra severity=warning owner=platform", "platform"),
        ("alertname=KubePodCrashLooping severity=warning", "tickets"),
    ],
)  # fmt: skip
def test_routes(amtool: str, labels: str, receiver: str) -> None:
    done = subprocess.run(
        [amtool, "config", "routes", "test", f"--config.file={CONFIG}", f"--verify.receivers={receiver}",
         *labels.split()],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, receiver)


def test_amtool_accepts_it(amtool: str) -> None:
    done = subprocess.run([amtool, "check-config", str(CONFIG)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Receivers:
    """What each receiver of the example was sent."""

    def __init__(self) -> None:
        self.sent: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
        self.changed = asyncio.Event()

    async def take(self, request: web.Request) -> web.Response:
        self.sent[request.match_info["name"]].append((await request.json())["alerts"])
        self.changed.set()
        return web.Response()

    async def until(self, *names: str) -> None:
        while not {*names} <= {*self.sent}:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 20)

    async def until_told(self, name: str, times: int) -> None:
        while len(self.sent[name]) < times:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 20)


def hurried(config: Path, address: str) -> str:
    """The example with receivers of our own, that waits for the members of a group for a moment only."""
    text = re.sub(r"group_wait: \S+", "group_wait: 500ms", config.read_text())
    made = yaml.safe_load(text)
    for receiver in made["receivers"]:
        receiver["webhook_configs"] = [{"url": f"{address}/{receiver['name']}"}]
    return yaml.safe_dump(made)


@contextlib.asynccontextmanager
async def running(program: str, directory: Path, receivers: Receivers) -> AsyncIterator[str]:
    """The address of an Alertmanager with the example."""
    app = web.Application()
    app.router.add_post("/{name}", receivers.take)
    runner = web.AppRunner(app)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as free:
        await web.SockSite(runner, server).start()
        port = free.getsockname()[1]
        free.close()
        file = directory / "alertmanager.yml"
        file.write_text(hurried(CONFIG, f"http://127.0.0.1:{server.getsockname()[1]}"))
        process = await asyncio.create_subprocess_exec(
            program, f"--config.file={file}", f"--storage.path={directory}", "--cluster.listen-address=",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}/api/v2"
        finally:
            process.kill()
            await process.wait()
            await runner.cleanup()


async def post(session: aiohttp.ClientSession, url: str, found: list[dict[str, Any]]) -> None:
    """Tells of alerts, as soon as somebody listens."""
    for _ in range(200):
        with contextlib.suppress(aiohttp.ClientConnectionError):
            async with session.post(url, json=found) as response:
                assert response.status == 200
                return
        await asyncio.sleep(0.05)
    raise AssertionError(f"nobody listens at {url}")


async def test_a_job_of_512_gpus_in_trouble_is_one_notification_for_its_owner_and_one_a_node_for_the_fleet(
    alertmanager: str, tmp_path: Path
) -> None:
    job = {"component": "dra", "cluster": "east", "namespace": "ml", "workload_kind": "Job", "workload": "train"}
    nodes = [{"node": f"n{number // 8}", "uuid": f"GPU-{number}"} for number in range(64)]
    device = {"component": "dra", "cluster": "east", "severity": "warning", "owner": "fleet"}
    # Rules are evaluated one group after the other, and a GPU more fails with each round.
    rounds = [
        [{**job, "alertname": name, "severity": "warning", "owner": "workload"}
         for name in ("DRAClaimPendingTooLong", "DRAClaimMemoryNearlyFull", "DRAClaimStraggler")[: turn + 1]]
        + [{**device, **node, "alertname": name} for name in ("DRADeviceFailed", "DRADeviceNVLinkDown")
           for node in nodes[: 16 * (turn + 1)]]
        for turn in range(4)
    ]  # fmt: skip
    receivers = Receivers()
    async with running(alertmanager, tmp_path, receivers) as address, aiohttp.ClientSession() as session:
        for found in rounds[:3]:
            await post(session, f"{address}/alerts", [{"labels": labels} for labels in found])
        await receivers.until("workload-owners", "gpu-fleet")
        for _ in range(3):  # the next rounds come within the group's interval: nobody is told a second time
            await post(session, f"{address}/alerts", [{"labels": labels} for labels in rounds[3]])
        await receivers.until_told("gpu-fleet", 8)
        async with session.get(f"{address}/alerts", params={"active": "false", "inhibited": "true"}) as response:
            silent = {each["labels"]["alertname"] for each in await response.json()}
    told = {name: sorted(len(notification) for notification in sent) for name, sent in receivers.sent.items()}
    assert told == {"workload-owners": [3], "gpu-fleet": [8] * 8}
    assert {each["labels"]["alertname"] for sent in receivers.sent["gpu-fleet"] for each in sent} == {"DRADeviceFailed"}
    assert silent == {"DRADeviceNVLinkDown"}


async def test_a_driver_that_is_broken_everywhere_and_an_outer_cause_are_two_pages(
    alertmanager: str, tmp_path: Path
) -> None:
    paged = {"component": "dra", "cluster": "east", "severity": "critical"}
    failing = next(alert for alert in alerts() if alert.name == "DRAPrepareFailing")
    found = [
        {**paged, "alertname": "DRAPrepareFailing", "owner": failing.owner, "driver": "gpu.nvidia.com"},
        {**paged, "alertname": "DRASystemicFinding", "owner": "fleet"},
        *({**paged, "alertname": "DRASystemicFindingGrave", "owner": "fleet", "rule": rule}
          for rule in ("thermal_shutdown", "thermal_margin")),
    ]  # fmt: skip
    receivers = Receivers()
    async with running(alertmanager, tmp_path, receivers) as address, aiohttp.ClientSession() as session:
        await post(session, f"{address}/alerts", [{"labels": labels} for labels in found])
        await receivers.until_told("page", 2)
        async with session.get(f"{address}/alerts", params={"active": "false", "inhibited": "true"}) as response:
            silent = {each["labels"]["alertname"] for each in await response.json()}
    assert sorted([each["labels"]["alertname"] for each in sent] for sent in receivers.sent["page"]) == [
        ["DRAPrepareFailing"], ["DRASystemicFindingGrave"] * 2,
    ]
    assert silent == {"DRASystemicFinding"}


def test_no_page_is_one_a_node() -> None:
    routes = yaml.safe_load(CONFIG.read_text())["route"]["routes"][1]["routes"]
    assert [route["group_by"] for route in routes if route["receiver"] == "page"] == [
        ["cluster", "alertname", "deviceclass"]
    ]


def test_the_example_of_a_scrape_knows_the_node_of_each_agent(promtool: str, tmp_path: Path) -> None:
    made = yaml.safe_load((HERE / "scrape.yml").read_text())
    jobs = {job["job_name"]: job for job in made["scrape_configs"]}
    assert [job["honor_labels"] for job in jobs.values()] == [True, True]
    assert {"source_labels": ["__meta_kubernetes_pod_node_name"], "target_label": "node"} in (
        jobs["claimscope-agent"]["relabel_configs"]
    )
    for job in jobs.values():  # Debian builds Prometheus without Kubernetes
        assert job.pop("kubernetes_sd_configs")[0]["role"] == "pod"
        job["static_configs"] = [{"targets": ["127.0.0.1:19400"]}]
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(made))
    done = subprocess.run([promtool, "check", "config", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _inhibited(rule: dict[str, list[str]], source: dict[str, str], target: dict[str, str]) -> bool:
    def fits(matchers: list[str], labels: dict[str, str]) -> bool:
        return all(
            re.fullmatch(found[2], labels.get(found[1], ""))
            for matcher in matchers if (found := re.fullmatch(r'(\w+)=~?"(.*)"', matcher)) is not None
        )  # fmt: skip

    return (
        fits(rule["source_matchers"], source) and fits(rule["target_matchers"], target)
        and all(source.get(label) == target.get(label) for label in rule["equal"])
    )  # fmt: skip


@pytest.mark.parametrize(
    ("source", "target", "quiet"),
    [
        ({"alertname": "DRASystemicFindingOnNode", "rule": "thermal_margin"}, "DRADeviceThermalThrottling", True),
        ({"alertname": "DRASystemicFindingOnNode", "rule": "pcie_replays"}, "DRADeviceThermalThrottling", False),
        ({"alertname": "DRASystemicFindingOnNode", "rule": "thermal_margin"}, "DRADeviceDegraded", False),
        ({"alertname": "DRAAgentDown"}, "DRAAgentSilent", True),
        ({"alertname": "KubeNodeNotReady"}, "DRAAgentDown", True),
    ],
)
def test_one_cause_keeps_quiet_what_follows_from_it_and_nothing_else(
    source: dict[str, str], target: str, *, quiet: bool
) -> None:
    rules = yaml.safe_load(CONFIG.read_text())["inhibit_rules"]
    where = {"cluster": "east", "node": "n1"}
    assert any(_inhibited(rule, {**where, **source}, {**where, "alertname": target}) for rule in rules) == quiet


def test_inhibitions_are_about_alerts_that_exist() -> None:
    names = {alert.name for alert in alerts()} | KNOWN_OF_OTHERS
    for rule in yaml.safe_load(CONFIG.read_text())["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            pattern = re.fullmatch(r'(alertname|rule)=~?"(.+)"', matcher)
            assert pattern is not None
            among = names if pattern[1] == "alertname" else RULE_BY_KEY
            assert [name for name in among if re.fullmatch(pattern[2], name)], matcher
