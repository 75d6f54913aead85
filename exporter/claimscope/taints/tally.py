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
from claimscope.taints.model import KEY_DOMAIN, Action, Do, Fence, Held

KEYS: Final = tuple(f"{KEY_DOMAIN}/{word}" for word in ("degraded", "unhealthy", "lost", "maintenance"))
EFFECTS: Final = ("None", "NoSchedule")  # NoExecute is shown where it is used
HELD_REASONS: Final = (
    "budget_node", "budget_group", "budget_fleet", "rate", "cap", "systemic", "breaker", "paused", "mode", "ignored",
    "unresolved", "stale", "edited",
)
BREAKER_STATES: Final = ("closed", "open", "half_open")
_SEVERITIES: Final = tuple(severity.value for severity in Severity if severity is not Severity.OK)


@dataclass(slots=True)
class Tally:
    """Counters of one leadership. Everything that can be counted is there from the start, as zero."""

    applied: Counter[tuple[str, str]] = field(default_factory=Counter)
    writes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def done(self, action: Action, before: Fence | None) -> None:
        """One write that the server took."""
        fence = action.fence
        if action.do is Do.DELETE or (before is not None and (before.key, before.effect) == (fence.key, fence.effect)):
            return
        self.applied[fence.key, fence.effect] += 1

    def samples(
        self,
        standing: Iterable[Fence],
        held: Iterable[Held],
        budgets: Mapping[str, tuple[float, float]],
        ineffective: Mapping[str, bool],
    ) -> list[Sample]:
        """Series of the cluster."""
        applied = Counter({(key, effect): 0 for key in KEYS for effect in EFFECTS})
        applied.update(self.applied)
        fences = Counter({(severity, effect): 0 for severity in _SEVERITIES for effect in EFFECTS})
        fences.update((fence.severity.value, fence.effect) for fence in standing)
        reasons = Counter(dict.fromkeys(HELD_REASONS, 0))
        reasons.update(reason for _, reason in {(each.fence.name, each.reason) for each in held})
        return [
            *(sample("dra_device_taints_applied_total", count, *labels) for labels, count in applied.items()),
            *(sample("dra_taint_fences", count, *labels) for labels, count in fences.items()),
            *(sample("dra_taint_held", count, reason) for reason, count in reasons.items()),
            *(sample("dra_taint_budget_used", used, scope) for scope, (used, _) in sorted(budgets.items())),
            *(sample("dra_taint_budget_limit", limit, scope) for scope, (_, limit) in sorted(budgets.items())),
            *(sample("dra_taint_rule_ineffective", silent, rule) for rule, silent in sorted(ineffective.items())),
        ]

    def own(self, breaker: str) -> list[Sample]:
        """Series of the controller itself."""
        writes = Counter({(verb, "ok"): 0 for verb in ("create", "update", "delete", "condition", "event", "memory")})
        writes.update(self.writes)
        return [
            *(own("taint_writes_total", count, *labels) for labels, count in sorted(writes.items())),
            *(own("taint_breaker_state", breaker == state, state) for state in BREAKER_STATES),
        ]
