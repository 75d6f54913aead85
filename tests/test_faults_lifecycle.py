"""The faults in the life of agents and fences, each by name: agents that die, links that flap, GPUs that heal."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from claim_objects import allocated
from claimscope.health.model import Severity
from claimscope.kube.api import ApiClient, OpenAccess
from claimscope.kube.lease import HeartbeatLease
from claimscope.sim.api.kinds import DEVICE_TAINT_RULES, LEASES, NODES, RESOURCE_CLAIMS
from claimscope.state import load
from claimscope.taints.notebook import PAUSE
from claimscope.taints.worker import NOTES_SECONDS, ROUND_SECONDS
from health_help import Bench as Node
from taints_bench import Bench, Json, finding, lift, serving
from taints_help import World, a_finding

BROKEN = finding("GPU-1-3")
SLOW = finding("GPU-1-4", "pcie_width", "degraded")
BLOCKS = "unhealthy NoSchedule"
EIGHT_RULES = (
    "xid_needs_repair", "xid_repeat_fatal", "reset_required", "reset_failed", "sram_ecc_threshold",
    "row_remap_failure", "retired_pages_many", "driver_event_fatal",
)

# ---- agents that die -------------------------------------------------------------------------------------------------

WRITER = """
import itertools, sys
from pathlib import Path
from claimscope.state import JournalState, XidState, save
xids = [XidState(entity=f"GPU-{index}", xid=79, count=1, last_wall_ns=index) for index in range(2000)]
for number in itertools.count():
    save(Path(sys.argv[1]), JournalState(unobserved_seconds=float(number), xids=xids))
    print(number, flush=True)
