"""Which taints should a Node have for GPUs of it that cannot be fenced one by one?

Those are the GPUs of a cluster without a safe API for it, and what a device plugin gives out and no slice publishes.
A Node's taint keeps work from all its GPUs, so it is off by default and for unhealthy and lost GPUs alone: one slow
GPU of eight fences nobody. Its keys are those of device taints, so that one list of tolerations serves both; pause,
trust, rate and budgets bound it as they bound those, with all GPUs of the node counted. Where a budget refuses, work is
only asked to prefer other nodes.

A person's taint with one of our keys is left alone and stands for ours; one of ours that a person takes away stays
away as a deleted rule does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from claimscope.claims.model import DeviceKey
from claimscope.health.model import Severity
from claimscope.taints.bounds import Bounds, Demand
from claimscope.taints.budget import Refusal, gpus_of
from claimscope.taints.fences import KEYS, MAINTENANCE, NO_FINDING, blocks
from claimscope.taints.inputs import Inputs
from claimscope.taints.machines import OnNode
from claimscope.taints.memory import Ignore, KnownNode, Memory, ignoring
from claimscope.taints.model import Fence, Held, Mode, NodeAction, NodeReport, NodeTaint, ReportedFinding
from claimscope.taints.policy import NODE_WIDE_RULES, NodeTaints
from claimscope.taints.wants import Silence, by_weight

HARD, SOFT = "NoSchedule", "PreferNoSchedule"
_SEVERITIES = (Severity.LOST, Severity.UNHEALTHY)
_BUDGETS = frozenset({"budget_group", "budget_fleet", "rate"})
_NOTHING = OnNode()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeWant:
    """One taint that findings ask for."""

    taint: NodeTaint
    severity: Severity
    rules: tuple[str, ...]
    reason: str


@dataclass(slots=True)
class Wanted:
    """The answer before pause, trust and budgets have their say."""

    wants: dict[str, list[NodeWant]] = field(default_factory=dict)  # by node
    blocked: dict[str, str] = field(default_factory=dict)  # GPUs that a taint of their node keeps work from, and it
    demands: list[Demand] = field(default_factory=list)
    exchanged: set[tuple[str, str]] = field(default_factory=set)  # node and key, where fences of devices that do not
    # stand yet come in the place of a taint


@dataclass(slots=True)
class Tainted:
    """What is to be written."""

    actions: list[NodeAction] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    standing: dict[str, tuple[NodeTaint, ...]] = field(default_factory=dict)  # ours, as they will be


def notice_removed(inputs: Inputs, memory: Memory) -> Memory:
    """A taint of ours that stood, or is recorded as ours, and is gone: somebody did not want it."""
    removed = {(node, taint.key) for node, found in inputs.node_taints.items() for taint in found.removed}
    for node, known in memory.known_nodes.items():
        if inputs.nodes.get(node) == known.node_uid:  # else it went with its Node
            standing = {taint.key for taint in inputs.node_taints.get(node, _NOTHING).ours}
            removed |= {(node, key) for key in known.keys if key not in standing}
    ignores = [
        Ignore(
            uuid=finding.uuid, rule=finding.rule, until_wall=inputs.now_wall + inputs.policy.deleted_ignore_seconds,
            reason=f"{key} was taken from node {node} by somebody else",
        )
        for node, key in sorted(removed)
        for finding in (inputs.reports[node].findings if node in inputs.reports else ())
        if KEYS.get(finding.severity) == key
    ]  # fmt: skip
    return ignoring(memory, ignores) if ignores else memory


def known(inputs: Inputs, tainted: Tainted) -> dict[str, KnownNode]:
    """What stands, without what is to be lifted now."""
    found = {}
    for node, standing in inputs.node_taints.items():
        stays = {taint.key for taint in tainted.standing.get(node, ())}
        keys = tuple(sorted({taint.key for taint in standing.ours} & stays))
        if keys:
            found[node] = KnownNode(keys=keys, node_uid=inputs.nodes.get(node, ""))
    return found


def needs_node_taint(inputs: Inputs, node: str) -> bool:
    """Whether device fences leave some GPUs of a node to work."""
    report = inputs.reports.get(node)
    plugin = report is not None and report.plugin_devices > 0
    return not inputs.device_taints or plugin or not inputs.inventory.gpus_of(node)


# --- from findings to taints ---


def wanted(inputs: Inputs, memory: Memory) -> Wanted:
    """What the findings ask for, and what stands."""
    result = Wanted()
    if inputs.only_node:
        return result  # an agent may not write Nodes
    silence = Silence(inputs.all_overrides(), memory.ignores)
    for node, report in inputs.reports.items():
        standing = inputs.node_taints.get(node, _NOTHING)
        if standing.ours and inputs.device_taints:
            result.exchanged |= {(node, key) for key in _unfenced(inputs, report, silence)}
        wants = _of_node(inputs, report, silence)
        effects = {want.taint.key: want.taint.effect for want in wants}
        kept = [  # what is lifted now makes room now
            each for each in standing.ours
            if effects.get(each.key) == HARD or (each.key not in effects and _stays(inputs, node, each, result))
        ]  # fmt: skip
        if _is_hard(kept) or any(blocks(effect) for _, effect in standing.theirs):
            result.blocked.update(dict.fromkeys(gpus_of(report, inputs.inventory), node))
        if wants:
            result.wants[node] = wants
        if not _is_hard(standing.ours):
            result.demands += (demand_of(inputs, report, want) for want in wants if want.taint.effect == HARD)
    return result


def _is_hard(taints: Iterable[NodeTaint]) -> bool:
    """Whether findings keep new work from the node already; what maintenance wants is no part of it."""
    return any(blocks(each.effect) and each.key != MAINTENANCE for each in taints)


def demand_of(inputs: Inputs, report: NodeReport, want: NodeWant) -> Demand:
    """All GPUs of the node. Its own budget does not bound it: the share that the policy asks for takes its place."""
    return Demand(report=report, gpus=gpus_of(report, inputs.inventory), rules=want.rules, bounded=False)


def _of_node(inputs: Inputs, report: NodeReport, silence: Silence) -> list[NodeWant]:
    policy = inputs.policy
    if policy.node_taints is NodeTaints.NONE or report.stale:
        return []
    findings = [each for each in report.findings if _counts(inputs, report, each, silence)]
    sick = len({_board(inputs, each) for each in findings}) - report.plugin_withdrawn
    if sick <= 0:
        return []
    wants = []
    for severity in _SEVERITIES:
        found = sorted((each for each in findings if each.severity is severity), key=by_weight)
        if not found:
            continue
        rules = tuple(dict.fromkeys(each.rule for each in found))
        whole = severity is Severity.LOST or not NODE_WIDE_RULES.isdisjoint(rules)
        whole = whole or 0 < policy.node_taint_share * report.devices <= sick
        hard = whole and policy.node_taints is NodeTaints.ENFORCE
        taint = NodeTaint(key=KEYS[severity], value=rules[0], effect=HARD if hard else SOFT)
        boards = len({_board(inputs, each) for each in found})
        reason = f"{', '.join(rules)}: {boards} of {report.devices} GPUs are {severity.value}"
        wants.append(NodeWant(taint=taint, severity=severity, rules=rules, reason=reason))
    return wants


def _counts(inputs: Inputs, report: NodeReport, finding: ReportedFinding, silence: Silence) -> bool:
    """Whether a finding keeps work away, and no fence of its device can."""
    if not _keeps_away(inputs, report, finding, silence):
        return False
    published = bool(inputs.inventory.sites(finding.uuid, report.node))
    return not inputs.device_taints or (report.plugin_devices > 0 and not published)


def _keeps_away(inputs: Inputs, report: NodeReport, finding: ReportedFinding, silence: Silence) -> bool:
    if finding.severity not in _SEVERITIES or finding.systemic or silence.of(finding.uuid, finding.rule) is not None:
        return False
    return inputs.policy.mode_of(report.group, finding.rule) is Mode.ENFORCE


def _unfenced(inputs: Inputs, report: NodeReport, silence: Silence) -> Iterator[str]:
    """Keys of findings on published devices that have no fence yet."""
    fenced = {fence.uuid for fence in inputs.standing.values() if fence.node == report.node}
    for finding in report.findings:
        sites = inputs.inventory.sites(finding.uuid, report.node)
        if sites and fenced.isdisjoint(site.uuid for site in sites) and _keeps_away(inputs, report, finding, silence):
            yield KEYS[finding.severity]


def _board(inputs: Inputs, finding: ReportedFinding) -> str:
    sites = inputs.inventory.sites(finding.uuid, finding.node)
    return finding.parent or (sites[0].gpu if sites else finding.uuid)


# --- from wishes to writes ---


def judge(inputs: Inputs, found: Wanted, bounds: Bounds) -> Tainted:
    """What each Node gets, the nodes with lost GPUs first."""
    result = Tainted()
    if inputs.only_node:
        return result
    lost = {node for node, wants in found.wants.items() if wants[0].severity is Severity.LOST}
    nodes = {*found.wants, *inputs.node_taints, *inputs.fenced_nodes}
    for node in sorted(nodes, key=lambda name: (name not in lost, name)):
        if node in inputs.nodes or not inputs.nodes_known:
            _judge(inputs, node, found, bounds, result)
    return result


def _judge(inputs: Inputs, node: str, found: Wanted, bounds: Bounds, result: Tainted) -> None:
    standing = inputs.node_taints.get(node, _NOTHING)
    report = inputs.reports.get(node)
    after: list[NodeTaint] = []
    reasons: list[str] = []
    for want in found.wants.get(node, ()):
        granted = _granted(inputs, inputs.reports[node], want, standing, bounds, result)
        if granted is not None and (granted.key, granted.effect) not in standing.theirs:
            after.append(granted)
            reasons.append(want.reason)
    met = {each.key for each in after}
    after += (each for each in standing.ours if each.key not in met and _stays(inputs, node, each, found))
    after += _for_maintenance(inputs, node, report, standing, result)
    new, old = frozenset(after), frozenset(standing.ours)
    if after:
        result.standing[node] = tuple(after)
    if new == old and not standing.removed:
        return
    reason = "; ".join(reasons) if new - old else "no finding asks for it any more, or the policy allows none"
    result.actions.append(NodeAction(
        node=node, node_uid=inputs.nodes.get(node, ""), before=standing.ours, after=tuple(after), reason=reason,
    ))


def _granted(
    inputs: Inputs, report: NodeReport, want: NodeWant, standing: OnNode, bounds: Bounds, result: Tainted
) -> NodeTaint | None:
    """The taint that may be put up now; None: none of this severity."""
    taint, demand = want.taint, demand_of(inputs, report, want)
    before = next((each for each in standing.ours if each.key == taint.key), None)
    soft = NodeTaint(key=taint.key, value=taint.value, effect=SOFT)
    if taint.effect == HARD and not _is_hard(standing.ours):
        refusal = bounds.refusal(demand)
        if refusal is None:
            bounds.book(demand)
            return taint
        result.held.append(_held(report, want, refusal))
        return soft if before is not None or refusal.reason in _BUDGETS else None
    if before is None and taint.effect == SOFT:
        refusal = bounds.paused(report) or bounds.mistrust(demand)
        if refusal is not None:
            result.held.append(_held(report, want, refusal))
            return None
    return taint


def _stays(inputs: Inputs, node: str, taint: NodeTaint, found: Wanted) -> bool:
    """Whether a taint stands on though nothing asks for it any more.

    An agent that is silent, or tells a part, does not say that it is over; and what takes its place must stand first.
    """
    report = inputs.reports.get(node)
    speaks = report is not None and not (report.stale or report.partial)
    if taint.key == MAINTENANCE:
        return not inputs.maintenance_known
    if inputs.policy.node_taints is NodeTaints.NONE:
        return False
    if speaks and (node, taint.key) not in found.exchanged:
        return False
    return inputs.policy.mode_of("" if report is None else report.group, taint.value) is Mode.ENFORCE


def _for_maintenance(
    inputs: Inputs, node: str, report: NodeReport | None, standing: OnNode, result: Tainted
) -> Iterator[NodeTaint]:
    """Whoever asked for maintenance wants the whole node: no budget of findings bounds that."""
    taint = NodeTaint(key=MAINTENANCE, value="requested", effect=HARD)
    allowed = inputs.taints_node("" if report is None else report.group)
    if node not in inputs.fenced_nodes or not allowed or not needs_node_taint(inputs, node):
        return
    if (taint.key, taint.effect) in standing.theirs:
        return
    pause = inputs.pause_of(node, "" if report is None else report.group)
    if pause is not None and taint not in standing.ours:
        text = f"paused by {pause.author}"
        result.held.append(Held(fence=_fence(node, taint, NO_FINDING), reason="paused", text=text))
        return
    yield taint


def _held(report: NodeReport, want: NodeWant, refusal: Refusal) -> Held:
    text = f"a taint of node {report.node}: {refusal.text}"
    return Held(fence=_fence(report.node, want.taint, want.severity), reason=refusal.reason, text=text)


def _fence(node: str, taint: NodeTaint, severity: Severity) -> Fence:
    """As which a taint of a Node is told of: one without a device."""
    return Fence(
        name=f"{node}/{taint.key}", device=DeviceKey("", "", ""), key=taint.key, value=taint.value,
        effect=taint.effect, uuid="", node=node, severity=severity,
    )  # fmt: skip
