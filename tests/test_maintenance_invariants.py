"""What holds of maintenance whatever happens on the node, to its agent, to the leader and to what people do.

Random steps; after each, a round in which nothing fails, and the Node is looked at from outside.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from claim_objects import allocated, device, pool
from claimscope.clock import ManualClock
from claimscope.kube.api import ApiReason
from claimscope.sim.api.kinds import ALL_KINDS, DEVICE_TAINT_RULES, LEASES, NODES, RESOURCE_CLAIMS, RESOURCE_SLICES
from claimscope.sim.api.server import SimApiServer
from claimscope.taints.maintenance_ask import ANSWER, ASK, Answer, read_answer
from claimscope.taints.model import Mode
from claimscope.taints.notebook import PAUSE
from maintenance_help import NodeAgent, annotate, confirm
from taints_api import LOST, StoreApi
from taints_bench import START, Bench

NODE = "node-1"
GPUS = 3
TROUBLE = st.sampled_from([None, LOST, ApiReason.CONFLICT, ApiReason.FORBIDDEN, ApiReason.TIMEOUT])


class Maintenance(RuleBasedStateMachine):
    """One node that people take out and give back, and another one that nobody touches."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.file = Path(self.directory.name, "policy.yaml")
        self.file.write_text("mode: enforce")
        self.clock = ManualClock(monotonic=10**12, wall=round(START * 1e9))
        self.server = SimApiServer(ALL_KINDS, git_version="v1.37.0", wall=lambda: self.clock.wall_ns() / 1e9)
        self.api = StoreApi(self.server)
        self.bench = Bench(self.server, self.clock, Mode.ENFORCE, self.file)
        self.leader = self.bench.another("leader", self.api)
        self.silent = self.paused = self.unverified = False
        self.beats = 0  # of the agent, since the maintenance ended
        self.confirms = True

    def teardown(self) -> None:
        self.runner.close()
        self.directory.cleanup()

    def do(self, what: Any) -> Any:
        return self.runner.run(what)

    @initialize()
    def begin(self) -> None:
        self.do(self.server.put(LEASES, {
            "metadata": {"name": "claimscope-controller", "namespace": "claimscope"}, "spec": {},
        }))  # fmt: skip
        for node in (NODE, "node-2"):
            self.do(self.server.put(NODES, {"metadata": {"name": node, "uid": f"uid-{node}"}, "spec": {}}))
            self.do(self.bench.says(node))
            self.publish(node)
        self.agent = NodeAgent(self.bench, gpus=GPUS)
        self.maintenance_is_asked_for()

    def publish(self, node: str, count: int = 1) -> None:
        found = [device(f"gpu-{gpu}", attributes={"uuid": f"GPU-{node}-{gpu}"}) for gpu in range(GPUS)]
        slices = pool(node, *found[: GPUS if count == 1 else 1])
        slices["spec"]["pool"]["resourceSliceCount"] = count
        self.do(self.server.put(RESOURCE_SLICES, slices))

    # --- what happens ---

    @rule()
    def maintenance_is_asked_for(self) -> None:
        self.do(annotate(self.bench, NODE, maintenance="fan", maintenance_unverified=None))
        self.unverified = False
        self.rounds()

    @rule(rounds=st.integers(1, 12))
    def it_goes_on(self, rounds: int) -> None:
        for _ in range(rounds):
            self.rounds(10)

    @rule(unverified=st.booleans())
    def it_is_given_back(self, unverified: bool) -> None:
        said = f"ann {self.clock.wall_ns()}" if unverified else None
        self.do(annotate(self.bench, NODE, maintenance=None, maintenance_unverified=said))
        self.unverified, self.beats = unverified, 0
        self.rounds()

    @rule(user=st.sampled_from(["train-0", ""]))
    def a_claim_is_used_or_not(self, user: str) -> None:
        self.do(self.server.put(RESOURCE_CLAIMS, allocated("train", (NODE, "gpu-1"), user=user)))
        self.rounds()

    @rule(processes=st.sampled_from([None, 0, 0, 2]))
    def processes_come_and_go(self, processes: int | None) -> None:
        self.agent.processes = processes
        self.rounds()

    @rule()
    def the_agent_restarts(self) -> None:
        if not self.silent:
            self.agent.restart()
        self.rounds()

    @rule()
    def the_agent_falls_silent_or_speaks(self) -> None:
        self.silent = not self.silent
        self.rounds()

    @rule(there=st.sampled_from(["all", "some", "none"]))
    def slices_come_and_go(self, there: str) -> None:
        if self.server.get(RESOURCE_SLICES, NODE) is not None:
            self.do(self.server.delete(RESOURCE_SLICES, NODE))
        if there != "none":
            self.publish(NODE, 1 if there == "all" else 2)
        self.rounds()

    @rule(plugin=st.booleans())
    def a_device_plugin_comes_or_goes(self, plugin: bool) -> None:
        amount = {"nvidia.com/gpu": str(GPUS)} if plugin else {}
        found = self.server.get(NODES, NODE) or {}
        status = {**found.get("status", {}), "capacity": amount, "allocatable": amount}
        self.do(self.server.put(NODES, {**found, "status": status}))
        self.rounds()

    @rule(cordoned=st.booleans())
    def somebody_cordons(self, cordoned: bool) -> None:
        found = self.server.get(NODES, NODE) or {}
        self.do(self.server.put(NODES, {**found, "spec": {**found["spec"], "unschedulable": cordoned}}))
        self.rounds()

    @rule()
    def somebody_pauses_or_resumes(self) -> None:
        self.paused = not self.paused
        self.do(self.leader.notebook.write({PAUSE: "ann" if self.paused else None}))
        self.rounds()

    @rule(mode=st.sampled_from(["enforce", "announce", "observe"]))
    def the_mode_changes(self, mode: str) -> None:
        self.file.write_text(f"mode: {mode}")
        self.rounds()

    @rule()
    def somebody_deletes_a_taint(self) -> None:
        for name in list(self.bench.rules())[:1]:
            self.do(self.server.delete(DEVICE_TAINT_RULES, name))
        self.rounds()

    @rule()
    def the_cluster_confirms_or_not(self) -> None:
        self.confirms = not self.confirms
        self.rounds()

    @rule()
    def another_leader_follows(self) -> None:
        self.leader.leads = False
        self.leader = self.bench.another("next", self.api)
        self.rounds()

    @rule(trouble=st.lists(TROUBLE, min_size=1, max_size=6))
    def writes_fail(self, trouble: list[ApiReason | str | None]) -> None:
        self.api.trouble = deque(trouble)
        self.do(self.leader.round())
        self.api.trouble.clear()
        self.rounds()

    @rule(seconds=st.sampled_from([130, 610]))
    def time_passes(self, seconds: int) -> None:
        self.rounds(seconds)

    # --- rounds, and what holds of them ---

    def rounds(self, seconds: int = 1) -> None:
        """Two: what the first one wrote on the Node, such as a taint, the second one sees."""
        for step in (seconds, 1):
            before = len(self.ours())
            self.clock.advance(step)
            if not self.silent:
                self.do(self.agent.beat())
                self.beats += 1
            if self.confirms:
                self.do(confirm(self.bench))
            was = self.bench.conditions(NODE).get("GPUMaintenanceReady", ("", ""))[1]
            self.do(self.leader.round())
            if before and not self.ours() and was in ("Ready", "Verifying", "VerifyFailed"):
                assert self.unverified or self.beats or not self.wanted_anywhere(), "nobody has looked after the node"
        self.check()

    def wanted_anywhere(self) -> bool:
        """Whether taints may stand in this mode at all."""
        return "observe" not in self.file.read_text()

    def ours(self) -> list[dict[str, Any]]:
        return [
            each for each in self.bench.rules().values()
            if each["spec"]["taint"]["key"] == "claimscope.io/maintenance"
        ]  # fmt: skip

    def check(self) -> None:
        if self.bench.conditions(NODE).get("GPUMaintenanceReady", ("", ""))[0] != "True":
            return
        node = self.server.get(NODES, NODE) or {}
        assert node["metadata"]["annotations"].get("claimscope.io/maintenance")
        claims = self.bench.objects(RESOURCE_CLAIMS)
        assert not any(each["status"].get("reservedFor") for each in claims), "a claim is in use"
        notes = self.agent.notes()
        answer = read_answer(notes.get(ANSWER)) or Answer(uid="")
        assert notes.get(ASK, "").startswith("release ")
        assert answer.released
        assert not answer.processes
        taints = {(each["key"], each["effect"]) for each in node["spec"].get("taints") or ()}
        kept = {
            each["spec"]["deviceSelector"]["device"] for each in self.ours()
            if each["spec"]["taint"]["effect"] == "NoSchedule"
        }  # fmt: skip
        published = self.server.get(RESOURCE_SLICES, NODE)
        devices = {each["name"] for each in published["spec"]["devices"]} if published else set()
        assert (
            ("claimscope.io/maintenance", "NoSchedule") in taints
            or node["spec"].get("unschedulable")
            or (kept and devices <= kept and not (node.get("status") or {}).get("capacity"))
        ), "nothing keeps new work away"


def test_whatever_happens_a_node_is_ready_only_when_nothing_uses_it_and_nothing_can_begin_to() -> None:
    run_state_machine_as_test(
        Maintenance,
        settings=settings(
            max_examples=25, stateful_step_count=30, suppress_health_check=list(HealthCheck)
        ),
    )
