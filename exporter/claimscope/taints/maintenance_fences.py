"""Which taints keep a node's devices free for maintenance, and what is to be written so that they stand?

They are no matter of findings: no budget of those bounds them and no finding lifts them. A pause holds back new ones,
and such as would now keep work away, as does the cap on all rules. One that somebody takes away is put up again, since
the Node still asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from claimscope.taints import fences
from claimscope.taints.fences import EFFECT_SINCE, MAINTENANCE, SPEC_HASH, blocks
from claimscope.taints.inputs import Inputs
from claimscope.taints.inventory import Inventory, Site
from claimscope.taints.maintenance import Request, Status
from claimscope.taints.model import KEY_DOMAIN, Action, Do, Fence, Held
from claimscope.taints.wants import pool_of

VALUE = "requested"
REASON = f"{KEY_DOMAIN}/maintenance-reason"
BY = f"{KEY_DOMAIN}/maintenance-by"
_TEXT_MAX = 500


def sites_of(inventory: Inventory, node: str) -> list[Site]:
    """Every device of a node that is known by a uuid: GPUs, and what is cut from them."""
    found = {site.identity: site for gpu in inventory.gpus_on(node) for site in inventory.sites(gpu, node)}
    return [found[identity] for identity in sorted(found)]


def wanted(status: Status, sites: Iterable[Site], node_uid: str, request: Request | None) -> tuple[Fence, ...]:
    """The taints of one node under maintenance, by their plain names."""
    if status.effect is None:
        return ()
    said = {} if request is None else {REASON: request.reason[:_TEXT_MAX], BY: request.by[:_TEXT_MAX]}
    if status.started_wall is not None:
        said[fences.SINCE] = f"{status.started_wall:.0f}"
    return tuple(
        Fence(
            name=fences.maintenance_name(status.node, site.identity), device=site.device, key=MAINTENANCE, value=VALUE,
            effect=status.effect, uuid=site.uuid, node=status.node, node_uid=node_uid, severity=fences.NO_FINDING,
            annotations={
                fences.UUID: site.uuid, fences.NODE: status.node, **{key: text for key, text in said.items() if text},
            },
        )
        for site in sites
    )  # fmt: skip


@dataclass(slots=True)
class Upkeep:
    """What is to be written."""

    first: list[Action] = field(default_factory=list)  # what stands and has to change, then what is new
    last: list[Action] = field(default_factory=list)  # what goes
    held: list[Held] = field(default_factory=list)
    standing: list[Fence] = field(default_factory=list)  # as they will be


def upkeep(inputs: Inputs, ours: Iterable[Fence], others: int) -> Upkeep:
    """Compares what maintenance asks for with `ours`, those of it that stand; `others` are our rules for findings."""
    result = Upkeep()
    asked = {fence.name: fence for wanted in inputs.kept_free.values() for fence in wanted}
    met: set[str] = set()
    for fence in ours:
        base = fences.base_of(fence.name)
        if fence.edited:
            met.add(base)
            result.standing.append(fence)
            text = f"{fence.name} was changed by somebody else and is left alone; delete it to have it made anew"
            result.held.append(Held(fence=fence, reason="edited", text=text))
        elif fence.going:  # deleted, and kept by somebody's finalizer: it can be made anew once it is gone
            met.add(base)
            result.standing.append(fence)
        elif base in asked and base not in met:
            met.add(base)
            _update(result, inputs, fence, asked[base])
        elif (reason := _reason_to_lift(inputs, fence, double=base in met)) is not None:
            result.last.append(Action(do=Do.DELETE, fence=fence, reason=reason))
        else:
            result.standing.append(fence)
    taken = {*inputs.standing, *inputs.foreign}
    for name, fence in asked.items():
        if name not in met:
            _create(result, inputs, fence, others, taken)
    return result


def _update(result: Upkeep, inputs: Inputs, live: Fence, wanted: Fence) -> None:
    if blocks(wanted.effect) and not blocks(live.effect) and _paused(result, inputs, wanted):
        wanted = replace(wanted, effect=live.effect)
    kept = (live.device, live.value, live.effect, live.node_uid)
    if kept == (wanted.device, wanted.value, wanted.effect, wanted.node_uid or live.node_uid):
        result.standing.append(live)
        return
    annotations = {**live.annotations, **wanted.annotations}
    if live.effect != wanted.effect:
        annotations[EFFECT_SINCE] = f"{inputs.now_wall:.0f}"
    annotations.pop(SPEC_HASH, None)
    fence = fences.sealed(
        replace(
            wanted,
            name=live.name,
            created_wall=live.created_wall,
            node_uid=wanted.node_uid or live.node_uid,
            annotations=annotations,
        )
    )
    moved = f"{fence.uuid} is {fence.device} now, no more {live.device}"
    reason = moved if live.device != fence.device else f"effect {live.effect} becomes {fence.effect}"
    result.first.append(Action(do=Do.UPDATE, fence=fence, reason=reason))
    result.standing.append(fence)


def _reason_to_lift(inputs: Inputs, fence: Fence, *, double: bool) -> str | None:
    if double:
        return "another fence of ours says the same"
    if inputs.nodes_known and fence.node not in inputs.nodes:
        return f"node {fence.node} is gone"
    if not inputs.maintenance_known:
        return None
    if fence.node not in inputs.kept_free:
        over = fence.node not in inputs.maintenance
        return f"the maintenance of node {fence.node} is over" if over else "no taint may be written here now"
    there = inputs.inventory.at(fence.device)
    if there is not None or inputs.inventory.complete(pool_of(fence.device)):
        return f"{fence.uuid} is not published any more"
    return None  # its slices are away, as while a node reboots


def _paused(result: Upkeep, inputs: Inputs, fence: Fence) -> bool:
    report = inputs.reports.get(fence.node)
    pause = inputs.pause_of(fence.node, "" if report is None else report.group)
    if pause is not None:
        result.held.append(Held(fence=fence, reason="paused", text=f"paused by {pause.author}"))
    return pause is not None


def _create(result: Upkeep, inputs: Inputs, fence: Fence, others: int, taken: set[str]) -> None:
    if _paused(result, inputs, fence):
        return
    count = others + len(result.standing)
    if count >= inputs.policy.cap:
        text = f"{count} rules of ours stand, and no more may"
        result.held.append(Held(fence=fence, reason="cap", text=text))
        return
    name, number = fence.name, 2
    while name in taken:
        name, number = f"{fence.name}-{number}", number + 1
    taken.add(name)
    annotations = {**fence.annotations, EFFECT_SINCE: f"{inputs.now_wall:.0f}"}
    made = fences.sealed(replace(fence, name=name, annotations=annotations))
    result.first.append(Action(do=Do.CREATE, fence=made, reason=f"node {fence.node} is wanted for maintenance"))
    result.standing.append(made)
