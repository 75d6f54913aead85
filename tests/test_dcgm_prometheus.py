"""Do dashboards and queries that were made for dcgm-exporter find their data? A real agent, a real Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import yaml
from aiohttp import web

from agent_process import Agent, Scrape
from claimscope.export.collect import Collector
from claimscope.export.dcgm.collect import DcgmCollector
from claimscope.metrics.tables import QUANTITIES
from claimscope.model import Snapshot, Window
from claimscope.web.application import Readiness, make_application
from controller_story import free_port
from dcgm_data import FULL_RATES, GPU_0, GPU_1, claim, device, full, snapshot

# Of dashboard 12239, as dcgm-exporter publishes it in grafana/; $Hostname and $gpu are "All".
PANELS = (
    'max(DCGM_FI_DEV_GPU_TEMP{Hostname=~".*", gpu=~".*"}) by (Hostname, gpu, uuid)',
    'avg(DCGM_FI_DEV_GPU_TEMP{Hostname=~".*", gpu=~".*"})',
    'max(DCGM_FI_DEV_POWER_USAGE{Hostname=~".*", gpu=~".*"}) by (Hostname, gpu, uuid)',
    'sum(max(DCGM_FI_DEV_POWER_USAGE{Hostname=~".*", gpu=~".*"}) by (gpu))',
    'max(DCGM_FI_DEV_SM_CLOCK{Hostname=~".*", gpu=~".*"} * 1000000) by (Hostname, UUID, gpu)',
    'max(DCGM_FI_PROF_GR_ENGINE_ACTIVE{Hostname=~".*", gpu=~".*"}) by (Hostname, gpu, GPU_I_ID, GPU_I_PROFILE)',
    'max(DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{Hostname=~".*", gpu=~".*"}) by (Hostname, gpu, GPU_I_ID, GPU_I_PROFILE)',
    'max(DCGM_FI_DEV_FB_USED{Hostname=~".*", gpu=~".*"}) by (Hostname, gpu, GPU_I_ID, GPU_I_PROFILE)',
    # The same dashboard before it knew host names.
    'DCGM_FI_DEV_GPU_UTIL{instance=~".*", gpu=~".*"}',
    'sum(DCGM_FI_DEV_POWER_USAGE{instance=~".*", gpu=~".*"})',
    # Its variables: label_values(DCGM_FI_DEV_FB_FREE, Hostname) and (..., gpu).
    "group by (Hostname) (DCGM_FI_DEV_FB_FREE)",
    'group by (gpu) (DCGM_FI_DEV_FB_FREE{Hostname=~".*"})',
)
CLAIM = 'resourceclaim="train"'
EFFICIENCY = 'sum(DCGM_FI_DEV_GPU_UTIL > 10) / sum(kube_node_status_allocatable{resource="nvidia_com_gpu"}) * 100'


def _linked(uuid: str) -> Window:
    made = full(uuid)
    return dataclasses.replace(made, last={**made.last, "nvlink_up/0": 1.0})


def _node() -> Snapshot:
    """Two GPUs that are linked with each other: one is held by a claim of two pods, the other by nobody."""
    return snapshot(
        device(nvlink_peers={0: "0000:19:00.0"}), device(GPU_1, 1, nvlink_peers={0: "0000:18:00.0"}),
        windows=(_linked(GPU_0), _linked(GPU_1)), rates={GPU_0: FULL_RATES, GPU_1: FULL_RATES},
        holds=(claim("train", GPU_0, "worker-0", "worker-1"),),
    )  # fmt: skip


@contextlib.asynccontextmanager
async def _served(application: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()


async def _kube_state_metrics(request: web.Request) -> web.Response:
    del request
    return web.Response(text='kube_node_status_allocatable{node="n1",resource="nvidia_com_gpu"} 2\n')


@contextlib.asynccontextmanager
async def _prometheus(binary: str, directory: Path, *targets: str) -> AsyncIterator[str]:
    jobs = [
        {"job_name": f"job-{number}", "honor_labels": True, "static_configs": [{"targets": [target]}]}
        for number, target in enumerate(targets)
    ]
    file = directory / "prometheus.yml"
    await asyncio.to_thread(
        file.write_text, yaml.safe_dump({"global": {"scrape_interval": "250ms", "scrape_timeout": "250ms"},
                                         "scrape_configs": jobs}),
    )  # fmt: skip
    address = f"127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        binary, f"--config.file={file}", f"--storage.tsdb.path={directory}/tsdb", f"--web.listen-address={address}",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield address
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 15)


async def _ask(asker: aiohttp.ClientSession, address: str, query: str) -> list[tuple[dict[str, str], float]]:
    async with asker.get(f"http://{address}/api/v1/query", params={"query": query}) as reply:
        if reply.status == 503:  # still starting
            return []
        answer = await reply.json()
        assert answer["status"] == "success", answer
        return [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]


async def _until_scraped(asker: aiohttp.ClientSession, address: str, jobs: int) -> None:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                if len(await _ask(asker, address, "up == 1")) == jobs:
                    return
            await asyncio.sleep(0.1)


async def test_published_queries_find_their_data(prometheus: str, tmp_path: Path) -> None:
    node = _node()
    agent = make_application(
        snapshot=lambda: node, collector=Collector(QUANTITIES), readiness=lambda: Readiness(checks=()), version="test",
        dcgm=DcgmCollector(QUANTITIES),
    )  # fmt: skip
    kube = web.Application()
    kube.add_routes([web.get("/metrics", _kube_state_metrics)])
    async with (
        _served(agent) as agent_target, _served(kube) as kube_target,
        _prometheus(prometheus, tmp_path, agent_target, kube_target) as address, aiohttp.ClientSession() as asker,
    ):  # fmt: skip
        await _until_scraped(asker, address, 2)

        empty = [query for query in PANELS if not await _ask(asker, address, query)]
        assert empty == []

        utilization = await _ask(asker, address, "avg by (resourceclaim, namespace) (DCGM_FI_DEV_GPU_UTIL)")
        assert sorted(utilization, key=lambda one: len(one[0])) == [
            ({}, 50.0),
            ({"resourceclaim": "train", "namespace": "team-a"}, 50.0),
        ]
        for query, expected in {
            f"max(DCGM_FI_DEV_FB_USED{{{CLAIM}}})": 0.0,
            f"max(DCGM_FI_DEV_FB_RESERVED{{{CLAIM}}})": 0.0,
            f'max(DCGM_FI_PROF_NVLINK_TX_BYTES{{{CLAIM},gpu_pair="0-1"}})': 1e9,
            # Three series of 50 %, of two GPUs: why docs/dcgm.md has another one beside it.
            EFFICIENCY: 7500.0,
            'count(gpu_utilization_ratio{engine="gpu"} > 0.1)': 2.0,
            "max(DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION)": 7000.0,
        }.items():
            assert [value for _, value in await _ask(asker, address, query)] == [expected], query


async def test_the_queries_of_a_fleet_find_their_data_on_a_simulated_node(
    prometheus: str, cc: str, tmp_path: Path
) -> None:
    """Pairs of GPUs with an NVLink bridge: behind an NVSwitch no pair is known."""
    del cc
    train = 'resourceclaim="train-llm-gpu-0"'
    queries = (
        f'avg by (resourceclaim, namespace) (DCGM_FI_DEV_GPU_UTIL{{{train}}}) > 0',
        f"DCGM_FI_DEV_FB_USED{{{train}}} > 0",
        f"DCGM_FI_DEV_FB_RESERVED{{{train}}} > 0",
        f'DCGM_FI_PROF_NVLINK_TX_BYTES{{{train},gpu_pair="0-1"}} > 0',
        EFFICIENCY,
        'DCGM_FI_DEV_VGPU_LICENSE_STATUS{gpu="3"}',
        'DCGM_EXP_XID_ERRORS_COUNT{gpu="3",window_size_in_ms="300000"}',
        'DCGM_EXP_CLOCK_EVENTS_COUNT{gpu="3",window_size_in_ms="300000"}',
        'DCGM_EXP_GPU_HEALTH_STATUS{gpu="3",health_watch="NVLINK",health_error_code="DCGM_FR_OK"}',
        'rate(DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES{gpu="0",nvlink="11"}[1m]) > 0',
    )
    kube = web.Application()
    kube.add_routes([web.get("/metrics", _kube_state_metrics)])
    arguments = ("--simulate", "a100x4-bridge", "--compat-dcgm", "all", "--collectors", "nvlink-per-link")
    with Agent(tmp_path / "agent", *arguments) as agent:
        await asyncio.to_thread(agent.wait_served)
        async with (
            _served(kube) as kube_target,
            _prometheus(prometheus, tmp_path, agent.url.removeprefix("http://"), kube_target) as address,
            aiohttp.ClientSession() as asker,
        ):
            await _until_scraped(asker, address, 2)
            empty = list(queries)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(40):  # links are read every ten seconds, and a rate needs two readings
                    while empty:
                        empty = [query for query in empty if not await _ask(asker, address, query)]
                        await asyncio.sleep(0.1)
            assert empty == []


@pytest.mark.parametrize("hostname_label", ["Hostname", "hostname"])
def test_panels_of_either_spelling_of_the_host_name_have_their_label(hostname_label: str) -> None:
    collector = DcgmCollector(QUANTITIES, hostname_label=hostname_label)  # type: ignore[arg-type]

    samples = collector.collect(_node())
    assert {dict(sample.labels).get(hostname_label) for sample in samples} == {"n1"}


SAME = {  # family -> ours, its labels, factor
    "DCGM_FI_DEV_GPU_UTIL": ("gpu_utilization_ratio", {"engine": "gpu"}, 100.0),
    "DCGM_FI_DEV_FB_USED": ("gpu_memory_used_bytes", {}, 1 / (1 << 20)),
    "DCGM_FI_DEV_SM_CLOCK": ("gpu_clock_hertz", {"domain": "sm"}, 1e-6),
    "DCGM_FI_DEV_POWER_USAGE": ("gpu_power_average_watts", {}, 1.0),
    "DCGM_FI_DEV_GPU_TEMP": ("gpu_temperature_celsius", {"sensor": "gpu"}, 1.0),
    "DCGM_FI_PROF_DRAM_ACTIVE": ("gpu_utilization_ratio", {"engine": "dram"}, 1.0),
}


def test_an_agent_shows_the_same_figures_under_both_names(cc: str, tmp_path: Path) -> None:
    del cc
    arguments = ("--simulate", "h100x8", "--compat-dcgm", "on", "--compat-dcgm-names", "both")
    with Agent(tmp_path, *arguments) as agent:
        agent.wait_served()

        def with_traffic(scrape: Scrape) -> list[Scrape]:
            rates = scrape.find("DCGM_FI_PROF_NVLINK_TX_BYTES", resourceclaim="train-llm-gpu-0")
            return [scrape] if rates and rates[0].value > 0 else []

        (scrape,) = agent.until(with_traffic, 30.0)

    for family, (ours, labels, factor) in SAME.items():
        there = {(sample.labels["UUID"], sample.value) for sample in scrape.find(family)}
        here = {(sample.labels["uuid"], sample.value * factor) for sample in scrape.find(ours, **labels)}
        assert len(there) == len(here) == 8
        for (uuid, value), (same_uuid, expected) in zip(sorted(there), sorted(here), strict=True):
            assert uuid == same_uuid
            assert value == pytest.approx(expected, abs=1.0 if factor != 1.0 else 1e-5), family
    assert scrape.find("DCGM_FI_DEV_GPU_UTIL_RATIO")
    (rate,) = scrape.find("DCGM_FI_PROF_NVLINK_TX_BYTES", resourceclaim="train-llm-gpu-0")
    assert rate.labels["gpu_pair"] == "0-nvswitch"
    shown = [sample for sample in scrape.samples if sample.name.startswith("DCGM_")]
    assert scrape.value("claimscope_agent_series", layer="dcgm") == len(shown)
