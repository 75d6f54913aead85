"""What holds of taints of Nodes whatever happens: random findings, silence, pauses, human hands."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from claimscope.health.model import Severity
from claimscope.taints import fences, machines
from claimscope.taints.model import NodeTaint
from claimscope.taints.policy import Pause
from taints_help import World, a_finding, gpu

NODES, GPUS = 6, 4
NODE = st.integers(0, NODES - 1)
INDEX = st.integers(0, GPUS - 1)
RULES = {
    "pcie_width": Severity.DEGRADED, "thermal_shutdown": Severity.UNHEALTHY, "xid_fatal": Severity.UNHEALTHY,
    "recovery_action_reboot": Severity.UNHEALTHY, "gpu_lost": Severity.LOST,
}  # fmt: skip
POLICY = """
mode: enforce
node_taints: enforce
budgets: {fleet_share: 0.5, group_share: 0.5}
breaker: {least: 8, share: 0.3}
systemic: {nodes: 4, least_nodes: 4}
"""
FLEET_MOST = NODES * GPUS // 2
THEIRS = ("example.com/team=a:NoSchedule", "claimscope.io/unhealthy=by-hand:NoExecute")


class NodeTainting(RuleBasedStateMachine):
    """Nodes of a device plugin; the first two publish half of their GPUs as well. A round after each step."""

    @initialize()
    def begin(self) -> None:
        self.world = World(POLICY, nodes=NODES, gpus=0)
        self.world.plugin = dict.fromkeys(self.world.found, (GPUS, 0))
        self.published = {gpu(node, index) for node in range(2) for index in range(2)}
        for node in range(2):
            self.world.publish(node, {f"gpu-{index}": gpu(node, index) for index in range(2)})
        self.world.tainted("n3", *THEIRS)

    # --- what happens ---

    @rule(node=NODE, index=INDEX, key=st.sampled_from(sorted(RULES)))
    def find(self, node: int, index: int, key: str) -> None:
        uuid = gpu(node, index)
        if all((each.uuid, each.rule) != (uuid, key) for each in self.world.found[f"n{node}"]):
            self.world.find(a_finding(uuid, key, RULES[key], since=self.world.now))
        self.round()

    @rule(node=NODE)
    def heal(self, node: int) -> None:
        self.world.found[f"n{node}"].clear()
        self.round()

    @rule(node=NODE)
    def fall_silent_or_speak(self, node: int) -> None:
        self.world.stale ^= {f"n{node}"}
        self.round()

    @rule(node=NODE, withdrawn=st.integers(0, GPUS))
    def withdraw(self, node: int, withdrawn: int) -> None:
        self.world.plugin[f"n{node}"] = (GPUS, withdrawn)
        self.round()

    @rule(node=NODE)
    def upgrade_or_not(self, node: int) -> None:
        name = f"n{node}"
        if self.world.unsettled.pop(name, None) is None:
            self.world.unsettled[name] = "its driver is being upgraded"
        self.round()

    @rule()
    def pause_or_not(self) -> None:
        self.world.options = {} if self.world.options else {"pauses": (Pause(author="ann"),)}
        self.round()

    @rule(seconds=st.sampled_from([1, 60, 700, 4000]))
    def wait(self, seconds: int) -> None:
        self.round(seconds)

    @rule(node=NODE)
    def take_away_by_hand(self, node: int) -> None:
        name = f"n{node}"
        ours = self.ours(name)
        self.world.tainted(name, *(THEIRS if name == "n3" else ()))
        self.round()
        assert not {taint.key for taint in ours} & {taint.key for taint in self.ours(name)} - self.news(name, ours)

    def news(self, name: str, before: tuple[NodeTaint, ...]) -> set[str]:
        """Keys for which something else than what was taken away speaks."""
        ignored = {(each.uuid, each.rule) for each in self.world.memory.ignores}
        found = self.world.found[name]
        return {fences.KEYS[each.severity] for each in found if (each.uuid, each.rule) not in ignored}

    # --- a round, and what holds of it ---

    def ours(self, name: str) -> tuple[NodeTaint, ...]:
        found = machines.on_node(self.world.cluster.nodes[name])
        return () if found is None else found.ours

    def blocked(self) -> set[str]:
        hard = {name for name in self.world.found if any(each.effect == "NoSchedule" for each in self.ours(name))}
        whole = {gpu(int(name[1:]), index) for name in hard for index in range(GPUS)}
        return whole | self.world.blocked()

    def round(self, seconds: float = 0.0) -> None:
        before = self.blocked()
        self.world.round(seconds)
        new = self.blocked() - before
        if new:
            assert not self.world.options, "a pause lets nothing new keep work away"
            assert len(self.blocked()) <= max(FLEET_MOST, len(before))
            assert self.world.last.breaker != "open"
        self.world.round()
        assert (self.world.last.nodes, self.world.last.actions) == ((), ()), "a second round writes nothing"

    @invariant()
    def every_taint_has_its_finding_or_a_silent_agent(self) -> None:
        for name in self.world.found if hasattr(self, "world") else ():
            found = {(fences.KEYS[each.severity], each.rule) for each in self.world.found[name]
                     if each.severity is not Severity.DEGRADED and each.uuid not in self.published}  # fmt: skip
            for taint in self.ours(name):
                assert name in self.world.stale or (taint.key, taint.value) in found

    @invariant()
    def taints_of_others_stay(self) -> None:
        if hasattr(self, "world"):
            on_node = self.world.machines["n3"]["spec"]["taints"]
            assert [f"{each['key']}={each['value']}:{each['effect']}" for each in on_node[:2]] == list(THEIRS)

    @invariant()
    def the_record_is_what_stands(self) -> None:
        for name, node in self.world.machines.items() if hasattr(self, "world") else ():
            noted = machines.recorded(node["metadata"].get("annotations", {}).get(machines.NOTE))
            assert set(noted) == set(self.ours(name))


NodeTainting.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, suppress_health_check=list(HealthCheck)
)
TestNodeTainting = NodeTainting.TestCase
