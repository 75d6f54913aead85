"""How many GPUs may be kept from work: by node, group and fleet, at which rate, and when not at all?

Counted are boards, each once however it is cut, over what stands now: our fences, everybody else's taints and cordons.
What is refused is announced instead, never dropped, and asked again in the next round.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from claimscope.health.model import Severity
from claimscope.health.rules import RULE_BY_KEY
from claimscope.taints.inventory import Inventory
from claimscope.taints.memory import CLOSED, HALF_OPEN, OPEN, Breaker, Memory
from claimscope.taints.model import NodeReport
from claimscope.taints.policy import BreakerPolicy, Policy, Systemic


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a fence does not block yet."""

    reason: str
    text: str
    cause: str = ""  # as of Held


def allowed(total: int, share: float) -> int:
    """A share of GPUs, one at least."""
    return max(1, math.floor(total * share + 1e-9)) if total > 0 else 0


def gpus_of(report: NodeReport, inventory: Inventory) -> frozenset[str]:
    """All GPUs of a node; those that no slice publishes are made up by number."""
    published = set(inventory.gpus_on(report.node))
    return frozenset(published.union(f"{report.node}/{each}" for each in range(len(published), report.devices)))


class Ledger:
    """The budgets during one round. A refusal changes nothing; `take` books."""

    def __init__(
        self, policy: Policy, reports: Mapping[str, NodeReport], inventory: Inventory, *, blocked: Mapping[str, str],
        maintenance: frozenset[str], closed: frozenset[str] = frozenset(),
    ) -> None:
        """`blocked` has the GPUs that any taint of theirs keeps work from, and their nodes; here are added those of
        nodes that are cordoned or `closed` otherwise.
        """
        self._policy = policy
        self._maintenance = maintenance
        self._blocked: dict[str, str] = {gpu: node for gpu, node in blocked.items() if node not in maintenance}
        self._groups: dict[str, str] = {}
        self._totals: dict[str, int] = {}
        self._group_totals: Counter[str] = Counter()
        for node, report in reports.items():
            if node in maintenance:
                continue
            self._groups[node] = report.group
            self._totals[node] = report.devices
            self._group_totals[report.group] += report.devices
            if report.cordoned or node in closed:
                self._blocked.update(dict.fromkeys(gpus_of(report, inventory), node))
        self.fleet = sum(self._totals.values()) if inventory.known else 0
        self._by_node = Counter(self._blocked.values())
        self._by_group = Counter(self._groups.get(node, "") for node in self._blocked.values())

    def free(self, gpus: frozenset[str]) -> frozenset[str]:
        """Those of them from which nothing keeps work yet, so that a fence costs something."""
        return gpus - self._blocked.keys()

    def refusal(self, report: NodeReport, gpus: int, *, bounded: bool) -> Refusal | None:
        """What stands against blocking so many GPUs more; `bounded`: by the budget of the node, too."""
        node, group = report.node, report.group
        if self.fleet == 0 or not self._totals.get(node):
            return Refusal(reason="breaker", text="how many GPUs there are is not known")
        budgets = self._policy.budgets
        bounds = [
            ("budget_fleet", "the fleet", len(self._blocked), allowed(self.fleet, budgets.fleet_share)),
            (
                "budget_group", f"group `{group}`", self._by_group[group],
                allowed(self._group_totals[group], budgets.group_share),
            ),
        ]  # fmt: skip
        if bounded:
            bounds.append(
                ("budget_node", f"node {node}", self._by_node[node], allowed(self._totals[node], budgets.node_share))
            )
        for reason, scope, used, limit in reversed(bounds):
            if used + gpus > limit:
                return Refusal(reason=reason, text=f"{used} of at most {limit} GPUs of {scope} are kept from work")
        return None

    def take(self, report: NodeReport, gpus: frozenset[str]) -> None:
        """Books GPUs that were free."""
        self._blocked.update(dict.fromkeys(gpus, report.node))
        self._by_node[report.node] += len(gpus)
        self._by_group[report.group] += len(gpus)

    def used(self) -> dict[str, tuple[float, float]]:
        """Each scope in use, and its limit."""
        budgets = self._policy.budgets
        limit = allowed(self.fleet, budgets.fleet_share)
        found: dict[str, tuple[float, float]] = {"fleet": (len(self._blocked), limit)}
        for group, total in self._group_totals.items():
            found[f"group/{group}"] = (self._by_group[group], allowed(total, budgets.group_share))
        for node, used in self._by_node.items():
            found[f"node/{node}"] = (used, allowed(self._totals.get(node, 0), budgets.node_share))
        return found


