"""What holds of fencing whatever happens, from agents' Leases to rules on an API server that fails now and then.

Random steps; after each, the cluster is looked at from outside (taints_checker.py).
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from claim_objects import device, pool
from claimscope.claims.model import DeviceKey
from claimscope.clock import ManualClock
from claimscope.health.model import Severity
from claimscope.kube.api import ApiReason
from claimscope.kube.objects import DeviceTaintRule
from claimscope.sim.api.kinds import ALL_KINDS, DEVICE_TAINT_RULES, LEASES, NODES, RESOURCE_SLICES
from claimscope.sim.api.server import SimApiServer
from claimscope.taints import fences
from claimscope.taints.model import Fence, Mode
from claimscope.taints.notebook import PAUSE
from claimscope.taints.policy import read_policy
from taints_api import LOST, StoreApi
from taints_bench import START, Bench
from taints_checker import (
    Moment,
    Said,
    blocked_against_orders,
    lowered,
    over_budget,
    over_rate,
    without_device,
    without_evidence,
)

NODE_COUNT, GPU_COUNT = 5, 4
NODE = st.integers(1, NODE_COUNT)
GPU = st.integers(0, GPU_COUNT - 1)
RULES = {
    "pcie_width": "degraded", "nvlink_down": "degraded", "thermal_shutdown": "unhealthy", "xid_fatal": "unhealthy",
    "reset_failed": "unhealthy", "gpu_lost": "lost",
}  # fmt: skip
KEY = st.sampled_from(sorted(RULES))
TROUBLE = st.sampled_from([
    None, LOST, ApiReason.CONFLICT, ApiReason.FORBIDDEN, ApiReason.INVALID, ApiReason.SERVER_ERROR, ApiReason.TIMEOUT,
    ApiReason.RATE_LIMITED,
])
POLICY = """
mode: {mode}
budgets: {{fleet_share: 0.15, group_share: 0.5}}
rate: {{least: 2, share: 0.1}}
breaker: {{least: 3, share: 0.1}}
overrides: [{pins}]
"""
PIN = '{{do: pin_unhealthy, uuid: {uuid}, until: "2026-12-01T00:00:00Z", author: ann}}'
RATE_SECONDS = 600.0
_SEVERITY = {each.value: each for each in Severity}


class Fencing(RuleBasedStateMachine):
    """A cluster, its agents, people, and one leader after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.file = Path(self.directory.name, "policy.yaml")
        self.clock = ManualClock(monotonic=10**12, wall=round(START * 1e9))
        self.server = SimApiServer(ALL_KINDS, git_version="v1.37.0", wall=lambda: self.clock.wall_ns() / 1e9)
        self.api = StoreApi(self.server)
        self.mode = "enforce"
        self.pins: set[str] = set()
        self.write_policy()
        self.bench = Bench(self.server, self.clock, Mode.ANNOUNCE, self.file)
        self.leader = self.bench.another("leader", self.api)
        self.findings: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
        self.names: dict[str, dict[str, str]] = {}  # node -> name of the device -> uuid
        self.known: dict[str, dict[DeviceKey, tuple[str, str]]] = {}  # slices that are absent now are as they were
        self.silent: set[str] = set()
        self.unjudged: set[str] = set()
        self.edited: dict[str, bytes] = {}
        self.blocked_at: list[tuple[float, str]] = []
        self.paused = False

    def teardown(self) -> None:
        self.runner.close()
        self.directory.cleanup()

    @initialize()
    def begin(self) -> None:
        self.do(self.server.put(LEASES, {
            "metadata": {"name": "claimscope-controller", "namespace": "claimscope"}, "spec": {},
        }))
        for number in range(1, NODE_COUNT + 1):
            node = f"node-{number}"
            self.findings[node] = {}
            self.names[node] = {f"gpu-{gpu}": f"GPU-{number}-{gpu}" for gpu in range(GPU_COUNT)}
            self.put_node(node)
            self.publish(node)
        self.rounds()

    def do(self, what: Any) -> Any:
        return self.runner.run(what)

    # --- what happens ---

    @rule(node=NODE, gpu=GPU, key=KEY)
    def a_gpu_breaks(self, node: int, gpu: int, key: str) -> None:
        self.find(node, gpu, key)
        self.rounds()

    @rule(where=st.sets(st.tuples(NODE, GPU), min_size=1, max_size=4), key=KEY)
    def some_gpus_break(self, where: set[tuple[int, int]], key: str) -> None:
        for node, gpu in sorted(where):
            self.find(node, gpu, key)
        self.rounds()

    @rule(node=NODE, gpu=GPU, key=KEY)
    def it_turns_out_to_have_one_cause_for_many(self, node: int, gpu: int, key: str) -> None:
        self.find(node, gpu, key, systemic=True)
        self.rounds()

    @rule(node=NODE, gpu=GPU, keys=st.sets(KEY, min_size=1))
    def something_is_over(self, node: int, gpu: int, keys: set[str]) -> None:
        for key in keys:
            self.findings[f"node-{node}"].pop((f"GPU-{node}-{gpu}", key), None)
        self.rounds()

    @rule(node=NODE)
    def a_node_heals(self, node: int) -> None:
        self.findings[f"node-{node}"].clear()
        self.rounds()

    @rule(node=NODE)
    def an_agent_falls_silent_or_comes_back(self, node: int) -> None:
        self.silent ^= {f"node-{node}"}
        self.rounds()

    @rule(node=NODE)
    def an_agent_starts_anew_and_has_not_judged(self, node: int) -> None:
        self.unjudged.add(f"node-{node}")
        self.rounds()
        self.unjudged.discard(f"node-{node}")
        self.rounds()

    @rule(node=NODE, one=GPU, other=GPU)
    def minors_are_shuffled(self, node: int, one: int, other: int) -> None:
        names = self.names[f"node-{node}"]
        names[f"gpu-{one}"], names[f"gpu-{other}"] = names[f"gpu-{other}"], names[f"gpu-{one}"]
        if self.server.get(RESOURCE_SLICES, f"node-{node}") is not None:
            self.publish(f"node-{node}")
        self.rounds()

    @rule(node=NODE, gpu=GPU)
    def a_board_is_swapped(self, node: int, gpu: int) -> None:
        uuid = f"GPU-{node}-{gpu}"
        names = self.names[f"node-{node}"]
        swapped = {name: f"{uuid}-new" if had == uuid else uuid if had == f"{uuid}-new" else had
                   for name, had in names.items()}
        self.names[f"node-{node}"] = swapped
        if self.server.get(RESOURCE_SLICES, f"node-{node}") is not None:
            self.publish(f"node-{node}")
        self.rounds()

    @rule(node=NODE)
    def slices_go_or_come(self, node: int) -> None:
        if self.server.get(RESOURCE_SLICES, f"node-{node}") is None:
            self.publish(f"node-{node}")
        else:
            self.do(self.server.delete(RESOURCE_SLICES, f"node-{node}"))
        self.rounds()

    @rule(node=NODE, collected=st.booleans())
    def a_node_is_deleted_and_made_again(self, node: int, collected: bool) -> None:
        name = f"node-{node}"
        self.do(self.server.delete(NODES, name))
        if collected:  # the garbage collector is faster
            for rule_name, fence in self.ours().items():
                if fence.node == name:
                    self.do(self.server.delete(DEVICE_TAINT_RULES, rule_name))
                    self.edited.pop(rule_name, None)
        self.rounds()
        self.put_node(name, f"uid-{name}-{self.server.store.version}")
        self.rounds()

    @rule(node=NODE)
    def a_node_is_cordoned_or_not(self, node: int) -> None:
        found = self.server.get(NODES, f"node-{node}") or {}
        cordoned = (found.get("spec") or {}).get("unschedulable", False)
        self.do(self.server.put(NODES, {**found, "spec": {"unschedulable": not cordoned}}))
        self.rounds()

    @rule()
    def somebody_pauses_or_resumes(self) -> None:
        self.paused = not self.paused
        self.do(self.leader.notebook.write({PAUSE: "ann" if self.paused else None}))
        self.rounds()

    @rule(mode=st.sampled_from(["enforce", "enforce", "announce", "observe"]))
    def the_mode_changes(self, mode: str) -> None:
        lower = mode != self.mode and (mode == "observe" or self.mode == "enforce")
        self.mode = mode
        self.write_policy()
        self.rounds(may_lower=lower)

    @rule(node=NODE, gpu=GPU)
    def somebody_pins_a_gpu_or_no_more(self, node: int, gpu: int) -> None:
        self.pins ^= {f"GPU-{node}-{gpu}"}
        self.write_policy()
        self.rounds()

    @rule(seconds=st.sampled_from([1, 5, 119, 130, 700, 1900]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.rounds()

    @rule(hours=st.sampled_from([-1, 1]))
    def the_wall_clock_jumps(self, hours: int) -> None:
        self.clock.wall += hours * 3600 * 10**9
        self.blocked_at.clear()
        self.rounds()

    @rule(trouble=st.lists(TROUBLE, min_size=1, max_size=8), spared=st.sampled_from(["leases", "leases", ""]),
          restart=st.booleans(), node=NODE, gpu=GPU, key=KEY, data=st.data())
    def writes_fail(
        self, trouble: list[ApiReason | str | None], spared: str, restart: bool, node: int, gpu: int, key: str,
        data: st.DataObject,
    ) -> None:
        """While something heals and something else breaks."""
        self.api.trouble, self.api.spared = deque(trouble), spared
        fenced = sorted({fence.node for fence in self.ours().values() if fence.node in self.findings})
        if fenced:
            self.findings[data.draw(st.sampled_from(fenced))].clear()
        self.find(node, gpu, key)
        before = self.look()
        self.round()
        self.check_new(before, self.look())
        self.api.trouble.clear()
        if restart:
            self.restart()
        self.rounds()

    @rule()
    def another_leader_follows(self) -> None:
        self.restart()
        self.rounds()

    @precondition(lambda self: self.server.store.table(DEVICE_TAINT_RULES).objects)
    @rule(data=st.data())
    def somebody_deletes_a_rule(self, data: st.DataObject) -> None:
        name, fence = data.draw(st.sampled_from(sorted(self.ours().items())))
        self.do(self.server.delete(DEVICE_TAINT_RULES, name))
        self.edited.pop(name, None)
        self.rounds(gone=None if fence.edited else fence)

    @precondition(lambda self: self.server.store.table(DEVICE_TAINT_RULES).objects)
    @rule(data=st.data(), lasts=st.booleans())
    def the_server_lets_a_rule_go_no_more(self, data: st.DataObject, lasts: bool) -> None:
        """While what it is about is over, and something else breaks."""
        name, fence = data.draw(st.sampled_from(sorted(self.ours().items())))
        self.api.keeps.add(name)
        self.findings.get(fence.node, {}).clear()
        self.rounds()
        if not lasts:
            self.api.keeps.clear()
            self.rounds()

    @precondition(lambda self: self.server.store.table(DEVICE_TAINT_RULES).objects)
    @rule(data=st.data(), effect=st.sampled_from(["None", "NoSchedule"]))
    def somebody_edits_a_rule(self, data: st.DataObject, effect: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.ours())))
        found = self.server.get(DEVICE_TAINT_RULES, name) or {}
        found["spec"]["taint"] |= {"effect": effect, "value": "mine"}
        self.do(self.server.put(DEVICE_TAINT_RULES, found))
        self.edited[name] = json.dumps(found["spec"], sort_keys=True).encode()
        self.rounds()

    # --- the cluster ---

    def find(self, node: int, gpu: int, key: str, *, systemic: bool = False) -> None:
        uuid = f"GPU-{node}-{gpu}"
        self.findings[f"node-{node}"][uuid, key] = {
            "uuid": uuid, "rule": key, "severity": RULES[key], "since": self.clock.wall_ns() / 1e9,
            "evidence": {"xid": "79"}, "systemic": systemic,
        }

    def write_policy(self) -> None:
        pins = ", ".join(PIN.format(uuid=uuid) for uuid in sorted(self.pins))
        self.file.write_text(POLICY.format(mode=self.mode, pins=pins))
        self.policy = read_policy(self.file.read_text(), "policy.yaml", START)

    def put_node(self, node: str, uid: str = "") -> None:
        self.do(self.server.put(NODES, {"metadata": {"name": node, "uid": uid or f"uid-{node}"}}))

    def publish(self, node: str) -> None:
        devices = (
            device(name, attributes={"uuid": uuid, "type": "gpu"}) for name, uuid in sorted(self.names[node].items())
        )
        made = pool(node, *devices)
        made["metadata"] = {"name": node}
        self.do(self.server.put(RESOURCE_SLICES, made))

    def restart(self) -> None:
        self.leader.leads = False
        self.known.clear()
        self.leader = self.bench.another("next", self.api)

    def speak(self) -> None:
        """Agents write their Leases; the time moves, so that each is a new word."""
        self.clock.advance(1)
        for node, findings in self.findings.items():
            if node in self.silent:
                continue
            self.do(self.bench.says(node, *findings.values()))
            if node in self.unjudged:
                lease = self.server.get(LEASES, f"claimscope-agent-{node}", "claimscope") or {}
                del lease["metadata"]["annotations"]["claimscope.io/findings"]
                self.do(self.server.put(LEASES, lease))

    def ours(self) -> dict[str, Fence]:
        found = {}
        for (_, name), stored in self.server.store.table(DEVICE_TAINT_RULES).objects.items():
            fence = fences.standing(msgspec.json.decode(stored.body(DEVICE_TAINT_RULES), type=DeviceTaintRule))
            if fence is not None:
                found[name] = fence
        return found

    def look(self) -> Moment:
        said: list[Said] = []
        unjudged = set(self.findings)
        for lease in self.bench.objects(LEASES):
            annotations = lease["metadata"].get("annotations") or {}
            text = annotations.get("claimscope.io/findings")
            if text is None:
                continue
            unjudged.discard(annotations["claimscope.io/node"])
            said += (
                Said(node=annotations["claimscope.io/node"], uuid=each["uuid"], rule=each["rule"],
                     severity=_SEVERITY[each["severity"]], systemic=each.get("systemic", False))
                for each in json.loads(text)["findings"]
            )
        nodes = self.bench.objects(NODES)
        for each in self.bench.objects(RESOURCE_SLICES):
            self.known[each["spec"]["nodeName"]] = {
                DeviceKey("gpu.nvidia.com", each["spec"]["pool"]["name"], one["name"]):
                    (one["attributes"]["uuid"]["string"], each["spec"]["nodeName"])
                for one in each["spec"]["devices"]
            }
        return Moment(
            fences=self.ours(), said=tuple(said), unjudged=frozenset(unjudged),
            nodes=frozenset(node["metadata"]["name"] for node in nodes),
            published={name: where for devices in self.known.values() for name, where in devices.items()},
            cordoned=frozenset(
                node["metadata"]["name"] for node in nodes if (node.get("spec") or {}).get("unschedulable")
            ),
            pinned=frozenset(self.pins),
        )

    # --- rounds, and what holds of them ---

    def round(self) -> None:
        self.speak()
        self.do(self.leader.round())

    def check_new(self, before: Moment, after: Moment) -> None:
        """What holds even of a round whose writes failed."""
        wall = self.clock.wall_ns() / 1e9
        self.blocked_at += ((wall, uuid) for uuid in after.blocked() - before.counted())
        self.blocked_at = [each for each in self.blocked_at if wall - each[0] < RATE_SECONDS]
        assert over_budget(before, after, self.policy) == []
        # Slices that were gone for a while made the fleet smaller, and the rate with it.
        assert over_rate([uuid for _, uuid in self.blocked_at], NODE_COUNT * GPU_COUNT, self.policy) == []
        if self.paused:
            assert blocked_against_orders(before, after, "paused") == []
        if self.leader.value("claimscope_controller_taint_breaker_state", "open") == 1.0:
            assert blocked_against_orders(before, after, "the breaker is open") == []
        for name, spec in self.edited.items():
            found = self.server.get(DEVICE_TAINT_RULES, name) or {}
            assert json.dumps(found.get("spec"), sort_keys=True).encode() == spec, "what people wrote stays"

    def rounds(self, *, may_lower: bool = False, gone: Fence | None = None) -> None:
        """A round in which nothing fails, and one more without news."""
        self.speak()
        before = self.look()
        self.do(self.leader.round())
        after = self.look()
        self.check_new(before, after)
        free = replace(after, fences={name: each for name, each in after.fences.items() if name not in self.api.keeps})
        assert without_evidence(free) == [], "what is over is lifted in the same round, whatever is held back"
        assert without_device(free) == []
        if not may_lower:
            assert lowered(before, after) == []
        if gone is not None and gone.node in after.nodes:
            again = [each for each in after.fences.values() if each.uuid == gone.uuid and not each.edited]
            assert all(gone.value not in fences.rules_of(each) for each in again), "a person did not want it"
        if self.api.keeps:  # what did not go is counted from the next round on, and others may have its room or not
            self.do(self.leader.round())
            self.check_new(after, self.look())
        self.api.writes.clear()
        self.do(self.leader.round())
        # An Event may follow: what is held back by one bound in the first round may be by another in the second.
        writes = [each for each in self.api.writes if each.split()[1] in ("devicetaintrules", "nodes")]
        assert writes == [], f"without news nothing is written: {writes}"


def test_whatever_happens_every_invariant_holds_after_every_round() -> None:
    run_state_machine_as_test(
        Fencing,
        settings=settings(
            max_examples=20, stateful_step_count=30, suppress_health_check=list(HealthCheck)
        ),
    )
