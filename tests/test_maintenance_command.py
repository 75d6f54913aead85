"""`claimscope maintenance`: what it writes on a Node, and what it says."""

from __future__ import annotations

from typing import Any

import pytest

from claim_objects import device, pool
from claimscope.sim.api.kinds import ALL_KINDS, NODES, RESOURCE_SLICES
from claimscope.sim.api.server import SimApiServer
from claimscope.taints import maintenance_command
from claimscope.taints.maintenance_command import MaintenanceError, deadline_of
from controller_process import claimscope
from kube_help import serving

NOW = 1_700_000_000.0
PLUGIN_NODE = {"metadata": {"name": "n1"}, "status": {"capacity": {"nvidia.com/gpu": "8"}}}
CONDITION = {
    "type": "GPUMaintenanceReady",
    "status": "False",
    "reason": "WaitingForClaims",
    "message": "Held by claim t/a (pods a-0). Maintenance by ann: fan swap",
    "lastTransitionTime": "2026-11-21T11:23:32Z",
}


@pytest.mark.parametrize(
    ("text", "deadline"),
    [
        ("2h", "2023-11-15T00:13:20Z"),
        ("90m", "2023-11-14T23:43:20Z"),
        ("1.5d", "2023-11-16T10:13:20Z"),
        ("2026-11-21T18:00:00Z", "2026-11-21T18:00:00Z"),
        ("2026-11-21T18:00:00+02:00", "2026-11-21T16:00:00Z"),
    ],
)
def test_deadlines(text: str, deadline: str) -> None:
    assert deadline_of(text, NOW) == deadline


@pytest.mark.parametrize("text", [
    "", "soon", "2 h", "2026-11-21", "2026-11-21T18:00:00", "2023-01-01T00:00:00Z",
    "99999999d", f"{10**400}d", "9999-12-31T23:59:59-12:00",
])  # fmt: skip
def test_what_is_no_deadline(text: str) -> None:
    with pytest.raises(ValueError, match=r"is neither a span such as 90m|has passed|is after 2100"):
        deadline_of(text, NOW)


def notes(server: SimApiServer) -> dict[str, Any]:
    found = server.get(NODES, "n1") or {}
    return {
        name.removeprefix("claimscope.io/"): text for name, text in (found["metadata"].get("annotations") or {}).items()
    }


async def test_start_list_and_finish() -> None:
    async with serving(None, *ALL_KINDS) as (server, api):
        await server.put(NODES, {**PLUGIN_NODE, "metadata": {"name": "n1", "annotations": {"other": "kept"}}})
        assert await maintenance_command.listed(api) == "no node is under maintenance"
        said = await maintenance_command.start(
            api, "n1", reason="fan swap", author="ann", deadline="2026-11-21T18:00:00Z"
        )
        assert said.splitlines()[1] == "kubectl wait --for=condition=GPUMaintenanceReady --timeout=-1s node/n1"
        assert notes(server) == {
            "other": "kept",
            "maintenance": "fan swap",
            "maintenance-by": "ann",
            "maintenance-deadline": "2026-11-21T18:00:00Z",
        }
        assert await maintenance_command.listed(api) == (
            "NODE  STATE       SINCE  BY   DEADLINE              MESSAGE\n"
            "n1    NotSeenYet  -      ann  2026-11-21T18:00:00Z  no controller yet; fan swap"
        )
        found = server.get(NODES, "n1") or {}
        await server.put(NODES, {**found, "status": {**found["status"], "conditions": [CONDITION]}})
        assert (await maintenance_command.listed(api)).splitlines()[1] == (
            "n1    WaitingForClaims  2026-11-21T11:23:32Z  ann  2026-11-21T18:00:00Z  "
            "Held by claim t/a (pods a-0). Maintenance by ann: fan swap"
        )
        with pytest.raises(MaintenanceError, match=r"maintenance of n1 is asked for already by ann \(fan swap\)"):
            await maintenance_command.start(api, "n1", reason="x", author="bob", deadline=None)
        assert "once it is verified" in await maintenance_command.finish(
            api, "n1", author="ann", verified=True, now_wall=NOW
        )
        assert notes(server) == {"other": "kept"}
        assert "without verification" in await maintenance_command.finish(
            api, "n1", author="ann", verified=False, now_wall=NOW
        )
        assert notes(server) == {"other": "kept", "maintenance-unverified": "ann 2023-11-14T22:13:20Z"}
        await maintenance_command.start(api, "n1", reason="again", author="ann", deadline=None)
        assert notes(server) == {"other": "kept", "maintenance": "again", "maintenance-by": "ann"}


async def test_what_cannot_be_done() -> None:
    async with serving(None, *ALL_KINDS) as (server, api):
        await server.put(NODES, {"metadata": {"name": "n1"}})
        with pytest.raises(MaintenanceError, match="there is no node `n2`"):
            await maintenance_command.start(api, "n2", reason="x", author="ann", deadline=None)
        with pytest.raises(MaintenanceError, match="n1 is not under maintenance"):
            await maintenance_command.finish(api, "n1", author="ann", verified=True, now_wall=NOW)


async def test_it_is_not_begun_where_nothing_tells_of_a_gpu() -> None:
    async with serving(None, *ALL_KINDS) as (server, api):
        await server.put(NODES, {"metadata": {"name": "n1"}})
        await server.put(RESOURCE_SLICES, pool("n1", device("nic-0")))
        with pytest.raises(MaintenanceError, match="no ResourceSlice of n1 and no capacity of it names a GPU"):
            await maintenance_command.start(api, "n1", reason="x", author="ann", deadline=None)
        assert notes(server) == {}
        await server.put(RESOURCE_SLICES, pool("n1", device("gpu-0", attributes={"uuid": "GPU-0"})))
        await maintenance_command.start(api, "n1", reason="x", author="ann", deadline=None)
        assert notes(server) == {"maintenance": "x", "maintenance-by": "ann"}


async def test_on_the_command_line() -> None:
    server = SimApiServer(ALL_KINDS)
    await server.put(NODES, PLUGIN_NODE)
    await server.start()
    try:
        where = ("--api-server-url", server.url)
        assert await claimscope("maintenance", "start", "n1", "--reason", "x", "--deadline", "soon", *where) == (
            2, "", "claimscope: --deadline: `soon` is neither a span such as 90m, 2h or 1d, nor a time such as "
            "2026-11-21T18:00:00Z\n",
        )  # fmt: skip
        code, text, errors = await claimscope(
            "maintenance", "start", "n1", "--reason", "fan swap", "--author", "ann", *where
        )
        assert (code, errors) == (0, "")
        assert text.startswith("maintenance of n1 is asked for; wait until it can go offline:\n")
        assert notes(server) == {"maintenance": "fan swap", "maintenance-by": "ann"}
        assert await claimscope("maintenance", "finish", "n9", *where) == (
            1,
            "",
            "claimscope: there is no node `n9`; `kubectl get nodes` shows them\n",
        )
    finally:
        await server.stop()
