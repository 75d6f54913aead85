"""Do series outlive the pods that serve them? The chart's monitors, on a real Prometheus, while pods are replaced.

The monitors' relabelings go through what prometheus-operator makes of them. The same targets are scraped once more
without the chart's own relabelings: there every series gets a second name, so the test could fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from controller_story import free_port
from helm_help import only, render
from operator_help import as_file, found_endpoint, found_pod, scrape_config

AGENT_TEXT = (Path(__file__).parent / "golden" / "metrics.txt").read_text(encoding="utf-8")
CLUSTER_SERIES = 'dra_claim_pending_seconds{namespace="ml",resourceclaim="train",pod="worker-0"} 12\n'
OWN_SERIES = "claimscope_controller_leader %d\nprocess_cpu_seconds_total 1\n"
INTERVAL = "250ms"
VALUES: Mapping[str, Any] = {"monitoring": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}}
# What the pods serve, with the chart's relabelings and without: the operator sets `endpoint`, and the chart drops it.
KEPT = '{__name__!~"up|scrape_.*",endpoint="",job="%s"}'
RENAMED = '{__name__!~"up|scrape_.*",endpoint="http"}'


class Pod:
    """What answers a scrape, and how often it did."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.address = ""
        self._scraped = asyncio.Event()

    async def metrics(self, request: web.Request) -> web.Response:
        del request
        self._scraped.set()
        return web.Response(text=self.text)

    async def until_scraped(self, times: int) -> None:
        for _ in range(times):
            self._scraped.clear()
            await asyncio.wait_for(self._scraped.wait(), 20)


@contextlib.asynccontextmanager
async def _running(*pods: Pod) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for pod in pods:
            application = web.Application()
            application.router.add_get("/metrics", pod.metrics)
            runner = web.AppRunner(application)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            pod.address = "{}:{}".format(*runner.addresses[0][:2])
        yield


@contextlib.asynccontextmanager
async def _prometheus(binary: str, directory: Path, jobs: Sequence[Mapping[str, Any]]) -> AsyncIterator[str]:
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump({"scrape_configs": list(jobs)}), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        binary, f"--config.file={file}", f"--storage.tsdb.path={directory}/tsdb", f"--web.listen-address={address}",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 15)


async def _series(address: str, selector: str) -> list[dict[str, str]]:
    """Every label set that Prometheus has stored."""
    async with (
        aiohttp.ClientSession() as asker,
        asker.get(f"{address}/api/v1/series", params={"match[]": selector}) as reply,
    ):
        answer = await reply.json()
    assert answer["status"] == "success", answer
    found: list[dict[str, str]] = answer["data"]
    return found


def _served(text: str) -> list[dict[str, str]]:
    """The label sets of an answer; Prometheus knows no empty label."""
    return [
        {"__name__": sample.name, **{name: value for name, value in sample.labels.items() if value}}
        for family in text_string_to_metric_families(text) for sample in family.samples
    ]  # fmt: skip


def _sorted(series: Iterable[Mapping[str, str]]) -> list[list[tuple[str, str]]]:
    return sorted(sorted(labels.items()) for labels in series)


def _write(file: Path, targets: Sequence[Mapping[str, str]]) -> None:
    """At once, so that Prometheus never reads the half of it."""
    made = file.with_suffix(".new")
    made.write_text(json.dumps(as_file(targets)), encoding="utf-8")
    made.replace(file)


def _target(objects: list[dict[str, Any]], kind: str, pod: Pod, name: str, node: str) -> dict[str, str]:
    """A pod of a workload of the chart, as Prometheus discovers it."""
    workload = only(objects, kind)
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    return found_pod(
        pod.address, name=name, node=node, namespace=workload["metadata"]["namespace"],
        labels=workload["spec"]["template"]["metadata"]["labels"], port=port["name"], container=container["name"],
    )  # fmt: skip


