"""Wires the controller together: a lease decides who works, watches bring the cluster in, snapshots go out.

Only wiring lives here. Each kind is followed by a task of its own and fails alone. With the leadership everything
known is forgotten, since the next leader counts from where this one stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.metadata
import logging
import platform
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from claimscope.claims.cluster import Cluster, key_of
from claimscope.claims.engine import SHARE_OF_TIME, Engine
from claimscope.claims.explain import Explanation, explain
from claimscope.claims.lifecycle import Lifecycle
from claimscope.claims.model import ClusterSnapshot
from claimscope.claims.pending import Waiting
from claimscope.claims.selectors import Selectors
from claimscope.clock import Clock, SystemClock
from claimscope.config import ControllerConfig
from claimscope.export.cluster import ClusterCollector
from claimscope.export.otlp.parts import controller_pusher
from claimscope.export.otlp.push import Pusher
from claimscope.kube.api import ApiClient, ApiError, access_source, discover
from claimscope.kube.follow import WatchStatus, follow, samples
from claimscope.kube.kinds import WatchedKind, watched_kinds
from claimscope.kube.lease import LeaderElection, LeaseSeen
from claimscope.kube.objects import unix_seconds
from claimscope.looplag import LoopLag
from claimscope.metrics.controller import own
from claimscope.model import Sample
from claimscope.taints.model import Mode
from claimscope.taints.notebook import Notebook
from claimscope.taints.sources import PolicySource
from claimscope.taints.worker import Fencing
from claimscope.web.cluster import make_cluster_application
from claimscope.web.review.guard import review_guard
from claimscope.web.review.reviewer import Reviewer
from claimscope.web.serving.guard import make_guards
from claimscope.web.serving.source import serving_of
from claimscope.web.site import Check, ListenError, Readiness, WebCounters, start_site
from claimscope.yamlfile import ConfigError

logger = logging.getLogger(__name__)

PUBLISH_SECONDS = 1.0  # the longest pause where there is news, and how long none is waited for
NEWS_SECONDS = 0.1  # the shortest pause
STALE_SECONDS = 420.0  # a watch is ended by the server after 300 s at the latest, and is heard of then
PATIENCE_SECONDS = 60.0  # after which a required kind that fails again and again keeps the others no longer
READ_ONCE_SECONDS = 120.0
FENCING_NEEDS = ("leases", "resourceslices")  # heard of now, or not there at all
FENCING_READS = ("devicetaintrules", "nodes")  # likewise, or refused


class ControllerError(Exception):
    """The controller cannot do its work: one line that says what, where and what to do."""


async def run(config: ControllerConfig, environ: Mapping[str, str]) -> None:
    """Runs the controller until it is cancelled; raises ControllerError or WebConfigError where it cannot start."""
    # Nearly everything kept here is free of cycles; looking for some among millions of objects takes longer than work.
    gc.set_threshold(50_000, 20, 100)
    clock = SystemClock()
    policies = _policies(config, clock)
    serving = serving_of(config.web_config_file, clock)
    api = await _client(config, environ, clock)
    controller = _Controller(config=config, api=api, clock=clock, policies=policies)
    collector = ClusterCollector(config.claim_series)
    try:
        controller.otlp = controller_pusher(config, environ, controller.shown, collector, clock)
    except ConfigError as error:
        await api.close()
        raise ControllerError(str(error)) from error
    version = importlib.metadata.version("claimscope")
    controller.build_info = own("build_info", 1, version, "", platform.python_version())
    reviewer = None
    if config.web_authorization == "kubernetes":
        reviewer = Reviewer(api, clock, audiences=config.web_authorization_audiences)
    counters = WebCounters(own=own, reviews=None if reviewer is None else reviewer.results)
    application = make_cluster_application(
        snapshot=controller.shown,
        collector=collector,
        readiness=controller.readiness,
        explain=controller.explain,
        leader=controller.leader,
        counters=counters,
        middlewares=make_guards(serving, counters, token=None if reviewer is None else review_guard(reviewer)),
        version=version,
    )
    try:
        site = await start_site(application, config.web_listen_address, serving=serving, counters=counters)
    except ListenError as error:
        await api.close()
        raise ControllerError(str(error)) from error
    try:
        await controller.run()
    finally:
        await site.close()
        if reviewer is not None:
            await reviewer.close()
        await api.close()


def _policies(config: ControllerConfig, clock: Clock) -> PolicySource:
    path = None if config.taint_policy is None else Path(config.taint_policy)
    policies = PolicySource(path, Mode(config.taint_mode))
    try:
        policies.read(clock.wall_ns() / 1e9)
    except ConfigError as error:
        raise ControllerError(str(error)) from error
    return policies


async def _client(config: ControllerConfig, environ: Mapping[str, str], clock: Clock) -> ApiClient:
    try:
        source = access_source(config.kubeconfig, config.api_server_url, environ, clock)
        await source.access()  # credentials that cannot be used will not become so by waiting
    except ApiError as error:
        raise ControllerError(str(error)) from error
    return ApiClient(source)


@dataclass(slots=True, kw_only=True)
class _Leadership:
    """What one leadership has learnt."""

    engine: Engine
    kinds: tuple[WatchedKind, ...]
    statuses: dict[str, WatchStatus]
    began_ns: int
    began_wall_ns: int  # since when it counts
    fencing: Fencing
    complete: bool = False

    def settled(self, now_ns: int) -> bool:
        """True once every kind has been read, or is known to be unreadable; it then stays so."""
        if not self.complete:
            patient = (now_ns - self.began_ns) / 1e9 < PATIENCE_SECONDS
            self.complete = all(_settled(kind, self.statuses[kind.name], patient=patient) for kind in self.kinds)
        return self.complete

    def keep(self) -> None:
        """Once everything is shown: it will mostly stay, so the cyclic collector need not walk it again and again."""
        if not gc.isenabled():
            gc.freeze()
            gc.enable()

    def can_fence(self) -> bool:
        """True while everything that fencing decides on is known as it is now."""
        claims = self.statuses["resourceclaims"]
        return self.can_lift() and (claims.up or claims.absent)

    def can_lift(self) -> bool:
        """True while everything is known that says which fences are over: claims are no part of that."""
        return (
            self.complete
            and all(self.statuses[name].up or self.statuses[name].absent for name in FENCING_NEEDS)
            and all(self.statuses[name].up or self.statuses[name].served is False for name in FENCING_READS)
        )


def _settled(kind: WatchedKind, status: WatchStatus, *, patient: bool) -> bool:
    if status.synced or status.served is False:
        return True
    return status.errors.total() > 0 and not (kind.required and patient)


@dataclass(slots=True, kw_only=True)
class _Controller:
    """The present state of one replica."""

    config: ControllerConfig
    api: ApiClient
    clock: Clock
    policies: PolicySource
    build_info: Sample | None = None
    otlp: Pusher | None = None
    election: LeaderElection | None = None
    leadership: _Leadership | None = None
    lost: _Leadership | None = None  # one that ended, for as long as nobody else is known to have led since
    snapshot: ClusterSnapshot | None = None
    _lag: LoopLag = field(init=False)
    _news: asyncio.Event = field(default_factory=asyncio.Event)  # ends the pause before the next snapshot

    def __post_init__(self) -> None:
        self._lag = LoopLag(self.clock)

    async def run(self) -> None:
        """Leads at once where there is no election, else whenever elected."""
        try:
            # The push ends after the leadership: the last that it says is that the claims are no more this replica's.
            async with asyncio.TaskGroup() as outlasting:
                if self.otlp is not None:
                    outlasting.create_task(self.otlp.run(), name="otlp")
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._publish(), name="publish")
                    tasks.create_task(self._lag.run(), name="lag")
                    if self.config.leader_election == "off":
                        tasks.create_task(self._lead(LeaseSeen()), name="lead")
                    else:
                        self.election = self._candidate()
                        tasks.create_task(self.election.run(self._lead), name="election")
        finally:
            self._drop_lost()

    def _candidate(self) -> LeaderElection:
        config = self.config
        return LeaderElection(
            self.api,
            config.namespace,
            config.lease_name,
            config.identity,
            self.clock,
            lease_seconds=config.lease_seconds,
            renew_deadline_seconds=config.lease_seconds * 2 / 3,
            retry_seconds=config.lease_seconds / 8,
        )

    def _leads(self) -> bool:
        """Also right when this process was stopped for a while and does not know yet that its lease ran out."""
        return self.election is None or self.election.is_leader

    def shown(self) -> ClusterSnapshot | None:
        """What is served: the newest snapshot, and nothing of the cluster once this replica may not lead any more."""
        snapshot = self.snapshot
        if snapshot is not None and snapshot.leading and not self._leads():
            snapshot = self.snapshot = self._standby()
        return snapshot

    def _standby(self) -> ClusterSnapshot:
        return ClusterSnapshot(wall_ns=self.clock.wall_ns(), leading=False, own=tuple(self._own(None)))

    async def _lead(self, before: LeaseSeen) -> None:
        """Follows everything until it is cancelled. What ended while nobody led is counted, nothing is twice.

        Who lost the lease and gets it back before anybody else had it goes on counting where it stopped.
        """
        if not before.unchanged:
            self._drop_lost()
        leadership, self.lost = self.lost or self._begin(before), None
        self.leadership = leadership
        self._news.set()
        gc.disable()  # until all has been read and shown once, at the latest after PATIENCE_SECONDS: all of it stays
        try:
            async with asyncio.TaskGroup() as tasks:
                for kind in leadership.kinds:
                    tasks.create_task(self._follow(kind, leadership), name=f"follow {kind.name}")
                tasks.create_task(leadership.fencing.run(), name="fencing")
        finally:
            for status in leadership.statuses.values():
                status.up = False  # what it knows grows old from now on
            self.leadership, self.lost = None, leadership
            self.snapshot = self._standby()
            self._news.set()
            gc.enable()
            gc.unfreeze()

    def _drop_lost(self) -> None:
        lost, self.lost = self.lost, None
        if lost is not None:
            lost.engine.selectors.close()

    def _begin(self, before: LeaseSeen) -> _Leadership:
        now = self.clock.wall_ns() / 1e9
        since = now if before.renew_wall is None else min(before.renew_wall, now)
        kinds = watched_kinds(self.config.namespace)
        engine = Engine(clock=self.clock, selectors=Selectors(), count_since_wall=since)
        made: _Leadership
        made = _Leadership(
            engine=engine,
            kinds=kinds,
            statuses={kind.name: WatchStatus(name=kind.name) for kind in kinds},
            began_ns=self.clock.monotonic_ns(),
            began_wall_ns=round(since * 1e9),
            fencing=self._fencing(engine.cluster, since, lambda: made.can_fence(), lambda: made.can_lift()),
        )
        return made

    def _fencing(
        self, cluster: Cluster, since_wall: float, readable: Callable[[], bool], liftable: Callable[[], bool]
    ) -> Fencing:
        config = self.config
        makes = config.leader_election == "off"
        return Fencing(
            self.api, self.clock, cluster, self.policies,
            Notebook(self.api, config.namespace, config.lease_name, makes=makes, apart=True),
            identity=config.identity, leads=self._leads, readable=readable, liftable=liftable,
            count_since_wall=since_wall,
        )

    async def _follow(self, kind: WatchedKind, leadership: _Leadership) -> None:
        engine = leadership.engine

        async def on_sync(name: str, objects: list[Any], unreadable: frozenset[str]) -> None:
            await engine.take_list(name, objects, unreadable)
            self._news.set()
            leadership.fencing.news()

        def on_change(name: str, obj: Any, present: bool) -> None:  # noqa: ANN401 - of the kind's struct
            wakes = _wakes_fencing(engine.cluster, name, obj)
            engine.on_change(name, obj, present)
            self._news.set()
            if wakes:
                leadership.fencing.news()

        await follow(
            self.api, kind, clock=self.clock, on_sync=on_sync, on_change=on_change,
            status=leadership.statuses[kind.name],
        )

    async def _publish(self) -> None:
        """A new snapshot soon after news, and about each second without, since ages grow and a lease may be lost."""
        while True:
            self._news.clear()
            began_ns = self.clock.monotonic_ns()
            self.snapshot = await self._make_snapshot()
            if self.leader() not in ("", self.config.identity):
                self._drop_lost()
            seconds = (self.clock.monotonic_ns() - began_ns) / 1e9
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PUBLISH_SECONDS):
                    await self._news.wait()
            # News of a small cluster is shown at once; where a snapshot is much work, many events share one.
            await asyncio.sleep(min(max(NEWS_SECONDS, seconds / SHARE_OF_TIME), PUBLISH_SECONDS))

    async def _make_snapshot(self) -> ClusterSnapshot:
        leadership = self.leadership
        if leadership is None:
            return self._standby()
        leadership.engine.set_unserved(_absent(leadership.statuses.values()))
        made = await leadership.engine.publish(complete=leadership.settled(self.clock.monotonic_ns()))
        if self.leadership is not leadership:  # lost while selectors were evaluated
            return self._standby()
        if made.complete:
            leadership.keep()
        since = leadership.began_wall_ns
        own_samples = (*self._own(leadership), *_dated((*made.own, *leadership.fencing.own_samples()), since))
        fencing = _dated(leadership.fencing.samples(), since) if made.complete else ()
        return ClusterSnapshot(
            wall_ns=made.wall_ns, leading=True, complete=made.complete, claims=made.claims, waits=made.waits,
            sick=leadership.fencing.sick() if made.complete else (), samples=(*made.samples, *fencing), own=own_samples,
        )

    def _own(self, leadership: _Leadership | None) -> list[Sample]:
        made = [] if self.build_info is None else [self.build_info]
        made += [own("leader", 1), own("leader_changes_total", 1)] if self.election is None else self.election.samples()
        made.append(own("event_loop_lag_seconds", self._lag.longest_seconds))
        if self.otlp is not None:
            made += self.otlp.samples()
        if leadership is None:
            return made
        made += _dated(samples(leadership.statuses.values()), leadership.began_wall_ns)
        cluster = leadership.engine.cluster
        made += [own("objects", count, name) for name, count in cluster.counts().items()]
        made += _heartbeats(cluster)
        return made

    def leader(self) -> str:
        """Name of the replica that leads; empty while none is known."""
        if self._leads():
            return self.config.identity
        holder = None if self.election is None else self.election.holder
        return "" if holder is None or holder == self.config.identity else holder

    def readiness(self) -> Readiness:
        """A standby is ready to take over; a leader when it has read what it needs and still hears of it."""
        leadership = self.leadership
        if leadership is None or not self._leads():
            return Readiness(checks=(self._standing_by(),))
        now = self.clock.wall_ns() / 1e9
        checks = [Check(name="election", ok=True, reason="leading")]
        checks += (_check(kind, leadership.statuses[kind.name], now) for kind in leadership.kinds if kind.required)
        return Readiness(checks=tuple(checks))

    def _standing_by(self) -> Check:
        election = self.election
        if election is not None and election.trouble is not None:
            reason = f"the lease cannot be read or written ({election.trouble.value})"
            return Check(name="election", ok=False, reason=reason)
        leader = self.leader()
        if not leader:
            return Check(name="election", ok=False, reason="nobody is known to lead yet")
        return Check(name="election", ok=True, reason=f"standing by, {leader} leads")

    async def explain(self, namespace: str, name: str) -> Explanation | None:
        """Why a claim is as it is; None while this replica has not read the cluster."""
        leadership = self.leadership
        if leadership is None or not leadership.complete or not self._leads():
            return None
        engine = leadership.engine
        return await _explain(
            engine.cluster, engine.selectors, engine.lifecycle, engine.waiting, namespace, name, self.clock
        )


async def _explain(
    cluster: Cluster, selectors: Selectors, lifecycle: Lifecycle, waiting: Waiting, namespace: str, name: str,
    clock: Clock,
) -> Explanation:
    while True:
        found = explain(cluster, selectors, lifecycle.views, namespace, name, clock.wall_ns() / 1e9, waiting)
        if not await selectors.settle():
            return found


def _check(kind: WatchedKind, status: WatchStatus, now: float) -> Check:
    if not status.synced:
        failures = ", ".join(f"{reason.value} x{count}" for reason, count in status.errors.items())
        return Check(name=kind.name, ok=False, reason=f"not read yet ({failures or 'reading'}): {kind.about}")
    age = now - (status.last_heard_wall or now)
    return Check(name=kind.name, ok=age < STALE_SECONDS, reason=f"heard of {age:.0f} s ago")


def _dated(found: Iterable[Sample], began_ns: int) -> list[Sample]:
    """Samples of a leadership: a counter that does not say when it began did with that, and not with the process."""
    return [
        replace(each, start_ns=began_ns)
        if each.start_ns is None and each.family.endswith("_total") else each
        for each in found
    ]  # fmt: skip


def _absent(statuses: Iterable[WatchStatus]) -> set[str]:
    """The kinds that the API server does not know."""
    return {status.name for status in statuses if status.absent}


def _wakes_fencing(cluster: Cluster, name: str, obj: Any) -> bool:  # noqa: ANN401 - of the kind's struct
    """Whether fencing looks at a change soon: a heartbeat that says nothing new has time."""
    if name != "leases":
        return name in ("resourceslices", "devicetaintrules")
    before = cluster.leases.get(key_of(obj))
    return before is None or before.metadata.annotations != obj.metadata.annotations


def _heartbeats(cluster: Cluster) -> list[Sample]:
    """Of Nodes that there are: Leases outlive them."""
    known = "nodes" in cluster.synced
    made: list[Sample] = []
    for lease in cluster.leases.values():
        node = (lease.metadata.annotations or {}).get("claimscope.io/node", "")
        renewed = unix_seconds(lease.spec.renew_time)
        if node and renewed is not None and (node in cluster.nodes or not known):
            made.append(own("agent_lease_renew_timestamp_seconds", renewed, node))
    return made


@contextlib.asynccontextmanager
async def connected(config: ControllerConfig, environ: Mapping[str, str]) -> AsyncIterator[tuple[ApiClient, Notebook]]:
    """The API server and the controller's Lease, for a command; ApiErrors become ControllerErrors."""
    api = await _client(config, environ, SystemClock())
    try:
        yield api, Notebook(api, config.namespace, config.lease_name, makes=True, apart=True)
    except ApiError as error:
        raise ControllerError(str(error)) from error
    finally:
        await api.close()


