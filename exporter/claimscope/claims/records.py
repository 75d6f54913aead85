"""What is remembered of pods and allocations, since their objects forget: when things happened, and that they did."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

from claimscope.claims.cluster import TERMINAL_PHASES, claims_of, is_active
from claimscope.claims.durations import READY, Moment, Skip, later, moment
from claimscope.claims.model import DeviceKey, Key, Phase, Workload
from claimscope.claims.state import Use, became_true, evicted_by_taint, use_of
from claimscope.kube.objects import Condition, Pod, ResourceClaim, unix_seconds

Ends = tuple[Moment | None, Moment | None]
MOST_GONE_PODS = 20_000


@dataclass(slots=True)
class PodRecord:
    """One pod, by uid. Each moment is kept as it was first learned."""

    pod: Pod  # as it was last
    created: Moment
    uses: tuple[Use, ...] = ()
    bound: Moment | None = None
    prepared: Moment | None = None
    started: tuple[tuple[str, Moment], ...] = ()  # claim -> first start of a container that uses it
    evicted: Moment | None = None
    evicted_from: tuple[str, ...] = ()  # device classes for which its eviction has been counted
    gone: bool = False
    workload: Workload | None = None  # what stands behind it, once somebody asked

    @property
    def ended(self) -> bool:
        """True when nothing more will run in it."""
        return self.gone or self.pod.status.phase in TERMINAL_PHASES

    @property
    def active(self) -> bool:
        """True while it wants its claims."""
        return not self.gone and is_active(self.pod)

    def claims(self) -> frozenset[Key]:
        """The claims it names, as far as they exist."""
        namespace = self.pod.metadata.namespace
        return frozenset(Key(namespace, use.entry.claim) for use in self.uses if use.entry.claim is not None)

    def use(self, claim: str) -> Use | None:
        """What it does with a claim."""
        return next((use for use in self.uses if use.entry.claim == claim), None)

    def first_start(self, claim: str) -> Moment | None:
        """When a container that uses a claim first ran."""
        return next((first for name, first in self.started if name == claim), None)

    def see(self, pod: Pod, arrival_ns: int | None) -> None:
        """Takes the pod as it is now."""
        if pod.metadata.labels != self.pod.metadata.labels:
            self.workload = None
        self.pod = pod
        self.uses = tuple(use_of(pod, entry) for entry in claims_of(pod))
        restarted = any(status.restart_count > 0 for status in pod.status.container_statuses or ())
        if self.bound is None:
            self.bound = _transition(became_true(pod, "PodScheduled"), arrival_ns)
        # A pod that had restarts when first seen may stand in its second sandbox.
        if self.prepared is None and not restarted:
            self.prepared = _transition(became_true(pod, "PodReadyToStartContainers"), arrival_ns)
        if self.evicted is None:
            self.evicted = _transition(evicted_by_taint(pod), arrival_ns)
        known = {name for name, _ in self.started}
        self.started += tuple(
            (use.entry.claim, moment(arrival_ns, use.started_wall))
            for use in self.uses
            if use.entry.claim is not None and use.entry.claim not in known and use.started_wall is not None
        )


def pod_record(pod: Pod, arrival_ns: int | None) -> PodRecord:
    """The record of a pod seen for the first time."""
    record = PodRecord(pod, moment(arrival_ns, unix_seconds(pod.metadata.creation_timestamp)))
    record.see(pod, arrival_ns)
    return record


def _transition(condition: Condition | None, arrival_ns: int | None) -> Moment | None:
    return moment(arrival_ns, unix_seconds(condition.last_transition_time)) if condition is not None else None


@dataclass(slots=True)
class Pods:
    """Every pod that names a claim, and those lately gone: the claims' watch may come to them later."""

    by_uid: dict[str, PodRecord] = field(default_factory=dict)
    _of_claim: dict[Key, tuple[str, ...]] = field(default_factory=dict)
    _gone: dict[str, float] = field(default_factory=dict)  # uid -> when, oldest first

    def see(self, pod: Pod, arrival_ns: int | None) -> frozenset[Key]:
        """Takes a pod; answers the claims that it touches."""
        record = self.by_uid.get(pod.metadata.uid)
        if record is None:
            record = self.by_uid[pod.metadata.uid] = pod_record(pod, arrival_ns)
            before: frozenset[Key] = frozenset()
        else:
            before = record.claims()
            record.see(pod, arrival_ns)
            if record.gone:  # it had to do with no device for a while
                record.gone = False
                del self._gone[pod.metadata.uid]
        after = record.claims()
        for key in after - before:
            self._of_claim[key] = (*self._of_claim.get(key, ()), pod.metadata.uid)
        for key in before - after:
            self._unlink(key, pod.metadata.uid)
        return before | after

    def gone(self, pod: Pod, arrival_ns: int | None, wall: float) -> frozenset[Key]:
        """Takes a pod's last words."""
        touched = self.see(pod, arrival_ns)
        self.by_uid[pod.metadata.uid].gone = True
        self._gone[pod.metadata.uid] = wall
        while len(self._gone) > MOST_GONE_PODS:
            self._forget(next(iter(self._gone)))
        return touched

    def forget_before(self, wall: float) -> None:
        """Drops pods that went before `wall`."""
        for uid in [uid for uid, gone in self._gone.items() if gone < wall]:
            self._forget(uid)

    def _forget(self, uid: str) -> None:
        del self._gone[uid]
        for key in self.by_uid.pop(uid).claims():
            self._unlink(key, uid)

    def _unlink(self, key: Key, uid: str) -> None:
        left = tuple(each for each in self._of_claim[key] if each != uid)
        if left:
            self._of_claim[key] = left
        else:
            del self._of_claim[key]

    def naming(self, key: Key) -> list[PodRecord]:
        """Every known pod that names a claim, oldest first."""
        found = [self.by_uid[uid] for uid in self._of_claim.get(key, ())]
        if len(found) > 1:
            found.sort(key=lambda record: (record.created.stamp or 0.0, record.pod.metadata.name))
        return found


