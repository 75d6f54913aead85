"""The controller as a process: what it serves, to whom, and which of several replicas does."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from claimscope.clock import SystemClock
from claimscope.kube.lease import micro_time
from claimscope.metrics import cluster as cluster_rows
from claimscope.metrics import controller as own_rows
from claimscope.sim.api.kinds import LEASES, NODES, PODS, RESOURCE_QUOTAS, RESOURCE_SLICES
from claimscope.sim.api.server import HttpFault, SimApiServer
from claimscope.sim.cluster import SimulatedCluster
from controller_process import (
    Controller,
    alive,
    claimscope,
    durations,
    reasons,
    states,
    until,
    until_found,
)
from controller_story import (
    BIG_WAITS,
    FURNISHED,
    PHASES,
    free_port,
    goes,
    living_pod,
    runs,
    runs_backwards,
    serving,
    stamp,
    wants,
)
from otlp_collector import http_collector

OWN = own_rows.PREFIX
LEASE = "/apis/coordination.k8s.io/v1/namespaces/claimscope/leases/claimscope-controller"
LEASE_SECONDS = 3
# All but what takes a minute of watching, and what needs a web configuration file (test_web_tls.py) or authorization by
# Kubernetes (test_web_review.py).
ROWS = (cluster_rows.FAMILIES.keys() | own_rows.FAMILIES.keys()) - {
    "dra_claim_leaked",
    *(
        OWN + name
        for name in (
            "reviews_total", "web_requests_refused_total", "web_config_last_reload_successful",
            "web_config_last_reload_success_timestamp_seconds", "web_certificate_expiry_timestamp_seconds",
        )
    ),
}


# ---- everything at once --------------------------------------------------------------------------------------------


async def test_every_row_is_served_and_prometheus_takes_it(tmp_path: Path, prometheus: str, promtool: str) -> None:
    """The simulated cluster, and beside it what happens in none of its stories."""
    async with SimulatedCluster.open(clock=SystemClock()) as cluster:
        server = cluster.server
        await _more(server)
        server.fail("/api/v1/nodes", HttpFault(status=500))
        server.fail(LEASE, HttpFault(status=500))
        async with (
            http_collector() as otlp,
            Controller(
                tmp_path, "--api-server-url", cluster.url, "--otlp-endpoint", f"http://127.0.0.1:{otlp.port}"
            ) as controller,
            _prometheus(prometheus, tmp_path, controller.url) as address,
        ):
            await controller.until(states)
            await wants(server, "job")
            await wants(server, "backwards")
            await controller.until(lambda scrape: {"team/job", "team/backwards"} <= set(states(scrape)))
            await runs(server, "job", dev="gpu-8")
            await runs_backwards(server, "backwards", dev="gpu-9")
            await controller.until(durations)
            await server.put(PODS, _evicted("job"))
            await controller.until(lambda scrape: sum(scrape.by("namespace", "dra_claim_evictions_total").values()) > 0)
            await goes(server, "job")

            lacking: set[str] = set()

            async def all_served() -> bool:
                answer = await controller.get("/metrics")
                lacking.clear()
                lacking.update(ROWS - _with_samples(answer.text))
                return not lacking

            await until_found(all_served, 20.0, lambda: f"not served: {sorted(lacking)}\n{controller.log[-2000:]}")
            text = (await controller.get("/metrics")).body
            done = await asyncio.to_thread(
                subprocess.run, [promtool, "check", "metrics"], input=text, capture_output=True, timeout=20, check=False
            )
            assert done.stderr.decode().splitlines() == []
            found = await until_found(
                lambda: _query(address, "count(dra_claim_pending_reason)"), 15.0, lambda: controller.log[-2000:]
            )
            assert found > 10
            assert await _query(address, 'up{job="controller"}') == 1.0


def _with_samples(text: str) -> set[str]:
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line and not line.startswith("#")}
    return names | {name.removesuffix("_count") for name in names if name.endswith("_count")}


async def _more(server: SimApiServer) -> None:
    for node, driver in (("a", "580.1"), ("b", "580.1"), ("c", "570.1")):
        entries = json.dumps([{"model": "H100", "count": 8, "driver_version": driver}])
        await server.put(LEASES, {
            "metadata": {
                "name": f"claimscope-agent-{node}", "namespace": "claimscope",
                "labels": {"app.kubernetes.io/component": "agent"},
                "annotations": {"claimscope.io/node": node, "claimscope.io/devices": entries},
            },
            "spec": {"holderIdentity": node, "renewTime": "2026-11-21T11:00:00.000000Z"},
        })
    found = [{"uuid": _some_gpu(server), "rule": "pcie_width", "severity": "degraded", "since": 1795258800}]
    await server.put(LEASES, {
        "metadata": {
            "name": "claimscope-agent-demo-node-1", "namespace": "claimscope",
            "labels": {"app.kubernetes.io/component": "agent"},
            "annotations": {
                "claimscope.io/node": "demo-node-1", "claimscope.io/findings": json.dumps({"findings": found}),
            },
        },
        "spec": {"holderIdentity": "demo-node-1", "renewTime": micro_time(time.time_ns())},
    })
    serviced = server.get(NODES, "demo-node-2")
    assert serviced is not None
    serviced["metadata"].setdefault("annotations", {})["claimscope.io/maintenance"] = "exchange a fan"
    await server.put(NODES, serviced)
    limits = {"count/resourceclaims.resource.k8s.io": "5"}
    await server.put(RESOURCE_QUOTAS, {
        "metadata": {"name": "claims", "namespace": "team"}, "spec": {"hard": limits},
        "status": {"hard": limits, "used": {"count/resourceclaims.resource.k8s.io": "2"}},
    })


def _some_gpu(server: SimApiServer) -> str:
    for stored in server.store.table(RESOURCE_SLICES).objects.values():
        spec = json.loads(stored.body(RESOURCE_SLICES))["spec"]
        if spec.get("nodeName") == "demo-node-1" and spec.get("devices"):
            return str(spec["devices"][0]["attributes"]["uuid"]["string"])
    raise LookupError("demo-node-1 publishes no device")


def _evicted(name: str) -> dict[str, Any]:
    found = living_pod(name, running=True)
    found["status"]["conditions"].append({
        "type": "DisruptionTarget", "status": "True", "reason": "DeletionByDeviceTaintManager",
        "lastTransitionTime": stamp(),
    })
    return found


class _prometheus:  # noqa: N801 - used as a function
    """A Prometheus that scrapes one target each second; gives its address."""

    def __init__(self, binary: str, directory: Path, url: str) -> None:
        self._binary, self._directory, self._target = binary, directory, url.removeprefix("http://")
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> str:
        file = self._directory / "prometheus.yml"
        file.write_text(yaml.safe_dump({
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "controller", "static_configs": [{"targets": [self._target]}]}],
        }))
        address = f"127.0.0.1:{free_port()}"
        self._process = await asyncio.create_subprocess_exec(
            self._binary, f"--config.file={file}", f"--storage.tsdb.path={self._directory}/tsdb",
            f"--web.listen-address={address}", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )
        return address

    async def __aexit__(self, *unused: object) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.terminate()
        await asyncio.wait_for(self._process.wait(), 15)


async def _query(address: str, expression: str) -> float | None:
    try:
        async with (
            aiohttp.ClientSession() as web,
            web.get(f"http://{address}/api/v1/query", params={"query": expression}) as reply,
        ):
            found = (await reply.json())["data"]["result"] if reply.status == 200 else []
    except aiohttp.ClientConnectionError:
        return None
    return float(found[0]["value"][1]) if found else None


# ---- replicas ------------------------------------------------------------------------------------------------------


def replica(directory: Path, server: SimApiServer, identity: str) -> Controller:
    return Controller(
        directory, "--api-server-url", server.url, "--lease-seconds", str(LEASE_SECONDS), identity=identity
    )


async def test_a_killed_leader_is_followed_within_the_lease_and_nothing_counts_twice(tmp_path: Path) -> None:
    async with serving() as server, replica(tmp_path, server, "one") as one:
        await one.until_leading()
        async with replica(tmp_path, server, "two") as two:
            await until_found(lambda: two.get("/readyz"), 5, lambda: two.log)
            assert await two.until_ready() == "[+] election: standing by, one leads\nready\n"
            standby = await two.until(lambda scrape: scrape if scrape.samples else None)
            names = {sample.name for sample in standby.samples}
            assert {name for name in names if not name.startswith((OWN, "process_", "python_"))} == set()
            assert standby.value(OWN + "leader") == 0.0
            assert json.loads((await two.get("/api/v1/waits")).body) == {
                "error": "this replica stands by; one leads: ask it, or the Service that points to it"
            }
            await wants(server, "early", at=-1.0)
            await one.until(lambda scrape: states(scrape).get("team/early"))
            await runs(server, "early", at=-1.0)
            await one.until(lambda scrape: durations(scrape) == PHASES)
            worker = one.children()
            one.signal(signal.SIGKILL)
            assert await one.ended() == -signal.SIGKILL
            # What happens while nobody leads is found by the next leader, and counted since it can be told.
            await wants(server, "late", at=1.0)
            await runs(server, "late", at=1.0, dev="gpu-1")
            found = await two.until(lambda scrape: scrape if states(scrape) else None, LEASE_SECONDS + 5)
            assert states(found) == FURNISHED | {"team/early": "running", "team/late": "running"}
            assert reasons(found) == BIG_WAITS
            assert durations(found) == PHASES  # of the late one alone: the early one was counted by the first leader
            assert found.value(OWN + "leader_changes_total") == 1.0
            assert len(two.said("leading as two; before: one")) == 1
            assert len(worker) == 1
            await until(lambda: not alive(worker[0]), 5, lambda: f"{worker} still runs")


async def test_a_leader_that_stops_in_good_order_is_followed_at_once(tmp_path: Path) -> None:
    async with serving() as server, replica(tmp_path, server, "one") as one:
        await one.until_leading()
        async with replica(tmp_path, server, "two") as two:
            await two.until_ready()
            worker = one.children()
            began = asyncio.get_running_loop().time()
            one.signal(signal.SIGTERM)
            assert await one.ended() == 0
            assert asyncio.get_running_loop().time() - began < 2.0
            assert [pid for pid in worker if alive(pid)] == []
            await two.until(lambda scrape: scrape.value(OWN + "leader") == 1.0)
            assert asyncio.get_running_loop().time() - began < LEASE_SECONDS
            assert await two.until(states) == FURNISHED
            assert len(one.said("is let go")) == 1


async def test_a_leader_that_was_stopped_serves_nothing_of_the_cluster_when_it_goes_on(tmp_path: Path) -> None:
    async with serving() as server, replica(tmp_path, server, "one") as one:
        await one.until_leading()
        async with replica(tmp_path, server, "two") as two:
            await two.until_ready()
            one.signal(signal.SIGSTOP)
            # Its sockets still take requests: this one is answered by what it does first when it goes on.
            first = asyncio.create_task(one.get("/metrics"))
            page = asyncio.create_task(one.get("/api/v1/claims/team/big"))
            try:
                await two.until_leading(LEASE_SECONDS + 5)
            finally:
                one.signal(signal.SIGCONT)
            assert "kube_resourceclaim" not in (await first).text
            assert f"{OWN}leader 0" in (await first).text
            assert (await page).status == 503
            await one.until_ready()
            assert (await one.get("/readyz")).text == "[+] election: standing by, two leads\nready\n"
            assert states(await one.scrape()) == {}
            assert len(one.said("not leading any more")) == 1


# ---- people --------------------------------------------------------------------------------------------------------

BIG = """\
claim team/big is pending for AGE: no matching device
  needs 4 devices of gpu.nvidia.com on one node: 2 exist, 2 match, 1 is in use, 1 is free

