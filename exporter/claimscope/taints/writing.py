"""How are the writes of one round carried out: in which order, how far, and what when some are refused?

Before each write that keeps work away it is asked whether that is still wanted: a round of many writes may take
minutes, and somebody may pause meanwhile. What lets work come again is held by nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Final

from claimscope.clock import Clock
from claimscope.kube.api import ApiClient, ApiError, ApiReason
from claimscope.kube.objects import DeviceTaintRule
from claimscope.taints import apply_nodes, fences
from claimscope.taints.apply import RuleWriter, Standing
from claimscope.taints.fences import blocks, for_maintenance
from claimscope.taints.model import Action, Do, Fence, Held, NodeAction, NodeTaint
from claimscope.taints.outcomes import Outcomes
from claimscope.taints.standing import StandingRules
from claimscope.taints.tally import Tally

log = logging.getLogger(__name__)

WRITES_PER_ROUND: Final = 500
NODES_PER_ROUND: Final = 50
_REFUSED_ROUNDS: Final = 2  # in a row, after which people are told

Done = list[tuple[Action, Fence | None]]  # each with the fence as it was


class Writing:
    """The writes of one leadership; one event loop owns it."""

    def __init__(
        self, api: ApiClient, clock: Clock, outcomes: Outcomes, rules: StandingRules, tally: Tally, *,
        leads: Callable[[], bool], may_raise: Callable[[], Awaitable[bool]],
    ) -> None:
        self._api = api
        self._clock = clock
        self._outcomes = outcomes
        self._rules = rules
        self._tally = tally
        self._leads = leads
        self._may_raise = may_raise
        self._writer: RuleWriter | None = None
        self._taken_on_trial = False  # the server has said that it would take a rule
        self._trial_over = False  # one a round is enough
        self._refusals: Counter[str] = Counter()  # name -> rounds in a row
        self._texts: dict[str, str] = {}  # what the server said of them
        self.unlifted: frozenset[str] = frozenset()  # rules that the server did not let go in the last round

    def serve(self, version: str | None) -> None:
        """In which version of the API rules are written from now on; None: in none."""
        if version is None:
            self._writer = None
        elif self._writer is None or self._writer.version != version:
            self._writer, self._taken_on_trial = RuleWriter(self._api, version), False

    def refused(self, actions: Iterable[Action]) -> list[Held]:
        """Which of them the server has refused round after round."""
        return [
            Held(fence=action.fence, reason="refused", text=f"{_WANTED[action.do]}: {self._texts[action.fence.name]}")
            for action in actions
            if self._refusals[action.fence.name] >= _REFUSED_ROUNDS
        ]

    async def rules(self, actions: Collection[Action], standing: Mapping[str, Standing]) -> Done:
        """Writes rules, those last that the server did not let go in the last round."""
        before_round, self.unlifted = self.unlifted, frozenset()
        self._trial_over = False
        done: Done = []
        tried: dict[str, str | None] = {}
        ordered = sorted(actions, key=lambda action: action.fence.name in before_round)
        for action in ordered[:WRITES_PER_ROUND] if self._writer is not None else ():
            if self._over():
                break
            name = action.fence.name
            before = standing.get(name)
            possible = await self._possible(action, before, room=self.unlifted <= before_round)
            if possible is None:
                continue
            try:
                after = await self._write(possible, before)
            except ApiError as error:
                self._outcomes.failed(action.do.value, error)
                tried[name] = str(error)
                if _gives_room(action, before):
                    self.unlifted |= {name}
                if error.reason in (ApiReason.RATE_LIMITED, ApiReason.UNREACHABLE, ApiReason.TIMEOUT):
                    break  # the others would fare no better
                continue
            tried[name] = None
            done.append((possible, self._written(possible, before, after)))
        self._note(tried, actions)
        return done

    def _over(self) -> bool:
        return not self._leads() or self._outcomes.waits()

    async def _possible(self, action: Action, before: Standing | None, *, room: bool) -> Action | None:
        """What may be written of it now; None: nothing.

        `room`: nothing that was to be let go in this round stayed. What stayed before was counted by the plan; what
        stays now was not, and the plan may have granted its room to another one.
        """
        if _raises(action, before) and not await self._may_raise():
            return None
        if action.do is Do.CREATE and not self._taken_on_trial and not await self._try_out(action.fence):
            return None
        if room or for_maintenance(action.fence) or not _takes_room(action, before):
            return action
        if action.do is not Do.CREATE:
            return None
        return replace(action, fence=fences.sealed(replace(action.fence, effect="None")))

    async def _try_out(self, fence: Fence) -> bool:
        if self._writer is None or self._trial_over:
            return False
        self._trial_over = True
        try:
            await self._writer.try_out(fence)
        except ApiError as error:
            self._outcomes.failed("dry_run", error)
            return False
        self._outcomes.succeeded("dry_run")
        self._taken_on_trial = True
        return True

    async def _write(self, action: Action, before: Standing | None) -> DeviceTaintRule | None:
        if self._writer is None:
            raise ApiError(ApiReason.NOT_FOUND, "rules are served no more")
        return await self._writer.write(action, before)

    def _written(self, action: Action, before: Standing | None, after: DeviceTaintRule | None) -> Fence | None:
        """Books a write that the server took; answers the fence as it was."""
        fence = action.fence
        self._outcomes.succeeded(action.do.value)
        self._rules.wrote(
            fence.name, "" if before is None else before.uid, after,
            now_ns=self._clock.monotonic_ns(), wall=self._clock.wall_ns() / 1e9,
        )
        fence_before = None if before is None else before.fence
        self._tally.done(action, fence_before)
        log.info(
            "%s taint %s=%s of effect %s on %s (%s): %s", _SAID[action.do], fence.key, fence.value, fence.effect,
            fence.device, fence.uuid, action.reason,
        )
        return fence_before

    def _note(self, tried: Mapping[str, str | None], actions: Iterable[Action]) -> None:
        wanted = {action.fence.name for action in actions}
        for name in [name for name in self._refusals if name not in wanted or tried.get(name, "") is None]:
            del self._refusals[name], self._texts[name]
        for name, text in tried.items():
            if text is not None:
                self._refusals[name] += 1
                self._texts[name] = text

    async def nodes(self, actions: Collection[NodeAction]) -> list[NodeAction]:
        """Writes taints of Nodes, after the rules that may take their place."""
        done: list[NodeAction] = []
        for action in sorted(actions, key=raises_node)[:NODES_PER_ROUND]:  # what makes room goes first
            if self._over():
                break
            if raises_node(action) and not await self._may_raise():
                continue
            try:
                changed = await apply_nodes.write(self._api, action.node, action.node_uid, action.after)
            except ApiError as error:
                self._outcomes.failed("node_taint", error)
                continue
            self._outcomes.succeeded("node_taint")
            if changed:
                done.append(action)
                log.info(
                    "node %s has taints %s: %s", action.node, ", ".join(map(str, action.after)) or "none of ours",
                    action.reason,
                )  # fmt: skip
        return done


_SAID: Final = {Do.CREATE: "put up", Do.UPDATE: "changed", Do.DELETE: "lifted"}
_WANTED: Final = {Do.CREATE: "it cannot be put up", Do.UPDATE: "it cannot be changed", Do.DELETE: "it cannot be lifted"}
_EFFECTS: Final = ("None", "PreferNoSchedule", "NoSchedule", "NoExecute")  # the later, the more


def _blocks(fence: Fence | None) -> bool:
    return fence is not None and blocks(fence.effect)


def _gives_room(action: Action, before: Standing | None) -> bool:
    """Whether it lets a device go that is kept from work."""
    after = None if action.do is Do.DELETE else action.fence
    return before is not None and _blocks(before.fence) and not _blocks(after)


def _takes_room(action: Action, before: Standing | None) -> bool:
    """Whether it keeps a device from work that was not."""
    return action.do is not Do.DELETE and _blocks(action.fence) and not (before is not None and _blocks(before.fence))


def _raises(action: Action, before: Standing | None) -> bool:
    """Whether something is put up, or does more than before."""
    if action.do is not Do.UPDATE or before is None:
        return action.do is Do.CREATE
    return _EFFECTS.index(action.fence.effect) > _EFFECTS.index(before.fence.effect)


def lifts(action: Action, standing: Mapping[str, Standing]) -> bool:
    """Whether a fence for a finding goes, or does less."""
    if for_maintenance(action.fence):
        return False
    before = standing.get(action.fence.name)
    return action.do is Do.DELETE or _gives_room(action, before)


def raises_node(action: NodeAction) -> bool:
    """Whether a Node gets a taint, or one of more effect."""
    had = _strengths(action.before)
    return any(strength > had.get(key, 0) for key, strength in _strengths(action.after).items())


def _strengths(taints: Iterable[NodeTaint]) -> dict[str, int]:
    return {taint.key: _EFFECTS.index(taint.effect) for taint in taints if taint.effect in _EFFECTS}