@cache
def _with(settled: frozenset[str], phase: str) -> frozenset[str]:
    """The few sets there are, each kept once for all allocations."""
    return settled | {phase}


@dataclass(slots=True)
class Allocation:
    """One allocation of one claim, from its writing to its release, and on until its outcome is known."""

    claim: Key
    created: Moment  # the claim
    deviceclass: str
    observes_only: bool
    extended: bool
    made: Moment
    consumers: tuple[str, ...] = ()  # uids of every pod that was entered in reservedFor
    by_group: bool = False  # reserved for a pod group, which names no pods
    settled: frozenset[str] = frozenset()  # phases that are counted, or shall not be
    ran_pods: tuple[str, ...] = ()  # of the consumers, those that ran on it
    evicted_pods: tuple[str, ...] = ()
    passed_on: tuple[str, ...] = ()  # of the consumers, those for which a later allocation was made
    after: Moment | None = None  # when the one before ended; without arrival where only a later list tells of it
    ended: Moment | None = None  # the latest that it can have ended
    closed_wall: float | None = None  # when that was learned
    witnessed: bool = False  # its end was seen happening
    outcome: str | None = None
    lifetime: float | Skip | None = None  # the claim's, where it was deleted before the outcome was known

    def enter(self, uids: Iterable[str]) -> None:
        """Adds pods that may use the devices, in the order in which they came."""
        self.consumers += tuple(uid for uid in uids if uid not in self.consumers)

    def note_run(self, uid: str) -> None:
        """Marks a consumer as one that ran."""
        ran = (*self.ran_pods, uid)
        self.ran_pods = self.consumers if ran == self.consumers else ran  # nearly always: kept once

    def pass_on(self, heir: Allocation) -> None:
        """Leaves to a later allocation what becomes of the pods that are entered in both.

        Nobody takes an allocation from a pod that is bound: what was given up before was never used by it.
        """
        left = tuple(uid for uid in self.consumers if uid in heir.consumers and uid not in self.passed_on)
        if not left:
            return
        self.passed_on += left
        if heir.consumers[0] == self.consumers[0]:  # the pods' watch was ahead: counted here already
            for phase in self.settled - {Phase.SCHEDULING.value}:
                heir.settle(phase)

    def outlived_by(self, happened: Moment | None) -> bool:
        """True for what happened when this had ended."""
        return self.ended is not None and happened is not None and happened.is_after(self.ended)

    def judge(self, known_pods: Container[str]) -> str:
        """How it ended, of what is known by now."""
        users = [uid for uid in self.consumers if uid not in self.passed_on]
        if any(uid in self.ran_pods and uid not in self.evicted_pods for uid in users):
            return "ran"
        if any(uid in self.evicted_pods for uid in users):
            return "evicted"  # no pod used it but such as were evicted
        given_up = bool(self.passed_on) and not users
        known = self.witnessed and not self.by_group and all(uid in known_pods for uid in users)
        return "never_ran" if given_up or known else "unknown"

    def settle(self, phase: str) -> None:
        """Marks a phase as counted, or as one that shall not be."""
        self.settled = _with(self.settled, phase)

    def was_made_anew(self, stamp: float | None) -> bool:
        """True for another time than the one known. An absent one is filled in at a later reservation, no more."""
        return stamp is not None and self.made.stamp is not None and stamp != self.made.stamp

    def phases(self, pods: Mapping[str, PodRecord], namers: Iterable[PodRecord]) -> dict[str, Ends]:
        """Both ends of every phase. They follow the pod for which the allocation was made: the first one entered.

        An allocation that was given up, for another one or for none, leaves only the search for its devices.
        """
        lead = pods.get(self.consumers[0]) if self.consumers else None
        if lead is None:
            return {}
        made = self.made
        bound_wall = lead.bound.stamp if lead.bound is not None else None
        if made.stamp is not None and bound_wall is not None and bound_wall < made.stamp - 1:
            # The scheduler fills an absent allocationTimestamp in at a later reservation (dynamicresources.go,
            # bindClaim), so one that is later than the binding it preceded does not tell of the allocation.
            made = moment(made.arrival_ns, None)
        if not _made_for(lead, made):
            return {Phase.SCHEDULING.value: (None, made)}
        needed, started = self._needed(lead, namers), lead.first_start(self.claim.name)
        found: dict[str, Ends] = {Phase.SCHEDULING.value: (self._sought(needed), made)}
        if self.consumers[0] not in self.passed_on:
            later_phases: dict[str, Ends] = {
                Phase.BINDING.value: (made, lead.bound),
                Phase.PREPARE.value: (lead.bound, lead.prepared),
                Phase.START.value: (lead.prepared, started),
                READY: (needed, started),
            }
            found |= {phase: ends for phase, ends in later_phases.items() if not self.outlived_by(ends[1])}
        return found

    def _sought(self, needed: Moment) -> Moment:
        """Since when devices were sought: since the allocation before ended, if the claim was needed by then."""
        after = self.after
        if after is None:
            return needed
        if needed.is_after(after):
            return needed
        return moment(after.arrival_ns, None)  # no object states the second of an end

    def _needed(self, lead: PodRecord, namers: Iterable[PodRecord]) -> Moment:
        """The later of the claim's creation and that of the first pod that names it."""
        first = lead.created
        for pod in namers:
            if pod.active and (pod.created.stamp or 0.0, pod.created.arrival_ns or 0) < (
                first.stamp or 0.0, first.arrival_ns or 0,
            ):
                first = pod.created
        # A claim for an extended resource is made by the scheduler at the very end of its search.
        return first if self.extended else later(self.created, first)


def _made_for(lead: PodRecord, made: Moment) -> bool:
    """False for a pod younger than the allocation: it came after others, of whom nothing is known any more."""
    return made.stamp is None or lead.created.stamp is None or lead.created.stamp <= made.stamp + 1


def identity_of(claim: ResourceClaim) -> tuple[tuple[str, DeviceKey, str | None], ...]:
    """Which devices a claim is allocated: another answer is another allocation."""
    allocation = claim.status.allocation
    return tuple(
        (each.request, DeviceKey(each.driver, each.pool, each.device), each.share_id)
        for each in (allocation.devices.results if allocation is not None else None) or ()
    )