async def explain_once(
    config: ControllerConfig, environ: Mapping[str, str], namespace: str, name: str
) -> Explanation:
    """Reads the cluster once and explains one claim; raises ControllerError."""
    clock = SystemClock()
    api = await _client(config, environ, clock)
    kinds = watched_kinds(config.namespace)
    statuses = [WatchStatus(name=kind.name) for kind in kinds]
    cluster, lifecycle = Cluster(), Lifecycle(count_since_wall=clock.wall_ns() / 1e9)
    selectors = Selectors()
    read = asyncio.Event()

    def on_sync(kind: str, objects: list[Any], unreadable: frozenset[str]) -> None:
        changes = cluster.sync(kind, objects, unreadable)
        lifecycle.take(changes, cluster, arrival_ns=clock.monotonic_ns(), wall=clock.wall_ns() / 1e9)
        read.set()

    def on_change(kind: str, obj: Any, present: bool) -> None:  # noqa: ANN401 - of the kind's struct
        changes = cluster.apply(kind, obj, present)
        lifecycle.take(changes, cluster, arrival_ns=clock.monotonic_ns(), wall=clock.wall_ns() / 1e9)

    tasks = [
        asyncio.create_task(
            follow(api, kind, clock=clock, on_sync=on_sync, on_change=on_change, status=status), name=kind.name
        )
        for kind, status in zip(kinds, statuses, strict=True)
    ]
    try:
        claims = kinds[0]
        await discover(api, claims.group, claims.versions, claims.plural)
        await _read_all(kinds, statuses, read)
        cluster.unserved = _absent(statuses)
        return await _explain(cluster, selectors, lifecycle, Waiting(), namespace, name, clock)
    except ApiError as error:
        raise ControllerError(str(error)) from error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        selectors.close()
        await api.close()


async def _read_all(kinds: Sequence[WatchedKind], statuses: Sequence[WatchStatus], read: asyncio.Event) -> None:
    """Waits until every kind has been read or refused; claims must have been read."""
    deadline = asyncio.get_running_loop().time() + READ_ONCE_SECONDS
    while not all(status.synced or status.served is False or status.errors.total() for status in statuses):
        if asyncio.get_running_loop().time() > deadline:
            break
        read.clear()
        try:
            async with asyncio.timeout(0.2):
                await read.wait()
        except TimeoutError:
            continue
    claims = next(status for kind, status in zip(kinds, statuses, strict=True) if kind.name == "resourceclaims")
    if not claims.synced:
        why = ", ".join(reason.value for reason in claims.errors) or "no answer"
        raise ControllerError(
            f"the ResourceClaims cannot be read ({why}); `kubectl auth can-i list resourceclaims -A` says more"
        )
