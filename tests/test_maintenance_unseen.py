"""Maintenance while something that it rests on cannot be read: what stands for it stays."""

from __future__ import annotations

import pytest

from claimscope.sim.api.kinds import ALL_KINDS, NODES
from claimscope.taints.maintenance_ask import ASK
from maintenance_help import NodeAgent, annotate, confirm
from taints_bench import Bench, Leader, serving

READY = ("True", "Ready")


async def _rounds(bench: Bench, agent: NodeAgent, leader: Leader, count: int, *, without: str = "") -> None:
    for _ in range(count):
        bench.clock.advance(10)
        await agent.beat()
        await bench.says("node-2")
        await confirm(bench)
        leader.see(without=without)
        await leader.fencing.round()


def _taints(bench: Bench) -> list[str]:
    node = bench.server.get(NODES, "node-1") or {}
    return [taint["key"] for taint in node["spec"].get("taints") or ()]


@pytest.mark.parametrize("missing", ["nodes", "devicetaintrules", "leases", "resourceslices"])
async def test_a_new_leader_that_cannot_read_a_kind_yet_gives_no_node_back(missing: str) -> None:
    async with serving() as bench:
        agent = NodeAgent(bench)
        await annotate(bench, "node-1", maintenance="exchange a board")
        await _rounds(bench, agent, bench.leader, 8)
        assert bench.conditions("node-1")["GPUMaintenanceReady"] == READY
        standing, asked = bench.effects(), agent.notes()[ASK]
        assert len(standing) == 8
        bench.leader.leads = False
        two = bench.another("two")
        await _rounds(bench, agent, two, 3, without=missing)
        assert (bench.effects(), agent.notes()[ASK], agent.nvml.released) == (standing, asked, True)
        await _rounds(bench, agent, two, 3)
        assert (bench.effects(), bench.conditions("node-1")["GPUMaintenanceReady"]) == (standing, READY)


async def test_the_taint_of_a_node_stays_while_claims_cannot_be_seen() -> None:
    kinds = tuple(kind for kind in ALL_KINDS if kind.plural != "devicetaintrules")
    async with serving(kinds=kinds) as bench:
        agent = NodeAgent(bench)
        await annotate(bench, "node-1", maintenance="exchange a board")
        await _rounds(bench, agent, bench.leader, 8)
        assert _taints(bench) == ["claimscope.io/maintenance"]
        bench.leader.readable = False
        await _rounds(bench, agent, bench.leader, 3)
        assert _taints(bench) == ["claimscope.io/maintenance"]
        bench.leader.readable = True
        await _rounds(bench, agent, bench.leader, 2)
        assert bench.conditions("node-1")["GPUMaintenanceReady"] == READY
