"""What is to be written now, so that what stands becomes what should stand?

One pure function: the same inputs and memory give the same plan, and a second round without news writes nothing.
Lifting comes first and is held by nothing. What blocks is asked of pause, trust (silent agents, one cause for many
nodes, the breaker) and budgets, in this order; what is refused is announced.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from claimscope.health.model import Severity
from claimscope.taints import budget, fences
from claimscope.taints.budget import Ledger, Rate, Refusal
from claimscope.taints.fences import EFFECT_SINCE, EVIDENCE, FINDING_UUID, SPEC_HASH, blocks, rules_of
from claimscope.taints.inputs import PINNED, Inputs, gather
from claimscope.taints.memory import OPEN, Blocked, Ignore, Known, Memory, aged, ignoring, recent_onsets
from claimscope.taints.model import Action, Do, Fence, Held, Mode, NodeReport, Plan
from claimscope.taints.policy import effect_of
from claimscope.taints.wants import Silence, Want, Wanted, moved, pool_of, wanted

__all__ = ["Inputs", "Memory", "gather", "plan"]

_NOT_COMPARED: Final = frozenset({EVIDENCE, SPEC_HASH})  # evidence alone, which changes each minute, is no reason


def plan(inputs: Inputs, memory: Memory) -> tuple[Plan, Memory]:
    """One round. Without knowing what stands nothing is decided."""
    if not inputs.rules_known:
        return Plan(breaker=memory.breaker.state), memory
    policy = inputs.policy
    memory = aged(
        memory, inputs.now_wall, rate_seconds=policy.rate.seconds, systemic_seconds=policy.systemic.seconds
    )
    ours = _standing(inputs)
    memory = _notice_deleted(inputs, memory)
    found = wanted(inputs, memory)
    live = _matched(ours, found)
    lift = _Lifting(inputs, memory, found)
    for fence in live.others:
        lift.judge(fence)
    for fence in live.doubles:
        lift.delete(fence, "another fence of ours says the same")
    raising = _Raising(inputs, memory, live, lift, found)
    for want in found.wants:
        raising.judge(want)
    deleted = {action.fence.name for action in lift.actions if action.do is Do.DELETE}
    known = {
        name: Known(uuid=fence.uuid, rules=rules_of(fence), node=fence.node, node_uid=fence.node_uid)
        for name, fence in ours.items() if name not in deleted
    }  # fmt: skip
    return raising.plan(), msgspec.structs.replace(raising.memory(), known=known)


# --- what stands ---


def _standing(inputs: Inputs) -> dict[str, Fence]:
    """Our fences by name."""
    return {
        name: fence for name, fence in sorted(inputs.standing.items()) if inputs.only_node in ("", fence.node)
    }


def _notice_deleted(inputs: Inputs, memory: Memory) -> Memory:
    """A fence that stood, that was not to be lifted, and that is gone: somebody did not want it.

    When its node is gone, or was made again, it went with it.
    """
    ignores = [
        Ignore(
            uuid=known.uuid, rule=rule, until_wall=inputs.now_wall + inputs.policy.deleted_ignore_seconds,
            reason=f"its rule {name} was deleted by somebody else",
        )
        for name, known in memory.known.items()
        if name not in inputs.standing and name not in inputs.foreign
        and not _node_changed(inputs, known.node, known.node_uid)
        for rule in known.rules
    ]  # fmt: skip
    return ignoring(memory, ignores) if ignores else memory


def _node_changed(inputs: Inputs, node: str, uid: str) -> bool:
    return inputs.nodes_known and (node not in inputs.nodes or uid not in ("", inputs.nodes[node]))


@dataclass(slots=True)
class _Live:
    """Our fences, as the wants see them."""

    by_base: dict[str, Fence] = field(default_factory=dict)  # that a want is about
    others: list[Fence] = field(default_factory=list)
    doubles: list[Fence] = field(default_factory=list)
    edited: dict[str, Fence] = field(default_factory=dict)  # by base; left alone
    all: dict[str, Fence] = field(default_factory=dict)


def _matched(ours: dict[str, Fence], found: Wanted) -> _Live:
    bases = {want.fence.name for want in found.wants}
    live = _Live(all=ours)
    for name, fence in ours.items():
        base = fences.base_of(name)
        if fence.edited:
            live.edited[base] = fence
        elif base not in bases:
            live.others.append(fence)
        elif base in live.by_base:
            live.doubles.append(fence)
        else:
            live.by_base[base] = fence
    return live


def _board(inputs: Inputs, fence: Fence) -> str:
    """The GPU that a fence keeps work from."""
    site = inputs.inventory.at(fence.device)
    if site is not None and site.uuid == fence.uuid:
        return site.gpu
    return fence.annotations.get(FINDING_UUID) or fence.uuid or str(fence.device)


# --- lifting ---


class _Lifting:
    """Fences that no finding asks for now: lifted, unless their agent is silent; their names are kept right."""

    def __init__(self, inputs: Inputs, memory: Memory, found: Wanted) -> None:
        self._inputs = inputs
        self._unplaced = found.standing
        self._silence = Silence(inputs.all_overrides(), memory.ignores)
        self.actions: list[Action] = []
        self.kept: list[Fence] = []

    def delete(self, fence: Fence, reason: str) -> None:
        """Lifts."""
        self.actions.append(Action(do=Do.DELETE, fence=fence, reason=reason))

    def judge(self, fence: Fence) -> None:
        """Keeps, changes or lifts."""
        reason = self._reason_to_lift(fence)
        if reason is not None:
            self.delete(fence, reason)
            return
        fence = self._lowered(self._named(fence))
        self.kept.append(fence)

    def _reason_to_lift(self, fence: Fence) -> str | None:
        inputs = self._inputs
        if inputs.nodes_known and fence.node not in inputs.nodes:
            return f"node {fence.node} is gone"
        if rules_of(fence) == (PINNED,):
            return "nobody declares it unhealthy any more"
        if self._site_gone(fence):
            return f"{fence.uuid} is not published any more"
        said = [self._silence.of(fence.uuid, rule) for rule in rules_of(fence)]
        if all(said):
            return said[0]
        if self._mode(fence) is Mode.OBSERVE:
            return inputs.ceiling_text or "the mode is observe"
        report = inputs.reports.get(fence.node)
        if report is None or report.stale or report.partial:
            return None  # what an agent does not say is not over
        uuid = fence.annotations.get(FINDING_UUID, fence.uuid)
        if (fence.node, uuid, fence.severity) in self._unplaced:
            return None
        return self._why_over(report, uuid, fence)

    def _why_over(self, report: NodeReport, uuid: str, fence: Fence) -> str:
        same = [finding for finding in report.findings if finding.uuid == uuid]
        if any(finding.systemic for finding in same if finding.severity is fence.severity):
            return f"{fence.value} has one cause for many GPUs of node {fence.node}"
        worst = max((finding.severity for finding in same), key=lambda severity: severity.rank, default=Severity.OK)
        if worst is Severity.OK:
            return f"no finding of node {fence.node} is against {uuid} any more"
        return f"{fence.value} is over, or ignored; {uuid} is {worst.value}"

    def _mode(self, fence: Fence) -> Mode:
        report = self._inputs.reports.get(fence.node)
        group = report.group if report is not None else ""
        modes = [self._inputs.mode_of(group, rule) for rule in rules_of(fence)]
        return next((mode for mode in (Mode.ENFORCE, Mode.ANNOUNCE) if mode in modes), Mode.OBSERVE)

    def _site_gone(self, fence: Fence) -> bool:
        """Its name means another device now, or all of its pool is published and its uuid is not."""
        inventory = self._inputs.inventory
        if any(site.uuid == fence.uuid for site in inventory.sites(fence.uuid, fence.node)):
            return False
        there = inventory.at(fence.device)
        return there is not None or inventory.complete(pool_of(fence.device))

    def _named(self, fence: Fence) -> Fence:
        base = fences.base_of(fence.name)
        for site in self._inputs.inventory.sites(fence.uuid, fence.node):
            if fences.base_name(site.identity, fence.severity) == base and site.device != fence.device:
                renamed = moved(fence, site.device)
                reason = f"{fence.uuid} is {site.device} now, no more {fence.device}"
                self.actions.append(Action(do=Do.UPDATE, fence=renamed, reason=reason))
                return renamed
        return fence

    def _lowered(self, fence: Fence) -> Fence:
        mode = self._mode(fence)
        if not blocks(fence.effect) or effect_of(mode, fence.severity) != "None":
            return fence
        annotations = {**fence.annotations, EFFECT_SINCE: f"{self._inputs.now_wall:.0f}"}
        lowered = fences.sealed(replace(fence, effect="None", annotations=annotations))
        self.actions.append(Action(do=Do.UPDATE, fence=lowered, reason=f"the mode is {mode.value}"))
        return lowered


# --- raising ---


class _Raising:
    """Fences that findings ask for, one after the other, worst and oldest first."""

    def __init__(self, inputs: Inputs, memory: Memory, live: _Live, lift: _Lifting, found: Wanted) -> None:
        self._inputs = inputs
        self._memory = memory
        self._live = live
        self._lift = lift
        # What is made here.
        self._held = [*found.held, *(_left_alone(fence) for fence in live.edited.values())]
        self._actions: list[tuple[int, Action]] = []  # lifting 0, others 1
        self._standing: list[Fence] = [*live.edited.values(), *lift.kept]
        self._raised: set[str] = set()  # boards that a fence written now keeps work from
        self._new: list[Blocked] = []
        # What stands.
        self._names = {*inputs.standing, *inputs.foreign}
        self._count = len(live.all) - sum(1 for action in lift.actions if action.do is Do.DELETE)
        self._ours_before = {_board(inputs, fence) for fence in live.all.values() if blocks(fence.effect)}
        self._evicting = any(
            fence.effect == "NoExecute" and inputs.holders.get(fence.device, 1) > 0 for fence in live.all.values()
        )
        # What bounds.
        self._silent, self._agents = _silent_agents(inputs)
        self._seen = budget.onsets(report for report in inputs.reports.values() if not report.stale)
        self._recent = recent_onsets(memory.onsets, self._seen, inputs.now_wall, inputs.policy.systemic.seconds)
        self._systemic = budget.systemic_holds(
            memory, self._seen, self._recent, inputs.policy.systemic, nodes=self._agents, now_wall=inputs.now_wall
        )
        self._ledger = self._open_ledger(found.wants)
        self._breaker = budget.step(
            memory.breaker, inputs.policy.breaker, demand=self._demand(found.wants), fleet=self._ledger.fleet,
            window=inputs.policy.rate.seconds, now_wall=inputs.now_wall,
        )  # fmt: skip
        self._rate = Rate(inputs.policy, memory, self._ledger.fleet, self._breaker)

    def _demand(self, wants: Iterable[Want]) -> int:
        """GPUs that are to be kept from work, or just were; those with one cause elsewhere are held without that."""
        waiting = {
            want.site.gpu
            for want in wants
            if want.blocking and not self._free(want) and self._systemic_rule(want) is None
        }
        return len(waiting | {each.gpu for each in self._memory.blocked})

    def _open_ledger(self, wants: Iterable[Want]) -> Ledger:
        """Counts what will stand; a GPU whose fence is exchanged for another one stays counted."""
        inputs = self._inputs
        blocked: dict[str, str] = {}
        for device in inputs.blocked_elsewhere:
            site = inputs.inventory.at(device)
            if site is not None:
                blocked[site.gpu] = site.node
        for fence in self._standing:
            if blocks(fence.effect):
                blocked[_board(inputs, fence)] = fence.node
        for want in wants:
            if want.blocking and want.site.gpu in self._ours_before:
                blocked[want.site.gpu] = want.report.node
        return Ledger(
            inputs.policy, inputs.reports, inputs.inventory, blocked=blocked, maintenance=inputs.maintenance
        )

    def _free(self, want: Want) -> bool:
        return self._ledger.blocks(want.site.gpu)

    def _systemic_rule(self, want: Want) -> str | None:
        """The leading rule of those that would block, where all of them are held."""
        held = [rule for rule in want.blocking_rules if rule in self._systemic]
        return held[0] if held and len(held) == len(want.blocking_rules) else None

    # --- one fence ---

    def judge(self, want: Want) -> None:
        """Decides on effect and existence, and compares with what stands."""
        if want.fence.name in self._live.edited:
            return
        live = self._live.by_base.get(want.fence.name)
        effect = self._effect(want, live)
        if live is None:
            self._create(want, effect)
        else:
            self._update(want, live, effect)

    def _effect(self, want: Want, live: Fence | None) -> str:
        fence = want.fence
        if not want.blocking:
            if fence.severity is not Severity.DEGRADED:
                self._hold(fence, Refusal(reason="mode", text="the mode is announce"))
            return "None"
        if live is None or not blocks(live.effect):
            refusal = self._refusal(want)
            if refusal is not None:
                self._hold(fence, refusal)
                return "None"
        return self._step_to_eviction(want, live)

    def _refusal(self, want: Want) -> Refusal | None:
        """Why it may not block now. Exchanging one blocking fence of a GPU for another is nothing new."""
        if want.site.gpu in self._ours_before:
            return None
        gpu = want.site.gpu
        refusal = self._paused(want) or self._mistrust(want)
        if refusal is None and not self._free(want):
            refusal = self._ledger.refusal(want) or self._rate.refusal(gpu)
        return refusal

    def _paused(self, want: Want) -> Refusal | None:
        report = want.report
        if report.node in self._inputs.maintenance:
            return Refusal(reason="paused", text=f"node {report.node} is under maintenance")
        pause = self._inputs.pause_of(report.node, report.group)
        if pause is None:
            return None
        text = f"paused by {pause.author}"
        return Refusal(reason="paused", text=f"{text}: {pause.reason}" if pause.reason else text)

    def _mistrust(self, want: Want) -> Refusal | None:
        if self._silent > self._agents * self._inputs.policy.stale_share:
            return Refusal(reason="stale", text=f"{self._silent} of {self._agents} agents are silent")
        rule = self._systemic_rule(want)
        if rule is not None:
            text = f"{rule} stands on {len(self._seen[rule])} nodes: one cause outside of them; acknowledge to go on"
            return Refusal(reason="systemic", text=text)
        if self._breaker.state == OPEN:
            return Refusal(reason="breaker", text="too many GPUs were to be fenced at once; the breaker is open")
        return None

    def _step_to_eviction(self, want: Want, live: Fence | None) -> str:
        """NoExecute only where NoSchedule has stood for a while, deletes few pods, and no other one is at it."""
        if not want.evicts or live is None or not blocks(live.effect):
            return "NoSchedule"
        if live.effect == "NoExecute":
            return "NoExecute"
        limits, now = self._inputs.policy.no_execute, self._inputs.now_wall
        since = live.annotations.get(EFFECT_SINCE, "")
        pods = self._inputs.holders.get(want.site.device)
        ready = since.isdigit() and now - int(since) >= limits.after_seconds
        if not ready or not pods or pods > limits.pods_max or self._evicting or self._paused(want) is not None:
            return "NoSchedule"
        self._evicting = True
        return "NoExecute"

    def _create(self, want: Want, effect: str) -> None:
        exchange = blocks(effect) and want.site.gpu in self._ours_before
        if not exchange:
            refusal = self._paused(want)
            if refusal is None and self._count >= self._inputs.policy.cap:
                refusal = Refusal(reason="cap", text=f"{self._count} rules of ours stand, and no more may")
            if refusal is not None:
                self._hold(want.fence, refusal)
                return
        self._count += 1
        name, number = want.fence.name, 2
        while name in self._names:
            name, number = f"{want.fence.name}-{number}", number + 1
        self._names.add(name)
        annotations = {**want.fence.annotations, EFFECT_SINCE: f"{self._inputs.now_wall:.0f}"}
        fence = fences.sealed(replace(want.fence, name=name, effect=effect, annotations=annotations))
        reason = f"{fence.value}: {fence.uuid} is {fence.severity.value}"
        self._write(Action(do=Do.CREATE, fence=fence, reason=reason), 1)
        if blocks(effect):
            self._book(want)

    def _update(self, want: Want, live: Fence, effect: str) -> None:
        since = live.annotations.get(EFFECT_SINCE)
        if since is None or effect != live.effect:
            since = f"{self._inputs.now_wall:.0f}"
        fence = replace(
            want.fence, name=live.name, effect=effect, created_wall=live.created_wall,
            node_uid=want.fence.node_uid or live.node_uid,
            annotations={**want.fence.annotations, EFFECT_SINCE: since},
        )  # fmt: skip
        changes = _changes(live, fence)
        if not changes:
            self._standing.append(live)
            return
        if live.device != fence.device:
            changes = f"{fence.uuid} is {fence.device} now, no more {live.device}"
        urgent = live.device != fence.device or (blocks(live.effect) and not blocks(effect))
        self._write(Action(do=Do.UPDATE, fence=fences.sealed(fence), reason=changes), 0 if urgent else 1)
        if blocks(effect) and not blocks(live.effect):
            self._book(want)

    def _book(self, want: Want) -> None:
        gpu = want.site.gpu
        self._raised.add(gpu)
        if not self._free(want):
            self._rate.take(gpu)
            if all(each.gpu != gpu for each in self._memory.blocked):
                self._new.append(Blocked(gpu=gpu, wall=self._inputs.now_wall))
        self._ledger.take(want)

    def _hold(self, fence: Fence, refusal: Refusal) -> None:
        self._held.append(Held(fence=fence, reason=refusal.reason, text=refusal.text))

    def _write(self, action: Action, rank: int) -> None:
        self._actions.append((rank, action))
        self._standing.append(action.fence)

    # --- the answer ---

    def plan(self) -> Plan:
        """Lifting first, but a fence that another one takes the place of goes last."""
        first = [action for action in self._lift.actions if not self._succeeded(action)]
        last = [action for action in self._lift.actions if self._succeeded(action)]
        urgent = [action for rank, action in self._actions if rank == 0]
        raising = [action for rank, action in self._actions if rank == 1]
        policy = self._inputs.policy
        budgets = {
            **self._ledger.used(),
            "rate": (float(self._rate.used), float(self._rate.limit)),
            "cap": (float(self._count), float(policy.cap)),
        }
        return Plan(
            actions=(*first, *urgent, *raising, *last), held=tuple(self._held), standing=tuple(self._standing),
            budgets=budgets, breaker=self._breaker.state if self._ledger.fleet else OPEN,
        )  # fmt: skip

    def _succeeded(self, action: Action) -> bool:
        return action.do is Do.DELETE and _board(self._inputs, action.fence) in self._raised

    def memory(self) -> Memory:
        """What the next round must know."""
        return msgspec.structs.replace(
            self._memory, blocked=(*self._memory.blocked, *self._new), onsets=self._recent, holds=self._systemic,
            breaker=self._breaker,
        )  # fmt: skip


def _silent_agents(inputs: Inputs) -> tuple[int, int]:
    """How many agents are silent, of those that were ever heard."""
    heard = [report.stale for report in inputs.reports.values() if report.heard_wall > 0]
    return sum(heard), len(heard)


def _left_alone(fence: Fence) -> Held:
    text = f"{fence.name} was changed by somebody else and is left alone; delete it to have it made anew"
    return Held(fence=fence, reason="edited", text=text)


def _changes(live: Fence, fence: Fence) -> str:
    """What differs, for people; "" where nothing that matters does. Annotations of others are theirs."""
    found = []
    if live.effect != fence.effect:
        found.append(f"effect {live.effect} becomes {fence.effect}")
    if (live.device, live.key, live.value) != (fence.device, fence.key, fence.value):
        found.append(f"{live.value} becomes {fence.value}")
    kept = {key: live.annotations.get(key) for key in fence.annotations.keys() - _NOT_COMPARED}
    if live.node_uid != fence.node_uid or kept != {key: fence.annotations[key] for key in kept}:
        found.append("its findings changed")
    return ", ".join(found)
