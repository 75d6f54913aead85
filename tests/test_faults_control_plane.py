"""The faults of a control plane, each by name: a leader that fences, a simulated API server, and time that tests move.

What is asserted is what a cluster would have afterwards: which rules stand, which writes were made, which Events.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from claimscope.kube.api import ApiClient, ApiError, ApiReason, OpenAccess
from claimscope.sim.api.access import Asked, User
from claimscope.sim.api.kinds import DEVICE_TAINT_RULES, EVENTS, NODES, RESOURCE_SLICES
from claimscope.sim.api.server import HttpFault
from claimscope.taints.model import Mode
from taints_bench import RULES, START, Bench, Json, finding, fleet, serving

BROKEN = finding("GPU-1-3")
SLOW = finding("GPU-1-4", "pcie_width", "degraded")
BLOCKS = "unhealthy NoSchedule"


def counts(bench: Bench) -> dict[str, int]:
    """How many rules there are of each key and effect."""
    return dict(Counter(bench.effects().values()))


def methods(writes: list[str]) -> dict[str, int]:
    return dict(Counter(each.split()[0] for each in writes))


def held(bench: Bench, reason: str) -> float | None:
    return bench.leader.value("dra_taint_held", reason)


# ---- the API server is away, slow, or refuses ------------------------------------------------------------------------


async def test_an_outage_of_an_hour_ends_with_what_is_true_then_and_replays_nothing() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN, SLOW)
        await bench.leader.round()
        await bench.leader.round()
        port = int(bench.server.url.rsplit(":", 1)[1])
        before = len(bench.server.write_requests)
        await bench.server.stop()
        for _ in range(60):  # nobody can renew anything
            bench.clock.advance(60)
            await bench.leader.fencing.round()
        await bench.server.start(port)
        await bench.leader.round()  # every agent looks silent: what stands stays
        assert bench.effects() == {"gpu-3": BLOCKS, "gpu-4": "degraded None"}
        assert methods([each for each in bench.server.write_requests[before:] if "/devicetaintrules" in each]) == {}
        # During the hour GPU-1-3 healed, GPU-1-5 broke and healed, GPU-2-0 broke.
        await bench.says("node-1", SLOW)
        await bench.says("node-2", finding("GPU-2-0", since=START + 1800))
        await bench.leader.round()
        assert bench.effects() == {"gpu-4": "degraded None", "node-2/gpu-0": BLOCKS}
        assert methods(bench.rule_writes()[-2:]) == {"DELETE": 1, "POST": 1}
        assert len([each for each in bench.server.write_requests[before:] if "/devicetaintrules" in each]) == 2


async def test_a_server_that_asks_to_wait_half_a_minute_is_asked_nothing_meanwhile() -> None:
    async with serving() as bench:
        await bench.says("node-1", SLOW)
        await bench.leader.round()
        await bench.leader.round()
        bench.server.fail(RULES, HttpFault(status=429, headers={"Retry-After": "30"}))
        await bench.says("node-1", SLOW, BROKEN)
        await bench.leader.round()
        asked = len(bench.server.requests)
        for _ in range(7):
            bench.clock.advance(4)
            await bench.leader.round()
        assert len(bench.server.requests) == asked
        bench.clock.advance(3)
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": BLOCKS, "gpu-4": "degraded None"}


class Forgetful(ApiClient):
    """A connection on which answers to some writes are lost: the server has done what was asked."""

    def __init__(self, url: str) -> None:
        super().__init__(OpenAccess(url))
        self.losing = ""  # a method

    async def send(self, method: str, path: str, **more: Any) -> bytes:
        answer = await super().send(method, path, **more)
        if method == self.losing and path.startswith(RULES) and "dryRun" not in str(more.get("params")):
            raise ApiError(ApiReason.TIMEOUT, f"{method} {path}: no answer in 5 s")
        return answer


@pytest.mark.parametrize("seen", [False, True], ids=["the watch lags", "the watch tells"])
async def test_a_write_whose_answer_is_lost_is_not_done_twice(seen: bool) -> None:
    async with serving() as bench:
        api = Forgetful(bench.server.url)
        leader = bench.another("two", api)
        await bench.says("node-1", BROKEN)
        api.losing = "POST"
        await leader.round()
        api.losing = ""
        if seen:
            leader.see()
        for _ in range(2):
            bench.clock.advance(5)
            await leader.fencing.round()
        assert bench.effects() == {"gpu-3": BLOCKS}
        leader.see()
        await leader.fencing.round()
        api.losing = "DELETE"
        await bench.says("node-1")
        await leader.round()
        api.losing = ""
        bench.clock.advance(5)
        await leader.round()
        assert bench.effects() == {}


async def test_a_slow_server_is_written_to_once() -> None:
    async with serving() as bench:
        bench.server.delay(RULES, 0.05)
        await bench.says("node-1", BROKEN, SLOW)
        await bench.leader.round()
        await bench.leader.round()
        assert bench.rule_writes() == [f"POST {RULES}"] * 3  # the trial and two rules
        assert bench.effects() == {"gpu-3": BLOCKS, "gpu-4": "degraded None"}


class Rights:
    """What the controller may do: everything but one thing."""

    def __init__(self) -> None:
        self.denied = ("", "")  # verb and resource

    def __call__(self, _: User, asked: Asked) -> bool:
        resource = f"{asked.resource}/{asked.subresource}" if asked.subresource else asked.resource
        return (asked.verb, resource) != self.denied


@pytest.mark.parametrize(
    ("verb", "resource", "rules", "condition", "told"),
    [
        ("create", "devicetaintrules", {}, "False", ["GPUTaintLifted"]),
        # What cannot be lifted goes on to count: two of sixteen GPUs would be more than the budget.
        ("delete", "devicetaintrules", {"gpu-3": BLOCKS, "gpu-5": "unhealthy None"}, "False", ["GPUTaintAnnounced"]),
        ("patch", "nodes/status", {"gpu-5": BLOCKS}, "True", ["GPUTaintLifted", "GPUTainted"]),
        ("create", "events", {"gpu-5": BLOCKS}, "False", []),
        ("patch", "leases", {}, "True", []),  # without memory nothing is put up, and what is over is lifted
    ],
)
async def test_a_right_that_is_missing_costs_only_what_it_is_for(
    verb: str, resource: str, rules: dict[str, str], condition: str, told: list[str]
) -> None:
    rights = Rights()
    async with serving(rule=rights) as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        await bench.leader.round()
        told_before = Counter(reason for _, _, reason in bench.events())
        rights.denied = (verb, resource)
        await bench.says("node-1", finding("GPU-1-5", "pcie_width", "degraded"))
        bench.clock.advance(1)
        await bench.says("node-1", finding("GPU-1-5"))
        for _ in range(3):
            bench.clock.advance(5)
            await bench.leader.round()
        assert bench.effects() == rules
        assert bench.conditions("node-1")["GPUDegraded"][0] == "False"
        told_since = Counter(reason for _, _, reason in bench.events()) - told_before
        assert sorted(told_since.keys() - {"GPUTaintHeld"}) == told
        rights.denied = ("", "")
        bench.clock.advance(60)
        await bench.all_say({"node-1": [finding("GPU-1-5")]})
        for _ in range(2):
            await bench.leader.round()
        assert bench.effects() == {"gpu-5": BLOCKS}
        assert bench.conditions("node-1")["GPUUnhealthy"] == ("True", "GPUFindings")


# ---- many at once, and many over time --------------------------------------------------------------------------------


async def test_a_third_of_the_fleet_with_the_same_false_signal_within_a_minute() -> None:
    async with serving(nodes=50) as bench:
        wrong: dict[str, list[Json]] = {}
        for number in range(1, 16):
            bench.clock.advance(4)
            wall = bench.clock.wall_ns() / 1e9
            wrong[f"node-{number}"] = [finding(f"GPU-{number}-{gpu}", since=wall) for gpu in range(8)]
            await bench.says(f"node-{number}", *wrong[f"node-{number}"])
            await bench.leader.round()
        for _ in range(4):
            bench.clock.advance(300)
            await bench.all_say(wrong)
            await bench.leader.round()
        assert counts(bench) == {BLOCKS: 8, "unhealthy None": 112}  # 2 % of 400 GPUs
        assert held(bench, "systemic") == 112.0
        assert any("one cause outside of them" in each["message"] for each in bench.objects(EVENTS))
        await bench.all_say()
        await bench.leader.round()
        assert counts(bench) == {}


async def test_gpus_that_break_one_by_one_over_days_are_stopped_by_what_stands() -> None:
    async with serving(nodes=10) as bench:
        broken: dict[str, list[Json]] = {}
        for number in range(16):  # a fifth of 80 GPUs in four days
            wall = bench.clock.wall_ns() / 1e9
            found = finding(f"GPU-{number % 8 + 1}-{number // 8}", "ecc_uncorrected_dram", since=wall)
            broken.setdefault(f"node-{number % 8 + 1}", []).append(found)
            await bench.all_say(broken)
            await bench.leader.round()
            assert counts(bench).get(BLOCKS) == min(number + 1, 8)  # a tenth of the fleet
            bench.clock.advance(6 * 3600)
        assert counts(bench) == {BLOCKS: 8, "unhealthy None": 8}
        assert held(bench, "budget_fleet") == 8.0


async def test_a_cordon_that_was_there_before_counts() -> None:
    async with serving(nodes=10) as bench:
        node = bench.server.get(NODES, "node-10") or {}
        await bench.server.put(NODES, {**node, "spec": {"unschedulable": True}})
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": "unhealthy None"}  # eight of 80 GPUs are out of work already
        assert held(bench, "budget_fleet") == 1.0
        await bench.server.put(NODES, node)
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": BLOCKS}


async def test_an_open_breaker_lifts_outlives_its_leader_and_releases_what_is_true_then() -> None:
    async with serving(nodes=10) as bench:
        await bench.says("node-3", finding("GPU-3-0", "ecc_uncorrected_dram"))
        await bench.leader.round()
        flood = {
            "node-1": [finding(f"GPU-1-{gpu}") for gpu in range(8)], "node-2": [finding("GPU-2-0"), finding("GPU-2-1")],
            "node-3": [finding("GPU-3-0", "ecc_uncorrected_dram")],
        }
        bench.clock.advance(700)
        await bench.all_say(flood)
        await bench.leader.round()
        assert counts(bench) == {BLOCKS: 1, "unhealthy None": 10}
        assert bench.leader.value("claimscope_controller_taint_breaker_state", "open") == 1.0
        # Lifting goes on.
        await bench.all_say({**flood, "node-3": []})
        await bench.leader.round()
        assert counts(bench) == {"unhealthy None": 10}
        # The next leader finds it open.
        bench.leader.leads = False
        leader = bench.another("two")
        bench.clock.advance(600)
        await bench.all_say({**flood, "node-3": []})
        await leader.round()
        assert leader.value("claimscope_controller_taint_breaker_state", "open") == 1.0
        # Four of them heal before it opens by a quarter: they are never fenced.
        flood = {"node-1": [finding(f"GPU-1-{gpu}") for gpu in range(4)], "node-2": flood["node-2"]}
        fenced: list[int] = []
        for _ in range(8):
            bench.clock.advance(300)
            await bench.all_say(flood)
            await leader.round()
            fenced.append(counts(bench).get(BLOCKS, 0))
        # Half open after 30 minutes it lets one of six through in ten minutes, closed again three.
        assert fenced == [0, 0, 0, 1, 1, 4, 4, 6]
        assert counts(bench) == {BLOCKS: 6}


# ---- not enough is known ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["resourceslices", "devicetaintrules", "leases"])
async def test_a_cold_start_fences_nothing(missing: str) -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        bench.leader.see(without=missing)
        await bench.leader.fencing.round()
        assert bench.rule_writes() == []
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": BLOCKS}


@pytest.mark.parametrize("missing", ["resourceslices", "devicetaintrules", "leases", "nodes"])
async def test_a_new_leader_that_cannot_read_a_kind_yet_lifts_nothing(missing: str) -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        bench.leader.leads = False
        two = bench.another("two")
        for seconds in (5, 5, 5):
            bench.clock.advance(seconds)
            await bench.says("node-1", BROKEN)
            two.see(without=missing)
            await two.fencing.round()
            assert bench.effects() == {"gpu-3": BLOCKS}
        for seconds in (5, 5):
            bench.clock.advance(seconds)
            await bench.says("node-1", BROKEN)
            await two.round()
            assert bench.effects() == {"gpu-3": BLOCKS}
        assert held(bench, "ignored") == 0.0


async def test_a_fleet_of_no_known_devices_is_an_open_breaker() -> None:
    async with serving() as bench:
        for each in fleet():
            await bench.server.delete(RESOURCE_SLICES, each["metadata"]["name"], "team")
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        assert bench.rule_writes() == []
        assert bench.leader.value("claimscope_controller_taint_breaker_state", "open") == 1.0
        assert held(bench, "unresolved") == 1.0
        for each in fleet():
            await bench.server.put(RESOURCE_SLICES, each)
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": BLOCKS}


# ---- leaders ---------------------------------------------------------------------------------------------------------


async def test_a_leader_that_dies_while_it_writes_leaves_nothing_twice_and_nothing_out() -> None:
    async with serving(nodes=10) as bench:
        rules = (
            "xid_fatal", "xid_repeat_fatal", "reset_failed", "ecc_uncorrected_dram", "row_remap_failure",
            "thermal_shutdown",
        )
        await bench.all_say({
            f"node-{node}": [finding(f"GPU-{node}-{node}", rule)] for node, rule in enumerate(rules, 1)
        })
        bench.server.delay(RULES, 0.02)
        bench.leader.see()
        dying = asyncio.create_task(bench.leader.fencing.round())
        async with asyncio.timeout(10):
            while len(bench.rules()) < 3:  # noqa: ASYNC110 - nothing tells that a rule was stored
                await asyncio.sleep(0.001)
        dying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dying
        bench.server.delay(RULES, 0)
        leader = bench.another("two")
        for _ in range(2):
            await leader.round()
        assert sorted(bench.effects()) == [
            "gpu-1", "node-2/gpu-2", "node-3/gpu-3", "node-4/gpu-4", "node-5/gpu-5", "node-6/gpu-6",
        ]
        assert len(bench.rules()) == 6
        assert counts(bench) == {BLOCKS: 3, "unhealthy None": 3}  # the rate, over both


async def test_two_leaders_at_once_agree_in_the_end() -> None:
    async with serving(nodes=10) as bench:
        two = bench.another("two")
        steps: list[dict[str, list[Json]]] = [
            {"node-1": [finding("GPU-1-0")], "node-2": [finding("GPU-2-0", "pcie_width", "degraded")]},
            {"node-1": [finding("GPU-1-0", "gpu_lost", "lost")], "node-2": [finding("GPU-2-0", "xid_fatal")]},
            {"node-1": [finding("GPU-1-0"), finding("GPU-1-1")]},
            {"node-1": [finding("GPU-1-1")], "node-2": [finding("GPU-2-0", "pcie_width", "degraded")]},
        ]
        for step in steps:
            bench.clock.advance(5)
            await bench.all_say(step)
            bench.leader.see()
            two.see()
            await asyncio.gather(bench.leader.fencing.round(), two.fencing.round())
        for leader in (bench.leader, two, bench.leader):
            bench.clock.advance(5)
            await leader.round()
        assert bench.effects() == {"gpu-1": BLOCKS, "node-2/gpu-0": "degraded None"}
        assert len(bench.rules()) == 2


# ---- people ----------------------------------------------------------------------------------------------------------

OVERRIDES = """
mode: enforce
overrides:
  - {{do: pin_unhealthy, uuid: GPU-1-0, until: "{until}", author: ann, reason: smells}}
  - {{do: ignore, uuid: GPU-1-3, rule: xid_fatal, until: "{until}", author: bob}}
