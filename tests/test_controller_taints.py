"""The controller as a process that fences: replicas, the command line, and what it serves of it."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from claim_objects import device_class
from claimscope.kube.lease import micro_time
from claimscope.sim.api.access import Asked, Rule, User
from claimscope.sim.api.kinds import ALL_KINDS, DEVICE_CLASSES, DEVICE_TAINT_RULES, LEASES, NODES, RESOURCE_SLICES
from claimscope.sim.api.server import SimApiServer
from controller_process import Controller, claimscope, until
from taints_bench import fleet

LEASE_SECONDS = 3
NOW = 1795260212.0


def finding(uuid: str, rule: str = "xid_fatal", severity: str = "unhealthy") -> dict[str, Any]:
    return {"uuid": uuid, "rule": rule, "severity": severity, "since": NOW, "evidence": {"xid": "95"}}


async def says(server: SimApiServer, node: str, *findings: dict[str, Any]) -> None:
    await server.put(LEASES, {
        "metadata": {
            "name": f"claimscope-agent-{node}", "namespace": "claimscope",
            "labels": {"app.kubernetes.io/component": "agent"},
            "annotations": {
                "claimscope.io/node": node, "claimscope.io/findings": json.dumps({"findings": findings}),
            },
        },
        "spec": {"holderIdentity": node, "renewTime": micro_time(time.time_ns())},
    })


@contextlib.asynccontextmanager
async def serving(git_version: str = "v1.37.0", rule: Rule | None = None) -> AsyncIterator[SimApiServer]:
    server = SimApiServer(ALL_KINDS, git_version=git_version, rule=rule)
    await server.put(DEVICE_CLASSES, device_class())
    for each in fleet():
        await server.put(RESOURCE_SLICES, each)
    for node in ("node-1", "node-2"):
        await server.put(NODES, {"metadata": {"name": node, "uid": f"uid-{node}"}})
        await says(server, node)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def replica(directory: Path, server: SimApiServer, *arguments: str, identity: str = "one") -> Controller:
    return Controller(
        directory, "--api-server-url", server.url, "--lease-seconds", str(LEASE_SECONDS), *arguments, identity=identity
    )


def effects(server: SimApiServer) -> dict[str, str]:
    found: dict[str, str] = {}
    for stored in server.store.table(DEVICE_TAINT_RULES).objects.values():
        spec = json.loads(stored.body(DEVICE_TAINT_RULES))["spec"]
        selector = spec["deviceSelector"]
        found[f"{selector['pool']}/{selector['device']}"] = spec["taint"]["effect"]
    return found


async def until_effects(server: SimApiServer, wanted: dict[str, str], controller: Controller) -> None:
    await until(lambda: effects(server) == wanted, 15.0, lambda: f"{effects(server)}\n{controller.log[-4000:]}")


async def test_from_a_finding_to_a_taint_and_back_with_the_commands_beside(tmp_path: Path) -> None:
    async with serving() as server, replica(tmp_path, server, "--taint-mode", "enforce") as controller:
        await says(server, "node-1", finding("GPU-1-3"))
        await until_effects(server, {"node-1/gpu-3": "NoSchedule"}, controller)
        scrape = await controller.until(
            lambda found: found if found.value("dra_taint_fences", severity="unhealthy", effect="NoSchedule") else None
        )
        mode = scrape.find("claimscope_controller_taint_mode_info")[0].labels
        assert (mode["mode"], mode["configured"], mode["reason"]) == ("enforce", "enforce", "")

        where = ("--api-server-url", server.url)
        code, text, errors = await claimscope("taints", "list", *where)
        assert (code, errors) == (0, "")
        assert " ".join(text.splitlines()[2].split()).startswith(
            "gpu.nvidia.com/node-1/gpu-3 node-1 GPU-1-3 unhealthy NoSchedule"
        )
        code, text, errors = await claimscope("explain", "gpu", "GPU-1-3", *where)
        assert (code, errors) == (0, "")
        assert "finding xid_fatal (unhealthy) since 2026-11-21T11:23:32Z\n  xid: 95" in text

        assert (await claimscope("taints", "pause", *where, "--author", "ann", "--reason", "rack work"))[0] == 0
        # Renewing the lease and fencing both go on: the pause acts within ten seconds.
        await controller.until(lambda found: found.value("claimscope_controller_taint_paused") == 1.0, 10.0)
        await says(server, "node-2", finding("GPU-2-0"))
        await says(server, "node-1")
        await until_effects(server, {}, controller)
        assert (await claimscope("taints", "resume", *where))[0] == 0
        await until_effects(server, {"node-2/gpu-0": "NoSchedule"}, controller)

        code, text, _ = await claimscope("taints", "lift", "GPU-2-0", *where)
        assert (code, text.split(":")[0].split()[0]) == (0, "lifted")
        await controller.until(lambda found: found.value("dra_taint_held", reason="ignored") == 1.0)
        assert effects(server) == {}
        assert controller.said("Traceback") == []
        assert (await controller.until(lambda found: found)).value("claimscope_controller_leader_changes_total") == 1.0
        assert controller.said("the lease") == []


async def test_commands_that_cannot_be_done_say_so_in_one_line(tmp_path: Path) -> None:
    async with serving() as server:
        where = ("--api-server-url", server.url)
        assert await claimscope("taints", "list", *where) == (0, "no device is tainted by claimscope\n", "")
        assert await claimscope("taints", "lift", "GPU-9-9", *where) == (
            1, "", "claimscope: no taint of claimscope is named GPU-9-9 or about such a GPU\n"
        )
        assert await claimscope("taints", "lift", *where) == (
            2, "", "claimscope: name what to lift (`claimscope taints list` shows it), or --all\n"
        )
        assert await claimscope("taints", "ack", "xid_fata", *where) == (
            2, "", "claimscope: `xid_fata` is no uuid of a GPU; as a rule: did you mean `xid_fatal`?\n"
        )
        file = tmp_path / "policy.yaml"
        file.write_text("budgets: {fleet_share: 7}\n")
        code, _, errors = await claimscope("controller", "--taint-policy", str(file), *where)
        assert code == 1
        assert errors.startswith(f"claimscope: {file}:1:24: `7`")


async def test_uninstalling_takes_everything_of_ours(tmp_path: Path) -> None:
    async with serving() as server:
        async with replica(tmp_path, server) as controller:
            await says(server, "node-1", finding("GPU-1-3"), finding("GPU-1-4", "pcie_width", "degraded"))
            await until_effects(server, {"node-1/gpu-3": "None", "node-1/gpu-4": "None"}, controller)
            await until(lambda: (server.get(NODES, "node-1") or {}).get("status"), 10.0, lambda: controller.log)
        code, text, errors = await claimscope("taints", "lift", "--all", "--api-server-url", server.url)
        assert (code, errors, len(text.splitlines())) == (0, "", 3)
        assert effects(server) == {}
        assert (server.get(NODES, "node-1") or {}).get("status", {}).get("conditions", []) == []


async def test_the_next_leader_keeps_what_stands_and_goes_on(tmp_path: Path) -> None:
    async with serving() as server, replica(tmp_path, server) as one:
        await one.until(lambda scrape: scrape.value("claimscope_controller_leader") == 1.0)
        async with replica(tmp_path, server, identity="two") as two:
            await says(server, "node-1", finding("GPU-1-3"))
            await until_effects(server, {"node-1/gpu-3": "None"}, one)
            (before,) = (stored.tail for stored in server.store.table(DEVICE_TAINT_RULES).objects.values())
            one.signal(signal.SIGKILL)
            await two.until(lambda scrape: scrape.value("claimscope_controller_leader") == 1.0)
            await says(server, "node-2", finding("GPU-2-1"))
            await until_effects(server, {"node-1/gpu-3": "None", "node-2/gpu-1": "None"}, two)
            assert before in [stored.tail for stored in server.store.table(DEVICE_TAINT_RULES).objects.values()]


async def test_a_replica_that_wakes_up_after_its_lease_writes_nothing(tmp_path: Path) -> None:
    async with serving() as server, replica(tmp_path, server) as one:
        await one.until(lambda scrape: scrape.value("claimscope_controller_leader") == 1.0)
        one.signal(signal.SIGSTOP)
        async with replica(tmp_path, server, "--taint-mode", "enforce", identity="two") as two:
            await two.until(lambda scrape: scrape.value("claimscope_controller_leader") == 1.0)
            await says(server, "node-1", finding("GPU-1-3"))
            await until_effects(server, {"node-1/gpu-3": "NoSchedule"}, two)
            one.signal(signal.SIGCONT)
            await one.until(lambda scrape: scrape.value("claimscope_controller_leader") == 0.0)
            assert effects(server) == {"node-1/gpu-3": "NoSchedule"}
            assert one.said("taint claimscope.io") == []


async def test_rules_that_may_not_be_read_are_not_written(tmp_path: Path) -> None:
    async with serving(rule=_may) as server, replica(tmp_path, server) as controller:
        await says(server, "node-1", finding("GPU-1-3"))
        await until(
            lambda: [each for each in server.write_requests if each.startswith("PATCH /api/v1/nodes/node-1")], 15.0,
            lambda: controller.log,
        )
        assert effects(server) == {}
        assert not [each for each in server.write_requests if "devicetaintrules" in each]


def _may(user: User, asked: Asked) -> bool:
    return asked.resource != "devicetaintrules" or asked.verb not in ("list", "watch")


async def test_where_rules_stop_the_scheduler_the_mode_is_lowered_and_said(tmp_path: Path) -> None:
    async with serving("v1.36.2") as server, replica(tmp_path, server) as controller:
        await says(server, "node-1", finding("GPU-1-3"))
        await controller.until(lambda scrape: scrape.value("dra_taint_held", reason="mode") == 1.0)
        assert len(controller.said("kubernetes/kubernetes/issues/139651")) == 1
        assert effects(server) == {}
        assert not [each for each in server.write_requests if "devicetaintrules" in each]
