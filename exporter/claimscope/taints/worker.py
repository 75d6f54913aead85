"""How does one leader keep taints, conditions and Events as the agents' findings want them, round by round?

A round reads what the watches brought, decides (plan.py), keeps what must be remembered in the controller's Lease
(notes.py), and writes what differs (writing.py). It fails static: while something that the decision rests on cannot be
read, nothing new is put up and what stands stays. Nothing is written once the leadership may be over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from claimscope.claims.cluster import Cluster
from claimscope.claims.model import SickGpu
from claimscope.clock import Clock
from claimscope.kube.api import ApiClient, ApiError
from claimscope.metrics.controller import own
from claimscope.model import Sample
from claimscope.taints import guard, tally
from claimscope.taints.apply import Standing
from claimscope.taints.events import COMPONENT, Announcer
from claimscope.taints.guard import Allowed
from claimscope.taints.inputs import Inputs, gather
from claimscope.taints.inventory import Inventory
from claimscope.taints.maintenance_keeper import Keeper
from claimscope.taints.memory import Memory
from claimscope.taints.model import Action, Mode, NodeAction, NodeReport, Plan
from claimscope.taints.notebook import Asked, Notebook, shown
from claimscope.taints.notes import Notes
from claimscope.taints.outcomes import Outcomes
from claimscope.taints.plan import plan
from claimscope.taints.policy import Pause, Policy
from claimscope.taints.reports import Reports
from claimscope.taints.sources import PolicySource
from claimscope.taints.standing import StandingRules, ours
from claimscope.taints.survey import sick_gpus
from claimscope.taints.tally import Tally
from claimscope.taints.tell import Teller
from claimscope.taints.violations import HealthViolations
from claimscope.taints.writing import Done, Writing, lifts, raises_node

log = logging.getLogger(__name__)

ROUND_SECONDS: Final = 4.0  # the longest pause
NEWS_SECONDS: Final = 0.2  # the shortest pause
NOTES_SECONDS: Final = 2.0  # how often the Lease is read at most; with the longest pause, pausing acts in 10 s
SHARE_OF_TIME: Final = 0.1  # that deciding may take; writing is mostly waiting
GUARD_SECONDS: Final = 60.0  # how often the server is asked what it is; an upgrade replaces it


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What one round decides on."""

    policy: Policy
    reports: Mapping[str, NodeReport]
    standing: Mapping[str, Standing]
    asked: Asked
    inputs: Inputs
    memory: Memory


