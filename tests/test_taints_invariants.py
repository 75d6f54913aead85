"""What holds of fencing whatever happens: random findings, silence, moved names, human hands, failed writes."""

from __future__ import annotations

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from claimscope.health.model import Severity
from claimscope.taints import fences
from claimscope.taints.model import Do, Fence
from claimscope.taints.policy import Pause
from inventory_objects import a_device, a_slice
from taints_help import START, World, a_finding, gpu, shown

NODES, GPUS = 6, 4
NODE = st.integers(0, NODES - 1)
INDEX = st.integers(0, GPUS - 1)
RULES = {
    "pcie_width": Severity.DEGRADED, "thermal_shutdown": Severity.UNHEALTHY, "xid_fatal": Severity.UNHEALTHY,
    "reset_failed": Severity.UNHEALTHY, "gpu_lost": Severity.LOST,
}  # fmt: skip
POLICY = """
mode: enforce
budgets: {fleet_share: 0.25, group_share: 0.5}
rate: {least: 2, share: 0.1}
breaker: {least: 3, share: 0.1}
groups: {A: {}, B: {}}
cap: 16
"""
FLEET_MOST = NODES * GPUS // 4
TWICE = 0  # a node whose GPUs a second driver publishes, too
CUT = 1  # a node whose GPUs have parts that are cut only once they are allocated
SECOND = "second.example.com"


def _board(fence: Fence) -> str:
    return fence.annotations.get(fences.FINDING_UUID, fence.uuid)