evidence:
  device gpu.nvidia.com/node-1/gpu-1 is held by claim team/held (pod holder)
  scheduler on pod waiter: 0/2 nodes are available: 2 cannot allocate all claims.

pods:
  waiter  no node  is not on a node yet

class:
  gpu.nvidia.com

workload:
  Pod waiter

what to do:
  correct the selectors of class or claim (the slices show what devices have), or add such devices
"""


def _ageless(text: str) -> str:
    head, _, rest = text.partition(" for ")
    return f"{head} for AGE:{rest.partition(':')[2]}"


async def test_explain_and_the_queries(tmp_path: Path) -> None:
    async with (
        serving() as server,
        Controller(tmp_path, "--api-server-url", server.url, "--leader-election", "off") as controller,
    ):
        await controller.until(states)
        ask, direct = ("--controller", controller.url), ("--api-server-url", server.url)
        asked, read, typo, elsewhere, nobody, nothing = await asyncio.gather(
            claimscope("explain", "claim", "team/big", *ask),
            claimscope("explain", "claim", "team/big", *direct),
            claimscope("explain", "claim", "team/bog", *ask),
            claimscope("explain", "claim", "other/big", *direct),
            claimscope("explain", "claim", "team/big", "--controller", f"http://127.0.0.1:{free_port()}"),
            claimscope("explain", "claim", "team/big", "--api-server-url", f"http://127.0.0.1:{free_port()}"),
        )
        assert (asked[0], _ageless(asked[1]), asked[2]) == (0, BIG, "")
        assert (read[0], _ageless(read[1]), read[2]) == (0, BIG, "")
        hint = "did you mean team/big?\n"
        assert typo == (1, "", f"claimscope: claim team/bog does not exist: {hint}")
        assert elsewhere == (1, "", f"claimscope: claim other/big does not exist: {hint}")
        for code, out, err in (nobody, nothing):
            assert (code, out, err.count("\n")) == (1, "", 1)
        assert nobody[2].startswith("claimscope: no controller answers at http://127.0.0.1:")
        assert nothing[2].startswith("claimscope: cannot read http://127.0.0.1:")
        for query, status, text in (
            ("claims?limit=0", 400, "limit='0' is not a number from 1 to 10000"),
            ("claims?state=lost", 400, "state='lost' is none; known are pending, allocated, reserved, prepared, "
                                       "running, released, deleted"),
            ("claims?colour=red", 400, "unknown parameter 'colour'; known are namespace, state, limit"),
            ("capacity?limit=1", 400, "unknown parameter 'limit'; known are none"),
        ):
            answer = await controller.get(f"/api/v1/{query}")
            assert (answer.status, json.loads(answer.body)) == (status, {"error": text})
        assert (await controller.get("/api/v1/waits?reason=boredom")).status == 400
        assert (await controller.get("/api/v1/claims/team/nothing")).status == 404
        assert (await controller.get("/api/v1/nothing")).status == 404
        assert json.loads((await controller.get("/api/v1/claims?state=pending&limit=1")).body)["total"] == 1
        # The same port again: one line, and the first one goes on.
        code, out, err = await claimscope(
            "controller", *direct, "--web-listen-address", controller.url.removeprefix("http://")
        )
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "Address already in use" in err
        assert states(await controller.scrape()) == FURNISHED


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 1, "no API server: KUBERNETES_SERVICE_HOST is not set"),
        (("--kubeconfig", "/none"), 1, "cannot use kubeconfig /none: [Errno 2] No such file"),
        (("--api-server-url", "http://10.0.0.1"), 2, "`10.0.0.1` is another machine"),
        (("--api-server-url", "http://127.0.0.1:1", "--namespace", "Not One"), 2, "`Not One` is no name"),
        (("--api-server-url", "http://127.0.0.1:1", "--lease-name", "../x"), 2, "`../x` is no name of an object"),
        (("--lease-seconds", "1"), 2, "`1` is not a number from 3 to 600"),
        (("--web-listen-address", "19401"), 2, "is not host:port"),
    ],
)
async def test_what_cannot_work_is_said_in_one_line(arguments: tuple[str, ...], code: int, text: str) -> None:
    address = () if "--web-listen-address" in arguments else ("--web-listen-address", "127.0.0.1:0")
    found, out, err = await claimscope("controller", *arguments, *address)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("claimscope: ")
    assert text in err
