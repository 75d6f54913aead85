"""What is to be written now, so that what stands becomes what should stand?

One pure function: the same inputs and memory give the same plan, and a second round without news writes nothing.
Lifting comes first and is held by nothing (lifting.py). What blocks is asked of pause, trust and budgets (bounds.py);
what is refused is announced (raising.py). Where devices cannot be fenced one by one, Nodes are tainted after the same
rules (node_taints.py).
"""

from __future__ import annotations

import msgspec

from claimscope.taints import node_taints
from claimscope.taints.bounds import Bounds, blocked_by
from claimscope.taints.fences import for_maintenance, rules_of
from claimscope.taints.inputs import Inputs, gather
from claimscope.taints.lifting import Lifting
from claimscope.taints.maintenance_fences import upkeep
from claimscope.taints.memory import Ignore, Known, Memory, aged, ignoring
from claimscope.taints.model import PINNED, Fence, Plan
from claimscope.taints.raising import Raising, blocked_after, demand_of, matched
from claimscope.taints.wants import wanted

__all__ = ["Inputs", "Memory", "gather", "plan"]


def plan(inputs: Inputs, memory: Memory) -> tuple[Plan, Memory]:
    """One round."""
    policy = inputs.policy
    memory = aged(
        memory, inputs.now_wall, rate_seconds=policy.rate.seconds, systemic_seconds=policy.systemic.seconds
    )
    standing = _standing(inputs)
    ours = {name: fence for name, fence in standing.items() if not for_maintenance(fence)}
    kept_free = upkeep(inputs, (fence for fence in standing.values() if for_maintenance(fence)), len(ours))
    memory = node_taints.notice_removed(inputs, _notice_deleted(inputs, memory))
    found = wanted(inputs, memory)
    live = matched(ours, found)
    lift = Lifting(inputs, memory, found)
    for fence in live.others:
        lift.judge(fence)
    for fence in live.doubles:
        lift.delete(fence, "another fence of ours says the same")
    nodes = node_taints.wanted(inputs, memory)
    bounds = Bounds(
        inputs, memory,
        blocked={
            **nodes.blocked, **blocked_after(inputs, live, lift, found.wants),
            **blocked_by(inputs, (fence for name, fence in standing.items() if name in inputs.unlifted)),
        },
        demands=[*(demand_of(want) for want in found.wants if want.blocking), *nodes.demands],
    )  # fmt: skip
    raising = Raising(inputs, live, lift, found, bounds)
    raising.count += len(kept_free.standing)
    for want in found.wants:
        raising.judge(want)
    tainted = node_taints.judge(inputs, nodes, bounds)
    known = {
        name: Known(uuid=fence.uuid, rules=rules_of(fence), node=fence.node, node_uid=fence.node_uid)
        for name, fence in ours.items()
        if name not in lift.let_go and (not fence.going or name in memory.known)  # else it is we who let it go
    }  # fmt: skip
    made = Plan(
        actions=(*raising.actions(), *kept_free.first, *kept_free.last), nodes=tuple(tainted.actions),
        held=(*raising.held, *tainted.held, *kept_free.held), standing=(*raising.standing, *kept_free.standing),
        node_taints=tainted.standing, breaker=bounds.breaker,
        budgets={**bounds.budgets(), "cap": (float(raising.count), float(policy.cap))},
    )  # fmt: skip
    if not inputs.rules_read:
        known = dict(memory.known)
    known_nodes = node_taints.known(inputs, tainted) if inputs.nodes_known else memory.known_nodes
    return made, msgspec.structs.replace(bounds.memory(), known=known, known_nodes=known_nodes)


# --- what stands ---


def _standing(inputs: Inputs) -> dict[str, Fence]:
    """Our fences by name."""
    return {
        name: fence for name, fence in sorted(inputs.standing.items()) if inputs.only_node in ("", fence.node)
    }


def _notice_deleted(inputs: Inputs, memory: Memory) -> Memory:
    """A fence that stood, that was not to be lifted, and that is gone: somebody did not want it.

    When its node is gone, or was made again, it went with it. Where its findings are over, its absence says nothing: it
    may have been lifted by a leader that could not leave word of it any more.
    """
    if not inputs.rules_read:
        return memory
    ignores = [
        Ignore(
            uuid=known.uuid, rule=rule, until_wall=inputs.now_wall + inputs.policy.deleted_ignore_seconds,
            taint=name, since_wall=inputs.now_wall,
        )
        for name, known in memory.known.items()
        if name not in inputs.standing and name not in inputs.foreign
        and not _node_changed(inputs, known.node, known.node_uid) and not _over(inputs, known)
        for rule in known.rules
    ]  # fmt: skip
    return ignoring(memory, ignores) if ignores else memory


def _node_changed(inputs: Inputs, node: str, uid: str) -> bool:
    return inputs.nodes_known and (node not in inputs.nodes or uid not in ("", inputs.nodes[node]))


def _over(inputs: Inputs, known: Known) -> bool:
    """Whether the node's agent says that nothing is found any more of what a fence was about."""
    report = inputs.reports.get(known.node)
    if report is None or report.stale or report.partial or PINNED in known.rules:
        return False
    return not any(finding.rule in known.rules for finding in report.findings)
