"""How does one leader keep taints, conditions and Events as the agents' findings want them, round by round?

A round reads what the watches brought, decides (plan.py), writes what differs, and keeps what must be remembered in
the controller's Lease. It fails static: while something that the decision rests on cannot be read, nothing is written
and what stands stays. Nothing is written once the leadership may be over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from claimscope.claims.cluster import Cluster
from claimscope.clock import Clock
from claimscope.kube.api import ApiClient, ApiError, ApiReason
from claimscope.kube.objects import DeviceTaintRule
from claimscope.metrics.controller import own
from claimscope.model import Sample
from claimscope.taints import apply_nodes, guard, memory, tally
from claimscope.taints.apply import RuleWriter, Standing
from claimscope.taints.events import COMPONENT, Announcer
from claimscope.taints.fences import blocks
from claimscope.taints.guard import Allowed
from claimscope.taints.inputs import gather
from claimscope.taints.inventory import Inventory
from claimscope.taints.maintenance_keeper import Keeper
from claimscope.taints.memory import Memory
from claimscope.taints.model import Action, Do, Fence, Mode, NodeAction, NodeReport, Plan
from claimscope.taints.notebook import MEMORY, MEMORY_BYTES, SHOWN, Notebook, asked_of, paused_by, shown
from claimscope.taints.plan import plan
from claimscope.taints.policy import Pause, Policy
from claimscope.taints.reports import Reports
from claimscope.taints.sources import PolicySource
from claimscope.taints.standing import StandingRules, ours
from claimscope.taints.tally import Tally
from claimscope.taints.tell import Teller
from claimscope.taints.violations import HealthViolations

log = logging.getLogger(__name__)

ROUND_SECONDS: Final = 4.0  # the longest pause
NEWS_SECONDS: Final = 0.2  # the shortest pause
NOTES_SECONDS: Final = 2.0  # how often the Lease is read at most; with the longest pause, pausing acts in 10 s
SHARE_OF_TIME: Final = 0.1  # that deciding may take; writing is mostly waiting
GUARD_SECONDS: Final = 60.0  # how often the server is asked what it is; an upgrade replaces it
WRITES_PER_ROUND: Final = 500
NODES_PER_ROUND: Final = 50
RETRY_AFTER_SECONDS_MAX: Final = 60.0  # of what a server asks for; what stands stays meanwhile
READ_KINDS: Final = ("leases", "resourceslices", "devicetaintrules", "nodes", "resourceclaims")


@dataclass(slots=True)
class _Failures:
    """Says each kind of failure once, and when it is over."""

    present: set[tuple[str, ApiReason]] = field(default_factory=set)
    _round: set[tuple[str, ApiReason]] = field(default_factory=set)
    _tried: set[str] = field(default_factory=set)

    def note(self, verb: str, error: ApiError | None) -> None:
        self._tried.add(verb)
        if error is not None:
            if (verb, error.reason) not in self.present | self._round:
                log.warning("fencing: %s failed, and is tried again: %s", verb, error)
            self._round.add((verb, error.reason))

    def round_over(self) -> None:
        untried = {each for each in self.present if each[0] not in self._tried}
        over = {each for each in self.present - self._round if each[0] in self._tried}
        for verb in {verb for verb, _ in over} - {verb for verb, _ in self._round}:
            log.info("fencing: %s works again", verb)
        self.present, self._round, self._tried = untried | self._round, set(), set()


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
        count_since_wall: float,
        round_seconds: float = ROUND_SECONDS,
        notes_seconds: float = NOTES_SECONDS,
        only_node: str = "",
        component: str = COMPONENT,
    ) -> None:
        self._api = api
        self._clock = clock
        self._cluster = cluster
        self._policies = policies
        self._notebook = notebook
        self._leads = leads
        self._readable = readable  # everything that is decided on has been read, and is still being heard of
        self._round_seconds = round_seconds
        self._notes_seconds = notes_seconds
        self._only_node = only_node  # an agent that works for itself touches nothing else
        self._news = asyncio.Event()
        self._deciding_seconds = 0.0  # that the last decision took
        self._inventory = Inventory()
        self._reports = Reports()
        self._rules = StandingRules()
        self._violations = HealthViolations(count_since_wall)
        self._announcer = Announcer(api, identity, component)
        self._keeper = Keeper(api, cluster, clock)
        self._teller = Teller(api, cluster, clock, self._announcer)
        self._tally = Tally()
        self._failures = _Failures()
        self._notes: Mapping[str, str] = {}  # annotations of the Lease
        self._noted_ns: int | None = None
        self._memory: Memory | None = None  # None: not read yet
        self._allowed: Allowed | None = None
        self._asked_ns: int | None = None
        self._wait_until_ns = 0  # the server asked to be left alone
        self._unlifted: frozenset[str] = frozenset()  # rules that the server did not let go in the last round
        self._taken_on_trial = False  # the server has said that it would take a rule
        self._writer: RuleWriter | None = None
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
            if self._leads() and self._readable():
                await self.round()
            await asyncio.sleep(min(max(self._deciding_seconds / SHARE_OF_TIME, NEWS_SECONDS), self._round_seconds))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._round_seconds):
                    await self._news.wait()

    async def round(self) -> None:
        """One round. What fails is counted, said, and tried again in the next."""
        if self._waits():
            return
        try:
            await self._ask()
            await self._decide_and_write()
        except ApiError as error:
            self._failed("read", error)
        self._failures.round_over()

    async def _ask(self) -> None:
        """Reads the Lease, and what the server is, from time to time."""
        now_ns = self._clock.monotonic_ns()
        if self._noted_ns is None or now_ns - self._noted_ns >= self._notes_seconds * 1e9:
            self._notes = await self._notebook.read()
            self._noted_ns = now_ns
        if self._memory is None:
            self._memory, problem = memory.decode(self._notes.get(MEMORY), self._wall())
            if problem:
                log.warning("what was fenced lately is not known, so the breaker starts half open: %s", problem)
        if self._asked_ns is None or now_ns - self._asked_ns >= GUARD_SECONDS * 1e9:
            before, self._allowed = self._allowed, await guard.examine(
                self._api, alpha=self._policies.current(self._wall()).alpha_api
            )
            self._asked_ns = now_ns
            if self._allowed != before:
                self._say_mode(self._allowed)
            version = self._allowed.version
            if version is None:
                self._writer = None
            elif self._writer is None or self._writer.version != version:
                self._writer, self._taken_on_trial = RuleWriter(self._api, version), False

    def _say_mode(self, allowed: Allowed) -> None:
        wanted = self._policies.current(self._wall()).mode
        if allowed.lowers(wanted):
            # A cluster without the API is as most are; anything else somebody can mend.
            level = logging.INFO if allowed.version is None else logging.WARNING
            log.log(level, "fencing goes no further than %s instead of %s: %s", allowed.mode.value, wanted.value,
                    allowed.text)
        else:
            log.info("fencing: %s", wanted.value)

    async def _decide_and_write(self) -> None:
        if self._memory is None or self._allowed is None:
            return
        now_ns, wall = self._clock.monotonic_ns(), self._wall()
        policy = self._policies.current(wall)
        self._inventory.follow(self._cluster)
        self._reports.follow(self._cluster.leases.values(), now_ns)
        reports = self._reports.by_node(
            self._cluster.nodes, self._inventory, group_label=policy.node_group_label,
            stale_seconds=policy.stale_seconds, now_ns=now_ns, now_wall=wall,
        )
        await asyncio.sleep(0)  # what waits to be read, or renewed, goes first
        standing = ours(self._rules.over(self._cluster.rules, now_ns))
        asked = asked_of(self._notes, wall)
        author = paused_by(self._notes)
        inputs = gather(
            cluster=self._cluster, inventory=self._inventory, reports=reports.values(), policy=policy, now_wall=wall,
            standing=[each.fence for each in standing.values()],
            pauses=() if author is None else (Pause(author=author),), only_node=self._only_node,
        )
        inputs = replace(
            inputs, ceiling=self._allowed.mode, ceiling_text=self._allowed.text, unlifted=self._unlifted,
            device_taints=self._allowed.mode is not Mode.OBSERVE and "devicetaintrules" in self._cluster.synced,
        )
        before = asked.on(self._memory, wall)
        if not self._only_node:  # an agent sees neither claims nor who asks for its own node
            inputs, states = self._keeper.decide(
                inputs, before.maintenance, readable="devicetaintrules" in self._cluster.synced
            )
            before = msgspec.structs.replace(before, maintenance=states)
        self._plan, self._memory = plan(inputs, before)
        self._deciding_seconds = (self._clock.monotonic_ns() - now_ns) / 1e9
        self._unlifted = frozenset()
        actions = self._actions(self._allowed)
        done: list[tuple[Action, Fence | None]] = []
        observes = policy.mode is Mode.OBSERVE
        if observes and not actions and not self._plan.nodes and not self._keeper.unfinished:
            pass  # in this mode nothing is written but what lifts, and what is said of maintenance
        # Remembered first: after a crash, a rule that we lifted would look like one that a person took away.
        elif await self._remember(policy, asked.annotations):
            done = await self._write(actions, standing)
            tainted = await self._taint_nodes()
            if not inputs.pauses and not self._waits():
                await self._tell(reports, done, tainted, health=not observes or bool(actions or self._plan.nodes))
        self._count(reports, wall)
        self._heard = reports
        self._round_wall = wall

    def _actions(self, allowed: Allowed) -> tuple[Action, ...]:
        """What is written of the plan. Where no mode is safe what stands stays; where rules do harm they are lifted."""
        if allowed.mode is Mode.OBSERVE and not allowed.lifts:
            return ()
        if "devicetaintrules" not in self._cluster.synced:
            return ()  # they may not be read: what stands is not known
        return self._plan.actions[:WRITES_PER_ROUND]

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

    async def _write(
        self, actions: Iterable[Action], standing: Mapping[str, Standing]
    ) -> list[tuple[Action, Fence | None]]:
        writer, refused = self._writer, False
        done: list[tuple[Action, Fence | None]] = []
        if writer is None:
            return done
        for action in actions:
            if not self._leads():
                break
            if action.do is Do.CREATE and not self._taken_on_trial:
                refused = refused or not await self._try_out(writer, action.fence)
                if refused:
                    continue
            before = standing.get(action.fence.name)
            if self._unlifted and _takes_room(action, before):
                continue  # there is no room yet; the next round counts what was not let go
            try:
                after = await writer.write(action, before)
            except ApiError as error:
                self._failed(action.do.value, error)
                if _gives_room(action, before):
                    self._unlifted |= {action.fence.name}
                if error.reason in (ApiReason.RATE_LIMITED, ApiReason.UNREACHABLE, ApiReason.TIMEOUT):
                    break  # the others would fare no better
                continue
            done.append((action, self._written(action, before, after)))
        return done

    async def _taint_nodes(self) -> list[NodeAction]:
        """Writes taints of Nodes, after the rules that may take their place."""
        done: list[NodeAction] = []
        for action in self._plan.nodes[:NODES_PER_ROUND]:
            if not self._leads() or self._waits():
                break
            try:
                changed = await apply_nodes.write(self._api, action.node, action.node_uid, action.after)
            except ApiError as error:
                self._failed("node_taint", error)
                continue
            self._succeeded("node_taint")
            if changed:
                done.append(action)
                log.info(
                    "node %s has taints %s: %s", action.node, ", ".join(map(str, action.after)) or "none of ours",
                    action.reason,
                )  # fmt: skip
        return done

    async def _try_out(self, writer: RuleWriter, fence: Fence) -> bool:
        try:
            await writer.try_out(fence)
        except ApiError as error:
            self._failed("dry_run", error)
            return False
        self._succeeded("dry_run")
        self._taken_on_trial = True
        return True

    def _written(self, action: Action, before: Standing | None, after: DeviceTaintRule | None) -> Fence | None:
        """Books a write that the server took; answers the fence as it was."""
        fence = action.fence
        self._succeeded(action.do.value)
        self._rules.wrote(
            fence.name, "" if before is None else before.uid, after,
            now_ns=self._clock.monotonic_ns(), wall=self._wall(),
        )
        fence_before = None if before is None else before.fence
        self._tally.done(action, fence_before)
        log.info(
            "%s taint %s=%s of effect %s on %s (%s): %s", _SAID[action.do], fence.key, fence.value, fence.effect,
            fence.device, fence.uuid, action.reason,
        )
        return fence_before

    async def _tell(
        self, reports: Mapping[str, NodeReport], done: list[tuple[Action, Fence | None]], tainted: list[NodeAction],
        *, health: bool,
    ) -> None:
        await self._follow(self._teller.transitions(done, self._plan.held, tainted))
        keeper = self._keeper
        news = keeper.news()  # before the Nodes say it
        expected = keeper.outcome.nodes  # a node under maintenance may be off
        others = [report for node, report in reports.items() if node not in expected]
        await self._follow(self._teller.silences(others, self._wall()))
        await asyncio.sleep(0)
        await self._follow(self._teller.conditions(keeper.all_of(reports), keeper.conditions(), health=health))
        await self._follow(self._teller.send(news))
        await self._follow(keeper.ask())

    async def _follow(self, writes: AsyncIterator[tuple[str, ApiError | None]]) -> None:
        async for verb, error in writes:
            if error is None:
                self._succeeded(verb)
            else:
                self._failed(verb, error)
            if not self._leads() or self._waits():
                return

    async def _remember(self, configured: Policy, asked: Iterable[str]) -> bool:
        """Keeps what the next leader must know, and takes away what people asked for; False where that failed."""
        if self._memory is None or self._allowed is None or not self._leads():
            return False
        text = memory.encode(self._memory)
        if len(text) > MEMORY_BYTES:
            self._failed("memory", ApiError(ApiReason.INVALID, f"{len(text)} bytes are too many for the Lease"))
            text = self._notes.get(MEMORY, "")
        mode = self._allowed.limit(configured.mode)
        wanted = {MEMORY: text, SHOWN: shown(mode, configured.mode, self._allowed.text, self._plan)}
        changed: dict[str, str | None] = {
            name: value for name, value in wanted.items() if self._notes.get(name) != value
        }
        changed.update(dict.fromkeys(asked))
        if changed:
            try:
                await self._notebook.write(changed)
            except ApiError as error:
                self._failed("memory", error)
                return False
            self._succeeded("memory")
            now = {**self._notes, **changed}
            self._notes = {name: value for name, value in now.items() if value is not None}
        return True

    def _waits(self) -> bool:
        return self._clock.monotonic_ns() < self._wait_until_ns

    def _failed(self, verb: str, error: ApiError) -> None:
        if error.retry_after_seconds:
            seconds = min(error.retry_after_seconds, RETRY_AFTER_SECONDS_MAX)
            self._wait_until_ns = self._clock.monotonic_ns() + round(seconds * 1e9)
        self._tally.writes[verb, error.reason.value] += 1
        self._failures.note(verb, error)

    def _succeeded(self, verb: str) -> None:
        self._tally.writes[verb, "ok"] += 1
        self._failures.note(verb, None)

    def _wall(self) -> float:
        return self._clock.wall_ns() / 1e9

    def samples(self) -> list[Sample]:
        """Series of the cluster."""
        standing = [each.fence for each in self._standing.values()]
        return [
            *self._violations.samples(),
            *self._keeper.samples(),
            *self._tally.samples(standing, self._plan, self._ineffective),
            *tally.agent_samples(self._heard),
        ]

    def own_samples(self) -> list[Sample]:
        """Series of the controller itself."""
        made = self._tally.own(self._plan.breaker)
        made += [
            own("taint_paused", paused_by(self._notes) is not None),
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


def _blocks(fence: Fence | None) -> bool:
    return fence is not None and blocks(fence.effect)


def _gives_room(action: Action, before: Standing | None) -> bool:
    """Whether it lets a device go that is kept from work."""
    after = None if action.do is Do.DELETE else action.fence
    return before is not None and _blocks(before.fence) and not _blocks(after)


def _takes_room(action: Action, before: Standing | None) -> bool:
    """Whether it keeps a device from work that was not."""
    return action.do is not Do.DELETE and _blocks(action.fence) and not (before is not None and _blocks(before.fence))


_SAID: Final = {Do.CREATE: "put up", Do.UPDATE: "changed", Do.DELETE: "lifted"}