@pytest.mark.parametrize("by_service", [False, True])
async def test_rolling_the_agent_renames_no_series(prometheus: str, tmp_path: Path, by_service: bool) -> None:
    agents = {**VALUES["monitoring"]["podMonitor"], "asServiceMonitor": by_service}
    objects = render({"monitoring": {"podMonitor": agents}})
    monitor = only(objects, "ServiceMonitor" if by_service else "PodMonitor")
    before, after = Pod(AGENT_TEXT), Pod(AGENT_TEXT)
    file = tmp_path / "targets.json"
    jobs = [
        scrape_config(monitor, file, interval=INTERVAL),
        scrape_config(monitor, file, interval=INTERVAL, without=["relabelings"]),
    ]

    def roll(pod: Pod, name: str) -> None:
        target = _target(objects, "DaemonSet", pod, name, "node-1")
        if by_service:
            service = only(objects, "Service", "claimscope-agent")
            target = found_endpoint(
                target, service=service["metadata"]["name"], labels=service["metadata"]["labels"],
                port=service["spec"]["ports"][0]["name"],
            )  # fmt: skip
        _write(file, [target])

    async with _running(before, after):
        roll(before, "claimscope-agent-aaaaa")
        async with _prometheus(prometheus, tmp_path, jobs) as address:
            await before.until_scraped(4)  # two jobs
            roll(after, "claimscope-agent-bbbbb")
            await after.until_scraped(5)
            kept = await _series(address, KEPT % "claimscope-agent")
            renamed = await _series(address, RENAMED)
            ups = await _series(address, 'up{endpoint=""}')

    target = {"job": "claimscope-agent", "instance": "node-1", "node": "node-1"}
    assert _sorted(kept) == _sorted({**labels, **target} for labels in _served(AGENT_TEXT))
    assert len(renamed) == 2 * len(kept)
    assert ups == [{"__name__": "up", **target}]


async def test_series_of_the_cluster_go_on_when_another_controller_leads(prometheus: str, tmp_path: Path) -> None:
    objects = render(VALUES)
    monitor, service = only(objects, "ServiceMonitor"), only(objects, "Service", "claimscope-controller")
    first, second = Pod(OWN_SERIES % 1 + CLUSTER_SERIES), Pod(OWN_SERIES % 0)
    file = tmp_path / "targets.json"
    jobs = [
        scrape_config(monitor, file, interval=INTERVAL),
        scrape_config(monitor, file, interval=INTERVAL, without=["metricRelabelings", "relabelings"]),
    ]
    async with _running(first, second):
        _write(file, [
            found_endpoint(
                _target(objects, "Deployment", pod, name, node), service=service["metadata"]["name"],
                labels=service["metadata"]["labels"], port=service["spec"]["ports"][0]["name"],
            )
            for pod, name, node in ((first, "controller-a", "node-1"), (second, "controller-b", "node-2"))
        ])  # fmt: skip
        async with _prometheus(prometheus, tmp_path, jobs) as address:
            await first.until_scraped(4)
            first.text, second.text = OWN_SERIES % 0, OWN_SERIES % 1 + CLUSTER_SERIES
            await second.until_scraped(5)
            kept = await _series(address, KEPT % "claimscope-controller")
            renamed = await _series(address, RENAMED)

    assert [each for each in kept if each["__name__"].startswith("dra_")] == [
        {"__name__": "dra_claim_pending_seconds", "job": "claimscope-controller", "namespace": "ml",
         "resourceclaim": "train", "pod": "worker-0"}
    ]  # fmt: skip
    assert len([each for each in renamed if each["__name__"].startswith("dra_")]) == 2
    assert sorted((each["__name__"], each["instance"]) for each in kept if not each["__name__"].startswith("dra_")) == [
        ("claimscope_controller_leader", "controller-a"), ("claimscope_controller_leader", "controller-b"),
        ("process_cpu_seconds_total", "controller-a"), ("process_cpu_seconds_total", "controller-b"),
    ]  # fmt: skip
