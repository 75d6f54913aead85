"""Who tells people: which Nodes get which conditions, and which Events go out after a round?"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Final

from claimscope.claims.cluster import Cluster
from claimscope.claims.model import DeviceKey
from claimscope.clock import Clock
from claimscope.kube.api import ApiClient, ApiError, ApiReason
from claimscope.taints import conditions, events
from claimscope.taints.events import About, Announcer, Note
from claimscope.taints.model import Action, Fence, Held, NodeReport

CONDITIONS_PER_ROUND: Final = 50
SAID_SECONDS: Final = 30.0  # within which a Node need not have come back with what was written
_PODS_MAX: Final = 8  # of one device


@dataclass(slots=True)
class Teller:
    """Writes conditions and Events; one event loop owns it. Answers each write's verb with what came of it."""

    api: ApiClient
    cluster: Cluster
    clock: Clock
    announcer: Announcer
    _said: dict[str, tuple[int, tuple[conditions.NodeCondition, ...]]] = field(default_factory=dict)
    _held: set[tuple[str, str]] = field(default_factory=set)  # (name of the rule, reason)

    async def conditions(self, reports: Iterable[NodeReport]) -> AsyncIterator[tuple[str, ApiError | None]]:
        """Writes what has changed on Nodes, some at a time."""
        left = CONDITIONS_PER_ROUND
        now_ns = self.clock.monotonic_ns()
        for report in reports:
            node = self.cluster.nodes.get(report.node)
            if node is None:
                continue
            present = conditions.present_on(node)
            wanted = conditions.wanted(report, present)
            if not conditions.differ(wanted, present):
                self._said.pop(report.node, None)
                continue
            said = self._said.get(report.node)
            if said is not None and said[1] == wanted and now_ns - said[0] < SAID_SECONDS * 1e9:
                continue
            if left == 0:
                return
            left -= 1
            self._said[report.node] = (now_ns, wanted)  # a refused one is tried again after a while, too
            try:
                await conditions.write(self.api, report.node, wanted, present, self.clock.wall_ns() / 1e9)
            except ApiError as error:
                yield "condition", error
            else:
                yield "condition", None

    async def transitions(
        self, done: Iterable[tuple[Action, Fence | None]], held: Iterable[Held]
    ) -> AsyncIterator[tuple[str, ApiError | None]]:
        """Tells of each write that was done, with the rule as it was before, and of what is newly held back."""
        notes: list[Note] = []
        for action, before in done:
            fence = action.fence
            notes += events.of_action(action, before, (*self._node(fence), *self._pods(fence.device)))
        now = {(each.fence.name, each.reason): each for each in held if each.reason not in _QUIET}
        for key, each in now.items():
            if key not in self._held:
                notes += (events.of_held(each, about) for about in self._node(each.fence))
        self._held = set(now)
        for note in notes:
            wall = self.clock.wall_ns() / 1e9
            if not self.announcer.due(note, wall):
                continue
            try:
                await self.announcer.send(note, wall)
            except ApiError as error:
                # That it is there already means that it was told already.
                yield "event", None if error.reason is ApiReason.CONFLICT else error
            else:
                yield "event", None

    def _node(self, fence: Fence) -> tuple[About, ...]:
        node = self.cluster.nodes.get(fence.node)
        return () if node is None else (About(kind="Node", name=fence.node, uid=node.metadata.uid),)

    def _pods(self, device: DeviceKey) -> list[About]:
        found: dict[About, None] = {}
        for held in self.cluster.holdings(device):
            claim = self.cluster.claims.get(held.claim)
            for user in (claim.status.reserved_for or ()) if claim is not None and not held.admin else ():
                if user.resource == "pods":
                    found[About(kind="Pod", name=user.name, namespace=held.claim.namespace, uid=user.uid)] = None
        return list(found)[:_PODS_MAX]


_QUIET: Final = frozenset({"mode", "paused", "ignored", "edited"})  # a person wanted it so