class Rate:
    """How many GPUs were newly fenced lately, and how many more may be."""

    def __init__(self, policy: Policy, memory: Memory, fleet: int, breaker: Breaker) -> None:
        self._recent = {each.gpu for each in memory.blocked}
        self._seconds = policy.rate.seconds
        self.limit = max(policy.rate.least, math.floor(fleet * policy.rate.share + 1e-9))
        if breaker.state == HALF_OPEN:
            self.limit = max(min(1, self.limit), self.limit // 4)

    @property
    def used(self) -> int:
        """Within the window."""
        return len(self._recent)

    def refusal(self, gpus: frozenset[str]) -> Refusal | None:
        """A GPU that was counted is not counted again: its fence may have failed to be written.

        The GPUs of one node go together, though they be more than the limit: after a time in which there were none.
        """
        new = len(gpus - self._recent)
        if new == 0 or self.used + new <= self.limit or (self.used == 0 and self.limit > 0):
            return None
        text = f"{self.used} GPUs were newly fenced within {self._seconds:.0f} s; at most {self.limit} may be"
        return Refusal(reason="rate", text=text)

    def take(self, gpus: frozenset[str]) -> None:
        """Books GPUs."""
        self._recent |= gpus


def step(
    breaker: Breaker, policy: BreakerPolicy, *, demand: int, fleet: int, window: float, now_wall: float
) -> Breaker:
    """The breaker after a look at how many GPUs are to be fenced, or just were.

    Open, it waits for its time, however often things look well meanwhile. Half open, it closes after a window within
    the limit, and opens again when yet more GPUs are to be fenced. What is released is what stands then.
    """
    limit = max(policy.least, math.floor(fleet * policy.share + 1e-9))
    passed = now_wall - breaker.since_wall
    if breaker.state == CLOSED:
        return Breaker(state=OPEN, since_wall=now_wall, demand=demand) if demand > limit else breaker
    if breaker.state == OPEN:
        over = passed >= policy.half_open_seconds
        return Breaker(state=HALF_OPEN, since_wall=now_wall, demand=demand) if over else breaker
    if demand > limit and demand > breaker.demand:
        return Breaker(state=OPEN, since_wall=now_wall, demand=demand)
    if demand <= limit and passed >= window:
        return Breaker(state=CLOSED, since_wall=now_wall)
    return breaker


def onsets(reports: Iterable[NodeReport]) -> dict[str, dict[str, float]]:
    """Since when each rule that may block, or have one cause for many GPUs, stands on each node, as the agents say.

    Of the latter any severity counts, and so does what the agent of a node took for one cause already.
    """
    found: dict[str, dict[str, float]] = {}
    for report in reports:
        for finding in report.findings:
            rule = RULE_BY_KEY.get(finding.rule)
            if rule is None or finding.severity is Severity.OK:
                continue
            blocking = finding.severity is not Severity.DEGRADED and not finding.systemic
            if rule.correlated or blocking:
                nodes = found.setdefault(finding.rule, {})
                nodes[report.node] = min(finding.since_wall, nodes.get(report.node, math.inf))
    return found


def systemic_holds(
    memory: Memory, standing: Mapping[str, Mapping[str, float]], recent: Mapping[str, Mapping[str, float]],
    policy: Systemic, *, nodes: int, now_wall: float,
) -> dict[str, float]:
    """Rules that came up on many nodes within a short time.

    A hold ends when a human acknowledges it, or the rule stands on fewer nodes than it takes.
    """
    many = min(policy.nodes, max(policy.least_nodes, math.ceil(nodes * policy.share - 1e-9)))
    found: dict[str, float] = {}
    for rule, since in standing.items():
        noted = memory.acknowledged.get(rule, -math.inf)
        lately = sum(1 for wall in recent.get(rule, {}).values() if wall > noted and now_wall - wall < policy.seconds)
        if lately >= many or (rule in memory.holds and len(since) >= many):
            found[rule] = memory.holds.get(rule, now_wall)
    return found