"""


async def test_a_pin_and_an_ignore_end_with_their_time(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(OVERRIDES.format(until="2026-11-21T12:23:32Z"))  # an hour after the start
    async with serving(policy=file) as bench:
        await bench.all_say({"node-1": [BROKEN]})
        await bench.leader.round()
        assert bench.effects() == {"gpu-0": BLOCKS}
        bench.clock.advance(3599)
        await bench.all_say({"node-1": [BROKEN]})
        await bench.leader.round()
        assert bench.effects() == {"gpu-0": BLOCKS}
        bench.clock.advance(1)
        await bench.all_say({"node-1": [BROKEN]})
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": BLOCKS}


async def test_a_node_that_is_deleted_takes_its_rules_along() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        await bench.leader.round()
        (owner,) = bench.rule("gpu-3")["metadata"]["ownerReferences"]
        assert owner == {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "uid-node-1"}
        await bench.server.delete(NODES, "node-1")
        await bench.leader.round()
        assert bench.effects() == {}
        # It comes back as another Node: its GPU is still broken, and nobody's hand is seen in what went.
        await bench.server.put(NODES, {"metadata": {"name": "node-1", "uid": "uid-again"}})
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": BLOCKS}
        assert bench.rule("gpu-3")["metadata"]["ownerReferences"][0]["uid"] == "uid-again"


async def test_what_the_garbage_collector_took_first_is_no_persons_doing() -> None:
    async with serving() as bench:
        await bench.says("node-1", BROKEN)
        await bench.leader.round()
        await bench.leader.round()
        await bench.server.delete(NODES, "node-1")
        await bench.server.delete(DEVICE_TAINT_RULES, bench.rule("gpu-3")["metadata"]["name"])
        await bench.server.put(NODES, {"metadata": {"name": "node-1", "uid": "uid-again"}})
        await bench.leader.round()
        assert bench.effects() == {"gpu-3": BLOCKS}


# ---- how much is written ---------------------------------------------------------------------------------------------


async def test_events_and_conditions_are_bounded_in_size_and_rate() -> None:
    async with serving(nodes=10) as bench:
        long = {"line": "x" * 5000, **{f"key{number}": "y" * 500 for number in range(30)}}
        for second in range(4):
            bench.clock.advance(1)
            sick = {
                f"node-{node}": [
                    finding(f"GPU-{node}-{gpu}", "r" * 60 + str(gpu), "degraded", evidence=long) for gpu in range(8)
                ]
                for node in range(1, 11)
            }
            await bench.all_say(sick if second % 2 == 0 else {})
            await bench.leader.round()
        assert len(bench.events()) <= 50 + 4
        assert (bench.leader.value("claimscope_controller_taint_events_dropped_total") or 0) > 100
        assert max(len(each["message"]) for each in bench.objects(EVENTS)) <= 1000
        messages = [
            each["message"] for node in bench.objects(NODES) for each in node["status"]["conditions"]
            if each["type"].startswith("GPU")
        ]
        assert 0 < max(map(len, messages)) <= 1000


async def test_observing_asks_and_never_writes() -> None:
    async with serving(Mode.OBSERVE) as bench:
        for step in range(5):
            bench.clock.advance(61)
            await bench.all_say({"node-1": [BROKEN, SLOW, finding("GPU-1-0", "gpu_lost", "lost")]} if step % 2 else {})
            await bench.leader.round()
        assert bench.server.write_requests == []
        assert len(bench.server.requests) > 5


async def test_announcing_writes_no_effect_but_none() -> None:
    async with serving(Mode.ANNOUNCE) as bench:
        worst = [BROKEN, SLOW, finding("GPU-1-0", "gpu_lost", "lost"), finding("GPU-1-3", "recovery_action")]
        for step in range(4):
            bench.clock.advance(61)
            await bench.all_say({"node-1": worst[: step + 1], "node-2": []})
            await bench.leader.round()
        assert bench.effects() == {"gpu-0": "lost None", "gpu-3": "unhealthy None", "gpu-4": "degraded None"}
        assert bench.leader.value("dra_device_taints_applied_total", "claimscope.io/unhealthy", "NoSchedule") == 0.0
