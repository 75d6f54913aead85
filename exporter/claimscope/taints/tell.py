"""Who tells people: which Nodes get which conditions, and which Events go out after a round?"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from claimscope.claims.cluster import Cluster
from claimscope.claims.model import DeviceKey
from claimscope.clock import Clock
from claimscope.kube.api import ApiClient, ApiError, ApiReason
from claimscope.taints import conditions, events
from claimscope.taints.conditions import NodeCondition
from claimscope.taints.events import About, Announcer, Note
from claimscope.taints.fences import for_maintenance
from claimscope.taints.model import Action, Fence, Held, NodeAction, NodeReport

CONDITIONS_PER_ROUND: Final = 50
DAY_SECONDS: Final = 86400.0
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
    _held: set[tuple[str, str]] = field(default_factory=set)  # (shared cause or name of the rule, reason)
    _silent: dict[str, int] = field(default_factory=dict)  # node -> days of silence that were told

    async def conditions(
        self, reports: Iterable[NodeReport], maintenance: Mapping[str, NodeCondition], *, health: bool = True
    ) -> AsyncIterator[tuple[str, ApiError | None]]:
        """Writes what has changed on Nodes, some at a time; without `health` only what is about maintenance."""
        left = CONDITIONS_PER_ROUND
        now_ns = self.clock.monotonic_ns()
        for gone in self._said.keys() - self.cluster.nodes.keys():
            del self._said[gone]
        for report in reports:
            node = self.cluster.nodes.get(report.node)
            if node is None:
                continue
            present = conditions.present_on(node)
            under_maintenance = report.node in maintenance
            if not (health or under_maintenance or conditions.MAINTENANCE_READY in present):
                continue
            if report.unheard:  # whether it lives is not known yet
                wanted = conditions.kept(present)
            elif health or present.keys() & conditions.HEALTH_TYPES:
                wanted = conditions.wanted(report, present)
            else:
                wanted = ()
            if under_maintenance:
                wanted = (*wanted, maintenance[report.node])
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
        self,
        done: Iterable[tuple[Action, Fence | None]],
        held: Iterable[Held],
        tainted: Iterable[NodeAction] = (),
    ) -> AsyncIterator[tuple[str, ApiError | None]]:
        """Tells of each write that was done, with the rule as it was before, and of what is newly held back."""
        notes: list[Note] = []
        for action, before in done:
            fence = action.fence
            if for_maintenance(fence):
                continue  # told once for the node
            notes += events.of_action(action, before, (*self._node(fence), *self._pods(fence.device)))
        now: dict[tuple[str, str], Held] = {}
        for each in held:
            if each.reason not in _QUIET:
                now.setdefault((each.cause or each.fence.name, each.reason), each)
        for key, each in now.items():
            if key not in self._held:
                notes += (events.of_held(each, about) for about in self._node(each.fence))
        self._held = set(now)
        notes += (events.of_node(each, self._about(each.node)) for each in tainted)
        async for told in self.send(notes):
            yield told

    async def silences(
        self, reports: Iterable[NodeReport], wall: float
    ) -> AsyncIterator[tuple[str, ApiError | None]]:
        """Tells of each agent that fell silent, and again each day that it stays so."""
        notes: list[Note] = []
        days: dict[str, int] = {}
        for report in reports:
            if not report.stale or report.unheard or report.heard_wall <= 0 or report.node not in self.cluster.nodes:
                continue
            days[report.node] = int((wall - report.heard_wall) // DAY_SECONDS)
            if self._silent.get(report.node, -1) < days[report.node]:
                notes.append(events.of_silence(self._about(report.node), days[report.node]))
        self._silent = days
        async for told in self.send(notes):
            yield told

    async def send(self, notes: Iterable[Note]) -> AsyncIterator[tuple[str, ApiError | None]]:
        """Sends Events, as far as the rate allows."""
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

    def _about(self, name: str) -> About:
        node = self.cluster.nodes.get(name)
        return About(kind="Node", name=name, uid="" if node is None else node.metadata.uid)

    def _node(self, fence: Fence) -> tuple[About, ...]:
        return (self._about(fence.node),) if fence.node in self.cluster.nodes else ()

    def _pods(self, device: DeviceKey) -> list[About]:
        found: dict[About, None] = {}
        for held in self.cluster.holdings(device):
            claim = self.cluster.claims.get(held.claim)
            for user in (claim.status.reserved_for or ()) if claim is not None and not held.admin else ():
                if user.resource == "pods":
                    found[About(kind="Pod", name=user.name, namespace=held.claim.namespace, uid=user.uid)] = None
        return list(found)[:_PODS_MAX]


# A person wanted it so; or it is what an upgrade looks like, and is over with it.
_QUIET: Final = frozenset({"mode", "paused", "ignored", "edited", "upgrade"})