class Fencing(RuleBasedStateMachine):
    """Random steps, a round after each."""

    @initialize(mode=st.sampled_from(["enforce", "announce"]))
    def begin(self, mode: str) -> None:
        self.world = World(POLICY.replace("enforce", mode), nodes=NODES, gpus=GPUS)
        self.edited: dict[str, Fence] = {}
        self.names = {node: {f"gpu-{index}": gpu(node, index) for index in range(GPUS)} for node in range(NODES)}
        self.world.groups = {f"n{node}": "AB"[node % 2] for node in range(NODES)}
        again = [a_device(f"dev-{index}", {"uuid": gpu(TWICE, index), "type": "gpu"}) for index in range(GPUS)]
        self.world.cluster.apply("resourceslices", a_slice(again, driver=SECOND, pool=f"n{TWICE}"), True)
        self.publish(CUT)

    def publish(self, node: int) -> None:
        names = self.names[node]
        parts = {f"{name}-mig-0": ("", uuid) for name, uuid in names.items()} if node == CUT else {}
        self.world.publish(node, names, parts=parts)

    def of(self, fence: Fence) -> str:
        """The uuid of the device that a fence names, as it is published."""
        device, node = fence.device.device, int(fence.node[1:])
        if fence.device.driver == SECOND:
            return gpu(node, int(device.removeprefix("dev-")))
        whole = device.removesuffix("-mig-0")
        return self.names[node][whole] + ("" if whole == device else f"/{device}")

    # --- what happens ---

    @rule(node=NODE, index=INDEX, key=st.sampled_from(sorted(RULES)), old=st.booleans())
    def find(self, node: int, index: int, key: str, old: bool) -> None:
        uuid = gpu(node, index)
        if all((each.uuid, each.rule) != (uuid, key) for each in self.world.found[f"n{node}"]):
            self.world.find(a_finding(uuid, key, RULES[key], since=START if old else self.world.now))
        self.round()

    @rule(node=NODE, index=INDEX, key=st.sampled_from([None, *sorted(RULES)]))
    def clear(self, node: int, index: int, key: str | None) -> None:
        self.world.clear(gpu(node, index), key)
        self.round()

    @rule(node=NODE)
    def fall_silent_or_speak(self, node: int) -> None:
        self.world.stale ^= {f"n{node}"}
        self.round()

    @rule(node=NODE)
    def cordon_or_not(self, node: int) -> None:
        self.world.cordoned ^= {f"n{node}"}
        self.round()

    @rule(node=NODE, one=INDEX, other=INDEX)
    def swap_minors(self, node: int, one: int, other: int) -> None:
        names = self.names[node]
        names[f"gpu-{one}"], names[f"gpu-{other}"] = names[f"gpu-{other}"], names[f"gpu-{one}"]
        self.publish(node)
        self.round()

    @rule(node=NODE)
    def withdraw_slices(self, node: int) -> None:
        self.world.withdraw(node)
        self.round()
        self.publish(node)
        self.round()

    @rule()
    def pause_or_not(self) -> None:
        self.world.options = {} if self.world.options else {"pauses": (Pause(author="ann"),)}
        self.round()

    @rule(seconds=st.sampled_from([1, 60, 700, 4000]), failing=st.booleans())
    def wait(self, seconds: int, failing: bool) -> None:
        if failing:
            self.world.think(seconds)
        self.round(0 if failing else seconds)

    @precondition(lambda self: self.world.cluster.rules)
    @rule(data=st.data())
    def delete_by_hand(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.cluster.rules)))
        fence = self.world.standing()[name]
        self.world.delete(name)
        self.edited.pop(name, None)
        self.round()
        for other, each in self.world.standing().items():
            if other not in self.edited and each.uuid == fence.uuid:
                assert each.value not in fences.rules_of(fence), "what a human took away stays away for a while"

    @precondition(lambda self: self.world.cluster.rules)
    @rule(data=st.data())
    def edit_by_hand(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.cluster.rules)))
        self.world.edit(name, value="mine")
        self.edited[name] = self.world.standing()[name]
        self.round()

    # --- a round, and what holds of it ---

    def round(self, seconds: float = 0.0) -> None:
        before = self.world.standing()
        blocked, counted = self._boards(before), self._counted(before)
        self.world.round(seconds)
        after = self.world.standing()
        for action in self.world.last.actions:
            assert all(action.fence.device)
            assert action.fence.annotations[fences.EVIDENCE]
            assert action.fence.name not in self.edited
            if action.do is not Do.DELETE:
                assert fences.spec_hash(action.fence) == action.fence.annotations[fences.SPEC_HASH]
        new = self._boards(after) - blocked
        if new:
            assert not self.world.options, "a pause lets no new fence block"
            assert len(self._counted(after)) <= max(FLEET_MOST, len(counted))
            assert self.world.last.breaker != "open"
        assert sorted(shown(fence) for fence in self.world.last.standing) == self.world.taints()
        assert self.world.round() == [], "a second round without news writes nothing"

    def _boards(self, standing: dict[str, Fence]) -> set[str]:
        return {_board(fence) for fence in standing.values() if fences.blocks(fence.effect)}

    def _counted(self, standing: dict[str, Fence]) -> set[str]:
        cordoned = {gpu(int(node[1:]), index) for node in self.world.cordoned for index in range(GPUS)}
        return self._boards(standing) | cordoned

    @invariant()
    def every_fence_has_its_finding_or_a_silent_agent(self) -> None:
        if not hasattr(self, "world"):
            return
        for name, fence in self.world.standing().items():
            if name in self.edited or fence.node in self.world.stale:
                continue
            found = [each for each in self.world.found[fence.node] if each.uuid == _board(fence)]
            assert any(each.severity is fence.severity for each in found), "what is over is lifted in the same round"
            assert fence.value in {each.rule for each in found}

    @invariant()
    def every_fence_names_its_own_gpu(self) -> None:
        if not hasattr(self, "world"):
            return
        for name, fence in self.world.standing().items():
            if name not in self.edited:
                assert self.of(fence) == fence.uuid

    @invariant()
    def what_humans_changed_is_as_they_left_it(self) -> None:
        for name, fence in getattr(self, "edited", {}).items():
            assert self.world.standing()[name] == fence

    @invariant()
    def each_severity_keeps_its_own_key(self) -> None:
        for fence in self.world.standing().values() if hasattr(self, "world") else ():
            assert fence.key == fences.KEYS[fence.severity]
            assert len(msgspec.json.encode(self.world.memory)) < 20_000

    @invariant()
    def rules_stay_within_the_cap(self) -> None:
        if hasattr(self, "world"):
            assert len(self.world.cluster.rules) <= self.world.policy.cap + 6  # exchanges come before what they replace


Fencing.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, suppress_health_check=list(HealthCheck)
)
TestFencing = Fencing.TestCase