class Fencing:
    """The worker of one leadership. One event loop owns it."""

    def __init__(
        self,
        api: ApiClient,
        clock: Clock,
        cluster: Cluster,
        policies: PolicySource,
        notebook: Notebook,
        *,
        identity: str,
        leads: Callable[[], bool],
        readable: Callable[[], bool],
        liftable: Callable[[], bool] | None = None,
        count_since_wall: float,
        round_seconds: float = ROUND_SECONDS,
        notes_seconds: float = NOTES_SECONDS,
        only_node: str = "",
        component: str = COMPONENT,
    ) -> None:
        """`readable`: everything that is decided on has been read, and is still being heard of; `liftable`: all of it
        that lifting rests on. `only_node`: an agent that works for itself touches nothing else.
        """
        self._api = api
        self._clock = clock
        self._cluster = cluster
        self._policies = policies
        self._leads = leads
        self._readable = readable
        self._liftable = readable if liftable is None else liftable
        self._round_seconds = round_seconds
        self._only_node = only_node
        self._news = asyncio.Event()
        self._deciding_seconds = 0.0  # that the last decision took
        self._inventory = Inventory()
        self._reports = Reports()
        self._rules = StandingRules()
        self._violations = HealthViolations(count_since_wall)
        self._announcer = Announcer(api, identity, component)
        self._keeper = Keeper(api, cluster, clock)
        self._teller = Teller(api, cluster, clock, self._announcer)
        self._outcomes = Outcomes(clock)
        self._tally = Tally(self._outcomes.counts)
        self._notes = Notes(notebook, clock, self._outcomes, seconds=notes_seconds)
        self._writing = Writing(
            api, clock, self._outcomes, self._rules, self._tally, leads=leads, may_raise=self._notes.may_raise
        )
        self._allowed: Allowed | None = None
        self._asked_ns: int | None = None
        self._plan = Plan()
        self._standing: Mapping[str, Standing] = {}
        self._heard: Mapping[str, NodeReport] = {}
        self._ineffective: Mapping[str, bool] = {}
        self._said_ineffective: set[str] = set()
        self._round_wall: float | None = None

    def news(self) -> None:
        """Something that is decided on changed."""
        self._news.set()

    async def run(self) -> None:
        """Works until it is cancelled."""
        while True:
            self._news.clear()
            if self._leads() and (self._readable() or self._liftable()):
                await self.round()
            await asyncio.sleep(min(max(self._deciding_seconds / SHARE_OF_TIME, NEWS_SECONDS), self._round_seconds))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._round_seconds):
                    await self._news.wait()

    async def round(self) -> None:
        """One round. What fails is counted, said, and tried again in the next."""
        if self._outcomes.waits():
            return
        try:
            await self._notes.look()
            allowed = await self._ask()
            if self._notes.memory is not None:
                await self._decide_and_write(allowed, self._notes.memory)
        except ApiError as error:
            self._outcomes.failed("read", error)
        self._outcomes.round_over()

    async def _ask(self) -> Allowed:
        """What the server is, asked from time to time."""
        now_ns, wall = self._clock.monotonic_ns(), self._wall()
        if self._allowed is not None and self._asked_ns is not None and now_ns - self._asked_ns < GUARD_SECONDS * 1e9:
            return self._allowed
        found = await guard.examine(self._api, alpha=self._policies.current(wall).alpha_api)
        self._asked_ns = now_ns
        if self._notes.memory is not None:
            if found.harms:
                self._notes.memory = msgspec.structs.replace(self._notes.memory, harmed_wall=wall)
            found = guard.settled(found, self._notes.memory.harmed_wall, wall)
        if found != self._allowed:
            self._say_mode(found)
        self._writing.serve(found.version)
        self._allowed = found
        return found

    def _say_mode(self, allowed: Allowed) -> None:
        wanted = self._policies.current(self._wall()).mode
        if allowed.lowers(wanted):
            # A cluster without the API is as most are; anything else somebody can mend.
            level = logging.INFO if allowed.version is None else logging.WARNING
            log.log(level, "fencing goes no further than %s instead of %s: %s", allowed.mode.value, wanted.value,
                    allowed.text)
        else:
            log.info("fencing: %s", wanted.value)

    # --- deciding ---

    async def _decide_and_write(self, allowed: Allowed, remembered: Memory) -> None:
        now_ns = self._clock.monotonic_ns()
        policy = self._policies.current(self._wall())
        reports = self._look(policy)
        await asyncio.sleep(0)  # what waits to be read, or renewed, goes first
        view = self._view(policy, allowed, reports, remembered)
        decided, self._notes.memory = plan(view.inputs, view.memory)
        refused = self._writing.refused(decided.actions)
        self._plan = replace(decided, held=(*decided.held, *refused))
        self._deciding_seconds = (self._clock.monotonic_ns() - now_ns) / 1e9
        await self._write(view, allowed)
        self._count(reports, view.inputs.now_wall)
        self._heard = reports
        self._round_wall = view.inputs.now_wall

    def _look(self, policy: Policy) -> dict[str, NodeReport]:
        now_ns, wall = self._clock.monotonic_ns(), self._wall()
        self._inventory.follow(self._cluster)
        self._reports.follow(self._cluster.leases.values(), now_ns, wall)
        return self._reports.by_node(
            self._cluster.nodes, self._inventory, group_label=policy.node_group_label,
            stale_seconds=policy.stale_seconds, now_ns=now_ns, now_wall=wall,
        )

    def _view(
        self, policy: Policy, allowed: Allowed, reports: Mapping[str, NodeReport], remembered: Memory
    ) -> _View:
        wall = self._wall()
        readable = "devicetaintrules" in self._cluster.synced
        standing = ours(self._rules.over(self._cluster.rules, self._clock.monotonic_ns()))
        asked = self._notes.asked(wall)
        author = self._notes.paused_by()
        inputs = gather(
            cluster=self._cluster, inventory=self._inventory, reports=reports.values(), policy=policy, now_wall=wall,
            standing=[each.fence for each in standing.values()],
        )
        inputs = replace(
            inputs, pauses=() if author is None else (Pause(author=author),), only_node=self._only_node,
            ceiling=allowed.mode, ceiling_text=allowed.text, unlifted=self._writing.unlifted,
            device_taints=allowed.mode is not Mode.OBSERVE and readable, rules_read=readable,
        )
        before = asked.on(remembered, wall)
        # An agent sees neither claims nor who asks for its own node; where claims cannot be seen, nobody is let go.
        if not self._only_node and self._sees_maintenance():
            inputs, states = self._keeper.decide(inputs, before.maintenance, readable=readable)
            before = msgspec.structs.replace(before, maintenance=states)
        elif not self._only_node:
            inputs = replace(inputs, maintenance_known=False, maintenance=frozenset(before.maintenance))
        return _View(
            policy=policy, reports=reports, standing=standing, asked=asked, inputs=inputs, memory=before
        )

    def _sees_maintenance(self) -> bool:
        return self._readable() and "nodes" in self._cluster.synced

    # --- writing ---

    async def _write(self, view: _View, allowed: Allowed) -> None:
        """Remembers first: else, after a crash, a rule that we lifted may look like one that a person took away.

        What cannot be remembered is not put up, but what is over is lifted all the same.
        """
        actions, nodes = self._actions(allowed), self._plan.nodes
        observes = view.policy.mode is Mode.OBSERVE
        if observes and not (actions or nodes or self._keeper.unfinished or view.asked.annotations):
            return  # in this mode nothing is written but what lifts, and what is said of maintenance
        mode = allowed.limit(view.policy.mode)
        state = shown(mode, view.policy.mode, allowed.text, self._plan)
        remembered = self._leads() and await self._notes.keep(state, view.asked.annotations)
        if not (remembered and self._readable()):
            actions = tuple(action for action in actions if lifts(action, view.standing))
            nodes = tuple(action for action in nodes if not raises_node(action))
            remembered = False
        done = await self._writing.rules(actions, view.standing)
        tainted = await self._writing.nodes(nodes)
        if remembered and not self._outcomes.waits():
            if self._notes.paused_by() is None:
                await self._tell(view.reports, done, tainted)
                health = not observes or bool(actions or nodes)
            else:
                health = False
            if self._only_node or self._sees_maintenance():  # else the Nodes would be told that it is over
                await self._tell_of_maintenance(view.reports, health=health)

    def _actions(self, allowed: Allowed) -> tuple[Action, ...]:
        """What is written of the plan. Where no mode is safe what stands stays; where rules do harm they are lifted."""
        if allowed.mode is Mode.OBSERVE and not allowed.lifts:
            return ()
        if "devicetaintrules" not in self._cluster.synced:
            return ()  # they may not be read: what stands is not known
        return self._plan.actions

    async def _tell(self, reports: Mapping[str, NodeReport], done: Done, tainted: list[NodeAction]) -> None:
        await self._follow(self._teller.transitions(done, self._plan.held, tainted))
        expected = self._keeper.outcome.nodes  # a node under maintenance may be off
        others = [report for node, report in reports.items() if node not in expected]
        await self._follow(self._teller.silences(others, self._wall()))
        await asyncio.sleep(0)

    async def _tell_of_maintenance(self, reports: Mapping[str, NodeReport], *, health: bool) -> None:
        """Also while everything is paused: what a Node says of its maintenance must stay true."""
        keeper = self._keeper
        news = keeper.news()  # before the Nodes say it
        await self._follow(self._teller.conditions(keeper.all_of(reports), keeper.conditions(), health=health))
        await self._follow(self._teller.send(news))
        await self._follow(keeper.ask())

    async def _follow(self, writes: AsyncIterator[tuple[str, ApiError | None]]) -> None:
        async for verb, error in writes:
            if error is None:
                self._outcomes.succeeded(verb)
            else:
                self._outcomes.failed(verb, error)
            if not self._leads() or self._outcomes.waits():
                return

    # --- telling what was seen ---

    def _count(self, reports: Mapping[str, NodeReport], wall: float) -> None:
        findings = (
            (site.device, finding)
            for report in reports.values()
            for finding in report.findings
            for site in self._inventory.sites(finding.uuid, report.node)
        )
        self._violations.take(findings, self._cluster)
        self._standing = ours(self._rules.over(self._cluster.rules, self._clock.monotonic_ns()))
        self._ineffective = self._rules.ineffective(self._standing, wall)
        silent = {name for name, without in self._ineffective.items() if without}
        for name in sorted(silent - self._said_ineffective):
            log.warning(
                "the cluster says nothing of DeviceTaintRule %s for a minute: it may taint nothing; check the feature "
                "gate DRADeviceTaintRules of kube-scheduler and kube-controller-manager", name,
            )
        self._said_ineffective = silent

    def _wall(self) -> float:
        return self._clock.wall_ns() / 1e9

    def samples(self) -> list[Sample]:
        """Series of the cluster."""
        standing = [each.fence for each in self._standing.values()]
        return [
            *self._violations.samples(),
            *self._keeper.samples(),
            *self._tally.samples(standing, self._plan, self._ineffective),
            *tally.agent_samples(self._watched()),
        ]

    def sick(self) -> tuple[SickGpu, ...]:
        """GPUs that something is found against."""
        return sick_gpus(self._heard.values(), (each.fence for each in self._standing.values()), self._plan.held)

    def _watched(self) -> Iterator[NodeReport]:
        """Of nodes that should have an agent: Leases outlive their Nodes, and maintenance may take an agent away."""
        known = "nodes" in self._cluster.synced
        for report in self._heard.values():
            if (report.node_uid or not known) and report.node not in self._keeper.outcome.nodes:
                yield report

    def own_samples(self) -> list[Sample]:
        """Series of the controller itself."""
        made = self._tally.own(self._plan.breaker)
        made += [
            own("taint_paused", self._notes.paused_by() is not None),
            own("taint_events_dropped_total", self._announcer.dropped),
        ]
        if self._allowed is not None:
            configured = self._policies.current(self._wall()).mode
            reason = self._allowed.reason if self._allowed.lowers(configured) else ""
            mode = self._allowed.limit(configured)
            made.append(own("taint_mode_info", 1, mode.value, configured.value, reason))
        if self._round_wall is not None:
            made.append(own("taint_last_round_timestamp_seconds", self._round_wall))
        return made
