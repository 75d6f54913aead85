"""Rounds of fencing when something around them is not as it should be: refused writes, new leaders, pauses, crowds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import pytest

from claim_objects import allocated
from claimscope.claims.model import DeviceKey
from claimscope.clock import ManualClock
from claimscope.health.model import Severity
from claimscope.kube.api import JSON, ApiClient, ApiError, ApiReason, OpenAccess, Params
from claimscope.kube.objects import ResourceClaim
from claimscope.sim.api.kinds import DEVICE_TAINT_RULES, EVENTS, NODES
from claimscope.taints.apply import api_time
from claimscope.taints.model import Fence, Held, Mode, Plan
from claimscope.taints.notebook import IGNORE, MEMORY, PAUSE, SHOWN, Ask, shown
from claimscope.taints.outcomes import Outcomes
from claimscope.taints.policy import read_policy
from claimscope.taints.tally import Tally
from inventory_objects import make
from taints_bench import START, Bench, Json, Leader, finding, serving
from taints_help import World, a_finding, gpu

BLOCKS = "unhealthy NoSchedule"


class TroubledApi(ApiClient):
    """The real server, after whatever a test does first with a write."""

    def __init__(self, bench: Bench, first: Callable[[str, str], Awaitable[None]]) -> None:
        super().__init__(OpenAccess(bench.server.url))
        self._first = first

    async def send(
        self, method: str, path: str, *, body: bytes | Mapping[str, Any] | Sequence[Any] | None = None,
        content_type: str = JSON, params: Params | None = None,
    ) -> bytes:
        """One request."""
        await self._first(method, path)
        return await super().send(method, path, body=body, content_type=content_type, params=params)


def a_leader(bench: Bench, first: Callable[[str, str], Awaitable[None]]) -> Leader:
    bench.leader = bench.another("troubled", TroubledApi(bench, first))
    return bench.leader


def held(bench: Bench) -> list[tuple[str, str]]:
    return sorted((each.fence.uuid, each.reason) for each in bench.leader.fencing._plan.held)


async def refuse_deletions(method: str, _: str) -> None:
    if method == "DELETE":
        raise ApiError(ApiReason.FORBIDDEN, "denied by another policy")


# ---- writes that are refused -----------------------------------------------------------------------------------------


async def test_a_rule_that_cannot_be_lifted_costs_its_own_room_alone() -> None:
    async with serving(nodes=4) as bench:  # of 32 GPUs three may be kept from work
        await bench.says("node-1", finding("GPU-1-0"))
        leader = a_leader(bench, refuse_deletions)
        await leader.round()
        broken = {"node-2": [finding("GPU-2-0", "gpu_lost", "lost")]}
        await bench.all_say(broken)
        await leader.round()  # its room may have been granted to the other one
        assert bench.effects() == {"gpu-0": BLOCKS, "node-2/gpu-0": "lost None"}
        await bench.all_say(broken)
        await leader.round()
        assert bench.effects() == {"gpu-0": BLOCKS, "node-2/gpu-0": "lost NoSchedule"}
        await bench.all_say(broken)
        await leader.round()
        assert held(bench) == [("GPU-1-0", "refused")]
        assert leader.value("dra_taint_held", "refused") == 1.0
        assert leader.value("dra_taint_budget_used", "fleet") == 2.0


async def test_what_cannot_be_lifted_counts_as_long_as_it_stands() -> None:
    async with serving() as bench:  # of 16 GPUs one may be
        await bench.says("node-1", finding("GPU-1-0"))
        leader = a_leader(bench, refuse_deletions)
        await leader.round()
        for _ in range(5):
            await bench.all_say({"node-2": [finding("GPU-2-0")]})
            await leader.round()
        assert bench.effects() == {"gpu-0": BLOCKS, "node-2/gpu-0": "unhealthy None"}


async def test_a_rule_that_waits_for_a_finalizer_counts_and_is_deleted_once() -> None:
    async with serving() as bench:
        await bench.says("node-1", finding("GPU-1-3"))
        await bench.leader.round()
        rule = bench.rule("gpu-3")
        rule["metadata"]["finalizers"] = ["example.com/x"]
        await bench.server.put(DEVICE_TAINT_RULES, rule)
        await bench.says("node-1")
        await bench.leader.round()
        writes = len(bench.rule_writes())
        for _ in range(5):
            bench.clock.advance(40)
            await bench.all_say({"node-2": [finding("GPU-2-0")]})
            await bench.leader.round()
        assert [each for each in bench.rule_writes()[writes:] if each.startswith("DELETE")] == []
        assert bench.effects() == {"gpu-3": BLOCKS, "node-2/gpu-0": "unhealthy None"}
        assert bench.leader.value("dra_taint_fences", "unhealthy", "NoSchedule") == 1.0
        # The finding comes back, and then the finalizer goes: nobody has deleted a rule that he did not want.
        await bench.all_say({"node-1": [finding("GPU-1-3")]})
        await bench.leader.round()
        rule = bench.rule("gpu-3")
        del rule["metadata"]["finalizers"]
        await bench.server.put(DEVICE_TAINT_RULES, rule)
        await bench.server.delete(DEVICE_TAINT_RULES, rule["metadata"]["name"])
        for _ in range(2):
            await bench.leader.round()
        assert bench.effects() == {"gpu-3": BLOCKS}


# ---- lifting depends on little ---------------------------------------------------------------------------------------


async def test_what_is_over_is_lifted_though_nothing_can_be_remembered() -> None:
    async with serving() as bench:
        await bench.says("node-1", finding("GPU-1-3"))
        await bench.leader.round()
        await bench.leader.round()
        await bench.all_say({"node-2": [finding("GPU-2-0")]})

        async def refuse(method: str, path: str) -> None:
            if method != "GET" and (path.endswith("/claimscope-controller-memory") or path.endswith("/leases")):
                raise ApiError(ApiReason.FORBIDDEN, f"{method} {path}")

        leader = a_leader(bench, refuse)
        await leader.round()
        assert bench.effects() == {}
        # The next leader reads of a rule that stood. Its finding is over, so that its absence says nothing.
        two = bench.leader = bench.another("two")
        await two.round()
        assert bench.effects() == {"node-2/gpu-0": BLOCKS}
        await bench.all_say({"node-1": [finding("GPU-1-3")]})
        await two.round()
        assert bench.effects() == {"gpu-3": BLOCKS}


async def test_what_is_over_is_lifted_though_claims_cannot_be_seen() -> None:
    async with serving() as bench:
        await bench.says("node-1", finding("GPU-1-3"))
        await bench.leader.round()
        bench.leader.readable = False
        await bench.all_say({"node-2": [finding("GPU-2-0")]})
        await bench.leader.round()
        assert bench.effects() == {}
        bench.leader.readable = True
        await bench.leader.round()
        assert bench.effects() == {"node-2/gpu-0": BLOCKS}


# ---- a new leader ----------------------------------------------------------------------------------------------------


async def test_a_new_leader_takes_no_dead_agent_for_a_living_one() -> None:
    async with serving() as bench:
        await bench.says("node-1", finding("GPU-1-0", "pcie_width", "degraded"))
        for _ in range(10):
            await bench.leader.round()
            bench.clock.advance(30)
            await bench.says("node-2")
        silent = {"Ready": ("True", "KubeletReady"), "GPUDegraded": ("Unknown", "AgentSilent"),
                  "GPUUnhealthy": ("Unknown", "AgentSilent")}
        assert bench.conditions("node-1") == silent
        two = bench.leader = bench.another("two")
        for _ in range(4):
            await two.round()
            assert bench.conditions("node-1") == silent
            assert two.value("dra_gpu_nodes", "silent") == 1.0
            bench.clock.advance(60)
            await bench.says("node-2")
        await bench.says("node-1", finding("GPU-1-0", "pcie_width", "degraded"))
        await two.round()
        assert bench.conditions("node-1")["GPUDegraded"] == ("True", "GPUFindings")


async def test_a_new_leader_counts_the_silent_ones_before_it_fences() -> None:
    async with serving(nodes=10) as bench:
        await bench.leader.round()
        for _ in range(6):
            bench.clock.advance(30)
            for node in range(1, 7):
                await bench.says(f"node-{node}")
            await bench.leader.round()
        await bench.says("node-1", finding("GPU-1-0"))
        two = bench.leader = bench.another("two")
        await two.round()
        assert (bench.effects(), held(bench)) == ({"gpu-0": "unhealthy None"}, [("GPU-1-0", "stale")])


async def test_an_agent_whose_clock_is_behind_is_heard_with_its_next_word_and_nothing_is_told_before() -> None:
    async with serving() as bench:
        await bench.says("node-1", finding("GPU-1-0", "pcie_width", "degraded"))
        await bench.leader.round()
        before = bench.conditions("node-1")
        bench.clock.wall += 3600 * 10**9  # nobody's clock is the leader's
        events = bench.events()
        two = bench.leader = bench.another("two")
        await two.round()
        bench.clock.advance(59)
        await two.round()
        assert (bench.conditions("node-1"), bench.events()) == (before, events)
        await bench.says("node-1", finding("GPU-1-0", "pcie_width", "degraded"), finding("GPU-1-1"))
        await bench.says("node-2")
        await two.round()
        assert bench.effects() == {"gpu-0": "degraded None", "gpu-1": BLOCKS}


async def test_a_new_leader_knows_of_a_boot_just_now() -> None:
    async with serving() as bench:
        node = bench.server.get(NODES, "node-1") or {}
        node["status"]["nodeInfo"] = {"bootID": "b2"}
        node["status"]["conditions"] = [{"type": "Ready", "status": "True", "lastTransitionTime": api_time(START - 60)}]
        await bench.server.put(NODES, node)
        await bench.says("node-1", finding("GPU-1-0", "gpu_missing", "lost"))
        await bench.leader.round()
        assert bench.effects() == {}
        two = bench.leader = bench.another("two")
        await two.round()
        assert (bench.effects(), set(held(bench))) == ({}, {("GPU-1-0", "upgrade")})
        bench.clock.advance(541)
        await bench.all_say({"node-1": [finding("GPU-1-0", "gpu_missing", "lost")]})
        await two.round()
        assert bench.effects() == {"gpu-0": "lost NoSchedule"}


# ---- what people ask for ---------------------------------------------------------------------------------------------


async def test_a_pause_is_heard_within_a_round_of_many_writes() -> None:
    async with serving(nodes=20) as bench:
        written: list[str] = []

        async def slowly(method: str, path: str) -> None:
            if method == "POST" and path.endswith("/devicetaintrules"):
                bench.clock.advance(0.1)
                written.append(path)
                if len(written) == 3:  # one of them is the trial
                    await bench.leaders[0].notebook.write({PAUSE: "ann"})

        leader = a_leader(bench, slowly)
        slow = {
            f"node-{node}": [finding(f"GPU-{node}-{gpu}", "row_remap_pending", "degraded") for gpu in range(8)]
            for node in range(1, 21)
        }
        await bench.all_say(slow)
        await leader.round()
        assert len(bench.rules()) == 2


async def test_what_is_over_is_lifted_though_somebody_paused_within_the_round() -> None:
    async with serving() as bench:
        await bench.says("node-1", *(finding(f"GPU-1-{gpu}", "pcie_width", "degraded") for gpu in range(4)))
        await bench.leader.round()

        async def pause(method: str, _: str) -> None:
            if method == "DELETE":
                await bench.leaders[0].notebook.write({PAUSE: "ann"})

        leader = a_leader(bench, pause)
        await bench.all_say({"node-2": [finding("GPU-2-0")]})
        await leader.round()
        assert bench.effects() == {}


async def test_an_acknowledgement_ends_with_its_time_in_every_mode() -> None:
    async with serving(Mode.OBSERVE) as bench:
        ask = msgspec.json.encode(Ask(author="ann", hours=1)).decode()
        await bench.leader.notebook.write({IGNORE + "GPU-1-0": ask})
        await bench.leader.round()
        assert IGNORE + "GPU-1-0" not in await bench.leader.notebook.read()
        memory = json.loads((await bench.leader.notebook.recall())[MEMORY])
        assert [(each["uuid"], each["until_wall"]) for each in memory["ignores"]] == [("GPU-1-0", START + 3600)]
        assert bench.rule_writes() == []


def test_the_last_known_group_goes_where_a_node_loses_its_label() -> None:
    world = World("mode: enforce\ngroups: {A100: {mode: announce}, H100: {mode: enforce}}")
    world.find(a_finding(gpu(1, 0)))
    world.round()
    assert world.taints() == ["gpu-0@n1 unhealthy=xid_fatal:None"]  # it may be of any group


async def test_a_label_that_is_taken_away_changes_no_mode(tmp_path: Any) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("mode: announce\ngroups: {H100: {mode: enforce}, A100: {mode: announce}}\n")
    async with serving(policy=policy) as bench:
        node = bench.server.get(NODES, "node-1") or {}
        node["metadata"]["labels"] = {"nvidia.com/gpu.product": "H100"}
        await bench.server.put(NODES, node)
        await bench.says("node-1", finding("GPU-1-0"))
        await bench.leader.round()
        del node["metadata"]["labels"]
        await bench.server.put(NODES, node)
        for _ in range(2):
            await bench.leader.round()
        assert bench.effects() == {"gpu-0": BLOCKS}


def test_noexecute_goes_with_its_opt_in_though_the_agent_be_silent() -> None:
    world = World("mode: enforce\nrules: {gpu_lost: {no_execute: true}}\nno_execute: {after_seconds: 0, pods_max: 1}")
    world.find(a_finding(gpu(1, 0), "gpu_lost", Severity.LOST))
    world.round()
    claim = make(ResourceClaim, **allocated("train", ("n1", "gpu-0"), user="train-0"))
    world.cluster.apply("resourceclaims", claim, True)
    world.round(10)
    assert world.taints() == ["gpu-0@n1 lost=gpu_lost:NoExecute"]
    world.policy = read_policy("mode: enforce", "policy.yaml", START)
    world.stale = {"n1"}
    world.round(10)
    assert world.taints() == ["gpu-0@n1 lost=gpu_lost:NoSchedule"]


def test_where_somebody_edited_a_rule_none_of_ours_stands_beside_it() -> None:
    world = World(nodes=10)
    world.find(a_finding(gpu(1, 0)))
    world.round()
    (name,) = world.standing()
    rule = world.cluster.rules[name]
    second = msgspec.structs.replace(rule, metadata=msgspec.structs.replace(rule.metadata, name=f"{name}-2"))
    world.put(second)
    world.edit(name, effect="None", value="mine")
    assert world.round() == ["delete gpu-0@n1 unhealthy=xid_fatal:NoSchedule"]
    assert world.taints() == ["gpu-0@n1 unhealthy=mine:None"]
    assert world.round(4000) == []


# ---- crowds, and what is gone ----------------------------------------------------------------------------------------


def test_the_list_of_what_is_held_back_shows_the_worst_of_every_node() -> None:
    def one(node: str, number: int, severity: Severity) -> Held:
        fence = a_fence(node, f"GPU-{node}-{number}", severity)
        return Held(fence=fence, reason="unresolved", text="")

    held_back = [one("loud", number, Severity.UNHEALTHY) for number in range(900)]
    held_back += [one("other", number, Severity.DEGRADED) for number in range(20)]
    held_back += [one("lost", 0, Severity.LOST)]
    found = json.loads(shown(Mode.ENFORCE, Mode.ENFORCE, "", Plan(held=tuple(held_back))))
    assert Counter(each["node"] for each in found["held"]) == {"loud": 41, "other": 8, "lost": 1}
    assert [each["node"] for each in found["held"][:9]] == ["lost", *["loud"] * 8]
    assert found["held_more"] == 871


def a_fence(node: str, uuid: str, severity: Severity) -> Fence:
    return Fence(
        name=f"{node}/{uuid}", device=DeviceKey("", "", ""), key="claimscope.io/x", value="x", effect="None", uuid=uuid,
        node=node, severity=severity,
    )


async def test_one_agent_with_many_findings_leaves_room_for_others_news() -> None:
    async with serving(nodes=3) as bench:
        await bench.says("node-2", *(finding(f"GPU-x-{n}", "thermal_shutdown") for n in range(200)))
        await bench.leader.round()
        await bench.says("node-1", finding("GPU-1-0"))
        await bench.says("node-3", finding("GPU-3-0", "pcie_width", "degraded"))
        await bench.leader.round()
        told = Counter(name for _, name, _ in bench.events())
        assert (told["node-1"], told["node-2"], told["node-3"]) == (1, 20, 1)
        kept = json.loads((await bench.leader.notebook.recall())[SHOWN])
        assert kept["held_more"] == 150


@pytest.mark.parametrize("verb", ["create", "delete", "memory", "read", "dry_run", "agent", "node_taint"])
def test_every_verb_is_there_from_the_start(verb: str) -> None:
    tally = Tally(Outcomes(ManualClock()).counts)
    assert [
        each.value for each in tally.own("closed") if dict(each.labels).get("verb") == verb
    ] == [0.0]


async def test_one_cause_for_many_nodes_is_told_once_and_that_for_a_node_once_for_the_node() -> None:
    async with serving(nodes=20) as bench:
        many: dict[str, list[Json]] = {
            f"node-{node}": [finding(f"GPU-{node}-{gpu}", "power_brake", "degraded") for gpu in range(2)]
            for node in range(1, 16)
        }
        many["node-20"] = [finding(f"GPU-20-{gpu}", "clocks_low", "degraded", systemic=True) for gpu in range(8)]
        for _ in range(3):
            await bench.all_say(many)
            await bench.leader.round()
            bench.clock.advance(5)
        assert bench.effects() == {}
        assert sorted(each["message"] for each in bench.objects(EVENTS)) == [
            "GPUs are held back from claimscope.io/degraded (systemic): power_brake stands on 15 nodes: one cause "
            "outside of them; acknowledge to go on",
            "GPUs are held back from claimscope.io/degraded (systemic_node): many GPUs of node node-20 have clocks_low "
            "at once: one cause outside of them",
        ]
        assert bench.leader.value("dra_taint_held", "systemic") == 30.0
        assert bench.leader.value("dra_taint_held", "systemic_node") == 8.0
