"""Which GPUs is something found against, which taint do they have for it, and why is none put up?"""

from __future__ import annotations

from collections.abc import Iterable

from claimscope.claims.model import SickGpu
from claimscope.health.model import Severity
from claimscope.taints.fences import FINDING_UUID, blocks, for_maintenance
from claimscope.taints.model import PINNED, Fence, Held, NodeReport


def sick_gpus(reports: Iterable[NodeReport], standing: Iterable[Fence], held: Iterable[Held]) -> tuple[SickGpu, ...]:
    """One entry of each GPU, or MIG device that a finding is about; the worst and longest first."""
    effects: dict[tuple[str, str], str] = {}
    since: dict[tuple[str, str], float] = {}
    severities: dict[tuple[str, str], Severity] = {}
    rules: dict[tuple[str, str], list[str]] = {}
    for report in reports:
        for finding in report.findings:
            key = (report.node, finding.uuid)
            severities[key] = max(severities.get(key, Severity.OK), finding.severity, key=lambda each: each.rank)
            since[key] = min(since.get(key, finding.since_wall), finding.since_wall)
            rules.setdefault(key, []).append(finding.rule)
    for fence in standing:
        key = (fence.node, fence.annotations.get(FINDING_UUID) or fence.uuid)
        if for_maintenance(fence):
            continue
        if fence.value == PINNED:
            severities.setdefault(key, fence.severity)
            rules.setdefault(key, []).append(PINNED)
        if key not in effects or blocks(fence.effect):
            effects[key] = fence.effect
    whys = {(each.fence.node, each.fence.uuid): f"{each.reason}: {each.text}" for each in held}
    found = [
        SickGpu(
            uuid=key[1], node=key[0], severity=severity.value, rules=tuple(dict.fromkeys(rules[key])),
            since_wall=since.get(key), effect=effects.get(key, ""), held=whys.get(key, ""),
        )
        for key, severity in severities.items() if severity is not Severity.OK
    ]  # fmt: skip
    rank = {severity.value: -severity.rank for severity in Severity}
    return tuple(sorted(found, key=lambda each: (rank[each.severity], each.since_wall or 0.0, each.node, each.uuid)))
