"""What do the metrics say of fencing?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from claimscope.health.model import Severity
from claimscope.metrics.cluster import sample
from claimscope.metrics.controller import own
from claimscope.model import Sample
from claimscope.taints.fences import word_of
from claimscope.taints.model import KEY_DOMAIN, Action, Do, Fence, NodeReport, Plan

KEYS: Final = tuple(f"{KEY_DOMAIN}/{word}" for word in ("degraded", "unhealthy", "lost", "maintenance"))
EFFECTS: Final = ("None", "NoSchedule")  # NoExecute is shown where it is used
NODE_KEYS: Final = tuple(f"{KEY_DOMAIN}/{word}" for word in ("unhealthy", "lost", "maintenance"))
NODE_EFFECTS: Final = ("PreferNoSchedule", "NoSchedule")
AGENT_STATES: Final = ("heard", "silent", "absent")
HELD_REASONS: Final = (
    "budget_node", "budget_group", "budget_fleet", "rate", "cap", "systemic", "systemic_node", "breaker", "paused",
    "mode", "ignored", "unresolved", "stale", "edited", "upgrade", "evict", "refused",
)
BREAKER_STATES: Final = ("closed", "open", "half_open")
_VERBS: Final = ("create", "update", "delete", "node_taint", "condition", "event", "memory", "agent", "dry_run", "read")
_WORDS: Final = (*(severity.value for severity in Severity if severity is not Severity.OK), "maintenance")


@dataclass(slots=True)
class Tally:
    """Counters of one leadership. Everything that can be counted is there from the start, as zero."""

    writes: Counter[tuple[str, str]] = field(default_factory=Counter)  # (verb, result)
    applied: Counter[tuple[str, str]] = field(default_factory=Counter)

    def done(self, action: Action, before: Fence | None) -> None:
        """One write that the server took."""
        fence = action.fence
        if action.do is Do.DELETE or (before is not None and (before.key, before.effect) == (fence.key, fence.effect)):
            return
        self.applied[fence.key, fence.effect] += 1

    def samples(
        self,
        standing: Iterable[Fence],
        plan: Plan,
        ineffective: Mapping[str, bool],
    ) -> list[Sample]:
        """Series of the cluster."""
        budgets = sorted(plan.budgets.items())
        nodes = Counter({(key, effect): 0 for key in NODE_KEYS for effect in NODE_EFFECTS})
        nodes.update((taint.key, taint.effect) for taints in plan.node_taints.values() for taint in taints)
        applied = Counter({(key, effect): 0 for key in KEYS for effect in EFFECTS})
        applied.update(self.applied)
        fences = Counter({(word, effect): 0 for word in _WORDS for effect in EFFECTS})
        fences.update((word_of(fence), fence.effect) for fence in standing)
        reasons = Counter(dict.fromkeys(HELD_REASONS, 0))
        reasons.update(reason for _, reason in {(each.fence.name, each.reason) for each in plan.held})
        return [
            *(sample("dra_device_taints_applied_total", count, *labels) for labels, count in applied.items()),
            *(sample("dra_taint_fences", count, *labels) for labels, count in fences.items()),
            *(sample("dra_taint_held", count, reason) for reason, count in reasons.items()),
            *(sample("dra_taint_budget_used", used, scope) for scope, (used, _) in budgets),
            *(sample("dra_taint_budget_limit", limit, scope) for scope, (_, limit) in budgets),
            *(sample("dra_node_taints", count, *labels) for labels, count in nodes.items()),
            *(sample("dra_taint_rule_ineffective", silent, rule) for rule, silent in sorted(ineffective.items())),
        ]

    def own(self, breaker: str) -> list[Sample]:
        """Series of the controller itself."""
        writes = Counter({(verb, "ok"): 0 for verb in _VERBS})
        writes.update(self.writes)
        return [
            *(own("taint_writes_total", count, *labels) for labels, count in sorted(writes.items())),
            *(own("taint_breaker_state", breaker == state, state) for state in BREAKER_STATES),
        ]


def agent_samples(reports: Iterable[NodeReport]) -> list[Sample]:
    """How many nodes with GPUs are watched by an agent."""
    states = Counter(dict.fromkeys(AGENT_STATES, 0))
    states.update(
        "absent" if report.heard_wall <= 0 else "silent" if report.stale else "heard" for report in reports
    )
    return [sample("dra_gpu_nodes", count, state) for state, count in states.items()]