"""


def test_an_agent_killed_while_it_writes_its_journal_leaves_a_whole_one(tmp_path: Path) -> None:
    journal = tmp_path / "agent.json"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(journal)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        said = [int(writer.stdout.readline()) for _ in range(5)]
        writer.kill()
    loaded = load(journal)
    assert loaded.error is None
    assert loaded.state is not None
    assert len(loaded.state.xids) == 2000
    assert loaded.state.unobserved_seconds >= said[-1]
    assert {each.name for each in tmp_path.iterdir()} <= {"agent.json", "agent.json.tmp"}


async def test_an_agent_killed_while_it_writes_its_lease_doubles_and_loses_nothing() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        await bench.leader.round()
        lease = bench.server.get(LEASES, "claimscope-agent-node-1", "claimscope") or {}
        told = lease["metadata"]["annotations"]
        rules = [each["metadata"]["resourceVersion"] for each in bench.objects(DEVICE_TAINT_RULES)]
        api = ApiClient(OpenAccess(bench.server.url))

        def agent() -> HeartbeatLease:
            return HeartbeatLease(
                api, "claimscope", "claimscope-agent-node-1", "node-1", {}, bench.clock, first_wait_seconds=0.01
            )

        writes = len(bench.server.write_requests)
        dying = agent()
        dying.set_annotations({**told, "claimscope.io/findings": '{"boot_id":"boot-1","findings":['})
        bench.server.delay("/apis/coordination.k8s.io/v1/namespaces/claimscope/leases/claimscope-agent-node-1", 0.05)
        task = asyncio.create_task(dying.run())
        async with asyncio.timeout(10):
            while len(bench.server.write_requests) == writes:  # noqa: ASYNC110 - nothing tells of a request
                await asyncio.sleep(0.001)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await bench.leader.round()
        # The next one knows its findings from the journal, and is late with them.
        bench.clock.advance(30)
        following = agent()
        following.set_annotations({"claimscope.io/node": "node-1"})
        task = asyncio.create_task(following.run())
        async with asyncio.timeout(10):
            while following.renewed_wall is None:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await bench.leader.round()
        following.set_annotations(told)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await api.close()
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": BLOCKS}
        assert [each["metadata"]["resourceVersion"] for each in bench.objects(DEVICE_TAINT_RULES)] == rules


async def test_an_agent_dead_for_ten_minutes_and_for_a_day_leaves_what_stands_and_is_unmonitored() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN, SLOW)
        await bench.leader.round()
        await bench.leader.round()
        writes = len(bench.rule_writes())
        for seconds in (600, 25 * 3600):
            bench.clock.advance(seconds)
            await bench.says("node-2")
            await bench.leader.round()
            assert bench.effects() == {"gpu-3": BLOCKS, "gpu-4": "degraded None"}
            assert bench.conditions("node-1") == {
                "Ready": ("True", "KubeletReady"), "GPUDegraded": ("Unknown", "AgentSilent"),
                "GPUUnhealthy": ("Unknown", "AgentSilent"),
            }
            assert bench.leader.value("dra_gpu_nodes", "silent") == 1.0
        assert bench.events().count(("Node", "node-1", "GPUUnmonitored")) == 2  # at once, and after a day
        assert len(bench.rule_writes()) == writes


async def test_a_gpu_that_heals_while_its_agent_is_dead_is_freed_when_the_agent_is_back() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN, SLOW)
        await bench.leader.round()
        bench.clock.advance(3600)
        await bench.says("node-2")
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": BLOCKS, "gpu-4": "degraded None"}
        await bench.says("node-1", SLOW)
        await bench.leader.round()
        assert bench.effects() == {"gpu-4": "degraded None"}
        assert bench.conditions("node-1")["GPUUnhealthy"] == ("False", "NoFindings")


# ---- findings that come and go ---------------------------------------------------------------------------------------


def told_by(node: Node) -> list[Json]:
    """What the agent's engine says of its only GPU, as if it were GPU-1-3."""
    return [
        finding("GPU-1-3", each.rule, each.severity.value, each.since_wall_ns // 10**9)
        for each in node.findings().values()
    ]


async def test_a_link_that_flaps_twenty_times_an_hour_latches_and_costs_few_writes() -> None:
    node = Node()
    async with serving() as bench:
        await bench.leader.round()
        said: list[Json] = []
        writes: list[int] = []
        for _ in range(2):
            before = len(bench.server.write_requests)
            for _ in range(20):
                for state in (0.0, 1.0):
                    node.gpus[0].last["nvlink_up/3"] = state
                    node.run(90)
                    bench.clock.advance(90)
                    said = told_by(node)
                    await bench.all_say({"node-1": said})
                    await bench.leader.round()
            writes.append(len(bench.server.write_requests) - before)
        assert bench.effects() == {"gpu-3": BLOCKS}
        assert [each["rule"] for each in said] == ["nvlink_down"]
        assert max(writes) <= 10
        assert writes[1] == 0


async def test_a_link_that_flaps_slowly_latches_after_the_third_time() -> None:
    node = Node()
    for _ in range(4):  # each fall lasts a minute, and each recovery long enough to count as one
        node.gpus[0].last["nvlink_up/3"] = 0.0
        node.run(120)
        node.gpus[0].last["nvlink_up/3"] = 1.0
        node.run(2 * 3600, window=60)
    assert node.state("nvlink_down").value == "latched"


# ---- what is announced becomes a fence, and goes ---------------------------------------------------------------------


async def test_a_fence_that_was_announced_first_is_lifted_like_any_other() -> None:
    async with serving() as bench:  # of sixteen GPUs one may be kept from work
        await bench.says("node-1", BROKEN, finding("GPU-1-5", since=1795260200.0))
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": BLOCKS, "gpu-5": "unhealthy None"}
        await bench.says("node-1", finding("GPU-1-5", since=1795260200.0))
        await bench.leader.round()
        assert bench.effects() == {"gpu-5": BLOCKS}
        await bench.leader.round()
        await bench.says("node-1")
        await bench.leader.round()
        assert bench.effects() == {}
        assert [reason for _, _, reason in bench.events()] == [
            "GPUTaintAnnounced", "GPUTaintChanged", "GPUTaintHeld", "GPUTaintLifted", "GPUTaintLifted", "GPUTainted",
        ]


async def test_a_fence_of_a_mode_that_was_raised_is_lifted_like_any_other(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("mode: announce\n")
    async with serving(policy=file) as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": "unhealthy None"}
        file.write_text("mode: enforce  # now\n")
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": BLOCKS}
        await bench.says("node-1")
        await bench.leader.round()
        assert bench.effects() == {}


async def test_what_heals_is_freed_in_one_round_with_everything_that_holds_back_in_force() -> None:
    async with serving(nodes=10) as bench:
        standing = {"node-1": [BROKEN], "node-10": [finding("GPU-10-0", "gpu_lost", "lost")]}
        await bench.all_say(standing)
        await bench.leader.round()
        assert sorted(bench.effects().values()) == ["lost NoSchedule", BLOCKS]
        bench.clock.advance(700)
        wall = bench.clock.wall_ns() / 1e9
        flood = {
            **standing,
            **{f"node-{node}": [finding(f"GPU-{node}-{gpu}", since=wall) for gpu in range(2)] for node in range(2, 7)},
            "node-7": [finding(f"GPU-7-{gpu}", rule, since=wall) for gpu, rule in enumerate(EIGHT_RULES)],
            "node-8": [finding("GPU-8-0", "xid_needs_reboot", since=wall)],
        }
        node = bench.server.get(NODES, "node-9") or {}
        await bench.server.put(NODES, {**node, "spec": {"unschedulable": True}})  # the budget of the fleet is used up
        await bench.all_say(flood)
        await bench.leader.round()
        assert bench.leader.value("claimscope_controller_taint_breaker_state", "open") == 1.0
        assert (bench.leader.value("dra_taint_held", "systemic"), bench.leader.value("dra_taint_held", "breaker")) == (
            10.0, 9.0,
        )
        await bench.leader.notebook.write({PAUSE: "ann"})
        for each in ("node-4", "node-5", "node-6"):
            await bench.says(each)  # and a third of the agents is silent from here on
        bench.clock.advance(130)
        writes = len(bench.rule_writes())
        await bench.says("node-1")
        await bench.says("node-10", SLOW)
        await bench.leader.round()
        assert {each for each in bench.effects().values() if each.endswith("NoSchedule")} == set()
        assert {each.split()[0] for each in bench.rule_writes()[writes:]} == {"DELETE"}


def test_a_worse_finding_on_a_fenced_gpu_is_held_back_like_any_other_and_never_frees_it() -> None:
    world = World(nodes=10)
    world.find(a_finding("GPU-0-0", "thermal_shutdown"))
    world.round()
    for node in range(5):  # one cause for many
        world.find(a_finding(f"GPU-{node}-0", "gpu_lost", Severity.LOST, since=world.now))
    world.round(60)
    assert [each for each in world.taints() if "@n0" in each] == [
        "gpu-0@n0 lost=gpu_lost:None", "gpu-0@n0 unhealthy=thermal_shutdown:NoSchedule",
    ]
    world.clear("GPU-0-0", "thermal_shutdown")
    world.round(60)
    assert [each for each in world.taints() if "@n0" in each] == ["gpu-0@n0 lost=gpu_lost:NoSchedule"]
    world.clear("GPU-0-0")
    world.round(60)
    assert [each for each in world.taints() if "@n0" in each] == []


# ---- pausing and uninstalling ----------------------------------------------------------------------------------------


def test_a_pause_acts_within_ten_seconds() -> None:
    # A round may come just before the Lease would be read again; the next comes after at most two of the pauses.
    assert NOTES_SECONDS + 2 * ROUND_SECONDS <= 10


async def others(bench: Bench) -> list[Json]:
    """Everything that is not claimscope's."""
    theirs = {
        "metadata": {"name": "theirs", "labels": {"claimscope.io/node": "node-1"}},
        "spec": {
            "deviceSelector": {"driver": "gpu.nvidia.com", "pool": "node-1", "device": "gpu-3"},
            "taint": {"key": "claimscope.io/unhealthy", "value": "copied", "effect": "NoSchedule"},
        },
    }
    await bench.server.put(DEVICE_TAINT_RULES, theirs)
    return [each for each in bench.objects(DEVICE_TAINT_RULES) if each["metadata"]["name"] == "theirs"]


async def test_uninstalling_lifts_every_rule_and_condition_of_ours_also_edited_ones_and_none_of_others() -> None:
    async with serving() as bench:
        theirs = await others(bench)
        await bench.server.put(RESOURCE_CLAIMS, allocated("train", ("node-1", "gpu-3"), user="worker"))
        await bench.all_say({"node-1": [BROKEN, SLOW], "node-2": [finding("GPU-2-7", "gpu_lost", "lost")]})
        await bench.leader.round()
        edited = bench.rule("gpu-4")
        edited["spec"]["taint"]["value"] = "mine"
        await bench.server.put(DEVICE_TAINT_RULES, edited)
        bench.leader.leads = False
        said = (await lift(bench, all_of_ours=True)).done
        assert len([each for each in said if each.startswith("lifted ")]) == 3
        assert bench.objects(DEVICE_TAINT_RULES) == theirs
        for node in ("node-1", "node-2"):
            assert bench.conditions(node) == {"Ready": ("True", "KubeletReady")}
