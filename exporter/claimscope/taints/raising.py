"""Which fences do findings get now, and of which effect? Those that stand are compared with what is wanted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from claimscope.health.model import Severity
from claimscope.taints import fences
from claimscope.taints.bounds import Bounds, Demand, blocked_by, board
from claimscope.taints.budget import Refusal
from claimscope.taints.fences import EFFECT_SINCE, EVIDENCE, SPEC_HASH, blocks
from claimscope.taints.inputs import Inputs
from claimscope.taints.lifting import Lifting
from claimscope.taints.model import Action, Do, Fence, Held
from claimscope.taints.policy import UNSETTLED_RULES
from claimscope.taints.wants import Want, Wanted

_NOT_COMPARED: Final = frozenset({EVIDENCE, SPEC_HASH})  # evidence alone, which changes each minute, is no reason


@dataclass(slots=True)
class Live:
    """Our fences, as the wants see them."""

    by_base: dict[str, Fence] = field(default_factory=dict)  # that a want is about
    others: list[Fence] = field(default_factory=list)
    doubles: list[Fence] = field(default_factory=list)
    alone: list[Fence] = field(default_factory=list)  # edited by somebody else: left alone
    settled: set[str] = field(default_factory=set)  # bases about which somebody else has decided
    all: dict[str, Fence] = field(default_factory=dict)


def matched(ours: dict[str, Fence], found: Wanted) -> Live:
    """Which fence of ours is about which want."""
    bases = {want.fence.name for want in found.wants}
    live = Live(all=ours, settled={fences.base_of(name) for name, fence in ours.items() if fence.edited})
    for name, fence in ours.items():
        base = fences.base_of(name)
        if fence.edited:
            live.alone.append(fence)
        elif base not in bases:
            live.others.append(fence)
        elif base in live.by_base or base in live.settled:
            live.doubles.append(fence)
        else:
            live.by_base[base] = fence
    return live


def blocked_after(inputs: Inputs, live: Live, lift: Lifting, wants: Iterable[Want]) -> dict[str, str]:
    """GPUs that stay kept from work, and their nodes; one whose fence is exchanged for another one is among them."""
    blocked = blocked_by(inputs, (*live.alone, *lift.kept))
    before = blocked_by(inputs, live.all.values())
    blocked.update((want.site.gpu, want.report.node) for want in wants if want.blocking and want.site.gpu in before)
    return blocked


def demand_of(want: Want) -> Demand:
    """What a fence that keeps work away asks for."""
    return Demand(
        report=want.report, gpus=frozenset({want.site.gpu}), rules=want.blocking_rules, bounded=not want.verdict
    )


class Raising:
    """Fences that findings ask for, one after the other, worst and oldest first."""

    def __init__(self, inputs: Inputs, live: Live, lift: Lifting, found: Wanted, bounds: Bounds) -> None:
        self._inputs = inputs
        self._live = live
        self._lift = lift
        self._bounds = bounds
        # What is made here.
        self.held = [*found.held, *(_left_alone(fence) for fence in live.alone)]
        self.standing: list[Fence] = [*live.alone, *lift.kept]
        self._actions: list[tuple[int, Action]] = []  # lifting 0, others 1
        self._raised: set[str] = set()  # boards that a fence written now keeps work from
        # What stands.
        self._names = {*inputs.standing, *inputs.foreign}
        self.count = len(live.all) - sum(1 for action in lift.actions if action.do is Do.DELETE)
        # Exchanging the blocking fence of a GPU for another one is nothing new, and is asked of nobody.
        self._exchanged = blocked_by(inputs, live.all.values()).keys() - blocked_by(inputs, self.standing).keys()
        self._exchanged -= {want.site.gpu for want in found.wants if want.blocking and self._stands(want)}
        self._evicting = any(_is_evicting(inputs, fence) for fence in live.all.values())

    # --- one fence ---

    def judge(self, want: Want) -> None:
        """Decides on effect and existence, and compares with what stands."""
        if want.fence.name in self._live.settled:
            return
        live = self._live.by_base.get(want.fence.name)
        if live is not None and live.going:  # it can be made anew once it is gone
            self.standing.append(live)
            return
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
        if not self._stands(want) and want.site.gpu not in self._exchanged:
            refusal = self._bounds.refusal(demand_of(want))
            if refusal is not None:
                self._hold(fence, refusal)
                return "None"
        return self._step_to_eviction(want, live)

    def _stands(self, want: Want) -> bool:
        """Whether it keeps work away already."""
        live = self._live.by_base.get(want.fence.name)
        return live is not None and blocks(live.effect)

    def _step_to_eviction(self, want: Want, live: Fence | None) -> str:
        """NoExecute only where NoSchedule has stood for a while, and the cluster has said that it sees the rule."""
        if not want.evicts or live is None or not blocks(live.effect):
            return "NoSchedule"
        if live.effect == "NoExecute":
            return "NoExecute"
        since = live.annotations.get(EFFECT_SINCE, "")
        stood = since.isdigit() and self._inputs.now_wall - int(since) >= self._inputs.policy.no_execute.after_seconds
        pods = self._inputs.holders.get(want.site.device)
        if not stood or pods == 0:
            return "NoSchedule"
        refusal = self._bounds.paused(want.report) or self._no_eviction(live, pods)
        if refusal is not None:
            self._hold(want.fence, refusal)
            return "NoSchedule"
        self._evicting = True
        return "NoExecute"

    def _no_eviction(self, live: Fence, pods: int | None) -> Refusal | None:
        """Why the pods on a device may not be deleted now."""
        most = self._inputs.policy.no_execute.pods_max
        if not live.eviction:
            text = f"the cluster has said nothing of {live.name}: whether it evicts is not known"
        elif pods is None:
            text = "which pods hold the device is not known"
        elif pods > most:
            text = f"{pods} pods hold the device, and at most {most} may be deleted"
        elif self._evicting:
            text = "pods of another device are being deleted, and one device goes at a time"
        else:
            return None
        return Refusal(reason="evict", text=text)

    def _create(self, want: Want, effect: str) -> None:
        if not blocks(effect) or want.site.gpu not in self._exchanged:
            refusal = self._bounds.paused(want.report) or self._not_announced(want)
            if refusal is not None:
                self._hold(want.fence, refusal)
                return
        self.count += 1
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

    def _not_announced(self, want: Want) -> Refusal | None:
        if want.fence.severity is Severity.DEGRADED:
            refusal = self._bounds.unannounced(want.rules)
            if refusal is not None:
                return refusal
        if want.report.unsettled and UNSETTLED_RULES.issuperset(want.rules):
            return Refusal(reason="upgrade", text=want.report.unsettled)
        if self.count >= self._inputs.policy.cap:
            return Refusal(reason="cap", text=f"{self.count} rules of ours stand, and no more may")
        return None

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
            self.standing.append(live)
            return
        if live.device != fence.device:
            changes = f"{fence.uuid} is {fence.device} now, no more {live.device}"
        urgent = live.device != fence.device or (blocks(live.effect) and not blocks(effect))
        self._write(Action(do=Do.UPDATE, fence=fences.sealed(fence), reason=changes), 0 if urgent else 1)
        if blocks(effect) and not blocks(live.effect):
            self._book(want)

    def _book(self, want: Want) -> None:
        self._raised.add(want.site.gpu)
        self._bounds.book(demand_of(want))

    def _hold(self, fence: Fence, refusal: Refusal) -> None:
        self.held.append(Held(fence=fence, reason=refusal.reason, text=refusal.text, cause=refusal.cause))

    def _write(self, action: Action, rank: int) -> None:
        self._actions.append((rank, action))
        self.standing.append(action.fence)

    # --- the answer ---

    def actions(self) -> tuple[Action, ...]:
        """Lifting first, but a fence that another one takes the place of goes last."""
        first = [action for action in self._lift.actions if not self._succeeded(action)]
        last = [action for action in self._lift.actions if self._succeeded(action)]
        urgent = [action for rank, action in self._actions if rank == 0]
        raising = [action for rank, action in self._actions if rank == 1]
        return (*first, *urgent, *raising, *last)

    def _succeeded(self, action: Action) -> bool:
        return action.do is Do.DELETE and board(self._inputs, action.fence) in self._raised


def _is_evicting(inputs: Inputs, fence: Fence) -> bool:
    """Whether pods may still go because of it; what nothing is known of counts."""
    pending = fence.eviction == "PodsPendingEviction" or inputs.holders.get(fence.device, 1) > 0
    return fence.effect == "NoExecute" and pending


def _left_alone(fence: Fence) -> Held:
    text = f"{fence.name} was changed by somebody else and is left alone; delete it to have it decided anew"
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
