"""May a fence that is wanted keep work away now? Pause, trust and budgets are asked, in this order.

Trust is lost where too many agents are silent, where one rule has one cause on many nodes, while the breaker is open,
and on a node whose machine is not settled. What keeps no new work away, and lifting, is held by none of it but a pause.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from claimscope.health.rules import RULE_BY_KEY
from claimscope.taints import budget
from claimscope.taints.budget import Ledger, Rate, Refusal
from claimscope.taints.fences import FINDING_UUID, blocks
from claimscope.taints.inputs import Inputs
from claimscope.taints.memory import OPEN, Blocked, Memory, recent_onsets
from claimscope.taints.model import Fence, NodeReport
from claimscope.taints.policy import UNSETTLED_RULES, VERDICT_RULES

_TRUSTED_UNSETTLED = VERDICT_RULES - UNSETTLED_RULES


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """GPUs that are to be kept from work together: one, or those of a whole node."""

    report: NodeReport
    gpus: frozenset[str]
    rules: tuple[str, ...]  # that would block
    bounded: bool  # by the budget of the node


def board(inputs: Inputs, fence: Fence) -> str:
    """The GPU that a fence keeps work from."""
    site = inputs.inventory.at(fence.device)
    if site is not None and site.uuid == fence.uuid:
        return site.gpu
    return fence.annotations.get(FINDING_UUID) or fence.uuid or str(fence.device)


class Bounds:
    """Everything that bounds one round; what is granted is booked here."""

    def __init__(
        self, inputs: Inputs, memory: Memory, *, blocked: Mapping[str, str], demands: Iterable[Demand]
    ) -> None:
        """`blocked` has the GPUs that stay kept from work by us, and their nodes; `demands` everything wanted."""
        self._inputs = inputs
        self._memory = memory
        self._new: list[Blocked] = []
        self._silent, self._agents = _silent_agents(inputs)
        self._seen = budget.onsets(
            report for node, report in inputs.reports.items() if not report.stale and node not in inputs.maintenance
        )
        self._recent = recent_onsets(memory.onsets, self._seen, inputs.now_wall, inputs.policy.systemic.seconds)
        self._systemic = budget.systemic_holds(
            memory, self._seen, self._recent, inputs.policy.systemic, nodes=self._agents, now_wall=inputs.now_wall
        )
        elsewhere = [inputs.inventory.at(device) for device in inputs.blocked_elsewhere]
        self._ledger = Ledger(
            inputs.policy, inputs.reports, inputs.inventory,
            blocked={**{site.gpu: site.node for site in elsewhere if site is not None}, **blocked},
            maintenance=inputs.maintenance, closed=inputs.closed_nodes,
        )  # fmt: skip
        self._breaker = budget.step(
            memory.breaker, inputs.policy.breaker, demand=self._waiting(demands), fleet=self._ledger.fleet,
            window=inputs.policy.rate.seconds, now_wall=inputs.now_wall,
        )  # fmt: skip
        self._rate = Rate(inputs.policy, memory, self._ledger.fleet, self._breaker)

    def _waiting(self, demands: Iterable[Demand]) -> int:
        """GPUs that are to be kept from work, or just were; those with one cause elsewhere are held without that."""
        waiting = {each.gpu for each in self._memory.blocked}
        for demand in demands:
            maintained = demand.report.node in self._inputs.maintenance
            if not maintained and self._systemic_rule(demand.rules) is None:
                waiting |= self._ledger.free(demand.gpus)
        return len(waiting)

    def _systemic_rule(self, rules: tuple[str, ...]) -> str | None:
        """The leading rule of those that would block, where all of them are held."""
        held = [rule for rule in rules if rule in self._systemic]
        return held[0] if held and len(held) == len(rules) else None

    # --- asking ---

    def refusal(self, demand: Demand) -> Refusal | None:
        """Why no more work may be kept away for it now."""
        refusal = self.paused(demand.report) or self.mistrust(demand)
        return self.beyond(demand) if refusal is None else refusal

    def paused(self, report: NodeReport) -> Refusal | None:
        """Why nothing new may be put up on a node."""
        if report.node in self._inputs.maintenance:
            return Refusal(reason="paused", text=f"node {report.node} is under maintenance")
        pause = self._inputs.pause_of(report.node, report.group)
        if pause is None:
            return None
        text = f"paused by {pause.author}"
        return Refusal(reason="paused", text=f"{text}: {pause.reason}" if pause.reason else text)

    def mistrust(self, demand: Demand) -> Refusal | None:
        """Why what is said is not trusted enough to keep work away."""
        if self._silent > self._agents * self._inputs.policy.stale_share:
            return Refusal(reason="stale", text=f"{self._silent} of {self._agents} agents are silent")
        rule = self._systemic_rule(demand.rules)
        if rule is not None:
            return self._one_cause(rule)
        if demand.report.unsettled and _TRUSTED_UNSETTLED.isdisjoint(demand.rules):
            return Refusal(reason="upgrade", text=demand.report.unsettled)
        if self._breaker.state == OPEN:
            return Refusal(reason="breaker", text="too many GPUs were to be fenced at once; the breaker is open")
        return None

    def unannounced(self, rules: tuple[str, ...]) -> Refusal | None:
        """Why what is worth a look is not even announced GPU by GPU: heat, power, clocks or links of many nodes."""
        rule = self._systemic_rule(rules)
        if rule is None or not all(RULE_BY_KEY[each].correlated for each in rules):
            return None
        return self._one_cause(rule)

    def _one_cause(self, rule: str) -> Refusal:
        text = f"{rule} stands on {len(self._seen[rule])} nodes: one cause outside of them; acknowledge to go on"
        return Refusal(reason="systemic", text=text, cause=rule)

    def beyond(self, demand: Demand) -> Refusal | None:
        """Which budget or rate it would exceed. GPUs from which something keeps work already cost nothing."""
        gpus = self._ledger.free(demand.gpus)
        if not gpus:
            return None
        report = demand.report
        return self._ledger.refusal(report, len(gpus), bounded=demand.bounded) or self._rate.refusal(gpus)

    # --- the answer ---

    def book(self, demand: Demand) -> None:
        """Takes what was granted from budgets and rate."""
        gpus = self._ledger.free(demand.gpus)
        counted = {each.gpu for each in (*self._memory.blocked, *self._new)}
        self._rate.take(gpus)
        self._new += (Blocked(gpu=gpu, wall=self._inputs.now_wall) for gpu in sorted(gpus - counted))
        self._ledger.take(demand.report, gpus)

    def budgets(self) -> dict[str, tuple[float, float]]:
        """Each scope, what is used of it and its limit."""
        return {**self._ledger.used(), "rate": (float(self._rate.used), float(self._rate.limit))}

    @property
    def breaker(self) -> str:
        """Its state; where the size of the fleet is unknown it counts as open."""
        return self._breaker.state if self._ledger.fleet else OPEN

    def memory(self) -> Memory:
        """What the next round must know."""
        return msgspec.structs.replace(
            self._memory, blocked=(*self._memory.blocked, *self._new), onsets=self._recent, holds=self._systemic,
            breaker=self._breaker,
        )  # fmt: skip


def blocked_by(inputs: Inputs, fences: Iterable[Fence]) -> dict[str, str]:
    """GPUs from which fences keep work, and their nodes."""
    return {board(inputs, fence): fence.node for fence in fences if blocks(fence.effect)}


def _silent_agents(inputs: Inputs) -> tuple[int, int]:
    """How many agents are silent, of those that were ever heard; where somebody works on a node, it may be off."""
    heard = [
        report.stale
        for node, report in inputs.reports.items()
        if report.heard_wall > 0 and node not in inputs.maintenance
    ]
    return sum(heard), len(heard)
